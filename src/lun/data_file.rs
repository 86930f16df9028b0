//! `data` opened through the mount: an open file with the lease's rules.
//!
//! Invariant: while `holding` is set, and looked at under the LUN's gate, this handle has the file
//! lease.

use super::attributes::Access;
use super::change::LOGOUT;
use super::error::{Error, Result};
use super::lease::{FileVerdict, FileWish, Holder};
use super::unit::Lun;
use crate::fs::{self, Attr};
use parking_lot::RwLockReadGuard;
use serde_json::json;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

/// What open(2) asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OpenIntent {
    /// O_RDONLY or O_RDWR.
    pub read: bool,
    /// O_WRONLY or O_RDWR.
    pub write: bool,
    /// O_TRUNC: the file is truncated by the open.
    pub truncate: bool,
}

impl OpenIntent {
    fn wish(self) -> FileWish {
        match self {
            OpenIntent { write: false, truncate: false, .. } => FileWish::Read,
            OpenIntent { write: false, truncate: true, .. } => FileWish::TruncateOnly,
            OpenIntent { write: true, read: false, truncate: false } => FileWish::WriteOnly,
            OpenIntent { write: true, .. } => FileWish::Write,
        }
    }
}

const MOUNT: &str = "files of the mount";

/// An open `data`. Reads always work. Writes need the file lease, which open takes where it may,
/// and which a write takes again after a flush: `Busy` where a block client has the LUN by then.
/// [`DataFile::flush`] belongs to FLUSH, dropping to RELEASE.
pub struct DataFile {
    lun: Arc<Lun>,
    id: u64,
    holding: AtomicBool,
    /// Whom the log names for it.
    who: &'static str,
    /// Length at the last event of a resize: growing writes are logged as one when it is flushed.
    logged_size_bytes: AtomicU64,
}

impl DataFile {
    pub(super) fn open(lun: &Arc<Lun>, intent: OpenIntent) -> Result<DataFile> {
        if (intent.write || intent.truncate) && lun.live.read_only.load(Ordering::Acquire) {
            return Err(Error::ReadOnly(lun.name()));
        }
        let file = DataFile::register(lun, MOUNT)?;
        let (verdict, noted) = lun.lease.file_open(file.id, intent.wish());
        lun.log_lease(noted, file.who);
        match verdict {
            FileVerdict::HeldByBlock => return Err(file.refuse("opening for writing")),
            FileVerdict::Granted { .. } => file.holding.store(true, Ordering::Release),
            FileVerdict::Limited => {}
        }
        if intent.truncate {
            file.truncate_on_open()?;
        }
        Ok(file)
    }

    /// For the administrator: takes the file lease from whoever has the LUN.
    pub(super) fn open_by_force(lun: &Arc<Lun>) -> Result<DataFile> {
        let file = DataFile::register(lun, "an import")?;
        let noted = lun.lease.file_force(file.id);
        file.holding.store(true, Ordering::Release);
        drop(lun.gate.write());
        lun.log_lease(noted, file.who);
        Ok(file)
    }

    fn register(lun: &Arc<Lun>, who: &'static str) -> Result<DataFile> {
        let id = lun.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let mut users = lun.users.lock();
        if users.closed {
            return Err(Error::Gone);
        }
        if !lun.live.sanitize.is_idle() {
            drop(users);
            let why = "it is being sanitized, or that failed";
            return Err(lun.busy("opening", why, "wait until it is done: lunfs lun log shows it"));
        }
        users.files.insert(id);
        lun.live.files_open.fetch_add(1, Ordering::AcqRel);
        drop(users);
        Ok(DataFile {
            lun: Arc::clone(lun),
            id,
            holding: AtomicBool::new(false),
            who,
            logged_size_bytes: AtomicU64::new(lun.size_bytes()),
        })
    }

    /// The LUN.
    pub fn lun(&self) -> &Arc<Lun> {
        &self.lun
    }

    /// Attributes of the inode.
    pub fn attr(&self) -> Result<Attr> {
        Ok(self.lun.on_data(|data| data.attr())?)
    }

