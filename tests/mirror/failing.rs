//! One device fails at any call.

use crate::lab::*;
use lunfs::device::sim::SimDevice;
use lunfs::fs::Fs;
use std::sync::Arc;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    Write,
    Flush,
    Vanish,
}

fn strike(sim: &SimDevice, fault: Fault) {
    match fault {
        Fault::Write => sim.fail_writes(1),
        Fault::Flush => sim.fail_flushes(1),
        Fault::Vanish => sim.vanish(true),
    }
}

/// Every `STRIDE`th call: the runs of the three faults and two devices begin apart.
const STRIDE: usize = 5;

#[test]
fn either_device_may_fail_at_any_call() {
    let base = mirror();
    let trial = crashed(&base, 1);
    let total = calls(&trial, || {
        let fs = open(&trial).expect("open");
        assert!(steps(&fs, 1, STEPS).1.is_none());
    });
    let mut runs = 0;
    for (k, fault) in [Fault::Write, Fault::Flush, Fault::Vanish].into_iter().enumerate() {
        for victim in 0..2 {
            for n in (1 + ((2 * k + victim) % STRIDE) as u64..=total).step_by(STRIDE) {
                fail_once(&base, victim, fault, n);
                runs += 1;
            }
        }
    }
    assert!(runs > 50, "{runs}");
}

fn fail_once(base: &Sims, victim: usize, fault: Fault, n: u64) {
    let what = format!("{fault:?} of device {victim} at call {n}");
    let sims = crashed(base, 1);
    let struck = sims[victim].clone();
    at_call(&sims, n, move || strike(&struck, fault));
    // A device that is gone while the pool is opened is one that is missing.
    let fs = match open(&sims) {
        Ok(fs) => fs,
        Err(e) => {
            assert!(fault == Fault::Vanish, "{what}: {e}");
            sims.iter().for_each(|s| s.on_io(None));
            let e = open(&sims).map(|_| ()).expect_err(&what).to_string();
            assert!(e.contains("missing"), "{what}: {e}");
            Fs::open(handles(&sims), degraded(3)).unwrap_or_else(|e| panic!("{what}: {e}"))
        }
    };
    let (acknowledged, failure) = steps(&fs, 1, STEPS);
    assert!(failure.is_none(), "{what}: {failure:?}");
    sims.iter().for_each(|s| s.on_io(None));
    let left = states(&fs)[victim] == "missing";
    assert!(left || fault != Fault::Vanish || sims[victim].calls() == 0, "{what}: not recorded");
    assert!(!left || !fs.device_events().is_empty(), "{what}: no word of it");
    drop(fs);
    if left {
        expect_one_side(&sims, victim, acknowledged, &what);
    }
}

/// The victim is stale: the other one alone will do, with it or without it; never it alone.
fn expect_one_side(sims: &Sims, victim: usize, acknowledged: u64, what: &str) {
    let after = crashed(sims, 9);
    let (stale, good) = (after[victim].clone(), after[1 - victim].clone());
    let refused = open(std::slice::from_ref(&stale)).map(|_| ()).expect_err(what);
    assert!(refused.to_string().contains("missing"), "{what}: {refused}");
    expect_sound(std::slice::from_ref(&good), what);
    let alone = crashed(std::slice::from_ref(&good), 2);
    let fs = open(&alone).unwrap_or_else(|e| panic!("{what}: the good one alone: {e}"));
    expect_state(&fs, acknowledged, STEPS, what);
    drop(fs);
    let fs = open(&[stale, good]).unwrap_or_else(|e| panic!("{what}: both: {e}"));
    expect_state(&fs, acknowledged, STEPS, what);
    assert_eq!(states(&fs)[victim], "missing", "{what}");
}

