//! Walks over all that the pool names: every copy of every block is read, compared with the
//! checksum that names it, and healed from a good copy where there is one.
//!
//! A walk is a [`Walk`]: a cursor and what kind of walk it is. It holds nothing between two steps:
//! each piece pins the running epoch anew and looks its place up again, so writers, deletes and
//! consistency points go on beside it. What is written behind the cursor is written good, and what
//! is written before it is found there. A piece in turn: at most [`PIECE_BLOCKS`] blocks.
//!
//! Why a piece never judges, or heals, a block that has another owner by now:
//! - a pointer found in a tree as it is in memory is linked then, after the pin was taken: it is
//!   freed by a later consistency point, whose releases wait for the pin;
//! - a record of the inode file is believed only if its inode is not in memory afterwards, its
//!   volume is not deleted, and no consistency point completed in between: then the inode is not
//!   newer than its record, and the first case holds;
//! - pages, roots, the log and the dead list are looked at under the lock of consistency points,
//!   without which nothing of them is overwritten or released.

mod control;
mod fixed;
mod trees;

pub(crate) use control::{Hears, Scrub};
pub use control::{ScrubStatus, SCRUB_PLACES};

use super::core::Core;
use super::error::Result;
use super::heal::{Copy, Verdict};
use super::types::*;

/// Blocks verified in one piece: so long a pin or the lock of consistency points is held. 1 MiB
/// takes 10 ms on a slow disk.
pub(crate) const PIECE_BLOCKS: u64 = 256;

/// What a block is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// Data of a file, directory or symbolic link.
    Data,
    /// A node of a file's tree: what lies below it cannot be found without it.
    Node,
    /// A block of inodes, or a node above such blocks.
    Inodes,
    /// A node of what is detached and waits to be freed.
    Dead,
    /// A page of the free-space map.
    Space,
    /// A head of the log, or what continues it.
    Log,
    /// A page of the segment map.
    SegmentMap,
    /// A copy of a root.
    Root,
    /// A copy of a label.
    Label,
}

/// What became of a block of which a copy was bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// Rewritten from a good copy.
    Healed,
    /// A good copy is there, but the bad one could not be rewritten.
    Kept,
    /// No copy is good.
    Lost,
}

/// A block of which a copy was bad.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BadPlace {
    /// The volume; 0 where it belongs to the pool itself.
    pub volume: VolumeId,
    /// The inode; of [`Part::Inodes`] the first one below; 0 where it belongs to none.
    pub ino: u64,
    /// First byte of the file that it holds or leads to.
    pub offset_bytes: u64,
    /// How many bytes of the file it holds or leads to; 0 where it belongs to no file.
    pub length_bytes: u64,
    /// What it is for.
    pub part: Part,
    /// What became of it.
    pub outcome: Outcome,
    /// Pool block; of [`Part::SegmentMap`], [`Part::Root`] and [`Part::Label`] device block.
    pub block: u64,
    /// Devices whose copies were bad.
    pub devices: Vec<u16>,
}

/// What a step found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Blocks of which all copies were read.
    pub examined_blocks: u64,
    /// Copies rewritten.
    pub healed: u64,
    /// Blocks of which a copy is bad still.
    pub bad: u64,
    /// Where, healed ones included.
    pub places: Vec<BadPlace>,
    /// Something has no good copy on disk, but is in memory: consistency points write it anew.
    pub renew: bool,
    /// Reads that failed where no copy was good: it may pass.
    pub unread: u64,
}

/// Where something stands, for whoever hears of it.
#[derive(Clone, Copy)]
pub(crate) struct Owner {
    pub part: Part,
    pub volume: VolumeId,
    pub ino: u64,
    pub offset_bytes: u64,
    pub length_bytes: u64,
}

impl Owner {
    /// The pool's own.
    pub fn pool(part: Part) -> Owner {
        Owner { part, volume: VolumeId(0), ino: 0, offset_bytes: 0, length_bytes: 0 }
    }
}

