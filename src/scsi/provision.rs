//! Thin provisioning: UNMAP, WRITE SAME, GET LBA STATUS (SBC-3 §4.7). Unmapped blocks read as zeros
//! (LBPRZ = 1), whatever their alignment.

use super::cdb::{Range, WriteSame};
use super::media::{bytes_of, repeated, Cancel, Kind, Task, PIECE_BYTES};
use super::nexus::{Nexus, Plan};
use super::{Answer, Sense};
use crate::lun::{BlockError, Geometry};

/// MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT; one command's list stays within 4 KiB.
pub(super) const MAX_UNMAP_DESCRIPTORS: u32 = 255;
/// MAXIMUM UNMAP LBA COUNT: no limit, a hole of any length is made at once.
pub(super) const MAX_UNMAP_BLOCKS: u32 = u32::MAX;
/// MAXIMUM WRITE SAME LENGTH in bytes: bounds the time that one command with a pattern takes.
pub(super) const MAX_WRITE_SAME_BYTES: u64 = 128 << 20;
/// Most descriptors GET LBA STATUS returns, however long the allocation.
const MAX_STATUS_DESCRIPTORS: usize = 4096;
const UNMAP_HEADER_BYTES: usize = 8;
const DESCRIPTOR_BYTES: usize = 16;

pub(super) fn plan_unmap(nexus: &Nexus, anchor: bool, list_bytes: usize) -> Result<Plan, Sense> {
    if anchor {
        return Err(Sense::INVALID_FIELD);
    }
    if nexus.write_protected(&nexus.geometry()) {
        return Err(Sense::WRITE_PROTECTED);
    }
    // zero is no error, and nothing to do; shorter than the header is one (SBC-3 §5.28.1)
    match list_bytes {
        0 => Ok(Plan::Done(Answer::good())),
        1..UNMAP_HEADER_BYTES => Err(Sense::LIST_LENGTH),
        _ => {
            let kind = Kind::Unmap { max_descriptors: MAX_UNMAP_DESCRIPTORS as usize };
            Ok(Plan::Run(Task::with_out(kind, list_bytes)))
        }
    }
}

fn be<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// The descriptors of an UNMAP parameter list, in bytes; each checked before any is carried out.
fn unmap_ranges(
    geometry: &Geometry,
    list: &[u8],
    max_descriptors: usize,
) -> Result<Vec<(u64, u64)>, Sense> {
    let length = be::<2>(list, 2).map(u16::from_be_bytes).ok_or(Sense::LIST_LENGTH)?;
    let descriptors = list.get(UNMAP_HEADER_BYTES..).unwrap_or_default();
    // a list cut short by its transfer holds whole descriptors only as far as both lengths go
    let usable = descriptors.len().min(usize::from(length));
    let count = usable / DESCRIPTOR_BYTES;
    if count > max_descriptors {
        return Err(Sense::INVALID_PARAMETER);
    }
    let mut ranges = Vec::with_capacity(count);
    for descriptor in descriptors.chunks_exact(DESCRIPTOR_BYTES).take(count) {
        let lba = be::<8>(descriptor, 0).map_or(0, u64::from_be_bytes);
        let blocks = be::<4>(descriptor, 8).map_or(0, u32::from_be_bytes);
        let (offset, bytes) = bytes_of(geometry, Range { lba, blocks: u64::from(blocks) })?;
        if bytes != 0 {
            ranges.push((offset, bytes));
        }
    }
    Ok(ranges)
}

pub(super) fn unmap(nexus: &Nexus, list: &[u8], max_descriptors: usize) -> Result<(), Sense> {
    for (offset, bytes) in unmap_ranges(&nexus.geometry(), list, max_descriptors)? {
        nexus.disk().unmap(offset, bytes).map_err(|error| nexus.sense_of(&error, true))?;
    }
    finish(nexus)
}

/// With WCE cleared what a command did is durable when it is answered.
fn finish(nexus: &Nexus) -> Result<(), Sense> {
    if nexus.write_through() {
        nexus.disk().flush().map_err(|error| nexus.sense_of(&error, true))?;
    }
    Ok(())
}

