//! Making, opening and recovering a pool.
//!
//! Recovery takes the newest root, walks the chain of groups, marks every block that they name
//! before anything is allocated, applies whole groups in order up to the first that is not whole,
//! and ends with a consistency point and a fresh chain before the first request is answered.
//!
//! Only groups after the last durable mark can be torn; only their data is read back. A mismatch in
//! an older group is rot: its data is linked and will be a medium error; nothing is undone for it.

use super::core::*;
use super::error::{Error, Result};
use super::group::Log;
use super::guard::{Guard, Pins};
use super::inode::new_inode;
use super::labels::{assemble, wipe, Assembled, MIN_DEVICE_BLOCKS};
use super::members::{Device, Members, Set};
use super::planted::{planted, Mutation};
use super::reclaim::ReclaimList;
use super::roots::{mend_roots, newest_root, read_segment_map, write_segment_map};
use super::segments;
use super::space::{Run, Space};
use super::store::Store;
use super::tree::{Change, Dead, Miss, Slot, Tree};
use super::txn::Txn;
use super::types::*;
use super::version::with_links_of;
use super::{FormatOptions, OpenOptions};
use crate::device::{Block, BLOCK_BYTES};
use dashmap::DashMap;
use fs_layout::{
    CloneLink, DeviceEntry, FileRange, FileRecord, GroupHead, Inode as DiskInode, InodeKind, Label,
    MemberState, PayloadReader, Pointer, Root, SegmentRun, SpaceEntry, VersionPart, FEATURE_CLONES,
    FEATURE_DEAD_NODES, MAX_DEVICES, SEGMENT_MAP_PAGES, VERSION_DELETED,
};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::Arc;

/// A quarter of the cache may hold accepted, unwritten data; it also bounds a group's payload.
const DIRTY_SHARE: u64 = 4;
const DIRTY_BLOCKS_MAX: u64 = 8192;
/// What three levels of tables above the bitmap pages reach: 2 PiB.
pub(crate) const MAX_BLOCKS: u64 = 1 << 39;
/// Epochs that can have begun after the newest root's next one and left no trace.
const LOST_EPOCHS: u64 = 4;
/// A dirty node takes 6 KiB and more; an eighth of the cache may be such nodes.
const NODE_SHARE_BYTES: u64 = 8 * 8192;

fn layout(e: fs_layout::LayoutError) -> Error {
    Error::Format(e.to_string())
}

fn limits(o: &OpenOptions) -> Limits {
    let blocks = o.cache_bytes / BLOCK_BYTES as u64;
    Limits {
        dirty_blocks: (blocks / DIRTY_SHARE).clamp(GROUP_SOFT_BLOCKS, DIRTY_BLOCKS_MAX),
        dirty_nodes: (o.cache_bytes / NODE_SHARE_BYTES).max(64),
        background: o.background,
    }
}

/// The log that begins after a root.
fn log_after(root: &Root) -> Log {
    Log {
        next_block: root.next_group_block,
        next_number: root.next_group,
        seed: root.group_seed,
        written: root.next_group - 1,
        blocks: Default::default(),
    }
}

