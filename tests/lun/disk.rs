//! The disk that block doors drive.

use crate::pool::*;
use lunfs::lun::{AttachRequest, BlockError, BlockIo, Extent, Maker, SessionId, SnapshotWish};

fn extent(offset_bytes: u64, length_bytes: u64, mapped: bool) -> Extent {
    Extent { offset_bytes, length_bytes, mapped }
}

#[test]
fn what_is_written_is_read() {
    let pool = Pool::new();
    let lun = pool.lun("vm1", 64 * MIB);
    let disk = login(&lun, "a");
    let mut model = vec![0; 64 * MIB as usize];
    for (i, (offset, length)) in
        [(0, 512), (512, 4096), (3 * MIB, MIB as usize), (5 * MIB + 512, 5 << 20)]
            .iter()
            .enumerate()
    {
        let data = noise(i as u64, *length);
        disk.write(*offset, &data, i % 2 == 0).unwrap();
        model[*offset as usize..][..*length].copy_from_slice(&data);
    }
    let mut out = vec![1; model.len()];
    disk.read(0, &mut out).unwrap();
    assert!(out == model);
    drop((disk, lun));
    let pool = pool.reopen();
    let disk = login(&pool.catalog.get("vm1").unwrap(), "a");
    disk.read(0, &mut out).unwrap();
    assert!(out == model);
}

#[test]
fn checksums_that_are_kept_come_with_whole_blocks() {
    let pool = Pool::new();
    let disk = login(&pool.lun("vm1", 16 * MIB), "a");
    let (head, tail) = (noise(1, 1 << 20), noise(2, 3 << 20));
    disk.write(0, &head, true).unwrap();
    disk.write(512, &noise(3, 512), false).unwrap(); // merged, and not yet on a device
    disk.write(5 * MIB, &tail, false).unwrap();
    let check = |disk: &dyn BlockIo, offset: u64, length: usize| {
        let (mut out, mut sums) = (vec![0; length], Vec::new());
        disk.read_summed(offset, &mut out, &mut sums).unwrap();
        let (mut again, mut same) = (vec![0; length], Vec::new());
        disk.try_read_summed(offset, &mut again, &mut same).unwrap().unwrap();
        assert!(out == again && sums == same);
        let found: Vec<u32> = out.chunks(4096).map(crc32c::crc32c).collect();
        let whole = offset % 4096 == 0 && length % 4096 == 0;
        assert_eq!(sums, if whole { found } else { Vec::new() }, "{length} bytes at {offset}");
    };
    let ranges = [(0, 4096), (0, 2 << 20), (MIB, 8 << 10), (4 * MIB, 2 << 20), (512, 8192)];
    ranges.iter().for_each(|(offset, length)| check(&*disk, *offset, *length));
    drop(disk);
    let pool = pool.reopen();
    let disk = login(&pool.catalog.get("vm1").unwrap(), "a");
    ranges.iter().for_each(|(offset, length)| check(&*disk, *offset, *length));
    check(&*disk, 0, 512);
}

#[test]
fn ranges_are_checked() {
    let pool = Pool::new();
    let disk = login(&pool.lun("vm1", MIB), "a");
    let out_of_range = |r: Result<(), BlockError>| matches!(r, Err(BlockError::OutOfRange));
    let invalid = |r: Result<(), BlockError>| matches!(r, Err(BlockError::Invalid(_)));
    assert!(out_of_range(disk.read(MIB, &mut [0; 512])));
    assert!(out_of_range(disk.write(MIB - 512, &[0; 1024], false)));
    assert!(out_of_range(disk.unmap(0, MIB + 512)));
    assert!(out_of_range(disk.unmap(u64::MAX - 511, 512)));
    assert!(out_of_range(disk.write_zeroes(u64::MAX - 511, 1024, false)));
    assert!(out_of_range(disk.try_read(MIB, &mut [0; 512]).unwrap()));
    assert!(out_of_range(disk.extents(MIB, 512, 1).map(drop)));
    assert!(invalid(disk.read(1, &mut [0; 512])));
    assert!(invalid(disk.write(0, &[0; 100], false)));
    assert!(invalid(disk.compare_and_write(0, &[0; 512], &[0; 1024])));
    disk.read(MIB, &mut []).unwrap();
    disk.write(0, &[], false).unwrap();
}

