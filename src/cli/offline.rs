//! `lunfs pool check` and `dump`: on a pool that nobody serves, opened for reading only.

use super::args::Common;
use super::{output, show, usage_error};
use crate::control::find::find_devices;
use crate::control::pool::{as_block_devices, lock_devices};
use crate::control::{Error, Message, Result};
use crate::device::file::OpenMode;
use crate::device::{BlockDevice, BLOCK_BYTES};
use crate::fs::{self, CheckOptions, DumpAs, DumpObject, DumpValue, DumpWhat, Report};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{json, Value};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// How often the sign of life on the terminal moves.
const TICK: Duration = Duration::from_millis(120);
/// Errors that are shown to people; JSON has all.
const SHOWN_ERRORS: usize = 20;

type Devices = Vec<Arc<dyn BlockDevice>>;

/// A pool's devices that are there, and where the others were.
fn open(path: &Path, read_only: bool) -> Result<(Devices, Vec<String>)> {
    // A repair writes: that a device is missing must be known to the others before.
    let found = find_devices(&[path.to_path_buf()], read_only)?;
    let mode = OpenMode { read_only, ..OpenMode::default() };
    let devices = lock_devices(&found.paths, mode)?;
    Ok((as_block_devices(&devices), found.missing))
}

/// A copy that was not read is no copy.
fn tell_missing(report: &mut Report, missing: &[String]) {
    let text = |path: &String| format!("device {path} is missing: its copies were not read");
    report.errors.splice(0..0, missing.iter().map(text));
}

