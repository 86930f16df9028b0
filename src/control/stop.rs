//! Stopping a server: who asks, and who waits until it is done.

use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Asks the server to stop, and tells who asked how it went.
#[derive(Debug, Default)]
pub struct StopSignal {
    requested: CancellationToken,
    outcome: Mutex<Option<Result<(), String>>>,
    told: Condvar,
}

impl StopSignal {
    /// Nobody has asked yet.
    pub fn new() -> Arc<StopSignal> {
        Arc::new(StopSignal::default())
    }

    /// Asks.
    pub fn request(&self) {
        self.requested.cancel();
    }

    /// Whether somebody has asked.
    pub fn is_requested(&self) -> bool {
        self.requested.is_cancelled()
    }

    /// Waits until somebody asks.
    pub async fn requested(&self) {
        self.requested.cancelled().await;
    }

    /// Asks, and waits until the pool is closed.
    pub fn request_and_wait(&self) -> Result<(), String> {
        self.request();
        let mut outcome = self.outcome.lock();
        while outcome.is_none() {
            self.told.wait(&mut outcome);
        }
        outcome.clone().unwrap_or(Ok(()))
    }

    /// The pool is closed, or could not be.
    pub fn finish(&self, outcome: Result<(), String>) {
        *self.outcome.lock() = Some(outcome);
        self.told.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_hears_how_it_went() {
        let signal = StopSignal::new();
        assert!(!signal.is_requested());
        let asking = std::thread::spawn({
            let signal = signal.clone();
            move || signal.request_and_wait()
        });
        while !signal.is_requested() {
            std::thread::yield_now();
        }
        signal.finish(Err("disk".into()));
        assert_eq!(asking.join().unwrap(), Err("disk".into()));
        assert_eq!(signal.request_and_wait(), Err("disk".into()));
    }
}
