//! Trees: the volume table, every volume's inode file, and every inode's blocks.

use super::{Found, Owner, Part, Phase, Walk};
use crate::device::{Block, BLOCK_BYTES};
use crate::fs::core::{Core, Inode, TABLE};
use crate::fs::error::{Error, Result};
use crate::fs::planted::{planted, Mutation};
use crate::fs::store::Data;
use crate::fs::tree::{reach, Slot, Tree, MAX_HEIGHT};
use crate::fs::types::*;
use fs_layout::{
    DeadKind, Inode as DiskInode, InodeKind, Pointer, INODES_PER_BLOCK, INODE_BYTES,
    POINTERS_PER_NODE,
};
use std::sync::atomic::Ordering;
use std::sync::Arc;

const BS: u64 = BLOCK_BYTES as u64;
/// Nodes looked into in one piece, those on the way to the cursor included. More than the height of
/// the tallest tree, so that each piece gets on.
const PIECE_NODES: u64 = 64;
const _: () = assert!(PIECE_NODES > 2 * MAX_HEIGHT as u64);

/// Something that a tree in memory leads to.
enum Item {
    /// On disk: pointer, height, first file block.
    Disk(Pointer, u8, u64),
    /// A data block that is newer than the disk.
    Memory(u64, Arc<Data>),
}

/// What a tree in memory leads to from a file block on.
struct Gather {
    from: u64,
    since: u64,
    /// What was born by then and has a place is on disk, though it may be in memory still.
    durable: u64,
    items: Vec<Item>,
    nodes_left: u64,
    /// There is more, from this file block on.
    stopped: Option<u64>,
}

impl Gather {
    /// Called under the file's lock; does no I/O.
    fn tree(tree: &Tree, from: u64, since: u64, durable: u64) -> Gather {
        let items = Vec::new();
        let mut g = Gather { from, since, durable, items, nodes_left: PIECE_NODES, stopped: None };
        g.slot(&tree.root, tree.height, 0);
        g
    }

    fn slot(&mut self, slot: &Slot, height: u8, base: u64) {
        if self.stopped.is_some() || slot.is_hole() || base + reach(height) <= self.from {
            return;
        }
        if self.nodes_left == 0 || self.items.len() as u64 >= PIECE_NODES {
            self.stopped = Some(base.max(self.from));
            return;
        }
        let is_on_disk = |p: &Pointer| matches!(slot, Slot::Ptr(_)) || p.birth <= self.durable;
        if let Some(p) = slot.pointer().filter(is_on_disk) {
            if p.birth > self.since {
                self.items.push(Item::Disk(p, height, base));
            }
            return;
        }
        match slot {
            Slot::Ptr(_) => {}
            Slot::Data(_, d) => self.items.push(Item::Memory(base, d.clone())),
            Slot::Node(n) if height > 0 => {
                self.nodes_left -= 1;
                for (i, below) in n.slots.iter().enumerate() {
                    self.slot(below, height - 1, base + i as u64 * reach(height - 1));
                }
            }
            Slot::Node(_) => {}
        }
    }
}

/// A file block as the descent found it.
enum Leaf {
    Disk(Pointer),
    Memory(Arc<Data>),
}

/// The way down from what a tree in memory leads to, to at most `max` leaves. Nodes are verified
/// where they are entered at their first block; further on that was done by an earlier piece.
struct Descent<'a> {
    core: &'a Core,
    found: &'a mut Found,
    owner: Owner,
    from: u64,
    since: u64,
    /// Nodes are verified, not only read.
    verify: bool,
    max: u64,
    nodes_left: u64,
    leaves: Vec<(u64, Leaf)>,
    stopped: Option<u64>,
    /// What files share by clones is gone into once.
    once: bool,
    /// Clones that were gone through to their ends.
    clones: Vec<u64>,
}

impl<'a> Descent<'a> {
    fn new(core: &'a Core, found: &'a mut Found, owner: Owner, max: u64) -> Self {
        Descent {
            core,
            found,
            owner,
            from: 0,
            since: 0,
            verify: true,
            max,
            nodes_left: PIECE_NODES,
            leaves: Vec::new(),
            stopped: None,
            once: false,
            clones: Vec::new(),
        }
    }

