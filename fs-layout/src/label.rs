//! A device's label: which pool it belongs to, where its fellows were found and how each takes
//! part. Two copies, written one after the other; of those that are whole the one of the higher
//! generation counts.
//!
//! magic `LUNFSLAB` 0..8, version 8..12, devices u16 12..14, index u16 14..16, pool id 16..32,
//! device blocks u64 32..40, created i64 40..48, then for each device: id 16 bytes, length of the
//! path u16, path. From 3712: generation u64, lineage u64, 5 earlier lineages u64, redundancy u8;
//! from 3776 a [`MemberRecord`] for each device. The last 32 bytes are the BLAKE3 of what stands
//! before.

use crate::bytes::{array_at, put_bytes, put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};
use crate::member::{MemberRecord, MEMBER_BYTES};
use crate::{LayoutError, RawBlock, Result, BLOCK_BYTES, FORMAT_VERSION};

/// Device blocks of the copies.
pub const LABEL_PLACES: [u64; 2] = [0, 8];
/// Devices of a pool: their entries must fit a label.
pub const MAX_DEVICES: usize = 12;
const MAGIC: &[u8; 8] = b"LUNFSLAB";
const HASH_AT: usize = BLOCK_BYTES - 32;
const ENTRIES_AT: usize = 48;
/// Where the paths end, and what is said of the pool's membership begins.
const TAIL_AT: usize = MEMBERS_AT - 64;
const MEMBERS_AT: usize = HASH_AT - MAX_DEVICES * MEMBER_BYTES;
/// Earlier lineages that a label remembers.
pub const ANCESTORS: usize = 5;

/// A device of the pool.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceEntry {
    /// Random, made with the device.
    pub id: [u8; 16],
    /// Where it was when the label was written.
    pub path: String,
    /// How it takes part.
    pub member: MemberRecord,
}

/// A label decoded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Label {
    /// The pool.
    pub pool_id: [u8; 16],
    /// Which of `devices` this one is.
    pub index: u16,
    /// Size of this device when it was made or grown.
    pub device_blocks: u64,
    /// Nanoseconds since 1970.
    pub created: i64,
    /// Copies of everything: 0 one, 1 two (mirror).
    pub redundancy: u8,
    /// Counts the changes of what labels say.
    pub generation: u64,
    /// Random, new whenever the pool goes on without one of its devices; 0: it never did.
    pub lineage: u64,
    /// The lineages before, the last one first.
    pub ancestors: [u64; ANCESTORS],
    /// All devices of the pool, in order of their index.
    pub devices: Vec<DeviceEntry>,
}

impl Label {
    /// Its block; fails if paths are too long to fit.
    pub fn encode(&self, out: &mut RawBlock) -> Result<()> {
        out.fill(0);
        put_bytes(out, 0, MAGIC);
        put_u32(out, 8, FORMAT_VERSION);
        put_u16(out, 12, self.devices.len() as u16);
        put_u16(out, 14, self.index);
        put_bytes(out, 16, &self.pool_id);
        put_u64(out, 32, self.device_blocks);
        put_u64(out, 40, self.created as u64);
        let mut at = ENTRIES_AT;
        for d in &self.devices {
            let path = d.path.as_bytes();
            if at + 18 + path.len() > TAIL_AT || self.devices.len() > MAX_DEVICES {
                return Err(LayoutError::Invalid("label: the device paths are too long"));
            }
            put_bytes(out, at, &d.id);
            put_u16(out, at + 16, path.len() as u16);
            put_bytes(out, at + 18, path);
            at += 18 + path.len();
        }
        self.encode_tail(out);
        let hash = blake3::hash(&out[..HASH_AT]);
        put_bytes(out, HASH_AT, hash.as_bytes());
        Ok(())
    }

    fn encode_tail(&self, out: &mut RawBlock) {
        put_u64(out, TAIL_AT, self.generation);
        put_u64(out, TAIL_AT + 8, self.lineage);
        for (i, lineage) in self.ancestors.iter().enumerate() {
            put_u64(out, TAIL_AT + 16 + i * 8, *lineage);
        }
        out[TAIL_AT + 56] = self.redundancy;
        for (raw, d) in out[MEMBERS_AT..HASH_AT].chunks_exact_mut(MEMBER_BYTES).zip(&self.devices) {
            d.member.encode(raw);
        }
    }

    /// Reads a block.
    pub fn decode(b: &RawBlock) -> Result<Label> {
        if &b[..8] != MAGIC {
            return Err(LayoutError::Magic("pool label"));
        }
        if blake3::hash(&b[..HASH_AT]).as_bytes() != &b[HASH_AT..] {
            return Err(LayoutError::Checksum("pool label"));
        }
        if u32_at(b, 8) != FORMAT_VERSION {
            return Err(LayoutError::Version { what: "pool label", found: u32_at(b, 8) });
        }
        let (count, index) = (usize::from(u16_at(b, 12)), u16_at(b, 14));
        if count == 0 || count > MAX_DEVICES || usize::from(index) >= count {
            return Err(LayoutError::Invalid("label: device count or index out of range"));
        }
        let (devices, end) = decode_devices(b, count)?;
        let mut label = Label {
            pool_id: array_at(b, 16),
            index,
            device_blocks: u64_at(b, 32),
            created: u64_at(b, 40) as i64,
            devices,
            ..Label::default()
        };
        // Paths once could reach up to the hash: such a label says nothing of membership.
        if end <= TAIL_AT {
            label.decode_tail(b)?;
        }
        Ok(label)
    }

    fn decode_tail(&mut self, b: &RawBlock) -> Result<()> {
        self.generation = u64_at(b, TAIL_AT);
        self.lineage = u64_at(b, TAIL_AT + 8);
        self.ancestors = std::array::from_fn(|i| u64_at(b, TAIL_AT + 16 + i * 8));
        self.redundancy = b[TAIL_AT + 56];
        if self.redundancy > 1 {
            return Err(LayoutError::Invalid("label: an unknown redundancy"));
        }
        for (raw, d) in b[MEMBERS_AT..HASH_AT].chunks_exact(MEMBER_BYTES).zip(&mut self.devices) {
            d.member = MemberRecord::decode(raw)?;
        }
        Ok(())
    }
}

/// The entries, and where they end.
fn decode_devices(b: &RawBlock, count: usize) -> Result<(Vec<DeviceEntry>, usize)> {
    let bad = || LayoutError::Invalid("label: device entry beyond the block");
    let mut at = ENTRIES_AT;
    let mut devices = Vec::with_capacity(count);
    for _ in 0..count {
        let head = b.get(at..at + 18).ok_or_else(bad)?;
        let path = b.get(at + 18..at + 18 + usize::from(u16_at(head, 16))).ok_or_else(bad)?;
        at += 18 + path.len();
        let path = String::from_utf8_lossy(path).into_owned();
        devices.push(DeviceEntry { id: array_at(head, 0), path, ..DeviceEntry::default() });
    }
    Ok((devices, at))
}
