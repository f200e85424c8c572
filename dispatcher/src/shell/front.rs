//! The outside of a dispatcher process: listeners, admin HTTP and signals, around the cluster's control loop, all on
//! the control thread. A standalone gateway's dispatcher has none of it.

use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::accept;
use super::admin;
use super::cluster::{Ask, Cluster};
use super::log;
use super::node::{Shards, StartError};
use crate::store::Store;

use millrace_protocol::messages::link::Hello;

/// What is bound before anything starts, so that a port in use is an error at once.
#[derive(Debug)]
pub(crate) struct Front {
    pub(crate) links: StdTcpListener,
    pub(crate) admin: StdTcpListener,
    pub(crate) stop_deadline: Duration,
}

/// Binds a listener that tokio can take over.
pub(crate) fn bind(address: SocketAddr) -> Result<StdTcpListener, StartError> {
    StdTcpListener::bind(address)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .map_err(|error| StartError::Listen { address: address.to_string(), error })
}

/// What the control loop runs beside.
pub(crate) struct Surroundings {
    pub(crate) front: Option<Front>,
    pub(crate) shards: Arc<Shards>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) hello: Hello,
    pub(crate) asks: mpsc::Sender<Ask>,
}

/// The body of the control thread.
pub(crate) fn control(
    cluster: Cluster,
    surroundings: Surroundings,
    asks: mpsc::Receiver<Ask>,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let Surroundings { front, shards, store, hello, asks: asker } = surroundings;
        if let Some(front) = front {
            let links = TcpListener::from_std(front.links)?;
            let accepting = tokio::spawn(accept::run(links, Arc::clone(&shards), hello));
            let admin = TcpListener::from_std(front.admin)?;
            tokio::spawn(admin::serve(admin, admin::Admin { asks: asker.clone(), shards, store }));
            let mut terminate = signal(SignalKind::terminate())?;
            let mut interrupt = signal(SignalKind::interrupt())?;
            tokio::spawn(async move {
                tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
                accepting.abort();
                // The control loop is gone only when the process is about to end anyway.
                let _ = asker.send(Ask::Stop(front.stop_deadline)).await;
                tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
                log::warn("a second signal: leaving now");
                std::process::exit(1);
            });
        }
        cluster.run(asks).await
    })
}
