//! Where cursors are kept: what the application has taken of each conversation, so that a process that restarts shows
//! nothing twice and misses nothing.
//!
//! The rule that keeps it right: a save that is lost costs a repeat, so it may be late; a cursor that was never saved
//! would cost messages, so nothing is read back that was not written whole.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use millrace_protocol::messages::client::Cursor;

use crate::core::{EPOCHS_MAX, Position, Saved};

/// Keeps cursors. Calls block, and come from one thread at a time. An application that keeps messages itself keeps these
/// beside them, best in the same transaction: then what it has and where it begins always fit.
pub trait CursorStore: Send + 'static {
    /// All that is kept.
    ///
    /// # Errors
    /// The client does not connect then: it would show everything again.
    fn load(&mut self) -> io::Result<Vec<(String, Position)>>;

    /// Keeps these, or forgets those that are `None`. When it returns, they survive the process.
    ///
    /// # Errors
    /// The same cursors, or newer ones, come again later.
    fn save(&mut self, batch: &[Saved]) -> io::Result<()>;
}

/// A store, as the configuration has it. Clones share it.
#[derive(Clone)]
pub struct Cursors(Arc<Mutex<dyn CursorStore>>);

impl Cursors {
    /// This store.
    pub fn new(store: impl CursorStore) -> Self {
        Cursors(Arc::new(Mutex::new(store)))
    }

    /// For as long as the process lives.
    pub fn in_memory() -> Self {
        Cursors::new(MemoryCursors::default())
    }

    /// In this file.
    pub fn in_file(path: impl Into<PathBuf>) -> Self {
        Cursors::new(FileCursors::new(path))
    }

    pub(crate) fn load(&self) -> io::Result<Vec<(String, Position)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).load()
    }

    pub(crate) fn save(&self, batch: &[Saved]) -> io::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).save(batch)
    }
}

impl fmt::Debug for Cursors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cursors(…)")
    }
}

/// Cursors for as long as the process lives.
#[derive(Debug, Default)]
pub struct MemoryCursors(BTreeMap<String, Position>);

impl CursorStore for MemoryCursors {
    fn load(&mut self) -> io::Result<Vec<(String, Position)>> {
        Ok(self.0.clone().into_iter().collect())
    }

    fn save(&mut self, batch: &[Saved]) -> io::Result<()> {
        apply(&mut self.0, batch);
        Ok(())
    }
}

/// Lines of the file beyond those that say something new, before it is written anew.
const STALE_LINES_MAX: usize = 4_096;

/// Cursors in a file: a line is appended and synced for each that moved, and the file is written anew (to the side,
/// synced, renamed) when most lines are stale. A line that is torn or damaged is skipped: an older one counts.
#[derive(Debug)]
pub struct FileCursors {
    path: PathBuf,
    cursors: BTreeMap<String, Position>,
    /// Locked while it is open, so that two processes don't mix their cursors.
    file: Option<File>,
    lines: usize,
}

impl FileCursors {
    /// In this file, which is made if it does not exist. Its directory must exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        FileCursors { path: path.into(), cursors: BTreeMap::new(), file: None, lines: 0 }
    }

    fn open(&mut self) -> io::Result<&mut File> {
        if self.file.is_none() {
            let mut file = OpenOptions::new().read(true).append(true).create(true).open(&self.path)?;
            lock(&file, &self.path)?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            self.cursors.clear();
            self.lines = 0;
            for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                self.lines += 1;
                if let Some(saved) = str::from_utf8(line).ok().and_then(read_line) {
                    apply(&mut self.cursors, &[saved]);
                }
            }
            if bytes.last().is_some_and(|last| *last != b'\n') {
                file.write_all(b"\n")?;
            }
            self.file = Some(file);
        }
        self.file.as_mut().ok_or_else(|| io::Error::other("not open"))
    }

    fn rewrite(&mut self) -> io::Result<()> {
        let mut text = String::new();
        for (conversation, position) in &self.cursors {
            write_line(&mut text, conversation, Some(position));
        }
        let beside = beside(&self.path);
        let mut file = OpenOptions::new().append(true).create(true).open(&beside)?;
        file.set_len(0)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        lock(&file, &beside)?;
        fs::rename(&beside, &self.path)?;
        if let Some(directory) = self.path.parent().filter(|path| !path.as_os_str().is_empty()) {
            File::open(directory)?.sync_all()?;
        }
        (self.file, self.lines) = (Some(file), self.cursors.len());
        Ok(())
    }
}

impl CursorStore for FileCursors {
    fn load(&mut self) -> io::Result<Vec<(String, Position)>> {
        self.open()?;
        Ok(self.cursors.clone().into_iter().collect())
    }

    fn save(&mut self, batch: &[Saved]) -> io::Result<()> {
        let mut text = String::new();
        for (conversation, position) in batch {
            write_line(&mut text, conversation, position.as_ref());
        }
        let written = self.open().and_then(|file| {
            file.write_all(text.as_bytes())?;
            file.sync_data()
        });
        if let Err(error) = written {
            // What is in the file now is not known: read it again before the next line.
            self.file = None;
            return Err(error);
        }
        apply(&mut self.cursors, batch);
        self.lines += batch.len();
        if self.lines > 2 * self.cursors.len() + STALE_LINES_MAX {
            self.rewrite()?;
        }
        Ok(())
    }
}

