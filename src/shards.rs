//! A door's own threads: each drives some connections alone, from socket to LUN and back.
//!
//! A connection never moves to another thread, so a request wakes one thread, not one to fetch it
//! and another to keep watch; and a thread with a single connection may poll its socket for a
//! moment before it sleeps (see [`Eagerness`]) without holding up anybody.

use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// More threads than this do not make a door faster.
const MAX_SHARDS: usize = 8;
/// Blocking threads of one shard, made as they are needed: some connections may wait a second each
/// for a lease without holding up the others.
const BLOCKING_THREADS: usize = 256;
/// How long a thread looks for the next request before it sleeps. Waking it again costs tens of
/// microseconds of processor time on a virtual machine, so this much is well spent.
const POLL_TIME: Duration = Duration::from_micros(50);
/// Chances between two tries where it never pays.
const MAX_PENALTY: u32 = 1023;

/// What a poll that finds something may have taken at most to count as paid: a client on the same
/// processor may have worked through many replies meanwhile, a stranger's time slice is longer.
const POLL_PAID_TIME: Duration = Duration::from_micros(500);

/// Counts as so many connections: more than there can be.
const WAITING: usize = 1 << 20;

#[derive(Debug)]
struct Shard {
    handle: Handle,
    load: Arc<AtomicUsize>,
    /// Dropped with the door: the thread ends.
    _stop: oneshot::Sender<()>,
}

/// The threads of one door.
#[derive(Debug)]
pub struct Shards(Vec<Shard>);

/// Connections of one shard; its own part is given back on drop.
#[derive(Debug)]
pub struct Seat(Arc<AtomicUsize>);

impl Shards {
    /// One thread for each processor, as far as that helps.
    pub fn new(door: &str) -> io::Result<Shards> {
        let count = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_SHARDS);
        (0..count).map(|index| Shard::new(door, index)).collect::<io::Result<_>>().map(Shards)
    }

    /// Runs a connection on the thread with the fewest.
    pub fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: impl FnOnce(Seat) -> F) {
        let load = |shard: &&Shard| shard.load.load(Ordering::Relaxed);
        if let Some(shard) = self.0.iter().min_by_key(load) {
            shard.load.fetch_add(1, Ordering::Relaxed);
            shard.handle.spawn(task(Seat(shard.load.clone())));
        }
    }
}

impl Shard {
    fn new(door: &str, index: usize) -> io::Result<Shard> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_name(format!("{door}-{index}-blocking"))
            .build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let drive = move || {
            let _ = runtime.block_on(stopped);
            runtime.shutdown_background();
        };
        std::thread::Builder::new().name(format!("{door}-{index}")).spawn(drive)?;
        Ok(Shard { handle, load: Arc::default(), _stop: stop })
    }
}

impl Seat {
    /// Whether no other connection is on this thread.
    pub fn is_alone(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 1
    }
}

impl Seat {
    /// While what is returned lives this thread waits for a device: new connections go elsewhere.
    pub fn waiting(&self) -> impl Drop {
        self.0.fetch_add(WAITING, Ordering::Relaxed);
        Waiting(self.0.clone())
    }
}

struct Waiting(Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(WAITING, Ordering::Relaxed);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether something that is a guess (the next request comes at once; none comes meanwhile) pays on
/// one connection: each time it did not, twice as many chances go by until it is tried again.
#[derive(Debug, Default)]
pub struct Eagerness {
    skip: u32,
    penalty: u32,
}

impl Eagerness {
    /// Whether to try this time.
    pub fn try_now(&mut self) -> bool {
        self.skip = match self.skip.checked_sub(1) {
            None => return true,
            Some(left) => left,
        };
        false
    }

    /// Where it is worth a try, looks for the next request for a moment with `receive`, letting
    /// others run in between: the client may need this very processor to send it. It pays only if
    /// it was quick: where others keep the processor for long, the host wakes a sleeper sooner than
    /// one who yielded.
    pub fn poll<T>(
        &mut self,
        mut receive: impl FnMut() -> io::Result<Option<T>>,
    ) -> io::Result<Option<T>> {
        if !self.try_now() {
            return Ok(None);
        }
        let since = Instant::now();
        loop {
            let found = receive()?;
            let elapsed = since.elapsed();
            if found.is_some() || elapsed >= POLL_TIME {
                self.learn(found.is_some() && elapsed < POLL_PAID_TIME);
                return Ok(found);
            }
            std::thread::yield_now();
        }
    }

    /// Whether it paid.
    pub fn learn(&mut self, paid: bool) {
        self.penalty = if paid { 0 } else { (self.penalty * 2 + 1).min(MAX_PENALTY) };
        self.skip = self.penalty;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polling_that_never_pays_becomes_rare() {
        let mut eagerness = Eagerness::default();
        let mut tries = 0;
        for _ in 0..10_000 {
            if eagerness.try_now() {
                tries += 1;
                eagerness.learn(false);
            }
        }
        assert!((10..25).contains(&tries), "{tries}");
        while !eagerness.try_now() {}
        eagerness.learn(true);
        assert!(eagerness.try_now());
    }

    #[test]
    fn connections_are_spread_over_the_threads() {
        let shards = Shards::new("test").unwrap();
        let (report, seats) = std::sync::mpsc::channel();
        for _ in 0..2 * shards.0.len() {
            let report = report.clone();
            shards.spawn(|seat| async move { report.send(seat).unwrap() });
        }
        drop(report);
        let held: Vec<Seat> = seats.iter().collect();
        assert!(held.iter().all(|seat| seat.0.load(Ordering::Relaxed) == 2));
    }
}
