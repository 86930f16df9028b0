//! Snapshots of LUNs: names, holds, groups, rollback under clients, clones, deletion while open.

use crate::pool::*;
use lunfs::fs::{Error as FsError, File, NewNode, NodeId, Owner, Timestamp, VolumeId};
use lunfs::lun::{
    policy_name, BlockError, BlockIo, Catalog, DeleteOptions, Error, Hold, Lun, Maker, Snapshot,
    SnapshotWish,
};
use std::sync::Arc;

fn wish(of: &str, name: Option<&str>) -> SnapshotWish {
    SnapshotWish { of: of.into(), name: name.map(str::to_owned) }
}

fn snap(catalog: &Catalog, of: &str, name: &str) -> Snapshot {
    let made = catalog.snapshot_create(&[wish(of, Some(name))], Maker::User, false);
    made.unwrap().remove(0)
}

fn write(lun: &Arc<Lun>, offset: u64, byte: u8) {
    let session = login(lun, "iqn.w");
    session.write(offset, &[byte; 4096], false).unwrap();
    session.leaving();
}

fn first_byte(io: &dyn BlockIo) -> u8 {
    let mut out = [0; 4096];
    io.read(0, &mut out).unwrap();
    out[0]
}

fn data_of(pool: &Pool, volume: VolumeId) -> File {
    let found = pool.fs.lookup(NodeId::root(volume), b"data").unwrap();
    pool.fs.open_file(found.id).unwrap()
}

fn byte_at(file: &File, offset: u64) -> u8 {
    let mut out = [0; 1];
    file.read_at(offset, &mut out).unwrap();
    out[0]
}

fn names(catalog: &Catalog, of: &str) -> Vec<String> {
    catalog.snapshots(of).unwrap().into_iter().map(|one| one.info.name).collect()
}

#[test]
fn names_are_checked_and_found_without_regard_to_case() {
    let pool = Pool::new();
    let lun = pool.lun("vm1", MIB);
    let catalog = &pool.catalog;
    snap(catalog, "VM1", "Before");
    assert_eq!(catalog.snapshot("vm1", "before").unwrap().info.name, "Before");
    let again = catalog.snapshot_create(&[wish("vm1", Some("BEFORE"))], Maker::User, false);
    assert!(matches!(again, Err(Error::SnapshotExists { by: "snapshot", .. })), "{again:?}");
    for bad in ["", ".x", "a@b", "a/b", &policy_name(Timestamp(0))] {
        let bad = catalog.snapshot_create(&[wish("vm1", Some(bad))], Maker::User, false);
        assert!(matches!(bad, Err(Error::BadSnapshotName { .. })), "{bad:?}");
    }
    let two = [wish("vm1", Some("x")), wish("vm1", None)];
    assert!(catalog.snapshot_create(&two, Maker::User, false).is_err());
    catalog.snapshot_rename("vm1", "before", "before").unwrap();
    catalog.snapshot_rename("vm1", "BEFORE", "after").unwrap();
    assert_eq!(names(catalog, "vm1"), ["after"]);
    assert!(matches!(catalog.snapshot("vm1", "before"), Err(Error::NoSnapshot { .. })));
    assert!(matches!(catalog.snapshot("vm2", "after"), Err(Error::NotFound(_))));
    assert!(logged(&lun, "snapshot", "\"what\":\"rename\""));
}

#[test]
fn names_by_the_time_get_a_number_where_they_are_taken() {
    let pool = Pool::new();
    pool.lun("a", MIB);
    pool.lun("b", MIB);
    let catalog = &pool.catalog;
    let made: Vec<String> = (0..4)
        .map(|_| {
            let one = catalog.snapshot_create(&[wish("a", None)], Maker::User, false).unwrap();
            one[0].info.name.clone()
        })
        .collect();
    assert!(made[0].ends_with('Z') && made[0].len() == "2026-11-20T21:00:00Z".len());
    assert!(made.iter().any(|name| name.ends_with("Z-2")), "{made:?}");
    let group = [wish("a", None), wish("b", None), wish("/", None)];
    let group = catalog.snapshot_create(&group, Maker::User, true).unwrap();
    assert!(group.iter().all(|one| one.info.name == group[0].info.name));
    assert!(group.iter().all(|one| one.info.consistency.is_application()));
    assert!(group.iter().all(|one| one.info.epoch == group[0].info.epoch));
    assert_eq!(catalog.snapshot_count("a").unwrap(), 5);
    assert_eq!((catalog.snapshot_count("b").unwrap(), names(catalog, "/").len()), (1, 1));
}

