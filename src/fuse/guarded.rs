//! A request whose handling panics is answered with EIO and harms no other: without this its thread
//! would end, the mount would serve with fewer and fewer, and at last with none.
//!
//! What such a request may have left half done in the pool's memory is never written: the
//! filesystem latches itself then.

use super::door::Door;
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, INodeNo, KernelConfig, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::io;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::Path;
use std::time::SystemTime;

/// The door behind a guard.
#[derive(Debug)]
pub struct Guarded(pub Door);

/// Passes requests on; their reply, dropped unsent, is EIO.
macro_rules! guarded {
    ($($name:ident($($arg:ident: $kind:ty),*);)*) => {
        $(fn $name(&self, $($arg: $kind),*) {
            // The panic has been told by the hook, with its place.
            let _ = catch_unwind(AssertUnwindSafe(|| Filesystem::$name(&self.0, $($arg),*)));
        })*
    };
}

impl Filesystem for Guarded {
    fn init(&mut self, request: &Request, kernel: &mut KernelConfig) -> io::Result<()> {
        self.0.init(request, kernel)
    }

    guarded! {
        lookup(a: &Request, b: INodeNo, c: &OsStr, d: ReplyEntry);
        forget(a: &Request, b: INodeNo, c: u64);
        getattr(a: &Request, b: INodeNo, c: Option<FileHandle>, d: ReplyAttr);
        setattr(a: &Request, b: INodeNo, c: Option<u32>, d: Option<u32>, e: Option<u32>,
            f: Option<u64>, g: Option<TimeOrNow>, h: Option<TimeOrNow>, i: Option<SystemTime>,
            j: Option<FileHandle>, k: Option<SystemTime>, l: Option<SystemTime>,
            m: Option<SystemTime>, n: Option<BsdFileFlags>, o: ReplyAttr);
        readlink(a: &Request, b: INodeNo, c: ReplyData);
        mknod(a: &Request, b: INodeNo, c: &OsStr, d: u32, e: u32, f: u32, g: ReplyEntry);
        mkdir(a: &Request, b: INodeNo, c: &OsStr, d: u32, e: u32, f: ReplyEntry);
        symlink(a: &Request, b: INodeNo, c: &OsStr, d: &Path, e: ReplyEntry);
        unlink(a: &Request, b: INodeNo, c: &OsStr, d: ReplyEmpty);
        rmdir(a: &Request, b: INodeNo, c: &OsStr, d: ReplyEmpty);
        rename(a: &Request, b: INodeNo, c: &OsStr, d: INodeNo, e: &OsStr, f: RenameFlags,
            g: ReplyEmpty);
        link(a: &Request, b: INodeNo, c: INodeNo, d: &OsStr, e: ReplyEntry);
        create(a: &Request, b: INodeNo, c: &OsStr, d: u32, e: u32, f: i32, g: ReplyCreate);
        open(a: &Request, b: INodeNo, c: OpenFlags, d: ReplyOpen);
        read(a: &Request, b: INodeNo, c: FileHandle, d: u64, e: u32, f: OpenFlags,
            g: Option<LockOwner>, h: ReplyData);
        write(a: &Request, b: INodeNo, c: FileHandle, d: u64, e: &[u8], f: WriteFlags,
            g: OpenFlags, h: Option<LockOwner>, i: ReplyWrite);
        flush(a: &Request, b: INodeNo, c: FileHandle, d: LockOwner, e: ReplyEmpty);
        release(a: &Request, b: INodeNo, c: FileHandle, d: OpenFlags, e: Option<LockOwner>,
            f: bool, g: ReplyEmpty);
        fsync(a: &Request, b: INodeNo, c: FileHandle, d: bool, e: ReplyEmpty);
        opendir(a: &Request, b: INodeNo, c: OpenFlags, d: ReplyOpen);
        readdir(a: &Request, b: INodeNo, c: FileHandle, d: u64, e: ReplyDirectory);
        readdirplus(a: &Request, b: INodeNo, c: FileHandle, d: u64, e: ReplyDirectoryPlus);
        releasedir(a: &Request, b: INodeNo, c: FileHandle, d: OpenFlags, e: ReplyEmpty);
        fsyncdir(a: &Request, b: INodeNo, c: FileHandle, d: bool, e: ReplyEmpty);
        statfs(a: &Request, b: INodeNo, c: ReplyStatfs);
        setxattr(a: &Request, b: INodeNo, c: &OsStr, d: &[u8], e: i32, f: u32, g: ReplyEmpty);
        getxattr(a: &Request, b: INodeNo, c: &OsStr, d: u32, e: ReplyXattr);
        listxattr(a: &Request, b: INodeNo, c: u32, d: ReplyXattr);
        removexattr(a: &Request, b: INodeNo, c: &OsStr, d: ReplyEmpty);
        fallocate(a: &Request, b: INodeNo, c: FileHandle, d: u64, e: u64, f: i32, g: ReplyEmpty);
        lseek(a: &Request, b: INodeNo, c: FileHandle, d: i64, e: i32, f: ReplyLseek);
        copy_file_range(a: &Request, b: INodeNo, c: FileHandle, d: u64, e: INodeNo, f: FileHandle,
            g: u64, h: u64, i: CopyFileRangeFlags, j: ReplyWrite);
    }
}
