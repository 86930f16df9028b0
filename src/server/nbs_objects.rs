//! LUNs as NBS objects.
//!
//! Invariant: of one client's connections to an object only the newest generation is carried out:
//! when [`Objects::open`] returns, the session of an older one does no I/O any more.

use super::entrance::{has_room, local, note, NO_ROOM};
use crate::access::{Book, Denial, Reason, Seen};
use crate::fs::{Consistency, HookOutcome, VolumeId};
use crate::lun::{
    self, Access, AttachRequest, Attachment, BlockIo, Catalog, Lun, Maker, OnceBook, OnceClient,
    Pause, Snapshot, SnapshotWish,
};
use crate::nbs::{
    Candidate, Client, Facts, Kick, Object, ObjectDirectory, SnapFacts, SnapOrder, Status,
};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Clients whose generation is remembered; beyond it those without a session are forgotten.
const MAX_GENERATIONS: usize = 4096;

/// A client of a LUN, or of one of its snapshots.
type Connected = (OnceClient, Option<VolumeId>);

/// The newest connection of a client to an object.
struct Newest {
    generation: u32,
    object: Weak<OpenObject>,
}

/// All LUNs of a pool, for those whom the list of initiators lets in.
pub(super) struct Objects {
    catalog: Arc<Catalog>,
    book: Arc<Book>,
    once: OnceBook,
    newest: Mutex<HashMap<Connected, Newest>>,
}

impl Objects {
    pub(super) fn new(catalog: Arc<Catalog>, book: Arc<Book>) -> Objects {
        let once = OnceBook::open(catalog.fs());
        Objects { catalog, book, once, newest: Mutex::default() }
    }

    fn refuse(
        &self,
        client: &Client,
        lun: Option<&Lun>,
        (reason, status): (Reason, Status),
        why: &str,
    ) -> Status {
        let who = (client.label(), client.peer.to_string());
        note(&self.book, "nbs", (&who.0, &who.1), lun, reason, why);
        status
    }

    fn denied(&self, denial: Denial, client: &Client, lun: &Lun) -> Status {
        let reason = match denial {
            Denial::Unlisted | Denial::Nameless | Denial::Remote => Reason::Unlisted,
            Denial::Unproved => Reason::Unproved,
            Denial::Elsewhere => Reason::Elsewhere,
            Denial::NotAllowed | Denial::Unreadable => Reason::NotAllowed,
        };
        let refusal = (reason, Status::AccessDenied);
        self.refuse(client, Some(lun), refusal, &denial.to_string())
    }

    /// Whether the client has room for a further session.
    fn check_limit(&self, client: &Client, lun: &Lun) -> Result<(), Status> {
        match has_room(&self.book, &self.catalog, "nbs", client.name.as_deref()) {
            true => Ok(()),
            false => Err(self.refuse(client, Some(lun), (Reason::Limit, Status::Busy), NO_ROOM)),
        }
    }

    /// Makes this generation the newest and cuts the one before off. Waits for its writes.
    fn take_over(&self, key: &Connected, generation: u32) -> Result<(), Status> {
        let older = {
            let mut newest = self.newest.lock();
            if newest.len() >= MAX_GENERATIONS {
                newest.retain(|_, it| it.object.strong_count() > 0);
            }
            let fresh = || Newest { generation, object: Weak::new() };
            let known = newest.entry(key.clone()).or_insert_with(fresh);
            if generation < known.generation {
                return Err(Status::Stale);
            }
            known.generation = generation;
            std::mem::take(&mut known.object).upgrade()
        };
        if let Some(older) = older {
            older.superseded.store(true, Ordering::Release);
            drop(older.pause.lock().take());
            older.session.lost();
            older.session.logout();
        }
        Ok(())
    }

    fn attach(&self, client: &Client, lun: &Arc<Lun>) -> Result<Arc<Attachment>, Status> {
        let seen = seen(client);
        let denied = |denial| self.denied(denial, client, lun);
        let right = self.book.judge(&seen, lun.id()).map_err(denied)?;
        let request = AttachRequest {
            door: "nbs",
            client: client.label(),
            peer: client.peer.to_string(),
            writable: right.writable,
        };
        let session = lun.attach(request).map_err(|_| Status::NoSuchObject)?;
        // The list may have changed before the session was there to be reviewed.
        self.book.admit(&seen, &session).map_err(denied)?;
        // Until the client says that it leaves.
        session.lost();
        Ok(session)
    }
}

fn seen(client: &Client) -> Seen<'_> {
    let address = client.peer.ip();
    Seen {
        name: client.name.as_deref(),
        proof: client.proof,
        local: local(address),
        address: Some(address),
    }
}

impl ObjectDirectory for Objects {
    fn check_address(&self, peer: SocketAddr) -> Result<(), Status> {
        let checked = self.book.check_address(peer.ip(), local(peer.ip()));
        checked.map_err(|_| Status::AccessDenied)
    }

    fn admits_nameless(&self, peer: SocketAddr) -> bool {
        self.book.is_empty() && self.check_address(peer).is_ok()
    }

