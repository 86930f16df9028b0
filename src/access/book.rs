//! The list of initiators, and the judgements that follow from it.
//!
//! While no initiator is defined every LUN is open to clients of this host. The first one closes
//! all others out, on every block door. An initiator without CHAP is known by its name alone, which
//! anybody can claim: from other hosts it may only read, unless the server was told `--insecure`.
//!
//! Invariants: what is in memory is what the pool has; one change at a time; when a change returns
//! it has acted on every session that stood, and a session that began meanwhile judges itself again
//! ([`Book::admit`] after it was attached).

use super::error::{Error, Result};
use super::initiator::{Credential, Edit, Initiator, Right};
use super::kept;
use super::refusals::Refusals;
use crate::fs::{Clock, VolumeId};
use crate::lun::{Attachment, Catalog, Rights, SessionInfo};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

/// Most initiators: a list that every login can look through.
const MAX_INITIATORS: usize = 1024;

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// The name it gave or was found to have; none for a client without one.
    pub name: Option<&'a str>,
    /// Its name is proved: by the credential with this stamp, or (0) by other means.
    pub proof: Option<u64>,
    /// It is a process of this host.
    pub local: bool,
    /// Where it comes from; `None`: a Unix socket.
    pub address: Option<IpAddr>,
}

/// Proved by other means than CHAP.
pub const PROVED_OTHERWISE: u64 = 0;

/// Why somebody is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// Its name is not in the list.
    #[error("the initiator is not defined")]
    Unlisted,
    /// It has no name, and the list is not empty.
    #[error("initiators are defined, and this client has no name")]
    Nameless,
    /// It did not prove its name, and has to.
    #[error("the initiator has not proved who it is")]
    Unproved,
    /// It may not use that LUN.
    #[error("the initiator may not use this LUN")]
    NotAllowed,
    /// No initiator is defined, and it comes from another host.
    #[error("no initiator is defined, and the client is not of this host")]
    Remote,
    /// Its address is not among those that it may come from.
    #[error("the initiator may not come from this address")]
    Elsewhere,
    /// The list in the pool cannot be read.
    #[error("the list of initiators cannot be read")]
    Unreadable,
}

type List = BTreeMap<String, Initiator>;

/// The list.
pub struct Book {
    catalog: Arc<Catalog>,
    /// `Err`: why it cannot be read; then nobody is let in.
    list: RwLock<std::result::Result<Arc<List>, String>>,
    change: Mutex<()>,
    insecure: AtomicBool,
    refusals: Refusals,
}

impl Book {
    /// Reads the list of a pool. One that cannot be read keeps everybody out, and is told by
    /// [`Book::failure`].
    pub fn open(catalog: Arc<Catalog>, clock: Arc<dyn Clock>) -> Arc<Book> {
        let list = kept::load(catalog.fs()).map(Arc::new);
        let list = list.map_err(|error| error.to_string().replace('\n', ": "));
        let book = Book {
            list: RwLock::new(list),
            change: Mutex::new(()),
            insecure: AtomicBool::new(false),
            refusals: Refusals::new(clock),
            catalog,
        };
        book.tell_luns();
        Arc::new(book)
    }

    /// Lets clients of other hosts in without authentication, where the list allows them.
    pub fn be_insecure(&self) {
        self.insecure.store(true, Ordering::Release);
    }

    /// Why the list cannot be read.
    pub fn failure(&self) -> Option<String> {
        self.list.read().as_ref().err().cloned()
    }

    /// Who was turned away.
    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    fn current(&self) -> Result<Arc<List>> {
        self.list.read().clone().map_err(Error::Unreadable)
    }

    /// All of them, by name.
    pub fn list(&self) -> Result<Vec<Initiator>> {
        Ok(self.current()?.values().cloned().collect())
    }

    /// One of them, without regard to case.
    pub fn get(&self, name: &str) -> Result<Initiator> {
        let found = self.current()?.get(&name.to_ascii_lowercase()).cloned();
        found.ok_or_else(|| Error::NotFound(name.escape_debug().to_string()))
    }

