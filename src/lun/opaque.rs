//! A LUN's opaque data: a few bytes that an application keeps with its disk. They are an extended
//! attribute of `data`, so that the mount shows them and a snapshot has them.

use super::error::{Error, Result};
use super::unit::Lun;
use crate::fs::{self, XattrMode};

/// The attribute.
pub const OPAQUE_NAME: &str = "user.lunfs.opaque";
/// Longest: 64 KiB for all attributes of a file, less what the record of this one takes. It may
/// hold less where `data` has other attributes.
pub const MAX_OPAQUE_BYTES: usize = fs::MAX_XATTR_BYTES - OPAQUE_NAME.len() - 6;

impl Lun {
    /// Empty where nothing was ever written.
    pub fn read_opaque(&self) -> Result<Vec<u8>> {
        match self.shared.fs.xattr_get(self.data_node(), OPAQUE_NAME.as_bytes()) {
            Err(fs::Error::NoAttribute) => Ok(Vec::new()),
            found => Ok(found?),
        }
    }

    /// Replaces them; durable on return.
    pub fn write_opaque(&self, bytes: &[u8]) -> Result<()> {
        let (id, name) = (self.data_node(), OPAQUE_NAME.as_bytes());
        let done = match bytes {
            [] => self.shared.fs.xattr_remove(id, name),
            _ => self.shared.fs.xattr_set(id, name, bytes, XattrMode::Any),
        };
        match done {
            Ok(()) => {}
            Err(fs::Error::NoAttribute) if bytes.is_empty() => return Ok(()),
            Err(error) => return Err(Error::Fs(error)),
        }
        Ok(self.shared.fs.sync()?)
    }
}
