//! The NBD door: LUNs as network block devices for Linux, QEMU, libnbd and everything that speaks
//! the protocol (NBD proto: `doc/proto.md` of the reference implementation; "proto" below).
//!
//! Fixed newstyle only. [`handshake`], [`transmission`], [`inbox`] and [`outbox`] are sans-I/O:
//! bytes in, actions out. [`connection`] carries them over one socket, [`server`] listens. Which
//! exports there are and who may open them is decided by an [`ExportDirectory`], never here.
//!
//! Memory of one connection is bounded: [`inbox::RECEIVE_BYTES`] + one payload of at most
//! [`wire::MAX_REQUEST_BYTES`] being received + [`connection::MAX_IN_FLIGHT_BYTES`] and one request
//! in the hands of blocking threads + [`connection::MAX_UNSENT_BYTES`] and one reply not yet sent.

pub mod buffer;
pub mod connection;
pub mod contexts;
pub mod directory;
pub mod errors;
mod haggle;
pub mod handshake;
pub mod inbox;
pub mod outbox;
pub mod server;
pub mod session;
pub mod stream;
pub mod tls;
pub mod transmission;
pub mod wire;
mod work;

pub use directory::{
    Export, ExportDirectory, ExportEntry, FixedExports, Peer, PeerAddress, Refusal,
};
pub use server::NbdServer;
pub use session::SessionInfo;
pub use tls::{Tls, TlsError};
