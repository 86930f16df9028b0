//! Sense data (SPC-4 §4.5): its codes, both formats, and the one map from [`BlockError`] to them.

use crate::lun::BlockError;

/// Sense key, additional sense code and qualifier, and the INFORMATION field where one is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sense {
    /// SPC-4 table 43.
    pub key: u8,
    /// Additional sense code.
    pub asc: u8,
    /// Its qualifier.
    pub ascq: u8,
    /// INFORMATION: an LBA for medium errors, a byte offset for a miscompare.
    pub information: Option<u64>,
    /// PROGRESS INDICATION in 65,536ths (sense key specific), for an operation that goes on.
    pub progress: Option<u16>,
}

/// Length of fixed format sense data (SPC-4 §4.5.3): no vendor bytes follow.
const FIXED_BYTES: usize = 18;
/// Length of an information sense data descriptor (SPC-4 §4.5.2.2).
const INFORMATION_DESCRIPTOR_BYTES: u8 = 12;
/// Length of a sense key specific descriptor (SPC-4 §4.5.2.4).
const SPECIFIC_DESCRIPTOR_BYTES: u8 = 8;

impl Sense {
    /// NO SENSE.
    pub const NONE: Sense = Sense::new(0x0, 0x00, 0x00);
    /// INVALID COMMAND OPERATION CODE.
    pub const INVALID_OPCODE: Sense = Sense::new(0x5, 0x20, 0x00);
    /// LOGICAL BLOCK ADDRESS OUT OF RANGE.
    pub const LBA_OUT_OF_RANGE: Sense = Sense::new(0x5, 0x21, 0x00);
    /// INVALID FIELD IN CDB.
    pub const INVALID_FIELD: Sense = Sense::new(0x5, 0x24, 0x00);
    /// LOGICAL UNIT NOT SUPPORTED.
    pub const LUN_NOT_SUPPORTED: Sense = Sense::new(0x5, 0x25, 0x00);
    /// INVALID FIELD IN PARAMETER LIST.
    pub const INVALID_PARAMETER: Sense = Sense::new(0x5, 0x26, 0x00);
    /// INVALID RELEASE OF PERSISTENT RESERVATION.
    pub const INVALID_RELEASE: Sense = Sense::new(0x5, 0x26, 0x04);
    /// INSUFFICIENT REGISTRATION RESOURCES.
    pub const NO_REGISTRATION_RESOURCES: Sense = Sense::new(0x5, 0x55, 0x04);
    /// COPY ABORTED, NO ADDITIONAL SENSE INFORMATION.
    pub const COPY_ABORTED: Sense = Sense::new(0xA, 0x00, 0x00);
    /// DATA PHASE ERROR: the transport lost part of the command's data.
    pub const DATA_PHASE_ERROR: Sense = Sense::new(0xB, 0x4B, 0x00);
    /// PARAMETER LIST LENGTH ERROR.
    pub const LIST_LENGTH: Sense = Sense::new(0x5, 0x1A, 0x00);
    /// INVALID FIELD IN COMMAND INFORMATION UNIT: the transport's expected length is too short.
    pub const INVALID_INFORMATION_UNIT: Sense = Sense::new(0x5, 0x0E, 0x03);
    /// MEDIUM REMOVAL PREVENTED.
    pub const REMOVAL_PREVENTED: Sense = Sense::new(0x5, 0x53, 0x02);
    /// MEDIUM NOT PRESENT.
    pub const NO_MEDIUM: Sense = Sense::new(0x2, 0x3A, 0x00);
    /// LOGICAL UNIT NOT READY, INITIALIZING COMMAND REQUIRED (stopped).
    pub const STOPPED: Sense = Sense::new(0x2, 0x04, 0x02);
    /// LOGICAL UNIT NOT READY, SANITIZE IN PROGRESS.
    pub const SANITIZING: Sense = Sense::new(0x2, 0x04, 0x1B);
    /// SANITIZE COMMAND FAILED.
    pub const SANITIZE_FAILED: Sense = Sense::new(0x3, 0x31, 0x03);
    /// WRITE PROTECTED.
    pub const WRITE_PROTECTED: Sense = Sense::new(0x7, 0x27, 0x00);
    /// MISCOMPARE DURING VERIFY OPERATION.
    pub const MISCOMPARE: Sense = Sense::new(0xE, 0x1D, 0x00);
    /// The command was given up on the way (a cancelled long verify or fill).
    pub const ABORTED: Sense = Sense::new(0xB, 0x00, 0x00);

    /// Codes without INFORMATION.
    pub const fn new(key: u8, asc: u8, ascq: u8) -> Sense {
        Sense { key, asc, ascq, information: None, progress: None }
    }

    /// The same with an INFORMATION field.
    pub const fn with_information(self, information: u64) -> Sense {
        Sense { information: Some(information), ..self }
    }

    /// The same with a PROGRESS INDICATION.
    pub const fn with_progress(self, progress: u16) -> Sense {
        Sense { progress: Some(progress), ..self }
    }

    /// Current-error sense data. In the fixed format INFORMATION is valid only where it fits 32
    /// bits.
    pub fn encode(self, descriptor: bool) -> Vec<u8> {
        if descriptor {
            self.encode_descriptor()
        } else {
            self.encode_fixed()
        }
    }

