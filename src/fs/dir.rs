//! Directories: names to inodes, in buckets found by the name's hash.
//!
//! Changes go through a transaction under the volume's `names` lock. Look-ups take no lock: they
//! read block by block, and one that found nothing looks again if a transaction was applied
//! meanwhile.

use super::core::{Core, Inode};
use super::error::{Error, Result};
use super::planted::{planted, Mutation};
use super::store::Data;
use super::txn::Txn;
use super::types::*;
use crate::device::{Block, BLOCK_BYTES};
use fs_layout::{BucketEntry, DirBucket, InodeKind, BUCKET_MAX_DEPTH};
use std::sync::Arc;

/// Bits of a name's hash.
const HASH_BITS: u32 = 55;
/// Splits that a listing can meet at one place, one after the other.
const SPLIT_TRIES: u32 = 64;
/// Cookies below are free for `.` and `..`.
const FIRST_HASH: u64 = 1;

/// An entry as looked up.
#[derive(Clone, Copy)]
pub(crate) struct Found {
    pub ino: u64,
    pub kind: u8,
}

/// Where a directory's blocks are read from: the tree, or a transaction over it.
trait Blocks {
    fn block(&self, dir: &Arc<Inode>, block: u64) -> Result<Option<Arc<Data>>>;
}

impl Blocks for Core {
    fn block(&self, dir: &Arc<Inode>, block: u64) -> Result<Option<Arc<Data>>> {
        self.read_block(dir, block)
    }
}

impl Blocks for Txn<'_> {
    fn block(&self, dir: &Arc<Inode>, block: u64) -> Result<Option<Arc<Data>>> {
        self.read(dir, block)
    }
}

fn index(hash: u64, depth: u8) -> u64 {
    let reversed = hash.reverse_bits() >> (64 - HASH_BITS);
    reversed & ((1 << depth) - 1)
}

fn bad(e: fs_layout::LayoutError) -> Error {
    Error::Format(e.to_string())
}

/// The bucket that holds a hash: its block number and bytes. `None`: the directory has none.
fn find_bucket(
    blocks: &dyn Blocks,
    dir: &Arc<Inode>,
    depth: u8,
    hash: u64,
) -> Result<Option<(u64, Arc<Data>)>> {
    for d in (0..=depth.min(BUCKET_MAX_DEPTH)).rev() {
        let at = index(hash, d);
        if let Some(data) = blocks.block(dir, at)? {
            return Ok(Some((at, data)));
        }
    }
    Ok(None)
}

pub(crate) fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > MAX_NAME_BYTES {
        return Err(Error::NameTooLong);
    }
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0)
    {
        return Err(Error::Invalid("not a name"));
    }
    Ok(())
}

impl Core {
    /// Keyed with the pool's id: names that collide here do not collide elsewhere.
    pub fn name_hash(&self, name: &[u8]) -> u64 {
        let mut key = [0; 32];
        key[..16].copy_from_slice(&self.pool_id);
        let hash = blake3::keyed_hash(&key, name);
        let word = hash.as_bytes()[..8].iter().rev().fold(0, |w, b| w << 8 | u64::from(*b));
        (word >> (64 - HASH_BITS)).max(FIRST_HASH)
    }

    /// Looks a name up without locks.
    pub fn dir_find(&self, dir: &Arc<Inode>, name: &[u8]) -> Result<Option<Found>> {
        for attempt in 0.. {
            let before = dir.volume.changes();
            let found = self.dir_find_in(self, dir, None, name);
            match found {
                Ok(Some(_)) => return found,
                _ if dir.volume.changes() == before => return found,
                _ if attempt >= 3 => {
                    let _names = dir.volume.names.lock();
                    return self.dir_find_in(self, dir, None, name);
                }
                _ => {}
            }
        }
        Ok(None)
    }

    fn dir_find_in(
        &self,
        blocks: &dyn Blocks,
        dir: &Arc<Inode>,
        depth: Option<u8>,
        name: &[u8],
    ) -> Result<Option<Found>> {
        let depth = match depth {
            Some(d) => d,
            None => {
                let s = dir.state.read();
                if s.gone {
                    return Err(Error::Stale);
                }
                s.meta.depth
            }
        };
        let hash = self.name_hash(name);
        let Some((_, data)) = find_bucket(blocks, dir, depth, hash)? else { return Ok(None) };
        let found = DirBucket::find(&data.bytes.0, hash, name).map_err(bad)?;
        Ok(found.map(|(_, ino, kind)| Found { ino, kind }))
    }

    /// At most `max` entries after `cookie`, in the order of their cookies.
    pub fn dir_list(&self, dir: &Arc<Inode>, cookie: u64, max: usize) -> Result<Vec<DirEntry>> {
        let mut out = Vec::new();
        let mut next = cookie.saturating_add(1);
        let mut tries = 0;
        while out.len() < max && next >> 8 < 1 << HASH_BITS {
            let depth = {
                let s = dir.state.read();
                if s.gone {
                    return Err(Error::Stale);
                }
                s.meta.depth
            };
            let Some((at, data)) = find_bucket(self, dir, depth, next >> 8)? else { break };
            let mut bucket = DirBucket::decode(&data.bytes.0).map_err(bad)?;
            if index(next >> 8, bucket.depth) != at {
                // It was split between the look at the depth and the look at the block.
                tries += 1;
                if tries > SPLIT_TRIES {
                    return Err(Error::Format("a directory bucket in a wrong place".into()));
                }
                continue;
            }
            tries = 0;
            bucket.entries.retain(|e| e.cookie >= next);
            bucket.entries.sort_unstable_by_key(|e| e.cookie);
            for e in bucket.entries {
                if out.len() == max {
                    return Ok(out);
                }
                out.push(entry_of(dir, e)?);
            }
            let shift = HASH_BITS - u32::from(bucket.depth);
            next = (((next >> 8 >> shift) + 1) << shift) << 8;
        }
        Ok(out)
    }
}

