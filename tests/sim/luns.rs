//! Runs of the LUN layer on simulated devices: disks as block clients and files see them, through
//! power cuts, failing devices and a mirror's loss, beside a plain model.
//!
//! `states` holds what the disks may be found as after a power cut: the first is durable, the last
//! is what they are. Inside a call of one disk, others are written, and consistency points run:
//! which came first nobody says, so the states between are all held.

use super::character::{Config, Done, Failure, Report, SimClock, Tally};
use super::disks::{difference, Call, Disk, Disks};
use super::model::BLOCK;
use super::observe::ensure;
use super::ops::Data;
use super::world::as_dyn;
use lunfs::device::sim::{IoEvent, Rng, SimDevice};
use lunfs::device::BlockDevice;
use lunfs::fs::{Clock, FormatOptions, Fs, OpenOptions, Redundancy, ATOMIC_WRITE_BYTES};
use lunfs::lun::{
    AttachRequest, Attachment, BlockError, BlockIo, Catalog, CatalogOptions, CreateLun, OpenIntent,
};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Weak};

const SECTOR: u64 = 512;
const MIB: u64 = 1 << 20;
/// Disks at a time.
const MAX_DISKS: usize = 4;
/// Blocks of all disks together: a third of the smallest pool.
const MAX_BLOCKS: usize = 5000;
/// Steps of one seed here for each of another kind: these are cheap.
const STEPS_EACH: u64 = 4;

struct Pool {
    fs: Arc<Fs>,
    catalog: Arc<Catalog>,
    sessions: BTreeMap<String, Arc<Attachment>>,
}

struct Inner {
    rng: Rng,
    states: Vec<Disks>,
    /// The disk that a call is under way on, and the states that calls inside it made.
    outer: Option<String>,
    operations: u64,
    crashes: u64,
    faults: Tally,
    digest: blake3::Hasher,
    failure: Option<String>,
}

struct World {
    config: Config,
    devices: Vec<Arc<SimDevice>>,
    clock: Arc<SimClock>,
    pool: Mutex<Option<Arc<Pool>>>,
    inner: Mutex<Inner>,
    calls: AtomicU64,
    cut_at: AtomicU64,
    may_nest: AtomicBool,
    /// A fault was asked for that must be told.
    broken: AtomicBool,
    nest_one_in: u64,
}

fn text(e: impl std::fmt::Display) -> String {
    e.to_string()
}

/// Runs one schedule.
pub fn report(config: &Config) -> Result<Report, Failure> {
    let at = AtomicU64::new(0);
    let inside = std::panic::AssertUnwindSafe(|| -> Done<Report> {
        let world = World::new(config)?;
        for step in 0..config.steps * STEPS_EACH {
            at.store(step / STEPS_EACH, SeqCst);
            if !config.skip.contains(&(step / STEPS_EACH)) {
                world.step(step)?;
            }
        }
        world.end()
    });
    let result = std::panic::catch_unwind(inside).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().cloned();
        let said = said.or(panic.downcast_ref::<&str>().map(|s| s.to_string()));
        Err(format!("panic: {}", said.unwrap_or_default()))
    });
    result.map_err(|why| Failure { step: at.load(SeqCst), why: format!("disks: {why}") })
}

impl World {
    fn new(config: &Config) -> Done<Arc<World>> {
        let mut rng = Rng::new(config.seed ^ 0x10D5);
        let count = 1 + rng.index(2);
        let device = |n| Arc::new(SimDevice::named(&format!("sim{n}"), 64 * 256, rng.bits()));
        let devices: Vec<Arc<SimDevice>> = (0..count).map(device).collect();
        let options = FormatOptions {
            pool_id: [config.seed as u8; 16],
            created: lunfs::fs::Timestamp(1),
            paths: devices.iter().map(|device| device.name()).collect(),
            redundancy: if count > 1 { Redundancy::Mirror } else { Redundancy::None },
        };
        Fs::format(&as_dyn(&devices), &options).map_err(text)?;
        let inner = Inner {
            rng: rng.fork(),
            states: vec![Disks::new()],
            outer: None,
            operations: 0,
            crashes: 0,
            faults: Tally::default(),
            digest: blake3::Hasher::new(),
            failure: None,
        };
        let world = Arc::new(World {
            config: config.clone(),
            devices,
            clock: Arc::new(SimClock::new()),
            pool: Mutex::default(),
            inner: Mutex::new(inner),
            calls: AtomicU64::new(0),
            cut_at: AtomicU64::new(0),
            may_nest: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            nest_one_in: [2, 8, 1_000_000][rng.index(3)],
        });
        world.open()?;
        for device in &world.devices {
            let weak: Weak<World> = Arc::downgrade(&world);
            device.on_io(Some(Arc::new(move |event: &IoEvent| {
                weak.upgrade().into_iter().for_each(|world| world.on_io(event));
            })));
        }
        Ok(world)
    }

