//! Snapshots and clones, as they are asked for. How they are made and kept is in `version`, `work`
//! and `lists`.
//!
//! A live version's snapshots are names in a directory of the volume table, which a rollback hands
//! over to the version that takes its place. Everything here holds the `names` lock of the volume
//! table, as changes of volumes' names do.

use super::consistency::Consistency;
use super::core::*;
use super::dir::{check_name, DirEdit, Found};
use super::error::{Error, Result};
use super::inode::new_inode;
use super::pool::Fs;
use super::txn::Txn;
use super::types::*;
use fs_layout::{
    Inode as DiskInode, InodeKind, VersionPart, FEATURE_DEAD_NODES, FEATURE_VERSIONS, VERSION_HELD,
};
use std::sync::Arc;

/// Rights of what nobody sees as a file.
const OWNER: Owner = Owner { mode: 0o755, uid: 0, gid: 0 };

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its name among those of its volume.
    pub name: String,
    /// Its own id: a volume that is only read.
    pub id: VolumeId,
    /// The live version it was made of: another one after a rollback.
    pub of: VolumeId,
    /// The epoch that it ended.
    pub epoch: u64,
    /// When it was made.
    pub created: Timestamp,
    /// Held: not deleted until it is released.
    pub held: bool,
    /// Not deleted before this time.
    pub hold_until: Option<Timestamp>,
    /// Whether the application was at rest, and who saw to it.
    pub consistency: Consistency,
}

fn info_of(name: String, id: VolumeId, record: &DiskInode) -> SnapshotInfo {
    let part = &record.version;
    SnapshotInfo {
        name,
        id,
        of: VolumeId(part.branch as u32),
        epoch: part.epoch,
        created: Timestamp(record.btime),
        held: part.flags & VERSION_HELD != 0,
        hold_until: (part.hold_until != 0).then_some(Timestamp(part.hold_until)),
        consistency: Consistency::of(part),
    }
}

impl Fs {
    /// Makes snapshots of several volumes (each named once), of one instant across all who write,
    /// durable on return: one flush. Their ids. `Exists`, `ReadOnly` for a snapshot of a snapshot.
    pub fn snapshot_create(
        &self,
        wanted: &[(VolumeId, &str)],
        consistency: impl Into<Consistency>,
    ) -> Result<Vec<VolumeId>> {
        self.core().snapshot_create(wanted, &consistency.into())
    }

    /// Says anew whether the application was at rest: a hook may learn only afterwards that it was
    /// not.
    pub fn snapshot_note_consistency(
        &self,
        volume: VolumeId,
        name: &str,
        consistency: &Consistency,
    ) -> Result<()> {
        self.core().snapshot_note_consistency(volume, name, consistency)
    }

    /// A volume's snapshots, sorted by name.
    pub fn snapshot_list(&self, volume: VolumeId) -> Result<Vec<SnapshotInfo>> {
        self.core().snapshot_list(volume)
    }

    /// Finds a snapshot by its name.
    pub fn snapshot_lookup(&self, volume: VolumeId, name: &str) -> Result<Option<SnapshotInfo>> {
        self.core().snapshot_lookup(volume, name)
    }

    /// Returns at once, in any order; space comes back in the background, where no other version
    /// has it. Open files of it answer `Stale` afterwards. `Busy` while it is held.
    pub fn snapshot_delete(&self, volume: VolumeId, name: &str) -> Result<()> {
        self.core().snapshot_delete(volume, name)
    }

    /// `NotFound`, `Exists`.
    pub fn snapshot_rename(&self, volume: VolumeId, from: &str, to: &str) -> Result<()> {
        self.core().snapshot_rename(volume, from, to)
    }

    /// The volume as it is now takes the snapshot's place under its name; the old one is deleted,
    /// or gets the name `aside`, in the same step. Its new id.
    pub fn snapshot_refresh(
        &self,
        volume: VolumeId,
        name: &str,
        aside: Option<&str>,
    ) -> Result<VolumeId> {
        self.core().snapshot_refresh(volume, name, aside)
    }

    /// Holds a snapshot, for good (`held`) or until a time, or releases it.
    pub fn snapshot_hold(
        &self,
        volume: VolumeId,
        name: &str,
        held: bool,
        until: Option<Timestamp>,
    ) -> Result<()> {
        self.core().snapshot_hold(volume, name, held, until)
    }

