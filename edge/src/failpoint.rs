//! Named points of a process at which tests make it crash or stall, and counts of how often each was passed.
//!
//! Only with the feature `failpoints`; without it [`hit`] is nothing at all. `MILLRACE_FAILPOINTS` says what is to happen:
//! `before_append=crash@1/500,after_append=stall:50@1/100` crashes at one in five hundred appends, drawn at random, and
//! stalls 50 ms at one in a hundred. Counts are written to the file that `MILLRACE_FAILPOINTS_COUNTS` names, with the
//! process id behind it, twice a second and before a crash: kill -9 loses half a second of them. What is unreadable is
//! said on stderr, and ends the process: a test that tests nothing must not pass.

/// A point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Point {
    /// Dispatcher: messages go to the store, or are in it.
    BeforeAppend,
    AfterAppend,
    /// Dispatcher: a session's route goes to the store, or is in it.
    BeforeRouteWrite,
    AfterRouteWrite,
    /// Dispatcher: what devices acknowledged goes to the store, in a batch of its partition, or is in it.
    BeforeCursorWrite,
    AfterCursorWrite,
    /// Embedded store: a round is written and not synced, or synced and not answered.
    BeforeFsync,
    AfterFsync,
    /// Dispatcher: answers and deliveries go to a gateway, or are with the kernel.
    BeforeLinkSend,
    AfterLinkSend,
    /// Dispatcher: the answer that a message is durable goes to its sender's gateway, or is with the kernel. The store has
    /// the message, and the sender does not know.
    BeforeAck,
    AfterAck,
    /// Gateway: what clients asked goes to a dispatcher.
    BeforeForward,
    AfterForward,
    /// Gateway: what devices acknowledged was taken in, gathered, and goes to a dispatcher, or is with the kernel.
    BeforeClientAck,
    AfterClientAck,
    /// Gateway: answers and deliveries came from a dispatcher.
    BeforeLinkTake,
    AfterLinkTake,
    /// Gateway: bytes go to a client, or are with the kernel.
    BeforeDelivery,
    AfterDelivery,
    /// Gateway: bytes came from a client: requests, and acknowledgements.
    ClientBytes,
}

impl Point {
    /// All of them.
    pub const ALL: [Point; 21] = [
        Point::BeforeAppend,
        Point::AfterAppend,
        Point::BeforeRouteWrite,
        Point::AfterRouteWrite,
        Point::BeforeCursorWrite,
        Point::AfterCursorWrite,
        Point::BeforeFsync,
        Point::AfterFsync,
        Point::BeforeLinkSend,
        Point::AfterLinkSend,
        Point::BeforeAck,
        Point::AfterAck,
        Point::BeforeForward,
        Point::AfterForward,
        Point::BeforeClientAck,
        Point::AfterClientAck,
        Point::BeforeLinkTake,
        Point::AfterLinkTake,
        Point::BeforeDelivery,
        Point::AfterDelivery,
        Point::ClientBytes,
    ];

    /// As the environment names it.
    pub fn name(self) -> String {
        let mut name = String::new();
        for letter in format!("{self:?}").chars() {
            if letter.is_ascii_uppercase() && !name.is_empty() {
                name.push('_');
            }
            name.push(letter.to_ascii_lowercase());
        }
        name
    }
}

/// This point is passed.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn hit(_: Point) {}

#[cfg(feature = "failpoints")]
pub use armed::hit;

