//! Range clones: a file gets what another file, or another part of it, or a snapshot has, without a
//! copy. Whole subtrees are linked where source and target lie alike, else blocks; what that means
//! for those blocks is in [`counts`](super::counts).
//!
//! A piece is linked in one step, under the guard and the locks of both files: the target's range
//! becomes a hole and then what the source has. It is one atomic change in one group, which says
//! what was linked, not where it came from: only blocks that are on disk are shared, and these are
//! on disk in every state that a crash can lead to. Blocks that still wait for their group are
//! copied in memory.
//!
//! The count of a file's blocks must be exact, so nodes that are shared are read once, if nothing
//! of them is written: in steps, each with a pin of its own.

use super::core::*;
use super::error::{Error, Result};
use super::file::Wait;
use super::pool::Fs;
use super::reclaim::children;
use super::store::Data;
use super::tree::{Miss, Part, Slot, Tree};
use super::types::*;
use super::File;
use crate::device::BLOCK_BYTES;
use fs_layout::{CloneLink, Pointer, FEATURE_CLONES};
use parking_lot::{RwLockReadGuard, RwLockWriteGuard};
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::Arc;

const BS: u64 = BLOCK_BYTES as u64;
/// Subtrees and blocks linked in one step: half a millisecond under the locks, and 64 KiB of log.
const PARTS_MAX: usize = 2048;
/// Bytes copied at once where a range is not aligned.
const COPY_BYTES: u64 = 1 << 20;
/// Nodes read in one step to count data: those of 256 MiB, and those above.
const COUNT_NODES: usize = 300;
/// From so many blocks on what the source has in memory is written before it is cloned: 1 MiB.
const WRITE_OUT_BLOCKS: u64 = 256;
/// Links that weigh as much in a group's payload as an inode's record.
const LINKS_PER_RECORD: u64 = 16;
/// Nodes of a path, and a few.
const PATH_BLOCKS: u64 = 32;

/// Data blocks below nodes that were counted: by block, checksum and height.
type Known = HashMap<(u64, u32, u8), u64>;

/// What is linked in one step at most, in blocks.
struct Piece {
    from: u64,
    to: u64,
    count: u64,
    /// Where the target's range ends, in bytes.
    end_bytes: u64,
    /// Where the source ended, if the piece reaches up to there: all behind is a hole.
    source_end_bytes: Option<u64>,
}

/// How an attempt ended.
enum Attempt {
    /// So many blocks of the piece are linked; all that there was?
    Done(u64, bool),
    Miss(Miss),
    /// Data below these must be counted first.
    Count(Vec<(Pointer, u8)>),
    /// So many blocks may be written for it.
    Promise(u64),
    /// The files do not end any more where they did.
    NoEnd,
}

/// The files of a step, locked.
struct Locked<'a> {
    target: RwLockWriteGuard<'a, State>,
    /// `None`: it is the same file.
    source: Option<RwLockReadGuard<'a, State>>,
}

impl Locked<'_> {
    fn source(&self) -> &State {
        self.source.as_deref().unwrap_or(&self.target)
    }
}

fn lock<'a>(source: &'a Inode, target: &'a Inode) -> Locked<'a> {
    if source.id == target.id {
        return Locked { target: target.state.write(), source: None };
    }
    if source.id < target.id {
        let source = source.state.read();
        return Locked { target: target.state.write(), source: Some(source) };
    }
    let target = target.state.write();
    Locked { target, source: Some(source.state.read()) }
}

impl Fs {
    /// Gives `target` from `to_bytes` on what `source` has at `from_bytes`, up to its end: whole
    /// blocks that lie alike are shared, all else is copied; holes become holes. How many bytes
    /// that was. Both are independent at once; a snapshot may be the source. Atomic in pieces, not
    /// as a whole. Within one file the ranges may overlap.
    pub fn clone_range(
        &self,
        source: &File,
        from_bytes: u64,
        target: &File,
        to_bytes: u64,
        length_bytes: u64,
    ) -> Result<u64> {
        source.clone_range(from_bytes, target, to_bytes, length_bytes)
    }
}

