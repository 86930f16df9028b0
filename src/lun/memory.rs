//! A LUN in memory: the second implementation of [`BlockIo`]. Protocol tests and RAM disks use it.
//!
//! Invariants: a block is in `blocks` exactly when it is mapped; bytes of a block beyond the
//! capacity are zero; `mapped blocks <= space_blocks`; every request takes the one lock once, so
//! each is atomic whatever its length. Nothing survives the process: `flush` has nothing to do but
//! count.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;

use super::{
    BlockError, BlockIo, Extent, Geometry, Identity, SanitizeOrder, SanitizeState, SUM_BYTES,
};

/// Unit of mapping, the same as the pool's.
const UNIT_BYTES: u64 = 4096;
/// Longest write that is atomic, as the pool has it; here longer ones are atomic too.
const ATOMIC_MAX_BYTES: u32 = 2 << 20;

/// A sparse disk in memory, with faults that tests switch on.
pub struct MemoryLun {
    identity: Identity,
    state: RwLock<State>,
    generation: AtomicU64,
    flushes: AtomicU64,
}

struct State {
    geometry: Geometry,
    blocks: BTreeMap<u64, Box<[u8]>>,
    space_blocks: u64,
    bad: BTreeSet<u64>,
    failing: Option<BlockError>,
    blocking: Option<Duration>,
    record: String,
    sanitize: SanitizeState,
    writes: u64,
}

/// The part of one request that lies in one block of 4 KiB.
struct Piece {
    block: u64,
    within: Range<usize>,
    buffer: Range<usize>,
}

impl MemoryLun {
    /// A disk of `size_bytes` (rounded down to whole blocks) with logical blocks of `block_bytes`
    /// (512 or 4096). It never fills up unless [`MemoryLun::set_space`] says so.
    pub fn new(name: &str, size_bytes: u64, block_bytes: u32) -> MemoryLun {
        let block_bytes = if block_bytes == 4096 { 4096 } else { 512 };
        let geometry = Geometry {
            size_bytes: size_bytes - size_bytes % u64::from(block_bytes),
            block_bytes,
            physical_exponent: if block_bytes == 512 { 3 } else { 0 },
            read_only: false,
            rotation_rate: 1,
            removable: false,
            write_through: false,
            atomic_max_bytes: ATOMIC_MAX_BYTES,
            generation: 1,
        };
        MemoryLun {
            identity: identity_of(name),
            generation: AtomicU64::new(geometry.generation),
            flushes: AtomicU64::new(0),
            state: RwLock::new(State {
                geometry,
                blocks: BTreeMap::new(),
                space_blocks: u64::MAX,
                bad: BTreeSet::new(),
                failing: None,
                blocking: None,
                record: String::new(),
                sanitize: SanitizeState::Idle,
                writes: 0,
            }),
        }
    }

    /// Changes the capacity (rounded down to whole blocks); what is cut off is lost.
    pub fn resize(&self, size_bytes: u64) {
        self.change(|state| {
            let size_bytes = size_bytes - size_bytes % u64::from(state.geometry.block_bytes);
            let old_bytes = std::mem::replace(&mut state.geometry.size_bytes, size_bytes);
            if size_bytes < old_bytes {
                state.clear(size_bytes, old_bytes - size_bytes);
                state.bad.split_off(&size_bytes.div_ceil(UNIT_BYTES));
            }
        });
    }

    /// Switches `read_only`.
    pub fn set_read_only(&self, read_only: bool) {
        self.change(|state| state.geometry.read_only = read_only);
    }

    /// Any other change of the geometry; raises the generation.
    pub fn change_geometry(&self, change: impl FnOnce(&mut Geometry)) {
        self.change(|state| change(&mut state.geometry));
    }

    /// Room for this many bytes of mapped blocks: a write that needs more answers `NoSpace`.
    pub fn set_space(&self, space_bytes: u64) {
        self.state.write().space_blocks = space_bytes / UNIT_BYTES;
    }

    /// Makes the blocks of 4 KiB that the range touches unreadable (`Medium`) until they are
    /// wholly overwritten or unmapped.
    pub fn set_bad(&self, range: Range<u64>) {
        let blocks = range.start / UNIT_BYTES..range.end.div_ceil(UNIT_BYTES);
        self.state.write().bad.extend(blocks);
    }

    /// Every read, write and flush answers this error until it is `None` again.
    pub fn set_failing(&self, error: Option<BlockError>) {
        self.state.write().failing = error;
    }

    /// With a duration the `try_` forms answer `None` and the others take so long: a slow device.
    pub fn set_blocking(&self, delay: Option<Duration>) {
        self.state.write().blocking = delay;
    }

