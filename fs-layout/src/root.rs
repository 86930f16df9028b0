//! The root: where everything else is found. Written by each consistency point into the slot of its
//! epoch (`epoch % 2`), two copies of it, the second after the first is durable. The valid one
//! of the highest epoch counts.
//!
//! magic `LUNFSROT` 0..8, version u32 8..12, compat u64 16, ro-compat u64 24, incompat u64 32, pool
//! id 40..56, epoch u64 56, lineage u64 64, predecessor's hash 72..104, time i64 104, blocks u64
//! 112, next group: place u64 120, number u64 128, seed 136..168, top entry of the free-space
//! tables
//! 168..184, segment-map entries 8 x 8 (crc u32, place u8) 192..256, the scrub's record 256..328,
//! volume table's inode 512..1024. The last 32 bytes are the BLAKE3 of what stands before.

use crate::bytes::{array_at, put_bytes, put_u32, put_u64, u32_at, u64_at};
use crate::{
    Inode, LayoutError, RawBlock, Result, ScrubRecord, SpaceEntry, BLOCK_BYTES, FEATURES_INCOMPAT,
    FEATURES_RO_COMPAT, FORMAT_VERSION, INODE_BYTES, SCRUB_RECORD_BYTES, SEGMENT_MAP_PAGES,
};

/// Slots, used in turn.
pub const ROOT_SLOTS: u64 = 2;
/// Device blocks of the first slot's copies; the second slot's follow each.
pub const ROOT_COPIES: [u64; 2] = [16, 256];
const MAGIC: &[u8; 8] = b"LUNFSROT";
const HASH_AT: usize = BLOCK_BYTES - 32;
const MAP_AT: usize = 192;
const SCRUB_AT: usize = 256;
const TABLE_AT: usize = 512;
const _: () = assert!(MAP_AT + SEGMENT_MAP_PAGES * 8 <= SCRUB_AT);
const _: () = assert!(SCRUB_AT + SCRUB_RECORD_BYTES <= TABLE_AT);
const _: () = assert!(TABLE_AT + INODE_BYTES < HASH_AT);

/// A root decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// Incompatible features in use.
    pub incompatible: u64,
    /// The pool.
    pub pool_id: [u8; 16],
    /// Consistency point that wrote it.
    pub epoch: u64,
    /// Changes when the pool goes on without one of its devices.
    pub lineage: u64,
    /// Hash of the root before.
    pub previous: [u8; 32],
    /// Nanoseconds since 1970.
    pub time: i64,
    /// Blocks of the pool's address space (block 0 counted, though it is none).
    pub blocks: u64,
    /// Where the head of the next group will be.
    pub next_group_block: u64,
    /// Its number.
    pub next_group: u64,
    /// What its chain hash is seeded with.
    pub group_seed: [u8; 32],
    /// Top of the free-space tables.
    pub space: SpaceEntry,
    /// For each page of the segment map: CRC-32C and current place (0, 1; 255: no page).
    pub segment_map: [(u32, u8); SEGMENT_MAP_PAGES],
    /// The scrub that runs, or the last one.
    pub scrub: ScrubRecord,
    /// Inode of the volume table.
    pub volume_table: Inode,
}

impl Root {
    /// Its block, and the hash that the next root names.
    pub fn encode(&self, out: &mut RawBlock) -> [u8; 32] {
        out.fill(0);
        put_bytes(out, 0, MAGIC);
        put_u32(out, 8, FORMAT_VERSION);
        put_u64(out, 32, self.incompatible);
        put_bytes(out, 40, &self.pool_id);
        put_u64(out, 56, self.epoch);
        put_u64(out, 64, self.lineage);
        put_bytes(out, 72, &self.previous);
        put_u64(out, 104, self.time as u64);
        put_u64(out, 112, self.blocks);
        put_u64(out, 120, self.next_group_block);
        put_u64(out, 128, self.next_group);
        put_bytes(out, 136, &self.group_seed);
        self.space.encode(&mut out[168..184]);
        for (i, (crc, place)) in self.segment_map.iter().enumerate() {
            put_u32(out, MAP_AT + i * 8, *crc);
            out[MAP_AT + i * 8 + 4] = *place;
        }
        self.scrub.encode(&mut out[SCRUB_AT..TABLE_AT]);
        put_bytes(out, TABLE_AT, &self.volume_table.encode());
        let hash = *blake3::hash(&out[..HASH_AT]).as_bytes();
        put_bytes(out, HASH_AT, &hash);
        hash
    }

    /// Reads a block: the root and its hash.
    pub fn decode(b: &RawBlock) -> Result<(Root, [u8; 32])> {
        if &b[..8] != MAGIC {
            return Err(LayoutError::Magic("root"));
        }
        let hash = *blake3::hash(&b[..HASH_AT]).as_bytes();
        if hash[..] != b[HASH_AT..] {
            return Err(LayoutError::Checksum("root"));
        }
        if u32_at(b, 8) != FORMAT_VERSION {
            return Err(LayoutError::Version { what: "root", found: u32_at(b, 8) });
        }
        // This program writes to every pool it opens: what only a reader may ignore it refuses too.
        let unknown = (u64_at(b, 32) & !FEATURES_INCOMPAT) | (u64_at(b, 24) & !FEATURES_RO_COMPAT);
        if unknown != 0 {
            return Err(LayoutError::Features(unknown));
        }
        Ok((Root::decode_fields(b)?, hash))
    }

    fn decode_fields(b: &RawBlock) -> Result<Root> {
        let entry = |i: usize| (u32_at(b, MAP_AT + i * 8), b[MAP_AT + i * 8 + 4]);
        Ok(Root {
            incompatible: u64_at(b, 32),
            pool_id: array_at(b, 40),
            epoch: u64_at(b, 56),
            lineage: u64_at(b, 64),
            previous: array_at(b, 72),
            time: u64_at(b, 104) as i64,
            blocks: u64_at(b, 112),
            next_group_block: u64_at(b, 120),
            next_group: u64_at(b, 128),
            group_seed: array_at(b, 136),
            space: SpaceEntry::decode(&b[168..184])?,
            segment_map: std::array::from_fn(entry),
            scrub: ScrubRecord::decode(&b[SCRUB_AT..TABLE_AT]),
            volume_table: Inode::decode(&b[TABLE_AT..TABLE_AT + INODE_BYTES])?,
        })
    }
}
