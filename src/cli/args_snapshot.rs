//! The words of `lunfs snapshot`, `clone` and `policy`.

use super::args::Change;
use super::parse;
use crate::quiesce::Hook;
use clap::{Args, Subcommand};

/// `lunfs snapshot`.
#[derive(Debug, Subcommand)]
pub enum Snapshot {
    /// Make snapshots; those of one command are of one instant
    #[command(after_help = SNAPSHOT_CREATE_EXAMPLES)]
    Create {
        /// A LUN, or / for the ordinary tree; without @SNAP the name is the UTC time
        #[arg(value_name = "NAME[@SNAP]", required = true)]
        names: Vec<String>,
        /// Bring an application to rest for it: fsfreeze:PATH, qga:SOCKET, postgres:URL, exec:CMD
        #[arg(long, value_name = "HOOK")]
        quiesce: Option<Hook>,
        /// How long the application may take to come to rest, in seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 60, requires = "quiesce")]
        #[arg(value_parser = clap::value_parser!(u64).range(1..=3600))]
        quiesce_timeout: u64,
        /// --dry-run
        #[command(flatten)]
        change: Change,
    },
    /// All snapshots and bookmarks, and what each alone holds
    List {
        /// Those of this LUN, or of /
        name: Option<String>,
    },
    /// One snapshot, and how it is reached
    Show {
        /// The snapshot
        #[arg(value_name = "NAME@SNAP", value_parser = parse::snapshot)]
        name: String,
    },
    /// Change a snapshot's name; one that a policy made is then no policy's any more
    #[command(after_help = "Examples:\n  lunfs snapshot rename vm1@2026-11-20T21:00:00Z golden")]
    Rename {
        /// The snapshot
        #[arg(value_name = "NAME@SNAP", value_parser = parse::snapshot)]
        name: String,
        /// Its new name
        #[arg(value_name = "SNAP")]
        new: String,
        /// --dry-run
        #[command(flatten)]
        change: Change,
    },
    /// Let a snapshot be what its LUN is now
    Refresh {
        /// The snapshot
        #[arg(value_name = "NAME@SNAP", value_parser = parse::snapshot)]
        name: String,
        /// --dry-run
        #[command(flatten)]
        change: Change,
    },
    /// Let a LUN be again what its snapshot is; what it is now becomes a snapshot first
    #[command(after_help = ROLLBACK_EXAMPLES)]
    Rollback {
        /// The snapshot
        #[arg(value_name = "NAME@SNAP", value_parser = parse::snapshot)]
        name: String,
        /// Although a client has the LUN open: it is told that contents and capacity changed
        #[arg(long)]
        force: bool,
        /// --dry-run
        #[command(flatten)]
        change: Change,
    },
    /// Delete a snapshot, in any order; one that is in use goes when its last user closes it
    #[command(after_help = SNAPSHOT_DELETE_EXAMPLES)]
    Delete {
        /// The snapshot, or a bookmark
        #[arg(value_name = "NAME@SNAP", value_parser = parse::snapshot)]
        name: String,
        /// Leave a bookmark of its name: it holds no data, and `diff` can start from it
        #[arg(long)]
        keep_bookmark: bool,
        /// --dry-run
        #[command(flatten)]
        change: Change,
    },
    /// What changed of a LUN's data: offset, length, data or hole
    #[command(after_help = DIFF_EXAMPLES)]
    Diff {
        /// The older snapshot, or a bookmark
        #[arg(value_name = "NAME@A", value_parser = parse::snapshot)]
        from: String,
        /// The newer snapshot [default: the LUN as it is now]
        #[arg(value_name = "NAME@B", value_parser = parse::snapshot)]
        to: Option<String>,
    },
    /// Hold a snapshot: nobody deletes it until it is released
    #[command(after_help = HOLD_EXAMPLES)]
    Hold {
        /// The snapshot
        #[arg(value_name = "NAME@SNAP", value_parser = parse::snapshot)]
        name: String,
        /// Until then, and nobody can release it before: 2027-01-31T00:00:00Z, or 30d from now
        #[arg(long, value_name = "TIME", value_parser = parse::time)]
        until: Option<String>,
        /// --dry-run
        #[command(flatten)]
        change: Change,
    },
    /// Hold a snapshot no longer
    Release {
        /// The snapshot
        #[arg(value_name = "NAME@SNAP", value_parser = parse::snapshot)]
        name: String,
        /// --dry-run
        #[command(flatten)]
        change: Change,
    },
}

