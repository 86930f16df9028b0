//! Names, links, attributes: what POSIX says of nodes.

use crate::pool::{errno, Pool};
use rustix::fs::{AtFlags, FileType, Mode, RenameFlags, Timespec, Timestamps, XattrFlags, CWD};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{symlink, FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    entries.map(|name| name.into_string().unwrap()).collect()
}

#[test]
fn files_directories_and_links() {
    let Some(pool) = Pool::new() else { return };
    let dir = pool.path("dir");
    fs::create_dir(&dir).unwrap();
    assert_eq!(errno(fs::create_dir(&dir)), libc::EEXIST);
    fs::write(dir.join("a"), b"bytes").unwrap();
    fs::hard_link(dir.join("a"), dir.join("b")).unwrap();
    symlink("a", dir.join("s")).unwrap();
    assert_eq!(fs::read(dir.join("s")).unwrap(), b"bytes");
    assert_eq!(fs::read_link(dir.join("s")).unwrap(), Path::new("a"));
    let (a, b) = (fs::metadata(dir.join("a")).unwrap(), fs::metadata(dir.join("b")).unwrap());
    assert_eq!((a.ino(), a.nlink()), (b.ino(), 2));
    assert_eq!(names(&dir), ["a", "b", "s"].map(String::from).into());
    fs::remove_file(dir.join("a")).unwrap();
    assert_eq!(fs::metadata(dir.join("b")).unwrap().nlink(), 1);
    assert_eq!(errno(fs::read(dir.join("s"))), libc::ENOENT);
    assert_eq!(errno(fs::remove_dir(&dir)), libc::ENOTEMPTY);
    assert_eq!(errno(fs::remove_file(&dir)), libc::EISDIR);
    fs::remove_file(dir.join("b")).unwrap();
    fs::remove_file(dir.join("s")).unwrap();
    fs::remove_dir(&dir).unwrap();
    assert_eq!(errno(fs::metadata(&dir)), libc::ENOENT);
}

#[test]
fn directories_count_their_subdirectories() {
    let Some(pool) = Pool::new() else { return };
    let links = |name: &str| fs::metadata(pool.path(name)).unwrap().nlink();
    fs::create_dir_all(pool.path("a/b")).unwrap();
    fs::create_dir(pool.path("c")).unwrap();
    assert_eq!((links(""), links("a"), links("c")), (4, 3, 2));
    fs::rename(pool.path("a/b"), pool.path("c/b")).unwrap();
    assert_eq!((links("a"), links("c")), (2, 3));
    let dot_dot = fs::metadata(pool.path("c/b/..")).unwrap();
    assert_eq!(dot_dot.ino(), fs::metadata(pool.path("c")).unwrap().ino());
}

#[test]
fn rename_replaces_refuses_and_exchanges() {
    let Some(pool) = Pool::new() else { return };
    let (a, b) = (pool.path("a"), pool.path("b"));
    fs::write(&a, b"a").unwrap();
    fs::write(&b, b"b").unwrap();
    let with = |flags| rustix::fs::renameat_with(CWD, &a, CWD, &b, flags);
    assert_eq!(errno(with(RenameFlags::NOREPLACE)), libc::EEXIST);
    with(RenameFlags::EXCHANGE).unwrap();
    assert_eq!((fs::read(&a).unwrap(), fs::read(&b).unwrap()), (b"b".into(), b"a".into()));
    fs::rename(&a, &b).unwrap();
    assert_eq!(fs::read(&b).unwrap(), b"b");
    assert_eq!(errno(fs::metadata(&a)), libc::ENOENT);
    fs::create_dir_all(pool.path("d/e")).unwrap();
    assert_eq!(errno(fs::rename(pool.path("d"), pool.path("d/e/f"))), libc::EINVAL);
    assert_eq!(errno(fs::rename(&b, pool.path("d"))), libc::EISDIR);
    assert_eq!(errno(fs::rename(pool.path("d"), &b)), libc::ENOTDIR);
}

#[test]
fn what_is_open_outlives_its_name() {
    let Some(pool) = Pool::new() else { return };
    let path = pool.path("gone");
    let options = OpenOptions::new().read(true).write(true).create_new(true).clone();
    let mut file = options.open(&path).unwrap();
    file.write_all(b"still here").unwrap();
    fs::remove_file(&path).unwrap();
    file.write_all(b", and growing").unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "still here, and growing");
    let dir = pool.path("dir");
    fs::create_dir(&dir).unwrap();
    let open = File::open(&dir).unwrap();
    fs::remove_dir(&dir).unwrap();
    assert_eq!(open.metadata().unwrap().nlink(), 0);
}

