//! `check --repair`: what can be repaired of a pool that nobody has open.
//!
//! In this order, each step on what the one before left:
//! 1. no copy of the newest root can be read: back to the older one, if its trees are whole;
//! 2. the free-space map is compared with a recount of what the root names, and written anew where
//!    it is wrong, before anything is allocated by it;
//! 3. the log is replayed; a group that was durable and cannot be read cuts it;
//! 4. dead lists that cannot be read; counts of inodes, names without an inode, inodes without a
//!    name, blocks with two owners;
//! 5. the free-space map again, then every copy of everything is verified and healed.
//!
//! What is bad in a file's data or tree stays a medium error, and a snapshot stays as it is:
//! nothing turns into zeros silently. As long as a node cannot be read, blocks that nothing names
//! are kept: they may lie below it.
//!
//! A dry run does the same to overlays in memory.

use super::check::{check, CheckOptions, Count, Finding, Report};
use super::core::{Core, FIRST_INO, TABLE};
use super::dir::DirEdit;
use super::error::{Error, Result};
use super::members::Device;
use super::pool::OpenOptions;
use super::recovery::{self, Damage};
use super::roots;
use super::scrub::{Outcome, Walk};
use super::txn::Txn;
use super::types::*;
use crate::device::overlay::OverlayDevice;
use crate::device::BLOCK_BYTES;
use fs_layout::{InodeKind, Pointer};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Where inodes without a name are found again.
const LOST_AND_FOUND: &[u8] = b"lost+found";
/// Entries of a directory looked at in one go.
const LIST_ENTRIES: usize = 256;
/// Blocks that a dry run keeps in memory, on each device: 1 GiB.
const OVERLAY_BLOCKS: usize = 262_144;
const METADATA: CheckOptions = CheckOptions { data: false };

/// What a repair did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repaired {
    /// One line each, in the order in which it was done; empty: there was nothing to do.
    pub actions: Vec<String>,
    /// What a check finds afterwards.
    pub after: Report,
}

/// Repairs a pool; with `dry_run` in memory only.
pub fn repair(devices: &[Device], dry_run: bool) -> Result<Repaired> {
    let devices: Vec<Device> = match dry_run {
        true => over(devices),
        false => devices.to_vec(),
    };
    let mut actions = Vec::new();
    if !dry_run {
        // It writes: that a device is missing must be known to the others before.
        recovery::all_are_there(&devices)?;
    }
    step_back(&devices, &mut actions)?;
    recount(&devices, &mut actions)?;
    {
        let core = replay(&devices, &mut actions)?;
        mend_trees(&core, &mut actions)?;
        core.consistency_point_forced()?;
        mend_counts(&core, &mut actions)?;
    }
    // What had two owners was freed by one of them.
    recount(&devices, &mut actions)?;
    heal(&devices, &mut actions)?;
    let after = check(&devices, CheckOptions { data: true })?;
    Ok(Repaired { actions, after })
}

fn over(devices: &[Device]) -> Vec<Device> {
    let one =
        |d: &Device| -> Device { Arc::new(OverlayDevice::with_limit(d.clone(), OVERLAY_BLOCKS)) };
    devices.iter().map(one).collect()
}

fn options() -> OpenOptions {
    OpenOptions { degraded: true, ..OpenOptions::default() }
}

/// Back to the older root, if the newest one is lost and the older one's trees are whole.
fn step_back(devices: &[Device], actions: &mut Vec<String>) -> Result<()> {
    let Some((slot, older)) = roots::lost_root(devices)? else { return Ok(()) };
    let trial = over(devices);
    roots::forget_root(&trial, slot)?;
    let core = recovery::load(trial, &options(), true)?.core;
    core.load_reclaim()?;
    // Data that does not match, be it rot or used for something else since, stays a medium error.
    let mut count = Count::new(&core, METADATA);
    count.run()?;
    if let Some(why) = count.why_not_whole() {
        return Err(Error::Format(format!(
            "no copy of root slot {slot} can be read, and what the older root names is not whole: \
             {why}"
        )));
    }
    roots::forget_root(devices, slot)?;
    actions.push(format!(
        "root slot {slot} cannot be read: back to the root of epoch {}, written {}; what was made \
         durable after it is lost but for what its log still holds",
        older.epoch,
        Timestamp(older.time)
    ));
    Ok(())
}

/// Sets the free-space map of the newest root right.
fn recount(devices: &[Device], actions: &mut Vec<String>) -> Result<()> {
    let core = recovery::load(devices.to_vec(), &options(), true)?.core;
    core.load_reclaim()?;
    let mut count = Count::new(&core, METADATA);
    count.run()?;
    let keep = count.unread > 0;
    count.see_out_of_service();
    let (missing, leaked, pages) = core.space.recount(&core.store, &count.seen, keep);
    if missing + leaked + pages == 0 {
        return Ok(());
    }
    core.write_recount()?;
    let mut say = |n: u64, what: &str| {
        if n > 0 {
            actions.push(format!("free-space map: {n} {what}"));
        }
    };
    say(missing, "blocks in use were counted as free");
    say(leaked, "blocks were counted as used, but nothing names them: freed");
    say(pages, "pages could not be read or counted wrong: written anew from a recount");
    if keep {
        actions.push(format!(
            "{} nodes cannot be read: blocks that nothing names are kept",
            count.unread
        ));
    }
    Ok(())
}

