//! SANITIZE (SBC-3 §4.11): nothing that the LUN ever held can be read from the pool's devices
//! afterwards.
//!
//! The store writes anywhere, so overwriting the LUN's blocks would leave every older version of
//! them in free space. Instead all blocks of the LUN are let go, and then every free block of the
//! pool that is not zero is overwritten in place, on each copy. A pattern that is not zeros is
//! written to all of the LUN at the end. Blocks that a snapshot shares stay the snapshot's.
//!
//! Invariants: `state` says so durably before anything is destroyed, and until all is; a sanitize
//! that a stop or a crash interrupts begins again when the pool is next served. While one runs, or
//! has failed, nobody reads or writes `data`. It is refused, or fails, where a device is missing:
//! what is on that one would stay.

use super::block_io::BlockError;
use super::kept::{SanitizeOrder, Unfinished};
use super::unit::Lun;
use crate::device::{Block, BLOCK_BYTES};
use crate::fs::{self, Fs, ATOMIC_WRITE_BYTES};
use serde_json::json;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Free space looked at in a second: it takes as long as a disk's own sanitize, and leaves most of
/// the devices' speed to the other LUNs.
const WIPE_BYTES_PER_SECOND: u64 = 64 << 20;
/// How often freed blocks are looked after that a reader still holds.
const SETTLE_PAUSE: Duration = Duration::from_millis(20);

/// What a LUN is told to be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SanitizeState {
    /// Nothing of the kind.
    Idle,
    /// It runs: how far, in 65,536ths.
    Running(u16),
    /// It failed; `may_exit`: it may be left by EXIT FAILURE MODE.
    Failed {
        /// AUSE of the SANITIZE that failed.
        may_exit: bool,
    },
}

/// The state as one word, for the path of every command.
#[derive(Debug, Default)]
pub(super) struct StateWord(AtomicU32);

impl StateWord {
    const FAILED: u32 = 1 << 20;
    const MAY_EXIT: u32 = 1 << 21;

    pub(super) fn set(&self, state: SanitizeState) {
        let word = match state {
            SanitizeState::Idle => 0,
            SanitizeState::Running(progress) => 1 + u32::from(progress),
            SanitizeState::Failed { may_exit: false } => Self::FAILED,
            SanitizeState::Failed { may_exit: true } => Self::FAILED | Self::MAY_EXIT,
        };
        self.0.store(word, Ordering::Release);
    }

    pub(super) fn get(&self) -> SanitizeState {
        match self.0.load(Ordering::Acquire) {
            0 => SanitizeState::Idle,
            word if word & Self::FAILED != 0 => {
                SanitizeState::Failed { may_exit: word & Self::MAY_EXIT != 0 }
            }
            word => SanitizeState::Running((word - 1) as u16),
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }
}

/// The threads that sanitize, of all LUNs of a catalog.
#[derive(Default)]
pub(super) struct Sanitizers {
    stopping: AtomicBool,
    threads: parking_lot::Mutex<Vec<JoinHandle<()>>>,
}

impl Sanitizers {
    /// Ends them, and waits for that; they begin again when the pool is next served.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        for thread in std::mem::take(&mut *self.threads.lock()) {
            let _ = thread.join();
        }
    }
}

/// Why a run ended early.
enum End {
    /// The server stops, or the LUN is gone: not a failure.
    Stopped,
    Failed(String),
}

impl From<fs::Error> for End {
    fn from(error: fs::Error) -> End {
        match error {
            fs::Error::Stale => End::Stopped,
            error => End::Failed(error.to_string()),
        }
    }
}

impl Lun {
    /// What a sanitize makes of the LUN now.
    pub fn sanitize_state(&self) -> SanitizeState {
        self.live.sanitize.get()
    }

    /// Begins one; the caller has the block lease. Another that runs is an error, one that failed
    /// is begun anew.
    pub(super) fn begin_sanitize(self: &Arc<Lun>, order: SanitizeOrder) -> Result<(), BlockError> {
        let _change = self.change.lock();
        if matches!(self.sanitize_state(), SanitizeState::Running(_)) {
            return Err(BlockError::Sanitizing);
        }
        if !self.shared.fs.all_devices_are_there() {
            let why = "a device of the pool is missing";
            self.log.event("sanitize", json!({"state": "refused", "why": why}));
            return Err(BlockError::DeviceMissing);
        }
        let failed = |error| self.block_error(error, 0);
        self.check_room_for_pattern(&order)?;
        let before = self.live.sanitize.get();
        {
            let _alone = self.gate.write();
            if !self.lease.pin(true) {
                self.follow_pins();
                return Err(BlockError::HeldByFile);
            }
            self.live.sanitize.set(SanitizeState::Running(0));
        }
        let unfinished = Unfinished { order: order.clone(), failed: false };
        let kept = self.state.change(|kept| kept.sanitize = Some(unfinished)).map_err(failed);
        let begun = kept.and_then(|()| self.spawn_sanitize(order));
        if begun.is_err() {
            self.live.sanitize.set(before);
            self.follow_pins();
        }
        begun
    }

