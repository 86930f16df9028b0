//! Making, finding, renaming and deleting LUNs.

use crate::pool::*;
use lunfs::fs::{NewNode, NodeId, Owner, VolumeId, MAX_FILE_BYTES};
use lunfs::lun::{BlockError, BlockIo, Change, CreateLun, DeleteOptions, Error};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

const OWNER: Owner = Owner { mode: 0o644, uid: 0, gid: 0 };
const FORCE: DeleteOptions = DeleteOptions { recursive: false, force: true };

#[test]
fn made_found_and_there_after_a_restart() {
    let pool = Pool::new();
    let lun = pool.lun("vm1", GIB);
    pool.lun("Alpha", 4096);
    let volume = lun.volume();
    lun.set(&[("vendor".into(), "ACME".into()), ("block-size".into(), "4096".into())]).unwrap();
    assert_eq!(pool.catalog.get("VM1").unwrap().volume(), volume);
    assert_eq!(pool.catalog.by_volume(volume).unwrap().name(), "vm1");
    assert!(matches!(pool.catalog.get("vm2"), Err(Error::NotFound(_))));
    let naa = lun.identity().naa;
    drop(lun);

    let pool = pool.reopen();
    let names: Vec<String> = pool.catalog.list().iter().map(|lun| lun.name()).collect();
    assert_eq!(names, ["Alpha", "vm1"]);
    let lun = pool.catalog.get("vm1").unwrap();
    assert_eq!((lun.volume(), lun.size_bytes()), (volume, GIB));
    assert_eq!(lun.geometry().block_bytes, 4096);
    assert_eq!((lun.identity().vendor.as_str(), lun.identity().naa), ("ACME", naa));
    assert!(logged(&lun, "create", "vm1"));
}

#[test]
fn a_lun_is_three_files() {
    let pool = Pool::new();
    let lun = pool.lun("vm1", MIB);
    let root = NodeId::root(lun.volume());
    let mut names: Vec<Vec<u8>> =
        pool.fs.readdir(root, 0, 10).unwrap().into_iter().map(|entry| entry.name).collect();
    names.sort();
    assert_eq!(names, [&b"attributes"[..], b"data", b"log"]);
    assert_eq!(pool.fs.lookup(root, b"data").unwrap().id, lun.data_node());
    assert_eq!(pool.fs.lookup(root, b"log").unwrap().id, lun.log_node());
    assert_eq!(pool.fs.lookup(root, b"attributes").unwrap().id, lun.attributes_node());
    assert_eq!(lun.data_attr().unwrap().size_bytes, MIB);
}

#[test]
fn sixteen_tib_cost_a_handful_of_blocks() {
    let pool = Pool::sized(GIB);
    pool.lun("small", MIB);
    pool.fs.consistency_point().unwrap();
    let before = pool.fs.stats().blocks_written;
    let lun = pool.lun("big", 16 << 40);
    let written = pool.fs.stats().blocks_written - before;
    assert!(written < 64, "{written} blocks for a LUN of 16 TiB");
    let disk = login(&lun, "a");
    let last = (16u64 << 40) - 4096;
    disk.write(last, &[9; 4096], true).unwrap();
    let before = pool.fs.stats().blocks_written;
    disk.unmap(0, 16 << 40).unwrap();
    disk.flush().unwrap();
    let written = pool.fs.stats().blocks_written - before;
    assert!(written < 64, "{written} blocks for an UNMAP of 16 TiB");
    let mut out = [1; 4096];
    disk.read(last, &mut out).unwrap();
    assert_eq!(out, [0; 4096]);
}

#[test]
fn bad_names_sizes_and_settings_are_refused() {
    let pool = Pool::new();
    for name in ["", ".x", "a/b", "a b", "é"] {
        let refused = pool.catalog.create(name, &sized(MIB));
        assert!(matches!(refused, Err(Error::BadName { .. })), "{name}");
    }
    for size in [0, 1, 513, MAX_FILE_BYTES + 512, u64::MAX] {
        let refused = pool.catalog.create("vm1", &sized(size));
        assert!(matches!(refused, Err(Error::BadSize { .. })), "{size}");
    }
    let settings = vec![("block-size".to_owned(), "1000".to_owned())];
    let request = CreateLun { settings, ..sized(MIB) };
    assert!(matches!(pool.catalog.create("vm1", &request), Err(Error::BadSetting { .. })));
    assert!(pool.catalog.list().is_empty());
    assert!(pool.fs.volume_list().unwrap().is_empty());
    pool.lun("vm1", MAX_FILE_BYTES);
}

