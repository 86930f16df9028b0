//! A device in memory with a volatile cache, whose power fails and whose medium rots by a seed.
//!
//! It is as unkind as the contract of [`BlockDevice`] allows: a write that no flush covered may be
//! lost, kept, or torn between sectors of 512 bytes, in any combination, so in any order; a flush
//! covers only writes that returned before it *began*; a failed write leaves old, new or torn
//! blocks; a failed flush may lose for ever what later reads still show.
//!
//! Invariants: driven by one thread, everything it does is a function of its seeds and the calls
//! made. No lock is held while the hook runs, so the hook may use the device, and what stands above
//! it.

mod rng;
mod store;

pub use rng::Rng;

use super::counters::{Counters, DeviceCounters};
use super::{check_range, Block, BlockDevice};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use store::Store;

/// What kind of call the hook sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoKind {
    /// A read.
    Read,
    /// A write.
    Write,
    /// A flush; `first` and `count` are 0.
    Flush,
    /// A discard.
    Discard,
}

/// A call, as the hook sees it: once before it does anything, and once after it did all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoEvent {
    /// Number of the call on this device, from 1.
    pub number: u64,
    /// Its kind.
    pub kind: IoKind,
    /// First block.
    pub first: u64,
    /// How many blocks.
    pub count: u64,
    /// False before, true after.
    pub done: bool,
}

/// Runs at each call. It may call the device again (those calls are seen too: bound the depth).
pub type Hook = dyn Fn(&IoEvent) + Send + Sync;

/// Faults waiting to happen, and whether the device is there at all.
#[derive(Default)]
struct Faults {
    power_fails_at: Option<u64>,
    power_is_off: bool,
    vanished: bool,
    unreadable: BTreeSet<u64>,
    failing_writes: u32,
    failing_flushes: u32,
    lost_writes: u32,
    misdirected_by: Option<u64>,
}

struct State {
    store: Store,
    faults: Faults,
    rng: Rng,
    calls: u64,
}

/// A simulated device. See the module's head for what it may do.
pub struct SimDevice {
    state: Mutex<State>,
    hook: Mutex<Option<Arc<Hook>>>,
    blocks: AtomicU64,
    counters: Counters,
    name: String,
}

impl SimDevice {
    /// An empty device (zeros). `seed` decides what a failing write or flush leaves behind.
    pub fn new(blocks: u64, seed: u64) -> SimDevice {
        SimDevice::over(Store::default(), blocks, seed, "sim".to_string())
    }

    /// As `new`, with a name for messages.
    pub fn named(name: &str, blocks: u64, seed: u64) -> SimDevice {
        SimDevice::over(Store::default(), blocks, seed, name.to_string())
    }

    fn over(store: Store, blocks: u64, seed: u64, name: String) -> SimDevice {
        let state = State { store, faults: Faults::default(), rng: Rng::new(seed), calls: 0 };
        SimDevice {
            state: Mutex::new(state),
            hook: Mutex::new(None),
            blocks: AtomicU64::new(blocks),
            counters: Counters::default(),
            name,
        }
    }

    /// Sets or removes what runs at each call.
    pub fn on_io(&self, hook: Option<Arc<Hook>>) {
        *self.hook.lock() = hook;
    }

    /// What was asked of the device since it was made.
    pub fn counters(&self) -> DeviceCounters {
        self.counters.get()
    }

    /// How many calls there have been: what `power_fails_at` counts in.
    pub fn calls(&self) -> u64 {
        self.state.lock().calls
    }

    /// Makes the device larger.
    pub fn grow(&self, blocks: u64) {
        self.blocks.fetch_max(blocks, Ordering::AcqRel);
    }

    /// Power fails during call number `call` (see [`SimDevice::calls`]): that call and every later
    /// one answers an error until [`SimDevice::crash`].
    pub fn power_fails_at(&self, call: Option<u64>) {
        self.state.lock().faults.power_fails_at = call;
    }

    /// Power fails now: calls under way and later ones answer an error until [`SimDevice::crash`].
    pub fn cut_power(&self) {
        self.state.lock().faults.power_is_off = true;
    }

