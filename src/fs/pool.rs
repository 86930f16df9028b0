//! The public face: an open pool.

use super::core::{Core, Inode, TABLE};
use super::error::{Error, Result};
use super::handle::File;
use super::join::DeviceChange;
use super::scrub::{BadPlace, ScrubStatus};
use super::types::*;
use super::{inode, recovery, segments};
use crate::device::{BlockDevice, BLOCK_BYTES};
use fs_layout::SEGMENT_BLOCKS;
use parking_lot::Mutex;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::thread::JoinHandle;

/// How to open a pool.
pub struct OpenOptions {
    /// Bound of the block cache together with accepted, unwritten data.
    pub cache_bytes: u64,
    /// Wall clock for time stamps.
    pub clock: Arc<dyn Clock>,
    /// Run consistency points, write-out and reclaim on own threads (false: only inside calls, and
    /// by [`Fs::maintain`]: deterministic).
    pub background: bool,
    /// Go on although devices are missing that no other has recorded as missing, where redundancy
    /// allows it.
    pub degraded: bool,
    /// Random: new lineages are made from it.
    pub seed: u64,
}

impl Default for OpenOptions {
    fn default() -> Self {
        let (clock, background) = (Arc::new(SystemClock), false);
        OpenOptions { cache_bytes: 64 << 20, clock, background, degraded: false, seed: 0 }
    }
}

/// How to make a pool.
pub struct FormatOptions {
    /// Identity of the pool: random.
    pub pool_id: [u8; 16],
    /// Time of creation.
    pub created: Timestamp,
    /// Where each device is found, for its label.
    pub paths: Vec<String>,
    /// What survives the loss of a device.
    pub redundancy: Redundancy,
}

