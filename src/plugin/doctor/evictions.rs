//! What `kubectl pristine doctor` says about evictions: who evicts, whether evictions are suspended, and which workloads are
//! evicted again and again.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{coordination::v1::Lease, core::v1::ConfigMap};
use kube::Api;

use super::{
    Finding::{self, Broken, Fine, Warning},
    REAPPLY, unknown,
};
use crate::{
    eviction::{
        loops::{self, Loops},
        switch::{CONFIG_MAP, Suspension},
    },
    plugin::{connection::Connection, format::duration},
};

/// One finding about the leader, and one for each thing that an administrator should know.
pub(super) async fn evictions(connection: &Connection, now: Timestamp) -> Vec<Finding> {
    let mut all = vec![leader(connection, now).await];
    all.extend(suspension(connection, now).await);
    all.extend(eviction_loops(connection, now).await);
    all
}

/// One finding for each loop.
async fn eviction_loops(connection: &Connection, now: Timestamp) -> Vec<Finding> {
    let api: Api<ConfigMap> = Api::namespaced(connection.client.clone(), &connection.pristine);
    match connection.call("get configmaps", api.get_opt(loops::CONFIG_MAP)).await {
        Ok(Some(found)) => noticed(&Loops::parse(&found.data.unwrap_or_default(), now), now),
        Ok(None) => {
            let text = format!("the ConfigMap {} does not exist: eviction loops end later", loops::CONFIG_MAP);
            vec![Warning(text, REAPPLY.to_owned())]
        }
        Err(failure) => vec![unknown(&failure)],
    }
}

fn noticed(loops: &Loops, now: Timestamp) -> Vec<Finding> {
    let warning = |row: &loops::Row| {
        Warning(format!("in namespace {}: {}", row.workload.namespace, row.describe()), row.advice())
    };
    loops.active(now).map(warning).collect()
}

/// Whether evictions are suspended; none if they are not.
async fn suspension(connection: &Connection, now: Timestamp) -> Option<Finding> {
    let api: Api<ConfigMap> = Api::namespaced(connection.client.clone(), &connection.pristine);
    let found = match connection.call("get configmaps", api.get_opt(CONFIG_MAP)).await {
        Ok(Some(found)) => found.data.unwrap_or_default(),
        Ok(None) => {
            let text = format!("no pod is evicted: the ConfigMap {CONFIG_MAP} does not exist");
            return Some(Broken(text, REAPPLY.to_owned()));
        }
        Err(failure) => return Some(unknown(&failure)),
    };
    let suspension = Suspension::parse(&found).filter(|suspension| !suspension.is_over(now))?;
    let text = format!("no pod is evicted: suspended {}", suspension.describe());
    Some(Warning(text, "kubectl pristine resume".to_owned()))
}

async fn leader(connection: &Connection, now: Timestamp) -> Finding {
    let api: Api<Lease> = Api::namespaced(connection.client.clone(), &connection.pristine);
    let found = match connection.call("get leases", api.get_opt("pristine")).await {
        Ok(found) => found.and_then(|lease| lease.spec).unwrap_or_default(),
        Err(failure) => return unknown(&failure),
    };
    let logs = format!("kubectl -n {} logs deployment/pristine", connection.pristine);
    match (found.holder_identity.filter(|holder| !holder.is_empty()), found.renew_time) {
        (Some(holder), Some(renewed)) => {
            let age = now.duration_since(renewed.0);
            if age > SignedDuration::from_secs(30) {
                return Broken(
                    format!("{holder} has not renewed its Lease for {}: no pod is evicted", duration(age)),
                    logs,
                );
            }
            Fine(format!("{holder} is the leader and evicts due pods"))
        }
        _ => Broken("no replica holds the Lease: no pod is evicted".to_owned(), logs),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_loop_is_a_warning_with_what_to_do_until_it_ends() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let row = |name: &str, machine: bool| {
            json!({"namespace": "data", "kind": "StatefulSet", "name": name, "user": "system:serviceaccount:data:operator",
                "machine": machine, "rounds": 3, "last": "2026-01-01T12:00:00Z", "until": "2026-01-02T12:00:00Z"})
        };
        let rows = json!([row("db", true), row("web", false)]).to_string();
        let loops = Loops::parse(&[(loops::KEY.to_owned(), rows)].into(), now);
        let [Warning(first, rule), Warning(second, _)] = &noticed(&loops, now)[..] else { panic!() };
        assert!(first.starts_with("in namespace data: eviction loop: StatefulSet db was evicted 3 times"), "{first}");
        assert!(rule.contains("podToken: true, tty: false}, action: Record}"), "{rule}");
        assert!(second.ends_with("the pods are evicted as before"), "{second}");
        assert!(noticed(&loops, "2026-01-02T12:00:00Z".parse().unwrap()).is_empty());
    }
}
