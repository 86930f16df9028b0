//! One LUN.

use super::attachment::{AttachRequest, Attachment, SessionInfo};
use super::attributes::{Attributes, Settings};
use super::block_io::{Geometry, Identity};
use super::data_file::{DataFile, OpenIntent};
use super::error::Result;
use super::event_log::LogLine;
use super::lease::Holder;
use crate::fs::{NodeId, VolumeId};
use std::sync::Arc;

/// A LUN.
#[derive(Debug)]
pub struct Lun {
    _p: (),
}

#[allow(unused_variables)]
impl Lun {
    /// Its name at this moment.
    pub fn name(&self) -> String {
        todo!()
    }
    /// Its volume, the same for ever.
    pub fn volume(&self) -> VolumeId {
        todo!()
    }
    /// The inode of `data`.
    pub fn data_node(&self) -> NodeId {
        todo!()
    }
    /// The inode of `attributes` (it stores the settings; what a reader is shown is [`Lun::attributes_toml`]).
    pub fn attributes_node(&self) -> NodeId {
        todo!()
    }
    /// The inode of `log`.
    pub fn log_node(&self) -> NodeId {
        todo!()
    }

    /// Everything `attributes` shows.
    pub fn attributes(&self) -> Result<Attributes> {
        todo!()
    }
    /// The settings alone: no I/O.
    pub fn settings(&self) -> Settings {
        todo!()
    }
    /// What the mount's `attributes` reads as.
    pub fn attributes_toml(&self) -> Result<String> {
        todo!()
    }
    /// Sets keys, all or none (`lun set NAME KEY=VALUE...`). Refusals are logged.
    pub fn set(&self, changes: &[(String, String)]) -> Result<()> {
        todo!()
    }
    /// The mount's `attributes` was written: all of the text is checked, then applied. Keys that are
    /// missing stay as they are.
    pub fn apply_attributes_toml(&self, text: &str) -> Result<()> {
        todo!()
    }
    /// New capacity. Shrinking is `Busy` while a door has it open unless `force`.
    pub fn resize(&self, size_bytes: u64, force: bool) -> Result<()> {
        todo!()
    }

    /// Adds `{"time": …, "event": event, …fields}` to `log`.
    pub fn append_log(&self, event: &str, fields: serde_json::Value) -> Result<()> {
        todo!()
    }
    /// The owner's own lines, through the mount; cuts the log where needed.
    pub fn append_log_bytes(&self, bytes: &[u8]) -> Result<()> {
        todo!()
    }
    /// `log.1` and `log`, oldest line first.
    pub fn read_log(&self) -> Result<Vec<LogLine>> {
        todo!()
    }

    /// A block client logs in.
    pub fn attach(self: &Arc<Self>, request: AttachRequest) -> Result<Arc<Attachment>> {
        todo!()
    }
    /// Sessions of its block clients.
    pub fn sessions(&self) -> Vec<SessionInfo> {
        todo!()
    }
    /// `data` is opened through the mount.
    pub fn open_file(self: &Arc<Self>, intent: OpenIntent) -> Result<DataFile> {
        todo!()
    }
    /// Handles of `data` open through the mount.
    pub fn open_files(&self) -> usize {
        todo!()
    }
    /// Who holds the lease.
    pub fn lease_holder(&self) -> Holder {
        todo!()
    }

    /// Size, block sizes and flags at this moment.
    pub fn geometry(&self) -> Geometry {
        todo!()
    }
    /// Names as the block doors tell them.
    pub fn identity(&self) -> Identity {
        todo!()
    }
    /// Unreadable ranges that were met since the pool was opened.
    pub fn medium_errors(&self) -> u64 {
        todo!()
    }
}
