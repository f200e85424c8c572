//! A gateway for tests: real sockets and the real codec, one log, and faults on demand.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use millrace_protocol::frame::FrameKind;
use millrace_protocol::messages::client::request::Op;
use millrace_protocol::messages::client::response::Outcome;
use millrace_protocol::messages::client::{
    Code, ConversationItem, ConversationPage, Cursor, Deliver, Done, GoAway, Head, Joined, Left, LoggedOut,
    Login, LoginAck, Notify, PeekItem, Peeked, Refused, Request, Response, Send, SendAck, Standing, SyncPage,
    notify,
};
use millrace_protocol::prost::Message;
use millrace_protocol::transport::{Input, Limits, Received, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;
use tokio::task::JoinHandle;

/// What every connection is told to do.
#[derive(Clone, Debug)]
pub enum Order {
    Notify(notify::Event),
    Drop,
}

/// Everything that is asserted on, and the faults to come.
#[derive(Default)]
pub struct State {
    pub logins: Vec<(Instant, Login)>,
    /// Answers to the next logins, before they are accepted.
    pub refuse_logins: Vec<Refused>,
    pub heartbeat_ms: u32,
    pub log: Vec<(String, Bytes)>,
    last: HashMap<(String, u64), u64>,
    answers: HashMap<(String, u64, u64), u64>,
    /// Drops the connection after taking this many further messages, without answering the last ones.
    pub drop_after: Option<u32>,
    /// Answers BUSY to this many further messages.
    pub busy: u32,
    /// Takes messages and never answers.
    pub mute: bool,
    /// Requests other than messages, as they came, and messages as "send <conversation>".
    pub asked: Vec<String>,
    pub pings: u32,
    /// Logs of groups that are read in pages.
    pub groups: BTreeMap<String, Vec<Bytes>>,
    /// What was acknowledged last.
    pub acknowledged: BTreeMap<String, u64>,
    /// Messages sent, with what they are.
    pub sent: Vec<Send>,
    /// Frames written of those ordered.
    pub written: u64,
}

pub struct Gateway {
    pub address: SocketAddr,
    pub state: Arc<Mutex<State>>,
    orders: broadcast::Sender<Order>,
    accepting: JoinHandle<()>,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Gateway {
    pub async fn start() -> Gateway {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State { heartbeat_ms: 10_000, ..State::default() }));
        let (orders, _) = broadcast::channel(100_000);
        let accepting = tokio::spawn({
            let (state, orders) = (Arc::clone(&state), orders.clone());
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(serve(stream, Arc::clone(&state), orders.subscribe()));
                }
            }
        });
        Gateway { address, state, orders, accepting }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn order(&self, order: Order) {
        self.orders.send(order).unwrap();
    }

    pub fn deliver(&self, epoch: u64, seq: u64, sender: &str, payload: impl Into<Bytes>) {
        self.deliver_to("r:lobby", epoch, seq, sender, payload);
    }

    pub fn deliver_to(
        &self,
        conversation: &str,
        epoch: u64,
        seq: u64,
        sender: &str,
        payload: impl Into<Bytes>,
    ) {
        self.order(Order::Notify(notify::Event::Deliver(Deliver {
            conversation: conversation.into(),
            seq,
            epoch,
            sender: sender.into(),
            sender_device: "phone".into(),
            payload: payload.into(),
            ..Deliver::default()
        })));
    }

    pub fn go_away(&self, code: Code, retry_after_ms: u32) {
        let away = GoAway { code: code.into(), reason: "as ordered".into(), retry_after_ms };
        self.order(Order::Notify(notify::Event::GoAway(away)));
        self.order(Order::Drop);
    }

    pub fn head(&self, conversation: &str) {
        self.order(Order::Notify(notify::Event::Head(Head {
            conversation: conversation.into(),
            epoch: 1,
            seq: 5,
        })));
    }
}