fn apply(cursors: &mut BTreeMap<String, Position>, batch: &[Saved]) {
    for (conversation, position) in batch {
        match position {
            Some(position) => drop(cursors.insert(conversation.clone(), position.clone())),
            None => drop(cursors.remove(conversation)),
        }
    }
}

fn lock(file: &File, path: &Path) -> io::Result<()> {
    file.try_lock().map_err(|error| io::Error::other(format!("{}: in use? {error}", path.display())))
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

/// `<conversation> <epoch> <seq> [<epoch> <seq> …] <check>`: the cursor, then the first entries of epochs. `-` for both
/// numbers of the cursor when it is forgotten.
fn write_line(out: &mut String, conversation: &str, position: Option<&Position>) {
    let mut body = conversation.to_owned();
    let mut add = |Cursor { epoch, seq }: Cursor| {
        // Writing to a String does not fail.
        let _ = write!(body, " {epoch} {seq}");
    };
    match position {
        Some(position) => {
            add(position.cursor);
            position.epochs.iter().copied().for_each(add);
        }
        None => body += " - -",
    }
    let _ = writeln!(out, "{body} {:08x}", check(&body));
}

fn read_line(line: &str) -> Option<Saved> {
    let (body, sum) = line.rsplit_once(' ')?;
    if u32::from_str_radix(sum, 16).ok()? != check(body) {
        return None;
    }
    let mut parts = body.split(' ');
    let conversation = parts.next()?.to_owned();
    let numbers: Vec<&str> = parts.collect();
    if numbers == ["-", "-"] {
        return Some((conversation, None));
    }
    let (pairs, []) = numbers.as_chunks::<2>() else { return None };
    let cursor =
        |[epoch, seq]: &[&str; 2]| Some(Cursor { epoch: epoch.parse().ok()?, seq: seq.parse().ok()? });
    let (first, epochs) = pairs.split_first()?;
    let epochs = epochs.iter().take(EPOCHS_MAX).map(cursor).collect::<Option<_>>()?;
    Some((conversation, Some(Position { cursor: cursor(first)?, epochs })))
}

/// FNV-1a: tells a torn line from a whole one.
fn check(body: &str) -> u32 {
    body.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seq: u64) -> Option<Position> {
        let epochs = vec![Cursor { epoch: 6, seq: 1 }, Cursor { epoch: 7, seq: seq.div_ceil(2) }];
        Some(Position { cursor: Cursor { epoch: 7, seq }, epochs })
    }

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("millrace-cursors-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn load(path: &Path) -> Vec<(String, u64)> {
        let loaded = FileCursors::new(path).load().unwrap();
        let of = |(conversation, kept): (String, Position)| {
            assert_eq!(Some(&kept), at(kept.cursor.seq).as_ref(), "whole");
            (conversation, kept.cursor.seq)
        };
        loaded.into_iter().map(of).collect()
    }

    #[test]
    fn what_was_saved_is_there_and_a_torn_line_leaves_the_one_before() {
        let directory = directory("torn");
        let path = directory.join("cursors");
        let mut store = FileCursors::new(&path);
        assert_eq!(store.load().unwrap(), []);
        store.save(&[("g:a".into(), at(1)), ("g:b".into(), at(5))]).unwrap();
        store.save(&[("g:a".into(), at(2)), ("g:b".into(), None), ("g:c".into(), at(9))]).unwrap();
        assert!(FileCursors::new(&path).load().is_err(), "one process at a time");
        drop(store);
        assert_eq!(load(&path), [("g:a".into(), 2), ("g:c".into(), 9)]);
        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let before = load(&path);
            assert!(before.iter().all(|(name, seq)| {
                [("g:a", 1), ("g:a", 2), ("g:b", 5), ("g:c", 9)].contains(&(name.as_str(), *seq))
            }));
            // What is appended after a torn line counts.
            FileCursors::new(&path).save(&[("g:d".into(), at(3))]).unwrap();
            assert!(load(&path).contains(&("g:d".into(), 3)), "cut at {cut}");
        }
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn files_without_epochs_are_read() {
        let line = |body: &str| format!("{body} {:08x}", check(body));
        let (_, kept) = read_line(&line("g:a 7 12")).unwrap();
        assert_eq!(kept, Some(Position { cursor: Cursor { epoch: 7, seq: 12 }, epochs: Vec::new() }));
        assert_eq!(read_line(&line("g:a - -")), Some(("g:a".into(), None)));
        for damaged in ["g:a", "g:a 7", "g:a 7 x", "g:a 7 12 3", "g:a 7 12 3 -"] {
            assert_eq!(read_line(&line(damaged)), None, "{damaged}");
        }
    }

    #[test]
    fn the_file_does_not_grow_for_ever() {
        let directory = directory("growth");
        let path = directory.join("cursors");
        let mut store = FileCursors::new(&path);
        let batches: Vec<Vec<Saved>> = (0..20)
            .map(|batch| (0..1_000).map(|seq| ("g:a".into(), at(batch * 1_000 + seq))).collect())
            .collect();
        for batch in batches {
            store.save(&batch).unwrap();
        }
        assert!(fs::metadata(&path).unwrap().len() < 40 * 6_000);
        assert!(FileCursors::new(&path).load().is_err(), "still locked");
        drop(store);
        assert_eq!(load(&path), [("g:a".into(), 19_999)]);
        fs::remove_dir_all(directory).unwrap();
    }
}
