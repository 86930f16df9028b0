//! The bytes of a simulated device: what is durable, what waits in the volatile cache, and what a
//! power cut makes of that.
//!
//! Invariants: `durable` never holds a write that no flush covered, but by [`Store::crash`].
//! A block that is nowhere is zeros, and no block of zeros is stored in `durable`, so a device
//! costs memory only for what it holds. `pending` is in the order in which the writes returned.

use super::super::{Block, BLOCK_BYTES};
use super::rng::Rng;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The unit that a device writes whole: a power cut tears a block between sectors.
pub const SECTOR_BYTES: usize = 512;

/// A block's contents; `None` is zeros.
type Contents = Option<Arc<Block>>;

/// One write (or discard) since the last flush.
#[derive(Clone)]
struct Pending {
    blocks: Vec<(u64, Contents)>,
}

/// What a power cut does to the cache; drawn anew for each.
enum Fate {
    LoseAll,
    KeepAll,
    /// The first so many writes, and a torn part of the next one.
    KeepFirst(usize),
    /// Each write as a whole, so many out of 8.
    Writes(u64),
    /// Each block, so many out of 8.
    Blocks(u64),
    /// Each sector, so many out of 8.
    Sectors(u64),
}

impl Fate {
    fn draw(rng: &mut Rng, writes: usize) -> Fate {
        match rng.below(10) {
            0 => Fate::LoseAll,
            1 => Fate::KeepAll,
            2 | 3 => Fate::KeepFirst(rng.index(writes + 1)),
            4 | 5 => Fate::Writes(1 + rng.below(7)),
            6 | 7 => Fate::Blocks(1 + rng.below(7)),
            _ => Fate::Sectors(1 + rng.below(7)),
        }
    }

    /// Which sectors (a bit each) of a block of write number `write` survive.
    fn sectors(&self, rng: &mut Rng, write: usize, write_kept: bool) -> u8 {
        let all_or_none = |kept: bool| if kept { 0xFF } else { 0 };
        match *self {
            Fate::LoseAll => 0,
            Fate::KeepAll => 0xFF,
            Fate::KeepFirst(first) if write == first => rng.bits() as u8,
            Fate::KeepFirst(first) => all_or_none(write < first),
            Fate::Writes(_) => all_or_none(write_kept),
            Fate::Blocks(of_8) => all_or_none(rng.chance(of_8, 8)),
            Fate::Sectors(of_8) => {
                (0..8).fold(0, |mask, bit| mask | u8::from(rng.chance(of_8, 8)) << bit)
            }
        }
    }
}

/// Bytes of a device, durable and not.
#[derive(Clone, Default)]
pub struct Store {
    durable: BTreeMap<u64, Arc<Block>>,
    /// What a read sees where it differs from `durable`.
    visible: BTreeMap<u64, Contents>,
    pending: Vec<Pending>,
}

impl Store {
    /// What a read of `block` gives now.
    pub fn read(&self, block: u64, out: &mut Block) {
        let contents = match self.visible.get(&block) {
            Some(contents) => contents.as_ref(),
            None => self.durable.get(&block),
        };
        match contents {
            Some(stored) => out.0.copy_from_slice(&stored.0),
            None => out.0.fill(0),
        }
    }

    /// Takes a write into the cache.
    pub fn write(&mut self, first: u64, data: &[&Block]) {
        let blocks = (first..).zip(data.iter().map(|block| contents_of(block))).collect();
        self.take(blocks, true);
    }

    /// Data of a write that the power cut interrupts: nobody reads it before the cut.
    pub fn write_in_flight(&mut self, first: u64, data: &[&Block]) {
        let blocks = (first..).zip(data.iter().map(|block| contents_of(block))).collect();
        self.take(blocks, false);
    }

    /// Takes zeros into the cache wherever the range holds anything.
    pub fn discard(&mut self, first: u64, count: u64) {
        let end = first.saturating_add(count);
        let mut blocks: Vec<_> =
            self.durable.range(first..end).map(|(&at, _)| (at, None)).collect();
        blocks.extend(self.visible.range(first..end).map(|(&at, _)| (at, None)));
        blocks.sort_by_key(|(at, _)| *at);
        blocks.dedup_by_key(|(at, _)| *at);
        self.take(blocks, true);
    }

    fn take(&mut self, blocks: Vec<(u64, Contents)>, see: bool) {
        if see {
            self.visible.extend(blocks.iter().cloned());
        }
        self.pending.push(Pending { blocks });
    }