#[cfg(feature = "failpoints")]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::Point;

    /// Between two writings of the counts.
    const WRITE_EVERY: Duration = Duration::from_millis(500);

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) enum Act {
        Crash,
        StallMs(u64),
    }

    #[derive(Debug, Default)]
    struct State {
        act: Option<(Act, u64)>,
        hits: AtomicU64,
        fired: AtomicU64,
    }

    struct States {
        all: [State; Point::ALL.len()],
        random: AtomicU64,
    }

    static STATES: OnceLock<States> = OnceLock::new();

    /// This point is passed.
    pub fn hit(point: Point) {
        let states = STATES.get_or_init(start);
        let state = &states.all[point as usize];
        state.hits.fetch_add(1, Ordering::Relaxed);
        let Some((act, one_in)) = state.act else { return };
        // Weyl's sequence through SplitMix64's finalizer: any thread takes the next.
        let mut z = states.random.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        if !(z ^ (z >> 31)).is_multiple_of(one_in) {
            return;
        }
        state.fired.fetch_add(1, Ordering::Relaxed);
        match act {
            Act::StallMs(ms) => std::thread::sleep(Duration::from_millis(ms)),
            Act::Crash => {
                write_counts(states);
                eprintln!("failpoint {}: crash", point.name());
                std::process::abort();
            }
        }
    }

    fn start() -> States {
        let text = std::env::var("MILLRACE_FAILPOINTS").unwrap_or_default();
        let acts = parse(&text).unwrap_or_else(|error| {
            eprintln!("MILLRACE_FAILPOINTS: {error}");
            std::process::exit(2);
        });
        let all = Point::ALL.map(|point| State { act: acts[point as usize], ..State::default() });
        let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        let seed = since.as_nanos() as u64 ^ u64::from(std::process::id()) << 32;
        std::thread::spawn(|| {
            loop {
                std::thread::sleep(WRITE_EVERY);
                if let Some(states) = STATES.get() {
                    write_counts(states);
                }
            }
        });
        States { all, random: AtomicU64::new(seed) }
    }

    fn write_counts(states: &States) {
        let Some(mut file) = std::env::var_os("MILLRACE_FAILPOINTS_COUNTS") else { return };
        file.push(format!("-{}", std::process::id()));
        let mut text = String::new();
        for (point, state) in Point::ALL.iter().zip(&states.all) {
            let (hits, fired) = (state.hits.load(Ordering::Relaxed), state.fired.load(Ordering::Relaxed));
            text.push_str(&format!("{} {hits} {fired}\n", point.name()));
        }
        // Nobody to tell: the counts are then simply missing from the report.
        let _ = std::fs::write(file, text);
    }

    type Acts = [Option<(Act, u64)>; Point::ALL.len()];

    pub(super) fn parse(text: &str) -> Result<Acts, String> {
        let mut acts: Acts = [None; Point::ALL.len()];
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let wrong = || format!("{part:?}: expected point=crash@1/N or point=stall:MS@1/N");
            let (name, rest) = part.split_once('=').ok_or_else(wrong)?;
            let (act, odds) = rest.split_once('@').unwrap_or((rest, "1/1"));
            let one_in = odds.strip_prefix("1/").and_then(|n| n.parse().ok()).filter(|n| *n > 0);
            let act = match act.split_once(':') {
                None if act == "crash" => Act::Crash,
                Some(("stall", ms)) => Act::StallMs(ms.parse().map_err(|_| wrong())?),
                _ => return Err(wrong()),
            };
            let points: Vec<Point> =
                Point::ALL.into_iter().filter(|point| name == "all" || point.name() == name).collect();
            if points.is_empty() {
                let all: Vec<String> = Point::ALL.into_iter().map(Point::name).collect();
                return Err(format!("no point {name:?}; there are all, {}", all.join(", ")));
            }
            for point in points {
                acts[point as usize] = Some((act, one_in.ok_or_else(wrong)?));
            }
        }
        Ok(acts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_has_its_place_and_name() {
        for (at, point) in Point::ALL.into_iter().enumerate() {
            assert_eq!(point as usize, at);
        }
        assert_eq!(Point::BeforeRouteWrite.name(), "before_route_write");
    }

    #[cfg(feature = "failpoints")]
    #[test]
    fn what_is_to_happen_is_read_or_refused() {
        use super::armed::{Act, parse};
        let acts = parse("before_append=crash@1/500, after_append=stall:50@1/9").unwrap();
        assert_eq!(acts[Point::BeforeAppend as usize], Some((Act::Crash, 500)));
        assert_eq!(acts[Point::AfterAppend as usize], Some((Act::StallMs(50), 9)));
        assert!(parse("all=stall:1@1/2").unwrap().iter().all(|act| act.is_some()));
        assert!(parse("").unwrap().iter().all(|act| act.is_none()));
        for wrong in ["before_append", "nowhere=crash", "before_append=stall", "before_append=crash@1/0"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
