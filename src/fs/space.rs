//! Free space: which blocks may be written next.
//!
//! Two bitmaps for each region of 128 MiB, loaded when first needed:
//! - `image`: what the next consistency point writes: the last one's image and what its own
//!   epochs allocated and freed;
//! - `busy`: what must not be given away now: the image, allocations of later epochs, blocks freed
//!   but still named by the durable root or held by a reader, and the log's blocks, which are in no
//!   image.
//!
//! Accounting in blocks: `free` counts clear bits of `busy`; `promised` counts what has been
//! accepted and will be allocated. A request is granted while `free - promised - reserve` covers
//! it; deletes, the log and consistency points may use the reserve.
//!
//! Placement: the first segment that is nearly empty, so that space that was written before is
//! written again before space that never was; where there is none, the emptiest.

use super::error::{Error, Result};
use super::planted::{planted, Mutation};
use super::store::Store;
use crate::device::{Block, BLOCK_BYTES};
use fs_layout::{
    page_places, Pointer, SpaceEntry, ENTRIES_PER_TABLE, REGION_BLOCKS, REGION_RESERVED_BLOCKS,
    SEGMENT_BLOCKS,
};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};

mod service;

const WORDS: usize = BLOCK_BYTES / 8;
const SEGMENTS: usize = (REGION_BLOCKS / SEGMENT_BLOCKS) as usize;
const WORDS_PER_SEGMENT: usize = WORDS / SEGMENTS;

/// Kept back for deletes, the log and consistency points: a 64th of the pool, at least 8 MiB (a
/// quarter of a tiny pool), at most 512 MiB.
fn reserve_of(blocks: u64) -> i64 {
    if planted(Mutation::NoReserve) {
        return 0;
    }
    (blocks / 64).clamp(2048.min(blocks / 4), 131_072) as i64
}

/// Free blocks of a segment that is as good as an empty one.
const NEARLY_EMPTY: u32 = SEGMENT_BLOCKS as u32 / 8 * 7;
/// Pages that a search for such a segment reads at most: in a full pool there may be none.
const MAX_LOOKS: usize = 4;
/// Blocks booked under one taking of the lock: a flush that needs room goes between.
const AT_ONCE_BLOCKS: usize = 4096;

struct Page {
    image: Box<[u64; WORDS]>,
    busy: Box<[u64; WORDS]>,
    dirty: bool,
}

impl Page {
    fn segment_free(&self, segment: usize) -> u32 {
        let words = &self.busy[segment * WORDS_PER_SEGMENT..(segment + 1) * WORDS_PER_SEGMENT];
        words.iter().map(|w| w.count_zeros()).sum()
    }

    /// The first of the emptiest segments, and its free blocks.
    fn emptiest_segment(&self) -> (usize, u32) {
        let all = (0..SEGMENTS).rev().map(|s| (s, self.segment_free(s)));
        all.max_by_key(|(_, free)| *free).unwrap_or((0, 0))
    }

    fn image_free(&self) -> u64 {
        self.image.iter().map(|w| u64::from(w.count_zeros())).sum()
    }
}

#[derive(Default)]
struct Region {
    entry: SpaceEntry,
    /// Clear bits of `busy`; for a page not loaded, of the image.
    free: u32,
    page: Option<Page>,
    /// No segment of it is nearly empty: it was looked at, and nothing was freed in it since.
    spent: bool,
}

/// A page of the map.
pub(crate) struct PageAt {
    /// Where it is and its checksum, unless it was never written.
    pub pointer: Option<Pointer>,
    /// A region that it covers.
    pub region: usize,
    pub level: u8,
    /// Free blocks below, as its entry says.
    pub free: u64,
}

/// A run of blocks: first, count.
pub(crate) type Run = (u64, u64);

struct Inner {
    blocks: u64,
    regions: Vec<Region>,
    /// Entries of table levels 1 and 2 (an entry names a page of that level).
    tables: [Vec<SpaceEntry>; 2],
    top: SpaceEntry,
    /// Allocation goes on here, up to the end of its segment.
    cursor: u64,
    allocated: BTreeMap<u64, Vec<Run>>,
    /// A table could not be read: its entries are not known.
    unknown: bool,
}

/// The allocator.
pub(crate) struct Space {
    inner: Mutex<Inner>,
    free: AtomicI64,
    promised: AtomicI64,
    /// Freed, waiting for the consistency point or readers.
    waiting: AtomicI64,
    reserve: AtomicI64,
    total: AtomicI64,
}

