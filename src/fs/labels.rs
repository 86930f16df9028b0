//! Reading the labels of a pool's devices, and deciding which of them is right.
//!
//! Rules:
//! - a label accounts for another one of the same lineage, of one of its ancestors, or of the
//!   lineage that it remembers for that device: the other has not gone on by itself since;
//! - the label that accounts for all others wins, of several the one of the highest generation;
//!   where none does, devices have gone on apart, and the pool is refused;
//! - a device takes part as the winner says, whatever its own label says.

use super::error::{Error, Result};
use super::members::{Device, Set};
use super::planted::{planted, Mutation};
use crate::device::{Block, BLOCK_BYTES};
use fs_layout::{Label, MemberState, LABEL_PLACES, ROOT_COPIES};
use std::io;

/// Smallest device: 64 MiB.
pub(crate) const MIN_DEVICE_BLOCKS: u64 = 16_384;

fn layout(e: fs_layout::LayoutError) -> Error {
    Error::Format(e.to_string())
}

pub(crate) fn read_one(device: &Device, block: u64) -> Result<Box<Block>> {
    let mut raw = [Block::zeroed()];
    device.read(block, &mut raw)?;
    let [raw] = raw;
    Ok(raw)
}

/// A device with its own label.
pub(crate) struct Labelled {
    pub device: Device,
    pub label: Label,
    /// One copy is not as the other.
    uneven: bool,
}

/// A device's label: of the copies that are whole the one of the higher generation.
pub(crate) fn read_label(device: &Device) -> Result<Labelled> {
    if device.block_count() < MIN_DEVICE_BLOCKS {
        return Err(Error::Format(format!("{} is not a lunfs pool (too small)", device.name())));
    }
    let copies = LABEL_PLACES.map(|place| {
        let read = read_one(device, place);
        read.and_then(|raw| Label::decode(&raw.0).map_err(layout))
    });
    let uneven = !matches!(&copies, [Ok(a), Ok(b)] if a == b);
    let why = copies.iter().find_map(|c| c.as_ref().err().map(|e| e.to_string()));
    let newest = copies.into_iter().filter_map(Result::ok).max_by_key(|l| l.generation);
    match newest {
        Some(label) if label.device_blocks > device.block_count() => Err(Error::Format(format!(
            "{} is truncated: {} bytes of {}",
            device.name(),
            device.block_count() * BLOCK_BYTES as u64,
            label.device_blocks * BLOCK_BYTES as u64
        ))),
        Some(label) => Ok(Labelled { device: device.clone(), label, uneven }),
        None => {
            let why = why.unwrap_or_default();
            Err(Error::Format(format!("{} is not a lunfs pool: {why}", device.name())))
        }
    }
}

/// What all labels of a pool have in common.
fn common(label: &Label) -> Label {
    Label { index: 0, device_blocks: 0, ..label.clone() }
}

pub(crate) fn own_id(label: &Label) -> [u8; 16] {
    label.devices.get(usize::from(label.index)).map_or([0; 16], |d| d.id)
}

/// The slot that a label gives to the device with this id.
pub(crate) fn slot_of(label: &Label, id: [u8; 16]) -> Option<usize> {
    let here = |d: &fs_layout::DeviceEntry| d.id == id && d.member.state != MemberState::Absent;
    label.devices.iter().position(here)
}

/// Has the device of `other` not gone on by itself, as far as `label` knows?
pub(crate) fn accounts_for(label: &Label, other: &Label) -> bool {
    if other.lineage == label.lineage || label.ancestors.contains(&other.lineage) {
        return true;
    }
    let record = slot_of(label, own_id(other)).map(|slot| label.devices[slot].member);
    let known = |r: &fs_layout::MemberRecord| {
        !matches!(r.state, MemberState::Normal | MemberState::Removing)
            && r.lineage == other.lineage
    };
    // A device that was taken out of the pool is nobody's witness.
    record.as_ref().is_none_or(known)
}

/// Which of these labels is right: its index.
pub fn newest_label(labels: &[Label]) -> Option<usize> {
    let all = |x: &Label| labels.iter().all(|y| accounts_for(x, y));
    let right = (0..labels.len()).filter(|i| all(&labels[*i]));
    right.max_by_key(|i| labels[*i].generation)
}

/// The devices of a pool, as far as they are there.
pub(crate) struct Assembled {
    pub set: Set,
    /// Slots of devices that are not there, though no label says that they may be missing.
    pub unrecorded: Vec<u16>,
    /// Why a device that was given could not be taken.
    pub refused: Vec<Error>,
    /// Labels differ: they must be rewritten before anything is acknowledged.
    pub uneven: bool,
}

