//! The session cases of docs/PROTOCOL.md, each over framed TCP and over WebSocket, on real processes: two gateways, a
//! dispatcher, a Redis. They are those that XMPP stream management is tested by, with the outcomes that cursors give.

use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use millrace_protocol::client_session::{ClientSession, ServerFrame, decode_notify, decode_response, op};
use millrace_protocol::conversation::direct;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::response::Outcome;
use millrace_protocol::messages::client::{
    Code, Cursor, Deliver, DeliverAck, Login, LoginAck, Peek, PeekItem, Send, Sync, SyncPage, notify,
};
use millrace_protocol::received::{Limits, Received};
use millrace_tests::{Fleet, Shape};

/// The gateways' tickets last this long, s.
const TICKET_S: u64 = 3;
/// Nothing asked for takes longer.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// Long enough for what should not come.
const SILENCE: Duration = Duration::from_millis(700);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Wire {
    Tcp,
    WebSocket,
}

/// One connection, read when something is waited for.
struct Peer {
    stream: TcpStream,
    session: ClientSession,
    is_open: bool,
    answers: BTreeMap<u64, Outcome>,
    /// Refusals of what asked for no answer.
    refused: Vec<Code>,
    told: VecDeque<notify::Event>,
    ended: Option<Code>,
    last_id: u64,
}

impl Peer {
    fn connect(wire: Wire, address: &str) -> Peer {
        let stream = TcpStream::connect(address).expect("the gateway accepts");
        stream.set_nodelay(true).expect("an option");
        stream.set_read_timeout(Some(Duration::from_millis(20))).expect("an option");
        let (session, upgrade) = match wire {
            Wire::Tcp => (ClientSession::tcp(), Vec::new()),
            Wire::WebSocket => ClientSession::websocket(address, "/", [9; 16]),
        };
        let mut peer = Peer {
            stream,
            session,
            is_open: wire == Wire::Tcp,
            answers: BTreeMap::new(),
            refused: Vec::new(),
            told: VecDeque::new(),
            ended: None,
            last_id: 0,
        };
        peer.stream.write_all(&upgrade).expect("it reads");
        peer.wait("the upgrade", |peer| peer.is_open.then_some(()));
        peer
    }

    /// Reads what is there.
    fn read(&mut self) {
        let mut bytes = [0; 16 << 10];
        let size = match self.stream.read(&mut bytes) {
            Ok(0) => return self.ended = self.ended.or(Some(Code::None)),
            Ok(size) => size,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return,
            Err(_) => return self.ended = self.ended.or(Some(Code::None)),
        };
        let mut input = Received::new(&mut bytes[..size]);
        while let Some(frame) = self.session.next(&mut input, &Limits::default()).expect("a proper frame") {
            match frame {
                ServerFrame::Response(body) => {
                    let answer = decode_response(body).expect("a response");
                    match answer.outcome.expect("an outcome") {
                        Outcome::Refused(refused) if answer.id == 0 => self.refused.push(refused.code()),
                        outcome => drop(self.answers.insert(answer.id, outcome)),
                    }
                }
                ServerFrame::Notify(body) => match decode_notify(body).expect("a notify").event {
                    Some(notify::Event::GoAway(away)) => self.ended = Some(away.code()),
                    Some(event) => self.told.push_back(event),
                    None => {}
                },
                ServerFrame::Open => self.is_open = true,
                _ => {}
            }
        }
    }

    fn wait<T>(&mut self, what: &str, mut is_there: impl FnMut(&mut Peer) -> Option<T>) -> T {
        let end = Instant::now() + ANSWER_WITHIN;
        loop {
            if let Some(value) = is_there(self) {
                return value;
            }
            assert!(Instant::now() < end, "{what} did not come; {:?} {:?}", self.ended, self.told);
            self.read();
        }
    }

    /// Several requests in one write. Their ids.
    fn say(&mut self, ops: Vec<Op>) -> Vec<u64> {
        let mut out = Vec::new();
        let mut ids = Vec::new();
        for op in ops {
            self.last_id += 1;
            self.session.request(self.last_id, op, &mut out);
            ids.push(self.last_id);
        }
        self.stream.write_all(&out).expect("it reads");
        ids
    }

