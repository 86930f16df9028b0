//! What changed of a file between two versions, or since one.
//!
//! The walk goes down both trees beside each other and skips what both have; beside a bookmark, an
//! epoch kept by name, it skips what was born by then: a hole keeps the epoch in which it was made.
//! So its cost grows with the change. It reads, and frees nothing.
//!
//! A file that lives is looked at under its lock until a node has to be read; then the walk goes on
//! from there, in the tree as it is by then. So whatever had changed when the walk began is told;
//! of what changes meanwhile some is.

use super::core::*;
use super::error::{Error, Result};
use super::handle::File;
use super::pool::Fs;
use super::tree::{reach, slots_of, Miss, NodeSource, Slot, MAX_HEIGHT};
use super::types::*;
use crate::device::BLOCK_BYTES;
use fs_layout::{InodeKind, POINTERS_PER_NODE};
use std::ops::Range;
use std::sync::atomic::Ordering;

const BS: u64 = BLOCK_BYTES as u64;

/// Nodes that one answer looks at on each side (and the path to where it begins): about a
/// millisecond, for which writers of a file that lives may have to wait.
const NODES_AT_ONCE: u32 = 1024;

/// What a file is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiffBase {
    /// The same file in this snapshot; all of it is new where it is not there.
    Snapshot(VolumeId),
    /// What it was at the end of this epoch, in its own history.
    Epoch(u64),
}

/// A range that changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangedExtent {
    /// Where it begins, a multiple of the block size.
    pub offset_bytes: u64,
    /// How long it is; the last one may reach beyond the end of the file.
    pub length_bytes: u64,
    /// It holds data; else it is a hole now.
    pub is_data: bool,
}

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Diff {
    /// In ascending order, without overlap.
    pub extents: Vec<ChangedExtent>,
    /// There is more, from this offset on.
    pub next_bytes: Option<u64>,
}

/// One side of the walk: what leads to a subtree, and its height.
#[derive(Clone)]
struct Side(Slot, u8);

impl Side {
    /// Nothing, as far as anybody knows.
    fn nothing() -> Side {
        Side(Slot::hole(0), 0)
    }

    /// What it has below slot `index` of a node of this height.
    fn below(&self, slots: &[Slot], height: u8, index: usize) -> Side {
        match self.1 {
            // A lower tree stands below the first slot of a taller one.
            h if h < height && index == 0 => self.clone(),
            h if h < height => Side::nothing(),
            _ => Side(slots.get(index).cloned().unwrap_or(Slot::hole(0)), height - 1),
        }
    }
}

struct Walk {
    /// Nothing born up to this epoch has changed.
    since: Option<u64>,
    /// When holes were made that say nothing of it.
    cleared: u64,
    /// Where the answer begins.
    from: u64,
    /// Blocks that are asked for; what lies before is told.
    range: Range<u64>,
    max: usize,
    nodes_left: u32,
    out: Diff,
}

impl Walk {
    fn new(since: Option<u64>, range: Range<u64>, max: usize) -> Walk {
        let (from, max, out) = (range.start, max.max(1), Diff::default());
        Walk { since, cleared: 0, from, range, max, nodes_left: NODES_AT_ONCE, out }
    }

    /// From the tops of both trees, as far as it comes.
    fn pass(
        &mut self,
        nodes: &dyn NodeSource,
        old: &Side,
        new: &Side,
        cleared: u64,
    ) -> std::result::Result<(), Miss> {
        self.cleared = cleared;
        // A file that was cut short may have lost what its tree cannot reach any more.
        let height = if self.since.is_some() { MAX_HEIGHT } else { old.1.max(new.1) };
        self.walk(nodes, old, new, height, 0)
    }

    /// A node's slots, if the side has a node at this height.
    fn slots(
        &self,
        nodes: &dyn NodeSource,
        side: &Side,
        height: u8,
    ) -> std::result::Result<Vec<Slot>, Miss> {
        if side.1 < height || side.0.is_hole() {
            // All of a hole was made when it was.
            return Ok(vec![Slot::hole(side.0.birth()); POINTERS_PER_NODE]);
        }
        slots_of(nodes, &side.0)
    }

    fn is_unchanged(&self, old: &Side, new: &Side) -> bool {
        match self.since {
            Some(since) if new.0.is_hole() => new.0.birth().max(self.cleared) <= since,
            Some(since) => new.0.birth() <= since,
            None if old.0.is_hole() || new.0.is_hole() => old.0.is_hole() && new.0.is_hole(),
            // What has no place yet is newer than any snapshot that can be read.
            None => old.1 == new.1 && old.0.pointer().is_some_and(|p| Some(p) == new.0.pointer()),
        }
    }

