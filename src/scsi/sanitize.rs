//! SANITIZE (SBC-3 §4.11, §5.24): OVERWRITE, BLOCK ERASE and EXIT FAILURE MODE. CRYPTOGRAPHIC ERASE
//! is not there: nothing is encrypted. The disk below does the work in the background.

use std::time::Duration;

use super::cdb::Command;
use super::media::{Cancel, Kind, Task};
use super::nexus::{Nexus, Plan};
use super::Sense;
use crate::lun::{SanitizeOrder, SanitizeState};

/// Service actions.
pub(super) const OVERWRITE: u8 = 0x01;
pub(super) const BLOCK_ERASE: u8 = 0x02;
pub(super) const EXIT_FAILURE_MODE: u8 = 0x1F;
const HEADER_BYTES: usize = 4;
/// How often a SANITIZE without IMMED looks whether it is done.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What the CDB says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sanitize {
    /// SERVICE ACTION.
    pub action: u8,
    /// IMMED: answer when it has begun.
    pub immediate: bool,
    /// AUSE: EXIT FAILURE MODE will be allowed.
    pub may_exit: bool,
    /// PARAMETER LIST LENGTH.
    pub list_bytes: usize,
}

/// Decodes a SANITIZE; reserved bits and bytes must be zero.
pub(super) fn decode(cdb: &[u8; 16]) -> Result<Command, Sense> {
    let action = cdb[1] & 0x1F;
    let reserved = cdb[1] & 0x40 != 0 || cdb[2..7].iter().any(|byte| *byte != 0);
    if reserved || !matches!(action, OVERWRITE | BLOCK_ERASE | EXIT_FAILURE_MODE) {
        return Err(Sense::INVALID_FIELD);
    }
    Ok(Command::Sanitize(Sanitize {
        action,
        immediate: cdb[1] & 0x80 != 0,
        may_exit: cdb[1] & 0x20 != 0,
        list_bytes: usize::from(u16::from_be_bytes([cdb[7], cdb[8]])),
    }))
}

/// What a command that needs the medium is told while the disk is sanitized, or that has failed.
pub(super) fn obstacle(state: SanitizeState) -> Option<Sense> {
    match state {
        SanitizeState::Idle => None,
        SanitizeState::Running(progress) => Some(Sense::SANITIZING.with_progress(progress)),
        SanitizeState::Failed { .. } => Some(Sense::SANITIZE_FAILED),
    }
}

/// What is answered all the same.
pub(super) fn goes_on(command: &Command, state: SanitizeState) -> bool {
    let failed = matches!(state, SanitizeState::Failed { .. });
    match command {
        Command::Sanitize(_) => failed,
        Command::Inquiry { .. }
        | Command::RequestSense { .. }
        | Command::ReportLuns { .. }
        | Command::ReportOpcodes(_)
        | Command::ReportTaskManagement { .. }
        | Command::ReportTargetPortGroups { .. }
        | Command::LogSense(_)
        | Command::ModeSense(_)
        | Command::PersistentIn { .. } => true,
        _ => false,
    }
}

/// What the CDB alone decides.
pub(super) fn plan(nexus: &Nexus, sanitize: Sanitize) -> Result<Plan, Sense> {
    let geometry = nexus.geometry();
    let block = geometry.block_bytes as usize;
    let right = match sanitize.action {
        OVERWRITE => (HEADER_BYTES + 1..=HEADER_BYTES + block).contains(&sanitize.list_bytes),
        _ => sanitize.list_bytes == 0,
    };
    if !right {
        return Err(Sense::INVALID_FIELD);
    }
    if sanitize.action != EXIT_FAILURE_MODE && nexus.write_protected(&geometry) {
        return Err(Sense::WRITE_PROTECTED);
    }
    Ok(Plan::Run(Task::with_out(Kind::Sanitize(sanitize), sanitize.list_bytes)))
}

/// Carries it out: waits for its end unless IMMED is set. An abort ends the waiting alone.
pub(super) fn run(
    nexus: &Nexus,
    sanitize: Sanitize,
    list: &[u8],
    cancel: &Cancel<'_>,
) -> Result<(), Sense> {
    let failed = |error| nexus.sense_of(&error, true);
    let order = match sanitize.action {
        EXIT_FAILURE_MODE => {
            return match nexus.disk().exit_sanitize_failure().map_err(failed)? {
                true => Ok(()),
                false => Err(Sense::INVALID_FIELD),
            };
        }
        OVERWRITE => overwrite(list, nexus.geometry().block_bytes as usize, sanitize.may_exit)?,
        _ => SanitizeOrder { pattern: None, passes: 1, invert: false, may_exit: sanitize.may_exit },
    };
    nexus.disk().sanitize(&order).map_err(failed)?;
    if sanitize.immediate {
        return Ok(());
    }
    loop {
        match nexus.disk().sanitize_state() {
            SanitizeState::Idle => return Ok(()),
            SanitizeState::Failed { .. } => return Err(Sense::SANITIZE_FAILED),
            SanitizeState::Running(_) => cancel.check()?,
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// The parameter list of OVERWRITE: its pattern is repeated to a logical block.
fn overwrite(list: &[u8], block: usize, may_exit: bool) -> Result<SanitizeOrder, Sense> {
    let &[flags, reserved, high, low, ref pattern @ ..] = list else {
        return Err(Sense::LIST_LENGTH);
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    let passes = flags & 0x1F;
    let pattern = pattern.get(..length).filter(|pattern| !pattern.is_empty());
    match pattern {
        Some(pattern) if passes > 0 && flags & 0x60 == 0 && reserved == 0 && length <= block => {
            let pattern = pattern.iter().copied().cycle().take(block).collect();
            let invert = flags & 0x80 != 0;
            Ok(SanitizeOrder { pattern: Some(pattern), passes, invert, may_exit })
        }
        _ => Err(Sense::INVALID_PARAMETER),
    }
}
