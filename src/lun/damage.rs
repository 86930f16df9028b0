//! What cannot be read: the places whose blocks do not match their checksums, as readers and scrubs
//! met them.
//!
//! Invariants: a place is listed once, and as new again only when another disk block behind it is
//! bad; at most [`MAX_PLACES`] are listed, the others are counted. What is gone, or can be read
//! again, leaves the list when it is looked at. The list stands in a file of the pool, written when
//! it changes, so that it outlives a restart; where it cannot be written it is that of this
//! process.

use super::reserved::{read_own_file, replace_own_file};
use crate::device::BLOCK_BYTES;
use crate::fs::{self, Attr, Fs, NodeId, Timestamp};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Places that are listed. More tell an operator nothing new, and each costs memory.
pub const MAX_PLACES: usize = 256;
/// A listed place is read again after so long although its file did not change: another copy of
/// the block may have come back.
const LOOK_AGAIN_NS: i64 = 60_000_000_000;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// Where in a file: the first byte of a block, or nothing where a directory or a node is bad.
type Key = (NodeId, Option<u64>);

/// A place that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadPlace {
    /// The file.
    pub node: NodeId,
    /// Its first byte in the file; `None`: what is bad is not a block of the file's bytes.
    pub offset_bytes: Option<u64>,
    /// The disk block.
    pub block: u64,
    /// When it was met first.
    pub since: Timestamp,
}

#[derive(Clone, Copy)]
struct Known {
    block: u64,
    since: Timestamp,
    /// When it was found bad last, and what the file's ctime was then.
    checked: (Timestamp, Option<Timestamp>),
}

/// The list.
#[derive(Default)]
pub(super) struct Damage {
    places: Mutex<(BTreeMap<Key, Known>, u64)>,
    /// Held while the file is written, so that the last one to write knows all.
    writing: Mutex<()>,
}

/// Its file in the pool.
const FILE: &[u8] = b"bad-places";

/// A place as the file has it.
#[derive(Serialize, Deserialize)]
struct Entry {
    volume: u32,
    inode: u64,
    offset_bytes: Option<u64>,
    block: u64,
    since: i64,
}

impl Damage {
    /// A reader met a bad block. Whether it is news.
    pub fn note(&self, node: NodeId, offset: Option<u64>, block: u64, now: Timestamp) -> bool {
        let key = (node, offset.map(|at| at - at % BLOCK));
        let mut places = self.places.lock();
        let (known, unlisted) = &mut *places;
        if known.get(&key).is_some_and(|known| known.block == block) {
            return false;
        }
        if known.len() >= MAX_PLACES && !known.contains_key(&key) {
            *unlisted += 1;
            return false;
        }
        known.insert(key, Known { block, since: now, checked: (now, None) });
        true
    }

    /// What the pool's file says: it is looked at again before it is told.
    pub fn load(&self, fs: &Arc<Fs>) {
        let Ok(Some(text)) = read_own_file(fs, FILE) else { return };
        // One that makes no sense tells nothing; what is bad is met again.
        let all: Vec<Entry> = serde_json::from_slice(&text).unwrap_or_default();
        let known = |e: &Entry| {
            let node = fs::NodeId { volume: fs::VolumeId(e.volume), ino: e.inode };
            let (since, never) = (Timestamp(e.since), Timestamp(i64::MIN));
            let known = Known { block: e.block, since, checked: (never, None) };
            ((node, e.offset_bytes), known)
        };
        self.places.lock().0.extend(all.iter().take(MAX_PLACES).map(known));
    }

    /// Writes the list into the pool's file. A pool that takes no writes keeps the old one.
    pub fn keep(&self, fs: &Arc<Fs>) {
        let _writing = self.writing.lock();
        let entry = |((node, offset), known): (&Key, &Known)| Entry {
            volume: node.volume.0,
            inode: node.ino,
            offset_bytes: *offset,
            block: known.block,
            since: known.since.0,
        };
        let all: Vec<Entry> = self.places.lock().0.iter().map(entry).collect();
        let text = serde_json::to_vec(&all).unwrap_or_default();
        let _ = replace_own_file(fs, FILE, &text);
    }

    /// What is bad now, and how often more was met than the list holds.
    pub fn list(&self, fs: &Arc<Fs>, now: Timestamp) -> (Vec<BadPlace>, u64) {
        let all: Vec<(Key, Known)> = {
            let places = self.places.lock();
            places.0.iter().map(|(key, known)| (*key, *known)).collect()
        };
        let mut bad = Vec::new();
        let mut shorter = false;
        for (key, known) in all {
            let checked = look_again(fs, key, &known, now);
            let mut places = self.places.lock();
            let same = places.0.get_mut(&key).filter(|now| now.block == known.block);
            match (same, checked) {
                (Some(_), None) => {
                    places.0.remove(&key);
                    shorter = true;
                }
                (Some(place), Some(checked)) => {
                    place.checked = checked;
                    let (node, offset_bytes) = key;
                    let Known { block, since, .. } = known;
                    bad.push(BadPlace { node, offset_bytes, block, since });
                }
                (None, _) => {}
            }
        }
        if shorter {
            self.keep(fs);
        }
        (bad, self.places.lock().1)
    }
}

/// Whether a place is still bad: then when that was found. It is read only where something may
/// have changed since the last time.
fn look_again(
    fs: &Arc<Fs>,
    (node, offset): Key,
    known: &Known,
    now: Timestamp,
) -> Option<(Timestamp, Option<Timestamp>)> {
    let attr: Attr = match fs.getattr(node) {
        Ok(attr) => attr,
        Err(fs::Error::NotFound | fs::Error::Stale) => return None,
        Err(_) => return Some(known.checked),
    };
    let Some(offset) = offset else { return Some(known.checked) };
    if offset >= attr.size_bytes {
        return None;
    }
    let unchanged = known.checked.1 == Some(attr.ctime);
    if unchanged && now.0.saturating_sub(known.checked.0 .0) < LOOK_AGAIN_NS {
        return Some(known.checked);
    }
    let read = fs.open_file(node).and_then(|file| file.read_at(offset, &mut [0; BLOCK_BYTES]));
    read.is_err().then_some((now, Some(attr.ctime)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::VolumeId;

    #[test]
    fn a_place_is_news_once_and_the_list_is_bounded() {
        let damage = Damage::default();
        let node = NodeId { volume: VolumeId(17), ino: 5 };
        assert!(damage.note(node, Some(8192), 9, Timestamp(1)));
        assert!(!damage.note(node, Some(8704), 9, Timestamp(2)), "the same block of the file");
        assert!(damage.note(node, Some(8192), 10, Timestamp(3)), "another block on the disk");
        for i in 0..2 * MAX_PLACES as u64 {
            damage.note(node, Some((10 + i) * BLOCK), i, Timestamp(4));
        }
        let places = damage.places.lock();
        assert_eq!((places.0.len(), places.1), (MAX_PLACES, MAX_PLACES as u64 + 1));
    }
}
