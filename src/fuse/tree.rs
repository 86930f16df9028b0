//! The shape of the mount: the ordinary tree, whose root also shows one directory for each LUN, and
//! the rules that hold inside those.
//!
//! - LUN directories live in the root only; a name there belongs to a LUN or to an ordinary entry,
//!   never to both (compared without regard to case, by [`Catalog::check_tree_name`]).
//! - `mv` of a LUN directory renames the LUN, `rmdir` deletes it; both answer EBUSY while it is in
//!   use.
//! - Anything else made, linked, renamed or removed inside a LUN directory is EPERM. One exception:
//!   a file renamed onto `attributes` is applied as if its text had been written there.
//! - `.snapshots` is virtual: `snapshots` has its rules.

use super::attr::{self, S_ISGID, S_ISUID};
use super::errno::{OrErrno, Result};
use super::ids::Node;
use super::notify;
use super::snapshots::{BY_TIME, SNAPSHOTS};
use crate::fs::{self, Attr, Fs, NodeId, Timestamp, VolumeId, ROOT_INO};
use crate::lun::{Catalog, DeleteOptions, Lun};
use dashmap::DashMap;
use fuser::{Errno, FileAttr, FileType, INodeNo};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::Arc;
use std::time::Duration;

/// How long the kernel may keep what it knows of the ordinary tree. No other door changes it, so
/// this only bounds how long a mistake could last.
const TREE_TTL: Duration = Duration::from_secs(60);
/// LUN files change through other doors too: the kernel asks each time.
pub const LUN_TTL: Duration = Duration::ZERO;

/// A file of a LUN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// `data`: the disk.
    Data,
    /// `attributes`: TOML.
    Attributes,
    /// `log`.
    Log,
    /// What else the LUN layer keeps there (`log.1`): read-only.
    Kept,
}

/// What a node of the mount is.
#[derive(Debug, Clone)]
pub enum Place {
    /// Part of the ordinary tree.
    Tree(NodeId),
    /// The directory of a LUN.
    LunDirectory(Arc<Lun>),
    /// A file in it.
    LunFile(Arc<Lun>, Part, NodeId),
    /// `.snapshots` of a LUN's volume, or of the ordinary tree's.
    Snapshots(VolumeId),
    /// `.by-time` in it.
    Times(VolumeId),
    /// Part of a snapshot.
    Frozen(NodeId),
}

impl Place {
    /// The root of the mount.
    pub fn root() -> Place {
        Place::Tree(NodeId::root(VolumeId::TREE))
    }

    /// Whether it is the root of the mount.
    pub fn is_root(&self) -> bool {
        matches!(self, Place::Tree(id) if *id == NodeId::root(VolumeId::TREE))
    }

    /// Its inode; `None` for what is virtual.
    pub fn inode(&self) -> Option<NodeId> {
        match self {
            Place::Tree(id) | Place::LunFile(_, _, id) | Place::Frozen(id) => Some(*id),
            Place::LunDirectory(lun) => Some(NodeId::root(lun.volume())),
            Place::Snapshots(_) | Place::Times(_) => None,
        }
    }

    /// Its inode, to change its attributes; EPERM for what is virtual, EROFS in a snapshot.
    pub fn attributes_of(&self) -> Result<NodeId> {
        match self {
            Place::Frozen(_) => Err(Errno::EROFS),
            place => place.inode().ok_or(Errno::EPERM),
        }
    }

    /// The directory in the ordinary tree in which entries may be made and removed; EROFS in a
    /// snapshot, EPERM elsewhere.
    pub fn changeable(&self) -> Result<NodeId> {
        match self {
            Place::Tree(id) => Ok(*id),
            Place::Frozen(_) => Err(Errno::EROFS),
            _ => Err(Errno::EPERM),
        }
    }
}

/// What the kernel is told of a node, and for how long it may believe it.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Attributes.
    pub attr: FileAttr,
    /// With the node number a handle for ever.
    pub generation: u64,
    /// Of attributes and name alike.
    pub ttl: Duration,
}

/// The shape of the mount.
pub struct Tree {
    catalog: Arc<Catalog>,
    fs: Arc<Fs>,
    /// When LUN names last changed while this mount stood, in nanoseconds of [`Timestamp`]: clients
    /// that cache a directory by its times (NFS) look again.
    names_changed: AtomicI64,
    /// Whose snapshots those are that were looked up: sixteen bytes each.
    pub(super) owners: DashMap<VolumeId, VolumeId>,
}

