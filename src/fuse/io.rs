//! Opening, reading, writing and everything else that has to do with a file's bytes.
//!
//! Ordinary files go through the kernel's page cache, written through; no other door changes them,
//! so what is cached stays valid over close and open. Files of a LUN bypass it: every read(2) sees
//! what block clients wrote. Mapped pages of `data` are kept fresh by [`super::notify`].

use super::attr;
use super::door::{Caller, Door};
use super::errno::{OrErrno, Result};
use super::handles::{Handle, OpenAttributes, OpenData, OpenDirectory, OpenFile};
use super::tree::{Part, Place};
use crate::device::BLOCK_BYTES;
use crate::fs::{File, NodeId, SetAttr};
use crate::lun::{DataFile, Lun, OpenIntent};
use fuser::{
    Errno, FileHandle, FopenFlags, INodeNo, LockOwner, OpenAccMode, OpenFlags, WriteFlags,
};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// Most bytes that one copy_file_range request copies where they are not shared; the caller goes on
/// from there. It bounds how long a request keeps a thread.
const MAX_COPY_BYTES: u64 = 16 << 20;
/// Most bytes that it shares: what the reply can say.
const MAX_CLONE_BYTES: u64 = 1 << 31;

impl Door {
    /// open(2) of what is no directory, with O_TRUNC done (FUSE_ATOMIC_O_TRUNC).
    pub fn open(
        &self,
        caller: Caller,
        number: INodeNo,
        flags: OpenFlags,
    ) -> Result<(FileHandle, FopenFlags)> {
        let direct = FopenFlags::FOPEN_DIRECT_IO;
        let (handle, how) = match self.tree.place(number)? {
            Place::Tree(id) => self.open_ordinary(caller, id, flags)?,
            Place::LunFile(lun, Part::Data, _) => {
                let data = lun.open_file(intent(flags)).or_errno()?;
                (
                    Handle::Data(OpenData::new(data)),
                    direct | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES,
                )
            }
            Place::LunFile(lun, Part::Attributes, _) => {
                let truncate = flags.0 & libc::O_TRUNC != 0;
                (Handle::Attributes(OpenAttributes::new(lun, truncate)?), direct)
            }
            Place::LunFile(lun, Part::Log, id) => (self.open_log(lun, id, flags)?, direct),
            Place::LunFile(_, Part::Kept, id) => (self.open_kept(id, flags)?, direct),
            Place::Frozen(id) => (self.open_frozen(id, flags)?, ORDINARY),
            Place::LunDirectory(_) | Place::Snapshots(_) | Place::Times(_) => {
                return Err(Errno::EISDIR);
            }
        };
        Ok((self.handles.insert(handle), how))
    }

    fn open_ordinary(
        &self,
        caller: Caller,
        id: NodeId,
        flags: OpenFlags,
    ) -> Result<(Handle, FopenFlags)> {
        let file = self.tree.fs().open_file(id).or_errno()?;
        if flags.0 & libc::O_TRUNC != 0 {
            file.set_size(0).or_errno()?;
            if self.is_privileged(id)? {
                self.drop_privileges(id, caller.unprivileged())?;
            }
        }
        // Reads must come here once to be noted.
        let noted = !self.notes_access
            || flags.acc_mode() == OpenAccMode::O_WRONLY
            || flags.0 & libc::O_NOATIME != 0
            || !attr::is_access_due(&file.attr().or_errno()?, self.clock.now());
        let how = if noted { ORDINARY } else { ORDINARY - FopenFlags::FOPEN_KEEP_CACHE };
        Ok((ordinary(file, false), how))
    }

    /// Notes an access of a file of the tree. No error: what was asked for is the data.
    pub fn note_access(&self, file: &File) {
        let now = self.clock.now();
        if self.notes_access && file.attr().is_ok_and(|known| attr::is_access_due(&known, now)) {
            let change = SetAttr { atime: Some(now), keep_ctime: true, ..SetAttr::default() };
            let _ = self.tree.fs().setattr(file.id(), &change);
        }
    }

    /// `log` may be read, and appended to by whom its mode lets write.
    fn open_log(&self, lun: Arc<Lun>, id: NodeId, flags: OpenFlags) -> Result<Handle> {
        let truncates = flags.0 & libc::O_TRUNC != 0;
        if truncates || writes(flags) && flags.0 & libc::O_APPEND == 0 {
            return Err(Errno::EPERM);
        }
        Ok(Handle::Log(self.tree.fs().open_file(id).or_errno()?, lun))
    }

    fn open_kept(&self, id: NodeId, flags: OpenFlags) -> Result<Handle> {
        if writes(flags) || flags.0 & libc::O_TRUNC != 0 {
            return Err(Errno::EPERM);
        }
        Ok(ordinary(self.tree.fs().open_file(id).or_errno()?, true))
    }