#[test]
fn the_ordinary_tree_has_snapshots_too() {
    let pool = Pool::new();
    let owner = Owner { mode: 0o644, uid: 0, gid: 0 };
    let root = NodeId::root(VolumeId::TREE);
    pool.fs.create(root, b"file", NewNode::File, owner).unwrap();
    let made = snap(&pool.catalog, "/", "one");
    pool.fs.unlink(root, b"file").unwrap();
    assert!(pool.fs.lookup(NodeId::root(made.info.id), b"file").is_ok());
    assert!(pool.catalog.snapshot_rollback("/", "one", true).is_err());
    assert!(pool.catalog.clone_create("/", "one", "x").is_err());
    assert!(pool.catalog.snapshot_diff("/", "one", None).is_err());
    pool.catalog.snapshot_delete("/", "one", false).unwrap();
    assert!(pool.catalog.snapshots("/").unwrap().is_empty());
}

#[test]
fn a_held_snapshot_stays() {
    let pool = Pool::new();
    pool.lun("a", MIB);
    let catalog = &pool.catalog;
    snap(catalog, "a", "s");
    catalog.snapshot_hold("a", "s", Hold::ForGood).unwrap();
    let refused = |result: Result<bool, Error>| {
        assert!(matches!(result, Err(Error::Held { .. })), "{result:?}");
    };
    refused(catalog.snapshot_delete("a", "s", false));
    refused(catalog.snapshot_refresh("a", "s").map(|_| true));
    let all = DeleteOptions { recursive: true, force: true };
    refused(catalog.delete("a", all).map(|()| true));
    catalog.snapshot_hold("a", "s", Hold::Release).unwrap();
    let later = Timestamp(i64::MAX / 2);
    catalog.snapshot_hold("a", "s", Hold::Until(later)).unwrap();
    refused(catalog.snapshot_hold("a", "s", Hold::Release).map(|_| true));
    refused(catalog.snapshot_hold("a", "s", Hold::Until(Timestamp(later.0 - 1))).map(|_| true));
    assert!(catalog.snapshot_hold("a", "s", Hold::Until(Timestamp(5))).is_err());
    refused(catalog.snapshot_delete("a", "s", false));
    let pool = pool.reopen();
    refused(pool.catalog.snapshot_delete("a", "s", false));
    assert_eq!(pool.catalog.snapshot("a", "s").unwrap().info.hold_until, Some(later));
}

#[test]
fn a_snapshot_that_is_open_goes_at_its_last_close() {
    let pool = Pool::new();
    let lun = pool.lun("a", MIB);
    write(&lun, 0, 1);
    let catalog = &pool.catalog;
    snap(catalog, "a", "s");
    let open = catalog.open_snapshot("a", "s").unwrap();
    let other = catalog.open_snapshot("a", "S").unwrap();
    write(&lun, 0, 2);
    assert!(catalog.snapshot("a", "s").unwrap().is_open);
    assert!(catalog.snapshot_delete("a", "s", false).unwrap(), "later");
    assert!(names(catalog, "a").is_empty());
    assert_eq!(catalog.snapshot_count("a").unwrap(), 0);
    let anew = snap(catalog, "a", "s");
    drop(open);
    let file = data_of(&pool, other.volume());
    assert_eq!(byte_at(&file, 0), 1);
    assert_eq!(pool.fs.snapshot_list(lun.volume()).unwrap().len(), 2);
    drop(other);
    assert!(matches!(file.read_at(0, &mut [0]), Err(FsError::Stale)));
    assert_eq!(pool.fs.snapshot_list(lun.volume()).unwrap(), [anew.info]);
    // Refreshed while it is open: the reader keeps what it has.
    let open = catalog.open_snapshot("a", "s").unwrap();
    write(&lun, 0, 3);
    let fresh = catalog.snapshot_refresh("a", "s").unwrap();
    assert_eq!(byte_at(&data_of(&pool, open.volume()), 0), 2);
    assert_eq!(byte_at(&data_of(&pool, fresh.info.id), 0), 3);
    let recursive = DeleteOptions { recursive: true, force: false };
    assert!(matches!(catalog.delete("a", recursive), Err(Error::Busy { .. })), "the old is open");
    drop(open);
    catalog.delete("a", recursive).unwrap();
}

