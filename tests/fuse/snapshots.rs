//! `.snapshots`: what is in it, what may be done there, and what the kernel keeps of it.

use crate::pool::{errno, Pool};
use lunfs::lun::{Hold, Maker, SnapshotWish};
use rustix::fs::{Mode, OFlags, SeekFrom};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// Snapshots of one LUN that are listed.
const MANY: usize = 10_000;

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    entries.map(|name| name.into_string().unwrap()).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| name.to_string()).collect()
}

/// Writes to a LUN through its file.
fn write(pool: &Pool, lun: &str, offset: u64, data: &[u8]) {
    let file = OpenOptions::new().write(true).open(pool.path(lun).join("data")).unwrap();
    file.write_all_at(data, offset).unwrap();
}

/// A snapshot of vm1 as a command makes it.
fn take(pool: &Pool, name: &str) {
    let wish = SnapshotWish { of: "vm1".into(), name: Some(name.into()) };
    pool.catalog.snapshot_create(&[wish], Maker::User, false).unwrap();
}

fn read(path: &Path, offset: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    File::open(path).unwrap().read_exact_at(&mut out, offset).unwrap();
    out
}

#[test]
fn a_snapshot_of_a_lun_is_its_files_as_they_were() {
    let Some(pool) = Pool::new() else { return };
    pool.lun("vm1", 64 * MIB);
    write(&pool, "vm1", 0, &[1; 8192]);
    write(&pool, "vm1", 32 * MIB, &[2; 4096]);
    let before = fs::metadata(pool.path("vm1/data")).unwrap();
    fs::create_dir(pool.path("vm1/.snapshots/one")).unwrap();
    write(&pool, "vm1", 0, &[3; 8192]);
    write(&pool, "vm1", 16 * MIB, &[3; 8192]);
    File::options().write(true).open(pool.path("vm1/data")).unwrap().set_len(128 * MIB).unwrap();
    let one = pool.path("vm1/.snapshots/one");
    assert_eq!(names(&one), set(&["attributes", "data", "log"]));
    let data = fs::metadata(one.join("data")).unwrap();
    let shown = |m: &fs::Metadata| (m.len(), m.blocks(), m.mtime(), m.mtime_nsec(), m.mode());
    assert_eq!(shown(&data), shown(&before));
    assert_ne!(data.ino(), before.ino());
    assert_eq!(read(&one.join("data"), 0, 8192), vec![1; 8192]);
    assert_eq!(read(&one.join("data"), 16 * MIB, 8192), vec![0; 8192]);
    assert_eq!(read(&pool.path("vm1/data"), 0, 8192), vec![3; 8192]);
    let file = File::open(one.join("data")).unwrap();
    let seek = |to| rustix::fs::seek(&file, to);
    assert_eq!(seek(SeekFrom::Hole(0)), Ok(8192));
    assert_eq!(seek(SeekFrom::Data(8192)), Ok(32 * MIB));
    assert_eq!(seek(SeekFrom::Data(32 * MIB + 4096)), Err(rustix::io::Errno::NXIO));
    assert!(fs::read_to_string(one.join("log")).unwrap().contains("create"));
    assert!(fs::read_to_string(one.join("attributes")).unwrap().contains("block-size"));
}

#[test]
fn by_time_shows_those_that_are_named_by_their_time() {
    let Some(pool) = Pool::new() else { return };
    pool.lun("vm1", MIB);
    for name in ["2026-11-20T21:00:00Z", "before-upgrade"] {
        take(&pool, name);
    }
    write(&pool, "vm1", 0, &[1; 4096]);
    let wish = SnapshotWish { of: "vm1".into(), name: Some("auto-2026-11-20T22:00:00Z".into()) };
    pool.catalog.snapshot_create(&[wish], Maker::Policy, false).unwrap();
    let times = pool.path("vm1/.snapshots/.by-time");
    assert_eq!(names(&times), set(&["2026-11-20T21:00:00Z", "2026-11-20T22:00:00Z"]));
    assert_eq!(read(&times.join("2026-11-20T21:00:00Z/data"), 0, 4096), vec![0; 4096]);
    assert_eq!(read(&times.join("2026-11-20T22:00:00Z/data"), 0, 4096), vec![1; 4096]);
    let number = |path: &Path| fs::metadata(path).unwrap().ino();
    let snapshots = pool.path("vm1/.snapshots");
    assert_eq!(number(&times.join("..")), number(&snapshots));
    assert_ne!(number(&times), number(&snapshots));
    assert!(!names(&snapshots).contains(".by-time"));
    for name in ["before-upgrade", "auto-2026-11-20T22:00:00Z", "2026-11-20T23:00:00Z"] {
        assert_eq!(errno(fs::metadata(times.join(name))), libc::ENOENT, "{name}");
    }
    assert_eq!(errno(fs::create_dir(times.join("2026-11-20T23:00:00Z"))), libc::EPERM);
    assert_eq!(errno(fs::remove_dir(times.join("2026-11-20T21:00:00Z"))), libc::EPERM);
    assert_eq!(errno(fs::remove_dir(&times)), libc::EPERM);
}

