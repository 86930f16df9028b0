//! Finding a pool's devices, opening and making pools.
//!
//! Invariant: whoever opens a pool holds the lock of each of its devices ([`FileDevice`] takes it)
//! for as long as the [`OpenPool`] lives; so one process at a time has a pool open.

use super::error::{Error, Message, Result};
use super::find::find_devices;
use super::label::read_label;
use super::report::bytes_text;
use crate::access::Book;
use crate::device::file::{FileDevice, OpenError, OpenMode};
use crate::device::{BlockDevice, BLOCK_BYTES};
use crate::fs::{self, Clock, FormatOptions, Fs, OpenOptions, Redundancy, SystemClock};
use crate::lun::{Catalog, CatalogOptions};
use parking_lot::Mutex;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a command or server waits for a command that has the pool for a moment.
pub const MOMENT_WAIT: Duration = Duration::from_secs(5);
/// How often it looks.
const MOMENT_PAUSE: Duration = Duration::from_millis(20);
/// Smallest device of a pool.
pub const MIN_DEVICE_BYTES: u64 = 64 << 20;

/// A pool that this process has open.
pub struct OpenPool {
    /// The filesystem.
    pub fs: Arc<Fs>,
    /// Its LUNs.
    pub catalog: Arc<Catalog>,
    /// Who may use them.
    pub book: Arc<Book>,
    /// Those of its devices that this process has open.
    pub devices: Mutex<Vec<Arc<FileDevice>>>,
}

/// A pool whose devices this process has locked, but not opened yet.
pub struct LockedPool {
    paths: Vec<PathBuf>,
    devices: Vec<Arc<FileDevice>>,
    degraded: bool,
}

impl LockedPool {
    /// Finds and locks all devices of the pool that `paths` belong to. `degraded`: some may be
    /// missing, where redundancy allows it.
    pub fn lock(paths: &[PathBuf], degraded: bool) -> Result<LockedPool> {
        let paths = find_devices(paths, degraded)?.paths;
        let paths = paths.iter().map(|path| host_path(path)).collect::<Result<Vec<_>>>()?;
        let devices = lock_devices(&paths, OpenMode::default())?;
        Ok(LockedPool { paths, devices, degraded })
    }

    /// As [`LockedPool::lock`]; who has the pool for a moment is waited for, at most so long.
    /// `served` ends the waiting: a server keeps it.
    pub fn lock_patiently(
        paths: &[PathBuf],
        degraded: bool,
        at_most: Duration,
        mut served: impl FnMut() -> bool,
    ) -> Result<LockedPool> {
        let deadline = Instant::now() + at_most;
        loop {
            match LockedPool::lock(paths, degraded) {
                Err(Error::InUse(_)) if Instant::now() < deadline && !served() => {
                    std::thread::sleep(MOMENT_PAUSE);
                }
                other => return other,
            }
        }
    }

    /// Opens and recovers it.
    pub fn open(self, cache_bytes: u64) -> Result<OpenPool> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let options = OpenOptions {
            cache_bytes,
            clock: clock.clone(),
            background: true,
            degraded: self.degraded,
            seed: random_seed()?,
        };
        let what = format!("the pool at {} cannot be opened", names(&self.paths));
        let devices = as_block_devices(&self.devices);
        let fs = Fs::open(devices, options).map_err(|e| Error::fs(what, &e))?;
        let mut catalog_options = CatalogOptions::new(clock.clone());
        catalog_options.location = self.paths.iter().map(|p| p.display().to_string()).collect();
        catalog_options.redundancy = fs.redundancy().to_string();
        let catalog = Catalog::open(fs.clone(), catalog_options)?;
        let book = Book::open(catalog.clone(), clock);
        Ok(OpenPool { fs, catalog, book, devices: Mutex::new(self.devices) })
    }
}

impl OpenPool {
    /// Takes the last consistency point. The locks go with the pool.
    pub fn close(&self) -> Result<()> {
        self.catalog.stop();
        self.fs.close().map_err(|e| Error::fs("the pool was not closed in order", &e))
    }
}