fn region_end(blocks: u64, region: u64) -> u64 {
    ((region + 1) * REGION_BLOCKS).min(blocks)
}

/// First block of a region that is not reserved for pages.
fn region_start(region: u64) -> u64 {
    let base = if region == 0 { SEGMENT_BLOCKS } else { region * REGION_BLOCKS };
    base + REGION_RESERVED_BLOCKS
}

fn fresh_free(blocks: u64, region: u64) -> u64 {
    region_end(blocks, region).saturating_sub(region_start(region))
}

fn fresh_page(blocks: u64, region: u64) -> Box<[u64; WORDS]> {
    let mut bits = Box::new([u64::MAX; WORDS]);
    let base = region * REGION_BLOCKS;
    for b in region_start(region)..region_end(blocks, region) {
        clear(&mut bits, (b - base) as usize);
    }
    bits
}

fn get(bits: &[u64; WORDS], i: usize) -> bool {
    bits[i / 64] >> (i % 64) & 1 != 0
}

fn set(bits: &mut [u64; WORDS], i: usize) {
    bits[i / 64] |= 1 << (i % 64);
}

fn clear(bits: &mut [u64; WORDS], i: usize) {
    bits[i / 64] &= !(1 << (i % 64));
}

fn split(block: u64) -> (usize, usize) {
    ((block / REGION_BLOCKS) as usize, (block % REGION_BLOCKS) as usize)
}

impl Space {
    /// Loads the tables that `top` names; bitmap pages wait until they are needed.
    /// With `repairs` a table that cannot be read is no error: [`Space::recount`] has to follow.
    pub fn load(store: &Store, blocks: u64, top: SpaceEntry, repairs: bool) -> Result<Space> {
        let count = blocks.div_ceil(REGION_BLOCKS);
        let mut inner = Inner {
            blocks,
            regions: Vec::new(),
            tables: [Vec::new(), Vec::new()],
            top,
            cursor: 0,
            allocated: BTreeMap::new(),
            unknown: false,
        };
        let mut unknown = false;
        let mut read_table = |level, index, entry: &SpaceEntry, n: u64| {
            read_table(store, level, index, entry, n).or_else(|e| {
                unknown = true;
                repairs.then(|| vec![SpaceEntry::default(); n as usize]).ok_or(e)
            })
        };
        let level2 = read_table(3, 0, &top, tables_at(2, count))?;
        let mut level1 = Vec::new();
        for (i, e) in level2.iter().enumerate() {
            let n = (tables_at(1, count) - i as u64 * ENTRIES_PER_TABLE).min(ENTRIES_PER_TABLE);
            level1.extend(read_table(2, i as u64, e, n)?);
        }
        for (i, e) in level1.iter().enumerate() {
            let n = (count - i as u64 * ENTRIES_PER_TABLE).min(ENTRIES_PER_TABLE);
            for entry in read_table(1, i as u64, e, n)? {
                let region = inner.regions.len() as u64;
                let fresh = fresh_free(blocks, region);
                let free = if entry.written { entry.free } else { fresh } as u32;
                inner.regions.push(Region { entry, free, page: None, spent: false });
            }
        }
        inner.tables = [level1, level2];
        inner.unknown = unknown;
        let free: i64 = inner.regions.iter().map(|r| i64::from(r.free)).sum();
        let total: u64 = (0..count).map(|r| fresh_free(blocks, r)).sum();
        let total = total.saturating_sub(Space::out_of_service(store, blocks));
        Ok(Space {
            inner: Mutex::new(inner),
            free: AtomicI64::new(free),
            promised: AtomicI64::new(0),
            waiting: AtomicI64::new(0),
            reserve: AtomicI64::new(reserve_of(total)),
            total: AtomicI64::new(total as i64),
        })
    }

    /// (total, free for users, waiting, reserve), in blocks.
    pub fn figures(&self) -> (u64, u64, u64, u64) {
        let load = |a: &AtomicI64| a.load(Ordering::Relaxed).max(0);
        let free = load(&self.free) - load(&self.promised) - load(&self.reserve);
        let parts = [load(&self.total), free.max(0), load(&self.waiting), load(&self.reserve)];
        let [a, b, c, d] = parts.map(|v| v as u64);
        (a, b, c, d)
    }

