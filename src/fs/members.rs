//! The devices of the pool, how each takes part in it, and what happens when one fails.
//!
//! Rules:
//! - the labels say how a device takes part; what this file's [`Set`] says is on all devices that
//!   are written, durably, before anybody acts on it;
//! - reads go to devices that are normal; writes also to those that are merging or regenerating;
//! - after a write or flush of one device failed, nothing is acknowledged before the others have
//!   recorded that it is missing, under a new lineage: a flush beside the failure waits for that;
//! - a device goes only if every run of the segment map keeps a device that is read, in the map of
//!   the durable root too where that is another; else the pool latches;
//! - a map under which a copy has another place becomes the pool's under `change`, and only if no
//!   membership changed while the copy was made; a device that leaves before the root with that map
//!   is durable is filled as a whole when it comes back;
//! - only a normal device that leaves makes a new lineage: the others were never believed;
//! - a device that was filled is normal on the labels of all that are read before it is on its own:
//!   so who says that it is being filled knows all that it has.
//!
//! `change` is held while labels are written, and nothing else is taken under it.

use super::error::{Error, Result};
use super::heal::Verdict;
use super::labels::{encode_label, read_one, slot_of, write_labels};
use super::planted::{planted, Mutation};
use super::store::Store;
use crate::device::{says_gone, Block, BlockDevice};
use fs_layout::{Label, MemberRecord, MemberState, SegmentRun, LABEL_PLACES, SEGMENT_BLOCKS};
use parking_lot::{Mutex, MutexGuard, RwLock};
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;

pub(crate) type Device = Arc<dyn BlockDevice>;

/// Events kept for whoever asks: the newest ones.
const MAX_EVENTS: usize = 64;

/// What the labels say, and the devices that are there.
#[derive(Clone)]
pub(crate) struct Set {
    /// As on every device, but for `index` and `device_blocks`, which are each device's own.
    pub label: Label,
    /// By slot.
    pub devices: Vec<Option<Device>>,
}

impl Set {
    pub fn record(&self, slot: u16) -> Option<&MemberRecord> {
        self.label.devices.get(usize::from(slot)).map(|d| &d.member)
    }

    fn device_if(&self, slot: u16, states: &[MemberState]) -> Option<&Device> {
        let state = self.record(slot)?.state;
        let device = self.devices.get(usize::from(slot))?.as_ref();
        device.filter(|_| states.contains(&state))
    }

    /// The slot of the device with this id.
    pub fn slot_of(&self, id: [u8; 16]) -> Option<u16> {
        slot_of(&self.label, id).map(|slot| slot as u16)
    }

    /// The device, if it is read.
    pub fn readable(&self, slot: u16) -> Option<&Device> {
        self.device_if(slot, &[MemberState::Normal, MemberState::Removing])
    }

    /// The device, if it is written.
    pub fn written(&self, slot: u16) -> Option<&Device> {
        use MemberState::*;
        self.device_if(slot, &[Normal, Removing, Merging, Regenerating])
    }

    /// All devices that are written, by slot.
    pub fn all_written(&self) -> impl Iterator<Item = (u16, &Device)> {
        let slots = 0..self.devices.len() as u16;
        slots.filter_map(|slot| Some((slot, self.written(slot)?)))
    }

    /// All devices that are read, by slot.
    pub fn all_readable(&self) -> impl Iterator<Item = (u16, &Device)> {
        let slots = 0..self.devices.len() as u16;
        slots.filter_map(|slot| Some((slot, self.readable(slot)?)))
    }

    /// What a message calls a slot's device.
    pub fn name(&self, slot: u16) -> String {
        let device = self.devices.get(usize::from(slot)).and_then(Option::as_ref);
        let path = || self.label.devices.get(usize::from(slot)).map(|d| d.path.clone());
        device.map(|d| d.name()).or_else(path).unwrap_or_else(|| format!("device {slot}"))
    }

    /// From now on without this device: good up to `epoch` if it was in order so far.
    pub fn leave(&mut self, slot: u16, epoch: u64) {
        let lineage = self.label.lineage;
        let Some(d) = self.label.devices.get_mut(usize::from(slot)) else { return };
        if matches!(d.member.state, MemberState::Normal | MemberState::Removing) {
            d.member.good_epoch = epoch;
            d.member.lineage = lineage;
        }
        d.member.state = MemberState::Missing;
        self.devices[usize::from(slot)] = None;
    }

    /// What was being filled `before` is so still. A device that failed has not been told that it
    /// is normal, and would go on without it.
    fn believe_no_other_than(&mut self, before: &Set) {
        use MemberState::*;
        for (entry, old) in self.label.devices.iter_mut().zip(&before.label.devices) {
            let was_filled = matches!(old.member.state, Merging | Regenerating);
            if was_filled && entry.member.state == Normal {
                entry.member = old.member;
            }
        }
    }

