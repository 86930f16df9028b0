//! A group: what was linked between two cuts, as state. A head block, continuation blocks where the
//! payload does not fit the head, and the data blocks that the payload names.
//!
//! Head: magic `LUNFSGRP` 0..8, version u32 8, extents u32 12, number u64 16, epoch u64 24, durable
//! mark u64 32 (every group up to it was durable when this one was written), next head's place u64
//! 40, payload bytes u32 48, payload CRC-32C u32 52, chain hash 64..96, then from byte 96 the
//! extents of the continuation blocks (block u64, count u64). A payload that fits stands at byte 96
//! of a head without extents; any other is wholly in the continuation blocks.
//! The chain hash is the BLAKE3 of the predecessor's chain hash and this block with the field zero.
//!
//! Payload: records until its end. Each: tag u8 (1: file), has-inode u8, reserved u16, volume u32,
//! inode number u64, holes u32, runs u32; then the holes (first file block u64, count u64), applied
//! first; then the runs (file block u64, disk block u64, count u32, CRC-32C u32 x count); then
//! the inode's 512 bytes if it has them, whose root, height and blocks are not used.
//! With tag 2 there are ranges in place of the holes, applied in their order: first file block in
//! bits 0..56 of a u64, height above (255: a hole), count u64 (of a hole its length, else the data
//! blocks below), then pool block u64, CRC-32C u32 and reserved u32 of what is cloned.

use crate::bytes::{array_at, put_bytes, put_u32, put_u64, u32_at, u64_at};
use crate::{Inode, LayoutError, RawBlock, Result, BLOCK_BYTES, FORMAT_VERSION, INODE_BYTES};

/// Extents of continuation blocks in a head.
pub const GROUP_EXTENTS_MAX: usize = (BLOCK_BYTES - EXTENTS_AT) / 16;
/// Continuation blocks of one group: a bound for what recovery holds in memory (64 MiB).
pub const GROUP_MAX_CONT: u64 = 16_384;
const MAGIC: &[u8; 8] = b"LUNFSGRP";
const CHAIN_AT: usize = 64;
const EXTENTS_AT: usize = 96;
const INLINE_BYTES: usize = BLOCK_BYTES - EXTENTS_AT;
const TAG_FILE: u8 = 1;
const TAG_RANGES: u8 = 2;
const FILE_HEADER: usize = 24;
/// Stands where a range's height would.
const HOLE_HEIGHT: u64 = 255;
/// Tallest tree.
const MAX_HEIGHT: u64 = 5;

/// A head decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupHead {
    /// Groups are numbered without gaps.
    pub number: u64,
    /// Epoch of all its links.
    pub epoch: u64,
    /// Every group up to this number was durable.
    pub durable_mark: u64,
    /// Place of the next head.
    pub next_block: u64,
    /// Bytes of the payload.
    pub payload_bytes: u32,
    /// CRC-32C of the payload.
    pub payload_crc: u32,
    /// Continuation blocks: (first block, count).
    pub extents: Vec<(u64, u64)>,
}

impl GroupHead {
    /// Continuation blocks of a payload of this size.
    pub fn continuation_blocks(payload_bytes: usize) -> u64 {
        if payload_bytes <= INLINE_BYTES {
            return 0;
        }
        payload_bytes.div_ceil(BLOCK_BYTES) as u64
    }

    /// Fills `out` with the head and the payload's first bytes; the chain hash for the next group.
    pub fn encode(&self, payload: &[u8], seed: &[u8; 32], out: &mut RawBlock) -> [u8; 32] {
        out.fill(0);
        put_bytes(out, 0, MAGIC);
        put_u32(out, 8, FORMAT_VERSION);
        put_u32(out, 12, self.extents.len() as u32);
        put_u64(out, 16, self.number);
        put_u64(out, 24, self.epoch);
        put_u64(out, 32, self.durable_mark);
        put_u64(out, 40, self.next_block);
        put_u32(out, 48, self.payload_bytes);
        put_u32(out, 52, self.payload_crc);
        for (i, (block, count)) in self.extents.iter().enumerate() {
            put_u64(out, EXTENTS_AT + i * 16, *block);
            put_u64(out, EXTENTS_AT + i * 16 + 8, *count);
        }
        if self.extents.is_empty() && payload.len() <= INLINE_BYTES {
            put_bytes(out, EXTENTS_AT, payload);
        }
        let chain = chain_hash(seed, out);
        put_bytes(out, CHAIN_AT, &chain);
        chain
    }

    /// Reads a head that must follow `seed`: the head and the seed of the next one.
    pub fn decode(b: &RawBlock, seed: &[u8; 32]) -> Result<(GroupHead, [u8; 32])> {
        if &b[..8] != MAGIC {
            return Err(LayoutError::Magic("group head"));
        }
        let chain: [u8; 32] = array_at(b, CHAIN_AT);
        let mut bare = *b;
        bare[CHAIN_AT..CHAIN_AT + 32].fill(0);
        if chain_hash(seed, &bare) != chain {
            return Err(LayoutError::Checksum("group head"));
        }
        Ok((GroupHead::decode_unchecked(b)?, chain))
    }

