//! One initiator's relation to a logical unit: where a command begins.
//!
//! Order of the checks (SAM-5 §5.3, SPC-4 §5.5): the unit number, a pending unit attention, the
//! CDB, the medium's presence, then the range.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use parking_lot::Mutex;

use super::attention::Attention;
use super::cdb::{decode, Command};
use super::copy::CopyTargets;
use super::media::{Kind, Task};
use super::reserve::{Access, Denied, Order, LIST_BYTES, MAX_LIST_BYTES, MOVE};
use super::unit::{LogicalUnit, NexusState, FLAG_D_SENSE, FLAG_EJECTED, FLAG_SWP, FLAG_WCE_OFF};
use super::{copy, inquiry, log, mode, provision, report, sanitize, Answer, Sense, Status};
use crate::lun::{BlockIo, Geometry, SanitizeState};

/// Is it the unit's number, in any of the forms that name it?
pub fn is_unit(lun: u64) -> bool {
    lun == 0 || lun == FLAT_LUN_0
}

/// LUN 0 in flat space addressing (SAM-5 §4.7.7.4).
const FLAT_LUN_0: u64 = 0x4000 << 48;

/// Names of the port that a transport serves the unit through (VPD 83h).
#[derive(Debug, Clone)]
pub struct PortNames {
    /// Name of the initiator port (`IQN,i,0xISID`): registrations are kept by it.
    pub initiator: String,
    /// SCSI name string of the target device (for iSCSI its IQN).
    pub device: String,
    /// SCSI name string of the target port (`IQN,t,0x0001`).
    pub port: String,
    /// RELATIVE TARGET PORT IDENTIFIER.
    pub relative_port: u16,
    /// How many target ports the device has: they are numbered from 1.
    pub port_count: u16,
    /// TARGET PORT GROUP.
    pub port_group: u16,
    /// SPC-4 protocol identifier (5 = iSCSI).
    pub protocol: u8,
}

/// What has to be done for a command.
#[derive(Debug)]
pub enum Plan {
    /// Nothing more: answer it.
    Done(Answer),
    /// Move the data, and run it.
    Run(Task),
}

/// An I_T_L nexus. Its drop ends it: what it prevented or reserved is released.
#[derive(Debug)]
pub struct Nexus {
    unit: Arc<LogicalUnit>,
    state: Arc<NexusState>,
    disk: Arc<dyn BlockIo>,
    ports: PortNames,
    copy_targets: Option<Arc<dyn CopyTargets>>,
    seen_generation: AtomicU64,
    seen_media_changes: AtomicU64,
    seen_thresholds: AtomicU64,
    geometry: Mutex<Geometry>,
}

impl Drop for Nexus {
    fn drop(&mut self) {
        self.unit.detach(&self.state);
    }
}

impl Nexus {
    /// Joins `unit`, doing its I/O on `disk`: the session's own handle of the LUN.
    pub fn new(unit: Arc<LogicalUnit>, disk: Arc<dyn BlockIo>, ports: PortNames) -> Nexus {
        unit.restore(&*disk);
        let state = unit.attach(&ports.initiator);
        let seen_generation = AtomicU64::new(disk.generation());
        let seen_media_changes = AtomicU64::new(disk.media_changes());
        let seen_thresholds = AtomicU64::new(disk.threshold_events());
        let geometry = Mutex::new(disk.geometry());
        Nexus {
            unit,
            state,
            disk,
            ports,
            copy_targets: None,
            seen_generation,
            seen_media_changes,
            seen_thresholds,
            geometry,
        }
    }

    /// With other units that EXTENDED COPY may name.
    pub fn with_copy_targets(mut self, targets: Arc<dyn CopyTargets>) -> Nexus {
        self.copy_targets = Some(targets);
        self
    }

    pub(super) fn copy_targets(&self) -> Option<&dyn CopyTargets> {
        self.copy_targets.as_deref()
    }

