//! Snapshots, clones, differences and figures of space, one by one; the random test is
//! `versions.rs`.

mod lab;

use lab::*;
use lunfs::device::BlockDevice;
use lunfs::fs::{
    Consistency, Diff, DiffBase, Error, Fs, HookOutcome, NewNode, NodeId, OpenOptions, Timestamp,
    VolumeId,
};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::Arc;

/// Blocks that a snapshot's creation writes beyond the data that was waiting, and its flushes.
fn cost_of_snapshot(size_bytes: u64) -> (u64, u64) {
    let lab = Lab::new(1 << 18);
    let (v, file) = lab.volume("a");
    file.set_size(size_bytes).unwrap();
    lab.snapshot(v, "first");
    lab.fs.consistency_point().unwrap();
    let blocks = size_bytes / BS;
    for i in 0..400 {
        fill(&file, (i * 7919 * 613) % blocks, 1, 1);
    }
    let before = lab.fs.stats();
    lab.snapshot(v, "s");
    let after = lab.fs.stats();
    assert_eq!(after.consistency_points, before.consistency_points);
    let written = after.blocks_written - before.blocks_written;
    (written - before.dirty_bytes / BS, after.device_flushes - before.device_flushes)
}

#[test]
fn a_snapshot_costs_the_same_at_any_size() {
    let (small, flushes) = cost_of_snapshot(1 << 30);
    let (large, more) = cost_of_snapshot(4 << 40);
    println!("blocks beyond the data: {small} on 1 GiB, {large} on 4 TiB");
    assert_eq!((flushes, more), (1, 1));
    assert!(small <= 16 && large <= 16, "{small} and {large} blocks");
}

#[test]
fn a_snapshot_is_durable_when_it_returns() {
    let lab = Lab::new(1 << 15);
    let (v, file) = lab.volume("a");
    fill(&file, 0, 20, 1);
    lab.snapshot(v, "s");
    fill(&file, 0, 10, 2);
    drop(file);
    let lab = lab.crash();
    let v = lab.fs.volume_lookup("a").unwrap().unwrap();
    let s = lab.fs.snapshot_lookup(v, "s").unwrap().unwrap();
    let file = lab.open(s.id);
    assert!((0..20).all(|b| byte_at(&file, b) == 1));
    assert!(matches!(file.write_at(0, &[1]), Err(Error::ReadOnly)));
    assert!(matches!(file.set_size(1), Err(Error::ReadOnly)));
    let root = NodeId::root(s.id);
    let made = lab.fs.create(root, b"x", NewNode::File, OWNER);
    assert!(matches!(made, Err(Error::ReadOnly)));
    assert!(matches!(lab.fs.unlink(root, b"data"), Err(Error::ReadOnly)));
    assert!(matches!(lab.fs.snapshot_create(&[(s.id, "x")], false), Err(Error::ReadOnly)));
}

#[test]
fn how_a_snapshot_was_made_is_kept_with_it() {
    let lab = Lab::new(1 << 15);
    let (v, _file) = lab.volume("a");
    let told = |outcome, hook: &str| Consistency { outcome, hook: hook.into() };
    let rest = told(HookOutcome::AtRest, "fsfreeze");
    lab.fs.snapshot_create(&[(v, "s")], rest.clone()).unwrap();
    lab.snapshot(v, "plain");
    let lab = lab.crash();
    let kept =
        |lab: &Lab, name: &str| lab.fs.snapshot_lookup(v, name).unwrap().unwrap().consistency;
    assert_eq!((kept(&lab, "s"), kept(&lab, "plain")), (rest, Consistency::default()));
    let long = told(HookOutcome::WentOn, &"\u{e4}".repeat(40));
    lab.fs.snapshot_note_consistency(v, "s", &long).unwrap();
    lab.fs.snapshot_hold(v, "s", true, None).unwrap();
    lab.fs.sync().unwrap();
    let lab = lab.crash();
    let found = kept(&lab, "s");
    assert!(!found.is_application() && found.outcome == HookOutcome::WentOn);
    assert_eq!(found.hook, "\u{e4}".repeat(15));
}

