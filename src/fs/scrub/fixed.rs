//! What no pointer names: pages of the free-space map, the log, and the copies of labels, roots and
//! segment map on each device. Memory knows all of it, so even without a second copy most of it can
//! be written anew: by the consistency point that [`Found::renew`] asks for.

use super::{Found, Owner, Part, Phase, Walk};
use crate::device::{Block, BLOCK_BYTES};
use crate::fs::core::{Core, CpState};
use crate::fs::error::Result;
use crate::fs::heal::{Copy, Verdict, VERIFY_RUN};
use crate::fs::store::Pick;
use fs_layout::{
    GroupHead, Root, SegmentMapPage, LABEL_PLACES, ROOT_COPIES, ROOT_SLOTS, RUNS_PER_PAGE,
    SEGMENT_MAP_BASE,
};
use std::sync::atomic::Ordering;

/// A place in the chain of groups: where the next head is, its number, what it must follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChainPlace {
    block: u64,
    number: u64,
    seed: [u8; 32],
}

impl Core {
    /// A piece of the pages that the last consistency point wrote.
    pub(super) fn walk_space(&self, w: &mut Walk, budget: u64, found: &mut Found) -> Result<()> {
        let Some(_cp) = self.lock_unless_alone(&self.cp) else { return Ok(()) };
        let Some(pages) = self.space.pages(w.at.block, budget) else { return Ok(()) };
        if pages.is_empty() {
            w.enter(Phase::Log);
            return Ok(());
        }
        for page in pages {
            w.at.block += 1;
            let Some(pointer) = page.pointer else { continue };
            let mut verdict = self.store.verify(&pointer)?;
            if verdict.good.is_none() && self.space.renew(&self.store, page.region) {
                // The next consistency point writes it into its other place.
                self.renewed(found, &mut verdict);
            }
            found.note(Owner::pool(Part::Space), pointer.block, &verdict);
        }
        Ok(())
    }

    /// A piece of the chain of groups, as far as it was written when the walk came to it.
    pub(super) fn walk_log(&self, w: &mut Walk, budget: u64, found: &mut Found) -> Result<()> {
        let Some(cp) = self.lock_unless_alone(&self.cp) else { return Ok(()) };
        // What is written does not change, and is released under the lock that is held: the log's
        // own lock is not needed any longer.
        let Some(written) = self.lock_unless_alone(&self.log).map(|log| log.written) else {
            return Ok(());
        };
        if w.at.ino == 0 {
            w.at.ino = written + 1;
        }
        let begin = ChainPlace {
            block: cp.root.next_group_block,
            number: cp.root.next_group,
            seed: cp.root.group_seed,
        };
        let mut at = w.chain.filter(|c| c.number >= begin.number).unwrap_or(begin);
        let end = found.examined_blocks + budget;
        while at.number < w.at.ino && at.number <= written && found.examined_blocks < end {
            match self.walk_group(&at, found)? {
                Some(next) => at = next,
                None => {
                    at.number = w.at.ino;
                }
            }
        }
        w.chain = Some(at);
        if at.number >= w.at.ino || at.number > written {
            w.enter(Phase::Fixed);
        }
        Ok(())
    }

    /// Verifies a group's head and payload; where the next one is. `None`: no copy of the head is
    /// good.
    fn walk_group(&self, at: &ChainPlace, found: &mut Found) -> Result<Option<ChainPlace>> {
        let owner = Owner::pool(Part::Log);
        let decode = |raw: &Block| {
            let head = GroupHead::decode(&raw.0, &at.seed).ok();
            head.filter(|(head, _)| head.number == at.number)
        };
        let (copies, _) = self.store.locate(at.block, 1)?;
        let mut verdict = self.judge(&copies, None, |raw| decode(raw).is_some());
        let next = verdict.good.as_ref().and_then(|raw| decode(raw));
        if next.is_none() {
            // A consistency point cuts off what cannot be followed any more.
            self.renewed(found, &mut verdict);
        }
        found.note(owner, at.block, &verdict);
        let Some((head, seed)) = next else { return Ok(None) };
        let block = head.next_block;
        self.walk_payload(&head, found)?;
        Ok(Some(ChainPlace { block, number: at.number + 1, seed }))
    }

    /// A payload's checksum is that of the whole: each copy is judged as one.
    fn walk_payload(&self, head: &GroupHead, found: &mut Found) -> Result<()> {
        let mut copies = 0;
        for (block, _) in &head.extents {
            copies = copies.max(self.store.locate(*block, 1)?.0.len());
        }
        let sound: Vec<bool> = (0..copies).map(|c| self.payload_is_whole(head, c)).collect();
        let good = sound.iter().position(|s| *s);
        for (first, count) in &head.extents {
            for block in *first..first + count {
                let (places, _) = self.store.locate(block, 1)?;
                let mut verdict = Verdict::default();
                match good {
                    Some(_) if sound.iter().all(|s| *s) => verdict.good = Some(Block::zeroed()),
                    Some(good) => {
                        let raw = self.read_place(places[good % places.len()]);
                        verdict = self.judge(&places, raw.ok(), |_| false);
                    }
                    None => {
                        verdict.bad = places;
                        self.renewed(found, &mut verdict);
                    }
                }
                found.note(Owner::pool(Part::Log), block, &verdict);
            }
        }
        Ok(())
    }

    fn payload_is_whole(&self, head: &GroupHead, copy: usize) -> bool {
        let (mut crc, mut left) = (0, head.payload_bytes as usize);
        for (first, count) in &head.extents {
            for at in (*first..first + count).step_by(VERIFY_RUN) {
                let n = (first + count - at).min(VERIFY_RUN as u64);
                let mut raw: Vec<_> = (0..n).map(|_| Block::zeroed()).collect();
                if self.store.read_copy(Pick::Kept(copy), at, &mut raw).is_err() {
                    return false;
                }
                for b in &raw {
                    let part = left.min(BLOCK_BYTES);
                    crc = crc32c::crc32c_append(crc, &b.0[..part]);
                    left -= part;
                }
            }
        }
        left == 0 && crc == head.payload_crc
    }

