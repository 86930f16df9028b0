//! Buffers of one connection, used again so that a large transfer costs neither fresh pages nor
//! zeros; and the ledger on which an initiator's buffers are counted.
//!
//! Invariants: what a [`Ledger`] counts is the memory of the buffers that are charged to it; a
//! buffer's length is what was asked for; what it held before is never sent, as every byte is
//! written by the disk or by the wire before it is read.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;

use crate::scsi::DataIn;

/// Idle bytes that a connection keeps; more goes back to the allocator.
const MAX_IDLE_BYTES: usize = 4 << 20;
/// Idle buffers that a connection keeps.
const MAX_IDLE: usize = 32;

/// Bytes that all connections of one initiator hold in buffers, and how many they may.
#[derive(Debug)]
pub struct Ledger {
    held: AtomicUsize,
    most: usize,
}

impl Ledger {
    pub fn new(most: usize) -> Arc<Ledger> {
        Arc::new(Ledger { held: AtomicUsize::new(0), most })
    }

    /// False: there is no room. Where nothing is held there always is: one command can go on.
    fn charge(&self, bytes: usize) -> bool {
        let charge = |held: usize| {
            let sum = held.saturating_add(bytes);
            (held == 0 || sum <= self.most).then_some(sum)
        };
        self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, charge).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Where buffers wait to be used again.
#[derive(Debug, Default)]
pub struct Pool {
    idle: Mutex<Vec<Vec<u8>>>,
    /// Whose buffers they are, once that is known.
    ledger: OnceLock<Arc<Ledger>>,
}

impl Pool {
    /// From here on its buffers are charged.
    pub fn charge_to(&self, ledger: Arc<Ledger>) {
        let _ = self.ledger.set(ledger); // a connection has one session
    }

    /// A buffer of `bytes` with arbitrary contents from this connection; `None`: its initiator
    /// holds too much already.
    pub fn take(self: &Arc<Pool>, bytes: usize) -> Option<Buffer> {
        let home = Arc::downgrade(self);
        let mut memory = {
            let mut idle = self.idle.lock();
            match idle.iter().rposition(|memory| memory.len() >= bytes) {
                Some(at) => idle.swap_remove(at),
                None => Vec::new(),
            }
        };
        let ledger = self.ledger.get().cloned();
        let mut buffer =
            Buffer { memory: Vec::new(), bytes: 0, sums: Vec::new(), home, ledger, charged: 0 };
        if !buffer.charge(memory.len().max(bytes)) {
            self.put(memory);
            return None;
        }
        if memory.len() < bytes {
            memory = vec![0; bytes];
        }
        (buffer.memory, buffer.bytes) = (memory, bytes);
        Some(buffer)
    }

    fn put(&self, memory: Vec<u8>) {
        let mut idle = self.idle.lock();
        let held: usize = idle.iter().map(Vec::len).sum();
        if idle.len() < MAX_IDLE && held + memory.len() <= MAX_IDLE_BYTES {
            idle.push(memory);
        }
    }
}

/// Memory that goes back to its pool when dropped.
#[derive(Debug, Default)]
pub struct Buffer {
    memory: Vec<u8>,
    bytes: usize,
    sums: Vec<u32>,
    home: Weak<Pool>,
    ledger: Option<Arc<Ledger>>,
    /// Bytes that are charged.
    charged: usize,
}

impl Buffer {
    /// Makes it `bytes` long, keeping its contents. False: there is no room, nothing was changed.
    #[must_use]
    pub fn grow(&mut self, bytes: usize) -> bool {
        if self.memory.len() < bytes {
            if !self.charge(bytes - self.memory.len()) {
                return false;
            }
            self.memory.resize(bytes, 0);
        }
        self.bytes = bytes;
        true
    }

    fn charge(&mut self, bytes: usize) -> bool {
        let charged = self.ledger.as_ref().is_none_or(|ledger| ledger.charge(bytes));
        self.charged += if charged { bytes } else { 0 };
        charged
    }

    /// Room for data that is read, and where `summed` for its checksums.
    pub fn data_in(&mut self, summed: bool) -> DataIn<'_> {
        self.sums.clear();
        let bytes = self.memory.get_mut(..self.bytes).unwrap_or_default();
        DataIn { bytes, sums: summed.then_some(&mut self.sums) }
    }

    /// The checksums that came with its data, one for each block; none where they are not known.
    pub fn sums(&self) -> &[u32] {
        &self.sums
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.memory.get(..self.bytes).unwrap_or_default()
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.memory.get_mut(..self.bytes).unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(home) = self.home.upgrade() {
            home.put(std::mem::take(&mut self.memory));
        }
        if let Some(ledger) = &self.ledger {
            ledger.give_back(self.charged);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_and_is_used_again() {
        let pool = Arc::new(Pool::default());
        let mut first = pool.take(8192).unwrap();
        first[0] = 7;
        drop(first);
        let again = pool.take(4096).unwrap();
        assert_eq!((again.len(), again[0]), (4096, 7));
        assert!(pool.idle.lock().is_empty());
    }

    #[test]
    fn growing_keeps_the_contents() {
        let pool = Arc::new(Pool::default());
        let mut buffer = pool.take(4).unwrap();
        buffer.copy_from_slice(&[1, 2, 3, 4]);
        assert!(buffer.grow(8));
        assert_eq!(&buffer[..4], &[1, 2, 3, 4]);
        assert_eq!(buffer.len(), 8);
    }

    #[test]
    fn buffers_of_all_pools_are_counted_on_one_ledger() {
        let ledger = Ledger::new(10_000);
        let pools = [(); 2].map(|()| {
            let pool = Arc::new(Pool::default());
            pool.charge_to(Arc::clone(&ledger));
            pool
        });
        let mut first = pools[0].take(4000).unwrap();
        let second = pools[1].take(4000).unwrap();
        assert!(pools[1].take(4000).is_none());
        assert!(first.grow(6000) && !first.grow(6001));
        drop(second);
        assert!(pools[0].take(4000).is_some());
        drop(first);
        assert_eq!(ledger.held.load(Ordering::Relaxed), 0);
        assert!(pools[0].take(20_000).is_some(), "one command always goes on");
    }
}