    fn options(&self) -> OpenOptions {
        let clock = self.clock.clone();
        OpenOptions { cache_bytes: 2 << 20, clock, background: false, ..OpenOptions::default() }
    }

    fn open(&self) -> Done {
        let fs = Fs::open(as_dyn(&self.devices), self.options()).map_err(text)?;
        let clock: Arc<dyn Clock> = self.clock.clone();
        let catalog = Catalog::open(fs.clone(), CatalogOptions::new(clock)).map_err(text)?;
        ensure(catalog.unusable().is_empty(), || format!("unusable: {:?}", catalog.unusable()))?;
        *self.pool.lock() = Some(Arc::new(Pool { fs, catalog, sessions: BTreeMap::new() }));
        Ok(())
    }

    fn pool(&self) -> Done<Arc<Pool>> {
        self.pool.lock().clone().ok_or_else(|| "no pool is open".to_string())
    }

    fn power_is_off(&self) -> bool {
        self.devices.iter().any(|device| device.power_is_off())
    }

    fn may_fail(&self) -> bool {
        self.power_is_off() || self.broken.load(SeqCst)
    }

    fn now(&self) -> Disks {
        self.inner.lock().states.last().cloned().unwrap_or_default()
    }

    fn trace(&self, say: impl FnOnce() -> String) {
        if self.config.trace {
            eprintln!("{}", say());
        }
    }

    /// All that is there now is durable.
    fn durable(&self) {
        let inner = &mut *self.inner.lock();
        let all = inner.states.len();
        inner.states.drain(..all - 1);
    }

    fn step(&self, step: u64) -> Done {
        let mut rng = Rng::new(self.config.seed.wrapping_mul(0x9E37_79B9).wrapping_add(step));
        self.clock.advance(&mut rng);
        if self.cut_at.load(SeqCst) == 0 && rng.chance(1, 40) {
            let within = [3, 12, 60][rng.index(3)];
            self.cut_at.store(self.calls.load(SeqCst) + 1 + rng.below(within), SeqCst);
        }
        if rng.chance(1, 150) {
            self.inject(&mut rng);
        }
        let done = match rng.below(40) {
            0 => self.crash(&mut rng),
            1..=4 => self.sync(&mut rng),
            5..=8 => self.change_disks(&mut rng),
            9..=13 => self.look(&mut rng),
            14 => self.compare(),
            _ => self.call(&mut rng),
        };
        done?;
        if let Some(why) = self.inner.lock().failure.take() {
            return Err(why);
        }
        match self.may_fail() {
            true => self.crash(&mut rng),
            false => Ok(()),
        }
    }

    /// Of a mirror the first device fails, and nobody notices; of one device alone it is told.
    fn inject(&self, rng: &mut Rng) {
        let device = &self.devices[0];
        self.broken.store(self.devices.len() == 1, SeqCst);
        let what = match rng.below(3) {
            0 => {
                device.fail_writes(1);
                "write errors under disks"
            }
            1 => {
                device.fail_flushes(1);
                "flush errors under disks"
            }
            _ => {
                device.vanish(true);
                "vanished devices under disks"
            }
        };
        self.trace(|| format!("--- {what}"));
        self.inner.lock().faults.add(what, 1);
    }

    fn on_io(&self, event: &IoEvent) {
        if !event.done {
            let call = self.calls.fetch_add(1, SeqCst) + 1;
            let cut_at = self.cut_at.load(SeqCst);
            if cut_at != 0 && call >= cut_at {
                self.devices.iter().for_each(|device| device.cut_power());
            }
        }
        if self.may_fail() || !self.may_nest.swap(false, SeqCst) {
            return;
        }
        if let Err(why) = self.inside() {
            self.inner.lock().failure.get_or_insert(format!("inside another call: {why}"));
        }
        self.may_nest.store(true, SeqCst);
    }