fn entry_of(dir: &Arc<Inode>, e: BucketEntry) -> Result<DirEntry> {
    let kind = super::inode::kind_from_u8(e.kind)?;
    let id = NodeId { volume: dir.id.volume, ino: e.ino };
    Ok(DirEntry { name: e.name, id, kind, cookie: e.cookie })
}

/// A directory as a transaction changes it: its depth is followed here, for a transaction may
/// change it more than once before the inode shows it.
pub(crate) struct DirEdit<'t> {
    core: &'t Core,
    pub dir: Arc<Inode>,
    depth: u8,
    last_block: u64,
}

impl<'t> DirEdit<'t> {
    /// The caller holds the volume's `names`.
    pub fn new(core: &'t Core, dir: Arc<Inode>) -> Result<DirEdit<'t>> {
        let (depth, size, kind, gone) = {
            let s = dir.state.read();
            (s.meta.depth, s.meta.size, s.meta.kind, s.gone)
        };
        if gone {
            return Err(Error::Stale);
        }
        if kind != InodeKind::Directory {
            return Err(Error::NotDirectory);
        }
        Ok(DirEdit { core, dir, depth, last_block: size / BLOCK_BYTES as u64 })
    }

    /// A directory that the same transaction makes.
    pub fn of_new(core: &'t Core, dir: Arc<Inode>) -> DirEdit<'t> {
        DirEdit { core, dir, depth: 0, last_block: 0 }
    }

    pub fn find(&self, txn: &Txn, name: &[u8]) -> Result<Option<Found>> {
        self.core.dir_find_in(txn, &self.dir, Some(self.depth), name)
    }

    fn bucket(&self, txn: &Txn, hash: u64) -> Result<(u64, DirBucket)> {
        match find_bucket(txn, &self.dir, self.depth, hash)? {
            None => Ok((0, DirBucket::default())),
            Some((at, data)) => Ok((at, DirBucket::decode(&data.bytes.0).map_err(bad)?)),
        }
    }

    fn put(&mut self, txn: &mut Txn, at: u64, bucket: &DirBucket) {
        let mut raw = Block::zeroed();
        bucket.encode(&mut raw.0);
        txn.write(&self.dir, at, raw);
        self.last_block = self.last_block.max(at + 1);
    }

    /// Adds a name that is not there.
    pub fn insert(&mut self, txn: &mut Txn, name: &[u8], ino: u64, kind: u8) -> Result<()> {
        let hash = self.core.name_hash(name);
        loop {
            let (at, mut bucket) = self.bucket(txn, hash)?;
            if !bucket.fits(name.len()) {
                self.split(txn, at, bucket)?;
                continue;
            }
            let taken = |c: u64| bucket.entries.iter().any(|e| e.cookie == c);
            let cookie = (hash << 8..(hash + 1) << 8).find(|c| !taken(*c));
            let cookie = cookie.ok_or(Error::NoSpace)?;
            bucket.entries.push(BucketEntry { cookie, ino, kind, name: name.to_vec() });
            self.put(txn, at, &bucket);
            self.note(txn, 1);
            return Ok(());
        }
    }

    fn split(&mut self, txn: &mut Txn, at: u64, bucket: DirBucket) -> Result<()> {
        let depth = bucket.depth;
        if depth >= BUCKET_MAX_DEPTH {
            return Err(Error::NoSpace);
        }
        let moves = |e: &BucketEntry| index(e.cookie >> 8, depth + 1) != at;
        let (mut there, here): (Vec<_>, Vec<_>) = bucket.entries.into_iter().partition(moves);
        if planted(Mutation::SplitLosesHalf) {
            there.clear();
        }
        self.put(txn, at, &DirBucket { depth: depth + 1, entries: here });
        self.put(txn, at + (1 << depth), &DirBucket { depth: depth + 1, entries: there });
        self.depth = self.depth.max(depth + 1);
        Ok(())
    }

    /// Removes a name that is there.
    pub fn remove(&mut self, txn: &mut Txn, name: &[u8]) -> Result<()> {
        let hash = self.core.name_hash(name);
        let (at, mut bucket) = self.bucket(txn, hash)?;
        bucket.entries.retain(|e| e.name != name);
        self.put(txn, at, &bucket);
        self.note(txn, -1);
        Ok(())
    }

    /// Lets a name that is there point to another inode.
    pub fn replace(&mut self, txn: &mut Txn, name: &[u8], ino: u64, kind: u8) -> Result<()> {
        let hash = self.core.name_hash(name);
        let (at, mut bucket) = self.bucket(txn, hash)?;
        for e in bucket.entries.iter_mut().filter(|e| e.name == name) {
            (e.ino, e.kind) = (ino, kind);
        }
        self.put(txn, at, &bucket);
        self.note(txn, 0);
        Ok(())
    }

    fn note(&self, txn: &mut Txn, entries: i64) {
        let (depth, size, time) =
            (self.depth, self.last_block * BLOCK_BYTES as u64, self.core.time());
        txn.edit(&self.dir, move |m| {
            m.entries = m.entries.saturating_add_signed(entries);
            m.depth = m.depth.max(depth);
            m.size = m.size.max(size);
            (m.mtime, m.ctime) = (time, time);
        });
    }
}