/// `lunfs clone`.
#[derive(Debug, Subcommand)]
pub enum CloneVerb {
    /// Make a LUN that begins as a snapshot is, at once and sharing its blocks
    #[command(after_help = "Examples:\n  lunfs clone create golden@v3 vm17")]
    Create {
        /// The snapshot
        #[arg(value_name = "NAME@SNAP", value_parser = parse::snapshot)]
        name: String,
        /// The new LUN
        new: String,
        /// --dry-run
        #[command(flatten)]
        change: Change,
    },
}

/// `lunfs policy`.
#[derive(Debug, Subcommand)]
pub enum Policy {
    /// Make snapshots of a LUN by the clock, and take old ones away
    #[command(after_help = POLICY_EXAMPLES)]
    Set(PolicySet),
    /// Policies: what they keep, what they did last and do next
    Show {
        /// That of this LUN, or of /
        name: Option<String>,
    },
    /// End a policy; its snapshots stay
    Clear {
        /// The LUN, or /
        name: String,
        /// --dry-run
        #[command(flatten)]
        change: Change,
    },
}

/// `lunfs policy set`.
#[derive(Debug, Args)]
pub struct PolicySet {
    /// The LUN, or / for the ordinary tree
    pub name: String,
    /// How often a snapshot is made: 30s 15m 4h 1d 1w; needed the first time
    #[arg(long, value_name = "DUR", value_parser = parse::duration)]
    pub every: Option<u64>,
    /// How many of the newest stay [default: 8 where nothing says what stays]
    #[arg(long, value_name = "N")]
    pub keep: Option<u32>,
    /// For how many hours the last one of each hour stays
    #[arg(long, value_name = "N")]
    pub keep_hourly: Option<u32>,
    /// For how many days the last one of each day (UTC)
    #[arg(long, value_name = "N")]
    pub keep_daily: Option<u32>,
    /// For how many weeks the last one of each week (from Monday)
    #[arg(long, value_name = "N")]
    pub keep_weekly: Option<u32>,
    /// For how many months the last one of each month
    #[arg(long, value_name = "N")]
    pub keep_monthly: Option<u32>,
    /// --dry-run
    #[command(flatten)]
    pub change: Change,
}

const SNAPSHOT_CREATE_EXAMPLES: &str = "\
A name has at most 64 of A-Z a-z 0-9 . _ - : and no leading dot.

With --quiesce nothing is made unless the application comes to rest. It is let go
on after 12 s at the latest, also when this command is killed. The hooks:
  fsfreeze:PATH   the filesystem mounted at PATH here
  qga:SOCKET      all filesystems of a guest, by the QEMU guest agent
  postgres:URL    a PostgreSQL cluster, by psql: a checkpoint and backup mode
  exec:CMD        any program, as `CMD freeze` and `CMD thaw` (called whenever
                  freeze was); exit status 0 is yes

Examples:
  lunfs snapshot create vm1@before-upgrade
  lunfs snapshot create db-data@night db-log@night
  lunfs snapshot create vm1
  lunfs snapshot create vm1@backup --quiesce qga:/run/vm1-agent.sock
  lunfs snapshot create /@monday";

const ROLLBACK_EXAMPLES: &str = "\
Newer snapshots stay, so a rollback can be undone by another one.

Examples:
  lunfs snapshot rollback vm1@before-upgrade --dry-run
  lunfs snapshot rollback vm1@before-upgrade";

const SNAPSHOT_DELETE_EXAMPLES: &str = "\
Examples:
  lunfs snapshot delete vm1@before-upgrade
  lunfs snapshot delete vm1@monday --keep-bookmark";

const DIFF_EXAMPLES: &str = "\
Its cost grows with the change, not with the size. A range that is told may be larger than what
was written: of a node of the tree that became a hole all is told.

Examples:
  lunfs snapshot diff vm1@monday vm1@tuesday
  lunfs snapshot diff vm1@monday --json";

const HOLD_EXAMPLES: &str = "\
Examples:
  lunfs snapshot hold vm1@golden
  lunfs snapshot hold vm1@audit --until 2033-01-01T00:00:00Z
  lunfs snapshot hold vm1@audit --until 90d";

const POLICY_EXAMPLES: &str = "\
It runs inside `lunfs serve`. What was missed while nothing was served is made up for once. Its
snapshots are named auto-TIME; only they are taken away, and never one that is held.

Examples:
  lunfs policy set vm1 --every 15m --keep 8 --keep-hourly 24 --keep-daily 14
  lunfs policy set / --every 1d --keep 7
  lunfs policy show vm1";
