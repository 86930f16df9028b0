//! What the door asks of those who know the LUNs.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::access::Reason;
use crate::lun::{BlockIo, ChangeMap};

/// Where a client sits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerAddress {
    /// TCP.
    Tcp(SocketAddr),
    /// A process of this host over a Unix socket.
    Unix {
        /// Its user.
        uid: u32,
        /// Its process, where the host tells it.
        pid: Option<i32>,
    },
}

/// A client as far as it is known before it names an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Where it sits.
    pub address: PeerAddress,
    /// Name in its certificate, once TLS is negotiated.
    pub certificate_name: Option<String>,
}

impl Peer {
    /// Whether it is a process of this host.
    pub fn is_local(&self) -> bool {
        match &self.address {
            PeerAddress::Tcp(address) => address.ip().to_canonical().is_loopback(),
            PeerAddress::Unix { .. } => true,
        }
    }
}

impl Peer {
    /// Who it is beyond one connection.
    pub fn client(&self) -> String {
        match (&self.certificate_name, &self.address) {
            (Some(name), _) => name.clone(),
            (None, PeerAddress::Tcp(address)) => address.ip().to_canonical().to_string(),
            (None, PeerAddress::Unix { uid, .. }) => format!("unix:uid={uid}"),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            PeerAddress::Tcp(address) => write!(f, "{address}"),
            PeerAddress::Unix { uid, pid: Some(pid) } => write!(f, "unix:uid={uid},pid={pid}"),
            PeerAddress::Unix { uid, pid: None } => write!(f, "unix:uid={uid}"),
        }
    }
}

/// One line of an export list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportEntry {
    /// Name, at most 4096 bytes.
    pub name: String,
    /// For people, at most 4096 bytes.
    pub description: String,
}

/// An opened export. Dropping the last clone of `io` is the disconnect.
#[derive(Debug, Clone)]
pub struct Export {
    /// Its own name: where the client asked for the default export, what that is.
    pub name: String,
    /// For people.
    pub description: String,
    /// The disk.
    pub io: Arc<dyn BlockIo>,
    /// By what the directory finds the connection among [`super::NbdServer::sessions`].
    pub tag: u64,
}

/// Why an export is not opened. The text goes to the client where the protocol lets it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such export, or none that this client may know of.
    #[error("no export named {0:?}")]
    Unknown(String),
    /// Not for this client, or not now.
    #[error("{0}")]
    Policy(String),
    /// The server is stopping.
    #[error("the server is stopping")]
    Shutdown,
}

/// The exports. Every call may block for a moment (it is made on a blocking thread).
pub trait ExportDirectory: Send + Sync {
    /// What this client may see.
    fn list(&self, peer: &Peer) -> Result<Vec<ExportEntry>, Refusal>;

    /// Connects `peer` to the export. The empty name is the default export: the only one there is.
    fn open(&self, name: &str, peer: &Peer) -> Result<Export, Refusal>;

    /// As `open`, for a client that only wants to know size and flags: no connection begins. What
    /// is returned is used for [`BlockIo::geometry`] alone and dropped at once.
    fn describe(&self, name: &str, peer: &Peer) -> Result<Export, Refusal> {
        self.open(name, peer)
    }

    /// Somebody was turned away before it named an export. Does not block.
    fn turned_away(&self, who: &str, reason: Reason) {
        let _ = (who, reason);
    }

    /// Names of the earlier states that an export can be compared with.
    fn change_bases(&self, name: &str, peer: &Peer) -> Result<Vec<String>, Refusal> {
        let _ = (name, peer);
        Ok(Vec::new())
    }

    /// What changed of an export since one of them. `None`: there is none of this name.
    fn changed_since(
        &self,
        name: &str,
        base: &str,
        peer: &Peer,
    ) -> Result<Option<Arc<dyn ChangeMap>>, Refusal> {
        let _ = (name, base, peer);
        Ok(None)
    }
}

/// A directory whose exports never change: RAM disks and tests.
#[derive(Debug, Default)]
pub struct FixedExports(Vec<Export>);

impl FixedExports {
    /// These exports, open to everyone.
    pub fn new(exports: Vec<Export>) -> FixedExports {
        FixedExports(exports)
    }
}

impl ExportDirectory for FixedExports {
    fn list(&self, _peer: &Peer) -> Result<Vec<ExportEntry>, Refusal> {
        let entry = |export: &Export| ExportEntry {
            name: export.name.clone(),
            description: export.description.clone(),
        };
        Ok(self.0.iter().map(entry).collect())
    }

    fn open(&self, name: &str, _peer: &Peer) -> Result<Export, Refusal> {
        let found = match (name, self.0.as_slice()) {
            ("", [only]) => Some(only),
            _ => self.0.iter().find(|export| export.name == name),
        };
        found.cloned().ok_or_else(|| Refusal::Unknown(name.to_owned()))
    }
}