/// Replays the log, as far as it can be read.
fn replay(devices: &[Device], actions: &mut Vec<String>) -> Result<Core> {
    let loaded = recovery::load(devices.to_vec(), &options(), false)?;
    let damaged = loaded.core.log_damage()?;
    if let Some(why) = damaged {
        let kept = loaded.core.log_length()?;
        actions.push(format!(
            "{why}: the log is cut before it, {kept} groups are kept; what it and later ones said \
             is lost"
        ));
        return left_out(loaded, actions);
    }
    match recovery::recovered(loaded) {
        Err(Error::Corrupt { .. } | Error::Io(_) | Error::Format(_)) => {
            left_out(recovery::load(devices.to_vec(), &options(), false)?, actions)
        }
        replayed => replayed,
    }
}

/// Replays what is about things that can be read.
fn left_out(loaded: recovery::Loaded, actions: &mut Vec<String>) -> Result<Core> {
    let (core, skipped) = recovery::recovered_from(loaded, Damage::Cut)?;
    if skipped > 0 {
        actions.push(format!(
            "the log: {skipped} changes are of files whose inodes or nodes cannot be read: left out"
        ));
    }
    Ok(core)
}

/// Sets right what a count of the trees finds.
fn mend_trees(core: &Core, actions: &mut Vec<String>) -> Result<()> {
    let mut count = Count::new(core, METADATA);
    count.run()?;
    let mut missing = BTreeSet::new();
    let lists = count.lost_lists();
    let mut findings = std::mem::take(&mut count.findings);
    // One order for each pool, so that a dry run says what is done.
    findings.sort_by_key(|f| format!("{f:?}"));
    let shares = |f: &Finding| match f {
        Finding::Shared(id, ..) => Some(*id),
        _ => None,
    };
    let sharing: BTreeSet<NodeId> = findings.iter().filter_map(shares).collect();
    actions.extend(core.relist(&lists)?);
    for finding in findings {
        let done = match finding {
            // A snapshot is never changed.
            Finding::Blocks(id, _)
            | Finding::Entries(id, _)
            | Finding::Names(id, ..)
            | Finding::Shared(id, ..)
            | Finding::Missing(id)
                if core.volume(id.volume).is_ok_and(|v| v.is_frozen) =>
            {
                None
            }
            Finding::DeadList(_) => None,
            // Where something is unread, its inodes may exist and its names may count.
            Finding::Missing(id) => {
                if count.unread == 0 {
                    missing.insert(id);
                }
                None
            }
            Finding::Entries(id, _) if count.unread_names.contains(&id) => None,
            Finding::Blocks(..) | Finding::Entries(..) if count.unread > 0 => None,
            // What it shares was counted with the other owner.
            Finding::Blocks(id, _) if sharing.contains(&id) => None,
            Finding::Blocks(id, has) => {
                Some(core.set_record(id, &format!("{has} blocks"), move |m| m.blocks = has)?)
            }
            Finding::Entries(id, has) => {
                Some(core.set_record(id, &format!("{has} entries"), move |m| m.entries = has)?)
            }
            Finding::Names(id, kind, 0) => core.name_again(id, kind)?,
            Finding::Names(id, kind, names) if kind != InodeKind::Directory => {
                let unsure = !count.unread_names.is_empty() || count.unread > 0;
                match unsure || kind == InodeKind::Xattrs {
                    true => None,
                    false => Some(core.set_record(id, &format!("{names} links"), move |m| {
                        m.nlink = names;
                    })?),
                }
            }
            Finding::Names(..) => None,
            Finding::Shared(id, block, p) => core.copy_apart(id, block, &p)?,
        };
        actions.extend(done);
    }
    core.remove_names_of(&missing, actions)
}

/// Sets the counts of clones right, if they are wrong and all that is cloned can be read.
fn mend_counts(core: &Core, actions: &mut Vec<String>) -> Result<()> {
    let mut count = Count::new(core, METADATA);
    count.run()?;
    let Some(counts) = count.recounted_clones() else { return Ok(()) };
    let done = core.consistency_point_with(|cp| {
        cp.recounted = Some(counts);
        Ok(true)
    })?;
    if done {
        actions.push("the counts of shared blocks were made anew".into());
    }
    Ok(())
}

/// Verifies and heals every copy of everything.
fn heal(devices: &[Device], actions: &mut Vec<String>) -> Result<()> {
    let core = recovery::recovered(recovery::load(devices.to_vec(), &options(), false)?)?;
    let mut walk = Walk::default();
    while !walk.is_done() {
        let found = core.walk(&mut walk, super::scrub::PIECE_BLOCKS)?;
        let mut healed = found.places;
        healed.retain(|place| place.outcome == Outcome::Healed);
        let texts = core.place_texts(&healed).into_iter();
        actions.extend(texts.map(|text| format!("{text}: written anew")));
    }
    core.store.flush()
}

