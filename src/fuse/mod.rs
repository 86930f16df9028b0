//! The file door: the pool's tree as a FUSE mount.
//!
//! - `mount`: mounting, unmounting; [`Mount`] is what the server holds.
//! - `ops`: the kernel's requests, taken apart and answered; `door`: what they share.
//! - `tree`: the shape of the mount and its rules; `names`, `listing`: making, moving, listing
//!   names; `snapshots`: `.snapshots`.
//! - `meta`, `acl`, `attr`: attributes, extended attributes, lists, times.
//! - `io`, `handles`: open files and their bytes.
//! - `notify`: telling the kernel what other doors changed.
//! - `ids`, `errno`, `mountinfo`: small translations.
//!
//! Coherence: files of a LUN bypass the kernel's page cache and their attributes and names are
//! never kept, so that each call sees what other doors and commands did before it; mapped pages
//! follow by notices. The writeback cache is never on. The ordinary tree has no other door and is
//! cached; so are snapshots, which nothing changes.

mod acl;
mod attr;
mod door;
mod errno;
mod guarded;
mod handles;
mod ids;
mod io;
mod listing;
mod meta;
mod mount;
mod mountinfo;
mod names;
mod notify;
mod ops;
mod snapshots;
mod tree;

pub use mount::{Mount, MountError, MountOptions, Refusal, Stopped};
