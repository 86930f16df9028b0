//! Snapshots, clones and rollbacks of LUNs, and snapshots of the ordinary tree (named `/`).
//!
//! One call of [`Catalog::snapshot_create`] is one instant for all that it names, across all doors:
//! every write that was answered before it began is in, none that begins after it returned is. All
//! changes here are durable on return.
//!
//! Invariant: changes are made one at a time, under `Shared::versions`.

use super::attributes::{rfc3339, Access};
use super::catalog::{Catalog, DeleteOptions};
use super::changes::Change;
use super::copies;
use super::error::{Error, Result};
use super::history::{named, Subject, KEPT_PREFIX};
use super::kept::{Kept, Place};
use super::names::{check_name, check_snapshot_name, time_name, TREE_NAME};
use super::readers::{self, OpenSnapshot};
use super::unit::{load_settings, Files, Lun};
use crate::fs::{self, NodeId, SnapshotInfo, Timestamp, VolumeId};
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;

/// What the snapshot that a rollback keeps is called, before its time.
const KEPT_BY_ROLLBACK: &str = "before-rollback-";

/// A snapshot as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The LUN, or `/`.
    pub of: String,
    /// What the filesystem knows of it.
    pub info: SnapshotInfo,
    /// A door or a command has it open.
    pub is_open: bool,
}

/// A bookmark as it is shown: the base of a difference, without its snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bookmark {
    /// The LUN, or `/`.
    pub of: String,
    /// Its name among those of the snapshots.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
}

/// One part of [`Catalog::snapshot_create`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotWish {
    /// The LUN, or `/`.
    pub of: String,
    /// The snapshot's name; `None`: the time, the same for all that are not named.
    pub name: Option<String>,
}

/// Who makes a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Maker {
    /// A person or a program of theirs.
    User,
    /// A policy: names are its own.
    Policy,
}

/// How a hold is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Until it is released.
    ForGood,
    /// Until this time, before which nobody releases it.
    Until(Timestamp),
    /// Not any more.
    Release,
}

impl Catalog {
    pub(super) fn subject(&self, of: &str) -> Result<Subject> {
        match of == TREE_NAME {
            true => Ok(Subject::Tree(Arc::clone(&self.shared))),
            false => Ok(Subject::Lun(self.get(of)?)),
        }
    }

    /// Makes snapshots of one instant, durable on return, in the order of `wanted`. Kept with them:
    /// whether their applications were at rest.
    pub fn snapshot_create(
        &self,
        wanted: &[SnapshotWish],
        maker: Maker,
        consistency: impl Into<fs::Consistency>,
    ) -> Result<Vec<Snapshot>> {
        let _names = self.names.read();
        let _one = self.shared.versions.lock();
        let named = self.judge_snapshots(wanted, maker)?;
        let volumes: Vec<(VolumeId, &str)> =
            named.iter().map(|(subject, name)| (subject.volume(), name.as_str())).collect();
        self.shared.fs.snapshot_create(&volumes, consistency)?;
        let group: Vec<String> =
            named.iter().map(|(subject, name)| format!("{}@{name}", subject.name())).collect();
        for (subject, name) in &named {
            subject.add(name, false)?;
            let mut fields = super::history::named(name);
            if group.len() > 1 {
                fields["group"] = group.clone().into();
            }
            subject.log("create", fields);
            subject.tell(vec![name.clone()]);
        }
        named.iter().map(|(subject, name)| self.shown(subject, name)).collect()
    }

    /// How a hook did that was to bring the application to rest: told in the log, with `why`, and
    /// kept with the snapshot, if there is one. A snapshot is made before it is known for sure.
    pub fn snapshot_note(
        &self,
        of: &str,
        name: Option<&str>,
        how: &fs::Consistency,
        why: &str,
    ) -> Result<()> {
        let _names = self.names.read();
        let _one = self.shared.versions.lock();
        let subject = self.subject(of)?;
        let known = name.map(|name| subject.known_snapshot(name)).transpose()?;
        if let Some(name) = &known {
            self.shared.fs.snapshot_note_consistency(subject.volume(), name, how)?;
        }
        let (at_rest, hook) = (how.is_application(), &how.hook);
        let fields = json!({"name": known, "hook": hook, "consistent": at_rest, "why": why});
        subject.log("quiesce", fields);
        Ok(self.shared.fs.sync()?)
    }