    /// A file of a snapshot. What the kernel has cached of it is right for ever.
    fn open_frozen(&self, id: NodeId, flags: OpenFlags) -> Result<Handle> {
        if writes(flags) || flags.0 & libc::O_TRUNC != 0 {
            return Err(Errno::EROFS);
        }
        let snapshot = self.tree.catalog().use_snapshot(id.volume).or_errno()?;
        let file = self.tree.fs().open_file(id).or_errno()?;
        let (unprivileged_at, _snapshot) = (AtomicU64::new(0), Some(snapshot));
        Ok(Handle::File(OpenFile { file, read_only: true, unprivileged_at, _snapshot }))
    }

    /// Opens what [`super::tree::Tree::make`] has just made.
    pub fn open_made(&self, number: INodeNo) -> Result<(FileHandle, FopenFlags)> {
        let Place::Tree(id) = self.tree.place(number)? else {
            return Err(Errno::ESTALE);
        };
        let file = self.tree.fs().open_file(id).or_errno()?;
        Ok((self.handles.insert(ordinary(file, false)), ORDINARY))
    }

    /// opendir(3): keeps a directory of the tree until it is closed.
    pub fn opendir(&self, number: INodeNo) -> Result<FileHandle> {
        let place = self.tree.place(number)?;
        let Some(id) = place.inode() else { return Ok(FileHandle(0)) };
        let _snapshot = match place {
            Place::Frozen(_) => Some(self.tree.catalog().use_snapshot(id.volume).or_errno()?),
            _ => None,
        };
        let file = self.tree.fs().open_file(id).or_errno()?;
        Ok(self.handles.insert(Handle::Directory(OpenDirectory { file, _snapshot })))
    }

    /// Fills `out` from `offset`; how many bytes there were.
    pub fn read(
        &self,
        handle: FileHandle,
        offset: u64,
        out: &mut [u8],
        flags: OpenFlags,
    ) -> Result<usize> {
        match &*self.handles.get(handle)? {
            Handle::File(open) => {
                if !open.read_only && flags.0 & libc::O_NOATIME == 0 {
                    self.note_access(&open.file);
                }
                let read = open.file.read_at(offset, out);
                self.tree.told(open.file.id(), Some(offset), read)
            }
            Handle::Data(data) => data.file.read_at(offset, out).or_errno(),
            Handle::Attributes(open) => open.read(offset, out),
            Handle::Log(file, _) => {
                self.tree.told(file.id(), Some(offset), file.read_at(offset, out))
            }
            Handle::Directory(..) => Err(Errno::EISDIR),
        }
    }

    /// Writes all of `data`.
    pub fn write(&self, handle: FileHandle, offset: u64, data: &[u8], how: Writing) -> Result<()> {
        let around = how.flags.0 & libc::O_DIRECT != 0 && !how.mapped();
        let appends = how.flags.0 & libc::O_APPEND != 0 && !how.mapped();
        match &*self.handles.get(handle)? {
            Handle::File(open) if !open.read_only => {
                self.prepare_write(open, how.kills().then_some(how.caller))?;
                let written = open.file.write_at(offset, data);
                self.tree.told(open.file.id(), Some(offset), written)?;
                if around {
                    self.notices.note_direct_write(how.number, offset, data.len() as u64);
                }
                Ok(())
            }
            Handle::Data(open) => {
                open.writers.wrote(how.owner);
                if appends {
                    open.file.append(data).or_errno()?;
                } else {
                    open.file.write_at(offset, data).or_errno()?;
                }
                sync_if_asked(&open.file, how.flags)
            }
            Handle::Attributes(open) if !how.mapped() => {
                open.writers.wrote(how.owner);
                open.write(offset, data, appends)
            }
            Handle::Log(_, lun) if !how.mapped() => lun.append_log_bytes(data).or_errno(),
            _ => Err(Errno::EPERM),
        }
    }

    /// Takes away the privileges that a write ends. An unprivileged file is looked at once, not at
    /// each write, until some file gains privileges.
    fn prepare_write(&self, open: &OpenFile, by: Option<Caller>) -> Result<()> {
        let now = self.handles.privileges();
        if open.unprivileged_at.load(Ordering::Acquire) == now {
            return Ok(());
        }
        if self.is_privileged(open.file.id())? {
            self.drop_privileges(open.file.id(), by)?;
            return Ok(());
        }
        open.unprivileged_at.store(now, Ordering::Release);
        Ok(())
    }

    /// FLUSH: one of perhaps several descriptors of a handle is closed.
    pub fn flush(&self, handle: FileHandle, owner: LockOwner) -> Result<()> {
        match &*self.handles.get(handle)? {
            Handle::Data(data) => data.flush(owner),
            Handle::Attributes(open) if open.writers.closed_by(owner) => open.apply()?,
            Handle::Attributes(_) => {}
            Handle::File(_) | Handle::Directory(..) | Handle::Log(..) => {}
        }
        Ok(())
    }

