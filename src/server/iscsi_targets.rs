//! LUNs and their snapshots as iSCSI targets: each its own target, LUN 0 of it.

use super::entrance::{local, note};
use crate::access::{Book, Denial, Reason, Seen};
use crate::control::doors::{snapshot_target_name, target_name, TARGET_PREFIX};
use crate::iscsi::{Client, Demand, Refusal, Service, TargetDirectory};
use crate::lun::{self, policy_time, AttachRequest, Attachment, BlockIo, Catalog, Lun};
use parking_lot::Mutex;
use std::sync::Arc;

/// All LUNs of a pool, for those whom the list of initiators lets in.
pub(super) struct Targets {
    catalog: Arc<Catalog>,
    book: Arc<Book>,
    /// The door itself, to close the connection of a session that is dropped; empty once it closes.
    door: Arc<Mutex<Option<Arc<Service>>>>,
}

impl Targets {
    pub(super) fn new(catalog: Arc<Catalog>, book: Arc<Book>) -> Targets {
        Targets { catalog, book, door: Arc::default() }
    }

    /// Where the door is put once it is made.
    pub(super) fn door(&self) -> Arc<Mutex<Option<Arc<Service>>>> {
        self.door.clone()
    }

    /// When the session is dropped its connection is found by who it is: the door numbers its
    /// sessions by itself.
    fn kick(&self, client: Client, target: String) -> Box<dyn FnOnce() + Send> {
        let door = self.door.clone();
        Box::new(move || {
            let door = door.lock().clone();
            for door in door.iter() {
                let all = door.sessions().into_iter().filter(|session| {
                    session.peers.contains(&client.peer)
                        && session.initiator == client.initiator
                        && session.target.eq_ignore_ascii_case(&target)
                });
                for session in all {
                    door.drop_session(session.id);
                }
            }
        })
    }

    fn lun(&self, target: &str) -> Result<Arc<Lun>, Refusal> {
        let lower = target.to_ascii_lowercase();
        let name = lower.strip_prefix(TARGET_PREFIX).ok_or(Refusal::NotFound)?;
        // A LUN's name holds no colon: what follows the first is a snapshot's.
        let disk = match name.split_once(':') {
            None => self.catalog.get(name),
            Some((name, snapshot)) => self.catalog.snapshot_disk(name, snapshot),
        };
        disk.map_err(|e| refusal(&e))
    }

    /// A LUN's target and those of its snapshots, but for the many that policies make: who logs in
    /// to all that a discovery names does not mean those. They open by their names.
    fn targets_of(&self, lun: &str) -> Vec<String> {
        let snapshots = self.catalog.snapshot_names(lun).unwrap_or_default();
        let made_by_hand = snapshots.iter().filter(|name| policy_time(name).is_none());
        let snapshots = made_by_hand.map(|name| snapshot_target_name(lun, name));
        std::iter::once(target_name(lun)).chain(snapshots).collect()
    }

    /// As [`Targets::lun`]; that there is none is noted.
    fn known_lun(&self, client: &Client, target: &str) -> Result<Arc<Lun>, Refusal> {
        self.lun(target).inspect_err(|_| {
            let peer = client.peer.to_string();
            let (who, why) =
                ((client.initiator.as_str(), peer.as_str()), "there is no such target");
            note(&self.book, "iscsi", who, None, Reason::NoSuchLun, why);
        })
    }

    fn attach(
        &self,
        client: &Client,
        lun: &Arc<Lun>,
        how: fn(&Arc<Lun>, AttachRequest) -> lun::Result<Arc<Attachment>>,
    ) -> Result<Arc<Attachment>, Refusal> {
        let seen = seen(client);
        let denied = |denial| self.denied(denial, client, lun);
        let right = self.book.judge(&seen, lun.id()).map_err(denied)?;
        let request = AttachRequest {
            door: "iscsi",
            client: client.initiator.clone(),
            peer: client.peer.to_string(),
            writable: right.writable,
        };
        let session = how(lun, request).map_err(|e| refusal(&e))?;
        // The list may have changed before the session was there to be reviewed.
        self.book.admit(&seen, &session).map_err(denied)?;
        Ok(session)
    }

