//! Any on-disk object as text or as a tree of fields, as it is on disk: the log is not replayed and
//! nothing is written. Nothing is trusted but what its checksum confirms; what is bad says so.

mod debug;
mod files;
mod pool;
mod versions;

use super::core::Core;
use super::error::{Error, Result};
use super::pool::OpenOptions;
use super::recovery;
use crate::device::{Block, BlockDevice};
use debug::object;
use fs_layout::{DirBucket, GroupHead, Inode, Label, Pointer, Root, SegmentMapPage};
use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::Arc;

/// Parts of one object that are shown: a file of a terabyte is not printed block by block.
pub(crate) const MAX_PARTS: usize = 10_000;

/// What to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Labels and roots of every device, the segment map, the scrub's record.
    Overview,
    /// A block of the pool, as what it seems to be or as asked.
    Block(u64, As),
    /// A block of a device, by its number.
    Device(u16, u64, As),
    /// The free-space map: tables and pages.
    Space,
    /// The log after the root: heads and what their payloads say.
    Log,
    /// The volume table: names and version records.
    Volumes,
    /// The tree of versions: live ones, snapshots, deleted ones, bookmarks, with their dead lists.
    Versions,
    /// What was detached and waits to be freed.
    Dead,
    /// All inodes of a volume.
    Volume(u32),
    /// One inode with its tree and what it holds.
    Inode(u32, u64),
    /// The same by name: `VOLUME/path`, `VOLUME@SNAPSHOT/path`, or `/path` in the ordinary tree.
    Name(String),
}

/// How to read a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum As {
    /// What its magic says, or what it decodes as; else hexadecimal.
    Guess,
    /// A tree node.
    Node,
    /// A block of inodes.
    Inodes,
}

/// What a field is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Nothing is there.
    Null,
    /// Yes or no.
    Bool(bool),
    /// A number.
    Number(u64),
    /// A word, a time (RFC 3339), bytes in hexadecimal.
    Text(String),
    /// Several.
    List(Vec<Value>),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Value::Null => f.write_str("-"),
            Value::Bool(b) => write!(f, "{b}"),
            Value::Number(n) => write!(f, "{n}"),
            Value::Text(text) => f.write_str(text),
            Value::List(all) => {
                let one = |v: &Value| match v {
                    Value::List(_) => format!("[{v}]"),
                    v => v.to_string(),
                };
                f.write_str(&all.iter().map(one).collect::<Vec<_>>().join(" "))
            }
        }
    }
}

impl From<u64> for Value {
    fn from(n: u64) -> Value {
        Value::Number(n)
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::Text(text)
    }
}

/// Something shown: a name, fields, and parts of the same kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Object {
    /// What it is.
    pub name: String,
    /// Its fields in order.
    pub fields: Vec<(String, Value)>,
    /// What it consists of.
    pub parts: Vec<Object>,
}

impl Object {
    fn new(name: impl Into<String>) -> Object {
        Object { name: name.into(), ..Object::default() }
    }

    fn put(&mut self, name: &str, value: impl Into<Value>) {
        self.fields.push((name.to_string(), value.into()));
    }

    /// A field of what prints as a number or as text.
    fn with(mut self, name: &str, value: impl fmt::Display) -> Object {
        let text = value.to_string();
        match text.parse::<u64>() {
            Ok(n) => self.put(name, n),
            Err(_) => self.put(name, text),
        }
        self
    }

    fn with_text(mut self, name: &str, text: impl Into<String>) -> Object {
        self.put(name, text.into());
        self
    }

    /// Adds a part; one that is a lone value becomes a field.
    fn take(&mut self, part: Object) {
        match part.fields.as_slice() {
            [(name, value)] if name.is_empty() && part.parts.is_empty() => {
                self.put(&part.name, value.clone())
            }
            _ => self.parts.push(part),
        }
    }

    fn is_full(&self) -> bool {
        self.parts.len() >= MAX_PARTS
    }