    /// As `snapshot_create`, but only checks: the names they would get.
    pub fn check_snapshot_create(&self, wanted: &[SnapshotWish]) -> Result<Vec<String>> {
        let named = self.judge_snapshots(wanted, Maker::User)?;
        Ok(named.iter().map(|(subject, name)| format!("{}@{name}", subject.name())).collect())
    }

    fn judge_snapshots(
        &self,
        wanted: &[SnapshotWish],
        maker: Maker,
    ) -> Result<Vec<(Subject, String)>> {
        let mut subjects: Vec<Subject> = Vec::new();
        for wish in wanted {
            let subject = self.subject(&wish.of)?;
            if subjects.iter().any(|other| other.volume() == subject.volume()) {
                return Err(Error::Snapshot {
                    what: "the snapshots are not made".to_owned(),
                    why: format!("{} is named twice", subject.name()),
                    remedy: "name it once; a second snapshot takes a second command".to_owned(),
                });
            }
            if let Some(name) = &wish.name {
                if maker == Maker::User {
                    check_snapshot_name(name)?;
                }
                subject.check_free(name)?;
            }
            subjects.push(subject);
        }
        let unnamed = subjects.iter().zip(wanted).filter(|(_, wish)| wish.name.is_none());
        let unnamed: Vec<&Subject> = unnamed.map(|(subject, _)| subject).collect();
        let time = self.free_name(&unnamed, "")?;
        let name_of = |wish: &SnapshotWish| wish.name.clone().unwrap_or_else(|| time.clone());
        let names: Vec<String> = wanted.iter().map(name_of).collect();
        Ok(subjects.into_iter().zip(names).collect())
    }

    /// The time as a name that none of them has; with a number behind it where that is needed.
    fn free_name(&self, of: &[&Subject], prefix: &str) -> Result<String> {
        let time = time_name(self.shared.options.clock.now());
        let mut name = format!("{prefix}{time}");
        for number in 2u64.. {
            let mut taken = false;
            for subject in of {
                taken |= subject.check_free(&name).is_err();
            }
            if !taken {
                break;
            }
            name = format!("{prefix}{time}-{number}");
        }
        Ok(name)
    }

    fn shown(&self, subject: &Subject, name: &str) -> Result<Snapshot> {
        let info = self.shared.fs.snapshot_lookup(subject.volume(), name)?;
        let info = info.ok_or_else(|| subject.missing(name))?;
        Ok(self.with_use(subject, info))
    }

    fn with_use(&self, subject: &Subject, info: SnapshotInfo) -> Snapshot {
        let is_open = self.shared.readers.is_open(info.id);
        Snapshot { of: subject.name(), info, is_open }
    }

    /// The snapshots of a LUN, or of `/`; oldest first.
    pub fn snapshots(&self, of: &str) -> Result<Vec<Snapshot>> {
        let subject = self.subject(of)?;
        subject.names(|_| ())?;
        let mut all = self.shared.fs.snapshot_list(subject.volume())?;
        all.retain(|info| !info.name.starts_with('.'));
        all.sort_by_key(|info| info.epoch);
        Ok(all.into_iter().map(|info| self.with_use(&subject, info)).collect())
    }

    /// How many snapshots there are.
    pub fn snapshot_count(&self, of: &str) -> Result<usize> {
        self.subject(of)?.names(|names| names.values().filter(|one| !one.is_bookmark).count())
    }

    /// The names of the snapshots of a LUN, or of `/`: from memory.
    pub fn snapshot_names(&self, of: &str) -> Result<Vec<String>> {
        let subject = self.subject(of)?;
        subject.names(|names| {
            let snapshots = names.values().filter(|one| !one.is_bookmark);
            snapshots.map(|one| one.name.clone()).collect()
        })
    }

    /// The bookmarks of a LUN, or of `/`; oldest first.
    pub fn bookmarks(&self, of: &str) -> Result<Vec<Bookmark>> {
        let subject = self.subject(of)?;
        subject.names(|_| ())?;
        let mut all = self.shared.fs.bookmark_list(subject.volume())?;
        all.retain(|bookmark| !bookmark.name.starts_with('.'));
        all.sort_by_key(|bookmark| bookmark.epoch);
        let shown = |one: fs::Bookmark| Bookmark {
            of: subject.name(),
            name: one.name,
            created: one.created,
        };
        Ok(all.into_iter().map(shown).collect())
    }

