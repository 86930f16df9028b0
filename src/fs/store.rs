//! Blocks by pool address: the segment map, the cache of clean blocks, checks on read, the latch.
//!
//! Invariants:
//! - a cached block holds exactly what was written to its address last, and is dropped before the
//!   address is given away again;
//! - after a failed write or flush that the pool cannot do without nothing is written any more (the
//!   latch);
//! - no lock is held across a device call, but `flushing` and that of a change of labels.

use super::error::{Error, Result};
use super::members::{Device, Members};
use super::planted::{planted, Mutation};
use super::waits::Watch;
use crate::device::Block;
use fs_layout::{Pointer, SegmentRun, SEGMENT_BLOCKS};
use parking_lot::{Mutex, RwLock};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

/// A block's bytes with their checksum, immutable; its place is set once, when it is chosen.
pub(crate) struct Data {
    pub bytes: Box<Block>,
    pub crc: u32,
    place: AtomicU64,
}

impl Data {
    pub fn new(bytes: Box<Block>) -> Arc<Data> {
        let crc = crc32c::crc32c(&bytes.0);
        Arc::new(Data { bytes, crc, place: AtomicU64::new(0) })
    }

    fn placed(bytes: Box<Block>, crc: u32, block: u64) -> Arc<Data> {
        Arc::new(Data { bytes, crc, place: AtomicU64::new(block) })
    }

    /// Where it is, or will be written; 0: not chosen.
    pub fn place(&self) -> u64 {
        self.place.load(Ordering::Acquire)
    }

    pub fn set_place(&self, block: u64) {
        debug_assert_eq!(self.place(), 0);
        self.place.store(block, Ordering::Release);
    }
}

/// Hash of a block number: one multiplication, for the numbers are ours.
#[derive(Default)]
pub(crate) struct BlockHasher(u64);

impl Hasher for BlockHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.write_u64(u64::from(*b));
        }
    }
    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0 ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
    }
}

type BlockMap<T> = HashMap<u64, T, BuildHasherDefault<BlockHasher>>;

#[derive(Default)]
struct CacheShard {
    map: BlockMap<(Arc<Data>, bool)>,
    queue: VecDeque<u64>,
}

impl CacheShard {
    /// Second chance: a block used since it was queued is queued again.
    fn evict_to(&mut self, limit: usize) {
        while self.map.len() > limit {
            let Some(block) = self.queue.pop_front() else { return };
            match self.map.get_mut(&block) {
                Some((_, used)) if *used => {
                    *used = false;
                    self.queue.push_back(block);
                }
                Some(_) => {
                    self.map.remove(&block);
                }
                None => {}
            }
        }
        // Addresses dropped from the map leave their queue entries behind.
        if self.queue.len() > 2 * limit + 64 {
            let map = &self.map;
            self.queue.retain(|b| map.contains_key(b));
        }
    }
}

const CACHE_SHARDS: usize = 16;

/// The cache of clean blocks, bounded in blocks.
struct Cache {
    shards: Vec<Mutex<CacheShard>>,
    limit_per_shard: usize,
}

impl Cache {
    fn shard(&self, block: u64) -> &Mutex<CacheShard> {
        // Runs of 16 blocks share a shard, so that a sequential read takes few locks in turn.
        &self.shards[(block >> 4) as usize % CACHE_SHARDS]
    }

    fn get(&self, p: &Pointer) -> Option<Arc<Data>> {
        let mut shard = self.shard(p.block).lock();
        let (data, used) = shard.map.get_mut(&p.block)?;
        if data.crc != p.crc {
            return None;
        }
        *used = true;
        Some(data.clone())
    }

    fn insert(&self, block: u64, data: Arc<Data>) {
        let mut shard = self.shard(block).lock();
        if shard.map.insert(block, (data, false)).is_none() {
            shard.queue.push_back(block);
        }
        shard.evict_to(self.limit_per_shard);
    }

    fn remove(&self, block: u64) {
        self.shard(block).lock().map.remove(&block);
    }

    fn len(&self) -> u64 {
        self.shards.iter().map(|s| s.lock().map.len() as u64).sum()
    }
}

