//! Which life of a node holds its name: whose place a process takes when it starts, and when it has to wait.
//!
//! A process that starts again should not wait until the lease of its earlier life has run out: it takes its place. But
//! what an earlier life sent may be carried out late, and two processes may bear one name by mistake. So each renewal names
//! the one life that it replaces, which the process learned from the store before it was granted its first lease, and
//! never another one later. The rule that keeps it right: of two that live, the one that came last has the name, and who
//! has lost it gets it back only when that lease has ended.

use crate::store::View;

/// What an answer to a renewal means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The lease holds for as long as was asked.
    Granted,
    /// An earlier life has the name: renew again at once, which takes its place.
    Replace,
    /// Another life has the name: nothing holds until its lease ends.
    Refused,
}

/// What a process knows about its lease. See the module's head.
#[derive(Clone, Copy, Debug, Default)]
pub struct NameLease {
    /// It was granted once.
    granted: bool,
    replaces: u64,
}

impl NameLease {
    /// To be said with every renewal: the life whose place this one takes, or 0.
    pub fn replaces(&self) -> u64 {
        self.replaces
    }

    /// Takes the answer to a renewal.
    pub fn answered(&mut self, view: &View) -> Renewal {
        match view.held_by {
            0 => {
                self.granted = true;
                Renewal::Granted
            }
            life if !self.granted && life != self.replaces => {
                self.replaces = life;
                Renewal::Replace
            }
            _ => Renewal::Refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_takes_the_place_of_who_is_there_and_nobody_else_s_later() {
        let mut lease = NameLease::default();
        let mut answered = |held_by| {
            let renewal = lease.answered(&View { held_by, ..View::default() });
            (renewal, lease.replaces())
        };
        assert_eq!(answered(7), (Renewal::Replace, 7));
        assert_eq!(answered(8), (Renewal::Replace, 8), "7 was late too");
        assert_eq!(answered(0), (Renewal::Granted, 8));
        assert_eq!(answered(9), (Renewal::Refused, 8), "who came later has the name");
        assert_eq!(answered(0), (Renewal::Granted, 8), "and left");
    }
}