    /// The unit that all nexuses of this LUN share.
    pub fn unit(&self) -> &Arc<LogicalUnit> {
        &self.unit
    }

    /// The initiator logs out: what it leaves it does not come back to.
    pub fn leaving(&self) {
        self.disk.leaving();
    }

    /// The transport has so many commands of this nexus that are not answered.
    pub fn outstanding(&self, commands: usize) {
        self.disk.outstanding(commands);
    }

    /// See [`BlockIo::may_change`].
    pub fn may_change(&self) -> bool {
        self.disk.may_change()
    }

    /// See [`BlockIo::may_wait_long`].
    pub fn may_wait_long(&self) -> bool {
        self.disk.may_wait_long()
    }

    /// Rises whenever the tasks of this nexus are aborted from outside: a task that began at a
    /// lower count is not answered.
    pub fn aborts(&self) -> u64 {
        self.state.aborts()
    }

    pub(super) fn state(&self) -> &NexusState {
        &self.state
    }

    pub(super) fn disk(&self) -> &dyn BlockIo {
        &*self.disk
    }

    pub(super) fn ports(&self) -> &PortNames {
        &self.ports
    }

    /// The geometry this nexus works by; it changes only together with the attention that says so.
    pub(super) fn geometry(&self) -> Geometry {
        self.geometry.lock().clone()
    }

    pub(super) fn write_protected(&self, geometry: &Geometry) -> bool {
        geometry.read_only || self.unit.flags() & FLAG_SWP != 0
    }

    /// True where a write must be durable before it is answered.
    pub(super) fn write_through(&self) -> bool {
        self.unit.flags() & FLAG_WCE_OFF != 0
    }

    /// CHECK CONDITION in the format that D_SENSE asks for.
    pub fn check(&self, sense: Sense) -> Answer {
        Answer::check(sense, self.unit.flags() & FLAG_D_SENSE != 0)
    }

    /// Begins a command addressed to the 8-byte `lun`.
    pub fn begin(&self, lun: u64, cdb: &[u8; 16]) -> Plan {
        if !is_unit(lun) {
            return Plan::Done(self.no_such_unit(cdb));
        }
        // before the command is judged: what preempts it later refuses it
        let stamp = self.state.aborts();
        self.look_for_changes();
        match self.plan(cdb) {
            Ok(Plan::Run(task)) => Plan::Run(Task { stamp, ..task }),
            Ok(done) => done,
            Err(sense) => {
                if sense == Sense::WRITE_PROTECTED {
                    self.disk.write_refused();
                }
                Plan::Done(self.check(sense))
            }
        }
    }

    /// Notices a changed disk by one atomic load, and turns the change into attentions.
    fn look_for_changes(&self) {
        let generation = self.disk.generation();
        if generation == self.seen_generation.load(Ordering::Relaxed) {
            return;
        }
        let media_changes = self.disk.media_changes();
        if self.seen_media_changes.swap(media_changes, Ordering::Relaxed) != media_changes {
            self.state.raise(Attention::MediumChanged);
        }
        let now = self.disk.geometry();
        let mut geometry = self.geometry.lock();
        if now.size_bytes != geometry.size_bytes {
            self.state.raise(Attention::CapacityChanged);
        }
        let rest = Geometry { size_bytes: now.size_bytes, generation: now.generation, ..*geometry };
        if rest != now {
            self.state.raise(Attention::ModeChanged);
        }
        let thresholds = self.disk.threshold_events();
        if self.seen_thresholds.swap(thresholds, Ordering::Relaxed) != thresholds {
            self.state.raise(Attention::SoftThreshold);
        }
        // A file writer closed, or an import went by: what the initiator has cached may be old.
        let changes = self.disk.media_changes();
        if self.seen_media_changes.swap(changes, Ordering::Relaxed) != changes {
            self.state.raise(Attention::MediumChanged);
        }
        self.seen_generation.store(now.generation, Ordering::Relaxed);
        *geometry = now;
    }