    fn encode_fixed(self) -> Vec<u8> {
        let mut out = vec![0u8; FIXED_BYTES];
        out[0] = 0x70;
        out[2] = self.key;
        out[7] = (FIXED_BYTES - 8) as u8;
        out[12] = self.asc;
        out[13] = self.ascq;
        if let Some(Ok(information)) = self.information.map(u32::try_from) {
            out[0] |= 0x80;
            out[3..7].copy_from_slice(&information.to_be_bytes());
        }
        if let Some(progress) = self.progress {
            out[15] = 0x80; // SKSV
            out[16..18].copy_from_slice(&progress.to_be_bytes());
        }
        out
    }

    fn encode_descriptor(self) -> Vec<u8> {
        let mut out = vec![0x72, self.key, self.asc, self.ascq, 0, 0, 0, 0];
        if let Some(information) = self.information {
            out[7] = INFORMATION_DESCRIPTOR_BYTES;
            out.extend_from_slice(&[0x00, INFORMATION_DESCRIPTOR_BYTES - 2, 0x80, 0x00]);
            out.extend_from_slice(&information.to_be_bytes());
        }
        if let Some(progress) = self.progress {
            out[7] += SPECIFIC_DESCRIPTOR_BYTES;
            out.extend_from_slice(&[0x02, SPECIFIC_DESCRIPTOR_BYTES - 2, 0, 0, 0x80]);
            out.extend_from_slice(&progress.to_be_bytes());
            out.push(0);
        }
        out
    }

    /// The map from a disk's errors. `block_bytes` turns the byte offset of a medium error into an
    /// LBA.
    pub fn of_error(error: &BlockError, block_bytes: u32, writing: bool) -> Sense {
        match error {
            BlockError::OutOfRange => Sense::LBA_OUT_OF_RANGE,
            BlockError::ReadOnly => Sense::WRITE_PROTECTED,
            // SPACE ALLOCATION FAILED WRITE PROTECT (SBC-4 §4.7.3.6)
            BlockError::NoSpace => Sense::new(0x7, 0x27, 0x07),
            // LOGICAL UNIT NOT READY, OPERATION IN PROGRESS: Linux waits and retries this one,
            // where CAUSE NOT REPORTABLE fails the request at once
            BlockError::HeldByFile => Sense::new(0x2, 0x04, 0x07),
            BlockError::Reserved => Sense::ABORTED, // SCSI sessions judge that by themselves
            BlockError::Sanitizing => Sense::SANITIZING,
            // LOGICAL UNIT NOT READY, MANUAL INTERVENTION REQUIRED
            BlockError::DeviceMissing => Sense::new(0x2, 0x04, 0x03),
            // WRITE ERROR, without INFORMATION: a write is not done up to there, as an initiator
            // would conclude, but not at all
            BlockError::Medium { .. } if writing => Sense::new(0x3, 0x0C, 0x00),
            BlockError::Medium { offset_bytes } => Sense::new(0x3, 0x11, 0x00)
                .with_information(offset_bytes / u64::from(block_bytes.max(1))),
            BlockError::Miscompare { offset_bytes } => {
                Sense::MISCOMPARE.with_information(*offset_bytes)
            }
            BlockError::Invalid(_) => Sense::INVALID_FIELD,
            BlockError::Io(_) if writing => Sense::new(0x3, 0x0C, 0x00), // WRITE ERROR
            BlockError::Io(_) => Sense::new(0x4, 0x44, 0x00),            // INTERNAL TARGET FAILURE
            BlockError::Gone => Sense::LUN_NOT_SUPPORTED,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_format_carries_a_short_information() {
        let sense = Sense::new(0x3, 0x11, 0x00).with_information(0x0102_0304).encode(false);
        assert_eq!(sense.len(), 18);
        assert_eq!((sense[0], sense[2], sense[12], sense[13]), (0xF0, 3, 0x11, 0));
        assert_eq!(&sense[3..7], &[1, 2, 3, 4]);
    }

    #[test]
    fn fixed_format_drops_an_information_of_more_than_32_bits() {
        let sense = Sense::MISCOMPARE.with_information(1 << 40).encode(false);
        assert_eq!(sense[0], 0x70);
        assert_eq!(&sense[3..7], &[0; 4]);
    }

    #[test]
    fn descriptor_format_carries_all_64_bits() {
        let sense = Sense::MISCOMPARE.with_information(1 << 40).encode(true);
        assert_eq!(&sense[..8], &[0x72, 0xE, 0x1D, 0, 0, 0, 0, 12]);
        assert_eq!(&sense[8..12], &[0, 10, 0x80, 0]);
        assert_eq!(&sense[12..], &(1u64 << 40).to_be_bytes());
    }

    #[test]
    fn progress_stands_in_both_formats() {
        let missing = Sense::of_error(&BlockError::DeviceMissing, 512, true);
        assert_eq!(missing, Sense::new(0x2, 0x04, 0x03));
        let sense = Sense::SANITIZING.with_progress(0x1234);
        assert_eq!(sense.encode(false)[15..18], [0x80, 0x12, 0x34]);
        assert_eq!(sense.encode(true)[7..], [8, 2, 6, 0, 0, 0x80, 0x12, 0x34, 0]);
    }

    #[test]
    fn medium_errors_name_the_lba() {
        let sense = Sense::of_error(&BlockError::Medium { offset_bytes: 8192 }, 512, false);
        assert_eq!((sense.key, sense.asc, sense.information), (3, 0x11, Some(16)));
        // Linux takes what lies before INFORMATION for written
        let sense = Sense::of_error(&BlockError::Medium { offset_bytes: 8192 }, 512, true);
        assert_eq!(sense, Sense::new(3, 0x0C, 0));
    }
}