    fn walk(
        &mut self,
        nodes: &dyn NodeSource,
        old: &Side,
        new: &Side,
        height: u8,
        base: u64,
    ) -> std::result::Result<(), Miss> {
        let span = reach(height);
        let is_outside = base + span <= self.range.start || base >= self.range.end;
        if self.out.next_bytes.is_some() || is_outside || self.is_unchanged(old, new) {
            return Ok(());
        }
        if new.0.is_hole() || height == 0 {
            self.add(base, span, !new.0.is_hole());
            return Ok(());
        }
        if self.nodes_left == 0 && base > self.from {
            self.out.next_bytes = Some(base * BS);
            return Ok(());
        }
        let a = self.slots(nodes, old, height);
        let both = a.and_then(|a| Ok((a, self.slots(nodes, new, height)?)));
        let (a, b) = both.inspect_err(|_| self.range.start = self.range.start.max(base))?;
        if base >= self.range.start {
            // The path to there is looked at again after each miss.
            self.nodes_left = self.nodes_left.saturating_sub(1);
        }
        for i in 0..POINTERS_PER_NODE {
            let (x, y) = (old.below(&a, height, i), new.below(&b, height, i));
            self.walk(nodes, &x, &y, height - 1, base + i as u64 * reach(height - 1))?;
        }
        Ok(())
    }

    fn add(&mut self, first: u64, count: u64, is_data: bool) {
        let end = (first + count).min(self.range.end);
        let first = first.max(self.range.start);
        let (offset_bytes, length_bytes) = (first * BS, (end - first) * BS);
        if let Some(last) = self.out.extents.last_mut() {
            let follows = last.offset_bytes + last.length_bytes == offset_bytes;
            if follows && last.is_data == is_data {
                last.length_bytes += length_bytes;
                return;
            }
        }
        if self.out.extents.len() >= self.max {
            self.out.next_bytes = Some(offset_bytes);
            return;
        }
        self.out.extents.push(ChangedExtent { offset_bytes, length_bytes, is_data });
    }
}

impl Fs {
    /// What changed of a snapshot's file (`to`) since `base`, from `from_bytes` on: at most `max`
    /// extents, and what about a thousand nodes tell; so there may be none, and yet more to come.
    pub fn diff(&self, base: DiffBase, to: NodeId, from_bytes: u64, max: usize) -> Result<Diff> {
        let core = self.core();
        if to.volume == TABLE || !core.volume(to.volume)?.is_frozen {
            return Err(Error::Invalid("only snapshots are compared"));
        }
        core.diff(base, &*core.inode(to)?, from_bytes / BS..u64::MAX, max)
    }
}

impl File {
    /// What changed of it since `base` in the range of bytes, at most `max` extents of whole blocks
    /// that may reach beyond the end of the file, and what about a thousand nodes tell. All that
    /// had changed before the call is in the answer. A `base` in epochs must be of the file's own
    /// history.
    pub fn changed_since(
        &self,
        base: DiffBase,
        range_bytes: Range<u64>,
        max: usize,
    ) -> Result<Diff> {
        let blocks = range_bytes.start / BS..range_bytes.end.div_ceil(BS);
        self.core().diff(base, self.inode(), blocks, max)
    }
}

impl Core {
    /// A snapshot's file.
    fn frozen_tree(&self, id: NodeId) -> Result<Side> {
        if id.volume == TABLE || !self.volume(id.volume)?.is_frozen {
            return Err(Error::Invalid("only snapshots are compared with"));
        }
        let record = match self.inode(id) {
            Ok(inode) => inode.state.read().meta,
            Err(Error::Stale) => return Ok(Side::nothing()),
            Err(e) => return Err(e),
        };
        match record.kind == InodeKind::Free {
            true => Ok(Side::nothing()),
            false => Ok(Side(Slot::Ptr(record.root), record.height)),
        }
    }

    fn diff(&self, base: DiffBase, to: &Inode, blocks: Range<u64>, max: usize) -> Result<Diff> {
        let (old, since) = match base {
            DiffBase::Epoch(epoch) => (Side::nothing(), Some(epoch)),
            DiffBase::Snapshot(volume) => {
                // May have to be waited for, before anything is pinned.
                (self.frozen_tree(NodeId { volume, ..to.id })?, None)
            }
        };
        let mut walk = Walk::new(since, blocks, max);
        let mut held = Held::new(&self.store);
        loop {
            let _pin = self.pins.pin(&self.epoch);
            let from = walk.range.start;
            let stopped = self.diff_pass(&mut walk, &held, &old, to)?;
            // Asked behind the pin: what a deletion frees later was still there for us.
            if let DiffBase::Snapshot(volume) = base {
                let known = self.volumes.get(&volume);
                if known.is_none_or(|v| v.deleted.load(Ordering::Acquire)) {
                    return Err(Error::Stale);
                }
            }
            if walk.range.start > from {
                held = Held::new(&self.store);
            }
            match stopped {
                Ok(()) => return Ok(walk.out),
                Err(miss) => held.fetch(miss)?,
            }
        }
    }

    fn diff_pass(
        &self,
        walk: &mut Walk,
        held: &Held<'_>,
        old: &Side,
        to: &Inode,
    ) -> Result<std::result::Result<(), Miss>> {
        let state = to.state.read();
        if Core::is_ended(to, &state) {
            return Err(Error::Stale);
        }
        let new = Side(state.tree.root.clone(), state.tree.height);
        Ok(walk.pass(held, old, &new, state.meta.cleared))
    }
}
