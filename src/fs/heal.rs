//! Every copy of a block: which are good, and rewriting those that are not.
//!
//! Rules:
//! - whoever heals holds a pin (or the lock under which the block cannot be given away), taken
//!   before the pointer was found: a block that may have another owner is never rewritten;
//! - what is written is what the pointer's checksum names, so healing twice does no harm;
//! - a copy that cannot be rewritten fails nobody: the reader has its bytes, and the copy is
//!   reported as bad. It is not latched either: the copy was bad before.

use super::error::{Error, Result};
use super::planted::{planted, Mutation};
use super::store::{Data, Store};
use crate::device::Block;
use fs_layout::Pointer;
use std::sync::atomic::Ordering;
use std::sync::Arc;

/// Where a copy of a block is: device of the pool, block of that device.
pub(crate) type Copy = (u16, u64);

/// What was found of a block by reading all its copies.
#[derive(Default)]
pub(crate) struct Verdict {
    /// Its bytes, if any copy is good (or the cache had it).
    pub good: Option<Box<Block>>,
    /// Copies that were bad and were rewritten.
    pub healed: Vec<Copy>,
    /// Copies that are bad.
    pub bad: Vec<Copy>,
    /// Why one of them could not be read at all.
    pub failure: Option<Error>,
}

impl Verdict {
    /// The bytes, or why there are none.
    fn bytes(self, block: u64) -> Result<Box<Block>> {
        let why = self.failure.unwrap_or(Error::Corrupt { block, file_offset_bytes: None });
        self.good.ok_or(why)
    }
}

/// Blocks verified with one read of each copy.
pub(crate) const VERIFY_RUN: usize = 64;

fn matches(p: &Pointer, bytes: &Block) -> bool {
    crc32c::crc32c(&bytes.0) == p.crc || planted(Mutation::HealsFromAnyCopy)
}

impl Store {
    /// Reads every copy of a block from its device, and rewrites the bad ones from a good one.
    /// Under a pin.
    pub fn verify(&self, p: &Pointer) -> Result<Verdict> {
        let mut all = self.verify_run(std::slice::from_ref(p))?;
        Ok(all.pop().unwrap_or_default())
    }

    /// As `verify`, for consecutive blocks (at most [`VERIFY_RUN`] are read at once).
    pub fn verify_run(&self, pointers: &[Pointer]) -> Result<Vec<Verdict>> {
        let mut out = Vec::with_capacity(pointers.len());
        while let Some(first) = pointers.get(out.len()) {
            let left = (pointers.len() - out.len()).min(VERIFY_RUN);
            let (copies, n) = self.locate(first.block, left as u64)?;
            let part = &pointers[out.len()..out.len() + n as usize];
            out.extend(self.verify_part(part, &copies));
        }
        Ok(out)
    }

    /// Blocks that all lie in the same run of the segment map.
    fn verify_part(&self, pointers: &[Pointer], copies: &[Copy]) -> Vec<Verdict> {
        let mut found: Vec<Verdict> = pointers.iter().map(|_| Verdict::default()).collect();
        for (device, at) in copies {
            let reads = self.read_each(*device, *at, pointers.len());
            for (i, (read, v)) in reads.into_iter().zip(&mut found).enumerate() {
                match read {
                    Ok(bytes) if matches(&pointers[i], &bytes) => v.good = Some(bytes),
                    Ok(_) => v.bad.push((*device, at + i as u64)),
                    Err(e) => {
                        v.failure = Some(e);
                        v.bad.push((*device, at + i as u64));
                    }
                }
            }
        }
        for (p, v) in pointers.iter().zip(&mut found) {
            if v.good.is_none() {
                // What memory holds is as good as a copy, if memory has kept it.
                let cached = self.cached(p).filter(|d| matches(p, &d.bytes));
                v.good = cached.map(|d| d.bytes.clone());
            }
        }
        for (device, _) in copies {
            self.heal(*device, &mut found);
        }
        found
    }

    /// Each of `count` blocks of a device: in one call if that succeeds, else one by one.
    fn read_each(&self, device: u16, at: u64, count: usize) -> Vec<Result<Box<Block>>> {
        let mut raw: Vec<_> = (0..count).map(|_| Block::zeroed()).collect();
        match self.read_device(device, at, &mut raw) {
            Ok(()) => raw.into_iter().map(Ok).collect(),
            Err(e) if count == 1 => vec![Err(e)],
            Err(_) => (at..at + count as u64)
                .map(|b| {
                    let mut one = [Block::zeroed()];
                    self.read_device(device, b, &mut one)?;
                    let [one] = one;
                    Ok(one)
                })
                .collect(),
        }
    }

    /// Rewrites what is bad on one device and good elsewhere, neighbours in one call.
    fn heal(&self, device: u16, found: &mut [Verdict]) {
        let bad_at = |v: &Verdict| {
            let place = v.bad.iter().find(|c| c.0 == device && v.good.is_some());
            place.map(|c| c.1)
        };
        let mut start = 0;
        while start < found.len() {
            let Some(first) = bad_at(&found[start]) else {
                start += 1;
                continue;
            };
            let more = found[start..].iter().take_while(|v| bad_at(v).is_some()).count();
            let data: Vec<&Block> =
                found[start..start + more].iter().filter_map(|v| v.good.as_deref()).collect();
            if self.rewrite(device, first, &data) {
                for v in &mut found[start..start + more] {
                    let place = v.bad.iter().position(|c| c.0 == device);
                    if let Some(i) = place {
                        v.healed.push(v.bad.remove(i));
                    }
                }
            }
            start += more;
        }
    }

    /// Writes good bytes over bad ones; whether it could.
    pub fn rewrite(&self, device: u16, at: u64, data: &[&Block]) -> bool {
        let n = data.len() as u64;
        if !self.heals.load(Ordering::Relaxed) {
            return false;
        }
        let written = self.check_latch().is_ok()
            && self.device(device).is_ok_and(|d| d.write(at, data).is_ok());
        if written {
            // One that is being filled has nothing to be healed.
            let counter = self.counters.healed_blocks.get(usize::from(device));
            if let Some(counter) = counter.filter(|_| self.members.now().readable(device).is_some())
            {
                counter.fetch_add(n, Ordering::Relaxed);
            }
            self.counters.blocks_written.fetch_add(n, Ordering::Relaxed);
        }
        written
    }

    /// Bad copies on a device that were rewritten since the pool was opened.
    pub(super) fn healed_on(&self, slot: u16) -> u64 {
        let counter = self.counters.healed_blocks.get(usize::from(slot));
        counter.map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// A block whose first copy was bad, from another one; the bad one is healed.
    pub(super) fn read_healing(&self, p: &Pointer) -> Result<Arc<Data>> {
        let verdict = self.verify(p)?;
        if verdict.good.is_none() {
            self.counters.checksum_errors.fetch_add(1, Ordering::Relaxed);
        }
        Ok(self.keep(p, verdict.bytes(p.block)?))
    }
}
