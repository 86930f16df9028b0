//! Protocol data units (RFC 7143 §11): reading a 48-byte basic header segment, building ours.

/// Length of a basic header segment (RFC 7143 §11.2.1).
pub const HEADER_BYTES: usize = 48;
/// Length of a CRC32C digest.
pub const DIGEST_BYTES: usize = 4;
/// The tag that stands for no tag.
pub const NO_TAG: u32 = 0xFFFF_FFFF;

/// Opcodes that an initiator sends.
#[allow(missing_docs)] // the names are those of RFC 7143 §11.2.1.2
pub mod request {
    pub const NOP_OUT: u8 = 0x00;
    pub const SCSI_COMMAND: u8 = 0x01;
    pub const TASK_MANAGEMENT: u8 = 0x02;
    pub const LOGIN: u8 = 0x03;
    pub const TEXT: u8 = 0x04;
    pub const DATA_OUT: u8 = 0x05;
    pub const LOGOUT: u8 = 0x06;
    pub const SNACK: u8 = 0x10;
}

/// Opcodes that a target sends.
#[allow(missing_docs)] // the names are those of RFC 7143 §11.2.1.2
pub mod response {
    pub const NOP_IN: u8 = 0x20;
    pub const SCSI: u8 = 0x21;
    pub const TASK_MANAGEMENT: u8 = 0x22;
    pub const LOGIN: u8 = 0x23;
    pub const TEXT: u8 = 0x24;
    pub const DATA_IN: u8 = 0x25;
    pub const LOGOUT: u8 = 0x26;
    pub const R2T: u8 = 0x31;
    pub const ASYNC_MESSAGE: u8 = 0x32;
    pub const REJECT: u8 = 0x3F;
}

/// Why a PDU is rejected (RFC 7143 §11.17.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)] // the names are those of the table
pub enum RejectReason {
    DataDigestError = 0x02,
    SnackReject = 0x03,
    ProtocolError = 0x04,
    CommandNotSupported = 0x05,
    TooManyImmediate = 0x06,
    TaskInProgress = 0x07,
    InvalidField = 0x09,
}

/// FINAL bit of byte 1.
pub const FINAL: u8 = 0x80;
/// CONTINUE bit of byte 1 (Text and Login).
pub const CONTINUE: u8 = 0x40;
/// READ bit of a SCSI command.
pub const READ: u8 = 0x40;
/// WRITE bit of a SCSI command.
pub const WRITE: u8 = 0x20;
/// Residual overflow (SCSI Response and Data-In).
pub const OVERFLOW: u8 = 0x04;
/// Residual underflow (SCSI Response and Data-In).
pub const UNDERFLOW: u8 = 0x02;
/// Data-In carries status.
pub const STATUS: u8 = 0x01;

/// A basic header segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header(pub [u8; HEADER_BYTES]);

impl Header {
    /// A header of ours: opcode, byte 1, and the initiator task tag.
    pub fn reply(opcode: u8, flags: u8, tag: u32) -> Header {
        let mut header = Header([0; HEADER_BYTES]);
        header.0[0] = opcode;
        header.0[1] = flags;
        header.set_word(16, tag);
        header
    }

    /// From the first 48 of `bytes`; `None` where there are fewer.
    pub fn parse(bytes: &[u8]) -> Option<Header> {
        bytes.get(..HEADER_BYTES)?.try_into().ok().map(Header)
    }

    /// Opcode without the I bit.
    pub fn opcode(&self) -> u8 {
        self.0[0] & 0x3F
    }

    /// I bit: not counted by CmdSN.
    pub fn is_immediate(&self) -> bool {
        self.0[0] & 0x40 != 0
    }

    /// Byte 1.
    pub fn flags(&self) -> u8 {
        self.0[1]
    }

    /// F bit.
    pub fn is_final(&self) -> bool {
        self.0[1] & FINAL != 0
    }

    /// Bytes of the additional header segments.
    pub fn ahs_bytes(&self) -> usize {
        usize::from(self.0[4]) * 4
    }

    /// Bytes of the data segment, without padding.
    pub fn data_bytes(&self) -> usize {
        (usize::from(self.0[5]) << 16) | (usize::from(self.0[6]) << 8) | usize::from(self.0[7])
    }

    /// Sets the data segment length.
    pub fn set_data_bytes(&mut self, bytes: usize) {
        let [_, high, middle, low] = (bytes as u32).to_be_bytes();
        self.0[5..8].copy_from_slice(&[high, middle, low]);
    }

    /// The 32 bits at `at`, one of the constants of a PDU's layout (0 beyond the header).
    pub fn word(&self, at: usize) -> u32 {
        let bytes = self.0.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u32::from_be_bytes)
    }

    /// Writes 32 bits at `at`.
    pub fn set_word(&mut self, at: usize, value: u32) {
        if let Some(bytes) = self.0.get_mut(at..at + 4) {
            bytes.copy_from_slice(&value.to_be_bytes());
        }
    }

    /// The LUN field.
    pub fn lun(&self) -> u64 {
        (u64::from(self.word(8)) << 32) | u64::from(self.word(12))
    }

    /// Initiator task tag.
    pub fn tag(&self) -> u32 {
        self.word(16)
    }

    /// Target transfer tag (Data-Out, NOP-Out, Text).
    pub fn transfer_tag(&self) -> u32 {
        self.word(20)
    }

    /// CmdSN of every request but Data-Out.
    pub fn cmd_sn(&self) -> u32 {
        self.word(24)
    }

    /// The CDB of a SCSI command.
    pub fn cdb(&self) -> [u8; 16] {
        let mut cdb = [0; 16];
        cdb.copy_from_slice(&self.0[32..48]);
        cdb
    }
}

/// A data segment's length with its padding.
pub const fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(4)
}

/// Serial number arithmetic (RFC 1982): is `left` before `right`?
pub const fn sn_before(left: u32, right: u32) -> bool {
    (left.wrapping_sub(right) as i32) < 0
}

/// Digests go over the wire as little-endian CRC32C (RFC 7143 appendix A.4).
pub fn digest(parts: &[&[u8]]) -> [u8; DIGEST_BYTES] {
    parts.iter().fold(0, |crc, part| crc32c::crc32c_append(crc, part)).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_of_zeros_is_that_of_the_standard() {
        assert_eq!(digest(&[&[0; 32]]), [0xAA, 0x36, 0x91, 0x8A]);
        assert_eq!(digest(&[&[0; 16], &[0; 16]]), [0xAA, 0x36, 0x91, 0x8A]);
    }

    #[test]
    fn serial_numbers_wrap() {
        assert!(sn_before(0xFFFF_FFFF, 0));
        assert!(!sn_before(5, 5));
        assert!(sn_before(5, 6));
    }

    #[test]
    fn lengths_are_24_bits() {
        let mut header = Header([0; HEADER_BYTES]);
        header.set_data_bytes(0x00AB_CDEF);
        assert_eq!(header.data_bytes(), 0x00AB_CDEF);
    }
}
