//! Who is connected to what: for `session list` and `session drop`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::SystemTime;

use dashmap::DashMap;
use tokio::sync::mpsc;

use super::connection::Event;
use super::directory::{Export, Peer};

/// A session as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionInfo {
    /// Number, unique while the server runs.
    pub id: u64,
    /// The client.
    pub peer: Peer,
    /// The export.
    pub export: String,
    /// The export's tag.
    pub tag: u64,
    /// When the export was opened.
    pub since: SystemTime,
    /// Requests served.
    pub operations: u64,
    /// Data read, in bytes.
    pub read_bytes: u64,
    /// Data written, in bytes.
    pub written_bytes: u64,
}

/// Figures of a connection since they were last published.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// Requests taken.
    pub operations: u64,
    /// Data read, in bytes.
    pub read_bytes: u64,
    /// Data written, in bytes.
    pub written_bytes: u64,
}

/// A running session.
#[derive(Debug)]
pub struct Session {
    id: u64,
    peer: Peer,
    export: String,
    tag: u64,
    since: SystemTime,
    operations: AtomicU64,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
    dropped: AtomicBool,
    events: mpsc::Sender<Event>,
}

impl Session {
    /// Adds to its figures.
    pub fn publish(&self, tally: Tally) {
        self.operations.fetch_add(tally.operations, Ordering::Relaxed);
        self.read_bytes.fetch_add(tally.read_bytes, Ordering::Relaxed);
        self.written_bytes.fetch_add(tally.written_bytes, Ordering::Relaxed);
    }

    /// Whether it was told to end.
    pub fn is_dropped(&self) -> bool {
        self.dropped.load(Ordering::Acquire)
    }

    /// Tells it to end: what is under way ends first, what waits is not begun. A full channel wakes
    /// the connection anyway.
    fn end(&self) {
        self.dropped.store(true, Ordering::Release);
        let _ = self.events.try_send(Event::Close);
    }

    fn info(&self) -> SessionInfo {
        SessionInfo {
            id: self.id,
            peer: self.peer.clone(),
            export: self.export.clone(),
            tag: self.tag,
            since: self.since,
            operations: self.operations.load(Ordering::Relaxed),
            read_bytes: self.read_bytes.load(Ordering::Relaxed),
            written_bytes: self.written_bytes.load(Ordering::Relaxed),
        }
    }
}

/// All running sessions.
#[derive(Debug, Default)]
pub struct Sessions {
    table: DashMap<u64, Arc<Session>>,
    last_id: AtomicU64,
}

impl Sessions {
    /// Enters a session; dropping what is returned takes it out.
    pub fn enter(&self, peer: Peer, export: &Export, events: mpsc::Sender<Event>) -> Entry<'_> {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let session = Arc::new(Session {
            id,
            peer,
            export: export.name.clone(),
            tag: export.tag,
            since: SystemTime::now(),
            operations: AtomicU64::new(0),
            read_bytes: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            dropped: AtomicBool::new(false),
            events,
        });
        self.table.insert(id, session.clone());
        Entry { sessions: self, session }
    }

    /// All, by number.
    pub fn list(&self) -> Vec<SessionInfo> {
        let mut all: Vec<_> = self.table.iter().map(|entry| entry.info()).collect();
        all.sort_by_key(|info| info.id);
        all
    }

    /// Ends one; false where there is none of this number.
    pub fn end(&self, id: u64) -> bool {
        let session = self.table.get(&id).map(|entry| entry.clone());
        session.map(|session| session.end()).is_some()
    }

    /// Ends all.
    pub fn end_all(&self) {
        self.table.iter().for_each(|entry| entry.end());
    }
}

/// A session's place in the list.
#[derive(Debug)]
pub struct Entry<'a> {
    sessions: &'a Sessions,
    session: Arc<Session>,
}

impl Entry<'_> {
    /// The session.
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.sessions.table.remove(&self.session.id);
    }
}
