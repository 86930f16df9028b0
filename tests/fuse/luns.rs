//! LUN directories: their shape and rules, `attributes`, `log`, `data`, the lease, coherence.

use crate::pool::{attach, child, child_argument, errno, Pool, FILE_WAIT};
use lunfs::lun::{BlockError, BlockIo, DeleteOptions};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    entries.map(|name| name.into_string().unwrap()).collect()
}

fn read_write(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

#[test]
fn a_lun_is_a_directory_beside_the_ordinary_tree() {
    let Some(pool) = Pool::new() else { return };
    let root_links = || fs::metadata(pool.path("")).unwrap().nlink();
    let before = root_links();
    fs::create_dir(pool.path("ordinary")).unwrap();
    pool.lun("vm1", 16 << 40);
    pool.lun("vm2", 8 * MIB);
    assert_eq!(names(&pool.path("")), ["ordinary", "vm1", "vm2"].map(String::from).into());
    let inside = ["attributes", "data", "log"].map(String::from).into();
    assert_eq!(names(&pool.path("vm1")), inside);
    assert_eq!(names(&pool.path("vm1/.snapshots")), BTreeSet::new());
    assert_eq!(root_links(), before + 3);
    let data = fs::metadata(pool.path("vm1/data")).unwrap();
    assert_eq!((data.len(), data.blocks()), (16 << 40, 0));
    let above = fs::metadata(pool.path("vm1/.snapshots/../..")).unwrap();
    assert_eq!(above.ino(), fs::metadata(pool.path("")).unwrap().ino());
}

#[test]
fn names_are_shared_with_the_ordinary_tree() {
    let Some(pool) = Pool::new() else { return };
    pool.lun("vm1", MIB);
    assert_eq!(errno(fs::create_dir(pool.path("VM1"))), libc::EEXIST);
    assert_eq!(errno(File::create(pool.path("Vm1"))), libc::EEXIST);
    fs::write(pool.path("f"), b"").unwrap();
    fs::create_dir(pool.path("d")).unwrap();
    assert_eq!(errno(fs::rename(pool.path("f"), pool.path("vM1"))), libc::EEXIST);
    assert_eq!(errno(fs::hard_link(pool.path("f"), pool.path("vM1"))), libc::EEXIST);
    assert_eq!(errno(fs::rename(pool.path("d"), pool.path("vm1"))), libc::ENOTEMPTY);
    assert_eq!(errno(fs::rename(pool.path("vm1"), pool.path("d"))), libc::EEXIST);
    assert!(pool.catalog.create("D", &Default::default()).is_err());
    // Elsewhere the name is free.
    fs::create_dir(pool.path("d/vm1")).unwrap();
}

#[test]
fn nothing_else_is_made_or_removed_inside() {
    let Some(pool) = Pool::new() else { return };
    pool.lun("vm1", MIB);
    let inside = |name: &str| pool.path("vm1").join(name);
    fs::write(pool.path("f"), b"x").unwrap();
    let eperm = |result: std::io::Result<()>| assert_eq!(errno(result), libc::EPERM);
    eperm(File::create(inside("new")).map(drop));
    eperm(fs::create_dir(inside("new")));
    eperm(fs::remove_file(inside("data")));
    eperm(fs::remove_file(inside("log")));
    eperm(fs::remove_dir(inside(".snapshots")));
    eperm(fs::rename(inside("data"), inside("date")));
    eperm(fs::rename(inside("data"), pool.path("data")));
    eperm(fs::rename(pool.path("f"), inside("f")));
    eperm(fs::rename(pool.path("f"), inside("data")));
    eperm(fs::hard_link(pool.path("f"), inside("f")));
    eperm(std::os::unix::fs::symlink("f", inside("f")));
    assert_eq!(errno(fs::hard_link(inside("data"), pool.path("l"))), libc::EXDEV);
    fs::create_dir(pool.path("d")).unwrap();
    eperm(fs::rename(pool.path("vm1"), pool.path("d/vm1")));
    eperm(fs::rename(pool.path("vm1"), inside("vm1")).map_err(|e| match e.raw_os_error() {
        // The kernel itself forbids moving a directory into itself.
        Some(libc::EINVAL) => std::io::Error::from_raw_os_error(libc::EPERM),
        _ => e,
    }));
}

#[test]
fn mv_renames_and_rmdir_deletes_unless_it_is_in_use() {
    let Some(pool) = Pool::new() else { return };
    let lun = pool.lun("vm1", MIB);
    let client = attach(&lun);
    client.write(0, &[1; 512], false).unwrap();
    assert_eq!(errno(fs::rename(pool.path("vm1"), pool.path("vm2"))), libc::EBUSY);
    assert_eq!(errno(fs::remove_dir(pool.path("vm1"))), libc::EBUSY);
    drop(client);
    fs::rename(pool.path("vm1"), pool.path("vm2")).unwrap();
    assert_eq!(lun.name(), "vm2");
    assert_eq!(names(&pool.path("")), ["vm2".to_string()].into());
    assert_eq!(errno(fs::rename(pool.path("vm2"), pool.path("bad name"))), libc::EINVAL);
    let open = File::open(pool.path("vm2/data")).unwrap();
    assert_eq!(errno(fs::remove_dir(pool.path("vm2"))), libc::EBUSY);
    drop(open);
    retry(|| fs::remove_dir(pool.path("vm2"))).unwrap();
    assert_eq!(names(&pool.path("")), BTreeSet::new());
    assert!(pool.catalog.get("vm2").is_err());
}

/// RELEASE follows close(2) after a moment.
fn retry<T>(mut call: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match call() {
            Err(error)
                if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

#[test]
fn what_the_command_line_does_is_seen_at_once() {
    let Some(pool) = Pool::new() else { return };
    for round in 0..20 {
        let (name, other) = (format!("vm{round}"), format!("other{round}"));
        assert_eq!(errno(fs::metadata(pool.path(&name))), libc::ENOENT);
        pool.lun(&name, MIB);
        assert_eq!(fs::metadata(pool.path(&name).join("data")).unwrap().len(), MIB);
        pool.catalog.rename(&name, &other).unwrap();
        assert_eq!(errno(fs::metadata(pool.path(&name))), libc::ENOENT);
        assert!(names(&pool.path("")).contains(&other));
        let lun = pool.catalog.get(&other).unwrap();
        lun.resize(2 * MIB, false).unwrap();
        assert_eq!(fs::metadata(pool.path(&other).join("data")).unwrap().len(), 2 * MIB);
        pool.catalog.delete(&other, DeleteOptions::default()).unwrap();
        assert_eq!(errno(fs::metadata(pool.path(&other))), libc::ENOENT);
        assert!(!names(&pool.path("")).contains(&other));
    }
}

#[test]
fn attributes_are_read_and_written_as_a_whole() {
    let Some(pool) = Pool::new() else { return };
    let lun = pool.lun("vm1", MIB);
    let path = pool.path("vm1/attributes");
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.len() as u64, fs::metadata(&path).unwrap().len());
    assert!(text.contains("product") && text.contains("size"));
    fs::write(&path, "product = \"Changed\"\n").unwrap();
    assert_eq!(lun.settings().product, "Changed");
    assert!(fs::read_to_string(&path).unwrap().contains("Changed"));
    // What was read is written back changed, in pieces: applied by fsync.
    let changed = fs::read_to_string(&path).unwrap().replace("Changed", "Again");
    let mut file = OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
    let (first, second) = changed.split_at(changed.len() / 2);
    file.write_all(first.as_bytes()).unwrap();
    assert_eq!(lun.settings().product, "Changed");
    file.write_all(second.as_bytes()).unwrap();
    file.sync_all().unwrap();
    assert_eq!(lun.settings().product, "Again");
}

#[test]
fn attributes_that_are_refused_are_einval_and_change_nothing() {
    let Some(pool) = Pool::new() else { return };
    let lun = pool.lun("vm1", MIB);
    let path = pool.path("vm1/attributes");
    let settings = || {
        let text = fs::read_to_string(&path).unwrap();
        text.lines().take_while(|line| !line.starts_with('#')).collect::<String>()
    };
    let before = settings();
    for text in ["product = ", "no-such-key = 1\n", "product = \"ok\"\nblock-size = 3\n"] {
        let mut file = OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        assert_eq!(errno(file.sync_all()), libc::EINVAL, "{text}");
        file.write_all(text.as_bytes()).unwrap();
        // close(2) tells it too.
        assert_eq!(errno(rustix::io::dup(&file).and_then(close)), libc::EINVAL, "{text}");
    }
    assert_eq!(settings(), before);
    let mut large = OpenOptions::new().write(true).open(&path).unwrap();
    assert_eq!(errno(large.write_all(&vec![b'#'; 100_000])), libc::EFBIG);
    assert_eq!(lun.settings().block_bytes, 512);
}

/// close(2) with its error: the file is synced by it only as far as FLUSH does.
fn close(file: std::os::fd::OwnedFd) -> Result<(), rustix::io::Errno> {
    // The standard library swallows it; nix-style closing is unsafe in rustix.
    #[allow(unsafe_code)]
    // SAFETY: the descriptor is owned and given up here.
    unsafe {
        match libc::close(std::os::fd::IntoRawFd::into_raw_fd(file)) {
            0 => Ok(()),
            _ => Err(rustix::io::Errno::from_io_error(&std::io::Error::last_os_error())
                .unwrap_or(rustix::io::Errno::IO)),
        }
    }
}

#[test]
fn an_editor_may_rename_its_file_onto_attributes() {
    let Some(pool) = Pool::new() else { return };
    let lun = pool.lun("vm1", MIB);
    fs::write(pool.path("new"), "vendor = \"EDITED\"\n").unwrap();
    fs::rename(pool.path("new"), pool.path("vm1/attributes")).unwrap();
    assert_eq!(lun.settings().vendor, "EDITED");
    assert_eq!(errno(fs::metadata(pool.path("new"))), libc::ENOENT);
    assert!(fs::read_to_string(pool.path("vm1/attributes")).unwrap().contains("EDITED"));
    fs::write(pool.path("bad"), "vendor = 7\n").unwrap();
    assert_eq!(errno(fs::rename(pool.path("bad"), pool.path("vm1/attributes"))), libc::EINVAL);
    assert!(pool.path("bad").exists());
}

/// The reasons that the log has for refused changes of attributes, the newest last.
fn refusals(pool: &Pool) -> Vec<String> {
    let log = fs::read_to_string(pool.path("vm1/log")).unwrap();
    let lines = log.lines().map(|line| serde_json::from_str(line).unwrap());
    let ours = lines.filter(|line: &serde_json::Value| line["event"] == "refused");
    ours.map(|line| line["why"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn every_refused_change_of_attributes_is_in_the_log_with_its_reason() {
    let Some(pool) = Pool::new() else { return };
    let lun = pool.lun("vm1", MIB);
    let path = pool.path("vm1/attributes");
    let write = |text: &[u8]| {
        let mut file = OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
        file.write_all(text).and_then(|()| file.sync_all())
    };
    let rename = |text: &[u8]| {
        fs::write(pool.path("new"), text).unwrap();
        fs::rename(pool.path("new"), &path)
    };
    let cases: [(&[u8], i32, &str); 5] = [
        (b"colour = \"red\"\n", libc::EINVAL, "there is no such key"),
        (b"used = \"nothing\"\n", libc::EINVAL, "read-only"),
        (b"vendor = \"ok\"\nthreshold = 101\n", libc::EINVAL, "out of range"),
        (b"vendor = \"\xff\"\n", libc::EINVAL, "not UTF-8"),
        (&[b'#'; 100_000], libc::EFBIG, "longer than 64 KiB"),
    ];
    for (text, code, reason) in cases {
        for call in [&write as &dyn Fn(&[u8]) -> std::io::Result<()>, &rename] {
            let before = refusals(&pool).len();
            assert_eq!(errno(call(text)), code, "{reason}");
            let told = refusals(&pool);
            assert_eq!(told.len(), before + 1, "{reason}: {told:?}");
            assert!(told.last().unwrap().contains(reason), "{told:?}");
        }
    }
    fs::create_dir(pool.path("dir")).unwrap();
    assert_eq!(errno(fs::rename(pool.path("dir"), &path)), libc::ENOTDIR);
    assert_eq!(lun.settings().vendor, "LUNFS");
    assert_eq!(lun.settings().threshold_percent, 0);
}

#[test]
fn a_lun_takes_no_more_than_its_quota_through_the_mount_either() {
    let Some(pool) = Pool::new() else { return };
    pool.lun("vm1", 64 * MIB);
    fs::write(pool.path("vm1/attributes"), "quota = \"2M\"\n").unwrap();
    let data = read_write(&pool.path("vm1/data")).unwrap();
    data.write_all_at(&vec![1; MIB as usize], 0).unwrap();
    data.write_all_at(&vec![1; MIB as usize], 32 * MIB).unwrap();
    assert_eq!(errno(data.write_all_at(&[1; 4096], 48 * MIB)), libc::EDQUOT);
    data.write_all_at(&vec![2; MIB as usize], 0).unwrap();
    let source = pool.path("source");
    fs::write(&source, vec![3; 8192]).unwrap();
    let source = File::open(source).unwrap();
    let mut to = 48 * MIB;
    let copied = rustix::fs::copy_file_range(&source, None, &data, Some(&mut to), 8192);
    assert_eq!(errno(copied), libc::EDQUOT);
    assert!(refusals(&pool).last().unwrap().contains("quota"));
    rustix::fs::fallocate(
        &data,
        rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE,
        0,
        MIB,
    )
    .unwrap();
    data.write_all_at(&[1; 4096], 48 * MIB).unwrap();
}

#[test]
fn log_is_appended_to_and_nothing_else() {
    let Some(pool) = Pool::new() else { return };
    let lun = pool.lun("vm1", MIB);
    let path = pool.path("vm1/log");
    let mut file = OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(b"{\"event\":\"mine\"}\n").unwrap();
    lun.append_log("theirs", serde_json::json!({"n": 1})).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("\"create\"") && text.contains("mine") && text.contains("theirs"));
    assert_eq!(errno(OpenOptions::new().write(true).open(&path)), libc::EPERM);
    assert_eq!(errno(File::create(&path)), libc::EPERM);
    assert_eq!(errno(file.set_len(0)), libc::EPERM);
}

#[test]
fn truncating_data_resizes_the_lun() {
    let Some(pool) = Pool::new() else { return };
    let lun = pool.lun("vm1", MIB);
    let path = pool.path("vm1/data");
    let file = read_write(&path).unwrap();
    file.set_len(3 * MIB).unwrap();
    assert_eq!(lun.geometry().size_bytes, 3 * MIB);
    drop(file);
    rustix_truncate(&path, 2 * MIB).unwrap();
    assert_eq!(lun.geometry().size_bytes, 2 * MIB);
    assert_eq!(fs::metadata(&path).unwrap().len(), 2 * MIB);
}

/// truncate(2): by path, without opening.
fn rustix_truncate(path: &Path, size: u64) -> std::io::Result<()> {
    let status = std::process::Command::new("truncate")
        .args(["-s", &size.to_string()])
        .arg(path)
        .status()?;
    assert!(status.success());
    Ok(())
}

#[test]
fn a_block_writer_keeps_file_writers_out() {
    let Some(pool) = Pool::new() else { return };
    let lun = pool.lun("vm1", MIB);
    let path = pool.path("vm1/data");
    let reader = File::open(&path).unwrap();
    let client = attach(&lun);
    client.write(4096, &[7; 4096], false).unwrap();
    // Every completed write is seen by the very next read.
    let mut back = [0; 4096];
    for round in 0..200u8 {
        client.write(4096, &[round; 4096], false).unwrap();
        reader.read_exact_at(&mut back, 4096).unwrap();
        assert_eq!(back, [round; 4096]);
    }
    assert_eq!(errno(read_write(&path)), libc::EBUSY);
    assert_eq!(errno(File::create(&path)), libc::EBUSY);
    let writer = OpenOptions::new().write(true).open(&path).unwrap();
    assert_eq!(errno(writer.write_all_at(b"x", 0)), libc::EBUSY);
    writer.set_len(2 * MIB).unwrap();
    assert_eq!(client.geometry().size_bytes, 2 * MIB);
    assert_eq!(errno(writer.set_len(MIB)), libc::EBUSY);
    let log = fs::read_to_string(pool.path("vm1/log")).unwrap();
    assert!(log.contains("iqn.2026-11.test:client"), "{log}");
    drop(client);
    read_write(&path).unwrap().write_all_at(&[1; 512], 0).unwrap();
}

#[test]
fn a_file_writer_keeps_block_writers_waiting() {
    let Some(pool) = Pool::new() else { return };
    let lun = pool.lun("vm1", MIB);
    let path = pool.path("vm1/data");
    let file = read_write(&path).unwrap();
    file.write_all_at(&[5; 512], 0).unwrap();
    let client = attach(&lun);
    let begun = Instant::now();
    let refused = client.write(0, &[1; 512], false);
    assert!(matches!(refused, Err(BlockError::HeldByFile)), "{refused:?}");
    assert!(begun.elapsed() >= FILE_WAIT);
    let mut back = [0; 512];
    client.read(0, &mut back).unwrap();
    assert_eq!(back, [5; 512]);
    let before = client.media_changes();
    drop(file);
    // close(2) has returned: the lease is back.
    client.write(0, &[1; 512], false).unwrap();
    assert!(client.media_changes() > before);
}

#[test]
fn shared_access_lets_both_write() {
    let Some(pool) = Pool::new() else { return };
    let lun = pool.lun("vm1", MIB);
    lun.set(&[("access".into(), "shared".into())]).unwrap();
    let client = attach(&lun);
    client.write(0, &[1; 512], false).unwrap();
    let file = read_write(&pool.path("vm1/data")).unwrap();
    file.write_all_at(&[2; 512], 512).unwrap();
    client.write(1024, &[3; 512], false).unwrap();
    let mut back = [0; 1536];
    file.read_exact_at(&mut back, 0).unwrap();
    assert_eq!((back[0], back[512], back[1024]), (1, 2, 3));
}

#[test]
fn read_only_luns_are_not_opened_for_writing() {
    let Some(pool) = Pool::new() else { return };
    let lun = pool.lun("vm1", MIB);
    lun.set(&[("read-only".into(), "true".into())]).unwrap();
    assert_eq!(errno(read_write(&pool.path("vm1/data"))), libc::EROFS);
    File::open(pool.path("vm1/data")).unwrap();
}

/// The other process of the next test: maps `data` and prints the byte at 4096 for each line it
/// gets.
#[test]
#[ignore = "a part of mapped_pages_follow_block_writes"]
fn mapped_pages_child() {
    let Some(path) = child_argument() else { return };
    let file = File::open(path).unwrap();
    #[allow(unsafe_code)]
    // SAFETY: the file is as long as it was for as long as this process lives.
    let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
    for _ in std::io::stdin().lines() {
        println!("byte {}", map[4096]);
    }
}

#[test]
fn mapped_pages_follow_block_writes() {
    let Some(pool) = Pool::new() else { return };
    let lun = pool.lun("vm1", MIB);
    let client = attach(&lun);
    let mut other = child("luns::mapped_pages_child", &pool.path("vm1/data"));
    let mut other = other.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut answers = BufReader::new(other.stdout.take().unwrap());
    let mut asked = other.stdin.take().unwrap();
    let mut ask = || loop {
        let mut line = String::new();
        if answers.read_line(&mut line).unwrap() == 0 {
            panic!("the child ended");
        }
        match line.trim().strip_prefix("byte ") {
            Some(byte) => return byte.parse::<u8>().unwrap(),
            None => continue,
        }
    };
    for round in 1..50 {
        client.write(4096, &[round; 512], false).unwrap();
        // A notice takes a moment; what is mapped may be old until then, never for long.
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            asked.write_all(b"\n").unwrap();
            if ask() == round {
                break;
            }
            assert!(Instant::now() < deadline, "round {round} is never seen");
        }
    }
    drop(asked);
    assert!(other.wait().unwrap().success());
}

#[test]
fn synchronous_writes_and_appends_of_data() {
    let Some(pool) = Pool::new() else { return };
    let lun = pool.lun("vm1", MIB);
    let path = pool.path("vm1/data");
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::DSYNC;
    let sync = rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).unwrap();
    File::from(sync).write_all(&[1; 4096]).unwrap();
    // At the end: a resize.
    let mut append = OpenOptions::new().append(true).open(&path).unwrap();
    append.write_all(&[2; 512]).unwrap();
    assert_eq!(lun.geometry().size_bytes, MIB + 512);
}

#[test]
fn luns_outlive_a_restart() {
    let Some(mut pool) = Pool::new() else { return };
    pool.lun("vm1", MIB);
    let file = read_write(&pool.path("vm1/data")).unwrap();
    file.write_all_at(&[9; 4096], 8192).unwrap();
    file.sync_all().unwrap();
    let before = file.metadata().unwrap();
    drop(file);
    pool.restart();
    let file = File::open(pool.path("vm1/data")).unwrap();
    let mut back = [0; 4096];
    file.read_exact_at(&mut back, 8192).unwrap();
    assert_eq!(back, [9; 4096]);
    assert_eq!(file.metadata().unwrap().ino(), before.ino());
}
