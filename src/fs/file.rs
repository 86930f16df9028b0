//! Reading and writing a file's bytes.
//!
//! A write prepares its blocks first, checksums and merged edges included, then links them in one
//! step under the guard and the file's lock: it is wholly in one group. A block that was merged is
//! linked only if its slot still holds what was read; else everything is prepared again. Reads
//! resolve pointers under the file's lock and fetch bytes outside of it, with the epoch pinned.

use super::core::{Core, Held, Inode, Pending, State};
use super::error::{Error, Result};
use super::planted::{planted, Mutation};
use super::store::{Data, Store};
use super::tree::{Miss, NodeSource, Slot};
use super::types::*;
use crate::device::{Block, BLOCK_BYTES};
use fs_layout::{InodeKind, Pointer};
use std::sync::atomic::Ordering;
use std::sync::Arc;

const BS: u64 = BLOCK_BYTES as u64;
/// Height of the tallest tree and one more: the nodes of a path.
const PATH_NODES: u64 = 6;

/// A block ready to be linked: where, what, and what must still be there (if it was merged).
struct Prepared {
    block: u64,
    data: Arc<Data>,
    merged_over: Option<Slot>,
}

/// One atomic change of a file.
#[derive(Default)]
struct Edit {
    /// In ascending order; runs without merges may be long.
    links: Vec<Prepared>,
    /// Whole blocks to become holes: (first, count).
    hole: Option<(u64, u64)>,
    /// The file is at least so long afterwards.
    grow_to: u64,
    /// Truncation: `links` and `hole` count only if the file shrinks.
    set_size: Option<u64>,
    /// The file must be exactly so long before (append).
    only_at_size: Option<u64>,
    /// It frees: it may use the reserve.
    privileged: bool,
}

/// How an attempt at an edit ended.
enum Attempt<T> {
    Done(T),
    /// Something else was linked where we merged: prepare again.
    Lost,
}

/// `try_` forms: nothing may block.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    May,
    Never,
}

fn zeroes() -> Arc<Data> {
    static ZERO: std::sync::OnceLock<Arc<Data>> = std::sync::OnceLock::new();
    ZERO.get_or_init(|| Data::new(Block::zeroed())).clone()
}

/// The checksum of what a slot of data reads as.
fn sum_of(slot: &Slot) -> u32 {
    match slot {
        Slot::Data(_, d) => d.crc,
        Slot::Ptr(p) if !p.is_hole() => p.crc,
        _ => zeroes().crc,
    }
}

fn last_block(offset: u64, len: usize) -> u64 {
    (offset + len as u64 - 1) / BS
}

impl Core {
    /// Fills `out` from `offset` as far as the file goes. `None`: it would have to wait. Of whole
    /// blocks the checksums are put to `sums`, where they are wanted.
    pub fn read_file(
        &self,
        inode: &Inode,
        offset: u64,
        out: &mut [u8],
        wait: Wait,
        sums: Option<&mut Vec<u32>>,
    ) -> Option<Result<usize>> {
        let _pin = self.pins.pin(&self.epoch);
        let held = Held::new(&self.store);
        let mut slots = Vec::new();
        let n = loop {
            slots.clear();
            let state = inode.state.read();
            if Core::is_ended(inode, &state) {
                return Some(Err(Error::Stale));
            }
            let n = state.meta.size.saturating_sub(offset).min(out.len() as u64) as usize;
            if n == 0 {
                return Some(Ok(0));
            }
            let first = offset / BS;
            let count = last_block(offset, n) - first + 1;
            let nodes: &dyn NodeSource = if wait == Wait::Never { &self.store } else { &held };
            let found = state.tree.get_range(nodes, first, count, &mut slots);
            drop(state);
            match found {
                Ok(()) => break n,
                Err(Miss::Node(_)) if wait == Wait::Never => return None,
                Err(miss) => match held.fetch(miss) {
                    Ok(()) => {}
                    Err(e) => {
                        // What was found before the node that is missing can be read.
                        let missing = (first + slots.len() as u64) * BS;
                        return Some(Err(in_file(e, offset.max(missing))));
                    }
                },
            }
        };
        if wait == Wait::Never && !slots.iter().all(|s| self.at_hand(s)) {
            return None;
        }
        if let Some(sums) = sums.filter(|_| offset % BS == 0 && n as u64 % BS == 0) {
            sums.extend(slots.iter().map(sum_of));
        }
        Some(self.fill(&slots, offset, &mut out[..n]).map(|()| n))
    }

