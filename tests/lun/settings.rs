//! `attributes`, resize, log.

use crate::pool::*;
use lunfs::lun::{Access, BlockIo, Error, LOG_LIMIT_BYTES};

fn set(lun: &lunfs::lun::Lun, key: &str, value: &str) -> Result<(), Error> {
    lun.set(&[(key.to_owned(), value.to_owned())])
}

#[test]
fn what_is_set_shows_everywhere() {
    let pool = Pool::new();
    let lun = pool.lun("vm1", MIB);
    let generation = lun.geometry().generation;
    set(&lun, "access", "shared").unwrap();
    set(&lun, "serial", "S-1").unwrap();
    set(&lun, "removable", "true").unwrap();
    assert!(lun.geometry().generation > generation);
    assert!(lun.geometry().removable);
    assert_eq!(lun.identity().serial, "S-1");
    assert_eq!(lun.settings().access, Access::Shared);
    let text = lun.attributes_toml().unwrap();
    for line in
        ["size = 1048576", "access = \"shared\"", "serial = \"S-1\"", "redundancy = \"none\""]
    {
        assert!(text.lines().any(|it| it == line), "{line} in {text}");
    }
    assert!(logged(&lun, "set", "S-1"));
    drop(lun);
    let pool = pool.reopen();
    let lun = pool.catalog.get("vm1").unwrap();
    assert_eq!(lun.settings().access, Access::Shared);
    assert_eq!(lun.identity().serial, "S-1");
}

#[test]
fn the_file_is_checked_whole_and_refusals_are_logged() {
    let pool = Pool::new();
    let lun = pool.lun("vm1", MIB);
    let before = lun.attributes().unwrap();
    for text in
        ["vendor = \"OK\"\nno-such = 1\n", "vendor = \"OK\"\nsize = 100\n", "= 1", "used = true"]
    {
        assert!(lun.apply_attributes(text.as_bytes()).is_err(), "{text}");
        assert_eq!(lun.attributes().unwrap().settings, before.settings);
    }
    assert!(logged(&lun, "refused", "no-such"));
    let text = lun.attributes_toml().unwrap().replace("size = 1048576", "size = \"2M\"");
    lun.apply_attributes(text.replace("LUNFS", "NEW").as_bytes()).unwrap();
    assert_eq!(lun.size_bytes(), 2 * MIB);
    assert_eq!(lun.identity().vendor, "NEW");
    assert_eq!(lun.settings().serial, "", "a derived serial is not made a fixed one");
    lun.apply_attributes(b"size = 4194304\n").unwrap();
    assert_eq!(lun.geometry().size_bytes, 4 * MIB);
    lun.check_set(&[("size".into(), "8M".into())]).unwrap();
    assert_eq!(lun.geometry().size_bytes, 4 * MIB);
}

#[test]
fn shrinking_is_refused_while_open_unless_forced() {
    let pool = Pool::new();
    let lun = pool.lun("vm1", 4 * MIB);
    let disk = login(&lun, "a");
    disk.write(3 * MIB, &[7; 4096], false).unwrap();
    let generation = disk.generation();
    lun.resize(8 * MIB, false).unwrap();
    assert!(disk.generation() > generation);
    assert_eq!(disk.geometry().size_bytes, 8 * MIB);
    assert!(matches!(lun.resize(2 * MIB, false), Err(Error::Busy { .. })));
    assert!(matches!(set(&lun, "size", "2M"), Err(Error::Busy { .. })));
    lun.resize(2 * MIB, true).unwrap();
    assert_eq!(disk.geometry().size_bytes, 2 * MIB);
    assert!(disk.read(2 * MIB, &mut [0; 512]).is_err());
    assert!(disk.write(2 * MIB, &[0; 512], false).is_err());
    lun.resize(4 * MIB, false).unwrap();
    let mut out = [1; 4096];
    disk.read(3 * MIB, &mut out).unwrap();
    assert_eq!(out, [0; 4096], "what was cut off does not come back");
    drop(disk);
    let file = open(&lun, READ);
    assert!(matches!(lun.resize(MIB, false), Err(Error::Busy { .. })));
    drop(file);
    lun.resize(MIB, false).unwrap();
    assert!(logged(&lun, "resize", "1048576"));
    for bad in [0, 100, u64::MAX] {
        assert!(matches!(lun.resize(bad, true), Err(Error::BadSize { .. })), "{bad}");
    }
}

