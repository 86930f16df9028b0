//! One logical unit, shared by all its nexuses: mode settings, the state of the medium, resets, and
//! reservations, and the table through which a unit attention reaches every nexus.
//!
//! Invariants: a nexus is in the table from its creation to its drop; `flags` is what the command
//! path reads and changes only under the table's lock; a task changes nothing but while it has its
//! nexus's `turn` (or, for reservations, `changing`) and its stamp is that of `aborts`, so that
//! whoever raised `aborts` and then had these alone has seen the last effect of what he aborted.
//! Nobody who has a turn waits for another's.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use super::attention::{Attention, Attentions};
use super::copy::Outcomes;
use super::nexus::PortNames;
use super::reserve::{Access, Denied, Order, Reservations};
use super::Sense;
use crate::lun::BlockIo;

/// SWP of the control mode page: the software write protect.
pub(super) const FLAG_SWP: u32 = 1;
/// D_SENSE of the control mode page: descriptor format sense data.
pub(super) const FLAG_D_SENSE: u32 = 2;
/// WCE of the caching mode page was cleared: every write is durable when answered.
pub(super) const FLAG_WCE_OFF: u32 = 4;
/// The medium was ejected by START STOP UNIT.
pub(super) const FLAG_EJECTED: u32 = 8;
/// A reservation is held: commands have to be checked against it.
pub(super) const FLAG_RESERVED: u32 = 16;
/// What a reset gives back its saved value.
const FLAGS_OF_RESET: u32 = FLAG_SWP | FLAG_D_SENSE | FLAG_WCE_OFF;

/// What the unit keeps of one nexus.
#[derive(Debug)]
pub(super) struct NexusState {
    id: u64,
    /// Name of the initiator port, by which it is registered.
    port: String,
    /// Rises whenever the tasks of this nexus are aborted from outside.
    aborts: AtomicU64,
    /// Tasks that change something have it for reading while they do.
    turn: RwLock<()>,
    /// True while `attentions` is not empty: what the command path looks at.
    pending: AtomicBool,
    attentions: Mutex<Attentions>,
    prevents_removal: AtomicBool,
}

impl NexusState {
    pub fn aborts(&self) -> u64 {
        self.aborts.load(Ordering::Acquire)
    }

    /// From here on what began before is refused; [`NexusState::settle`] waits for what runs.
    fn abort_tasks(&self) {
        self.aborts.fetch_add(1, Ordering::AcqRel);
    }

    /// Waits until no aborted task can take effect any more.
    fn settle(&self) {
        drop(self.turn.write());
    }

    /// To be held by a task while it changes something; it looks at its stamp then.
    pub fn turn(&self) -> RwLockReadGuard<'_, ()> {
        self.turn.read()
    }

    /// The same without waiting.
    pub fn try_turn(&self) -> Option<RwLockReadGuard<'_, ()>> {
        self.turn.try_read()
    }

    pub fn raise(&self, attention: Attention) {
        let mut waiting = self.attentions.lock();
        waiting.raise(attention);
        self.pending.store(true, Ordering::Release);
    }

    /// The next attention to report, if any. One atomic load where none waits.
    pub fn take_attention(&self) -> Option<Attention> {
        if !self.pending.load(Ordering::Acquire) {
            return None;
        }
        let mut waiting = self.attentions.lock();
        let attention = waiting.take();
        self.pending.store(!waiting.is_empty(), Ordering::Release);
        attention
    }
}

/// A logical unit. It outlives its sessions as long as the transport keeps it.
#[derive(Debug, Default)]
pub struct LogicalUnit {
    flags: AtomicU32,
    saved_mode: AtomicU32,
    /// What the disk keeps was taken over.
    restored: Mutex<bool>,
    /// One change of the reservations at a time, from its check until it is kept.
    changing: Mutex<()>,
    reservations: Mutex<Reservations>,
    /// Copies that come by another unit have it for reading from their check to their end.
    guests: RwLock<()>,
    copies: Outcomes,
    next_nexus: AtomicU64,
    nexuses: Mutex<Vec<Arc<NexusState>>>,
}

