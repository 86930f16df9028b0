//! Errors of the layer, and the one map from [`BlockError`] to the wire.

use std::io;

use crate::lun::BlockError;

/// Error values a reply may carry (proto, "Error values"); no others exist on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum WireError {
    /// EPERM.
    NotPermitted = 1,
    /// EIO.
    Io = 5,
    /// EINVAL.
    Invalid = 22,
    /// ENOSPC.
    NoSpace = 28,
    /// ENOTSUP.
    NotSupported = 95,
    /// ESHUTDOWN.
    Shutdown = 108,
}

/// Why a connection ended before the client asked for it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket failed or closed in the middle.
    #[error("connection: {0}")]
    Socket(#[from] io::Error),
    /// The client does not keep to the protocol.
    #[error("protocol violation: {0}")]
    Protocol(&'static str),
    /// The handshake took too long.
    #[error("the handshake took longer than {0} s")]
    HandshakeTimeout(u64),
    /// TLS was not agreed on, or the client's certificate is not authorized.
    #[error("TLS: {0}")]
    Tls(String),
    /// The directory refused the export and the option leaves no way to say so.
    #[error("refused: {0}")]
    Refused(#[from] super::directory::Refusal),
    /// The session was dropped by the administrator or the server is stopping.
    #[error("the session was dropped")]
    Dropped,
    /// A request broke in the server.
    #[error("internal error: a request did not end as it should")]
    Internal,
}

/// Maps an error of the LUN. `writes` tells requests that put data where an end of the disk counts
/// as a lack of space (proto, NBD_CMD_WRITE). The protocol has no "busy": a LUN held by a file
/// writer for longer than the lower layer waits is an I/O error that clients may retry.
pub fn wire_error(error: &BlockError, writes: bool) -> WireError {
    match error {
        BlockError::OutOfRange if writes => WireError::NoSpace,
        BlockError::OutOfRange | BlockError::Invalid(_) => WireError::Invalid,
        BlockError::ReadOnly => WireError::NotPermitted,
        BlockError::NoSpace => WireError::NoSpace,
        BlockError::HeldByFile
        | BlockError::Reserved
        | BlockError::Sanitizing
        | BlockError::DeviceMissing
        | BlockError::Medium { .. }
        | BlockError::Miscompare { .. }
        | BlockError::Io(_) => WireError::Io,
        BlockError::Gone => WireError::Shutdown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_disk_depends_on_the_command() {
        assert_eq!(wire_error(&BlockError::OutOfRange, true), WireError::NoSpace);
        assert_eq!(wire_error(&BlockError::OutOfRange, false), WireError::Invalid);
        assert_eq!(wire_error(&BlockError::ReadOnly, true) as u32, 1);
        assert_eq!(wire_error(&BlockError::HeldByFile, true) as u32, 5);
        assert_eq!(wire_error(&BlockError::Gone, false) as u32, 108);
    }
}
