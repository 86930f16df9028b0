//! The simulator finds bugs: each of those planted in `src/fs/planted.rs` is found by a few seeds,
//! and without any the same seeds pass.
//!
//! `LUNFS_MUTATIONS_SEARCH=n` looks for better seeds among the first `n` of each profile.

#[allow(dead_code)]
mod sim;

use lunfs::fs::planted::{plant, Mutation};
use sim::character::Config;
use sim::ops::Profile;
use sim::runner::{env, first_seed};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::Mutex;

/// Steps of a hunt's seed.
const STEPS: u64 = 80;
/// Fresh seeds tried where the known one finds nothing (any more).
const SEEDS: u64 = 80;

/// Where a planted bug is found: what kind of run, and a seed that found it once.
struct Hunt(Mutation, Option<Profile>, u64);

use Mutation::*;
use Profile::*;

const HUNTS: &[Hunt] = &[
    Hunt(NoFlushBeforeRoot, Some(Mixed), 0),
    Hunt(NoFlushBetweenRootCopies, Some(Large), 0),
    Hunt(ReuseBeforeRoot, Some(Full), 0),
    Hunt(ReuseWhilePinned, None, 87),
    Hunt(AcknowledgeBeforeFlush, Some(Mixed), 0),
    Hunt(LatchForgotten, Some(Mixed), 7),
    Hunt(ReplaySkipsHoles, Some(Data), 0),
    Hunt(ReplaySkipsFrees, Some(Data), 0),
    Hunt(ReplayReusesNumbers, Some(Mixed), 0),
    Hunt(ReplayPastTornGroup, Some(Large), 0),
    Hunt(TornDataTrusted, Some(Large), 0),
    Hunt(LogNotMarked, Some(Mixed), 0),
    Hunt(DurableMarkTooHigh, Some(Large), 0),
    Hunt(RecoveryWithoutRoot, Some(Full), 0),
    Hunt(ChecksumIgnored, None, 7),
    Hunt(BitmapOfNextEpoch, Some(Mixed), 0),
    Hunt(PageInPlace, Some(Mixed), 0),
    Hunt(WalkNotCommitted, Some(Volumes), 0),
    Hunt(OrphanForgotten, Some(Mixed), 2),
    Hunt(SplitLosesHalf, Some(Names), 0),
    Hunt(MergeNotChecked, Some(Large), 0),
    Hunt(SettleUnchecked, Some(Data), 0),
    Hunt(SealMissesFile, Some(Mixed), 0),
    Hunt(HoleLosesToLink, Some(Data), 0),
    Hunt(TruncateLeavesTail, Some(Sectors), 0),
    Hunt(NoReserve, Some(Full), 1),
    Hunt(EpochAgain, Some(Names), 4),
    Hunt(SecondCopyNotWritten, None, 31),
    Hunt(HealsFromAnyCopy, None, 7),
    Hunt(AcknowledgeBeforeStaleRecord, Some(Mixed), 99409407851),
    Hunt(SharedBlockFreed, Some(Mixed), 0),
    Hunt(DeadListJoinedWrong, Some(Versions), 1),
    Hunt(CloneNotCounted, Some(Data), 0),
];

/// Too rare for a bounded number of seeds: a test of its own plants it (`mirror/`).
const SHOWN_ELSEWHERE: [Mutation; 4] =
    [FilledBeforeRoot, FreshSnapshotNotFilled, CloneNotFilledAgain, FilledOneKnowsFirst];

fn config(profile: Option<Profile>, seed: u64) -> Config {
    Config { seed, steps: STEPS, profile, dense: true, ..Config::default() }
}

/// The seeds of a hunt, the known one first. Runs without a profile are those of media that lie.
fn seeds(hunt: &Hunt, fresh: u64) -> impl Iterator<Item = u64> + use<'_> {
    let of_kind = move |n: u64| if hunt.1.is_none() { n * 8 + 7 } else { n };
    std::iter::once(hunt.2).chain((0..SEEDS).map(move |n| of_kind(fresh / 8 + n)))
}

