//! A device in another's place: who is believed at each moment, whatever fails then.

use crate::lab::*;
use lunfs::device::sim::SimDevice;
use lunfs::device::BlockDevice;
use lunfs::fs::planted::{plant, Mutation};
use lunfs::fs::{Fs, Redundancy, Result};
use std::sync::Arc;

fn dynamic(sim: &Arc<SimDevice>) -> Arc<dyn BlockDevice> {
    sim.clone()
}

/// What happens to the devices `a` (replaced) and `c` (new).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    PowerCut,
    OldOneVanishes,
}

/// `a` is replaced by `c`, with a fault at call `call`: both afterwards, through which step all was
/// acknowledged, and whether the fault did any harm.
fn replace_with(fault: Fault, call: u64) -> (Sims, u64, bool) {
    let mut sims = pool_of(1, Redundancy::None);
    let fs = open(&sims).expect("open");
    assert!(steps(&fs, 1, 4).1.is_none());
    sims.push(devices(3)[2].clone());
    let all = sims.clone();
    at_call(&sims, call, move || match fault {
        Fault::PowerCut => all.iter().for_each(|s| s.cut_power()),
        Fault::OldOneVanishes => all[0].vanish(true),
    });
    let mut acknowledged = 4;
    let mut work = || -> Result<()> {
        fs.replace(0, &dynamic(&sims[1]), "/dev/c")?;
        while fs.regenerate_step(300)? {
            acknowledged = acknowledged.max(steps(&fs, acknowledged + 1, acknowledged + 1).0);
        }
        Ok(())
    };
    let failed = work().is_err();
    acknowledged = steps(&fs, acknowledged + 1, acknowledged + 1).0;
    drop(fs);
    sims.iter().for_each(|s| s.on_io(None));
    (sims, acknowledged, failed)
}

/// Where a device alone shows less than what was acknowledged, without being asked to.
fn stale_ones(fault: Fault) -> Vec<String> {
    let mut stale = Vec::new();
    for call in 1.. {
        let (sims, acknowledged, failed) = replace_with(fault, call);
        let [old, new] = [0, 1].map(|n: usize| vec![crashed(&sims, 3)[n].clone()]);
        let mut known = acknowledged;
        // The new one goes on alone, as far as it may: then the other one counts no more.
        if let Ok(fs) = Fs::open(handles(&new), degraded(5)) {
            known = expect_new(&fs, acknowledged) + 1;
            assert!(step(&fs, known).is_ok());
        }
        if let Ok(fs) = open(&old) {
            let now = read(&fs).expect("read");
            let is_new = (acknowledged..=acknowledged + 1).any(|s| now == content(s));
            if !is_new || known > acknowledged {
                stale.push(format!("{fault:?} at call {call}"));
            }
        }
        if !failed {
            assert!(call > 50, "{call}");
            break;
        }
    }
    stale
}

fn expect_new(fs: &Arc<Fs>, acknowledged: u64) -> u64 {
    expect_state(fs, acknowledged, acknowledged + 1, "the new device alone")
}

/// The label of the device that is replaced once said of the new one that it is being filled, for
/// as long as the device was there: given alone after the new one had gone on, it was served.
#[test]
fn what_was_replaced_is_never_served_in_the_place_of_what_came_after() {
    for fault in [Fault::PowerCut, Fault::OldOneVanishes] {
        assert_eq!(stale_ones(fault), Vec::<String>::new());
    }
    plant(Some(Mutation::FilledOneKnowsFirst));
    let stale = stale_ones(Fault::PowerCut);
    plant(None);
    assert!(!stale.is_empty(), "the planted bug is not seen");
}

/// How a new device comes into a pool; its slot.
type Join = fn(&Arc<Fs>, Arc<dyn BlockDevice>) -> Result<u16>;

/// A device that has no label yet, or half of one, is nobody that the others wait for.
#[test]
fn power_may_fail_while_a_new_device_gets_its_label() {
    let adds = |fs: &Arc<Fs>, new| fs.add_device(new, "/dev/c".into(), [3; 16]);
    let replaces = |fs: &Arc<Fs>, new| fs.replace(0, &new, "/dev/c");
    let joins: [Join; 2] = [adds, replaces];
    for (n, join) in joins.into_iter().enumerate() {
        let mut base = mirror();
        let fs = open(&base).expect("open");
        assert!(steps(&fs, 1, 4).1.is_none());
        drop(fs);
        base.push(devices(3)[2].clone());
        for call in 1.. {
            let sims = crashed(&base, 1);
            let fs = open(&sims[..2]).expect("open");
            let all = sims.clone();
            at_call(&sims, call, move || all.iter().for_each(|s| s.cut_power()));
            let failed = join(&fs, dynamic(&sims[2])).is_err();
            drop(fs);
            sims.iter().for_each(|s| s.on_io(None));
            for seed in [1, 10, 20, 30] {
                let what = format!("joining {n}, power cut at call {call}, seed {seed}");
                let fs = open(&crashed(&sims, seed)).unwrap_or_else(|e| panic!("{what}: {e}"));
                expect_state(&fs, 4, 4, &what);
            }
            if !failed {
                assert!(call > 10, "{call}");
                break;
            }
        }
    }
}
