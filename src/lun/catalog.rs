//! All LUNs of a pool.

use super::attachment::{SessionId, SessionInfo};
use super::changes::{Change, Subscription};
use super::error::Result;
use super::lease::LeaseTiming;
use super::lun::Lun;
use crate::fs::{Clock, Fs, VolumeId};
use std::marker::PhantomData;
use std::sync::Arc;

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
        CatalogOptions {
            clock,
            timing: LeaseTiming::default(),
            location: Vec::new(),
            redundancy: "none".into(),
        }
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
    _p: PhantomData<&'a ()>,
}

/// All LUNs of a pool.
pub struct Catalog {
    _p: (),
}

#[allow(unused_variables)]
impl Catalog {
    /// Finds the LUNs of a pool; finishes what a crash interrupted.
    pub fn open(fs: Arc<Fs>, options: CatalogOptions) -> Result<Arc<Catalog>> {
        todo!()
    }
    /// The filesystem below.
    pub fn fs(&self) -> &Arc<Fs> {
        todo!()
    }

    /// Makes a LUN: O(1) in its size.
    pub fn create(&self, name: &str, request: &CreateLun) -> Result<Arc<Lun>> {
        todo!()
    }
    /// As `create`, but only checks (`--dry-run`).
    pub fn check_create(&self, name: &str, request: &CreateLun) -> Result<()> {
        todo!()
    }
    /// Sorted by name.
    pub fn list(&self) -> Vec<Arc<Lun>> {
        todo!()
    }
    /// Without regard to case; `NotFound`.
    pub fn get(&self, name: &str) -> Result<Arc<Lun>> {
        todo!()
    }
    /// The LUN of a volume.
    pub fn by_volume(&self, volume: VolumeId) -> Option<Arc<Lun>> {
        todo!()
    }
    /// `Busy` while a door has it open.
    pub fn rename(&self, from: &str, to: &str) -> Result<()> {
        todo!()
    }
    /// As `rename`, but only checks.
    pub fn check_rename(&self, from: &str, to: &str) -> Result<()> {
        todo!()
    }
    /// `Busy` while a door has it open unless forced.
    pub fn delete(&self, name: &str, options: DeleteOptions) -> Result<()> {
        todo!()
    }
    /// As `delete`, but only checks.
    pub fn check_delete(&self, name: &str, options: DeleteOptions) -> Result<()> {
        todo!()
    }

    /// The file door is about to make `name` in the mount's root: `NameTaken` if a LUN has it. Hold the
    /// guard until the entry is made.
    pub fn check_tree_name(&self, name: &[u8]) -> Result<TreeNameGuard<'_>> {
        todo!()
    }

    /// Sessions of all LUNs, sorted by id.
    pub fn sessions(&self) -> Vec<SessionInfo> {
        todo!()
    }
    /// One of them.
    pub fn session(&self, id: SessionId) -> Result<SessionInfo> {
        todo!()
    }
    /// Ends it: its I/O answers `Gone`, its connection is closed, its share of the lease ends.
    pub fn drop_session(&self, id: SessionId) -> Result<()> {
        todo!()
    }

    /// Tells `listener` of every change until the subscription is dropped. See [`Change`].
    pub fn subscribe(&self, listener: Arc<dyn Fn(&Change) + Send + Sync>) -> Subscription {
        todo!()
    }
}
