//! Buffers of one connection, used again so that a large transfer costs neither fresh pages nor
//! zeros.
//!
//! Invariant: a buffer's length is what was asked for; what it held before is never sent, as every
//! byte is written by the disk or by the wire before it is read.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::scsi::DataIn;

/// Idle bytes that a connection keeps; more goes back to the allocator.
const MAX_IDLE_BYTES: usize = 4 << 20;
/// Idle buffers that a connection keeps.
const MAX_IDLE: usize = 32;

/// Where buffers wait to be used again.
#[derive(Debug, Default)]
pub struct Pool {
    idle: Mutex<Vec<Vec<u8>>>,
}

impl Pool {
    /// A buffer of `bytes` with arbitrary contents from this connection.
    pub fn take(self: &Arc<Pool>, bytes: usize) -> Buffer {
        let home = Arc::downgrade(self);
        let mut memory = {
            let mut idle = self.idle.lock();
            match idle.iter().rposition(|memory| memory.len() >= bytes) {
                Some(at) => idle.swap_remove(at),
                None => Vec::new(),
            }
        };
        if memory.len() < bytes {
            memory = vec![0; bytes];
        }
        Buffer { memory, bytes, sums: Vec::new(), home }
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
}

impl Buffer {
    /// Makes it `bytes` long, keeping its contents.
    pub fn grow(&mut self, bytes: usize) {
        if self.memory.len() < bytes {
            self.memory.resize(bytes, 0);
        }
        self.bytes = bytes;
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_and_is_used_again() {
        let pool = Arc::new(Pool::default());
        let mut first = pool.take(8192);
        first[0] = 7;
        drop(first);
        let again = pool.take(4096);
        assert_eq!((again.len(), again[0]), (4096, 7));
        assert!(pool.idle.lock().is_empty());
    }

    #[test]
    fn growing_keeps_the_contents() {
        let pool = Arc::new(Pool::default());
        let mut buffer = pool.take(4);
        buffer.copy_from_slice(&[1, 2, 3, 4]);
        buffer.grow(8);
        assert_eq!(&buffer[..4], &[1, 2, 3, 4]);
        assert_eq!(buffer.len(), 8);
    }
}
