//! Overwriting free space. What was freed stays on the devices until it is written again; who
//! sanitizes wants it gone.
//!
//! While a segment is wiped its free blocks are taken, as the log's are: in no image, so that a
//! crash leaves them free. A block that nothing names may hold anything: no order with the rest.

use super::error::Result;
use super::pool::Fs;
use super::space::Run;
use crate::device::{Block, BLOCK_BYTES};
use fs_layout::SEGMENT_BLOCKS;

impl Fs {
    /// Overwrites the free blocks of segment `index` that hold anything but zeros: with each of
    /// `patterns` in turn, each flushed. Zeros are left, so that the holes of a pool's file stay
    /// holes. The bytes of a segment; `None`: there is no such segment.
    pub fn wipe_free(&self, index: u64, patterns: &[Block]) -> Result<Option<u64>> {
        let core = self.core();
        core.writable()?;
        // A write outside of groups and consistency points: no copy of the segment may move.
        let _map = core.lock_unless_alone(&core.rebalance);
        let Some(runs) = core.space.take_segment(&core.store, index)? else {
            return Ok(None);
        };
        let wiped = runs.iter().try_for_each(|run| self.wipe_run(*run, patterns));
        core.space.return_segment(&core.store, index, &runs)?;
        wiped.map(|()| Some(SEGMENT_BLOCKS * BLOCK_BYTES as u64))
    }

    fn wipe_run(&self, (first, count): Run, patterns: &[Block]) -> Result<()> {
        let store = &self.core().store;
        let is_filled = store.locate(first, 1)?.0.len() > store.locate_readable(first, 1)?.0.len();
        let mut used = vec![false; count as usize];
        // every copy is looked at: none is ever good enough to stop at
        let look = |blocks: Vec<Box<Block>>| -> Option<()> {
            for (used, block) in used.iter_mut().zip(&blocks) {
                *used |= block.0 != [0; BLOCK_BYTES];
            }
            None
        };
        if store.read_raw(first, count as usize, look).is_err() || is_filled {
            // What cannot be read may still be there, and what a device that is being filled holds.
            used.fill(true);
        }
        let places: Vec<u64> = (first..).zip(used).filter(|p| p.1).map(|p| p.0).collect();
        for pattern in patterns.iter().filter(|_| !places.is_empty()) {
            let blocks: Vec<(u64, &Block)> = places.iter().map(|at| (*at, pattern)).collect();
            store.write(&blocks)?;
            store.flush()?;
        }
        Ok(())
    }
}
