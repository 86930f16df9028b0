//! A consistency point under way: what it writes, frees and shares.
//!
//! It goes through the captures in their order: what died in an epoch is judged, then what was made
//! in it is written where a snapshot of that epoch needs it; the last capture is written wholly. An
//! inode that was captured again is written in its newest state alone, unless a snapshot has the
//! older one: so of a node that came and went between two snapshots nothing is ever written.
//!
//! The judgement: a block born after the epoch of its version's parent is that version's alone and
//! is freed; an older one is shared and goes on the version's dead list.

use super::core::*;
use super::counts::Counts;
use super::cp::{Captured, Frozen};
use super::error::{Error, Result};
use super::planted::{planted, Mutation};
use super::reclaim::{children, Owners, Scope};
use super::space::Run;
use super::store::Data;
use super::tree::{Change, Dead, Miss, Slot, Tree};
use super::types::*;
use crate::device::Block;
use fs_layout::{
    DeadEntry, DeadKind, Inode as DiskInode, InodeKind, Pointer, VersionPart, INODES_PER_BLOCK,
    INODE_BYTES,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Nodes written to the device at once.
const BATCH_BLOCKS: usize = 256;
/// Nodes take their places from runs of this many blocks.
const PLACE_RUN: u64 = 64;

/// Writes nodes (and the data of inode files) of one consistency point.
pub(crate) struct Writer<'a> {
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

    pub fn write_batch(&mut self) -> Result<()> {
        self.batch.sort_unstable_by_key(|d| d.place());
        let blocks: Vec<(u64, &Block)> =
            self.batch.iter().map(|d| (d.place(), &*d.bytes)).collect();
        self.core.store.write(&blocks)?;
        for data in self.batch.drain(..) {
            self.core.store.remember(&data);
        }
        Ok(())
    }

    /// Writes what is left, and gives back what was not needed.
    pub fn finish(&mut self) -> Result<()> {
        self.write_batch()?;
        let run = std::mem::take(&mut self.run);
        self.core.space.give_back(&self.core.store, run, Some(self.epoch))
    }

    /// The pointer to what a slot holds, children placed first.
    pub fn write(&mut self, slot: &Slot) -> Result<Pointer> {
        if let Some(p) = slot.pointer() {
            return Ok(p);
        }
        match slot {
            Slot::Ptr(p) => Ok(*p),
            Slot::Data(birth, data) => {
                let block = self.place(data.clone())?;
                Ok(Pointer { block, birth: *birth, crc: data.crc, cloned: false })
            }
            Slot::Node(node) => {
                let mut raw = Block::zeroed();
                for (out, s) in raw.0.chunks_exact_mut(16).zip(&node.slots) {
                    self.write(s)?.encode(out);
                }
                let data = Data::new(raw);
                let crc = data.crc;
                let block = self.place(data)?;
                let pointer = Pointer { block, birth: node.birth, crc, cloned: false };
                let _ = node.place.set(pointer);
                Ok(pointer)
            }
        }
    }
}

/// A consistency point under way.
pub(crate) struct Work<'a> {
    pub core: &'a Core,
    /// Of the root that it will write.
    pub epoch: u64,
    pub writer: Writer<'a>,
    /// What was captured and is not yet written, newest state.
    pub files: BTreeMap<NodeId, Captured>,
    /// Inodes unchanged in this epoch whose count of blocks falls with it.
    pub counted_down: BTreeMap<NodeId, DiskInode>,
    /// Everything that was captured: its trees let go of their nodes in the end.
    pub captured: Vec<Arc<Inode>>,
    pub freed: Vec<u64>,
    /// Freed blocks of inode files and the like: readers of the next epoch may have found them.
    pub meta_freed: Vec<u64>,
    pub owners: Owners,
    /// New entries of dead lists.
    pub shared: BTreeMap<u64, Vec<DeadEntry>>,
    /// Inodes of the volume table whose links changed.
    pub changed: BTreeSet<u64>,
    /// Snapshots that can be read when this is durable.
    pub placed: Vec<VolumeId>,
    /// Versions whose deletion it takes up.
    pub deleted: BTreeSet<u64>,
    pub counts: Counts,
    /// Dead lists tell nodes from data.
    pub names_nodes: bool,
}