    fn answer(&mut self, id: u64) -> Outcome {
        self.wait("an answer", |peer| peer.answers.remove(&id))
    }

    fn ask(&mut self, op: Op) -> Outcome {
        let id = self.say(vec![op])[0];
        self.answer(id)
    }

    /// Asks for no answer.
    fn mention(&mut self, op: Op) {
        let mut out = Vec::new();
        self.session.request(0, op, &mut out);
        self.stream.write_all(&out).expect("it reads");
    }

    fn login(&mut self, login: Login) -> LoginAck {
        match self.ask(Op::Login(login)) {
            Outcome::LoginAck(ack) => ack,
            other => panic!("no login: {other:?}"),
        }
    }

    /// Why the gateway ended it.
    fn end(&mut self) -> Code {
        self.wait("the end", |peer| peer.ended)
    }

    fn hear_message(&mut self) -> Deliver {
        self.wait("a message", |peer| {
            while let Some(event) = peer.told.pop_front() {
                if let notify::Event::Deliver(deliver) = event {
                    return Some(deliver);
                }
            }
            None
        })
    }

    /// Whatever came meanwhile.
    fn listen(&mut self, time: Duration) -> Vec<notify::Event> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.read();
        }
        self.told.drain(..).collect()
    }

    fn sync(&mut self, conversation: &str, after: Option<Cursor>) -> SyncPage {
        let ask = Sync { conversation: conversation.to_owned(), after, limit: 0 };
        let end = Instant::now() + ANSWER_WITHIN;
        loop {
            match self.ask(Op::Sync(ask.clone())) {
                Outcome::SyncPage(page) => return page,
                Outcome::Refused(refused) if refused.retry_after_ms > 0 && Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(refused.retry_after_ms.into()));
                }
                other => panic!("no page of {conversation}: {other:?}"),
            }
        }
    }
}

/// Two users, of whom the first says and the second hears.
struct Pair<'a> {
    fleet: &'a Fleet,
    wire: Wire,
    users: [String; 2],
    conversation: String,
    speaker: Peer,
    said: u64,
}

