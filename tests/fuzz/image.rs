//! A pool as the blocks of its device, which know where their checksums stand: after a change all
//! of these can be made right again, up to the roots, so that what stands behind them is reached.

use crate::number;
use fs_layout::{GroupHead, RawBlock, Root, BLOCK_BYTES};
use lunfs::device::sim::Rng;
use lunfs::device::{Block, BlockDevice};
use parking_lot::RwLock;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::Arc;

const HASH_AT: usize = BLOCK_BYTES - 32;
const CHAIN: std::ops::Range<usize> = 64..96;
const PAYLOAD_CRC_AT: usize = 52;
/// Times that the checksums of one block are followed upwards: a changed pointer may make a ring.
const MAX_FIXES: usize = 4;

/// Where checksums stand, and of what.
#[derive(Default)]
pub struct Sums {
    /// CRC-32C of a block: blocks and offsets that hold it.
    refs: HashMap<u64, Vec<(u64, usize)>>,
    /// Blocks that end with the BLAKE3 of themselves.
    hashed: HashSet<u64>,
    /// Log heads: what they were chained to, and the head after each.
    seeds: HashMap<u64, [u8; 32]>,
    next: HashMap<u64, u64>,
    /// Continuation blocks: the head whose payload they hold.
    payload_of: HashMap<u64, u64>,
    /// Blocks that are more than somebody's data, to aim at.
    pub meta: Vec<u64>,
}

/// The blocks that are not zeros.
#[derive(Clone)]
pub struct Image {
    pub blocks: BTreeMap<u64, Box<RawBlock>>,
    pub count: u64,
    pub sums: Arc<Sums>,
}

impl Image {
    pub fn of(device: &dyn BlockDevice, stored: &[u64]) -> Image {
        let mut blocks = BTreeMap::new();
        for at in stored {
            let mut out = [Block::zeroed()];
            device.read(*at, &mut out).unwrap();
            if out[0].0.iter().any(|byte| *byte != 0) {
                blocks.insert(*at, Box::new(out[0].0));
            }
        }
        let count = device.block_count();
        let mut image = Image { blocks, count, sums: Arc::default() };
        image.sums = Arc::new(image.find_sums());
        image
    }

    fn find_sums(&self) -> Sums {
        let mut sums = Sums::default();
        let crcs: HashMap<u32, u64> =
            self.blocks.iter().map(|(at, b)| (crc32c::crc32c(&b[..]), *at)).collect();
        for (at, block) in &self.blocks {
            for offset in 0..BLOCK_BYTES - 3 {
                let value = u32::from_le_bytes(block[offset..offset + 4].try_into().unwrap());
                if let Some(target) = crcs.get(&value).filter(|target| *target != at) {
                    sums.refs.entry(*target).or_default().push((*at, offset));
                }
            }
            if block[HASH_AT..] == blake3::hash(&block[..HASH_AT]).as_bytes()[..] {
                sums.hashed.insert(*at);
            }
        }
        self.find_heads(&mut sums);
        let holders: HashSet<u64> = sums.refs.values().flatten().map(|(at, _)| *at).collect();
        let is_meta = |at: &u64| {
            sums.hashed.contains(at) || sums.seeds.contains_key(at) || holders.contains(at)
        };
        sums.meta = self.blocks.keys().copied().filter(is_meta).collect();
        sums
    }

    /// Heads of groups, in whatever order they follow one another.
    fn find_heads(&self, sums: &mut Sums) {
        let roots = self.blocks.values().filter_map(|b| Root::decode(b).ok());
        let mut seeds: Vec<([u8; 32], Option<u64>)> =
            roots.map(|root| (root.0.group_seed, None)).collect();
        while let Some((seed, before)) = seeds.pop() {
            for (at, block) in &self.blocks {
                let Ok((head, chain)) = GroupHead::decode(block, &seed) else { continue };
                if sums.seeds.insert(*at, seed).is_none() {
                    seeds.push((chain, Some(*at)));
                }
                if let Some(before) = before {
                    sums.next.insert(before, *at);
                }
                for block in head.extents.iter().flat_map(|(first, n)| *first..*first + *n) {
                    sums.payload_of.insert(block, *at);
                }
            }
        }
    }

    /// Changes a block and, with `fix`, every checksum that covers it.
    pub fn change(&mut self, at: u64, fix: bool, change: impl FnOnce(&mut RawBlock)) {
        let block = self.blocks.entry(at).or_insert_with(|| Box::new([0; BLOCK_BYTES]));
        change(block);
        if fix {
            self.fix(at);
        }
    }

    fn fix(&mut self, first: u64) {
        let sums = self.sums.clone();
        let mut seeds = sums.seeds.clone();
        let mut times: HashMap<u64, usize> = HashMap::new();
        let mut todo = vec![first];
        while let Some(at) = todo.pop() {
            let done = times.entry(at).or_default();
            *done += 1;
            if *done > MAX_FIXES {
                continue;
            }
            if let Some(head) = sums.payload_of.get(&at) {
                todo.push(*head);
            }
            if let Some(seed) = seeds.get(&at) {
                let chain = self.fix_head(at, seed);
                if let Some(next) = sums.next.get(&at) {
                    seeds.insert(*next, chain);
                    todo.push(*next);
                }
            }
            let Some(block) = self.blocks.get_mut(&at) else { continue };
            if sums.hashed.contains(&at) {
                let hash = *blake3::hash(&block[..HASH_AT]).as_bytes();
                block[HASH_AT..].copy_from_slice(&hash);
            }
            let crc = crc32c::crc32c(&block[..]).to_le_bytes();
            for (holder, offset) in sums.refs.get(&at).into_iter().flatten() {
                if let Some(block) = self.blocks.get_mut(holder) {
                    block[*offset..offset + 4].copy_from_slice(&crc);
                    todo.push(*holder);
                }
            }
        }
    }

