//! `pool scrub`: begins one, or joins the one that runs, and stays until it is done.

use super::engine::Session;
use super::error::{Error, Message, Result};
use super::pool::OpenPool;
use super::report::{self, bytes_text};
use super::transfer::Progress;
use crate::fs::{BadPlace, NodeId, Outcome, Part, ScrubStatus};
use serde_json::{json, Value};
use std::time::Duration;

/// How often a command that waits for the server's scrub looks how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Blocks between two looks at the client where this process does the work itself: 16 MiB.
const STEP_BLOCKS: u64 = 4096;

impl Session<'_> {
    pub(super) fn pool_scrub(&self, background: bool, cancel: bool) -> Result<Value> {
        let fs = &self.engine.pool.fs;
        let failed = |e| Error::fs("the pool is not scrubbed", &e);
        if self.dry_run {
            return Ok(report::would(self.would_scrub(cancel)));
        }
        if cancel {
            if !fs.scrub_cancel().map_err(failed)? {
                return Err(Message::new("no scrub is running").into());
            }
            return Ok(status(&self.engine.pool));
        }
        fs.scrub_start().map_err(failed)?;
        if !background {
            self.stay()?;
        }
        Ok(status(&self.engine.pool))
    }

    fn would_scrub(&self, cancel: bool) -> String {
        let fs = &self.engine.pool.fs;
        let now = fs.scrub_status();
        match (now.running, cancel) {
            (true, true) => "end the scrub that is running".into(),
            (false, true) => "do nothing: no scrub is running".into(),
            (true, false) => format!(
                "join the scrub that is running: {} of {} are done",
                bytes_text(now.examined_bytes),
                bytes_text(now.total_bytes)
            ),
            (false, false) => {
                let used = fs.stats().used_bytes;
                format!("read every copy of {} and rewrite those that are bad", bytes_text(used))
            }
        }
    }

    /// Until the scrub has ended. Where this process has the pool for itself it does the work, as
    /// fast as it can; a server has its own pace.
    fn stay(&self) -> Result<()> {
        let fs = &self.engine.pool.fs;
        let progress = Progress::new(self);
        loop {
            let now = fs.scrub_status();
            if !now.running && now.cancelled {
                return Err(Message::new("the scrub was cancelled").into());
            }
            if !progress.report(now.examined_bytes, now.total_bytes) {
                let gone: Error = Message::new("the scrub goes on without this command").into();
                return Err(progress.explain(gone));
            }
            if !now.running {
                return Ok(());
            }
            if self.engine.stop.is_some() {
                std::thread::sleep(LOOK_EVERY);
                if let Some(why) = fs.stats().latched {
                    return Err(Message::new("the scrub cannot go on").why(why).into());
                }
            } else {
                let step = fs.scrub_step(STEP_BLOCKS);
                step.map_err(|e| Error::fs("the scrub cannot go on", &e))?;
            }
        }
    }
}

/// The scrub that runs or ran last, with the places where copies were bad.
pub(super) fn status(pool: &OpenPool) -> Value {
    let now = pool.fs.scrub_status();
    let mut all = summary(&now);
    all["places"] = now.places.iter().map(|place| bad_place(pool, place)).collect();
    all
}

/// The same without the places.
pub(super) fn summary(now: &ScrubStatus) -> Value {
    json!({
        "state": if now.running { "running" } else { "idle" },
        "examined_bytes": now.examined_bytes,
        "total_bytes": now.total_bytes,
        "healed": now.healed,
        "bad": now.bad,
        "started": now.started.map(report::time_text),
        "finished": now.finished.map(report::time_text),
        "cancelled": now.cancelled,
    })
}

fn part_text(part: Part) -> &'static str {
    match part {
        Part::Data => "data",
        Part::Node => "tree",
        Part::Inodes => "inodes",
        Part::Dead => "deleted",
        Part::Space => "free-space map",
        Part::Log => "log",
        Part::SegmentMap => "segment map",
        Part::Root => "root",
        Part::Label => "label",
    }
}

fn outcome_text(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Healed => "healed",
        Outcome::Kept => "bad copy",
        Outcome::Lost => "lost",
    }
}

fn bad_place(pool: &OpenPool, place: &BadPlace) -> Value {
    let all = pool.fs.devices();
    let device = |i: &u16| all.iter().find(|d| d.slot == *i).map(|d| d.path.clone());
    let mut all = json!({
        "part": part_text(place.part),
        "outcome": outcome_text(place.outcome),
        "block": place.block,
        "devices": place.devices.iter().map(device).collect::<Value>(),
    });
    let mut text = part_text(place.part).to_string();
    if matches!(place.part, Part::Data | Part::Node) {
        let node = NodeId { volume: place.volume, ino: place.ino };
        (all["inode"], all["offset_bytes"]) = (place.ino.into(), place.offset_bytes.into());
        all["length_bytes"] = place.length_bytes.into();
        let luns = pool.catalog.list();
        let lun = luns.iter().find(|lun| lun.volume() == place.volume);
        text = match lun {
            Some(lun) => {
                let (name, file) = (lun.name(), lun.file_name(node));
                let text = format!("{name}/{file}");
                (all["lun"], all["file"]) = (name.into(), file.into());
                if let Some((lba, _)) = lun.blocks_at(node, place.offset_bytes) {
                    all["lba"] = lba.into();
                }
                text
            }
            None => pool.fs.text_of(node),
        };
        text += &format!(": {} bytes at {}", place.length_bytes, place.offset_bytes);
    } else if place.part == Part::Inodes {
        (all["volume"], all["inode"]) = (place.volume.0.into(), place.ino.into());
        text = format!("inodes from {} of volume {}", place.ino, place.volume.0);
    }
    let outcome = outcome_text(place.outcome);
    all["text"] = format!("{text}: {outcome} (block {} of the pool)", place.block).into();
    all
}
