//! The words of the filesystem's public face.

use std::time::Duration;

/// Longest file: 2^52 bytes, what five levels of 256 pointers above a 4 KiB block hold.
pub const MAX_FILE_BYTES: u64 = 1 << 52;
/// Longest name of a directory entry in bytes.
pub const MAX_NAME_BYTES: usize = 255;
/// All extended attributes of one inode together.
pub const MAX_XATTR_BYTES: usize = 65_536;
/// Longest write that is atomic under a crash, in bytes.
pub const ATOMIC_WRITE_BYTES: usize = 2 << 20;

/// A volume: the ordinary tree (1) or one LUN. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VolumeId(pub u32);

impl VolumeId {
    /// The ordinary tree of the mount, named `/`.
    pub const TREE: VolumeId = VolumeId(16);
}

/// An inode of a volume. Inode numbers are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId {
    /// The volume.
    pub volume: VolumeId,
    /// The number within the volume, below 2^40.
    pub ino: u64,
}

impl NodeId {
    /// The root directory of a volume.
    pub const fn root(volume: VolumeId) -> NodeId {
        NodeId { volume, ino: ROOT_INO }
    }

    /// Both as one number, which a mount shows: inode numbers are below 2^40.
    pub const fn number(self) -> u64 {
        (self.volume.0 as u64) << 40 | self.ino
    }

    /// What such a number means.
    pub const fn from_number(number: u64) -> NodeId {
        NodeId { volume: VolumeId((number >> 40) as u32), ino: number & ((1 << 40) - 1) }
    }
}

/// Inode number of every volume's root directory.
pub const ROOT_INO: u64 = 2;

/// Nanoseconds since 1970-01-01T00:00:00Z, signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timestamp(pub i64);

impl std::fmt::Display for Timestamp {
    /// RFC 3339 in UTC, to the millisecond.
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match jiff::Timestamp::from_nanosecond(i128::from(self.0)) {
            Ok(time) => write!(f, "{time:.3}"),
            Err(_) => f.write_str("unknown"),
        }
    }
}

/// Kind of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeKind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// FIFO.
    Fifo,
    /// Socket.
    Socket,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
}

/// Attributes of an inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attr {
    /// Which inode.
    pub id: NodeId,
    /// Epoch of creation: with `id` a handle that is never valid for another file.
    pub generation: u64,
    /// Kind.
    pub kind: NodeKind,
    /// Permission bits with setuid, setgid and sticky (07777).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Links.
    pub nlink: u32,
    /// Device number of a device node.
    pub rdev: u32,
    /// Length in bytes.
    pub size_bytes: u64,
    /// Blocks of 4 KiB that hold data (exact for data; tree nodes are not counted).
    pub blocks: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the data.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
}

/// What `setattr` changes. `None` leaves as it is. ctime is set by the filesystem.
#[derive(Debug, Clone, Default)]
pub struct SetAttr {
    /// An access is noted, nobody's wish: ctime stays.
    pub keep_ctime: bool,
    /// Permission bits (07777).
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Truncate or extend.
    pub size_bytes: Option<u64>,
    /// Access time.
    pub atime: Option<Timestamp>,
    /// Modification time.
    pub mtime: Option<Timestamp>,
}

/// What `create` makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewNode<'a> {
    /// Empty regular file.
    File,
    /// Empty directory.
    Directory,
    /// Symbolic link to these bytes (at most 4095).
    Symlink(&'a [u8]),
    /// FIFO, socket or device node.
    Special(NodeKind, u32),
}

/// Who creates, and with which permission bits.
#[derive(Debug, Clone, Copy)]
pub struct Owner {
    /// 07777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group (the caller has applied a setgid directory's rule).
    pub gid: u32,
}

/// How `rename` treats an existing target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    /// Replace it (POSIX).
    Replace,
    /// EEXIST (RENAME_NOREPLACE).
    NoReplace,
    /// Swap the two (RENAME_EXCHANGE).
    Exchange,
}

/// How `xattr_set` treats an existing name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XattrMode {
    /// Create or replace.
    Any,
    /// EEXIST if it is there (XATTR_CREATE).
    Create,
    /// ENODATA if it is not (XATTR_REPLACE).
    Replace,
}

/// What a pool survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Redundancy {
    /// One copy of each block: the pool needs all its devices.
    #[default]
    None,
    /// Two copies, on different devices: any one device may be lost.
    Mirror,
}

impl std::fmt::Display for Redundancy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Redundancy::None => "none",
            Redundancy::Mirror => "mirror",
        })
    }
}

/// A directory entry as `readdir` gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The name.
    pub name: Vec<u8>,
    /// The inode.
    pub id: NodeId,
    /// Its kind.
    pub kind: NodeKind,
    /// Where the listing goes on after this entry: stable for as long as the entry exists,
    /// positive as an i64, above 15.
    pub cookie: u64,
}

/// Figures of the pool, all in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Space for data and metadata.
    pub size_bytes: u64,
    /// Free, without what is waiting to be freed and without the reserve.
    pub free_bytes: u64,
    /// In use.
    pub used_bytes: u64,
    /// Will be free soon (deleted, not yet walked or not yet durable).
    pub freeing_bytes: u64,
    /// Kept back for deletes and consistency points.
    pub reserved_bytes: u64,
    /// Accepted, not yet written.
    pub dirty_bytes: u64,
    /// Blocks held in the cache, in bytes.
    pub cache_bytes: u64,
    /// Blocks written to the devices since the pool was opened.
    pub blocks_written: u64,
    /// Blocks read from the devices since the pool was opened.
    pub blocks_read: u64,
    /// Device flushes since the pool was opened.
    pub device_flushes: u64,
    /// Consistency points since the pool was opened.
    pub consistency_points: u64,
    /// Groups committed since the pool was opened.
    pub groups: u64,
    /// Bad blocks seen since the pool was opened.
    pub checksum_errors: u64,
    /// Why the pool is read-only after a device error.
    pub latched: Option<String>,
}

/// What a change of the devices comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DevicePlan {
    /// Mapped afterwards, the pool's own part included.
    pub size_bytes: u64,
    /// Segments that get another place; of them what is in use is copied.
    pub moved_bytes: u64,
}

/// How far the segment map is from what the devices allow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rebalance {
    /// Copied since there was something to do.
    pub moved_bytes: u64,
    /// To be copied in all.
    pub to_move_bytes: u64,
    /// Nothing is left to do.
    pub is_done: bool,
    /// Nothing can be done while a device is missing or being filled.
    pub is_waiting: bool,
}

/// Wall clock, real or simulated.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> Timestamp;
}

/// The host's clock.
#[derive(Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Timestamp(since.unwrap_or(Duration::ZERO).as_nanos() as i64)
    }
}