    /// One snapshot, without regard to case.
    pub fn snapshot(&self, of: &str, name: &str) -> Result<Snapshot> {
        let subject = self.subject(of)?;
        self.shown(&subject, &subject.known_snapshot(name)?)
    }

    /// Opens it: it reads as it is until this is dropped, though it be deleted meanwhile. Its files
    /// are those of the volume [`OpenSnapshot::volume`].
    pub fn open_snapshot(&self, of: &str, name: &str) -> Result<OpenSnapshot> {
        let subject = self.subject(of)?;
        OpenSnapshot::open(&subject, &subject.known_snapshot(name)?)
    }

    /// Bytes that its deletion would give back: what no other version has.
    pub fn snapshot_alone_bytes(&self, snapshot: &Snapshot) -> Result<u64> {
        let volume = self.subject(&snapshot.of)?.volume();
        Ok(self.shared.fs.snapshot_alone_bytes(volume, &snapshot.info.name)?)
    }

    /// The same for each snapshot of a LUN, or of `/`: one consistency point for all.
    pub fn snapshots_alone_bytes(&self, of: &str) -> Result<HashMap<VolumeId, u64>> {
        let all = self.shared.fs.snapshot_space(self.subject(of)?.volume())?;
        Ok(all.into_iter().map(|one| (one.id, one.alone_bytes)).collect())
    }

    /// Bytes that the deletion of all of them would give back: what only they have.
    pub fn snapshots_bytes(&self, of: &str) -> Result<u64> {
        let fs = &self.shared.fs;
        let all = fs.snapshot_list(self.subject(of)?.volume())?;
        let all: Vec<VolumeId> = all.iter().map(|one| one.id).collect();
        match all.is_empty() {
            true => Ok(0),
            false => Ok(fs.freed_bytes(&all)?),
        }
    }

    /// Gives a snapshot or a bookmark another name.
    pub fn snapshot_rename(&self, of: &str, from: &str, to: &str) -> Result<()> {
        let _names = self.names.read();
        let _one = self.shared.versions.lock();
        let (subject, known) = self.judge_snapshot_rename(of, from, to)?;
        let (from, volume) = (known.name, subject.volume());
        if from == to {
            return Ok(());
        }
        self.shared.fs.snapshot_rename(volume, &from, to)?;
        subject.remove(&from)?;
        subject.add(to, known.is_bookmark)?;
        subject.log("rename", json!({"from": from, "to": to}));
        subject.tell(vec![from, to.to_owned()]);
        Ok(self.shared.fs.sync()?)
    }

    /// As `snapshot_rename`, but only checks.
    pub fn check_snapshot_rename(&self, of: &str, from: &str, to: &str) -> Result<()> {
        self.judge_snapshot_rename(of, from, to).map(drop)
    }

    fn judge_snapshot_rename(
        &self,
        of: &str,
        from: &str,
        to: &str,
    ) -> Result<(Subject, super::history::Known)> {
        let subject = self.subject(of)?;
        let known = subject.known(from)?;
        check_snapshot_name(to)?;
        if !known.name.eq_ignore_ascii_case(to) {
            subject.check_free(to)?;
        }
        Ok((subject, known))
    }

    /// The state of this moment takes the snapshot's place under its name. Who has the old one open
    /// goes on reading that.
    pub fn snapshot_refresh(&self, of: &str, name: &str) -> Result<Snapshot> {
        let _names = self.names.read();
        let _one = self.shared.versions.lock();
        let (subject, before) = self.judge_unheld(of, name, "the refresh")?;
        let name = before.info.name.clone();
        readers::refresh(&subject, &before.info)?;
        subject.log("refresh", named(&name));
        subject.tell(vec![name.clone()]);
        self.shown(&subject, &name)
    }

    /// As `snapshot_refresh` and `snapshot_delete` of a snapshot, but only checks.
    pub fn check_unheld(&self, of: &str, name: &str, what: &str) -> Result<Snapshot> {
        self.judge_unheld(of, name, what).map(|(_, snapshot)| snapshot)
    }

    fn judge_unheld(&self, of: &str, name: &str, what: &str) -> Result<(Subject, Snapshot)> {
        let subject = self.subject(of)?;
        let snapshot = self.shown(&subject, &subject.known_snapshot(name)?)?;
        snapshot.check_unheld(what, self.shared.options.clock.now())?;
        Ok((subject, snapshot))
    }

