//! The command line: one noun and one verb.

pub use super::args_snapshot::{CloneVerb, Policy, Snapshot};
use super::nbs_args::Nbs;
use super::parse::{self, Size};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

const ABOUT: &str =
    "A filesystem whose disks are directories: served over iSCSI and NBD, and mounted";

const EXAMPLES: &str = "\
Examples:
  lunfs pool create /srv/pool.lunfs --size 100G
  lunfs lun create vm1 --size 20G --pool /srv/pool.lunfs
  lunfs serve /srv/pool.lunfs --mount /mnt/lunfs --iscsi --nbd
  lunfs lun import vm2 debian.raw
  lunfs status";

/// lunfs.
#[derive(Debug, Parser)]
#[command(name = "lunfs", version, about = ABOUT, after_help = EXAMPLES, max_term_width = 100)]
#[command(disable_help_subcommand = true)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub common: Common,
    /// Which command.
    #[command(subcommand)]
    pub noun: Noun,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// Answer in JSON
    #[arg(long, global = true, display_order = 900)]
    pub json: bool,
    /// Any device of the pool; may be left out where one pool is served
    #[arg(long, global = true, env = "LUNFS_POOL", value_name = "PATH", display_order = 901)]
    pub pool: Option<PathBuf>,
}

/// What every command takes that changes something.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Change {
    /// Check and say what would be done, but do not do it
    #[arg(long, display_order = 800)]
    pub dry_run: bool,
}