    /// `Busy` where this device is not read.
    pub fn still_reads(&self, slot: Option<u16>) -> Result<()> {
        match slot.is_none_or(|slot| self.readable(slot).is_some()) {
            true => Ok(()),
            false => Err(Error::Busy),
        }
    }

    /// Does every run keep a device that is read?
    pub fn covers(&self, map: &[SegmentRun]) -> bool {
        map.iter().all(|run| run.members.iter().any(|(slot, _)| self.readable(*slot).is_some()))
    }

    fn covers_all(&self, maps: &[Vec<SegmentRun>]) -> bool {
        maps.iter().all(|map| self.covers(map))
    }

    /// The next generation; a new lineage where the pool goes on without a device that was in
    /// order.
    fn advance(&mut self, before: &Set, seed: u64) {
        self.label.generation += 1;
        let slots = 0..self.devices.len() as u16;
        let in_order = |set: &Set, slot| {
            let state = set.record(slot).map(|r| r.state);
            matches!(state, Some(MemberState::Normal | MemberState::Removing))
        };
        let left = |slot: u16| {
            let gone = self.record(slot).map(|r| r.state) == Some(MemberState::Missing);
            gone && in_order(before, slot)
        };
        if !slots.into_iter().any(left) {
            return;
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        hasher.update(&self.label.generation.to_le_bytes());
        hasher.update(&self.label.lineage.to_le_bytes());
        for (slot, _) in self.all_written() {
            hasher.update(&self.label.devices[usize::from(slot)].id);
        }
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        self.label.ancestors.rotate_right(1);
        self.label.ancestors[0] = self.label.lineage;
        self.label.lineage = u64::from_le_bytes(bytes).max(1);
    }

    /// Notes each device's size.
    pub fn note_sizes(&mut self) {
        for (entry, device) in self.label.devices.iter_mut().zip(&self.devices) {
            if let Some(device) = device {
                let segments = device.block_count() / SEGMENT_BLOCKS;
                entry.member.segments = segments.min(u64::from(u32::MAX)) as u32;
            }
        }
    }
}

/// The current set, and what is needed to change it.
pub(crate) struct Members {
    now: RwLock<Arc<Set>>,
    pub(super) change: Mutex<()>,
    /// Failures seen and not yet recorded.
    failing: AtomicU32,
    /// The newest root that is durable.
    durable_epoch: AtomicU64,
    seed: u64,
    events: Mutex<VecDeque<String>>,
}

impl Members {
    pub fn new(set: Set, durable_epoch: u64, seed: u64) -> Members {
        Members {
            now: RwLock::new(Arc::new(set)),
            change: Mutex::new(()),
            failing: AtomicU32::new(0),
            durable_epoch: AtomicU64::new(durable_epoch),
            seed,
            events: Mutex::default(),
        }
    }

    pub fn now(&self) -> Arc<Set> {
        self.now.read().clone()
    }

    /// A root is durable on all devices that are written.
    pub fn note_root(&self, epoch: u64) {
        self.durable_epoch.store(epoch, Ordering::Release);
    }

    pub fn durable_epoch(&self) -> u64 {
        self.durable_epoch.load(Ordering::Acquire)
    }

    pub fn tell(&self, event: String) {
        let mut events = self.events.lock();
        if events.len() >= MAX_EVENTS {
            events.pop_front();
        }
        events.push_back(event);
    }

    pub fn events(&self) -> Vec<String> {
        self.events.lock().iter().cloned().collect()
    }

    /// Waits until a failure that was seen is recorded.
    fn settled(&self) -> Option<MutexGuard<'_, ()>> {
        (self.failing.load(Ordering::SeqCst) > 0).then(|| self.change.lock())
    }
}

/// Do both labels say the same? A device that has become longer says so when it is grown.
fn is_same_label(there: &Block, due: &Block) -> bool {
    if there.0 == due.0 {
        return true;
    }
    match (Label::decode(&there.0), Label::decode(&due.0)) {
        (Ok(there), Ok(due)) if there.device_blocks <= due.device_blocks => {
            Label { device_blocks: due.device_blocks, ..there } == due
        }
        _ => false,
    }
}

impl Store {
    /// A write or flush of a device failed. Ok: the others have recorded it, and go on.
    pub fn failed(&self, slot: u16, why: String) -> Result<()> {
        self.members.failing.fetch_add(1, Ordering::SeqCst);
        let change = self.members.change.lock();
        let mut next = Set::clone(&self.members.now());
        let done = match next.written(slot) {
            None => Ok(()), // Somebody else saw it, and it is recorded.
            Some(_) => {
                next.leave(slot, self.good_epoch());
                match planted(Mutation::AcknowledgeBeforeStaleRecord) {
                    true => {
                        *self.members.now.write() = Arc::new(next);
                        Ok(())
                    }
                    false => self.record(next, why),
                }
            }
        };
        self.members.failing.fetch_sub(1, Ordering::SeqCst);
        drop(change);
        done
    }

