//! Finding the devices of a pool: those that are named, then at the paths in the labels, then by id
//! among the files beside the first.
//!
//! What the labels say of each other decides which of them counts, as it does where the pool is
//! opened. A device that the others have recorded as missing is left alone until `pool online`.

use super::error::{Error, Message, Result};
use super::label::read_label;
use super::pool::absolute;
use crate::fs::newest_label;
use fs_layout::{DeviceEntry, Label, MemberState};
use std::path::{Path, PathBuf};

/// Entries of a directory that are looked at to find a device that was moved.
const MAX_SEARCHED: usize = 4096;

/// The devices of a pool.
pub struct Found {
    /// What the labels say.
    pub label: Label,
    /// Where those are that take part, in the order of the label.
    pub paths: Vec<PathBuf>,
    /// Where those were last that do not, though the pool is not whole without them.
    pub missing: Vec<String>,
}

/// A device that was found, with its own label.
#[derive(Clone)]
struct Seen {
    path: PathBuf,
    label: Label,
}

/// Finds the devices of the pool that `paths` belong to. With `degraded` a mirror's may be missing,
/// and of two sides that went on apart the named one counts.
pub fn find_devices(paths: &[PathBuf], degraded: bool) -> Result<Found> {
    let given = read_given(paths)?;
    let first = given.first().ok_or_else(|| Error::Usage(Message::new("no path of a pool")))?;
    let beside = first.path.clone();
    let named = winner(&given).ok_or_else(|| apart(&given))?;
    let mut seen = given;
    // A newer label may name further devices.
    loop {
        let label = winner(&seen).unwrap_or_else(|| named.clone());
        let more = search(&label, &seen, &beside);
        if more.is_empty() {
            break;
        }
        seen.extend(more);
    }
    if winner(&seen).is_none() {
        if !degraded {
            return Err(apart(&seen));
        }
        seen.retain(|s| newest_label(&[named.clone(), s.label.clone()]).is_some());
    }
    let label = winner(&seen).unwrap_or(named);
    refuse_others(&label, &seen, paths)?;
    let (paths, missing) = those_that_count(&label, &seen, degraded)?;
    Ok(Found { label, paths, missing })
}

/// A named device that has left the pool is none of it.
fn refuse_others(label: &Label, seen: &[Seen], paths: &[PathBuf]) -> Result<()> {
    let is_member = |s: &Seen| label.devices.iter().any(|d| Some(d.id) == own_id(&s.label));
    let other = seen.iter().find(|s| paths.contains(&s.path) && !is_member(s));
    match (other, seen.iter().find(|s| is_member(s))) {
        (Some(other), Some(first)) => {
            Err(no_member(&other.path, first).why("it was once, and has left the pool").into())
        }
        _ => Ok(()),
    }
}

fn winner(seen: &[Seen]) -> Option<Label> {
    let labels: Vec<Label> = seen.iter().map(|s| s.label.clone()).collect();
    newest_label(&labels).and_then(|i| labels.into_iter().nth(i))
}

/// Where those are that take part, and where those were that do not.
fn those_that_count(
    label: &Label,
    seen: &[Seen],
    degraded: bool,
) -> Result<(Vec<PathBuf>, Vec<String>)> {
    let (mut paths, mut away) = (Vec::new(), Vec::new());
    for entry in &label.devices {
        let at = seen.iter().find(|s| own_id(&s.label) == Some(entry.id)).map(|s| s.path.clone());
        match (entry.member.state, at) {
            (MemberState::Absent, _) => {}
            (MemberState::Missing, _) => away.push(entry.path.clone()),
            (_, Some(path)) => paths.push(path),
            (MemberState::Normal | MemberState::Removing, None) => {
                if label.redundancy == 0 || !degraded {
                    return Err(missing(label, seen, entry).into());
                }
                away.push(entry.path.clone());
            }
            (MemberState::Merging | MemberState::Regenerating, None) => {
                away.push(entry.path.clone());
            }
        }
    }
    Ok((paths, away))
}

