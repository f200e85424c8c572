//! Admin HTTP: metrics, health, and what an operator asks when something is odd. Read-only, for a trusted network.
//!
//! Everything shown is asked of its owner (a shard, the control loop, the store) with a bounded wait; what does not
//! answer is said to be missing, not waited for.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use millrace_edge::clock;
use millrace_protocol::ids::Partition;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::cluster::{Ask, Status};
use super::feed;
use super::limits::ADMIN_WAIT_MS;
use super::log;
use super::metrics;
use super::node::Shards;
use super::shard::{Command, Report};
use crate::store::{EventId, Store, StoreError};

const WAIT: Duration = Duration::from_millis(ADMIN_WAIT_MS);

/// Whom to ask.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) asks: mpsc::Sender<Ask>,
    pub(crate) shards: Arc<Shards>,
    pub(crate) store: Arc<dyn Store>,
}

impl Admin {
    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Option<T> {
        let (to, told) = oneshot::channel();
        let asked = async {
            self.asks.send(ask(to)).await.ok()?;
            told.await.ok()
        };
        timeout(WAIT, asked).await.ok().flatten()
    }

    async fn status(&self) -> Option<Status> {
        self.ask(Ask::Status).await
    }

    /// One report per shard, `None` from those that do not turn.
    async fn reports(&self) -> Vec<Option<Report>> {
        let mut answers = Vec::with_capacity(self.shards.count());
        for commands in self.shards.all() {
            let (to, answer) = oneshot::channel();
            answers.push(commands.send(Command::Stats(to)).is_ok().then_some(answer));
        }
        let deadline = tokio::time::Instant::now() + WAIT;
        let mut reports = Vec::with_capacity(answers.len());
        for answer in answers {
            reports.push(match answer {
                None => None,
                Some(answer) => tokio::time::timeout_at(deadline, answer).await.ok().and_then(Result::ok),
            });
        }
        reports
    }
}

/// Serves until its runtime ends.
pub(crate) async fn serve(listener: TcpListener, admin: Admin) {
    let router = Router::new()
        .route("/metrics", get(show_metrics))
        .route("/healthz", get(health))
        .route("/readyz", get(readiness))
        .route("/debug/partitions", get(partitions))
        .route("/debug/routes/{user}", get(routes))
        .route("/events", get(event_heads))
        .route("/events/{partition}/{after}", get(events))
        .with_state(admin);
    if let Err(error) = axum::serve(listener, router).await {
        log::error(format_args!("admin HTTP ended: {error}"));
    }
}

async fn show_metrics(State(admin): State<Admin>) -> impl IntoResponse {
    let (status, reports) = (admin.status().await, admin.reports().await);
    let text = metrics::render(status.as_ref(), &reports, &admin.store.counters(), clock::boot_us());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}

/// Whether the process does its work at all: restart it if not.
async fn health(State(admin): State<Admin>) -> (StatusCode, String) {
    let Some(_) = admin.status().await else {
        return (StatusCode::SERVICE_UNAVAILABLE, "the control loop does not answer\n".into());
    };
    let reports = admin.reports().await;
    match reports.iter().position(Option::is_none) {
        Some(shard) => (StatusCode::SERVICE_UNAVAILABLE, format!("shard {shard} does not turn\n")),
        None => (StatusCode::OK, "ok\n".into()),
    }
}

/// Whether to rely on this node now.
async fn readiness(State(admin): State<Admin>) -> (StatusCode, String) {
    let trouble = match admin.status().await {
        None => Some("the control loop does not answer".to_string()),
        Some(status) => {
            status.trouble(clock::boot_us()).map(str::to_string).or_else(|| admin.store.trouble())
        }
    };
    match trouble {
        Some(trouble) => (StatusCode::SERVICE_UNAVAILABLE, format!("{trouble}\n")),
        None => (StatusCode::OK, "ready\n".into()),
    }
}

