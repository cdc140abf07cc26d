//! The wiring: builds the modules, runs their tasks, and ends the process when a task ends or a signal arrives.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{Client, Config, client::ClientBuilder};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{Notify, watch},
    task::JoinSet,
};

use crate::{
    admission::{
        handler::Handler, http::Endpoint, marking::Marking, path_guard::PathGuard, reported::Reported, writers::Writers,
    },
    api::{
        Context,
        link::Link,
        pods::Pods,
        webhook::{enforcement::Enforcement, healer::Healer, watch::ConfigurationWatch, writer::Writer},
    },
    audit_log::AuditLog,
    certs::{
        self, mounted::Mounted, objects::Objects, replica_status::publisher, resolver::Resolver,
        secret_path::SecretPath,
    },
    cli::{
        args::{Cli, Command, Serve},
        commands,
    },
    clock::Clock,
    config::{
        Configuration,
        reload::{Reload, count_decisions},
        source::Source,
    },
    eviction::{
        self,
        leadership::{LeaderElector, Leadership},
        loop_store::LoopStore,
        mark_successor::SuccessorMarker,
        reconcile::SurgeGate,
        suspension::Suspended,
        uninstall,
    },
    server::{self, Limits, listen, probes, readiness::Readiness},
    telemetry::{Metrics, init_logs},
};

/// Runs the command of the command line.
///
/// # Errors
/// Why the command failed, for `main` to print.
pub fn main(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::CheckConfig { .. }
        | Command::Explain { .. }
        | Command::MatchConditions { .. }
        | Command::DefaultConfig
        | Command::Schema
        | Command::Simulate(_)
        | Command::Docs { .. } => commands::run(cli.command),
        Command::Serve(args) => {
            init_logs(args.log_format, &args.log_level)?;
            // Two workers, because the process mostly waits for the API server, and each worker costs memory.
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            let done = runtime.block_on(serve(*args));
            // A task that hangs in a system call must not keep the process running.
            runtime.shutdown_timeout(Duration::from_secs(1));
            done
        }
    }
}

async fn client(link: &Link) -> anyhow::Result<Client> {
    let mut config =
        Config::infer().await.context("cannot find the API server: not running in a cluster, and no kubeconfig")?;
    // Every caller has its own timeouts and retries, and a 429 to an eviction is an answer.
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(3));
    // Detects a peer that died without closing the connection: watches end after 60 s, and all other requests are
    // shorter.
    config.read_timeout = Some(Duration::from_secs(75));
    config.reset_reader_on_write = true;
    let link = link.clone();
    let record = move |service| {
        let link = link.clone();
        tower::util::MapResult::new(service, move |answer: Result<_, _>| {
            // Any answer shows that the API server can be reached, also the one that it is too busy.
            if answer.is_ok() {
                link.answered();
            } else {
                link.failed();
            }
            answer
        })
    };
    let builder = ClientBuilder::try_from(config).context("cannot create a client for the API server")?;
    Ok(builder.with_layer(&tower::layer::layer_fn(record)).build())
}

type Task = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

fn listen(flag: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    listen::listen(address).with_context(|| format!("cannot listen on {flag} {address}"))
}

/// This replica's pod, for Events about the replica.
fn own_pod(args: &Serve) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(args.namespace.clone()),
        name: Some(args.pod_name.clone()),
        uid: args.pod_uid.clone(),
        ..ObjectReference::default()
    }
}