fn build(
    set: Set,
    map: Vec<SegmentRun>,
    root: Root,
    root_hash: [u8; 32],
    root_slot: u64,
    o: &OpenOptions,
    repairs: bool,
) -> Result<Core> {
    let cache = (o.cache_bytes / BLOCK_BYTES as u64) as usize * 5 / 8;
    let store = Store::new(Members::new(set, root.epoch, o.seed), map, cache);
    let space = Space::load(&store, root.blocks, root.space, repairs)?;
    let log = log_after(&root);
    let (inodes, volumes) = (DashMap::new(), DashMap::new());
    let scrub = super::scrub::Scrub::load(root.scrub);
    let next = root.volume_table.version.next_ino.max(FIRST_INO);
    let table = Arc::new(Volume::new(next, false));
    let file = Inode::new(TABLE_FILE, root.volume_table, table.clone());
    volumes.insert(TABLE, table);
    inodes.insert(TABLE_FILE, Arc::new(file));
    Ok(Core {
        pool_id: root.pool_id,
        clock: o.clock.clone(),
        limits: limits(o),
        guard: Guard::new(),
        pins: Pins::new(),
        epoch: AtomicU64::new(root.epoch + 1),
        group: AtomicU64::new(root.next_group),
        durable_group: AtomicU64::new(root.next_group - 1),
        log: Mutex::new(log),
        group_files: Mutex::default(),
        group_blocks: AtomicU64::new(0),
        group_inodes: AtomicU64::new(0),
        dirty_blocks: AtomicU64::new(0),
        epoch_files: Mutex::default(),
        epoch_dirty_inodes: AtomicU64::new(0),
        epoch_promised: AtomicI64::new(0),
        dead: Mutex::default(),
        frozen: Mutex::default(),
        version_ops: Mutex::default(),
        unplaced: Mutex::default(),
        epoch_dead_data: AtomicU64::new(0),
        epoch_dead: AtomicU64::new(0),
        completed_epoch: AtomicU64::new(root.epoch),
        reclaim_pending: AtomicU64::new(0),
        counted: AtomicBool::new(false),
        clones_enabled: AtomicBool::new(root.incompatible & FEATURE_CLONES != 0),
        names_nodes: AtomicBool::new(root.incompatible & FEATURE_DEAD_NODES != 0),
        releases: Mutex::default(),
        cp: Mutex::new(CpState::new(root, root_hash, root_slot)),
        inodes,
        volumes,
        scrub,
        lost: Default::default(),
        regeneration: Mutex::default(),
        refills: Mutex::default(),
        bell: Bell::default(),
        rebalance: Mutex::default(),
        rebalance_said: Mutex::new(Ok(Rebalance::default())),
        closed: AtomicBool::new(false),
        cp_count: AtomicU64::new(0),
        group_count: AtomicU64::new(0),
        cuts: Default::default(),
        freezes: Default::default(),
        snapshots: Default::default(),
        store,
        space,
    })
}

/// Writes an empty pool.
pub(crate) fn format(devices: &[Device], o: &FormatOptions) -> Result<()> {
    if devices.is_empty() || devices.len() > MAX_DEVICES {
        return Err(Error::Invalid("a pool has 1 to 12 devices"));
    }
    if devices.iter().any(|d| d.block_count() < MIN_DEVICE_BLOCKS) {
        return Err(Error::Invalid("a pool's device needs at least 64 MiB"));
    }
    // Old roots go first: a format that was cut short leaves no pool.
    for d in devices {
        wipe(d)?;
    }
    let sizes: Vec<u64> = devices.iter().map(|d| d.block_count()).collect();
    if o.redundancy == Redundancy::Mirror && devices.len() < 2 {
        return Err(Error::Invalid("a mirror needs at least two devices"));
    }
    let (map, blocks) = segments::lay_out(o.redundancy, &sizes);
    if blocks > MAX_BLOCKS {
        return Err(Error::Invalid("a pool holds at most 2 PiB"));
    }
    let mut table = DiskInode::empty(InodeKind::Version);
    table.version = VersionPart { next_ino: u64::from(VolumeId::TREE.0) + 1, ..table.version };
    let root = Root {
        incompatible: 0,
        pool_id: o.pool_id,
        epoch: 0,
        lineage: 1,
        previous: [0; 32],
        time: o.created.0,
        blocks,
        next_group_block: 0,
        next_group: 1,
        group_seed: *blake3::hash(&o.pool_id).as_bytes(),
        space: SpaceEntry::default(),
        segment_map: [(0, 255); SEGMENT_MAP_PAGES],
        scrub: Default::default(),
        volume_table: table,
    };
    let clock = Arc::new(FixedClock(o.created));
    let options = OpenOptions { cache_bytes: 16 << 20, clock, ..OpenOptions::default() };
    let core = build(new_set(devices, o)?, map.clone(), root, [0; 32], 1, &options, false)?;
    write_segment_map(&core.store, &map, &mut core.cp.lock().root.segment_map)?;
    core.new_chain()?;
    core.populate()?;
    core.consistency_point(false)?;
    core.store.relabel()
}

/// The devices of a new pool, all in order.
fn new_set(devices: &[Device], o: &FormatOptions) -> Result<Set> {
    let entry = |(i, d): (usize, &Device)| {
        let mut id = [0; 16];
        let hash = blake3::hash(&[&o.pool_id[..], &[i as u8]].concat());
        id.copy_from_slice(&hash.as_bytes()[..16]);
        let path = o.paths.get(i).cloned().unwrap_or_else(|| d.name());
        DeviceEntry { id, path, ..DeviceEntry::default() }
    };
    let label = Label {
        pool_id: o.pool_id,
        created: o.created.0,
        redundancy: segments::class_of(o.redundancy),
        devices: devices.iter().enumerate().map(entry).collect(),
        ..Label::default()
    };
    label.encode(&mut Block::zeroed().0).map_err(layout)?;
    Ok(Set { label, devices: devices.iter().cloned().map(Some).collect() })
}

