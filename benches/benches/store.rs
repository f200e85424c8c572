//! Durable appends of both stores, beside what their engines do bare with the same batches:
//! `cargo bench -p millrace-benches --bench store`.
//!
//! An append is more than a record in a log: it compares fence and position, files what senders were answered, and
//! remembers what is to be fanned out. `store` is all that, through the trait, as the dispatcher's shards use it: a partition
//! sends its next batch when the former is answered, whatever the others do. `bare` writes records of the same size in
//! batches of the same number and makes them durable as often, and nothing else. What is written is made before the clock
//! starts, on both sides. Redis is left out where there is no redis-server.

use std::io::{BufRead, BufReader, Read, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{Bencher, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use millrace_benches as _; // for its allocator, that of the programs
use millrace_dispatcher::store::embedded::{self, Embedded};
use millrace_dispatcher::store::redis::{self, RedisStore};
use millrace_dispatcher::store::{Batch, Done, Entry, Fence, Job, Outcome, Replies, Store, Work, Write};
use millrace_edge::mailbox::{Receiver, mailbox};
use millrace_edge::wake::Waker;
use millrace_protocol::ids::{MessageId, Partition};
use rustix::event::{PollFd, PollFlags};

/// Partitions with a batch in flight, and messages in each batch: 256 messages for one fsync.
const PARTITIONS: u16 = 8;
const MESSAGES: u64 = 32;
/// Bytes of a message's body: what receivers get.
const BODY_BYTES: usize = 300;
/// Bytes of its record: the body, 78 of numbers, sender and device with their lengths.
const RECORD_BYTES: usize = BODY_BYTES + 78 + (2 + "alice0".len()) + (2 + "phone".len());

/// Who says the messages of a batch.
#[derive(Clone, Copy)]
enum Shape {
    /// One conversation and one sender: a burst.
    Burst,
    /// Each message has its own conversation.
    Apart,
}

impl Shape {
    fn name(self) -> &'static str {
        match self {
            Shape::Burst => "a burst",
            Shape::Apart => "apart",
        }
    }

    /// Conversation and seq of a batch's n-th message (from 1), after so many rounds.
    fn place(self, partition: Partition, rounds: u64, n: u64) -> (String, u64) {
        match self {
            Shape::Burst => (format!("d:alice{partition}:bob{partition}"), rounds * MESSAGES + n),
            Shape::Apart => (format!("d:alice{partition}:bob{n}"), rounds + 1),
        }
    }
}

/// A store, its partitions claimed, and where each is.
struct Rig {
    shape: Shape,
    store: Box<dyn Store>,
    replies: Replies,
    answers: Receiver<Vec<Done>>,
    waker: Waker,
    owners: Vec<Owner>,
}

struct Owner {
    fence: Fence,
    position: u64,
    rounds: u64,
}

impl Rig {
    fn new(shape: Shape, store: Box<dyn Store>) -> Rig {
        let waker = Waker::new().expect("an eventfd");
        let (replies, answers) = mailbox(1_024, waker.clone());
        let mut rig = Rig { shape, store, replies, answers, waker, owners: Vec::new() };
        let claim = |partition| Work::Claim {
            partition,
            node: "bench".into(),
            incarnation: 1,
            wall_ms: 1_800_000_000_000,
            above: 0,
        };
        for outcome in rig.calls((0..PARTITIONS).map(claim).collect()) {
            let Outcome::Claimed { fence, position, .. } = outcome else { panic!("no claim: {outcome:?}") };
            rig.owners.push(Owner { fence, position, rounds: 0 });
        }
        rig
    }

    fn calls(&mut self, works: Vec<Work>) -> Vec<Outcome> {
        let count = works.len();
        let jobs = works.into_iter().zip(0..).map(|(work, ticket)| Job { ticket, work }).collect();
        self.store.submit(jobs, &self.replies);
        let mut done: Vec<Done> = Vec::with_capacity(count);
        while done.len() < count {
            done.extend(self.answered());
        }
        done.sort_by_key(|done| done.ticket);
        done.into_iter().map(|done| done.outcome.expect("the job is done")).collect()
    }

    /// Waits for answers.
    fn answered(&self) -> Vec<Done> {
        loop {
            self.waker.drain();
            if let Some(done) = self.answers.recv() {
                return done;
            }
            let fd = self.waker.fd();
            rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], None).expect("an answer");
        }
    }

    fn bench(&mut self, b: &mut Bencher) {
        b.iter_custom(|rounds| {
            let batches = self.batches(rounds);
            timed(|| self.flow(batches))
        });
    }

    /// So many batches of each partition, the next ones last.
    fn batches(&mut self, rounds: u64) -> Vec<Vec<Work>> {
        let shape = self.shape;
        let owners = (0..).zip(&mut self.owners);
        owners.map(|(partition, owner)| owner.batches(shape, partition, rounds)).collect()
    }

    /// Carries out these batches: one of each partition at a time.
    fn flow(&mut self, mut batches: Vec<Vec<Work>>) {
        let mut left: usize = batches.iter().map(Vec::len).sum();
        let mut next = |partition: usize| {
            let work = batches[partition].pop()?;
            Some(Job { ticket: partition as u64, work })
        };
        self.store.submit((0..usize::from(PARTITIONS)).filter_map(&mut next).collect(), &self.replies);
        while left > 0 {
            let done = self.answered();
            left -= done.len();
            for done in &done {
                assert_eq!(done.outcome, Ok(Outcome::Appended));
            }
            let jobs: Vec<Job> = done.iter().filter_map(|done| next(done.ticket as usize)).collect();
            if !jobs.is_empty() {
                self.store.submit(jobs, &self.replies);
            }
        }
    }
}