impl Core {
    pub fn clone_range(
        &self,
        source: &Arc<Inode>,
        from: u64,
        target: &Arc<Inode>,
        to: u64,
        len: u64,
    ) -> Result<u64> {
        self.writable()?;
        let len = len.min(source.state.read().meta.size.saturating_sub(from));
        let end = to.checked_add(len).filter(|end| *end <= MAX_FILE_BYTES).ok_or(Error::TooBig)?;
        if len == 0 || (source.id == target.id && from == to) {
            return Ok(len);
        }
        let backwards = source.id == target.id && from < to && to < from + len;
        // Up to the first whole block, then whole ones.
        let head = (from.next_multiple_of(BS) - from).min(len);
        let inner = (len - head) / BS;
        if from % BS != to % BS || inner == 0 {
            self.copy_range(source, from, target, to, len, backwards)?;
            return Ok(len);
        }
        self.enable_clones()?;
        self.write_out(source, inner)?;
        let tail = head + inner * BS;
        let copy = |at: u64, n: u64| match n {
            0 => Ok(()),
            n => self.copy_range(source, from + at, target, to + at, n, backwards),
        };
        let blocks = ((from + head) / BS, (to + head) / BS, inner);
        if backwards {
            copy(tail, len - tail)?;
            self.clone_backwards(source, target, blocks)?;
            copy(0, head)?;
            return Ok(len);
        }
        copy(0, head)?;
        if !self.clone_blocks(source, target, blocks, end, Some(from + len))? {
            copy(tail, len - tail)?;
        }
        Ok(len)
    }

    /// Links whole blocks, and what stands behind the last one if both files end in there (true).
    fn clone_blocks(
        &self,
        source: &Arc<Inode>,
        target: &Arc<Inode>,
        (from, to, count): (u64, u64, u64),
        end_bytes: u64,
        mut source_end_bytes: Option<u64>,
    ) -> Result<bool> {
        let mut known = Known::new();
        let mut done = 0;
        loop {
            let (from, to, count) = (from + done, to + done, count - done);
            if count == 0 && source_end_bytes.is_none() {
                return Ok(false);
            }
            let piece = Piece { from, to, count, end_bytes, source_end_bytes };
            match self.clone_piece(source, target, &piece, &mut known)? {
                None => source_end_bytes = None,
                Some((_, true)) => return Ok(source_end_bytes.is_some()),
                Some((n, false)) => done += n,
            }
        }
    }

    /// The last blocks first: none is overwritten before it is cloned.
    fn clone_backwards(
        &self,
        source: &Arc<Inode>,
        target: &Arc<Inode>,
        (from, to, count): (u64, u64, u64),
    ) -> Result<()> {
        let mut left = count;
        while left > 0 {
            let n = left.min(PARTS_MAX as u64);
            left -= n;
            let end = (to + left + n) * BS;
            self.clone_blocks(source, target, (from + left, to + left, n), end, None)?;
        }
        Ok(())
    }

    /// From here on older programs must not open the pool.
    fn enable_clones(&self) -> Result<()> {
        if self.clones_enabled.load(Ordering::Acquire) {
            return Ok(());
        }
        let names = self.inode(NAMES)?;
        let _names = names.volume.names.lock();
        self.enable(FEATURE_CLONES)?;
        self.clones_enabled.store(true, Ordering::Release);
        Ok(())
    }

    /// Writes what a file that is to be cloned has in memory: it is written soon anyway, and then
    /// whole nodes can be shared.
    fn write_out(&self, source: &Inode, blocks: u64) -> Result<()> {
        let dirty = source.state.read().dirty_epoch;
        let is_dirty = dirty > self.completed_epoch.load(Ordering::SeqCst);
        match blocks >= WRITE_OUT_BLOCKS && is_dirty {
            true => self.consistency_point(false),
            false => Ok(()),
        }
    }

    /// `None`: the files' ends have moved.
    fn clone_piece(
        &self,
        source: &Arc<Inode>,
        target: &Arc<Inode>,
        piece: &Piece,
        known: &mut Known,
    ) -> Result<Option<(u64, bool)>> {
        self.pace()?;
        let mut promised = 0;
        let done = loop {
            let step = self.clone_step(source, target, piece, known, promised);
            match step {
                Ok(Attempt::Done(n, all)) => break Ok(Some((n, all))),
                Ok(Attempt::NoEnd) => break Ok(None),
                Ok(Attempt::Promise(blocks)) => {
                    self.space.settle(std::mem::take(&mut promised));
                    match self.promise(blocks, false) {
                        Ok(()) => promised = blocks,
                        Err(e) => break Err(e),
                    }
                }
                Ok(Attempt::Miss(_) | Attempt::Count(_)) => {}
                Err(e) => break Err(e),
            }
        };
        self.space.settle(promised);
        self.after_change();
        done
    }

