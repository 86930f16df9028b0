//! Command descriptor blocks: 16 bytes in, a [`Command`] or sense data out. Nothing here knows the
//! disk's size; only fields that no disk of ours can honour are refused.

use super::sanitize::{self, Sanitize};
use super::Sense;

/// Logical blocks `lba .. lba + blocks`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// First logical block address.
    pub lba: u64,
    /// Number of logical blocks; zero means none (the decoder resolves READ(6)'s 256).
    pub blocks: u64,
}

/// What VERIFY and WRITE AND VERIFY compare (SBC-3 §5.31 BYTCHK).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteCheck {
    /// 00b: the medium must be readable.
    Medium,
    /// 01b: every block with its own data-out.
    Each,
    /// 11b: every block with one block of data-out.
    Same,
}

/// WRITE SAME's choices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteSame {
    /// The blocks; zero means up to the end of the disk.
    pub range: Range,
    /// UNMAP bit.
    pub unmap: bool,
    /// ANCHOR bit.
    pub anchor: bool,
    /// NDOB bit: no data-out, zeros are meant.
    pub no_data: bool,
}

/// How REPORT SUPPORTED OPERATION CODES asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpcodeQuery {
    /// REPORTING OPTIONS, 0 to 3.
    pub option: u8,
    /// RCTD: with timeouts descriptors.
    pub timeouts: bool,
    /// REQUESTED OPERATION CODE.
    pub opcode: u8,
    /// REQUESTED SERVICE ACTION.
    pub service_action: u16,
    /// Allocation length.
    pub allocation_bytes: usize,
}

/// Which mode pages are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModeQuery {
    /// MODE SENSE(10), else (6).
    pub ten: bool,
    /// LLBAA: long block descriptors are accepted.
    pub long_lba: bool,
    /// DBD: no block descriptors.
    pub no_descriptors: bool,
    /// PC: 0 current, 1 changeable, 2 default, 3 saved.
    pub control: u8,
    /// Page code.
    pub page: u8,
    /// Subpage code.
    pub subpage: u8,
    /// Allocation length.
    pub allocation_bytes: usize,
}

/// Which log page is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogQuery {
    /// SP: save the parameters.
    pub save: bool,
    /// PC: 01b is cumulative values.
    pub control: u8,
    /// Page code.
    pub page: u8,
    /// Subpage code.
    pub subpage: u8,
    /// PARAMETER POINTER: parameters below it are left out.
    pub from_parameter: u16,
    /// Allocation length.
    pub allocation_bytes: usize,
}

/// A decoded command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the names and fields are those of SPC-4 and SBC-3
pub enum Command {
    TestUnitReady,
    RequestSense { descriptor: bool, allocation_bytes: usize },
    Inquiry { evpd: bool, page: u8, allocation_bytes: usize },
    ModeSense(ModeQuery),
    ModeSelect { ten: bool, page_format: bool, save: bool, list_bytes: usize },
    StartStop { power_condition: u8, load_eject: bool, start: bool },
    PreventAllow { prevent: bool },
    ExtendedCopy { list_bytes: usize },
    ReceiveCopyResults { action: u8, list_id: u8, allocation_bytes: usize },
    Reserve6,
    Release6,
    PersistentIn { action: u8, allocation_bytes: usize },
    PersistentOut { action: u8, scope_type: u8, list_bytes: usize },
    ReadCapacity10,
    ReadDefectData { twelve: bool, list: u8, allocation_bytes: usize },
    ReadCapacity16 { allocation_bytes: usize },
    ReportLuns { select: u8, allocation_bytes: usize },
    ReportOpcodes(OpcodeQuery),
    ReportTargetPortGroups { extended: bool, allocation_bytes: usize },
    Read { range: Range, fua: bool },
    Write { range: Range, fua: bool },
    WriteAtomic { range: Range, fua: bool, boundary: u16 },
    WriteAndVerify { range: Range, check: ByteCheck },
    Verify { range: Range, check: ByteCheck },
    OrWrite { range: Range, fua: bool },
    CompareAndWrite { range: Range, fua: bool },
    SynchronizeCache { range: Range },
    PreFetch { range: Range },
    Unmap { anchor: bool, list_bytes: usize },
    WriteSame(WriteSame),
    Sanitize(Sanitize),
    LogSense(LogQuery),
    ReportTaskManagement { extended: bool, allocation_bytes: usize },
    GetLbaStatus { lba: u64, allocation_bytes: usize },
}

fn be16(cdb: &[u8; 16], at: usize) -> u16 {
    u16::from_be_bytes([cdb[at & 15], cdb[(at + 1) & 15]])
}

