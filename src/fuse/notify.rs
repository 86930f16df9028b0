//! Telling the kernel what other doors and the command line changed.
//!
//! The catalog calls [`Invalidations::note`] on the thread that made a change, the door itself
//! [`Invalidations::note_direct_write`]; a thread of its own sends the notices, because one sent by
//! the handler of a request for the same inode can deadlock (the kernel waits for that request's
//! locks).
//!
//! Invariants: noting never waits and takes bounded memory: what would not fit is joined into a
//! coarser notice (a whole file, all attributes). Names need no notice to be right (the kernel may
//! keep a LUN's name for no time at all): those that do not fit are dropped.

use super::ids::Node;
use super::tree::Tree;
use crate::fs::{Clock, VolumeId};
use crate::lun::Change;
use fuser::{INodeNo, Notifier};
use parking_lot::{Condvar, Mutex};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

/// Ranges remembered of one file before they become the whole file.
const MAX_RANGES: usize = 16;
/// Files remembered: far more than requests can touch between two rounds. Beyond, notices are
/// dropped: what is mapped or cached stays old for longer than it should.
const MAX_FILES: usize = 4096;
/// Names remembered before further ones are dropped.
const MAX_NAMES: usize = 256;
/// Between two rounds of notices. A block client that writes while `data` is open must not wake
/// this thread for each write; mapped pages are old for no longer than this.
const PACE: Duration = Duration::from_millis(1);

thread_local! {
    /// This thread is changing a LUN's name for the kernel, which knows.
    static OWN: Cell<bool> = const { Cell::new(false) };
}

/// Runs a change of names that the kernel asked for: it needs no notice of it.
pub fn own_change<T>(change: impl FnOnce() -> T) -> T {
    struct Reset;
    impl Drop for Reset {
        fn drop(&mut self) {
            OWN.set(false);
        }
    }
    OWN.set(true);
    let _reset = Reset;
    change()
}

/// What the kernel must forget of one `data`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stale {
    /// Its attributes alone.
    Attributes,
    /// These bytes (first, end), disjoint and sorted, and the attributes.
    Ranges(Vec<(u64, u64)>),
    /// Everything.
    Whole,
}

impl Stale {
    fn add(&mut self, first: u64, end: u64) {
        match self {
            Stale::Attributes => *self = Stale::Ranges(vec![(first, end)]),
            Stale::Ranges(ranges) => {
                join(ranges, first, end);
                if ranges.len() > MAX_RANGES {
                    *self = Stale::Whole;
                }
            }
            Stale::Whole => {}
        }
    }
}

/// Adds a range to disjoint sorted ones; those that touch become one.
fn join(ranges: &mut Vec<(u64, u64)>, mut first: u64, mut end: u64) {
    ranges.retain(|&(f, e)| {
        let apart = e < first || end < f;
        if !apart {
            (first, end) = (first.min(f), end.max(e));
        }
        apart
    });
    let at = ranges.partition_point(|&(f, _)| f < first);
    ranges.insert(at, (first, end));
}

/// A file of which the kernel must forget something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    /// The `data` of a LUN.
    Data(VolumeId),
    /// A node of the ordinary tree.
    Node(u64),
}

/// What is waiting to be told.
#[derive(Debug, Default)]
struct Pending {
    /// At most one entry for each file.
    files: BTreeMap<Target, Stale>,
    /// Names in the root.
    names: BTreeSet<String>,
    /// The root's attributes.
    root: bool,
    /// No more will come.
    closed: bool,
}

impl Pending {
    fn note(&mut self, change: &Change, own: bool) {
        match change {
            Change::Created { name, .. }
            | Change::Removed { name, .. }
            | Change::RolledBack { name, .. } => self.name(name, own),
            Change::Snapshots { .. } => {}
            Change::Renamed { from, to, .. } => {
                self.name(from, own);
                self.name(to, own);
            }
            Change::Resized { volume, .. } => drop(self.file(Target::Data(*volume))),
            Change::Settings { .. } => {}
            Change::Written { volume, offset_bytes, length_bytes } => {
                self.written(Target::Data(*volume), *offset_bytes, *length_bytes);
            }
        }
    }

    fn written(&mut self, target: Target, offset: u64, length: u64) {
        if let Some(stale) = self.file(target) {
            stale.add(offset, offset.saturating_add(length));
        }
    }

    fn file(&mut self, target: Target) -> Option<&mut Stale> {
        if self.files.len() >= MAX_FILES && !self.files.contains_key(&target) {
            return None;
        }
        Some(self.files.entry(target).or_insert(Stale::Attributes))
    }

    fn name(&mut self, name: &str, own: bool) {
        self.root = true;
        if !own && self.names.len() < MAX_NAMES {
            self.names.insert(name.to_string());
        }
    }

    fn is_empty(&self) -> bool {
        self.files.is_empty() && self.names.is_empty() && !self.root
    }
}

/// The queue between the catalog and the kernel.
pub struct Invalidations {
    tree: Arc<Tree>,
    clock: Arc<dyn Clock>,
    pending: Mutex<Pending>,
    arrived: Condvar,
}

