//! A pool in a temporary file with a catalog over it.

use lunfs::device::file::{FileDevice, OpenMode};
use lunfs::device::BlockDevice;
use lunfs::fs::{check, CheckOptions, FormatOptions, Fs, OpenOptions, SystemClock, Timestamp};
use lunfs::lun::{
    AttachRequest, Attachment, Catalog, CatalogOptions, CreateLun, DataFile, LeaseTiming, Lun,
    OpenIntent,
};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;

pub struct Pool {
    dir: Option<TempDir>,
    device: Arc<FileDevice>,
    pub fs: Arc<Fs>,
    pub catalog: Arc<Catalog>,
}

/// Lease times that a test need not wait long for.
pub fn quick() -> LeaseTiming {
    LeaseTiming { file_wait: Duration::from_millis(40), lost_grace: Duration::from_millis(700) }
}

impl Pool {
    pub fn new() -> Pool {
        Pool::sized(256 * MIB)
    }

    pub fn sized(size_bytes: u64) -> Pool {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("pool");
        let device = Arc::new(FileDevice::create(&path, Some(size_bytes), false).unwrap());
        let devices: [Arc<dyn BlockDevice>; 1] = [device.clone()];
        let options = FormatOptions {
            pool_id: [7; 16],
            created: Timestamp(1),
            paths: vec![path.display().to_string()],
            redundancy: Default::default(),
        };
        Fs::format(&devices, &options).unwrap();
        Pool::open(dir, device)
    }

    fn open(dir: TempDir, device: Arc<FileDevice>) -> Pool {
        let fs = open_fs(device.clone());
        let catalog = open_catalog(fs.clone());
        Pool { dir: Some(dir), device, fs, catalog }
    }

    /// Closes it and opens it again. Nothing of it may be held by the test.
    pub fn reopen(mut self) -> Pool {
        let dir = self.dir.take().unwrap();
        self.fs.close().unwrap();
        drop(self);
        let device = FileDevice::open(&dir.path().join("pool"), OpenMode::default()).unwrap();
        Pool::open(dir, Arc::new(device))
    }

    pub fn lun(&self, name: &str, size_bytes: u64) -> Arc<Lun> {
        self.catalog.create(name, &sized(size_bytes)).unwrap()
    }

    pub fn scratch(&self, name: &str) -> PathBuf {
        self.dir.as_ref().unwrap().path().join(name)
    }
}

/// Every test ends with a check of its pool.
impl Drop for Pool {
    fn drop(&mut self) {
        if self.dir.is_some() && !std::thread::panicking() {
            self.fs.close().unwrap();
            sound(self.device.clone());
        }
    }
}

/// Recounts a closed pool.
pub fn sound(device: Arc<dyn BlockDevice>) {
    let report = check(&[device], CheckOptions { data: true }).unwrap();
    assert!(report.errors.is_empty(), "{report:?}");
}

fn open_fs(device: Arc<FileDevice>) -> Arc<Fs> {
    let options = OpenOptions {
        cache_bytes: 32 * MIB,
        clock: Arc::new(SystemClock),
        background: true,
        ..OpenOptions::default()
    };
    Fs::open(vec![device], options).unwrap()
}

pub fn options() -> CatalogOptions {
    let mut options = CatalogOptions::new(Arc::new(SystemClock));
    options.timing = quick();
    options.location = vec!["pool".into()];
    options
}

pub fn open_catalog(fs: Arc<Fs>) -> Arc<Catalog> {
    Catalog::open(fs, options()).unwrap()
}

pub fn sized(size_bytes: u64) -> CreateLun {
    CreateLun { size_bytes, ..CreateLun::default() }
}

pub fn request(client: &str) -> AttachRequest {
    AttachRequest {
        door: "iscsi",
        client: client.into(),
        peer: "127.0.0.1:40000".into(),
        writable: true,
    }
}

pub fn login(lun: &Arc<Lun>, client: &str) -> Arc<Attachment> {
    lun.attach(request(client)).unwrap()
}

pub const READ: OpenIntent = OpenIntent { read: true, write: false, truncate: false };
pub const WRITE_ONLY: OpenIntent = OpenIntent { read: false, write: true, truncate: false };
pub const READ_WRITE: OpenIntent = OpenIntent { read: true, write: true, truncate: false };
pub const TRUNCATE: OpenIntent = OpenIntent { read: false, write: true, truncate: true };

pub fn open(lun: &Arc<Lun>, intent: OpenIntent) -> DataFile {
    lun.open_file(intent).unwrap()
}

/// Events of the log, oldest first.
pub fn events(lun: &Lun) -> Vec<serde_json::Value> {
    let lines = lun.read_log().unwrap();
    lines.iter().map(|line| serde_json::from_str(&line.text).unwrap()).collect()
}

/// Whether the log has such an event whose text holds `words`.
pub fn logged(lun: &Lun, event: &str, words: &str) -> bool {
    events(lun).iter().any(|e| e["event"] == event && e.to_string().contains(words))
}

/// Bytes that look random and are the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}
