//! One run: a pool over simulated devices, the model beside it, and a schedule drawn from the seed.
//!
//! Invariants: all of it happens on one thread; `inner` is never locked while the filesystem is
//! called from the outermost level, so that the devices' hook may run further operations there.
//! `log` holds what happened since `base`, in the order in which it returned; its first `floor`
//! entries are acknowledged as durable.

use super::model::{Kind, Made, Model};
use super::observe::{self, ensure, observe, stamps_of};
use super::ops::{blocks_held, Generator, Op, Profile, What, BALLAST};
use super::perform::{draw_beside, node_of, perform, range_of, Answer, Range};
use super::prefix::{self, set_stamps, Entry};
use lunfs::device::sim::{IoEvent, Rng, SimDevice};
use lunfs::device::BlockDevice;
use lunfs::fs::{self, Clock, File, FormatOptions, Fs, NodeId, NodeKind, OpenOptions, Timestamp};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, OnceLock, Weak};

/// Share of the pool that all profiles but `Full` keep to: one of this.
const FILL_PART: u64 = 3;
/// Times that recovery itself may lose its power in a row.
const CRASHES_IN_RECOVERY: u32 = 4;
/// Calls inside one call: a write that merges begins again after each that changed its block.
const CALLS_INSIDE: usize = 24;

/// What to run.
#[derive(Clone, Default)]
pub struct Config {
    pub seed: u64,
    pub steps: u64,
    /// Steps left out: how a failing run is made smaller.
    pub skip: BTreeSet<u64>,
    /// Print each operation.
    pub trace: bool,
}

/// What a run did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub operations: u64,
    pub crashes: u64,
    pub digest: String,
}

/// Where and why a run failed.
#[derive(Debug, Clone)]
pub struct Failure {
    pub step: u64,
    pub why: String,
}

pub type Done<T = ()> = Result<T, String>;

struct SimClock(AtomicI64);

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(SeqCst))
    }
}

/// What the seed decides once.
struct Character {
    profile: Profile,
    crash_one_in: u64,
    cut_one_in: u64,
    nest_one_in: u64,
    sync_one_in: u64,
    cache_bytes: u64,
    faults: bool,
}

impl Character {
    fn draw(rng: &mut Rng) -> Character {
        Character {
            profile: Profile::draw(rng),
            crash_one_in: [40, 150, 600][rng.index(3)],
            cut_one_in: [15, 50, 200][rng.index(3)],
            nest_one_in: [2, 6, 1_000_000][rng.index(3)],
            sync_one_in: [4, 12, 60][rng.index(3)],
            cache_bytes: [1 << 20, 4 << 20, 16 << 20, 64 << 20][rng.index(4)],
            faults: rng.chance(1, 5),
        }
    }
}

struct Inner {
    nested: Rng,
    model: Model,
    base: Model,
    log: Vec<Entry>,
    floor: usize,
    files: BTreeMap<NodeId, File>,
    /// The range of a file that a call under way changes: calls inside it keep beside that.
    beside: Option<Range>,
    /// Length of the log when the call under way began.
    outer_began: usize,
    operations: u64,
    crashes: u64,
    digest: blake3::Hasher,
    failure: Option<String>,
}

pub struct World {
    config: Config,
    character: Character,
    devices: Vec<Arc<SimDevice>>,
    clock: Arc<SimClock>,
    fs: Mutex<Option<Arc<Fs>>>,
    inner: Mutex<Inner>,
    /// A file that takes most of a pool that is to be full.
    ballast: OnceLock<NodeId>,
    /// Space in use by a pool just made.
    empty_bytes: AtomicU64,
    /// Calls on all devices; the power fails at number `cut_at` (0: never).
    calls: AtomicU64,
    cut_at: AtomicU64,
    may_nest: AtomicBool,
    /// A device answered an error that the schedule asked for.
    broken: AtomicBool,
}

