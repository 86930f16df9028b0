//! The reclaim list and its walker: what was detached as a subtree is freed here, in bounded steps.
//!
//! The list is a stack of entries, kept in the file [`RECLAIM`](super::core::RECLAIM) of the volume
//! table. A step of the walker belongs to a consistency point: entries taken, entries put and
//! blocks freed become durable together, so a crash resumes and never frees twice.

use super::core::{Core, Inode};
use super::error::{Error, Result};
use super::store::Store;
use crate::device::{Block, BLOCK_BYTES};
use fs_layout::{
    DeadEntry, DeadKind, Inode as DiskInode, InodeKind, Pointer, DEAD_ENTRY_BYTES,
    INODES_PER_BLOCK, INODE_BYTES, POINTERS_PER_NODE,
};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

/// Nodes that one consistency point walks: with a million blocks freed it stays well below a
/// second.
pub(crate) const WALK_NODES_PER_CP: usize = 4096;
const ENTRIES_PER_BLOCK: usize = BLOCK_BYTES / DEAD_ENTRY_BYTES;

/// The list in memory.
#[derive(Default)]
pub(crate) struct ReclaimList {
    entries: Vec<DeadEntry>,
    /// Entries below this index are on disk as they are.
    stable: usize,
}

/// What a step freed.
#[derive(Default)]
pub(crate) struct Walked {
    pub freed: Vec<u64>,
    /// Data blocks less for each (volume, inode).
    pub owners: Owners,
}

/// Data blocks freed, by (volume, inode). In order: who walks it reads the device.
pub(crate) type Owners = BTreeMap<(u32, u64), u64>;

impl ReclaimList {
    /// Reads the list that a root names.
    pub fn load(core: &Core, file: &Inode) -> Result<ReclaimList> {
        let size = file.state.read().meta.size as usize;
        let count = size / DEAD_ENTRY_BYTES;
        let mut entries = Vec::new();
        for block in 0..count.div_ceil(ENTRIES_PER_BLOCK) {
            let data = core.read_block(file, block as u64)?;
            let data = data.ok_or(Error::Format("the reclaim list has a hole".into()))?;
            for raw in data.bytes.0.chunks_exact(DEAD_ENTRY_BYTES).take(count - entries.len()) {
                let mut bytes = [0; DEAD_ENTRY_BYTES];
                bytes.copy_from_slice(raw);
                let entry = DeadEntry::decode(&bytes).map_err(|e| Error::Format(e.to_string()))?;
                entries.push(entry);
            }
        }
        Ok(ReclaimList { stable: entries.len(), entries })
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn entries(&self) -> &[DeadEntry] {
        &self.entries
    }

    pub fn push(&mut self, entry: DeadEntry) {
        if !entry.pointer.is_hole() {
            self.entries.push(entry);
        }
    }

    fn pop(&mut self) -> Option<DeadEntry> {
        let entry = self.entries.pop();
        self.stable = self.stable.min(self.entries.len());
        entry
    }

    /// Takes entries and frees what they name, until the budget is used up.
    pub fn walk(&mut self, store: &Store, out: &mut Walked) -> Result<()> {
        let mut budget = WALK_NODES_PER_CP;
        while budget > 0 {
            let Some(entry) = self.pop() else { break };
            if entry.depth > 0 || entry.kind == DeadKind::Inodes {
                budget -= 1;
            }
            match self.expand(store, &entry, out) {
                Ok(()) => {}
                // An unreadable node: what is below is lost space that check reports; go on.
                Err(Error::Corrupt { .. } | Error::Io(_) | Error::Format(_)) => {}
                Err(e) => return Err(e),
            }
            out.freed.push(entry.pointer.block);
            if entry.depth == 0 && entry.kind == DeadKind::Data && entry.ino != 0 {
                *out.owners.entry((entry.volume, entry.ino)).or_default() += 1;
            }
        }
        Ok(())
    }

    fn expand(&mut self, store: &Store, entry: &DeadEntry, out: &mut Walked) -> Result<()> {
        match (entry.depth, entry.kind) {
            (0, DeadKind::Data) => Ok(()),
            (0, DeadKind::Inodes) => self.expand_inodes(store, entry),
            (1, DeadKind::Data) => {
                let children = children(store, &entry.pointer)?;
                if entry.ino != 0 {
                    *out.owners.entry((entry.volume, entry.ino)).or_default() +=
                        children.len() as u64;
                }
                out.freed.extend(children.iter().map(|p| p.block));
                Ok(())
            }
            (depth, _) => {
                for pointer in children(store, &entry.pointer)? {
                    self.push(DeadEntry { pointer, depth: depth - 1, ..*entry });
                }
                Ok(())
            }
        }
    }

    fn expand_inodes(&mut self, store: &Store, entry: &DeadEntry) -> Result<()> {
        let block = store.read(&entry.pointer)?;
        for raw in block.bytes.0.chunks_exact(INODE_BYTES).take(INODES_PER_BLOCK as usize) {
            let inode = DiskInode::decode(raw).map_err(|e| Error::Format(e.to_string()))?;
            if inode.kind != InodeKind::Free {
                self.push(DeadEntry {
                    pointer: inode.root,
                    depth: inode.height,
                    kind: DeadKind::Data,
                    volume: 0,
                    ino: 0,
                });
            }
        }
        Ok(())
    }

    /// Blocks of the list's file that changed, and how many entries it has now.
    pub fn changed_blocks(&mut self) -> Vec<(u64, Box<Block>)> {
        let first = self.stable / ENTRIES_PER_BLOCK;
        self.stable = self.entries.len();
        let chunks = self.entries.chunks(ENTRIES_PER_BLOCK).enumerate().skip(first);
        let encode = |(i, chunk): (usize, &[DeadEntry])| {
            let mut block = Block::zeroed();
            for (at, e) in block.0.chunks_exact_mut(DEAD_ENTRY_BYTES).zip(chunk) {
                at.copy_from_slice(&e.encode());
            }
            (i as u64, block)
        };
        chunks.map(encode).collect()
    }
}

/// The pointers of a node that are no holes.
pub(crate) fn children(store: &Store, node: &Pointer) -> Result<Vec<Pointer>> {
    let raw = store.read(node)?;
    let mut out = Vec::new();
    for i in 0..POINTERS_PER_NODE {
        let p = Pointer::in_node(&raw.bytes.0, i).map_err(|e| Error::Format(e.to_string()))?;
        if !p.is_hole() {
            out.push(p);
        }
    }
    Ok(out)
}

impl Core {
    pub fn note_reclaim(&self, list: &ReclaimList) {
        self.reclaim_pending.store(list.len() as u64, Ordering::Relaxed);
    }
}
