//! What changed of a LUN's `data` between two of its snapshots, or since one.

use super::catalog::Catalog;
use super::error::{Error, Result};
use super::history::Subject;
use super::readers::{OpenSnapshot, SnapshotUse};
use crate::fs::{ChangedExtent, DiffBase, File, Fs, NodeId, VolumeId};
use std::sync::atomic::Ordering;
use std::sync::Arc;

/// Extents that are asked for at once.
pub const DIFF_PAGE_EXTENTS: usize = 4096;

/// A difference that is read page by page. It holds what it compares.
pub struct Difference {
    fs: Arc<Fs>,
    base: DiffBase,
    to: File,
    next_bytes: Option<u64>,
    _older: Option<OpenSnapshot>,
    _newer: Newer,
}

/// What the older state is compared with.
enum Newer {
    Snapshot(OpenSnapshot),
    /// The state of this moment: a snapshot that nobody sees.
    Now(Hidden),
}

/// A snapshot that lives for one command.
struct Hidden {
    subject: Subject,
    id: VolumeId,
    name: String,
    /// Names that are read again do not clear it away.
    _used: SnapshotUse,
}

impl Hidden {
    fn make(catalog: &Catalog, subject: &Subject, number: u64) -> Result<Hidden> {
        let name = format!(".now-{number}");
        let made = subject.shared().fs.snapshot_create(&[(subject.volume(), &name)], false)?;
        let id = made.first().copied().ok_or(Error::Gone)?;
        Ok(Hidden { subject: subject.clone(), id, name, _used: catalog.use_snapshot(id)? })
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // What stays goes when the names are next loaded.
        let _ = self.subject.shared().fs.snapshot_delete(self.subject.volume(), &self.name);
    }
}

impl Catalog {
    /// What changed of `data` since the snapshot or bookmark `from`: up to the snapshot `to`, or to
    /// this moment. Its cost grows with the change.
    pub fn snapshot_diff(&self, of: &str, from: &str, to: Option<&str>) -> Result<Difference> {
        let subject = self.subject(of)?;
        subject.lun("a difference")?;
        let fs = Arc::clone(&self.shared.fs);
        // Before a snapshot is made that the loading of names would clear away.
        let known = subject.known(from)?;
        let newer = match to {
            Some(to) => Newer::Snapshot(self.open_snapshot(of, to)?),
            None => {
                let _one = self.shared.versions.lock();
                let number = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
                Newer::Now(Hidden::make(self, &subject, number)?)
            }
        };
        let newer_id = match &newer {
            Newer::Snapshot(open) => open.volume(),
            Newer::Now(hidden) => hidden.id,
        };
        let (base, older) = match known.is_bookmark {
            true => {
                let (of, epoch) = match &newer {
                    Newer::Snapshot(open) => (open.info().of, open.info().epoch),
                    Newer::Now(_) => (subject.volume(), u64::MAX),
                };
                (DiffBase::Epoch(subject.bookmark_epoch(&known.name, of, epoch)?), None)
            }
            false => {
                let open = OpenSnapshot::open(&subject, &known.name)?;
                (DiffBase::Snapshot(open.volume()), Some(open))
            }
        };
        let root = NodeId::root(newer_id);
        let to = fs.open_file(fs.lookup(root, b"data")?.id)?;
        Ok(Difference { fs, base, to, next_bytes: Some(0), _older: older, _newer: newer })
    }
}

impl Subject {
    /// The epoch of a bookmark, where it says something of the state that volume `of` had at
    /// `epoch`: of the states that came later in its own line.
    pub(super) fn bookmark_epoch(&self, name: &str, of: VolumeId, epoch: u64) -> Result<u64> {
        let all = self.shared().fs.bookmark_list(self.volume())?;
        let bookmark = all.into_iter().find(|one| one.name == name);
        let bookmark = bookmark.ok_or_else(|| self.missing(name))?;
        if bookmark.of == of && bookmark.epoch <= epoch {
            return Ok(bookmark.epoch);
        }
        let why = match bookmark.of == of {
            true => "the bookmark is younger than the snapshot",
            false => "a rollback lies between them",
        };
        Err(Error::Snapshot {
            what: format!("'{}@{name}' is no base for this difference", self.name()),
            why: why.to_owned(),
            remedy: "compare with a snapshot".to_owned(),
        })
    }
}

impl Difference {
    /// Length of the newer state in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.to.size_bytes()
    }

    /// The next extents, in ascending order; `None` at the end.
    pub fn page(&mut self) -> Result<Option<Vec<ChangedExtent>>> {
        let size = self.size_bytes();
        let Some(from) = self.next_bytes.filter(|from| *from < size) else {
            return Ok(None);
        };
        let found = self.fs.diff(self.base, self.to.id(), from, DIFF_PAGE_EXTENTS)?;
        self.next_bytes = found.next_bytes;
        let inside = found.extents.into_iter().filter(|extent| extent.offset_bytes < size);
        let cut = |extent: ChangedExtent| {
            let length_bytes = extent.length_bytes.min(size - extent.offset_bytes);
            ChangedExtent { length_bytes, ..extent }
        };
        Ok(Some(inside.map(cut).collect()))
    }
}

impl std::fmt::Debug for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Difference({:?} to {:?})", self.base, self.to)
    }
}
