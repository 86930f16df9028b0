//! `lunfs NOUN VERB`: words in, one request to a pool, its answer out.

mod args;
mod args_snapshot;
mod image;
mod initiator;
mod lun;
mod mount;
mod nbs;
mod nbs_args;
mod offline;
mod output;
mod parse;
mod policy;
mod pool;
mod quiesce;
mod serve;
mod share;
mod snapshot;

use crate::control::client::{self, Client, Selection};
use crate::control::protocol::Command;
use crate::control::{Error, Message, Result};
use args::{Cli, Common, Noun, Session};
use clap::{CommandFactory, Parser};
use serde_json::Value;
use std::process::ExitCode;

/// Runs the command that this process was started with.
pub fn run() -> ExitCode {
    if let Some(code) = quiesce::agent().or_else(mount::helper) {
        return code;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return usage(&e),
    };
    match obey(&cli) {
        Ok(code) => code,
        Err(e) => {
            output::error_line(&format!("lunfs: {}", e.message()));
            ExitCode::from(e.exit_code())
        }
    }
}

/// Help and version go out as they are; a mistake in at most three lines: what, usage, where to
/// read.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        output::line(error.render().to_string().trim_end());
        return ExitCode::SUCCESS;
    }
    let text = error.render().to_string();
    let paragraphs = text.split("\n\n").map(|paragraph| {
        let lines: Vec<&str> = paragraph.lines().map(str::trim).collect();
        lines.join(" ").trim().to_string()
    });
    let shown: Vec<String> = paragraphs.filter(|line| !line.is_empty()).collect();
    match shown.as_slice() {
        [first, .., last] if shown.len() > 3 => {
            let second = shown.get(1).map_or("", String::as_str);
            output::error_line(&format!("{first}\n{second}\n{last}"));
        }
        _ => output::error_line(&shown.join("\n")),
    }
    ExitCode::from(2)
}

