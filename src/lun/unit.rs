//! One LUN: what it is, who uses it, what it logs.
//!
//! Invariants:
//! - `files` are the LUN's files at this moment. A rollback puts others in their place, holding
//!   `gate` for writing: who holds it for reading has the files that count; a reader without it who
//!   finds them stale looks again behind it.
//! - `size_bytes` is the length of `data`: it rises under a read of `gate`, falls under its write,
//!   so that no write which was judged by an older length can make the file longer again.
//! - `generation` rises after what it stands for has changed, and is read before it is: who sees a
//!   generation has seen all it stands for, or will see a higher one.
//! - Locks are taken in the order `change`, `gate`, `users`; the lease's and the log's own are
//!   leaves.

use super::attachment::{AttachRequest, Attachment, SessionInfo};
use super::attributes::{Access, Attributes, Settings, Wanted};
use super::block_io::{BlockError, Geometry, Identity};
use super::catalog::CatalogOptions;
use super::changes::{Change, Hub};
use super::copies;
use super::damage::Damage;
use super::data_file::{DataFile, OpenIntent};
use super::error::{Error, Result};
use super::event_log::{self, BadLines, EventLog, LogLine};
use super::history::History;
use super::identity;
use super::kept::{self, StateFile};
use super::lease::Holder;
use super::lease_room::{LeaseRoom, Noted};
use super::pause::PauseRoom;
use super::policies::Policies;
use super::readers::{OpenSnapshot, Readers};
use super::sanitize::{SanitizeState, Sanitizers, StateWord};
use super::served::Served;
use crate::device::BLOCK_BYTES;
use crate::fs::{self, Attr, File, Fs, NewNode, NodeId, Owner, Timestamp, VolumeId};
use arc_swap::{ArcSwap, Guard};
use parking_lot::{Mutex, RwLock};
use serde_json::{json, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

pub(super) const DATA: &[u8] = b"data";
const LOG: &[u8] = b"log";
const ATTRIBUTES: &[u8] = b"attributes";
/// Use is compared with the threshold after so many bytes: as fine as the resource counts told.
const THRESHOLD_STEP_BYTES: u64 = 1 << 20;

/// What all LUNs of a catalog share.
pub(super) struct Shared {
    pub(super) fs: Arc<Fs>,
    pub(super) options: CatalogOptions,
    pub(super) hub: Arc<Hub>,
    /// Numbers for sessions and file handles.
    pub(super) next_id: AtomicU64,
    pub(super) refused: Refused,
    pub(super) sanitizers: Sanitizers,
    pub(super) damage: Damage,
    /// Names of the ordinary tree's snapshots.
    pub(super) tree: History,
    /// One change of snapshots at a time.
    pub(super) versions: Mutex<()>,
    pub(super) readers: Readers,
    pub(super) policies: Policies,
}

impl Shared {
    /// A reader or a scrub met a bad block. Whether it is news.
    pub(super) fn note_damage(&self, node: NodeId, offset: Option<u64>, block: u64) -> bool {
        let is_new = self.damage.note(node, offset, block, self.options.clock.now());
        if is_new {
            self.damage.keep(&self.fs);
        }
        is_new
    }
}

/// Writes of block clients that were refused since the pool was opened.
#[derive(Debug, Default)]
pub(super) struct Refused {
    /// The LUN, or the client's right, is read-only.
    pub(super) read_only: AtomicU64,
    /// Beyond a quota.
    pub(super) quota: AtomicU64,
}

/// What a volume turned out to be when the pool was opened.
pub(super) enum Found {
    Lun(Arc<Lun>),
    /// Making it was cut short by a crash; it never was anybody's.
    Unfinished,
    /// Not a LUN.
    Foreign,
}

impl Found {
    /// A LUN, or nothing that is left of one.
    pub(super) fn lun(self) -> Result<Arc<Lun>> {
        match self {
            Found::Lun(lun) => Ok(lun),
            Found::Unfinished | Found::Foreign => Err(Error::Gone),
        }
    }
}

/// What commands ask for, without a lock.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) size_bytes: AtomicU64,
    pub(super) block_bytes: AtomicU32,
    pub(super) read_only: AtomicBool,
    pub(super) write_through: AtomicBool,
    pub(super) quota_bytes: AtomicU64,
    pub(super) generation: AtomicU64,
    pub(super) media_changes: AtomicU64,
    pub(super) files_open: AtomicU32,
    /// A reservation of the SCSI layer keeps writers out that do not speak SCSI.
    pub(super) reserved: AtomicBool,
    pub(super) sanitize: StateWord,
    /// `threshold` in percent; 0: none.
    threshold_percent: AtomicU64,
    pub(super) threshold_events: AtomicU64,
    /// The threshold was met, and told of.
    over_threshold: AtomicBool,
    /// Bytes written or freed since use was last compared with the threshold.
    unjudged_bytes: AtomicU64,
    medium_errors: AtomicU64,
}

