//! Who gets in: initiators, what proves that one is who it says, and what it may do with each LUN.
//!
//! - [`Secret`], [`chap`]: what is shared with a client, and CHAP's arithmetic.
//! - [`Initiator`], [`Right`], [`Limits`]: one client as the administrator wrote it down.
//! - [`Network`]: where a client may come from.
//! - [`Book`]: all of them, kept in the pool; it judges who may do what, and makes a change act on
//!   the sessions that stand.
//! - [`Crowd`]: bounds on those who have not proved anything yet.
//! - [`Shares`], [`Share`]: what the connections of one client have together.
//! - [`Refusals`]: who was turned away, counted, for `status`.
//!
//! Doors ask, and translate the answer into their protocol's words; they never decide.

mod book;
pub mod chap;
mod crowd;
mod error;
mod initiator;
mod kept;
mod network;
mod refusals;
mod secret;
mod shares;

pub use book::{Book, Denial, Seen, PROVED_OTHERWISE};
pub use crowd::{Crowd, Place};
pub use error::{Error, Result};
pub use initiator::{check_name, Credential, Edit, Initiator, Limits, Right};
pub use network::{Network, MAX_NETWORKS};
pub use refusals::{Reason, Refusals, Refused};
pub use secret::{BareSecret, Secret, MAX_SECRET_BYTES, MIN_SECRET_BYTES};
pub use shares::{Share, Shares};
