//! Snapshots, clones and rollbacks beside a plain model, with crashes, from a seed.
//!
//! `LUNFS_VERSIONS_SEEDS` runs so many fresh seeds, `LUNFS_VERSIONS_SEED` one, of
//! `LUNFS_VERSIONS_STEPS` steps each; `LUNFS_VERSIONS_TRACE=1` tells each operation.

use lunfs::device::sim::{Rng, SimDevice};
use lunfs::device::{BlockDevice, BLOCK_BYTES};
use lunfs::fs::{
    self, CheckOptions, Clock, File, FormatOptions, Fs, NewNode, NodeId, OpenOptions, Owner,
    Redundancy, Report, Timestamp, VolumeId,
};
use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

const OWNER: Owner = Owner { mode: 0o644, uid: 1, gid: 2 };
const BS: u64 = BLOCK_BYTES as u64;
/// Blocks of the device: 128 MiB.
const DEVICE_BLOCKS: u64 = 32_768;
/// Seeds of failures once found.
const FIXED_SEEDS: [u64; 4] = [1, 2, 3, 4];
const FRESH_SEEDS: u64 = 6;
const STEPS: u64 = 150;

/// Which blocks hold what; all else is a hole.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct FileModel {
    blocks: BTreeMap<u64, u64>,
    size_blocks: u64,
}

type Tree = BTreeMap<String, FileModel>;

#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Volume {
    files: Tree,
    snapshots: BTreeMap<String, Tree>,
}

type Model = BTreeMap<String, Volume>;

/// A file: its volume, a snapshot of it or none, its name.
type Place = (String, Option<String>, String);

#[derive(Clone, Debug)]
enum Op {
    Write {
        v: String,
        f: String,
        at: u64,
        count: u64,
        value: u64,
    },
    Punch {
        v: String,
        f: String,
        at: u64,
        count: u64,
    },
    /// From a file of a volume or of its snapshot.
    CloneRange {
        of: Place,
        at: u64,
        v: String,
        f: String,
        to: u64,
        count: u64,
    },
    Resize {
        v: String,
        f: String,
        blocks: u64,
    },
    Create {
        v: String,
        f: String,
    },
    Unlink {
        v: String,
        f: String,
    },
    Snapshot {
        of: Vec<String>,
        s: String,
    },
    Delete {
        v: String,
        s: String,
    },
    Refresh {
        v: String,
        s: String,
    },
    Rename {
        v: String,
        s: String,
        to: String,
    },
    Clone {
        v: String,
        s: String,
        new: String,
    },
    Rollback {
        v: String,
        s: String,
        keep: String,
    },
    VolumeCreate {
        v: String,
    },
    VolumeDelete {
        v: String,
    },
    Sync,
    Maintain,
}

fn env<T: FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn pattern(value: u64) -> Vec<u8> {
    value.to_le_bytes().repeat(BLOCK_BYTES / 8)
}

