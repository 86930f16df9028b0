//! What import and export share: chunks, workers, progress.

use super::error::{Error, Result};
use super::transfer::Progress;
use crate::fs;
use parking_lot::{Condvar, Mutex};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Bytes moved at once: at most one atomic write of the filesystem, and large for any disk.
pub(super) const CHUNK_BYTES: usize = 1 << 20;
/// Threads that move a file. More bring nothing: checksums and copies keep the processors busy.
pub(super) const MAX_WORKERS: usize = 4;
/// Zeros are looked for in pieces of this size: the filesystem's block.
const ZERO_BYTES: usize = crate::device::BLOCK_BYTES;
/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

const _: () = assert!(CHUNK_BYTES <= fs::ATOMIC_WRITE_BYTES && CHUNK_BYTES % ZERO_BYTES == 0);

/// Hands out the data of an image chunk by chunk; holes are passed over.
pub(super) struct Chunks<F> {
    size_bytes: u64,
    next: u64,
    extent_end: u64,
    find: F,
}

impl<F: FnMut(u64) -> Result<Option<(u64, u64)>>> Chunks<F> {
    /// `find` tells the first run of data at or after an offset.
    pub(super) fn new(size_bytes: u64, find: F) -> Chunks<F> {
        Chunks { size_bytes, next: 0, extent_end: 0, find }
    }

    /// The next (offset, length); holes count as done.
    pub(super) fn next(&mut self, job: &Job) -> Result<Option<(u64, usize)>> {
        if self.next >= self.extent_end && self.next < self.size_bytes {
            let (start, end) = (self.find)(self.next)?.unwrap_or((self.size_bytes, u64::MAX));
            let start = start.clamp(self.next, self.size_bytes);
            job.add_done(start - self.next);
            self.next = start;
            // An answer that has changed meanwhile must not stop us.
            self.extent_end = end.max(start + ZERO_BYTES as u64).min(self.size_bytes);
        }
        if self.next >= self.size_bytes {
            return Ok(None);
        }
        let boundary = (self.next / CHUNK_BYTES as u64 + 1) * CHUNK_BYTES as u64;
        let length = self.extent_end.min(boundary) - self.next;
        let chunk = (self.next, length as usize);
        self.next += length;
        Ok(Some(chunk))
    }
}

/// Buffers that go round.
#[derive(Default)]
pub(super) struct Pool(Mutex<Vec<Vec<u8>>>);

impl Pool {
    /// An empty one.
    pub(super) fn take(&self) -> Vec<u8> {
        let mut buffer = self.0.lock().pop().unwrap_or_else(|| Vec::with_capacity(CHUNK_BYTES));
        buffer.clear();
        buffer
    }

    pub(super) fn give(&self, buffer: Vec<u8>) {
        self.0.lock().push(buffer);
    }
}

/// The runs of a chunk that are not zeros, in whole blocks, with their offset in it.
pub(super) fn pieces_of_data(chunk: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    const ZEROS: [u8; ZERO_BYTES] = [0; ZERO_BYTES];
    let is_zero = |piece: &[u8]| ZEROS.get(..piece.len()) == Some(piece);
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = chunk.get(at..)?;
        let skipped = rest.chunks(ZERO_BYTES).take_while(|piece| is_zero(piece)).count();
        let start = (at + skipped * ZERO_BYTES).min(chunk.len());
        let rest = chunk.get(start..).filter(|rest| !rest.is_empty())?;
        let run = rest.chunks(ZERO_BYTES).take_while(|piece| !is_zero(piece)).count();
        let length = (run * ZERO_BYTES).min(rest.len());
        at = start + length;
        Some((start, rest.get(..length)?))
    })
}

/// A running transfer: how far it is, and whether it shall stop.
pub(super) struct Job {
    pub(super) size_bytes: u64,
    done_bytes: AtomicU64,
    data_bytes: AtomicU64,
    stop: AtomicBool,
    state: Mutex<State>,
    worker_ended: Condvar,
}

#[derive(Default)]
struct State {
    running: usize,
    failure: Option<Error>,
}

impl Job {
    pub(super) fn new(size_bytes: u64) -> Job {
        Job {
            size_bytes,
            done_bytes: AtomicU64::new(0),
            data_bytes: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            state: Mutex::default(),
            worker_ended: Condvar::new(),
        }
    }