pub fn refused(code: Code, retry_after_ms: u32) -> Refused {
    Refused { code: code.into(), reason: "as ordered".into(), retry_after_ms, expected: 0 }
}

/// One connection. Returns when it is over.
async fn serve(mut stream: TcpStream, state: Arc<Mutex<State>>, mut orders: broadcast::Receiver<Order>) {
    let mut transport = Transport::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let mut out = Vec::new();
        let mut over = false;
        let mut ordered = 0;
        tokio::select! {
            read = stream.read(&mut buffer) => {
                let Ok(count @ 1..) = read else { return };
                let mut input = Received::new(&mut buffer[..count]);
                let mut frames = Vec::new();
                loop {
                    match transport.next(&mut input, &Limits::default()).expect("the client keeps the protocol") {
                        None => break,
                        Some(Input::Frame { kind, body }) => frames.push((kind, body.to_vec())),
                        Some(Input::Upgrade(answer)) => out.extend(answer),
                        Some(Input::WsClose { .. }) => over = true,
                        Some(_) => {}
                    }
                }
                for (kind, body) in frames {
                    if kind == FrameKind::Ping {
                        let mut state = state.lock().unwrap();
                        state.pings += 1;
                        if !state.mute {
                            out.extend_from_slice(transport.pong());
                        }
                        continue;
                    }
                    let Request { id, op } = Request::decode(&body[..]).unwrap();
                    match answer(&mut state.lock().unwrap(), op.unwrap()) {
                        Reply::Outcome(outcome) => {
                            let response = Response { id, outcome: Some(outcome) };
                            out.extend(transport.encode_message(FrameKind::Response, &response));
                        }
                        Reply::Nothing => {}
                        Reply::Drop => { over = true; break }
                    }
                }
            }
            order = orders.recv() => match order {
                Ok(Order::Notify(event)) => {
                    out.extend(transport.encode_message(FrameKind::Notify, &Notify { event: Some(event) }));
                    ordered = 1;
                }
                Ok(Order::Drop) | Err(_) => over = true,
            }
        }
        if stream.write_all(&out).await.is_err() {
            return;
        }
        state.lock().unwrap().written += ordered;
        if over {
            // Everything sent before arrives: an end, not a reset.
            let _ = stream.shutdown().await;
            let _ = tokio::time::timeout(Duration::from_millis(200), async {
                while matches!(stream.read(&mut buffer).await, Ok(1..)) {}
            })
            .await;
            return;
        }
    }
}

enum Reply {
    Outcome(Outcome),
    Nothing,
    Drop,
}

