//! Operations, and the generator that draws them: a function of its generator and the model, so
//! that one seed is one schedule.

use super::model::{Body, Model, BLOCK};
use super::ranges::CloneRange;
use super::versions::Version;
use lunfs::device::sim::Rng;
use lunfs::fs::{
    NodeId, NodeKind, Owner, RenameMode, SetAttr, VolumeId, XattrMode, ATOMIC_WRITE_BYTES,
    MAX_FILE_BYTES,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Bytes that are a function of a seed: a log of operations stays small.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Data {
    pub len: usize,
    pub seed: u64,
}

impl Data {
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = vec![0; self.len];
        // Every eighth one writes zeros: they must not be taken for holes' leftovers.
        if self.seed % 8 != 0 {
            Rng::new(self.seed).fill(&mut out);
        }
        out
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    File,
    Directory,
    Symlink(Vec<u8>),
    Special(NodeKind, u32),
}

/// An operation that changes something.
#[derive(Debug, Clone)]
pub enum Op {
    Create { dir: NodeId, name: Vec<u8>, what: What, owner: Owner },
    Link { node: NodeId, dir: NodeId, name: Vec<u8> },
    Unlink { dir: NodeId, name: Vec<u8> },
    Rmdir { dir: NodeId, name: Vec<u8> },
    Rename { dir: NodeId, name: Vec<u8>, to_dir: NodeId, to_name: Vec<u8>, mode: RenameMode },
    Write { node: NodeId, offset: u64, data: Data },
    Append { node: NodeId, data: Data },
    Update { node: NodeId, offset: u64, data: Data, refuse: bool },
    Punch { node: NodeId, offset: u64, len: u64 },
    Zeros { node: NodeId, offset: u64, len: u64, keep_size: bool },
    SetSize { node: NodeId, size: u64, by_attr: bool },
    SetAttr { node: NodeId, change: SetAttr },
    XattrSet { node: NodeId, name: Vec<u8>, value: Data, mode: XattrMode },
    XattrRemove { node: NodeId, name: Vec<u8> },
    VolumeCreate { name: String, owner: Owner },
    VolumeRename { from: String, to: String },
    VolumeDelete { name: String },
    Open { node: NodeId },
    Close { node: NodeId },
    Version(Version),
    CloneRange(CloneRange),
}

impl Op {
    /// Nodes whose attributes it may change, but for what it makes.
    pub fn touches(&self, before: &Model) -> Vec<NodeId> {
        let child = |dir: &NodeId, name: &[u8]| {
            before.entries(*dir).ok().and_then(|entries| entries.get(name)).copied()
        };
        match self {
            Op::Create { dir, .. } => vec![*dir],
            Op::Link { node, dir, .. } => vec![*node, *dir],
            Op::Unlink { dir, name } | Op::Rmdir { dir, name } => {
                std::iter::once(*dir).chain(child(dir, name)).collect()
            }
            Op::Rename { dir, name, to_dir, to_name, .. } => {
                let named = child(dir, name).into_iter().chain(child(to_dir, to_name));
                [*dir, *to_dir].into_iter().chain(named).collect()
            }
            Op::Write { node, .. }
            | Op::Append { node, .. }
            | Op::Update { node, .. }
            | Op::Punch { node, .. }
            | Op::Zeros { node, .. }
            | Op::SetSize { node, .. }
            | Op::SetAttr { node, .. }
            | Op::XattrSet { node, .. }
            | Op::XattrRemove { node, .. } => vec![*node],
            Op::VolumeCreate { .. } | Op::VolumeRename { .. } | Op::VolumeDelete { .. } => vec![],
            Op::CloneRange(op) => vec![op.to],
            Op::Open { .. } | Op::Close { .. } | Op::Version(_) => vec![],
        }
    }

    /// It changes a file's bytes, no names.
    pub fn is_data(&self) -> bool {
        use Op::*;
        let data = matches!(self, Write { .. } | Append { .. } | Update { .. } | Punch { .. });
        data || matches!(self, Zeros { .. } | SetSize { .. } | SetAttr { .. })
    }

    /// It changes names of volumes, or of their versions.
    pub fn is_of_volumes(&self) -> bool {
        use Op::*;
        let named = matches!(self, VolumeCreate { .. } | VolumeRename { .. } | VolumeDelete { .. });
        named || matches!(self, Version(_))
    }

    /// The volume that is no more after it.
    pub fn ends(&self, model: &Model) -> Option<VolumeId> {
        match self {
            Op::VolumeDelete { name } => model.volumes.get(name).copied(),
            Op::Version(op) => op.ends(model),
            _ => None,
        }
    }

    /// Deletes and what makes files smaller must work on a full pool.
    pub fn must_have_space(&self) -> bool {
        use Op::*;
        let handles = matches!(self, Open { .. } | Close { .. });
        let ends =
            matches!(self, VolumeDelete { .. } | Version(super::versions::Version::Delete { .. }));
        handles || ends || matches!(self, Unlink { .. } | Rmdir { .. })
    }

    /// Not one atomic step: a crash may leave the first part of it.
    pub fn is_long(&self) -> bool {
        match self {
            Op::Write { data, .. } | Op::Append { data, .. } => data.len > ATOMIC_WRITE_BYTES,
            // Space is allocated in steps.
            Op::Zeros { .. } | Op::CloneRange(_) => true,
            _ => false,
        }
    }
}

/// What a run is mostly about; drawn once from its seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Everything.
    Mixed,
    /// Many names, links and renames.
    Names,
    /// A few files written all over.
    Data,
    /// Small writes into few blocks: partial blocks, overwrites, merges.
    Sectors,
    /// Writes of one to two MiB, each of which must be whole after a crash.
    Large,
    /// Volumes come and go.
    Volumes,
    /// Data until the pool is full.
    Full,
    /// Snapshots, clones and rollbacks.
    Versions,
}

