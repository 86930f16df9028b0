//! The SCSI device server: SPC-4, SBC-3 and (where named) SBC-4, over [`crate::lun::BlockIo`]
//! alone.
//!
//! Knows no transport. A transport makes one [`Nexus`] for each session on a [`LogicalUnit`] that
//! all sessions of a LUN share, calls [`Nexus::begin`] for each command and gets a [`Plan`]: either
//! the answer, or a [`Task`] whose data the transport moves before (`data_out_bytes`) or after
//! (`data_in_bytes`) it is run, inline where nothing has to wait, else on a blocking thread.
//!
//! Invariants: `begin` has checked every length and range against the capacity of that moment, so
//! nothing is allocated for a command that cannot be carried out; a unit attention is reported once
//! to each nexus; one function maps [`crate::lun::BlockError`] to sense data.

mod attention;
mod cdb;
mod copy;
mod inquiry;
mod log;
mod media;
mod mode;
mod nexus;
mod opcodes;
mod provision;
mod report;
mod reserve;
mod sanitize;
mod sense;
#[cfg(test)]
mod tests;
mod unit;

pub use attention::Attention;
pub use cdb::{decode, Command, Range};
pub use copy::{CopyTarget, CopyTargets};
pub use media::{DataIn, Task, MAX_TRANSFER_BYTES};
pub use nexus::{is_unit, Nexus, Plan, PortNames};
pub use sense::Sense;
pub use unit::LogicalUnit;

/// SAM-5 status codes that this device server uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Good = 0x00,
    /// See the sense data.
    CheckCondition = 0x02,
    /// Another nexus holds a reservation.
    ReservationConflict = 0x18,
    /// No room for the command now.
    TaskSetFull = 0x28,
}

/// What a command came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// SAM status.
    pub status: Status,
    /// Parameter data, already cut to the allocation length. Media data is in the caller's buffer.
    pub data: Vec<u8>,
    /// Encoded sense data (fixed or descriptor by D_SENSE); empty with GOOD.
    pub sense: Vec<u8>,
}

impl Answer {
    /// GOOD without parameter data.
    pub const fn good() -> Answer {
        Answer { status: Status::Good, data: Vec::new(), sense: Vec::new() }
    }

    /// GOOD with parameter data cut to `allocation_bytes`.
    pub fn with_data(mut data: Vec<u8>, allocation_bytes: usize) -> Answer {
        data.truncate(allocation_bytes);
        Answer { status: Status::Good, data, sense: Vec::new() }
    }

    /// A status alone.
    pub const fn status(status: Status) -> Answer {
        Answer { status, data: Vec::new(), sense: Vec::new() }
    }

    /// CHECK CONDITION; `descriptor` chooses the sense format.
    pub fn check(sense: Sense, descriptor: bool) -> Answer {
        let sense = sense.encode(descriptor);
        Answer { status: Status::CheckCondition, data: Vec::new(), sense }
    }
}
