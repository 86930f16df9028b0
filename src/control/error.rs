//! The one errors enum of the control layer, and the three lines a user sees of it.

use crate::{access, fs, lun};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;

/// What a user is told: what happened, why, and what to do about it. Empty lines are left out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Message {
    /// What was refused or failed.
    pub what: String,
    /// Why.
    #[serde(default)]
    pub why: String,
    /// What to do.
    #[serde(default)]
    pub todo: String,
}

impl Message {
    /// A message of one line; [`Message::why`] and [`Message::todo`] add theirs.
    pub fn new(what: impl Into<String>) -> Message {
        Message { what: what.into(), ..Message::default() }
    }

    /// A lower layer's message: its lines are what, why, what to do.
    pub fn from_lines(text: &str) -> Message {
        let mut lines = text.lines();
        let mut next = || lines.next().unwrap_or_default().to_string();
        Message { what: next(), why: next(), todo: next() }
    }

    /// What and why in one line, as a part of another message.
    pub fn in_one_line(&self) -> String {
        match self.why.is_empty() {
            true => one_line(&self.what),
            false => one_line(&format!("{}: {}", self.what, self.why)),
        }
    }

    /// Adds the reason.
    pub fn why(mut self, why: impl fmt::Display) -> Message {
        self.why = why.to_string();
        self
    }

    /// Adds what the user can do.
    pub fn todo(mut self, todo: impl fmt::Display) -> Message {
        self.todo = todo.to_string();
        self
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&one_line(&self.what))?;
        for line in [&self.why, &self.todo] {
            if !line.is_empty() {
                write!(f, "\n  {}", one_line(line))?;
            }
        }
        Ok(())
    }
}

/// Control characters may come from a name or a file: they never reach the terminal.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Why a command was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Refused or failed, said in full.
    #[error("{0}")]
    Refused(Message),
    /// Another process has the pool open.
    #[error("{0}")]
    InUse(Message),
    /// The words of the command make no sense (exit code 2).
    #[error("{0}")]
    Usage(Message),
    /// The peer of the control connection broke the protocol, or went away.
    #[error("the control connection failed\n  {0}")]
    Connection(String),
}

/// Result of the control layer.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// What the user is shown.
    pub fn message(&self) -> Message {
        match self {
            Error::Refused(message) | Error::InUse(message) | Error::Usage(message) => {
                message.clone()
            }
            Error::Connection(why) => Message::new("the control connection failed")
                .why(why)
                .todo("see what the server printed, then `lunfs status`"),
        }
    }

    /// Process exit code: 1 refused or failed, 2 usage.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Usage(_) => 2,
            Error::Refused(_) | Error::InUse(_) | Error::Connection(_) => 1,
        }
    }

    /// A failed system call on a named file.
    pub fn io(what: impl Into<String>, error: &io::Error) -> Error {
        Error::Refused(Message::new(what).why(error))
    }

    /// A filesystem error, with what was being done.
    pub fn fs(what: impl Into<String>, error: &fs::Error) -> Error {
        let message = Message::new(what).why(error);
        Error::Refused(message.todo(fs_todo(error)))
    }

    /// A block request's error, with what was being done.
    pub fn block(what: impl Into<String>, error: &lun::BlockError) -> Error {
        let message = Message::new(what).why(error);
        Error::Refused(message.todo(block_todo(error)))
    }
}

impl From<lun::Error> for Error {
    fn from(error: lun::Error) -> Error {
        match &error {
            lun::Error::Fs(below) => Error::fs("the pool did not do it", below),
            _ => Error::Refused(Message::from_lines(&error.to_string())),
        }
    }
}

impl From<access::Error> for Error {
    fn from(error: access::Error) -> Error {
        match error {
            access::Error::Lun(below) => below.into(),
            access::Error::Fs(below) => Error::fs("the list of initiators was not changed", &below),
            error => Error::Refused(Message::from_lines(&error.to_string())),
        }
    }
}

impl From<Message> for Error {
    fn from(message: Message) -> Error {
        Error::Refused(message)
    }
}

const BAD_BLOCK: &str = "`lunfs status` lists bad places; without a server `lunfs pool check PATH`";
const MAKE_ROOM: &str =
    "delete something, or `lunfs pool grow PATH --size SIZE`, or `lunfs pool add PATH DEVICE`";

fn fs_todo(error: &fs::Error) -> &'static str {
    match error {
        fs::Error::NoSpace => MAKE_ROOM,
        fs::Error::Corrupt { .. } => BAD_BLOCK,
        fs::Error::Latched(_) => "look at the device and the host's log, then restart the server",
        fs::Error::Format(_) => "look at the path; `lunfs pool check PATH` says more",
        _ => "",
    }
}

fn block_todo(error: &lun::BlockError) -> &'static str {
    match error {
        lun::BlockError::NoSpace => MAKE_ROOM,
        lun::BlockError::Medium { .. } => BAD_BLOCK,
        lun::BlockError::HeldByFile => "close the file in the mount, then try again",
        lun::BlockError::ReadOnly => "`lunfs lun set NAME read-only=false`",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_at_most_three_lines() {
        let message = Message::new("a\nb").why("c\rd").todo("e");
        assert_eq!(message.to_string(), "a b\n  c d\n  e");
        assert_eq!(Message::new("alone").to_string(), "alone");
        assert_eq!(message.in_one_line(), "a b: c d");
    }
}
