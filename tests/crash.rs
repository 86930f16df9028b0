//! Crashes, replayed from a seed: see `sim`.
//!
//! `LUNFS_SIM_SEEDS` runs so many fresh seeds, `LUNFS_SIM_SEED` one (with `LUNFS_SIM_TRACE=1`
//! telling each operation, and `LUNFS_SIM_SKIP` naming steps to leave out), each of
//! `LUNFS_SIM_STEPS` steps; `LUNFS_SIM_SECONDS` ends it earlier. A failure is made smaller before
//! it is told.

mod sim;

use sim::world::{run, Config, Failure, Report};
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Seeds that are run each time; those of failures once found are added here.
const FIXED_SEEDS: [u64; 16] =
    [1, 2, 3, 4, 10, 18, 75, 87, 3132, 7039, 9033, 9506, 10081, 20163, 20289, 20431];
/// Fresh seeds of an ordinary run.
const FRESH_SEEDS: u64 = 12;
/// Steps of an ordinary run's seed.
const STEPS: u64 = 200;
/// Longest time that a seed may take before it counts as hung.
const HUNG_AFTER: Duration = Duration::from_secs(300);
/// Runs spent on making a failure smaller.
const SHRINK_RUNS: u32 = 400;

fn env<T: FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn config(seed: u64) -> Config {
    let skip = std::env::var("LUNFS_SIM_SKIP").unwrap_or_default();
    Config {
        seed,
        steps: env("LUNFS_SIM_STEPS").unwrap_or(STEPS),
        skip: skip.split(',').filter_map(steps_of).flatten().collect(),
        trace: env::<u32>("LUNFS_SIM_TRACE").is_some(),
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
    let text = |(first, last): (u64, u64)| format!("{first}-{last}");
    out.into_iter().map(text).collect::<Vec<_>>().join(",")
}

/// A run that takes for ever ends the whole test, and says which one it was.
fn watch(seed: u64, done: Arc<AtomicU64>, before: u64) {
    std::thread::spawn(move || {
        let until = Instant::now() + HUNG_AFTER;
        while Instant::now() < until {
            std::thread::sleep(Duration::from_millis(200));
            if done.load(SeqCst) != before {
                return;
            }
        }
        eprintln!("seed {seed}: still running after {HUNG_AFTER:?}");
        std::process::exit(1);
    });
}

fn run_watched(config: &Config) -> Result<Report, Failure> {
    let done = Arc::new(AtomicU64::new(0));
    watch(config.seed, done.clone(), 0);
    let result = run(config);
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

fn tell(config: &Config, failure: Failure) -> String {
    let shrunk = match env::<u32>("LUNFS_SIM_NO_SHRINK") {
        None => shrink(config, failure),
        Some(_) => (config.clone(), failure),
    };
    let (config, failure) = shrunk;
    format!(
        "seed {}, step {}: {}\nagain: LUNFS_SIM_SEED={} LUNFS_SIM_STEPS={} LUNFS_SIM_SKIP={} \
         LUNFS_SIM_TRACE=1 LUNFS_SIM_NO_SHRINK=1 cargo test --test crash simulated -- --nocapture",
        config.seed,
        failure.step,
        failure.why,
        config.seed,
        config.steps,
        ranges(&config.skip),
    )
}

fn seeds() -> Vec<u64> {
    if let Some(seed) = env("LUNFS_SIM_SEED") {
        return vec![seed];
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let first = env("LUNFS_SIM_FIRST").unwrap_or(since.as_millis() as u64 % 1_000_000_000_000);
    let fresh = (0..env("LUNFS_SIM_SEEDS").unwrap_or(FRESH_SEEDS)).map(|n| first + n);
    match env::<u64>("LUNFS_SIM_SEEDS") {
        Some(_) => fresh.collect(),
        None => FIXED_SEEDS.into_iter().chain(fresh).collect(),
    }
}

#[test]
fn simulated() {
    let until = env("LUNFS_SIM_SECONDS").map(|s| Instant::now() + Duration::from_secs(s));
    let mut failures = Vec::new();
    for seed in seeds() {
        if until.is_some_and(|until| Instant::now() > until) {
            break;
        }
        let config = config(seed);
        match run_watched(&config) {
            Ok(report) => println!(
                "seed {seed}: {} operations, {} crashes, digest {}",
                report.operations, report.crashes, report.digest
            ),
            Err(failure) => failures.push(tell(&config, failure)),
        }
        if failures.len() >= env("LUNFS_SIM_FAILURES").unwrap_or(1) {
            break;
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn rot_is_told_and_never_served() {
    let (mut errors, mut refused) = (0, 0);
    for seed in 0..env("LUNFS_SIM_ROT").unwrap_or(20) {
        let config = Config { seed, steps: 120, ..Config::default() };
        match sim::rot::run(&config) {
            Ok(seen) => {
                errors += seen.errors;
                refused += u32::from(seen.refused);
            }
            Err(failure) => panic!("seed {seed}: {}", failure.why),
        }
    }
    println!("{errors} errors, {refused} pools refused");
    assert!(errors > 0, "rot was not seen at all");
}

#[test]
fn one_seed_is_one_run() {
    for seed in [7, 8] {
        let config = Config { seed, steps: 120, ..Config::default() };
        let (first, second) = (run_watched(&config), run_watched(&config));
        let told = |run: Result<Report, Failure>| run.map_err(|failure| failure.why);
        assert_eq!(told(first), told(second));
    }
}

/// The generator does not lose itself in refused operations, and the reference holds its own rules.
#[test]
fn operations_are_worth_doing() {
    use lunfs::device::sim::Rng;
    use lunfs::fs::{NodeId, Owner, VolumeId};
    use sim::model::{Made, Model};
    use sim::ops::{Generator, Op, Profile, What};
    for seed in 0..30 {
        let mut rng = Rng::new(seed);
        let profile = Profile::draw(&mut rng);
        let mut model = Model::default();
        let owner = Owner { mode: 0o755, uid: 0, gid: 0 };
        let made = |n| Made { node: None, volume: Some(VolumeId(n)) };
        let root = Op::VolumeCreate { name: "/".into(), owner };
        assert!(model.apply(&root, &made(VolumeId::TREE.0)).is_ok());
        model.volumes.clear();
        let (mut done, mut refused) = (0, 0);
        for n in 0..400 {
            let op =
                Generator { rng: &mut rng, model: &model, profile, short: true, ballast: None }
                    .draw();
            let id = |dir: &NodeId| NodeId { volume: dir.volume, ino: 100 + n };
            let made = match &op {
                Op::Create { dir, .. } => Made { node: Some((id(dir), n)), volume: None },
                _ => made(100 + n as u32),
            };
            match model.apply(&op, &made) {
                Ok(()) => done += 1,
                Err(_) => refused += 1,
            }
            let is_dir = |what: &What| *what == What::Directory;
            if let Op::Create { what, .. } = &op {
                assert!(!is_dir(what) || model.nodes.values().all(|node| node.nlink > 0));
            }
        }
        assert!(done > refused, "seed {seed}, {profile:?}: {done} done, {refused} refused");
    }
}
