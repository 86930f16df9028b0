//! Range clones, one by one and against a plain model of bytes; with crashes and snapshots in
//! random order they are in `versions.rs`.

mod lab;

use lab::*;
use lunfs::device::sim::Rng;
use lunfs::device::{Block, BlockDevice};
use lunfs::fs::planted::{plant, Mutation};
use lunfs::fs::{check as check_pool, dump, repair, Repaired};
use lunfs::fs::{CheckOptions, DiffBase, DumpWhat, Error, File, NewNode, NodeId};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Another file of a volume.
fn another(lab: &Lab, beside: &File, name: &str) -> File {
    let root = NodeId::root(beside.id().volume);
    let attr = lab.fs.create(root, name.as_bytes(), NewNode::File, OWNER).unwrap();
    lab.fs.open_file(attr.id).unwrap()
}

fn clone(lab: &Lab, from: &File, at: u64, to: &File, there: u64, blocks: u64) -> u64 {
    lab.fs.clone_range(from, at * BS, to, there * BS, blocks * BS).unwrap() / BS
}

/// Blocks written by what is done, its consistency point included.
fn written(lab: &Lab, what: impl FnOnce()) -> u64 {
    let before = lab.fs.stats().blocks_written;
    what();
    lab.fs.consistency_point().unwrap();
    lab.fs.stats().blocks_written - before
}

#[test]
fn a_clone_is_independent_at_once() {
    let lab = Lab::new(1 << 15);
    let (_, a) = lab.volume("a");
    let (_, b) = lab.volume("b");
    fill(&a, 0, 1000, 1);
    lab.fs.consistency_point().unwrap();
    assert_eq!(clone(&lab, &a, 0, &b, 0, 5000), 1000);
    assert_eq!((b.size_bytes(), b.attr().unwrap().blocks), (1000 * BS, 1000));
    fill(&a, 3, 1, 2);
    fill(&b, 4, 1, 3);
    let read =
        |lab: &Lab, n| (byte_at(&lab.open(a.id().volume), n), byte_at(&lab.open(b.id().volume), n));
    assert_eq!((read(&lab, 3), read(&lab, 4), read(&lab, 999)), ((2, 1), (1, 3), (1, 1)));
    lab.fs.sync().unwrap();
    let (a, b) = (a.id(), b.id());
    let lab = lab.crash();
    let (a, b) = (lab.fs.open_file(a).unwrap(), lab.fs.open_file(b).unwrap());
    let read = |n| (byte_at(&a, n), byte_at(&b, n));
    assert_eq!((read(3), read(4), read(999)), ((2, 1), (1, 3), (1, 1)));
    lab.fs.consistency_point().unwrap();
    lab.check();
    a.set_size(0).unwrap();
    lab.drain();
    lab.check();
    assert_eq!((byte_at(&b, 4), byte_at(&b, 998)), (3, 1));
}

/// Each file alone goes through all that can be; afterwards nothing is left.
#[test]
fn what_is_shared_is_freed_with_its_last_owner() {
    for order in 0..6 {
        let lab = Lab::new(1 << 15);
        let (_, a) = lab.volume("a");
        let new = lab.used();
        fill(&a, 0, 1000, 1);
        lab.fs.consistency_point().unwrap();
        let full = lab.used();
        let files = [another(&lab, &a, "b"), another(&lab, &a, "c")];
        clone(&lab, &a, 0, &files[0], 0, 1000);
        clone(&lab, &files[0], 0, &files[1], 0, 1000);
        lab.check();
        assert!(lab.used() <= full + 8, "{} blocks, {full} before", lab.used());
        let mut all = [&a, &files[0], &files[1]];
        all.rotate_left(order % 3);
        if order > 2 {
            all.swap(1, 2);
        }
        for (i, file) in all.iter().enumerate() {
            // A block of its own in a leaf that is shared.
            fill(file, 300, 1, 9);
            lab.fs.consistency_point().unwrap();
            lab.check();
            file.set_size(0).unwrap();
            lab.drain();
            lab.check();
            assert_eq!(file.attr().unwrap().blocks, 0);
            for other in &all[i + 1..] {
                assert_eq!((byte_at(other, 300), byte_at(other, 999)), (1, 1));
            }
        }
        let left = lab.used();
        assert!(left <= new + 4, "{left} blocks are used, {new} were");
    }
}

