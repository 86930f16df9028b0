//! Reads a whole filesystem back through its API, as a model: names, attributes, every byte.
//! Refuses what contradicts itself: a listing and a lookup, a hole that is not zeros, a wrong
//! count.

use super::model::{Blocks, Body, Chunk, Model, Node, Stamps, BLOCK};
use super::versions::Snap;
use lunfs::device::sim::Rng;
use lunfs::fs::{Attr, File, Fs, NodeId, NodeKind, VolumeId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of a file beyond which only its data, and the edges of its holes, are read.
const READ_WHOLE_BYTES: u64 = 2 << 20;

type Seen<T> = Result<T, String>;

/// Everything that names lead to.
pub fn observe(fs: &Arc<Fs>, rng: &mut Rng) -> Seen<Model> {
    let mut model = Model::default();
    for (name, volume) in fs.volume_list().map_err(|e| format!("volume_list: {e}"))? {
        let found = fs.volume_lookup(&name).map_err(|e| format!("volume_lookup: {e}"))?;
        ensure(found == Some(volume), || {
            format!("volume {name}: listed, but looked up {found:?}")
        })?;
        observe_tree(fs, volume, &mut model, rng).map_err(|e| format!("volume {name}: {e}"))?;
        observe_snapshots(fs, volume, &mut model, rng)
            .map_err(|e| format!("volume {name}: {e}"))?;
        model.volumes.insert(name, volume);
    }
    observe_tree(fs, VolumeId::TREE, &mut model, rng).map_err(|e| format!("the tree: {e}"))?;
    observe_snapshots(fs, VolumeId::TREE, &mut model, rng)?;
    Ok(model)
}

fn observe_snapshots(fs: &Arc<Fs>, of: VolumeId, model: &mut Model, rng: &mut Rng) -> Seen<()> {
    for info in fs.snapshot_list(of).map_err(|e| format!("snapshot_list: {e}"))? {
        let name = info.name.clone();
        let found = fs.snapshot_lookup(of, &name).map_err(|e| format!("snapshot_lookup: {e}"))?;
        ensure(found.as_ref() == Some(&info), || format!("listed {info:?}, found {found:?}"))?;
        observe_tree(fs, info.id, model, rng).map_err(|e| format!("snapshot {name}: {e}"))?;
        let snap = Snap { id: info.id, held: info.held, until: info.hold_until };
        model.snapshots.entry(of).or_default().insert(name, snap);
    }
    Ok(())
}

fn observe_tree(fs: &Arc<Fs>, volume: VolumeId, model: &mut Model, rng: &mut Rng) -> Seen<()> {
    let root = NodeId::root(volume);
    let mut names: BTreeMap<NodeId, u32> = BTreeMap::new();
    let mut waiting = vec![root];
    while let Some(id) = waiting.pop() {
        let node = observe_node(fs, id, rng).map_err(|e| format!("{id:?}: {e}"))?;
        if let Body::Directory(entries) = &node.body {
            for &child in entries.values() {
                let count = names.entry(child).or_default();
                *count += 1;
                if *count == 1 {
                    waiting.push(child);
                }
            }
        }
        model.nodes.insert(id, Arc::new(node));
    }
    for (id, count) in names {
        let Some(node) = model.nodes.get(&id) else { continue };
        let wanted = if node.kind == NodeKind::Directory { 1 } else { node.nlink };
        ensure(count == wanted, || format!("{id:?}: {count} names, {wanted} links"))?;
    }
    Ok(())
}

fn observe_node(fs: &Arc<Fs>, id: NodeId, rng: &mut Rng) -> Seen<Node> {
    let attr = fs.getattr(id).map_err(|e| format!("getattr: {e}"))?;
    ensure(attr.id == id, || format!("getattr tells of {:?}", attr.id))?;
    let body = match attr.kind {
        NodeKind::File => {
            let file = fs.open_file(id).map_err(|e| format!("open_file: {e}"))?;
            Body::File(observe_blocks(&file, &attr, rng)?)
        }
        NodeKind::Directory => Body::Directory(observe_entries(fs, id, rng)?),
        NodeKind::Symlink => Body::Symlink(fs.readlink(id).map_err(|e| format!("readlink: {e}"))?),
        _ => Body::Special,
    };
    let xattrs = observe_xattrs(fs, id)?;
    Ok(node_of(&attr, body, xattrs))
}

pub fn stamps_of(attr: &Attr) -> Stamps {
    Stamps { mtime: attr.mtime, ctime: attr.ctime, btime: attr.btime }
}

fn node_of(attr: &Attr, body: Body, xattrs: BTreeMap<Vec<u8>, Vec<u8>>) -> Node {
    let is_dir = attr.kind == NodeKind::Directory;
    Node {
        kind: attr.kind,
        mode: attr.mode,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        nlink: attr.nlink,
        generation: attr.generation,
        // How long a directory calls itself is its own affair.
        size: if is_dir { 0 } else { attr.size_bytes },
        stamps: stamps_of(attr),
        body,
        xattrs,
    }
}

fn observe_xattrs(fs: &Arc<Fs>, id: NodeId) -> Seen<BTreeMap<Vec<u8>, Vec<u8>>> {
    let names = fs.xattr_list(id).map_err(|e| format!("xattr_list: {e}"))?;
    let value = |name: Vec<u8>| {
        let value = fs.xattr_get(id, &name).map_err(|e| format!("xattr_get: {e}"))?;
        Ok((name, value))
    };
    names.into_iter().map(value).collect()
}

/// Lists a directory in steps of any length.
fn observe_entries(fs: &Arc<Fs>, dir: NodeId, rng: &mut Rng) -> Seen<BTreeMap<Vec<u8>, NodeId>> {
    let mut entries = BTreeMap::new();
    let mut cookie = 0;
    loop {
        let max = 1 + rng.index(40);
        let some = fs.readdir(dir, cookie, max).map_err(|e| format!("readdir: {e}"))?;
        ensure(some.len() <= max, || format!("readdir: {} entries, {max} asked", some.len()))?;
        let Some(last) = some.last() else { break };
        cookie = last.cookie;
        for entry in some {
            let found = fs.lookup(dir, &entry.name).map_err(|e| format!("lookup: {e}"))?;
            let told = (entry.id, entry.kind);
            ensure(told == (found.id, found.kind), || format!("listed {told:?}, found {found:?}"))?;
            ensure(entry.cookie > 15 && entry.cookie >> 63 == 0, || "a cookie's range".into())?;
            let again = entries.insert(entry.name, entry.id);
            ensure(again.is_none(), || format!("{dir:?} lists a name twice"))?;
        }
    }
    Ok(entries)
}

fn observe_blocks(file: &File, attr: &Attr, rng: &mut Rng) -> Seen<Blocks> {
    let size = attr.size_bytes;
    let mut blocks = Blocks::new();
    let mut at = 0;
    while let Some(data) = file.seek_data(at).map_err(|e| format!("seek_data: {e}"))? {
        let hole = file.seek_hole(data).map_err(|e| format!("seek_hole: {e}"))?;
        let whole = data % BLOCK == 0 && (hole % BLOCK == 0 || hole == size);
        ensure(data >= at && hole > data && hole <= size && whole, || {
            format!("from {at}: data at {data}, hole at {hole}, size {size}")
        })?;
        read_extent(file, data, hole, &mut blocks, rng)?;
        if at < data && size > READ_WHOLE_BYTES {
            ensure_zeros(file, data.saturating_sub(BLOCK).max(at), data)?;
            ensure_zeros(file, at, (at + BLOCK).min(data))?;
        }
        at = hole;
    }
    if size <= READ_WHOLE_BYTES {
        let got = read(file, 0, size as usize + 10)?;
        let model = of_blocks(&blocks, size);
        ensure(got == model, || "a hole that is not zeros, or bytes beyond the end".into())?;
    }
    let counted = blocks.len() as u64;
    ensure(attr.blocks >= counted, || format!("{counted} blocks, {} counted", attr.blocks))?;
    Ok(blocks)
}

/// Is what a file holds what a node of the model says?
pub fn has_blocks_of(file: &File, node: &Node) -> Seen<bool> {
    let attr = file.attr().map_err(|e| format!("attr: {e}"))?;
    let blocks = observe_blocks(file, &attr, &mut Rng::new(0))?;
    Ok(attr.size_bytes == node.size && Body::File(blocks) == node.body)
}

fn of_blocks(blocks: &Blocks, size: u64) -> Vec<u8> {
    let mut out = vec![0; size as usize];
    for (number, chunk) in blocks {
        let start = (number * BLOCK) as usize;
        let end = (start + BLOCK as usize).min(out.len());
        out[start..end].copy_from_slice(&chunk.bytes()[..end - start]);
    }
    out
}

fn read_extent(file: &File, start: u64, end: u64, blocks: &mut Blocks, rng: &mut Rng) -> Seen<()> {
    let mut at = start;
    while at < end {
        let len = (BLOCK * (1 + rng.below(300))).min(end - at);
        let got = read(file, at, len as usize)?;
        ensure(got.len() as u64 == len, || format!("read {} of {len} bytes", got.len()))?;
        for (number, bytes) in (at / BLOCK..).zip(got.chunks(BLOCK as usize)) {
            blocks.insert(number, Chunk::new(bytes));
        }
        at += len;
    }
    Ok(())
}

fn ensure_zeros(file: &File, start: u64, end: u64) -> Seen<()> {
    let got = read(file, start, (end - start) as usize)?;
    ensure(got.iter().all(|&b| b == 0), || format!("the hole at {start} is not zeros"))
}

pub fn read(file: &File, offset: u64, len: usize) -> Seen<Vec<u8>> {
    let mut out = vec![0xEE; len];
    let got = file.read_at(offset, &mut out).map_err(|e| format!("read_at {offset}+{len}: {e}"))?;
    ensure(got <= len, || format!("read_at answers {got} of {len}"))?;
    out.truncate(got);
    Ok(out)
}

pub fn ensure(fine: bool, say: impl FnOnce() -> String) -> Seen<()> {
    match fine {
        true => Ok(()),
        false => Err(say()),
    }
}

/// The first few differences between what should be and what is.
pub fn differences(wanted: &Model, seen: &Model) -> String {
    let mut out = Vec::new();
    if wanted.volumes != seen.volumes {
        out.push(format!("volumes {:?}, seen {:?}", wanted.volumes, seen.volumes));
    }
    let snapshots = |m: &Model| m.all_snaps().map(|s| format!("{s:?}")).collect::<Vec<_>>();
    if snapshots(wanted) != snapshots(seen) {
        out.push(format!("snapshots {:?}, seen {:?}", snapshots(wanted), snapshots(seen)));
    }
    for (id, node) in &wanted.nodes {
        match seen.nodes.get(id) {
            None => out.push(format!("{id:?} ({:?}, {} bytes) is missing", node.kind, node.size)),
            Some(other) if other != node => out.push(format!("{id:?}: {}", unlike(node, other))),
            _ => {}
        }
    }
    let more = seen.nodes.keys().filter(|id| !wanted.nodes.contains_key(id));
    out.extend(more.map(|id| format!("{id:?} should not be there")));
    let total = out.len();
    out.truncate(8);
    format!("{total} differences: {}", out.join("; "))
}

fn unlike(wanted: &Node, seen: &Node) -> String {
    let mut out = Vec::new();
    let plain = |node: &Node| {
        let owner = (node.mode, node.uid, node.gid, node.rdev);
        (node.kind, owner, node.nlink, node.generation, node.size, node.stamps)
    };
    if plain(wanted) != plain(seen) {
        out.push(format!("attributes {:?}, seen {:?}", plain(wanted), plain(seen)));
    }
    match (&wanted.body, &seen.body) {
        (Body::File(a), Body::File(b)) if a != b => {
            let at: Vec<_> = a.keys().chain(b.keys()).filter(|n| a.get(n) != b.get(n)).collect();
            let (first, kind) = (at[0], |blocks: &Blocks| blocks.contains_key(at[0]));
            let bytes = a.get(first).zip(b.get(first)).map(|(x, y)| {
                let differ = (0..BLOCK as usize).filter(|&i| x.bytes()[i] != y.bytes()[i]);
                (differ.clone().min(), differ.max())
            });
            out.push(format!(
                "{} blocks differ, the first {first} (data: {}, seen {}), bytes {bytes:?}",
                at.len(),
                kind(a),
                kind(b)
            ));
        }
        (Body::Directory(a), Body::Directory(b)) if a != b => {
            let only = |x: &BTreeMap<Vec<u8>, NodeId>, y: &BTreeMap<Vec<u8>, NodeId>| {
                let names = x.iter().filter(|(name, id)| y.get(*name) != Some(id));
                let some = names.map(|(n, id)| format!("{}={}", n.escape_ascii(), id.ino));
                some.take(5).collect::<Vec<_>>()
            };
            out.push(format!("entries missing {:?}, too many {:?}", only(a, b), only(b, a)));
        }
        (a, b) if a != b => out.push("contents".to_string()),
        _ => {}
    }
    if wanted.xattrs != seen.xattrs {
        out.push("extended attributes".to_string());
    }
    out.join(", ")
}
