//! What snapshots hold: the deletion of some is gone through without doing it.
//!
//! It does what `lists`, `reclaim` and `counts` would do, on the lists as the last consistency
//! point left them, and only counts. Its cost is that of the deletion: the dead lists of the
//! snapshots and of those made after them are read, and the nodes of subtrees that are on them, or
//! that a snapshot without a successor has alone. What was detached and is not walked yet is
//! nobody's any more.

use super::core::*;
use super::error::{Error, Result};
use super::pool::Fs;
use super::reclaim::{children, read_entries};
use super::types::*;
use crate::device::BLOCK_BYTES;
use fs_layout::{
    DeadEntry, DeadKind, Inode as DiskInode, InodeKind, Pointer, INODES_PER_BLOCK, INODE_BYTES,
    VERSION_DELETED,
};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

const BS: u64 = BLOCK_BYTES as u64;

/// What a snapshot holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotSpace {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: VolumeId,
    /// What its deletion alone would give back, in bytes.
    pub alone_bytes: u64,
}

impl Fs {
    /// Bytes that the deletion of a snapshot would give back: what no other version has. 0 where
    /// more than one version was made from it. As [`Fs::freed_bytes`] of it alone.
    pub fn snapshot_alone_bytes(&self, volume: VolumeId, name: &str) -> Result<u64> {
        let found = self.snapshot_lookup(volume, name)?.ok_or(Error::NotFound)?;
        self.freed_bytes(&[found.id])
    }

    /// Bytes that the deletion of these snapshots together would give back, to the block but for
    /// the pool's own lists. Runs a consistency point, then reads what the deletion would read:
    /// the dead lists beside them (128 entries a block) and the nodes that they alone have.
    pub fn freed_bytes(&self, snapshots: &[VolumeId]) -> Result<u64> {
        self.core().with_settled(snapshots, |core| Going::of(core, snapshots))
    }

