//! The client of NBS: what the source calls the driver. It keeps what is outstanding in a queue,
//! reconnects, sends again what was not answered, and goes to the next address of its list when one
//! fails.
//!
//! [`core`] is sans-I/O, [`carrier`] is its thread and socket, [`disk`] makes a disk of it.

pub mod carrier;
pub mod core;
pub mod disk;
pub mod login;

pub use self::core::{Answer, ClientError, ObjectInfo, Options, Request};
pub use carrier::NbsClient;
pub use disk::NbsDisk;
pub use login::Login;