type Answer = (StatusCode, [(header::HeaderName, &'static str); 1], String);

fn answer(status: StatusCode, body: &Value) -> Answer {
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{body:#}\n"))
}

fn unavailable(what: &str) -> Answer {
    answer(StatusCode::SERVICE_UNAVAILABLE, &json!({ "error": what }))
}

/// Who is alive and who owns what, as read with the latest renewal; what this node serves is exact.
async fn partitions(State(admin): State<Admin>) -> Answer {
    let Some(status) = admin.status().await else { return unavailable("the control loop does not answer") };
    let nodes: Vec<Value> = status
        .view
        .nodes
        .iter()
        .map(|node| {
            let partitions = status.view.owners.iter().filter(|(owner, _)| *owner == node.name).count();
            json!({ "name": node.name, "address": node.address, "partitions": partitions })
        })
        .collect();
    let owners: Vec<Value> = status
        .view
        .owners
        .iter()
        .enumerate()
        .map(|(partition, (owner, epoch))| json!({ "partition": partition, "owner": owner, "epoch": epoch }))
        .collect();
    let gateways: Vec<Value> = status
        .view
        .gateways
        .iter()
        // A string: 64 bits do not fit the numbers of most readers of JSON.
        .map(|gateway| json!({ "gateway": gateway.gateway, "incarnation": gateway.incarnation.to_string() }))
        .collect();
    let now_us = clock::boot_us();
    let body = json!({
        "served_here": status.owned.len(),
        "moving": status.moving,
        "lease_ms_left": status.lease_until_us.saturating_sub(now_us) / 1_000,
        "nodes": nodes,
        "gateways": gateways,
        "partitions": owners,
    });
    answer(StatusCode::OK, &body)
}

/// The routes of a user as stored, and whether the gateway of each holds its lease.
async fn routes(State(admin): State<Admin>, Path(user): Path<String>) -> Answer {
    if !millrace_protocol::conversation::is_name(&user) {
        return answer(StatusCode::BAD_REQUEST, &json!({ "error": "not a user's name" }));
    }
    let Some(routes) = admin.ask(|to| Ask::Routes(user.clone(), to)).await else {
        return unavailable("the store does not answer");
    };
    let routes: Vec<Value> = routes
        .iter()
        .map(|(route, live)| {
            json!({
                "device": route.device,
                "platform": route.platform,
                "session": route.session.to_string(),
                "gateway": route.session.gateway(),
                "shard": route.session.shard(),
                "login_number": route.login_number,
                "incarnation": route.incarnation.to_string(),
                "live": live,
            })
        })
        .collect();
    answer(StatusCode::OK, &json!({ "user": user, "routes": routes }))
}

/// The newest event of each partition: for the embedded store, as Redis has streams for consumers.
async fn event_heads(State(admin): State<Admin>) -> Answer {
    read_events(move || feed::heads(&*admin.store)).await
}

async fn events(State(admin): State<Admin>, Path((partition, after)): Path<(Partition, EventId)>) -> Answer {
    read_events(move || feed::page(&*admin.store, partition, after)).await
}

async fn read_events(read: impl FnOnce() -> Result<Value, StoreError> + Send + 'static) -> Answer {
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok(events)) => answer(StatusCode::OK, &events),
        Ok(Err(error)) => unavailable(&error.to_string()),
        Err(_) => unavailable("the reading thread ended"),
    }
}

/// A gauge or counter, with its line of help.
pub(crate) fn metric(out: &mut String, name: &str, kind: &str, help: &str, values: &[(String, u64)]) {
    // Writing to a String cannot fail.
    let _ =
        writeln!(out, "# HELP millrace_dispatcher_{name} {help}\n# TYPE millrace_dispatcher_{name} {kind}");
    for (labels, value) in values {
        let _ = writeln!(out, "millrace_dispatcher_{name}{labels} {value}");
    }
}
