//! Telling systemd how far the server is (sd_notify(3)): a datagram to the socket that
//! `NOTIFY_SOCKET` names. Without that variable nobody is told, and nothing of it is an error.

use std::ffi::OsString;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Names the socket; `@` stands for the zero byte of an abstract one.
const SOCKET: &str = "NOTIFY_SOCKET";

/// All doors are open.
pub(super) fn ready() {
    tell("READY=1");
}

/// The server ends in order.
pub(super) fn stopping() {
    tell("STOPPING=1");
}

fn tell(state: &str) {
    let address = std::env::var_os(SOCKET).and_then(|name| address(&name));
    let (Some(address), Ok(socket)) = (address, UnixDatagram::unbound()) else { return };
    let _ = socket.send_to_addr(state.as_bytes(), &address);
}

fn address(name: &OsString) -> Option<SocketAddr> {
    match name.as_bytes().strip_prefix(b"@") {
        Some(rest) => SocketAddr::from_abstract_name(rest).ok(),
        None => SocketAddr::from_pathname(name).ok(),
    }
}
