//! What a scrub finds and heals on a pool that nobody else uses.

use super::lab::*;
use lunfs::device::sim::Rng;
use lunfs::fs::{NodeId, Outcome, Part};
use std::collections::BTreeSet;

/// A pool with files of several shapes, closed: (inode, seed, blocks).
fn fill(devices: &[std::sync::Arc<lunfs::device::sim::SimDevice>]) -> Vec<(NodeId, u64, u64)> {
    let fs = open(devices);
    let shapes = [(1, 1), (2, 255), (3, 700), (4, 2), (5, 40)];
    let files: Vec<_> = shapes
        .into_iter()
        .map(|(seed, blocks)| (make_file(&fs, &format!("f{seed}"), seed, blocks), seed, blocks))
        .collect();
    fs.consistency_point().expect("consistency point");
    fs.close().expect("close");
    files
}

#[test]
fn a_ruined_half_is_read_around_and_healed() {
    for half in 0..2 {
        let devices = mirrored();
        let files = fill(&devices);
        // Everything behind the first segment: labels and roots are another test.
        ruin(&devices[half], 512);
        let fs = open(&devices);
        for (id, seed, blocks) in &files {
            assert_readable(&fs, *id, *seed, *blocks);
        }
        let first = scrub(&fs, 100);
        assert_eq!(first.bad, 0, "{:?}", first.places);
        let second = scrub(&fs, 1000);
        assert_eq!((second.bad, second.healed), (0, 0), "{:?}", second.places);
        assert!(second.examined_bytes > 998 * BLOCK);
        fs.close().expect("close");
        // The other half is not needed any more.
        ruin(&devices[1 - half], 512);
        let fs = open(&devices);
        for (id, seed, blocks) in &files {
            assert_readable(&fs, *id, *seed, *blocks);
        }
        assert_eq!(scrub(&fs, 5000).bad, 0);
        drop(fs);
        assert_sound(&devices);
    }
}

#[test]
fn the_first_segment_is_healed_too() {
    let devices = mirrored();
    let files = fill(&devices);
    ruin(&devices[1], 1);
    let fs = open(&devices);
    let status = scrub(&fs, 64);
    assert_eq!(status.bad, 0, "{:?}", status.places);
    fs.close().expect("close");
    ruin(&devices[0], 1);
    let fs = open(&devices);
    for (id, seed, blocks) in &files {
        assert_readable(&fs, *id, *seed, *blocks);
    }
}

#[test]
fn without_redundancy_bad_places_are_listed_exactly() {
    let devices = plain(2);
    let files = fill(&devices);
    let (id, seed, blocks) = files[2];
    // Which device blocks hold which blocks of the file: found by their bytes.
    let mut at = Vec::new();
    for (d, device) in devices.iter().enumerate() {
        for b in device.stored_blocks() {
            let raw = read_block(device, b);
            if let Some(n) = (0..blocks).find(|n| raw.0[..] == content(seed, *n)[..]) {
                at.push((n, d, b));
            }
        }
    }
    assert_eq!(at.len() as u64, blocks);
    let mut rng = Rng::new(5);
    let mut hit = BTreeSet::new();
    for _ in 0..20 {
        let (n, d, b) = at[rng.index(at.len())];
        if hit.insert(n) {
            devices[d].flip_bit(b, rng.index(8 * BLOCK as usize));
        }
    }
    let fs = open(&devices);
    let status = scrub(&fs, 77);
    let found: BTreeSet<u64> = status.places.iter().map(|p| p.offset_bytes / BLOCK).collect();
    assert_eq!(found, hit);
    assert_eq!((status.bad, status.healed), (hit.len() as u64, 0));
    for p in &status.places {
        assert_eq!((p.volume, p.ino, p.part), (id.volume, id.ino, Part::Data));
        assert_eq!((p.outcome, p.length_bytes), (Outcome::Lost, BLOCK));
    }
    let read = readable(&fs, id, seed, blocks);
    for (n, ok) in read.iter().enumerate() {
        assert_eq!(*ok, !hit.contains(&(n as u64)), "block {n}");
    }
    // Written anew, it is good again.
    let file = fs.open_file(id).expect("open");
    for n in &hit {
        file.write_at(n * BLOCK, &content(seed, *n)).expect("write");
    }
    fs.consistency_point().expect("consistency point");
    let status = scrub(&fs, 77);
    assert_eq!((status.bad, status.healed), (0, 0), "{:?}", status.places);
}

#[test]
fn every_block_in_use_is_examined_once() {
    let devices = mirrored();
    fill(&devices);
    let fs = open(&devices);
    for step in [1, 7, 256, 100_000] {
        let used = fs.stats().used_bytes;
        let status = scrub(&fs, step);
        // Beside what is counted as used: pages, labels, roots, and what the log holds.
        let beside = status.examined_bytes - used.min(status.examined_bytes);
        assert!(status.examined_bytes >= used && beside < 64 * BLOCK, "{status:?}, used {used}");
    }
}

#[test]
fn a_cancelled_scrub_is_over_and_a_second_start_joins() {
    let devices = mirrored();
    fill(&devices);
    let fs = open(&devices);
    assert!(!fs.scrub_cancel().expect("cancel"));
    assert!(fs.scrub_start().expect("start"));
    assert!(!fs.scrub_start().expect("start"));
    assert!(fs.scrub_step(10).expect("step"));
    assert!(fs.scrub_cancel().expect("cancel"));
    assert!(!fs.scrub_step(10).expect("step"));
    let status = fs.scrub_status();
    assert!(status.cancelled && !status.running && status.examined_bytes > 0);
}

#[test]
fn an_interrupted_scrub_goes_on_where_it_was() {
    for seed in 0..20 {
        let devices = mirrored();
        fill(&devices);
        let fs = open(&devices);
        let whole = scrub(&fs, 1000).examined_bytes;
        assert!(fs.scrub_start().expect("start"));
        let mut rng = Rng::new(seed);
        let mut saved = 0;
        for _ in 0..rng.below(40) {
            assert!(fs.scrub_step(10).expect("step"));
            if rng.chance(1, 4) {
                make_file(&fs, &format!("x{}", rng.bits()), 9, 1);
                fs.consistency_point().expect("consistency point");
                saved = fs.scrub_status().examined_bytes;
            }
        }
        devices.iter().for_each(|d| d.cut_power());
        drop(fs);
        devices.iter().for_each(|d| {
            d.crash(seed);
        });
        let fs = open(&devices);
        let status = fs.scrub_status();
        assert!(status.running && status.examined_bytes >= saved, "{status:?}");
        while fs.scrub_step(33).expect("step") {}
        let status = fs.scrub_status();
        assert!(status.finished.is_some() && status.bad == 0);
        assert!(status.examined_bytes >= whole, "{} of {whole}", status.examined_bytes);
        assert!(status.examined_bytes < whole + 200 * BLOCK);
    }
}
