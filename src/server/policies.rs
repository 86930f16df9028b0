//! Policies are carried out on a thread of their own: a snapshot waits for a flush.

use crate::lun::Catalog;
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// How often it is looked whether something is due: the shortest policy is a second.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The thread; it ends, after what it is doing, when this is dropped.
pub(super) struct PolicyClock {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl PolicyClock {
    /// Begins.
    pub(super) fn start(catalog: Arc<Catalog>) -> std::io::Result<PolicyClock> {
        let stop: Arc<(Mutex<bool>, Condvar)> = Arc::default();
        let stopping = stop.clone();
        let thread = std::thread::Builder::new().name("policies".into()).spawn(move || {
            let (stop, told) = &*stopping;
            let mut stop = stop.lock();
            while !*stop {
                parking_lot::MutexGuard::unlocked(&mut stop, || catalog.run_policies());
                if !*stop {
                    let _ = told.wait_for(&mut stop, LOOK_EVERY);
                }
            }
        })?;
        Ok(PolicyClock { stop, thread: Some(thread) })
    }
}

impl Drop for PolicyClock {
    fn drop(&mut self) {
        *self.stop.0.lock() = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
