//! A dead list: what a version has detached and not yet freed. It is the data of an inode of the
//! volume table: entries of 32 bytes, used as a stack, the last one first.
//!
//! Entry: pointer 0..16, depth 16, kind 17, reserved 18..20, volume u32 20..24 and inode u64 24..32
//! whose count of blocks falls when its data is freed (inode 0: nobody's).

use crate::bytes::{put_u32, put_u64, u32_at, u64_at};
use crate::{LayoutError, Pointer, Result};

/// Bytes of an entry.
pub const DEAD_ENTRY_BYTES: usize = 32;

/// What stands below an entry's pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum DeadKind {
    /// A file's tree: data at the bottom.
    Data = 0,
    /// An inode file's tree: at the bottom blocks of inodes, whose own trees are dead too.
    Inodes = 1,
    /// Says of the entries above it, up to the next such entry, what of them may be freed: what was
    /// born after the birth of this entry's pointer, a hole; or, where `ino` names a dead list,
    /// after the parent of that list's owner, the rest going on that list.
    Scope = 2,
    /// A file's tree that others still have: nothing is freed, its data is only counted.
    Count = 3,
    /// A node alone, which is replaced by a copy of it that has the same children.
    Node = 4,
    /// A file's tree that another tree has, and has it for itself: of what is below, what the scope
    /// does not let go is going to be counted once more.
    Kept = 5,
}

/// An entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeadEntry {
    /// Root of what is dead.
    pub pointer: Pointer,
    /// Levels of nodes: 0, a block alone, of data but in lists of before there was `Node`.
    pub depth: u8,
    /// What is at the bottom.
    pub kind: DeadKind,
    /// Volume of the inode it was detached from.
    pub volume: u32,
    /// That inode; 0: the inode itself is gone. Of a scope: the dead list, or 0.
    pub ino: u64,
}

impl DeadEntry {
    /// Its 32 bytes.
    pub fn encode(&self) -> [u8; DEAD_ENTRY_BYTES] {
        let mut b = [0; DEAD_ENTRY_BYTES];
        self.pointer.encode(&mut b);
        b[16] = self.depth;
        b[17] = self.kind as u8;
        put_u32(&mut b, 20, self.volume);
        put_u64(&mut b, 24, self.ino);
        b
    }

    /// Reads 32 bytes.
    pub fn decode(b: &[u8; DEAD_ENTRY_BYTES]) -> Result<DeadEntry> {
        let kind = match b[17] {
            0 => DeadKind::Data,
            1 => DeadKind::Inodes,
            2 => DeadKind::Scope,
            3 => DeadKind::Count,
            4 => DeadKind::Node,
            5 => DeadKind::Kept,
            _ => return Err(LayoutError::Invalid("dead list: unknown kind")),
        };
        if b[16] > 5 {
            return Err(LayoutError::Invalid("dead list: too deep"));
        }
        Ok(DeadEntry {
            pointer: Pointer::decode(b)?,
            depth: b[16],
            kind,
            volume: u32_at(b, 20),
            ino: u64_at(b, 24),
        })
    }
}
