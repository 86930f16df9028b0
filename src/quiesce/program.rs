//! Running a program for a bounded time.

use super::drivers::Failure;
use rustix::fs::{memfd_create, MemfdFlags};
use rustix::process::{kill_process_group, Pid, Signal};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// What of a program's words is told, from the end.
const MAX_WORDS_BYTES: u64 = 300;
/// Between two looks whether it has ended.
const LOOK: Duration = Duration::from_millis(5);

/// Runs it to its end, killed with all it started when `limit` has passed. What it says goes
/// nowhere but into the error.
pub fn run(mut command: Command, limit: Duration) -> Result<(), Failure> {
    let name = command.get_program().to_string_lossy().into_owned();
    let failed = |error: std::io::Error| Failure::Refused(format!("{name}: {error}"));
    let words = memfd_create("hook", MemfdFlags::CLOEXEC).map(File::from);
    let words = words.map_err(|error| failed(error.into()))?;
    let copy = || words.try_clone().map(Stdio::from).map_err(&failed);
    command.stdin(Stdio::null()).stdout(copy()?).stderr(copy()?).process_group(0);
    let mut child = command.spawn().map_err(&failed)?;
    match wait(&mut child, limit).map_err(&failed)? {
        Some(status) if status.success() => Ok(()),
        // It did not say that it refuses: it may have frozen what it was to freeze.
        Some(status) if status.code().is_none() => {
            Err(Failure::TimedOut(format!("{name} was killed: {status}")))
        }
        Some(status) => Err(Failure::Refused(format!("{status}: {}", last_words(&words)))),
        None => {
            end(&mut child);
            Err(Failure::TimedOut(format!("{name} did not end within {} s", limit.as_secs())))
        }
    }
}

/// Waits for the end of a child; `None`: it goes on.
pub fn wait(child: &mut Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        let status = child.try_wait()?;
        if status.is_some() || Instant::now() >= deadline {
            return Ok(status);
        }
        std::thread::sleep(LOOK);
    }
}

/// Kills a child with its process group, and waits until it is gone: what it had begun is over.
pub fn end(child: &mut Child) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid {
        let _ = kill_process_group(pid, Signal::KILL);
    }
    let _ = child.wait();
}

fn last_words(words: &File) -> String {
    let length = words.metadata().map_or(0, |found| found.len());
    let from = length.saturating_sub(MAX_WORDS_BYTES);
    let mut bytes = vec![0; (length - from) as usize];
    let count = words.read_at(&mut bytes, from).unwrap_or(0);
    bytes.truncate(count);
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() {
        return "it said nothing".to_owned();
    }
    lines.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit_ms: u64) -> Result<(), Failure> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        run(command, Duration::from_millis(limit_ms))
    }

    #[test]
    fn its_last_words_are_told() {
        assert_eq!(shell("echo well; exit 0", 5000), Ok(()));
        let Err(Failure::Refused(why)) = shell("echo one; echo two >&2; exit 3", 5000) else {
            panic!("it should be refused")
        };
        assert!(why.contains('3') && why.contains("one; two"), "{why}");
        assert!(
            matches!(shell("exit 1", 5000), Err(Failure::Refused(why)) if why.contains("nothing"))
        );
    }

    /// fsfreeze(8) may have frozen before it was killed.
    #[test]
    fn what_was_killed_did_not_refuse() {
        let killed = shell("kill -9 $$", 5000);
        assert!(matches!(killed, Err(Failure::TimedOut(_))), "{killed:?}");
    }

    #[test]
    fn it_ends_with_all_that_it_started() {
        let began = Instant::now();
        let late = shell("sleep 60 & sleep 60", 100);
        assert!(matches!(late, Err(Failure::TimedOut(_))), "{late:?}");
        assert!(began.elapsed() < Duration::from_secs(30));
    }
}
