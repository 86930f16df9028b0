//! Whole pools with some of their blocks changed, the checksums above made right again in most
//! cases: opened, walked, changed and closed. No panic, no hang, bounded memory; and where no
//! checksum was forged, what is read is what was written.

use crate::image::{Image, ImageDevice};
use crate::{memory, number, seed, walk};
use lunfs::device::sim::{Rng, SimDevice};
use lunfs::device::BlockDevice;
use lunfs::fs::{
    Clock, Error, FormatOptions, Fs, NewNode, NodeId, OpenOptions, Owner, Timestamp, VolumeId,
    XattrMode,
};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

const BLOCKS: u64 = 64 * 256;
const ROUNDS: u64 = 200;
/// Longest round; most take milliseconds.
const PATIENCE: Duration = Duration::from_secs(40);
/// Most memory of a round above that of its image: the checker's cache is 64 MiB.
const MAX_BYTES: usize = 160 << 20;
const OWNER: Owner = Owner { mode: 0o700, uid: 5, gid: 5 };

/// Content by which a file is known again.
struct Known {
    id: NodeId,
    bytes: Vec<u8>,
}

/// The same pool from the same seed.
struct Fixed;

impl Clock for Fixed {
    fn now(&self) -> Timestamp {
        Timestamp(1_795_219_200_000_000_000)
    }
}

