//! Files that lunfs keeps for itself: in a volume whose name begins with a dot, as no LUN's does
//! and which the mount does not show.
//!
//! Invariant: a file is replaced by one atomic write; after a crash it is the old text or the new.

use crate::fs::{self, File, Fs, NewNode, NodeId, Owner};
use std::sync::Arc;
use zeroize::Zeroizing;

const VOLUME: &str = ".lunfs";
/// Longest text: what one atomic write can replace.
pub const MAX_PRIVATE_BYTES: usize = fs::ATOMIC_WRITE_BYTES;

/// Reads a file; empty where there is none, or where a crash came between making and writing it.
pub fn load_private(fs: &Arc<Fs>, name: &str) -> fs::Result<Zeroizing<Vec<u8>>> {
    let Some(file) = find(fs, name)? else {
        return Ok(Zeroizing::default());
    };
    let size = file.size_bytes();
    if size > MAX_PRIVATE_BYTES as u64 {
        return Err(fs::Error::TooBig);
    }
    let mut bytes = Zeroizing::new(vec![0; size as usize]);
    let count = file.read_at(0, &mut bytes)?;
    bytes.truncate(count);
    Ok(bytes)
}

/// Replaces a file's text, at most [`MAX_PRIVATE_BYTES`]; durable on return. The text ends in
/// newlines where the old one was longer, if a crash comes before it is cut.
pub fn save_private(fs: &Arc<Fs>, name: &str, mut text: Zeroizing<Vec<u8>>) -> fs::Result<()> {
    if text.len() > MAX_PRIVATE_BYTES {
        return Err(fs::Error::TooBig);
    }
    let file = match find(fs, name)? {
        Some(file) => file,
        None => make(fs, name)?,
    };
    let old = usize::try_from(file.size_bytes()).unwrap_or(usize::MAX);
    let length = text.len();
    text.resize(length.max(old.min(MAX_PRIVATE_BYTES)), b'\n');
    file.write_at(0, &text)?;
    file.set_size(length as u64)?;
    fs.sync()
}

fn find(fs: &Arc<Fs>, name: &str) -> fs::Result<Option<File>> {
    let Some(volume) = fs.volume_lookup(VOLUME)? else {
        return Ok(None);
    };
    match fs.lookup(NodeId::root(volume), name.as_bytes()) {
        Ok(attr) => fs.open_file(attr.id).map(Some),
        Err(fs::Error::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

fn make(fs: &Arc<Fs>, name: &str) -> fs::Result<File> {
    let owner = |mode| Owner { mode, uid: 0, gid: 0 };
    let volume = match fs.volume_lookup(VOLUME)? {
        Some(volume) => volume,
        None => fs.volume_create(VOLUME, owner(0o700))?,
    };
    let root = NodeId::root(volume);
    let made = fs.create(root, name.as_bytes(), NewNode::File, owner(0o600))?;
    fs.open_file(made.id)
}