    /// What a sanitize comes to.
    pub fn end_sanitize(&self, state: SanitizeState) {
        self.state.write().sanitize = state;
    }

    /// How many flushes (and writes with `fua`) were done.
    pub fn flush_count(&self) -> u64 {
        self.flushes.load(Ordering::Relaxed)
    }

    /// How many calls wrote data: one for each write of a client that comes as a whole.
    pub fn write_count(&self) -> u64 {
        self.state.read().writes
    }

    /// Bytes of mapped blocks.
    pub fn mapped_bytes(&self) -> u64 {
        self.state.read().blocks.len() as u64 * UNIT_BYTES
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.write();
        change(&mut state);
        state.geometry.generation += 1;
        self.generation.store(state.geometry.generation, Ordering::Release);
    }

    fn wait_for_the_device(&self) {
        let delay = self.state.read().blocking;
        if let Some(delay) = delay {
            std::thread::sleep(delay);
        }
    }
}

impl State {
    fn check(&self, offset: u64, length: u64) -> Result<(), BlockError> {
        if let Some(error) = &self.failing {
            return Err(error.clone());
        }
        let unit = u64::from(self.geometry.block_bytes);
        if offset % unit != 0 || length % unit != 0 {
            return Err(BlockError::Invalid("not a multiple of the block size"));
        }
        match offset.checked_add(length) {
            Some(end) if end <= self.geometry.size_bytes => Ok(()),
            _ => Err(BlockError::OutOfRange),
        }
    }

    fn check_write(&self, offset: u64, length: u64) -> Result<(), BlockError> {
        self.check(offset, length)?;
        if self.geometry.read_only {
            return Err(BlockError::ReadOnly);
        }
        Ok(())
    }

    /// First unreadable byte of the range, if there is one.
    fn check_medium(&self, offset: u64, length: u64) -> Result<(), BlockError> {
        let blocks = offset / UNIT_BYTES..(offset + length).div_ceil(UNIT_BYTES);
        match self.bad.range(blocks).next() {
            None => Ok(()),
            Some(block) => Err(BlockError::Medium { offset_bytes: offset.max(block * UNIT_BYTES) }),
        }
    }

    /// A block that is only partly overwritten must be readable.
    fn check_edges(&self, offset: u64, length: u64) -> Result<(), BlockError> {
        if self.bad.is_empty() || length == 0 {
            return Ok(());
        }
        let end = offset + length;
        let head = offset % UNIT_BYTES != 0;
        let tail = end % UNIT_BYTES != 0 && end != self.geometry.size_bytes;
        if head {
            self.check_medium(offset, 1)?;
        }
        if tail {
            self.check_medium(offset.max(end - end % UNIT_BYTES), 1)?;
        }
        Ok(())
    }

    fn check_space(&self, offset: u64, length: u64) -> Result<(), BlockError> {
        if self.space_blocks == u64::MAX || length == 0 {
            return Ok(());
        }
        let blocks = offset / UNIT_BYTES..(offset + length).div_ceil(UNIT_BYTES);
        let wanted = blocks.end - blocks.start - self.blocks.range(blocks).count() as u64;
        let left = self.space_blocks.saturating_sub(self.blocks.len() as u64);
        if wanted > left {
            return Err(BlockError::NoSpace);
        }
        Ok(())
    }

    fn copy_out(&self, offset: u64, out: &mut [u8]) {
        for piece in pieces(offset, out.len() as u64) {
            let Some(target) = out.get_mut(piece.buffer) else {
                return;
            };
            match self.blocks.get(&piece.block).and_then(|block| block.get(piece.within)) {
                Some(source) => target.copy_from_slice(source),
                None => target.fill(0),
            }
        }
    }

    fn copy_in(&mut self, offset: u64, data: &[u8]) {
        for piece in pieces(offset, data.len() as u64) {
            let block = self.blocks.entry(piece.block).or_insert_with(new_block);
            let source = data.get(piece.buffer);
            if let (Some(target), Some(source)) = (block.get_mut(piece.within), source) {
                target.copy_from_slice(source);
            }
            if !self.bad.is_empty() {
                self.bad.remove(&piece.block);
            }
        }
    }

    /// Makes a hole of the whole blocks in the range and zeros of the edges. The last block counts
    /// as whole when the range reaches the end of the capacity.
    fn clear(&mut self, offset: u64, length: u64) {
        let end = offset + length;
        let first = offset.div_ceil(UNIT_BYTES);
        let last = if end >= self.geometry.size_bytes {
            end.div_ceil(UNIT_BYTES)
        } else {
            end / UNIT_BYTES
        };
        if first < last {
            let mut tail = self.blocks.split_off(&first);
            self.blocks.append(&mut tail.split_off(&last));
            self.bad.retain(|block| !(first..last).contains(block));
        }
        self.zero_mapped(offset, end.min(first * UNIT_BYTES));
        self.zero_mapped(offset.max(last * UNIT_BYTES), end);
    }

