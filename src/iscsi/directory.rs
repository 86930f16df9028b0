//! What the server gives the door: which targets there are, and the disks behind them.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::lun::BlockIo;

/// What every target's name begins with; the LUN's name in lower case follows.
pub const TARGET_PREFIX: &str = "iqn.2026-11.local.lunfs:";

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// InitiatorName, as claimed: by itself it proves nothing.
    pub initiator: String,
    /// Address of the connection.
    pub peer: SocketAddr,
    /// Name proved by CHAP, where it was demanded.
    pub user: Option<String>,
}

/// Why a target is not opened; each has its login status (RFC 7143 §11.13.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such target, or none that this client may know of.
    #[error("no such target")]
    NotFound,
    /// The client may not use it.
    #[error("not allowed")]
    Forbidden,
    /// It was there, and is gone.
    #[error("the target was removed")]
    Removed,
    /// It cannot be served now.
    #[error("not available now")]
    Unavailable,
}

impl Refusal {
    /// Status class and detail of the login response.
    pub const fn status(self) -> u16 {
        match self {
            Refusal::NotFound => 0x0203,
            Refusal::Forbidden => 0x0202,
            Refusal::Removed => 0x0204,
            Refusal::Unavailable => 0x0301,
        }
    }
}

/// The targets that are served. Every call may block: the door makes them off its connection tasks.
pub trait TargetDirectory: Send + Sync + 'static {
    /// Names (IQNs) of the targets that `client` may see.
    fn list(&self, client: &Client) -> Vec<String>;

    /// Opens a target for one session. The session keeps what is returned until it ends; its drop
    /// is the logout.
    fn open(&self, client: &Client, target: &str) -> Result<Arc<dyn BlockIo>, Refusal>;

    /// The disk with this NAA identifier, for a third-party copy in the client's name.
    fn find(&self, client: &Client, naa: &[u8; 16]) -> Option<Arc<dyn BlockIo>> {
        let _ = (client, naa);
        None
    }
}
