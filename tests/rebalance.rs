//! Mirrored pools whose devices change while they are used: what they gain, what moves, and what a
//! power cut in the middle leaves.

use lunfs::device::sim::{IoEvent, Rng, SimDevice};
use lunfs::device::BlockDevice;
use lunfs::fs::{
    check, CheckOptions, FormatOptions, Fs, NewNode, NodeId, OpenOptions, Owner, Redundancy,
    Timestamp, VolumeId,
};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::Arc;

const SEGMENT: u64 = 512;
const ROOT: NodeId = NodeId::root(VolumeId::TREE);

type Devices = Vec<Arc<SimDevice>>;

fn devices(segments: &[u64]) -> Devices {
    let one = |(i, n): (usize, &u64)| SimDevice::named(&format!("d{i}"), n * SEGMENT, i as u64);
    segments.iter().enumerate().map(one).map(Arc::new).collect()
}

fn as_dyn(devices: &Devices) -> Vec<Arc<dyn BlockDevice>> {
    devices.iter().map(|d| d.clone() as Arc<dyn BlockDevice>).collect()
}

fn format(devices: &Devices, redundancy: Redundancy) {
    let paths = devices.iter().map(|d| d.name()).collect();
    let options = FormatOptions { pool_id: [3; 16], created: Timestamp(1), paths, redundancy };
    Fs::format(&as_dyn(devices), &options).unwrap();
}

fn open(devices: &Devices) -> lunfs::fs::Result<Arc<Fs>> {
    let options = OpenOptions { cache_bytes: 8 << 20, ..OpenOptions::default() };
    Fs::open(as_dyn(devices), options)
}

/// What files hold: name and the byte that fills them, of what is durable.
type Files = BTreeMap<String, (u8, usize)>;

fn write(fs: &Arc<Fs>, name: &str, byte: u8, len: usize) -> lunfs::fs::Result<()> {
    let owner = Owner { mode: 0o644, uid: 0, gid: 0 };
    let id = match fs.lookup(ROOT, name.as_bytes()) {
        Ok(found) => found.id,
        Err(_) => fs.create(ROOT, name.as_bytes(), NewNode::File, owner)?.id,
    };
    fs.open_file(id)?.write_at(0, &vec![byte; len])?;
    fs.sync()
}

fn assert_files(fs: &Arc<Fs>, files: &Files) {
    for (name, (byte, len)) in files {
        let found = fs.lookup(ROOT, name.as_bytes()).unwrap();
        let mut content = vec![0; *len];
        let read = fs.open_file(found.id).unwrap().read_at(0, &mut content).unwrap();
        assert_eq!(read, *len, "{name}");
        assert!(content.iter().all(|b| b == byte), "{name} is not {byte}");
    }
}

fn assert_sound(devices: &Devices) {
    let report = check(&as_dyn(devices), CheckOptions { data: true }).unwrap();
    assert_eq!(report.errors, Vec::<String>::new());
}

/// Every copy is good: with each device in turn giving back nothing but rot, all is still there.
fn assert_mirrored(devices: &Devices, files: &Files) {
    for (i, bad) in devices.iter().enumerate() {
        let copies: Devices = devices.iter().map(|d| Arc::new(d.after_crash(1))).collect();
        for block in bad.stored_blocks().into_iter().filter(|block| *block >= SEGMENT) {
            copies[i].flip_bit(block, 77);
        }
        let fs = open(&copies).unwrap();
        assert_files(&fs, files);
    }
}

fn fill(fs: &Arc<Fs>, count: usize, len: usize) -> Files {
    let name = |i: usize| format!("file{i}");
    let files: Files = (0..count).map(|i| (name(i), (i as u8 + 1, len))).collect();
    files.iter().for_each(|(name, (byte, len))| write(fs, name, *byte, *len).unwrap());
    files
}

fn settle(fs: &Arc<Fs>) {
    for _ in 0..2000 {
        if fs.rebalance_step(5).unwrap().is_done {
            return;
        }
        fs.consistency_point().unwrap();
    }
    panic!("it never ends");
}

