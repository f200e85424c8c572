//! What tests of the judges share: a group, and what bob says in it.

use millrace_dispatcher::store::{Batch, Entry, Fence, Write};
use millrace_protocol::ids::MessageId;
use millrace_protocol::messages::client::{Action, Deliver, Notify, notify};
use millrace_protocol::prost::Message;

use crate::agenda::{Seat, Who};
use crate::ledger::Ledger;

/// The group.
pub(crate) const GROUP: &str = "g:tea";

/// A message of bob's, by epoch, seq and id.
pub(crate) fn deliver((epoch, seq, message_id): (u64, u64, u64)) -> Deliver {
    let [conversation, sender, sender_device] = [GROUP, "bob", "phone"].map(str::to_owned);
    Deliver { conversation, seq, message_id, sender, sender_device, epoch, ..Deliver::default() }
}

/// The same as it is stored.
pub(crate) fn entry((epoch, seq, id): (u64, u64, u64)) -> Entry {
    let body = Notify { event: Some(notify::Event::Deliver(deliver((epoch, seq, id)))) };
    Entry {
        conversation: GROUP.into(),
        seq,
        message_id: MessageId(id),
        epoch,
        action: Action::Message as u8,
        messages: seq,
        bytes: seq,
        sender: "bob".into(),
        device: "phone".into(),
        stream: 0,
        client_seq: 0,
        payload_hash: 0,
        notify: body.encode_to_vec().into(),
    }
}

/// These become members of the group.
pub(crate) fn members(add: &[&str], version: u64) -> Write {
    let add = add.iter().map(|user| (*user).to_owned()).collect();
    Write::Members { conversation: GROUP.into(), add, remove: Vec::new(), version }
}

/// The store accepts this under the next claim.
pub(crate) fn append(ledger: &mut Ledger, epoch: u64, writes: Vec<Write>) {
    append_at(ledger, 0, epoch, writes);
}

/// The same at a time of the world, us.
pub(crate) fn append_at(ledger: &mut Ledger, now_us: u64, epoch: u64, writes: Vec<Write>) {
    let seat = Seat { who: Who::Node(0), life: 1, thread: 0 };
    ledger.claimed(now_us, seat, 0, epoch);
    let fence = Fence { epoch, nonce: epoch };
    let (outstanding, fanned_out) = (Vec::new(), 0);
    let batch = Batch { partition: 0, fence, position: 1, writes, outstanding, fanned_out };
    ledger.appended(now_us, seat, &batch);
}