/// Verifies a pool; exit code 1 where something is wrong.
pub fn check(path: &Path, common: &Common) -> Result<ExitCode> {
    let (devices, missing) = open(path, true)?;
    let spinner = spinner(format!("checking {}", path.display()));
    let report = fs::check(&devices, CheckOptions { data: true });
    spinner.finish_and_clear();
    let what = || format!("the pool at {} cannot be checked", path.display());
    let todo = format!("`lunfs pool check --repair --dry-run {}` says more", path.display());
    let mut report = report.map_err(|e| Message::new(what()).why(e).todo(todo))?;
    tell_missing(&mut report, &missing);
    show(&to_json(&report), common, |_| plain(&report));
    Ok(if report.errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn spinner(text: String) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(text);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(TICK);
    spinner
}

/// Repairs a pool, or says how; exit code 1 where something stays wrong.
pub fn repair(path: &Path, dry_run: bool, common: &Common) -> Result<ExitCode> {
    let (devices, missing) = open(path, dry_run)?;
    let spinner = spinner(format!("repairing {}", path.display()));
    let done = fs::repair(&devices, dry_run);
    spinner.finish_and_clear();
    let what = || format!("the pool at {} cannot be repaired", path.display());
    let mut done = done.map_err(|e| Error::fs(what(), &e))?;
    tell_missing(&mut done.after, &missing);
    let mut value = to_json(&done.after);
    value["dry_run"] = dry_run.into();
    value["actions"] = done.actions.clone().into();
    show(&value, common, |_| {
        let verb = if dry_run { "would do: " } else { "" };
        for action in &done.actions {
            output::line(&format!("{verb}{action}"));
        }
        match (done.actions.is_empty(), done.after.errors.is_empty()) {
            (true, true) => output::line("nothing to repair"),
            (true, false) => output::line(
                "nothing that can be repaired: write these places anew, or delete what they are of",
            ),
            _ => {}
        }
        plain(&done.after);
    });
    let sound = done.after.errors.is_empty();
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn to_json(report: &Report) -> Value {
    let bytes = |blocks: u64| blocks.saturating_mul(BLOCK_BYTES as u64);
    json!({
        "sound": report.errors.is_empty(),
        "errors": report.errors,
        "notes": report.notes,
        "volumes": report.volumes,
        "inodes": report.inodes,
        "used_bytes": bytes(report.used_blocks),
        "verified_bytes": bytes(report.verified_blocks),
    })
}

fn plain(report: &Report) {
    for error in report.errors.iter().take(SHOWN_ERRORS) {
        output::line(error);
    }
    for note in &report.notes {
        output::line(&format!("note: {note}; it is mended when the pool is opened"));
    }
    let hidden = report.errors.len().saturating_sub(SHOWN_ERRORS);
    if hidden > 0 {
        output::line(&format!("and {hidden} more: --json shows all"));
    }
    let bytes = |blocks: u64| output::bytes_text(blocks.saturating_mul(BLOCK_BYTES as u64));
    output::line(&format!(
        "{}: {} volumes, {} inodes, {} in use, {} of data verified",
        if report.errors.is_empty() { "sound" } else { "not sound" },
        report.volumes,
        report.inodes,
        bytes(report.used_blocks),
        bytes(report.verified_blocks),
    ));
}

/// Shows what is on disk.
pub fn dump(path: &Path, object: Option<&str>, common: &Common) -> Result<()> {
    let what = object.map_or(Ok(DumpWhat::Overview), parse_object)?;
    let shown = fs::dump(&open(path, true)?.0, &what)
        .map_err(|e| Message::new(format!("{} cannot be shown", path.display())).why(e))?;
    show(&object_json(&shown), common, |_| output::line(shown.to_string().trim_end()));
    Ok(())
}

/// `{name, fields: {…}, parts: […]}`: numbers as numbers, times RFC 3339, lists as arrays.
fn object_json(object: &DumpObject) -> Value {
    let fields = object.fields.iter().map(|(name, value)| (name.clone(), field_json(value)));
    json!({
        "name": Some(&object.name).filter(|name| !name.is_empty()),
        "fields": fields.collect::<serde_json::Map<String, Value>>(),
        "parts": object.parts.iter().map(object_json).collect::<Value>(),
    })
}

fn field_json(value: &DumpValue) -> Value {
    match value {
        DumpValue::Null => Value::Null,
        DumpValue::Bool(b) => json!(b),
        DumpValue::Number(n) => json!(n),
        DumpValue::Text(text) => json!(text),
        DumpValue::List(all) => all.iter().map(field_json).collect(),
    }
}

/// See [`super::args`]: `block:N`, `inode:V:I`, `name:/path` and so on.
fn parse_object(text: &str) -> Result<DumpWhat> {
    let bad = || {
        let what = format!("'{text}' is not an object of a pool");
        let todo =
            "give space, log, volumes, versions, dead, volume:V, inode:V:I, name:VOLUME/path, \
             block:N, node:N, inodes:N or device:D:N, or nothing for labels and roots";
        usage_error(&what, todo)
    };
    let number = |text: &str| text.parse::<u64>().map_err(|_| bad());
    let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
    let pair = || rest.split_once(':').ok_or_else(bad);
    let small = |text: &str| text.parse::<u32>().map_err(|_| bad());
    Ok(match kind {
        "space" if rest.is_empty() => DumpWhat::Space,
        "log" if rest.is_empty() => DumpWhat::Log,
        "volumes" if rest.is_empty() => DumpWhat::Volumes,
        "versions" if rest.is_empty() => DumpWhat::Versions,
        "dead" if rest.is_empty() => DumpWhat::Dead,
        "volume" => DumpWhat::Volume(small(rest)?),
        "inode" => DumpWhat::Inode(small(pair()?.0)?, number(pair()?.1)?),
        "name" if !rest.is_empty() => DumpWhat::Name(rest.to_string()),
        "block" => DumpWhat::Block(number(rest)?, DumpAs::Guess),
        "node" => DumpWhat::Block(number(rest)?, DumpAs::Node),
        "inodes" => DumpWhat::Block(number(rest)?, DumpAs::Inodes),
        "device" => {
            let device = pair()?.0.parse().map_err(|_| bad())?;
            DumpWhat::Device(device, number(pair()?.1)?, DumpAs::Guess)
        }
        _ => return Err(bad()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects() {
        assert_eq!(parse_object("block:7").unwrap(), DumpWhat::Block(7, DumpAs::Guess));
        assert_eq!(parse_object("node:7").unwrap(), DumpWhat::Block(7, DumpAs::Node));
        assert_eq!(parse_object("inode:16:2").unwrap(), DumpWhat::Inode(16, 2));
        assert_eq!(parse_object("name:vm1/data").unwrap(), DumpWhat::Name("vm1/data".into()));
        for text in ["block", "block:", "block:-1", "tree:1", "inode:16", "log:1", "name:"] {
            assert_eq!(parse_object(text).unwrap_err().exit_code(), 2, "{text}");
        }
    }
}