    /// fsync(2), fdatasync(2); of a directory too.
    pub fn fsync(&self, handle: FileHandle) -> Result<()> {
        if handle.0 == 0 {
            return self.tree.fs().sync().or_errno();
        }
        match &*self.handles.get(handle)? {
            Handle::File(open) => open.file.sync().or_errno(),
            Handle::Directory(OpenDirectory { file, .. }) | Handle::Log(file, _) => {
                file.sync().or_errno()
            }
            Handle::Data(data) => data.file.sync().or_errno(),
            Handle::Attributes(open) => {
                open.apply()?;
                self.tree.fs().sync().or_errno()
            }
        }
    }

    /// fallocate(2). Nothing is ever written in place, so no space can be set aside for a range:
    /// allocating checks that there is enough now and sets the size, as other copy-on-write
    /// filesystems do. Zeroing makes a hole.
    pub fn fallocate(&self, handle: FileHandle, offset: u64, len: u64, mode: i32) -> Result<()> {
        let handle = self.handles.get(handle)?;
        let bytes = Bytes::of(&handle)?;
        let end = offset.checked_add(len).filter(|_| len > 0).ok_or(Errno::EINVAL)?;
        let keep = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => self.has_room(len)?,
            libc::FALLOC_FL_PUNCH_HOLE if keep => return bytes.punch(offset, len),
            libc::FALLOC_FL_ZERO_RANGE => bytes.punch(offset, len)?,
            _ => return Err(Errno::EOPNOTSUPP),
        }
        if !keep && end > bytes.size()? {
            bytes.set_size(end)?;
        }
        Ok(())
    }

    fn has_room(&self, bytes: u64) -> Result<()> {
        let stats = self.tree.fs().stats();
        if bytes > stats.free_bytes.saturating_add(stats.freeing_bytes) {
            return Err(Errno::ENOSPC);
        }
        Ok(())
    }

    /// lseek(2) with SEEK_DATA and SEEK_HOLE (the kernel does the others). ENXIO at the end and
    /// beyond.
    pub fn lseek(&self, handle: FileHandle, offset: i64, whence: i32) -> Result<i64> {
        let handle = self.handles.get(handle)?;
        let from = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
        let found = match &*handle {
            Handle::Attributes(open) => seek_dense(open.size_bytes(), from, whence)?,
            handle => Bytes::of(handle)?.seek(from, whence)?,
        };
        i64::try_from(found).map_err(|_| Errno::EOVERFLOW)
    }

    /// copy_file_range(2): how much was copied, perhaps less than asked for. Blocks that lie alike
    /// are shared; holes stay holes.
    pub fn copy(
        &self,
        caller: Caller,
        from: (FileHandle, u64),
        to: (FileHandle, u64),
        len: u64,
    ) -> Result<u64> {
        let (source, target) = (self.handles.get(from.0)?, self.handles.get(to.0)?);
        let (source, target) = (Bytes::of(&source)?, Bytes::of(&target)?);
        if let Handle::File(open) = &*self.handles.get(to.0)? {
            self.prepare_write(open, caller.unprivileged())?;
        }
        let is_alike = from.1 % BLOCK_BYTES as u64 == to.1 % BLOCK_BYTES as u64;
        let len = len.min(if is_alike { MAX_CLONE_BYTES } else { MAX_COPY_BYTES });
        target.take_range(&source, from.1, to.1, len)
    }
}

/// How a write comes.
#[derive(Debug, Clone, Copy)]
pub struct Writing {
    /// Who writes.
    pub caller: Caller,
    /// The node that is written.
    pub number: INodeNo,
    /// The kernel's word on it.
    pub how: WriteFlags,
    /// Flags of the open file.
    pub flags: OpenFlags,
    /// Whose table of descriptors it came through.
    pub owner: Option<LockOwner>,
}

impl Writing {
    /// Whether it is by somebody who may not keep the file's privileges.
    fn kills(&self) -> bool {
        self.how.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID)
    }

    /// Whether it is a mapped page that the kernel writes back.
    fn mapped(&self) -> bool {
        self.how.contains(WriteFlags::FUSE_WRITE_CACHE)
    }
}

/// How ordinary files are opened: what the kernel has cached of them is still right, and nothing
/// waits for their close.
const ORDINARY: FopenFlags = FopenFlags::FOPEN_KEEP_CACHE.union(FopenFlags::FOPEN_NOFLUSH);

fn ordinary(file: File, read_only: bool) -> Handle {
    let unprivileged_at = AtomicU64::new(0);
    Handle::File(OpenFile { file, read_only, unprivileged_at, _snapshot: None })
}