#[test]
fn names_are_one_space_with_the_tree() {
    let pool = Pool::new();
    let tree = NodeId::root(VolumeId::TREE);
    pool.fs.create(tree, b"Backup", NewNode::Directory, OWNER).unwrap();
    for i in 0..600 {
        pool.fs.create(tree, format!("f{i}").as_bytes(), NewNode::File, OWNER).unwrap();
    }
    pool.lun("vm1", MIB);
    for taken in ["backup", "F599", "VM1"] {
        let refused = pool.catalog.create(taken, &sized(MIB));
        assert!(matches!(refused, Err(Error::NameTaken { .. })), "{taken}");
        assert!(pool.catalog.check_create(taken, &sized(MIB)).is_err());
    }
    assert!(matches!(pool.catalog.rename("vm1", "BACKUP"), Err(Error::NameTaken { .. })));
    assert!(pool.catalog.check_tree_name(b"Vm1").is_err());
    drop(pool.catalog.check_tree_name(b"vm2").unwrap());
    drop(pool.catalog.check_tree_name(&[0xff, 0xfe]).unwrap());
}

#[test]
fn a_checked_tree_name_is_kept_free() {
    let pool = Pool::new();
    let guard = pool.catalog.check_tree_name(b"both").unwrap();
    std::thread::scope(|scope| {
        let creating = scope.spawn(|| pool.catalog.create("BOTH", &sized(MIB)).map(drop));
        let tree = NodeId::root(VolumeId::TREE);
        pool.fs.create(tree, b"both", NewNode::File, OWNER).unwrap();
        drop(guard);
        assert!(matches!(creating.join().unwrap(), Err(Error::NameTaken { .. })));
    });
}

#[test]
fn rename_keeps_everything_but_the_name() {
    let pool = Pool::new();
    let lun = pool.lun("vm1", MIB);
    login(&lun, "a").write(0, &[5; 512], false).unwrap();
    pool.lun("other", MIB);
    assert!(matches!(pool.catalog.rename("vm1", "OTHER"), Err(Error::NameTaken { .. })));
    let session = login(&lun, "a");
    assert!(matches!(pool.catalog.rename("vm1", "vm2"), Err(Error::Busy { .. })));
    drop(session);
    pool.catalog.rename("vm1", "VM1").unwrap();
    pool.catalog.rename("vm1", "vm2").unwrap();
    assert!(pool.catalog.get("vm1").is_err());
    assert_eq!(pool.catalog.get("vm2").unwrap().volume(), lun.volume());
    assert_eq!(lun.name(), "vm2");
    drop(lun);
    let pool = pool.reopen();
    let lun = pool.catalog.get("vm2").unwrap();
    let mut out = [0; 512];
    login(&lun, "a").read(0, &mut out).unwrap();
    assert_eq!(out, [5; 512]);
    assert!(logged(&lun, "rename", "vm2"));
}

#[test]
fn delete_is_refused_while_open_and_forced_drops_sessions() {
    let pool = Pool::new();
    let lun = pool.lun("vm1", MIB);
    let file = open(&lun, READ);
    assert!(matches!(pool.catalog.delete("vm1", <_>::default()), Err(Error::Busy { .. })));
    drop(file);
    let disk = login(&lun, "a");
    disk.write(0, &[1; 512], false).unwrap();
    assert!(matches!(pool.catalog.delete("vm1", <_>::default()), Err(Error::Busy { .. })));
    assert!(pool.catalog.check_delete("vm1", <_>::default()).is_err());
    let kicked = Arc::new(AtomicBool::new(false));
    let kick = kicked.clone();
    disk.on_kick(Box::new(move || kick.store(true, Ordering::SeqCst)));
    pool.catalog.delete("VM1", FORCE).unwrap();
    assert!(kicked.load(Ordering::SeqCst) && disk.is_gone());
    assert!(matches!(disk.write(0, &[1; 512], false), Err(BlockError::Gone)));
    assert!(matches!(disk.read(0, &mut [1; 512]), Err(BlockError::Gone)));
    assert!(matches!(lun.attach(request("b")), Err(Error::Gone)));
    assert!(lun.open_file(READ).is_err());
    assert!(pool.catalog.list().is_empty());
    pool.lun("vm1", MIB);
    drop(disk);
}

