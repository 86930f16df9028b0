//! The filesystem's state, and the rules by which it changes.
//!
//! Locks, in the order in which they may be taken: a volume's `names` → `cp` → `log` → the guard →
//! inodes' `state` (by [`NodeId`]) → leaf mutexes (`group_files`, `epoch_files`, `dead`, the
//! allocator). Device calls happen under `names`, `cp` and `log` only; nobody takes those while
//! linking.
//!
//! Invariants:
//! - what is linked in epoch E is on disk with root E, or in groups after it;
//! - every inode with something linked since the last cut is in `group_files`; every inode changed
//!   in the running epoch is in `epoch_files`;
//! - what is superseded in epoch E is in `dead` when E is frozen.

use super::error::{Error, Result};
use super::group::Log;
use super::guard::{Guard, Pins};
use super::space::Space;
use super::store::{Data, Store};
use super::tree::{Change, Dead, Miss, NodeSource, Slot, Tree};
use super::types::*;
use super::waits::Watch;
use dashmap::DashMap;
use fs_layout::{
    CloneLink, Inode as DiskInode, InodeKind, Pointer, INODES_PER_BLOCK, INODE_BYTES,
    VERSION_DELETED,
};
use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;

/// The volume table: volume 0. Its inode file's own inode is in the root.
pub(crate) const TABLE: VolumeId = VolumeId(0);
/// The inode file of the volume table.
pub(crate) const TABLE_FILE: NodeId = NodeId { volume: TABLE, ino: 0 };
/// The directory of volume names.
pub(crate) const NAMES: NodeId = NodeId { volume: TABLE, ino: ROOT_INO };
/// The list of what waits to be walked and freed.
pub(crate) const RECLAIM: NodeId = NodeId { volume: TABLE, ino: 4 };
/// The list of deleted versions whose turn has not come.
pub(crate) const DOOMED: NodeId = NodeId { volume: TABLE, ino: 5 };
/// How often each block is cloned.
pub(crate) const COUNTS: NodeId = NodeId { volume: TABLE, ino: 6 };
/// In each volume: the directory of unlinked files that are still open.
pub(crate) const ORPHANS_INO: u64 = 3;
/// First inode number given away.
pub(crate) const FIRST_INO: u64 = 16;
/// Inode numbers leave room for the volume in 64 bits.
pub(crate) const MAX_INO: u64 = (1 << 40) - 1;

/// A group is sealed when so much was linked.
pub(crate) const GROUP_SOFT_BLOCKS: u64 = 512;
/// Or so many inodes: their records must fit the continuation blocks that a head can name.
pub(crate) const GROUP_SOFT_INODES: u64 = 512;
/// A consistency point begins when so many inodes are dirty: bounds the freeze.
pub(crate) const DIRTY_INODES_MAX: u64 = 16_384;
/// Inodes kept in memory beyond those in use: each takes about 400 bytes.
pub(crate) const INODES_KEPT: usize = 32_768;

/// A dirty inode takes its block of the inode file and, spread out, a node above.
const BLOCKS_PER_DIRTY_INODE: i64 = 2;
/// Superseded blocks above which a consistency point frees them (256 MiB): they are used again
/// before space that never was, which costs the host of a pool file an allocation and a journal.
const EPOCH_DEAD_BLOCKS: u64 = 1 << 16;
/// How long who needs space waits for readers that hold freed blocks: as a device may take.
const READERS_WAIT_MS: u32 = 60_000;

/// One thing that a group will say of an inode, in the order it happened.
pub(crate) enum Pending {
    Link(u64, Arc<Data>),
    Hole(u64, u64),
    /// Where a hole was made just before.
    Clone(CloneLink),
}

/// An inode's changeable part.
pub(crate) struct State {
    pub meta: DiskInode,
    pub tree: Tree,
    pub pending: Vec<Pending>,
    /// The inode record itself changed since the last cut.
    pub record_pending: bool,
    /// It is in `group_files`.
    pub in_group: bool,
    /// Last epoch in which it was changed.
    pub dirty_epoch: u64,
    /// Freed: every use is stale.
    pub gone: bool,
}