#[test]
fn a_working_directory_may_be_removed() {
    let Some(pool) = Pool::new() else { return };
    for name in ["a", "b", "c"] {
        fs::create_dir(pool.path(name)).unwrap();
    }
    let script = "cd a; rmdir ../a; test $(stat -c %h .) = 0 && ls -A >/dev/null && \
                  test -z \"$(ls -A)\" && ! touch f 2>/dev/null && \
                  ! test -e ../a && cd ../b && mv -T ../c ../b && test $(stat -c %h .) = 0";
    let mut shell = std::process::Command::new("/bin/sh");
    let done = shell.args(["-c", script]).current_dir(pool.path("")).status().unwrap();
    assert!(done.success());
    assert_eq!(names(&pool.path("")), ["b".to_string()].into());
}

#[test]
fn large_directories_are_listed_whole_while_they_shrink() {
    let Some(pool) = Pool::new() else { return };
    let dir = pool.path("many");
    fs::create_dir(&dir).unwrap();
    for i in 0..3000 {
        File::create(dir.join(format!("file number {i}"))).unwrap();
    }
    assert_eq!(names(&dir).len(), 3000);
    let mut seen = BTreeSet::new();
    for (i, entry) in fs::read_dir(&dir).unwrap().enumerate() {
        let name = entry.unwrap().file_name();
        if i % 2 == 0 {
            fs::remove_file(dir.join(&name)).unwrap();
        }
        assert!(seen.insert(name), "listed twice");
    }
    assert_eq!(seen.len(), 3000);
    assert_eq!(names(&dir).len(), 1500);
}

#[test]
fn names_of_255_bytes_and_no_more() {
    let Some(pool) = Pool::new() else { return };
    File::create(pool.path(&"n".repeat(255))).unwrap();
    assert_eq!(errno(File::create(pool.path(&"n".repeat(256)))), libc::ENAMETOOLONG);
    assert_eq!(errno(fs::metadata(pool.path(&"n".repeat(256)))), libc::ENAMETOOLONG);
}

#[test]
fn times_have_nanoseconds_and_lie_before_1970_too() {
    let Some(pool) = Pool::new() else { return };
    let path = pool.path("f");
    let file = File::create(&path).unwrap();
    let set = |seconds, nanoseconds| {
        let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
        let now = fs::metadata(&path).unwrap();
        assert_eq!((now.mtime(), now.mtime_nsec()), (now.atime(), now.atime_nsec()));
        (now.mtime(), now.mtime_nsec())
    };
    assert_eq!(set(1_700_000_000, 123_456_789), (1_700_000_000, 123_456_789));
    assert_eq!(set(-2, 750_000_000), (-2, 750_000_000));
    assert_eq!(set(5_000_000_000, 1), (5_000_000_000, 1));
    // Times that do not fit are clamped, and end no thread of the mount (there are four).
    for _ in 0..8 {
        assert_eq!(set(i64::MIN, 0).0, -9_223_372_037);
        assert_eq!(set(i64::MAX, 0).0, 9_223_372_036);
    }
    assert_eq!(set(7, 8), (7, 8));
    let omit = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT as _ };
    let now = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW as _ };
    let times = Timestamps { last_access: omit, last_modification: now };
    rustix::fs::futimens(&file, &times).unwrap();
    let found = file.metadata().unwrap();
    assert_eq!((found.atime(), found.atime_nsec()), (7, 8));
    assert!(found.mtime() > 1_700_000_000);
}

#[test]
fn writing_moves_mtime_and_ctime_and_chmod_only_ctime() {
    let Some(pool) = Pool::new() else { return };
    let path = pool.path("f");
    fs::write(&path, b"1").unwrap();
    let stamp = || {
        let m = fs::metadata(&path).unwrap();
        ((m.mtime(), m.mtime_nsec()), (m.ctime(), m.ctime_nsec()))
    };
    let first = stamp();
    fs::write(&path, b"2").unwrap();
    let second = stamp();
    assert!(second.0 > first.0 && second.1 > first.1);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let third = stamp();
    assert!(third.0 == second.0 && third.1 > second.1);
}

