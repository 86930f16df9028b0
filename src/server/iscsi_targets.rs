//! LUNs as iSCSI targets: each its own target, LUN 0 of it.

use crate::control::doors::{target_name, TARGET_PREFIX};
use crate::iscsi::{Client, Refusal, Service, TargetDirectory};
use crate::lun::{self, AttachRequest, BlockIo, Catalog};
use parking_lot::Mutex;
use std::sync::Arc;

/// All LUNs of a pool. Who reaches the door may use them: beyond loopback it is only opened where
/// the administrator said so.
pub(super) struct Targets {
    catalog: Arc<Catalog>,
    /// The door itself, to close the connection of a session that is dropped; empty once it closes.
    door: Arc<Mutex<Option<Arc<Service>>>>,
}

impl Targets {
    pub(super) fn new(catalog: Arc<Catalog>) -> Targets {
        Targets { catalog, door: Arc::default() }
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
                    session.peer == client.peer
                        && session.initiator == client.initiator
                        && session.target.eq_ignore_ascii_case(&target)
                });
                for session in all {
                    door.drop_session(session.id);
                }
            }
        })
    }
}

impl TargetDirectory for Targets {
    fn list(&self, _client: &Client) -> Vec<String> {
        self.catalog.list().iter().map(|lun| target_name(&lun.name())).collect()
    }

    fn open(&self, client: &Client, target: &str) -> Result<Arc<dyn BlockIo>, Refusal> {
        let lower = target.to_ascii_lowercase();
        let name = lower.strip_prefix(TARGET_PREFIX).ok_or(Refusal::NotFound)?;
        let lun = self.catalog.get(name).map_err(|e| refusal(&e))?;
        let request = AttachRequest {
            door: "iscsi",
            client: client.initiator.clone(),
            peer: client.peer.to_string(),
            writable: true,
        };
        let session = lun.attach(request).map_err(|e| refusal(&e))?;
        // Until the client says that it leaves.
        session.lost();
        session.on_kick(self.kick(client.clone(), lower));
        Ok(session)
    }

    fn find(&self, client: &Client, naa: &[u8; 16]) -> Option<Arc<dyn BlockIo>> {
        let all = self.catalog.list();
        let lun = all.iter().find(|lun| lun.identity().naa == *naa)?;
        self.open(client, &target_name(&lun.name())).ok()
    }
}

fn refusal(error: &lun::Error) -> Refusal {
    match error {
        lun::Error::NotFound(_) | lun::Error::BadName { .. } => Refusal::NotFound,
        lun::Error::Gone => Refusal::Removed,
        _ => Refusal::Unavailable,
    }
}
