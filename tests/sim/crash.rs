//! Power cuts: what is left is recovered, through further power cuts, and must be a legal prefix.

use super::character::Done;
use super::model::Model;
use super::observe::{ensure, observe};
use super::prefix;
use super::world::{as_dyn, World};
use lunfs::device::sim::{Rng, SimDevice};
use lunfs::fs::Fs;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::Arc;

/// Times that recovery itself may lose its power in a row.
const CRASHES_IN_RECOVERY: u32 = 4;

impl World {
    /// The power fails (if it has not yet); then recovery, and a look at what is there.
    pub(super) fn crash(&self, rng: &mut Rng) -> Done {
        self.trace(|| "--- power cut".to_string());
        for _ in 0..if self.broken.load(SeqCst) { 2 } else { 0 } {
            self.sync(rng)?;
        }
        self.devices.iter().for_each(|device| device.cut_power());
        let files = std::mem::take(&mut self.inner.lock().files);
        drop(files);
        *self.fs.lock() = None;
        self.inner.lock().crashes += 1;
        self.broken.store(false, SeqCst);
        *self.gone.lock() = None;
        for _ in 0..rng.below(3) {
            self.explore(rng.bits())?;
        }
        let (fs, seen) = self.recover(rng)?;
        let inner = &mut *self.inner.lock();
        let found = prefix::find(&inner.base, &inner.log, inner.floor, &seen)?;
        let lost = inner.log.len() - found.entries;
        self.trace(|| format!("--- recovered, {lost} operations lost"));
        inner.digest.update(&(lost as u64).to_le_bytes());
        found.model.digest(&mut inner.digest);
        inner.start_from(found.model);
        *self.fs.lock() = Some(fs);
        Ok(())
    }

    /// What another fate of the unflushed writes would have left, on copies of the devices.
    fn explore(&self, seed: u64) -> Done {
        let copies: Vec<_> = (0..)
            .zip(&self.devices)
            .map(|(n, device)| Arc::new(device.after_crash(seed ^ n)))
            .collect();
        self.check(&copies)?;
        if self.is_mirror() {
            self.each_alone(&copies, seed)?;
        }
        let fs = self.open_over(as_dyn(&copies)).map_err(|e| format!("recovery: {e}"))?;
        let seen = observe(&fs, &mut Rng::new(seed)).map_err(|e| format!("recovered: {e}"))?;
        {
            let inner = &mut *self.inner.lock();
            inner.faults.add("other fates explored", 1);
            prefix::find(&inner.base, &inner.log, inner.floor, &seen)?;
        }
        copies.iter().for_each(|device| device.cut_power());
        drop(fs);
        copies.iter().for_each(|device| {
            device.crash(seed);
        });
        self.check(&copies)
    }

    /// Powers on and opens, through power cuts in the middle of that.
    fn recover(&self, rng: &mut Rng) -> Done<(Arc<Fs>, Model)> {
        for attempt in 0..=CRASHES_IN_RECOVERY {
            self.devices.iter().for_each(|device| {
                device.crash(rng.bits());
            });
            self.cut_at.store(0, SeqCst);
            if rng.chance(1, 2) {
                self.check(&self.devices)?;
            }
            if attempt < CRASHES_IN_RECOVERY && rng.chance(1, 3) {
                let within = [4, 20, 100][rng.index(3)];
                self.cut_when.store(rng.below(4), SeqCst);
                self.cut_at.store(self.calls.load(SeqCst) + 1 + rng.below(within), SeqCst);
            }
            let opened = self.open().map_err(|e| format!("recovery: {e}"));
            let seen = opened.and_then(|fs| observe(&fs, rng).map(|seen| (fs, seen)));
            match seen {
                Ok(done) if !self.power_is_off() => {
                    self.cut_at.store(0, SeqCst);
                    return Ok(done);
                }
                Err(e) if !self.power_is_off() => return Err(format!("recovered: {e}")),
                _ => {
                    let inner = &mut *self.inner.lock();
                    inner.crashes += 1;
                    inner.faults.add("power cuts in recovery", 1);
                }
            }
        }
        Err("recovery failed without a power cut".to_string())
    }

    /// The offline check must find nothing.
    pub(super) fn check(&self, devices: &[Arc<SimDevice>]) -> Done {
        let written = |d: &[Arc<SimDevice>]| -> u64 {
            d.iter().map(|device| device.counters().blocks_written).sum()
        };
        let before = written(devices);
        let found = super::check::check(&as_dyn(devices));
        // The schedule's power cut may come while it reads.
        if devices.iter().any(|device| device.power_is_off()) {
            return Ok(());
        }
        // A mirror's copy may be bad: that is what the other one is for.
        if !self.hurt.load(SeqCst) {
            found?;
        }
        ensure(written(devices) == before, || "check has written to the devices".to_string())
    }
}
