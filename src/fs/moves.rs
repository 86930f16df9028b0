//! Carrying out a plan for the segment map, step by step, while the pool is used.
//!
//! A copy moves so: from now on every write to its segments goes to the new place too; what is in
//! use there is copied from the copy that moves, a piece at a time, under the locks of all writers;
//! then a consistency point writes a root with the new map, while writes still go to both places.
//! So whichever root a crash leaves, its map leads to everything. Rot is moved as it is, and the
//! other copy stays to heal it: bad blocks are copied from the other copy only where they cannot
//! be read.
//!
//! Rules:
//! - a place that a step gave up is used again only when the root without it is durable and the
//!   readers that may have found it are gone;
//! - all writes to pool blocks are made under `cp` or `log`, but healing, which holds a pin;
//! - nothing of a plan is kept on disk but the map itself and which devices leave: whoever opens
//!   the pool after a crash plans anew.

use super::core::{Core, CpState, BELL_BALANCE};
use super::error::{Error, Result};
use super::rebalance::{self, apply, Present, Refusal, Step};
use super::recovery::MAX_BLOCKS;
use super::roots::write_segment_map;
use super::segments::{class_of, redundancy_of};
use super::space::Run;
use super::types::*;
use crate::device::{Block, BLOCK_BYTES};
use fs_layout::{MemberRecord, MemberState, SegmentRun, SEGMENT_BLOCKS};
use std::collections::VecDeque;
use std::time::Duration;

/// Blocks copied while writers wait: 1 MiB.
const PIECE_BLOCKS: u64 = 256;
/// Segments copied between two consistency points: 32 MiB.
pub(crate) const STEP_SEGMENTS: u64 = 16;
/// Between two steps clients have the devices for themselves.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// After so long it is looked whether a device is back.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// Segments that come into service again, or go out of it, at once: their bits are set one by one.
const MAX_BITS: u64 = 1024;
const SEGMENT_BYTES: u64 = SEGMENT_BLOCKS * BLOCK_BYTES as u64;

/// What is left of a plan.
#[derive(Default)]
pub(crate) struct Work {
    steps: VecDeque<Step>,
    /// Segments copied and to be copied since there was a plan last.
    moved: u64,
    to_move: u64,
    /// Copies were moved, unchecked, since the last scrub that this began.
    scrub_due: bool,
    /// Readers of this epoch may still read places that the last step gave up.
    given_up_in: Option<u64>,
    /// The map as the last step left it, and the generation of the labels: what the steps are for.
    planned_for: (Vec<SegmentRun>, u64),
}

/// Runs in the background: what labels and map left to be done, then what is asked for.
pub(crate) fn in_background(core: &Core) {
    while !core.bell.is_stopped() {
        let began = std::time::Instant::now();
        let step = core.rebalance_step(STEP_SEGMENTS);
        let goes_on = matches!(&step, Ok(now) if !now.is_done && !now.is_waiting);
        core.note_rebalance(step);
        if goes_on {
            // As long as it took: clients have half of the devices' time.
            core.bell.wait(0, began.elapsed().min(LONGEST_PAUSE));
        } else {
            core.bell.wait(BELL_BALANCE, CHECK_INTERVAL);
        }
    }
}

impl Work {
    pub fn progress(&self) -> Rebalance {
        Rebalance {
            moved_bytes: self.moved * SEGMENT_BYTES,
            to_move_bytes: self.to_move * SEGMENT_BYTES,
            ..Rebalance::default()
        }
    }
}

/// Segments that a step moves.
fn copies(step: &Step) -> u64 {
    match step {
        Step::Move { count, .. } => *count,
        _ => 0,
    }
}

impl Core {
    /// What would be done now.
    pub fn plan_rebalance(&self, leaving: &[bool], usable: &[u64]) -> Result<Planned> {
        let map = self.store.segment_map();
        let present = Present {
            redundancy: redundancy_of(&map),
            map: &map,
            end: self.space.blocks() / SEGMENT_BLOCKS,
            usable,
            leaving,
            // What cannot be read cannot be taken out of service.
            is_free: &|segment| self.space.is_idle(&self.store, segment).unwrap_or(false),
        };
        let steps = rebalance::plan(&present).map_err(refused)?;
        let (segments, moved) = rebalance::outcome(&present, &steps);
        Ok(Planned {
            steps,
            size_bytes: segments * SEGMENT_BYTES,
            moved_bytes: moved * SEGMENT_BYTES,
        })
    }