struct FixedClock(Timestamp);

impl Clock for FixedClock {
    fn now(&self) -> Timestamp {
        self.0
    }
}

/// What to do with a group that was durable and cannot be read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Damage {
    /// Refuse the pool.
    Refuse,
    /// The log ends before it, and of the rest is left out what is about things that cannot be
    /// read: repair alone says so.
    Cut,
}

/// A pool as its root says, the log not replayed.
pub(super) struct Loaded {
    pub core: Core,
    readable: Vec<Device>,
    unrecorded: Vec<u16>,
    uneven: bool,
}

/// Reads labels, root and maps; writes nothing. With `repairs` the free-space map may be
/// unreadable.
pub(super) fn load(devices: Vec<Device>, o: &OpenOptions, repairs: bool) -> Result<Loaded> {
    let found = assemble(&devices)?;
    let readable: Vec<Device> = found.set.all_readable().map(|(_, d)| d.clone()).collect();
    if readable.is_empty() {
        return Err(missing(&found, "what is given may not be read without it"));
    }
    let (root, hash, slot) = newest_root(&readable)?;
    if root.pool_id != found.set.label.pool_id {
        return Err(Error::Format("root and label name different pools".into()));
    }
    let map = read_segment_map(&readable, &root)?;
    if root.next_group == 0 || root.blocks > MAX_BLOCKS {
        return Err(Error::Format("the root makes no sense".into()));
    }
    check_missing(&found, &map, o.degraded)?;
    let (unrecorded, uneven) = (found.unrecorded, found.uneven);
    let core = build(found.set, map, root, hash, slot, o, repairs)?;
    Ok(Loaded { core, readable, unrecorded, uneven })
}

/// Refuses where a device is missing and the others have not recorded that.
pub(super) fn all_are_there(devices: &[Device]) -> Result<()> {
    let found = assemble(devices)?;
    match found.unrecorded.is_empty() {
        true => Ok(()),
        false => Err(missing(&found, "`lunfs serve --degraded` records that first")),
    }
}

/// Opens and recovers a pool.
pub(crate) fn open(devices: Vec<Device>, o: &OpenOptions) -> Result<Core> {
    recovered(load(devices, o, false)?)
}

/// Recovers what was loaded.
pub(super) fn recovered(loaded: Loaded) -> Result<Core> {
    recovered_from(loaded, Damage::Refuse).map(|(core, _)| core)
}

/// The same, for a repair that may leave things out; how many records it did.
pub(super) fn recovered_from(loaded: Loaded, damage: Damage) -> Result<(Core, u64)> {
    let Loaded { core, readable, unrecorded, uneven } = loaded;
    mend_roots(&readable);
    // Before anything is acknowledged, recovery's own writes included.
    if !unrecorded.is_empty() {
        let epoch = core.store.good_epoch();
        core.store.change_members(|set| {
            unrecorded.iter().for_each(|slot| set.leave(*slot, epoch));
            Ok(())
        })?;
    } else if uneven {
        core.store.relabel()?;
    }
    let skipped = core.recover(damage).map_err(own_files_are_damaged)?;
    Ok((core, skipped))
}

fn is_unreadable(error: &Error) -> bool {
    matches!(error, Error::Corrupt { .. } | Error::Format(_) | Error::Io(_))
}

/// Can the pool be opened without the devices that are not there?
fn check_missing(found: &Assembled, map: &[SegmentRun], degraded: bool) -> Result<()> {
    if !found.set.covers(map) {
        return Err(missing(found, "nobody else has what is on it"));
    }
    let believed = |slot: &&u16| {
        let state = found.set.record(**slot).map(|r| r.state);
        matches!(state, Some(MemberState::Normal | MemberState::Removing))
    };
    match found.unrecorded.iter().find(believed) {
        Some(_) if !degraded => Err(missing(
            found,
            "the others do not know whether it went on without them: --degraded goes on without it",
        )),
        _ => Ok(()),
    }
}

