//! Carries an operation out through the filesystem's API.

use super::model::Made;
use super::model::BLOCK;
use super::ops::{Data, Op, What};
use lunfs::device::sim::Rng;
use lunfs::fs::{self, File, Fs, NewNode, NodeId, SetAttr};
use std::sync::Arc;

/// The node whose handle an operation may use.
pub fn node_of(op: &Op) -> Option<NodeId> {
    match op {
        Op::Write { node, .. }
        | Op::Append { node, .. }
        | Op::Update { node, .. }
        | Op::Punch { node, .. }
        | Op::Zeros { node, .. }
        | Op::SetSize { node, .. } => Some(*node),
        _ => None,
    }
}

/// What an operation made, and the handle that it opened.
pub type Answer = fs::Result<(Made, Option<File>)>;

pub fn perform(fs: &Arc<Fs>, op: &Op, handle: Option<File>) -> Answer {
    let file = |node: NodeId| match &handle {
        Some(file) => Ok(file.clone()),
        None => fs.open_file(node),
    };
    match op {
        Op::Create { dir, name, what, owner } => {
            let attr = fs.create(*dir, name, new_node(what), *owner)?;
            let node = Some((attr.id, attr.generation));
            return Ok((Made { node, ..Made::default() }, None));
        }
        Op::VolumeCreate { name, owner } => {
            let volume = fs.volume_create(name, *owner)?;
            let attr = fs.getattr(NodeId::root(volume))?;
            let node = Some((attr.id, attr.generation));
            return Ok((Made { node, volume: Some(volume), ..Made::default() }, None));
        }
        Op::Open { node } => return Ok((Made::default(), Some(fs.open_file(*node)?))),
        Op::Link { node, dir, name } => fs.link(*node, *dir, name).map(drop)?,
        Op::Unlink { dir, name } => fs.unlink(*dir, name)?,
        Op::Rmdir { dir, name } => fs.rmdir(*dir, name)?,
        Op::Rename { dir, name, to_dir, to_name, mode } => {
            fs.rename(*dir, name, *to_dir, to_name, *mode)?
        }
        Op::Write { node, offset, data } => file(*node)?.write_at(*offset, &data.bytes())?,
        Op::Append { node, data } => file(*node)?.append(&data.bytes()).map(drop)?,
        Op::Update { node, offset, data, refuse } => {
            let bytes = data.bytes();
            let change = |range: &mut [u8]| match refuse {
                true => Err(()),
                false => {
                    range.iter_mut().zip(&bytes).for_each(|(byte, x)| *byte ^= x);
                    Ok(())
                }
            };
            let answer = file(*node)?.update_at(*offset, data.len, change)?;
            debug_assert_eq!(answer.is_err(), *refuse);
        }
        Op::Punch { node, offset, len } => file(*node)?.punch(*offset, *len)?,
        Op::Zeros { node, offset, len, keep_size } => {
            file(*node)?.allocate_zeros(*offset, *len, *keep_size)?
        }
        Op::SetSize { node, size, by_attr: false } => file(*node)?.set_size(*size)?,
        Op::SetSize { node, size, by_attr: true } => {
            let change = SetAttr { size_bytes: Some(*size), ..SetAttr::default() };
            fs.setattr(*node, &change).map(drop)?
        }
        Op::SetAttr { node, change } => fs.setattr(*node, change).map(drop)?,
        Op::XattrSet { node, name, value, mode } => {
            fs.xattr_set(*node, name, &value.bytes(), *mode)?
        }
        Op::XattrRemove { node, name } => fs.xattr_remove(*node, name)?,
        Op::VolumeRename { from, to } => fs.volume_rename(from, to)?,
        Op::VolumeDelete { name } => fs.volume_delete(name)?,
        Op::Version(op) => return op.perform(fs),
        Op::CloneRange(op) => {
            let (from, to) = (fs.open_file(op.from)?, fs.open_file(op.to)?);
            fs.clone_range(&from, op.at, &to, op.to_at, op.len).map(drop)?
        }
        Op::Close { .. } => {}
    }
    Ok((Made::default(), None))
}

/// A range of a file: node, first byte, end.
pub type Range = (NodeId, u64, u64);

/// The range that an atomic change of a file's bytes covers.
pub fn range_of(op: &Op) -> Option<Range> {
    let (node, offset, len) = match op {
        Op::Write { node, offset, data } | Op::Update { node, offset, data, .. } => {
            (*node, *offset, data.len as u64)
        }
        Op::Punch { node, offset, len } => (*node, *offset, *len),
        _ => return None,
    };
    (!op.is_long() && len > 0).then_some((node, offset, offset.saturating_add(len)))
}

/// A write into a block that a range covers in part, beside the range.
pub fn draw_beside(rng: &mut Rng, (node, start, end): Range) -> Option<Op> {
    let head = (start / BLOCK * BLOCK, start);
    let tail = (end, end.div_ceil(BLOCK) * BLOCK);
    let fits = |(from, to): &(u64, u64)| from < to && *to <= fs::MAX_FILE_BYTES;
    let sides: Vec<(u64, u64)> = [head, tail].into_iter().filter(fits).collect();
    let &(from, to) = sides.get(rng.index(sides.len().max(1)))?;
    let offset = from + rng.below(to - from);
    let data = Data { len: 1 + rng.below(to - offset) as usize, seed: rng.bits() };
    Some(Op::Write { node, offset, data })
}

fn new_node(what: &What) -> NewNode<'_> {
    match what {
        What::File => NewNode::File,
        What::Directory => NewNode::Directory,
        What::Symlink(to) => NewNode::Symlink(to),
        What::Special(kind, rdev) => NewNode::Special(*kind, *rdev),
    }
}