    /// Reads a head's fields without the chain hash: to show them, never to trust them.
    pub fn decode_unchecked(b: &RawBlock) -> Result<GroupHead> {
        if u32_at(b, 8) != FORMAT_VERSION {
            return Err(LayoutError::Version { what: "group head", found: u32_at(b, 8) });
        }
        let head = GroupHead {
            number: u64_at(b, 16),
            epoch: u64_at(b, 24),
            durable_mark: u64_at(b, 32),
            next_block: u64_at(b, 40),
            payload_bytes: u32_at(b, 48),
            payload_crc: u32_at(b, 52),
            extents: decode_extents(b)?,
        };
        let blocks: u64 = head.extents.iter().map(|e| e.1).sum();
        if blocks != GroupHead::continuation_blocks(head.payload_bytes as usize) {
            return Err(LayoutError::Invalid("group head: extents and payload disagree"));
        }
        Ok(head)
    }

    /// The payload, where it stands in the head block itself.
    pub fn inline_payload<'a>(&self, b: &'a RawBlock) -> Option<&'a [u8]> {
        let end = EXTENTS_AT.saturating_add(self.payload_bytes as usize);
        if self.extents.is_empty() {
            b.get(EXTENTS_AT..end)
        } else {
            None
        }
    }
}

fn decode_extents(b: &RawBlock) -> Result<Vec<(u64, u64)>> {
    let n = u32_at(b, 12) as usize;
    if n > GROUP_EXTENTS_MAX {
        return Err(LayoutError::Invalid("group head: too many extents"));
    }
    let at = |i: usize| (u64_at(b, EXTENTS_AT + i * 16), u64_at(b, EXTENTS_AT + i * 16 + 8));
    let extents: Vec<_> = (0..n).map(at).collect();
    let mut total = 0;
    for (block, count) in &extents {
        total += count.min(&(GROUP_MAX_CONT + 1));
        if *block == 0 || *count == 0 || total > GROUP_MAX_CONT || *block > crate::MAX_BLOCK {
            return Err(LayoutError::Invalid("group head: extent out of range"));
        }
    }
    Ok(extents)
}

fn chain_hash(seed: &[u8; 32], block: &RawBlock) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(seed);
    hasher.update(block);
    *hasher.finalize().as_bytes()
}

/// A data block linked at a file block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Block of the file.
    pub file_block: u64,
    /// Block of the pool.
    pub disk_block: u64,
    /// CRC-32C of its bytes.
    pub crc: u32,
}

/// What another tree has too, linked at a range of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloneLink {
    /// First block of the file.
    pub first: u64,
    /// Levels of nodes: 0, a data block.
    pub height: u8,
    /// Block of the pool.
    pub block: u64,
    /// CRC-32C of its bytes.
    pub crc: u32,
    /// Data blocks at and below it.
    pub data_blocks: u64,
}

/// A range of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileRange {
    /// (first file block, count) is a hole.
    Hole(u64, u64),
    /// It is shared with another tree.
    Clone(CloneLink),
}

/// What a group says of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRecord {
    /// The volume (0: the volume table).
    pub volume: u32,
    /// The inode.
    pub ino: u64,
    /// Before the links, in this order.
    pub ranges: Vec<FileRange>,
    /// Sorted by file block.
    pub links: Vec<Link>,
    /// The whole inode record, where it changed.
    pub inode: Option<Inode>,
}

/// Builds a payload.
#[derive(Debug, Default)]
pub struct PayloadWriter {
    bytes: Vec<u8>,
}

impl PayloadWriter {
    /// Adds a record; links that continue one another become one run.
    pub fn file(&mut self, r: &FileRecord) {
        let start = self.bytes.len();
        self.bytes.resize(start + FILE_HEADER, 0);
        let is_hole = |r: &FileRange| matches!(r, FileRange::Hole(..));
        let tag = if r.ranges.iter().all(is_hole) { TAG_FILE } else { TAG_RANGES };
        for range in &r.ranges {
            self.range(tag, range);
        }
        let runs = self.runs(&r.links);
        if let Some(inode) = &r.inode {
            self.bytes.extend_from_slice(&inode.encode());
        }
        let h = &mut self.bytes[start..start + FILE_HEADER];
        h[0] = tag;
        h[1] = u8::from(r.inode.is_some());
        put_u32(h, 4, r.volume);
        put_u64(h, 8, r.ino);
        put_u32(h, 16, r.ranges.len() as u32);
        put_u32(h, 20, runs);
    }