    /// True after the call at which power failed.
    pub fn power_is_off(&self) -> bool {
        self.state.lock().faults.power_is_off
    }

    /// Cuts the power now (if it has not failed yet), decides by `seed` what the cache's writes
    /// become, and powers on again. Faults that wait are forgotten, rot stays. How many cached
    /// blocks reached the medium, whole or in part.
    pub fn crash(&self, seed: u64) -> usize {
        let state = &mut *self.state.lock();
        let unreadable = std::mem::take(&mut state.faults.unreadable);
        state.faults = Faults { unreadable, ..Faults::default() };
        state.store.crash(&mut Rng::new(seed))
    }

    /// What `crash(seed)` would make of this device, as a new one; this one is left as it is.
    pub fn after_crash(&self, seed: u64) -> SimDevice {
        let mut store = self.state.lock().store.clone();
        store.crash(&mut Rng::new(seed));
        SimDevice::over(store, self.block_count(), seed, self.name.clone())
    }

    /// Reads of `block` fail until it is written again.
    pub fn make_unreadable(&self, block: u64) {
        self.state.lock().faults.unreadable.insert(block);
    }

    /// The next `count` writes fail.
    pub fn fail_writes(&self, count: u32) {
        self.state.lock().faults.failing_writes = count;
    }

    /// The next `count` flushes fail.
    pub fn fail_flushes(&self, count: u32) {
        self.state.lock().faults.failing_flushes = count;
    }

    /// The next `count` writes are acknowledged and never happen: stale blocks stay.
    pub fn lose_writes(&self, count: u32) {
        self.state.lock().faults.lost_writes = count;
    }

    /// The next write lands `by` blocks further on (around the end) and is acknowledged.
    pub fn misdirect_write(&self, by: u64) {
        self.state.lock().faults.misdirected_by = Some(by);
    }

    /// Every call answers an error from now on (`false`: the device is back, as it was).
    pub fn vanish(&self, gone: bool) {
        self.state.lock().faults.vanished = gone;
    }

    /// Flips one bit of a block on the medium.
    pub fn flip_bit(&self, block: u64, bit: usize) {
        self.state.lock().store.rot(block, |bytes| {
            if let Some(byte) = bytes.0.get_mut(bit / 8) {
                *byte ^= 1 << (bit % 8);
            }
        });
    }

    /// Flips one bit in each of `count` stored blocks at or above `from`; which blocks.
    pub fn rot(&self, seed: u64, count: usize, from: u64) -> Vec<u64> {
        let mut rng = Rng::new(seed);
        let stored: Vec<u64> = self.stored_blocks().into_iter().filter(|&at| at >= from).collect();
        let mut hit = BTreeSet::new();
        while hit.len() < count.min(stored.len()) {
            let Some(&block) = stored.get(rng.index(stored.len())) else {
                break;
            };
            if hit.insert(block) {
                self.flip_bit(block, rng.index(super::BLOCK_BYTES * 8));
            }
        }
        hit.into_iter().collect()
    }

    /// Numbers of the durable blocks that are not zeros, ascending.
    pub fn stored_blocks(&self) -> Vec<u64> {
        self.state.lock().store.stored().map(|(at, _)| at).collect()
    }

    /// A digest of everything durable.
    pub fn digest(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for (at, block) in self.state.lock().store.stored() {
            hasher.update(&at.to_le_bytes());
            hasher.update(&block.0);
        }
        hasher.finalize()
    }

    /// Counts a call and lets the hook see it. What comes back is how many writes were waiting when
    /// it began. An error: the device was not there then.
    fn begin(&self, event: &mut IoEvent) -> io::Result<usize> {
        check_range(self, event.first, event.count)?;
        let waiting = {
            let state = &mut *self.state.lock();
            state.calls += 1;
            event.number = state.calls;
            state.faults.refuse()?;
            if state.faults.power_fails_at.is_some_and(|call| state.calls >= call) {
                state.faults.power_is_off = true;
                return Ok(state.store.pending());
            }
            state.store.pending()
        };
        self.tell(event);
        Ok(waiting)
    }