impl Owner {
    fn batches(&mut self, shape: Shape, partition: Partition, rounds: u64) -> Vec<Work> {
        let mut batches = Vec::new();
        for _ in 0..rounds {
            let writes: Vec<Write> = (1..=MESSAGES).map(|n| message(shape, partition, self, n)).collect();
            let outstanding = (1..=MESSAGES).map(|n| shape.place(partition, self.rounds, n)).collect();
            let (fence, position) = (self.fence, self.position);
            batches.push(Work::Append(Batch {
                partition,
                fence,
                position,
                writes,
                outstanding,
                fanned_out: position,
            }));
            self.position += MESSAGES;
            self.rounds += 1;
        }
        batches.reverse();
        batches
    }
}

fn timed(act: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    act();
    begun.elapsed()
}

fn message(shape: Shape, partition: Partition, owner: &Owner, n: u64) -> Write {
    let (conversation, seq) = shape.place(partition, owner.rounds, n);
    Write::Message(Entry {
        conversation,
        seq,
        message_id: MessageId((1 << 50) + owner.rounds * MESSAGES + n),
        epoch: owner.fence.epoch,
        action: 0,
        messages: seq,
        bytes: seq * BODY_BYTES as u64,
        sender: format!("alice{partition}"),
        device: "phone".into(),
        stream: 7,
        client_seq: seq,
        payload_hash: seq,
        notify: Bytes::from(vec![7u8; BODY_BYTES]),
    })
}

fn appends(c: &mut Criterion) {
    let mut group = c.benchmark_group("append");
    group.sampling_mode(SamplingMode::Flat).sample_size(20).measurement_time(Duration::from_secs(4));
    group.throughput(Throughput::Elements(u64::from(PARTITIONS) * MESSAGES));

    for shape in [Shape::Burst, Shape::Apart] {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Embedded::open(dir.path(), embedded::Settings::new(PARTITIONS)).expect("a store");
        let mut rig = Rig::new(shape, Box::new(store));
        group.bench_function(format!("embedded fsync, {}: store", shape.name()), |b| rig.bench(b));
        drop(rig);
        let mut bare = BareFjall::open(shape, dir.path());
        group.bench_function(format!("embedded fsync, {}: bare", shape.name()), |b| bare.bench(b));
    }
    for (level, fsync) in [("async", "everysec"), ("fsync", "always")] {
        for shape in [Shape::Burst, Shape::Apart] {
            let Some(server) = RedisServer::start(fsync) else {
                println!("no redis-server: its part is left out");
                continue;
            };
            let name = format!("redis {level}, {}", shape.name());
            let url = format!("redis://127.0.0.1:{}", server.port);
            let settings = redis::Settings::new("bench", PARTITIONS);
            let store = RedisStore::connect(&url, settings).expect("a connection");
            let mut rig = Rig::new(shape, Box::new(store));
            group.bench_function(format!("{name}: store"), |b| rig.bench(b));
            drop(rig);
            let mut bare = BareRedis::connect(shape, server.port);
            group.bench_function(format!("{name}: bare"), |b| bare.bench(b));
        }
    }
    group.finish();
}

/// fjall alone: one insert for each message, one commit and one fsync for all.
struct BareFjall {
    db: fjall::Database,
    log: fjall::Keyspace,
    shape: Shape,
    rounds: u64,
}

impl BareFjall {
    fn open(shape: Shape, dir: &Path) -> BareFjall {
        let db = fjall::Database::builder(dir.join("bare")).worker_threads(1).open().expect("a database");
        let log = db.keyspace("log", fjall::KeyspaceCreateOptions::default).expect("a keyspace");
        BareFjall { db, log, shape, rounds: 0 }
    }

    fn bench(&mut self, b: &mut Bencher) {
        b.iter_custom(|rounds| {
            let rounds: Vec<_> = (0..rounds).map(|_| self.records()).collect();
            timed(|| rounds.into_iter().for_each(|records| self.write(records)))
        });
    }