    /// A pattern must have room for all of the LUN before anything is destroyed.
    fn check_room_for_pattern(&self, order: &SanitizeOrder) -> Result<(), BlockError> {
        if order.final_pattern().is_none() {
            return Ok(());
        }
        let size = self.size_bytes();
        let quota = self.live.quota_bytes.load(Ordering::Acquire);
        let used = self.shared.fs.volume_used_bytes(self.volume());
        let used = used.map_err(|error| self.block_error(error, 0))?;
        let room = self.shared.fs.stats().free_bytes.saturating_add(used);
        match size <= room && (quota == 0 || size <= quota) {
            true => Ok(()),
            false => Err(BlockError::NoSpace),
        }
    }

    /// Goes on with what a stop or a crash interrupted.
    pub(super) fn resume_sanitize(self: &Arc<Lun>) {
        if let Some(Unfinished { order, failed: false }) = self.state.now().sanitize {
            if let Err(error) = self.spawn_sanitize(order) {
                self.log.event("error", json!({"what": "sanitize", "why": error.to_string()}));
            }
        }
    }

    fn spawn_sanitize(self: &Arc<Lun>, order: SanitizeOrder) -> Result<(), BlockError> {
        let lun = Arc::clone(self);
        let thread = std::thread::Builder::new().name("sanitize".into());
        let thread = thread.spawn(move || lun.run_sanitize(&order));
        let thread = thread.map_err(|error| BlockError::Io(error.to_string()))?;
        let mut threads = self.shared.sanitizers.threads.lock();
        threads.retain(|thread| !thread.is_finished());
        threads.push(thread);
        Ok(())
    }

    /// EXIT FAILURE MODE; false where the failed SANITIZE did not allow it.
    pub(super) fn exit_sanitize_failure(&self) -> Result<bool, BlockError> {
        match self.sanitize_state() {
            SanitizeState::Idle => return Ok(true),
            SanitizeState::Running(_) => return Err(BlockError::Sanitizing),
            SanitizeState::Failed { may_exit: false } => return Ok(false),
            SanitizeState::Failed { may_exit: true } => {}
        }
        let kept = self.state.change(|kept| kept.sanitize = None);
        kept.map_err(|error| self.block_error(error, 0))?;
        self.live.sanitize.set(SanitizeState::Idle);
        self.follow_pins();
        Ok(true)
    }

    fn run_sanitize(&self, order: &SanitizeOrder) {
        self.log.event("sanitize", json!({"state": "begun", "passes": order.passes}));
        let (failed, why) = match self.sanitize_steps(order) {
            Ok(()) => (false, None),
            Err(End::Stopped) => return,
            Err(End::Failed(why)) => (true, Some(why)),
        };
        let unfinished = Unfinished { order: order.clone(), failed };
        // where this cannot be stored it runs once more when the pool is next served
        let _ = self.state.change(|kept| kept.sanitize = failed.then_some(unfinished));
        self.live.sanitize.set(match failed {
            true => SanitizeState::Failed { may_exit: order.may_exit },
            false => SanitizeState::Idle,
        });
        self.follow_pins();
        let state = if failed { "failed" } else { "done" };
        self.log.event("sanitize", json!({"state": state, "why": why}));
    }

