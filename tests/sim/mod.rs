//! The deterministic simulator of the filesystem: one seed is one schedule of operations, crashes
//! and interleavings, on one thread, over simulated devices, beside a plain model of what must be
//! there.

pub mod check;
pub mod model;
pub mod observe;
pub mod ops;
pub mod perform;
pub mod prefix;
pub mod quiet;
pub mod rot;
pub mod world;