    fn at_hand(&self, slot: &Slot) -> bool {
        match slot {
            Slot::Ptr(p) => p.is_hole() || self.store.cached(p).is_some(),
            _ => true,
        }
    }

    /// Copies resolved blocks out; what is not in memory is read in runs.
    fn fill(&self, slots: &[Slot], offset: u64, out: &mut [u8]) -> Result<()> {
        let first = offset / BS;
        let end = offset + out.len() as u64;
        let mut put = |i: usize, bytes: Option<&Block>| {
            let start = (first + i as u64) * BS;
            let (from, to) = (start.max(offset), (start + BS).min(end));
            let target = &mut out[(from - offset) as usize..(to - offset) as usize];
            match bytes {
                Some(b) => {
                    target.copy_from_slice(&b.0[(from - start) as usize..(to - start) as usize])
                }
                None => target.fill(0),
            }
        };
        let mut i = 0;
        while i < slots.len() {
            match &slots[i] {
                Slot::Data(_, d) => put(i, Some(&d.bytes)),
                Slot::Ptr(p) if p.is_hole() => put(i, None),
                Slot::Ptr(p) => match self.store.cached(p) {
                    Some(d) => put(i, Some(&d.bytes)),
                    None => {
                        let run = missing_run(&self.store, &slots[i..]);
                        for (k, found) in self.store.read_run(&run)?.into_iter().enumerate() {
                            let at = (first + (i + k) as u64) * BS;
                            put(i + k, Some(&found.map_err(|e| in_file(e, at))?.bytes));
                        }
                        i += run.len() - 1;
                    }
                },
                Slot::Node(_) => return Err(Error::Invalid("a node stands where data should")),
            }
            i += 1;
        }
        Ok(())
    }

    /// Writes `data` at `offset` as one atomic step; at most [`ATOMIC_WRITE_BYTES`].
    /// `None`: it would have to wait, nothing was changed.
    pub fn write_file(
        &self,
        inode: &Arc<Inode>,
        offset: u64,
        data: &[u8],
        wait: Wait,
    ) -> Option<Result<()>> {
        let check = self.check_write(offset, data.len());
        if check.is_err() || data.is_empty() {
            return Some(check);
        }
        if wait == Wait::Never {
            if self.must_pace() {
                return None;
            }
        } else if let Err(e) = self.pace() {
            return Some(Err(e));
        }
        let result = loop {
            let prepared = match self.prepare(inode, offset, data, wait)? {
                Ok(p) => p,
                Err(e) => break Err(e),
            };
            let grow_to = offset + data.len() as u64;
            let edit = Edit { links: prepared, grow_to, ..Edit::default() };
            match self.apply(inode, &edit, wait)? {
                Ok(Attempt::Done(())) => break Ok(()),
                Ok(Attempt::Lost) => continue,
                Err(e) => break Err(e),
            }
        };
        self.after_change();
        Some(result)
    }

    fn check_write(&self, offset: u64, len: usize) -> Result<()> {
        self.writable()?;
        match offset.checked_add(len as u64) {
            Some(end) if end <= MAX_FILE_BYTES => Ok(()),
            _ => Err(Error::TooBig),
        }
    }