    fn end(&self, event: &IoEvent) {
        self.tell(&IoEvent { done: true, ..*event });
    }

    fn tell(&self, event: &IoEvent) {
        let hook = self.hook.lock().clone();
        if let Some(hook) = hook {
            hook(event);
        }
    }
}

impl Faults {
    /// The error of a device that is not there.
    fn refuse(&self) -> io::Result<()> {
        match (self.power_is_off, self.vanished) {
            (true, _) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "the power is off")),
            (_, true) => Err(io::Error::new(io::ErrorKind::NotConnected, "the device is gone")),
            _ => Ok(()),
        }
    }
}

impl State {
    /// Does a write with whatever fault waits for one.
    fn write(&mut self, first: u64, data: &[&Block], device_blocks: u64) -> io::Result<()> {
        if let Err(e) = self.faults.refuse() {
            self.store.write_in_flight(first, data);
            return Err(e);
        }
        if take_one(&mut self.faults.failing_writes) {
            self.store.fail_write(first, data, &mut self.rng);
            return Err(io::Error::other("simulated write error"));
        }
        let count = data.len() as u64;
        (first..first + count).for_each(|at| {
            self.faults.unreadable.remove(&at);
        });
        if take_one(&mut self.faults.lost_writes) {
            return Ok(());
        }
        let by = self.faults.misdirected_by.take().unwrap_or(0);
        let room = device_blocks.saturating_sub(count) + 1;
        self.store.write(first.wrapping_add(by) % room, data);
        Ok(())
    }

    fn flush(&mut self, waiting: usize) -> io::Result<()> {
        self.faults.refuse()?;
        if take_one(&mut self.faults.failing_flushes) {
            self.store.fail_flush(&mut self.rng);
            return Err(io::Error::other("simulated flush error"));
        }
        self.store.flush(waiting);
        Ok(())
    }

    fn read(&self, first: u64, out: &mut [Box<Block>]) -> io::Result<()> {
        self.faults.refuse()?;
        let end = first + out.len() as u64;
        if self.faults.unreadable.range(first..end).next().is_some() {
            return Err(io::Error::other("simulated medium error"));
        }
        for (at, block) in (first..).zip(out) {
            self.store.read(at, block);
        }
        Ok(())
    }
}

impl BlockDevice for SimDevice {
    fn block_count(&self) -> u64 {
        self.blocks.load(Ordering::Acquire)
    }

    fn read(&self, first: u64, out: &mut [Box<Block>]) -> io::Result<()> {
        // Whoever trusts these bytes after an error is found out.
        out.iter_mut().for_each(|block| block.0.fill(0xDB));
        let mut event = event(IoKind::Read, first, out.len() as u64);
        self.begin(&mut event)?;
        self.counters.read(out.len());
        self.state.lock().read(first, out)?;
        self.end(&event);
        Ok(())
    }

    fn write(&self, first: u64, data: &[&Block]) -> io::Result<()> {
        let mut event = event(IoKind::Write, first, data.len() as u64);
        self.begin(&mut event)?;
        self.counters.wrote(data.len());
        self.state.lock().write(first, data, self.block_count())?;
        self.end(&event);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let mut event = event(IoKind::Flush, 0, 0);
        let waiting = self.begin(&mut event)?;
        self.state.lock().flush(waiting)?;
        self.counters.flushed();
        self.end(&event);
        Ok(())
    }

    fn discard(&self, first: u64, count: u64) -> io::Result<()> {
        let mut event = event(IoKind::Discard, first, count);
        self.begin(&mut event)?;
        self.counters.discarded(count);
        let state = &mut *self.state.lock();
        state.faults.refuse()?;
        state.store.discard(first, count);
        Ok(())
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

fn event(kind: IoKind, first: u64, count: u64) -> IoEvent {
    IoEvent { number: 0, kind, first, count, done: false }
}

/// Takes one off a count of things to come; whether there was one.
fn take_one(count: &mut u32) -> bool {
    let was = *count;
    *count = was.saturating_sub(1);
    was > 0
}

#[cfg(test)]
mod tests;