fn be32(cdb: &[u8; 16], at: usize) -> u32 {
    (u32::from(be16(cdb, at)) << 16) | u32::from(be16(cdb, at + 2))
}

fn be64(cdb: &[u8; 16], at: usize) -> u64 {
    (u64::from(be32(cdb, at)) << 32) | u64::from(be32(cdb, at + 4))
}

fn range6(cdb: &[u8; 16]) -> Range {
    let blocks = if cdb[4] == 0 { 256 } else { u64::from(cdb[4]) };
    Range { lba: u64::from(be32(cdb, 0) & 0x001F_FFFF), blocks }
}

fn range10(cdb: &[u8; 16]) -> Range {
    Range { lba: u64::from(be32(cdb, 2)), blocks: u64::from(be16(cdb, 7)) }
}

fn range12(cdb: &[u8; 16]) -> Range {
    Range { lba: u64::from(be32(cdb, 2)), blocks: u64::from(be32(cdb, 6)) }
}

fn range16(cdb: &[u8; 16]) -> Range {
    Range { lba: be64(cdb, 2), blocks: u64::from(be32(cdb, 10)) }
}

/// RDPROTECT, WRPROTECT, VRPROTECT, ORPROTECT: there is no protection information (SBC-3 §5.8).
fn no_protection(cdb: &[u8; 16]) -> Result<(), Sense> {
    if cdb[1] & 0xE0 == 0 {
        Ok(())
    } else {
        Err(Sense::INVALID_FIELD)
    }
}

fn fua(cdb: &[u8; 16]) -> bool {
    cdb[1] & 0x08 != 0
}

fn byte_check(cdb: &[u8; 16]) -> Result<ByteCheck, Sense> {
    match (cdb[1] >> 1) & 3 {
        0 => Ok(ByteCheck::Medium),
        1 => Ok(ByteCheck::Each),
        3 => Ok(ByteCheck::Same),
        _ => Err(Sense::INVALID_FIELD),
    }
}

/// WRITE AND VERIFY knows BYTCHK 0 and 1 only.
fn write_check(cdb: &[u8; 16]) -> Result<ByteCheck, Sense> {
    match byte_check(cdb)? {
        ByteCheck::Same => Err(Sense::INVALID_FIELD),
        check => Ok(check),
    }
}

/// Length of a CDB by its group code (SPC-4 §4.2.5.1); variable and vendor ones are not ours.
const fn cdb_bytes(opcode: u8) -> Option<usize> {
    match opcode >> 5 {
        0 => Some(6),
        1 | 2 => Some(10),
        4 => Some(16),
        5 => Some(12),
        _ => None,
    }
}

/// Decodes one CDB (padded with zeros to 16 bytes, as iSCSI carries it).
pub fn decode(cdb: &[u8; 16]) -> Result<Command, Sense> {
    let length = cdb_bytes(cdb[0]).ok_or(Sense::INVALID_OPCODE)?;
    let command = match cdb[0] >> 5 {
        0 => decode6(cdb),
        1 | 2 => decode10(cdb),
        4 => decode16(cdb),
        _ => decode12(cdb),
    }?;
    // NACA asks for an ACA task set, which is not offered (NORMACA = 0)
    if cdb[length - 1] & 0x04 != 0 {
        return Err(Sense::INVALID_FIELD);
    }
    Ok(command)
}

fn decode6(cdb: &[u8; 16]) -> Result<Command, Sense> {
    Ok(match cdb[0] {
        0x00 => Command::TestUnitReady,
        0x03 => Command::RequestSense {
            descriptor: cdb[1] & 1 != 0,
            allocation_bytes: usize::from(cdb[4]),
        },
        0x08 => Command::Read { range: range6(cdb), fua: false },
        0x0A => Command::Write { range: range6(cdb), fua: false },
        0x12 => inquiry(cdb)?,
        0x15 => mode_select(cdb, false),
        0x16 => Command::Reserve6,
        0x17 => Command::Release6,
        0x1A => mode_sense(cdb, false),
        0x1B => Command::StartStop {
            power_condition: cdb[4] >> 4,
            load_eject: cdb[4] & 2 != 0,
            start: cdb[4] & 1 != 0,
        },
        0x1E => Command::PreventAllow { prevent: cdb[4] & 1 != 0 },
        _ => return Err(Sense::INVALID_OPCODE),
    })
}

fn inquiry(cdb: &[u8; 16]) -> Result<Command, Sense> {
    let evpd = cdb[1] & 1 != 0;
    // CMDDT is obsolete; a page code without EVPD is an error (SPC-4 §6.6.1)
    if cdb[1] & 0x02 != 0 || (!evpd && cdb[2] != 0) {
        return Err(Sense::INVALID_FIELD);
    }
    Ok(Command::Inquiry { evpd, page: cdb[2], allocation_bytes: usize::from(be16(cdb, 3)) })
}