    /// Makes the blocks of a write; its partial first and last one are merged with what is there.
    fn prepare(
        &self,
        inode: &Inode,
        offset: u64,
        data: &[u8],
        wait: Wait,
    ) -> Option<Result<Vec<Prepared>>> {
        let first = offset / BS;
        let last = last_block(offset, data.len());
        let mut out = Vec::with_capacity((last - first + 1) as usize);
        for block in first..=last {
            let start = block * BS;
            let from = offset.max(start);
            let to = (offset + data.len() as u64).min(start + BS);
            let part = &data[(from - offset) as usize..(to - offset) as usize];
            let (mut bytes, merged_over) = if part.len() == BLOCK_BYTES {
                (Block::zeroed(), None)
            } else {
                match self.current_block(inode, block, wait)? {
                    Ok((bytes, slot)) => (bytes, Some(slot)),
                    Err(e) => return Some(Err(e)),
                }
            };
            bytes.0[(from - start) as usize..(to - start) as usize].copy_from_slice(part);
            out.push(Prepared { block, data: Data::new(bytes), merged_over });
        }
        Some(Ok(out))
    }

    /// A copy of a block as it is, and what slot it came from.
    fn current_block(
        &self,
        inode: &Inode,
        block: u64,
        wait: Wait,
    ) -> Option<Result<(Box<Block>, Slot)>> {
        let _pin = self.pins.pin(&self.epoch);
        let held = Held::new(&self.store);
        let slot = loop {
            let found = inode.state.read().tree.get(&held, block);
            if inode.volume.deleted.load(Ordering::Acquire) {
                return Some(Err(Error::Stale));
            }
            match found {
                Ok(slot) => break slot,
                Err(Miss::Node(_)) if wait == Wait::Never => return None,
                Err(miss) => match held.fetch(miss) {
                    Ok(()) => {}
                    Err(e) => return Some(Err(in_file(e, block * BS))),
                },
            }
        };
        let data = match &slot {
            Slot::Data(_, d) => d.clone(),
            Slot::Ptr(p) if p.is_hole() => zeroes(),
            Slot::Ptr(p) if wait == Wait::Never => self.store.cached(p)?,
            Slot::Ptr(p) => match self.store.read(p) {
                Ok(d) => d,
                Err(e) => return Some(Err(in_file(e, block * BS))),
            },
            Slot::Node(_) => return Some(Err(Error::Invalid("a node stands where data should"))),
        };
        Some(Ok((data.bytes.clone(), slot)))
    }

    /// Does a block's slot still hold what was read before?
    fn is_still(&self, inode: &Inode, block: u64, before: Option<&Slot>) -> Result<bool> {
        let Some(before) = before else { return Ok(false) };
        let _pin = self.pins.pin(&self.epoch);
        let held = Held::new(&self.store);
        loop {
            let found = inode.state.read().tree.get(&held, block);
            match found {
                Ok(now) => return Ok(now.same(before)),
                Err(miss) => held.fetch(miss)?,
            }
        }
    }

    /// Applies an edit in one step: under the guard and the file's lock, wholly in one group.
    fn apply(&self, inode: &Arc<Inode>, edit: &Edit, wait: Wait) -> Option<Result<Attempt<()>>> {
        let count = edit.links.len() as u64;
        let worst = count + count / 256 + 4 * PATH_NODES;
        if wait == Wait::Never {
            self.space.promise(worst, edit.privileged).ok()?;
        } else if let Err(e) = self.promise(worst, edit.privileged) {
            return Some(Err(e));
        }
        let result =
            self.locked(inode, wait, |s, held, now| self.apply_in(inode, s, held, now, edit));
        self.space.settle(worst);
        result
    }