    fn range(&mut self, tag: u8, range: &FileRange) {
        let (word, count, block, crc) = match range {
            FileRange::Hole(first, count) if tag == TAG_FILE => {
                self.bytes.extend_from_slice(&first.to_le_bytes());
                self.bytes.extend_from_slice(&count.to_le_bytes());
                return;
            }
            FileRange::Hole(first, count) => (first | HOLE_HEIGHT << 56, *count, 0, 0),
            FileRange::Clone(c) => {
                (c.first | u64::from(c.height) << 56, c.data_blocks, c.block, u64::from(c.crc))
            }
        };
        for word in [word, count, block, crc] {
            self.bytes.extend_from_slice(&word.to_le_bytes());
        }
    }

    fn runs(&mut self, links: &[Link]) -> u32 {
        let mut runs = 0;
        let mut rest = links;
        while let Some(first) = rest.first() {
            let follows = |(i, l): (usize, &Link)| {
                l.file_block == first.file_block + i as u64
                    && l.disk_block == first.disk_block + i as u64
            };
            let n = rest.iter().enumerate().take_while(|x| follows(*x)).count();
            self.bytes.extend_from_slice(&first.file_block.to_le_bytes());
            self.bytes.extend_from_slice(&first.disk_block.to_le_bytes());
            self.bytes.extend_from_slice(&(n as u32).to_le_bytes());
            for l in &rest[..n] {
                self.bytes.extend_from_slice(&l.crc.to_le_bytes());
            }
            rest = &rest[n..];
            runs += 1;
        }
        runs
    }

    /// The payload.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// Reads a payload record by record.
#[derive(Debug)]
pub struct PayloadReader<'a> {
    rest: &'a [u8],
}

impl<'a> PayloadReader<'a> {
    /// Over a whole payload.
    pub fn new(payload: &'a [u8]) -> Self {
        PayloadReader { rest: payload }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        if n > self.rest.len() {
            return Err(LayoutError::Invalid("group payload: a record ends too early"));
        }
        let (head, rest) = self.rest.split_at(n);
        self.rest = rest;
        Ok(head)
    }

    /// The next record; `None` at the end.
    pub fn next_record(&mut self) -> Result<Option<FileRecord>> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let h = self.take(FILE_HEADER)?;
        if h[0] != TAG_FILE && h[0] != TAG_RANGES {
            return Err(LayoutError::Invalid("group payload: unknown record"));
        }
        let (ranges, runs) = (u32_at(h, 16), u32_at(h, 20));
        let mut record = FileRecord {
            volume: u32_at(h, 4),
            ino: u64_at(h, 8),
            ranges: Vec::new(),
            links: Vec::new(),
            inode: None,
        };
        for _ in 0..ranges {
            record.ranges.push(self.range(h[0])?);
        }
        for _ in 0..runs {
            self.run(&mut record.links)?;
        }
        if h[1] != 0 {
            record.inode = Some(Inode::decode(self.take(INODE_BYTES)?)?);
        }
        Ok(Some(record))
    }

    fn range(&mut self, tag: u8) -> Result<FileRange> {
        if tag == TAG_FILE {
            let b = self.take(16)?;
            return Ok(FileRange::Hole(u64_at(b, 0), u64_at(b, 8)));
        }
        let b = self.take(32)?;
        let (first, height) = (u64_at(b, 0) & ((1 << 56) - 1), u64_at(b, 0) >> 56);
        let (data_blocks, block) = (u64_at(b, 8), u64_at(b, 16));
        if height == HOLE_HEIGHT {
            return Ok(FileRange::Hole(first, data_blocks));
        }
        let is_aligned = height <= MAX_HEIGHT && first % 256u64.pow(height as u32) == 0;
        if !is_aligned || first > 1 << 50 || block == 0 || block > crate::MAX_BLOCK {
            return Err(LayoutError::Invalid("group payload: a clone out of range"));
        }
        let (height, crc) = (height as u8, u32_at(b, 24));
        Ok(FileRange::Clone(CloneLink { first, height, block, crc, data_blocks }))
    }

    fn run(&mut self, links: &mut Vec<Link>) -> Result<()> {
        let b = self.take(20)?;
        let (file_block, disk_block) = (u64_at(b, 0), u64_at(b, 8));
        let n = u32_at(b, 16) as usize;
        let crcs = self.take(n.saturating_mul(4))?;
        let end = disk_block.checked_add(n as u64).filter(|e| *e <= crate::MAX_BLOCK);
        if disk_block == 0 || end.is_none() || file_block > 1 << 50 {
            return Err(LayoutError::Invalid("group payload: a run out of range"));
        }
        for i in 0..n {
            links.push(Link {
                file_block: file_block + i as u64,
                disk_block: disk_block + i as u64,
                crc: u32_at(crcs, i * 4),
            });
        }
        Ok(())
    }
}