    fn candidates(&self, user: &str, peer: SocketAddr) -> Vec<Candidate> {
        let all = self.book.find_by_user(user, peer.ip()).into_iter();
        all.filter_map(|one| {
            Some(Candidate { name: one.name, credential: one.chap?, limits: one.limits })
        })
        .collect()
    }

    fn refused(&self, user: &str, peer: SocketAddr, reason: Reason) {
        let user = if user.is_empty() { "?" } else { user };
        note(&self.book, "nbs", (user, &peer.to_string()), None, reason, "");
    }

    fn list(&self, client: &Client) -> Vec<Facts> {
        let fact = |lun: &Arc<Lun>| {
            let right = self.book.judge(&seen(client), lun.id()).ok()?;
            Some(facts_of(lun, right.writable && !lun.geometry().read_only))
        };
        self.catalog.list().iter().filter_map(fact).collect()
    }

    fn open(
        &self,
        client: &Client,
        name: &str,
        instance: &str,
        generation: u32,
        kick: Kick,
    ) -> Result<Arc<dyn Object>, Status> {
        let lun = self.catalog.disk(name).map_err(|_| {
            let refusal = (Reason::NoSuchLun, Status::NoSuchObject);
            self.refuse(client, None, refusal, "there is no such object")
        })?;
        // Before anything of an older connection is ended: may this one come at all?
        let judged = self.book.judge(&seen(client), lun.id());
        judged.map_err(|denial| self.denied(denial, client, &lun))?;
        let own = OnceClient::new(lun.id(), &client.label(), instance);
        let key = (own, lun.is_snapshot().then(|| lun.volume()));
        self.take_over(&key, generation)?;
        self.check_limit(client, &lun)?;
        let session = self.attach(client, &lun)?;
        session.on_kick(Box::new(move || kick()));
        let object = Arc::new(OpenObject {
            catalog: Arc::clone(&self.catalog),
            book: Arc::clone(&self.book),
            by: format!("nbs {}", client.label()),
            peer: client.peer.to_string(),
            io: Arc::clone(&session) as Arc<dyn BlockIo>,
            session,
            key: key.0.clone(),
            superseded: AtomicBool::new(false),
            pause: Mutex::default(),
        });
        let mut newest = self.newest.lock();
        match newest.get_mut(&key) {
            Some(known) if known.generation == generation => {
                known.object = Arc::downgrade(&object);
            }
            _ => return Err(Status::Stale),
        }
        Ok(object)
    }

    fn once(&self) -> &OnceBook {
        &self.once
    }
}

/// A client's object.
struct OpenObject {
    catalog: Arc<Catalog>,
    book: Arc<Book>,
    /// Door and client, for the log.
    by: String,
    peer: String,
    session: Arc<Attachment>,
    io: Arc<dyn BlockIo>,
    key: OnceClient,
    superseded: AtomicBool,
    pause: Mutex<Option<Pause>>,
}

fn facts_of(lun: &Lun, writable: bool) -> Facts {
    let (settings, geometry) = (lun.settings(), lun.geometry());
    let block_bytes = settings.nbs_block_bytes.max(geometry.block_bytes).max(1);
    Facts {
        name: lun.name(),
        block_bytes,
        blocks: geometry.size_bytes / u64::from(block_bytes),
        writable,
        shared: settings.access == Access::Shared,
        snapable: !lun.is_snapshot(),
        replicated: false,
        write_through: geometry.write_through,
    }
}

impl OpenObject {
    fn lun(&self) -> &Arc<Lun> {
        self.session.lun()
    }

    fn snap_now(&self, of: &str, order: &SnapOrder) -> lun::Result<SnapFacts> {
        let catalog = &self.catalog;
        match order {
            SnapOrder::Create(name) => {
                let wish = SnapshotWish { of: of.to_owned(), name: Some(name.clone()) };
                let made = catalog.snapshot_create(&[wish], Maker::User, false)?;
                made.first().map(snap_facts).ok_or(lun::Error::Gone)
            }
            SnapOrder::Delete(name) => {
                let snapshot = catalog.snapshot(of, name)?;
                catalog.snapshot_delete(of, name, false)?;
                Ok(snap_facts(&snapshot))
            }
            SnapOrder::Refresh(name) => Ok(snap_facts(&catalog.snapshot_refresh(of, name)?)),
            SnapOrder::Restore(name) => {
                let snapshot = catalog.snapshot(of, name)?;
                self.check_alone()?;
                catalog.snapshot_rollback(of, name, true)?;
                Ok(snap_facts(&snapshot))
            }
        }
    }

    /// Nothing but this connection has the LUN open: a rollback changes it under everybody's feet,
    /// also under another program of the same client.
    fn check_alone(&self) -> lun::Result<()> {
        let own = self.session.id();
        let others = self.lun().sessions().iter().filter(|it| it.id != own).count();
        if others == 0 && self.lun().open_files() == 0 {
            return Ok(());
        }
        Err(lun::Error::Busy {
            what: format!("the rollback of LUN '{}'", self.lun().name()),
            why: "other clients have it open".to_owned(),
            remedy: "close them".to_owned(),
        })
    }

