//! What happens inside another call, at the calls of the devices: operations, syncs, consistency
//! points and reads, of another part of the tree than the call under way.
//!
//! All is one thread, so a lock held across a device call is not waited for: the filesystem tells
//! which are free. What the call under way may be changing is left alone, but for writes beside its
//! range, so that the order of the two makes no difference to what is there when both are done.

use super::character::Done;
use super::model::{Model, BLOCK};
use super::ops::{Data, Op};
use super::perform::{draw_beside, node_of, range_of, Range};
use super::world::{Inner, World};
use fs_layout::SEGMENT_BLOCKS;
use lunfs::device::sim::{IoEvent, IoKind, Rng};
use lunfs::fs::{Fs, NodeId, VolumeId};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::Arc;

/// Calls inside one call: a write that merges begins again after each that changed its block.
const CALLS_INSIDE: usize = 24;

/// The call under way, as far as calls inside it care.
#[derive(Default, Clone)]
pub struct Outer {
    /// Nodes that it may change.
    pub nodes: BTreeSet<NodeId>,
    /// Volumes that it needs.
    volumes: BTreeSet<VolumeId>,
    /// It changes names in `volumes`, or (without any) names of volumes.
    names: bool,
    /// It names volumes.
    names_volumes: bool,
    /// The range of a file that it reads.
    reads: Option<Range>,
    /// The range of a file that it changes: calls inside it may keep beside that.
    beside: Option<Range>,
}

impl Outer {
    pub fn of(op: &Op, model: &Model) -> Outer {
        let nodes = involved(op, model);
        let named = match op {
            Op::VolumeRename { from, .. } => model.volumes.get(from).copied(),
            _ => op.ends(model),
        };
        let captured = captures(op, model);
        Outer {
            volumes: nodes.iter().map(|id| id.volume).chain(named).chain(captured).collect(),
            nodes,
            names: names_volume(op).is_some() && !op.is_data(),
            names_volumes: op.is_of_volumes(),
            reads: None,
            beside: range_of(op),
        }
    }

    /// A reader of this range.
    pub fn reader(range: Range) -> Outer {
        Outer { volumes: [range.0.volume].into(), reads: Some(range), ..Outer::default() }
    }

    /// Does it leave alone what a reader of this node needs?
    fn may_read(&self, id: NodeId) -> bool {
        let ends = self.names_volumes && self.volumes.contains(&id.volume);
        !ends && !self.nodes.contains(&id)
    }

    /// A reader of these volumes.
    pub fn of_volumes(volumes: [VolumeId; 2]) -> Outer {
        Outer { volumes: volumes.into(), ..Outer::default() }
    }

    fn allows(&self, op: &Op, model: &Model) -> bool {
        let nodes = involved(op, model);
        if op.is_of_volumes() {
            // What is changing may be in a snapshot or not.
            let captured = captures(op, model).iter().any(|id| self.volumes.contains(id));
            let ends = op.ends(model).is_some_and(|id| self.volumes.contains(&id));
            return !self.names_volumes && !ends && (!captured || self.reads.is_some());
        }
        let same_volume = nodes.iter().any(|id| self.volumes.contains(&id.volume));
        let both_name = self.names && !op.is_data() && same_volume;
        let ends = self.names_volumes && same_volume;
        !both_name && !ends && nodes.is_disjoint(&self.nodes)
    }
}

fn captures(op: &Op, model: &Model) -> Vec<VolumeId> {
    match op {
        Op::Version(op) => op.captures(model),
        _ => Vec::new(),
    }
}

fn involved(op: &Op, model: &Model) -> BTreeSet<NodeId> {
    let handle = match op {
        Op::Open { node } | Op::Close { node } => Some(*node),
        _ => None,
    };
    op.touches(model).into_iter().chain(handle).collect()
}

/// The volume whose names an operation locks.
fn names_volume(op: &Op) -> Option<VolumeId> {
    match op {
        Op::Create { dir, .. } | Op::Unlink { dir, .. } | Op::Rmdir { dir, .. } => Some(dir.volume),
        Op::Link { dir, .. } | Op::Rename { dir, .. } => Some(dir.volume),
        Op::XattrSet { node, .. } | Op::XattrRemove { node, .. } => Some(node.volume),
        Op::Open { node } | Op::Close { node } => Some(node.volume),
        _ => node_of(op).map(|node| node.volume),
    }
}

impl World {
    pub(super) fn on_io(&self, event: &IoEvent) {
        if !event.done {
            let call = self.calls.fetch_add(1, SeqCst) + 1;
            self.note_io(event);
            self.perhaps_cut(call, event);
        }
        if self.power_is_off() || !self.may_nest.swap(false, SeqCst) {
            return;
        }
        if let Err(why) = self.inside() {
            self.inner.lock().failure.get_or_insert(format!("inside another call: {why}"));
        }
        self.may_nest.store(true, SeqCst);
    }

    /// The power fails where the schedule wants it to.
    fn perhaps_cut(&self, call: u64, event: &IoEvent) {
        let flush = event.kind == IoKind::Flush;
        let of_root = match event.kind {
            IoKind::Write => self.wrote_root.swap(event.first < SEGMENT_BLOCKS, SeqCst),
            _ => self.wrote_root.load(SeqCst),
        };
        let now = match self.cut_when.load(SeqCst) {
            2 => flush,
            3 => flush && of_root,
            _ => true,
        };
        let cut_at = self.cut_at.load(SeqCst);
        if cut_at != 0 && call >= cut_at && now {
            self.devices.iter().for_each(|device| device.cut_power());
        }
    }

