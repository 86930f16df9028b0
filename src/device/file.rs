//! A device in a file or a block device of the host.
//!
//! Invariants: an open device holds a flock, exclusive unless it is read-only, until it is dropped;
//! reads and writes go past the host's page cache (O_DIRECT) wherever the host takes that. Where it
//! does not, write-out is started right after each write, and at most [`BACKLOG_BYTES`] wait for
//! it: a flush that shares a file with an unpaced buffered write-out waits for all of that.
//! The size is read when the device is opened and by [`FileDevice::grow`] only: a file that is cut
//! behind its back gives read errors, never zeros.

use super::counters::{Counters, DeviceCounters};
use super::{check_range, Block, BlockDevice, BLOCK_BYTES};
use rustix::fs::{Advice, FallocateFlags, FlockOperation, OFlags};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Buffers of one vectored call: Linux takes no more (IOV_MAX).
const MAX_VECTORS: usize = 1024;
/// Without O_DIRECT: written bytes that may wait in the host's cache. A few MiB keep a device busy
/// and a flush short.
const BACKLOG_BYTES: u64 = 8 << 20;
/// Vectored calls that may in a row make no progress of a whole block before it is an error.
const MAX_STALLS: u32 = 3;
/// Mode of a pool file that is made: it holds other users' data.
const FILE_MODE: u32 = 0o600;

/// Why a device cannot be opened or made. Shown to users.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is none.
    #[error("{0}: no such file or device")]
    NotFound(PathBuf),
    /// `create` found a file.
    #[error("{0}: the file exists already\nIt may hold data, so it is left as it is.")]
    Exists(PathBuf),
    /// Another process holds it.
    #[error("{0}: in use by another process\nStop the server or command that has it open.")]
    InUse(PathBuf),
    /// A directory, a pipe, ….
    #[error("{0}: neither a regular file nor a block device")]
    NotADevice(PathBuf),
    /// The caller's rights do not suffice.
    #[error("{0}: permission denied")]
    Denied(PathBuf),
    /// A new file needs a size.
    #[error("{0}: a new file needs a size")]
    SizeMissing(PathBuf),
    /// A block device is as large as it is.
    #[error("{path}: the device has {actual_bytes} bytes, {wanted_bytes} were asked for")]
    SizeDiffers {
        /// Which.
        path: PathBuf,
        /// Its size.
        actual_bytes: u64,
        /// What the caller wanted.
        wanted_bytes: u64,
    },
    /// Anything else the host says.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What.
        source: io::Error,
    },
}

impl OpenError {
    fn from_io(path: &Path, source: io::Error) -> OpenError {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::NotFound => OpenError::NotFound(path),
            io::ErrorKind::AlreadyExists => OpenError::Exists(path),
            io::ErrorKind::PermissionDenied => OpenError::Denied(path),
            io::ErrorKind::IsADirectory => OpenError::NotADevice(path),
            io::ErrorKind::ResourceBusy | io::ErrorKind::WouldBlock => OpenError::InUse(path),
            _ => OpenError::Io { path, source },
        }
    }
}

/// How to open a device.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenMode {
    /// No write is possible; other readers may have it open too, a writer may not.
    pub read_only: bool,
    /// Use the host's page cache even where O_DIRECT works.
    pub buffered: bool,
}

/// A file or block device of the host.
pub struct FileDevice {
    file: File,
    path: PathBuf,
    direct: bool,
    is_block_device: bool,
    blocks: AtomicU64,
    /// Bytes written since write-out was last waited for (without O_DIRECT).
    backlog_bytes: AtomicU64,
    /// The host refused to punch holes: not asked again.
    no_discard: AtomicBool,
    counters: Counters,
}

impl FileDevice {
    /// Opens what is there.
    pub fn open(path: &Path, mode: OpenMode) -> Result<FileDevice, OpenError> {
        let is_block_device = kind_of(path)?;
        let file = open_host(path, mode.read_only, is_block_device)
            .map_err(|e| OpenError::from_io(path, e))?;
        FileDevice::from_file(file, path, mode, is_block_device)
    }