#[test]
fn the_first_access_after_a_change_is_noted() {
    let Some(pool) = Pool::new() else { return };
    let path = pool.path("f");
    fs::write(&path, b"x").unwrap();
    fs::create_dir(pool.path("d")).unwrap();
    let stamps = |name: &str| {
        let m = fs::metadata(pool.path(name)).unwrap();
        ((m.atime(), m.atime_nsec()), (m.ctime(), m.ctime_nsec()))
    };
    let (file, dir) = (stamps("f"), stamps("d"));
    fs::read(&path).unwrap();
    names(&pool.path("d"));
    let (read, listed) = (stamps("f"), stamps("d"));
    assert!(read.0 > file.0 && listed.0 > dir.0);
    assert_eq!((read.1, listed.1), (file.1, dir.1));
    fs::read(&path).unwrap();
    assert_eq!(stamps("f"), read);
    fs::write(&path, b"y").unwrap();
    fs::read(&path).unwrap();
    assert!(stamps("f").0 > read.0);
}

#[test]
fn extended_attributes() {
    let Some(pool) = Pool::new() else { return };
    let path = pool.path("f");
    File::create(&path).unwrap();
    let set = |name: &str, value: &[u8], flags| rustix::fs::setxattr(&path, name, value, flags);
    let get = |name: &str| {
        let mut buffer = vec![0; 65_536];
        rustix::fs::getxattr(&path, name, &mut buffer[..]).map(|count| buffer[..count].to_vec())
    };
    set("user.a", b"value", XattrFlags::empty()).unwrap();
    assert_eq!(get("user.a").unwrap(), b"value");
    assert_eq!(errno(set("user.a", b"x", XattrFlags::CREATE)), libc::EEXIST);
    assert_eq!(errno(set("user.b", b"x", XattrFlags::REPLACE)), libc::ENODATA);
    let long = vec![7; 60_000];
    set("trusted.long", &long, XattrFlags::empty()).unwrap();
    assert_eq!(get("trusted.long").unwrap(), long);
    assert_eq!(errno(set("user.more", &long, XattrFlags::empty())), libc::ENOSPC);
    let mut small = [0; 4];
    assert_eq!(errno(rustix::fs::getxattr(&path, "user.a", &mut small[..])), libc::ERANGE);
    let mut list = vec![0; 4096];
    let count = rustix::fs::listxattr(&path, &mut list[..]).unwrap();
    let listed: BTreeSet<&[u8]> =
        list[..count].split(|&b| b == 0).filter(|name| !name.is_empty()).collect();
    assert_eq!(listed, [&b"user.a"[..], b"trusted.long"].into());
    rustix::fs::removexattr(&path, "user.a").unwrap();
    assert_eq!(errno(get("user.a")), libc::ENODATA);
    assert_eq!(errno(set("other.a", b"x", XattrFlags::empty())), libc::EOPNOTSUPP);
}

#[test]
fn special_files() {
    let Some(pool) = Pool::new() else { return };
    let make = |name: &str, kind, device| {
        let path = pool.path(name);
        rustix::fs::mknodat(CWD, &path, kind, Mode::from_raw_mode(0o600), device).unwrap();
        fs::symlink_metadata(path).unwrap()
    };
    assert!(make("fifo", FileType::Fifo, 0).file_type().is_fifo());
    assert!(make("socket", FileType::Socket, 0).file_type().is_socket());
    assert!(make("plain", FileType::RegularFile, 0).file_type().is_file());
    let null = make("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    assert!(null.file_type().is_char_device());
    assert_eq!(null.rdev(), rustix::fs::makedev(1, 3));
    let mut device = OpenOptions::new().write(true).open(pool.path("null")).unwrap();
    device.write_all(b"devices work on this mount").unwrap();
}

#[test]
fn several_threads_read_and_write() {
    let Some(pool) = Pool::new() else { return };
    std::thread::scope(|scope| {
        for thread in 0..8u8 {
            let path = pool.path(&format!("f{thread}"));
            scope.spawn(move || {
                let options = OpenOptions::new().read(true).write(true).create(true).clone();
                let file = options.open(&path).unwrap();
                let mut back = [0; 5000];
                for round in 0..50u64 {
                    let bytes = [thread ^ round as u8; 5000];
                    file.write_all_at(&bytes, round * 4999).unwrap();
                    file.read_exact_at(&mut back, round * 4999).unwrap();
                    assert_eq!(back, bytes);
                }
                file.sync_all().unwrap();
                assert_eq!(file.metadata().unwrap().len(), 49 * 4999 + 5000);
            });
        }
    });
}