#[test]
fn it_is_found_by_its_name_and_shown_in_no_listing() {
    let Some(pool) = Pool::new() else { return };
    pool.lun("vm1", MIB);
    fs::write(pool.path("file"), b"1").unwrap();
    for dir in ["", "vm1"] {
        let (dir, snapshots) = (pool.path(dir), pool.path(dir).join(".snapshots"));
        assert!(fs::metadata(&snapshots).unwrap().is_dir());
        assert!(!names(&dir).contains(".snapshots"));
        fs::create_dir(snapshots.join("2026-11-21T16:20:00Z")).unwrap();
        assert_eq!(names(&snapshots), set(&["2026-11-21T16:20:00Z"]));
        assert_eq!(
            fs::metadata(snapshots.join("..")).unwrap().ino(),
            fs::metadata(&dir).unwrap().ino()
        );
        for made in [fs::create_dir(&snapshots), File::create(&snapshots).map(drop)] {
            assert!([libc::EEXIST, libc::EISDIR].contains(&errno(made)));
        }
        assert_eq!(errno(fs::remove_dir(&snapshots)), libc::EPERM);
        assert_eq!(errno(fs::rename(&snapshots, dir.join("other"))), libc::EPERM);
    }
    assert_eq!(errno(fs::rename(pool.path("file"), pool.path(".snapshots"))), libc::EISDIR);
    fs::create_dir(pool.path("d")).unwrap();
    assert_eq!(errno(fs::rename(pool.path("d"), pool.path(".snapshots"))), libc::EPERM);
    // Below the root the name is like any other.
    fs::create_dir(pool.path("d/.snapshots")).unwrap();
    assert_eq!(names(&pool.path("d")), set(&[".snapshots"]));
}

/// A tree with what tools take care to keep.
fn make_tree(at: &Path) {
    fs::create_dir_all(at.join("a/b")).unwrap();
    fs::write(at.join("a/file"), b"as it was").unwrap();
    fs::hard_link(at.join("a/file"), at.join("a/b/linked")).unwrap();
    std::os::unix::fs::symlink("a/file", at.join("link")).unwrap();
    fs::set_permissions(at.join("a/file"), fs::Permissions::from_mode(0o640)).unwrap();
    rustix::fs::setxattr(at.join("a/file"), "user.k", b"v", rustix::fs::XattrFlags::empty())
        .unwrap();
}

#[test]
fn the_ordinary_tree_has_snapshots_too() {
    let Some(pool) = Pool::new() else { return };
    pool.lun("vm1", MIB);
    make_tree(&pool.path(""));
    fs::create_dir(pool.path(".snapshots/now")).unwrap();
    fs::write(pool.path("a/file"), b"later, and longer").unwrap();
    fs::remove_file(pool.path("link")).unwrap();
    let now = pool.path(".snapshots/now");
    assert_eq!(names(&now), set(&["a", "link"]));
    assert_eq!(fs::read(now.join("a/file")).unwrap(), b"as it was");
    assert_eq!(fs::read(now.join("link")).unwrap(), b"as it was");
    assert_eq!(fs::read_link(now.join("link")).unwrap(), PathBuf::from("a/file"));
    let mut value = [0; 8];
    let count = rustix::fs::getxattr(now.join("a/file"), "user.k", &mut value).unwrap();
    assert_eq!(&value[..count], b"v");
    // Two names of one file there, and none of it is the file here.
    let (file, linked) = (now.join("a/file"), now.join("a/b/linked"));
    let (file, linked) = (fs::metadata(file).unwrap(), fs::metadata(linked).unwrap());
    assert_eq!((file.ino(), file.nlink(), file.mode() & 0o777), (linked.ino(), 2, 0o640));
    assert_ne!(file.ino(), fs::metadata(pool.path("a/file")).unwrap().ino());
    assert_eq!(file.dev(), fs::metadata(pool.path("a/file")).unwrap().dev());
    assert_eq!(names(&now.join("a/b/../../..")), set(&["now"]));
}

