//! What is cloned, and who lets go of it.
//!
//! A range clone links what another tree has, whole subtrees where it can, and counts one more
//! pointer to the block on top, in [`COUNTS`]: nothing below is touched. So a block is *held* by
//! each tree of versions that has a pointer to it (versions share among themselves by birth, which
//! is not counted), and by each node that names it and is not replaced by a copy in the same tree.
//!
//! Letting go of a block that is counted counts it down; of one that is not frees it. Of nodes:
//! - a subtree that ends goes no further down at a node that others hold: what is below is theirs;
//! - where a node is replaced by a copy, the copy takes the children over. If others hold the old
//!   node, it keeps them too, and each child is counted once more: now, when the old one is let go,
//!   which may be long after the copy was made, when a snapshot goes that had it. So of blocks let
//!   go together nodes come first, the tall ones before the others;
//! - a subtree of a version that shares some of it with its parent by birth: what others hold of it
//!   they hold by themselves from then on, and each block of the parent's below is counted once
//!   more ([`DeadKind::Kept`]), before the version lets go of the top. Meanwhile no version ends.
//!
//! Births below a node are those of the tree in which it was made: through a cloned pointer all of
//! them are read as its own (see [`Pointer`]).
//!
//! Counts are changed by consistency points alone. What is linked is counted before anything that
//! died in the same epoch is let go.

use super::core::*;
use super::error::{Error, Result};
use super::planted::{planted, Mutation};
use super::reclaim::children;
use super::store::Data;
use super::tree::Slot;
use super::work::Work;
use crate::device::Block;
use fs_layout::{count_in, put_count, Inode as DiskInode, InodeKind, Pointer, COUNTS_PER_BLOCK};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::Arc;

/// A count that is not known or went too high: its block is never freed.
const STUCK: u32 = u32::MAX;

/// A block of counts.
struct Page {
    /// `None`: it cannot be read, and all counts in it are stuck.
    raw: Option<Box<Block>>,
    is_changed: bool,
}

/// The counts that a consistency point looked at.
#[derive(Default)]
pub(crate) struct Counts {
    pages: BTreeMap<u64, Page>,
}

impl Core {
    /// What a root says of clones.
    pub fn load_counts(&self) -> Result<()> {
        let there = match self.inode(COUNTS) {
            Ok(file) => !file.state.read().gone,
            Err(Error::Stale) => false,
            Err(e) => return Err(e),
        };
        self.counted.store(there, Ordering::Release);
        Ok(())
    }

    /// Is any block counted, perhaps?
    pub fn has_counts(&self) -> bool {
        self.counted.load(Ordering::Acquire)
    }

    fn read_counts(&self, page: u64) -> Result<Option<Box<Block>>> {
        let file = self.inode(COUNTS)?;
        Ok(self.read_block(&file, page)?.map(|d| d.bytes.clone()))
    }

    /// The first block of a file of the volume table that is no hole, from `from` on.
    pub fn seek_file_block(&self, file: &Inode, from: u64) -> Result<Option<u64>> {
        let held = Held::new(&self.store);
        loop {
            let end = super::tree::reach(file.state.read().tree.height);
            let found = file.state.read().tree.seek(&held, from, end, true);
            match found {
                Ok(found) => return Ok(found),
                Err(miss) => held.fetch(miss)?,
            }
        }
    }

    /// By how much the pointers to a block are more than one, as the last consistency point left
    /// it.
    pub fn clones_of(&self, block: u64) -> Result<u32> {
        if !self.has_counts() {
            return Ok(0);
        }
        let page = self.read_counts(block / COUNTS_PER_BLOCK)?;
        Ok(page.map_or(0, |raw| count_in(&raw.0, block)))
    }
}