impl<'a> Work<'a> {
    pub fn new(core: &'a Core, epoch: u64) -> Work<'a> {
        Work {
            core,
            epoch,
            writer: Writer::new(core, epoch),
            files: BTreeMap::new(),
            counted_down: BTreeMap::new(),
            captured: Vec::new(),
            freed: Vec::new(),
            meta_freed: Vec::new(),
            owners: Owners::new(),
            shared: BTreeMap::new(),
            changed: BTreeSet::new(),
            placed: Vec::new(),
            deleted: BTreeSet::new(),
            counts: Counts::default(),
            names_nodes: false,
        }
    }

    /// Takes up one capture; only the last one's files may stay unwritten.
    pub fn take_up(&mut self, cp: &mut CpState, frozen: Frozen) -> Result<()> {
        for op in &frozen.ops {
            if let VersionOp::Clone(new, of) = op {
                self.adopt(*new, *of)?;
            }
        }
        self.bury(cp, frozen.dead)?;
        for c in frozen.files {
            self.captured.push(c.inode.clone());
            self.files.insert(c.inode.id, c);
        }
        for op in &frozen.ops {
            if let VersionOp::Snapshot(new, of) = op {
                self.place_snapshot(*new, *of, frozen.epoch)?;
            }
        }
        Ok(())
    }

    /// Judges what died: blocks are let go or shared, subtrees go to the reclaim list. First what
    /// was linked is counted, then come nodes, the tall ones before the others.
    fn bury(&mut self, cp: &mut CpState, mut dead: Vec<(VolumeId, Dead)>) -> Result<()> {
        dead.sort_by_key(|(_, d)| match d {
            Dead::Cloned(_) => 0,
            Dead::Node(_, height) => 255 - height,
            Dead::Block(_) | Dead::Tree(..) => 255,
        });
        let mut bounds = BTreeMap::new();
        for (volume, d) in dead {
            let bound = match bounds.get(&volume) {
                Some(bound) => *bound,
                None => {
                    let bound = self.core.shared_up_to(volume)?;
                    bounds.insert(volume, bound);
                    bound
                }
            };
            match d {
                Dead::Cloned(block) => self.count_up(block)?,
                Dead::Node(slot, height) => {
                    if let Some(p) = slot.pointer() {
                        self.drop_node(volume, bound, p, height)?;
                    }
                }
                Dead::Block(slot) => {
                    if let Some(p) = slot.pointer().filter(|p| !p.is_hole()) {
                        self.drop_block(volume, bound, p)?;
                    }
                }
                Dead::Tree(slot, height, ino) => {
                    let mut parts = Vec::new();
                    let gone = dismantle(&slot, height, &mut parts);
                    if ino != 0 && gone > 0 {
                        *self.owners.entry((volume.0, ino)).or_default() += gone;
                    }
                    for (pointer, depth) in parts {
                        self.bury_tree(cp, volume, bound, ino, pointer, depth)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn bury_tree(
        &mut self,
        cp: &mut CpState,
        volume: VolumeId,
        bound: u64,
        ino: u64,
        pointer: Pointer,
        depth: u8,
    ) -> Result<()> {
        if depth == 0 {
            return self.drop_block(volume, bound, pointer);
        }
        let entry = DeadEntry { pointer, depth, kind: DeadKind::Data, volume: volume.0, ino };
        let list = if bound == 0 { 0 } else { self.list_of(volume)? };
        if pointer.birth > bound {
            cp.reclaim.push(Scope { list, bound: 0 }, entry);
            return Ok(());
        }
        self.share(list, &entry);
        if ino != 0 {
            cp.reclaim.push(Scope::default(), DeadEntry { kind: DeadKind::Count, ..entry });
        }
        Ok(())
    }

    /// A block that a version has no more.
    fn drop_block(&mut self, volume: VolumeId, bound: u64, pointer: Pointer) -> Result<()> {
        if pointer.birth > bound || planted(Mutation::SharedBlockFreed) {
            return self.let_go(pointer.block).map(drop);
        }
        let list = self.list_of(volume)?;
        let kind = DeadKind::Data;
        self.share(list, &DeadEntry { pointer, depth: 0, kind, volume: 0, ino: 0 });
        Ok(())
    }

    /// A node that a version has no more, but for a copy.
    fn drop_node(&mut self, volume: VolumeId, bound: u64, p: Pointer, height: u8) -> Result<()> {
        if p.birth > bound {
            return self.let_go_node(&p);
        }
        let list = self.list_of(volume)?;
        let (kind, depth) = match self.names_nodes {
            true => (DeadKind::Node, height),
            false => (DeadKind::Data, 0),
        };
        self.share(list, &DeadEntry { pointer: p, depth, kind, volume: 0, ino: 0 });
        Ok(())
    }

    /// Enters what its version's ancestors still have into a dead list (0: nobody asks for it).
    pub fn share(&mut self, list: u64, entry: &DeadEntry) {
        if list != 0 {
            self.shared.entry(list).or_default().push(DeadEntry { volume: 0, ino: 0, ..*entry });
        }
    }

    /// So many data blocks of an entry's inode ended.
    pub fn count_off(&mut self, entry: &DeadEntry, blocks: u64) {
        if entry.ino != 0 {
            *self.owners.entry((entry.volume, entry.ino)).or_default() += blocks;
        }
    }

    /// Changes a version's place in the tree.
    pub fn relink(&mut self, id: u64, f: impl FnOnce(&mut VersionPart)) -> Result<()> {
        let file = self.core.inode(NodeId { volume: TABLE, ino: id })?;
        f(&mut file.state.write().meta.version);
        self.changed.insert(id);
        Ok(())
    }

    /// A clone begins.
    fn adopt(&mut self, new: VolumeId, of: VolumeId) -> Result<()> {
        let first = self.core.version_part(of)?.first_child;
        self.relink(u64::from(of.0), |p| p.first_child = u64::from(new.0))?;
        self.relink(u64::from(new.0), |p| {
            (p.parent, p.sibling) = (u64::from(of.0), first);
        })
    }

    /// A snapshot: the live version is written as it was, and the snapshot comes between it and its
    /// parent, with its dead list.
    fn place_snapshot(&mut self, new: VolumeId, of: VolumeId, epoch: u64) -> Result<()> {
        let core = self.core;
        let mut records = BTreeMap::new();
        let range = NodeId { volume: of, ino: 0 }..=NodeId { volume: of, ino: u64::MAX };
        let ids: Vec<NodeId> = self.files.range(range).map(|(id, _)| *id).collect();
        for id in ids {
            let Some(c) = self.files.remove(&id) else { continue };
            let root = self.writer.write(&c.tree.root)?;
            records.insert(id, DiskInode { root, height: c.tree.height, ..c.meta });
        }
        self.writer.write_batch()?;
        self.write_inode_file(of, &records, epoch)?;
        let (id, snapshot) = (u64::from(of.0), core.inode_file(new)?);
        let live = core.inode_file(of)?.state.read().meta;
        let part = live.version;
        let next_ino = core.volumes.get(&of).map_or(0, |v| v.peek_ino()).max(part.next_ino);
        {
            let mut s = snapshot.state.write();
            s.tree = Tree { root: Slot::Ptr(live.root), height: live.height };
            (s.meta.root, s.meta.height) = (live.root, live.height);
        }
        self.relink(u64::from(new.0), |p| {
            *p = VersionPart {
                next_ino,
                parent: part.parent,
                first_child: id,
                sibling: part.sibling,
                dead_list: part.dead_list,
                ..*p
            }
        })?;
        self.relink(id, |p| (p.parent, p.sibling, p.dead_list) = (u64::from(new.0), 0, 0))?;
        if part.parent != 0 {
            self.replace_child(part.parent, id, u64::from(new.0))?;
        }
        if part.dead_list != 0 {
            self.relink(part.dead_list, |p| p.parent = u64::from(new.0))?;
        }
        self.placed.push(new);
        Ok(())
    }

    /// Among a version's children one takes the other's place; 0: none takes it. The new one's own
    /// sibling was set before.
    pub fn replace_child(&mut self, parent: u64, old: u64, new: u64) -> Result<()> {
        let core = self.core;
        let part = |id: u64| core.version_part(VolumeId(id as u32));
        let mut at = part(parent)?.first_child;
        let next = if new == 0 { part(old)?.sibling } else { new };
        if at == old {
            return self.relink(parent, |p| p.first_child = next);
        }
        while at != 0 {
            let sibling = part(at)?.sibling;
            if sibling == old {
                return self.relink(at, |p| p.sibling = next);
            }
            at = sibling;
        }
        Err(Error::Format(format!("version {old} is not among its parent's children")))
    }

    /// Puts records into a volume's inode file and writes it.
    pub fn write_inode_file(
        &mut self,
        volume: VolumeId,
        records: &BTreeMap<NodeId, DiskInode>,
        epoch: u64,
    ) -> Result<()> {
        let file = self.core.inode_file(volume)?;
        let from = NodeId { volume, ino: 0 };
        let to = NodeId { volume, ino: u64::MAX };
        let mut blocks: BTreeMap<u64, Vec<(&NodeId, &DiskInode)>> = BTreeMap::new();
        for r in records.range(from..=to) {
            blocks.entry(r.0.ino / INODES_PER_BLOCK).or_default().push(r);
        }
        for (block, inodes) in blocks {
            let mut raw = match self.core.read_block(&file, block)? {
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
            self.meta_change(&file, volume, epoch, |tree, c| match empty {
                true => tree.punch(c, block, 1),
                false => tree.link(c, block, Slot::Data(epoch, Data::new(raw.clone()))),
            })?;
        }
        self.write_meta_tree(&file).map(|_| ())
    }

    /// Changes a tree that only consistency points change: `volume`'s inode file, or a file of the
    /// volume table, which nobody shares.
    pub fn meta_change(
        &mut self,
        file: &Arc<Inode>,
        volume: VolumeId,
        epoch: u64,
        mut f: impl FnMut(&mut Tree, &mut Change) -> std::result::Result<(), Miss>,
    ) -> Result<()> {
        let held = Held::new(&self.core.store);
        let mut dead = Vec::new();
        loop {
            let mut s = file.state.write();
            let mut c =
                Change { now: epoch, nodes: &held, dead: &mut dead, dirtied: 0, blocks: 0, ino: 0 };
            match f(&mut s.tree, &mut c) {
                Ok(()) => break,
                Err(miss) => {
                    drop(s);
                    held.fetch(miss)?;
                }
            }
        }
        let bound = self.core.shared_up_to(volume)?;
        for d in dead {
            match d {
                Dead::Block(slot) | Dead::Node(slot, _) => {
                    match slot.pointer().filter(|p| !p.is_hole()) {
                        Some(p) if p.birth > bound => self.meta_freed.push(p.block),
                        Some(p) => self.drop_block(volume, bound, p)?,
                        None => {}
                    }
                }
                Dead::Tree(slot, height, _) => self.free_tree(&slot, height)?,
                Dead::Cloned(_) => {}
            }
        }
        Ok(())
    }

    /// Frees a subtree of a file of the volume table: it is small.
    pub fn free_tree(&mut self, slot: &Slot, height: u8) -> Result<()> {
        let mut on_disk = Vec::new();
        dismantle(slot, height, &mut on_disk);
        while let Some((p, depth)) = on_disk.pop() {
            if depth > 0 {
                // What is below a node that cannot be read is lost space, which a repair finds.
                let below = children(&self.core.store, &p).unwrap_or_default();
                on_disk.extend(below.into_iter().map(|c| (c, depth - 1)));
            }
            self.meta_freed.push(p.block);
        }
        Ok(())
    }

    /// Writes a tree that only consistency points change, and lets go of its nodes.
    pub fn write_meta_tree(&mut self, file: &Arc<Inode>) -> Result<DiskInode> {
        let (tree, meta) = {
            let s = file.state.read();
            (s.tree.clone(), s.meta)
        };
        let root = self.writer.write(&tree.root)?;
        self.writer.write_batch()?;
        let nodes = {
            let mut s = file.state.write();
            (s.meta.root, s.meta.height) = (root, tree.height);
            std::mem::replace(&mut s.tree.root, Slot::Ptr(root))
        };
        drop(nodes); // where nobody waits for it
        Ok(DiskInode { root, height: tree.height, ..meta })
    }
}

/// Takes a detached subtree apart as far as it is only in memory; `parts` gets what is on disk.
/// How many data blocks ended.
fn dismantle(slot: &Slot, height: u8, parts: &mut Vec<(Pointer, u8)>) -> u64 {
    match (slot.pointer(), slot) {
        (Some(p), _) if p.is_hole() => 0,
        (Some(p), _) => {
            parts.push((p, height));
            u64::from(height == 0)
        }
        (None, Slot::Node(n)) => n.slots.iter().map(|s| dismantle(s, height - 1, parts)).sum(),
        (None, _) => 1,
    }
}
