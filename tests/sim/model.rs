//! The reference: what a filesystem holds, in the plainest terms, and what each operation makes of
//! it.
//!
//! Invariants: `nodes` are those that a name leads to; `orphans` have none and live for as long as
//! a handle does, so a crash drops them. Cloning is cheap: nodes and their blocks are shared.

use super::ops::{Op, What};
use super::versions::{Snaps, AT_ONCE};
use lunfs::fs::{
    Error, NodeId, NodeKind, Owner, RenameMode, SetAttr, Timestamp, VolumeId, XattrMode,
    MAX_FILE_BYTES, ROOT_INO,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

pub const BLOCK: u64 = 4096;

/// A block of a file.
#[derive(Clone)]
pub struct Chunk(Arc<[u8; BLOCK as usize]>);

impl Chunk {
    pub fn new(bytes: &[u8]) -> Chunk {
        static ZEROS: OnceLock<Chunk> = OnceLock::new();
        const NOTHING: [u8; BLOCK as usize] = [0; BLOCK as usize];
        if *bytes == NOTHING[..bytes.len()] {
            return ZEROS.get_or_init(|| Chunk(Arc::new(NOTHING))).clone();
        }
        let mut chunk = Arc::new(NOTHING);
        Arc::make_mut(&mut chunk)[..bytes.len()].copy_from_slice(bytes);
        Chunk(chunk)
    }

    pub fn array(&self) -> &[u8; BLOCK as usize] {
        &self.0
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0[..]
    }
}

impl PartialEq for Chunk {
    fn eq(&self, other: &Chunk) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl Eq for Chunk {}

/// Blocks of a file that are no holes.
pub type Blocks = BTreeMap<u64, Chunk>;

#[derive(Clone, PartialEq, Eq)]
pub enum Body {
    File(Blocks),
    Directory(BTreeMap<Vec<u8>, NodeId>),
    Symlink(Vec<u8>),
    Special,
}

/// Times as the filesystem last told them: that they survive is checked, not POSIX's rules for
/// them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stamps {
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub btime: Timestamp,
}

#[derive(Clone, PartialEq, Eq)]
pub struct Node {
    pub kind: NodeKind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub nlink: u32,
    pub generation: u64,
    pub size: u64,
    pub stamps: Stamps,
    pub body: Body,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Why an operation is refused; `Any` where the reference does not care for the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    NotFound,
    Exists,
    NotDirectory,
    IsDirectory,
    NotEmpty,
    Invalid,
    CrossVolume,
    TooBig,
    NoAttribute,
    NoSpace,
    Any,
}

impl Kind {
    pub fn of(error: &Error) -> Kind {
        match error {
            Error::NotFound => Kind::NotFound,
            Error::Exists => Kind::Exists,
            Error::NotDirectory => Kind::NotDirectory,
            Error::IsDirectory => Kind::IsDirectory,
            Error::NotEmpty => Kind::NotEmpty,
            Error::Invalid(_) => Kind::Invalid,
            Error::CrossVolume => Kind::CrossVolume,
            Error::TooBig => Kind::TooBig,
            Error::NoAttribute => Kind::NoAttribute,
            Error::NoSpace => Kind::NoSpace,
            _ => Kind::Any,
        }
    }

    pub fn allows(self, other: Kind) -> bool {
        self == Kind::Any || self == other
    }
}

/// What an operation made, as the filesystem told it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Made {
    pub node: Option<(NodeId, u64)>,
    pub volume: Option<VolumeId>,
    /// Snapshots in the order asked for; a clone; a rollback's volume, then its snapshot.
    pub versions: [Option<VolumeId>; AT_ONCE],
}

#[derive(Clone, PartialEq, Eq, Default)]
pub struct Model {
    pub volumes: BTreeMap<String, VolumeId>,
    pub nodes: BTreeMap<NodeId, Arc<Node>>,
    pub orphans: BTreeMap<NodeId, Arc<Node>>,
    /// Nodes that a handle is open on.
    pub open: BTreeSet<NodeId>,
    /// Highest inode number ever given away in each volume; of volume 0: highest volume.
    pub highest: BTreeMap<VolumeId, u64>,
    pub snapshots: Snaps,
    /// The live volume that a snapshot was made of, which a rollback may have ended since.
    pub made_of: BTreeMap<VolumeId, VolumeId>,
    /// Volumes that share or shared blocks.
    pub derived: BTreeSet<VolumeId>,
}

