//! Commands that move or check media data: planning (ranges, lengths) and running them.

use std::sync::atomic::{AtomicBool, Ordering};

use super::cdb::{ByteCheck, Command, Range};
use super::nexus::{Nexus, Plan};
use super::sanitize::Sanitize;
use super::unit::NexusState;
use super::{copy, mode, provision, sanitize, Answer, Sense};
use crate::lun::{BlockError, Geometry};

/// Longest transfer of one command, told in VPD B0h: bounds what one command can make a session
/// hold.
pub const MAX_TRANSFER_BYTES: u64 = 32 << 20;
/// Most blocks of COMPARE AND WRITE: locks and records are one to a few blocks.
pub(super) const MAX_COMPARE_BLOCKS: u8 = 128;
/// Work on long ranges goes on in pieces of this size, so that it can be cancelled between them.
pub(super) const PIECE_BYTES: usize = 1 << 20;

/// What is to be run; offsets and lengths are bytes, inside the capacity seen at planning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Read { offset: u64, fua: bool },
    Write { offset: u64, fua: bool },
    WriteAtomic { offset: u64, fua: bool },
    WriteAndVerify { offset: u64 },
    VerifyMedium { offset: u64, length: u64 },
    VerifyEach { offset: u64 },
    VerifySame { offset: u64, length: u64 },
    OrWrite { offset: u64, fua: bool },
    CompareAndWrite { offset: u64, fua: bool },
    Flush,
    Eject,
    Unmap { max_descriptors: usize },
    WriteSame { offset: u64, length: u64, unmap: bool },
    LbaStatus { lba: u64, allocation_bytes: usize },
    ModeSelect { ten: bool, save: bool },
    ExtendedCopy,
    Sanitize(Sanitize),
    Reserve6,
    ReserveOut { action: u8, scope_type: u8 },
    WriteHead { offset: u64, fua: bool },
}

/// Transfers above this size are not short.
const SHORT_BYTES: usize = 256 << 10;
/// Work on longer ranges, which is no transfer, is long.
const LONG_BYTES: u64 = 8 << 20;

/// Room for the media data of a task.
#[derive(Debug, Default)]
pub struct DataIn<'a> {
    /// `data_in_bytes` of it.
    pub bytes: &'a mut [u8],
    /// Takes what [`BlockIo::read_summed`] knows, where the transport wants it; empty before.
    pub sums: Option<&'a mut Vec<u32>>,
}

impl<'a> From<&'a mut [u8]> for DataIn<'a> {
    fn from(bytes: &'a mut [u8]) -> DataIn<'a> {
        DataIn { bytes, sums: None }
    }
}

/// A command whose range and lengths were checked, ready to be run once its data-out is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    pub(super) kind: Kind,
    /// Bytes that the initiator has to send.
    pub data_out_bytes: usize,
    /// Bytes of media data that running it puts into the caller's buffer.
    pub data_in_bytes: usize,
    /// Bytes that the CDB asks to be moved: residuals are counted from it.
    pub wanted_bytes: usize,
    /// [`Nexus::aborts`] when it began.
    pub(super) stamp: u64,
}

/// How a task learns that it was aborted: by its own transport, or with its whole nexus.
pub(super) struct Cancel<'c> {
    flag: &'c AtomicBool,
    state: &'c NexusState,
    stamp: u64,
}

impl Cancel<'_> {
    /// Ends work whose command was aborted.
    pub fn check(&self) -> Result<(), Sense> {
        match self.flag.load(Ordering::Relaxed) || self.state.aborts() != self.stamp {
            true => Err(Sense::ABORTED),
            false => Ok(()),
        }
    }
}

impl Task {
    pub(super) const fn new(kind: Kind) -> Task {
        Task { kind, data_out_bytes: 0, data_in_bytes: 0, wanted_bytes: 0, stamp: 0 }
    }