    /// Does a part of what is to be done, of at most `segments` segments copied. Without background
    /// threads it may be that nothing could be done just now.
    pub fn rebalance_step(&self, segments: u64) -> Result<Rebalance> {
        let Some(mut work) = self.lock_unless_alone(&self.rebalance) else {
            return Ok(Rebalance::default());
        };
        self.writable()?;
        let Some((usable, leaving)) = self.balanced_devices() else {
            work.steps.clear();
            return Ok(Rebalance { is_waiting: true, ..work.progress() });
        };
        if work.planned_for != self.planned_now() {
            work.steps.clear();
        }
        if work.steps.is_empty() {
            self.take_over_mapped()?;
            work.steps = self.plan_rebalance(&leaving, &usable)?.steps.into();
            (work.moved, work.to_move) = (0, work.steps.iter().map(copies).sum());
            work.planned_for = self.planned_now();
        }
        if !self.places_are_free(&mut work) {
            return Ok(work.progress());
        }
        let Some(step) = work.steps.pop_front() else {
            self.drop_emptied()?;
            if std::mem::take(&mut work.scrub_due) {
                self.scrub_start()?;
            }
            return Ok(Rebalance { is_done: true, ..work.progress() });
        };
        let (now, rest) = step.clone().split(self.at_once(&step, segments));
        match self.carry_out(&now, &mut work) {
            Ok(true) => {
                work.moved += copies(&now);
                work.scrub_due |= copies(&now) > 0;
                rest.into_iter().for_each(|rest| work.steps.push_front(rest));
            }
            // Something was allocated there meanwhile: there must be another plan.
            Ok(false) if matches!(step, Step::Unmap { .. }) => work.steps.clear(),
            Ok(false) => work.steps.push_front(step),
            Err(e) => {
                work.steps.clear();
                return Err(e);
            }
        }
        work.planned_for = self.planned_now();
        Ok(work.progress())
    }

    /// The map and the labels' generation: with other ones a plan is void.
    fn planned_now(&self) -> (Vec<SegmentRun>, u64) {
        (self.store.segment_map(), self.store.members.now().label.generation)
    }

    /// How far the background is, and why it stopped.
    pub fn rebalance_status(&self) -> Result<Rebalance> {
        self.rebalance_said.lock().clone()
    }

    fn note_rebalance(&self, said: Result<Rebalance>) {
        *self.rebalance_said.lock() = said;
    }

    /// There is something to do: by the background, if there is one.
    pub fn begin_rebalance(&self) {
        self.note_rebalance(Ok(Rebalance::default()));
        self.bell.ring(BELL_BALANCE);
    }

    fn at_once(&self, step: &Step, segments: u64) -> u64 {
        match step {
            Step::Move { .. } => segments.max(1),
            Step::New { logical, .. } if logical * SEGMENT_BLOCKS >= self.space.blocks() => {
                u64::MAX
            }
            Step::New { .. } | Step::Unmap { .. } => MAX_BITS,
        }
    }