impl Work<'_> {
    fn counts_of(&mut self, block: u64) -> Result<&mut Page> {
        let number = block / COUNTS_PER_BLOCK;
        if block >= self.core.space.blocks() {
            return Err(Error::Corrupt { block, file_offset_bytes: None });
        }
        if !self.counts.pages.contains_key(&number) {
            let raw = match self.core.has_counts() {
                false => Some(Block::zeroed()),
                true => match self.core.read_counts(number) {
                    Ok(raw) => Some(raw.unwrap_or_else(Block::zeroed)),
                    Err(Error::Corrupt { .. } | Error::Io(_)) => None,
                    Err(e) => return Err(e),
                },
            };
            self.counts.pages.insert(number, Page { raw, is_changed: false });
        }
        self.counts.pages.get_mut(&number).ok_or(Error::Invalid("a page of counts is gone"))
    }

    /// How often a block is cloned.
    pub fn count_of(&mut self, block: u64) -> Result<u32> {
        if !self.core.has_counts() {
            return Ok(0);
        }
        let page = self.counts_of(block)?;
        Ok(page.raw.as_ref().map_or(STUCK, |raw| count_in(&raw.0, block)))
    }

    fn set_count(&mut self, block: u64, count: u32) -> Result<()> {
        let page = self.counts_of(block)?;
        if let Some(raw) = page.raw.as_mut() {
            put_count(&mut raw.0, block, count);
            page.is_changed = true;
        }
        Ok(())
    }

    /// One pointer more leads to a block.
    pub fn count_up(&mut self, block: u64) -> Result<()> {
        if !self.core.has_counts() {
            self.new_table_file(COUNTS, InodeKind::Counts, 0)?;
            self.core.counted.store(true, Ordering::Release);
        }
        if planted(Mutation::CloneNotCounted) {
            return Ok(());
        }
        let count = self.count_of(block)?;
        self.set_count(block, count.saturating_add(1))
    }

    /// What is below cannot be known: the block is never freed.
    pub fn stick(&mut self, block: u64) -> Result<()> {
        match self.core.has_counts() {
            true => self.set_count(block, STUCK),
            false => Ok(()),
        }
    }

    /// Lets go of a block; true: nobody else holds it, and it is freed.
    pub fn let_go(&mut self, block: u64) -> Result<bool> {
        match self.count_of(block)? {
            0 => {
                self.freed.push(block);
                return Ok(true);
            }
            STUCK => {}
            count => self.set_count(block, count - 1)?,
        }
        Ok(false)
    }

    /// Lets go of a node that was replaced by a copy.
    pub fn let_go_node(&mut self, node: &Pointer) -> Result<()> {
        if self.let_go(node.block)? {
            return Ok(());
        }
        match children(&self.core.store, node) {
            Ok(below) => below.iter().try_for_each(|p| self.count_up(p.block)),
            // Whoever lets go of it last must not go further down.
            Err(Error::Corrupt { .. } | Error::Io(_) | Error::Format(_)) => self.stick(node.block),
            Err(e) => Err(e),
        }
    }

    /// Takes over what a repair counted, before anything else is.
    pub fn recount(&mut self, cp: &mut CpState) -> Result<()> {
        let Some(counts) = cp.recounted.take().filter(|_| self.core.has_counts()) else {
            return Ok(());
        };
        self.empty(COUNTS.ino)?;
        counts.into_iter().try_for_each(|(block, count)| self.set_count(block, count))
    }

    /// Writes what changed; a page of zeros becomes a hole.
    pub fn write_counts(&mut self) -> Result<()> {
        let epoch = self.epoch;
        let pages = std::mem::take(&mut self.counts.pages);
        let changed = pages.into_iter().filter(|(_, page)| page.is_changed);
        let changed: Vec<_> = changed.filter_map(|(at, page)| Some((at, page.raw?))).collect();
        if changed.is_empty() {
            return Ok(());
        }
        let file = self.core.inode(COUNTS)?;
        for (at, raw) in changed {
            let empty = raw.0.iter().all(|b| *b == 0);
            let data = Data::new(raw);
            self.meta_change(&file, TABLE, epoch, |tree, c| match empty {
                true => tree.punch(c, at, 1),
                false => tree.link(c, at, Slot::Data(epoch, data.clone())),
            })?;
        }
        self.changed.insert(COUNTS.ino);
        Ok(())
    }

    /// A new inode of the volume table.
    pub fn new_table_file(
        &mut self,
        id: super::types::NodeId,
        kind: InodeKind,
        owner: u64,
    ) -> Result<Arc<Inode>> {
        let mut meta = DiskInode::empty(kind);
        meta.version.parent = owner;
        let inode = Arc::new(Inode::new(id, meta, self.core.volume(TABLE)?));
        self.core.inodes.insert(id, inode.clone());
        self.changed.insert(id.ino);
        Ok(inode)
    }
}