/// Runs a schedule to its end or to the first thing that is wrong.
pub fn run(config: &Config) -> Result<Report, Failure> {
    caught(config, |world| {
        let mut rng = Rng::new(world.config.seed ^ 0xF1A1);
        world.last_looks(&mut rng)?;
        if rng.chance(1, 2) {
            world.delete_everything()?;
        }
        world.close()?;
        Ok(world.report())
    })
}

/// Runs a schedule, closes the pool, and hands out the devices with what must be on them.
pub fn build(config: &Config) -> Result<(Vec<Arc<SimDevice>>, Model), Failure> {
    caught(config, |world| {
        world.last_looks(&mut Rng::new(world.config.seed))?;
        world.close()?;
        let model = world.inner.lock().model.clone();
        Ok((world.devices.clone(), model))
    })
}

/// Runs the steps, then `end`; a panic is a failure like any other.
fn caught<T>(config: &Config, end: impl FnOnce(&Arc<World>) -> Done<T>) -> Result<T, Failure> {
    let at = AtomicU64::new(0);
    let inside = std::panic::AssertUnwindSafe(|| {
        let world = World::new(config)?;
        for step in 0..config.steps {
            at.store(step, SeqCst);
            if !config.skip.contains(&step) {
                world.step(step)?;
            }
        }
        at.store(config.steps, SeqCst);
        end(&world)
    });
    let result = std::panic::catch_unwind(inside).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or(panic.downcast_ref::<&str>().map(|s| s.to_string()));
        Err(format!("panic: {}", text.unwrap_or_default()))
    });
    result.map_err(|why| Failure { step: at.load(SeqCst), why })
}

impl World {
    fn new(config: &Config) -> Done<Arc<World>> {
        let mut rng = Rng::new(config.seed ^ 0x5EED);
        let character = Character::draw(&mut rng);
        let devices = draw_devices(&mut rng, character.profile);
        let clock = Arc::new(SimClock(AtomicI64::new(1_000_000)));
        let options = FormatOptions {
            pool_id: [config.seed as u8; 16],
            created: clock.now(),
            paths: devices.iter().map(|device| device.name()).collect(),
            redundancy: Default::default(),
        };
        Fs::format(&as_dyn(&devices), &options).map_err(|e| format!("format: {e}"))?;
        let world = Arc::new(World {
            config: config.clone(),
            character,
            devices,
            clock,
            fs: Mutex::new(None),
            inner: Mutex::new(Inner::new(rng.fork())),
            ballast: OnceLock::new(),
            empty_bytes: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            cut_at: AtomicU64::new(0),
            may_nest: AtomicBool::new(false),
            broken: AtomicBool::new(false),
        });
        let fs = world.open().map_err(|e| format!("first open: {e}"))?;
        let seen = observe(&fs, &mut rng)?;
        world.empty_bytes.store(fs.stats().used_bytes, SeqCst);
        *world.fs.lock() = Some(fs);
        world.inner.lock().start_from(seen);
        if world.character.profile == Profile::Full && rng.chance(3, 4) {
            world.load_ballast(&mut rng)?;
        }
        world.set_hook();
        Ok(world)
    }

    /// Leaves a pool only little room: what is freed is soon used again.
    fn load_ballast(&self, rng: &mut Rng) -> Done {
        let dir = NodeId::root(fs::VolumeId::TREE);
        let owner = fs::Owner { mode: 0o600, uid: 0, gid: 0 };
        self.perform(Op::Create { dir, name: BALLAST.to_vec(), what: What::File, owner }, false)?;
        let node = self.inner.lock().model.entries(dir).ok().and_then(|e| e.get(BALLAST).copied());
        let node = node.ok_or("no ballast")?;
        let _ = self.ballast.set(node);
        let len = self.fs()?.stats().free_bytes.saturating_sub((1 + rng.below(8)) << 20);
        let op = Op::Zeros { node, offset: 0, len, keep_size: false };
        self.perform(op, false)?;
        self.sync(rng)
    }