fn apply(m: &mut Model, op: &Op) {
    match op {
        Op::Write { v, f, at, count, value } => {
            let file = m.get_mut(v).unwrap().files.get_mut(f).unwrap();
            file.blocks.extend((*at..at + count).map(|b| (b, value + b)));
            file.size_blocks = file.size_blocks.max(at + count);
        }
        Op::Punch { v, f, at, count } => {
            let file = m.get_mut(v).unwrap().files.get_mut(f).unwrap();
            file.blocks.retain(|b, _| *b < *at || *b >= at + count);
        }
        Op::CloneRange { of: (u, s, g), at, v, f, to, count } => {
            let files = s.as_ref().map_or(&m[u].files, |s| &m[u].snapshots[s]);
            let source = files[g].clone();
            let count = (*count).min(source.size_blocks.saturating_sub(*at));
            let file = m.get_mut(v).unwrap().files.get_mut(f).unwrap();
            file.blocks.retain(|b, _| *b < *to || *b >= to + count);
            let found = source.blocks.range(at..&(at + count)).map(|(b, x)| (b - at + to, *x));
            file.blocks.extend(found);
            if count > 0 {
                file.size_blocks = file.size_blocks.max(to + count);
            }
        }
        Op::Resize { v, f, blocks } => {
            let file = m.get_mut(v).unwrap().files.get_mut(f).unwrap();
            file.blocks.retain(|b, _| b < blocks);
            file.size_blocks = *blocks;
        }
        Op::Create { v, f } => {
            m.get_mut(v).unwrap().files.insert(f.clone(), FileModel::default());
        }
        Op::Unlink { v, f } => drop(m.get_mut(v).unwrap().files.remove(f)),
        Op::Snapshot { of, s } => {
            for v in of {
                let volume = m.get_mut(v).unwrap();
                volume.snapshots.insert(s.clone(), volume.files.clone());
            }
        }
        Op::Delete { v, s } => drop(m.get_mut(v).unwrap().snapshots.remove(s)),
        Op::Refresh { v, s } => {
            let volume = m.get_mut(v).unwrap();
            volume.snapshots.insert(s.clone(), volume.files.clone());
        }
        Op::Rename { v, s, to } => {
            let volume = m.get_mut(v).unwrap();
            let tree = volume.snapshots.remove(s).unwrap();
            volume.snapshots.insert(to.clone(), tree);
        }
        Op::Clone { v, s, new } => {
            let files = m[v].snapshots[s].clone();
            m.insert(new.clone(), Volume { files, ..Volume::default() });
        }
        Op::Rollback { v, s, keep } => {
            let volume = m.get_mut(v).unwrap();
            volume.snapshots.insert(keep.clone(), volume.files.clone());
            volume.files = volume.snapshots[s].clone();
        }
        Op::VolumeCreate { v } => drop(m.insert(v.clone(), Volume::default())),
        Op::VolumeDelete { v } => drop(m.remove(v)),
        Op::Sync | Op::Maintain => {}
    }
}

fn id_of(fs: &Fs, v: &str) -> fs::Result<VolumeId> {
    if v == "/" {
        return Ok(VolumeId::TREE);
    }
    fs.volume_lookup(v)?.ok_or(fs::Error::NotFound)
}

fn open(fs: &Arc<Fs>, v: &str, f: &str) -> fs::Result<File> {
    let attr = fs.lookup(NodeId::root(id_of(fs, v)?), f.as_bytes())?;
    fs.open_file(attr.id)
}

fn perform(fs: &Arc<Fs>, op: &Op) -> fs::Result<()> {
    match op {
        Op::Write { v, f, at, count, value } => {
            let bytes: Vec<u8> = (*at..at + count).flat_map(|b| pattern(value + b)).collect();
            open(fs, v, f)?.write_at(at * BS, &bytes)
        }
        Op::Punch { v, f, at, count } => open(fs, v, f)?.punch(at * BS, count * BS),
        Op::CloneRange { of: (u, s, g), at, v, f, to, count } => {
            let source = match s {
                None => open(fs, u, g)?,
                Some(s) => {
                    let id = fs.snapshot_lookup(id_of(fs, u)?, s)?.ok_or(fs::Error::NotFound)?.id;
                    fs.open_file(fs.lookup(NodeId::root(id), g.as_bytes())?.id)?
                }
            };
            let target = open(fs, v, f)?;
            fs.clone_range(&source, at * BS, &target, to * BS, count * BS).map(drop)
        }
        Op::Resize { v, f, blocks } => open(fs, v, f)?.set_size(blocks * BS),
        Op::Create { v, f } => {
            let root = NodeId::root(id_of(fs, v)?);
            fs.create(root, f.as_bytes(), NewNode::File, OWNER).map(drop)
        }
        Op::Unlink { v, f } => fs.unlink(NodeId::root(id_of(fs, v)?), f.as_bytes()),
        Op::Snapshot { of, s } => {
            let ids = of.iter().map(|v| id_of(fs, v)).collect::<fs::Result<Vec<_>>>()?;
            let wanted: Vec<_> = ids.into_iter().map(|id| (id, s.as_str())).collect();
            fs.snapshot_create(&wanted, false).map(drop)
        }
        Op::Delete { v, s } => fs.snapshot_delete(id_of(fs, v)?, s),
        Op::Refresh { v, s } => fs.snapshot_refresh(id_of(fs, v)?, s, None).map(drop),
        Op::Rename { v, s, to } => fs.snapshot_rename(id_of(fs, v)?, s, to),
        Op::Clone { v, s, new } => {
            let found = fs.snapshot_lookup(id_of(fs, v)?, s)?.ok_or(fs::Error::NotFound)?;
            fs.volume_clone(found.id, new).map(drop)
        }
        Op::Rollback { v, s, keep } => fs.volume_rollback(v, s, keep).map(drop),
        Op::VolumeCreate { v } => fs.volume_create(v, OWNER).map(drop),
        Op::VolumeDelete { v } => fs.volume_delete(v),
        Op::Sync => fs.sync(),
        Op::Maintain => fs.maintain().map(drop),
    }
}

