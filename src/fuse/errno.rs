//! The one place where errors of the layers below become errno values.

use crate::fs;
use crate::lun;
use fuser::Errno;

/// Result of the file door: what is wrong is an errno.
pub type Result<T> = std::result::Result<T, Errno>;

/// The errno of a filesystem error. Corrupt data and failed devices are both EIO.
pub fn of_fs(error: &fs::Error) -> Errno {
    use fs::Error as E;
    match error {
        E::NotFound => Errno::ENOENT,
        E::Exists => Errno::EEXIST,
        E::NotDirectory => Errno::ENOTDIR,
        E::IsDirectory => Errno::EISDIR,
        E::NotEmpty => Errno::ENOTEMPTY,
        E::NameTooLong => Errno::ENAMETOOLONG,
        E::Invalid(_) => Errno::EINVAL,
        E::TooBig => Errno::EFBIG,
        E::TooManyLinks => Errno::EMLINK,
        E::CrossVolume => Errno::EXDEV,
        E::NoSpace | E::NoRoomElsewhere { .. } | E::AttributesTooBig => Errno::ENOSPC,
        E::NoAttribute => Errno::ENODATA,
        E::Stale => Errno::ESTALE,
        E::Busy => Errno::EBUSY,
        E::ReadOnly => Errno::EROFS,
        E::Corrupt { .. } | E::Io(_) | E::Latched(_) | E::Format(_) => Errno::EIO,
    }
}

/// The errno of a LUN error: what the rules refuse is EINVAL, EBUSY, EEXIST or EROFS.
pub fn of_lun(error: &lun::Error) -> Errno {
    use lun::Error as E;
    match error {
        E::NotFound(_) | E::NoSnapshot { .. } => Errno::ENOENT,
        E::NameTaken { .. } | E::SnapshotExists { .. } => Errno::EEXIST,
        E::BadName { .. } | E::BadSize { .. } | E::BadSetting { .. } | E::BadText(_) => {
            Errno::EINVAL
        }
        E::BadSnapshotName { .. } | E::Snapshot { .. } => Errno::EINVAL,
        E::Busy { .. } | E::Held { .. } => Errno::EBUSY,
        E::ReadOnly(_) => Errno::EROFS,
        E::OverQuota { .. } => Errno::EDQUOT,
        E::NoSession(_) => Errno::EINVAL,
        E::Gone => Errno::ESTALE,
        E::Transfer { .. } => Errno::EIO,
        E::Fs(error) => of_fs(error),
    }
}

/// Turns a result of a layer below into one of this door.
pub trait OrErrno<T> {
    /// The value, or the errno that stands for the error.
    fn or_errno(self) -> Result<T>;
}

impl<T> OrErrno<T> for fs::Result<T> {
    fn or_errno(self) -> Result<T> {
        self.map_err(|e| of_fs(&e))
    }
}

impl<T> OrErrno<T> for lun::Result<T> {
    fn or_errno(self) -> Result<T> {
        self.map_err(|e| of_lun(&e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_have_the_errno_that_tools_know() {
        let busy = lun::Error::Busy { what: "x".into(), why: "y".into(), remedy: "z".into() };
        assert_eq!(of_lun(&busy), Errno::EBUSY);
        assert_eq!(of_lun(&lun::Error::Fs(fs::Error::NoSpace)), Errno::ENOSPC);
        assert_eq!(of_lun(&lun::Error::BadText("no TOML".into())), Errno::EINVAL);
        assert_eq!(of_lun(&lun::Error::Gone), Errno::ESTALE);
    }

    #[test]
    fn damage_is_an_input_output_error() {
        let rot = fs::Error::Corrupt { block: 7, file_offset_bytes: None };
        assert_eq!(of_fs(&rot), Errno::EIO);
        assert_eq!(of_fs(&fs::Error::Latched("flush".into())), Errno::EIO);
        assert_eq!(of_fs(&fs::Error::CrossVolume), Errno::EXDEV);
    }
}
