//! Changing a LUN's settings and size.

use super::attributes::{Access, Attributes, Settings, Wanted};
use super::changes::Change;
use super::error::{Error, Result};
use super::unit::Lun;
use crate::fs;
use serde_json::{json, Map, Value};
use std::sync::atomic::Ordering;

impl Lun {
    /// What the mount's `attributes` reads as.
    pub fn attributes_toml(&self) -> Result<String> {
        Ok(self.attributes()?.to_toml())
    }

    /// Sets keys, all or none (`lun set NAME KEY=VALUE...`). Refusals are logged.
    pub fn set(&self, changes: &[(String, String)]) -> Result<()> {
        self.change(false, |before| wanted_by(before, changes))
    }

    /// As `set`, but only checks (`--dry-run`).
    pub fn check_set(&self, changes: &[(String, String)]) -> Result<()> {
        let _change = self.change.lock();
        let before = self.attributes()?;
        self.check(&before, &wanted_by(&before, changes)?, false)
    }

    /// The mount's `attributes` was written: all of the text is checked, then applied. Keys that
    /// are missing stay as they are. Refusals are logged.
    pub fn apply_attributes(&self, text: &[u8]) -> Result<()> {
        self.change(false, |before| {
            let text = std::str::from_utf8(text);
            before.wanted_by(text.map_err(|_| Error::BadText("it is not UTF-8".to_owned()))?)
        })
    }

    /// A change of `attributes` was refused before it came here.
    pub fn note_refused_attributes(&self, why: &str) {
        self.log.event("refused", json!({"what": "a change of attributes", "why": why}));
    }

    /// New capacity. Shrinking is `Busy` while a door has it open unless `force`.
    pub fn resize(&self, size_bytes: u64, force: bool) -> Result<()> {
        self.change(force, |before| Ok(Wanted { settings: before.settings.clone(), size_bytes }))
    }

    /// As `resize`, but only checks (`--dry-run`).
    pub fn check_resize(&self, size_bytes: u64, force: bool) -> Result<()> {
        let _change = self.change.lock();
        let before = self.attributes()?;
        let settings = before.settings.clone();
        self.check(&before, &Wanted { settings, size_bytes }, force)
    }

    fn change(&self, force: bool, make: impl FnOnce(&Attributes) -> Result<Wanted>) -> Result<()> {
        let _change = self.change.lock();
        let before = self.attributes()?;
        let result = make(&before).and_then(|wanted| {
            self.check(&before, &wanted, force)?;
            self.apply(&before, wanted)
        });
        if let Err(error) = &result {
            self.note_refused_attributes(&error.to_string().replace('\n', "; "));
        }
        result
    }

    fn check(&self, before: &Attributes, wanted: &Wanted, force: bool) -> Result<()> {
        let settings = &wanted.settings;
        let other_blocks = settings.block_bytes != before.settings.block_bytes;
        if wanted.size_bytes != before.size_bytes || other_blocks {
            check_size(wanted)?;
        }
        if other_blocks && !self.users.lock().sessions.is_empty() {
            return Err(self.busy("a change of block-size", "block clients are logged in", LOGOUT));
        }
        if wanted.size_bytes < before.size_bytes && !force {
            self.check_unused("shrinking", "close them, or add --force")?;
        }
        Ok(())
    }

    fn apply(&self, before: &Attributes, mut wanted: Wanted) -> Result<()> {
        if wanted.settings.serial == self.default_serial() {
            wanted.settings.serial.clear();
        }
        let changed = changed_keys(before, &wanted);
        let old = self.settings();
        self.set_access(wanted.settings.access)?;
        let applied = self.apply_checked(&old, &wanted, before.size_bytes);
        if applied.is_err() {
            // All or nothing: what was there before has its space already.
            let _ = self.set_access(old.access);
            let _ = self.put_settings(&old);
        }
        applied?;
        if !changed.is_empty() {
            self.log.event("set", Value::Object(changed));
        }
        Ok(())
    }

    fn apply_checked(&self, old: &Settings, wanted: &Wanted, size_before: u64) -> Result<()> {
        if wanted.settings != *old {
            self.put_settings(&wanted.settings)?;
        }
        if wanted.settings.read_only && !old.read_only {
            drop(self.gate.write()); // no write ends after this
        }
        if wanted.size_bytes != size_before {
            self.set_data_size(wanted.size_bytes)?;
        }
        self.shared.fs.sync()?;
        if wanted.settings != *old {
            self.tell(Change::Settings { volume: self.volume() });
        }
        Ok(())
    }

