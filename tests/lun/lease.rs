//! One LUN, several doors.

use crate::pool::*;
use lunfs::lun::{BlockError, BlockIo, Error, Holder};
use std::time::{Duration, Instant};

#[test]
fn files_are_busy_while_a_block_client_writes() {
    let pool = Pool::new();
    let lun = pool.lun("vm1", MIB);
    let disk = login(&lun, "iqn.a");
    assert!(lun.open_file(READ_WRITE).is_ok(), "a login alone takes nothing");
    disk.write(0, &[1; 512], false).unwrap();
    assert_eq!(lun.lease_holder(), Holder::Block(vec!["iscsi iqn.a".into()]));
    assert!(matches!(lun.open_file(READ_WRITE), Err(Error::Busy { .. })));
    assert!(matches!(lun.open_file(TRUNCATE), Err(Error::Busy { .. })));
    assert!(logged(&lun, "refused", "iqn.a"), "the log names the holder");
    let reader = open(&lun, READ);
    let mut out = [0; 512];
    reader.read_at(0, &mut out).unwrap();
    assert_eq!(out, [1; 512]);
    disk.write(0, &[2; 512], false).unwrap();
    reader.read_at(0, &mut out).unwrap();
    assert_eq!(out, [2; 512], "every completed write is seen");
    disk.logout();
    open(&lun, READ_WRITE).write_at(0, &[3]).unwrap();
}

#[test]
fn write_only_opens_but_only_grows() {
    let pool = Pool::new();
    let lun = pool.lun("vm1", MIB);
    let disk = login(&lun, "iqn.a");
    disk.write(0, &[1; 512], false).unwrap();
    let file = open(&lun, WRITE_ONLY);
    assert!(matches!(file.write_at(0, &[2; 512]), Err(Error::Busy { .. })));
    assert!(matches!(file.append(&[2; 512]), Err(Error::Busy { .. })));
    assert!(matches!(file.punch(0, 4096), Err(Error::Busy { .. })));
    assert!(matches!(file.set_size(512), Err(Error::Busy { .. })));
    let generation = disk.generation();
    file.set_size(2 * MIB).unwrap();
    assert!(disk.generation() > generation);
    assert_eq!(disk.geometry().size_bytes, 2 * MIB);
    assert!(logged(&lun, "resize", "2097152"));
    disk.write(2 * MIB - 512, &[1; 512], false).unwrap();
    drop(disk);
    file.write_at(0, &[2; 512]).unwrap();
    assert_eq!(lun.lease_holder(), Holder::File(1));
}

#[test]
fn block_writes_wait_for_the_file_and_get_an_attention() {
    let pool = Pool::new();
    let lun = pool.lun("vm1", MIB);
    let disk = login(&lun, "iqn.a");
    let file = open(&lun, READ_WRITE);
    let start = Instant::now();
    assert!(matches!(disk.write(0, &[1; 512], false), Err(BlockError::HeldByFile)));
    assert!(start.elapsed() >= quick().file_wait);
    assert!(disk.try_write(0, &[1; 512]).is_none());
    assert!(matches!(disk.unmap(0, 512), Err(BlockError::HeldByFile)));
    disk.read(0, &mut [0; 512]).unwrap();
    disk.flush().unwrap();
    let (media, generation) = (disk.media_changes(), disk.generation());
    file.write_at(0, &[9; 512]).unwrap();
    let second = open(&lun, READ_WRITE);
    file.flush();
    assert!(matches!(disk.write(0, &[1; 512], false), Err(BlockError::HeldByFile)));
    drop(second);
    assert!(disk.media_changes() > media && disk.generation() > generation);
    disk.write(512, &[1; 512], false).unwrap();
    assert!(matches!(file.write_at(0, &[1]), Err(Error::Busy { .. })), "flushed, then overtaken");
    let mut out = [0; 512];
    disk.read(0, &mut out).unwrap();
    assert_eq!(out, [9; 512]);
}

#[test]
fn a_waiting_write_goes_on_when_the_file_closes() {
    let pool = Pool::new();
    let lun = pool.lun("vm1", MIB);
    let disk = login(&lun, "iqn.a");
    let file = open(&lun, READ_WRITE);
    std::thread::scope(|scope| {
        let write = scope.spawn(|| loop {
            match disk.write(0, &[1; 512], false) {
                Err(BlockError::HeldByFile) => {}
                done => break done,
            }
        });
        std::thread::sleep(Duration::from_millis(10));
        drop(file);
        write.join().unwrap().unwrap();
    });
}

#[test]
fn a_lost_connection_keeps_the_lease_for_a_while() {
    let pool = Pool::new();
    let lun = pool.lun("vm1", MIB);
    let disk = login(&lun, "iqn.a");
    disk.write(0, &[1; 512], false).unwrap();
    disk.lost();
    drop(disk);
    assert!(matches!(lun.open_file(READ_WRITE), Err(Error::Busy { .. })));
    std::thread::sleep(quick().lost_grace + Duration::from_millis(20));
    drop(open(&lun, READ_WRITE));
    assert!(logged(&lun, "lost", "iqn.a") && logged(&lun, "lease", "grace"));
}