impl Profile {
    pub const ALL: [Profile; 8] = {
        use Profile::*;
        [Mixed, Names, Data, Sectors, Large, Volumes, Full, Versions]
    };

    pub fn draw(rng: &mut Rng) -> Profile {
        use Profile::*;
        [Mixed, Mixed, Names, Data, Sectors, Large, Volumes, Full, Versions, Versions]
            [rng.index(10)]
    }

    /// Weights of: create, link, unlink, rmdir, rename, data, attributes, volumes, handles,
    /// versions.
    fn weights(self) -> [u64; 10] {
        match self {
            Profile::Mixed => [12, 3, 6, 3, 6, 40, 8, 3, 8, 4],
            Profile::Names => [30, 8, 14, 8, 20, 8, 4, 1, 6, 1],
            Profile::Data | Profile::Sectors | Profile::Large => [3, 1, 1, 1, 1, 80, 3, 1, 4, 3],
            Profile::Volumes => [14, 2, 5, 2, 4, 20, 4, 20, 8, 6],
            Profile::Full => [6, 1, 2, 1, 1, 60, 1, 2, 3, 3],
            Profile::Versions => [8, 1, 4, 1, 2, 40, 3, 4, 5, 25],
        }
    }
}

/// Draws operations for a model.
pub struct Generator<'a> {
    pub rng: &'a mut Rng,
    pub model: &'a Model,
    pub profile: Profile,
    /// Inside another operation: only what is short.
    pub short: bool,
    /// A file that only takes room: left alone.
    pub ballast: Option<NodeId>,
}

/// The name of the file that only takes room.
pub const BALLAST: &[u8] = b"ballast";

