//! Random events, bytes and records against one shard: it never panics, never sends twice at once, never skips a seq
//! without saying so, and holds nothing once everybody is gone.

use std::collections::BTreeSet;

use super::*;

/// xorshift64*.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below
    }

    fn text(&mut self, from: &[&'static str]) -> &'static str {
        from[self.roll(from.len() as u64) as usize]
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.roll(from.len() as u64) as usize]
    }
}

const CONVERSATIONS: [&str; 5] = ["r:a", "r:b", "g:a", "g:b", "g:c"];

/// A conversation's log.
#[derive(Default)]
struct Log {
    /// The epochs of its entries.
    entries: Vec<u64>,
    /// Where it ended when the present owner found it: seq, and the epoch of the entry there.
    base: (u64, u64),
}

/// What the owner of everything knows.
#[derive(Default)]
struct Owner {
    logs: BTreeMap<String, Log>,
    epoch: u64,
    logins: u64,
    /// Ends that were lost: of which log, under which epoch that was found, and where it ended then.
    cuts: Vec<(String, u64, u64)>,
}

impl Owner {
    fn head(&self, conversation: &str) -> u64 {
        self.logs.get(conversation).map_or(0, |log| log.entries.len() as u64)
    }

    /// Returns the new entry's seq.
    fn append(&mut self, conversation: &str) -> u64 {
        let log = self.logs.entry(conversation.into()).or_default();
        log.entries.push(self.epoch);
        log.entries.len() as u64
    }

    /// Another owner takes over; now and then the store has lost the end of a log.
    fn next(&mut self, dice: &mut Dice) {
        self.epoch += 1;
        for (conversation, log) in &mut self.logs {
            let lost = if dice.roll(4) == 0 { dice.roll(4) as usize } else { 0 };
            let head = log.entries.len().saturating_sub(lost);
            if head < log.entries.len() {
                log.entries.truncate(head);
                self.cuts.push((conversation.clone(), self.epoch, head as u64));
            }
            log.base = (head as u64, log.entries.last().copied().unwrap_or(0));
        }
    }
}

fn op(dice: &mut Dice) -> request::Op {
    let name = |dice: &mut Dice| dice.pick(&["a", "b", "c", "", "!"]).to_string();
    let group = |dice: &mut Dice| dice.pick(&["g:a", "g:b", "g:c", "d:u1:u2", "r:a"]).to_string();
    match dice.roll(24) {
        0 => login(dice.text(&["u1", "u2", "u3", "bad"])),
        1..=3 => request::Op::RoomJoin(RoomJoin { room: name(dice) }),
        4 => request::Op::RoomLeave(RoomLeave { room: name(dice) }),
        5 => request::Op::GroupJoin(GroupJoin { group: name(dice) }),
        6 => request::Op::GroupLeave(GroupLeave { group: name(dice) }),
        7 => {
            request::Op::GroupCreate(GroupCreate { group: name(dice), members: vec![], ..Default::default() })
        }
        8 => request::Op::Logout(Logout {}),
        12..=15 => {
            let cursor = Some(Cursor { epoch: 10 + dice.roll(3), seq: dice.roll(200) });
            request::Op::DeliverAck(DeliverAck { conversation: group(dice), cursor })
        }
        16..=18 => request::Op::Sync(Sync { conversation: group(dice), ..Default::default() }),
        19 | 20 => {
            let item = |dice: &mut Dice| PeekItem { conversation: group(dice), cursor: None };
            request::Op::Peek(Peek { items: (0..dice.roll(6)).map(|_| item(dice)).collect() })
        }
        21 => {
            let users = (0..dice.roll(5)).map(|_| name(dice)).collect();
            request::Op::PresenceSubscribe(PresenceSubscribe { users })
        }
        22 => request::Op::Typing(Typing { conversation: group(dice), what: 1 }),
        23 => request::Op::Read(Read { conversation: group(dice), seq: dice.roll(9) }),
        _ => request::Op::Send(Send {
            conversation: dice.pick(&["r:a", "r:b", "g:a", "d:u1:u2", "x"]).to_string(),
            client_seq: dice.roll(3),
            stream: 1,
            payload: vec![0; dice.roll(300) as usize].into(),
            ..Default::default()
        }),
    }
}

