//! What must hold when all is quiet: exact counts, and all space back when everything is deleted.

use super::character::Done;
use super::model::Body;
use super::observe::{ensure, observe};
use super::world::World;
use lunfs::device::sim::Rng;
use lunfs::fs::{self, Fs, NodeId, NodeKind};
use std::sync::Arc;

/// What a pool emptied again may hold more than one just made: inode and directory blocks.
const EMPTY_SLACK_BYTES: u64 = 64 << 10;
/// The same where devices joined: regions have places of their own for pages.
const MOVED_SLACK_BYTES: u64 = 1 << 20;
/// Steps of maintenance beyond which it goes round in circles.
const MAX_STEPS: u32 = 100_000;

impl World {
    /// Runs what would run in the background to its end; then every count must be exact.
    pub fn settle(&self, rng: &mut Rng) -> Done {
        let fs = self.fs()?;
        settle(&fs)?;
        let model = observe(&fs, rng)?;
        let derived = self.inner.lock().model.derived.clone();
        // Where versions share blocks the count may be too high.
        for (id, node) in model.nodes.iter().filter(|(id, _)| !derived.contains(&id.volume)) {
            let Body::File(blocks) = &node.body else { continue };
            let attr = fs.getattr(*id).map_err(|e| format!("getattr: {e}"))?;
            let counted = blocks.len() as u64;
            ensure(attr.blocks == counted, || {
                format!("{id:?}: {counted} blocks, but {} counted when all is quiet", attr.blocks)
            })?;
        }
        Ok(())
    }

    /// Deletes everything: all space must come back.
    pub fn delete_everything(&self) -> Done {
        let fs = self.fs()?;
        let told = |e: fs::Error| format!("deleting everything: {e}");
        let volumes = fs.volume_list().map_err(told)?;
        for id in volumes.iter().map(|(_, id)| *id).chain([fs::VolumeId::TREE]) {
            for snap in fs.snapshot_list(id).map_err(told)? {
                fs.snapshot_hold(id, &snap.name, false, None).map_err(told)?;
                fs.snapshot_delete(id, &snap.name).map_err(told)?;
            }
        }
        for (name, _) in volumes {
            fs.volume_delete(&name).map_err(told)?;
        }
        delete_below(&fs, NodeId::root(fs::VolumeId::TREE)).map_err(told)?;
        settle(&fs)?;
        let (stats, empty) = (fs.stats(), self.empty_bytes());
        let slack = match self.character.members_change {
            true => MOVED_SLACK_BYTES,
            false => EMPTY_SLACK_BYTES,
        };
        ensure(stats.used_bytes <= empty + slack, || {
            format!("{empty} bytes were used when empty, now that all is deleted: {stats:?}")
        })?;
        ensure(stats.freeing_bytes == 0, || format!("still waiting to be freed: {stats:?}"))
    }
}

fn delete_below(fs: &Arc<Fs>, dir: NodeId) -> fs::Result<()> {
    for entry in fs.readdir(dir, 0, usize::MAX)? {
        if entry.kind == NodeKind::Directory {
            delete_below(fs, entry.id)?;
            fs.rmdir(dir, &entry.name)?;
        } else {
            fs.unlink(dir, &entry.name)?;
        }
    }
    Ok(())
}

fn settle(fs: &Arc<Fs>) -> Done {
    let told = |e: fs::Error| format!("settling: {e}");
    for _ in 0..3 {
        let mut steps = 0;
        while fs.maintain().map_err(told)? {
            steps += 1;
            ensure(steps < MAX_STEPS, || "maintain does not end".to_string())?;
        }
        fs.consistency_point().map_err(told)?;
    }
    Ok(())
}
