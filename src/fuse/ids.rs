//! Node numbers of the mount: `volume << 40 | ino`, with 1 for the root of the ordinary tree; for
//! volumes (snapshots are counted with them) from 2^23 on `1 << 63 | volume << 31 | ino`.
//!
//! Invariants: a number names the same object for ever (volumes and inodes are never numbered
//! again), so handles that an NFS or Samba server keeps survive a restart of the server, and a file
//! and its likeness in a snapshot never have the same one; the numbers 1, `volume << 40 | 1` and
//! `volume << 40` belong to no inode ([`crate::fs::ROOT_INO`] is 2 and volumes begin at 16).

use crate::fs::{NodeId, VolumeId};
use fuser::INodeNo;

/// How volume and inode number share 64 bits: bits of the inode number. A pool with a snapshot each
/// second reaches the second form after three months; in it a volume may still have two thousand
/// million inodes.
const INO_BITS: u32 = 40;
/// The same from [`WIDE_VOLUME`] on.
const WIDE_INO_BITS: u32 = 31;
/// First volume number that does not fit beside [`INO_BITS`] below the highest bit.
const WIDE_VOLUME: u32 = 1 << 23;
/// Says that the number is of the second form.
const WIDE: u64 = 1 << 63;
/// Inode number, in every volume, of the virtual directory `.snapshots`.
const SNAPSHOTS_INO: u64 = 1;
/// The same of `.by-time` in it.
const TIMES_INO: u64 = 0;

/// What a node number of the mount names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    /// An inode of the filesystem.
    Inode(NodeId),
    /// The virtual directory `.snapshots` of a LUN, or of the ordinary tree.
    Snapshots(VolumeId),
    /// `.by-time` in it.
    Times(VolumeId),
}

impl Node {
    /// What the kernel means by `number`; `None` for numbers that were never given out.
    pub fn unpack(number: INodeNo) -> Option<Node> {
        if number == INodeNo::ROOT {
            return Some(Node::Inode(NodeId::root(VolumeId::TREE)));
        }
        let is_wide = number.0 & WIDE != 0;
        let bits = if is_wide { WIDE_INO_BITS } else { INO_BITS };
        let volume = VolumeId(((number.0 & !WIDE) >> bits) as u32);
        match number.0 & ((1 << bits) - 1) {
            // One form is right for each volume.
            _ if is_wide != (volume.0 >= WIDE_VOLUME) => None,
            _ if volume.0 == 0 => None,
            TIMES_INO => Some(Node::Times(volume)),
            SNAPSHOTS_INO => Some(Node::Snapshots(volume)),
            ino => Some(Node::Inode(NodeId { volume, ino })),
        }
    }

    /// The number that the kernel is told; `None` if the node's numbers are too large to be told.
    pub fn pack(self) -> Option<INodeNo> {
        let (volume, ino) = match self {
            Node::Inode(id) if id == NodeId::root(VolumeId::TREE) => return Some(INodeNo::ROOT),
            Node::Inode(id) => (id.volume, id.ino),
            Node::Snapshots(volume) => (volume, SNAPSHOTS_INO),
            Node::Times(volume) => (volume, TIMES_INO),
        };
        let is_wide = volume.0 >= WIDE_VOLUME;
        let (bits, form) = if is_wide { (WIDE_INO_BITS, WIDE) } else { (INO_BITS, 0) };
        (ino < 1 << bits).then_some(INodeNo(form | u64::from(volume.0) << bits | ino))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_name_what_they_were_made_from() {
        let inode = |volume, ino| Node::Inode(NodeId { volume: VolumeId(volume), ino });
        for node in [
            Node::Inode(NodeId::root(VolumeId::TREE)),
            inode(16, 3),
            inode(17, 2),
            inode(WIDE_VOLUME - 1, (1 << INO_BITS) - 1),
            inode(WIDE_VOLUME, 2),
            inode(u32::MAX, (1 << WIDE_INO_BITS) - 1),
            Node::Snapshots(VolumeId(16)),
            Node::Snapshots(VolumeId(17)),
            Node::Snapshots(VolumeId(u32::MAX)),
            Node::Times(VolumeId(16)),
            Node::Times(VolumeId(u32::MAX)),
        ] {
            let number = node.pack().expect("fits");
            assert_eq!(Node::unpack(number), Some(node));
        }
        assert_eq!(inode(16, 2).pack(), Some(INodeNo::ROOT));
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        let inode = |volume, ino| Node::Inode(NodeId { volume: VolumeId(volume), ino });
        assert_eq!(inode(WIDE_VOLUME, 1 << WIDE_INO_BITS).pack(), None);
        assert_eq!(inode(16, 1 << INO_BITS).pack(), None);
        assert_eq!(Node::unpack(INodeNo(WIDE | 17 << WIDE_INO_BITS | 3)), None);
        assert_eq!(Node::unpack(INodeNo(0)), None);
        assert_eq!(Node::unpack(INodeNo(7)), None);
    }
}
