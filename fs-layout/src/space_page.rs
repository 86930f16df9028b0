//! Free space: bitmap pages and the tables that find them.
//!
//! A bitmap page is one block of bits, bit `n` of region `r` for block `r * 32768 + n`, set: in
//! use. A table page is 256 entries. Three levels of tables above the bitmap pages reach 2^39
//! blocks; the entry of the top one is in the root. Every page has two places, both inside the
//! region it (or the first region below it) belongs to; its entry says which is current, with its
//! CRC-32C and the sum of free blocks below. A page is written into the place that is not current,
//! and becomes so with the root. An entry that was never written stands for a page in its first
//! state: all free but the region's reserved blocks and what lies beyond the end of the pool.

use crate::bytes::{put_u32, put_u64, u32_at, u64_at};
use crate::{LayoutError, Result, BLOCK_BYTES, REGION_BLOCKS, SEGMENT_BLOCKS};

/// Entries of a table page.
pub const ENTRIES_PER_TABLE: u64 = (BLOCK_BYTES / 16) as u64;
/// Blocks at the start of each region that belong to pages: two places for four levels.
pub const REGION_RESERVED_BLOCKS: u64 = 8;

const FLAG_SECOND: u32 = 1;
const FLAG_WRITTEN: u32 = 2;

/// An entry of a table: which of a page's places is current, and what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpaceEntry {
    /// The page was written at least once.
    pub written: bool,
    /// The second place is current.
    pub second: bool,
    /// CRC-32C of the page.
    pub crc: u32,
    /// Free blocks below.
    pub free: u64,
}

impl SpaceEntry {
    /// Writes 16 bytes: crc, flags, free.
    pub fn encode(&self, out: &mut [u8]) {
        put_u32(out, 0, self.crc);
        let second = if self.second { FLAG_SECOND } else { 0 };
        let written = if self.written { FLAG_WRITTEN } else { 0 };
        put_u32(out, 4, second | written);
        put_u64(out, 8, self.free);
    }

    /// Reads 16 bytes.
    pub fn decode(b: &[u8]) -> Result<SpaceEntry> {
        let flags = u32_at(b, 4);
        if flags & !(FLAG_SECOND | FLAG_WRITTEN) != 0 {
            return Err(LayoutError::Invalid("space entry: unknown flags"));
        }
        Ok(SpaceEntry {
            written: flags & FLAG_WRITTEN != 0,
            second: flags & FLAG_SECOND != 0,
            crc: u32_at(b, 0),
            free: u64_at(b, 8),
        })
    }
}

/// The two places of page `index` of `level` (0: bitmap page, 1 to 3: tables). The first segment of
/// the pool holds labels and roots, so region 0 begins its reserved blocks after it.
pub fn page_places(level: u8, index: u64) -> [u64; 2] {
    let region = index * ENTRIES_PER_TABLE.pow(u32::from(level));
    let base = region * REGION_BLOCKS + if region == 0 { SEGMENT_BLOCKS } else { 0 };
    let first = base + 2 * u64::from(level);
    [first, first + 1]
}