fn mode_sense(cdb: &[u8; 16], ten: bool) -> Command {
    let allocation = if ten { usize::from(be16(cdb, 7)) } else { usize::from(cdb[4]) };
    Command::ModeSense(ModeQuery {
        ten,
        long_lba: ten && cdb[1] & 0x10 != 0,
        no_descriptors: cdb[1] & 0x08 != 0,
        control: cdb[2] >> 6,
        page: cdb[2] & 0x3F,
        subpage: cdb[3],
        allocation_bytes: allocation,
    })
}

fn mode_select(cdb: &[u8; 16], ten: bool) -> Command {
    Command::ModeSelect {
        ten,
        page_format: cdb[1] & 0x10 != 0,
        save: cdb[1] & 0x01 != 0,
        list_bytes: if ten { usize::from(be16(cdb, 7)) } else { usize::from(cdb[4]) },
    }
}

fn decode10(cdb: &[u8; 16]) -> Result<Command, Sense> {
    let range = range10(cdb);
    Ok(match cdb[0] {
        0x25 => Command::ReadCapacity10,
        0x28 | 0x2A | 0x2E | 0x2F => media(cdb, cdb[0] & 0x1F, range)?,
        0x34 => Command::PreFetch { range },
        0x37 => Command::ReadDefectData {
            twelve: false,
            list: cdb[2] & 0x1F,
            allocation_bytes: usize::from(be16(cdb, 7)),
        },
        0x35 => Command::SynchronizeCache { range },
        0x41 => write_same(cdb, range, false)?,
        0x42 => Command::Unmap { anchor: cdb[1] & 1 != 0, list_bytes: usize::from(be16(cdb, 7)) },
        0x48 => sanitize::decode(cdb)?,
        0x4D => log_sense(cdb),
        0x55 => mode_select(cdb, true),
        0x5A => mode_sense(cdb, true),
        0x5E => Command::PersistentIn {
            action: cdb[1] & 0x1F,
            allocation_bytes: usize::from(be16(cdb, 7)),
        },
        0x5F => Command::PersistentOut {
            action: cdb[1] & 0x1F,
            scope_type: cdb[2],
            list_bytes: be32(cdb, 5) as usize,
        },
        _ => return Err(Sense::INVALID_OPCODE),
    })
}

fn log_sense(cdb: &[u8; 16]) -> Command {
    Command::LogSense(LogQuery {
        save: cdb[1] & 1 != 0,
        control: cdb[2] >> 6,
        page: cdb[2] & 0x3F,
        subpage: cdb[3],
        from_parameter: be16(cdb, 5),
        allocation_bytes: usize::from(be16(cdb, 7)),
    })
}

/// READ, WRITE, WRITE AND VERIFY and VERIFY share their low five bits in every CDB length.
fn media(cdb: &[u8; 16], low: u8, range: Range) -> Result<Command, Sense> {
    no_protection(cdb)?;
    Ok(match low {
        0x08 => Command::Read { range, fua: fua(cdb) },
        0x0A => Command::Write { range, fua: fua(cdb) },
        0x0E => Command::WriteAndVerify { range, check: write_check(cdb)? },
        0x0F => Command::Verify { range, check: byte_check(cdb)? },
        _ => return Err(Sense::INVALID_OPCODE),
    })
}

fn decode12(cdb: &[u8; 16]) -> Result<Command, Sense> {
    let allocation_bytes = be32(cdb, 6) as usize;
    Ok(match (cdb[0], cdb[1] & 0x1F) {
        (0xA0, _) => Command::ReportLuns { select: cdb[2], allocation_bytes },
        (0xA3, 0x0A) => {
            Command::ReportTargetPortGroups { extended: cdb[1] >> 5 == 1, allocation_bytes }
        }
        (0xA3, 0x0C) => Command::ReportOpcodes(OpcodeQuery {
            option: cdb[2] & 7,
            timeouts: cdb[2] & 0x80 != 0,
            opcode: cdb[3],
            service_action: be16(cdb, 4),
            allocation_bytes,
        }),
        (0xA3, 0x0D) => {
            let extended = cdb[2] & 0x80 != 0;
            Command::ReportTaskManagement { extended, allocation_bytes }
        }
        (0xA3, _) => return Err(Sense::INVALID_FIELD),
        (0xB7, list) => Command::ReadDefectData { twelve: true, list, allocation_bytes },
        (0xA8 | 0xAA | 0xAE | 0xAF, _) => media(cdb, cdb[0] & 0x1F, range12(cdb))?,
        _ => return Err(Sense::INVALID_OPCODE),
    })
}

