//! What the embedded store keeps when its process, its journal's tail or its disk fail.

mod support;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millrace_dispatcher::store::embedded::{Embedded, OpenError, Settings};
use millrace_dispatcher::store::{Durability, Outcome, StoreError, Work, Write};
use support::world::{PARTITIONS, World, entry, message, open_embedded, until};

fn open(dir: &Path, settings: Settings) -> World<'static> {
    World::over(Box::new(Embedded::open(dir, settings).unwrap()))
}

/// Entries of g:tea, after it was checked that they fit together with everything else.
fn entries(world: &World<'_>) -> u64 {
    let (entries, _) = world.read("g:tea", 0, u64::MAX, usize::MAX >> 1);
    assert!(entries.iter().zip(1..).all(|(entry, seq)| entry.seq == seq));
    let claim = world.claim(3, "b", 10);
    assert_eq!(claim.position, entries.len() as u64 + 1, "log and position agree");
    assert_eq!(world.load(&claim, "g:tea", None).head, entries.len() as u64);
    entries.len() as u64
}

/// The child of the next test: appends and says so, until it is killed.
#[test]
#[ignore = "a child process of another test"]
fn child_that_writes_async() {
    let dir = PathBuf::from(std::env::var_os("MILLRACE_TEST_DIR").expect("set by the parent"));
    let world = open(&dir, Settings { durability: Durability::Async, ..Settings::new(PARTITIONS) });
    let mut claim = world.claim(3, "a", 1_000);
    for seq in 1.. {
        world.append(&mut claim, vec![message("g:tea", seq)]);
        println!("appended {seq}");
    }
}

#[test]
fn async_loses_nothing_when_its_process_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child_that_writes_async", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env("MILLRACE_TEST_DIR", dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut answered = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        if let Some(seq) = line.unwrap().strip_prefix("appended ") {
            answered = seq.parse().unwrap();
        }
        if answered == 500 {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(answered >= 500, "the child died early, at {answered}");
    assert!(entries(&World::over(Box::new(open_embedded(dir.path())))) >= answered);
}

#[test]
fn async_is_kept_by_an_orderly_end() {
    let dir = tempfile::tempdir().unwrap();
    let settings = || Settings { durability: Durability::Async, ..Settings::new(PARTITIONS) };
    let world = open(dir.path(), settings());
    let mut claim = world.claim(3, "a", 1_000);
    world.append(&mut claim, vec![message("g:tea", 1)]);
    // Synced while nothing comes in, too; nothing shows that but that it goes on.
    std::thread::sleep(Duration::from_millis(300));
    world.append(&mut claim, vec![message("g:tea", 2)]);
    drop(world);
    assert_eq!(entries(&open(dir.path(), settings())), 2);
}

/// The journal that is written to, and where its data ends: it is longer than that, and the rest is zeros.
fn journal(dir: &Path) -> (PathBuf, Vec<u8>) {
    let found = std::fs::read_dir(dir.join("db")).unwrap().map(|entry| entry.unwrap().path());
    let newest =
        found.filter(|path| path.extension().is_some_and(|it| it == "jnl")).max().expect("a journal");
    let mut data = std::fs::read(&newest).unwrap();
    let end = data.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    data.truncate(end);
    (newest, data)
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_torn_tail_takes_nothing_that_was_synced() {
    const SYNCED: u64 = 20;
    let dir = tempfile::tempdir().unwrap();
    let world = World::over(Box::new(open_embedded(dir.path())));
    let mut claim = world.claim(3, "a", 1_000);
    for seq in 1..=SYNCED {
        world.append(&mut claim, vec![message("g:tea", seq)]);
    }
    let (_, before) = journal(dir.path());
    // A power cut may take any part of what comes now.
    for seq in SYNCED + 1..=SYNCED + 6 {
        world.append(&mut claim, vec![message("g:tea", seq)]);
    }
    let (path, after) = journal(dir.path());
    let name = path.strip_prefix(dir.path()).unwrap();
    assert!(after.starts_with(&before) && after.len() > before.len());
    drop(world);
    // The last of what was synced may end in zeros.
    let first = before.len() + 16;
    let mut kept = Vec::new();
    for at in (0..24).map(|n| first + n * (after.len() - first) / 23) {
        for filling in [None, Some(0), Some(0xa5)] {
            let torn = tempfile::tempdir().unwrap();
            copy(dir.path(), torn.path());
            let mut data = after[..at].to_vec();
            // A cut file; one whose length was kept; one with other blocks' rubbish.
            data.extend(std::iter::repeat_n(filling.unwrap_or(0), if filling.is_some() { 4_096 } else { 0 }));
            std::fs::write(torn.path().join(name), data).unwrap();
            let world = World::over(Box::new(open_embedded(torn.path())));
            let found = entries(&world);
            assert!((SYNCED..=SYNCED + 6).contains(&found), "{found} of {SYNCED} at byte {at}, {filling:?}");
            kept.push(found);
            // And it goes on.
            let mut claim = world.claim(3, "a", 1_000);
            world.append(&mut claim, vec![message("g:tea", found + 1)]);
        }
    }
    assert!(kept.contains(&SYNCED) && kept.contains(&(SYNCED + 5)), "{kept:?}");
}

#[test]
fn an_older_format_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    {
        let db = fjall::Database::builder(dir.path().join("db")).open().unwrap();
        let meta = db.keyspace("meta", fjall::KeyspaceCreateOptions::default).unwrap();
        meta.insert("format", [0, 1, 0, PARTITIONS as u8]).unwrap();
        db.persist(fjall::PersistMode::SyncAll).unwrap();
    }
    let error = Embedded::open(dir.path(), Settings::new(PARTITIONS)).err().expect("it is too old");
    assert!(matches!(error, OpenError::Format { found: 1, wanted: 3, .. }), "{error}");
    assert!(error.to_string().contains("empty directory"), "{error}");
    let db = fjall::Database::builder(dir.path().join("db")).open().unwrap();
    assert_eq!(db.keyspace_count(), 1, "nothing was made there");
}

