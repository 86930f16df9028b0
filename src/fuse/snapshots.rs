//! `.snapshots`: the snapshots of a LUN in its directory, those of the ordinary tree in the root.
//!
//! - The directory is virtual. It is found by its name and shown in no listing, so that a copy of
//!   what stands beside it does not bring all its past along.
//! - `mkdir` in it makes a snapshot, `rmdir` deletes one, `mv` renames it; nothing else is made or
//!   removed there (EPERM).
//! - `.by-time` in it, found and not listed too, shows those that are named by their time, made by
//!   commands or policies, under the time alone: file servers that offer earlier versions by time
//!   (Samba's shadow_copy2) know one form of names.
//! - What is in a snapshot never changes (EROFS): the kernel may keep its pages, names and
//!   attributes. Snapshots' own names it may not keep: commands and other clients make and delete
//!   them.

use super::attr;
use super::errno::{OrErrno, Result};
use super::ids::Node;
use super::listing::{number, Item};
use super::tree::{Entry, Place, Tree, LUN_TTL};
use crate::fs::{NodeId, RenameMode, VolumeId, ROOT_INO};
use crate::lun::{time_in_name, Maker, SnapshotWish, POLICY_PREFIX, TREE_NAME};
use fuser::{Errno, FileType};

/// Name of the virtual directory.
pub const SNAPSHOTS: &[u8] = b".snapshots";
/// Name of the one in it that goes by times.
pub const BY_TIME: &[u8] = b".by-time";
/// What others may never do in it, whatever they may do beside it.
const OTHERS_WRITE: u16 = 0o022;
/// Entries asked of the filesystem at a time.
const PAGE: usize = 64;

impl Tree {
    /// Whether this name is that of the virtual directory.
    pub fn is_snapshots(&self, dir: &Place, name: &[u8]) -> bool {
        name == SNAPSHOTS && (dir.is_root() || matches!(dir, Place::LunDirectory(_)))
    }

    /// What commands call that whose snapshots these are.
    fn name_of(&self, volume: VolumeId) -> Result<String> {
        match volume {
            VolumeId::TREE => Ok(TREE_NAME.to_owned()),
            volume => Ok(self.lun(volume)?.name()),
        }
    }

    /// The snapshot of this name.
    pub fn find_snapshot(&self, volume: VolumeId, name: &[u8]) -> Result<Place> {
        let name = shown(name)?;
        let found = self.fs().snapshot_lookup(volume, name).or_errno()?.ok_or(Errno::ENOENT)?;
        self.owners.insert(found.id, volume);
        Ok(Place::Frozen(NodeId::root(found.id)))
    }

    /// The snapshot of this time.
    pub fn find_by_time(&self, volume: VolumeId, name: &[u8]) -> Result<Place> {
        if time_of(name)?.len() != name.len() {
            return Err(Errno::ENOENT);
        }
        match self.find_snapshot(volume, name) {
            Err(Errno::ENOENT) => {
                self.find_snapshot(volume, &[POLICY_PREFIX.as_bytes(), name].concat())
            }
            found => found,
        }
    }

    /// The directory above one in a snapshot.
    pub fn parent_of_frozen(&self, id: NodeId) -> Result<Place> {
        if id.ino != ROOT_INO {
            return Ok(Place::Frozen(self.fs().parent(id).or_errno()?));
        }
        if let Some(volume) = self.owners.get(&id.volume).map(|volume| *volume) {
            if self.check_live(volume).is_ok() {
                return Ok(Place::Snapshots(volume));
            }
        }
        // A handle from before a restart, or of a LUN that was rolled back since.
        let luns = self.catalog().list().into_iter().map(|lun| lun.volume());
        for volume in luns.chain([VolumeId::TREE]) {
            let all = self.fs().snapshot_list(volume).or_errno()?;
            if all.iter().any(|snapshot| snapshot.id == id.volume) {
                self.owners.insert(id.volume, volume);
                return Ok(Place::Snapshots(volume));
            }
        }
        Err(Errno::ESTALE)
    }

