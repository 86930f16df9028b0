//! A write up to the announced limit is there wholly or not at all: after a crash, and for readers
//! beside it.

use crate::crash::{at_every_call, formatted};
use crate::pool::*;
use lunfs::lun::{BlockIo, Catalog};
use std::sync::atomic::{AtomicBool, Ordering};

/// First byte and length of each write: one to two MiB, at odd blocks of 512, over one another.
const WRITES: [(u64, usize); 6] = [
    (512, 2 << 20),
    (3 * 512, (2 << 20) - 512),
    (5 * MIB + 512, 1 << 20),
    (4 * MIB + 7 * 512, 2 << 20),
    (9 * MIB - 512, (1 << 20) + 4096),
    (512, 2 << 20),
];
const SIZE: u64 = 12 * MIB;

/// What the disk holds after the first `count` writes.
fn image(count: usize) -> Vec<u8> {
    let mut image = vec![0; SIZE as usize];
    for (i, (offset, length)) in WRITES.iter().enumerate().take(count) {
        image[*offset as usize..][..*length].copy_from_slice(&noise(i as u64, *length));
    }
    image
}

/// Writes all; every third is durable when it returns, in between a consistency point runs. Gives
/// how many are durable and how many may be.
fn work(catalog: &Catalog) -> (usize, usize) {
    let Ok(lun) = catalog.create("vm1", &sized(SIZE)) else { return (0, 0) };
    let Ok(disk) = lun.attach(request("a")) else { return (0, 0) };
    let mut durable = 0;
    for (i, (offset, length)) in WRITES.iter().enumerate() {
        let fua = i % 3 == 2;
        if disk.write(*offset, &noise(i as u64, *length), fua).is_err() {
            return (durable, i + 1);
        }
        if fua {
            durable = i + 1;
            let _ = catalog.fs().consistency_point();
        }
    }
    (durable, WRITES.len())
}

#[test]
fn large_writes_at_odd_blocks_are_whole_after_a_crash_at_any_call() {
    let images: Vec<Vec<u8>> = (0..=WRITES.len()).map(image).collect();
    at_every_call(&formatted(), work, |catalog, (durable, begun), at| {
        let Ok(lun) = catalog.get("vm1") else {
            assert_eq!(durable, 0, "crash at call {at}: the LUN is lost");
            return;
        };
        let mut found = vec![1; SIZE as usize];
        login(&lun, "b").read(0, &mut found).unwrap();
        let count = images.iter().position(|image| *image == found);
        let good = count.is_some_and(|count| (durable..=begun).contains(&count));
        assert!(good, "crash at call {at}: {count:?} writes are there, {durable} were durable");
    });
}

#[test]
fn a_reader_beside_a_writer_sees_a_write_whole_or_not_at_all() {
    const LENGTH: usize = 2 << 20;
    let pool = Pool::new();
    let lun = pool.lun("vm1", 8 * MIB);
    let done = AtomicBool::new(false);
    login(&lun, "w").write(512, &vec![0; LENGTH], false).unwrap();
    std::thread::scope(|scope| {
        for client in ["a", "b"] {
            let (disk, done) = (login(&lun, client), &done);
            scope.spawn(move || {
                let mut out = vec![0; LENGTH];
                let mut last = 0;
                while !done.load(Ordering::Relaxed) {
                    disk.read(512, &mut out).unwrap();
                    let stamp = out[0];
                    assert!(out.iter().all(|byte| *byte == stamp), "half of write {stamp}");
                    assert!(stamp >= last, "write {last} was seen, now {stamp}");
                    last = stamp;
                }
            });
        }
        let disk = login(&lun, "w");
        for stamp in 1..=60 {
            disk.write(512, &vec![stamp; LENGTH], stamp % 16 == 0).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
}