    /// One attempt after the other, under one pin, until something other than a node is missing.
    fn clone_step(
        &self,
        source: &Arc<Inode>,
        target: &Arc<Inode>,
        piece: &Piece,
        known: &mut Known,
        promised: u64,
    ) -> Result<Attempt> {
        let _pin = self.pins.pin(&self.epoch);
        let held = Held::new(&self.store);
        loop {
            let attempt = {
                let _shared = self.guard.shared();
                let _steps = self.store.in_steps();
                let locked = lock(source, target);
                self.check_changeable(target, &locked.target)?;
                if Core::is_ended(source, locked.source()) {
                    return Err(Error::Stale);
                }
                self.try_clone(locked, target, piece, known, promised, &held)
            };
            match attempt {
                Attempt::Miss(miss) => held.fetch(miss)?,
                Attempt::Count(nodes) => {
                    let mut budget = COUNT_NODES;
                    for (p, height) in nodes {
                        if self.count_below(&p, height, known, &mut budget)?.is_none() {
                            break;
                        }
                    }
                    return Ok(Attempt::Count(Vec::new()));
                }
                other => return Ok(other),
            }
        }
    }

    /// Under the guard: all that can be missing is said before anything is changed.
    fn try_clone(
        &self,
        mut locked: Locked,
        target: &Arc<Inode>,
        piece: &Piece,
        known: &Known,
        promised: u64,
        held: &Held,
    ) -> Attempt {
        let mut end = piece.from + piece.count;
        if let Some(source_end) = piece.source_end_bytes {
            let ends = locked.source().meta.size == source_end;
            if locked.source.is_none() || !ends || locked.target.meta.size > piece.end_bytes {
                return Attempt::NoEnd;
            }
            end = MAX_FILE_BYTES / BS;
        }
        let shift = piece.to.wrapping_sub(piece.from);
        let whole_nodes = self.names_nodes.load(Ordering::Acquire);
        let fits = |_: u64, h: u8| whole_nodes && shift % super::tree::reach(h) == 0;
        let found = locked.source().tree.parts(held, (piece.from, end), PARTS_MAX, &fits);
        let (parts, next) = match found {
            Ok(found) => found,
            Err(miss) => return Attempt::Miss(miss),
        };
        let unknown = uncounted(&parts, known);
        if !unknown.is_empty() {
            return Attempt::Count(unknown);
        }
        let worst = 3 * parts.len() as u64 + PATH_BLOCKS;
        if worst > promised {
            return Attempt::Promise(worst);
        }
        let stop = next.unwrap_or(end);
        let range = (piece.to, (stop - piece.from).min(MAX_FILE_BYTES / BS - piece.to));
        if let Err(miss) = ends_at_hand(&locked.target.tree, held, range) {
            return Attempt::Miss(miss);
        }
        let linked = self.link_parts(&mut locked.target, target, range, shift, &parts, known, held);
        if let Err(miss) = linked {
            return Attempt::Miss(miss);
        }
        let reached = next.map_or(piece.end_bytes, |_| (piece.to + range.1) * BS);
        let size = &mut locked.target.meta.size;
        *size = (*size).max(reached.min(piece.end_bytes));
        self.touch_times(target, &mut locked.target, self.now());
        Attempt::Done(range.1, next.is_none())
    }

    #[allow(clippy::too_many_arguments)]
    fn link_parts(
        &self,
        state: &mut State,
        target: &Arc<Inode>,
        (first, count): (u64, u64),
        shift: u64,
        parts: &[Part],
        known: &Known,
        held: &Held,
    ) -> std::result::Result<(), Miss> {
        let now = self.now();
        self.note_refill(target.id);
        self.change(target, state, now, held, |tree, c| tree.punch(c, first, count))?;
        state.pending.push(Pending::Hole(first, count));
        let mut copied = 0;
        for part in parts {
            let at = part.first.wrapping_add(shift);
            match &part.slot {
                Slot::Ptr(p) => {
                    let p = Pointer { birth: now, cloned: true, ..*p };
                    let blocks = known_below(p, part.height, known).unwrap_or(1);
                    self.change(target, state, now, held, |tree, c| {
                        tree.link_clone(c, at, part.height, p, blocks)
                    })?;
                    state.pending.push(Pending::Clone(CloneLink {
                        first: at,
                        height: part.height,
                        block: p.block,
                        crc: p.crc,
                        data_blocks: blocks,
                    }));
                }
                Slot::Data(_, data) => {
                    let data = Data::new(data.bytes.clone());
                    self.change(target, state, now, held, |tree, c| {
                        tree.link(c, at, Slot::Data(now, data.clone()))
                    })?;
                    state.pending.push(Pending::Link(at, data));
                    copied += 1;
                }
                Slot::Node(_) => {
                    return Err(Miss::Bad(Error::Invalid("a node stands where data should")))
                }
            }
        }
        if copied > 0 {
            self.accept_data(copied);
        }
        // The counts that change are written too.
        let counts = parts.len() as u64;
        self.epoch_promised.fetch_add(counts as i64, Ordering::Relaxed);
        self.space.promise_unasked(counts);
        self.group_inodes.fetch_add(1 + counts / LINKS_PER_RECORD, Ordering::Relaxed);
        Ok(())
    }