/// Answers one record as a dispatcher might, or not at all.
fn answer(world: &mut World, dice: &mut Dice, owner: &mut Owner, record: Record) {
    let (partition, epoch) = (record.partition, owner.epoch);
    let session = record.session.0;
    match (dice.roll(20), record.kind) {
        (0, _) => {}
        (1, Kind::Lease) => {}
        (1 | 2, kind) => {
            let back = wire::NotOwner {
                partition: partition.into(),
                epoch,
                hint: String::new(),
                kind: kind as u32,
                body: record.body,
            };
            world.say(0, Kind::NotOwner, partition, 0, session, &back);
            if dice.roll(2) == 0 {
                owner.next(dice);
            }
            let copy = 1 + owner.epoch / 8;
            let owned =
                (0..PARTITIONS).map(|p| wire::Owned { partition: p.into(), epoch: owner.epoch, copy });
            world.say(0, Kind::Announce, 0, 0, 0, &wire::Announce { owned: owned.collect() });
        }
        (roll, Kind::Register) => {
            let register = wire::Register::decode(record.body).unwrap();
            owner.logins += 1;
            let body = wire::Registered {
                user: register.user,
                device: register.device,
                login_number: if register.login_number > 0 { register.login_number } else { owner.logins },
                groups: if roll > 10 { vec!["a".into(), "g:b".into(), "!".into()] } else { vec![] },
                refused: if roll == 3 { Code::Busy as u32 } else { 0 },
                gateway_incarnation: register.gateway_incarnation,
                ..Default::default()
            };
            world.say(0, Kind::Registered, partition, epoch, session, &body);
        }
        (roll, Kind::Subscribe) => {
            let body = wire::Subscribe::decode(record.body).unwrap();
            let (base, base_epoch) = owner.logs.get(&body.conversation).map_or((0, 0), |log| log.base);
            let answer = wire::Subscribed {
                version: body.version,
                head: owner.head(&body.conversation),
                base,
                base_epoch,
                members_version: 1,
                refused: if roll == 3 { body.users.first().cloned().into_iter().collect() } else { vec![] },
                recheck: roll == 4 && body.members_version > 0,
                gone: roll == 5 && body.conversation.starts_with("g:"),
                conversation: body.conversation,
            };
            world.say(0, Kind::Subscribed, partition, epoch, 0, &answer);
        }
        (_, Kind::Fetch) => {
            let body = wire::Fetch::decode(record.body).unwrap();
            let head = owner.head(&body.conversation);
            let entries = owner.logs.get(&body.conversation).map_or(&[][..], |log| &log.entries);
            let messages = (body.after_seq + 1..=body.through_seq.min(head).min(body.after_seq + 5))
                .map(|seq| fan_out(&body.conversation, seq, entries[seq as usize - 1], 0, 10))
                .collect();
            let page = wire::Page { conversation: body.conversation, messages, first_seq: 1, head };
            world.say(0, Kind::Page, partition, epoch, 0, &page);
        }
        (_, Kind::ClientRequest) => {
            let body = wire::ClientRequest::decode(record.body).unwrap();
            let asked = Request::decode(body.request).unwrap();
            let mut reply = wire::Reply { token: body.token, user: body.user, ..Default::default() };
            let outcome = match asked.op.unwrap() {
                request::Op::GroupJoin(GroupJoin { group })
                | request::Op::GroupCreate(GroupCreate { group, .. }) => {
                    reply.joined = format!("g:{group}");
                    reply.joined_head = owner.head(&reply.joined);
                    response::Outcome::Joined(Joined {
                        conversation: reply.joined.clone(),
                        epoch,
                        head: reply.joined_head,
                        ..Default::default()
                    })
                }
                request::Op::GroupLeave(GroupLeave { group }) => {
                    reply.left = format!("g:{group}");
                    response::Outcome::Left(Left { conversation: reply.left.clone() })
                }
                request::Op::Sync(sync) => {
                    let head = owner.head(&sync.conversation);
                    let more = dice.roll(2) == 0;
                    // Also where there is nothing to be attached to.
                    if more {
                        reply.syncing = sync.conversation.clone();
                    } else {
                        (reply.joined, reply.joined_head) = (sync.conversation.clone(), head);
                    }
                    let conversation = sync.conversation;
                    response::Outcome::SyncPage(SyncPage {
                        conversation,
                        epoch,
                        head,
                        more,
                        ..Default::default()
                    })
                }
                request::Op::Peek(peek) => {
                    let conversation = peek.items[0].conversation.clone();
                    let standings = vec![Standing { conversation, ..Default::default() }];
                    response::Outcome::Peeked(Peeked { standings })
                }
                request::Op::PresenceSubscribe(ask) => {
                    let event = |user: &String| PresenceEvent { user: user.clone(), ..Default::default() };
                    let users = ask.users.iter().map(event).collect();
                    response::Outcome::PresencePage(PresencePage { users })
                }
                request::Op::Typing(_) | request::Op::Read(_) if dice.roll(2) == 0 => {
                    response::Outcome::Done(Done {})
                }
                request::Op::Typing(_) | request::Op::Read(_) => {
                    response::Outcome::Refused(Refused { code: Code::NotMember.into(), ..Default::default() })
                }
                _ => response::Outcome::SendAck(SendAck::default()),
            };
            reply.response = Response { id: asked.id, outcome: Some(outcome) }.encode_to_vec().into();
            world.say(0, Kind::Reply, partition, epoch, session, &reply);
        }
        _ => {}
    }
}

