//! The command's side: starts the agent, drives the machine, and takes the agent's place when it is
//! gone.

use super::drivers::Driver;
use super::hook::Hook;
use super::machine::{Act, Event, Limits, Machine, Report};
use super::program;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{channel, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

/// The word by which `program` becomes the agent: `program quiesce-agent HOOK` and the three limits
/// in milliseconds.
pub const AGENT_WORD: &str = "quiesce-agent";
/// How long an agent that has nothing more to do may take to end.
const AGENT_END: Duration = Duration::from_secs(2);

/// Takes a snapshot between freeze and thaw. `program` is this very program; `snapshot` runs on a
/// thread of its own and is not waited for beyond its limit.
pub fn run<T: Send + 'static>(
    program: &Path,
    hook: &Hook,
    limits: Limits,
    snapshot: impl FnOnce() -> T + Send + 'static,
) -> Report<T> {
    let began = Instant::now();
    let (mut machine, first) = Machine::new(limits);
    let (send, events) = channel();
    let mut agent = match start(program, hook, limits, send.clone()) {
        Ok(agent) => Some(agent),
        Err(error) => {
            let why = format!("{}: {error}", program.display());
            machine.on(Duration::ZERO, Event::Refused(why));
            None
        }
    };
    let mut snapshot = Some((snapshot, send));
    let mut act = Some(first);
    while let Some(deadline) = machine.deadline() {
        match act.take() {
            Some(Act::Freeze) => tell(&mut agent, "freeze"),
            Some(Act::Thaw) => tell(&mut agent, "thaw"),
            Some(Act::Snapshot) => {
                if let Some((snapshot, send)) = snapshot.take() {
                    std::thread::spawn(move || send.send(Event::Made(snapshot())));
                }
            }
            Some(Act::ThawHere) => thaw_here(hook, limits.thaw),
            None => {}
        }
        let rest = deadline.saturating_sub(began.elapsed());
        let event = match events.recv_timeout(rest) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) => Event::Time,
            Err(RecvTimeoutError::Disconnected) => Event::AgentGone,
        };
        act = machine.on(began.elapsed(), event);
    }
    if act == Some(Act::ThawHere) {
        thaw_here(hook, limits.thaw);
    }
    if let Some(mut agent) = agent {
        drop(agent.stdin.take());
        let _ = program::wait(&mut agent, AGENT_END);
    }
    machine.report()
}

fn start<T: Send + 'static>(
    program: &Path,
    hook: &Hook,
    limits: Limits,
    send: Sender<Event<T>>,
) -> std::io::Result<Child> {
    let mut command = Command::new(program);
    command.arg(AGENT_WORD).arg("--").arg(hook.to_string());
    for limit in [limits.freeze, limits.snapshot, limits.thaw] {
        command.arg(limit.as_millis().to_string());
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut agent = command.spawn()?;
    let Some(words) = agent.stdout.take() else { return Ok(agent) };
    std::thread::spawn(move || {
        for line in BufReader::new(words).lines().map_while(Result::ok) {
            if let Some(event) = heard(&line) {
                let _ = send.send(event);
            }
        }
        let _ = send.send(Event::AgentGone);
    });
    Ok(agent)
}

/// What the agent says.
fn heard<T>(line: &str) -> Option<Event<T>> {
    let (word, why) = line.split_once(' ').unwrap_or((line, ""));
    let why = why.trim().to_owned();
    Some(match word {
        "frozen" => Event::Frozen,
        "refused" => Event::Refused(why),
        "late" => Event::TimedOut(why),
        "thawed" => Event::Thawed,
        "went-on" => Event::WentOn,
        "stuck" => Event::StillFrozen(why),
        _ => return None,
    })
}

fn tell(agent: &mut Option<Child>, what: &str) {
    if let Some(pipe) = agent.as_mut().and_then(|agent| agent.stdin.as_mut()) {
        // An agent that is gone is noticed by the end of its words.
        let _ = writeln!(pipe, "{what}");
    }
}

/// Thaws in the agent's place. Bounded: a program that the kernel keeps cannot be waited for.
fn thaw_here(hook: &Hook, limit: Duration) {
    let (send, done) = channel();
    let mut driver = Driver::new(hook);
    std::thread::spawn(move || send.send(driver.thaw(limit)));
    let _ = done.recv_timeout(limit);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_agent_says_is_understood() {
        assert_eq!(heard::<()>("frozen "), Some(Event::Frozen));
        assert_eq!(heard::<()>("refused it is busy"), Some(Event::Refused("it is busy".into())));
        assert_eq!(heard::<()>("late"), Some(Event::TimedOut(String::new())));
        assert_eq!(heard::<()>("anything else"), None);
    }

    #[test]
    fn without_a_program_nothing_is_done() {
        let hook = Hook::Exec("false".into());
        let report = run(Path::new("/nonexistent/lunfs"), &hook, Limits::default(), || 1);
        assert_eq!(report.made, None);
        assert!(report.why.is_some_and(|why| why.contains("/nonexistent/lunfs")));
    }
}
