//! What a label says of each device of the pool.
//!
//! 24 bytes: state u8 at 0, 1 reserved, 1 + slot of the device that it replaces u16 at 2, segments
//! of the device u32 at 4, the root epoch it is good up to u64 at 8, the lineage it shared last u64
//! at 16. All zeros: in order, as every device was before labels said anything of this.

use crate::bytes::{put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};
use crate::{LayoutError, Result};

/// Bytes of a record.
pub const MEMBER_BYTES: usize = 24;

/// How a device takes part in the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MemberState {
    /// Read and written.
    #[default]
    Normal = 0,
    /// Stale: the pool went on without it. Neither read nor written.
    Missing = 1,
    /// Back, and being given what it missed. Written, not read.
    Merging = 2,
    /// New, and being filled. Written, not read.
    Regenerating = 3,
    /// Read and written, and being emptied.
    Removing = 4,
    /// No device has this slot.
    Absent = 5,
}

/// A device's part in the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemberRecord {
    /// How it takes part.
    pub state: MemberState,
    /// The slot of the device in whose place it comes, until that one is out of the pool.
    pub replaces: Option<u16>,
    /// Whole segments of the device; 0: not said.
    pub segments: u32,
    /// Not normal: the last root epoch of which it holds everything.
    pub good_epoch: u64,
    /// Not normal: the pool's lineage when it was last normal.
    pub lineage: u64,
}

impl MemberRecord {
    /// Into 24 bytes.
    pub fn encode(&self, out: &mut [u8]) {
        out[0] = self.state as u8;
        put_u16(out, 2, self.replaces.map_or(0, |slot| slot.saturating_add(1)));
        put_u32(out, 4, self.segments);
        put_u64(out, 8, self.good_epoch);
        put_u64(out, 16, self.lineage);
    }

    /// From 24 bytes.
    pub fn decode(b: &[u8]) -> Result<MemberRecord> {
        let state = match b[0] {
            0 => MemberState::Normal,
            1 => MemberState::Missing,
            2 => MemberState::Merging,
            3 => MemberState::Regenerating,
            4 => MemberState::Removing,
            5 => MemberState::Absent,
            _ => return Err(LayoutError::Invalid("label: a device in an unknown state")),
        };
        Ok(MemberRecord {
            state,
            replaces: u16_at(b, 2).checked_sub(1),
            segments: u32_at(b, 4),
            good_epoch: u64_at(b, 8),
            lineage: u64_at(b, 16),
        })
    }
}
