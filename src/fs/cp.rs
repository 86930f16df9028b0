//! The consistency point: what was linked up to a freeze becomes what the root names.
//!
//! Order, each step dirtying only what later ones write: freeze (cuts the log) → what died is
//! listed, and the walker makes a step → files' nodes → inode files → the volume table → free-space
//! pages → flush → root, first copy → flush → root, second copy → flush. Writers go on in the next
//! epoch all the while. Blocks freed are released when the root is durable and the readers of their
//! epoch are gone.
//!
//! Snapshots freeze too, and leave what they captured for the next consistency point: it goes
//! through these captures in their order, its own the last (see [`Work`]).
//!
//! Inode files, the reclaim list and the volume table's own inode file are changed by nobody else,
//! here, with births of the epoch that is being written.

use super::core::*;
use super::error::Result;
use super::planted::{planted, Mutation};
use super::tree::{Dead, Tree};
use super::types::*;
use super::work::Work;
use crate::device::Block;
use fs_layout::{
    Inode as DiskInode, InodeKind, FEATURE_DEAD_NODES, FEATURE_VERSIONS, ROOT_COPIES,
    VERSION_DELETED,
};
use parking_lot::MutexGuard;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::Arc;

/// An inode as it was at a freeze.
pub(crate) struct Captured {
    pub inode: Arc<Inode>,
    pub meta: DiskInode,
    pub tree: Tree,
}

/// All that a freeze took.
pub(crate) struct Frozen {
    pub epoch: u64,
    pub files: Vec<Captured>,
    pub dead: Vec<(VolumeId, Dead)>,
    pub ops: Vec<VersionOp>,
}

impl Core {
    /// Runs one, if there is anything for it to do. A failure latches the pool.
    pub fn consistency_point(&self, wait_for_space: bool) -> Result<()> {
        let Some(mut cp) = self.begin_cp()? else { return Ok(()) };
        let done = self.run_cp(&mut cp);
        self.shrink_inodes();
        if wait_for_space && self.limits.background {
            // What was freed is released when the readers of its epoch are gone: very soon.
            std::thread::sleep(std::time::Duration::from_millis(1));
            self.release_ready()?;
        }
        done.map_err(|e| self.store.set_latch(format!("a consistency point failed: {e}")))
    }

    /// Runs one with whatever `change` does before; false: it did nothing, or this is not the time.
    pub fn consistency_point_with(
        &self,
        change: impl FnOnce(&mut CpState) -> Result<bool>,
    ) -> Result<bool> {
        let Some(mut cp) = self.begin_cp()? else { return Ok(false) };
        if !change(&mut cp)? {
            return Ok(false);
        }
        // What `change` did must not be without its root.
        let done = self.touch_names().and_then(|()| self.run_cp(&mut cp));
        done.map_err(|e| self.store.set_latch(format!("a consistency point failed: {e}")))?;
        Ok(true)
    }

