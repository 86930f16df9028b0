//! Each thing that the simulated device may do, does happen; and what it may not, does not.

use super::*;
use std::sync::atomic::AtomicBool;

fn filled(byte: u8) -> Box<Block> {
    let mut block = Block::zeroed();
    block.0.fill(byte);
    block
}

fn read(device: &SimDevice, first: u64) -> Box<Block> {
    let mut out = [filled(0xEE)];
    device.read(first, &mut out).unwrap();
    let [block] = out;
    block
}

fn byte_at(device: &SimDevice, first: u64) -> u8 {
    read(device, first).0[0]
}

fn write(device: &SimDevice, first: u64, byte: u8) {
    device.write(first, &[&filled(byte)]).unwrap();
}

#[test]
fn flushed_writes_survive_every_crash() {
    for seed in 0..200 {
        let device = SimDevice::new(1 << 28, seed);
        write(&device, 5, 1);
        write(&device, (1 << 28) - 1, 2);
        device.flush().unwrap();
        write(&device, 5, 3);
        assert_eq!(byte_at(&device, 5), 3);
        device.crash(seed);
        assert_eq!(byte_at(&device, (1 << 28) - 1), 2);
        let sectors: BTreeSet<u8> = read(&device, 5).0.chunks(512).map(|s| s[0]).collect();
        assert!(sectors.iter().all(|byte| [1, 3].contains(byte)));
        assert_eq!(device.state.lock().store.pending(), 0);
    }
}

#[test]
fn unflushed_writes_are_kept_lost_torn_and_reordered() {
    let (mut kept, mut lost, mut torn, mut reordered) = (0, 0, 0, 0);
    for seed in 0..300 {
        let device = SimDevice::new(100, 1);
        write(&device, 1, 7);
        write(&device, 2, 7);
        device.crash(seed);
        let (first, second) = (read(&device, 1), read(&device, 2));
        let whole = |b: &Block, byte| b.0.iter().all(|&x| x == byte);
        kept += u32::from(whole(&first, 7));
        lost += u32::from(whole(&first, 0));
        torn += u32::from(!whole(&first, 7) && !whole(&first, 0));
        reordered += u32::from(whole(&first, 0) && whole(&second, 7));
    }
    assert!(kept > 30 && lost > 30 && torn > 30 && reordered > 15);
}

#[test]
fn a_seed_decides_everything() {
    let run = |seed| {
        let device = SimDevice::new(1000, 9);
        (0..50).for_each(|n| write(&device, n * 3, n as u8 + 1));
        device.crash(seed);
        device.digest()
    };
    assert_eq!(run(4), run(4));
    assert_ne!(run(9), run(8));
}

#[test]
fn after_crash_leaves_the_original_alone() {
    let device = SimDevice::new(10, 1);
    write(&device, 1, 1);
    let digests: BTreeSet<_> =
        (0..50).map(|seed| *device.after_crash(seed).digest().as_bytes()).collect();
    assert!(digests.len() > 3);
    device.flush().unwrap();
    assert_eq!(byte_at(&device.after_crash(0), 1), 1);
}

#[test]
fn a_flush_covers_only_what_returned_before_it_began() {
    let device = Arc::new(SimDevice::new(10, 1));
    let (weak, once) = (Arc::downgrade(&device), AtomicBool::new(true));
    device.on_io(Some(Arc::new(move |event: &IoEvent| {
        if event.kind == IoKind::Flush && !event.done && once.swap(false, Ordering::Relaxed) {
            write(&weak.upgrade().unwrap(), 2, 2);
        }
    })));
    write(&device, 1, 1);
    device.flush().unwrap();
    assert_eq!(byte_at(&device, 2), 2);
    let after: BTreeSet<u8> = (0..50).map(|seed| byte_at(&device.after_crash(seed), 2)).collect();
    assert!(after.contains(&0), "the write in the middle of the flush was not covered");
    assert_eq!(byte_at(&device.after_crash(0), 1), 1);
}

#[test]
fn power_fails_at_a_call() {
    let device = SimDevice::new(10, 1);
    device.power_fails_at(Some(3));
    write(&device, 1, 1);
    device.flush().unwrap();
    let failed = device.write(1, &[&filled(2)]).unwrap_err();
    assert_eq!(failed.kind(), io::ErrorKind::BrokenPipe);
    assert!(device.power_is_off());
    assert!(device.flush().is_err() && device.read(0, &mut [filled(0)]).is_err());
    let after: BTreeSet<u8> = (0..50).map(|seed| byte_at(&device.after_crash(seed), 1)).collect();
    assert_eq!(after, BTreeSet::from([1, 2]));
    device.crash(1);
    write(&device, 1, 3);
    assert_eq!(byte_at(&device, 1), 3);
}

