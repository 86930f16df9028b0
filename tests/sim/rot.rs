//! Media that lie: bits flip, blocks become unreadable, a write is acknowledged and never happens
//! or lands elsewhere. What is read afterwards is right or an error, never wrong.

use super::character::{Config, Done, Failure, Report, Tally};
use super::model::{Body, Model, Node};
use super::observe::{ensure, read};
use super::ops::Op;
use super::world::{as_dyn, caught, World};
use fs_layout::{Label, LABEL_PLACES};
use lunfs::device::sim::{Rng, SimDevice};
use lunfs::device::{Block, BlockDevice};
use lunfs::fs::{Error, Fs, NodeId, OpenOptions, SystemClock};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::Arc;

/// Steps that are done beside a write that went wrong.
const STEPS_BESIDE: u64 = 20;
/// Blocks at the start of a device that hold labels, roots and the segment map.
const FIXED_BLOCKS: u64 = 512;

/// What runs of rot saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// What was done to the devices.
    pub done: Tally,
    /// Calls that told of it.
    pub errors: u64,
    /// Pools that could not be opened at all.
    pub refused: u64,
    /// Operations before and beside it.
    pub operations: u64,
}

impl Seen {
    pub fn add(&mut self, other: &Seen) {
        self.done.merge(&other.done);
        self.errors += other.errors;
        self.refused += other.refused;
        self.operations += other.operations;
    }
}

/// What there was, and what of it nobody can be sure of.
struct Before {
    devices: Vec<Arc<SimDevice>>,
    model: Model,
    unsure: BTreeSet<NodeId>,
    /// The pool closed without an error: nothing may be older than the model.
    closed: bool,
    /// Each block is on two devices, and only one of them lies.
    mirror: bool,
}

/// As `run`, told as runs of other kinds are.
pub fn report(config: &Config) -> Result<Report, Failure> {
    let mut seen = run(config)?;
    seen.done.add("errors told of bad media", seen.errors);
    seen.done.add("pools refused for bad media", seen.refused);
    let digest = blake3::hash(format!("{seen:?}").as_bytes()).to_hex()[..16].to_string();
    Ok(Report { operations: seen.operations, crashes: 0, digest, faults: seen.done })
}

/// Fills a pool by a schedule, lets the media lie, and reads everything.
pub fn run(config: &Config) -> Result<Seen, Failure> {
    let config = &Config { steady: true, ..config.clone() };
    let mut rng = Rng::new(config.seed ^ 0x207);
    let mut seen = Seen::default();
    let lying = rng.chance(1, 2);
    let before = caught(config, |world| {
        world.last_looks(&mut Rng::new(config.seed))?;
        let before = match lying {
            true => lie(world, &mut rng, &mut seen),
            false => world.close().map(|()| as_it_is(world, BTreeSet::new(), true)),
        };
        seen.operations = world.inner.lock().operations;
        before
    })?;
    let told = |why| Failure { step: config.steps, why };
    if !lying {
        let devices = match before.mirror {
            true => std::slice::from_ref(&before.devices[rng.index(before.devices.len())]),
            false => &before.devices[..],
        };
        rot(devices, &mut rng, &mut seen);
    }
    judge(&before, &mut seen).map_err(told)?;
    Ok(seen)
}

fn as_it_is(world: &World, unsure: BTreeSet<NodeId>, closed: bool) -> Before {
    let model = world.inner.lock().model.clone();
    let mirror = world.is_mirror() && !world.hurt.load(SeqCst);
    Before { devices: world.devices.clone(), model, unsure, closed, mirror }
}

/// Bits flip, or blocks cannot be read any more.
fn rot(devices: &[Arc<SimDevice>], rng: &mut Rng, seen: &mut Seen) {
    let count = [1, 3, 30, 300][rng.index(4)];
    for device in devices {
        if rng.chance(1, 2) {
            let hit = device.rot(rng.bits(), count, 0);
            seen.done.add("bit flips", hit.len() as u64);
            continue;
        }
        let stored = device.stored_blocks();
        for _ in 0..count.min(stored.len()) {
            device.make_unreadable(stored[rng.index(stored.len())]);
        }
        seen.done.add("unreadable blocks", count as u64);
    }
}

