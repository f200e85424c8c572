//! What is remembered between runs beside the cursors: the rooms that were joined, one per line. Groups and direct
//! conversations the server knows.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

/// See the module's head.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    path: Option<PathBuf>,
    pub(crate) rooms: BTreeSet<String>,
}

impl Kept {
    /// From this file, which need not exist.
    pub(crate) fn load(path: PathBuf) -> io::Result<Kept> {
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            text => text?,
        };
        let rooms = text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
        Ok(Kept { path: Some(path), rooms })
    }

    /// Writes it to the side and renames, so that there is always a whole file.
    pub(crate) fn save(&self) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let text: String = self.rooms.iter().map(|room| format!("{room}\n")).collect();
        let beside = path.with_extension("new");
        std::fs::write(&beside, text)?;
        std::fs::rename(beside, path)
    }
}
