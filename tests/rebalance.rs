//! Mirrored pools whose devices change while they are used: what they gain, what moves, and what a
//! power cut in the middle leaves.

use lunfs::device::sim::{IoEvent, IoKind, Rng, SimDevice};
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

/// Places where the power fails, in each of three stories. `LUNFS_REBALANCE_CUTS=n` tries more; the
/// simulator does with fresh seeds.
const CUTS: u64 = 8;

/// A pool of three devices, a fourth beside; `begin` is what happens to it. The power fails in
/// many places; what is left then is finished.
fn cut_everywhere(
    seed: u64,
    first: usize,
    begin: &dyn Fn(&Arc<Fs>, &Devices) -> lunfs::fs::Result<()>,
    done: &dyn Fn(&Fs),
) {
    let mut rng = Rng::new(seed);
    let mut calls = 0;
    let cuts = std::env::var("LUNFS_REBALANCE_CUTS").ok().and_then(|n| n.parse().ok());
    for i in 0..=cuts.unwrap_or(CUTS) {
        let call = if i == 0 { 0 } else { 1 + rng.below(calls) };
        eprintln!("seed {seed}, cut {i} at call {call} of {calls}");
        let devices = devices(&[35, 35, 35, 35]);
        let pool = devices[..first].to_vec();
        format(&pool, Redundancy::Mirror);
        let fs = open(&pool).unwrap();
        let mut files = fill(&fs, 7, 300_000);
        let begin = |fs: &Arc<Fs>| begin(fs, &devices);
        let count = run_with_cut(&fs, &devices, &mut files, call, &begin);
        calls = calls.max(count);
        let cut = rng.bits();
        let crashed: Devices = devices.iter().map(|d| Arc::new(d.after_crash(cut))).collect();
        drop(fs);
        let crashed = with_label(crashed);
        assert_sound(&crashed);
        let fs = open(&crashed).unwrap();
        assert_files(&fs, &files);
        settle(&fs);
        assert_files(&fs, &files);
        if call == 0 {
            done(&fs);
        }
        drop(fs);
        let crashed = with_label(crashed);
        assert_sound(&crashed);
        if i % 8 == 0 {
            assert_mirrored(&crashed, &files);
        }
    }
}

/// Devices that are part of a pool.
fn with_label(devices: Devices) -> Devices {
    let has_label = |d: &Arc<SimDevice>| d.stored_blocks().first() == Some(&0);
    devices.into_iter().filter(has_label).collect()
}

#[test]
fn a_power_cut_while_a_mirror_grows_loses_nothing() {
    let grow = |fs: &Arc<Fs>, devices: &Devices| {
        devices[0].grow(50 * SEGMENT);
        fs.take_over_sizes()
    };
    let done = |fs: &Fs| assert_eq!(fs.stats().size_bytes >> 20, 115, "34 + 49 + 34, halved");
    cut_everywhere(5, 3, &grow, &done);
}

#[test]
fn a_power_cut_while_a_device_is_added_loses_nothing() {
    let add = |fs: &Arc<Fs>, devices: &Devices| {
        fs.add_device(devices[2].clone(), "third".into(), [7; 16]).map(|_| ())
    };
    // 34 segments of one device, then half as many again.
    let done = |fs: &Fs| assert_eq!(fs.stats().size_bytes >> 20, 2 * 51 - 1);
    cut_everywhere(6, 2, &add, &done);
}

#[test]
fn a_power_cut_while_a_device_is_removed_loses_nothing() {
    let remove = |fs: &Arc<Fs>, _: &Devices| fs.remove_device(1);
    let done = |fs: &Fs| {
        assert_eq!(fs.mapped_bytes()[1], 0);
        assert_eq!(fs.stats().size_bytes >> 20, 2 * 34 - 1);
    };
    cut_everywhere(7, 3, &remove, &done);
}

#[test]
fn a_device_whose_data_does_not_fit_stays() {
    let devices = devices(&[40, 40, 40]);
    format(&devices, Redundancy::Mirror);
    let fs = open(&devices).unwrap();
    let files = fill(&fs, 90, 1 << 20);
    let before = fs.stats().size_bytes;
    let refused = fs.remove_device(0).unwrap_err();
    assert!(matches!(refused, lunfs::fs::Error::NoRoomElsewhere { .. }), "{refused}");
    assert!(fs.rebalance_step(16).unwrap().is_done);
    assert_eq!(fs.stats().size_bytes, before);
    drop(fs);
    assert_sound(&devices);
    assert_mirrored(&devices, &files);
}

