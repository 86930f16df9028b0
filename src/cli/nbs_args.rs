//! The words of `lunfs nbs`.

use super::args::Change;
use super::parse::{self, Size};
use crate::quiesce::Hook;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// `lunfs nbs`.
#[derive(Debug, Subcommand)]
pub enum Nbs {
    /// The objects of a server
    #[command(after_help = "Examples:\n  lunfs nbs list --server san1,san2")]
    List(Server),
    /// One object: capacity, rights
    Info {
        /// The object
        name: String,
        /// Where it is
        #[command(flatten)]
        server: Server,
    },
    /// Copy bytes of an object to a file
    #[command(after_help = READ_EXAMPLES)]
    Read {
        /// The object
        name: String,
        /// The file; - is standard output
        #[arg(default_value = "-")]
        file: PathBuf,
        /// First byte
        #[arg(long, value_parser = parse::size, default_value = "0")]
        offset: Size,
        /// Bytes [default: to the end]
        #[arg(long, value_parser = parse::size)]
        length: Option<Size>,
        /// Where it is
        #[command(flatten)]
        server: Server,
    },
    /// Copy a file into an object; durable when it returns
    #[command(after_help = "Examples:\n  lunfs nbs write vm1 image.raw --server san1,san2")]
    Write {
        /// The object
        name: String,
        /// The file; - is standard input
        file: PathBuf,
        /// First byte
        #[arg(long, value_parser = parse::size, default_value = "0")]
        offset: Size,
        /// Where it is
        #[command(flatten)]
        server: Server,
        /// --dry-run
        #[command(flatten)]
        change: Change,
    },
    /// Serve an object as an NBD export to programs of this host, until stopped
    #[command(after_help = ATTACH_EXAMPLES)]
    Attach {
        /// Servers, the preferred one first, and the object
        #[arg(value_name = "ADDR[,ADDR]/NAME")]
        object: String,
        /// Socket of the NBD export
        #[arg(long, value_name = "unix:PATH")]
        nbd: String,
        /// Who asks
        #[command(flatten)]
        login: LoginArgs,
        /// How long a request waits for a server that is away, in seconds
        #[arg(long, default_value_t = 600)]
        patience: u64,
    },
    /// Snapshots of an object, ordered from where its application runs
    #[command(subcommand)]
    Snap(Snap),
}

const READ_EXAMPLES: &str = "\
Examples:
  lunfs nbs read vm1 vm1.raw --server san1
  lunfs nbs read vm1 --offset 0 --length 512 --server san1 | xxd";

const ATTACH_EXAMPLES: &str = "\
Examples:
  lunfs nbs attach san1,san2/vm1 --nbd unix:/run/vm1.sock
  nbdcopy nbd+unix:///vm1?socket=/run/vm1.sock backup.raw";

const SNAP_EXAMPLES: &str = "\
With --quiesce nothing is made unless the application comes to rest. It is let go on whatever
happens.

Examples:
  lunfs nbs snap create vm1@before --server san1,san2
  lunfs nbs snap create db@nightly --server san1 --quiesce fsfreeze:/srv/db";

/// `lunfs nbs snap`.
#[derive(Debug, Subcommand)]
pub enum Snap {
    /// Make a snapshot
    #[command(after_help = SNAP_EXAMPLES)]
    Create {
        /// Of what, and where
        #[command(flatten)]
        of: SnapOf,
        /// Bring the application to rest for it: fsfreeze:PATH, qga:SOCKET, postgres:URL, exec:CMD
        #[arg(long, value_name = "HOOK")]
        quiesce: Option<Hook>,
        /// How long the application may take to come to rest, in seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 60, requires = "quiesce")]
        quiesce_timeout: u64,
    },
    /// Delete a snapshot
    Delete(SnapOf),
    /// Make the object what a snapshot is
    Restore(SnapOf),
    /// Make a snapshot anew, under its name
    Refresh(SnapOf),
    /// All snapshots of an object
    List {
        /// The object
        name: String,
        /// Where it is
        #[command(flatten)]
        server: Server,
    },
}

/// A snapshot and its server.
#[derive(Debug, Args)]
pub struct SnapOf {
    /// The object and the snapshot
    #[arg(value_name = "NAME@SNAP")]
    pub object: String,
    /// Where it is
    #[command(flatten)]
    pub server: Server,
    /// --dry-run
    #[command(flatten)]
    pub change: Change,
}

/// A server, and who asks.
#[derive(Debug, Args)]
pub struct Server {
    /// Servers, the preferred one first
    #[arg(long, value_name = "ADDR[,ADDR]", default_value = "127.0.0.1:10900")]
    pub server: String,
    /// Who asks
    #[command(flatten)]
    pub login: LoginArgs,
    /// How long to wait for a server that is away, in seconds
    #[arg(long, default_value_t = 30)]
    pub patience: u64,
}

/// What the client proves itself by.
#[derive(Debug, Clone, Args)]
pub struct LoginArgs {
    /// Name by which the client proves itself (CHAP)
    #[arg(long, value_name = "USER", requires = "secret_file")]
    pub user: Option<String>,
    /// File with its secret, mode 0600
    #[arg(long, value_name = "FILE", requires = "user")]
    pub secret_file: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::super::args::Cli;
    use clap::Parser;

    #[test]
    fn words_of_nbs() {
        let parsed = |line: &str| Cli::try_parse_from(line.split(' '));
        for line in [
            "lunfs nbs list --server a:1,b --json",
            "lunfs nbs info vm1 --user u --secret-file f",
            "lunfs nbs read vm1 - --offset 4K --length 512",
            "lunfs nbs write vm1 f --dry-run",
            "lunfs nbs attach a,b/vm1 --nbd unix:/n",
            "lunfs nbs snap create vm1@s --server a,b --quiesce exec:true",
            "lunfs nbs snap list vm1",
        ] {
            assert!(parsed(line).is_ok(), "{line}: {}", parsed(line).unwrap_err());
        }
        for line in [
            "lunfs nbs attach a/vm1",
            "lunfs nbs list --user u",
            "lunfs nbs snap create a --quiesce x",
        ] {
            assert_eq!(parsed(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