/// Durable when it returns?
fn is_barrier(op: &Op) -> bool {
    matches!(op, Op::Snapshot { .. } | Op::Refresh { .. } | Op::Rollback { .. } | Op::Sync)
}

fn observe_file(fs: &Arc<Fs>, id: NodeId) -> fs::Result<FileModel> {
    let file = fs.open_file(id)?;
    let mut found = FileModel { size_blocks: file.size_bytes() / BS, ..FileModel::default() };
    let mut at = 0;
    while let Some(data) = file.seek_data(at)? {
        let end = file.seek_hole(data)?;
        for b in data / BS..end / BS {
            let mut raw = vec![0; BLOCK_BYTES];
            file.read_at(b * BS, &mut raw)?;
            let value = u64::from_le_bytes(raw[..8].try_into().unwrap());
            assert_eq!(raw, pattern(value), "a block is not whole");
            found.blocks.insert(b, value);
        }
        at = end;
    }
    Ok(found)
}

fn observe_tree(fs: &Arc<Fs>, v: VolumeId) -> fs::Result<Tree> {
    let mut tree = Tree::new();
    for e in fs.readdir(NodeId::root(v), 0, 1000)? {
        tree.insert(String::from_utf8(e.name).unwrap(), observe_file(fs, e.id)?);
    }
    Ok(tree)
}

fn observe(fs: &Arc<Fs>) -> fs::Result<Model> {
    let mut model = Model::new();
    let volumes = fs.volume_list()?.into_iter().chain([("/".to_string(), VolumeId::TREE)]);
    for (name, id) in volumes {
        let mut volume = Volume { files: observe_tree(fs, id)?, ..Volume::default() };
        for s in fs.snapshot_list(id)? {
            volume.snapshots.insert(s.name, observe_tree(fs, s.id)?);
        }
        model.insert(name, volume);
    }
    Ok(model)
}

/// In few words, where two models differ.
fn difference(want: &Model, have: &Model) -> String {
    for (v, a) in want {
        let Some(b) = have.get(v) else { return format!("volume {v} is gone") };
        if a.files != b.files {
            return format!("{v}: want {:?}\nhave {:?}", a.files, b.files);
        }
        for (s, t) in &a.snapshots {
            match b.snapshots.get(s) {
                None => return format!("{v}@{s} is gone"),
                Some(u) if u != t => return format!("{v}@{s}: want {t:?}\nhave {u:?}"),
                _ => {}
            }
        }
        if a.snapshots.len() != b.snapshots.len() {
            return format!("{v}: snapshots {:?}", b.snapshots.keys());
        }
    }
    format!("volumes {:?}", have.keys())
}

struct TickClock;

impl Clock for TickClock {
    fn now(&self) -> Timestamp {
        Timestamp(1_700_000_000_000_000_000)
    }
}

struct World {
    device: Arc<SimDevice>,
    fs: Option<Arc<Fs>>,
    rng: Rng,
    /// The first is durable; the last is now.
    history: Vec<Model>,
    /// Files that were unlinked while they are open.
    open: Vec<File>,
    names: u64,
    trace: bool,
}

type Outcome<T = ()> = Result<T, String>;

fn text(e: fs::Error) -> String {
    e.to_string()
}

