//! A small mirrored pool on simulated devices, and a workload whose every state is known.

use lunfs::device::sim::{IoEvent, SimDevice};
use lunfs::device::{Block, BlockDevice};
use lunfs::fs::{
    check, CheckOptions, Clock, Error, File, FormatOptions, Fs, NewNode, NodeId, OpenOptions,
    Owner, Redundancy, Result, Timestamp, VolumeId,
};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::Arc;

pub const BLOCK: usize = 4096;
/// 96 MiB.
pub const DEVICE_BLOCKS: u64 = 24_576;
/// Blocks of the file that the workload writes.
const FILE_BLOCKS: usize = 40;
/// Steps of the workload.
pub const STEPS: u64 = 12;

pub type Sims = Vec<Arc<SimDevice>>;

struct StillClock;

impl Clock for StillClock {
    fn now(&self) -> Timestamp {
        Timestamp(1)
    }
}

pub fn options() -> OpenOptions {
    OpenOptions { cache_bytes: 4 << 20, clock: Arc::new(StillClock), ..OpenOptions::default() }
}

pub fn degraded(seed: u64) -> OpenOptions {
    OpenOptions { degraded: true, seed, ..options() }
}

pub fn handles(sims: &[Arc<SimDevice>]) -> Vec<Arc<dyn BlockDevice>> {
    sims.iter().map(|s| s.clone() as Arc<dyn BlockDevice>).collect()
}

pub fn open(sims: &[Arc<SimDevice>]) -> Result<Arc<Fs>> {
    Fs::open(handles(sims), options())
}

/// Fresh devices, named a, b, c ….
pub fn devices(count: u8) -> Sims {
    let named = |i: u8| {
        let name = char::from(b'a' + i).to_string();
        Arc::new(SimDevice::named(&name, DEVICE_BLOCKS, u64::from(i) + 1))
    };
    (0..count).map(named).collect()
}

pub fn pool_of(count: u8, redundancy: Redundancy) -> Sims {
    let sims = devices(count);
    let paths = sims.iter().map(|s| format!("/dev/{}", s.name())).collect();
    let format = FormatOptions { pool_id: [7; 16], created: Timestamp(1), paths, redundancy };
    Fs::format(&handles(&sims), &format).expect("format");
    sims
}

pub fn mirror() -> Sims {
    pool_of(2, Redundancy::Mirror)
}

/// The same devices as they would be after a power cut.
pub fn crashed(sims: &[Arc<SimDevice>], seed: u64) -> Sims {
    sims.iter().zip(seed..).map(|(s, seed)| Arc::new(s.after_crash(seed))).collect()
}

/// What the file holds after `step` steps.
pub fn content(step: u64) -> Vec<u8> {
    let mut all = vec![0; FILE_BLOCKS * BLOCK];
    for s in 1..=step {
        let (at, len) = range(s);
        for (i, b) in all[at..at + len].iter_mut().enumerate() {
            *b = (s * 37 + (i / 512) as u64) as u8;
        }
    }
    all
}

/// What step `s` writes: first byte, length.
fn range(s: u64) -> (usize, usize) {
    let first = (s as usize * 7) % (FILE_BLOCKS - 9);
    (first * BLOCK, (1 + s as usize % 8) * BLOCK)
}

pub fn file(fs: &Arc<Fs>) -> Result<File> {
    let root = NodeId::root(VolumeId::TREE);
    match fs.lookup(root, b"f") {
        Ok(attr) => fs.open_file(attr.id),
        Err(Error::NotFound) => {
            let owner = Owner { mode: 0o600, uid: 0, gid: 0 };
            let id = fs.create(root, b"f", NewNode::File, owner)?.id;
            let file = fs.open_file(id)?;
            file.set_size((FILE_BLOCKS * BLOCK) as u64)?;
            Ok(file)
        }
        Err(e) => Err(e),
    }
}

/// One step, made durable; each fourth ends with a consistency point.
pub fn step(fs: &Arc<Fs>, s: u64) -> Result<()> {
    let (at, len) = range(s);
    file(fs)?.write_at(at as u64, &content(s)[at..at + len])?;
    if s % 4 == 0 {
        fs.consistency_point()?;
    }
    fs.sync()
}

