//! The log: what was acknowledged stays, and what survives is a prefix.

use crate::lab::*;
use lunfs::device::sim::{IoEvent, IoKind, Rng, SimDevice};
use lunfs::fs::{Fs, NodeId, RenameMode, VolumeId};
use parking_lot::Mutex;
use std::sync::Arc;

/// Where a block with these bytes is.
fn find(device: &SimDevice, bytes: &[u8]) -> u64 {
    let holds = |at: &u64| read_block(device, *at).0[..] == *bytes;
    device.stored_blocks().into_iter().find(holds).expect("the block")
}

fn crash(devices: &[Arc<SimDevice>], fs: Arc<Fs>, seed: u64) {
    devices.iter().for_each(|d| d.cut_power());
    drop(fs);
    devices.iter().for_each(|d| {
        d.crash(seed);
    });
}

/// Nine groups are acknowledged. One block of the first rots; power fails. Replay finds a wrong
/// checksum in an old group: ending there would undo all that was acknowledged after it.
#[test]
fn rot_in_an_old_group_costs_its_block_alone() {
    let devices = plain(1);
    let fs = open(&devices);
    let ids: Vec<NodeId> = (1..10)
        .map(|seed| {
            let id = make_file(&fs, &format!("f{seed}"), seed, 4);
            fs.sync().expect("sync");
            id
        })
        .collect();
    let at = find(&devices[0], &content(1, 2));
    devices[0].flip_bit(at, 77);
    crash(&devices, fs, 1);
    let fs = open(&devices);
    assert_eq!(readable(&fs, ids[0], 1, 4), [true, true, false, true]);
    for (i, id) in ids.iter().enumerate().skip(1) {
        assert_readable(&fs, *id, i as u64 + 1, 4);
    }
}

/// Of two writes that nobody flushed the first is torn and the second whole. Judging each by
/// itself would bring back the second without the first.
#[test]
fn what_survives_is_a_prefix() {
    const WRITES: u64 = 40;
    let mut lengths = std::collections::BTreeSet::new();
    for seed in 0..30 {
        let devices = plain(1);
        let fs = open(&devices);
        let id = make_file(&fs, "f", 0, 0);
        fs.sync().expect("sync");
        let file = fs.open_file(id).expect("open");
        for n in 0..WRITES {
            let bytes: Vec<u8> = (0..100).flat_map(|b| content(n + 1, b)).collect();
            file.write_at(n * 100 * BLOCK, &bytes).expect("write");
        }
        drop(file);
        crash(&devices, fs, seed);
        let fs = open(&devices);
        let file = fs.open_file(id).expect("open");
        let whole = |n: u64| {
            let mut got = vec![0; 100 * BLOCK as usize];
            let len = file.read_at(n * 100 * BLOCK, &mut got).expect("read");
            let right: Vec<u8> = (0..100).flat_map(|b| content(n + 1, b)).collect();
            assert!(got == right || len == 0 || got.iter().all(|b| *b == 0), "half a write");
            got == right
        };
        let there: Vec<bool> = (0..WRITES).map(whole).collect();
        let len = there.iter().take_while(|t| **t).count();
        assert!(there[len..].iter().all(|t| !t), "seed {seed}: {there:?}");
        lengths.insert(len);
    }
    assert!(lengths.len() > 3, "the crashes differ: {lengths:?}");
}

/// A block is written and flushed, then written again; the second version is written out, not
/// flushed, when power fails. If it had the first one's place, the flushed data would be gone and
/// replay would end at its checksum.
#[test]
fn a_block_changed_after_its_flush_keeps_what_was_flushed() {
    for seed in 0..20 {
        let devices = plain(1);
        let fs = open(&devices);
        let id = make_file(&fs, "f", 1, 20);
        let other = make_file(&fs, "other", 3, 20);
        fs.sync().expect("sync");
        let file = fs.open_file(id).expect("open");
        file.write_at(5 * BLOCK, &content(2, 5)).expect("write");
        // More than a group holds: it is written out without a flush.
        let ballast = make_file(&fs, "ballast", 4, 0);
        let big: Vec<u8> = (0..500).flat_map(|b| content(4, b)).collect();
        let file4 = fs.open_file(ballast).expect("open");
        file4.write_at(0, &big).expect("write");
        file4.write_at(500 * BLOCK, &big).expect("write");
        drop((file, file4));
        crash(&devices, fs, seed);
        let fs = open(&devices);
        assert_readable(&fs, other, 3, 20);
        let mut got = vec![0; BLOCK as usize];
        fs.open_file(id).expect("open").read_at(5 * BLOCK, &mut got).expect("read");
        assert!(got == content(1, 5) || got == content(2, 5), "seed {seed}");
    }
}

