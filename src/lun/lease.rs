//! The lease between block doors and the file door, as a state machine without clock or I/O.
//!
//! Invariants:
//! - In exclusive mode block holders (present or lost within their grace) and file writers are
//!   never both there, but for a file writer that was forced in by the administrator; it has the
//!   precedence.
//! - Who holds is followed in shared mode too, so that going back to exclusive can be judged.
//! - Reading asks for nothing.
//!
//! Times are counted from any fixed origin; the caller hands in `now` and does all waiting.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Lost clients that are remembered one by one; beyond it they share one grace and must write to
/// hold the lease again. Bounds the memory that a flapping network can take.
const MAX_LOST_CLIENTS: usize = 1024;

/// Times of the lease.
#[derive(Debug, Clone, Copy)]
pub struct LeaseTiming {
    /// How long a block write waits for a file writer to close before it is refused.
    pub file_wait: Duration,
    /// How long the block lease outlives its last connection when that was lost.
    pub lost_grace: Duration,
}

impl Default for LeaseTiming {
    fn default() -> Self {
        LeaseTiming { file_wait: Duration::from_secs(1), lost_grace: Duration::from_secs(30) }
    }
}

/// Who holds the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// Nobody.
    Idle,
    /// Block clients: `door client` of each; of lost ones while their grace lasts.
    Block(Vec<String>),
    /// Writers through the mount: how many.
    File(usize),
    /// Both (access=shared).
    Both(Vec<String>, usize),
}

/// Answer to a block client that wants to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlockVerdict {
    /// It may; `began`: the block lease began with this.
    Granted { began: bool },
    /// A file writer has the LUN: wait, then refuse.
    HeldByFile,
}

/// Answer to an open or a write through the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileVerdict {
    /// It may; `began`: the file lease began with this.
    Granted { began: bool },
    /// It opens without the lease: reading works, writing asks again, growing is allowed.
    Limited,
    /// EBUSY: a block client has the LUN.
    HeldByBlock,
}

/// What an open of `data` wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileWish {
    /// O_RDONLY.
    Read,
    /// O_WRONLY without O_TRUNC.
    WriteOnly,
    /// O_RDWR, or O_TRUNC with O_WRONLY.
    Write,
    /// O_TRUNC with O_RDONLY: needs the lease for an instant only.
    TruncateOnly,
}

/// How a block client's session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leave {
    /// Clean: its share of the lease ends.
    Logout,
    /// Its connection broke: its share lasts for the grace.
    Lost,
}

/// The state.
#[derive(Debug)]
pub(super) struct Lease {
    grace: Duration,
    shared: bool,
    /// Files are kept out whoever holds: a reservation, a sanitize. In shared mode too.
    pinned: bool,
    /// Sessions that wrote, and what messages call them.
    block: BTreeMap<u64, String>,
    /// Clients whose session was lost while it held, and until when that counts.
    lost: BTreeMap<String, Duration>,
    /// The same for those beyond [`MAX_LOST_CLIENTS`].
    lost_others_until: Option<Duration>,
    /// File handles that hold the file lease.
    writers: BTreeSet<u64>,
}

impl Lease {
    /// An idle lease.
    pub(super) fn new(grace: Duration, shared: bool) -> Lease {
        Lease {
            grace,
            shared,
            pinned: false,
            block: BTreeMap::new(),
            lost: BTreeMap::new(),
            lost_others_until: None,
            writers: BTreeSet::new(),
        }
    }

    /// A block session begins. One that comes back within its grace goes on holding: true.
    pub(super) fn block_login(&mut self, session: u64, client: &str, now: Duration) -> bool {
        self.forget_expired(now);
        if self.lost.remove(client).is_none() {
            return false;
        }
        self.block.insert(session, client.to_owned());
        true
    }

    /// A write-class command or a reservation.
    pub(super) fn block_write(
        &mut self,
        session: u64,
        client: &str,
        now: Duration,
    ) -> BlockVerdict {
        self.forget_expired(now);
        if !self.shared && !self.writers.is_empty() {
            return BlockVerdict::HeldByFile;
        }
        let began = !self.block_held();
        self.block.insert(session, client.to_owned());
        BlockVerdict::Granted { began }
    }

