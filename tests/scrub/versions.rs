//! The same in a pool with snapshots and clones: repair, scrub and dump know every version.

use super::lab::*;
use lunfs::device::sim::SimDevice;
use lunfs::device::BlockDevice;
use lunfs::fs::{
    check, dump, repair, CheckOptions, DumpObject, DumpValue, DumpWhat, Fs, NewNode, NodeId, Owner,
    Report, VolumeId,
};
use std::sync::Arc;

const OWNER: Owner = Owner { mode: 0o644, uid: 0, gid: 0 };
const BLOCKS: u64 = 300;

/// A volume with one file.
fn volume(fs: &Arc<Fs>, name: &str, seed: u64) -> (VolumeId, NodeId) {
    let id = fs.volume_create(name, OWNER).expect("volume");
    let file = fs.create(NodeId::root(id), b"f", NewNode::File, OWNER).expect("create").id;
    write(fs, file, seed, 0..BLOCKS);
    (id, file)
}

fn write(fs: &Arc<Fs>, file: NodeId, seed: u64, blocks: std::ops::Range<u64>) {
    let file = fs.open_file(file).expect("open");
    for block in blocks {
        file.write_at(block * BLOCK, &content(seed, block)).expect("write");
    }
}

fn settle(fs: &Arc<Fs>) {
    while fs.maintain().expect("maintain") {}
    fs.consistency_point().expect("consistency point");
}

fn report(devices: &[Arc<SimDevice>]) -> Report {
    check(&dyns(devices), CheckOptions { data: true }).expect("check")
}

fn shown(devices: &[Arc<SimDevice>], what: DumpWhat) -> DumpObject {
    dump(&dyns(devices), &what).expect("dump")
}

fn number(object: &DumpObject, name: &str) -> Option<u64> {
    match object.fields.iter().find(|f| f.0 == name)?.1 {
        DumpValue::Number(n) => Some(n),
        _ => None,
    }
}

/// The version of this name, as the dump of all of them has it.
fn version(devices: &[Arc<SimDevice>], name: &str) -> DumpObject {
    let all = shown(devices, DumpWhat::Versions);
    let is_it = |v: &&DumpObject| {
        v.fields.iter().any(|f| f.0 == "name" && f.1 == DumpValue::Text(name.into()))
    };
    all.parts.iter().find(is_it).expect("a version").clone()
}

/// Blocks of the nodes and of the data of a file, in order.
fn blocks_of(devices: &[Arc<SimDevice>], name: &str) -> (Vec<u64>, Vec<u64>) {
    blocks_in(&shown(devices, DumpWhat::Name(name.into())))
}

fn blocks_in(object: &DumpObject) -> (Vec<u64>, Vec<u64>) {
    fn gather(object: &DumpObject, nodes: &mut Vec<u64>, data: &mut Vec<u64>) {
        if object.name.starts_with("node of height") {
            nodes.extend(number(object, "block"));
        } else if object.name == "data" {
            let (first, count) = (number(object, "block"), number(object, "count"));
            data.extend(first.into_iter().flat_map(|b| b..b + count.unwrap_or(0)));
        }
        object.parts.iter().for_each(|part| gather(part, nodes, data));
    }
    let (mut nodes, mut data) = (Vec::new(), Vec::new());
    gather(object, &mut nodes, &mut data);
    (nodes, data)
}

/// `v` has its first content in `v@old`, its second, half of which it has still, in `v@new`; `c` is
/// a clone of `v@old` of which a part was written.
fn make_versions(devices: &[Arc<SimDevice>]) -> (VolumeId, NodeId) {
    let fs = open(devices);
    let (v, file) = volume(&fs, "v", 1);
    let old = fs.snapshot_create(&[(v, "old")], false).expect("snapshot")[0];
    write(&fs, file, 2, 0..BLOCKS);
    fs.bookmark_create(v, "old", "mark").expect("bookmark");
    fs.snapshot_create(&[(v, "new")], true).expect("snapshot");
    write(&fs, file, 3, 0..BLOCKS / 2);
    let c = fs.volume_clone(old, "c").expect("clone");
    let of_clone = fs.lookup(NodeId::root(c), b"f").expect("lookup").id;
    write(&fs, of_clone, 4, 0..20);
    fs.snapshot_hold(v, "old", true, None).expect("hold");
    settle(&fs);
    fs.close().expect("close");
    (v, file)
}

