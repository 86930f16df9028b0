//! Range clones: as an operation, in the model, and what a crash may leave of one.

use super::model::{Applied, Blocks, Body, Chunk, Kind, Model, Node, BLOCK};
use super::ops::{Generator, Op, Profile};
use lunfs::fs::{NodeId, NodeKind, MAX_FILE_BYTES};
use std::sync::Arc;

/// What is not aligned is copied so many bytes at a time, each with what holes are in it.
const COPIED_AT_ONCE: u64 = 1 << 20;
const ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];

/// A range of one file goes to another, or to another place of the same one.
#[derive(Debug, Clone, Copy)]
pub struct CloneRange {
    pub from: NodeId,
    pub at: u64,
    pub to: NodeId,
    pub to_at: u64,
    pub len: u64,
}

fn blocks_of(model: &Model, id: NodeId) -> Option<(Blocks, u64)> {
    match model.get(id) {
        Some(Node { body: Body::File(blocks), size, .. }) => Some((blocks.clone(), *size)),
        _ => None,
    }
}

impl Model {
    pub(super) fn clone_range(&mut self, op: &CloneRange) -> Applied {
        let (source, size) = blocks_of(self, op.from).ok_or(Kind::Any)?;
        let target_size = self.get(op.to).ok_or(Kind::Any)?.size;
        let len = op.len.min(size.saturating_sub(op.at));
        let end = op.to_at.checked_add(len).filter(|end| *end <= MAX_FILE_BYTES);
        let end = end.ok_or(Kind::TooBig)?;
        if len == 0 || (op.from == op.to && op.at == op.to_at) {
            return Ok(());
        }
        let head = (op.at.next_multiple_of(BLOCK) - op.at).min(len);
        let inner = (len - head) / BLOCK * BLOCK;
        let alike = op.at % BLOCK == op.to_at % BLOCK && inner > 0;
        let (head, inner) = if alike { (head, inner) } else { (len, 0) };
        self.copy(op, &source, 0, head)?;
        // Where both end in the last block, it is linked too.
        let whole = op.from != op.to && op.at + len == size && target_size <= end;
        let linked = if alike && whole { (len - head).next_multiple_of(BLOCK) } else { inner };
        let node = self.get_mut(op.to)?;
        let Body::File(blocks) = &mut node.body else { return Err(Kind::Any) };
        for number in 0..linked / BLOCK {
            let (from, to) = (op.at + head + number * BLOCK, op.to_at + head + number * BLOCK);
            match source.get(&(from / BLOCK)) {
                Some(chunk) => drop(blocks.insert(to / BLOCK, chunk.clone())),
                None => drop(blocks.remove(&(to / BLOCK))),
            }
        }
        node.size = node.size.max(end);
        match head + linked < len {
            true => self.copy(op, &source, head + linked, len - head - linked),
            false => Ok(()),
        }
    }

    /// Copies a part of the range: holes are punched, data is written.
    fn copy(&mut self, op: &CloneRange, source: &Blocks, skip: u64, len: u64) -> Applied {
        let (start, stop) = (op.at + skip, op.at + skip + len);
        let mut at = start;
        while at < stop {
            let chunk_end = stop.min(start + ((at - start) / COPIED_AT_ONCE + 1) * COPIED_AT_ONCE);
            let is_data = source.contains_key(&(at / BLOCK));
            let mut part_end = (at / BLOCK + 1) * BLOCK;
            while part_end < chunk_end && source.contains_key(&(part_end / BLOCK)) == is_data {
                part_end += BLOCK;
            }
            let part_end = part_end.min(chunk_end);
            let to = op.to_at + (at - op.at);
            match is_data {
                true => {
                    let bytes = |n: u64| source.get(&n).map_or(&ZEROS[..], Chunk::bytes).to_vec();
                    let all: Vec<u8> =
                        (at / BLOCK..part_end.div_ceil(BLOCK)).flat_map(bytes).collect();
                    let into = (at % BLOCK) as usize;
                    self.write(op.to, to, &all[into..into + (part_end - at) as usize])?;
                }
                false => self.punch(op.to, to, part_end - at)?,
            }
            at = part_end;
        }
        let node = self.get_mut(op.to)?;
        node.size = node.size.max(op.to_at + skip + len);
        Ok(())
    }
}

/// A state between: each byte of the target is what it was or what it should become.
pub fn part_of_clone(before: &Model, op: &CloneRange, seen: &Model) -> Option<Model> {
    let mut after = before.clone();
    after.clone_range(op).ok()?;
    let (old, old_size) = blocks_of(before, op.to)?;
    let (new, new_size) = blocks_of(&after, op.to)?;
    let (there, size) = blocks_of(seen, op.to)?;
    let bytes = |blocks: &Blocks, n: &u64| blocks.get(n).map_or(ZEROS, |c| *c.array());
    let numbers = old.keys().chain(new.keys()).chain(there.keys());
    let fits = |n: &u64| {
        let (old, new, there) = (bytes(&old, n), bytes(&new, n), bytes(&there, n));
        (0..BLOCK as usize).all(|i| there[i] == old[i] || there[i] == new[i])
    };
    if size < old_size || size > new_size || !numbers.into_iter().all(fits) {
        return None;
    }
    let mut state = before.clone();
    let node = state.nodes.get_mut(&op.to).map(Arc::make_mut)?;
    (node.body, node.size) = (Body::File(there), size);
    Some(state)
}

impl Generator<'_> {
    /// Within a file often, so that source and target overlap.
    pub(super) fn clone_range(&mut self) -> Option<Op> {
        if self.short || self.profile == Profile::Full {
            return None;
        }
        let file = |model: &Model, id| model.get(id).is_some_and(|n| n.kind == NodeKind::File);
        let to = self.pick(file)?;
        let from = if self.rng.chance(1, 3) { to } else { self.pick_any(file)? };
        let size = self.model.get(from).map_or(0, |node| node.size).min(8 << 20);
        let mut at = self.rng.below(size + 1);
        let mut to_at = if self.rng.chance(1, 2) { at } else { self.rng.below(8 << 20) };
        if from == to && self.rng.chance(1, 2) {
            to_at = (at + self.rng.below(64) * 512).saturating_sub(self.rng.below(64) * 512);
        }
        if self.rng.chance(3, 4) {
            (at, to_at) = (at / BLOCK * BLOCK, to_at / BLOCK * BLOCK);
        }
        let len = match self.rng.below(4) {
            0 => size,
            1 => self.rng.below(3 << 20),
            _ => BLOCK * (1 + self.rng.below(100)),
        };
        Some(Op::CloneRange(CloneRange { from, at, to, to_at, len }))
    }
}