/// Nouns, and verbs without one.
#[derive(Debug, Subcommand)]
pub enum Noun {
    /// Make, look at, check and grow pools
    #[command(subcommand)]
    Pool(Pool),
    /// Serve a pool until it is stopped
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(Box<Serve>),
    /// Stop the server: drain, last consistency point, unmount
    #[command(after_help = "Examples:\n  lunfs stop\n  lunfs stop --pool /srv/pool.lunfs")]
    Stop(Change),
    /// The server, its doors, LUNs and sessions; exit code 0 only when every door is open
    #[command(after_help = "Examples:\n  lunfs status\n  lunfs status --json")]
    Status,
    /// Make, change, fill and read LUNs
    #[command(subcommand)]
    Lun(Lun),
    /// Make, look at, compare and delete snapshots of LUNs and of the ordinary tree
    #[command(subcommand)]
    Snapshot(Snapshot),
    /// Make LUNs of snapshots
    #[command(subcommand)]
    Clone(CloneVerb),
    /// Let snapshots be made and taken away by the clock
    #[command(subcommand)]
    Policy(Policy),
    /// Say who may use which LUN over iSCSI, and how it proves who it is
    #[command(subcommand)]
    Initiator(Initiator),
    /// Use the objects of an NBS server, this one's or another's
    #[command(subcommand)]
    Nbs(Nbs),
    /// Look at and end the sessions of block clients
    #[command(subcommand)]
    Session(Session),
    /// Print what Samba or an NFS server needs to export the mount
    #[command(subcommand)]
    Share(Share),
    /// Print a completion script for a shell
    #[command(after_help = "Examples:\n  lunfs completion bash > /etc/bash_completion.d/lunfs")]
    Completion {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// `lunfs pool`.
#[derive(Debug, Subcommand)]
pub enum Pool {
    /// Make a pool in files or block devices
    #[command(after_help = POOL_CREATE_EXAMPLES)]
    Create {
        /// A file to make or a block device to take, each
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
        /// Length of each file (sparse): bytes, or K M G T
        #[arg(long, value_parser = parse::size)]
        size: Option<Size>,
        /// What survives the loss of a device
        #[arg(long, value_enum, default_value_t = Redundancy::None)]
        redundancy: Redundancy,
        /// --dry-run
        #[command(flatten)]
        change: Change,
    },
    /// The pools that are served on this host
    List,
    /// Figures of a pool
    #[command(after_help = "Examples:\n  lunfs pool show /srv/pool.lunfs")]
    Show(AtPath),
    /// Verify a pool that is not served: every block, every count
    #[command(after_help = POOL_CHECK_EXAMPLES)]
    Check {
        /// Any device of the pool
        path: Option<PathBuf>,
        /// Repair what can be repaired; what it does is said
        #[arg(long)]
        repair: bool,
        /// With --repair: say what would be done, and write nothing
        #[arg(long, requires = "repair")]
        dry_run: bool,
    },
    /// Show what is on the disks of a pool that is not served, as text
    #[command(after_help = DUMP_EXAMPLES)]
    Dump {
        /// Any device of the pool
        path: Option<PathBuf>,
        /// space, log, volumes, versions, dead, volume:V, inode:V:I, name:VOLUME/path,
        /// name:VOLUME@SNAPSHOT/path, block:N, node:N, inodes:N or device:D:N; labels, roots and
        /// segment map where left out
        #[arg(value_name = "OBJECT")]
        object: Option<String>,
    },
    /// Read every copy of every block of a pool, and heal the bad ones; served or not
    #[command(after_help = POOL_SCRUB_EXAMPLES)]
    Scrub {
        /// Any device of the pool
        path: Option<PathBuf>,
        /// Begin it and return; without a server it goes on when the pool is served
        #[arg(long)]
        background: bool,
        /// End the one that is running
        #[arg(long, conflicts_with = "background")]
        cancel: bool,
        /// --dry-run
        #[command(flatten)]
        change: Change,
    },
    /// Take a further device into a pool, served or not
    #[command(after_help = POOL_ADD_EXAMPLES)]
    Add {
        /// Any device of the pool
        path: PathBuf,
        /// A file to make or a block device to take
        device: PathBuf,
        /// Length of the file (sparse): bytes, or K M G T
        #[arg(long, value_parser = parse::size)]
        size: Option<Size>,
        /// --dry-run
        #[command(flatten)]
        change: Change,
    },
    /// Empty a device of a pool and leave it out, served or not
    #[command(after_help = "Examples:\n  lunfs pool remove /srv/pool.lunfs /dev/sdc")]
    Remove {
        /// Any device of the pool
        path: PathBuf,
        /// The device that leaves
        device: PathBuf,
        /// --dry-run
        #[command(flatten)]
        change: Change,
    },
    /// Go on without a device of a mirror, on purpose
    #[command(after_help = "Examples:\n  lunfs pool offline /srv/a.lunfs /srv/b.lunfs")]
    Offline {
        /// Any device of the pool
        path: PathBuf,
        /// The device that goes
        device: PathBuf,
        /// --dry-run
        #[command(flatten)]
        change: Change,
    },
    /// Take a device back that was missing, and bring it up to date
    #[command(after_help = "Examples:\n  lunfs pool online /srv/a.lunfs /srv/b.lunfs")]
    Online {
        /// Any device of the pool
        path: PathBuf,
        /// The device that is back
        device: PathBuf,
        /// --dry-run
        #[command(flatten)]
        change: Change,
    },
    /// Put a new device in the place of another one, which serves until then if it can
    #[command(
        after_help = "Examples:\n  lunfs pool replace /srv/a.lunfs /srv/b.lunfs /srv/c.lunfs"
    )]
    Replace {
        /// Any device of the pool
        path: PathBuf,
        /// The device that goes
        device: PathBuf,
        /// A file to make, as large as the device that goes, or a block device
        new: PathBuf,
        /// --dry-run
        #[command(flatten)]
        change: Change,
    },
    /// Use the space that a device has gained; a file is made longer first
    #[command(after_help = "Examples:\n  lunfs pool grow /srv/pool.lunfs --size 200G")]
    Grow {
        /// The device that grows
        path: PathBuf,
        /// New length of a file: bytes, or K M G T
        #[arg(long, value_parser = parse::size)]
        size: Option<Size>,
        /// --dry-run
        #[command(flatten)]
        change: Change,
    },
}

const POOL_CREATE_EXAMPLES: &str = "\
Examples:
  lunfs pool create /srv/pool.lunfs --size 100G
  lunfs pool create /dev/sdb /dev/sdc";

const POOL_ADD_EXAMPLES: &str = "\
Examples:
  lunfs pool add /srv/pool.lunfs /dev/sdd
  lunfs pool add /srv/pool.lunfs /srv/more.lunfs --size 100G";

const POOL_CHECK_EXAMPLES: &str = "\
Reads everything and writes nothing, unless --repair is given. Exit code 1 where something is wrong,
or stays wrong.

Examples:
  lunfs pool check /srv/pool.lunfs
  lunfs pool check /srv/pool.lunfs --repair --dry-run";

const POOL_SCRUB_EXAMPLES: &str = "\
Exit code 1 where something could not be healed.

Examples:
  lunfs pool scrub /srv/pool.lunfs
  lunfs pool scrub --background";

const DUMP_EXAMPLES: &str = "\
Examples:
  lunfs pool dump /srv/pool.lunfs
  lunfs pool dump /srv/pool.lunfs block:1234
  lunfs pool dump /srv/pool.lunfs name:vm1/data --json";

