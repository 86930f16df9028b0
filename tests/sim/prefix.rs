//! What a crash may leave: the state of some prefix of the operations, not older than what was made
//! durable. Finds that prefix, or says why there is none.

use super::model::{Body, Made, Model, Stamps, BLOCK};
use super::observe::differences;
use super::ops::Op;
use lunfs::fs::NodeId;

/// An operation that was done, or was under way when the power failed.
#[derive(Clone)]
pub struct Entry {
    pub op: Op,
    pub made: Made,
    /// Times of the nodes it touched, as they were told afterwards.
    pub stamps: Vec<(NodeId, Stamps)>,
    /// It answered an error because the power failed: it may have happened or not.
    pub uncertain: bool,
}

impl Entry {
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
    for at in 0..=log.len() {
        if at >= floor {
            let plain = model.without_handles();
            if plain.same(seen) {
                best = Some(Found { entries: at, model: plain });
            } else if at == floor || at == log.len() {
                let said = differences(&plain, seen);
                nearest += &format!("\n  after {at} operations: {said}");
            }
        }
        let Some(entry) = log.get(at) else { break };
        if at >= floor {
            if let Some(part) = partly(&model, entry, seen) {
                best = Some(Found { entries: at + 1, model: part });
            }
        }
        entry.replay(&mut model);
    }
    best.ok_or_else(|| {
        format!("no prefix of {} operations from {floor} on is what is there:{nearest}", log.len())
    })
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
    if entry.op.is_long() {
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
            Made { node: id.and_then(|&id| node_of(id)), volume: None }
        }
        Op::VolumeCreate { name, .. } => {
            let volume = seen.volumes.get(name).copied();
            Made { node: volume.and_then(|volume| node_of(NodeId::root(volume))), volume }
        }
        _ => Made::default(),
    }
}

/// An operation in steps of which only the first blocks happened: as many as can be seen.
fn first_part(before: &Model, op: &Op, seen: &Model) -> Option<Model> {
    let (node, offset, len) = match op {
        Op::Write { node, offset, data } => (*node, *offset, data.len as u64),
        Op::Append { node, data } => (*node, before.get(*node)?.size, data.len as u64),
        Op::Zeros { node, offset, len, .. } => (*node, *offset, *len),
        _ => return None,
    };
    let first = |model: &mut Model, len: u64| match op {
        Op::Write { data, .. } | Op::Append { data, .. } => {
            model.write(node, offset, &data.bytes()[..len as usize])
        }
        Op::Zeros { keep_size, .. } => model.zeros(node, offset, len, *keep_size),
        _ => Ok(()),
    };
    let Body::File(there) = &seen.nodes.get(&node)?.body else { return None };
    let mut whole = before.clone();
    first(&mut whole, len).ok()?;
    let Body::File(wanted) = &whole.get(node)?.body else { return None };
    let mut numbers = offset / BLOCK..(offset + len).div_ceil(BLOCK);
    let differs = numbers.find(|n| there.get(n) != wanted.get(n))?;
    let mut model = before.clone();
    first(&mut model, (differs * BLOCK).saturating_sub(offset)).ok()?;
    with_stamps_of(&mut model, node, seen);
    Some(model)
}

fn with_stamps_of(model: &mut Model, id: NodeId, seen: &Model) {
    if let (Some(other), Ok(node)) = (seen.nodes.get(&id), model.get_mut(id)) {
        node.stamps = other.stamps;
    }
}
