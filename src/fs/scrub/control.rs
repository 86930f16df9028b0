//! A scrub: one walk over the whole pool, started and ended by its user, resumed after a restart.
//!
//! Its record goes out with each consistency point. The places it found bad are in memory only: a
//! scrub that was interrupted counts what it found before, and names what it finds after.

use super::{BadPlace, Cursor, Found, Outcome, Part, Phase, Walk, PIECE_BLOCKS};
use crate::device::BLOCK_BYTES;
use crate::fs::core::{Core, TABLE};
use crate::fs::error::Result;
use crate::fs::types::*;
use fs_layout::{ScrubRecord, ScrubResult};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

/// Places a scrub remembers: enough to name what is lost, bounded in memory.
pub const SCRUB_PLACES: usize = 1000;
/// So many blocks after the last consistency point that kept its place, a scrub runs one: 1 GiB.
const SAVE_BLOCKS: u64 = 262_144;
/// Clones that a scrub remembers: 2 MiB. A clone of a whole file is a handful.
const KNOWN_CLONES: usize = 65_536;
/// After a piece the background scrub rests as long as the piece took: half of an idle device.
const REST_IDLE: u32 = 1;
/// While somebody else reads or writes it rests seven times as long: an eighth of a busy one.
const REST_BUSY: u32 = 7;
/// Shortest rest: others get at the locks of a piece.
const REST_MIN: Duration = Duration::from_micros(200);
/// Longest: a slow piece is no reason to sleep for minutes.
const REST_MAX: Duration = Duration::from_secs(2);

/// What is known of the scrub that runs, or of the last one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScrubStatus {
    /// One is running.
    pub running: bool,
    /// When it was started; `None`: there never was one.
    pub started: Option<Timestamp>,
    /// When it ended; `None` while it runs.
    pub finished: Option<Timestamp>,
    /// The last one was cancelled.
    pub cancelled: bool,
    /// Bytes of blocks looked at, each counted once whatever its copies.
    pub examined_bytes: u64,
    /// About as many there are.
    pub total_bytes: u64,
    /// Bad copies rewritten from good ones.
    pub healed: u64,
    /// Blocks of which a copy is bad still.
    pub bad: u64,
    /// Where copies were bad, healed ones included: at most [`SCRUB_PLACES`] of them.
    pub places: Vec<BadPlace>,
}

/// Is called with each place whose data or tree has no good copy.
pub(crate) type Hears = Arc<dyn Fn(&BadPlace) + Send + Sync>;

/// The scrub's state in an open pool.
#[derive(Default)]
pub(crate) struct Scrub {
    state: Mutex<State>,
    /// Held during a step: one at a time.
    stepping: Mutex<()>,
    /// Versions to be walked once more, and from which birth on.
    again: Mutex<BTreeMap<u32, u64>>,
    /// Clones that this walk has gone through, so that what files share is read once. At most
    /// [`KNOWN_CLONES`]: what is shared beyond that is read with each file that has it.
    clones: Mutex<HashSet<u64>>,
}

#[derive(Default)]
struct State {
    record: ScrubRecord,
    walk: Walk,
    places: Vec<BadPlace>,
    /// Blocks examined since the record went out.
    unsaved: u64,
    /// Rises with each start and end: a step that ran across one is not entered.
    turn: u64,
}

fn phase_to_u8(phase: Phase) -> u8 {
    match phase {
        Phase::Trees => 0,
        Phase::Dead => 1,
        Phase::Space => 2,
        Phase::Log => 3,
        Phase::Fixed => 4,
        Phase::Done => 5,
    }
}

fn phase_from_u8(phase: u8) -> Option<Phase> {
    use Phase::*;
    [Trees, Dead, Space, Log, Fixed, Done].get(usize::from(phase)).copied()
}

