//! What a run is asked to be, what its seed makes of it, and what it tells.

use super::ops::Profile;
use lunfs::device::sim::Rng;
use lunfs::fs::{Clock, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};

/// What to run.
#[derive(Clone, Default)]
pub struct Config {
    pub seed: u64,
    pub steps: u64,
    /// Steps left out: how a failing run is made smaller.
    pub skip: BTreeSet<u64>,
    /// Print each operation.
    pub trace: bool,
    /// What the run is about; `None`: the seed decides.
    pub profile: Option<Profile>,
    /// Small devices, many crashes and many calls inside calls: a planted bug is soon found.
    pub dense: bool,
    /// Devices of a mirror stay as they are: the media is what lies.
    pub steady: bool,
}

/// How often something happened, by its name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally(BTreeMap<&'static str, u64>);

impl Tally {
    pub fn add(&mut self, what: &'static str, times: u64) {
        *self.0.entry(what).or_default() += times;
    }

    pub fn merge(&mut self, other: &Tally) {
        other.0.iter().for_each(|(what, times)| self.add(what, *times));
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts: Vec<String> = self.0.iter().map(|(what, n)| format!("{n} {what}")).collect();
        f.write_str(&parts.join(", "))
    }
}

/// What a run did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    pub operations: u64,
    pub crashes: u64,
    pub digest: String,
    pub faults: Tally,
}

/// Where and why a run failed.
#[derive(Debug, Clone)]
pub struct Failure {
    pub step: u64,
    pub why: String,
}

pub type Done<T = ()> = Result<T, String>;

/// A clock that the schedule moves.
pub struct SimClock(AtomicI64);

impl SimClock {
    pub fn new() -> SimClock {
        SimClock(AtomicI64::new(1_000_000))
    }

    /// On by a millisecond mostly, now and then by hours, or back.
    pub fn advance(&self, rng: &mut Rng) {
        let by = match rng.below(64) {
            0 => 3_600_000_000_000,
            1 => -3_600_000_000_000,
            2 => -1,
            3 => 0,
            _ => 1_000_000,
        };
        self.0.fetch_add(by, SeqCst);
    }
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(SeqCst))
    }
}

/// What the seed decides once.
pub struct Character {
    pub profile: Profile,
    pub crash_one_in: u64,
    pub cut_one_in: u64,
    pub nest_one_in: u64,
    pub sync_one_in: u64,
    pub cache_bytes: u64,
    /// Writes and flushes fail, and devices vanish.
    pub faults: bool,
    /// Devices grow now and then.
    pub grows: bool,
    /// Where there is more than one device, each block is on two.
    pub mirrors: bool,
    /// One device of a mirror fails in all ways, and nothing of that may be seen.
    pub victim: bool,
    /// Devices of a mirror come and go: where they do not fail or lie besides.
    pub members_change: bool,
}

impl Character {
    pub fn draw(rng: &mut Rng, config: &Config) -> Character {
        let drawn = Character {
            profile: Profile::draw(rng),
            crash_one_in: [40, 150, 600][rng.index(3)],
            cut_one_in: [15, 50, 200][rng.index(3)],
            nest_one_in: [2, 6, 1_000_000][rng.index(3)],
            sync_one_in: [4, 12, 60][rng.index(3)],
            cache_bytes: [1 << 20, 4 << 20, 16 << 20, 64 << 20][rng.index(4)],
            faults: rng.chance(1, 5),
            grows: rng.chance(1, 4),
            mirrors: rng.chance(1, 2),
            victim: rng.chance(1, 2),
            members_change: false,
        };
        let members_change = drawn.mirrors && !drawn.victim && !drawn.faults && !config.steady;
        let drawn = Character { members_change, ..drawn };
        let profile = config.profile.unwrap_or(drawn.profile);
        match config.dense {
            false => Character { profile, ..drawn },
            true => Character {
                profile,
                crash_one_in: 20,
                cut_one_in: 10,
                nest_one_in: 3,
                sync_one_in: 6,
                cache_bytes: 1 << 20,
                ..drawn
            },
        }
    }
}