    /// Some snapshots after `cookie`, by what `name_of` makes of their names; those of which it
    /// makes none are left out.
    pub fn snapshot_items(
        &self,
        volume: VolumeId,
        cookie: u64,
        name_of: fn(&[u8]) -> Result<&str>,
    ) -> Result<Vec<Item>> {
        let mut page = self.fs().snapshot_page(volume, cookie, PAGE).or_errno()?;
        while let Some(last) = page.last().map(|last| last.cookie) {
            page.retain(|entry| name_of(&entry.name).is_ok());
            if !page.is_empty() {
                break;
            }
            page = self.fs().snapshot_page(volume, last, PAGE).or_errno()?;
        }
        let item = |entry: crate::fs::DirEntry| {
            self.owners.insert(entry.id.volume, volume);
            let place = Place::Frozen(entry.id);
            let number = number(&place)?;
            let (kind, name) = (FileType::Directory, name_of(&entry.name)?.as_bytes().to_vec());
            Ok(Item { place, number, kind, name, cookie: entry.cookie })
        };
        page.into_iter().map(item).collect()
    }

    /// As the directory it stands in, but that only its owner may change it. One link: it does not
    /// count its subdirectories.
    pub fn describe_snapshots(&self, volume: VolumeId, node: Node) -> Result<Entry> {
        let above = self.fs().getattr(NodeId::root(volume)).or_errno()?;
        let mut attr = attr::to_kernel(&above)?;
        attr.ino = node.pack().ok_or(Errno::EOVERFLOW)?;
        attr.perm &= 0o777 & !OTHERS_WRITE;
        (attr.nlink, attr.size, attr.blocks) = (1, 0, 0);
        if let Some(dir) = self.fs().snapshot_dir(volume).or_errno()? {
            attr.mtime = attr::system_time(dir.mtime);
            attr.ctime = attr::system_time(dir.ctime);
        }
        Ok(Entry { attr, generation: above.generation, ttl: LUN_TTL })
    }

    /// mkdir(2).
    pub fn make_snapshot(&self, volume: VolumeId, name: &[u8]) -> Result<Place> {
        let name = std::str::from_utf8(name).map_err(|_| Errno::EINVAL)?;
        let wish = SnapshotWish { of: self.name_of(volume)?, name: Some(name.to_owned()) };
        self.catalog().snapshot_create(&[wish], Maker::User, false).or_errno()?;
        self.find_snapshot(volume, name.as_bytes())
    }

    /// rmdir(2).
    pub fn delete_snapshot(&self, volume: VolumeId, name: &[u8]) -> Result<()> {
        if name == BY_TIME {
            return Err(Errno::EPERM);
        }
        let of = self.name_of(volume)?;
        self.catalog().snapshot_delete(&of, shown(name)?, false).or_errno().map(drop)
    }

    /// rename(2), within one `.snapshots`. Never replaces another one.
    pub fn rename_snapshot(
        &self,
        volume: VolumeId,
        name: &[u8],
        to_dir: &Place,
        to: &[u8],
        mode: RenameMode,
    ) -> Result<()> {
        if name == BY_TIME || !matches!(to_dir, Place::Snapshots(other) if *other == volume) {
            return Err(Errno::EPERM);
        }
        if mode == RenameMode::Exchange {
            return Err(Errno::EINVAL);
        }
        let to = std::str::from_utf8(to).map_err(|_| Errno::EINVAL)?;
        let of = self.name_of(volume)?;
        self.catalog().snapshot_rename(&of, shown(name)?, to).or_errno()
    }
}

/// A name that can be shown: those that begin with a dot are the LUN layer's own.
pub fn shown(name: &[u8]) -> Result<&str> {
    let name = std::str::from_utf8(name).ok().filter(|name| !name.starts_with('.'));
    name.ok_or(Errno::ENOENT)
}

/// The time in a name that can be shown.
pub fn time_of(name: &[u8]) -> Result<&str> {
    time_in_name(shown(name)?).ok_or(Errno::ENOENT)
}
