//! How much of a conversation's log is kept: by count, age and bytes.
//!
//! By count it is trimmed as it grows. By age and bytes its oldest entries must be looked at, which is done when it is
//! loaded and now and then as it grows; a conversation that nobody uses is trimmed when it is used again. The rules that
//! keep it right: the newest entry always stays; and while the wall clock and the monotonic clock disagree about how much
//! time has passed, nothing is trimmed by age, as a clock that jumped ahead would empty every log.

use millrace_protocol::conversation::Conversation as Id;

use super::batch::{Effect, Owner};
use super::conversation::Conversation;
use super::hub::{Cx, PartitionJob, Pending};
use super::limits::{Retention, TRIM_SLACK, TRIM_STEP};
use crate::store::{Outcome, Work, Write};

/// Clocks that differ by more than this over the life of the process are not believed, ms.
const CLOCK_JUMP_MS: i64 = 60_000;

/// Whether the wall clock went as the monotonic one did since the first look.
#[derive(Debug, Default)]
pub struct Clocks {
    /// Wall less monotonic, ms.
    offset_ms: Option<i64>,
}

impl Clocks {
    /// Compares them.
    pub fn agree(&mut self, now: millrace_protocol::ids::Now) -> bool {
        let offset_ms = now.wall_ms as i64 - (now.mono_us / 1_000) as i64;
        let first = *self.offset_ms.get_or_insert(offset_ms);
        (offset_ms - first).abs() <= CLOCK_JUMP_MS
    }
}

fn rule(cx: &Cx, name: &str) -> Retention {
    match Id::parse(name) {
        Some(Id::Room(_)) => cx.hub.config.limits.retention_rooms,
        _ => cx.hub.config.limits.retention,
    }
}

/// A conversation grew, or was loaded.
pub fn appended(cx: &mut Cx, owner: &mut Owner, conversation: &mut Conversation, name: &str) {
    let rule = rule(cx, name);
    let held = conversation.durable + 1 - conversation.first_seq.min(conversation.durable + 1);
    if rule.count > 0 && held > rule.count + TRIM_SLACK.max(rule.count / 16) {
        let first_seq = conversation.durable + 1 - rule.count;
        return trim(cx, owner, conversation, name, first_seq);
    }
    let due = conversation.trimmed_at == 0 || conversation.durable >= conversation.trimmed_at + TRIM_SLACK;
    if (rule.age_ms == 0 && rule.bytes == 0) || conversation.trimming || !due || held < 2 {
        return;
    }
    conversation.trimming = true;
    conversation.trimmed_at = conversation.durable.max(1);
    let (partition, generation) = (owner.from.partition, owner.generation);
    let work = Work::Read {
        partition,
        fence: Some(owner.fence),
        conversation: name.to_owned(),
        after: conversation.first_seq.saturating_sub(1),
        through: conversation.durable,
        limit_bytes: 4 << 20,
        entries_max: TRIM_STEP,
        newest_first: false,
    };
    let job = PartitionJob::Oldest(name.to_owned());
    cx.store(work, Pending::Partition { partition, generation, job });
}

/// The oldest entries were read, or not.
pub fn looked(
    cx: &mut Cx,
    owner: &mut Owner,
    conversation: &mut Conversation,
    name: &str,
    outcome: Option<Outcome>,
) {
    conversation.trimming = false;
    let Some(Outcome::Entries { entries, .. }) = outcome else { return };
    let rule = rule(cx, name);
    let clocks_agree = cx.hub.clocks.agree(cx.now);
    if rule.age_ms > 0 && !clocks_agree {
        cx.hub.stats.trims_held += 1;
    }
    let oldest_ms = cx.now.wall_ms.saturating_sub(rule.age_ms);
    let (bytes, head) = (conversation.bytes, conversation.durable);
    let past = |entry: &crate::store::Entry| {
        let aged = rule.age_ms > 0 && clocks_agree && entry.message_id.wall_ms() < oldest_ms;
        let over = rule.bytes > 0 && bytes - entry.bytes.min(bytes) >= rule.bytes;
        entry.seq < head && (aged || over)
    };
    let gone = entries.iter().take_while(|entry| past(entry)).count();
    let Some(last) = gone.checked_sub(1).and_then(|at| entries.get(at)) else { return };
    let first_seq = last.seq + 1;
    // There may be more of them.
    if gone == entries.len() {
        conversation.trimmed_at = 0;
    }
    trim(cx, owner, conversation, name, first_seq);
}

fn trim(cx: &mut Cx, owner: &mut Owner, conversation: &mut Conversation, name: &str, first_seq: u64) {
    if !owner.has_room() || first_seq <= conversation.first_seq {
        return;
    }
    cx.hub.stats.trimmed += first_seq - conversation.first_seq;
    conversation.first_seq = first_seq;
    owner.push(Write::Trim { conversation: name.to_owned(), first_seq }, Effect::None);
    cx.hub.ready.push(owner.from.partition);
}

#[cfg(test)]
mod tests {
    use millrace_protocol::ids::Now;

    use super::*;

    #[test]
    fn a_clock_that_jumps_is_not_believed() {
        let mut clocks = Clocks::default();
        let at = |mono_s: u64, wall_s: u64| Now { mono_us: mono_s * 1_000_000, wall_ms: wall_s * 1_000 };
        assert!(clocks.agree(at(10, 1_000)));
        assert!(clocks.agree(at(3_610, 4_630)), "half a minute off in an hour");
        assert!(!clocks.agree(at(3_700, 90_000)), "a jump ahead");
        assert!(!clocks.agree(at(3_700, 1_000)), "a jump back");
        assert!(clocks.agree(at(3_800, 4_800)));
    }
}