    pub(super) const fn with_out(kind: Kind, data_out_bytes: usize) -> Task {
        Task { kind, data_out_bytes, data_in_bytes: 0, wanted_bytes: data_out_bytes, stamp: 0 }
    }

    /// Does it take data-out? With zero blocks there may be none to come.
    pub fn takes_data(&self) -> bool {
        self.data_out_bytes > 0 || self.moves_media()
    }

    /// Whether it is over when the device has answered once.
    pub fn is_short(&self) -> bool {
        match self.kind {
            Kind::Read { .. }
            | Kind::Write { .. }
            | Kind::WriteAtomic { .. }
            | Kind::WriteHead { .. }
            | Kind::CompareAndWrite { .. }
            | Kind::OrWrite { .. } => self.data_in_bytes.max(self.data_out_bytes) <= SHORT_BYTES,
            Kind::Flush | Kind::Unmap { .. } => true,
            _ => false,
        }
    }

    /// May it take seconds, on a device that answers as it should?
    pub fn is_long(&self) -> bool {
        match self.kind {
            Kind::VerifyMedium { length, .. }
            | Kind::VerifySame { length, .. }
            | Kind::WriteSame { length, unmap: false, .. } => length > LONG_BYTES,
            Kind::ExtendedCopy | Kind::Sanitize(_) => true,
            _ => false,
        }
    }

    /// Does it take a turn of its nexus? Those that change nothing of the medium or the modes need
    /// none, and reservations have an order of their own.
    fn changes(&self) -> bool {
        !matches!(
            self.kind,
            Kind::Read { .. }
                | Kind::VerifyMedium { .. }
                | Kind::VerifyEach { .. }
                | Kind::VerifySame { .. }
                | Kind::LbaStatus { .. }
                | Kind::Flush
                | Kind::Reserve6
                | Kind::ReserveOut { .. }
        )
    }

    /// Is it one of those that write `data_out_bytes` of media data? Zero blocks are then nothing
    /// to do.
    fn moves_media(&self) -> bool {
        matches!(
            self.kind,
            Kind::Write { .. }
                | Kind::WriteAtomic { .. }
                | Kind::WriteAndVerify { .. }
                | Kind::OrWrite { .. }
                | Kind::CompareAndWrite { .. }
        )
    }

    /// Fits the task to the length that the transport will deliver, or says why it must not be run:
    /// parameter lists may not be cut short, and the length of the other commands' data must be
    /// exactly theirs. A write goes as far as its data (FCP-4 §9.4.2 rule a, which targets follow),
    /// unless it was to be atomic.
    pub fn fit(&mut self, expected_bytes: usize) -> Result<(), Sense> {
        let short = expected_bytes < self.data_out_bytes;
        match self.kind {
            _ if expected_bytes == self.data_out_bytes => Ok(()),
            Kind::Write { offset, fua } if short => {
                self.kind = Kind::WriteHead { offset, fua };
                self.data_out_bytes = expected_bytes;
                Ok(())
            }
            Kind::WriteAndVerify { offset } if short => {
                self.kind = Kind::WriteHead { offset, fua: true };
                self.data_out_bytes = expected_bytes;
                Ok(())
            }
            // NUMBER OF LOGICAL BLOCKS is one byte: the data tells that it overflowed
            Kind::CompareAndWrite { .. } => Err(Sense::INVALID_FIELD),
            Kind::WriteSame { .. }
            | Kind::WriteAtomic { .. }
            | Kind::OrWrite { .. }
            | Kind::VerifyEach { .. }
            | Kind::VerifySame { .. } => Err(Sense::INVALID_INFORMATION_UNIT),
            _ if short => Err(Sense::INVALID_INFORMATION_UNIT),
            _ => Ok(()),
        }
    }
}

/// Checks `range` against the capacity and gives it in bytes.
pub(super) fn bytes_of(geometry: &Geometry, range: Range) -> Result<(u64, u64), Sense> {
    let block = u64::from(geometry.block_bytes.max(1));
    let end = range.lba.checked_add(range.blocks).ok_or(Sense::LBA_OUT_OF_RANGE)?;
    if end > geometry.size_bytes / block {
        return Err(Sense::LBA_OUT_OF_RANGE);
    }
    Ok((range.lba * block, range.blocks * block))
}