/// Who has the LUN open.
#[derive(Default)]
pub(super) struct Users {
    pub(super) sessions: BTreeMap<u64, Weak<Attachment>>,
    pub(super) files: BTreeSet<u64>,
    /// It is being deleted: nobody comes in any more.
    pub(super) closed: bool,
}

/// The files of a LUN: others after a rollback.
pub(super) struct Files {
    pub(super) volume: VolumeId,
    pub(super) data: File,
    /// `attributes`.
    pub(super) stored: File,
}

/// What a [`Lun`] is made of.
pub(super) struct Made {
    pub(super) name: String,
    pub(super) id: VolumeId,
    pub(super) identity: VolumeId,
    pub(super) created: Timestamp,
    pub(super) log: EventLog,
    pub(super) state: StateFile,
    pub(super) settings: Settings,
    pub(super) files: Files,
    pub(super) snapshot: Option<OpenSnapshot>,
}

/// A LUN.
pub struct Lun {
    pub(super) shared: Arc<Shared>,
    id: VolumeId,
    /// What serial number and NAA are derived from.
    identity: VolumeId,
    created: Timestamp,
    name: RwLock<String>,
    files: ArcSwap<Files>,
    /// It is a snapshot served as a disk, which this holds open.
    snapshot: Option<OpenSnapshot>,
    pub(super) history: History,
    /// Its snapshots that are served as disks.
    pub(super) served: Served,
    pub(super) state: StateFile,
    pub(super) log: EventLog,
    settings: RwLock<Settings>,
    pub(super) live: Live,
    /// One change of size, settings or name at a time.
    pub(super) change: Mutex<()>,
    /// Writes hold it for reading; what must see none of them in flight takes it for writing.
    pub(super) gate: RwLock<()>,
    pub(super) pause: PauseRoom,
    pub(super) lease: LeaseRoom,
    pub(super) users: Mutex<Users>,
    /// `users` of its attributes: who may attach it, as whoever judges that last told.
    user_texts: RwLock<Vec<String>>,
}

impl Lun {
    /// Makes the three files of a new LUN in its empty volume; `attributes` last, so that a volume
    /// without it is one that a crash left unfinished.
    pub(super) fn make(
        shared: &Arc<Shared>,
        name: &str,
        volume: VolumeId,
        wanted: &Wanted,
        (uid, gid): (u32, u32),
    ) -> Result<Arc<Lun>> {
        let root = NodeId::root(volume);
        let create = |name, mode| {
            let made = shared.fs.create(root, name, NewNode::File, Owner { mode, uid, gid })?;
            shared.fs.open_file(made.id)
        };
        create(DATA, 0o600)?.set_size(wanted.size_bytes)?;
        create(LOG, 0o644)?;
        event_log::replace(&create(ATTRIBUTES, 0o644)?, wanted.settings.to_toml().as_bytes())?;
        Lun::find(shared, name, volume)?.lun()
    }