#[test]
fn clones_of_snapshots_outlive_them() {
    let lab = Lab::new(1 << 15);
    let (v, a) = lab.volume("a");
    let (w, b) = lab.volume("b");
    let new = lab.used();
    fill(&a, 0, 1000, 1);
    lab.snapshot(v, "one");
    fill(&a, 100, 500, 2);
    let two = lab.snapshot(v, "two");
    fill(&a, 200, 10, 3);
    let source = lab.open(two);
    clone(&lab, &source, 0, &b, 0, 1000);
    lab.snapshot(w, "s");
    fill(&b, 250, 10, 4);
    drop(source);
    lab.check();
    for name in ["two", "one"] {
        lab.fs.snapshot_delete(v, name).unwrap();
        lab.drain();
        lab.check();
    }
    let of = |file: &File| [99, 100, 205, 250, 599, 999].map(|n| byte_at(file, n));
    assert_eq!(of(&a), [1, 2, 3, 2, 2, 1]);
    assert_eq!(of(&b), [1, 2, 2, 4, 2, 1]);
    a.set_size(0).unwrap();
    lab.drain();
    lab.check();
    let s = lab.fs.snapshot_lookup(w, "s").unwrap().unwrap().id;
    assert_eq!(of(&lab.open(s)), [1, 2, 2, 2, 2, 1]);
    lab.fs.snapshot_delete(w, "s").unwrap();
    lab.drain();
    lab.check();
    assert_eq!(of(&b), [1, 2, 2, 4, 2, 1]);
    b.set_size(0).unwrap();
    lab.check();
    let left = lab.used();
    // Two directories of snapshots' names.
    assert!(left <= new + 8, "{left} blocks are used, {new} were");
}

#[test]
fn a_cloned_range_is_a_change() {
    let lab = Lab::new(1 << 15);
    let (v, a) = lab.volume("a");
    let (w, b) = lab.volume("b");
    fill(&a, 0, 1000, 1);
    lab.snapshot(v, "old");
    fill(&b, 0, 2000, 2);
    let one = lab.snapshot(w, "one");
    let epoch = lab.fs.snapshot_lookup(w, "one").unwrap().unwrap().epoch;
    a.punch(600 * BS, 10 * BS).unwrap();
    clone(&lab, &a, 256, &b, 512, 512);
    let two = lab.snapshot(w, "two");
    fill(&b, 515, 1, 3);
    let three = lab.snapshot(w, "three");
    let told = |base, to| {
        let to = NodeId { volume: to, ..b.id() };
        let diff = lab.fs.diff(base, to, 0, 100).unwrap();
        let extent =
            |e: &lunfs::fs::ChangedExtent| (e.offset_bytes / BS, e.length_bytes / BS, e.is_data);
        diff.extents.iter().map(extent).collect::<Vec<_>>()
    };
    let all = [(512, 344, true), (856, 10, false), (866, 158, true)];
    for base in [DiffBase::Snapshot(one), DiffBase::Epoch(epoch)] {
        assert_eq!(told(base, two), all);
        assert_eq!(told(base, three), all);
    }
    assert_eq!(told(DiffBase::Snapshot(two), three), [(515, 1, true)]);
    let epoch = lab.fs.snapshot_lookup(w, "two").unwrap().unwrap().epoch;
    assert_eq!(told(DiffBase::Epoch(epoch), three), [(515, 1, true)]);
    lab.check();
}

/// Whole subtrees are shared: the cost follows the number of nodes at the top.
#[test]
fn a_large_clone_writes_a_handful_of_blocks() {
    for (gib, most) in [(1u64, 40), (10, 60), (100, 300)] {
        let lab = Lab::new(1 << 18);
        let (_, a) = lab.volume("a");
        let (_, b) = lab.volume("b");
        // A block in every leaf of 1 MiB; of the largest, in every 16th.
        let step = if gib > 10 { 4096 } else { 256 };
        for i in (0..gib << 18).step_by(step) {
            fill(&a, i, 1, 1);
        }
        a.set_size(gib << 30).unwrap();
        lab.fs.consistency_point().unwrap();
        fill(&b, 0, 1, 7);
        b.set_size((gib << 30) + 5 * MIB).unwrap();
        // The first clone of a pool says so in its root.
        clone(&lab, &a, 5, &b, (gib << 18) + 5, 1);
        lab.fs.consistency_point().unwrap();
        let cost = written(&lab, || {
            assert_eq!(clone(&lab, &a, 0, &b, 0, gib << 18), gib << 18);
        });
        println!("{gib} GiB: {cost} blocks written");
        assert!(cost <= most, "{cost} blocks for {gib} GiB");
        assert_eq!(b.attr().unwrap().blocks, (gib << 18) / step as u64);
        assert_eq!((byte_at(&b, 0), byte_at(&b, 4096)), (1, 1));
        lab.check();
    }
}

