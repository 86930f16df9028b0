//! Commands on an open pool, and how they reach it.
//!
//! - [`engine`] carries commands out, in the server or in the command's own process;
//! - [`protocol`] and [`wire`] are what goes over the control socket, [`listener`] and [`client`]
//!   its two ends, [`run_dir`] where it is;
//! - [`find`], [`pool`] and [`label`] find, lock, make and open a pool's devices;
//! - `scrub` and `balance` are the commands that take long;
//! - [`report`] and [`doors`] are what is shown.

mod balance;
pub mod client;
pub mod doors;
pub mod engine;
pub mod error;
pub mod find;
mod initiator;
pub mod label;
pub mod listener;
mod log;
mod members;
mod policy;
pub mod pool;
pub mod protocol;
pub mod report;
pub mod run_dir;
mod scrub;
mod silence;
mod snapshot;
pub mod stop;
mod transfer;
pub mod wire;

pub use error::{Error, Message, Result};