pub type Applied = Result<(), Kind>;

impl Model {
    pub fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id).or_else(|| self.orphans.get(&id)).map(|node| &**node)
    }

    pub fn arc_of(&self, id: NodeId) -> Option<Arc<Node>> {
        self.nodes.get(&id).or_else(|| self.orphans.get(&id)).cloned()
    }

    /// Names, attributes and where there is data; the bytes are compared elsewhere.
    pub fn digest(&self, hasher: &mut blake3::Hasher) {
        hasher.update(format!("{:?} {:?}", self.volumes, self.snapshots).as_bytes());
        for (id, node) in &self.nodes {
            let plain = (node.kind, node.mode, node.uid, node.gid, node.rdev, node.nlink);
            let text = format!("{id:?} {plain:?} {} {:?}", node.size, node.stamps);
            hasher.update(text.as_bytes());
            match &node.body {
                Body::File(blocks) => blocks.keys().for_each(|number| {
                    hasher.update(&number.to_le_bytes());
                }),
                Body::Directory(entries) => {
                    hasher.update(format!("{entries:?}").as_bytes());
                }
                Body::Symlink(_) | Body::Special => {}
            }
        }
    }

    pub fn get_mut(&mut self, id: NodeId) -> Result<&mut Node, Kind> {
        let found = match self.nodes.get_mut(&id) {
            Some(node) => Some(node),
            None => self.orphans.get_mut(&id),
        };
        found.map(Arc::make_mut).ok_or(Kind::Any)
    }

    fn blocks_mut(&mut self, id: NodeId) -> Result<(&mut Blocks, &mut u64), Kind> {
        let node = self.get_mut(id)?;
        match &mut node.body {
            Body::File(blocks) => Ok((blocks, &mut node.size)),
            _ => Err(Kind::Any),
        }
    }

    pub fn entries(&self, dir: NodeId) -> Result<&BTreeMap<Vec<u8>, NodeId>, Kind> {
        match self.get(dir).map(|node| &node.body) {
            Some(Body::Directory(entries)) => Ok(entries),
            Some(_) => Err(Kind::NotDirectory),
            None => Err(Kind::Any),
        }
    }

    fn entries_mut(&mut self, dir: NodeId) -> Result<&mut BTreeMap<Vec<u8>, NodeId>, Kind> {
        match &mut self.get_mut(dir)?.body {
            Body::Directory(entries) => Ok(entries),
            _ => Err(Kind::NotDirectory),
        }
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<NodeId, Kind> {
        self.entries(dir)?.get(name).copied().ok_or(Kind::NotFound)
    }

    pub fn is_dir(&self, id: NodeId) -> bool {
        self.get(id).is_some_and(|node| node.kind == NodeKind::Directory)
    }

    /// What a crash leaves of it: no handles, no nameless nodes.
    pub fn without_handles(&self) -> Model {
        Model { orphans: BTreeMap::new(), open: BTreeSet::new(), ..self.clone() }
    }

    /// What names and blocks say, whoever has it open.
    pub fn same(&self, other: &Model) -> bool {
        let snapshots = |model: &Model| {
            let all = model.all_snaps().map(|(volume, name, snap)| (volume, name.clone(), *snap));
            all.collect::<Vec<_>>()
        };
        self.volumes == other.volumes
            && snapshots(self) == snapshots(other)
            && self.nodes == other.nodes
    }

    /// Does it, or says why it is refused. What it makes is named by `made`.
    pub fn apply(&mut self, op: &Op, made: &Made) -> Applied {
        match op {
            Op::Write { node, .. } if self.is_frozen(node.volume) => Err(Kind::Any),
            Op::Version(op) => self.apply_version(op, made),
            Op::CloneRange(op) => self.clone_range(op),
            Op::Create { dir, name, what, owner } => self.create(*dir, name, what, owner, made),
            Op::Link { node, dir, name } => self.link(*node, *dir, name),
            Op::Unlink { dir, name } => self.unlink(*dir, name),
            Op::Rmdir { dir, name } => self.rmdir(*dir, name),
            Op::Rename { dir, name, to_dir, to_name, mode } => {
                self.rename((*dir, name), (*to_dir, to_name), *mode)
            }
            Op::Write { node, offset, data } => self.write(*node, *offset, &data.bytes()),
            Op::Append { node, data } => {
                let end = self.get(*node).ok_or(Kind::Any)?.size;
                self.write(*node, end, &data.bytes())
            }
            Op::Update { node, offset, data, refuse } => match refuse {
                true => Ok(()),
                false => self.update(*node, *offset, &data.bytes()),
            },
            Op::Punch { node, offset, len } => self.punch(*node, *offset, *len),
            Op::Zeros { node, offset, len, keep_size } => {
                self.zeros(*node, *offset, *len, *keep_size)
            }
            Op::SetSize { node, size, .. } => self.set_size(*node, *size),
            Op::SetAttr { node, change } => self.set_attr(*node, change),
            Op::XattrSet { node, name, value, mode } => {
                self.xattr_set(*node, name, &value.bytes(), *mode)
            }
            Op::XattrRemove { node, name } => {
                let gone = self.get_mut(*node)?.xattrs.remove(name);
                gone.map(|_| ()).ok_or(Kind::NoAttribute)
            }
            Op::VolumeCreate { name, owner } => self.volume_create(name, owner, made),
            Op::VolumeRename { from, to } => self.volume_rename(from, to),
            Op::VolumeDelete { name } => self.volume_delete(name),
            Op::Open { node } => {
                self.get(*node).ok_or(Kind::Any)?;
                self.open.insert(*node);
                Ok(())
            }
            Op::Close { node } => {
                self.open.remove(node);
                self.orphans.remove(node);
                Ok(())
            }
        }
    }

    pub(super) fn given(&mut self, volume: VolumeId, number: u64) {
        let highest = self.highest.entry(volume).or_default();
        *highest = number.max(*highest);
    }

    /// Was this ever given away before? Numbers are counted up and never used again.
    pub fn is_new(&self, made: &Made) -> bool {
        let above = |volume, number| self.highest.get(&volume).is_none_or(|&top| number > top);
        let volume = made.volume.is_none_or(|id| above(VolumeId(0), u64::from(id.0)));
        let node = made.node.filter(|_| made.volume.is_none());
        let mut versions = made.versions.iter().flatten();
        volume
            && versions.all(|id| above(VolumeId(0), u64::from(id.0)))
            && node.is_none_or(|(id, _)| above(id.volume, id.ino))
    }

    fn create(
        &mut self,
        dir: NodeId,
        name: &[u8],
        what: &What,
        owner: &Owner,
        made: &Made,
    ) -> Applied {
        if self.entries(dir)?.contains_key(name) {
            return Err(Kind::Exists);
        }
        let node = new_node(what, owner);
        // Without an id (the operation was refused, though it should not be) nothing can be named.
        let Some((id, generation)) = made.node else { return Ok(()) };
        self.given(id.volume, id.ino);
        self.entries_mut(dir)?.insert(name.to_vec(), id);
        if node.kind == NodeKind::Directory {
            self.get_mut(dir)?.nlink += 1;
        }
        self.nodes.insert(id, Arc::new(Node { generation, ..node }));
        Ok(())
    }

    fn link(&mut self, id: NodeId, dir: NodeId, name: &[u8]) -> Applied {
        let there = self.entries(dir)?.contains_key(name);
        if id.volume != dir.volume {
            return Err(Kind::CrossVolume);
        }
        if !self.nodes.contains_key(&id) || self.is_dir(id) {
            return Err(Kind::Any);
        }
        if there {
            return Err(Kind::Exists);
        }
        self.entries_mut(dir)?.insert(name.to_vec(), id);
        self.get_mut(id)?.nlink += 1;
        Ok(())
    }

    /// One name less; the last one makes it an orphan, or nothing.
    fn drop_link(&mut self, id: NodeId) -> Applied {
        let node = self.get_mut(id)?;
        node.nlink -= 1;
        if node.nlink == 0 || node.kind == NodeKind::Directory {
            let node = self.nodes.remove(&id).ok_or(Kind::Any)?;
            if self.open.contains(&id) {
                self.orphans.insert(id, node);
            }
        }
        Ok(())
    }

    fn unlink(&mut self, dir: NodeId, name: &[u8]) -> Applied {
        let id = self.lookup(dir, name)?;
        if self.is_dir(id) {
            return Err(Kind::IsDirectory);
        }
        self.entries_mut(dir)?.remove(name);
        self.drop_link(id)
    }

    fn rmdir(&mut self, dir: NodeId, name: &[u8]) -> Applied {
        let id = self.lookup(dir, name)?;
        if !self.entries(id)?.is_empty() {
            return Err(Kind::NotEmpty);
        }
        self.entries_mut(dir)?.remove(name);
        self.get_mut(dir)?.nlink -= 1;
        self.drop_link(id)
    }

    /// True if `dir` is `id` or lies below it.
    fn is_below(&self, dir: NodeId, id: NodeId) -> bool {
        let children = |id| self.entries(id).map(|e| e.values().copied().collect::<Vec<_>>());
        let mut waiting = vec![id];
        while let Some(at) = waiting.pop() {
            if at == dir {
                return true;
            }
            waiting.extend(children(at).unwrap_or_default());
        }
        false
    }

    fn rename(&mut self, from: (NodeId, &[u8]), to: (NodeId, &[u8]), mode: RenameMode) -> Applied {
        if from.0.volume != to.0.volume {
            return Err(Kind::CrossVolume);
        }
        let id = self.lookup(from.0, from.1)?;
        let there = self.entries(to.0)?.get(to.1).copied();
        if self.is_dir(id) && self.is_below(to.0, id) {
            return Err(if there.is_some() { Kind::Any } else { Kind::Invalid });
        }
        match (mode, there) {
            (RenameMode::NoReplace, Some(_)) => Err(Kind::Exists),
            (RenameMode::Exchange, None) => Err(Kind::NotFound),
            (_, Some(other)) if other == id => Ok(()),
            (RenameMode::Exchange, Some(other)) => self.exchange((from, id), (to, other)),
            (_, there) => self.replace((from, id), to, there),
        }
    }

    fn exchange(
        &mut self,
        (from, id): ((NodeId, &[u8]), NodeId),
        (to, other): ((NodeId, &[u8]), NodeId),
    ) -> Applied {
        if self.is_dir(other) && self.is_below(from.0, other) {
            return Err(Kind::Invalid);
        }
        self.entries_mut(from.0)?.insert(from.1.to_vec(), other);
        self.entries_mut(to.0)?.insert(to.1.to_vec(), id);
        let dirs = i64::from(self.is_dir(other)) - i64::from(self.is_dir(id));
        self.add_links(from.0, dirs)?;
        self.add_links(to.0, -dirs)
    }

    fn replace(
        &mut self,
        (from, id): ((NodeId, &[u8]), NodeId),
        to: (NodeId, &[u8]),
        there: Option<NodeId>,
    ) -> Applied {
        if let Some(other) = there {
            match (self.is_dir(id), self.is_dir(other)) {
                (true, false) => return Err(Kind::NotDirectory),
                (false, true) => return Err(Kind::IsDirectory),
                (true, true) if !self.entries(other)?.is_empty() => return Err(Kind::NotEmpty),
                _ => {}
            }
        }
        self.entries_mut(from.0)?.remove(from.1);
        self.entries_mut(to.0)?.insert(to.1.to_vec(), id);
        if let Some(other) = there {
            let was_dir = self.is_dir(other);
            self.drop_link(other)?;
            self.add_links(to.0, -i64::from(was_dir))?;
        }
        let dirs = i64::from(self.is_dir(id));
        self.add_links(from.0, -dirs)?;
        self.add_links(to.0, dirs)
    }

    fn add_links(&mut self, dir: NodeId, links: i64) -> Applied {
        let node = self.get_mut(dir)?;
        node.nlink = node.nlink.checked_add_signed(links as i32).ok_or(Kind::Any)?;
        Ok(())
    }

    pub fn write(&mut self, id: NodeId, offset: u64, data: &[u8]) -> Applied {
        let (blocks, size) = self.blocks_mut(id)?;
        if data.is_empty() {
            return Ok(());
        }
        let end = offset + data.len() as u64;
        if end > MAX_FILE_BYTES {
            return Err(Kind::TooBig);
        }
        for number in offset / BLOCK..end.div_ceil(BLOCK) {
            let (start, stop) = clip(number, offset, end);
            let mut whole = vec![0; BLOCK as usize];
            if let Some(old) = blocks.get(&number) {
                whole.copy_from_slice(old.bytes());
            }
            let from = (number * BLOCK + start - offset) as usize;
            whole[start as usize..stop as usize]
                .copy_from_slice(&data[from..from + (stop - start) as usize]);
            blocks.insert(number, Chunk::new(&whole));
        }
        *size = (*size).max(end);
        Ok(())
    }

    /// What `update_at` is given to do here: each byte is combined with the data's by exclusive or.
    fn update(&mut self, id: NodeId, offset: u64, data: &[u8]) -> Applied {
        let mut range = self.read(id, offset, data.len());
        range.resize(data.len(), 0);
        range.iter_mut().zip(data).for_each(|(byte, x)| *byte ^= x);
        self.write(id, offset, &range)
    }

    /// Bytes of a range up to the end of the file.
    pub fn read(&self, id: NodeId, offset: u64, len: usize) -> Vec<u8> {
        self.get(id).map_or(Vec::new(), |node| node.read(offset, len))
    }

    pub(super) fn punch(&mut self, id: NodeId, offset: u64, len: u64) -> Applied {
        let (blocks, size) = self.blocks_mut(id)?;
        let end = offset.saturating_add(len);
        cut(blocks, offset, end, *size);
        Ok(())
    }

    pub fn zeros(&mut self, id: NodeId, offset: u64, len: u64, keep_size: bool) -> Applied {
        let end = offset + len;
        if end > MAX_FILE_BYTES {
            return Err(Kind::TooBig);
        }
        let (blocks, size) = self.blocks_mut(id)?;
        // Beyond the end nothing can be seen of it.
        let end = if keep_size { end.min(*size) } else { end };
        if end <= offset {
            return Ok(());
        }
        for number in offset / BLOCK..end.div_ceil(BLOCK) {
            let (start, stop) = clip(number, offset, end);
            let mut whole = vec![0; BLOCK as usize];
            if let Some(old) = blocks.get(&number) {
                whole.copy_from_slice(old.bytes());
            }
            whole[start as usize..stop as usize].fill(0);
            blocks.insert(number, Chunk::new(&whole));
        }
        if !keep_size {
            *size = (*size).max(end);
        }
        Ok(())
    }

    fn set_size(&mut self, id: NodeId, new: u64) -> Applied {
        if new > MAX_FILE_BYTES {
            return Err(Kind::TooBig);
        }
        let (blocks, size) = self.blocks_mut(id)?;
        if new < *size {
            cut(blocks, new, u64::MAX, *size);
        }
        *size = new;
        Ok(())
    }

    fn set_attr(&mut self, id: NodeId, change: &SetAttr) -> Applied {
        let node = self.get_mut(id)?;
        node.mode = change.mode.unwrap_or(node.mode);
        node.uid = change.uid.unwrap_or(node.uid);
        node.gid = change.gid.unwrap_or(node.gid);
        match change.size_bytes {
            Some(size) => self.set_size(id, size),
            None => Ok(()),
        }
    }

    fn xattr_set(&mut self, id: NodeId, name: &[u8], value: &[u8], mode: XattrMode) -> Applied {
        let xattrs = &mut self.get_mut(id)?.xattrs;
        match (mode, xattrs.contains_key(name)) {
            (XattrMode::Create, true) => Err(Kind::Exists),
            (XattrMode::Replace, false) => Err(Kind::NoAttribute),
            _ => {
                xattrs.insert(name.to_vec(), value.to_vec());
                Ok(())
            }
        }
    }

    fn volume_create(&mut self, name: &str, owner: &Owner, made: &Made) -> Applied {
        if self.volumes.contains_key(name) {
            return Err(Kind::Exists);
        }
        let Some(volume) = made.volume else { return Ok(()) };
        self.given(VolumeId(0), u64::from(volume.0));
        self.volumes.insert(name.to_string(), volume);
        let (id, generation) = made.node.unwrap_or((NodeId { volume, ino: ROOT_INO }, 0));
        self.nodes.insert(id, Arc::new(Node { generation, ..new_node(&What::Directory, owner) }));
        Ok(())
    }

    fn volume_rename(&mut self, from: &str, to: &str) -> Applied {
        let volume = *self.volumes.get(from).ok_or(Kind::NotFound)?;
        if self.volumes.contains_key(to) {
            return Err(Kind::Exists);
        }
        self.volumes.remove(from);
        self.volumes.insert(to.to_string(), volume);
        Ok(())
    }

    fn volume_delete(&mut self, name: &str) -> Applied {
        let volume = *self.volumes.get(name).ok_or(Kind::NotFound)?;
        if self.snapshots.get(&volume).is_some_and(|snaps| !snaps.is_empty()) {
            return Err(Kind::NotEmpty);
        }
        self.volumes.remove(name);
        self.end_volume(volume);
        Ok(())
    }

    pub(super) fn end_volume(&mut self, volume: VolumeId) {
        self.nodes.retain(|id, _| id.volume != volume);
        self.orphans.retain(|id, _| id.volume != volume);
        self.open.retain(|id| id.volume != volume);
    }
}

