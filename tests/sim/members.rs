//! Devices of a mirror that go and come back as they were then, are replaced, join and leave.
//!
//! Nobody who reads or writes may notice any of it. At most one device is away or being filled at
//! a time. Devices that are no part of the pool are given at each opening too, as an operator
//! would who names all that there are.

use super::character::Done;
use super::inside::Outer;
use super::observe::{ensure, observe};
use super::prefix;
use super::world::{World, LARGEST_BLOCKS};
use lunfs::device::sim::{Rng, SimDevice};
use lunfs::device::BlockDevice;
use lunfs::fs::{DeviceStatus, Error, Fs};
use std::sync::Arc;

/// Steps of regeneration or rebalancing beyond which it goes round in circles.
const MAX_STEPS: u32 = 20_000;

impl World {
    fn device_named(&self, name: &str) -> Option<&Arc<SimDevice>> {
        self.devices.iter().find(|device| device.name() == name)
    }

    /// A device that is no part of the pool.
    fn spare(&self, all: &[DeviceStatus]) -> Option<&Arc<SimDevice>> {
        self.devices.iter().find(|device| all.iter().all(|d| d.path != device.name()))
    }

    /// One of what an operator or a loose cable does, or a step of what follows from it.
    pub(super) fn change_devices(&self, rng: &mut Rng) -> Done {
        let fs = self.fs()?;
        let all = fs.devices();
        let gone = self.gone.lock().clone();
        let missing = all.iter().find(|d| d.state == "missing").map(|d| d.path.clone());
        match gone.or(missing) {
            Some(name) => match (rng.below(4), all.iter().find(|d| d.path == name)) {
                (0, Some(old)) if old.state == "missing" => self.replace(&fs, old, &all),
                (0, _) => self.fill(&fs, rng),
                _ => self.come_back(&fs, &name),
            },
            None if !fs.is_whole() || !fs.is_settled() => self.fill(&fs, rng),
            None => self.leave_or_join(&fs, &all, rng),
        }
    }

    fn leave_or_join(&self, fs: &Arc<Fs>, all: &[DeviceStatus], rng: &mut Rng) -> Done {
        let Some(one) = all.get(rng.index(all.len().max(1))) else { return Ok(()) };
        match rng.below(8) {
            0 | 1 => {
                self.told("devices taken offline", || format!("offline {}", one.path));
                self.changed(fs.offline(one.slot), "offline")
            }
            2 | 3 => {
                self.told("devices that vanished", || format!("{} vanishes", one.path));
                *self.gone.lock() = Some(one.path.clone());
                self.device_named(&one.path).into_iter().for_each(|d| d.vanish(true));
                Ok(())
            }
            4 => self.replace(fs, one, all),
            5 => self.join(fs, all, rng),
            6 if all.len() > 2 => {
                self.told("devices removed", || format!("remove {}", one.path));
                self.changed(fs.remove_device(one.slot), "remove")
            }
            _ => self.fill(fs, rng),
        }
    }

    fn join(&self, fs: &Arc<Fs>, all: &[DeviceStatus], rng: &mut Rng) -> Done {
        let Some(device) = self.spare(all) else { return Ok(()) };
        let mut id = [0; 16];
        rng.fill(&mut id);
        self.told("devices added", || format!("add {}", device.name()));
        self.changed(fs.add_device(device.clone(), device.name(), id), "add")
    }

    fn replace(&self, fs: &Arc<Fs>, old: &DeviceStatus, all: &[DeviceStatus]) -> Done {
        let Some(device) = self.spare(all) else { return Ok(()) };
        self.told("devices replaced", || format!("replace {} by {}", old.path, device.name()));
        let device: Arc<dyn BlockDevice> = device.clone();
        self.changed(fs.replace(old.slot, &device, &device.name()), "replace")
    }

