//! EXTENDED COPY (LID1) and RECEIVE COPY RESULTS (SPC-4 §6.4, §6.24): copies within a logical unit
//! and between units of one server, as hypervisors ask for them. Other copy targets are out of
//! reach, and initiators then copy themselves.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::{Mutex, RwLockReadGuard};

use super::cdb::Range;
use super::media::{bytes_of, Cancel, Kind, Task, PIECE_BYTES};
use super::nexus::{Nexus, Plan};
use super::reserve::Access;
use super::unit::{LogicalUnit, FLAG_EJECTED, FLAG_SWP, FLAG_WCE_OFF};
use super::{Answer, Sense};
use crate::lun::{BlockError, BlockIo, Geometry, SanitizeState};

const HEADER_BYTES: usize = 16;
const TARGET_BYTES: usize = 32;
const SEGMENT_BYTES: usize = 28;
/// MAXIMUM TARGET DESCRIPTOR COUNT: source and destination.
const MAX_TARGETS: usize = 2;
/// MAXIMUM SEGMENT DESCRIPTOR COUNT: bounds the time that one command takes.
const MAX_SEGMENTS: usize = 16;
/// MAXIMUM DESCRIPTOR LIST LENGTH.
const MAX_LIST_BYTES: usize = MAX_TARGETS * TARGET_BYTES + MAX_SEGMENTS * SEGMENT_BYTES;
/// MAXIMUM SEGMENT LENGTH: what 16 bits of blocks can say, and less than a client waits for.
const MAX_SEGMENT_BYTES: u32 = 256 << 20;
/// Identification descriptor target descriptor.
const TARGET_IDENTIFICATION: u8 = 0xE4;
/// Block device to block device segment descriptor.
const SEGMENT_BLOCK_TO_BLOCK: u8 = 0x02;
/// LIST ID USAGE: no results are to be kept.
const DISCARD_RESULTS: u8 = 3;
/// Results that a unit keeps for RECEIVE COPY RESULTS, of all initiators together.
const MAX_RESULTS: usize = 64;

/// What came of one EXTENDED COPY.
#[derive(Debug, Clone)]
struct Outcome {
    port: String,
    list_id: u8,
    failed: bool,
    segments: u16,
    copied_bytes: u64,
}

/// The results that a unit keeps.
#[derive(Debug, Default)]
pub(super) struct Outcomes(Mutex<VecDeque<Outcome>>);

impl Outcomes {
    fn keep(&self, outcome: Outcome) {
        let mut all = self.0.lock();
        all.retain(|old| old.port != outcome.port || old.list_id != outcome.list_id);
        if all.len() >= MAX_RESULTS {
            all.pop_front();
        }
        all.push_back(outcome);
    }

    /// COPY STATUS data; an unknown list is an error in the CDB.
    fn status(&self, port: &str, list_id: u8) -> Result<Vec<u8>, Sense> {
        let all = self.0.lock();
        let found = all.iter().find(|one| one.port == port && one.list_id == list_id);
        let found = found.ok_or(Sense::INVALID_FIELD)?;
        let mut data = vec![0, 0, 0, 8, if found.failed { 2 } else { 1 }];
        data.extend_from_slice(&found.segments.to_be_bytes());
        data.push(0x01); // TRANSFER COUNT in KiB
        let kib = u32::try_from(found.copied_bytes >> 10).unwrap_or(u32::MAX);
        data.extend_from_slice(&kib.to_be_bytes());
        Ok(data)
    }
}

/// EXTENDED COPY: what its CDB alone decides.
pub(super) fn plan(list_bytes: usize) -> Result<Plan, Sense> {
    match list_bytes {
        0 => Ok(Plan::Done(Answer::good())),
        1..HEADER_BYTES => Err(Sense::LIST_LENGTH),
        _ if list_bytes > HEADER_BYTES + MAX_LIST_BYTES => Err(Sense::LIST_LENGTH),
        _ => Ok(Plan::Run(Task::with_out(Kind::ExtendedCopy, list_bytes))),
    }
}

/// RECEIVE COPY RESULTS: COPY STATUS and OPERATING PARAMETERS.
pub(super) fn results(nexus: &Nexus, action: u8, list_id: u8) -> Result<Vec<u8>, Sense> {
    match action {
        0 => nexus.unit().copies().status(&nexus.ports().initiator, list_id),
        3 => Ok(operating_parameters(&nexus.geometry())),
        _ => Err(Sense::INVALID_FIELD),
    }
}