/// Writes what a step wrote otherwise, and leaves it in memory.
pub fn overwrite(fs: &Arc<Fs>, s: u64) -> Result<()> {
    let (at, len) = range(s);
    file(fs)?.write_at(at as u64, &vec![0xA5; len])
}

/// Steps `from..=to`; through which one all were acknowledged, and why not all were.
pub fn steps(fs: &Arc<Fs>, from: u64, to: u64) -> (u64, Option<Error>) {
    for s in from..=to {
        if let Err(e) = step(fs, s) {
            return (s - 1, Some(e));
        }
    }
    (to, None)
}

pub fn read(fs: &Arc<Fs>) -> Result<Vec<u8>> {
    let mut got = vec![0; FILE_BLOCKS * BLOCK];
    let n = file(fs)?.read_at(0, &mut got)?;
    got.truncate(n.max(got.len()));
    Ok(got)
}

/// The file is as after one of these steps: which.
pub fn expect_state(fs: &Arc<Fs>, from: u64, to: u64, what: &str) -> u64 {
    let got = read(fs).unwrap_or_else(|e| panic!("{what}: read: {e}"));
    let found = (from..=to).rev().find(|s| got == content(*s));
    found.unwrap_or_else(|| panic!("{what}: the content is of no step {from}..={to}"))
}

pub fn expect_sound(sims: &[Arc<SimDevice>], what: &str) {
    let report = check(&handles(sims), CheckOptions { data: true });
    let report = report.unwrap_or_else(|e| panic!("{what}: check: {e}"));
    assert_eq!(report.errors, Vec::<String>::new(), "{what}");
}

pub fn states(fs: &Arc<Fs>) -> Vec<&'static str> {
    fs.devices().iter().map(|d| d.state).collect()
}

/// Fills whatever is to be filled, and scrubs.
pub fn settle(fs: &Arc<Fs>) -> Result<()> {
    for _ in 0..10_000 {
        if !fs.regenerate_step(300)? {
            while fs.scrub_step(1000)? {}
            return Ok(());
        }
    }
    panic!("regeneration does not end");
}

/// Each of these devices alone has all there is.
pub fn expect_each_alone(sims: &[Arc<SimDevice>], step: u64, what: &str) {
    for (i, sim) in sims.iter().enumerate() {
        let alone = crashed(std::slice::from_ref(sim), 5);
        let fs = Fs::open(handles(&alone), degraded(i as u64 + 50));
        let fs = fs.unwrap_or_else(|e| panic!("{what}: {} alone: {e}", sim.name()));
        expect_state(&fs, step, step, &format!("{what}: {} alone", sim.name()));
        drop(fs);
        expect_sound(&alone, &format!("{what}: {} alone", sim.name()));
    }
}

/// Runs `act` at call number `n` of all devices together (of one thread), before it happens.
pub fn at_call(sims: &[Arc<SimDevice>], n: u64, act: impl Fn() + Send + Sync + 'static) {
    let (count, act) = (Arc::new(AtomicU64::new(0)), Arc::new(act));
    for sim in sims {
        let (count, act) = (count.clone(), act.clone());
        sim.on_io(Some(Arc::new(move |event: &IoEvent| {
            if !event.done && count.fetch_add(1, SeqCst) + 1 == n {
                act();
            }
        })));
    }
}

/// How many calls `work` makes on these devices.
pub fn calls(sims: &[Arc<SimDevice>], work: impl FnOnce()) -> u64 {
    let before: u64 = sims.iter().map(|s| s.calls()).sum();
    work();
    sims.iter().map(|s| s.calls()).sum::<u64>() - before
}

/// Every block behind the first segment becomes garbage.
pub fn spoil(sim: &SimDevice) {
    let mut garbage = Block::zeroed();
    garbage.0.iter_mut().zip((0u8..251).cycle()).for_each(|(b, v)| *b = v | 1);
    for at in sim.stored_blocks().into_iter().filter(|at| *at >= 512) {
        sim.write(at, &[&garbage]).expect("spoil");
    }
    sim.flush().expect("spoil");
}