impl LogicalUnit {
    /// A unit with default mode settings and its medium loaded.
    pub fn new() -> Arc<LogicalUnit> {
        Arc::new(LogicalUnit::default())
    }

    /// Takes over what the disk keeps of the unit: by its first nexus.
    pub(super) fn restore(&self, disk: &dyn BlockIo) {
        let record = disk.reservations();
        let mut restored = self.restored.lock();
        if std::mem::replace(&mut *restored, true) {
            return;
        }
        self.with_reservations(|all| *all = Reservations::from_record(&record));
        self.set_saved_mode(disk.saved_mode());
        self.set_flags(FLAGS_OF_RESET, self.saved_mode());
    }

    /// There is something to remember of it without a nexus.
    pub fn is_needed(&self) -> bool {
        self.reservations.lock().has_registrants() || self.flags() != self.saved_mode()
    }

    pub(super) fn saved_mode(&self) -> u32 {
        self.saved_mode.load(Ordering::Acquire)
    }

    pub(super) fn set_saved_mode(&self, flags: u32) {
        self.saved_mode.store(flags & FLAGS_OF_RESET, Ordering::Release);
    }

    pub(super) fn attach(&self, port: &str) -> Arc<NexusState> {
        let state = Arc::new(NexusState {
            id: self.next_nexus.fetch_add(1, Ordering::Relaxed),
            port: port.to_owned(),
            aborts: AtomicU64::new(0),
            turn: RwLock::new(()),
            pending: AtomicBool::new(false),
            attentions: Mutex::default(),
            prevents_removal: AtomicBool::new(false),
        });
        state.raise(Attention::PowerOn);
        self.nexuses.lock().push(Arc::clone(&state));
        state
    }

    pub(super) fn detach(&self, state: &NexusState) {
        self.nexuses.lock().retain(|other| other.id != state.id);
        self.with_reservations(|all| all.forget_nexus(state.id));
    }

    /// How many nexuses there are.
    pub fn nexus_count(&self) -> usize {
        self.nexuses.lock().len()
    }

    pub(super) fn copies(&self) -> &Outcomes {
        &self.copies
    }

    pub(super) fn flags(&self) -> u32 {
        self.flags.load(Ordering::Acquire)
    }

    /// Sets the bits of `mask` to `value` and says whether that changed anything.
    pub(super) fn set_flags(&self, mask: u32, value: u32) -> bool {
        let _table = self.nexuses.lock();
        let old = self.flags.load(Ordering::Acquire);
        let new = (old & !mask) | (value & mask);
        self.flags.store(new, Ordering::Release);
        old != new
    }

    /// Raises an attention for every nexus but `except`.
    pub(super) fn raise_for_others(&self, except: &NexusState, attention: Attention) {
        for other in self.nexuses.lock().iter().filter(|other| other.id != except.id) {
            other.raise(attention);
        }
    }

    /// Raises an attention for every nexus.
    pub fn raise_for_all(&self, attention: Attention) {
        for nexus in self.nexuses.lock().iter() {
            nexus.raise(attention);
        }
    }

    /// LOGICAL UNIT RESET (SAM-5 §6.3.3): settings and PREVENT go, tasks of every nexus are aborted
    /// (transports see it by [`super::Nexus::aborts`]), every nexus is told. Tasks that run now end
    /// by themselves: [`LogicalUnit::settle`].
    pub fn reset(&self) {
        self.set_flags(FLAGS_OF_RESET, self.saved_mode());
        self.with_reservations(Reservations::reset);
        for nexus in self.nexuses.lock().iter() {
            nexus.abort_tasks();
            nexus.prevents_removal.store(false, Ordering::Release);
            nexus.raise(Attention::Reset);
        }
    }

    /// Waits until no task that was aborted can take effect any more.
    pub fn settle(&self) {
        drop(self.changing.lock());
        let all = self.nexuses.lock().clone();
        all.iter().for_each(|nexus| nexus.settle());
    }

    /// Works on the reservations, and keeps the flag that says whether there are any.
    fn with_reservations<T>(&self, work: impl FnOnce(&mut Reservations) -> T) -> T {
        let mut all = self.reservations.lock();
        let outcome = work(&mut all);
        self.set_flags(FLAG_RESERVED, if all.is_active() { FLAG_RESERVED } else { 0 });
        outcome
    }