#[test]
fn a_deletion_that_a_stop_came_before_is_done_when_names_are_loaded() {
    let pool = Pool::new();
    let lun = pool.lun("a", MIB);
    snap(&pool.catalog, "a", "s");
    let open = pool.catalog.open_snapshot("a", "s").unwrap();
    pool.catalog.snapshot_delete("a", "s", false).unwrap();
    std::mem::forget(open);
    drop(lun);
    let fs = Arc::clone(&pool.fs);
    let again = open_catalog(fs);
    assert!(again.snapshots("a").unwrap().is_empty());
    assert!(pool.fs.snapshot_list(again.get("a").unwrap().volume()).unwrap().is_empty());
}

#[test]
fn a_lun_with_snapshots_is_deleted_with_them_or_not() {
    let pool = Pool::new();
    pool.lun("a", MIB);
    let catalog = &pool.catalog;
    snap(catalog, "a", "s");
    snap(catalog, "a", "t");
    catalog.snapshot_delete("a", "t", true).unwrap();
    let refused = catalog.delete("a", DeleteOptions::default());
    assert!(matches!(&refused, Err(Error::Busy { .. })), "{refused:?}");
    assert!(catalog.check_delete("a", DeleteOptions { recursive: false, force: true }).is_err());
    catalog.delete("a", DeleteOptions { recursive: true, force: false }).unwrap();
    assert!(catalog.get("a").is_err());
    // A bookmark alone is in nobody's way.
    pool.lun("a", MIB);
    snap(catalog, "a", "t");
    catalog.snapshot_delete("a", "t", true).unwrap();
    assert_eq!(catalog.bookmarks("a").unwrap().len(), 1);
    catalog.delete("a", DeleteOptions::default()).unwrap();
}

#[test]
fn a_rollback_keeps_the_disk_and_what_was_there() {
    let pool = Pool::new();
    let lun = pool.lun("a", MIB);
    let catalog = &pool.catalog;
    write(&lun, 0, 1);
    lun.set(&[("serial".into(), "OLD".into()), ("quota".into(), "1M".into())]).unwrap();
    snap(catalog, "a", "s");
    lun.set(&[("serial".into(), "NEW".into()), ("quota".into(), "0".into())]).unwrap();
    lun.resize(2 * MIB, false).unwrap();
    write(&lun, 0, 2);
    snap(catalog, "a", "newer");
    lun.append_log("said", serde_json::json!({"after": true})).unwrap();
    let (identity, id, created) = (lun.identity(), lun.id(), lun.attributes().unwrap().created);
    let (volume, before) = (lun.volume(), lun.geometry().generation);
    let kept = catalog.snapshot_rollback("a", "s", false).unwrap();
    assert!(kept.info.name.starts_with("before-rollback-"));
    assert_eq!((lun.identity(), lun.id()), (identity.clone(), id));
    assert_ne!(lun.volume(), volume);
    assert_eq!((lun.size_bytes(), lun.settings().quota_bytes), (MIB, MIB));
    assert!(lun.geometry().generation > before);
    assert_eq!(first_byte(&*login(&lun, "iqn.r")), 1);
    assert!(logged(&lun, "said", "after") && logged(&lun, "snapshot", "rollback"));
    assert_eq!(names(catalog, "a"), ["s", "newer", kept.info.name.as_str()]);
    assert_eq!(byte_at(&data_of(&pool, kept.info.id), 0), 2);
    write(&lun, 0, 3);
    drop(lun);
    let pool = pool.reopen();
    let lun = pool.catalog.get("a").unwrap();
    assert_eq!((lun.identity(), lun.id()), (identity.clone(), id));
    assert_eq!(lun.attributes().unwrap().created, created);
    assert!(pool.catalog.by_id(id).is_some_and(|found| Arc::ptr_eq(&found, &lun)));
    // And forward again.
    pool.catalog.snapshot_rollback("a", "newer", false).unwrap();
    assert_eq!((lun.size_bytes(), lun.identity()), (2 * MIB, identity));
    assert_eq!(first_byte(&*login(&lun, "iqn.r")), 2);
    assert!(logged(&lun, "said", "after"));
}