    /// Goes down into what was gathered. Where it stopped, if it did not come to the end.
    fn run(&mut self, gathered: Gather) -> Result<Option<u64>> {
        (self.from, self.since) = (gathered.from, gathered.since);
        for item in gathered.items {
            match item {
                Item::Disk(p, height, base) => self.slot(&p, height, base, false)?,
                Item::Memory(base, data) => self.leaf(base, Leaf::Memory(data)),
            }
        }
        Ok(self.stopped.or(gathered.stopped))
    }

    fn leaf(&mut self, at: u64, leaf: Leaf) {
        if self.stopped.is_none() && self.leaves.len() as u64 >= self.max {
            self.stopped = Some(at);
        }
        if self.stopped.is_none() {
            self.leaves.push((at, leaf));
        }
    }

    /// Goes down from a pointer; `in_clone`: below a cloned one.
    fn slot(&mut self, p: &Pointer, height: u8, base: u64, in_clone: bool) -> Result<()> {
        let is_top = self.once && p.cloned && !in_clone;
        if is_top && self.core.scrub.knows_clone(p.block) {
            return Ok(());
        }
        self.subtree(p, height, base)?;
        // Where it began in an earlier piece, that was of this file too.
        if is_top && self.stopped.is_none() && p.birth > self.since {
            self.clones.push(p.block);
        }
        Ok(())
    }

    fn subtree(&mut self, p: &Pointer, height: u8, base: u64) -> Result<()> {
        let is_before = base + reach(height) <= self.from;
        if self.stopped.is_some() || p.is_hole() || p.birth <= self.since || is_before {
            return Ok(());
        }
        if height == 0 {
            self.leaf(base, Leaf::Disk(*p));
            return Ok(());
        }
        // Not entered unless a leaf of it can be taken: it would be verified twice.
        if self.nodes_left == 0 || self.leaves.len() as u64 >= self.max {
            self.stopped = Some(base.max(self.from));
            return Ok(());
        }
        self.nodes_left -= 1;
        let Some(node) = self.node(p, height, base)? else { return Ok(()) };
        for i in 0..POINTERS_PER_NODE {
            let below = p.child(&node.0, i).map_err(|e| Error::Format(e.to_string()))?;
            self.slot(&below, height - 1, base + i as u64 * reach(height - 1), p.cloned)?;
        }
        Ok(())
    }

    /// A node's bytes; `None` where they are lost: what is below cannot be found.
    fn node(&mut self, p: &Pointer, height: u8, base: u64) -> Result<Option<Box<Block>>> {
        if !self.verify || base < self.from {
            return match self.core.store.read(p) {
                Ok(data) => Ok(Some(data.bytes.clone())),
                Err(Error::Corrupt { .. }) => Ok(None),
                Err(Error::Io(_)) => {
                    self.found.unread += 1;
                    Ok(None)
                }
                Err(e) => Err(e),
            };
        }
        let verdict = self.core.store.verify(p)?;
        let mut owner = self.owner;
        match owner.part {
            Part::Inodes => owner.ino = base * INODES_PER_BLOCK,
            Part::Dead => {}
            _ => {
                owner.part = Part::Node;
                owner.offset_bytes = base * BS;
                owner.length_bytes = reach(height).saturating_mul(BS);
            }
        }
        self.found.note(owner, p.block, &verdict);
        Ok(verdict.good)
    }
}

/// Where one block of inodes comes from.
struct InodeBlock {
    number: u64,
    bytes: Box<Block>,
}

