//! Crashes, replayed from a seed: a short slice of what `make sim` runs; see `sim`.
//!
//! What `sim/main.rs` says of the environment holds here too.

#[allow(dead_code)]
mod sim;

use sim::character::{Config, Failure, Report};
use sim::runner::{config, env, first_seed, line, run_all, run_watched, tell};
use std::io::Write;

/// Seeds that are run each time: those of failures once found are added here. What a seed does
/// changes with the generator, so a mended bug is shown for good by a test of its own.
/// - 795273212577, 795273212621: a crash between the two copies of a root, then one in the first
///   copy of the next root of that slot: recovery had left the second copy as it was, so no copy of
///   the root before was there (`check` said so).
/// - 780000055: both labels of one device of a mirror rot.
/// - 780000072: a snapshot and a range clone while a device is being filled.
const FIXED_SEEDS: [u64; 20] = [
    1,
    2,
    3,
    4,
    10,
    18,
    75,
    87,
    3132,
    7039,
    9033,
    9506,
    10081,
    20163,
    20289,
    20431,
    795273212577,
    795273212621,
    780000055,
    780000072,
];
/// Fresh seeds of an ordinary run.
const FRESH_SEEDS: u64 = 12;

#[test]
fn simulated() {
    if let Some(seed) = env("LUNFS_SIM_SEED") {
        let config = config(seed);
        match run_watched(&config) {
            Ok(report) => println!("{}", line(seed, &report)),
            Err(failure) => panic!("{}", tell(&config, failure)),
        }
        return;
    }
    let first = first_seed();
    let fresh = (0..env("LUNFS_SIM_SEEDS").unwrap_or(FRESH_SEEDS)).map(|n| first + n);
    // What changes of a mirror's devices still leave behind now and then is for `make sim` to find
    // (tests/README.md).
    let fresh = fresh.map(|seed| Config { steady: true, ..config(seed) });
    let runs: Vec<Config> = FIXED_SEEDS.into_iter().map(config).chain(fresh).collect();
    // Past the runner, which shows nothing of a test that passes: fresh seeds are to be seen.
    let say = |line: &str| drop(writeln!(std::io::stderr(), "{line}"));
    let sum = run_all(&runs, 1, None, say);
    say(&sum.to_string());
    assert!(sum.failures.is_empty(), "{}", sum.failures.join("\n\n"));
}

#[test]
fn rot_is_told_and_never_served() {
    let mut seen = sim::rot::Seen::default();
    for seed in 0..env("LUNFS_SIM_ROT").unwrap_or(20) {
        let config = Config { seed, steps: 120, ..Config::default() };
        match sim::rot::run(&config) {
            Ok(more) => seen.add(&more),
            Err(failure) => panic!("seed {seed}: {}", failure.why),
        }
    }
    println!("{seen:?}");
    assert!(seen.errors > 0, "rot was not seen at all");
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
        let made = |n| Made { volume: Some(VolumeId(n)), ..Made::default() };
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
                Op::Create { dir, .. } => Made { node: Some((id(dir), n)), ..Made::default() },
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
