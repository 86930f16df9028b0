//! `pool add`, `remove` and `grow`: the devices of an open pool change, and the command stays until
//! what they hold is where it belongs.

use super::engine::Session;
use super::error::{Error, Message, Result};
use super::pool::{self, device_error};
use super::report::{self, bytes_text};
use super::transfer::Progress;
use crate::device::file::FileDevice;
use crate::device::BlockDevice;
use crate::fs::{self, DeviceChange, DevicePlan, DeviceStatus};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How often a command that waits for the server looks how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Segments copied between two looks at the client where this process does the work: 32 MiB.
const STEP_SEGMENTS: u64 = 16;

impl Session<'_> {
    pub(super) fn pool_add(&self, path: &str, size_bytes: Option<u64>) -> Result<Value> {
        let path = Path::new(path);
        let size_bytes = pool::check_new_device(path, size_bytes)?;
        let what = || format!("{} is not added", path.display());
        let plan = self.plan(DeviceChange::Add { size_bytes }, &what)?;
        if self.dry_run {
            return Ok(would(format!("add {}", path.display()), &plan));
        }
        let is_new = !path.exists();
        let outcome = self.add(path, size_bytes);
        if outcome.is_err() && is_new {
            // The reason to tell is the first one; what is left behind is the lesser trouble.
            let _ = std::fs::remove_file(path);
        }
        outcome.map_err(|e| refused(what(), &e))?;
        self.until_balanced()
    }

    fn add(&self, path: &Path, size_bytes: u64) -> std::result::Result<(), AddError> {
        let created = FileDevice::create(path, Some(size_bytes), false);
        let device = Arc::new(created.map_err(device_error)?);
        let (name, id) = (device.name(), pool::random_id()?);
        self.engine.pool.fs.add_device(device.clone(), name, id)?;
        self.engine.pool.devices.lock().push(device);
        Ok(())
    }

    pub(super) fn pool_remove(&self, path: &str) -> Result<Value> {
        let slot = self.device(path)?.slot;
        let what = || format!("{path} is not removed");
        let plan = self.plan(DeviceChange::Remove { slot }, &what)?;
        if self.dry_run {
            return Ok(would(format!("remove {path}"), &plan));
        }
        let begun = self.engine.pool.fs.remove_device(slot);
        begun.map_err(|e| refused(what(), &e.into()))?;
        let shown = self.until_balanced();
        if self.device(path).is_err() {
            // Its lock goes with it.
            self.engine.pool.devices.lock().retain(|device| !is_at(path, device.path()));
        }
        shown
    }

    pub(super) fn pool_grow(&self, path: &str, size_bytes: Option<u64>) -> Result<Value> {
        let slot = self.device(path)?.slot;
        let devices = self.engine.pool.devices.lock().clone();
        let device = devices.into_iter().find(|device| is_at(path, device.path()));
        let device = device.ok_or_else(|| unknown(path))?;
        let what = || format!("{path} was not grown");
        if self.dry_run {
            let now = device.size_on_host().map_err(|e| Error::io(what(), &e))?;
            let size_bytes = size_bytes.unwrap_or(now);
            let plan = self.plan(DeviceChange::Grow { slot, size_bytes }, &what)?;
            return Ok(would(format!("grow {path} to {}", bytes_text(size_bytes)), &plan));
        }
        let fs = &self.engine.pool.fs;
        let before = fs.stats().size_bytes;
        device.grow(size_bytes).map_err(|e| Error::io(what(), &e))?;
        fs.take_over_sizes().map_err(|e| Error::fs(what(), &e))?;
        let mut shown = self.until_balanced()?;
        shown["gained_bytes"] = fs.stats().size_bytes.saturating_sub(before).into();
        Ok(shown)
    }

    /// The device of the pool at a path.
    fn device(&self, path: &str) -> Result<DeviceStatus> {
        let mut all = self.engine.pool.fs.devices().into_iter();
        all.find(|device| is_at(path, Path::new(&device.path))).ok_or_else(|| unknown(path))
    }

    fn plan(&self, change: DeviceChange, what: &dyn Fn() -> String) -> Result<DevicePlan> {
        let plan = self.engine.pool.fs.plan_change(change);
        plan.map_err(|e| refused(what(), &e.into()))
    }

    /// Until everything is where it belongs; the pool then. Where this process has the pool for
    /// itself it does the work, as fast as it can; a server has its own pace.
    fn until_balanced(&self) -> Result<Value> {
        let fs = &self.engine.pool.fs;
        let failed = |e| Error::fs("the pool's devices are not as they should be yet", &e);
        let progress = Progress::new(self);
        loop {
            let now = match self.engine.stop {
                Some(_) => fs.rebalance_status().map_err(failed)?,
                None => fs.rebalance_step(STEP_SEGMENTS).map_err(failed)?,
            };
            if now.is_waiting {
                return Err(Message::new("the rest waits until all devices are in order")
                    .why("one is missing or being filled")
                    .todo("`lunfs pool show` says which")
                    .into());
            }
            // The background may speak of a time before this command.
            if now.is_done && fs.rebalance_step(1).map_err(failed)?.is_done {
                return Ok(report::pool(&self.engine.pool));
            }
            if !progress.report(now.moved_bytes, now.to_move_bytes) {
                let todo = "`lunfs pool show` says how far it is";
                let gone = Message::new("it goes on without this command").todo(todo);
                return Err(progress.explain(gone.into()));
            }
            if self.engine.stop.is_some() {
                std::thread::sleep(LOOK_EVERY);
            }
        }
    }
}

fn is_at(path: &str, own: &Path) -> bool {
    let full = |path: &Path| std::fs::canonicalize(path).ok();
    own == Path::new(path) || full(own).is_some_and(|own| Some(own) == full(Path::new(path)))
}

fn unknown(path: &str) -> Error {
    let what = format!("{path} is not a device of this pool");
    Message::new(what).todo("`lunfs pool show` lists its devices").into()
}

/// What making and adding a device can fail with.
enum AddError {
    Control(Error),
    Fs(fs::Error),
}

impl From<Error> for AddError {
    fn from(e: Error) -> AddError {
        AddError::Control(e)
    }
}

impl From<fs::Error> for AddError {
    fn from(e: fs::Error) -> AddError {
        AddError::Fs(e)
    }
}

fn refused(what: String, error: &AddError) -> Error {
    let message = Message::new(what);
    match error {
        AddError::Control(e) => Error::Refused(e.message()),
        AddError::Fs(fs::Error::NoRoomElsewhere { needed_bytes, free_bytes }) => message
            .why(format!(
                "{} need another place, and there is one for {} only",
                bytes_text(*needed_bytes),
                bytes_text(*free_bytes)
            ))
            .todo("delete something, or add another device first")
            .into(),
        AddError::Fs(fs::Error::Busy) => message
            .why("a device of the pool is missing or being filled")
            .todo("bring it back or replace it first; `lunfs pool show` says which")
            .into(),
        AddError::Fs(e) => pool::device_refused(message.what, e),
    }
}

fn would(text: String, plan: &DevicePlan) -> Value {
    let segments = plan.moved_bytes >> 21;
    let moved = match plan.moved_bytes {
        0 => "nothing is moved".to_owned(),
        bytes => format!("up to {} are moved", bytes_text(bytes)),
    };
    let text = format!("{text}: the pool will have {}; {moved}", bytes_text(plan.size_bytes));
    let mut value = report::would(text);
    value["size_bytes"] = plan.size_bytes.into();
    value["moved_segments"] = segments.into();
    value["moved_bytes"] = plan.moved_bytes.into();
    value
}