/// See [`Store::in_steps`].
pub(crate) struct Steps<'a> {
    store: &'a Store,
    was_panicking: bool,
}

impl Drop for Steps<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.was_panicking {
            let why = "an error in the program stopped a change halfway; restart the server";
            self.store.set_latch(why.into());
        }
    }
}

/// Counters, in blocks and calls.
#[derive(Default)]
pub(crate) struct Counters {
    pub blocks_read: AtomicU64,
    pub blocks_written: AtomicU64,
    pub flushes: AtomicU64,
    pub checksum_errors: AtomicU64,
    /// By device: bad copies that were rewritten from good ones, where it is read.
    pub healed_blocks: [AtomicU64; fs_layout::MAX_DEVICES],
}

/// Segments whose writes go to one place more: first, count, (device, its first segment).
pub(crate) type Beside = (u64, u64, (u16, u64));

/// The segment map, and where else is written while copies move.
struct Map {
    runs: Vec<SegmentRun>,
    /// What the durable root names, while that is another map.
    durable: Option<Vec<SegmentRun>>,
    beside: Option<Beside>,
}

impl Map {
    fn change_to(&mut self, runs: Vec<SegmentRun>) {
        let before = std::mem::replace(&mut self.runs, runs);
        self.durable.get_or_insert(before);
    }
}

/// Which copy of a block is read.
#[derive(Clone, Copy)]
pub(crate) enum Pick {
    /// The one whose turn it is.
    Turn,
    /// Of those that are read, by [`Store::locate_readable`].
    Readable(usize),
    /// Of those that are kept up, by [`Store::locate`].
    Kept(usize),
}

/// The pool's blocks.
pub(crate) struct Store {
    pub members: Members,
    map: RwLock<Map>,
    cache: Cache,
    pub counters: Counters,
    /// Bad copies are rewritten; not where they are only looked for.
    pub heals: AtomicBool,
    is_latched: AtomicBool,
    flushing: Mutex<()>,
    pub flushes: Watch,
    latch: Mutex<Option<String>>,
}

/// Longest run handed to a device at once: 1 MiB keeps a flush from waiting behind a larger one.
const MAX_RUN_BLOCKS: usize = 256;
/// Reads of so many blocks in a row come from the same copy (1 MiB), so that a sequential one
/// stays sequential on its device.
const BALANCE_BLOCKS: u64 = 256;

impl Store {
    pub fn new(members: Members, map: Vec<SegmentRun>, cache_blocks: usize) -> Store {
        let shards = (0..CACHE_SHARDS).map(|_| Mutex::default()).collect();
        let limit_per_shard = (cache_blocks / CACHE_SHARDS).max(16);
        Store {
            members,
            map: RwLock::new(Map { runs: map, durable: None, beside: None }),
            cache: Cache { shards, limit_per_shard },
            counters: Counters::default(),
            heals: AtomicBool::new(true),
            is_latched: AtomicBool::new(false),
            flushing: Mutex::new(()),
            flushes: Watch::default(),
            latch: Mutex::new(None),
        }
    }

    pub fn segment_map(&self) -> Vec<SegmentRun> {
        self.map.read().runs.clone()
    }

    pub fn set_segment_map(&self, runs: Vec<SegmentRun>) {
        self.map.write().change_to(runs);
    }

    /// The map, and the one of the durable root where that is another: a crash leads back to it.
    pub(super) fn segment_maps(&self) -> Vec<Vec<SegmentRun>> {
        let map = self.map.read();
        std::iter::once(&map.runs).chain(&map.durable).cloned().collect()
    }

    /// A root is durable on all devices that are written.
    pub fn note_root(&self, epoch: u64) {
        self.members.note_root(epoch);
        self.map.write().durable = None;
    }

    /// Up to which epoch a device that leaves now has everything. While the map changes hands that
    /// is unknown: what moved was born long ago, and may not be on its disk.
    pub(super) fn good_epoch(&self) -> u64 {
        match self.map.read().durable.is_some() {
            true => 0,
            false => self.members.durable_epoch(),
        }
    }

