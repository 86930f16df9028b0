//! `check --repair`: damage made on purpose, repaired, clean, and nothing else changed.

use super::lab::*;
use fs_layout::{
    GroupHead, Inode, Pointer, Root, SpaceEntry, INODE_BYTES, LABEL_PLACES, ROOT_COPIES,
    SEGMENT_MAP_BASE,
};
use lunfs::device::sim::SimDevice;
use lunfs::device::{Block, BlockDevice};
use lunfs::fs::{check, dump, repair, CheckOptions, DumpWhat, Fs, NodeId, Repaired, VolumeId};
use std::sync::Arc;

type Devices = Vec<Arc<SimDevice>>;

/// A pool with some files, closed: (inode, seed, blocks).
fn filled(devices: &Devices) -> Vec<(NodeId, u64, u64)> {
    let fs = open(devices);
    let files = (1..6)
        .map(|seed| (make_file(&fs, &format!("f{seed}"), seed, 30 * seed), seed, 30 * seed))
        .collect();
    fs.consistency_point().expect("consistency point");
    fs.close().expect("close");
    files
}

fn errors(devices: &Devices) -> Vec<String> {
    check(&dyns(devices), CheckOptions { data: true }).expect("check").errors
}

/// Dry run first: it must say the same and change nothing.
fn repaired(devices: &Devices) -> Repaired {
    let before: Vec<_> = devices.iter().map(|d| d.digest()).collect();
    let dry = repair(&dyns(devices), true).expect("dry run");
    assert_eq!(devices.iter().map(|d| d.digest()).collect::<Vec<_>>(), before);
    let done = repair(&dyns(devices), false).expect("repair");
    assert_eq!(dry.actions, done.actions);
    assert_eq!(done.after.errors, Vec::<String>::new(), "{:?}", done.actions);
    let again = repair(&dyns(devices), false).expect("repair again");
    assert_eq!(again.actions, Vec::<String>::new());
    done
}

fn assert_files(devices: &Devices, files: &[(NodeId, u64, u64)]) {
    let fs = open(devices);
    for (id, seed, blocks) in files {
        assert_readable(&fs, *id, *seed, *blocks);
    }
}

fn put(device: &SimDevice, at: u64, raw: &Block) {
    device.write(at, &[raw]).expect("write");
    device.flush().expect("flush");
}

/// The newest root and its slot.
fn root_of(device: &SimDevice) -> (Root, u64) {
    let root = |slot| Root::decode(&read_block(device, ROOT_COPIES[0] + slot).0).ok();
    let both = [0, 1].map(root).into_iter().enumerate();
    let found = both.filter_map(|(slot, r)| r.map(|(root, _)| (root, slot as u64)));
    found.max_by_key(|(root, _)| root.epoch).expect("a root")
}

/// Writes a root over all copies of its slot.
fn put_root(device: &SimDevice, root: &Root, slot: u64) {
    let mut raw = Block::zeroed();
    root.encode(&mut raw.0);
    ROOT_COPIES.iter().for_each(|at| put(device, at + slot, &raw));
}

/// Where a pool block is on the only device of a pool without redundancy.
fn place(block: u64) -> u64 {
    block
}

#[test]
fn a_sound_pool_is_left_alone() {
    for devices in [plain(1), mirrored()] {
        let files = filled(&devices);
        assert_eq!(errors(&devices), Vec::<String>::new());
        assert_eq!(repaired(&devices).actions, Vec::<String>::new());
        assert_files(&devices, &files);
    }
}

#[test]
fn copies_of_labels_roots_and_maps() {
    let devices = mirrored();
    let files = filled(&devices);
    let (root, slot) = root_of(&devices[0]);
    let map = SEGMENT_MAP_BASE + u64::from(root.segment_map[0].1);
    devices[0].flip_bit(LABEL_PLACES[1], 100);
    devices[1].flip_bit(ROOT_COPIES[1] + slot, 100);
    devices[1].flip_bit(map, 100);
    let found = check(&dyns(&devices), CheckOptions { data: true }).expect("check");
    assert_eq!((found.errors.len(), found.notes.len()), (1, 2), "{found:?}");
    repaired(&devices);
    let found = check(&dyns(&devices), CheckOptions { data: true }).expect("check");
    assert_eq!((found.errors.len(), found.notes.len()), (0, 0), "{found:?}");
    assert_files(&devices, &files);
}

