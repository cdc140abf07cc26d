//! Polls a Service, to see whether it is down at any time.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use k8s_openapi::api::core::v1::Service;
use kube::Api;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use crate::{common::eventually, kubectl::Namespace};

/// The longest poll.
const PATIENCE: Duration = Duration::from_secs(2);

/// Polls every 50 ms, whether or not the last one was answered, with a new connection each time.
pub struct Poller {
    task: JoinHandle<()>,
    polled: Arc<Mutex<Polled>>,
    start: Instant,
}

/// What became of the polls.
#[derive(Clone, Default)]
pub struct Polled {
    pub polls: usize,
    /// When each poll that failed ended, and why.
    pub failed: Vec<String>,
    /// For how long polls were begun.
    pub elapsed: Duration,
}

async fn poll(address: &str, page: &str) -> io::Result<()> {
    let answer = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        if text.ends_with(page) { Ok(()) } else { Err(io::Error::other(text)) }
    };
    timeout(PATIENCE, answer).await?
}

impl Poller {
    /// Begins once the Service `web` of the namespace answers. `page` is what it serves.
    pub async fn start(ns: &Namespace, page: &'static str) -> Self {
        let services: Api<Service> = Api::namespaced(ns.client.clone(), &ns.name);
        let address = format!("{}:80", services.get("web").await.unwrap().spec.unwrap().cluster_ip.unwrap());
        // A node needs a moment to send requests to a pod that has just become Ready.
        eventually("the Service answering", 20, async || poll(&address, page).await.ok()).await;
        let (start, polled) = (Instant::now(), Arc::<Mutex<Polled>>::default());
        let shared = polled.clone();
        let task = tokio::spawn(async move {
            let mut ticks = interval(Duration::from_millis(50));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let (address, shared) = (address.clone(), shared.clone());
                tokio::spawn(async move {
                    let answer = poll(&address, page).await;
                    let mut polled = shared.lock().unwrap();
                    polled.polls += 1;
                    if let Err(error) = answer {
                        polled.failed.push(format!("after {:.1?}: {error}", start.elapsed()));
                    }
                });
            }
        });
        Self { task, polled, start }
    }

    pub async fn stop(self) -> Polled {
        let elapsed = self.start.elapsed();
        self.task.abort();
        // Those that are under way.
        sleep(PATIENCE + Duration::from_millis(100)).await;
        let polled = self.polled.lock().unwrap().clone();
        Polled { elapsed, ..polled }
    }
}
