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
use super::named::numbers;
use super::pool::{Fs, OpenOptions};
use super::rebalance::gaps;
use super::reclaim::{read_entries, Scope};
use super::space::Space;
use super::tree::reach;
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

const BS: u64 = crate::device::BLOCK_BYTES as u64;
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
    Ok(count.told())
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
    /// A version's dead list cannot be read.
    DeadList(VolumeId),
}

/// Where something is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Own(String),
    Node(NodeId),
}

pub(super) struct Count<'a> {
    pub(super) core: &'a Core,
    pub(super) options: CheckOptions,
    pub(super) clones: Clones,
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
    place: Place,
    /// What is wrong, in the order in which it was found.
    wrong: Vec<(Place, String)>,
    /// The first thing that could not be read.
    first_unread: Option<(Place, String)>,
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
            counts_blocks: false,
            seen: vec![0; words],
            report: Report::default(),
            findings: Vec::new(),
            unread: 0,
            unread_names: Default::default(),
            at: NodeId { volume: TABLE, ino: 0 },
            links: HashMap::new(),
            records: HashMap::new(),
            place: Place::Own(String::new()),
            wrong: Vec::new(),
            first_unread: None,
            versions: BTreeMap::new(),
            bound: 0,
            shared: Shared::Counted,
            counted_late: false,
            lists: HashMap::new(),
        }
    }

    /// Something is wrong with what is walked.
    fn error(&mut self, what: String) {
        let place = self.place.clone();
        self.error_at(place, what);
    }

    fn error_at(&mut self, place: Place, what: String) {
        if self.wrong.len() + self.report.errors.len() < MAX_ERRORS {
            self.wrong.push((place, what));
        }
    }

    /// What is below this cannot be found.
    fn unread(&mut self, what: String) {
        self.unread += 1;
        self.first_unread.get_or_insert_with(|| (self.place.clone(), what.clone()));
        self.error(what);
    }

    /// Why the trees are not whole: the first of them that cannot be read.
    pub(super) fn why_not_whole(&self) -> Option<String> {
        self.first_unread
            .as_ref()
            .map(|(place, what)| self.tell(&[(place.clone(), what.clone())]))
            .map(|lines| lines.concat())
    }

    fn tell(&self, wrong: &[(Place, String)]) -> Vec<String> {
        let node = |place: &Place| match place {
            Place::Node(id) => Some(*id),
            Place::Own(_) => None,
        };
        let names = self.core.names_of(&wrong.iter().filter_map(|w| node(&w.0)).collect());
        let name = |place: &Place| match place {
            Place::Own(text) => text.clone(),
            Place::Node(id) => names.get(id).cloned().unwrap_or_else(|| numbers(*id)),
        };
        let line = |(place, what): &(Place, String)| match name(place) {
            place if place.is_empty() => what.clone(),
            place => format!("{place}: {what}"),
        };
        wrong.iter().map(line).collect()
    }

    /// The report, with the names of what is wrong.
    fn told(mut self) -> Report {
        let lines = self.tell(&self.wrong);
        self.report.errors.extend(lines);
        self.report
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
            self.place = Place::Own("what is being deleted".into());
            match e.kind {
                DeadKind::Data | DeadKind::Node => {
                    self.tree(&e.pointer, e.depth, false, &mut |_, _, _| Ok(()))?;
                }
                DeadKind::Kept => self.clones.wait_to_count(self.core, &e, self.bound)?,
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
        self.place = Place::Own(String::new());
        for (id, v) in &versions {
            let known = u32::try_from(v.version.parent).is_ok_and(|p| versions.contains_key(&p));
            if v.version.parent != 0 && !known {
                self.error(format!("version {id}: its parent {} is gone", v.version.parent));
            }
            children.entry(v.version.parent).or_default().push(*id);
        }
        self.versions_linked(&versions, &children);
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

    /// Each version lists its children, and a deleted one whose turn may come waits for it.
    fn versions_linked(
        &mut self,
        versions: &BTreeMap<u32, DiskInode>,
        children: &BTreeMap<u64, Vec<u32>>,
    ) {
        let doomed = self.core.cp.lock().doomed.clone();
        for (id, v) in versions {
            let (mut listed, mut at) = (Vec::new(), v.version.first_child);
            while let Some(child) = u32::try_from(at).ok().and_then(|at| versions.get(&at)) {
                if listed.len() > versions.len() {
                    break;
                }
                listed.push(at as u32);
                at = child.version.sibling;
            }
            listed.sort_unstable();
            let have = children.get(&u64::from(*id)).cloned().unwrap_or_default();
            if listed != have || at != 0 {
                self.error(format!("version {id}: lists children {listed:?}, has {have:?}"));
            }
            let is_deleted = v.version.flags & VERSION_DELETED != 0;
            let waits = doomed.contains(&u64::from(*id));
            if (is_deleted && have.len() < 2 && !waits) || (waits && !is_deleted) {
                self.error(format!("version {id}: deleted {is_deleted}, waits for it {waits}"));
            }
        }
    }

    /// What is on a version's dead list is its parent's.
    fn dead_list(&mut self, version: u32, list: u64) -> Result<()> {
        if list == 0 {
            return Ok(());
        }
        self.place = Place::Own(format!("the dead list of version {version}"));
        self.lists.insert(list, self.bound);
        let id = NodeId { volume: TABLE, ino: list };
        let file = self.core.inode(id);
        let owner = file.as_ref().map_or(0, |file| file.state.read().meta.version.parent);
        if owner != u64::from(version) {
            self.error(format!("it is that of version {owner}"));
        }
        let entries = match file.and_then(|file| read_entries(self.core, &file)) {
            Ok(entries) => entries,
            Err(e) => {
                self.error(format!("{e}"));
                self.findings.push(Finding::DeadList(VolumeId(version)));
                return Ok(());
            }
        };
        for e in entries {
            if e.pointer.birth > self.bound {
                self.error(format!("block {} is too young", e.pointer.block));
            } else if e.pointer.cloned {
                self.clones.want(e.pointer.block);
            } else if !self.is_counted(e.pointer.block) && self.unread == 0 {
                self.error(format!("nobody has block {}", e.pointer.block));
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
            if self.unread > 0 {
                // The parent may have it below what cannot be read.
                return self.mark(p.block);
            }
            self.error(format!("shares block {}, which its parent lacks", p.block));
            return false;
        }
        self.shared == Shared::Follow
    }

    /// Counts a block; false if it was counted before, and may not be twice, or cannot be.
    fn mark(&mut self, block: u64) -> bool {
        self.mark_as(block, false)
    }

    /// As `mark`; a clone may lead to what was counted before.
    fn mark_as(&mut self, block: u64, is_clone: bool) -> bool {
        if block >= self.core.space.blocks() || Space::is_reserved(block) {
            self.error(format!("names block {block}, which is not for data"));
            return false;
        }
        let (word, bit) = ((block / 64) as usize, 1 << (block % 64));
        if self.seen[word] & bit != 0 {
            if self.clones.again(self.core, block, is_clone) {
                return true;
            }
            self.error(format!("block {block} is named twice"));
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
        if p.cloned && height > 0 {
            return self.cloned_tree(p, height, shared);
        }
        if !(if shared { self.shared_block(p) } else { self.mark_as(p.block, p.cloned) }) {
            if height == 0 && !shared {
                self.findings.push(Finding::Shared(self.at, base, *p));
            }
            return Ok(());
        }
        if height == 0 {
            if verify && !shared {
                self.verify(base, p);
            }
            return leaf(self, base, p);
        }
        let raw = match self.core.store.read(p) {
            Ok(raw) => raw,
            Err(e) => {
                let long = reach(height).saturating_mul(BS);
                let at = base.saturating_mul(long);
                let what = format!("{long} bytes at {at} cannot be found");
                self.unread(format!("{what}: node at block {}: {e}", p.block));
                return Ok(());
            }
        };
        for i in 0..fs_layout::POINTERS_PER_NODE {
            let child = p.child(&raw.bytes.0, i);
            let at = base * fs_layout::POINTERS_PER_NODE as u64 + i as u64;
            match child {
                Ok(child) => self.subtree(&child, height - 1, at, verify, leaf)?,
                Err(e) => self.unread(format!("node at block {}, slot {i}: {e}", p.block)),
            }
        }
        Ok(())
    }

    fn verify(&mut self, file_block: u64, p: &Pointer) {
        self.report.verified_blocks += 1;
        if let Err(e) = self.core.store.read(p) {
            self.error(format!("{BS} bytes at {}: {e}", file_block * BS));
        }
    }

    /// Walks a volume's inode file and every inode in it.
    fn inode_file(&mut self, volume: VolumeId, file: &DiskInode) -> Result<()> {
        self.place = Place::Own(format!("volume {}", volume.0));
        let mut inodes = Vec::new();
        self.tree(&file.root, file.height, false, &mut |c, block, p| {
            match c.core.store.read(p) {
                Ok(data) => {
                    for (i, raw) in data.bytes.0.chunks_exact(INODE_BYTES).enumerate() {
                        let ino = block * INODES_PER_BLOCK + i as u64;
                        match DiskInode::decode(raw) {
                            Ok(inode) if inode.kind != InodeKind::Free => inodes.push((ino, inode)),
                            Ok(_) => {}
                            Err(e) => c.error(format!("inode {ino}: {e}")),
                        }
                    }
                }
                Err(e) => {
                    let first = block * INODES_PER_BLOCK;
                    c.unread(format!("inodes from {first}: {e}"));
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
        self.place = Place::Node(id);
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
        let unread = self.unread;
        self.tree(&inode.root, inode.height, self.options.data, &mut |c, _, p| {
            blocks += 1;
            if is_dir {
                entries += c.bucket(id, p, whole)?;
            }
            Ok(())
        })?;
        self.counts_blocks = false;
        if inode.kind == InodeKind::Counts {
            // What is below its nodes is its own alone: a repair can do without.
            self.unread = unread;
        }
        blocks += std::mem::take(&mut self.clones.data_blocks);
        if !whole {
            return Ok(());
        }
        // What a snapshot was taken of may have been counted down since.
        let of_consistency_points = matches!(inode.kind, InodeKind::DeadList | InodeKind::Counts);
        let wrong = blocks != inode.blocks && (!self.counted_late || blocks > inode.blocks);
        if wrong && !of_consistency_points && !self.reclaiming(id) {
            self.error(format!("counts {} blocks, has {blocks}", inode.blocks));
            self.findings.push(Finding::Blocks(id, blocks));
        }
        if is_dir && entries != inode.entries {
            self.error(format!("counts {} entries, has {entries}", inode.entries));
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
        let decode = |data: std::sync::Arc<super::store::Data>| {
            DirBucket::decode(&data.bytes.0).map_err(|e| Error::Format(e.to_string()))
        };
        let bucket = match self.core.store.read(p).and_then(decode) {
            Ok(bucket) => bucket,
            Err(e) => {
                self.unread_names.insert(dir);
                let what = format!("names in it cannot be read: {e}");
                match dir.volume == TABLE {
                    // Names of volumes lead to all that is in them.
                    true => self.unread(what),
                    false => self.error(what),
                }
                return Ok(0);
            }
        };
        for e in &bucket.entries {
            if self.core.name_hash(&e.name) != e.cookie >> 8 {
                self.error("a name has a wrong hash".into());
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
            match c.core.store.read(p) {
                Ok(data) => {
                    let all = data.bytes.0.chunks_exact(INODE_BYTES).map(DiskInode::decode);
                    inodes.extend(all.flatten());
                }
                Err(e) => c.unread(format!("inodes: {e}")),
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
                errors.push((*id, format!("has {count} names but does not exist")));
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
                errors.push((*id, format!("counts {nlink} links, has {names} names")));
            }
        }
        errors.sort();
        errors.into_iter().for_each(|(id, what)| self.error_at(Place::Node(id), what));
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
        self.place = Place::Own(String::new());
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