    fn plan(&self, cdb: &[u8; 16]) -> Result<Plan, Sense> {
        let exempt = matches!(cdb[0], 0x03 | 0x12 | 0xA0);
        if !exempt {
            if let Some(attention) = self.state.take_attention() {
                return Err(attention.sense());
            }
        }
        let command = decode(cdb)?;
        if !self.unit.allows(&self.state, access_of(&command)) {
            return Ok(Plan::Done(Answer::status(Status::ReservationConflict)));
        }
        let sanitizing = self.disk.sanitize_state();
        if let Some(sense) = sanitize::obstacle(sanitizing) {
            if !sanitize::goes_on(&command, sanitizing) {
                return Err(sense);
            }
        }
        if self.unit.flags() & FLAG_EJECTED != 0 && needs_medium(&command) {
            return Err(Sense::NO_MEDIUM);
        }
        match self.plan_media(&command) {
            Some(plan) => plan,
            None => self.plan_control(command),
        }
    }

    fn plan_control(&self, command: Command) -> Result<Plan, Sense> {
        let geometry = self.geometry();
        let (data, allocation_bytes) = match command {
            Command::Inquiry { evpd, page, allocation_bytes } => {
                (inquiry::answer(self, &geometry, evpd, page)?, allocation_bytes)
            }
            Command::RequestSense { descriptor, allocation_bytes } => {
                (self.request_sense(descriptor), allocation_bytes)
            }
            Command::ModeSense(query) => {
                (mode::sense(self, &geometry, &query)?, query.allocation_bytes)
            }
            Command::ModeSelect { page_format, save, list_bytes, ten } => {
                return mode::plan_select(ten, page_format, save, list_bytes);
            }
            Command::ReadCapacity10 => (report::capacity10(&geometry), 8),
            Command::ReadCapacity16 { allocation_bytes } => {
                (report::capacity16(&geometry), allocation_bytes)
            }
            Command::ReadDefectData { twelve, list, allocation_bytes } => {
                (report::defects(twelve, list), allocation_bytes)
            }
            Command::ReportLuns { select, allocation_bytes } => {
                (report::luns(select)?, allocation_bytes)
            }
            Command::Sanitize(order) => return sanitize::plan(self, order),
            Command::LogSense(query) => (log::sense(self, &query)?, query.allocation_bytes),
            Command::ReportTaskManagement { extended, allocation_bytes } => {
                (report::task_management(extended), allocation_bytes)
            }
            Command::ReportOpcodes(query) => (report::opcodes(&query)?, query.allocation_bytes),
            Command::ReportTargetPortGroups { extended, allocation_bytes } => {
                (report::port_groups(self.ports(), extended), allocation_bytes)
            }
            Command::GetLbaStatus { lba, allocation_bytes } => {
                return provision::plan_lba_status(&geometry, lba, allocation_bytes);
            }
            Command::StartStop { power_condition, load_eject, start } => {
                return self.start_stop(&geometry, power_condition, load_eject, start);
            }
            Command::ExtendedCopy { list_bytes } => {
                if self.write_protected(&geometry) {
                    return Err(Sense::WRITE_PROTECTED);
                }
                return copy::plan(list_bytes);
            }
            Command::ReceiveCopyResults { action, list_id, allocation_bytes } => {
                (copy::results(self, action, list_id)?, allocation_bytes)
            }
            Command::Reserve6 => return Ok(Plan::Run(Task::new(Kind::Reserve6))),
            Command::Release6 => return Ok(self.reserved(self.unit.release6(&self.state))),
            Command::PersistentIn { action, allocation_bytes } => {
                (self.unit.report_reservations(action, &self.ports)?, allocation_bytes)
            }
            Command::PersistentOut { action, scope_type, list_bytes } => {
                return plan_reserve_out(action, scope_type, list_bytes);
            }
            Command::PreventAllow { prevent } => {
                self.unit.prevent_removal(&self.state, prevent);
                (Vec::new(), 0)
            }
            // TEST UNIT READY, and the media commands, which never come here
            _ => (Vec::new(), 0),
        };
        Ok(Plan::Done(Answer::with_data(data, allocation_bytes)))
    }