#[allow(clippy::too_many_lines, reason = "the wiring is one list")]
async fn serve(args: Serve) -> anyhow::Result<()> {
    let lifetimes = args.lifetimes().map_err(anyhow::Error::msg)?;
    let source = Source::new(args.config.clone());
    let text = source.read()?;
    let Configuration { policy, eviction } = text.parse()?;
    let (version, rules, configuration) = (env!("CARGO_PKG_VERSION"), policy.rules.len(), text.name());
    tracing::info!(version, pod = args.pod_name, rules, configuration, "starting");
    let files = listen::raise_file_limit();
    let (metrics, clock) = (Arc::new(Metrics::default()), Clock::system());
    count_decisions(&metrics, &policy, None, clock.now());
    // Both ports first: if one is taken, the process fails before it does anything else.
    let probe_port = listen("--probes", args.probes)?;
    let webhook_port = listen("--listen", args.listen)?;
    let link = Link::default();
    let client = client(&link).await?;
    let pods = Pods::new(client.clone());
    let (stop, stopping) = watch::channel(false);
    let (policy_tx, policy_rx) = watch::channel(Arc::new(policy));
    let (settings_tx, settings_rx) = watch::channel(eviction);
    let (synced, trusted, ready) = (Readiness::default(), Readiness::default(), Readiness::default());
    let reachable = Readiness::default();
    let (leadership, suspended) = (Leadership::default(), Suspended::default());
    let (context, publish_events) =
        Context::new(client.clone(), &args.pod_name, clock, AuditLog::stdout(), metrics, link);

    let mut tasks: JoinSet<&'static str> = JoinSet::new();
    let mut spawn = |name: &'static str, task: Task| {
        tasks.spawn(async move {
            task.await;
            name
        });
    };
    spawn("events", Box::pin(publish_events));
    spawn("probes", Box::pin(probes::serve(probe_port, context.metrics.clone(), ready.clone())));
    spawn("readiness", Box::pin(ready.follow(trusted.clone(), synced.clone(), reachable.clone(), stopping.clone())));

    spawn("reachability", Box::pin(follow_link(context.link.clone(), reachable)));

    let about = own_pod(&args);
    let reload = Reload {
        source,
        text,
        policy: policy_tx,
        eviction: settings_tx,
        about: about.clone(),
        context: context.clone(),
    };
    spawn("configuration", Box::pin(reload.run()));

    let (configuration_watch, configuration) = ConfigurationWatch::new(client.clone(), args.names());
    spawn("webhook configuration", Box::pin(configuration_watch.run()));
    let enforcement = Enforcement {
        client: client.clone(),
        seen: configuration.clone(),
        service: args.service.clone(),
        namespace: args.namespace.clone(),
        about: about.clone(),
        context: context.clone(),
        stopping: stopping.clone(),
    };
    spawn("enforcement", Box::pin(enforcement.run()));
    let healer = Healer {
        client: client.clone(),
        seen: configuration.clone(),
        names: args.names(),
        pod: args.pod_name.clone(),
        context: context.clone(),
        stopping: stopping.clone(),
    };
    spawn("self-healing", Box::pin(healer.run()));

    let resolver = Resolver::default();
    let tls = server::tls_config(Arc::new(resolver.clone()))?;
    let (namespace, name) = (args.namespace.clone(), args.pod_name.clone());
    spawn(
        "replica status",
        Box::pin(publisher::run(pods.clone(), namespace, name, resolver.clone(), context.metrics.clone())),
    );
    let broken = Arc::new(Notify::new());
    let (path, path_key) = SecretPath::new(args.secret_path_lifetime, broken.clone());
    let writer = Writer::new(client.clone(), args.names());
    let objects = Objects::new(client.clone(), args.secret.clone(), writer, configuration.clone());
    let certificates: Task = {
        let (context, ready) = (context.clone(), trusted);
        if let Some(directory) = args.tls_dir.clone() {
            let hold = lifetimes.hold;
            Box::pin(Mounted { directory, objects, hold, context, about, resolver, ready }.run(path))
        } else {
            Box::pin(certs::controller::Controller { objects, lifetimes, context, resolver, ready }.run(path))
        }
    };
    spawn("certificates", certificates);

    let elector = LeaderElector {
        client: client.clone(),
        namespace: args.namespace.clone(),
        name: args.lease.clone(),
        identity: args.pod_name.clone(),
        context: context.clone(),
        suspended: suspended.clone(),
    };
    let mut election = tokio::spawn(elector.run(leadership.clone(), stopping.clone()));
    let loops = LoopStore::default();
    let stored = loops.clone().run(client.clone(), args.namespace.clone(), leadership.clone(), context.clone());
    spawn("eviction loops", Box::pin(stored));
    let successors = SuccessorMarker::new(pods.clone(), context.clone());
    spawn("successors", Box::pin(successors.clone().run(leadership.clone())));
    let surges = SurgeGate::default();
    let uninstallation = uninstall::run(pods.clone(), context.clone(), configuration.clone(), surges.clone());
    spawn("uninstallation", Box::pin(uninstallation));
    let evictions = eviction::controller::Controller {
        client: client.clone(),
        pods: pods.clone(),
        context: context.clone(),
        settings: settings_rx,
        leadership,
        suspended,
        loops,
        surges,
        about: own_pod(&args),
        successors,
        synced,
    };
    spawn("eviction", Box::pin(evictions.run()));

    let metrics = context.metrics.clone();
    let marking = Marking { pods, policy: policy_rx, context: context.clone(), writers: Writers::default() };
    let marking = Arc::new(marking);
    let reported = Reported { client, marking: marking.clone(), context: context.clone() };
    spawn("reports", Box::pin(reported.run()));
    let handler = Handler::new(marking, context);
    let endpoint = Arc::new(Endpoint::new(handler, PathGuard::new(configuration, path_key), metrics.clone()));
    let limits = Limits { drain: args.drain, ..Limits::default() }.within(files);
    let webhook = server::serve(webhook_port, tls, endpoint, limits, metrics, stopping, broken);
    let mut webhook = tokio::spawn(webhook);

    let ended = tokio::select! {
        ended = tasks.join_next() => match ended {
            Some(Ok(name)) => name.to_owned(),
            panicked => format!("{panicked:?}"),
        },
        _ = &mut webhook => "webhook server".to_owned(),
        _ = &mut election => "leader election".to_owned(),
        signalled = terminated() => {
            signalled?;
            tracing::info!("SIGTERM or SIGINT received: not ready any more, still answering until drained");
            stop.send_replace(true);
            // The Lease is released at once, so that the next leader does not wait until it expires.
            let _ = election.await;
            let _ = webhook.await;
            tracing::info!("drained");
            return Ok(());
        }
    };
    anyhow::bail!("task {ended} exited unexpectedly; shutting down")
}

/// How long a replica cannot reach the API server before it is no longer Ready. It hands execs over from the first
/// second, so this is only the backstop. While the API server itself is down, no client can take a replica out of a Service.
const UNREACHABLE: Duration = Duration::from_secs(30);

/// Keeps `reachable` up to date: not ready after [`UNREACHABLE`], and ready at the next answer of the API server.
async fn follow_link(link: Link, reachable: Readiness) {
    loop {
        let broken = link.broken_for();
        match (broken >= UNREACHABLE, reachable.get().is_ok()) {
            (false, false) => reachable.set_ready(),
            (true, true) => {
                let why = format!("the API server cannot be reached for {} s", broken.as_secs());
                tracing::warn!(why, "not ready any more");
                reachable.set_unready(why);
            }
            _ => {}
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn terminated() -> std::io::Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn the_reference_to_our_own_pod_has_its_uid() {
        let command = Cli::try_parse_from(["pristine", "serve", "--pod-name=p", "--pod-uid=u"]).unwrap().command;
        let Command::Serve(args) = command else { panic!() };
        let about = own_pod(&args);
        assert_eq!((about.name.as_deref(), about.uid.as_deref()), (Some("p"), Some("u")));
    }
}
