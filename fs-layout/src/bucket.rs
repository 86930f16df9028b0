//! A directory's bucket: one block of the directory's sparse file.
//!
//! A name's hash is 55 bits; with 8 bits of collision number it is the entry's *cookie*
//! (`hash << 8 | collision`), unique in the directory. A bucket of depth `d` at file block `i`
//! holds the entries whose lowest `d` bits of the bit-reversed hash are `i`: the top bits of the
//! hash, so a bucket covers one interval of cookies. A full bucket is split: entries whose next bit
//! is set move to block `i + 2^d`. A block that is a hole was never split off: its entries are in
//! the parent's.
//!
//! Header, 16 bytes: magic `LFDB` 0..4, depth 4, entries 6..8, bytes in use 8..10. Then the
//! entries, packed: cookie u64, inode u64, kind u8, length of the name u8, name.

use crate::bytes::{put_bytes, put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};
use crate::{LayoutError, RawBlock, Result, BLOCK_BYTES};

/// Deepest bucket: 2^40 of them would be a directory beyond any file's length.
pub const BUCKET_MAX_DEPTH: u8 = 40;
const MAGIC: u32 = u32::from_le_bytes(*b"LFDB");
const HEADER: usize = 16;
const ENTRY_HEADER: usize = 18;

/// An entry of a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketEntry {
    /// `hash << 8 | collision`.
    pub cookie: u64,
    /// Inode it names.
    pub ino: u64,
    /// [`crate::InodeKind`] of it, as a hint for readdir.
    pub kind: u8,
    /// 1 to 255 bytes.
    pub name: Vec<u8>,
}

/// A bucket decoded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DirBucket {
    /// How many bits of the hash lead here.
    pub depth: u8,
    /// In no order.
    pub entries: Vec<BucketEntry>,
}

impl DirBucket {
    /// Bytes it takes when encoded.
    pub fn encoded_len(&self) -> usize {
        HEADER + self.entries.iter().map(|e| ENTRY_HEADER + e.name.len()).sum::<usize>()
    }

    /// Would an entry with a name of this length still fit?
    pub fn fits(&self, name_len: usize) -> bool {
        self.encoded_len() + ENTRY_HEADER + name_len <= BLOCK_BYTES
    }

    /// Its block. The caller keeps `encoded_len` within a block.
    pub fn encode(&self, out: &mut RawBlock) {
        out.fill(0);
        put_u32(out, 0, MAGIC);
        out[4] = self.depth;
        put_u16(out, 6, self.entries.len() as u16);
        let mut at = HEADER;
        for e in &self.entries {
            put_u64(out, at, e.cookie);
            put_u64(out, at + 8, e.ino);
            out[at + 16] = e.kind;
            out[at + 17] = e.name.len() as u8;
            put_bytes(out, at + ENTRY_HEADER, &e.name);
            at += ENTRY_HEADER + e.name.len();
        }
        put_u16(out, 8, at as u16);
    }

    /// Reads a block.
    pub fn decode(b: &RawBlock) -> Result<DirBucket> {
        let mut bucket = DirBucket { depth: DirBucket::depth_of(b)?, entries: Vec::new() };
        let mut walk = Entries::new(b)?;
        while let Some((cookie, ino, kind, name)) = walk.next_entry()? {
            bucket.entries.push(BucketEntry { cookie, ino, kind, name: name.to_vec() });
        }
        Ok(bucket)
    }

    /// The depth alone.
    pub fn depth_of(b: &RawBlock) -> Result<u8> {
        if u32_at(b, 0) != MAGIC {
            return Err(LayoutError::Magic("directory bucket"));
        }
        if b[4] > BUCKET_MAX_DEPTH {
            return Err(LayoutError::Invalid("directory bucket: too deep"));
        }
        Ok(b[4])
    }

    /// Finds a name without decoding the rest: (cookie, inode, kind).
    pub fn find(b: &RawBlock, hash: u64, name: &[u8]) -> Result<Option<(u64, u64, u8)>> {
        let mut walk = Entries::new(b)?;
        while let Some((cookie, ino, kind, n)) = walk.next_entry()? {
            if cookie >> 8 == hash && n == name {
                return Ok(Some((cookie, ino, kind)));
            }
        }
        Ok(None)
    }
}

struct Entries<'a> {
    b: &'a RawBlock,
    at: usize,
    left: u16,
}

impl<'a> Entries<'a> {
    fn new(b: &'a RawBlock) -> Result<Self> {
        DirBucket::depth_of(b)?;
        Ok(Entries { b, at: HEADER, left: u16_at(b, 6) })
    }

    #[allow(clippy::type_complexity)]
    fn next_entry(&mut self) -> Result<Option<(u64, u64, u8, &'a [u8])>> {
        if self.left == 0 {
            return Ok(None);
        }
        let bad = LayoutError::Invalid("directory bucket: entry beyond the block");
        let head = self.b.get(self.at..self.at + ENTRY_HEADER).ok_or(bad.clone())?;
        let start = self.at + ENTRY_HEADER;
        let name = self.b.get(start..start + usize::from(head[17])).ok_or(bad)?;
        self.left -= 1;
        self.at = start + name.len();
        Ok(Some((u64_at(head, 0), u64_at(head, 8), head[16], name)))
    }
}