impl Core {
    /// A piece of the trees.
    pub(super) fn walk_trees(&self, w: &mut Walk, budget: u64, found: &mut Found) -> Result<()> {
        if let Some(file) = w.refill {
            return self.walk_refill(w, file, budget, found);
        }
        // Before it is written nothing is found in a new snapshot, and it may be the only one that
        // has what the walk has not come to.
        if !planted(Mutation::FreshSnapshotNotFilled) {
            match self.settle_version(VolumeId(w.at.volume)) {
                Err(Error::Busy) => return Ok(()),
                settled => settled?,
            }
        }
        let _pin = self.pins.pin(&self.epoch);
        let before = self.completed_epoch.load(Ordering::SeqCst);
        let volume = VolumeId(w.at.volume);
        let Some(file) = self.walked_volume(volume, found)? else {
            self.next_volume(w);
            return Ok(());
        };
        let elsewhere = match (w.again, w.every_version) {
            (Some(since), _) => since,
            (None, true) => 0,
            (None, false) => self.born_elsewhere(volume, &file)?,
        };
        let since = w.since.max(elsewhere);
        let Some(block) = self.walk_inode_block(w, &file, since, found)? else { return Ok(()) };
        let end = found.examined_blocks + budget;
        let last = (block.number + 1) * INODES_PER_BLOCK;
        while w.at.ino < last {
            let left = end.saturating_sub(found.examined_blocks);
            if left == 0 {
                return Ok(());
            }
            let id = NodeId { volume, ino: w.at.ino };
            let record = block.bytes.0.chunks_exact(INODE_BYTES).nth((id.ino + 8 - last) as usize);
            let gathered = match self.inodes.get(&id).map(|i| i.clone()) {
                Some(inode) => gather_inode(&inode, w.at.block, since, before),
                None => record.and_then(|r| gather_record(id, r, w.at.block, since)),
            };
            // See the head of mod.rs: only now it is known that what was gathered is linked.
            let completed = self.completed_epoch.load(Ordering::SeqCst) != before;
            if completed || self.is_over(volume, &file) {
                return Ok(());
            }
            let more = match gathered {
                Some(g) => self.walk_file(id, g, left, !w.every_version, found)?,
                None => None,
            };
            match more {
                Some(block) => w.at.block = block,
                None => (w.at.ino, w.at.block) = (w.at.ino + 1, 0),
            }
        }
        w.at.entered = false;
        Ok(())
    }

    /// A piece of a file that was given range clones behind the cursor.
    fn walk_refill(&self, w: &mut Walk, id: NodeId, budget: u64, found: &mut Found) -> Result<()> {
        let _pin = self.pins.pin(&self.epoch);
        let durable = self.completed_epoch.load(Ordering::SeqCst);
        let inode = match self.inode(id) {
            Ok(inode) => Some(inode),
            Err(Error::Io(_)) => {
                found.unread += 1;
                None
            }
            // It is gone, or that it cannot be read was found in its volume.
            Err(Error::Stale | Error::Corrupt { .. } | Error::Format(_)) => None,
            Err(e) => return Err(e),
        };
        let since = w.since.max(w.began);
        let gathered = inode.and_then(|i| {
            let g = gather_inode(&i, w.at.block, since, durable)?;
            // Asked under the pin: what a deletion frees later is still there for us.
            (!i.volume.deleted.load(Ordering::Acquire)).then_some(g)
        });
        let more = match gathered {
            Some(g) => self.walk_file(id, g, budget, false, found)?,
            None => None,
        };
        match more {
            Some(block) => w.at.block = block,
            None => self.next_volume(w),
        }
        Ok(())
    }

    /// Verifies a piece of a file's tree; where to go on.
    fn walk_file(
        &self,
        id: NodeId,
        g: Gather,
        left: u64,
        once: bool,
        found: &mut Found,
    ) -> Result<Option<u64>> {
        let owner = Owner {
            part: Part::Data,
            volume: id.volume,
            ino: id.ino,
            offset_bytes: 0,
            length_bytes: BS,
        };
        let mut descent = Descent::new(self, found, owner, left);
        descent.once = once;
        let more = descent.run(g)?;
        let leaves = std::mem::take(&mut descent.leaves);
        let clones = std::mem::take(&mut descent.clones);
        let on_disk = |(at, leaf): (u64, Leaf)| match leaf {
            Leaf::Disk(p) => Some((at, p)),
            Leaf::Memory(_) => None,
        };
        let mut blocks: Vec<(u64, Pointer)> = leaves.into_iter().filter_map(on_disk).collect();
        blocks.sort_unstable_by_key(|(_, p)| p.block);
        for run in blocks.chunk_by(|a, b| a.1.block + 1 == b.1.block) {
            let pointers: Vec<Pointer> = run.iter().map(|(_, p)| *p).collect();
            let verdicts = self.store.verify_run(&pointers)?;
            for ((at, p), verdict) in run.iter().zip(&verdicts) {
                let owner = Owner { offset_bytes: at * BS, ..owner };
                found.note(owner, p.block, verdict);
            }
        }
        self.scrub.note_clones(clones);
        Ok(more)
    }