/// The same devices as the filesystem takes them.
pub fn as_block_devices(devices: &[Arc<FileDevice>]) -> Vec<Arc<dyn BlockDevice>> {
    devices.iter().map(|device| device.clone() as Arc<dyn BlockDevice>).collect()
}

/// Opens and locks devices.
pub fn lock_devices(paths: &[PathBuf], mode: OpenMode) -> Result<Vec<Arc<FileDevice>>> {
    let open = |path: &PathBuf| FileDevice::open(path, mode).map(Arc::new).map_err(device_error);
    paths.iter().map(open).collect()
}

/// What a user is told where a device cannot be opened or made.
pub fn device_error(error: OpenError) -> Error {
    let message = match &error {
        OpenError::InUse(path) => {
            return Error::InUse(
                Message::new(format!("the pool at {} is in use", path.display()))
                    .why("another lunfs process, or another program, has it open")
                    .todo("`lunfs stop` ends a server; `lunfs pool list` shows the served pools"),
            );
        }
        OpenError::Denied(path) => Message::new(format!("{} cannot be used", path.display()))
            .why("permission denied")
            .todo("run the command as a user who may read and write there"),
        OpenError::Exists(path) => Message::new(format!("{} exists already", path.display()))
            .why("it may hold data, so it is left as it is")
            .todo("give another path, or remove or rename the file first"),
        OpenError::SizeMissing(path) => {
            Message::new(format!("{} does not exist and needs a size", path.display()))
                .todo("add --size SIZE, for example --size 100G")
        }
        _ => Message::from_lines(&error.to_string()),
    };
    Error::Refused(message)
}

/// A change of a device that the pool refused or failed at.
pub(super) fn device_refused(what: String, error: &fs::Error) -> Error {
    match error {
        fs::Error::Invalid(why) => {
            Message::new(what).why(why).todo("`lunfs pool show` says how each device is").into()
        }
        error => Error::fs(what, error),
    }
}

/// What `pool create` was asked for.
#[derive(Debug, Clone)]
pub struct NewPool {
    /// Files to make, or block devices to take.
    pub paths: Vec<PathBuf>,
    /// Length of each file.
    pub size_bytes: Option<u64>,
    /// What it survives.
    pub redundancy: Redundancy,
}

/// Checks everything that can be checked without making anything; the devices' sizes.
pub fn check_new_pool(new: &NewPool) -> Result<Vec<u64>> {
    if new.paths.len() > fs_layout::MAX_DEVICES {
        let what = format!("{} devices are too many", new.paths.len());
        let why = format!("a pool has at most {}", fs_layout::MAX_DEVICES);
        return Err(Message::new(what).why(why).into());
    }
    if new.redundancy == Redundancy::Mirror && new.paths.len() < 2 {
        return Err(Message::new("a mirror needs at least two devices")
            .why("each block is kept on two of them")
            .todo("give another PATH, or leave --redundancy out")
            .into());
    }
    let mut seen: Vec<PathBuf> = Vec::new();
    let mut sizes = Vec::with_capacity(new.paths.len());
    for path in &new.paths {
        let full = absolute(path)?;
        if seen.contains(&full) {
            return Err(Message::new(format!("{} is named twice", path.display())).into());
        }
        sizes.push(check_new_device(path, new.size_bytes)?);
        seen.push(full);
    }
    Ok(sizes)
}

pub(super) fn check_new_device(path: &Path, size_bytes: Option<u64>) -> Result<u64> {
    let size_bytes = match std::fs::metadata(path) {
        Ok(found) if found.is_file() => {
            return Err(device_error(OpenError::Exists(path.to_path_buf())));
        }
        Ok(_) => check_block_device(path, size_bytes)?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            check_parent(path)?;
            refuse_among_devices(path)?;
            size_bytes.ok_or_else(|| device_error(OpenError::SizeMissing(path.to_path_buf())))?
        }
        Err(e) => return Err(Error::io(format!("{} cannot be used", path.display()), &e)),
    };
    if size_bytes < MIN_DEVICE_BYTES {
        let what = format!("{} is too small for {}", bytes_text(size_bytes), path.display());
        let why = format!("a device of a pool has at least {} MiB", MIN_DEVICE_BYTES >> 20);
        return Err(Message::new(what).why(why).todo("for example --size 10G").into());
    }
    Ok(size_bytes)
}

