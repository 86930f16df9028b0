//! Names: look-up, create, link, unlink, rename, attributes, extended attributes.
//!
//! Every change holds its volume's `names` lock, reads what it needs, builds a transaction and
//! applies it in one step. An unlinked inode that is open moves to its volume's directory of
//! orphans, from which its last close (or the next mount) frees it.

use super::core::{Core, Inode, ORPHANS_INO};
use super::dir::{check_name, DirEdit, Found};
use super::error::{Error, Result};
use super::inode::{attr_of, disk_kind, new_inode};
use super::planted::{planted, Mutation};
use super::txn::Txn;
use super::types::*;
use crate::device::{Block, BLOCK_BYTES};
use fs_layout::{Inode as DiskInode, InodeKind};
use std::sync::atomic::Ordering;
use std::sync::Arc;

/// Links of an inode.
const MAX_LINKS: u32 = 65_000;
const BS: usize = BLOCK_BYTES;

fn orphan_name(ino: u64) -> String {
    format!("{ino:x}")
}

impl Core {
    pub fn directory(&self, id: NodeId) -> Result<Arc<Inode>> {
        let dir = self.live(id)?;
        let kind = dir.state.read().meta.kind;
        if kind != InodeKind::Directory {
            return Err(Error::NotDirectory);
        }
        Ok(dir)
    }

    pub fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Attr> {
        let d = self.directory(dir)?;
        match name {
            b"." => return attr_of(&d),
            b".." => return self.parent(dir).and_then(|p| attr_of(&*self.live(p)?)),
            _ if name.len() > MAX_NAME_BYTES => return Err(Error::NameTooLong),
            _ => {}
        }
        for _ in 0..8 {
            let found = self.dir_find(&d, name)?.ok_or(Error::NotFound)?;
            match self.live(NodeId { volume: dir.volume, ino: found.ino }).and_then(|i| attr_of(&i))
            {
                Err(Error::Stale) => continue, // Unlinked between the two steps.
                other => return other,
            }
        }
        Err(Error::NotFound)
    }

    pub fn parent(&self, dir: NodeId) -> Result<NodeId> {
        let d = self.directory(dir)?;
        let ino = d.state.read().meta.parent_ino;
        Ok(NodeId { volume: dir.volume, ino: if ino == 0 { dir.ino } else { ino } })
    }

    pub fn setattr(&self, id: NodeId, change: &SetAttr) -> Result<Attr> {
        self.writable()?;
        let inode = self.live(id)?;
        if let Some(size) = change.size_bytes {
            self.check_regular(&inode)?;
            self.truncate_file(&inode, size)?;
        }
        let mut txn = Txn::new(self, true);
        let (c, time) = (change.clone(), self.time());
        txn.edit(&inode, move |m| {
            m.mode = c.mode.map_or(m.mode, |v| v & 0o7777);
            m.uid = c.uid.unwrap_or(m.uid);
            m.gid = c.gid.unwrap_or(m.gid);
            m.atime = c.atime.map_or(m.atime, |t| t.0);
            m.mtime = c.mtime.map_or(m.mtime, |t| t.0);
            m.ctime = if c.keep_ctime { m.ctime } else { time };
        });
        txn.keep_alive(&inode);
        txn.commit()?;
        attr_of(&inode)
    }

    /// An inode that a transaction makes: free until it is applied.
    pub fn unborn(&self, near: &Inode, ino: u64) -> Result<Arc<Inode>> {
        let id = NodeId { volume: near.id.volume, ino };
        self.check_inode_block(id)?;
        let empty = DiskInode::empty(InodeKind::Free);
        let inode = Arc::new(Inode::new(id, empty, near.volume.clone()));
        self.inodes.insert(id, inode.clone());
        Ok(inode)
    }

    /// The block that will hold a new inode's record must be readable: the consistency point will
    /// have to read it.
    pub fn check_inode_block(&self, id: NodeId) -> Result<()> {
        match self.read_inode(id) {
            Ok(_) | Err(Error::Stale) => Ok(()),
            Err(e) => Err(e),
        }
    }

