//! The roots and the segment map, at their own places on every device.
//!
//! Rules:
//! - a slot of the root has two copies on each device; a crash leaves at most one of them
//!   unreadable, so both bad on every device means that the newest root may be lost;
//! - the map is whole on every device; which place of a page is current, the root says.

use super::error::{Error, Result};
use super::labels::{assemble, read_one};
use super::members::Device;
use super::store::Store;
use crate::device::Block;
use fs_layout::{
    Root, SegmentMapPage, SegmentRun, ROOT_COPIES, ROOT_SLOTS, RUNS_PER_PAGE, SEGMENT_MAP_BASE,
    SEGMENT_MAP_PAGES,
};

fn layout(e: fs_layout::LayoutError) -> Error {
    Error::Format(e.to_string())
}

/// The newest root: (root, its hash, its slot).
pub(super) fn newest_root(devices: &[Device]) -> Result<(Root, [u8; 32], u64)> {
    let mut best: Option<(Root, [u8; 32], u64)> = None;
    for slot in 0..ROOT_SLOTS {
        let found = read_root_slot(devices, slot);
        // A crash leaves at most one copy of a slot unreadable. Both bad on every device: the
        // newest root may be lost, and to go on from the older one would undo what was promised.
        let lost = |copy: &Copies| copy.valid.is_none() && copy.bad.is_some();
        if let [Copies { bad: Some(why), .. }, _] = found.each_ref() {
            if found.iter().all(lost) {
                return Err(Error::Format(format!("both copies of a root are unreadable ({why})")));
            }
        }
        for (root, hash) in found.into_iter().filter_map(|c| c.valid) {
            if best.as_ref().is_none_or(|(b, ..)| b.epoch < root.epoch) {
                best = Some((root, hash, slot));
            }
        }
    }
    best.ok_or_else(|| Error::Format("the pool has no root".into()))
}

/// Makes all copies of a slot what the newest of them is. A crash may have left one unreadable, or
/// as it was before: then the newest root would have one copy alone while the other slot is
/// written, and a later crash in its own slot would find no copy of the root before.
pub(super) fn mend_roots(devices: &[Device]) {
    for slot in 0..ROOT_SLOTS {
        let mut copies = Vec::new();
        for device in devices {
            for at in ROOT_COPIES.map(|copy| copy + slot) {
                let read = read_one(device, at);
                let root = read.and_then(|raw| Ok((Root::decode(&raw.0).map_err(layout)?.0, raw)));
                copies.push((device, at, root.ok().map(|(root, raw)| (root.epoch, raw))));
            }
        }
        let whole = copies.iter().filter_map(|(.., root)| root.as_ref());
        let Some((newest, raw)) = whole.max_by_key(|(epoch, _)| *epoch) else { continue };
        let is_old = |root: &Option<(u64, _)>| root.as_ref().is_none_or(|(e, _)| e < newest);
        let old = || copies.iter().filter(|(.., root)| is_old(root));
        if old().next().is_none() {
            continue;
        }
        // The newest copy may be in a cache only: it is durable before another is touched. A
        // device that refuses has its other copy; the consistency point to come will tell.
        devices.iter().for_each(|device| drop(device.flush()));
        for (device, at, _) in old() {
            let _ = device.write(*at, &[raw]).and_then(|()| device.flush());
        }
    }
}

/// One copy of a slot, on all devices: the newest that is valid, and why another is not.
#[derive(Default)]
struct Copies {
    valid: Option<(Root, [u8; 32])>,
    bad: Option<String>,
}

