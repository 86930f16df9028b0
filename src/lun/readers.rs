//! Who has a snapshot open: a door that serves it, a file of it in the mount, an export.
//!
//! Invariants: a snapshot is opened and deleted under `open`, so what was found is there until it
//! is let go. One that is deleted while it is open loses its name at once (it gets one that begins
//! with a dot, so that a crash is no escape) and its blocks at the last close.

use super::catalog::Catalog;
use super::error::{Error, Result};
use super::history::Subject;
use super::unit::Shared;
use crate::fs::{self, SnapshotInfo, VolumeId};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

#[derive(Default)]
struct Open {
    readers: usize,
    /// Whose it was, and the name that it has since it was deleted.
    doomed: Option<(Subject, String)>,
}

/// The snapshots that are open.
#[derive(Default)]
pub(super) struct Readers(Mutex<HashMap<VolumeId, Open>>);

impl Readers {
    pub(super) fn is_open(&self, id: VolumeId) -> bool {
        self.0.lock().contains_key(&id)
    }
}

/// A snapshot that cannot go: while this lives it reads as it is. Dropping it is the close.
pub struct OpenSnapshot {
    subject: Subject,
    info: SnapshotInfo,
    _used: SnapshotUse,
}

/// The same of a snapshot that is known by its number alone.
pub struct SnapshotUse {
    shared: Arc<Shared>,
    id: VolumeId,
}

impl Catalog {
    /// Opens a snapshot that was found before; `Gone` if it was deleted since.
    pub fn use_snapshot(&self, id: VolumeId) -> Result<SnapshotUse> {
        let is_there = || match self.shared.fs.is_snapshot(id) {
            Ok(true) => Ok(()),
            Ok(false) | Err(fs::Error::Stale) => Err(Error::Gone),
            Err(error) => Err(Error::Fs(error)),
        };
        // Once without the lock: a new one may have to be written first.
        is_there()?;
        let mut open = self.shared.readers.0.lock();
        is_there()?;
        open.entry(id).or_default().readers += 1;
        Ok(SnapshotUse { shared: Arc::clone(&self.shared), id })
    }
}

impl OpenSnapshot {
    /// Finds and opens it; the name letter for letter.
    pub(super) fn open(subject: &Subject, name: &str) -> Result<OpenSnapshot> {
        let shared = subject.shared();
        let mut open = shared.readers.0.lock();
        let info = shared.fs.snapshot_lookup(subject.volume(), name)?;
        let info = info.ok_or_else(|| subject.missing(name))?;
        open.entry(info.id).or_default().readers += 1;
        let used = SnapshotUse { shared: Arc::clone(shared), id: info.id };
        Ok(OpenSnapshot { subject: subject.clone(), info, _used: used })
    }

    /// Its volume, read-only.
    pub fn volume(&self) -> VolumeId {
        self.info.id
    }

    /// Its name when it was opened.
    pub fn name(&self) -> &str {
        &self.info.name
    }

    pub(super) fn subject(&self) -> &Subject {
        &self.subject
    }

    pub(super) fn info(&self) -> &SnapshotInfo {
        &self.info
    }
}

impl Drop for SnapshotUse {
    fn drop(&mut self) {
        let mut open = self.shared.readers.0.lock();
        let Some(entry) = open.get_mut(&self.id) else { return };
        entry.readers = entry.readers.saturating_sub(1);
        if entry.readers > 0 {
            return;
        }
        if let Some((subject, name)) = open.remove(&self.id).and_then(|entry| entry.doomed) {
            // What cannot be deleted now goes when the names are next loaded.
            let _ = self.shared.fs.snapshot_delete(subject.volume(), &name);
        }
    }
}

impl fmt::Debug for SnapshotUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SnapshotUse({})", self.id.0)
    }
}

impl fmt::Debug for OpenSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpenSnapshot({}@{})", self.subject.name(), self.info.name)
    }
}

/// Takes a snapshot's name, and the snapshot itself once nobody has it open. True: that is later.
pub(super) fn retire(subject: &Subject, info: &SnapshotInfo) -> Result<bool> {
    let shared = subject.shared();
    let mut open = shared.readers.0.lock();
    let Some(entry) = open.get_mut(&info.id) else {
        shared.fs.snapshot_delete(subject.volume(), &info.name).map_err(busy(subject, info))?;
        return Ok(false);
    };
    let hidden = hidden_name(info.id);
    shared.fs.snapshot_rename(subject.volume(), &info.name, &hidden)?;
    entry.doomed = Some((subject.clone(), hidden));
    Ok(true)
}

/// The state of this moment takes a snapshot's place under its name; who has the old one open goes
/// on reading that.
pub(super) fn refresh(subject: &Subject, info: &SnapshotInfo) -> Result<()> {
    let shared = subject.shared();
    let mut open = shared.readers.0.lock();
    let entry = open.get_mut(&info.id);
    let hidden = entry.as_ref().map(|_| hidden_name(info.id));
    let made = shared.fs.snapshot_refresh(subject.volume(), &info.name, hidden.as_deref());
    made.map_err(busy(subject, info))?;
    if let Some((entry, hidden)) = entry.zip(hidden) {
        entry.doomed = Some((subject.clone(), hidden));
    }
    Ok(())
}

/// What a snapshot is called that was deleted while it was open.
fn hidden_name(id: VolumeId) -> String {
    format!(".deleted-{}", id.0)
}

fn busy<'a>(subject: &'a Subject, info: &'a SnapshotInfo) -> impl Fn(fs::Error) -> Error + 'a {
    move |error| match error {
        fs::Error::Busy => Error::Held {
            what: format!("deletion of '{}@{}'", subject.name(), info.name),
            why: "it is held".to_owned(),
            remedy: "release it first: lunfs snapshot release".to_owned(),
        },
        error => Error::Fs(error),
    }
}