    /// The block of inodes at the cursor, or the next one, which is verified then. `None`: look
    /// again where the cursor is now.
    fn walk_inode_block(
        &self,
        w: &mut Walk,
        file: &Arc<Inode>,
        since: u64,
        found: &mut Found,
    ) -> Result<Option<InodeBlock>> {
        let from = w.at.ino / INODES_PER_BLOCK;
        let durable = self.completed_epoch.load(Ordering::SeqCst);
        let gathered = Gather::tree(&file.state.read().tree, from, since, durable);
        let volume = VolumeId(w.at.volume);
        if self.is_over(volume, file) {
            self.next_volume(w);
            return Ok(None);
        }
        let owner = Owner { volume, ..Owner::pool(Part::Inodes) };
        let mut descent = Descent::new(self, found, owner, 1);
        descent.verify = !w.at.entered;
        let more = descent.run(gathered)?;
        let leaf = descent.leaves.pop();
        if w.at.entered && leaf.as_ref().is_none_or(|(at, _)| *at != from) {
            // It went with the inodes in it.
            w.at.ino = (from + 1) * INODES_PER_BLOCK;
            (w.at.block, w.at.entered) = (0, false);
            return Ok(None);
        }
        let Some((number, leaf)) = leaf else {
            match more {
                Some(block) => w.at.ino = block * INODES_PER_BLOCK,
                None => self.next_volume(w),
            }
            return Ok(None);
        };
        let bytes = match leaf {
            Leaf::Memory(data) => Some(data.bytes.clone()),
            Leaf::Disk(p) if w.at.entered => match self.store.read(&p) {
                Ok(data) => Some(data.bytes.clone()),
                Err(e) => {
                    found.unread += u64::from(matches!(e, Error::Io(_)));
                    None
                }
            },
            Leaf::Disk(p) => {
                let verdict = self.store.verify(&p)?;
                let owner = Owner { ino: number * INODES_PER_BLOCK, ..owner };
                found.note(owner, p.block, &verdict);
                verdict.good
            }
        };
        if !w.at.entered || bytes.is_none() {
            (w.at.ino, w.at.block) = (number * INODES_PER_BLOCK, 0);
        }
        w.at.entered = bytes.is_some();
        if bytes.is_none() {
            w.at.ino += INODES_PER_BLOCK;
        }
        Ok(bytes.map(|bytes| InodeBlock { number, bytes }))
    }

    /// A volume's inode file, if it is there to be walked.
    fn walked_volume(&self, volume: VolumeId, found: &mut Found) -> Result<Option<Arc<Inode>>> {
        let file = match self.inode_file(volume) {
            Ok(file) => file,
            Err(Error::Io(_)) => {
                found.unread += 1;
                return Ok(None);
            }
            // That its inode cannot be read was found in the volume table.
            Err(Error::Stale | Error::Corrupt { .. } | Error::Format(_)) => return Ok(None),
            Err(e) => return Err(e),
        };
        Ok(Some(file).filter(|file| !self.is_over(volume, file)))
    }

    /// Is there nothing of a version to be found where its record says? A snapshot that was deleted
    /// has all it had until a consistency point ends it: others share it with the pool's walks.
    fn is_over(&self, volume: VolumeId, file: &Inode) -> bool {
        let s = file.state.read();
        if s.gone || s.meta.kind != InodeKind::Version {
            return true;
        }
        let is_deleted =
            || self.volumes.get(&volume).is_some_and(|v| v.deleted.load(Ordering::Acquire));
        s.meta.version.epoch == 0 && is_deleted()
    }