fn operating_parameters(geometry: &Geometry) -> Vec<u8> {
    let mut data = vec![0u8; 46];
    data[3] = 42;
    data[8..10].copy_from_slice(&(MAX_TARGETS as u16).to_be_bytes());
    data[10..12].copy_from_slice(&(MAX_SEGMENTS as u16).to_be_bytes());
    data[12..16].copy_from_slice(&(MAX_LIST_BYTES as u32).to_be_bytes());
    data[16..20].copy_from_slice(&MAX_SEGMENT_BYTES.to_be_bytes());
    data[35] = 1; // copies of all initiators at a time that are promised
    data[36] = 1; // of one
    data[37] = geometry.block_bytes.trailing_zeros() as u8;
    data[43] = 2;
    data[44..46].copy_from_slice(&[SEGMENT_BLOCK_TO_BLOCK, TARGET_IDENTIFICATION]);
    data
}

/// VPD page 8Fh: the commands and descriptors that there are (SPC-4 §7.8.17).
pub(super) fn third_party_page() -> Vec<u8> {
    let commands: &[u8] = &[0x83, 1, 0x00, 0x84, 2, 0x00, 0x03];
    let mut body = vec![0x00, 0x01, 0x00, 0x08, commands.len() as u8];
    body.extend_from_slice(commands);
    body.extend_from_slice(&[0x00, 0x08, 0x00, 0x04, 2]);
    body.extend_from_slice(&[SEGMENT_BLOCK_TO_BLOCK, TARGET_IDENTIFICATION, 0]);
    body
}

/// A parameter list, taken apart.
struct List<'l> {
    targets: Vec<&'l [u8]>,
    segments: Vec<&'l [u8]>,
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    let found = bytes.get(at..at + 2).and_then(|bytes| bytes.try_into().ok());
    found.map_or(0, u16::from_be_bytes)
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    (u32::from(be16(bytes, at)) << 16) | u32::from(be16(bytes, at + 2))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    (u64::from(be32(bytes, at)) << 32) | u64::from(be32(bytes, at + 4))
}

