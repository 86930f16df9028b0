//! Reading directories. A listing goes on after the cookie of the last entry seen, without any
//! state between calls, so that it survives removals beside it, other openings and a restart (NFS).
//!
//! Cookies: 1 and 2 are `.` and `..`; ordinary entries and snapshots have the filesystem's
//! (above 15, in ascending order). In the root the LUNs stand among those, at [`LUN_COOKIES`] plus
//! their volume.

use super::attr;
use super::errno::Result;
use super::ids::Node;
use super::snapshots::{shown, time_of};
use super::tree::{Place, Tree};
use crate::fs::{DirEntry, NodeId};
use fuser::{Errno, FileType, INodeNo};

/// Entries asked of the filesystem at a time: about what one kernel buffer of 4 KiB takes.
const BATCH: usize = 64;
/// Where LUNs begin among the cookies of the root: a place that a filesystem's cookie seldom has.
const LUN_COOKIES: u64 = 1 << 62;
const DOT: u64 = 1;
const DOT_DOT: u64 = 2;

/// An entry of a directory.
#[derive(Debug)]
pub struct Item {
    /// What it is.
    pub place: Place,
    /// Its node number.
    pub number: INodeNo,
    /// Its kind.
    pub kind: FileType,
    /// Its name.
    pub name: Vec<u8>,
    /// Where the listing goes on after it.
    pub cookie: u64,
}

impl Tree {
    /// Shows `take` the entries of `dir` after `cookie` until it says that it is full.
    pub fn list(
        &self,
        dir: &Place,
        mut cookie: u64,
        take: &mut dyn FnMut(&Item) -> Result<bool>,
    ) -> Result<()> {
        loop {
            let items = self.some_items(dir, cookie)?;
            let Some(last) = items.last() else {
                return Ok(());
            };
            cookie = last.cookie;
            for item in &items {
                if take(item)? {
                    return Ok(());
                }
            }
        }
    }

    /// A few entries after `cookie`; none at the end.
    fn some_items(&self, dir: &Place, cookie: u64) -> Result<Vec<Item>> {
        if cookie < DOT_DOT {
            let dots = self.dots(dir, cookie)?;
            if !dots.is_empty() {
                return Ok(dots);
            }
        }
        match dir {
            Place::Tree(id) if dir.is_root() => self.root_items(*id, cookie),
            Place::Tree(id) | Place::Frozen(id) => self.inode_items(*id, cookie),
            Place::LunDirectory(lun) => self.inode_items(NodeId::root(lun.volume()), cookie),
            Place::Snapshots(volume) => self.snapshot_items(*volume, cookie, shown),
            Place::Times(volume) => self.snapshot_items(*volume, cookie, time_of),
            Place::LunFile(..) => Err(Errno::ENOTDIR),
        }
    }

    fn dots(&self, dir: &Place, cookie: u64) -> Result<Vec<Item>> {
        let mut out = Vec::new();
        let mut add = |place: Place, name: &[u8], at| -> Result<()> {
            if cookie < at {
                let number = number(&place)?;
                let (kind, name) = (FileType::Directory, name.to_vec());
                out.push(Item { place, number, kind, name, cookie: at });
            }
            Ok(())
        };
        add(dir.clone(), b".", DOT)?;
        // The parent of a directory that was removed is gone; the name `..` stays until it is
        // closed.
        add(self.parent(dir).unwrap_or_else(|_| dir.clone()), b"..", DOT_DOT)?;
        Ok(out)
    }

    fn inode_items(&self, id: NodeId, cookie: u64) -> Result<Vec<Item>> {
        let entries = self.told(id, None, self.fs().readdir(id, cookie, BATCH))?;
        entries.into_iter().map(|entry| self.item(entry)).collect()
    }

    fn item(&self, entry: DirEntry) -> Result<Item> {
        let place = self.place_of(entry.id)?;
        let number = number(&place)?;
        let kind = attr::file_type(entry.kind);
        Ok(Item { place, number, kind, name: entry.name, cookie: entry.cookie })
    }

    /// Merges LUNs into the entries of the root, in the order of their cookies.
    fn root_items(&self, id: NodeId, cookie: u64) -> Result<Vec<Item>> {
        let mut items = self.inode_items(id, cookie)?;
        let reach = match items.last() {
            Some(last) if items.len() >= BATCH => last.cookie,
            _ => u64::MAX,
        };
        for lun in self.catalog().list() {
            let at = LUN_COOKIES + u64::from(lun.volume().0);
            if cookie < at && at <= reach {
                let name = lun.name().into_bytes();
                let place = Place::LunDirectory(lun);
                let number = number(&place)?;
                items.push(Item { place, number, kind: FileType::Directory, name, cookie: at });
            }
        }
        items.sort_by_key(|item| item.cookie);
        Ok(items)
    }
}

/// The node number of a place.
pub fn number(place: &Place) -> Result<INodeNo> {
    let node = match place {
        Place::Snapshots(volume) => Node::Snapshots(*volume),
        Place::Times(volume) => Node::Times(*volume),
        Place::LunDirectory(lun) => Node::Inode(NodeId::root(lun.volume())),
        Place::Tree(id) | Place::LunFile(_, _, id) | Place::Frozen(id) => Node::Inode(*id),
    };
    node.pack().ok_or(Errno::EOVERFLOW)
}