    /// Deletes a snapshot or a bookmark; returns at once, in any order, and space comes back in the
    /// background. A snapshot that is open is deleted at its last close (true). `keep_bookmark`: a
    /// bookmark takes its name.
    pub fn snapshot_delete(&self, of: &str, name: &str, keep_bookmark: bool) -> Result<bool> {
        let _names = self.names.read();
        let _one = self.shared.versions.lock();
        let subject = self.subject(of)?;
        let known = subject.known(name)?;
        let volume = subject.volume();
        let fs = &self.shared.fs;
        let later = if known.is_bookmark {
            fs.bookmark_delete(volume, &known.name)?;
            false
        } else {
            let (_, snapshot) = self.judge_unheld(of, name, "deletion")?;
            let deleted = delete_snapshot(&subject, &snapshot.info, keep_bookmark);
            deleted.inspect_err(|_| subject.forget())?
        };
        match keep_bookmark && !known.is_bookmark {
            true => subject.add(&known.name, true)?,
            false => subject.remove(&known.name)?,
        }
        subject.log("delete", json!({"name": known.name, "kind": known.kind(), "open": later}));
        subject.tell(vec![known.name]);
        fs.sync()?;
        Ok(later)
    }

    /// Changes a snapshot's hold.
    pub fn snapshot_hold(&self, of: &str, name: &str, hold: Hold) -> Result<Snapshot> {
        let _names = self.names.read();
        let _one = self.shared.versions.lock();
        let snapshot = self.check_snapshot_hold(of, name, hold)?;
        let subject = self.subject(of)?;
        let info = &snapshot.info;
        let (held, until, what) = match hold {
            Hold::ForGood => (true, info.hold_until, "hold"),
            Hold::Until(time) => (info.held, Some(time), "hold"),
            Hold::Release => (false, None, "release"),
        };
        self.shared.fs.snapshot_hold(subject.volume(), &info.name, held, until)?;
        let until = until.map(rfc3339);
        subject.log(what, json!({"name": info.name, "until": until}));
        self.shared.fs.sync()?;
        self.shown(&subject, &info.name)
    }

    /// As `snapshot_hold`, but only checks.
    pub fn check_snapshot_hold(&self, of: &str, name: &str, hold: Hold) -> Result<Snapshot> {
        let snapshot = self.snapshot(of, name)?;
        let now = self.shared.options.clock.now();
        let running = snapshot.info.hold_until.filter(|until| *until > now);
        let what = || format!("the change of the hold of '{}@{}'", snapshot.of, snapshot.info.name);
        match (hold, running) {
            (Hold::Until(time), _) if time <= now => Err(Error::Snapshot {
                what: format!("{} is refused", what()),
                why: format!("{} is over", rfc3339(time)),
                remedy: "give a time to come, for example 2027-01-31T00:00:00Z".to_owned(),
            }),
            (Hold::Release, Some(until)) => Err(held_until(what(), until)),
            (Hold::Until(time), Some(until)) if time < until => Err(held_until(what(), until)),
            _ => Ok(snapshot),
        }
    }

    /// Makes a LUN that begins as a snapshot is: O(1), sharing its blocks. It is another disk, with
    /// an identity of its own.
    pub fn clone_create(&self, of: &str, name: &str, new: &str) -> Result<Arc<Lun>> {
        let _names = self.names.write();
        let _one = self.shared.versions.lock();
        let (subject, snapshot) = self.judge_clone(of, name, new)?;
        let fs = &self.shared.fs;
        let volume = fs.volume_clone(snapshot.info.id, new)?;
        let made = Lun::find(&self.shared, new, volume).and_then(super::unit::Found::lun);
        let lun = made.inspect_err(|_| drop(fs.volume_delete(new)))?;
        let from = format!("{}@{}", subject.name(), snapshot.info.name);
        lun.log.event("create", json!({"name": new, "clone_of": from}));
        subject.log("clone", json!({"name": snapshot.info.name, "clone": new}));
        self.index.write().insert(Arc::clone(&lun));
        lun.tell(Change::Created { volume, name: new.to_owned() });
        fs.sync()?;
        Ok(lun)
    }

