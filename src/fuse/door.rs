//! The file door's state, and who is asking.

use super::errno::Result;
use super::handles::{Handle, Handles};
use super::ids::Node;
use super::names::Maker;
use super::notify::Invalidations;
use super::tree::{Entry, Place, Tree};
use crate::device::BLOCK_BYTES;
use crate::fs::{Clock, File, NewNode, NodeKind, VolumeId};
use dashmap::DashMap;
use fuser::{Errno, FileHandle, INodeNo, RenameFlags, Request};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

/// What all requests share.
pub struct Door {
    /// The shape of the mount.
    pub tree: Arc<Tree>,
    /// What is open.
    pub handles: Handles,
    /// Directories that were removed while the kernel knows them, perhaps as somebody's working
    /// directory: kept until it forgets them. (Files are not: whoever uses one has it open.)
    pub removed: DashMap<INodeNo, File>,
    /// What the kernel is to be told.
    pub notices: Arc<Invalidations>,
    /// For UTIME_NOW.
    pub clock: Arc<dyn Clock>,
    /// Whether reads move access times.
    pub notes_access: bool,
}

impl Door {
    /// A door to this tree; nothing is open.
    pub fn new(tree: Arc<Tree>, notices: Arc<Invalidations>, clock: Arc<dyn Clock>) -> Door {
        let (handles, removed) = (Handles::new(), DashMap::new());
        Door { tree, handles, removed, notices, clock, notes_access: true }
    }
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door").finish_non_exhaustive()
    }
}

/// The process behind a request.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    /// Filesystem user id.
    pub uid: u32,
    /// Filesystem group id.
    pub gid: u32,
    /// Process id (0 if it is in a namespace that this one does not see).
    pub pid: u32,
}

impl Caller {
    /// Who sent this request.
    pub fn of(request: &Request) -> Caller {
        Caller { uid: request.uid(), gid: request.gid(), pid: request.pid() }
    }

    /// Whether a write by this caller leaves set-user-id and set-group-id alone. The kernel would
    /// ask for CAP_FSETID, which a request does not carry: the superuser has it.
    pub fn may_keep_privileges(&self) -> bool {
        self.uid == 0
    }

    /// The caller, if it may not.
    pub fn unprivileged(self) -> Option<Caller> {
        (!self.may_keep_privileges()).then_some(self)
    }

    /// Whether the caller belongs to a group. Requests carry no supplementary groups: the process
    /// is asked for them.
    pub fn is_in_group(&self, gid: u32) -> bool {
        self.uid == 0 || self.gid == gid || self.supplementary_groups().contains(&gid)
    }

    fn supplementary_groups(&self) -> Vec<u32> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid));
        let status = status.unwrap_or_default();
        let groups = status.lines().find_map(|line| line.strip_prefix("Groups:"));
        groups.unwrap_or_default().split_whitespace().filter_map(|id| id.parse().ok()).collect()
    }
}

/// Figures of the pool as statfs(2) has them.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    /// Bytes of a block.
    pub block_bytes: u32,
    /// Blocks of the pool.
    pub total_blocks: u64,
    /// Blocks that can be written now.
    pub free_blocks: u64,
}

impl Door {
    /// statfs(2).
    pub fn statfs(&self) -> Figures {
        let stats = self.tree.fs().stats();
        let block = BLOCK_BYTES as u64;
        Figures {
            block_bytes: BLOCK_BYTES as u32,
            total_blocks: stats.size_bytes / block,
            free_blocks: stats.free_bytes / block,
        }
    }

    /// rmdir(2).
    pub fn rmdir(&self, parent: INodeNo, name: &OsStr) -> Result<()> {
        let dir = self.tree.place(parent)?;
        let going = self.keep_directory(&dir, name);
        self.tree.rmdir(&dir, name.as_bytes())?;
        if let Some((number, directory)) = going {
            self.removed.insert(number, directory);
        }
        Ok(())
    }

    /// rename(2), renameat2(2).
    pub fn rename(
        &self,
        (parent, name): (INodeNo, &OsStr),
        (to_parent, to_name): (INodeNo, &OsStr),
        flags: RenameFlags,
    ) -> Result<()> {
        let (from, to) = (self.tree.place(parent)?, self.tree.place(to_parent)?);
        let replaced = if flags.is_empty() { self.keep_directory(&to, to_name) } else { None };
        self.tree.rename(&from, name.as_bytes(), &to, to_name.as_bytes(), flags)?;
        if let Some((number, directory)) = replaced {
            self.removed.insert(number, directory);
        }
        Ok(())
    }

    /// A directory of the ordinary tree that is about to lose its name.
    fn keep_directory(&self, dir: &Place, name: &OsStr) -> Option<(INodeNo, File)> {
        let id = dir.changeable().ok()?;
        let going = self.tree.fs().lookup(id, name.as_bytes()).ok()?;
        if going.kind != NodeKind::Directory {
            return None;
        }
        let number = Node::Inode(going.id).pack()?;
        Some((number, self.tree.fs().open_file(going.id).ok()?))
    }

    /// Makes a node and says what it is.
    pub fn make(
        &self,
        parent: INodeNo,
        name: &OsStr,
        node: NewNode<'_>,
        maker: Maker,
    ) -> Result<Entry> {
        let dir = self.tree.place(parent)?;
        if let (Place::Snapshots(volume), NewNode::Directory) = (&dir, &node) {
            let made = self.tree.make_snapshot(*volume, name.as_bytes())?;
            return self.tree.describe(&made);
        }
        let made = self.tree.make(&dir, name.as_bytes(), node, maker)?;
        self.tree.describe_as(&Place::Tree(made.id), &made)
    }

    /// readlink(2).
    pub fn readlink(&self, number: INodeNo) -> Result<Vec<u8>> {
        match self.tree.place(number)? {
            Place::Tree(id) | Place::Frozen(id) => {
                self.tree.told(id, Some(0), self.tree.fs().readlink(id))
            }
            _ => Err(Errno::EINVAL),
        }
    }

    /// A directory of the tree is listed from its beginning.
    pub fn note_listing(&self, handle: FileHandle, offset: u64) {
        if offset != 0 || handle.0 == 0 {
            return;
        }
        if let Ok(Handle::Directory(open)) = self.handles.get(handle).as_deref() {
            if open.file.id().volume == VolumeId::TREE {
                self.note_access(&open.file);
            }
        }
    }
}