    fn reserved(&self, outcome: Result<(), Denied>) -> Plan {
        Plan::Done(self.reserve_answer(outcome))
    }

    fn reserve_answer(&self, outcome: Result<(), Denied>) -> Answer {
        match outcome {
            Ok(()) => Answer::good(),
            Err(Denied::Conflict) => Answer::status(Status::ReservationConflict),
            Err(Denied::Check(sense)) => self.check(sense),
        }
    }

    /// RESERVE(6). The disk is claimed first: a reservation keeps the file door out.
    pub(super) fn reserve6(&self, stamp: u64) -> Answer {
        match self.claim() {
            Ok(()) => self.reserve_answer(self.unit.reserve6(&self.state, stamp)),
            Err(sense) => self.check(sense),
        }
    }

    /// PERSISTENT RESERVE OUT with its parameter list.
    pub(super) fn reserve_out(
        &self,
        (action, scope_type): (u8, u8),
        list: &[u8],
        stamp: u64,
    ) -> Answer {
        let order = match Order::parse(action, scope_type, list, self.ports.protocol) {
            Ok(order) => order,
            Err(sense) => return self.check(sense),
        };
        if order.clears() && !self.disk.may_change() {
            return self.check(Sense::WRITE_PROTECTED);
        }
        if order.reserves() {
            if let Err(sense) = self.claim() {
                return self.check(sense);
            }
        }
        self.reserve_answer(self.unit.reserve_out((&self.state, stamp), &order, self.disk()))
    }

    fn claim(&self) -> Result<(), Sense> {
        self.disk.claim().map_err(|error| self.sense_of(&error, true))
    }

    /// REQUEST SENSE (SPC-4 §6.39): reports and clears a pending attention.
    fn request_sense(&self, descriptor: bool) -> Vec<u8> {
        let sense = match self.state.take_attention() {
            Some(attention) => attention.sense(),
            None if self.disk.sanitize_state() != SanitizeState::Idle => {
                sanitize::obstacle(self.disk.sanitize_state()).unwrap_or(Sense::NONE)
            }
            None if self.unit.flags() & FLAG_EJECTED != 0 => Sense::NO_MEDIUM,
            None => Sense::NONE,
        };
        sense.encode(descriptor)
    }

    /// START STOP UNIT (SBC-3 §5.25). A stop alone writes the cache and keeps the medium: the
    /// disk is shared, and there is nothing to spin down.
    fn start_stop(
        &self,
        geometry: &Geometry,
        power_condition: u8,
        load_eject: bool,
        start: bool,
    ) -> Result<Plan, Sense> {
        if power_condition != 0 {
            return Ok(Plan::Done(Answer::good()));
        }
        if !load_eject {
            return Ok(match start {
                true => Plan::Done(Answer::good()),
                false => Plan::Run(Task::new(Kind::Flush)),
            });
        }
        if !geometry.removable {
            return Err(Sense::INVALID_FIELD);
        }
        if self.unit.removal_prevented() {
            return Err(Sense::REMOVAL_PREVENTED);
        }
        if !self.disk.may_change() {
            return Err(Sense::WRITE_PROTECTED); // who may only read takes it from nobody
        }
        if !start {
            return Ok(Plan::Run(Task::new(Kind::Eject)));
        }
        if self.unit.set_flags(FLAG_EJECTED, 0) {
            self.unit.raise_for_others(&self.state, Attention::MediumChanged);
        }
        Ok(Plan::Done(Answer::good()))
    }