#[test]
fn power_that_fails_inside_a_hook_fails_the_outer_call() {
    let device = Arc::new(SimDevice::new(10, 1));
    let (weak, once) = (Arc::downgrade(&device), AtomicBool::new(true));
    device.on_io(Some(Arc::new(move |event: &IoEvent| {
        if event.kind == IoKind::Flush && once.swap(false, Ordering::Relaxed) {
            assert!(weak.upgrade().unwrap().read(0, &mut [filled(0)]).is_err());
        }
    })));
    write(&device, 1, 1);
    device.power_fails_at(Some(3));
    assert!(device.flush().is_err());
    let after: BTreeSet<u8> = (0..50).map(|seed| byte_at(&device.after_crash(seed), 1)).collect();
    assert_eq!(after, BTreeSet::from([0, 1]));
}

#[test]
fn failing_calls_leave_what_the_contract_allows() {
    let (mut shown, mut lost_for_ever) = (BTreeSet::new(), 0);
    for seed in 0..60 {
        let device = SimDevice::new(10, seed);
        write(&device, 1, 1);
        device.flush().unwrap();
        device.fail_writes(1);
        assert!(device.write(1, &[&filled(2)]).is_err());
        shown.insert(read(&device, 1).0.chunks(512).map(|s| s[0]).collect::<BTreeSet<_>>());
        write(&device, 1, 3);
        device.fail_flushes(1);
        assert!(device.flush().is_err());
        device.flush().unwrap();
        assert_eq!(byte_at(&device, 1), 3);
        device.crash(seed);
        lost_for_ever += u32::from(byte_at(&device, 1) != 3);
    }
    assert_eq!(shown.len(), 3, "old, new and torn");
    assert!(lost_for_ever > 5);
}

#[test]
fn media_faults() {
    let device = SimDevice::new(10, 1);
    write(&device, 1, 1);
    write(&device, 2, 2);
    device.flush().unwrap();
    device.make_unreadable(2);
    assert!(device.read(1, &mut [filled(0), filled(0)]).is_err());
    write(&device, 2, 3);
    assert_eq!(byte_at(&device, 2), 3);
    device.flip_bit(1, 9);
    assert_eq!(read(&device, 1).0[..3], [1, 3, 1]);
    device.lose_writes(1);
    write(&device, 1, 9);
    assert_eq!(byte_at(&device, 1), 1);
    device.misdirect_write(4);
    write(&device, 1, 8);
    assert_eq!((byte_at(&device, 1), byte_at(&device, 5)), (1, 8));
    device.vanish(true);
    assert_eq!(device.flush().unwrap_err().kind(), io::ErrorKind::NotConnected);
    device.vanish(false);
    device.flush().unwrap();
    let before = device.digest();
    assert_eq!(device.rot(3, 2, 2), [2, 5]);
    assert_ne!(device.digest(), before);
}

#[test]
fn discard_gives_zeros_and_costs_nothing_on_a_large_device() {
    let device = SimDevice::new(1 << 40, 1);
    write(&device, 7, 1);
    device.flush().unwrap();
    write(&device, 9, 2);
    device.discard(0, 1 << 40).unwrap();
    assert_eq!((byte_at(&device, 7), byte_at(&device, 9)), (0, 0));
    let after: BTreeSet<u8> = (0..50).map(|seed| byte_at(&device.after_crash(seed), 7)).collect();
    assert_eq!(after, BTreeSet::from([0, 1]));
    device.flush().unwrap();
    device.crash(1);
    assert_eq!(device.stored_blocks(), [] as [u64; 0]);
    assert_eq!(device.counters().blocks_discarded, 1 << 40);
}

#[test]
fn ends_are_checked_and_grow() {
    let device = SimDevice::new(10, 1);
    assert!(device.read(10, &mut [filled(0)]).is_err());
    assert!(device.discard(u64::MAX, 2).is_err());
    device.grow(11);
    write(&device, 10, 1);
    assert_eq!(byte_at(&device, 10), 1);
}
