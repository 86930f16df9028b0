//! The sessions of a door: their listing, their end on demand, reinstatement, and the logical units
//! they share.
//!
//! Invariants: an entry is in the table from before its disk is opened until its disk is dropped;
//! two entries never have the same reinstatement key; a session has from one to
//! [`MAX_CONNECTIONS`] connections, each of its own CID; a unit is shared by all sessions of one
//! disk, whichever address they came by.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::{Condvar, Mutex};
use tokio_util::sync::CancellationToken;

use super::directory::TargetDirectory;
use super::login::Status;
use super::pool::Ledger;
use crate::access::{Crowd, Limits};
use crate::lun::Identity;
use crate::scsi::LogicalUnit;
use crate::shards::Shards;

/// How long a login waits for the session it replaces to end. The disk's calls end sooner, or the
/// disk is in no state to be used.
const REINSTATE_WAIT: Duration = Duration::from_secs(10);
/// What a session may always hold: the bursts of a few commands.
const LEAST_SHARE_BYTES: u64 = 1 << 20;
/// Units without sessions that are kept for their settings; more are forgotten.
const MAX_IDLE_UNITS: usize = 1024;

/// Connections that a session may have: what MaxConnections is negotiated to.
pub const MAX_CONNECTIONS: usize = 1;

/// What the door is told at its start.
#[derive(Debug, Clone)]
pub struct Options {
    /// What discovery names instead of the address that the initiator dialled: `host` or
    /// `host:port`.
    pub advertise: Option<String>,
    /// Most connections at a time, of all addresses: bounds memory and threads.
    pub max_connections: usize,
    /// Connections from one address that have not logged in; more are closed as they come.
    pub half_open_per_source: usize,
    /// From the connection's start to full feature phase.
    pub login_timeout: Duration,
    /// A session that is silent for so long is asked whether it is there; after two such questions
    /// without any answer it is ended.
    pub ping_every: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            advertise: None,
            max_connections: 512,
            half_open_per_source: 64,
            login_timeout: Duration::from_secs(15),
            ping_every: Duration::from_secs(30),
        }
    }
}

/// What identifies a session to its initiator (RFC 7143 §6.3.5).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SessionKey {
    /// InitiatorName.
    pub initiator: String,
    /// Initiator session identifier.
    pub isid: [u8; 6],
    /// TargetName.
    pub target: String,
    /// Target portal group.
    pub group: u16,
}

/// A connection of a session.
#[derive(Debug, Clone)]
pub struct Link {
    /// Connection identifier (RFC 7143 §11.12.7).
    pub cid: u16,
    /// Address of the initiator's end.
    pub peer: SocketAddr,
    /// Ends the connection.
    pub end: CancellationToken,
}

/// What the sessions of one initiator share: its bounds.
#[derive(Debug)]
pub struct Share {
    sessions: AtomicU32,
    /// Jobs of its connections that run.
    pub(super) running: AtomicU32,
    /// Their buffers.
    pub(super) ledger: Arc<Ledger>,
    limits: Limits,
}

impl Share {
    pub(super) fn new(limits: Limits) -> Share {
        let most = usize::try_from(limits.memory_bytes).unwrap_or(usize::MAX);
        let (sessions, running) = (AtomicU32::new(0), AtomicU32::new(0));
        Share { sessions, running, ledger: Ledger::new(most), limits }
    }

    /// The initiator's bounds, as they were when its first session began.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What one session of it may hold in buffers now: an equal part.
    pub fn bytes(&self) -> usize {
        let sessions = u64::from(self.sessions.load(Ordering::Relaxed).max(1));
        let part = (self.limits.memory_bytes / sessions).max(LEAST_SHARE_BYTES);
        usize::try_from(part).unwrap_or(usize::MAX)
    }
}

/// Work done for a session.
#[derive(Debug, Default)]
pub struct Counters {
    /// Media bytes sent.
    pub read_bytes: AtomicU64,
    /// Media bytes received.
    pub written_bytes: AtomicU64,
    /// SCSI commands.
    pub commands: AtomicU64,
}

