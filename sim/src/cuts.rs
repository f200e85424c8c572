//! What an application had before a cut of the log, until the cut is saved: a process that dies before that begins again
//! where it was before the cut, and the copy of the log that has what was there may have come back by then.
//!
//! An application keeps its messages and its positions together, or mends the difference when it starts.

use std::collections::BTreeMap;

use millrace_client::core::Position;

/// Message ids by seq.
type Shown = BTreeMap<u64, u64>;

/// The cuts of one conversation since the process started.
#[derive(Debug, Default)]
pub struct Cuts(Vec<Cut>);

#[derive(Debug)]
struct Cut {
    before: Shown,
    /// The positions that were to be saved after it, before the next one.
    saves: Vec<Position>,
}

impl Cuts {
    /// The application takes a cut; this is what it had.
    pub fn add(&mut self, before: &Shown) {
        self.0.push(Cut { before: before.clone(), saves: Vec::new() });
    }

    /// This is to be saved.
    pub fn save(&mut self, position: &Position) {
        if let Some(last) = self.0.last_mut() {
            last.saves.push(position.clone());
        }
    }

    /// The process starts with this: what its application has again, if a cut was not saved.
    pub fn restart(&mut self, kept: Option<&Position>) -> Option<Shown> {
        let mut undone = None;
        for Cut { before, saves } in self.0.drain(..).rev() {
            if kept.is_some_and(|kept| saves.contains(kept)) {
                break;
            }
            undone = Some(before);
        }
        undone
    }
}

#[cfg(test)]
mod tests {
    use millrace_protocol::messages::client::Cursor;

    use super::*;

    fn at(epoch: u64, seq: u64) -> Position {
        Position { cursor: Cursor { epoch, seq }, ..Position::default() }
    }

    #[test]
    fn what_was_cut_is_back_unless_the_cut_was_saved() {
        let three: Shown = [(1, 11), (2, 12), (3, 13)].into();
        let two: Shown = [(1, 11), (2, 22)].into();
        let play = |kept: Option<Position>| {
            let mut cuts = Cuts::default();
            cuts.save(&at(1, 3));
            cuts.add(&three);
            cuts.save(&at(1, 1));
            cuts.save(&at(2, 2));
            cuts.add(&two);
            cuts.save(&at(1, 0));
            cuts.restart(kept.as_ref())
        };
        assert_eq!(play(Some(at(1, 0))), None);
        assert_eq!(play(Some(at(2, 2))), Some(two.clone()));
        assert_eq!(play(Some(at(1, 3))), Some(three.clone()));
        assert_eq!(play(None), Some(three.clone()));
    }
}
