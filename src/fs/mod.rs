//! The write-anywhere filesystem. It knows no LUN, no protocol and no tokio; it is synchronous, and
//! deterministic when driven by one thread.
//!
//! Contract for callers: every call may block on the device unless its name begins with `try_`.
//! A call that returned is seen by every call that begins later, through any handle; it is durable
//! only after [`Fs::sync`] (or [`File::sync`]) that began later returned Ok. After a crash the state is
//! that of a prefix of calls, each whole (writes up to [`ATOMIC_WRITE_BYTES`]).

mod error;
mod types;

pub use error::{Error, Result};
pub use types::*;

use crate::device::BlockDevice;
use std::sync::Arc;

/// How to open a pool.
pub struct OpenOptions {
    /// Bound of the block cache together with accepted, unwritten data.
    pub cache_bytes: u64,
    /// Wall clock for time stamps.
    pub clock: Arc<dyn Clock>,
    /// Run consistency points, write-out and reclaim on own threads (false: only inside calls, and by
    /// [`Fs::maintain`]: deterministic).
    pub background: bool,
}

/// How to make a pool.
pub struct FormatOptions {
    /// Identity of the pool: random.
    pub pool_id: [u8; 16],
    /// Time of creation.
    pub created: Timestamp,
    /// Where each device is found, for its label.
    pub paths: Vec<String>,
}

/// An open pool.
pub struct Fs {
    _p: (),
}

#[allow(unused_variables, missing_docs)]
impl Fs {
    /// Writes an empty pool over `devices` (at least 64 MiB each). The ordinary tree exists and is empty.
    pub fn format(devices: &[Arc<dyn BlockDevice>], options: &FormatOptions) -> Result<()> {
        todo!()
    }
    /// Opens and recovers. `Format` if it is none, of another version, incomplete or damaged.
    pub fn open(devices: Vec<Arc<dyn BlockDevice>>, options: OpenOptions) -> Result<Arc<Fs>> {
        todo!()
    }
    /// Last consistency point; later calls answer `Stale`. Idempotent.
    pub fn close(&self) -> Result<()> {
        todo!()
    }
    pub fn pool_id(&self) -> [u8; 16] {
        todo!()
    }
    pub fn stats(&self) -> PoolStats {
        todo!()
    }
    /// Makes everything durable that returned before.
    pub fn sync(&self) -> Result<()> {
        todo!()
    }
    /// Runs a whole consistency point now.
    pub fn consistency_point(&self) -> Result<()> {
        todo!()
    }
    /// One bounded step of what background threads would do; true if there is more.
    pub fn maintain(&self) -> Result<bool> {
        todo!()
    }
    /// Takes over space that the devices have gained.
    pub fn grow(&self) -> Result<()> {
        todo!()
    }

    // Volumes. A volume's name is any entry name; the layer above sets the rules.
    /// Makes a volume with an empty root directory; `setup` may then fill it: all of it appears at
    /// one instant, under a crash too, as far as it fits one group (a few small files do).
    pub fn volume_create(&self, name: &str, owner: Owner) -> Result<VolumeId> {
        todo!()
    }
    pub fn volume_lookup(&self, name: &str) -> Result<Option<VolumeId>> {
        todo!()
    }
    /// All but the ordinary tree, sorted by name.
    pub fn volume_list(&self) -> Result<Vec<(String, VolumeId)>> {
        todo!()
    }
    pub fn volume_rename(&self, from: &str, to: &str) -> Result<()> {
        todo!()
    }
    /// Returns at once; space comes back in the background. Open files of it answer `Stale` afterwards.
    pub fn volume_delete(&self, name: &str) -> Result<()> {
        todo!()
    }
    /// Bytes of data and metadata in use by the volume's files (data blocks only, exact).
    pub fn volume_used_bytes(&self, volume: VolumeId) -> Result<u64> {
        todo!()
    }

