//! A way from one replica to the API servers that can be cut.

use std::net::SocketAddr;

use tokio::sync::watch;

use crate::replicas::kubeconfig;

/// Host and port of an API server.
fn address_of(server: usize) -> String {
    let text = std::fs::read_to_string(kubeconfig(server)).unwrap();
    text.split("server: https://").nth(1).unwrap().lines().next().unwrap().trim().to_owned()
}

/// Forwards to the first API server until it is cut.
pub async fn forward(cut: watch::Receiver<bool>) -> SocketAddr {
    forward_from("127.0.0.1:0", &[1], cut).await
}

/// Forwards what connects to this address. Each connection goes to one of the API servers at random, also while that one
/// is down, as with the Service `kubernetes` until the address of a lost API server is no longer in it.
pub async fn forward_from(address: &str, servers: &[usize], cut: watch::Receiver<bool>) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let servers: Vec<String> = servers.iter().map(|server| address_of(*server)).collect();
    tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let (server, mut cut) = (servers[rand::random_range(..servers.len())].clone(), cut.clone());
            tokio::spawn(async move {
                if *cut.borrow_and_update() {
                    return;
                }
                let Ok(mut far) = tokio::net::TcpStream::connect(server).await else { return };
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    Ok(_) = cut.wait_for(|cut| *cut) => {}
                }
            });
        }
    });
    address
}

/// A copy of the first API server's kubeconfig with this change.
pub fn with_kubeconfig(folder: &tempfile::TempDir, change: impl Fn(&str) -> String) -> String {
    let file = folder.path().join("kubeconfig");
    std::fs::write(&file, change(&std::fs::read_to_string(kubeconfig(1)).unwrap())).unwrap();
    file.to_str().unwrap().to_owned()
}

/// A kubeconfig that goes through this address.
pub fn kubeconfig_through(address: SocketAddr, folder: &tempfile::TempDir) -> String {
    with_kubeconfig(folder, |text| {
        let (before, after) = text.split_once("server: https://").unwrap();
        let (_, after) = after.split_once('\n').unwrap();
        // The name is in the certificate, whatever the address.
        format!("{before}server: https://{address}\n    tls-server-name: localhost\n{after}")
    })
}