    /// The initiator as the door has to know it before it is let in: `Ok(None)` while none is
    /// defined.
    pub fn find(&self, name: &str) -> std::result::Result<Option<Initiator>, Denial> {
        let list = self.current().map_err(|_| Denial::Unreadable)?;
        match list.get(&name.to_ascii_lowercase()) {
            None if list.is_empty() => Ok(None),
            None => Err(Denial::Unlisted),
            Some(found) => Ok(Some(found.clone())),
        }
    }

    /// The export list: whether anybody may come from there at all.
    pub fn check_address(&self, address: IpAddr, local: bool) -> std::result::Result<(), Denial> {
        let list = self.current().map_err(|_| Denial::Unreadable)?;
        if list.is_empty() {
            let trusted = local || self.insecure.load(Ordering::Acquire);
            return trusted.then_some(()).ok_or(Denial::Remote);
        }
        let any = list.values().any(|one| one.comes_from(address));
        any.then_some(()).ok_or(Denial::Elsewhere)
    }

    /// Whether a client without a name is let in: no initiator is defined.
    pub fn is_empty(&self) -> bool {
        self.current().is_ok_and(|list| list.is_empty())
    }

    /// The initiators that prove themselves under this user name, from there.
    pub fn find_by_user(&self, user: &str, address: IpAddr) -> Vec<Initiator> {
        let list = self.current().unwrap_or_default();
        let is = |one: &&Initiator| one.chap.as_ref().is_some_and(|chap| chap.user == user);
        let all = list.values().filter(is);
        all.filter(|one| one.comes_from(address)).cloned().collect()
    }

    /// What `seen` may do with a LUN.
    pub fn judge(&self, seen: &Seen<'_>, lun: VolumeId) -> std::result::Result<Right, Denial> {
        let list = self.current().map_err(|_| Denial::Unreadable)?;
        let trusted = seen.local || self.insecure.load(Ordering::Acquire);
        if list.is_empty() {
            let known = trusted || seen.proof == Some(PROVED_OTHERWISE);
            return if known { Ok(Right::ALL) } else { Err(Denial::Remote) };
        }
        let name = seen.name.ok_or(Denial::Nameless)?;
        let one = list.get(&name.to_ascii_lowercase()).ok_or(Denial::Unlisted)?;
        if seen.address.is_some_and(|address| !one.comes_from(address)) {
            return Err(Denial::Elsewhere);
        }
        let wanted = one.chap.as_ref().map(|chap| chap.stamp());
        let proved =
            seen.proof == Some(PROVED_OTHERWISE) || (wanted.is_some() && seen.proof == wanted);
        if wanted.is_some() && !proved {
            return Err(Denial::Unproved);
        }
        let right = one.rights.get(&lun).copied().ok_or(Denial::NotAllowed)?;
        match right.writable && !proved && !trusted {
            true => Err(Denial::Unproved),
            false => Ok(right),
        }
    }

    /// Judges a session that was just attached, by the list as it is now, and gives it its rights.
    pub fn admit(
        &self,
        seen: &Seen<'_>,
        session: &Attachment,
    ) -> std::result::Result<Right, Denial> {
        let right = self.judge(seen, session.lun().id())?;
        session.set_rights(rights_of(right));
        Ok(right)
    }

    /// Defines one.
    pub fn add(&self, name: &str, edit: Edit, dry_run: bool) -> Result<Initiator> {
        let mut one = Initiator::new(name)?;
        one.apply(edit)?;
        let added = one.clone();
        self.change(dry_run, move |list| {
            if list.len() >= MAX_INITIATORS {
                return Err(Error::TooMany(format!("there are {MAX_INITIATORS} already")));
            }
            check_reflection(list, &one)?;
            match list.insert(one.name.clone(), one) {
                Some(old) => Err(Error::Exists(old.name)),
                None => Ok(()),
            }
        })?;
        Ok(added)
    }