    /// Makes a sparse file of `size_bytes` (down to a whole block), or takes an existing block
    /// device, whose size `size_bytes` may not exceed. An existing file is refused unless
    /// `overwrite`; it is then emptied first.
    pub fn create(
        path: &Path,
        size_bytes: Option<u64>,
        overwrite: bool,
    ) -> Result<FileDevice, OpenError> {
        match kind_of(path) {
            Ok(true) => take_block_device(path, size_bytes),
            Ok(false) if overwrite => {
                let device = FileDevice::open(path, OpenMode::default())?;
                let size = size_bytes.unwrap_or(device.block_count() * BLOCK_BYTES as u64);
                device.empty_and_size(size).map_err(|e| OpenError::from_io(path, e))?;
                Ok(device)
            }
            Ok(false) => Err(OpenError::Exists(path.to_path_buf())),
            Err(OpenError::NotFound(_)) => {
                let size = size_bytes.ok_or_else(|| OpenError::SizeMissing(path.to_path_buf()))?;
                make_file(path, size)
            }
            Err(e) => Err(e),
        }
    }

    fn from_file(
        file: File,
        path: &Path,
        mode: OpenMode,
        is_block_device: bool,
    ) -> Result<FileDevice, OpenError> {
        let wrap = |e: io::Error| OpenError::from_io(path, e);
        let lock = match mode.read_only {
            true => FlockOperation::NonBlockingLockShared,
            false => FlockOperation::NonBlockingLockExclusive,
        };
        rustix::fs::flock(&file, lock).map_err(|e| wrap(e.into()))?;
        let size_bytes = size_of(&file).map_err(wrap)?;
        let mut device = FileDevice {
            file,
            path: path.to_path_buf(),
            direct: false,
            is_block_device,
            blocks: AtomicU64::new(size_bytes / BLOCK_BYTES as u64),
            backlog_bytes: AtomicU64::new(0),
            no_discard: AtomicBool::new(false),
            counters: Counters::default(),
        };
        if !mode.buffered {
            device.direct = device.try_direct().map_err(wrap)?;
        }
        Ok(device)
    }

    /// What is flushed into a file that nobody can open any more, or whose end was cut off, is not
    /// kept: such a flush must not seem good.
    fn check_still_there(&self) -> io::Result<()> {
        if self.is_block_device {
            return Ok(());
        }
        let stat = rustix::fs::fstat(&self.file)?;
        let gone = |what| Err(io::Error::new(io::ErrorKind::NotFound, what));
        if stat.st_nlink == 0 {
            return gone("the file was deleted");
        }
        if (stat.st_size as u64) < self.block_count() * BLOCK_BYTES as u64 {
            return gone("the file was truncated");
        }
        Ok(())
    }

