//! A file's block tree in memory: what is on disk, overlaid with what is newer.
//!
//! Invariants:
//! - a node in memory (`Slot::Node`) is newer than the disk, or was until the consistency point
//!   that placed it; a node not in memory is a pointer, whose block is found through the cache;
//! - a node may be changed only in the epoch of its birth; later it is frozen, and to change it is
//!   to copy it: the copy is born now and the old object goes to the dead list;
//! - `Slot::Data` is a block that was linked and is not yet known to be in its place; the pointer
//!   made of it has the same birth wherever it is written;
//! - nothing here does I/O: a block that is not at hand is reported as [`Miss`], and nothing
//!   was changed that anybody could see.

use super::error::Error;
use super::planted::{planted, Mutation};
use super::store::Data;
use fs_layout::{Pointer, POINTERS_PER_NODE};
use std::sync::{Arc, OnceLock};

/// Pointers of a node, as a file-block distance.
const FAN: u64 = POINTERS_PER_NODE as u64;
/// Tallest tree.
pub(crate) const MAX_HEIGHT: u8 = 5;

/// What a parent holds.
#[derive(Clone)]
pub(crate) enum Slot {
    /// On disk, or a hole.
    Ptr(Pointer),
    /// A data block, with its birth.
    Data(u64, Arc<Data>),
    /// A tree node in memory.
    Node(Arc<Node>),
}

impl Slot {
    pub fn hole(birth: u64) -> Slot {
        Slot::Ptr(Pointer::hole(birth))
    }

    pub fn is_hole(&self) -> bool {
        matches!(self, Slot::Ptr(p) if p.is_hole())
    }

    /// When it was linked.
    pub fn birth(&self) -> u64 {
        match self {
            Slot::Ptr(p) => p.birth,
            Slot::Data(birth, _) => *birth,
            Slot::Node(n) => n.birth,
        }
    }

    /// The same object?
    pub fn same(&self, other: &Slot) -> bool {
        match (self, other) {
            (Slot::Ptr(a), Slot::Ptr(b)) => a == b || (a.is_hole() && b.is_hole()),
            (Slot::Data(_, a), Slot::Data(_, b)) => Arc::ptr_eq(a, b),
            (Slot::Node(a), Slot::Node(b)) => Arc::ptr_eq(a, b),
            // A block that got its place meanwhile is the same block.
            (Slot::Ptr(p), Slot::Data(b, d)) | (Slot::Data(b, d), Slot::Ptr(p)) => {
                !p.is_hole() && d.place() == p.block && p.crc == d.crc && p.birth == *b
            }
            _ => false,
        }
    }

    /// The pointer, if the object has its place.
    pub fn pointer(&self) -> Option<Pointer> {
        match self {
            Slot::Ptr(p) => Some(*p),
            Slot::Data(birth, d) => {
                let block = d.place();
                (block != 0).then_some(Pointer { block, birth: *birth, crc: d.crc, cloned: false })
            }
            Slot::Node(n) => n.place.get().map(|p| Pointer { birth: n.birth, ..*p }),
        }
    }
}

/// A node newer than the disk.
pub(crate) struct Node {
    pub birth: u64,
    /// Set by the consistency point that writes it.
    pub place: OnceLock<Pointer>,
    pub slots: Vec<Slot>,
}

impl Node {
    fn of_holes(birth: u64, hole_birth: u64) -> Node {
        let slots = vec![Slot::hole(hole_birth); POINTERS_PER_NODE];
        Node { birth, place: OnceLock::new(), slots }
    }

    fn from_disk(birth: u64, p: &Pointer, raw: &Data) -> Result<Node, Miss> {
        let slots = (0..POINTERS_PER_NODE).map(|i| slot_at(p, raw, i)).collect::<Result<_, _>>()?;
        Ok(Node { birth, place: OnceLock::new(), slots })
    }

    /// A copy to be changed in `birth`. A child that has its place may not be written yet: it stays
    /// an object until [`Tree::trim`].
    fn copy(&self, birth: u64) -> Node {
        Node { birth, place: OnceLock::new(), slots: self.slots.clone() }
    }
}

/// Something detached: what stands below is judged when its epoch's consistency point knows all
/// places.
pub(crate) enum Dead {
    /// This block of data.
    Block(Slot),
    /// A node alone, of this height: a copy of it has the same children.
    Node(Slot, u8),
    /// A subtree: (top, height of the top above the data, inode whose count of blocks falls when
    /// its data is counted, or 0).
    Tree(Slot, u8, u64),
    /// Nothing died: a pointer more leads to this block.
    Cloned(u64),
}

