//! One run: a pool over simulated devices, the model beside it, and a schedule drawn from the seed.
//!
//! Invariants: all of it happens on one thread; `inner` is never locked while the filesystem is
//! called from the outermost level, so that the devices' hook may run further operations there.
//! `log` holds what happened since `base`, in the order in which it returned; its first `floor`
//! entries are acknowledged as durable. It is shortened only by the outermost call.

use super::character::{Character, Config, Done, Failure, Report, SimClock, Tally};
use super::inside::Outer;
use super::members::draw_spares;
use super::model::{Body, Model, Node, BLOCK};
use super::observe::{self, ensure, observe};
use super::ops::{blocks_held, Generator, Op, Profile, What, BALLAST};
use super::perform::Range;
use super::prefix::Entry;
use lunfs::device::sim::{IoEvent, Rng, SimDevice};
use lunfs::device::BlockDevice;
use lunfs::fs::{self, Clock, File, FormatOptions, Fs, NodeId, NodeKind, OpenOptions, Redundancy};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, OnceLock, Weak};

/// Share of the pool that all profiles but `Full` keep to: one of this.
const FILL_PART: u64 = 3;
/// Blocks that a device grows by.
const GROWTH: [u64; 3] = [512, 5 * 512 + 7, 100 * 512];
/// Largest device.
pub(super) const LARGEST_BLOCKS: u64 = 400 * 256;

pub struct Inner {
    pub nested: Rng,
    pub model: Model,
    pub base: Model,
    pub log: Vec<Entry>,
    pub floor: usize,
    pub files: BTreeMap<NodeId, File>,
    /// The call under way.
    pub outer: Outer,
    /// Length of the log when the call under way began.
    pub outer_began: usize,
    /// A file that is being read, and all that it was since that began.
    versions: Option<(NodeId, Vec<Arc<Node>>)>,
    /// Nodes and generations that were ever given away.
    pub given: BTreeSet<(NodeId, u64)>,
    pub operations: u64,
    pub crashes: u64,
    pub faults: Tally,
    pub digest: blake3::Hasher,
    pub failure: Option<String>,
}

