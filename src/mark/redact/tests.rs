use super::*;
use proptest::prelude::*;

/// Commands with secrets, and what is recorded of them. `§` stands for the secret. Words are separated by `¦`.
const SECRET: &[(&str, &str)] = &[
    ("mysql¦--password=§¦-e¦select 1", "mysql --password=••• -e select 1"),
    ("mysql¦-u¦root¦-p§¦-h¦db", "mysql -u root -p••• -h db"),
    ("/usr/bin/mysqldump¦-uroot¦-p§", "/usr/bin/mysqldump -uroot -p•••"),
    ("env¦MYSQL_PWD=§¦mysql", "env MYSQL_PWD=••• mysql"),
    ("mysqladmin¦password¦§", "mysqladmin password •••"),
    ("redis-cli¦-h¦x¦-a¦§¦ping", "redis-cli -h x -a ••• ping"),
    ("redis-cli¦AUTH¦§", "redis-cli AUTH •••"),
    ("env¦REDISCLI_AUTH=§¦redis-cli", "env REDISCLI_AUTH=••• redis-cli"),
    ("curl¦-H¦Authorization: Bearer §¦h", "curl -H Authorization: ••• h"),
    ("curl¦-HAuthorization: Basic §¦h", "curl -HAuthorization: ••• h"),
    ("curl¦--header=X-Api-Key: §¦h", "curl --header=X-Api-Key: ••• h"),
    ("curl¦-H¦PRIVATE-TOKEN: §", "curl -H PRIVATE-TOKEN: •••"),
    ("curl¦-H¦Cookie: a=§; b=§", "curl -H Cookie: •••"),
    ("curl¦-H¦Authorization: Digest a=\"§\", b=\"§\"", "curl -H Authorization: •••"),
    ("curl¦-u¦bob:§¦h", "curl -u bob:••• h"),
    ("curl¦-sSu¦bob:§¦h", "curl -sSu bob:••• h"),
    ("curl¦-ubob:§¦h", "curl -ubob:••• h"),
    ("curl¦-u¦§:¦h", "curl -u •••: h"),
    ("curl¦--user¦bob:§", "curl --user bob:•••"),
    ("curl¦--user=bob:§", "curl --user=bob:•••"),
    ("curl¦https://bob:§@example.com/a?b", "curl https://•••@example.com/a?b"),
    ("git¦clone¦https://§@example.com/r.git", "git clone https://•••@example.com/r.git"),
    ("curl¦https://example.com/?a=1&token=§&b=2", "curl https://example.com/?a=1&token=•••&b=2"),
    (
        "curl¦-d¦{\"user\":\"bob\",\"password\":\"§\",\"n\":1}",
        "curl -d {\"user\":\"bob\",\"password\":\"•••\",\"n\":1}",
    ),
    ("curl¦-d¦{\"clientSecret\": \"§ \\\" §\", \"n\": 1}", "curl -d {\"clientSecret\": \"•••\", \"n\": 1}"),
    (
        "kubectl¦create¦secret¦generic¦x¦--from-literal=password=§",
        "kubectl create secret generic x --from-literal=password=•••",
    ),
    ("kubectl¦create¦secret¦generic¦x¦--from-literal=k=§", "kubectl create secret generic x --from-literal=k=•••"),
    ("kubectl¦create¦secret¦generic¦x¦--from-literal¦k=§", "kubectl create secret generic x --from-literal k=•••"),
    ("tool¦--password¦§ §", "tool --password •••"),
    ("tool¦--password=§ §", "tool --password=•••"),
    ("tool¦--pass¦§¦-v", "tool --pass ••• -v"),
    (
        "tool¦--private-key=§¦--api-key¦§¦--apikey=§¦--auth¦§¦--auth-token=§",
        "tool --private-key=••• --api-key ••• --apikey=••• --auth ••• --auth-token=•••",
    ),
    ("java¦-Ddb.password=§¦-jar¦x", "java -Ddb.password=••• -jar x"),
    ("sshpass¦-p¦§¦ssh¦-p¦22¦h", "sshpass -p ••• ssh -p 22 h"),
    ("sshpass¦-p§¦ssh¦h", "sshpass -p••• ssh h"),
    ("vault¦login¦--token¦§", "vault login --token •••"),
    ("vault¦kv¦put¦secret/x¦password=§¦k=§", "vault kv put secret/x password=••• k=•••"),
    ("env¦API_TOKEN=§¦PORT=80", "env API_TOKEN=••• PORT=80"),
    ("env¦AWS_ACCESS_KEY_ID=me¦AWS_SECRET_ACCESS_KEY=§¦aws", "env AWS_ACCESS_KEY_ID=me AWS_SECRET_ACCESS_KEY=••• aws"),
    ("psql¦postgres://u:§@h/db", "psql postgres://•••@h/db"),
    ("psql¦host=h password=§ user=u", "psql host=h password=••• user=u"),
    ("mongosh¦-u¦bob¦-p¦§", "mongosh -u bob -p •••"),
    ("docker¦login¦-u¦bob¦-p¦§¦r.io", "docker login -u bob -p ••• r.io"),
    ("htpasswd¦-b¦f¦u¦§", "htpasswd -b f u •••"),
    ("htpasswd¦-nbB¦u¦§", "htpasswd -nbB u •••"),
    ("openssl¦rsa¦-passin¦pass:§", "openssl rsa -passin pass:•••"),
    ("openssl¦enc¦-aes-256-cbc¦-k¦§", "openssl enc -aes-256-cbc -k •••"),
    ("sudo¦-u¦app¦mysql¦-p§", "sudo -u app mysql -p•••"),
    ("timeout¦5¦redis-cli¦-a¦§", "timeout 5 redis-cli -a •••"),
    ("kubectl¦exec¦p¦--¦mysql¦-p§", "kubectl exec p -- mysql -p•••"),
    ("sh¦-c¦export DB_PASSWORD=§; run --secret § -v", "sh -c export DB_PASSWORD=•••; run --secret ••• -v"),
    ("sh¦-c¦PGPASSWORD=§ psql -h db", "sh -c PGPASSWORD=••• psql -h db"),
    ("bash¦-lc¦PASSWORD='§ §' run", "bash -lc PASSWORD=••• run"),
    ("sh¦-c¦tool --password '§ §' -v", "sh -c tool --password '•••' -v"),
    ("sh¦-c¦cd /a&&time mysql -p§|cat", "sh -c cd /a&&time mysql -p•••|cat"),
    ("sh¦-c¦if true; then sudo redis-cli -a §; fi", "sh -c if true; then sudo redis-cli -a •••; fi"),
    ("sh¦-c¦x=$(curl -u bob:§ h)", "sh -c x=$(curl -u bob:••• h)"),
    ("sh¦-c¦curl -H \"Authorization: Bearer §\" h", "sh -c curl -H \"Authorization: •••\" h"),
    (
        "sh¦-c¦bash -c \"curl -H \\\"Authorization: Bearer §\\\" -u \\\"bob:§\\\" h\"",
        "sh -c bash -c \"curl -H \\\"Authorization: •••\\\" -u \\\"bob:•••\\\" h\"",
    ),
    ("sh¦-c¦su -c 'mysql -p\"§\" -e \"select 1\"'", "sh -c su -c 'mysql -p••• -e \"select 1\"'"),
    ("sh¦-c¦curl \\\n  -u \\\n  bob:§ h", "sh -c curl \\\n  -u \\\n  bob:••• h"),
    (
        "sh¦-c¦cat >f <<EOF\nuser: it's\npassword: § §\nTOKEN=§\nEOF\nls",
        "sh -c cat >f <<EOF\nuser: it's\npassword: •••\nTOKEN=•••\nEOF\nls",
    ),
    ("python¦-c¦connect(password='§', host='h')", "python -c connect(password=••• host='h')"),
    ("echo¦eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.§", "echo eyJ•••"),
    ("echo¦x ghp_§ y", "echo x ghp_••• y"),
    ("gh¦github_pat_§¦gho_§", "gh github_pat_••• gho_•••"),
    ("vault¦login¦hvs.§", "vault login hvs.•••"),
    ("vault¦login¦s.§", "vault login s.•••"),
    ("a¦glpat-§¦xoxb-§¦AKIA§¦ASIA§¦sk-§", "a glpat-••• xoxb-••• AKIA••• ASIA••• sk-•••"),
    (
        "echo¦-----BEGIN RSA PRIVATE KEY-----\n§\n§\n-----END RSA PRIVATE KEY-----\n",
        "echo -----BEGIN RSA PRIVATE KEY-----•••-----END RSA PRIVATE KEY-----\n",
    ),
    ("echo¦-----BEGIN PRIVATE KEY-----\n§", "echo -----BEGIN PRIVATE KEY-----•••"),
];