    /// Switches O_DIRECT on and reads a block to see that the host means it; false where it does
    /// not.
    fn try_direct(&self) -> io::Result<bool> {
        let before = rustix::fs::fcntl_getfl(&self.file)?;
        match rustix::fs::fcntl_setfl(&self.file, before | OFlags::DIRECT) {
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(false),
            other => other?,
        }
        let mut block = Block::zeroed();
        let mut vector = [IoSliceMut::new(&mut block.0)];
        match rustix::io::preadv(&self.file, &mut vector, 0) {
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                rustix::fs::fcntl_setfl(&self.file, before)?;
                Ok(false)
            }
            // Any other error is the first real read's to report.
            _ => Ok(true),
        }
    }

    /// True where reads and writes go past the host's page cache.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was asked of the device since it was opened.
    pub fn counters(&self) -> DeviceCounters {
        self.counters.get()
    }

    /// Bytes that the host says it has by now.
    pub fn size_on_host(&self) -> io::Result<u64> {
        size_of(&self.file)
    }

    /// Makes a file `size_bytes` long if that is given and more than it has, and takes over the
    /// size that the file or block device has by now; the number of blocks.
    /// `InvalidInput`: it would shrink, or a block device is smaller than that.
    pub fn grow(&self, size_bytes: Option<u64>) -> io::Result<u64> {
        let actual = size_of(&self.file)?;
        let refuse = |why: &'static str| io::Error::new(io::ErrorKind::InvalidInput, why);
        match size_bytes {
            Some(wanted) if wanted > actual && self.is_block_device => {
                return Err(refuse("the block device is smaller than that"));
            }
            Some(wanted) if wanted > actual => {
                self.file.set_len(wanted / BLOCK_BYTES as u64 * BLOCK_BYTES as u64)?;
                self.file.sync_all()?;
            }
            Some(wanted) if wanted < actual => return Err(refuse("a device cannot be shrunk")),
            _ => {}
        }
        let blocks = size_of(&self.file)? / BLOCK_BYTES as u64;
        if blocks < self.block_count() {
            return Err(refuse("the device has become smaller"));
        }
        self.blocks.store(blocks, Ordering::Release);
        Ok(blocks)
    }

    fn empty_and_size(&self, size_bytes: u64) -> io::Result<()> {
        let blocks = size_bytes / BLOCK_BYTES as u64;
        self.file.set_len(0)?;
        self.file.set_len(blocks * BLOCK_BYTES as u64)?;
        self.file.sync_all()?;
        self.blocks.store(blocks, Ordering::Release);
        Ok(())
    }

    /// Without O_DIRECT: starts write-out of a range, and waits where too much is waiting.
    /// POSIX_FADV_DONTNEED starts it without waiting, and drops what an earlier call has written.
    fn pace(&self, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        let len = std::num::NonZeroU64::new(len_bytes);
        rustix::fs::fadvise(&self.file, offset_bytes, len, Advice::DontNeed)?;
        let waiting = self.backlog_bytes.fetch_add(len_bytes, Ordering::Relaxed) + len_bytes;
        if waiting > BACKLOG_BYTES {
            self.backlog_bytes.store(0, Ordering::Relaxed);
            rustix::fs::fdatasync(&self.file)?;
        }
        Ok(())
    }
}

impl BlockDevice for FileDevice {
    fn block_count(&self) -> u64 {
        self.blocks.load(Ordering::Acquire)
    }

    fn read(&self, first: u64, out: &mut [Box<Block>]) -> io::Result<()> {
        check_range(self, first, out.len() as u64)?;
        self.counters.read(out.len());
        in_whole_blocks(first, out.len(), io::ErrorKind::UnexpectedEof, |done, offset_bytes| {
            let mut vectors: Vec<_> = out
                .iter_mut()
                .skip(done)
                .take(MAX_VECTORS)
                .map(|block| IoSliceMut::new(&mut block.0))
                .collect();
            rustix::io::preadv(&self.file, &mut vectors, offset_bytes)
        })
    }

    fn write(&self, first: u64, data: &[&Block]) -> io::Result<()> {
        check_range(self, first, data.len() as u64)?;
        self.counters.wrote(data.len());
        in_whole_blocks(first, data.len(), io::ErrorKind::WriteZero, |done, offset_bytes| {
            let vectors: Vec<_> = data
                .iter()
                .skip(done)
                .take(MAX_VECTORS)
                .map(|block| IoSlice::new(&block.0))
                .collect();
            rustix::io::pwritev(&self.file, &vectors, offset_bytes)
        })?;
        if !self.direct && !data.is_empty() {
            self.pace(first * BLOCK_BYTES as u64, (data.len() * BLOCK_BYTES) as u64)?;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.backlog_bytes.store(0, Ordering::Relaxed);
        retry(|| rustix::fs::fdatasync(&self.file))?;
        self.check_still_there()?;
        self.counters.flushed();
        Ok(())
    }

    fn discard(&self, first: u64, count: u64) -> io::Result<()> {
        check_range(self, first, count)?;
        if count == 0 || self.no_discard.load(Ordering::Relaxed) {
            return Ok(());
        }
        let (offset, len) = (first * BLOCK_BYTES as u64, count * BLOCK_BYTES as u64);
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match retry(|| rustix::fs::fallocate(&self.file, flags, offset, len)) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                self.no_discard.store(true, Ordering::Relaxed);
                Ok(())
            }
            Err(e) => Err(e.into()),
            Ok(()) => {
                self.counters.discarded(count);
                Ok(())
            }
        }
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }
}