impl<'l> List<'l> {
    fn parse(list: &'l [u8]) -> Result<List<'l>, Sense> {
        let target_bytes = usize::from(be16(list, 2));
        let segment_bytes = be32(list, 8) as usize;
        if be32(list, 12) != 0 {
            return Err(Sense::new(0x5, 0x26, 0x0B)); // INLINE DATA LENGTH EXCEEDED
        }
        let body = list.get(HEADER_BYTES..).ok_or(Sense::LIST_LENGTH)?;
        let targets = body.get(..target_bytes).ok_or(Sense::LIST_LENGTH)?;
        let segments = body.get(target_bytes..).and_then(|rest| rest.get(..segment_bytes));
        let segments = segments.ok_or(Sense::LIST_LENGTH)?;
        Ok(List { targets: List::targets(targets)?, segments: List::segments(segments)? })
    }

    fn targets(bytes: &'l [u8]) -> Result<Vec<&'l [u8]>, Sense> {
        if bytes.len() % TARGET_BYTES != 0 {
            return Err(Sense::LIST_LENGTH);
        }
        let targets: Vec<&[u8]> = bytes.chunks_exact(TARGET_BYTES).collect();
        if targets.len() > MAX_TARGETS {
            return Err(Sense::new(0x5, 0x26, 0x06)); // TOO MANY TARGET DESCRIPTORS
        }
        match targets.iter().all(|target| target.first() == Some(&TARGET_IDENTIFICATION)) {
            true => Ok(targets),
            false => Err(Sense::new(0x5, 0x26, 0x07)), // UNSUPPORTED TARGET DESCRIPTOR TYPE CODE
        }
    }

    fn segments(mut bytes: &'l [u8]) -> Result<Vec<&'l [u8]>, Sense> {
        let mut segments = Vec::new();
        while let Some(&code) = bytes.first() {
            if code != SEGMENT_BLOCK_TO_BLOCK {
                return Err(Sense::new(0x5, 0x26, 0x09)); // UNSUPPORTED SEGMENT DESCRIPTOR TYPE CODE
            }
            if segments.len() == MAX_SEGMENTS {
                return Err(Sense::new(0x5, 0x26, 0x08)); // TOO MANY SEGMENT DESCRIPTORS
            }
            let segment = bytes.get(..SEGMENT_BYTES).ok_or(Sense::LIST_LENGTH)?;
            if usize::from(be16(segment, 2)) != SEGMENT_BYTES - 4 {
                return Err(Sense::INVALID_PARAMETER);
            }
            segments.push(segment);
            bytes = bytes.get(SEGMENT_BYTES..).unwrap_or_default();
        }
        Ok(segments)
    }
}

/// Carries out a parameter list: it is checked as a whole, then its segments are copied in order.
pub(super) fn extended_copy(nexus: &Nexus, list: &[u8], cancel: &Cancel<'_>) -> Result<(), Sense> {
    let (list_id, usage) = match list {
        [list_id, flags, ..] => (*list_id, (flags >> 3) & 3),
        _ => return Err(Sense::LIST_LENGTH),
    };
    let list = List::parse(list)?;
    let mut outcome = Outcome {
        port: nexus.ports().initiator.clone(),
        list_id,
        failed: false,
        segments: 0,
        copied_bytes: 0,
    };
    let result = copy_segments(nexus, &list, &mut outcome, cancel);
    outcome.failed = result.is_err();
    if usage != DISCARD_RESULTS {
        nexus.unit().copies().keep(outcome);
    }
    result
}

/// Another unit, in the initiator's name.
#[derive(Debug)]
pub struct CopyTarget {
    /// Whose reservations are to be heeded.
    unit: Arc<LogicalUnit>,
    /// Its data. What it took for the copy is let go of when that is done.
    disk: Arc<dyn BlockIo>,
}

impl CopyTarget {
    /// `disk` is that of `unit`.
    pub fn new(unit: Arc<LogicalUnit>, disk: Arc<dyn BlockIo>) -> CopyTarget {
        unit.restore(&*disk);
        CopyTarget { unit, disk }
    }
}

/// Where the units are found that the initiator may use.
pub trait CopyTargets: Send + Sync + std::fmt::Debug {
    /// The unit with this NAA identifier.
    fn find(&self, naa: &[u8; 16]) -> Option<CopyTarget>;
}

/// One end of a copy: the unit that has the command, or another.
enum End<'n> {
    Own(&'n Nexus),
    Other(CopyTarget),
}

impl Drop for CopyTarget {
    fn drop(&mut self) {
        self.disk.leaving();
    }
}

/// COPY TARGET DEVICE NOT REACHABLE.
const NOT_REACHABLE: Sense = Sense::new(0xA, 0x0D, 0x02);
/// INCORRECT COPY TARGET DEVICE TYPE: logical blocks of another size.
const OTHER_TYPE: Sense = Sense::new(0xA, 0x0D, 0x03);
/// THIRD PARTY DEVICE FAILURE: it is reserved, protected or being sanitized.
const FAILURE: Sense = Sense::new(0xA, 0x0D, 0x01);

impl<'n> End<'n> {
    /// Finds what a target descriptor names: by its NAA designator.
    fn find(nexus: &'n Nexus, target: &[u8]) -> Result<End<'n>, Sense> {
        let kind = target.get(5).map_or(0, |kind| kind & 0x0F);
        let length = target.get(7).copied().map_or(0, usize::from);
        let name = target.get(8..28).and_then(|name| name.get(..length)).unwrap_or_default();
        let naa = <&[u8; 16]>::try_from(name).ok().filter(|_| kind == 3).ok_or(NOT_REACHABLE)?;
        if *naa == nexus.disk().identity().naa {
            return Ok(End::Own(nexus));
        }
        let found = nexus.copy_targets().and_then(|all| all.find(naa)).ok_or(NOT_REACHABLE)?;
        if found.disk.geometry().block_bytes != nexus.geometry().block_bytes {
            return Err(OTHER_TYPE);
        }
        Ok(End::Other(found))
    }

    fn disk(&self) -> &dyn BlockIo {
        match self {
            End::Own(nexus) => nexus.disk(),
            End::Other(target) => &*target.disk,
        }
    }

    fn geometry(&self) -> Geometry {
        match self {
            End::Own(nexus) => nexus.geometry(),
            End::Other(target) => target.disk.geometry(),
        }
    }

    /// Its own mode page says that a write is durable when answered.
    fn write_through(&self) -> bool {
        match self {
            End::Own(nexus) => nexus.write_through(),
            End::Other(target) => target.unit.flags() & FLAG_WCE_OFF != 0,
        }
    }

    fn guest(&self) -> Option<RwLockReadGuard<'_, ()>> {
        match self {
            End::Own(_) => None,
            End::Other(target) => Some(target.unit.guest()),
        }
    }

    /// The command itself was judged by the unit that has it; the other one is judged here.
    fn check(&self, nexus: &Nexus, access: Access) -> Result<(), Sense> {
        let End::Other(target) = self else {
            return Ok(());
        };
        let protected = access == Access::Write
            && (target.disk.geometry().read_only || target.unit.flags() & FLAG_SWP != 0);
        let ready = target.disk.sanitize_state() == SanitizeState::Idle
            && target.unit.flags() & FLAG_EJECTED == 0;
        match ready && !protected && target.unit.allows_port(&nexus.ports().initiator, access) {
            true => Ok(()),
            false => Err(FAILURE),
        }
    }
}

fn copy_segments(
    nexus: &Nexus,
    list: &List<'_>,
    outcome: &mut Outcome,
    cancel: &Cancel<'_>,
) -> Result<(), Sense> {
    let mut ends: Vec<Option<End<'_>>> = list.targets.iter().map(|_| None).collect();
    for segment in &list.segments {
        let indices = [be16(segment, 4), be16(segment, 6)].map(usize::from);
        for index in indices {
            if let (Some(slot), Some(target)) = (ends.get_mut(index), list.targets.get(index)) {
                if slot.is_none() {
                    *slot = Some(End::find(nexus, target)?);
                }
            }
        }
        let end = |index: usize| ends.get(index).and_then(Option::as_ref).ok_or(UNREACHABLE);
        let [source, target] = indices;
        let (source, target) = (end(source)?, end(target)?);
        let _guest = target.guest(); // who preempts it there waits for this segment
        source.check(nexus, Access::Read)?;
        target.check(nexus, Access::Write)?;
        let blocks = u64::from(be16(segment, 10));
        let range = |end: &End<'_>, at: usize| {
            bytes_of(&end.geometry(), Range { lba: be64(segment, at), blocks })
                .map_err(|_| Sense::COPY_ABORTED)
        };
        let ((from, length), (to, _)) = (range(source, 12)?, range(target, 20)?);
        let copy = Copy { nexus, source: source.disk(), target: target.disk(), from, to };
        copy.run(length, cancel)?;
        if nexus.write_through() || target.write_through() {
            target.disk().flush().map_err(|error| nexus.sense_of(&error, true))?;
        }
        outcome.segments += 1;
        outcome.copied_bytes += length;
    }
    Ok(())
}

/// UNREACHABLE COPY TARGET: a segment names a descriptor that is not there.
const UNREACHABLE: Sense = Sense::new(0xA, 0x08, 0x04);

/// One segment.
struct Copy<'c> {
    nexus: &'c Nexus,
    source: &'c dyn BlockIo,
    target: &'c dyn BlockIo,
    from: u64,
    to: u64,
}

impl Copy<'_> {
    /// By sharing the blocks where the disk can do that; else in pieces, from the end where the
    /// destination overlaps the source behind it. What it wrote is not flushed yet.
    fn run(&self, length: u64, cancel: &Cancel<'_>) -> Result<(), Sense> {
        let failed = |error: BlockError| self.nexus.sense_of(&error, true);
        let clone = |source| self.target.clone_range(&source, self.from, self.to, length);
        if let Some(cloned) = self.source.clone_source().and_then(clone) {
            return cloned.map_err(failed);
        }
        let piece = PIECE_BYTES as u64;
        let (source, target) = (self.source.identity().naa, self.target.identity().naa);
        let backwards = source == target && self.to > self.from;
        let count = length.div_ceil(piece);
        let mut buffer = Vec::new();
        for step in 0..count {
            cancel.check()?;
            let at = if backwards { count - 1 - step } else { step } * piece;
            buffer.resize((length - at).min(piece) as usize, 0);
            let unread = |error: BlockError| self.nexus.sense_of(&error, false);
            self.source.read(self.from + at, &mut buffer).map_err(unread)?;
            let to = self.to + at;
            if buffer.iter().all(|byte| *byte == 0) {
                self.target.write_zeroes(to, buffer.len() as u64, true).map_err(failed)?;
            } else {
                self.target.write(to, &buffer, false).map_err(failed)?;
            }
        }
        Ok(())
    }
}
