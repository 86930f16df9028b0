//! The tree of versions: what makes a new one, and the instant in which it is made.
//!
//! A version is an inode of the volume table whose data is an inode file. Its record has two
//! owners. Rights, times, flags, hold and the directory of snapshots change with transactions, as
//! any inode does. What links versions into a tree (parent, first child, sibling, dead list), the
//! inode file's root and its next inode number are changed by consistency points alone and never
//! taken from the log: the record that *makes* a version says where it comes from, and the
//! consistency point that takes it up derives the links.
//!
//! A snapshot is made by the last transaction of an epoch: with the guard alone it is applied,
//! everything dirty is captured ([`Frozen`](super::cp::Frozen)) and the log is cut, so that several
//! snapshots of one transaction are one instant. One flush makes it durable. The nodes that it
//! shares with the live version are written by the next consistency point, which goes through the
//! captures in their order; until then the snapshot cannot be opened.

use super::core::*;
use super::error::{Error, Result};
use super::group::{Cut, Log};
use super::reclaim::Scope;
use super::tree::{Slot, Tree};
use super::types::*;
use fs_layout::{Inode as DiskInode, InodeKind, VersionPart};
use parking_lot::MutexGuard;
use std::sync::atomic::Ordering;
use std::sync::Arc;

/// Captures that wait for a consistency point: each keeps what was dirty in memory.
const FROZEN_MAX: usize = 4;

/// A version's record as a transaction left it, linked as the consistency points left it.
pub(crate) fn with_links_of(record: &DiskInode, links: &DiskInode) -> DiskInode {
    let own = &links.version;
    DiskInode {
        root: links.root,
        height: links.height,
        version: VersionPart {
            next_ino: own.next_ino.max(record.version.next_ino),
            parent: own.parent,
            first_child: own.first_child,
            sibling: own.sibling,
            epoch: own.epoch,
            dead_list: own.dead_list,
            ..record.version
        },
        ..*record
    }
}

/// Consistency points that who reads a new snapshot runs at most.
const SETTLE_TRIES: u32 = 8;

impl Core {
    /// A version was made, by a transaction or by its record in the log: what that means for the
    /// tree of versions is in the record. Under the version's lock.
    pub fn note_version(&self, inode: &Arc<Inode>, state: &mut State) {
        let id = VolumeId(inode.id.ino as u32);
        let part = state.meta.version;
        if part.epoch != 0 {
            self.unplaced.lock().insert(id);
            let of = VolumeId(part.first_child as u32);
            self.version_ops.lock().push(VersionOp::Snapshot(id, of));
        } else if part.parent != 0 {
            state.tree = Tree { root: Slot::Ptr(state.meta.root), height: state.meta.height };
            self.version_ops.lock().push(VersionOp::Clone(id, VolumeId(part.parent as u32)));
        }
    }

    /// A record of the log that makes a clone, with the tree that it begins with.
    pub fn with_origin(&self, mut record: DiskInode) -> Result<DiskInode> {
        let part = record.version;
        if record.kind == InodeKind::Version && part.epoch == 0 && part.parent != 0 {
            let origin = self.inode_file(VolumeId(part.parent as u32));
            let from = match origin {
                Ok(inode) => inode.state.read().meta,
                // An old clone, whose own links count.
                Err(Error::Stale) => return Ok(record),
                Err(e) => return Err(e),
            };
            (record.root, record.height) = (from.root, from.height);
            record.version.next_ino = part.next_ino.max(from.version.next_ino);
        }
        Ok(record)
    }

    /// The log's lock, when the next epoch may begin.
    pub fn log_before_freeze(&self) -> Result<MutexGuard<'_, Log>> {
        loop {
            if self.frozen.lock().len() >= FROZEN_MAX {
                self.consistency_point(false)?;
            }
            let log = self.lock_unless_alone(&self.log).ok_or(Error::Busy)?;
            let room = self.frozen.lock().len() < FROZEN_MAX;
            if room && self.pins.may_begin(self.now() + 1) {
                return Ok(log);
            }
            drop(log);
            if !self.limits.background {
                return Err(Error::Busy);
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    /// Ends the epoch with the snapshots that it made. Under the log and the guard alone.
    pub fn freeze_snapshots(&self) -> Cut {
        let (frozen, cut) = self.freeze();
        // What it captured holds its buffers until it is written.
        self.epoch_dead_data.fetch_add(cut.blocks(), Ordering::Relaxed);
        self.frozen.lock().push(frozen);
        cut
    }

    /// As [`freeze_snapshots`](Core::freeze_snapshots), where the log says that it happened.
    pub fn replay_freeze(&self) {
        let snapshot = |op: &VersionOp| matches!(op, VersionOp::Snapshot(..));
        if self.version_ops.lock().iter().any(snapshot) {
            self.forget_pending();
            self.freeze_snapshots();
        }
    }

    /// Waits until a version can be read: a new snapshot, until a consistency point has written it.
    pub fn settle_version(&self, id: VolumeId) -> Result<()> {
        // Once as a rule; others may have begun the one that it waits for.
        for _ in 0..SETTLE_TRIES {
            if !self.unplaced.lock().contains(&id) {
                return Ok(());
            }
            self.consistency_point(false)?;
        }
        match self.unplaced.lock().contains(&id) {
            true => Err(Error::Busy),
            false => Ok(()),
        }
    }

    /// What a version's record says of its place in the tree.
    pub fn version_part(&self, id: VolumeId) -> Result<VersionPart> {
        Ok(self.inode_file(id)?.state.read().meta.version)
    }

    /// The epoch up to which a version shares what it has with its parent.
    pub fn shared_up_to(&self, id: VolumeId) -> Result<u64> {
        if id == TABLE {
            return Ok(0);
        }
        match self.version_part(id)?.parent {
            0 => Ok(0),
            parent => Ok(self.version_part(VolumeId(parent as u32))?.epoch),
        }
    }

    /// From which birth on, exclusive, a scope's entries are nobody else's.
    pub fn bound_of(&self, scope: Scope) -> Result<u64> {
        if scope.list == 0 {
            return Ok(scope.bound);
        }
        let list = self.inode(NodeId { volume: TABLE, ino: scope.list })?;
        let owner = list.state.read().meta.version.parent;
        self.shared_up_to(VolumeId(owner as u32))
    }

    /// Is a capture waiting for a consistency point?
    pub fn has_frozen(&self) -> bool {
        !self.frozen.lock().is_empty()
    }

    /// So many further deletions and walks wait.
    pub fn note_reclaim(&self, cp: &CpState) {
        let waiting = cp.reclaim.len() + cp.doomed.len();
        self.reclaim_pending.store(waiting as u64, Ordering::Relaxed);
    }
}