/// An inode in memory.
pub(crate) struct Inode {
    pub id: NodeId,
    pub volume: Arc<Volume>,
    pub state: RwLock<State>,
    pub opens: AtomicU32,
}

impl Inode {
    pub fn new(id: NodeId, meta: DiskInode, volume: Arc<Volume>) -> Inode {
        let tree = Tree { root: Slot::Ptr(meta.root), height: meta.height };
        let state = State {
            meta,
            tree,
            pending: Vec::new(),
            record_pending: false,
            in_group: false,
            dirty_epoch: 0,
            gone: meta.kind == InodeKind::Free,
        };
        Inode { id, volume, state: RwLock::new(state), opens: AtomicU32::new(0) }
    }
}

/// A change of the tree of versions, found in the record that makes a version.
#[derive(Clone, Copy)]
pub(crate) enum VersionOp {
    /// (new, of): a live version that begins as a snapshot is.
    Clone(VolumeId, VolumeId),
    /// (new, of): a live version as it is at the end of the epoch.
    Snapshot(VolumeId, VolumeId),
}

/// A volume in memory.
pub(crate) struct Volume {
    /// Serialises changes of names.
    pub names: Mutex<()>,
    pub next_ino: AtomicU64,
    /// A snapshot: nothing in it is changed.
    pub is_frozen: bool,
    /// What that was when the volume was loaded: of the inodes below it those that live are in
    /// the inode file.
    pub loaded_ino: u64,
    pub deleted: AtomicBool,
    /// Rises with each transaction applied: a look-up that found nothing looks again.
    pub name_changes: AtomicU64,
}

/// Limits and switches of an open pool.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// Data blocks accepted and not written: above, writers write themselves.
    pub dirty_blocks: u64,
    /// Dirty nodes: above, a consistency point runs.
    pub dirty_nodes: u64,
    pub background: bool,
}

/// What the background threads sleep on.
#[derive(Default)]
pub(crate) struct Bell {
    rung: Mutex<u32>,
    wake: Condvar,
}

impl Bell {
    pub fn ring(&self, what: u32) {
        *self.rung.lock() |= what;
        self.wake.notify_all();
    }

    /// Waits for any of `what` or the time; which were rung.
    pub fn wait(&self, what: u32, timeout: std::time::Duration) -> u32 {
        let until = std::time::Instant::now() + timeout;
        let mut rung = self.rung.lock();
        while *rung & (what | BELL_STOP) == 0 {
            if self.wake.wait_until(&mut rung, until).timed_out() {
                break;
            }
        }
        let found = *rung & what;
        *rung &= !found;
        found
    }
}

impl Bell {
    /// Wakes everybody, for good.
    pub fn stop(&self) {
        self.ring(BELL_STOP);
    }

    pub fn is_stopped(&self) -> bool {
        *self.rung.lock() & BELL_STOP != 0
    }
}

/// Longest time between a write and the consistency point that takes it up.
const CP_INTERVAL: std::time::Duration = std::time::Duration::from_secs(5);
/// Pause between two consistency points that walk the reclaim list.
const RECLAIM_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

/// The threads for write-out, consistency points, the scrub and devices that are being filled.
pub(crate) fn spawn_background(core: &Arc<Core>) -> Vec<std::thread::JoinHandle<()>> {
    let spawn = |name: &str, run: fn(&Core)| {
        let core = core.clone();
        std::thread::Builder::new().name(name.into()).spawn(move || run(&core)).ok()
    };
    let write_out = spawn("lunfs-write", |core| {
        while !core.bell.is_stopped() {
            if core.bell.wait(BELL_SEAL, CP_INTERVAL) != 0 {
                // A failure is latched: the next write or flush says so.
                let _ = core.seal(false);
            }
        }
    });
    let points = spawn("lunfs-cp", |core| {
        while !core.bell.is_stopped() {
            let pending = core.reclaim_pending.load(Ordering::Relaxed) > 0;
            core.bell.wait(BELL_CP, if pending { RECLAIM_PAUSE } else { CP_INTERVAL });
            if !core.bell.is_stopped() {
                let _ = core.consistency_point(false);
            }
        }
    });
    let balance = spawn("lunfs-balance", super::moves::in_background);
    let scrub = spawn("lunfs-scrub", |core| {
        while !core.bell.is_stopped() {
            if !core.scrub.is_running() || !core.scrub_paced() {
                core.bell.wait(BELL_SCRUB, CP_INTERVAL);
            }
        }
    });
    let members = spawn("lunfs-members", |core| {
        while !core.bell.is_stopped() {
            if !core.regenerate_paced() {
                core.bell.wait(BELL_MEMBERS, CP_INTERVAL);
            }
        }
    });
    [write_out, points, scrub, members, balance].into_iter().flatten().collect()
}

