//! Pool segments that come into service and go out of it.
//!
//! A segment out of service stands in the bitmaps as in use, so nothing is allocated in it; the
//! totals do not count it. Both ways the image changes with the root that has the changed segment
//! map: what comes into service is given away only when that root is durable.

use super::*;
use crate::fs::rebalance::gaps;

const SEGMENT: usize = SEGMENT_BLOCKS as usize;

impl Space {
    /// Blocks of mapped segments that are not for data, of a pool of so many blocks, are in no
    /// total; neither are those out of service: so many.
    pub(super) fn out_of_service(store: &Store, blocks: u64) -> u64 {
        let gaps = gaps(&store.segment_map(), blocks / SEGMENT_BLOCKS);
        gaps.iter().map(|(_, count)| count * SEGMENT_BLOCKS).sum()
    }

    /// Runs of blocks of a segment that must not be lost: in use, waiting to be freed, the log's,
    /// and the places of pages.
    pub fn in_use(&self, store: &Store, segment: u64) -> Result<Vec<Run>> {
        let mut inner = self.inner.lock();
        let (r, first) = split(segment * SEGMENT_BLOCKS);
        let page = inner.load_page(store, r)?;
        let base = r as u64 * REGION_BLOCKS;
        let mut runs: Vec<Run> = Vec::new();
        for i in (first..first + SEGMENT).filter(|i| get(&page.busy, *i)) {
            match runs.last_mut().filter(|run| run.0 + run.1 == base + i as u64) {
                Some(run) => run.1 += 1,
                None => runs.push((base + i as u64, 1)),
            }
        }
        Ok(runs)
    }

    /// Is nothing allocated in a segment?
    pub fn is_idle(&self, store: &Store, segment: u64) -> Result<bool> {
        let mut inner = self.inner.lock();
        let (r, first) = split(segment * SEGMENT_BLOCKS);
        let page = inner.load_page(store, r)?;
        Ok(page.segment_free(first / SEGMENT) as usize == SEGMENT)
    }

    /// Takes segments out of service, if nothing is allocated in them; false: something is. Under
    /// the lock of consistency points. `NoSpace`: what was promised needs them.
    pub fn retire(&self, store: &Store, first: u64, count: u64) -> Result<bool> {
        let mut inner = self.inner.lock();
        for segment in first..first + count {
            let (r, at) = split(segment * SEGMENT_BLOCKS);
            if inner.load_page(store, r)?.segment_free(at / SEGMENT) as usize != SEGMENT {
                return Ok(false);
            }
        }
        let n = (count * SEGMENT_BLOCKS) as i64;
        let total = self.total.load(Ordering::Relaxed) - n;
        let reserve = reserve_of(total.max(0) as u64);
        let left = self.free.fetch_sub(n, Ordering::AcqRel) - n;
        if left - self.promised.load(Ordering::Acquire) < reserve {
            self.free.fetch_add(n, Ordering::AcqRel);
            return Err(Error::NoSpace);
        }
        for block in first * SEGMENT_BLOCKS..(first + count) * SEGMENT_BLOCKS {
            inner.set_busy(store, block)?;
            inner.set_image(store, block, true)?;
        }
        self.count_total(-n);
        Ok(true)
    }

    /// Segments come back into service with the next root: [`Space::put_in_service`] follows.
    pub fn readmit(&self, store: &Store, first: u64, count: u64) -> Result<()> {
        let mut inner = self.inner.lock();
        let blocks = first * SEGMENT_BLOCKS..(first + count) * SEGMENT_BLOCKS;
        blocks.into_iter().try_for_each(|block| inner.set_image(store, block, false))
    }

    /// The root with segments that came back is durable: they are given away from now on.
    pub fn put_in_service(&self, store: &Store, first: u64, count: u64) -> Result<()> {
        let mut inner = self.inner.lock();
        for block in first * SEGMENT_BLOCKS..(first + count) * SEGMENT_BLOCKS {
            inner.clear_busy(store, block)?;
        }
        let n = (count * SEGMENT_BLOCKS) as i64;
        self.free.fetch_add(n, Ordering::AcqRel);
        self.count_total(n);
        Ok(())
    }

    /// The pool is `blocks` long with the next root: [`Space::publish`] follows.
    pub fn extend(&self, store: &Store, blocks: u64) -> Result<()> {
        let mut inner = self.inner.lock();
        let old = inner.blocks;
        if blocks <= old {
            return Ok(());
        }
        let last = (old.div_ceil(REGION_BLOCKS) - 1) as usize;
        let page = inner.load_page(store, last)?;
        for block in gained_in_last(old, blocks) {
            clear(&mut page.image, split(block).1);
        }
        page.dirty = true;
        inner.blocks = blocks;
        let count = blocks.div_ceil(REGION_BLOCKS);
        // Nothing is taken from a region that counts nothing as free.
        inner.regions.resize_with(count as usize, Region::default);
        for level in [1, 2] {
            inner.tables[level - 1]
                .resize(tables_at(level as u32, count) as usize, SpaceEntry::default());
        }
        Ok(())
    }

    /// The root with the longer pool is durable: what it gained since it was `old` blocks long is
    /// given away from now on.
    pub fn publish(&self, store: &Store, old: u64) -> Result<()> {
        let mut inner = self.inner.lock();
        let blocks = inner.blocks;
        let mut gained = 0;
        for block in gained_in_last(old, blocks) {
            inner.clear_busy(store, block)?;
            gained += 1;
        }
        for region in old.div_ceil(REGION_BLOCKS)..blocks.div_ceil(REGION_BLOCKS) {
            let free = fresh_free(blocks, region);
            inner.regions[region as usize].free = free as u32;
            gained += free as i64;
        }
        self.free.fetch_add(gained, Ordering::AcqRel);
        self.count_total(gained);
        Ok(())
    }

    fn count_total(&self, gained: i64) {
        let total = self.total.fetch_add(gained, Ordering::AcqRel) + gained;
        self.reserve.store(reserve_of(total.max(0) as u64), Ordering::Relaxed);
    }
}

/// Blocks for data that a pool gained in the region in which it ended.
fn gained_in_last(old: u64, blocks: u64) -> std::ops::Range<u64> {
    let last = old.div_ceil(REGION_BLOCKS) - 1;
    old.max(region_start(last))..region_end(blocks, last)
}