impl Found {
    /// Enters what was found of one block.
    pub fn note(&mut self, owner: Owner, block: u64, verdict: &Verdict) {
        self.examined_blocks += 1;
        self.enter(owner, block, &verdict.healed, Outcome::Healed);
        if verdict.good.is_none() && verdict.failure.is_some() {
            self.unread += 1;
        }
        let left = if verdict.good.is_some() { Outcome::Kept } else { Outcome::Lost };
        self.enter(owner, block, &verdict.bad, left);
    }

    fn enter(&mut self, owner: Owner, block: u64, copies: &[Copy], outcome: Outcome) {
        if copies.is_empty() {
            return;
        }
        match outcome {
            Outcome::Healed => self.healed += copies.len() as u64,
            _ => self.bad += 1,
        }
        let Owner { part, volume, ino, offset_bytes, length_bytes } = owner;
        let devices = copies.iter().map(|c| c.0).collect();
        let place =
            BadPlace { volume, ino, offset_bytes, length_bytes, part, outcome, block, devices };
        self.places.push(place);
    }
}

/// The parts of the pool, in the order in which they are walked. What is detached behind the cursor
/// of the trees is found in the dead list after them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Phase {
    #[default]
    Trees,
    Dead,
    Space,
    Log,
    Fixed,
    Done,
}

/// How far a walk is: all that has to be kept to go on with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Cursor {
    pub phase: Phase,
    pub volume: u32,
    /// Of the trees: the inode; of the dead list: the entry; of the log: through which group.
    pub ino: u64,
    /// Of the trees and the dead list: file block; of the space pages: how many are done.
    pub block: u64,
    /// The block of inodes that holds `ino` has been verified.
    pub entered: bool,
}

/// A walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Walk {
    pub at: Cursor,
    /// Subtrees born in this epoch or before are left out: what a device holds already that was
    /// there when the consistency point of this epoch became durable. 0: nothing is left out.
    pub since: u64,
    /// What versions share is visited with each of them, not only with the oldest: then nothing is
    /// left out where the oldest is deleted meanwhile.
    pub every_version: bool,
    /// Where the log is followed; begun again where it is not kept.
    pub chain: Option<fixed::ChainPlace>,
    /// Consistency points have to write something anew.
    pub renew: bool,
    /// A version is walked once more, its blocks born after this epoch: see [`Scrub::joined`].
    pub again: Option<u64>,
    /// Of a walk that fills devices: the epoch of the root it began with, and a file that is walked
    /// once more, its blocks born after that epoch: see [`super::regenerate`].
    pub began: u64,
    pub refill: Option<NodeId>,
}

impl Walk {
    pub fn is_done(&self) -> bool {
        self.at.phase == Phase::Done && !self.renew
    }

    fn enter(&mut self, phase: Phase) {
        self.at = Cursor { phase, ..Cursor::default() };
    }
}

impl Core {
    /// Verifies and heals about `budget_blocks` more; what was found. Where another call of this
    /// thread holds what it needs, it does nothing.
    pub fn walk(&self, walk: &mut Walk, budget_blocks: u64) -> Result<Found> {
        let mut found = Found::default();
        // A piece may find nothing to verify: what it looked at counts too.
        let mut looked = 0;
        while !walk.is_done() && found.examined_blocks + looked < budget_blocks {
            let before = walk.at;
            let left = budget_blocks - found.examined_blocks - looked;
            self.walk_piece(walk, left.min(PIECE_BLOCKS), &mut found)?;
            walk.renew |= std::mem::take(&mut found.renew);
            if walk.renew {
                walk.renew = !self.renew()?;
            }
            looked += 1;
            if walk.at == before && !self.limits.background {
                break;
            }
        }
        Ok(found)
    }

    pub(super) fn walk_piece(&self, walk: &mut Walk, budget: u64, found: &mut Found) -> Result<()> {
        match walk.at.phase {
            Phase::Trees => self.walk_trees(walk, budget, found),
            Phase::Dead => self.walk_dead(walk, budget, found),
            Phase::Space => self.walk_space(walk, budget, found),
            Phase::Log => self.walk_log(walk, budget, found),
            Phase::Fixed => self.walk_fixed(walk, found),
            Phase::Done => Ok(()),
        }
    }
}