/// Commands that have no secret and stay as they are.
const HARMLESS: &[&str] = &[
    "ls¦-l¦/tmp",
    "ls¦-la¦/tmp/passwords.txt",
    "mysql¦-u¦root¦-h¦mysql¦-P¦3306",
    "mysql¦-p",
    "mysql¦-p¦db",
    "mkdir¦-p¦/a/b",
    "ps¦-p¦1",
    "ssh¦-p¦22¦h",
    "docker¦run¦-p¦80:80¦nginx",
    "redis-cli¦-h¦x",
    "ls¦-a¦x",
    "tar¦-a¦x",
    "id¦-u¦bob",
    "git¦commit¦-m¦token parser",
    "cat¦/var/run/secrets/kubernetes.io/serviceaccount/token",
    "kubectl¦get¦secret¦x",
    "grep¦password¦file",
    "curl¦-s¦https://example.com/@x:y",
    "curl¦-u¦bob¦-o/tmp/u¦http://h:80/",
    "ssh¦user@host",
    "git¦clone¦ssh://git@example.com/r.git",
    "env¦PWD=/tmp¦OLDPWD=/¦pwd",
    "tool¦--token¦-v",
    "tool¦--key=a¦--tokenizer=b¦--author=c¦--password-file=/d",
    "docker¦login¦-u¦bob¦--password-stdin¦r.io",
    "docker¦run¦-v¦secret:/etc/secret¦x",
    "openssl¦rsa¦-in¦a¦-passin¦env:A",
    "kubectl¦create¦configmap¦x¦--from-literal=a=b",
    "sh¦-c¦for f in *; do echo \"$f: don't\"; done 2>&1 | grep -c x",
    "sh¦-c¦TOKEN= run",
    "date¦+%H:%M:%S=%s",
    "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
    "echo¦日本語 ¦é='ü'",
];

