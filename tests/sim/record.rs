//! What an operation answered, against what the model says.

use super::character::Done;
use super::model::{Kind, Made, Model, Stamps};
use super::observe::{ensure, stamps_of};
use super::ops::{blocks_held, Data, Op};
use super::perform::{node_of, perform, Answer};
use super::prefix::{set_stamps, Entry};
use super::world::{Inner, World};
use lunfs::fs::{self, File, Fs, NodeId, NodeKind, ATOMIC_WRITE_BYTES};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::Arc;

impl World {
    /// Does an operation, and compares what it answers with what the model says.
    pub(super) fn perform(&self, op: Op, inside: bool) -> Done {
        let fs = self.fs()?;
        let (file, before) = {
            let inner = &mut *self.inner.lock();
            self.clock.advance(&mut inner.nested);
            (node_of(&op).and_then(|node| inner.files.get(&node).cloned()), inner.log.len())
        };
        self.trace(|| format!("{}{op:?}", if inside { "    inside: " } else { "" }));
        let result = perform(&fs, &op, file);
        if !inside {
            self.may_nest.store(false, SeqCst);
            self.inner.lock().outer = Default::default();
        }
        self.trace(|| format!("      {:?}", result.as_ref().map(|(made, _)| made)));
        let waits = matches!(&op, Op::Version(_) | Op::Open { .. });
        if inside && waits && matches!(&result, Err(fs::Error::Busy)) {
            // The call around it holds what it needs.
            return Ok(());
        }
        let dropped = self.record(&fs, op, result, before);
        // A handle is dropped here, where nothing is locked.
        dropped.map(drop)
    }

    fn record(&self, fs: &Arc<Fs>, op: Op, result: Answer, before: usize) -> Done<Option<File>> {
        let inner = &mut *self.inner.lock();
        let overlaps = inner.log.len() - before;
        inner.operations += 1;
        let (made, file) = match result {
            Ok(done) => done,
            Err(e) if self.may_fail() && Kind::of(&e) == Kind::Any => {
                inner.digest.update(b"broken off");
                let entry = Entry { overlaps, uncertain: true, ..Entry::new(op) };
                inner.log.push(entry);
                return Ok(None);
            }
            Err(e) => return self.refused(fs, inner, &op, &e).map(|()| None),
        };
        inner.digest.update(format!("{op:?} {made:?}").as_bytes());
        let touched = op.touches(&inner.model);
        ensure(inner.model.is_new(&made), || format!("{op:?}: {made:?} was there before"))?;
        // Lost or not: a handle of one never leads to another.
        let is_fresh = made.node.is_none_or(|identity| inner.given.insert(identity));
        ensure(is_fresh, || format!("{op:?}: {made:?} is the identity of something lost"))?;
        if let Err(kind) = inner.model.apply(&op, &made) {
            return Err(format!("{op:?} was done, but should be refused: {kind:?}"));
        }
        let touched = touched.into_iter().chain(made.node.map(|(id, _)| id));
        // What is under way around this may show already.
        let told = self.stamps(fs, &inner.model, touched, &inner.outer.nodes);
        if told.is_err() && !self.power_is_off() {
            return Err(format!("after {op:?}: {}", told.err().unwrap_or_default()));
        }
        let stamps = told.unwrap_or_default();
        set_stamps(&mut inner.model, &stamps);
        inner.note_versions();
        let dropped = inner.keep_handles(&op, file);
        let is_durable = matches!(&op, Op::Version(op) if op.is_durable());
        inner.log.push(Entry { op, made, stamps, uncertain: self.power_is_off(), overlaps });
        if is_durable {
            // What happened inside it may have come after its instant.
            let all = inner.log.len();
            inner.raise_floor(if overlaps == 0 { all } else { before });
        }
        Ok(dropped)
    }

    fn refused(&self, fs: &Arc<Fs>, inner: &mut Inner, op: &Op, e: &fs::Error) -> Done {
        let kind = Kind::of(e);
        inner.digest.update(format!("{op:?} {kind:?}").as_bytes());
        let made = Made::default();
        match inner.model.clone().apply(op, &made) {
            Err(wanted) if wanted.allows(kind) => Ok(()),
            Err(wanted) => Err(format!("{op:?}: refused with {e}, should be {wanted:?}")),
            Ok(()) if kind == Kind::NoSpace => self.no_space(fs, inner, op),
            Ok(()) => Err(format!("{op:?}: refused with {e}, should be done")),
        }
    }