    /// Is the lock free?
    #[cfg(feature = "planted")]
    pub fn is_free(&self) -> bool {
        self.inner.try_lock().is_some()
    }

    /// Total blocks of the address space.
    pub fn blocks(&self) -> u64 {
        self.inner.lock().blocks
    }

    /// Accepts `blocks`: they are promised until [`Space::settle`]. Deletes are `privileged`.
    pub fn promise(&self, blocks: u64, privileged: bool) -> Result<()> {
        let n = blocks as i64;
        let reserve = if privileged { 0 } else { self.reserve.load(Ordering::Relaxed) };
        let promised = self.promised.fetch_add(n, Ordering::AcqRel) + n;
        if self.free.load(Ordering::Acquire) - promised < reserve {
            self.promised.fetch_sub(n, Ordering::AcqRel);
            return Err(Error::NoSpace);
        }
        Ok(())
    }

    /// Promises without asking, where an earlier promise covers it.
    pub fn promise_unasked(&self, blocks: u64) {
        self.promised.fetch_add(blocks as i64, Ordering::AcqRel);
    }

    /// Takes back a promise: allocated meanwhile, or not needed.
    pub fn settle(&self, blocks: u64) {
        self.promised.fetch_sub(blocks as i64, Ordering::AcqRel);
    }

    /// Would a consistency point bring space?
    pub fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Takes a run of at most `max` blocks near the last one. Booked to `epoch`; `None`: the
    /// log's, which is in no image.
    pub fn allocate(&self, store: &Store, max: u64, epoch: Option<u64>) -> Result<Run> {
        let mut inner = self.inner.lock();
        let run = inner.take_run(store, max)?;
        if let Some(epoch) = epoch {
            inner.allocated.entry(epoch).or_default().push(run);
        }
        self.free.fetch_sub(run.1 as i64, Ordering::AcqRel);
        Ok(run)
    }

    /// Marks blocks found in the log as in use (recovery). Booked as in `allocate`.
    pub fn mark(&self, store: &Store, run: Run, epoch: Option<u64>) -> Result<()> {
        let mut inner = self.inner.lock();
        if run.0 == 0 || run.0.saturating_add(run.1) > inner.blocks {
            return Err(Error::Corrupt { block: run.0, file_offset_bytes: None });
        }
        let mut newly = 0;
        for b in run.0..run.0 + run.1 {
            newly += i64::from(inner.set_busy(store, b)?);
        }
        if let Some(epoch) = epoch {
            inner.allocated.entry(epoch).or_default().push(run);
        }
        self.free.fetch_sub(newly, Ordering::AcqRel);
        Ok(())
    }

    /// Takes back part of an allocation of `epoch` that was not written.
    pub fn give_back(&self, store: &Store, run: Run, epoch: Option<u64>) -> Result<()> {
        if run.1 == 0 {
            return Ok(());
        }
        let mut inner = self.inner.lock();
        if let Some(runs) = epoch.and_then(|e| inner.allocated.get_mut(&e)) {
            cut_runs(runs, run);
        }
        for b in run.0..run.0 + run.1 {
            inner.clear_busy(store, b)?;
        }
        inner.cursor = inner.cursor.min(run.0);
        self.free.fetch_add(run.1 as i64, Ordering::AcqRel);
        Ok(())
    }

    /// Takes every free run of a segment, to be wiped, in no image; `None`: there is none such.
    pub fn take_segment(&self, store: &Store, segment: u64) -> Result<Option<Vec<Run>>> {
        let mut inner = self.inner.lock();
        let first = segment.saturating_mul(SEGMENT_BLOCKS);
        if first >= inner.blocks {
            return Ok(None);
        }
        let mut runs: Vec<Run> = Vec::new();
        for b in first..(first + SEGMENT_BLOCKS).min(inner.blocks) {
            if !inner.set_busy(store, b)? {
                continue;
            }
            self.free.fetch_sub(1, Ordering::AcqRel);
            match runs.last_mut().filter(|run| run.0 + run.1 == b) {
                Some(run) => run.1 += 1,
                None => runs.push((b, 1)),
            }
        }
        Ok(Some(runs))
    }