pub(crate) const BELL_SEAL: u32 = 1;
pub(crate) const BELL_CP: u32 = 2;
pub(crate) const BELL_STOP: u32 = 4;
pub(crate) const BELL_SCRUB: u32 = 8;
pub(crate) const BELL_MEMBERS: u32 = 16;
pub(crate) const BELL_BALANCE: u32 = 32;

/// What a consistency point keeps between two of them.
pub(crate) struct CpState {
    pub root: fs_layout::Root,
    pub root_hash: [u8; 32],
    /// Slot of the newest durable root.
    pub root_slot: u64,
    pub reclaim: super::reclaim::ReclaimList,
    /// Deleted versions whose blocks go to their neighbours or are freed, when it is their turn.
    pub doomed: Vec<u64>,
    /// Dead lists that a repair made anew, for the next one to write.
    pub relisted: Vec<(VolumeId, Vec<fs_layout::DeadEntry>)>,
    /// Counts of clones as a repair found that they should be: all of them.
    pub recounted: Option<std::collections::BTreeMap<u64, u32>>,
}

pub(crate) struct Core {
    pub store: Store,
    pub space: Space,
    pub clock: Arc<dyn Clock>,
    pub limits: Limits,
    pub pool_id: [u8; 16],
    pub guard: Guard,
    pub pins: Pins,
    /// The running epoch; changed under the guard alone.
    pub epoch: AtomicU64,
    pub log: Mutex<Log>,
    /// Number of the group that is being filled.
    pub group: AtomicU64,
    /// Groups up to this number are durable.
    pub durable_group: AtomicU64,
    pub group_files: Mutex<Vec<Arc<Inode>>>,
    pub group_blocks: AtomicU64,
    pub group_inodes: AtomicU64,
    pub dirty_blocks: AtomicU64,
    pub cp: Mutex<CpState>,
    pub epoch_files: Mutex<Vec<Arc<Inode>>>,
    pub epoch_dirty_inodes: AtomicU64,
    /// Blocks promised for nodes and inodes in the running epoch.
    pub epoch_promised: AtomicI64,
    pub dead: Mutex<Vec<(VolumeId, Dead)>>,
    /// Freezes that made snapshots and whose nodes no consistency point has written yet, in order.
    pub frozen: Mutex<Vec<super::cp::Frozen>>,
    /// What the running epoch does to the tree of versions.
    pub version_ops: Mutex<Vec<VersionOp>>,
    /// Snapshots that are in `frozen`, or in the consistency point that is being written: they
    /// cannot be read yet.
    pub unplaced: Mutex<BTreeSet<VolumeId>>,
    /// Blocks superseded before they were settled: their buffers live until they are buried.
    pub epoch_dead_data: AtomicU64,
    /// Blocks and subtrees superseded in the running epoch.
    pub epoch_dead: AtomicU64,
    pub completed_epoch: AtomicU64,
    pub reclaim_pending: AtomicU64,
    /// There is a file of counts: blocks may be cloned.
    pub counted: AtomicBool,
    /// The root says so: durably.
    pub clones_enabled: AtomicBool,
    /// Dead lists tell nodes from data: whole subtrees can be cloned.
    pub names_nodes: AtomicBool,
    /// Freed by a durable consistency point of this epoch, perhaps still being read.
    pub releases: Mutex<std::collections::VecDeque<(u64, Vec<u64>)>>,
    pub inodes: DashMap<NodeId, Arc<Inode>>,
    pub volumes: DashMap<VolumeId, Arc<Volume>>,
    pub scrub: super::scrub::Scrub,
    /// Who hears of blocks that a scrub finds lost.
    pub lost: RwLock<Option<super::scrub::Hears>>,
    /// The walk that fills devices which come back or are new.
    pub regeneration: Mutex<Option<super::regenerate::Regeneration>>,
    /// What that walk has to come to again.
    pub refills: Mutex<super::regenerate::Refills>,
    pub bell: Bell,
    /// What is left of a plan for the segment map, which nobody else changes.
    pub rebalance: Mutex<super::moves::Work>,
    /// What the background said of it last.
    pub rebalance_said: Mutex<Result<Rebalance>>,
    pub closed: AtomicBool,
    pub cp_count: AtomicU64,
    pub group_count: AtomicU64,
    /// How long the guard was taken alone, by what for.
    pub cuts: Watch,
    pub freezes: Watch,
    pub snapshots: Watch,
}

