//! A server that says nothing: is it at work, or does it hang? Another connection asks.

use super::error::{Error, Message, Result};
use super::protocol::{Command, Request, PROTOCOL_VERSION};
use super::wire;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// So long nothing may be heard before somebody asks, and so long the answer to that may take.
pub(super) const SILENCE: Duration = Duration::from_secs(5);

/// Waits until there is something to read; an error where the server does not live, or where it
/// lives and the deadline is over.
pub(super) fn await_answer(
    stream: &UnixStream,
    silence: Duration,
    deadline: Option<Instant>,
) -> Result<()> {
    let Some(socket) = socket_of(stream) else { return Ok(()) };
    let failed = |e: std::io::Error| Error::Connection(e.to_string());
    stream.set_read_timeout(Some(silence)).map_err(failed)?;
    let wait =
        Timespec { tv_sec: silence.as_secs() as i64, tv_nsec: silence.subsec_nanos().into() };
    loop {
        let mut fds = [PollFd::new(stream, PollFlags::IN)];
        match poll(&mut fds, Some(&wait)) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(failed(e.into())),
            Ok(0) => {}
            Ok(_) => return Ok(()),
        }
        if !lives(&socket, silence) {
            return Err(hung(stream, "does not answer", "nothing was heard of it"));
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(hung(stream, "is busy", "it lives, but has no answer yet"));
        }
    }
}

fn hung(stream: &UnixStream, what: &str, why: &str) -> Error {
    let peer = rustix::net::sockopt::socket_peercred(stream.as_fd());
    let process =
        peer.map_or_else(|_| String::new(), |p| format!(" (process {})", p.pid.as_raw_pid()));
    Message::new(format!("the server{process} {what}"))
        .why(why)
        .todo("it may be stopped, or wait for a device: look at the process and the host's log")
        .into()
}

fn lives(socket: &Path, silence: Duration) -> bool {
    let ask = || {
        let stream = UnixStream::connect(socket).ok()?;
        stream.set_read_timeout(Some(silence)).ok()?;
        stream.set_write_timeout(Some(silence)).ok()?;
        let command = Command::Ping;
        let request = Request { version: PROTOCOL_VERSION, dry_run: false, command };
        wire::send_request(&stream, &request, None).ok()?;
        // Whatever it says: one of another version does not know the word.
        std::io::Read::read_exact(&mut &stream, &mut [0; 1]).ok()
    };
    ask().is_some()
}

/// Where the server of a connection listens; `None`: the other side is this process. A socket keeps
/// the name under which it was bound, before it was renamed.
fn socket_of(stream: &UnixStream) -> Option<PathBuf> {
    let address = stream.peer_addr().ok()?;
    let bound = address.as_pathname()?;
    let id = bound.file_name()?.to_str()?.split('.').next()?.to_owned();
    Some(bound.with_file_name(id).with_extension(super::run_dir::SUFFIX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::run_dir::RunDirs;

    #[test]
    fn a_server_that_does_not_answer_is_told_of() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = RunDirs::of(vec![dir.path().to_path_buf()]);
        let (listener, path) = dirs.bind(&[9; 16]).unwrap();
        let stream = dirs.connect(&[9; 16]).unwrap().unwrap();
        assert_eq!(socket_of(&stream), Some(path));
        let told = await_answer(&stream, Duration::from_millis(200), None).unwrap_err().to_string();
        assert!(told.contains("does not answer"), "{told}");
        assert!(told.contains(&format!("process {}", std::process::id())), "{told}");
        drop(listener);
        let (near, _far) = UnixStream::pair().unwrap();
        assert!(await_answer(&near, SILENCE, None).is_ok(), "this process");
    }
}
