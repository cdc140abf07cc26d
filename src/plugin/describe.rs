//! `kubectl pristine describe`: everything recorded about a marked pod, what blocks its eviction, and which volumes
//! outlive it.

use clap::Args;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Volume};

use super::{
    connection::Connection,
    evict::{Answer, evict},
    format::{duration, table},
    output::{Failure, each},
    row::Row,
};
use crate::{
    clock::Clock,
    mark::{Interaction, Mark, owner::controller},
};

/// `describe`
#[derive(Args, Debug)]
pub struct Arguments {
    /// Names of marked pods.
    #[arg(required = true)]
    pods: Vec<String>,
}

/// Prints a description of each pod.
///
/// # Errors
/// The answer of the API server.
pub async fn run(connection: &Connection, clock: &Clock, arguments: &Arguments) -> Result<(), Failure> {
    let mut is_first = true;
    each(&arguments.pods, async |name| {
        let pod = connection.pod(name).await?;
        let row = Row::of(&pod, clock.now()).ok_or_else(|| connection.unmarked(name))?;
        // Tried before the deadline as well: what would block the eviction then also blocks it now.
        let eviction = match row.state {
            "Terminating" | "Finished" | "NotEvictable" | "NotAMark" | "Recorded" => None,
            _ => Some(evict(connection, &row.name, &row.uid, true).await),
        };
        let text = text(&pod, &row, eviction, clock.now());
        Ok(if std::mem::take(&mut is_first) { text } else { format!("\n\n{text}") })
    })
    .await
}

fn text(pod: &Pod, row: &Row, eviction: Option<Result<Answer, Failure>>, now: Timestamp) -> String {
    let owner = controller(pod).map_or_else(|| "<none>".to_owned(), |owner| format!("{}/{}", owner.kind, owner.name));
    let at = |at: Timestamp| format!("{at:.0} ({} ago)", duration(now.duration_since(at)));
    let mut lines = vec![
        ("Name:", row.name.clone()),
        ("Namespace:", row.namespace.clone()),
        ("UID:", row.uid.clone()),
        ("Node:", if row.node.is_empty() { "<none>".to_owned() } else { row.node.clone() }),
        ("Controlled By:", owner),
        ("State:", row.state.to_owned()),
    ];
    if !row.reason.is_empty() {
        lines.push(("Reason:", row.reason.clone()));
    }
    if let Some(mark) = &row.mark {
        lines.push(("Interactions:", mark.total.to_string()));
        lines.push(("First:", at(mark.first.at)));
        lines.push(("Last:", at(mark.last().at)));
    }
    lines.push((
        "Evict At:",
        match row.deadline {
            None => "<none>".to_owned(),
            Some(deadline) if deadline <= now => at(deadline),
            Some(deadline) => format!("{deadline:.0} (in {})", duration(deadline.duration_since(now))),
        },
    ));
    match eviction {
        None => {}
        Some(Ok(Answer::Accepted)) => lines.push(("Eviction:", "nothing blocks it (dry run)".to_owned())),
        Some(Ok(Answer::Refused(why))) => lines.push(("Eviction:", format!("would be refused now (dry run): {why}"))),
        Some(Err(failure)) => lines.push(("Eviction:", format!("unknown (dry run failed): {}", failure.message))),
    }
    let outliving = outliving(pod);
    let kept = if outliving.is_empty() { "<none>" } else { "the eviction does not undo writes to these volumes" };
    lines.push(("Outlives Pod:", kept.to_owned()));
    let lines: Vec<[String; 2]> = lines.into_iter().map(|(name, value)| [name.to_owned(), value]).collect();
    let interactions = row.mark.as_ref().map(interactions).unwrap_or_default();
    format!("{}{}{interactions}", table(&[], &lines), indent(&table(&[], &outliving)))
}

fn interactions(mark: &Mark) -> String {
    let line = |act: &Interaction| {
        let streams = match (act.stdin, act.tty) {
            (true, true) => "stdin,tty",
            (true, false) => "stdin",
            (false, true) => "tty",
            (false, false) => "<none>",
        };
        let words: Vec<String> = act.command.iter().map(|word| quote(word)).collect();
        let or_none = |text: &str| if text.is_empty() { "<none>".to_owned() } else { text.to_owned() };
        [
            format!("{:.0}", act.at),
            act.operation.as_str().to_owned(),
            or_none(&act.container),
            streams.to_owned(),
            or_none(&act.rule),
            act.user.name.clone(),
            or_none(&words.join(" ")),
        ]
    };
    let omitted = mark.total.saturating_sub(1 + u64::try_from(mark.recent.len()).unwrap_or(0));
    let mut lines = vec![line(&mark.first)];
    if omitted > 0 {
        lines.push([
            format!("({omitted} more)"),
            "…".into(),
            "…".into(),
            "…".into(),
            "…".into(),
            "…".into(),
            "…".into(),
        ]);
    }
    lines.extend(mark.recent.iter().map(line));
    let header = ["TIME", "OPERATION", "CONTAINER", "STREAMS", "RULE", "USER", "COMMAND"];
    format!("Interactions:\n{}", indent(&table(&header, &lines)))
}

/// Quotes the word if a shell would need that.
fn quote(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) { word.to_owned() } else { format!("{word:?}") }
}

fn indent(text: &str) -> String {
    text.lines().flat_map(|line| ["  ", line, "\n"]).collect()
}

/// Volumes whose content outlives the pod: an eviction does not undo writes to them.
fn outliving(pod: &Pod) -> Vec<[String; 2]> {
    let kind = |volume: &Volume| {
        if let Some(claim) = &volume.persistent_volume_claim {
            return Some(format!("PersistentVolumeClaim/{}", claim.claim_name));
        }
        if let Some(path) = &volume.host_path {
            return Some(format!("hostPath {}", path.path));
        }
        if let Some(nfs) = &volume.nfs {
            return Some(format!("nfs {}:{}", nfs.server, nfs.path));
        }
        // The other volume types with data of their own are out of use, and are listed all the same.
        let value = serde_json::to_value(volume).unwrap_or_default();
        let rare = [
            "iscsi",
            "rbd",
            "cephfs",
            "glusterfs",
            "fc",
            "awsElasticBlockStore",
            "azureDisk",
            "azureFile",
            "gcePersistentDisk",
            "vsphereVolume",
            "cinder",
            "portworxVolume",
            "quobyte",
            "storageos",
            "scaleIO",
            "flexVolume",
            "photonPersistentDisk",
        ];
        rare.iter().find(|name| value.get(**name).is_some()).map(|name| (*name).to_owned())
    };
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.into_iter().filter_map(|volume| Some([volume.name.clone(), kind(volume)?])).collect()
}
