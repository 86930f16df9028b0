//! INQUIRY: standard data and vital product data (SPC-4 §6.6, §7.8; SBC-3 §6.6).

use super::media::{atomic_max_blocks, MAX_COMPARE_BLOCKS, MAX_TRANSFER_BYTES};
use super::nexus::{Nexus, PortNames};
use super::provision::{MAX_UNMAP_BLOCKS, MAX_UNMAP_DESCRIPTORS, MAX_WRITE_SAME_BYTES};
use super::{copy, log, Sense};
use crate::lun::{Geometry, Identity};

/// Pages that exist, ascending, as page 00h lists them.
const PAGES: [u8; 9] = [0x00, 0x80, 0x83, 0x86, 0x8F, 0xB0, 0xB1, 0xB2, 0xB3];
/// Standards claimed: SAM-5, iSCSI, SPC-4, SBC-3 (SPC-4 §6.6.2 table 185).
const VERSIONS: [u16; 4] = [0x00A0, 0x0960, 0x0460, 0x04C0];
/// PRODUCT REVISION LEVEL.
const REVISION: &str =
    concat!(env!("CARGO_PKG_VERSION_MAJOR"), ".", env!("CARGO_PKG_VERSION_MINOR"));
/// Standard INQUIRY data with room for all version descriptors.
const STANDARD_BYTES: usize = 96;
/// OPTIMAL TRANSFER LENGTH: a large, whole multiple of every physical block.
const OPTIMAL_TRANSFER_BYTES: u32 = 1 << 20;

/// INQUIRY data of the unit.
pub(super) fn answer(
    nexus: &Nexus,
    geometry: &Geometry,
    evpd: bool,
    page: u8,
) -> Result<Vec<u8>, Sense> {
    let identity = nexus.disk().identity();
    if !evpd {
        return Ok(standard(geometry, &identity));
    }
    let body = match page {
        0x00 => PAGES.to_vec(),
        0x80 => ascii(&identity.serial, identity.serial.len()),
        0x83 => designators(&identity, nexus.ports()),
        0x86 => extended(geometry),
        0x8F => copy::third_party_page(),
        0xB0 => block_limits(geometry),
        0xB1 => characteristics(geometry),
        0xB2 => provisioning(geometry),
        0xB3 => vec![0; 12], // referrals: none, the whole unit is reached by every port
        _ => return Err(Sense::INVALID_FIELD),
    };
    let mut data = vec![0, page];
    data.extend_from_slice(&(body.len() as u16).to_be_bytes());
    data.extend_from_slice(&body);
    Ok(data)
}

/// Standard data for a unit number that is not there: qualifier 011b, type 1Fh.
pub(super) fn absent_unit() -> Vec<u8> {
    let mut data = vec![0u8; 36];
    data[0] = 0x7F;
    data[2] = 0x06;
    data[3] = 0x12;
    data[4] = 31;
    data[8..36].fill(b' ');
    data
}

/// `text` as ASCII of exactly `length` bytes, padded with blanks; what is not graphic becomes a
/// blank.
fn ascii(text: &str, length: usize) -> Vec<u8> {
    let graphic = |byte: u8| {
        if (0x20..0x7F).contains(&byte) {
            byte
        } else {
            b' '
        }
    };
    let mut out: Vec<u8> = text.bytes().take(length).map(graphic).collect();
    out.resize(length, b' ');
    out
}

fn standard(geometry: &Geometry, identity: &Identity) -> Vec<u8> {
    let mut data = vec![0u8; STANDARD_BYTES];
    data[1] = if geometry.removable { 0x80 } else { 0 };
    data[2] = 0x06; // SPC-4
    data[3] = 0x12; // HISUP, response data format 2
    data[4] = (STANDARD_BYTES - 5) as u8;
    data[5] = 0x18; // TPGS = 01b: implicit, one group, always active; 3PC
    data[7] = 0x02; // CMDQUE
    data[8..16].copy_from_slice(&ascii(&identity.vendor, 8));
    data[16..32].copy_from_slice(&ascii(&identity.product, 16));
    data[32..36].copy_from_slice(&ascii(REVISION, 4));
    for (slot, version) in data[58..].chunks_exact_mut(2).zip(VERSIONS) {
        slot.copy_from_slice(&version.to_be_bytes());
    }
    data
}

