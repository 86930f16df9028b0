//! MODE SENSE and MODE SELECT (SPC-4 §6.11 and §7.5, SBC-3 §6.4): pages 01h, 08h, 0Ah and 1Ch.
//! Changeable are WCE, SWP and D_SENSE; nothing is saved.

use super::attention::Attention;
use super::cdb::ModeQuery;
use super::media::{Kind, Task};
use super::nexus::{Nexus, Plan};
use super::unit::{FLAG_D_SENSE, FLAG_SWP, FLAG_WCE_OFF};
use super::{Answer, Sense};
use crate::lun::Geometry;

/// Every page, ascending, as 3Fh returns them.
const PAGES: [u8; 4] = [0x01, 0x08, 0x0A, 0x1C];
const WCE: u8 = 0x04;
const D_SENSE: u8 = 0x04;
const SWP: u8 = 0x08;

/// Which values of a page: PC of MODE SENSE.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Values {
    Current,
    Changeable,
    Default,
}

/// A mode page with its two-byte header, or `None` for one that does not exist.
fn page(code: u8, values: Values, flags: u32, geometry: &Geometry) -> Option<Vec<u8>> {
    let length = match code {
        0x01 | 0x0A | 0x1C => 0x0A,
        0x08 => 0x12,
        _ => return None,
    };
    let mut out = vec![0u8; length + 2];
    out[0] = code;
    out[1] = length as u8;
    let flags = if values == Values::Default { 0 } else { flags };
    match (code, values) {
        (0x08, Values::Changeable) if !geometry.write_through => out[2] = WCE,
        (0x0A, Values::Changeable) => {
            out[2] = D_SENSE;
            out[4] = SWP;
        }
        (_, Values::Changeable) => {}
        (0x01, _) => out[2] = 0xC0, // AWRE, ARRE: bad blocks are healed where they can be
        (0x08, _) => {
            let enabled = !geometry.write_through && flags & FLAG_WCE_OFF == 0;
            out[2] = if enabled { WCE } else { 0 };
        }
        (0x0A, _) => {
            out[2] = 0x02 | if flags & FLAG_D_SENSE != 0 { D_SENSE } else { 0 }; // GLTSD
            out[3] = 0x10; // unrestricted reordering
            out[4] = if flags & FLAG_SWP != 0 { SWP } else { 0 };
        }
        _ => {}
    }
    Some(out)
}

/// Mode parameter data for MODE SENSE.
pub(super) fn sense(
    nexus: &Nexus,
    geometry: &Geometry,
    query: &ModeQuery,
) -> Result<Vec<u8>, Sense> {
    let values = match query.control {
        0 => Values::Current,
        1 => Values::Changeable,
        2 => Values::Default,
        _ => return Err(Sense::SAVING_NOT_SUPPORTED),
    };
    let all = query.page == 0x3F;
    if query.subpage != 0 && !(all && query.subpage == 0xFF) {
        return Err(Sense::INVALID_FIELD);
    }
    let codes = if all { &PAGES[..] } else { std::slice::from_ref(&query.page) };
    let mut pages = Vec::new();
    for &code in codes {
        let page = page(code, values, nexus.unit().flags(), geometry);
        pages.extend(page.ok_or(Sense::INVALID_FIELD)?);
    }
    let descriptor = block_descriptor(geometry, query);
    let protect = if nexus.write_protected(geometry) { 0x80 } else { 0 };
    Ok(with_header(query, protect | 0x10, &descriptor, &pages)) // DPOFUA
}

fn block_descriptor(geometry: &Geometry, query: &ModeQuery) -> Vec<u8> {
    if query.no_descriptors {
        return Vec::new();
    }
    let blocks = geometry.size_bytes / u64::from(geometry.block_bytes.max(1));
    let length = geometry.block_bytes.to_be_bytes();
    if query.long_lba {
        return [&blocks.to_be_bytes()[..], &[0; 4], &length].concat();
    }
    let blocks = u32::try_from(blocks).unwrap_or(u32::MAX).to_be_bytes();
    [&blocks[..], &length].concat()
}

