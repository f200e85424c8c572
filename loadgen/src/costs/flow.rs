//! Direct messages and messages to groups, as fast as they are acknowledged: each sender keeps its window full, and each
//! listener acknowledges what came once a second, as clients do.
//!
//! The rule: everybody listens before the first message, figures are of the measured time alone, and at the end every
//! message must have reached every listener once.

use std::mem;

use hdrhistogram::Histogram;
use millrace_protocol::client_session::op;
use millrace_protocol::messages::client::Cursor;
use millrace_protocol::messages::client::notify::Event as Told;
use millrace_protocol::messages::client::response::Outcome;

use super::desk::{Desk, Part};
use super::fleet::{Counters, Fleet};
use super::line::{Arrival, Heard, Who, said};
use super::report::{Counted, Cpu, Deliveries};
use super::sender::Sender;
use super::window::{Arrivals, Window};
use crate::measure::histogram;
use crate::rig::RunError;

/// Listeners acknowledge so often, in us: a message that is not acknowledged within 4 s is asked for.
const ACKNOWLEDGE_US: u64 = 1_000_000;

/// Stragglers have so long after the last answer, in us, and a message that comes twice so long after the last.
const DRAIN_US: u64 = 10_000_000;
const QUIET_US: u64 = 200_000;

/// The id of a request for a group.
const FOUND_ID: u64 = u64::MAX - 1;

/// A conversation: who sends, who is online, and who is a member besides.
#[derive(Debug)]
pub(super) struct Talk {
    pub(super) conversation: String,
    /// Name of the group that the sender makes; `None`: a direct conversation.
    pub(super) group: Option<String>,
    pub(super) sender: Who,
    pub(super) listeners: Vec<Who>,
    /// All members of the group but the sender.
    pub(super) members: Vec<String>,
}

/// How messages are sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub(super) run: u32,
    pub(super) window: usize,
    pub(super) payload_bytes: usize,
    pub(super) warm_up_us: u64,
    pub(super) measured_us: u64,
}

#[derive(Debug)]
struct Listener {
    talk: usize,
    line: usize,
    is_listening: bool,
    arrivals: Arrivals,
    cursor: Cursor,
    acknowledged_seq: u64,
    acknowledge_us: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Senders log in, and make their groups.
    Founding,
    /// Listeners log in.
    Arriving,
    WarmingUp,
    Measuring,
    /// No new messages.
    Draining,
    Over,
}

/// The part.
pub(super) struct Flow {
    pace: Pace,
    talks: Vec<Talk>,
    /// By talk, which is also the sender's line.
    senders: Vec<Sender>,
    listeners: Vec<Listener>,
    phase: Phase,
    /// When the phase ends, at the latest.
    until_us: u64,
    founded: usize,
    begun: (u64, Cpu, Counters),
    ended: (u64, Cpu, Counters),
    acknowledged: u64,
    ack_us: Histogram<u64>,
    gaps: u64,
}

impl Flow {
    /// The desk is its own, from the first client on.
    pub(super) fn new(desk: &mut Desk, talks: Vec<Talk>, pace: Pace) -> Self {
        let senders = talks.iter().enumerate().map(|(number, talk)| {
            desk.add(talk.sender.clone());
            let window = Window::new(pace.window, u32::MAX.into());
            Sender::new(talk.conversation.clone(), pace.run, number, pace.payload_bytes, window)
        });
        Flow {
            pace,
            senders: senders.collect(),
            talks,
            listeners: Vec::new(),
            phase: Phase::Founding,
            until_us: 0,
            founded: 0,
            begun: Default::default(),
            ended: Default::default(),
            acknowledged: 0,
            ack_us: histogram(),
            gaps: 0,
        }
    }

    /// What was counted, once it is over.
    pub(super) fn finish(self) -> Counted {
        let (begun_us, cpu_before, before) = self.begun;
        let (ended_us, cpu, after) = self.ended;
        let came = self.listeners.iter().map(|listener| listener.arrivals.count()).sum();
        let sent = |listener: &Listener| self.senders[listener.talk].window.sent();
        Counted {
            acknowledged: self.acknowledged,
            took_us: ended_us - begun_us,
            ack_us: self.ack_us,
            cpu: cpu.since(cpu_before),
            before,
            after,
            deliveries: Deliveries {
                expected: self.listeners.iter().map(sent).sum(),
                came,
                repeated: self.listeners.iter().map(|listener| listener.arrivals.repeats).sum(),
                gaps: self.gaps,
                unanswered: self.senders.iter().map(|sender| sender.window.unanswered()).sum(),
            },
        }
    }

    fn add_listeners(&mut self, desk: &mut Desk, now_us: u64) {
        let all: Vec<(usize, Who)> = (self.talks.iter_mut().enumerate())
            .flat_map(|(talk, of)| mem::take(&mut of.listeners).into_iter().map(move |who| (talk, who)))
            .collect();
        let count = all.len() as u64;
        for (nth, (talk, who)) in all.into_iter().enumerate() {
            self.listeners.push(Listener {
                talk,
                line: desk.add(who),
                is_listening: false,
                arrivals: Arrivals::default(),
                cursor: Cursor::default(),
                acknowledged_seq: 0,
                // Spread, as those of people are.
                acknowledge_us: now_us + ACKNOWLEDGE_US * nth as u64 / count.max(1),
            });
        }
    }

    fn listener(&mut self, line: usize) -> Option<&mut Listener> {
        self.listeners.get_mut(line.checked_sub(self.senders.len())?)
    }

