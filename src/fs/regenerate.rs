//! Devices that leave on purpose, come back, or are replaced, while the pool is in use.
//!
//! A device that comes back is *merging*, one that comes in another's place is *regenerating*: from
//! then on it is written and not read. A walk over all that the pool names (for one that comes back
//! over what was linked after the epoch it is good up to) then compares it with the others, copy by
//! copy, and rewrites what differs; only what is in use is copied. It is repeated where the only
//! copy of something could not be read. At the end the device is normal, and a scrub begins.
//!
//! Rules:
//! - a device joins while no group and no consistency point is being written, and a consistency
//!   point comes before the walk: what the walk does not find on disk is written after the joining;
//! - another one comes after the walk, before the device is normal: what memory had given up when
//!   the walk came there was not looked at, and a crash leads back to it while the durable root
//!   names it;
//! - what is linked somewhere behind the walk that was elsewhere before is walked there: a new
//!   snapshot has a number behind all others, and is written before the walk comes to it; a file
//!   that gets range clones is noted, and walked once more, its newer pointers;
//! - how far a walk is is not kept: it begins again after a crash, and whenever membership changes;
//! - a replacement goes in steps that the labels and the segment map tell apart: the new device is
//!   recorded → it stands beside the old one in the map → it is filled → it is normal → the map is
//!   without the old one → the old one's slot is free. Each step may be repeated, and until the
//!   last is done nothing else of the map changes.

use super::core::Core;
use super::error::{Error, Result};
use super::labels::{accounts_for, own_id, read_label, wipe, MIN_DEVICE_BLOCKS};
use super::members::{Device, Set};
use super::planted::{planted, Mutation};
use super::roots::write_segment_map;
use super::scrub::{Outcome, Walk};
use super::types::NodeId;
use crate::device::Block;
use fs_layout::{
    DeviceEntry, MemberRecord, MemberState, SegmentRun, LABEL_PLACES, MAX_MEMBERS, SEGMENT_BLOCKS,
};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Walks that fill a device where reads fail on the only copy: such failures may pass. What fails
/// in the last one too is bad on every device.
const FILL_WALKS: u32 = 3;

/// Files that may be noted to be walked once more, in 16 bytes each: beyond, the walk begins again.
const MAX_REFILLS: usize = 1 << 20;

/// Files that got range clones while devices are being filled: what they were given may come from
/// where the walk has not been, and be gone there when it comes.
#[derive(Default)]
pub(crate) struct Refills {
    files: BTreeSet<NodeId>,
    /// There were too many.
    lost: bool,
}

/// A walk that fills devices.
pub(crate) struct Regeneration {
    /// The devices that it fills, and the labels' generation when it began.
    slots: Vec<u16>,
    generation: u64,
    walk: Walk,
    /// Reads that failed in this walk, and how many walks there were before it.
    unread: u64,
    walks: u32,
    pub examined_blocks: u64,
    pub total_blocks: u64,
}

impl Set {
    /// Devices that are being filled.
    fn targets(&self) -> Vec<u16> {
        let written = self.all_written().map(|(slot, _)| slot);
        written.filter(|slot| self.readable(*slot).is_none()).collect()
    }

    /// Slots of devices that stand in another's place, and whose: (new, old).
    pub fn replacements(&self) -> Vec<(u16, u16)> {
        let pair = |slot: u16| Some((slot, self.record(slot)?.replaces?));
        (0..self.devices.len() as u16).filter_map(pair).collect()
    }
}

fn has(run: &SegmentRun, slot: u16) -> Option<u64> {
    run.members.iter().find(|m| m.0 == slot).map(|m| m.1)
}

impl Core {
    fn busy<T>(found: Option<T>) -> Result<T> {
        found.ok_or(Error::Busy)
    }

    /// Changes membership while no group and no consistency point is being written.
    fn change_quietly(&self, change: impl FnOnce(&mut Set) -> Result<()>) -> Result<()> {
        let _cp = Core::busy(self.lock_unless_alone(&self.cp))?;
        let _log = Core::busy(self.lock_unless_alone(&self.log))?;
        self.store.change_members(change)
    }

    /// Goes on without a device, on purpose.
    pub fn offline(&self, slot: u16) -> Result<()> {
        self.writable()?;
        self.consistency_point_forced()?;
        self.change_quietly(|set| match set.record(slot).map(|r| r.state) {
            None | Some(MemberState::Absent) => Err(Error::Invalid("no such device")),
            Some(MemberState::Missing) => Err(Error::Invalid("the device is missing already")),
            Some(_) => {
                set.leave(slot, self.store.good_epoch());
                Ok(())
            }
        })
    }

