//! What goes over the control socket.
//!
//! A connection carries one request: a JSON line, answered by JSON lines of which the last is a
//! `result` or an `error`. With `lun_import` and `lun_export` the client passes its open file
//! along: the image never goes over the socket, holes stay holes, and the client's rights decide
//! what may be read and written. The socket is local and mode 0600: who can open it may do
//! everything.

use super::error::Message;
use crate::access::BareSecret;
pub use crate::lun::PolicyChange;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Version of this protocol; a server of another one says so instead of guessing.
pub const PROTOCOL_VERSION: u32 = 1;

/// Key and value of a LUN's settable attribute, as the user typed them.
pub type KeyValue = (String, String);

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`PROTOCOL_VERSION`].
    pub version: u32,
    /// Do everything but the change itself.
    #[serde(default)]
    pub dry_run: bool,
    /// What to do.
    pub command: Command,
}

/// A user name with its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// The name.
    pub user: String,
    /// The secret: goes over the control socket, and is never answered.
    pub secret: BareSecret,
}

/// What of an initiator is to be otherwise; what is absent or empty stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitiatorChange {
    /// What it proves itself by.
    pub chap: Option<Login>,
    /// It need not prove itself any more, nor does the target.
    #[serde(default)]
    pub no_chap: bool,
    /// What the target proves itself by.
    pub mutual: Option<Login>,
    /// The target need not prove itself any more.
    #[serde(default)]
    pub no_mutual: bool,
    /// LUNs it may use, and whether for writing.
    #[serde(default)]
    pub allow: Vec<(String, bool)>,
    /// LUNs it may not use any more.
    #[serde(default)]
    pub deny: Vec<String>,
    /// Bytes that its writes may make a LUN take; 0 ends a quota.
    #[serde(default)]
    pub quotas: Vec<(String, u64)>,
    /// Where it may come from: addresses and networks, or `any` alone.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Sessions at a time.
    pub max_sessions: Option<u32>,
    /// Commands outstanding in each.
    pub max_commands: Option<u32>,
    /// Buffers of all of them.
    pub max_memory_bytes: Option<u64>,
}

/// What can be asked of an open pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", content = "arguments", rename_all = "snake_case")]
pub enum Command {
    /// Answers at once: is the server alive?
    Ping,
    /// The whole picture.
    Status,
    /// Drain, take the last consistency point, unmount, end.
    Stop,
    /// Figures of the pool.
    PoolShow,
    /// Takes over the space a device gained; a file is first extended to `size_bytes`.
    PoolGrow {
        /// Which device.
        path: String,
        /// New length of a file.
        size_bytes: Option<u64>,
    },
    /// Goes on without a device.
    PoolOffline {
        /// Which device.
        path: String,
    },
    /// Takes a device back that was missing.
    PoolOnline {
        /// Which device.
        path: String,
    },
    /// Puts a new device in another's place.
    PoolReplace {
        /// Which device goes.
        path: String,
        /// A file to make, or a block device.
        new: String,
    },
    /// Takes in a further device: a file to make, or a block device.
    PoolAdd {
        /// Where it is.
        path: String,
        /// Length of a file.
        size_bytes: Option<u64>,
    },
    /// Empties a device and leaves it out.
    PoolRemove {
        /// Where it is.
        path: String,
    },
    /// Verifies and heals every copy of every block.
    PoolScrub {
        /// Only begin it.
        background: bool,
        /// End the one that runs.
        cancel: bool,
    },
    /// Makes a LUN.
    LunCreate {
        /// Its name.
        lun: String,
        /// Its capacity.
        size_bytes: u64,
        /// Attributes.
        keys: Vec<KeyValue>,
    },
    /// All LUNs.
    LunList,
    /// One LUN.
    LunShow {
        /// Its name.
        lun: String,
    },
    /// Changes the capacity.
    LunResize {
        /// Its name.
        lun: String,
        /// New capacity.
        size_bytes: u64,
        /// Shrink though a door has it open.
        force: bool,
    },
    /// Changes the name.
    LunRename {
        /// Its name.
        lun: String,
        /// Its new name.
        new: String,
    },
    /// Deletes a LUN.
    LunDelete {
        /// Its name.
        lun: String,
        /// With its snapshots.
        recursive: bool,
        /// Though a door has it open.
        force: bool,
    },
    /// Changes attributes.
    LunSet {
        /// Its name.
        lun: String,
        /// Attributes.
        keys: Vec<KeyValue>,
    },
    /// The log, oldest first; with `follow` then what is appended, one line each.
    LunLog {
        /// Its name.
        lun: String,
        /// Stay.
        follow: bool,
    },
    /// Fills a LUN from the file that comes with the request.
    LunImport {
        /// Its name.
        lun: String,
        /// Length of the image (a pipe), capacity of the new LUN (a file; absent: the file's
        /// length).
        size_bytes: Option<u64>,
        /// Attributes of the new LUN.
        keys: Vec<KeyValue>,
        /// Into a LUN that exists; else it is made.
        into: bool,
        /// Though a door has it open.
        force: bool,
        /// A path in the pool in place of a file that comes with the request.
        from_pool: Option<String>,
    },
    /// Writes a LUN to the file that comes with the request.
    LunExport {
        /// Its name.
        lun: String,
        /// Zeros for what cannot be read.
        #[serde(default)]
        past_bad: bool,
    },
    /// Makes snapshots of one instant.
    SnapshotCreate {
        /// `NAME[@SNAP]` each.
        snapshots: Vec<String>,
        /// This hook says that their applications are at rest; what became of that is noted later.
        #[serde(default)]
        hook: Option<String>,
    },
    /// What became of a hook.
    SnapshotNote {
        /// `NAME@SNAP` each; `NAME` where no snapshot came of it.
        snapshots: Vec<String>,
        /// Its kind.
        hook: String,
        /// How it did.
        outcome: Quiesced,
        /// What went wrong.
        why: String,
    },
    /// Snapshots and bookmarks.
    SnapshotList {
        /// Of this LUN, or of `/`; else of all.
        lun: Option<String>,
    },
    /// One snapshot or bookmark.
    SnapshotShow {
        /// `NAME@SNAP`.
        snapshot: String,
    },
    /// Changes its name.
    SnapshotRename {
        /// `NAME@SNAP`.
        snapshot: String,
        /// `SNAP`.
        new: String,
    },
    /// Makes it what its LUN is now.
    SnapshotRefresh {
        /// `NAME@SNAP`.
        snapshot: String,
    },
    /// Makes its LUN what it is.
    SnapshotRollback {
        /// `NAME@SNAP`.
        snapshot: String,
        /// Though a door has the LUN open.
        force: bool,
    },
    /// Deletes it.
    SnapshotDelete {
        /// `NAME@SNAP`.
        snapshot: String,
        /// A bookmark takes its name.
        keep_bookmark: bool,
    },
    /// What changed of a LUN's data: pages of extents as events.
    SnapshotDiff {
        /// `NAME@SNAP`, of a bookmark too.
        from: String,
        /// `NAME@SNAP`; else what the LUN is now.
        to: Option<String>,
    },
    /// Forbids its deletion.
    SnapshotHold {
        /// `NAME@SNAP`.
        snapshot: String,
        /// RFC 3339; nobody releases it before.
        until: Option<String>,
    },
    /// Allows its deletion.
    SnapshotRelease {
        /// `NAME@SNAP`.
        snapshot: String,
    },
    /// Makes a LUN of a snapshot.
    CloneCreate {
        /// `NAME@SNAP`.
        snapshot: String,
        /// The LUN.
        new: String,
    },
    /// Sets what is said of a policy; the rest stays.
    PolicySet {
        /// A LUN, or `/`.
        lun: String,
        /// What is said.
        change: PolicyChange,
    },
    /// Policies.
    PolicyShow {
        /// Of this LUN, or of `/`; else all.
        lun: Option<String>,
    },
    /// Ends a policy.
    PolicyClear {
        /// A LUN, or `/`.
        lun: String,
    },
    /// Defines an initiator.
    InitiatorAdd {
        /// Its iSCSI name.
        initiator: String,
        /// What it may do.
        change: InitiatorChange,
    },
    /// Changes one.
    InitiatorSet {
        /// Its iSCSI name.
        initiator: String,
        /// What is to be otherwise.
        change: InitiatorChange,
    },
    /// Removes one; its sessions end.
    InitiatorRemove {
        /// Its iSCSI name.
        initiator: String,
    },
    /// All initiators.
    InitiatorList,
    /// One initiator.
    InitiatorShow {
        /// Its iSCSI name.
        initiator: String,
    },
    /// All sessions of all doors.
    SessionList,
    /// One session.
    SessionShow {
        /// Its id.
        id: String,
    },
    /// Ends a session.
    SessionDrop {
        /// Its id.
        id: String,
    },
}