/// Reads all labels and puts the devices into their slots.
pub(crate) fn assemble(devices: &[Device]) -> Result<Assembled> {
    let (mut found, mut refused) = (Vec::new(), Vec::new());
    for device in devices {
        match read_label(device) {
            Ok(labelled) => found.push(labelled),
            Err(e) => refused.push(e),
        }
    }
    let Some(first) = found.first() else {
        return Err(refused.into_iter().next().unwrap_or(Error::Invalid("no device given")));
    };
    if let Some(other) = found.iter().find(|f| f.label.pool_id != first.label.pool_id) {
        let name = other.device.name();
        return Err(Error::Format(format!("{name} belongs to another pool")));
    }
    let labels: Vec<Label> = found.iter().map(|f| f.label.clone()).collect();
    let newest = newest_label(&labels).ok_or_else(|| apart(&found))?;
    let label = common(&labels[newest]);
    let mut set = Set { devices: label.devices.iter().map(|_| None).collect(), label };
    let mut uneven = false;
    for f in found {
        let Some(slot) = slot_of(&set.label, own_id(&f.label)) else { continue };
        if let Some(twin) = set.devices[slot].replace(f.device.clone()) {
            let names = (twin.name(), f.device.name());
            let what = "are the same device of the pool: one is a copy";
            return Err(Error::Format(format!("{} and {} {what}", names.0, names.1)));
        }
        // One that is missing is taken back when somebody says so.
        if set.record(slot as u16).is_some_and(|r| r.state == MemberState::Missing) {
            set.devices[slot] = None;
        }
        let written = set.written(slot as u16).is_some();
        uneven |= written && (f.uneven || common(&f.label) != set.label);
    }
    let unrecorded = (0..set.devices.len() as u16).filter(|slot| is_unrecorded(&set, *slot));
    Ok(Assembled { unrecorded: unrecorded.collect(), set, refused, uneven })
}

fn is_unrecorded(set: &Set, slot: u16) -> bool {
    let state = set.record(slot).map(|r| r.state);
    let away = matches!(state, None | Some(MemberState::Missing | MemberState::Absent));
    set.devices[usize::from(slot)].is_none() && !away
}

/// Both of two sides went on without the other.
fn apart(found: &[Labelled]) -> Error {
    let newest = found.iter().max_by_key(|f| f.label.generation);
    let Some(one) = newest else { return Error::Invalid("no device given") };
    let other = found.iter().find(|f| !accounts_for(&one.label, &f.label));
    let Some(other) = other else { return Error::Invalid("no device given") };
    let since = |a: &Label, b: &Label| {
        slot_of(a, own_id(b)).map(|s| a.devices[s].member).map_or(0, |r| r.good_epoch)
    };
    let since = since(&one.label, &other.label).max(since(&other.label, &one.label));
    Error::Format(format!(
        "{} and {} went on without each other after consistency point {since}: give the one \
         whose content counts alone, with --degraded, then replace the other",
        one.device.name(),
        other.device.name()
    ))
}

/// A device that becomes part of a pool must not be taken for part of another one: its old roots
/// and labels go first.
pub(crate) fn wipe(device: &Device) -> io::Result<()> {
    let zero = Block::zeroed();
    for at in ROOT_COPIES.into_iter().chain(LABEL_PLACES) {
        device.write(at, &[&zero, &zero])?;
    }
    device.flush()
}

/// A device's label as a block.
pub(crate) fn encode_label(set: &Set, slot: u16, device: &Device) -> io::Result<Box<Block>> {
    let label = Label { index: slot, device_blocks: device.block_count(), ..set.label.clone() };
    let mut raw = Block::zeroed();
    label.encode(&mut raw.0).map_err(|e| io::Error::other(e.to_string()))?;
    Ok(raw)
}

/// A copy that is not whole goes first: the power may fail while the other one is written.
fn in_writing_order(device: &Device) -> [u64; 2] {
    let [first, second] = LABEL_PLACES;
    let is_whole = |place| read_one(device, place).is_ok_and(|raw| Label::decode(&raw.0).is_ok());
    match is_whole(first) && !is_whole(second) {
        true => [second, first],
        false => [first, second],
    }
}

/// Writes both labels of all devices that are written, one copy after the other, so that one is
/// always whole. Fails with the slot of the device that did. A device that was not read `before`
/// comes last: it must not take itself for normal where another may still go on without it.
pub(crate) fn write_labels(set: &Set, before: &Set) -> std::result::Result<(), (u16, io::Error)> {
    let mut devices: Vec<(u16, &Device)> = set.all_written().collect();
    devices.sort_by_key(|(slot, _)| {
        before.readable(*slot).is_none() != planted(Mutation::FilledOneKnowsFirst)
    });
    for (slot, device) in devices {
        let write = |raw: Box<Block>| {
            let mut places = in_writing_order(device).into_iter();
            places.try_for_each(|place| device.write(place, &[&raw]).and_then(|()| device.flush()))
        };
        encode_label(set, slot, device).and_then(write).map_err(|e| (slot, e))?;
    }
    Ok(())
}
