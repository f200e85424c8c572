//! What is kept beside entries and who may write: one case per promise, run against both stores and the model.

use bytes::Bytes;
use millrace_dispatcher::store::{
    ANSWERS_MAX, Answer, Change, Cursor, CursorsOf, List, Outcome, STREAMS_PER_DEVICE_MAX, StoreError,
    StreamKey, UserItem, Work, Write,
};
use millrace_protocol::ids::user_partition;

use super::cases::Case;
use super::world::{Claim, PARTITIONS, World, entry, message, read};

pub const KEPT: &[(&str, Case)] = &[
    ("answers: the newest of a stream, with its log", answers_of_a_stream),
    ("answers: a stream is found by conversation, user, device and its own id", streams_are_told_apart),
    ("answers: the newest streams of a device", newest_streams),
    ("answers: they outlive their messages", answers_outlive_their_messages),
    ("state: set, replaced, removed", state),
    ("cursors: merged by maximum", cursors_merge),
    ("cursors: of a user, of everyone in pages", cursors_in_pages),
    ("replace: what is there, and nothing else", replaced),
    ("trim: the beginning moves, the newest stays", trimmed),
    ("read: both ways, with limits, under a fence", read_both_ways),
    ("outstanding: until it is fanned out", outstanding),
    ("events: messages and events, by position", events),
    ("lists: put, add, remove, in pages", lists),
    ("release: nobody holds what was released", released),
    ("batch: refused whole, whatever is in it", refused_whole),
];

fn stream(device: &str, stream: u64) -> StreamKey {
    StreamKey { user: "alice".into(), device: device.into(), stream }
}

/// Message `seq` of a conversation, which is `client_seq` of a stream.
fn sent(conversation: &str, seq: u64, key: &StreamKey, client_seq: u64) -> Write {
    let mut entry = entry(conversation, seq, format!("{seq}").as_bytes());
    entry.sender = key.user.clone();
    entry.device = key.device.clone();
    entry.stream = key.stream;
    entry.client_seq = client_seq;
    entry.payload_hash = u64::MAX - client_seq;
    Write::Message(entry)
}

fn answers_of_a_stream(world: &World<'_>) {
    let mut claim = world.claim(3, "a", 1_000);
    let key = stream("phone", u64::MAX);
    assert_eq!(world.answers(&claim, "g:tea", key.clone()), []);
    let total = ANSWERS_MAX as u64 * 2 + 6;
    let mut stamped = Vec::new();
    for seq in 1..=total {
        stamped.extend(world.append(&mut claim, vec![sent("g:tea", seq, &key, seq)]));
    }
    let mut server_made = entry("g:tea", total + 1, b"no stream");
    server_made.stream = 0;
    world.append(&mut claim, vec![Write::Message(server_made)]);
    world.reopen();
    let claim = world.claim(3, "a", 1_000);
    let answers = world.answers(&claim, "g:tea", key.clone());
    assert_eq!(answers.len(), ANSWERS_MAX);
    for (answer, write) in answers.iter().zip(&stamped[stamped.len() - ANSWERS_MAX..]) {
        let Write::Message(entry) = write else { panic!() };
        assert_eq!(
            (answer.client_seq, answer.payload_hash, answer.seq, answer.message_id, answer.epoch),
            (entry.client_seq, entry.payload_hash, entry.seq, entry.message_id, entry.epoch)
        );
    }
    assert_eq!(world.load(&claim, "g:tea", Some(key)).answers, answers);
}

fn streams_are_told_apart(world: &World<'_>) {
    let mut claim = world.claim(3, "a", 1_000);
    let keys = [stream("phone", 1), stream("phone", 2), stream("pad", 1), stream("p", 0x61_0001)];
    let writes = (1..).zip(&keys).map(|(seq, key)| sent("g:tea", seq, key, 1)).collect();
    world.append(&mut claim, writes);
    world.append(&mut claim, vec![sent("g:te", 1, &keys[0], 1)]);
    for (seq, key) in (1..).zip(&keys) {
        let answers = world.answers(&claim, "g:tea", key.clone());
        assert_eq!(answers.iter().map(|answer| answer.seq).collect::<Vec<_>>(), [seq], "{key:?}");
    }
    assert_eq!(world.answers(&claim, "g:tea", stream("phone", 3)), []);
    assert_eq!(world.answers(&claim, "g:te", keys[1].clone()), []);
    assert_eq!(world.answers(&claim, "g:te", keys[0].clone())[0].seq, 1);
}

