//! Bytes: sparse files, truncation, holes, copies, figures.

use crate::pool::{errno, Pool};
use rustix::fs::{FallocateFlags, SeekFrom};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

fn create(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create_new(true).open(path).unwrap()
}

/// Writes 64 KiB of ones at 1 MiB into an empty file of 4 MiB.
fn island(path: &Path) -> File {
    let file = create(path);
    file.set_len(4 * MIB).unwrap();
    file.write_all_at(&[1; 64 * KIB as usize], MIB).unwrap();
    file
}

fn seek(file: &File, to: SeekFrom) -> Result<u64, rustix::io::Errno> {
    rustix::fs::seek(file, to)
}

#[test]
fn holes_are_found() {
    let Some(pool) = Pool::new() else { return };
    let file = island(&pool.path("f"));
    assert_eq!(seek(&file, SeekFrom::Data(0)), Ok(MIB));
    assert_eq!(seek(&file, SeekFrom::Hole(0)), Ok(0));
    assert_eq!(seek(&file, SeekFrom::Data(MIB + 5)), Ok(MIB + 5));
    assert_eq!(seek(&file, SeekFrom::Hole(MIB)), Ok(MIB + 64 * KIB));
    assert_eq!(errno(seek(&file, SeekFrom::Data(2 * MIB))), libc::ENXIO);
    assert_eq!(seek(&file, SeekFrom::Hole(2 * MIB)), Ok(2 * MIB));
    assert_eq!(errno(seek(&file, SeekFrom::Hole(4 * MIB))), libc::ENXIO);
    assert_eq!(file.metadata().unwrap().blocks() * 512, 64 * KIB);
}

#[test]
fn fallocate_punches_zeroes_and_extends() {
    let Some(pool) = Pool::new() else { return };
    let file = island(&pool.path("f"));
    let call = |mode, offset, len| rustix::fs::fallocate(&file, mode, offset, len);
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    call(punch, MIB + 100, 8 * KIB).unwrap();
    let mut back = vec![9; 64 * KIB as usize];
    file.read_exact_at(&mut back, MIB).unwrap();
    let zeros = back.iter().filter(|&&b| b == 0).count();
    assert_eq!(zeros as u64, 8 * KIB);
    assert!(back[..100].iter().chain(&back[100 + 8192..]).all(|&b| b == 1));
    call(FallocateFlags::empty(), 4 * MIB, MIB).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 5 * MIB);
    call(FallocateFlags::KEEP_SIZE, 5 * MIB, MIB).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 5 * MIB);
    call(FallocateFlags::ZERO_RANGE, MIB, 6 * MIB).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 7 * MIB);
    file.read_exact_at(&mut back, MIB).unwrap();
    assert!(back.iter().all(|&b| b == 0));
    assert_eq!(errno(call(FallocateFlags::COLLAPSE_RANGE, 0, 4096)), libc::EOPNOTSUPP);
    assert_eq!(errno(call(FallocateFlags::empty(), 0, 1 << 40)), libc::ENOSPC);
    assert_eq!(errno(call(punch, 0, 0)), libc::EINVAL);
}

#[test]
fn truncating_cuts_and_extends_with_zeros() {
    let Some(pool) = Pool::new() else { return };
    let path = pool.path("f");
    fs::write(&path, vec![7; 10_000]).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    file.set_len(5000).unwrap();
    file.set_len(20_000).unwrap();
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len(), 20_000);
    assert!(bytes[..5000].iter().all(|&b| b == 7) && bytes[5000..].iter().all(|&b| b == 0));
    assert_eq!(errno(file.set_len(1 << 53)), libc::EFBIG);
    File::create(&path).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 0);
    assert_eq!(fs::read(&path).unwrap(), b"");
}

#[test]
fn appenders_do_not_overwrite_each_other() {
    let Some(pool) = Pool::new() else { return };
    let path = pool.path("f");
    let open = || OpenOptions::new().append(true).create(true).open(&path).unwrap();
    let (mut one, mut two) = (open(), open());
    for _ in 0..100 {
        one.write_all(b"one\n").unwrap();
        two.write_all(b"two\n").unwrap();
    }
    assert_eq!(fs::read(&path).unwrap(), b"one\ntwo\n".repeat(100));
}

#[test]
fn copies_keep_bytes_and_holes() {
    let Some(pool) = Pool::new() else { return };
    let source = island(&pool.path("a"));
    let target = create(&pool.path("b"));
    let (mut from, mut to) = (0, 0);
    while from < 4 * MIB {
        let len = (4 * MIB - from) as usize;
        let done =
            rustix::fs::copy_file_range(&source, Some(&mut from), &target, Some(&mut to), len);
        assert!(done.unwrap() > 0);
    }
    assert_eq!(fs::read(pool.path("a")).unwrap(), fs::read(pool.path("b")).unwrap());
    assert_eq!(target.metadata().unwrap().blocks() * 512, 64 * KIB);
    // Over what was there, and at odd places.
    let old = create(&pool.path("c"));
    old.write_all_at(&vec![5; 2 * MIB as usize], 0).unwrap();
    let (mut from, mut to) = (MIB - 3, 11);
    rustix::fs::copy_file_range(&source, Some(&mut from), &old, Some(&mut to), 10).unwrap();
    let mut back = [0; 14];
    old.read_exact_at(&mut back, 9).unwrap();
    let copied = (to - 11) as usize;
    assert!(copied == 3 || copied == 10);
    assert_eq!(&back[..5], [5, 5, 0, 0, 0]);
}