impl Tree {
    /// The tree of a pool.
    pub fn new(catalog: Arc<Catalog>) -> Tree {
        let fs = Arc::clone(catalog.fs());
        let names_changed = AtomicI64::new(i64::MIN);
        Tree { catalog, fs, names_changed, owners: DashMap::new() }
    }

    /// The LUNs.
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// The errno of a result; a block that cannot be read is told to the operator too.
    pub fn told<T>(&self, id: NodeId, at: Option<u64>, result: fs::Result<T>) -> Result<T> {
        result.inspect_err(|e| self.catalog.note_error(id, at, e)).or_errno()
    }

    /// The filesystem below.
    pub fn fs(&self) -> &Arc<Fs> {
        &self.fs
    }

    /// A LUN appeared, went or changed its name.
    pub fn names_changed(&self, now: Timestamp) {
        self.names_changed.fetch_max(now.0, Ordering::Relaxed);
    }

    /// What the kernel means by a node number; ESTALE if it never was one or its LUN is gone.
    pub fn place(&self, number: INodeNo) -> Result<Place> {
        match Node::unpack(number).ok_or(Errno::ESTALE)? {
            Node::Inode(id) => self.place_of(id),
            Node::Snapshots(volume) => self.check_live(volume).map(|()| Place::Snapshots(volume)),
            Node::Times(volume) => self.check_live(volume).map(|()| Place::Times(volume)),
        }
    }

    /// What an inode is in the mount.
    pub fn place_of(&self, id: NodeId) -> Result<Place> {
        if id.volume == VolumeId::TREE {
            return Ok(Place::Tree(id));
        }
        let Some(lun) = self.catalog.by_volume(id.volume) else {
            let is_snapshot = self.fs.is_snapshot(id.volume).or_errno()?;
            return is_snapshot.then_some(Place::Frozen(id)).ok_or(Errno::ESTALE);
        };
        let part = match id {
            id if id.ino == ROOT_INO => return Ok(Place::LunDirectory(lun)),
            id if id == lun.data_node() => Part::Data,
            id if id == lun.attributes_node() => Part::Attributes,
            id if id == lun.log_node() => Part::Log,
            _ => Part::Kept,
        };
        Ok(Place::LunFile(lun, part, id))
    }

    pub(super) fn lun(&self, volume: VolumeId) -> Result<Arc<Lun>> {
        self.catalog.by_volume(volume).ok_or(Errno::ESTALE)
    }

    /// ESTALE for a volume that has no `.snapshots` here.
    pub(super) fn check_live(&self, volume: VolumeId) -> Result<()> {
        if volume == VolumeId::TREE {
            return Ok(());
        }
        self.lun(volume).map(drop)
    }

    /// The LUN whose directory has this name, letter for letter.
    pub fn lun_named(&self, name: &[u8]) -> Option<Arc<Lun>> {
        let name = std::str::from_utf8(name).ok()?;
        self.catalog.get(name).ok().filter(|lun| lun.name() == name)
    }

    /// Finds `name` in `dir`. `.` is answered for files too: that is how the kernel turns a handle
    /// from before a restart into a node again (FUSE_EXPORT_SUPPORT).
    pub fn find(&self, dir: &Place, name: &[u8]) -> Result<Place> {
        match (dir, name) {
            (dir, b".") => Ok(dir.clone()),
            (dir, b"..") => self.parent(dir),
            (Place::Tree(id), SNAPSHOTS) if dir.is_root() => Ok(Place::Snapshots(id.volume)),
            (Place::LunDirectory(lun), SNAPSHOTS) => Ok(Place::Snapshots(lun.volume())),
            (Place::Tree(id), name) => {
                if let Some(lun) = dir.is_root().then(|| self.lun_named(name)).flatten() {
                    return Ok(Place::LunDirectory(lun));
                }
                Ok(Place::Tree(self.told(*id, None, self.fs.lookup(*id, name))?.id))
            }
            (Place::LunDirectory(lun), name) => {
                let found = self.fs.lookup(NodeId::root(lun.volume()), name).or_errno()?;
                self.place_of(found.id)
            }
            (Place::Snapshots(volume), BY_TIME) => Ok(Place::Times(*volume)),
            (Place::Snapshots(volume), name) => self.find_snapshot(*volume, name),
            (Place::Times(volume), name) => self.find_by_time(*volume, name),
            (Place::Frozen(id), name) => {
                Ok(Place::Frozen(self.told(*id, None, self.fs.lookup(*id, name))?.id))
            }
            (Place::LunFile(..), _) => Err(Errno::ENOTDIR),
        }
    }