#[derive(Clone, Copy, Default)]
struct At {
    epoch: u64,
    seq: u64,
    /// The last entry that it knows: under which epoch it was told of it, and its seq. What a Gap names it does not know.
    known: (u64, u64),
}

impl At {
    fn new(epoch: u64, seq: u64) -> At {
        At { epoch, seq, known: (epoch, seq) }
    }
}

/// Follows what each client may expect next of each conversation.
#[derive(Default)]
struct Cursors {
    /// How far it was sent each, and under which epoch it was told so.
    at: BTreeMap<(Conn, String), At>,
    /// Pages may bring what comes live as well.
    synced: BTreeSet<(Conn, String)>,
}

impl Cursors {
    fn check(&mut self, conn: Conn, seen: Vec<Seen>, cuts: &[(String, u64, u64)], seed: u64) {
        for one in seen {
            match one {
                Seen::Response(Response { outcome: Some(response::Outcome::Joined(joined)), .. }) => {
                    // One that was in it already goes on from where it was, unless it had begun to catch up: then it
                    // listened no more, and does so again from here.
                    let key = (conn, joined.conversation);
                    let caught_up = self.synced.contains(&key);
                    let told = At::new(joined.epoch, joined.head);
                    let at = self.at.entry(key).or_insert(told);
                    if caught_up {
                        *at = At::new(joined.epoch.max(at.epoch), joined.head.max(at.seq));
                    }
                }
                Seen::Response(Response { outcome: Some(response::Outcome::Left(left)), .. }) => {
                    self.at.remove(&(conn, left.conversation));
                }
                Seen::Response(Response { outcome: Some(response::Outcome::SyncPage(page)), .. })
                    if page.conversation.starts_with("g:") =>
                {
                    let key = (conn, page.conversation);
                    self.synced.insert(key.clone());
                    if page.more {
                        self.at.remove(&key);
                    } else {
                        let at = self.at.entry(key).or_default();
                        *at = At::new(page.epoch.max(at.epoch), page.head.max(at.seq));
                    }
                }
                Seen::Notify(notify::Event::Head(head)) => {
                    // Under one epoch what says less than was told before is older.
                    let told = At::new(head.epoch, head.seq);
                    let at = self.at.entry((conn, head.conversation)).or_insert(told);
                    if told.known >= at.known {
                        *at = told;
                    }
                }
                Seen::Notify(notify::Event::Removed(removed)) => {
                    self.at.remove(&(conn, removed.conversation));
                }
                Seen::Notify(notify::Event::Gap(gap)) => {
                    let at = self.at.get_mut(&(conn, gap.conversation.clone()));
                    let at = at.unwrap_or_else(|| panic!("seed {seed}: {conn:?} is told {gap:?}"));
                    assert!(gap.from <= at.seq + 1, "seed {seed}: {conn:?} at {} is told {gap:?}", at.seq);
                    at.seq = gap.to.max(at.seq);
                }
                Seen::Notify(notify::Event::Deliver(deliver)) if !deliver.conversation.starts_with("d:") => {
                    let at = self.at.get_mut(&(conn, deliver.conversation.clone()));
                    let at = at.unwrap_or_else(|| panic!("seed {seed}: {conn:?} is sent {deliver:?}"));
                    let again =
                        deliver.seq <= at.seq && self.synced.contains(&(conn, deliver.conversation.clone()));
                    assert!(
                        again || deliver.seq == at.seq + 1,
                        "seed {seed}: {conn:?} at {} is sent {deliver:?}",
                        at.seq
                    );
                    // A room goes on where it is, if it is as long. An old seq of a new epoch says it all.
                    let lost = cuts.iter().find(|(conversation, epoch, head)| {
                        conversation.starts_with("g:")
                            && *conversation == deliver.conversation
                            && deliver.seq > at.seq
                            && (at.known.0..deliver.epoch).contains(&(*epoch - 1))
                            && at.known.1 > *head
                    });
                    assert_eq!(lost, None, "seed {seed}: {conn:?} at {:?} is sent {deliver:?}", at.known);
                    *at = At::new(deliver.epoch.max(at.epoch), deliver.seq.max(at.seq));
                }
                _ => {}
            }
        }
    }
}