    /// Gives back what `take_segment` took.
    pub fn return_segment(&self, store: &Store, segment: u64, runs: &[Run]) -> Result<()> {
        let mut inner = self.inner.lock();
        for b in runs.iter().flat_map(|run| run.0..run.0 + run.1) {
            inner.clear_busy(store, b)?;
            self.free.fetch_add(1, Ordering::AcqRel);
        }
        inner.unload_fresh((segment * SEGMENT_BLOCKS / REGION_BLOCKS) as usize);
        Ok(())
    }

    /// Books the allocations up to `epoch` and these frees into the image.
    pub fn apply(&self, store: &Store, epoch: u64, freed: &[u64]) -> Result<()> {
        let next = if planted(Mutation::BitmapOfNextEpoch) { epoch + 2 } else { epoch + 1 };
        let allocated = {
            let mut inner = self.inner.lock();
            let later = inner.allocated.split_off(&next);
            std::mem::replace(&mut inner.allocated, later)
        };
        // Nobody else looks at the image: it may be changed in parts.
        for (first, count) in allocated.into_values().flatten() {
            let mut inner = self.inner.lock();
            for b in first..first + count {
                inner.set_image(store, b, true)?;
            }
        }
        for part in freed.chunks(AT_ONCE_BLOCKS) {
            let mut inner = self.inner.lock();
            for b in part {
                inner.set_image(store, *b, false)?;
            }
        }
        self.waiting.fetch_add(freed.len() as i64, Ordering::AcqRel);
        Ok(())
    }

    /// After the root is durable and readers are gone: these blocks may be given away.
    /// `counted`: they were in `apply`'s frees (not the log's).
    pub fn release(&self, store: &Store, blocks: &[u64], counted: bool) -> Result<()> {
        for part in blocks.chunks(AT_ONCE_BLOCKS) {
            for b in part {
                store.forget(*b);
            }
            let mut inner = self.inner.lock();
            for b in part {
                inner.clear_busy(store, *b)?;
            }
            self.free.fetch_add(part.len() as i64, Ordering::AcqRel);
            if counted {
                self.waiting.fetch_sub(part.len() as i64, Ordering::AcqRel);
            }
        }
        let early = planted(Mutation::ReuseBeforeRoot) || planted(Mutation::ReuseWhilePinned);
        // Few are nodes and the log: a reader of data is what is to be met.
        if early && counted && blocks.len() > 12 {
            let mut inner = self.inner.lock();
            inner.cursor = blocks.first().copied().unwrap_or(inner.cursor);
        }
        Ok(())
    }

    /// Writes changed pages and the tables above into their other places; the entry for the root.
    pub fn write_pages(&self, store: &Store) -> Result<SpaceEntry> {
        let (pages, top) = self.inner.lock().encode_pages();
        let refs: Vec<(u64, &Block)> = pages.iter().map(|(b, p)| (*b, &**p)).collect();
        store.write(&refs)?;
        Ok(top)
    }

    /// At most `max` pages of all levels from number `from` on; none: there are no more. Under the
    /// lock of consistency points, so that each stands where its entry says. `None`: the map is in
    /// use by this thread or another.
    pub fn pages(&self, from: u64, max: u64) -> Option<Vec<PageAt>> {
        let inner = self.inner.try_lock()?;
        let regions = inner.regions.iter().map(|r| &r.entry).enumerate().map(|e| (0, e));
        let level1 = inner.tables[0].iter().enumerate().map(|e| (1, e));
        let level2 = inner.tables[1].iter().enumerate().map(|e| (2, e));
        let all = regions.chain(level1).chain(level2).chain([(3, (0, &inner.top))]);
        let page = |(level, (index, entry)): (u8, (usize, &SpaceEntry))| {
            let block = page_places(level, index as u64)[usize::from(entry.second)];
            let pointer = Pointer { block, birth: 1, crc: entry.crc, cloned: false };
            let region = index * (ENTRIES_PER_TABLE as usize).pow(u32::from(level));
            PageAt { pointer: entry.written.then_some(pointer), region, level, free: entry.free }
        };
        Some(all.skip(from as usize).take(max as usize).map(page).collect())
    }

    /// The next consistency point shall write this region's page, and all tables above it, anew;
    /// false where the page cannot be had.
    pub fn renew(&self, store: &Store, region: usize) -> bool {
        let mut inner = self.inner.lock();
        let page = inner.load_page(store, region);
        page.map(|page| page.dirty = true).is_ok()
    }