    /// What a version shares with its parent was born by the time the parent was frozen, and is
    /// found there.
    fn born_elsewhere(&self, volume: VolumeId, file: &Inode) -> Result<u64> {
        let parent = file.state.read().meta.version.parent;
        if volume == TABLE || parent == 0 {
            return Ok(0);
        }
        match self.inode(NodeId { volume: TABLE, ino: parent }) {
            Ok(parent) => Ok(parent.state.read().meta.version.epoch),
            // Then nothing is left out.
            Err(Error::Stale | Error::Corrupt { .. } | Error::Io(_) | Error::Format(_)) => Ok(0),
            Err(e) => Err(e),
        }
    }

    /// Volumes in the order of their inodes in the volume table; then what has to be walked again,
    /// and versions that were made meanwhile.
    fn next_volume(&self, w: &mut Walk) {
        let end = self.volumes.get(&TABLE).map_or(0, |t| t.next_ino.load(Ordering::Relaxed));
        let last = w.at.volume.max(VolumeId::TREE.0 - 1);
        let next = u64::from(last) + 1;
        let is_over = w.again.take().is_some() || next >= end;
        w.refill = None;
        w.enter(Phase::Trees);
        if !is_over {
            w.at.volume = next as u32;
        } else if w.every_version {
            match self.next_refill() {
                Some(file) => (w.at.volume, w.refill) = (last, Some(file)),
                None => w.enter(Phase::Dead),
            }
        } else {
            match self.scrub.once_more() {
                Some((volume, since)) => (w.at.volume, w.again) = (volume, Some(since)),
                None => w.enter(Phase::Dead),
            }
        }
    }

    /// A piece of what is detached and waits to be freed: nodes and blocks of inodes, without which
    /// it could not be freed. Its data is nobody's any more.
    pub(super) fn walk_dead(&self, w: &mut Walk, budget: u64, found: &mut Found) -> Result<()> {
        let Some(cp) = self.lock_unless_alone(&self.cp) else { return Ok(()) };
        let Some(entry) = cp.reclaim.entries().get(w.at.ino as usize).copied() else {
            w.enter(Phase::Space);
            return Ok(());
        };
        let scope = cp.reclaim.scope_at(w.at.ino as usize);
        // What is older is somebody else's, or was, and is free by now.
        let since = w.since.max(self.bound_of(scope)?);
        let mut more = None;
        let is_walked = matches!(entry.kind, DeadKind::Data | DeadKind::Inodes);
        if is_walked && (entry.depth > 0 || entry.kind == DeadKind::Inodes) {
            let root = Slot::Ptr(entry.pointer);
            let tree = Tree { root, height: entry.depth };
            let gathered = Gather::tree(&tree, w.at.block, since, 0);
            let mut descent = Descent::new(self, found, Owner::pool(Part::Dead), budget.max(256));
            more = descent.run(gathered)?;
            let leaves = std::mem::take(&mut descent.leaves);
            for (_, leaf) in leaves.iter().filter(|_| entry.kind == DeadKind::Inodes) {
                let Leaf::Disk(p) = leaf else { continue };
                found.note(Owner::pool(Part::Dead), p.block, &self.store.verify(p)?);
            }
        }
        match more {
            Some(block) => w.at.block = block,
            None => (w.at.ino, w.at.block) = (w.at.ino + 1, 0),
        }
        Ok(())
    }
}

/// An inode in memory: what it leads to now.
fn gather_inode(inode: &Inode, from: u64, since: u64, durable: u64) -> Option<Gather> {
    let s = inode.state.read();
    let walked = !s.gone && s.meta.kind != InodeKind::Version;
    walked.then(|| Gather::tree(&s.tree, from, since, durable))
}

/// An inode that is not in memory, from its record.
fn gather_record(id: NodeId, raw: &[u8], from: u64, since: u64) -> Option<Gather> {
    // A record that makes no sense in a block that is good is for check to tell.
    let record = DiskInode::decode(raw).ok()?;
    let walked = record.kind != InodeKind::Free
        && !(id.volume == TABLE && record.kind == InodeKind::Version);
    let tree = Tree { root: Slot::Ptr(record.root), height: record.height };
    walked.then(|| Gather::tree(&tree, from, since, 0))
}
