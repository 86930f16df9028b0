//! All LUNs of a pool.
//!
//! Invariants: `index` is what the volumes of the pool say; it is changed only under `names` held
//! for writing, after the filesystem was. Two LUNs, or a LUN and an entry of the mount's root,
//! never have names that are equal without regard to case.

use super::attachment::{Attachment, Rights, SessionId, SessionInfo};
use super::attributes::{Settings, Wanted};
use super::change::{check_size, LOGOUT};
use super::changes::{Change, Hub, Subscription};
use super::damage::{BadPlace, Damage};
use super::error::{Error, Result};
use super::history::History;
use super::lease::LeaseTiming;
use super::names::{check_name, key_of};
use super::policies::Policies;
use super::readers::Readers;
use super::sanitize::Sanitizers;
use super::unit::{Found, Lun, Refused, Shared};
use crate::fs::{self, Clock, Fs, NodeId, Owner, VolumeId};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// Entries of the mount's root that are looked at in one call.
const ROOT_PAGE_ENTRIES: usize = 256;

/// How to open a catalog.
#[derive(Clone)]
pub struct CatalogOptions {
    /// Wall clock for the log.
    pub clock: Arc<dyn Clock>,
    /// Times of the lease.
    pub timing: LeaseTiming,
    /// `location` in `attributes`: the pool's devices.
    pub location: Vec<String>,
    /// `redundancy` in `attributes`.
    pub redundancy: String,
}

impl CatalogOptions {
    /// The usual times, no location, redundancy `none`.
    pub fn new(clock: Arc<dyn Clock>) -> CatalogOptions {
        let timing = LeaseTiming::default();
        CatalogOptions { clock, timing, location: Vec::new(), redundancy: "none".into() }
    }
}

/// What a new LUN shall be.
#[derive(Debug, Clone, Default)]
pub struct CreateLun {
    /// Capacity.
    pub size_bytes: u64,
    /// KEY=VALUE as `lun create` takes them.
    pub settings: Vec<(String, String)>,
    /// Owner of its files in the mount.
    pub uid: u32,
    /// Their group.
    pub gid: u32,
}

/// How to delete.
#[derive(Debug, Clone, Copy, Default)]
pub struct DeleteOptions {
    /// Its snapshots too.
    pub recursive: bool,
    /// Although a door has it open: sessions are dropped.
    pub force: bool,
}

/// While it lives no LUN is made under the name that was checked.
#[must_use]
pub struct TreeNameGuard<'a> {
    _names: RwLockReadGuard<'a, ()>,
}

/// All LUNs of a pool.
pub struct Catalog {
    pub(super) shared: Arc<Shared>,
    /// The name space: held for reading by whoever makes an entry of the mount's root.
    pub(super) names: RwLock<()>,
    pub(super) index: RwLock<Index>,
}

#[derive(Default)]
pub(super) struct Index {
    by_name: BTreeMap<String, Arc<Lun>>,
    pub(super) by_volume: HashMap<VolumeId, Arc<Lun>>,
    unusable: Vec<(String, String)>,
}

impl Index {
    pub(super) fn insert(&mut self, lun: Arc<Lun>) {
        self.by_volume.insert(lun.volume(), Arc::clone(&lun));
        self.by_name.insert(key_of(&lun.name()), lun);
    }
}

impl Catalog {
    /// Finds the LUNs of a pool; finishes what a crash interrupted.
    pub fn open(fs: Arc<Fs>, options: CatalogOptions) -> Result<Arc<Catalog>> {
        let hub = Arc::new(Hub::default());
        let shared = Arc::new(Shared {
            fs,
            options,
            hub,
            next_id: AtomicU64::new(1),
            refused: Refused::default(),
            damage: Damage::default(),
            sanitizers: Sanitizers::default(),
            tree: History::default(),
            versions: Mutex::default(),
            readers: Readers::default(),
            policies: Policies::default(),
        });
        shared.damage.load(&shared.fs);
        let mut index = Index::default();
        let volumes = shared.fs.volume_list()?.into_iter();
        for (name, volume) in volumes.filter(|(name, _)| !is_reserved(name)) {
            match Lun::find(&shared, &name, volume) {
                Ok(Found::Lun(lun)) if check_name(&name).is_ok() => index.insert(lun),
                // It is away at the next start, if not now (a pool that is read-only, or full).
                Ok(Found::Unfinished) => drop(shared.fs.volume_delete(&name)),
                Ok(Found::Foreign | Found::Lun(_)) => {
                    index.unusable.push((name, "it does not hold the files of a LUN".to_owned()));
                }
                Err(error) => {
                    let why = error.to_string().replace('\n', "; ");
                    index.unusable.push((name, why));
                }
            }
        }
        let index = RwLock::new(index);
        let catalog = Arc::new(Catalog { shared, names: RwLock::new(()), index });
        let hearing = Arc::downgrade(&catalog);
        catalog.shared.fs.when_lost(Arc::new(move |place| {
            if let Some(catalog) = hearing.upgrade() {
                catalog.note_lost(place);
            }
        }));
        Ok(catalog)
    }

