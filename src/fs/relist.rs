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

/// Consistency points after which a walker that is not done is given up on.
const WALKER_TRIES: u64 = 1 << 20;

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
        let mut missing = Vec::new();
        self.reached(VolumeId(parent as u32), &mut |p| {
            let word = own.get((p.block / 64) as usize).copied().unwrap_or(0);
            if word & 1 << (p.block % 64) == 0 {
                let (pointer, kind) = (*p, DeadKind::Data);
                missing.push(DeadEntry { pointer, depth: 0, kind, volume: 0, ino: 0 });
            }
        })?;
        Ok(missing)
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
