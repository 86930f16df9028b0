//! Attributes and times between the filesystem's words and the kernel's.

use super::errno::Result;
use super::ids::Node;
use crate::device::BLOCK_BYTES;
use crate::fs::{Attr, NodeKind, SetAttr, Timestamp};
use fuser::{Errno, FileAttr, FileType, TimeOrNow};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Set-user-id bit.
pub const S_ISUID: u32 = 0o4000;
/// Set-group-id bit.
pub const S_ISGID: u32 = 0o2000;
/// Group execute bit: set-group-id means what it says only beside it.
pub const S_IXGRP: u32 = 0o010;
/// `st_blocks` counts units of 512 bytes (stat(2)).
const STAT_BLOCK_BYTES: u64 = 512;

/// The kernel's word for a kind of inode.
pub fn file_type(kind: NodeKind) -> FileType {
    match kind {
        NodeKind::File => FileType::RegularFile,
        NodeKind::Directory => FileType::Directory,
        NodeKind::Symlink => FileType::Symlink,
        NodeKind::Fifo => FileType::NamedPipe,
        NodeKind::Socket => FileType::Socket,
        NodeKind::CharDevice => FileType::CharDevice,
        NodeKind::BlockDevice => FileType::BlockDevice,
    }
}

/// The kind that the type bits of a `mode_t` name (mknod); `None` for those it cannot make.
pub fn special_kind(mode: u32) -> Option<NodeKind> {
    match mode & libc::S_IFMT {
        libc::S_IFIFO => Some(NodeKind::Fifo),
        libc::S_IFSOCK => Some(NodeKind::Socket),
        libc::S_IFCHR => Some(NodeKind::CharDevice),
        libc::S_IFBLK => Some(NodeKind::BlockDevice),
        _ => None,
    }
}

/// What the kernel is told of an inode. EOVERFLOW if its number does not fit the mount's.
pub fn to_kernel(attr: &Attr) -> Result<FileAttr> {
    Ok(FileAttr {
        ino: Node::Inode(attr.id).pack().ok_or(Errno::EOVERFLOW)?,
        size: attr.size_bytes,
        blocks: attr.blocks.saturating_mul(BLOCK_BYTES as u64 / STAT_BLOCK_BYTES),
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.btime),
        kind: file_type(attr.kind),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLOCK_BYTES as u32,
        flags: 0,
    })
}

/// A time stamp as the standard library has it.
pub fn system_time(stamp: Timestamp) -> SystemTime {
    let distance = Duration::from_nanos(stamp.0.unsigned_abs());
    if stamp.0 < 0 {
        UNIX_EPOCH - distance
    } else {
        UNIX_EPOCH + distance
    }
}

/// The time that a setattr request asks for. Times that 64 bits of nanoseconds do not hold (before
/// 1677 and after 2262) become the nearest that they do, as other filesystems clamp to their range.
///
/// fuser 0.18 reads a negative `tv_sec` with its `tv_nsec` turned the wrong way round (it subtracts
/// both); that is undone here and pinned by a test on a real mount.
pub fn requested_time(time: TimeOrNow, now: Timestamp) -> Timestamp {
    let time = match time {
        TimeOrNow::Now => return now,
        TimeOrNow::SpecificTime(time) => time,
    };
    let nanos = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i128::from(after.as_secs()) * NANOS + i128::from(after.subsec_nanos()),
        Err(before) => {
            let before = before.duration();
            i128::from(before.subsec_nanos()) - i128::from(before.as_secs()) * NANOS
        }
    };
    Timestamp(nanos.clamp(i64::MIN.into(), i64::MAX.into()) as i64)
}

/// Nanoseconds of a second.
const NANOS: i128 = 1_000_000_000;

/// The mode of a regular file that somebody without the right to keep privileges writes, or that
/// changes hands: without set-user-id, and without set-group-id where the group may execute or the
/// caller is not of it (setattr_should_drop_sgid of Linux).
pub fn without_privileges(mode: u32, caller_is_in_group: bool) -> u32 {
    let group = if mode & S_IXGRP != 0 || !caller_is_in_group { S_ISGID } else { 0 };
    mode & !(S_ISUID | group)
}

/// Whether an access at `now` is worth noting: the last one noted is not younger than the last
/// change, or is a day old (`relatime` of mount(8)).
pub fn is_access_due(attr: &Attr, now: Timestamp) -> bool {
    let age = now.0.saturating_sub(attr.atime.0);
    attr.atime <= attr.mtime || attr.atime <= attr.ctime || age >= ACCESS_AGE_NS
}

/// How old a noted access may become: a day, in nanoseconds.
const ACCESS_AGE_NS: i64 = 24 * 3600 * 1_000_000_000;

/// Whether a change says anything at all.
pub fn is_change(change: &SetAttr) -> bool {
    change.mode.is_some()
        || change.uid.is_some()
        || change.gid.is_some()
        || change.size_bytes.is_some()
        || change.atime.is_some()
        || change.mtime.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_the_epoch_are_read_as_they_were_meant() {
        // -1.25 s is tv_sec -2, tv_nsec 750,000,000; fuser makes 2.75 s before the epoch of it.
        let as_fuser_reads = UNIX_EPOCH - Duration::new(2, 750_000_000);
        let read = requested_time(TimeOrNow::SpecificTime(as_fuser_reads), Timestamp(0));
        assert_eq!(read, Timestamp(-1_250_000_000));
        assert_eq!(system_time(read), UNIX_EPOCH - Duration::from_millis(1250));
    }

    #[test]
    fn times_out_of_range_are_clamped() {
        let late = UNIX_EPOCH + Duration::from_secs(1 << 40);
        let read = requested_time(TimeOrNow::SpecificTime(late), Timestamp(0));
        assert_eq!(read, Timestamp(i64::MAX));
        let early = UNIX_EPOCH - Duration::from_secs(1 << 40);
        let read = requested_time(TimeOrNow::SpecificTime(early), Timestamp(0));
        assert_eq!(read, Timestamp(i64::MIN));
        let _ = system_time(Timestamp(i64::MIN));
    }

    #[test]
    fn privileges_go_but_a_group_keeps_its_locking_bit() {
        assert_eq!(without_privileges(0o6755, true), 0o755);
        assert_eq!(without_privileges(0o2644, true), 0o2644);
        assert_eq!(without_privileges(0o2644, false), 0o644);
        assert_eq!(without_privileges(0o4644, true), 0o644);
    }
}
