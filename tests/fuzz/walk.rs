//! Everything a pool can be asked for, in bounded steps, whatever it answers.

use lunfs::device::sim::Rng;
use lunfs::device::BlockDevice;
use lunfs::fs::{
    check, dump, repair, CheckOptions, DumpAs, DumpWhat, Fs, NewNode, NodeId, NodeKind, Owner,
    RenameMode, VolumeId, XattrMode,
};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Entries and inodes that one walk looks at.
const BUDGET: usize = 600;
const OWNER: Owner = Owner { mode: 0o755, uid: 1, gid: 1 };

/// What a walk met.
#[derive(Default)]
pub struct Met {
    pub nodes: Vec<(NodeId, NodeKind)>,
    pub errors: usize,
    left: usize,
}

impl Met {
    fn note<T, E>(&mut self, result: Result<T, E>) -> Option<T> {
        self.errors += usize::from(result.is_err());
        result.ok()
    }
}

/// Reads all there is.
pub fn read_all(fs: &Arc<Fs>) -> Met {
    let mut met = Met { left: BUDGET, ..Met::default() };
    let mut roots = vec![NodeId::root(VolumeId::TREE)];
    let volumes = met.note(fs.volume_list()).unwrap_or_default();
    for (name, volume) in volumes.into_iter().take(20) {
        met.note(fs.volume_lookup(&name));
        met.note(fs.volume_used_bytes(volume));
        roots.push(NodeId::root(volume));
        for snapshot in met.note(fs.snapshot_list(volume)).unwrap_or_default() {
            roots.push(NodeId::root(snapshot.id));
            met.note(fs.snapshot_alone_bytes(volume, &snapshot.name));
        }
        met.note(fs.bookmark_list(volume));
    }
    let mut seen: BTreeSet<NodeId> = roots.iter().copied().collect();
    while let Some(dir) = roots.pop() {
        look_at(fs, dir, &mut met);
        for (id, kind) in list(fs, dir, &mut met) {
            if !seen.insert(id) {
                continue;
            }
            met.nodes.push((id, kind));
            match kind {
                NodeKind::Directory => roots.push(id),
                _ => look_at(fs, id, &mut met),
            }
        }
    }
    met
}

/// A directory in small pages; the cookies rise, or a reader would go round for ever.
fn list(fs: &Arc<Fs>, dir: NodeId, met: &mut Met) -> Vec<(NodeId, NodeKind)> {
    let (mut cookie, mut found) = (0, Vec::new());
    while met.left > 0 {
        let Some(page) = met.note(fs.readdir(dir, cookie, 7)) else { break };
        let Some(last) = page.last() else { break };
        assert!(last.cookie > cookie, "the listing of {dir:?} goes back");
        cookie = last.cookie;
        for entry in page {
            assert!(entry.cookie <= cookie);
            met.left = met.left.saturating_sub(1);
            let looked = met.note(fs.lookup(dir, &entry.name));
            found.push((entry.id, looked.map_or(entry.kind, |attr| attr.kind)));
        }
    }
    found
}

fn look_at(fs: &Arc<Fs>, id: NodeId, met: &mut Met) {
    met.left = met.left.saturating_sub(1);
    let Some(attr) = met.note(fs.getattr(id)) else { return };
    for name in met.note(fs.xattr_list(id)).unwrap_or_default().into_iter().take(20) {
        met.note(fs.xattr_get(id, &name));
    }
    match attr.kind {
        NodeKind::Symlink => drop(met.note(fs.readlink(id))),
        NodeKind::Directory => drop(met.note(fs.parent(id))),
        NodeKind::File => {
            let Some(file) = met.note(fs.open_file(id)) else { return };
            let mut out = vec![0; 100_000];
            for at in [0, attr.size_bytes / 2, attr.size_bytes.saturating_sub(50_000), 1 << 51] {
                met.note(file.read_at(at, &mut out));
                let _ = file.try_read_at(at, &mut out);
            }
            let mut at = 0;
            for _ in 0..20 {
                let Some(Some(data)) = met.note(file.seek_data(at)) else { break };
                let Some(hole) = met.note(file.seek_hole(data)) else { break };
                assert!(data >= at && hole >= data, "seeking goes back");
                at = hole.max(data + 1);
            }
        }
        _ => {}
    }
}