fn open(device: Arc<dyn BlockDevice>) -> lunfs::fs::Result<Arc<Fs>> {
    let clock = Arc::new(Fixed);
    Fs::open(vec![device], OpenOptions { cache_bytes: 4 << 20, clock, ..OpenOptions::default() })
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// A pool with something of everything, closed in order.
fn closed() -> (Arc<SimDevice>, Vec<Known>) {
    let device = Arc::new(SimDevice::new(BLOCKS, 1));
    let options = FormatOptions {
        pool_id: [5; 16],
        created: Timestamp(1),
        paths: vec!["p".into()],
        redundancy: Default::default(),
    };
    Fs::format(&[device.clone() as Arc<dyn BlockDevice>], &options).unwrap();
    let fs = open(device.clone()).unwrap();
    let root = NodeId::root(VolumeId::TREE);
    let dir = fs.create(root, b"directory", NewNode::Directory, OWNER).unwrap().id;
    for n in 0..120 {
        let kind = if n % 9 == 0 { NewNode::Directory } else { NewNode::File };
        fs.create(dir, format!("entry-{n}").as_bytes(), kind, OWNER).unwrap();
    }
    let deep = fs.lookup(dir, b"entry-0").unwrap().id;
    fs.create(deep, b"link", NewNode::Symlink(b"../entry-1"), OWNER).unwrap();
    fs.xattr_set(dir, b"user.long", &[1; 9000], XattrMode::Any).unwrap();
    let mut known = Vec::new();
    for (n, (name, bytes, at)) in
        [(&b"small"[..], 3000, 0), (b"large", 900_000, 0), (b"sparse", 5000, 1 << 33)]
            .into_iter()
            .enumerate()
    {
        let id = fs.create(root, name, NewNode::File, OWNER).unwrap().id;
        let bytes = noise(n as u64, bytes);
        fs.open_file(id).unwrap().write_at(at, &bytes).unwrap();
        if at == 0 {
            known.push(Known { id, bytes });
        }
        fs.link(id, dir, name).unwrap();
    }
    for n in 0..3u64 {
        let volume = fs.volume_create(&format!("vm{n}"), OWNER).unwrap();
        let made = fs.create(NodeId::root(volume), b"data", NewNode::File, OWNER).unwrap();
        let bytes = noise(10 + n, 300_000);
        fs.open_file(made.id).unwrap().write_at(0, &bytes).unwrap();
        known.push(Known { id: made.id, bytes });
    }
    fs.volume_delete("vm2").unwrap();
    known.pop();
    versions(&fs);
    fs.close().unwrap();
    (device, known)
}

/// Snapshots, one deleted between others, one hidden for its two branches; a range clone.
fn versions(fs: &Arc<Fs>) {
    let vm0 = fs.volume_lookup("vm0").unwrap().unwrap();
    let more = fs.create(NodeId::root(vm0), b"more", NewNode::File, OWNER).unwrap().id;
    let more = fs.open_file(more).unwrap();
    for (n, name) in ["a", "b", "c", "d"].into_iter().enumerate() {
        more.write_at(0, &noise(n as u64, 400_000 - 50_000 * n)).unwrap();
        fs.snapshot_create(&[(vm0, name)], false).unwrap();
        fs.consistency_point().unwrap();
    }
    let c = fs.snapshot_lookup(vm0, "c").unwrap().unwrap().id;
    fs.volume_clone(c, "branch").unwrap();
    fs.bookmark_create(vm0, "c", "mark").unwrap();
    for name in ["b", "c"] {
        fs.snapshot_delete(vm0, name).unwrap();
    }
    let copy = fs.create(NodeId::root(VolumeId::TREE), b"copy", NewNode::File, OWNER).unwrap().id;
    let copy = fs.open_file(copy).unwrap();
    fs.clone_range(&more, 0, &copy, 0, 400_000).unwrap();
    while fs.maintain().unwrap() {}
}

/// The same with a log to replay and something to reclaim.
fn crashed(device: &SimDevice) -> Arc<SimDevice> {
    let device = Arc::new(device.after_crash(1));
    let fs = open(device.clone()).unwrap();
    let root = NodeId::root(VolumeId::TREE);
    for n in 0..6u8 {
        let made = fs.create(root, &[b'n', b'0' + n], NewNode::File, OWNER).unwrap();
        let file = fs.open_file(made.id).unwrap();
        for part in 0..40 * u64::from(n % 3) {
            file.write_at(part * 12_288, &[n; 4096]).unwrap();
        }
        fs.sync().unwrap();
    }
    // Clones whose counts are in the root, and clones in the log.
    fs.consistency_point().unwrap();
    let source = fs.open_file(fs.lookup(root, b"n5").unwrap().id).unwrap();
    for name in [b"c0", b"c1"] {
        let made = fs.create(root, name, NewNode::File, OWNER).unwrap();
        let clone = fs.open_file(made.id).unwrap();
        fs.clone_range(&source, 0, &clone, 0, 1 << 20).unwrap();
        fs.clone_range(&source, 4096, &clone, 2 << 20, 1 << 18).unwrap();
        if name == b"c0" {
            fs.consistency_point().unwrap();
            clone.write_at(8192, &[9; 4096]).unwrap();
        }
    }
    fs.unlink(root, b"large").unwrap();
    fs.volume_delete("vm1").unwrap();
    fs.sync().unwrap();
    Arc::new(device.after_crash(2))
}

/// Aborts the program where a round does not end, with its seed.
fn watch(round: &Arc<AtomicU64>) {
    let round = Arc::downgrade(round);
    std::thread::spawn(move || {
        let (mut last, mut since) = (0, std::time::Instant::now());
        while let Some(now) = round.upgrade().map(|round| round.load(Ordering::Relaxed)) {
            if now != last {
                (last, since) = (now, std::time::Instant::now());
            }
            if since.elapsed() > PATIENCE {
                eprintln!("no end of the round with LUNFS_SEED={last}");
                std::process::abort();
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    });
}

/// What a round came to.
#[derive(Default)]
struct Tally {
    refused: usize,
    errors: usize,
    unharmed: usize,
    largest: usize,
}

fn round(base: &Image, known: &[Known], seed: u64, tally: &mut Tally) {
    let mut rng = Rng::new(seed);
    let mut image = base.clone();
    let fix = rng.below(5) > 0;
    for _ in 0..1 + rng.below(3) {
        let what = image.mutate(&mut rng, fix);
        if std::env::var_os("LUNFS_SHOW").is_some() {
            println!("round {seed}: {what}, checksums {}", if fix { "forged" } else { "as was" });
        }
    }
    let blocks: Vec<u64> = image.blocks.keys().copied().collect();
    let before = memory::start();
    let device: Arc<dyn BlockDevice> = ImageDevice::new(image);
    let sound = walk::inspect(&device, &blocks, &mut rng);
    match open(device.clone()) {
        Err(Error::Format(_) | Error::Corrupt { .. } | Error::Io(_) | Error::Latched(_)) => {
            tally.refused += 1;
        }
        Err(e) => panic!("a damaged pool is refused as Format or Corrupt, not: {e:?}"),
        Ok(fs) => {
            if !fix {
                tally.unharmed += known.iter().filter(|known| is_whole(&fs, known)).count();
            }
            let mut met = walk::read_all(&fs);
            assert!(fix || !sound || met.errors == 0, "check found nothing");
            walk::change_all(&fs, &mut met, &mut rng);
            tally.errors += met.errors;
            let _ = fs.close();
            let _ = walk::inspect(&device, &[], &mut rng);
        }
    }
    let used = memory::peak().saturating_sub(before);
    assert!(used < MAX_BYTES, "{used} bytes were held");
    tally.largest = tally.largest.max(used);
}

/// Whether a file reads as it was written; something else than that is never read.
fn is_whole(fs: &Arc<Fs>, known: &Known) -> bool {
    let mut out = vec![0; known.bytes.len()];
    match fs.open_file(known.id).and_then(|file| file.read_at(0, &mut out)) {
        Ok(count) => {
            assert!(count == out.len() && out == known.bytes, "{:?}: wrong bytes", known.id);
            true
        }
        Err(_) => false,
    }
}

#[test]
fn fuzz_whole_pools() {
    let first = seed();
    let rounds = std::env::var("LUNFS_FUZZ_ROUNDS").ok().and_then(|n| n.parse().ok());
    let (device, known) = closed();
    let log = crashed(&device);
    let bases = [&device, &log].map(|device| Image::of(&**device, &device.stored_blocks()));
    let running = Arc::new(AtomicU64::new(0));
    watch(&running);
    let (mut tally, mut failed) = (Tally::default(), Vec::new());
    for n in 0..rounds.unwrap_or(ROUNDS) {
        let seed = first.wrapping_mul(1_000_003).wrapping_add(n);
        running.store(seed, Ordering::Relaxed);
        let base = (seed % 2) as usize;
        let known = if base == 0 { &known[..] } else { &[] };
        let run = AssertUnwindSafe(|| round(&bases[base], known, seed, &mut tally));
        if catch_unwind(run).is_err() {
            failed.push(n);
        }
    }
    assert!(failed.is_empty(), "rounds {failed:?} of LUNFS_SEED={first}");
    println!(
        "{} refused, {} errors, {} files whole, at most {} KiB held",
        tally.refused,
        tally.errors,
        tally.unharmed,
        tally.largest >> 10
    );
    assert!(tally.errors > 0 && tally.unharmed > 0, "the fuzzer reaches nothing");
}

/// The images are what they are taken for: unchanged, or changed and fixed, they open.
#[test]
fn fuzz_checksums_are_forged_well() {
    let (device, known) = closed();
    let log = crashed(&device);
    for device in [&device, &log] {
        let base = Image::of(&**device, &device.stored_blocks());
        let mut rng = Rng::new(1);
        let mut opened = 0;
        for at in base.sums.meta.clone() {
            let mut image = base.clone();
            // a byte that nobody looks at, mostly
            image.change(at, true, |block| block[4000] = block[4000].wrapping_add(1));
            opened += usize::from(open(ImageDevice::new(image)).is_ok());
        }
        let all = base.sums.meta.len();
        assert!(opened * 10 > all * 7, "{opened} of {all}: {}", number(&mut rng));
    }
    let base = Image::of(&*device, &device.stored_blocks());
    let fs = open(ImageDevice::new(base)).unwrap();
    assert!(known.iter().all(|known| is_whole(&fs, known)));
}
