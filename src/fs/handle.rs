//! Open files.

use super::core::{Core, Inode};
use super::error::{Error, Result};
use super::file::Wait;
use super::inode::attr_of;
use super::types::*;
use std::sync::atomic::Ordering;
use std::sync::Arc;

/// An open file; clones share it. Dropping the last one of an unlinked inode frees it.
pub struct File {
    core: Arc<Core>,
    inode: Arc<Inode>,
}

impl Clone for File {
    fn clone(&self) -> File {
        File::new(self.core.clone(), self.inode.clone())
    }
}

impl Drop for File {
    fn drop(&mut self) {
        if self.inode.opens.fetch_sub(1, Ordering::SeqCst) == 1 {
            // A failure leaves an orphan, which the next mount frees.
            let _ = self.core.closed_last(&self.inode);
        }
    }
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("File").field(&self.inode.id).finish()
    }
}

fn waited<T>(r: Option<Result<T>>) -> Result<T> {
    r.unwrap_or(Err(Error::Busy))
}

impl File {
    pub(crate) fn new(core: Arc<Core>, inode: Arc<Inode>) -> File {
        inode.opens.fetch_add(1, Ordering::SeqCst);
        File { core, inode }
    }

    /// Which inode.
    pub fn id(&self) -> NodeId {
        self.inode.id
    }

    pub(crate) fn core(&self) -> &Core {
        &self.core
    }

    pub(crate) fn inode(&self) -> &Inode {
        &self.inode
    }

    fn check(&self) -> Result<()> {
        if self.core.closed.load(Ordering::Relaxed)
            || self.inode.volume.deleted.load(Ordering::Relaxed)
        {
            return Err(Error::Stale);
        }
        self.core.check_regular(&self.inode)
    }

    /// Its attributes.
    pub fn attr(&self) -> Result<Attr> {
        if self.inode.volume.deleted.load(Ordering::Relaxed) {
            return Err(Error::Stale);
        }
        attr_of(&self.inode)
    }

    /// Its length.
    pub fn size_bytes(&self) -> u64 {
        self.inode.state.read().meta.size
    }

    /// Fills `out` from `offset` up to the end of the file; how many bytes that was. Holes are
    /// zeros.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<usize> {
        self.read_summed_at(offset, out, None)
    }

    /// As `read_at`; where whole blocks of 4 KiB are read, the CRC-32C of each is appended to
    /// `sums` as it is kept beside the pointer to it, not computed from `out`.
    pub fn read_summed_at(
        &self,
        offset: u64,
        out: &mut [u8],
        mut sums: Option<&mut Vec<u32>>,
    ) -> Result<usize> {
        self.check()?;
        let mut done = 0;
        // In parts: what is resolved at once is bounded.
        for part in out.chunks_mut(ATOMIC_WRITE_BYTES) {
            let (at, sums) = (offset + done as u64, sums.as_deref_mut());
            let n = waited(self.core.read_file(&self.inode, at, part, Wait::May, sums))?;
            done += n;
            if n < part.len() {
                break;
            }
        }
        Ok(done)
    }

    /// As `read_at`, from memory alone; `None`: a block must be read from a device.
    pub fn try_read_at(&self, offset: u64, out: &mut [u8]) -> Option<Result<usize>> {
        self.try_read_summed_at(offset, out, None)
    }

    /// As `read_summed_at`, from memory alone.
    pub fn try_read_summed_at(
        &self,
        offset: u64,
        out: &mut [u8],
        sums: Option<&mut Vec<u32>>,
    ) -> Option<Result<usize>> {
        if let Err(e) = self.check() {
            return Some(Err(e));
        }
        if out.len() > ATOMIC_WRITE_BYTES {
            return None;
        }
        self.core.read_file(&self.inode, offset, out, Wait::Never, sums)
    }

    /// Writes all of `data`, growing the file where needed (sparse). Sets mtime and ctime. Atomic
    /// up to [`ATOMIC_WRITE_BYTES`].
    pub fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.check()?;
        let end = offset.checked_add(data.len() as u64);
        if end.is_none_or(|end| end > MAX_FILE_BYTES) {
            return Err(Error::TooBig);
        }
        let mut done = 0;
        for part in data.chunks(ATOMIC_WRITE_BYTES) {
            let at = offset + done;
            waited(self.core.write_file(&self.inode, at, part, Wait::May))?;
            done += part.len() as u64;
        }
        Ok(())
    }

    /// As `write_at`, in memory alone; `None`: nothing was changed, use `write_at`.
    pub fn try_write_at(&self, offset: u64, data: &[u8]) -> Option<Result<()>> {
        if let Err(e) = self.check() {
            return Some(Err(e));
        }
        if data.len() > ATOMIC_WRITE_BYTES {
            return None;
        }
        self.core.write_file(&self.inode, offset, data, Wait::Never)
    }

    /// Appends atomically beside other appenders; where it went. At most [`ATOMIC_WRITE_BYTES`].
    pub fn append(&self, data: &[u8]) -> Result<u64> {
        self.check()?;
        if data.len() > ATOMIC_WRITE_BYTES {
            return Err(Error::Invalid("an append of this length"));
        }
        self.core.append_file(&self.inode, data)
    }

    /// Reads the range `offset..offset+len`, hands it to `change`, and links what comes back (same
    /// length) only if the range still holds what was read, else again. `change` returning Err ends
    /// it. All of it one atomic step. `len` is at most [`ATOMIC_WRITE_BYTES`].
    pub fn update_at<E>(
        &self,
        offset: u64,
        len: usize,
        change: impl FnMut(&mut [u8]) -> std::result::Result<(), E>,
    ) -> Result<std::result::Result<(), E>> {
        self.check()?;
        self.core.update_file(&self.inode, offset, len, change)
    }

    /// Makes the range a hole (partial blocks are zeroed); does not change the size. O(tree
    /// height).
    pub fn punch(&self, offset: u64, len: u64) -> Result<()> {
        self.check()?;
        self.core.punch_file(&self.inode, offset, len)
    }

    /// See [`Fs::clone_range`](super::Fs::clone_range); the handle is the source's.
    pub fn clone_range(&self, from: u64, target: &File, to: u64, len: u64) -> Result<u64> {
        self.check()?;
        target.check()?;
        if !Arc::ptr_eq(&self.core, &target.core) {
            return Err(Error::Invalid("a clone from another pool"));
        }
        self.core.clone_range(&self.inode, from, &target.inode, to, len)
    }

    /// The range reads as zeros and has blocks behind it (fallocate ZERO_RANGE); may grow the file.
    pub fn allocate_zeros(&self, offset: u64, len: u64, keep_size: bool) -> Result<()> {
        self.check()?;
        self.core.allocate_file(&self.inode, offset, len, keep_size)
    }

    /// Truncates or extends (sparse).
    pub fn set_size(&self, size_bytes: u64) -> Result<()> {
        self.check()?;
        self.core.truncate_file(&self.inode, size_bytes)
    }

    /// First data at or after `offset`; `None`: only a hole up to the end.
    pub fn seek_data(&self, offset: u64) -> Result<Option<u64>> {
        self.check()?;
        self.core.seek_file(&self.inode, offset, true)
    }

    /// First hole at or after `offset` (the end of the file counts as one).
    pub fn seek_hole(&self, offset: u64) -> Result<u64> {
        self.check()?;
        let found = self.core.seek_file(&self.inode, offset, false)?;
        Ok(found.unwrap_or_else(|| self.size_bytes().max(offset)))
    }

    /// Makes all that returned before durable (of this file, and in fact of all).
    pub fn sync(&self) -> Result<()> {
        self.core.sync()
    }
}