/// Most blocks of WRITE ATOMIC: what the disk promises, as far as the CDB's 16 bits go.
pub(super) fn atomic_max_blocks(geometry: &Geometry) -> u32 {
    (geometry.atomic_max_bytes / geometry.block_bytes.max(1)).min(u32::from(u16::MAX))
}

/// As [`bytes_of`], for data that is transferred: not longer than VPD B0h says.
fn transfer_of(geometry: &Geometry, range: Range) -> Result<(u64, usize), Sense> {
    let (offset, length) = bytes_of(geometry, range)?;
    match usize::try_from(length) {
        Ok(bytes) if length <= MAX_TRANSFER_BYTES => Ok((offset, bytes)),
        _ => Err(Sense::INVALID_FIELD),
    }
}

impl Nexus {
    /// Plans the commands of this file and of `provision`; `None` for all others.
    pub(super) fn plan_media(&self, command: &Command) -> Option<Result<Plan, Sense>> {
        let planned = match *command {
            Command::Read { range, fua } => self.plan_read(range, fua),
            Command::Write { range, fua } => self.plan_write(range, fua),
            Command::WriteAtomic { range, fua, boundary } => {
                self.plan_write_atomic(range, fua, boundary)
            }
            Command::WriteAndVerify { range, .. } => {
                self.plan_out(range, 1, |offset| Kind::WriteAndVerify { offset })
            }
            Command::OrWrite { range, fua } => {
                self.plan_out(range, 1, |offset| Kind::OrWrite { offset, fua })
            }
            Command::CompareAndWrite { range, .. }
                if range.blocks > u64::from(MAX_COMPARE_BLOCKS) =>
            {
                Err(Sense::INVALID_FIELD)
            }
            Command::CompareAndWrite { range, fua } => {
                self.plan_out(range, 2, |offset| Kind::CompareAndWrite { offset, fua })
            }
            Command::Verify { range, check } => self.plan_verify(range, check),
            Command::SynchronizeCache { range } => self.plan_flush(range),
            Command::PreFetch { range } => {
                bytes_of(&self.geometry(), range).map(|_| Plan::Done(Answer::good()))
            }
            Command::Unmap { anchor, list_bytes } => {
                provision::plan_unmap(self, anchor, list_bytes)
            }
            Command::WriteSame(same) => provision::plan_write_same(self, &same),
            _ => return None,
        };
        Some(planned)
    }

    fn plan_read(&self, range: Range, fua: bool) -> Result<Plan, Sense> {
        let (offset, bytes) = transfer_of(&self.geometry(), range)?;
        if bytes == 0 {
            return Ok(Plan::Done(Answer::good()));
        }
        let kind = Kind::Read { offset, fua };
        Ok(Plan::Run(Task { data_in_bytes: bytes, wanted_bytes: bytes, ..Task::new(kind) }))
    }

    fn plan_write(&self, range: Range, fua: bool) -> Result<Plan, Sense> {
        let fua = fua || self.write_through();
        self.plan_out(range, 1, |offset| Kind::Write { offset, fua })
    }

    /// Any command that writes `factor` times its range's length of data-out.
    fn plan_out(
        &self,
        range: Range,
        factor: usize,
        kind: impl FnOnce(u64) -> Kind,
    ) -> Result<Plan, Sense> {
        let geometry = self.geometry();
        let (offset, bytes) = transfer_of(&geometry, range)?;
        if self.write_protected(&geometry) {
            return Err(Sense::WRITE_PROTECTED);
        }
        Ok(Plan::Run(Task::with_out(kind(offset), bytes * factor)))
    }