    /// What each snapshot of a volume holds alone, sorted by name; the cost is as of
    /// [`Fs::freed_bytes`] for each, and one consistency point. Others go between: one that is
    /// deleted meanwhile is left out.
    pub fn snapshot_space(&self, volume: VolumeId) -> Result<Vec<SnapshotSpace>> {
        let (core, found) = (self.core(), self.snapshot_list(volume)?);
        let ids: Vec<VolumeId> = found.iter().map(|s| s.id).collect();
        core.settle_all(&ids)?;
        let mut all = Vec::new();
        for s in found {
            // Consistency points wait while one is counted, and writers for these in the end.
            let alone = core.with_lists(|core| {
                let is_gone = core.inode_file(s.id)?.state.read().gone;
                match is_gone {
                    true => Err(Error::Stale),
                    false => Going::of(core, &[s.id]),
                }
            });
            match alone {
                Ok(alone_bytes) => all.push(SnapshotSpace { name: s.name, id: s.id, alone_bytes }),
                Err(Error::Stale) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(all)
    }

    /// Bytes of data that a live volume has and its newest snapshot (or what it was cloned from)
    /// has not: what was written since, if it was not overwritten since. Reads the nodes that
    /// changed, after a consistency point.
    pub fn written_since_bytes(&self, volume: VolumeId) -> Result<u64> {
        self.core().with_settled(&[volume], |core| {
            let bound = core.shared_up_to(volume)?;
            let going = Going::new(core);
            let root = core.inode_file(volume)?.state.read().meta;
            let entry = entry(root.root, root.height, DeadKind::Inodes);
            going.young_data(entry, bound).map(|blocks| blocks * BS)
        })
    }
}

fn entry(pointer: Pointer, depth: u8, kind: DeadKind) -> DeadEntry {
    DeadEntry { pointer, depth, kind, volume: 0, ino: 0 }
}

impl Core {
    /// Runs `f` on the lists of these versions as they are on disk.
    fn with_settled<T>(
        &self,
        versions: &[VolumeId],
        f: impl FnOnce(&Core) -> Result<T>,
    ) -> Result<T> {
        self.settle_all(versions)?;
        self.with_lists(f)
    }

    fn settle_all(&self, versions: &[VolumeId]) -> Result<()> {
        versions.iter().try_for_each(|id| self.settle_version(*id))?;
        self.consistency_point(false)
    }

    /// Runs `f` while no consistency point changes lists.
    fn with_lists<T>(&self, f: impl FnOnce(&Core) -> Result<T>) -> Result<T> {
        let _cp = self.lock_unless_alone(&self.cp).ok_or(Error::Busy)?;
        f(self)
    }
}

/// A version as it would be.
#[derive(Clone)]
struct Version {
    parent: u64,
    children: BTreeSet<u64>,
    epoch: u64,
    deleted: bool,
    dead_list: u64,
    /// Its dead list, if it was looked at.
    list: Option<Vec<DeadEntry>>,
}

/// A deletion that is gone through.
struct Going<'a> {
    core: &'a Core,
    versions: BTreeMap<u64, Version>,
    /// Counts that would be others.
    counts: HashMap<u64, i64>,
    freed: u64,
}

impl<'a> Going<'a> {
    fn new(core: &'a Core) -> Going<'a> {
        Going { core, versions: BTreeMap::new(), counts: HashMap::new(), freed: 0 }
    }

    fn of(core: &'a Core, snapshots: &[VolumeId]) -> Result<u64> {
        let mut going = Going::new(core);
        for id in snapshots {
            going.version(u64::from(id.0))?.deleted = true;
        }
        let mut waiting: Vec<u64> = snapshots.iter().map(|id| u64::from(id.0)).collect();
        while let Some(id) = waiting.pop() {
            let Version { deleted, children, parent, .. } = going.version(id)?.clone();
            match (deleted, children.len(), children.first()) {
                (true, 0, _) => {
                    going.end_leaf(id)?;
                    waiting.extend((parent != 0).then_some(parent));
                }
                (true, 1, Some(child)) => going.end_between(id, *child)?,
                _ => {}
            }
        }
        Ok(going.freed * BS)
    }

    fn version(&mut self, id: u64) -> Result<&mut Version> {
        if !self.versions.contains_key(&id) {
            let part = self.core.version_part(VolumeId(id as u32))?;
            let mut children = BTreeSet::new();
            let mut child = part.first_child;
            while child != 0 && children.insert(child) {
                child = self.core.version_part(VolumeId(child as u32))?.sibling;
            }
            let version = Version {
                parent: part.parent,
                children,
                epoch: part.epoch,
                deleted: part.flags & VERSION_DELETED != 0,
                dead_list: part.dead_list,
                list: None,
            };
            self.versions.insert(id, version);
        }
        self.versions.get_mut(&id).ok_or(Error::Stale)
    }

    fn bound(&mut self, id: u64) -> Result<u64> {
        match self.version(id)?.parent {
            0 => Ok(0),
            parent => Ok(self.version(parent)?.epoch),
        }
    }

    fn take_list(&mut self, id: u64) -> Result<Vec<DeadEntry>> {
        let version = self.version(id)?;
        match (version.list.take(), version.dead_list) {
            (Some(list), _) => Ok(list),
            (None, 0) => Ok(Vec::new()),
            (None, list) => {
                let file = self.core.inode(NodeId { volume: TABLE, ino: list })?;
                read_entries(self.core, &file)
            }
        }
    }

    fn end_leaf(&mut self, id: u64) -> Result<()> {
        let bound = self.bound(id)?;
        let meta = self.core.inode_file(VolumeId(id as u32))?.state.read().meta;
        let parent = self.version(id)?.parent;
        if meta.root.birth > bound {
            self.free(entry(meta.root, meta.height, DeadKind::Inodes), bound, &mut Vec::new())?;
        }
        if parent != 0 {
            self.version(parent)?.children.remove(&id);
        }
        self.version(id)?.deleted = false;
        Ok(())
    }

    fn end_between(&mut self, id: u64, child: u64) -> Result<()> {
        let bound = self.bound(id)?;
        let parent = self.version(id)?.parent;
        let mut kept = self.take_list(id)?;
        let entries = self.take_list(child)?;
        let (mut freed, old): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|e| e.pointer.birth > bound);
        kept.extend(old);
        freed.sort_by_key(|e| Reverse(if e.kind == DeadKind::Node { e.depth } else { 0 }));
        for e in freed {
            self.free(e, bound, &mut kept)?;
        }
        let heir = self.version(child)?;
        (heir.parent, heir.list) = (parent, Some(kept));
        if parent != 0 {
            let above = &mut self.version(parent)?.children;
            above.remove(&id);
            above.insert(child);
        }
        self.version(id)?.deleted = false;
        Ok(())
    }