#[test]
fn block_size_waits_for_logouts() {
    let pool = Pool::new();
    let lun = pool.lun("vm1", MIB + 512);
    assert!(matches!(set(&lun, "block-size", "4096"), Err(Error::BadSize { .. })));
    lun.resize(MIB, false).unwrap();
    let disk = login(&lun, "a");
    assert!(matches!(set(&lun, "block-size", "4096"), Err(Error::Busy { .. })));
    drop(disk);
    set(&lun, "block-size", "4096").unwrap();
    let disk = login(&lun, "a");
    assert!(disk.read(512, &mut [0; 512]).is_err());
    disk.read(4096, &mut [0; 4096]).unwrap();
}

#[test]
fn exclusive_needs_one_sort_to_leave() {
    let pool = Pool::new();
    let lun = pool.lun("vm1", MIB);
    set(&lun, "access", "shared").unwrap();
    let disk = login(&lun, "a");
    disk.write(0, &[1; 512], false).unwrap();
    let file = open(&lun, READ_WRITE);
    file.write_at(0, &[2; 512]).unwrap();
    disk.write(0, &[1; 512], false).unwrap();
    assert!(matches!(set(&lun, "access", "exclusive"), Err(Error::Busy { .. })));
    assert_eq!(lun.settings().access, Access::Shared);
    drop(file);
    set(&lun, "access", "exclusive").unwrap();
    assert!(matches!(lun.open_file(READ_WRITE), Err(Error::Busy { .. })));
}

#[test]
fn the_log_is_cut_and_the_older_half_kept() {
    let pool = Pool::new();
    let lun = pool.lun("vm1", MIB);
    let node = lun.log_node();
    let filler = "x".repeat(1000);
    let fields = serde_json::json!({ "filler": filler });
    for i in 0..1500 {
        lun.append_log(&format!("e{i}"), fields.clone()).unwrap();
        assert!(pool.fs.getattr(node).unwrap().size_bytes <= LOG_LIMIT_BYTES);
    }
    let root = lunfs::fs::NodeId::root(lun.volume());
    assert!(pool.fs.lookup(root, b"log.1").is_ok());
    assert_eq!(pool.fs.lookup(root, b"log").unwrap().id, node);
    let kinds: Vec<String> =
        events(&lun).iter().map(|e| e["event"].as_str().unwrap().to_owned()).collect();
    let first = kinds.iter().position(|kind| kind == "e900").unwrap();
    let wanted: Vec<String> = (900..1500).map(|i| format!("e{i}")).collect();
    assert_eq!(kinds[first..], wanted);
}

#[test]
fn the_owner_appends_and_followers_see_it() {
    let pool = Pool::new();
    let lun = pool.lun("vm1", MIB);
    let (_, cursor) = lun.read_log_after(0).unwrap();
    lun.append_log_bytes(b"my own line\n").unwrap();
    let (bytes, cursor) = lun.read_log_after(cursor).unwrap();
    assert_eq!(bytes, b"my own line\n");
    assert!(lun.read_log_after(cursor).unwrap().0.is_empty());
    let big = vec![b'y'; 3 << 20];
    lun.append_log_bytes(&big).unwrap();
    lun.append_log_bytes(b"end\n").unwrap();
    let (bytes, _) = lun.read_log_after(cursor).unwrap();
    assert!(bytes.ends_with(b"y" as &[u8]) || bytes.ends_with(b"yend\n"));
    assert!(pool.fs.getattr(lun.log_node()).unwrap().size_bytes <= LOG_LIMIT_BYTES);
}

#[test]
fn damaged_attributes_make_it_read_only() {
    let pool = Pool::new();
    let lun = pool.lun("vm1", MIB);
    let file = pool.fs.open_file(lun.attributes_node()).unwrap();
    file.write_at(0, b"garbage = = =\n").unwrap();
    drop((file, lun));
    let pool = pool.reopen();
    let lun = pool.catalog.get("vm1").unwrap();
    assert!(lun.settings().read_only);
    assert!(logged(&lun, "error", "attributes"));
    set(&lun, "read-only", "false").unwrap();
    drop(lun);
    let pool = pool.reopen();
    assert!(!pool.catalog.get("vm1").unwrap().settings().read_only);
}