fn answer(state: &mut State, op: Op) -> Reply {
    Reply::Outcome(match op {
        Op::Login(login) => {
            state.logins.push((Instant::now(), login));
            if !state.refuse_logins.is_empty() {
                return Reply::Outcome(Outcome::Refused(state.refuse_logins.remove(0)));
            }
            Outcome::LoginAck(LoginAck {
                session: state.logins.len() as u64,
                user: "alice".into(),
                heartbeat_interval_ms: state.heartbeat_ms,
                resume_ticket: Bytes::from(format!("ticket {}", state.logins.len())),
                server_time_ms: 0,
                groups: 0,
            })
        }
        Op::Send(send) => {
            state.asked.push(format!("send {}", send.conversation));
            state.sent.push(send.clone());
            if state.busy > 0 {
                state.busy -= 1;
                return Reply::Outcome(Outcome::Refused(refused(Code::Busy, 50)));
            }
            let lane = (send.conversation.clone(), send.stream);
            let key = (send.conversation.clone(), send.stream, send.client_seq);
            let outcome = match state.answers.get(&key) {
                Some(seq) => Outcome::SendAck(SendAck { seq: *seq, epoch: 1, ..SendAck::default() }),
                None => {
                    let last = state.last.entry(lane).or_default();
                    if send.client_seq != *last + 1 {
                        let expected = *last + 1;
                        return Reply::Outcome(Outcome::Refused(Refused {
                            expected,
                            ..refused(Code::OutOfOrder, 0)
                        }));
                    }
                    *last += 1;
                    state.log.push((send.conversation, send.payload));
                    let seq = state.log.len() as u64;
                    state.answers.insert(key, seq);
                    Outcome::SendAck(SendAck { seq, epoch: 1, ..SendAck::default() })
                }
            };
            if let Some(left) = &mut state.drop_after {
                *left -= 1;
                if *left == 0 {
                    state.drop_after = None;
                    return Reply::Drop;
                }
                return Reply::Nothing;
            }
            if state.mute {
                return Reply::Nothing;
            }
            outcome
        }
        Op::RoomJoin(join) => {
            state.asked.push(format!("join r:{}", join.room));
            let conversation = format!("r:{}", join.room);
            Outcome::Joined(Joined { conversation, epoch: 1, head: 7, members: 0 })
        }
        Op::RoomLeave(leave) => {
            state.asked.push(format!("leave r:{}", leave.room));
            Outcome::Left(Left { conversation: format!("r:{}", leave.room) })
        }
        Op::Conversations(_) => {
            let item = |name: &String| ConversationItem { conversation: name.clone(), ..Default::default() };
            let items = state.groups.keys().map(item).collect();
            Outcome::ConversationPage(ConversationPage { items, more: false })
        }
        Op::Peek(peek) => {
            let standing = |item: PeekItem| {
                let seq = state.groups.get(&item.conversation).map_or(0, |log| log.len() as u64);
                Standing {
                    conversation: item.conversation,
                    head: Some(Cursor { epoch: 1, seq }),
                    news: item.cursor.is_none_or(|cursor| cursor.seq < seq),
                    ..Standing::default()
                }
            };
            Outcome::Peeked(Peeked { standings: peek.items.into_iter().map(standing).collect() })
        }
        Op::Sync(sync) => {
            state.asked.push(format!("sync {}", sync.conversation));
            let after = sync.after.unwrap_or_default().seq;
            Outcome::SyncPage(page(state, &sync.conversation, after + 1))
        }
        Op::History(ask) => {
            let mut page = page(state, &ask.conversation, ask.before.saturating_sub(10).max(1));
            page.entries.retain(|entry| seq_of(entry) < ask.before);
            page.entries.reverse();
            Outcome::SyncPage(page)
        }
        Op::DeliverAck(ack) => {
            state.acknowledged.insert(ack.conversation, ack.cursor.unwrap_or_default().seq);
            return Reply::Nothing;
        }
        Op::Read(_) | Op::PresenceSet(_) | Op::GroupInvite(_) => Outcome::Done(Done {}),
        Op::GroupCreate(_) => Outcome::Refused(refused(Code::GroupExists, 0)),
        Op::Logout(_) => {
            state.asked.push("logout".into());
            Outcome::LoggedOut(LoggedOut {})
        }
        other => panic!("not asked in these tests: {other:?}"),
    })
}

/// Ten entries of a group from this seq on.
fn page(state: &State, conversation: &str, from: u64) -> SyncPage {
    let empty = Vec::new();
    let log = state.groups.get(conversation).unwrap_or(&empty);
    let entry = |(seq, payload): (u64, &Bytes)| Notify {
        event: Some(notify::Event::Deliver(Deliver {
            conversation: conversation.into(),
            seq,
            epoch: 1,
            sender: "bob".into(),
            payload: payload.clone(),
            ..Deliver::default()
        })),
    };
    let entries: Vec<Notify> = (1..).zip(log).skip(from as usize - 1).take(10).map(entry).collect();
    let head = log.len() as u64;
    let more = entries.last().is_some_and(|last| seq_of(last) < head);
    SyncPage { conversation: conversation.into(), entries, epoch: 1, head, more, ..SyncPage::default() }
}

fn seq_of(entry: &Notify) -> u64 {
    match &entry.event {
        Some(notify::Event::Deliver(deliver)) => deliver.seq,
        _ => 0,
    }
}