    /// What changes the LUN as a whole needs the right to write to it.
    fn check_may_change(&self, what: &str) -> Result<(), Status> {
        if self.is_superseded() {
            return Err(Status::Stale);
        }
        if self.session.is_gone() {
            return Err(Status::NoSuchObject);
        }
        if self.lun().is_snapshot() {
            return Err(Status::ReadOnly);
        }
        if self.session.is_writable() {
            return Ok(());
        }
        let why = format!("{what} by a client that may only read");
        let who = (self.by.as_str(), self.peer.as_str());
        note(&self.book, "nbs", who, Some(self.lun()), Reason::NotAllowed, &why);
        Err(Status::AccessDenied)
    }
}

fn snap_facts(snapshot: &Snapshot) -> SnapFacts {
    let info = &snapshot.info;
    SnapFacts { name: info.name.clone(), time: lun::rfc3339(info.created) }
}

fn status_of(error: &lun::Error) -> Status {
    match error {
        lun::Error::NotFound(_) | lun::Error::NoSnapshot { .. } | lun::Error::Gone => {
            Status::NoSuchObject
        }
        lun::Error::NameTaken { .. } | lun::Error::SnapshotExists { .. } => Status::Exists,
        lun::Error::BadSnapshotName { .. } | lun::Error::Snapshot { .. } => Status::Invalid,
        lun::Error::Held { .. } => Status::AccessDenied,
        lun::Error::Busy { .. } => Status::Busy,
        lun::Error::ReadOnly(_) => Status::ReadOnly,
        error if error.is_no_space() => Status::NoSpace,
        _ => Status::IoError,
    }
}

impl Object for OpenObject {
    fn facts(&self) -> Facts {
        facts_of(self.lun(), !self.io.geometry().read_only)
    }

    fn io(&self) -> &Arc<dyn BlockIo> {
        &self.io
    }

    fn once_client(&self) -> &OnceClient {
        &self.key
    }

    fn is_superseded(&self) -> bool {
        self.superseded.load(Ordering::Acquire)
    }

    fn pause(&self, limit: Duration) -> Result<(), Status> {
        self.check_may_change("a pause")?;
        let mut own = self.pause.lock();
        if own.as_ref().is_some_and(|pause| pause.prolong(limit)) {
            return Ok(());
        }
        *own = None;
        let pause = self.lun().pause(limit, &self.by).map_err(|_| Status::Frozen)?;
        *own = Some(pause);
        // A newer connection may have come while this one waited for writes.
        match self.is_superseded() {
            true => {
                *own = None;
                Err(Status::Stale)
            }
            false => Ok(()),
        }
    }

    fn resume(&self) -> bool {
        // Locked: a pause is only being begun, there is nothing to end yet.
        let running = self.pause.try_lock().and_then(|mut own| own.take());
        running.is_some_and(Pause::resume)
    }

    fn fresh_snap_name(&self) -> String {
        let wish = SnapshotWish { of: self.lun().name(), name: None };
        let names = self.catalog.check_snapshot_create(&[wish]).unwrap_or_default();
        let name = names.first().and_then(|name| name.split_once('@'));
        name.map(|(_, name)| name.to_owned()).unwrap_or_default()
    }

    fn snaps(&self) -> Result<Vec<SnapFacts>, Status> {
        if self.lun().is_snapshot() {
            return Err(Status::Unsupported);
        }
        let all = self.catalog.snapshots(&self.lun().name());
        let all = all.map_err(|error| status_of(&error))?;
        Ok(all.iter().map(snap_facts).collect())
    }

    fn snap(&self, order: &SnapOrder) -> Result<SnapFacts, Status> {
        self.check_may_change("a snapshot")?;
        self.snap_now(&self.lun().name(), order).map_err(|error| status_of(&error))
    }

    fn note_snap(
        &self,
        name: Option<&str>,
        hook: &str,
        outcome: &str,
        why: &str,
    ) -> Result<(), Status> {
        self.check_may_change("a note on a snapshot")?;
        let outcome = match outcome {
            "at-rest" => HookOutcome::AtRest,
            "refused" => HookOutcome::Refused,
            "timed-out" => HookOutcome::TimedOut,
            "went-on" => HookOutcome::WentOn,
            _ => return Err(Status::Invalid),
        };
        let how = Consistency { outcome, hook: hook.to_owned() };
        let noted = self.catalog.snapshot_note(&self.lun().name(), name, &how, why);
        noted.map_err(|error| status_of(&error))
    }

    fn read_opaque(&self) -> Result<Vec<u8>, Status> {
        self.lun().read_opaque().map_err(|error| status_of(&error))
    }

    fn write_opaque(&self, bytes: &[u8]) -> Result<(), Status> {
        self.check_may_change("opaque data")?;
        if self.lun().geometry().read_only {
            return Err(Status::ReadOnly);
        }
        let written = self.lun().write_opaque(bytes);
        written.map_err(|error| match error {
            lun::Error::Fs(crate::fs::Error::AttributesTooBig) => Status::Invalid,
            other => status_of(&other),
        })
    }
}

impl fmt::Debug for OpenObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpenObject({:?} by {})", self.lun(), self.by)
    }
}