/// One session in a listing.
#[derive(Debug, Clone)]
pub struct SessionInfo {
    /// Number for `session show` and `session drop`.
    pub id: u64,
    /// InitiatorName.
    pub initiator: String,
    /// TargetName.
    pub target: String,
    /// Addresses of its connections.
    pub peers: Vec<SocketAddr>,
    /// When it logged in.
    pub since: SystemTime,
    /// Media bytes sent.
    pub read_bytes: u64,
    /// Media bytes received.
    pub written_bytes: u64,
    /// SCSI commands.
    pub commands: u64,
}

#[derive(Debug)]
struct Entry {
    key: SessionKey,
    tsih: u16,
    links: Vec<Link>,
    since: SystemTime,
    counters: Arc<Counters>,
    share: Arc<Share>,
    replaced: Arc<AtomicBool>,
}

impl Entry {
    fn end(&self) {
        self.links.iter().for_each(|link| link.end.cancel());
    }

    /// May this connection be let in, to a session that is there (RFC 7143 §6.3.1)? One of the
    /// same CID takes the old one's place.
    fn admits(&self, link: &Link) -> Result<(), Status> {
        let room = self.links.len() < MAX_CONNECTIONS;
        match room || self.links.iter().any(|own| own.cid == link.cid) {
            true => Ok(()),
            false => Err(Status::TOO_MANY_CONNECTIONS),
        }
    }
}

/// A session's place in the table; its drop frees it.
#[derive(Debug)]
pub struct Registration {
    service: Arc<Service>,
    id: u64,
    /// Shared with the listing.
    pub counters: Arc<Counters>,
    /// Target session identifying handle: never zero.
    pub tsih: u16,
    /// What it shares with the other sessions of its initiator.
    pub share: Arc<Share>,
    /// Its initiator has begun it anew, or its target is reset: nobody is asked to leave.
    pub replaced: Arc<AtomicBool>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        if self.service.sessions.lock().remove(&self.id).is_some() {
            self.share.sessions.fetch_sub(1, Ordering::Relaxed);
        }
        self.service.ended.notify_all();
    }
}