/// A block device must be free, and must not hold a pool that somebody may want back.
fn check_block_device(path: &Path, size_bytes: Option<u64>) -> Result<u64> {
    let device = FileDevice::open(path, OpenMode::default()).map_err(device_error)?;
    if read_label(path).is_ok() {
        let what = format!("{} holds a pool already", path.display());
        let todo = format!(
            "to give it up: `wipefs -a {0}` or `dd if=/dev/zero of={0} bs=1M count=1`",
            path.display()
        );
        return Err(Message::new(what).why("its label is a lunfs pool's").todo(todo).into());
    }
    Ok(size_bytes.unwrap_or(device.block_count() * BLOCK_BYTES as u64))
}

fn check_parent(path: &Path) -> Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    match std::fs::metadata(parent) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(Message::new(format!("{} is not a directory", parent.display())).into()),
        Err(e) => Err(Error::io(format!("{} cannot be made", path.display()), &e)),
    }
}

/// A name in /dev that is not there is a mistake: a file would take the host's memory. (/dev/shm is
/// for files.)
pub(super) fn refuse_among_devices(path: &Path) -> Result<()> {
    let full = absolute(path)?;
    if !full.starts_with("/dev") || full.starts_with("/dev/shm") {
        return Ok(());
    }
    Err(Message::new(format!("there is no device {}", path.display()))
        .why("files of a pool are not made in /dev")
        .todo("`lsblk` lists the block devices")
        .into())
}

/// Where a path leads, also where nothing is there yet.
pub(super) fn absolute(path: &Path) -> Result<PathBuf> {
    let why = |e: std::io::Error| Error::io(format!("{} cannot be used", path.display()), &e);
    let full = std::path::absolute(path).map_err(why)?;
    if let Ok(found) = full.canonicalize() {
        return Ok(found);
    }
    let parent = full.parent().and_then(|parent| parent.canonicalize().ok());
    Ok(match (parent, full.file_name()) {
        (Some(parent), Some(name)) => parent.join(name),
        _ => full,
    })
}

/// A path that means the same to every process. Names of block devices stay as they are given: the
/// host's links to them outlast a restart, what they lead to does not.
fn host_path(path: &Path) -> Result<PathBuf> {
    match path.starts_with("/dev") {
        true => Ok(path.to_path_buf()),
        false => absolute(path),
    }
}

/// Makes a pool; its id. Files that were made are removed again where it fails.
pub fn create(new: &NewPool) -> Result<[u8; 16]> {
    check_new_pool(new)?;
    let mut made = Vec::new();
    let outcome = create_on(new, &mut made);
    if outcome.is_err() {
        for path in &made {
            // The reason to tell is the first one; what is left behind is the lesser trouble.
            let _ = std::fs::remove_file(path);
        }
    }
    outcome
}

fn create_on(new: &NewPool, made: &mut Vec<PathBuf>) -> Result<[u8; 16]> {
    let (mut devices, mut paths) = (Vec::new(), Vec::new());
    for path in &new.paths {
        let is_new = !path.exists();
        let device = FileDevice::create(path, new.size_bytes, false).map_err(device_error)?;
        if is_new {
            made.push(path.clone());
        }
        devices.push(Arc::new(device));
        paths.push(absolute(path)?.display().to_string());
    }
    let pool_id = random_id()?;
    let options =
        FormatOptions { pool_id, created: SystemClock.now(), paths, redundancy: new.redundancy };
    Fs::format(&as_block_devices(&devices), &options)
        .map_err(|e| Error::fs("the pool was not made", &e))?;
    Ok(pool_id)
}

fn random_seed() -> Result<u64> {
    let mut seed = [0; 8];
    seed.copy_from_slice(&random_id()?[..8]);
    Ok(u64::from_le_bytes(seed))
}

pub(super) fn random_id() -> Result<[u8; 16]> {
    let mut id = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut id))
        .map_err(|e| Error::io("/dev/urandom cannot be read", &e))?;
    Ok(id)
}

/// Paths as a message names them.
pub fn names(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}
