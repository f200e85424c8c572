//! What senders are answered, judged as each answer arrives: against the log as it was when they asked, and as it is now.
//!
//! | answer | it is right if |
//! |---|---|
//! | SendAck | the log has this payload there, from this device |
//! | OUT_OF_ORDER | the number was not stored before it was asked for, and what is due is above all that were |
//! | CONFLICT | another payload was sent under this number |
//!
//! What a client makes of an answer is another matter: the SDK gives a message up rather than send it twice, and a wrong
//! refusal would pass for a right one. Refusals are not judged where the store lost something.

use std::collections::BTreeMap;

use bytes::Bytes;
use millrace_protocol::messages::client::response::Outcome;
use millrace_protocol::messages::client::{Code, Refused, Send, SendAck};

use crate::ledger::{Invariant, Ledger};

/// The repeats of a stream that a server must know: the same number as in the store's promise.
const ANSWERS_KEPT: u64 = 64;

/// A number of a stream: conversation, user, device, stream, client_seq.
pub type Number = (String, String, String, u64, u64);

/// A Send that waits for its answer.
#[derive(Clone, Debug)]
pub struct Asked {
    number: Number,
    payload: Bytes,
    /// The last number of its stream that was stored when it was asked.
    stored: u64,
}

/// The payloads that were sent under each number: one, unless a client broke its promise.
pub type Given = BTreeMap<Number, Vec<Bytes>>;

impl Ledger {
    /// A device sends this now.
    pub fn asks(&mut self, of: (&str, &str), send: &Send) -> Asked {
        let (user, device) = (of.0.to_owned(), of.1.to_owned());
        let number = (send.conversation.clone(), user, device, send.stream, send.client_seq);
        let given = self.given.entry(number.clone()).or_default();
        if !given.contains(&send.payload) {
            given.push(send.payload.clone());
        }
        let stored = self.last_number(&number);
        Asked { number, payload: send.payload.clone(), stored }
    }

    /// The last number that is stored of the same stream.
    pub(crate) fn last_number(&self, number: &Number) -> u64 {
        let (conversation, user, device, stream, _) = number.clone();
        let first = (conversation, user, device, stream, 0);
        let last = (first.0.clone(), first.1.clone(), first.2.clone(), stream, u64::MAX);
        self.keys.range(first..=last).next_back().map_or(0, |((.., client_seq), _)| *client_seq)
    }

    /// The answer arrives.
    pub fn answers(&mut self, now_us: u64, asked: &Asked, outcome: &Outcome) {
        let wrong = match outcome {
            Outcome::SendAck(ack) => self.wrong_ack(asked, ack),
            Outcome::Refused(refused) if !self.has_lost => self.wrong_refusal(asked, refused),
            _ => None,
        };
        if let Some((invariant, why)) = wrong {
            let detail = format!("{:?} is answered {outcome:?}: {why}", asked.number);
            self.broken(invariant, now_us, detail);
        }
    }

    fn wrong_ack(&self, asked: &Asked, ack: &SendAck) -> Option<(Invariant, String)> {
        if self.lost.contains(&ack.message_id) {
            return None;
        }
        let kept = self.logs.get(&asked.number.0).and_then(|log| log.get(&ack.seq));
        let same = kept.is_some_and(|kept| {
            (kept.deliver.message_id, kept.deliver.epoch) == (ack.message_id, ack.epoch)
                && (&kept.deliver.sender, &kept.deliver.sender_device) == (&asked.number.1, &asked.number.2)
                && kept.deliver.payload == asked.payload
        });
        (!same).then(|| (Invariant::AckedIsStored, format!("there is {kept:?}")))
    }

    fn wrong_refusal(&self, asked: &Asked, refused: &Refused) -> Option<(Invariant, String)> {
        let client_seq = asked.number.4;
        let why = match refused.code() {
            Code::OutOfOrder
                if client_seq <= asked.stored
                    && client_seq + ANSWERS_KEPT > self.last_number(&asked.number) =>
            {
                "it was stored before, and has its answer".to_owned()
            }
            Code::OutOfOrder if refused.expected <= asked.stored => {
                format!("{} were stored before", asked.stored)
            }
            Code::Conflict if self.given.get(&asked.number).is_none_or(|given| given.len() < 2) => {
                "nothing else was sent under this number".to_owned()
            }
            _ => return None,
        };
        Some((Invariant::RepeatsAnswered, why))
    }
}
