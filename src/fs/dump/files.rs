//! Volumes, inodes, and what inodes hold.

use super::{bucket, object, pointer, Object, Value};
use crate::device::BLOCK_BYTES;
use crate::fs::core::{Core, TABLE};
use crate::fs::error::{Error, Result};
use crate::fs::types::*;
use fs_layout::{
    count_in, DeadEntry, Inode, InodeKind, Pointer, COUNTS_PER_BLOCK, DEAD_ENTRY_BYTES,
    INODES_PER_BLOCK, INODE_BYTES, POINTERS_PER_NODE,
};

const FAN: u64 = POINTERS_PER_NODE as u64;

/// Names of volumes, snapshots and bookmarks, and all inodes of the volume table.
pub(super) fn volumes(core: &Core) -> Result<Object> {
    let mut out = volume(core, TABLE.0)?;
    out.name = "volume table".into();
    for (id, name) in core.version_names() {
        out.put(if id == VolumeId::TREE { "/" } else { &name }, u64::from(id.0));
    }
    Ok(out)
}

/// There is no such volume or inode: in words that name it.
fn gone(e: Error, what: String) -> Error {
    match e {
        Error::Stale | Error::NotFound => Error::Format(format!("there is no {what}")),
        e => e,
    }
}

/// All inodes of a volume.
pub(super) fn volume(core: &Core, volume: u32) -> Result<Object> {
    let file = core.inode_file(VolumeId(volume));
    let file = file.map_err(|e| gone(e, format!("volume {volume}")))?;
    let record = {
        let s = file.state.read();
        s.meta
    };
    let mut out = object(format!("volume {volume}"), &record);
    let mut blocks = Vec::new();
    leaves(core, &record, &mut |block, p| blocks.push((block, *p)));
    for (block, p) in blocks {
        let first = block * INODES_PER_BLOCK;
        let data = match core.store.read(&p) {
            Ok(data) => data,
            Err(e) => {
                let part = Object::new(format!("inodes from {first}")).with("error", e);
                out.parts.push(part);
                continue;
            }
        };
        for (i, raw) in data.bytes.0.chunks_exact(INODE_BYTES).enumerate() {
            let name = format!("inode {}", first + i as u64);
            match Inode::decode(raw) {
                Ok(inode) if inode.kind == InodeKind::Free => {}
                _ if out.is_full() => return Ok(out.with("more", "not shown")),
                Ok(inode) => out.parts.push(object(name, &inode)),
                Err(e) => out.parts.push(Object::new(name).with("error", e)),
            }
        }
    }
    Ok(out)
}

/// Each data block of an inode, as far as its nodes can be read.
fn leaves(core: &Core, inode: &Inode, leaf: &mut dyn FnMut(u64, &Pointer)) {
    let mut waiting = vec![(inode.root, inode.height, 0)];
    while let Some((p, height, base)) = waiting.pop() {
        if p.is_hole() {
            continue;
        }
        if height == 0 {
            leaf(base, &p);
            continue;
        }
        let Ok(node) = core.store.read(&p) else { continue };
        let below = (0..POINTERS_PER_NODE).rev();
        waiting.extend(below.filter_map(|i| {
            let below = p.child(&node.bytes.0, i).ok()?;
            Some((below, height - 1, base * FAN + i as u64))
        }));
    }
}

/// An inode with its tree and content.
pub(super) fn inode(core: &Core, volume: u32, ino: u64) -> Result<Object> {
    let id = NodeId { volume: VolumeId(volume), ino };
    let record = match id.volume == TABLE && ino == 0 {
        true => core.cp.lock().root.volume_table,
        false => {
            let found = core.read_inode(id);
            found.map_err(|e| gone(e, format!("inode {ino} in volume {volume}")))?
        }
    };
    let mut out = object(format!("volume {volume} inode {ino}"), &record);
    if record.kind == InodeKind::Free {
        return Ok(out);
    }
    let mut nodes = Object::new("tree");
    tree(core, &record.root, record.height, 0, &mut nodes);
    out.parts.push(nodes);
    content(core, &record, &mut out);
    Ok(out)
}