    /// Waits until one may begin. `None`: who drives the pool alone is within something else.
    fn begin_cp(&self) -> Result<Option<MutexGuard<'_, CpState>>> {
        let Some(cp) = self.lock_unless_alone(&self.cp) else { return Ok(None) };
        if self.lock_unless_alone(&self.log).is_none() {
            return Ok(None);
        }
        self.store.check_latch()?;
        self.release_ready()?;
        while !self.pins.may_begin(self.now() + 1) {
            if !self.limits.background {
                return Ok(None);
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        Ok(Some(cp))
    }

    fn run_cp(&self, cp: &mut CpState) -> Result<()> {
        let _steps = self.store.in_steps();
        let mut log = self.log.lock();
        let idle = log.blocks.is_empty() && cp.reclaim.len() == 0 && cp.doomed.is_empty();
        let (frozen, cut, promised) = {
            let _alone = self.guard.alone(&self.freezes);
            let nothing = self.epoch_files.lock().is_empty() && self.dead.lock().is_empty();
            if idle && nothing && !self.has_frozen() {
                return Ok(());
            }
            let (last, cut) = self.freeze();
            let mut frozen = std::mem::take(&mut *self.frozen.lock());
            frozen.push(last);
            self.epoch_dirty_inodes.store(0, Ordering::Relaxed);
            self.epoch_dead_data.store(0, Ordering::Relaxed);
            self.epoch_dead.store(0, Ordering::Relaxed);
            (frozen, cut, self.epoch_promised.swap(0, Ordering::AcqRel))
        };
        self.write_group(&mut log, cut)?;
        let next = (log.next_block, log.next_number, log.seed);
        drop(log);
        let epoch = frozen.last().map_or(0, |f| f.epoch);
        let mut work = Work::new(self, epoch);
        if frozen.iter().any(|f| !f.ops.is_empty()) {
            cp.root.incompatible |= FEATURE_VERSIONS;
        }
        work.names_nodes = cp.root.incompatible & FEATURE_DEAD_NODES != 0;
        self.names_nodes.store(work.names_nodes, Ordering::Release);
        work.recount(cp)?;
        for f in frozen {
            work.take_up(cp, f)?;
        }
        work.writer.write_batch()?;
        cp.reclaim.walk(&mut work)?;
        self.count_down(&mut work)?;
        let table = self.write_trees(&mut work, cp)?;
        self.space.apply(&self.store, epoch, &work.freed)?;
        self.space.apply(&self.store, epoch, &work.meta_freed)?;
        if planted(Mutation::ReuseBeforeRoot) {
            self.space.release(&self.store, &std::mem::take(&mut work.freed), true)?;
        }
        let space = self.space.write_pages(&self.store)?;
        cp.root.epoch = epoch;
        let set = self.store.members.now();
        cp.root.lineage = set.label.lineage;
        if set.label.redundancy != 0 || set.label.generation != 0 {
            cp.root.incompatible |= fs_layout::FEATURE_MEMBERS;
        }
        cp.root.previous = cp.root_hash;
        cp.root.time = self.time();
        cp.root.blocks = self.space.blocks();
        (cp.root.next_group_block, cp.root.next_group, cp.root.group_seed) = next;
        cp.root.space = space;
        cp.root.volume_table = table;
        cp.root.scrub = self.scrub.record();
        self.write_root(cp)?;
        self.after_root(cp, work, promised, next.1)
    }

    /// The instant between two epochs. The caller holds the log and the guard alone.
    pub fn freeze(&self) -> (Frozen, super::group::Cut) {
        let epoch = self.now();
        let inodes = std::mem::take(&mut *self.epoch_files.lock());
        let capture = |inode: Arc<Inode>| {
            let s = inode.state.read();
            // A volume's inode file belongs to the consistency point that may be writing it at this
            // moment: a snapshot freezes beside it, and nobody must share its nodes.
            let tree = match s.meta.kind {
                InodeKind::Version => Tree::empty(),
                _ => s.tree.clone(),
            };
            let meta = s.meta;
            drop(s);
            Captured { inode, meta, tree }
        };
        let files = inodes.into_iter().map(capture).collect();
        let cut = self.cut();
        let dead = std::mem::take(&mut *self.dead.lock());
        let ops = std::mem::take(&mut *self.version_ops.lock());
        self.epoch.store(epoch + 1, Ordering::SeqCst);
        (Frozen { epoch, files, dead, ops }, cut)
    }

    /// Data was freed: its inodes count fewer blocks, now and in the records of this epoch.
    fn count_down(&self, work: &mut Work) -> Result<()> {
        for ((volume, ino), blocks) in std::mem::take(&mut work.owners) {
            let id = NodeId { volume: VolumeId(volume), ino };
            // Not `live`: the last consistency point of a pool that is being closed counts down
            // too.
            let Ok(inode) = self.inode(id) else { continue };
            if inode.state.read().gone || inode.volume.deleted.load(Ordering::Acquire) {
                continue;
            }
            let less = |m: &mut DiskInode| m.blocks = m.blocks.saturating_sub(blocks);
            less(&mut inode.state.write().meta);
            match work.files.get_mut(&id) {
                Some(captured) => less(&mut captured.meta),
                None => {
                    let Ok(mut record) = self.read_inode(id) else { continue };
                    less(&mut record);
                    work.counted_down.insert(id, record);
                }
            }
        }
        Ok(())
    }

    /// Writes all trees, from the files up to the volume table; the table's inode for the root.
    fn write_trees(&self, work: &mut Work, cp: &mut CpState) -> Result<DiskInode> {
        let epoch = work.epoch;
        let mut volumes = BTreeSet::new();
        let mut versions = BTreeMap::new();
        let mut records = std::mem::take(&mut work.counted_down);
        volumes.extend(records.keys().map(|id| id.volume));
        for (id, c) in std::mem::take(&mut work.files) {
            if id.volume == TABLE && c.meta.kind == InodeKind::Version {
                if c.meta.version.flags & VERSION_DELETED != 0 {
                    cp.doomed.push(id.ino);
                    work.deleted.insert(id.ino);
                }
                work.changed.insert(id.ino);
                versions.insert(id, c.meta);
                continue;
            }
            let root = work.writer.write(&c.tree.root)?;
            records.insert(id, DiskInode { root, height: c.tree.height, ..c.meta });
            volumes.insert(id.volume);
        }
        work.writer.write_batch()?;
        for volume in volumes.into_iter().filter(|v| *v != TABLE) {
            work.write_inode_file(volume, &records, epoch)?;
            work.changed.insert(u64::from(volume.0));
        }
        work.relist(cp)?;
        work.end_doomed(cp)?;
        work.write_counts()?;
        work.write_lists()?;
        work.write_reclaim(cp)?;
        work.write_doomed(cp)?;
        self.note_reclaim(cp);
        records.extend(work.table_records(&versions)?);
        let volume = self.volume(TABLE)?;
        work.write_inode_file(TABLE, &records, epoch)?;
        let mut record = self.inode(TABLE_FILE)?.state.read().meta;
        record.version.next_ino = volume.peek_ino();
        work.writer.finish()?;
        Ok(record)
    }

    /// Everything before is flushed; then the root, one copy after the other.
    pub(super) fn write_root(&self, cp: &mut CpState) -> Result<()> {
        if !planted(Mutation::NoFlushBeforeRoot) {
            self.store.flush()?;
        }
        let slot = 1 - cp.root_slot;
        let mut raw = Block::zeroed();
        cp.root_hash = cp.root.encode(&mut raw.0);
        for copy in ROOT_COPIES {
            self.store.write_everywhere(copy + slot, &[&raw])?;
            if !planted(Mutation::NoFlushBetweenRootCopies) || copy != ROOT_COPIES[0] {
                self.store.flush()?;
            }
        }
        cp.root_slot = slot;
        self.store.note_root(cp.root.epoch);
        Ok(())
    }

    fn after_root(
        &self,
        cp: &mut CpState,
        work: Work,
        promised: i64,
        next_group: u64,
    ) -> Result<()> {
        let epoch = work.epoch;
        self.durable_group.fetch_max(next_group - 1, Ordering::AcqRel);
        self.completed_epoch.store(epoch, Ordering::SeqCst);
        self.space.settle(promised.max(0) as u64);
        for inode in work.captured {
            self.trim(&inode);
        }
        // Inode files are changed while the next epoch runs: its readers may have found the old
        // blocks.
        self.releases.lock().extend([(epoch, work.freed), (epoch + 1, work.meta_freed)]);
        self.unplaced.lock().retain(|id| !work.placed.contains(id));
        let mut log_blocks = Vec::new();
        {
            let mut log = self.log.lock();
            while log.blocks.front().is_some_and(|(n, _)| *n < next_group) {
                if let Some((_, (first, count))) = log.blocks.pop_front() {
                    log_blocks.extend(first..first + count);
                }
            }
        }
        self.space.release(&self.store, &log_blocks, false)?;
        self.release_ready()?;
        self.note_reclaim(cp);
        self.cp_count.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Lets go of a file's nodes that are written. However many there are, nobody waits for it.
    fn trim(&self, inode: &Inode) {
        let mut from = Some(0);
        while let Some(block) = from {
            let mut gone = Vec::new();
            from = inode.state.write().tree.trim(self.now(), block, &mut gone);
        }
    }

    /// Gives back blocks whose consistency point is durable and whose readers are gone.
    pub fn release_ready(&self) -> Result<()> {
        loop {
            let freed = {
                let mut queue = self.releases.lock();
                match queue.front() {
                    Some((epoch, _)) if !self.pins.is_pinned(*epoch, self.now()) => {
                        queue.pop_front()
                    }
                    _ => return Ok(()),
                }
            };
            if let Some((_, blocks)) = freed {
                self.space.release(&self.store, &blocks, true)?;
            }
        }
    }
}
