//! What waits to be sent. Headers and short data are gathered in flat runs, long data stays in the
//! buffer it was read into; one vectored write takes many of both.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;
use std::sync::Arc;

use super::pool::Buffer;

/// A flat run is closed at this length, so that its memory can be used again soon.
const RUN_BYTES: usize = 256 << 10;
/// Sent runs kept for use again.
const MAX_SPARE_RUNS: usize = 2;

#[derive(Debug)]
enum Chunk {
    Run(Vec<u8>),
    Long(Arc<Buffer>, Range<usize>),
}

impl Chunk {
    fn bytes(&self) -> &[u8] {
        match self {
            Chunk::Run(run) => run,
            Chunk::Long(buffer, range) => buffer.get(range.clone()).unwrap_or_default(),
        }
    }
}

/// Bytes in order, not yet taken by the socket: the closed chunks, then the open run.
#[derive(Debug, Default)]
pub struct Outbox {
    chunks: VecDeque<Chunk>,
    open: Vec<u8>,
    /// Bytes of the first chunk (or of the open run, where it is the first) that are sent.
    sent: usize,
    queued: usize,
    spare: Vec<Vec<u8>>,
}

impl Outbox {
    /// Bytes that wait.
    pub fn queued_bytes(&self) -> usize {
        self.queued
    }

    /// True where nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queued == 0
    }

    fn close_run(&mut self) {
        if !self.open.is_empty() {
            let fresh = self.spare.pop().unwrap_or_default();
            self.chunks.push_back(Chunk::Run(std::mem::replace(&mut self.open, fresh)));
        }
    }

    fn run(&mut self, more: usize) -> &mut Vec<u8> {
        if self.open.len() + more > RUN_BYTES {
            self.close_run();
        }
        &mut self.open
    }

    /// Appends a copy.
    pub fn push(&mut self, bytes: &[u8]) {
        self.queued += bytes.len();
        self.run(bytes.len()).extend_from_slice(bytes);
    }

    /// Appends part of a buffer without copying it.
    pub fn push_long(&mut self, buffer: &Arc<Buffer>, range: Range<usize>) {
        if !range.is_empty() && range.end <= buffer.len() {
            self.close_run();
            self.queued += range.len();
            self.chunks.push_back(Chunk::Long(Arc::clone(buffer), range));
        }
    }

    /// Lets `fill` write `bytes` in place; what it refuses (false) is taken back.
    pub fn fill_in_place(&mut self, bytes: usize, fill: impl FnOnce(&mut [u8]) -> bool) -> bool {
        let run = self.run(bytes);
        let at = run.len();
        run.resize(at + bytes, 0);
        let filled = run.get_mut(at..).is_some_and(fill);
        if filled {
            self.queued += bytes;
        } else {
            run.truncate(at);
        }
        filled
    }

    /// The next slices to send; returns how many were set.
    pub fn slices<'a>(&'a self, out: &mut [IoSlice<'a>]) -> usize {
        let mut count = 0;
        let mut skip = self.sent;
        let chunks = self.chunks.iter().map(Chunk::bytes).chain(std::iter::once(&self.open[..]));
        for (slot, bytes) in out.iter_mut().zip(chunks) {
            *slot = IoSlice::new(bytes.get(skip..).unwrap_or_default());
            skip = 0;
            count += 1;
        }
        count
    }

    /// `bytes` were sent.
    pub fn advance(&mut self, bytes: usize) {
        self.queued = self.queued.saturating_sub(bytes);
        self.sent += bytes;
        while let Some(first) = self.chunks.front() {
            let length = first.bytes().len();
            if self.sent < length {
                return;
            }
            self.sent -= length;
            if let Some(Chunk::Run(run)) = self.chunks.pop_front() {
                self.recycle(run);
            }
        }
        if self.queued == 0 {
            self.open.clear();
            self.sent = 0;
        }
    }

    fn recycle(&mut self, mut run: Vec<u8>) {
        if self.spare.len() < MAX_SPARE_RUNS && run.capacity() <= 2 * RUN_BYTES {
            run.clear();
            self.spare.push(run);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::pool::Pool;
    use super::*;

    fn drain(outbox: &mut Outbox, step: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while !outbox.is_empty() {
            let mut slices = [IoSlice::new(&[]); 4];
            let count = outbox.slices(&mut slices);
            let joined: Vec<u8> =
                slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect();
            let took = joined.len().min(step);
            all.extend_from_slice(&joined[..took]);
            outbox.advance(took);
        }
        all
    }

    #[test]
    fn order_survives_short_writes() {
        let mut outbox = Outbox::default();
        let mut buffer = Arc::new(Pool::default()).take(6).unwrap();
        buffer.copy_from_slice(b"123456");
        let buffer = Arc::new(buffer);
        outbox.push(b"ab");
        outbox.push_long(&buffer, 1..5);
        outbox.push(b"cd");
        assert!(outbox.fill_in_place(2, |room| {
            room.copy_from_slice(b"ef");
            true
        }));
        assert!(!outbox.fill_in_place(100, |_| false));
        assert_eq!(outbox.queued_bytes(), 10);
        assert_eq!(drain(&mut outbox, 3), b"ab2345cdef");
        assert!(outbox.chunks.is_empty());
    }
}
