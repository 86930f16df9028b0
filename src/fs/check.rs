//! Offline check: recounts everything from the root and compares.
//!
//! The pool is opened over overlays, so that the log is replayed in memory and nothing is written.
//! Then every block that the volume table leads to is counted, with its checksum verified, and
//! compared with the free-space image: used but free, or named twice, is an error; neither named
//! nor free is a leak.

mod clones;

use self::clones::Clones;
use super::core::{Core, NAMES, ORPHANS_INO, TABLE};
use super::error::{Error, Result};
use super::pool::{Fs, OpenOptions};
use super::rebalance::gaps;
use super::reclaim::{read_entries, Scope};
use super::space::Space;
use super::types::*;
use crate::device::overlay::OverlayDevice;
use crate::device::BlockDevice;
use fs_layout::{
    DeadKind, DirBucket, Inode as DiskInode, InodeKind, Pointer, INODES_PER_BLOCK, INODE_BYTES,
    SEGMENT_BLOCKS, VERSION_DELETED,
};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// What to check.
#[derive(Debug, Clone, Copy)]
pub struct CheckOptions {
    /// Read every data block and compare its checksum; else only metadata.
    pub data: bool,
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// One line each; empty: the pool is sound. At most [`MAX_ERRORS`] of them.
    pub errors: Vec<String>,
    /// What a power cut can leave behind and the next opening mends.
    pub notes: Vec<String>,
    /// Inodes in use.
    pub inodes: u64,
    /// Blocks named by something, all volumes.
    pub used_blocks: u64,
    /// Of these, the volume table's: names, dead lists, counts.
    pub table_blocks: u64,
    /// Data blocks whose checksum was compared.
    pub verified_blocks: u64,
    /// Volumes, the ordinary tree included.
    pub volumes: u64,
}

/// Blocks that replaying the log may write into memory: 1 GiB.
const OVERLAY_BLOCKS: usize = 262_144;
/// Lines a report holds.
pub const MAX_ERRORS: usize = 1000;

/// Checks a pool without writing to it.
pub fn check(devices: &[Arc<dyn BlockDevice>], options: CheckOptions) -> Result<Report> {
    let over = |d: &Arc<dyn BlockDevice>| -> Arc<dyn BlockDevice> {
        Arc::new(OverlayDevice::with_limit(d.clone(), OVERLAY_BLOCKS))
    };
    let mut report = Report::default();
    super::copies::survey_fixed(devices.iter().map(over).collect(), &mut report)?;
    let open = OpenOptions { degraded: true, ..OpenOptions::default() };
    let fs = Fs::open(devices.iter().map(over).collect(), open)?;
    let core = fs.core().clone();
    core.release_ready()?;
    if options.data {
        super::copies::survey_trees(&core, &mut report)?;
    }
    let mut count = Count::new(&core, options);
    count.report = report;
    count.run()?;
    count.compare_space()?;
    Ok(count.report)
}

/// What a repair can do something about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finding {
    /// An inode counts other blocks than it has.
    Blocks(NodeId, u64),
    /// A directory counts other entries than it has.
    Entries(NodeId, u64),
    /// An inode has so many names, and counts others.
    Names(NodeId, InodeKind, u32),
    /// Names lead to it, and it is not there.
    Missing(NodeId),
    /// A file's block that is somebody else's too.
    Shared(NodeId, u64, Pointer),
}

pub(super) struct Count<'a> {
    pub(super) core: &'a Core,
    pub(super) options: CheckOptions,
    pub(super) clones: Clones,
    /// What is below a clone is looked at for its file's count of blocks alone.
    counts_only: bool,
    /// The count of blocks is asked for.
    counts_blocks: bool,
    pub(super) seen: Vec<u64>,
    pub(super) report: Report,
    pub(super) findings: Vec<Finding>,
    /// Nodes and blocks of inodes that could not be read: what is below is not counted.
    pub(super) unread: u64,
    /// Directories of which not all names could be read.
    pub(super) unread_names: std::collections::HashSet<NodeId>,
    at: NodeId,
    /// Names found for each inode, and its record's own figures.
    links: HashMap<NodeId, u32>,
    records: HashMap<NodeId, (InodeKind, u32)>,
    pub(super) place: String,
    /// Versions found in the volume table, until they are walked.
    versions: BTreeMap<u32, DiskInode>,
    /// Blocks born up to this epoch belong to the parent of what is walked.
    bound: u64,
    shared: Shared,
    /// Files may count blocks that the walker has found gone since.
    counted_late: bool,
    /// Of each dead list, that of its owner.
    lists: HashMap<u64, u64>,
}