    /// Data blocks below a node. `None`: the budget is used up; what was found is known.
    fn count_below(
        &self,
        p: &Pointer,
        height: u8,
        known: &mut Known,
        budget: &mut usize,
    ) -> Result<Option<u64>> {
        let key = (p.block, p.crc, height);
        if let Some(n) = known.get(&key) {
            return Ok(Some(*n));
        }
        if *budget == 0 {
            return Ok(None);
        }
        *budget -= 1;
        let below = children(&self.store, p)?;
        let mut sum = 0;
        if height == 1 {
            sum = below.len() as u64;
        } else if height == 2 {
            // All of them or none: so each step comes forward.
            *budget = budget.saturating_sub(below.len());
            self.fetch_runs(&below)?;
            for leaf in &below {
                sum += children(&self.store, leaf)?.len() as u64;
            }
        } else {
            for node in &below {
                match self.count_below(node, height - 1, known, budget)? {
                    Some(n) => sum += n,
                    None => return Ok(None),
                }
            }
        }
        known.insert(key, sum);
        Ok(Some(sum))
    }

    /// Brings nodes into the cache, those that are neighbours at once.
    fn fetch_runs(&self, nodes: &[Pointer]) -> Result<()> {
        for run in nodes.chunk_by(|a, b| a.block + 1 == b.block) {
            if run.len() > 1 && run.iter().any(|p| self.store.cached(p).is_none()) {
                self.store.read_run(run)?;
            }
        }
        Ok(())
    }

    /// Copies bytes; holes become holes.
    fn copy_range(
        &self,
        source: &Arc<Inode>,
        from: u64,
        target: &Arc<Inode>,
        to: u64,
        len: u64,
        backwards: bool,
    ) -> Result<()> {
        let chunks = len.div_ceil(COPY_BYTES);
        for i in 0..chunks {
            let at = COPY_BYTES * if backwards { chunks - 1 - i } else { i };
            let n = COPY_BYTES.min(len - at);
            self.copy_chunk(source, from + at, target, to + at, n)?;
        }
        Ok(())
    }

    fn copy_chunk(
        &self,
        source: &Arc<Inode>,
        from: u64,
        target: &Arc<Inode>,
        to: u64,
        len: u64,
    ) -> Result<()> {
        let end = from + len;
        let mut extents = Vec::new();
        let mut at = from;
        while let Some(data) = self.seek_file(source, at, true)?.filter(|data| *data < end) {
            let hole = self.seek_file(source, data, false)?.map_or(end, |hole| hole.min(end));
            extents.push((data, hole));
            at = hole;
        }
        let mut bytes = vec![0; len as usize];
        self.read_file(source, from, &mut bytes, Wait::May, None).unwrap_or(Err(Error::Busy))?;
        let mut at = from;
        for (data, hole) in extents.into_iter().chain([(end, end)]) {
            if data > at {
                self.punch_file(target, to + (at - from), data - at)?;
            }
            let part = &bytes[(data - from) as usize..(hole - from) as usize];
            let written = self.write_file(target, to + (data - from), part, Wait::May);
            written.unwrap_or(Err(Error::Busy))?;
            at = hole;
        }
        self.grow_file(target, to + len)
    }

    /// The file is at least so long.
    fn grow_file(&self, inode: &Arc<Inode>, size: u64) -> Result<()> {
        if inode.state.read().meta.size >= size {
            return Ok(());
        }
        let grown = self.locked(inode, Wait::May, |state, _, now| {
            state.meta.size = state.meta.size.max(size);
            self.touch_times(inode, state, now);
            Ok(())
        });
        grown.unwrap_or(Err(Error::Busy))
    }
}

fn known_below(p: Pointer, height: u8, known: &Known) -> Option<u64> {
    match height {
        0 => Some(1),
        _ => known.get(&(p.block, p.crc, height)).copied(),
    }
}

fn uncounted(parts: &[Part], known: &Known) -> Vec<(Pointer, u8)> {
    let node = |part: &Part| match &part.slot {
        Slot::Ptr(p) if known_below(*p, part.height, known).is_none() => Some((*p, part.height)),
        _ => None,
    };
    parts.iter().filter_map(node).collect()
}

/// The nodes above both ends of a range: no others are read when it is replaced.
fn ends_at_hand(
    tree: &Tree,
    held: &Held,
    (first, count): (u64, u64),
) -> std::result::Result<(), Miss> {
    if count > 0 {
        tree.get(held, first)?;
        tree.get(held, first + count - 1)?;
    }
    Ok(())
}