/// The iSCSI door: shared by its addresses and connections.
pub struct Service {
    pub(super) directory: Arc<dyn TargetDirectory>,
    pub(super) options: Options,
    pub(super) crowd: Arc<Crowd>,
    pub(super) shards: Shards,
    sessions: Mutex<HashMap<u64, Entry>>,
    ended: Condvar,
    next_id: AtomicU64,
    next_tsih: AtomicU16,
    units: Mutex<HashMap<[u8; 16], Arc<LogicalUnit>>>,
    /// Listening addresses; the target portal group of each is its place, counted from 1.
    portals: Mutex<Vec<SocketAddr>>,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Service {
    /// A door to the targets of `directory`, with threads of its own.
    pub fn new(directory: Arc<dyn TargetDirectory>, options: Options) -> io::Result<Arc<Service>> {
        Ok(Arc::new(Service {
            shards: Shards::new("iscsi")?,
            directory,
            crowd: Crowd::new(options.max_connections, options.half_open_per_source),
            options,
            sessions: Mutex::default(),
            ended: Condvar::new(),
            next_id: AtomicU64::new(1),
            next_tsih: AtomicU16::new(1),
            units: Mutex::default(),
            portals: Mutex::default(),
        }))
    }

    /// The sessions of this moment, by id. Discovery sessions are not among them.
    pub fn sessions(&self) -> Vec<SessionInfo> {
        let table = self.sessions.lock();
        let mut list: Vec<SessionInfo> = table.iter().map(|(id, entry)| info(*id, entry)).collect();
        list.sort_by_key(|session| session.id);
        list
    }

    /// Ends a session; false where there is none of this id.
    pub fn drop_session(&self, id: u64) -> bool {
        let table = self.sessions.lock();
        table.get(&id).map(Entry::end).is_some()
    }

    /// Ends all sessions of a target, at once.
    pub(super) fn end_target(&self, target: &str) {
        let table = self.sessions.lock();
        for entry in table.values().filter(|entry| entry.key.target == target) {
            entry.replaced.store(true, Ordering::Release);
            entry.end();
        }
    }

    /// Takes a place for a session, ending the one it reinstates and waiting until that has let go
    /// of its disk. A `tsih` other than 0 is of a session that is there: its connection of the same
    /// CID begins anew, with it the session, under the same TSIH (RFC 7143 §6.3.4; at error
    /// recovery level 0 no task outlives its connection). Blocks. Unavailable if the old one does
    /// not end in time, out of resources if the initiator has as many as it may.
    pub(super) fn register(
        self: &Arc<Service>,
        key: SessionKey,
        (tsih, link): (u16, Link),
        limits: Limits,
    ) -> Result<Registration, Status> {
        let mut table = self.sessions.lock();
        if tsih != 0 {
            let own = table.values().find(|entry| entry.key == key && entry.tsih == tsih);
            own.ok_or(Status::NO_SESSION)?.admits(&link)?;
        }
        while let Some(old) = table.values().find(|entry| entry.key == key) {
            old.replaced.store(true, Ordering::Release);
            old.end();
            if self.ended.wait_for(&mut table, REINSTATE_WAIT).timed_out() {
                return Err(Status::UNAVAILABLE);
            }
        }
        let own = table.values().find(|entry| entry.key.initiator == key.initiator);
        let share = own.map(|entry| Arc::clone(&entry.share));
        let share = share.unwrap_or_else(|| Arc::new(Share::new(limits)));
        if share.sessions.load(Ordering::Relaxed) >= limits.sessions {
            return Err(Status::NO_RESOURCES);
        }
        share.sessions.fetch_add(1, Ordering::Relaxed);
        let tsih = if tsih == 0 { self.tsih() } else { tsih };
        let entry = Entry {
            key,
            tsih,
            links: vec![link],
            since: SystemTime::now(),
            counters: Arc::default(),
            share: Arc::clone(&share),
            replaced: Arc::default(),
        };
        let (counters, replaced) = (Arc::clone(&entry.counters), Arc::clone(&entry.replaced));
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        table.insert(id, entry);
        Ok(Registration { service: Arc::clone(self), id, counters, tsih, share, replaced })
    }

    /// A listening address is there, to be [served](super::portal::serve): its target portal group.
    /// Groups are numbered in the order of these calls.
    pub fn add_portal(&self, address: SocketAddr) -> u16 {
        let mut all = self.portals.lock();
        all.push(address);
        u16::try_from(all.len()).unwrap_or(u16::MAX)
    }

    /// All listening addresses, in the order of their groups.
    pub(super) fn portals(&self) -> Vec<SocketAddr> {
        self.portals.lock().clone()
    }

    pub(super) fn tsih(&self) -> u16 {
        match self.next_tsih.fetch_add(1, Ordering::Relaxed) {
            0 => self.next_tsih.fetch_add(1, Ordering::Relaxed),
            tsih => tsih,
        }
    }

    /// The unit of the disk with this identity.
    pub(super) fn unit(&self, identity: &Identity) -> Arc<LogicalUnit> {
        let mut units = self.units.lock();
        if units.len() >= MAX_IDLE_UNITS && !units.contains_key(&identity.naa) {
            units.retain(|_, unit| Arc::strong_count(unit) > 1 || unit.is_needed());
        }
        Arc::clone(units.entry(identity.naa).or_default())
    }
}

fn info(id: u64, entry: &Entry) -> SessionInfo {
    SessionInfo {
        id,
        initiator: entry.key.initiator.clone(),
        target: entry.key.target.clone(),
        peers: entry.links.iter().map(|link| link.peer).collect(),
        since: entry.since,
        read_bytes: entry.counters.read_bytes.load(Ordering::Relaxed),
        written_bytes: entry.counters.written_bytes.load(Ordering::Relaxed),
        commands: entry.counters.commands.load(Ordering::Relaxed),
    }
}