#[test]
fn nothing_in_it_changes() {
    let Some(pool) = Pool::new() else { return };
    pool.lun("vm1", MIB);
    make_tree(&pool.path(""));
    fs::create_dir(pool.path(".snapshots/s")).unwrap();
    fs::create_dir(pool.path("vm1/.snapshots/s")).unwrap();
    let erofs = |result: std::io::Result<()>| assert_eq!(errno(result), libc::EROFS);
    let inside = |name: &str| pool.path(".snapshots/s").join(name);
    erofs(File::create(inside("new")).map(drop));
    erofs(fs::create_dir(inside("new")));
    erofs(fs::remove_file(inside("a/file")));
    erofs(fs::remove_dir(inside("a/b")));
    erofs(fs::rename(inside("a"), inside("z")));
    erofs(fs::rename(inside("a/file"), pool.path("file")));
    erofs(fs::rename(pool.path("a/file"), inside("file")));
    erofs(fs::hard_link(pool.path("a/file"), inside("l")));
    erofs(std::os::unix::fs::symlink("x", inside("l")));
    erofs(fs::set_permissions(inside("a"), fs::Permissions::from_mode(0o777)));
    erofs(std::os::unix::fs::chown(inside("a"), Some(1), None));
    let flags = rustix::fs::XattrFlags::empty();
    erofs(rustix::fs::setxattr(inside("a"), "user.x", b"", flags).map_err(Into::into));
    for path in [inside("a/file"), pool.path("vm1/.snapshots/s/data")] {
        erofs(OpenOptions::new().write(true).open(&path).map(drop));
        erofs(OpenOptions::new().read(true).append(true).open(&path).map(drop));
        erofs(
            rustix::fs::utimensat(
                rustix::fs::CWD,
                &path,
                &rustix::fs::Timestamps {
                    last_access: rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 },
                    last_modification: rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 },
                },
                rustix::fs::AtFlags::empty(),
            )
            .map_err(Into::into),
        );
    }
    assert_eq!(errno(fs::hard_link(inside("a/file"), pool.path("l"))), libc::EXDEV);
    assert!(fs::remove_dir_all(pool.path(".snapshots/s")).is_err());
    assert_eq!(fs::read(inside("a/b/linked")).unwrap(), b"as it was");
}

#[test]
fn mkdir_rmdir_and_mv_are_the_commands() {
    let Some(pool) = Pool::new() else { return };
    pool.lun("vm1", MIB);
    pool.lun("vm2", MIB);
    let at = |name: &str| pool.path("vm1/.snapshots").join(name);
    fs::create_dir(at("one")).unwrap();
    assert_eq!(errno(fs::create_dir(at("one"))), libc::EEXIST);
    let (long, longer) = ("x".repeat(65), "x".repeat(256));
    for bad in ["a b", "a@b", ".hidden", "é", long.as_str(), longer.as_str()] {
        assert_eq!(errno(fs::create_dir(at(bad))), libc::EINVAL, "{bad}");
    }
    assert_eq!(errno(fs::remove_dir(at("two"))), libc::ENOENT);
    fs::rename(at("one"), at("two")).unwrap();
    assert_eq!(errno(fs::metadata(at("one"))), libc::ENOENT);
    fs::create_dir(at("three")).unwrap();
    assert!([libc::EEXIST, libc::ENOTEMPTY].contains(&errno(fs::rename(at("two"), at("three")))));
    assert_eq!(errno(fs::rename(at("two"), at("a b"))), libc::EINVAL);
    let elsewhere = pool.path("vm2/.snapshots/two");
    assert_eq!(errno(fs::rename(at("two"), elsewhere)), libc::EPERM);
    assert_eq!(errno(fs::rename(at("two"), pool.path("two"))), libc::EPERM);
    assert_eq!(errno(File::create(at("file"))), libc::EPERM);
    assert_eq!(errno(fs::remove_file(at("two"))), libc::EISDIR);
    pool.catalog.snapshot_hold("vm1", "two", Hold::ForGood).unwrap();
    assert_eq!(errno(fs::remove_dir(at("two"))), libc::EBUSY);
    pool.catalog.snapshot_hold("vm1", "two", Hold::Release).unwrap();
    fs::remove_dir(at("two")).unwrap();
    assert_eq!(names(&pool.path("vm1/.snapshots")), set(&["three"]));
    assert_eq!(pool.catalog.snapshots("vm1").unwrap().len(), 1);
}

