//! The load generator's process: scenarios, and (hidden) the servers that it starts by running itself again.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;
use millrace_dispatcher::shell::standalone;
use millrace_edge::affinity;
use millrace_gateway::shell::{LocalDispatcher, LocalProbe, StandaloneSettings};
use millrace_loadgen::args::{Cli, Scenario};
use millrace_loadgen::child;
use millrace_loadgen::compare::warden::{self, WardenArgs};
use millrace_loadgen::floor::{self, FloorArgs};
use millrace_loadgen::progress::Progress;
use millrace_loadgen::report::Shown;
use millrace_loadgen::rig::RunError;
use millrace_loadgen::scenarios::{self, Stage};
use millrace_loadgen::verify::inside;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let program = args.next().unwrap_or_default();
    match args.next().as_deref().and_then(|word| word.to_str()) {
        Some("gateway") => {
            server(program, args.collect(), |line| millrace_gateway::shell::run(line, start_dispatcher))
        }
        Some("dispatcher") => server(program, args.collect(), |line| millrace_dispatcher::shell::run(line)),
        Some("floor") => {
            let line = std::iter::once(program).chain(args);
            match floor::serve(FloorArgs::parse_from(line)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => fail(&error),
            }
        }
        Some("warden") => {
            let line = std::iter::once(program).chain(args);
            match warden::serve(WardenArgs::parse_from(line)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => fail(&error),
            }
        }
        _ => scenario(),
    }
}

/// Flags of the hidden subcommands `gateway` and `dispatcher`; the server's own follow.
#[derive(Debug, Parser)]
struct ServerArgs {
    /// CPUs for all its threads; none: where it likes.
    #[arg(long, value_delimiter = ',')]
    cpus: Vec<String>,
    /// A directory to remove at the end, should the parent be gone by then.
    #[arg(long)]
    scratch: PathBuf,
    /// The parent, when it goes on with that directory: it stays as long as this process does.
    #[arg(long)]
    kept_by: Option<u32>,
    #[arg(last = true)]
    server: Vec<OsString>,
}

/// A server that ends with its parent.
fn server(
    program: OsString,
    args: Vec<OsString>,
    run: impl FnOnce(&mut dyn Iterator<Item = OsString>) -> ExitCode,
) -> ExitCode {
    let args = ServerArgs::parse_from(std::iter::once(program.clone()).chain(args));
    let cpus: Vec<usize> = args.cpus.iter().filter_map(|cpu| cpu.parse().ok()).collect();
    if !cpus.is_empty()
        && let Err(error) = affinity::restrict_current_thread(&cpus)
    {
        return fail(&error);
    }
    // A server asks nothing of its stdin.
    let scratch = args.scratch.clone();
    child::end_with_parent(drop, move |is_orphan| {
        // One that is still starting ends at once, before the last lines below, or makes its directory once more: it is
        // removed until the process is gone.
        if is_orphan {
            let _ = std::fs::remove_dir_all(&scratch);
            std::thread::spawn(move || {
                loop {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                    let _ = std::fs::remove_dir_all(&scratch);
                }
            });
        }
    });
    let code = run(&mut std::iter::once(program).chain(args.server));
    // Orphans get another parent.
    if args.kept_by != Some(std::os::unix::process::parent_id()) {
        let _ = std::fs::remove_dir_all(&args.scratch);
    }
    code
}

fn start_dispatcher(settings: &StandaloneSettings) -> Result<LocalDispatcher, Box<dyn std::error::Error>> {
    let mut own = standalone::Settings::new(&settings.data_dir);
    own.cluster = settings.cluster.clone();
    own.partitions = settings.partitions;
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

fn scenario() -> ExitCode {
    let cli = Cli::parse();
    let wants_namespaces = match &cli.scenario {
        Scenario::Verify(args) => !args.no_namespaces,
        Scenario::Failover(_) => true,
        _ => false,
    };
    if wants_namespaces && let Some(code) = inside::enter() {
        return code;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut signals = match Signals::new([SIGINT, SIGTERM]) {
        Ok(signals) => signals,
        Err(error) => return fail(&error),
    };
    let told = Arc::clone(&stop);
    std::thread::spawn(move || {
        for _ in signals.forever() {
            if told.swap(true, Ordering::Relaxed) {
                // The second one ends the process at once; its children see their stdin end, and go too.
                child::remove_scratches();
                std::process::exit(130);
            }
        }
    });
    let stage = Stage { progress: Progress::new(), stop };
    let outcome = scenarios::run(&cli.scenario, stage).and_then(|report| {
        print!("{}", report.table());
        write_files(&cli.scenario, &*report)?;
        Ok(report)
    });
    match outcome {
        Ok(report) if report.faults().is_empty() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => fail(&error),
    }
}

/// Where JSON and the page go.
fn files(scenario: &Scenario) -> (Option<&Path>, Option<&Path>) {
    let (json, html) = match scenario {
        Scenario::Million(args) => (&args.json, &args.html),
        Scenario::Compare(args) => (&args.json, &args.html),
        Scenario::Costs(args) => (&args.json, &args.html),
        Scenario::Verify(args) => (&args.json, &args.html),
        Scenario::Failover(args) => (&args.json, &args.html),
        Scenario::Demo(common)
        | Scenario::Connect(common)
        | Scenario::Idle(common)
        | Scenario::Chat { common, .. }
        | Scenario::Fanout(common)
        | Scenario::Storm(common) => (&common.json, &common.html),
    };
    (json.as_deref(), html.as_deref())
}

fn write_files(scenario: &Scenario, report: &dyn Shown) -> Result<(), RunError> {
    let (json, html) = files(scenario);
    let write = |path: &Path, text: String| {
        std::fs::write(path, text).map_err(|error| RunError::Write(path.to_owned(), error))
    };
    if let Some(path) = json {
        write(path, report.json())?;
    }
    if let Some(path) = html {
        write(path, report.page())?;
    }
    Ok(())
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("millrace-loadgen: {error}");
    ExitCode::FAILURE
}