/// What is done with a block of the parent's.
#[derive(PartialEq, Eq)]
enum Shared {
    /// It must have been counted, and is followed.
    Follow,
    /// It must have been counted.
    Counted,
    /// It is somebody else's, or was.
    Elsewhere,
}

impl<'a> Count<'a> {
    pub(super) fn new(core: &'a Core, options: CheckOptions) -> Self {
        let words = core.space.blocks().div_ceil(64) as usize;
        Count {
            core,
            options,
            clones: Clones::new(words),
            counts_only: false,
            counts_blocks: false,
            seen: vec![0; words],
            report: Report::default(),
            findings: Vec::new(),
            unread: 0,
            unread_names: Default::default(),
            at: NodeId { volume: TABLE, ino: 0 },
            links: HashMap::new(),
            records: HashMap::new(),
            place: String::new(),
            versions: BTreeMap::new(),
            bound: 0,
            shared: Shared::Counted,
            counted_late: false,
            lists: HashMap::new(),
        }
    }

    pub(super) fn error(&mut self, what: String) {
        if self.report.errors.len() < MAX_ERRORS {
            self.report.errors.push(what);
        }
    }

    /// Everything but the comparison with the free-space map.
    pub(super) fn run(&mut self) -> Result<()> {
        let (root, reclaim) = {
            let cp = self.core.cp.lock();
            (cp.root.volume_table, cp.reclaim.entries().to_vec())
        };
        self.inode_file(TABLE, &root)?;
        self.report.table_blocks = self.report.used_blocks;
        self.versions_from_the_top()?;
        self.shared = Shared::Elsewhere;
        self.bound = 0;
        for e in reclaim {
            self.place = "the reclaim list".into();
            match e.kind {
                DeadKind::Data | DeadKind::Node => {
                    self.tree(&e.pointer, e.depth, false, &mut |_, _, _| Ok(()))?;
                }
                DeadKind::Kept => self.clones.to_be_counted(self.core, &e, self.bound)?,
                DeadKind::Inodes => self.dead_inodes(&e.pointer, e.depth)?,
                DeadKind::Scope => self.bound = self.bound_of(&Scope::of(&e)),
                DeadKind::Count => {}
            }
        }
        self.follow_clones()?;
        self.compare_links();
        Ok(())
    }

    /// Versions one after the other, each after its parent: a block is counted with the version in
    /// which it was born, and must have been counted where a later one shares it.
    fn versions_from_the_top(&mut self) -> Result<()> {
        let versions = std::mem::take(&mut self.versions);
        let mut children: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        for (id, v) in &versions {
            let known = u32::try_from(v.version.parent).is_ok_and(|p| versions.contains_key(&p));
            if v.version.parent != 0 && !known {
                self.error(format!("version {id}: its parent {} is gone", v.version.parent));
            }
            children.entry(v.version.parent).or_default().push(*id);
        }
        let mut waiting = children.get(&0).cloned().unwrap_or_default();
        while let Some(id) = waiting.pop() {
            waiting.extend(children.get(&u64::from(id)).into_iter().flatten());
            let Some(v) = versions.get(&id) else { continue };
            let parent = u32::try_from(v.version.parent).ok().and_then(|p| versions.get(&p));
            self.bound = parent.map_or(0, |p| p.version.epoch);
            let live = v.version.epoch == 0 && v.version.flags & VERSION_DELETED == 0;
            self.shared = if live { Shared::Follow } else { Shared::Counted };
            self.report.volumes += u64::from(live);
            self.counted_late = v.version.parent != 0 || v.version.epoch != 0;
            self.inode_file(VolumeId(id), v)?;
            self.dead_list(id, v.version.dead_list)?;
        }
        Ok(())
    }

