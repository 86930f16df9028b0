//! What a user calls a version or an inode: found by walking names, for reports of a pool that
//! nobody uses. Where names cannot be read, numbers stand.

use super::core::{Core, TABLE};
use super::error::Result;
use super::types::*;
use fs_layout::{Inode as DiskInode, InodeKind};
use std::collections::{BTreeMap, BTreeSet};

/// Entries of a directory looked at in one go.
const LIST_ENTRIES: usize = 256;

/// An inode by its numbers.
pub(super) fn numbers(id: NodeId) -> String {
    match id.volume {
        TABLE => format!("the pool's own inode {}", id.ino),
        volume => format!("volume {}, inode {}", volume.0, id.ino),
    }
}

impl Core {
    /// Names of live versions and of snapshots (`vm1`, `vm1@monday`, `/@monday`); the ordinary tree
    /// has an empty one.
    pub(super) fn version_names(&self) -> BTreeMap<VolumeId, String> {
        let mut names = BTreeMap::from([(VolumeId::TREE, String::new())]);
        let listed = self.volume_list().unwrap_or_default();
        names.extend(listed.into_iter().map(|(name, id)| (id, name)));
        let live: Vec<(VolumeId, String)> = names.iter().map(|(i, n)| (*i, n.clone())).collect();
        for (id, name) in live {
            let of = if id == VolumeId::TREE { "/" } else { &name };
            for (snapshot, taken) in self.snapshot_names(id).unwrap_or_default() {
                names.insert(taken, format!("{of}@{snapshot}"));
            }
        }
        names
    }

    /// All that a live version's directory of snapshots names, bookmarks included.
    pub(super) fn snapshot_names(&self, live: VolumeId) -> Result<Vec<(String, VolumeId)>> {
        let dir = match self.version_part(live)?.snapshots {
            0 => return Ok(Vec::new()),
            ino => self.inode(NodeId { volume: TABLE, ino })?,
        };
        let (mut found, mut cookie) = (Vec::new(), 0);
        loop {
            let some = self.dir_list(&dir, cookie, LIST_ENTRIES)?;
            let Some(last) = some.last() else { return Ok(found) };
            cookie = last.cookie;
            let name = |e: &DirEntry| String::from_utf8_lossy(&e.name).into_owned();
            found.extend(some.iter().map(|e| (name(e), VolumeId(e.id.ino as u32))));
        }
    }

    /// `vm1/data`, `vm1@monday/data` or `/dir/file` for each of these inodes that a name leads to.
    pub(super) fn names_of(&self, wanted: &BTreeSet<NodeId>) -> BTreeMap<NodeId, String> {
        let mut found = BTreeMap::new();
        if wanted.is_empty() {
            return found;
        }
        let versions = self.version_names();
        let volumes: BTreeSet<VolumeId> = wanted.iter().map(|id| id.volume).collect();
        for volume in volumes.into_iter().filter(|v| *v != TABLE) {
            let Some(name) = versions.get(&volume) else { continue };
            let of_volume = NodeId { volume, ino: 0 }..=NodeId { volume, ino: u64::MAX };
            let mut left: BTreeSet<NodeId> = wanted.range(of_volume).copied().collect();
            let mut waiting = vec![(NodeId::root(volume), format!("{name}/"))];
            let mut seen = BTreeSet::new();
            while let Some((dir, path)) = waiting.pop().filter(|_| !left.is_empty()) {
                if left.remove(&dir) {
                    found.insert(dir, path.clone());
                }
                if seen.insert(dir) {
                    // What cannot be read names nothing.
                    let _ = self.names_in(dir, &path, &mut left, &mut found, &mut waiting);
                }
            }
        }
        found
    }

    /// The same of one.
    pub(super) fn name_of(&self, id: NodeId) -> String {
        self.names_of(&BTreeSet::from([id])).remove(&id).unwrap_or_else(|| numbers(id))
    }

    fn names_in(
        &self,
        dir: NodeId,
        path: &str,
        left: &mut BTreeSet<NodeId>,
        found: &mut BTreeMap<NodeId, String>,
        waiting: &mut Vec<(NodeId, String)>,
    ) -> Result<()> {
        let (dir, mut cookie) = (self.inode(dir)?, 0);
        loop {
            let some = self.dir_list(&dir, cookie, LIST_ENTRIES)?;
            let Some(last) = some.last() else { return Ok(()) };
            cookie = last.cookie;
            for e in some {
                let name = format!("{path}{}", String::from_utf8_lossy(&e.name));
                if e.kind == NodeKind::Directory {
                    waiting.push((e.id, format!("{name}/")));
                } else if left.remove(&e.id) {
                    found.insert(e.id, name);
                }
            }
        }
    }
}

/// Is it a version that was made and never changes?
pub(super) fn is_frozen(record: &DiskInode) -> bool {
    record.kind == InodeKind::Version && record.version.epoch != 0
}
