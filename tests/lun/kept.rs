//! What a LUN keeps beside its files: reservations that bind the other doors, and sanitize.

use crate::pool::*;
use lunfs::device::sim::SimDevice;
use lunfs::device::BlockDevice;
use lunfs::fs::{FormatOptions, Fs, OpenOptions, Redundancy, SystemClock, Timestamp};
use lunfs::lun::{AttachRequest, BlockError, BlockIo, Error, Lun, SanitizeOrder, SanitizeState};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SECRET: &[u8; 16] = b"the secret words";

fn order(pattern: Option<Vec<u8>>) -> SanitizeOrder {
    SanitizeOrder { pattern, passes: 2, invert: true, may_exit: true }
}

fn wait_until_done(lun: &Lun) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while lun.sanitize_state() != SanitizeState::Idle {
        assert!(Instant::now() < deadline, "{:?}", lun.sanitize_state());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// How often the secret stands in the pool's file.
fn secrets(pool: &Pool) -> usize {
    let bytes = std::fs::read(pool.scratch("pool")).unwrap();
    bytes.chunks(512).filter(|sector| sector.starts_with(SECRET)).count()
}

/// Writes the secret, each time to other places of the pool.
fn spread_secrets(pool: &Pool, lun: &Arc<Lun>) {
    let disk = login(lun, "iqn.a");
    for _ in 0..3 {
        disk.write(0, &SECRET.repeat((MIB / 16) as usize), false).unwrap();
        pool.fs.consistency_point().unwrap();
        disk.write(MIB, &SECRET.repeat(512 / 16), true).unwrap();
    }
    disk.logout();
}

#[test]
fn a_sanitize_leaves_nothing_on_the_device() {
    let pool = Pool::sized(96 * MIB);
    let (lun, other) = (pool.lun("vm1", 8 * MIB), pool.lun("vm2", MIB));
    let kept = login(&other, "iqn.b");
    kept.write(0, &noise(1, 65536), true).unwrap();
    spread_secrets(&pool, &lun);
    assert!(secrets(&pool) > 2048, "older versions are still there");
    for pattern in [Some(vec![0xAA; 512]), None] {
        let disk = login(&lun, "iqn.a");
        disk.sanitize(&order(pattern.clone())).unwrap();
        assert!(matches!(disk.read(0, &mut [0; 512]), Err(BlockError::Sanitizing)));
        assert!(matches!(disk.write(0, &[1; 512], false), Err(BlockError::Sanitizing)));
        assert!(matches!(disk.sanitize(&order(None)), Err(BlockError::Sanitizing)));
        assert!(matches!(lun.open_file(READ), Err(Error::Busy { .. })));
        disk.logout(); // it goes on
        wait_until_done(&lun);
        pool.fs.consistency_point().unwrap();
        assert_eq!(secrets(&pool), 0);
        let mut block = [1; 512];
        login(&lun, "iqn.a").read(8 * MIB - 512, &mut block).unwrap();
        assert_eq!(block, [pattern.map_or(0, |p| p[0]); 512]);
    }
    let mut block = vec![0; 65536];
    kept.read(0, &mut block).unwrap();
    assert_eq!(block, noise(1, 65536), "the other LUN is as it was");
    assert!(logged(&lun, "sanitize", "done"));
    open(&lun, READ_WRITE).write_at(0, &[1]).unwrap();
}

#[test]
fn a_sanitize_outlives_its_server() {
    let pool = Pool::sized(96 * MIB);
    let lun = pool.lun("vm1", 8 * MIB);
    spread_secrets(&pool, &lun);
    login(&lun, "iqn.a").sanitize(&order(None)).unwrap();
    pool.catalog.stop();
    assert!(matches!(lun.sanitize_state(), SanitizeState::Running(_)));
    drop(lun);
    let pool = pool.reopen();
    let lun = pool.catalog.get("vm1").unwrap();
    let disk = login(&lun, "iqn.a");
    assert!(matches!(disk.read(0, &mut [0; 512]), Err(BlockError::Sanitizing)));
    pool.catalog.resume();
    wait_until_done(&lun);
    disk.read(0, &mut [0; 512]).unwrap();
    assert_eq!(secrets(&pool), 0);
}

#[test]
fn a_pattern_needs_room_for_all_of_the_lun() {
    let pool = Pool::sized(96 * MIB);
    let disk = login(&pool.lun("thin", GIB), "iqn.a");
    let pattern = Some(vec![0xAA; 512]);
    assert!(matches!(disk.sanitize(&order(pattern)), Err(BlockError::NoSpace)));
    assert_eq!(disk.sanitize_state(), SanitizeState::Idle);
    disk.write(0, &[1; 512], false).unwrap();
}

#[test]
fn a_reservation_binds_the_other_doors_and_the_next_server() {
    let pool = Pool::new();
    let lun = pool.lun("vm1", MIB);
    let foreign =
        |lun: &Arc<Lun>| lun.attach(AttachRequest { door: "nbd", ..request("127.0.0.1") }).unwrap();
    let disk = login(&lun, "iqn.a");
    assert_eq!(disk.reservations(), "");
    disk.keep_reservations(Some("a line\n"), true).unwrap();
    disk.write(0, &[1; 512], true).unwrap();
    disk.logout();
    assert!(matches!(lun.open_file(READ_WRITE), Err(Error::Busy { .. })));
    assert!(open(&lun, READ).read_at(0, &mut [0; 512]).is_ok());
    assert!(matches!(foreign(&lun).write(0, &[2; 512], false), Err(BlockError::Reserved)));
    drop((disk, lun));
    let pool = pool.reopen();
    let lun = pool.catalog.get("vm1").unwrap();
    assert!(matches!(lun.open_file(READ_WRITE), Err(Error::Busy { .. })));
    assert!(matches!(foreign(&lun).write(0, &[2; 512], false), Err(BlockError::Reserved)));
    let disk = login(&lun, "iqn.a");
    assert_eq!(disk.reservations(), "a line\n");
    disk.keep_reservations(None, false).unwrap();
    disk.logout();
    foreign(&lun).write(0, &[2; 512], false).unwrap();
    drop((disk, lun));
    let pool = pool.reopen();
    let lun = pool.catalog.get("vm1").unwrap();
    open(&lun, READ_WRITE).write_at(0, &[1]).unwrap();
}

#[test]
fn block_clients_hear_once_of_each_time_the_threshold_is_met() {
    let pool = Pool::new();
    let lun = pool.lun("vm1", 16 * MIB);
    lun.set(&[("threshold".into(), "50".into())]).unwrap();
    let disk = login(&lun, "iqn.a");
    let piece = noise(3, MIB as usize);
    let fill = |from: u64, to: u64| {
        (from..to).for_each(|at| disk.write(at * MIB, &piece, false).unwrap());
        disk.threshold_events()
    };
    assert_eq!(fill(0, 7), 0);
    let generation = disk.generation();
    assert_eq!(fill(7, 9), 1);
    assert!(disk.generation() > generation && logged(&lun, "threshold", "50"));
    assert_eq!(fill(9, 12), 1);
    assert_eq!(disk.provisioning().used_bytes, 12 * MIB);
    disk.unmap(0, 12 * MIB).unwrap();
    assert_eq!(fill(0, 9), 2);
}

/// What is on a device that is away would stay there.
#[test]
fn a_sanitize_wants_all_devices() {
    let sim = |i: u64| Arc::new(SimDevice::new(24_576, i));
    let devices: Vec<Arc<dyn BlockDevice>> = vec![sim(1), sim(2)];
    let format = FormatOptions {
        pool_id: [9; 16],
        created: Timestamp(1),
        paths: vec!["a".into(), "b".into()],
        redundancy: Redundancy::Mirror,
    };
    Fs::format(&devices, &format).unwrap();
    let clock = Arc::new(SystemClock);
    let options = OpenOptions { cache_bytes: 16 * MIB, clock, ..OpenOptions::default() };
    let catalog = open_catalog(Fs::open(devices, options).unwrap());
    let lun = catalog.create("vm1", &sized(MIB)).unwrap();
    let disk = login(&lun, "iqn.a");
    disk.write(0, &[7; 4096], true).unwrap();
    catalog.fs().offline(1).unwrap();
    assert!(matches!(disk.sanitize(&order(None)), Err(BlockError::DeviceMissing)));
    assert_eq!(lun.sanitize_state(), SanitizeState::Idle);
    assert!(logged(&lun, "sanitize", "refused"));
    let mut out = [0; 4096];
    disk.read(0, &mut out).unwrap();
    assert_eq!(out, [7; 4096]);
}