#[test]
fn what_others_make_and_delete_is_seen_at_once() {
    let Some(pool) = Pool::new() else { return };
    pool.lun("vm1", MIB);
    let at = |name: &str| pool.path("vm1/.snapshots").join(name);
    for round in 0..20u8 {
        assert_eq!(errno(fs::metadata(at("s"))), libc::ENOENT);
        let changed = fs::metadata(at("")).unwrap();
        write(&pool, "vm1", 0, &[round; 512]);
        take(&pool, "s");
        assert_eq!(names(&at("")), set(&["s"]));
        assert_eq!(read(&at("s/data"), 0, 512), vec![round; 512]);
        let times = |m: &fs::Metadata| (m.mtime(), m.mtime_nsec());
        assert!(times(&fs::metadata(at("")).unwrap()) > times(&changed));
        assert!(!pool.catalog.snapshot_delete("vm1", "s", false).unwrap());
    }
}

#[test]
fn pages_of_a_snapshot_are_kept() {
    let Some(pool) = Pool::new() else { return };
    pool.lun("vm1", MIB);
    write(&pool, "vm1", 0, &[7; 65536]);
    fs::create_dir(pool.path("vm1/.snapshots/s")).unwrap();
    let path = pool.path("vm1/.snapshots/s/data");
    assert_eq!(read(&path, 0, 65536), vec![7; 65536]);
    let file = File::open(&path).unwrap();
    // What is in the page cache is read without asking.
    let mut out = [0; 65536];
    let asked_not = rustix::io::preadv2(
        &file,
        &mut [std::io::IoSliceMut::new(&mut out)],
        0,
        rustix::io::ReadWriteFlags::NOWAIT,
    );
    match asked_not {
        Ok(count) => assert_eq!((count, out[0]), (65536, 7)),
        // This kernel's FUSE does not know the flag.
        Err(error) => assert_eq!(error, rustix::io::Errno::OPNOTSUPP),
    }
}