/// One write goes nowhere, or elsewhere, and nobody is told; the pool is used on, and closed.
fn lie(world: &Arc<World>, rng: &mut Rng, seen: &mut Seen) -> Done<Before> {
    let device = &world.devices[rng.index(world.devices.len())];
    world.broken.store(true, SeqCst);
    let before = world.inner.lock().log.len();
    match rng.chance(1, 2) {
        true => {
            device.lose_writes(1);
            seen.done.add("lost writes", 1);
        }
        false => {
            device.misdirect_write(1 + rng.below(device.block_count() - FIXED_BLOCKS));
            seen.done.add("misdirected writes", 1);
        }
    }
    for _ in 0..STEPS_BESIDE {
        world.operate(rng)?;
    }
    let unsure = {
        let inner = world.inner.lock();
        let broken_off = inner.log.iter().skip(before).filter(|entry| entry.uncertain);
        let nodes = |op: &Op| op.touches(&inner.model);
        broken_off.flat_map(|entry| nodes(&entry.op)).collect()
    };
    let files = std::mem::take(&mut world.inner.lock().files);
    drop(files);
    let fs = world.fs.lock().take().ok_or("no pool is open")?;
    let closed = fs.close().is_ok();
    drop(fs);
    world.devices.iter().for_each(|device| device.on_io(None));
    Ok(as_it_is(world, unsure, closed))
}

fn judge(before: &Before, seen: &mut Seen) -> Done {
    let clean = super::check::check(&as_dyn(&before.devices)).is_ok();
    if before.mirror && before.closed {
        scrub(before, seen)?;
    }
    let (errors, refused) = look(before)?;
    ensure(!clean || (errors == 0 && !refused), || {
        format!("check finds nothing, but {errors} errors, refused: {refused}")
    })?;
    let lost = errors > 0 || refused || !before.unsure.is_empty() || !before.closed;
    ensure(!before.mirror || !lost, || {
        let unsure = before.unsure.len();
        format!(
            "a mirror lost what one device lied about: {errors} errors, {unsure} operations \
             broken off, closed: {}, refused: {refused}",
            before.closed
        )
    })?;
    seen.done.add("mirrors of which one device lied", u64::from(before.mirror));
    seen.errors += errors;
    seen.refused += u64::from(refused);
    Ok(())
}

/// Heals a mirror of which one device lied: afterwards every copy is good.
fn scrub(before: &Before, seen: &mut Seen) -> Done {
    let told = |e: Error| format!("scrubbing a mirror: {e}");
    let open = |degraded| {
        let options = OpenOptions { cache_bytes: 8 << 20, degraded, ..OpenOptions::default() };
        Fs::open(as_dyn(&before.devices), options)
    };
    let fs = match before.devices.iter().find(|device| !has_label(device)) {
        None => open(false).map_err(told)?,
        Some(nobody) => {
            seen.done.add("devices that lost both labels", 1);
            // The others may have recorded before that it is missing.
            let fs = open(false).or_else(|_| open(true)).map_err(told)?;
            let taken = fs.devices().into_iter().find(|d| d.path == nobody.name());
            let state = taken.map_or("absent", |d| d.state);
            ensure(matches!(state, "absent" | "missing"), || format!("no label, and {state}"))?;
            come_as_new(&fs, nobody).map_err(told)?;
            fs
        }
    };
    fs.scrub_start().map_err(told)?;
    while fs.scrub_step(100_000).map_err(told)? {}
    let status = fs.scrub_status();
    ensure(status.bad == 0, || format!("a mirror was not healed: {status:?}"))?;
    seen.done.add("copies healed", status.healed);
    fs.close().map_err(told)?;
    drop(fs);
    super::check::check(&as_dyn(&before.devices)).map_err(|e| format!("a healed mirror: {e}"))
}

