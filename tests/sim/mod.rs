//! The deterministic simulator of the filesystem: one seed is one schedule of operations, crashes
//! and interleavings, on one thread, over simulated devices, beside a plain model of what must be
//! there.

pub mod character;
pub mod check;
pub mod crash;
pub mod disks;
pub mod inside;
pub mod luns;
pub mod members;
pub mod model;
pub mod observe;
pub mod ops;
pub mod perform;
pub mod prefix;
pub mod quiet;
pub mod ranges;
pub mod record;
pub mod rot;
pub mod runner;
pub mod versions;
pub mod world;

use character::{Config, Failure, Report};

/// One seed in so many is a run of media that lie, and one a run of the LUN layer.
const ROT_ONE_IN: u64 = 8;

/// Runs a schedule of the kind that its seed asks for.
pub fn run(config: &Config) -> Result<Report, Failure> {
    match config.seed % ROT_ONE_IN {
        _ if config.profile.is_some() => world::run(config),
        7 => rot::report(config),
        6 => luns::report(config),
        _ => world::run(config),
    }
}