#[test]
fn holes_zeros_and_extents() {
    let pool = Pool::new();
    let disk = login(&pool.lun("vm1", 16 * MIB), "a");
    assert_eq!(disk.extents(0, 16 * MIB, 10).unwrap(), [extent(0, 16 * MIB, false)]);
    disk.write(MIB, &noise(1, 1 << 20), false).unwrap();
    disk.write_zeroes(4 * MIB, 3 * MIB, false).unwrap();
    let all = [
        extent(0, MIB, false),
        extent(MIB, MIB, true),
        extent(2 * MIB, 2 * MIB, false),
        extent(4 * MIB, 3 * MIB, true),
        extent(7 * MIB, 9 * MIB, false),
    ];
    assert_eq!(disk.extents(0, 16 * MIB, 10).unwrap(), all);
    assert_eq!(disk.extents(0, 16 * MIB, 2).unwrap(), all[..2]);
    assert_eq!(disk.extents(MIB + 512, 512, 10).unwrap(), [extent(MIB + 512, 512, true)]);
    disk.unmap(MIB, MIB).unwrap();
    disk.write_zeroes(4 * MIB, 3 * MIB, true).unwrap();
    assert_eq!(disk.extents(0, 16 * MIB, 10).unwrap(), [extent(0, 16 * MIB, false)]);
    disk.write(0, &[5; 4096], false).unwrap();
    disk.unmap(512, 1024).unwrap();
    let mut out = [1; 4096];
    disk.read(0, &mut out).unwrap();
    assert!(out[..512] == [5; 512] && out[512..1536] == [0; 1024] && out[1536..] == [5; 2560]);
}

#[test]
fn compare_and_write_and_or() {
    let pool = Pool::new();
    let disk = login(&pool.lun("vm1", MIB), "a");
    disk.write(512, &[1; 1024], false).unwrap();
    disk.compare_and_write(512, &[1; 1024], &[2; 1024]).unwrap();
    let mut expect = [2; 1024];
    expect[700] = 9;
    let refused = disk.compare_and_write(512, &expect, &[3; 1024]);
    assert!(matches!(refused, Err(BlockError::Miscompare { offset_bytes: 700 })));
    disk.or_write(512, &[0x81; 512]).unwrap();
    let mut out = [0; 1024];
    disk.read(512, &mut out).unwrap();
    assert!(out[..512] == [0x83; 512] && out[512..] == [2; 512]);
}

#[test]
fn compare_and_write_is_one_step_between_threads() {
    let pool = Pool::new();
    let lun = pool.lun("vm1", MIB);
    std::thread::scope(|scope| {
        for client in ["a", "b", "c"] {
            let disk = login(&lun, client);
            scope.spawn(move || {
                for _ in 0..200 {
                    loop {
                        let mut now = [0; 512];
                        disk.read(0, &mut now).unwrap();
                        let mut next = now;
                        let count = u32::from_le_bytes(now[..4].try_into().unwrap()) + 1;
                        next[..4].copy_from_slice(&count.to_le_bytes());
                        if disk.compare_and_write(0, &now, &next).is_ok() {
                            break;
                        }
                    }
                }
            });
        }
    });
    let mut out = [0; 512];
    login(&lun, "d").read(0, &mut out).unwrap();
    assert_eq!(u32::from_le_bytes(out[..4].try_into().unwrap()), 600);
}