    /// How many writes wait for a flush.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Makes the `first` oldest waiting writes durable.
    pub fn flush(&mut self, first: usize) {
        for write in self.pending.drain(..first.min(self.pending.len())) {
            for (at, contents) in write.blocks {
                let same = |seen: &Contents| match (seen, &contents) {
                    (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                    (a, b) => a.is_none() && b.is_none(),
                };
                if self.visible.get(&at).is_some_and(same) {
                    self.visible.remove(&at);
                }
                put(&mut self.durable, at, contents);
            }
        }
    }

    /// A flush that fails as hosts fail it: each waiting write is made durable, goes on waiting, or
    /// never becomes durable though reads go on to see it.
    pub fn fail_flush(&mut self, rng: &mut Rng) {
        for write in std::mem::take(&mut self.pending) {
            match rng.below(3) {
                0 => write.blocks.into_iter().for_each(|(at, c)| put(&mut self.durable, at, c)),
                1 => self.pending.push(write),
                _ => {}
            }
        }
    }

    /// A write that fails: each of its blocks is new, old or torn.
    pub fn fail_write(&mut self, first: u64, data: &[&Block], rng: &mut Rng) {
        let mut blocks = Vec::new();
        for (at, block) in (first..).zip(data) {
            let mut mixed = Block::zeroed();
            self.read(at, &mut mixed);
            let kept = [0, 0xFF, rng.bits() as u8][rng.index(3)];
            mix_sectors(&mut mixed, &contents_of(block), kept);
            blocks.push((at, contents_of(&mixed)));
        }
        self.take(blocks, true);
    }

    /// Power off: what waits is kept, lost or torn, as the generator says. How many blocks of the
    /// cache reached the medium whole or in part.
    pub fn crash(&mut self, rng: &mut Rng) -> usize {
        let pending = std::mem::take(&mut self.pending);
        self.visible.clear();
        let fate = Fate::draw(rng, pending.len());
        let mut survived = 0;
        for (number, write) in pending.into_iter().enumerate() {
            let write_kept = matches!(fate, Fate::Writes(of_8) if rng.chance(of_8, 8));
            for (at, contents) in write.blocks {
                let kept = fate.sectors(rng, number, write_kept);
                survived += usize::from(kept != 0);
                self.overwrite_sectors(at, contents, kept);
            }
        }
        survived
    }

    fn overwrite_sectors(&mut self, at: u64, contents: Contents, kept: u8) {
        match kept {
            0 => {}
            0xFF => put(&mut self.durable, at, contents),
            _ => {
                let mut mixed = Block::zeroed();
                self.read(at, &mut mixed);
                mix_sectors(&mut mixed, &contents, kept);
                put(&mut self.durable, at, contents_of(&mixed));
            }
        }
    }

    /// Changes what is stored without anybody having written it.
    pub fn rot(&mut self, block: u64, change: impl FnOnce(&mut Block)) {
        let mut rotten = Block::zeroed();
        self.read(block, &mut rotten);
        change(&mut rotten);
        self.visible.remove(&block);
        put(&mut self.durable, block, contents_of(&rotten));
    }

    /// Blocks that are durable and not zeros, ascending.
    pub fn stored(&self) -> impl Iterator<Item = (u64, &Block)> {
        self.durable.iter().map(|(&at, block)| (at, &**block))
    }
}

fn contents_of(block: &Block) -> Contents {
    match block.0.iter().all(|&byte| byte == 0) {
        true => None,
        false => Some(Arc::new(block.clone())),
    }
}

fn put(durable: &mut BTreeMap<u64, Arc<Block>>, at: u64, contents: Contents) {
    match contents {
        Some(block) => durable.insert(at, block),
        None => durable.remove(&at),
    };
}

/// Puts those sectors of `new` whose bit is set in `kept` over `block`.
fn mix_sectors(block: &mut Block, new: &Contents, kept: u8) {
    for (number, sector) in block.0.chunks_exact_mut(SECTOR_BYTES).enumerate() {
        if kept >> number & 1 == 0 {
            continue;
        }
        match new {
            Some(new) => sector.copy_from_slice(&new.0[number * SECTOR_BYTES..][..SECTOR_BYTES]),
            None => sector.fill(0),
        }
    }
}

const _: () = assert!(BLOCK_BYTES == 8 * SECTOR_BYTES);
