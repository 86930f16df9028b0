//! What changed of a file that is being written since one of its snapshots: beside a model, beside
//! other threads, and what it costs. Differences of two snapshots are in `snapshots.rs`.

mod lab;

use lab::*;
use lunfs::device::sim::Rng;
use lunfs::fs::{Diff, DiffBase, File, VolumeId};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

const BLOCKS: u64 = 100_000;

/// A block's content by a number that no write gives twice; 0: a hole. And when it was touched.
#[derive(Clone, Copy, Default, PartialEq)]
struct Block {
    value: u64,
    touched: u64,
}

struct Known {
    id: VolumeId,
    epoch: u64,
    step: u64,
    blocks: Vec<Block>,
}

struct World {
    lab: Lab,
    volume: VolumeId,
    file: File,
    rng: Rng,
    now: Vec<Block>,
    step: u64,
    known: Vec<Known>,
}

fn blocks_of(diff: &Diff) -> BTreeSet<u64> {
    let mut end = 0;
    for extent in &diff.extents {
        assert!(extent.offset_bytes >= end && extent.length_bytes > 0, "{diff:?}");
        end = extent.offset_bytes + extent.length_bytes;
    }
    let range =
        |e: &lunfs::fs::ChangedExtent| e.offset_bytes / BS..(e.offset_bytes + e.length_bytes) / BS;
    diff.extents.iter().flat_map(range).collect()
}

/// In pieces of so many extents it is the same.
fn changed(file: &File, base: DiffBase, from: u64, to: u64, max: usize) -> BTreeSet<u64> {
    let mut all = BTreeSet::new();
    let mut at = Some(from * BS);
    while let Some(begin) = at {
        let piece = file.changed_since(base, begin..to * BS, max).unwrap();
        assert!(piece.extents.len() <= max);
        all.extend(blocks_of(&piece));
        at = piece.next_bytes;
    }
    assert!(all.iter().all(|b| (from..to).contains(b)));
    all
}

impl World {
    fn new(seed: u64) -> World {
        let lab = Lab::new(1 << 15);
        let (volume, file) = lab.volume("a");
        file.set_size(BLOCKS * BS).unwrap();
        let now = vec![Block::default(); BLOCKS as usize];
        World { lab, volume, file, rng: Rng::new(seed), now, step: 0, known: Vec::new() }
    }

    /// Another opening of the same pool, whose cache is too small for anything.
    fn reopen(&mut self) {
        self.lab.fs.close().unwrap();
        self.lab.fs = mount(&self.lab.device, &self.lab.clock, 1 << 16);
        self.file = self.lab.open(self.volume);
    }

    fn touch(&mut self, first: u64, count: u64, value: u64) {
        for block in &mut self.now[first as usize..(first + count) as usize] {
            *block = Block { value, touched: self.step };
        }
    }

    fn change(&mut self) {
        self.step += 1;
        let near = [0, 5_000, 65_530, 99_000][self.rng.index(4)];
        let first = near + self.rng.below(900);
        let count = 1 + self.rng.below(60);
        match self.rng.below(100) {
            0..=59 => {
                let byte = 1 + self.step as u8 % 250;
                fill(&self.file, first, count, byte);
                self.touch(first, count, self.step);
            }
            60..=79 => {
                let count = count * (1 + self.rng.below(8) * 40);
                let count = count.min(BLOCKS - first);
                self.file.punch(first * BS, count * BS).unwrap();
                self.touch(first, count, 0);
            }
            80..=82 => {
                let size = [0, 300, 66_000][self.rng.index(3)];
                self.file.set_size(size * BS).unwrap();
                self.file.set_size(BLOCKS * BS).unwrap();
                self.touch(size, BLOCKS - size, 0);
            }
            83..=89 => self.file.sync().unwrap(),
            90..=93 => self.lab.fs.consistency_point().unwrap(),
            94..=95 => self.reopen(),
            _ => {
                let name = format!("s{}", self.step);
                let id = self.lab.snapshot(self.volume, &name);
                let info = self.lab.fs.snapshot_lookup(self.volume, &name).unwrap().unwrap();
                let (step, blocks) = (self.step, self.now.clone());
                self.known.push(Known { id, epoch: info.epoch, step, blocks });
            }
        }
    }

