//! A pool on a simulated device, for tests of snapshots and clones.

// Not each of the programs that share it uses all of it.
#![allow(dead_code)]

use lunfs::device::sim::SimDevice;
use lunfs::device::{BlockDevice, BLOCK_BYTES};
use lunfs::fs::{
    CheckOptions, Clock, File, FormatOptions, Fs, NewNode, NodeId, OpenOptions, Owner, Redundancy,
    Report, Timestamp, VolumeId,
};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::Arc;

pub const OWNER: Owner = Owner { mode: 0o644, uid: 1, gid: 2 };
pub const BS: u64 = BLOCK_BYTES as u64;
pub const MIB: u64 = 1 << 20;

#[derive(Default)]
pub struct TestClock(pub AtomicI64);

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }
}

pub struct Lab {
    pub device: Arc<SimDevice>,
    pub clock: Arc<TestClock>,
    pub fs: Arc<Fs>,
}

pub fn mount(device: &Arc<SimDevice>, clock: &Arc<TestClock>, cache_bytes: u64) -> Arc<Fs> {
    let options = OpenOptions { cache_bytes, clock: clock.clone(), ..OpenOptions::default() };
    let device: Arc<dyn BlockDevice> = device.clone();
    Fs::open(vec![device], options).unwrap()
}

impl Lab {
    pub fn new(blocks: u64) -> Lab {
        let device = Arc::new(SimDevice::new(blocks, 1));
        let one: Arc<dyn BlockDevice> = device.clone();
        let format = FormatOptions {
            pool_id: [3; 16],
            created: Timestamp(1),
            paths: vec!["a".into()],
            redundancy: Redundancy::None,
        };
        Fs::format(&[one], &format).unwrap();
        let clock = Arc::new(TestClock::default());
        let fs = mount(&device, &clock, 64 * MIB);
        Lab { device, clock, fs }
    }

    pub fn volume(&self, name: &str) -> (VolumeId, File) {
        let v = self.fs.volume_create(name, OWNER).unwrap();
        let attr = self.fs.create(NodeId::root(v), b"data", NewNode::File, OWNER).unwrap();
        (v, self.fs.open_file(attr.id).unwrap())
    }

    pub fn open(&self, v: VolumeId) -> File {
        let attr = self.fs.lookup(NodeId::root(v), b"data").unwrap();
        self.fs.open_file(attr.id).unwrap()
    }

    pub fn snapshot(&self, v: VolumeId, name: &str) -> VolumeId {
        self.fs.snapshot_create(&[(v, name)], false).unwrap()[0]
    }

    pub fn drain(&self) {
        while self.fs.maintain().unwrap() {}
    }

    /// Without any consistency point, as after a power cut.
    pub fn crash(self) -> Lab {
        self.device.cut_power();
        drop(self.fs);
        self.device.crash(7);
        check(&self.device);
        let fs = mount(&self.device, &self.clock, 64 * MIB);
        Lab { device: self.device, clock: self.clock, fs }
    }

    pub fn check(&self) {
        check(&self.device);
    }

    /// What a check finds, which must be nothing wrong.
    pub fn report(&self) -> Report {
        report(&self.device)
    }

    pub fn used(&self) -> u64 {
        self.drain();
        self.fs.stats().used_bytes / BS
    }
}

pub fn check(device: &Arc<SimDevice>) {
    report(device);
}

pub fn report(device: &Arc<SimDevice>) -> Report {
    let device: Arc<dyn BlockDevice> = device.clone();
    let report = lunfs::fs::check(&[device], CheckOptions { data: true }).unwrap();
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    report
}

pub fn fill(file: &File, first: u64, count: u64, byte: u8) {
    file.write_at(first * BS, &vec![byte; (count * BS) as usize]).unwrap();
}

pub fn byte_at(file: &File, block: u64) -> u8 {
    let mut out = [0; 1];
    file.read_at(block * BS, &mut out).unwrap();
    out[0]
}
