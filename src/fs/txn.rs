//! A namespace transaction: block writes to directories and edits of inodes, all in one group.
//!
//! It is built under the volume's `names` lock (reading what it needs from the device), then
//! applied in one step under the guard with every inode it touches locked, in the order of their
//! ids.

use super::core::{Core, Held, Inode, Pending, State};
use super::error::{Error, Result};
use super::store::Data;
use super::tree::{Dead, Miss, Slot, Tree};
use super::types::*;
use crate::device::{Block, BLOCK_BYTES};
use fs_layout::{Inode as DiskInode, InodeKind, VERSION_DELETED};
use parking_lot::RwLockWriteGuard;
use std::collections::BTreeMap;
use std::sync::Arc;

type EditFn<'a> = Box<dyn Fn(&mut DiskInode) + 'a>;

#[derive(Default)]
struct Part<'a> {
    inode: Option<Arc<Inode>>,
    blocks: BTreeMap<u64, Option<Arc<Data>>>,
    edits: Vec<EditFn<'a>>,
    /// A new inode's first record.
    makes: Option<DiskInode>,
    /// The inode must not be freed when this is applied.
    must_live: bool,
    /// The inode ends: its tree is detached, its record freed.
    frees: bool,
    /// Its whole content goes before `blocks` are written.
    clears: bool,
    /// Its volume ends.
    ends_volume: bool,
}

/// A transaction being built.
pub(crate) struct Txn<'a> {
    core: &'a Core,
    parts: BTreeMap<NodeId, Part<'a>>,
    /// Deletes may use the reserve.
    privileged: bool,
}

impl<'a> Txn<'a> {
    pub fn new(core: &'a Core, privileged: bool) -> Txn<'a> {
        Txn { core, parts: BTreeMap::new(), privileged }
    }

    fn part(&mut self, inode: &Arc<Inode>) -> &mut Part<'a> {
        let part = self.parts.entry(inode.id).or_default();
        part.inode.get_or_insert_with(|| inode.clone());
        part
    }

    /// A block as this transaction sees it.
    pub fn read(&self, inode: &Arc<Inode>, block: u64) -> Result<Option<Arc<Data>>> {
        let own = self.parts.get(&inode.id).and_then(|p| p.blocks.get(&block));
        match own {
            Some(data) => Ok(data.clone()),
            None => self.core.read_block(inode, block),
        }
    }

    /// Writes a block.
    pub fn write(&mut self, inode: &Arc<Inode>, block: u64, bytes: Box<Block>) {
        self.part(inode).blocks.insert(block, Some(Data::new(bytes)));
    }

    /// The inode's content is replaced: all blocks go, then those written here come.
    pub fn clear(&mut self, inode: &Arc<Inode>) {
        let part = self.part(inode);
        part.clears = true;
        part.blocks.clear();
    }

    /// Edits the inode's record when applied; may run more than once on a fresh copy.
    pub fn edit(&mut self, inode: &Arc<Inode>, f: impl Fn(&mut DiskInode) + 'a) {
        self.part(inode).edits.push(Box::new(f));
    }

    /// Makes a new inode when applied, before any other edit of it.
    pub fn make(&mut self, inode: &Arc<Inode>, meta: DiskInode) {
        self.part(inode).makes = Some(meta);
    }

    /// Applying fails with `Stale` if the inode was freed before.
    pub fn keep_alive(&mut self, inode: &Arc<Inode>) {
        self.part(inode).must_live = true;
    }

    /// Frees the inode when applied.
    pub fn free(&mut self, inode: &Arc<Inode>) {
        self.part(inode).frees = true;
    }

    /// The version inode's volume is deleted when applied.
    pub fn end_volume(&mut self, inode: &Arc<Inode>) {
        self.part(inode).ends_volume = true;
    }

    /// Applies everything in one step.
    pub fn commit(self) -> Result<()> {
        self.within_space(|| {
            let _pin = self.core.pins.pin(&self.core.epoch);
            let held = Held::new(&self.core.store);
            loop {
                let miss = {
                    let _shared = self.core.guard.shared();
                    let _steps = self.core.store.in_steps();
                    match self.try_apply(&held)? {
                        None => return Ok(()),
                        Some(miss) => miss,
                    }
                };
                held.fetch(miss)?;
            }
        })
    }

