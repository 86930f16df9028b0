//! What the door asks of those who know the LUNs.

use super::wire::Status;
use crate::access::{Credential, Limits, Reason};
use crate::lun::{BlockIo, OnceBook, OnceClient};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Who is connected, as far as that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Where it connects from.
    pub peer: SocketAddr,
    /// What it proved to be; `None`: it had nothing to prove.
    pub name: Option<String>,
    /// The credential that it proved this by.
    pub proof: Option<u64>,
    /// What it may take, where somebody said so.
    pub limits: Option<Limits>,
}

impl Client {
    /// Somebody who has not proved anything.
    pub fn nameless(peer: SocketAddr) -> Client {
        Client { peer, name: None, proof: None, limits: None }
    }

    /// Who it is beyond one connection.
    pub fn label(&self) -> String {
        let address = || self.peer.ip().to_canonical().to_string();
        self.name.clone().unwrap_or_else(address)
    }
}

/// Somebody who proves itself by a credential.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// What it is then called.
    pub name: String,
    /// The credential.
    pub credential: Arc<Credential>,
    /// What it may take.
    pub limits: Limits,
}

/// An object as LIST and INFO tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// Unit of offsets.
    pub block_bytes: u32,
    /// Capacity in these units, rounded down.
    pub blocks: u64,
    /// This client may write.
    pub writable: bool,
    /// Files of the mount may be written beside block clients.
    pub shared: bool,
    /// Snapshots can be made.
    pub snapable: bool,
    /// It is replicated.
    pub replicated: bool,
    /// A write is durable when it is answered.
    pub write_through: bool,
}

/// What SNAP asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapOrder {
    /// Makes one.
    Create(String),
    /// Deletes one.
    Delete(String),
    /// Makes the object what the snapshot is. `Busy` while others than this client have it open.
    Restore(String),
    /// Makes it anew.
    Refresh(String),
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapFacts {
    /// Its name.
    pub name: String,
    /// When it was made, RFC 3339.
    pub time: String,
}

/// Ends the connection from elsewhere; must not block.
pub type Kick = Arc<dyn Fn() + Send + Sync>;

/// An object that a client has opened. Its last drop ends the session, and a pause with it. All
/// calls but those of `io`'s `try_` forms, [`Object::resume`] and [`Object::is_superseded`] may
/// block.
pub trait Object: Send + Sync + fmt::Debug {
    /// What it is at this moment.
    fn facts(&self) -> Facts;
    /// The disk. Its `write`s heed the client's rights and the lease.
    fn io(&self) -> &Arc<dyn BlockIo>;
    /// By whom once-only requests are remembered.
    fn once_client(&self) -> &OnceClient;
    /// A newer connection of the same client has taken over: nothing is executed here any more.
    fn is_superseded(&self) -> bool;
    /// All writes wait. `Frozen`: somebody else paused it.
    fn pause(&self, limit: Duration) -> Result<(), Status>;
    /// Whether there was a pause of this client to end: not if its time was over.
    fn resume(&self) -> bool;
    /// The name of a snapshot that is to be made without one.
    fn fresh_snap_name(&self) -> String;
    /// All snapshots.
    fn snaps(&self) -> Result<Vec<SnapFacts>, Status>;
    /// Carries it out; the snapshot it was about.
    fn snap(&self, order: &SnapOrder) -> Result<SnapFacts, Status>;
    /// Whether a snapshot's application was at rest, by the word of the client's hook: `at-rest`,
    /// `refused`, `timed-out` or `went-on`, and why. `None`: no snapshot was made.
    fn note_snap(
        &self,
        name: Option<&str>,
        hook: &str,
        outcome: &str,
        why: &str,
    ) -> Result<(), Status>;
    /// The opaque data.
    fn read_opaque(&self) -> Result<Vec<u8>, Status>;
    /// Replaces them.
    fn write_opaque(&self, bytes: &[u8]) -> Result<(), Status>;
}

/// The objects. Calls may block unless they say otherwise. Who is turned away is noted by the
/// directory, which knows why.
pub trait ObjectDirectory: Send + Sync {
    /// The export list: whether anybody may come from there. Does not block.
    fn check_address(&self, peer: SocketAddr) -> Result<(), Status>;
    /// Whether a client from there is let in without a proof. Does not block.
    fn admits_nameless(&self, peer: SocketAddr) -> bool;
    /// Who proves itself under this user name. Does not block.
    fn candidates(&self, user: &str, peer: SocketAddr) -> Vec<Candidate>;
    /// Somebody was turned away before it had a name. Does not block.
    fn refused(&self, user: &str, peer: SocketAddr, reason: Reason);
    /// What this client may see.
    fn list(&self, client: &Client) -> Vec<Facts>;
    /// Opens an object. A connection of the same client and `instance` with a lower generation is
    /// cut off from it: none of its requests is executed after this returns. `Stale`: this is the
    /// lower one.
    fn open(
        &self,
        client: &Client,
        name: &str,
        instance: &str,
        generation: u32,
        kick: Kick,
    ) -> Result<Arc<dyn Object>, Status>;
    /// What must not be done twice.
    fn once(&self) -> &OnceBook;
}
