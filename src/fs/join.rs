//! Devices that join the pool and leave it.
//!
//! Joining: the new device gets its label first, so that no label names a device that does not
//! know of it; then the others name it, and the map takes it in step by step. Leaving: the labels
//! say that the device is being removed; when nothing is mapped to it any more they say that it is
//! gone, and its own label is wiped. Between the two a crash loses nothing: the labels and the map
//! say how far it got.

use super::core::Core;
use super::error::{Error, Result};
use super::labels::{encode_label, wipe, MIN_DEVICE_BLOCKS};
use super::members::{Device, Set};
use super::moves::Planned;
use super::segments::{redundancy_of, usable_segments};
use super::types::*;
use crate::device::{Block, BLOCK_BYTES};
use fs_layout::{
    DeviceEntry, MemberRecord, MemberState, Root, SegmentMapPage, LABEL_PLACES, MAX_DEVICES,
    RUNS_PER_PAGE, SEGMENT_BLOCKS, SEGMENT_MAP_BASE,
};
use std::io;
use std::sync::Arc;

/// What is to become of the devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChange {
    /// One more, of so many bytes.
    Add {
        /// Its size.
        size_bytes: u64,
    },
    /// Without one.
    Remove {
        /// Its slot.
        slot: u16,
    },
    /// One becomes larger.
    Grow {
        /// Its slot.
        slot: u16,
        /// Its new size.
        size_bytes: u64,
    },
}

/// Consistency points that bring back what was freed before a device is said not to fit: the first
/// writes it off, the second lets it go.
const SETTLING_POINTS: u32 = 3;

fn device_error(name: &str, e: io::Error) -> Error {
    Error::Io(Arc::new(io::Error::new(e.kind(), format!("{name}: {e}"))))
}

impl Set {
    /// A slot for one more device: one that nobody has any more, or the next.
    pub fn free_slot(&self) -> Result<u16> {
        let absent = |e: &DeviceEntry| e.member.state == MemberState::Absent;
        let all = &self.label.devices;
        match all.iter().position(absent).unwrap_or(all.len()) {
            slot if slot < MAX_DEVICES => Ok(slot as u16),
            _ => Err(Error::Invalid("a pool has at most 12 devices")),
        }
    }

    /// Gives a device its slot.
    pub fn join(&mut self, device: Device, entry: DeviceEntry) -> Result<u16> {
        let slot = self.free_slot()?;
        match self.label.devices.get_mut(usize::from(slot)) {
            Some(there) => (*there, self.devices[usize::from(slot)]) = (entry, Some(device)),
            None => {
                self.label.devices.push(entry);
                self.devices.push(Some(device));
            }
        }
        Ok(slot)
    }
}

impl Core {
    /// What a change of the devices would come to. `NoRoomElsewhere`, `Busy` while a device is
    /// missing or being filled, `Invalid`.
    pub fn plan_change(&self, change: DeviceChange) -> Result<Planned> {
        let (mut usable, mut leaving) = self.balanced_devices().ok_or(Error::Busy)?;
        let segments = |bytes: u64| usable_segments(bytes / BLOCK_BYTES as u64);
        match change {
            DeviceChange::Add { size_bytes } => {
                if size_bytes / (BLOCK_BYTES as u64) < MIN_DEVICE_BLOCKS {
                    return Err(Error::Invalid("a pool's device needs at least 64 MiB"));
                }
                usable.push(segments(size_bytes));
                leaving.push(false);
            }
            DeviceChange::Remove { slot } => {
                let slot = usize::from(slot);
                *leaving.get_mut(slot).ok_or(Error::Invalid("no such device"))? = true;
                self.check_leave(&usable, &leaving)?;
            }
            DeviceChange::Grow { slot, size_bytes } => {
                let slot = usable.get_mut(usize::from(slot));
                let slot = slot.ok_or(Error::Invalid("no such device"))?;
                *slot = (*slot).max(segments(size_bytes));
            }
        }
        let planned = self.plan_rebalance(&leaving, &usable)?;
        self.check_room(&planned)?;
        Ok(planned)
    }

    fn check_leave(&self, usable: &[u64], leaving: &[bool]) -> Result<()> {
        let stay = usable.iter().zip(leaving).filter(|(n, leaves)| **n > 0 && !**leaves).count();
        match redundancy_of(&self.store.segment_map()) {
            Redundancy::Mirror if stay < 2 => Err(Error::Invalid("a mirror needs two devices")),
            _ if stay < 1 => Err(Error::Invalid("it is the pool's only device")),
            _ => Ok(()),
        }
    }

    /// What is in use, promised or kept back must fit what is left.
    fn check_room(&self, planned: &Planned) -> Result<()> {
        let map = self.store.segment_map();
        let now: u64 = map.iter().map(|run| run.count).sum();
        let now = now * SEGMENT_BLOCKS * BLOCK_BYTES as u64;
        let lost = now.saturating_sub(planned.size_bytes);
        let free = self.space.figures().1 * BLOCK_BYTES as u64;
        match lost > free {
            true => Err(Error::NoRoomElsewhere { needed_bytes: lost, free_bytes: free }),
            false => Ok(()),
        }
    }