    fn apply_in(
        &self,
        inode: &Arc<Inode>,
        state: &mut State,
        held: &Held,
        now: u64,
        edit: &Edit,
    ) -> std::result::Result<Attempt<()>, Miss> {
        if edit.only_at_size.is_some_and(|s| s != state.meta.size) {
            return Ok(Attempt::Lost);
        }
        let shrinks = edit.set_size.is_some_and(|s| s < state.meta.size);
        let links = if edit.set_size.is_some() && !shrinks { &[] } else { &edit.links[..] };
        let hole = edit.hole.filter(|h| h.1 > 0 && (edit.set_size.is_none() || shrinks));
        let cuts_block = shrinks && links.is_empty() && !planted(Mutation::TruncateLeavesTail);
        if let Some(size) = edit.set_size.filter(|s| cuts_block && s % BS != 0) {
            // It shrinks only now, or its last block came to be: the block's tail must be zeroed
            // too.
            if !state.tree.get(held, size / BS)?.is_hole() {
                return Ok(Attempt::Lost);
            }
        }
        // First everything that can miss, without changing anything.
        for (i, p) in links.iter().enumerate() {
            let new_leaf = i == 0 || i + 1 == links.len() || p.block % 256 == 0;
            if let Some(over) = &p.merged_over {
                let same = state.tree.get(held, p.block)?.same(over);
                if !same && !planted(Mutation::MergeNotChecked) {
                    return Ok(Attempt::Lost);
                }
            } else if new_leaf {
                state.tree.get(held, p.block)?;
            }
        }
        if let Some((first, count)) = hole {
            state.tree.get(held, first)?;
            state.tree.get(held, first + count - 1)?;
            self.change(inode, state, now, held, |tree, c| tree.punch(c, first, count))?;
            state.pending.push(Pending::Hole(first, count));
            // Its place in the payload counts as an inode's record would.
            self.group_inodes.fetch_add(1, Ordering::Relaxed);
        }
        self.change(inode, state, now, held, |tree, c| {
            links.iter().try_for_each(|p| tree.link(c, p.block, Slot::Data(now, p.data.clone())))
        })?;
        state.pending.extend(links.iter().map(|p| Pending::Link(p.block, p.data.clone())));
        self.accept_data(links.len() as u64);
        state.meta.size = edit.set_size.unwrap_or(state.meta.size.max(edit.grow_to));
        self.touch_times(inode, state, now);
        Ok(Attempt::Done(()))
    }

    /// So many data blocks are linked and wait for their group.
    pub fn accept_data(&self, blocks: u64) {
        self.space.promise_unasked(blocks);
        self.group_blocks.fetch_add(blocks, Ordering::AcqRel);
        self.dirty_blocks.fetch_add(blocks, Ordering::AcqRel);
    }

    /// The file's bytes changed: times, record, and a place among the dirty.
    pub fn touch_times(&self, inode: &Arc<Inode>, state: &mut State, now: u64) {
        let t = self.time();
        state.meta.mtime = t;
        state.meta.ctime = t;
        state.record_pending = true;
        self.touch(inode, state, now);
    }

    /// Runs `f` under the guard and the inode's lock; what it misses is fetched without them, and
    /// it runs again. `f` must change nothing before its last miss.
    pub fn locked<T>(
        &self,
        inode: &Arc<Inode>,
        wait: Wait,
        mut f: impl FnMut(&mut State, &Held, u64) -> std::result::Result<T, Miss>,
    ) -> Option<Result<T>> {
        // What is missing is read outside the locks: it must not be given away meanwhile.
        let _pin = self.pins.pin(&self.epoch);
        let held = Held::new(&self.store);
        loop {
            let miss = {
                let _shared = self.guard.shared();
                let _steps = self.store.in_steps();
                let mut state = inode.state.write();
                if let Err(e) = self.check_changeable(inode, &state) {
                    return Some(Err(e));
                }
                match f(&mut state, &held, self.now()) {
                    Ok(t) => return Some(Ok(t)),
                    Err(miss) => miss,
                }
            };
            if wait == Wait::Never && matches!(miss, Miss::Node(_)) {
                return None;
            }
            if let Err(e) = held.fetch(miss) {
                return Some(Err(e));
            }
        }
    }

    /// The range becomes a hole; its partial edge blocks are zeroed. The size stays.
    pub fn punch_file(&self, inode: &Arc<Inode>, offset: u64, len: u64) -> Result<()> {
        self.writable()?;
        self.pace()?;
        let end = offset.saturating_add(len).min(MAX_FILE_BYTES);
        let (first, last) = (offset.div_ceil(BS), end / BS);
        let inner = (first < last).then(|| (first, last - first));
        let head = (offset, end.min(first * BS));
        let tail = (offset.max(last * BS), end);
        loop {
            let mut edit = Edit { hole: inner, privileged: true, ..Edit::default() };
            for (from, to) in [head, tail] {
                let again = edit.links.last().is_some_and(|p| p.block == from / BS);
                if from < to && !again {
                    edit.links.extend(self.zeroed_part(inode, from, to)?);
                }
            }
            if edit.links.is_empty() && edit.hole.is_none() {
                return Ok(());
            }
            if let Some(done) = self.finish_edit(inode, &edit)? {
                return Ok(done);
            }
        }
    }