/// A consistency point runs; beside it, in the next epoch, an append and a rename are flushed.
/// Power fails at every call in turn. Replaying the epoch of the root again would append twice and
/// rename what is not there; skipping the next one would lose what was acknowledged.
#[test]
fn a_crash_beside_a_consistency_point_replays_each_epoch_once() {
    for fail_after in 0..40 {
        let devices = plain(1);
        let fs = open(&devices);
        let id = make_file(&fs, "a", 1, 3);
        let root = NodeId::root(VolumeId::TREE);
        fs.sync().expect("sync");
        // Records of the running epoch, then the consistency point.
        fs.open_file(id).expect("open").append(&content(1, 3)).expect("append");
        let beside: Arc<Mutex<Option<Arc<Fs>>>> = Arc::new(Mutex::new(Some(fs.clone())));
        let acknowledged = Arc::new(Mutex::new(false));
        let base = devices[0].calls();
        devices[0].power_fails_at(Some(base + 2 + fail_after));
        let (b, a) = (beside.clone(), acknowledged.clone());
        devices[0].on_io(Some(Arc::new(move |e: &IoEvent| {
            // Not while the log is written: the third write is of the trees.
            if e.kind == IoKind::Write && e.done && e.number >= base + 3 {
                let Some(fs) = b.lock().take() else { return };
                let done = fs.open_file(id).and_then(|f| f.append(&content(1, 4)).map(|_| f));
                let renamed = fs.rename(root, b"a", root, b"b", RenameMode::NoReplace);
                *a.lock() = done.is_ok() && renamed.is_ok() && fs.sync().is_ok();
            }
        })));
        let _ = fs.consistency_point();
        devices[0].on_io(None);
        let acknowledged = *acknowledged.lock();
        beside.lock().take();
        crash(&devices, fs, fail_after);
        let fs = open(&devices);
        let names = [b"a", b"b"].map(|n| fs.lookup(root, n).is_ok());
        assert_ne!(names[0], names[1], "at {fail_after}");
        let size = fs.getattr(id).expect("attributes").size_bytes;
        assert!(size % BLOCK == 0 && (3..=5).contains(&(size / BLOCK)), "at {fail_after}");
        assert!(!acknowledged || (names[1] && size == 5 * BLOCK), "at {fail_after}");
        assert_readable(&fs, id, 1, size / BLOCK);
        drop(fs);
        assert_sound(&devices);
    }
}

/// After a crash a client reads data that was never flushed, but survived. A second crash, before
/// anything else, must not take it away again.
#[test]
fn a_second_crash_does_not_go_back_behind_what_was_read() {
    for (seed, devices) in (0..12).flat_map(|s| [(s, plain(1)), (s, mirrored())]) {
        let fs = open(&devices);
        let id = make_file(&fs, "f", 1, 0);
        fs.sync().expect("sync");
        let file = fs.open_file(id).expect("open");
        for b in 0..1500 {
            file.write_at(b * BLOCK, &content(1, b)).expect("write");
        }
        drop(file);
        crash(&devices, fs, seed);
        let fs = open(&devices);
        let size = fs.getattr(id).expect("attributes").size_bytes;
        assert_readable(&fs, id, 1, size / BLOCK);
        crash(&devices, fs, seed + 100);
        if devices.len() == 2 {
            // And only the other half is good afterwards.
            ruin(&devices[(seed % 2) as usize], 512);
        }
        let fs = open(&devices);
        assert_eq!(fs.getattr(id).expect("attributes").size_bytes, size, "seed {seed}");
        assert_readable(&fs, id, 1, size / BLOCK);
    }
}

/// A file is unlinked while it is open, and power fails: nobody closes it any more.
#[test]
fn an_unlinked_open_file_is_freed_after_a_crash() {
    let devices = plain(1);
    let fs = open(&devices);
    fs.consistency_point().expect("consistency point");
    let used = fs.stats().used_bytes;
    let id = make_file(&fs, "f", 1, 500);
    let file = fs.open_file(id).expect("open");
    fs.unlink(NodeId::root(VolumeId::TREE), b"f").expect("unlink");
    fs.consistency_point().expect("consistency point");
    let mut got = vec![0; BLOCK as usize];
    file.read_at(7 * BLOCK, &mut got).expect("read");
    assert_eq!(got, content(1, 7));
    fs.sync().expect("sync");
    devices[0].cut_power();
    drop(file);
    crash(&devices, fs, 3);
    let fs = open(&devices);
    while fs.maintain().expect("maintain") {}
    fs.maintain().expect("maintain");
    assert!(fs.stats().used_bytes <= used + 16 * BLOCK, "{} of {used}", fs.stats().used_bytes);
    drop(fs);
    assert_sound(&devices);
}

/// A small write and its flush are one contiguous write of data and head, and one device flush.
#[test]
fn a_flush_is_one_write_and_one_flush() {
    let devices = plain(1);
    let fs = open(&devices);
    let id = make_file(&fs, "f", 1, 8);
    fs.sync().expect("sync");
    let file = fs.open_file(id).expect("open");
    let mut rng = Rng::new(1);
    let (before, calls) = (devices[0].counters(), devices[0].calls());
    for _ in 0..10 {
        file.write_at(rng.below(8) * BLOCK, &content(2, 0)).expect("write");
        fs.sync().expect("sync");
    }
    let after = devices[0].counters();
    assert_eq!(after.flushes - before.flushes, 10);
    let others = devices[0].calls() - calls - 10;
    assert!(others <= 12, "{others} reads and writes");
}