    /// Makes a volume that begins as a snapshot is and shares its blocks. O(1).
    pub fn volume_clone(&self, snapshot: VolumeId, name: &str) -> Result<VolumeId> {
        self.core().volume_clone(snapshot, name)
    }

    /// The volume of this name is again what its snapshot is; what it was before becomes the
    /// snapshot `keep`, and newer snapshots stay. The volume has another id afterwards: this one.
    pub fn volume_rollback(&self, name: &str, snapshot: &str, keep: &str) -> Result<VolumeId> {
        self.core().volume_rollback(name, snapshot, keep)
    }
}

/// Where a live version comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumeInfo {
    /// The version as which the volume began: the same for ever, whatever it is rolled back to.
    pub origin: VolumeId,
    /// It began as a snapshot was: it is a clone, or was rolled back.
    pub is_copy: bool,
    /// When this version was made.
    pub created: Timestamp,
}

/// An epoch kept by name: a base for [`Fs::diff`] that holds no blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bookmark {
    /// Its name among those of its volume's snapshots.
    pub name: String,
    /// The epoch.
    pub epoch: u64,
    /// The live version it was made of: it says nothing of one that took its place by a rollback.
    pub of: VolumeId,
    /// When it was made.
    pub created: Timestamp,
}

impl Fs {
    /// Keeps the epoch of a snapshot under a name, so that the snapshot may be deleted.
    pub fn bookmark_create(&self, volume: VolumeId, snapshot: &str, name: &str) -> Result<()> {
        self.core().bookmark_create(volume, snapshot, name)
    }

    /// A volume's bookmarks, sorted by name.
    pub fn bookmark_list(&self, volume: VolumeId) -> Result<Vec<Bookmark>> {
        self.core().bookmark_list(volume)
    }

    /// `NotFound`.
    pub fn bookmark_delete(&self, volume: VolumeId, name: &str) -> Result<()> {
        self.core().bookmark_delete(volume, name)
    }
}

impl Fs {
    /// Where a live version comes from. `ReadOnly` for a snapshot.
    pub fn volume_info(&self, volume: VolumeId) -> Result<VolumeInfo> {
        let live = self.core().live_version(volume)?;
        let record = live.state.read().meta;
        let created = Timestamp(record.btime);
        Ok(match record.version.branch {
            0 => VolumeInfo { origin: volume, is_copy: false, created },
            first => VolumeInfo { origin: VolumeId(first as u32), is_copy: true, created },
        })
    }
}

impl Core {
    fn bookmark_create(&self, volume: VolumeId, snapshot: &str, name: &str) -> Result<()> {
        check_name(name.as_bytes())?;
        let names = self.inode(NAMES)?;
        let _names = names.volume.names.lock();
        let live = self.live_version(volume)?;
        let mut edit = self.edit_snapshots(&live)?;
        let mut txn = Txn::new(self, false);
        let found = find_kind(&edit, &txn, snapshot, InodeKind::Version)?;
        if edit.find(&txn, name.as_bytes())?.is_some() {
            return Err(Error::Exists);
        }
        let of = self.version_record(VolumeId(found.ino as u32))?.version;
        let inode = self.unborn(&live, live.volume.take_ino())?;
        let mut meta = new_inode(InodeKind::Bookmark, OWNER, self.now(), self.time());
        (meta.version.epoch, meta.version.branch) = (of.epoch, of.branch);
        txn.make(&inode, meta);
        let kind = InodeKind::Bookmark as u8;
        let done = edit.insert(&mut txn, name.as_bytes(), inode.id.ino, kind);
        let done = done.and_then(|()| txn.commit());
        if done.is_err() {
            self.unmake(&[inode.id]);
        }
        done
    }

    fn bookmark_list(&self, volume: VolumeId) -> Result<Vec<Bookmark>> {
        let bookmark = |(name, record): (String, DiskInode), _| Bookmark {
            name,
            epoch: record.version.epoch,
            of: VolumeId(record.version.branch as u32),
            created: Timestamp(record.btime),
        };
        self.list_kind(volume, InodeKind::Bookmark, bookmark)
    }