    /// ENOSPC is right only where there is little room.
    fn no_space(&self, fs: &Arc<Fs>, inner: &mut Inner, op: &Op) -> Done {
        let stats = fs.stats();
        let room = stats.free_bytes + stats.freeing_bytes;
        ensure(!op.must_have_space(), || format!("{op:?}: refused for want of space"))?;
        ensure(room < stats.size_bytes / 4, || {
            let held = blocks_held(&inner.model);
            format!("{op:?}: no space, with {held} blocks of files and {stats:?}")
        })?;
        inner.faults.add("refusals for want of space", 1);
        if !op.is_long() {
            return Ok(());
        }
        match self.part_of_long(fs, inner, op) {
            Err(_) if self.may_fail() => {
                inner.log.push(Entry { uncertain: true, ..Entry::new(op.clone()) });
                Ok(())
            }
            done => done,
        }
    }

    /// A long write that met the end of the space has done its first pieces, each whole: what it
    /// did becomes an operation of its own.
    fn part_of_long(&self, fs: &Arc<Fs>, inner: &mut Inner, op: &Op) -> Done {
        let mut nodes = op.touches(&inner.model).into_iter();
        let node = nodes.next().ok_or("a long operation of no file")?;
        // Opening would wait for the names that a call around this one may hold.
        let file = match inner.files.get(&node) {
            Some(file) => file.clone(),
            None => fs.open_file(node).map_err(|e| format!("open_file {node:?}: {e}"))?,
        };
        for part in parts_of(op, &inner.model) {
            let mut model = inner.model.clone();
            if part.as_ref().is_some_and(|part| model.apply(part, &Made::default()).is_err()) {
                continue;
            }
            let same = |node: &super::model::Node| super::observe::has_blocks_of(&file, node);
            if !model.get(node).map_or(Ok(false), same)? {
                continue;
            }
            let stamps = self.stamps(fs, &model, [node].into_iter(), &BTreeSet::new())?;
            set_stamps(&mut model, &stamps);
            inner.model = model;
            inner.log.extend(part.map(|op| Entry { stamps, ..Entry::new(op) }));
            return Ok(());
        }
        Err(format!("{op:?} ended half-way with something else than its first pieces"))
    }

    /// Times of the nodes that an operation touched; compares the rest of their attributes.
    fn stamps(
        &self,
        fs: &Arc<Fs>,
        model: &Model,
        touched: impl Iterator<Item = NodeId>,
        hidden: &BTreeSet<NodeId>,
    ) -> Done<Vec<(NodeId, Stamps)>> {
        let mut stamps = Vec::new();
        for id in touched {
            let Some(node) = model.get(id) else { continue };
            let attr = match fs.getattr(id) {
                Ok(attr) => attr,
                Err(_) if self.may_fail() => continue,
                Err(e) => return Err(format!("getattr of {id:?}: {e}")),
            };
            let size = if node.kind == NodeKind::Directory { 0 } else { attr.size_bytes };
            let seen = (attr.kind, attr.mode, attr.uid, attr.gid, attr.nlink, size);
            let wanted = (node.kind, node.mode, node.uid, node.gid, node.nlink, node.size);
            ensure(seen == wanted || hidden.contains(&id), || {
                format!("{id:?}: {seen:?}, should be {wanted:?}")
            })?;
            stamps.push((id, stamps_of(&attr)));
        }
        Ok(stamps)
    }
}

/// What a long operation may have done before its space ended: nothing, or its first pieces.
fn parts_of(op: &Op, model: &Model) -> Vec<Option<Op>> {
    let step = ATOMIC_WRITE_BYTES as u64;
    let cut = |len: u64| match op {
        Op::Write { node, offset, data } => {
            let data = Data { len: len as usize, ..*data };
            Some(Op::Write { node: *node, offset: *offset, data })
        }
        Op::Append { node, data } => {
            let data = Data { len: len as usize, ..*data };
            Some(Op::Append { node: *node, data })
        }
        Op::Zeros { node, offset, len: whole, keep_size } => {
            // Its pieces end at multiples of the longest piece.
            let len = (len - offset % step).min(*whole);
            Some(Op::Zeros { node: *node, offset: *offset, len, keep_size: *keep_size })
        }
        _ => None,
    };
    let _ = model;
    let len = match op {
        Op::Write { data, .. } | Op::Append { data, .. } => data.len as u64,
        Op::Zeros { len, .. } => *len,
        _ => 0,
    };
    let parts = (1..=len / step + 1).map(|n| n * step).take_while(|at| *at < len + step);
    std::iter::once(None).chain(parts.map(cut).filter(|part| part.is_some())).collect()
}