    /// A block with some of its bytes zeroed; nothing where there is no block.
    fn zeroed_part(&self, inode: &Inode, from: u64, to: u64) -> Result<Option<Prepared>> {
        let block = from / BS;
        let found = self.current_block(inode, block, Wait::May).unwrap_or(Err(Error::Busy));
        let (mut bytes, slot) = found?;
        if slot.is_hole() {
            return Ok(None);
        }
        bytes.0[(from - block * BS) as usize..(to - block * BS) as usize].fill(0);
        Ok(Some(Prepared { block, data: Data::new(bytes), merged_over: Some(slot) }))
    }

    fn finish_edit(&self, inode: &Arc<Inode>, edit: &Edit) -> Result<Option<()>> {
        let done = self.apply(inode, edit, Wait::May).unwrap_or(Err(Error::Busy))?;
        self.after_change();
        Ok(match done {
            Attempt::Done(()) => Some(()),
            Attempt::Lost => None,
        })
    }

    /// Sets a file's length. What lies behind it in its last block is zeroed in the same step, so
    /// that it reads as zeros when the file grows again.
    pub fn truncate_file(&self, inode: &Arc<Inode>, size: u64) -> Result<()> {
        self.writable()?;
        if size > MAX_FILE_BYTES {
            return Err(Error::TooBig);
        }
        self.pace()?;
        let first = size.div_ceil(BS);
        let hole = Some((first, MAX_FILE_BYTES / BS - first));
        loop {
            let mut edit = Edit { hole, set_size: Some(size), privileged: true, ..Edit::default() };
            let inside = size % BS != 0 && size < inode.state.read().meta.size;
            if inside && !planted(Mutation::TruncateLeavesTail) {
                edit.links.extend(self.zeroed_part(inode, size, first * BS)?);
            }
            if let Some(done) = self.finish_edit(inode, &edit)? {
                return Ok(done);
            }
        }
    }

    /// Reads, lets `change` work on the bytes, and links them if nothing came between.
    pub fn update_file<E>(
        &self,
        inode: &Arc<Inode>,
        offset: u64,
        len: usize,
        mut change: impl FnMut(&mut [u8]) -> std::result::Result<(), E>,
    ) -> Result<std::result::Result<(), E>> {
        self.check_write(offset, len)?;
        if len == 0 || len > ATOMIC_WRITE_BYTES {
            return Err(Error::Invalid("an atomic update of this length"));
        }
        self.pace()?;
        let first = offset / BS;
        let last = last_block(offset, len);
        let mut known: Vec<(Box<Block>, Slot)> = Vec::new();
        loop {
            let mut bytes = Vec::with_capacity(((last - first + 1) * BS) as usize);
            let mut slots = Vec::new();
            for (i, block) in (first..=last).enumerate() {
                // After a loss only what changed is read again: it was just written, so it is in
                // memory, and a large update among many small writes comes to its end.
                if !self.is_still(inode, block, known.get(i).map(|k| &k.1))? {
                    let found = self.current_block(inode, block, Wait::May);
                    let found = found.unwrap_or(Err(Error::Busy))?;
                    match known.get_mut(i) {
                        Some(k) => *k = found,
                        None => known.push(found),
                    }
                }
                bytes.extend_from_slice(&known[i].0 .0);
                slots.push(known[i].1.clone());
            }
            let at = (offset - first * BS) as usize;
            if let Err(e) = change(&mut bytes[at..at + len]) {
                return Ok(Err(e));
            }
            let prepare = |(i, (slot, raw)): (usize, (Slot, &[u8]))| {
                let mut b = Block::zeroed();
                b.0.copy_from_slice(raw);
                Prepared { block: first + i as u64, data: Data::new(b), merged_over: Some(slot) }
            };
            let raw = bytes.chunks_exact(BLOCK_BYTES);
            let prepared: Vec<_> = slots.into_iter().zip(raw).enumerate().map(prepare).collect();
            let edit = Edit { links: prepared, grow_to: offset + len as u64, ..Edit::default() };
            if let Some(()) = self.finish_edit(inode, &edit)? {
                return Ok(Ok(()));
            }
        }
    }