#[test]
fn several_volumes_are_one_instant() {
    let lab = Lab::new(1 << 15);
    let (a, file_a) = lab.volume("a");
    let (b, file_b) = lab.volume("b");
    fill(&file_a, 0, 1, 1);
    fill(&file_b, 0, 1, 1);
    let made = lab.fs.snapshot_create(&[(a, "s"), (b, "s")], true).unwrap();
    let infos: Vec<_> =
        [a, b].iter().map(|v| lab.fs.snapshot_lookup(*v, "s").unwrap().unwrap()).collect();
    assert_eq!(infos[0].epoch, infos[1].epoch);
    assert!(infos.iter().all(|i| i.consistency.is_application()));
    assert_eq!(made, vec![infos[0].id, infos[1].id]);
    assert!(matches!(lab.fs.snapshot_create(&[(a, "t"), (a, "u")], false), Err(Error::Invalid(_))));
    assert!(matches!(lab.fs.snapshot_create(&[(a, "t"), (b, "s")], false), Err(Error::Exists)));
    assert_eq!(lab.fs.snapshot_list(a).unwrap().len(), 1);
    assert!(matches!(lab.fs.volume_delete("a"), Err(Error::NotEmpty)));
}

/// A truncate detaches what an older snapshot has and what is the file's alone in one subtree; the
/// snapshot goes before the walker comes, or another is made before it does.
#[test]
fn a_detached_subtree_is_judged_by_its_list() {
    for another in [false, true] {
        let lab = Lab::new(1 << 15);
        let (v, file) = lab.volume("a");
        let new = lab.used();
        fill(&file, 0, 600, 1);
        lab.snapshot(v, "s1");
        fill(&file, 100, 300, 2);
        lab.fs.consistency_point().unwrap();
        drop(file);
        // Nothing is in memory: the subtree is detached unread.
        let lab = lab.crash();
        let file = lab.open(v);
        file.set_size(0).unwrap();
        if another {
            lab.snapshot(v, "s2");
        }
        lab.fs.snapshot_delete(v, "s1").unwrap();
        lab.drain();
        lab.check();
        assert_eq!(file.attr().unwrap().blocks, 0);
        if another {
            lab.fs.snapshot_delete(v, "s2").unwrap();
        }
        let left = lab.used();
        assert!(left <= new + 3, "{left} blocks are used, {new} were");
        drop(file);
        lab.check();
    }
}

#[test]
fn rollback_keeps_what_was_and_what_is_newer() {
    let lab = Lab::new(1 << 15);
    let (v, file) = lab.volume("a");
    for (i, name) in ["one", "two", "three"].iter().enumerate() {
        fill(&file, 0, 4, i as u8 + 1);
        lab.snapshot(v, name);
    }
    fill(&file, 0, 4, 9);
    let now = lab.fs.volume_rollback("a", "one", "kept").unwrap();
    assert!(matches!(file.read_at(0, &mut [0]), Err(Error::Stale)));
    assert_eq!(lab.fs.volume_lookup("a").unwrap(), Some(now));
    let live = lab.open(now);
    assert_eq!(byte_at(&live, 0), 1);
    fill(&live, 1, 1, 5);
    let names: Vec<String> =
        lab.fs.snapshot_list(now).unwrap().into_iter().map(|s| s.name).collect();
    assert_eq!(names, ["kept", "one", "three", "two"]);
    let read = |name: &str| {
        let s = lab.fs.snapshot_lookup(now, name).unwrap().unwrap();
        byte_at(&lab.open(s.id), 1)
    };
    let bytes: Vec<u8> = names.iter().map(|n| read(n)).collect();
    assert_eq!(bytes, [9, 1, 3, 2]);
    for name in ["two", "one", "kept", "three"] {
        lab.fs.snapshot_delete(now, name).unwrap();
        lab.drain();
        lab.check();
    }
    assert_eq!((byte_at(&live, 0), byte_at(&live, 1)), (1, 5));
    drop(live);
    lab.check();
}

#[test]
fn a_clone_frees_the_unlinked_files_it_finds() {
    let lab = Lab::new(1 << 15);
    let (v, file) = lab.volume("a");
    fill(&file, 0, 100, 1);
    lab.fs.unlink(NodeId::root(v), b"data").unwrap();
    let s = lab.snapshot(v, "s");
    let clone = lab.fs.volume_clone(s, "b").unwrap();
    assert_eq!(byte_at(&file, 50), 1);
    drop(file);
    lab.drain();
    lab.check();
    lab.fs.snapshot_delete(v, "s").unwrap();
    lab.drain();
    lab.check();
    // A bucket each of its two directories.
    assert_eq!(lab.fs.volume_used_bytes(clone).unwrap(), 2 * BS);
}