#[test]
fn a_client_that_comes_back_keeps_the_lease() {
    let pool = Pool::new();
    let lun = pool.lun("vm1", MIB);
    let disk = login(&lun, "iqn.a");
    disk.write(0, &[1; 512], false).unwrap();
    disk.lost();
    drop(disk);
    let disk = login(&lun, "iqn.a");
    std::thread::sleep(quick().lost_grace + Duration::from_millis(20));
    assert!(matches!(lun.open_file(READ_WRITE), Err(Error::Busy { .. })));
    drop(disk);
    drop(open(&lun, READ_WRITE));
}

#[test]
fn a_reservation_takes_it_too() {
    let pool = Pool::new();
    let lun = pool.lun("vm1", MIB);
    let disk = login(&lun, "iqn.a");
    disk.claim().unwrap();
    assert!(matches!(lun.open_file(READ_WRITE), Err(Error::Busy { .. })));
}

#[test]
fn shared_lets_everybody_write() {
    let pool = Pool::new();
    let lun = pool.lun("vm1", MIB);
    lun.set(&[("access".into(), "shared".into())]).unwrap();
    let disk = login(&lun, "iqn.a");
    disk.write(0, &[1; 512], false).unwrap();
    let file = open(&lun, READ_WRITE);
    file.write_at(512, &[2; 512]).unwrap();
    disk.write(1024, &[3; 512], false).unwrap();
    let mut out = [0; 1536];
    disk.read(0, &mut out).unwrap();
    assert!(out[..512] == [1; 512] && out[512..1024] == [2; 512] && out[1024..] == [3; 512]);
}

#[test]
fn a_copy_over_data_makes_the_disk_what_was_copied() {
    let pool = Pool::new();
    let lun = pool.lun("vm1", MIB);
    let disk = login(&lun, "iqn.a");
    assert!(matches!(lun.open_file(TRUNCATE), Err(Error::Busy { .. })), "it would shrink");
    drop(disk);
    let file = open(&lun, TRUNCATE);
    assert_eq!(lun.size_bytes(), 0);
    let image = noise(3, 300_000);
    for (i, piece) in image.chunks(100_000).enumerate() {
        file.write_at(i as u64 * 100_000, piece).unwrap();
    }
    assert_eq!(file.append(&[4; 10]).unwrap(), 300_000);
    file.allocate_zeros(300_010, 1000, false).unwrap();
    drop(file);
    assert_eq!(lun.size_bytes(), 301_010);
    let disk = login(&lun, "iqn.a");
    assert_eq!(disk.geometry().size_bytes, 301_010 / 512 * 512);
    let mut out = vec![0; 299_520];
    disk.read(0, &mut out).unwrap();
    assert!(out == image[..299_520]);
    assert!(logged(&lun, "resize", "301010"));
}

#[test]
fn shared_closes_raise_no_attention() {
    let pool = Pool::new();
    let lun = pool.lun("vm1", MIB);
    lun.set(&[("access".into(), "shared".into())]).unwrap();
    let disk = login(&lun, "iqn.a");
    let media = disk.media_changes();
    open(&lun, READ_WRITE).write_at(0, &[2; 512]).unwrap();
    assert_eq!(disk.media_changes(), media);
}

/// Nobody sees the other sort's write while it holds: a file writer between open and close, a block
/// client between its first write and its logout.
#[test]
fn holders_are_alone_under_stress() {
    const LENGTH: usize = 16 << 10;
    let pool = Pool::new();
    let lun = pool.lun("vm1", MIB);
    let done = std::sync::atomic::AtomicUsize::new(0);
    let turns = |mut turn: Box<dyn FnMut(u64) -> bool + Send + '_>| {
        let mut alone = 0;
        for i in 0.. {
            alone += usize::from(turn(i));
            if alone == 100 {
                break;
            }
        }
        done.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        while done.load(std::sync::atomic::Ordering::Relaxed) < 2 {
            turn(u64::MAX);
        }
    };
    let block_turn = |i: u64| {
        let disk = login(&lun, "iqn.a");
        let data = noise(i, LENGTH);
        if disk.write(0, &data, false).is_err() {
            return false;
        }
        for _ in 0..3 {
            let mut out = vec![0; LENGTH];
            disk.read(0, &mut out).unwrap();
            assert!(out == data, "a file wrote under the block lease");
            std::thread::yield_now();
        }
        true
    };
    let file_turn = |i: u64| {
        let Ok(file) = lun.open_file(READ_WRITE) else {
            return false;
        };
        let data = noise(!i, LENGTH);
        file.write_at(0, &data).unwrap();
        for _ in 0..3 {
            let mut out = vec![0; LENGTH];
            file.read_at(0, &mut out).unwrap();
            assert!(out == data, "a block client wrote under the file lease");
            std::thread::yield_now();
        }
        true
    };
    std::thread::scope(|scope| {
        scope.spawn(|| turns(Box::new(block_turn)));
        scope.spawn(|| turns(Box::new(file_turn)));
    });
}

#[test]
fn a_client_that_says_it_leaves_was_not_lost() {
    let pool = Pool::new();
    let lun = pool.lun("vm1", MIB);
    let disk = login(&lun, "iqn.a");
    disk.lost();
    disk.write(0, &[1; 512], false).unwrap();
    disk.leaving();
    drop(disk);
    drop(open(&lun, READ_WRITE));
    assert!(logged(&lun, "logout", "iqn.a"));
}
