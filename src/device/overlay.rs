//! A device that reads through to a base and keeps what is written in memory: recovery runs on it
//! for an offline check, and the base stays as it is.
//!
//! Invariant: the base is never written, flushed or discarded.

use super::counters::{Counters, DeviceCounters};
use super::{check_range, Block, BlockDevice};
use parking_lot::RwLock;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;

/// Blocks that an overlay holds unless told otherwise: 1 GiB, above what a recovery writes.
const DEFAULT_LIMIT_BLOCKS: usize = 262_144;

/// Reads through to a base, keeps writes in memory.
pub struct OverlayDevice {
    base: Arc<dyn BlockDevice>,
    written: RwLock<HashMap<u64, Box<Block>>>,
    limit_blocks: usize,
    counters: Counters,
}

impl OverlayDevice {
    /// An overlay that holds at most 1 GiB of written blocks.
    pub fn new(base: Arc<dyn BlockDevice>) -> OverlayDevice {
        OverlayDevice::with_limit(base, DEFAULT_LIMIT_BLOCKS)
    }

    /// An overlay that holds at most `limit_blocks` different blocks; a write beyond answers
    /// `StorageFull`.
    pub fn with_limit(base: Arc<dyn BlockDevice>, limit_blocks: usize) -> OverlayDevice {
        let written = RwLock::new(HashMap::new());
        OverlayDevice { base, written, limit_blocks, counters: Counters::default() }
    }

    /// How many blocks differ, or may differ, from the base.
    pub fn blocks_held(&self) -> usize {
        self.written.read().len()
    }

    /// What was asked of the overlay.
    pub fn counters(&self) -> DeviceCounters {
        self.counters.get()
    }

    /// Reads the run of blocks that begins with `out` and is not in the overlay; its length.
    fn read_base_run(&self, first: u64, out: &mut [Box<Block>]) -> io::Result<usize> {
        let held = self.written.read();
        let mut run = 0;
        while run < out.len() && !held.contains_key(&(first + run as u64)) {
            run += 1;
        }
        drop(held);
        if let Some(part) = out.get_mut(..run).filter(|part| !part.is_empty()) {
            self.base.read(first, part)?;
        }
        Ok(run)
    }
}

impl BlockDevice for OverlayDevice {
    fn block_count(&self) -> u64 {
        self.base.block_count()
    }

    fn read(&self, first: u64, out: &mut [Box<Block>]) -> io::Result<()> {
        check_range(self, first, out.len() as u64)?;
        self.counters.read(out.len());
        let mut done = 0;
        while let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = first + done as u64;
            done += self.read_base_run(at, rest)?;
            let held = self.written.read();
            while let Some(slot) = out.get_mut(done) {
                let Some(block) = held.get(&(first + done as u64)) else {
                    break;
                };
                slot.0 = block.0;
                done += 1;
            }
        }
        Ok(())
    }

    fn write(&self, first: u64, data: &[&Block]) -> io::Result<()> {
        check_range(self, first, data.len() as u64)?;
        let mut held = self.written.write();
        for (number, block) in (first..).zip(data) {
            if held.len() >= self.limit_blocks && !held.contains_key(&number) {
                let why = "the overlay's memory limit is reached";
                return Err(io::Error::new(io::ErrorKind::StorageFull, why));
            }
            held.insert(number, Box::new((*block).clone()));
        }
        self.counters.wrote(data.len());
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.counters.flushed();
        Ok(())
    }

    fn discard(&self, first: u64, count: u64) -> io::Result<()> {
        check_range(self, first, count)?;
        self.counters.discarded(count);
        Ok(())
    }

    fn name(&self) -> String {
        self.base.name()
    }
}

#[cfg(test)]
mod tests {
    use super::super::sim::SimDevice;
    use super::*;

    fn filled(byte: u8) -> Box<Block> {
        let mut block = Block::zeroed();
        block.0.fill(byte);
        block
    }

    fn read_bytes(device: &dyn BlockDevice, first: u64, count: usize) -> Vec<u8> {
        let mut out: Vec<_> = (0..count).map(|_| filled(0xEE)).collect();
        device.read(first, &mut out).unwrap();
        out.iter().map(|block| block.0[0]).collect()
    }

    #[test]
    fn writes_stay_above_the_base() {
        let base = Arc::new(SimDevice::new(100, 1));
        base.write(10, &[&filled(1), &filled(2), &filled(3)]).unwrap();
        let over = OverlayDevice::with_limit(base.clone(), 10);
        over.write(11, &[&filled(9)]).unwrap();
        over.write(13, &[&filled(8)]).unwrap();
        over.flush().unwrap();
        assert_eq!(read_bytes(&over, 9, 6), [0, 1, 9, 3, 8, 0]);
        assert_eq!(read_bytes(&*base, 9, 6), [0, 1, 2, 3, 0, 0]);
        assert_eq!(over.blocks_held(), 2);
        assert_eq!(base.counters().blocks_written, 3);
    }

    #[test]
    fn memory_and_ends_are_bounded() {
        let over = OverlayDevice::with_limit(Arc::new(SimDevice::new(8, 1)), 2);
        over.write(0, &[&filled(1), &filled(2)]).unwrap();
        over.write(1, &[&filled(3)]).unwrap();
        let full = over.write(5, &[&filled(4)]).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        let beyond = over.read(7, &mut [filled(0), filled(0)]).unwrap_err();
        assert_eq!(beyond.kind(), io::ErrorKind::InvalidInput);
    }
}