    fn open(&self) -> fs::Result<Arc<Fs>> {
        self.open_over(as_dyn(&self.devices))
    }

    fn open_over(&self, devices: Vec<Arc<dyn BlockDevice>>) -> fs::Result<Arc<Fs>> {
        let (cache_bytes, clock) = (self.character.cache_bytes, self.clock.clone());
        Fs::open(devices, OpenOptions { cache_bytes, clock, background: false })
    }

    /// Space in use by the pool when it was just made.
    pub fn empty_bytes(&self) -> u64 {
        self.empty_bytes.load(SeqCst)
    }

    pub fn fs(&self) -> Done<Arc<Fs>> {
        self.fs.lock().clone().ok_or_else(|| "no pool is open".to_string())
    }

    fn power_is_off(&self) -> bool {
        self.devices.iter().any(|device| device.power_is_off())
    }

    /// True where an error is what the schedule asked for.
    fn may_fail(&self) -> bool {
        self.power_is_off() || self.broken.load(SeqCst)
    }

    fn set_hook(self: &Arc<Self>) {
        for device in &self.devices {
            let weak: Weak<World> = Arc::downgrade(self);
            device.on_io(Some(Arc::new(move |event: &IoEvent| {
                if let Some(world) = weak.upgrade() {
                    world.on_io(event);
                }
            })));
        }
    }

    fn on_io(&self, event: &IoEvent) {
        if !event.done {
            let call = self.calls.fetch_add(1, SeqCst) + 1;
            let cut_at = self.cut_at.load(SeqCst);
            if cut_at != 0 && call >= cut_at {
                self.devices.iter().for_each(|device| device.cut_power());
            }
        }
        if self.power_is_off() || !self.may_nest.swap(false, SeqCst) {
            return;
        }
        let (mut rng, beside, mut left) = {
            let inner = &mut *self.inner.lock();
            let left = CALLS_INSIDE.saturating_sub(inner.log.len() - inner.outer_began);
            (inner.nested.fork(), inner.beside, left)
        };
        let mut result = Ok(());
        while left > 0
            && result.is_ok()
            && rng.chance(1, self.character.nest_one_in)
            && !self.may_fail()
        {
            let op = match beside {
                None => self.draw(&self.inner.lock().model, &mut rng, true),
                Some(range) => match draw_beside(&mut rng, range) {
                    Some(op) => op,
                    None => break,
                },
            };
            result = self.perform(op, true);
            left -= 1;
        }
        if let Err(why) = result {
            self.inner.lock().failure.get_or_insert(format!("inside another call: {why}"));
        }
        self.may_nest.store(true, SeqCst);
    }

    fn step(self: &Arc<Self>, step: u64) -> Done {
        let mut rng = Rng::new(self.config.seed.wrapping_mul(0x9E37_79B9).wrapping_add(step));
        let who = &self.character;
        if self.cut_at.load(SeqCst) == 0 && rng.chance(1, who.cut_one_in) {
            let within = [3, 12, 60, 300][rng.index(4)];
            self.cut_at.store(self.calls.load(SeqCst) + 1 + rng.below(within), SeqCst);
        }
        if who.faults && rng.chance(1, 60) {
            self.inject(&mut rng);
        }
        if rng.chance(1, who.crash_one_in) {
            return self.crash(&mut rng);
        }
        match rng.below(100) {
            _ if rng.chance(1, who.sync_one_in) => self.sync(&mut rng)?,
            0..=3 => self.maintain()?,
            4..=10 => self.look(&mut rng)?,
            11 => self.look_at_all(&mut rng)?,
            12 if rng.chance(1, 6) => self.reopen(&mut rng)?,
            _ => self.operate(&mut rng)?,
        }
        if let Some(why) = self.inner.lock().failure.take() {
            return Err(why);
        }
        if self.may_fail() {
            return self.crash(&mut rng);
        }
        Ok(())
    }