fn has_label(device: &SimDevice) -> bool {
    LABEL_PLACES.iter().any(|at| {
        let mut raw = [Block::zeroed()];
        device.read(*at, &mut raw).is_ok() && Label::decode(&raw[0].0).is_ok()
    })
}

/// A device takes its own place, as a new one.
fn come_as_new(fs: &Arc<Fs>, device: &Arc<SimDevice>) -> lunfs::fs::Result<()> {
    let missing = fs.devices().into_iter().find(|d| d.state == "missing");
    if let Some(missing) = missing {
        let device: Arc<dyn BlockDevice> = device.clone();
        fs.replace(missing.slot, &device, &device.name())?;
    }
    while fs.regenerate_step(100_000)? {}
    Ok(())
}

/// How many nodes could not be read, and whether the pool was not to be opened.
fn look(before: &Before) -> Done<(u64, bool)> {
    let clock = Arc::new(SystemClock);
    let options =
        OpenOptions { cache_bytes: 8 << 20, clock, background: false, ..OpenOptions::default() };
    let fs = match Fs::open(as_dyn(&before.devices), options) {
        Ok(fs) => fs,
        Err(Error::Format(_) | Error::Corrupt { .. } | Error::Io(_) | Error::Latched(_)) => {
            return Ok((0, true));
        }
        Err(e) => return Err(format!("open: {e}")),
    };
    let mut errors = 0;
    for (id, node) in before.model.nodes.iter().filter(|(id, _)| !before.unsure.contains(id)) {
        match look_at(&fs, *id, node, &before.model) {
            // What was never acknowledged as durable may be older.
            _ if !before.closed => {}
            Ok(true) => {}
            Ok(false) => errors += 1,
            Err(why) => return Err(format!("{id:?}: {why}")),
        }
    }
    // What cannot be read may make closing fail; it may not make it panic.
    let _ = fs.close();
    Ok((errors, false))
}

/// True: all of it is right; false: an error said that it is not.
fn look_at(fs: &Arc<Fs>, id: NodeId, node: &Node, model: &Model) -> Done<bool> {
    let Some(attr) = allowed(fs.getattr(id))? else { return Ok(false) };
    let same = (attr.kind, attr.mode, attr.nlink) == (node.kind, node.mode, node.nlink);
    ensure(same, || format!("attributes {attr:?}"))?;
    match &node.body {
        Body::File(_) => look_at_file(fs, id, node, model),
        Body::Directory(entries) => {
            let mut whole = true;
            for (name, child) in entries {
                match allowed(fs.lookup(id, name))? {
                    Some(found) => ensure(found.id == *child, || format!("{name:?}: {found:?}"))?,
                    None => whole = false,
                }
            }
            Ok(whole)
        }
        Body::Symlink(to) => match allowed(fs.readlink(id))? {
            Some(found) => ensure(found == *to, || "another target".to_string()).map(|()| true),
            None => Ok(false),
        },
        Body::Special => Ok(true),
    }
}

fn look_at_file(fs: &Arc<Fs>, id: NodeId, node: &Node, model: &Model) -> Done<bool> {
    let Body::File(blocks) = &node.body else { return Ok(true) };
    let Some(file) = allowed(fs.open_file(id))? else { return Ok(false) };
    let mut whole = true;
    for number in blocks.keys() {
        let offset = number * super::model::BLOCK;
        match read(&file, offset, super::model::BLOCK as usize) {
            Ok(got) => ensure(got == model.read(id, offset, got.len()), || {
                format!("wrong bytes at {offset}")
            })?,
            Err(_) => whole = false,
        }
    }
    Ok(whole)
}

/// `None` where the answer is that something cannot be read; a lie is an error.
fn allowed<T>(answer: lunfs::fs::Result<T>) -> Done<Option<T>> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(Error::Corrupt { .. } | Error::Format(_) | Error::Io(_)) => Ok(None),
        Err(e) => Err(format!("rot is told as: {e}")),
    }
}