/// Nodes, and runs of data blocks that continue one another.
fn tree(core: &Core, p: &Pointer, height: u8, base: u64, out: &mut Object) {
    if p.is_hole() || out.is_full() {
        return;
    }
    if height == 0 {
        let last = out.parts.last().filter(|l| l.name == "data");
        let field = |l: &Object, i: usize| match l.fields.get(i)?.1 {
            Value::Number(n) => Some(n),
            _ => None,
        };
        let run = last.and_then(|l| Some((field(l, 0)?, field(l, 1)?, field(l, 2)?)));
        match (run, out.parts.last_mut()) {
            (Some((first, count, block)), Some(l))
                if first + count == base && block + count == p.block =>
            {
                if let Some(f) = l.fields.get_mut(1) {
                    f.1 = (count + 1).into();
                }
            }
            _ => {
                let data = Object::new("data").with("first", base).with("count", 1);
                out.parts.push(data.with("block", p.block).with("birth", p.birth));
            }
        }
        return;
    }
    let name = format!("node of height {height} from {}", base * FAN.pow(u32::from(height)));
    let mut shown = pointer(name, p);
    match core.store.read(p) {
        Ok(node) => {
            for i in 0..POINTERS_PER_NODE {
                if let Ok(below) = p.child(&node.bytes.0, i) {
                    tree(core, &below, height - 1, base * FAN + i as u64, &mut shown);
                }
            }
        }
        Err(e) => shown.put("error", e.to_string()),
    }
    out.parts.push(shown);
}

/// What directories, extended attributes, dead lists and symbolic links hold.
fn content(core: &Core, record: &Inode, out: &mut Object) {
    let mut blocks = Vec::new();
    if !matches!(record.kind, InodeKind::File | InodeKind::Version) {
        leaves(core, record, &mut |block, p| blocks.push((block, *p)));
    }
    let mut bytes = Vec::new();
    for (block, p) in blocks {
        match core.store.read(&p) {
            Ok(data) if record.kind == InodeKind::Counts => counts(block, &data.bytes.0, out),
            Ok(data) if record.kind == InodeKind::Directory => {
                let mut shown = bucket(&data.bytes);
                shown.name = format!("bucket at {block}");
                out.parts.push(shown);
            }
            Ok(data) => bytes.extend_from_slice(&data.bytes.0),
            Err(e) => {
                bytes.extend_from_slice(&[0; BLOCK_BYTES]);
                out.parts.push(Object::new(format!("block {block}")).with("error", e));
            }
        }
    }
    bytes.truncate(record.size as usize);
    match record.kind {
        InodeKind::Symlink => out.put("target", String::from_utf8_lossy(&bytes).into_owned()),
        InodeKind::Xattrs => xattrs(&bytes, out),
        InodeKind::DeadList => {
            for raw in bytes.chunks_exact(DEAD_ENTRY_BYTES) {
                let Ok(raw) = <&[u8; DEAD_ENTRY_BYTES]>::try_from(raw) else { continue };
                let Ok(entry) = DeadEntry::decode(raw) else { continue };
                if !out.is_full() {
                    out.parts.push(object("entry", &entry));
                }
            }
        }
        _ => {}
    }
}

/// A block of counts: the blocks of the pool that are counted.
fn counts(page: u64, raw: &[u8; BLOCK_BYTES], out: &mut Object) {
    for block in page * COUNTS_PER_BLOCK..(page + 1) * COUNTS_PER_BLOCK {
        let count = count_in(raw, block);
        if count != 0 && !out.is_full() {
            let part = Object::new("cloned").with("block", block);
            out.parts.push(part.with("times", count));
        }
    }
}

fn xattrs(mut bytes: &[u8], out: &mut Object) {
    while let Some((head, rest)) = bytes.split_first_chunk::<6>() {
        let name_len = usize::from(u16::from_le_bytes([head[0], head[1]]));
        let len = u32::from_le_bytes([head[2], head[3], head[4], head[5]]) as usize;
        let (Some(name), Some(value)) =
            (rest.get(..name_len), rest.get(name_len..name_len.saturating_add(len)))
        else {
            return out.put("error", "the attributes end early".to_string());
        };
        let hex: String = value.iter().map(|b| format!("{b:02x}")).collect();
        let name = String::from_utf8_lossy(name).into_owned();
        let attribute = Object::new("attribute").with_text("name", name);
        out.parts.push(attribute.with_text("value", hex));
        bytes = rest.get(name_len + len..).unwrap_or_default();
    }
}

/// `VOLUME/path`, `VOLUME@SNAPSHOT/path`, or `/path` in the ordinary tree.
pub(super) fn by_name(core: &Core, name: &str) -> Result<Object> {
    let (first, path) = name.split_once('/').unwrap_or((name, ""));
    let volume = match first {
        "" => VolumeId::TREE,
        first => {
            let all = core.version_names();
            let found = all.iter().find(|(_, name)| *name == first).map(|(id, _)| *id);
            found.ok_or(Error::NotFound)?
        }
    };
    let mut at = NodeId::root(volume);
    for part in path.split('/').filter(|p| !p.is_empty()) {
        let dir = core.inode(at)?;
        let found = core.dir_find(&dir, part.as_bytes())?.ok_or(Error::NotFound)?;
        at = NodeId { volume, ino: found.ino };
    }
    inode(core, at.volume.0, at.ino)
}