#[test]
fn a_clone_of_a_whole_file_is_one_pointer() {
    let lab = Lab::new(1 << 16);
    let (_, a) = lab.volume("a");
    for i in 0..2000 {
        fill(&a, i * 16, 1, 1);
    }
    a.write_at(40_000 * BS, &[5; 100]).unwrap();
    lab.fs.consistency_point().unwrap();
    let b = another(&lab, &a, "b");
    clone(&lab, &a, 0, &b, 0, 1);
    b.set_size(0).unwrap();
    lab.fs.consistency_point().unwrap();
    let cost = written(&lab, || {
        lab.fs.clone_range(&a, 0, &b, 0, u64::MAX).unwrap();
    });
    println!("{cost} blocks written");
    assert!(cost <= 14, "{cost} blocks");
    assert_eq!(b.size_bytes(), 40_000 * BS + 100);
    assert_eq!(b.attr().unwrap().blocks, 2001);
    lab.check();
}

#[test]
fn what_cannot_be_cloned_is_refused() {
    let lab = Lab::new(1 << 15);
    let (v, a) = lab.volume("a");
    fill(&a, 0, 10, 1);
    let s = lab.snapshot(v, "s");
    let frozen = lab.open(s);
    let refused = lab.fs.clone_range(&a, 0, &frozen, 0, BS);
    assert!(matches!(refused, Err(Error::ReadOnly)), "{refused:?}");
    let refused = lab.fs.clone_range(&a, 0, &a, 1 << 52, BS);
    assert!(matches!(refused, Err(Error::TooBig)), "{refused:?}");
    lab.fs.snapshot_delete(v, "s").unwrap();
    let refused = lab.fs.clone_range(&frozen, 0, &a, 0, BS);
    assert!(matches!(refused, Err(Error::Stale)), "{refused:?}");
    assert_eq!(lab.fs.clone_range(&a, 10 * BS, &a, 0, BS).unwrap(), 0);
}

/// The place of the only block of counts, or of the node above it, as a dump tells it.
fn place_of_counts(device: &Arc<dyn BlockDevice>, what: &str) -> u64 {
    let shown = dump(std::slice::from_ref(device), &DumpWhat::Inode(0, 6)).unwrap();
    let mut waiting = vec![&shown];
    while let Some(object) = waiting.pop() {
        let block = object.fields.iter().find(|field| field.0 == "block");
        if let (true, Some(block)) = (object.name.starts_with(what), block) {
            return block.1.to_string().parse().unwrap();
        }
        waiting.extend(&object.parts);
    }
    panic!("no {what} of counts: {shown}");
}

/// Nothing is freed whose count is not known; a repair counts anew.
#[test]
fn lost_counts_cost_space_until_they_are_repaired() {
    for what in ["data", "node"] {
        lose_counts(what);
    }
}

fn lose_counts(what: &str) {
    let lab = Lab::new(1 << 15);
    let (v, a) = lab.volume("a");
    let new = lab.used();
    fill(&a, 0, 3000, 1);
    lab.fs.consistency_point().unwrap();
    let b = another(&lab, &a, "b");
    clone(&lab, &a, 0, &b, 0, 3000);
    lab.fs.close().unwrap();
    let (a, b) = (a.id(), b.id());
    let device: Arc<dyn BlockDevice> = lab.device.clone();
    // On a single device the pool's blocks have the device's numbers.
    let mut garbage = Block::zeroed();
    garbage.0.fill(0xA5);
    lab.device.write(place_of_counts(&device, what), &[&garbage]).unwrap();
    lab.device.flush().unwrap();
    let lab = Lab { fs: mount(&lab.device, &lab.clock, 64 * MIB), ..lab };
    lab.fs.open_file(a).unwrap().set_size(0).unwrap();
    lab.drain();
    let b = lab.fs.open_file(b).unwrap();
    assert_eq!((byte_at(&b, 0), byte_at(&b, 2999)), (1, 1));
    lab.fs.close().unwrap();
    drop(b);
    let options = CheckOptions { data: true };
    assert!(!check_pool(std::slice::from_ref(&device), options).unwrap().errors.is_empty());
    let repaired = repair(std::slice::from_ref(&device), false).unwrap();
    assert_recounted(&repaired);
    let lab = Lab { fs: mount(&lab.device, &lab.clock, 64 * MIB), ..lab };
    let root = NodeId::root(v);
    lab.fs.unlink(root, b"b").unwrap();
    let left = lab.used();
    assert!(left <= new + 4, "{left} blocks are used, {new} were");
    lab.check();
}

fn assert_recounted(repaired: &Repaired) {
    assert!(repaired.after.errors.is_empty(), "{:?}", repaired.after.errors);
    let told = "the counts of shared blocks were made anew";
    assert!(repaired.actions.iter().any(|a| a == told), "{:?}", repaired.actions);
}