#[test]
fn a_device_comes_and_goes_and_comes_back() {
    let all = devices(&[40, 40, 70]);
    let mut pool = all[..2].to_vec();
    format(&pool, Redundancy::Mirror);
    let fs = open(&pool).unwrap();
    let files = fill(&fs, 40, 1 << 20);
    let small = fs.stats().size_bytes;
    for round in 0..3 {
        fs.add_device(all[2].clone(), "third".into(), [round; 16]).unwrap();
        settle(&fs);
        let large = fs.stats().size_bytes;
        assert!(large > small * 18 / 10, "{large} of {small}");
        write(&fs, "large", round, 20 << 20).unwrap();
        fs.remove_device(2).unwrap();
        settle(&fs);
        assert_eq!(fs.mapped_bytes(), [small_mapped(), small_mapped(), 0]);
        // But for the places of pages in regions that it had for a while.
        assert!(fs.stats().size_bytes.abs_diff(small) < 100_000);
        assert_files(&fs, &files);
        write(&fs, "large", round, 1).unwrap();
    }
    fs.close().unwrap();
    drop(fs);
    pool = with_label(all);
    assert_eq!(pool.len(), 2, "the removed device is wiped");
    assert_sound(&pool);
    assert_mirrored(&pool, &files);
}

fn small_mapped() -> u64 {
    39 * SEGMENT * 4096
}

#[test]
fn without_redundancy_a_device_can_leave_too() {
    let devices = devices(&[40, 50, 60]);
    format(&devices, Redundancy::None);
    let fs = open(&devices).unwrap();
    let files = fill(&fs, 40, 1 << 20);
    fs.remove_device(0).unwrap();
    settle(&fs);
    assert_eq!(fs.mapped_bytes(), [0, 49 * SEGMENT * 4096, 59 * SEGMENT * 4096]);
    assert_files(&fs, &files);
    drop(fs);
    let pool = with_label(devices);
    assert_sound(&pool);
    assert_files(&open(&pool).unwrap(), &files);
}

/// At its flush number `n` from now the device loses what its cache held, and is gone; `then` runs.
fn gone_at_flush(device: &Arc<SimDevice>, n: u64, then: impl Fn() + Send + Sync + 'static) {
    let (count, gone) = (AtomicU64::new(0), device.clone());
    device.on_io(Some(Arc::new(move |event: &IoEvent| {
        let flush = event.kind == IoKind::Flush && !event.done;
        if flush && count.fetch_add(1, SeqCst) + 1 == n {
            gone.crash(n);
            gone.vanish(true);
            then();
        }
    })));
}

#[test]
fn a_device_that_fails_while_copies_move_to_it_gets_them_when_it_is_back() {
    let mut came_back = 0;
    for n in (1..40).step_by(2) {
        let devices = devices(&[35, 35, 35]);
        format(&devices[..2].to_vec(), Redundancy::Mirror);
        let fs = open(&devices[..2].to_vec()).unwrap();
        let files = fill(&fs, 7, 2 << 20);
        fs.add_device(devices[2].clone(), "third".into(), [7; 16]).unwrap();
        gone_at_flush(&devices[2], n, || {});
        for _ in 0..6 {
            fs.rebalance_step(3).unwrap();
        }
        devices[2].on_io(None);
        devices[2].vanish(false);
        if fs.devices()[2].state == "missing" {
            let third: Arc<dyn BlockDevice> = devices[2].clone();
            fs.online(&third).unwrap();
            while fs.regenerate_step(300).unwrap() {}
            came_back += 1;
        }
        drop(fs);
        eprintln!("gone at flush {n}");
        assert_sound(&devices);
        let fs = open(&devices).unwrap();
        assert_files(&fs, &files);
    }
    assert!(came_back > 5, "{came_back}");
}

/// The root that is durable may lead to what the map in memory does not name any more.
#[test]
fn a_device_that_fails_while_its_last_segments_leave_it_is_not_given_up() {
    let mut gone = 0;
    for (n, calls) in (1..60).flat_map(|n| [(n, 7), (n, 9)]) {
        let devices = devices(&[35, 35]);
        format(&devices, Redundancy::None);
        let fs = open(&devices).unwrap();
        let files = fill(&fs, 7, 300_000);
        fs.remove_device(0).unwrap();
        let other = devices[1].clone();
        gone_at_flush(&devices[0], n, move || {
            let (count, cut) = (AtomicU64::new(0), other.clone());
            other.on_io(Some(Arc::new(move |event: &IoEvent| {
                if !event.done && count.fetch_add(1, SeqCst) + 1 == calls {
                    cut.cut_power();
                }
            })));
        });
        let done = (0..20).try_for_each(|_| fs.rebalance_step(16).map(|_| ()));
        gone += u64::from(done.is_err());
        devices.iter().for_each(|d| d.on_io(None));
        let crashed: Devices = devices.iter().map(|d| Arc::new(d.after_crash(n))).collect();
        drop(fs);
        eprintln!("gone at flush {n}, power cut {calls} calls later");
        let crashed = with_label(crashed);
        let fs = open(&crashed).unwrap();
        assert_files(&fs, &files);
    }
    assert!(gone > 4, "{gone}");
}
