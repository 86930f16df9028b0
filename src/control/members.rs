//! `pool offline`, `pool online` and `pool replace`: the last two stay until the device is filled.

use super::engine::Session;
use super::error::{Error, Message, Result};
use super::label::read_label;
use super::pool::{absolute, device_error, device_refused, refuse_among_devices};
use super::report;
use super::transfer::Progress;
use crate::device::file::{FileDevice, OpenError, OpenMode};
use crate::device::BlockDevice;
use crate::fs::DeviceStatus;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a command that waits looks how far the pool is.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Blocks between two looks where this process has the pool for itself: 16 MiB.
const STEP_BLOCKS: u64 = 4096;
/// How long the pool may take to let go of a device that it does not use any more.
const RELEASE_WAIT: Duration = Duration::from_secs(2);

impl Session<'_> {
    pub(super) fn pool_offline(&self, path: &str) -> Result<Value> {
        let device = self.member(path)?;
        if self.dry_run {
            return Ok(report::would(format!("go on without {}", device.path)));
        }
        let fs = &self.engine.pool.fs;
        let failed = |e| device_refused(format!("{} was not taken offline", device.path), &e);
        fs.offline(device.slot).map_err(failed)?;
        self.let_go(Path::new(&device.path));
        Ok(report::pool(&self.engine.pool))
    }

    pub(super) fn pool_online(&self, path: &str) -> Result<Value> {
        let device = self.member(path)?;
        if device.state != "missing" {
            let what = format!("{path} is not missing: it is {}", device.state);
            let todo = "a device that others miss is taken back; `lunfs pool show` lists them";
            return Err(Message::new(what).todo(todo).into());
        }
        // It may have been moved: the path that was given is where it is, if it is there.
        let at = if Path::new(path).exists() { path } else { &device.path };
        read_label(Path::new(at)).map_err(|e| blank(at, e))?;
        if self.dry_run {
            return Ok(report::would(format!("take {at} back and bring it up to date")));
        }
        let opened = self.open_again(Path::new(at))?;
        let handle: Arc<dyn BlockDevice> = opened.clone();
        let failed = |e| device_refused(format!("{at} was not taken back"), &e);
        let slot = self.engine.pool.fs.online(&handle).map_err(failed)?;
        self.engine.pool.devices.lock().push(opened);
        self.until_filled(slot)
    }

    pub(super) fn pool_replace(&self, path: &str, new: &str) -> Result<Value> {
        let old = self.member(path)?;
        let new = Path::new(new);
        if new.is_file() {
            return Err(device_error(OpenError::Exists(new.to_path_buf())));
        }
        if self.dry_run {
            let text = format!("put {} in the place of {}", new.display(), old.path);
            return Ok(report::would(text));
        }
        let is_new = !new.exists();
        if is_new {
            refuse_among_devices(new)?;
        }
        let size_bytes = is_new.then_some(old.size_bytes);
        let created = FileDevice::create(new, size_bytes, false).map_err(device_error)?;
        let created = Arc::new(created);
        let handle: Arc<dyn BlockDevice> = created.clone();
        let full = absolute(new)?.display().to_string();
        let slot = match self.engine.pool.fs.replace(old.slot, &handle, &full) {
            Ok(slot) => slot,
            Err(e) => {
                if is_new && !self.is_used(&full) {
                    let _ = std::fs::remove_file(new);
                }
                return Err(device_refused(format!("{} was not replaced", old.path), &e));
            }
        };
        // The new one may stand at the old one's path.
        self.engine.pool.devices.lock().push(created.clone());
        let shown = self.until_filled(slot)?;
        let old_path = Path::new(&old.path);
        let mut open = self.engine.pool.devices.lock();
        open.retain(|d| d.path() != old_path || Arc::ptr_eq(d, &created));
        drop(open);
        Ok(shown)
    }

    fn is_used(&self, path: &str) -> bool {
        self.engine.pool.fs.devices().iter().any(|d| d.path == path)
    }

    /// The device of the pool that a path names: as it is shown, or by the label there.
    fn member(&self, path: &str) -> Result<DeviceStatus> {
        let all = self.engine.pool.fs.devices();
        let full = |p: &str| absolute(Path::new(p)).unwrap_or_else(|_| PathBuf::from(p));
        let wanted = full(path);
        let named = all.iter().find(|d| d.path == path || full(&d.path) == wanted).cloned();
        let by_label = || {
            let own = read_label(Path::new(path)).ok()?;
            let id = own.devices.get(usize::from(own.index))?.id;
            let is_it = own.pool_id == self.engine.pool.fs.pool_id();
            all.iter().find(|d| is_it && d.id == id).cloned()
        };
        named.or_else(by_label).ok_or_else(|| {
            Message::new(format!("{path} is not a device of this pool"))
                .todo("`lunfs pool show` lists its devices")
                .into()
        })
    }

    /// This process' handle of a device that the pool does not use any more goes, and its lock.
    fn let_go(&self, path: &Path) {
        self.engine.pool.devices.lock().retain(|d| d.path() != path);
    }

    /// Opens a device that this process may have open still: the lock is on the open file.
    fn open_again(&self, path: &Path) -> Result<Arc<FileDevice>> {
        let full = absolute(path)?;
        let same = |d: &Arc<FileDevice>| absolute(d.path()).is_ok_and(|p| p == full);
        self.engine.pool.devices.lock().retain(|d| !same(d));
        let deadline = Instant::now() + RELEASE_WAIT;
        loop {
            match FileDevice::open(path, OpenMode::default()) {
                Err(OpenError::InUse(_)) if Instant::now() < deadline => {
                    std::thread::sleep(LOOK_EVERY);
                }
                other => return other.map(Arc::new).map_err(device_error),
            }
        }
    }

    /// Until the device is normal. Where this process has the pool for itself it does the work, as
    /// fast as it can; a server has its own pace.
    fn until_filled(&self, slot: u16) -> Result<Value> {
        let fs = &self.engine.pool.fs;
        let progress = Progress::new(self);
        loop {
            let all = fs.devices();
            let device = all.iter().find(|d| d.slot == slot);
            let state = device.map_or("missing", |d| d.state);
            let (done, of) = device.and_then(|d| d.progress).unwrap_or((0, 0));
            let replacing = all.iter().any(|d| d.state == "replace");
            match state {
                "normal" if !replacing && fs.is_settled() => {
                    return Ok(report::pool(&self.engine.pool));
                }
                "missing" => {
                    let why = fs.device_events().pop().unwrap_or_default();
                    return Err(Message::new("the device failed meanwhile").why(why).into());
                }
                _ => {}
            }
            if !progress.report(done, of) {
                let gone: Error = Message::new("the server goes on without this command").into();
                return Err(progress.explain(gone));
            }
            match self.engine.stop.is_some() {
                true => std::thread::sleep(LOOK_EVERY),
                false => {
                    let step = fs.regenerate_step(STEP_BLOCKS);
                    step.map_err(|e| Error::fs("the device cannot be filled", &e))?;
                }
            }
            if let Some(why) = fs.stats().latched {
                return Err(Message::new("the device cannot be filled").why(why).into());
            }
        }
    }
}

fn blank(path: &str, error: Error) -> Error {
    Message::new(format!("{path} cannot be taken back"))
        .why(error.message().in_one_line())
        .todo("remove it, and fill a new one: `lunfs pool replace POOL DEVICE NEW`")
        .into()
}
