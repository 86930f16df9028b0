//! Snapshots, clones and rollbacks: as operations, in the model, and read beside it.
//!
//! In the model a snapshot is a volume that nobody names: its nodes are those of the volume that it
//! was made of, under its own id.

use super::character::Done;
use super::inside::Outer;
use super::model::{Applied, Blocks, Body, Kind, Made, Model, Node, BLOCK};
use super::observe::ensure;
use super::ops::{Data, Generator, Op};
use super::perform::Answer;
use super::world::World;
use lunfs::device::sim::Rng;
use lunfs::fs::{self, DiffBase, Fs, NodeId, NodeKind, Timestamp, VolumeId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Volumes of which one call makes snapshots, at most.
pub const AT_ONCE: usize = 3;
/// Snapshots of a pool, and volumes beside them: each is read as a whole again and again.
const MAX_SNAPSHOTS: usize = 6;
const MAX_VOLUMES: usize = 7;
/// A time that is over whatever the schedule does with the clock, and one that never comes.
const PAST: Timestamp = Timestamp(i64::MIN / 2);
const FUTURE: Timestamp = Timestamp(i64::MAX / 2);

/// A snapshot, as its list tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snap {
    pub id: VolumeId,
    pub held: bool,
    pub until: Option<Timestamp>,
}

/// Snapshots by the live volume and their names.
pub type Snaps = BTreeMap<VolumeId, BTreeMap<String, Snap>>;

#[derive(Debug, Clone)]
pub enum Version {
    Snapshot { of: Vec<VolumeId>, name: String },
    Delete { volume: VolumeId, name: String },
    Rename { volume: VolumeId, from: String, to: String },
    Refresh { volume: VolumeId, name: String },
    Hold { volume: VolumeId, name: String, held: bool, until: Option<Timestamp> },
    Clone { snapshot: VolumeId, name: String },
    Rollback { volume: String, snapshot: String, keep: String },
}

impl Version {
    /// Volumes that are no more after it.
    pub fn ends(&self, model: &Model) -> Option<VolumeId> {
        match self {
            Version::Delete { volume, name } | Version::Refresh { volume, name } => {
                model.snapshots.get(volume)?.get(name).map(|snap| snap.id)
            }
            Version::Rollback { volume, .. } => model.volumes.get(volume).copied(),
            _ => None,
        }
    }

    /// Volumes of whose present state it makes a version.
    pub fn captures(&self, model: &Model) -> Vec<VolumeId> {
        match self {
            Version::Snapshot { of, .. } => of.clone(),
            Version::Refresh { volume, .. } => vec![*volume],
            Version::Rollback { volume, .. } => {
                model.volumes.get(volume).copied().into_iter().collect()
            }
            _ => vec![],
        }
    }

    /// Durable when it returns, with all that was before it.
    pub fn is_durable(&self) -> bool {
        matches!(
            self,
            Version::Snapshot { .. } | Version::Refresh { .. } | Version::Rollback { .. }
        )
    }

    /// Done through the filesystem's API.
    pub fn perform(&self, fs: &Arc<Fs>) -> Answer {
        let mut versions = [None; AT_ONCE];
        match self {
            Version::Snapshot { of, name } => {
                let wanted: Vec<_> = of.iter().map(|id| (*id, name.as_str())).collect();
                let made = fs.snapshot_create(&wanted, false)?;
                versions.iter_mut().zip(made).for_each(|(to, id)| *to = Some(id));
            }
            Version::Delete { volume, name } => fs.snapshot_delete(*volume, name)?,
            Version::Rename { volume, from, to } => fs.snapshot_rename(*volume, from, to)?,
            Version::Refresh { volume, name } => {
                versions[0] = Some(fs.snapshot_refresh(*volume, name, None)?);
            }
            Version::Hold { volume, name, held, until } => {
                fs.snapshot_hold(*volume, name, *held, *until)?;
            }
            Version::Clone { snapshot, name } => {
                versions[0] = Some(fs.volume_clone(*snapshot, name)?);
            }
            Version::Rollback { volume, snapshot, keep } => {
                let id = fs.volume_rollback(volume, snapshot, keep)?;
                let kept = fs.snapshot_lookup(id, keep)?.ok_or(fs::Error::NotFound)?;
                versions = [Some(id), Some(kept.id), None];
            }
        }
        Ok((Made { versions, ..Made::default() }, None))
    }

