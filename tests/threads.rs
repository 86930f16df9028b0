//! Many threads on one pool: writers, readers, punches and flushes beside consistency points, with
//! a cache so small that everything is evicted and paced all the time. Each thread owns a part of
//! each file and checks it against what it wrote; afterwards the pool is closed, checked and read
//! again.

use lunfs::device::sim::{Rng, SimDevice};
use lunfs::device::{Block, BlockDevice};
use lunfs::fs::{
    check, CheckOptions, File, FormatOptions, Fs, NewNode, NodeId, OpenOptions, Owner, SystemClock,
    Timestamp, VolumeId,
};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

const THREADS: u64 = 4;
const FILES: usize = 3;
/// A thread's part of each file, in blocks.
const PART: u64 = 4096;
const STEPS: u64 = 4000;
const BLOCK: u64 = 4096;

fn options() -> OpenOptions {
    OpenOptions {
        cache_bytes: 8 << 20,
        clock: Arc::new(SystemClock),
        background: true,
        ..OpenOptions::default()
    }
}

/// What a thread believes of its part: the stamp of each block, 0 for a hole.
type Believed = Vec<Vec<u64>>;

fn stamp(file: usize, block: u64, stamp: u64) -> Vec<u8> {
    if stamp == 0 {
        return vec![0; BLOCK as usize];
    }
    let word = (stamp ^ (file as u64) << 60 ^ block << 32).to_le_bytes();
    word.iter().copied().cycle().take(BLOCK as usize).collect()
}

fn verify(files: &[File], thread: u64, believed: &Believed) {
    for (f, file) in files.iter().enumerate() {
        let mut got = vec![0; BLOCK as usize];
        for (i, s) in believed[f].iter().enumerate() {
            let block = thread * PART + i as u64;
            got.fill(0);
            file.read_at(block * BLOCK, &mut got).expect("read");
            assert!(got == stamp(f, block, *s), "file {f}, block {block}");
        }
    }
}

fn work(fs: &Fs, files: &[File], thread: u64, believed: &mut Believed) {
    let mut rng = Rng::new(thread + 77);
    for step in 1..=STEPS {
        let f = rng.index(files.len());
        let first = rng.below(PART - 32);
        let count = 1 + rng.below(31);
        let at = thread * PART + first;
        match rng.index(20) {
            0 => fs.sync().expect("sync"),
            1 => {
                files[f].punch(at * BLOCK, count * BLOCK).expect("punch");
                believed[f][first as usize..(first + count) as usize].fill(0);
            }
            2..=6 => {
                let mut got = vec![0; BLOCK as usize];
                files[f].read_at(at * BLOCK, &mut got).expect("read");
                let size = files[f].size_bytes();
                let known = believed[f][first as usize];
                assert!(at * BLOCK >= size || got == stamp(f, at, known), "file {f} block {at}");
            }
            _ => {
                let data: Vec<u8> = (at..at + count).flat_map(|b| stamp(f, b, step)).collect();
                files[f].write_at(at * BLOCK, &data).expect("write");
                believed[f][first as usize..(first + count) as usize].fill(step);
            }
        }
    }
}

fn new_pool(device: &Arc<dyn BlockDevice>) -> Arc<Fs> {
    let format = FormatOptions {
        pool_id: [7; 16],
        created: Timestamp(1),
        paths: vec!["sim".into()],
        redundancy: Default::default(),
    };
    Fs::format(std::slice::from_ref(device), &format).expect("format");
    Fs::open(vec![device.clone()], options()).expect("open")
}

#[test]
fn many_threads_keep_their_bytes() {
    let device: Arc<dyn BlockDevice> = Arc::new(SimDevice::new(65_536 * 4, 1));
    let fs = new_pool(&device);
    let owner = Owner { mode: 0o644, uid: 0, gid: 0 };
    let root = NodeId::root(VolumeId::TREE);
    let ids: Vec<NodeId> = (0..FILES)
        .map(|i| {
            fs.create(root, format!("f{i}").as_bytes(), NewNode::File, owner).expect("create").id
        })
        .collect();
    let files: Vec<File> = ids.iter().map(|id| fs.open_file(*id).expect("open")).collect();
    let mut all: Vec<Believed> = vec![vec![vec![0; PART as usize]; FILES]; THREADS as usize];
    std::thread::scope(|s| {
        for (t, believed) in all.iter_mut().enumerate() {
            let (fs, files) = (&fs, &files);
            s.spawn(move || work(fs, files, t as u64, believed));
        }
    });
    for (t, believed) in all.iter().enumerate() {
        verify(&files, t as u64, believed);
    }
    drop(files);
    fs.close().expect("close");
    drop(fs);
    let report = check(std::slice::from_ref(&device), CheckOptions { data: true }).expect("check");
    assert_eq!(report.errors, Vec::<String>::new());
    let fs = Fs::open(vec![device], options()).expect("open again");
    let files: Vec<File> = ids.iter().map(|id| fs.open_file(*id).expect("open")).collect();
    for (t, believed) in all.iter().enumerate() {
        verify(&files, t as u64, believed);
    }
}

/// A device whose next read takes its time.
struct Stalling {
    inner: SimDevice,
    stall: AtomicBool,
}

impl BlockDevice for Stalling {
    fn block_count(&self) -> u64 {
        self.inner.block_count()
    }
    fn read(&self, first: u64, out: &mut [Box<Block>]) -> io::Result<()> {
        if self.stall.swap(false, Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1500));
        }
        self.inner.read(first, out)
    }
    fn write(&self, first: u64, data: &[&Block]) -> io::Result<()> {
        self.inner.write(first, data)
    }
    fn flush(&self) -> io::Result<()> {
        self.inner.flush()
    }
    fn discard(&self, first: u64, count: u64) -> io::Result<()> {
        self.inner.discard(first, count)
    }
    fn name(&self) -> String {
        self.inner.name()
    }
}

/// A LUN that was overwritten at full speed in a pool several times its size was told now and then
/// that there is no space: a reader held what was freed, and who needed it ran consistency points
/// in vain, sixty-four in a few milliseconds, instead of waiting for the reader.
#[test]
fn space_that_a_reader_still_holds_is_waited_for() {
    let stalling = Arc::new(Stalling { inner: SimDevice::new(16_384, 1), stall: false.into() });
    let device: Arc<dyn BlockDevice> = stalling.clone();
    let fs = new_pool(&device);
    let root = NodeId::root(VolumeId::TREE);
    let owner = Owner { mode: 0o644, uid: 0, gid: 0 };
    let make = |name: &[u8]| {
        let id = fs.create(root, name, NewNode::File, owner).expect("create").id;
        fs.open_file(id).expect("open")
    };
    let (read, written) = (make(b"read"), make(b"written"));
    let data = vec![7u8; 1 << 20];
    read.write_at(0, &data).expect("write");
    // Out of the cache, which holds 8 MiB.
    for at in 0..12 {
        written.write_at((at % 6) << 20, &data).expect("write");
    }
    fs.sync().expect("sync");
    std::thread::scope(|s| {
        stalling.stall.store(true, Ordering::SeqCst);
        s.spawn(|| {
            let mut block = [0; BLOCK as usize];
            read.read_at(0, &mut block).expect("read");
            assert_eq!(block[0], 7);
        });
        while stalling.stall.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        for at in 0..160 {
            written.write_at((at % 6) << 20, &data).expect("what was freed is waited for");
        }
    });
}