    /// Looks at a volume.
    pub(super) fn find(shared: &Arc<Shared>, name: &str, volume: VolumeId) -> Result<Found> {
        let root = NodeId::root(volume);
        let info = shared.fs.volume_info(volume)?;
        if info.is_copy {
            copies::settle(shared, volume, &info)?;
        }
        let open = |name: &[u8]| match shared.fs.lookup(root, name) {
            Ok(attr) => Ok(Some(shared.fs.open_file(attr.id)?)),
            Err(fs::Error::NotFound) => Ok(None),
            Err(e) => Err(e),
        };
        let (data, log, stored) = (open(DATA)?, open(LOG)?, open(ATTRIBUTES)?);
        match (data, log, stored) {
            (Some(data), Some(log), Some(stored)) if stored.size_bytes() > 0 => {
                Ok(Found::Lun(Arc::new(Lun::load(
                    shared,
                    name,
                    info.origin,
                    log,
                    Files { volume, data, stored },
                )?)))
            }
            (data, _, stored) => {
                let never_used = match &data {
                    Some(data) => data.attr()?.blocks == 0,
                    None => shared.fs.readdir(root, 0, 1)?.is_empty(),
                };
                let unfinished = never_used && stored.is_none_or(|file| file.size_bytes() == 0);
                Ok(if unfinished { Found::Unfinished } else { Found::Foreign })
            }
        }
    }

    fn load(
        shared: &Arc<Shared>,
        name: &str,
        id: VolumeId,
        log: File,
        files: Files,
    ) -> Result<Lun> {
        let root = NodeId::root(files.volume);
        let clock = Arc::clone(&shared.options.clock);
        let log = EventLog::new(Arc::clone(&shared.fs), root, log, clock);
        let settings = load_settings(&files.stored).unwrap_or_else(|why| {
            if let LoadError::Fs(fs::Error::Corrupt { block, .. }) = &why {
                shared.note_damage(files.stored.id(), Some(0), *block);
            }
            let why = why.to_string();
            log.event("error", json!({"file": "attributes", "why": why}));
            // Whether writing was allowed is not known any more.
            Settings { read_only: true, ..Settings::default() }
        });
        let place = kept::Place { dir: root, like: log.node() };
        let (state, why) = StateFile::load(Arc::clone(&shared.fs), place);
        if let Some(why) = why {
            log.event("error", json!({"file": "state", "why": why}));
        }
        let created = match state.now().created {
            Some(created) => created,
            None => shared.fs.getattr(root)?.btime,
        };
        let name = name.to_owned();
        let identity = id;
        let made =
            Made { name, id, identity, created, log, state, settings, files, snapshot: None };
        let lun = Lun::of(shared, made);
        lun.follow_kept();
        Ok(lun)
    }

    /// Nobody uses it yet.
    pub(super) fn of(shared: &Arc<Shared>, made: Made) -> Lun {
        let settings = made.settings;
        Lun {
            shared: Arc::clone(shared),
            id: made.id,
            identity: made.identity,
            created: made.created,
            name: RwLock::new(made.name),
            live: Live::new(&settings, made.files.data.size_bytes()),
            files: ArcSwap::from_pointee(made.files),
            snapshot: made.snapshot,
            history: History::default(),
            served: Served::default(),
            state: made.state,
            log: made.log,
            lease: LeaseRoom::new(shared.options.timing, settings.access == Access::Shared),
            settings: RwLock::new(settings),
            change: Mutex::new(()),
            gate: RwLock::new(()),
            pause: PauseRoom::default(),
            users: Mutex::default(),
            user_texts: RwLock::default(),
        }
    }

    /// Takes over what outlived the last server.
    fn follow_kept(&self) {
        let kept = self.state.now();
        self.live.reserved.store(kept.reserved, Ordering::Release);
        self.live.sanitize.set(match kept.sanitize {
            None => SanitizeState::Idle,
            Some(found) if found.failed => SanitizeState::Failed { may_exit: found.order.may_exit },
            Some(_) => SanitizeState::Running(0),
        });
        self.follow_pins();
    }

