//! The programs whose short options and words are secrets, although their names do not say so. Pure.

/// Which part of a value is the secret.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Part {
    /// All of it.
    All,
    /// `user:secret`, what is after the first colon. A user without a colon is no secret.
    AfterColon,
    /// `key=secret`, what is after the first `=`.
    AfterEquals,
}

/// Where the value is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Place {
    /// In the word of the option: `-pX`. The option alone asks for the value.
    Attached,
    /// In the next word: `-a X`.
    Next,
    /// In either.
    Either,
    /// In each later word that is no option.
    Words,
    /// In the last word.
    Last,
}

/// What one option, or one word, of some programs says about a secret.
#[derive(Debug)]
pub(super) struct Rule {
    pub programs: &'static [&'static str],
    /// A word that must be before the option, such as the subcommand. Empty if none must.
    pub after: &'static str,
    pub option: &'static str,
    pub place: Place,
    pub part: Part,
}

const fn rule(programs: &'static [&'static str], option: &'static str, place: Place, part: Part) -> Rule {
    Rule { programs, after: "", option, place, part }
}

const fn after(after: &'static str, rule: Rule) -> Rule {
    Rule { after, ..rule }
}

const MYSQL: &[&str] = &[
    "mysql",
    "mysqladmin",
    "mysqlcheck",
    "mysqldump",
    "mysqlimport",
    "mysqlpump",
    "mysqlsh",
    "mysqlshow",
    "mysqlslap",
    "mariadb",
    "mariadb-admin",
    "mariadb-check",
    "mariadb-dump",
    "mariadb-import",
    "mariadb-show",
];
const MONGO: &[&str] =
    &["mongo", "mongosh", "mongodump", "mongoexport", "mongoimport", "mongorestore", "mongostat", "mongotop", "cqlsh"];
const REDIS: &[&str] = &["redis-cli", "valkey-cli", "keydb-cli"];
const REGISTRY: &[&str] =
    &["az", "buildah", "crane", "docker", "helm", "nerdctl", "oc", "oras", "podman", "regctl", "skopeo"];
const LDAP: &[&str] = &["ldapadd", "ldapdelete", "ldapmodify", "ldappasswd", "ldapsearch", "ldapwhoami"];
const KUBECTL: &[&str] = &["k", "k3s", "kubectl", "oc"];

use Part::{AfterColon, AfterEquals, All};
use Place::{Attached, Either, Last, Next, Words};

pub(super) const RULES: &[Rule] = &[
    rule(MYSQL, "-p", Attached, All),
    rule(&["mysqladmin", "mariadb-admin"], "password", Next, All),
    rule(MONGO, "-p", Either, All),
    rule(REDIS, "-a", Next, All),
    rule(REDIS, "auth", Last, All),
    rule(REDIS, "requirepass", Next, All),
    rule(REDIS, "masterauth", Next, All),
    rule(&["curl"], "-u", Either, AfterColon),
    rule(&["curl"], "--user", Next, AfterColon),
    rule(&["curl"], "-U", Either, AfterColon),
    rule(&["curl"], "--proxy-user", Next, AfterColon),
    rule(&["curl"], "-E", Either, AfterColon),
    rule(&["curl"], "-b", Either, All),
    rule(&["curl"], "--oauth2-bearer", Next, All),
    rule(&["http", "https", "xh", "xhs"], "-a", Either, AfterColon),
    rule(&["etcdctl"], "--user", Next, AfterColon),
    rule(&["sshpass"], "-p", Either, All),
    after("login", rule(REGISTRY, "-p", Either, All)),
    rule(&["htpasswd"], "-b", Last, All),
    rule(&["openssl"], "-k", Next, All),
    rule(&["openssl"], "-K", Next, All),
    after("kv", rule(&["vault", "bao"], "put", Words, AfterEquals)),
    after("kv", rule(&["vault", "bao"], "patch", Words, AfterEquals)),
    rule(&["vault", "bao"], "write", Words, AfterEquals),
    after("secret", rule(KUBECTL, "--from-literal", Next, AfterEquals)),
    rule(LDAP, "-w", Either, All),
    rule(&["sqlcmd"], "-P", Either, All),
    rule(&["zip", "unzip"], "-P", Either, All),
    rule(&["7z", "7za"], "-p", Attached, All),
];

/// Short options without a value, which may stand before one with a value in the same word, as in `curl -su`.
pub(super) const FLAGS: &[(&str, &str)] =
    &[("curl", "0123456#afgGiIjJklLnNOqRsSv"), ("htpasswd", "cnimBd5sDv2"), ("mysql", "ABCEHNrstvX")];

/// What starts another program: the program that follows counts. The shell's own words are here too.
pub(super) const STARTERS: &[&str] = &[
    "!",
    "{",
    "builtin",
    "busybox",
    "chroot",
    "command",
    "do",
    "doas",
    "dumb-init",
    "elif",
    "else",
    "env",
    "eval",
    "exec",
    "gosu",
    "if",
    "ionice",
    "nice",
    "nohup",
    "nsenter",
    "runuser",
    "setpriv",
    "setsid",
    "stdbuf",
    "strace",
    "su",
    "su-exec",
    "sudo",
    "then",
    "time",
    "timeout",
    "tini",
    "unshare",
    "until",
    "watch",
    "while",
    "xargs",
];