    /// Up to the end of the file; how many bytes that was.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<usize> {
        self.lun.on_data(|data| data.read_at(offset, out)).map_err(|e| self.failed(e, offset))
    }

    /// From memory alone; `None`: use `read_at`.
    pub fn try_read_at(&self, offset: u64, out: &mut [u8]) -> Option<Result<usize>> {
        let read = self.lun.try_read_data(offset, out, None)?;
        Some(read.map_err(|e| self.failed(e, offset)))
    }

    /// Writes; beyond the end it is a resize.
    pub fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        let _gate = self.enter_write()?;
        self.check_quota(offset, data.len() as u64)?;
        self.lun.files().data.write_at(offset, data).map_err(|e| self.failed(e, offset))?;
        self.lun.note_growth(offset.saturating_add(data.len() as u64));
        Ok(())
    }

    /// As `write_at`, in memory alone; `None`: nothing was changed, use `write_at`.
    pub fn try_write_at(&self, offset: u64, data: &[u8]) -> Option<Result<()>> {
        if self.lun.quota_bytes().is_some() {
            return None;
        }
        let may = || self.holding.load(Ordering::Acquire) && !self.is_read_only();
        let _gate = self.lun.try_write_gate().filter(|_| may())?;
        let written = self.lun.files().data.try_write_at(offset, data)?;
        if written.is_ok() {
            self.lun.note_growth(offset.saturating_add(data.len() as u64));
        }
        Some(written.map_err(|e| self.failed(e, offset)))
    }

    /// At the end (O_APPEND); where it went.
    pub fn append(&self, data: &[u8]) -> Result<u64> {
        let _gate = self.enter_write()?;
        self.check_quota(self.lun.size_bytes(), data.len() as u64)?;
        let offset = self.lun.files().data.append(data).map_err(|e| self.failed(e, 0))?;
        self.lun.note_growth(offset.saturating_add(data.len() as u64));
        Ok(offset)
    }

    /// ftruncate: a resize. Growing works under a block lease too; shrinking is `Busy` while a
    /// block client is logged in.
    pub fn set_size(&self, size_bytes: u64) -> Result<()> {
        self.lun.wait_for_resume();
        let _change = self.lun.change.lock();
        if self.is_read_only() {
            return Err(Error::ReadOnly(self.lun.name()));
        }
        if size_bytes > fs::MAX_FILE_BYTES {
            return Err(Error::Fs(fs::Error::TooBig));
        }
        if size_bytes < self.lun.size_bytes() {
            self.check_no_sessions()?;
            drop(self.enter_write()?);
        }
        self.set_size_now(size_bytes)
    }

    fn truncate_on_open(&self) -> Result<()> {
        self.lun.wait_for_resume();
        let _change = self.lun.change.lock();
        self.check_no_sessions()?;
        self.set_size_now(0)
    }

    fn set_size_now(&self, size_bytes: u64) -> Result<()> {
        self.lun.set_data_size(size_bytes)?;
        self.logged_size_bytes.store(size_bytes, Ordering::Release);
        Ok(())
    }

    /// fallocate PUNCH_HOLE|KEEP_SIZE.
    pub fn punch(&self, offset: u64, length: u64) -> Result<()> {
        let _gate = self.enter_write()?;
        self.lun.files().data.punch(offset, length).map_err(|e| self.failed(e, offset))
    }

    /// fallocate ZERO_RANGE (`keep_size`: with KEEP_SIZE).
    pub fn allocate_zeros(&self, offset: u64, length: u64, keep_size: bool) -> Result<()> {
        let _gate = self.enter_write()?;
        self.check_quota(offset, length)?;
        let files = self.lun.files();
        let data = &files.data;
        data.allocate_zeros(offset, length, keep_size).map_err(|e| self.failed(e, offset))?;
        if !keep_size {
            self.lun.note_growth(offset.saturating_add(length));
        }
        Ok(())
    }

    /// What is read of it, as the source of a clone.
    pub fn source(&self) -> fs::File {
        self.lun.files().data.clone()
    }

    /// Takes over what another file of the pool has at `from`, up to its end; how many bytes that
    /// was (see [`fs::Fs::clone_range`]). Beyond the end it is a resize.
    pub fn take_range(&self, source: &fs::File, from: u64, to: u64, length: u64) -> Result<u64> {
        let _gate = self.enter_write()?;
        // A source that ends early brings no more than it has.
        self.check_quota(to, length.min(source.size_bytes().saturating_sub(from)))?;
        let cloned = source.clone_range(from, &self.lun.files().data, to, length);
        let cloned = cloned.map_err(|e| self.failed(e, to))?;
        self.lun.note_growth(to.saturating_add(cloned));
        Ok(cloned)
    }

    /// SEEK_DATA; `None`: ENXIO.
    pub fn seek_data(&self, offset: u64) -> Result<Option<u64>> {
        Ok(self.lun.on_data(|data| data.seek_data(offset))?)
    }

    /// SEEK_HOLE.
    pub fn seek_hole(&self, offset: u64) -> Result<u64> {
        Ok(self.lun.on_data(|data| data.seek_hole(offset))?)
    }

    /// fsync.
    pub fn sync(&self) -> Result<()> {
        Ok(self.lun.files().data.sync()?)
    }

    /// FLUSH, at each close(2): gives the file lease back. With the last writer's, block clients go
    /// on and get a unit attention.
    pub fn flush(&self) {
        if !self.holding.load(Ordering::Acquire) {
            return;
        }
        let noted = {
            // Alone: writes of this handle that are under way end first.
            let _gate = self.lun.gate.write();
            self.holding.store(false, Ordering::Release);
            let noted = self.lun.lease.file_flush(self.id);
            if noted.ended && self.lun.settings().access == Access::Exclusive {
                self.lun.media_changed();
            }
            noted
        };
        self.log_growth();
        self.lun.log_lease(noted, self.who);
    }

    fn log_growth(&self) {
        let to = self.lun.size_bytes();
        let from = self.logged_size_bytes.swap(to, Ordering::AcqRel);
        if from < to {
            let by = "a file of the mount";
            self.lun.log.event("resize", json!({"from_bytes": from, "to_bytes": to, "by": by}));
        }
    }

    /// The gate to write under, with the lease.
    fn enter_write(&self) -> Result<RwLockReadGuard<'_, ()>> {
        loop {
            if self.is_read_only() {
                return Err(Error::ReadOnly(self.lun.name()));
            }
            let gate = self.lun.write_gate();
            if self.is_read_only() {
                return Err(Error::ReadOnly(self.lun.name())); // since it waited
            }
            if self.holding.load(Ordering::Acquire) {
                return Ok(gate);
            }
            drop(gate);
            let (verdict, noted) = self.lun.lease.file_write(self.id);
            self.lun.log_lease(noted, self.who);
            match verdict {
                FileVerdict::Granted { .. } => self.holding.store(true, Ordering::Release),
                FileVerdict::HeldByBlock | FileVerdict::Limited => {
                    return Err(self.refuse("writing"));
                }
            }
        }
    }

    /// `quota`: may the range get blocks that it has not?
    fn check_quota(&self, offset: u64, length: u64) -> Result<()> {
        let Some(quota_bytes) = self.lun.quota_bytes() else { return Ok(()) };
        if self.lun.fits(quota_bytes, offset, length).map_err(|e| self.failed(e, offset))? {
            return Ok(());
        }
        self.lun.log.event("refused", self.lun.note_over_quota(quota_bytes));
        Err(Error::OverQuota { name: self.lun.name(), quota_bytes })
    }

    fn is_read_only(&self) -> bool {
        self.lun.live.read_only.load(Ordering::Acquire)
    }

    fn check_no_sessions(&self) -> Result<()> {
        if self.lun.users.lock().sessions.is_empty() {
            return Ok(());
        }
        Err(self.lun.busy("shrinking through the mount", "block clients are logged in", LOGOUT))
    }

    /// A block client has the LUN: the log names it.
    fn refuse(&self, what: &str) -> Error {
        let holders = match self.lun.lease_holder() {
            Holder::Block(names) | Holder::Both(names, _) => names,
            Holder::Idle | Holder::File(_) => Vec::new(),
        };
        let fields = json!({"what": format!("{what} through the mount"), "held_by": holders});
        self.lun.log.event("refused", fields);
        let why = format!("block clients have it: {}", holders.join(", "));
        self.lun.busy(&format!("{what} through the mount"), &why, LOGOUT)
    }

    fn failed(&self, error: fs::Error, offset: u64) -> Error {
        if let fs::Error::Corrupt { block, file_offset_bytes } = &error {
            self.lun.medium_error(*block, file_offset_bytes.unwrap_or(offset));
        }
        Error::Fs(error)
    }
}

impl Drop for DataFile {
    fn drop(&mut self) {
        self.flush();
        let removed = self.lun.users.lock().files.remove(&self.id);
        if removed {
            self.lun.live.files_open.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl fmt::Debug for DataFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let holding = self.holding.load(Ordering::Relaxed);
        f.debug_struct("DataFile").field("lun", &self.lun).field("holding", &holding).finish()
    }
}