#[test]
fn power_may_fail_while_a_failure_is_recorded() {
    let base = mirror();
    let run = |cut: u64| {
        let sims = crashed(&base, 1);
        let fs = open(&sims).expect("open");
        assert!(steps(&fs, 1, 5).1.is_none());
        sims[1].fail_writes(1);
        let both = sims.clone();
        at_call(&sims, cut, move || both.iter().for_each(|s| s.cut_power()));
        let (acknowledged, failure) = steps(&fs, 6, STEPS);
        drop(fs);
        sims.iter().for_each(|s| s.on_io(None));
        let what = format!("power cut at call {cut}");
        for seed in [3, 4] {
            let after = crashed(&sims, seed);
            let fs = open(&after).unwrap_or_else(|e| panic!("{what}: {e}"));
            expect_state(&fs, acknowledged, acknowledged + 1, &what);
            drop(fs);
            expect_sound(&after, &what);
            let alone: Vec<Arc<SimDevice>> = crashed(&sims[..1], seed);
            let fs = Fs::open(handles(&alone), degraded(8));
            let fs = fs.unwrap_or_else(|e| panic!("{what}: alone: {e}"));
            expect_state(&fs, acknowledged, acknowledged + 1, &what);
        }
        failure.is_some()
    };
    let mut cut = 1;
    while run(cut) {
        cut += 1;
    }
    assert!(cut > 20, "{cut}");
}

#[test]
fn without_another_copy_the_pool_latches() {
    let sims = pool_of(2, lunfs::fs::Redundancy::None);
    let fs = open(&sims).expect("open");
    assert!(steps(&fs, 1, 3).1.is_none());
    sims[0].vanish(true);
    sims[1].vanish(true);
    assert!(steps(&fs, 4, STEPS).1.is_some());
    assert!(fs.stats().latched.is_some());
    assert!(fs.offline(0).is_err());
}

#[test]
fn garbage_on_one_device_is_served_from_the_other() {
    for victim in 0..2 {
        let sims = mirror();
        let fs = open(&sims).expect("open");
        assert!(steps(&fs, 1, STEPS).1.is_none());
        drop(fs);
        let sims = crashed(&sims, 1);
        spoil(&sims[victim]);
        let fs = open(&sims).expect("open over garbage");
        expect_state(&fs, STEPS, STEPS, "garbage");
        fs.scrub_start().expect("scrub");
        while fs.scrub_step(1000).expect("scrub") {}
        assert_eq!(fs.scrub_status().bad, 0);
        assert_eq!(states(&fs), ["normal", "normal"]);
        drop(fs);
        expect_each_alone(&sims, STEPS, "after the scrub");
    }
}

#[test]
fn threads_go_on_without_a_device() {
    for fault in [Fault::Write, Fault::Flush, Fault::Vanish] {
        let sims = mirror();
        let background = lunfs::fs::OpenOptions { background: true, ..options() };
        let fs = Fs::open(handles(&sims), background).expect("open");
        file(&fs).expect("file");
        let struck = sims[1].clone();
        at_call(&sims, 40, move || strike(&struck, fault));
        std::thread::scope(|s| {
            for t in 0..3u64 {
                let fs = &fs;
                s.spawn(move || {
                    let file = file(fs).expect("file");
                    for i in 0..60u64 {
                        let at = (1000 + t * 100 + i) * BLOCK as u64;
                        file.write_at(at, &[(t + i) as u8 + 1; BLOCK]).expect("write");
                        file.sync().expect("sync");
                    }
                });
            }
        });
        assert_eq!(states(&fs), ["normal", "missing"], "{fault:?}");
        drop(fs);
        let good = crashed(&sims[..1], 4);
        let fs = open(&good).expect("open without it");
        let file = file(&fs).expect("file");
        for t in 0..3u64 {
            for i in 0..60u64 {
                let mut got = [0; BLOCK];
                file.read_at((1000 + t * 100 + i) * BLOCK as u64, &mut got).expect("read");
                assert!(got == [(t + i) as u8 + 1; BLOCK], "{fault:?} {t} {i}");
            }
        }
    }
}