    fn inside(&self) -> Done {
        let fs = self.fs()?;
        let (mut rng, mut left) = {
            let inner = &mut *self.inner.lock();
            let left = CALLS_INSIDE.saturating_sub(inner.log.len() - inner.outer_began);
            (inner.nested.fork(), left)
        };
        // Much happens to a file while it is read, or nothing.
        let reader = self.inner.lock().outer.reads;
        let nests = self.character.nest_one_in;
        let mut goes_on = rng.chance(1, nests);
        let (more, of) = if reader.is_some() { (7, 8) } else { (1, nests) };
        while left > 0 && std::mem::replace(&mut goes_on, rng.chance(more, of)) && !self.may_fail()
        {
            left -= 1;
            let free = fs.free_locks();
            if !free.space || !free.members {
                return Ok(());
            }
            match (reader, rng.below(16)) {
                (None, 0) | (Some(_), 0..=3) => self.point_inside(&fs)?,
                (_, 1 | 4) if free.log => self.sync_inside(&fs)?,
                (None, 2) => self.look_inside(&fs, &mut rng)?,
                (None, 3) if free.cp && free.log => self.scrub_inside(&fs, &mut rng)?,
                (Some(range), 5..=9) => self.overwrite_inside(&fs, range, &mut rng)?,
                _ => self.operate_inside(&fs, &mut rng)?,
            }
        }
        Ok(())
    }

    /// Overwrites or punches a part of the file that is being read.
    fn overwrite_inside(&self, fs: &Arc<Fs>, range: Range, rng: &mut Rng) -> Done {
        let (node, start, end) = range;
        let offset = start / BLOCK * BLOCK;
        let len = BLOCK * (1 + rng.below((end - offset).div_ceil(BLOCK)));
        let op = match rng.below(3) {
            0 => Op::Punch { node, offset, len },
            _ => Op::Write { node, offset, data: Data { len: len as usize, seed: rng.bits() } },
        };
        let there = {
            let model = &self.inner.lock().model;
            model.get(node).is_some() && !model.is_frozen(node.volume)
        };
        match there && self.locks_are_free(fs, &op) {
            true => self.perform(op, true),
            false => Ok(()),
        }
    }

    fn scrub_inside(&self, fs: &Arc<Fs>, rng: &mut Rng) -> Done {
        self.trace(|| "    inside: scrub".to_string());
        let result = fs.scrub_step(1 + rng.below(400));
        self.unless_broken(result, "a scrub's step")
    }

    fn point_inside(&self, fs: &Arc<Fs>) -> Done {
        self.trace(|| "    inside: consistency_point".to_string());
        let result = fs.consistency_point();
        self.unless_broken(result, "a consistency point")
    }

    fn sync_inside(&self, fs: &Arc<Fs>) -> Done {
        self.trace(|| "    inside: sync".to_string());
        let before = self.inner.lock().log.len();
        let result = fs.sync();
        if result.is_ok() {
            self.inner.lock().raise_floor(before);
        }
        self.unless_broken(result, "sync")
    }

    fn look_inside(&self, fs: &Arc<Fs>, rng: &mut Rng) -> Done {
        let (id, model) = {
            let inner = self.inner.lock();
            let open: Vec<NodeId> = inner.files.keys().copied().collect();
            let Some(&id) = open.get(rng.index(open.len().max(1))) else { return Ok(()) };
            if !inner.outer.may_read(id) {
                return Ok(());
            }
            (id, inner.model.clone())
        };
        let file = self.inner.lock().files.get(&id).cloned();
        let file = file.filter(|_| fs.names_are_free(Some(id.volume)));
        let (_, start, end) = World::draw_range(id, &model, rng);
        file.map_or(Ok(()), |file| self.read_range(&file, &model, start, end))
    }

    fn operate_inside(&self, fs: &Arc<Fs>, rng: &mut Rng) -> Done {
        let op = {
            let inner = self.inner.lock();
            let beside = inner.outer.beside.filter(|_| rng.chance(1, 2));
            match beside {
                Some(range) => draw_beside(rng, range),
                None => {
                    let op = self.draw(&inner.model, rng, true);
                    inner.outer.allows(&op, &inner.model).then_some(op)
                }
            }
        };
        let Some(op) = op.filter(|op| self.locks_are_free(fs, op)) else { return Ok(()) };
        self.perform(op, true)
    }

    fn locks_are_free(&self, fs: &Arc<Fs>, op: &Op) -> bool {
        let open = |inner: &Inner| node_of(op).is_some_and(|id| inner.files.contains_key(&id));
        match names_volume(op) {
            // Snapshots flush.
            _ if matches!(op, Op::Version(_)) => fs.free_locks().log && fs.names_are_free(None),
            _ if op.is_of_volumes() => fs.names_are_free(None),
            Some(volume) => open(&self.inner.lock()) || fs.names_are_free(Some(volume)),
            None => true,
        }
    }
}