    /// A read failed in a way that says the device is gone: where the pool can do without, it does.
    pub fn read_failed(&self, slot: u16, e: &io::Error) {
        if !says_gone(e) || self.check_latch().is_err() {
            return;
        }
        let mut without = Set::clone(&self.members.now());
        without.leave(slot, 0);
        if without.covers_all(&self.segment_maps()) {
            // A failure is latched.
            let _ = self.failed(slot, format!("reading {} failed: {e}", without.name(slot)));
        }
    }

    /// Waits until no failure is unrecorded.
    pub fn wait_recorded(&self) {
        drop(self.members.settled());
    }

    /// Changes what the labels say. `Err`: nothing changed, or the pool is latched.
    pub fn change_members(&self, change: impl FnOnce(&mut Set) -> Result<()>) -> Result<()> {
        let _change = self.members.change.lock();
        self.check_latch()?;
        let mut next = Set::clone(&self.members.now());
        change(&mut next)?;
        if !next.covers_all(&self.segment_maps()) {
            return Err(Error::Invalid("some data would have no device left that can be read"));
        }
        // Paths that do not fit are the caller's trouble, no device's.
        let fits = next.label.encode(&mut Block::zeroed().0);
        fits.map_err(|e| Error::Format(e.to_string()))?;
        self.record(next, String::new())
    }

    /// Does `switch` while no membership changes, if the labels' generation is this one still.
    pub fn while_unchanged(&self, generation: u64, switch: impl FnOnce()) -> bool {
        let _change = self.members.change.lock();
        let same = self.members.now().label.generation == generation;
        if same {
            switch();
        }
        same
    }

    /// Makes `next` durable on all its devices, and current. Whoever fails meanwhile leaves too.
    /// Under `change`.
    fn record(&self, mut next: Set, mut why: String) -> Result<()> {
        let now = self.members.now();
        let mut before = now.clone();
        let maps = self.segment_maps();
        loop {
            if !next.covers_all(&maps) {
                return Err(self.set_latch(why));
            }
            next.advance(&before, self.members.seed);
            before = Arc::new(next.clone());
            match write_labels(&next, &now) {
                Ok(()) => break,
                Err((slot, e)) => {
                    why = format!("writing the label of {} failed: {e}", next.name(slot));
                    next.leave(slot, self.good_epoch());
                    next.believe_no_other_than(&now);
                }
            }
        }
        self.tell_changes(&next, &why);
        *self.members.now.write() = Arc::new(next);
        Ok(())
    }

    fn tell_changes(&self, next: &Set, why: &str) {
        let now = self.members.now();
        for slot in 0..next.devices.len() as u16 {
            let state = |set: &Set| set.record(slot).map(|r| r.state);
            let Some(new) = state(next).filter(|s| Some(*s) != state(&now)) else { continue };
            let name = next.name(slot);
            let because = match new {
                MemberState::Missing if !why.is_empty() => format!(": {why}"),
                _ => String::new(),
            };
            self.members.tell(format!("device {name} is {}{because}", state_word(new)));
        }
    }

    /// Compares both labels of each device with what they should say, and rewrites those that
    /// differ.
    pub fn mend_labels(&self) -> Vec<Verdict> {
        // Not through `read_device`: that would want this lock where the device is gone.
        let _change = self.members.change.lock();
        let set = self.members.now();
        let mend = |(slot, device): (u16, &Device)| {
            let raw = encode_label(&set, slot, device).ok()?;
            let mut verdict = Verdict::default();
            for at in LABEL_PLACES {
                if read_one(device, at).is_ok_and(|there| is_same_label(&there, &raw)) {
                    continue;
                }
                let heals = self.heals.load(Ordering::Relaxed) && self.check_latch().is_ok();
                match heals && device.write(at, &[&raw]).is_ok() {
                    true => verdict.healed.push((slot, at)),
                    false => verdict.bad.push((slot, at)),
                }
            }
            verdict.good = Some(raw);
            Some(verdict)
        };
        set.all_written().filter_map(mend).collect()
    }

    /// Brings the labels of all devices that are written to what this set says.
    pub fn relabel(&self) -> Result<()> {
        let _change = self.members.change.lock();
        let mut set = Set::clone(&self.members.now());
        set.note_sizes();
        match write_labels(&set, &set) {
            Ok(()) => {
                *self.members.now.write() = Arc::new(set);
                Ok(())
            }
            Err((slot, e)) => {
                let why = format!("writing the label of {} failed: {e}", set.name(slot));
                set.leave(slot, self.good_epoch());
                self.record(set, why)
            }
        }
    }
}

/// The word for a state that users see.
pub(crate) fn state_word(state: MemberState) -> &'static str {
    match state {
        MemberState::Normal => "normal",
        MemberState::Missing => "missing",
        MemberState::Merging => "merging",
        MemberState::Regenerating => "regenerating",
        MemberState::Removing => "removing",
        MemberState::Absent => "absent",
    }
}