/// Returns the counters that moved.
fn check(seed: u64) -> BTreeSet<&'static str> {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut world = World::ready_with(Config { outbox_bytes_max: 4 << 10, ..config() });
    let mut owner = Owner { epoch: 10, ..Owner::default() };
    let mut cursors = Cursors::default();
    let mut generations = [0u32; 12];
    let mut incarnation = 77;
    let connections = |world: &World| world.clients.keys().copied().collect::<Vec<_>>();
    for _ in 0..600 {
        let conns = connections(&world);
        match dice.roll(100) {
            0..=9 => {
                let slot = dice.roll(12) as u32;
                if !conns.iter().any(|conn| conn.slot == slot) {
                    generations[slot as usize] += 1;
                    let conn = world.accept(slot, generations[slot as usize], ClientSession::tcp());
                    if dice.roll(4) > 0 {
                        let request::Op::Login(login) = login(dice.text(&["u1", "u2", "u3"])) else {
                            unreachable!()
                        };
                        let acknowledges = dice.roll(2) == 0;
                        let login = client::Login { acknowledges, ..login };
                        world.request(conn, 1, request::Op::Login(login));
                    }
                }
            }
            10..=44 if !conns.is_empty() => {
                let conn = *dice.pick(&conns);
                let request = Request { id: dice.roll(6), op: Some(op(&mut dice)) };
                let bytes = frame_of(&mut world.clients.get_mut(&conn).unwrap().speaks, &request);
                let cut = dice.roll(bytes.len() as u64) as usize;
                world.receive(conn, bytes[..cut].to_vec());
                world.receive(conn, bytes[cut..].to_vec());
            }
            45 if !conns.is_empty() => {
                let conn = *dice.pick(&conns);
                // No capitals: a client that asks for HTTP is answered in HTTP, which these don't read.
                let bytes = (0..dice.roll(40))
                    .map(|_| dice.roll(256) as u8)
                    .filter(|b| !b.is_ascii_uppercase())
                    .collect();
                world.receive(conn, bytes);
            }
            46..=48 if !conns.is_empty() => world.closed(*dice.pick(&conns)),
            49..=51 if !conns.is_empty() => {
                let client = world.clients.get_mut(dice.pick(&conns)).unwrap();
                client.stalled = !client.stalled;
            }
            52..=54 if !conns.is_empty() => world.resume(*dice.pick(&conns)),
            55..=79 => {
                let conversation = *dice.pick(&CONVERSATIONS);
                let seq = owner.append(conversation);
                match dice.roll(12) {
                    0 => {}
                    1 => {
                        let gap = wire::Gap { conversation: conversation.into(), head: seq };
                        let partition = partition_of(conversation, PARTITIONS);
                        world.say(0, Kind::Gap, partition, owner.epoch, 0, &gap);
                    }
                    2 => world.fan_out(0, owner.epoch - 1, conversation, seq, 0),
                    _ => world.fan_out(0, owner.epoch, conversation, seq, 0),
                }
            }
            80..=82 if !conns.is_empty() => {
                let conn = *dice.pick(&conns);
                let user = dice.pick(&["u1", "u2"]).to_string();
                let target = wire::Target { session: world.id(conn), user, ..Default::default() };
                let targets = vec![target];
                match dice.roll(4) {
                    0 => {
                        let notify = fan_out("d:u1:u2", 1, owner.epoch, 0, 9).notify;
                        world.say(0, Kind::Direct, 0, owner.epoch, 0, &wire::Direct { targets, notify });
                    }
                    1 => {
                        let attach = wire::Attach { conversation: "g:c".into(), targets };
                        world.say(0, Kind::Attach, 0, owner.epoch, 0, &attach);
                    }
                    2 => {
                        let gap = wire::DirectGap { conversation: "d:u1:u2".into(), targets, head: 3 };
                        world.say(0, Kind::DirectGap, 0, owner.epoch, 0, &gap);
                    }
                    _ => {
                        let event = notify::Event::Typing(TypingEvent::default());
                        let notify = Notify { event: Some(event) }.encode_to_vec().into();
                        let targets = if dice.roll(2) == 0 { targets } else { vec![] };
                        let conversation = dice.pick(&CONVERSATIONS).to_string();
                        let relay =
                            wire::Relay { targets, conversation, except_session: world.id(conn), notify };
                        world.say(0, Kind::Relay, 0, owner.epoch, 0, &relay);
                    }
                }
            }
            83 => {
                let users = vec![dice.pick(&["u1", "u2", "u3"]).to_string()];
                let remove = wire::Remove { conversation: "g:a".into(), users, members_version: 1 };
                world.say(0, Kind::Remove, partition_of("g:a", PARTITIONS), owner.epoch, 0, &remove);
            }
            84 => {
                let slot = dice.roll(8) as u32;
                let session = SessionId::new(1, 0, slot, dice.roll(4) as u32);
                let close = wire::Close {
                    user: "u1".into(),
                    device: "phone".into(),
                    login_number: dice.roll(owner.logins + 1),
                    code: dice.roll(9000) as u32,
                    reason: String::new(),
                };
                world.say(0, Kind::Close, 0, owner.epoch, session.0, &close);
            }
            85 => {
                world.cut(0);
                if dice.roll(3) == 0 {
                    world.nodes[0].link = node_link("n0", 1_000 + dice.roll(1 << 30), 8 << 20);
                }
                world.connect(0);
                owner.next(&mut dice);
                let epoch = owner.epoch;
                world.announce(0, 0..PARTITIONS, epoch);
            }
            86 if dice.roll(3) == 0 => {
                incarnation += 1;
                world.lease(incarnation, 1 << 40);
                let epoch = owner.epoch;
                world.announce(0, 0..PARTITIONS, epoch);
            }
            87 => {
                // A record of any kind with a body of any bytes.
                let kind = *dice.pick(&[
                    Kind::Reply,
                    Kind::FanOut,
                    Kind::Page,
                    Kind::NotOwner,
                    Kind::Attach,
                    Kind::Subscribe,
                    Kind::Relay,
                    Kind::DirectGap,
                ]);
                let body: Vec<u8> = (0..dice.roll(30)).map(|_| dice.roll(256) as u8).collect();
                let record = Record {
                    kind,
                    partition: 5,
                    epoch: 0,
                    session: SessionId(dice.roll(1 << 40)),
                    body: body.into(),
                };
                world.nodes[0].link.queue(record).unwrap();
            }
            88..=92 => world.later(SECOND * dice.roll(4)),
            _ => world.run(),
        }
        if dice.roll(3) == 0 {
            world.run();
            for record in std::mem::take(&mut world.nodes[0].inbox) {
                answer(&mut world, &mut dice, &mut owner, record);
            }
            world.run();
        }
        for conn in connections(&world) {
            let seen = world.seen(conn);
            cursors.check(conn, seen, &owner.cuts, seed);
        }
    }
    for conn in connections(&world) {
        world.closed(conn);
    }
    world.run();
    let epoch = owner.epoch;
    world.announce(0, 0..PARTITIONS, epoch);
    world.assert_empty();
    let fields = world.shard.stats().fields();
    fields.into_iter().filter(|(_, counter, value)| *counter && *value > 0).map(|(name, ..)| name).collect()
}

/// Counters that these events don't move: most are about what is full, too many or too large.
const ELSEWHERE: [&str; 26] = [
    "displaced",
    "resyncs_swept",
    "accept_refused",
    "accept_holds",
    "login_rate_limited",
    "login_without_lease",
    "heartbeat_timeouts",
    "slow_consumers",
    "pings",
    "pongs_skipped",
    "corks",
    "busy_no_owner",
    "busy_no_credit",
    "busy_limit",
    "peeks_trimmed",
    "acks_dropped",
    "owed_overflowed",
    "refused_forgotten",
    "early_refused",
    "superseded",
    "topic_limit",
    "duplicates",
    "fan_outs_overflowed",
    "parked_dropped",
    "link_errors",
    "nodes_ignored",
];

#[test]
fn whatever_comes() {
    let mut moved = BTreeSet::from(ELSEWHERE);
    for seed in 1..=150 {
        println!("seed {seed}");
        moved.extend(check(seed));
    }
    let still = crate::core::stats::Stats::default().fields();
    let still: Vec<&str> = still
        .into_iter()
        .filter(|(name, counter, _)| *counter && !moved.contains(name))
        .map(|it| it.0)
        .collect();
    assert!(still.is_empty(), "counters that nobody moves: {still:?}");
}