#[test]
fn a_refused_delete_leaves_it_usable() {
    let pool = Pool::new();
    let lun = pool.lun("vm1", MIB);
    let disk = login(&lun, "a");
    assert!(pool.catalog.delete("vm1", <_>::default()).is_err());
    disk.write(0, &[1; 512], false).unwrap();
    login(&lun, "b");
}

#[test]
fn doors_are_told_of_changes() {
    let pool = Pool::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = seen.clone();
    let listener = move |change: &Change| note.lock().unwrap().push(change.clone());
    let subscription = pool.catalog.subscribe(Arc::new(listener));
    let lun = pool.lun("vm1", MIB);
    let volume = lun.volume();
    lun.resize(2 * MIB, false).unwrap();
    lun.set(&[("product".into(), "X".into())]).unwrap();
    let disk = login(&lun, "a");
    disk.write(0, &[1; 512], false).unwrap();
    let file = open(&lun, READ);
    disk.write(1024, &[1; 512], false).unwrap();
    drop((file, disk));
    pool.catalog.rename("vm1", "vm2").unwrap();
    pool.catalog.delete("vm2", <_>::default()).unwrap();
    drop(subscription);
    pool.lun("vm3", MIB);
    let expected = [
        Change::Created { volume, name: "vm1".into() },
        Change::Resized { volume, size_bytes: 2 * MIB },
        Change::Settings { volume },
        Change::Written { volume, offset_bytes: 1024, length_bytes: 512 },
        Change::Renamed { volume, from: "vm1".into(), to: "vm2".into() },
        Change::Removed { volume, name: "vm2".into() },
    ];
    assert_eq!(*seen.lock().unwrap(), expected);
}

#[test]
fn a_full_pool_still_deletes() {
    let pool = Pool::sized(128 * MIB);
    let lun = pool.lun("vm1", GIB);
    let disk = login(&lun, "a");
    let chunk = noise(1, MIB as usize);
    let full = (0..1024).find_map(|i| disk.write(i * MIB, &chunk, false).err());
    assert!(matches!(full, Some(BlockError::NoSpace)), "{full:?}");
    let mut out = vec![0; MIB as usize];
    disk.read(0, &mut out).unwrap();
    assert!(out == chunk);
    drop(disk);
    pool.catalog.delete("vm1", <_>::default()).unwrap();
    let lun = pool.lun("vm2", GIB);
    let disk = login(&lun, "a");
    for i in 0..32 {
        disk.write(i * MIB, &chunk, false).unwrap();
    }
}

#[test]
fn a_volume_that_is_no_lun_is_told_and_can_be_removed() {
    let pool = Pool::new();
    pool.lun("vm1", MIB);
    let odd = pool.fs.volume_create("odd", OWNER).unwrap();
    let root = NodeId::root(odd);
    let data = pool.fs.create(root, b"data", NewNode::File, OWNER).unwrap();
    pool.fs.open_file(data.id).unwrap().write_at(0, &[1; 4096]).unwrap();
    pool.fs.volume_create("unfinished", OWNER).unwrap();
    let pool = pool.reopen();
    assert_eq!(pool.catalog.list().len(), 1);
    let unusable: Vec<String> = pool.catalog.unusable().into_iter().map(|(name, _)| name).collect();
    assert_eq!(unusable, ["odd"]);
    assert!(matches!(pool.catalog.create("ODD", &sized(MIB)), Err(Error::NameTaken { .. })));
    assert!(matches!(pool.catalog.delete("odd", <_>::default()), Err(Error::NotFound(_))));
    pool.catalog.delete("odd", FORCE).unwrap();
    assert_eq!(pool.fs.volume_list().unwrap().len(), 1);
    pool.lun("ODD", MIB);
}