    /// As `clone_create`, but only checks.
    pub fn check_clone(&self, of: &str, name: &str, new: &str) -> Result<()> {
        let _names = self.names.read();
        self.judge_clone(of, name, new).map(drop)
    }

    fn judge_clone(&self, of: &str, name: &str, new: &str) -> Result<(Subject, Snapshot)> {
        let subject = self.subject(of)?;
        subject.lun("a clone")?;
        let snapshot = self.shown(&subject, &subject.known_snapshot(name)?)?;
        check_name(new)?;
        self.check_free(new, None)?;
        Ok((subject, snapshot))
    }

    /// The LUN is again what its snapshot is; what it was becomes a snapshot, and newer ones stay.
    /// `Busy` while a door has it open unless forced: then clients are told that contents and
    /// capacity changed. The snapshot that keeps what was.
    pub fn snapshot_rollback(&self, of: &str, name: &str, force: bool) -> Result<Snapshot> {
        let _names = self.names.write();
        let _one = self.shared.versions.lock();
        let (subject, to) = self.judge_rollback(of, name, force)?;
        let lun = subject.lun("a rollback")?;
        let _change = lun.change.lock();
        let kept = self.free_name(&[&subject], KEPT_BY_ROLLBACK)?;
        let from = lun.volume();
        let other_blocks = lun.roll_back(&to, &kept)?;
        subject.add(&kept, false)?;
        {
            let mut index = self.index.write();
            index.by_volume.remove(&from);
            index.by_volume.insert(lun.volume(), Arc::clone(lun));
        }
        if other_blocks {
            let why = "the block size changed with a rollback";
            lun.attachments().iter().for_each(|session| session.end(why));
        }
        subject.log("rollback", json!({"name": to.info.name, "kept": kept}));
        let (name, volume) = (lun.name(), lun.volume());
        lun.tell(Change::RolledBack { from, volume, name });
        subject.tell(vec![kept.clone()]);
        self.shared.fs.sync()?;
        self.shown(&subject, &kept)
    }

    /// As `snapshot_rollback`, but only checks.
    pub fn check_rollback(&self, of: &str, name: &str, force: bool) -> Result<Snapshot> {
        self.judge_rollback(of, name, force).map(|(_, snapshot)| snapshot)
    }

    /// Whether a LUN's snapshots let it be deleted.
    pub(super) fn check_history(&self, lun: &Arc<Lun>, options: DeleteOptions) -> Result<()> {
        let all = self.snapshots(&lun.name())?;
        let now = self.shared.options.clock.now();
        if !all.is_empty() && !options.recursive {
            let why = format!("it has {} snapshots", all.len());
            let remedy = "delete them, or add --recursive";
            return Err(lun.busy("deletion", &why, remedy));
        }
        all.iter().try_for_each(|one| one.check_unheld("deletion", now))?;
        // Those too that have lost their names already.
        let every = self.shared.fs.snapshot_list(lun.volume())?;
        match every.iter().find(|one| self.shared.readers.is_open(one.id)) {
            Some(open) if !options.force => {
                let name = open.name.strip_prefix('.').unwrap_or(&open.name);
                let why = format!("its snapshot {name} is open");
                Err(lun.busy("deletion", &why, "close it, or add --force"))
            }
            _ => Ok(()),
        }
    }

    /// Deletes all snapshots and bookmarks of a LUN that goes. Who has one open loses it.
    pub(super) fn delete_history(&self, lun: &Arc<Lun>) -> Result<()> {
        let (fs, volume) = (&self.shared.fs, lun.volume());
        let delete_all = || -> fs::Result<()> {
            for snapshot in fs.snapshot_list(volume)? {
                fs.snapshot_delete(volume, &snapshot.name)?;
            }
            for bookmark in fs.bookmark_list(volume)? {
                fs.bookmark_delete(volume, &bookmark.name)?;
            }
            Ok(())
        };
        let deleted = delete_all();
        Subject::Lun(Arc::clone(lun)).forget();
        Ok(deleted?)
    }

    fn judge_rollback(&self, of: &str, name: &str, force: bool) -> Result<(Subject, Snapshot)> {
        let subject = self.subject(of)?;
        let lun = subject.lun("a rollback")?;
        let to = self.shown(&subject, &subject.known_snapshot(name)?)?;
        if !lun.live.sanitize.is_idle() {
            let why = "it is being sanitized, or that failed";
            return Err(lun.busy("the rollback", why, "wait until it is done"));
        }
        if !force {
            lun.check_unused("the rollback", "close them, or add --force")?;
        }
        Ok((subject, to))
    }
}

