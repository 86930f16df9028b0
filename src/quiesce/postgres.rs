//! PostgreSQL in backup mode, by a session of psql(1) that stays open.
//!
//! Starting makes a checkpoint, so that the copy has little to replay, and keeps whole pages in the
//! log from then on. A snapshot is one instant of the whole cluster, so the copy starts as it is;
//! the server goes on working meanwhile. The session is the dead-man: a server whose session is
//! gone ends the backup by itself.

use super::drivers::Failure;
use super::program;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Ends what the server says to one question.
const DONE: &str = "lunfs-done";
/// How long psql may take to end when it was told to.
const QUIT: Duration = Duration::from_secs(2);
/// First version whose functions have today's names (PostgreSQL 15 release notes).
const RENAMED: u32 = 150_000;
/// What is kept of a line.
const MAX_LINE_CHARS: usize = 300;

/// A session.
pub struct Session {
    url: String,
    running: Option<Running>,
}

struct Running {
    psql: Child,
    lines: Receiver<String>,
    version: u32,
}

impl Session {
    /// Not connected yet.
    pub fn new(url: &str) -> Session {
        Session { url: url.to_owned(), running: None }
    }

    /// Connects and starts a backup.
    pub fn start(&mut self, limit: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + limit;
        let running = self.running.insert(connect(&self.url)?);
        let version = running.ask("SHOW server_version_num;", deadline)?;
        running.version = version.trim().parse().map_err(|_| refused(&version))?;
        let question = match running.version >= RENAMED {
            true => "SELECT 'lsn', pg_backup_start('lunfs', true);",
            false => "SELECT 'lsn', pg_start_backup('lunfs', true, false);",
        };
        let answer = running.ask(question, deadline)?;
        match answer.contains("lsn") {
            true => Ok(()),
            false => Err(refused(&answer)),
        }
    }

    /// Ends the backup. Without a session there is none.
    pub fn stop(&mut self, limit: Duration) -> Result<(), Failure> {
        let Some(mut running) = self.running.take() else { return Ok(()) };
        let question = match running.version >= RENAMED {
            true => "SELECT 'lsn', lsn FROM pg_backup_stop(false);",
            false => "SELECT 'lsn', lsn FROM pg_stop_backup(false, false);",
        };
        let answer = running.ask(question, Instant::now() + limit)?;
        match answer.contains("lsn") {
            true => Ok(()),
            false => Err(refused(&answer)),
        }
    }
}

fn connect(url: &str) -> Result<Running, Failure> {
    let mut command = Command::new("psql");
    command.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--no-password"]);
    command.arg("--dbname").arg(url).process_group(0);
    // One pipe for both, so that an error comes before the end of the answer that it is.
    let (near, far) = UnixStream::pair().map_err(|error| failed(&error))?;
    let copy = far.try_clone().map_err(|error| failed(&error))?;
    command.stdin(Stdio::piped()).stdout(OwnedFd::from(far)).stderr(OwnedFd::from(copy));
    let psql = command.spawn().map_err(|error| failed(&error))?;
    drop(command); // With its ends of the pipe.
    let (send, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(near).lines().map_while(Result::ok) {
            if send.send(line.chars().take(MAX_LINE_CHARS).collect()).is_err() {
                break;
            }
        }
    });
    Ok(Running { psql, lines, version: 0 })
}

impl Running {
    /// What psql says to a question, errors too, in one line.
    fn ask(&mut self, question: &str, deadline: Instant) -> Result<String, Failure> {
        if let Some(pipe) = &mut self.psql.stdin {
            // A psql that is gone says why below.
            let _ = pipe.write_all(format!("{question}\n\\echo {DONE}\n").as_bytes());
        }
        let mut said = Vec::new();
        loop {
            let rest = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(rest) {
                Ok(line) if line == DONE => return Ok(said.join("; ")),
                Ok(line) => said.push(line),
                Err(RecvTimeoutError::Timeout) => {
                    let late = "PostgreSQL did not answer in time";
                    return Err(Failure::TimedOut(late.to_owned()));
                }
                Err(RecvTimeoutError::Disconnected) => return Err(refused(&said.join("; "))),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.psql.stdin.take());
        if !matches!(program::wait(&mut self.psql, QUIT), Ok(Some(_))) {
            program::end(&mut self.psql);
        }
    }
}

fn failed(error: &std::io::Error) -> Failure {
    Failure::Refused(format!("psql: {error}"))
}

fn refused(answer: &str) -> Failure {
    let said = answer.trim();
    Failure::Refused(if said.is_empty() { "PostgreSQL said nothing" } else { said }.to_owned())
}