    /// Its name at this moment.
    pub fn name(&self) -> String {
        self.name.read().clone()
    }

    pub(super) fn created(&self) -> Timestamp {
        self.created
    }

    pub(super) fn set_name(&self, name: &str) {
        *self.name.write() = name.to_owned();
    }

    /// What its identity, rights and policy hang on: the volume it was made as. The same for ever.
    pub fn id(&self) -> VolumeId {
        self.id
    }

    /// Whether it is a snapshot that is served as a disk: only read, and no LUN of the catalog.
    pub fn is_snapshot(&self) -> bool {
        self.snapshot.is_some()
    }

    pub(super) fn own_snapshot(&self) -> Option<&OpenSnapshot> {
        self.snapshot.as_ref()
    }

    /// Its volume at this moment: another one after a rollback.
    pub fn volume(&self) -> VolumeId {
        self.files().volume
    }

    pub(super) fn files(&self) -> Guard<Arc<Files>> {
        self.files.load()
    }

    pub(super) fn put_files(&self, files: Files) {
        self.files.store(Arc::new(files));
    }

    /// Reads of `data`: once more where a rollback put another in its place meanwhile.
    pub(super) fn on_data<T>(&self, mut act: impl FnMut(&File) -> fs::Result<T>) -> fs::Result<T> {
        match act(&self.files().data) {
            Err(fs::Error::Stale) => {
                // Whoever is here already may hold the gate.
                let _behind = self.gate.read_recursive();
                act(&self.files().data)
            }
            other => other,
        }
    }

    /// From memory alone; `None`: use [`Lun::on_data`].
    pub(super) fn try_read_data(
        &self,
        offset: u64,
        out: &mut [u8],
        sums: Option<&mut Vec<u32>>,
    ) -> Option<fs::Result<usize>> {
        let read = self.files().data.try_read_summed_at(offset, out, sums)?;
        (!matches!(read, Err(fs::Error::Stale))).then_some(read)
    }

    /// The inode of `data`.
    pub fn data_node(&self) -> NodeId {
        self.files().data.id()
    }

    /// The inode of `attributes` (it stores the settings; what a reader is shown is
    /// [`Lun::attributes_toml`]).
    pub fn attributes_node(&self) -> NodeId {
        self.files().stored.id()
    }

    /// The inode of `log`: the same when the log is cut.
    pub fn log_node(&self) -> NodeId {
        self.log.node()
    }

    /// Attributes of `data`'s inode.
    pub fn data_attr(&self) -> Result<Attr> {
        Ok(self.on_data(|data| data.attr())?)
    }

    /// Everything `attributes` shows.
    pub fn attributes(&self) -> Result<Attributes> {
        let options = &self.shared.options;
        let settings = Settings { serial: self.serial(), ..self.settings() };
        let used_bytes = self.on_data(|data| self.shared.fs.volume_used_bytes(data.id().volume))?;
        Ok(Attributes {
            name: self.name(),
            volume: self.volume(),
            size_bytes: self.size_bytes(),
            settings,
            used_bytes,
            free_bytes: self.shared.fs.stats().free_bytes,
            location: options.location.clone(),
            redundancy: options.redundancy.clone(),
            created: self.created,
            users: self.user_texts.read().clone(),
        })
    }

    /// The settings alone: no I/O.
    pub fn settings(&self) -> Settings {
        self.settings.read().clone()
    }

    /// Length of `data` in bytes; the capacity is that in whole blocks.
    pub fn size_bytes(&self) -> u64 {
        self.live.size_bytes.load(Ordering::Acquire)
    }

    fn serial(&self) -> String {
        match self.settings.read().serial.as_str() {
            "" => self.default_serial(),
            serial => serial.to_owned(),
        }
    }

