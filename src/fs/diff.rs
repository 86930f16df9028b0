//! What changed of a file between two versions.
//!
//! The walk goes down both trees beside each other and skips what both have; beside a bookmark, an
//! epoch kept by name, it skips what was born by then: a hole keeps the epoch in which it was made.
//! So its cost grows with the change. It reads, and frees nothing.

use super::core::*;
use super::error::{Error, Result};
use super::pool::Fs;
use super::tree::{reach, MAX_HEIGHT};
use super::types::*;
use crate::device::BLOCK_BYTES;
use fs_layout::{InodeKind, Pointer, POINTERS_PER_NODE};
use std::sync::atomic::Ordering;

const BS: u64 = BLOCK_BYTES as u64;

/// Nodes that one answer reads at most on each side (and the path to where it begins): what is read
/// is pinned until it is done, and consistency points wait for pins.
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

/// One side of the walk: a pointer and the height of what it leads to.
#[derive(Clone, Copy)]
struct Side(Pointer, u8);

/// Nothing, as far as anybody knows.
const NOTHING: Side = Side(Pointer { block: 0, birth: 0, crc: 0, cloned: false }, 0);

struct Walk<'a> {
    core: &'a Core,
    /// Nothing born up to this epoch has changed.
    since: Option<u64>,
    /// When holes were made that say nothing of it.
    cleared: u64,
    from: u64,
    max: usize,
    nodes_left: u32,
    out: Diff,
}

impl Walk<'_> {
    /// What a side has below slot `index` of a node of this height.
    fn below(&self, side: Side, nodes: &[Pointer], height: u8, index: usize) -> Side {
        match side.1 {
            // A lower tree stands below the first slot of a taller one.
            h if h < height && index == 0 => side,
            h if h < height => NOTHING,
            _ => Side(nodes.get(index).copied().unwrap_or_default(), height - 1),
        }
    }

    /// A node's pointers, if the side has a node at this height.
    fn nodes(&self, side: Side, height: u8) -> Result<Vec<Pointer>> {
        if side.1 < height || side.0.is_hole() {
            // All of a hole was made when it was.
            return Ok(vec![Pointer::hole(side.0.birth); POINTERS_PER_NODE]);
        }
        let raw = self.core.store.read(&side.0)?;
        let at = |i| side.0.child(&raw.bytes.0, i).map_err(|e| Error::Format(e.to_string()));
        (0..POINTERS_PER_NODE).map(at).collect()
    }

    fn walk(&mut self, old: Side, new: Side, height: u8, base: u64) -> Result<()> {
        let span = reach(height);
        if self.out.next_bytes.is_some() || base + span <= self.from {
            return Ok(());
        }
        let same = old.0 == new.0 && (old.1 == new.1 || old.0.is_hole());
        let unchanged = match self.since {
            Some(since) if new.0.is_hole() => new.0.birth.max(self.cleared) <= since,
            Some(since) => new.0.birth <= since,
            None => same || (old.0.is_hole() && new.0.is_hole()),
        };
        if unchanged {
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
        self.nodes_left = self.nodes_left.saturating_sub(1);
        let (a, b) = (self.nodes(old, height)?, self.nodes(new, height)?);
        for i in 0..POINTERS_PER_NODE {
            let (x, y) = (self.below(old, &a, height, i), self.below(new, &b, height, i));
            self.walk(x, y, height - 1, base + i as u64 * reach(height - 1))?;
        }
        Ok(())
    }

    fn add(&mut self, first: u64, count: u64, is_data: bool) {
        let (first, end) = (first.max(self.from), first + count);
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
        self.core().diff(base, to, from_bytes, max)
    }
}

impl Core {
    /// A snapshot's file, and when it last lost all its data.
    fn frozen_tree(&self, id: NodeId) -> Result<Option<(Side, u64)>> {
        if id.volume == TABLE || !self.volume(id.volume)?.is_frozen {
            return Err(Error::Invalid("only snapshots are compared"));
        }
        let record = match self.inode(id) {
            Ok(inode) => inode.state.read().meta,
            Err(Error::Stale) => return Ok(None),
            Err(e) => return Err(e),
        };
        let there = record.kind != InodeKind::Free;
        Ok(there.then_some((Side(record.root, record.height), record.cleared)))
    }

    fn diff(&self, base: DiffBase, to: NodeId, from_bytes: u64, max: usize) -> Result<Diff> {
        // What must be waited for comes before the pin.
        self.volume(to.volume)?;
        if let DiffBase::Snapshot(volume) = base {
            self.volume(volume)?;
        }
        let _pin = self.pins.pin(&self.epoch);
        let (new, cleared) = self.frozen_tree(to)?.ok_or(Error::Stale)?;
        let (old, since) = match base {
            DiffBase::Epoch(epoch) => (NOTHING, Some(epoch)),
            DiffBase::Snapshot(volume) => {
                let found = self.frozen_tree(NodeId { volume, ..to })?;
                (found.map_or(NOTHING, |f| f.0), None)
            }
        };
        // A file that was cut short may have lost what its tree cannot reach any more.
        let height = if since.is_some() { MAX_HEIGHT } else { old.1.max(new.1) };
        let (from, max) = (from_bytes / BS, max.max(1));
        let (nodes_left, out) = (NODES_AT_ONCE, Diff::default());
        let mut walk = Walk { core: self, since, cleared, from, max, nodes_left, out };
        walk.walk(old, new, height, 0)?;
        let versions = match base {
            DiffBase::Snapshot(volume) => vec![volume, to.volume],
            DiffBase::Epoch(_) => vec![to.volume],
        };
        // Asked after the pin: what a deletion frees later was still there for us.
        let deleted =
            |v: &VolumeId| self.volumes.get(v).is_none_or(|v| v.deleted.load(Ordering::Acquire));
        match versions.iter().any(deleted) {
            true => Err(Error::Stale),
            false => Ok(walk.out),
        }
    }
}
