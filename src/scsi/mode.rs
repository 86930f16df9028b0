//! MODE SENSE and MODE SELECT (SPC-4 §6.11 and §7.5, SBC-3 §6.5): pages 01h, 08h, 0Ah, 1Ch and
//! 1Ch/02h. Changeable are WCE, SWP and D_SENSE, and they can be saved with the LUN.

use super::attention::Attention;
use super::cdb::ModeQuery;
use super::media::{Kind, Task};
use super::nexus::{Nexus, Plan};
use super::unit::{FLAG_D_SENSE, FLAG_SWP, FLAG_WCE_OFF};
use super::{log, Answer, Sense};
use crate::lun::Geometry;

/// Every page and subpage, ascending, as 3Fh/FFh returns them.
const PAGES: [(u8, u8); 5] = [(0x01, 0), (0x08, 0), (0x0A, 0), (0x1C, 0), THRESHOLDS];
/// Logical block provisioning (SBC-3 §6.5.8).
const THRESHOLDS: (u8, u8) = (0x1C, 0x02);
const ALL: u8 = 0x3F;
const ALL_SUBPAGES: u8 = 0xFF;
/// PS: the page can be saved.
const SAVEABLE: u8 = 0x80;
/// SPF: the page has a subpage code and a length of two bytes.
const SUBPAGE_FORMAT: u8 = 0x40;
/// What MODE SELECT may change.
const FLAGS: u32 = FLAG_WCE_OFF | FLAG_D_SENSE | FLAG_SWP;
const WCE: u8 = 0x04;
const D_SENSE: u8 = 0x04;
const SWP: u8 = 0x08;

/// Which values of a page: PC of MODE SENSE.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Values {
    Current,
    Changeable,
    Default,
    Saved,
}

/// What the pages are made of.
struct Ground<'g> {
    geometry: &'g Geometry,
    current: u32,
    saved: u32,
    /// The soft threshold in threshold sets; 0: none.
    threshold: u32,
}

impl<'g> Ground<'g> {
    fn of(nexus: &Nexus, geometry: &'g Geometry) -> Ground<'g> {
        let percent = u128::from(nexus.disk().provisioning().threshold_percent);
        let bytes = u128::from(geometry.size_bytes) * percent / 100;
        let threshold = log::threshold_sets(bytes as u64);
        let unit = nexus.unit();
        Ground { geometry, current: unit.flags(), saved: unit.saved_mode(), threshold }
    }

    fn flags(&self, values: Values) -> u32 {
        match values {
            Values::Default => 0,
            Values::Saved => self.saved,
            Values::Current | Values::Changeable => self.current,
        }
    }
}

/// A mode page with its two-byte header, or `None` for one that does not exist.
fn page((code, subpage): (u8, u8), values: Values, ground: &Ground<'_>) -> Option<Vec<u8>> {
    if (code, subpage) == THRESHOLDS {
        return Some(thresholds(values, ground));
    }
    let geometry = ground.geometry;
    let length = match code {
        _ if subpage != 0 => return None,
        0x01 | 0x0A | 0x1C => 0x0A,
        0x08 => 0x12,
        _ => return None,
    };
    let mut out = vec![0u8; length + 2];
    out[0] = code | if matches!(code, 0x08 | 0x0A) { SAVEABLE } else { 0 };
    out[1] = length as u8;
    let flags = ground.flags(values);
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
            // TST = 001b, GLTSD
            out[2] = 0x22 | if flags & FLAG_D_SENSE != 0 { D_SENSE } else { 0 };
            out[3] = 0x10; // unrestricted reordering
            out[4] = if flags & FLAG_SWP != 0 { SWP } else { 0 };
        }
        _ => {}
    }
    Some(out)
}