    fn inside(&self) -> Done {
        let pool = self.pool()?;
        let mut rng = self.inner.lock().rng.fork();
        if !rng.chance(1, self.nest_one_in) {
            return Ok(());
        }
        let free = pool.fs.free_locks();
        if !free.space || !free.members || !free.log {
            return Ok(());
        }
        match rng.below(4) {
            0 => self.told(pool.fs.consistency_point()).map(drop),
            1 => self.told(pool.fs.sync()).map(drop),
            _ => {
                let outer = self.inner.lock().outer.clone();
                let others = pool.sessions.iter().filter(|(name, _)| Some(*name) != outer.as_ref());
                let others: Vec<_> = others.collect();
                let Some((name, session)) = others.get(rng.index(others.len().max(1))) else {
                    return Ok(());
                };
                let call = self.draw(&mut rng, name, 60_000);
                match call.filter(|call| !call.is_of_files()) {
                    Some(call) => self.perform(&pool, name, session, &call, true),
                    None => Ok(()),
                }
            }
        }
    }

    /// An error only where the schedule asked for one; whether it succeeded.
    fn told<T, E: std::fmt::Display>(&self, result: Result<T, E>) -> Done<bool> {
        match result {
            Err(e) if !self.may_fail() => Err(text(e)),
            result => Ok(result.is_ok()),
        }
    }

    fn sync(&self, rng: &mut Rng) -> Done {
        let pool = self.pool()?;
        let sessions: Vec<_> = pool.sessions.values().collect();
        let before = self.inner.lock().states.len();
        self.may_nest.store(true, SeqCst);
        let done = match (rng.below(4), sessions.get(rng.index(sessions.len().max(1)))) {
            (0, _) => self.told(pool.fs.consistency_point()),
            (1, _) => self.told(pool.fs.maintain()),
            (_, Some(session)) => self.told(session.flush()),
            _ => self.told(pool.fs.sync()),
        };
        self.may_nest.store(false, SeqCst);
        // What came inside may have come after it.
        if done? && self.inner.lock().states.len() == before {
            self.durable();
        }
        Ok(())
    }

    /// Disks are made, renamed, resized, set and deleted, sessions begin and end.
    fn change_disks(&self, rng: &mut Rng) -> Done {
        let now = self.now();
        let names: Vec<&String> = now.keys().collect();
        let some = names.get(rng.index(names.len().max(1))).map(|name| name.to_string());
        let new = format!("disk{}", rng.below(9));
        let mut next = now.clone();
        let pool = self.pool()?;
        let (catalog, size) = (&pool.catalog, SECTOR * 8 * (1 + rng.below(4 * 256)));
        let result = match (rng.below(8), some) {
            (0..=2, _) | (_, None) => {
                if now.contains_key(&new) || now.len() >= MAX_DISKS {
                    return Ok(());
                }
                let disk = Disk { size, vendor: "LUNFS".into(), ..Disk::default() };
                next.insert(new.clone(), disk);
                let request = CreateLun { size_bytes: size, ..CreateLun::default() };
                self.trace(|| format!("create {new} of {size}"));
                catalog.create(&new, &request).map(drop)
            }
            (3, Some(name)) if !now.contains_key(&new) => {
                drop(pool);
                self.log_out(&name)?;
                self.trace(|| format!("rename {name} to {new}"));
                let disk = next.remove(&name).unwrap_or_default();
                next.insert(new.clone(), disk);
                self.pool()?.catalog.rename(&name, &new)
            }
            (4, Some(name)) => {
                drop(pool);
                self.log_out(&name)?;
                self.trace(|| format!("delete {name}"));
                next.remove(&name);
                self.pool()?.catalog.delete(&name, <_>::default())
            }
            (5, Some(name)) => {
                self.trace(|| format!("resize {name} to {size}"));
                next.get_mut(&name).into_iter().for_each(|disk| disk.resize(size));
                catalog.get(&name).and_then(|lun| lun.resize(size, true))
            }
            (6, Some(name)) => {
                let vendor = format!("V{}", rng.below(1000));
                self.trace(|| format!("set {name} vendor {vendor}"));
                next.get_mut(&name).into_iter().for_each(|d| d.vendor.clone_from(&vendor));
                catalog.get(&name).and_then(|lun| lun.set(&[("vendor".into(), vendor)]))
            }
            (_, Some(name)) => {
                drop(pool);
                return self.log_out(&name);
            }
        };
        let inner = &mut *self.inner.lock();
        inner.operations += 1;
        inner.states.push(next);
        if let Err(e) = result {
            return ensure(self.may_fail(), || format!("changing disks: {e}"));
        }
        // Durable on return.
        let all = inner.states.len();
        inner.states.drain(..all - 1);
        Ok(())
    }