impl<'a> Pair<'a> {
    fn new(fleet: &'a Fleet, wire: Wire, case: &str) -> Pair<'a> {
        let users = ["ann", "bob"].map(|name| format!("{name}.{case}.{wire:?}"));
        let mut speaker = Peer::connect(wire, &fleet.address(0));
        speaker.login(login(&fleet.token(&users[0]), false));
        let conversation = direct(&users[0], &users[1]);
        Pair { fleet, wire, users, conversation, speaker, said: 0 }
    }

    /// Says so many messages of so many bytes; they are acknowledged.
    fn say(&mut self, count: u64, bytes: usize) {
        let mut left = count;
        while left > 0 {
            let few = left.min(32);
            let messages = (self.said + 1..=self.said + few).map(|client_seq| {
                let send = Send {
                    conversation: self.conversation.clone(),
                    client_seq,
                    stream: 5,
                    payload: vec![b'x'; bytes].into(),
                    ..Send::default()
                };
                Op::Send(send)
            });
            for id in self.speaker.say(messages.collect()) {
                let outcome = self.speaker.answer(id);
                assert!(matches!(outcome, Outcome::SendAck(_)), "{outcome:?}");
            }
            self.said += few;
            left -= few;
        }
    }

    fn token(&self) -> String {
        self.fleet.token(&self.users[1])
    }

    fn listener_at(&self, gateway: usize, login: Login) -> (Peer, LoginAck) {
        let mut peer = Peer::connect(self.wire, &self.fleet.address(gateway));
        let ack = peer.login(login);
        (peer, ack)
    }

    /// One that acknowledges and has everything so far.
    fn listener(&self) -> (Peer, LoginAck, Cursor) {
        let (mut peer, ack) = self.listener_at(0, login(&self.token(), true));
        let page = peer.sync(&self.conversation, None);
        assert!(!page.more);
        let cursor = Cursor { epoch: page.epoch, seq: page.head };
        peer.mention(ack_of(&self.conversation, cursor));
        (peer, ack, cursor)
    }
}

fn login(token: &str, acknowledges: bool) -> Login {
    Login {
        token: token.to_owned(),
        device: "phone".to_owned(),
        platform: "ios".to_owned(),
        acknowledges,
        ..Login::default()
    }
}

fn resume(ticket: &LoginAck) -> Login {
    Login { token: String::new(), resume_ticket: ticket.resume_ticket.clone(), ..login("", true) }
}

fn ack_of(conversation: &str, cursor: Cursor) -> Op {
    Op::DeliverAck(DeliverAck { conversation: conversation.to_owned(), cursor: Some(cursor) })
}

fn deliveries(page: &SyncPage) -> Vec<Deliver> {
    let deliver = |entry: &millrace_protocol::messages::client::Notify| match &entry.event {
        Some(notify::Event::Deliver(deliver)) => deliver.clone(),
        other => panic!("a page holds {other:?}"),
    };
    page.entries.iter().map(deliver).collect()
}

fn seqs(page: &SyncPage) -> Vec<u64> {
    deliveries(page).iter().map(|deliver| deliver.seq).collect()
}

fn both_wires(case: &str, check: impl Fn(Wire, &str)) {
    for wire in [Wire::Tcp, Wire::WebSocket] {
        println!("{case} over {wire:?}");
        check(wire, case);
    }
}

fn fleet() -> Fleet {
    let lifetime = TICKET_S.to_string();
    Fleet::start(Shape { gateway_args: &["--auth-ticket-lifetime-s", &lifetime], ..Shape::default() })
}

#[test]
fn acknowledgements_that_are_wrong_move_nothing() {
    let fleet = fleet();
    both_wires("acks", |wire, case| {
        let mut pair = Pair::new(&fleet, wire, case);
        pair.say(5, 10);
        let (mut peer, _, cursor) = pair.listener();
        let name = pair.conversation.clone();
        assert_eq!(cursor.seq, 5);
        // What the server keeps, asked as a device that knows nothing.
        let kept = |peer: &mut Peer| {
            let page = peer.sync(&pair.conversation, None);
            page.entries.first().map_or(page.head, |_| seqs(&page)[0] - 1)
        };
        // Gateways gather them for a moment.
        peer.wait("the acknowledgement", |peer| (kept(peer) == 5).then_some(()));

        let bad_request = |outcome: &Outcome| matches!(outcome, Outcome::Refused(refused) if refused.code() == Code::BadRequest);
        let future = Cursor { seq: cursor.seq + 1, ..cursor };
        // Below the cursor; of the future; of an epoch before; of one that nobody had yet; of a group of others.
        for wrong in [
            ack_of(&name, Cursor { seq: 2, ..cursor }),
            ack_of(&name, future),
            ack_of(&name, Cursor { seq: 3, epoch: cursor.epoch - 1 }),
            ack_of(&name, Cursor { seq: 4, epoch: cursor.epoch + 1 }),
            ack_of("g:of-others", Cursor { seq: 9, epoch: 1 }),
        ] {
            let outcome = peer.ask(wrong);
            assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
        }
        // Rooms have no cursors.
        assert!(bad_request(&peer.ask(ack_of("r:hall", Cursor { seq: 1, epoch: 1 }))));
        assert!(peer.listen(SILENCE).is_empty());
        assert_eq!(kept(&mut peer), 5);

        // In a group the gateway knows what it sent: more is refused, with an answer and without.
        let group = format!("team.{wire:?}");
        let founded = pair.speaker.ask(op::group_create(&group, [pair.users[1].clone()]));
        assert!(matches!(founded, Outcome::Joined(_)), "{founded:?}");
        let head = peer.wait("the group", |peer| {
            peer.told.drain(..).find_map(|event| match event {
                notify::Event::Head(head) if head.conversation == format!("g:{group}") => Some(head),
                _ => None,
            })
        });
        let future = ack_of(&head.conversation, Cursor { epoch: head.epoch, seq: head.seq + 100 });
        assert!(bad_request(&peer.ask(future.clone())));
        peer.mention(future);
        peer.wait("a refusal", |peer| (peer.refused == [Code::BadRequest]).then_some(()));
        assert!(peer.ended.is_none());
    });
}

#[test]
fn a_resumed_session_displaces_the_one_before_wherever_it_is() {
    let fleet = fleet();
    both_wires("resume", |wire, case| {
        let mut pair = Pair::new(&fleet, wire, case);
        pair.say(3, 10);
        let (mut first, ack, cursor) = pair.listener();
        // While the first one lives, and on another gateway; then with the same ticket once more.
        let (mut second, _) = pair.listener_at(1, resume(&ack));
        assert_eq!(first.end(), Code::Displaced);
        pair.say(1, 10);
        assert_eq!(second.hear_message().seq, 4);
        let (mut third, _) = pair.listener_at(0, resume(&ack));
        assert_eq!(second.end(), Code::Displaced);
        // Nothing was acknowledged by the second one.
        assert_eq!(seqs(&third.sync(&pair.conversation, Some(cursor))), [4]);
        pair.say(1, 10);
        assert_eq!(third.hear_message().seq, 5);
        assert!(third.ended.is_none());
    });
}

#[test]
fn an_expired_ticket_is_refused_and_a_token_finds_the_same_cursor() {
    let fleet = fleet();
    both_wires("expired", |wire, case| {
        let mut pair = Pair::new(&fleet, wire, case);
        pair.say(4, 10);
        let (peer, ack, _) = pair.listener();
        // Cursors are written about once a second.
        std::thread::sleep(Duration::from_secs(TICKET_S + 1));
        drop(peer);
        pair.say(2, 10);
        let mut late = Peer::connect(wire, &fleet.address(1));
        let id = late.say(vec![Op::Login(resume(&ack))])[0];
        let told = late.wait("a refusal", |peer| match peer.answers.remove(&id) {
            Some(Outcome::Refused(refused)) => Some(refused.code()),
            Some(other) => panic!("{other:?}"),
            None => peer.ended,
        });
        assert_eq!(told, Code::TokenExpired);
        let (mut again, _) = pair.listener_at(1, login(&pair.token(), true));
        assert_eq!(seqs(&again.sync(&pair.conversation, None)), [5, 6]);
    });
}

#[test]
fn requests_behind_a_login_are_done_in_order() {
    let fleet = fleet();
    both_wires("pipelined", |wire, case| {
        let mut pair = Pair::new(&fleet, wire, case);
        pair.say(2, 10);
        let mut peer = Peer::connect(wire, &fleet.address(1));
        let sync = Sync { conversation: pair.conversation.clone(), ..Sync::default() };
        let send = |client_seq| op::send(&pair.conversation, 8, client_seq, format!("{client_seq}"));
        let ops = vec![Op::Login(login(&pair.token(), true)), Op::Sync(sync), send(1), send(2), send(3)];
        let ids = peer.say(ops);
        assert!(matches!(peer.answer(ids[0]), Outcome::LoginAck(_)));
        let Outcome::SyncPage(page) = peer.answer(ids[1]) else { panic!("no page") };
        assert_eq!(seqs(&page), [1, 2]);
        for (id, expected) in ids[2..].iter().zip(3..) {
            let Outcome::SendAck(ack) = peer.answer(*id) else { panic!("no ack") };
            assert_eq!(ack.seq, expected);
        }
    });
}

#[test]
fn more_than_any_buffer_holds_comes_in_pages_that_were_asked_for() {
    let fleet = fleet();
    both_wires("offline", |wire, case| {
        let mut pair = Pair::new(&fleet, wire, case);
        // Four times what a gateway keeps for one session.
        let (count, bytes) = (700, 6_000);
        pair.say(count, bytes);
        let (mut peer, _) = pair.listener_at(1, login(&pair.token(), true));
        assert!(peer.listen(SILENCE).iter().all(|event| !matches!(event, notify::Event::Deliver(_))));
        let item = PeekItem { conversation: pair.conversation.clone(), cursor: None };
        let Outcome::Peeked(peeked) = peer.ask(Op::Peek(Peek { items: vec![item] })) else {
            panic!("no standing")
        };
        let standing = &peeked.standings[0];
        assert_eq!((standing.head.map(|head| head.seq), u64::from(standing.unread)), (Some(count), count));

        let mut after = Cursor::default();
        let mut pages = 0;
        loop {
            let page = peer.sync(&pair.conversation, Some(after));
            pages += 1;
            assert!(page.entries.len() <= 256);
            for deliver in deliveries(&page) {
                assert_eq!((deliver.seq, deliver.payload.len()), (after.seq + 1, bytes));
                after = Cursor { epoch: deliver.epoch, seq: deliver.seq };
            }
            if !page.more {
                break;
            }
            if pages == 2 {
                // Two at once: both are answered, each from its cursor.
                let from =
                    |after| Sync { conversation: pair.conversation.clone(), after: Some(after), limit: 4 };
                let ids = peer.say(vec![Op::Sync(from(after)), Op::Sync(from(Cursor::default()))]);
                let starts = ids.iter().map(|id| match peer.answer(*id) {
                    Outcome::SyncPage(page) => seqs(&page)[0],
                    other => panic!("{other:?}"),
                });
                assert_eq!(starts.collect::<Vec<_>>(), [after.seq + 1, 1]);
                // The connection ends within the pages: on from the cursor.
                peer = pair.listener_at(0, login(&pair.token(), true)).0;
            }
        }
        assert_eq!(after.seq, count);
        assert!(pages > 60, "{pages} pages of 48 KiB");
        pair.say(1, 10);
        assert_eq!(peer.hear_message().seq, count + 1, "live again");
    });
}

#[test]
fn a_dispatcher_that_dies_within_the_pages_is_asked_again() {
    let mut fleet = fleet();
    for wire in [Wire::Tcp, Wire::WebSocket] {
        let mut pair = Pair::new(&fleet, wire, "killed");
        pair.say(40, 4_000);
        let (mut peer, _) = pair.listener_at(1, login(&pair.token(), true));
        let page = peer.sync(&pair.conversation, None);
        assert!(page.more);
        let last = deliveries(&page).pop().expect("an entry");
        let after = Cursor { epoch: last.epoch, seq: last.seq };
        let (conversation, mut had) = (pair.conversation.clone(), last.seq);
        drop(pair);
        fleet.take_dispatcher(0).kill();
        let ask = Sync { conversation: conversation.clone(), after: Some(after), limit: 0 };
        let id = peer.say(vec![Op::Sync(ask)])[0];
        fleet.start_dispatcher(0);
        let mut page = match peer.answer(id) {
            Outcome::SyncPage(page) => page,
            Outcome::Refused(refused) => {
                assert_eq!(refused.code(), Code::Busy);
                peer.sync(&conversation, Some(after))
            }
            other => panic!("{other:?}"),
        };
        loop {
            assert!(page.truncated.is_none() && page.gap.is_none(), "{page:?}");
            for deliver in deliveries(&page) {
                assert_eq!(deliver.seq, had + 1);
                had += 1;
            }
            if !page.more {
                break;
            }
            let last = deliveries(&page).pop().expect("an entry");
            page = peer.sync(&conversation, Some(Cursor { epoch: last.epoch, seq: last.seq }));
        }
        assert_eq!(had, 40);
    }
}

#[test]
fn a_device_that_never_acknowledges_is_asked_three_times_and_closed() {
    let fleet = fleet();
    let wires = [Wire::Tcp, Wire::WebSocket];
    let mut all: Vec<(Pair<'_>, Peer, Peer)> = Vec::new();
    for wire in wires {
        let mut pair = Pair::new(&fleet, wire, "silent");
        pair.say(1, 10);
        let (mut silent, _, _) = pair.listener();
        // One that keeps its own cursor.
        let free = Login { device: "tablet".to_owned(), ..login(&pair.token(), false) };
        let (mut tablet, _) = pair.listener_at(1, free);
        pair.say(1, 10);
        assert_eq!((silent.hear_message().seq, tablet.hear_message().seq), (2, 2));
        all.push((pair, silent, tablet));
    }
    for (pair, mut silent, mut tablet) in all {
        assert_eq!(silent.end(), Code::NotAcknowledged, "{:?}", pair.wire);
        let asked = |event: &notify::Event| match event {
            notify::Event::Resync(resync) => resync.conversations == [pair.conversation.clone()],
            _ => false,
        };
        assert_eq!(silent.told.iter().filter(|event| asked(event)).count(), 3, "{:?}", silent.told);
        tablet.listen(Duration::from_millis(100));
        assert!(tablet.ended.is_none());
        // It begins anew, and what it did not acknowledge is still there.
        let (mut again, _) = pair.listener_at(0, login(&pair.token(), true));
        assert_eq!(seqs(&again.sync(&pair.conversation, None)), [2]);
    }
}