#[test]
fn holds_and_names() {
    let lab = Lab::new(1 << 15);
    let (v, _file) = lab.volume("a");
    let s = lab.snapshot(v, "s");
    lab.fs.snapshot_hold(v, "s", true, None).unwrap();
    assert!(matches!(lab.fs.snapshot_delete(v, "s"), Err(Error::Busy)));
    assert!(matches!(lab.fs.snapshot_refresh(v, "s", None), Err(Error::Busy)));
    lab.fs.snapshot_hold(v, "s", false, Some(Timestamp(100))).unwrap();
    assert!(matches!(lab.fs.snapshot_delete(v, "s"), Err(Error::Busy)));
    lab.clock.0.store(100, Ordering::SeqCst);
    lab.fs.snapshot_rename(v, "s", "t").unwrap();
    lab.fs.sync().unwrap();
    let lab = lab.crash();
    let found = lab.fs.snapshot_lookup(v, "t").unwrap().unwrap();
    assert_eq!((found.id, found.held, found.hold_until), (s, false, Some(Timestamp(100))));
    lab.fs.snapshot_delete(v, "t").unwrap();
    assert!(lab.fs.snapshot_list(v).unwrap().is_empty());
}

/// Writers count up in one volume and then in another; every snapshot of both must show them as
/// they were at one moment, though consistency points, deletions and readers run beside.
#[test]
fn an_instant_across_threads() {
    const ROUNDS: u64 = 60;
    let lab = Lab::new(1 << 16);
    lab.fs.close().unwrap();
    let one: Arc<dyn BlockDevice> = lab.device.clone();
    let clock = lab.clock.clone();
    let options =
        OpenOptions { cache_bytes: 8 * MIB, clock, background: true, ..OpenOptions::default() };
    let lab = Lab { fs: Fs::open(vec![one], options).unwrap(), ..lab };
    let (a, file_a) = lab.volume("a");
    let (b, file_b) = lab.volume("b");
    let stop = AtomicI64::new(0);
    let value = |v: VolumeId, thread: u64| {
        let mut out = [0; 8];
        let n = lab.open(v).read_at(thread * BS * 300, &mut out).unwrap();
        if n == 8 {
            u64::from_le_bytes(out)
        } else {
            0
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (file_a, file_b, stop) = (&file_a, &file_b, &stop);
            scope.spawn(move || {
                let mut n = 0u64;
                while stop.load(Ordering::SeqCst) == 0 {
                    n += 1;
                    for file in [file_a, file_b] {
                        file.write_at(thread * BS * 300, &n.to_le_bytes()).unwrap();
                    }
                }
            });
        }
        for round in 0..ROUNDS {
            let name = format!("s{round}");
            let ids = lab.fs.snapshot_create(&[(a, &name), (b, &name)], false).unwrap();
            for thread in 0..3 {
                let (x, y) = (value(ids[0], thread), value(ids[1], thread));
                assert!(x == y || x == y + 1, "{x} in one, {y} in the other");
            }
            if round % 3 > 0 {
                let old = format!("s{}", round / 3 * 3);
                let one = [a, b][round as usize % 3 - 1];
                lab.fs.snapshot_delete(one, &old).unwrap();
            }
        }
        stop.store(1, Ordering::SeqCst);
    });
    drop((file_a, file_b));
    lab.fs.close().unwrap();
    lab.check();
}

fn changed(diff: &Diff, data: bool) -> BTreeSet<u64> {
    let of_kind = diff.extents.iter().filter(|e| e.is_data == data);
    of_kind.flat_map(|e| e.offset_bytes / BS..(e.offset_bytes + e.length_bytes) / BS).collect()
}