impl Generator<'_> {
    /// The next operation.
    pub fn draw(&mut self) -> Op {
        let weights = self.profile.weights();
        let mut at = self.rng.below(weights.iter().sum());
        let mut class = 0;
        while at >= weights[class] {
            at -= weights[class];
            class += 1;
        }
        let drawn = match class {
            0 => None,
            1 => self.link(),
            2 => self.remove(false),
            3 => self.remove(true),
            4 => self.rename(),
            5 => self.data(),
            6 => self.attributes(),
            7 => Some(self.volume()),
            8 => self.handle(),
            _ => self.version(),
        };
        drawn.unwrap_or_else(|| self.create())
    }

    /// A node that may be changed.
    fn pick(&mut self, wanted: impl Fn(&Model, NodeId) -> bool) -> Option<NodeId> {
        let frozen: BTreeSet<VolumeId> =
            self.model.all_snaps().map(|(_, _, snap)| snap.id).collect();
        self.pick_any(|model, id| !frozen.contains(&id.volume) && wanted(model, id))
    }

    pub(super) fn pick_any(&mut self, wanted: impl Fn(&Model, NodeId) -> bool) -> Option<NodeId> {
        let all: Vec<NodeId> = self.model.nodes.keys().copied().collect();
        let free = all.into_iter().filter(|&id| Some(id) != self.ballast);
        let fit: Vec<NodeId> = free.filter(|&id| wanted(self.model, id)).collect();
        fit.get(self.rng.index(fit.len().max(1))).copied()
    }

    fn dir(&mut self) -> NodeId {
        // A directory with many names is split.
        if self.profile == Profile::Names && self.rng.chance(2, 3) {
            return NodeId::root(VolumeId::TREE);
        }
        let found = self.pick(|model, id| model.is_dir(id));
        found.unwrap_or(NodeId::root(VolumeId::TREE))
    }

    /// A regular file, now and then one that has no name any more.
    fn file(&mut self) -> Option<NodeId> {
        if self.rng.chance(1, 6) {
            let nameless: Vec<NodeId> = self.model.orphans.keys().copied().collect();
            let found = nameless.get(self.rng.index(nameless.len().max(1))).copied();
            let is_file =
                |id: &NodeId| self.model.get(*id).is_some_and(|node| node.kind == NodeKind::File);
            if let Some(id) = found.filter(is_file) {
                return Some(id);
            }
        }
        self.pick(|model, id| model.get(id).is_some_and(|node| node.kind == NodeKind::File))
    }

    fn name(&mut self) -> Vec<u8> {
        let names = if self.profile == Profile::Names { 400 } else { 24 };
        let number = self.rng.below(names);
        // Long names fill a directory's bucket soon.
        let long = if self.profile == Profile::Names { 2 } else { 40 };
        match self.rng.below(long) {
            0 => format!("n{number:0>254}").into_bytes(),
            1 if self.rng.chance(1, 20) => vec![b'n', 0xFF, number as u8 | 0x80],
            _ => format!("n{number}").into_bytes(),
        }
    }

    /// A name that is there, mostly.
    fn entry(&mut self) -> (NodeId, Vec<u8>) {
        for _ in 0..4 {
            let dir = self.dir();
            let names = |e: &BTreeMap<Vec<u8>, NodeId>| -> Vec<Vec<u8>> {
                e.keys().filter(|name| *name != BALLAST).cloned().collect()
            };
            let there = self.model.entries(dir).map(names).unwrap_or_default();
            if let Some(name) = there.get(self.rng.index(there.len().max(1))) {
                return (dir, name.clone());
            }
        }
        (self.dir(), self.name())
    }

    fn owner(&mut self) -> Owner {
        let mode = [0o644, 0o755, 0o4755, 0o1777, 0][self.rng.index(5)];
        Owner { mode, uid: self.rng.below(3) as u32 * 1000, gid: self.rng.below(2) as u32 * 50 }
    }

    fn create(&mut self) -> Op {
        let what = match self.rng.below(16) {
            0..=8 => What::File,
            9..=13 => What::Directory,
            14 => {
                let len = [1, 40, 600, 4095][self.rng.index(4)];
                What::Symlink(vec![b'a' + self.rng.below(26) as u8; len])
            }
            _ => match self.rng.below(4) {
                0 => What::Special(NodeKind::Fifo, 0),
                1 => What::Special(NodeKind::Socket, 0),
                2 => What::Special(NodeKind::CharDevice, 0x103),
                _ => What::Special(NodeKind::BlockDevice, 0x801),
            },
        };
        Op::Create { dir: self.dir(), name: self.name(), what, owner: self.owner() }
    }

    fn link(&mut self) -> Option<Op> {
        let node = self.pick(|model, id| !model.is_dir(id))?;
        Some(Op::Link { node, dir: self.dir(), name: self.name() })
    }

    fn remove(&mut self, directory: bool) -> Option<Op> {
        let (mut dir, mut name) = self.entry();
        // Mostly one of the right kind.
        for _ in 0..6 {
            let id = self.model.entries(dir).ok().and_then(|e| e.get(&name)).copied();
            if id.is_some_and(|id| self.model.is_dir(id) == directory) {
                break;
            }
            (dir, name) = self.entry();
        }
        Some(if directory { Op::Rmdir { dir, name } } else { Op::Unlink { dir, name } })
    }

    fn rename(&mut self) -> Option<Op> {
        let (dir, name) = self.entry();
        let (to_dir, to_name) = match self.rng.below(3) {
            0 => self.entry(),
            1 => (dir, self.name()),
            _ => (self.dir(), self.name()),
        };
        use RenameMode::*;
        let mode = [Replace, Replace, Replace, NoReplace, Exchange][self.rng.index(5)];
        Some(Op::Rename { dir, name, to_dir, to_name, mode })
    }

    fn len(&mut self) -> usize {
        let rng = &mut *self.rng;
        let largest = if self.short { 64 << 10 } else { 1 << 20 };
        // Long ones cost most of a run's time, and are what some profiles are about.
        let kind = match self.profile {
            Profile::Data | Profile::Large | Profile::Full => rng.below(16),
            _ if rng.chance(1, 4) => rng.below(16),
            _ => rng.below(13),
        };
        let len = match (self.profile, kind) {
            (Profile::Sectors, _) => 512 * (1 + rng.below(20)),
            (Profile::Full, 0) => ATOMIC_WRITE_BYTES as u64 + rng.below(3 << 20),
            (Profile::Full, _) => BLOCK * (1 + rng.below(256)),
            (Profile::Large, 0..=11) => {
                ATOMIC_WRITE_BYTES as u64 / 2 + rng.below(ATOMIC_WRITE_BYTES as u64 / 2 + 1)
            }
            (_, 0..=4) => 1 + rng.below(6000),
            (_, 5..=9) => BLOCK * (1 + rng.below(8)),
            (_, 10..=12) => 512 * (1 + rng.below(64)),
            (_, 13) => 1 + rng.below(300_000),
            (_, 14) => ATOMIC_WRITE_BYTES as u64 - rng.below(2) * rng.below(9000),
            _ => ATOMIC_WRITE_BYTES as u64 + rng.below(3 << 20),
        };
        match self.short {
            true => len.min(largest) as usize,
            false => len as usize,
        }
    }

    fn offset(&mut self, node: NodeId) -> u64 {
        let size = self.model.get(node).map_or(0, |node| node.size);
        let rng = &mut *self.rng;
        let near = match (self.profile, rng.below(20)) {
            (Profile::Sectors, _) => return 512 * rng.below(64),
            (Profile::Large, _) => rng.below(8 << 20),
            (_, 0..=5) => rng.below(size.min(8 << 20) + 1),
            (_, 6..=10) => rng.below(2048) * BLOCK,
            (_, 11..=13) => rng.below(64) * 512,
            (_, 14) => size.min(1 << 45),
            (_, 15) => (1 << 20) - 4096 * 3 + rng.below(6 * 4096),
            (_, 16) => (1 << 28) - 4096 * 3 + rng.below(6 * 4096),
            (_, 17) => (1 << 36) - 4096 + rng.below(2 * 4096),
            (_, 18) => (1 << 44) - 4096 + rng.below(2 * 4096),
            _ => MAX_FILE_BYTES - rng.below(4 << 20),
        };
        if rng.chance(1, 3) {
            near / BLOCK * BLOCK
        } else {
            near
        }
    }

    fn bytes(&mut self) -> Data {
        Data { len: self.len(), seed: self.rng.bits() }
    }

    fn data(&mut self) -> Option<Op> {
        let node = self.file()?;
        let offset = self.offset(node);
        let room = (MAX_FILE_BYTES - offset.min(MAX_FILE_BYTES)).max(1);
        if self.rng.chance(1, 14) {
            return self.clone_range();
        }
        Some(match self.rng.below(24) {
            0..=11 => Op::Write { node, offset, data: self.bytes() },
            12..=13 => {
                // An append is one atomic step, so no longer than that.
                let mut data = self.bytes();
                data.len = data.len.min(ATOMIC_WRITE_BYTES);
                Op::Append { node, data }
            }
            14..=16 => {
                let mut data = self.bytes();
                data.len = data.len.min(ATOMIC_WRITE_BYTES).min(room as usize);
                Op::Update { node, offset, data, refuse: self.rng.chance(1, 8) }
            }
            17..=19 => {
                let len = match self.rng.below(4) {
                    0 => MAX_FILE_BYTES,
                    1 => self.rng.below(1 << 30),
                    _ => self.len() as u64,
                };
                Op::Punch { node, offset, len: len.min(room) }
            }
            20 => {
                let len = (self.len().min(ATOMIC_WRITE_BYTES) as u64).min(room);
                Op::Zeros { node, offset, len, keep_size: self.rng.chance(1, 2) }
            }
            21..=22 => {
                let size = self.model.get(node).map_or(0, |node| node.size);
                let size = [0, size / 2, size.saturating_sub(1), offset][self.rng.index(4)];
                Op::SetSize { node, size, by_attr: self.rng.chance(1, 4) }
            }
            _ => Op::Write { node, offset: self.rng.below(4096), data: self.bytes() },
        })
    }

    fn attributes(&mut self) -> Option<Op> {
        let node = self.pick(|_, _| true)?;
        let number = self.rng.below(5);
        let name = format!("user.{number}").into_bytes();
        Some(match self.rng.below(6) {
            0..=2 => {
                let owner = self.owner();
                let some = |rng: &mut Rng, value| Some(value).filter(|_| rng.chance(1, 2));
                let change = SetAttr {
                    mode: some(self.rng, owner.mode),
                    uid: some(self.rng, owner.uid),
                    gid: some(self.rng, owner.gid),
                    ..SetAttr::default()
                };
                Op::SetAttr { node, change }
            }
            3..=4 => {
                use XattrMode::*;
                let len = [0, 5, 300, 4000, 9000][self.rng.index(5)];
                let value = Data { len, seed: self.rng.bits() };
                let mode = [Any, Any, Create, Replace][self.rng.index(4)];
                Op::XattrSet { node, name, value, mode }
            }
            _ => Op::XattrRemove { node, name },
        })
    }

    fn volume(&mut self) -> Op {
        let number = self.rng.below(6);
        let name = format!("v{number}");
        let there: Vec<String> = self.model.volumes.keys().cloned().collect();
        let some = there.get(self.rng.index(there.len().max(1))).cloned();
        match (self.rng.below(5), some) {
            (0, Some(from)) => Op::VolumeRename { from, to: format!("v{}", self.rng.below(8)) },
            (1, Some(name)) => Op::VolumeDelete { name },
            _ => Op::VolumeCreate { name, owner: self.owner() },
        }
    }

    fn handle(&mut self) -> Option<Op> {
        let open: Vec<NodeId> = self.model.open.iter().copied().collect();
        if open.len() > 12 || self.rng.chance(1, 2) {
            if let Some(&node) = open.get(self.rng.index(open.len().max(1))) {
                return Some(Op::Close { node });
            }
        }
        let file = |model: &Model, id| model.get(id).is_some_and(|n| n.kind == NodeKind::File);
        let node = if self.rng.chance(1, 3) { self.pick_any(file) } else { self.file() }?;
        (!self.model.open.contains(&node)).then_some(Op::Open { node })
    }
}

/// The blocks that a model's files hold, those that versions have in common once: what bounds how
/// much a run may write.
pub fn blocks_held(model: &Model) -> usize {
    let mut seen = BTreeSet::new();
    let held = |node: &Arc<super::model::Node>| match &node.body {
        Body::File(blocks) if seen.insert(Arc::as_ptr(node)) => blocks.len(),
        _ => 0,
    };
    model.nodes.values().chain(model.orphans.values()).map(held).sum()
}