    /// Changes one. Its sessions end where its credential changes: they have to prove themselves
    /// anew.
    pub fn set(&self, name: &str, edit: Edit, dry_run: bool) -> Result<Initiator> {
        let anew = edit.chap.is_some();
        let secrets = anew || edit.mutual.is_some();
        let key = name.to_ascii_lowercase();
        let mut after = None;
        self.change(dry_run, |list| {
            let one = list.get_mut(&key);
            let one = one.ok_or_else(|| Error::NotFound(key.escape_debug().to_string()))?;
            one.apply(edit)?;
            let set = after.insert(one.clone());
            if secrets {
                check_reflection(list, set)
            } else {
                Ok(())
            }
        })?;
        let set = after.ok_or_else(|| Error::NotFound(key.escape_debug().to_string()))?;
        if anew && !dry_run {
            let is = |session: &SessionInfo| session.client.eq_ignore_ascii_case(&set.name);
            self.catalog.end_sessions("its credential was changed", &is);
        }
        Ok(set)
    }

    /// Removes one; its sessions end.
    pub fn remove(&self, name: &str, dry_run: bool) -> Result<Initiator> {
        let one = self.get(name)?;
        let key = one.name.clone();
        self.change(dry_run, |list| list.remove(&key).map(drop).ok_or(Error::NotFound(key)))?;
        Ok(one)
    }

    /// Changes the list in the pool, then in memory, then for the sessions that stand.
    fn change(&self, dry_run: bool, act: impl FnOnce(&mut List) -> Result<()>) -> Result<()> {
        let _one_at_a_time = self.change.lock();
        let mut list = List::clone(&*self.current()?);
        act(&mut list)?;
        if dry_run {
            return Ok(());
        }
        for one in list.values_mut() {
            one.rights.retain(|volume, _| self.catalog.by_id(*volume).is_some());
        }
        kept::save(self.catalog.fs(), &list)?;
        *self.list.write() = Ok(Arc::new(list));
        self.review();
        self.tell_luns();
        Ok(())
    }

    fn review(&self) {
        self.catalog.review_sessions(&|session, volume| {
            let address = session.peer.parse::<SocketAddr>().map(|peer| peer.ip()).ok();
            let local = address.is_none_or(|address| address.to_canonical().is_loopback());
            let name = Some(session.client.as_str());
            // Whoever has a session proved what was asked of it; a new credential ends it.
            let chap = name.and_then(|name| self.find(name).ok().flatten()?.chap);
            let otherwise = (session.door != "iscsi").then_some(PROVED_OTHERWISE);
            let proof = chap.map(|chap| chap.stamp()).or(otherwise);
            let judged = self.judge(&Seen { name, proof, local, address }, volume);
            judged.map(rights_of).map_err(|denial| denial.to_string())
        });
    }

    /// `users` of the LUNs' attributes.
    fn tell_luns(&self) {
        let list = self.current().unwrap_or_default();
        for lun in self.catalog.list() {
            let of_lun = |one: &Initiator| {
                one.rights.get(&lun.id()).map(|right| user_text(&one.name, *right))
            };
            lun.set_users(list.values().filter_map(of_lun).collect());
        }
    }
}

/// What one initiator proves itself by must not be what the target proves itself by to another: who
/// is asked could have the target answer.
fn check_reflection(list: &List, one: &Initiator) -> Result<()> {
    let same = |chap: &Option<Arc<Credential>>, mutual: &Option<Arc<Credential>>| {
        chap.as_ref().zip(mutual.as_ref()).is_some_and(|(a, b)| a.secret.is(&b.secret))
    };
    let others = list.values().filter(|other| other.name != one.name);
    let mut reflected =
        others.filter(|other| same(&one.chap, &other.mutual) || same(&other.chap, &one.mutual));
    reflected.next().map_or(Ok(()), |_| Err(Error::SameSecret))
}

fn rights_of(right: Right) -> Rights {
    Rights { writable: right.writable, quota_bytes: right.quota_bytes }
}

/// `iqn.… rw quota=1073741824`.
fn user_text(name: &str, right: Right) -> String {
    let access = if right.writable { "rw" } else { "ro" };
    match right.quota_bytes {
        0 => format!("{name} {access}"),
        quota => format!("{name} {access} quota={quota}"),
    }
}

impl std::fmt::Debug for Book {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let count = self.list.read().as_ref().map_or(0, |list| list.len());
        write!(f, "Book({count} initiators)")
    }
}
