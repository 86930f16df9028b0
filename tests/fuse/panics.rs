//! An error in the program, played by a clock that panics: its request is EIO, the mount serves on,
//! and what it left half done in memory is never written.

use crate::pool::{errno, Pool};
use lunfs::fs::{Clock, SystemClock, Timestamp};
use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

/// Requests that panic: more than the mount has threads.
const PANICS: usize = 12;

/// Panics while it is armed, on the threads of the mount.
#[derive(Default)]
struct Trap(AtomicBool);

impl Clock for Trap {
    fn now(&self) -> Timestamp {
        let thread = std::thread::current();
        let of_mount = thread.name().is_some_and(|name| name.starts_with("fuser"));
        assert!(!(of_mount && self.0.load(Ordering::Relaxed)), "the trap");
        SystemClock.now()
    }
}

#[test]
fn a_request_that_panics_harms_no_other() {
    let trap = Arc::new(Trap::default());
    let Some(pool) = Pool::with_clocks(Arc::new(SystemClock), trap.clone()) else { return };
    fs::write(pool.path("file"), b"before").unwrap();
    let file = fs::OpenOptions::new().write(true).open(pool.path("file")).unwrap();
    trap.0.store(true, Ordering::Relaxed);
    for n in 0..PANICS {
        assert_eq!(errno(file.set_modified(std::time::UNIX_EPOCH)), libc::EIO);
        assert_eq!(errno(fs::metadata(pool.path(&format!("none-{n}")))), libc::ENOENT);
    }
    trap.0.store(false, Ordering::Relaxed);
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    fs::write(pool.path("file"), b"after").unwrap();
    file.sync_all().unwrap();
    assert!(pool.mount().is_standing());
    assert_eq!(pool.fs.stats().latched, None);
}

#[test]
fn a_change_that_panics_halfway_is_never_written() {
    let trap = Arc::new(Trap::default());
    let Some(mut pool) = Pool::with_clocks(trap.clone(), Arc::new(SystemClock)) else { return };
    fs::write(pool.path("file"), b"before").unwrap();
    let options = fs::OpenOptions::new().read(true).write(true).open(pool.path("file"));
    let file = options.unwrap();
    file.sync_all().unwrap();
    trap.0.store(true, Ordering::Relaxed);
    for _ in 0..PANICS {
        assert_eq!(errno(file.write_at(b"halfway", 0).and_then(|_| file.sync_all())), libc::EIO);
    }
    trap.0.store(false, Ordering::Relaxed);
    let why = pool.fs.stats().latched.expect("the pool refuses to go on");
    assert!(why.contains("restart"), "{why}");
    assert_eq!(errno(fs::write(pool.path("another"), b"x")), libc::EIO);
    let mut out = [0; 3];
    assert_eq!(file.read_at(&mut out, 0).unwrap(), 3, "reading goes on");
    drop(file);
    pool.unmount();
    let _ = pool.fs.close();
    pool.open_again();
    assert_eq!(fs::read(pool.path("file")).unwrap(), b"before");
    fs::write(pool.path("another"), b"y").unwrap();
}