    /// One of the next calls of a device fails.
    fn inject(&self, rng: &mut Rng) {
        let device = &self.devices[rng.index(self.devices.len())];
        self.broken.store(true, SeqCst);
        match rng.below(2) {
            0 => device.fail_writes(1),
            _ => device.fail_flushes(1),
        }
    }

    /// Draws an operation and does it, perhaps with others inside it.
    fn operate(&self, rng: &mut Rng) -> Done {
        let op = self.draw(&self.inner.lock().model, rng, false);
        let beside = range_of(&op).filter(|_| rng.chance(1, 2));
        {
            let inner = &mut *self.inner.lock();
            inner.beside = beside;
            inner.outer_began = inner.log.len();
        }
        self.may_nest.store(beside.is_some(), SeqCst);
        self.perform(op, false)
    }

    /// Does an operation, and compares what it answers with what the model says.
    fn perform(&self, op: Op, inside: bool) -> Done {
        let fs = self.fs()?;
        let (file, before) = {
            let inner = self.inner.lock();
            (node_of(&op).and_then(|node| inner.files.get(&node).cloned()), inner.log.len())
        };
        self.clock.0.fetch_add(1_000_000, SeqCst);
        self.trace(|| format!("{}{op:?}", if inside { "    inside: " } else { "" }));
        let result = perform(&fs, &op, file);
        if !inside {
            self.may_nest.store(false, SeqCst);
            self.inner.lock().beside = None;
        }
        self.trace(|| format!("      {:?}", result.as_ref().map(|(made, _)| made)));
        let dropped = self.record(&fs, op, result, before);
        // A handle is dropped here, where nothing is locked.
        dropped.map(drop)
    }

    fn draw(&self, model: &Model, rng: &mut Rng, short: bool) -> Op {
        let profile = self.character.profile;
        let mut generator =
            Generator { rng, model, profile, short, ballast: self.ballast.get().copied() };
        let op = generator.draw();
        let full = profile != Profile::Full && blocks_held(model) as u64 > self.room_blocks();
        match (full, &op) {
            (true, Op::Write { node, .. } | Op::Append { node, .. } | Op::Update { node, .. }) => {
                Op::SetSize { node: *node, size: 0, by_attr: false }
            }
            (true, Op::Zeros { node, .. }) => Op::SetSize { node: *node, size: 0, by_attr: false },
            _ => op,
        }
    }

    fn room_blocks(&self) -> u64 {
        self.devices.iter().map(|device| device.block_count()).sum::<u64>() / FILL_PART
    }

    fn trace(&self, say: impl FnOnce() -> String) {
        if self.config.trace {
            eprintln!("{}", say());
        }
    }

    fn record(&self, fs: &Arc<Fs>, op: Op, result: Answer, before: usize) -> Done<Option<File>> {
        let inner = &mut *self.inner.lock();
        let overlaps = inner.log.len() - before;
        inner.operations += 1;
        let (made, file) = match result {
            Ok(done) => done,
            Err(e) if self.may_fail() && Kind::of(&e) == Kind::Any => {
                let entry = Entry { overlaps, uncertain: true, ..Entry::new(op) };
                inner.log.push(entry);
                return Ok(None);
            }
            Err(e) => return self.refused(fs, inner, &op, &e).map(|()| None),
        };
        inner.digest.update(format!("{op:?} {made:?}").as_bytes());
        let touched = op.touches(&inner.model);
        ensure(inner.model.is_new(&made), || format!("{op:?}: {made:?} was there before"))?;
        if let Err(kind) = inner.model.apply(&op, &made) {
            return Err(format!("{op:?} was done, but should be refused: {kind:?}"));
        }
        let touched = touched.into_iter().chain(made.node.map(|(id, _)| id));
        // What is under way around this may show already.
        let hidden = inner.beside.map(|(node, ..)| node);
        let told = self.stamps(fs, &inner.model, touched, hidden);
        if told.is_err() && !self.power_is_off() {
            return Err(format!("after {op:?}: {}", told.err().unwrap_or_default()));
        }
        let stamps = told.unwrap_or_default();
        set_stamps(&mut inner.model, &stamps);
        let dropped = inner.keep_handles(&op, file);
        inner.log.push(Entry { op, made, stamps, uncertain: self.power_is_off(), overlaps });
        Ok(dropped)
    }