    fn count_of(&self, block: u64) -> Result<i64> {
        let told = i64::from(self.core.clones_of(block)?);
        Ok(told + self.counts.get(&block).copied().unwrap_or(0))
    }

    /// Would it be freed?
    fn let_go(&mut self, block: u64) -> Result<bool> {
        if self.count_of(block)? > 0 {
            *self.counts.entry(block).or_default() -= 1;
            return Ok(false);
        }
        self.freed += 1;
        Ok(true)
    }

    /// Lets an entry go; what is not to be judged by `bound` goes on the list.
    fn free(&mut self, e: DeadEntry, bound: u64, list: &mut Vec<DeadEntry>) -> Result<()> {
        if e.pointer.is_hole() || e.pointer.birth <= bound {
            list.extend((!e.pointer.is_hole()).then_some(e));
            return Ok(());
        }
        let is_free = self.let_go(e.pointer.block)?;
        if e.kind == DeadKind::Node {
            if !is_free {
                for p in children(&self.core.store, &e.pointer)? {
                    *self.counts.entry(p.block).or_default() += 1;
                }
            }
            return Ok(());
        }
        if !is_free {
            return match bound > 0 && e.depth > 0 && !e.pointer.cloned {
                true => self.keep_below(e, bound, list),
                false => Ok(()),
            };
        }
        for below in self.below(e)? {
            self.free(below, bound, list)?;
        }
        Ok(())
    }

    /// What others have from now on by themselves.
    fn keep_below(&mut self, e: DeadEntry, bound: u64, list: &mut Vec<DeadEntry>) -> Result<()> {
        for below in self.below(e)? {
            if below.pointer.birth <= bound {
                *self.counts.entry(below.pointer.block).or_default() += 1;
                list.push(below);
            } else if below.depth > 0 && !below.pointer.cloned {
                self.keep_below(below, bound, list)?;
            }
        }
        Ok(())
    }

    /// What is directly below an entry.
    fn below(&self, e: DeadEntry) -> Result<Vec<DeadEntry>> {
        if e.depth > 0 {
            let below = children(&self.core.store, &e.pointer)?;
            return Ok(below.into_iter().map(|p| entry(p, e.depth - 1, e.kind)).collect());
        }
        if e.kind != DeadKind::Inodes {
            return Ok(Vec::new());
        }
        let raw = self.core.store.read(&e.pointer)?;
        let mut out = Vec::new();
        for raw in raw.bytes.0.chunks_exact(INODE_BYTES).take(INODES_PER_BLOCK as usize) {
            let inode = DiskInode::decode(raw).map_err(|e| Error::Format(e.to_string()))?;
            if inode.kind != InodeKind::Free && !inode.root.is_hole() {
                out.push(entry(inode.root, inode.height, DeadKind::Data));
            }
        }
        Ok(out)
    }

    /// Data blocks at and below an entry that were born after `bound`.
    fn young_data(&self, e: DeadEntry, bound: u64) -> Result<u64> {
        if e.pointer.is_hole() || e.pointer.birth <= bound {
            return Ok(0);
        }
        if e.depth == 0 && e.kind == DeadKind::Data {
            return Ok(1);
        }
        self.below(e)?.into_iter().map(|below| self.young_data(below, bound)).sum()
    }
}
