//! What is beside the trees: labels, roots, segment map, free space, log, what waits to be freed.

use super::{object, pointer, Object};
use crate::fs::core::Core;
use crate::fs::error::Result;
use crate::fs::labels::read_one;
use crate::fs::members::Device;
use fs_layout::{
    FileRange, Label, Root, SegmentMapPage, LABEL_PLACES, ROOT_COPIES, ROOT_SLOTS, SEGMENT_MAP_BASE,
};

/// Each device's own places.
pub(super) fn overview(devices: &[Device]) -> Object {
    let mut out = Object::new("pool").with("devices", devices.len());
    for device in devices {
        let mut shown = Object::new(format!("device {}", device.name()));
        shown.put("blocks", device.block_count());
        let copy = |at: u64, name: String, decode: &dyn Fn(&[u8; 4096]) -> Object| {
            let read = read_one(device, at);
            let read = read.map(|raw| decode(&raw.0));
            let mut part = read.unwrap_or_else(|e| Object::new("").with("error", e));
            part.name = name;
            part.with("at", at)
        };
        for (i, at) in LABEL_PLACES.into_iter().enumerate() {
            let decode = |b: &[u8; 4096]| object("", &Label::decode(b));
            shown.parts.push(copy(at, format!("label copy {i}"), &decode));
        }
        let mut newest: Option<Root> = None;
        for slot in 0..ROOT_SLOTS {
            for (i, at) in ROOT_COPIES.into_iter().enumerate() {
                let decode = |b: &[u8; 4096]| object("", &Root::decode(b));
                shown.parts.push(copy(at + slot, format!("root slot {slot} copy {i}"), &decode));
                let root = read_one(device, at + slot).ok();
                let root = root.and_then(|raw| Root::decode(&raw.0).ok()).map(|r| r.0);
                let known = newest.as_ref().map_or(0, |n| n.epoch);
                newest = root.filter(|r| newest.is_none() || r.epoch > known).or(newest);
            }
        }
        let map = newest.iter().flat_map(|root| root.segment_map.iter().enumerate());
        for (i, (_, place)) in map.filter(|(_, entry)| entry.1 <= 1) {
            let at = SEGMENT_MAP_BASE + 2 * i as u64 + u64::from(*place);
            let decode = |b: &[u8; 4096]| object("", &SegmentMapPage::decode(b));
            shown.parts.push(copy(at, format!("segment map page {i}"), &decode));
        }
        out.parts.push(shown);
    }
    out
}

/// Pages that were written, level by level.
pub(super) fn space(core: &Core) -> Object {
    let mut out = Object::new("free space").with("blocks", core.space.blocks());
    for page in core.space.pages(0, u64::MAX).unwrap_or_default() {
        let Some(p) = page.pointer else { continue };
        let state = match core.store.read(&p) {
            Ok(_) => "good".to_string(),
            Err(e) => e.to_string(),
        };
        let shown = pointer(format!("level {} region {}", page.level, page.region), &p);
        if !out.is_full() {
            out.parts.push(shown.with("free", page.free).with("state", state));
        }
    }
    out
}

fn range(r: &FileRange) -> Object {
    match r {
        FileRange::Hole(first, count) => {
            Object::new("hole").with("first", first).with("count", count)
        }
        FileRange::Clone(c) => {
            let out = Object::new("clone").with("first", c.first).with("height", c.height);
            out.with("count", c.data_blocks).with("block", c.block)
        }
    }
}

/// Groups that recovery would replay.
pub(super) fn log(core: &Core) -> Result<Object> {
    let mut out = Object::new("log");
    for (head, records, blocks) in core.log_content()? {
        let mut group = object(format!("group {}", head.number), &head);
        let (at, _) = blocks.first().copied().unwrap_or_default();
        group.put("block", at);
        for r in &records {
            let name = format!("volume {} inode {}", r.volume, r.ino);
            let mut record = Object::new(name);
            record.parts.extend(r.ranges.iter().map(range));
            for run in r.links.chunk_by(|a, b| {
                a.disk_block + 1 == b.disk_block && a.file_block + 1 == b.file_block
            }) {
                let Some(first) = run.first() else { continue };
                let link = Object::new("link").with("first", first.file_block);
                record.parts.push(link.with("count", run.len()).with("block", first.disk_block));
            }
            record.parts.extend(r.inode.map(|inode| object("inode", &inode)));
            group.parts.push(record);
        }
        if !out.is_full() {
            out.parts.push(group);
        }
    }
    Ok(out.with("damage", core.log_damage()?.unwrap_or_else(|| "none".into())))
}

/// The reclaim list.
pub(super) fn dead(core: &Core) -> Object {
    let cp = core.cp.lock();
    let mut out = Object::new("reclaim list").with("entries", cp.reclaim.len());
    for (i, entry) in cp.reclaim.entries().iter().enumerate().take(super::MAX_PARTS) {
        out.parts.push(object(format!("entry {i}"), entry));
    }
    out
}
