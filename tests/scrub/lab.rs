//! Pools on simulated devices, plain and mirrored, and files with known bytes.

use lunfs::device::sim::SimDevice;
use lunfs::device::{Block, BlockDevice};
use lunfs::fs::{
    check, CheckOptions, Clock, FormatOptions, Fs, NewNode, NodeId, OpenOptions, Owner, Redundancy,
    ScrubStatus, Timestamp, VolumeId,
};
use std::sync::Arc;

pub const BLOCK: u64 = 4096;
/// 64 MiB, the smallest device.
pub const DEVICE_BLOCKS: u64 = 16_384;

struct StillClock;

impl Clock for StillClock {
    fn now(&self) -> Timestamp {
        Timestamp(1_000_000_007)
    }
}

pub fn options() -> OpenOptions {
    OpenOptions {
        cache_bytes: 4 << 20,
        clock: Arc::new(StillClock),
        background: false,
        ..OpenOptions::default()
    }
}

pub fn dyns(devices: &[Arc<SimDevice>]) -> Vec<Arc<dyn BlockDevice>> {
    devices.iter().map(|d| d.clone() as Arc<dyn BlockDevice>).collect()
}

pub fn open(devices: &[Arc<SimDevice>]) -> Arc<Fs> {
    Fs::open(dyns(devices), options()).expect("open")
}

fn make(count: usize, redundancy: Redundancy) -> Vec<Arc<SimDevice>> {
    let sim = |i| Arc::new(SimDevice::named(&format!("d{i}"), DEVICE_BLOCKS, i as u64));
    let devices: Vec<Arc<SimDevice>> = (0..count).map(sim).collect();
    let format = FormatOptions {
        pool_id: [7; 16],
        created: Timestamp(1),
        paths: devices.iter().map(|d| d.name()).collect(),
        redundancy,
    };
    Fs::format(&dyns(&devices), &format).expect("format");
    devices
}

/// An empty pool on devices of their own.
pub fn plain(count: usize) -> Vec<Arc<SimDevice>> {
    make(count, Redundancy::None)
}

/// A pool whose every block is on two devices.
pub fn mirrored() -> Vec<Arc<SimDevice>> {
    make(2, Redundancy::Mirror)
}

pub fn read_block(device: &SimDevice, at: u64) -> Box<Block> {
    let mut raw = [Block::zeroed()];
    device.read(at, &mut raw).expect("read");
    let [raw] = raw;
    raw
}

fn put(device: &SimDevice, at: u64, raw: &Block) {
    device.write(at, &[raw]).expect("write");
}

/// What is in a file at a block, by its seed.
pub fn content(seed: u64, block: u64) -> Vec<u8> {
    let word = (seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ block << 20 | 1).to_le_bytes();
    word.iter().copied().cycle().take(BLOCK as usize).collect()
}

/// A file of so many blocks under a name in the ordinary tree.
pub fn make_file(fs: &Arc<Fs>, name: &str, seed: u64, blocks: u64) -> NodeId {
    let owner = Owner { mode: 0o644, uid: 0, gid: 0 };
    let root = NodeId::root(VolumeId::TREE);
    let id = fs.create(root, name.as_bytes(), NewNode::File, owner).expect("create").id;
    let file = fs.open_file(id).expect("open");
    for block in 0..blocks {
        file.write_at(block * BLOCK, &content(seed, block)).expect("write");
    }
    id
}

/// Which of the file's blocks read as they should; the others answered an error. Wrong bytes panic.
pub fn readable(fs: &Arc<Fs>, id: NodeId, seed: u64, blocks: u64) -> Vec<bool> {
    let file = fs.open_file(id).expect("open");
    let one = |block| {
        let mut got = vec![0; BLOCK as usize];
        let ok = file.read_at(block * BLOCK, &mut got).is_ok();
        assert!(!ok || got == content(seed, block), "wrong bytes in block {block}");
        ok
    };
    (0..blocks).map(one).collect()
}

pub fn assert_readable(fs: &Arc<Fs>, id: NodeId, seed: u64, blocks: u64) {
    assert!(readable(fs, id, seed, blocks).iter().all(|ok| *ok), "{id:?}");
}

/// A whole scrub from the start, in steps of so many blocks.
pub fn scrub(fs: &Arc<Fs>, step: u64) -> ScrubStatus {
    assert!(fs.scrub_start().expect("start"));
    while fs.scrub_step(step).expect("step") {}
    let status = fs.scrub_status();
    assert!(!status.running && status.finished.is_some());
    status
}

/// Overwrites a device with garbage from a block on, as far as it holds anything.
pub fn ruin(device: &SimDevice, from: u64) {
    let raw = Block([0xA5; BLOCK as usize]);
    for at in device.stored_blocks().into_iter().filter(|at| *at >= from) {
        put(device, at, &raw);
    }
    device.flush().expect("flush");
}

pub fn assert_sound(devices: &[Arc<SimDevice>]) {
    let report = check(&dyns(devices), CheckOptions { data: true }).expect("check");
    assert_eq!(report.errors, Vec::<String>::new());
}
