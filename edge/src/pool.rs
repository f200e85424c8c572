//! Receive buffers of one shard: a capped number, allocated in chunks when first needed, lent and given back.
//!
//! A [`Buf`] derefs to the bytes received and returns to its pool when dropped. Between `Buf::into_flight` and
//! `Pool::landed` a buffer belongs to the kernel and is known by its index only. It leaves to the backends who waits
//! when the pool is empty.
//!
//! The rule that keeps it right: chunks never move and are freed with the last handle only, and a backend that can't
//! prove that the kernel is done leaks a handle.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::rc::Rc;

use crate::limits::{POOL_CHUNK_BUFFERS, RECV_BUFFER_BYTES};
use crate::wake::Waker;

const CHUNK_BYTES: usize = POOL_CHUNK_BUFFERS as usize * RECV_BUFFER_BYTES;

/// A handle on the buffers of a shard; clones share them.
#[derive(Clone)]
pub struct Pool {
    inner: Rc<Inner>,
}

struct Inner {
    /// Start of each chunk of `CHUNK_BYTES`. Raw, because the kernel writes into chunks while others are borrowed.
    chunks: RefCell<Vec<NonNull<u8>>>,
    /// Last in, first out: the warmest buffer is lent next.
    free: RefCell<Vec<u32>>,
    /// Buffers that exist; the free ones among them are in `free`.
    made: Cell<u32>,
    buffers_max: u32,
    lent: Cell<u32>,
    /// Somebody waits for a buffer: the next one to return wakes the shard.
    starved: Cell<bool>,
    waker: Option<Waker>,
}

impl Pool {
    /// A pool of at most `buffers_max` buffers; `waker` is woken when one returns after [`Pool::note_starved`].
    pub fn new(buffers_max: u32, waker: Option<Waker>) -> Self {
        Self {
            inner: Rc::new(Inner {
                chunks: RefCell::new(Vec::new()),
                free: RefCell::new(Vec::new()),
                made: Cell::new(0),
                buffers_max: buffers_max.max(1),
                lent: Cell::new(0),
                starved: Cell::new(false),
                waker,
            }),
        }
    }

    /// Lends an empty buffer, or nothing when all are out.
    pub fn lend(&self) -> Option<Buf> {
        let inner = &self.inner;
        let index = match inner.free.borrow_mut().pop() {
            Some(index) => index,
            None => inner.make()?,
        };
        inner.lent.set(inner.lent.get() + 1);
        Some(Buf { pool: self.clone(), start: inner.start(index), index, len: 0 })
    }

    /// Whether a buffer could be lent now.
    pub fn has_free(&self) -> bool {
        self.inner.lent.get() < self.inner.buffers_max
    }

    /// Buffers out now, those in the kernel included.
    pub fn lent(&self) -> u32 {
        self.inner.lent.get()
    }

    /// Asks for a wake when the next buffer returns.
    pub fn note_starved(&self) {
        self.inner.starved.set(true);
    }

    /// Takes back the buffer that [`Buf::into_flight`] gave away, with the first `len` bytes filled.
    pub(crate) fn landed(&self, index: u32, len: usize) -> Buf {
        assert!(index < self.inner.made.get() && len <= RECV_BUFFER_BYTES, "not a buffer of this pool");
        Buf { pool: self.clone(), start: self.inner.start(index), index, len: len as u32 }
    }

    /// Never frees the memory: for a kernel that has not given all buffers back.
    pub(crate) fn leak(&self) {
        std::mem::forget(self.clone());
    }
}

impl Inner {
    fn make(&self) -> Option<u32> {
        let index = self.made.get();
        if index == self.buffers_max {
            return None;
        }
        if index.is_multiple_of(POOL_CHUNK_BUFFERS) {
            // Zeroed, so that what a buffer shows is initialised memory always; untouched pages cost nothing.
            let chunk = Box::into_raw(vec![0u8; CHUNK_BYTES].into_boxed_slice());
            let start = NonNull::new(chunk.cast::<u8>()).expect("a box is never null");
            self.chunks.borrow_mut().push(start);
        }
        self.made.set(index + 1);
        Some(index)
    }

