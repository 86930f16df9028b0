//! LUNs and their snapshots as NBD exports.

use super::disk::Description;
use super::entrance::{has_room, local, note, NO_ROOM};
use crate::access::{Book, Denial, Reason, Right, Seen, PROVED_OTHERWISE};
use crate::lun::{self, AttachRequest, Catalog, ChangeMap, Lun};
use crate::nbd::{Export, ExportDirectory, ExportEntry, NbdServer, Peer, PeerAddress, Refusal};
use parking_lot::Mutex;
use std::sync::Arc;

/// All LUNs of a pool. An NBD client without a certificate has no name: it is let in while no
/// initiator is defined, and beyond loopback the door is only opened where the administrator said
/// so.
pub(super) struct Exports {
    catalog: Arc<Catalog>,
    book: Arc<Book>,
    /// The door itself, to close the connection of a session that is dropped; empty once it closes.
    door: Arc<Mutex<Option<NbdServer>>>,
}

impl Exports {
    pub(super) fn new(catalog: Arc<Catalog>, book: Arc<Book>) -> Exports {
        Exports { catalog, book, door: Arc::default() }
    }

    /// What the client may do with a LUN; a refusal is noted.
    fn judge(&self, peer: &Peer, lun: &Lun) -> Result<Right, Refusal> {
        let judged = self.book.judge(&seen(peer), lun.id());
        judged.map_err(|denial| self.denied(denial, peer, lun))
    }

    fn denied(&self, denial: Denial, peer: &Peer, lun: &Lun) -> Refusal {
        let reason = match denial {
            Denial::Elsewhere => Reason::Elsewhere,
            Denial::NotAllowed | Denial::Unreadable => Reason::NotAllowed,
            _ => Reason::Unlisted,
        };
        let (client, at) = (peer.client(), peer.to_string());
        note(&self.book, "nbd", (&client, &at), Some(lun), reason, &denial.to_string());
        Refusal::Policy(denial.to_string())
    }

    /// Where the door is put once it is made.
    pub(super) fn door(&self) -> Arc<Mutex<Option<NbdServer>>> {
        self.door.clone()
    }

    /// The empty name is the only LUN there is.
    fn find(&self, name: &str) -> Result<Arc<Lun>, Refusal> {
        let unknown = || Refusal::Unknown(name.to_string());
        if !name.is_empty() {
            return self.catalog.disk(name).map_err(|_| unknown());
        }
        match self.catalog.list().as_slice() {
            [only] => Ok(only.clone()),
            _ => Err(unknown()),
        }
    }

    /// A LUN and its snapshots.
    fn entries_of(&self, lun: &Lun) -> Vec<ExportEntry> {
        let name = lun.name();
        let snapshots = self.catalog.snapshot_names(&name).unwrap_or_default().into_iter();
        let snapshots = snapshots.map(|snapshot| ExportEntry {
            description: format!("a snapshot of {name}"),
            name: format!("{name}@{snapshot}"),
        });
        let own = ExportEntry { name: name.clone(), description: describe(lun) };
        std::iter::once(own).chain(snapshots).collect()
    }

    /// When the session is dropped its connection is found by the tag: NBD numbers its connections
    /// by itself.
    fn kick(&self, tag: u64) -> Box<dyn FnOnce() + Send> {
        let door = self.door.clone();
        Box::new(move || {
            let door = door.lock().clone();
            for door in door.iter() {
                let all = door.sessions().into_iter();
                for session in all.filter(|session| session.tag == tag) {
                    door.drop_session(session.id);
                }
            }
        })
    }
}

impl ExportDirectory for Exports {
    fn list(&self, peer: &Peer) -> Result<Vec<ExportEntry>, Refusal> {
        let all = self.catalog.list();
        let own = all.iter().filter(|lun| self.book.judge(&seen(peer), lun.id()).is_ok());
        Ok(own.flat_map(|lun| self.entries_of(lun)).collect())
    }

    fn open(&self, name: &str, peer: &Peer) -> Result<Export, Refusal> {
        let lun = self.find(name).inspect_err(|why| {
            let (client, at) = (peer.client(), peer.to_string());
            note(&self.book, "nbd", (&client, &at), None, Reason::NoSuchLun, &why.to_string());
        })?;
        let right = self.judge(peer, &lun)?;
        if !has_room(&self.book, &self.catalog, "nbd", peer.certificate_name.as_deref()) {
            let (client, at) = (peer.client(), peer.to_string());
            note(&self.book, "nbd", (&client, &at), Some(&lun), Reason::Limit, NO_ROOM);
            return Err(Refusal::Policy(NO_ROOM.to_owned()));
        }
        let request = AttachRequest {
            door: "nbd",
            client: peer.client(),
            peer: peer.to_string(),
            writable: right.writable,
        };
        let session = lun.attach(request).map_err(|e| refusal(name, &e))?;
        // The list may have changed before the session was there to be reviewed.
        let admitted = self.book.admit(&seen(peer), &session);
        admitted.map_err(|denial| self.denied(denial, peer, &lun))?;
        // Until the client says that it leaves.
        session.lost();
        let tag = session.id().0;
        session.on_kick(self.kick(tag));
        Ok(Export { description: describe(&lun), name: lun.name(), io: session, tag })
    }

    fn describe(&self, name: &str, peer: &Peer) -> Result<Export, Refusal> {
        let lun = self.find(name)?;
        self.judge(peer, &lun)?;
        let (name, description) = (lun.name(), describe(&lun));
        Ok(Export { name, description, io: Arc::new(Description(lun)), tag: 0 })
    }

    fn turned_away(&self, who: &str, reason: Reason) {
        note(&self.book, "nbd", ("?", who), None, reason, "");
    }

    fn change_bases(&self, name: &str, peer: &Peer) -> Result<Vec<String>, Refusal> {
        let lun = self.find(name)?;
        self.judge(peer, &lun)?;
        lun.change_bases().map_err(|error| refusal(name, &error))
    }

    fn changed_since(
        &self,
        name: &str,
        base: &str,
        peer: &Peer,
    ) -> Result<Option<Arc<dyn ChangeMap>>, Refusal> {
        let lun = self.find(name)?;
        self.judge(peer, &lun)?;
        match lun.changed_since(base) {
            Ok(map) => Ok(Some(Arc::new(map))),
            // Not there, or a bookmark that says nothing of this state.
            Err(lun::Error::NoSnapshot { .. } | lun::Error::Snapshot { .. }) => Ok(None),
            Err(error) => Err(refusal(name, &error)),
        }
    }
}

fn describe(lun: &Lun) -> String {
    let identity = lun.identity();
    format!("{} {} {}", identity.vendor, identity.product, identity.serial)
}

fn seen(peer: &Peer) -> Seen<'_> {
    let name = peer.certificate_name.as_deref();
    let address = match &peer.address {
        PeerAddress::Tcp(address) => Some(address.ip()),
        PeerAddress::Unix { .. } => None,
    };
    let local = address.is_none_or(local);
    Seen { name, proof: name.map(|_| PROVED_OTHERWISE), local, address }
}

fn refusal(name: &str, error: &lun::Error) -> Refusal {
    match error {
        lun::Error::NotFound(_) | lun::Error::Gone => Refusal::Unknown(name.to_string()),
        _ => Refusal::Policy(error.to_string().replace('\n', "; ")),
    }
}
