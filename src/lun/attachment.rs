//! A block client's session with a LUN.

use super::block_io::{BlockError, BlockIo, Extent, Geometry, Identity};
use super::lun::Lun;
use crate::fs::Timestamp;
use std::sync::Arc;

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
    /// It shares the block lease.
    pub holds_lease: bool,
    /// Login.
    pub since: Timestamp,
    /// Read commands answered.
    pub read_ops: u64,
    /// Bytes they carried.
    pub read_bytes: u64,
    /// Write-class commands answered.
    pub write_ops: u64,
    /// Bytes of data they carried.
    pub written_bytes: u64,
    /// Flushes answered.
    pub flush_ops: u64,
}

/// A block client's session: the disk it drives. Dropping it is the logout.
#[derive(Debug)]
pub struct Attachment {
    _p: (),
}

#[allow(unused_variables)]
impl Attachment {
    /// Its number.
    pub fn id(&self) -> SessionId {
        todo!()
    }
    /// The LUN.
    pub fn lun(&self) -> &Arc<Lun> {
        todo!()
    }
    /// Figures.
    pub fn info(&self) -> SessionInfo {
        todo!()
    }
    /// The connection broke without a logout: when this is dropped, the lease outlives it by the grace.
    pub fn lost(&self) {
        todo!()
    }
    /// It was dropped by the administrator or the LUN is deleted: its I/O answers `Gone`.
    pub fn is_gone(&self) -> bool {
        todo!()
    }
    /// Called once, from another thread, when the session is to end: close the connection. At once if
    /// that has happened already. It must not block.
    pub fn on_kick(&self, kick: Box<dyn FnOnce() + Send>) {
        todo!()
    }
    /// Takes a share of the block lease without writing (a reservation). Waits as a write does.
    pub fn claim_lease(&self) -> Result<(), BlockError> {
        todo!()
    }
}

#[allow(unused_variables)]
impl BlockIo for Attachment {
    fn geometry(&self) -> Geometry {
        todo!()
    }
    fn generation(&self) -> u64 {
        todo!()
    }
    fn identity(&self) -> Identity {
        todo!()
    }
    fn media_changes(&self) -> u64 {
        todo!()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), BlockError> {
        todo!()
    }
    fn try_read(&self, offset: u64, out: &mut [u8]) -> Option<Result<(), BlockError>> {
        todo!()
    }
    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), BlockError> {
        todo!()
    }
    fn try_write(&self, offset: u64, data: &[u8]) -> Option<Result<(), BlockError>> {
        todo!()
    }
    fn flush(&self) -> Result<(), BlockError> {
        todo!()
    }
    fn unmap(&self, offset: u64, length: u64) -> Result<(), BlockError> {
        todo!()
    }
    fn write_zeroes(&self, offset: u64, length: u64, may_unmap: bool) -> Result<(), BlockError> {
        todo!()
    }
    fn compare_and_write(&self, offset: u64, expect: &[u8], data: &[u8]) -> Result<(), BlockError> {
        todo!()
    }
    fn or_write(&self, offset: u64, data: &[u8]) -> Result<(), BlockError> {
        todo!()
    }
    fn extents(&self, offset: u64, length: u64, max: usize) -> Result<Vec<Extent>, BlockError> {
        todo!()
    }
}