    /// A block session ends. True if the block lease ended with it.
    pub(super) fn block_leave(&mut self, session: u64, how: Leave, now: Duration) -> bool {
        self.forget_expired(now);
        let Some(client) = self.block.remove(&session) else {
            return false;
        };
        if how == Leave::Lost {
            let until = now + self.grace;
            if self.lost.len() < MAX_LOST_CLIENTS || self.lost.contains_key(&client) {
                self.lost.insert(client, until);
            } else {
                self.lost_others_until = Some(until);
            }
        }
        !self.block_held()
    }

    /// An open through the mount.
    pub(super) fn file_open(&mut self, handle: u64, wish: FileWish, now: Duration) -> FileVerdict {
        match wish {
            FileWish::Read => FileVerdict::Limited,
            FileWish::Write => self.file_write(handle, now),
            FileWish::WriteOnly => match self.file_write(handle, now) {
                FileVerdict::HeldByBlock => FileVerdict::Limited,
                verdict => verdict,
            },
            FileWish::TruncateOnly => {
                self.forget_expired(now);
                if self.keeps_files_out() {
                    FileVerdict::HeldByBlock
                } else {
                    FileVerdict::Limited
                }
            }
        }
    }

    /// A write through an open file: takes the lease where the handle has it not (any more).
    pub(super) fn file_write(&mut self, handle: u64, now: Duration) -> FileVerdict {
        self.forget_expired(now);
        if self.writers.contains(&handle) {
            return FileVerdict::Granted { began: false };
        }
        if self.keeps_files_out() {
            return FileVerdict::HeldByBlock;
        }
        FileVerdict::Granted { began: self.file_insert(handle) }
    }

    /// The administrator's file writer (import --force): holds whoever else does. True: the file
    /// lease began with it.
    pub(super) fn file_force(&mut self, handle: u64) -> bool {
        self.file_insert(handle)
    }

    fn file_insert(&mut self, handle: u64) -> bool {
        let began = self.writers.is_empty();
        self.writers.insert(handle);
        began
    }

    fn keeps_files_out(&self) -> bool {
        self.pinned || (!self.shared && self.block_held())
    }

    /// Keeps further file writers out, or no longer. False: there are some.
    pub(super) fn pin(&mut self, pinned: bool) -> bool {
        self.pinned = pinned;
        self.writers.is_empty()
    }

    /// FLUSH or RELEASE. True if the file lease ended with it.
    pub(super) fn file_flush(&mut self, handle: u64) -> bool {
        self.writers.remove(&handle) && self.writers.is_empty()
    }

    /// `access` is set. False: not now, both sorts hold.
    pub(super) fn set_shared(&mut self, shared: bool, now: Duration) -> bool {
        self.forget_expired(now);
        if !shared && self.block_held() && !self.writers.is_empty() {
            return false;
        }
        self.shared = shared;
        true
    }

    /// Who holds.
    pub(super) fn holder(&mut self, now: Duration) -> Holder {
        self.forget_expired(now);
        match (self.block_held(), self.writers.len()) {
            (false, 0) => Holder::Idle,
            (false, files) => Holder::File(files),
            (true, 0) => Holder::Block(self.block_names()),
            (true, files) => Holder::Both(self.block_names(), files),
        }
    }

    /// Whether this session has a share of the block lease.
    pub(super) fn holds(&self, session: u64) -> bool {
        self.block.contains_key(&session)
    }

    /// Drops shares whose grace is over. True if the block lease ended with that: for the log.
    pub(super) fn expire(&mut self, now: Duration) -> bool {
        let held = self.block_held();
        self.forget_expired(now);
        held && !self.block_held()
    }

    fn forget_expired(&mut self, now: Duration) {
        self.lost.retain(|_, until| now < *until);
        self.lost_others_until = self.lost_others_until.filter(|until| now < *until);
    }

    fn block_held(&self) -> bool {
        !(self.block.is_empty() && self.lost.is_empty() && self.lost_others_until.is_none())
    }

    fn block_names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.block.values().cloned().collect();
        names.extend(self.lost.keys().map(|client| format!("{client} (connection lost)")));
        if self.lost_others_until.is_some() {
            names.push("more clients (connection lost)".to_owned());
        }
        names.sort();
        names.dedup();
        names
    }
}

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