    /// Zeros the part of one mapped block that lies in `start..end`.
    fn zero_mapped(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let base = start - start % UNIT_BYTES;
        let within = (start - base) as usize..(end - base).min(UNIT_BYTES) as usize;
        let block = self.blocks.get_mut(&(start / UNIT_BYTES));
        if let Some(part) = block.and_then(|block| block.get_mut(within)) {
            part.fill(0);
        }
    }

    /// Zeros that keep or make blocks.
    fn fill_zeroes(&mut self, offset: u64, length: u64) {
        let mut at = offset;
        let end = offset + length;
        while at < end {
            let next = (at - at % UNIT_BYTES + UNIT_BYTES).min(end);
            self.blocks.entry(at / UNIT_BYTES).or_insert_with(new_block);
            self.bad.remove(&(at / UNIT_BYTES));
            self.zero_mapped(at, next);
            at = next;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), BlockError> {
        let length = data.len() as u64;
        self.check_write(offset, length)?;
        self.check_edges(offset, length)?;
        self.check_space(offset, length)?;
        self.copy_in(offset, data);
        self.writes += 1;
        Ok(())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), BlockError> {
        self.check(offset, out.len() as u64)?;
        self.check_medium(offset, out.len() as u64)?;
        self.copy_out(offset, out);
        Ok(())
    }

    /// Alternating runs of `offset..end`, at most `max`.
    fn runs(&self, offset: u64, end: u64, max: usize) -> Vec<Extent> {
        let mut runs: Vec<Extent> = Vec::new();
        let mut at = offset;
        while at < end && runs.len() < max {
            let mapped = self.blocks.contains_key(&(at / UNIT_BYTES));
            let stop = if mapped { self.run_end(at, end) } else { self.hole_end(at, end) };
            runs.push(Extent { offset_bytes: at, length_bytes: stop - at, mapped });
            at = stop;
        }
        runs
    }

    fn run_end(&self, at: u64, end: u64) -> u64 {
        let mut block = at / UNIT_BYTES;
        for (&mapped, _) in self.blocks.range(block..end.div_ceil(UNIT_BYTES)) {
            if mapped != block {
                break;
            }
            block += 1;
        }
        (block * UNIT_BYTES).min(end)
    }

    fn hole_end(&self, at: u64, end: u64) -> u64 {
        match self.blocks.range(at / UNIT_BYTES..).next() {
            Some((block, _)) => (block * UNIT_BYTES).min(end),
            None => end,
        }
    }
}

/// It keeps no checksums, but shows those who use them what they would get.
fn sum_up(offset: u64, out: &[u8], sums: &mut Vec<u32>) {
    if offset % SUM_BYTES as u64 == 0 && out.len() % SUM_BYTES == 0 {
        sums.extend(out.chunks(SUM_BYTES).map(crc32c::crc32c));
    }
}

impl BlockIo for MemoryLun {
    fn geometry(&self) -> Geometry {
        self.state.read().geometry.clone()
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn may_wait_long(&self) -> bool {
        self.state.read().blocking.is_some()
    }

    fn identity(&self) -> Identity {
        self.identity.clone()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), BlockError> {
        self.wait_for_the_device();
        self.state.read().read(offset, out)
    }

    fn try_read(&self, offset: u64, out: &mut [u8]) -> Option<Result<(), BlockError>> {
        let state = self.state.read();
        state.blocking.is_none().then(|| state.read(offset, out))
    }

    fn read_summed(
        &self,
        offset: u64,
        out: &mut [u8],
        sums: &mut Vec<u32>,
    ) -> Result<(), BlockError> {
        self.read(offset, out)?;
        sum_up(offset, out, sums);
        Ok(())
    }

    fn try_read_summed(
        &self,
        offset: u64,
        out: &mut [u8],
        sums: &mut Vec<u32>,
    ) -> Option<Result<(), BlockError>> {
        let read = self.try_read(offset, out)?;
        sum_up(offset, out, sums);
        Some(read)
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), BlockError> {
        self.wait_for_the_device();
        self.state.write().write(offset, data)?;
        if fua {
            self.flushes.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn try_write(&self, offset: u64, data: &[u8]) -> Option<Result<(), BlockError>> {
        let mut state = self.state.write();
        state.blocking.is_none().then(|| state.write(offset, data))
    }

    fn flush(&self) -> Result<(), BlockError> {
        self.wait_for_the_device();
        self.state.read().check(0, 0)?;
        self.flushes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn unmap(&self, offset: u64, length: u64) -> Result<(), BlockError> {
        self.wait_for_the_device();
        let mut state = self.state.write();
        state.check_write(offset, length)?;
        state.check_edges(offset, length)?;
        state.clear(offset, length);
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, length: u64, may_unmap: bool) -> Result<(), BlockError> {
        if may_unmap {
            return self.unmap(offset, length);
        }
        self.wait_for_the_device();
        let mut state = self.state.write();
        state.check_write(offset, length)?;
        state.check_edges(offset, length)?;
        state.check_space(offset, length)?;
        state.fill_zeroes(offset, length);
        Ok(())
    }

    fn compare_and_write(&self, offset: u64, expect: &[u8], data: &[u8]) -> Result<(), BlockError> {
        if expect.len() != data.len() {
            return Err(BlockError::Invalid("compared and written data differ in length"));
        }
        self.wait_for_the_device();
        let mut state = self.state.write();
        state.check_write(offset, data.len() as u64)?;
        let mut found = vec![0; expect.len()];
        state.read(offset, &mut found)?;
        match found.iter().zip(expect).position(|(found, wanted)| found != wanted) {
            Some(first) => Err(BlockError::Miscompare { offset_bytes: first as u64 }),
            None => state.write(offset, data),
        }
    }

    fn or_write(&self, offset: u64, data: &[u8]) -> Result<(), BlockError> {
        self.wait_for_the_device();
        let mut state = self.state.write();
        state.check_write(offset, data.len() as u64)?;
        let mut merged = vec![0; data.len()];
        state.read(offset, &mut merged)?;
        merged.iter_mut().zip(data).for_each(|(byte, more)| *byte |= more);
        state.write(offset, &merged)
    }

    fn reservations(&self) -> String {
        self.state.read().record.clone()
    }

    fn keep_reservations(&self, record: Option<&str>, _held: bool) -> Result<(), BlockError> {
        self.state.write().record = record.unwrap_or_default().to_owned();
        Ok(())
    }

    /// It is over when [`MemoryLun::end_sanitize`] says so.
    fn sanitize(&self, order: &SanitizeOrder) -> Result<(), BlockError> {
        let mut state = self.state.write();
        if state.sanitize != SanitizeState::Idle {
            return Err(BlockError::Sanitizing);
        }
        state.sanitize = SanitizeState::Running(0x8000);
        let size = state.geometry.size_bytes;
        state.clear(0, size);
        for at in (0..size).step_by(state.geometry.block_bytes as usize) {
            if let Some(pattern) = &order.pattern {
                state.copy_in(at, pattern);
            }
        }
        Ok(())
    }

    fn sanitize_state(&self) -> SanitizeState {
        self.state.read().sanitize
    }

    fn exit_sanitize_failure(&self) -> Result<bool, BlockError> {
        let mut state = self.state.write();
        let stays = state.sanitize == SanitizeState::Failed { may_exit: false };
        if !stays {
            state.sanitize = SanitizeState::Idle;
        }
        Ok(!stays)
    }

    fn extents(&self, offset: u64, length: u64, max: usize) -> Result<Vec<Extent>, BlockError> {
        self.wait_for_the_device();
        let state = self.state.read();
        state.check(offset, length)?;
        Ok(state.runs(offset, offset + length, max))
    }
}

impl std::fmt::Debug for MemoryLun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryLun").field("name", &self.identity.name).finish_non_exhaustive()
    }
}

/// Cuts `offset..offset + length` at the borders of blocks.
fn pieces(offset: u64, length: u64) -> impl Iterator<Item = Piece> {
    let end = offset + length;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let within = at % UNIT_BYTES;
        let count = (UNIT_BYTES - within).min(end - at);
        let start = (at - offset) as usize;
        let piece = Piece {
            block: at / UNIT_BYTES,
            within: within as usize..(within + count) as usize,
            buffer: start..start + count as usize,
        };
        at += count;
        Some(piece)
    })
}

fn new_block() -> Box<[u8]> {
    vec![0; UNIT_BYTES as usize].into_boxed_slice()
}

/// Names drawn from the LUN's name: the same name gives the same disk.
fn identity_of(name: &str) -> Identity {
    let digest = blake3::hash(name.as_bytes());
    let mut naa = [0; 16];
    naa.iter_mut().zip(digest.as_bytes()).for_each(|(to, from)| *to = *from);
    if let Some(first) = naa.first_mut() {
        *first = 0x60 | (*first & 0x0f);
    }
    Identity {
        name: name.to_owned(),
        vendor: "LUNFS".to_owned(),
        product: "memory".to_owned(),
        serial: digest.to_hex().chars().take(16).collect(),
        naa,
    }
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