/// Every named path must be a device of the same pool; one that is named twice is no harm. One that
/// cannot be read is as good as missing, where a label says that a device of a mirror was there.
fn read_given(paths: &[PathBuf]) -> Result<Vec<Seen>> {
    let (mut given, mut failures): (Vec<Seen>, Vec<(&PathBuf, Error)>) = (Vec::new(), Vec::new());
    for path in paths {
        match read_label(path) {
            Ok(label) => given.push(Seen { path: path.clone(), label }),
            Err(e) => failures.push((path, e)),
        }
    }
    if let [first, others @ ..] = &given[..] {
        if let Some(other) = others.iter().find(|s| s.label.pool_id != first.label.pool_id) {
            let names = (other.path.display(), first.path.display());
            let what = format!("{} and {} belong to different pools", names.0, names.1);
            return Err(Message::new(what).todo("give the devices of one pool").into());
        }
    }
    for (path, error) in failures {
        let Some(first) = given.first() else { return Err(error) };
        let named = |s: &Seen| s.label.redundancy != 0 && names(&s.label, path);
        if !given.iter().any(named) {
            return Err(no_member(path, first).why(error.message().in_one_line()).into());
        }
    }
    Ok(given)
}

/// Does a label say that a device is at this path?
fn names(label: &Label, path: &Path) -> bool {
    let full = |path: &Path| absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let path = full(path);
    label.devices.iter().any(|entry| full(Path::new(&entry.path)) == path)
}

fn no_member(path: &Path, first: &Seen) -> Message {
    let (path, first) = (path.display(), first.path.display());
    Message::new(format!("{path} is not a device of the pool at {first}"))
        .todo("give devices of one pool only; `lunfs pool show` lists them")
}

fn own_id(label: &Label) -> Option<[u8; 16]> {
    label.devices.get(usize::from(label.index)).map(|entry| entry.id)
}

/// Devices that the label names and nobody has seen yet.
fn search(label: &Label, seen: &[Seen], first: &Path) -> Vec<Seen> {
    let unseen = |entry: &&DeviceEntry| {
        entry.member.state != MemberState::Absent
            && !seen.iter().any(|s| own_id(&s.label) == Some(entry.id))
    };
    let find = |entry: &DeviceEntry| {
        let at_path = take(Path::new(&entry.path), label, entry);
        at_path.or_else(|| beside(first, label, entry))
    };
    label.devices.iter().filter(unseen).filter_map(find).collect()
}

fn take(path: &Path, label: &Label, entry: &DeviceEntry) -> Option<Seen> {
    let own = read_label(path).ok()?;
    let is_it = own.pool_id == label.pool_id && own_id(&own) == Some(entry.id);
    is_it.then(|| Seen { path: path.to_path_buf(), label: own })
}

fn beside(first: &Path, label: &Label, entry: &DeviceEntry) -> Option<Seen> {
    let dir = first.parent().filter(|dir| !dir.as_os_str().is_empty());
    let entries = std::fs::read_dir(dir.unwrap_or(Path::new("."))).ok()?;
    entries
        .take(MAX_SEARCHED)
        .filter_map(|found| found.ok().map(|found| found.path()))
        .find_map(|path| take(&path, label, entry))
}

fn missing(label: &Label, seen: &[Seen], entry: &DeviceEntry) -> Message {
    let first = seen.first().map_or_else(String::new, |s| s.path.display().to_string());
    // Something at its path says more than that it is not there.
    let why = match read_label(Path::new(&entry.path)) {
        Err(e) if Path::new(&entry.path).exists() => e.message().in_one_line(),
        _ => format!("it was last at {} and is not beside the others", entry.path),
    };
    let todo = match label.redundancy {
        0 => "give its path too; without redundancy the pool needs all its devices",
        _ => {
            "give its path too; or, giving up what it alone has, go on without it: \
             `lunfs serve --degraded PATH`"
        }
    };
    Message::new(format!("a device of the pool at {first} is missing")).why(why).todo(todo)
}

fn apart(seen: &[Seen]) -> Error {
    let names: Vec<String> = seen.iter().map(|s| s.path.display().to_string()).collect();
    Message::new(format!("{} went on without each other", names.join(" and ")))
        .why("each has changes that the other lacks: they are never merged")
        .todo("serve the one that counts: `lunfs serve --degraded PATH`; then `pool replace`")
        .into()
}
