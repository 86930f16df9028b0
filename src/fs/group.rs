//! Groups: write-back cache, log and atomicity in one.
//!
//! A group is all that was linked since the last cut, in one epoch. Sealing cuts it with the guard
//! alone for an instant, gives every block of it a place, writes head, continuation and data as one
//! run where free space allows, and with a flush makes it durable for all who wait.
//!
//! Invariants:
//! - groups are written one at a time, in the order of their numbers (the `log` lock);
//! - nothing in a group changes once it is cut;
//! - the next head's place is allocated before this head names it;
//! - head and continuation blocks are in no bitmap image; they are released when the consistency
//!   point that cuts them off is durable.

use super::core::{Core, Inode, Pending};
use super::error::{Error, Result};
use super::planted::{planted, Mutation};
use super::space::Run;
use super::store::Data;
use crate::device::{Block, BLOCK_BYTES};
use fs_layout::{
    FileRange, FileRecord, GroupHead, Inode as DiskInode, InodeKind, Link, PayloadWriter,
    GROUP_EXTENTS_MAX, GROUP_MAX_CONT,
};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::Arc;

/// The log's state between groups.
pub(crate) struct Log {
    pub next_block: u64,
    pub next_number: u64,
    pub seed: [u8; 32],
    /// Groups up to this one are written.
    pub written: u64,
    /// Blocks of heads and continuations, with the number of their group.
    pub blocks: VecDeque<(u64, Run)>,
}

/// One inode's part of a cut.
struct CutFile {
    inode: Arc<Inode>,
    changes: Vec<Pending>,
    record: Option<DiskInode>,
}

/// What a cut took.
pub(crate) struct Cut {
    epoch: u64,
    files: Vec<CutFile>,
    /// Promised blocks of its links, superseded ones too.
    promised: u64,
}

impl Cut {
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Blocks of its links, superseded ones too.
    pub fn blocks(&self) -> u64 {
        self.promised
    }
}

/// A cut file with its state drawn together.
struct GroupFile {
    inode: Arc<Inode>,
    ranges: Vec<FileRange>,
    links: Vec<(u64, Arc<Data>)>,
    record: Option<DiskInode>,
}

impl Core {
    /// Takes all that is pending. The caller holds the guard alone.
    pub fn cut(&self) -> Cut {
        let mut inodes = std::mem::take(&mut *self.group_files.lock());
        if planted(Mutation::SealMissesFile) && inodes.len() > 2 {
            self.group_files.lock().extend(inodes.pop());
        }
        let take = |inode: Arc<Inode>| {
            let mut s = inode.state.write();
            s.in_group = false;
            let changes = std::mem::take(&mut s.pending);
            let record = std::mem::take(&mut s.record_pending).then_some(s.meta);
            drop(s);
            CutFile { inode, changes, record }
        };
        let files: Vec<CutFile> = inodes.into_iter().map(take).collect();
        let promised = self.group_blocks.swap(0, Ordering::AcqRel);
        self.group_inodes.store(0, Ordering::Relaxed);
        if !files.is_empty() {
            self.group.fetch_add(1, Ordering::AcqRel);
        }
        Cut { epoch: self.now(), files, promised }
    }

    /// Makes durable all that returned before this call.
    pub fn sync(&self) -> Result<()> {
        self.writable()?;
        // Under the guard: a cut empties the list before it counts the group.
        let (target, empty) = {
            let _shared = self.guard.shared();
            (self.group.load(Ordering::Acquire), self.group_files.lock().is_empty())
        };
        if empty && self.durable_group.load(Ordering::Acquire) + 1 >= target {
            return self.store.check_latch();
        }
        self.seal(true)
    }

    /// Cuts and writes the running group; with `flush` everything written becomes durable.
    pub fn seal(&self, flush: bool) -> Result<()> {
        let target = self.group.load(Ordering::Acquire);
        let mut log = self.log.lock();
        let _steps = self.store.in_steps();
        self.store.check_latch()?;
        if flush && self.durable_group.load(Ordering::Acquire) >= target {
            return Ok(()); // Somebody sealed and flushed our group while we waited for the lock.
        }
        let cut = {
            let _alone = self.guard.alone(&self.cuts);
            self.cut()
        };
        self.write_group(&mut log, cut)?;
        if flush {
            self.flush_log(&log)?;
        }
        Ok(())
    }

    /// Makes every group durable that is written.
    pub fn flush_log(&self, log: &Log) -> Result<()> {
        if log.written > self.durable_group.load(Ordering::Acquire) {
            if !planted(Mutation::AcknowledgeBeforeFlush) {
                self.store.flush()?;
            }
            self.durable_group.store(log.written, Ordering::Release);
        }
        Ok(())
    }

    /// Places and writes a cut group, unflushed.
    pub fn write_group(&self, log: &mut Log, cut: Cut) -> Result<()> {
        if cut.is_empty() {
            return Ok(());
        }
        // What cannot be placed cannot be undone either: it has been seen.
        let written = self.try_write_group(log, cut);
        written.map_err(|e| self.store.set_latch(format!("the log could not be written: {e}")))
    }