impl Dead {
    /// All of a file's tree.
    pub fn whole(tree: Tree) -> Dead {
        match tree.height {
            0 => Dead::Block(tree.root),
            h => Dead::Tree(tree.root, h, 0),
        }
    }
}

/// Why an operation in memory cannot go on.
pub(crate) enum Miss {
    /// This node is not in the cache.
    Node(Pointer),
    /// What was read makes no sense.
    Bad(Error),
}

/// Where clean nodes are found: those held for this operation, then the cache.
pub(crate) trait NodeSource {
    fn node(&self, p: &Pointer) -> Option<Arc<Data>>;
}

/// What a change needs and leaves behind.
pub(crate) struct Change<'a> {
    pub now: u64,
    pub nodes: &'a dyn NodeSource,
    pub dead: &'a mut Vec<Dead>,
    /// Nodes that became dirty: each will take a block.
    pub dirtied: u64,
    /// Data blocks linked where a hole was, less those unlinked one by one.
    pub blocks: i64,
    pub ino: u64,
}

/// A block tree.
#[derive(Clone)]
pub(crate) struct Tree {
    pub root: Slot,
    pub height: u8,
}

fn raw(nodes: &dyn NodeSource, p: &Pointer) -> Result<Arc<Data>, Miss> {
    nodes.node(p).ok_or(Miss::Node(*p))
}

/// File blocks below one slot of a node whose own height is `height` (1: leaf).
fn span(height: u8) -> u64 {
    FAN.saturating_pow(u32::from(height) - 1)
}

/// Blocks that a tree of this height can hold.
pub(crate) fn reach(height: u8) -> u64 {
    FAN.saturating_pow(u32::from(height))
}

/// A slot of the node that `p` leads to, as it is on disk.
fn slot_at(p: &Pointer, raw: &Data, index: usize) -> Result<Slot, Miss> {
    let pointer = p.child(&raw.bytes.0, index);
    pointer.map(Slot::Ptr).map_err(|e| Miss::Bad(Error::Format(e.to_string())))
}

fn child(nodes: &dyn NodeSource, slot: &Slot, index: usize) -> Result<Slot, Miss> {
    match slot {
        Slot::Node(n) => Ok(n.slots[index].clone()),
        Slot::Ptr(p) if p.is_hole() => Ok(Slot::Ptr(*p)),
        Slot::Ptr(p) => slot_at(p, &*raw(nodes, p)?, index),
        Slot::Data(..) => Err(Miss::Bad(Error::Invalid("a data block stands where a node should"))),
    }
}

/// All slots of the node that a slot leads to.
pub(crate) fn slots_of(nodes: &dyn NodeSource, slot: &Slot) -> Result<Vec<Slot>, Miss> {
    match slot {
        Slot::Node(n) => Ok(n.slots.clone()),
        Slot::Ptr(p) if !p.is_hole() => {
            let raw = raw(nodes, p)?;
            (0..POINTERS_PER_NODE).map(|i| slot_at(p, &raw, i)).collect()
        }
        _ => Err(Miss::Bad(Error::Invalid("a data block stands where a node should"))),
    }
}

impl Tree {
    pub fn empty() -> Tree {
        Tree { root: Slot::hole(0), height: 0 }
    }

    /// What is linked at a file block.
    pub fn get(&self, nodes: &dyn NodeSource, block: u64) -> Result<Slot, Miss> {
        let mut out = Vec::with_capacity(1);
        self.get_range(nodes, block, 1, &mut out)?;
        Ok(out.pop().unwrap_or(Slot::hole(0)))
    }

    /// What is linked at `count` file blocks, appended to `out`.
    pub fn get_range(
        &self,
        nodes: &dyn NodeSource,
        first: u64,
        count: u64,
        out: &mut Vec<Slot>,
    ) -> Result<(), Miss> {
        let end = (first + count).min(reach(self.height)).max(first);
        if end > first {
            collect(nodes, &self.root, self.height, first, end - first, out)?;
        }
        out.extend((end..first + count).map(|_| Slot::hole(0)));
        Ok(())
    }

    /// The first block at or after `from`, before `end`, that is data (or a hole).
    pub fn seek(
        &self,
        nodes: &dyn NodeSource,
        from: u64,
        end: u64,
        data: bool,
    ) -> Result<Option<u64>, Miss> {
        let reach = reach(self.height);
        let found = match from < reach {
            true => seek_in(nodes, &self.root, self.height, 0, from, end.min(reach), data)?,
            false => None,
        };
        Ok(match found {
            None if !data && end > reach.max(from) => Some(reach.max(from)),
            found => found,
        })
    }

