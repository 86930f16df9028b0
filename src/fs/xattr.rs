//! Extended attributes: all of an inode's in one blob, the data of an inode of their own.
//!
//! Blob: for each attribute, name length u16, value length u32, name, value.

use super::core::{Core, Inode};
use super::error::{Error, Result};
use super::inode::new_inode;
use super::txn::Txn;
use super::types::*;
use crate::device::{Block, BLOCK_BYTES};
use fs_layout::{Inode as DiskInode, InodeKind};
use std::sync::Arc;

type List = Vec<(Vec<u8>, Vec<u8>)>;

fn encode(list: &List) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in list {
        out.extend_from_slice(&(name.len() as u16).to_le_bytes());
        out.extend_from_slice(&(value.len() as u32).to_le_bytes());
        out.extend_from_slice(name);
        out.extend_from_slice(value);
    }
    out
}

fn decode(mut blob: &[u8]) -> Result<List> {
    let bad = || Error::Format("extended attributes: a record ends too early".into());
    let mut out = Vec::new();
    while !blob.is_empty() {
        let (head, rest) = blob.split_at_checked(6).ok_or_else(bad)?;
        let name_len = usize::from(u16::from_le_bytes([head[0], head[1]]));
        let value_len = u32::from_le_bytes([head[2], head[3], head[4], head[5]]) as usize;
        let (name, rest) = rest.split_at_checked(name_len).ok_or_else(bad)?;
        let (value, rest) = rest.split_at_checked(value_len).ok_or_else(bad)?;
        out.push((name.to_vec(), value.to_vec()));
        blob = rest;
    }
    Ok(out)
}

impl Core {
    fn xattrs(&self, inode: &Inode) -> Result<List> {
        let ino = inode.state.read().meta.xattr_ino;
        if ino == 0 {
            return Ok(Vec::new());
        }
        let blob = self.inode(NodeId { volume: inode.id.volume, ino })?;
        let size = blob.state.read().meta.size as usize;
        let mut bytes = Vec::new();
        for b in 0..size.min(MAX_XATTR_BYTES).div_ceil(BLOCK_BYTES) {
            match self.read_block(&blob, b as u64)? {
                Some(d) => bytes.extend_from_slice(&d.bytes.0),
                None => bytes.resize(bytes.len() + BLOCK_BYTES, 0),
            }
        }
        bytes.truncate(size);
        decode(&bytes)
    }

    /// Reads without the lock; what changed meanwhile is read again.
    fn xattrs_settled(&self, id: NodeId) -> Result<List> {
        let inode = self.live(id)?;
        for _ in 0..3 {
            let before = inode.volume.changes();
            let found = self.xattrs(&inode);
            if inode.volume.changes() == before {
                return found;
            }
        }
        let _names = inode.volume.names.lock();
        self.xattrs(&inode)
    }

    pub fn xattr_get(&self, id: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        let found = self.xattrs_settled(id)?.into_iter().find(|(n, _)| n == name);
        found.map(|(_, v)| v).ok_or(Error::NoAttribute)
    }

    pub fn xattr_list(&self, id: NodeId) -> Result<Vec<Vec<u8>>> {
        Ok(self.xattrs_settled(id)?.into_iter().map(|(n, _)| n).collect())
    }

    pub fn xattr_set(&self, id: NodeId, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        if name.len() > MAX_NAME_BYTES {
            return Err(Error::NameTooLong);
        }
        if value.len() > MAX_XATTR_BYTES {
            return Err(Error::AttributesTooBig);
        }
        self.xattr_change(id, |list| {
            let at = list.iter().position(|(n, _)| n == name);
            match (at, mode) {
                (Some(_), XattrMode::Create) => return Err(Error::Exists),
                (None, XattrMode::Replace) => return Err(Error::NoAttribute),
                (Some(i), _) => list[i].1 = value.to_vec(),
                (None, _) => list.push((name.to_vec(), value.to_vec())),
            }
            Ok(())
        })
    }

    pub fn xattr_remove(&self, id: NodeId, name: &[u8]) -> Result<()> {
        self.xattr_change(id, |list| {
            let at = list.iter().position(|(n, _)| n == name).ok_or(Error::NoAttribute)?;
            list.remove(at);
            Ok(())
        })
    }

    fn xattr_change(&self, id: NodeId, change: impl FnOnce(&mut List) -> Result<()>) -> Result<()> {
        let inode = self.live(id)?;
        let _names = inode.volume.names.lock();
        let mut list = self.xattrs(&inode)?;
        change(&mut list)?;
        let bytes = encode(&list);
        if bytes.len() > MAX_XATTR_BYTES {
            return Err(Error::AttributesTooBig);
        }
        let mut txn = Txn::new(self, false);
        let ino = inode.state.read().meta.xattr_ino;
        let time = self.time();
        if list.is_empty() {
            if ino != 0 {
                txn.free(&self.inode(NodeId { volume: id.volume, ino })?);
            }
            txn.edit(&inode, move |m| (m.xattr_ino, m.ctime) = (0, time));
        } else {
            let blob = self.xattr_inode(&mut txn, &inode, ino)?;
            txn.clear(&blob);
            for (i, part) in bytes.chunks(BLOCK_BYTES).enumerate() {
                let mut raw = Block::zeroed();
                raw.0[..part.len()].copy_from_slice(part);
                txn.write(&blob, i as u64, raw);
            }
            let (size, blob_ino) = (bytes.len() as u64, blob.id.ino);
            txn.edit(&blob, move |m| m.size = size);
            txn.edit(&inode, move |m| (m.xattr_ino, m.ctime) = (blob_ino, time));
        }
        txn.keep_alive(&inode);
        txn.commit()
    }

    fn xattr_inode(&self, txn: &mut Txn, inode: &Arc<Inode>, ino: u64) -> Result<Arc<Inode>> {
        if ino != 0 {
            return self.inode(NodeId { volume: inode.id.volume, ino });
        }
        let id = NodeId { volume: inode.id.volume, ino: inode.volume.take_ino() };
        self.check_inode_block(id)?;
        let empty = DiskInode::empty(InodeKind::Free);
        let blob = Arc::new(Inode::new(id, empty, inode.volume.clone()));
        self.inodes.insert(id, blob.clone());
        let owner = Owner { mode: 0, uid: 0, gid: 0 };
        txn.make(&blob, new_inode(InodeKind::Xattrs, owner, self.now(), self.time()));
        Ok(blob)
    }
}
