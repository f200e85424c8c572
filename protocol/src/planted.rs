//! Faults that can be planted into the production cores, so that the simulation proves that it would notice.
//!
//! Each breaks one rule of docs/ARCHITECTURE.md at the one place that keeps it: a core asks [`is`] there, and does the
//! wrong thing if so. At most one fault is planted at a time, in one thread. The rule that keeps it right: without the
//! feature `planted`, which only the simulation switches on, [`is`] is a constant `false`, and neither the questions nor
//! what follows them are in the binary.

macro_rules! faults {
    ($(#[doc = $what:literal] $fault:ident = $rule:literal,)*) => {
        /// What can be done wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Fault {
            $(#[doc = $what] $fault,)*
        }

        #[cfg(feature = "planted")]
        impl Fault {
            /// All of them, by rule.
            pub const ALL: &[Fault] = &[$(Fault::$fault,)*];

            /// The rule that it breaks.
            pub fn rule(self) -> u8 {
                match self {
                    $(Fault::$fault => $rule,)*
                }
            }

            /// What it does.
            pub fn what(self) -> &'static str {
                match self {
                    $(Fault::$fault => $what.trim_ascii(),)*
                }
            }
        }
    };
}

// Rules go by the numbers of the table in docs/results/planted-faults.md.
faults! {
    /// any number above the last is taken as new
    NumbersNotDense = 1,
    /// a device's streams are one: a reinstalled client gets old answers
    StreamIgnored = 1,
    /// another payload under the same number gets the first one's answer
    PayloadHashIgnored = 1,
    /// OUT_OF_ORDER names the number after the one that is due
    WrongExpected = 1,
    /// answers are kept in memory alone: a takeover loses them
    AnswersNotStored = 2,
    /// two answers of a stream are kept
    AnswersForgottenSoon = 2,
    /// the answer of a batch's last message is not written with it
    AnswersNotAtomic = 2,
    /// a claim takes over the epoch that is stored
    EpochNotRaised = 3,
    /// a claim's epoch is the wall clock, whatever is stored
    EpochWithoutStored = 3,
    /// a claim's epoch is the stored one and one more, whatever the wall clock says
    EpochWithoutClock = 3,
    /// the store takes an append under any fence
    FenceNotCompared = 3,
    /// the store reads and writes under a claim that another copy of it granted
    CopyNotCompared = 3,
    /// a cursor that is not in the log is taken for one that is
    TruncationNotTold = 3,
    /// a gateway takes another copy's log for the one that it knows, unless that is shorter
    OtherCopyGoesOn = 3,
    /// the client is cut back to where the server says, whatever entry it has there
    CutNotCompared = 3,
    /// the client forgets with its process which epochs a log went through
    EpochsForgotten = 3,
    /// the store takes an append at any position, also what its client sends again by itself
    PositionNotCompared = 4,
    /// an append without an answer counts as done
    UnknownTakenForDone = 4,
    /// after an append without an answer the owner goes on with what it has in memory
    UnknownTakenForFailed = 4,
    /// a new owner's message ids begin at its wall clock
    IdsFromTheClock = 5,
    /// a message is acknowledged as it enters its batch
    AckBeforeDurable = 6,
    /// a message is fanned out as it enters its batch
    FanOutBeforeDurable = 6,
    /// a shard that subscribes is told a head that is in a batch
    HeadBeforeDurable = 6,
    /// pages have what the store has, though its batch is not answered yet
    PageAboveDurable = 6,
    /// membership is judged without what is in the batch
    LeavingMaySend = 7,
    /// a direct conversation's first message does not wait for the users' lists
    DirectNotListed = 8,
    /// a session that catches up by pages gets live copies meanwhile
    LiveWhileSyncing = 9,
    /// a session listens again from a page that ends below the head
    PageShortOfHead = 9,
    /// a session that joins is sent what was under way before its head
    JoinedSeesThePast = 9,
    /// a new owner does not fan out again what its predecessor had not
    OutstandingIgnored = 10,
    /// what was handed to links counts as fanned out
    FannedOutEarly = 10,
    /// routes that were read once are used again instead of being read after the append
    RoutesFromMemory = 11,
    /// LoginAck goes out before the route is written
    RouteAfterLoginAck = 11,
    /// direct messages do not wait for the LoginAck
    SentBeforeLoginAck = 11,
    /// pages and heads are read without fence and lease
    PagesByAnybody = 12,
    /// a shard fans out whatever is above the last
    HoleNotFetched = 13,
    /// a removed member's sessions stay in the topic
    RemovedStays = 13,
    /// records of an earlier owner are taken in
    OldEpochsKept = 13,
    /// shards do not subscribe again at an announcement
    AnnouncementIgnored = 13,
    /// a claim is not announced
    ClaimNotAnnounced = 13,
    /// nothing asks for acknowledgements that do not come
    NoResyncClock = 14,
    /// only the first of several acknowledgements that do not come is asked for
    ResyncOnce = 14,
    /// what overflowed is skipped without a word
    OverflowWithoutGap = 15,
    /// what waited without credit leaves no mark in groups and rooms
    GapMarkLost = 15,
    /// what waited without credit leaves no mark in direct conversations
    DirectGapMarkLost = 15,
    /// the client shows what it has shown
    RepeatShown = 16,
    /// the client acknowledges and saves what the application has not taken
    AckBeforeTaken = 16,
    /// the client moves its cursor over a hole
    CursorOverHole = 16,
    /// the client does not look for what it missed when it logs in
    NoWalk = 16,
    /// cursors are merged by the last, not the maximum
    CursorsMergedByLast = 17,
    /// a lease is counted from its answer
    LeaseFromAnswer = 18,
    /// a node does not look at its lease before it acts
    LeaseNotChecked = 18,
    /// a claim succeeds though the owner lives
    LiveOwnerPreempted = 19,
    /// a partition is given up before its last batch is durable
    ReleasedTooEarly = 19,
    /// a gateway without a lease takes logins
    LoginWithoutLease = 20,
    /// a gateway's sessions are not registered again under its new incarnation
    NotRegisteredAgain = 20,
    /// the lowest login number wins
    LowestLoginWins = 21,
    /// a Close is sent once
    CloseNotRepeated = 21,
    /// a new owner does not close the sessions that its predecessor was to close
    LosersIgnored = 21,
    /// a route is removed without comparing login number and incarnation
    UnregisterUncompared = 21,
    /// a link goes on whatever the peer's incarnation is
    HelloNotBound = 22,
    /// requests that nobody will answer are forgotten
    UnansweredForgotten = 22,
    /// a link does not send again what was not acknowledged when it broke
    ResendSkipped = 22,
    /// what is meant for a slot's former session reaches its present one
    GenerationIgnored = 22,
    /// entries are trimmed by age whatever other clocks than the wall clock say
    AgeByAnyClock = 25,
    /// the store's clock is not looked at: wall clock and monotonic clock alone are compared
    StoreClockIgnored = 25,
    /// messages get the wall clock's time, however far it lies behind the others
    TimesFromTheWallClock = 25,
}

/// Whether the feature is on: binaries that are deployed assert that it is not.
pub const ON: bool = cfg!(feature = "planted");

#[cfg(feature = "planted")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Fault>> = const { std::cell::Cell::new(None) };
}

/// Plants a fault in this thread, in the place of the one that was there.
#[cfg(feature = "planted")]
pub fn plant(fault: Option<Fault>) {
    PLANTED.set(fault);
}

/// Whether this fault is planted.
#[cfg(feature = "planted")]
pub fn is(fault: Fault) -> bool {
    PLANTED.get() == Some(fault)
}

/// Whether this fault is planted: never.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn is(_: Fault) -> bool {
    false
}

#[cfg(all(test, not(feature = "planted")))]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_planted_without_the_feature() {
        const { assert!(!ON && !is(Fault::AckBeforeDurable)) }
    }
}
