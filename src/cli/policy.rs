//! `lunfs policy`.

use super::args::{Common, Policy};
use super::{ask, output, rows, show};
use crate::control::protocol::{Command, PolicyChange};
use crate::control::Result;
use serde_json::Value;

/// What a list of policies shows.
pub const COLUMNS: &[&str] = &[
    "name",
    "every_seconds",
    "keep",
    "keep_hourly",
    "keep_daily",
    "keep_weekly",
    "keep_monthly",
    "snapshots",
    "next",
    "last",
];

/// Carries a verb out.
pub fn run(verb: &Policy, common: &Common) -> Result<()> {
    match verb {
        Policy::Set(set) => {
            let change = PolicyChange {
                every_seconds: set.every,
                keep: set.keep,
                keep_hourly: set.keep_hourly,
                keep_daily: set.keep_daily,
                keep_weekly: set.keep_weekly,
                keep_monthly: set.keep_monthly,
            };
            let command = Command::PolicySet { lun: set.name.clone(), change };
            let value = ask(common, command, set.change.dry_run)?;
            show(&value, common, |value| list(std::slice::from_ref(value)));
        }
        Policy::Show { name } => {
            let value = ask(common, Command::PolicyShow { lun: name.clone() }, false)?;
            show(&value, common, |value| match name {
                Some(_) => output::facts(value),
                None => list(rows(value)),
            });
        }
        Policy::Clear { name, change } => {
            let value = ask(common, Command::PolicyClear { lun: name.clone() }, change.dry_run)?;
            let text = format!("{name} has no policy any more; its snapshots stay");
            show(&value, common, |_| output::line(&text));
        }
    }
    Ok(())
}

/// Policies, a line each.
pub fn list(policies: &[Value]) {
    let short = |policy: &Value| {
        let mut row = policy.clone();
        if let Some(outcome) = policy.pointer("/last/outcome") {
            row["last"] = outcome.clone();
        }
        row
    };
    let short: Vec<Value> = policies.iter().map(short).collect();
    output::table(&short, COLUMNS, "no policies");
}