impl Scrub {
    /// Goes on from what a root says. A cursor that makes no sense begins again.
    pub fn load(record: ScrubRecord) -> Scrub {
        let at = phase_from_u8(record.phase).map(|phase| Cursor {
            phase,
            volume: record.volume,
            ino: record.ino,
            block: record.block,
            entered: record.entered,
        });
        // The chain of groups is another one after recovery.
        let at = at.map(|at| if at.phase == Phase::Log { Cursor { ino: 0, ..at } } else { at });
        let walk = Walk { at: at.unwrap_or_default(), ..Walk::default() };
        let state = State { record, walk, ..State::default() };
        Scrub { state: Mutex::new(state), ..Scrub::default() }
    }

    /// A deleted snapshot went, and `heir` has alone what they shared, as far as it is younger than
    /// `bound`. Where the walk had come past the heir, and left that for the snapshot that it has
    /// not come to, the heir is walked once more. (Only a live version has a lower number than the
    /// snapshot that it continues.) A restart forgets that: the next scrub will find it.
    pub fn joined(&self, heir: u64, ended: u64, bound: u64) {
        let is_stepping = self.stepping.try_lock().is_none();
        let s = self.state.lock();
        let at = s.walk.at;
        let in_trees = s.record.running && at.phase == Phase::Trees;
        let reached = heir <= u64::from(at.volume) || is_stepping;
        if in_trees && heir < ended && u64::from(at.volume) <= ended && reached {
            let mut again = self.again.lock();
            let since = again.entry(heir as u32).or_insert(bound);
            *since = bound.min(*since);
        }
    }

    /// Was what this cloned pointer leads to walked with another file?
    pub fn knows_clone(&self, block: u64) -> bool {
        self.clones.lock().contains(&block)
    }

    /// These were walked to their ends.
    pub fn note_clones(&self, blocks: Vec<u64>) {
        if blocks.is_empty() {
            return;
        }
        let mut known = self.clones.lock();
        let room = KNOWN_CLONES.saturating_sub(known.len());
        known.extend(blocks.into_iter().take(room));
    }

    /// A version that has to be walked once more.
    pub fn once_more(&self) -> Option<(u32, u64)> {
        self.again.lock().pop_first()
    }

    /// What the next root says. Called by the consistency point.
    pub fn record(&self) -> ScrubRecord {
        let mut s = self.state.lock();
        s.unsaved = 0;
        s.record
    }

    /// Is there progress that no root knows?
    pub fn is_unsaved(&self) -> bool {
        self.state.lock().unsaved > 0
    }

    pub fn is_running(&self) -> bool {
        self.state.lock().record.running
    }

    pub fn status(&self) -> ScrubStatus {
        let s = self.state.lock();
        let r = &s.record;
        let time = |t: i64| (t != 0).then_some(Timestamp(t));
        ScrubStatus {
            running: r.running,
            started: time(r.started),
            // While it runs, what the record has is the end of the one before.
            finished: time(r.finished).filter(|_| !r.running),
            cancelled: r.result == ScrubResult::Cancelled,
            examined_bytes: r.examined_blocks * BLOCK_BYTES as u64,
            total_bytes: r.total_blocks.max(r.examined_blocks) * BLOCK_BYTES as u64,
            healed: r.healed,
            bad: r.bad,
            places: s.places.clone(),
        }
    }
}

impl State {
    fn enter(&mut self, walk: Walk, found: Found, time: i64) {
        self.walk = walk;
        self.unsaved += found.examined_blocks;
        let room = SCRUB_PLACES - self.places.len().min(SCRUB_PLACES);
        self.places.extend(found.places.into_iter().take(room));
        let r = &mut self.record;
        r.examined_blocks += found.examined_blocks;
        r.healed += found.healed;
        r.bad += found.bad;
        (r.phase, r.entered) = (phase_to_u8(walk.at.phase), walk.at.entered);
        (r.volume, r.ino, r.block) = (walk.at.volume, walk.at.ino, walk.at.block);
        if walk.is_done() {
            self.end(ScrubResult::Done, time);
        }
    }

