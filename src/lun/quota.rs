//! `quota`: most bytes that a LUN's data may take. A range that has its blocks already may always
//! be written; what snapshots keep is not counted.

use super::unit::Lun;
use crate::device::BLOCK_BYTES;
use crate::fs;
use std::sync::atomic::Ordering;

impl Lun {
    /// The quota, if there is one.
    pub(super) fn quota_bytes(&self) -> Option<u64> {
        Some(self.live.quota_bytes.load(Ordering::Acquire)).filter(|quota| *quota != 0)
    }

    /// Whether the data may take blocks for what is not there yet of a range.
    pub(super) fn fits(&self, quota_bytes: u64, offset: u64, length: u64) -> fs::Result<bool> {
        let files = self.files();
        let data = &files.data;
        let used = data.attr()?.blocks.saturating_mul(BLOCK_BYTES as u64);
        let end = offset.saturating_add(length);
        Ok(used.saturating_add(length) <= quota_bytes || data.seek_hole(offset)? >= end)
    }

    /// A write was refused for it: counted, and in the log.
    pub(super) fn note_over_quota(&self, quota_bytes: u64) -> serde_json::Value {
        self.shared.refused.quota.fetch_add(1, Ordering::Relaxed);
        let why = format!("it would take more than the quota of {quota_bytes} bytes");
        serde_json::json!({"what": "a write", "why": why})
    }
}