/// A designation descriptor (SPC-4 §7.8.6.1).
fn designator(code_set: u8, association: u8, kind: u8, protocol: u8, name: &[u8]) -> Vec<u8> {
    let piv = if association == 0 { 0 } else { 0x80 };
    let protocol = if association == 0 { 0 } else { protocol << 4 };
    let mut out = vec![protocol | code_set, piv | (association << 4) | kind, 0, name.len() as u8];
    out.extend_from_slice(name);
    out
}

/// A SCSI name string: UTF-8, ended by a zero, padded to a multiple of four (SPC-4 §7.8.6.11).
fn name_string(name: &str) -> Vec<u8> {
    /// The longest that the descriptor's length byte holds in whole fours.
    const LONGEST: usize = 252;
    let mut out: Vec<u8> = name.bytes().take(LONGEST - 1).collect();
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn designators(identity: &Identity, ports: &PortNames) -> Vec<u8> {
    let protocol = ports.protocol;
    let mut t10 = ascii(&identity.vendor, 8);
    t10.extend(ascii(&identity.product, 16));
    t10.extend(ascii(&identity.serial, identity.serial.len().min(64)));
    let relative = [0, 0, (ports.relative_port >> 8) as u8, ports.relative_port as u8];
    let group = [0, 0, (ports.port_group >> 8) as u8, ports.port_group as u8];
    [
        designator(1, 0, 3, protocol, &identity.naa),
        designator(2, 0, 1, protocol, &t10),
        designator(1, 1, 4, protocol, &relative),
        designator(1, 1, 5, protocol, &group),
        designator(3, 1, 8, protocol, &name_string(&ports.port)),
        designator(3, 2, 8, protocol, &name_string(&ports.device)),
    ]
    .concat()
}

/// Extended INQUIRY data: which task attributes exist, and whether there is a volatile cache.
fn extended(geometry: &Geometry) -> Vec<u8> {
    let mut body = vec![0u8; 60];
    body[1] = 0x07; // HEADSUP, ORDSUP, SIMPSUP
    body[2] = u8::from(!geometry.write_through); // V_SUP
    body
}

fn block_limits(geometry: &Geometry) -> Vec<u8> {
    let block = geometry.block_bytes.max(1);
    let blocks = |bytes: u64| (bytes / u64::from(block)) as u32;
    let physical = 1u32 << geometry.physical_exponent.min(15);
    let atomic = atomic_max_blocks(geometry);
    let mut body = vec![0, MAX_COMPARE_BLOCKS];
    body.extend_from_slice(&(physical as u16).to_be_bytes());
    for field in [
        blocks(MAX_TRANSFER_BYTES),
        OPTIMAL_TRANSFER_BYTES / block,
        0, // MAXIMUM PREFETCH LENGTH: no limit, nothing is fetched
        MAX_UNMAP_BLOCKS,
        MAX_UNMAP_DESCRIPTORS,
        physical,
        0x8000_0000, // UGAVALID, alignment 0
    ] {
        body.extend_from_slice(&field.to_be_bytes());
    }
    body.extend_from_slice(&u64::from(blocks(MAX_WRITE_SAME_BYTES)).to_be_bytes());
    // MAXIMUM ATOMIC TRANSFER LENGTH; any alignment and granularity; with a boundary of any size
    // the same length (SBC-4 §6.6.4)
    for field in [atomic, 0, 0, atomic, atomic] {
        body.extend_from_slice(&field.to_be_bytes());
    }
    body
}

fn characteristics(geometry: &Geometry) -> Vec<u8> {
    let mut body = geometry.rotation_rate.to_be_bytes().to_vec();
    body.resize(60, 0);
    body[3] = 0x40; // WABEREQ = 01b: after a block erase blocks read as zeros
    body[4] = 0x02; // FUAB: FUA and SYNCHRONIZE CACHE reach the medium
    body
}

/// LBPU, LBPWS, LBPWS10, LBPRZ = 001b, no anchoring; thin provisioned.
fn provisioning(geometry: &Geometry) -> Vec<u8> {
    vec![log::threshold_exponent(geometry), 0xE4, 0x02, 0]
}