impl World {
    fn new(seed: u64) -> World {
        let device = Arc::new(SimDevice::new(DEVICE_BLOCKS, seed));
        let dyn_device: Arc<dyn BlockDevice> = device.clone();
        let format = FormatOptions {
            pool_id: [7; 16],
            created: Timestamp(1),
            paths: vec!["a".into()],
            redundancy: Redundancy::None,
        };
        Fs::format(&[dyn_device], &format).unwrap();
        let model = Model::from([("/".to_string(), Volume::default())]);
        let trace = env::<u32>("LUNFS_VERSIONS_TRACE").is_some();
        let rng = Rng::new(seed);
        let history = vec![model];
        World { device, fs: None, rng, history, open: Vec::new(), names: 0, trace }
    }

    fn mount(&mut self) -> Outcome {
        let cache_bytes = [2 << 20, 16 << 20][self.rng.index(2)];
        let clock = Arc::new(TickClock);
        let options = OpenOptions { cache_bytes, clock, ..OpenOptions::default() };
        let device: Arc<dyn BlockDevice> = self.device.clone();
        self.fs = Some(Fs::open(vec![device], options).map_err(|e| format!("open: {e}"))?);
        Ok(())
    }

    fn fs(&self) -> &Arc<Fs> {
        self.fs.as_ref().unwrap()
    }

    fn model(&self) -> &Model {
        self.history.last().unwrap()
    }

    fn report(&self) -> Outcome<Report> {
        let device: Arc<dyn BlockDevice> = self.device.clone();
        fs::check(&[device], CheckOptions { data: true }).map_err(|e| format!("check: {e}"))
    }

    fn check(&self) -> Outcome {
        let errors = self.report()?.errors;
        match errors.is_empty() {
            true => Ok(()),
            false => Err(format!("check: {:?}", &errors[..errors.len().min(6)])),
        }
    }

    fn compare(&self) -> Outcome {
        let have = observe(self.fs()).map_err(|e| format!("reading: {e}"))?;
        match have == *self.model() {
            true => Ok(()),
            false => Err(difference(self.model(), &have)),
        }
    }

    /// Power fails; what comes back is one of the states since the last that was durable.
    fn crash(&mut self) -> Outcome {
        self.device.cut_power();
        self.open.clear();
        self.fs = None;
        let seed = self.rng.bits();
        self.device.crash(seed);
        self.check()?;
        self.mount()?;
        let have = observe(self.fs()).map_err(|e| format!("reading after a crash: {e}"))?;
        let at = self.history.iter().rposition(|m| *m == have);
        let at = at.ok_or_else(|| {
            let n = self.history.len();
            format!("none of {n} states; to the last: {}", difference(self.model(), &have))
        })?;
        self.history = vec![self.history.swap_remove(at)];
        Ok(())
    }

    fn pick(&mut self, from: Vec<String>) -> Option<String> {
        (!from.is_empty()).then(|| from[self.rng.index(from.len())].clone())
    }

    fn fresh(&mut self, kind: &str) -> String {
        self.names += 1;
        format!("{kind}{}", self.names)
    }

    fn position(&mut self) -> u64 {
        let base = [0, 0, 250, 600, 65_530][self.rng.index(5)];
        base + self.rng.index(10) as u64
    }