/// What each version of the file reads as, by its seeds.
fn assert_versions(fs: &Arc<Fs>, v: VolumeId, file: NodeId) {
    let snapshot = |name: &str| fs.snapshot_lookup(v, name).expect("lookup").expect("there").id;
    let read = |volume: VolumeId, seeds: &[(u64, std::ops::Range<u64>)]| {
        let opened = fs.open_file(NodeId { volume, ..file }).expect("open");
        for (seed, blocks) in seeds {
            for block in blocks.clone() {
                let mut got = vec![0; BLOCK as usize];
                opened.read_at(block * BLOCK, &mut got).expect("read");
                assert_eq!(got, content(*seed, block));
            }
        }
    };
    read(snapshot("old"), &[(1, 0..BLOCKS)]);
    read(snapshot("new"), &[(2, 0..BLOCKS)]);
    read(v, &[(3, 0..BLOCKS / 2), (2, BLOCKS / 2..BLOCKS)]);
    let c = fs.volume_lookup("c").expect("lookup").expect("there");
    read(c, &[(4, 0..20), (1, 20..BLOCKS)]);
}

#[test]
fn the_free_space_map_is_recounted_with_what_only_snapshots_have() {
    let devices = plain(1);
    let (v, file) = make_versions(&devices);
    let before = report(&devices);
    assert_eq!(before.errors, Vec::<String>::new());
    assert_eq!(repair(&dyns(&devices), false).expect("repair").actions, Vec::<String>::new());
    for at in [512, 513] {
        devices[0].flip_bit(at, 777);
    }
    let done = repair(&dyns(&devices), false).expect("repair");
    assert!(done.actions[0].contains("free-space map"), "{:?}", done.actions);
    assert_eq!(done.after.errors, Vec::<String>::new());
    let fs = open(&devices);
    assert_versions(&fs, v, file);
    // What a wrong map would have given away.
    let free = fs.stats().free_bytes / BLOCK;
    make_file(&fs, "full", 9, free * 3 / 4);
    fs.consistency_point().expect("consistency point");
    assert_versions(&fs, v, file);
}

#[test]
fn a_bad_node_of_a_snapshot_is_an_error_of_that_snapshot() {
    let devices = plain(1);
    let (v, _) = make_versions(&devices);
    let (nodes, _) = blocks_of(&devices, "v@new/f");
    let live = blocks_of(&devices, "v/f").0;
    let own = nodes.into_iter().rfind(|n| !live.contains(n)).expect("a node of its own");
    devices[0].flip_bit(own, 9);
    let done = repair(&dyns(&devices), false).expect("repair");
    let told = |e: &String| e.starts_with("v@new/f: ") && e.contains("node at block");
    assert!(done.after.errors.iter().any(told), "{:?}", done.after.errors);
    let fs = open(&devices);
    let c = fs.volume_lookup("c").expect("lookup").expect("there");
    for volume in [v, c] {
        let id = fs.lookup(NodeId::root(volume), b"f").expect("lookup").id;
        let file = fs.open_file(id).expect("open");
        file.read_at(0, &mut vec![0; (BLOCKS * BLOCK) as usize]).expect("read");
    }
    // Nothing that may lie below it was freed, and the pool goes on.
    write(&fs, NodeId { volume: v, ino: 16 }, 5, 0..BLOCKS);
    settle(&fs);
}

/// A dead list is the pool's own. Rot in it must stop nobody who does not need it.
#[test]
fn a_dead_list_that_rots_is_made_anew() {
    let devices = plain(1);
    let (v, file) = make_versions(&devices);
    let list = number(&version(&devices, "v"), "dead_list").expect("a list");
    let object = shown(&devices, DumpWhat::Inode(0, list));
    devices[0].flip_bit(*blocks_in(&object).1.last().expect("a block"), 33);
    let told = |e: &String| e.starts_with("the dead list of version");
    assert!(report(&devices).errors.iter().any(told), "{:?}", report(&devices).errors);
    {
        let fs = open(&devices);
        write(&fs, file, 3, 0..10);
        settle(&fs);
        fs.snapshot_delete(v, "new").expect("delete");
        fs.consistency_point().expect("consistency point");
        write(&fs, file, 3, 0..BLOCKS / 2);
        fs.consistency_point().expect("the deletion waits");
        fs.close().expect("close");
    }
    let done = repair(&dyns(&devices), false).expect("repair");
    assert!(done.actions.iter().any(|a| a.contains("made anew")), "{done:?}");
    assert_eq!(done.after.errors, Vec::<String>::new(), "{:?}", done.actions);
    let fs = open(&devices);
    settle(&fs);
    fs.close().expect("close");
    assert_eq!(report(&devices).errors, Vec::<String>::new());
    let all = shown(&devices, DumpWhat::Versions);
    let deleted = |v: &DumpObject| {
        v.fields.iter().any(|f| f.0 == "state" && f.1 == DumpValue::Text("deleted".into()))
    };
    assert!(!all.parts.iter().any(deleted), "{all}");
}