#[test]
fn a_mirror_takes_over_what_its_devices_gain() {
    let devices = devices(&[40, 40, 40]);
    format(&devices, Redundancy::Mirror);
    let fs = open(&devices).unwrap();
    let files = fill(&fs, 20, 1 << 20);
    let before = fs.stats().size_bytes;
    assert_eq!(fs.grow().unwrap(), 0);
    // One device alone: of no use where all are equal but for what can be spread.
    devices[1].grow(60 * SEGMENT);
    let gained = fs.grow().unwrap();
    // From 39 * 3 / 2 segments to (39 + 39 + 59) / 2; a region more has 8 blocks of its own.
    assert_eq!(gained, ((68 - 58) * SEGMENT - 8) * 4096);
    assert_eq!(fs.stats().size_bytes, before + gained);
    assert_files(&fs, &files);
    write(&fs, "more", 200, 30 << 20).unwrap();
    drop(fs);
    assert_sound(&devices);
    let fs = open(&devices).unwrap();
    assert_eq!(fs.stats().size_bytes, before + gained);
    assert_files(&fs, &files);
    drop(fs);
    assert_mirrored(&devices, &files);
}

/// Cuts the power of all devices at a call of any of them.
fn cut_at(devices: &Devices, call: u64) -> Arc<AtomicU64> {
    let count = Arc::new(AtomicU64::new(0));
    for device in devices {
        let (all, count) = (devices.clone(), count.clone());
        device.on_io(Some(Arc::new(move |event: &IoEvent| {
            if !event.done && count.fetch_add(1, SeqCst) + 1 == call {
                all.iter().for_each(|device| device.cut_power());
            }
        })));
    }
    count
}

fn uncut(devices: &Devices) {
    devices.iter().for_each(|device| device.on_io(None));
}

/// Runs `work` beside writes until the power fails at call `call` (0: never); how many calls there
/// were, and what was durable.
fn run_with_cut(
    fs: &Arc<Fs>,
    devices: &Devices,
    files: &mut Files,
    call: u64,
    begin: &dyn Fn(&Arc<Fs>) -> lunfs::fs::Result<()>,
) -> u64 {
    let count = cut_at(devices, call);
    let mut round = 0u8;
    let mut work = || -> lunfs::fs::Result<()> {
        begin(fs)?;
        while !fs.rebalance_step(3)?.is_done {
            round = round.wrapping_add(1);
            let name = format!("file{}", round % 7);
            let len = 300_000;
            // A file that is being overwritten when the power fails is not looked at.
            let held = files.remove(&name);
            write(fs, &name, round, len)?;
            files.insert(name, (round, held.map_or(len, |(_, held)| held.max(len))));
        }
        Ok(())
    };
    let done = work();
    assert!(call > 0 || done.is_ok(), "{done:?}");
    uncut(devices);
    count.load(SeqCst)
}

#[test]
fn a_power_cut_while_a_mirror_grows_loses_nothing() {
    let seed = 5;
    let mut rng = Rng::new(seed);
    let grow = |devices: &Devices, call: u64, rng: &mut Rng| -> u64 {
        format(devices, Redundancy::Mirror);
        let fs = open(devices).unwrap();
        let mut files = fill(&fs, 7, 300_000);
        devices[0].grow(50 * SEGMENT);
        let begin = |fs: &Arc<Fs>| fs.take_over_sizes();
        let calls = run_with_cut(&fs, devices, &mut files, call, &begin);
        let cut = rng.bits();
        let crashed: Devices = devices.iter().map(|d| Arc::new(d.after_crash(cut))).collect();
        drop(fs);
        assert_sound(&crashed);
        let fs = open(&crashed).unwrap();
        assert_files(&fs, &files);
        settle(&fs);
        assert_files(&fs, &files);
        if call == 0 {
            assert_eq!(fs.stats().size_bytes >> 20, 115, "34 + 49 + 34 segments, halved");
        }
        drop(fs);
        assert_sound(&crashed);
        calls
    };
    let shape = [35, 35, 35];
    let calls = grow(&devices(&shape), 0, &mut rng);
    for i in 0..40 {
        let call = 1 + rng.below(calls);
        eprintln!("cut {i} at call {call} of {calls}, seed {seed}");
        grow(&devices(&shape), call, &mut rng);
    }
}
