//! The lease of one LUN with its clock and its waiting room.

use super::lease::{BlockVerdict, FileVerdict, FileWish, Holder, Lease, LeaseTiming, Leave};
use parking_lot::{Condvar, Mutex};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a step did that the log shall tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Noted {
    /// The grace of lost block clients ran out before this step, and the block lease with it.
    pub(super) block_expired: bool,
    /// The lease began with this step.
    pub(super) began: bool,
    /// The lease ended with this step.
    pub(super) ended: bool,
}

/// The lease, shared by threads.
#[derive(Debug)]
pub(super) struct LeaseRoom {
    origin: Instant,
    file_wait: Duration,
    state: Mutex<Lease>,
    file_lease_ended: Condvar,
    /// A block session's grant counts while this is what it was: so a command asks one atomic.
    epoch: AtomicU64,
}

impl LeaseRoom {
    pub(super) fn new(timing: LeaseTiming, shared: bool) -> LeaseRoom {
        LeaseRoom {
            origin: Instant::now(),
            file_wait: timing.file_wait,
            state: Mutex::new(Lease::new(timing.lost_grace, shared)),
            file_lease_ended: Condvar::new(),
            epoch: AtomicU64::new(1),
        }
    }

    /// What a block session's grant is compared with; never 0.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    pub(super) fn block_login(&self, session: u64, client: &str) -> (bool, Noted) {
        self.step(|lease, now, _| lease.block_login(session, client, now))
    }

    /// The grant's epoch. Waits for a file writer; `None`: it kept the LUN for longer than that.
    pub(super) fn block_write(&self, session: u64, client: &str) -> (Option<u64>, Noted) {
        let deadline = Instant::now() + self.file_wait;
        let mut noted = Noted::default();
        let mut lease = self.state.lock();
        loop {
            noted.block_expired |= lease.expire(self.origin.elapsed());
            match lease.block_write(session, client, self.origin.elapsed()) {
                BlockVerdict::Granted { began } => {
                    noted.began = began;
                    return (Some(self.epoch()), noted);
                }
                BlockVerdict::HeldByFile if Instant::now() >= deadline => return (None, noted),
                BlockVerdict::HeldByFile => {
                    let _ = self.file_lease_ended.wait_until(&mut lease, deadline);
                }
            }
        }
    }

    pub(super) fn block_leave(&self, session: u64, how: Leave) -> Noted {
        let ended = |lease: &mut Lease, now, noted: &mut Noted| {
            noted.ended = lease.block_leave(session, how, now);
        };
        self.step(ended).1
    }

    pub(super) fn file_open(&self, handle: u64, wish: FileWish) -> (FileVerdict, Noted) {
        self.step(|lease, now, noted| begun(lease.file_open(handle, wish, now), noted))
    }

    pub(super) fn file_write(&self, handle: u64) -> (FileVerdict, Noted) {
        self.step(|lease, now, noted| begun(lease.file_write(handle, now), noted))
    }

    /// Lets a file writer in whoever holds. Block grants end: the caller then waits for the writes
    /// that still have one.
    pub(super) fn file_force(&self, handle: u64) -> Noted {
        let force = |lease: &mut Lease, _, noted: &mut Noted| {
            noted.began = lease.file_force(handle);
            self.epoch.fetch_add(1, Ordering::AcqRel);
        };
        self.step(force).1
    }

    pub(super) fn file_flush(&self, handle: u64) -> Noted {
        let flush = |lease: &mut Lease, _, noted: &mut Noted| {
            noted.ended = lease.file_flush(handle);
        };
        let noted = self.step(flush).1;
        if noted.ended {
            self.file_lease_ended.notify_all();
        }
        noted
    }

    /// False: both sorts hold, so not now.
    pub(super) fn set_shared(&self, shared: bool) -> (bool, Noted) {
        let (done, noted) = self.step(|lease, now, _| lease.set_shared(shared, now));
        self.file_lease_ended.notify_all();
        (done, noted)
    }

    /// Keeps further file writers out, or no longer. False: there are some.
    pub(super) fn pin(&self, pinned: bool) -> bool {
        self.step(|lease, _, _| lease.pin(pinned)).0
    }

    pub(super) fn holder(&self) -> (Holder, Noted) {
        self.step(|lease, now, _| lease.holder(now))
    }

    pub(super) fn holds(&self, session: u64) -> bool {
        self.state.lock().holds(session)
    }

    fn step<R>(&self, act: impl FnOnce(&mut Lease, Duration, &mut Noted) -> R) -> (R, Noted) {
        let mut lease = self.state.lock();
        let now = self.origin.elapsed();
        let mut noted = Noted { block_expired: lease.expire(now), ..Noted::default() };
        let result = act(&mut lease, now, &mut noted);
        (result, noted)
    }
}

fn begun(verdict: FileVerdict, noted: &mut Noted) -> FileVerdict {
    noted.began = verdict == FileVerdict::Granted { began: true };
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(file_wait_ms: u64) -> LeaseRoom {
        let file_wait = Duration::from_millis(file_wait_ms);
        LeaseRoom::new(LeaseTiming { file_wait, lost_grace: Duration::ZERO }, false)
    }

    #[test]
    fn a_block_write_waits_for_the_file_to_close() {
        let room = room(20_000);
        room.file_open(7, FileWish::Write);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| room.block_write(1, "iscsi a"));
            std::thread::sleep(Duration::from_millis(30));
            assert!(!writer.is_finished());
            assert!(room.file_flush(7).ended);
            assert_eq!(writer.join().unwrap().0, Some(room.epoch()));
        });
    }

    #[test]
    fn a_block_write_gives_up_in_time() {
        let room = room(30);
        room.file_open(7, FileWish::Write);
        let start = Instant::now();
        assert_eq!(room.block_write(1, "iscsi a").0, None);
        assert!(start.elapsed() >= Duration::from_millis(30));
    }

    #[test]
    fn force_ends_grants() {
        let room = room(0);
        let grant = room.block_write(1, "iscsi a").0;
        assert_eq!(grant, Some(room.epoch()));
        room.file_force(7);
        assert_ne!(grant, Some(room.epoch()));
        assert_eq!(room.block_write(1, "iscsi a").0, None);
    }

    #[test]
    fn the_end_of_a_grace_is_noted_once() {
        let room = room(0);
        room.block_write(1, "iscsi a");
        assert!(!room.block_leave(1, Leave::Lost).ended);
        let (verdict, noted) = room.file_open(7, FileWish::Write);
        assert_eq!(verdict, FileVerdict::Granted { began: true });
        assert!(noted.block_expired && noted.began);
    }
}