    /// The device that went is there again, as it was then.
    fn come_back(&self, fs: &Arc<Fs>, name: &str) -> Done {
        let Some(device) = self.device_named(name) else { return Ok(()) };
        self.told("devices back online", || format!("online {name}"));
        device.vanish(false);
        *self.gone.lock() = None;
        let dyn_device: Arc<dyn BlockDevice> = device.clone();
        match fs.online(&dyn_device) {
            // Power failed when it came new into another's place, before its own label was there.
            Err(Error::Format(_)) => {
                let others = || fs.devices().into_iter().filter(|d| d.path != name);
                let old = others().find(|d| d.state == "replace");
                let old = old.or_else(|| others().find(|d| d.state == "missing"));
                let old = old.ok_or_else(|| format!("{name} has no label"))?;
                self.changed(fs.replace(old.slot, &dyn_device, name), "replace again")
            }
            result => self.changed(result, "online"),
        }
    }

    /// A step of what the background would do.
    fn fill(&self, fs: &Arc<Fs>, rng: &mut Rng) -> Done {
        self.begin(Outer::default(), true);
        let result = match rng.below(2) {
            0 => {
                self.trace(|| "regenerate".to_string());
                fs.regenerate_step(1 + rng.below(4000)).map(|_| ())
            }
            _ => {
                self.trace(|| "rebalance".to_string());
                fs.rebalance_step(1 + rng.below(20)).map(|_| ())
            }
        };
        self.end();
        self.changed(result, "a step of filling")
    }

    fn told(&self, what: &'static str, say: impl FnOnce() -> String) {
        self.inner.lock().faults.add(what, 1);
        self.trace(say);
    }

    /// A change may be refused where it would leave something without a copy, or without room.
    fn changed<T>(&self, result: lunfs::fs::Result<T>, what: &str) -> Done {
        match result {
            Err(e @ (Error::Busy | Error::Invalid(_) | Error::NoRoomElsewhere { .. })) => {
                self.trace(|| format!("      refused: {e}"));
                Ok(())
            }
            result => self.unless_broken(result, what),
        }
    }

    /// All devices are there again and filled, and what one gained or gave up is where it belongs.
    pub(super) fn whole_again(&self) -> Done {
        let fs = self.fs()?;
        let missing = fs.devices().into_iter().find(|d| d.state == "missing");
        let gone = self.gone.lock().clone().or(missing.map(|d| d.path));
        gone.map_or(Ok(()), |name| self.come_back(&fs, &name))?;
        for _ in 0..MAX_STEPS {
            let filled = fs.regenerate_step(4000).map_err(|e| format!("regenerate: {e}"))?;
            let moved = fs.rebalance_step(16).map_err(|e| format!("rebalance: {e}"))?;
            if !filled && moved.is_done {
                return ensure(fs.is_whole(), || format!("never whole: {:?}", fs.devices()));
            }
            fs.consistency_point().map_err(|e| format!("filling: {e}"))?;
        }
        Err(format!("filling does not end: {:?}", fs.devices()))
    }

    /// Each device of a mirror alone: refused, or not older than what was acknowledged.
    pub(super) fn each_alone(&self, devices: &[Arc<SimDevice>], seed: u64) -> Done {
        for device in devices {
            let alone = Arc::new(device.after_crash(seed));
            let Ok(fs) = self.open_over(vec![alone.clone() as Arc<dyn BlockDevice>]) else {
                continue;
            };
            let name = device.name();
            let seen = observe(&fs, &mut Rng::new(seed)).map_err(|e| format!("{name} alone: {e}"));
            let inner = self.inner.lock();
            let found = prefix::find(&inner.base, &inner.log, inner.floor, &seen?);
            found.map_err(|e| format!("{name} alone, after power cut: {e}"))?;
        }
        Ok(())
    }
}

/// Further devices, no part of the pool yet.
pub(super) fn draw_spares(seed: u64, among: &[Arc<SimDevice>]) -> Vec<Arc<SimDevice>> {
    let mut rng = Rng::new(seed ^ 0x57A6E);
    let largest = among.iter().map(|d| d.block_count()).max().unwrap_or(0).min(LARGEST_BLOCKS);
    let spare = |n: usize| {
        let blocks = largest + [0, 256, 5 * 512 + 7][rng.index(3)];
        Arc::new(SimDevice::named(&format!("sim{}", among.len() + n), blocks, rng.bits()))
    };
    (0..2).map(spare).collect()
}