fn words(line: &str) -> Vec<String> {
    line.split('¦').map(str::to_owned).collect()
}

fn recorded(line: &str) -> String {
    command(&words(line)).join(" ")
}

#[test]
fn secrets_are_masked_and_the_rest_is_kept() {
    let recorded = SECRET.iter().map(|(line, _)| recorded(&line.replace('§', "HUNTER2HUNTER2HUNTER2HUNTER2")));
    let wrong: Vec<_> = recorded.zip(SECRET).filter(|(recorded, (_, expected))| recorded != expected).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_command_without_a_secret_is_kept_as_it_is() {
    for line in HARMLESS {
        assert_eq!(recorded(line), line.replace('¦', " "));
    }
}

/// The command as one script, as a shell quotes it.
fn quoted(argv: &[String]) -> String {
    let quote = |word: &String| format!("'{}'", word.replace('\'', r"'\''"));
    argv.iter().map(quote).collect::<Vec<_>>().join(" ")
}

proptest! {
    #[test]
    fn no_secret_is_recorded_whatever_it_is_and_wherever_it_stands(
        (line, _) in proptest::sample::select(SECRET), secret in "[A-Z]{3}[0-9]{4}[A-Z0-9]{25}",
    ) {
        let argv = words(&line.replace('§', &secret));
        let has = |argv: &[String]| command(argv).concat().contains(&secret);
        prop_assert!(!has(&argv));
        prop_assert!(!has(&["sh".into(), "-c".into(), quoted(&argv)]), "{}", quoted(&argv));
        let nested = format!("cd /x && exec {}", quoted(&argv));
        prop_assert!(!has(&["sh".into(), "-c".into(), nested]));
    }
}

#[test]
fn a_secret_that_is_cut_is_not_shown() {
    // All that is read before the URL is masked, so what is shown goes on into the URL, of which the host is not read.
    let password = format!("{} https://{}@h/", "TOKEN=x ".repeat(90), "HUNTER2".repeat(99));
    assert!(!recorded(&format!("sh¦-c¦{password}")).contains("HUNTER2"));
    let script = format!("--password={} https://{}@h/", "'x'".repeat(300), "HUNTER2".repeat(99));
    assert!(!recorded(&format!("sh¦-c¦{script}")).contains("HUNTER2"));
}

proptest! {
    #[test]
    fn any_script_is_masked_without_a_panic(
        parts in proptest::collection::vec(
            prop_oneof![
                "[\\\\'\"=:@/&?{}()$;|<>\\- \n\u{a0}é\u{1F600}•]{1,4}",
                proptest::sample::select(&["token", "mysql", "-p", "curl", "-u", "sh", "-c", "://", "eyJ", "-----BEGIN "][..])
                    .prop_map(str::to_owned),
            ],
            0..40,
        ),
    ) {
        let kept = command(&["sh".to_owned(), "-c".to_owned(), parts.concat(), parts.concat()]);
        prop_assert!(kept.len() <= 4);
    }

    #[test]
    fn any_command_is_bounded(argv in proptest::collection::vec(any::<String>(), 0..100)) {
        let kept = command(&argv);
        prop_assert!(kept.len() <= MAX_WORDS + 1);
        prop_assert!(kept.iter().map(String::len).sum::<usize>() <= MAX_BYTES + 32);
    }
}

#[test]
fn a_user_is_bounded_and_keeps_the_chosen_extra() {
    let extra = [("reason", "INC-42"), ("scopes", "x"), (EXEC_REQUEST_UID, "da83c434")];
    let extra = extra.map(|(key, value)| (key.to_owned(), vec![value.to_owned()]));
    let many =
        User { name: "é".repeat(9_999), uid: "u".into(), groups: vec!["g".repeat(999); 10_000], extra: extra.into() };
    let kept = user(&many);
    assert_eq!(
        (kept.groups.len(), kept.extra.keys().map(String::as_str).collect::<Vec<_>>()),
        (32, vec!["reason", EXEC_REQUEST_UID])
    );
    assert!(serde_json::to_string(&kept).unwrap().len() < 8 * 1024);
    let arn = User { name: format!("arn:aws:sts::1:assumed-role/{}", "r".repeat(1000)), ..User::default() };
    assert_eq!(user(&arn), arn);
}

#[test]
fn a_megabyte_of_command_is_bounded() {
    let kept = command(&["x".repeat(1 << 20), "y=".repeat(1 << 19)]);
    assert!(kept.iter().map(String::len).sum::<usize>() <= 2 * MAX_WORD);
}