#[test]
fn differences_are_what_changed() {
    let lab = Lab::new(1 << 16);
    let (v, file) = lab.volume("a");
    fill(&file, 0, 2000, 1);
    let a = lab.snapshot(v, "a");
    lab.fs.bookmark_create(v, "a", "mark").unwrap();
    fill(&file, 700, 3, 2);
    file.punch(1000 * BS, 300 * BS).unwrap();
    fill(&file, 70_000, 2, 3);
    let b = lab.snapshot(v, "b");
    let to = NodeId { volume: b, ..file.id() };
    let mark = lab.fs.bookmark_list(v).unwrap().remove(0);
    assert_eq!((mark.name.as_str(), mark.of), ("mark", v));
    lab.drain();
    for base in [DiffBase::Snapshot(a), DiffBase::Epoch(mark.epoch)] {
        let before = lab.fs.stats().blocks_read;
        let diff = lab.fs.diff(base, to, 0, 1000).unwrap();
        assert_eq!(changed(&diff, true), BTreeSet::from([700, 701, 702, 70_000, 70_001]));
        assert!((1000..1300).all(|b| changed(&diff, false).contains(&b)));
        assert!(!changed(&diff, false).contains(&999));
        assert!(lab.fs.stats().blocks_read - before < 20);
        // In pieces it is the same.
        let mut pieces = Diff::default();
        let mut at = Some(0);
        while let Some(from) = at {
            let piece = lab.fs.diff(base, to, from, 1).unwrap();
            pieces.extents.extend(piece.extents);
            at = piece.next_bytes;
        }
        assert_eq!(changed(&pieces, true), changed(&diff, true));
        assert_eq!(changed(&pieces, false), changed(&diff, false));
    }
    let back = lab.fs.diff(DiffBase::Snapshot(b), NodeId { volume: a, ..to }, 0, 1000).unwrap();
    assert!(changed(&back, true).contains(&1100) && changed(&back, false).contains(&70_000));
    lab.fs.snapshot_delete(v, "a").unwrap();
    lab.drain();
    let again = lab.fs.diff(DiffBase::Epoch(mark.epoch), to, 0, 1000).unwrap();
    assert_eq!(changed(&again, true).len(), 5);
    lab.fs.bookmark_delete(v, "mark").unwrap();
    assert!(lab.fs.bookmark_list(v).unwrap().is_empty());
    drop(file);
    lab.check();
}

/// Consistency points wait for the reader of an answer: each reads a bounded number of nodes.
#[test]
fn a_large_difference_is_told_in_pieces() {
    let lab = Lab::new(1 << 15);
    let (v, file) = lab.volume("a");
    let a = lab.snapshot(v, "a");
    let wanted: BTreeSet<u64> = (0..3000).map(|n| n * 256).collect();
    for block in &wanted {
        fill(&file, *block, 1, 1);
    }
    let b = lab.snapshot(v, "b");
    lab.drain();
    let to = NodeId { volume: b, ..file.id() };
    let (mut found, mut at, mut pieces) = (BTreeSet::new(), Some(0), 0);
    while let Some(from) = at {
        let before = lab.fs.stats().blocks_read;
        let piece = lab.fs.diff(DiffBase::Snapshot(a), to, from, 1 << 20).unwrap();
        assert!(lab.fs.stats().blocks_read - before < 1100);
        found.extend(changed(&piece, true));
        assert!(piece.next_bytes.is_none_or(|next| next > from));
        (at, pieces) = (piece.next_bytes, pieces + 1);
    }
    assert_eq!(found, wanted);
    assert!((3..=4).contains(&pieces), "{pieces}");
}

/// What a file lost beyond the reach of its new, lower tree is told too.
#[test]
fn a_file_cut_short_and_grown_again_has_changed() {
    let lab = Lab::new(1 << 15);
    let (v, file) = lab.volume("a");
    fill(&file, 1000, 10, 1);
    let a = lab.snapshot(v, "a");
    let epoch = lab.fs.snapshot_lookup(v, "a").unwrap().unwrap().epoch;
    file.set_size(0).unwrap();
    fill(&file, 3, 1, 2);
    file.set_size(2000 * BS).unwrap();
    let b = lab.snapshot(v, "b");
    let to = NodeId { volume: b, ..file.id() };
    for base in [DiffBase::Snapshot(a), DiffBase::Epoch(epoch)] {
        let diff = lab.fs.diff(base, to, 0, 1000).unwrap();
        assert_eq!(changed_below(&diff, 2000, true), BTreeSet::from([3]));
        assert!((1000..1010).all(|b| changed_below(&diff, 2000, false).contains(&b)));
    }
}