    pub(super) fn add_done(&self, bytes: u64) {
        self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_data(&self, bytes: u64) {
        self.data_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn done_bytes(&self) -> u64 {
        self.done_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn data_bytes(&self) -> u64 {
        self.data_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// The next chunk, unless the job was stopped.
    pub(super) fn next_of<F>(&self, chunks: &Mutex<Chunks<F>>) -> Result<Option<(u64, usize)>>
    where
        F: FnMut(u64) -> Result<Option<(u64, u64)>>,
    {
        if self.stopped() {
            return Ok(None);
        }
        chunks.lock().next(self)
    }

    /// Runs the workers to their end, telling progress. The first failure stops all.
    pub(super) fn run<W>(
        &self,
        progress: Progress,
        workers: impl IntoIterator<Item = W>,
    ) -> Result<()>
    where
        W: FnOnce() -> Result<()> + Send,
    {
        std::thread::scope(|scope| {
            for work in workers {
                self.state.lock().running += 1;
                scope.spawn(move || {
                    let result = work();
                    self.end(result);
                });
            }
            self.watch(progress);
        });
        progress(self.done_bytes(), self.size_bytes);
        match self.state.lock().failure.take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn end(&self, result: Result<()>) {
        let mut state = self.state.lock();
        state.running -= 1;
        if let Err(error) = result {
            self.stop.store(true, Ordering::Relaxed);
            state.failure.get_or_insert(error);
        }
        self.worker_ended.notify_all();
    }

    fn watch(&self, progress: Progress) {
        let mut state = self.state.lock();
        while state.running > 0 {
            let slept = self.worker_ended.wait_for(&mut state, PROGRESS_EVERY);
            if slept.timed_out() && !self.stopped() && !progress(self.done_bytes(), self.size_bytes)
            {
                self.stop.store(true, Ordering::Relaxed);
                state.failure.get_or_insert_with(interrupted);
            }
        }
    }
}

fn interrupted() -> Error {
    Error::Transfer {
        what: "the transfer was stopped".to_owned(),
        why: "it was interrupted before its end".to_owned(),
        remedy: "run it again; what was written so far is not usable".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_left_out() {
        let mut chunk = vec![0; 5 * ZERO_BYTES + 100];
        chunk[ZERO_BYTES] = 1;
        chunk[3 * ZERO_BYTES - 1] = 1;
        chunk[5 * ZERO_BYTES + 99] = 1;
        let found: Vec<_> = pieces_of_data(&chunk).map(|(at, piece)| (at, piece.len())).collect();
        assert_eq!(found, [(ZERO_BYTES, 2 * ZERO_BYTES), (5 * ZERO_BYTES, 100)]);
        assert_eq!(pieces_of_data(&[0; 10_000]).count(), 0);
        assert_eq!(pieces_of_data(&[]).count(), 0);
        assert_eq!(pieces_of_data(&[1; 10]).count(), 1);
    }

    #[test]
    fn chunks_pass_holes_over_and_cover_all_data() {
        let size = 10 * CHUNK_BYTES as u64 + 5;
        let extents = [
            (4096, 8192),
            (CHUNK_BYTES as u64 * 3 - 4096, CHUNK_BYTES as u64 * 5),
            (size - 5, size),
        ];
        let find = |from| {
            Ok(extents.iter().copied().find(|(_, end)| *end > from).map(|(s, e)| (s.max(from), e)))
        };
        let job = Job::new(size);
        let mut chunks = Chunks::new(size, find);
        let mut seen = Vec::new();
        while let Some((offset, length)) = chunks.next(&job).unwrap() {
            assert!(length <= CHUNK_BYTES && length > 0);
            job.add_done(length as u64);
            seen.push((offset, offset + length as u64));
        }
        let mib = CHUNK_BYTES as u64;
        let wanted = [
            (4096, 8192),
            (3 * mib - 4096, 3 * mib),
            (3 * mib, 4 * mib),
            (4 * mib, 5 * mib),
            (size - 5, size),
        ];
        assert_eq!(seen, wanted);
        assert_eq!(job.done_bytes(), size);
    }

    #[test]
    fn the_first_failure_stops_all() {
        let job = Job::new(1);
        let fail: Box<dyn FnOnce() -> Result<()> + Send> = Box::new(|| Err(Error::Gone));
        let wait: Box<dyn FnOnce() -> Result<()> + Send> = Box::new(|| {
            while !job.stopped() {
                std::thread::yield_now();
            }
            Ok(())
        });
        assert!(matches!(job.run(&|_, _| true, [wait, fail]), Err(Error::Gone)));
    }

    #[test]
    fn progress_may_stop_it() {
        let job = Job::new(1);
        let wait = || {
            while !job.stopped() {
                std::thread::yield_now();
            }
            Ok(())
        };
        assert!(matches!(job.run(&|_, _| false, [wait]), Err(Error::Transfer { .. })));
    }
}
