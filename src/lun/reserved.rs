//! Files of lunfs' own in the pool: in a volume that the mount does not show, as its name begins
//! with a dot.

use super::event_log;
use crate::fs::{self, File, Fs, NewNode, NodeId, Owner};
use std::sync::Arc;

/// The volume.
const VOLUME: &str = ".lunfs";

/// A file of lunfs' own, if it was ever made.
pub fn find_own_file(fs: &Arc<Fs>, name: &[u8]) -> fs::Result<Option<File>> {
    let Some(volume) = fs.volume_lookup(VOLUME)? else {
        return Ok(None);
    };
    match fs.lookup(NodeId::root(volume), name) {
        Ok(attr) => fs.open_file(attr.id).map(Some),
        Err(fs::Error::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// As [`find_own_file`]; it is made where it is not there.
pub fn own_file(fs: &Arc<Fs>, name: &[u8]) -> fs::Result<File> {
    if let Some(file) = find_own_file(fs, name)? {
        return Ok(file);
    }
    let owner = |mode| Owner { mode, uid: 0, gid: 0 };
    let volume = match fs.volume_lookup(VOLUME)? {
        Some(volume) => volume,
        None => fs.volume_create(VOLUME, owner(0o700))?,
    };
    let made = fs.create(NodeId::root(volume), name, NewNode::File, owner(0o600))?;
    fs.open_file(made.id)
}

/// What one of them holds, at most [`fs::ATOMIC_WRITE_BYTES`] of it; `None`: it was never made.
pub(super) fn read_own_file(fs: &Arc<Fs>, name: &[u8]) -> fs::Result<Option<Vec<u8>>> {
    let Some(file) = find_own_file(fs, name)? else { return Ok(None) };
    let mut bytes = vec![0; file.size_bytes().min(fs::ATOMIC_WRITE_BYTES as u64) as usize];
    let count = file.read_at(0, &mut bytes)?;
    bytes.truncate(count);
    Ok(Some(bytes))
}

/// Makes `bytes` what it holds, whole under a crash; made where it is not there.
pub(super) fn replace_own_file(fs: &Arc<Fs>, name: &[u8], bytes: &[u8]) -> fs::Result<()> {
    event_log::replace(&own_file(fs, name)?, bytes)
}
