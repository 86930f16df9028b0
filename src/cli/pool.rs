//! `lunfs pool`.

use super::args::{AtPath, Change, Common, Pool, Redundancy};
use super::image::Bar;
use super::output::count_text;
use super::parse::Size;
use super::{output, rows, show, usage_error};
use crate::control::client::{Client, Selection};
use crate::control::pool::{self, NewPool};
use crate::control::protocol::Command;
use crate::control::report::would;
use crate::control::run_dir::{id_text, RunDirs};
use crate::control::Result;
use crate::fs::{self, Fs};
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Carries a verb out.
pub fn run(verb: &Pool, common: &Common) -> Result<ExitCode> {
    match verb {
        Pool::Create { paths, size, redundancy, change } => {
            create(paths, *size, *redundancy, *change, common)?;
        }
        Pool::List => list(common)?,
        Pool::Show(at) => {
            let value = selection(common, at.path.as_ref()).client()?;
            let value = value.call(Command::PoolShow, false, None, &mut |_| {})?;
            show(&value, common, output::facts);
        }
        Pool::Check { path, repair, dry_run } => {
            let path = named(common, &AtPath { path: path.clone() })?;
            return match repair {
                true => super::offline::repair(&path, *dry_run, common),
                false => super::offline::check(&path, common),
            };
        }
        Pool::Dump { path, object } => {
            let at = AtPath { path: path.clone() };
            super::offline::dump(&named(common, &at)?, object.as_deref(), common)?;
        }
        Pool::Scrub { path, background, cancel, change } => {
            let command = Command::PoolScrub { background: *background, cancel: *cancel };
            return scrub(path.as_ref(), command, *change, common);
        }
        Pool::Offline { path, device, change } => {
            let command = Command::PoolOffline { path: full(device) };
            member(path, command, *change, common)?;
        }
        Pool::Online { path, device, change } => {
            let command = Command::PoolOnline { path: full(device) };
            member(path, command, *change, common)?;
        }
        Pool::Replace { path, device, new, change } => {
            let command = Command::PoolReplace { path: full(device), new: full(new) };
            member(path, command, *change, common)?;
        }
        Pool::Add { path, device, size, change } => {
            let (device, size_bytes) = (full(device), size.map(|size| size.0));
            let command = Command::PoolAdd { path: device, size_bytes };
            balance(path, command, "adding", *change, common)?;
        }
        Pool::Remove { path, device, change } => {
            let command = Command::PoolRemove { path: full(device) };
            balance(path, command, "removing", *change, common)?;
        }
        Pool::Grow { path, size, change } => {
            let size_bytes = size.map(|size| size.0);
            let command = Command::PoolGrow { path: full(path), size_bytes };
            balance(path, command, "growing", *change, common)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A path behind the verb stands before --pool.
fn selection(common: &Common, path: Option<&PathBuf>) -> Selection {
    Selection { pool: path.or(common.pool.as_ref()).cloned(), ..Selection::default() }
}

/// The path of a pool that is not served.
fn named(common: &Common, at: &AtPath) -> Result<PathBuf> {
    let path = at.path.as_ref().or(common.pool.as_ref());
    path.cloned().ok_or_else(|| usage_error("no path of a pool was given", "give any device of it"))
}

fn create(
    paths: &[PathBuf],
    size: Option<Size>,
    redundancy: Redundancy,
    change: Change,
    common: &Common,
) -> Result<()> {
    let redundancy = match redundancy {
        Redundancy::None => fs::Redundancy::None,
        Redundancy::Mirror => fs::Redundancy::Mirror,
    };
    let new = NewPool { paths: paths.to_vec(), size_bytes: size.map(|size| size.0), redundancy };
    let sizes = pool::check_new_pool(&new)?;
    let size_bytes = Fs::capacity_bytes(redundancy, &sizes);
    if change.dry_run {
        let size = output::bytes_text(size_bytes);
        let text = format!("make a pool of {size} in {}", pool::names(paths));
        show(&would(text), common, output::facts);
        return Ok(());
    }
    let id = id_text(&pool::create(&new)?);
    let devices: Value = paths
        .iter()
        .zip(&sizes)
        .map(|(path, size)| json!({ "path": path.display().to_string(), "size_bytes": size }))
        .collect();
    let value = json!({ "id": id, "devices": devices, "redundancy": redundancy.to_string() });
    show(&value, common, |_| {
        let size = output::bytes_text(size_bytes);
        output::line(&format!("made the pool {id} of {size} in {}", pool::names(paths)));
    });
    Ok(())
}

/// How long a server may take to say how its pool is.
const LIST_WAIT: Duration = Duration::from_secs(5);
const COLUMNS: &[&str] = &["id", "state", "size_bytes", "used_bytes", "free_bytes", "paths"];

/// The served pools; one that does not answer is listed with the reason.
fn list(common: &Common) -> Result<()> {
    let mut pools = Vec::new();
    for (id, stream) in RunDirs::of_process().connect_all()? {
        // One that hangs must not keep the others from being listed.
        let _ = stream.set_read_timeout(Some(LIST_WAIT));
        let shown = Client::Server(stream).call(Command::PoolShow, false, None, &mut |_| {});
        pools.push(shown.unwrap_or_else(|e| json!({ "id": id, "state": e.message().what })));
    }
    let pools = Value::Array(pools);
    show(&pools, common, |pools| {
        let with_paths = |pool: &Value| {
            let devices = pool.get("devices").map_or(&[][..], rows);
            let paths: Value = devices.iter().filter_map(|d| d.get("path").cloned()).collect();
            let mut row = pool.clone();
            row["paths"] = paths;
            row
        };
        let shown: Vec<Value> = rows(pools).iter().map(with_paths).collect();
        output::table(&shown, COLUMNS, "no pool is served");
    });
    Ok(())
}

/// Places that are named on standard error; JSON has all.
const SHOWN_PLACES: usize = 2;

fn scrub(
    path: Option<&PathBuf>,
    command: Command,
    change: Change,
    common: &Common,
) -> Result<ExitCode> {
    let client = selection(common, path).client()?;
    let bar = Bar::new("scrubbing".into());
    let value = client.call(command, change.dry_run, None, &mut |reply| bar.hear(&reply));
    drop(bar);
    let value = value?;
    let field = |key: &str| value.get(key).and_then(Value::as_u64).unwrap_or(0);
    let running = value.get("state").is_some_and(|state| state == "running");
    show(&value, common, |_| {
        let bytes = |key| output::bytes_text(field(key));
        output::line(&match running {
            true => format!(
                "scrubbing: {} of {} done; `lunfs status` shows how far it is",
                bytes("examined_bytes"),
                bytes("total_bytes")
            ),
            false => format!(
                "{}{} examined, {} healed{}, {} could not be healed",
                if value.get("cancelled") == Some(&Value::Bool(true)) { "cancelled: " } else { "" },
                bytes("examined_bytes"),
                count_text(field("healed"), "copy", "copies"),
                healed_on(&value),
                count_text(field("bad"), "block", "blocks")
            ),
        });
    });
    if field("bad") == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    let places = value.get("places").map_or(&[][..], rows);
    let unhealed = |p: &&Value| p.get("outcome").is_some_and(|o| o != "healed");
    let texts = places.iter().filter(unhealed).filter_map(|p| p.get("text")?.as_str());
    let shown: Vec<&str> = texts.take(SHOWN_PLACES).collect();
    shown.iter().for_each(|text| output::error_line(text));
    let more = field("bad").saturating_sub(shown.len() as u64);
    if more > 0 {
        output::error_line(&format!("and {more} more: --json lists them"));
    }
    Ok(ExitCode::FAILURE)
}

/// On which devices copies were healed, as far as the places that are kept tell.
fn healed_on(value: &Value) -> String {
    let mut on: BTreeMap<&str, u64> = BTreeMap::new();
    for place in value.get("places").map_or(&[][..], rows) {
        let devices = place.get("devices").map_or(&[][..], rows);
        let healed = place.get("outcome").is_some_and(|outcome| outcome == "healed");
        for path in devices.iter().filter(|_| healed).filter_map(Value::as_str) {
            *on.entry(path).or_default() += 1;
        }
    }
    match on.is_empty() {
        true => String::new(),
        false => {
            let each: Vec<String> = on.iter().map(|(path, n)| format!("{n} on {path}")).collect();
            format!(" ({})", each.join(", "))
        }
    }
}

/// As whoever carries the command out finds it.
fn full(path: &PathBuf) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.clone()).display().to_string()
}

/// A device leaves, comes back or is replaced; then how the devices are.
fn member(path: &PathBuf, command: Command, change: Change, common: &Common) -> Result<()> {
    let degraded = matches!(command, Command::PoolReplace { .. });
    let client = Selection { degraded, ..selection(common, Some(path)) }.client()?;
    let bar = Bar::new("filling".into());
    let value = client.call(command, change.dry_run, None, &mut |reply| bar.hear(&reply));
    drop(bar);
    show(&value?, common, |value| {
        if change.dry_run {
            return output::facts(value);
        }
        let devices = value.get("devices").map_or(&[][..], rows);
        output::table(devices, &["path", "state", "size_bytes"], "the pool has no device");
    });
    Ok(())
}

/// What changes the devices stays until everything is where it belongs.
fn balance(
    path: &PathBuf,
    command: Command,
    doing: &str,
    change: Change,
    common: &Common,
) -> Result<()> {
    let client = selection(common, Some(path)).client()?;
    let bar = Bar::new(doing.into());
    let value = client.call(command, change.dry_run, None, &mut |reply| bar.hear(&reply));
    drop(bar);
    show(&value?, common, |value| {
        let size = value.get("size_bytes").map(|size| output::value_text("size_bytes", size));
        let gained = value.get("gained_bytes").and_then(Value::as_u64);
        let is_mirror = value.get("redundancy").is_some_and(|redundancy| redundancy == "mirror");
        output::line(&match gained == Some(0) && is_mirror {
            false => format!("the pool has {}", size.unwrap_or_default()),
            true => format!(
                "the pool has {} as before: a mirror gains what two of its devices gain",
                size.unwrap_or_default()
            ),
        });
    });
    Ok(())
}
