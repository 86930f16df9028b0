//! `lunfs snapshot create --quiesce`, and its agent: this program in another role, started by
//! itself. The hook runs here, with the rights of who asks and near the application; the server
//! only takes the snapshot.

use super::args::Common;
use super::{rows, selection, server_ask};
use crate::control::client::Client;
use crate::control::protocol::{Command, Quiesced};
use crate::control::{Message, Result};
use crate::fs::HookOutcome;
use crate::quiesce::{check_place, run, serve_agent, Hook, Limits, Report, AGENT_WORD};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Plays the agent if this process was started as one. No word of the command line: nobody types
/// it.
pub fn agent() -> Option<ExitCode> {
    let mut words = std::env::args().skip(1);
    if words.next()? != AGENT_WORD {
        return None;
    }
    let words: Vec<String> = words.skip_while(|word| word == "--").collect();
    let [hook, freeze, snapshot, thaw] = words.as_slice() else { return Some(ExitCode::from(2)) };
    let limit = |text: &str| text.parse().ok().map(Duration::from_millis);
    let limits = limit(freeze).zip(limit(snapshot)).zip(limit(thaw));
    match (hook.parse::<Hook>(), limits) {
        (Ok(hook), Some(((freeze, snapshot), thaw))) => {
            serve_agent(&hook, Limits { freeze, snapshot, thaw });
            Some(ExitCode::SUCCESS)
        }
        _ => Some(ExitCode::from(2)),
    }
}

/// This very program, also where its file was replaced since.
const OURSELVES: &str = "/proc/self/exe";

/// Makes snapshots while a hook keeps their application at rest. What was made.
pub fn create(common: &Common, names: &[String], hook: &Hook, seconds: u64) -> Result<Value> {
    check(common, names, hook)?;
    let limits = Limits { freeze: Duration::from_secs(seconds), ..Limits::default() };
    let (snapshots, kind) = (names.to_vec(), Some(hook.kind().to_owned()));
    let command = Command::SnapshotCreate { snapshots, hook: kind };
    // Whoever cannot take the snapshot shall not freeze anything for it.
    let client = Client::Server(selection(common).server()?);
    let report = run(Path::new(OURSELVES), hook, limits, move || {
        client.call(command, false, None, &mut |_| {})
    });
    conclude(common, names, hook, report)
}

/// Refuses what would be refused while something is frozen, and to freeze what the pool stands on.
fn check(common: &Common, names: &[String], hook: &Hook) -> Result<()> {
    let command = Command::SnapshotCreate { snapshots: names.to_vec(), hook: None };
    server_ask(common, command, true)?;
    let Hook::Fsfreeze(path) = hook else { return Ok(()) };
    let pool = server_ask(common, Command::PoolShow, false)?;
    let paths = pool.get("devices").map_or(&[][..], rows).iter();
    let paths = paths.filter_map(|device| device.get("path")?.as_str().map(PathBuf::from));
    let devices: Vec<PathBuf> = paths.collect();
    match check_place(path, &devices) {
        None => Ok(()),
        Some(why) => Err(Message::new(format!("{} is not frozen", path.display()))
            .why(why)
            .todo("name the filesystem that is on the LUN")
            .into()),
    }
}

/// Tells the server how it went, and the user.
fn conclude(
    common: &Common,
    names: &[String],
    hook: &Hook,
    report: Report<Result<Value>>,
) -> Result<Value> {
    let why = report.why.unwrap_or_default();
    let made = report.made.transpose()?;
    let snapshots = match &made {
        Some(made) => rows(made).iter().map(full).collect(),
        None => names.iter().map(|name| bare(name)).collect(),
    };
    let (kind, outcome) = (hook.kind().to_owned(), quiesced(report.outcome));
    let (noted_kind, noted_why) = (kind.clone(), why.clone());
    let note = Command::SnapshotNote { snapshots, hook: noted_kind, outcome, why: noted_why };
    let noted = server_ask(common, note, false);
    if let Some(why) = report.stuck {
        let what = match made {
            Some(_) => "the snapshot was made, but the application may still be frozen",
            None => "no snapshot was made, and the application may still be frozen",
        };
        let todo = "see whether it goes on, and thaw it by its own means";
        return Err(Message::new(what).why(format!("{kind}: {why}")).todo(todo).into());
    }
    match made {
        Some(_) if outcome == Quiesced::AtRest => noted,
        Some(_) => Err(Message::new("the snapshot is crash-consistent only")
            .why(format!("{kind}: {why}"))
            .todo("keep it as that, or delete it and try again")
            .into()),
        None => Err(Message::new("no snapshot was made: the application did not come to rest")
            .why(format!("{kind}: {why}"))
            .todo("mend that, or make a crash-consistent one without --quiesce")
            .into()),
    }
}

fn full(snapshot: &Value) -> String {
    let field = |key: &str| snapshot.get(key).and_then(Value::as_str).unwrap_or_default();
    format!("{}@{}", field("lun"), field("name"))
}

/// The LUN of `NAME@SNAP`.
fn bare(name: &str) -> String {
    name.split('@').next().unwrap_or_default().to_owned()
}

fn quiesced(outcome: HookOutcome) -> Quiesced {
    match outcome {
        HookOutcome::AtRest => Quiesced::AtRest,
        HookOutcome::TimedOut => Quiesced::TimedOut,
        HookOutcome::WentOn => Quiesced::WentOn,
        HookOutcome::NotAsked | HookOutcome::Refused => Quiesced::Refused,
    }
}
