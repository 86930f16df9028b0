//! The public face of the pool's devices: how each takes part, and what can be done with it.

use super::error::Result;
use super::members::{state_word, Device, Set};
use super::pool::Fs;
use crate::device::BLOCK_BYTES;
use fs_layout::{MemberState, SEGMENT_BLOCKS};

/// A device of the pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceStatus {
    /// Its number in the pool.
    pub slot: u16,
    /// Its identity.
    pub id: [u8; 16],
    /// Where it is, or was when the label was written.
    pub path: String,
    /// `normal`, `missing`, `merging` (back, and given what it missed), `regenerating` (new, and
    /// being filled), `replace` (serving until another one is filled), `removing`.
    pub state: &'static str,
    /// Its size; 0 where nobody knows.
    pub size_bytes: u64,
    /// While it is filled: bytes examined, of how many at most.
    pub progress: Option<(u64, u64)>,
    /// Bad copies on it that were rewritten since the pool was opened.
    pub healed_copies: u64,
}

impl DeviceStatus {
    /// Is it as it should be?
    pub fn is_normal(&self) -> bool {
        self.state == "normal"
    }
}

impl Fs {
    /// The pool's devices.
    pub fn devices(&self) -> Vec<DeviceStatus> {
        let set = self.core().store.members.now();
        let slots = 0..set.devices.len() as u16;
        slots.filter_map(|slot| self.device_status(&set, slot)).collect()
    }

    fn device_status(&self, set: &Set, slot: u16) -> Option<DeviceStatus> {
        let entry = set.label.devices.get(usize::from(slot))?;
        if entry.member.state == MemberState::Absent {
            return None;
        }
        let all = &set.label.devices;
        let is_replaced = all.iter().any(|d| d.member.replaces == Some(slot));
        let state = match entry.member.state {
            MemberState::Normal if is_replaced => "replace",
            state => state_word(state),
        };
        let device = set.devices.get(usize::from(slot)).and_then(Option::as_ref);
        let recorded = u64::from(entry.member.segments) * SEGMENT_BLOCKS;
        let blocks = device.map_or(recorded, |d| d.block_count());
        let bytes = |blocks: u64| blocks.saturating_mul(BLOCK_BYTES as u64);
        let progress = self.core().regenerated(slot).map(|(done, of)| (bytes(done), bytes(of)));
        Some(DeviceStatus {
            slot,
            id: entry.id,
            path: device.map_or_else(|| entry.path.clone(), |d| d.name()),
            state,
            size_bytes: bytes(blocks),
            progress,
            healed_copies: self.core().store.healed_on(slot),
        })
    }

    /// Is every device in order?
    pub fn is_whole(&self) -> bool {
        let set = self.core().store.members.now();
        let normal = |d: &fs_layout::DeviceEntry| {
            let is_used = matches!(d.member.state, MemberState::Normal | MemberState::Absent);
            is_used && d.member.replaces.is_none()
        };
        set.label.devices.iter().all(normal)
    }

    /// Has everything as many copies as it should? While a device leaves or is replaced it has, if
    /// that device works.
    pub fn has_all_copies(&self) -> bool {
        let core = self.core();
        let set = core.store.members.now();
        let wanted = if set.label.redundancy == 0 { 1 } else { 2 };
        let copies = |run: &fs_layout::SegmentRun| {
            run.members.iter().filter(|(slot, _)| set.readable(*slot).is_some()).count()
        };
        core.store.segment_map().iter().all(|run| copies(run) >= wanted)
    }

    /// Is every device of the pool there, and written?
    pub fn all_devices_are_there(&self) -> bool {
        let set = self.core().store.members.now();
        let there = |slot: u16| {
            let is_none = set.record(slot).is_none_or(|r| r.state == MemberState::Absent);
            is_none || set.written(slot).is_some()
        };
        (0..set.devices.len() as u16).all(there)
    }

    /// Goes on without a device, on purpose. `Invalid` where it holds the only copy of something.
    pub fn offline(&self, slot: u16) -> Result<()> {
        self.core().offline(slot)
    }

    /// Takes a device back that was missing; its slot. It is `merging` until
    /// [`Fs::regenerate_step`] has given it all that it missed.
    pub fn online(&self, device: &Device) -> Result<u16> {
        self.core().online(device)
    }

    /// Puts a new device in the place of another one, which serves on meanwhile if it can; its
    /// slot. What is on `device` is lost.
    pub fn replace(&self, old: u16, device: &Device, path: &str) -> Result<u16> {
        self.core().replace(old, device, path)
    }

    /// Examines about so many blocks for devices that come back or are new; true while there is
    /// more to do. A pool with background threads does this by itself, paced.
    pub fn regenerate_step(&self, budget_blocks: u64) -> Result<bool> {
        self.core().regenerate_step(budget_blocks)
    }

    /// Is nothing being filled, replaced or taken out?
    pub fn is_settled(&self) -> bool {
        self.core().is_settled()
    }

    /// What happened to devices since the pool was opened, the newest last: one line each, the
    /// last 64.
    pub fn device_events(&self) -> Vec<String> {
        self.core().store.members.events()
    }
}
