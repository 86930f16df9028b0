//! A secret shared with a client. It is never shown: `Debug` hides it, nothing clones it, its bytes
//! are wiped when it is dropped. Who must write it down (the pool, the control socket) says so by
//! [`BareSecret`].

use super::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use zeroize::Zeroizing;

/// Shortest secret: RFC 7143 §9.2.1 asks for at least 96 bits where IPsec does not protect the
/// session, and lunfs has no IPsec to know of.
pub const MIN_SECRET_BYTES: usize = 12;
/// Longest secret: what initiators take (Linux and libiscsi keep them in 256 bytes).
pub const MAX_SECRET_BYTES: usize = 255;

/// A CHAP secret.
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// 12 to 255 bytes of text without control characters.
    pub fn new(text: Zeroizing<String>) -> Result<Secret> {
        if !(MIN_SECRET_BYTES..=MAX_SECRET_BYTES).contains(&text.len()) {
            return Err(Error::SecretLength(text.len()));
        }
        match text.chars().any(char::is_control) {
            true => Err(Error::SecretText),
            false => Ok(Secret(text)),
        }
    }

    /// Its bytes, for the hash.
    pub fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// For those who write it down where only the owner reads.
    pub fn bare(&self) -> BareSecret {
        BareSecret(self.0.clone())
    }

    /// Whether it is the same, in time that does not tell where they differ.
    pub fn is(&self, other: &Secret) -> bool {
        subtle::ConstantTimeEq::ct_eq(self.bytes(), other.bytes()).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

/// A secret on its way into the control socket or the pool, where only the owner reads: the one
/// form that can be serialized. It is wiped and hidden as [`Secret`] is.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BareSecret(Zeroizing<String>);

impl BareSecret {
    /// Any text; [`Secret::new`] judges it where it arrives.
    pub fn new(text: Zeroizing<String>) -> BareSecret {
        BareSecret(text)
    }

    /// The secret it is.
    pub fn into_secret(self) -> Result<Secret> {
        Secret::new(self.0)
    }
}

impl fmt::Debug for BareSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BareSecret(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Result<Secret> {
        Secret::new(Zeroizing::new(text.to_owned()))
    }

    #[test]
    fn length_and_characters_are_checked() {
        assert!(secret("elevenbytes").is_err());
        assert!(secret("twelve bytes").is_ok());
        assert!(secret(&"x".repeat(255)).is_ok());
        assert!(secret(&"x".repeat(256)).is_err());
        assert!(secret("twelve\nbytes").is_err());
    }

    #[test]
    fn it_is_never_shown() {
        let secret = secret("correct horse battery").unwrap();
        assert_eq!(format!("{secret:?} {secret:#?}").matches("horse").count(), 0);
        assert!(secret.is(&self::secret("correct horse battery").unwrap()));
        assert!(!secret.is(&self::secret("correct horse batterz").unwrap()));
    }
}