    /// Where a page's entry counts other free blocks than the page has, in words.
    pub fn wrong_counts(&self, store: &Store) -> Result<Vec<String>> {
        let mut inner = self.inner.lock();
        let mut wrong = Vec::new();
        for r in 0..inner.regions.len() {
            let SpaceEntry { written, free, .. } = inner.regions[r].entry;
            if written && !inner.load_page(store, r)?.dirty {
                let has = inner.load_page(store, r)?.image_free();
                if has != free {
                    wrong.push(format!("region {r} counts {free} free blocks, has {has}"));
                }
            }
        }
        Ok(wrong)
    }

    /// Compares the map with what a recount has seen, and sets it right for the next writing of
    /// pages: (blocks in use that were free, blocks that nothing names, pages that could not be
    /// read or counted wrong). With `keep` what nothing names stays in use.
    pub fn recount(&self, store: &Store, seen: &[u64], keep: bool) -> (u64, u64, u64) {
        let mut inner = self.inner.lock();
        let (mut missing, mut leaked, mut pages) = (0, 0, 0);
        let blocks = inner.blocks;
        for r in 0..inner.regions.len() {
            let old = inner.load_page(store, r).ok().map(|page| page.image.clone());
            let unknown = inner.unknown || old.is_none();
            let mut image = fresh_page(blocks, r as u64);
            let base = r as u64 * REGION_BLOCKS;
            for b in region_start(r as u64)..region_end(blocks, r as u64) {
                let i = (b - base) as usize;
                let named = seen.get((b / 64) as usize).is_some_and(|w| w >> (b % 64) & 1 != 0);
                let used = old.as_ref().is_some_and(|old| get(old, i));
                missing += u64::from(named && !used && !unknown);
                leaked += u64::from(used && !named && !keep);
                if named || (keep && used) {
                    set(&mut image, i);
                }
            }
            let free = image.iter().map(|w| u64::from(w.count_zeros())).sum::<u64>();
            let region = &mut inner.regions[r];
            let counts = !region.entry.written || region.entry.free == free;
            let same = old.is_some_and(|old| old == image);
            if same && counts && !unknown {
                continue;
            }
            pages += u64::from(unknown || (same && !counts));
            region.free = free as u32;
            region.page = Some(Page { busy: image.clone(), image, dirty: true });
        }
        (missing, leaked, pages)
    }

    /// Is the block set in the image? For check.
    pub fn image_bit(&self, store: &Store, block: u64) -> Result<bool> {
        let mut inner = self.inner.lock();
        let (r, i) = split(block);
        let page = inner.load_page(store, r)?;
        Ok(get(&page.image, i))
    }

    /// Reserved for pages, labels or nothing: never allocated.
    pub fn is_reserved(block: u64) -> bool {
        block < region_start(block / REGION_BLOCKS)
    }
}

/// How many pages table level `level` has over so many regions.
fn tables_at(level: u32, regions: u64) -> u64 {
    regions.div_ceil(ENTRIES_PER_TABLE.pow(level))
}

fn cut_runs(runs: &mut Vec<Run>, cut: Run) {
    if let Some(r) = runs.iter_mut().rev().find(|r| r.0 <= cut.0 && cut.0 + cut.1 <= r.0 + r.1) {
        let tail = (cut.0 + cut.1, r.0 + r.1 - cut.0 - cut.1);
        r.1 = cut.0 - r.0;
        if tail.1 > 0 {
            runs.push(tail);
        }
    }
}

fn read_table(
    store: &Store,
    level: u8,
    index: u64,
    entry: &SpaceEntry,
    count: u64,
) -> Result<Vec<SpaceEntry>> {
    if !entry.written {
        return Ok(vec![SpaceEntry::default(); count as usize]);
    }
    let page = read_page(store, level, index, entry)?;
    let decode = |i: usize| SpaceEntry::decode(&page.0[i * 16..i * 16 + 16]);
    (0..count as usize).map(|i| decode(i).map_err(|e| Error::Format(e.to_string()))).collect()
}

fn read_page(store: &Store, level: u8, index: u64, entry: &SpaceEntry) -> Result<Box<Block>> {
    let block = page_places(level, index)[usize::from(entry.second)];
    let whole = |mut raw: Vec<Box<Block>>| raw.pop().filter(|p| crc32c::crc32c(&p.0) == entry.crc);
    store.read_raw(block, 1, whole)?.ok_or(Error::Corrupt { block, file_offset_bytes: None })
}