    /// What it made, from what is there.
    pub fn made_as_seen(&self, seen: &Model) -> Made {
        let snap = |volume: VolumeId, name: &str| {
            seen.snapshots.get(&volume).and_then(|snaps| snaps.get(name)).map(|snap| snap.id)
        };
        let mut versions = [None; AT_ONCE];
        match self {
            Version::Snapshot { of, name } => {
                versions.iter_mut().zip(of).for_each(|(to, id)| *to = snap(*id, name));
            }
            Version::Refresh { volume, name } => versions[0] = snap(*volume, name),
            Version::Clone { name, .. } => versions[0] = seen.volumes.get(name).copied(),
            Version::Rollback { volume, keep, .. } => {
                versions[0] = seen.volumes.get(volume).copied();
                versions[1] = versions[0].and_then(|id| snap(id, keep));
            }
            _ => {}
        }
        Made { versions, ..Made::default() }
    }
}

impl Snap {
    fn new(id: VolumeId) -> Snap {
        Snap { id, held: false, until: None }
    }

    fn may_go(&self) -> bool {
        !self.held && self.until != Some(FUTURE)
    }
}

impl Model {
    pub fn is_frozen(&self, volume: VolumeId) -> bool {
        self.all_snaps().any(|(_, _, snap)| snap.id == volume)
    }

    /// Live volume, name, and what it names.
    pub fn all_snaps(&self) -> impl Iterator<Item = (VolumeId, &String, &Snap)> {
        self.snapshots.iter().flat_map(|(v, snaps)| snaps.iter().map(|(name, s)| (*v, name, s)))
    }

    fn is_live(&self, volume: VolumeId) -> bool {
        volume == VolumeId::TREE || self.volumes.values().any(|id| *id == volume)
    }

    fn snap(&self, volume: VolumeId, name: &str) -> Result<Snap, Kind> {
        let live = self.is_live(volume).then_some(()).ok_or(Kind::Any);
        live.and_then(|()| {
            self.snapshots.get(&volume).and_then(|s| s.get(name)).copied().ok_or(Kind::NotFound)
        })
    }

    pub(super) fn apply_version(&mut self, op: &Version, made: &Made) -> Applied {
        match op {
            Version::Snapshot { of, name } => self.snapshot(of, name, made),
            Version::Delete { volume, name } => {
                let snap = self.snap(*volume, name)?;
                snap.may_go().then_some(()).ok_or(Kind::Any)?;
                self.snapshots.get_mut(volume).and_then(|snaps| snaps.remove(name));
                self.end_volume(snap.id);
                Ok(())
            }
            Version::Rename { volume, from, to } => {
                let snap = self.snap(*volume, from)?;
                let snaps = self.snapshots.get_mut(volume).ok_or(Kind::NotFound)?;
                if snaps.contains_key(to) {
                    return Err(Kind::Exists);
                }
                snaps.remove(from);
                snaps.insert(to.clone(), snap);
                Ok(())
            }
            Version::Refresh { volume, name } => {
                let old = self.snap(*volume, name)?;
                old.may_go().then_some(()).ok_or(Kind::Any)?;
                let Some(id) = made.versions[0] else { return Ok(()) };
                self.end_volume(old.id);
                self.capture(*volume, name, id);
                Ok(())
            }
            Version::Hold { volume, name, held, until } => {
                self.snap(*volume, name)?;
                let snaps = self.snapshots.get_mut(volume).and_then(|snaps| snaps.get_mut(name));
                snaps.into_iter().for_each(|snap| (snap.held, snap.until) = (*held, *until));
                Ok(())
            }
            Version::Clone { snapshot, name } => self.clone_volume(*snapshot, name, made),
            Version::Rollback { volume, snapshot, keep } => {
                self.rollback(volume, snapshot, keep, made)
            }
        }
    }

    fn snapshot(&mut self, of: &[VolumeId], name: &str, made: &Made) -> Applied {
        if of.iter().any(|volume| !self.is_live(*volume)) {
            return Err(Kind::Any);
        }
        if of.iter().any(|volume| self.snap(*volume, name).is_ok()) {
            return Err(Kind::Exists);
        }
        for (volume, id) in of.iter().zip(made.versions) {
            id.into_iter().for_each(|id| self.capture(*volume, name, id));
        }
        Ok(())
    }

