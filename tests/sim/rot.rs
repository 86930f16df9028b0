//! Rot: blocks that change by themselves. What is read afterwards is right or an error, never
//! wrong.

use super::model::{Body, Model, Node};
use super::observe::{ensure, read};
use super::world::{build, Config, Done, Failure};
use lunfs::device::sim::{Rng, SimDevice};
use lunfs::device::BlockDevice;
use lunfs::fs::{Error, Fs, NodeId, OpenOptions, SystemClock};
use std::sync::Arc;

/// What a run of rot saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// Blocks changed.
    pub rotten: usize,
    /// Calls that told of it.
    pub errors: usize,
    /// The pool could not be opened at all.
    pub refused: bool,
}

/// Fills a pool by a schedule, lets blocks rot, and reads everything.
pub fn run(config: &Config) -> Result<Seen, Failure> {
    let (devices, model) = build(config)?;
    let mut rng = Rng::new(config.seed ^ 0x207);
    let told = |why| Failure { step: config.steps, why };
    let mut seen = Seen::default();
    let count = [1, 3, 30, 300][rng.index(4)];
    for device in &devices {
        seen.rotten += device.rot(rng.bits(), count, 0).len();
    }
    let all: Vec<Arc<dyn BlockDevice>> = devices.iter().map(|d| d.clone() as _).collect();
    let clean = super::check::check(&all).is_ok();
    look(&devices, &model, &mut seen).map_err(told)?;
    ensure(!clean || (seen.errors == 0 && !seen.refused), || {
        format!("check finds nothing, but {seen:?}")
    })
    .map_err(told)?;
    Ok(seen)
}

fn look(devices: &[Arc<SimDevice>], model: &Model, seen: &mut Seen) -> Done {
    let devices = devices.iter().map(|device| device.clone() as Arc<dyn BlockDevice>).collect();
    let clock = Arc::new(SystemClock);
    let options =
        OpenOptions { cache_bytes: 8 << 20, clock, background: false, ..OpenOptions::default() };
    let fs = match Fs::open(devices, options) {
        Ok(fs) => fs,
        Err(Error::Format(_) | Error::Corrupt { .. } | Error::Io(_) | Error::Latched(_)) => {
            seen.refused = true;
            return Ok(());
        }
        Err(e) => return Err(format!("open: {e}")),
    };
    for (id, node) in &model.nodes {
        match look_at(&fs, *id, node, model) {
            Ok(true) => {}
            Ok(false) => seen.errors += 1,
            Err(why) => return Err(format!("{id:?}: {why}")),
        }
    }
    // What cannot be read may make closing fail; it may not make it panic.
    let _ = fs.close();
    Ok(())
}

/// True: all of it is right; false: an error said that it is not.
fn look_at(fs: &Arc<Fs>, id: NodeId, node: &Node, model: &Model) -> Done<bool> {
    let Some(attr) = allowed(fs.getattr(id))? else { return Ok(false) };
    let same = (attr.kind, attr.mode, attr.nlink) == (node.kind, node.mode, node.nlink);
    ensure(same, || format!("attributes {attr:?}"))?;
    match &node.body {
        Body::File(_) => look_at_file(fs, id, node, model),
        Body::Directory(entries) => {
            let mut whole = true;
            for (name, child) in entries {
                match allowed(fs.lookup(id, name))? {
                    Some(found) => ensure(found.id == *child, || format!("{name:?}: {found:?}"))?,
                    None => whole = false,
                }
            }
            Ok(whole)
        }
        Body::Symlink(to) => match allowed(fs.readlink(id))? {
            Some(found) => ensure(found == *to, || "another target".to_string()).map(|()| true),
            None => Ok(false),
        },
        Body::Special => Ok(true),
    }
}

fn look_at_file(fs: &Arc<Fs>, id: NodeId, node: &Node, model: &Model) -> Done<bool> {
    let Body::File(blocks) = &node.body else { return Ok(true) };
    let Some(file) = allowed(fs.open_file(id))? else { return Ok(false) };
    let mut whole = true;
    for number in blocks.keys() {
        let offset = number * super::model::BLOCK;
        match read(&file, offset, super::model::BLOCK as usize) {
            Ok(got) => ensure(got == model.read(id, offset, got.len()), || {
                format!("wrong bytes at {offset}")
            })?,
            Err(_) => whole = false,
        }
    }
    Ok(whole)
}

/// `None` where the answer is that something cannot be read; a lie is an error.
fn allowed<T>(answer: lunfs::fs::Result<T>) -> Done<Option<T>> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(Error::Corrupt { .. } | Error::Format(_) | Error::Io(_)) => Ok(None),
        Err(e) => Err(format!("rot is told as: {e}")),
    }
}
