//! Open files of the mount.
//!
//! Invariants: a handle's number is never used again while the mount stands; number 0 is no handle
//! (directories need none that the kernel would send back). What is open lives until RELEASE, even
//! when its last name is gone.

use super::errno::{OrErrno, Result};
use crate::fs::File;
use crate::lun::{DataFile, Lun, SnapshotUse, MAX_ATTRIBUTES_TEXT_BYTES};
use dashmap::DashMap;
use fuser::{Errno, FileHandle, LockOwner};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// What is open.
pub enum Handle {
    /// A file of the ordinary tree, or a LUN's file that can only be read.
    File(OpenFile),
    /// A directory.
    Directory(OpenDirectory),
    /// A LUN's `data`.
    Data(OpenData),
    /// A LUN's `attributes`.
    Attributes(OpenAttributes),
    /// A LUN's `log`, opened for reading, appending or both.
    Log(File, Arc<Lun>),
}

/// An open file of the ordinary tree or of a snapshot.
pub struct OpenFile {
    /// The file.
    pub file: File,
    /// Reads only (LUN files kept by the LUN layer).
    pub read_only: bool,
    /// [`Handles::privileges`] when it was last seen that a write has no privileges to take away.
    pub unprivileged_at: AtomicU64,
    /// The snapshot that it is in.
    pub _snapshot: Option<SnapshotUse>,
}

/// An open directory: kept so that it can be listed though it was removed.
pub struct OpenDirectory {
    /// The directory.
    pub file: File,
    /// The snapshot that it is in.
    pub _snapshot: Option<SnapshotUse>,
}

/// An open `data`.
pub struct OpenData {
    /// The file with the lease's rules.
    pub file: DataFile,
    /// Who writes it.
    pub writers: Writers,
}

impl OpenData {
    /// Nobody has written yet.
    pub fn new(file: DataFile) -> OpenData {
        OpenData { file, writers: Writers::default() }
    }

    /// FLUSH: gives the lease back with the last who wrote.
    pub fn flush(&self, owner: LockOwner) {
        if self.writers.closed_by(owner) {
            self.file.flush();
        }
    }
}

/// Who has written through a handle and not closed it since.
///
/// A FLUSH comes for every descriptor of a handle that is closed, also for those that a fork(2)
/// made in another process and its execve(2) closes at once. Only the table of descriptors that it
/// belonged to (the lock owner) tells that from the writer's own close(2). Whoever has not written
/// is not known, and not missed: the lease is taken again by a write.
#[derive(Debug, Default)]
pub struct Writers(Mutex<Vec<u64>>);

/// Tables of descriptors that one handle is written through: beyond these, any close counts.
const MAX_WRITERS: usize = 32;

impl Writers {
    /// `owner` writes; `None` for pages that the kernel writes back on nobody's account.
    pub fn wrote(&self, owner: Option<LockOwner>) {
        let Some(LockOwner(owner)) = owner else { return };
        let mut writers = self.0.lock();
        if !writers.contains(&owner) {
            if writers.len() >= MAX_WRITERS {
                writers.clear();
            }
            writers.push(owner);
        }
    }

    /// `owner` closed a descriptor; whether nobody else is known to write.
    pub fn closed_by(&self, LockOwner(owner): LockOwner) -> bool {
        let mut writers = self.0.lock();
        writers.retain(|&writer| writer != owner);
        writers.is_empty()
    }
}

/// Why a text is refused before it is whole.
pub const TOO_LONG: &str = "the text is longer than 64 KiB";

/// An open `attributes`. What is written waits here until close(2) or fsync(2) asks for the whole.
pub struct OpenAttributes {
    /// The LUN.
    pub lun: Arc<Lun>,
    /// Who writes it.
    pub writers: Writers,
    text: Mutex<Text>,
}

impl OpenAttributes {
    /// Opens; `truncate` is O_TRUNC.
    pub fn new(lun: Arc<Lun>, truncate: bool) -> Result<OpenAttributes> {
        let shown = if truncate { String::new() } else { lun.attributes_toml().or_errno()? };
        let text = Mutex::new(Text { bytes: shown.into_bytes(), changed: false });
        Ok(OpenAttributes { lun, writers: Writers::default(), text })
    }

    /// Reads. Whoever begins at the start and wrote nothing sees the attributes of this moment.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<usize> {
        let mut text = self.text.lock();
        if offset == 0 && !text.changed {
            text.bytes = self.lun.attributes_toml().or_errno()?.into_bytes();
        }
        Ok(text.read(offset, out))
    }

    /// Writes into the buffer. EFBIG beyond [`MAX_ATTRIBUTES_TEXT_BYTES`].
    pub fn write(&self, offset: u64, data: &[u8], append: bool) -> Result<()> {
        let mut text = self.text.lock();
        let offset = if append { text.bytes.len() as u64 } else { offset };
        text.write(offset, data).inspect_err(|_| self.lun.note_refused_attributes(TOO_LONG))
    }

    /// ftruncate on the buffer.
    pub fn set_size(&self, size_bytes: u64) -> Result<()> {
        self.text.lock().set_size(size_bytes)
    }

    /// Bytes in the buffer.
    pub fn size_bytes(&self) -> u64 {
        self.text.lock().bytes.len() as u64
    }

    /// Applies what was written, all or nothing. EINVAL if it is refused; it is then forgotten, so
    /// that the error is told once.
    pub fn apply(&self) -> Result<()> {
        let mut text = self.text.lock();
        let Some(written) = text.take() else {
            return Ok(());
        };
        self.lun.apply_attributes(&written).or_errno()
    }
}