#[test]
fn a_rollback_under_clients_is_forced_and_told() {
    let pool = Pool::new();
    let lun = pool.lun("a", MIB);
    let catalog = &pool.catalog;
    write(&lun, 0, 1);
    snap(catalog, "a", "s");
    lun.resize(2 * MIB, false).unwrap();
    write(&lun, 0, 2);
    let session = login(&lun, "iqn.a");
    let file = open(&lun, READ);
    let refused = catalog.snapshot_rollback("a", "s", false);
    assert!(matches!(refused, Err(Error::Busy { .. })));
    session.keep_reservations(Some("mine"), true).unwrap();
    let (changes, generation) = (session.media_changes(), session.generation());
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Readers and writers never see a file that is gone.
        let busy = |client: &str, byte: u8| {
            let (session, stop) = (login(&lun, client), &stop);
            let _ = session.reservations(); // from here on it judges them by itself
            scope.spawn(move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    first_byte(&*session);
                    session.write(8192, &[byte; 4096], false).unwrap();
                    session.extents(0, MIB, 8).unwrap();
                }
                session.leaving();
            });
        };
        for (client, byte) in [("iqn.b", 7), ("iqn.c", 8)] {
            busy(client, byte);
        }
        for _ in 0..5 {
            catalog.snapshot_rollback("a", "s", true).unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(session.media_changes() > changes && session.generation() > generation);
    assert_eq!(session.geometry().size_bytes, MIB);
    assert_eq!((first_byte(&*session), session.reservations().as_str()), (1, "mine"));
    let mut out = [0; 1];
    file.read_at(0, &mut out).unwrap();
    assert_eq!(out, [1]);
    let beyond = session.read(MIB, &mut [0; 512]);
    assert!(matches!(beyond, Err(BlockError::OutOfRange)), "{beyond:?}");
    drop((session, file, lun));
    let pool = pool.reopen();
    let lun = pool.catalog.get("a").unwrap();
    assert_eq!(login(&lun, "iqn.a").reservations(), "mine");
}

/// A refresh that a full pool refuses leaves the snapshot as it was, also while it is open; one
/// that is open can be deleted all the same.
#[test]
fn an_open_snapshot_in_a_full_pool() {
    let pool = Pool::sized(64 * MIB);
    let (lun, filler) = (pool.lun("vm1", 16 * MIB), pool.lun("filler", 256 * MIB));
    write(&lun, 0, 1);
    snap(&pool.catalog, "vm1", "s");
    write(&lun, 0, 2);
    let reader = login(&pool.catalog.snapshot_disk("vm1", "s").unwrap(), "a");
    let other = login(&filler, "b");
    let mut end = 0;
    while other.write(end, &noise(end, 1 << 16), false).is_ok() {
        end += 1 << 16;
    }
    while other.write(end, &noise(end, 4096), false).is_ok() {
        end += 4096;
    }
    pool.catalog.snapshot_refresh("vm1", "s").unwrap_err();
    assert_eq!(first_byte(&*reader), 1);
    drop(reader);
    let reader = login(&pool.catalog.snapshot_disk("vm1", "s").unwrap(), "a");
    assert_eq!(first_byte(&*reader), 1);
    assert!(pool.catalog.snapshot_delete("vm1", "s", false).unwrap());
    assert!(names(&pool.catalog, "vm1").is_empty());
    assert_eq!(first_byte(&*reader), 1);
}

/// Whatever a full pool refuses, the LUN is there afterwards.
#[test]
fn a_rollback_in_a_full_pool_is_done_or_refused() {
    let pool = Pool::sized(64 * MIB);
    let (lun, filler) = (pool.lun("vm1", 16 * MIB), pool.lun("filler", 256 * MIB));
    let (disk, other) = (login(&lun, "a"), login(&filler, "b"));
    disk.write(0, &[1; 4096], false).unwrap();
    snap(&pool.catalog, "vm1", "s");
    disk.write(0, &[2; 4096], false).unwrap();
    lun.append_log_bytes(&b"a line of the owner's own\n".repeat(20_000)).unwrap();
    let mut end = 0;
    while other.write(end, &noise(end, 1 << 16), false).is_ok() {
        end += 1 << 16;
    }
    let mut refused = 0;
    loop {
        let before = first_byte(&*disk);
        let done = pool.catalog.snapshot_rollback("vm1", "s", true);
        assert_eq!(first_byte(&*disk), if done.is_ok() { 1 } else { before });
        assert!(lun.attributes().is_ok() && pool.catalog.get("vm1").is_ok());
        if let Ok(kept) = done {
            assert!(names(&pool.catalog, "vm1").contains(&kept.info.name));
            break;
        }
        refused += 1;
        end -= 1 << 16;
        other.unmap(end, 1 << 16).unwrap();
        pool.fs.consistency_point().unwrap();
    }
    assert!(refused > 0, "the pool was not full");
    disk.write(0, &[3; 4096], true).unwrap();
    let lines = lun.read_log().unwrap();
    assert!(lines.iter().any(|line| line.text.contains("the owner's own")));
}

