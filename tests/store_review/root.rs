//! Roots: which one counts.

use crate::lab::*;
use fs_layout::{Root, ROOT_COPIES};
use lunfs::device::sim::SimDevice;
use lunfs::device::BlockDevice;
use lunfs::fs::Fs;
use std::sync::Arc;

fn newest_slot(device: &SimDevice) -> u64 {
    let epoch = |slot: &u64| {
        let root = Root::decode(&read_block(device, ROOT_COPIES[0] + slot).0);
        root.map_or(0, |(root, _)| root.epoch)
    };
    [0, 1].into_iter().max_by_key(epoch).expect("two slots")
}

/// The newest durable root rots. The one before is whole and names blocks that were reused since:
/// "the highest valid root" would serve garbage.
#[test]
fn a_rotten_newest_root_is_no_reason_to_go_back() {
    let devices = plain(1);
    let fs = open(&devices);
    let id = make_file(&fs, "f", 1, 10);
    fs.consistency_point().expect("consistency point");
    fs.close().expect("close");
    drop(fs);
    let slot = newest_slot(&devices[0]);
    // One copy: the other is used.
    devices[0].flip_bit(ROOT_COPIES[0] + slot, 5);
    assert_readable(&open(&devices), id, 1, 10);
    // Opening wrote new roots. Both copies of the newest: refused.
    let slot = newest_slot(&devices[0]);
    ROOT_COPIES.iter().for_each(|at| devices[0].flip_bit(at + slot, 5));
    let refused = Fs::open(dyns(&devices), options());
    assert!(refused.is_err_and(|e| e.to_string().contains("both copies of a root")));
}

/// Power fails at each call of a consistency point in turn: what it was to make durable is there,
/// or what was before it, and at most one copy of a root is unreadable.
#[test]
fn a_crash_leaves_a_root() {
    for fail_after in 1..30 {
        let devices = plain(1);
        let fs = open(&devices);
        let id = make_file(&fs, "f", 1, 10);
        fs.sync().expect("sync");
        devices[0].power_fails_at(Some(devices[0].calls() + fail_after));
        let _ = fs.consistency_point();
        drop(fs);
        devices[0].crash(fail_after);
        let copies = [0, 1].map(|slot| {
            let bad = |at: &&u64| {
                let raw = read_block(&devices[0], **at + slot);
                raw.0 != [0; 4096] && Root::decode(&raw.0).is_err()
            };
            ROOT_COPIES.iter().filter(bad).count()
        });
        assert!(copies[0] + copies[1] <= 1, "{copies:?} at {fail_after}");
        assert_readable(&open(&devices), id, 1, 10);
        assert_sound(&devices);
    }
}

/// Power fails between the copies of the newest root, and again while a later root is written over
/// that slot's first copy. If recovery had left the second copy as it was, an older root, then no
/// copy of the root before the newest would be there.
#[test]
fn recovery_makes_the_copies_of_a_slot_alike() {
    let devices = plain(1);
    let fs = open(&devices);
    let id = make_file(&fs, "f", 1, 10);
    fs.consistency_point().expect("consistency point");
    let slot = newest_slot(&devices[0]);
    let older = read_block(&devices[0], ROOT_COPIES[1] + slot);
    make_file(&fs, "g", 2, 10);
    fs.consistency_point().expect("consistency point");
    make_file(&fs, "h", 3, 10);
    fs.consistency_point().expect("consistency point");
    assert_eq!(newest_slot(&devices[0]), slot);
    let between = devices[0].after_crash(1);
    between.write(ROOT_COPIES[1] + slot, &[&older]).expect("write");
    between.flush().expect("flush");
    for fail_after in 1..40 {
        let devices = vec![Arc::new(between.after_crash(1))];
        let fs = open(&devices);
        make_file(&fs, "i", 4, 10);
        devices[0].power_fails_at(Some(devices[0].calls() + fail_after));
        let _ = fs.consistency_point();
        drop(fs);
        devices[0].crash(fail_after);
        assert_sound(&devices);
        assert_readable(&open(&devices), id, 1, 10);
    }
}
