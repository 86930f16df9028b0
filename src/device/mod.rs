//! Where bytes live. A device is an array of 4 KiB blocks with a volatile write cache:
//! what was written is durable only after a `flush` that began after the write returned.
//!
//! Implementations: [`file::FileDevice`] (a file or block device of the host),
//! [`sim::SimDevice`] (memory, with crashes and faults drawn from a seed) and
//! [`overlay::OverlayDevice`] (reads through, keeps writes in memory: offline check).

pub mod counters;
pub mod file;
pub mod overlay;
pub mod sim;

use rustix::io::Errno;
use std::io;

/// Bytes of a block: the unit of allocation, of I/O and of checksums.
pub const BLOCK_BYTES: usize = 4096;

/// One block's bytes, aligned so that the host's direct I/O takes it as it is.
#[derive(Clone)]
#[repr(C, align(4096))]
pub struct Block(pub [u8; BLOCK_BYTES]);

impl Block {
    /// A block of zeros on the heap.
    pub fn zeroed() -> Box<Block> {
        Box::new(Block([0; BLOCK_BYTES]))
    }
}

/// A block device. Every call may come from any thread; calls to disjoint blocks may overlap.
pub trait BlockDevice: Send + Sync {
    /// Size in whole blocks.
    fn block_count(&self) -> u64;

    /// Reads `out.len()` consecutive blocks beginning at block `first`. An error says that none of
    /// `out` may be trusted. Beyond the end: `InvalidInput`.
    fn read(&self, first: u64, out: &mut [Box<Block>]) -> io::Result<()>;

    /// Writes `data.len()` consecutive blocks beginning at `first`. After an error any of them may
    /// hold old, new or torn contents (torn at 512 bytes).
    fn write(&self, first: u64, data: &[&Block]) -> io::Result<()>;

    /// Makes every write that returned before this call began durable. After an error nothing
    /// written since the last good flush may be trusted to be durable, even if a later one
    /// succeeds.
    fn flush(&self) -> io::Result<()>;

    /// Tells the device that these blocks hold nothing of use (a hint; may do nothing).
    fn discard(&self, first: u64, count: u64) -> io::Result<()>;

    /// What messages call it: a path, mostly.
    fn name(&self) -> String;
}

/// Does this error say that the device itself is gone, not that a block is bad?
pub fn says_gone(e: &io::Error) -> bool {
    let gone = [Errno::NODEV, Errno::NXIO, Errno::SHUTDOWN];
    matches!(e.kind(), io::ErrorKind::NotConnected | io::ErrorKind::BrokenPipe)
        || e.raw_os_error().is_some_and(|n| gone.iter().any(|g| g.raw_os_error() == n))
}

/// Refuses a range that does not lie within the device.
fn check_range(device: &dyn BlockDevice, first: u64, count: u64) -> io::Result<()> {
    match first.checked_add(count) {
        Some(end) if end <= device.block_count() => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("blocks {first} + {count} lie beyond the end of {}", device.name()),
        )),
    }
}
