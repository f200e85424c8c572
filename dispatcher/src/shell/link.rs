//! The transport of one link at its home shard: a socket with a task for each direction, or a pair of in-process
//! queues. What links say is the core's business.
//!
//! The rule that keeps it right: a transport that was lost or replaced touches the core no more. Each task looks at
//! [`Link::lost`] after every await, and the core is never borrowed across one.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{Shutdown, TcpStream as StdTcpStream};
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use millrace_edge::liveness::bound_silence;
use millrace_edge::mailbox;
use monoio::io::{AsyncReadRent, AsyncWriteRentExt, Splitable};
use monoio::net::TcpStream;
use monoio::net::tcp::{TcpOwnedReadHalf, TcpOwnedWriteHalf};

use super::limits::{COPY_BELOW_BYTES, READ_BYTES};
use super::notify::Notify;
use super::points::Passing;
use super::shard::World;
use crate::core::event::LinkKey;

/// One transport.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) key: LinkKey,
    pub(crate) carrier: Carrier,
    /// Set once, by whoever finds out first; the pump then tells the core.
    pub(crate) lost: Cell<bool>,
}

/// What carries the bytes.
#[derive(Debug)]
pub(crate) enum Carrier {
    Socket(Socket),
    Pipe(Pipe),
}

/// Over TCP.
#[derive(Debug)]
pub(crate) struct Socket {
    /// A duplicate, to end both tasks from outside.
    handle: StdTcpStream,
    /// One read at a time waits for the pump: who is not read from, gets no credit.
    chunk: RefCell<Option<Bytes>>,
    taken: Notify,
    /// There may be something to transmit.
    pub(crate) output: Notify,
    /// The writer is at work, or was told to begin.
    pub(crate) writing: Cell<bool>,
}

/// Within the process.
#[derive(Debug)]
pub(crate) struct Pipe {
    pub(crate) from_gateway: mailbox::Receiver<Bytes>,
    pub(crate) to_gateway: mailbox::Sender<Bytes>,
    /// What the full queue did not take.
    pub(crate) held: RefCell<Option<Bytes>>,
}

impl Link {
    /// Takes over an accepted socket, and starts its tasks. `first` was read from it already.
    pub(crate) fn socket(
        world: &Rc<World>,
        key: LinkKey,
        socket: StdTcpStream,
        first: Bytes,
    ) -> io::Result<Rc<Self>> {
        // io_uring answers EAGAIN on a non-blocking socket; epoll needs one.
        socket.set_nonblocking(monoio::utils::is_legacy())?;
        socket.set_nodelay(true)?;
        bound_silence(&socket)?;
        let handle = socket.try_clone()?;
        let (reader, writer) = TcpStream::from_std(socket)?.into_split();
        let carrier = Carrier::Socket(Socket {
            handle,
            chunk: RefCell::new(Some(first)),
            taken: Notify::default(),
            output: Notify::default(),
            writing: Cell::new(false),
        });
        let link = Rc::new(Link { key, carrier, lost: Cell::new(false) });
        monoio::spawn(read(Rc::clone(world), Rc::clone(&link), reader));
        monoio::spawn(write(Rc::clone(world), Rc::clone(&link), writer));
        Ok(link)
    }

    /// Takes over a pair of queues.
    pub(crate) fn pipe(
        key: LinkKey,
        from_gateway: mailbox::Receiver<Bytes>,
        to_gateway: mailbox::Sender<Bytes>,
    ) -> Rc<Self> {
        let carrier = Carrier::Pipe(Pipe { from_gateway, to_gateway, held: RefCell::new(None) });
        Rc::new(Link { key, carrier, lost: Cell::new(false) })
    }

    /// The next received bytes, if any. `lost` is set when the stream has ended and everything was taken.
    pub(crate) fn take(&self) -> Option<Bytes> {
        match &self.carrier {
            Carrier::Socket(socket) => {
                let chunk = socket.chunk.borrow_mut().take();
                if chunk.is_some() {
                    socket.taken.notify();
                }
                chunk
            }
            Carrier::Pipe(pipe) => {
                let closed = pipe.from_gateway.is_closed() || pipe.to_gateway.is_closed();
                let chunk = pipe.from_gateway.recv();
                if chunk.is_none() && closed {
                    self.lost.set(true);
                }
                chunk
            }
        }
    }

    /// Ends the transport: its tasks return, its peer sees the end of the stream.
    pub(crate) fn end(&self) {
        self.lost.set(true);
        if let Carrier::Socket(socket) = &self.carrier {
            // An error means that it has ended already.
            let _ = socket.handle.shutdown(Shutdown::Both);
            socket.taken.notify();
            socket.output.notify();
        }
    }
}

fn socket_of(link: &Link) -> &Socket {
    match &link.carrier {
        Carrier::Socket(socket) => socket,
        Carrier::Pipe(_) => unreachable!("only sockets have tasks"),
    }
}

async fn read(world: Rc<World>, link: Rc<Link>, mut half: TcpOwnedReadHalf) {
    let socket = socket_of(&link);
    let mut buffer = BytesMut::new();
    loop {
        // What was read before (the hello at first) goes to the core before anything else is read.
        while socket.chunk.borrow().is_some() {
            world.link_ready(&link);
            socket.taken.notified().await;
            if link.lost.get() {
                return;
            }
        }
        // Room for a whole batch again once less than half is left; the rest of a shared buffer is used up first.
        if buffer.capacity() < READ_BYTES / 2 {
            buffer = BytesMut::with_capacity(READ_BYTES);
        }
        let (result, filled) = half.read(buffer).await;
        buffer = filled;
        if link.lost.get() {
            return;
        }
        match result {
            Ok(0) | Err(_) => break,
            Ok(count) if count < COPY_BELOW_BYTES => {
                *socket.chunk.borrow_mut() = Some(Bytes::copy_from_slice(&buffer));
                buffer.clear();
            }
            Ok(_) => *socket.chunk.borrow_mut() = Some(buffer.split().freeze()),
        }
    }
    link.end();
    world.link_ready(&link);
}

async fn write(world: Rc<World>, link: Rc<Link>, mut half: TcpOwnedWriteHalf) {
    let socket = socket_of(&link);
    loop {
        socket.writing.set(false);
        socket.output.notified().await;
        loop {
            if link.lost.get() {
                return;
            }
            let Some(batch) = world.transmit(link.key) else { break };
            socket.writing.set(true);
            let passing = Passing::begin(&batch);
            let (result, _) = half.write_all(batch).await;
            passing.end();
            if result.is_err() && !link.lost.get() {
                link.end();
                world.link_ready(&link);
            }
        }
    }
}
