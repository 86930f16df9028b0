//! `data` opened through the mount: an open file with the lease's rules.

use super::error::Result;
use crate::fs::Attr;

/// What open(2) asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OpenIntent {
    /// O_RDONLY or O_RDWR.
    pub read: bool,
    /// O_WRONLY or O_RDWR.
    pub write: bool,
    /// O_TRUNC.
    pub truncate: bool,
}

/// An open `data`. Reads always work. Writes need the file lease, which open takes where it may, and
/// which a write takes again after a flush. [`DataFile::flush`] belongs to FLUSH, dropping to RELEASE.
#[derive(Debug)]
pub struct DataFile {
    _p: (),
}

#[allow(unused_variables)]
impl DataFile {
    /// Attributes of the inode.
    pub fn attr(&self) -> Result<Attr> {
        todo!()
    }
    /// Up to the end of the file; how many bytes that was.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<usize> {
        todo!()
    }
    /// From memory alone; `None`: use `read_at`.
    pub fn try_read_at(&self, offset: u64, out: &mut [u8]) -> Option<Result<usize>> {
        todo!()
    }
    /// Writes; beyond the end it is a resize.
    pub fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        todo!()
    }
    /// At the end (O_APPEND); where it went.
    pub fn append(&self, data: &[u8]) -> Result<u64> {
        todo!()
    }
    /// ftruncate: a resize. Growing works under a block lease too; shrinking is `Busy` while a block
    /// client is logged in.
    pub fn set_size(&self, size_bytes: u64) -> Result<()> {
        todo!()
    }
    /// fallocate PUNCH_HOLE|KEEP_SIZE.
    pub fn punch(&self, offset: u64, length: u64) -> Result<()> {
        todo!()
    }
    /// fallocate ZERO_RANGE.
    pub fn allocate_zeros(&self, offset: u64, length: u64, keep_size: bool) -> Result<()> {
        todo!()
    }
    /// SEEK_DATA; `None`: ENXIO.
    pub fn seek_data(&self, offset: u64) -> Result<Option<u64>> {
        todo!()
    }
    /// SEEK_HOLE.
    pub fn seek_hole(&self, offset: u64) -> Result<u64> {
        todo!()
    }
    /// fsync.
    pub fn sync(&self) -> Result<()> {
        todo!()
    }
    /// FLUSH, at each close(2): gives the file lease back. With the last writer's, block clients go on
    /// and get a unit attention.
    pub fn flush(&self) {
        todo!()
    }
}