/// A file system of its own in memory, gone with its value.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    /// `None`, and says why, where that is not allowed.
    fn mount(mib: u32) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={mib}m");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "millrace-test"])
            .arg(dir.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(dir)),
            Ok(output) => {
                println!("skipped: {}", String::from_utf8_lossy(&output.stderr).trim());
                None
            }
            Err(error) => {
                println!("skipped: mount: {error}");
                None
            }
        }
    }

    fn grow(&self, mib: u32) {
        let options = format!("remount,size={mib}m");
        let status = Command::new("mount").args(["-o", &options]).arg(self.0.path()).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

/// Appends until it is refused; returns how many entries were answered.
fn fill(world: &World<'_>, mut claim: support::world::Claim, mut head: u64) -> (u64, String) {
    loop {
        let writes: Vec<Write> =
            (1..=16).map(|n| Write::Message(entry("g:tea", head + n, &[n as u8; 60_000]))).collect();
        match world.call(claim.batch(writes)) {
            Ok(Outcome::Appended) => (head, claim.position) = (head + 16, claim.position + 16),
            Err(StoreError::Unavailable(reason)) => return (head, reason),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_full_disk_is_answered_before_it_is_full() {
    // What is kept back holds what was taken in once more, while it goes from the journal into tables.
    let Some(disk) = Tmpfs::mount(160) else { return };
    let settings = || Settings {
        disk_reserve_bytes: 112 << 20,
        on_fatal: Arc::new(|reason: &str| panic!("{reason}")),
        ..Settings::new(PARTITIONS)
    };
    let world = open(disk.0.path(), settings());
    let (answered, reason) = fill(&world, world.claim(3, "a", 1_000), 0);
    assert!(reason.contains("nearly full") && answered > 160, "{answered}: {reason}");
    assert!(world.trouble().is_some_and(|said| said.contains("nearly full")));
    // It is read, claimed and trimmed all the same.
    assert_eq!(entries(&world), answered);
    let mut claim = world.claim(3, "a", 1_000);
    let first_seq = answered / 2;
    world.call(claim.batch(vec![Write::Trim { conversation: "g:tea".into(), first_seq }])).unwrap();
    claim.position += 1;
    disk.grow(512);
    until("it has looked again", Duration::from_secs(5), || world.trouble().is_none());
    world.append(&mut claim, vec![message("g:tea", answered + 1)]);
}

#[test]
fn a_full_disk_is_the_end_and_a_start_with_room_finds_everything_answered() {
    let Some(disk) = Tmpfs::mount(32) else { return };
    let ended = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&ended);
    let settings = Settings {
        disk_reserve_bytes: 0,
        on_fatal: Arc::new(move |_: &str| flag.store(true, Ordering::Release)),
        ..Settings::new(PARTITIONS)
    };
    let world = open(disk.0.path(), settings);
    let (answered, reason) = fill(&world, world.claim(3, "a", 1_000), 0);
    assert!(answered > 0 && ended.load(Ordering::Acquire), "{answered}: {reason}");
    assert!(reason.contains("disk failed"), "{reason}");
    let refused = world.call(Work::UserList {
        user: "alice".into(),
        list: millrace_dispatcher::store::List::Groups,
        after: String::new(),
        limit: 1,
    });
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "everything is refused: {refused:?}");
    drop(world);
    disk.grow(512);
    let world = World::over(Box::new(open_embedded(disk.0.path())));
    let found = entries(&world);
    assert!((answered..=answered + 16).contains(&found), "{found} of {answered}");
    let mut claim = world.claim(3, "a", 1_000);
    world.append(&mut claim, vec![message("g:tea", found + 1)]);
}
