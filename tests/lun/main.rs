//! The LUN layer over a real pool in one file.

mod access;
mod atomic;
mod catalog;
mod crash;
mod disk;
mod kept;
mod lease;
mod pool;
mod rot;
mod scsi;
mod settings;
mod snapshots;
mod transfer;