#[test]
fn one_half_of_a_mirror_in_ruins() {
    let devices = mirrored();
    let files = filled(&devices);
    ruin(&devices[1], 512);
    assert!(errors(&devices).len() > 100);
    assert!(repaired(&devices).actions.len() > 100);
    ruin(&devices[0], 512);
    assert_files(&devices, &files);
}

#[test]
fn a_bitmap_page_and_every_table_page() {
    let devices = plain(1);
    let files = filled(&devices);
    let (root, _) = root_of(&devices[0]);
    for level in 0..4u64 {
        let mut hit = false;
        for second in [0, 1] {
            let at = place(512 + 2 * level + second);
            hit |= devices[0].stored_blocks().contains(&at);
            devices[0].flip_bit(at, 777);
        }
        assert!(hit && root.space.written);
        let done = repaired(&devices);
        assert!(done.actions[0].contains("free-space map"), "level {level}: {:?}", done.actions);
        assert_files(&devices, &files);
    }
}

#[test]
fn blocks_leaked_and_blocks_wrongly_free() {
    let devices = plain(1);
    let files = filled(&devices);
    let (mut root, slot) = root_of(&devices[0]);
    // The tables above are read as the root says; one bitmap page is changed below them.
    let mut entry = root.space;
    let mut path = Vec::new();
    for level in [3, 2, 1, 0] {
        let at = fs_layout::page_places(level, 0)[usize::from(entry.second)];
        let raw = read_block(&devices[0], place(at));
        assert_eq!(crc32c::crc32c(&raw.0), entry.crc, "level {level}");
        if level > 0 {
            entry = SpaceEntry::decode(&raw.0[..16]).expect("entry");
        }
        path.push((at, raw));
    }
    let (at, mut page) = path.pop().expect("bitmap");
    // Sixteen blocks that are free become used, eight in use become free.
    assert_eq!(page.0[1500..1502], [0, 0]);
    page.0[1500] = 0xFF;
    page.0[1501] = 0xFF;
    let used = (70..).find(|i| page.0[*i] == 0xFF).expect("used blocks");
    page.0[used] = 0;
    put(&devices[0], place(at), &page);
    let mut crc = crc32c::crc32c(&page.0);
    while let Some((at, mut raw)) = path.pop() {
        let mut entry = SpaceEntry::decode(&raw.0[..16]).expect("entry");
        entry.crc = crc;
        entry.encode(&mut raw.0[..16]);
        put(&devices[0], place(at), &raw);
        crc = crc32c::crc32c(&raw.0);
    }
    root.space.crc = crc;
    put_root(&devices[0], &root, slot);
    let found = errors(&devices);
    assert!(found.iter().filter(|e| e.contains("nothing names it")).count() == 16, "{found:?}");
    assert!(found.iter().any(|e| e.contains("counted as free")), "{found:?}");
    assert!(found.iter().any(|e| e.contains("free blocks, has")), "{found:?}");
    let done = repaired(&devices);
    assert!(done.actions[0].contains("8 blocks in use"), "{:?}", done.actions);
    assert!(done.actions[1].contains("16 blocks were counted as used"), "{:?}", done.actions);
    assert_files(&devices, &files);
}

#[test]
fn the_newest_root_is_lost() {
    let devices = plain(1);
    let files = filled(&devices);
    let fs = open(&devices);
    make_file(&fs, "newer", 77, 10);
    fs.consistency_point().expect("consistency point");
    make_file(&fs, "newest", 78, 10);
    fs.consistency_point().expect("consistency point");
    devices[0].cut_power();
    drop(fs);
    devices[0].crash(1);
    let (root, slot) = root_of(&devices[0]);
    // A file's block that rots is no reason to keep all others: it stays a medium error.
    let bad = data_block(&devices, "/f1");
    devices[0].flip_bit(bad, 5);
    ROOT_COPIES.iter().for_each(|at| devices[0].flip_bit(at + slot, 999));
    let refused = check(&dyns(&devices), CheckOptions { data: true });
    assert!(refused.is_err(), "an automatic step back");
    let done = repair(&dyns(&devices), false).expect("repair");
    assert!(done.actions[0].contains("back to the root of epoch"), "{:?}", done.actions);
    assert_eq!(done.after.errors.len(), 1, "{:?}", done.after.errors);
    let told = &done.after.errors[0];
    assert!(told.starts_with("/f1: 4096 bytes at 0: block"), "{told}");
    assert!(done.actions[0].contains("written 1970-01-01T00:00:01"), "{:?}", done.actions);
    assert!(root_of(&devices[0]).0.epoch >= root.epoch - 1);
    assert_files(&devices, &files[1..]);
}

