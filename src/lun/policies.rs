//! The policies of a pool: kept in a file of lunfs's own, and carried out.
//!
//! Invariants: the file is replaced by one atomic write, and `list` is what it says. A policy hangs
//! on [`Lun::id`], so it follows its LUN through renames and rollbacks, and no clone has it. When a
//! policy ran last is told by the names of the snapshots that it made.

use super::catalog::Catalog;
use super::error::{Error, Result};
use super::history::Subject;
use super::names::{policy_name, policy_time, TREE_NAME};
use super::policy::{Kept, Policy, PolicyChange};
use super::reserved::{read_own_file, replace_own_file};
use super::snapshots::{Maker, SnapshotWish};
use crate::fs::{self, Fs, Timestamp, VolumeId};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

const FILE: &[u8] = b"policies";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    policies: BTreeMap<u32, Policy>,
}

/// How the last run of a policy ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRun {
    /// When.
    pub at: Timestamp,
    /// The snapshot that was made, and how many were taken away; else why that failed.
    pub outcome: std::result::Result<(String, usize), String>,
}

/// A policy as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyStatus {
    /// The LUN, or `/`.
    pub of: String,
    /// What it says.
    pub policy: Policy,
    /// When it runs next, while the pool is served.
    pub next: Timestamp,
    /// The newest snapshot that it made.
    pub newest: Option<Timestamp>,
    /// How many there are that it made.
    pub count: usize,
    /// Its last run by this server.
    pub last: Option<PolicyRun>,
}

/// The policies.
#[derive(Default)]
pub(super) struct Policies {
    /// Read when they are first asked for.
    list: Mutex<Option<BTreeMap<u32, Policy>>>,
    runs: Mutex<BTreeMap<u32, PolicyRun>>,
}

impl Policies {
    fn with<T>(
        &self,
        fs: &Arc<Fs>,
        act: impl FnOnce(&mut BTreeMap<u32, Policy>) -> Result<T>,
    ) -> Result<T> {
        let mut list = self.list.lock();
        let mut now = match list.take() {
            Some(now) => now,
            None => load(fs)?,
        };
        let done = act(&mut now);
        *list = Some(now);
        done
    }
}

fn load(fs: &Arc<Fs>) -> Result<BTreeMap<u32, Policy>> {
    let Some(bytes) = read_own_file(fs, FILE)? else { return Ok(BTreeMap::new()) };
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(BTreeMap::new()); // a crash came between making the file and writing it
    }
    let stored: std::result::Result<Stored, _> = serde_json::from_slice(&bytes);
    match stored {
        Ok(stored) if stored.version == VERSION => Ok(stored.policies),
        _ => Err(Error::Snapshot {
            what: "the policies cannot be read".to_owned(),
            why: "the file is damaged, or a later version of lunfs wrote it".to_owned(),
            remedy: "set them anew with: lunfs policy set".to_owned(),
        }),
    }
}

fn save(fs: &Arc<Fs>, policies: &BTreeMap<u32, Policy>) -> Result<()> {
    let stored = Stored { version: VERSION, policies: policies.clone() };
    let text = serde_json::to_vec_pretty(&stored);
    let text = text.map_err(|_| fs::Error::Invalid("the policies cannot be written as JSON"))?;
    if text.len() > fs::ATOMIC_WRITE_BYTES {
        return Err(fs::Error::Invalid("the policies would be longer than 2 MiB").into());
    }
    replace_own_file(fs, FILE, &text)?;
    Ok(fs.sync()?)
}

fn id_of(subject: &Subject) -> u32 {
    match subject {
        Subject::Lun(lun) => lun.id().0,
        Subject::Tree(_) => VolumeId::TREE.0,
    }
}

impl Catalog {
    fn subject_of(&self, id: u32) -> Option<Subject> {
        if id == VolumeId::TREE.0 {
            return self.subject(TREE_NAME).ok();
        }
        self.by_id(VolumeId(id)).map(Subject::Lun)
    }

    /// Sets what `change` says; what it would be alone where only that is asked.
    pub fn policy_set(&self, of: &str, change: &PolicyChange, dry_run: bool) -> Result<Policy> {
        let subject = self.subject(of)?;
        let fs = &self.shared.fs;
        let policy = self.shared.policies.with(fs, |list| {
            let after = change.apply(list.get(&id_of(&subject)).copied());
            let after = after.ok_or_else(|| Error::Snapshot {
                what: format!("{} gets no policy", subject.name()),
                why: "nothing says how often a snapshot is to be made".to_owned(),
                remedy: "add for example --every 1h".to_owned(),
            })?;
            if dry_run {
                return Ok(after);
            }
            let mut next = list.clone();
            next.retain(|id, _| self.subject_of(*id).is_some());
            next.insert(id_of(&subject), after);
            save(fs, &next)?;
            *list = next;
            Ok(after)
        })?;
        if !dry_run {
            self.shared.policies.runs.lock().remove(&id_of(&subject));
            let fields = serde_json::to_value(policy).unwrap_or_default();
            subject.log("policy", serde_json::json!({ "set": fields }));
        }
        Ok(policy)
    }