#[test]
fn nobody_writes_where_it_is_not_allowed() {
    let pool = Pool::new();
    let lun = pool.lun("vm1", MIB);
    let reader = lun.attach(AttachRequest { writable: false, ..request("r") }).unwrap();
    assert!(reader.geometry().read_only);
    assert!(matches!(reader.write(0, &[1; 512], false), Err(BlockError::ReadOnly)));
    assert!(matches!(reader.try_write(0, &[1; 512]), Some(Err(BlockError::ReadOnly))));
    let disk = login(&lun, "a");
    disk.write(0, &[1; 512], false).unwrap();
    lun.set(&[("read-only".into(), "true".into())]).unwrap();
    for refused in [
        disk.write(0, &[2; 512], false),
        disk.unmap(0, 512),
        disk.write_zeroes(0, 512, false),
        disk.or_write(0, &[2; 512]),
        disk.compare_and_write(0, &[1; 512], &[2; 512]),
    ] {
        assert!(matches!(refused, Err(BlockError::ReadOnly)));
    }
    assert!(lun.open_file(WRITE_ONLY).is_err());
    assert!(lun.open_file(TRUNCATE).is_err());
    let mut out = [0; 512];
    disk.read(0, &mut out).unwrap();
    assert_eq!(out, [1; 512]);
}

#[test]
fn the_try_forms_agree_with_the_others() {
    let pool = Pool::new();
    let disk = login(&pool.lun("vm1", MIB), "a");
    assert!(disk.try_write(0, &[1; 512]).is_none(), "the lease has to be taken first");
    disk.claim().unwrap();
    for i in 0..100 {
        let data = noise(i, 4096);
        match disk.try_write(i * 4096, &data) {
            Some(done) => done.unwrap(),
            None => disk.write(i * 4096, &data, false).unwrap(),
        }
        let mut out = [0; 4096];
        match disk.try_read(i * 4096, &mut out) {
            Some(done) => done.unwrap(),
            None => disk.read(i * 4096, &mut out).unwrap(),
        }
        assert_eq!(out[..], data);
    }
}

#[test]
fn a_quota_stops_new_blocks_only() {
    let pool = Pool::new();
    let lun = pool.lun("vm1", 64 * MIB);
    lun.set(&[("quota".into(), "1M".into())]).unwrap();
    let disk = login(&lun, "a");
    let chunk = noise(1, 64 << 10);
    for i in 0..16 {
        disk.write(i << 16, &chunk, false).unwrap();
    }
    assert!(matches!(disk.write(2 * MIB, &chunk, false), Err(BlockError::NoSpace)));
    assert!(matches!(disk.or_write(2 * MIB, &[1; 512]), Err(BlockError::NoSpace)));
    disk.write(0, &chunk, false).unwrap();
    disk.unmap(0, 1 << 16).unwrap();
    disk.write(2 * MIB, &chunk, false).unwrap();
}

#[test]
fn sessions_are_counted_shown_and_dropped() {
    let pool = Pool::new();
    let lun = pool.lun("vm1", MIB);
    let disk = login(&lun, "iqn.2026-11.local:host");
    disk.write(0, &[1; 1024], false).unwrap();
    disk.read(0, &mut [0; 512]).unwrap();
    disk.flush().unwrap();
    let shown = pool.catalog.session(disk.id()).unwrap();
    assert_eq!((shown.write_ops, shown.written_bytes), (1, 1024));
    assert_eq!((shown.read_ops, shown.read_bytes, shown.flush_ops), (1, 512, 1));
    assert!(shown.holds_lease && shown.lun == "vm1" && shown.client == "iqn.2026-11.local:host");
    assert_eq!(pool.catalog.sessions().len(), 1);
    pool.catalog.drop_session(disk.id()).unwrap();
    assert!(disk.is_gone());
    assert!(matches!(disk.flush(), Err(BlockError::Gone)));
    assert!(pool.catalog.sessions().is_empty());
    assert!(pool.catalog.drop_session(disk.id()).is_err());
    assert!(pool.catalog.session(SessionId(999_999)).is_err());
    let (sender, receiver) = std::sync::mpsc::channel();
    disk.on_kick(Box::new(move || sender.send(()).unwrap()));
    receiver.recv().unwrap();
    drop(disk);
    for event in ["login", "dropped", "lease"] {
        assert!(logged(&lun, event, "iqn.2026-11.local:host"), "{event}");
    }
    open(&lun, READ_WRITE).write_at(0, &[1]).unwrap();
}