/// Where the first block of a file is.
fn data_block(devices: &Devices, name: &str) -> u64 {
    let shown = dump(&dyns(devices), &DumpWhat::Name(name.into())).expect("dump").to_string();
    let data = shown.lines().find(|l| l.trim().starts_with("data: first 0,")).expect("data");
    let block = data.split(", ").find_map(|field| field.strip_prefix("block "));
    block.and_then(|n| n.parse().ok()).expect("a number")
}

/// What nobody has recorded yet must not be written over by a repair of half of a mirror.
#[test]
fn half_of_a_mirror_is_not_repaired() {
    let devices = mirrored();
    filled(&devices);
    let half = dyns(&devices[..1]);
    let before = devices[0].digest();
    let refused = repair(&half, false).expect_err("refused").to_string();
    assert!(refused.contains("missing"), "{refused}");
    assert_eq!(devices[0].digest(), before);
    repair(&half, true).expect("a dry run writes nothing");
}

/// Changes the record of an inode of the ordinary tree on disk, all checksums above made right.
fn edit_inode(device: &SimDevice, id: NodeId, edit: impl Fn(&mut Inode)) {
    let (mut root, slot) = root_of(device);
    let table = read_block(device, place(root.volume_table.root.block));
    assert_eq!(root.volume_table.height, 1);
    let number = u64::from(VolumeId::TREE.0);
    let leaf = Pointer::in_node(&table.0, (number / 8) as usize).expect("pointer");
    let mut versions = read_block(device, place(leaf.block));
    let v = (number % 8) as usize * INODE_BYTES;
    let mut version = Inode::decode(&versions.0[v..v + INODE_BYTES]).expect("version");
    assert_eq!(version.height, 1);
    let mut node = read_block(device, place(version.root.block));
    let index = (id.ino / 8) as usize;
    let mut at = Pointer::in_node(&node.0, index).expect("pointer");
    let mut inodes = read_block(device, place(at.block));
    let i = (id.ino % 8) as usize * INODE_BYTES;
    let mut inode = Inode::decode(&inodes.0[i..i + INODE_BYTES]).expect("inode");
    edit(&mut inode);
    let bytes = match inode.kind {
        fs_layout::InodeKind::Free => [0; INODE_BYTES],
        _ => inode.encode(),
    };
    inodes.0[i..i + INODE_BYTES].copy_from_slice(&bytes);
    put(device, place(at.block), &inodes);
    at.crc = crc32c::crc32c(&inodes.0);
    at.encode(&mut node.0[index * 16..index * 16 + 16]);
    put(device, place(version.root.block), &node);
    version.root.crc = crc32c::crc32c(&node.0);
    versions.0[v..v + INODE_BYTES].copy_from_slice(&version.encode());
    put(device, place(leaf.block), &versions);
    let leaf = Pointer { crc: crc32c::crc32c(&versions.0), ..leaf };
    let mut table = table;
    let t = (number / 8) as usize * 16;
    leaf.encode(&mut table.0[t..t + 16]);
    put(device, place(root.volume_table.root.block), &table);
    root.volume_table.root.crc = crc32c::crc32c(&table.0);
    put_root(device, &root, slot);
}

#[test]
fn counts_of_an_inode() {
    let devices = plain(1);
    let files = filled(&devices);
    let (id, ..) = files[3];
    edit_inode(&devices[0], id, |inode| {
        inode.blocks += 5;
        inode.nlink = 9;
    });
    edit_inode(&devices[0], NodeId::root(VolumeId::TREE), |dir| dir.entries = 2);
    assert_eq!(errors(&devices).len(), 3, "{:?}", errors(&devices));
    assert_eq!(repaired(&devices).actions.len(), 3);
    assert_files(&devices, &files);
}

#[test]
fn a_name_that_leads_nowhere() {
    let devices = plain(1);
    let mut files = filled(&devices);
    let (id, ..) = files.remove(2);
    edit_inode(&devices[0], id, |inode| *inode = Inode::empty(fs_layout::InodeKind::Free));
    assert!(!errors(&devices).is_empty());
    let done = repaired(&devices);
    assert!(done.actions.iter().any(|a| a.contains("\"f3\"")), "{:?}", done.actions);
    assert!(done.actions.iter().any(|a| a.contains("nothing names them")), "{:?}", done.actions);
    assert_files(&devices, &files);
    let fs = open(&devices);
    assert!(fs.lookup(NodeId::root(VolumeId::TREE), b"f3").is_err());
}

