//! When a block may be written again.

use crate::lab::*;
use lunfs::device::sim::{IoEvent, IoKind};
use lunfs::fs::{Error, Fs, NodeId, VolumeId};
use parking_lot::Mutex;
use std::sync::Arc;

/// Writes `blocks` more than are free, in one file, with consistency points between.
fn churn(fs: &Arc<Fs>, id: NodeId, blocks: u64, seed: u64) {
    let file = fs.open_file(id).expect("open");
    for n in 0..blocks / 200 {
        let bytes: Vec<u8> = (0..200).flat_map(|b| content(seed + n, b)).collect();
        match file.write_at(0, &bytes) {
            Ok(()) | Err(Error::NoSpace) => {}
            Err(e) => panic!("write: {e}"),
        }
        fs.consistency_point().expect("consistency point");
    }
}

/// A reader has found where a block is and waits for the device. Meanwhile the block is
/// overwritten, freed, and given to somebody else many times over. The reader must not get the
/// other one's bytes, nor an error, nor may healing write over the new owner.
#[test]
fn a_reader_under_way_keeps_its_block() {
    for devices in [plain(1), mirrored()] {
        let fs = open(&devices);
        let id = make_file(&fs, "f", 1, 64);
        let churned = make_file(&fs, "churned", 0, 0);
        fs.consistency_point().expect("consistency point");
        fs.close().expect("close");
        drop(fs);
        let fs = open(&devices);
        // Nodes are in memory now: what is read below is data.
        let file = fs.open_file(id).expect("open");
        file.read_at(0, &mut [0; 512]).expect("read");
        let inside: Arc<Mutex<Option<Arc<Fs>>>> = Arc::new(Mutex::new(Some(fs.clone())));
        for device in &devices {
            let inside = inside.clone();
            device.on_io(Some(Arc::new(move |e: &IoEvent| {
                if e.kind != IoKind::Read || e.done {
                    return;
                }
                let Some(fs) = inside.lock().take() else { return };
                let all: Vec<u8> = (0..64).flat_map(|b| content(2, b)).collect();
                fs.open_file(id).expect("open").write_at(0, &all).expect("write");
                churn(&fs, churned, 20_000, 100);
            })));
        }
        let mut got = vec![0; 16 * BLOCK as usize];
        file.read_at(8 * BLOCK, &mut got).expect("read");
        let right: Vec<u8> = (8..24).flat_map(|b| content(1, b)).collect();
        assert!(got == right);
        devices.iter().for_each(|d| d.on_io(None));
        assert!(inside.lock().is_none(), "the read went to the device");
        assert_eq!(fs.stats().checksum_errors, 0);
        drop(file);
        assert_eq!(scrub(&fs, 1000).bad, 0);
        assert_eq!(fs.scrub_status().healed, 0);
        fs.close().expect("close");
        drop(fs);
        assert_sound(&devices);
    }
}

/// A large file is deleted, and power fails again and again while its blocks are being freed. A
/// block freed without the walker's place being durable with it would be freed twice.
#[test]
fn freeing_that_is_interrupted_frees_everything_once() {
    let devices = plain(1);
    let fs = open(&devices);
    fs.consistency_point().expect("consistency point");
    let empty = fs.stats().used_bytes;
    let id = make_file(&fs, "f", 1, 0);
    let file = fs.open_file(id).expect("open");
    for b in 0..2000 {
        // Spread out: many nodes.
        file.write_at(b * 300 * BLOCK, &content(1, b)).expect("write");
    }
    drop(file);
    fs.consistency_point().expect("consistency point");
    fs.unlink(NodeId::root(VolumeId::TREE), b"f").expect("unlink");
    fs.sync().expect("sync");
    drop(fs);
    for fail_after in [1, 3, 5, 9, 12, 15, 20, 30, 50] {
        devices[0].power_fails_at(Some(devices[0].calls() + fail_after));
        if let Ok(fs) = Fs::open(dyns(&devices), options()) {
            while fs.maintain().unwrap_or(false) {}
        }
        devices[0].crash(fail_after);
        assert_sound(&devices);
    }
    let fs = open(&devices);
    while fs.maintain().expect("maintain") {}
    fs.maintain().expect("maintain");
    assert!(fs.stats().used_bytes <= empty + 16 * BLOCK);
}

/// The pool is full, and every block of a file is written again and again: all that is freed waits
/// for a consistency point, so space is coming though none is there.
#[test]
fn a_full_pool_can_be_overwritten() {
    let devices = plain(1);
    let fs = open(&devices);
    let id = make_file(&fs, "f", 1, 0);
    let file = fs.open_file(id).expect("open");
    let mut blocks = 0;
    loop {
        let some: Vec<u8> = (blocks..blocks + 64).flat_map(|b| content(1, b)).collect();
        match file.write_at(blocks * BLOCK, &some) {
            Ok(()) => blocks += 64,
            Err(Error::NoSpace) => break,
            Err(e) => panic!("write: {e}"),
        }
    }
    // Room for one overwrite: what it frees has to do for the next one.
    blocks -= 256;
    file.set_size(blocks * BLOCK).expect("truncate");
    for round in 2..4 {
        for first in (0..blocks).step_by(64) {
            let some: Vec<u8> = (first..first + 64).flat_map(|b| content(round, b)).collect();
            file.write_at(first * BLOCK, &some).expect("an overwrite");
        }
    }
    fs.sync().expect("sync");
    drop(file);
    assert_readable(&fs, id, 3, blocks);
    fs.unlink(NodeId::root(VolumeId::TREE), b"f").expect("a delete works always");
    while fs.maintain().expect("maintain") {}
    make_file(&fs, "g", 5, blocks - 1000);
}