#[test]
fn what_is_open_outlives_its_name() {
    let Some(pool) = Pool::new() else { return };
    pool.lun("vm1", MIB);
    write(&pool, "vm1", 0, &[7; 65536]);
    for cached in [false, true] {
        fs::create_dir(pool.path("vm1/.snapshots/s")).unwrap();
        let dir = pool.path("vm1/.snapshots/s");
        let file = File::open(dir.join("data")).unwrap();
        let listed = File::open(&dir).unwrap();
        let mut out = [0; 65536];
        if cached {
            file.read_exact_at(&mut out, 0).unwrap();
        }
        write(&pool, "vm1", 0, &[8; 65536]);
        // By a command: a directory that was removed here is empty for the kernel.
        assert!(pool.catalog.snapshot_delete("vm1", "s", false).unwrap(), "later");
        assert_eq!(errno(fs::metadata(&dir)), libc::ENOENT);
        assert_eq!(names(&pool.path("vm1/.snapshots")), set(&[]));
        // The name is free at once.
        fs::create_dir(&dir).unwrap();
        assert_eq!(read(&dir.join("data"), 0, 1), [8]);
        file.read_exact_at(&mut out, 0).unwrap();
        assert_eq!(out, [7; 65536]);
        let log = rustix::fs::openat(&listed, "log", OFlags::RDONLY, Mode::empty()).unwrap();
        drop((file, listed, log));
        fs::remove_dir(&dir).unwrap();
        write(&pool, "vm1", 0, &[7; 65536]);
    }
    let gone = || pool.fs.snapshot_list(pool.catalog.get("vm1").unwrap().volume()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while !gone().is_empty() {
        assert!(Instant::now() < deadline, "{:?}", gone());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_directory_of_one_that_is_gone_is_stale() {
    let Some(pool) = Pool::new() else { return };
    pool.lun("vm1", MIB);
    fs::create_dir(pool.path("vm1/.snapshots/s")).unwrap();
    // O_PATH opens nothing.
    let dir = rustix::fs::open(
        pool.path("vm1/.snapshots/s"),
        OFlags::PATH | OFlags::DIRECTORY,
        Mode::empty(),
    )
    .unwrap();
    fs::remove_dir(pool.path("vm1/.snapshots/s")).unwrap();
    let inside = rustix::fs::openat(&dir, "data", OFlags::RDONLY, Mode::empty());
    let inside = inside.map(drop).unwrap_err().raw_os_error();
    assert!([libc::ESTALE, libc::ENOENT].contains(&inside), "{inside}");
}

#[test]
fn a_listing_goes_on_beside_changes() {
    let Some(pool) = Pool::new() else { return };
    pool.lun("vm1", MIB);
    for n in 0..MANY {
        take(&pool, &format!("s{n:05}"));
    }
    let dir = pool.path("vm1/.snapshots");
    let mut seen = BTreeMap::new();
    for (at, entry) in fs::read_dir(&dir).unwrap().enumerate() {
        let entry = entry.unwrap();
        assert!(entry.file_type().unwrap().is_dir());
        *seen.entry(entry.file_name().into_string().unwrap()).or_insert(0) += 1;
        if at % 500 == 250 {
            // The even ones go, others come, while it is read.
            let gone = format!("s{:05}", (at * 7) % MANY / 2 * 2);
            let _ = pool.catalog.snapshot_delete("vm1", &gone, false);
            take(&pool, &format!("new{at}"));
        }
    }
    assert!(seen.values().all(|&times| times == 1));
    for n in (1..MANY).step_by(2) {
        assert!(seen.contains_key(&format!("s{n:05}")), "{n}");
    }
    assert_eq!(fs::read_dir(&dir).unwrap().count(), MANY);
    assert_eq!(fs::metadata(dir.join("s00001/data")).unwrap().len(), MIB);
}

#[test]
fn it_is_all_there_after_a_restart() {
    let Some(mut pool) = Pool::new() else { return };
    pool.lun("vm1", MIB);
    write(&pool, "vm1", 0, &[5; 4096]);
    fs::write(pool.path("file"), b"1").unwrap();
    fs::create_dir(pool.path("vm1/.snapshots/s")).unwrap();
    fs::create_dir(pool.path(".snapshots/t")).unwrap();
    let numbers = |pool: &Pool| {
        let of = |name: &str| fs::metadata(pool.path(name)).unwrap().ino();
        [of("vm1/.snapshots/s/data"), of(".snapshots/t/file"), of(".snapshots"), of("file")]
    };
    let before = numbers(&pool);
    assert_eq!(before.iter().collect::<BTreeSet<_>>().len(), 4);
    pool.restart();
    assert_eq!(numbers(&pool), before);
    assert_eq!(read(&pool.path("vm1/.snapshots/s/data"), 0, 4096), vec![5; 4096]);
    // Its parent is found though nobody came from there: `..` of a listing.
    assert_eq!(names(&pool.path(".snapshots/t")), set(&["file"]));
}

#[test]
fn tools_copy_it_whole() {
    let Some(pool) = Pool::new() else { return };
    pool.lun("vm1", 64 * MIB);
    write(&pool, "vm1", 3 * MIB, &[9; 12345]);
    make_tree(&pool.path(""));
    fs::create_dir(pool.path("vm1/.snapshots/s")).unwrap();
    fs::create_dir(pool.path(".snapshots/s")).unwrap();
    let out = tempfile::tempdir().unwrap();
    let run = |program: &str, args: &[&Path]| {
        let done = Command::new(program).args(args).output().unwrap();
        assert!(done.status.success(), "{program}: {}", String::from_utf8_lossy(&done.stderr));
    };
    let (copy, image) = (out.path().join("copy"), out.path().join("image"));
    run("cp", &[Path::new("-a"), &pool.path(".snapshots/s"), &copy]);
    run("diff", &[Path::new("-r"), &pool.path(".snapshots/s"), &copy]);
    let file = fs::metadata(copy.join("a/file")).unwrap();
    assert_eq!(file.ino(), fs::metadata(copy.join("a/b/linked")).unwrap().ino());
    run("cp", &[Path::new("--sparse=always"), &pool.path("vm1/.snapshots/s/data"), &image]);
    run("cmp", &[&pool.path("vm1/data"), &image]);
    let copied = fs::metadata(&image).unwrap();
    assert!((copied.len(), copied.blocks() * 512 < MIB) == (64 * MIB, true));
    // A copy of the whole LUN takes the present alone along.
    run("cp", &[Path::new("-a"), &pool.path("vm1"), &out.path().join("vm1")]);
    assert_eq!(names(&out.path().join("vm1")), set(&["attributes", "data", "log"]));
    let mut first = [0; 1];
    File::open(pool.path("vm1/.snapshots/s/log")).unwrap().read_exact(&mut first).unwrap();
}
