//! The segment map: which device segments stand behind the pool's segments.
//!
//! It is a list of runs, sorted by logical segment and without overlap; each run maps `count`
//! segments to as many on each of its members. It lies in pages at fixed device blocks of every
//! device, each with two places of which the root names the current one with its checksum. Logical
//! segment 0 is never mapped: block 0 means hole.
//!
//! Page: magic `LFSM` 0..4, runs 4..8, then from byte 64 runs of 64 bytes: logical u64, count u64,
//! class u8, members u8, 6 reserved, device u16 x 4, device segment u64 x 4.

use crate::bytes::{put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};
use crate::{LayoutError, RawBlock, Result, BLOCK_BYTES};

/// Copies a run can have.
pub const MAX_MEMBERS: usize = 4;
/// Runs of a page.
pub const RUNS_PER_PAGE: usize = (BLOCK_BYTES - RUN_BYTES) / RUN_BYTES;
/// Pages of the map.
pub const SEGMENT_MAP_PAGES: usize = 8;
/// Device block of page 0's first place; place `p` of page `i` is at `BASE + 2 * i + p`.
pub const SEGMENT_MAP_BASE: u64 = 32;
const RUN_BYTES: usize = 64;
const MAGIC: u32 = u32::from_le_bytes(*b"LFSM");

/// A run of segments mapped alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentRun {
    /// First segment of the pool.
    pub logical: u64,
    /// How many.
    pub count: u64,
    /// Redundancy class: 0 none, 1 mirror.
    pub class: u8,
    /// (device index, first device segment) of each copy.
    pub members: Vec<(u16, u64)>,
}

/// A page decoded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SegmentMapPage {
    /// At most [`RUNS_PER_PAGE`].
    pub runs: Vec<SegmentRun>,
}

impl SegmentMapPage {
    /// Its block.
    pub fn encode(&self, out: &mut RawBlock) {
        out.fill(0);
        put_u32(out, 0, MAGIC);
        put_u32(out, 4, self.runs.len() as u32);
        for (i, run) in self.runs.iter().enumerate() {
            let b = &mut out[(i + 1) * RUN_BYTES..(i + 2) * RUN_BYTES];
            put_u64(b, 0, run.logical);
            put_u64(b, 8, run.count);
            b[16] = run.class;
            b[17] = run.members.len() as u8;
            for (m, (device, segment)) in run.members.iter().enumerate() {
                put_u16(b, 24 + m * 2, *device);
                put_u64(b, 32 + m * 8, *segment);
            }
        }
    }

    /// Reads a block.
    pub fn decode(b: &RawBlock) -> Result<SegmentMapPage> {
        if u32_at(b, 0) != MAGIC {
            return Err(LayoutError::Magic("segment map"));
        }
        let n = u32_at(b, 4) as usize;
        if n > RUNS_PER_PAGE {
            return Err(LayoutError::Invalid("segment map: too many runs"));
        }
        let runs = (1..=n).map(|i| decode_run(&b[i * RUN_BYTES..(i + 1) * RUN_BYTES]));
        Ok(SegmentMapPage { runs: runs.collect::<Result<_>>()? })
    }
}

fn decode_run(b: &[u8]) -> Result<SegmentRun> {
    let members = usize::from(b[17]);
    if members == 0 || members > MAX_MEMBERS {
        return Err(LayoutError::Invalid("segment map: a run without members"));
    }
    let (logical, count) = (u64_at(b, 0), u64_at(b, 8));
    if logical == 0 || count == 0 || logical.saturating_add(count) > 1 << 35 {
        return Err(LayoutError::Invalid("segment map: a run out of range"));
    }
    let member = |m: usize| (u16_at(b, 24 + m * 2), u64_at(b, 32 + m * 8));
    Ok(SegmentRun { logical, count, class: b[16], members: (0..members).map(member).collect() })
}
