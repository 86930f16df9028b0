//! An inode: 512 bytes, eight to a block of the inode file; inode `n` is at byte `n * 512` of it.
//! The pointer to that block holds the checksum; an inode has none of its own.

use crate::bytes::{array_at, put_bytes, put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};
use crate::{LayoutError, Pointer, Result, BLOCK_BYTES};

/// Bytes of an inode.
pub const INODE_BYTES: usize = 512;
/// Inodes of a block.
pub const INODES_PER_BLOCK: u64 = (BLOCK_BYTES / INODE_BYTES) as u64;

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum InodeKind {
    /// Not in use.
    Free = 0,
    /// Regular file.
    File = 1,
    /// Directory.
    Directory = 2,
    /// Symbolic link: the target is its data.
    Symlink = 3,
    /// FIFO.
    Fifo = 4,
    /// Socket.
    Socket = 5,
    /// Character device.
    CharDevice = 6,
    /// Block device.
    BlockDevice = 7,
    /// In the volume table: a version, whose data is its inode file.
    Version = 8,
    /// In the volume table: a dead list.
    DeadList = 9,
    /// Extended attributes of another inode.
    Xattrs = 10,
    /// In the volume table: an epoch kept by name.
    Bookmark = 11,
    /// In the volume table: how often each block is cloned.
    Counts = 12,
}

impl InodeKind {
    fn from_u8(v: u8) -> Result<InodeKind> {
        use InodeKind::*;
        const ALL: [InodeKind; 13] = [
            Free,
            File,
            Directory,
            Symlink,
            Fifo,
            Socket,
            CharDevice,
            BlockDevice,
            Version,
            DeadList,
            Xattrs,
            Bookmark,
            Counts,
        ];
        ALL.get(usize::from(v)).copied().ok_or(LayoutError::Invalid("inode: unknown kind"))
    }
}

/// The part of an inode that only a version uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VersionPart {
    /// Next inode number of the volume to be given away.
    pub next_ino: u64,
    /// Version it was taken from (0: none).
    pub parent: u64,
    /// First version taken from it (0: none).
    pub first_child: u64,
    /// Next version with the same parent (0: none).
    pub sibling: u64,
    /// Epoch in which it was frozen (0: it is live).
    pub epoch: u64,
    /// Inode of its dead list in the volume table (0: none).
    pub dead_list: u64,
    /// [`VERSION_DELETED`] and the like.
    pub flags: u64,
    /// Directory of its snapshots' names in the volume table (0: none).
    pub snapshots: u64,
    /// Of a snapshot and a bookmark the live version it was taken from. Of a live version the one
    /// as which its volume began: itself for a clone, an older one after a rollback (0: itself, and
    /// it began empty).
    pub branch: u64,
    /// Nobody deletes it before this time (0: no such time), nanoseconds since 1970.
    pub hold_until: i64,
    /// Hook that was to bring the application to rest, UTF-8 and zeros (all zeros: none).
    pub hook: [u8; HOOK_BYTES],
    /// How that ended.
    pub hook_outcome: u8,
}

/// Longest name of a hook in a version's record, in bytes.
pub const HOOK_BYTES: usize = 31;

/// Version flag: deleted, hidden until its blocks are freed.
pub const VERSION_DELETED: u64 = 1;
/// Version flag: held, not to be deleted until released.
pub const VERSION_HELD: u64 = 2;
/// Version flag: the application said that its data was consistent.
pub const VERSION_CONSISTENT: u64 = 4;

/// An inode decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inode {
    /// What it is.
    pub kind: InodeKind,
    /// Levels of nodes above the data: 0, the root pointer names the only data block.
    pub height: u8,
    /// Permission bits 07777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Links.
    pub nlink: u32,
    /// Device number.
    pub rdev: u32,
    /// Length in bytes.
    pub size: u64,
    /// Data blocks.
    pub blocks: u64,
    /// Epoch of creation.
    pub generation: u64,
    /// Nanoseconds since 1970.
    pub atime: i64,
    /// Nanoseconds since 1970.
    pub mtime: i64,
    /// Nanoseconds since 1970.
    pub ctime: i64,
    /// Nanoseconds since 1970.
    pub btime: i64,
    /// Root of the block tree.
    pub root: Pointer,
    /// Inode that holds the extended attributes (0: none).
    pub xattr_ino: u64,
    /// Directory: the inode of `..`.
    pub parent_ino: u64,
    /// Directory: entries.
    pub entries: u64,
    /// Epoch in which it last lost all its data: a hole whose own birth is 0 was made then.
    pub cleared: u64,
    /// Directory: depth of its deepest bucket.
    pub depth: u8,
    /// A version's own part.
    pub version: VersionPart,
}