/// Calls `io(blocks done, byte offset)`, which tells how many bytes it moved, until `count` blocks
/// are moved. Only whole blocks count: O_DIRECT cannot go on in the middle of one.
fn in_whole_blocks(
    first: u64,
    count: usize,
    stalled: io::ErrorKind,
    mut io: impl FnMut(usize, u64) -> rustix::io::Result<usize>,
) -> io::Result<()> {
    let (mut done, mut stalls) = (0, 0);
    while done < count {
        let offset_bytes = (first + done as u64) * BLOCK_BYTES as u64;
        let moved = retry(|| io(done, offset_bytes))? / BLOCK_BYTES;
        stalls = if moved == 0 { stalls + 1 } else { 0 };
        if stalls > MAX_STALLS {
            return Err(stalled.into());
        }
        done += moved;
    }
    Ok(())
}

/// Calls again what a signal interrupted.
fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// True: a block device; false: a regular file.
fn kind_of(path: &Path) -> Result<bool, OpenError> {
    let kind = std::fs::metadata(path).map_err(|e| OpenError::from_io(path, e))?.file_type();
    match (kind.is_file(), kind.is_block_device()) {
        (true, _) => Ok(false),
        (_, true) => Ok(true),
        _ => Err(OpenError::NotADevice(path.to_path_buf())),
    }
}

/// Opens it; a block device for writing with O_EXCL, which the host refuses while it is mounted.
fn open_host(path: &Path, read_only: bool, is_block_device: bool) -> io::Result<File> {
    let exclusive = if is_block_device && !read_only { OFlags::EXCL } else { OFlags::empty() };
    OpenOptions::new().read(true).write(!read_only).custom_flags(exclusive.bits() as i32).open(path)
}

/// Bytes of a file or block device.
fn size_of(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

fn take_block_device(path: &Path, size_bytes: Option<u64>) -> Result<FileDevice, OpenError> {
    let device = FileDevice::open(path, OpenMode::default())?;
    let actual_bytes = device.block_count() * BLOCK_BYTES as u64;
    match size_bytes {
        Some(wanted_bytes) if wanted_bytes > actual_bytes => {
            let path = path.to_path_buf();
            Err(OpenError::SizeDiffers { path, actual_bytes, wanted_bytes })
        }
        Some(wanted_bytes) => {
            device.blocks.store(wanted_bytes / BLOCK_BYTES as u64, Ordering::Release);
            Ok(device)
        }
        None => Ok(device),
    }
}

/// Makes a sparse file, and its name durable; leaves nothing behind where that fails.
fn make_file(path: &Path, size_bytes: u64) -> Result<FileDevice, OpenError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(path)
        .map_err(|e| OpenError::from_io(path, e))?;
    let made = FileDevice::from_file(file, path, OpenMode::default(), false).and_then(|device| {
        let sized = device.empty_and_size(size_bytes).and_then(|()| sync_parent(path));
        sized.map_err(|e| OpenError::from_io(path, e))?;
        Ok(device)
    });
    if made.is_err() {
        // The reason to tell is the first one; an empty file left behind is the lesser trouble.
        let _ = std::fs::remove_file(path);
    }
    made
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests;