    /// Are the readers gone that may read what the last step gave up?
    fn places_are_free(&self, work: &mut Work) -> bool {
        let Some(epoch) = work.given_up_in else { return true };
        while self.pins.is_pinned(epoch, self.now()) {
            if !self.limits.background {
                return false;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        work.given_up_in = None;
        true
    }

    /// False: not now.
    fn carry_out(&self, step: &Step, work: &mut Work) -> Result<bool> {
        match step {
            Step::New { logical, count, .. } if (logical + count) * SEGMENT_BLOCKS > MAX_BLOCKS => {
                Err(Error::Invalid("a pool holds at most 2 PiB"))
            }
            Step::New { logical, count, .. } if logical * SEGMENT_BLOCKS >= self.space.blocks() => {
                self.append(step, logical + count)
            }
            Step::New { logical, count, .. } => {
                let readmit = || self.space.readmit(&self.store, *logical, *count).map(|()| true);
                Ok(self.change_map(step, readmit)? && {
                    self.space.put_in_service(&self.store, *logical, *count)?;
                    true
                })
            }
            Step::Unmap { logical, count } => {
                let retire = || self.space.retire(&self.store, *logical, *count);
                self.change_map(step, retire)
            }
            Step::Move { logical, count, from, to } => {
                self.move_copies(step, (*logical, *count), *from, *to, work)
            }
        }
    }

    fn append(&self, step: &Step, end: u64) -> Result<bool> {
        let old = self.space.blocks();
        let extend = || self.space.extend(&self.store, end * SEGMENT_BLOCKS).map(|()| true);
        Ok(self.change_map(step, extend)? && {
            self.space.publish(&self.store, old)?;
            true
        })
    }

    /// A growth that an earlier version did not finish mapped more than the pool has.
    fn take_over_mapped(&self) -> Result<()> {
        let old = self.space.blocks();
        let map = self.store.segment_map();
        let end = map.last().map_or(0, |run| run.logical + run.count) * SEGMENT_BLOCKS;
        let extend = |_: &mut CpState| self.space.extend(&self.store, end).map(|()| true);
        if end > old && self.consistency_point_with(extend)? {
            self.space.publish(&self.store, old)?;
        }
        Ok(())
    }

    /// Makes a root with the map as a step leaves it. `book` does what belongs to it in the
    /// bitmaps; false: the step cannot be done.
    fn change_map(&self, step: &Step, book: impl FnOnce() -> Result<bool>) -> Result<bool> {
        self.consistency_point_with(|cp| {
            if !book()? {
                return Ok(false);
            }
            let map = self.map_after(step);
            self.name_map(cp, &map)?;
            self.store.set_segment_map(map);
            Ok(true)
        })
    }

    fn map_after(&self, step: &Step) -> Vec<SegmentRun> {
        let map = self.store.segment_map();
        apply(&map, class_of(redundancy_of(&map)), step)
    }

    /// Writes the map's pages, for the next root. What was half done then is not undone.
    fn name_map(&self, cp: &mut CpState, map: &[SegmentRun]) -> Result<()> {
        write_segment_map(&self.store, map, &mut cp.root.segment_map)
            .map_err(|e| self.store.set_latch(format!("the segment map was not written: {e}")))
    }

    fn move_copies(
        &self,
        step: &Step,
        (logical, count): (u64, u64),
        from: (u16, u64),
        to: (u16, u64),
        work: &mut Work,
    ) -> Result<bool> {
        let generation = self.store.members.now().label.generation;
        if !self.write_beside(Some((logical, count, to))) {
            return Ok(false);
        }
        let copied = (0..count).try_fold(true, |done, i| {
            let segment = logical + i;
            let places = ((from.0, from.1 + i), (to.0, to.1 + i));
            Ok::<bool, Error>(done && self.copy_segment(segment, places)?)
        });
        if !matches!(copied, Ok(true)) {
            self.write_beside(None);
            return copied;
        }
        let mut given_up_in = 0;
        let moved = self.consistency_point_with(|cp| {
            let map = self.map_after(step);
            let pages = cp.root.segment_map;
            self.name_map(cp, &map)?;
            given_up_in = self.now();
            // A device that failed meanwhile has not got everything, even if it is back.
            let switched = self.store.while_unchanged(generation, || {
                // At once for both, so that every write finds all three places, before as after.
                self.store.set_beside(Some(map), Some((logical, count, from)));
            });
            if !switched {
                cp.root.segment_map = pages;
            }
            Ok(switched)
        });
        if matches!(moved, Ok(true)) {
            work.given_up_in = Some(given_up_in);
        }
        self.write_beside(None);
        moved
    }

    /// Every write to these segments that begins from now on goes to (device, first segment) too.
    fn write_beside(&self, range: Option<(u64, u64, (u16, u64))>) -> bool {
        let cp = self.lock_unless_alone(&self.cp);
        let log = cp.as_ref().and_then(|_| self.lock_unless_alone(&self.log));
        // One that drives the pool alone is within a write of its own: it is not another's.
        if log.is_none() && range.is_some() {
            return false;
        }
        self.store.set_beside(None, range);
        true
    }

    fn copy_segment(&self, segment: u64, (from, to): ((u16, u64), (u16, u64))) -> Result<bool> {
        for (first, count) in self.space.in_use(&self.store, segment)? {
            let mut done = 0;
            while done < count {
                let n = (count - done).min(PIECE_BLOCKS);
                let into = first + done - segment * SEGMENT_BLOCKS;
                let at = |place: (u16, u64)| (place.0, place.1 * SEGMENT_BLOCKS + into);
                let Some(_cp) = self.lock_unless_alone(&self.cp) else { return Ok(false) };
                let Some(_log) = self.lock_unless_alone(&self.log) else { return Ok(false) };
                self.copy_piece((first + done, n), at(from), at(to))?;
                done += n;
            }
        }
        Ok(true)
    }

    /// Copies blocks from one device's place to another's; blocks that cannot be read there come
    /// from another copy, and are left out where no copy can be read.
    fn copy_piece(&self, (block, count): Run, from: (u16, u64), to: (u16, u64)) -> Result<()> {
        let mut blocks: Vec<Box<Block>> = (0..count).map(|_| Block::zeroed()).collect();
        if self.store.read_device(from.0, from.1, &mut blocks).is_ok() {
            let blocks: Vec<&Block> = blocks.iter().map(|block| &**block).collect();
            return self.store.write_device(to.0, to.1, &blocks);
        }
        for i in 0..count {
            let mut one = [Block::zeroed()];
            let places = std::iter::once((from.0, from.1 + i));
            let mut places = places.chain(self.store.locate_readable(block + i, 1)?.0);
            if places.any(|(device, at)| self.store.read_device(device, at, &mut one).is_ok()) {
                self.store.write_device(to.0, to.1 + i, &[&one[0]])?;
            }
        }
        Ok(())
    }

    /// All of it: what devices have gained is mapped. By how many bytes the pool grew.
    pub fn rebalance_all(&self) -> Result<u64> {
        let before = self.space.figures().0;
        loop {
            let now = self.rebalance_step(STEP_SEGMENTS)?;
            if now.is_done || now.is_waiting {
                break;
            }
            self.consistency_point(false)?;
        }
        let after = self.space.figures().0;
        Ok(after.saturating_sub(before) * BLOCK_BYTES as u64)
    }

    /// Segments of each device that can be mapped, and which devices leave. `None`: while a device
    /// is missing or being filled nothing moves.
    pub fn balanced_devices(&self) -> Option<(Vec<u64>, Vec<bool>)> {
        let set = self.store.members.now();
        let map = self.store.segment_map();
        if !set.replacements().is_empty() {
            return None;
        }
        let (mut usable, mut leaving) = (Vec::new(), Vec::new());
        for (slot, entry) in (0..).zip(&set.label.devices) {
            let state = entry.member.state;
            if state == MemberState::Absent {
                usable.push(0);
            } else {
                set.readable(slot)?;
                usable.push(usable_of(&map, slot, &entry.member));
            }
            leaving.push(state == MemberState::Removing);
        }
        Some((usable, leaving))
    }
}

/// A label that says nothing of its devices' sizes allows what is mapped.
fn usable_of(map: &[SegmentRun], slot: u16, member: &MemberRecord) -> u64 {
    if member.segments > 0 {
        return u64::from(member.segments).saturating_sub(1);
    }
    let on = |run: &SegmentRun| run.members.iter().find(|m| m.0 == slot).map(|m| m.1 + run.count);
    map.iter().filter_map(on).max().unwrap_or(1) - 1
}

/// A plan with what it comes to.
pub(crate) struct Planned {
    pub steps: Vec<Step>,
    pub size_bytes: u64,
    pub moved_bytes: u64,
}

fn refused(refusal: Refusal) -> Error {
    match refusal {
        Refusal::NoPlace { needed, placed } => Error::NoRoomElsewhere {
            needed_bytes: needed * SEGMENT_BYTES,
            free_bytes: placed * SEGMENT_BYTES,
        },
        Refusal::MapFull => Error::Invalid("the segment map has no room for so many pieces"),
    }
}
