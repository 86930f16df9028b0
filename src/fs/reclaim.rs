//! The reclaim list and its walker: what was detached as a subtree is freed here, in bounded steps.
//!
//! The list is a stack of entries, kept in the file [`RECLAIM`](super::core::RECLAIM) of the volume
//! table. A step of the walker belongs to a consistency point: entries taken, entries put and
//! blocks freed become durable together, so a crash resumes and never frees twice.
//!
//! Of a volume without snapshots all that is detached is freed. Else an entry stands above a
//! *scope*, which says from which birth on it is nobody else's: for a dead list it is asked anew at
//! each step, for the list's owner and its parent may have changed; what is older goes on that
//! list, as whole subtrees, for nothing below a pointer is younger than it. For a deleted version
//! without children it is the epoch of its parent, as it was; what is older is the parent's and
//! stays. The nodes between are read by nobody else, so other deletions do not disturb a walk.
//!
//! What is cloned (see [`counts`](super::counts)) is only let go. An entry that must wait for
//! something below it to be counted goes back on the stack, and what it waits for above it.

use super::core::{Core, Inode};
use super::error::{Error, Result};
use super::store::Store;
use super::work::Work;
use crate::device::{Block, BLOCK_BYTES};
use fs_layout::{
    DeadEntry, DeadKind, Inode as DiskInode, InodeKind, Pointer, DEAD_ENTRY_BYTES,
    INODES_PER_BLOCK, INODE_BYTES, POINTERS_PER_NODE,
};
use std::collections::BTreeMap;

/// Nodes that one consistency point walks: with a million blocks freed it stays well below a
/// second.
pub(crate) const WALK_NODES_PER_CP: usize = 4096;
pub(crate) const ENTRIES_PER_BLOCK: usize = BLOCK_BYTES / DEAD_ENTRY_BYTES;

/// Which of what is below an entry may be freed: what was born after `bound`; or, where `list` is
/// not 0, after the parent of that dead list's owner, the rest going on the list.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Scope {
    pub list: u64,
    pub bound: u64,
}

impl Scope {
    /// As an entry of the list says it.
    pub fn of(e: &DeadEntry) -> Scope {
        Scope { list: e.ino, bound: e.pointer.birth }
    }

    fn entry(&self) -> DeadEntry {
        DeadEntry {
            pointer: Pointer::hole(self.bound),
            depth: 0,
            kind: DeadKind::Scope,
            volume: 0,
            ino: self.list,
        }
    }
}

/// The list in memory.
#[derive(Default)]
pub(crate) struct ReclaimList {
    entries: Vec<DeadEntry>,
    /// Entries below this index are on disk as they are.
    stable: usize,
    /// Where in `entries` the scopes are.
    scopes: Vec<usize>,
    /// Entries of what others have: no version may end before they are walked.
    kept: usize,
}

/// Data blocks freed, by (volume, inode). In order: who walks it reads the device.
pub(crate) type Owners = BTreeMap<(u32, u64), u64>;

/// Entries from a file's data.
pub(crate) fn read_entries(core: &Core, file: &Inode) -> Result<Vec<DeadEntry>> {
    let size = file.state.read().meta.size as usize;
    let count = size / DEAD_ENTRY_BYTES;
    let mut entries = Vec::new();
    for block in 0..count.div_ceil(ENTRIES_PER_BLOCK) {
        let data = core.read_block(file, block as u64)?;
        let data = data.ok_or(Error::Format("a dead list has a hole".into()))?;
        for raw in data.bytes.0.chunks_exact(DEAD_ENTRY_BYTES).take(count - entries.len()) {
            let mut bytes = [0; DEAD_ENTRY_BYTES];
            bytes.copy_from_slice(raw);
            let entry = DeadEntry::decode(&bytes).map_err(|e| Error::Format(e.to_string()))?;
            entries.push(entry);
        }
    }
    Ok(entries)
}

/// A block of entries.
pub(crate) fn block_of(entries: &[DeadEntry]) -> Box<Block> {
    let mut block = Block::zeroed();
    for (at, e) in block.0.chunks_exact_mut(DEAD_ENTRY_BYTES).zip(entries) {
        at.copy_from_slice(&e.encode());
    }
    block
}

