//! Who may link, and which readers are still under way.
//!
//! [`Guard`]: writers link under a shared guard; a cut and a freeze take it alone for an instant.
//! It is sharded, so that writers on many processors do not share a cache line.
//! [`Pins`]: a reader pins the running epoch from resolving a pointer until the bytes are in
//! memory; a block freed by a consistency point is reused only after every pin of its epoch is
//! gone.

use super::planted::{planted, Mutation};
use super::waits::{Taking, Watch};
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const SHARDS: usize = 16;

#[repr(align(128))]
struct Padded<T>(T);

fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static MINE: Cell<usize> = const { Cell::new(usize::MAX) });
    MINE.with(|m| {
        if m.get() == usize::MAX {
            m.set(NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS);
        }
        m.get()
    })
}

/// The sharded guard.
pub(crate) struct Guard(Vec<Padded<RwLock<()>>>);

impl Guard {
    pub fn new() -> Guard {
        Guard((0..SHARDS).map(|_| Padded(RwLock::new(()))).collect())
    }

    /// For linking. Not to be taken twice by a thread.
    pub fn shared(&self) -> RwLockReadGuard<'_, ()> {
        self.0[shard()].0.read()
    }

    /// For a cut or a freeze. From the first lock on others wait: so long it takes, `watch` says.
    pub fn alone<'a>(&'a self, watch: &'a Watch) -> Alone<'a> {
        let taking = watch.begin();
        Alone { _locks: self.0.iter().map(|s| s.0.write()).collect(), _taking: taking }
    }
}

/// The guard taken alone.
pub(crate) struct Alone<'a> {
    _locks: Vec<RwLockWriteGuard<'a, ()>>,
    _taking: Taking<'a>,
}

/// Epochs whose readers are counted apart; an epoch begins when the readers of its slot are gone.
const RING: u64 = 8;

/// Counters of readers, by epoch.
pub(crate) struct Pins(Vec<Padded<[AtomicU64; RING as usize]>>);

/// A reader under way.
pub(crate) struct Pin<'a>(&'a AtomicU64);

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

impl Pins {
    pub fn new() -> Pins {
        Pins((0..SHARDS).map(|_| Padded(Default::default())).collect())
    }

    /// Pins the running epoch.
    pub fn pin(&self, epoch: &AtomicU64) -> Pin<'_> {
        loop {
            let e = epoch.load(Ordering::SeqCst);
            let counter = &self.0[shard()].0[(e % RING) as usize];
            counter.fetch_add(1, Ordering::SeqCst);
            let pin = Pin(counter);
            // The epoch may have moved between the load and the count: then nobody waits for us.
            if epoch.load(Ordering::SeqCst) == e {
                return pin;
            }
        }
    }

    fn readers(&self, slot: u64) -> u64 {
        self.0.iter().map(|s| s.0[(slot % RING) as usize].load(Ordering::SeqCst)).sum()
    }

    /// Is a reader that began in `epoch` or before still under way? `now` is the running epoch.
    pub fn is_pinned(&self, epoch: u64, now: u64) -> bool {
        if planted(Mutation::ReuseWhilePinned) {
            return false;
        }
        let later = now.saturating_sub(epoch).min(RING / 2);
        (later..RING).any(|back| self.readers(now + RING - back) > 0)
    }

    /// May `epoch` begin? Not while a reader of the one eight before is under way.
    pub fn may_begin(&self, epoch: u64) -> bool {
        self.readers(epoch) == 0
    }
}
