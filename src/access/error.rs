//! The one errors enum of this layer. `Display` is the three lines a user sees: what, why, what to
//! do.

use super::secret::{MAX_SECRET_BYTES, MIN_SECRET_BYTES};
use crate::{fs, lun};

/// Why a change of the initiators was refused or failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Not an iSCSI name.
    #[error(
        "'{name}' is not the name of an initiator\n\
         {why}\n\
         give a name as iqn.2026-11.org.example:host, eui.0123456789ABCDEF or naa.0123456789ABCDEF"
    )]
    BadName {
        /// What was given.
        name: String,
        /// Which rule it breaks.
        why: &'static str,
    },
    /// The initiator is there already.
    #[error("the initiator {0} is defined already\nchange it with: lunfs initiator set {0}")]
    Exists(String),
    /// There is none of this name.
    #[error("there is no initiator {0}\nlist them with: lunfs initiator list")]
    NotFound(String),
    /// A secret's length is out of range.
    #[error(
        "the secret was refused\n\
         it has {0} bytes, and must have {min} to {max}: RFC 7143 asks for at least 96 bits\n\
         make one with: openssl rand -hex 16",
        min = MIN_SECRET_BYTES, max = MAX_SECRET_BYTES
    )]
    SecretLength(usize),
    /// A secret holds what initiators cannot type.
    #[error("the secret was refused\nit holds a control character\ngive one line of text")]
    SecretText,
    /// The same secret for both directions.
    #[error(
        "the secrets were refused\n\
         the initiator's and the target's are the same: who knows one could play both\n\
         give two different secrets (RFC 7143 §9.2.1)"
    )]
    SameSecret,
    /// A CHAP user name is empty, too long, or not text.
    #[error(
        "the user name was refused\nit must be 1 to 255 bytes of printable text\nchoose another"
    )]
    BadUser,
    /// Mutual CHAP without the other direction.
    #[error(
        "--mutual-user was refused\n\
         the target proves itself only to an initiator that proves itself too\n\
         add --chap-user and --chap-secret-file"
    )]
    MutualAlone,
    /// A limit is out of range.
    #[error("{0} was refused\n{1}")]
    BadLimit(&'static str, String),
    /// Not an address or network.
    #[error("'{0}' is no address\ngive one as 10.0.0.7, 10.0.0.0/24 or fd00::/8, or any")]
    BadNetwork(String),
    /// Too many of something.
    #[error("{0}\nthe list of initiators is bounded\nremove some that are not used any more")]
    TooMany(String),
    /// What is in the pool cannot be read: nobody is let in.
    #[error(
        "the list of initiators in the pool cannot be read\n\
         {0}\n\
         stop the server and run `lunfs pool check PATH`"
    )]
    Unreadable(String),
    /// The LUN layer below.
    #[error("{0}")]
    Lun(#[from] lun::Error),
    /// The filesystem below.
    #[error("the list of initiators was not changed\n{0}")]
    Fs(#[from] fs::Error),
}

/// Result of this layer.
pub type Result<T> = std::result::Result<T, Error>;
