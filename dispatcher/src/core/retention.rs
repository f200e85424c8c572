//! How much of a conversation's log is kept: by count, age and bytes.
//!
//! By count it is trimmed as it grows. By age and bytes its oldest entries must be looked at, which is done when it is
//! loaded and now and then as it grows; a conversation that nobody uses is trimmed when it is used again. The rules that
//! keep it right: the newest entry always stays; and while the clocks disagree about what time it is ([`super::clocks`])
//! nothing is trimmed by age, as a clock that is ahead would empty every log.

use millrace_protocol::conversation::Conversation as Id;

use super::batch::{Effect, Owner};
use super::conversation::Conversation;
use super::hub::{Cx, PartitionJob, Pending};
use super::limits::{Retention, TRIM_SLACK, TRIM_STEP};
use crate::store::{Outcome, Work, Write};

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
    let agreed_ms = cx.hub.clocks.agreed_ms(cx.now);
    if rule.age_ms > 0 && agreed_ms.is_none() {
        cx.hub.stats.trims_held += 1;
    }
    // Ids have the time as it was given, which is not far behind any clock of its owner.
    let oldest_ms = agreed_ms.map_or(0, |now_ms| now_ms.saturating_sub(rule.age_ms));
    let (bytes, head) = (conversation.bytes, conversation.durable);
    let past = |entry: &crate::store::Entry| {
        let aged = rule.age_ms > 0 && entry.message_id.wall_ms() < oldest_ms;
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
