//! Whatever breaks, in whatever order: everything is shown once, in order, and nothing is missing but what the log says.

use bytes::Bytes;

use super::server::Faults;
use super::world::World;

const CONVERSATIONS: [&str; 5] = ["d:alice:bob", "d:alice:carol", "g:tea", "g:team", "g:work"];

fn run(seed: u64, steps: u32, traced: bool) -> Vec<String> {
    let mut world = World::new(seed, &CONVERSATIONS);
    world.server.faults = Faults { busy: 50, skip_live: 40, repeat_live: 40 };
    world.heads_late = true;
    world.trace = traced.then(Vec::new);
    let mut written = 0;
    for _ in 0..steps {
        let conversation = CONVERSATIONS[(world.random.next() % 5) as usize];
        let count = world.random.next() % 20;
        match world.random.next() % 1_000 {
            0..250 => drop(world.deliver_request()),
            250..600 => drop(world.deliver_frame()),
            600..750 => drop(world.take()),
            750..850 => {
                let ms = world.random.next() % 400;
                world.tick(ms);
            }
            850..920 => {
                // Also by this user's other device.
                let sender = ["bob", "alice"][(count % 2) as usize];
                written += 1;
                world.server.append(conversation, sender, Bytes::from(format!("message {written}")));
            }
            920..950 => {
                let deadline_ms = 1 + world.random.next() % 60_000;
                world.send(conversation, deadline_ms);
            }
            950..958 => {
                for _ in 0..count * 3 {
                    written += 1;
                    world.server.append(conversation, "bob", Bytes::from(format!("message {written}")));
                }
            }
            958..966 => world.lose(),
            966..970 => world.restart(),
            970..975 => world.server.takeover(conversation, 0),
            975..978 => world.server.takeover(conversation, count % 5),
            978..981 => world.server.trim(conversation, count),
            981..983 => world.server.turn(conversation),
            983..987 => world.server.gap(),
            987..992 => world.server.head(conversation),
            _ => world.server.resync(),
        }
    }
    world.server.faults = Faults::default();
    for _ in 0..10 {
        world.settle(30_000);
        // Its patience with what is not acknowledged.
        world.server.resync();
    }
    world.check_complete();
    world.check_own();
    for (key, outcome) in &world.settled {
        let payload = Bytes::from(format!("own {key}"));
        let stored = world.server.logs.values().flat_map(|log| &log.entries);
        let count = stored.filter(|entry| entry.payload == payload).count();
        assert!(count <= 1, "seed {seed}: message {key} is stored {count} times, {outcome:?}");
    }
    assert!(world.waiting_max <= world.settings.events_max + 20, "seed {seed}: {}", world.waiting_max);
    world.trace.unwrap_or_default()
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 1..=5 {
        let (first, again) = (run(seed, 2_000, true), run(seed, 2_000, true));
        assert!(first.len() > 1_000);
        assert!(first == again, "seed {seed}");
    }
}

#[test]
fn whatever_breaks_everything_is_shown_once_and_in_order() {
    let first: u64 = std::env::var("MILLRACE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let count: u64 = std::env::var("MILLRACE_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(200);
    for seed in first..first + count {
        if let Err(panic) = std::panic::catch_unwind(|| run(seed, 3_000, false)) {
            eprintln!("seed {seed}: MILLRACE_SEED={seed} MILLRACE_SEEDS=1 runs it alone");
            std::panic::resume_unwind(panic);
        }
    }
}