fn obey(cli: &Cli) -> Result<ExitCode> {
    let common = &cli.common;
    match &cli.noun {
        Noun::Pool(verb) => return pool::run(verb, common),
        Noun::Lun(verb) => lun::run(verb, common)?,
        Noun::Snapshot(verb) => snapshot::run(verb, common)?,
        Noun::Clone(verb) => snapshot::run_clone(verb, common)?,
        Noun::Policy(verb) => policy::run(verb, common)?,
        Noun::Initiator(verb) => initiator::run(verb, common)?,
        Noun::Nbs(verb) => nbs::run(verb, common)?,
        Noun::Session(verb) => session(verb, common)?,
        Noun::Share(verb) => share::run(verb, common)?,
        Noun::Status => return status(common),
        Noun::Serve(serve) => {
            if let Some(value) = serve::run(serve, common)? {
                show(&value, common, output::facts);
            }
        }
        Noun::Stop(change) => {
            let answer = client::stop(selection(common).server()?, change.dry_run)?;
            show(&answer, common, |value| match would(value) {
                Some(text) => output::line(&text),
                None => output::line("stopped"),
            });
        }
        Noun::Completion { shell } => {
            // Into memory first: a reader that has gone must not make it panic.
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "lunfs", &mut script);
            output::line(String::from_utf8_lossy(&script).trim_end());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn selection(common: &Common) -> Selection {
    Selection { pool: common.pool.clone(), ..Selection::default() }
}

/// One request without a file.
fn ask(common: &Common, command: Command, dry_run: bool) -> Result<Value> {
    selection(common).client()?.call(command, dry_run, None, &mut |_| {})
}

/// The answer as JSON, or as `plain` shows it.
fn show(value: &Value, common: &Common, plain: impl FnOnce(&Value)) {
    if common.json {
        output::json(value);
    } else if let Some(text) = would(value) {
        output::line(&text);
    } else {
        plain(value);
    }
}

/// What a dry run says.
fn would(value: &Value) -> Option<String> {
    let text = value.get("would")?.as_str()?;
    Some(format!("would {text}"))
}

fn rows(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

const SESSION_COLUMNS: &[&str] =
    &["id", "lun", "door", "client", "peer", "writable", "since", "iops", "latency_p99_us"];

fn session(verb: &Session, common: &Common) -> Result<()> {
    match verb {
        Session::List => {
            let value = server_ask(common, Command::SessionList, false)?;
            show(&value, common, |v| output::table(rows(v), SESSION_COLUMNS, "no sessions"));
        }
        Session::Show { id } => {
            let value = server_ask(common, Command::SessionShow { id: id.clone() }, false)?;
            show(&value, common, output::facts);
        }
        Session::Drop { id, change } => {
            let command = Command::SessionDrop { id: id.clone() };
            let value = server_ask(common, command, change.dry_run)?;
            show(&value, common, |_| output::line(&format!("ended the session {id}")));
        }
    }
    Ok(())
}

/// Sessions are the server's: without one there are none, and nothing is opened to say so.
fn server_ask(common: &Common, command: Command, dry_run: bool) -> Result<Value> {
    let stream = selection(common).server()?;
    Client::Server(stream).call(command, dry_run, None, &mut |_| {})
}

fn status(common: &Common) -> Result<ExitCode> {
    let value = server_ask(common, Command::Status, false)?;
    show(&value, common, plain_status);
    let doors = value.get("doors").map_or(&[][..], rows);
    let all_open = doors.iter().all(|door| door.get("state").is_some_and(|state| state == "open"));
    Ok(if all_open { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn plain_status(value: &Value) {
    let field = |name: &str| value.get(name).cloned().unwrap_or_default();
    let pool = field("pool");
    let of_pool =
        |key: &str| pool.get(key).map_or_else(String::new, |v| output::value_text(key, v));
    output::line(&format!(
        "pool {} is {}: {} used, {} free of {}",
        of_pool("id"),
        of_pool("state"),
        of_pool("used_bytes"),
        of_pool("free_bytes"),
        of_pool("size_bytes"),
    ));
    let scrub = field("scrub");
    if let Some(text) = scrub_text(&scrub) {
        output::line(&text);
    }
    for device in pool.get("devices").map_or(&[][..], rows) {
        let healed = device.get("healed_copies").and_then(Value::as_u64).unwrap_or(0);
        if healed > 0 {
            let path = device.get("path").map_or_else(String::new, |v| output::value_text("", v));
            output::line(&format!("{healed} bad copies on {path} were healed since the start"));
        }
    }
    output::line("");
    output::table(rows(&field("doors")), &["kind", "address", "state"], "no doors");
    output::line("");
    lun::list(&field("luns"));
    output::line("");
    output::table(rows(&field("sessions")), SESSION_COLUMNS, "no sessions");
    let policies = field("policies");
    if !rows(&policies).is_empty() {
        output::line("");
        policy::list(rows(&policies));
    }
    let refused = field("refused");
    for (reason, count) in refused.as_object().into_iter().flatten() {
        if count.as_u64().is_some_and(|count| count > 0) {
            output::line(&format!("turned away {count} times: {}", reason.replace('_', " ")));
        }
    }
    for error in rows(&field("errors")) {
        let text = error.get("text").map_or_else(String::new, |v| output::value_text("", v));
        output::line(&format!("! {text}"));
    }
}

/// The scrub that runs, or the last one; `None`: there never was one.
fn scrub_text(scrub: &Value) -> Option<String> {
    let text = |key: &str| scrub.get(key).map(|value| output::value_text(key, value));
    let count = |key: &str| scrub.get(key).and_then(Value::as_u64).unwrap_or(0);
    let (examined, total) = (text("examined_bytes")?, text("total_bytes")?);
    if scrub.get("state")? == "running" {
        return Some(format!("scrub running: {examined} of {total} done"));
    }
    let ended = scrub.get("finished")?.as_str()?;
    let how = if scrub.get("cancelled")? == true { "cancelled" } else { "done" };
    let (healed, bad) = (count("healed"), count("bad"));
    Some(format!("last scrub: {how} {ended}, {examined} examined, {healed} healed, {bad} bad"))
}

/// A message that the words of the command are not enough.
fn usage_error(what: &str, todo: &str) -> Error {
    Error::Usage(Message::new(what).todo(todo))
}
