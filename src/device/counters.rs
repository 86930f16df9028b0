//! Cheap counters that every device keeps: how much was asked of it since it was opened.
//!
//! They are statistics: each is exact, but two of them read one after the other need not belong to
//! the same instant.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counters of a device, updated without a lock.
#[derive(Debug, Default)]
pub struct Counters {
    blocks_read: AtomicU64,
    blocks_written: AtomicU64,
    blocks_discarded: AtomicU64,
    flushes: AtomicU64,
}

/// What the counters said at one moment.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct DeviceCounters {
    /// Blocks of 4 KiB read.
    pub blocks_read: u64,
    /// Blocks of 4 KiB written.
    pub blocks_written: u64,
    /// Blocks of 4 KiB discarded.
    pub blocks_discarded: u64,
    /// Flushes that succeeded.
    pub flushes: u64,
}

impl Counters {
    /// Counts a read of `blocks`.
    pub fn read(&self, blocks: usize) {
        self.blocks_read.fetch_add(blocks as u64, Relaxed);
    }

    /// Counts a write of `blocks`.
    pub fn wrote(&self, blocks: usize) {
        self.blocks_written.fetch_add(blocks as u64, Relaxed);
    }

    /// Counts a discard of `blocks`.
    pub fn discarded(&self, blocks: u64) {
        self.blocks_discarded.fetch_add(blocks, Relaxed);
    }

    /// Counts a flush.
    pub fn flushed(&self) {
        self.flushes.fetch_add(1, Relaxed);
    }

    /// Reads them all.
    pub fn get(&self) -> DeviceCounters {
        DeviceCounters {
            blocks_read: self.blocks_read.load(Relaxed),
            blocks_written: self.blocks_written.load(Relaxed),
            blocks_discarded: self.blocks_discarded.load(Relaxed),
            flushes: self.flushes.load(Relaxed),
        }
    }
}