pub struct World {
    pub config: Config,
    pub character: Character,
    pub devices: Vec<Arc<SimDevice>>,
    pub clock: Arc<SimClock>,
    pub(super) fs: Mutex<Option<Arc<Fs>>>,
    pub inner: Mutex<Inner>,
    /// A file that takes most of a pool that is to be full.
    ballast: OnceLock<NodeId>,
    /// Space in use by a pool just made.
    empty_bytes: AtomicU64,
    /// Calls on all devices; the power fails at number `cut_at` (0: never).
    pub calls: AtomicU64,
    pub cut_at: AtomicU64,
    /// From there on it fails at any call (0, 1), at a flush (2), at the flush of a root (3).
    pub cut_when: AtomicU64,
    /// The last write was of a label or a root.
    pub wrote_root: AtomicBool,
    /// A digest of all calls of the devices.
    io_digest: AtomicU64,
    pub may_nest: AtomicBool,
    /// A device answered an error that the schedule asked for.
    pub broken: AtomicBool,
    /// The first device of a mirror has failed or lied.
    pub hurt: AtomicBool,
    /// The device of a mirror that vanished, until it is back.
    pub(super) gone: Mutex<Option<String>>,
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

/// Runs a schedule, then `end` over the open pool.
pub fn caught<T>(config: &Config, end: impl FnOnce(&Arc<World>) -> Done<T>) -> Result<T, Failure> {
    let at = AtomicU64::new(0);
    // A panic is a failure like any other.
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
        let character = Character::draw(&mut rng, config);
        let mut devices = draw_devices(&mut rng, &character, config);
        let clock = Arc::new(SimClock::new());
        let options = FormatOptions {
            pool_id: [config.seed as u8; 16],
            created: clock.now(),
            paths: devices.iter().map(|device| device.name()).collect(),
            redundancy: match character.mirrors && devices.len() > 1 {
                true => Redundancy::Mirror,
                false => Redundancy::None,
            },
        };
        Fs::format(&as_dyn(&devices), &options).map_err(|e| format!("format: {e}"))?;
        if character.members_change && devices.len() > 1 {
            devices.extend(draw_spares(config.seed, &devices));
        }
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
            cut_when: AtomicU64::new(0),
            wrote_root: AtomicBool::new(false),
            io_digest: AtomicU64::new(0),
            may_nest: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            hurt: AtomicBool::new(false),
            gone: Mutex::default(),
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

    pub(super) fn open(&self) -> fs::Result<Arc<Fs>> {
        self.open_over(as_dyn(&self.devices))
    }

    pub(super) fn open_over(&self, devices: Vec<Arc<dyn BlockDevice>>) -> fs::Result<Arc<Fs>> {
        let (cache_bytes, clock) = (self.character.cache_bytes, self.clock.clone());
        Fs::open(
            devices,
            OpenOptions { cache_bytes, clock, background: false, ..OpenOptions::default() },
        )
    }

    /// Space in use by the pool when it was just made.
    pub fn empty_bytes(&self) -> u64 {
        self.empty_bytes.load(SeqCst)
    }

    pub fn fs(&self) -> Done<Arc<Fs>> {
        self.fs.lock().clone().ok_or_else(|| "no pool is open".to_string())
    }

    pub(super) fn power_is_off(&self) -> bool {
        self.devices.iter().any(|device| device.power_is_off())
    }

    /// True where an error is what the schedule asked for.
    pub(super) fn may_fail(&self) -> bool {
        self.power_is_off() || self.broken.load(SeqCst)
    }

    pub(super) fn unless_broken<T>(&self, result: fs::Result<T>, what: &str) -> Done {
        match result {
            Err(e) if !self.may_fail() => Err(format!("{what}: {e}")),
            _ => Ok(()),
        }
    }

    pub fn is_mirror(&self) -> bool {
        self.character.mirrors && self.devices.len() > 1
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

    pub(super) fn note_io(&self, event: &IoEvent) {
        let call = (event.kind as u64) << 60 ^ event.first << 16 ^ event.count;
        let mixed = (self.io_digest.load(SeqCst) ^ call).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.io_digest.store(mixed.rotate_left(29), SeqCst);
    }

    fn step(self: &Arc<Self>, step: u64) -> Done {
        let mut rng = Rng::new(self.config.seed.wrapping_mul(0x9E37_79B9).wrapping_add(step));
        let who = &self.character;
        if self.cut_at.load(SeqCst) == 0 && rng.chance(1, who.cut_one_in) {
            let within = [3, 12, 60, 300][rng.index(4)];
            self.cut_when.store(rng.below(4), SeqCst);
            self.cut_at.store(self.calls.load(SeqCst) + 1 + rng.below(within), SeqCst);
        }
        match rng.below(60) {
            0 if self.is_mirror() && who.victim => self.hurt(&mut rng),
            // One device fails, not two.
            1 if who.faults && !(self.is_mirror() && who.victim) => self.inject(&mut rng),
            _ => {}
        }
        if rng.chance(1, who.crash_one_in) {
            return self.crash(&mut rng);
        }
        if self.is_mirror() && who.members_change && rng.chance(1, 6) {
            self.change_devices(&mut rng)?;
        }
        match rng.below(100) {
            _ if rng.chance(1, who.sync_one_in) => self.sync(&mut rng)?,
            0..=2 => self.maintain()?,
            3 => self.scrub(&mut rng)?,
            4..=10 => self.look(&mut rng)?,
            11 => self.look_at_all(&mut rng)?,
            12 if rng.chance(1, 6) => self.reopen(&mut rng)?,
            13 if who.grows => self.grow(&mut rng)?,
            14 | 15 => self.compare_versions(&mut rng)?,
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

    /// One of the next calls of a device fails, or all do: it is gone.
    fn inject(&self, rng: &mut Rng) {
        let device = &self.devices[rng.index(self.devices.len())];
        self.broken.store(true, SeqCst);
        let what = match rng.below(5) {
            0 | 1 => {
                device.fail_writes(1);
                "write errors"
            }
            2 | 3 => {
                device.fail_flushes(1);
                "flush errors"
            }
            _ => {
                device.vanish(true);
                "vanished devices"
            }
        };
        self.inner.lock().faults.add(what, 1);
        self.trace(|| format!("--- {what} on {}", device.name()));
    }

    /// The first device of a mirror fails or lies. The other one has it all.
    fn hurt(&self, rng: &mut Rng) {
        let Some(device) = self.devices.first() else { return };
        self.hurt.store(true, SeqCst);
        let stored: Vec<u64> = device.stored_blocks().into_iter().filter(|at| *at > 0).collect();
        let what = match rng.below(6) {
            0 => {
                device.fail_writes(1);
                "write errors of a mirror"
            }
            1 => {
                device.fail_flushes(1);
                "flush errors of a mirror"
            }
            2 => {
                device.vanish(true);
                "vanished devices of a mirror"
            }
            3 => {
                device.lose_writes(1);
                "lost writes of a mirror"
            }
            4 => {
                // One copy of the label stays: without any the device would be nobody's.
                device.rot(rng.bits(), 5, 1);
                "flipped bits of a mirror"
            }
            _ => {
                device.make_unreadable(stored[rng.index(stored.len())]);
                "unreadable blocks of a mirror"
            }
        };
        self.inner.lock().faults.add(what, 1);
        self.trace(|| format!("--- {what} on {}", device.name()));
    }

    /// What had vanished is there again, as it was then.
    fn bring_back(&self) {
        self.devices.iter().for_each(|device| device.vanish(false));
        *self.gone.lock() = None;
    }

    pub(super) fn begin(&self, outer: Outer, nest: bool) {
        let inner = &mut *self.inner.lock();
        inner.outer = outer;
        inner.outer_began = inner.log.len();
        self.may_nest.store(nest, SeqCst);
    }

    pub(super) fn end(&self) {
        self.may_nest.store(false, SeqCst);
        self.inner.lock().outer = Outer::default();
    }

    /// Draws an operation and does it, perhaps with others inside it.
    pub(super) fn operate(&self, rng: &mut Rng) -> Done {
        let (op, outer) = {
            let inner = self.inner.lock();
            let op = self.draw(&inner.model, rng, false);
            let outer = Outer::of(&op, &inner.model);
            (op, outer)
        };
        self.begin(outer, !op.is_long() && rng.chance(1, 2));
        self.perform(op, false)
    }

    pub(super) fn draw(&self, model: &Model, rng: &mut Rng, short: bool) -> Op {
        let profile = self.character.profile;
        let mut generator =
            Generator { rng, model, profile, short, ballast: self.ballast.get().copied() };
        let op = generator.draw();
        let full = profile != Profile::Full && blocks_held(model) as u64 > self.room_blocks();
        let frozen = |node: &NodeId| model.is_frozen(node.volume);
        match (full, &op) {
            (true, Op::Write { node, .. }) if frozen(node) => op,
            (true, Op::Write { node, .. } | Op::Append { node, .. } | Op::Update { node, .. }) => {
                Op::SetSize { node: *node, size: 0, by_attr: false }
            }
            (true, Op::Zeros { node, .. }) => Op::SetSize { node: *node, size: 0, by_attr: false },
            (true, Op::CloneRange(op)) => Op::SetSize { node: op.to, size: 0, by_attr: false },
            _ => op,
        }
    }

    fn room_blocks(&self) -> u64 {
        let all = self.devices.iter().map(|device| device.block_count()).sum::<u64>();
        match self.is_mirror() {
            // The largest device may have more than the others can pair with.
            true => self.devices.iter().map(|d| d.block_count()).min().unwrap_or(0) / FILL_PART,
            false => all / FILL_PART,
        }
    }

    pub(super) fn trace(&self, say: impl FnOnce() -> String) {
        if self.config.trace {
            eprintln!("{}", say());
        }
    }

    pub(super) fn sync(&self, rng: &mut Rng) -> Done {
        let fs = self.fs()?;
        self.begin(Outer::default(), true);
        let (before, file) = {
            let inner = &mut *self.inner.lock();
            let files: Vec<File> = inner.files.values().cloned().collect();
            (inner.log.len(), files.get(rng.index(files.len().max(1))).cloned())
        };
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
        self.end();
        // It may be the last handle of a file without a name.
        drop(file);
        if result.is_ok() {
            self.inner.lock().durable(before);
        }
        self.unless_broken(result, "sync")
    }

    fn maintain(&self) -> Done {
        self.trace(|| "maintain".to_string());
        let fs = self.fs()?;
        self.begin(Outer::default(), true);
        let result = fs.maintain();
        self.end();
        self.unless_broken(result, "maintain")
    }

    /// A step of a scrub, which finds nothing bad where nothing was hurt.
    fn scrub(&self, rng: &mut Rng) -> Done {
        self.trace(|| "scrub".to_string());
        let fs = self.fs()?;
        self.begin(Outer::default(), true);
        let started = match fs.scrub_status().running {
            true => Ok(true),
            false => fs.scrub_start(),
        };
        let result = started.and_then(|_| fs.scrub_step(1 + rng.below(3000)));
        self.end();
        let status = fs.scrub_status();
        // A growth that was cut off leaves labels to mend.
        let whole = !self.character.grows && !self.is_mirror();
        let untouched = whole && !self.hurt.load(SeqCst) && !self.may_fail();
        ensure(!untouched || status.healed + status.bad == 0, || {
            format!("a scrub found rot where there was none: {status:?}")
        })?;
        self.unless_broken(result, "scrub")
    }

    /// One of the devices becomes larger, and the pool with it.
    fn grow(&self, rng: &mut Rng) -> Done {
        let device = &self.devices[rng.index(self.devices.len())];
        let by = GROWTH[rng.index(GROWTH.len())];
        if device.block_count() + by > LARGEST_BLOCKS {
            return Ok(());
        }
        self.trace(|| format!("grow {} by {by}", device.name()));
        device.grow(device.block_count() + by);
        let result = self.fs()?.grow();
        self.inner.lock().faults.add("growths", 1);
        match result {
            // It waits for a device that is away.
            Err(fs::Error::Busy | fs::Error::Invalid(_)) if self.character.members_change => Ok(()),
            result => self.unless_broken(result, "grow"),
        }
    }

    /// Reads a part of a file, perhaps while it is changed.
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
        let file = match fs.open_file(id) {
            Ok(file) => file,
            Err(e) => return self.unless_broken::<()>(Err(e), "open_file"),
        };
        let range = World::draw_range(id, &model, rng);
        self.begin(Outer::reader(range), true);
        self.inner.lock().versions = Some((id, model.arc_of(id).into_iter().collect()));
        let done = self.read_range(&file, &model, range.1, range.2);
        self.end();
        self.inner.lock().versions = None;
        done
    }

    /// A range of a file to read, mostly one that has data.
    pub(super) fn draw_range(id: NodeId, model: &Model, rng: &mut Rng) -> Range {
        let node = model.get(id);
        let blocks = match node.map(|node| &node.body) {
            Some(Body::File(blocks)) => blocks.len(),
            _ => 0,
        };
        let some = rng.index(blocks.max(1));
        let offset = match node.map(|node| &node.body) {
            Some(Body::File(blocks)) if rng.chance(3, 4) => {
                blocks.keys().nth(some).map_or(0, |number| number * BLOCK)
            }
            _ => rng.below(node.map_or(0, |node| node.size) + 5000),
        };
        (id, offset, offset + 1 + rng.below(200_000))
    }

    /// Reads a range that is what one of the versions of the file says.
    pub(super) fn read_range(&self, file: &File, model: &Model, offset: u64, end: u64) -> Done {
        let (id, len) = (file.id(), (end - offset) as usize);
        self.trace(|| format!("read {id:?} {offset}+{len}"));
        let got = match observe::read(file, offset, len) {
            Err(_) if self.may_fail() => return Ok(()),
            Err(e) => return Err(e),
            Ok(got) => got,
        };
        let inner = self.inner.lock();
        let versions = inner.versions.as_ref().filter(|(node, _)| *node == id);
        let mut nodes = versions.into_iter().flat_map(|(_, nodes)| nodes);
        let fits = nodes.any(|node| node.read(offset, len) == got);
        ensure(fits || got == model.read(id, offset, len), || {
            format!("read {id:?} {offset}+{len}: wrong bytes or length {}", got.len())
        })
    }

    pub(super) fn look_at_all(&self, rng: &mut Rng) -> Done {
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
        self.bring_back();
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

    pub(super) fn last_looks(self: &Arc<Self>, rng: &mut Rng) -> Done {
        self.cut_at.store(0, SeqCst);
        if self.may_fail() || rng.chance(1, 3) {
            self.crash(rng)?;
        }
        if self.is_mirror() && self.character.members_change {
            self.whole_again()?;
        }
        self.look_at_all(rng)?;
        self.reopen(rng)?;
        self.settle(rng)
    }

    pub(super) fn close(&self) -> Done {
        let fs = self.fs.lock().take().ok_or("no pool is open")?;
        fs.close().map_err(|e| format!("close: {e}"))?;
        drop(fs);
        self.bring_back();
        self.devices.iter().for_each(|device| device.on_io(None));
        self.check(&self.devices)
    }

    fn report(&self) -> Report {
        let inner = &mut *self.inner.lock();
        for device in &self.devices {
            inner.digest.update(device.digest().as_bytes());
        }
        inner.digest.update(&self.io_digest.load(SeqCst).to_le_bytes());
        let digest = inner.digest.finalize().to_hex()[..16].to_string();
        let faults = std::mem::take(&mut inner.faults);
        Report { operations: inner.operations, crashes: inner.crashes, digest, faults }
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
            outer: Outer::default(),
            outer_began: 0,
            versions: None,
            given: BTreeSet::new(),
            operations: 0,
            crashes: 0,
            faults: Tally::default(),
            digest: blake3::Hasher::new(),
            failure: None,
        }
    }

    pub fn start_from(&mut self, model: Model) {
        self.base = model.clone();
        self.model = model;
        self.log.clear();
        self.floor = 0;
    }

    /// The first `entries` of the log are durable, up to one that may not have happened at all.
    pub fn raise_floor(&mut self, entries: usize) {
        let certain = self.log.iter().take_while(|entry| !entry.uncertain).count();
        self.floor = self.floor.max(entries.min(certain));
    }

    /// The first `entries` of the log are durable: they become part of the base.
    pub fn durable(&mut self, entries: usize) {
        self.raise_floor(entries);
        for entry in self.log.drain(..self.floor.min(self.log.len())) {
            entry.replay(&mut self.base);
        }
        self.floor = 0;
    }

    /// The file that is being read has changed, perhaps.
    pub fn note_versions(&mut self) {
        let Some((id, versions)) = &mut self.versions else { return };
        let now = self.model.arc_of(*id);
        let known = |node: &Arc<Node>| versions.last().is_some_and(|last| Arc::ptr_eq(last, node));
        if let Some(node) = now.filter(|node| !known(node)) {
            versions.push(node);
        }
    }

    pub fn keep_handles(&mut self, op: &Op, file: Option<File>) -> Option<File> {
        match (op, file) {
            (Op::Open { node }, Some(file)) => self.files.insert(*node, file),
            (Op::Close { node }, _) => self.files.remove(node),
            (Op::VolumeDelete { .. } | Op::Version(_), _) => {
                let Inner { files, model, .. } = self;
                files.retain(|id, _| model.open.contains(id));
                None
            }
            _ => None,
        }
    }
}

fn draw_devices(rng: &mut Rng, who: &Character, config: &Config) -> Vec<Arc<SimDevice>> {
    if who.profile == Profile::Full || config.dense {
        let count = if who.mirrors && config.dense { 2 } else { 1 };
        let device = |n| SimDevice::named(&format!("sim{n}"), 64 * 256, rng.bits());
        return (0..count).map(device).map(Arc::new).collect();
    }
    let count = [1, 1, 1, 2, 3][rng.index(5)];
    let device = |n: u64| {
        let mib = [64, 65, 96, 150, 300][rng.index(5)];
        Arc::new(SimDevice::named(&format!("sim{n}"), mib * 256, rng.bits()))
    };
    (0..count).map(device).collect()
}

pub fn as_dyn(devices: &[Arc<SimDevice>]) -> Vec<Arc<dyn BlockDevice>> {
    devices.iter().map(|device| device.clone() as Arc<dyn BlockDevice>).collect()
}