    fn log_out(&self, name: &str) -> Done {
        let mut held = self.pool.lock();
        let pool = held.as_mut().and_then(Arc::get_mut).ok_or("the pool is in use")?;
        let session = pool.sessions.remove(name);
        drop(held);
        session.into_iter().for_each(|session| session.logout());
        Ok(())
    }

    fn session(&self, name: &str) -> Done<Option<Arc<Attachment>>> {
        let pool = self.pool()?;
        if let Some(session) = pool.sessions.get(name) {
            return Ok(Some(session.clone()));
        }
        let request = AttachRequest {
            door: "iscsi",
            client: format!("client of {name}"),
            peer: "127.0.0.1:40000".into(),
            writable: true,
        };
        let session = match pool.catalog.get(name).and_then(|lun| lun.attach(request)) {
            Err(_) if self.may_fail() => return Ok(None),
            session => session.map_err(text)?,
        };
        drop(pool);
        let mut held = self.pool.lock();
        let pool = held.as_mut().and_then(Arc::get_mut).ok_or("the pool is in use")?;
        pool.sessions.insert(name.to_string(), session.clone());
        Ok(Some(session))
    }

    fn draw(&self, rng: &mut Rng, name: &str, longest: u64) -> Option<Call> {
        let now = self.now();
        let disk = now.get(name)?;
        let held: usize = now.values().map(|disk| disk.blocks.len()).sum();
        if held > MAX_BLOCKS {
            return Some(Call::Unmap { at: 0, len: disk.size });
        }
        let at = SECTOR * rng.below(disk.size / SECTOR);
        let at = if rng.chance(1, 3) { at / BLOCK * BLOCK } else { at };
        let len = match rng.below(12) {
            0..=5 => SECTOR * (1 + rng.below(24)),
            6..=8 => BLOCK * (1 + rng.below(16)),
            9..=10 => SECTOR * (1 + rng.below(600)),
            _ => SECTOR * (1 + rng.below(3 * MIB / SECTOR)),
        };
        let len = len.min(longest / SECTOR * SECTOR).min(disk.size - at);
        let data = Data { len: len as usize, seed: rng.bits() };
        let short = Data { len: data.len.min(ATOMIC_WRITE_BYTES), ..data };
        Some(match rng.below(16) {
            0..=6 => Call::Write { at, data, fua: rng.chance(1, 6) },
            7..=8 => {
                let len = if rng.chance(1, 6) { disk.size - at } else { len };
                Call::Unmap { at, len }
            }
            9 => Call::Zeroes { at, len, may_unmap: rng.chance(1, 2) },
            10..=11 => Call::Swap { at, data: short, hits: rng.chance(3, 4) },
            12 => Call::Or { at, data: short },
            13..=14 => Call::File { at, data },
            _ => Call::FilePunch { at, len },
        })
    }

    fn call(&self, rng: &mut Rng) -> Done {
        let now = self.now();
        let names: Vec<&String> = now.keys().collect();
        let Some(name) = names.get(rng.index(names.len().max(1))).map(|n| n.to_string()) else {
            return self.change_disks(rng);
        };
        let Some(call) = self.draw(rng, &name, 3 * MIB) else { return Ok(()) };
        if call.is_of_files() {
            self.log_out(&name)?;
            return self.write_file(&name, &call);
        }
        let Some(session) = self.session(&name)? else { return Ok(()) };
        let pool = self.pool()?;
        self.inner.lock().outer = Some(name.clone());
        self.may_nest.store(rng.chance(1, 2), SeqCst);
        let done = self.perform(&pool, &name, &session, &call, false);
        self.may_nest.store(false, SeqCst);
        self.inner.lock().outer = None;
        done
    }

