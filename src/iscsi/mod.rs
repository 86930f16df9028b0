//! The iSCSI door: RFC 7143, error recovery level 0, one connection a session.
//!
//! [`connection`] is the protocol: a state machine that takes bytes and yields bytes and [`job`]s,
//! without sockets, threads or clocks. [`portal`] carries its bytes over TCP with tokio and runs
//! its jobs on blocking threads. [`session`] is what the connections of a door share. The disks
//! come from a
//! [`TargetDirectory`], the commands are carried out by [`crate::scsi`].
//!
//! Who it is has to be proved first, where the directory demands it ([`login`], [`security`]).
//!
//! What a client can make us hold is bounded for each connection: [`connection::WINDOW`] commands,
//! their unsolicited data (FirstBurstLength each), [`transfer::MAX_SOLICITED_BYTES`] of solicited
//! data, and [`connection::MAX_OUTGOING_BYTES`] of answers before we stop reading from it. The
//! buffers of all connections of one initiator are counted together ([`pool`]): beyond its limit
//! commands are answered TASK SET FULL. So are its running jobs ([`queue`]).

pub mod connection;
pub mod directory;
mod discovery;
pub mod job;
mod login;
mod ordering;
mod outbox;
pub mod params;
pub mod pdu;
mod pool;
pub mod portal;
mod queue;
mod read;
mod receive;
mod security;
pub mod session;
mod sums;
mod text;
mod tmf;
mod transfer;

pub use directory::{Client, Demand, Proof, Refusal, TargetDirectory, TARGET_PREFIX};
pub use session::{Options, Service, SessionInfo};
