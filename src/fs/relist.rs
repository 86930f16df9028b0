//! A dead list that cannot be read, made anew: all that a version's parent reaches and the version
//! itself does not. Both must be readable wholly; nothing may wait to be walked.

use super::check::Count;
use super::core::{Core, TABLE};
use super::error::{Error, Result};
use super::reclaim::children;
use super::types::*;
use fs_layout::{
    DeadEntry, DeadKind, Inode as DiskInode, InodeKind, Pointer, INODES_PER_BLOCK, INODE_BYTES,
};
use std::sync::atomic::Ordering;

/// Consistency points after which a walker that is not done is given up on.
const WALKER_TRIES: u64 = 1 << 14;

impl Core {
    /// Makes the dead lists of these versions anew, where that can be done; what was done.
    pub(super) fn relist(&self, versions: &[VolumeId]) -> Result<Vec<String>> {
        if versions.is_empty() {
            return Ok(Vec::new());
        }
        for _ in 0..WALKER_TRIES {
            self.consistency_point_forced()?;
            if self.cp.lock().reclaim.len() == 0 {
                break;
            }
        }
        let mut actions = Vec::new();
        for version in versions {
            let entries = match self.missing_in(*version) {
                Ok(entries) => entries,
                Err(Error::Corrupt { .. } | Error::Io(_) | Error::Format(_)) => continue,
                Err(e) => return Err(e),
            };
            let count = entries.len();
            let done = self.consistency_point_with(|cp| {
                cp.relisted.push((*version, entries));
                Ok(true)
            })?;
            if done {
                let name = self.version_names().remove(version);
                let name = name.unwrap_or_else(|| format!("version {}", version.0));
                let what = format!("{count} blocks that only older snapshots have");
                actions.push(format!("{name}: the list of {what} was made anew"));
            }
        }
        Ok(actions)
    }

    /// What the parent of a version has and the version has not, block by block.
    fn missing_in(&self, version: VolumeId) -> Result<Vec<DeadEntry>> {
        let parent = self.version_part(version)?.parent;
        if parent == 0 {
            return Ok(Vec::new());
        }
        let mut own = vec![0u64; self.space.blocks().div_ceil(64) as usize];
        self.reached(version, &mut |p| {
            if let Some(word) = own.get_mut((p.block / 64) as usize) {
                *word |= 1 << (p.block % 64);
            }
        })?;
        let record = self.read_inode(NodeId { volume: TABLE, ino: parent })?;
        let mut missing = Missing { core: self, own, trees: Vec::new(), found: Vec::new() };
        missing.below(&record.root, record.height, true)?;
        while let Some((root, height)) = missing.trees.pop() {
            missing.below(&root, height, false)?;
        }
        Ok(missing.found)
    }

    /// Every block that a version reaches, its ancestors' included.
    fn reached(&self, version: VolumeId, each: &mut dyn FnMut(&Pointer)) -> Result<()> {
        let record = self.read_inode(NodeId { volume: TABLE, ino: u64::from(version.0) })?;
        let mut waiting = vec![(record.root, record.height, true)];
        while let Some((p, height, is_inodes)) = waiting.pop() {
            if p.is_hole() {
                continue;
            }
            each(&p);
            if height > 0 {
                let below = children(&self.store, &p)?;
                waiting.extend(below.into_iter().map(|p| (p, height - 1, is_inodes)));
            } else if is_inodes {
                let raw = self.store.read(&p)?;
                let inodes = raw.bytes.0.chunks_exact(INODE_BYTES);
                for raw in inodes.take(INODES_PER_BLOCK as usize) {
                    let i = DiskInode::decode(raw).map_err(|e| Error::Format(e.to_string()))?;
                    if i.kind != InodeKind::Free {
                        waiting.push((i.root, i.height, false));
                    }
                }
            }
        }
        Ok(())
    }
}

/// What a version has not.
struct Missing<'a> {
    core: &'a Core,
    /// The blocks that it has.
    own: Vec<u64>,
    /// Files of the parent that are still to be looked at.
    trees: Vec<(Pointer, u8)>,
    found: Vec<DeadEntry>,
}

impl Missing<'_> {
    /// Looks at a subtree; does the version have anything of it?
    fn below(&mut self, p: &Pointer, height: u8, is_inodes: bool) -> Result<bool> {
        if p.is_hole() {
            return Ok(false);
        }
        let word = self.own.get((p.block / 64) as usize).copied().unwrap_or(0);
        let is_own = word & 1 << (p.block % 64) != 0;
        if is_inodes {
            // Not cloned: block by block.
            if !is_own {
                self.enter(p, 0, DeadKind::Data);
            }
            return self.below_inodes(p, height).map(|()| is_own);
        }
        if is_own {
            return Ok(true);
        }
        let before = self.found.len();
        let mut some = false;
        if height > 0 {
            for child in children(&self.core.store, p)? {
                some |= self.below(&child, height - 1, false)?;
            }
        }
        if some {
            // Its place took a copy, with what is left of its children.
            let names = self.core.names_nodes.load(Ordering::Acquire);
            let (depth, kind) = if names { (height, DeadKind::Node) } else { (0, DeadKind::Data) };
            self.enter(p, depth, kind);
        } else {
            self.found.truncate(before);
            self.enter(p, height, DeadKind::Data);
        }
        Ok(some)
    }

    fn below_inodes(&mut self, p: &Pointer, height: u8) -> Result<()> {
        if height > 0 {
            for child in children(&self.core.store, p)? {
                self.below(&child, height - 1, true)?;
            }
            return Ok(());
        }
        let raw = self.core.store.read(p)?;
        for raw in raw.bytes.0.chunks_exact(INODE_BYTES).take(INODES_PER_BLOCK as usize) {
            let i = DiskInode::decode(raw).map_err(|e| Error::Format(e.to_string()))?;
            if i.kind != InodeKind::Free {
                self.trees.push((i.root, i.height));
            }
        }
        Ok(())
    }

    fn enter(&mut self, pointer: &Pointer, depth: u8, kind: DeadKind) {
        self.found.push(DeadEntry { pointer: *pointer, depth, kind, volume: 0, ino: 0 });
    }
}

impl Count<'_> {
    /// Versions whose dead lists cannot be read.
    pub(super) fn lost_lists(&self) -> Vec<VolumeId> {
        let list = |f: &super::check::Finding| match f {
            super::check::Finding::DeadList(version) => Some(*version),
            _ => None,
        };
        self.findings.iter().filter_map(list).collect()
    }
}