/// A pool named by its path, or by --pool.
#[derive(Debug, Args)]
pub struct AtPath {
    /// Any device of the pool
    pub path: Option<PathBuf>,
}

/// What survives the loss of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Redundancy {
    /// Nothing: the pool is as large as its devices together.
    None,
    /// Each block is on two devices.
    Mirror,
}

const SERVE_EXAMPLES: &str = "\
PATH comes before the doors: the address of a door may be left out, and is then on loopback
(iSCSI 127.0.0.1:3260, NBD 127.0.0.1:10809, NBS 127.0.0.1:10900). With no door at all iSCSI and NBD
open.

Examples:
  lunfs serve /srv/pool.lunfs
  lunfs serve /srv/pool.lunfs --mount /mnt/lunfs --iscsi --nbd unix:/run/lunfs.nbd
  lunfs serve --config /etc/lunfs.toml";

/// `lunfs serve`.
#[derive(Debug, Default, Args)]
pub struct Serve {
    /// Devices of the pool: any of them is enough where the others are beside it
    #[arg(value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// TOML with the same names: path, mount, iscsi, nbd, nbs, tls, advertise, cache, degraded,
    /// insecure
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Mount the pool's tree on this directory
    #[arg(long, value_name = "DIR")]
    pub mount: Option<PathBuf>,
    /// Open iSCSI here
    #[arg(long, value_name = "ADDR", num_args = 0..=1, default_missing_value = "")]
    #[arg(action = ArgAction::Append)]
    pub iscsi: Vec<String>,
    /// Open NBD here, or on unix:PATH
    #[arg(long, value_name = "ADDR", num_args = 0..=1, default_missing_value = "")]
    #[arg(action = ArgAction::Append)]
    pub nbd: Vec<String>,
    /// Open NBS here
    #[arg(long, value_name = "ADDR", num_args = 0..=1, default_missing_value = "")]
    #[arg(action = ArgAction::Append)]
    pub nbs: Vec<String>,
    /// Folder of certificates for NBD over TLS: ca-cert.pem, server-cert.pem, server-key.pem, and
    /// authorized-clients, if it is there
    #[arg(long, value_name = "DIR")]
    pub tls: Option<PathBuf>,
    /// What iSCSI discovery names instead of the address that was dialled
    #[arg(long, value_name = "ADDR")]
    pub advertise: Option<String>,
    /// Memory for cached and not yet written blocks [default: 256M]
    #[arg(long, value_parser = parse::size)]
    pub cache: Option<Size>,
    /// Serve although a device is missing, where redundancy allows it
    #[arg(long)]
    pub degraded: bool,
    /// Let everybody who reaches an address beyond loopback read and write
    #[arg(long)]
    pub insecure: bool,
    /// For the helper of mount(8): stop when the mount is unmounted
    #[arg(long, hide = true, requires = "mount")]
    pub until_unmounted: bool,
    /// For the helper of mount(8): reading a file is no change of it
    #[arg(long, hide = true, requires = "mount")]
    pub noatime: bool,
    /// --dry-run
    #[command(flatten)]
    pub change: Change,
}

/// `lunfs share`.
#[derive(Debug, Subcommand)]
pub enum Share {
    /// A share for Samba, with snapshots as Previous Versions
    #[command(after_help = "Examples:\n  lunfs share samba >> /etc/samba/smb.conf")]
    Samba {
        /// What the share is called [default: as the directory]
        #[arg(long, value_parser = parse::share_name)]
        name: Option<String>,
    },
    /// Exports for the kernel's NFS server and for nfs-ganesha
    #[command(after_help = SHARE_NFS_EXAMPLES)]
    Nfs {
        /// Only what this one needs
        #[arg(long, value_enum)]
        server: Option<NfsServer>,
        /// Who may mount it: hosts and networks, as the servers take them
        #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
        #[arg(value_parser = parse::host)]
        clients: Vec<String>,
    },
}

const SHARE_NFS_EXAMPLES: &str = "\
Examples:
  lunfs share nfs --clients 10.0.0.0/24 --server kernel >> /etc/exports
  lunfs share nfs --clients 10.0.0.0/24 --server ganesha >> /etc/ganesha/ganesha.conf";

/// Which NFS server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NfsServer {
    /// Linux's own (knfsd).
    Kernel,
    /// nfs-ganesha.
    Ganesha,
}

