//! A block client's session with a LUN.
//!
//! Invariant: while `grant` equals the lease's epoch this session has a share of the block lease
//! and no file writer is in; it is looked at under `gate`, so that whoever ends grants and then
//! takes `gate` for writing has seen the last write off. Rights, `read-only` and reservations are
//! judged under `gate` in the same way.

use super::block_io::BlockError;
use super::error::{Error, Result};
use super::figures::{Figures, Latency};
use super::lease::Leave;
use super::unit::Lun;
use crate::fs::Timestamp;
use parking_lot::{Mutex, RwLockReadGuard};
use serde_json::json;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

/// Longest client and peer names that are kept, in bytes: an iSCSI name has at most 223.
const MAX_CLIENT_BYTES: usize = 256;

/// Number of a session, unique while the server runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// Who logs in.
#[derive(Debug, Clone)]
pub struct AttachRequest {
    /// `iscsi`, `nbd`, `nbs`, `scp`.
    pub door: &'static str,
    /// Who the client is beyond one connection: initiator IQN, certificate name, else its address
    /// without the port. A client that comes back under it keeps its lease.
    pub client: String,
    /// Where it connects from, for messages: `127.0.0.1:40312`, `unix`.
    pub peer: String,
    /// Its rights allow writing.
    pub writable: bool,
}

/// What a session may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rights {
    /// Not only read.
    pub writable: bool,
    /// Its writes may make the LUN's data take at most so many bytes; 0: no such bound.
    pub quota_bytes: u64,
}

/// A session as `lunfs session list` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionInfo {
    /// Its number.
    pub id: SessionId,
    /// The LUN's name.
    pub lun: String,
    /// The door it came through.
    pub door: &'static str,
    /// Who it is.
    pub client: String,
    /// Where it connects from.
    pub peer: String,
    /// Its rights allow writing.
    pub writable: bool,
    /// Its writes may make the LUN's data take so much; 0: no such bound.
    pub quota_bytes: u64,
    /// It has a share of the block lease.
    pub holds_lease: bool,
    /// Login.
    pub since: Timestamp,
    /// Read commands answered.
    pub read_ops: u64,
    /// Bytes they carried.
    pub read_bytes: u64,
    /// Write-class commands answered.
    pub write_ops: u64,
    /// Bytes they wrote, zeroed or unmapped.
    pub written_bytes: u64,
    /// Flushes answered.
    pub flush_ops: u64,
    /// Writes that were refused for want of rights.
    pub refused_writes: u64,
    /// Commands that are not answered yet.
    pub outstanding: u32,
    /// Operations a second lately.
    pub iops: u64,
    /// How long the disk took for them.
    pub latency: Latency,
}

type Kick = Box<dyn FnOnce() + Send>;

/// A block client's session: the disk it drives ([`super::BlockIo`]). Dropping it is the logout.
pub struct Attachment {
    pub(super) lun: Arc<Lun>,
    id: SessionId,
    door: &'static str,
    client: String,
    peer: String,
    writable: AtomicBool,
    pub(super) quota_bytes: AtomicU64,
    /// Rises when its rights change; part of its generation.
    pub(super) rights_generation: AtomicU64,
    /// Writes that were refused for want of rights.
    refused_writes: AtomicU64,
    since: Timestamp,
    /// Epoch of the lease in which this session was last granted it; 0: never.
    grant: AtomicU64,
    gone: AtomicBool,
    pub(super) lost: AtomicBool,
    /// It judges reservations by itself.
    pub(super) knows_reservations: AtomicBool,
    kick: Mutex<Option<Kick>>,
    pub(super) figures: Figures,
}

