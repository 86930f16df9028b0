//! Commands about snapshots and clones: they name one as `NAME@SNAP`, of the ordinary tree as
//! `/@SNAP`.

use super::engine::Session;
use super::error::{Error, Message, Result};
use super::protocol::{Command, Quiesced, Reply};
use super::report::{self, time_text};
use super::wire;
use crate::fs::{self, ChangedExtent, Consistency, HookOutcome, Timestamp};
use crate::lun::{self, split_snapshot, Bookmark, Hold, Maker, Snapshot, SnapshotWish, TREE_NAME};
use serde_json::{json, Map, Value};
use std::collections::HashMap;

fn outcome_of(outcome: Quiesced) -> HookOutcome {
    match outcome {
        Quiesced::AtRest => HookOutcome::AtRest,
        Quiesced::Refused => HookOutcome::Refused,
        Quiesced::TimedOut => HookOutcome::TimedOut,
        Quiesced::WentOn => HookOutcome::WentOn,
    }
}

impl Session<'_> {
    /// Snapshots, clones and policies.
    pub(super) fn snapshot_command(&self, command: Command) -> Result<Value> {
        match command {
            Command::SnapshotCreate { snapshots, hook } => {
                self.snapshot_create(&snapshots, hook.unwrap_or_default())
            }
            Command::SnapshotNote { snapshots, hook, outcome, why } => {
                let outcome = outcome_of(outcome);
                self.snapshot_note(&snapshots, &Consistency { outcome, hook }, &why)
            }
            Command::SnapshotList { lun } => self.snapshot_list(lun.as_deref()),
            Command::SnapshotShow { snapshot } => self.snapshot_show(&snapshot),
            Command::SnapshotRename { snapshot, new } => self.snapshot_rename(&snapshot, &new),
            Command::SnapshotRefresh { snapshot } => self.snapshot_refresh(&snapshot),
            Command::SnapshotRollback { snapshot, force } => {
                self.snapshot_rollback(&snapshot, force)
            }
            Command::SnapshotDelete { snapshot, keep_bookmark } => {
                self.snapshot_delete(&snapshot, keep_bookmark)
            }
            Command::SnapshotDiff { from, to } => self.snapshot_diff(&from, to.as_deref()),
            Command::SnapshotHold { snapshot, until } => {
                self.snapshot_hold(&snapshot, until.as_deref())
            }
            Command::SnapshotRelease { snapshot } => self.snapshot_release(&snapshot),
            Command::CloneCreate { snapshot, new } => self.clone_create(&snapshot, &new),
            Command::PolicySet { lun, change } => self.policy_set(&lun, &change),
            Command::PolicyShow { lun } => self.policy_show(lun.as_deref()),
            Command::PolicyClear { lun } => self.policy_clear(&lun),
            _ => Err(Message::new("this is not a command of a pool").into()),
        }
    }

    fn snapshot_create(&self, wanted: &[String], hook: String) -> Result<Value> {
        let wish = |text: &String| {
            let (of, name) = split_snapshot(text);
            SnapshotWish { of: of.to_owned(), name: name.map(str::to_owned) }
        };
        let wanted: Vec<SnapshotWish> = wanted.iter().map(wish).collect();
        let catalog = &self.engine.pool.catalog;
        if self.dry_run {
            let names = catalog.check_snapshot_create(&wanted)?;
            return Ok(report::would(format!("make {}, of one instant", names.join(" and "))));
        }
        let outcome = if hook.is_empty() { HookOutcome::NotAsked } else { HookOutcome::WentOn };
        // Durable by itself: one flush, not another one for the line in the log.
        let made = catalog.snapshot_create(&wanted, Maker::User, Consistency { outcome, hook })?;
        Ok(made.iter().map(|one| self.snapshot_row(one)).collect())
    }

    fn snapshot_note(&self, of: &[String], how: &Consistency, why: &str) -> Result<Value> {
        let catalog = &self.engine.pool.catalog;
        let mut rows = Vec::new();
        for (of, name) in of.iter().map(|text| split_snapshot(text)) {
            if self.dry_run {
                continue;
            }
            catalog.snapshot_note(of, name, how, why)?;
            if let Some(name) = name {
                rows.push(self.snapshot_row(&catalog.snapshot(of, name)?));
            }
        }
        Ok(rows.into())
    }

    /// Of one LUN, of the ordinary tree, or of all.
    fn snapshot_list(&self, of: Option<&str>) -> Result<Value> {
        let catalog = &self.engine.pool.catalog;
        let all: Vec<String> = match of {
            Some(of) => vec![of.to_owned()],
            None => {
                let luns = catalog.list();
                std::iter::once(TREE_NAME.to_owned()).chain(luns.iter().map(|l| l.name())).collect()
            }
        };
        let mut rows: Vec<Value> = Vec::new();
        for of in &all {
            let snapshots = catalog.snapshots(of)?;
            // `null` where one came or went meanwhile.
            let alone = match snapshots.is_empty() {
                true => HashMap::new(),
                false => unless_gone(catalog.snapshots_alone_bytes(of))?.unwrap_or_default(),
            };
            for snapshot in snapshots {
                let mut row = self.snapshot_row(&snapshot);
                row["alone_bytes"] = json!(alone.get(&snapshot.info.id));
                rows.push(row);
            }
            rows.extend(catalog.bookmarks(of)?.iter().map(bookmark_row));
        }
        Ok(rows.into())
    }

    /// `null` where it went meanwhile.
    fn alone_bytes(&self, snapshot: &Snapshot) -> Result<Option<u64>> {
        unless_gone(self.engine.pool.catalog.snapshot_alone_bytes(snapshot))
    }

    /// Adds to a LUN what only its snapshots hold: that costs a consistency point.
    pub(super) fn add_snapshots_bytes(&self, lun: &mut Value) -> Result<()> {
        let name = lun.get("name").and_then(Value::as_str).unwrap_or_default();
        let bytes = match self.engine.pool.catalog.snapshots_bytes(name) {
            Err(lun::Error::NotFound(_)) => None,
            answer => unless_gone(answer)?,
        };
        lun["snapshots_used_bytes"] = json!(bytes);
        Ok(())
    }

    fn snapshot_row(&self, snapshot: &Snapshot) -> Value {
        let info = &snapshot.info;
        let consistency = &info.consistency;
        json!({
            "name": info.name,
            "lun": snapshot.of,
            "kind": "snapshot",
            "created": time_text(info.created),
            "held": info.held,
            "hold_until": info.hold_until.map(time_text),
            "consistency": if consistency.is_application() { "application" } else { "crash" },
            "hook": Some(&consistency.hook).filter(|hook| !hook.is_empty()),
            "open": snapshot.is_open,
            "epoch": info.epoch,
        })
    }

    fn snapshot_show(&self, name: &str) -> Result<Value> {
        let (of, snapshot) = whole(name)?;
        let catalog = &self.engine.pool.catalog;
        let found = match catalog.snapshot(of, snapshot) {
            Ok(found) => found,
            Err(missing) => {
                let all = catalog.bookmarks(of)?;
                let bookmark = all.iter().find(|one| one.name.eq_ignore_ascii_case(snapshot));
                return bookmark.map(bookmark_row).ok_or(missing.into());
            }
        };
        let mut row = self.snapshot_row(&found);
        row["alone_bytes"] = json!(self.alone_bytes(&found)?);
        if of != TREE_NAME {
            let disk = catalog.snapshot_disk(of, &found.info.name)?;
            row["size_bytes"] = disk.size_bytes().into();
            row["used_bytes"] = disk.attributes()?.used_bytes.into();
            row["serial"] = disk.identity().serial.into();
            let reach = self.engine.doors.reach(&format!("{}@{}", found.of, found.info.name));
            if let (Some(row), Value::Object(reach)) = (row.as_object_mut(), reach) {
                row.extend(reach);
            }
        }
        Ok(row)
    }

    fn snapshot_rename(&self, name: &str, new: &str) -> Result<Value> {
        let (of, from) = whole(name)?;
        let to = match split_snapshot(new) {
            (to, None) => to,
            (other, Some(to)) if other.eq_ignore_ascii_case(of) => to,
            (other, Some(_)) => {
                let what = format!("{name} cannot become a snapshot of {other}");
                return Err(Message::new(what).todo("give the new name alone").into());
            }
        };
        let catalog = &self.engine.pool.catalog;
        if self.dry_run {
            catalog.check_snapshot_rename(of, from, to)?;
            return Ok(report::would(format!("rename {name} to {of}@{to}")));
        }
        catalog.snapshot_rename(of, from, to)?;
        self.durable()?;
        self.snapshot_show(&format!("{of}@{to}"))
    }

    fn snapshot_refresh(&self, name: &str) -> Result<Value> {
        let (of, snapshot) = whole(name)?;
        let catalog = &self.engine.pool.catalog;
        if self.dry_run {
            catalog.check_unheld(of, snapshot, "the refresh")?;
            return Ok(report::would(format!("make {name} what {of} is now")));
        }
        let made = catalog.snapshot_refresh(of, snapshot)?;
        self.durable()?;
        Ok(self.snapshot_row(&made))
    }

    fn snapshot_rollback(&self, name: &str, force: bool) -> Result<Value> {
        let (of, snapshot) = whole(name)?;
        let catalog = &self.engine.pool.catalog;
        if self.dry_run {
            catalog.check_rollback(of, snapshot, force)?;
            let text = format!("keep {of} as it is in a snapshot, then make it what {name} is");
            return Ok(report::would(text));
        }
        let kept = catalog.snapshot_rollback(of, snapshot, force)?;
        self.durable()?;
        Ok(json!({ "rolled_back": name, "kept": self.snapshot_row(&kept) }))
    }

    fn snapshot_delete(&self, name: &str, keep_bookmark: bool) -> Result<Value> {
        let (of, snapshot) = whole(name)?;
        let catalog = &self.engine.pool.catalog;
        let bytes = match catalog.check_unheld(of, snapshot, "deletion") {
            Ok(found) => self.alone_bytes(&found)?,
            Err(e) => {
                let all = catalog.bookmarks(of)?;
                if !all.iter().any(|one| one.name.eq_ignore_ascii_case(snapshot)) {
                    return Err(e.into());
                }
                None
            }
        };
        if self.dry_run {
            let text = match bytes {
                Some(bytes) => {
                    format!("delete {name}, which alone holds {}", report::bytes_text(bytes))
                }
                None => format!("delete {name}"),
            };
            return Ok(report::would(text));
        }
        let later = catalog.snapshot_delete(of, snapshot, keep_bookmark)?;
        self.durable()?;
        Ok(json!({
            "deleted": name,
            "alone_bytes": bytes,
            "at_last_close": later,
            "bookmark": keep_bookmark,
        }))
    }

    /// Extents go out page by page as events; the result tells what was compared.
    fn snapshot_diff(&self, from: &str, to: Option<&str>) -> Result<Value> {
        let (of, older) = whole(from)?;
        let newer = match to.map(whole).transpose()? {
            None => None,
            Some((other, newer)) if other.eq_ignore_ascii_case(of) => Some(newer),
            Some((other, _)) => {
                let what = format!("{of} and {other} are not compared");
                let todo = "name two snapshots of one LUN";
                return Err(Message::new(what).todo(todo).into());
            }
        };
        let mut diff = self.engine.pool.catalog.snapshot_diff(of, older, newer)?;
        while let Some(page) = diff.page()? {
            let extents: Value = page.iter().map(extent).collect();
            wire::write_line(&mut &*self.stream, &Reply::Event(extents))?;
        }
        Ok(json!({ "lun": of, "from": older, "to": newer, "size_bytes": diff.size_bytes() }))
    }

    fn snapshot_hold(&self, name: &str, until: Option<&str>) -> Result<Value> {
        let hold = match until {
            None => Hold::ForGood,
            Some(text) => Hold::Until(parse_time(text)?),
        };
        self.change_hold(name, hold, "hold")
    }

    fn snapshot_release(&self, name: &str) -> Result<Value> {
        self.change_hold(name, Hold::Release, "release")
    }

    fn change_hold(&self, name: &str, hold: Hold, what: &str) -> Result<Value> {
        let (of, snapshot) = whole(name)?;
        let catalog = &self.engine.pool.catalog;
        if self.dry_run {
            catalog.check_snapshot_hold(of, snapshot, hold)?;
            return Ok(report::would(format!("{what} {name}")));
        }
        let changed = catalog.snapshot_hold(of, snapshot, hold)?;
        self.durable()?;
        Ok(self.snapshot_row(&changed))
    }

    fn clone_create(&self, name: &str, new: &str) -> Result<Value> {
        let (of, snapshot) = whole(name)?;
        let catalog = &self.engine.pool.catalog;
        if self.dry_run {
            catalog.check_clone(of, snapshot, new)?;
            return Ok(report::would(format!("make the LUN {new} of {name}")));
        }
        let lun = catalog.clone_create(of, snapshot, new)?;
        self.durable()?;
        self.show(&lun)
    }
}