    fn denied(&self, denial: Denial, client: &Client, lun: &Lun) -> Refusal {
        let (reason, refusal) = match denial {
            Denial::Unlisted | Denial::Nameless | Denial::Remote => {
                (Reason::Unlisted, Refusal::Forbidden)
            }
            Denial::Elsewhere => (Reason::Elsewhere, Refusal::Forbidden),
            Denial::Unproved => (Reason::Unproved, Refusal::Forbidden),
            Denial::NotAllowed => (Reason::NotAllowed, Refusal::Forbidden),
            Denial::Unreadable => (Reason::NotAllowed, Refusal::Unavailable),
        };
        let who = (client.initiator.as_str(), client.peer.to_string());
        note(&self.book, "iscsi", (who.0, &who.1), Some(lun), reason, &denial.to_string());
        refusal
    }
}

fn seen(client: &Client) -> Seen<'_> {
    let proof = client.proof.as_ref().map(|proof| proof.stamp);
    let address = client.peer.ip();
    let (local, address) = (local(address), Some(address));
    Seen { name: Some(&client.initiator), proof, local, address }
}

impl TargetDirectory for Targets {
    fn demand(&self, client: &Client) -> Result<Demand, Refusal> {
        match self.book.find(&client.initiator) {
            Ok(None) => Ok(Demand::default()),
            Ok(Some(one)) if !one.comes_from(client.peer.ip()) => Err(Refusal::Forbidden),
            Ok(Some(one)) => Ok(Demand { chap: one.chap, mutual: one.mutual, limits: one.limits }),
            Err(Denial::Unreadable) => Err(Refusal::Unavailable),
            Err(_) => Err(Refusal::Forbidden),
        }
    }

    fn refused(&self, client: &Client, target: Option<&str>, reason: Reason) {
        let lun = target.and_then(|target| self.lun(target).ok());
        let known = |name| self.book.find(name).is_ok_and(|found| found.is_some());
        let reason = match reason {
            Reason::Unlisted if known(&client.initiator) => Reason::Elsewhere,
            other => other,
        };
        let why = match reason {
            Reason::Elsewhere => "the initiator may not come from this address",
            Reason::Unproved => "the initiator did not prove who it is",
            Reason::Unlisted => "the initiator is not defined",
            Reason::Limit => "the initiator has as many sessions as it may",
            _ => "too many connections that have not logged in",
        };
        let peer = client.peer.to_string();
        let who = (client.initiator.as_str(), peer.as_str());
        note(&self.book, "iscsi", who, lun.as_deref(), reason, why);
    }

    fn list(&self, client: &Client) -> Vec<String> {
        let all = self.catalog.list();
        let own = all.iter().filter(|lun| self.book.judge(&seen(client), lun.id()).is_ok());
        own.flat_map(|lun| self.targets_of(&lun.name())).collect()
    }

    fn judge(&self, client: &Client, target: &str) -> Result<(), Refusal> {
        let lun = self.known_lun(client, target)?;
        let judged = self.book.judge(&seen(client), lun.id());
        judged.map(drop).map_err(|denial| self.denied(denial, client, &lun))
    }

    fn open(&self, client: &Client, target: &str) -> Result<Arc<dyn BlockIo>, Refusal> {
        let lun = self.known_lun(client, target)?;
        let session = self.attach(client, &lun, Lun::attach)?;
        // Until the client says that it leaves.
        session.lost();
        session.on_kick(self.kick(client.clone(), target.to_ascii_lowercase()));
        Ok(session)
    }

    fn find(&self, client: &Client, naa: &[u8; 16]) -> Option<Arc<dyn BlockIo>> {
        let all = self.catalog.disks();
        // this very disk: its name may be another's by now
        let found = all.iter().find(|disk| disk.identity().naa == *naa)?;
        Some(self.attach(client, found, Lun::attach_beside).ok()?)
    }
}

fn refusal(error: &lun::Error) -> Refusal {
    match error {
        lun::Error::NotFound(_) | lun::Error::NoSnapshot { .. } | lun::Error::BadName { .. } => {
            Refusal::NotFound
        }
        lun::Error::Gone => Refusal::Removed,
        _ => Refusal::Unavailable,
    }
}
