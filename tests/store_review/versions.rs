//! Snapshots and deletions beside a consistency point that is being written.

use crate::lab::*;
use lunfs::device::sim::{IoEvent, IoKind, SimDevice};
use lunfs::fs::{Fs, NodeId, Owner, SetAttr, VolumeId};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::Arc;

const OWNER: Owner = Owner { mode: 0o755, uid: 0, gid: 0 };

/// Runs `act` once, inside the call number `at` of a consistency point from its first write on,
/// which comes after its freeze, if nothing that `act` needs is held there; false: there are fewer
/// calls.
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
            fs.snapshot_create(&[(VolumeId::TREE, "second")], false).expect("snapshot");
        });
        fs.close().expect("close");
        drop(fs);
        assert_sound(&devices);
        if !go_on {
            return;
        }
    }
}

/// The last clone of a snapshot ends with a consistency point, and while that is written the
/// snapshot is deleted too. The power fails before anybody says that this is durable: the snapshot
/// is there, whole.
#[test]
fn a_deletion_is_of_its_own_epoch() {
    for at in 1.. {
        let devices = plain(1);
        let fs = open(&devices);
        let id = make_file(&fs, "f", 1, 10);
        let v = VolumeId::TREE;
        let snapshot = fs.snapshot_create(&[(v, "s")], false).expect("snapshot")[0];
        make_file(&fs, "g", 2, 10);
        fs.volume_create("other", OWNER).expect("create");
        fs.volume_clone(snapshot, "clone").expect("clone");
        fs.consistency_point().expect("consistency point");
        fs.volume_delete("clone").expect("delete");
        let go_on = inside_point(&fs, &devices[0], at, move |fs| {
            fs.snapshot_delete(v, "s").expect("delete");
        });
        let after = vec![Arc::new(devices[0].after_crash(at))];
        drop(fs);
        assert_sound(&after);
        let fs = open(&after);
        let found = fs.snapshot_lookup(v, "s").expect("lookup").expect("the snapshot");
        assert_readable(&fs, NodeId { volume: found.id, ..id }, 1, 10);
        drop(fs);
        assert_sound(&after);
        if !go_on {
            return;
        }
    }
}