impl ReclaimList {
    /// Reads the list that a root names.
    pub fn load(core: &Core, file: &Inode) -> Result<ReclaimList> {
        let mut list = ReclaimList::default();
        for e in read_entries(core, file)? {
            list.put(e);
        }
        list.stable = list.entries.len();
        Ok(list)
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn entries(&self) -> &[DeadEntry] {
        &self.entries
    }

    fn put(&mut self, entry: DeadEntry) {
        match entry.kind {
            DeadKind::Scope => self.scopes.push(self.entries.len()),
            DeadKind::Count | DeadKind::Kept => self.kept += 1,
            _ => {}
        }
        self.entries.push(entry);
    }

    fn scope(&self) -> Scope {
        let at = self.scopes.last().and_then(|i| self.entries.get(*i));
        at.map_or(Scope::default(), Scope::of)
    }

    /// The scope of an entry.
    pub fn scope_at(&self, index: usize) -> Scope {
        let before = self.scopes.partition_point(|at| *at < index);
        let at = before.checked_sub(1).and_then(|i| self.scopes.get(i));
        at.and_then(|i| self.entries.get(*i)).map_or(Scope::default(), Scope::of)
    }

    /// Adds an entry that is judged by `scope`.
    pub fn push(&mut self, scope: Scope, entry: DeadEntry) {
        if entry.pointer.is_hole() {
            return;
        }
        if self.scope() != scope {
            self.put(scope.entry());
        }
        self.put(entry);
    }

    /// The last entry and its scope; scopes above which nothing stands any more go too.
    fn pop(&mut self) -> Option<(DeadEntry, Scope)> {
        let scope = self.scope();
        let entry = self.entries.pop()?;
        self.kept -= usize::from(matches!(entry.kind, DeadKind::Count | DeadKind::Kept));
        while self.entries.last().is_some_and(|e| e.kind == DeadKind::Scope) {
            self.entries.pop();
            self.scopes.pop();
        }
        self.stable = self.stable.min(self.entries.len());
        Some((entry, scope))
    }

    /// Does nothing here wait to go on this list, or to be counted while somebody has it?
    pub fn is_quiet(&self, list: u64) -> bool {
        let names = |i: &usize| self.entries.get(*i).is_some_and(|e| e.ino == list);
        self.kept == 0 && (list == 0 || !self.scopes.iter().any(names))
    }

    /// Takes entries and frees what they name, until the budget is used up.
    pub fn walk(&mut self, work: &mut Work) -> Result<()> {
        let mut budget = WALK_NODES_PER_CP;
        while budget > 0 {
            let Some((entry, scope)) = self.pop() else { break };
            if entry.depth > 0 || entry.kind == DeadKind::Inodes {
                budget -= 1;
            }
            let bound = work.core.bound_of(scope)?;
            if entry.kind == DeadKind::Data && work.count_of(entry.pointer.block)? > 0 {
                self.let_go(work, &entry, scope, bound)?;
                continue;
            }
            match self.expand(work, &entry, scope, bound) {
                Ok(()) => {}
                // An unreadable node: what is below is lost space that check reports; go on.
                Err(Error::Corrupt { .. } | Error::Io(_) | Error::Format(_)) => {
                    if entry.kind == DeadKind::Kept {
                        work.stick(entry.pointer.block)?;
                    }
                }
                Err(e) => return Err(e),
            }
            if matches!(entry.kind, DeadKind::Data | DeadKind::Inodes) {
                work.freed.push(entry.pointer.block);
            }
            if entry.depth == 0 && entry.kind != DeadKind::Inodes {
                work.count_off(&entry, 1);
            }
        }
        Ok(())
    }

    /// Lets go of what is cloned: others keep it, and all that is below.
    fn let_go(
        &mut self,
        work: &mut Work,
        entry: &DeadEntry,
        scope: Scope,
        bound: u64,
    ) -> Result<()> {
        let is_node = entry.depth > 0;
        if is_node && entry.ino != 0 {
            // Its data is counted first, while it is there for certain.
            self.push(scope, DeadEntry { volume: 0, ino: 0, ..*entry });
            self.push(Scope::default(), DeadEntry { kind: DeadKind::Count, ..*entry });
            return Ok(());
        }
        if is_node && bound > 0 && !entry.pointer.cloned {
            // Some of it may be the parent's. When that is counted, all of it is as if cloned.
            let pointer = Pointer { cloned: true, ..entry.pointer };
            self.push(scope, DeadEntry { pointer, ..*entry });
            self.push(scope, DeadEntry { kind: DeadKind::Kept, ..*entry });
            return Ok(());
        }
        work.let_go(entry.pointer.block)?;
        if !is_node {
            work.count_off(entry, 1);
        }
        Ok(())
    }

    fn expand(
        &mut self,
        work: &mut Work,
        entry: &DeadEntry,
        scope: Scope,
        bound: u64,
    ) -> Result<()> {
        let store = &work.core.store;
        match (entry.depth, entry.kind) {
            (0, DeadKind::Inodes) => return self.expand_inodes(store, entry, scope, bound),
            (0, _) => return Ok(()),
            _ => {}
        }
        let children = children(store, &entry.pointer)?;
        if entry.depth == 1 && entry.kind != DeadKind::Inodes {
            work.count_off(entry, children.len() as u64);
        }
        for pointer in children {
            let below = DeadEntry { pointer, depth: entry.depth - 1, ..*entry };
            let is_data = below.depth == 0 && entry.kind != DeadKind::Inodes;
            match entry.kind {
                DeadKind::Count if is_data => {}
                DeadKind::Count => self.push(Scope::default(), below),
                DeadKind::Kept if pointer.birth <= bound => {
                    work.count_up(pointer.block)?;
                    work.share(scope.list, &DeadEntry { kind: DeadKind::Data, ..below });
                }
                // Nothing below a clone is older than it.
                DeadKind::Kept if is_data || pointer.cloned => {}
                DeadKind::Kept => self.push(scope, below),
                _ if pointer.birth <= bound => {
                    work.share(scope.list, &below);
                    if entry.ino != 0 && !is_data {
                        let count = DeadEntry { kind: DeadKind::Count, ..below };
                        self.push(Scope::default(), count);
                    }
                }
                _ if is_data => drop(work.let_go(pointer.block)?),
                _ => self.push(scope, below),
            }
        }
        Ok(())
    }

    fn expand_inodes(
        &mut self,
        store: &Store,
        entry: &DeadEntry,
        scope: Scope,
        bound: u64,
    ) -> Result<()> {
        let block = store.read(&entry.pointer)?;
        for raw in block.bytes.0.chunks_exact(INODE_BYTES).take(INODES_PER_BLOCK as usize) {
            let inode = DiskInode::decode(raw).map_err(|e| Error::Format(e.to_string()))?;
            if inode.kind != InodeKind::Free && inode.root.birth > bound {
                let (pointer, depth) = (inode.root, inode.height);
                let kind = DeadKind::Data;
                self.push(scope, DeadEntry { pointer, depth, kind, volume: 0, ino: 0 });
            }
        }
        Ok(())
    }

    /// Blocks of the list's file that changed.
    pub fn changed_blocks(&mut self) -> Vec<(u64, Box<Block>)> {
        let first = self.stable / ENTRIES_PER_BLOCK;
        self.stable = self.entries.len();
        let chunks = self.entries.chunks(ENTRIES_PER_BLOCK).enumerate().skip(first);
        chunks.map(|(i, chunk)| (i as u64, block_of(chunk))).collect()
    }
}

/// The pointers of a node that are no holes.
pub(crate) fn children(store: &Store, node: &Pointer) -> Result<Vec<Pointer>> {
    let raw = store.read(node)?;
    let mut out = Vec::new();
    for i in 0..POINTERS_PER_NODE {
        let p = node.child(&raw.bytes.0, i).map_err(|e| Error::Format(e.to_string()))?;
        if !p.is_hole() {
            out.push(p);
        }
    }
    Ok(out)
}