#[test]
fn an_inode_without_a_name() {
    let devices = plain(1);
    let files = filled(&devices);
    // The directory's only bucket is taken from it.
    edit_inode(&devices[0], NodeId::root(VolumeId::TREE), |dir| {
        (dir.root, dir.entries, dir.blocks) = (Pointer::default(), 0, 0);
    });
    let done = repaired(&devices);
    assert!(done.actions.iter().any(|a| a.contains("lost+found/inode-")), "{:?}", done.actions);
    assert_files(&devices, &files);
    let fs = open(&devices);
    let found = fs.lookup(NodeId::root(VolumeId::TREE), b"lost+found").expect("lost+found");
    assert_eq!(fs.readdir(found.id, 0, 100).expect("list").len(), files.len());
}

#[test]
fn a_block_with_two_owners() {
    let devices = plain(1);
    let mut files = filled(&devices);
    let one = make_file(&open(&devices), "one", 50, 1);
    let two = make_file(&open(&devices), "two", 51, 1);
    let fs = open(&devices);
    fs.close().expect("close");
    drop(fs);
    let root = std::cell::Cell::new(Pointer::default());
    edit_inode(&devices[0], one, |inode| root.set(inode.root));
    edit_inode(&devices[0], two, |inode| inode.root = root.get());
    assert!(errors(&devices).iter().any(|e| e.contains("named twice")));
    let done = repaired(&devices);
    assert!(done.actions.iter().any(|a| a.contains("copied apart")), "{:?}", done.actions);
    files.push((one, 50, 1));
    files.push((two, 50, 1));
    assert_files(&devices, &files);
    let fs = open(&devices);
    fs.open_file(two).expect("open").write_at(0, &content(52, 0)).expect("write");
    fs.consistency_point().expect("consistency point");
    drop(fs);
    assert_files(&devices, &files[..files.len() - 1]);
}

#[test]
fn a_bad_node_stays_a_medium_error() {
    let devices = plain(1);
    let mut files = filled(&devices);
    let (id, seed, blocks) = files.remove(4);
    let node = std::cell::Cell::new(0);
    edit_inode(&devices[0], id, |inode| node.set(inode.root.block));
    devices[0].flip_bit(place(node.get()), 5);
    let done = repair(&dyns(&devices), false).expect("repair");
    assert!(!done.after.errors.is_empty());
    assert!(done.after.errors.iter().any(|e| e.contains("node at block")), "{done:?}");
    assert_files(&devices, &files);
    let fs = open(&devices);
    assert!(readable(&fs, id, seed, blocks).iter().all(|ok| !ok));
}

/// Where the first group of the log with continuation blocks has them.
fn first_payload(device: &SimDevice) -> u64 {
    let (root, _) = root_of(device);
    let (mut at, mut seed) = (root.next_group_block, root.group_seed);
    loop {
        let raw = read_block(device, place(at));
        let (head, next) = GroupHead::decode(&raw.0, &seed).expect("a group with a payload");
        if let Some((block, _)) = head.extents.first() {
            return *block;
        }
        (at, seed) = (head.next_block, next);
    }
}

/// What a durable group said is lost: nobody may decide to go on without it but the user.
#[test]
fn a_group_whose_content_is_lost() {
    let devices = plain(1);
    let mut files = filled(&devices);
    let fs = open(&devices);
    files.push((make_file(&fs, "kept", 11, 4), 11, 4));
    fs.sync().expect("sync");
    for n in 0..40 {
        make_file(&fs, &format!("many{n}"), 12, 1);
    }
    fs.sync().expect("sync");
    make_file(&fs, "later", 13, 4);
    fs.sync().expect("sync");
    let crashed = vec![Arc::new(devices[0].after_crash(1))];
    crashed[0].flip_bit(place(first_payload(&crashed[0])), 77);
    let refused = Fs::open(dyns(&crashed), options()).err().expect("refused").to_string();
    assert!(refused.contains("damaged, though it was durable"), "{refused}");
    let done = repaired(&crashed);
    assert!(done.actions[0].contains("the log is cut before it"), "{:?}", done.actions);
    assert_files(&crashed, &files);
    let fs = open(&crashed);
    let root = NodeId::root(VolumeId::TREE);
    assert!(fs.lookup(root, b"later").is_err(), "what came after the gap is no prefix");
}