    pub fn create(&self, dir: NodeId, name: &[u8], node: NewNode, owner: Owner) -> Result<Attr> {
        check_name(name)?;
        let d = self.directory(dir)?;
        let _names = d.volume.names.lock();
        let mut edit = DirEdit::new(self, d.clone())?;
        let mut txn = Txn::new(self, false);
        if edit.find(&txn, name)?.is_some() {
            return Err(Error::Exists);
        }
        let kind = match node {
            NewNode::File => InodeKind::File,
            NewNode::Directory => InodeKind::Directory,
            NewNode::Symlink(target) if target.len() >= BS => return Err(Error::NameTooLong),
            NewNode::Symlink(_) => InodeKind::Symlink,
            NewNode::Special(kind, _) => disk_kind(kind),
        };
        if kind == InodeKind::Directory && d.state.read().meta.nlink >= MAX_LINKS {
            return Err(Error::TooManyLinks);
        }
        let inode = self.unborn(&d, d.volume.take_ino())?;
        let mut meta = new_inode(kind, owner, self.now(), self.time());
        match node {
            NewNode::Directory => {
                meta.parent_ino = dir.ino;
                txn.edit(&d, |m| m.nlink += 1);
            }
            NewNode::Symlink(target) => {
                meta.size = target.len() as u64;
                let mut raw = Block::zeroed();
                raw.0[..target.len()].copy_from_slice(target);
                txn.write(&inode, 0, raw);
            }
            NewNode::Special(_, rdev) => meta.rdev = rdev,
            NewNode::File => {}
        }
        edit.insert(&mut txn, name, inode.id.ino, kind as u8)?;
        txn.make(&inode, meta);
        match txn.commit() {
            Ok(()) => attr_of(&inode),
            Err(e) => {
                self.inodes.remove(&inode.id);
                Err(e)
            }
        }
    }

    pub fn link(&self, id: NodeId, dir: NodeId, name: &[u8]) -> Result<Attr> {
        check_name(name)?;
        if id.volume != dir.volume {
            return Err(Error::CrossVolume);
        }
        let d = self.directory(dir)?;
        let _names = d.volume.names.lock();
        let inode = self.live(id)?;
        let (kind, nlink) = {
            let s = inode.state.read();
            (s.meta.kind, s.meta.nlink)
        };
        if kind == InodeKind::Directory {
            return Err(Error::IsDirectory);
        }
        if nlink == 0 {
            return Err(Error::NotFound);
        }
        if nlink >= MAX_LINKS {
            return Err(Error::TooManyLinks);
        }
        let mut edit = DirEdit::new(self, d.clone())?;
        let mut txn = Txn::new(self, false);
        if edit.find(&txn, name)?.is_some() {
            return Err(Error::Exists);
        }
        edit.insert(&mut txn, name, id.ino, kind as u8)?;
        self.add_links(&mut txn, &inode, 1);
        txn.commit()?;
        attr_of(&inode)
    }

    fn add_links(&self, txn: &mut Txn, inode: &Arc<Inode>, by: i32) {
        let time = self.time();
        txn.edit(inode, move |m| {
            m.nlink = m.nlink.saturating_add_signed(by);
            m.ctime = time;
        });
        txn.keep_alive(inode);
    }

    /// The inode lost a name (a directory: its only one). Without names it ends, or waits for its
    /// last close among the orphans.
    fn drop_name(&self, txn: &mut Txn, inode: &Arc<Inode>) -> Result<()> {
        let (kind, nlink, xattr) = {
            let s = inode.state.read();
            (s.meta.kind, s.meta.nlink, s.meta.xattr_ino)
        };
        if kind != InodeKind::Directory && nlink > 1 {
            self.add_links(txn, inode, -1);
            return Ok(());
        }
        // Counted under `names`: an open that came later finds no name.
        if inode.opens.load(Ordering::SeqCst) > 0 {
            let id = NodeId { volume: inode.id.volume, ino: ORPHANS_INO };
            let mut orphans = DirEdit::new(self, self.inode(id)?)?;
            if !planted(Mutation::OrphanForgotten) {
                let name = orphan_name(inode.id.ino);
                orphans.insert(txn, name.as_bytes(), inode.id.ino, kind as u8)?;
            }
            let time = self.time();
            txn.edit(inode, move |m| (m.nlink, m.ctime) = (0, time));
            return Ok(());
        }
        self.end_inode(txn, inode, xattr)
    }

    fn end_inode(&self, txn: &mut Txn, inode: &Arc<Inode>, xattr_ino: u64) -> Result<()> {
        if xattr_ino != 0 {
            let id = NodeId { volume: inode.id.volume, ino: xattr_ino };
            txn.free(&self.inode(id)?);
        }
        txn.free(inode);
        Ok(())
    }