#[test]
fn a_clone_is_another_disk() {
    let pool = Pool::new();
    let lun = pool.lun("a", MIB);
    let catalog = &pool.catalog;
    lun.set(&[("serial".into(), "MINE".into()), ("block-size".into(), "4096".into())]).unwrap();
    write(&lun, 0, 1);
    login(&lun, "iqn.a").keep_reservations(Some("mine"), true).unwrap();
    snap(catalog, "a", "s");
    let used = pool.fs.stats().used_bytes;
    let clone = catalog.clone_create("a", "s", "b").unwrap();
    assert_ne!(clone.identity().naa, lun.identity().naa);
    assert_ne!(clone.identity().serial, lun.identity().serial);
    assert_ne!(clone.id(), lun.id());
    assert_eq!(clone.geometry().block_bytes, 4096);
    let session = login(&clone, "iqn.b");
    assert_eq!(session.reservations(), "");
    session.write(0, &[2; 4096], true).unwrap();
    assert!(!logged(&clone, "snapshot", "create") && logged(&clone, "create", "a@s"));
    assert!(pool.fs.stats().used_bytes < used + 32 * 4096);
    let taken = catalog.clone_create("a", "s", "B");
    assert!(matches!(taken, Err(Error::NameTaken { .. })));
    // A clone of the clone, without what it came from.
    snap(catalog, "b", "t");
    let third = catalog.clone_create("b", "t", "c").unwrap();
    drop(session);
    catalog.delete("b", DeleteOptions { recursive: true, force: false }).unwrap();
    catalog.snapshot_delete("a", "s", false).unwrap();
    assert_eq!(first_byte(&*login(&third, "iqn.c")), 2);
    let created = third.attributes().unwrap().created;
    assert!(created > lun.attributes().unwrap().created);
    drop((lun, clone, third));
    let pool = pool.reopen();
    let third = pool.catalog.get("c").unwrap();
    assert_eq!(third.attributes().unwrap().created, created);
    assert_eq!(first_byte(&*login(&third, "iqn.c")), 2);
}

#[test]
fn a_snapshot_is_a_disk_that_is_only_read() {
    let pool = Pool::new();
    let lun = pool.lun("a", MIB);
    let catalog = &pool.catalog;
    write(&lun, 0, 1);
    snap(catalog, "a", "S");
    write(&lun, 0, 2);
    let disk = catalog.disk("A@s").unwrap();
    assert!(Arc::ptr_eq(&disk, &catalog.snapshot_disk("a", "S").unwrap()));
    assert!(disk.is_snapshot() && disk.name() == "a@S" && disk.id() == lun.id());
    assert_ne!(disk.identity().naa, lun.identity().naa);
    assert_ne!(disk.identity().serial, lun.identity().serial);
    let session = login(&disk, "iqn.a");
    assert!(session.geometry().read_only && !session.info().writable);
    assert_eq!(first_byte(&*session), 1);
    let refused = session.write(0, &[3; 512], false);
    assert!(matches!(refused, Err(BlockError::ReadOnly)), "{refused:?}");
    assert_eq!(catalog.sessions()[0].lun, "a@S");
    assert!(logged(&lun, "login", "\"snapshot\":\"S\""));
    // It outlives its name, a rollback of its LUN, and the LUN's refusal to go.
    drop(disk);
    assert!(catalog.snapshot_delete("a", "s", false).unwrap());
    snap(catalog, "a", "t");
    catalog.snapshot_rollback("a", "t", false).unwrap();
    assert_eq!(first_byte(&*session), 1);
    let recursive = DeleteOptions { recursive: true, force: false };
    assert!(matches!(catalog.delete("a", recursive), Err(Error::Busy { .. })));
    catalog.delete("a", DeleteOptions { recursive: true, force: true }).unwrap();
    assert!(session.is_gone() && catalog.sessions().is_empty());
    assert!(matches!(catalog.disk("a@s"), Err(Error::NotFound(_))));
}