fn answers_outlive_their_messages(world: &World<'_>) {
    let mut claim = world.claim(3, "a", 1_000);
    let keys = [stream("phone", 1), stream("pad", 1)];
    let trim = |first_seq| Write::Trim { conversation: "g:tea".into(), first_seq };
    let mut stamped = Vec::new();
    let (mut head, mut numbers) = (0, [0, 0]);
    // Batches of all sizes; some begin with a trim, some end with one, some have one in the middle.
    for size in [1, 2, 5, 63, 64, 65, 3, 40, 130, 1, 1] {
        let mut writes = if size % 2 == 0 { vec![trim(head)] } else { Vec::new() };
        for at in 0..size {
            head += 1;
            let sender = usize::from(head % 3 == 0);
            numbers[sender] += 1;
            writes.push(sent("g:tea", head, &keys[sender], numbers[sender]));
            if at == 30 {
                writes.push(trim(head - 10));
            }
        }
        writes.push(trim(head + 1));
        stamped.extend(world.append(&mut claim, writes));
        let reopens = size == 65 || size == 130;
        if reopens {
            world.reopen();
            claim = world.claim(3, "a", 1_000);
        }
        let known = world.load(&claim, "g:tea", None);
        assert_eq!((known.first_seq, known.head), (head, head));
        for key in &keys {
            let of_key = |write: &Write| match write {
                Write::Message(entry) if key.is_of(entry) => Some(Answer::of(entry)),
                _ => None,
            };
            let all: Vec<Answer> = stamped.iter().filter_map(of_key).collect();
            let newest = &all[all.len().saturating_sub(ANSWERS_MAX)..];
            assert_eq!(world.answers(&claim, "g:tea", key.clone()), newest, "after a batch of {size}");
            assert_eq!(world.load(&claim, "g:tea", Some(key.clone())).answers, newest);
        }
    }
}

fn newest_streams(world: &World<'_>) {
    let mut claim = world.claim(3, "a", 1_000);
    let total = STREAMS_PER_DEVICE_MAX as u64 + 3;
    // Some in batches of their own, some together.
    world.append(&mut claim, vec![sent("g:tea", 1, &stream("phone", 1), 1)]);
    world.append(&mut claim, vec![sent("g:tea", 2, &stream("pad", 1), 1)]);
    let together = (2..=total).map(|at| sent("g:tea", at + 1, &stream("phone", at), 1)).collect();
    world.append(&mut claim, together);
    // A store may keep more until the log has gone on for a while.
    let goes_on = (1..=100).map(|at| sent("g:tea", total + 1 + at, &stream("tv", 1), at)).collect();
    world.append(&mut claim, goes_on);
    world.reopen();
    let claim = world.claim(3, "a", 1_000);
    let known = |key| !world.answers(&claim, "g:tea", key).is_empty();
    for at in 1..=total {
        assert_eq!(known(stream("phone", at)), at > 3, "stream {at}");
    }
    assert!(known(stream("pad", 1)), "another device's");
}

fn state(world: &World<'_>) {
    let mut claim = world.claim(3, "a", 1_000);
    let set = |key: &str, value: Option<&[u8]>| Write::State {
        conversation: "g:tea".into(),
        key: key.into(),
        value: value.map(Bytes::copy_from_slice),
    };
    world.append(
        &mut claim,
        vec![set("name", Some(b"Tea")), set("muted", Some(b"")), set("owner", Some(b"x"))],
    );
    world.append(&mut claim, vec![set("name", Some(&[0, 255, 1])), set("owner", None), set("none", None)]);
    world.append(
        &mut claim,
        vec![set("twice", Some(b"1")), set("twice", None), set("again", None), set("again", Some(b"2"))],
    );
    world.reopen();
    let claim = world.claim(3, "a", 1_000);
    let expected: Vec<(String, Bytes)> = [("again", &b"2"[..]), ("muted", b""), ("name", &[0, 255, 1])]
        .map(|(key, value)| (key.to_owned(), Bytes::copy_from_slice(value)))
        .to_vec();
    assert_eq!(world.load(&claim, "g:tea", None).state, expected);
    assert_eq!(world.load(&claim, "g:te", None).state, []);
}