    fn clone_volume(&mut self, snapshot: VolumeId, name: &str, made: &Made) -> Applied {
        if !self.is_frozen(snapshot) {
            return Err(Kind::Any);
        }
        if self.volumes.contains_key(name) {
            return Err(Kind::Exists);
        }
        let Some(id) = made.versions[0] else { return Ok(()) };
        self.copy_volume(snapshot, id);
        self.volumes.insert(name.to_string(), id);
        Ok(())
    }

    fn rollback(&mut self, volume: &str, snapshot: &str, keep: &str, made: &Made) -> Applied {
        let old = *self.volumes.get(volume).ok_or(Kind::NotFound)?;
        let to = self.snap(old, snapshot)?;
        if self.snap(old, keep).is_ok() {
            return Err(Kind::Exists);
        }
        let [Some(id), Some(kept), _] = made.versions else { return Ok(()) };
        self.capture(old, keep, kept);
        self.copy_volume(to.id, id);
        let snaps = self.snapshots.remove(&old).unwrap_or_default();
        self.snapshots.insert(id, snaps);
        self.volumes.insert(volume.to_string(), id);
        self.end_volume(old);
        Ok(())
    }

    /// The live volume as it is becomes the snapshot of this name.
    fn capture(&mut self, volume: VolumeId, name: &str, id: VolumeId) {
        self.copy_volume(volume, id);
        self.made_of.insert(id, volume);
        self.derived.insert(volume);
        self.snapshots.entry(volume).or_default().insert(name.to_string(), Snap::new(id));
    }

    fn copy_volume(&mut self, from: VolumeId, to: VolumeId) {
        self.given(VolumeId(0), u64::from(to.0));
        self.derived.insert(to);
        let of_it = NodeId { volume: from, ino: 0 }..=NodeId { volume: from, ino: u64::MAX };
        let moved = |id: &NodeId| NodeId { volume: to, ..*id };
        let copy = |(id, node): (&NodeId, &Arc<Node>)| match &node.body {
            Body::Directory(entries) => {
                let entries = entries.iter().map(|(name, id)| (name.clone(), moved(id))).collect();
                let node = Node { body: Body::Directory(entries), ..Node::clone(node) };
                (moved(id), Arc::new(node))
            }
            _ => (moved(id), node.clone()),
        };
        let copies: Vec<(NodeId, Arc<Node>)> = self.nodes.range(of_it).map(copy).collect();
        self.nodes.extend(copies);
    }
}

impl Generator<'_> {
    pub(super) fn version(&mut self) -> Option<Op> {
        let model = self.model;
        let lives: Vec<VolumeId> =
            std::iter::once(VolumeId::TREE).chain(model.volumes.values().copied()).collect();
        let snaps: Vec<_> = model.all_snaps().map(|(v, name, s)| (v, name.clone(), *s)).collect();
        let new = format!("s{}", self.rng.below(10));
        let some = snaps.get(self.rng.index(snaps.len().max(1))).cloned();
        let what = match snaps.len() {
            0 => 0,
            MAX_SNAPSHOTS.. => 6 + self.rng.below(14),
            _ => self.rng.below(20),
        };
        let Some((volume, name, snap)) = some.filter(|_| what > 5) else {
            let from = self.rng.index(lives.len());
            let count = 1 + self.rng.index(lives.len().min(AT_ONCE));
            let of = (0..count).map(|n| lives[(from + n) % lives.len()]).collect();
            return Some(Op::Version(Version::Snapshot { of, name: new }));
        };
        Some(Op::Version(match what {
            6..=9 => Version::Delete { volume, name },
            10 => Version::Rename { volume, from: name, to: new },
            11..=12 => Version::Refresh { volume, name },
            13..=14 => {
                let held = self.rng.chance(1, 4);
                let until = [None, None, Some(PAST), Some(FUTURE)][self.rng.index(4)];
                Version::Hold { volume, name, held, until }
            }
            15..=16 if model.volumes.len() < MAX_VOLUMES => {
                Version::Clone { snapshot: snap.id, name: format!("v{}", self.rng.below(8)) }
            }
            17..=18 => {
                let found = model.volumes.iter().find(|(_, id)| **id == volume);
                Version::Rollback { volume: found?.0.clone(), snapshot: name, keep: new }
            }
            _ => return self.write_frozen(snap.id),
        }))
    }

    /// Nothing in a snapshot is changed.
    fn write_frozen(&mut self, volume: VolumeId) -> Option<Op> {
        let node = self.pick_any(|model, id| {
            id.volume == volume && model.get(id).is_some_and(|n| n.kind == NodeKind::File)
        })?;
        let data = Data { len: 1 + self.rng.index(9000), seed: self.rng.bits() };
        Some(Op::Write { node, offset: self.rng.below(20_000), data })
    }
}