    /// With a boundary each part between two of its multiples is to be atomic: here the whole is.
    fn plan_write_atomic(&self, range: Range, fua: bool, boundary: u16) -> Result<Plan, Sense> {
        let geometry = self.geometry();
        transfer_of(&geometry, range)?;
        let most = atomic_max_blocks(&geometry);
        if range.blocks > u64::from(most) || u32::from(boundary) > most {
            return Err(Sense::INVALID_FIELD);
        }
        let fua = fua || self.write_through();
        self.plan_out(range, 1, |offset| Kind::WriteAtomic { offset, fua })
    }

    fn plan_verify(&self, range: Range, check: ByteCheck) -> Result<Plan, Sense> {
        let geometry = self.geometry();
        let (offset, length) = bytes_of(&geometry, range)?;
        if length == 0 {
            return Ok(Plan::Done(Answer::good()));
        }
        Ok(Plan::Run(match check {
            ByteCheck::Medium => Task::new(Kind::VerifyMedium { offset, length }),
            ByteCheck::Each => {
                let (offset, bytes) = transfer_of(&geometry, range)?;
                Task::with_out(Kind::VerifyEach { offset }, bytes)
            }
            // one block of data-out against any range: the same bound as the other way round
            ByteCheck::Same if length > provision::MAX_WRITE_SAME_BYTES => {
                return Err(Sense::INVALID_FIELD);
            }
            ByteCheck::Same => {
                let block = geometry.block_bytes as usize;
                Task::with_out(Kind::VerifySame { offset, length }, block)
            }
        }))
    }

    /// The range is checked and then all is flushed: a flush is not shorter for less.
    fn plan_flush(&self, range: Range) -> Result<Plan, Sense> {
        bytes_of(&self.geometry(), range)?;
        Ok(Plan::Run(Task::new(Kind::Flush)))
    }

    /// Runs `task` if nothing has to be waited for. `None` has changed nothing. `out` holds
    /// `data_out_bytes`, `into` has room for `data_in_bytes`.
    pub fn try_run(&self, task: &Task, out: &[u8], into: DataIn<'_>) -> Option<Answer> {
        let _turn = match task.changes() {
            true => Some(self.state().try_turn()?),
            false => None,
        };
        if task.stamp != self.aborts() {
            return None;
        }
        let result = match task.kind {
            _ if task.wanted_bytes == 0 && task.moves_media() => Ok(()),
            Kind::Read { offset, fua: false } => {
                let read = match into.sums {
                    Some(sums) => self.disk().try_read_summed(offset, into.bytes, sums),
                    None => self.disk().try_read(offset, into.bytes),
                };
                return Some(self.answer(read?, false));
            }
            Kind::Write { offset, fua: false } | Kind::WriteAtomic { offset, fua: false } => {
                self.disk().try_write(offset, out)?
            }
            Kind::ModeSelect { ten, save: false } => {
                return Some(match mode::select(self, ten, false, out) {
                    Ok(()) => Answer::good(),
                    Err(sense) => self.check(sense),
                });
            }
            _ => return None,
        };
        Some(self.answer(result, true))
    }

    /// Runs `task`, waiting for whatever it needs. `cancel` ends work on long ranges early; one
    /// that was aborted before is refused.
    pub fn run(&self, task: &Task, out: &[u8], into: DataIn<'_>, cancel: &AtomicBool) -> Answer {
        let disk = self.disk();
        let cancel = &Cancel { flag: cancel, state: self.state(), stamp: task.stamp };
        let _turn = task.changes().then(|| self.state().turn());
        if let Err(sense) = cancel.check() {
            return self.check(sense);
        }
        let result = match task.kind {
            Kind::Read { offset, fua } => {
                let flushed = if fua { disk.flush() } else { Ok(()) };
                let read = flushed.and_then(|()| match into.sums {
                    Some(sums) => disk.read_summed(offset, into.bytes, sums),
                    None => disk.read(offset, into.bytes),
                });
                return self.answer(read, false);
            }
            Kind::Write { offset, fua } | Kind::WriteAtomic { offset, fua } => {
                disk.write(offset, out, fua)
            }
            Kind::CompareAndWrite { offset, fua } => {
                let (expect, data) = out.split_at(out.len() / 2);
                disk.compare_and_write(offset, expect, data).and_then(|()| self.durable(fua))
            }
            Kind::Flush => disk.flush(),
            _ => return self.run_long(task, out, cancel),
        };
        self.answer(result, true)
    }

