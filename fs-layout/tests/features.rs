//! A pool that a later version wrote is refused with a clear word, never half understood.

use fs_layout::{
    Inode, InodeKind, LayoutError, Root, SpaceEntry, BLOCK_BYTES, FEATURE_MEMBERS,
    SEGMENT_MAP_PAGES,
};

fn encoded() -> [u8; BLOCK_BYTES] {
    let root = Root {
        incompatible: FEATURE_MEMBERS,
        pool_id: [1; 16],
        epoch: 9,
        lineage: 1,
        previous: [2; 32],
        time: 3,
        blocks: 1 << 20,
        next_group_block: 5000,
        next_group: 7,
        group_seed: [4; 32],
        space: SpaceEntry::default(),
        segment_map: [(0, 255); SEGMENT_MAP_PAGES],
        scrub: Default::default(),
        volume_table: Inode::empty(InodeKind::Version),
    };
    let mut block = [0; BLOCK_BYTES];
    let hash = root.encode(&mut block);
    assert_eq!(Root::decode(&block), Ok((root, hash)));
    block
}

/// The root with a byte changed and its hash made right again.
fn with(at: usize, value: u8) -> [u8; BLOCK_BYTES] {
    let mut block = encoded();
    block[at] = value;
    let hash = *blake3::hash(&block[..BLOCK_BYTES - 32]).as_bytes();
    block[BLOCK_BYTES - 32..].copy_from_slice(&hash);
    block
}

#[test]
fn a_newer_version_is_refused() {
    let refused = Root::decode(&with(8, 2));
    assert_eq!(refused, Err(LayoutError::Version { what: "root", found: 2 }));
}

#[test]
fn unknown_features_are_refused_but_for_compatible_ones() {
    assert!(Root::decode(&with(16, 1)).is_ok());
    assert_eq!(Root::decode(&with(24, 4)), Err(LayoutError::Features(4)));
    assert_eq!(Root::decode(&with(32, 8)), Err(LayoutError::Features(8)));
}

#[test]
fn a_changed_byte_is_a_wrong_checksum() {
    let mut block = encoded();
    block[57] ^= 1;
    assert_eq!(Root::decode(&block), Err(LayoutError::Checksum("root")));
}
