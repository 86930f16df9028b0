//! Properties of plans over random pools: what they reach, what they keep, how much they move.

use super::*;
use crate::device::sim::Rng;
use crate::fs::segments::{capacity, lay_out, tests::assert_sound};
use fs_layout::SEGMENT_BLOCKS;
use std::collections::BTreeSet;

struct Pool {
    redundancy: Redundancy,
    map: Vec<SegmentRun>,
    end: u64,
    usable: Vec<u64>,
    leaving: Vec<bool>,
    used: BTreeSet<u64>,
}

impl Pool {
    fn new(redundancy: Redundancy, usable: &[u64]) -> Pool {
        let blocks: Vec<u64> = usable.iter().map(|n| (n + 1) * SEGMENT_BLOCKS).collect();
        let (map, end) = lay_out(redundancy, &blocks);
        let (usable, leaving) = (usable.to_vec(), vec![false; usable.len()]);
        let end = end / SEGMENT_BLOCKS;
        Pool { redundancy, map, end, usable, leaving, used: BTreeSet::new() }
    }

    fn plan(&self) -> Result<Vec<Step>, Refusal> {
        plan(&Present {
            redundancy: self.redundancy,
            map: &self.map,
            end: self.end,
            usable: &self.usable,
            leaving: &self.leaving,
            is_free: &|segment| !self.used.contains(&segment),
        })
    }

    fn copies(&self) -> usize {
        1 + usize::from(self.redundancy == Redundancy::Mirror)
    }

    /// Every step leaves a sound map with everything that is used; a place freed by a step is not
    /// used by the same.
    fn carry_out(&mut self, step: &Step) {
        if let Step::Unmap { logical, count } = step {
            assert_eq!(self.used.range(*logical..logical + count).next(), None, "{step:?}");
        }
        let before: u64 = self.map.iter().map(|run| run.count).sum();
        self.map = apply(&self.map, class_of(self.redundancy), step);
        self.end = self.end.max(step.range().1);
        let after = assert_sound(&self.map, &self.usable, self.copies());
        match step {
            Step::New { count, .. } => assert_eq!(after, before + count),
            Step::Unmap { count, .. } => assert_eq!(after, before - count),
            Step::Move { .. } => assert_eq!(after, before),
        }
    }

    fn run(&mut self) -> Result<u64, Refusal> {
        let steps = self.plan()?;
        steps.iter().for_each(|step| self.carry_out(step));
        assert_eq!(self.plan().unwrap(), [], "one plan does it all");
        let moved = |step: &Step| if matches!(step, Step::Move { .. }) { step.count() } else { 0 };
        Ok(steps.iter().map(moved).sum())
    }

    fn segments(&self) -> u64 {
        self.map.iter().map(|run| run.count).sum()
    }

    fn best(&self) -> u64 {
        let stays = |(i, n): (usize, &u64)| if self.leaving[i] { 0 } else { *n };
        let usable: Vec<u64> = self.usable.iter().enumerate().map(stays).collect();
        capacity(self.redundancy, &usable)
    }

    fn use_some(&mut self, rng: &mut Rng, share: u64) {
        let all = self.map.iter().flat_map(|run| run.logical..run.logical + run.count);
        self.used = all.filter(|_| rng.chance(share, 100)).collect();
    }
}

fn random(rng: &mut Rng) -> Pool {
    let scale = [3, 30, 200][rng.index(3)];
    let usable: Vec<u64> = (0..2 + rng.index(5)).map(|_| 1 + rng.below(scale)).collect();
    let redundancy = [Redundancy::None, Redundancy::Mirror][rng.index(2)];
    Pool::new(redundancy, &usable)
}

#[test]
fn a_device_more_brings_all_it_can() {
    let mut rng = Rng::new(11);
    for _ in 0..400 {
        let mut pool = random(&mut rng);
        let before = pool.segments();
        pool.usable.push(rng.below(300));
        pool.leaving.push(false);
        let moved = pool.run().unwrap();
        assert_eq!(pool.segments(), pool.best(), "{:?}", pool.usable);
        // Each copy moved brings one segment.
        assert!(moved <= pool.segments() - before);
        assert!(pool.map.len() <= 40, "{} runs", pool.map.len());
    }
}

#[test]
fn larger_devices_bring_all_they_can() {
    let mut rng = Rng::new(12);
    for _ in 0..400 {
        let mut pool = random(&mut rng);
        for usable in pool.usable.iter_mut() {
            *usable += rng.below(100) * rng.below(2);
        }
        pool.run().unwrap();
        assert_eq!(pool.segments(), pool.best());
    }
}

#[test]
fn a_device_leaves_where_what_is_used_fits() {
    let (mut rng, mut refused, mut done) = (Rng::new(13), 0, 0);
    for _ in 0..250 {
        let mut pool = random(&mut rng);
        let share = rng.below(101);
        pool.use_some(&mut rng, share);
        let leaves = rng.index(pool.usable.len());
        pool.leaving[leaves] = true;
        let fits = pool.used.len() as u64 <= pool.best();
        match pool.run() {
            Ok(_) => {
                done += 1;
                assert!(fits);
                assert_eq!(pool.segments(), pool.best());
                let on = |run: &SegmentRun| run.members.iter().any(|m| m.0 == leaves as u16);
                assert!(!pool.map.iter().any(on));
                let mapped =
                    |s: &u64| pool.map.iter().any(|r| (r.logical..r.logical + r.count).contains(s));
                assert!(pool.used.iter().all(mapped));
            }
            Err(refusal) => {
                refused += 1;
                assert!(!fits, "{refusal:?}: {:?}, {} used", pool.usable, pool.used.len());
                let short = |needed, placed| placed < needed;
                assert!(
                    matches!(refusal, Refusal::NoPlace { needed, placed } if short(needed, placed))
                );
            }
        }
    }
    assert!(refused > 40 && done > 40, "{refused} refused, {done} done");
}

#[test]
fn numbers_out_of_service_come_back_first() {
    let mut pool = Pool::new(Redundancy::Mirror, &[100, 100, 100]);
    pool.used = (1..60).collect();
    pool.leaving[2] = true;
    pool.run().unwrap();
    assert_eq!(pool.segments(), 100);
    assert_eq!(pool.end, 151);
    pool.leaving[2] = false;
    pool.run().unwrap();
    assert_eq!((pool.segments(), pool.end), (150, 151));
    assert!(gaps(&pool.map, pool.end).is_empty());
}

#[test]
fn a_plan_may_end_anywhere() {
    let mut rng = Rng::new(14);
    for _ in 0..60 {
        let mut pool = random(&mut rng);
        pool.use_some(&mut rng, 40);
        let leaves = rng.index(pool.usable.len());
        pool.leaving[leaves] = true;
        pool.usable.push(rng.below(200));
        pool.leaving.push(false);
        let mut plans = 0;
        while let Ok(steps) = pool.plan() {
            let Some(step) = steps.into_iter().next() else { break };
            let (head, _) = step.split(1 + rng.below(16));
            pool.carry_out(&head);
            plans += 1;
            assert!(plans < 2000, "planning goes around in circles");
        }
        if pool.plan().is_ok() {
            assert_eq!(pool.segments(), pool.best());
        }
    }
}