/// `lunfs lun`.
#[derive(Debug, Subcommand)]
pub enum Lun {
    /// Make a LUN
    #[command(after_help = LUN_CREATE_EXAMPLES)]
    Create {
        /// One of A-Z a-z 0-9 . _ - each, at most 64, no leading dot
        name: String,
        /// Capacity: bytes, or K M G T
        #[arg(long, value_parser = parse::size)]
        size: Size,
        /// Attributes
        #[arg(value_name = "KEY=VALUE", value_parser = parse::key_value)]
        keys: Vec<(String, String)>,
        /// --dry-run
        #[command(flatten)]
        change: Change,
    },
    /// All LUNs
    List,
    /// One LUN: attributes, use, and how it is reached
    Show {
        /// The LUN
        name: String,
    },
    /// Change the capacity; attached clients are told
    #[command(after_help = "Examples:\n  lunfs lun resize vm1 --size 40G")]
    Resize {
        /// The LUN
        name: String,
        /// New capacity: bytes, or K M G T
        #[arg(long, value_parser = parse::size)]
        size: Size,
        /// Shrink although a client has it open
        #[arg(long)]
        force: bool,
        /// --dry-run
        #[command(flatten)]
        change: Change,
    },
    /// Change the name; not while a client has it open
    Rename {
        /// The LUN
        name: String,
        /// Its new name
        new: String,
        /// --dry-run
        #[command(flatten)]
        change: Change,
    },
    /// Delete a LUN and all its data
    Delete {
        /// The LUN
        name: String,
        /// Its snapshots too
        #[arg(long)]
        recursive: bool,
        /// Although a client has it open
        #[arg(long)]
        force: bool,
        /// --dry-run
        #[command(flatten)]
        change: Change,
    },
    /// Change attributes
    #[command(after_help = "Examples:\n  lunfs lun set vm1 read-only=true threshold=80")]
    Set {
        /// The LUN
        name: String,
        /// Attributes
        #[arg(value_name = "KEY=VALUE", required = true, value_parser = parse::key_value)]
        keys: Vec<(String, String)>,
        /// --dry-run
        #[command(flatten)]
        change: Change,
    },
    /// Show what happened to a LUN
    Log {
        /// The LUN
        name: String,
        /// Stay, and show what is added
        #[arg(short, long)]
        follow: bool,
    },
    /// Make a LUN from a raw image, or replace its contents
    #[command(after_help = IMPORT_EXAMPLES)]
    Import(Box<Import>),
    /// Write the contents of a LUN or a snapshot to a raw image; holes stay holes
    #[command(after_help = EXPORT_EXAMPLES)]
    Export {
        /// The LUN, or NAME@SNAP
        name: String,
        /// The image; - is standard output
        file: PathBuf,
        /// Overwrite a file that exists
        #[arg(long)]
        force: bool,
        /// Zeros for blocks that cannot be read, which are listed; exit code 1 where there are any
        #[arg(long)]
        past_bad: bool,
        /// --dry-run
        #[command(flatten)]
        change: Change,
    },
}

/// `lunfs lun import`.
#[derive(Debug, Args)]
pub struct Import {
    /// The LUN
    pub name: String,
    /// The image; - is standard input, pool:PATH a file of the pool, whose blocks are shared
    pub file: PathBuf,
    /// Attributes of the new LUN
    #[arg(value_name = "KEY=VALUE", value_parser = parse::key_value)]
    pub keys: Vec<(String, String)>,
    /// Into a LUN that exists
    #[arg(long, conflicts_with = "keys")]
    pub into: bool,
    /// Length of what a pipe brings, or a larger capacity than a file has: bytes, or K M G T
    #[arg(long, value_parser = parse::size)]
    pub size: Option<Size>,
    /// Although a client has it open
    #[arg(long)]
    pub force: bool,
    /// --dry-run
    #[command(flatten)]
    pub change: Change,
}

const LUN_CREATE_EXAMPLES: &str = "\
Examples:
  lunfs lun create vm1 --size 20G
  lunfs lun create db --size 1T block-size=4096 threshold=80";

const IMPORT_EXAMPLES: &str = "\
Examples:
  lunfs lun import vm1 debian.raw
  lunfs lun import vm1 debian.raw --into --force
  zstdcat debian.raw.zst | lunfs lun import vm1 - --size 20G";

const EXPORT_EXAMPLES: &str = "\
Examples:
  lunfs lun export vm1 vm1.raw
  lunfs lun export vm1@before-upgrade old.raw
  lunfs lun export vm1 - | zstd > vm1.raw.zst";

