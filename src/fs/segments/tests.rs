//! Properties of layouts over random devices.

use super::*;
use crate::device::sim::Rng;
use std::collections::BTreeSet;

/// The invariants of a map over devices of so many usable segments; the segments it has.
pub(crate) fn assert_sound(map: &[SegmentRun], usable: &[u64], copies: usize) -> u64 {
    let mut taken: Vec<(u16, u64, u64)> = Vec::new();
    let (mut end, mut segments) = (1, 0);
    for run in map {
        assert!(run.logical >= end && run.count > 0, "{run:?}");
        assert_eq!(run.members.len(), copies);
        let devices: BTreeSet<u16> = run.members.iter().map(|m| m.0).collect();
        assert_eq!(devices.len(), copies, "both copies on one device: {run:?}");
        for (device, first) in &run.members {
            assert!(*first >= 1 && first + run.count <= usable[usize::from(*device)] + 1);
            taken.push((*device, *first, first + run.count));
        }
        end = run.logical + run.count;
        segments += run.count;
    }
    taken.sort_unstable();
    assert!(taken.windows(2).all(|w| w[0].0 < w[1].0 || w[0].2 <= w[1].1), "used twice: {map:?}");
    segments
}

fn sizes(rng: &mut Rng) -> Vec<u64> {
    let devices = 1 + rng.index(12);
    let scale = [4, 40, 1000, 60_000][rng.index(4)];
    (0..devices).map(|_| rng.below(scale)).collect()
}

fn blocks(usable: &[u64]) -> Vec<u64> {
    usable.iter().map(|segments| (segments + 1) * SEGMENT_BLOCKS + 7).collect()
}

#[test]
fn a_mirror_uses_all_that_can_be_paired() {
    let (mut most_runs, mut rng) = (0, Rng::new(1));
    for _ in 0..3000 {
        let usable = sizes(&mut rng);
        let (map, end) = lay_out(Redundancy::Mirror, &blocks(&usable));
        let segments = assert_sound(&map, &usable, 2);
        assert_eq!(segments, capacity(Redundancy::Mirror, &usable), "{usable:?}");
        assert_eq!(end, (segments + 1) * SEGMENT_BLOCKS);
        most_runs = most_runs.max(map.len());
    }
    assert!(most_runs <= 96, "{most_runs} runs");
}

#[test]
fn without_redundancy_everything_is_used() {
    let mut rng = Rng::new(2);
    for _ in 0..300 {
        let usable = sizes(&mut rng);
        let (map, _) = lay_out(Redundancy::None, &blocks(&usable));
        assert_eq!(assert_sound(&map, &usable, 1), usable.iter().sum::<u64>());
        assert!(map.len() <= usable.len());
    }
}

#[test]
fn two_devices_are_one_run_and_uneven_ones_are_used_well() {
    let (map, _) = lay_out(Redundancy::Mirror, &blocks(&[5000, 5000]));
    assert_eq!(map.len(), 1);
    // 1, 2 and 3 GiB: 3 GiB of pool.
    let (map, _) = lay_out(Redundancy::Mirror, &blocks(&[512, 1024, 1536]));
    assert_eq!(assert_sound(&map, &[512, 1024, 1536], 2), 1536);
    // The excess of a device that is larger than all others is of no use.
    let (map, _) = lay_out(Redundancy::Mirror, &blocks(&[100, 900, 200]));
    assert_eq!(assert_sound(&map, &[100, 900, 200], 2), 300);
}

#[test]
fn what_is_written_in_a_row_is_on_many_devices() {
    let usable = [6000; 6];
    let (map, end) = lay_out(Redundancy::Mirror, &blocks(&usable));
    // Of the pool's first third, every device has between half and twice its share.
    let third = end / SEGMENT_BLOCKS / 3;
    let mut copies = [0; 6];
    for run in map.iter().filter(|run| run.logical < third) {
        run.members.iter().for_each(|m| copies[usize::from(m.0)] += run.count.min(third));
    }
    let share = third * 2 / 6;
    assert!(copies.iter().all(|n| *n >= share / 2 && *n <= share * 2), "{copies:?}");
}