    /// Payload checksum and chain of a log head; gives the new chain.
    fn fix_head(&mut self, at: u64, seed: &[u8; 32]) -> [u8; 32] {
        let payload = self.blocks.get(&at).and_then(|block| {
            let head = GroupHead::decode_unchecked(block).ok()?;
            if let Some(inline) = head.inline_payload(block) {
                return Some(inline.to_vec());
            }
            let blocks =
                head.extents.iter().flat_map(|(first, n)| *first..first.saturating_add(*n));
            let zeros = [0; BLOCK_BYTES];
            let bytes = |at| self.blocks.get(&at).map_or(zeros, |block| **block);
            let mut payload: Vec<u8> = blocks.take(256).flat_map(bytes).collect();
            payload.truncate(head.payload_bytes as usize);
            Some(payload)
        });
        let Some(block) = self.blocks.get_mut(&at) else { return [0; 32] };
        if let Some(payload) = payload {
            let crc = crc32c::crc32c(&payload).to_le_bytes();
            block[PAYLOAD_CRC_AT..PAYLOAD_CRC_AT + 4].copy_from_slice(&crc);
        }
        block[CHAIN].fill(0);
        let mut hasher = blake3::Hasher::new();
        let chain = *hasher.update(seed).update(&block[..]).finalize().as_bytes();
        block[CHAIN].copy_from_slice(&chain);
        chain
    }

    fn aim(&self, rng: &mut Rng) -> u64 {
        match rng.below(12) {
            0 => rng.below(self.count),
            1 => *self.blocks.keys().nth(rng.index(self.blocks.len())).unwrap(),
            _ => self.sums.meta[rng.index(self.sums.meta.len())],
        }
    }

    /// One change of any kind; gives a word for it.
    pub fn mutate(&mut self, rng: &mut Rng, fix: bool) -> String {
        let at = self.aim(rng);
        let from = self.aim(rng);
        let other = self.blocks.get(&from).map_or([0; BLOCK_BYTES], |block| **block);
        let kind = rng.below(9);
        match kind {
            0 => self.change(at, fix, |block| block[rng.index(BLOCK_BYTES)] ^= 1 << rng.below(8)),
            1 | 2 => self.change(at, fix, |block| fields(block, rng)),
            // something else's structure where this one should be
            3 => self.change(at, fix, |block| *block = other),
            // a pointer, an inode or an entry of another place, with its checksums
            4..=6 => self.change(at, fix, |block| {
                let bytes = [8, 16, 16, 256][rng.index(4)];
                let (to, from) = (place(block, bytes, rng), place(&other, bytes, rng));
                block[to..to + bytes].copy_from_slice(&other[from..from + bytes]);
            }),
            7 => self.change(at, fix, |block| {
                let value = [0, 0xFF][rng.index(2)];
                let (a, b) = (rng.index(BLOCK_BYTES + 1), rng.index(BLOCK_BYTES + 1));
                block[a.min(b)..a.max(b)].fill(value);
            }),
            _ if rng.below(8) == 0 => {
                self.count = rng.below(self.count) + 1;
                self.blocks.retain(|at, _| *at < self.count);
            }
            _ => {
                let mine = self.blocks.get(&at).map_or([0; BLOCK_BYTES], |block| **block);
                self.change(at, fix, |block| *block = other);
                self.change(from, fix, |block| *block = mine);
            }
        }
        format!("{kind} at {at} from {from}")
    }
}

/// Numbers of any width at any place, those near the beginning more often.
fn fields(block: &mut RawBlock, rng: &mut Rng) {
    for _ in 0..1 + rng.below(4) {
        let width = [1, 2, 4, 8][rng.index(4)];
        let at = match rng.below(3) {
            0 => rng.index(128),
            _ => place(block, width, rng),
        };
        let value = number(rng).to_le_bytes();
        block[at..at + width].copy_from_slice(&value[..width]);
    }
}

/// A multiple of `bytes`, mostly where something stands.
fn place(block: &RawBlock, bytes: usize, rng: &mut Rng) -> usize {
    let mut at = 0;
    for _ in 0..8 {
        at = rng.index(BLOCK_BYTES / bytes) * bytes;
        if block[at..at + bytes].iter().any(|byte| *byte != 0) {
            break;
        }
    }
    at
}

/// A device over an image; what is written stays in memory.
pub struct ImageDevice(RwLock<Image>);

impl ImageDevice {
    pub fn new(image: Image) -> Arc<ImageDevice> {
        Arc::new(ImageDevice(RwLock::new(image)))
    }
}

impl BlockDevice for ImageDevice {
    fn block_count(&self) -> u64 {
        self.0.read().count
    }

    fn read(&self, first: u64, out: &mut [Box<Block>]) -> io::Result<()> {
        let image = self.0.read();
        if first.checked_add(out.len() as u64).is_none_or(|end| end > image.count) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (at, slot) in (first..).zip(out) {
            slot.0 = image.blocks.get(&at).map_or([0; BLOCK_BYTES], |block| **block);
        }
        Ok(())
    }

    fn write(&self, first: u64, data: &[&Block]) -> io::Result<()> {
        let mut image = self.0.write();
        if first.checked_add(data.len() as u64).is_none_or(|end| end > image.count) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (at, block) in (first..).zip(data) {
            image.blocks.insert(at, Box::new(block.0));
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn name(&self) -> String {
        "image".to_owned()
    }
}
