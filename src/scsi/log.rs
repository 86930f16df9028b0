//! LOG SENSE (SPC-4 §6.8, §7.3): which pages there are, logical block provisioning (SBC-3 §6.4.5),
//! informational exceptions.

use super::cdb::LogQuery;
use super::nexus::Nexus;
use super::Sense;
use crate::lun::Geometry;

const SUPPORTED: u8 = 0x00;
const PROVISIONING: u8 = 0x0C;
const EXCEPTIONS: u8 = 0x2F;
/// Every page, ascending.
const PAGES: [u8; 3] = [SUPPORTED, PROVISIONING, EXCEPTIONS];
const ALL_SUBPAGES: u8 = 0xFF;
/// PC: cumulative values, the only ones there are.
const CUMULATIVE: u8 = 1;
/// Bytes of a threshold set: what resource counts are counted in.
const SET_BYTES: u64 = 1 << 20;
/// Parameter control byte: format and linking 11b, binary list.
const BINARY_LIST: u8 = 0x03;
/// Resources may be shared by other units (SCOPE 10b), or are this unit's alone (01b).
const SHARED: u8 = 2;
const DEDICATED: u8 = 1;

/// THRESHOLD EXPONENT of VPD B2h: log2 of the blocks of a threshold set.
pub(super) fn threshold_exponent(geometry: &Geometry) -> u8 {
    (SET_BYTES / u64::from(geometry.block_bytes.max(1))).trailing_zeros() as u8
}

/// Bytes as a number of threshold sets.
pub(super) fn threshold_sets(bytes: u64) -> u32 {
    u32::try_from(bytes / SET_BYTES).unwrap_or(u32::MAX)
}

/// Log parameter data.
pub(super) fn sense(nexus: &Nexus, query: &LogQuery) -> Result<Vec<u8>, Sense> {
    if query.save || !matches!(query.control, 0 | CUMULATIVE) {
        return Err(Sense::INVALID_FIELD);
    }
    let (parameters, subpage): (Vec<(u16, Vec<u8>)>, u8) = match (query.page, query.subpage) {
        (SUPPORTED, 0) => return Ok(page(SUPPORTED, 0, &PAGES)),
        (SUPPORTED, ALL_SUBPAGES) => {
            let mut pairs: Vec<u8> = vec![SUPPORTED, 0, SUPPORTED, ALL_SUBPAGES];
            pairs.extend(PAGES.iter().skip(1).flat_map(|page| [*page, 0]));
            return Ok(page(SUPPORTED, ALL_SUBPAGES, &pairs));
        }
        (PROVISIONING, 0) => (provisioning(nexus), 0),
        // no exception, no temperature (FFh: not known)
        (EXCEPTIONS, 0) => (vec![(0, vec![0, 0, 0xFF, 0])], 0),
        _ => return Err(Sense::INVALID_FIELD),
    };
    if parameters.last().is_none_or(|last| query.from_parameter > last.0) {
        return Err(Sense::INVALID_FIELD);
    }
    let mut body = Vec::new();
    for (code, value) in parameters.iter().filter(|one| one.0 >= query.from_parameter) {
        body.extend_from_slice(&code.to_be_bytes());
        body.extend_from_slice(&[BINARY_LIST, value.len() as u8]);
        body.extend_from_slice(value);
    }
    Ok(page(query.page, subpage, &body))
}

fn page(code: u8, subpage: u8, body: &[u8]) -> Vec<u8> {
    let spf = if subpage == 0 { 0 } else { 0x40 };
    let mut out = vec![code | spf, subpage];
    out.extend_from_slice(&(body.len() as u16).to_be_bytes());
    out.extend_from_slice(body);
    out
}

/// Available (of the pool, shared) and used (of this unit) LBA mapping resources.
fn provisioning(nexus: &Nexus) -> Vec<(u16, Vec<u8>)> {
    let figures = nexus.disk().provisioning();
    let count = |bytes: u64, scope: u8| {
        [&threshold_sets(bytes).to_be_bytes()[..], &[scope, 0, 0, 0]].concat()
    };
    vec![(1, count(figures.available_bytes, SHARED)), (2, count(figures.used_bytes, DEDICATED))]
}