    /// Keys and values of one batch of each partition.
    fn records(&mut self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let place = |(partition, n)| {
            let (conversation, seq) = self.shape.place(partition, self.rounds, n);
            ([conversation.as_bytes(), &seq.to_be_bytes()].concat(), vec![7u8; RECORD_BYTES])
        };
        let all = (0..PARTITIONS).flat_map(|partition| (1..=MESSAGES).map(move |n| (partition, n)));
        let records = all.map(place).collect();
        self.rounds += 1;
        records
    }

    fn write(&mut self, records: Vec<(Vec<u8>, Vec<u8>)>) {
        let mut batch = self.db.batch().durability(None);
        for (key, value) in records {
            batch.insert(&self.log, key, value);
        }
        batch.commit().expect("a commit");
        self.db.persist(fjall::PersistMode::SyncData).expect("an fsync");
    }
}

/// A pipeline of EVALSHA, one for each batch, that adds the records to their conversations' logs and does nothing else.
struct BareRedis {
    stream: BufReader<TcpStream>,
    sha: String,
    shape: Shape,
    rounds: u64,
}

const BARE_SCRIPT: &str =
    "for i, key in ipairs(KEYS) do redis.call('HSET', key, ARGV[2 * i - 1], ARGV[2 * i]) end return 'ok'";

impl BareRedis {
    fn connect(shape: Shape, port: u16) -> BareRedis {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
        stream.set_nodelay(true).expect("no delay");
        let mut bare = BareRedis { stream: BufReader::new(stream), sha: String::new(), shape, rounds: 0 };
        let mut command = Vec::new();
        resp(&mut command, &[b"SCRIPT", b"LOAD", BARE_SCRIPT.as_bytes()]);
        bare.stream.get_mut().write_all(&command).expect("a write");
        bare.sha = bare.reply();
        bare
    }

    fn bench(&mut self, b: &mut Bencher) {
        b.iter_custom(|rounds| {
            let rounds: Vec<_> = (0..rounds).map(|_| self.commands()).collect();
            timed(|| rounds.iter().for_each(|commands| self.write(commands)))
        });
    }

    /// One batch of each partition.
    fn commands(&mut self) -> Vec<u8> {
        let mut commands = Vec::new();
        let record = vec![7u8; RECORD_BYTES];
        for partition in 0..PARTITIONS {
            let places: Vec<(String, String)> = (1..=MESSAGES)
                .map(|n| self.shape.place(partition, self.rounds, n))
                .map(|(conversation, seq)| (format!("bare:{partition}:{conversation}"), seq.to_string()))
                .collect();
            let count = MESSAGES.to_string();
            let mut args: Vec<&[u8]> = vec![b"EVALSHA", self.sha.as_bytes(), count.as_bytes()];
            args.extend(places.iter().map(|(key, _)| key.as_bytes()));
            args.extend(places.iter().flat_map(|(_, seq)| [seq.as_bytes(), &record[..]]));
            resp(&mut commands, &args);
        }
        self.rounds += 1;
        commands
    }

    fn write(&mut self, commands: &[u8]) {
        self.stream.get_mut().write_all(commands).expect("a write");
        for _ in 0..PARTITIONS {
            assert_eq!(self.reply(), "ok");
        }
    }

    fn reply(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("a reply");
        let line = line.trim_end().to_owned();
        let Some(length) = line.strip_prefix('$') else { panic!("Redis says {line}") };
        let mut text = vec![0; length.parse::<usize>().expect("a length") + 2];
        self.stream.read_exact(&mut text).expect("the rest");
        String::from_utf8_lossy(&text).trim_end().to_owned()
    }
}

fn resp(out: &mut Vec<u8>, args: &[&[u8]]) {
    out.extend(format!("*{}\r\n", args.len()).bytes());
    for arg in args {
        out.extend(format!("${}\r\n", arg.len()).bytes());
        out.extend_from_slice(arg);
        out.extend(b"\r\n");
    }
}

/// A redis-server of this bench's own, gone with it.
struct RedisServer {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl RedisServer {
    fn start(fsync: &str) -> Option<RedisServer> {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).ok()?.port();
        let dir = tempfile::tempdir().ok()?;
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(["--appendonly", "yes", "--appendfsync", fsync, "--maxmemory-policy", "noeviction"])
            .args(["--auto-aof-rewrite-percentage", "0", "--dir"])
            .arg(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .ok()?;
        let server = RedisServer { child, port, _dir: dir };
        let answers = |_: &u32| {
            std::thread::sleep(Duration::from_millis(50));
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        };
        (0..100).find(answers).map(|_| server)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

criterion_group!(benches, appends);
criterion_main!(benches);