/// How many seeds it took, which one found it, and how it showed.
fn find(hunt: &Hunt, fresh: u64) -> Option<(u64, u64, String)> {
    let mut tried = 0;
    seeds(hunt, fresh).find_map(|seed| {
        tried += 1;
        plant(Some(hunt.0));
        let result = sim::run(&config(hunt.1, seed));
        plant(None);
        result.err().map(|failure| (tried, seed, failure.why))
    })
}

/// Does `work` for each of `items`, on both processors.
fn each<T: Sync>(items: &[T], work: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    let worker = || {
        while let Some(item) = items.get(next.fetch_add(1, SeqCst)) {
            work(item);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(worker);
        scope.spawn(worker);
    });
}

fn quiet() {
    std::panic::set_hook(Box::new(|_| {}));
}

#[test]
fn every_planted_bug_is_found() {
    if let Some(seeds) = env("LUNFS_MUTATIONS_SEARCH") {
        return search(seeds);
    }
    let missing: Vec<&Mutation> =
        Mutation::ALL.iter().filter(|m| HUNTS.iter().all(|hunt| hunt.0 != **m)).collect();
    let missing: Vec<_> = missing.into_iter().filter(|m| !SHOWN_ELSEWHERE.contains(m)).collect();
    assert!(missing.is_empty(), "nobody hunts {missing:?}");
    quiet();
    let fresh = first_seed();
    let lines = Mutex::new(Vec::new());
    each(HUNTS, |hunt| {
        let found = find(hunt, fresh);
        let line = match &found {
            Some((tried, seed, why)) => {
                let why: String = why.chars().take(60).collect();
                format!("{:?}: {tried} seeds, the last {seed}: {why}", hunt.0)
            }
            None => format!("{:?}: not found by {} seeds from {fresh}", hunt.0, SEEDS + 1),
        };
        println!("{line}");
        lines.lock().unwrap().push((found.is_some(), line));
    });
    let _ = std::panic::take_hook();
    let mut lines = lines.into_inner().unwrap();
    lines.sort_by(|a, b| a.1.cmp(&b.1));
    let lost: Vec<&String> = lines.iter().filter(|line| !line.0).map(|line| &line.1).collect();
    assert!(lost.is_empty(), "{} of {} are not found: {lost:#?}", lost.len(), lines.len());
}

/// Also some of the fresh seeds: what finds a bug must find nothing where there is none.
#[test]
fn without_them_the_same_seeds_pass() {
    let failures = Mutex::new(Vec::new());
    let more = env("LUNFS_MUTATIONS_FRESH").unwrap_or(2);
    let fresh = first_seed();
    each(HUNTS, |hunt| {
        for seed in seeds(hunt, fresh).take(1 + more) {
            if let Err(failure) = sim::run(&config(hunt.1, seed)) {
                let told = format!("{:?}, seed {seed}: {}", hunt.1, failure.why);
                failures.lock().unwrap().push(told);
            }
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Prints, for each bug and profile, the first seed that finds it.
fn search(count: u64) {
    quiet();
    let profiles = Profile::ALL.map(Some);
    let wanted_profile: Option<String> = env("LUNFS_MUTATIONS_PROFILE");
    let of_kind = |p: &Option<Profile>| {
        wanted_profile.as_ref().is_none_or(|wanted| format!("{p:?}").contains(wanted))
    };
    let only: Option<String> = env("LUNFS_MUTATIONS_ONLY");
    let wanted = |m: &&Mutation| only.as_ref().is_none_or(|only| format!("{m:?}") == *only);
    let all: Vec<Mutation> = Mutation::ALL.iter().filter(wanted).copied().collect();
    each(&all, |&mutation| {
        let mut left = 2;
        for seed in 0..count {
            for profile in profiles.into_iter().chain([None]).filter(of_kind) {
                let seed = if profile.is_none() { seed * 8 + 7 } else { seed };
                plant(Some(mutation));
                let result = sim::run(&config(profile, seed));
                plant(None);
                if let Err(failure) = result {
                    let why: String = failure.why.chars().take(90).collect();
                    println!("    Hunt({mutation:?}, {profile:?}, {seed}), // {why}");
                    left -= 1;
                }
                if left == 0 {
                    return;
                }
            }
        }
        println!("    // {mutation:?}: found {} times among {count}", 2 - left);
    });
}