    /// Links `slot` at a file block; what was there goes to the dead list.
    pub fn link(&mut self, c: &mut Change, block: u64, slot: Slot) -> Result<(), Miss> {
        self.grow(c, block, 0)?;
        let at = self.slot_at_height(c, block, 0)?;
        c.blocks += i64::from(!slot.is_hole()) - i64::from(!at.is_hole());
        let old = std::mem::replace(at, slot);
        if !old.is_hole() {
            c.dead.push(Dead::Block(old));
        }
        Ok(())
    }

    /// Links what another tree has too, with `blocks` data blocks at and below it, where a hole is.
    pub fn link_clone(
        &mut self,
        c: &mut Change,
        first: u64,
        height: u8,
        p: Pointer,
        blocks: u64,
    ) -> Result<(), Miss> {
        self.grow(c, first, height)?;
        let at = self.slot_at_height(c, first, height)?;
        if !at.is_hole() {
            return Err(Miss::Bad(Error::Invalid("a clone where there is something")));
        }
        *at = Slot::Ptr(p);
        c.blocks += blocks as i64;
        c.dead.push(Dead::Cloned(p.block));
        Ok(())
    }

    /// The slot that leads to what is `height` levels above a file block; the nodes above it may be
    /// changed.
    fn slot_at_height(&mut self, c: &mut Change, block: u64, to: u8) -> Result<&mut Slot, Miss> {
        let mut at = &mut self.root;
        let mut height = self.height;
        let mut rest = block;
        while height > to {
            let node = writable(c, at, height)?;
            let s = span(height);
            at = &mut node.slots[(rest / s) as usize];
            rest %= s;
            height -= 1;
        }
        Ok(at)
    }

    fn grow(&mut self, c: &mut Change, block: u64, height: u8) -> Result<(), Miss> {
        while block >= reach(self.height) || self.height < height {
            if self.height == MAX_HEIGHT {
                return Err(Miss::Bad(Error::TooBig));
            }
            if !self.root.is_hole() {
                let mut node = Node::of_holes(c.now, 0);
                node.slots[0] = std::mem::replace(&mut self.root, Slot::hole(0));
                self.root = Slot::Node(Arc::new(node));
                c.dirtied += 1;
            }
            self.height += 1;
        }
        Ok(())
    }

    /// What stands in blocks `first..end`, as parts that can be linked elsewhere: of what is on
    /// disk the tallest subtrees that lie in the range and that `fits` (first block, height) takes,
    /// else blocks; holes are left out. Where more than `max` parts are, the block to go on from.
    pub fn parts(
        &self,
        nodes: &dyn NodeSource,
        range: (u64, u64),
        max: usize,
        fits: &dyn Fn(u64, u8) -> bool,
    ) -> Result<(Vec<Part>, Option<u64>), Miss> {
        let end = range.1.min(reach(self.height));
        let mut walk = Parts { nodes, first: range.0, end, max, fits, out: Vec::new(), next: None };
        walk.below(&self.root, self.height, 0)?;
        Ok((walk.out, walk.next))
    }

    /// Makes a range holes: whole subtrees are detached at once.
    pub fn punch(&mut self, c: &mut Change, first: u64, count: u64) -> Result<(), Miss> {
        let end = first.saturating_add(count).min(reach(self.height));
        if first < end {
            punch_in(c, &mut self.root, self.height, first, end)?;
        }
        if self.root.is_hole() {
            self.height = 0;
        }
        Ok(())
    }

    /// Replaces a block that got its place by its pointer, where the tree may be changed. Never
    /// misses.
    pub fn settle(&mut self, now: u64, block: u64, data: &Arc<Data>) {
        let mut at = &mut self.root;
        let mut height = self.height;
        let mut rest = block;
        if block >= reach(height) {
            return;
        }
        while height > 0 {
            let Slot::Node(n) = at else { return };
            if n.birth != now {
                return;
            }
            let Some(node) = Arc::get_mut(n) else { return };
            let s = span(height);
            at = &mut node.slots[(rest / s) as usize];
            rest %= s;
            height -= 1;
        }
        if planted(Mutation::SettleUnchecked) {
            *at = Slot::Ptr(Pointer {
                block: data.place(),
                birth: now,
                crc: data.crc,
                cloned: false,
            });
            return;
        }
        let ours = matches!(at, Slot::Data(_, d) if Arc::ptr_eq(d, data));
        if let Some(p) = at.pointer().filter(|_| ours) {
            *at = Slot::Ptr(p);
        }
    }