impl Node {
    /// Bytes of a range up to the end of the file.
    pub fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let Body::File(blocks) = &self.body else { return Vec::new() };
        let end = offset.saturating_add(len as u64).min(self.size);
        if end <= offset {
            return Vec::new();
        }
        let mut out = vec![0; (end - offset) as usize];
        for (number, chunk) in blocks.range(offset / BLOCK..end.div_ceil(BLOCK)) {
            let (start, stop) = clip(*number, offset, end);
            let to = (number * BLOCK + start - offset) as usize;
            out[to..to + (stop - start) as usize]
                .copy_from_slice(&chunk.bytes()[start as usize..stop as usize]);
        }
        out
    }
}

/// The part of block `number` within the bytes `offset..end`, as offsets in the block.
fn clip(number: u64, offset: u64, end: u64) -> (u64, u64) {
    let base = number * BLOCK;
    (offset.max(base) - base, end.min(base + BLOCK) - base)
}

/// Makes the range a hole. The rest of the last block counts as covered where the file ends before.
fn cut(blocks: &mut Blocks, offset: u64, end: u64, size: u64) {
    let last = end.div_ceil(BLOCK);
    let touched: Vec<u64> = match offset / BLOCK < last {
        true => blocks.range(offset / BLOCK..last).map(|(&number, _)| number).collect(),
        false => Vec::new(),
    };
    let _ = size;
    for number in touched {
        let (start, stop) = clip(number, offset, end);
        if (start, stop) == (0, BLOCK) {
            blocks.remove(&number);
        } else if let Some(old) = blocks.get(&number) {
            let mut whole = old.bytes().to_vec();
            whole[start as usize..stop as usize].fill(0);
            blocks.insert(number, Chunk::new(&whole));
        }
    }
}

pub fn new_node(what: &What, owner: &Owner) -> Node {
    let (kind, body, size, rdev, nlink) = match what {
        What::File => (NodeKind::File, Body::File(Blocks::new()), 0, 0, 1),
        What::Directory => (NodeKind::Directory, Body::Directory(BTreeMap::new()), 0, 0, 2),
        What::Symlink(to) => (NodeKind::Symlink, Body::Symlink(to.clone()), to.len() as u64, 0, 1),
        What::Special(kind, rdev) => (*kind, Body::Special, 0, *rdev, 1),
    };
    Node {
        kind,
        mode: owner.mode,
        uid: owner.uid,
        gid: owner.gid,
        rdev,
        nlink,
        generation: 0,
        size,
        stamps: Stamps::default(),
        body,
        xattrs: BTreeMap::new(),
    }
}
