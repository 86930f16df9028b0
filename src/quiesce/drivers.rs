//! How each hook freezes and thaws.

use super::guest::Guest;
use super::hook::Hook;
use super::postgres::Session;
use super::program;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Where system programs are that a user's PATH may lack.
const MORE_PATH: &str = ":/usr/sbin:/sbin";

/// Why it did not freeze, or did not thaw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// It said no.
    Refused(String),
    /// It did not say anything in time: it may be frozen, or become so.
    TimedOut(String),
}

impl Failure {
    /// The reason.
    pub fn why(&self) -> &str {
        match self {
            Failure::Refused(why) | Failure::TimedOut(why) => why,
        }
    }
}

/// A hook at work.
pub enum Driver {
    /// By the program fsfreeze(8).
    Fsfreeze(std::path::PathBuf),
    /// By the guest's agent.
    Guest(Guest),
    /// By a session of psql(1).
    Postgres(Session),
    /// By a program of the user's.
    Exec(String),
}

impl Driver {
    /// Nothing is frozen by this.
    pub fn new(hook: &Hook) -> Driver {
        match hook {
            Hook::Fsfreeze(path) => Driver::Fsfreeze(path.clone()),
            Hook::GuestAgent(socket) => Driver::Guest(Guest::new(socket)),
            Hook::Postgres(url) => Driver::Postgres(Session::new(url)),
            Hook::Exec(command) => Driver::Exec(command.clone()),
        }
    }

    /// Brings it to rest.
    pub fn freeze(&mut self, limit: Duration) -> Result<(), Failure> {
        match self {
            Driver::Fsfreeze(path) => program::run(fsfreeze("--freeze", path), limit),
            Driver::Guest(guest) => guest.freeze(limit),
            Driver::Postgres(session) => session.start(limit),
            Driver::Exec(command) => program::run(shell(command, "freeze"), limit),
        }
    }

    /// Whether it has to be thawed after this failure to freeze. A program may have done half of
    /// it.
    pub fn may_be_frozen(&self, failure: &Failure) -> bool {
        matches!(failure, Failure::TimedOut(_)) || matches!(self, Driver::Exec(_))
    }

    /// Lets it go on; also where another process froze it.
    pub fn thaw(&mut self, limit: Duration) -> Result<(), Failure> {
        match self {
            Driver::Fsfreeze(path) => {
                match program::run(fsfreeze("--unfreeze", path), limit) {
                    // EINVAL: it is not frozen.
                    Err(Failure::Refused(why)) if why.contains("Invalid argument") => Ok(()),
                    other => other,
                }
            }
            Driver::Guest(guest) => guest.thaw(limit),
            Driver::Postgres(session) => session.stop(limit),
            Driver::Exec(command) => program::run(shell(command, "thaw"), limit),
        }
    }
}

fn fsfreeze(what: &str, path: &Path) -> Command {
    let mut command = Command::new("fsfreeze");
    let path_variable = std::env::var("PATH").unwrap_or_default() + MORE_PATH;
    command.arg(what).arg("--").arg(path).env("PATH", path_variable).env("LC_ALL", "C");
    command
}

fn shell(command: &str, what: &str) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.arg("-c").arg(format!("{command} {what}"));
    shell
}
