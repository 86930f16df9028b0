//! `lunfs pool check` and `dump`: on a pool that nobody serves, opened for reading only.

use super::args::Common;
use crate::control::pool::{find_devices, lock_devices};
use crate::control::{Message, Result};
use crate::device::file::OpenMode;
use std::path::Path;
use std::process::ExitCode;

/// Verifies a pool; exit code 1 where something is wrong.
pub fn check(path: &Path, _common: &Common) -> Result<ExitCode> {
    let (_, found) = find_devices(&[path.to_path_buf()])?;
    let _devices = lock_devices(&found, OpenMode { read_only: true, buffered: false })?;
    Err(Message::new("pool check is not there yet").into())
}

/// Shows what is on disk.
pub fn dump(path: &Path, _object: Option<&str>, _common: &Common) -> Result<()> {
    let (_, found) = find_devices(&[path.to_path_buf()])?;
    let _devices = lock_devices(&found, OpenMode { read_only: true, buffered: false })?;
    Err(Message::new("pool dump is not there yet").into())
}
