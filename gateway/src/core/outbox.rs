//! What waits behind the one send in flight of each connection.
//!
//! Queues are lists of nodes in one pool per shard: an idle connection holds twelve bytes and no capacity. A node
//! refers to a shared frame or holds bytes of its own; what waits is copied together into the next send. The pool
//! counts bytes and nodes, and refuses; what a refusal means (SLOW_CONSUMER) is its caller's business.

use super::action::Payload;
use super::limits::{OUTBOX_NODES_MAX, SEND_BYTES_MAX};
use super::slab::Slab;
use super::users::NONE;

/// One connection's queue.
#[derive(Debug)]
pub struct Queue {
    head: u32,
    tail: u32,
    bytes: u32,
}

impl Default for Queue {
    fn default() -> Self {
        Queue { head: NONE, tail: NONE, bytes: 0 }
    }
}

impl Queue {
    /// Bytes that wait.
    #[inline]
    pub fn bytes(&self) -> u32 {
        self.bytes
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.head == NONE
    }
}

struct Node {
    payload: Payload,
    next: u32,
}

/// The nodes of all queues of a shard.
#[derive(Default)]
pub struct Pool {
    nodes: Slab<Node>,
    free: Vec<u32>,
    next: u32,
    bytes: u64,
}

/// Bytes of a payload.
#[inline]
pub fn payload_bytes(payload: &Payload) -> &[u8] {
    match payload {
        Payload::Shared { bytes, start } => &bytes[*start as usize..],
        Payload::Owned(bytes) => bytes,
    }
}

impl Pool {
    /// Nodes in use.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether all queues are empty.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Bytes in all queues (shared frames count once per queue).
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds to a queue unless that would exceed `bytes_max`, or the pool's nodes. Returns whether it was added.
    #[inline]
    pub fn push(&mut self, queue: &mut Queue, payload: Payload, bytes_max: u32) -> bool {
        let bytes = payload_bytes(&payload).len();
        if queue.bytes as usize + bytes > bytes_max as usize || self.nodes.len() >= OUTBOX_NODES_MAX as usize
        {
            return false;
        }
        let id = self.take(Node { payload, next: NONE });
        match self.nodes.get_mut(queue.tail) {
            Some(tail) if queue.tail != NONE => tail.next = id,
            _ => queue.head = id,
        }
        queue.tail = id;
        queue.bytes += bytes as u32;
        self.bytes += bytes as u64;
        true
    }

    /// Adds at the front, above all caps: for the one answer that everything else waits for.
    pub fn push_first(&mut self, queue: &mut Queue, payload: Payload) {
        let bytes = payload_bytes(&payload).len();
        queue.head = self.take(Node { payload, next: queue.head });
        if queue.tail == NONE {
            queue.tail = queue.head;
        }
        queue.bytes += bytes as u32;
        self.bytes += bytes as u64;
    }

    #[inline]
    fn take(&mut self, node: Node) -> u32 {
        let id = self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        });
        self.nodes.insert(id, node);
        id
    }

    #[inline]
    fn pop(&mut self, queue: &mut Queue) -> Option<Payload> {
        let node = self.nodes.remove(queue.head)?;
        self.free.push(queue.head);
        queue.head = node.next;
        if queue.head == NONE {
            queue.tail = NONE;
            if self.nodes.is_empty() {
                // A storm is over: give back what it took.
                self.free = Vec::new();
                self.next = 0;
            }
        }
        let bytes = payload_bytes(&node.payload).len();
        queue.bytes -= bytes as u32;
        self.bytes -= bytes as u64;
        Some(node.payload)
    }

    /// The next send: the first payload as it is, or as many as fit copied together.
    #[inline]
    pub fn next_send(&mut self, queue: &mut Queue) -> Option<Payload> {
        let first = self.pop(queue)?;
        let fits = |pool: &Pool, queue: &Queue, bytes: usize| {
            let next = pool.nodes.get(queue.head).filter(|_| queue.head != NONE);
            next.is_some_and(|node| bytes + payload_bytes(&node.payload).len() <= SEND_BYTES_MAX)
        };
        if !fits(self, queue, payload_bytes(&first).len()) {
            return Some(first);
        }
        let mut together = payload_bytes(&first).to_vec();
        while fits(self, queue, together.len()) {
            let next = self.pop(queue)?;
            together.extend_from_slice(payload_bytes(&next));
        }
        Some(Payload::Owned(together))
    }

    /// Drops everything that waits.
    pub fn clear(&mut self, queue: &mut Queue) {
        while self.pop(queue).is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    #[test]
    fn copies_together_in_order_and_keeps_the_cap() {
        let (mut pool, mut queue) = (Pool::default(), Queue::default());
        let shared: Rc<[u8]> = b"xx-shared".as_slice().into();
        assert!(pool.push(&mut queue, Payload::Owned(b"one ".to_vec()), 20));
        assert!(pool.push(&mut queue, Payload::Shared { bytes: shared.clone(), start: 2 }, 20));
        assert!(!pool.push(&mut queue, Payload::Owned(vec![0; 10]), 20), "above the cap");
        assert_eq!((queue.bytes(), pool.len(), Rc::strong_count(&shared)), (11, 2, 2));
        let send = pool.next_send(&mut queue).unwrap();
        assert_eq!(payload_bytes(&send), b"one -shared");
        assert!(
            pool.is_empty() && queue.is_empty() && pool.bytes() == 0 && pool.next_send(&mut queue).is_none()
        );
        assert_eq!(Rc::strong_count(&shared), 1);
    }

    #[test]
    fn a_send_stays_of_bounded_size() {
        let (mut pool, mut queue) = (Pool::default(), Queue::default());
        for _ in 0..5 {
            assert!(pool.push(&mut queue, Payload::Owned(vec![7; SEND_BYTES_MAX / 2]), u32::MAX));
        }
        let sizes: Vec<usize> =
            std::iter::from_fn(|| pool.next_send(&mut queue)).map(|p| payload_bytes(&p).len()).collect();
        assert_eq!(sizes, [SEND_BYTES_MAX, SEND_BYTES_MAX, SEND_BYTES_MAX / 2]);
    }

    #[test]
    fn two_queues_share_a_pool() {
        let (mut pool, mut a, mut b) = (Pool::default(), Queue::default(), Queue::default());
        for i in 0..10u8 {
            assert!(pool.push(if i % 2 == 0 { &mut a } else { &mut b }, Payload::Owned(vec![i]), 100));
        }
        assert_eq!(payload_bytes(&pool.next_send(&mut a).unwrap()), [0, 2, 4, 6, 8]);
        pool.clear(&mut b);
        assert!(pool.is_empty() && b.bytes() == 0);
    }
}
