//! Bringing an application to rest for the instant of a snapshot.
//!
//! Ask it to write out what it has and to suspend, wait for its word or a timer, take the snapshot,
//! wait for that or a timer, and let it go on.
//!
//! - `hook`: who is asked, as the command line names it; `place`: what must not be frozen.
//! - `machine`: the order of steps and their timers, without any I/O.
//! - `watch`: the command's side, which drives the machine.
//! - `agent`: a process of its own that freezes and thaws. It thaws when the command that started
//!   it is gone, and when the limit has passed: so nothing stays frozen when either is killed.
//!   Where the agent is, the command thaws.
//! - `drivers`, `program`, `guest`, `postgres`: how each hook freezes and thaws.
//!
//! Invariant: whoever was asked to freeze is thawed, whatever came of it, but for one who said that
//! it did not freeze.

mod agent;
mod drivers;
mod guest;
mod hook;
mod machine;
mod place;
mod postgres;
mod program;
mod watch;

pub use agent::serve as serve_agent;
pub use hook::{Hook, HookError};
pub use machine::{Limits, Report};
pub use place::check_place;
pub use watch::{run, AGENT_WORD};