impl Snapshot {
    /// `Held` where it may not be deleted now.
    pub fn check_unheld(&self, what: &str, now: Timestamp) -> Result<()> {
        let what = format!("{what} of '{}@{}'", self.of, self.info.name);
        match self.info.hold_until.filter(|until| *until > now) {
            Some(until) => Err(held_until(what, until)),
            None if self.info.held => {
                let name = format!("{}@{}", self.of, self.info.name);
                let remedy = format!("release it first: lunfs snapshot release {name}");
                Err(Error::Held { what, why: "it is held".to_owned(), remedy })
            }
            None => Ok(()),
        }
    }
}

fn held_until(what: String, until: Timestamp) -> Error {
    let why = format!("it is held until {}, and nobody can release it before", rfc3339(until));
    Error::Held { what, why, remedy: "wait until then".to_owned() }
}

/// Deletes it, now or at its last close (true).
fn delete_snapshot(subject: &Subject, info: &SnapshotInfo, keep_bookmark: bool) -> Result<bool> {
    let (fs, volume) = (&subject.shared().fs, subject.volume());
    if !keep_bookmark {
        return readers::retire(subject, info);
    }
    // After a crash in between the names are put right when they are loaded.
    let hidden = format!("{KEPT_PREFIX}{}", info.name);
    fs.bookmark_create(volume, &info.name, &hidden)?;
    let retired = readers::retire(subject, info);
    if retired.is_err() {
        let _ = fs.bookmark_delete(volume, &hidden);
    }
    let later = retired?;
    fs.snapshot_rename(volume, &hidden, &info.name)?;
    Ok(later)
}

impl Lun {
    /// Puts the contents of a snapshot in the place of what is there, which becomes the snapshot
    /// `keep`. True: the block size is another. Under `change`.
    fn roll_back(self: &Arc<Lun>, to: &Snapshot, keep: &str) -> Result<bool> {
        let shared = &self.shared;
        let serial = self.settings().serial;
        let open = |volume, name: &[u8]| {
            shared.fs.open_file(shared.fs.lookup(NodeId::root(volume), name)?.id)
        };
        // Nobody writes meanwhile; who reads looks again behind the gate.
        let _alone = self.gate.write();
        let (files, place, kept) = self.log.follow(|| -> Result<_> {
            // There is no way back from the rollback itself: what it will need is there.
            for name in [&b"data"[..], b"attributes", b"log"] {
                open(to.info.id, name)?;
            }
            copies::check_room(&shared.fs, self.volume(), to.info.id)?;
            let volume = shared.fs.volume_rollback(&self.name(), &to.info.name, keep)?;
            let info = shared.fs.volume_info(volume)?;
            let (data, stored, log) =
                (open(volume, b"data")?, open(volume, b"attributes")?, open(volume, b"log")?);
            // Where others took the room meanwhile the log of before stays with what was kept.
            let carried =
                || Kept { volume: Some(volume), created: Some(self.created()), ..self.state.now() };
            let kept = copies::settle(shared, volume, &info).unwrap_or_else(|_| carried());
            let root = NodeId::root(volume);
            let place = Place { dir: root, like: log.id() };
            Ok((root, log, (Files { volume, data, stored }, place, kept)))
        })?;
        self.state.follow(place, kept);
        let size_bytes = files.data.size_bytes();
        let settings = load_settings(&files.stored);
        self.put_files(files);
        self.live.size_bytes.store(size_bytes, std::sync::atomic::Ordering::Release);
        let before = self.settings();
        let settings = settings.map(|found| super::attributes::Settings { serial, ..found });
        let settings = settings.unwrap_or_else(|why| {
            self.log.event("error", json!({"file": "attributes", "why": why.to_string()}));
            super::attributes::Settings { read_only: true, ..before.clone() }
        });
        // Refused only where both sorts of writers are there: then it stays shared.
        let (_, noted) = self.lease.set_shared(settings.access == Access::Shared);
        self.log_lease(noted, "");
        self.take_settings(&settings);
        self.media_changed();
        Ok(settings.block_bytes != before.block_bytes)
    }
}