    pub(super) fn default_serial(&self) -> String {
        identity::default_serial(&self.shared.fs.pool_id(), self.identity)
    }

    /// Size, block sizes and flags at this moment.
    pub fn geometry(&self) -> Geometry {
        let generation = self.live.generation.load(Ordering::Acquire);
        let settings = self.settings.read();
        let block_bytes = u64::from(settings.block_bytes.max(1));
        Geometry {
            size_bytes: self.size_bytes() / block_bytes * block_bytes,
            block_bytes: settings.block_bytes,
            physical_exponent: settings.physical_exponent,
            read_only: settings.read_only,
            rotation_rate: settings.rotation_rate,
            removable: settings.removable,
            write_through: settings.write_through,
            atomic_max_bytes: fs::ATOMIC_WRITE_BYTES as u32,
            generation,
        }
    }

    /// Names as the block doors tell them.
    pub fn identity(&self) -> Identity {
        let settings = self.settings();
        Identity {
            name: self.name(),
            vendor: settings.vendor,
            product: settings.product,
            serial: self.serial(),
            naa: identity::naa(&self.shared.fs.pool_id(), self.identity),
        }
    }

    /// Unreadable ranges that were met since the pool was opened.
    pub fn medium_errors(&self) -> u64 {
        self.live.medium_errors.load(Ordering::Relaxed)
    }

    /// Adds `{"time": …, "event": event, …fields}` to `log`.
    pub fn append_log(&self, event: &str, fields: Value) -> Result<()> {
        Ok(self.log.event_now(event, fields)?)
    }

    /// As [`Lun::append_log`] for what clients cause: events that come too often are left out and
    /// counted, and a log that cannot be written stops nobody.
    pub fn note(&self, event: &'static str, fields: Value) {
        self.log.event(event, fields);
    }

    /// What `users` of its attributes shows.
    pub fn set_users(&self, users: Vec<String>) {
        *self.user_texts.write() = users;
    }

    /// The owner's own lines, through the mount; cuts the log where needed.
    pub fn append_log_bytes(&self, bytes: &[u8]) -> Result<()> {
        Ok(self.log.raw(bytes)?)
    }

    /// `log.1` and `log`, oldest line first.
    pub fn read_log(&self) -> Result<Vec<LogLine>> {
        let (lines, bad) = self.log.lines()?;
        self.unreadable_lines(&bad);
        Ok(lines)
    }

    /// What `log` gained since `cursor` (0: all of it), and the next cursor: for `lun log -f`.
    pub fn read_log_after(&self, cursor: u64) -> Result<(Vec<u8>, u64)> {
        let (bytes, next, bad) = self.log.after(cursor)?;
        self.unreadable_lines(&bad);
        Ok((bytes, next))
    }

    fn unreadable_lines(&self, bad: &[BadLines]) {
        bad.iter().for_each(|bad| self.unreadable(bad.node, Some(bad.offset_bytes), bad.block));
    }

    /// A block client logs in.
    pub fn attach(self: &Arc<Self>, request: AttachRequest) -> Result<Arc<Attachment>> {
        Attachment::login(self, request, true)
    }

    /// As [`Lun::attach`], in the name of a client that is about something else (a copy): what it
    /// left behind of the lease when its connection was lost goes on to wait for its return.
    pub fn attach_beside(self: &Arc<Self>, request: AttachRequest) -> Result<Arc<Attachment>> {
        Attachment::login(self, request, false)
    }

    /// `data` is opened through the mount (truncated too where that was asked).
    pub fn open_file(self: &Arc<Self>, intent: OpenIntent) -> Result<DataFile> {
        DataFile::open(self, intent)
    }

    /// Its block sessions.
    pub(super) fn attachments(&self) -> Vec<Arc<Attachment>> {
        self.users.lock().sessions.values().filter_map(Weak::upgrade).collect()
    }

    /// Sessions of its block clients, sorted by id.
    pub fn sessions(&self) -> Vec<SessionInfo> {
        self.attachments().iter().map(|attachment| attachment.info()).collect()
    }