    /// Takes nodes that a consistency point has written out of the tree, as far as it may be
    /// changed, beginning above block `from`: a few, for others wait meanwhile. They are put to
    /// `gone`, to be dropped when nobody does. The block to go on from.
    pub fn trim(&mut self, now: u64, from: u64, gone: &mut Vec<Slot>) -> Option<u64> {
        let mut trim = Trim { now, from, left: TRIM_NODES, gone };
        trim.below(&mut self.root, self.height, 0)
    }
}

/// Something of a file that can be linked elsewhere.
pub(crate) struct Part {
    /// First block of the file.
    pub first: u64,
    pub height: u8,
    /// A pointer, or a block that is not on disk yet.
    pub slot: Slot,
}

struct Parts<'a> {
    nodes: &'a dyn NodeSource,
    first: u64,
    end: u64,
    max: usize,
    fits: &'a dyn Fn(u64, u8) -> bool,
    out: Vec<Part>,
    next: Option<u64>,
}

impl Parts<'_> {
    fn below(&mut self, slot: &Slot, height: u8, base: u64) -> Result<(), Miss> {
        let stop = base.saturating_add(reach(height));
        if self.next.is_some() || slot.is_hole() || stop <= self.first || base >= self.end {
            return Ok(());
        }
        let is_whole = self.first <= base && stop <= self.end;
        let is_on_disk = matches!(slot, Slot::Ptr(_));
        if height == 0 || (is_whole && is_on_disk && (self.fits)(base, height)) {
            if self.out.len() >= self.max {
                self.next = Some(base);
            } else {
                self.out.push(Part { first: base, height, slot: slot.clone() });
            }
            return Ok(());
        }
        let s = span(height);
        let from = self.first.saturating_sub(base) / s;
        let to = (self.end - base).div_ceil(s).min(FAN);
        for index in from..to {
            let below = child(self.nodes, slot, index as usize)?;
            self.below(&below, height - 1, base + index * s)?;
        }
        Ok(())
    }
}

/// Nodes that one step of [`Tree::trim`] takes out or goes through: some tens of microseconds.
const TRIM_NODES: u32 = 64;

struct Trim<'a> {
    now: u64,
    from: u64,
    left: u32,
    gone: &'a mut Vec<Slot>,
}

impl Trim<'_> {
    /// Below the slot of what begins at block `base`.
    fn below(&mut self, slot: &mut Slot, height: u8, base: u64) -> Option<u64> {
        let Slot::Node(n) = slot else { return None };
        self.left = self.left.saturating_sub(1);
        if let Some(p) = n.place.get() {
            let p = Pointer { birth: n.birth, ..*p };
            self.gone.push(std::mem::replace(slot, Slot::Ptr(p)));
            return None;
        }
        if n.birth != self.now || height == 0 {
            return None;
        }
        let node = Arc::get_mut(n)?;
        let s = span(height);
        let first = (self.from.saturating_sub(base) / s) as usize;
        let slots = node.slots.iter_mut().enumerate().skip(first);
        for (index, below) in slots.filter(|(_, below)| matches!(below, Slot::Node(_))) {
            let start = base + index as u64 * s;
            // The path to the first one is free.
            if self.left == 0 && start > self.from {
                return Some(start);
            }
            if let Some(next) = self.below(below, height - 1, start) {
                return Some(next);
            }
        }
        None
    }
}

fn collect(
    nodes: &dyn NodeSource,
    slot: &Slot,
    height: u8,
    first: u64,
    count: u64,
    out: &mut Vec<Slot>,
) -> Result<(), Miss> {
    if height == 0 || slot.is_hole() {
        out.extend((0..count).map(|_| slot.clone()));
        return Ok(());
    }
    let s = span(height);
    let end = first + count;
    let mut at = first;
    if let (1, Slot::Node(n)) = (height, slot) {
        out.extend_from_slice(&n.slots[first as usize..end as usize]);
        return Ok(());
    }
    let on_disk = match slot {
        Slot::Ptr(p) => Some((p, raw(nodes, p)?)),
        _ => None,
    };
    while at < end {
        let next = ((at / s + 1) * s).min(end);
        let index = (at / s) as usize;
        let below = match &on_disk {
            Some((p, d)) => slot_at(p, d, index)?,
            None => child(nodes, slot, index)?,
        };
        collect(nodes, &below, height - 1, at % s, next - at, out)?;
        at = next;
    }
    Ok(())
}