    fn refused(&self, fs: &Arc<Fs>, inner: &mut Inner, op: &Op, e: &fs::Error) -> Done {
        let kind = Kind::of(e);
        inner.digest.update(format!("{op:?} {kind:?}").as_bytes());
        let made = Made::default();
        match inner.model.clone().apply(op, &made) {
            Err(wanted) if wanted.allows(kind) => Ok(()),
            Err(wanted) => Err(format!("{op:?}: refused with {e}, should be {wanted:?}")),
            Ok(()) if kind == Kind::NoSpace => self.no_space(fs, inner, op),
            Ok(()) => Err(format!("{op:?}: refused with {e}, should be done")),
        }
    }

    /// ENOSPC is right only where there is little room.
    fn no_space(&self, fs: &Arc<Fs>, inner: &Inner, op: &Op) -> Done {
        let stats = fs.stats();
        let room = stats.free_bytes + stats.freeing_bytes;
        ensure(!op.must_have_space(), || format!("{op:?}: refused for want of space"))?;
        ensure(room < stats.size_bytes / 4, || {
            let held = blocks_held(&inner.model);
            format!("{op:?}: no space, with {held} blocks of files and {stats:?}")
        })?;
        ensure(!op.is_long(), || "a long write ended half-way: not modelled".to_string())
    }

    /// Times of the nodes that an operation touched; compares the rest of their attributes.
    fn stamps(
        &self,
        fs: &Arc<Fs>,
        model: &Model,
        touched: impl Iterator<Item = NodeId>,
        hidden: Option<NodeId>,
    ) -> Done<Vec<(NodeId, super::model::Stamps)>> {
        let mut stamps = Vec::new();
        for id in touched {
            let Some(node) = model.get(id) else { continue };
            let attr = fs.getattr(id).map_err(|e| format!("getattr of {id:?}: {e}"))?;
            let size = if node.kind == NodeKind::Directory { 0 } else { attr.size_bytes };
            let seen = (attr.kind, attr.mode, attr.uid, attr.gid, attr.nlink, size);
            let wanted = (node.kind, node.mode, node.uid, node.gid, node.nlink, node.size);
            ensure(seen == wanted || hidden == Some(id), || {
                format!("{id:?}: {seen:?}, should be {wanted:?}")
            })?;
            stamps.push((id, stamps_of(&attr)));
        }
        Ok(stamps)
    }

    fn sync(&self, rng: &mut Rng) -> Done {
        let fs = self.fs()?;
        let (before, file) = {
            let inner = &mut *self.inner.lock();
            inner.outer_began = inner.log.len();
            let files: Vec<File> = inner.files.values().cloned().collect();
            (inner.log.len(), files.get(rng.index(files.len().max(1))).cloned())
        };
        self.may_nest.store(true, SeqCst);
        let result = match (rng.below(4), &file) {
            (0, _) => {
                self.trace(|| "consistency_point".to_string());
                fs.consistency_point()
            }
            (1, Some(file)) => {
                self.trace(|| format!("sync of {:?}", file.id()));
                file.sync()
            }
            _ => {
                self.trace(|| "sync".to_string());
                fs.sync()
            }
        };
        self.may_nest.store(false, SeqCst);
        // It may be the last handle of a file without a name.
        drop(file);
        match result {
            Ok(()) => {
                self.inner.lock().durable(before);
                Ok(())
            }
            Err(_) if self.may_fail() => Ok(()),
            Err(e) => Err(format!("sync: {e}")),
        }
    }