/// Nothing, where what is asked for changes at this moment.
fn unless_gone<T>(answer: lun::Result<T>) -> Result<Option<T>> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(lun::Error::Fs(fs::Error::Stale | fs::Error::NotFound | fs::Error::Busy)) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Both parts of `NAME@SNAP`.
fn whole(text: &str) -> Result<(&str, &str)> {
    match split_snapshot(text) {
        (of, Some(snapshot)) => Ok((of, snapshot)),
        (of, None) => {
            let message = Message::new(format!("{of} does not name a snapshot"));
            Err(Error::Usage(message.todo("write NAME@SNAP")))
        }
    }
}

/// RFC 3339.
fn parse_time(text: &str) -> Result<Timestamp> {
    let time: std::result::Result<jiff::Timestamp, _> = text.parse();
    let time = time.ok().and_then(|time| i64::try_from(time.as_nanosecond()).ok());
    time.map(Timestamp).ok_or_else(|| {
        let message = Message::new(format!("'{text}' is not a time"));
        Error::Usage(message.todo("write for example 2027-01-31T00:00:00Z, or 30d from now"))
    })
}

fn bookmark_row(bookmark: &Bookmark) -> Value {
    let mut row = Map::new();
    row.insert("name".into(), bookmark.name.as_str().into());
    row.insert("lun".into(), bookmark.of.as_str().into());
    row.insert("kind".into(), "bookmark".into());
    row.insert("created".into(), time_text(bookmark.created).into());
    row.insert("alone_bytes".into(), 0.into());
    Value::Object(row)
}

fn extent(extent: &ChangedExtent) -> Value {
    json!({
        "offset_bytes": extent.offset_bytes,
        "length_bytes": extent.length_bytes,
        "kind": if extent.is_data { "data" } else { "hole" },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_named_in_full() {
        assert_eq!(whole("/@a:b").unwrap(), ("/", "a:b"));
        assert!(matches!(whole("vm1"), Err(Error::Usage(_))));
        assert_eq!(parse_time("1970-01-01T00:00:01Z").unwrap(), Timestamp(1_000_000_000));
        assert!(parse_time("tomorrow").is_err());
    }
}
