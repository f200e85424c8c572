//! What the server says: the answers to requests, and what it tells by itself.

use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::response::Outcome;
use millrace_protocol::messages::client::{Cursor, Notify, Response, SendAck, notify};
use millrace_protocol::planted::{self, Fault};

use super::{Asker, For, Machine};
use crate::core::calls::Call;
use crate::core::event::Action;
use crate::core::link::LOGIN_ID;
use crate::error::{Reason, SendError};
use crate::event::Event as Notice;

impl Machine {
    pub(super) fn response(&mut self, response: Response) {
        let Response { id, outcome: Some(outcome) } = response else { return self.unsaid(response.id) };
        if id == LOGIN_ID {
            return match self.link.login(outcome, self.now_ms) {
                Ok(ack) => self.welcome(ack.session, ack.user),
                Err(reason) => self.lost(reason),
            };
        }
        let Some(purpose) = self.unanswered.remove(&id) else { return };
        let (told, now_ms) = (&mut self.told, self.now_ms);
        match (purpose, outcome) {
            (For::Message, outcome) => self.message_answered(id, outcome),
            (For::Call, outcome) => self.call_answered(id, outcome),
            (For::Sync, Outcome::SyncPage(page)) => self.inbox.page(id, page, told, now_ms),
            (For::Sync, Outcome::Refused(refused)) => self.inbox.refused(id, &refused, told, now_ms),
            (For::Walk, Outcome::ConversationPage(page)) if self.walk.knows(id) => self.walk.listed(page),
            (For::Walk, Outcome::Peeked(peeked)) if self.walk.knows(id) => {
                for standing in &peeked.standings {
                    let through = standing.peer_delivered.max(standing.peer_read);
                    self.fates.reached(&standing.conversation, through, told);
                }
                self.walk.peeked(peeked, &mut self.inbox, told, now_ms);
            }
            (For::Walk, Outcome::Refused(refused)) if self.walk.knows(id) => {
                self.walk.refused(&refused, now_ms);
            }
            (For::Replay, Outcome::SyncPage(page)) => drop(self.plain.replayed(id, Some(page), told)),
            (For::Replay, _) => drop(self.plain.replayed(id, None, told)),
            // No answer to what was asked. Its patience runs out.
            (For::Sync | For::Walk, _) => {}
        }
    }

    /// A newer server may answer what this client can't read.
    fn unsaid(&mut self, id: u64) {
        if self.unanswered.get(&id) == Some(&For::Message) {
            self.unanswered.remove(&id);
            let (now_ms, random) = (self.now_ms, self.random.next());
            let settled = self.outbox.unsaid(id, now_ms, random);
            settled.into_iter().for_each(|settled| self.settle_message(settled));
        }
    }

    fn welcome(&mut self, session: u64, user: String) {
        if !self.again {
            self.actions.push(Action::First(Ok(())));
        }
        let deadline_ms = self.now_ms + self.request_deadline_ms;
        let rooms = self.plain.connected(&user);
        let orders = self.standing_orders.values().filter(|_| self.again).cloned();
        for op in orders.chain(rooms) {
            // There is more room for calls than there are rooms; one that finds none is not joined again.
            if let Err(Asker::Again) = self.calls.push(op.clone(), deadline_ms, Asker::Again)
                && let Op::RoomJoin(join) = op
            {
                self.plain.lost(&join.room);
            }
        }
        self.inbox.connected(&user);
        self.fates.connected(&user);
        self.told.tell(Notice::Connected { session, user, again: self.again });
        if self.link.acknowledges() && !planted::is(Fault::NoWalk) {
            self.walk.start(&self.inbox);
        }
        (self.again, self.caught_up) = (true, false);
    }

    fn message_answered(&mut self, id: u64, outcome: Outcome) {
        let (now_ms, random) = (self.now_ms, self.random.next());
        let settled = match outcome {
            Outcome::SendAck(ack) => return self.acknowledged(id, ack),
            Outcome::Refused(refused) => self.outbox.refused(id, &refused, now_ms, random),
            _ => self.outbox.unsaid(id, now_ms, random),
        };
        settled.into_iter().for_each(|settled| self.settle_message(settled));
    }

    fn acknowledged(&mut self, id: u64, ack: SendAck) {
        let Some(conversation) = self.outbox.conversation_of(id).map(str::to_owned) else { return };
        self.own_stored(&conversation, &ack);
        for (sending, outcome) in self.outbox.acknowledged(id, ack) {
            let within_ms = sending.fate_within_ms;
            if let Ok(ack) = &outcome
                && within_ms > 0
            {
                self.fates.asked(&conversation, ack.seq, within_ms, self.now_ms, &mut self.told);
            }
            self.settle_message((sending, outcome));
        }
        if !self.outbox.asks_fate(&conversation) {
            self.fates.forget_early(&conversation);
        }
    }

    fn own_stored(&mut self, conversation: &str, ack: &SendAck) {
        if self.has_cursor(conversation) {
            self.inbox.own(conversation, Cursor { epoch: ack.epoch, seq: ack.seq }, self.now_ms);
        } else {
            self.plain.own(conversation, ack.epoch, ack.seq);
        }
    }