    fn maintain(&self) -> Done {
        self.trace(|| "maintain".to_string());
        let fs = self.fs()?;
        {
            let inner = &mut *self.inner.lock();
            inner.outer_began = inner.log.len();
        }
        self.may_nest.store(true, SeqCst);
        let result = fs.maintain();
        self.may_nest.store(false, SeqCst);
        match result {
            Err(e) if !self.may_fail() => Err(format!("maintain: {e}")),
            _ => Ok(()),
        }
    }

    /// Reads a part of a file.
    fn look(&self, rng: &mut Rng) -> Done {
        let fs = self.fs()?;
        let (id, model) = {
            let inner = self.inner.lock();
            let all = inner.model.nodes.iter().chain(&inner.model.orphans);
            let files: Vec<NodeId> =
                all.filter(|(_, node)| node.kind == NodeKind::File).map(|(id, _)| *id).collect();
            let Some(&id) = files.get(rng.index(files.len().max(1))) else { return Ok(()) };
            (id, inner.model.clone())
        };
        let size = model.get(id).map_or(0, |node| node.size);
        let offset = rng.below(size + 5000);
        let len = 1 + rng.below(200_000) as usize;
        self.trace(|| format!("read {id:?} {offset}+{len}"));
        let result = fs
            .open_file(id)
            .map_err(|e| format!("open_file {id:?}: {e}"))
            .and_then(|file| observe::read(&file, offset, len));
        match result {
            Err(_) if self.may_fail() => Ok(()),
            Err(e) => Err(e),
            Ok(got) => ensure(got == model.read(id, offset, len), || {
                format!("read {id:?} {offset}+{len}: wrong bytes or length {}", got.len())
            }),
        }
    }

    fn look_at_all(&self, rng: &mut Rng) -> Done {
        let fs = self.fs()?;
        let wanted = self.inner.lock().model.clone();
        match observe(&fs, rng) {
            Err(_) if self.may_fail() => Ok(()),
            Err(e) => Err(format!("reading everything: {e}")),
            Ok(seen) => ensure(wanted.same(&seen), || {
                format!("reading everything: {}", observe::differences(&wanted, &seen))
            }),
        }
    }

    /// Closes the pool properly and opens it again: nothing may be lost.
    fn reopen(&self, rng: &mut Rng) -> Done {
        if self.broken.load(SeqCst) {
            return Ok(());
        }
        self.trace(|| "close and open".to_string());
        let files = std::mem::take(&mut self.inner.lock().files);
        for (node, file) in files {
            drop(file);
            let entry = Entry::new(Op::Close { node });
            let inner = &mut *self.inner.lock();
            entry.replay(&mut inner.model);
            inner.log.push(entry);
        }
        let fs = self.fs()?;
        if let Err(e) = fs.close() {
            return ensure(self.may_fail(), || format!("close: {e}"));
        }
        drop(fs);
        *self.fs.lock() = None;
        {
            let inner = &mut *self.inner.lock();
            let all = inner.log.len();
            inner.durable(all);
        }
        self.check(&self.devices)?;
        match self.open() {
            Ok(fs) => *self.fs.lock() = Some(fs),
            Err(e) => return ensure(self.may_fail(), || format!("open after close: {e}")),
        }
        self.look_at_all(rng)
    }