/// An open pool.
pub struct Fs {
    core: Arc<Core>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Fs {
    /// Writes an empty pool over `devices` (at least 64 MiB each). The ordinary tree exists and is
    /// empty.
    pub fn format(devices: &[Arc<dyn BlockDevice>], options: &FormatOptions) -> Result<()> {
        recovery::format(devices, options)
    }

    /// How large a pool over devices of these sizes would be, in bytes. What it keeps for itself
    /// (about a thousandth) is not taken off.
    pub fn capacity_bytes(redundancy: Redundancy, device_bytes: &[u64]) -> u64 {
        let usable = |bytes: &u64| segments::usable_segments(bytes / BLOCK_BYTES as u64);
        let usable: Vec<u64> = device_bytes.iter().map(usable).collect();
        let segments = segments::capacity(redundancy, &usable);
        segments.saturating_mul(SEGMENT_BLOCKS * BLOCK_BYTES as u64)
    }

    /// Opens and recovers. `Format` if it is none, of another version, incomplete or damaged.
    pub fn open(devices: Vec<Arc<dyn BlockDevice>>, options: OpenOptions) -> Result<Arc<Fs>> {
        let core = Arc::new(recovery::open(devices, &options)?);
        let threads =
            if options.background { super::core::spawn_background(&core) } else { vec![] };
        Ok(Arc::new(Fs { core, threads: Mutex::new(threads) }))
    }

    /// Last consistency point; later calls answer `Stale`. Idempotent.
    pub fn close(&self) -> Result<()> {
        if self.core.closed.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        self.core.bell.stop();
        for thread in self.threads.lock().drain(..) {
            let _ = thread.join();
        }
        if self.core.scrub.is_unsaved() {
            return self.core.consistency_point_forced();
        }
        self.core.consistency_point(false)
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// The pool's identity.
    pub fn pool_id(&self) -> [u8; 16] {
        self.core.pool_id
    }

    /// What the pool survives.
    pub fn redundancy(&self) -> Redundancy {
        segments::redundancy_of(&self.core.store.segment_map())
    }

    /// Figures of this moment.
    pub fn stats(&self) -> PoolStats {
        let core = &self.core;
        let bytes = |blocks: u64| blocks * BLOCK_BYTES as u64;
        let (total, free, waiting, reserve) = core.space.figures();
        let load = |a: &std::sync::atomic::AtomicU64| a.load(Ordering::Relaxed);
        let counters = &core.store.counters;
        PoolStats {
            size_bytes: bytes(total),
            free_bytes: bytes(free),
            used_bytes: bytes(total.saturating_sub(free + waiting + reserve)),
            freeing_bytes: bytes(waiting),
            reserved_bytes: bytes(reserve),
            dirty_bytes: bytes(load(&core.dirty_blocks)),
            cache_bytes: bytes(core.store.cached_blocks()),
            blocks_written: load(&counters.blocks_written),
            blocks_read: load(&counters.blocks_read),
            device_flushes: load(&counters.flushes),
            consistency_points: load(&core.cp_count),
            groups: load(&core.group_count),
            checksum_errors: load(&counters.checksum_errors),
            latched: core.store.latched(),
        }
    }

    /// Makes everything durable that returned before.
    pub fn sync(&self) -> Result<()> {
        self.core.sync()
    }

    /// Runs a whole consistency point now, if anything changed.
    pub fn consistency_point(&self) -> Result<()> {
        self.core.writable()?;
        self.core.consistency_point(false)
    }

    /// One bounded step of what background threads would do; true if there is more.
    pub fn maintain(&self) -> Result<bool> {
        self.core.writable()?;
        self.core.consistency_point(false)?;
        Ok(self.core.reclaim_pending.load(Ordering::Relaxed) > 0)
    }

    /// Begins to verify, and heal, every copy of every block; false: that is going on already.
    pub fn scrub_start(&self) -> Result<bool> {
        self.core.scrub_start()
    }

    /// Ends a scrub before it is done; false: there is none.
    pub fn scrub_cancel(&self) -> Result<bool> {
        self.core.scrub_cancel()
    }

    /// How far the scrub is, or what the last one found.
    pub fn scrub_status(&self) -> ScrubStatus {
        self.core.scrub.status()
    }

    /// What an inode is called where its path is not looked for: by its version's name.
    pub fn text_of(&self, node: NodeId) -> String {
        let name = self.core.version_names().remove(&node.volume);
        match name.filter(|name| !name.is_empty()) {
            Some(name) => format!("{name}, inode {}", node.ino),
            None if node.volume == VolumeId::TREE => format!("the file with inode {}", node.ino),
            None => super::named::numbers(node),
        }
    }

    /// `hears` is called with each place of a file of which a scrub finds no good copy.
    pub fn when_lost(&self, hears: Arc<dyn Fn(&BadPlace) + Send + Sync>) {
        *self.core.lost.write() = Some(hears);
    }

    /// Examines about so many blocks on this thread; true while there is more to do. A pool with
    /// background threads does this by itself, paced.
    pub fn scrub_step(&self, budget_blocks: u64) -> Result<bool> {
        self.core.scrub_step(budget_blocks)
    }

    /// Takes over space that the devices have gained; by how many bytes the pool grew.
    pub fn grow(&self) -> Result<u64> {
        self.core.writable()?;
        self.core.grow()
    }

    /// What a change of the devices would come to. `NoRoomElsewhere`; `Busy` while a device is
    /// missing or being filled.
    pub fn plan_change(&self, change: DeviceChange) -> Result<DevicePlan> {
        let planned = self.core.plan_change(change)?;
        let (size_bytes, moved_bytes) = (planned.size_bytes, planned.moved_bytes);
        Ok(DevicePlan { size_bytes, moved_bytes })
    }

    /// Takes in a further device, which is written over; its id is random. Its slot. The pool has
    /// its space when [`Fs::rebalance_status`] says that it is done.
    pub fn add_device(
        &self,
        device: Arc<dyn BlockDevice>,
        path: String,
        id: [u8; 16],
    ) -> Result<u16> {
        self.core.writable()?;
        let slot = self.core.add_device(device, path, id)?;
        self.core.begin_rebalance();
        Ok(slot)
    }

    /// Begins to empty a device. It has left the pool when [`Fs::rebalance_status`] says that it
    /// is done. `NoRoomElsewhere`: nothing has changed.
    pub fn remove_device(&self, slot: u16) -> Result<()> {
        self.core.writable()?;
        self.core.remove_device(slot)?;
        self.core.begin_rebalance();
        Ok(())
    }

    /// How far the background is with bringing the map to what the devices allow, or why it
    /// stopped.
    pub fn rebalance_status(&self) -> Result<Rebalance> {
        self.core.rebalance_status()
    }

    /// By slot, how much of each device is mapped, in bytes.
    pub fn mapped_bytes(&self) -> Vec<u64> {
        self.core.mapped_bytes()
    }

    /// Notes what sizes the devices have by now, durably: [`Fs::rebalance_step`] makes use of it.
    pub fn take_over_sizes(&self) -> Result<()> {
        self.core.writable()?;
        self.core.store.relabel()?;
        self.core.begin_rebalance();
        Ok(())
    }

    /// One step of bringing the segment map to what the devices allow: at most `segments` segments
    /// (of 2 MiB) are copied. What background threads do by themselves.
    pub fn rebalance_step(&self, segments: u64) -> Result<Rebalance> {
        self.core.writable()?;
        self.core.rebalance_step(segments)
    }

    /// Makes a volume with an empty root directory.
    pub fn volume_create(&self, name: &str, owner: Owner) -> Result<VolumeId> {
        self.core.volume_create(name, owner)
    }

    /// Finds a volume by its name.
    pub fn volume_lookup(&self, name: &str) -> Result<Option<VolumeId>> {
        self.core.volume_lookup(name)
    }

    /// All but the ordinary tree, sorted by name.
    pub fn volume_list(&self) -> Result<Vec<(String, VolumeId)>> {
        self.core.volume_list()
    }

    /// `NotFound`, `Exists`.
    pub fn volume_rename(&self, from: &str, to: &str) -> Result<()> {
        self.core.volume_rename(from, to)
    }

    /// Returns at once; space comes back in the background. Open files of it answer `Stale`
    /// afterwards. `NotEmpty` while it has snapshots.
    pub fn volume_delete(&self, name: &str) -> Result<()> {
        self.core.volume_delete(name)
    }

    /// Bytes of data blocks in use by the volume's files.
    pub fn volume_used_bytes(&self, volume: VolumeId) -> Result<u64> {
        self.core.volume_used_bytes(volume)
    }

    /// `.` and `..` are answered too.
    pub fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Attr> {
        check_user(dir)?;
        self.core.lookup(dir, name)
    }

    /// Attributes of an inode.
    pub fn getattr(&self, id: NodeId) -> Result<Attr> {
        check_user(id)?;
        inode::attr_of(&*self.core.live(id)?)
    }

    /// Changes attributes; the new ones.
    pub fn setattr(&self, id: NodeId, change: &SetAttr) -> Result<Attr> {
        check_user(id)?;
        self.core.setattr(id, change)
    }

    /// Makes an inode under a name that is not there.
    pub fn create(&self, dir: NodeId, name: &[u8], node: NewNode, owner: Owner) -> Result<Attr> {
        check_user(dir)?;
        self.core.create(dir, name, node, owner)
    }

    /// A further name; not for directories.
    pub fn link(&self, id: NodeId, dir: NodeId, name: &[u8]) -> Result<Attr> {
        check_user(id)?;
        self.core.link(id, dir, name)
    }

    /// Not for directories (`IsDirectory`).
    pub fn unlink(&self, dir: NodeId, name: &[u8]) -> Result<()> {
        check_user(dir)?;
        self.core.unlink(dir, name)
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, dir: NodeId, name: &[u8]) -> Result<()> {
        check_user(dir)?;
        self.core.rmdir(dir, name)
    }

    /// POSIX rename, within one volume.
    pub fn rename(
        &self,
        dir: NodeId,
        name: &[u8],
        to_dir: NodeId,
        to_name: &[u8],
        mode: RenameMode,
    ) -> Result<()> {
        check_user(dir)?;
        self.core.rename(dir, name, to_dir, to_name, mode)
    }

    /// A symbolic link's target.
    pub fn readlink(&self, id: NodeId) -> Result<Vec<u8>> {
        check_user(id)?;
        self.core.readlink(id)
    }

    /// At most `max` entries after `cookie` (0: from the start), without `.` and `..`.
    pub fn readdir(&self, dir: NodeId, cookie: u64, max: usize) -> Result<Vec<DirEntry>> {
        check_user(dir)?;
        self.core.dir_list(&self.core.directory(dir)?, cookie, max)
    }

    /// The directory that a directory is in; the volume's root is in itself.
    pub fn parent(&self, dir: NodeId) -> Result<NodeId> {
        check_user(dir)?;
        self.core.parent(dir)
    }

    /// `NoAttribute` if it is not there.
    pub fn xattr_get(&self, id: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        check_user(id)?;
        self.core.xattr_get(id, name)
    }

    /// Sets an extended attribute.
    pub fn xattr_set(&self, id: NodeId, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        check_user(id)?;
        self.core.xattr_set(id, name, value, mode)
    }

    /// Names of all extended attributes.
    pub fn xattr_list(&self, id: NodeId) -> Result<Vec<Vec<u8>>> {
        check_user(id)?;
        self.core.xattr_list(id)
    }

    /// `NoAttribute` if it is not there.
    pub fn xattr_remove(&self, id: NodeId, name: &[u8]) -> Result<()> {
        check_user(id)?;
        self.core.xattr_remove(id, name)
    }

    /// Opens a regular file (or a directory, for `sync` alone). While any `File` of an inode lives
    /// the inode does, though its last name be unlinked.
    pub fn open_file(self: &Arc<Self>, id: NodeId) -> Result<File> {
        check_user(id)?;
        let inode = self.core.live(id)?;
        // An unlink decides by the count of opens under this lock.
        let _names = inode.volume.names.lock();
        self.open_inode(self.core.live(id)?)
    }

    fn open_inode(&self, inode: Arc<Inode>) -> Result<File> {
        Ok(File::new(self.core.clone(), inode))
    }
}

impl Drop for Fs {
    fn drop(&mut self) {
        // A failure is latched and was shown; here nobody listens any more.
        let _ = self.close();
    }
}

/// The volume table is nobody's but the filesystem's own.
fn check_user(id: NodeId) -> Result<()> {
    if id.volume == TABLE || (id.ino < super::core::FIRST_INO && id.ino != ROOT_INO) {
        return Err(Error::Stale);
    }
    Ok(())
}

impl Core {
    /// Takes over what the devices have gained.
    fn grow(&self) -> Result<u64> {
        self.store.relabel()?;
        self.rebalance_all()
    }
}