    pub fn unlink(&self, dir: NodeId, name: &[u8]) -> Result<()> {
        let d = self.directory(dir)?;
        let _names = d.volume.names.lock();
        let mut edit = DirEdit::new(self, d.clone())?;
        let mut txn = Txn::new(self, true);
        let found = edit.find(&txn, name)?.ok_or(Error::NotFound)?;
        if found.kind == InodeKind::Directory as u8 {
            return Err(Error::IsDirectory);
        }
        let inode = self.live(NodeId { volume: dir.volume, ino: found.ino })?;
        edit.remove(&mut txn, name)?;
        self.drop_name(&mut txn, &inode)?;
        txn.commit()?;
        self.free_if_closed(&inode);
        Ok(())
    }

    /// A last close that came between the decision and the commit saw a name still. Under `names`.
    fn free_if_closed(&self, inode: &Arc<Inode>) {
        if inode.opens.load(Ordering::SeqCst) == 0 {
            // A failure leaves an orphan, which the next mount frees.
            let _ = self.free_orphan(inode);
        }
    }

    pub fn rmdir(&self, dir: NodeId, name: &[u8]) -> Result<()> {
        let d = self.directory(dir)?;
        let _names = d.volume.names.lock();
        let mut edit = DirEdit::new(self, d.clone())?;
        let mut txn = Txn::new(self, true);
        let found = edit.find(&txn, name)?.ok_or(Error::NotFound)?;
        let inode = self.live(NodeId { volume: dir.volume, ino: found.ino })?;
        self.check_empty_directory(&inode)?;
        edit.remove(&mut txn, name)?;
        txn.edit(&d, |m| m.nlink = m.nlink.saturating_sub(1));
        self.drop_name(&mut txn, &inode)?;
        txn.commit()?;
        self.free_if_closed(&inode);
        Ok(())
    }

    fn check_empty_directory(&self, inode: &Inode) -> Result<()> {
        let s = inode.state.read();
        match (s.meta.kind, s.meta.entries) {
            (InodeKind::Directory, 0) => Ok(()),
            (InodeKind::Directory, _) => Err(Error::NotEmpty),
            _ => Err(Error::NotDirectory),
        }
    }

    pub fn rename(
        &self,
        dir: NodeId,
        name: &[u8],
        to_dir: NodeId,
        to_name: &[u8],
        mode: RenameMode,
    ) -> Result<()> {
        check_name(name)?;
        check_name(to_name)?;
        if dir.volume != to_dir.volume {
            return Err(Error::CrossVolume);
        }
        let (d, t) = (self.directory(dir)?, self.directory(to_dir)?);
        let _names = d.volume.names.lock();
        let mut from = DirEdit::new(self, d.clone())?;
        let to = DirEdit::new(self, t.clone())?;
        let target = to.find(&Txn::new(self, false), to_name)?;
        // It may use the reserve only where it frees something: a new name can take blocks for
        // good.
        let frees = mode == RenameMode::Replace && target.is_some();
        let mut txn = Txn::new(self, frees);
        let source = from.find(&txn, name)?.ok_or(Error::NotFound)?;
        if dir == to_dir && name == to_name {
            return if mode == RenameMode::NoReplace { Err(Error::Exists) } else { Ok(()) };
        }
        self.check_ancestry(&source, dir, to_dir)?;
        let source_inode = self.live(NodeId { volume: dir.volume, ino: source.ino })?;
        // One edit where both names are in one directory, so that each sees the other's change.
        let mut to = if dir == to_dir { None } else { Some(to) };
        match (target, mode) {
            (Some(_), RenameMode::NoReplace) => return Err(Error::Exists),
            (None, RenameMode::Exchange) => return Err(Error::NotFound),
            (Some(other), RenameMode::Exchange) => {
                self.check_ancestry(&other, to_dir, dir)?;
                from.replace(&mut txn, name, other.ino, other.kind)?;
                let into = to.as_mut().unwrap_or(&mut from);
                into.replace(&mut txn, to_name, source.ino, source.kind)?;
                let other_inode = self.live(NodeId { volume: dir.volume, ino: other.ino })?;
                self.moved(&mut txn, &other_inode, &other, &t, &d);
            }
            (Some(other), _) if other.ino == source.ino => return Ok(()),
            (target, _) => {
                from.remove(&mut txn, name)?;
                let into = to.as_mut().unwrap_or(&mut from);
                match target {
                    None => into.insert(&mut txn, to_name, source.ino, source.kind)?,
                    Some(other) => {
                        self.replace_target(&mut txn, &source, &other, &t)?;
                        into.replace(&mut txn, to_name, source.ino, source.kind)?;
                    }
                }
            }
        }
        self.moved(&mut txn, &source_inode, &source, &d, &t);
        txn.commit()?;
        if let Some(other) = target.filter(|_| frees) {
            if let Ok(inode) = self.inode(NodeId { volume: dir.volume, ino: other.ino }) {
                self.free_if_closed(&inode);
            }
        }
        Ok(())
    }