    /// An operation that can be done; `None`: this draw had nothing to work on.
    fn draw(&mut self) -> Option<Op> {
        let volumes: Vec<String> = self.model().keys().cloned().collect();
        let v = self.pick(volumes.clone())?;
        let files = self.model()[&v].files.keys().cloned().collect();
        let snapshots = self.model()[&v].snapshots.keys().cloned().collect();
        let count = 1 + self.rng.index(12) as u64;
        Some(match self.rng.index(70) {
            0..=19 => {
                let (f, at) = (self.pick(files)?, self.position());
                let value = self.rng.bits() | 1 << 63;
                Op::Write { v, f, at, count, value: value & !0xff_ffff }
            }
            20..=23 => {
                let long = self.rng.index(3) == 0;
                let (at, many) = (self.position(), if long { 70_000 } else { count });
                Op::Punch { v, f: self.pick(files)?, at, count: many }
            }
            24..=25 => Op::Resize { v, f: self.pick(files)?, blocks: self.position() },
            26..=30 => Op::Create { v, f: self.fresh("f") },
            31..=33 => Op::Unlink { v, f: self.pick(files)? },
            34..=38 => {
                let mut of = volumes;
                of.retain(|_| self.rng.index(2) == 0);
                if of.is_empty() {
                    return None;
                }
                Op::Snapshot { of, s: self.fresh("s") }
            }
            39..=43 => Op::Delete { v, s: self.pick(snapshots)? },
            44 => Op::Refresh { v, s: self.pick(snapshots)? },
            45 => Op::Rename { v, s: self.pick(snapshots)?, to: self.fresh("r") },
            46..=47 => Op::Clone { v, s: self.pick(snapshots)?, new: self.fresh("c") },
            48..=49 if v != "/" => {
                Op::Rollback { v, s: self.pick(snapshots)?, keep: self.fresh("k") }
            }
            50 if volumes.len() < 6 => Op::VolumeCreate { v: self.fresh("v") },
            51 if v != "/" && snapshots.is_empty() => Op::VolumeDelete { v },
            52..=53 => Op::Sync,
            60..=69 => return self.draw_clone(v, files),
            _ => Op::Maintain,
        })
    }

    /// Ranges that lie alike share nodes, others blocks.
    fn draw_clone(&mut self, v: String, files: Vec<String>) -> Option<Op> {
        let volumes = self.model().keys().cloned().collect();
        let u = self.pick(volumes)?;
        let snapshots = self.model()[&u].snapshots.keys().cloned().collect();
        let s = if self.rng.index(2) == 0 { self.pick(snapshots) } else { None };
        let volume = &self.model()[&u];
        let tree = s.as_ref().map_or(&volume.files, |s| &volume.snapshots[s]);
        let g = self.pick(tree.keys().cloned().collect())?;
        let f = self.pick(files)?;
        let (at, to, count) = match self.rng.index(4) {
            0 => (0, 0, 70_000),
            1 => (0, 0, 256 * (1 + self.rng.index(4) as u64)),
            2 => (256, [0, 512][self.rng.index(2)], 512),
            _ => (self.position(), self.position(), 1 + self.rng.index(300) as u64),
        };
        // Large overlapping ranges go in several pieces, and are not one step.
        let is_same = (&u, &s, &g) == (&v, &None, &f);
        (!is_same || count < 1000).then_some(Op::CloneRange { of: (u, s, g), at, v, f, to, count })
    }

    /// Deletes some snapshots of a volume: what is freed is what was told.
    fn delete_some(&mut self) -> Outcome {
        let volumes = self.model().keys().cloned().collect();
        let Some(v) = self.pick(volumes) else { return Ok(()) };
        let mut names: Vec<String> = self.model()[&v].snapshots.keys().cloned().collect();
        names.retain(|_| self.rng.index(2) == 0);
        // What is open is freed later.
        self.open.clear();
        let mut ids = Vec::new();
        let id = id_of(self.fs(), &v).map_err(text)?;
        for name in &names {
            let found = self.fs().snapshot_lookup(id, name).map_err(text)?;
            ids.extend(found.map(|s| s.id));
        }
        let used = |world: &World| -> Outcome<u64> {
            while world.fs().maintain().map_err(text)? {}
            let report = world.report()?;
            Ok(report.used_blocks - report.table_blocks)
        };
        let before = used(self)?;
        let told = self.fs().freed_bytes(&ids).map_err(text)? / BS;
        for s in &names {
            self.perform(Op::Delete { v: v.clone(), s: s.clone() }, false)?;
        }
        let freed = before - used(self)?;
        match told == freed {
            true => self.check(),
            false => Err(format!("{v}: {told} blocks told for {names:?}, {freed} freed")),
        }
    }