    /// Applies everything in one step, as the last of its epoch, durable on return: the instant of
    /// the snapshots that it makes.
    pub fn commit_and_freeze(self) -> Result<()> {
        let core = self.core;
        self.within_space(|| {
            let held = Held::new(&core.store);
            let mut log = core.log_before_freeze()?;
            let cut = loop {
                let miss = {
                    let _alone = core.guard.alone(&core.snapshots);
                    let _steps = core.store.in_steps();
                    match self.try_apply(&held)? {
                        None => break core.freeze_snapshots(),
                        Some(miss) => miss,
                    }
                };
                held.fetch(miss)?;
            };
            core.write_group(&mut log, cut)?;
            core.flush_log(&log)
        })
    }

    fn within_space(&self, apply: impl FnOnce() -> Result<()>) -> Result<()> {
        let core = self.core;
        core.writable()?;
        core.pace()?;
        let blocks: u64 = self.parts.values().map(|p| p.blocks.len() as u64).sum();
        let worst = blocks + 8 * (self.parts.len() as u64 + blocks);
        core.promise(worst, self.privileged)?;
        let done = apply();
        core.space.settle(worst);
        if done.is_ok() {
            core.after_change();
        }
        done
    }

    /// Under the guard. What it misses is said before anything was changed.
    fn try_apply(&self, held: &Held) -> Result<Option<Miss>> {
        let mut locked = Vec::new();
        for part in self.parts.values() {
            let Some(inode) = &part.inode else { continue };
            let state = inode.state.write();
            let ended = inode.volume.deleted.load(std::sync::atomic::Ordering::Relaxed);
            if ended || (part.must_live && state.gone) {
                return Err(Error::Stale);
            }
            if inode.volume.is_frozen {
                return Err(Error::ReadOnly);
            }
            locked.push((inode, part, state));
        }
        match check(held, &locked) {
            Ok(()) => self.apply_locked(held, locked).map(|()| None),
            Err(miss) => Ok(Some(miss)),
        }
    }

    fn apply_locked(&self, held: &Held, locked: Vec<LockedPart<'_, '_>>) -> Result<()> {
        let now = self.core.now();
        for (inode, part, mut state) in locked {
            inode.volume.name_changes.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
            let applied = self.apply_part(inode, part, &mut state, held, now);
            applied.map_err(|m| match m {
                Miss::Bad(e) => e,
                Miss::Node(p) => Error::Corrupt { block: p.block, file_offset_bytes: None },
            })?;
        }
        Ok(())
    }

    fn apply_part(
        &self,
        inode: &Arc<Inode>,
        part: &Part,
        state: &mut State,
        held: &Held,
        now: u64,
    ) -> std::result::Result<(), Miss> {
        let core = self.core;
        if part.frees || part.clears {
            let tree = std::mem::replace(&mut state.tree, Tree::empty());
            if !tree.root.is_hole() {
                core.bury_later(inode.id.volume, [Dead::whole(tree)]);
            }
            state.pending.push(Pending::Hole(0, MAX_FILE_BYTES / BLOCK_BYTES as u64));
            state.meta.blocks = 0;
        }
        for (block, data) in part.blocks.iter().filter(|_| !part.frees) {
            let Some(data) = data else { continue };
            core.change(inode, state, now, held, |tree, c| {
                tree.link(c, *block, Slot::Data(now, data.clone()))
            })?;
            state.pending.push(Pending::Link(*block, data.clone()));
            core.accept_data(1);
        }
        if let Some(meta) = part.makes {
            // Its blocks were counted above.
            state.meta = DiskInode { blocks: state.meta.blocks, ..meta };
            state.gone = false;
        }
        for edit in &part.edits {
            edit(&mut state.meta);
        }
        if part.makes.is_some() && state.meta.kind == InodeKind::Version {
            core.note_version(inode, state);
        }
        if part.frees {
            state.gone = true;
            state.meta = DiskInode::empty(InodeKind::Free);
        }
        if part.ends_volume {
            state.meta.version.flags |= VERSION_DELETED;
            state.meta.nlink = 0;
            if let Some(v) = core.volumes.get(&VolumeId(inode.id.ino as u32)) {
                v.deleted.store(true, std::sync::atomic::Ordering::Release);
            }
        }
        state.record_pending = true;
        core.touch(inode, state, now);
        Ok(())
    }
}

type LockedPart<'a, 'b> = (&'a Arc<Inode>, &'a Part<'b>, RwLockWriteGuard<'a, State>);

/// Brings to light what applying would miss.
fn check(held: &Held, locked: &[LockedPart]) -> std::result::Result<(), Miss> {
    for (_, part, state) in locked {
        for block in part.blocks.keys().filter(|_| !part.clears && !part.frees) {
            state.tree.get(held, *block)?;
        }
    }
    Ok(())
}
