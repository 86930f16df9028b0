//! What becomes of a LUN's files where its volume was made from a snapshot: by a clone, which is
//! another disk, or by a rollback, which is the same disk with other contents.
//!
//! What belongs to the disk does not follow the contents: `state`, the time it was made and the
//! serial number. A clone begins with none of them and an empty log; a rollback carries `state` and
//! `log` forward. The filesystem makes such a volume in one step, and this settles it afterwards.
//!
//! Invariant: a copy is settled when its `state` names it; it is settled before it is a LUN, also
//! after a crash in between. What a rollback carries forward is taken from the snapshot that kept
//! what was there before: the newest that is not of this version.

use super::attributes::Settings;
use super::event_log;
use super::kept::{self, Kept, Place};
use super::unit::{load_settings, Shared};
use crate::fs::{self, File, Fs, NodeId, VolumeId, VolumeInfo};
use std::sync::Arc;

/// The files of a volume as far as a copy has to look at them.
struct Found {
    root: NodeId,
    log: File,
    attributes: File,
}

impl Found {
    fn of(fs: &Arc<Fs>, volume: VolumeId) -> fs::Result<Found> {
        let root = NodeId::root(volume);
        let open = |name: &[u8]| fs.open_file(fs.lookup(root, name)?.id);
        Ok(Found { root, log: open(b"log")?, attributes: open(b"attributes")? })
    }

    fn settings(&self) -> Settings {
        // What cannot be read is told when the LUN is loaded.
        load_settings(&self.attributes).unwrap_or_default()
    }

    fn put_serial(&self, serial: String) -> fs::Result<()> {
        let Ok(settings) = load_settings(&self.attributes) else { return Ok(()) };
        if settings.serial == serial {
            return Ok(());
        }
        let settings = Settings { serial, ..settings };
        event_log::replace(&self.attributes, settings.to_toml().as_bytes())
    }
}

/// What a rollback and its settling write beside the logs, with a margin for their nodes.
const ROOM_BYTES: u64 = 1 << 20;

/// `NoSpace` where the pool has no room to carry a disk's log over what a snapshot has.
pub(super) fn check_room(fs: &Arc<Fs>, from: VolumeId, to: VolumeId) -> fs::Result<()> {
    let mut needed = ROOM_BYTES;
    for (volume, name) in [(from, &b"log"[..]), (from, b"log.1"), (to, b"log"), (to, b"log.1")] {
        match fs.lookup(NodeId::root(volume), name) {
            Ok(attr) => needed = needed.saturating_add(attr.size_bytes),
            Err(fs::Error::NotFound) => {}
            Err(e) => return Err(e),
        }
    }
    if fs.stats().free_bytes < needed {
        // What is being freed may be enough.
        fs.consistency_point()?;
    }
    match fs.stats().free_bytes < needed {
        true => Err(fs::Error::NoSpace),
        false => Ok(()),
    }
}

/// Settles a copy that is not; what it keeps then.
pub(super) fn settle(shared: &Shared, volume: VolumeId, info: &VolumeInfo) -> fs::Result<Kept> {
    let fs = &shared.fs;
    let root = NodeId::root(volume);
    if let Some(kept) = kept::peek(fs, root)?.filter(|kept| kept.volume == Some(volume)) {
        return Ok(kept);
    }
    let copy = Found::of(fs, volume)?;
    let newest = match info.origin == volume {
        true => None,
        false => {
            let all = fs.snapshot_list(volume)?.into_iter();
            all.filter(|one| one.of != volume).max_by_key(|one| one.epoch)
        }
    };
    let kept = match newest {
        None => {
            event_log::carry(fs, None, root, &copy.log)?;
            copy.put_serial(String::new())?;
            Kept { created: Some(info.created), ..Kept::default() }
        }
        Some(newest) => {
            let before = Found::of(fs, newest.id)?;
            event_log::carry(fs, Some((before.root, &before.log)), root, &copy.log)?;
            copy.put_serial(before.settings().serial)?;
            let kept = kept::peek(fs, before.root)?;
            // One that was itself carried there unsettled says nothing of this disk.
            let own = |kept: &Kept| kept.volume.is_none_or(|volume| volume == newest.of);
            let kept = kept.filter(own).unwrap_or_default();
            let made = fs.getattr(before.root)?.btime;
            Kept { created: Some(kept.created.unwrap_or(made)), ..kept }
        }
    };
    let kept = Kept { volume: Some(volume), ..kept };
    // Last: from here on it is settled.
    fs.sync()?;
    kept::write(fs, Place { dir: root, like: copy.log.id() }, &kept)?;
    Ok(kept)
}