impl World {
    /// What changed of a file between two snapshots, or since the epoch of one in its own history.
    pub(super) fn compare_versions(&self, rng: &mut Rng) -> Done {
        let fs = self.fs()?;
        let model = self.inner.lock().model.clone();
        let snaps: Vec<_> = model.all_snaps().map(|(v, name, s)| (v, name.clone(), s.id)).collect();
        let mut draw = || snaps.get(rng.index(snaps.len().max(1))).cloned();
        let (Some((live, name, old)), Some((_, _, new))) = (draw(), draw()) else { return Ok(()) };
        let is_file = |id: &NodeId, node: &Arc<Node>| {
            let before = model.get(NodeId { volume: old, ..*id });
            id.volume == new
                && node.kind == NodeKind::File
                && before.is_none_or(|node| node.kind == NodeKind::File)
        };
        let files = model.nodes.iter().filter(|(id, node)| is_file(id, node));
        let files: Vec<NodeId> = files.map(|(id, _)| *id).collect();
        let Some(&to) = files.get(rng.index(files.len().max(1))) else { return Ok(()) };
        let own = model.made_of.get(&old) == model.made_of.get(&new) && old < new;
        let base = match own && rng.chance(1, 2) {
            false => DiffBase::Snapshot(old),
            true => match fs.snapshot_lookup(live, &name) {
                Ok(Some(found)) => DiffBase::Epoch(found.epoch),
                Ok(None) => return Err(format!("snapshot {name} of {live:?} is not there")),
                Err(e) => return self.unless_broken::<()>(Err(e), "snapshot_lookup"),
            },
        };
        self.trace(|| format!("diff {base:?} of {to:?}"));
        self.begin(Outer::of_volumes([old, new]), true);
        let changed = all_changes(&fs, base, to, 1 + rng.index(30));
        self.end();
        self.inner.lock().faults.add("differences of versions", 1);
        match changed {
            Err(e) => self.unless_broken::<()>(Err(e), "diff"),
            Ok(changed) => {
                let before = NodeId { volume: old, ..to };
                // A file that was deleted later may be there all the same, as one that somebody
                // had open: what of it has not changed need not be told.
                let open = old > new && model.get(before).is_none();
                let before = blocks_of(&model, if open { to } else { before });
                judge(&changed, before, blocks_of(&model, to))
                    .map_err(|why| format!("diff {base:?} of {to:?}: {why}"))
            }
        }
    }
}

fn blocks_of(model: &Model, id: NodeId) -> Blocks {
    match model.get(id).map(|node| &node.body) {
        Some(Body::File(blocks)) => blocks.clone(),
        _ => Blocks::new(),
    }
}

/// First block, end, and whether it holds data.
type Change = (u64, u64, bool);

fn all_changes(fs: &Fs, base: DiffBase, to: NodeId, max: usize) -> fs::Result<Vec<Change>> {
    let (mut out, mut from) = (Vec::new(), Some(0));
    while let Some(at) = from {
        let diff = fs.diff(base, to, at, max)?;
        let block = |extent: &fs::ChangedExtent| {
            let end = extent.offset_bytes.saturating_add(extent.length_bytes);
            (extent.offset_bytes / BLOCK, end.div_ceil(BLOCK), extent.is_data)
        };
        out.extend(diff.extents.iter().map(block));
        from = diff.next_bytes;
    }
    Ok(out)
}

/// All that differs is told, as what it is now.
fn judge(changed: &[Change], old: Blocks, new: Blocks) -> Done {
    for (first, end, is_data) in changed {
        let there = new.range(*first..*end).count() as u64;
        let wanted = if *is_data { end - first } else { 0 };
        ensure(there == wanted, || {
            format!("blocks {first} to {end}, data: {is_data}, but {there} of them are data")
        })?;
    }
    let sorted = changed.windows(2).all(|two| two[0].1 <= two[1].0);
    ensure(sorted, || format!("not in order: {changed:?}"))?;
    let numbers: BTreeSet<u64> = old.keys().chain(new.keys()).copied().collect();
    for number in numbers.into_iter().filter(|n| old.get(n) != new.get(n)) {
        let told = changed.iter().any(|(first, end, _)| (*first..*end).contains(&number));
        ensure(told, || format!("block {number} changed, which is not told"))?;
    }
    Ok(())
}
