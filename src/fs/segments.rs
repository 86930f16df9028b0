//! Which device segments stand behind the pool's segments: pure functions over the segment map.
//!
//! Invariants of a map made or changed here:
//! - no device segment stands behind two pool segments, and none is a device's first, its own;
//! - the copies of a segment are on different devices;
//! - no further segment can be made of what is left (for a mirror but for one segment: see
//!   [`capacity`]).

use super::types::Redundancy;
use fs_layout::{SegmentRun, SEGMENT_BLOCKS};

/// A run of a device's segments: first, count.
pub(crate) type Extent = (u64, u64);
/// For each device: its segments that stand behind nothing, ascending, no two touching.
pub(crate) type Free = Vec<Vec<Extent>>;
/// (device, first segment of it) of each copy.
pub(crate) type Members = Vec<(u16, u64)>;

/// A layout goes around the devices so often, so that what is written in a row is on many of them.
const ROUNDS: u64 = 32;
/// But not in pieces smaller than 128 MiB: the map has room for 504 runs.
const MIN_PIECE: u64 = 64;

/// The redundancy class of a run.
pub(crate) fn class_of(redundancy: Redundancy) -> u8 {
    match redundancy {
        Redundancy::None => 0,
        Redundancy::Mirror => 1,
    }
}

/// What a map of a pool says of its redundancy.
pub(crate) fn redundancy_of(map: &[SegmentRun]) -> Redundancy {
    match map.iter().any(|run| run.class != 0) {
        true => Redundancy::Mirror,
        false => Redundancy::None,
    }
}

/// Segments of a device of so many blocks that can be mapped.
pub(crate) fn usable_segments(device_blocks: u64) -> u64 {
    (device_blocks / SEGMENT_BLOCKS).saturating_sub(1)
}

/// Segments a pool can have over devices with so many usable ones each. A mirror needs a partner
/// on another device for each: the largest device is of use as far as the others together reach.
pub(crate) fn capacity(redundancy: Redundancy, usable: &[u64]) -> u64 {
    let sum: u64 = usable.iter().sum();
    let largest = usable.iter().copied().max().unwrap_or(0);
    match redundancy {
        Redundancy::None => sum,
        Redundancy::Mirror => (sum / 2).min(sum - largest),
    }
}

/// The map of a new pool over devices of so many blocks, and the pool's length in blocks.
pub(crate) fn lay_out(redundancy: Redundancy, device_blocks: &[u64]) -> (Vec<SegmentRun>, u64) {
    let whole = |blocks: &u64| match usable_segments(*blocks) {
        0 => vec![],
        usable => vec![(1, usable)],
    };
    let mut free: Free = device_blocks.iter().map(whole).collect();
    let mut map = Vec::new();
    let mut logical = 1;
    for (count, members) in take_all(redundancy, &mut free) {
        push_run(&mut map, SegmentRun { logical, count, class: class_of(redundancy), members });
        logical += count;
    }
    (map, logical * SEGMENT_BLOCKS)
}

/// Makes as much as can be made of free device segments: (count, members) of each run.
pub(crate) fn take_all(redundancy: Redundancy, free: &mut Free) -> Vec<(u64, Members)> {
    match redundancy {
        Redundancy::None => take_each(free),
        Redundancy::Mirror => take_pairs(free),
    }
}

fn take_each(free: &mut Free) -> Vec<(u64, Members)> {
    let mut made = Vec::new();
    for (device, extents) in free.iter_mut().enumerate() {
        let run = |(first, count)| (count, vec![(device as u16, first)]);
        made.extend(std::mem::take(extents).into_iter().map(run));
    }
    made
}

/// Pairs the two devices with most left, piece by piece. A piece ends before a third device would
/// have more left than all others together: so nothing but the excess of a device that is larger
/// than all others, or one odd segment, is left over.
fn take_pairs(free: &mut Free) -> Vec<(u64, Members)> {
    let usable: Vec<u64> = free.iter().map(|extents| total(extents)).collect();
    let piece = (capacity(Redundancy::Mirror, &usable) / ROUNDS).max(MIN_PIECE);
    let mut made = Vec::new();
    loop {
        let mut left: Vec<(u64, usize)> =
            free.iter().enumerate().map(|(device, extents)| (total(extents), device)).collect();
        left.sort_by_key(|(count, device)| (std::cmp::Reverse(*count), *device));
        let [(_, a), (less, b), others @ ..] = &left[..] else { return made };
        if *less == 0 {
            return made;
        }
        let third = others.first().map_or(0, |(count, _)| *count);
        let sum: u64 = left.iter().map(|(count, _)| *count).sum();
        let slack = (sum / 2).saturating_sub(third).max(1);
        let want = piece.min(*less).min(slack);
        let want = want.min(first_of(free, *a)).min(first_of(free, *b));
        let (low, high) = (*a.min(b), *a.max(b));
        let members = [low, high].map(|device| (device as u16, take(&mut free[device], want)));
        made.push((want, members.to_vec()));
    }
}

fn total(extents: &[Extent]) -> u64 {
    extents.iter().map(|(_, count)| *count).sum()
}

fn first_of(free: &Free, device: usize) -> u64 {
    free.get(device).and_then(|extents| extents.first()).map_or(0, |(_, count)| *count)
}

/// Takes `count` segments from the first extent, which has as many; the first of them.
fn take(extents: &mut Vec<Extent>, count: u64) -> u64 {
    let Some((first, left)) = extents.first_mut() else { return 0 };
    let taken = *first;
    *first += count;
    *left -= count;
    if *left == 0 {
        extents.remove(0);
    }
    taken
}

/// Appends a run, as part of the last one where it goes on on every member.
pub(crate) fn push_run(map: &mut Vec<SegmentRun>, run: SegmentRun) {
    if let Some(last) = map.last_mut() {
        let goes_on = |(a, b): (&(u16, u64), &(u16, u64))| a.0 == b.0 && a.1 + last.count == b.1;
        if last.class == run.class
            && last.logical + last.count == run.logical
            && last.members.len() == run.members.len()
            && last.members.iter().zip(&run.members).all(goes_on)
        {
            last.count += run.count;
            return;
        }
    }
    map.push(run);
}

#[cfg(test)]
pub(crate) mod tests;