/// Nodes held for one operation, in front of the cache.
pub(crate) struct Held<'a> {
    store: &'a Store,
    held: std::cell::RefCell<Vec<(u64, Arc<Data>)>>,
}

impl<'a> Held<'a> {
    pub fn new(store: &'a Store) -> Self {
        Held { store, held: std::cell::RefCell::new(Vec::new()) }
    }

    /// Brings what was missing, or says why it cannot be had. Called without locks.
    pub fn fetch(&self, miss: Miss) -> Result<()> {
        match miss {
            Miss::Bad(e) => Err(e),
            Miss::Node(p) => {
                let data = self.store.read(&p)?;
                self.held.borrow_mut().push((p.block, data));
                Ok(())
            }
        }
    }
}

impl NodeSource for Held<'_> {
    fn node(&self, p: &Pointer) -> Option<Arc<Data>> {
        let mut held = self.held.borrow_mut();
        if let Some((_, d)) = held.iter().find(|(b, d)| *b == p.block && d.crc == p.crc) {
            return Some(d.clone());
        }
        let data = self.store.cached(p)?;
        // What one pass found must still be there for the next, under the same locks.
        held.push((p.block, data.clone()));
        Some(data)
    }
}

/// The cache alone, for reads that may begin again.
impl NodeSource for Store {
    fn node(&self, p: &Pointer) -> Option<Arc<Data>> {
        self.cached(p)
    }
}