/// `lunfs initiator`.
#[derive(Debug, Subcommand)]
pub enum Initiator {
    /// Define an initiator; the first one closes out all clients that are not defined
    #[command(after_help = INITIATOR_EXAMPLES)]
    Add(Box<InitiatorEdit>),
    /// Change an initiator; its sessions follow at once
    #[command(after_help = "Examples:\n  lunfs initiator set iqn.1993-08.org.debian:01:abc \
                            --allow vm2:ro --deny vm1")]
    Set(Box<InitiatorEdit>),
    /// Remove an initiator; its sessions end
    Remove {
        /// Its iSCSI name
        #[arg(value_name = "IQN")]
        name: String,
        /// --dry-run
        #[command(flatten)]
        change: Change,
    },
    /// All initiators
    List,
    /// One initiator: rights, limits, sessions; never its secrets
    Show {
        /// Its iSCSI name
        #[arg(value_name = "IQN")]
        name: String,
    },
}

const INITIATOR_EXAMPLES: &str = "\
A secret is 12 to 255 bytes in a file that only its owner reads (mode 0600).

Examples:
  (umask 077; openssl rand -hex 16 > vm1.secret)
  lunfs initiator add iqn.1993-08.org.debian:01:abc --chap-user vm1 \\
    --chap-secret-file vm1.secret --allow vm1 --allow images:ro
  lunfs initiator add iqn.2026-11.org.example:backup --allow vm1:ro";

/// What may be said of an initiator.
#[derive(Debug, Args)]
pub struct InitiatorEdit {
    /// Its iSCSI name, as it stands in /etc/iscsi/initiatorname.iscsi
    #[arg(value_name = "IQN")]
    pub name: String,
    /// Name by which the initiator proves itself (CHAP)
    #[arg(long, value_name = "USER", requires = "chap_secret_file")]
    pub chap_user: Option<String>,
    /// File with its secret, mode 0600
    #[arg(long, value_name = "FILE", requires = "chap_user")]
    pub chap_secret_file: Option<PathBuf>,
    /// Name by which the target proves itself, where the initiator asks for it
    #[arg(long, value_name = "USER", requires = "mutual_secret_file")]
    pub mutual_user: Option<String>,
    /// File with the target's secret, mode 0600
    #[arg(long, value_name = "FILE", requires = "mutual_user")]
    pub mutual_secret_file: Option<PathBuf>,
    /// Nobody has to prove anything any more
    #[arg(long, conflicts_with_all = ["chap_user", "mutual_user"])]
    pub no_chap: bool,
    /// The target does not prove itself any more
    #[arg(long, conflicts_with = "mutual_user")]
    pub no_mutual: bool,
    /// A LUN it may use; with :ro only for reading
    #[arg(long, value_name = "NAME[:ro]", value_parser = parse::allowed)]
    pub allow: Vec<(String, bool)>,
    /// A LUN it may not use any more
    #[arg(long, value_name = "NAME")]
    pub deny: Vec<String>,
    /// How much its writes may make a LUN take; 0 ends a quota
    #[arg(long, value_name = "NAME=SIZE", value_parser = parse::quota)]
    pub quota: Vec<(String, u64)>,
    /// Where it may come from, as 10.0.0.7 or 10.0.0.0/24; any: from anywhere [default: any]
    #[arg(long, value_name = "NETWORK")]
    pub address: Vec<String>,
    /// Sessions at a time [default: 64]
    #[arg(long, value_name = "N")]
    pub max_sessions: Option<u32>,
    /// Commands that each session may have outstanding [default: 128]
    #[arg(long, value_name = "N")]
    pub max_commands: Option<u32>,
    /// Buffers of all its sessions together [default: 128M]
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    pub max_memory: Option<Size>,
    /// --dry-run
    #[command(flatten)]
    pub change: Change,
}