    /// Takes a device back that was missing; its slot. From now on it is written.
    pub fn online(&self, device: &Device) -> Result<u16> {
        self.writable()?;
        let own = read_label(device)?.label;
        let set = self.store.members.now();
        let slot = match set.slot_of(own_id(&own)) {
            Some(slot) if own.pool_id == self.pool_id => slot,
            _ => return Err(Error::Invalid("the device is none of this pool")),
        };
        if !accounts_for(&set.label, &own) {
            return Err(Error::Invalid(
                "the device went on without the others: what it holds cannot be merged",
            ));
        }
        self.change_quietly(|set| {
            let record = set.label.devices.get_mut(usize::from(slot)).map(|d| &mut d.member);
            let record = record.filter(|r| r.state == MemberState::Missing);
            let record = record.ok_or(Error::Invalid("the device is not missing"))?;
            if device.block_count() / SEGMENT_BLOCKS < u64::from(record.segments) {
                return Err(Error::Invalid("the device is smaller than it was"));
            }
            record.state = match record.replaces {
                Some(_) => MemberState::Regenerating,
                None => MemberState::Merging,
            };
            set.devices[usize::from(slot)] = Some(device.clone());
            Ok(())
        })?;
        self.after_joining(slot)?;
        Ok(slot)
    }

    fn after_joining(&self, slot: u16) -> Result<()> {
        if self.store.members.now().written(slot).is_none() {
            return Err(Error::Invalid("the device failed while it was taken in"));
        }
        self.bell.ring(super::core::BELL_MEMBERS);
        Ok(())
    }

    /// Puts a new device in another's place, which serves on meanwhile if it can; its slot.
    pub fn replace(&self, old: u16, device: &Device, path: &str) -> Result<u16> {
        self.writable()?;
        self.abandon_replacement(old)?;
        self.check_replacement(old, device)?;
        wipe(device)?;
        let mut slot = 0;
        self.change_quietly(|set| {
            slot = set.free_slot()?;
            let mut hasher = blake3::Hasher::new();
            hasher.update(&self.pool_id).update(&[slot as u8]);
            hasher.update(&set.label.generation.to_le_bytes());
            hasher.update(&set.label.lineage.to_le_bytes());
            hasher.update(&self.time().to_le_bytes());
            let mut id = [0; 16];
            id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
            let member = MemberRecord {
                state: MemberState::Regenerating,
                replaces: Some(old),
                lineage: set.label.lineage,
                ..MemberRecord::default()
            };
            let entry = DeviceEntry { id, path: path.into(), member };
            set.join(device.clone(), entry)?;
            set.note_sizes();
            Ok(())
        })?;
        self.after_joining(slot)?;
        self.stand_beside(slot, old)?;
        Ok(slot)
    }

    /// A replacement whose new device is missing is given up: another one comes.
    fn abandon_replacement(&self, old: u16) -> Result<()> {
        let set = self.store.members.now();
        let missing = |slot: u16| set.record(slot).map(|r| r.state) == Some(MemberState::Missing);
        match set.replacements().into_iter().find(|(new, o)| *o == old && missing(*new)) {
            Some((new, _)) => self.take_out(new, None),
            None => Ok(()),
        }
    }

    fn check_replacement(&self, old: u16, device: &Device) -> Result<()> {
        let set = self.store.members.now();
        match set.record(old).map(|r| r.state) {
            None | Some(MemberState::Absent) => return Err(Error::Invalid("no such device")),
            Some(_) if set.replacements().iter().any(|(_, o)| *o == old) => {
                return Err(Error::Invalid("the device is being replaced already"));
            }
            Some(_) => {}
        }
        // A device that is missing may come in its own place, as a new one.
        let is_free = |slot: u16| slot == old && set.written(slot).is_none();
        let there = read_label(device).ok().map(|l| l.label);
        let there = there.filter(|l| l.pool_id == self.pool_id);
        if there.and_then(|l| set.slot_of(own_id(&l))).is_some_and(|slot| !is_free(slot)) {
            return Err(Error::Invalid("the new device is one of the pool already"));
        }
        let map = self.store.segment_map();
        let used = map.iter().filter_map(|run| Some(has(run, old)? + run.count)).max();
        let enough = (used.unwrap_or(1) * SEGMENT_BLOCKS).max(MIN_DEVICE_BLOCKS);
        if device.block_count() < enough {
            return Err(Error::Invalid("the new device is smaller than what is used of the old"));
        }
        if map.iter().any(|run| has(run, old).is_some() && run.members.len() >= MAX_MEMBERS) {
            return Err(Error::Invalid("too many replacements at once"));
        }
        Ok(())
    }

