//! How long some things took that make others wait: figures alone, on which nothing depends.

use super::pool::Fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// How often something was done since the pool was opened, and how long it took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Took {
    /// How often.
    pub count: u64,
    /// All together, in nanoseconds.
    pub total_ns: u64,
    /// The longest, in nanoseconds.
    pub longest_ns: u64,
}

/// What makes others wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Waits {
    /// All writes wait while a group is cut for a flush or for write-out.
    pub cuts: Took,
    /// All writes wait at a consistency point's beginning.
    pub freezes: Took,
    /// All writes wait at the instant of a snapshot.
    pub snapshots: Took,
    /// Other flushes wait while one is under way: that of all devices.
    pub flushes: Took,
}

/// Counts what took how long.
#[derive(Default)]
pub(crate) struct Watch {
    count: AtomicU64,
    total_ns: AtomicU64,
    longest_ns: AtomicU64,
}

/// Something under way: its drop is the end.
pub(crate) struct Taking<'a>(&'a Watch, Instant);

impl Watch {
    pub fn begin(&self) -> Taking<'_> {
        Taking(self, Instant::now())
    }

    pub fn took(&self) -> Took {
        let load = |a: &AtomicU64| a.load(Ordering::Relaxed);
        Took {
            count: load(&self.count),
            total_ns: load(&self.total_ns),
            longest_ns: load(&self.longest_ns),
        }
    }
}

impl Drop for Taking<'_> {
    fn drop(&mut self) {
        let ns = u64::try_from(self.1.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.0.count.fetch_add(1, Ordering::Relaxed);
        self.0.total_ns.fetch_add(ns, Ordering::Relaxed);
        self.0.longest_ns.fetch_max(ns, Ordering::Relaxed);
    }
}

impl Fs {
    /// What made others wait since the pool was opened.
    pub fn waits(&self) -> Waits {
        let core = self.core();
        let [cuts, freezes, snapshots] =
            [&core.cuts, &core.freezes, &core.snapshots].map(Watch::took);
        Waits { cuts, freezes, snapshots, flushes: core.store.flushes.took() }
    }
}