fn with_header(query: &ModeQuery, specific: u8, descriptor: &[u8], pages: &[u8]) -> Vec<u8> {
    let header = if query.ten {
        let length = (6 + descriptor.len() + pages.len()) as u16;
        let long = u8::from(query.long_lba && !descriptor.is_empty());
        let [high, low] = length.to_be_bytes();
        vec![high, low, 0, specific, long, 0, 0, descriptor.len() as u8]
    } else {
        let length = (3 + descriptor.len() + pages.len()) as u8;
        vec![length, 0, specific, descriptor.len() as u8]
    };
    [&header, descriptor, pages].concat()
}

/// MODE SELECT: what its CDB alone decides.
pub(super) fn plan_select(
    ten: bool,
    page_format: bool,
    save: bool,
    list_bytes: usize,
) -> Result<Plan, Sense> {
    if save || !page_format {
        return Err(Sense::INVALID_FIELD);
    }
    if list_bytes == 0 {
        return Ok(Plan::Done(Answer::good()));
    }
    Ok(Plan::Run(Task::with_out(Kind::ModeSelect { ten }, list_bytes)))
}

/// Carries out a MODE SELECT parameter list: wholly, or not at all.
pub(super) fn select(nexus: &Nexus, ten: bool, list: &[u8]) -> Result<(), Sense> {
    let geometry = nexus.geometry();
    let old = nexus.unit().flags();
    let mut flags = old;
    let mut rest = after_descriptors(&geometry, ten, list)?;
    while !rest.is_empty() {
        let (&code, &length) = match (rest.first(), rest.get(1)) {
            (Some(code), Some(length)) => (code, length),
            _ => return Err(Sense::LIST_LENGTH),
        };
        let end = usize::from(length) + 2;
        let wanted = rest.get(..end).ok_or(Sense::LIST_LENGTH)?;
        flags = select_page(&geometry, code & 0x3F, wanted, old, flags)?;
        rest = rest.get(end..).unwrap_or_default();
    }
    if nexus.unit().set_flags(FLAG_WCE_OFF | FLAG_D_SENSE | FLAG_SWP, flags) {
        nexus.unit().raise_for_others(nexus.state(), Attention::ModeChanged);
    }
    Ok(())
}

/// Skips the header and the block descriptors, which may only say what is already so.
fn after_descriptors<'l>(
    geometry: &Geometry,
    ten: bool,
    list: &'l [u8],
) -> Result<&'l [u8], Sense> {
    let header = if ten { 8 } else { 4 };
    let head = list.get(..header).ok_or(Sense::LIST_LENGTH)?;
    let descriptors = head.last().copied().map_or(0, usize::from);
    let end = header + descriptors;
    let block = list.get(header..end).ok_or(Sense::LIST_LENGTH)?;
    if let Some(tail) = block.len().checked_sub(3).and_then(|at| block.get(at..)) {
        let length = tail.iter().fold(0u32, |sum, &byte| (sum << 8) | u32::from(byte));
        if length != 0 && length != geometry.block_bytes {
            return Err(Sense::INVALID_PARAMETER);
        }
    }
    Ok(list.get(end..).unwrap_or_default())
}

/// Checks that a page changes only what is changeable, and takes its settings over into `flags`.
fn select_page(
    geometry: &Geometry,
    code: u8,
    wanted: &[u8],
    old: u32,
    flags: u32,
) -> Result<u32, Sense> {
    let current = page(code, Values::Current, old, geometry).ok_or(Sense::INVALID_PARAMETER)?;
    let mask = page(code, Values::Changeable, old, geometry).ok_or(Sense::INVALID_PARAMETER)?;
    if wanted.len() != current.len() {
        return Err(Sense::INVALID_PARAMETER);
    }
    let fixed = |((new, old), mask): ((&u8, &u8), &u8)| (new ^ old) & !mask == 0;
    let same = wanted.iter().zip(&current).zip(&mask).skip(2).all(fixed);
    if !same {
        return Err(Sense::INVALID_PARAMETER);
    }
    let bit = |at: usize, bit: u8| wanted.get(at).is_some_and(|byte| byte & bit != 0);
    let set = |flags: u32, flag: u32, on: bool| if on { flags | flag } else { flags & !flag };
    Ok(match code {
        0x08 if !geometry.write_through => set(flags, FLAG_WCE_OFF, !bit(2, WCE)),
        0x0A => set(set(flags, FLAG_D_SENSE, bit(2, D_SENSE)), FLAG_SWP, bit(4, SWP)),
        _ => flags,
    })
}