    fn step(&mut self) -> Outcome {
        let what = self.rng.index(100);
        if what < 3 {
            return self.crash();
        }
        if what < 8 {
            return self.compare();
        }
        if what < 9 {
            return self.delete_some();
        }
        if what < 11 {
            self.open.clear();
            return Ok(());
        }
        let Some(op) = self.draw() else { return Ok(()) };
        if let (Op::Unlink { v, f }, 0) = (&op, self.rng.index(2)) {
            let file = open(self.fs(), v, f).map_err(text)?;
            self.open.push(file);
        }
        let dies = self.rng.index(30) == 0;
        if dies {
            let calls = self.device.calls() + 1 + self.rng.index(40) as u64;
            self.device.power_fails_at(Some(calls));
        }
        self.perform(op, dies)?;
        if dies {
            return self.crash();
        }
        Ok(())
    }

    fn perform(&mut self, op: Op, dies: bool) -> Outcome {
        if self.trace {
            println!("{op:?}");
        }
        let done = perform(self.fs(), &op);
        let mut next = self.model().clone();
        apply(&mut next, &op);
        self.history.push(next);
        match done {
            Ok(()) if is_barrier(&op) => drop(self.history.drain(..self.history.len() - 1)),
            Ok(()) => {}
            Err(_) if dies => {}
            Err(e) => return Err(format!("{op:?}: {e}")),
        }
        Ok(())
    }

    /// Deletes everything in random order; the pool must then be as it was when it was new.
    fn wind_up(&mut self, new: &Report) -> Outcome {
        self.open.clear();
        let rng = &mut self.rng;
        let mut left: Vec<Op> = Vec::new();
        let model = self.history.last().unwrap().clone();
        for (v, volume) in &model {
            left.extend(volume.snapshots.keys().map(|s| Op::Delete { v: v.clone(), s: s.clone() }));
            let files = volume.files.keys();
            left.extend(files.map(|f| Op::Unlink { v: v.clone(), f: f.clone() }));
        }
        for i in (1..left.len()).rev() {
            left.swap(i, rng.index(i + 1));
        }
        left.extend(model.keys().filter(|v| *v != "/").map(|v| Op::VolumeDelete { v: v.clone() }));
        for op in left {
            self.perform(op, false)?;
            if self.rng.index(12) == 0 {
                self.perform(Op::Maintain, false)?;
            }
            if self.rng.index(40) == 0 {
                self.crash()?;
                return self.wind_up(new);
            }
        }
        while self.fs().maintain().map_err(text)? {}
        self.fs().close().map_err(text)?;
        self.fs = None;
        self.check()?;
        let end = self.report()?;
        // Left are the directory of the tree's snapshots, its dead list, the list of deleted
        // versions and the counts of clones, all four empty, and a bucket each of three
        // directories.
        if end.inodes > new.inodes + 4 || end.used_blocks > new.used_blocks + 6 {
            return Err(format!(
                "{} inodes and {} blocks are left of {} and {}",
                end.inodes, end.used_blocks, new.inodes, new.used_blocks
            ));
        }
        Ok(())
    }
}

fn run(seed: u64) -> Outcome {
    let mut world = World::new(seed);
    let new = world.report()?;
    world.mount()?;
    for v in ["a", "b"] {
        world.perform(Op::VolumeCreate { v: v.into() }, false)?;
    }
    for step in 0..env("LUNFS_VERSIONS_STEPS").unwrap_or(STEPS) {
        world.step().map_err(|e| format!("step {step}: {e}"))?;
    }
    world.compare().map_err(|e| format!("at the end: {e}"))?;
    world.wind_up(&new).map_err(|e| format!("wound up: {e}"))
}

#[test]
fn versions_read_as_they_were() {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let first = env("LUNFS_VERSIONS_FIRST").unwrap_or(since.as_millis() as u64 % 1_000_000_000);
    let count = env("LUNFS_VERSIONS_SEEDS").unwrap_or(FRESH_SEEDS);
    let seeds: Vec<u64> = match env("LUNFS_VERSIONS_SEED") {
        Some(seed) => vec![seed],
        None => FIXED_SEEDS.into_iter().chain(first..first + count).collect(),
    };
    let mut failures = Vec::new();
    for seed in seeds {
        if let Err(why) = run(seed) {
            println!("seed {seed}: {why}");
            failures.push(seed);
        }
    }
    assert!(failures.is_empty(), "seeds {failures:?}");
}