impl Inner {
    fn load_page(&mut self, store: &Store, region: usize) -> Result<&mut Page> {
        let blocks = self.blocks;
        let r = self.regions.get_mut(region).ok_or(Error::Corrupt {
            block: region as u64 * REGION_BLOCKS,
            file_offset_bytes: None,
        })?;
        if r.page.is_none() {
            let image = if r.entry.written {
                let raw = read_page(store, 0, region as u64, &r.entry)?;
                let mut bits = Box::new([0u64; WORDS]);
                for (word, bytes) in bits.iter_mut().zip(raw.0.chunks_exact(8)) {
                    *word = bytes.iter().rev().fold(0, |w, b| w << 8 | u64::from(*b));
                }
                bits
            } else {
                fresh_page(blocks, region as u64)
            };
            r.page = Some(Page { busy: image.clone(), image, dirty: false });
        }
        r.page.as_mut().ok_or(Error::Invalid("page"))
    }

    /// Forgets the page of a region that was never used: it is made again as it was.
    fn unload_fresh(&mut self, region: usize) {
        let Some(r) = self.regions.get_mut(region).filter(|r| !r.entry.written) else { return };
        if r.page.as_ref().is_some_and(|page| !page.dirty && page.image == page.busy) {
            r.page = None;
        }
    }

    fn set_busy(&mut self, store: &Store, block: u64) -> Result<bool> {
        let (r, i) = split(block);
        let page = self.load_page(store, r)?;
        if get(&page.busy, i) {
            return Ok(false);
        }
        set(&mut page.busy, i);
        self.regions[r].free -= 1;
        Ok(true)
    }

    fn clear_busy(&mut self, store: &Store, block: u64) -> Result<()> {
        let (r, i) = split(block);
        let page = self.load_page(store, r)?;
        if !get(&page.busy, i) {
            return Err(Error::Format(format!("block {block} was freed twice")));
        }
        clear(&mut page.busy, i);
        self.regions[r].free += 1;
        self.regions[r].spent = false;
        Ok(())
    }

    fn set_image(&mut self, store: &Store, block: u64, used: bool) -> Result<()> {
        let (r, i) = split(block);
        let page = self.load_page(store, r)?;
        if get(&page.image, i) == used {
            let what = if used { "allocated" } else { "freed" };
            return Err(Error::Format(format!("block {block} was {what} twice")));
        }
        if used {
            set(&mut page.image, i);
        } else {
            clear(&mut page.image, i);
        }
        page.dirty = true;
        Ok(())
    }

    fn take_run(&mut self, store: &Store, max: u64) -> Result<Run> {
        // Twice: the cursor's segment may be exhausted.
        for _ in 0..2 {
            if let Some(run) = self.take_in_segment(store, max)? {
                return Ok(run);
            }
            self.next_segment(store)?;
        }
        self.take_in_segment(store, max)?.ok_or(Error::NoSpace)
    }

    /// The next free run between the cursor and the end of its segment.
    fn take_in_segment(&mut self, store: &Store, max: u64) -> Result<Option<Run>> {
        if self.cursor == 0 {
            return Ok(None);
        }
        let end = (self.cursor / SEGMENT_BLOCKS + 1) * SEGMENT_BLOCKS;
        let (r, _) = split(self.cursor);
        let base = r as u64 * REGION_BLOCKS;
        let cursor = self.cursor;
        let page = self.load_page(store, r)?;
        let Some(first) = (cursor..end).find(|b| !get(&page.busy, (b - base) as usize)) else {
            self.cursor = 0;
            return Ok(None);
        };
        let limit = end.min(first + max);
        let mut b = first;
        while b < limit && !get(&page.busy, (b - base) as usize) {
            set(&mut page.busy, (b - base) as usize);
            b += 1;
        }
        self.regions[r].free -= (b - first) as u32;
        // A segment's last block leads to the next segment: 0 says "choose one".
        self.cursor = if b == end { 0 } else { b };
        Ok(Some((first, b - first)))
    }

    fn next_segment(&mut self, store: &Store) -> Result<()> {
        let (region, segment) = match self.nearly_empty(store) {
            Some(found) => found,
            None => self.emptiest(store)?,
        };
        let base = region as u64 * REGION_BLOCKS;
        // Block 0 is nobody's, and 0 says that none was chosen.
        self.cursor = (base + segment as u64 * SEGMENT_BLOCKS).max(SEGMENT_BLOCKS);
        Ok(())
    }