fn decode16(cdb: &[u8; 16]) -> Result<Command, Sense> {
    let range = range16(cdb);
    Ok(match cdb[0] {
        0x83 if cdb[1] & 0x1F == 0 => Command::ExtendedCopy { list_bytes: be32(cdb, 10) as usize },
        0x83 => return Err(Sense::INVALID_FIELD),
        0x84 => Command::ReceiveCopyResults {
            action: cdb[1] & 0x1F,
            list_id: cdb[2],
            allocation_bytes: be32(cdb, 10) as usize,
        },
        0x88 | 0x8A | 0x8E | 0x8F => media(cdb, cdb[0] & 0x1F, range)?,
        0x89 => {
            no_protection(cdb)?;
            let range = Range { lba: range.lba, blocks: u64::from(cdb[13]) };
            Command::CompareAndWrite { range, fua: fua(cdb) }
        }
        0x8B => {
            no_protection(cdb)?;
            Command::OrWrite { range, fua: fua(cdb) }
        }
        0x90 => Command::PreFetch { range },
        0x91 => Command::SynchronizeCache { range },
        0x93 => write_same(cdb, range, true)?,
        0x9C => write_atomic(cdb, range.lba)?,
        0x9E => service_action_in(cdb)?,
        _ => return Err(Sense::INVALID_OPCODE),
    })
}

/// WRITE ATOMIC(16) (SBC-4 §5.48): 16 bits of length, 16 of atomic boundary.
fn write_atomic(cdb: &[u8; 16], lba: u64) -> Result<Command, Sense> {
    no_protection(cdb)?;
    let range = Range { lba, blocks: u64::from(be16(cdb, 12)) };
    Ok(Command::WriteAtomic { range, fua: fua(cdb), boundary: be16(cdb, 10) })
}

fn service_action_in(cdb: &[u8; 16]) -> Result<Command, Sense> {
    let allocation_bytes = be32(cdb, 10) as usize;
    match cdb[1] & 0x1F {
        0x10 => Ok(Command::ReadCapacity16 { allocation_bytes }),
        0x12 => Ok(Command::GetLbaStatus { lba: be64(cdb, 2), allocation_bytes }),
        _ => Err(Sense::INVALID_FIELD),
    }
}

fn write_same(cdb: &[u8; 16], range: Range, sixteen: bool) -> Result<Command, Sense> {
    no_protection(cdb)?;
    let (unmap, anchor) = (cdb[1] & 0x08 != 0, cdb[1] & 0x10 != 0);
    let obsolete = if sixteen { 0x06 } else { 0x07 };
    // anchored blocks are not offered (ANC_SUP = 0); LBDATA and PBDATA are obsolete
    if anchor || cdb[1] & obsolete != 0 {
        return Err(Sense::INVALID_FIELD);
    }
    let no_data = sixteen && cdb[1] & 0x01 != 0;
    Ok(Command::WriteSame(WriteSame { range, unmap, anchor, no_data }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cdb(bytes: &[u8]) -> [u8; 16] {
        let mut out = [0; 16];
        out[..bytes.len()].copy_from_slice(bytes);
        out
    }

    #[test]
    fn read6_of_zero_is_256_blocks() {
        let read = decode(&cdb(&[0x08, 0x1F, 0xFF, 0xFF, 0, 0]));
        let range = Range { lba: 0x1F_FFFF, blocks: 256 };
        assert_eq!(read, Ok(Command::Read { range, fua: false }));
    }

    #[test]
    fn protection_bits_are_refused() {
        for opcode in [0x28u8, 0xA8, 0x88, 0x2A, 0x2F, 0x8B, 0x89, 0x41, 0x9C] {
            let result = decode(&cdb(&[opcode, 0x20]));
            assert_eq!(result, Err(Sense::INVALID_FIELD), "{opcode:#x}");
        }
    }

    #[test]
    fn naca_is_refused_in_every_length() {
        assert_eq!(decode(&cdb(&[0, 0, 0, 0, 0, 4])), Err(Sense::INVALID_FIELD));
        assert_eq!(decode(&cdb(&[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 4])), Err(Sense::INVALID_FIELD));
    }

    #[test]
    fn no_cdb_makes_the_decoder_panic() {
        let mut state = 0x9E37_79B9_7F4A_7C15u64;
        for round in 0..200_000u32 {
            let mut bytes = [0u8; 16];
            for byte in &mut bytes {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = (state >> 33) as u8;
            }
            bytes[0] = round as u8;
            let _ = decode(&bytes);
        }
    }
}