impl Command {
    /// Whether the command changes something (and so knows `dry_run`).
    pub fn changes(&self) -> bool {
        !matches!(
            self,
            Command::Ping
                | Command::Status
                | Command::PoolShow
                | Command::LunList
                | Command::LunShow { .. }
                | Command::LunLog { .. }
                | Command::LunExport { .. }
                | Command::SnapshotList { .. }
                | Command::SnapshotShow { .. }
                | Command::SnapshotDiff { .. }
                | Command::PolicyShow { .. }
                | Command::InitiatorList
                | Command::InitiatorShow { .. }
                | Command::SessionList
                | Command::SessionShow { .. }
        )
    }
}

impl Command {
    /// Is it answered at once, but for what the server waits for itself?
    pub fn is_quick(&self) -> bool {
        !self.changes() && !matches!(self, Command::LunLog { .. } | Command::LunExport { .. })
    }
}

/// How a hook did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Quiesced {
    /// The application was at rest until the snapshot was there.
    AtRest,
    /// It refused.
    Refused,
    /// It did not come to rest in time.
    TimedOut,
    /// It went on before the snapshot was there.
    WentOn,
}

/// One line of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// How far an import or export is.
    Progress {
        /// Bytes of the image done.
        done_bytes: u64,
        /// Bytes of the image.
        size_bytes: u64,
    },
    /// A line of a log that is followed.
    Event(Value),
    /// Done; the last line.
    Result(Value),
    /// Refused or failed; the last line.
    Error(Message),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_the_line() {
        for command in [
            Command::Status,
            Command::LunCreate { lun: "vm1".into(), size_bytes: 1 << 30, keys: vec![] },
            Command::LunLog { lun: "vm1".into(), follow: true },
        ] {
            let request = Request { version: PROTOCOL_VERSION, dry_run: false, command };
            let line = serde_json::to_string(&request).unwrap();
            assert!(!line.contains('\n'));
            assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), request);
        }
    }

    #[test]
    fn unknown_fields_are_refused() {
        let line = r#"{"version":1,"command":{"name":"status"},"more":1}"#;
        assert!(serde_json::from_str::<Request>(line).is_err());
    }
}