    /// Changes where is written besides, and the map with it.
    pub fn set_beside(&self, runs: Option<Vec<SegmentRun>>, beside: Option<Beside>) {
        let mut map = self.map.write();
        runs.into_iter().for_each(|runs| map.change_to(runs));
        map.beside = beside;
    }

    pub fn cached_blocks(&self) -> u64 {
        self.cache.len()
    }

    pub fn latched(&self) -> Option<String> {
        self.latch.lock().clone()
    }

    /// Fails if a write or flush failed before.
    pub fn check_latch(&self) -> Result<()> {
        if !self.is_latched.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(Error::Latched(self.latched().unwrap_or_default()))
    }

    /// While it lives something in memory changes in several steps: a panic among them latches the
    /// pool, so that a half is never written.
    pub fn in_steps(&self) -> Steps<'_> {
        Steps { store: self, was_panicking: std::thread::panicking() }
    }

    /// From now on nothing is written.
    pub fn set_latch(&self, why: String) -> Error {
        if planted(Mutation::LatchForgotten) {
            return Error::Latched(why);
        }
        let mut latch = self.latch.lock();
        let why = latch.get_or_insert(why).clone();
        self.is_latched.store(true, Ordering::Relaxed);
        Error::Latched(why)
    }

    /// The device runs behind `count` blocks at `block`: (copies of (device, device block),
    /// length).
    fn locate_all(&self, block: u64, count: u64) -> Result<(Vec<(u16, u64)>, u64)> {
        locate_in(&self.map.read().runs, block, count)
    }

    /// All copies that are kept up, with the place that is written besides.
    fn locate_written(&self, block: u64, count: u64) -> Result<(Vec<(u16, u64)>, u64)> {
        let map = self.map.read();
        let (mut places, mut n) = locate_in(&map.runs, block, count)?;
        if let Some((first, segments, (device, segment))) = map.beside {
            let (start, end) = (first * SEGMENT_BLOCKS, (first + segments) * SEGMENT_BLOCKS);
            if (start..end).contains(&block) {
                n = n.min(end - block);
                places.push((device, segment * SEGMENT_BLOCKS + block - start));
            } else if block < start {
                n = n.min(start - block);
            }
        }
        drop(map);
        let set = self.members.now();
        places.retain(|(slot, _)| set.written(*slot).is_some());
        Ok((places, n))
    }

    /// All copies that are kept up: those that are read, and those being brought up to date.
    pub(super) fn locate(&self, block: u64, count: u64) -> Result<(Vec<(u16, u64)>, u64)> {
        let (mut copies, n) = self.locate_all(block, count)?;
        let set = self.members.now();
        copies.retain(|(slot, _)| set.written(*slot).is_some());
        some_left(copies, n)
    }

    /// The copies that are read.
    pub(super) fn locate_readable(&self, block: u64, count: u64) -> Result<(Vec<(u16, u64)>, u64)> {
        let (mut copies, n) = self.locate_all(block, count)?;
        let set = self.members.now();
        copies.retain(|(slot, _)| set.readable(*slot).is_some());
        some_left(copies, n)
    }

    /// A device that is written, by its slot.
    pub(super) fn device(&self, slot: u16) -> Result<Device> {
        let set = self.members.now();
        let device = set.written(slot).cloned();
        device.ok_or_else(|| {
            let what = format!("{} takes no part in the pool", set.name(slot));
            Error::Io(Arc::new(io::Error::new(io::ErrorKind::NotFound, what)))
        })
    }

    /// Reads blocks as they are from one copy, unchecked.
    pub(super) fn read_copy(&self, pick: Pick, block: u64, out: &mut [Box<Block>]) -> Result<()> {
        let mut done = 0;
        while done < out.len() {
            let at = block + done as u64;
            let left = ((out.len() - done) as u64).min(MAX_RUN_BLOCKS as u64);
            let (copy, copies) = match pick {
                Pick::Kept(copy) => (copy, self.locate(at, left)),
                Pick::Readable(copy) => (copy, self.locate_readable(at, left)),
                Pick::Turn => {
                    let left = left.min(BALANCE_BLOCKS - at % BALANCE_BLOCKS);
                    ((at / BALANCE_BLOCKS) as usize, self.locate_readable(at, left))
                }
            };
            let (copies, n) = copies?;
            let (device, at) = copies[copy % copies.len()];
            self.read_device(device, at, &mut out[done..done + n as usize])?;
            done += n as usize;
        }
        Ok(())
    }

    /// Reads at a device's own address, unchecked.
    pub fn read_device(&self, device: u16, at: u64, out: &mut [Box<Block>]) -> Result<()> {
        let read = self.device(device)?.read(at, out);
        self.counters.blocks_read.fetch_add(out.len() as u64, Ordering::Relaxed);
        read.map_err(|e| {
            self.read_failed(device, &e);
            e.into()
        })
    }

    /// Reads blocks that no pointer names (heads, pages): the first copy that `accept` takes.
    /// `None`: it took none. An error: no copy could be read.
    pub fn read_raw<T>(
        &self,
        block: u64,
        count: usize,
        mut accept: impl FnMut(Vec<Box<Block>>) -> Option<T>,
    ) -> Result<Option<T>> {
        self.read_raw_runs(&[(block, count as u64)], &mut accept)
    }

    /// As `read_raw`, for what stands in several runs of (block, count) and is judged as one.
    pub fn read_raw_runs<T>(
        &self,
        runs: &[(u64, u64)],
        mut accept: impl FnMut(Vec<Box<Block>>) -> Option<T>,
    ) -> Result<Option<T>> {
        let mut copies = 1;
        for (block, _) in runs {
            copies = copies.max(self.locate_readable(*block, 1)?.0.len());
        }
        let (mut failure, mut read_one) = (None, false);
        for copy in 0..copies {
            let mut out = Vec::new();
            let read = runs.iter().try_for_each(|(block, count)| {
                let from = out.len();
                out.extend((0..*count).map(|_| Block::zeroed()));
                self.read_copy(Pick::Readable(copy), *block, &mut out[from..])
            });
            match read.map(|()| accept(out)) {
                Ok(Some(taken)) => return Ok(Some(taken)),
                Ok(None) => read_one = true,
                Err(e) => failure = Some(e),
            }
        }
        failure.filter(|_| !read_one).map_or(Ok(None), Err)
    }

    /// From the cache alone.
    pub fn cached(&self, p: &Pointer) -> Option<Arc<Data>> {
        self.cache.get(p)
    }

    /// One block, checked.
    pub fn read(&self, p: &Pointer) -> Result<Arc<Data>> {
        if let Some(data) = self.cache.get(p) {
            return Ok(data);
        }
        let mut out = self.read_run(std::slice::from_ref(p))?;
        out.pop().unwrap_or(Err(Error::Corrupt { block: p.block, file_offset_bytes: None }))
    }

    /// Consecutive blocks, each checked; a bad one does not spoil the others.
    pub fn read_run(&self, pointers: &[Pointer]) -> Result<Vec<Result<Arc<Data>>>> {
        let Some(first) = pointers.first() else { return Ok(Vec::new()) };
        let mut raw: Vec<_> = pointers.iter().map(|_| Block::zeroed()).collect();
        let whole = self.read_copy(Pick::Turn, first.block, &mut raw);
        let check = |(p, bytes): (&Pointer, Box<Block>)| match &whole {
            Ok(()) if crc32c::crc32c(&bytes.0) == p.crc || planted(Mutation::ChecksumIgnored) => {
                Ok(self.keep(p, bytes))
            }
            _ => self.read_healing(p),
        };
        Ok(pointers.iter().zip(raw).map(check).collect())
    }

    pub(super) fn keep(&self, p: &Pointer, bytes: Box<Block>) -> Arc<Data> {
        let data = Data::placed(bytes, p.crc, p.block);
        self.cache.insert(p.block, data.clone());
        data
    }

    /// Writes blocks to their places: consecutive ones in one call. A failure latches.
    pub fn write(&self, blocks: &[(u64, &Block)]) -> Result<()> {
        self.check_latch()?;
        let mut start = 0;
        while start < blocks.len() {
            let first = blocks[start].0;
            let max = (blocks.len() - start).min(MAX_RUN_BLOCKS);
            let run = (1..max).take_while(|i| blocks[start + i].0 == first + *i as u64).count() + 1;
            let data: Vec<&Block> = blocks[start..start + run].iter().map(|b| b.1).collect();
            self.write_run(first, &data)?;
            start += run;
        }
        Ok(())
    }

    fn write_run(&self, block: u64, data: &[&Block]) -> Result<()> {
        let mut done = 0;
        while done < data.len() {
            let left = (data.len() - done) as u64;
            let (members, n) = self.locate_written(block + done as u64, left)?;
            if members.is_empty() {
                return Err(self.set_latch(format!("no device is left to write {block} to")));
            }
            let part = &data[done..done + n as usize];
            let copies = if planted(Mutation::SecondCopyNotWritten) { 1 } else { members.len() };
            for (device, at) in members.iter().take(copies) {
                self.write_device(*device, *at, part)?;
            }
            done += n as usize;
        }
        Ok(())
    }

    /// Writes at a device's own address. Where it fails, the pool goes on without the device, or
    /// latches.
    pub(super) fn write_device(&self, slot: u16, at: u64, data: &[&Block]) -> Result<()> {
        self.check_latch()?;
        self.counters.blocks_written.fetch_add(data.len() as u64, Ordering::Relaxed);
        let set = self.members.now();
        // Left meanwhile: that is recorded, and nobody reads there.
        let Some(device) = set.written(slot) else { return Ok(()) };
        device
            .write(at, data)
            .or_else(|e| self.failed(slot, format!("writing to {} failed: {e}", device.name())))
    }

    /// Writes at the same address of every device (roots, segment map).
    pub fn write_everywhere(&self, at: u64, data: &[&Block]) -> Result<()> {
        for (slot, _) in self.members.now().all_written() {
            self.write_device(slot, at, data)?;
        }
        Ok(())
    }

    /// Flushes every device that is written. Where one fails, the pool goes on without it, or
    /// latches.
    pub fn flush(&self) -> Result<()> {
        // One at a time, until a failure is latched: the host tells of a failed write-back once,
        // and the flush beside the one that is told would seem good.
        let _one = self.flushing.lock();
        self.check_latch()?;
        let _taking = self.flushes.begin();
        self.counters.flushes.fetch_add(1, Ordering::Relaxed);
        for (slot, device) in self.members.now().all_written() {
            device.flush().or_else(|e| {
                self.failed(slot, format!("flushing {} failed: {e}", device.name()))
            })?;
        }
        // A write beside this flush may have been the one that was told.
        self.wait_recorded();
        self.check_latch()
    }

    /// Is no flush under way?
    #[cfg(feature = "planted")]
    pub fn is_flush_free(&self) -> bool {
        self.flushing.try_lock().is_some()
    }

    /// What was just written becomes the cached content of its place.
    pub fn remember(&self, data: &Arc<Data>) {
        self.cache.insert(data.place(), data.clone());
    }

    /// The address is about to be given away.
    pub fn forget(&self, block: u64) {
        self.cache.remove(block);
    }
}

fn locate_in(map: &[SegmentRun], block: u64, count: u64) -> Result<(Vec<(u16, u64)>, u64)> {
    let segment = block / SEGMENT_BLOCKS;
    let after = map.partition_point(|r| r.logical <= segment);
    let run = after.checked_sub(1).and_then(|i| map.get(i));
    let run = run.filter(|r| segment < r.logical + r.count);
    let run = run.ok_or(Error::Corrupt { block, file_offset_bytes: None })?;
    let into = block - run.logical * SEGMENT_BLOCKS;
    let left = run.count * SEGMENT_BLOCKS - into;
    let at = |(device, first): &(u16, u64)| (*device, first * SEGMENT_BLOCKS + into);
    Ok((run.members.iter().map(at).collect(), left.min(count)))
}

fn some_left(copies: Vec<(u16, u64)>, count: u64) -> Result<(Vec<(u16, u64)>, u64)> {
    match copies.is_empty() {
        true => Err(Error::Io(Arc::new(io::Error::other("no device is left that has it")))),
        false => Ok((copies, count)),
    }
}