    fn call_answered(&mut self, id: u64, outcome: Outcome) {
        self.calls_in_flight = self.calls_in_flight.saturating_sub(1);
        let now_ms = self.now_ms;
        if let Outcome::Refused(refused) = &outcome {
            if let Some(call) = self.calls.refused(id, refused, now_ms) {
                self.call_failed(call, SendError::from(refused));
            }
            return;
        }
        let Some(call) = self.calls.answered(id) else { return };
        let keeps = self.link.acknowledges();
        match (&call.op, &outcome) {
            (Op::RoomJoin(join), Outcome::Joined(joined)) => {
                self.plain.joined(&join.room, joined);
                if let Asker::Again = call.done {
                    let conversation = joined.conversation.clone();
                    self.told.tell(Notice::Head { conversation, epoch: joined.epoch, seq: joined.head });
                }
            }
            (Op::GroupJoin(_) | Op::GroupCreate(_), Outcome::Joined(joined)) if keeps => {
                let head = Cursor { epoch: joined.epoch, seq: joined.head };
                self.walk.attached(&joined.conversation);
                self.inbox.joined(&joined.conversation, head, now_ms);
            }
            (Op::GroupLeave(_), Outcome::Left(left)) => self.inbox.forget(&left.conversation),
            (Op::PresenceSubscribe(_), Outcome::PresencePage(page)) => {
                if let Asker::Again = call.done {
                    page.users.iter().for_each(|event| self.told.tell(Notice::Presence(event.clone())));
                }
            }
            _ => {}
        }
        self.finish(call.done, Ok(outcome));
    }

    /// A call will not succeed.
    pub(super) fn call_failed(&mut self, call: Call<Asker>, error: SendError) {
        if let (Asker::Again, Op::RoomJoin(join)) = (&call.done, &call.op) {
            self.plain.lost(&join.room);
            self.told.tell(Notice::Removed { conversation: format!("r:{}", join.room) });
        }
        self.finish(call.done, Err(error));
    }

    pub(super) fn finish(&mut self, asker: Asker, outcome: Result<Outcome, SendError>) {
        match asker {
            Asker::Application(key) => self.settle(key, outcome),
            Asker::Logout(key) => {
                // Answered or not: the client ends, which is what was asked for.
                self.settle(key, Ok(Outcome::LoggedOut(Default::default())));
                self.end(Reason::Left);
            }
            Asker::Again => {}
        }
    }

    pub(super) fn notify(&mut self, notify: Notify) {
        let (told, now_ms) = (&mut self.told, self.now_ms);
        let keeps = self.link.acknowledges();
        match notify.event {
            Some(notify::Event::GoAway(away)) => self.link.go_away(away),
            // No gateway does. It would be of no session of ours.
            _ if !self.link.is_up() => {}
            Some(notify::Event::Deliver(deliver)) => {
                if self.has_cursor(&deliver.conversation) {
                    self.inbox.deliver(deliver, &mut self.told, now_ms);
                } else {
                    self.plain.deliver(deliver, &mut self.told);
                }
            }
            Some(notify::Event::Head(head)) => {
                self.walk.attached(&head.conversation);
                let at = Cursor { epoch: head.epoch, seq: head.seq };
                if self.has_cursor(&head.conversation) {
                    self.inbox.head(&head.conversation, at, now_ms);
                }
                let conversation = head.conversation;
                self.told.tell(Notice::Head { conversation, epoch: at.epoch, seq: at.seq });
            }
            Some(notify::Event::Gap(gap)) => {
                if self.has_cursor(&gap.conversation) {
                    self.inbox.resync(&gap.conversation, now_ms);
                } else {
                    let (conversation, from, to) = (gap.conversation, gap.from, gap.to);
                    self.told.tell(Notice::Gap { conversation, from, to });
                }
            }
            Some(notify::Event::Removed(removed)) => {
                self.inbox.forget(&removed.conversation);
                told.tell(Notice::Removed { conversation: removed.conversation });
            }
            Some(notify::Event::Truncated(truncated)) => {
                let to = truncated.to.unwrap_or_default();
                if self.has_cursor(&truncated.conversation) {
                    self.inbox.truncated(&truncated.conversation, to);
                } else {
                    let conversation = truncated.conversation;
                    self.told.tell(Notice::Truncated { conversation, to });
                }
            }
            // No name: it may be any direct conversation, so all are looked at, as after a login.
            Some(notify::Event::Resync(resync)) if keeps && resync.conversations.is_empty() => {
                self.walk.again(&self.inbox);
            }
            Some(notify::Event::Resync(resync)) if keeps => {
                resync.conversations.iter().for_each(|name| self.inbox.resync(name, now_ms));
            }
            Some(notify::Event::Resync(_)) | None => {}
            Some(notify::Event::Receipt(receipt)) => {
                let through = receipt.delivered.max(receipt.read);
                self.fates.receipt(&receipt.conversation, &receipt.user, through, told);
                told.tell(Notice::Receipt(receipt));
            }
            Some(notify::Event::GroupReceipt(receipt)) => told.tell(Notice::GroupReceipt(receipt)),
            Some(notify::Event::Typing(typing)) => told.tell(Notice::Typing(typing)),
            Some(notify::Event::Presence(presence)) => told.tell(Notice::Presence(presence)),
            Some(notify::Event::Friend(friend)) => told.tell(Notice::Friend(friend)),
            Some(notify::Event::Fate(fate)) => {
                let may_be_early = self.outbox.asks_fate(&fate.conversation);
                self.fates.heard(fate, may_be_early, told);
            }
            Some(notify::Event::ConversationChanged(changed)) => {
                told.tell(Notice::ConversationChanged(changed.item.unwrap_or_default()));
            }
            Some(notify::Event::GroupAsked(asked)) => told.tell(Notice::GroupAsked(asked)),
        }
    }
}
