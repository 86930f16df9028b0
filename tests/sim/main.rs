//! `make sim`: the simulator over many seeds, or over one.
//!
//! `LUNFS_SIM_SEED` runs one seed, else `LUNFS_SIM_SEEDS` fresh ones from `LUNFS_SIM_FIRST` (or of
//! this moment) on, each of `LUNFS_SIM_STEPS` steps, until `LUNFS_SIM_SECONDS` are over.
//! `LUNFS_SIM_TRACE=1` tells each operation, `LUNFS_SIM_SKIP=7,9-12` leaves steps out,
//! `LUNFS_SIM_STEADY=1` leaves the devices of mirrors as they are,
//! `LUNFS_SIM_PROFILE=Names` and `LUNFS_SIM_DENSE=1` are those of `character.rs`,
//! `LUNFS_SIM_NO_SHRINK=1` tells a failure as it is, `LUNFS_SIM_FAILURES` ends it after so many.

#[path = "mod.rs"]
#[allow(dead_code)]
mod sim;

use sim::character::Config;
use sim::runner::{config, env, first_seed, line, run_all, run_watched, tell};
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Many small blocks are taken and given back: the test's allocator is the program's.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Seeds where nothing else is asked for.
const SEEDS: u64 = 3200;
/// A line of progress after so many seeds.
const TOLD_EACH: u64 = 200;

fn main() -> ExitCode {
    if env::<u32>("LUNFS_SIM_TRACE").is_none() {
        std::panic::set_hook(Box::new(|_| {}));
    }
    match env("LUNFS_SIM_SEED") {
        Some(seed) => one(seed),
        None => many(),
    }
}

fn one(seed: u64) -> ExitCode {
    let config = config(seed);
    match run_watched(&config) {
        Ok(report) => {
            eprintln!("faults: {}", report.faults);
            println!("{}", line(seed, &report));
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("{}", tell(&config, failure));
            ExitCode::FAILURE
        }
    }
}

fn many() -> ExitCode {
    let (began, first) = (Instant::now(), first_seed());
    let count = env("LUNFS_SIM_SEEDS").unwrap_or(SEEDS);
    let until = env("LUNFS_SIM_SECONDS").map(|s| began + Duration::from_secs(s));
    let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
    let threads = env("LUNFS_SIM_THREADS").unwrap_or(processors);
    println!("seeds {first} to {}, on {threads} threads", first + count - 1);
    let runs: Vec<Config> = (first..first + count).map(config).collect();
    let done = std::sync::atomic::AtomicU64::new(0);
    let sum = run_all(&runs, threads, until, |line| {
        let so_far = done.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        if count <= TOLD_EACH || so_far % TOLD_EACH == 0 {
            println!("{line}  ({so_far} of {count} seeds)");
            let _ = std::io::stdout().flush();
        }
    });
    println!("{sum}; in {} s", began.elapsed().as_secs());
    match sum.failures.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