    /// What is on a version's dead list is its parent's.
    fn dead_list(&mut self, version: u32, list: u64) -> Result<()> {
        if list == 0 {
            return Ok(());
        }
        self.place = format!("the dead list of version {version}");
        let file = self.core.inode(NodeId { volume: TABLE, ino: list })?;
        self.lists.insert(list, self.bound);
        for e in read_entries(self.core, &file)? {
            let place = self.place.clone();
            if e.pointer.birth > self.bound {
                self.error(format!("{place}: block {} is too young", e.pointer.block));
            } else if e.pointer.cloned {
                self.clones.want(e.pointer.block);
            } else if !self.is_counted(e.pointer.block) {
                self.error(format!("{place}: nobody has block {}", e.pointer.block));
            }
        }
        Ok(())
    }

    fn bound_of(&self, scope: &Scope) -> u64 {
        match scope.list {
            0 => scope.bound,
            list => self.lists.get(&list).copied().unwrap_or(0),
        }
    }

    pub(super) fn is_counted(&self, block: u64) -> bool {
        let word = self.seen.get((block / 64) as usize).copied().unwrap_or(0);
        word & 1 << (block % 64) != 0
    }

    /// A block born before the version that is walked began; should it be followed?
    fn shared_block(&mut self, p: &Pointer) -> bool {
        if p.cloned {
            // Clones are counted last.
            if self.shared != Shared::Elsewhere {
                self.clones.want(p.block);
            }
        } else if self.shared != Shared::Elsewhere && !self.is_counted(p.block) {
            let place = self.place.clone();
            self.error(format!("{place}: shares block {}, which its parent lacks", p.block));
            return false;
        }
        self.shared == Shared::Follow
    }

    /// Counts a block; false if it was counted before, and may not be twice, or cannot be.
    pub(super) fn mark(&mut self, block: u64) -> bool {
        let place = self.place.clone();
        if block >= self.core.space.blocks() || Space::is_reserved(block) {
            self.error(format!("{place}: names block {block}, which is not for data"));
            return false;
        }
        let (word, bit) = ((block / 64) as usize, 1 << (block % 64));
        if self.seen[word] & bit != 0 {
            if self.clones.again(self.core, block) {
                return true;
            }
            self.error(format!("{place}: block {block} is named twice"));
            return false;
        }
        self.seen[word] |= bit;
        self.report.used_blocks += 1;
        true
    }

    /// Walks a tree; `leaf` gets each data block: (file block, pointer).
    fn tree(
        &mut self,
        p: &Pointer,
        height: u8,
        verify: bool,
        leaf: &mut dyn FnMut(&mut Self, u64, &Pointer) -> Result<()>,
    ) -> Result<()> {
        self.subtree(p, height, 0, verify, leaf)
    }

    fn subtree(
        &mut self,
        p: &Pointer,
        height: u8,
        base: u64,
        verify: bool,
        leaf: &mut dyn FnMut(&mut Self, u64, &Pointer) -> Result<()>,
    ) -> Result<()> {
        if p.is_hole() {
            return Ok(());
        }
        let shared = p.birth <= self.bound;
        let is_later = p.cloned && height > 0 && !shared;
        if self.counts_only {
            // It has been seen to.
        } else if is_later {
            self.clones.later.push((*p, height, self.place.clone()));
            if !self.counts_blocks {
                return Ok(());
            }
        } else if !(if shared { self.shared_block(p) } else { self.mark(p.block) }) {
            if height == 0 && !shared {
                self.findings.push(Finding::Shared(self.at, base, *p));
            }
            return Ok(());
        }
        if height == 0 {
            if verify && !shared && !self.counts_only {
                self.verify(p);
            }
            return leaf(self, base, p);
        }
        let raw = match self.core.store.read(p) {
            Ok(raw) => raw,
            Err(e) => {
                let place = self.place.clone();
                self.error(format!("{place}: node at block {}: {e}", p.block));
                self.unread += 1;
                return Ok(());
            }
        };
        let before = self.counts_only;
        self.counts_only |= is_later;
        for i in 0..fs_layout::POINTERS_PER_NODE {
            let child = p.child(&raw.bytes.0, i).map_err(|e| Error::Format(e.to_string()))?;
            let at = base * fs_layout::POINTERS_PER_NODE as u64 + i as u64;
            self.subtree(&child, height - 1, at, verify, leaf)?;
        }
        self.counts_only = before;
        Ok(())
    }