const VERSION_AT: usize = 128;
const VERSION_WORDS: usize = 10;
const HOOK_AT: usize = VERSION_AT + VERSION_WORDS * 8;
const _: () = assert!(HOOK_AT + 1 + HOOK_BYTES <= INODE_BYTES);

/// Tallest tree: 256^5 blocks are 4 PiB.
const MAX_HEIGHT: u8 = 5;

impl Inode {
    /// An empty inode of this kind.
    pub fn empty(kind: InodeKind) -> Inode {
        Inode {
            kind,
            height: 0,
            mode: 0,
            uid: 0,
            gid: 0,
            nlink: 0,
            rdev: 0,
            size: 0,
            blocks: 0,
            generation: 0,
            atime: 0,
            mtime: 0,
            ctime: 0,
            btime: 0,
            root: Pointer::default(),
            xattr_ino: 0,
            parent_ino: 0,
            entries: 0,
            cleared: 0,
            depth: 0,
            version: VersionPart::default(),
        }
    }

    /// Its 512 bytes; what is reserved is zero.
    pub fn encode(&self) -> [u8; INODE_BYTES] {
        let mut b = [0; INODE_BYTES];
        b[0] = self.kind as u8;
        b[1] = self.height;
        put_u16(&mut b, 2, u16::from(self.depth));
        let words = [self.mode, self.uid, self.gid, self.nlink, self.rdev];
        for (i, v) in words.into_iter().enumerate() {
            put_u32(&mut b, 4 + i * 4, v);
        }
        put_u64(&mut b, 24, self.size);
        put_u64(&mut b, 32, self.blocks);
        put_u64(&mut b, 40, self.generation);
        for (i, v) in [self.atime, self.mtime, self.ctime, self.btime].into_iter().enumerate() {
            put_u64(&mut b, 48 + i * 8, v as u64);
        }
        self.root.encode(&mut b[80..96]);
        put_u64(&mut b, 96, self.xattr_ino);
        put_u64(&mut b, 104, self.parent_ino);
        put_u64(&mut b, 112, self.entries);
        put_u64(&mut b, 120, self.cleared);
        self.encode_version(&mut b);
        b
    }

    fn encode_version(&self, b: &mut [u8]) {
        let v = &self.version;
        let words: [u64; VERSION_WORDS] = [
            v.next_ino,
            v.parent,
            v.first_child,
            v.sibling,
            v.epoch,
            v.dead_list,
            v.flags,
            v.snapshots,
            v.branch,
            v.hold_until as u64,
        ];
        for (i, w) in words.into_iter().enumerate() {
            put_u64(b, VERSION_AT + i * 8, w);
        }
        b[HOOK_AT] = v.hook_outcome;
        put_bytes(b, HOOK_AT + 1, &v.hook);
    }

    /// Reads 512 bytes.
    pub fn decode(b: &[u8]) -> Result<Inode> {
        if b.len() < INODE_BYTES {
            return Err(LayoutError::Invalid("inode: too short"));
        }
        if b[1] > MAX_HEIGHT {
            return Err(LayoutError::Invalid("inode: tree too tall"));
        }
        let v = |i: usize| u64_at(b, VERSION_AT + i * 8);
        Ok(Inode {
            kind: InodeKind::from_u8(b[0])?,
            height: b[1],
            depth: u16_at(b, 2).min(255) as u8,
            mode: u32_at(b, 4),
            uid: u32_at(b, 8),
            gid: u32_at(b, 12),
            nlink: u32_at(b, 16),
            rdev: u32_at(b, 20),
            size: u64_at(b, 24),
            blocks: u64_at(b, 32),
            generation: u64_at(b, 40),
            atime: u64_at(b, 48) as i64,
            mtime: u64_at(b, 56) as i64,
            ctime: u64_at(b, 64) as i64,
            btime: u64_at(b, 72) as i64,
            root: Pointer::decode(&b[80..96])?,
            xattr_ino: u64_at(b, 96),
            parent_ino: u64_at(b, 104),
            entries: u64_at(b, 112),
            cleared: u64_at(b, 120),
            version: VersionPart {
                next_ino: v(0),
                parent: v(1),
                first_child: v(2),
                sibling: v(3),
                epoch: v(4),
                dead_list: v(5),
                flags: v(6),
                snapshots: v(7),
                branch: v(8),
                hold_until: v(9) as i64,
                hook: array_at(b, HOOK_AT + 1),
                hook_outcome: b[HOOK_AT],
            },
        })
    }
}
