//! The free-space map and the segment map belong to a root, never to themselves.

use crate::lab::*;
use lunfs::device::sim::{IoEvent, IoKind};
use lunfs::fs::{check, CheckOptions, Fs};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::Arc;

/// Device blocks of the first region's pages.
const PAGES: std::ops::Range<u64> = 512..520;

/// A consistency point writes a page into its other place and power fails before its root. The
/// next one, of the same number, does not touch the page: what stands in the other place looks
/// valid, and never happened.
#[test]
fn a_page_without_its_root_never_counts() {
    for calls in 1..16 {
        let devices = plain(1);
        let fs = open(&devices);
        let id = make_file(&fs, "f", 1, 300);
        fs.consistency_point().expect("consistency point");
        make_file(&fs, "lost", 2, 300);
        // So many calls after the page was written.
        let device = devices[0].clone();
        let left = AtomicU64::new(u64::MAX);
        devices[0].on_io(Some(Arc::new(move |e: &IoEvent| {
            if e.kind == IoKind::Write && e.done && PAGES.contains(&e.first) {
                left.store(calls, SeqCst);
            } else if !e.done && left.load(SeqCst) != u64::MAX && left.fetch_sub(1, SeqCst) == 1 {
                device.cut_power();
            }
        })));
        let _ = fs.consistency_point();
        devices[0].on_io(None);
        drop(fs);
        devices[0].crash(calls);
        for _ in 0..3 {
            let fs = open(&devices);
            make_file(&fs, &format!("g{}", fs.stats().used_bytes), 3, 5);
            fs.consistency_point().expect("consistency point");
            drop(fs);
            assert_sound(&devices);
        }
        let fs = open(&devices);
        assert_readable(&fs, id, 1, 300);
    }
}

/// The write of a page is acknowledged and never happens: the older content of that place is
/// whole. It must be told from the page that the root means; no block in use is handed out.
#[test]
fn a_page_that_was_not_written_is_not_believed() {
    let devices = plain(1);
    let fs = open(&devices);
    let id = make_file(&fs, "f", 1, 300);
    fs.consistency_point().expect("consistency point");
    make_file(&fs, "g", 2, 300);
    let device = devices[0].clone();
    devices[0].on_io(Some(Arc::new(move |e: &IoEvent| {
        if e.kind == IoKind::Write && !e.done && PAGES.contains(&e.first) {
            device.lose_writes(1);
        }
    })));
    fs.consistency_point().expect("consistency point");
    devices[0].on_io(None);
    devices[0].cut_power();
    drop(fs);
    devices[0].crash(1);
    match Fs::open(dyns(&devices), options()) {
        Err(e) => assert!(e.to_string().contains("checksum"), "{e}"),
        Ok(fs) => {
            let _ = fs.consistency_point();
            assert_readable(&fs, id, 1, 300);
        }
    }
    let done = lunfs::fs::repair(&dyns(&devices), false).expect("repair");
    assert_eq!(done.after.errors, Vec::<String>::new());
    assert_readable(&open(&devices), id, 1, 300);
}

/// Writers of the next epoch allocate and free while a consistency point writes the map. After a
/// crash at its root the map must be that of its own epoch: a block that the root uses is not free
/// because a later epoch freed it.
#[test]
fn the_map_of_a_root_is_that_of_its_epoch() {
    for at_write in 1..20 {
        let devices = plain(1);
        let fs = open(&devices);
        let id = make_file(&fs, "f", 1, 600);
        let other = make_file(&fs, "other", 2, 600);
        fs.consistency_point().expect("consistency point");
        make_file(&fs, "more", 4, 100);
        let inside: Arc<Mutex<Option<Arc<Fs>>>> = Arc::new(Mutex::new(Some(fs.clone())));
        let seen = AtomicU64::new(0);
        let nested = inside.clone();
        devices[0].on_io(Some(Arc::new(move |e: &IoEvent| {
            if e.kind != IoKind::Write || !e.done || seen.fetch_add(1, SeqCst) + 1 != at_write {
                return;
            }
            let Some(fs) = nested.lock().take() else { return };
            fs.open_file(id).expect("open").punch(0, 500 * BLOCK).expect("punch");
            let all: Vec<u8> = (0..400).flat_map(|b| content(3, b)).collect();
            fs.open_file(other).expect("open").write_at(0, &all).expect("write");
        })));
        fs.consistency_point().expect("consistency point");
        devices[0].on_io(None);
        inside.lock().take();
        devices[0].cut_power();
        drop(fs);
        devices[0].crash(at_write);
        let report = check(&dyns(&devices), CheckOptions { data: true }).expect("check");
        assert_eq!(report.errors, Vec::<String>::new(), "at write {at_write}");
        let fs = open(&devices);
        make_file(&fs, "new", 9, 700);
        fs.sync().expect("sync");
        // What was not flushed beside may be there or not, each write whole.
        let mut got = vec![0; BLOCK as usize];
        fs.open_file(id).expect("open").read_at(BLOCK, &mut got).expect("read");
        assert!(got == content(1, 1) || got.iter().all(|b| *b == 0));
        fs.open_file(other).expect("open").read_at(BLOCK, &mut got).expect("read");
        assert!(got == content(2, 1) || got == content(3, 1));
        assert_eq!(readable(&fs, id, 1, 600)[550..], [true; 50]);
    }
}

/// The pool grows and new space takes flushed data; power fails at each call in turn. A root that
/// does not name the longer map would leave acknowledged data where nobody finds it.
#[test]
fn space_is_used_after_its_map_is_durable() {
    for fail_after in (1..50).step_by(5) {
        let devices = plain(1);
        let fs = open(&devices);
        let mut blocks = 0;
        let id = make_file(&fs, "f", 1, 0);
        let file = fs.open_file(id).expect("open");
        let some = |first: u64| (first..first + 256).flat_map(|b| content(1, b)).collect();
        let mut next: Vec<u8> = some(0);
        while file.write_at(blocks * BLOCK, &next).is_ok() {
            blocks += 256;
            next = some(blocks);
        }
        fs.sync().expect("sync");
        devices[0].grow(2 * DEVICE_BLOCKS);
        devices[0].power_fails_at(Some(devices[0].calls() + fail_after));
        let grown = fs.grow().is_ok();
        let more =
            (blocks..blocks + 500).try_for_each(|b| file.write_at(b * BLOCK, &content(1, b)));
        if more.is_ok() && fs.sync().is_ok() {
            assert!(grown);
            blocks += 500;
        }
        drop(file);
        drop(fs);
        devices[0].crash(fail_after);
        assert_readable(&open(&devices), id, 1, blocks);
        assert_sound(&devices);
    }
}