/// The filesystem's part is one step; what a crash leaves after it is put right when it is opened.
#[test]
fn copies_that_a_crash_cut_short_are_settled() {
    let pool = Pool::new();
    let lun = pool.lun("a", MIB);
    write(&lun, 0, 1);
    snap(&pool.catalog, "a", "s");
    write(&lun, 0, 2);
    login(&lun, "iqn.a").keep_reservations(Some("mine"), true).unwrap();
    lun.append_log("said", serde_json::Value::Null).unwrap();
    let (identity, created) = (lun.identity(), lun.attributes().unwrap().created);
    let s = pool.catalog.snapshot("a", "s").unwrap().info.id;
    drop(lun);
    pool.fs.volume_rollback("a", "s", "kept").unwrap();
    pool.fs.snapshot_create(&[(pool.fs.volume_lookup("a").unwrap().unwrap(), "x")], false).unwrap();
    pool.fs.volume_clone(s, "b").unwrap();
    let pool = pool.reopen();
    let (a, b) = (pool.catalog.get("a").unwrap(), pool.catalog.get("b").unwrap());
    assert_eq!((a.identity(), a.attributes().unwrap().created), (identity.clone(), created));
    assert_eq!(login(&a, "iqn.a").reservations(), "mine");
    assert!(logged(&a, "said", "said"));
    assert_eq!(first_byte(&*login(&a, "iqn.a")), 1);
    assert_ne!(b.identity().naa, identity.naa);
    assert_eq!(login(&b, "iqn.a").reservations(), "");
    assert!(events(&b).iter().all(|event| event["event"] != "snapshot"));
}

#[test]
fn differences_between_snapshots_bookmarks_and_now() {
    let pool = Pool::new();
    let lun = pool.lun("a", 64 * MIB);
    let catalog = &pool.catalog;
    let changed = |from: &str, to: Option<&str>| -> Result<Vec<(u64, u64, bool)>, Error> {
        let mut diff = catalog.snapshot_diff("a", from, to)?;
        let mut all = Vec::new();
        while let Some(page) = diff.page()? {
            all.extend(page.iter().map(|e| (e.offset_bytes, e.length_bytes, e.is_data)));
        }
        Ok(all)
    };
    write(&lun, 0, 1);
    write(&lun, MIB, 1);
    snap(catalog, "a", "one");
    write(&lun, 8192, 2);
    let session = login(&lun, "iqn.a");
    session.unmap(MIB, 4096).unwrap();
    drop(session);
    snap(catalog, "a", "two");
    // Of a node that became a hole all is told.
    let expected = vec![(8192, 4096, true), (MIB, MIB, false)];
    assert_eq!(changed("one", Some("two")).unwrap(), expected);
    assert_eq!(changed("one", None).unwrap(), expected);
    assert_eq!(changed("two", None).unwrap(), []);
    catalog.snapshot_delete("a", "one", true).unwrap();
    assert_eq!(changed("one", Some("two")).unwrap(), expected);
    assert!(catalog.snapshot("a", "one").is_err());
    write(&lun, 0, 3);
    assert_eq!(changed("one", None).unwrap()[0], (0, 4096, true));
    assert_eq!(names(catalog, "a"), ["two"]);
    assert!(changed("two", Some("one")).is_err());
    // A rollback ends what a bookmark of the old line says.
    catalog.snapshot_rollback("a", "two", false).unwrap();
    assert_eq!(changed("one", Some("two")).unwrap(), expected);
    assert!(matches!(changed("one", None), Err(Error::Snapshot { .. })));
    assert_eq!(changed("two", None).unwrap(), []);
    catalog.snapshot_delete("a", "one", false).unwrap();
    assert!(catalog.bookmarks("a").unwrap().is_empty());
    // By one who has not looked at the names yet.
    let fresh = open_catalog(Arc::clone(&pool.fs));
    assert_eq!(fresh.snapshot_diff("a", "two", None).unwrap().page().unwrap(), Some(vec![]));
}