    /// A directory cannot be moved below itself.
    fn check_ancestry(&self, what: &Found, from: NodeId, to: NodeId) -> Result<()> {
        if what.kind != InodeKind::Directory as u8 || from == to {
            return Ok(());
        }
        let mut at = to;
        loop {
            if at.ino == what.ino {
                return Err(Error::Invalid("a directory cannot be moved below itself"));
            }
            let up = self.parent(at)?;
            if up == at {
                return Ok(());
            }
            at = up;
        }
    }

    /// An inode moved from one directory to another.
    fn moved(
        &self,
        txn: &mut Txn,
        inode: &Arc<Inode>,
        found: &Found,
        from: &Arc<Inode>,
        to: &Arc<Inode>,
    ) {
        let (time, parent) = (self.time(), to.id.ino);
        let is_dir = found.kind == InodeKind::Directory as u8;
        txn.edit(inode, move |m| {
            m.ctime = time;
            if is_dir {
                m.parent_ino = parent;
            }
        });
        if is_dir && from.id != to.id {
            txn.edit(from, |m| m.nlink = m.nlink.saturating_sub(1));
            txn.edit(to, |m| m.nlink += 1);
        }
    }

    fn replace_target(
        &self,
        txn: &mut Txn,
        source: &Found,
        other: &Found,
        to_dir: &Arc<Inode>,
    ) -> Result<()> {
        let inode = self.live(NodeId { volume: to_dir.id.volume, ino: other.ino })?;
        let source_is_dir = source.kind == InodeKind::Directory as u8;
        let other_is_dir = other.kind == InodeKind::Directory as u8;
        match (source_is_dir, other_is_dir) {
            (true, false) => return Err(Error::NotDirectory),
            (false, true) => return Err(Error::IsDirectory),
            (true, true) => {
                self.check_empty_directory(&inode)?;
                txn.edit(to_dir, |m| m.nlink = m.nlink.saturating_sub(1));
            }
            (false, false) => {}
        }
        self.drop_name(txn, &inode)
    }

    pub fn readlink(&self, id: NodeId) -> Result<Vec<u8>> {
        let inode = self.live(id)?;
        let (kind, size) = {
            let s = inode.state.read();
            (s.meta.kind, s.meta.size as usize)
        };
        if kind != InodeKind::Symlink || size >= BS {
            return Err(Error::Invalid("not a symbolic link"));
        }
        let data = self.read_block(&inode, 0)?;
        Ok(data.map_or_else(|| vec![0; size], |d| d.bytes.0[..size].to_vec()))
    }

    /// The last handle of an inode was closed.
    pub fn closed_last(&self, inode: &Arc<Inode>) -> Result<()> {
        {
            let s = inode.state.read();
            if s.gone || s.meta.nlink > 0 || inode.volume.deleted.load(Ordering::Relaxed) {
                return Ok(());
            }
        }
        let _names = inode.volume.names.lock();
        if inode.opens.load(Ordering::SeqCst) > 0 {
            return Ok(());
        }
        self.free_orphan(inode)
    }

    /// Frees an orphan. The caller holds `names`.
    fn free_orphan(&self, inode: &Arc<Inode>) -> Result<()> {
        let (gone, xattr) = {
            let s = inode.state.read();
            (s.gone || s.meta.nlink > 0, s.meta.xattr_ino)
        };
        let id = NodeId { volume: inode.id.volume, ino: ORPHANS_INO };
        let mut orphans = DirEdit::new(self, self.inode(id)?)?;
        let mut txn = Txn::new(self, true);
        let name = orphan_name(inode.id.ino);
        if gone || orphans.find(&txn, name.as_bytes())?.is_none() {
            return Ok(());
        }
        orphans.remove(&mut txn, name.as_bytes())?;
        self.end_inode(&mut txn, inode, xattr)?;
        txn.commit()
    }

    /// At mount: nobody has orphans open any more.
    pub fn drain_orphans(&self, volume: VolumeId) -> Result<()> {
        let dir = self.inode(NodeId { volume, ino: ORPHANS_INO })?;
        loop {
            let some = self.dir_list(&dir, 0, 256)?;
            if some.is_empty() {
                return Ok(());
            }
            for e in some {
                let inode = self.inode(e.id)?;
                let _names = inode.volume.names.lock();
                self.free_orphan(&inode)?;
            }
        }
    }
}
