//! A running server and small helpers.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lunfs::lun::MemoryLun;
use lunfs::nbd::{Export, FixedExports, NbdServer};
use tempfile::TempDir;
use tokio::runtime::Runtime;

pub const MIB: u64 = 1 << 20;

/// A server on a free loopback port and a Unix socket; ends with the test.
pub struct Served {
    pub server: NbdServer,
    pub address: SocketAddr,
    pub socket: PathBuf,
    pub luns: Vec<Arc<MemoryLun>>,
    pub directory: TempDir,
    pub runtime: Runtime,
}

impl Served {
    /// One export `disk` of so many MiB.
    pub fn one(mib: u64) -> Served {
        Served::with(vec![MemoryLun::new("disk", mib * MIB, 512)])
    }

    /// These LUNs, each under its own name.
    pub fn with(luns: Vec<MemoryLun>) -> Served {
        let luns: Vec<_> = luns.into_iter().map(Arc::new).collect();
        let exports = luns.iter().map(|lun| Export {
            name: lunfs::lun::BlockIo::identity(lun.as_ref()).name,
            description: "in memory".to_owned(),
            io: lun.clone(),
            tag: 0,
        });
        Served::exports(exports.collect(), luns.clone())
    }

    /// These exports.
    pub fn exports(exports: Vec<Export>, luns: Vec<Arc<MemoryLun>>) -> Served {
        let server = NbdServer::new(Arc::new(FixedExports::new(exports)), None).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("nbd.sock");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let address = runtime.block_on(async {
            server.listen_unix(&socket).await.unwrap();
            server.listen_tcp("127.0.0.1:0".parse().unwrap()).await.unwrap()
        });
        Served { server, address, socket, luns, directory, runtime }
    }

    pub fn lun(&self) -> &MemoryLun {
        &self.luns[0]
    }

    pub fn tcp(&self, export: &str) -> String {
        format!("nbd://{}/{export}", self.address)
    }

    pub fn unix(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }

    pub fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    pub fn shutdown(&self) -> bool {
        self.runtime.block_on(self.server.shutdown(Duration::from_secs(5)))
    }
}

/// Waits until `done`, for ten seconds at most.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let since = Instant::now();
    while !done() {
        assert!(since.elapsed() < Duration::from_secs(10), "never happened: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A random generator that a seed replays (xorshift64*).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| (self.next() >> 32) as u8).collect()
    }
}

/// The seed of this run: `LUNFS_SEED`, or a fixed one.
pub fn seed() -> u64 {
    let seed = std::env::var("LUNFS_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or(0x1bad_cafe).max(1);
    println!("LUNFS_SEED={seed}");
    seed
}