/// The buffer of an open `attributes`.
#[derive(Debug, Default)]
struct Text {
    bytes: Vec<u8>,
    changed: bool,
}

impl Text {
    fn read(&self, offset: u64, out: &mut [u8]) -> usize {
        let rest = usize::try_from(offset).ok().and_then(|from| self.bytes.get(from..));
        let rest = rest.unwrap_or_default();
        let count = rest.len().min(out.len());
        if let (Some(to), Some(from)) = (out.get_mut(..count), rest.get(..count)) {
            to.copy_from_slice(from);
        }
        count
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let end = offset.checked_add(data.len() as u64).ok_or(Errno::EFBIG)?;
        if end > MAX_ATTRIBUTES_TEXT_BYTES as u64 {
            return Err(Errno::EFBIG);
        }
        let (offset, end) = (offset as usize, end as usize);
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        if let Some(place) = self.bytes.get_mut(offset..end) {
            place.copy_from_slice(data);
        }
        self.changed = true;
        Ok(())
    }

    fn set_size(&mut self, size_bytes: u64) -> Result<()> {
        if size_bytes > MAX_ATTRIBUTES_TEXT_BYTES as u64 {
            return Err(Errno::EFBIG);
        }
        self.bytes.resize(size_bytes as usize, 0);
        // An empty text says nothing yet: what follows is written before the close.
        self.changed |= size_bytes != 0;
        Ok(())
    }

    fn take(&mut self) -> Option<Vec<u8>> {
        std::mem::take(&mut self.changed).then(|| self.bytes.clone())
    }
}

/// All that is open.
pub struct Handles {
    open: DashMap<u64, Arc<Handle>>,
    next: AtomicU64,
    privileges: AtomicU64,
}

impl Handles {
    /// None.
    pub fn new() -> Handles {
        Handles { open: DashMap::new(), next: AtomicU64::new(1), privileges: AtomicU64::new(1) }
    }

    /// Gives it a number.
    pub fn insert(&self, handle: Handle) -> FileHandle {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.insert(number, Arc::new(handle));
        FileHandle(number)
    }

    /// What has this number; EBADF if nothing.
    pub fn get(&self, number: FileHandle) -> Result<Arc<Handle>> {
        let found = self.open.get(&number.0).map(|handle| Arc::clone(handle.value()));
        found.ok_or(Errno::EBADF)
    }

    /// RELEASE.
    pub fn remove(&self, number: FileHandle) {
        // Dropped outside the table's lock: the last file of an unlinked inode frees it.
        let last = self.open.remove(&number.0);
        drop(last);
    }

    /// Rises whenever some file may have gained privileges (set-user-id, file capabilities): open
    /// files then look again at their next write.
    pub fn privileges(&self) -> u64 {
        self.privileges.load(Ordering::Acquire)
    }

    /// Some file may have gained privileges.
    pub fn privileges_gained(&self) {
        self.privileges.fetch_add(1, Ordering::AcqRel);
    }
}

impl Default for Handles {
    fn default() -> Self {
        Handles::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_written_in_pieces_and_taken_once() {
        let mut text = Text { bytes: b"size = 1\n".to_vec(), changed: false };
        assert_eq!(text.take(), None);
        text.set_size(0).unwrap();
        assert_eq!(text.take(), None);
        text.write(0, b"vendor = ").unwrap();
        text.write(9, b"\"x\"\n").unwrap();
        assert_eq!(text.take().unwrap(), b"vendor = \"x\"\n");
        assert_eq!(text.take(), None);
    }

    #[test]
    fn only_the_last_writer_closes() {
        let writers = Writers::default();
        assert!(writers.closed_by(LockOwner(1)));
        writers.wrote(Some(LockOwner(1)));
        writers.wrote(Some(LockOwner(1)));
        writers.wrote(None);
        assert!(!writers.closed_by(LockOwner(2)));
        writers.wrote(Some(LockOwner(2)));
        assert!(!writers.closed_by(LockOwner(1)));
        assert!(writers.closed_by(LockOwner(2)));
        for owner in 0..1000 {
            writers.wrote(Some(LockOwner(owner)));
        }
        assert!(writers.0.lock().len() <= MAX_WRITERS);
    }

    #[test]
    fn text_is_bounded() {
        let mut text = Text::default();
        let most = MAX_ATTRIBUTES_TEXT_BYTES as u64;
        assert_eq!(text.write(most, b"x").unwrap_err(), Errno::EFBIG);
        assert_eq!(text.write(u64::MAX, b"x").unwrap_err(), Errno::EFBIG);
        assert_eq!(text.set_size(most + 1).unwrap_err(), Errno::EFBIG);
        assert!(text.bytes.is_empty());
        text.write(most - 1, b"x").unwrap();
    }

    #[test]
    fn text_is_read_up_to_its_end() {
        let text = Text { bytes: b"abcdef".to_vec(), changed: false };
        let mut out = [0u8; 4];
        assert_eq!(text.read(4, &mut out), 2);
        assert_eq!(&out[..2], b"ef");
        assert_eq!(text.read(6, &mut out), 0);
        assert_eq!(text.read(u64::MAX, &mut out), 0);
    }
}
