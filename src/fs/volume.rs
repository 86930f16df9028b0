//! Volumes: the ordinary tree and one for each LUN. A volume's name is in the directory [`NAMES`];
//! its version inode, whose data is its inode file, is in the volume table.

use super::core::*;
use super::dir::{check_name, DirEdit};
use super::error::{Error, Result};
use super::inode::new_inode;
use super::txn::Txn;
use super::types::*;
use fs_layout::{Inode as DiskInode, InodeKind, INODES_PER_BLOCK};
use std::sync::atomic::Ordering;
use std::sync::Arc;

impl Core {
    pub fn volume_create(&self, name: &str, owner: Owner) -> Result<VolumeId> {
        check_name(name.as_bytes())?;
        let names = self.inode(NAMES)?;
        let _names = names.volume.names.lock();
        let mut edit = DirEdit::new(self, names.clone())?;
        let mut txn = Txn::new(self, false);
        if edit.find(&txn, name.as_bytes())?.is_some() {
            return Err(Error::Exists);
        }
        let ino = names.volume.take_ino();
        let id = VolumeId(u32::try_from(ino).map_err(|_| Error::NoSpace)?);
        edit.insert(&mut txn, name.as_bytes(), ino, InodeKind::Version as u8)?;
        self.make_volume(&mut txn, &names.volume, id, owner);
        let done = txn.commit();
        if done.is_err() {
            self.volumes.remove(&id);
            self.inodes.remove(&NodeId { volume: TABLE, ino });
            self.inodes.retain(|node, _| node.volume != id);
        }
        done.map(|()| id)
    }

    /// A version inode and the two directories every volume has.
    pub fn make_volume(&self, txn: &mut Txn, table: &Arc<Volume>, id: VolumeId, owner: Owner) {
        let volume = Arc::new(Volume::new(FIRST_INO, false));
        self.volumes.insert(id, volume.clone());
        let mut unborn = |node: NodeId, volume: &Arc<Volume>, meta: DiskInode| {
            let empty = DiskInode::empty(InodeKind::Free);
            let inode = Arc::new(Inode::new(node, empty, volume.clone()));
            self.inodes.insert(node, inode.clone());
            txn.make(&inode, meta);
        };
        let (now, time) = (self.now(), self.time());
        let mut version = new_inode(InodeKind::Version, owner, now, time);
        version.version.next_ino = FIRST_INO;
        unborn(NodeId { volume: TABLE, ino: u64::from(id.0) }, table, version);
        let mut root = new_inode(InodeKind::Directory, owner, now, time);
        root.parent_ino = ROOT_INO;
        unborn(NodeId::root(id), &volume, root);
        let orphans = new_inode(InodeKind::Directory, owner, now, time);
        unborn(NodeId { volume: id, ino: ORPHANS_INO }, &volume, orphans);
    }

    pub fn volume_lookup(&self, name: &str) -> Result<Option<VolumeId>> {
        let names = self.inode(NAMES)?;
        let found = self.dir_find(&names, name.as_bytes())?;
        Ok(found.map(|f| VolumeId(f.ino as u32)))
    }

    pub fn volume_list(&self) -> Result<Vec<(String, VolumeId)>> {
        let names = self.inode(NAMES)?;
        let mut out = Vec::new();
        let mut cookie = 0;
        loop {
            let some = self.dir_list(&names, cookie, 256)?;
            let Some(last) = some.last() else { break };
            cookie = last.cookie;
            for e in some {
                let name = String::from_utf8_lossy(&e.name).into_owned();
                out.push((name, VolumeId(e.id.ino as u32)));
            }
        }
        out.retain(|(_, id)| *id != VolumeId::TREE);
        out.sort();
        Ok(out)
    }

    pub fn volume_rename(&self, from: &str, to: &str) -> Result<()> {
        check_name(to.as_bytes())?;
        let names = self.inode(NAMES)?;
        let _names = names.volume.names.lock();
        let mut edit = DirEdit::new(self, names.clone())?;
        let mut txn = Txn::new(self, false);
        let found = edit.find(&txn, from.as_bytes())?.ok_or(Error::NotFound)?;
        if found.ino == u64::from(VolumeId::TREE.0) {
            return Err(Error::Busy);
        }
        if edit.find(&txn, to.as_bytes())?.is_some() {
            return Err(Error::Exists);
        }
        edit.remove(&mut txn, from.as_bytes())?;
        edit.insert(&mut txn, to.as_bytes(), found.ino, found.kind)?;
        txn.commit()
    }

    pub fn volume_delete(&self, name: &str) -> Result<()> {
        let names = self.inode(NAMES)?;
        let _names = names.volume.names.lock();
        let mut edit = DirEdit::new(self, names.clone())?;
        let mut txn = Txn::new(self, true);
        let found = edit.find(&txn, name.as_bytes())?.ok_or(Error::NotFound)?;
        let id = VolumeId(found.ino as u32);
        if id == VolumeId::TREE {
            return Err(Error::Busy);
        }
        self.volume(id)?; // In memory, so that its deletion is seen by all who hold it.
        let version = self.inode_file(id)?;
        let snapshots = version.state.read().meta.version.snapshots;
        if snapshots != 0 {
            let dir = self.inode(NodeId { volume: TABLE, ino: snapshots })?;
            if dir.state.read().meta.entries > 0 {
                return Err(Error::NotEmpty);
            }
            txn.free(&dir);
        }
        edit.remove(&mut txn, name.as_bytes())?;
        txn.end_volume(&version);
        txn.commit()?;
        self.forget_volume(id);
        Ok(())
    }

    /// Drops what is in memory of a volume that was deleted.
    pub fn forget_volume(&self, id: VolumeId) {
        if self.volumes.contains_key(&id) {
            self.inodes.retain(|node, _| node.volume != id);
        }
    }

    /// Data blocks of all files of a volume, in bytes.
    pub fn volume_used_bytes(&self, id: VolumeId) -> Result<u64> {
        let volume = self.volume(id)?;
        let file = self.inode_file(id)?;
        let (mut blocks, mut ino) = (0u64, ROOT_INO);
        while ino < volume.next_ino.load(Ordering::Relaxed) {
            if ino < volume.loaded_ino && ino % INODES_PER_BLOCK == 0 {
                // Inodes that were freed long ago are holes: a number says little of how many live.
                let end = volume.loaded_ino.div_ceil(INODES_PER_BLOCK);
                let next = self.next_inodes(&file, ino / INODES_PER_BLOCK, end)?;
                let next = next.map_or(volume.loaded_ino, |block| block * INODES_PER_BLOCK);
                if next > ino {
                    ino = next;
                    continue;
                }
            }
            match self.inode(NodeId { volume: id, ino }) {
                Ok(inode) => blocks = blocks.saturating_add(inode.state.read().meta.blocks),
                Err(Error::Stale) => {}
                Err(e) => return Err(e),
            }
            ino += 1;
        }
        Ok(blocks.saturating_mul(crate::device::BLOCK_BYTES as u64))
    }

    /// The first block of an inode file that is no hole, from `from` on, before `end`.
    fn next_inodes(&self, file: &Inode, from: u64, end: u64) -> Result<Option<u64>> {
        let _pin = self.pins.pin(&self.epoch);
        let held = Held::new(&self.store);
        loop {
            let found = file.state.read().tree.seek(&held, from, end, true);
            match found {
                Ok(found) => return Ok(found),
                Err(miss) => held.fetch(miss)?,
            }
        }
    }
}
