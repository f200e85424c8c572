//! Admin HTTP, on a port of its own: `/metrics`, `/healthz`, `/readyz`, `/debug/sessions/{user}`; of a standalone process
//! also `/events`.
//!
//! Runs on the control thread, and asks the shards by message: an answer is a sign of life, and no table of sessions
//! is kept for it. Whoever reaches this port may read user names and devices: keep it on loopback or a private net.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use millrace_edge::clock;
use millrace_edge::mailbox::Sender;
use millrace_protocol::conversation::is_name;
use millrace_protocol::ids::Partition;
use serde_json::json;
use tokio::sync::oneshot;

use super::metrics::{self, Process};
use super::run::LocalProbe;
use super::talk::{Report, ToShard};

/// How long shards have for an answer: a turn is bounded to milliseconds, so one that needs a second hangs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// What admin requests look at.
pub struct Admin {
    /// The shards' inboxes, by index.
    pub shards: Vec<Sender<ToShard>>,
    /// CLOCK_BOOTTIME of the start.
    pub started_us: u64,
    /// A drain is under way.
    pub draining: AtomicBool,
    /// The dispatcher in this process.
    pub local: Option<LocalProbe>,
    /// Counters of the control thread.
    pub counts: ControlCounts,
}

/// What the control thread counts.
#[derive(Debug, Default)]
pub struct ControlCounts {
    /// Keys that tokens are checked against.
    pub keys: AtomicU64,
    /// Key files read again.
    pub key_reloads: AtomicU64,
    /// Key files that could not be used.
    pub key_reload_failures: AtomicU64,
    /// Leases lost and begun anew.
    pub incarnation_changes: AtomicU64,
}

impl Admin {
    /// Asks all shards at once; whoever does not answer in time is left out.
    async fn ask<T>(&self, question: impl Fn(oneshot::Sender<T>) -> ToShard) -> Vec<T> {
        let asked: Vec<_> = self
            .shards
            .iter()
            .filter_map(|shard| {
                let (reply, answer) = oneshot::channel();
                // A full inbox is a shard that hangs.
                shard.send(question(reply)).ok().map(|()| answer)
            })
            .collect();
        let deadline = tokio::time::Instant::now() + ANSWER_TIMEOUT;
        let mut answers = Vec::with_capacity(asked.len());
        for answer in asked {
            if let Ok(Ok(answer)) = tokio::time::timeout_at(deadline, answer).await {
                answers.push(answer);
            }
        }
        answers
    }

    async fn reports(&self) -> Vec<Report> {
        self.ask(ToShard::Report).await.into_iter().map(|report| *report).collect()
    }

    fn process(&self) -> Process {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Process {
            shards: self.shards.len() as u8,
            draining: self.draining.load(Ordering::Relaxed),
            uptime_us: clock::boot_us().saturating_sub(self.started_us),
            keys: count(&self.counts.keys),
            key_reloads: count(&self.counts.key_reloads),
            key_reload_failures: count(&self.counts.key_reload_failures),
            incarnation_changes: count(&self.counts.incarnation_changes),
            store: self.local.as_ref().map(|local| (local.counters)()).unwrap_or_default(),
        }
    }
}

/// The routes.
pub fn router(admin: Arc<Admin>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/debug/sessions/{user}", get(sessions))
        .route("/events", get(event_heads))
        .route("/events/{partition}/{after}", get(events))
        .with_state(admin)
}

type Shared = State<Arc<Admin>>;

async fn metrics(State(admin): Shared) -> impl IntoResponse {
    let page = metrics::page(&admin.process(), &admin.reports().await);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page)
}

/// Alive: every shard turns.
async fn healthz(State(admin): Shared) -> impl IntoResponse {
    let (answered, shards) = (admin.reports().await.len(), admin.shards.len());
    if answered == shards {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        let hang = shards - answered;
        (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{hang} of {shards} shards did not answer in {ANSWER_TIMEOUT:?}\n"),
        )
    }
}

/// Ready for clients: not draining, and every shard has a lease and knows an owner for every partition.
async fn readyz(State(admin): Shared) -> impl IntoResponse {
    let mut reasons = Vec::new();
    if admin.draining.load(Ordering::Relaxed) {
        reasons.push("draining".to_owned());
    }
    if let Some(trouble) = admin.local.as_ref().and_then(|local| (local.trouble)()) {
        reasons.push(trouble);
    }
    let reports = admin.reports().await;
    if reports.len() < admin.shards.len() {
        reasons.push(format!("{} shards do not answer", admin.shards.len() - reports.len()));
    }
    for report in reports.iter().filter(|report| !report.ready) {
        let why = if report.core.links_up == 0 {
            "no dispatcher is reachable".to_owned()
        } else if !report.lease_live {
            "the gateway has no lease".to_owned()
        } else {
            format!("{} partitions have an owner", report.core.partitions_owned)
        };
        reasons.push(format!("shard {}: {why}", report.shard));
    }
    if reasons.is_empty() {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", reasons.join("; ")))
    }
}

async fn sessions(State(admin): Shared, Path(user): Path<String>) -> impl IntoResponse {
    let json = [(header::CONTENT_TYPE, "application/json")];
    if !is_name(&user) {
        let error = json!({ "error": "not a user name: 1-64 of A-Z a-z 0-9 . _ - @ +" });
        return (StatusCode::BAD_REQUEST, json, format!("{error}\n"));
    }
    let answers = admin.ask(|reply| ToShard::Sessions(user.clone(), reply)).await;
    let silent = admin.shards.len() - answers.len();
    let sessions: Vec<_> = answers.into_iter().flatten().collect();
    let body = json!({ "user": user, "sessions": sessions, "shards_silent": silent });
    (StatusCode::OK, json, format!("{body}\n"))
}

async fn event_heads(State(admin): Shared) -> impl IntoResponse {
    read_events(&admin, None).await
}

async fn events(State(admin): Shared, Path((partition, after)): Path<(Partition, u64)>) -> impl IntoResponse {
    read_events(&admin, Some((partition, after))).await
}

/// Events of the dispatcher in this process. In a fleet they are in Redis, where consumers read them.
async fn read_events(admin: &Admin, of: Option<(Partition, u64)>) -> impl IntoResponse + use<> {
    let json = [(header::CONTENT_TYPE, "application/json")];
    let error = |text: &str| format!("{}\n", json!({ "error": text }));
    let Some(feed) = admin.local.as_ref().map(|local| Arc::clone(&local.events)) else {
        return (StatusCode::NOT_FOUND, json, error("events are read from the dispatchers' store"));
    };
    match tokio::task::spawn_blocking(move || feed(of)).await {
        Ok(Ok(body)) => (StatusCode::OK, json, format!("{body}\n")),
        Ok(Err(why)) => (StatusCode::SERVICE_UNAVAILABLE, json, error(&why)),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, json, error("the reading thread ended")),
    }
}