impl Core {
    fn set_record(
        &self,
        id: NodeId,
        what: &str,
        f: impl Fn(&mut fs_layout::Inode),
    ) -> Result<String> {
        let inode = self.inode(id)?;
        let mut txn = Txn::new(self, true);
        txn.edit(&inode, f);
        txn.commit()?;
        Ok(format!("{}: says {what} now", self.name_of(id)))
    }

    /// Gives an inode without a name one in `lost+found` of the ordinary tree; other volumes have
    /// no place for it.
    fn name_again(&self, id: NodeId, kind: InodeKind) -> Result<Option<String>> {
        if id.volume != VolumeId::TREE || kind == InodeKind::Xattrs || id.ino < FIRST_INO {
            return Ok(None);
        }
        let root = NodeId::root(VolumeId::TREE);
        let owner = Owner { mode: 0o700, uid: 0, gid: 0 };
        let made = self.create(root, LOST_AND_FOUND, NewNode::Directory, owner);
        let dir = match made {
            Ok(attr) => attr.id,
            Err(Error::Exists) => self.lookup(root, LOST_AND_FOUND)?.id,
            Err(e) => return Err(e),
        };
        let (dir, inode) = (self.inode(dir)?, self.inode(id)?);
        let _names = dir.volume.names.lock();
        let mut txn = Txn::new(self, true);
        let mut edit = DirEdit::new(self, dir.clone())?;
        let name = format!("inode-{}", id.ino).into_bytes();
        if edit.find(&txn, &name)?.is_some() {
            return Ok(None);
        }
        edit.insert(&mut txn, &name, id.ino, kind as u8)?;
        if kind == InodeKind::Directory {
            let parent = dir.id.ino;
            txn.edit(&inode, move |m| m.parent_ino = parent);
            txn.edit(&dir, |m| m.nlink += 1);
        } else {
            txn.edit(&inode, |m| m.nlink = 1);
        }
        txn.commit()?;
        Ok(Some(format!("{}: had no name, is lost+found/inode-{} now", self.name_of(id), id.ino)))
    }

    /// A block that another one has too: this file gets a copy of its own, if it can be read.
    fn copy_apart(&self, id: NodeId, block: u64, p: &Pointer) -> Result<Option<String>> {
        if id.volume == TABLE {
            return Ok(None);
        }
        let (Ok(data), Ok(inode)) = (self.store.read(p), self.inode(id)) else { return Ok(None) };
        let mut txn = Txn::new(self, true);
        txn.write(&inode, block, data.bytes.clone());
        txn.commit()?;
        let at = block * BLOCK_BYTES as u64;
        Ok(Some(format!(
            "{}, byte {at}: block {} has another owner too: copied apart",
            self.name_of(id),
            p.block
        )))
    }

    /// Removes names that lead nowhere.
    fn remove_names_of(&self, gone: &BTreeSet<NodeId>, actions: &mut Vec<String>) -> Result<()> {
        let volumes: BTreeSet<VolumeId> = gone.iter().map(|id| id.volume).collect();
        for volume in volumes {
            let end = self.volume(volume)?.next_ino.load(std::sync::atomic::Ordering::Relaxed);
            for ino in ROOT_INO..end {
                let Ok(dir) = self.inode(NodeId { volume, ino }) else { continue };
                let kind = dir.state.read().meta.kind;
                if kind == InodeKind::Directory {
                    self.remove_names_in(&dir, gone, actions)?;
                }
            }
        }
        Ok(())
    }

    fn remove_names_in(
        &self,
        dir: &Arc<super::core::Inode>,
        gone: &BTreeSet<NodeId>,
        actions: &mut Vec<String>,
    ) -> Result<()> {
        let mut cookie = 0;
        loop {
            let some = self.dir_list(dir, cookie, LIST_ENTRIES)?;
            let Some(last) = some.last() else { return Ok(()) };
            cookie = last.cookie;
            for e in some.iter().filter(|e| gone.contains(&e.id)) {
                let _names = dir.volume.names.lock();
                let mut txn = Txn::new(self, true);
                DirEdit::new(self, dir.clone())?.remove(&mut txn, &e.name)?;
                txn.commit()?;
                let name = String::from_utf8_lossy(&e.name);
                actions.push(format!(
                    "{}: the name {name:?} led to inode {}, which is not there: removed",
                    self.name_of(dir.id),
                    e.id.ino
                ));
            }
        }
    }

    /// Writes the free-space pages that changed, and the same root naming them: nothing else.
    fn write_recount(&self) -> Result<()> {
        let mut cp = self.cp.lock();
        cp.root.space = self.space.write_pages(&self.store)?;
        // Into the same slot: the other one holds the root before, and its pages are gone now.
        cp.root_slot = 1 - cp.root_slot;
        self.write_root(&mut cp)
    }
}
