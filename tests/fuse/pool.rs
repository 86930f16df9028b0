//! A pool in memory, mounted.

use lunfs::device::sim::SimDevice;
use lunfs::device::BlockDevice;
use lunfs::fs::{Clock, FormatOptions, Fs, OpenOptions, SystemClock, Timestamp};
use lunfs::fuse::{Mount, MountOptions, Stopped};
use lunfs::lun::{AttachRequest, Attachment, Catalog, CatalogOptions, CreateLun, Lun};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// Bytes of a pool's device.
const POOL_BYTES: u64 = 256 << 20;
/// How long a block write waits for a file writer in tests.
pub const FILE_WAIT: Duration = Duration::from_millis(100);

/// A mounted pool; dropping it unmounts.
pub struct Pool {
    // Dropped first: unmounted before the directory goes.
    mount: Option<Mount>,
    pub catalog: Arc<Catalog>,
    pub fs: Arc<Fs>,
    device: Arc<dyn BlockDevice>,
    dir: TempDir,
}

impl Pool {
    /// Makes and mounts one; `None` where nothing can be mounted.
    pub fn new() -> Option<Pool> {
        Pool::with_clocks(Arc::new(SystemClock), Arc::new(SystemClock))
    }

    /// The same; one clock is the filesystem's, the other the mount's.
    pub fn with_clocks(fs_clock: Arc<dyn Clock>, mount_clock: Arc<dyn Clock>) -> Option<Pool> {
        if !can_mount() {
            eprintln!("skipped: mounting needs root and /dev/fuse");
            return None;
        }
        let blocks = POOL_BYTES / lunfs::device::BLOCK_BYTES as u64;
        let device: Arc<dyn BlockDevice> = Arc::new(SimDevice::new(blocks, 1));
        let options = FormatOptions {
            pool_id: *b"a pool in memory",
            created: Timestamp(0),
            paths: vec!["memory".into()],
            redundancy: Default::default(),
        };
        Fs::format(std::slice::from_ref(&device), &options).expect("format");
        let (fs, catalog) = open(&device, fs_clock);
        let dir = tempfile::tempdir().expect("directory");
        let options = MountOptions::new(mount_clock);
        let mount = Some(Mount::start(Arc::clone(&catalog), dir.path(), &options).expect("mount"));
        Some(Pool { mount, catalog, fs, device, dir })
    }

    /// A path in the mount.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Stops the server and starts it again on what the device holds.
    pub fn restart(&mut self) {
        assert_eq!(self.unmount(), Stopped::Clean);
        self.fs.close().expect("close");
        self.open_again();
    }

    /// Opens what the device holds, as after a crash, and mounts it.
    pub fn open_again(&mut self) {
        (self.fs, self.catalog) = open(&self.device, Arc::new(SystemClock));
        self.mount = Some(start(&self.catalog, self.dir.path()));
    }

    /// Unmounts.
    pub fn unmount(&mut self) -> Stopped {
        self.mount.take().expect("mounted").stop().expect("unmount")
    }

    /// The mount.
    pub fn mount(&self) -> &Mount {
        self.mount.as_ref().expect("mounted")
    }

    /// Makes a LUN as the command line does.
    pub fn lun(&self, name: &str, size_bytes: u64) -> Arc<Lun> {
        let request = CreateLun { size_bytes, ..CreateLun::default() };
        self.catalog.create(name, &request).expect("LUN")
    }
}

/// A block client of a LUN.
pub fn attach(lun: &Arc<Lun>) -> Arc<Attachment> {
    let request = AttachRequest {
        door: "iscsi",
        client: "iqn.2026-11.test:client".into(),
        peer: "127.0.0.1:1".into(),
        writable: true,
    };
    lun.attach(request).expect("login")
}

fn open(device: &Arc<dyn BlockDevice>, clock: Arc<dyn Clock>) -> (Arc<Fs>, Arc<Catalog>) {
    let options = OpenOptions {
        cache_bytes: 64 << 20,
        clock: Arc::clone(&clock),
        background: true,
        ..OpenOptions::default()
    };
    let fs = Fs::open(vec![Arc::clone(device)], options).expect("open");
    let mut options = CatalogOptions::new(clock);
    options.timing.file_wait = FILE_WAIT;
    let catalog = Catalog::open(Arc::clone(&fs), options).expect("catalog");
    (fs, catalog)
}

/// Mounts a catalog.
pub fn start(catalog: &Arc<Catalog>, dir: &Path) -> Mount {
    let options = MountOptions::new(Arc::new(SystemClock));
    Mount::start(Arc::clone(catalog), dir, &options).expect("mount")
}

/// Whether this process may mount.
pub fn can_mount() -> bool {
    rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists()
}

/// This test program again, running the one test `name` with `argument` in `LUNFS_CHILD`: what must
/// not run in the process that serves the mount, or must be killed.
pub fn child(name: &str, argument: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", name, "--ignored", "--nocapture"]).env("LUNFS_CHILD", argument);
    command
}

/// What [`child`] was given; `None` in an ordinary run.
pub fn child_argument() -> Option<PathBuf> {
    std::env::var_os("LUNFS_CHILD").map(PathBuf::from)
}

/// The errno of a failed call.
pub fn errno<T: std::fmt::Debug, E: Into<std::io::Error>>(result: Result<T, E>) -> i32 {
    let error: std::io::Error = result.expect_err("it should fail").into();
    error.raw_os_error().unwrap_or(0)
}
