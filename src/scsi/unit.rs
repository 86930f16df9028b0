//! One logical unit, shared by all its nexuses: mode settings, the state of the medium, resets, and
//! the table through which a unit attention reaches every nexus. Persistent and RESERVE(6)
//! reservations belong here too.
//!
//! Invariants: a nexus is in the table from its creation to its drop; `flags` is what the command path
//! reads and changes only under the table's lock.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;

use parking_lot::Mutex;

use super::attention::{Attention, Attentions};

/// SWP of the control mode page: the software write protect.
pub(super) const FLAG_SWP: u32 = 1;
/// D_SENSE of the control mode page: descriptor format sense data.
pub(super) const FLAG_D_SENSE: u32 = 2;
/// WCE of the caching mode page was cleared: every write is durable when answered.
pub(super) const FLAG_WCE_OFF: u32 = 4;
/// The medium was ejected by START STOP UNIT.
pub(super) const FLAG_EJECTED: u32 = 8;
/// What a reset gives back its default.
const FLAGS_OF_RESET: u32 = FLAG_SWP | FLAG_D_SENSE | FLAG_WCE_OFF;

/// What the unit keeps of one nexus.
#[derive(Debug)]
pub(super) struct NexusState {
    id: u64,
    /// True while `attentions` is not empty: what the command path looks at.
    pending: AtomicBool,
    attentions: Mutex<Attentions>,
    prevents_removal: AtomicBool,
}

impl NexusState {
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
    resets: AtomicU64,
    next_nexus: AtomicU64,
    nexuses: Mutex<Vec<Arc<NexusState>>>,
}

impl LogicalUnit {
    /// A unit with default mode settings and its medium loaded.
    pub fn new() -> Arc<LogicalUnit> {
        Arc::new(LogicalUnit::default())
    }

    pub(super) fn attach(&self) -> Arc<NexusState> {
        let state = Arc::new(NexusState {
            id: self.next_nexus.fetch_add(1, Ordering::Relaxed),
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
    }

    /// How many nexuses there are.
    pub fn nexus_count(&self) -> usize {
        self.nexuses.lock().len()
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
        for other in self
            .nexuses
            .lock()
            .iter()
            .filter(|other| other.id != except.id)
        {
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
    /// (transports see it by [`LogicalUnit::reset_count`]), every nexus is told.
    pub fn reset(&self) {
        self.resets.fetch_add(1, Ordering::AcqRel);
        self.set_flags(FLAGS_OF_RESET, 0);
        for nexus in self.nexuses.lock().iter() {
            nexus.prevents_removal.store(false, Ordering::Release);
            nexus.raise(Attention::Reset);
        }
    }

    /// CLEAR TASK SET: tasks of every nexus are aborted, nothing else changes.
    pub(super) fn abort_all_tasks(&self) {
        self.resets.fetch_add(1, Ordering::AcqRel);
    }

    /// Rises with every reset: a task that began at a lower count was aborted.
    pub fn reset_count(&self) -> u64 {
        self.resets.load(Ordering::Acquire)
    }

    pub(super) fn prevent_removal(&self, nexus: &NexusState, prevent: bool) {
        nexus.prevents_removal.store(prevent, Ordering::Release);
    }

    pub(super) fn removal_prevented(&self) -> bool {
        let nexuses = self.nexuses.lock();
        nexuses
            .iter()
            .any(|nexus| nexus.prevents_removal.load(Ordering::Acquire))
    }
}
