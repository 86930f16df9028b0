//! LUNs as NBD exports.

use super::disk::Description;
use crate::lun::{self, AttachRequest, Catalog, Lun};
use crate::nbd::{Export, ExportDirectory, ExportEntry, NbdServer, Peer, PeerAddress, Refusal};
use parking_lot::Mutex;
use std::sync::Arc;

/// All LUNs of a pool. Who reaches the door may use them: beyond loopback it is only opened where
/// the administrator said so.
pub(super) struct Exports {
    catalog: Arc<Catalog>,
    /// The door itself, to close the connection of a session that is dropped; empty once it closes.
    door: Arc<Mutex<Option<NbdServer>>>,
}

impl Exports {
    pub(super) fn new(catalog: Arc<Catalog>) -> Exports {
        Exports { catalog, door: Arc::default() }
    }

    /// Where the door is put once it is made.
    pub(super) fn door(&self) -> Arc<Mutex<Option<NbdServer>>> {
        self.door.clone()
    }

    /// The empty name is the only LUN there is.
    fn find(&self, name: &str) -> Result<Arc<Lun>, Refusal> {
        let unknown = || Refusal::Unknown(name.to_string());
        if !name.is_empty() {
            return self.catalog.get(name).map_err(|_| unknown());
        }
        match self.catalog.list().as_slice() {
            [only] => Ok(only.clone()),
            _ => Err(unknown()),
        }
    }

    /// When the session is dropped its connection is found by export and peer: NBD numbers its
    /// connections by itself.
    fn kick(&self, export: String, peer: Peer) -> Box<dyn FnOnce() + Send> {
        let door = self.door.clone();
        Box::new(move || {
            let door = door.lock().clone();
            for door in door.iter() {
                let all = door.sessions().into_iter();
                for session in all.filter(|s| s.export == export && s.peer == peer) {
                    door.drop_session(session.id);
                }
            }
        })
    }
}

impl ExportDirectory for Exports {
    fn list(&self, _peer: &Peer) -> Result<Vec<ExportEntry>, Refusal> {
        let entry = |lun: &Arc<Lun>| ExportEntry { name: lun.name(), description: describe(lun) };
        Ok(self.catalog.list().iter().map(entry).collect())
    }

    fn open(&self, name: &str, peer: &Peer) -> Result<Export, Refusal> {
        let lun = self.find(name)?;
        let request = AttachRequest {
            door: "nbd",
            client: client_of(peer),
            peer: peer.to_string(),
            writable: true,
        };
        let session = lun.attach(request).map_err(|e| refusal(name, &e))?;
        // Until the client says that it leaves.
        session.lost();
        let export = lun.name();
        session.on_kick(self.kick(export.clone(), peer.clone()));
        Ok(Export { description: describe(&lun), name: export, io: session })
    }

    fn describe(&self, name: &str, _peer: &Peer) -> Result<Export, Refusal> {
        let lun = self.find(name)?;
        let (name, description) = (lun.name(), describe(&lun));
        Ok(Export { name, description, io: Arc::new(Description(lun)) })
    }
}

fn describe(lun: &Lun) -> String {
    let identity = lun.identity();
    format!("{} {} {}", identity.vendor, identity.product, identity.serial)
}

/// Who the client is beyond one connection.
fn client_of(peer: &Peer) -> String {
    match (&peer.certificate_name, &peer.address) {
        (Some(name), _) => name.clone(),
        (None, PeerAddress::Tcp(address)) => address.ip().to_canonical().to_string(),
        (None, PeerAddress::Unix { uid, .. }) => format!("unix:uid={uid}"),
    }
}

fn refusal(name: &str, error: &lun::Error) -> Refusal {
    match error {
        lun::Error::NotFound(_) | lun::Error::Gone => Refusal::Unknown(name.to_string()),
        _ => Refusal::Policy(error.to_string().replace('\n', "; ")),
    }
}