    /// The first segment that is nearly empty: the host's file behind the pool stays as small as it
    /// can, and writing where it was written before costs its host no journal.
    fn nearly_empty(&mut self, store: &Store) -> Option<(usize, usize)> {
        let mut looks = MAX_LOOKS;
        for r in 0..self.regions.len() {
            let region = &self.regions[r];
            if region.spent || region.free < NEARLY_EMPTY {
                continue;
            }
            if region.page.is_none() && region.entry.written {
                looks = match looks.checked_sub(1) {
                    Some(left) => left,
                    None => continue,
                };
            }
            // One that cannot be read is told of when it is needed.
            match self.load_page(store, r).map(|page| page.emptiest_segment()) {
                Ok((segment, free)) if free >= NEARLY_EMPTY => return Some((r, segment)),
                _ => self.regions[r].spent = true,
            }
        }
        None
    }

    /// The emptiest segment of the first region that is nearly as empty as the emptiest one.
    fn emptiest(&mut self, store: &Store) -> Result<(usize, usize)> {
        let most = self.regions.iter().map(|r| r.free).max().unwrap_or(0);
        if most == 0 {
            return Err(Error::NoSpace);
        }
        let good = most - most / 8;
        let region = self.regions.iter().position(|r| r.free >= good).unwrap_or(0);
        Ok((region, self.load_page(store, region)?.emptiest_segment().0))
    }

    fn encode_pages(&mut self) -> (Vec<(u64, Box<Block>)>, SpaceEntry) {
        let mut out = Vec::new();
        let per = ENTRIES_PER_TABLE as usize;
        let mut dirty1 = vec![false; self.tables[0].len()];
        for (i, r) in self.regions.iter_mut().enumerate() {
            let Some(page) = r.page.as_mut().filter(|p| p.dirty) else { continue };
            page.dirty = false;
            let mut raw = Block::zeroed();
            for (bytes, word) in raw.0.chunks_exact_mut(8).zip(page.image.iter()) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
            let free = page.image_free();
            out.push(turn(&mut r.entry, 0, i as u64, raw, free));
            dirty1[i / per] = true;
        }
        let mut dirty2 = vec![false; self.tables[1].len()];
        for (i, _) in dirty1.iter().enumerate().filter(|d| *d.1) {
            let from = i * per;
            let to = (from + per).min(self.regions.len());
            let blocks = self.blocks;
            let free_of = |r: usize, e: &SpaceEntry| {
                if e.written {
                    e.free
                } else {
                    fresh_free(blocks, r as u64)
                }
            };
            let entries: Vec<SpaceEntry> = (from..to)
                .map(|r| {
                    let e = self.regions[r].entry;
                    SpaceEntry { free: free_of(r, &e), ..e }
                })
                .collect();
            let (raw, free) = encode_table(&entries);
            out.push(turn(&mut self.tables[0][i], 1, i as u64, raw, free));
            dirty2[i / per] = true;
        }
        let mut top_dirty = false;
        for (i, _) in dirty2.iter().enumerate().filter(|d| *d.1) {
            let from = i * per;
            let to = (from + per).min(self.tables[0].len());
            let (raw, free) = encode_table(&self.tables[0][from..to]);
            out.push(turn(&mut self.tables[1][i], 2, i as u64, raw, free));
            top_dirty = true;
        }
        if top_dirty {
            let (raw, free) = encode_table(&self.tables[1]);
            out.push(turn(&mut self.top, 3, 0, raw, free));
        }
        out.sort_by_key(|p| p.0);
        (out, self.top)
    }
}

fn encode_table(entries: &[SpaceEntry]) -> (Box<Block>, u64) {
    let mut raw = Block::zeroed();
    for (i, e) in entries.iter().enumerate() {
        e.encode(&mut raw.0[i * 16..i * 16 + 16]);
    }
    (raw, entries.iter().map(|e| e.free).sum())
}

/// The entry turns to the page's other place.
fn turn(
    entry: &mut SpaceEntry,
    level: u8,
    index: u64,
    raw: Box<Block>,
    free: u64,
) -> (u64, Box<Block>) {
    let mut second = entry.written && !entry.second;
    if planted(Mutation::PageInPlace) {
        second = false;
    }
    *entry = SpaceEntry { written: true, second, crc: crc32c::crc32c(&raw.0), free };
    (page_places(level, index)[usize::from(second)], raw)
}
