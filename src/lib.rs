//! lunfs: a FUSE-based multi-protocol filesystem.
//!
//! Layers, each using only those below it (checked by `tests/tidy.rs`):
//! `cli control` | `fuse iscsi→scsi nbd nbs` | `access` | `lun` | `fs` | `device`;
//! `server` alone knows everybody; `shards` are the threads of the block doors.

pub mod access;
pub mod cli;
pub mod control;
pub mod device;
pub mod fs;
pub mod fuse;
pub mod iscsi;
pub mod lun;
pub mod nbd;
pub mod nbs;
pub mod quiesce;
pub mod scsi;
pub mod server;
pub mod shards;