    fn arrived(&mut self, line: usize, arrival: Arrival) -> Result<(), String> {
        let Arrival { header, cursor } = arrival;
        // Entries about changes of groups are none of ours.
        if header.run != self.pace.run {
            return Ok(());
        }
        let listener = self.listener(line).ok_or("a sender was sent a message")?;
        if header.conversation as usize != listener.talk {
            return Err(format!("a message of another conversation came: {header:?}"));
        }
        listener.arrivals.take(header.message.into());
        // What came early is acknowledged with what was missing before it.
        if u64::from(header.message) <= listener.arrivals.whole && cursor.seq > listener.cursor.seq {
            listener.cursor = cursor;
        }
        Ok(())
    }

    fn acknowledge(&mut self, desk: &mut Desk, now_us: u64) {
        for listener in self.listeners.iter_mut().filter(|listener| listener.acknowledge_us <= now_us) {
            listener.acknowledge_us = now_us + ACKNOWLEDGE_US;
            if listener.cursor.seq > listener.acknowledged_seq {
                listener.acknowledged_seq = listener.cursor.seq;
                let conversation = &self.talks[listener.talk].conversation;
                desk.say(listener.line).acknowledge(conversation, listener.cursor);
            }
        }
    }

    fn has_all(&self) -> bool {
        let has_all =
            |listener: &Listener| listener.arrivals.whole >= self.senders[listener.talk].window.sent();
        self.listeners.iter().all(has_all)
    }

    fn told(&mut self, line: usize, told: &Told) -> Result<(), String> {
        match told {
            Told::Head(_) => {
                if let Some(listener) = self.listener(line) {
                    listener.is_listening = true;
                }
            }
            Told::Gap(_) => self.gaps += 1,
            // It may also be that we are late.
            Told::Resync(_) => {
                if let Some(listener) = self.listener(line) {
                    (listener.acknowledge_us, listener.acknowledged_seq) = (0, 0);
                }
            }
            Told::Truncated(_) | Told::Removed(_) => return Err(format!("told {told:?}")),
            _ => {}
        }
        Ok(())
    }
}

impl Part for Flow {
    fn heard(&mut self, desk: &mut Desk, now_us: u64, line: usize, heard: Heard) -> Result<(), String> {
        match heard {
            Heard::Message(arrival) => return self.arrived(line, arrival),
            Heard::Told(told) => return self.told(line, &told),
            Heard::In => match self.talks.get(line).map(|talk| (&talk.group, &talk.members)) {
                Some((Some(group), members)) => {
                    desk.say(line).ask(FOUND_ID, op::group_create(group, members.iter().cloned()));
                }
                Some((None, _)) => self.founded += 1,
                // Groups listen with their Head.
                None => {
                    let talks = &self.talks;
                    let nth = line - talks.len();
                    if let Some(listener) = self.listeners.get_mut(nth) {
                        listener.is_listening |= talks[listener.talk].group.is_none();
                    }
                }
            },
            Heard::Answer(FOUND_ID, Outcome::Joined(_)) => self.founded += 1,
            Heard::Answer(FOUND_ID, outcome) => return Err(format!("a group was {}", said(Some(&outcome)))),
            Heard::Answer(number, outcome) => {
                let Some(sender) = self.senders.get_mut(line) else { return Ok(()) };
                let sent_us = sender.answered(now_us, number, &outcome)?;
                if let Some(sent_us) = sent_us.filter(|_| self.phase == Phase::Measuring) {
                    self.acknowledged += 1;
                    self.ack_us.saturating_record(now_us - sent_us);
                }
            }
        }
        Ok(())
    }

    fn turn(&mut self, desk: &mut Desk, fleet: &Fleet, now_us: u64) -> Result<(), RunError> {
        match self.phase {
            Phase::Founding if self.founded == self.senders.len() => {
                self.add_listeners(desk, now_us);
                self.phase = Phase::Arriving;
            }
            Phase::Arriving if self.listeners.iter().all(|listener| listener.is_listening) => {
                (self.phase, self.until_us) = (Phase::WarmingUp, now_us + self.pace.warm_up_us);
            }
            Phase::WarmingUp if now_us >= self.until_us => {
                let (counters, cpu) = (fleet.counters()?, fleet.cpu()?);
                self.begun = (now_us, cpu, counters);
                (self.phase, self.until_us) = (Phase::Measuring, now_us + self.pace.measured_us);
            }
            Phase::Measuring if now_us >= self.until_us => {
                let cpu = fleet.cpu()?;
                self.ended = (now_us, cpu, fleet.counters()?);
                self.senders.iter_mut().for_each(|sender| sender.window.stop());
                (self.phase, self.until_us) = (Phase::Draining, now_us + DRAIN_US);
            }
            Phase::Draining if now_us >= self.until_us => self.phase = Phase::Over,
            Phase::Draining
                if self.senders.iter().all(|sender| sender.window.is_done()) && self.has_all() =>
            {
                self.until_us = self.until_us.min(now_us + QUIET_US);
            }
            _ => {}
        }
        if matches!(self.phase, Phase::WarmingUp | Phase::Measuring | Phase::Draining) {
            for (line, sender) in self.senders.iter_mut().enumerate() {
                sender.send(desk, line, now_us);
            }
            self.acknowledge(desk, now_us);
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.phase == Phase::Over
    }

    fn state(&self) -> String {
        let listening = self.listeners.iter().filter(|listener| listener.is_listening).count();
        format!(
            "{:?}, {} of {} senders and {listening} of {} listeners are there",
            self.phase,
            self.founded,
            self.senders.len(),
            self.listeners.len()
        )
    }
}