    /// A scrub found a block of which no copy is good: as if a reader had met it.
    fn note_lost(&self, place: &fs::BadPlace) {
        let node = NodeId { volume: place.volume, ino: place.ino };
        let (block, offset) = (place.block, place.offset_bytes);
        let error = fs::Error::Corrupt { block, file_offset_bytes: Some(offset) };
        self.note_error(node, Some(offset), &error);
    }

    /// Volumes that cannot be served as LUNs, and why (damaged ones): for `status`.
    /// [`Catalog::delete`] with force removes them.
    pub fn unusable(&self) -> Vec<(String, String)> {
        self.index.read().unusable.clone()
    }

    /// Goes on with what was left unfinished: for a server.
    pub fn resume(&self) {
        for lun in self.list() {
            lun.resume_sanitize();
        }
    }

    /// Ends the work of [`Catalog::resume`] and its like, before the filesystem is closed.
    pub fn stop(&self) {
        self.shared.sanitizers.stop();
    }

    /// The filesystem below.
    pub fn fs(&self) -> &Arc<Fs> {
        &self.shared.fs
    }

    /// Places that cannot be read, as far as readers and scrubs have met them, and how often one
    /// was met that the list has no room for.
    pub fn bad_places(&self) -> (Vec<BadPlace>, u64) {
        self.shared.damage.list(&self.shared.fs, self.shared.options.clock.now())
    }

    /// A reader of a file beside the LUNs' `data` met `error` at this byte: if it is a bad block it
    /// is listed, and told in the `log` of the LUN it belongs to.
    pub fn note_error(&self, node: NodeId, offset: Option<u64>, error: &fs::Error) {
        let fs::Error::Corrupt { block, file_offset_bytes } = error else { return };
        let offset = file_offset_bytes.or(offset);
        match self.by_volume(node.volume) {
            Some(lun) => lun.unreadable(node, offset, *block),
            None => {
                self.shared.note_damage(node, offset, *block);
            }
        }
    }

    /// Makes a LUN: O(1) in its size. Durable on return.
    pub fn create(&self, name: &str, request: &CreateLun) -> Result<Arc<Lun>> {
        let _names = self.names.write();
        let wanted = self.judge_create(name, request)?;
        let root = Owner { mode: 0o755, uid: request.uid, gid: request.gid };
        let volume = self.shared.fs.volume_create(name, root)?;
        let owner = (request.uid, request.gid);
        let made = Lun::make(&self.shared, name, volume, &wanted, owner).and_then(|lun| {
            self.shared.fs.sync()?;
            Ok(lun)
        });
        let lun = made.inspect_err(|_| drop(self.shared.fs.volume_delete(name)))?;
        lun.log.event("create", json!({"name": name, "size_bytes": wanted.size_bytes}));
        self.index.write().insert(Arc::clone(&lun));
        lun.tell(Change::Created { volume, name: name.to_owned() });
        Ok(lun)
    }

    /// As `create`, but only checks (`--dry-run`).
    pub fn check_create(&self, name: &str, request: &CreateLun) -> Result<()> {
        let _names = self.names.read();
        self.judge_create(name, request).map(drop)
    }

    fn judge_create(&self, name: &str, request: &CreateLun) -> Result<Wanted> {
        check_name(name)?;
        let settings = Settings::default();
        let mut wanted = Wanted { settings, size_bytes: request.size_bytes };
        for (key, value) in &request.settings {
            wanted.set(key, value)?;
        }
        check_size(&wanted)?;
        self.check_free(name, None)?;
        Ok(wanted)
    }

    /// Sorted by name.
    pub fn list(&self) -> Vec<Arc<Lun>> {
        self.index.read().by_name.values().cloned().collect()
    }

    /// Without regard to case; `NotFound`.
    pub fn get(&self, name: &str) -> Result<Arc<Lun>> {
        let found = self.index.read().by_name.get(&key_of(name)).cloned();
        found.ok_or_else(|| Error::NotFound(name.escape_debug().to_string()))
    }