    /// Makes another map the pool's, durably. One at a time: the places of its pages take turns.
    /// `Busy` where the device that the new map stands on is not read any more.
    fn switch_map(&self, needs: Option<u16>, change: impl Fn(&mut SegmentRun)) -> Result<()> {
        let _one = Core::busy(self.lock_unless_alone(&self.rebalance))?;
        {
            let mut cp = Core::busy(self.lock_unless_alone(&self.cp))?;
            let _log = Core::busy(self.lock_unless_alone(&self.log))?;
            self.store.members.now().still_reads(needs)?;
            let mut map = self.store.segment_map();
            map.iter_mut().for_each(change);
            write_segment_map(&self.store, &map, &mut cp.root.segment_map)?;
            self.store.set_segment_map(map);
        }
        match self.consistency_point_done()? {
            true => Ok(()),
            false => Err(Error::Busy),
        }
    }

    /// The new device stands wherever the old one does.
    fn stand_beside(&self, new: u16, old: u16) -> Result<()> {
        let lacks = |run: &SegmentRun| has(run, old).filter(|_| has(run, new).is_none());
        if !self.store.segment_map().iter().any(|run| lacks(run).is_some()) {
            return Ok(());
        }
        self.switch_map(None, |run| {
            if let Some(segment) = lacks(run) {
                run.members.push((new, segment));
            }
        })
    }

    /// Takes a device out of the map and out of the pool, and ends the replacements it is part of;
    /// not where the one that it `needs` has failed meanwhile.
    fn take_out(&self, slot: u16, needs: Option<u16>) -> Result<()> {
        if self.store.segment_map().iter().any(|run| has(run, slot).is_some()) {
            self.switch_map(needs, |run| run.members.retain(|m| m.0 != slot))?;
        }
        self.store.change_members(|set| {
            set.still_reads(needs)?;
            if let Some(d) = set.label.devices.get_mut(usize::from(slot)) {
                let member = MemberRecord { state: MemberState::Absent, ..Default::default() };
                *d = DeviceEntry { member, ..DeviceEntry::default() };
                set.devices[usize::from(slot)] = None;
            }
            let others = set.label.devices.iter_mut().map(|d| &mut d.member.replaces);
            others.filter(|r| **r == Some(slot)).for_each(|r| *r = None);
            Ok(())
        })
    }

    /// Takes a device out that another one has replaced.
    fn retire(&self, old: u16, new: u16) -> Result<()> {
        let set = self.store.members.now();
        self.take_out(old, Some(new))?;
        if let Some(device) = set.devices.get(usize::from(old)).and_then(Option::as_ref) {
            // It is no part of the pool any more, and should not look like one.
            let zero = Block::zeroed();
            let _ = LABEL_PLACES.iter().try_for_each(|at| device.write(*at, &[&zero]));
            let _ = device.flush();
        }
        Ok(())
    }

    /// Examines about so many blocks for devices that come back or are new; true while there is
    /// more to do.
    pub fn regenerate_step(&self, budget_blocks: u64) -> Result<bool> {
        self.writable()?;
        let Some(mut current) = self.lock_unless_alone(&self.regeneration) else {
            return Ok(true);
        };
        let set = self.store.members.now();
        for (new, old) in set.replacements() {
            match set.record(new).map(|r| r.state) {
                Some(MemberState::Normal) => {
                    self.retire(old, new)?;
                    return Ok(true);
                }
                Some(MemberState::Regenerating) => self.stand_beside(new, old)?,
                _ => {}
            }
        }
        let set = self.store.members.now();
        if set.targets().is_empty() {
            *current = None;
            *self.refills.lock() = Refills::default();
            return Ok(false);
        }
        let is_same = |r: &Regeneration| r.generation == set.label.generation;
        let enough = !self.refills.lock().lost;
        let mut running = match current.take().filter(|r| is_same(r) && enough) {
            Some(running) => running,
            None => {
                // What was noted so far is linked before the freeze, and the walk comes after it.
                *self.refills.lock() = Refills::default();
                match self.consistency_point_done()? {
                    true => self.begin_walk(&set),
                    false => return Ok(true),
                }
            }
        };
        let found = self.walk(&mut running.walk, budget_blocks)?;
        running.examined_blocks += found.examined_blocks;
        running.unread += found.unread;
        for slot in &running.slots {
            let kept = |p: &&super::scrub::BadPlace| p.outcome == Outcome::Kept;
            if found.places.iter().filter(kept).any(|p| p.devices.contains(slot)) {
                let why = format!("{} could not be filled", set.name(*slot));
                self.store.failed(*slot, why)?;
            }
        }
        if running.walk.is_done() && running.unread > 0 && running.walks + 1 < FILL_WALKS {
            // What could not be read was not copied, and may be readable now.
            let walks = running.walks + 1;
            *current = Some(Regeneration { walks, ..self.begin_walk(&set) });
            return Ok(true);
        }
        if !running.walk.is_done() || !self.finish_walk(&running)? {
            *current = Some(running);
        }
        Ok(true)
    }

