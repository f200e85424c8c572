//! `millrace-gateway`: joins the gateway with a dispatcher for standalone runs. The work is in the libraries.

#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::sync::Arc;

use millrace_dispatcher::shell::policies::Policies;
use millrace_dispatcher::shell::standalone;
use millrace_gateway::shell::{self, LocalDispatcher, LocalProbe, StandaloneSettings};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const _: () =
    assert!(!millrace_protocol::planted::ON, "faults for the simulation have no place in this binary");

fn main() -> ExitCode {
    shell::run(std::env::args_os(), start_dispatcher)
}

fn start_dispatcher(settings: &StandaloneSettings) -> Result<LocalDispatcher, Box<dyn std::error::Error>> {
    let mut own = standalone::Settings::new(&settings.data_dir);
    own.cluster = settings.cluster.clone();
    own.partitions = settings.partitions;
    own.events_max = settings.events_max;
    if let Some(file) = &settings.policies {
        own.limits = Policies::read(file)?.limits();
    }
    let dispatcher = Arc::new(standalone::start(own)?);
    let [connects, troubles, counts, feeds] = std::array::from_fn(|_| Arc::clone(&dispatcher));
    Ok(LocalDispatcher {
        connect: Arc::new(move |gateway, shard, to_gateway| connects.connect(gateway, shard, to_gateway)),
        probe: LocalProbe {
            trouble: Arc::new(move || troubles.trouble()),
            counters: Arc::new(move || counts.store_counters()),
            events: Arc::new(move |of| feeds.events(of).map_err(|error| error.to_string())),
        },
        stop: Box::new(move |timeout| dispatcher.stop(timeout)),
    })
}
