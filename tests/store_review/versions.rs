//! Snapshots beside what else goes on.

use crate::lab::*;
use lunfs::device::sim::{IoEvent, IoKind, SimDevice};
use lunfs::fs::{Error, Fs, NodeId, SetAttr, VolumeId};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::Arc;

/// Runs `act` once, inside the call number `at` of a consistency point, counted from its first
/// write, which comes after its freeze, if nothing that `act` needs is held there; false: there are
/// fewer calls.
fn inside_point(
    fs: &Arc<Fs>,
    device: &SimDevice,
    at: u64,
    act: impl Fn(&Fs) + Send + Sync + 'static,
) -> bool {
    let (count, beside) = (Arc::new(AtomicU64::new(0)), fs.clone());
    let seen = count.clone();
    device.on_io(Some(Arc::new(move |event: &IoEvent| {
        let free = beside.free_locks();
        let idle = event.kind != IoKind::Flush && free.log && free.space && free.members;
        let begun = seen.load(SeqCst) > 0 || event.kind == IoKind::Write;
        if !event.done && begun && seen.fetch_add(1, SeqCst) + 1 == at && idle {
            act(&beside);
        }
    })));
    let done = fs.consistency_point();
    device.on_io(None);
    done.expect("consistency point");
    count.load(SeqCst) >= at
}

/// A snapshot is made while a consistency point writes the inode file of the volume: it must not
/// share the nodes that are being changed. The consistency point failed, and the pool with it.
#[test]
fn a_snapshot_beside_the_inode_file_that_is_written() {
    for at in 1.. {
        let devices = plain(1);
        let fs = open(&devices);
        let ids: Vec<NodeId> = (0..100).map(|n| make_file(&fs, &format!("f{n}"), n, 1)).collect();
        fs.close().expect("close");
        drop(fs);
        // Nothing is in memory: the inode file is read while it is written.
        let fs = open(&devices);
        fs.snapshot_create(&[(VolumeId::TREE, "first")], false).expect("snapshot");
        let change = SetAttr { mode: Some(0o600), ..SetAttr::default() };
        for id in &ids {
            fs.setattr(*id, &change).expect("setattr");
        }
        let go_on = inside_point(&fs, &devices[0], at, |fs| {
            let made = fs.snapshot_create(&[(VolumeId::TREE, "second")], false);
            assert!(matches!(made, Ok(_) | Err(Error::Busy)), "{made:?}");
        });
        fs.close().expect("close");
        drop(fs);
        assert_sound(&devices);
        if !go_on {
            return;
        }
    }
}

const BLOCKS: u64 = 600;

/// Writes some blocks of a file with the content that belongs to `seed`.
fn write(fs: &Arc<Fs>, id: NodeId, seed: u64, blocks: std::ops::Range<u64>) -> Result<(), Error> {
    let file = fs.open_file(id)?;
    blocks.into_iter().try_for_each(|b| file.write_at(b * BLOCK, &content(seed, b)))
}

/// The same file in a snapshot of the tree.
fn in_snapshot(fs: &Fs, name: &str, id: NodeId) -> NodeId {
    let found = fs.snapshot_lookup(VolumeId::TREE, name).expect("look up");
    NodeId { volume: found.expect("the snapshot is there").id, ino: id.ino }
}

/// Each block of a file is what one of its seeds wrote.
fn assert_of(fs: &Arc<Fs>, id: NodeId, seeds: impl Fn(u64) -> Vec<u64>) {
    let file = fs.open_file(id).expect("open");
    for b in 0..BLOCKS {
        let mut got = vec![0; BLOCK as usize];
        file.read_at(b * BLOCK, &mut got).expect("read");
        let known = seeds(b).into_iter().any(|seed| got == content(seed, b));
        assert!(known, "block {b} of {id:?} holds what was not written there");
    }
}

/// Nodes that were changed in this epoch, and are not yet on a device, are shared by a snapshot.
/// Then they are changed again, and written by a consistency point that is cut off. One copy for
/// both, or a stamp of the later epoch on the snapshot's, would show the new data in the old.
#[test]
fn a_node_in_memory_is_copied_once_a_snapshot_has_it() {
    for fail_after in 1..30 {
        let devices = plain(1);
        let fs = open(&devices);
        let id = make_file(&fs, "f", 1, BLOCKS);
        write(&fs, id, 2, 0..300).expect("write");
        fs.snapshot_create(&[(VolumeId::TREE, "s")], false).expect("snapshot");
        write(&fs, id, 3, 100..BLOCKS).expect("write");
        devices[0].power_fails_at(Some(devices[0].calls() + fail_after));
        let _ = fs.consistency_point().and_then(|()| fs.consistency_point());
        drop(fs);
        devices[0].crash(fail_after);
        let fs = open(&devices);
        assert_of(&fs, in_snapshot(&fs, "s", id), |b| vec![if b < 300 { 2 } else { 1 }]);
        assert_of(&fs, id, |b| vec![if b < 300 { 2 } else { 1 }, if b < 100 { 2 } else { 3 }]);
        drop(fs);
        assert_sound(&devices);
    }
}

/// The newest snapshot but one is deleted; what the file shares with it is overwritten while its
/// blocks are walked, and power fails at some call. A block that is judged by another neighbour
/// than the one it had when it was detached is lost for ever, or freed while somebody has it.
#[test]
fn a_deletion_is_walked_beside_overwrites() {
    for fail_after in (1..120).step_by(7) {
        let devices = plain(1);
        let fs = open(&devices);
        let id = make_file(&fs, "f", 1, BLOCKS);
        fs.snapshot_create(&[(VolumeId::TREE, "old")], false).expect("snapshot");
        write(&fs, id, 2, 0..300).expect("write");
        fs.snapshot_create(&[(VolumeId::TREE, "new")], false).expect("snapshot");
        write(&fs, id, 3, 200..400).expect("write");
        fs.sync().expect("sync");
        devices[0].power_fails_at(Some(devices[0].calls() + fail_after));
        let _ = fs.snapshot_delete(VolumeId::TREE, "old");
        for part in 0..6 {
            let _ = fs.consistency_point();
            let _ = write(&fs, id, 4, part * 100..part * 100 + 50);
        }
        drop(fs);
        devices[0].crash(fail_after);
        let fs = open(&devices);
        assert_of(&fs, in_snapshot(&fs, "new", id), |b| vec![if b < 300 { 2 } else { 1 }]);
        let synced = |b| if b < 200 { 2 } else { 1 + 2 * u64::from(b < 400) };
        assert_of(&fs, id, |b| vec![synced(b), if b % 100 < 50 { 4 } else { synced(b) }]);
        let _ = fs.snapshot_delete(VolumeId::TREE, "old");
        fs.snapshot_delete(VolumeId::TREE, "new").expect("delete");
        while fs.maintain().expect("maintain") {}
        fs.close().expect("close");
        drop(fs);
        assert_sound(&devices);
    }
}