fn changed_below(diff: &Diff, end: u64, data: bool) -> BTreeSet<u64> {
    let mut cut = diff.clone();
    cut.extents.retain(|e| e.offset_bytes < end * BS);
    for e in &mut cut.extents {
        e.length_bytes = e.length_bytes.min(end * BS - e.offset_bytes);
    }
    changed(&cut, data)
}

#[test]
fn the_figure_of_a_snapshot_is_what_its_deletion_frees() {
    let lab = Lab::new(1 << 15);
    let (v, file) = lab.volume("a");
    fill(&file, 0, 1000, 1);
    lab.snapshot(v, "one");
    fill(&file, 100, 300, 2);
    lab.snapshot(v, "two");
    fill(&file, 200, 500, 3);
    file.punch(900 * BS, 50 * BS).unwrap();
    lab.snapshot(v, "three");
    for name in ["two", "one", "three"] {
        let before = lab.used();
        let told = lab.fs.snapshot_alone_bytes(v, name).unwrap() / BS;
        lab.fs.snapshot_delete(v, name).unwrap();
        let freed = before - lab.used();
        // The lists and tables that say so change by a few blocks of their own.
        assert!(told.abs_diff(freed) <= 12, "{name}: {told} told, {freed} freed");
        assert!(told == 0 || name != "three");
    }
}

/// Resident memory of this process, in bytes.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * BS
}

/// Beside other tests of the same process: what memory is taken is only seen alone.
fn alone(test: &str) -> bool {
    if std::env::var_os("LUNFS_ALONE").is_some() {
        return true;
    }
    let mut one = std::process::Command::new(std::env::current_exe().unwrap());
    let done = one.args([test, "--exact", "--nocapture"]).env("LUNFS_ALONE", "1").output().unwrap();
    print!("{}", String::from_utf8_lossy(&done.stdout));
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    false
}

#[test]
fn ten_thousand_snapshots_of_one_volume() {
    const COUNT: u64 = 10_000;
    if !alone("ten_thousand_snapshots_of_one_volume") {
        return;
    }
    let lab = Lab::new(1 << 18);
    let (v, file) = lab.volume("a");
    fill(&file, 0, 1000, 1);
    let new = lab.used();
    for i in 0..COUNT {
        fill(&file, i % 1000, 1, (i % 250) as u8 + 2);
        lab.snapshot(v, &format!("s{i}"));
    }
    lab.fs.close().unwrap();
    drop(file);
    let Lab { device, clock, fs } = lab;
    drop(fs);
    let before = resident_bytes();
    let lab = Lab { fs: mount(&device, &clock, 4 * MIB), device, clock };
    let (read, memory) = (lab.fs.stats().blocks_read, resident_bytes().saturating_sub(before));
    println!("opened with {read} blocks read and {} KiB", memory >> 10);
    assert!(read < 100, "{read} blocks were read to open the pool");
    assert!(memory < 8 * MIB, "{memory} bytes were taken to open the pool");
    assert_eq!(lab.fs.snapshot_list(v).unwrap().len() as u64, COUNT);
    let memory = resident_bytes().saturating_sub(before);
    assert!(memory < 24 * MIB, "{memory} bytes were taken to list them");
    let read = lab.fs.stats().blocks_read;
    let oldest = lab.fs.snapshot_lookup(v, "s0").unwrap().unwrap();
    let file = lab.open(oldest.id);
    assert_eq!((byte_at(&file, 0), byte_at(&file, 1)), (2, 1));
    drop(file);
    let read = lab.fs.stats().blocks_read - read;
    assert!(read < 40, "{read} blocks were read to find the oldest");
    let goes = |i: &u64| i * 7919 % 1009 < 505;
    for (n, i) in (0..COUNT).map(|i| i * 7919 % COUNT).filter(goes).enumerate() {
        lab.fs.snapshot_delete(v, &format!("s{i}")).unwrap();
        if n % 500 == 0 {
            lab.fs.consistency_point().unwrap();
        }
    }
    lab.drain();
    lab.check();
    for i in (0..COUNT).filter(|i| !goes(i)).step_by(97) {
        let s = lab.fs.snapshot_lookup(v, &format!("s{i}")).unwrap().unwrap();
        assert_eq!(byte_at(&lab.open(s.id), i % 1000), (i % 250) as u8 + 2);
    }
    let memory = resident_bytes().saturating_sub(before);
    println!("{} KiB after half of them went", memory >> 10);
    for s in lab.fs.snapshot_list(v).unwrap() {
        lab.fs.snapshot_delete(v, &s.name).unwrap();
    }
    let left = lab.used();
    // The directory of their names keeps its buckets.
    assert!(left <= new + 400, "{left} blocks are used, {new} were");
    lab.check();
}

