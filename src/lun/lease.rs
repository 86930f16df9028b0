//! The lease between block doors and the file door, as a state machine without clock or I/O.

use std::time::Duration;

/// Times of the lease.
#[derive(Debug, Clone, Copy)]
pub struct LeaseTiming {
    /// How long a block write waits for a file writer to close before it is refused.
    pub file_wait: Duration,
    /// How long the block lease outlives its last connection when that was lost.
    pub lost_grace: Duration,
}

impl Default for LeaseTiming {
    fn default() -> Self {
        LeaseTiming {
            file_wait: Duration::from_secs(1),
            lost_grace: Duration::from_secs(30),
        }
    }
}

/// Who holds the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// Nobody.
    Idle,
    /// Block clients: `door client` of each; of lost ones while their grace lasts.
    Block(Vec<String>),
    /// Writers through the mount: how many.
    File(usize),
    /// Both (access=shared).
    Both(Vec<String>, usize),
}
