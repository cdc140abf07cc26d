//! Opens the ports, on hosts with one address family as well as with both, and allows as many connections as the host does.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// Connections that wait to be accepted. The kernel allows up to net.core.somaxconn, 4096 on current ones.
const BACKLOG: i32 = 1024;
/// File descriptors that the process asks for. Far more than the limits on connections allow it to use, and few enough
/// for a host that would allow a billion.
const MAX_FILES: u64 = 65_536;

/// Listens on an address. `[::]` and `0.0.0.0` mean every address of the host: on a host without their address family
/// (ipv6.disable=1) they mean every address of the other family. An address of one interface means only that one.
///
/// # Errors
/// Why the kernel does not let the process listen there.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = open(address, bind)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener.into())
}

fn open<T>(address: SocketAddr, mut bind: impl FnMut(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    let error = match bind(address) {
        Err(error) if address.ip().is_unspecified() && lacks_family(&error) => error,
        done => return done,
    };
    let every = if address.is_ipv6() { Ipv4Addr::UNSPECIFIED.into() } else { IpAddr::from(Ipv6Addr::UNSPECIFIED) };
    let other = SocketAddr::new(every, address.port());
    let opened = bind(other)
        .map_err(|second| io::Error::new(second.kind(), format!("{error}, and instead on {other}: {second}")))?;
    tracing::info!("cannot listen on {address}, because {error}: listening on {other} instead");
    Ok(opened)
}

/// Whether the host has no address of this family, not even `::` or `0.0.0.0`.
fn lacks_family(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
}

fn bind(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A container that is restarted need not wait for its old connections to time out.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // Otherwise a host with net.ipv6.bindv6only=1 would not serve IPv4 at `[::]`.
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Raises the soft limit of file descriptors to the hard one. containerd 2 starts containers with a soft limit of 1,024,
/// for programs that use select(2), and with a much higher hard limit. Returns the limit in force.
pub fn raise_file_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = raised(limit);
    if raised != limit {
        match setrlimit(Resource::Nofile, raised) {
            Ok(()) => tracing::debug!(from = limit.current, to = raised.current, "raised the limit of descriptors"),
            Err(error) => tracing::warn!(%error, limit = limit.current, "cannot raise the limit of file descriptors"),
        }
    }
    getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

/// `None` means no limit.
fn raised(limit: Rlimit) -> Rlimit {
    let possible = limit.maximum.map_or(MAX_FILES, |maximum| maximum.min(MAX_FILES));
    Rlimit { current: limit.current.map(|current| current.max(possible)), ..limit }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is tried on a host that answers with these errors, and what comes of it.
    fn tried(address: &str, errors: &[i32]) -> (Vec<String>, io::Result<()>) {
        let (mut tried, mut errors) = (Vec::new(), errors.iter());
        let result = open(address.parse().unwrap(), |address| {
            tried.push(address.to_string());
            errors.next().map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(*errno)))
        });
        (tried, result)
    }

    const AFNOSUPPORT: i32 = rustix::io::Errno::AFNOSUPPORT.raw_os_error();
    const ADDRNOTAVAIL: i32 = rustix::io::Errno::ADDRNOTAVAIL.raw_os_error();
    const ADDRINUSE: i32 = rustix::io::Errno::ADDRINUSE.raw_os_error();

    #[test]
    fn every_address_of_a_missing_family_means_every_address_of_the_other() {
        for (address, other) in [("[::]:80", "0.0.0.0:80"), ("0.0.0.0:80", "[::]:80")] {
            for missing in [AFNOSUPPORT, ADDRNOTAVAIL] {
                let (tried, result) = tried(address, &[missing]);
                assert_eq!(tried, [address, other]);
                result.unwrap();
            }
        }
    }

    #[test]
    fn only_a_missing_family_leads_to_the_other() {
        for (address, errors) in [
            ("[::]:80", &[][..]),
            ("[::]:80", &[ADDRINUSE]),
            ("[::1]:80", &[AFNOSUPPORT]),
            ("10.0.0.1:80", &[ADDRNOTAVAIL]),
        ] {
            let (tried, result) = tried(address, errors);
            assert_eq!((tried, result.is_ok()), (vec![address.to_owned()], errors.is_empty()));
        }
    }

    #[test]
    fn an_error_names_what_failed_on_both_addresses() {
        let error = tried("[::]:80", &[AFNOSUPPORT, ADDRINUSE]).1.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        let text = error.to_string();
        assert!(text.contains("not supported") && text.contains("0.0.0.0:80: Address already in use"), "{text}");
    }

    #[test]
    fn the_default_address_serves_ipv4_too_and_keeps_the_port() {
        let socket = bind("[::]:0".parse().unwrap()).unwrap();
        assert!(!socket.only_v6().unwrap() && socket.reuse_address().unwrap());
        let taken = socket.local_addr().unwrap().as_socket().unwrap();
        assert_eq!(bind(taken).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn the_limit_of_files_is_raised_and_never_lowered() {
        let limit = |current, maximum| Rlimit { current, maximum };
        for (before, after) in [
            (limit(Some(1024), Some(4096)), Some(4096)),
            (limit(Some(1024), Some(1 << 30)), Some(MAX_FILES)),
            (limit(Some(1024), None), Some(MAX_FILES)),
            (limit(Some(1 << 20), Some(1 << 30)), Some(1 << 20)),
            (limit(None, None), None),
        ] {
            assert_eq!(raised(before), Rlimit { current: after, ..before });
        }
    }
}