impl Invalidations {
    /// Nothing waits.
    pub fn new(tree: Arc<Tree>, clock: Arc<dyn Clock>) -> Invalidations {
        let (pending, arrived) = (Mutex::default(), Condvar::new());
        Invalidations { tree, clock, pending, arrived }
    }

    /// Notes a change; never waits for the kernel.
    pub fn note(&self, change: &Change) {
        if matches!(
            change,
            Change::Created { .. }
                | Change::Removed { .. }
                | Change::Renamed { .. }
                | Change::RolledBack { .. }
        ) {
            self.tree.names_changed(self.clock.now());
        }
        self.pending.lock().note(change, OWN.get());
        self.arrived.notify_one();
    }

    /// A file of the ordinary tree was written around the page cache (O_DIRECT). The kernel drops
    /// cached pages before such a write, and after it only where the writer waited; a reader may
    /// have fetched old ones in between. Never waits for the kernel.
    pub fn note_direct_write(&self, number: INodeNo, offset: u64, length: u64) {
        self.pending.lock().written(Target::Node(number.0), offset, length);
        self.arrived.notify_one();
    }

    /// Ends [`Invalidations::run`].
    pub fn close(&self) {
        self.pending.lock().closed = true;
        self.arrived.notify_one();
    }

    /// Sends notices until closed. Errors are not reported: there is nobody who could do anything,
    /// and the kernel that refuses a notice has forgotten the inode or is being unmounted.
    pub fn run(&self, kernel: &Notifier) {
        while let Some(pending) = self.next() {
            for (target, stale) in &pending.files {
                if let Some(number) = self.number(*target) {
                    send(kernel, number, stale);
                }
            }
            for name in &pending.names {
                let _ = kernel.inval_entry(INodeNo::ROOT, OsStr::new(name));
            }
            if pending.root {
                let _ = kernel.inval_inode(INodeNo::ROOT, -1, 0);
            }
            std::thread::sleep(PACE);
        }
    }

    fn next(&self) -> Option<Pending> {
        let mut pending = self.pending.lock();
        while pending.is_empty() {
            if pending.closed {
                return None;
            }
            self.arrived.wait(&mut pending);
        }
        let closed = pending.closed;
        Some(std::mem::replace(&mut *pending, Pending { closed, ..Pending::default() }))
    }

    fn number(&self, target: Target) -> Option<INodeNo> {
        match target {
            Target::Data(volume) => {
                Node::Inode(self.tree.catalog().by_volume(volume)?.data_node()).pack()
            }
            Target::Node(number) => Some(INodeNo(number)),
        }
    }
}

fn send(kernel: &Notifier, number: INodeNo, stale: &Stale) {
    match stale {
        Stale::Attributes => {
            let _ = kernel.inval_inode(number, -1, 0);
        }
        Stale::Ranges(ranges) => {
            for &(first, end) in ranges {
                let (Ok(offset), Ok(length)) = (first.try_into(), (end - first).try_into()) else {
                    continue;
                };
                let _ = kernel.inval_inode(number, offset, length);
            }
        }
        Stale::Whole => {
            let _ = kernel.inval_inode(number, 0, 0);
        }
    }
}

impl std::fmt::Debug for Invalidations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Invalidations").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(volume: u32, offset_bytes: u64, length_bytes: u64) -> Change {
        Change::Written { volume: VolumeId(volume), offset_bytes, length_bytes }
    }

    #[test]
    fn ranges_that_touch_become_one() {
        let mut pending = Pending::default();
        for (offset, length) in [(8192, 4096), (0, 4096), (4096, 4096), (1 << 20, 512)] {
            pending.note(&written(17, offset, length), false);
        }
        let expected = Stale::Ranges(vec![(0, 12288), (1 << 20, (1 << 20) + 512)]);
        assert_eq!(pending.files[&Target::Data(VolumeId(17))], expected);
    }

    #[test]
    fn many_ranges_become_the_whole_file() {
        let mut pending = Pending::default();
        for i in 0..=MAX_RANGES as u64 {
            pending.note(&written(17, i * 8192, 512), false);
        }
        assert_eq!(pending.files[&Target::Data(VolumeId(17))], Stale::Whole);
        pending.note(&written(17, 0, u64::MAX), false);
        assert_eq!(pending.files.len(), 1);
    }

    #[test]
    fn files_are_bounded() {
        let mut pending = Pending::default();
        for number in 0..2 * MAX_FILES as u64 {
            pending.written(Target::Node(number), 0, 1);
        }
        assert_eq!(pending.files.len(), MAX_FILES);
        pending.written(Target::Node(0), 1, 1);
        assert_eq!(pending.files[&Target::Node(0)], Stale::Ranges(vec![(0, 2)]));
    }

    #[test]
    fn names_are_bounded_and_own_changes_tell_no_names() {
        let mut pending = Pending::default();
        let created = |name: String| Change::Created { volume: VolumeId(17), name };
        pending.note(&created("mine".into()), true);
        assert!(pending.names.is_empty() && pending.root);
        for i in 0..2 * MAX_NAMES {
            pending.note(&created(format!("lun{i}")), false);
        }
        assert_eq!(pending.names.len(), MAX_NAMES);
    }

    #[test]
    fn own_changes_end_with_the_call() {
        assert!(own_change(|| OWN.get()));
        assert!(!OWN.get());
    }
}