    fn start(&self, index: u32) -> NonNull<u8> {
        let chunk = self.chunks.borrow()[(index / POOL_CHUNK_BUFFERS) as usize];
        let offset = (index % POOL_CHUNK_BUFFERS) as usize * RECV_BUFFER_BYTES;
        // SAFETY: `index` is below `made`, so its chunk exists, and the offset is inside its CHUNK_BYTES.
        unsafe { chunk.add(offset) }
    }

    fn give_back(&self, index: u32) {
        self.lent.set(self.lent.get() - 1);
        self.free.borrow_mut().push(index);
        if self.starved.replace(false)
            && let Some(waker) = &self.waker
        {
            waker.wake();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for chunk in self.chunks.get_mut().drain(..) {
            let slice = std::ptr::slice_from_raw_parts_mut(chunk.as_ptr(), CHUNK_BYTES);
            // SAFETY: made by `Box::into_raw` of exactly this slice. Every Buf holds a handle on the pool, and so
            // does an edge until the kernel is done with its buffers (or it leaked one): nobody points here now.
            drop(unsafe { Box::from_raw(slice) });
        }
    }
}

/// A buffer with received bytes. They may be changed in place.
pub struct Buf {
    pool: Pool,
    start: NonNull<u8>,
    index: u32,
    len: u32,
}

impl Buf {
    /// Where the kernel may write up to [`RECV_BUFFER_BYTES`].
    pub(crate) fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Gives the buffer to the kernel: it stays lent, and only `Pool::landed` brings it back.
    pub(crate) fn into_flight(self) -> u32 {
        let index = self.index;
        let mut buf = std::mem::ManuallyDrop::new(self);
        // SAFETY: `buf` is never used again, so its handle on the pool is dropped exactly once.
        unsafe { std::ptr::drop_in_place(&mut buf.pool) };
        index
    }

    /// Fills the buffer with as much of `bytes` as fits, and returns how much that is.
    pub fn fill(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(RECV_BUFFER_BYTES);
        self.len = taken as u32;
        self.copy_from_slice(&bytes[..taken]);
        taken
    }

    /// Says that the first `len` bytes from the start were written (by a system call that got `start()`).
    pub(crate) fn set_len(&mut self, len: usize) {
        assert!(len <= RECV_BUFFER_BYTES, "more than a buffer holds");
        self.len = len as u32;
    }
}

impl Deref for Buf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `start` has RECV_BUFFER_BYTES initialised bytes in a chunk that `pool` keeps alive; the index is
        // lent to this Buf alone, and `len` is at most the size.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len as usize) }
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len as usize) }
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        self.pool.inner.give_back(self.index);
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buf({} bytes)", self.len)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} of {} lent)", self.inner.lent.get(), self.inner.buffers_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lends_up_to_the_cap_and_wakes_the_starved() {
        let waker = Waker::new().unwrap();
        let pool = Pool::new(3, Some(waker.clone()));
        let mut out: Vec<Buf> = (0..3).map(|_| pool.lend().unwrap()).collect();
        assert!(pool.lend().is_none() && !pool.has_free());
        drop(out.pop());
        assert_eq!(waker.drain(), 0, "nobody was starved");
        out.push(pool.lend().unwrap());
        pool.note_starved();
        out.clear();
        assert_eq!((waker.drain(), pool.lent()), (1, 0));
    }

    #[test]
    fn buffers_are_apart_and_outlive_the_pool() {
        let pool = Pool::new(POOL_CHUNK_BUFFERS * 2, None);
        let mut bufs: Vec<Buf> = (0..POOL_CHUNK_BUFFERS * 2).map(|_| pool.lend().unwrap()).collect();
        for (i, buf) in bufs.iter_mut().enumerate() {
            assert_eq!(buf.fill(&vec![i as u8; RECV_BUFFER_BYTES + 1]), RECV_BUFFER_BYTES);
        }
        drop(pool);
        for (i, buf) in bufs.iter().enumerate() {
            assert!(buf.iter().all(|&byte| byte == i as u8));
        }
    }

    #[test]
    fn a_flight_keeps_the_buffer_lent() {
        let pool = Pool::new(1, None);
        let mut buf = pool.lend().unwrap();
        buf.fill(b"hello");
        let index = buf.into_flight();
        assert!(pool.lend().is_none());
        assert_eq!(&*pool.landed(index, 5), b"hello");
        assert_eq!(pool.lent(), 0);
    }
}