/// `lunfs session`.
#[derive(Debug, Subcommand)]
pub enum Session {
    /// All sessions
    List,
    /// One session
    Show {
        /// Its id
        id: String,
    },
    /// End a session: its client is disconnected
    Drop {
        /// Its id
        id: String,
        /// --dry-run
        #[command(flatten)]
        change: Change,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parsed(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn doors_with_and_without_addresses() {
        let line = "lunfs serve p q --iscsi --nbd unix:/n --nbd --iscsi 127.0.0.1:1 --mount /m";
        let Noun::Serve(serve) = parsed(line).unwrap().noun else { panic!("serve") };
        assert_eq!(serve.paths, [PathBuf::from("p"), PathBuf::from("q")]);
        assert_eq!(serve.iscsi, ["", "127.0.0.1:1"]);
        assert_eq!(serve.nbd, ["unix:/n", ""]);
    }

    const CONTRACT: &[&str] = &[
        "lunfs pool create p --size 1G --redundancy none --dry-run --json",
        "lunfs pool create p q --redundancy mirror",
        "lunfs pool list --json",
        "lunfs pool show p",
        "lunfs pool check p",
        "lunfs pool check p --repair --dry-run",
        "lunfs pool dump p",
        "lunfs pool scrub p",
        "lunfs pool scrub p --background --json",
        "lunfs pool scrub --cancel --dry-run",
        "lunfs pool add p q --size 2G --dry-run",
        "lunfs pool remove p q --json",
        "lunfs pool grow p --size 2G --dry-run",
        "lunfs pool offline p q --json",
        "lunfs pool online p q --dry-run",
        "lunfs pool replace p q r",
        "lunfs stop --dry-run --pool p",
        "lunfs status --json",
        "lunfs lun create a --size 20G block-size=4096 --pool p",
        "lunfs --pool p lun create a --size 1024",
        "lunfs lun list",
        "lunfs lun show a",
        "lunfs lun resize a --size 2G --force",
        "lunfs lun rename a b",
        "lunfs lun delete a --recursive --force",
        "lunfs lun set a read-only=true quota=1G",
        "lunfs lun log a -f",
        "lunfs lun import a - --size 1G",
        "lunfs lun import a f --into --force",
        "lunfs lun export a - --force",
        "lunfs initiator add iqn.2026-11.org:a --allow a --allow b:ro --quota a=1G --dry-run",
        "lunfs initiator add iqn.2026-11.org:a --chap-user u --chap-secret-file f \
         --mutual-user t --mutual-secret-file g",
        "lunfs initiator set iqn.2026-11.org:a --deny a --max-sessions 2 --no-chap",
        "lunfs initiator remove iqn.2026-11.org:a --dry-run",
        "lunfs initiator list --json",
        "lunfs initiator show iqn.2026-11.org:a",
        "lunfs lun export a@b:c f",
        "lunfs snapshot create a@x b /@y --dry-run --json",
        "lunfs snapshot list",
        "lunfs snapshot list a --json",
        "lunfs snapshot show a@x",
        "lunfs snapshot rename a@x y",
        "lunfs snapshot refresh a@x --dry-run",
        "lunfs snapshot rollback a@x --force",
        "lunfs snapshot delete a@x --keep-bookmark",
        "lunfs snapshot diff a@x",
        "lunfs snapshot diff a@x a@y --json",
        "lunfs snapshot hold a@x --until 2027-01-31T00:00:00Z",
        "lunfs snapshot hold a@x --until 30d",
        "lunfs snapshot release a@x",
        "lunfs clone create a@x b --dry-run",
        "lunfs policy set a --every 15m --keep 8 --keep-hourly 24 --keep-daily 14 \
         --keep-weekly 4 --keep-monthly 12",
        "lunfs policy show",
        "lunfs policy show a --json",
        "lunfs policy clear / --dry-run",
        "lunfs session list",
        "lunfs session show 1",
        "lunfs session drop 1 --dry-run",
        "lunfs completion bash",
    ];

    #[test]
    fn words_of_the_contract() {
        for line in CONTRACT {
            assert!(parsed(line).is_ok(), "{line}: {}", parsed(line).unwrap_err());
        }
    }

    #[test]
    fn nonsense_is_a_usage_error() {
        for line in [
            "lunfs",
            "lunfs lun",
            "lunfs lun create a",
            "lunfs lun create a --size 5X",
            "lunfs lun create a --size -1",
            "lunfs lun create a --size 1G novalue",
            "lunfs lun set a",
            "lunfs pool create",
            "lunfs status --dry-run",
            "lunfs initiator add",
            "lunfs initiator add iqn.2026-11.org:a --chap-user u",
            "lunfs initiator add iqn.2026-11.org:a --allow a:rx",
            "lunfs initiator add iqn.2026-11.org:a --quota a",
            "lunfs pool check p --dry-run",
            "lunfs pool create p --redundancy raid6",
            "lunfs snapshot create",
            "lunfs snapshot show a",
            "lunfs snapshot hold a@x --until soon",
            "lunfs clone create a@x",
            "lunfs policy set a --every 15",
            "lunfs policy set a --every 0s",
        ] {
            assert_eq!(parsed(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