/// A count that is too low would free what others have: a repair counts anew, and copies nothing.
#[test]
fn wrong_counts_are_repaired() {
    let lab = Lab::new(1 << 15);
    let (_, a) = lab.volume("a");
    fill(&a, 0, 600, 1);
    lab.fs.consistency_point().unwrap();
    let (b, c) = (another(&lab, &a, "b"), another(&lab, &a, "c"));
    clone(&lab, &a, 0, &b, 0, 300);
    lab.fs.consistency_point().unwrap();
    plant(Some(Mutation::CloneNotCounted));
    clone(&lab, &a, 0, &c, 0, 600);
    let used = lab.used();
    lab.fs.close().unwrap();
    plant(None);
    let device: Arc<dyn BlockDevice> = lab.device.clone();
    let options = CheckOptions { data: true };
    let errors = check_pool(std::slice::from_ref(&device), options).unwrap().errors;
    assert!(errors.iter().all(|e| e.contains("counted as cloned")), "{errors:?}");
    let repaired = repair(std::slice::from_ref(&device), false).unwrap();
    assert_recounted(&repaired);
    let (b, c) = (b.id(), c.id());
    let root = NodeId::root(a.id().volume);
    drop(a);
    let lab = Lab { fs: mount(&lab.device, &lab.clock, 64 * MIB), ..lab };
    assert!(lab.used() <= used + 4, "{} blocks are used, {used} were", lab.used());
    lab.fs.unlink(root, b"data").unwrap();
    lab.drain();
    let [b, c] = [b, c].map(|id| lab.fs.open_file(id).unwrap());
    assert_eq!((byte_at(&b, 299), byte_at(&c, 299), byte_at(&c, 599)), (1, 1, 1));
    lab.check();
}

fn model_clone(
    files: &mut [Vec<u8>],
    (from, at): (usize, usize),
    (to, there): (usize, usize),
    len: usize,
) {
    let len = len.min(files[from].len().saturating_sub(at));
    let bytes = files[from][at.min(files[from].len())..][..len].to_vec();
    if len > 0 {
        let target = &mut files[to];
        target.resize(target.len().max(there + len), 0);
        target[there..there + len].copy_from_slice(&bytes);
    }
}

fn random_bytes(seed: u64) {
    let mut rng = Rng::new(seed);
    let lab = Lab::new(1 << 15);
    let (v, a) = lab.volume("a");
    let files = [another(&lab, &a, "b"), another(&lab, &a, "c"), a];
    let mut model = vec![Vec::new(); 3];
    for step in 0..60 {
        let (i, k) = (rng.index(3), rng.index(3));
        let place = |rng: &mut Rng| match rng.index(3) {
            0 => rng.index(3000) * 4096,
            1 => rng.index(4) << 20,
            _ => rng.index(12 << 20),
        };
        let (at, there) = (place(&mut rng), place(&mut rng));
        let there = if rng.index(3) == 0 { at } else { there };
        match rng.index(8) {
            0..=2 => {
                let bytes = vec![rng.bits() as u8; 1 + rng.index(2 << 20)];
                files[i].write_at(at as u64, &bytes).unwrap();
                let end = at + bytes.len();
                let target: &mut Vec<u8> = &mut model[i];
                target.resize(target.len().max(end), 0);
                target[at..end].copy_from_slice(&bytes);
            }
            3 => lab.fs.consistency_point().unwrap(),
            4 => {
                files[i].set_size(at as u64).unwrap();
                model[i].resize(at, 0);
            }
            5 if rng.index(3) == 0 => drop(lab.snapshot(v, &format!("s{step}"))),
            _ => {
                let len = if rng.index(3) == 0 { 64 << 20 } else { rng.index(4 << 20) };
                let cloned = files[i].clone_range(at as u64, &files[k], there as u64, len as u64);
                let found = model[i].len().saturating_sub(at).min(len);
                assert_eq!(cloned.unwrap(), found as u64, "step {step}");
                model_clone(&mut model, (i, at), (k, there), len);
            }
        }
    }
    for (file, want) in files.iter().zip(&model) {
        assert_eq!(file.size_bytes(), want.len() as u64);
        let mut have = vec![0; want.len()];
        file.read_at(0, &mut have).unwrap();
        let wrong = have.iter().zip(want).position(|(a, b)| a != b);
        assert_eq!(wrong, None);
    }
    lab.fs.close().unwrap();
    lab.check();
}

#[test]
fn clones_of_any_range_have_the_bytes() {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let given = std::env::var("LUNFS_CLONES_SEED").ok().and_then(|s| s.parse().ok());
    let fresh = since.as_millis() as u64;
    for seed in given.map_or(vec![1, 2, 3, fresh], |seed| vec![seed]) {
        println!("LUNFS_CLONES_SEED={seed}");
        random_bytes(seed);
    }
}
