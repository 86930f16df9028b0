//! What the server gives the door: which targets there are, and the disks behind them.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::access::{Credential, Limits, Reason};
use crate::lun::BlockIo;

/// What every target's name begins with; the LUN's name in lower case follows.
pub const TARGET_PREFIX: &str = "iqn.2026-11.local.lunfs:";

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// InitiatorName in lower case, as claimed: by itself it proves nothing.
    pub initiator: String,
    /// Address of the connection.
    pub peer: SocketAddr,
    /// What it proved by CHAP, where that was demanded.
    pub proof: Option<Proof>,
}

/// A client proved who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// CHAP_N.
    pub user: String,
    /// [`Credential::stamp`] of what it was proved by.
    pub stamp: u64,
}

/// What a client has to do before it is let in, and what it may take then.
#[derive(Debug, Default)]
pub struct Demand {
    /// It proves itself by this.
    pub chap: Option<Arc<Credential>>,
    /// The target proves itself by this, where the client asks for it.
    pub mutual: Option<Arc<Credential>>,
    /// Its bounds.
    pub limits: Limits,
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
    /// What is demanded of a client at its login. Must not block. Asked by the name it claims,
    /// before anything is proved; a refusal comes back as [`TargetDirectory::refused`].
    fn demand(&self, _client: &Client) -> Result<Demand, Refusal> {
        Ok(Demand::default())
    }

    /// The door refused a client; may block where a target is named.
    fn refused(&self, _client: &Client, _target: Option<&str>, _reason: Reason) {}

    /// Names (IQNs) of the targets that `client` may see.
    fn list(&self, client: &Client) -> Vec<String>;

    /// May this client open that target? Asked before a session ends for its sake, and judged again
    /// as it is opened.
    fn judge(&self, _client: &Client, _target: &str) -> Result<(), Refusal> {
        Ok(())
    }

    /// Opens a target for one session. The session keeps what is returned until it ends; its drop
    /// is the logout.
    fn open(&self, client: &Client, target: &str) -> Result<Arc<dyn BlockIo>, Refusal>;

    /// The disk with this NAA identifier, for a third-party copy in the client's name.
    fn find(&self, client: &Client, naa: &[u8; 16]) -> Option<Arc<dyn BlockIo>> {
        let _ = (client, naa);
        None
    }
}