    /// Writes at the end of the file as it is when the write is linked; where that was.
    pub fn append_file(&self, inode: &Arc<Inode>, data: &[u8]) -> Result<u64> {
        self.pace()?;
        loop {
            let at = inode.state.read().meta.size;
            self.check_write(at, data.len())?;
            if data.is_empty() {
                return Ok(at);
            }
            let prepared = self.prepare(inode, at, data, Wait::May);
            let edit = Edit {
                links: prepared.unwrap_or(Err(Error::Busy))?,
                grow_to: at + data.len() as u64,
                only_at_size: Some(at),
                ..Edit::default()
            };
            if let Some(()) = self.finish_edit(inode, &edit)? {
                return Ok(at);
            }
        }
    }

    /// Fills the holes of a range with blocks of zeros, and zeroes what is there.
    pub fn allocate_file(
        &self,
        inode: &Arc<Inode>,
        offset: u64,
        len: u64,
        keep_size: bool,
    ) -> Result<()> {
        self.check_write(offset, 0)?;
        let end = offset.checked_add(len).filter(|e| *e <= MAX_FILE_BYTES).ok_or(Error::TooBig)?;
        let size = inode.state.read().meta.size;
        let limit = if keep_size { end.min(size) } else { end };
        let zeros = vec![0; ATOMIC_WRITE_BYTES];
        let mut at = offset;
        while at < limit {
            let n =
                ((at / ATOMIC_WRITE_BYTES as u64 + 1) * ATOMIC_WRITE_BYTES as u64).min(limit) - at;
            self.write_file(inode, at, &zeros[..n as usize], Wait::May)
                .unwrap_or(Err(Error::Busy))?;
            at += n;
        }
        Ok(())
    }

    /// First data (or hole) at or after `offset`, below the file's end.
    pub fn seek_file(&self, inode: &Inode, offset: u64, data: bool) -> Result<Option<u64>> {
        let _pin = self.pins.pin(&self.epoch);
        let held = Held::new(&self.store);
        loop {
            let state = inode.state.read();
            if Core::is_ended(inode, &state) {
                return Err(Error::Stale);
            }
            let size = state.meta.size;
            if offset >= size {
                return Ok(None);
            }
            let found = state.tree.seek(&held, offset / BS, size.div_ceil(BS), data);
            drop(state);
            match found {
                Ok(found) => return Ok(found.map(|b| (b * BS).max(offset)).filter(|o| *o < size)),
                Err(miss) => held.fetch(miss)?,
            }
        }
    }

    /// Is it a kind whose bytes are read and written by users?
    pub fn check_regular(&self, inode: &Inode) -> Result<()> {
        match inode.state.read().meta.kind {
            InodeKind::File => Ok(()),
            InodeKind::Directory => Err(Error::IsDirectory),
            _ => Err(Error::Invalid("not a regular file")),
        }
    }
}

/// Consecutive blocks on disk that are not in the cache.
fn missing_run(store: &Store, slots: &[Slot]) -> Vec<Pointer> {
    let mut run: Vec<Pointer> = Vec::new();
    for slot in slots {
        let Slot::Ptr(p) = slot else { break };
        let follows = run.last().is_none_or(|l| l.block + 1 == p.block);
        if p.is_hole() || !follows || (!run.is_empty() && store.cached(p).is_some()) {
            break;
        }
        run.push(*p);
    }
    run
}

fn in_file(e: Error, offset: u64) -> Error {
    match e {
        Error::Corrupt { block, .. } => Error::Corrupt { block, file_offset_bytes: Some(offset) },
        e => e,
    }
}