    // Names and inodes. No permission is checked: the file door does (or lets the kernel do) it.
    /// `.` and `..` are answered too.
    pub fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Attr> {
        todo!()
    }
    pub fn getattr(&self, id: NodeId) -> Result<Attr> {
        todo!()
    }
    pub fn setattr(&self, id: NodeId, change: &SetAttr) -> Result<Attr> {
        todo!()
    }
    pub fn create(&self, dir: NodeId, name: &[u8], node: NewNode, owner: Owner) -> Result<Attr> {
        todo!()
    }
    pub fn link(&self, id: NodeId, dir: NodeId, name: &[u8]) -> Result<Attr> {
        todo!()
    }
    /// Not for directories (`IsDirectory`).
    pub fn unlink(&self, dir: NodeId, name: &[u8]) -> Result<()> {
        todo!()
    }
    pub fn rmdir(&self, dir: NodeId, name: &[u8]) -> Result<()> {
        todo!()
    }
    pub fn rename(
        &self,
        dir: NodeId,
        name: &[u8],
        to_dir: NodeId,
        to_name: &[u8],
        mode: RenameMode,
    ) -> Result<()> {
        todo!()
    }
    pub fn readlink(&self, id: NodeId) -> Result<Vec<u8>> {
        todo!()
    }
    /// At most `max` entries after `cookie` (0: from the start), without `.` and `..`.
    pub fn readdir(&self, dir: NodeId, cookie: u64, max: usize) -> Result<Vec<DirEntry>> {
        todo!()
    }
    pub fn parent(&self, dir: NodeId) -> Result<NodeId> {
        todo!()
    }
    pub fn xattr_get(&self, id: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        todo!()
    }
    pub fn xattr_set(&self, id: NodeId, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        todo!()
    }
    pub fn xattr_list(&self, id: NodeId) -> Result<Vec<Vec<u8>>> {
        todo!()
    }
    pub fn xattr_remove(&self, id: NodeId, name: &[u8]) -> Result<()> {
        todo!()
    }

    /// Opens a regular file (or a directory, for `sync` alone). While any `File` of an inode lives the
    /// inode does, though its last name be unlinked.
    pub fn open_file(self: &Arc<Self>, id: NodeId) -> Result<File> {
        todo!()
    }
}

/// An open file; clones share it. Dropping the last one of an unlinked inode frees it.
#[derive(Clone)]
pub struct File {
    _p: (),
}

#[allow(unused_variables, missing_docs)]
impl File {
    pub fn id(&self) -> NodeId {
        todo!()
    }
    pub fn attr(&self) -> Result<Attr> {
        todo!()
    }
    pub fn size_bytes(&self) -> u64 {
        todo!()
    }
    /// Fills `out` from `offset` up to the end of the file; how many bytes that was. Holes are zeros.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<usize> {
        todo!()
    }
    /// As `read_at`, from memory alone; `None`: a block must be read from a device.
    pub fn try_read_at(&self, offset: u64, out: &mut [u8]) -> Option<Result<usize>> {
        todo!()
    }
    /// Writes all of `data`, growing the file where needed (sparse). Sets mtime and ctime.
    pub fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        todo!()
    }
    /// As `write_at`, in memory alone; `None`: nothing was changed, use `write_at`.
    pub fn try_write_at(&self, offset: u64, data: &[u8]) -> Option<Result<()>> {
        todo!()
    }
    /// Appends atomically beside other appenders; where it went.
    pub fn append(&self, data: &[u8]) -> Result<u64> {
        todo!()
    }
    /// Reads the range `offset..offset+len`, hands it to `change`, and links what comes back (same
    /// length) only if the range still holds what was read, else again. `change` returning Err ends it.
    /// All of it one atomic step. `len` is at most [`ATOMIC_WRITE_BYTES`].
    pub fn update_at<E>(
        &self,
        offset: u64,
        len: usize,
        change: impl FnMut(&mut [u8]) -> std::result::Result<(), E>,
    ) -> Result<std::result::Result<(), E>> {
        todo!()
    }
    /// Makes the range a hole (partial blocks are zeroed); does not change the size. O(tree height).
    pub fn punch(&self, offset: u64, len: u64) -> Result<()> {
        todo!()
    }
    /// The range reads as zeros and has blocks behind it (fallocate ZERO_RANGE); may grow the file.
    pub fn allocate_zeros(&self, offset: u64, len: u64, keep_size: bool) -> Result<()> {
        todo!()
    }
    /// Truncates or extends (sparse).
    pub fn set_size(&self, size_bytes: u64) -> Result<()> {
        todo!()
    }
    /// First data at or after `offset`; `None`: only a hole up to the end.
    pub fn seek_data(&self, offset: u64) -> Result<Option<u64>> {
        todo!()
    }
    /// First hole at or after `offset` (the end of the file counts as one).
    pub fn seek_hole(&self, offset: u64) -> Result<u64> {
        todo!()
    }
    /// Makes all that returned before durable (of this file, and in fact of all).
    pub fn sync(&self) -> Result<()> {
        todo!()
    }
}