#[test]
fn a_range_of_another_disk_is_taken_over() {
    let pool = Pool::new();
    let (one, two) = (pool.lun("vm1", 64 * MIB), pool.lun("vm2", 64 * MIB));
    let (a, b) = (login(&one, "a"), login(&two, "b"));
    let data = noise(1, 8 << 20);
    a.write(4 * MIB, &data, false).unwrap();
    b.write(32 * MIB, &data, false).unwrap();
    pool.fs.consistency_point().unwrap();
    let before = pool.fs.stats().blocks_written;
    let (from_a, from_b) = (a.clone_source().unwrap(), b.clone_source().unwrap());
    b.clone_range(&from_a, 4 * MIB, 16 * MIB, 8 * MIB).unwrap().unwrap();
    // Within itself, and from where nothing was written.
    b.clone_range(&from_b, 32 * MIB, 48 * MIB, 8 * MIB).unwrap().unwrap();
    b.clone_range(&from_a, 40 * MIB, 32 * MIB, 4 * MIB).unwrap().unwrap();
    pool.fs.consistency_point().unwrap();
    let cost = pool.fs.stats().blocks_written - before;
    assert!(cost < 60, "{cost} blocks were written");
    a.write(5 * MIB, &[0; 512], false).unwrap();
    let read = |at: u64, length: usize| {
        let mut out = vec![1; length];
        b.read(at, &mut out).unwrap();
        out
    };
    assert!(read(16 * MIB, 8 << 20) == data && read(48 * MIB, 8 << 20) == data);
    assert!(read(32 * MIB, 4 << 20).iter().all(|byte| *byte == 0));
    assert!(read(36 * MIB, 4 << 20) == data[4 << 20..]);
    let beyond = b.clone_range(&from_a, 0, 64 * MIB, 512).unwrap();
    assert!(matches!(beyond, Err(BlockError::OutOfRange)));
    let beyond = b.clone_range(&from_a, 64 * MIB - 512, 0, 1024).unwrap();
    assert!(matches!(beyond, Err(BlockError::OutOfRange)));
}

#[test]
fn a_range_is_taken_over_from_a_disk_that_was_rolled_back_and_from_a_snapshot() {
    let pool = Pool::new();
    let (one, two) = (pool.lun("vm1", 64 * MIB), pool.lun("vm2", 64 * MIB));
    let (a, b) = (login(&one, "a"), login(&two, "b"));
    let (old, new) = (noise(1, 8 << 20), noise(2, 8 << 20));
    a.write(0, &old, false).unwrap();
    let wish = SnapshotWish { of: "vm1".into(), name: Some("s".into()) };
    pool.catalog.snapshot_create(&[wish], Maker::User, false).unwrap();
    a.write(0, &new, false).unwrap();
    let snapshot = login(&pool.catalog.snapshot_disk("vm1", "s").unwrap(), "c");
    let kept = pool.catalog.snapshot_rollback("vm1", "s", true).unwrap();
    let kept = login(&pool.catalog.snapshot_disk("vm1", &kept.info.name).unwrap(), "d");
    pool.fs.consistency_point().unwrap();
    let before = pool.fs.stats().blocks_written;
    for (source, data, to) in [(&a, &old, 8), (&snapshot, &old, 24), (&kept, &new, 40)] {
        let source = source.clone_source().unwrap();
        b.clone_range(&source, 0, to * MIB, 8 * MIB).unwrap().unwrap();
        let mut out = vec![0; 8 << 20];
        b.read(to * MIB, &mut out).unwrap();
        assert!(out == *data, "at {to} MiB");
    }
    pool.fs.consistency_point().unwrap();
    let cost = pool.fs.stats().blocks_written - before;
    assert!(cost < 60, "{cost} blocks were written");
}
