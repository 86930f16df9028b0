//! The consistency point: what was linked up to a freeze becomes what the root names.
//!
//! Order, each step dirtying only what later ones write: freeze (cuts the log) → what died is
//! listed, and the walker makes a step → files' nodes → inode files → the volume table → free-space
//! pages → flush → root, first copy → flush → root, second copy → flush. Writers go on in the next
//! epoch all the while. Blocks freed are released when the root is durable and the readers of their
//! epoch are gone.
//!
//! Inode files, the reclaim list and the volume table's own inode file are changed by nobody else,
//! here, with births of the epoch that is being written.

use super::core::*;
use super::error::Result;
use super::planted::{planted, Mutation};
use super::reclaim::{children, Owners, Walked};
use super::space::Run;
use super::store::Data;
use super::tree::{Change, Dead, Miss, Slot, Tree};
use super::types::*;
use crate::device::{Block, BLOCK_BYTES};
use fs_layout::{
    DeadEntry, DeadKind, Inode as DiskInode, InodeKind, Pointer, DEAD_ENTRY_BYTES,
    INODES_PER_BLOCK, INODE_BYTES, ROOT_COPIES,
};
use parking_lot::MutexGuard;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::Arc;

/// Nodes written to the device at once.
const BATCH_BLOCKS: usize = 256;
/// Nodes take their places from runs of this many blocks.
const PLACE_RUN: u64 = 64;

/// An inode as it was at the freeze.
struct Captured {
    inode: Arc<Inode>,
    meta: DiskInode,
    tree: Tree,
}

/// All that a freeze took.
struct Frozen {
    epoch: u64,
    files: BTreeMap<NodeId, Captured>,
    dead: Vec<Dead>,
    promised: i64,
    /// Inodes unchanged in this epoch whose count of blocks falls with it.
    counted_down: BTreeMap<NodeId, DiskInode>,
}

/// Writes nodes (and the data of inode files) of one consistency point.
struct Writer<'a> {
    core: &'a Core,
    epoch: u64,
    run: Run,
    batch: Vec<Arc<Data>>,
}

impl<'a> Writer<'a> {
    fn new(core: &'a Core, epoch: u64) -> Self {
        Writer { core, epoch, run: (0, 0), batch: Vec::new() }
    }

    fn place(&mut self, data: Arc<Data>) -> Result<u64> {
        if self.run.1 == 0 {
            self.run = self.core.space.allocate(&self.core.store, PLACE_RUN, Some(self.epoch))?;
        }
        let block = self.run.0;
        self.run = (block + 1, self.run.1 - 1);
        data.set_place(block);
        self.batch.push(data);
        if self.batch.len() >= BATCH_BLOCKS {
            self.write_batch()?;
        }
        Ok(block)
    }