pub(super) fn plan_write_same(nexus: &Nexus, same: &WriteSame) -> Result<Plan, Sense> {
    let geometry = nexus.geometry();
    let block = u64::from(geometry.block_bytes.max(1));
    let mut range = same.range;
    if range.blocks == 0 {
        range.blocks = (geometry.size_bytes / block).checked_sub(range.lba).unwrap_or(1);
    }
    let (offset, length) = bytes_of(&geometry, range)?;
    if length > MAX_WRITE_SAME_BYTES {
        return Err(Sense::INVALID_FIELD);
    }
    if nexus.write_protected(&geometry) {
        return Err(Sense::WRITE_PROTECTED);
    }
    let data_out_bytes = if same.no_data { 0 } else { geometry.block_bytes as usize };
    if length == 0 {
        return Ok(Plan::Done(Answer::good()));
    }
    let kind = Kind::WriteSame { offset, length, unmap: same.unmap };
    Ok(Plan::Run(Task::with_out(kind, data_out_bytes)))
}

/// With UNMAP the blocks become a hole and read as zeros whatever the data-out is, as all targets
/// in use do it. Without, zeros are kept as blocks and other data is written out.
pub(super) fn write_same(
    nexus: &Nexus,
    offset: u64,
    length: u64,
    unmap: bool,
    block: &[u8],
    cancel: &Cancel<'_>,
) -> Result<(), Sense> {
    let failed = |error: BlockError| nexus.sense_of(&error, true);
    if unmap || block.iter().all(|&byte| byte == 0) {
        nexus.disk().write_zeroes(offset, length, unmap).map_err(failed)?;
        return finish(nexus);
    }
    let piece = repeated(block, length.min(PIECE_BYTES as u64) as usize);
    let end = offset + length;
    let mut at = offset;
    while at < end {
        cancel.check()?;
        let bytes = (end - at).min(piece.len().max(1) as u64) as usize;
        let data = piece.get(..bytes).unwrap_or(&piece);
        nexus.disk().write(at, data, false).map_err(failed)?;
        at += bytes as u64;
    }
    finish(nexus)
}

pub(super) fn plan_lba_status(
    geometry: &Geometry,
    lba: u64,
    allocation_bytes: usize,
) -> Result<Plan, Sense> {
    bytes_of(geometry, Range { lba, blocks: 1 })?;
    Ok(Plan::Run(Task::new(Kind::LbaStatus { lba, allocation_bytes })))
}

/// GET LBA STATUS parameter data (SBC-3 §5.6.2).
pub(super) fn lba_status(
    nexus: &Nexus,
    lba: u64,
    allocation_bytes: usize,
) -> Result<Vec<u8>, Sense> {
    let geometry = nexus.geometry();
    let block = u64::from(geometry.block_bytes.max(1));
    let start = lba.checked_mul(block).ok_or(Sense::LBA_OUT_OF_RANGE)?;
    let rest = geometry.size_bytes.checked_sub(start).ok_or(Sense::LBA_OUT_OF_RANGE)?;
    let room = allocation_bytes.saturating_sub(UNMAP_HEADER_BYTES) / DESCRIPTOR_BYTES;
    let runs = nexus
        .disk()
        .extents(start, rest, room.clamp(1, MAX_STATUS_DESCRIPTORS))
        .map_err(|error| nexus.sense_of(&error, false))?;
    let mut data = vec![0u8; UNMAP_HEADER_BYTES];
    for run in runs {
        let blocks = (run.length_bytes / block).min(u64::from(u32::MAX)) as u32;
        data.extend_from_slice(&(run.offset_bytes / block).to_be_bytes());
        data.extend_from_slice(&blocks.to_be_bytes());
        data.extend_from_slice(&[u8::from(!run.mapped), 0, 0, 0]);
        if u64::from(blocks) != run.length_bytes / block {
            break; // the next run would not begin where this descriptor ends
        }
    }
    let length = (data.len() - 4) as u32;
    data[..4].copy_from_slice(&length.to_be_bytes());
    Ok(data)
}