    pub(super) fn verify(&mut self, p: &Pointer) {
        self.report.verified_blocks += 1;
        if let Err(e) = self.core.store.read(p) {
            let place = self.place.clone();
            self.error(format!("{place}: {e}"));
        }
    }

    /// Walks a volume's inode file and every inode in it.
    fn inode_file(&mut self, volume: VolumeId, file: &DiskInode) -> Result<()> {
        self.place = format!("volume {}", volume.0);
        let mut inodes = Vec::new();
        self.tree(&file.root, file.height, false, &mut |c, block, p| {
            match c.core.store.read(p) {
                Ok(data) => {
                    for (i, raw) in data.bytes.0.chunks_exact(INODE_BYTES).enumerate() {
                        let ino = block * INODES_PER_BLOCK + i as u64;
                        match DiskInode::decode(raw) {
                            Ok(inode) if inode.kind != InodeKind::Free => inodes.push((ino, inode)),
                            Ok(_) => {}
                            Err(e) => c.error(format!("volume {}, inode {ino}: {e}", volume.0)),
                        }
                    }
                }
                Err(e) => {
                    c.error(format!("volume {}, inode block {block}: {e}", volume.0));
                    c.unread += 1;
                }
            }
            Ok(())
        })?;
        for (ino, inode) in &inodes {
            self.inode(NodeId { volume, ino: *ino }, inode)?;
        }
        Ok(())
    }

    fn inode(&mut self, id: NodeId, inode: &DiskInode) -> Result<()> {
        self.place = format!("volume {}, inode {}", id.volume.0, id.ino);
        self.report.inodes += 1;
        self.at = id;
        // Of a snapshot only what is its own is walked: its names are not counted.
        let whole = self.bound == 0 || self.shared == Shared::Follow;
        if whole {
            self.records.insert(id, (inode.kind, inode.nlink));
        }
        if inode.kind == InodeKind::Version {
            self.versions.insert(id.ino as u32, *inode);
            // Who deletes a volume frees its directory at once.
            let is_deleted = inode.version.flags & VERSION_DELETED != 0;
            if inode.version.snapshots != 0 && !is_deleted {
                let dir = NodeId { volume: TABLE, ino: inode.version.snapshots };
                *self.links.entry(dir).or_default() += 1;
            }
            return Ok(());
        }
        let is_dir = inode.kind == InodeKind::Directory;
        let mut blocks = 0;
        let mut entries = 0;
        self.counts_blocks = whole;
        self.tree(&inode.root, inode.height, self.options.data, &mut |c, _, p| {
            blocks += 1;
            if is_dir {
                entries += c.bucket(id, p, whole)?;
            }
            Ok(())
        })?;
        self.counts_blocks = false;
        let place = self.place.clone();
        if !whole {
            return Ok(());
        }
        // What a snapshot was taken of may have been counted down since.
        let of_consistency_points = matches!(inode.kind, InodeKind::DeadList | InodeKind::Counts);
        let wrong = blocks != inode.blocks && (!self.counted_late || blocks > inode.blocks);
        if wrong && !of_consistency_points && !self.reclaiming(id) {
            self.error(format!("{place}: counts {} blocks, has {blocks}", inode.blocks));
            self.findings.push(Finding::Blocks(id, blocks));
        }
        if is_dir && entries != inode.entries {
            self.error(format!("{place}: counts {} entries, has {entries}", inode.entries));
            self.findings.push(Finding::Entries(id, entries));
        }
        if inode.xattr_ino != 0 {
            let x = NodeId { volume: id.volume, ino: inode.xattr_ino };
            *self.links.entry(x).or_default() += 1;
        }
        Ok(())
    }

    /// Is data of this inode still waiting to be counted down?
    fn reclaiming(&self, id: NodeId) -> bool {
        let cp = self.core.cp.lock();
        let found = cp.reclaim.entries().iter().any(|e| e.volume == id.volume.0 && e.ino == id.ino);
        found
    }