/// Which device is missing, and why it matters.
fn missing(found: &Assembled, why: &str) -> Error {
    let slots = 0..found.set.devices.len() as u16;
    let mut away = slots.filter(|slot| found.set.readable(*slot).is_none());
    let slot = found.unrecorded.first().copied().or_else(|| away.next()).unwrap_or(0);
    let path = found.set.label.devices.get(usize::from(slot)).map_or("?", |d| d.path.as_str());
    let refused: Vec<String> = found.refused.iter().map(|e| format!("{e}; ")).collect();
    let refused = refused.concat();
    Error::Format(format!("{refused}device {slot} of the pool is missing (it was {path}): {why}"))
}

/// What the pool's own files answer when they are not what they should be is no answer to who
/// opens a pool.
fn own_files_are_damaged(error: Error) -> Error {
    match error {
        Error::Corrupt { .. } | Error::Format(_) | Error::Io(_) | Error::Latched(_) => error,
        Error::NoSpace | Error::ReadOnly => error,
        other => Error::Format(format!("the pool's own files are damaged: {other}")),
    }
}

fn is_payload_of(head: &GroupHead, payload: &[u8]) -> bool {
    payload.len() == head.payload_bytes as usize && crc32c::crc32c(payload) == head.payload_crc
}

/// A group as a dump shows it: head, records, and its own blocks.
pub(super) type GroupContent = (GroupHead, Vec<FileRecord>, Vec<Run>);

fn linked(l: &fs_layout::Link, birth: u64) -> Pointer {
    Pointer { block: l.disk_block, birth, crc: l.crc, cloned: false }
}

fn link_clone(tree: &mut Tree, c: &mut Change, clone: &CloneLink) -> std::result::Result<(), Miss> {
    let p = Pointer { block: clone.block, birth: c.now, crc: clone.crc, cloned: true };
    tree.link_clone(c, clone.first, clone.height, p, clone.data_blocks)
}

/// Does a record say that a version is deleted?
fn ends_version(r: &FileRecord) -> bool {
    let deleted = |i: &DiskInode| i.version.flags & VERSION_DELETED != 0;
    let version = r.inode.as_ref().filter(|i| i.kind == InodeKind::Version);
    r.volume == TABLE.0 && version.is_some_and(deleted)
}

/// A group found in the log.
struct LoggedGroup {
    head: GroupHead,
    records: Vec<FileRecord>,
    blocks: Vec<Run>,
    whole: bool,
}

