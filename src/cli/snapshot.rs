//! `lunfs snapshot` and `lunfs clone`.

use super::args::{CloneVerb, Common, Snapshot};
use super::{ask, lun, output, quiesce as hooks, rows, selection, show};
use crate::control::protocol::{Command, Reply};
use crate::control::Result;
use serde_json::{json, Value};

/// What a list of snapshots shows.
const COLUMNS: &[&str] = &["name", "kind", "created", "alone_bytes", "held", "open"];

/// Carries a verb out.
pub fn run(verb: &Snapshot, common: &Common) -> Result<()> {
    match verb {
        Snapshot::Create { names, quiesce, quiesce_timeout, change } => {
            let value = match quiesce {
                Some(hook) if !change.dry_run => {
                    hooks::create(common, names, hook, *quiesce_timeout)?
                }
                _ => {
                    let (snapshots, hook) = (names.clone(), None);
                    let command = Command::SnapshotCreate { snapshots, hook };
                    ask(common, command, change.dry_run)?
                }
            };
            show(&value, common, |made| {
                rows(made).iter().for_each(|one| output::line(&format!("made {}", full(one))));
            });
        }
        Snapshot::List { name } => {
            let value = ask(common, Command::SnapshotList { lun: name.clone() }, false)?;
            show(&value, common, list);
        }
        Snapshot::Show { name } => {
            let value = ask(common, Command::SnapshotShow { snapshot: name.clone() }, false)?;
            show(&value, common, output::facts);
        }
        Snapshot::Rename { name, new, change } => {
            let command = Command::SnapshotRename { snapshot: name.clone(), new: new.clone() };
            lun::tell(common, command, *change, |now| format!("{name} is now {}", full(now)))?;
        }
        Snapshot::Refresh { name, change } => {
            let command = Command::SnapshotRefresh { snapshot: name.clone() };
            lun::tell(common, command, *change, |_| format!("refreshed {name}"))?;
        }
        Snapshot::Rollback { name, force, change } => {
            let command = Command::SnapshotRollback { snapshot: name.clone(), force: *force };
            lun::tell(common, command, *change, |value| {
                let kept = value.get("kept").map(full).unwrap_or_default();
                format!("rolled back to {name}; what was there is {kept}")
            })?;
        }
        Snapshot::Delete { name, keep_bookmark, change } => {
            let keep_bookmark = *keep_bookmark;
            let command = Command::SnapshotDelete { snapshot: name.clone(), keep_bookmark };
            lun::tell(common, command, *change, |value| deleted(name, value))?;
        }
        Snapshot::Diff { from, to } => return diff(from, to.as_ref(), common),
        Snapshot::Hold { name, until, change } => {
            let command = Command::SnapshotHold { snapshot: name.clone(), until: until.clone() };
            lun::tell(common, command, *change, |_| format!("{name} is held"))?;
        }
        Snapshot::Release { name, change } => {
            let command = Command::SnapshotRelease { snapshot: name.clone() };
            lun::tell(common, command, *change, |_| format!("{name} is held no longer"))?;
        }
    }
    Ok(())
}

/// Carries a verb of `lunfs clone` out.
pub fn run_clone(verb: &CloneVerb, common: &Common) -> Result<()> {
    let CloneVerb::Create { name, new, change } = verb;
    let command = Command::CloneCreate { snapshot: name.clone(), new: new.clone() };
    let value = ask(common, command, change.dry_run)?;
    show(&value, common, lun::made);
    Ok(())
}

fn text(value: &Value, key: &str) -> String {
    value.get(key).map_or_else(String::new, |field| output::value_text(key, field))
}

/// `NAME@SNAP`.
fn full(snapshot: &Value) -> String {
    format!("{}@{}", text(snapshot, "lun"), text(snapshot, "name"))
}

fn list(all: &Value) {
    let short = |one: &Value| {
        let mut row = one.clone();
        row["name"] = full(one).into();
        if let Some(until) = one.get("hold_until").filter(|until| !until.is_null()) {
            row["held"] = format!("until {}", output::value_text("", until)).into();
        }
        row
    };
    let short: Vec<Value> = rows(all).iter().map(short).collect();
    output::table(&short, COLUMNS, "no snapshots");
}

fn deleted(name: &str, value: &Value) -> String {
    let later = value.get("at_last_close").is_some_and(|later| later == true);
    match (later, value.get("alone_bytes").and_then(Value::as_u64)) {
        (true, _) => format!("deleted {name}, whose space comes back when its last user closes it"),
        (false, Some(bytes)) => {
            format!("deleted {name}, which alone held {}", output::bytes_text(bytes))
        }
        (false, None) => format!("deleted {name}"),
    }
}

/// Extents as they come: there may be very many.
fn diff(from: &str, to: Option<&String>, common: &Common) -> Result<()> {
    let command = Command::SnapshotDiff { from: from.to_owned(), to: to.cloned() };
    let mut all: Vec<Value> = Vec::new();
    let as_json = common.json;
    let mut hear = |reply| {
        let Reply::Event(Value::Array(page)) = reply else { return };
        if as_json {
            return all.extend(page);
        }
        for extent in &page {
            let number = |key: &str| extent.get(key).and_then(Value::as_u64).unwrap_or(0);
            let (offset, length) = (number("offset_bytes"), number("length_bytes"));
            output::line(&format!("{offset:>16} {length:>16} {}", text(extent, "kind")));
        }
    };
    let value = selection(common).client()?.call(command, false, None, &mut hear)?;
    if as_json {
        let mut value = value;
        value["extents"] = json!(all);
        output::json(&value);
    }
    Ok(())
}
