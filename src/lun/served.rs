//! A snapshot as a disk: a [`Lun`] over the snapshot's own three files, which is only read.
//!
//! It has an identity of its own, the rights are those of its LUN, and what happens to it is told
//! in its LUN's log. All who use it share one, and it holds the snapshot open: a deletion waits for
//! the last of them.

use super::attributes::Settings;
use super::catalog::Catalog;
use super::error::Result;
use super::event_log::EventLog;
use super::history::Subject;
use super::kept::StateFile;
use super::readers::OpenSnapshot;
use super::unit::{load_settings, Files, Lun, Made};
use crate::fs::{NodeId, VolumeId};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, Weak};

/// The snapshots of a LUN that are served as disks.
#[derive(Default)]
pub(super) struct Served(Mutex<HashMap<VolumeId, Weak<Lun>>>);

impl Served {
    fn all(&self) -> Vec<Arc<Lun>> {
        let mut all = self.0.lock();
        all.retain(|_, lun| lun.strong_count() > 0);
        all.values().filter_map(Weak::upgrade).collect()
    }
}

impl Catalog {
    /// A snapshot as a disk that is only read. `NotFound`, `NoSnapshot`.
    pub fn snapshot_disk(&self, of: &str, name: &str) -> Result<Arc<Lun>> {
        let subject = self.subject(of)?;
        let lun = Arc::clone(subject.lun("a disk of its own")?);
        let name = subject.known_snapshot(name)?;
        // Found, or made, by one at a time.
        let mut served = lun.served.0.lock();
        let open = OpenSnapshot::open(&Subject::Lun(Arc::clone(&lun)), &name)?;
        let id = open.volume();
        if let Some(disk) = served.get(&id).and_then(Weak::upgrade) {
            // `open` ends here: the disk has its own.
            return Ok(disk);
        }
        served.retain(|_, lun| lun.strong_count() > 0);
        let disk = disk_of(&lun, open)?;
        served.insert(id, Arc::downgrade(&disk));
        Ok(disk)
    }

    /// A LUN, or by `NAME@SNAP` a snapshot as a disk.
    pub fn disk(&self, name: &str) -> Result<Arc<Lun>> {
        match super::names::split_snapshot(name) {
            (lun, None) => self.get(lun),
            (lun, Some(snapshot)) => self.snapshot_disk(lun, snapshot),
        }
    }

    /// All LUNs, and the snapshots of them that are served as disks at this moment.
    pub fn disks(&self) -> Vec<Arc<Lun>> {
        let luns = self.list();
        let served: Vec<Arc<Lun>> = luns.iter().flat_map(|lun| lun.served.all()).collect();
        luns.into_iter().chain(served).collect()
    }
}

impl Lun {
    /// Its snapshots that are served as disks.
    pub(super) fn served_snapshots(&self) -> Vec<Arc<Lun>> {
        self.served.all()
    }
}

fn disk_of(lun: &Arc<Lun>, open: OpenSnapshot) -> Result<Arc<Lun>> {
    let shared = &lun.shared;
    let (volume, root) = (open.volume(), NodeId::root(open.volume()));
    let file = |name: &[u8]| shared.fs.open_file(shared.fs.lookup(root, name)?.id);
    let (data, stored, log) = (file(b"data")?, file(b"attributes")?, file(b"log")?);
    let settings = load_settings(&stored).unwrap_or_default();
    let settings = Settings { read_only: true, serial: String::new(), ..settings };
    let clock = Arc::clone(&shared.options.clock);
    let told = {
        let (lun, name) = (Arc::clone(lun), open.name().to_owned());
        Box::new(move |event, mut fields: serde_json::Value| {
            fields["snapshot"] = name.as_str().into();
            lun.log.event(event, fields);
        })
    };
    let made = Made {
        name: format!("{}@{}", lun.name(), open.name()),
        id: lun.id(),
        identity: volume,
        created: open.info().created,
        log: EventLog::elsewhere(Arc::clone(&shared.fs), root, log, clock, told),
        state: StateFile::in_memory(Arc::clone(&shared.fs), root),
        settings,
        files: Files { volume, data, stored },
        snapshot: Some(open),
    };
    Ok(Arc::new(Lun::of(shared, made)))
}