impl Attachment {
    /// Where it comes `back` it goes on with the share of the lease that its client left behind.
    pub(super) fn login(
        lun: &Arc<Lun>,
        request: AttachRequest,
        back: bool,
    ) -> Result<Arc<Attachment>> {
        let since = lun.shared.options.clock.now();
        let attachment = Arc::new(Attachment {
            lun: Arc::clone(lun),
            id: SessionId(lun.shared.next_id.fetch_add(1, Ordering::Relaxed)),
            door: request.door,
            client: shorten(request.client),
            peer: shorten(request.peer),
            writable: AtomicBool::new(request.writable && !lun.is_snapshot()),
            quota_bytes: AtomicU64::new(0),
            rights_generation: AtomicU64::new(0),
            refused_writes: AtomicU64::new(0),
            since,
            grant: AtomicU64::new(0),
            gone: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            knows_reservations: AtomicBool::new(false),
            kick: Mutex::new(None),
            figures: Figures::new(since),
        });
        let noted = {
            let mut users = lun.users.lock();
            if users.closed {
                attachment.gone.store(true, Ordering::Release);
                return Err(Error::Gone);
            }
            users.sessions.insert(attachment.id.0, Arc::downgrade(&attachment));
            back.then(|| lun.lease.block_login(attachment.id.0, &attachment.label()).1)
        };
        attachment.log("login", json!({"writable": attachment.is_writable()}));
        if let Some(noted) = noted {
            lun.log_lease(noted, &attachment.label());
        }
        Ok(attachment)
    }

    /// Its number.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// The LUN.
    pub fn lun(&self) -> &Arc<Lun> {
        &self.lun
    }

    pub(super) fn look(&self, now: Timestamp) {
        self.figures.look(now);
    }

    /// Figures.
    pub fn info(&self) -> SessionInfo {
        let figure = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let now = self.lun.shared.options.clock.now();
        self.figures.look(now);
        SessionInfo {
            id: self.id,
            lun: self.lun.name(),
            door: self.door,
            client: self.client.clone(),
            peer: self.peer.clone(),
            writable: self.is_writable(),
            quota_bytes: self.quota_bytes.load(Ordering::Acquire),
            holds_lease: self.lun.lease.holds(self.id.0),
            since: self.since,
            read_ops: figure(&self.figures.read_ops),
            read_bytes: figure(&self.figures.read_bytes),
            write_ops: figure(&self.figures.write_ops),
            written_bytes: figure(&self.figures.written_bytes),
            flush_ops: figure(&self.figures.flush_ops),
            refused_writes: figure(&self.refused_writes),
            outstanding: self.figures.outstanding.load(Ordering::Relaxed),
            iops: self.figures.iops(now),
            latency: self.figures.latency(),
        }
    }

    /// Its rights allow writing.
    pub fn is_writable(&self) -> bool {
        self.writable.load(Ordering::Acquire)
    }

    /// Changes what it may do, as far as that differs; the client is told by the generation. Waits
    /// for writes that are under way where writing is forbidden: none ends after it returns.
    pub fn set_rights(&self, rights: Rights) {
        self.quota_bytes.store(rights.quota_bytes, Ordering::Release);
        let writable = rights.writable && !self.lun.is_snapshot();
        if self.writable.swap(writable, Ordering::AcqRel) == writable {
            return;
        }
        self.rights_generation.fetch_add(1, Ordering::AcqRel);
        if !writable {
            drop(self.lun.gate.write());
        }
        self.log("rights", json!({"writable": writable}));
    }

    /// A write was refused because the LUN or the right is read-only: counted, and noted in the
    /// log.
    pub(super) fn note_refused_write(&self) {
        self.refused_writes.fetch_add(1, Ordering::Relaxed);
        self.lun.shared.refused.read_only.fetch_add(1, Ordering::Relaxed);
        let why = match self.is_writable() {
            true => "the LUN is read-only",
            false => "the client may only read",
        };
        self.log("refused", json!({"what": "a write", "why": why}));
    }

    /// From now on its end is that of a broken connection ([`super::BlockIo::leaving`] takes it
    /// back): its share of the lease outlives it by the grace.
    pub fn lost(&self) {
        self.lost.store(true, Ordering::Release);
    }

    /// Logs out now, though somebody may still hold this: no I/O after it returns. Waits for writes
    /// that are under way.
    pub fn logout(&self) {
        if !self.gone.swap(true, Ordering::AcqRel) {
            drop(self.lun.gate.write());
            self.depart();
        }
    }

    /// It was dropped by the administrator or the LUN is deleted: its I/O answers `Gone`.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Called once, from another thread, when the session is to end: close the connection. At once
    /// if that has happened already. It must not block.
    pub fn on_kick(&self, kick: Box<dyn FnOnce() + Send>) {
        let mut slot = self.kick.lock();
        if self.is_gone() {
            drop(slot);
            kick();
        } else {
            *slot = Some(kick);
        }
    }