    fn run_long(&self, task: &Task, out: &[u8], cancel: &Cancel<'_>) -> Answer {
        let done = match task.kind {
            Kind::WriteHead { offset, fua } => self.write_head(offset, out, fua),
            Kind::WriteAndVerify { offset } => self.write_and_verify(offset, out),
            Kind::VerifyEach { offset } => self.verify_each(offset, out),
            Kind::VerifyMedium { offset, length } => self.verify_medium(offset, length, cancel),
            Kind::VerifySame { offset, length } => self.verify_same(offset, length, out, cancel),
            Kind::Sanitize(order) => sanitize::run(self, order, out, cancel),
            Kind::ExtendedCopy => copy::extended_copy(self, out, cancel),
            Kind::Eject => self.eject(),
            Kind::OrWrite { offset, fua } => self.or_write(offset, out, fua),
            Kind::Unmap { max_descriptors } => provision::unmap(self, out, max_descriptors),
            Kind::WriteSame { offset, length, unmap } => {
                provision::write_same(self, offset, length, unmap, out, cancel)
            }
            Kind::LbaStatus { lba, allocation_bytes } => {
                return match provision::lba_status(self, lba, allocation_bytes) {
                    Ok(data) => Answer::with_data(data, allocation_bytes),
                    Err(sense) => self.check(sense),
                };
            }
            Kind::Reserve6 => return self.reserve6(task.stamp),
            Kind::ReserveOut { action, scope_type } => {
                return self.reserve_out((action, scope_type), out, task.stamp);
            }
            Kind::ModeSelect { ten, save } => mode::select(self, ten, save, out),
            _ => Err(Sense::ABORTED),
        };
        match done {
            Ok(()) => Answer::good(),
            Err(sense) => self.check(sense),
        }
    }

    /// FUA, or a cleared WCE, for the commands whose disk call has no `fua`.
    fn durable(&self, fua: bool) -> Result<(), BlockError> {
        if fua || self.write_through() {
            self.disk().flush()
        } else {
            Ok(())
        }
    }

    fn answer(&self, result: Result<(), BlockError>, writing: bool) -> Answer {
        match result {
            Ok(()) => Answer::good(),
            Err(error) => self.check(self.sense_of(&error, writing)),
        }
    }

    pub(super) fn sense_of(&self, error: &BlockError, writing: bool) -> Sense {
        Sense::of_error(error, self.geometry().block_bytes, writing)
    }

    /// A write whose transport delivers less than its CDB says: whole blocks as they are, the rest
    /// merged into its block by compare and write.
    fn write_head(&self, offset: u64, out: &[u8], fua: bool) -> Result<(), Sense> {
        /// Others may write the block between our read and our write so many times.
        const TRIES: usize = 16;
        let failed = |error: BlockError| self.sense_of(&error, true);
        let block = (self.geometry().block_bytes as usize).max(1);
        let (whole, rest) = out.split_at(out.len() - out.len() % block);
        if !whole.is_empty() {
            self.disk().write(offset, whole, false).map_err(failed)?;
        }
        let at = offset + whole.len() as u64;
        let mut old = vec![0; if rest.is_empty() { 0 } else { block }];
        for attempt in 0..TRIES {
            if rest.is_empty() {
                break;
            }
            self.disk().read(at, &mut old).map_err(failed)?;
            let new = [rest, old.get(rest.len()..).unwrap_or_default()].concat();
            match self.disk().compare_and_write(at, &old, &new) {
                Err(BlockError::Miscompare { .. }) if attempt + 1 < TRIES => {}
                result => {
                    result.map_err(failed)?;
                    break;
                }
            }
        }
        self.durable(fua).map_err(failed)
    }

