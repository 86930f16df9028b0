//! How any block is named: place, birth epoch and checksum in 16 bytes.
//!
//! | bits of word 0 | field | bits of word 1 | field |
//! |---|---|---|---|
//! | 0..44 | block | 0..32 | birth epoch, bits 16..48 |
//! | 44 | cloned | 32..64 | CRC-32C of the block |
//! | 45..48 | flags (none defined: a set one is refused) | | |
//! | 48..64 | birth epoch, bits 0..16 | | |
//!
//! Block 0 is a hole, whatever the checksum; a hole keeps the epoch in which it was made.
//!
//! A cloned pointer leads to what another tree has too. What is below it was linked there, in other
//! epochs: seen through this pointer, all of it was born with it and is cloned.

use crate::bytes::{put_u64, u64_at};
use crate::{LayoutError, Result, BLOCK_BYTES};

/// Bytes of an encoded pointer.
pub const POINTER_BYTES: usize = 16;
/// Pointers of a tree node, which is one block of nothing else.
pub const POINTERS_PER_NODE: usize = BLOCK_BYTES / POINTER_BYTES;
/// Largest block number.
pub const MAX_BLOCK: u64 = (1 << 44) - 1;

const BIRTH_MASK: u64 = (1 << 48) - 1;
const CLONED: u64 = 1 << 44;

/// A pointer; `Pointer::default()` is a hole born in epoch 0, that is: since ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pointer {
    /// Disk block; 0: hole.
    pub block: u64,
    /// Epoch in which it was linked into its tree.
    pub birth: u64,
    /// CRC-32C of the block's bytes.
    pub crc: u32,
    /// It leads to what another tree has too, or had.
    pub cloned: bool,
}

const _: () = assert!(POINTERS_PER_NODE == 256);

impl Pointer {
    /// A hole made in `birth`.
    pub fn hole(birth: u64) -> Pointer {
        Pointer { birth, ..Pointer::default() }
    }

    /// Does nothing stand behind it?
    pub fn is_hole(&self) -> bool {
        self.block == 0
    }

    /// Writes the pointer into the first 16 bytes of `out`.
    pub fn encode(&self, out: &mut [u8]) {
        let birth = self.birth & BIRTH_MASK;
        let cloned = if self.cloned { CLONED } else { 0 };
        put_u64(out, 0, (self.block & MAX_BLOCK) | cloned | (birth & 0xffff) << 48);
        put_u64(out, 8, birth >> 16 | u64::from(self.crc) << 32);
    }

    /// Reads 16 bytes; unknown flags are refused.
    pub fn decode(bytes: &[u8]) -> Result<Pointer> {
        let (a, b) = (u64_at(bytes, 0), u64_at(bytes, 8));
        let (flags, cloned) = ((a >> 44) & 0xf, a & CLONED != 0);
        if flags > 1 || (cloned && a & MAX_BLOCK == 0) {
            return Err(LayoutError::Invalid("pointer: unknown flags"));
        }
        Ok(Pointer {
            block: a & MAX_BLOCK,
            birth: a >> 48 | (b & 0xffff_ffff) << 16,
            crc: (b >> 32) as u32,
            cloned,
        })
    }

    /// Pointer number `index` (below 256) of the node that this one leads to, as it is seen from
    /// here.
    pub fn child(&self, node: &[u8; BLOCK_BYTES], index: usize) -> Result<Pointer> {
        let child = Pointer::in_node(node, index)?;
        Ok(match self.cloned {
            true => Pointer { birth: self.birth, cloned: !child.is_hole(), ..child },
            false => child,
        })
    }

    /// Reads pointer number `index` (below 256) of a node's bytes.
    pub fn in_node(node: &[u8; BLOCK_BYTES], index: usize) -> Result<Pointer> {
        Pointer::decode(&node[index * POINTER_BYTES..(index + 1) * POINTER_BYTES])
    }
}