    /// The LUN of a volume.
    pub fn by_volume(&self, volume: VolumeId) -> Option<Arc<Lun>> {
        self.index.read().by_volume.get(&volume).cloned()
    }

    /// The LUN with this [`Lun::id`].
    pub fn by_id(&self, id: VolumeId) -> Option<Arc<Lun>> {
        self.index.read().by_name.values().find(|lun| lun.id() == id).cloned()
    }

    /// `Busy` while a block client is logged in. Durable on return.
    pub fn rename(&self, from: &str, to: &str) -> Result<()> {
        let _names = self.names.write();
        let lun = self.judge_rename(from, to)?;
        let _change = lun.change.lock();
        let old = lun.name();
        if old == to {
            return Ok(());
        }
        self.shared.fs.volume_rename(&old, to)?;
        {
            let mut index = self.index.write();
            index.by_name.remove(&key_of(&old));
            lun.set_name(to);
            index.insert(Arc::clone(&lun));
        }
        lun.log.event("rename", json!({"from": old, "to": to}));
        lun.tell(Change::Renamed { volume: lun.volume(), from: old, to: to.to_owned() });
        Ok(self.shared.fs.sync()?)
    }

    /// As `rename`, but only checks.
    pub fn check_rename(&self, from: &str, to: &str) -> Result<()> {
        let _names = self.names.read();
        self.judge_rename(from, to).map(drop)
    }

    fn judge_rename(&self, from: &str, to: &str) -> Result<Arc<Lun>> {
        let lun = self.get(from)?;
        check_name(to)?;
        self.check_free(to, Some(lun.volume()))?;
        if !lun.users.lock().sessions.is_empty() {
            return Err(lun.busy("renaming", "block clients are logged in", LOGOUT));
        }
        Ok(lun)
    }

    /// `Busy` while a door has it open unless forced, and while it has snapshots unless recursive;
    /// held ones are always in the way. Durable on return; its space comes back in the background.
    pub fn delete(&self, name: &str, options: DeleteOptions) -> Result<()> {
        let _names = self.names.write();
        let _one = self.shared.versions.lock();
        if options.force && self.unusable().iter().any(|(unusable, _)| unusable == name) {
            return self.delete_unusable(name);
        }
        let lun = self.get(name)?;
        self.check_history(&lun, options)?;
        let sessions = close_for_deletion(&lun, options)?;
        let served = lun.served_snapshots();
        let of_snapshots = served.iter().flat_map(|disk| disk.attachments());
        for session in sessions.into_iter().chain(of_snapshots) {
            session.end("the LUN is deleted");
        }
        let name = lun.name();
        let deleted = self.delete_history(&lun);
        let deleted = deleted.and_then(|()| Ok(self.shared.fs.volume_delete(&name)?));
        deleted.inspect_err(|_| lun.users.lock().closed = false)?;
        {
            let mut index = self.index.write();
            index.by_name.remove(&key_of(&name));
            index.by_volume.remove(&lun.volume());
        }
        lun.tell(Change::Removed { volume: lun.volume(), name });
        Ok(self.shared.fs.sync()?)
    }

    fn delete_unusable(&self, name: &str) -> Result<()> {
        self.shared.fs.volume_delete(name)?;
        self.index.write().unusable.retain(|(unusable, _)| unusable != name);
        Ok(self.shared.fs.sync()?)
    }

    /// As `delete`, but only checks.
    pub fn check_delete(&self, name: &str, options: DeleteOptions) -> Result<()> {
        let lun = self.get(name)?;
        self.check_history(&lun, options)?;
        match options.force {
            true => Ok(()),
            false => lun.check_unused("deletion", DELETE_REMEDY),
        }
    }