    fn write_batch(&mut self) -> Result<()> {
        self.batch.sort_unstable_by_key(|d| d.place());
        let blocks: Vec<(u64, &Block)> =
            self.batch.iter().map(|d| (d.place(), &*d.bytes)).collect();
        self.core.store.write(&blocks)?;
        for data in self.batch.drain(..) {
            self.core.store.remember(&data);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        self.write_batch()?;
        self.core.space.give_back(&self.core.store, self.run, Some(self.epoch))
    }

    /// The pointer to what a slot holds, children placed first.
    fn write(&mut self, slot: &Slot) -> Result<Pointer> {
        if let Some(p) = slot.pointer() {
            return Ok(p);
        }
        match slot {
            Slot::Ptr(p) => Ok(*p),
            Slot::Data(birth, data) => {
                let block = self.place(data.clone())?;
                Ok(Pointer { block, birth: *birth, crc: data.crc })
            }
            Slot::Node(node) => {
                let mut raw = Block::zeroed();
                for (out, s) in raw.0.chunks_exact_mut(16).zip(&node.slots) {
                    self.write(s)?.encode(out);
                }
                let data = Data::new(raw);
                let crc = data.crc;
                let block = self.place(data)?;
                let pointer = Pointer { block, birth: node.birth, crc };
                let _ = node.place.set(pointer);
                Ok(pointer)
            }
        }
    }
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
        let idle = log.blocks.is_empty() && cp.reclaim.len() == 0;
        let (mut frozen, cut) = {
            let _alone = self.guard.alone();
            if idle && self.epoch_files.lock().is_empty() && self.dead.lock().is_empty() {
                return Ok(());
            }
            self.freeze()
        };
        self.write_group(&mut log, cut)?;
        let next = (log.next_block, log.next_number, log.seed);
        drop(log);
        let epoch = frozen.epoch;
        let mut freed = Vec::new();
        let mut walked = Walked::default();
        self.bury(std::mem::take(&mut frozen.dead), cp, &mut freed, &mut walked.owners)?;
        cp.reclaim.walk(&self.store, &mut walked)?;
        freed.append(&mut walked.freed);
        self.count_down(&mut frozen, walked.owners)?;
        let mut meta_freed = Vec::new();
        let table = self.write_trees(&mut frozen, cp, &mut meta_freed)?;
        self.space.apply(&self.store, epoch, &freed)?;
        self.space.apply(&self.store, epoch, &meta_freed)?;
        if planted(Mutation::ReuseBeforeRoot) {
            self.space.release(&self.store, &std::mem::take(&mut freed), true)?;
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
        // Inode files are changed while the next epoch runs: its readers may have found the old
        // blocks.
        let releases = [(epoch, freed), (epoch + 1, meta_freed)];
        self.after_root(cp, frozen, releases, next.1)
    }

    /// The instant between two epochs. The caller holds the log and the guard alone.
    fn freeze(&self) -> (Frozen, super::group::Cut) {
        let epoch = self.now();
        let inodes = std::mem::take(&mut *self.epoch_files.lock());
        let capture = |inode: Arc<Inode>| {
            let s = inode.state.read();
            let (meta, tree) = (s.meta, s.tree.clone());
            drop(s);
            (inode.id, Captured { inode, meta, tree })
        };
        let files = inodes.into_iter().map(capture).collect();
        let cut = self.cut();
        let dead = std::mem::take(&mut *self.dead.lock());
        let promised = self.epoch_promised.swap(0, Ordering::AcqRel);
        self.epoch_dirty_inodes.store(0, Ordering::Relaxed);
        self.epoch_dead_data.store(0, Ordering::Relaxed);
        self.epoch.store(epoch + 1, Ordering::SeqCst);
        (Frozen { epoch, files, dead, promised, counted_down: BTreeMap::new() }, cut)
    }

    /// Lists what died: blocks are freed, subtrees go to the reclaim list.
    fn bury(
        &self,
        dead: Vec<Dead>,
        cp: &mut CpState,
        freed: &mut Vec<u64>,
        owners: &mut Owners,
    ) -> Result<()> {
        for d in dead {
            match d {
                Dead::Block(slot) => free_slot(&slot, freed),
                Dead::Tree(slot, height, volume, ino) => {
                    let mut push = |pointer, depth| {
                        cp.reclaim.push(DeadEntry {
                            pointer,
                            depth,
                            kind: DeadKind::Data,
                            volume,
                            ino,
                        })
                    };
                    let gone = dismantle(&slot, height, &mut push, freed);
                    if ino != 0 && gone > 0 {
                        *owners.entry((volume, ino)).or_default() += gone;
                    }
                }
            }
        }
        Ok(())
    }

    /// Data was freed: its inodes count fewer blocks, now and in the records of this epoch.
    fn count_down(&self, frozen: &mut Frozen, owners: Owners) -> Result<()> {
        for ((volume, ino), blocks) in owners {
            let id = NodeId { volume: VolumeId(volume), ino };
            // Not `live`: the last consistency point of a pool that is being closed counts down
            // too.
            let Ok(inode) = self.inode(id) else { continue };
            if inode.state.read().gone {
                continue;
            }
            let less = |m: &mut DiskInode| m.blocks = m.blocks.saturating_sub(blocks);
            less(&mut inode.state.write().meta);
            match frozen.files.get_mut(&id) {
                Some(captured) => less(&mut captured.meta),
                None => {
                    let Ok(mut record) = self.read_inode(id) else { continue };
                    less(&mut record);
                    frozen.counted_down.insert(id, record);
                }
            }
        }
        Ok(())
    }

    /// Writes all trees, from the files up to the volume table; the table's inode for the root.
    fn write_trees(
        &self,
        frozen: &mut Frozen,
        cp: &mut CpState,
        freed: &mut Vec<u64>,
    ) -> Result<DiskInode> {
        let epoch = frozen.epoch;
        let mut writer = Writer::new(self, epoch);
        let mut versions = BTreeSet::new();
        let mut records = std::mem::take(&mut frozen.counted_down);
        versions.extend(records.keys().map(|id| u64::from(id.volume.0)));
        for (id, c) in &frozen.files {
            if c.meta.kind == InodeKind::Version {
                versions.insert(id.ino);
                continue;
            }
            let root = writer.write(&c.tree.root)?;
            records.insert(*id, DiskInode { root, height: c.tree.height, ..c.meta });
            if id.volume != TABLE {
                versions.insert(u64::from(id.volume.0));
            }
        }
        writer.write_batch()?;
        for ino in versions {
            let record = self.write_volume(ino, frozen, &records, &mut writer, cp, freed)?;
            records.insert(NodeId { volume: TABLE, ino }, record);
        }
        let reclaim = self.write_reclaim(epoch, &mut writer, cp, freed)?;
        records.insert(RECLAIM, reclaim);
        let table = self.inode(TABLE_FILE)?;
        let volume = self.volume(TABLE)?;
        self.write_inodes(&table, &records, TABLE, epoch, freed)?;
        let mut record = self.write_meta_tree(&table, &mut writer)?;
        record.version.next_ino = volume.next_ino.load(Ordering::Relaxed);
        writer.finish()?;
        Ok(record)
    }

    /// Writes a volume's inode file; the version's record.
    fn write_volume(
        &self,
        ino: u64,
        frozen: &Frozen,
        records: &BTreeMap<NodeId, DiskInode>,
        writer: &mut Writer,
        cp: &mut CpState,
        freed: &mut Vec<u64>,
    ) -> Result<DiskInode> {
        let id = NodeId { volume: TABLE, ino };
        let volume = VolumeId(ino as u32);
        let file = self.inode(id)?;
        self.write_inodes(&file, records, volume, writer.epoch, freed)?;
        let mut record = self.write_meta_tree(&file, writer)?;
        let captured = frozen.files.get(&id).map(|c| c.meta.version.flags);
        // Deleted in the next epoch is not deleted in this one.
        record.version.flags = captured.unwrap_or(0);
        if let Some(v) = self.volumes.get(&volume) {
            record.version.next_ino = v.next_ino.load(Ordering::Relaxed);
        }
        if record.version.flags == 0 {
            return Ok(record);
        }
        // A deleted version: its whole tree of inodes and of their blocks waits to be walked.
        cp.reclaim.push(DeadEntry {
            pointer: record.root,
            depth: record.height,
            kind: DeadKind::Inodes,
            volume: 0,
            ino: 0,
        });
        let mut s = file.state.write();
        s.gone = true;
        s.tree = Tree::empty();
        s.meta = DiskInode::empty(InodeKind::Free);
        Ok(s.meta)
    }

    /// Puts the records of a volume into its inode file.
    fn write_inodes(
        &self,
        file: &Arc<Inode>,
        records: &BTreeMap<NodeId, DiskInode>,
        volume: VolumeId,
        epoch: u64,
        freed: &mut Vec<u64>,
    ) -> Result<()> {
        let from = NodeId { volume, ino: 0 };
        let to = NodeId { volume, ino: u64::MAX };
        let mut blocks: BTreeMap<u64, Vec<(&NodeId, &DiskInode)>> = BTreeMap::new();
        for r in records.range(from..=to) {
            blocks.entry(r.0.ino / INODES_PER_BLOCK).or_default().push(r);
        }
        for (block, inodes) in blocks {
            let mut raw = match self.read_block(file, block)? {
                Some(d) => d.bytes.clone(),
                None => Block::zeroed(),
            };
            for (id, inode) in inodes {
                let at = (id.ino % INODES_PER_BLOCK) as usize * INODE_BYTES;
                let bytes = match inode.kind {
                    InodeKind::Free => [0; INODE_BYTES],
                    _ => inode.encode(),
                };
                raw.0[at..at + INODE_BYTES].copy_from_slice(&bytes);
            }
            let empty = raw.0.iter().all(|b| *b == 0);
            self.meta_change(file, epoch, freed, |tree, c| match empty {
                true => tree.punch(c, block, 1),
                false => tree.link(c, block, Slot::Data(epoch, Data::new(raw.clone()))),
            })?;
        }
        Ok(())
    }

    /// Changes a tree that only consistency points change; what it supersedes is freed with this
    /// one.
    fn meta_change(
        &self,
        file: &Arc<Inode>,
        epoch: u64,
        freed: &mut Vec<u64>,
        mut f: impl FnMut(&mut Tree, &mut Change) -> std::result::Result<(), Miss>,
    ) -> Result<()> {
        let held = Held::new(&self.store);
        let mut dead = Vec::new();
        loop {
            let mut s = file.state.write();
            let mut c = Change {
                now: epoch,
                nodes: &held,
                dead: &mut dead,
                dirtied: 0,
                blocks: 0,
                volume: 0,
                ino: 0,
            };
            match f(&mut s.tree, &mut c) {
                Ok(()) => break,
                Err(miss) => {
                    drop(s);
                    held.fetch(miss)?;
                }
            }
        }
        for d in dead {
            match d {
                Dead::Block(slot) => free_slot(&slot, freed),
                Dead::Tree(slot, height, ..) => self.free_tree(&slot, height, freed)?,
            }
        }
        Ok(())
    }

    /// Frees a subtree of a file that only consistency points change: it is small.
    fn free_tree(&self, slot: &Slot, height: u8, freed: &mut Vec<u64>) -> Result<()> {
        let mut on_disk = Vec::new();
        dismantle(slot, height, &mut |p, depth| on_disk.push((p, depth)), freed);
        while let Some((p, depth)) = on_disk.pop() {
            if depth > 0 {
                on_disk.extend(children(&self.store, &p)?.into_iter().map(|c| (c, depth - 1)));
            }
            freed.push(p.block);
        }
        Ok(())
    }

    /// Writes a tree that only consistency points change, and lets go of its nodes.
    fn write_meta_tree(&self, file: &Arc<Inode>, writer: &mut Writer) -> Result<DiskInode> {
        let (tree, meta) = {
            let s = file.state.read();
            (s.tree.clone(), s.meta)
        };
        let root = writer.write(&tree.root)?;
        writer.write_batch()?;
        let mut s = file.state.write();
        drop(tree.root);
        s.tree.root = Slot::Ptr(root);
        s.meta.root = root;
        s.meta.height = tree.height;
        Ok(DiskInode { root, height: tree.height, ..meta })
    }

    fn write_reclaim(
        &self,
        epoch: u64,
        writer: &mut Writer,
        cp: &mut CpState,
        freed: &mut Vec<u64>,
    ) -> Result<DiskInode> {
        let file = self.inode(RECLAIM)?;
        let shrank = ((cp.reclaim.len() * DEAD_ENTRY_BYTES) as u64) < file.state.read().meta.size;
        if planted(Mutation::WalkNotCommitted) && shrank {
            return self.write_meta_tree(&file, writer);
        }
        for (block, raw) in cp.reclaim.changed_blocks() {
            let data = Data::new(raw);
            self.meta_change(&file, epoch, freed, |tree, c| {
                tree.link(c, block, Slot::Data(epoch, data.clone()))
            })?;
        }
        let size = (cp.reclaim.len() * DEAD_ENTRY_BYTES) as u64;
        let blocks = size.div_ceil(BLOCK_BYTES as u64);
        let old = file.state.read().meta.size.div_ceil(BLOCK_BYTES as u64);
        if old > blocks {
            self.meta_change(&file, epoch, freed, |t, c| t.punch(c, blocks, old - blocks))?;
        }
        file.state.write().meta.size = size;
        self.note_reclaim(&cp.reclaim);
        self.write_meta_tree(&file, writer)
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
        frozen: Frozen,
        releases: [(u64, Vec<u64>); 2],
        next_group: u64,
    ) -> Result<()> {
        self.durable_group.fetch_max(next_group - 1, Ordering::AcqRel);
        self.completed_epoch.store(frozen.epoch, Ordering::SeqCst);
        self.space.settle(frozen.promised.max(0) as u64);
        for (_, c) in frozen.files {
            drop(c.tree);
            c.inode.state.write().tree.trim(self.now());
        }
        self.releases.lock().extend(releases);
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
        self.note_reclaim(&cp.reclaim);
        self.cp_count.fetch_add(1, Ordering::Relaxed);
        Ok(())
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

/// A block that died, if it ever had a place.
fn free_slot(slot: &Slot, freed: &mut Vec<u64>) {
    if let Some(p) = slot.pointer().filter(|p| !p.is_hole()) {
        freed.push(p.block);
    }
}

/// Takes a detached subtree apart as far as it is only in memory; `push` gets what is on disk.
/// How many data blocks ended.
fn dismantle(
    slot: &Slot,
    height: u8,
    push: &mut impl FnMut(Pointer, u8),
    freed: &mut Vec<u64>,
) -> u64 {
    match (slot.pointer(), slot) {
        (Some(p), _) if p.is_hole() => 0,
        (Some(p), _) if height == 0 => {
            freed.push(p.block);
            1
        }
        (Some(p), _) => {
            push(p, height);
            0
        }
        (None, Slot::Node(n)) => {
            n.slots.iter().map(|s| dismantle(s, height - 1, push, freed)).sum()
        }
        (None, _) => 1,
    }
}