    fn perform(
        &self,
        pool: &Pool,
        name: &str,
        session: &Attachment,
        call: &Call,
        inside: bool,
    ) -> Done {
        self.trace(|| format!("{}{name} {call:?}", if inside { "    inside: " } else { "" }));
        let _ = pool;
        let (before, disk) = {
            let inner = self.inner.lock();
            let disk = inner.states.last().and_then(|now| now.get(name)).cloned();
            (inner.states.len(), disk.unwrap_or_default())
        };
        let result = match call {
            Call::Write { at, data, fua } => {
                let quick = Some(session).filter(|_| !fua && data.seed % 2 == 0);
                let done = quick.and_then(|s| s.try_write(*at, &data.bytes()));
                done.unwrap_or_else(|| session.write(*at, &data.bytes(), *fua))
            }
            Call::Unmap { at, len } => session.unmap(*at, *len),
            Call::Zeroes { at, len, may_unmap } => session.write_zeroes(*at, *len, *may_unmap),
            Call::Swap { at, data, hits } => {
                let mut expect = disk.read(*at, data.len as u64);
                let flipped = data.seed as usize % data.len;
                expect[flipped] ^= u8::from(!hits);
                match session.compare_and_write(*at, &expect, &data.bytes()) {
                    Err(BlockError::Miscompare { offset_bytes }) if !hits => {
                        ensure(offset_bytes == flipped as u64, || "another difference".into())?;
                        Ok(())
                    }
                    Ok(()) if !hits => return Err("a miscompare was written".into()),
                    other => other,
                }
            }
            Call::Or { at, data } => session.or_write(*at, &data.bytes()),
            Call::File { .. } | Call::FilePunch { .. } => Ok(()),
        };
        let fua = matches!(call, Call::Write { fua: true, .. });
        self.enter(name, call, &disk, before, result.is_ok())?;
        let alone = self.inner.lock().states.len() == before + call.outcomes(&disk).len();
        if result.is_ok() && fua && alone && !inside {
            self.durable();
        }
        self.told(result).map(drop)
    }

    /// States that this call and those inside it may leave: `before` is how many there were.
    fn enter(&self, name: &str, call: &Call, disk: &Disk, before: usize, done: bool) -> Done {
        let inner = &mut *self.inner.lock();
        inner.operations += 1;
        inner.digest.update(format!("{name} {call:?} {done}").as_bytes());
        let outcomes = call.outcomes(disk);
        let between: Vec<Disks> = inner.states[before - 1..].to_vec();
        for state in between {
            for outcome in &outcomes {
                let mut next = state.clone();
                next.insert(name.to_string(), outcome.clone());
                inner.states.push(next);
            }
        }
        Ok(())
    }

    /// A file of the mount, opened and closed around one change.
    fn write_file(&self, name: &str, call: &Call) -> Done {
        self.trace(|| format!("{name} {call:?}"));
        let pool = self.pool()?;
        let disk = self.now().get(name).cloned().unwrap_or_default();
        let before = self.inner.lock().states.len();
        let intent = OpenIntent { read: false, write: true, truncate: false };
        let change = || -> Result<(), lunfs::lun::Error> {
            let file = pool.catalog.get(name)?.open_file(intent)?;
            let done = match call {
                Call::File { at, data } => file.write_at(*at, &data.bytes()),
                Call::FilePunch { at, len } => file.punch(*at, *len),
                _ => Ok(()),
            };
            file.flush();
            done
        };
        let result = change();
        self.enter(name, call, &disk, before, result.is_ok())?;
        self.told(result).map(drop)
    }

    /// Reads a range of a disk, and asks where its data is.
    fn look(&self, rng: &mut Rng) -> Done {
        let now = self.now();
        let names: Vec<&String> = now.keys().collect();
        let Some(name) = names.get(rng.index(names.len().max(1))) else { return Ok(()) };
        let disk = &now[*name];
        let Some(session) = self.session(name)? else { return Ok(()) };
        let at = SECTOR * rng.below(disk.size / SECTOR);
        let len = (SECTOR * (1 + rng.below(800))).min(disk.size - at);
        self.trace(|| format!("{name} read {at}+{len}"));
        let mut out = vec![0xEE; len as usize];
        self.inner.lock().outer = Some(name.to_string());
        self.may_nest.store(true, SeqCst);
        let read = session.try_read(at, &mut out).unwrap_or_else(|| session.read(at, &mut out));
        let extents = session.extents(at, len, 1 + rng.index(20));
        self.may_nest.store(false, SeqCst);
        self.inner.lock().outer = None;
        if self.told(read)? {
            let same = out == disk.read(at, len);
            ensure(same, || format!("{name} {at}+{len}: wrong bytes"))?;
        }
        let Ok(extents) = extents else { return ensure(self.may_fail(), || "extents".into()) };
        let mut next = at;
        for extent in extents {
            ensure(extent.offset_bytes == next && extent.length_bytes > 0, || {
                format!("{name}: extents with a gap at {next}")
            })?;
            next += extent.length_bytes;
            let bytes = disk
                .read(extent.offset_bytes, extent.length_bytes.min(at + len - extent.offset_bytes));
            let zeros = bytes.iter().all(|byte| *byte == 0);
            ensure(extent.mapped || zeros, || format!("{name}: data in a hole {extent:?}"))?;
        }
        Ok(())
    }

