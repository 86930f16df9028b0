//! Inode records and the attributes shown of them.

use super::core::Inode;
use super::error::{Error, Result};
use super::types::*;
use fs_layout::{Inode as DiskInode, InodeKind};

pub(crate) fn kind_of(kind: InodeKind) -> Result<NodeKind> {
    Ok(match kind {
        InodeKind::File => NodeKind::File,
        InodeKind::Directory => NodeKind::Directory,
        InodeKind::Symlink => NodeKind::Symlink,
        InodeKind::Fifo => NodeKind::Fifo,
        InodeKind::Socket => NodeKind::Socket,
        InodeKind::CharDevice => NodeKind::CharDevice,
        InodeKind::BlockDevice => NodeKind::BlockDevice,
        _ => return Err(Error::Stale),
    })
}

pub(crate) fn disk_kind(kind: NodeKind) -> InodeKind {
    match kind {
        NodeKind::File => InodeKind::File,
        NodeKind::Directory => InodeKind::Directory,
        NodeKind::Symlink => InodeKind::Symlink,
        NodeKind::Fifo => InodeKind::Fifo,
        NodeKind::Socket => InodeKind::Socket,
        NodeKind::CharDevice => InodeKind::CharDevice,
        NodeKind::BlockDevice => InodeKind::BlockDevice,
    }
}

/// A directory entry's hint; volumes appear as directories.
pub(crate) fn kind_from_u8(kind: u8) -> Result<NodeKind> {
    const KINDS: [NodeKind; 7] = [
        NodeKind::File,
        NodeKind::Directory,
        NodeKind::Symlink,
        NodeKind::Fifo,
        NodeKind::Socket,
        NodeKind::CharDevice,
        NodeKind::BlockDevice,
    ];
    let found = KINDS.iter().find(|k| disk_kind(**k) as u8 == kind);
    match found {
        Some(k) => Ok(*k),
        None if kind == InodeKind::Version as u8 => Ok(NodeKind::Directory),
        // Seen by nobody who asks for files.
        None if kind == InodeKind::Bookmark as u8 => Ok(NodeKind::File),
        None => Err(Error::Format("a directory entry of an unknown kind".into())),
    }
}

/// What is shown of an inode.
pub(crate) fn attr_of(inode: &Inode) -> Result<Attr> {
    let s = inode.state.read();
    if s.gone {
        return Err(Error::Stale);
    }
    let m = &s.meta;
    Ok(Attr {
        id: inode.id,
        generation: m.generation,
        kind: kind_of(m.kind)?,
        mode: m.mode,
        uid: m.uid,
        gid: m.gid,
        nlink: m.nlink,
        rdev: m.rdev,
        size_bytes: m.size,
        blocks: m.blocks,
        atime: Timestamp(m.atime),
        mtime: Timestamp(m.mtime),
        ctime: Timestamp(m.ctime),
        btime: Timestamp(m.btime),
    })
}

/// A new inode's record.
pub(crate) fn new_inode(kind: InodeKind, owner: Owner, epoch: u64, time: i64) -> DiskInode {
    DiskInode {
        mode: owner.mode & 0o7777,
        uid: owner.uid,
        gid: owner.gid,
        nlink: if kind == InodeKind::Directory { 2 } else { 1 },
        generation: epoch,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
        ..DiskInode::empty(kind)
    }
}
