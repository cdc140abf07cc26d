//! The ports of the real binary: on hosts without one of the address families, and while a stranger takes connections.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    process::{Child, Command},
    thread::sleep,
    time::Duration,
};

use tempfile::TempDir;

use crate::harness::decisions;

/// The kubelet's timeout for a probe.
const PROBE: Duration = Duration::from_secs(1);
const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// `pristine serve`, whose API server is down.
struct Replica {
    child: Child,
    port: u16,
    folder: TempDir,
}

impl Replica {
    /// Listens on `address`, which names every address of the host, and is started by the program `by`.
    fn start(by: &[&str], address: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let rules = "apiVersion: pristine/v1alpha1\nkind: PristineConfiguration\ndefault: {action: Record}\n";
        fs::write(path("pristine.yaml"), rules).unwrap();
        let kubeconfig = "{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}], \
            clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1', insecure-skip-tls-verify: true}}], users: [{name: u, user: {token: t}}]}";
        fs::write(path("kubeconfig"), kubeconfig).unwrap();
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let log = File::create(path("log")).unwrap();
        let command = [by, &[env!("CARGO_BIN_EXE_pristine")]].concat();
        let child = Command::new(command[0])
            .args(&command[1..])
            .args(["serve", &format!("--listen={address}:0"), &format!("--probes={address}:{port}"), "--config"])
            .arg(path("pristine.yaml"))
            .env("KUBECONFIG", path("kubeconfig"))
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut replica = Self { child, port, folder };
        replica.wait();
        replica
    }

    /// Until it answers on one of the addresses.
    fn wait(&mut self) {
        for _ in 0..200 {
            if [V4, V6].into_iter().any(|ip| self.get(ip, "/livez").is_ok()) {
                return;
            }
            assert!(self.child.try_wait().unwrap().is_none(), "it ended: {}", self.log());
            sleep(Duration::from_millis(50));
        }
        panic!("no answer: {}", self.log());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// A GET as the kubelet makes it: a connection of its own, and a second for everything.
    fn get(&self, ip: IpAddr, path: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(ip, self.port), PROBE)?;
        stream.set_read_timeout(Some(PROBE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        if answer.starts_with("HTTP/1.1 200 ") { Ok(answer) } else { Err(io::Error::other(answer)) }
    }

    /// The soft and the hard limit of its file descriptors.
    fn limits(&self) -> (String, String) {
        let text = fs::read_to_string(format!("/proc/{}/limits", self.child.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
        let mut words = line.split_whitespace().map(str::to_owned);
        (words.next().unwrap(), words.next().unwrap())
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn every_rule_of_the_configuration_has_a_series_at_zero_and_a_reload_replaces_them() {
    let replica = Replica::start(&["env"], "[::]");
    let count = |rule| decisions(&replica.get(V4, "/metrics").unwrap(), rule);
    let eventually = |wanted: [Option<u32>; 2]| {
        let rules = || ["backups", "eu"].map(count);
        (0..100).any(|_| {
            rules() == wanted || {
                sleep(Duration::from_millis(50));
                false
            }
        })
    };
    assert_eq!((count("default"), count("backups")), (Some(0), None));
    let path = replica.folder.path().join("pristine.yaml");
    let first = fs::read_to_string(&path).unwrap();
    for (rules, wanted) in [("backups", [Some(0), None]), ("eu", [None, Some(0)])] {
        let text = format!("{first}rules: [{{name: {rules}, match: {{users: [u]}}, action: Exempt}}]\n");
        fs::write(replica.folder.path().join("new"), text).unwrap();
        fs::rename(replica.folder.path().join("new"), &path).unwrap();
        assert!(eventually(wanted), "{rules}: {}", replica.log());
    }
    assert_eq!(count("default"), Some(0));
}

#[test]
fn the_soft_limit_of_file_descriptors_is_raised_to_the_hard_one() {
    let replica = Replica::start(&["prlimit", "--nofile=100:4096"], "[::]");
    assert_eq!(replica.limits(), ("4096".to_owned(), "4096".to_owned()));
}

#[test]
fn the_probes_are_answered_while_a_stranger_holds_2000_connections_to_their_port() {
    let replica = Replica::start(&["prlimit", "--nofile=256"], "[::]");
    let strangers: Vec<_> = (0..2000).map(|_| TcpStream::connect((V4, replica.port)).unwrap()).collect();
    for path in ["/livez", "/metrics"].repeat(10) {
        replica.get(V4, path).unwrap();
    }
    drop(strangers);
}

/// As on a host whose kernel does not have this address family.
fn without(family: &str, address: &str) -> Replica {
    Replica::start(&["python3", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/process/deny_family.py"), family], address)
}

#[test]
fn both_families_are_served_at_the_default_address() {
    let replica = Replica::start(&["env"], "[::]");
    for ip in [V4, V6] {
        replica.get(ip, "/livez").unwrap();
    }
    assert!(!replica.log().contains("instead"), "{}", replica.log());
}

#[test]
fn without_ipv6_the_default_address_listens_on_ipv4_and_says_so_once_per_port() {
    let replica = without("AF_INET6", "[::]");
    replica.get(V4, "/livez").unwrap();
    replica.get(V6, "/livez").unwrap_err();
    let log = replica.log();
    let said: Vec<_> = log.lines().filter(|line| line.contains("instead")).collect();
    assert!(said.len() == 2 && said.iter().all(|line| line.contains(r#""level":"INFO""#)), "{log}");
}

#[test]
fn without_ipv4_every_address_means_ipv6() {
    for address in ["[::]", "0.0.0.0"] {
        let replica = without("AF_INET", address);
        replica.get(V6, "/livez").unwrap();
        replica.get(V6, "/metrics").unwrap();
    }
}