    fn read_place(&self, (device, at): Copy) -> Result<Box<Block>> {
        let mut raw = [Block::zeroed()];
        self.store.read_device(device, at, &mut raw)?;
        let [raw] = raw;
        Ok(raw)
    }

    /// Judges copies that should all be the same block. `known` is that block, where it is known;
    /// else the first copy that `is_good` is. What differs is rewritten.
    fn judge(
        &self,
        copies: &[Copy],
        known: Option<Box<Block>>,
        is_good: impl Fn(&Block) -> bool,
    ) -> Verdict {
        let mut verdict = Verdict { good: known, ..Verdict::default() };
        let mut different = Vec::new();
        for copy in copies {
            match self.read_place(*copy) {
                Ok(raw) => {
                    if verdict.good.is_none() && is_good(&raw) {
                        verdict.good = Some(raw);
                    } else {
                        different.push((*copy, Some(raw)));
                    }
                }
                Err(e) => {
                    verdict.failure = Some(e);
                    different.push((*copy, None));
                }
            }
        }
        for (copy, raw) in different {
            let same = |good: &Block| raw.as_ref().is_some_and(|r| r.0 == good.0);
            match verdict.good.as_ref() {
                Some(good) if same(good) => {}
                Some(good) if self.store.rewrite(copy.0, copy.1, &[good]) => {
                    verdict.healed.push(copy)
                }
                _ => verdict.bad.push(copy),
            }
        }
        verdict
    }

    /// The copies of labels, roots and segment map on every device.
    pub(super) fn walk_fixed(&self, w: &mut Walk, found: &mut Found) -> Result<()> {
        let Some(_map) = self.lock_unless_alone(&self.rebalance) else { return Ok(()) };
        let Some(cp) = self.lock_unless_alone(&self.cp) else { return Ok(()) };
        self.walk_labels(found);
        self.walk_roots(&cp, found);
        self.walk_segment_map(&cp, found);
        w.enter(Phase::Done);
        Ok(())
    }

    fn on_all_devices(&self, at: u64) -> Vec<Copy> {
        self.store.members.now().all_written().map(|(slot, _)| (slot, at)).collect()
    }

    /// What the labels say is in memory.
    fn walk_labels(&self, found: &mut Found) {
        for verdict in self.store.mend_labels() {
            found.note(Owner::pool(Part::Label), LABEL_PLACES[0], &verdict);
        }
    }

    fn walk_roots(&self, cp: &CpState, found: &mut Found) {
        let hash_of = |raw: &Block| Root::decode(&raw.0).ok().map(|(_, hash)| hash);
        for slot in 0..ROOT_SLOTS {
            let is_newest = slot == cp.root_slot;
            let hash = if is_newest { cp.root_hash } else { cp.root.previous };
            let copies: Vec<Copy> =
                ROOT_COPIES.iter().flat_map(|at| self.on_all_devices(at + slot)).collect();
            let mut known = None;
            let mut raw = Block::zeroed();
            // Memory may be ahead of the disk; its hash tells.
            if is_newest && cp.root.encode(&mut raw.0) == hash {
                known = Some(raw);
            }
            let never_written = |c: &Copy| self.read_place(*c).is_ok_and(|r| r.0 == [0; 4096]);
            // The first root of all has none before it.
            let none_before = hash == [0; 32] || copies.iter().all(never_written);
            if !is_newest && none_before {
                continue;
            }
            let mut verdict = self.judge(&copies, known, |raw| hash_of(raw) == Some(hash));
            if verdict.good.is_none() {
                // The consistency points to come write both slots.
                self.renewed(found, &mut verdict);
            }
            found.note(Owner::pool(Part::Root), ROOT_COPIES[0] + slot, &verdict);
        }
    }

    fn walk_segment_map(&self, cp: &CpState, found: &mut Found) {
        let map = self.store.segment_map();
        for (i, (crc, place)) in cp.root.segment_map.iter().enumerate() {
            if *place > 1 {
                continue;
            }
            let at = SEGMENT_MAP_BASE + 2 * i as u64 + u64::from(*place);
            let mut raw = Block::zeroed();
            if let Some(runs) = map.chunks(RUNS_PER_PAGE).nth(i) {
                SegmentMapPage { runs: runs.to_vec() }.encode(&mut raw.0);
            }
            let known = Some(raw).filter(|raw| crc32c::crc32c(&raw.0) == *crc);
            let is_good = |raw: &Block| crc32c::crc32c(&raw.0) == *crc;
            let verdict = self.judge(&self.on_all_devices(at), known, is_good);
            found.note(Owner::pool(Part::SegmentMap), at, &verdict);
        }
    }

    /// No copy is good, but consistency points write anew what is needed of it.
    fn renewed(&self, found: &mut Found, verdict: &mut Verdict) {
        if self.store.heals.load(Ordering::Relaxed) {
            found.renew = true;
            verdict.healed.append(&mut verdict.bad);
        }
    }

    /// Runs the consistency points that write anew what had no good copy: two, for both slots of
    /// the root.
    /// False: not now, another call of this thread is in the way.
    pub(super) fn renew(&self) -> Result<bool> {
        let before = self.cp_count.load(Ordering::Relaxed);
        self.consistency_point_forced()?;
        self.consistency_point_forced()?;
        Ok(self.cp_count.load(Ordering::Relaxed) >= before + ROOT_SLOTS)
    }
}
