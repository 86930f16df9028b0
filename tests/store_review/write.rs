//! Writers beside one another, and directories beside their readers.

use crate::lab::*;
use lunfs::fs::{Fs, NewNode, NodeId, OpenOptions, Owner, SystemClock, VolumeId};
use std::collections::BTreeMap;
use std::sync::Arc;

fn with_threads() -> (Vec<Arc<lunfs::device::sim::SimDevice>>, Arc<Fs>) {
    let devices = plain(1);
    let options = OpenOptions { clock: Arc::new(SystemClock), background: true, ..options() };
    let fs = Fs::open(dyns(&devices), options).expect("open");
    (devices, fs)
}

/// Two clients of a LUN with blocks of 512 bytes write neighbours within one block of 4 KiB. Both
/// read it, each merges its part, and the later one to link would undo the other.
#[test]
fn neighbours_within_a_block_do_not_undo_each_other() {
    let (_devices, fs) = with_threads();
    let id = make_file(&fs, "f", 1, 4);
    std::thread::scope(|s| {
        for part in 0..8u64 {
            let fs = &fs;
            s.spawn(move || {
                let file = fs.open_file(id).expect("open");
                for round in 1..400u64 {
                    let at = BLOCK + part * 512;
                    let word = round.to_le_bytes().repeat(64);
                    file.write_at(at, &word).expect("write");
                    let mut got = vec![0; 512];
                    file.read_at(at, &mut got).expect("read");
                    assert!(got == word, "part {part}, round {round}");
                }
            });
        }
    });
}

/// COMPARE AND WRITE by several clients on the same block: each success counts once.
#[test]
fn a_compare_and_write_is_one_step() {
    let (_devices, fs) = with_threads();
    let id = make_file(&fs, "f", 1, 1);
    fs.open_file(id).expect("open").write_at(0, &[0; 512]).expect("write");
    let swapped: u64 = std::thread::scope(|s| {
        let one = |_| {
            let fs = &fs;
            s.spawn(move || {
                let file = fs.open_file(id).expect("open");
                let mut done = 0;
                for _ in 0..600 {
                    let mut seen = [0; 512];
                    file.read_at(0, &mut seen).expect("read");
                    let next = u64::from_le_bytes(seen[..8].try_into().expect("8 bytes")) + 1;
                    let swap = file.update_at(0, 512, |now| {
                        if now != seen {
                            return Err(());
                        }
                        now[..8].copy_from_slice(&next.to_le_bytes());
                        Ok(())
                    });
                    done += u64::from(swap.expect("update").is_ok());
                }
                done
            })
        };
        let all: Vec<_> = (0..3).map(one).collect();
        all.into_iter().map(|t| t.join().expect("a client")).sum()
    });
    let mut now = [0; 8];
    fs.open_file(id).expect("open").read_at(0, &mut now).expect("read");
    assert_eq!(u64::from_le_bytes(now), swapped);
}

/// A directory is listed in parts while names come and go: what is there all the time is listed
/// exactly once, whatever the table below does.
#[test]
fn a_listing_beside_changes_is_complete() {
    let devices = plain(1);
    let fs = open(&devices);
    let root = NodeId::root(VolumeId::TREE);
    let owner = Owner { mode: 0o644, uid: 0, gid: 0 };
    let make = |name: String| {
        fs.create(root, name.as_bytes(), NewNode::File, owner).expect("create");
    };
    (0..600).for_each(|i| make(format!("stays{i}")));
    (0..300).for_each(|i| make(format!("goes{i}")));
    let (mut cookie, mut round) = (0, 0);
    let mut seen: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
    loop {
        let some = fs.readdir(root, cookie, 7).expect("list");
        let Some(last) = some.last() else { break };
        cookie = last.cookie;
        some.into_iter().for_each(|e| *seen.entry(e.name).or_default() += 1);
        (0..8).for_each(|i| make(format!("comes{round}-{i}")));
        let _ = fs.unlink(root, format!("goes{round}").as_bytes());
        round += 1;
    }
    assert!(seen.values().all(|n| *n == 1));
    assert_eq!(seen.keys().filter(|n| n.starts_with(b"stays")).count(), 600);
}
