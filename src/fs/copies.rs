//! Every copy on every device, for the offline check: read and compared, nothing written.
//!
//! Errors are what a power cut cannot leave behind: a bad copy of a block that was durable. A copy
//! of a root or label that is not whole may be what was being written then; the next opening mends
//! it: it is noted. A device that is being filled has no copies to be good yet.

use super::check::{Report, MAX_ERRORS};
use super::core::Core;
use super::error::Result;
use super::members::Device;
use super::named::numbers;
use super::pool::OpenOptions;
use super::recovery;
use super::scrub::{BadPlace, Found, Outcome, Part, Phase, Walk, PIECE_BLOCKS};
use super::types::*;
use std::sync::atomic::Ordering;

impl Core {
    /// What a walk finds from one part of the pool up to another, where nothing is healed.
    pub fn survey(&self, first: Phase, end: Phase) -> Result<Vec<BadPlace>> {
        self.store.heals.store(false, Ordering::Relaxed);
        let mut walk = Walk::default();
        walk.at.phase = first;
        let mut found = Found::default();
        while walk.at.phase != end {
            self.walk_piece(&mut walk, PIECE_BLOCKS, &mut found)?;
        }
        Ok(found.places)
    }

    /// Places in words, with the names of files and devices.
    pub fn place_texts(&self, places: &[BadPlace]) -> Vec<String> {
        let node = |p: &BadPlace| NodeId { volume: p.volume, ino: p.ino };
        let of_file = |p: &&BadPlace| matches!(p.part, Part::Data | Part::Node);
        let names = self.names_of(&places.iter().filter(of_file).map(node).collect());
        let name = |p: &BadPlace| names.get(&node(p)).cloned().unwrap_or_else(|| numbers(node(p)));
        places.iter().map(|p| self.place_text(p, &name)).collect()
    }

    fn place_text(&self, place: &BadPlace, name: &dyn Fn(&BadPlace) -> String) -> String {
        let set = self.store.members.now();
        let mut names: Vec<String> = place.devices.iter().map(|d| set.name(*d)).collect();
        names.dedup();
        let what = match place.part {
            Part::Data => {
                format!("{}: {} bytes at {}", name(place), place.length_bytes, place.offset_bytes)
            }
            Part::Node => format!(
                "{}: the node above {} bytes at {}",
                name(place),
                place.length_bytes,
                place.offset_bytes
            ),
            Part::Inodes => format!("volume {}, inodes from {}", place.volume.0, place.ino),
            Part::Dead => "what is being deleted".into(),
            Part::Space => "free-space map".into(),
            Part::Log => "log".into(),
            Part::SegmentMap => "segment map".into(),
            Part::Root => format!("root slot {}", place.block % 2),
            Part::Label => "label".into(),
        };
        let copies = match place.outcome {
            Outcome::Lost => "no copy is good",
            _ => "a copy is bad",
        };
        format!("{what}: block {}: {copies} ({})", place.block, names.join(", "))
    }
}

/// Looks at the copies of what the root names beside the trees, as it is on disk before the log is
/// replayed.
pub(super) fn survey_fixed(devices: Vec<Device>, report: &mut Report) -> Result<()> {
    let open = OpenOptions { degraded: true, ..OpenOptions::default() };
    let core = recovery::load(devices, &open, false)?.core;
    core.store.heals.store(false, Ordering::Relaxed);
    let groups = core.log_length()?;
    core.log.lock().written += groups;
    for place in core.survey(Phase::Space, Phase::Done)? {
        if is_to_be_filled(&core, &place) {
            continue;
        }
        let text = core.place_texts(std::slice::from_ref(&place)).concat();
        let mended = matches!(place.part, Part::Root | Part::Label | Part::Log);
        match mended && place.outcome != Outcome::Lost {
            true => report.notes.push(text),
            // What no copy has of the log, recovery finds.
            false if place.part == Part::Log => {}
            false => report.errors.push(text),
        }
    }
    // A page that cannot be read was told above.
    report.errors.extend(core.space.wrong_counts(&core.store).unwrap_or_default());
    Ok(())
}

/// Is it bad only on devices that nobody reads before they are filled?
fn is_to_be_filled(core: &Core, place: &BadPlace) -> bool {
    let set = core.store.members.now();
    place.outcome != Outcome::Lost && place.devices.iter().all(|d| set.readable(*d).is_none())
}

/// Looks at every copy of the trees, where there is more than one.
pub(super) fn survey_trees(core: &Core, report: &mut Report) -> Result<()> {
    if core.store.segment_map().iter().all(|run| run.members.len() < 2) {
        return Ok(());
    }
    let mut places = core.survey(Phase::Trees, Phase::Space)?;
    // What no copy has is told by the count.
    places.retain(|place| place.outcome != Outcome::Lost && !is_to_be_filled(core, place));
    places.truncate(MAX_ERRORS);
    report.errors.extend(core.place_texts(&places));
    Ok(())
}
