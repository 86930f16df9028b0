//! Dead lists, and how a deleted version goes.
//!
//! A version's dead list names what its parent has and it has not: what it detached, born up to the
//! epoch of its parent. A snapshot takes the list of the live version along, which begins a new
//! one.
//!
//! A deleted version with more than one child stays, hidden, until it has one. With one child, of
//! the child's list is freed what was born after the deleted version's own parent, for nobody else
//! has it; the rest, and the deleted version's own list, become the child's list. Without children,
//! all that was born after its parent is freed, and its list is forgotten: the parent has what is
//! on it. It is done in consistency points, and only when nothing in the reclaim list waits for the
//! list of the deleted version: so that a list that is named exists.
//!
//! A deletion that was begun is finished in its consistency point: it reads both lists, its own and
//! its child's, into memory. So its work is that of what was replaced between the snapshots beside
//! it, an entry for each block or subtree, whatever the size of the volume.
//!
//! A list that cannot be read stops nobody: a block of it that is not full counts as full where
//! more is put on it, and a deletion that needs it waits, until a repair makes the list anew.

use super::core::*;
use super::error::{Error, Result};
use super::planted::{planted, Mutation};
use super::reclaim::{block_of, read_entries, Scope, ENTRIES_PER_BLOCK};
use super::store::Data;
use super::tree::{Slot, Tree};
use super::types::*;
use super::work::Work;
use crate::device::BLOCK_BYTES;
use fs_layout::{
    DeadEntry, DeadKind, Inode as DiskInode, InodeKind, Pointer, VersionPart, DEAD_ENTRY_BYTES,
    VERSION_DELETED,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Entries of dead lists that one consistency point goes through for deletions (once begun, a
/// deletion is finished).
const ENTRIES_PER_CP: usize = 65_536;
/// What a deletion costs beside its entries, in entries: records, a few blocks.
const DELETION_COST: usize = 64;

fn is_unreadable(error: &Error) -> bool {
    matches!(error, Error::Corrupt { .. } | Error::Io(_) | Error::Format(_))
}

fn table(ino: u64) -> NodeId {
    NodeId { volume: TABLE, ino }
}

impl Core {
    /// The deleted versions that a root says are waiting.
    pub fn load_doomed(&self) -> Result<Vec<u64>> {
        match self.inode(DOOMED) {
            Err(Error::Stale) => Ok(Vec::new()),
            Err(e) => Err(e),
            Ok(file) => Ok(read_entries(self, &file)?.iter().map(|e| e.ino).collect()),
        }
    }
}

impl Work<'_> {
    /// A volume's dead list, made where there is none.
    pub fn list_of(&mut self, volume: VolumeId) -> Result<u64> {
        let part = self.core.version_part(volume)?;
        if part.dead_list != 0 {
            return Ok(part.dead_list);
        }
        let table_volume = self.core.volume(TABLE)?;
        let ino = table_volume.take_ino();
        let owner = u64::from(volume.0);
        self.new_table_file(table(ino), InodeKind::DeadList, owner)?;
        self.relink(owner, |p| p.dead_list = ino)?;
        Ok(ino)
    }

    /// What is on a list that has been read, with what this consistency point put there.
    fn take_list(&mut self, ino: u64, mut entries: Vec<DeadEntry>) -> Vec<DeadEntry> {
        entries.extend(self.shared.remove(&ino).unwrap_or_default());
        entries
    }

    fn read_list(&self, ino: u64) -> Result<Vec<DeadEntry>> {
        match ino {
            0 => Ok(Vec::new()),
            ino => read_entries(self.core, &*self.core.inode(table(ino))?),
        }
    }

    /// Puts lists in the place of those that cannot be read.
    pub fn relist(&mut self, cp: &mut CpState) -> Result<()> {
        for (version, entries) in std::mem::take(&mut cp.relisted) {
            let list = self.list_of(version)?;
            self.empty(list)?;
            self.shared.entry(list).or_default().extend(entries);
        }
        Ok(())
    }

    fn list_len(&self, ino: u64) -> Result<usize> {
        if ino == 0 {
            return Ok(0);
        }
        let size = self.core.inode(table(ino))?.state.read().meta.size as usize;
        Ok(size / DEAD_ENTRY_BYTES + self.shared.get(&ino).map_or(0, Vec::len))
    }

    /// Ends an inode of the volume table.
    fn end(&mut self, ino: u64) -> Result<()> {
        if ino == 0 {
            return Ok(());
        }
        let file = self.core.inode(table(ino))?;
        let tree = {
            let mut s = file.state.write();
            s.gone = true;
            let kind = std::mem::replace(&mut s.meta, DiskInode::empty(InodeKind::Free)).kind;
            let tree = std::mem::replace(&mut s.tree, Tree::empty());
            // What a version's own tree holds is not for us to free.
            (kind == InodeKind::DeadList).then_some(tree)
        };
        self.shared.remove(&ino);
        self.changed.insert(ino);
        match tree {
            Some(t) => self.free_tree(&t.root, t.height),
            None => Ok(()),
        }
    }

    /// Lets deleted versions go whose turn it is.
    pub fn end_doomed(&mut self, cp: &mut CpState) -> Result<()> {
        let mut budget = ENTRIES_PER_CP;
        let mut waiting = Vec::new();
        while let Some(id) = cp.doomed.pop() {
            let part = self.core.version_part(VolumeId(id as u32))?;
            // What is being walked relies on what its version shares with others: where blocks are
            // counted, these stay until it is done.
            let is_walking = self.core.has_counts() && cp.reclaim.len() > 0;
            if budget == 0 || is_walking || !cp.reclaim.is_quiet(part.dead_list) {
                waiting.push(id);
                continue;
            }
            let only_child = match part.first_child {
                0 => 0,
                child => match self.core.version_part(VolumeId(child as u32))?.sibling {
                    0 => child,
                    _ => continue, // Hidden until all but one of its children are gone.
                },
            };
            let cost = match only_child {
                0 => self.end_leaf(cp, id, part)?,
                child => match self.end_between(cp, id, part, child)? {
                    Some(cost) => cost,
                    None => {
                        waiting.push(id);
                        continue;
                    }
                },
            };
            budget = budget.saturating_sub(cost + DELETION_COST);
        }
        waiting.reverse();
        cp.doomed = waiting;
        Ok(())
    }

    /// A version without children: what is younger than its parent is nobody's.
    fn end_leaf(&mut self, cp: &mut CpState, id: u64, part: VersionPart) -> Result<usize> {
        let bound = self.core.shared_up_to(VolumeId(id as u32))?;
        let meta = self.core.inode(table(id))?.state.read().meta;
        if meta.root.birth > bound {
            let (pointer, depth) = (meta.root, meta.height);
            let kind = DeadKind::Inodes;
            let entry = DeadEntry { pointer, depth, kind, volume: 0, ino: 0 };
            cp.reclaim.push(Scope { list: 0, bound }, entry);
        }
        if part.parent != 0 {
            self.replace_child(part.parent, id, 0)?;
            if self.is_deleted(part.parent)? && !cp.doomed.contains(&part.parent) {
                cp.doomed.push(part.parent);
            }
        }
        self.end(part.dead_list)?;
        self.end(id)?;
        Ok(0)
    }

    /// Is a version deleted as far as this root is to say? In memory it may be so by a transaction
    /// of the next epoch, which a crash may lose.
    fn is_deleted(&self, id: u64) -> Result<bool> {
        if self.deleted.contains(&id) {
            return Ok(true);
        }
        match self.core.read_inode(table(id)) {
            Ok(record) => Ok(record.version.flags & VERSION_DELETED != 0),
            // It was made in this epoch.
            Err(Error::Stale) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// A version with one child, which takes its place. `None`: a list cannot be read.
    fn end_between(
        &mut self,
        cp: &mut CpState,
        id: u64,
        part: VersionPart,
        child: u64,
    ) -> Result<Option<usize>> {
        let bound = self.core.shared_up_to(VolumeId(id as u32))?;
        let heir = self.core.version_part(VolumeId(child as u32))?;
        let (of_heir, own) = match (self.read_list(heir.dead_list), self.read_list(part.dead_list))
        {
            (Ok(of_heir), Ok(own)) => (of_heir, own),
            (Err(e), _) | (_, Err(e)) if is_unreadable(&e) => return Ok(None),
            (Err(e), _) | (_, Err(e)) => return Err(e),
        };
        let read = self.list_len(heir.dead_list)? + self.list_len(part.dead_list)?;
        self.relink(child, |p| (p.parent, p.sibling) = (part.parent, part.sibling))?;
        if part.parent != 0 {
            self.replace_child(part.parent, id, child)?;
        }
        let entries = self.take_list(heir.dead_list, of_heir);
        let is_planted = planted(Mutation::DeadListJoinedWrong);
        let (freed, mut kept): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|e| e.pointer.birth > bound || is_planted);
        kept.extend(self.take_list(part.dead_list, own));
        if heir.dead_list != 0 {
            self.empty(heir.dead_list)?;
        }
        if !kept.is_empty() {
            let list = self.list_of(VolumeId(child as u32))?;
            self.shared.entry(list).or_default().extend(kept);
        }
        let list = self.core.version_part(VolumeId(child as u32))?.dead_list;
        let (mut nodes, freed): (Vec<_>, Vec<_>) =
            freed.into_iter().partition(|e| e.kind == DeadKind::Node);
        nodes.sort_by_key(|e| std::cmp::Reverse(e.depth));
        nodes.iter().try_for_each(|e| self.let_go_node(&e.pointer))?;
        for e in freed {
            if e.depth == 0 && e.kind == DeadKind::Data {
                self.let_go(e.pointer.block)?;
            } else {
                let list = if bound == 0 { 0 } else { list };
                cp.reclaim.push(Scope { list, bound: 0 }, e);
            }
        }
        self.end(part.dead_list)?;
        self.end(id)?;
        self.core.scrub.joined(child, id, bound);
        Ok(Some(read))
    }

    /// Takes everything off a list.
    pub fn empty(&mut self, ino: u64) -> Result<()> {
        let file = self.core.inode(table(ino))?;
        let tree = {
            let mut s = file.state.write();
            s.meta.size = 0;
            std::mem::replace(&mut s.tree, Tree::empty())
        };
        self.changed.insert(ino);
        self.free_tree(&tree.root, tree.height)
    }

    /// Writes what was put on lists.
    pub fn write_lists(&mut self) -> Result<()> {
        for (ino, entries) in std::mem::take(&mut self.shared) {
            let file = self.core.inode(table(ino))?;
            let old = file.state.read().meta.size as usize / DEAD_ENTRY_BYTES;
            let mut first = old / ENTRIES_PER_BLOCK;
            let mut all = Vec::new();
            if old % ENTRIES_PER_BLOCK > 0 {
                match self.entries_of_block(&file, first, old % ENTRIES_PER_BLOCK) {
                    Ok(entries) => all = entries,
                    Err(e) if is_unreadable(&e) => first += 1,
                    Err(e) => return Err(e),
                }
            }
            all.extend(entries);
            self.write_entries(&file, first, &all)?;
            let size = ((first * ENTRIES_PER_BLOCK + all.len()) * DEAD_ENTRY_BYTES) as u64;
            file.state.write().meta.size = size;
            self.changed.insert(ino);
        }
        Ok(())
    }

    fn entries_of_block(&self, file: &Inode, block: usize, count: usize) -> Result<Vec<DeadEntry>> {
        let data = self.core.read_block(file, block as u64)?;
        let data = data.ok_or(Error::Format("a dead list has a hole".into()))?;
        let decode = |raw: &[u8]| {
            let mut bytes = [0; DEAD_ENTRY_BYTES];
            bytes.copy_from_slice(raw);
            DeadEntry::decode(&bytes).map_err(|e| Error::Format(e.to_string()))
        };
        data.bytes.0.chunks_exact(DEAD_ENTRY_BYTES).take(count).map(decode).collect()
    }

    fn write_entries(&mut self, file: &Arc<Inode>, at: usize, all: &[DeadEntry]) -> Result<()> {
        let epoch = self.epoch;
        for (i, chunk) in all.chunks(ENTRIES_PER_BLOCK).enumerate() {
            let data = Data::new(block_of(chunk));
            self.meta_change(file, TABLE, epoch, |tree, c| {
                tree.link(c, (at + i) as u64, Slot::Data(epoch, data.clone()))
            })?;
        }
        Ok(())
    }

    /// Writes which deleted versions wait.
    pub fn write_doomed(&mut self, cp: &CpState) -> Result<()> {
        let file = match self.core.inode(DOOMED) {
            Ok(file) if !file.state.read().gone => file,
            Ok(_) | Err(Error::Stale) if cp.doomed.is_empty() => return Ok(()),
            Ok(_) | Err(Error::Stale) => self.new_table_file(DOOMED, InodeKind::DeadList, 0)?,
            Err(e) => return Err(e),
        };
        if cp.doomed.is_empty() && file.state.read().meta.size == 0 {
            return Ok(());
        }
        self.empty(DOOMED.ino)?;
        let entry = |ino: &u64| DeadEntry {
            pointer: Pointer::default(),
            depth: 0,
            kind: DeadKind::Data,
            volume: 0,
            ino: *ino,
        };
        let all: Vec<DeadEntry> = cp.doomed.iter().map(entry).collect();
        self.write_entries(&file, 0, &all)?;
        file.state.write().meta.size = (all.len() * DEAD_ENTRY_BYTES) as u64;
        self.changed.insert(DOOMED.ino);
        Ok(())
    }

    /// Writes the reclaim list.
    pub fn write_reclaim(&mut self, cp: &mut CpState) -> Result<()> {
        let file = self.core.inode(RECLAIM)?;
        let epoch = self.epoch;
        let shrank = ((cp.reclaim.len() * DEAD_ENTRY_BYTES) as u64) < file.state.read().meta.size;
        if planted(Mutation::WalkNotCommitted) && shrank {
            self.changed.insert(RECLAIM.ino);
            return Ok(());
        }
        for (block, raw) in cp.reclaim.changed_blocks() {
            let data = Data::new(raw);
            self.meta_change(&file, TABLE, epoch, |tree, c| {
                tree.link(c, block, Slot::Data(epoch, data.clone()))
            })?;
        }
        let size = (cp.reclaim.len() * DEAD_ENTRY_BYTES) as u64;
        let blocks = size.div_ceil(BLOCK_BYTES as u64);
        let old = file.state.read().meta.size.div_ceil(BLOCK_BYTES as u64);
        if old > blocks {
            self.meta_change(&file, TABLE, epoch, |t, c| t.punch(c, blocks, old - blocks))?;
        }
        file.state.write().meta.size = size;
        self.changed.insert(RECLAIM.ino);
        Ok(())
    }

    /// Writes what changed of the volume table's own inodes; their records.
    pub fn table_records(
        &mut self,
        captured: &BTreeMap<NodeId, DiskInode>,
    ) -> Result<BTreeMap<NodeId, DiskInode>> {
        let mut records = BTreeMap::new();
        for ino in std::mem::take(&mut self.changed) {
            let id = table(ino);
            let file = self.core.inode(id)?;
            let (gone, kind) = {
                let s = file.state.read();
                (s.gone, s.meta.kind)
            };
            let record = if gone {
                DiskInode::empty(InodeKind::Free)
            } else if kind == InodeKind::Version {
                let links = file.state.read().meta;
                let base = match captured.get(&id) {
                    Some(record) => *record,
                    // What a transaction of the next epoch made of it is not for this root.
                    None => self.core.read_inode(id)?,
                };
                let mut record = super::version::with_links_of(&base, &links);
                if let Some(v) = self.core.volumes.get(&VolumeId(ino as u32)) {
                    record.version.next_ino = record.version.next_ino.max(v.peek_ino());
                }
                record
            } else {
                self.write_meta_tree(&file)?
            };
            records.insert(id, record);
        }
        Ok(records)
    }
}