/// Changes some of what is there, and adds to it.
pub fn change_all(fs: &Arc<Fs>, met: &mut Met, rng: &mut Rng) {
    let root = NodeId::root(VolumeId::TREE);
    for _ in 0..12 {
        let Some((id, kind)) = met.nodes.get(rng.index(met.nodes.len())).copied() else { break };
        match kind {
            NodeKind::Directory => change_directory(fs, id, met, rng),
            NodeKind::File => change_file(fs, id, met, rng),
            _ => {}
        }
        met.note(fs.xattr_set(id, b"user.fuzz", &[7; 300], XattrMode::Any));
    }
    change_directory(fs, root, met, rng);
    let made = met.note(fs.volume_create("fuzzed", OWNER));
    met.note(fs.sync());
    if made.is_some() {
        met.note(fs.volume_rename("fuzzed", "renamed"));
    }
    for (_, volume) in met.note(fs.volume_list()).unwrap_or_default().into_iter().take(3) {
        met.note(fs.snapshot_create(&[(volume, "fuzzed")], false));
        for snapshot in met.note(fs.snapshot_list(volume)).unwrap_or_default().iter().take(2) {
            met.note(fs.snapshot_delete(volume, &snapshot.name));
        }
    }
    for (name, _) in met.note(fs.volume_list()).unwrap_or_default().into_iter().take(3) {
        met.note(fs.volume_delete(&name));
    }
    for _ in 0..4 {
        met.note(fs.maintain());
    }
    met.note(fs.consistency_point());
}

fn change_directory(fs: &Arc<Fs>, dir: NodeId, met: &mut Met, rng: &mut Rng) {
    for n in 0..4 {
        let name = format!("fuzz-{n}-{}", rng.below(3)).into_bytes();
        let kind = if n == 0 { NewNode::Directory } else { NewNode::File };
        met.note(fs.create(dir, &name, kind, OWNER));
    }
    for entry in met.note(fs.readdir(dir, 0, 6)).unwrap_or_default() {
        let other = met.nodes.get(rng.index(met.nodes.len().max(1))).map_or(dir, |node| node.0);
        match rng.below(5) {
            0 => drop(met.note(fs.unlink(dir, &entry.name))),
            1 => drop(met.note(fs.rmdir(dir, &entry.name))),
            2 => drop(met.note(fs.link(entry.id, dir, b"linked"))),
            // into any directory, perhaps into itself: loops are looked for
            3 => {
                let mode = RenameMode::Replace;
                met.note(fs.rename(dir, &entry.name, other, b"moved", mode));
            }
            _ => {
                let (name, mode) = (&entry.name, RenameMode::Exchange);
                met.note(fs.rename(dir, name, dir, b"fuzz-1-0", mode));
            }
        }
    }
}

fn change_file(fs: &Arc<Fs>, id: NodeId, met: &mut Met, rng: &mut Rng) {
    let Some(file) = met.note(fs.open_file(id)) else { return };
    let size = file.size_bytes();
    for _ in 0..3 {
        let at = [0, size / 2, size, rng.below(1 << 30), 1 << 45][rng.index(5)];
        match rng.below(5) {
            0 => drop(met.note(file.punch(at, 1 << 40))),
            1 => drop(met.note(file.set_size(at))),
            2 => drop(met.note(file.append(&[3; 5000]))),
            3 => {
                let orred = file.update_at(at, 9000, |b| {
                    b.fill(1);
                    Ok::<(), ()>(())
                });
                met.note(orred);
            }
            _ => drop(met.note(file.write_at(at, &[2; 70_000]))),
        }
    }
}

/// The offline tools.
pub fn inspect(device: &Arc<dyn BlockDevice>, blocks: &[u64], rng: &mut Rng) -> bool {
    let devices = [device.clone()];
    let report = check(&devices, CheckOptions { data: true });
    for what in [DumpWhat::Overview, DumpWhat::Versions, DumpWhat::Volumes, DumpWhat::Log] {
        let _ = dump(&devices, &what);
    }
    if rng.below(8) == 0 {
        let _ = repair(&devices, true);
    }
    for _ in 0..40.min(blocks.len()) {
        let at = &blocks[rng.index(blocks.len())];
        let how = [DumpAs::Guess, DumpAs::Node, DumpAs::Inodes][rng.index(3)];
        let _ = dump(&devices, &DumpWhat::Block(*at, how));
    }
    report.is_ok_and(|report| report.errors.is_empty())
}