    /// Handles of `data` open through the mount.
    pub fn open_files(&self) -> usize {
        self.users.lock().files.len()
    }

    /// Who holds the lease.
    pub fn lease_holder(&self) -> Holder {
        let (holder, noted) = self.lease.holder();
        self.log_lease(noted, "");
        holder
    }

    /// The contents may have changed behind the block clients' backs.
    pub(super) fn media_changed(&self) {
        self.live.media_changes.fetch_add(1, Ordering::AcqRel);
        self.live.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Bytes of blocks behind `data`.
    pub(super) fn data_used_bytes(&self) -> Result<u64> {
        Ok(self
            .on_data(|data| data.attr())?
            .blocks
            .saturating_mul(crate::device::BLOCK_BYTES as u64))
    }

    /// `bytes` were written or freed: now and then use is compared with the threshold. Block
    /// clients are told once each time it is met (SBC-3 §4.7.3.8).
    pub(super) fn judge_threshold(&self, bytes: u64) {
        let live = &self.live;
        let percent = live.threshold_percent.load(Ordering::Acquire);
        if percent == 0
            || live.unjudged_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes
                < THRESHOLD_STEP_BYTES
        {
            return;
        }
        live.unjudged_bytes.store(0, Ordering::Relaxed);
        let Ok(used_bytes) = self.data_used_bytes() else { return };
        let over =
            u128::from(used_bytes) * 100 >= u128::from(self.size_bytes()) * u128::from(percent);
        if live.over_threshold.swap(over, Ordering::AcqRel) || !over {
            return;
        }
        live.threshold_events.fetch_add(1, Ordering::AcqRel);
        live.generation.fetch_add(1, Ordering::AcqRel);
        self.log.event("threshold", json!({"percent": percent, "used_bytes": used_bytes}));
    }

    pub(super) fn put_settings(&self, settings: &Settings) -> Result<()> {
        event_log::replace(&self.files().stored, settings.to_toml().as_bytes())?;
        self.take_settings(settings);
        Ok(())
    }

    /// From here on these count, which `attributes` holds already.
    pub(super) fn take_settings(&self, settings: &Settings) {
        let mut current = self.settings.write();
        self.live.generation.fetch_add(1, Ordering::AcqRel);
        *current = settings.clone();
        self.live.follow(settings);
    }

    pub(super) fn tell(&self, change: Change) {
        self.shared.hub.tell(&change);
    }

    /// Logs what a step of the lease did; `who` did it.
    pub(super) fn log_lease(&self, noted: Noted, who: &str) {
        if noted.block_expired {
            let why = "the grace after a lost connection is over";
            self.log.event("lease", json!({"state": "ended", "why": why}));
        }
        if noted.began {
            self.log.event("lease", json!({"state": "begun", "by": who}));
        }
        if noted.ended {
            self.log.event("lease", json!({"state": "ended", "by": who}));
        }
    }

    /// Maps an error of the filesystem for a block door; unreadable data is counted and logged.
    pub(super) fn block_error(&self, error: fs::Error, offset: u64) -> BlockError {
        match error {
            fs::Error::NoSpace => BlockError::NoSpace,
            fs::Error::TooBig => BlockError::OutOfRange,
            fs::Error::ReadOnly => BlockError::ReadOnly,
            fs::Error::Stale | fs::Error::NotFound => BlockError::Gone,
            fs::Error::Invalid(why) => BlockError::Invalid(why),
            fs::Error::Corrupt { block, file_offset_bytes } => {
                let offset_bytes = file_offset_bytes.unwrap_or(offset).max(offset);
                self.medium_error(block, offset_bytes);
                BlockError::Medium { offset_bytes }
            }
            other => BlockError::Io(other.to_string()),
        }
    }

    pub(super) fn medium_error(&self, block: u64, offset_bytes: u64) {
        self.unreadable(self.files().data.id(), Some(offset_bytes), block);
    }

    /// A block of one of its files cannot be read: counted, listed, and logged once.
    pub(super) fn unreadable(&self, node: NodeId, offset: Option<u64>, block: u64) {
        self.live.medium_errors.fetch_add(1, Ordering::Relaxed);
        if !self.shared.note_damage(node, offset, block) {
            return;
        }
        let mut fields = json!({
            "kind": "medium",
            "why": "the block does not match its checksum",
            "lun": self.name(),
            "file": self.file_name(node),
            "block": block,
        });
        if let Some(offset) = offset {
            let start = offset - offset % BLOCK_BYTES as u64;
            fields["offset_bytes"] = start.into();
            fields["length_bytes"] = BLOCK_BYTES.into();
            if let Some((lba, blocks)) = self.blocks_at(node, start) {
                fields["lba"] = lba.into();
                fields["blocks"] = blocks.into();
            }
        }
        self.log.event("error", fields);
    }

    /// What one of its inodes is called in its directory.
    pub fn file_name(&self, node: NodeId) -> &'static str {
        match node {
            _ if node == self.files().data.id() => "data",
            _ if node == self.files().stored.id() => "attributes",
            _ if node == self.log.node() => "log",
            _ if node == NodeId::root(self.volume()) => ".",
            _ => "log.1",
        }
    }

