//! The one errors enum of the LUN layer. `Display` is the three lines a user sees: what, why, what
//! to do.

use crate::fs;

/// Why a LUN operation was refused or failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// No LUN has this name.
    #[error("there is no LUN named '{0}'\nlist them with: lunfs lun list")]
    NotFound(String),
    /// The name is taken by a LUN or by an entry of the mount's root.
    #[error(
        "the name '{name}' is taken by {by}\n\
         names are compared without regard to case\n\
         choose another name"
    )]
    NameTaken {
        /// What was asked for.
        name: String,
        /// What holds it.
        by: String,
    },
    /// Not a LUN name.
    #[error(
        "'{name}' cannot be a LUN's name\n\
         {why}\n\
         use at most 64 of A-Z a-z 0-9 . _ - and no leading dot"
    )]
    BadName {
        /// What was asked for.
        name: String,
        /// Which rule it breaks.
        why: &'static str,
    },
    /// Not a snapshot's name.
    #[error(
        "'{name}' cannot be a snapshot's name\n\
         {why}\n\
         use at most 64 of A-Z a-z 0-9 . _ - : and no leading dot"
    )]
    BadSnapshotName {
        /// What was asked for.
        name: String,
        /// Which rule it breaks.
        why: &'static str,
    },
    /// No snapshot has this name.
    #[error("there is no snapshot '{of}@{name}'\nlist them with: lunfs snapshot list {of}")]
    NoSnapshot {
        /// The LUN, or `/`.
        of: String,
        /// The snapshot.
        name: String,
    },
    /// The name is taken by a snapshot or a bookmark.
    #[error(
        "there is a {by} '{of}@{name}' already\n\
         names are compared without regard to case\n\
         choose another name, or delete that one first"
    )]
    SnapshotExists {
        /// The LUN, or `/`.
        of: String,
        /// What holds the name.
        name: String,
        /// `snapshot` or `bookmark`.
        by: &'static str,
    },
    /// A snapshot is held.
    #[error("{what} is refused\n{why}\n{remedy}")]
    Held {
        /// What was refused.
        what: String,
        /// For how long.
        why: String,
        /// What to do.
        remedy: String,
    },
    /// What was asked for makes no sense for these snapshots.
    #[error("{what}\n{why}\n{remedy}")]
    Snapshot {
        /// What was refused.
        what: String,
        /// Why.
        why: String,
        /// What to do.
        remedy: String,
    },
    /// Not a possible capacity.
    #[error("{size_bytes} bytes cannot be a LUN's size\n{why}\n{remedy}")]
    BadSize {
        /// What was asked for.
        size_bytes: u64,
        /// Which rule it breaks.
        why: String,
        /// What to do.
        remedy: String,
    },
    /// An unknown or read-only key, or a value out of its range.
    #[error("'{key}' was not set\n{why}\n{remedy}")]
    BadSetting {
        /// The key.
        key: String,
        /// Which rule it breaks.
        why: String,
        /// What to do.
        remedy: String,
    },
    /// The text of an `attributes` file is not TOML.
    #[error("the attributes were not changed\n{0}\nwrite lines of the form key = value")]
    BadText(String),
    /// Sessions or open files are in the way. Doors answer EBUSY.
    #[error("{what} is refused\n{why}\n{remedy}")]
    Busy {
        /// What was refused.
        what: String,
        /// Who is in the way.
        why: String,
        /// What to do.
        remedy: String,
    },
    /// `read-only` is set, or the client's rights are read-only.
    #[error(
        "the LUN '{0}' is read-only\n\
         its attribute read-only is true\n\
         change it with: lunfs lun set {0} read-only=false"
    )]
    ReadOnly(String),
    /// A write through the mount would take more than `quota` allows. Doors answer EDQUOT.
    #[error(
        "a write to the LUN '{name}' is refused\n\
         it would take more than its quota of {quota_bytes} bytes\n\
         raise it with: lunfs lun set {name} quota=SIZE"
    )]
    OverQuota {
        /// The LUN.
        name: String,
        /// The quota.
        quota_bytes: u64,
    },
    /// No session has this id.
    #[error("there is no session {0}\nlist them with: lunfs session list")]
    NoSession(u64),
    /// The LUN was deleted meanwhile.
    #[error("the LUN is gone\nit was deleted meanwhile\nlist LUNs with: lunfs lun list")]
    Gone,
    /// Import or export: the file at the other end.
    #[error("{what}\n{why}\n{remedy}")]
    Transfer {
        /// What failed.
        what: String,
        /// Why.
        why: String,
        /// What to do.
        remedy: String,
    },
    /// The filesystem below failed.
    #[error("the filesystem refused or failed\n{0}\n{remedy}", remedy = remedy_of(.0))]
    Fs(#[from] fs::Error),
}

impl Error {
    /// The pool is full.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Error::Fs(fs::Error::NoSpace))
    }
}

/// Result of the LUN layer.
pub type Result<T> = std::result::Result<T, Error>;

/// What a user can do about an error of the filesystem.
pub(super) fn remedy_of(error: &fs::Error) -> &'static str {
    match error {
        fs::Error::NoSpace => {
            "delete something, or make the pool larger: lunfs pool grow PATH --size SIZE, \
             or lunfs pool add PATH DEVICE"
        }
        fs::Error::Corrupt { .. } => "look at the damage with: lunfs pool check PATH",
        fs::Error::Io(_) | fs::Error::Latched(_) => {
            "look after the device, then serve the pool again"
        }
        fs::Error::ReadOnly => "write to a clone of it",
        fs::Error::Stale => "look whether it was deleted meanwhile",
        _ => "look at the request and try again",
    }
}
