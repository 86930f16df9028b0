//! The kernel's requests: each is taken apart, handed to [`Door`] or [`Tree`](super::tree::Tree),
//! and answered. Nothing is decided here.

use super::attr;
use super::door::{Caller, Door};
use super::errno::Result;
use super::io::Writing;
use super::listing::Item;
use super::names::Maker;
use super::tree::{Entry, Place};
use crate::fs::{NewNode, SetAttr};
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::SystemTime;

/// Largest write request: what `fs.fuse.max_pages_limit` lets through by default.
const MAX_WRITE_BYTES: u32 = 1 << 20;
/// Requests that the kernel may have under way on its own account (read-ahead, asynchronous direct
/// I/O) before it waits: enough for a queue depth of 32 on two files.
const MAX_BACKGROUND: u16 = 64;

/// What is asked of the kernel, each where it has it. Never the writeback cache: it loses what
/// block clients write into the same page.
const WANTED: [InitFlags; 12] = [
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    InitFlags::FUSE_EXPORT_SUPPORT,
    InitFlags::FUSE_DONT_MASK,
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
    InitFlags::FUSE_MAX_PAGES,
];

thread_local! {
    /// Where reads of this thread are gathered before they are sent.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Filesystem for Door {
    fn init(&mut self, _: &Request, kernel: &mut KernelConfig) -> io::Result<()> {
        for capability in WANTED {
            // An older kernel without one of them serves with what it has.
            let _ = kernel.add_capabilities(capability);
        }
        let _ = kernel.set_max_write(MAX_WRITE_BYTES);
        let _ = kernel.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        entry(
            reply,
            (|| {
                let dir = self.tree.place(parent)?;
                let found = match self.tree.find(&dir, name.as_bytes()) {
                    Err(Errno::ENOENT) if matches!(dir, Place::Tree(_)) && !dir.is_root() => {
                        return Ok(absent(self.tree.describe(&dir)?));
                    }
                    found => found?,
                };
                self.tree.describe(&found)
            })(),
        );
    }

    fn forget(&self, _: &Request, ino: INodeNo, _nlookup: u64) {
        let kept = self.removed.remove(&ino);
        drop(kept);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        attributes(reply, Door::getattr(self, ino, fh));
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let now = self.clock.now();
        let change = SetAttr {
            mode: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size_bytes: size,
            atime: atime.map(|time| attr::requested_time(time, now)),
            mtime: mtime.map(|time| attr::requested_time(time, now)),
            ..SetAttr::default()
        };
        attributes(reply, Door::setattr(self, Caller::of(request), ino, fh, change));
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.readlink(ino) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(error),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let node = match (mode & libc::S_IFMT, attr::special_kind(mode)) {
            (libc::S_IFREG | 0, _) => NewNode::File,
            (_, Some(kind)) => NewNode::Special(kind, rdev),
            _ => return reply.error(Errno::EINVAL),
        };
        entry(reply, self.make(parent, name, node, maker(request, mode, umask)));
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        entry(reply, self.make(parent, name, NewNode::Directory, maker(request, mode, umask)));
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let node = NewNode::Symlink(target.as_os_str().as_bytes());
        entry(reply, self.make(parent, name, node, maker(request, 0o777, 0)));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let dir = self.tree.place(parent);
        empty(reply, dir.and_then(|dir| self.tree.unlink(&dir, name.as_bytes())));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, Door::rmdir(self, parent, name));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        empty(reply, Door::rename(self, (parent, name), (newparent, newname), flags));
    }

    fn link(
        &self,
        _: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        entry(
            reply,
            (|| {
                let (node, dir) = (self.tree.place(ino)?, self.tree.place(newparent)?);
                let linked = self.tree.link(&node, &dir, newname.as_bytes())?;
                self.tree.describe_as(&node, &linked)
            })(),
        );
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let made = self.make(parent, name, NewNode::File, maker(request, mode, umask));
        match made.and_then(|entry| Ok((entry, self.open_made(entry.attr.ino)?))) {
            Ok((Entry { attr, generation, ttl }, (fh, how))) => {
                reply.created(&ttl, &attr, Generation(generation), fh, how);
            }
            Err(error) => reply.error(error),
        }
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match Door::open(self, Caller::of(request), ino, flags) {
            Ok((fh, how)) => reply.opened(fh, how),
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        BUFFER.with_borrow_mut(|buffer| {
            let size = size.min(MAX_WRITE_BYTES) as usize;
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            let out = buffer.get_mut(..size).unwrap_or_default();
            match Door::read(self, fh, offset, out, flags) {
                Ok(count) => reply.data(out.get(..count).unwrap_or_default()),
                Err(error) => reply.error(error),
            }
        });
    }

    fn write(
        &self,
        request: &Request,
        number: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        how: WriteFlags,
        flags: OpenFlags,
        owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let how = Writing { caller: Caller::of(request), number, how, flags, owner };
        match Door::write(self, fh, offset, data, how) {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, fh: FileHandle, owner: LockOwner, reply: ReplyEmpty) {
        empty(reply, Door::flush(self, fh, owner));
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.handles.remove(fh);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, fh: FileHandle, _: bool, reply: ReplyEmpty) {
        empty(reply, Door::fsync(self, fh));
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match Door::opendir(self, ino) {
            Ok(fh) => reply.opened(fh, FopenFlags::empty()),
            Err(error) => reply.error(error),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.note_listing(fh, offset);
        let listed = self.tree.place(ino).and_then(|dir| {
            self.tree.list(&dir, offset, &mut |item| {
                Ok(reply.add(item.number, item.cookie, item.kind, OsStr::from_bytes(&item.name)))
            })
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.note_listing(fh, offset);
        let listed = self.tree.place(ino).and_then(|dir| {
            self.tree.list(&dir, offset, &mut |item| {
                // What was removed meanwhile is left out.
                let Ok(Entry { attr, generation, ttl }) = self.describe_item(&dir, item) else {
                    return Ok(false);
                };
                let name = OsStr::from_bytes(&item.name);
                let generation = Generation(generation);
                Ok(reply.add(item.number, item.cookie, name, &ttl, &attr, generation))
            })
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.handles.remove(fh);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: bool, reply: ReplyEmpty) {
        empty(reply, Door::fsync(self, fh));
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let figures = self.statfs();
        let (total, free) = (figures.total_blocks, figures.free_blocks);
        // Inodes take space as data does: there is no number of them to tell.
        reply.statfs(total, free, free, 0, 0, figures.block_bytes, 255, figures.block_bytes);
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let caller = Caller::of(request);
        empty(reply, Door::setxattr(self, caller, ino, name.as_bytes(), value, flags));
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        sized(reply, size, Door::getxattr(self, ino, name.as_bytes()));
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        sized(reply, size, Door::listxattr(self, Caller::of(request), ino));
    }

    fn removexattr(&self, _: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, Door::removexattr(self, ino, name.as_bytes()));
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        empty(reply, Door::fallocate(self, fh, offset, length, mode));
    }

    fn lseek(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        match Door::lseek(self, fh, offset, whence) {
            Ok(found) => reply.offset(found),
            Err(error) => reply.error(error),
        }
    }

    fn copy_file_range(
        &self,
        request: &Request,
        _: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        match self.copy(Caller::of(request), (fh_in, offset_in), (fh_out, offset_out), len) {
            Ok(count) => reply.written(u32::try_from(count).unwrap_or(u32::MAX)),
            Err(error) => reply.error(error),
        }
    }
}

fn maker(request: &Request, mode: u32, umask: u32) -> Maker {
    let (uid, gid) = (request.uid(), request.gid());
    Maker { uid, gid, mode: mode & 0o7777, umask: umask & 0o777 }
}

impl Door {
    /// What READDIRPLUS tells of an entry. To describe a snapshot would open it: it is shown like
    /// the directory that it is in, for no time at all, so that who wants to know asks. (Its
    /// generation is right: the root of a volume is one inode in all versions.)
    fn describe_item(&self, dir: &Place, item: &Item) -> Result<Entry> {
        if matches!((dir, &item.place), (Place::Snapshots(_) | Place::Times(_), Place::Frozen(_))) {
            let mut entry = self.tree.describe(dir)?;
            entry.attr.ino = item.number;
            return Ok(entry);
        }
        self.tree.describe(&item.place)
    }
}

/// "There is no such name, and you may remember it": node number 0 (fuse_lookup_name of Linux).
fn absent(dir: Entry) -> Entry {
    let mut entry = dir;
    entry.attr.ino = INodeNo(0);
    entry.attr.kind = FileType::RegularFile;
    entry.generation = 0;
    entry
}

fn entry(reply: ReplyEntry, result: Result<Entry>) {
    match result {
        Ok(Entry { attr, generation, ttl }) => reply.entry(&ttl, &attr, Generation(generation)),
        Err(error) => reply.error(error),
    }
}

fn attributes(reply: ReplyAttr, result: Result<Entry>) {
    match result {
        Ok(Entry { attr, ttl, .. }) => reply.attr(&ttl, &attr),
        Err(error) => reply.error(error),
    }
}

fn empty(reply: ReplyEmpty, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

/// An extended attribute, or its length where the caller has no room yet (`size` 0).
fn sized(reply: ReplyXattr, size: u32, result: Result<Vec<u8>>) {
    match result {
        Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(error),
    }
}
