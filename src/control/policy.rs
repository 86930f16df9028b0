//! Commands about policies, and what is shown of them.

use super::engine::Session;
use super::error::{Message, Result};
use super::report::{self, time_text};
use crate::lun::{Catalog, Policy, PolicyChange, PolicyStatus};
use serde_json::{json, Value};

impl Session<'_> {
    pub(super) fn policy_set(&self, of: &str, change: &PolicyChange) -> Result<Value> {
        let catalog = &self.engine.pool.catalog;
        let policy = catalog.policy_set(of, change, self.dry_run)?;
        if self.dry_run {
            return Ok(report::would(format!("let {of} have {}", words(&policy))));
        }
        self.durable()?;
        self.policy_show(Some(of))
    }

    pub(super) fn policy_show(&self, of: Option<&str>) -> Result<Value> {
        let catalog = &self.engine.pool.catalog;
        let all = catalog.policies()?;
        let Some(of) = of else { return Ok(all.iter().map(row).collect()) };
        if of != crate::lun::TREE_NAME {
            catalog.get(of)?;
        }
        let found = all.iter().find(|one| one.of.eq_ignore_ascii_case(of));
        found.map(row).ok_or_else(|| no_policy(of).into())
    }

    pub(super) fn policy_clear(&self, of: &str) -> Result<Value> {
        let cleared = self.engine.pool.catalog.policy_clear(of, self.dry_run)?;
        if !cleared {
            return Err(no_policy(of).into());
        }
        if self.dry_run {
            return Ok(report::would(format!("end the policy of {of}; its snapshots stay")));
        }
        self.durable()?;
        Ok(json!({ "cleared": of }))
    }
}

fn no_policy(of: &str) -> Message {
    let message = Message::new(format!("{of} has no policy"));
    message.todo(format!("give it one with: lunfs policy set {of} --every 1h --keep 24"))
}

/// All policies, for `status`.
pub(super) fn rows(catalog: &Catalog) -> Value {
    catalog.policies().unwrap_or_default().iter().map(row).collect()
}

/// What is wrong with policies, a line each.
pub(super) fn failures(catalog: &Catalog) -> Vec<String> {
    let all = match catalog.policies() {
        Ok(all) => all,
        Err(e) => return vec![e.to_string().replace('\n', ": ")],
    };
    let failure = |one: &PolicyStatus| {
        let why = one.last.as_ref()?.outcome.as_ref().err()?;
        Some(format!("the policy of {} failed: {why}", one.of))
    };
    all.iter().filter_map(failure).collect()
}

fn row(status: &PolicyStatus) -> Value {
    let policy = &status.policy;
    let last = status.last.as_ref().map(|run| match &run.outcome {
        Ok((name, pruned)) => json!({
            "time": time_text(run.at),
            "outcome": "done",
            "made": name,
            "deleted": pruned,
        }),
        Err(why) => json!({ "time": time_text(run.at), "outcome": "failed", "error": why }),
    });
    json!({
        "name": status.of,
        "every_seconds": policy.every_seconds,
        "keep": policy.keep,
        "keep_hourly": policy.keep_hourly,
        "keep_daily": policy.keep_daily,
        "keep_weekly": policy.keep_weekly,
        "keep_monthly": policy.keep_monthly,
        "next": time_text(status.next),
        "newest": status.newest.map(time_text),
        "snapshots": status.count,
        "last": last,
    })
}

/// `a snapshot every 900 s; the newest 8 stay, 24 hourly`.
fn words(policy: &Policy) -> String {
    let mut text = format!(
        "a snapshot every {} s, of which the newest {} stay",
        policy.every_seconds, policy.keep
    );
    let rules = [
        (policy.keep_hourly, "hourly"),
        (policy.keep_daily, "daily"),
        (policy.keep_weekly, "weekly"),
        (policy.keep_monthly, "monthly"),
    ];
    for (count, rule) in rules.iter().filter(|(count, _)| *count > 0) {
        text += &format!(", {count} {rule}");
    }
    text
}
