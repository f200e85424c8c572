//! Threads, sockets, clocks, configuration: what carries bytes and jobs between the core, the store and the world.
//!
//! A node is a thread per shard ([`shard`]), a control thread ([`front`], around [`cluster`]) and the store's own
//! threads. They meet over bounded queues with an eventfd each. [`run`] makes a process of it, [`standalone`] a part of
//! a gateway's.

mod accept;
mod admin;
mod cluster;
pub mod config;
pub mod feed;
mod front;
mod limits;
mod link;
mod log;
mod metrics;
mod node;
mod notify;
mod points;
pub mod policies;
mod runtime;
mod shard;
pub mod standalone;
mod stores;

use std::ffi::OsString;
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use config::{ConfigError, Settings};
use front::Front;
use node::{Node, NodeConfig};

pub use node::StartError;

use crate::store::Node as Member;

/// Runs a dispatcher with these arguments (the program's name first) until it is told to stop.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    // A kernel without the switch costs memory, nothing else.
    let _ = millrace_edge::memory::use_small_pages();
    let settings = match config::load(args) {
        Ok(settings) => settings,
        Err(ConfigError::Flags(error)) => {
            // Help and versions are no failures; clap knows.
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
        Err(error) => {
            eprintln!("millrace-dispatcher: the settings are wrong:\n{error}");
            return ExitCode::from(2);
        }
    };
    match serve(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("millrace-dispatcher: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(settings: Settings) -> Result<(), StartError> {
    let stop_deadline = Duration::from_millis(u64::from(settings.stop_deadline_ms));
    let front =
        Front { links: front::bind(settings.listen)?, admin: front::bind(settings.admin)?, stop_deadline };
    let (links, admin) = (bound(&front.links)?, bound(&front.admin)?);
    let config = node_config(&settings, links)?;
    let store = stores::open(&settings)?;
    log::info(format_args!(
        "node {} of cluster {}: {} shards, {} partitions, store {}, lease {} ms; gateways connect to {}, admin on \
         http://{admin}",
        config.member.name,
        config.cluster,
        config.shards,
        config.partitions,
        store.name(),
        config.lease_ttl_ms,
        config.member.address,
    ));
    let node = Node::start(config, Arc::clone(&store), Some(front))?;
    println!("listening links={links} admin={admin}");
    node.wait(None);
    store.close(stop_deadline);
    log::info("stopped");
    Ok(())
}

fn bound(listener: &TcpListener) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(StartError::system("a listener's address"))
}

fn node_config(settings: &Settings, links: SocketAddr) -> Result<NodeConfig, StartError> {
    let by_name = || format!("{}:{}", config::host_name(), links.port());
    let reachable = if links.ip().is_unspecified() { by_name() } else { links.to_string() };
    Ok(NodeConfig {
        member: Member {
            name: settings.name.clone().unwrap_or_else(by_name),
            address: settings.advertise.clone().unwrap_or(reachable),
            incarnation: node::draw_incarnation()?,
        },
        cluster: settings.cluster.clone(),
        partitions: settings.partitions,
        shards: settings.shards.unwrap_or_else(millrace_edge::affinity::cpu_count).min(limits::SHARDS_MAX),
        lease_ttl_ms: settings.lease_ttl_ms,
        lease_renew_ms: settings.lease_renew_ms,
        link_window_bytes: settings.link_window_bytes,
        sibling_queue: settings.sibling_queue,
        limits: policies(settings)?,
    })
}

/// What messages may do: the file, and the flag for groups, which is older and counts when the file says nothing.
fn policies(settings: &Settings) -> Result<crate::core::limits::Limits, StartError> {
    let policies = match &settings.policies {
        Some(file) => {
            policies::Policies::read(file).map_err(|error| StartError::Policies(error.to_string()))?
        }
        None => policies::Policies::default(),
    };
    let limits = policies.limits();
    let group_members_max = policies.group_members_max.unwrap_or(settings.group_members_max);
    Ok(crate::core::limits::Limits { group_members_max, ..limits })
}