    fn show(&self, depth: usize, f: &mut fmt::Formatter) -> fmt::Result {
        let fields: Vec<String> =
            self.fields.iter().map(|(n, v)| format!("{n} {v}").trim().to_string()).collect();
        writeln!(f, "{:1$}{2}: {3}", "", 2 * depth, self.name, fields.join(", "))?;
        self.parts.iter().try_for_each(|part| part.show(depth + 1, f))
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.show(0, f)
    }
}

/// Shows what is on the devices.
pub fn dump(devices: &[Arc<dyn BlockDevice>], what: &What) -> Result<Object> {
    match what {
        What::Overview => return Ok(pool::overview(devices)),
        What::Device(device, at, how) => {
            let found = devices.get(usize::from(*device));
            let found = found.ok_or(Error::Invalid("the pool has no such device"))?;
            let raw = super::labels::read_one(found, *at)?;
            let shown = block(&raw, *how).map_err(|e| is_none(*at, e))?;
            return Ok(shown.with_text("device", found.name()).with("block", at));
        }
        _ => {}
    }
    let open = OpenOptions { degraded: true, ..OpenOptions::default() };
    let core = recovery::load(devices.to_vec(), &open, true)?.core;
    core.store.heals.store(false, Ordering::Relaxed);
    core.load_reclaim()?;
    match what {
        What::Block(at, how) => pool_block(&core, *at, *how),
        What::Space => Ok(pool::space(&core)),
        What::Log => pool::log(&core),
        What::Volumes => files::volumes(&core),
        What::Versions => versions::versions(&core),
        What::Dead => Ok(pool::dead(&core)),
        What::Volume(volume) => files::volume(&core, *volume),
        What::Inode(volume, ino) => files::inode(&core, *volume, *ino),
        What::Name(name) => files::by_name(&core, name),
        What::Overview | What::Device(..) => Err(Error::Invalid("not of a pool")),
    }
}

/// Every copy of a pool block: the first one that can be read is shown, all are compared.
fn pool_block(core: &Core, at: u64, how: As) -> Result<Object> {
    let blocks = core.space.blocks();
    if at >= blocks {
        return Err(Error::Format(format!("the pool has {blocks} blocks")));
    }
    let Ok((copies, _)) = core.store.locate(at, 1) else {
        let what = format!("block {at} is no block of the pool's data");
        return Err(Error::Format(format!("{what}; device:0:{at} is one of a device")));
    };
    let mut shown: Option<(Object, Box<Block>)> = None;
    let mut places = Vec::new();
    for (device, place) in copies {
        let mut raw = [Block::zeroed()];
        let read = core.store.read_device(device, place, &mut raw);
        let [raw] = raw;
        let state = match (&read, &shown) {
            (Err(e), _) => e.to_string(),
            (Ok(()), Some((_, first))) if first.0 != raw.0 => "another content".into(),
            _ => format!("crc {:08x}", crc32c::crc32c(&raw.0)),
        };
        let copy = Object::new("copy").with("device", device).with("block", place);
        places.push(copy.with("state", state));
        if read.is_ok() && shown.is_none() {
            shown = Some((block(&raw, how).map_err(|e| is_none(at, e))?, raw));
        }
    }
    let shown = shown.map_or(Object::new("block"), |(object, _)| object);
    let mut shown = shown.with("block", at);
    shown.parts.splice(0..0, places);
    Ok(shown)
}

fn is_none(at: u64, of: &str) -> Error {
    Error::Format(format!("block {at} is no {of}"))
}

