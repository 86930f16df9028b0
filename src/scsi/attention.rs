//! Unit attentions (SAM-5 §5.14): at most one of each kind waits for a nexus, the oldest goes
//! first.

use std::collections::VecDeque;

use super::Sense;

/// A condition that a nexus has not been told of yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attention {
    /// POWER ON, RESET, OR BUS DEVICE RESET OCCURRED: a new nexus.
    PowerOn,
    /// BUS DEVICE RESET FUNCTION OCCURRED: LOGICAL UNIT RESET or a target reset.
    Reset,
    /// NOT READY TO READY CHANGE, MEDIUM MAY HAVE CHANGED.
    MediumChanged,
    /// MODE PARAMETERS CHANGED by another nexus, or by the LUN's owner.
    ModeChanged,
    /// CAPACITY DATA HAS CHANGED.
    CapacityChanged,
    /// THIN PROVISIONING SOFT THRESHOLD REACHED.
    SoftThreshold,
    /// RESERVATIONS PREEMPTED.
    ReservationsPreempted,
    /// RESERVATIONS RELEASED.
    ReservationsReleased,
    /// REGISTRATIONS PREEMPTED.
    RegistrationsPreempted,
}

impl Attention {
    /// The sense data that reports it.
    pub const fn sense(self) -> Sense {
        match self {
            Attention::PowerOn => Sense::new(0x6, 0x29, 0x00),
            Attention::Reset => Sense::new(0x6, 0x29, 0x03),
            Attention::MediumChanged => Sense::new(0x6, 0x28, 0x00),
            Attention::ModeChanged => Sense::new(0x6, 0x2A, 0x01),
            Attention::CapacityChanged => Sense::new(0x6, 0x2A, 0x09),
            Attention::SoftThreshold => Sense::new(0x6, 0x38, 0x07),
            Attention::ReservationsPreempted => Sense::new(0x6, 0x2A, 0x03),
            Attention::ReservationsReleased => Sense::new(0x6, 0x2A, 0x04),
            Attention::RegistrationsPreempted => Sense::new(0x6, 0x2A, 0x05),
        }
    }

    const fn is_reset(self) -> bool {
        matches!(self, Attention::PowerOn | Attention::Reset)
    }
}

/// The attentions that wait for one nexus: bounded by the number of kinds.
#[derive(Debug, Default)]
pub(super) struct Attentions(VecDeque<Attention>);

impl Attentions {
    /// Adds one, unless it waits already. A reset says it all (SAM-5 §5.14.3): it clears the
    /// others.
    pub fn raise(&mut self, attention: Attention) {
        if attention.is_reset() {
            self.0.retain(|waiting| waiting.is_reset());
        }
        if !self.0.contains(&attention) {
            self.0.push_back(attention);
        }
    }

    pub fn take(&mut self) -> Option<Attention> {
        self.0.pop_front()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_waits_once_and_a_reset_clears_the_rest() {
        let mut waiting = Attentions::default();
        waiting.raise(Attention::CapacityChanged);
        waiting.raise(Attention::CapacityChanged);
        assert_eq!(waiting.0.len(), 1);
        waiting.raise(Attention::Reset);
        assert_eq!(waiting.take(), Some(Attention::Reset));
        assert!(waiting.is_empty());
    }
}