fn writes(flags: OpenFlags) -> bool {
    flags.acc_mode() != OpenAccMode::O_RDONLY
}

fn intent(flags: OpenFlags) -> OpenIntent {
    OpenIntent {
        read: flags.acc_mode() != OpenAccMode::O_WRONLY,
        write: writes(flags),
        truncate: flags.0 & libc::O_TRUNC != 0,
    }
}

/// O_SYNC and O_DSYNC on a file that bypasses the page cache are the filesystem's to honour.
fn sync_if_asked(file: &DataFile, flags: OpenFlags) -> Result<()> {
    if flags.0 & (libc::O_SYNC | libc::O_DSYNC) != 0 {
        return file.sync().or_errno();
    }
    Ok(())
}

fn seek_dense(size: u64, from: u64, whence: i32) -> Result<u64> {
    match whence {
        _ if from >= size => Err(Errno::ENXIO),
        libc::SEEK_DATA => Ok(from),
        libc::SEEK_HOLE => Ok(size),
        _ => Err(Errno::EINVAL),
    }
}

/// The bytes of an open file, of the tree or of a LUN.
enum Bytes<'a> {
    File(&'a File),
    Data(&'a DataFile),
}

impl Bytes<'_> {
    fn of(handle: &Handle) -> Result<Bytes<'_>> {
        match handle {
            Handle::File(open) => Ok(Bytes::File(&open.file)),
            Handle::Log(file, _) => Ok(Bytes::File(file)),
            Handle::Data(data) => Ok(Bytes::Data(&data.file)),
            Handle::Attributes(_) | Handle::Directory(..) => Err(Errno::EOPNOTSUPP),
        }
    }

    fn size(&self) -> Result<u64> {
        match self {
            Bytes::File(file) => Ok(file.size_bytes()),
            Bytes::Data(data) => Ok(data.attr().or_errno()?.size_bytes),
        }
    }

    fn set_size(&self, size_bytes: u64) -> Result<()> {
        match self {
            Bytes::File(file) => file.set_size(size_bytes).or_errno(),
            Bytes::Data(data) => data.set_size(size_bytes).or_errno(),
        }
    }

    /// Makes a hole of what lies before the end of the file.
    fn punch(&self, offset: u64, len: u64) -> Result<()> {
        let len = len.min(self.size()?.saturating_sub(offset));
        match self {
            _ if len == 0 => Ok(()),
            Bytes::File(file) => file.punch(offset, len).or_errno(),
            Bytes::Data(data) => data.punch(offset, len).or_errno(),
        }
    }

    fn data_from(&self, from: u64) -> Result<Option<u64>> {
        match self {
            Bytes::File(file) => file.seek_data(from).or_errno(),
            Bytes::Data(data) => data.seek_data(from).or_errno(),
        }
    }

    fn seek(&self, from: u64, whence: i32) -> Result<u64> {
        if from >= self.size()? {
            return Err(Errno::ENXIO);
        }
        match (whence, self) {
            (libc::SEEK_DATA, _) => self.data_from(from)?.ok_or(Errno::ENXIO),
            (libc::SEEK_HOLE, Bytes::File(file)) => file.seek_hole(from).or_errno(),
            (libc::SEEK_HOLE, Bytes::Data(data)) => data.seek_hole(from).or_errno(),
            _ => Err(Errno::EINVAL),
        }
    }

    fn take_range(&self, source: &Bytes<'_>, from: u64, to: u64, len: u64) -> Result<u64> {
        let source = match source {
            Bytes::File(file) => (*file).clone(),
            Bytes::Data(data) => data.source(),
        };
        match self {
            Bytes::File(file) => source.clone_range(from, file, to, len).or_errno(),
            Bytes::Data(data) => data.take_range(&source, from, to, len).or_errno(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeking_in_dense_text() {
        assert_eq!(seek_dense(10, 3, libc::SEEK_DATA), Ok(3));
        assert_eq!(seek_dense(10, 3, libc::SEEK_HOLE), Ok(10));
        assert_eq!(seek_dense(10, 10, libc::SEEK_HOLE), Err(Errno::ENXIO));
        assert_eq!(seek_dense(10, 0, 99), Err(Errno::EINVAL));
    }

    #[test]
    fn intents_follow_the_access_mode() {
        let all = |read, write, truncate| OpenIntent { read, write, truncate };
        assert_eq!(intent(OpenFlags(libc::O_RDONLY)), all(true, false, false));
        assert_eq!(intent(OpenFlags(libc::O_WRONLY | libc::O_TRUNC)), all(false, true, true));
        assert_eq!(intent(OpenFlags(libc::O_RDWR)), all(true, true, false));
    }
}
