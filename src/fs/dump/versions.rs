//! The tree of versions.

use super::{Object, Value};
use crate::fs::core::{Core, TABLE};
use crate::fs::error::{Error, Result};
use crate::fs::named::is_frozen;
use crate::fs::types::*;
use fs_layout::{
    Inode, InodeKind, DEAD_ENTRY_BYTES, VERSION_CONSISTENT, VERSION_DELETED, VERSION_HELD,
};

/// Every version and bookmark of the volume table, with its name and its dead list.
pub(super) fn versions(core: &Core) -> Result<Object> {
    let names = core.version_names();
    let doomed = core.cp.lock().doomed.clone();
    let mut out = Object::new("versions");
    let end = core.volume(TABLE)?.peek_ino();
    for ino in u64::from(VolumeId::TREE.0)..end {
        let record = match core.read_inode(NodeId { volume: TABLE, ino }) {
            Ok(record) => record,
            Err(Error::Stale) => continue,
            Err(e) => {
                out.parts.push(Object::new(format!("inode {ino}")).with("error", e));
                continue;
            }
        };
        let name = u32::try_from(ino).ok().and_then(|id| names.get(&VolumeId(id)));
        let name = match name.map(String::as_str) {
            Some("") => Value::Text("/".into()),
            Some(name) => Value::Text(name.into()),
            None => Value::Null,
        };
        if out.is_full() {
            return Ok(out.with_text("more", "not shown"));
        }
        match record.kind {
            InodeKind::Version => {
                let mut part = version(core, ino, &record, name);
                part.put("waits", Value::Bool(doomed.contains(&ino)));
                out.parts.push(part);
            }
            InodeKind::Bookmark => {
                let mut part = Object::new(format!("bookmark {ino}"));
                part.put("name", name);
                let part = part.with("epoch", record.version.epoch);
                out.parts.push(part.with("of", record.version.branch));
            }
            _ => {}
        }
    }
    Ok(out)
}

fn version(core: &Core, ino: u64, record: &Inode, name: Value) -> Object {
    let part = &record.version;
    let state = match (part.flags & VERSION_DELETED != 0, is_frozen(record)) {
        (true, _) => "deleted",
        (false, true) => "snapshot",
        (false, false) => "live",
    };
    let or_null = |n: u64| if n == 0 { Value::Null } else { Value::Number(n) };
    let time = |ns: i64| match ns {
        0 => Value::Null,
        ns => Value::Text(Timestamp(ns).to_string()),
    };
    let list = NodeId { volume: TABLE, ino: part.dead_list };
    let entries = match part.dead_list {
        0 => Ok(0),
        _ => core.read_inode(list).map(|list| list.size / DEAD_ENTRY_BYTES as u64),
    };
    let mut out = Object::new(format!("version {ino}"));
    out.put("name", name);
    out.put("state", state.to_string());
    out.put("created", time(record.btime));
    out.put("epoch", or_null(part.epoch));
    out.put("parent", or_null(part.parent));
    out.put("first_child", or_null(part.first_child));
    out.put("sibling", or_null(part.sibling));
    out.put("held", Value::Bool(part.flags & VERSION_HELD != 0));
    out.put("hold_until", time(part.hold_until));
    out.put("consistent", Value::Bool(part.flags & VERSION_CONSISTENT != 0));
    out.put("snapshots", or_null(part.snapshots));
    out.put("dead_list", or_null(part.dead_list));
    match entries {
        Ok(entries) => out.put("dead_entries", entries),
        Err(e) => out.put("dead_entries", e.to_string()),
    }
    out.put("inode_file", Value::Number(record.root.block));
    out
}