    fn try_write_group(&self, log: &mut Log, cut: Cut) -> Result<()> {
        let (epoch, promised) = (cut.epoch, cut.promised);
        let mut files: Vec<GroupFile> = cut.files.into_iter().map(draw_together).collect();
        files.sort_by_key(|f| f.inode.id);
        self.place(&files, epoch)?;
        let payload = payload_of(&files);
        if GroupHead::continuation_blocks(payload.len()) > GROUP_MAX_CONT {
            return Err(Error::Invalid("a group larger than recovery reads"));
        }
        let extents = self.allocate_all(GroupHead::continuation_blocks(payload.len()), None)?;
        if extents.len() > GROUP_EXTENTS_MAX {
            return Err(Error::NoSpace);
        }
        let (next_block, _) = self.space.allocate(&self.store, 1, None)?;
        let head = GroupHead {
            number: log.next_number,
            epoch,
            durable_mark: match planted(Mutation::DurableMarkTooHigh) {
                true => log.next_number,
                false => self.durable_group.load(Ordering::Acquire),
            },
            next_block,
            payload_bytes: payload.len() as u32,
            payload_crc: crc32c::crc32c(&payload),
            extents: extents.clone(),
        };
        let mut head_block = Block::zeroed();
        let seed = head.encode(&payload, &log.seed, &mut head_block.0);
        let continuation = continuation_of(&head, &payload);
        let data = files.iter().flat_map(|f| &f.links).map(|(_, d)| (d.place(), &*d.bytes));
        let cont =
            extents.iter().flat_map(|(b, n)| *b..b + n).zip(continuation.iter().map(|b| &**b));
        let mut blocks: Vec<(u64, &Block)> = data.chain(cont).collect();
        blocks.push((log.next_block, &*head_block));
        blocks.sort_unstable_by_key(|b| b.0);
        self.store.write(&blocks)?;
        log.blocks.push_back((head.number, (log.next_block, 1)));
        log.blocks.extend(extents.iter().map(|r| (head.number, *r)));
        log.written = head.number;
        log.next_number += 1;
        log.next_block = next_block;
        log.seed = seed;
        self.group_count.fetch_add(1, Ordering::Relaxed);
        self.settle(&files, promised);
        Ok(())
    }

    /// Gives every data block of the group a place, in the order of files and offsets.
    fn place(&self, files: &[GroupFile], epoch: u64) -> Result<()> {
        let mut blocks = files.iter().flat_map(|f| &f.links).map(|(_, d)| d).peekable();
        let mut left = files.iter().map(|f| f.links.len() as u64).sum::<u64>();
        while left > 0 {
            let (first, count) = self.space.allocate(&self.store, left, Some(epoch))?;
            for (i, data) in (0..count).zip(&mut blocks) {
                data.set_place(first + i);
            }
            left -= count;
        }
        Ok(())
    }

    /// Allocates `count` blocks in as few runs as there are.
    pub fn allocate_all(&self, count: u64, epoch: Option<u64>) -> Result<Vec<Run>> {
        let mut runs: Vec<Run> = Vec::new();
        let mut left = count;
        while left > 0 {
            let run = self.space.allocate(&self.store, left, epoch)?;
            left -= run.1;
            match runs.last_mut() {
                Some(last) if last.0 + last.1 == run.0 => last.1 += run.1,
                _ => runs.push(run),
            }
        }
        Ok(runs)
    }

    /// The group is written: its blocks are found by pointer from now on, and may leave memory.
    fn settle(&self, files: &[GroupFile], promised: u64) {
        for f in files.iter().filter(|f| !f.links.is_empty()) {
            for (_, data) in &f.links {
                self.store.remember(data);
            }
            // In parts: readers and writers of the file go between.
            for part in f.links.chunks(SETTLE_PART) {
                let mut s = f.inode.state.write();
                let now = self.now();
                for (block, data) in part {
                    s.tree.settle(now, *block, data);
                }
            }
        }
        self.space.settle(promised);
        self.dirty_blocks.fetch_sub(promised, Ordering::AcqRel);
    }
}

/// Links settled under one taking of a file's lock.
const SETTLE_PART: usize = 64;

/// Later changes win: a link is dropped by a later link or hole; holes and clones stand before
/// links.
fn draw_together(f: CutFile) -> GroupFile {
    let mut ranges = Vec::new();
    let mut map = BTreeMap::new();
    if f.record.is_some_and(|r| r.kind == InodeKind::Free) {
        // A freed inode's data is freed with it: nothing of it needs to be found again.
        return GroupFile { inode: f.inode, ranges, links: Vec::new(), record: f.record };
    }
    for change in f.changes {
        match change {
            Pending::Link(block, data) => {
                map.insert(block, data);
            }
            Pending::Hole(first, count) => {
                let end = first.saturating_add(count);
                let gone: Vec<u64> = map.range(first..end).map(|(b, _)| *b).collect();
                if !planted(Mutation::HoleLosesToLink) {
                    gone.iter().for_each(|b| {
                        map.remove(b);
                    });
                }
                ranges.push(FileRange::Hole(first, count));
            }
            Pending::Clone(clone) => ranges.push(FileRange::Clone(clone)),
        }
    }
    GroupFile { inode: f.inode, ranges, links: map.into_iter().collect(), record: f.record }
}

fn payload_of(files: &[GroupFile]) -> Vec<u8> {
    let mut writer = PayloadWriter::default();
    for f in files {
        let link = |(file_block, data): &(u64, Arc<Data>)| Link {
            file_block: *file_block,
            disk_block: data.place(),
            crc: data.crc,
        };
        writer.file(&FileRecord {
            volume: f.inode.id.volume.0,
            ino: f.inode.id.ino,
            ranges: f.ranges.clone(),
            links: f.links.iter().map(link).collect(),
            inode: f.record,
        });
    }
    writer.finish()
}

fn continuation_of(head: &GroupHead, payload: &[u8]) -> Vec<Box<Block>> {
    if head.extents.is_empty() {
        return Vec::new();
    }
    let block = |chunk: &[u8]| {
        let mut b = Block::zeroed();
        b.0[..chunk.len()].copy_from_slice(chunk);
        b
    };
    payload.chunks(BLOCK_BYTES).map(block).collect()
}