/// One descriptor where the LUN has a threshold: soft, armed increasing, of what it uses. It is set
/// by the LUN's `threshold`, not by MODE SELECT.
fn thresholds(values: Values, ground: &Ground<'_>) -> Vec<u8> {
    const BODY_BYTES: u8 = 12;
    const DESCRIPTOR_BYTES: u8 = 8;
    let (code, subpage) = THRESHOLDS;
    let told = ground.threshold != 0;
    let length = BODY_BYTES + if told { DESCRIPTOR_BYTES } else { 0 };
    let mut out = vec![code | SUBPAGE_FORMAT, subpage, 0, length];
    out.resize(4 + usize::from(BODY_BYTES), 0);
    match values {
        _ if !told => {}
        Values::Changeable => out.extend_from_slice(&[0; DESCRIPTOR_BYTES as usize]),
        _ => {
            out.extend_from_slice(&[0x82, 0x02, 0, 0]);
            out.extend_from_slice(&ground.threshold.to_be_bytes());
        }
    }
    out
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
        _ => Values::Saved,
    };
    let asked = |(code, subpage): (u8, u8)| {
        (query.page == ALL || query.page == code)
            && (query.subpage == ALL_SUBPAGES || query.subpage == subpage)
    };
    if query.page == ALL && !matches!(query.subpage, 0 | ALL_SUBPAGES) {
        return Err(Sense::INVALID_FIELD);
    }
    let ground = Ground::of(nexus, geometry);
    let asked = PAGES.into_iter().filter(|id| asked(*id));
    let pages: Vec<u8> = asked.filter_map(|id| page(id, values, &ground)).flatten().collect();
    if pages.is_empty() {
        return Err(Sense::INVALID_FIELD);
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
    if !page_format {
        return Err(Sense::INVALID_FIELD);
    }
    if list_bytes == 0 {
        return Ok(Plan::Done(Answer::good()));
    }
    Ok(Plan::Run(Task::with_out(Kind::ModeSelect { ten, save }, list_bytes)))
}

/// Carries out a MODE SELECT parameter list: wholly, or not at all.
pub(super) fn select(nexus: &Nexus, ten: bool, save: bool, list: &[u8]) -> Result<(), Sense> {
    let geometry = nexus.geometry();
    let ground = Ground::of(nexus, &geometry);
    let mut flags = ground.current;
    let mut rest = after_descriptors(&geometry, ten, list)?;
    while !rest.is_empty() {
        let (id, head, length) = match *rest {
            [code, subpage, high, low, ..] if code & SUBPAGE_FORMAT != 0 => {
                ((code & 0x3F, subpage), 4, u16::from_be_bytes([high, low]))
            }
            [code, length, ..] => ((code & 0x3F, 0), 2, u16::from(length)),
            _ => return Err(Sense::LIST_LENGTH),
        };
        let end = usize::from(length) + head;
        let wanted = rest.get(..end).ok_or(Sense::LIST_LENGTH)?;
        flags = select_page(&ground, id, head, wanted, flags)?;
        rest = rest.get(end..).unwrap_or_default();
    }
    let changes = save || flags != ground.current;
    if changes && !nexus.disk().may_change() {
        return Err(Sense::WRITE_PROTECTED); // the settings are those of all clients
    }
    if save {
        nexus.disk().save_mode(flags & FLAGS).map_err(|error| nexus.sense_of(&error, true))?;
        nexus.unit().set_saved_mode(flags & FLAGS);
    }
    if nexus.unit().set_flags(FLAGS, flags) {
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
    ground: &Ground<'_>,
    id: (u8, u8),
    head: usize,
    wanted: &[u8],
    flags: u32,
) -> Result<u32, Sense> {
    let current = page(id, Values::Current, ground).ok_or(Sense::INVALID_PARAMETER)?;
    let mask = page(id, Values::Changeable, ground).ok_or(Sense::INVALID_PARAMETER)?;
    if wanted.len() != current.len() {
        return Err(Sense::INVALID_PARAMETER);
    }
    let fixed = |((new, old), mask): ((&u8, &u8), &u8)| (new ^ old) & !mask == 0;
    let same = wanted.iter().zip(&current).zip(&mask).skip(head).all(fixed);
    if !same {
        return Err(Sense::INVALID_PARAMETER);
    }
    let bit = |at: usize, bit: u8| wanted.get(at).is_some_and(|byte| byte & bit != 0);
    let set = |flags: u32, flag: u32, on: bool| if on { flags | flag } else { flags & !flag };
    Ok(match id.0 {
        0x08 if !ground.geometry.write_through => set(flags, FLAG_WCE_OFF, !bit(2, WCE)),
        0x0A => set(set(flags, FLAG_D_SENSE, bit(2, D_SENSE)), FLAG_SWP, bit(4, SWP)),
        _ => flags,
    })
}