    pub fn is_settled(&self) -> bool {
        let set = self.store.members.now();
        set.targets().is_empty() && set.replacements().is_empty()
    }

    fn begin_walk(&self, set: &Set) -> Regeneration {
        let slots = set.targets();
        let good = |slot: &u16| set.record(*slot).map_or(0, |r| r.good_epoch);
        let since = slots.iter().map(good).min().unwrap_or(0);
        let (total, free, waiting, reserve) = self.space.figures();
        let began = self.completed_epoch.load(Ordering::SeqCst);
        Regeneration {
            slots,
            generation: set.label.generation,
            walk: Walk { since, began, every_version: true, ..Walk::default() },
            unread: 0,
            walks: 0,
            examined_blocks: 0,
            total_blocks: total.saturating_sub(free + waiting + reserve),
        }
    }

    /// The devices are normal; false: not now.
    fn finish_walk(&self, done: &Regeneration) -> Result<bool> {
        if !planted(Mutation::FilledBeforeRoot) && !self.consistency_point_done()? {
            return Ok(false);
        }
        let changed = self.store.change_members(|set| {
            if set.label.generation != done.generation {
                return Err(Error::Busy);
            }
            for slot in &done.slots {
                let Some(d) = set.label.devices.get_mut(usize::from(*slot)) else { continue };
                d.member.state = MemberState::Normal;
                (d.member.good_epoch, d.member.lineage) = (0, 0);
            }
            Ok(())
        });
        match changed {
            // Membership changed meanwhile: another walk begins.
            Err(Error::Busy) => return Ok(true),
            other => other?,
        }
        self.scrub_start()?;
        Ok(true)
    }

    /// A file is being given what others have. Under the guard, before it is linked.
    pub fn note_refill(&self, file: NodeId) {
        let is_filling = !self.store.members.now().targets().is_empty();
        if !is_filling || planted(Mutation::CloneNotFilledAgain) {
            return;
        }
        let mut noted = self.refills.lock();
        match noted.files.len() < MAX_REFILLS {
            true => drop(noted.files.insert(file)),
            false => noted.lost = true,
        }
    }

    /// A file that has to be walked once more.
    pub fn next_refill(&self) -> Option<NodeId> {
        self.refills.lock().files.pop_first()
    }

    /// How far a device is filled: blocks examined, of how many at most.
    pub fn regenerated(&self, slot: u16) -> Option<(u64, u64)> {
        let running = self.regeneration.try_lock()?;
        let running = running.as_ref().filter(|r| r.slots.contains(&slot))?;
        Some((running.examined_blocks, running.total_blocks.max(running.examined_blocks)))
    }
}

/// Blocks examined in a row by the background thread: 2 MiB.
const PACED_BLOCKS: u64 = 512;
/// While others use the devices, it rests for as long as it worked, but not longer.
const REST_MAX: Duration = Duration::from_secs(1);

impl Core {
    /// One piece and a rest after it: what the background thread does. True while there is more.
    pub fn regenerate_paced(&self) -> bool {
        let others = || self.group_count.load(Ordering::Relaxed);
        let (began, before) = (Instant::now(), others());
        match self.regenerate_step(PACED_BLOCKS) {
            Ok(more) => {
                if others() != before {
                    std::thread::sleep(began.elapsed().min(REST_MAX));
                }
                more
            }
            // Latched or closed, or a device left: there is a word about that already.
            Err(_) => false,
        }
    }
}
