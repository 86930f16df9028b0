//! The NBD door from outside: a server over a LUN in memory, driven by clients that are not ours
//! (libnbd, QEMU, fio), by a raw client that checks every byte, and by hostile ones.
//! A missing outside tool is a failure that names the package.

#[path = "nbd/client.rs"]
mod client;
#[path = "nbd/fixture.rs"]
mod fixture;
#[path = "nbd/fuzz.rs"]
mod fuzz;
#[path = "nbd/hostile.rs"]
mod hostile;
#[path = "nbd/protocol.rs"]
mod protocol;
#[path = "nbd/tools.rs"]
mod tools;
