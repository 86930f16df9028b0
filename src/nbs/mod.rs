//! The NBS door: LUNs as objects of the network block services protocol, a light one of lunfs's own
//! kin, which is also the channel over which an application's host orders snapshots. README.md
//! beside this file specifies the wire; this is who does what:
//!
//! - [`wire`], [`codec`], [`xml`]: headers, packets, bodies; the same for both sides.
//! - [`auth`], [`connection`], [`requests`], [`messages`]: the server's side. Sans-I/O but for the
//!   disk itself: bytes in, replies and jobs out.
//! - [`server`]: listens, and carries bytes and jobs.
//! - [`directory`]: what the door asks of those who know the LUNs; it never decides itself.
//! - [`client`]: the other side: a queue of requests that outlives connections.
//!
//! Memory of one connection is bounded: a packet of [`wire::MAX_DATA_BYTES`] being received,
//! [`connection::MAX_IN_FLIGHT_BYTES`] and one request in the hands of threads,
//! [`connection::MAX_UNSENT_BYTES`] and one reply not yet sent, [`connection::MAX_OBJECTS`].

pub mod auth;
pub mod client;
pub mod codec;
pub mod connection;
pub mod directory;
pub mod messages;
pub mod requests;
pub mod server;
pub mod shares;
pub mod wire;
pub mod xml;

pub use directory::{
    Candidate, Client, Facts, Kick, Object, ObjectDirectory, SnapFacts, SnapOrder,
};
pub use messages::Messages;
pub use server::NbsServer;
pub use wire::Status;