    /// First logical block, and how many, of a block of 4 KiB of `data`; `None` in other files.
    pub fn blocks_at(&self, node: NodeId, offset_bytes: u64) -> Option<(u64, u64)> {
        let block = u64::from(self.live.block_bytes.load(Ordering::Acquire).max(1));
        let blocks = (offset_bytes / block, (BLOCK_BYTES as u64 / block).max(1));
        (node == self.files().data.id()).then_some(blocks)
    }
}

impl Live {
    fn new(settings: &Settings, size_bytes: u64) -> Live {
        let live = Live {
            size_bytes: AtomicU64::new(size_bytes),
            block_bytes: AtomicU32::new(512),
            read_only: AtomicBool::new(false),
            write_through: AtomicBool::new(false),
            quota_bytes: AtomicU64::new(0),
            generation: AtomicU64::new(1),
            media_changes: AtomicU64::new(0),
            files_open: AtomicU32::new(0),
            reserved: AtomicBool::new(false),
            sanitize: StateWord::default(),
            threshold_percent: AtomicU64::new(0),
            threshold_events: AtomicU64::new(0),
            over_threshold: AtomicBool::new(false),
            unjudged_bytes: AtomicU64::new(0),
            medium_errors: AtomicU64::new(0),
        };
        live.follow(settings);
        live
    }

    fn follow(&self, settings: &Settings) {
        self.block_bytes.store(settings.block_bytes, Ordering::Release);
        self.read_only.store(settings.read_only, Ordering::Release);
        self.write_through.store(settings.write_through, Ordering::Release);
        self.quota_bytes.store(settings.quota_bytes, Ordering::Release);
        let percent = u64::from(settings.threshold_percent);
        self.threshold_percent.store(percent, Ordering::Release);
    }
}

impl fmt::Debug for Lun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lun").field("name", &self.name()).field("volume", &self.volume()).finish()
    }
}

/// Why `attributes` cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    #[error("{0}")]
    Fs(#[from] fs::Error),
    #[error("{0}")]
    Text(String),
}

pub(super) fn load_settings(stored: &File) -> std::result::Result<Settings, LoadError> {
    let mut bytes = vec![0; stored.size_bytes().min(fs::ATOMIC_WRITE_BYTES as u64) as usize];
    let length = stored.read_at(0, &mut bytes)?;
    bytes.truncate(length);
    let text = String::from_utf8(bytes).map_err(|e| LoadError::Text(e.to_string()))?;
    Settings::from_toml(text.trim_end()).map_err(|e| LoadError::Text(e.to_string()))
}
