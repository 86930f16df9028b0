//! How often each block of the pool is cloned: the data of an inode of the volume table.
//!
//! Four bytes for each pool block: by how much the pointers that lead to it, each tree of versions
//! taken as one, are more than one. All zeros, or a hole: one or none.

use crate::bytes::{put_u32, u32_at};
use crate::{RawBlock, BLOCK_BYTES};

/// Pool blocks whose counts are in one block.
pub const COUNTS_PER_BLOCK: u64 = (BLOCK_BYTES / 4) as u64;

/// The count of a pool block, from the block of counts that has it.
pub fn count_in(counts: &RawBlock, block: u64) -> u32 {
    u32_at(counts, (block % COUNTS_PER_BLOCK) as usize * 4)
}

/// Sets the count of a pool block.
pub fn put_count(counts: &mut RawBlock, block: u64, count: u32) {
    put_u32(counts, (block % COUNTS_PER_BLOCK) as usize * 4, count);
}
