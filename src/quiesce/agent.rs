//! The process that freezes and thaws. It leads a session of its own, so that neither a terminal
//! nor its shell ends it with the command, and reads the command's wishes from its standard input:
//! the end of that is the command's end.

use super::drivers::{Driver, Failure};
use super::hook::Hook;
use super::machine::Limits;
use std::io::{BufRead, Write};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{signal, Signal, SignalKind};

/// Tries to thaw, one a pause after the other.
const THAW_TRIES: u32 = 20;
/// Between them.
const THAW_PAUSE: Duration = Duration::from_secs(1);

enum Told {
    Freeze,
    Thaw,
    CommandGone,
    Frozen(Driver, Result<(), Failure>),
}

/// Serves the command that started this process; returns when nothing is frozen, or nothing can be
/// done about it.
pub fn serve(hook: &Hook, limits: Limits) {
    // EPERM: it leads one already.
    let _ = rustix::process::setsid();
    let _deaf = deaf();
    let (send, told) = channel();
    listen(send.clone());
    if !matches!(told.recv(), Ok(Told::Freeze)) {
        return;
    }
    let mut driver = Driver::new(hook);
    std::thread::spawn(move || {
        let frozen = driver.freeze(limits.freeze);
        let _ = send.send(Told::Frozen(driver, frozen));
    });
    let (mut driver, frozen, is_awaited) = until_frozen(&told);
    match frozen {
        Ok(()) if is_awaited => {
            say("frozen", "");
            let in_time = hold(&told, limits.dead_man());
            finish(&mut driver, limits.thaw, if in_time { "thawed" } else { "went-on" }, "");
        }
        Ok(()) => finish(&mut driver, limits.thaw, "thawed", ""),
        Err(failure) => {
            let word = if matches!(failure, Failure::TimedOut(_)) { "late" } else { "refused" };
            match driver.may_be_frozen(&failure) {
                true => finish(&mut driver, limits.thaw, word, failure.why()),
                false => say(word, failure.why()),
            }
        }
    }
}

/// Whoever ends a service ends all its processes at once, with a signal that asks for it: while
/// something may be frozen the agent does not heed it. Its limits end it soon.
fn deaf() -> Option<(Runtime, Vec<Signal>)> {
    let runtime = Builder::new_current_thread().enable_io().build().ok()?;
    let heard = {
        let _within = runtime.enter();
        let kinds = [SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt()];
        kinds.into_iter().filter_map(|kind| signal(kind).ok()).collect()
    };
    Some((runtime, heard))
}

fn listen(send: Sender<Told>) {
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let told = match line.as_str() {
                "freeze" => Told::Freeze,
                "thaw" => Told::Thaw,
                _ => continue,
            };
            if send.send(told).is_err() {
                return;
            }
        }
        let _ = send.send(Told::CommandGone);
    });
}

/// The driver, what came of freezing, and whether anybody still waits for it.
fn until_frozen(told: &Receiver<Told>) -> (Driver, Result<(), Failure>, bool) {
    let mut is_awaited = true;
    loop {
        match told.recv() {
            Ok(Told::Frozen(driver, frozen)) => return (driver, frozen, is_awaited),
            Ok(Told::Thaw | Told::CommandGone) => is_awaited = false,
            // Both threads that send are there until they have sent their last.
            Ok(Told::Freeze) | Err(_) => {}
        }
    }
}

/// Waits for the wish to thaw; whether it came in time. The end of the command is such a wish.
fn hold(told: &Receiver<Told>, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        match told.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Told::Thaw) => return true,
            Ok(Told::CommandGone) => return false,
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return false,
        }
    }
}

/// Thaws and says `word`, or that it could not.
fn finish(driver: &mut Driver, limit: Duration, word: &str, why: &str) {
    let mut last = String::new();
    for attempt in 0..THAW_TRIES {
        if attempt > 0 {
            std::thread::sleep(THAW_PAUSE);
        }
        match driver.thaw(limit) {
            Ok(()) => return say(word, why),
            Err(failure) => failure.why().clone_into(&mut last),
        }
    }
    say("stuck", &last);
}

/// One line for the command. It may be gone: what is to be done is done all the same.
fn say(word: &str, why: &str) {
    let why = why.replace(['\n', '\r'], " ");
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{word} {why}");
    let _ = out.flush();
}
