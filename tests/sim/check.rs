//! The offline check of a pool, as the simulator uses it.

use lunfs::device::BlockDevice;
use lunfs::fs::CheckOptions;
use std::sync::Arc;

/// Lines of a report that a failure tells.
const TOLD: usize = 6;

/// Recounts a pool over `devices`; what it found, if anything.
pub fn check(devices: &[Arc<dyn BlockDevice>]) -> Result<(), String> {
    let report = lunfs::fs::check(devices, CheckOptions { data: true });
    let mut errors = report.map_err(|e| format!("check: {e}"))?.errors;
    let count = errors.len();
    errors.truncate(TOLD);
    match count {
        0 => Ok(()),
        _ => Err(format!("check found {count} errors: {}", errors.join("; "))),
    }
}
