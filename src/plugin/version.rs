//! `kubectl pristine version`: of the plugin, of each replica, of Kubernetes.

use super::{
    certs::Trust,
    connection::Connection,
    output::{Failure, emit},
};

/// Prints them.
///
/// # Errors
/// What the API server says; the plugin's own version is printed all the same.
pub async fn run(connection: &Connection) -> Result<(), Failure> {
    let own = env!("CARGO_PKG_VERSION");
    emit(&format!("Plugin:       v{own}\n"))?;
    let kubernetes = connection.call("get the version of Kubernetes", connection.client.apiserver_version()).await?;
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
