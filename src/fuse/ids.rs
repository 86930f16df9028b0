//! Node numbers of the mount: `volume << 40 | ino`, with 1 for the root of the ordinary tree.
//!
//! Invariants: a number names the same object for ever (volumes and inodes are never numbered
//! again), so handles that an NFS or Samba server keeps survive a restart of the server; the
//! numbers 1 and `volume << 40 | 1` belong to no inode ([`crate::fs::ROOT_INO`] is 2 and volumes
//! begin at 16).

use crate::fs::{NodeId, VolumeId};
use fuser::INodeNo;

/// Bits of an inode number inside its volume.
const INO_BITS: u32 = 40;
/// Inode number, in every LUN's volume, of the virtual directory `.snapshots`.
const SNAPSHOTS_INO: u64 = 1;
/// Highest volume number that fits beside [`INO_BITS`] in 64 bits.
const MAX_VOLUME: u32 = (1 << (u64::BITS - INO_BITS)) - 1;

/// What a node number of the mount names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    /// An inode of the filesystem.
    Inode(NodeId),
    /// The virtual directory `.snapshots` of a LUN.
    Snapshots(VolumeId),
}

impl Node {
    /// What the kernel means by `number`; `None` for numbers that were never given out.
    pub fn unpack(number: INodeNo) -> Option<Node> {
        if number == INodeNo::ROOT {
            return Some(Node::Inode(NodeId::root(VolumeId::TREE)));
        }
        let volume = VolumeId((number.0 >> INO_BITS) as u32);
        match number.0 & ((1 << INO_BITS) - 1) {
            _ if volume.0 == 0 => None,
            0 => None,
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
        };
        let fits = volume.0 <= MAX_VOLUME && ino < 1 << INO_BITS;
        fits.then_some(INodeNo(NodeId { volume, ino }.number()))
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
            inode(MAX_VOLUME, (1 << INO_BITS) - 1),
            Node::Snapshots(VolumeId(17)),
        ] {
            let number = node.pack().expect("fits");
            assert_eq!(Node::unpack(number), Some(node));
        }
        assert_eq!(inode(16, 2).pack(), Some(INodeNo::ROOT));
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        let inode = |volume, ino| Node::Inode(NodeId { volume: VolumeId(volume), ino });
        assert_eq!(inode(MAX_VOLUME + 1, 3).pack(), None);
        assert_eq!(inode(16, 1 << INO_BITS).pack(), None);
        assert_eq!(Node::unpack(INodeNo(0)), None);
        assert_eq!(Node::unpack(INodeNo(7)), None);
        assert_eq!(Node::unpack(INodeNo(16 << INO_BITS)), None);
    }
}