#[test]
fn a_scrub_reads_what_versions_share_once_and_hidden_ones_too() {
    let devices = plain(1);
    let (v, _) = make_versions(&devices);
    let fs = open(&devices);
    let whole = scrub(&fs, 64).examined_bytes / BLOCK;
    let counted = report(&devices).used_blocks;
    // Beside what trees name: the log, labels, roots, pages. Shared blocks would be hundreds.
    assert!((counted..counted + 100).contains(&whole), "{whole} of {counted}");
    // With two branches the snapshot stays, hidden.
    fs.snapshot_hold(v, "old", false, None).expect("release");
    fs.snapshot_delete(v, "old").expect("delete");
    settle(&fs);
    let (_, data) = blocks_of(&devices, "c/f");
    let shared = data[BLOCKS as usize - 1];
    devices[0].flip_bit(shared, 3);
    let found = scrub(&fs, 64);
    assert_eq!(found.bad, 1, "{:?}", found.places);
    assert_eq!(found.places[0].block, shared);
    fs.close().expect("close");
    let told = report(&devices).errors;
    assert_eq!(told.len(), 1, "{told:?}");
}

/// A snapshot goes while the walk is between the live version, which left what they share to it,
/// and the snapshot itself.
#[test]
fn a_scrub_misses_nothing_where_a_snapshot_goes_meanwhile() {
    let mut gone_before_its_turn = 0;
    for steps in (0..900).step_by(60) {
        let devices = plain(1);
        let (v, _) = make_versions(&devices);
        // Of the second content, which only `v` and `v@new` have.
        let shared = blocks_of(&devices, "v/f").1[BLOCKS as usize - 1];
        devices[0].flip_bit(shared, 3);
        let fs = open(&devices);
        assert!(fs.scrub_start().expect("start"));
        (0..steps).for_each(|_| {
            fs.scrub_step(1).expect("step");
        });
        let before = fs.scrub_status().bad;
        fs.snapshot_delete(v, "new").expect("delete");
        settle(&fs);
        while fs.scrub_step(64).expect("step") {}
        let status = fs.scrub_status();
        assert!(status.bad >= 1, "after {steps} steps, {before} found: {status:?}");
        assert!(status.places.iter().all(|p| p.block == shared), "{status:?}");
        gone_before_its_turn += u32::from(before == 0);
    }
    assert!(gone_before_its_turn > 3);
}

/// Ten clones of a file take no ten times as long.
#[test]
fn a_scrub_reads_what_files_share_once() {
    let devices = plain(1);
    let fs = open(&devices);
    let source = make_file(&fs, "source", 1, 1000);
    let before = scrub(&fs, 64).examined_bytes / BLOCK;
    for n in 0..10 {
        let copy = make_file(&fs, &format!("copy{n}"), 2, 0);
        let copy = fs.open_file(copy).expect("open");
        fs.open_file(source).expect("open").clone_range(0, &copy, 0, 1000 * BLOCK).expect("clone");
    }
    settle(&fs);
    fs.close().expect("close");
    drop(fs);
    let shared = *blocks_of(&devices, "/copy3").1.last().expect("a block");
    devices[0].flip_bit(shared, 9);
    let fs = open(&devices);
    let found = scrub(&fs, 7);
    let examined = found.examined_bytes / BLOCK;
    assert!(examined < 2 * before + 600, "{before} and {examined}");
    assert!(found.bad >= 1 && found.places.iter().all(|p| p.block == shared), "{found:?}");
    fs.close().expect("close");
    assert!(!report(&devices).errors.is_empty());
}

#[test]
fn a_dump_shows_versions_and_their_names() {
    let devices = plain(1);
    make_versions(&devices);
    let all = shown(&devices, DumpWhat::Versions).to_string();
    for text in [
        "name v, state live",
        "name v@old, state snapshot",
        "held true",
        "consistent true",
        "name c, state live",
        "name v@mark, epoch",
        "dead_entries",
    ] {
        assert!(all.contains(text), "{text}: {all}");
    }
    let volumes = shown(&devices, DumpWhat::Volumes).to_string();
    assert!(volumes.contains("v@new "), "{volumes}");
    let beyond = dump(&dyns(&devices), &DumpWhat::Volume(99)).expect_err("no such volume");
    assert_eq!(beyond.to_string(), "there is no volume 99");
    assert_eq!(devices[0].block_count(), DEVICE_BLOCKS);
}