    fn bucket(&mut self, dir: NodeId, p: &Pointer, whole: bool) -> Result<u64> {
        let data = match self.core.store.read(p) {
            Ok(data) => data,
            Err(e) => {
                self.error(format!("directory {}/{}: {e}", dir.volume.0, dir.ino));
                self.unread_names.insert(dir);
                return Ok(0);
            }
        };
        let bucket = match DirBucket::decode(&data.bytes.0) {
            Ok(b) => b,
            Err(e) => {
                self.error(format!("directory {}/{}: {e}", dir.volume.0, dir.ino));
                self.unread_names.insert(dir);
                return Ok(0);
            }
        };
        for e in &bucket.entries {
            if self.core.name_hash(&e.name) != e.cookie >> 8 {
                self.error(format!("directory {}/{}: a wrong hash", dir.volume.0, dir.ino));
            }
            if whole && dir.ino != ORPHANS_INO {
                let id = NodeId { volume: dir.volume, ino: e.ino };
                *self.links.entry(id).or_default() += 1;
            }
        }
        Ok(bucket.entries.len() as u64)
    }

    fn dead_inodes(&mut self, p: &Pointer, depth: u8) -> Result<()> {
        let mut inodes = Vec::new();
        self.tree(p, depth, false, &mut |c, _, p| {
            let data = c.core.store.read(p)?;
            for raw in data.bytes.0.chunks_exact(INODE_BYTES) {
                inodes.push(DiskInode::decode(raw).map_err(|e| Error::Format(e.to_string()))?);
            }
            Ok(())
        })?;
        for i in inodes.iter().filter(|i| i.kind != InodeKind::Free) {
            self.tree(&i.root, i.height, false, &mut |_, _, _| Ok(()))?;
        }
        Ok(())
    }

    /// Every name leads to an inode, and every inode has as many names as it says.
    fn compare_links(&mut self) {
        let mut errors = Vec::new();
        for (id, count) in &self.links {
            if !self.records.contains_key(id) {
                self.findings.push(Finding::Missing(*id));
                errors.push(format!(
                    "volume {}, inode {}: has {count} names but does not exist",
                    id.volume.0, id.ino
                ));
            }
        }
        for (id, (kind, nlink)) in &self.records {
            let names = self.links.get(id).copied().unwrap_or(0);
            let wrong = match kind {
                _ if id.ino < super::core::FIRST_INO => false,
                InodeKind::Directory | InodeKind::Version => names != 1 && *nlink > 0,
                InodeKind::Xattrs => names != 1,
                _ => names != *nlink,
            };
            if wrong && *id != NAMES {
                self.findings.push(Finding::Names(*id, *kind, names));
                errors.push(format!(
                    "volume {}, inode {}: counts {nlink} links, has {names} names",
                    id.volume.0, id.ino
                ));
            }
        }
        errors.sort();
        errors.into_iter().for_each(|e| self.error(e));
    }

    /// Blocks out of service stand in the free-space map as in use.
    pub(super) fn see_out_of_service(&mut self) {
        for (first, count) in gaps(&self.core.store.segment_map(), self.segments()) {
            for word in first * SEGMENT_BLOCKS / 64..(first + count) * SEGMENT_BLOCKS / 64 {
                if let Some(word) = self.seen.get_mut(word as usize) {
                    *word = u64::MAX;
                }
            }
        }
    }

    fn segments(&self) -> u64 {
        self.core.space.blocks() / SEGMENT_BLOCKS
    }

    fn compare_space(&mut self) -> Result<()> {
        let gaps = gaps(&self.core.store.segment_map(), self.segments());
        let is_mapped = |block: u64| {
            let after = gaps.partition_point(|gap| gap.0 <= block / SEGMENT_BLOCKS);
            let gap = after.checked_sub(1).and_then(|i| gaps.get(i));
            gap.is_none_or(|(first, count)| block / SEGMENT_BLOCKS >= first + count)
        };
        for block in 1..self.core.space.blocks() {
            if Space::is_reserved(block) {
                continue;
            }
            let named = self.seen[(block / 64) as usize] >> (block % 64) & 1 != 0;
            let used = self.core.space.image_bit(&self.core.store, block)?;
            if named && !used {
                self.error(format!("block {block} is in use but counted as free"));
            }
            if !is_mapped(block) {
                if named || !used {
                    self.error(format!("block {block} is out of service, but not counted so"));
                }
            } else if used && !named {
                self.error(format!("block {block} is counted as used but nothing names it"));
            }
        }
        Ok(())
    }
}