    /// Ends it from this side: no I/O after this returns, its share of the lease is over.
    pub(super) fn end(&self, why: &str) {
        let kick = {
            let mut slot = self.kick.lock();
            if self.gone.swap(true, Ordering::AcqRel) {
                return;
            }
            slot.take()
        };
        drop(self.lun.gate.write());
        self.leave("dropped", Leave::Logout, Some(why));
        if let Some(kick) = kick {
            kick();
        }
    }

    /// For a write-class command: rights, the lease (waiting for it), and the gate to write under.
    pub(super) fn enter_write(&self) -> std::result::Result<RwLockReadGuard<'_, ()>, BlockError> {
        loop {
            self.check_may_write()?;
            let gate = self.lun.write_gate();
            self.check_may_write()?; // it may have waited for long
            if self.is_granted() {
                return Ok(gate);
            }
            drop(gate);
            self.take_lease()?;
        }
    }

    /// As `enter_write` where nothing has to be waited for.
    pub(super) fn try_enter_write(
        &self,
    ) -> Option<std::result::Result<RwLockReadGuard<'_, ()>, BlockError>> {
        let gate = self.lun.try_write_gate()?;
        if let Err(error) = self.check_may_write() {
            return Some(Err(error));
        }
        self.is_granted().then_some(Ok(gate))
    }

    fn is_granted(&self) -> bool {
        let may = !self.is_gone() && self.is_writable();
        may && self.grant.load(Ordering::Acquire) == self.lun.lease.epoch()
    }

    fn check_may_write(&self) -> std::result::Result<(), BlockError> {
        if self.is_gone() {
            return Err(BlockError::Gone);
        }
        if !self.is_writable() || self.lun.live.read_only.load(Ordering::Acquire) {
            self.note_refused_write();
            return Err(BlockError::ReadOnly);
        }
        let foreign = !self.knows_reservations.load(Ordering::Acquire);
        if foreign && self.lun.live.reserved.load(Ordering::Acquire) {
            return Err(BlockError::Reserved);
        }
        Ok(())
    }

    fn take_lease(&self) -> std::result::Result<(), BlockError> {
        let (epoch, noted) = self.lun.lease.block_write(self.id.0, &self.label());
        self.lun.log_lease(noted, &self.label());
        let Some(epoch) = epoch else {
            let why = "files of the mount have it open for writing";
            self.log("refused", json!({"what": "a block write", "why": why}));
            return Err(BlockError::HeldByFile);
        };
        self.grant.store(epoch, Ordering::Release);
        if self.is_gone() {
            // It was ended while it waited: give back what it was granted too late.
            self.lun.lease.block_leave(self.id.0, Leave::Logout);
        }
        Ok(())
    }

    fn depart(&self) {
        if self.lost.load(Ordering::Acquire) {
            self.leave("lost", Leave::Lost, None);
        } else {
            self.leave("logout", Leave::Logout, None);
        }
    }

    fn leave(&self, event: &'static str, how: Leave, why: Option<&str>) {
        self.lun.users.lock().sessions.remove(&self.id.0);
        let noted = self.lun.lease.block_leave(self.id.0, how);
        self.log(event, json!({"why": why}));
        self.lun.log_lease(noted, &self.label());
    }

    /// What the lease and messages call its client.
    fn label(&self) -> String {
        format!("{} {}", self.door, self.client)
    }

    pub(super) fn log(&self, event: &'static str, mut fields: serde_json::Value) {
        if let Some(fields) = fields.as_object_mut() {
            fields.retain(|_, value| !value.is_null());
            fields.insert("session".into(), self.id.0.into());
            fields.insert("door".into(), self.door.into());
            fields.insert("client".into(), self.client.as_str().into());
            fields.insert("peer".into(), self.peer.as_str().into());
        }
        self.lun.log.event(event, fields);
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if !self.is_gone() {
            self.depart();
        }
    }
}

impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Attachment({} of {:?} by {})", self.id.0, self.lun, self.label())
    }
}

fn shorten(mut name: String) -> String {
    let mut end = name.len().min(MAX_CLIENT_BYTES);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name.truncate(end);
    name
}