    /// May this nexus do it? One atomic load where nothing is reserved.
    pub(super) fn allows(&self, nexus: &NexusState, access: Access) -> bool {
        self.flags() & FLAG_RESERVED == 0
            || self.reservations.lock().allows(nexus.id, &nexus.port, access)
    }

    /// May the initiator do it through another unit's nexus? (SPC-4 §5.16.3)
    pub(super) fn allows_port(&self, port: &str, access: Access) -> bool {
        /// No nexus has this number: RESERVE(6) of any keeps it out.
        const NOBODY: u64 = u64::MAX;
        self.reservations.lock().allows(NOBODY, port, access)
    }

    pub(super) fn reserve6(&self, nexus: &NexusState, stamp: u64) -> Result<(), Denied> {
        let _one = self.changing.lock();
        not_aborted(nexus, stamp)?;
        self.with_reservations(|all| all.reserve6(nexus.id))
    }

    pub(super) fn release6(&self, nexus: &NexusState) -> Result<(), Denied> {
        self.with_reservations(|all| all.release6(nexus.id))
    }

    /// PERSISTENT RESERVE IN.
    pub(super) fn report_reservations(
        &self,
        action: u8,
        ports: &PortNames,
    ) -> Result<Vec<u8>, Sense> {
        self.reservations.lock().report(action, ports)
    }

    /// PERSISTENT RESERVE OUT; PREEMPT AND ABORT also ends the tasks of those it preempts, and
    /// waits for it. What outlives the server is kept by `disk` before it is so.
    pub(super) fn reserve_out(
        &self,
        (nexus, stamp): (&NexusState, u64),
        order: &Order,
        disk: &dyn BlockIo,
    ) -> Result<(), Denied> {
        let aborted = self.change_reservations((nexus, stamp), order, disk)?;
        aborted.iter().for_each(|nexus| nexus.settle());
        if order.aborts() {
            drop(self.guests.write());
        }
        Ok(())
    }

    /// To be held while another unit's command works here; [`LogicalUnit::allows_port`] is asked
    /// then.
    pub(super) fn guest(&self) -> RwLockReadGuard<'_, ()> {
        self.guests.read()
    }

    /// The nexuses whose tasks were aborted by it.
    fn change_reservations(
        &self,
        (nexus, stamp): (&NexusState, u64),
        order: &Order,
        disk: &dyn BlockIo,
    ) -> Result<Vec<Arc<NexusState>>, Denied> {
        let _one = self.changing.lock();
        not_aborted(nexus, stamp)?;
        let mut next = self.reservations.lock().clone();
        next.out(&nexus.port, order)?;
        let kept = disk.keep_reservations(next.record().as_deref(), next.is_held());
        kept.map_err(|error| Denied::Check(Sense::of_error(&error, 1, true)))?;
        let notices = self.with_reservations(|all| all.out(&nexus.port, order))?;
        let mut aborted = Vec::new();
        for other in self.nexuses.lock().iter() {
            for (_, attention) in notices.iter().filter(|(port, _)| *port == other.port) {
                if order.aborts() && *attention == Attention::RegistrationsPreempted {
                    other.abort_tasks();
                    aborted.push(Arc::clone(other));
                }
                other.raise(*attention);
            }
        }
        Ok(aborted)
    }

    pub(super) fn prevent_removal(&self, nexus: &NexusState, prevent: bool) {
        nexus.prevents_removal.store(prevent, Ordering::Release);
    }

    pub(super) fn removal_prevented(&self) -> bool {
        let nexuses = self.nexuses.lock();
        nexuses.iter().any(|nexus| nexus.prevents_removal.load(Ordering::Acquire))
    }
}

/// A reservation command that was aborted while it waited changes nothing.
fn not_aborted(nexus: &NexusState, stamp: u64) -> Result<(), Denied> {
    match nexus.aborts() == stamp {
        true => Ok(()),
        false => Err(Sense::ABORTED.into()),
    }
}
