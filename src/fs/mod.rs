//! The write-anywhere filesystem. It knows no LUN, no protocol and no tokio; it is synchronous, and
//! deterministic when driven by one thread.
//!
//! Contract for callers: every call may block on the device unless its name begins with `try_`.
//! A call that returned is seen by every call that begins later, through any handle; it is durable
//! only after [`Fs::sync`] (or [`File::sync`]) that began later returned Ok. After a crash the
//! state is that of a prefix of calls, each whole (writes up to [`ATOMIC_WRITE_BYTES`]).

mod check;
mod clone;
mod consistency;
mod copies;
mod core;
mod counts;
mod cp;
mod devices;
mod diff;
mod dir;
mod dump;
mod error;
mod figures;
mod file;
mod group;
mod guard;
mod handle;
mod heal;
mod inode;
mod join;
mod labels;
mod lists;
mod members;
mod moves;
mod named;
mod namespace;
#[cfg(feature = "planted")]
pub mod planted;
#[cfg(not(feature = "planted"))]
mod planted;
mod pool;
mod rebalance;
mod reclaim;
mod recovery;
mod regenerate;
mod relist;
mod repair;
mod roots;
mod scrub;
mod segments;
mod snapshot;
mod snapshot_dir;
mod space;
mod store;
mod tree;
mod txn;
mod types;
mod version;
mod volume;
mod waits;
mod wipe;
mod work;
mod xattr;

pub use check::{check, CheckOptions, Report};
pub use consistency::{Consistency, HookOutcome};
pub use devices::DeviceStatus;
pub use diff::{ChangedExtent, Diff, DiffBase};
pub use dump::{dump, As as DumpAs, Object as DumpObject, Value as DumpValue, What as DumpWhat};
pub use error::{Error, Result};
pub use figures::SnapshotSpace;
pub use handle::File;
pub use join::DeviceChange;
pub use labels::newest_label;
pub use pool::{FormatOptions, Fs, OpenOptions};
pub use repair::{repair, Repaired};
pub use scrub::{BadPlace, Outcome, Part, ScrubStatus, SCRUB_PLACES};
pub use snapshot::{Bookmark, SnapshotInfo, VolumeInfo};
pub use types::*;
pub use waits::{Took, Waits};