    /// Ends a policy; its snapshots stay. False: there is none.
    pub fn policy_clear(&self, of: &str, dry_run: bool) -> Result<bool> {
        let subject = self.subject(of)?;
        let fs = &self.shared.fs;
        let cleared = self.shared.policies.with(fs, |list| {
            let mut next = list.clone();
            let found = next.remove(&id_of(&subject)).is_some();
            if found && !dry_run {
                save(fs, &next)?;
                *list = next;
            }
            Ok(found)
        })?;
        if cleared && !dry_run {
            subject.log("policy", serde_json::json!({ "set": null }));
        }
        Ok(cleared)
    }

    /// All policies, by what they are for.
    pub fn policies(&self) -> Result<Vec<PolicyStatus>> {
        let list = self.shared.policies.with(&self.shared.fs, |list| Ok(list.clone()))?;
        let mut all = Vec::new();
        for (id, policy) in list {
            let Some(subject) = self.subject_of(id) else { continue };
            all.push(self.policy_status(&subject, policy)?);
        }
        all.sort_by(|a, b| a.of.cmp(&b.of));
        Ok(all)
    }

    fn policy_status(&self, subject: &Subject, policy: Policy) -> Result<PolicyStatus> {
        let now = self.shared.options.clock.now();
        let times = policy_times(subject)?;
        let newest = policy.newest(&times, now);
        let last = self.shared.policies.runs.lock().get(&id_of(subject)).cloned();
        let failed = last.as_ref().filter(|run| run.outcome.is_err()).map(|run| run.at);
        let next = policy.next(newest, failed, now);
        Ok(PolicyStatus { of: subject.name(), policy, next, newest, count: times.len(), last })
    }

    /// Carries out what is due: to be called about once a second by a server. Failures are noted
    /// for [`Catalog::policies`] and told in the LUN's log.
    pub fn run_policies(&self) {
        let Ok(list) = self.shared.policies.with(&self.shared.fs, |list| Ok(list.clone())) else {
            return; // told by whoever asks for the policies
        };
        let now = self.shared.options.clock.now();
        for (id, policy) in list {
            let Some(subject) = self.subject_of(id) else { continue };
            let Ok(times) = policy_times(&subject) else { continue };
            let failed = {
                let runs = self.shared.policies.runs.lock();
                runs.get(&id).filter(|run| run.outcome.is_err()).map(|run| run.at)
            };
            if !policy.is_due(policy.newest(&times, now), failed, now) {
                continue;
            }
            let outcome = self.run_policy(&subject, &policy, now).map_err(|error| {
                let why = error.to_string().replace('\n', "; ");
                subject.log("policy", serde_json::json!({ "error": why }));
                why
            });
            self.shared.policies.runs.lock().insert(id, PolicyRun { at: now, outcome });
        }
    }

    fn run_policy(
        &self,
        subject: &Subject,
        policy: &Policy,
        now: Timestamp,
    ) -> Result<(String, usize)> {
        let (of, name) = (subject.name(), policy_name(now));
        let wish = SnapshotWish { of: of.clone(), name: Some(name.clone()) };
        self.snapshot_create(&[wish], Maker::Policy, false)?;
        let mut own: Vec<(String, Kept)> = Vec::new();
        for snapshot in self.snapshots(&of)? {
            let Some(time) = policy_time(&snapshot.info.name) else { continue };
            let held = snapshot.check_unheld("deletion", now).is_err();
            own.push((snapshot.info.name, Kept { time, held }));
        }
        let times: Vec<Kept> = own.iter().map(|(_, kept)| *kept).collect();
        let mut pruned = 0;
        for at in policy.prune(&times, now) {
            let Some((old, _)) = own.get(at) else { continue };
            match self.snapshot_delete(&of, old, false) {
                Ok(_) => pruned += 1,
                // Held, renamed or deleted in between: as whoever did it wanted.
                Err(Error::Held { .. } | Error::NoSnapshot { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok((name, pruned))
    }
}

/// When a policy made the snapshots of its that there are.
fn policy_times(subject: &Subject) -> Result<Vec<Timestamp>> {
    subject.names(|names| {
        let snapshots = names.values().filter(|one| !one.is_bookmark);
        snapshots.filter_map(|one| policy_time(&one.name)).collect()
    })
}