    /// The file door is about to make `name` in the mount's root: `NameTaken` if a LUN has it. Hold
    /// the guard until the entry is made; make no LUN meanwhile on the same thread.
    pub fn check_tree_name(&self, name: &[u8]) -> Result<TreeNameGuard<'_>> {
        let guard = TreeNameGuard { _names: self.names.read() };
        let name = String::from_utf8_lossy(name);
        match self.index.read().by_name.get(&key_of(&name)) {
            None => Ok(guard),
            Some(lun) => Err(taken(&name, format!("the LUN '{}'", lun.name()))),
        }
    }

    /// Whether neither another LUN nor an entry of the mount's root has the name.
    pub(super) fn check_free(&self, name: &str, but: Option<VolumeId>) -> Result<()> {
        if let Some(lun) = self.index.read().by_name.get(&key_of(name)) {
            if Some(lun.volume()) != but {
                return Err(taken(name, format!("the LUN '{}'", lun.name())));
            }
        }
        let volumes = self.shared.fs.volume_list()?;
        let other =
            volumes.iter().find(|(it, id)| it.eq_ignore_ascii_case(name) && Some(*id) != but);
        if let Some((other, _)) = other {
            return Err(taken(name, format!("a volume that is no LUN, '{other}'")));
        }
        let mut cookie = 0;
        loop {
            let root = NodeId::root(VolumeId::TREE);
            let page = self.shared.fs.readdir(root, cookie, ROOT_PAGE_ENTRIES)?;
            if page.iter().any(|entry| entry.name.eq_ignore_ascii_case(name.as_bytes())) {
                return Err(taken(name, "an entry of the mount's root".to_owned()));
            }
            match page.last() {
                Some(last) => cookie = last.cookie,
                None => return Ok(()),
            }
        }
    }

    /// Writes that were refused since the pool was opened: because the LUN or the client's right is
    /// read-only, and because of a quota.
    pub fn refused_writes(&self) -> (u64, u64) {
        let refused = &self.shared.refused;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (count(&refused.read_only), count(&refused.quota))
    }

    /// Keeps the rates of all sessions recent: to be called about once a second.
    pub fn look_at_figures(&self) {
        let now = self.shared.options.clock.now();
        self.disks().iter().flat_map(|lun| lun.attachments()).for_each(|it| it.look(now));
    }

    /// Sessions of all LUNs and snapshots, sorted by id.
    pub fn sessions(&self) -> Vec<SessionInfo> {
        let mut sessions: Vec<_> = self.disks().iter().flat_map(|lun| lun.sessions()).collect();
        sessions.sort_by_key(|session| session.id);
        sessions
    }

    /// One of them.
    pub fn session(&self, id: SessionId) -> Result<SessionInfo> {
        self.attachment(id).map(|attachment| attachment.info())
    }

    /// Ends it: its I/O answers `Gone`, its connection is closed, its share of the lease ends.
    /// Waits for writes that are under way.
    pub fn drop_session(&self, id: SessionId) -> Result<()> {
        self.attachment(id)?.end("dropped by the administrator");
        Ok(())
    }

    /// Asks what each session may do from now on, and makes it so; `Err` ends it and says why.
    /// Waits for writes that are under way where rights are taken.
    pub fn review_sessions(
        &self,
        judge: &dyn Fn(&SessionInfo, VolumeId) -> std::result::Result<Rights, String>,
    ) {
        for lun in self.disks() {
            for attachment in lun.attachments() {
                match judge(&attachment.info(), lun.id()) {
                    Ok(rights) => attachment.set_rights(rights),
                    Err(why) => attachment.end(&why),
                }
            }
        }
    }

    /// Ends the sessions that `which` names.
    pub fn end_sessions(&self, why: &str, which: &dyn Fn(&SessionInfo) -> bool) {
        let all = self.disks().into_iter().flat_map(|lun| lun.attachments());
        for attachment in all.filter(|attachment| which(&attachment.info())) {
            attachment.end(why);
        }
    }

    fn attachment(&self, id: SessionId) -> Result<Arc<Attachment>> {
        let mut all = self.disks().into_iter().flat_map(|lun| lun.attachments());
        all.find(|attachment| attachment.id() == id).ok_or(Error::NoSession(id.0))
    }

    /// Tells `listener` of every change until the subscription is dropped. See [`Change`].
    pub fn subscribe(&self, listener: Arc<dyn Fn(&Change) + Send + Sync>) -> Subscription {
        self.shared.hub.subscribe(listener)
    }
}

impl fmt::Debug for Catalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.list()).finish()
    }
}

const DELETE_REMEDY: &str = "close them, or add --force";

/// From here on nobody comes in; the sessions that are to be ended.
fn close_for_deletion(lun: &Arc<Lun>, options: DeleteOptions) -> Result<Vec<Arc<Attachment>>> {
    lun.users.lock().closed = true;
    match lun.check_unused("deletion", DELETE_REMEDY) {
        Err(busy) if !options.force => {
            lun.users.lock().closed = false;
            Err(busy)
        }
        _ => Ok(lun.attachments()),
    }
}

/// Volumes whose names begin with a dot are lunfs's own: no LUN, and nothing of the mount.
fn is_reserved(name: &str) -> bool {
    name.starts_with('.')
}

fn taken(name: &str, by: String) -> Error {
    Error::NameTaken { name: name.escape_debug().to_string(), by }
}
