//! The on-disk format of lunfs, declared once: encoders and decoders, no I/O.
//!
//! Everything is little-endian and counted in blocks of 4 KiB. The specification a reader could
//! implement from is this crate's README.md; each file here holds one family of structures.
//! A decoder trusts nothing: it returns [`LayoutError`] and never panics.

mod bucket;
mod bytes;
mod counts;
mod dead_list;
mod group;
mod inode;
mod label;
mod member;
mod pointer;
mod root;
mod scrub;
mod segment_map;
mod space_page;

pub use bucket::{BucketEntry, DirBucket, BUCKET_MAX_DEPTH};
pub use counts::{count_in, put_count, COUNTS_PER_BLOCK};
pub use dead_list::{DeadEntry, DeadKind, DEAD_ENTRY_BYTES};
pub use group::{
    CloneLink, FileRange, FileRecord, GroupHead, Link, PayloadReader, PayloadWriter,
    GROUP_EXTENTS_MAX, GROUP_MAX_CONT,
};
pub use inode::{
    Inode, InodeKind, VersionPart, HOOK_BYTES, INODES_PER_BLOCK, INODE_BYTES, VERSION_CONSISTENT,
    VERSION_DELETED, VERSION_HELD,
};
pub use label::{DeviceEntry, Label, ANCESTORS, LABEL_PLACES, MAX_DEVICES};
pub use member::{MemberRecord, MemberState, MEMBER_BYTES};
pub use pointer::{Pointer, MAX_BLOCK, POINTERS_PER_NODE, POINTER_BYTES};
pub use root::{Root, ROOT_COPIES, ROOT_SLOTS};
pub use scrub::{ScrubRecord, ScrubResult, SCRUB_RECORD_BYTES};
pub use segment_map::{
    SegmentMapPage, SegmentRun, MAX_MEMBERS, RUNS_PER_PAGE, SEGMENT_MAP_BASE, SEGMENT_MAP_PAGES,
};
pub use space_page::{page_places, SpaceEntry, ENTRIES_PER_TABLE, REGION_RESERVED_BLOCKS};

/// Bytes of a block.
pub const BLOCK_BYTES: usize = 4096;
/// Blocks of a segment (2 MiB).
pub const SEGMENT_BLOCKS: u64 = 512;
/// Blocks whose free bits fit one bitmap page (128 MiB).
pub const REGION_BLOCKS: u64 = (BLOCK_BYTES * 8) as u64;
/// The format version written by this code; older and newer ones are refused.
pub const FORMAT_VERSION: u32 = 1;
/// Incompatible feature: the label says which devices may be read (§3).
pub const FEATURE_MEMBERS: u64 = 1;
/// Incompatible feature: versions share blocks (§8).
pub const FEATURE_VERSIONS: u64 = 1 << 4;
/// Incompatible feature: files share blocks that are counted (§9).
pub const FEATURE_CLONES: u64 = 1 << 5;
/// Incompatible feature: dead lists tell nodes from data (§11); since there are any.
pub const FEATURE_DEAD_NODES: u64 = 1 << 6;
/// Incompatible features this code understands.
pub const FEATURES_INCOMPAT: u64 =
    FEATURE_MEMBERS | FEATURE_VERSIONS | FEATURE_CLONES | FEATURE_DEAD_NODES;
/// Features that allow reading only by code that knows them: none yet.
pub const FEATURES_RO_COMPAT: u64 = 0;

/// A block's bytes.
pub type RawBlock = [u8; BLOCK_BYTES];

/// Why bytes are not the structure they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The magic number is another one.
    #[error("{0}: not found (wrong magic)")]
    Magic(&'static str),
    /// The checksum does not match.
    #[error("{0}: checksum mismatch")]
    Checksum(&'static str),
    /// Written by another version of the format.
    #[error("{what}: format version {found}, this program knows {FORMAT_VERSION}")]
    Version {
        /// Which structure.
        what: &'static str,
        /// Its version.
        found: u32,
    },
    /// Uses features this program does not know.
    #[error("the pool uses features this program does not know (bits {0:#x})")]
    Features(u64),
    /// A field holds what it may not.
    #[error("{0}")]
    Invalid(&'static str),
}

/// Result of a decoder.
pub type Result<T> = std::result::Result<T, LayoutError>;