    fn set_access(&self, access: Access) -> Result<()> {
        if access == self.settings().access {
            return Ok(());
        }
        let (done, noted) = self.lease.set_shared(access == Access::Shared);
        self.log_lease(noted, "");
        if done {
            return Ok(());
        }
        let why = "files and block clients are writing at this moment";
        Err(self.busy("access=exclusive", why, "close the files, or log out"))
    }

    /// Truncates or extends `data` (it stays sparse), logs it and tells the doors. The caller has
    /// judged whether it may.
    pub(super) fn set_data_size(&self, size_bytes: u64) -> Result<()> {
        let from = self.size_bytes();
        self.resize_data(size_bytes)?;
        if from != size_bytes {
            self.log.event("resize", json!({"from_bytes": from, "to_bytes": size_bytes}));
        }
        Ok(())
    }

    fn resize_data(&self, size_bytes: u64) -> Result<()> {
        let result = {
            // Nobody writes meanwhile: a late write would make a shrunken file longer again.
            let _alone = self.gate.write();
            let result = self.files().data.set_size(size_bytes);
            self.live.generation.fetch_add(1, Ordering::AcqRel);
            self.live.size_bytes.store(self.files().data.size_bytes(), Ordering::Release);
            result
        };
        self.tell(Change::Resized { volume: self.volume(), size_bytes: self.size_bytes() });
        Ok(result?)
    }

    /// A write of a file went beyond the end. The caller holds `gate` for reading.
    pub(super) fn note_growth(&self, end: u64) -> bool {
        let grew = self.live.size_bytes.fetch_max(end, Ordering::AcqRel) < end;
        if grew {
            self.live.generation.fetch_add(1, Ordering::AcqRel);
            self.tell(Change::Resized { volume: self.volume(), size_bytes: end });
        }
        grew
    }

    /// `Busy` while a session or an open file has it.
    pub(super) fn check_unused(&self, what: &str, remedy: &str) -> Result<()> {
        let (sessions, files) = {
            let users = self.users.lock();
            (users.sessions.len(), users.files.len())
        };
        if sessions == 0 && files == 0 {
            return Ok(());
        }
        let why = format!("it is open: {sessions} block sessions, {files} files of the mount");
        Err(self.busy(what, &why, remedy))
    }

    pub(super) fn busy(&self, what: &str, why: &str, remedy: &str) -> Error {
        Error::Busy {
            what: format!("{what} of LUN '{}'", self.name()),
            why: why.to_owned(),
            remedy: remedy.to_owned(),
        }
    }
}

/// What to do about sessions in the way.
pub(super) const LOGOUT: &str = "log out, or end them with: lunfs session drop ID";

/// A LUN's capacity: whole blocks, at least one, not beyond the format.
pub(super) fn check_size(wanted: &Wanted) -> Result<()> {
    let (size_bytes, block) = (wanted.size_bytes, u64::from(wanted.settings.block_bytes.max(1)));
    let bad = |why: String, remedy: String| Err(Error::BadSize { size_bytes, why, remedy });
    if size_bytes > fs::MAX_FILE_BYTES {
        let most = format!("give at most {} ({}T)", fs::MAX_FILE_BYTES, fs::MAX_FILE_BYTES >> 40);
        return bad("it is more than the format can hold".to_owned(), most);
    }
    if size_bytes == 0 || size_bytes % block != 0 {
        let near = size_bytes.max(1).next_multiple_of(block);
        let why = format!("it is not a multiple of the block size, {block} bytes");
        return bad(why, format!("give for example {near}"));
    }
    Ok(())
}

fn wanted_by(before: &Attributes, changes: &[(String, String)]) -> Result<Wanted> {
    let mut wanted = Wanted { settings: before.settings.clone(), size_bytes: before.size_bytes };
    for (key, value) in changes {
        wanted.set(key, value)?;
    }
    Ok(wanted)
}

/// The keys but for `size` that differ, as they will be: for the log.
fn changed_keys(before: &Attributes, wanted: &Wanted) -> Map<String, Value> {
    let after = Attributes { settings: wanted.settings.clone(), ..before.clone() };
    let lines = |attributes: &Attributes| -> Vec<String> {
        attributes.to_toml().lines().map(str::to_owned).collect()
    };
    let differ = lines(before).into_iter().zip(lines(&after)).filter(|(old, new)| old != new);
    differ
        .filter_map(|(_, new)| {
            let (key, value) = new.split_once(" = ")?;
            Some((key.to_owned(), value.trim_matches('"').into()))
        })
        .collect()
}
