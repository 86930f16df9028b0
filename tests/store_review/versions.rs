//! Snapshots beside a consistency point that is being written.

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
