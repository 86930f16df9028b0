//! What a crash may leave: the state of some prefix of the operations, not older than what was made
//! durable. Finds that prefix, or says why there is none.

use super::model::{Body, Kind, Made, Model, Stamps, BLOCK};
use super::observe::differences;
use super::ops::Op;
use super::ranges::part_of_clone;
use lunfs::fs::{NodeId, ATOMIC_WRITE_BYTES};

/// An operation that was done, or was under way when the power failed.
#[derive(Clone)]
pub struct Entry {
    pub op: Op,
    pub made: Made,
    /// Times of the nodes it touched, as they were told afterwards.
    pub stamps: Vec<(NodeId, Stamps)>,
    /// It answered an error because the power failed: it may have happened or not.
    pub uncertain: bool,
    /// So many entries before this one happened inside it: it may have come before any of them.
    /// Their order makes no difference to what is there when all are done.
    pub overlaps: usize,
}

impl Entry {
    pub fn new(op: Op) -> Entry {
        Entry { op, made: Made::default(), stamps: vec![], uncertain: false, overlaps: 0 }
    }

    /// Does it to the model, which must not refuse: it was accepted before.
    pub fn replay(&self, model: &mut Model) {
        let _ = model.apply(&self.op, &self.made);
        set_stamps(model, &self.stamps);
    }
}

pub fn set_stamps(model: &mut Model, stamps: &[(NodeId, Stamps)]) {
    for (id, stamps) in stamps {
        if let Ok(node) = model.get_mut(*id) {
            node.stamps = *stamps;
        }
    }
}

/// The prefix found: how many entries of the log happened, and the state they make.
pub struct Found {
    pub entries: usize,
    pub model: Model,
}

/// Finds the prefix of `log`, at least `floor` entries long, that makes `base` what was `seen`.
pub fn find(base: &Model, log: &[Entry], floor: usize, seen: &Model) -> Result<Found, String> {
    let mut model = base.without_handles();
    let mut best: Option<Found> = None;
    let mut nearest = String::new();
    let mut highest = None;
    for at in 0..=log.len() {
        if at >= floor {
            let plain = model.without_handles();
            if plain.same(seen) {
                highest.get_or_insert(plain.highest.clone());
                best = Some(Found { entries: at, model: plain });
            } else if at == floor || at == log.len() {
                let said = differences(&plain, seen);
                nearest += &format!("\n  after {at} operations: {said}");
            }
        }
        let Some(entry) = log.get(at) else { break };
        if at >= floor {
            if let Some(part) = partly(&model, entry, seen) {
                highest.get_or_insert(model.highest.clone());
                best = Some(Found { entries: at + 1, model: part });
            }
        }
        if let Some(other) = in_other_order(&model, &log[at..], floor.saturating_sub(at), seen) {
            highest.get_or_insert(model.highest.clone());
            best = Some(Found { entries: at + 1, model: other });
        }
        entry.replay(&mut model);
    }
    let best = best.map(|found| Found {
        // Numbers given away after the first state that fits may never have been.
        model: Model { highest: highest.unwrap_or_default(), ..found.model },
        ..found
    });
    best.ok_or_else(|| {
        format!("no prefix of {} operations from {floor} on is what is there:{nearest}", log.len())
    })
}

/// States where an operation came before some of those that happened inside it: `rest` begins with
/// them, and the first `floor` of them are durable.
fn in_other_order(before: &Model, rest: &[Entry], floor: usize, seen: &Model) -> Option<Model> {
    let outer = (1..rest.len()).find(|&i| rest[i].overlaps == i)?;
    let around = match rest[outer].uncertain {
        true => Entry { made: made_as_seen(&rest[outer].op, seen), ..rest[outer].clone() },
        false => rest[outer].clone(),
    };
    for first in 0..outer {
        let mut model = before.clone();
        rest[..first].iter().for_each(|entry| entry.replay(&mut model));
        let made = around.made.node.map(|(id, _)| id);
        let touched: Vec<NodeId> = around.op.touches(&model).into_iter().chain(made).collect();
        around.replay(&mut model);
        for (done, inside) in (first..).zip(&rest[first..outer]) {
            if done >= floor {
                let state = take_stamps(model.clone(), &touched, seen);
                if state.same(seen) {
                    return Some(state);
                }
            }
            inside.replay(&mut model);
        }
    }
    None
}