    fn judge(&mut self) {
        let Some(index) = self.known.len().checked_sub(1).map(|most| self.rng.index(most + 1))
        else {
            return;
        };
        let known = &self.known[index];
        let from = self.rng.below(BLOCKS);
        let from = if self.rng.chance(1, 2) { 0 } else { from };
        let to =
            if self.rng.chance(1, 2) { BLOCKS } else { from + self.rng.below(BLOCKS - from) + 1 };
        let to = to.min(BLOCKS);
        let max = [1, 3, 10_000][self.rng.index(3)];
        let exact = changed(&self.file, DiffBase::Snapshot(known.id), from, to, max);
        let by_epoch = changed(&self.file, DiffBase::Epoch(known.epoch), from, to, max);
        for b in from..to {
            let (was, is) = (known.blocks[b as usize], self.now[b as usize]);
            if was.value != is.value {
                assert!(exact.contains(&b), "step {}: block {b} changed", self.step);
                assert!(by_epoch.contains(&b), "step {}: block {b}, by epoch", self.step);
            }
            // Holes are told in whole subtrees.
            if is.touched <= known.step && is.value != 0 {
                assert!(!exact.contains(&b), "step {}: block {b} did not change", self.step);
            }
        }
    }
}

#[test]
fn what_changed_is_told_while_it_changes() {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let given = std::env::var("LUNFS_CHANGES_SEED").ok().and_then(|s| s.parse().ok());
    let fresh = since.as_millis() as u64;
    for seed in given.map_or(vec![1, 2, fresh], |seed| vec![seed]) {
        println!("LUNFS_CHANGES_SEED={seed}");
        let mut world = World::new(seed);
        for _ in 0..400 {
            world.change();
            if world.rng.chance(1, 4) {
                world.judge();
            }
        }
    }
}

/// A write that returned before the question is in the answer, whatever else goes on.
#[test]
fn what_returned_before_the_question_is_in_the_answer() {
    let lab = Lab::new(1 << 17);
    let (v, file) = lab.volume("a");
    file.set_size(1 << 40).unwrap();
    fill(&file, 0, 3000, 1);
    let base = DiffBase::Snapshot(lab.snapshot(v, "s"));
    // The first look at a fresh snapshot is Busy while another consistency point runs.
    lab.fs.consistency_point().unwrap();
    // Each writer has blocks of its own, `done` of them written.
    let done: Vec<AtomicU64> = (0..2).map(|_| AtomicU64::new(0)).collect();
    let place = |writer: u64, i: u64| writer * 1_000_000 + i * 37;
    std::thread::scope(|scope| {
        for (writer, done) in (0..).zip(&done) {
            let file = &file;
            scope.spawn(move || {
                for i in 0..3000 {
                    fill(file, place(writer, i), 1, 2);
                    done.store(i + 1, Ordering::SeqCst);
                }
            });
        }
        let mut rounds = 0;
        while rounds < 10 || done.iter().any(|d| d.load(Ordering::SeqCst) < 3000) {
            let before: Vec<u64> = done.iter().map(|d| d.load(Ordering::SeqCst)).collect();
            let told = changed(&file, base, 0, 3_000_000, 500);
            for (writer, count) in (0..).zip(before) {
                let missing = (0..count).find(|i| !told.contains(&place(writer, *i)));
                assert_eq!(missing, None, "of {count} by {writer}");
            }
            if rounds % 3 == 0 {
                lab.fs.consistency_point().unwrap();
            }
            rounds += 1;
        }
    });
    drop(file);
    lab.fs.close().unwrap();
    lab.check();
}

#[test]
fn its_cost_grows_with_the_change() {
    let lab = Lab::new(1 << 17);
    let (v, file) = lab.volume("a");
    file.set_size(1 << 42).unwrap();
    for i in 0..2000 {
        fill(&file, i * 500_000, 1, 1);
    }
    let base = DiffBase::Snapshot(lab.snapshot(v, "s"));
    fill(&file, 700 * 500_000, 1, 2);
    lab.fs.close().unwrap();
    let fs = mount(&lab.device, &lab.clock, 64 * MIB);
    let lab = Lab { fs, ..lab };
    let file = lab.open(v);
    let before = lab.fs.stats().blocks_read;
    let told = changed(&file, base, 0, (1 << 42) / BS, 100);
    assert_eq!(told, BTreeSet::from([700 * 500_000]));
    let read = lab.fs.stats().blocks_read - before;
    assert!(read <= 20, "{read} blocks were read");
}