    fn bookmark_delete(&self, volume: VolumeId, name: &str) -> Result<()> {
        let names = self.inode(NAMES)?;
        let _names = names.volume.names.lock();
        let mut edit = self.edit_snapshots(&*self.live_version(volume)?)?;
        let mut txn = Txn::new(self, true);
        let found = find_kind(&edit, &txn, name, InodeKind::Bookmark)?;
        edit.remove(&mut txn, name.as_bytes())?;
        txn.free(&self.inode(NodeId { volume: TABLE, ino: found.ino })?);
        txn.commit()
    }
}

/// A name in a directory of snapshots that leads to an inode of this kind.
fn find_kind(edit: &DirEdit, txn: &Txn, name: &str, kind: InodeKind) -> Result<Found> {
    let found = edit.find(txn, name.as_bytes())?;
    found.filter(|f| f.kind == kind as u8).ok_or(Error::NotFound)
}

impl Core {
    /// From here on older programs must not open the pool. Durable before the first record of a
    /// version, or of a clone, is in the log. Under `names`.
    pub(super) fn enable(&self, feature: u64) -> Result<()> {
        self.writable()?;
        let old = {
            let mut cp = self.lock_unless_alone(&self.cp).ok_or(Error::Busy)?;
            let old = cp.root.incompatible;
            if old & feature != 0 {
                return Ok(());
            }
            // Before there are versions all dead lists are still to be written.
            let lists = if old & FEATURE_VERSIONS == 0 { FEATURE_DEAD_NODES } else { 0 };
            cp.root.incompatible |= feature | lists;
            old
        };
        if !self.consistency_point_done()? {
            // Who drives the pool alone is within something else: another time.
            if let Some(mut cp) = self.lock_unless_alone(&self.cp) {
                cp.root.incompatible = old;
            }
            return Err(Error::Busy);
        }
        Ok(())
    }

    /// A version's record, without taking it into memory.
    fn version_record(&self, id: VolumeId) -> Result<DiskInode> {
        let node = NodeId { volume: TABLE, ino: u64::from(id.0) };
        match self.inodes.get(&node).map(|i| i.clone()) {
            Some(inode) => Ok(inode.state.read().meta),
            None => self.read_inode(node),
        }
    }

    /// The inode of a volume that is neither deleted nor a snapshot.
    pub(super) fn live_version(&self, id: VolumeId) -> Result<Arc<Inode>> {
        if id == TABLE || self.volume(id)?.is_frozen {
            return Err(Error::ReadOnly);
        }
        self.inode_file(id)
    }

    /// The directory of a live version's snapshots.
    pub(super) fn snapshots_of(&self, live: &Inode) -> Result<Option<Arc<Inode>>> {
        match live.state.read().meta.version.snapshots {
            0 => Ok(None),
            ino => self.inode(NodeId { volume: TABLE, ino }).map(Some),
        }
    }

