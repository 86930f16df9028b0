//! Reports: capacity, logical units, operation codes, target port groups.

use super::cdb::OpcodeQuery;
use super::nexus::PortNames;
use super::opcodes::{self, Supported};
use super::Sense;
use crate::lun::Geometry;

/// READ CAPACITY(10) data (SBC-3 §5.15.2).
pub(super) fn capacity10(geometry: &Geometry) -> Vec<u8> {
    let last = u32::try_from(last_lba(geometry)).unwrap_or(u32::MAX);
    [last.to_be_bytes(), geometry.block_bytes.to_be_bytes()].concat()
}

/// READ CAPACITY(16) data (SBC-3 §5.16.2): no protection, LBPME and LBPRZ.
pub(super) fn capacity16(geometry: &Geometry) -> Vec<u8> {
    let mut data = last_lba(geometry).to_be_bytes().to_vec();
    data.extend_from_slice(&geometry.block_bytes.to_be_bytes());
    data.resize(32, 0);
    data[13] = geometry.physical_exponent & 0x0F;
    data[14] = 0xC0;
    data
}

fn last_lba(geometry: &Geometry) -> u64 {
    (geometry.size_bytes / u64::from(geometry.block_bytes.max(1))).saturating_sub(1)
}

/// READ DEFECT DATA (SBC-3 §5.17, §5.18): the lists asked for, both empty.
pub(super) fn defects(twelve: bool, list: u8) -> Vec<u8> {
    match twelve {
        true => vec![0, list, 0, 0, 0, 0, 0, 0],
        false => vec![0, list, 0, 0],
    }
}

/// REPORT LUNS data (SPC-4 §6.33): LUN 0, and no well known units.
pub(super) fn luns(select: u8) -> Result<Vec<u8>, Sense> {
    match select {
        0x00 | 0x02 => Ok([&[0u8, 0, 0, 8][..], &[0; 12]].concat()),
        0x01 => Ok(vec![0; 8]),
        _ => Err(Sense::INVALID_FIELD),
    }
}

/// REPORT TARGET PORT GROUPS data (SPC-4 §6.37): one group, active/optimized, of all
/// ports.
pub(super) fn port_groups(ports: &PortNames, extended: bool) -> Vec<u8> {
    let [group_high, group_low] = ports.port_group.to_be_bytes();
    let mut body = vec![0u8; if extended { 4 } else { 0 }];
    if extended {
        body[0] = 0x10; // extended header, no implicit transition time
    }
    // PREF = 0, active/optimized; AO_SUP alone; status code 0
    let count = ports.port_count.min(u16::from(u8::MAX));
    body.extend_from_slice(&[0x00, 0x01, group_high, group_low, 0, 0, 0, count as u8]);
    for port in 1..=count {
        let [high, low] = port.to_be_bytes();
        body.extend_from_slice(&[0, 0, high, low]);
    }
    [&(body.len() as u32).to_be_bytes()[..], &body].concat()
}

/// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS data (SPC-4 §6.36): ABORT TASK, ABORT TASK SET, CLEAR
/// TASK SET, LOGICAL UNIT RESET, TARGET RESET.
pub(super) fn task_management(extended: bool) -> Vec<u8> {
    const FUNCTIONS: u8 = 0x80 | 0x40 | 0x10 | 0x08 | 0x02;
    match extended {
        false => vec![FUNCTIONS, 0, 0, 0],
        // no function recommends a time to wait
        true => [&[FUNCTIONS, 0, 0, 12][..], &[0; 12]].concat(),
    }
}

/// A command timeouts descriptor (SPC-4 §6.35.4) that recommends nothing.
const TIMEOUTS: [u8; 12] = [0x00, 0x0A, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// REPORT SUPPORTED OPERATION CODES data (SPC-4 §6.35).
pub(super) fn opcodes(query: &OpcodeQuery) -> Result<Vec<u8>, Sense> {
    let mut same = opcodes::SUPPORTED.iter().filter(|entry| entry.usage[0] == query.opcode);
    let acting = same.clone().any(|entry| entry.service_action.is_some());
    let wanted = Some(query.service_action);
    let found = match query.option {
        0 => return Ok(all_commands(query.timeouts)),
        1 if acting => return Err(Sense::INVALID_FIELD),
        1 => same.next(),
        2 if !acting => return Err(Sense::INVALID_FIELD),
        2 => same.find(|entry| entry.service_action == wanted),
        3 if acting => same.find(|entry| entry.service_action == wanted),
        3 if query.service_action == 0 => same.next(),
        3 => None,
        _ => return Err(Sense::INVALID_FIELD),
    };
    Ok(one_command(found, query.timeouts))
}

fn all_commands(timeouts: bool) -> Vec<u8> {
    let mut list = vec![0; 4];
    for entry in opcodes::SUPPORTED {
        let [high, low] = entry.service_action.unwrap_or(0).to_be_bytes();
        let flags = u8::from(entry.service_action.is_some()) | if timeouts { 2 } else { 0 };
        list.extend_from_slice(&[entry.usage[0], 0, high, low, 0, flags, 0]);
        list.push(entry.usage.len() as u8);
        if timeouts {
            list.extend_from_slice(&TIMEOUTS);
        }
    }
    let length = (list.len() - 4) as u32;
    list[..4].copy_from_slice(&length.to_be_bytes());
    list
}

fn one_command(found: Option<&Supported>, timeouts: bool) -> Vec<u8> {
    let Some(entry) = found else {
        return vec![0, 0x01, 0, 0]; // not supported
    };
    let flags = 0x03 | if timeouts { 0x80 } else { 0 };
    let mut data = vec![0, flags, 0, entry.usage.len() as u8];
    data.extend_from_slice(entry.usage);
    if timeouts {
        data.extend_from_slice(&TIMEOUTS);
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_codes_agrees_with_the_decoder() {
        for entry in opcodes::SUPPORTED {
            let mut cdb = [0u8; 16];
            cdb[0] = entry.usage[0];
            cdb[1] = entry.service_action.unwrap_or(0) as u8;
            let decoded = super::super::decode(&cdb);
            assert_ne!(decoded, Err(Sense::INVALID_OPCODE), "{:#x}", cdb[0]);
        }
    }

    #[test]
    fn an_option_that_does_not_fit_the_code_is_refused() {
        let ask = |option, opcode| OpcodeQuery {
            option,
            timeouts: false,
            opcode,
            service_action: 0x10,
            allocation_bytes: 64,
        };
        assert!(opcodes(&ask(1, 0x9E)).is_err());
        assert!(opcodes(&ask(2, 0x28)).is_err());
        assert_eq!(opcodes(&ask(2, 0x9E)).map(|data| data[1]), Ok(3));
        assert_eq!(opcodes(&ask(1, 0xFF)).map(|data| data[1]), Ok(1));
    }
}