    /// The directory above a directory.
    pub fn parent(&self, dir: &Place) -> Result<Place> {
        match dir {
            _ if dir.is_root() => Ok(Place::root()),
            Place::Tree(id) => Ok(Place::Tree(self.fs.parent(*id).or_errno()?)),
            Place::LunDirectory(_) => Ok(Place::root()),
            Place::Snapshots(VolumeId::TREE) => Ok(Place::root()),
            Place::Snapshots(volume) => Ok(Place::LunDirectory(self.lun(*volume)?)),
            Place::Times(volume) => Ok(Place::Snapshots(*volume)),
            Place::Frozen(id) => self.parent_of_frozen(*id),
            Place::LunFile(..) => Err(Errno::ENOTDIR),
        }
    }

    /// What the kernel is told of a node.
    pub fn describe(&self, place: &Place) -> Result<Entry> {
        let id = match place {
            Place::Snapshots(volume) => {
                return self.describe_snapshots(*volume, Node::Snapshots(*volume));
            }
            Place::Times(volume) => return self.describe_snapshots(*volume, Node::Times(*volume)),
            Place::LunDirectory(lun) => NodeId::root(lun.volume()),
            Place::Tree(id) | Place::LunFile(_, _, id) | Place::Frozen(id) => *id,
        };
        self.describe_as(place, &self.fs.getattr(id).or_errno()?)
    }

    /// As `describe`, of attributes that are known already.
    pub fn describe_as(&self, place: &Place, known: &Attr) -> Result<Entry> {
        let mut attr = attr::to_kernel(known)?;
        match place {
            _ if place.is_root() => self.show_luns(&mut attr),
            Place::LunFile(lun, Part::Attributes, _) => {
                attr.size = lun.attributes_toml().or_errno()?.len() as u64;
            }
            _ => {}
        }
        // A write takes these bits away without the kernel's knowing: it shall ask each time.
        let fleeting = known.mode & (S_ISUID | S_ISGID) != 0 && attr.kind != FileType::Directory;
        let ttl = match place {
            Place::Tree(_) if !fleeting => TREE_TTL,
            // A snapshot's own name may go at any time.
            Place::Frozen(id) if id.ino != ROOT_INO => TREE_TTL,
            _ => LUN_TTL,
        };
        Ok(Entry { attr, generation: known.generation, ttl })
    }

    /// The root has one subdirectory more for each LUN, and changed when the last of them did.
    fn show_luns(&self, attr: &mut FileAttr) {
        let luns = u32::try_from(self.catalog.list().len()).unwrap_or(u32::MAX);
        attr.nlink = attr.nlink.saturating_add(luns);
        let changed = self.names_changed.load(Ordering::Relaxed);
        if changed != i64::MIN {
            let changed = attr::system_time(Timestamp(changed));
            attr.mtime = attr.mtime.max(changed);
            attr.ctime = attr.ctime.max(changed);
        }
    }

    /// Removes a directory, or deletes a LUN.
    pub fn rmdir(&self, dir: &Place, name: &[u8]) -> Result<()> {
        if let Place::Snapshots(volume) = dir {
            return self.delete_snapshot(*volume, name);
        }
        if self.is_snapshots(dir, name) {
            return Err(Errno::EPERM);
        }
        let id = dir.changeable()?;
        match dir.is_root().then(|| self.lun_named(name)).flatten() {
            Some(lun) => notify::own_change(|| {
                self.catalog.delete(&lun.name(), DeleteOptions::default()).or_errno()
            }),
            None => self.fs.rmdir(id, name).or_errno(),
        }
    }

    /// Removes what is no directory.
    pub fn unlink(&self, dir: &Place, name: &[u8]) -> Result<()> {
        if self.is_snapshots(dir, name) {
            return Err(Errno::EISDIR);
        }
        let id = dir.changeable()?;
        if dir.is_root() && self.lun_named(name).is_some() {
            return Err(Errno::EISDIR);
        }
        self.fs.unlink(id, name).or_errno()
    }
}

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tree").finish_non_exhaustive()
    }
}
