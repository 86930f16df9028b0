//! What changed of a disk since one of its snapshots or bookmarks, asked range by range while the
//! disk is used.
//!
//! Invariant: an answer has all that was written before it was asked for. What is written
//! meanwhile may be in it; what cannot be told any more is called changed.

use super::block_io::{BlockError, ChangeMap, ChangeRun};
use super::error::Result;
use super::history::Subject;
use super::readers::OpenSnapshot;
use super::unit::Lun;
use crate::fs::{self, Diff, DiffBase, File, VolumeId};
use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::Arc;

/// A LUN, or a snapshot of it, beside an earlier state of it.
pub struct ChangedSince {
    disk: Arc<Lun>,
    base: Base,
}

enum Base {
    /// It stays while this does.
    Snapshot(OpenSnapshot),
    /// An epoch, which says something of this volume alone.
    Bookmark { of: VolumeId, epoch: u64 },
}

impl Lun {
    /// Whose snapshots it can be compared with: its own, or those of the LUN that it is one of.
    fn line(self: &Arc<Lun>) -> Subject {
        match self.own_snapshot() {
            Some(open) => open.subject().clone(),
            None => Subject::Lun(Arc::clone(self)),
        }
    }

    /// Its volume, and the end of its history: for a bookmark.
    fn end_of_line(&self) -> (VolumeId, u64) {
        match self.own_snapshot() {
            Some(open) => (open.info().of, open.info().epoch),
            None => (self.volume(), u64::MAX),
        }
    }

    /// Names of the snapshots and bookmarks that [`Lun::changed_since`] knows. Some bookmark among
    /// them may be of no use for this state of it.
    pub fn change_bases(self: &Arc<Lun>) -> Result<Vec<String>> {
        self.line().names(|names| names.values().map(|one| one.name.clone()).collect())
    }

    /// What changed since a snapshot or a bookmark, which is found without regard to case.
    /// `NoSnapshot`; `Snapshot`: a bookmark that says nothing of this state.
    pub fn changed_since(self: &Arc<Lun>, name: &str) -> Result<ChangedSince> {
        let line = self.line();
        let known = line.known(name)?;
        let base = match known.is_bookmark {
            true => {
                let (of, to) = self.end_of_line();
                let epoch = line.bookmark_epoch(&known.name, of, to)?;
                Base::Bookmark { of: self.volume(), epoch }
            }
            false => Base::Snapshot(OpenSnapshot::open(&line, &known.name)?),
        };
        Ok(ChangedSince { disk: Arc::clone(self), base })
    }
}

impl ChangedSince {
    fn check(&self, offset: u64, length: u64) -> std::result::Result<(), BlockError> {
        if !self.disk.live.sanitize.is_idle() {
            return Err(BlockError::Sanitizing);
        }
        let block = u64::from(self.disk.live.block_bytes.load(Ordering::Acquire).max(1));
        if offset % block != 0 || length % block != 0 || length == 0 {
            return Err(BlockError::Invalid("not a multiple of the block size"));
        }
        match offset.checked_add(length) {
            Some(end) if end <= self.disk.size_bytes() => Ok(()),
            _ => Err(BlockError::OutOfRange),
        }
    }

    /// `None`: the disk was rolled back, and the bookmark says nothing of what it is now.
    fn ask(&self, data: &File, offset: u64, length: u64, max: usize) -> fs::Result<Option<Diff>> {
        let base = match &self.base {
            Base::Snapshot(open) => DiffBase::Snapshot(open.volume()),
            Base::Bookmark { of, epoch } if data.id().volume == *of => DiffBase::Epoch(*epoch),
            Base::Bookmark { .. } => return Ok(None),
        };
        data.changed_since(base, offset..offset + length, max).map(Some)
    }
}

impl ChangeMap for ChangedSince {
    fn naa(&self) -> [u8; 16] {
        self.disk.identity().naa
    }

    fn runs(
        &self,
        offset: u64,
        length: u64,
        max: usize,
    ) -> std::result::Result<Vec<ChangeRun>, BlockError> {
        self.check(offset, length)?;
        let found = self.disk.on_data(|data| self.ask(data, offset, length, max));
        let found = found.map_err(|error| self.disk.block_error(error, offset))?;
        Ok(match found {
            None => vec![ChangeRun { length_bytes: length, is_changed: true }],
            Some(diff) => runs_of(&diff, offset, offset + length, max),
        })
    }
}

/// Alternating runs from `offset` up to `end`, or up to where the answer ends.
fn runs_of(diff: &Diff, offset: u64, end: u64, max: usize) -> Vec<ChangeRun> {
    let end = diff.next_bytes.map_or(end, |next| next.min(end));
    let mut runs: Vec<ChangeRun> = Vec::new();
    let mut at = offset;
    let mut add = |until: u64, is_changed: bool| {
        let until = until.min(end);
        let Some(length_bytes) = until.checked_sub(at).filter(|length| *length > 0) else {
            return;
        };
        at = until;
        match runs.last_mut() {
            Some(last) if last.is_changed == is_changed => last.length_bytes += length_bytes,
            _ => runs.push(ChangeRun { length_bytes, is_changed }),
        }
    };
    for extent in &diff.extents {
        add(extent.offset_bytes, false);
        add(extent.offset_bytes + extent.length_bytes, true);
    }
    add(end, false);
    runs.truncate(max);
    runs
}

impl fmt::Debug for ChangedSince {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.base {
            Base::Snapshot(open) => write!(f, "ChangedSince({:?}, {open:?})", self.disk),
            Base::Bookmark { epoch, .. } => write!(f, "ChangedSince({:?}, {epoch})", self.disk),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::ChangedExtent;

    fn run(length_bytes: u64, is_changed: bool) -> ChangeRun {
        ChangeRun { length_bytes, is_changed }
    }

    #[test]
    fn runs_alternate_from_the_offset_to_where_the_answer_ends() {
        let extent = |offset_bytes, length_bytes, is_data| ChangedExtent {
            offset_bytes,
            length_bytes,
            is_data,
        };
        let extents = vec![extent(0, 8192, true), extent(8192, 4096, false)];
        let mut diff = Diff { extents, next_bytes: None };
        assert_eq!(runs_of(&diff, 512, 20480, 9), [run(11776, true), run(8192, false)]);
        assert_eq!(runs_of(&diff, 12288, 20480, 9), [run(8192, false)]);
        diff.next_bytes = Some(16384);
        assert_eq!(runs_of(&diff, 512, 20480, 9), [run(11776, true), run(4096, false)]);
        assert_eq!(runs_of(&diff, 512, 20480, 1), [run(11776, true)]);
    }
}