    fn edit_snapshots<'a>(&'a self, live: &Inode) -> Result<DirEdit<'a>> {
        DirEdit::new(self, self.snapshots_of(live)?.ok_or(Error::NotFound)?)
    }

    /// As `edit_snapshots`; the directory is made where there is none.
    fn grow_snapshots<'a>(
        &'a self,
        txn: &mut Txn<'a>,
        live: &Arc<Inode>,
        made: &mut Vec<NodeId>,
    ) -> Result<DirEdit<'a>> {
        if let Some(dir) = self.snapshots_of(live)? {
            return DirEdit::new(self, dir);
        }
        let dir = self.unborn(live, live.volume.take_ino())?;
        made.push(dir.id);
        txn.make(&dir, new_inode(InodeKind::Directory, OWNER, self.now(), self.time()));
        let ino = dir.id.ino;
        txn.edit(live, move |m| m.version.snapshots = ino);
        Ok(DirEdit::of_new(self, dir))
    }

    /// An inode for one more version: its number has to be one that a volume can have.
    fn unborn_version(&self, beside: &Inode, made: &mut Vec<NodeId>) -> Result<Arc<Inode>> {
        let inode = self.unborn(beside, beside.volume.take_ino())?;
        made.push(inode.id);
        u32::try_from(inode.id.ino).map_err(|_| Error::NoSpace)?;
        Ok(inode)
    }

    /// Puts a new snapshot of a live version into a transaction that freezes; its number.
    fn make_snapshot<'a>(
        &'a self,
        txn: &mut Txn<'a>,
        live: &Arc<Inode>,
        consistency: &Consistency,
        made: &mut Vec<NodeId>,
    ) -> Result<u64> {
        let inode = self.unborn_version(live, made)?;
        let mut meta = new_inode(InodeKind::Version, OWNER, self.now(), self.time());
        let (first_child, branch) = (live.id.ino, live.id.ino);
        meta.version = VersionPart { first_child, branch, ..VersionPart::default() };
        consistency.put(&mut meta.version);
        txn.make(&inode, meta);
        txn.edit(&inode, move |m| (m.version.epoch, m.generation) = (self.now(), self.now()));
        txn.keep_alive(live);
        Ok(inode.id.ino)
    }

    /// Puts a new live version that begins as `origin` is into a transaction; its number. It takes
    /// `replaced`'s place and snapshots, or is a volume of its own.
    fn make_clone<'a>(
        &'a self,
        txn: &mut Txn<'a>,
        origin: &Arc<Inode>,
        replaced: Option<&Inode>,
        made: &mut Vec<NodeId>,
    ) -> Result<u64> {
        let inode = self.unborn_version(origin, made)?;
        let from = origin.state.read().meta;
        let meta = new_inode(InodeKind::Version, OWNER, self.now(), self.time());
        let (snapshots, branch) = replaced.map_or((0, inode.id.ino), |old| {
            let part = old.state.read().meta.version;
            (part.snapshots, if part.branch == 0 { old.id.ino } else { part.branch })
        });
        let version = VersionPart {
            parent: origin.id.ino,
            next_ino: from.version.next_ino,
            snapshots,
            branch,
            ..VersionPart::default()
        };
        txn.make(&inode, DiskInode { root: from.root, height: from.height, version, ..meta });
        Ok(inode.id.ino)
    }

    /// After a transaction that failed: what it would have made is not there.
    fn unmake(&self, made: &[NodeId]) {
        for id in made {
            self.inodes.remove(id);
        }
    }

    /// After a transaction that was to make a live version of a snapshot. What it finds without a
    /// name is freed; a failure leaves that to the next mount.
    fn settle_new(&self, done: Result<VolumeId>, made: &[NodeId]) -> Result<VolumeId> {
        match done {
            Ok(id) => drop(self.drain_orphans(id)),
            Err(_) => self.unmake(made),
        }
        done
    }

    fn snapshot_create(
        &self,
        wanted: &[(VolumeId, &str)],
        consistency: &Consistency,
    ) -> Result<Vec<VolumeId>> {
        let names = self.inode(NAMES)?;
        let _names = names.volume.names.lock();
        self.enable(FEATURE_VERSIONS)?;
        let mut made = Vec::new();
        let build = |made: &mut Vec<NodeId>| {
            let mut txn = Txn::new(self, false);
            let mut ids = Vec::new();
            for (i, (volume, name)) in wanted.iter().enumerate() {
                check_name(name.as_bytes())?;
                if wanted.iter().take(i).any(|w| w.0 == *volume) {
                    return Err(Error::Invalid("a volume is named twice"));
                }
                let live = self.live_version(*volume)?;
                let mut edit = self.grow_snapshots(&mut txn, &live, made)?;
                if edit.find(&txn, name.as_bytes())?.is_some() {
                    return Err(Error::Exists);
                }
                let ino = self.make_snapshot(&mut txn, &live, consistency, made)?;
                edit.insert(&mut txn, name.as_bytes(), ino, InodeKind::Version as u8)?;
                ids.push(VolumeId(ino as u32));
            }
            txn.commit_and_freeze().map(|()| ids)
        };
        let done = build(&mut made);
        if done.is_err() {
            self.unmake(&made);
        }
        done
    }

    fn snapshot_list(&self, volume: VolumeId) -> Result<Vec<SnapshotInfo>> {
        let info = |(name, record): (String, DiskInode), id| info_of(name, id, &record);
        self.list_kind(volume, InodeKind::Version, info)
    }

    /// What a volume's directory of snapshots names of one kind, sorted by name.
    fn list_kind<T>(
        &self,
        volume: VolumeId,
        kind: InodeKind,
        item: impl Fn((String, DiskInode), VolumeId) -> T,
    ) -> Result<Vec<T>> {
        let live = self.live_version(volume)?;
        let Some(dir) = self.snapshots_of(&live)? else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        let mut cookie = 0;
        loop {
            let some = self.dir_list(&dir, cookie, 256)?;
            let Some(last) = some.last() else { break };
            cookie = last.cookie;
            for e in some {
                let id = VolumeId(e.id.ino as u32);
                match self.version_record(id) {
                    Ok(r) if r.kind == kind => {
                        found.push((String::from_utf8_lossy(&e.name).into_owned(), id, r));
                    }
                    // Of another kind, or deleted while it is listed.
                    Ok(_) | Err(Error::Stale) => {}
                    Err(e) => return Err(e),
                }
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(found.into_iter().map(|(name, id, record)| item((name, record), id)).collect())
    }

    fn snapshot_lookup(&self, volume: VolumeId, name: &str) -> Result<Option<SnapshotInfo>> {
        let live = self.live_version(volume)?;
        let Some(dir) = self.snapshots_of(&live)? else { return Ok(None) };
        let found = self.dir_find(&dir, name.as_bytes())?;
        let found = found.filter(|f| f.kind == InodeKind::Version as u8);
        let Some(found) = found else { return Ok(None) };
        let id = VolumeId(found.ino as u32);
        Ok(Some(info_of(name.to_string(), id, &self.version_record(id)?)))
    }

    /// A snapshot that nothing forbids to delete.
    fn deletable(&self, found: &Found) -> Result<Arc<Inode>> {
        let version = self.inode(NodeId { volume: TABLE, ino: found.ino })?;
        let part = version.state.read().meta.version;
        let until = Some(part.hold_until).filter(|until| *until != 0);
        if part.flags & VERSION_HELD != 0 || until.is_some_and(|until| until > self.time()) {
            return Err(Error::Busy);
        }
        Ok(version)
    }

    fn snapshot_delete(&self, volume: VolumeId, name: &str) -> Result<()> {
        let names = self.inode(NAMES)?;
        let _names = names.volume.names.lock();
        let mut edit = self.edit_snapshots(&*self.live_version(volume)?)?;
        let mut txn = Txn::new(self, true);
        let found = find_kind(&edit, &txn, name, InodeKind::Version)?;
        let version = self.deletable(&found)?;
        edit.remove(&mut txn, name.as_bytes())?;
        txn.end_volume(&version);
        txn.commit()?;
        self.forget_volume(VolumeId(found.ino as u32));
        Ok(())
    }

    fn snapshot_rename(&self, volume: VolumeId, from: &str, to: &str) -> Result<()> {
        check_name(to.as_bytes())?;
        let names = self.inode(NAMES)?;
        let _names = names.volume.names.lock();
        let mut edit = self.edit_snapshots(&*self.live_version(volume)?)?;
        // A step of deletions: they must go on in a full pool.
        let mut txn = Txn::new(self, true);
        let found = edit.find(&txn, from.as_bytes())?.ok_or(Error::NotFound)?;
        if edit.find(&txn, to.as_bytes())?.is_some() {
            return Err(Error::Exists);
        }
        edit.remove(&mut txn, from.as_bytes())?;
        edit.insert(&mut txn, to.as_bytes(), found.ino, found.kind)?;
        txn.commit()
    }

    fn snapshot_refresh(
        &self,
        volume: VolumeId,
        name: &str,
        aside: Option<&str>,
    ) -> Result<VolumeId> {
        aside.map_or(Ok(()), |aside| check_name(aside.as_bytes()))?;
        let names = self.inode(NAMES)?;
        let _names = names.volume.names.lock();
        let mut made = Vec::new();
        let build = |made: &mut Vec<NodeId>| {
            let live = self.live_version(volume)?;
            let mut edit = self.edit_snapshots(&live)?;
            let mut txn = Txn::new(self, false);
            let found = find_kind(&edit, &txn, name, InodeKind::Version)?;
            let old = self.deletable(&found)?;
            let ino = self.make_snapshot(&mut txn, &live, &Consistency::default(), made)?;
            edit.replace(&mut txn, name.as_bytes(), ino, InodeKind::Version as u8)?;
            match aside {
                Some(aside) if edit.find(&txn, aside.as_bytes())?.is_some() => {
                    return Err(Error::Exists)
                }
                Some(aside) => edit.insert(&mut txn, aside.as_bytes(), found.ino, found.kind)?,
                None => txn.end_volume(&old),
            }
            txn.commit_and_freeze()?;
            if aside.is_none() {
                self.forget_volume(VolumeId(found.ino as u32));
            }
            Ok(VolumeId(ino as u32))
        };
        let done = build(&mut made);
        if done.is_err() {
            self.unmake(&made);
        }
        done
    }

    fn snapshot_note_consistency(
        &self,
        volume: VolumeId,
        name: &str,
        consistency: &Consistency,
    ) -> Result<()> {
        self.edit_snapshot(volume, name, |part| consistency.put(part))
    }

    fn snapshot_hold(
        &self,
        volume: VolumeId,
        name: &str,
        held: bool,
        until: Option<Timestamp>,
    ) -> Result<()> {
        self.edit_snapshot(volume, name, |part| {
            let other = part.flags & !VERSION_HELD;
            part.flags = other | if held { VERSION_HELD } else { 0 };
            part.hold_until = until.map_or(0, |t| t.0);
        })
    }

    /// Edits what is kept of a snapshot beside its content.
    fn edit_snapshot(
        &self,
        volume: VolumeId,
        name: &str,
        edit: impl Fn(&mut VersionPart),
    ) -> Result<()> {
        let names = self.inode(NAMES)?;
        let _names = names.volume.names.lock();
        let snapshots = self.edit_snapshots(&*self.live_version(volume)?)?;
        let mut txn = Txn::new(self, true);
        let found = find_kind(&snapshots, &txn, name, InodeKind::Version)?;
        let version = self.inode(NodeId { volume: TABLE, ino: found.ino })?;
        txn.edit(&version, |m| edit(&mut m.version));
        txn.commit()
    }

    fn volume_clone(&self, snapshot: VolumeId, name: &str) -> Result<VolumeId> {
        check_name(name.as_bytes())?;
        let names = self.inode(NAMES)?;
        let _names = names.volume.names.lock();
        let mut made = Vec::new();
        let build = |made: &mut Vec<NodeId>| {
            if snapshot == TABLE || !self.volume(snapshot)?.is_frozen {
                return Err(Error::Invalid("a clone is made of a snapshot"));
            }
            let origin = self.inode_file(snapshot)?;
            let mut edit = DirEdit::new(self, names.clone())?;
            let mut txn = Txn::new(self, false);
            if edit.find(&txn, name.as_bytes())?.is_some() {
                return Err(Error::Exists);
            }
            let ino = self.make_clone(&mut txn, &origin, None, made)?;
            edit.insert(&mut txn, name.as_bytes(), ino, InodeKind::Version as u8)?;
            txn.commit()?;
            Ok(VolumeId(ino as u32))
        };
        let done = build(&mut made);
        self.settle_new(done, &made)
    }

    fn volume_rollback(&self, name: &str, snapshot: &str, keep: &str) -> Result<VolumeId> {
        check_name(keep.as_bytes())?;
        let names = self.inode(NAMES)?;
        let _names = names.volume.names.lock();
        let mut made = Vec::new();
        let build = |made: &mut Vec<NodeId>| {
            let mut edit = DirEdit::new(self, names.clone())?;
            let mut txn = Txn::new(self, false);
            let found = edit.find(&txn, name.as_bytes())?.ok_or(Error::NotFound)?;
            let old = VolumeId(found.ino as u32);
            if old == VolumeId::TREE {
                return Err(Error::Invalid("the ordinary tree is not rolled back"));
            }
            let live = self.live_version(old)?;
            let mut dir = self.edit_snapshots(&live)?;
            let to = find_kind(&dir, &txn, snapshot, InodeKind::Version)?;
            if dir.find(&txn, keep.as_bytes())?.is_some() {
                return Err(Error::Exists);
            }
            let to = VolumeId(to.ino as u32);
            self.volume(to)?; // It can be read: its tree is where its record says.
            let kept = self.make_snapshot(&mut txn, &live, &Consistency::default(), made)?;
            dir.insert(&mut txn, keep.as_bytes(), kept, InodeKind::Version as u8)?;
            let ino = self.make_clone(&mut txn, &self.inode_file(to)?, Some(&live), made)?;
            edit.replace(&mut txn, name.as_bytes(), ino, InodeKind::Version as u8)?;
            txn.edit(&live, |m| m.version.snapshots = 0);
            txn.end_volume(&live);
            txn.commit_and_freeze()?;
            self.forget_volume(old);
            Ok(VolumeId(ino as u32))
        };
        let done = build(&mut made);
        self.settle_new(done, &made)
    }
}
