//! Who was turned away: counted for each reason, the last few kept for `status`. Bounded, whatever
//! hostile clients do.

use crate::fs::{Clock, Timestamp};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// How many are kept with their particulars.
const RECENT: usize = 16;
/// Longest name that is kept: an iSCSI name has at most 223 bytes.
const MAX_WHO_BYTES: usize = 300;

/// Why somebody was turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// CHAP failed: a wrong user, secret, or no proof at all.
    Unproved,
    /// Its name is not in the list, or it has none.
    Unlisted,
    /// It may not use that LUN.
    NotAllowed,
    /// There is no such LUN.
    NoSuchLun,
    /// It has as many sessions as it may.
    Limit,
    /// Too many connections from one place that had not logged in.
    Flood,
    /// It may not come from that address.
    Elsewhere,
}

impl Reason {
    const ALL: [Reason; 7] = [
        Reason::Unproved,
        Reason::Unlisted,
        Reason::NotAllowed,
        Reason::NoSuchLun,
        Reason::Limit,
        Reason::Flood,
        Reason::Elsewhere,
    ];

    /// As `status` and logs name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::Unproved => "authentication",
            Reason::Unlisted => "unlisted",
            Reason::NotAllowed => "not_allowed",
            Reason::NoSuchLun => "no_such_lun",
            Reason::Limit => "limit",
            Reason::Flood => "flood",
            Reason::Elsewhere => "address",
        }
    }
}

/// One of the last.
#[derive(Debug, Clone)]
pub struct Refused {
    /// When.
    pub at: Timestamp,
    /// Why.
    pub reason: Reason,
    /// Door, name and address, as far as known.
    pub who: String,
}

/// All of them.
pub struct Refusals {
    clock: Arc<dyn Clock>,
    counts: [AtomicU64; Reason::ALL.len()],
    recent: Mutex<VecDeque<Refused>>,
}

impl Refusals {
    /// None so far.
    pub fn new(clock: Arc<dyn Clock>) -> Refusals {
        Refusals { clock, counts: Default::default(), recent: Mutex::default() }
    }

    /// Notes one.
    pub fn note(&self, reason: Reason, who: &str) {
        self.count(reason);
        let who = who.chars().filter(|c| !c.is_control()).take(MAX_WHO_BYTES).collect();
        let mut recent = self.recent.lock();
        if recent.len() >= RECENT {
            recent.pop_front();
        }
        recent.push_back(Refused { at: self.clock.now(), reason, who });
    }

    /// Counts one that is not worth a line.
    pub fn count(&self, reason: Reason) {
        if let Some(count) = self.counts.get(reason as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many of each.
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        let figure = |(reason, count): (&Reason, &AtomicU64)| {
            (reason.as_str(), count.load(Ordering::Relaxed))
        };
        Reason::ALL.iter().zip(&self.counts).map(figure).collect()
    }

    /// The last ones, oldest first.
    pub fn recent(&self) -> Vec<Refused> {
        self.recent.lock().iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::SystemClock;

    #[test]
    fn they_are_counted_and_bounded() {
        let refusals = Refusals::new(Arc::new(SystemClock));
        for n in 0..100 {
            refusals.note(Reason::Unlisted, &format!("iqn.{n}\n{}", "x".repeat(1000)));
        }
        refusals.count(Reason::Flood);
        let counts = refusals.counts();
        assert!(counts.contains(&("unlisted", 100)) && counts.contains(&("flood", 1)));
        let recent = refusals.recent();
        assert_eq!(recent.len(), RECENT);
        assert!(recent.iter().all(|one| one.who.len() <= MAX_WHO_BYTES && !one.who.contains('\n')));
        for (at, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, at);
        }
    }
}