impl Core {
    /// A fresh chain of groups: nothing written before can be taken for part of it.
    fn new_chain(&self) -> Result<()> {
        let mut log = self.log.lock();
        let (block, _) = self.space.allocate(&self.store, 1, None)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&log.seed);
        hasher.update(&self.time().to_le_bytes());
        hasher.update(&self.now().to_le_bytes());
        log.seed = *hasher.finalize().as_bytes();
        log.next_block = block;
        log.written = log.next_number - 1;
        self.group.store(log.next_number, Ordering::Release);
        self.durable_group.store(log.written, Ordering::Release);
        Ok(())
    }

    /// The inodes that every pool has.
    fn populate(&self) -> Result<()> {
        let table = self.volume(TABLE)?;
        let owner = Owner { mode: 0o755, uid: 0, gid: 0 };
        let mut txn = Txn::new(self, true);
        for (id, kind) in [
            (NAMES, InodeKind::Directory),
            (NodeId { volume: TABLE, ino: ORPHANS_INO }, InodeKind::Directory),
            (RECLAIM, InodeKind::DeadList),
        ] {
            let inode = Arc::new(Inode::new(id, DiskInode::empty(InodeKind::Free), table.clone()));
            self.inodes.insert(id, inode.clone());
            txn.make(&inode, new_inode(kind, owner, self.now(), self.time()));
        }
        self.make_volume(&mut txn, &table, VolumeId::TREE, owner);
        txn.commit()?;
        let names = self.inode(NAMES)?;
        let mut txn = Txn::new(self, true);
        let mut edit = super::dir::DirEdit::new(self, names)?;
        let (ino, kind) = (u64::from(VolumeId::TREE.0), InodeKind::Version as u8);
        edit.insert(&mut txn, b"/", ino, kind)?;
        txn.commit()
    }

    /// The list of what waits to be walked and freed, as the root names it.
    pub(super) fn load_reclaim(&self) -> Result<()> {
        self.load_counts()?;
        let list = ReclaimList::load(self, &*self.inode(RECLAIM)?)?;
        let mut cp = self.cp.lock();
        cp.reclaim = list;
        cp.doomed = self.load_doomed()?;
        self.note_reclaim(&cp);
        Ok(())
    }

    /// How many groups recovery would apply, one that is damaged and what follows it left out.
    pub(super) fn log_length(&self) -> Result<u64> {
        Ok(self.read_log(Damage::Cut)?.len() as u64)
    }

    /// Groups that recovery would apply: head, records, and the blocks of the group itself.
    pub(super) fn log_content(&self) -> Result<Vec<GroupContent>> {
        let groups = self.read_log(Damage::Cut)?;
        Ok(groups.into_iter().map(|g| (g.head, g.records, g.blocks)).collect())
    }

    /// Why recovery would refuse the log.
    pub(super) fn log_damage(&self) -> Result<Option<String>> {
        match self.read_log(Damage::Refuse) {
            Ok(_) => Ok(None),
            Err(Error::Format(why)) => Ok(Some(why)),
            Err(e) => Err(e),
        }
    }

    /// Replays the log; how many records were left out, which is for a repair alone to do.
    fn recover(&self, damage: Damage) -> Result<u64> {
        self.load_reclaim()?;
        let groups = self.read_log(damage)?;
        let last_epoch = groups.iter().map(|g| g.head.epoch).max().unwrap_or(0);
        // Beyond every epoch that can have begun before the crash, its log lost or not: the epoch
        // is the generation of what is made in it, and a handle of something lost must not come to
        // life.
        let recovery_epoch = match planted(Mutation::EpochAgain) {
            true => last_epoch.max(self.now()),
            false => last_epoch.max(self.now()) + LOST_EPOCHS,
        };
        for g in &groups {
            self.mark_group(g, recovery_epoch)?;
        }
        let mut skipped = 0;
        for g in &groups {
            self.epoch.store(g.head.epoch, Ordering::SeqCst);
            // Deletions last: what a snapshot of the same group holds was linked before.
            let (ends, records): (Vec<_>, Vec<_>) = g.records.iter().partition(|r| ends_version(r));
            for record in records.into_iter().chain(ends.iter().copied()) {
                match self.replay(record, g.head.epoch) {
                    Err(e) if damage == Damage::Cut && is_unreadable(&e) => skipped += 1,
                    replayed => replayed?,
                }
            }
            ends.into_iter().for_each(|r| self.replay_deletion(r));
            self.replay_freeze();
        }
        self.epoch.store(recovery_epoch, Ordering::SeqCst);
        self.forget_pending();
        self.log.lock().next_number += groups.len() as u64;
        self.new_chain()?;
        for volume in self.volume_list()?.into_iter().map(|v| v.1).chain([VolumeId::TREE]) {
            match self.drain_orphans(volume) {
                // An unreadable directory of orphans costs their space, not the pool.
                Ok(()) | Err(Error::Corrupt { .. }) | Err(Error::Stale) => {}
                Err(e) => return Err(e),
            }
        }
        if planted(Mutation::RecoveryWithoutRoot) {
            return Ok(skipped);
        }
        self.consistency_point_forced().map(|()| skipped)
    }

    pub fn consistency_point_forced(&self) -> Result<()> {
        // The new chain must be named by a root even if nothing else changed.
        self.touch_names()?;
        self.consistency_point(false)
    }

    /// As `consistency_point_forced`. False: who drives the pool alone is within something else.
    pub fn consistency_point_done(&self) -> Result<bool> {
        let before = self.cp_count.load(Ordering::Relaxed);
        self.consistency_point_forced()?;
        Ok(self.cp_count.load(Ordering::Relaxed) > before)
    }

    /// Something for a consistency point to do.
    pub fn touch_names(&self) -> Result<()> {
        let names = self.inode(NAMES)?;
        let _shared = self.guard.shared();
        let mut state = names.state.write();
        self.touch(&names, &mut state, self.now());
        Ok(())
    }

    /// The chain of groups after the root, as far as it is whole.
    fn read_log(&self, damage: Damage) -> Result<Vec<LoggedGroup>> {
        let (mut block, mut number, mut seed) = {
            let log = self.log.lock();
            (log.next_block, log.next_number, log.seed)
        };
        let mut groups: Vec<LoggedGroup> = Vec::new();
        let mut mark = number - 1;
        let blocks = self.space.blocks();
        while block > 0 && block < blocks {
            let next = |mut raw: Vec<Box<Block>>| {
                let raw = raw.pop()?;
                let (head, seed) = GroupHead::decode(&raw.0, &seed).ok()?;
                (head.number == number).then_some((head, seed, raw))
            };
            let Some((head, next_seed, raw)) = self.store.read_raw(block, 1, next)? else { break };
            mark = mark.max(head.durable_mark);
            let group = self.read_group(block, head, &raw)?;
            (block, number, seed) = (group.head.next_block, number + 1, next_seed);
            groups.push(group);
        }
        let mut whole = groups.len();
        for (i, g) in groups.iter().enumerate() {
            if g.head.number <= mark {
                if !g.whole && damage == Damage::Cut {
                    whole = i;
                    break;
                }
                if !g.whole {
                    return Err(Error::Format(format!(
                        "group {} of the log is damaged, though it was durable",
                        g.head.number
                    )));
                }
            } else if !g.whole || !self.data_is_whole(g)? {
                whole = i;
                break;
            }
        }
        if planted(Mutation::ReplayPastTornGroup) && whole < groups.len() {
            groups.remove(whole);
            return Ok(groups);
        }
        groups.truncate(whole);
        Ok(groups)
    }

    fn read_group(&self, block: u64, head: GroupHead, raw: &Block) -> Result<LoggedGroup> {
        let mut blocks = vec![(block, 1)];
        blocks.extend(&head.extents);
        let limit = self.space.blocks();
        let inside = head.extents.iter().all(|(b, n)| b.saturating_add(*n) <= limit);
        let payload = match head.inline_payload(&raw.0) {
            Some(inline) => Some(inline.to_vec()).filter(|p| is_payload_of(&head, p)),
            None if inside => self.read_payload(&head)?,
            None => None,
        };
        let mut whole = inside && payload.is_some();
        let payload = payload.unwrap_or_default();
        let mut records = Vec::new();
        let mut reader = PayloadReader::new(&payload);
        while whole {
            match reader.next_record() {
                Ok(Some(r)) => records.push(r),
                Ok(None) => break,
                Err(_) => whole = false,
            }
        }
        Ok(LoggedGroup { head, records, blocks, whole })
    }

    /// A payload in continuation blocks: the first copy that is whole.
    fn read_payload(&self, head: &GroupHead) -> Result<Option<Vec<u8>>> {
        self.store.read_raw_runs(&head.extents, |raw| {
            let mut payload: Vec<u8> = raw.iter().flat_map(|b| b.0).collect();
            payload.truncate(head.payload_bytes as usize);
            is_payload_of(head, &payload).then_some(payload)
        })
    }

    fn data_is_whole(&self, g: &LoggedGroup) -> Result<bool> {
        if planted(Mutation::TornDataTrusted) {
            return Ok(true);
        }
        let links: Vec<_> = g.records.iter().flat_map(|r| &r.links).collect();
        for part in links.chunk_by(|a, b| a.disk_block + 1 == b.disk_block) {
            for part in part.chunks(256) {
                let pointer = |l: &&fs_layout::Link| Pointer {
                    block: l.disk_block,
                    birth: 1,
                    crc: l.crc,
                    cloned: false,
                };
                let pointers: Vec<Pointer> = part.iter().map(pointer).collect();
                if pointers.iter().any(|p| p.block >= self.space.blocks()) {
                    return Ok(false);
                }
                // Every copy: one that was torn is good again before anybody relies on it.
                for verdict in self.store.verify_run(&pointers)? {
                    match (verdict.good, verdict.failure) {
                        (Some(_), _) => {}
                        (None, None) => return Ok(false),
                        (None, Some(e)) => return Err(e),
                    }
                }
            }
        }
        Ok(true)
    }

    /// Every block a group names is in use: its own ones until the next root, its data for good.
    fn mark_group(&self, g: &LoggedGroup, epoch: u64) -> Result<()> {
        if planted(Mutation::LogNotMarked) {
            return Ok(());
        }
        for run in &g.blocks {
            self.space.mark(&self.store, *run, None)?;
            self.log.lock().blocks.push_back((g.head.number, *run));
        }
        for l in g.records.iter().flat_map(|r| &r.links) {
            self.space.mark(&self.store, (l.disk_block, 1), Some(epoch))?;
        }
        Ok(())
    }

    fn replay(&self, r: &FileRecord, epoch: u64) -> Result<()> {
        let id = NodeId { volume: VolumeId(r.volume), ino: r.ino };
        let volume = match self.volume(id.volume) {
            Ok(v) => v,
            Err(Error::Stale) => {
                // Deleted by the same group or before: what was linked is free.
                let dead = r.links.iter().map(|l| Dead::Block(Slot::Ptr(linked(l, epoch))));
                // It was linked after any snapshot: nobody else has it.
                self.bury_later(TABLE, dead);
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        if !planted(Mutation::ReplayReusesNumbers) {
            volume.next_ino.fetch_max(r.ino + 1, Ordering::Relaxed);
        }
        let inode = match self.inode(id) {
            Ok(inode) => inode,
            Err(Error::Stale) => {
                let empty = DiskInode::empty(InodeKind::Free);
                let inode = Arc::new(Inode::new(id, empty, volume));
                self.inodes.insert(id, inode.clone());
                inode
            }
            Err(e) => return Err(e),
        };
        self.replay_tree(&inode, r, epoch)?;
        let record = r.inode.map(|meta| self.with_origin(meta)).transpose()?;
        let mut state = inode.state.write();
        if let Some(meta) = record {
            self.replay_record(&inode, &mut state, meta);
        }
        self.touch(&inode, &mut state, epoch);
        Ok(())
    }

    fn replay_record(&self, inode: &Arc<Inode>, state: &mut State, meta: DiskInode) {
        if planted(Mutation::ReplaySkipsFrees) && meta.kind == InodeKind::Free {
            return;
        }
        state.gone = meta.kind == InodeKind::Free;
        // Blocks are counted as the tree is replayed: the record's count may already lack what a
        // consistency point that was lost had walked.
        let record = DiskInode { blocks: state.meta.blocks, ..meta };
        let before = std::mem::replace(&mut state.meta, record);
        if state.gone {
            let tree = std::mem::replace(&mut state.tree, Tree::empty());
            self.bury_later(inode.id.volume, [Dead::whole(tree)]);
        }
        if meta.kind != InodeKind::Version {
            return;
        }
        if before.kind == InodeKind::Version {
            state.meta = with_links_of(&meta, &before);
        } else {
            self.note_version(inode, state);
        }
    }

    fn replay_deletion(&self, r: &FileRecord) {
        let new = || Arc::new(Volume::new(FIRST_INO, false));
        let volume = self.volumes.entry(VolumeId(r.ino as u32)).or_insert_with(new).clone();
        volume.deleted.store(true, Ordering::Release);
    }

    fn replay_tree(&self, inode: &Arc<Inode>, r: &FileRecord, epoch: u64) -> Result<()> {
        let held = Held::new(&self.store);
        let run = |f: &mut dyn FnMut(&mut State) -> std::result::Result<(), Miss>| -> Result<()> {
            loop {
                let missed = f(&mut inode.state.write());
                match missed {
                    Ok(()) => return Ok(()),
                    Err(miss) => held.fetch(miss)?,
                }
            }
        };
        for range in &r.ranges {
            match range {
                FileRange::Hole(..) if planted(Mutation::ReplaySkipsHoles) => {}
                FileRange::Hole(first, count) => run(&mut |s| {
                    self.change(inode, s, epoch, &held, |tree, c| tree.punch(c, *first, *count))
                })?,
                FileRange::Clone(clone) => run(&mut |s| {
                    s.tree.get(&held, clone.first)?;
                    self.change(inode, s, epoch, &held, |tree, c| link_clone(tree, c, clone))
                })?,
            }
        }
        for l in &r.links {
            let p = linked(l, epoch);
            run(&mut |s| {
                s.tree.get(&held, l.file_block)?;
                self.change(inode, s, epoch, &held, |tree, c| {
                    tree.link(c, l.file_block, Slot::Ptr(p))
                })
            })?;
        }
        Ok(())
    }

    /// What was replayed is in the log already.
    pub fn forget_pending(&self) {
        for inode in std::mem::take(&mut *self.group_files.lock()) {
            let mut s = inode.state.write();
            s.in_group = false;
            s.record_pending = false;
            s.pending.clear();
        }
        self.group_inodes.store(0, Ordering::Relaxed);
    }
}
