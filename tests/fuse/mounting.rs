//! Mounting, unmounting, what stands in the way, handles across a restart.

use crate::pool::{can_mount, child, child_argument, start, Pool};
use lunfs::fs::SystemClock;
use lunfs::fuse::{Mount, MountOptions, Refusal, Stopped};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn refusal(pool: &Pool, dir: &Path) -> Refusal {
    let options = MountOptions::new(Arc::new(SystemClock));
    let mounted = Mount::start(Arc::clone(&pool.catalog), dir, &options);
    let error = mounted.expect_err("it should be refused");
    assert_eq!(error.to_string().lines().count(), 3, "{error}");
    error.why
}

#[test]
fn what_cannot_be_mounted_is_refused_in_three_lines() {
    let Some(pool) = Pool::new() else { return };
    let base = tempfile::tempdir().unwrap();
    assert!(matches!(refusal(&pool, &base.path().join("none")), Refusal::NoDirectory));
    fs::write(base.path().join("file"), b"").unwrap();
    assert!(matches!(refusal(&pool, &base.path().join("file")), Refusal::NotDirectory));
    let in_use = refusal(&pool, &pool.path(""));
    assert!(matches!(in_use, Refusal::InUse(kind) if kind == "fuse.lunfs"));
    // The mount that was in the way still stands.
    assert!(pool.mount().is_standing());
    fs::write(pool.path("f"), b"x").unwrap();
}

#[test]
fn a_directory_with_entries_is_hidden_with_a_word() {
    let Some(pool) = Pool::new() else { return };
    assert!(!pool.mount().hides_entries());
    let base = tempfile::tempdir().unwrap();
    fs::write(base.path().join("below"), b"").unwrap();
    let mut second = start(&pool.catalog, base.path());
    assert!(second.hides_entries());
    assert!(!base.path().join("below").exists());
    assert_eq!(second.stop().unwrap(), Stopped::Clean);
    assert!(base.path().join("below").exists());
}

#[test]
fn a_busy_mount_is_detached() {
    let Some(mut pool) = Pool::new() else { return };
    fs::write(pool.path("f"), b"x").unwrap();
    let open = File::open(pool.path("f")).unwrap();
    assert_eq!(pool.unmount(), Stopped::Busy);
    assert!(!pool.path("f").exists());
    // Its user keeps it while the server's process lives.
    assert_eq!(std::io::read_to_string(&open).unwrap(), "x");
}

#[test]
fn unmounting_by_somebody_else_is_noticed() {
    let Some(mut pool) = Pool::new() else { return };
    assert!(pool.mount().is_standing());
    rustix::mount::unmount(pool.path(""), rustix::mount::UnmountFlags::empty()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while pool.mount().is_standing() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(pool.unmount(), Stopped::Clean);
}

/// A server to be killed: mounts a pool of its own at the directory it is given.
#[test]
#[ignore = "a part of the_mount_of_a_killed_server_is_cleared"]
fn server_child() {
    let Some(dir) = child_argument() else { return };
    let Some(pool) = Pool::new() else { return };
    let _second = start(&pool.catalog, &dir);
    println!("ready");
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn the_mount_of_a_killed_server_is_cleared() {
    if !can_mount() {
        return;
    }
    let Some(pool) = Pool::new() else { return };
    let base = tempfile::tempdir().unwrap();
    // The child's own pool is mounted below this, so that nothing of it is left behind.
    let scratch = tempfile::tempdir().unwrap();
    let mut server = child("mounting::server_child", base.path());
    server.env("TMPDIR", scratch.path());
    let mut server = server.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("ready")));
    server.kill().unwrap();
    server.wait().unwrap();
    let dead = fs::metadata(base.path()).unwrap_err();
    assert_eq!(dead.raw_os_error(), Some(libc::ENOTCONN));
    let mut mount = start(&pool.catalog, base.path());
    fs::write(base.path().join("f"), b"x").unwrap();
    assert_eq!(fs::read(pool.path("f")).unwrap(), b"x");
    assert_eq!(mount.stop().unwrap(), Stopped::Clean);
    for entry in fs::read_dir(scratch.path()).unwrap() {
        let below = entry.unwrap().path();
        let _ = rustix::mount::unmount(&below, rustix::mount::UnmountFlags::DETACH);
    }
}

/// A file handle as an NFS server keeps it.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    data: [u8; 128],
}

#[allow(unsafe_code)]
fn handle_of(path: &Path) -> Handle {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    let mut handle = Handle { bytes: 128, kind: 0, data: [0; 128] };
    let mut mount_id = 0;
    // SAFETY: the handle has room for the bytes that it says.
    let done = unsafe {
        let handle = std::ptr::from_mut(&mut handle).cast();
        libc::name_to_handle_at(libc::AT_FDCWD, path.as_ptr(), handle, &mut mount_id, 0)
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    handle
}

#[allow(unsafe_code)]
fn open_handle(mount: &Path, handle: &Handle) -> std::io::Result<File> {
    use std::os::fd::{AsRawFd, FromRawFd};
    let mount = File::open(mount)?;
    let mut copy = Handle { bytes: handle.bytes, kind: handle.kind, data: handle.data };
    // SAFETY: the handle is as long as it says; the descriptor that comes back is ours alone.
    unsafe {
        let copy = std::ptr::from_mut(&mut copy).cast();
        match libc::open_by_handle_at(mount.as_raw_fd(), copy, libc::O_RDONLY) {
            -1 => Err(std::io::Error::last_os_error()),
            descriptor => Ok(File::from_raw_fd(descriptor)),
        }
    }
}

#[test]
fn handles_outlive_a_restart() {
    let Some(mut pool) = Pool::new() else { return };
    fs::create_dir_all(pool.path("a/b")).unwrap();
    fs::write(pool.path("a/b/f"), b"by handle").unwrap();
    fs::write(pool.path("gone"), b"").unwrap();
    pool.lun("vm1", 1 << 20);
    let file = handle_of(&pool.path("a/b/f"));
    let dir = handle_of(&pool.path("a/b"));
    let data = handle_of(&pool.path("vm1/data"));
    let gone = handle_of(&pool.path("gone"));
    fs::remove_file(pool.path("gone")).unwrap();
    pool.restart();
    let root = pool.path("");
    let text = std::io::read_to_string(open_handle(&root, &file).unwrap()).unwrap();
    assert_eq!(text, "by handle");
    assert!(open_handle(&root, &dir).unwrap().metadata().unwrap().is_dir());
    assert_eq!(open_handle(&root, &data).unwrap().metadata().unwrap().len(), 1 << 20);
    let stale = open_handle(&root, &gone).unwrap_err();
    assert_eq!(stale.raw_os_error(), Some(libc::ESTALE));
}
