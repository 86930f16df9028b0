//! The part of a check that recounts clones.
//!
//! All that is no clone is walked first. Then each clone of a node: one whose block was seen makes
//! it counted once more, of one that nobody else has what is below is its own. What is left must be
//! what the counts say.

use super::{Count, Place};
use crate::fs::core::{Core, COUNTS};
use crate::fs::error::{Error, Result};
use crate::fs::reclaim::children;
use fs_layout::{count_in, DeadEntry, Pointer, COUNTS_PER_BLOCK};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What a check knows of clones.
pub(in crate::fs) struct Clones {
    /// Pointers to a block beyond the first, less those that are not counted yet.
    extra: BTreeMap<u64, i64>,
    /// Blocks that a version shares with its parent, or that its dead list names: somebody must
    /// have them.
    wanted: Vec<u64>,
    /// Data blocks below clones of the file that is walked.
    pub(super) data_blocks: u64,
    /// Data blocks below nodes that were counted: by block and height.
    known: HashMap<(u64, u8), u64>,
    /// What the counts should be, where they are something else.
    recounted: Option<BTreeMap<u64, u32>>,
    /// Clones of nodes, with their height and where they were found.
    pub(super) later: Vec<(Pointer, u8, Place)>,
}

impl Clones {
    pub fn new(words: usize) -> Clones {
        Clones {
            extra: BTreeMap::new(),
            wanted: vec![0; words],
            data_blocks: 0,
            known: HashMap::new(),
            recounted: None,
            later: Vec::new(),
        }
    }

    pub fn want(&mut self, block: u64) {
        if let Some(word) = self.wanted.get_mut((block / 64) as usize) {
            *word |= 1 << (block % 64);
        }
    }

    /// A block that was seen is named again: may it be? A clone may: then its count is what is
    /// wrong, if anything is.
    pub fn again(&mut self, core: &Core, block: u64, is_clone: bool) -> bool {
        let waits = self.extra.get(&block).is_some_and(|n| *n < 0);
        // Counts that cannot be read are told of at the end.
        if !is_clone && !waits && core.clones_of(block).is_ok_and(|n| n == 0) {
            return false;
        }
        *self.extra.entry(block).or_default() += 1;
        true
    }

    /// What an entry of the reclaim list is going to count.
    pub fn wait_to_count(&mut self, core: &Core, entry: &DeadEntry, bound: u64) -> Result<()> {
        let mut waiting = vec![(entry.pointer, entry.depth)];
        while let Some((p, depth)) = waiting.pop() {
            for child in children(&core.store, &p)? {
                if child.birth <= bound {
                    *self.extra.entry(child.block).or_default() -= 1;
                } else if depth > 1 {
                    waiting.push((child, depth - 1));
                }
            }
        }
        Ok(())
    }
}

impl Count<'_> {
    /// A clone of a node: it is followed when all others were; its data is counted now.
    pub(super) fn cloned_tree(&mut self, p: &Pointer, height: u8, shared: bool) -> Result<()> {
        let is_followed = match shared {
            true => self.shared_block(p),
            false => {
                self.clones.later.push((*p, height, self.place.clone()));
                true
            }
        };
        if is_followed && self.counts_blocks {
            self.clones.data_blocks += self.data_below(p, height);
        }
        Ok(())
    }

    /// Data blocks below a node; none where it cannot be read: that is told when it is followed.
    fn data_below(&mut self, p: &Pointer, height: u8) -> u64 {
        if height == 0 {
            return 1;
        }
        if let Some(n) = self.clones.known.get(&(p.block, height)) {
            return *n;
        }
        let below = children(&self.core.store, p).unwrap_or_default();
        let n = below.iter().map(|child| self.data_below(child, height - 1)).sum();
        self.clones.known.insert((p.block, height), n);
        n
    }

    /// What the counts should be, where they are something else and everything could be read.
    pub(in crate::fs) fn recounted_clones(&mut self) -> Option<BTreeMap<u64, u32>> {
        self.clones.recounted.take().filter(|_| self.unread == 0)
    }

    /// Looks at clones, and compares the counts.
    pub(super) fn follow_clones(&mut self) -> Result<()> {
        for (p, height, place) in std::mem::take(&mut self.clones.later) {
            self.place = place;
            self.follow(&p, height)?;
        }
        let words = self.clones.wanted.iter().zip(&self.seen).enumerate();
        let lost = words.filter(|(_, (wanted, seen))| **wanted & !**seen != 0);
        let lost: Vec<u64> =
            lost.map(|(i, (w, s))| i as u64 * 64 + (w & !s).trailing_zeros() as u64).collect();
        self.place = Place::Own(String::new());
        for block in lost {
            self.error(format!("block {block}: a version shares it, and nobody has it"));
        }
        self.place = Place::Own(String::new());
        self.compare_counts()
    }

    fn follow(&mut self, p: &Pointer, height: u8) -> Result<()> {
        if p.is_hole() {
            return Ok(());
        }
        let is_first = !self.is_counted(p.block);
        if !self.mark_as(p.block, p.cloned) || !is_first {
            return Ok(());
        }
        if height == 0 {
            if self.options.data {
                self.verify(0, p);
            }
            return Ok(());
        }
        match children(&self.core.store, p) {
            Ok(below) => below.iter().try_for_each(|child| self.follow(child, height - 1)),
            Err(e) => {
                self.unread(format!("node at block {}: {e}", p.block));
                Ok(())
            }
        }
    }

    fn compare_counts(&mut self) -> Result<()> {
        let mut extra = std::mem::take(&mut self.clones.extra);
        extra.retain(|_, n| *n != 0);
        if !self.core.has_counts() {
            return Ok(());
        }
        let file = self.core.inode(COUNTS)?;
        let mut pages: BTreeSet<u64> = extra.keys().map(|b| b / COUNTS_PER_BLOCK).collect();
        let (mut at, mut is_wrong) = (0, false);
        loop {
            match self.core.seek_file_block(&file, at) {
                Ok(Some(page)) => {
                    pages.insert(page);
                    at = page + 1;
                }
                Ok(None) => break,
                // A node of it: told where the file was walked, as its blocks are.
                Err(Error::Corrupt { .. } | Error::Io(_) | Error::Format(_)) => {
                    is_wrong = true;
                    break;
                }
                Err(e) => return Err(e),
            }
        }
        let limit = self.core.space.blocks();
        for page in pages {
            let raw = match self.core.read_block(&file, page) {
                Ok(raw) => raw,
                // It was told where the file was walked.
                Err(Error::Corrupt { .. } | Error::Io(_)) => {
                    is_wrong = true;
                    continue;
                }
                Err(e) => return Err(e),
            };
            for block in page * COUNTS_PER_BLOCK..(page + 1) * COUNTS_PER_BLOCK {
                let told = raw.as_ref().map_or(0, |raw| count_in(&raw.bytes.0, block));
                let found = extra.get(&block).copied().unwrap_or(0);
                if i64::from(told) != found {
                    is_wrong = true;
                    let beyond = if block >= limit { ", beyond the pool" } else { "" };
                    self.error(format!(
                        "block {block}{beyond}: counted as cloned {told} times, is {found} times"
                    ));
                }
            }
        }
        let count = |(block, n): (u64, i64)| Some((block, u32::try_from(n).ok()?));
        self.clones.recounted = is_wrong.then(|| extra.into_iter().filter_map(count).collect());
        Ok(())
    }
}