    /// The power fails (if it has not yet); then recovery, and a look at what is there.
    fn crash(&self, rng: &mut Rng) -> Done {
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
        for _ in 0..rng.below(3) {
            self.explore(rng.bits())?;
        }
        let (fs, seen) = self.recover(rng)?;
        let inner = &mut *self.inner.lock();
        let found = prefix::find(&inner.base, &inner.log, inner.floor, &seen)?;
        let lost = inner.log.len() - found.entries;
        self.trace(|| format!("--- recovered, {lost} operations lost"));
        inner.digest.update(&(lost as u64).to_le_bytes());
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
        let fs = self.open_over(as_dyn(&copies)).map_err(|e| format!("recovery: {e}"))?;
        let seen = observe(&fs, &mut Rng::new(seed)).map_err(|e| format!("recovered: {e}"))?;
        let inner = self.inner.lock();
        prefix::find(&inner.base, &inner.log, inner.floor, &seen)?;
        drop(inner);
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
                _ => self.inner.lock().crashes += 1,
            }
        }
        Err("recovery failed without a power cut".to_string())
    }

    /// The offline check must find nothing.
    fn check(&self, devices: &[Arc<SimDevice>]) -> Done {
        let written = |d: &[Arc<SimDevice>]| -> u64 {
            d.iter().map(|device| device.counters().blocks_written).sum()
        };
        let before = written(devices);
        let found = super::check::check(&as_dyn(devices));
        // The schedule's power cut may come while it reads.
        if devices.iter().any(|device| device.power_is_off()) {
            return Ok(());
        }
        found?;
        ensure(written(devices) == before, || "check has written to the devices".to_string())
    }

    fn last_looks(self: &Arc<Self>, rng: &mut Rng) -> Done {
        self.cut_at.store(0, SeqCst);
        if self.may_fail() || rng.chance(1, 3) {
            self.crash(rng)?;
        }
        self.look_at_all(rng)?;
        self.reopen(rng)?;
        self.settle(rng)
    }

    fn close(&self) -> Done {
        let fs = self.fs.lock().take().ok_or("no pool is open")?;
        fs.close().map_err(|e| format!("close: {e}"))?;
        drop(fs);
        self.devices.iter().for_each(|device| device.on_io(None));
        self.check(&self.devices)
    }

    fn report(&self) -> Report {
        let inner = &mut *self.inner.lock();
        for device in &self.devices {
            inner.digest.update(device.digest().as_bytes());
        }
        let digest = inner.digest.finalize().to_hex()[..16].to_string();
        Report { operations: inner.operations, crashes: inner.crashes, digest }
    }
}

impl Inner {
    fn new(nested: Rng) -> Inner {
        Inner {
            nested,
            model: Model::default(),
            base: Model::default(),
            log: Vec::new(),
            floor: 0,
            files: BTreeMap::new(),
            beside: None,
            outer_began: 0,
            operations: 0,
            crashes: 0,
            digest: blake3::Hasher::new(),
            failure: None,
        }
    }

    fn start_from(&mut self, model: Model) {
        self.base = model.clone();
        self.model = model;
        self.log.clear();
        self.floor = 0;
    }

    /// The first `entries` of the log are durable: they become part of the base.
    fn durable(&mut self, entries: usize) {
        self.floor = self.floor.max(entries);
        if self.log.iter().take(entries).any(|entry| entry.uncertain) {
            return;
        }
        for entry in self.log.drain(..entries.min(self.log.len())) {
            entry.replay(&mut self.base);
        }
        self.floor = 0;
    }

    fn keep_handles(&mut self, op: &Op, file: Option<File>) -> Option<File> {
        match (op, file) {
            (Op::Open { node }, Some(file)) => self.files.insert(*node, file),
            (Op::Close { node }, _) => self.files.remove(node),
            (Op::VolumeDelete { .. }, _) => {
                let Inner { files, model, .. } = self;
                files.retain(|id, _| model.open.contains(id));
                None
            }
            _ => None,
        }
    }
}

fn draw_devices(rng: &mut Rng, profile: Profile) -> Vec<Arc<SimDevice>> {
    if profile == Profile::Full {
        return vec![Arc::new(SimDevice::new(64 * 256, rng.bits()))];
    }
    let count = [1, 1, 1, 2, 3][rng.index(5)];
    let device = |n: u64| {
        let mib = [64, 65, 96, 150, 300][rng.index(5)];
        Arc::new(SimDevice::named(&format!("sim{n}"), mib * 256, rng.bits()))
    };
    (0..count).map(device).collect()
}

fn as_dyn(devices: &[Arc<SimDevice>]) -> Vec<Arc<dyn BlockDevice>> {
    devices.iter().map(|device| device.clone() as Arc<dyn BlockDevice>).collect()
}