fn read_root_slot(devices: &[Device], slot: u64) -> [Copies; 2] {
    ROOT_COPIES.map(|copy| {
        let mut found = Copies::default();
        for device in devices {
            let read = read_one(device, copy + slot);
            let never_written = |raw: &Block| raw.0.iter().all(|b| *b == 0);
            let root = read.and_then(|raw| match Root::decode(&raw.0) {
                Err(_) if never_written(&raw) => Ok(None),
                decoded => decoded.map(Some).map_err(layout),
            });
            match root {
                Ok(None) => {}
                Ok(Some(root)) => {
                    if found.valid.as_ref().is_none_or(|(b, _)| b.epoch < root.0.epoch) {
                        found.valid = Some(root);
                    }
                }
                Err(e) => found.bad = Some(e.to_string()),
            }
        }
        found
    })
}

/// The map from whichever device has it whole: all have it.
pub(super) fn read_segment_map(devices: &[Device], root: &Root) -> Result<Vec<SegmentRun>> {
    let mut failure = Error::Invalid("no device given");
    for device in devices {
        match read_segment_map_of(device, root) {
            Ok(runs) => return Ok(runs),
            Err(e) => failure = e,
        }
    }
    Err(failure)
}

fn read_segment_map_of(device: &Device, root: &Root) -> Result<Vec<SegmentRun>> {
    let mut runs = Vec::new();
    for (i, (crc, place)) in root.segment_map.iter().enumerate() {
        if *place > 1 {
            continue;
        }
        let raw = read_one(device, SEGMENT_MAP_BASE + 2 * i as u64 + u64::from(*place))?;
        if crc32c::crc32c(&raw.0) != *crc {
            return Err(Error::Format("the segment map does not match its checksum".into()));
        }
        runs.extend(SegmentMapPage::decode(&raw.0).map_err(layout)?.runs);
    }
    let sorted = runs.windows(2).all(|w| w[0].logical + w[0].count <= w[1].logical);
    if runs.is_empty() || !sorted {
        return Err(Error::Format("the segment map makes no sense".into()));
    }
    Ok(runs)
}

/// Writes the map into the places that are not current, on every device.
pub(crate) fn write_segment_map(
    store: &Store,
    runs: &[SegmentRun],
    entries: &mut [(u32, u8); SEGMENT_MAP_PAGES],
) -> Result<()> {
    let pages: Vec<&[SegmentRun]> = runs.chunks(RUNS_PER_PAGE).collect();
    if pages.len() > SEGMENT_MAP_PAGES {
        return Err(Error::Format("the segment map is full".into()));
    }
    for (i, entry) in entries.iter_mut().enumerate() {
        let Some(page) = pages.get(i) else {
            *entry = (0, 255);
            continue;
        };
        let mut raw = Block::zeroed();
        SegmentMapPage { runs: page.to_vec() }.encode(&mut raw.0);
        let place = if entry.1 == 0 { 1 } else { 0 };
        store.write_everywhere(SEGMENT_MAP_BASE + 2 * i as u64 + u64::from(place), &[&raw])?;
        *entry = (crc32c::crc32c(&raw.0), place);
    }
    Ok(())
}

/// A slot of the root that no device can read though it was written, and the root in the other.
pub(super) fn lost_root(devices: &[Device]) -> Result<Option<(u64, Root)>> {
    let set = assemble(devices)?.set;
    let readable: Vec<Device> = set.all_readable().map(|(_, d)| d.clone()).collect();
    let slots = [0, 1].map(|slot| read_root_slot(&readable, slot));
    let lost = |c: &[Copies; 2]| c.iter().all(|c| c.valid.is_none() && c.bad.is_some());
    for (slot, other) in [(0, 1), (1, 0)] {
        if let Some((root, _)) = slots[other].iter().find_map(|c| c.valid.as_ref()) {
            if lost(&slots[slot]) {
                return Ok(Some((slot as u64, root.clone())));
            }
        }
    }
    Ok(None)
}

/// Makes a slot of the root one that was never written.
pub(super) fn forget_root(devices: &[Device], slot: u64) -> Result<()> {
    for device in devices {
        for at in ROOT_COPIES {
            device.write(at + slot, &[&Block::zeroed()])?;
            device.flush()?;
        }
    }
    Ok(())
}