fn moved(conversation: &str, user: &str, device: &str, epoch: u64, seq: u64) -> Write {
    Write::Cursor {
        conversation: conversation.into(),
        user: user.into(),
        device: device.into(),
        cursor: Cursor { epoch, seq, messages: seq / 2 },
    }
}

fn cursors_merge(world: &World<'_>) {
    let mut claim = world.claim(3, "a", 1_000);
    let at = |claim: &Claim| {
        let cursors = world.cursors(claim, "g:tea", CursorsOf::User("alice".into()));
        cursors
            .into_iter()
            .map(|(user, device, cursor)| {
                assert_eq!(user, "alice");
                (device, cursor.epoch, cursor.seq, cursor.messages)
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(at(&claim), []);
    for (epoch, seq, expected) in [
        (7, 255, (7, 255)),
        (7, 256, (7, 256)),
        (7, 3, (7, 256)),
        (6, 1_000, (7, 256)),
        (8, 2, (8, 2)),
        (8, 2, (8, 2)),
        (1 << 41, 65_536, (1 << 41, 65_536)),
    ] {
        world.append(&mut claim, vec![moved("g:tea", "alice", "phone", epoch, seq)]);
        assert_eq!(
            at(&claim),
            [("phone".to_owned(), expected.0, expected.1, expected.1 / 2)],
            "{epoch} {seq}"
        );
    }
    // Several in one batch, and several batches in one round.
    let first = claim.batch(vec![moved("g:tea", "alice", "pad", 9, 5), moved("g:tea", "alice", "pad", 9, 4)]);
    claim.position += 2;
    let second = claim.batch(vec![moved("g:tea", "alice", "pad", 9, 3), moved("g:tea", "alice", "", 1, 1)]);
    claim.position += 2;
    assert_eq!(world.calls(vec![first, second]), [Ok(Outcome::Appended), Ok(Outcome::Appended)]);
    world.reopen();
    let claim = world.claim(3, "a", 1_000);
    let expected = [("", 1, 1, 0), ("pad", 9, 5, 2), ("phone", 1 << 41, 65_536, 32_768)];
    assert_eq!(at(&claim), expected.map(|(device, e, s, m)| (device.to_owned(), e, s, m)));
}

fn cursors_in_pages(world: &World<'_>) {
    let mut claim = world.claim(3, "a", 1_000);
    let mut pairs = Vec::new();
    for user in ["a", "a+", "ab", "alice", "alice-2", "b"] {
        for device in ["", "+", "pad", "phone"] {
            pairs.push((user.to_owned(), device.to_owned()));
            world.append(&mut claim, vec![moved("g:tea", user, device, 1, 1)]);
        }
    }
    pairs.sort();
    world.append(&mut claim, vec![moved("g:te", "alice", "phone", 1, 1), moved("g:teapot", "a", "x", 1, 1)]);
    for page in [1, 3, 100] {
        let (mut seen, mut after) = (Vec::new(), Default::default());
        loop {
            let found = world.cursors(&claim, "g:tea", CursorsOf::All { after, limit: page });
            assert!(found.len() <= page);
            seen.extend(found.iter().map(|(user, device, _)| (user.clone(), device.clone())));
            if found.len() < page {
                break;
            }
            after = seen.last().unwrap().clone();
        }
        assert_eq!(seen, pairs, "pages of {page}");
    }
    assert_eq!(
        world.cursors(&claim, "g:tea", CursorsOf::User("a".into())).len(),
        4,
        "not those of ab and alice"
    );
    assert_eq!(world.cursors(&claim, "g:tea", CursorsOf::User("al".into())), []);
}

fn replaced(world: &World<'_>) {
    let mut claim = world.claim(3, "a", 1_000);
    let mut stamped = world.append(&mut claim, (1..=5).map(|seq| message("g:tea", seq)).collect());
    let other = |write: &Write, body: &'static [u8]| {
        let Write::Message(entry) = write else { panic!() };
        let mut entry = entry.clone();
        entry.notify = Bytes::from_static(body);
        entry.action = 2;
        entry
    };
    let recalled = other(&stamped[1], b"");
    world.append(&mut claim, vec![Write::Replace(recalled.clone())]);
    stamped[1] = Write::Message(recalled);
    // One that the same batch appended, and one that it trimmed.
    let newest = world.append(
        &mut claim,
        vec![
            message("g:tea", 6),
            Write::Replace(entry("g:tea", 6, b"edited at once")),
            Write::Trim { conversation: "g:tea".into(), first_seq: 2 },
            Write::Replace(entry("g:tea", 1, b"too late")),
        ],
    );
    for seq in [0, 1, 7, 1 << 40] {
        world.append(&mut claim, vec![Write::Replace(entry("g:tea", seq, b"not there"))]);
    }
    world.append(&mut claim, vec![Write::Replace(entry("g:none", 1, b"not there"))]);
    assert_eq!(world.read("g:none", 0, 9, 9_999), (vec![], 1));
    let Write::Replace(edited) = newest[1].clone() else { panic!() };
    stamped.remove(0);
    stamped.push(Write::Message(edited));
    world.reopen();
    let (entries, first) = world.read("g:tea", 0, u64::MAX, 1 << 20);
    assert_eq!(first, 2);
    assert_eq!(entries.into_iter().map(Write::Message).collect::<Vec<_>>(), stamped);
    let claim = world.claim(3, "a", 1_000);
    assert_eq!(world.load(&claim, "g:tea", None).head, 6);
}

fn trimmed(world: &World<'_>) {
    let mut claim = world.claim(3, "a", 1_000);
    let trim = |first_seq| Write::Trim { conversation: "g:tea".into(), first_seq };
    world.append(&mut claim, vec![trim(5), message("g:te", 1)]);
    world.append(&mut claim, (1..=10).map(|seq| message("g:tea", seq)).collect());
    let bounds = |claim: &Claim| {
        let (entries, first) = world.read("g:tea", 0, u64::MAX, 1 << 20);
        let loaded = world.load(claim, "g:tea", None);
        assert_eq!((loaded.first_seq, loaded.messages), (first, loaded.head));
        assert!(entries.iter().map(|entry| entry.seq).eq(first..=loaded.head));
        (first, loaded.head)
    };
    for (first_seq, expected) in [(0, 1), (1, 1), (4, 4), (2, 4), (4, 4)] {
        world.append(&mut claim, vec![trim(first_seq)]);
        assert_eq!(bounds(&claim), (expected, 10), "{first_seq}");
    }
    assert_eq!(world.read("g:tea", 0, 3, 9_999), (vec![], 4));
    world.append(&mut claim, vec![trim(u64::MAX)]);
    assert_eq!(bounds(&claim), (10, 10), "the newest stays");
    world.append(&mut claim, vec![message("g:tea", 11), trim(11), message("g:tea", 12)]);
    world.reopen();
    let claim = world.claim(3, "a", 1_000);
    assert_eq!(bounds(&claim), (11, 12));
    assert_eq!(world.read("g:te", 0, 9, 9_999).0.len(), 1, "a neighbour keeps its own");
}

fn read_both_ways(world: &World<'_>) {
    let mut claim = world.claim(3, "a", 1_000);
    let entry = |seq| Write::Message(entry("g:tea", seq, &[7; 100]));
    world.append(&mut claim, (1..=50).map(entry).collect());
    world.append(&mut claim, vec![Write::Trim { conversation: "g:tea".into(), first_seq: 6 }]);
    let seqs = |after, through, limit_bytes, entries_max, newest_first| {
        let mut work = read("g:tea", after, through, limit_bytes);
        if let Work::Read { entries_max: max, newest_first: newest, fence, .. } = &mut work {
            (*max, *newest, *fence) = (entries_max, newest_first, Some(claim.fence));
        }
        let Ok(Outcome::Entries { entries, first_seq, head }) = world.call(work) else { panic!() };
        assert_eq!((first_seq, head), (6, 50));
        entries.iter().map(|entry| entry.seq).collect::<Vec<_>>()
    };
    let all = usize::MAX >> 1;
    for (after, through, bytes, max, newest, expected) in [
        (0, 50, 1 << 20, all, false, (6..=50).collect::<Vec<_>>()),
        (0, u64::MAX, 1 << 20, all, true, (6..=50).rev().collect()),
        (0, 50, 1 << 20, 3, false, vec![6, 7, 8]),
        (0, 50, 1 << 20, 3, true, vec![50, 49, 48]),
        (0, 48, 250, all, true, vec![48, 47]),
        (0, 50, 0, all, true, vec![50]),
        (40, 50, 1 << 20, 20, true, (41..=50).rev().collect()),
        (3, 8, 1 << 20, 20, true, vec![8, 7, 6]),
        (0, 50, 1 << 20, 0, false, vec![]),
        (0, 5, 1 << 20, 9, true, vec![]),
        (50, 60, 1 << 20, 9, true, vec![]),
        (u64::MAX, u64::MAX, 1, 1, true, vec![]),
    ] {
        assert_eq!(
            seqs(after, through, bytes, max, newest),
            expected,
            "{after} {through} {bytes} {max} {newest}"
        );
    }
    let mut work = read("g:tea", 0, 9, 9_999);
    let Work::Read { fence, .. } = &mut work else { panic!() };
    *fence = Some(claim.fence);
    world.claim(3, "b", 2_000);
    assert_eq!(world.call(work), Err(StoreError::Fenced { partition: 3 }), "a paused owner");
}

fn outstanding(world: &World<'_>) {
    let mut claim = world.claim(3, "a", 1_000);
    assert_eq!(claim.outstanding, []);
    let other = world.claim(4, "a", 1_000);
    let mut seq = 0;
    let mut append = |claim: &mut Claim, named: &[(&str, u64)], fanned_out| {
        seq += 1;
        let mut batch = claim.stamped(vec![message("g:tea", seq)]);
        batch.outstanding = named.iter().map(|(name, seq)| ((*name).to_owned(), *seq)).collect();
        batch.fanned_out = fanned_out;
        claim.position += 1;
        assert_eq!(world.call(Work::Append(batch)), Ok(Outcome::Appended));
    };
    let open = |expected: &[(&str, u64)]| {
        let expected: Vec<_> = expected.iter().map(|(name, seq)| ((*name).to_owned(), *seq)).collect();
        assert_eq!(world.claim(3, "a", 1_000).outstanding, expected);
        world.claim(3, "a", 1_000)
    };
    append(&mut claim, &[("g:tea", 1), ("d:a:b", 9)], 0);
    append(&mut claim, &[], 0);
    append(&mut claim, &[("g:tea", u64::MAX)], 0);
    let first = claim.position - 3;
    claim = open(&[("g:tea", 1), ("d:a:b", 9), ("g:tea", u64::MAX)]);
    append(&mut claim, &[("g:rum", 4)], first);
    world.reopen();
    claim = open(&[("g:tea", 1), ("d:a:b", 9), ("g:tea", u64::MAX), ("g:rum", 4)]);
    append(&mut claim, &[], first + 1);
    claim = open(&[("g:tea", u64::MAX), ("g:rum", 4)]);
    let here = claim.position;
    append(&mut claim, &[("g:tea", 6)], here);
    claim = open(&[("g:tea", 6)]);
    let here = claim.position;
    append(&mut claim, &[], here);
    open(&[]);
    assert_eq!(other.outstanding, []);
}

fn events(world: &World<'_>) {
    let mut claim = world.claim(3, "a", 1_000);
    let begin = claim.position;
    let event = |kind, body: &'static str| Write::Event { kind, body: Bytes::from_static(body.as_bytes()) };
    let set = Write::State { conversation: "g:tea".into(), key: "k".into(), value: None };
    world.append(&mut claim, vec![event("login", "{\"user\":\"alice\"}"), message("g:tea", 1), set]);
    world.append(&mut claim, vec![message("g:tea", 2), event("receipt", "[1,2]")]);
    let found: Vec<_> = world
        .events(3, 0, 100)
        .into_iter()
        .map(|event| (event.id - begin, event.kind, String::from_utf8(event.body.to_vec()).unwrap()))
        .collect();
    let expected = [
        (0, "login", "{\"user\":\"alice\"}"),
        (1, "message", "body 1 \0\u{7f} of g:tea"),
        (3, "message", "body 2 \0\u{7f} of g:tea"),
        (4, "receipt", "[1,2]"),
    ];
    assert_eq!(found, expected.map(|(id, kind, body)| (id, kind.to_owned(), body.to_owned())));
    let ids =
        |after, limit| world.events(3, after, limit).iter().map(|event| event.id - begin).collect::<Vec<_>>();
    assert_eq!((ids(begin, 2), ids(begin + 3, 9), ids(begin + 4, 9)), (vec![1, 3], vec![4], vec![]));
    assert_eq!(world.events(4, 0, 9), []);
    let mut other = world.claim(4, "a", 1_000);
    world.append(&mut other, vec![message("g:rum", 1)]);
    let heads = [(3, begin + 4), (4, other.position - 1)];
    assert_eq!(world.event_heads(), heads);
    world.reopen();
    assert_eq!(ids(0, 9), [0, 1, 3, 4]);
    assert_eq!(world.event_heads(), heads);
}

fn lists(world: &World<'_>) {
    let change = |user: &str, list, item: &str, change| UserItem {
        user: user.into(),
        list,
        item: item.into(),
        change,
    };
    let put = |value: &'static [u8]| Change::Put(Bytes::from_static(value));
    let add = |value: &'static [u8]| Change::Add(Bytes::from_static(value));
    let friends = List::Friends;
    let jobs = vec![
        vec![change("alice", friends, "bob", put(b"1")), change("alice", friends, "carol", add(b"2"))],
        vec![
            change("alice", friends, "bob", add(b"not this")),
            change("alice", friends, "carol", put(b"a\0longer value")),
            change("alice", List::Blocks, "eve", put(b"")),
            change("bob", friends, "alice", put(b"1")),
        ],
        vec![change("alice", friends, "dave", Change::Remove), change("alice", friends, "eve", put(b"x"))],
        vec![
            change("alice", friends, "eve", Change::Remove),
            change("alice", friends, "eve", add(b"back")),
            change("alice", friends, "bo", add(b"a prefix")),
        ],
    ];
    let jobs = jobs.into_iter().map(|items| Work::UserItems { items, claim: None }).collect();
    assert!(world.calls(jobs).iter().all(|outcome| *outcome == Ok(Outcome::UserItemsDone)));
    world.reopen();
    let items = |expected: &[(&str, &'static [u8])]| -> Vec<(String, Bytes)> {
        expected.iter().map(|(item, value)| ((*item).to_owned(), Bytes::from_static(value))).collect()
    };
    let all = items(&[("bo", b"a prefix"), ("bob", b"1"), ("carol", b"a\0longer value"), ("eve", b"back")]);
    assert_eq!(world.list("alice", friends, "", 9), (all.clone(), false));
    assert_eq!(world.list("alice", friends, "", 4), (all.clone(), false));
    assert_eq!(world.list("alice", friends, "", 3), (all[..3].to_vec(), true));
    assert_eq!(world.list("alice", friends, "bo", 2), (all[1..3].to_vec(), true));
    assert_eq!(world.list("alice", friends, "carol", 2), (all[3..].to_vec(), false));
    assert_eq!(world.list("alice", friends, "b", 1), (all[..1].to_vec(), true), "after what is not there");
    assert_eq!(world.list("alice", List::Blocks, "", 9), (items(&[("eve", b"")]), false));
    assert_eq!(world.list("alice", List::Groups, "", 9), (vec![], false));
    assert_eq!(world.list("bob", friends, "", 9), (items(&[("alice", b"1")]), false));
    assert_eq!(world.list("b", friends, "", 9), (vec![], false));

    // What follows from a claim ends with it.
    let partition = user_partition("bob", PARTITIONS);
    let items = || vec![change("bob", friends, "alice", Change::Remove)];
    let under = |fence| world.call(Work::UserItems { items: items(), claim: Some((partition, fence)) });
    let paused = world.claim(partition, "a", 1_000).fence;
    let present = world.claim(partition, "b", 1_000).fence;
    assert_eq!(under(paused), Err(StoreError::Fenced { partition }));
    assert_eq!(world.list("bob", friends, "", 9).0.len(), 1);
    assert_eq!(under(present), Ok(Outcome::UserItemsDone));
    assert_eq!(world.list("bob", friends, "", 9), (vec![], false));
    assert_eq!(under(present), Ok(Outcome::UserItemsDone), "again");
}

fn released(world: &World<'_>) {
    let mut claim = world.claim(3, "a", 1_000);
    world.append(&mut claim, vec![message("g:tea", 1)]);
    let fence = claim.fence;
    let release = || Work::Release { partition: 3, fence };
    assert_eq!(world.call(release()), Ok(Outcome::Released));
    let refused = Err(StoreError::Fenced { partition: 3 });
    assert_eq!(world.call(release()), refused);
    assert_eq!(world.call(claim.batch(vec![message("g:tea", 2)])), refused);
    assert_eq!(world.call(claim.load("g:tea")), refused);
    world.reopen();
    assert_eq!(world.call(claim.batch(vec![message("g:tea", 2)])), refused, "and after a start");
    let mut next = world.claim(3, "b", 500);
    assert!(next.fence.epoch > 1_000 && next.position == claim.position);
    world.append(&mut next, vec![message("g:tea", 2)]);
}

fn refused_whole(world: &World<'_>) {
    let mut claim = world.claim(3, "a", 1_000);
    world.append(
        &mut claim,
        vec![message("g:tea", 1), message("g:tea", 2), moved("g:tea", "alice", "phone", 1, 1)],
    );
    let before = world.load(&claim, "g:tea", Some(stream("phone", u64::MAX)));
    let everything = || {
        vec![
            Write::GroupCreate { conversation: "g:new".into(), members: vec![], version: 1 },
            Write::State {
                conversation: "g:tea".into(),
                key: "k".into(),
                value: Some(Bytes::from_static(b"v")),
            },
            moved("g:tea", "alice", "phone", 2, 2),
            Write::Trim { conversation: "g:tea".into(), first_seq: 2 },
            Write::Replace(entry("g:tea", 2, b"replaced")),
            Write::Event { kind: "login", body: Bytes::from_static(b"{}") },
            message("g:tea", 3),
        ]
    };
    let mut elsewhere = claim.stamped(everything());
    elsewhere.position += 1;
    elsewhere.outstanding = vec![("g:tea".into(), 3)];
    let mut paused = claim.stamped(everything());
    paused.fence.nonce ^= 1;
    paused.outstanding = vec![("g:tea".into(), 3)];
    assert!(matches!(world.call(Work::Append(elsewhere)), Err(StoreError::Position { .. })));
    assert_eq!(world.call(Work::Append(paused)), Err(StoreError::Fenced { partition: 3 }));
    assert_eq!(world.load(&claim, "g:tea", Some(stream("phone", u64::MAX))), before);
    assert_eq!(world.load(&claim, "g:new", None).members, None);
    let cursors = world.cursors(&claim, "g:tea", CursorsOf::User("alice".into()));
    assert_eq!(cursors[0].2.seq, 1);
    assert_eq!(world.events(3, 0, 9).len(), 2);
    assert_eq!(world.read("g:tea", 1, 2, 9_999).0[0].action, 0);
    assert_eq!(world.claim(3, "a", 1_000).outstanding, []);
}
