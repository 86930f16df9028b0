//! A pause of one LUN: all writes wait, through whatever door they come, until it is resumed or its
//! time is over. None fails because of it.
//!
//! Invariants: who saw `on` false under the LUN's gate may write; who sets it takes the gate alone
//! once, so that no write is under way when [`Lun::pause`] returns. A waiting writer holds neither
//! the gate nor any other lock. There is one pause at a time, and it ends at the latest
//! [`MAX_PAUSE`] after it began.

use super::error::Result;
use super::unit::Lun;
use parking_lot::{Condvar, Mutex, RwLockReadGuard};
use serde_json::json;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest pause: Linux gives a SCSI command 30 s before it aborts it.
pub const MAX_PAUSE: Duration = Duration::from_secs(20);

#[derive(Debug)]
struct Running {
    token: u64,
    since: Instant,
    until: Instant,
}

/// Where writers wait.
#[derive(Debug, Default)]
pub(super) struct PauseRoom {
    on: AtomicBool,
    state: Mutex<Option<Running>>,
    ended: Condvar,
}

/// A pause; its drop resumes.
pub struct Pause {
    lun: Arc<Lun>,
    token: u64,
    by: String,
}

impl PauseRoom {
    /// Begins a pause; false while another one runs.
    fn begin(&self, token: u64, limit: Duration) -> bool {
        let now = Instant::now();
        let mut state = self.state.lock();
        if state.as_ref().is_some_and(|running| now < running.until) {
            return false;
        }
        *state = Some(Running { token, since: now, until: now + limit.min(MAX_PAUSE) });
        self.on.store(true, Ordering::SeqCst);
        true
    }

    /// From now `limit` long, but never beyond [`MAX_PAUSE`] from its beginning; false if it is
    /// over.
    fn prolong(&self, token: u64, limit: Duration) -> bool {
        let now = Instant::now();
        let mut state = self.state.lock();
        match state.as_mut() {
            Some(running) if running.token == token && now < running.until => {
                running.until = (now + limit).min(running.since + MAX_PAUSE);
                true
            }
            _ => false,
        }
    }

    /// Ends the pause of this token; false where it was over already.
    fn end(&self, token: u64) -> bool {
        let mut state = self.state.lock();
        let running = state.take_if(|running| running.token == token);
        if running.is_some() {
            self.on.store(false, Ordering::SeqCst);
            self.ended.notify_all();
        }
        running.is_some_and(|running| Instant::now() < running.until)
    }

    fn is_on(&self) -> bool {
        self.on.load(Ordering::SeqCst)
    }

    /// Waits for the end of a pause.
    fn wait(&self) {
        let mut state = self.state.lock();
        while let Some(until) = state.as_ref().map(|running| running.until) {
            if Instant::now() >= until {
                *state = None;
                self.on.store(false, Ordering::SeqCst);
                self.ended.notify_all();
                return;
            }
            let _ = self.ended.wait_until(&mut state, until);
        }
    }
}

impl Lun {
    /// Makes all writes wait for at most `limit`; those under way have ended when it returns.
    /// `Busy` while another pause runs.
    pub fn pause(self: &Arc<Self>, limit: Duration, by: &str) -> Result<Pause> {
        let token = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        if !self.pause.begin(token, limit) {
            let why = "another client has paused it";
            return Err(self.busy("pausing", why, "wait until it is resumed"));
        }
        let pause = Pause { lun: Arc::clone(self), token, by: by.to_owned() };
        drop(self.gate.write());
        let seconds = limit.min(MAX_PAUSE).as_secs_f64();
        self.log.event("pause", json!({"by": by, "limit_seconds": seconds}));
        Ok(pause)
    }

    /// Whether writes wait at this moment.
    pub fn is_paused(&self) -> bool {
        self.pause.is_on()
    }

    /// The gate to write under, while nothing is paused.
    pub(super) fn write_gate(&self) -> RwLockReadGuard<'_, ()> {
        loop {
            let gate = self.gate.read();
            if !self.pause.is_on() {
                return gate;
            }
            drop(gate);
            self.pause.wait();
        }
    }

    /// The same where nothing has to be waited for.
    pub(super) fn try_write_gate(&self) -> Option<RwLockReadGuard<'_, ()>> {
        self.gate.try_read().filter(|_| !self.pause.is_on())
    }

    /// For what changes a LUN without going through the gate as a write does.
    pub(super) fn wait_for_resume(&self) {
        if self.pause.is_on() {
            self.pause.wait();
        }
    }
}

impl Pause {
    /// Counts the limit anew; false if the pause is over.
    pub fn prolong(&self, limit: Duration) -> bool {
        self.lun.pause.prolong(self.token, limit)
    }

    /// Ends it; false if its time was over before: writes may have gone on meanwhile.
    pub fn resume(self) -> bool {
        self.end()
    }

    fn end(&self) -> bool {
        self.lun.pause.end(self.token)
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        self.end();
        self.lun.log.event("resume", json!({"by": self.by}));
    }
}

impl fmt::Debug for Pause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pause({:?} by {})", self.lun, self.by)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_never_for_ever() {
        let room = PauseRoom::default();
        assert!(room.begin(1, Duration::from_secs(5)));
        assert!(!room.begin(2, Duration::from_secs(5)));
        assert!(room.prolong(1, Duration::from_secs(1000)));
        let running = room.state.lock().as_ref().map(|it| it.until - it.since);
        assert_eq!(running, Some(MAX_PAUSE));
        assert!(!room.end(2) && room.is_on());
        assert!(room.end(1) && !room.is_on());
        assert!(!room.prolong(1, Duration::from_secs(1)));
    }

    #[test]
    fn waiters_go_on_at_the_limit() {
        let room = PauseRoom::default();
        let start = Instant::now();
        assert!(room.begin(1, Duration::from_millis(30)));
        room.wait();
        assert!(start.elapsed() >= Duration::from_millis(30) && !room.is_on());
        assert!(!room.end(1));
        room.wait();
    }

    #[test]
    fn waiters_go_on_when_it_is_resumed() {
        let room = PauseRoom::default();
        assert!(room.begin(1, Duration::from_secs(20)));
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| room.wait());
            std::thread::sleep(Duration::from_millis(20));
            assert!(!writer.is_finished());
            assert!(room.end(1));
            writer.join().unwrap();
        });
    }
}
