//! Replies on their way out: written one behind the other, sent many at once. Sans-I/O.
//!
//! Invariants: `unsent_bytes` is the sum of what `queue` and `tail` hold; no buffer in `queue` is
//! empty.

use std::collections::VecDeque;
use std::io::IoSlice;

use super::buffer::{Buffer, Pool};

/// Bytes of the buffers that small replies gather in.
const GATHER_BYTES: usize = 256 << 10;
/// Replies up to this size are copied rather than sent as a piece of their own.
const COPIED_BYTES: usize = 1 << 10;
/// Pieces in one vectored write.
pub const MAX_PIECES: usize = 16;

/// The sending side of one connection.
#[derive(Debug, Default)]
pub struct Outbox {
    queue: VecDeque<Buffer>,
    /// Behind the queue; the next reply is appended to it.
    tail: Buffer,
    unsent_bytes: usize,
}

impl Outbox {
    /// Bytes not yet sent.
    pub fn unsent_bytes(&self) -> usize {
        self.unsent_bytes
    }

    /// A buffer with room for at least `count` bytes at the end of the queue. What is appended to
    /// it is announced by [`Outbox::grown`].
    pub fn tail(&mut self, count: usize, pool: &mut Pool) -> &mut Buffer {
        if self.tail.room() < count {
            let full = std::mem::replace(&mut self.tail, pool.take(count.max(GATHER_BYTES)));
            self.enqueue(full, pool);
        }
        &mut self.tail
    }

    fn enqueue(&mut self, buffer: Buffer, pool: &mut Pool) {
        if buffer.filled().is_empty() {
            pool.give(buffer);
        } else {
            self.queue.push_back(buffer);
        }
    }

    /// So many bytes were appended to the tail.
    pub fn grown(&mut self, count: usize) {
        self.unsent_bytes += count;
    }

    /// A reply in a buffer of its own; a small one is copied behind the others.
    pub fn push(&mut self, reply: Buffer, pool: &mut Pool) {
        let length = reply.filled().len();
        self.unsent_bytes += length;
        if length <= COPIED_BYTES {
            self.tail(length, pool).append(reply.filled());
            return pool.give(reply);
        }
        let before = std::mem::take(&mut self.tail);
        self.enqueue(before, pool);
        self.enqueue(reply, pool);
    }

    /// The first pieces to send; returns how many of `pieces` are filled.
    pub fn pieces<'a>(&'a self, pieces: &mut [IoSlice<'a>; MAX_PIECES]) -> usize {
        let all = self.queue.iter().chain(std::iter::once(&self.tail));
        let filled = all.filter(|buffer| !buffer.filled().is_empty());
        let mut count = 0;
        for (piece, buffer) in pieces.iter_mut().zip(filled) {
            *piece = IoSlice::new(buffer.filled());
            count += 1;
        }
        count
    }

    /// So many bytes were sent.
    pub fn sent(&mut self, mut count: usize, pool: &mut Pool) {
        self.unsent_bytes = self.unsent_bytes.saturating_sub(count);
        while let Some(first) = self.queue.front_mut() {
            let here = first.filled().len().min(count);
            first.consume(here);
            count -= here;
            if !first.filled().is_empty() {
                return;
            }
            if let Some(empty) = self.queue.pop_front() {
                pool.give(empty);
            }
        }
        self.tail.consume(count);
        // An idle connection keeps no more than one buffer to gather in.
        if self.unsent_bytes == 0 && self.tail.capacity() > GATHER_BYTES {
            pool.give(std::mem::take(&mut self.tail));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send_all(outbox: &mut Outbox, pool: &mut Pool, step: usize) -> Vec<u8> {
        let mut sent = Vec::new();
        while outbox.unsent_bytes() > 0 {
            let mut pieces = [IoSlice::new(&[]); MAX_PIECES];
            let count = outbox.pieces(&mut pieces);
            let all: Vec<u8> = pieces[..count].iter().flat_map(|p| p.iter().copied()).collect();
            let now = all.len().min(step);
            sent.extend(&all[..now]);
            outbox.sent(now, pool);
        }
        sent
    }

    #[test]
    fn replies_leave_in_the_order_they_came() {
        let (mut outbox, mut pool) = (Outbox::default(), Pool::default());
        let mut expected: Vec<u8> = Vec::new();
        for round in 0..200usize {
            let data = vec![round as u8; 1 + round * 37];
            expected.extend(&data);
            if round % 3 == 0 {
                let mut own = Buffer::new(data.len());
                own.append(&data);
                outbox.push(own, &mut pool);
            } else {
                outbox.tail(data.len(), &mut pool).append(&data);
                outbox.grown(data.len());
            }
        }
        assert_eq!(outbox.unsent_bytes(), expected.len());
        assert_eq!(send_all(&mut outbox, &mut pool, 1009), expected);
    }

    #[test]
    fn a_large_reply_is_not_kept() {
        let (mut outbox, mut pool) = (Outbox::default(), Pool::default());
        let size = 8 << 20;
        outbox.tail(size, &mut pool).commit(size);
        outbox.grown(size);
        send_all(&mut outbox, &mut pool, usize::MAX);
        assert!(outbox.queue.is_empty() && outbox.tail.capacity() == 0);
    }
}