/// Blocks read for random reads, with or without snapshots behind what is read.
fn cost_of_reads(snapshots: bool) -> u64 {
    let lab = Lab::new(1 << 17);
    let (v, file) = lab.volume("a");
    fill(&file, 0, 256 * 80, 1);
    for i in 0..1000u64 {
        for k in 0..4 {
            fill(&file, (i * 4 + k) * 7919 % (256 * 80), 1, (i % 250) as u8 + 2);
        }
        if snapshots {
            lab.snapshot(v, &format!("s{i}"));
        } else if i % 4 == 3 {
            lab.fs.consistency_point().unwrap();
        }
    }
    drop(file);
    lab.fs.close().unwrap();
    let lab = Lab { fs: mount(&lab.device, &lab.clock, MIB), ..lab };
    let file = lab.open(v);
    let before = lab.fs.stats().blocks_read;
    for i in 0..4000 {
        byte_at(&file, i * 104_729 % (256 * 80));
    }
    lab.fs.stats().blocks_read - before
}

#[test]
fn reads_do_not_see_a_thousand_snapshots() {
    let (without, with) = (cost_of_reads(false), cost_of_reads(true));
    println!("4000 reads: {without} blocks read without snapshots, {with} with 1000");
    assert!(with <= without + without / 50, "{with} blocks, without snapshots {without}");
}

/// What one consistency point does for a deletion is bounded, however much there is to free.
#[test]
fn a_deletion_goes_on_in_bounded_steps() {
    let lab = Lab::new(1 << 18);
    let (v, file) = lab.volume("a");
    // A leaf for each block: 20,000 nodes.
    for i in 0..20_000 {
        fill(&file, i * 256, 1, 1);
    }
    lab.snapshot(v, "s");
    file.set_size(0).unwrap();
    lab.fs.consistency_point().unwrap();
    lab.fs.snapshot_delete(v, "s").unwrap();
    let (mut steps, mut most) = (0, 0);
    loop {
        let before = lab.fs.stats().blocks_read;
        let more = lab.fs.maintain().unwrap();
        most = most.max(lab.fs.stats().blocks_read - before);
        steps += 1;
        if !more {
            break;
        }
    }
    println!("{steps} steps, at most {most} blocks read in one");
    assert!(steps >= 5 && most < 5000, "{steps} steps, {most} blocks read");
    lab.check();
}

#[test]
fn figures_of_all_snapshots_and_of_some() {
    let lab = Lab::new(1 << 15);
    let (v, file) = lab.volume("a");
    fill(&file, 0, 1000, 1);
    let mut ids = Vec::new();
    for (i, name) in ["one", "two", "three"].iter().enumerate() {
        ids.push(lab.snapshot(v, name));
        fill(&file, 100 * (i as u64 + 1), 300, 2 + i as u8);
    }
    assert_eq!(lab.fs.written_since_bytes(v).unwrap(), 300 * BS);
    let read = lab.fs.stats().blocks_read;
    let all = lab.fs.snapshot_space(v).unwrap();
    assert!(lab.fs.stats().blocks_read - read < 40);
    let alone: u64 = all.iter().map(|s| s.alone_bytes).sum();
    let together = lab.fs.freed_bytes(&ids).unwrap();
    assert_eq!(all.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["one", "three", "two"]);
    // 300 of the first fill; of the later ones what was overwritten again.
    assert!(together >= alone + 100 * BS, "{together} together, {alone} alone");
    let before = lab.used();
    let table = |lab: &Lab| lab.report().table_blocks;
    let lists = table(&lab);
    for name in ["two", "one", "three"] {
        lab.fs.snapshot_delete(v, name).unwrap();
    }
    let freed = before - lab.used() + table(&lab) - lists;
    assert_eq!(freed, together / BS);
}