impl Core {
    pub fn now(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    pub fn time(&self) -> i64 {
        self.clock.now().0
    }

    /// Fails where nothing may be changed.
    pub fn writable(&self) -> Result<()> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(Error::Stale);
        }
        self.store.check_latch()
    }

    pub fn volume(&self, id: VolumeId) -> Result<Arc<Volume>> {
        if let Some(v) = self.volumes.get(&id) {
            return if v.deleted.load(Ordering::Relaxed) {
                Err(Error::Stale)
            } else {
                Ok(v.clone())
            };
        }
        self.settle_version(id)?;
        let file = self.inode_file(id)?;
        // Held until it is entered: a deletion finds it there, or is seen here.
        let state = file.state.read();
        let meta = state.meta;
        if meta.kind != InodeKind::Version || meta.version.flags & VERSION_DELETED != 0 {
            return Err(Error::Stale);
        }
        let next = meta.version.next_ino.max(FIRST_INO);
        if next > MAX_INO {
            return Err(Error::Format(format!("volume {}: its next inode makes no sense", id.0)));
        }
        let new = || Arc::new(Volume::new(next, meta.version.epoch != 0));
        Ok(self.volumes.entry(id).or_insert_with(new).clone())
    }

    /// The inode whose data is a volume's inode file.
    pub fn inode_file(&self, id: VolumeId) -> Result<Arc<Inode>> {
        self.inode(NodeId { volume: TABLE, ino: u64::from(id.0) })
    }

    /// An inode, read from its volume's inode file if it is not in memory. May be gone.
    pub fn inode(&self, id: NodeId) -> Result<Arc<Inode>> {
        loop {
            if let Some(i) = self.inodes.get(&id) {
                return Ok(i.clone());
            }
            // An inode that is made, written and dropped while we read would be read stale: the
            // epoch completed in between tells.
            let before = self.completed_epoch.load(Ordering::SeqCst);
            let volume = self.volume(id.volume)?;
            let meta = self.read_inode(id)?;
            let entry = self.inodes.entry(id);
            if self.completed_epoch.load(Ordering::SeqCst) != before {
                continue;
            }
            return Ok(entry.or_insert_with(|| Arc::new(Inode::new(id, meta, volume))).clone());
        }
    }

    /// An inode in use, of a volume that is not deleted.
    pub fn live(&self, id: NodeId) -> Result<Arc<Inode>> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(Error::Stale);
        }
        if id.volume != TABLE {
            self.volume(id.volume)?;
        }
        let inode = self.inode(id)?;
        if inode.state.read().gone {
            return Err(Error::Stale);
        }
        Ok(inode)
    }

    /// An inode's record as the last consistency point wrote it.
    pub fn read_inode(&self, id: NodeId) -> Result<DiskInode> {
        if id.ino > MAX_INO || id == TABLE_FILE {
            return Err(Error::Stale);
        }
        let file = self.inode_file(id.volume)?;
        let data = self.read_block(&file, id.ino / INODES_PER_BLOCK)?;
        let at = (id.ino % INODES_PER_BLOCK) as usize * INODE_BYTES;
        match data {
            None => Err(Error::Stale),
            Some(d) => DiskInode::decode(&d.bytes.0[at..at + INODE_BYTES])
                .map_err(|e| Error::Format(format!("inode {}: {e}", id.ino))),
        }
    }

    /// A file's block as it is now; `None`: a hole.
    pub fn read_block(&self, inode: &Inode, block: u64) -> Result<Option<Arc<Data>>> {
        let _pin = self.pins.pin(&self.epoch);
        let held = Held::new(&self.store);
        loop {
            let found = inode.state.read().tree.get(&held, block);
            // Asked after the pin: what a deletion frees later is still there for us.
            if inode.volume.deleted.load(Ordering::Acquire) {
                return Err(Error::Stale);
            }
            match found {
                Ok(Slot::Data(_, d)) => return Ok(Some(d)),
                Ok(Slot::Ptr(p)) if p.is_hole() => return Ok(None),
                Ok(Slot::Ptr(p)) => return self.store.read(&p).map(Some),
                Ok(Slot::Node(_)) => return Err(Error::Invalid("a node stands where data should")),
                Err(miss) => held.fetch(miss)?,
            }
        }
    }

    /// Enters an inode into what the running epoch and group must write. Under the guard and the
    /// inode's lock.
    pub fn touch(&self, inode: &Arc<Inode>, state: &mut State, now: u64) {
        if state.dirty_epoch != now {
            state.dirty_epoch = now;
            self.epoch_files.lock().push(inode.clone());
            self.epoch_dirty_inodes.fetch_add(1, Ordering::Relaxed);
            self.epoch_promised.fetch_add(BLOCKS_PER_DIRTY_INODE, Ordering::Relaxed);
            self.space.promise_unasked(BLOCKS_PER_DIRTY_INODE as u64);
        }
        if !state.in_group {
            state.in_group = true;
            self.group_files.lock().push(inode.clone());
            self.group_inodes.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Runs a change of a tree under the guard and the inode's lock, and books what it left.
    pub fn change<R>(
        &self,
        inode: &Inode,
        state: &mut State,
        now: u64,
        nodes: &dyn NodeSource,
        f: impl FnOnce(&mut Tree, &mut Change) -> std::result::Result<R, Miss>,
    ) -> std::result::Result<R, Miss> {
        let mut dead = Vec::new();
        let mut c =
            Change { now, nodes, dead: &mut dead, dirtied: 0, blocks: 0, ino: inode.id.ino };
        let was_empty = state.tree.root.is_hole();
        let result = f(&mut state.tree, &mut c);
        let (dirtied, blocks) = (c.dirtied, c.blocks);
        state.meta.blocks = state.meta.blocks.saturating_add_signed(blocks);
        if state.tree.root.is_hole() && !was_empty {
            state.meta.cleared = now;
        }
        self.epoch_promised.fetch_add(dirtied as i64, Ordering::Relaxed);
        if dirtied > 0 {
            // Promised without asking: the caller's own promise covered the worst case.
            self.space.promise_unasked(dirtied);
        }
        if !dead.is_empty() {
            let buffers = dead.iter().filter(|d| matches!(d, Dead::Block(Slot::Data(..)))).count();
            self.epoch_dead_data.fetch_add(buffers as u64, Ordering::Relaxed);
            self.bury_later(inode.id.volume, dead);
        }
        result
    }

    /// What a volume detached: judged by the next consistency point.
    pub fn bury_later(&self, volume: VolumeId, dead: impl IntoIterator<Item = Dead>) {
        let mut all = self.dead.lock();
        let before = all.len();
        all.extend(dead.into_iter().map(|d| (volume, d)));
        self.epoch_dead.fetch_add((all.len() - before) as u64, Ordering::Relaxed);
    }

    /// Accepts `blocks` of space. Where it is short, runs consistency points as long as they bring
    /// some. Not to be called under a pin: it waits for those of others.
    pub fn promise(&self, blocks: u64, privileged: bool) -> Result<()> {
        let mut patience_ms = READERS_WAIT_MS;
        for _ in 0..64 {
            if self.space.promise(blocks, privileged).is_ok() {
                return Ok(());
            }
            if !self.could_bring_space() {
                break;
            }
            self.consistency_point(true)?;
            if self.wait_for_readers(blocks, privileged, &mut patience_ms)? {
                return Ok(());
            }
        }
        self.space.promise(blocks, privileged)
    }

    /// What a consistency point freed can be given away once its readers are gone: waits for them,
    /// as long as a device may take to answer. True: the blocks are promised.
    fn wait_for_readers(
        &self,
        blocks: u64,
        privileged: bool,
        patience_ms: &mut u32,
    ) -> Result<bool> {
        loop {
            self.store.check_latch()?;
            self.release_ready()?;
            if self.space.promise(blocks, privileged).is_ok() {
                return Ok(true);
            }
            if *patience_ms == 0 || !self.limits.background || !self.is_held_by_readers() {
                return Ok(false);
            }
            *patience_ms -= 1;
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    /// Are there freed blocks for which nobody but readers of epochs before is waited? What the
    /// running epoch's readers may have found needs the next consistency point first.
    fn is_held_by_readers(&self) -> bool {
        let now = self.now();
        self.releases.lock().iter().any(|(epoch, blocks)| *epoch < now && !blocks.is_empty())
    }

    fn could_bring_space(&self) -> bool {
        self.space.is_waiting()
            || self.reclaim_pending.load(Ordering::Relaxed) > 0
            || !self.dead.lock().is_empty()
            || self.epoch_promised.load(Ordering::Relaxed) > 0
            // One that is under way may be about to.
            || self.limits.background && self.cp.is_locked()
    }

    /// Takes a lock; a pool driven by one thread does not wait for itself (`None`).
    pub fn lock_unless_alone<'a, T>(&self, m: &'a Mutex<T>) -> Option<MutexGuard<'a, T>> {
        if self.limits.background {
            Some(m.lock())
        } else {
            m.try_lock()
        }
    }

    /// May this inode be changed? Asked under the guard: a volume is deleted under it too.
    pub fn check_changeable(&self, inode: &Inode, state: &State) -> Result<()> {
        if Core::is_ended(inode, state) {
            return Err(Error::Stale);
        }
        if inode.volume.is_frozen {
            return Err(Error::ReadOnly);
        }
        Ok(())
    }

    /// Before a write is accepted: where too much is dirty, write it out on this thread.
    pub fn pace(&self) -> Result<()> {
        let dirty = self.dirty_blocks.load(Ordering::Relaxed);
        let inodes = self.group_inodes.load(Ordering::Relaxed);
        let much = dirty > self.limits.dirty_blocks || inodes > 2 * GROUP_SOFT_INODES;
        if much && (self.limits.background || self.log.try_lock().is_some()) {
            self.seal(false)?;
        }
        if self.nodes_over(2) {
            self.consistency_point(false)?;
        }
        Ok(())
    }

    /// Is it so that nobody may use the inode any more?
    pub fn is_ended(inode: &Inode, state: &State) -> bool {
        state.gone || inode.volume.deleted.load(Ordering::Acquire)
    }

    /// Must a write wait before it is accepted?
    pub fn must_pace(&self) -> bool {
        self.dirty_blocks.load(Ordering::Relaxed) > self.limits.dirty_blocks
            || self.group_inodes.load(Ordering::Relaxed) > 2 * GROUP_SOFT_INODES
            || self.nodes_over(2)
    }

    fn nodes_over(&self, times: u64) -> bool {
        self.epoch_promised.load(Ordering::Relaxed) as u64 > times * self.limits.dirty_nodes
            || self.epoch_dead_data.load(Ordering::Relaxed) > times * self.limits.dirty_blocks
            || self.epoch_dirty_inodes.load(Ordering::Relaxed) > times * DIRTY_INODES_MAX
    }

    /// After a change was accepted: what grew too large is written, in the background if there is
    /// one.
    pub fn after_change(&self) {
        if self.group_blocks.load(Ordering::Relaxed) >= GROUP_SOFT_BLOCKS
            || self.group_inodes.load(Ordering::Relaxed) >= GROUP_SOFT_INODES
        {
            if self.limits.background {
                self.bell.ring(BELL_SEAL);
            } else if self.log.try_lock().is_some() {
                // A failure is latched, and the next flush says so.
                let _ = self.seal(false);
            }
        }
        if self.nodes_over(1) || self.epoch_dead.load(Ordering::Relaxed) > EPOCH_DEAD_BLOCKS {
            if self.limits.background {
                self.bell.ring(BELL_CP);
            } else if self.cp.try_lock().is_some() && self.log.try_lock().is_some() {
                let _ = self.consistency_point(false);
            }
        }
    }

    /// Drops inodes that are clean and unused, when many are in memory.
    pub fn shrink_inodes(&self) {
        if self.inodes.len() <= INODES_KEPT {
            return;
        }
        let done = self.completed_epoch.load(Ordering::SeqCst);
        let mut keep = INODES_KEPT / 2;
        self.inodes.retain(|id, i| {
            let unused = Arc::strong_count(i) == 1 && i.opens.load(Ordering::Relaxed) == 0;
            let clean = || {
                let s = i.state.read();
                !s.in_group && s.dirty_epoch <= done
            };
            if id.volume != TABLE && unused && clean() && keep == 0 {
                return false;
            }
            keep = keep.saturating_sub(1);
            true
        });
    }
}

impl CpState {
    /// Beginning at a root; what waits to be freed is loaded later.
    pub fn new(root: fs_layout::Root, root_hash: [u8; 32], root_slot: u64) -> CpState {
        CpState {
            root,
            root_hash,
            root_slot,
            reclaim: Default::default(),
            doomed: Vec::new(),
            relisted: Vec::new(),
            recounted: None,
        }
    }
}

impl Volume {
    pub fn new(next_ino: u64, is_frozen: bool) -> Volume {
        Volume {
            names: Mutex::new(()),
            next_ino: AtomicU64::new(next_ino),
            is_frozen,
            loaded_ino: next_ino,
            deleted: AtomicBool::new(false),
            name_changes: AtomicU64::new(0),
        }
    }

    pub fn changes(&self) -> u64 {
        self.name_changes.load(Ordering::Acquire)
    }

    /// What its record says of the next number.
    pub fn peek_ino(&self) -> u64 {
        self.next_ino.load(Ordering::Relaxed)
    }

    pub fn take_ino(&self) -> u64 {
        self.next_ino.fetch_add(1, Ordering::Relaxed)
    }
}