    /// The medium leaves with all that was written to it.
    pub(super) fn eject(&self) -> Result<(), Sense> {
        self.disk.flush().map_err(|error| self.sense_of(&error, true))?;
        if self.unit.removal_prevented() {
            return Err(Sense::REMOVAL_PREVENTED);
        }
        self.unit.set_flags(FLAG_EJECTED, FLAG_EJECTED);
        Ok(())
    }

    /// Commands to a unit number that is not there (SPC-4 §6.6.2, SAM-5 §4.8.3).
    fn no_such_unit(&self, cdb: &[u8; 16]) -> Answer {
        match decode(cdb) {
            Ok(Command::Inquiry { evpd: false, allocation_bytes, .. }) => {
                Answer::with_data(inquiry::absent_unit(), allocation_bytes)
            }
            Ok(Command::ReportLuns { select, allocation_bytes }) => match report::luns(select) {
                Ok(data) => Answer::with_data(data, allocation_bytes),
                Err(sense) => self.check(sense),
            },
            Ok(Command::RequestSense { descriptor, allocation_bytes }) => {
                Answer::with_data(Sense::LUN_NOT_SUPPORTED.encode(descriptor), allocation_bytes)
            }
            _ => self.check(Sense::LUN_NOT_SUPPORTED),
        }
    }

    /// The answer to a command that the transport has no room for.
    pub fn busy(&self) -> Answer {
        Answer::status(Status::TaskSetFull)
    }
}

/// What answers MEDIUM NOT PRESENT after an eject.
fn needs_medium(command: &Command) -> bool {
    !matches!(
        command,
        Command::Inquiry { .. }
            | Command::RequestSense { .. }
            | Command::ReportLuns { .. }
            | Command::ReportOpcodes(_)
            | Command::ReportTaskManagement { .. }
            | Command::LogSense(_)
            | Command::ReportTargetPortGroups { .. }
            | Command::StartStop { .. }
            | Command::PreventAllow { .. }
            | Command::Reserve6
            | Command::Release6
            | Command::PersistentIn { .. }
            | Command::PersistentOut { .. }
            | Command::ModeSense(_)
            | Command::ModeSelect { .. }
    )
}

/// How commands stand to the reservation of another nexus (SPC-4 table 52, SBC-3 table 13). The
/// reservation commands judge for themselves.
fn access_of(command: &Command) -> Access {
    match command {
        Command::Inquiry { .. }
        | Command::RequestSense { .. }
        | Command::ReportLuns { .. }
        | Command::Reserve6
        | Command::Release6
        | Command::PreventAllow { prevent: false } => Access::Always,
        Command::TestUnitReady
        | Command::ReadCapacity10
        | Command::ReadCapacity16 { .. }
        | Command::ReportOpcodes(_)
        | Command::ReportTaskManagement { .. }
        | Command::LogSense(_)
        | Command::ReportTargetPortGroups { .. }
        | Command::ReceiveCopyResults { .. }
        | Command::PersistentIn { .. }
        | Command::PersistentOut { .. } => Access::Query,
        Command::Read { .. }
        | Command::Verify { .. }
        | Command::PreFetch { .. }
        | Command::ModeSense(_)
        | Command::GetLbaStatus { .. } => Access::Read,
        _ => Access::Write,
    }
}

/// What the CDB of PERSISTENT RESERVE OUT alone decides.
fn plan_reserve_out(action: u8, scope_type: u8, list_bytes: usize) -> Result<Plan, Sense> {
    if action > MOVE {
        return Err(Sense::INVALID_FIELD);
    }
    let right = match action {
        MOVE => (LIST_BYTES..=MAX_LIST_BYTES).contains(&list_bytes),
        _ => list_bytes == LIST_BYTES,
    };
    if !right {
        return Err(Sense::LIST_LENGTH);
    }
    Ok(Plan::Run(Task::with_out(Kind::ReserveOut { action, scope_type }, list_bytes)))
}
