//! A way from one replica to the API server that can be cut.

use std::net::SocketAddr;

use crate::replicas::kubeconfig;

/// Forwards to the API server until it is cut.
pub async fn forward(cut: tokio::sync::watch::Receiver<bool>) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let text = std::fs::read_to_string(kubeconfig(1)).unwrap();
    let server = text.split("server: https://").nth(1).unwrap().lines().next().unwrap().trim().to_owned();
    tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let (server, mut cut) = (server.clone(), cut.clone());
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
        format!("{before}server: https://{address}\n{after}")
    })
}
