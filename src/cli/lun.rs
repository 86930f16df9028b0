//! `lunfs lun`.

use super::args::{Change, Common, Lun};
use super::{ask, image, output, rows, selection, show};
use crate::control::client::Client;
use crate::control::protocol::{Command, KeyValue, Reply};
use crate::control::{Message, Result};
use serde_json::{json, Value};

/// What a list of LUNs shows.
const COLUMNS: &[&str] =
    &["name", "size_bytes", "used_bytes", "snapshots", "snapshots_used_bytes", "lease", "sessions"];

/// Carries a verb out.
pub fn run(verb: &Lun, common: &Common) -> Result<()> {
    let name = |name: &String| name.clone();
    match verb {
        Lun::List => {
            let value = ask(common, Command::LunList, false)?;
            show(&value, common, list);
        }
        Lun::Show { name: lun } => {
            let value = ask(common, Command::LunShow { lun: name(lun) }, false)?;
            show(&value, common, output::facts);
        }
        Lun::Create { name: lun, size, keys, change } => {
            create(name(lun), size.0, keys.clone(), *change, common)?;
        }
        Lun::Resize { name: lun, size, force, change } => {
            let command = Command::LunResize { lun: name(lun), size_bytes: size.0, force: *force };
            tell(common, command, *change, |v| format!("{lun} has {}", text(v, "size_bytes")))?;
        }
        Lun::Rename { name: lun, new, change } => {
            let command = Command::LunRename { lun: name(lun), new: name(new) };
            tell(common, command, *change, |_| format!("{lun} is now {new}"))?;
        }
        Lun::Delete { name: lun, recursive, force, change } => {
            let command =
                Command::LunDelete { lun: name(lun), recursive: *recursive, force: *force };
            tell(common, command, *change, |v| {
                format!("deleted {lun}, which used {}", text(v, "used_bytes"))
            })?;
        }
        Lun::Set { name: lun, keys, change } => {
            let command = Command::LunSet { lun: name(lun), keys: keys.clone() };
            tell(common, command, *change, |_| format!("changed {lun}"))?;
        }
        Lun::Log { name: lun, follow } => return log(lun, *follow, common),
        Lun::Import(wanted) => return image::import(wanted, common),
        Lun::Export { name: lun, file, force, past_bad, change } => {
            return image::export(lun, file, *force, *past_bad, *change, common);
        }
    }
    Ok(())
}

/// Carries a command out, and says what it did in a line.
pub(super) fn tell(
    common: &Common,
    command: Command,
    change: Change,
    said: impl FnOnce(&Value) -> String,
) -> Result<()> {
    let value = ask(common, command, change.dry_run)?;
    show(&value, common, |value| output::line(&said(value)));
    Ok(())
}

fn create(
    lun: String,
    size_bytes: u64,
    keys: Vec<KeyValue>,
    change: Change,
    common: &Common,
) -> Result<()> {
    let command = Command::LunCreate { lun, size_bytes, keys };
    let value = ask(common, command, change.dry_run)?;
    show(&value, common, made);
    Ok(())
}

/// A new LUN, and how it is reached where it is served.
pub fn made(lun: &Value) {
    output::line(&format!("made {} of {}", text(lun, "name"), text(lun, "size_bytes")));
    for key in ["iscsi_urls", "nbd_uris", "paths"] {
        for line in lun.get(key).map_or(&[][..], rows) {
            output::line(&format!("  {}", output::value_text("", line)));
        }
    }
}

fn text(value: &Value, key: &str) -> String {
    value.get(key).map_or_else(String::new, |field| output::value_text(key, field))
}

/// LUNs, a line each.
pub fn list(luns: &Value) {
    let short = |lun: &Value| {
        let mut row = lun.clone();
        if let Some(state) = lun.pointer("/lease/state") {
            row["lease"] = state.clone();
        }
        row["sessions"] = lun.get("sessions").map_or(0, |all| rows(all).len()).into();
        row
    };
    let short: Vec<Value> = rows(luns).iter().map(short).collect();
    // `status` does not ask for all of them.
    let told = |column: &&str| short.iter().any(|row| row.get(*column).is_some());
    let columns: Vec<&str> = COLUMNS.iter().copied().filter(told).collect();
    output::table(&short, &columns, "no LUNs");
}

fn log(name: &str, follow: bool, common: &Common) -> Result<()> {
    let command = Command::LunLog { lun: name.to_string(), follow };
    if !follow {
        let lines = ask(common, command, false)?;
        let parsed: Value = rows(&lines).iter().map(parsed).collect();
        show(if common.json { &parsed } else { &lines }, common, |lines| {
            rows(lines).iter().for_each(log_line);
        });
        return Ok(());
    }
    let stream = selection(common).server().map_err(|_| {
        Message::new("the pool is not served: nothing is added to its logs")
            .todo("leave out -f, or start `lunfs serve PATH`")
    })?;
    let mut hear = |reply| match reply {
        Reply::Event(line) if common.json => output::line(&parsed(&line).to_string()),
        Reply::Event(line) => log_line(&line),
        _ => {}
    };
    Client::Server(stream).call(command, false, None, &mut hear)?;
    Ok(())
}

/// A line of the log as JSON; what its owner wrote need not be that.
fn parsed(line: &Value) -> Value {
    let text = line.as_str().unwrap_or_default();
    serde_json::from_str(text).unwrap_or_else(|_| json!({ "text": text }))
}

/// A line as it stands in the log, without what a terminal would obey.
fn log_line(line: &Value) {
    output::line(&output::value_text("", line));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_lines_are_shown_as_text() {
        assert_eq!(parsed(&json!("hello")), json!({ "text": "hello" }));
        assert_eq!(parsed(&json!("{\"event\":\"login\"}")), json!({ "event": "login" }));
    }
}