    fn end(&mut self, result: ScrubResult, time: i64) {
        let r = &mut self.record;
        (r.running, r.result, r.finished) = (false, result, time);
        if result == ScrubResult::Done {
            r.total_blocks = r.examined_blocks;
        }
        self.turn += 1;
    }
}

/// What no copy has of files, the pool's own left out.
fn lost_of_files(found: &Found) -> Vec<BadPlace> {
    let of_file = |p: &&BadPlace| {
        p.outcome == Outcome::Lost && p.volume != TABLE && matches!(p.part, Part::Data | Part::Node)
    };
    found.places.iter().filter(of_file).cloned().collect()
}

impl Core {
    /// Begins a scrub; false: one is running already, which goes on.
    pub fn scrub_start(&self) -> Result<bool> {
        self.writable()?;
        {
            let (total, free, waiting, reserve) = self.space.figures();
            let mut s = self.scrub.state.lock();
            if s.record.running {
                return Ok(false);
            }
            let turn = s.turn + 1;
            let record = ScrubRecord {
                running: true,
                started: self.time(),
                finished: s.record.finished,
                total_blocks: total.saturating_sub(free + waiting + reserve),
                ..ScrubRecord::default()
            };
            *s = State { record, turn, ..State::default() };
            self.scrub.again.lock().clear();
            self.scrub.clones.lock().clear();
        }
        self.consistency_point_forced()?;
        self.bell.ring(super::super::core::BELL_SCRUB);
        Ok(true)
    }

    /// Ends the scrub that is running; false: there is none.
    pub fn scrub_cancel(&self) -> Result<bool> {
        self.writable()?;
        {
            let mut s = self.scrub.state.lock();
            if !s.record.running {
                return Ok(false);
            }
            s.end(ScrubResult::Cancelled, self.time());
        }
        self.consistency_point_forced()?;
        Ok(true)
    }

    /// Examines about so many blocks more; true while there is more to do.
    pub fn scrub_step(&self, budget_blocks: u64) -> Result<bool> {
        self.writable()?;
        let Some(one) = self.lock_unless_alone(&self.scrub.stepping) else {
            return Ok(self.scrub.is_running());
        };
        let (mut walk, turn) = {
            let s = self.scrub.state.lock();
            if !s.record.running {
                return Ok(false);
            }
            (s.walk, s.turn)
        };
        let found = self.walk(&mut walk, budget_blocks)?;
        // Before anybody can see that it is done: who waits for that may close the pool.
        self.tell_lost(&lost_of_files(&found));
        let (running, unsaved) = {
            let mut s = self.scrub.state.lock();
            if s.turn == turn {
                s.enter(walk, found, self.time());
            }
            (s.record.running, s.unsaved)
        };
        drop(one);
        if !running || unsaved >= SAVE_BLOCKS {
            self.consistency_point_forced()?;
        }
        Ok(running)
    }

    fn tell_lost(&self, places: &[BadPlace]) {
        let hears = self.lost.read().clone();
        if let Some(hears) = hears {
            places.iter().for_each(|place| hears(place));
        }
    }

    /// One piece and the rest after it: what the background thread does. True while there is more
    /// to do. A failure is latched, or ends the scrub's turn: it goes on later.
    pub fn scrub_paced(&self) -> bool {
        let others = |core: &Core| {
            let c = &core.store.counters;
            c.blocks_read.load(Ordering::Relaxed) + c.blocks_written.load(Ordering::Relaxed)
        };
        let began = std::time::Instant::now();
        let more = self.scrub_step(PIECE_BLOCKS).unwrap_or(false);
        let took = began.elapsed();
        let before = others(self);
        std::thread::sleep((took * REST_IDLE).clamp(REST_MIN, REST_MAX));
        if others(self) != before {
            std::thread::sleep((took * (REST_BUSY - REST_IDLE)).clamp(REST_MIN, REST_MAX));
        }
        more
    }
}