/// A block's bytes as what they seem to be; what they are not, where they were asked for as that.
fn block(raw: &Block, how: As) -> std::result::Result<Object, &'static str> {
    let b = &raw.0;
    Ok(match &b[..8] {
        _ if how == As::Node => return seems_node(raw).then(|| node(raw)).ok_or("node"),
        _ if how == As::Inodes => {
            return seems_inodes(raw).then(|| inodes(raw)).ok_or("block of inodes")
        }
        b"LUNFSLAB" => object("label", &Label::decode(b)),
        b"LUNFSROT" => object("root", &Root::decode(b)),
        // The chain's seed is not known here: the fields are shown unchecked.
        b"LUNFSGRP" => object("group head", &GroupHead::decode_unchecked(b)),
        start if start.starts_with(b"LFDB") => bucket(raw),
        start if start.starts_with(b"LFSM") => object("segment map", &SegmentMapPage::decode(b)),
        _ if seems_inodes(raw) => inodes(raw),
        _ if seems_node(raw) => node(raw),
        _ => bytes(raw),
    })
}

/// Inodes decode, and one is in use.
fn seems_inodes(raw: &Block) -> bool {
    let all: Vec<_> = raw.0.chunks_exact(fs_layout::INODE_BYTES).map(Inode::decode).collect();
    let used = |i: &Inode| i.kind != fs_layout::InodeKind::Free && i.generation > 0 && i.btime > 0;
    let free = |i: &Inode| i.kind == fs_layout::InodeKind::Free;
    all.iter().all(|i| i.as_ref().is_ok_and(|i| used(i) || free(i)))
        && all.iter().any(|i| i.as_ref().is_ok_and(used))
}

/// All pointers decode, those that are no holes have a birth, and none stands twice.
fn seems_node(raw: &Block) -> bool {
    let pointers: Vec<_> =
        (0..fs_layout::POINTERS_PER_NODE).map(|i| Pointer::in_node(&raw.0, i)).collect();
    let mut blocks = std::collections::BTreeSet::new();
    let mut fine = |p: &Pointer| p.is_hole() || (p.birth > 0 && blocks.insert(p.block));
    pointers.iter().all(|p| p.as_ref().is_ok_and(&mut fine)) && !blocks.is_empty()
}

fn node(raw: &Block) -> Object {
    let mut out = Object::new("node");
    for i in 0..fs_layout::POINTERS_PER_NODE {
        match Pointer::in_node(&raw.0, i) {
            Ok(p) if p == Pointer::default() => {}
            Ok(p) => out.parts.push(pointer(format!("slot {i}"), &p)),
            Err(e) => out.parts.push(Object::new(format!("slot {i}")).with("error", e)),
        }
    }
    out
}

fn pointer(name: String, p: &Pointer) -> Object {
    let crc = format!("{:08x}", p.crc);
    let out = Object::new(name).with("block", p.block).with("birth", p.birth).with_text("crc", crc);
    if p.cloned {
        return out.with("cloned", true);
    }
    out
}

fn inodes(raw: &Block) -> Object {
    let mut out = Object::new("inodes");
    for (i, bytes) in raw.0.chunks_exact(fs_layout::INODE_BYTES).enumerate() {
        match Inode::decode(bytes) {
            Ok(inode) if inode.kind == fs_layout::InodeKind::Free => {}
            decoded => out.parts.push(object(format!("slot {i}"), &decoded)),
        }
    }
    out
}

fn bucket(raw: &Block) -> Object {
    let decoded = match DirBucket::decode(&raw.0) {
        Ok(bucket) => bucket,
        Err(e) => return Object::new("bucket").with("error", e),
    };
    let mut out = Object::new("bucket").with("depth", decoded.depth);
    for e in &decoded.entries {
        let name = String::from_utf8_lossy(&e.name).into_owned();
        let entry = Object::new("entry").with_text("name", name);
        let cookie = format!("{:016x}", e.cookie);
        let entry = entry.with("inode", e.ino).with("kind", e.kind);
        out.parts.push(entry.with_text("cookie", cookie));
    }
    out
}

fn bytes(raw: &Block) -> Object {
    if raw.0.iter().all(|b| *b == 0) {
        return Object::new("zeros");
    }
    let mut out = Object::new("bytes");
    for (i, line) in raw.0.chunks(32).enumerate() {
        let hex: String = line.iter().map(|v| format!("{v:02x}")).collect();
        out.put(&format!("{:03x}", i * 32), hex);
    }
    out
}
