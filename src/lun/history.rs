//! What snapshots are taken of, and the names of those there are.
//!
//! Invariants: once loaded, `known` is what the volume's directory of snapshots says, but for names
//! that begin with a dot: those are lunfs's own, of snapshots that are deleted but still open, or
//! that live for one command. It is changed under [`Shared::versions`], after the filesystem was.

use super::error::{Error, Result};
use super::names::{key_of, TREE_NAME};
use super::unit::{Lun, Shared};
use crate::fs::{self, VolumeId};
use parking_lot::Mutex;
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A bookmark on its way to the name of the snapshot that it outlives.
pub(super) const KEPT_PREFIX: &str = ".keep-";

/// A name and what it leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) name: String,
    pub(super) is_bookmark: bool,
}

impl Known {
    pub(super) fn kind(&self) -> &'static str {
        if self.is_bookmark {
            "bookmark"
        } else {
            "snapshot"
        }
    }
}

type Names = BTreeMap<String, Known>;

/// The names of one volume's snapshots and bookmarks; read when they are first asked for.
#[derive(Default)]
pub(super) struct History(Mutex<Option<Names>>);

/// What snapshots are taken of.
#[derive(Clone)]
pub(super) enum Subject {
    Lun(Arc<Lun>),
    /// The ordinary tree.
    Tree(Arc<Shared>),
}

impl Subject {
    pub(super) fn shared(&self) -> &Arc<Shared> {
        match self {
            Subject::Lun(lun) => &lun.shared,
            Subject::Tree(shared) => shared,
        }
    }

    pub(super) fn volume(&self) -> VolumeId {
        match self {
            Subject::Lun(lun) => lun.volume(),
            Subject::Tree(_) => VolumeId::TREE,
        }
    }

    pub(super) fn name(&self) -> String {
        match self {
            Subject::Lun(lun) => lun.name(),
            Subject::Tree(_) => TREE_NAME.to_owned(),
        }
    }

    /// The LUN; refused for the ordinary tree.
    pub(super) fn lun(&self, what: &str) -> Result<&Arc<Lun>> {
        match self {
            Subject::Lun(lun) => Ok(lun),
            Subject::Tree(_) => Err(Error::Snapshot {
                what: format!("{what} is refused"),
                why: "it is for LUNs, not for the ordinary tree".to_owned(),
                remedy: "copy files out of its .snapshots instead".to_owned(),
            }),
        }
    }

    fn history(&self) -> &History {
        match self {
            Subject::Lun(lun) => &lun.history,
            Subject::Tree(shared) => &shared.tree,
        }
    }

    /// A line in the LUN's log.
    pub(super) fn log(&self, what: &str, mut fields: Value) {
        if let Subject::Lun(lun) = self {
            fields["what"] = what.into();
            lun.log.event("snapshot", fields);
        }
    }

    /// Looks at the names.
    pub(super) fn names<T>(&self, look: impl FnOnce(&mut Names) -> T) -> Result<T> {
        let mut known = self.history().0.lock();
        if known.is_none() {
            *known = Some(self.load()?);
        }
        Ok(look(known.get_or_insert_with(Names::new)))
    }

    /// After a change that ended in its middle: the names are read again, which ends it.
    pub(super) fn forget(&self) {
        *self.history().0.lock() = None;
    }

    /// What has this name, without regard to case.
    pub(super) fn known(&self, name: &str) -> Result<Known> {
        let found = self.names(|names| names.get(&key_of(name)).cloned())?;
        found.ok_or_else(|| self.missing(name))
    }

    /// Its name letter for letter; refused for a bookmark.
    pub(super) fn known_snapshot(&self, name: &str) -> Result<String> {
        match self.known(name)? {
            Known { is_bookmark: true, .. } => Err(self.missing(name)),
            known => Ok(known.name),
        }
    }

    pub(super) fn missing(&self, name: &str) -> Error {
        Error::NoSnapshot { of: self.name(), name: name.escape_debug().to_string() }
    }

    pub(super) fn check_free(&self, name: &str) -> Result<()> {
        match self.names(|names| names.get(&key_of(name)).cloned())? {
            None => Ok(()),
            Some(known) => {
                Err(Error::SnapshotExists { of: self.name(), by: known.kind(), name: known.name })
            }
        }
    }

    pub(super) fn add(&self, name: &str, is_bookmark: bool) -> Result<()> {
        let known = Known { name: name.to_owned(), is_bookmark };
        self.names(|names| drop(names.insert(key_of(name), known)))
    }

    pub(super) fn remove(&self, name: &str) -> Result<()> {
        self.names(|names| drop(names.remove(&key_of(name))))
    }

    /// Reads the names; ends what a crash left of those that begin with a dot.
    fn load(&self) -> Result<Names> {
        let (fs, volume) = (&self.shared().fs, self.volume());
        let mut names = Names::new();
        for snapshot in fs.snapshot_list(volume)? {
            if snapshot.name.starts_with('.') {
                if !self.shared().readers.is_open(snapshot.id) {
                    // What cannot be deleted now goes the next time.
                    let _ = fs.snapshot_delete(volume, &snapshot.name);
                }
                continue;
            }
            let known = Known { name: snapshot.name, is_bookmark: false };
            names.insert(key_of(&known.name), known);
        }
        for bookmark in fs.bookmark_list(volume)? {
            let mut name = bookmark.name;
            if let Some(wanted) = name.strip_prefix(KEPT_PREFIX).map(str::to_owned) {
                // Its snapshot was to go: where it is still there, it was not.
                let renamed = match names.contains_key(&key_of(&wanted)) {
                    true => Err(fs::Error::Exists),
                    false => fs.snapshot_rename(volume, &name, &wanted),
                };
                if renamed.is_err() {
                    let _ = fs.bookmark_delete(volume, &name);
                    continue;
                }
                name = wanted;
            }
            names.insert(key_of(&name), Known { name, is_bookmark: true });
        }
        Ok(names)
    }

    /// Tells who looks at names that these lead elsewhere now.
    pub(super) fn tell(&self, names: Vec<String>) {
        let change = super::changes::Change::Snapshots { volume: self.volume(), names };
        self.shared().hub.tell(&change);
    }
}

/// The fields of most lines about a snapshot.
pub(super) fn named(name: &str) -> Value {
    json!({ "name": name })
}