/// Blocks written by what is done, its consistency point included.
fn written(pool: &Pool, what: impl FnOnce()) -> u64 {
    pool.fs.consistency_point().unwrap();
    let before = pool.fs.stats().blocks_written;
    what();
    pool.fs.consistency_point().unwrap();
    pool.fs.stats().blocks_written - before
}

/// The file would not fit the pool twice.
#[test]
fn cp_shares_blocks() {
    let Some(pool) = Pool::new() else { return };
    let (path, copy) = (pool.path("a"), pool.path("b"));
    let source = create(&path);
    for i in 0..160 {
        source.write_all_at(&vec![i as u8 + 1; MIB as usize], i << 20).unwrap();
    }
    source.sync_all().unwrap();
    let cost = written(&pool, || {
        assert!(Command::new("cp").args([&path, &copy]).status().unwrap().success());
    });
    println!("{cost} blocks written");
    assert!(cost < 60, "{cost} blocks were written");
    let target = OpenOptions::new().read(true).write(true).open(&copy).unwrap();
    assert_eq!(target.metadata().unwrap().blocks(), 160 * 2048);
    target.write_all_at(b"other", 5 << 20).unwrap();
    source.write_all_at(b"one", 6 << 20).unwrap();
    let at = |file: &File, i: u64| {
        let mut out = [0; 5];
        file.read_exact_at(&mut out, i << 20).unwrap();
        out
    };
    assert_eq!((at(&source, 5), at(&target, 5)), ([6; 5], *b"other"));
    assert_eq!((at(&source, 6), at(&target, 6)), ([b'o', b'n', b'e', 7, 7], [7; 5]));
    assert_eq!(at(&target, 100), [101; 5]);
}

/// Of a file of 1 GiB with a block in each MiB.
#[test]
fn a_large_copy_writes_a_handful_of_blocks() {
    let Some(pool) = Pool::new() else { return };
    let (source, target) = (create(&pool.path("a")), create(&pool.path("b")));
    source.set_len(1 << 30).unwrap();
    for i in 0..1024 {
        source.write_all_at(&[i as u8; 4096], i << 20).unwrap();
    }
    source.sync_all().unwrap();
    let cost = written(&pool, || {
        let (mut from, mut to) = (0, 0);
        while from < 1 << 30 {
            let len = (1 << 30) - from as usize;
            let done =
                rustix::fs::copy_file_range(&source, Some(&mut from), &target, Some(&mut to), len);
            assert!(done.unwrap() > 0);
        }
    });
    println!("{cost} blocks written");
    assert!(cost < 60, "{cost} blocks were written");
    let found = target.metadata().unwrap();
    assert_eq!((found.len(), found.blocks()), (1 << 30, 1024 * 8));
}

#[test]
fn a_file_read_through_the_cache_and_around_it() {
    let Some(pool) = Pool::new() else { return };
    let path = pool.path("f");
    let mut bytes = vec![0; 3 * MIB as usize + 77];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = (i / 7) as u8;
    }
    fs::write(&path, &bytes).unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes);
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECT;
    let direct = rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).unwrap();
    let mut around = Vec::new();
    File::from(direct).read_to_end(&mut around).unwrap();
    assert!(around == bytes);
}

#[test]
fn figures_of_the_pool_are_told() {
    let Some(pool) = Pool::new() else { return };
    let told = rustix::fs::statvfs(pool.path("")).unwrap();
    let stats = pool.fs.stats();
    assert_eq!(told.f_blocks * told.f_frsize, stats.size_bytes / 4096 * 4096);
    assert!(told.f_bfree * told.f_frsize <= stats.size_bytes && told.f_bfree > 0);
    assert_eq!(told.f_namemax, 255);
    assert_eq!(told.f_bavail, told.f_bfree);
}

#[test]
fn bytes_outlive_a_restart() {
    let Some(mut pool) = Pool::new() else { return };
    fs::create_dir(pool.path("dir")).unwrap();
    let mut file = create(&pool.path("dir/f"));
    file.write_all(b"to stay").unwrap();
    file.sync_all().unwrap();
    File::open(pool.path("dir")).unwrap().sync_all().unwrap();
    file.seek(std::io::SeekFrom::Start(0)).unwrap();
    let before = file.metadata().unwrap().ino();
    drop(file);
    pool.restart();
    assert_eq!(fs::read(pool.path("dir/f")).unwrap(), b"to stay");
    assert_eq!(fs::metadata(pool.path("dir/f")).unwrap().ino(), before);
}
