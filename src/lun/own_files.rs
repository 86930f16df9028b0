//! Files that lunfs keeps for itself in the pool: in a volume of their own, which the mount does
//! not show. Its name begins with a dot, as no LUN's does.

use crate::fs::{self, File, Fs, NewNode, NodeId, Owner};
use std::sync::Arc;

const VOLUME: &str = ".lunfs";

/// Opens one, if it is there.
pub fn find_own(fs: &Arc<Fs>, name: &[u8]) -> fs::Result<Option<File>> {
    let Some(volume) = fs.volume_lookup(VOLUME)? else {
        return Ok(None);
    };
    match fs.lookup(NodeId::root(volume), name) {
        Ok(attr) => fs.open_file(attr.id).map(Some),
        Err(fs::Error::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes one, that nobody but its owner may read.
pub fn make_own(fs: &Arc<Fs>, name: &[u8]) -> fs::Result<File> {
    let owner = |mode| Owner { mode, uid: 0, gid: 0 };
    let volume = match fs.volume_lookup(VOLUME)? {
        Some(volume) => volume,
        None => fs.volume_create(VOLUME, owner(0o700))?,
    };
    let made = fs.create(NodeId::root(volume), name, NewNode::File, owner(0o600))?;
    fs.open_file(made.id)
}