    /// A further device, which is written over. Its slot.
    pub fn add_device(&self, device: Device, path: String, id: [u8; 16]) -> Result<u16> {
        let size_bytes = device.block_count() * BLOCK_BYTES as u64;
        self.plan_change(DeviceChange::Add { size_bytes })?;
        let name = device.name();
        wipe(&device).map_err(|e| device_error(&name, e))?;
        let segments = (device.block_count() / SEGMENT_BLOCKS).min(u64::from(u32::MAX)) as u32;
        let member = MemberRecord { segments, ..MemberRecord::default() };
        let entry = DeviceEntry { id, path, member };
        let mut slot = 0;
        let cp = self.lock_unless_alone(&self.cp).ok_or(Error::Busy)?;
        let _log = self.lock_unless_alone(&self.log).ok_or(Error::Busy)?;
        self.give_map(&device, &cp.root).map_err(|e| device_error(&name, e))?;
        self.store.change_members(|set| {
            set.note_sizes();
            slot = set.join(device.clone(), entry)?;
            // Its own label first, but of this generation: where nobody else comes to know of it,
            // a later change of the others counts.
            let raw = encode_label(set, slot, &device);
            let raw = raw.map_err(|e| Error::Format(e.to_string()))?;
            let mut written = LABEL_PLACES.iter().map(|place| device.write(*place, &[&raw]));
            let written = written.try_for_each(|written| written).and_then(|()| device.flush());
            written.map_err(|e| device_error(&name, e))
        })?;
        match self.store.members.now().readable(slot) {
            Some(_) => Ok(slot),
            None => Err(Error::Io(Arc::new(io::Error::other(format!("{name} failed"))))),
        }
    }

    /// The segment map is on every device of the pool, as the root names it.
    fn give_map(&self, device: &Device, root: &Root) -> io::Result<()> {
        let map = self.store.segment_map();
        for ((i, page), (_, place)) in (0..).zip(map.chunks(RUNS_PER_PAGE)).zip(root.segment_map) {
            let mut raw = Block::zeroed();
            SegmentMapPage { runs: page.to_vec() }.encode(&mut raw.0);
            device.write(SEGMENT_MAP_BASE + 2 * i + u64::from(place & 1), &[&raw])?;
        }
        device.flush()
    }

    /// From now on a device is being emptied: [`Core::rebalance_step`] does it.
    pub fn remove_device(&self, slot: u16) -> Result<()> {
        // What was freed and waits for a root must not stand in the way.
        let mut points = 0;
        while let Err(e) = self.plan_change(DeviceChange::Remove { slot }) {
            if points == SETTLING_POINTS || !matches!(e, Error::NoRoomElsewhere { .. }) {
                return Err(e);
            }
            points += 1;
            self.consistency_point_forced()?;
        }
        self.store.change_members(|set| {
            set.note_sizes();
            let entry = set.label.devices.get_mut(usize::from(slot));
            entry.ok_or(Error::Invalid("no such device"))?.member.state = MemberState::Removing;
            Ok(())
        })
    }

    /// Devices that are being removed and hold nothing any more leave the labels. Their readers
    /// are gone.
    pub fn drop_emptied(&self) -> Result<()> {
        let map = self.store.segment_map();
        let set = self.store.members.now();
        for (slot, entry) in (0..).zip(&set.label.devices) {
            let in_use = || map.iter().any(|run| run.members.iter().any(|m| m.0 == slot));
            if entry.member.state != MemberState::Removing || in_use() {
                continue;
            }
            self.store.change_members(|set| {
                if let Some(entry) = set.label.devices.get_mut(usize::from(slot)) {
                    entry.member =
                        MemberRecord { state: MemberState::Absent, ..Default::default() };
                    entry.path.clear();
                }
                if let Some(device) = set.devices.get_mut(usize::from(slot)) {
                    *device = None;
                }
                Ok(())
            })?;
            if let Some(Some(device)) = set.devices.get(usize::from(slot)) {
                // The pool does not know it any more; if it keeps its label, it is refused as old.
                let _ = wipe(device);
            }
        }
        Ok(())
    }

    /// Bytes of each slot's device that are mapped.
    pub fn mapped_bytes(&self) -> Vec<u64> {
        let mut mapped = vec![0; self.store.members.now().label.devices.len()];
        for run in self.store.segment_map() {
            for (slot, _) in &run.members {
                if let Some(bytes) = mapped.get_mut(usize::from(*slot)) {
                    *bytes += run.count * SEGMENT_BLOCKS * BLOCK_BYTES as u64;
                }
            }
        }
        mapped
    }
}