    /// ORWRITE is atomic block by block: what is longer than the disk's atomic writes goes in
    /// pieces.
    fn or_write(&self, offset: u64, out: &[u8], fua: bool) -> Result<(), Sense> {
        let failed = |error: BlockError| self.sense_of(&error, true);
        let mut at = offset;
        for piece in out.chunks(PIECE_BYTES) {
            self.disk().or_write(at, piece).map_err(failed)?;
            at += piece.len() as u64;
        }
        self.durable(fua).map_err(failed)
    }

    fn write_and_verify(&self, offset: u64, out: &[u8]) -> Result<(), Sense> {
        self.disk().write(offset, out, true).map_err(|error| self.sense_of(&error, true))?;
        self.verify_each(offset, out)
    }

    fn verify_each(&self, offset: u64, out: &[u8]) -> Result<(), Sense> {
        let mut buffer = vec![0; out.len().min(PIECE_BYTES)];
        for (index, expect) in out.chunks(PIECE_BYTES).enumerate() {
            let at = (index * PIECE_BYTES) as u64;
            let Some(piece) = buffer.get_mut(..expect.len()) else {
                break;
            };
            self.disk().read(offset + at, piece).map_err(|error| self.sense_of(&error, false))?;
            if let Some(first) = first_difference(piece, expect) {
                return Err(Sense::MISCOMPARE.with_information(at + first));
            }
        }
        Ok(())
    }

    /// Reads what stands behind the range; holes need no reading.
    fn verify_medium(&self, offset: u64, length: u64, cancel: &Cancel<'_>) -> Result<(), Sense> {
        /// Runs asked for at a time.
        const RUNS: usize = 64;
        let failed = |error: BlockError| self.sense_of(&error, false);
        let (mut at, end) = (offset, offset + length);
        let mut buffer = Vec::new();
        while at < end {
            let runs = self.disk().extents(at, end - at, RUNS).map_err(failed)?;
            if runs.is_empty() {
                return Err(Sense::LBA_OUT_OF_RANGE); // the LUN shrank meanwhile
            }
            for run in runs {
                let run_end = (run.offset_bytes + run.length_bytes).min(end);
                while run.mapped && at < run_end {
                    cancel.check()?;
                    let bytes = (run_end - at).min(PIECE_BYTES as u64) as usize;
                    buffer.resize(bytes, 0);
                    self.disk().read(at, &mut buffer).map_err(failed)?;
                    at += bytes as u64;
                }
                at = at.max(run_end);
            }
        }
        Ok(())
    }

    fn verify_same(
        &self,
        offset: u64,
        length: u64,
        block: &[u8],
        cancel: &Cancel<'_>,
    ) -> Result<(), Sense> {
        let expect = repeated(block, length.min(PIECE_BYTES as u64) as usize);
        let end = offset + length;
        let mut at = offset;
        while at < end {
            cancel.check()?;
            let bytes = (end - at).min(expect.len().max(1) as u64) as usize;
            self.verify_each(at, expect.get(..bytes).unwrap_or(&expect)).map_err(|sense| {
                Sense {
                    information: sense.information.map(|first| match sense.key {
                        0xE => first + (at - offset),
                        _ => first,
                    }),
                    ..sense
                }
            })?;
            at += bytes as u64;
        }
        Ok(())
    }
}

/// `block` again and again, to `bytes` (a multiple of its length).
pub(super) fn repeated(block: &[u8], bytes: usize) -> Vec<u8> {
    block.repeat(bytes / block.len().max(1))
}

fn first_difference(left: &[u8], right: &[u8]) -> Option<u64> {
    if left == right {
        return None;
    }
    left.iter().zip(right).position(|(a, b)| a != b).map(|at| at as u64)
}