/// What an operation may leave that was not finished, or is too long to be atomic: `None` where
/// nothing of that kind is what was seen.
fn partly(before: &Model, entry: &Entry, seen: &Model) -> Option<Model> {
    let mut states = Vec::new();
    if entry.uncertain {
        let mut model = before.clone();
        let made = made_as_seen(&entry.op, seen);
        if model.apply(&entry.op, &made).is_ok() {
            states.push(model);
        }
    }
    if let Op::CloneRange(op) = &entry.op {
        states.extend(part_of_clone(before, op, seen));
    } else if entry.op.is_long() {
        states.extend(first_part(before, &entry.op, seen));
    }
    let made = made_as_seen(&entry.op, seen).node.map(|(id, _)| id);
    let touched: Vec<NodeId> = entry.op.touches(before).into_iter().chain(made).collect();
    states.into_iter().map(|state| take_stamps(state, &touched, seen)).find(|s| s.same(seen))
}

/// Times of an operation that did not end are whatever they are.
fn take_stamps(mut model: Model, touched: &[NodeId], seen: &Model) -> Model {
    for id in touched {
        if let (Some(other), Ok(node)) = (seen.nodes.get(id), model.get_mut(*id)) {
            node.stamps = other.stamps;
        }
    }
    model.without_handles()
}

/// What an unfinished operation made, from what is there.
fn made_as_seen(op: &Op, seen: &Model) -> Made {
    let node_of = |id: NodeId| seen.nodes.get(&id).map(|node| (id, node.generation));
    match op {
        Op::Create { dir, name, .. } => {
            let id = seen.entries(*dir).ok().and_then(|entries| entries.get(name));
            Made { node: id.and_then(|&id| node_of(id)), ..Made::default() }
        }
        Op::VolumeCreate { name, .. } => {
            let volume = seen.volumes.get(name).copied();
            let node = volume.and_then(|volume| node_of(NodeId::root(volume)));
            Made { node, volume, ..Made::default() }
        }
        Op::Version(op) => op.made_as_seen(seen),
        _ => Made::default(),
    }
}

/// An operation in steps of which only the first ones happened: a whole number of steps, or as many
/// blocks as can be seen.
fn first_part(before: &Model, op: &Op, seen: &Model) -> Vec<Model> {
    let Some((node, offset, len)) = range_of(before, op) else { return Vec::new() };
    let step = ATOMIC_WRITE_BYTES as u64;
    let mut lens: Vec<u64> = (1..len.div_ceil(step)).map(|n| n * step).collect();
    lens.extend(seen_len(before, op, seen));
    let state = |len: u64| {
        let mut model = before.clone();
        do_first(&mut model, op, node, offset, len).ok()?;
        with_stamps_of(&mut model, node, seen);
        Some(model)
    };
    lens.into_iter().filter_map(state).collect()
}

fn range_of(before: &Model, op: &Op) -> Option<(NodeId, u64, u64)> {
    match op {
        Op::Write { node, offset, data } => Some((*node, *offset, data.len as u64)),
        Op::Append { node, data } => Some((*node, before.get(*node)?.size, data.len as u64)),
        Op::Zeros { node, offset, len, .. } => Some((*node, *offset, *len)),
        _ => None,
    }
}

fn do_first(model: &mut Model, op: &Op, node: NodeId, offset: u64, len: u64) -> Result<(), Kind> {
    match op {
        Op::Write { data, .. } | Op::Append { data, .. } => {
            model.write(node, offset, &data.bytes()[..len as usize])
        }
        Op::Zeros { keep_size, .. } => model.zeros(node, offset, len, *keep_size),
        _ => Ok(()),
    }
}

/// How many bytes of it are there, up to a whole block.
fn seen_len(before: &Model, op: &Op, seen: &Model) -> Option<u64> {
    let (node, offset, len) = range_of(before, op)?;
    let Body::File(there) = &seen.nodes.get(&node)?.body else { return None };
    let mut whole = before.clone();
    do_first(&mut whole, op, node, offset, len).ok()?;
    let Body::File(wanted) = &whole.get(node)?.body else { return None };
    let mut numbers = offset / BLOCK..(offset + len).div_ceil(BLOCK);
    let differs = numbers.find(|n| there.get(n) != wanted.get(n))?;
    Some((differs * BLOCK).saturating_sub(offset))
}

fn with_stamps_of(model: &mut Model, id: NodeId, seen: &Model) {
    if let (Some(other), Ok(node)) = (seen.nodes.get(&id), model.get_mut(id)) {
        node.stamps = other.stamps;
    }
}