fn seek_in(
    nodes: &dyn NodeSource,
    slot: &Slot,
    height: u8,
    base: u64,
    from: u64,
    end: u64,
    data: bool,
) -> Result<Option<u64>, Miss> {
    let from = from.max(base);
    if from >= end {
        return Ok(None);
    }
    if slot.is_hole() || height == 0 {
        return Ok((slot.is_hole() != data).then_some(from));
    }
    let s = span(height);
    for index in (from - base) / s..FAN {
        let start = base + index * s;
        if start >= end {
            break;
        }
        let below = child(nodes, slot, index as usize)?;
        let stop = end.min(start + s);
        let found = seek_in(nodes, &below, height - 1, start, from.max(start), stop, data)?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// The node in a slot, made changeable: a hole becomes a node, a frozen node is copied.
fn writable<'a>(c: &mut Change, slot: &'a mut Slot, height: u8) -> Result<&'a mut Node, Miss> {
    let fresh = match slot {
        // Nobody else holds a node that was born now.
        Slot::Node(n) if n.birth == c.now => None,
        Slot::Node(n) => {
            let copy = n.copy(c.now);
            c.dead.push(Dead::Node(Slot::Node(n.clone()), height));
            c.dirtied += 1;
            Some(copy)
        }
        Slot::Ptr(p) if p.is_hole() => {
            c.dirtied += 1;
            Some(Node::of_holes(c.now, p.birth))
        }
        Slot::Ptr(p) => {
            let node = Node::from_disk(c.now, p, &*raw(c.nodes, p)?)?;
            c.dead.push(Dead::Node(Slot::Ptr(*p), height));
            c.dirtied += 1;
            Some(node)
        }
        Slot::Data(..) => None,
    };
    if let Some(node) = fresh {
        *slot = Slot::Node(Arc::new(node));
    }
    let bad = Miss::Bad(Error::Invalid("a data block stands where a node should"));
    match slot {
        Slot::Node(n) => Arc::get_mut(n).ok_or(bad),
        _ => Err(bad),
    }
}

/// Nodes looked into when a subtree is detached: enough for 64 MiB, and soon done.
const COUNT_AT_ONCE: u32 = 64;

/// Data blocks below a slot, if so many nodes tell and none must be read for it.
fn count_data(nodes: &dyn NodeSource, slot: &Slot, height: u8, budget: &mut u32) -> Option<i64> {
    if slot.is_hole() || height == 0 {
        return Some(i64::from(!slot.is_hole()));
    }
    *budget = budget.checked_sub(1)?;
    match slot {
        Slot::Node(n) => n.slots.iter().map(|s| count_data(nodes, s, height - 1, budget)).sum(),
        Slot::Ptr(p) => {
            let raw = nodes.node(p)?;
            let below = |i| count_data(nodes, &slot_at(p, &raw, i).ok()?, height - 1, budget);
            (0..POINTERS_PER_NODE).map(below).sum()
        }
        Slot::Data(..) => None,
    }
}

fn punch_in(c: &mut Change, slot: &mut Slot, height: u8, first: u64, end: u64) -> Result<(), Miss> {
    if slot.is_hole() {
        return Ok(());
    }
    if first == 0 && end == reach(height) {
        let old = std::mem::replace(slot, Slot::hole(c.now));
        if height == 0 {
            c.blocks -= 1;
            c.dead.push(Dead::Block(old));
        } else {
            // Counted at once where the nodes are at hand; else when the walker has freed the data.
            match count_data(c.nodes, &old, height, &mut COUNT_AT_ONCE.clone()) {
                Some(n) => {
                    c.blocks -= n;
                    c.dead.push(Dead::Tree(old, height, 0));
                }
                None => c.dead.push(Dead::Tree(old, height, c.ino)),
            }
        }
        return Ok(());
    }
    let s = span(height);
    let node = writable(c, slot, height)?;
    let mut at = first;
    while at < end {
        let next = ((at / s + 1) * s).min(end);
        let from = at % s;
        punch_in(c, &mut node.slots[(at / s) as usize], height - 1, from, from + (next - at))?;
        at = next;
    }
    if node.slots.iter().all(Slot::is_hole) {
        // The node is empty: one hole in its parent. It was born now, so nobody else has it.
        *slot = Slot::hole(c.now);
    }
    Ok(())
}