    /// All disks, as they are.
    fn observe(&self) -> Done<Disks> {
        let pool = self.pool()?;
        let mut seen = Disks::new();
        for lun in pool.catalog.list() {
            let (mut disk, size) = (Disk::default(), lun.size_bytes());
            (disk.size, disk.vendor) = (size, lun.settings().vendor);
            let intent = OpenIntent { read: true, write: false, truncate: false };
            let file = lun.open_file(intent).map_err(text)?;
            let mut at = 0;
            while at < size {
                let mut out = vec![0; (256 * BLOCK).min(size - at) as usize];
                file.read_at(at, &mut out).map_err(text)?;
                disk.write(at, &out);
                at += out.len() as u64;
            }
            seen.insert(lun.name(), disk);
        }
        Ok(seen)
    }

    fn compare(&self) -> Done {
        match self.observe() {
            Err(_) if self.may_fail() => Ok(()),
            Err(e) => Err(format!("reading everything: {e}")),
            Ok(seen) => ensure(seen == self.now(), || {
                format!("reading everything: {}", difference(&self.now(), &seen))
            }),
        }
    }

    fn close(&self) -> Done<bool> {
        let pool = self.pool.lock().take();
        let Some(pool) = pool else { return Ok(true) };
        pool.sessions.values().for_each(|session| session.logout());
        let closed = pool.fs.close();
        drop(pool);
        self.told(closed)
    }

    /// The power fails; what is there then is one of the states held.
    fn crash(&self, rng: &mut Rng) -> Done {
        self.trace(|| "--- power cut".to_string());
        self.devices.iter().for_each(|device| device.cut_power());
        *self.pool.lock() = None;
        self.broken.store(false, SeqCst);
        for attempt in 0.. {
            self.devices.iter().for_each(|device| {
                device.crash(rng.bits());
            });
            self.inner.lock().crashes += 1;
            self.cut_at.store(0, SeqCst);
            super::check::check(&as_dyn(&self.devices))?;
            if attempt < 3 && rng.chance(1, 3) {
                self.cut_at.store(self.calls.load(SeqCst) + 1 + rng.below(60), SeqCst);
            }
            let seen = self.open().and_then(|()| self.observe());
            if self.power_is_off() {
                *self.pool.lock() = None;
                continue;
            }
            self.cut_at.store(0, SeqCst);
            let seen = seen.map_err(|e| format!("recovery: {e}"))?;
            let inner = &mut *self.inner.lock();
            ensure(inner.states.contains(&seen), || {
                let last = inner.states.last().cloned().unwrap_or_default();
                let said = difference(&last, &seen);
                format!("none of {} states; to the last: {said}", inner.states.len())
            })?;
            inner.digest.update(format!("{} disks", seen.len()).as_bytes());
            inner.states = vec![seen];
            return Ok(());
        }
        Ok(())
    }

    fn end(&self) -> Done<Report> {
        self.cut_at.store(0, SeqCst);
        self.compare()?;
        let closed = self.close()?;
        ensure(closed, || "the pool does not close".into())?;
        self.devices.iter().for_each(|device| device.vanish(false));
        super::check::check(&as_dyn(&self.devices))?;
        let inner = &mut *self.inner.lock();
        self.devices.iter().for_each(|device| {
            inner.digest.update(device.digest().as_bytes());
        });
        let digest = inner.digest.finalize().to_hex()[..16].to_string();
        let mut faults = std::mem::take(&mut inner.faults);
        faults.add("operations on disks", inner.operations);
        Ok(Report { operations: inner.operations, crashes: inner.crashes, digest, faults })
    }
}
