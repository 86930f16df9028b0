//! Runs seeds: watches for hangs, makes failures smaller, and tells what was seen.

use super::character::{Config, Failure, Report, Tally};
use super::ops::Profile;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Steps of a seed where nothing else is asked for.
pub const STEPS: u64 = 200;
/// Longest time that a seed may take before it counts as hung.
const HUNG_AFTER: Duration = Duration::from_secs(300);
/// Runs spent on making a failure smaller.
const SHRINK_RUNS: u32 = 400;

pub fn env<T: FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// What the environment asks for.
pub fn config(seed: u64) -> Config {
    let skip = std::env::var("LUNFS_SIM_SKIP").unwrap_or_default();
    Config {
        seed,
        steps: env("LUNFS_SIM_STEPS").unwrap_or(STEPS),
        skip: skip.split(',').filter_map(steps_of).flatten().collect(),
        trace: env::<u32>("LUNFS_SIM_TRACE").is_some(),
        profile: env::<String>("LUNFS_SIM_PROFILE")
            .and_then(|name| Profile::ALL.into_iter().find(|p| format!("{p:?}") == name)),
        steady: env::<u32>("LUNFS_SIM_STEADY").is_some(),
        dense: env::<u32>("LUNFS_SIM_DENSE").is_some(),
    }
}

/// `7` or `3-9`.
fn steps_of(text: &str) -> Option<RangeInclusive<u64>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
}

/// The other way round.
fn ranges(steps: &BTreeSet<u64>) -> String {
    let mut out: Vec<(u64, u64)> = Vec::new();
    for &step in steps {
        match out.last_mut() {
            Some((_, last)) if *last + 1 == step => *last = step,
            _ => out.push((step, step)),
        }
    }
    let text = |(first, last): (u64, u64)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    out.into_iter().map(text).collect::<Vec<_>>().join(",")
}

/// The first of the fresh seeds: asked for, or of this moment.
pub fn first_seed() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    env("LUNFS_SIM_FIRST").unwrap_or(since.as_millis() as u64 % 1_000_000_000_000)
}

/// A run that takes for ever ends the whole program, and says which one it was.
fn watch(seed: u64, done: Arc<AtomicU64>) {
    std::thread::spawn(move || {
        let until = Instant::now() + HUNG_AFTER;
        while Instant::now() < until {
            std::thread::sleep(Duration::from_millis(200));
            if done.load(SeqCst) != 0 {
                return;
            }
        }
        eprintln!("seed {seed}: still running after {HUNG_AFTER:?}");
        std::process::exit(1);
    });
}

/// Runs one schedule.
pub fn run_watched(config: &Config) -> Result<Report, Failure> {
    let done = Arc::new(AtomicU64::new(0));
    watch(config.seed, done.clone());
    let result = super::run(config);
    done.store(1, SeqCst);
    result
}

/// Fewer steps, then single steps left out, for as long as it fails for the same kind of reason.
fn shrink(config: &Config, failure: Failure) -> (Config, Failure) {
    let steps = config.steps.min(failure.step + 1);
    let mut best = (Config { steps, ..config.clone() }, failure);
    let kind =
        |why: &str| why.chars().take_while(|c| !c.is_ascii_digit()).take(24).collect::<String>();
    let wanted = kind(&best.1.why);
    let mut runs = 0;
    let mut width = (best.0.steps / 2).max(1);
    while runs < SHRINK_RUNS {
        let mut at = 0;
        while at < best.0.steps && runs < SHRINK_RUNS {
            let mut smaller = best.0.clone();
            smaller.skip.extend(at..(at + width).min(best.0.steps));
            at += width;
            if smaller.skip.len() == best.0.skip.len() {
                continue;
            }
            runs += 1;
            if let Err(failure) = run_watched(&smaller) {
                if kind(&failure.why) == wanted {
                    smaller.steps = smaller.steps.min(failure.step + 1);
                    best = (smaller, failure);
                }
            }
        }
        if width == 1 {
            break;
        }
        width /= 2;
    }
    best.0.skip = best.0.skip.iter().copied().filter(|&step| step < best.0.steps).collect();
    best
}

/// A failure made smaller, and how to have it again.
pub fn tell(config: &Config, failure: Failure) -> String {
    let shrunk = match env::<u32>("LUNFS_SIM_NO_SHRINK") {
        None => shrink(config, failure),
        Some(_) => (config.clone(), failure),
    };
    let (config, failure) = shrunk;
    let (seed, steps) = (config.seed, config.steps);
    let steady = if config.steady { "LUNFS_SIM_STEADY=1 " } else { "" };
    format!(
        "seed {seed}, step {}: {}\nagain: {steady}LUNFS_SIM_SKIP={} LUNFS_SIM_TRACE=1 \
         LUNFS_SIM_NO_SHRINK=1 make sim SEED={seed} STEPS={steps}",
        failure.step,
        failure.why,
        ranges(&config.skip),
    )
}

/// The line of a seed that passed.
pub fn line(seed: u64, report: &Report) -> String {
    let Report { operations, crashes, digest, .. } = report;
    format!("seed {seed}: {operations} operations, {crashes} crashes, digest {digest}")
}

/// What many seeds did.
#[derive(Default)]
pub struct Sum {
    pub seeds: u64,
    pub operations: u64,
    pub crashes: u64,
    pub faults: Tally,
    pub failures: Vec<String>,
}

impl std::fmt::Display for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} seeds, {} operations, {} crashes, {} failures; {}",
            self.seeds,
            self.operations,
            self.crashes,
            self.failures.len(),
            self.faults
        )
    }
}

/// Runs seeds on so many threads, each seed on one, until `until`; `told` hears of each that
/// passed.
pub fn run_all(
    runs: &[Config],
    threads: usize,
    until: Option<Instant>,
    told: impl Fn(&str) + Sync,
) -> Sum {
    let (next, sum) = (AtomicU64::new(0), Mutex::new(Sum::default()));
    let worker = || loop {
        let at = next.fetch_add(1, SeqCst) as usize;
        let Some(config) = runs.get(at) else { return };
        let enough = sum.lock().unwrap().failures.len() >= env("LUNFS_SIM_FAILURES").unwrap_or(3);
        if enough || until.is_some_and(|until| Instant::now() > until) {
            return;
        }
        let result = run_watched(config).map_err(|failure| tell(config, failure));
        let sum = &mut *sum.lock().unwrap();
        sum.seeds += 1;
        match result {
            Ok(report) => {
                sum.operations += report.operations;
                sum.crashes += report.crashes;
                sum.faults.merge(&report.faults);
                told(&line(config.seed, &report));
            }
            Err(text) => {
                eprintln!("{text}\n");
                sum.failures.push(text);
            }
        }
    };
    std::thread::scope(|scope| {
        (0..threads).for_each(|_| {
            scope.spawn(worker);
        })
    });
    sum.into_inner().unwrap()
}