    fn sanitize_steps(&self, order: &SanitizeOrder) -> Result<(), End> {
        let fill = order.final_pattern().map(|_| self.size_bytes()).unwrap_or(0);
        let total = self.shared.fs.stats().size_bytes.saturating_add(fill).max(1);
        let progress = |done: u64| {
            let part = u128::from(done) * 0x1_0000 / u128::from(total);
            self.live.sanitize.set(SanitizeState::Running(part.min(0xFFFF) as u16));
        };
        self.let_go()?;
        let patterns = order.device_blocks();
        let begun = Instant::now();
        let mut wiped = 0;
        for segment in 0.. {
            self.check_going_on()?;
            if !self.shared.fs.all_devices_are_there() {
                return Err(End::Failed("a device of the pool is missing".to_owned()));
            }
            let Some(bytes) = self.shared.fs.wipe_free(segment, &patterns)? else { break };
            wiped += bytes;
            progress(wiped);
            let due = Duration::from_secs_f64(wiped as f64 / WIPE_BYTES_PER_SECOND as f64);
            std::thread::sleep(due.saturating_sub(begun.elapsed()));
        }
        if let Some(pattern) = order.final_pattern() {
            self.fill(pattern, &|filled| progress(wiped.saturating_add(filled)))?;
        }
        Ok(self.files().data.sync()?)
    }

    /// Frees all blocks of `data`, and waits until they are free: named by no root, held by no
    /// reader.
    fn let_go(&self) -> Result<(), End> {
        let fs: &Fs = &self.shared.fs;
        self.files().data.punch(0, self.files().data.size_bytes())?;
        fs.sync()?;
        loop {
            self.check_going_on()?;
            let more = fs.maintain()?;
            if !more && fs.stats().freeing_bytes == 0 {
                // what this one frees held only the bookkeeping of the last
                return Ok(fs.consistency_point()?);
            }
            std::thread::sleep(SETTLE_PAUSE);
        }
    }

    fn fill(&self, pattern: &[u8], progress: &dyn Fn(u64)) -> Result<(), End> {
        let piece = pattern.repeat(ATOMIC_WRITE_BYTES / pattern.len().max(1));
        let mut at = 0;
        loop {
            self.check_going_on()?;
            let _gate = self.gate.read();
            let left = self.size_bytes().saturating_sub(at).min(piece.len() as u64);
            let Some(data) = piece.get(..left as usize).filter(|data| !data.is_empty()) else {
                return Ok(());
            };
            self.files().data.write_at(at, data)?;
            at += left;
            progress(at);
        }
    }

    fn check_going_on(&self) -> Result<(), End> {
        let gone = self.users.lock().closed;
        match gone || self.shared.sanitizers.stopping.load(Ordering::Acquire) {
            true => Err(End::Stopped),
            false => Ok(()),
        }
    }

    /// Files are kept out while a reservation is held or a sanitize is not done.
    pub(super) fn follow_pins(&self) {
        let reserved = self.live.reserved.load(Ordering::Acquire);
        self.lease.pin(reserved || !self.live.sanitize.is_idle());
    }
}

impl SanitizeOrder {
    /// What is left in the LUN's blocks, unless that is what a hole reads as.
    fn final_pattern(&self) -> Option<&[u8]> {
        self.pattern.as_deref().filter(|pattern| pattern.iter().any(|byte| *byte != 0))
    }

    /// What each pass writes to a block of the device.
    fn device_blocks(&self) -> Vec<Block> {
        let pattern = self.pattern.as_deref().filter(|pattern| !pattern.is_empty());
        let plain: Vec<u8> =
            pattern.unwrap_or(&[0]).iter().copied().cycle().take(BLOCK_BYTES).collect();
        let passes = self.passes.max(1);
        (0..passes)
            .map(|pass| {
                let invert = self.invert && (passes - 1 - pass) % 2 == 1;
                let mut block = Block([0; BLOCK_BYTES]);
                for (to, from) in block.0.iter_mut().zip(&plain) {
                    *to = if invert { !from } else { *from };
                }
                block
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_alternate_and_end_with_the_pattern() {
        let order =
            SanitizeOrder { pattern: Some(vec![1, 2]), passes: 3, invert: true, may_exit: false };
        let firsts: Vec<[u8; 2]> =
            order.device_blocks().iter().map(|block| [block.0[0], block.0[4095]]).collect();
        assert_eq!(firsts, [[1, 2], [0xFE, 0xFD], [1, 2]]);
        assert_eq!(SanitizeOrder { pattern: None, ..order }.device_blocks()[0].0[7], 0);
    }

    #[test]
    fn the_word_tells_every_state() {
        let word = StateWord::default();
        for state in [
            SanitizeState::Running(0),
            SanitizeState::Running(0xFFFF),
            SanitizeState::Failed { may_exit: true },
            SanitizeState::Failed { may_exit: false },
            SanitizeState::Idle,
        ] {
            word.set(state);
            assert_eq!(word.get(), state);
        }
    }
}
