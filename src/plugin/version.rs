//! `kubectl pristine version`: the versions of the plugin, the replicas and Kubernetes.

use super::{
    certs::Trust,
    connection::Connection,
    output::{Failure, emit},
};

/// Prints the versions.
///
/// # Errors
/// The answer of the API server; the plugin's own version is printed before.
pub async fn run(connection: &Connection) -> Result<(), Failure> {
    let own = env!("CARGO_PKG_VERSION");
    emit(&format!("Plugin:       v{own}\n"))?;
    let kubernetes = connection.call("get the Kubernetes version", connection.client.apiserver_version()).await?;
    let trust = Trust::read(connection).await?;
    let mut versions: Vec<&str> = trust.replicas.iter().filter_map(|replica| replica.version.as_deref()).collect();
    versions.sort_unstable();
    versions.dedup();
    let known = if versions.is_empty() {
        "<unknown>".to_owned()
    } else {
        versions.iter().map(|version| format!("v{version}")).collect::<Vec<_>>().join(", ")
    };
    emit(&format!("Pristine:     {known}\nKubernetes:   {}\n", kubernetes.git_version))
}
