//! The offline check of a pool, as the simulator uses it.

use lunfs::device::BlockDevice;
use lunfs::fs::{check as recount, CheckOptions};
use std::sync::Arc;

/// Recounts a pool over `devices`; what it found, if anything.
pub fn check(devices: &[Arc<dyn BlockDevice>]) -> Result<(), String> {
    let report = recount(devices, CheckOptions { data: true }).map_err(|e| e.to_string())?;
    match report.errors.first() {
        None => Ok(()),
        Some(first) => Err(format!("{} errors, the first: {first}", report.errors.len())),
    }
}
