//! The doors: opening them all or none, watching them, closing them.

use super::config::{Listen, ServeConfig};
use super::nbd_exports::Exports;
use crate::control::doors::{Door, DoorKind};
use crate::control::engine::Engine;
use crate::control::{Error, Message, Result};
use crate::fs::SystemClock;
use crate::fuse::{Mount, MountError, MountOptions};
use crate::nbd::NbdServer;
use parking_lot::Mutex;
use std::io;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long clients may take to hear the answers that are under way.
const CLIENTS_WAIT: Duration = Duration::from_secs(10);
/// How often doors are looked at that may close by themselves.
const LOOK_EVERY: Duration = Duration::from_millis(500);

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
    nbd: Option<NbdServer>,
    /// Where the NBD exports know their own door: emptied when it closes.
    nbd_known: Arc<Mutex<Option<NbdServer>>>,
    mount: Option<Mount>,
}

impl OpenDoors {
    /// Opens what was asked for; what was opened closes again where one cannot be.
    pub(super) async fn open(config: &ServeConfig, engine: &Arc<Engine>) -> Result<OpenDoors> {
        let mut doors =
            OpenDoors { engine: engine.clone(), nbd: None, nbd_known: Arc::default(), mount: None };
        match doors.open_all(config).await {
            Ok(()) => Ok(doors),
            Err(e) => {
                doors.close().await;
                Err(e)
            }
        }
    }

    async fn open_all(&mut self, config: &ServeConfig) -> Result<()> {
        if !config.nbd.is_empty() {
            self.open_nbd(&config.nbd).await?;
        }
        config.mount.as_deref().map_or(Ok(()), |dir| self.open_mount(dir))
    }

    async fn open_nbd(&mut self, listens: &[Listen]) -> Result<()> {
        let exports = Exports::new(self.engine.pool.catalog.clone());
        self.nbd_known = exports.door();
        let door = NbdServer::new(Arc::new(exports), None);
        *self.nbd_known.lock() = Some(door.clone());
        self.nbd = Some(door.clone());
        for listen in listens {
            let bound = match listen {
                Listen::Tcp(address) => door.listen_tcp(*address).await.map(Listen::Tcp),
                Listen::Unix(path) => {
                    let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                    door.listen_unix(&path).await.map(|()| Listen::Unix(path))
                }
            };
            let bound = bound.map_err(|e| port_error("nbd", &listen.to_string(), &e))?;
            self.opened(DoorKind::Nbd, bound.to_string(), None);
        }
        Ok(())
    }

    fn open_mount(&mut self, dir: &Path) -> Result<()> {
        let catalog = self.engine.pool.catalog.clone();
        let options = MountOptions::new(Arc::new(SystemClock));
        let mount = Mount::start(catalog, dir, &options).map_err(mount_error)?;
        self.opened(DoorKind::Mount, mount.dir().display().to_string(), None);
        self.mount = Some(mount);
        Ok(())
    }

    fn opened(&self, kind: DoorKind, address: String, advertise: Option<String>) {
        self.engine.doors.add(Door { kind, address, advertise, failure: None });
    }

    /// Notes the doors that close by themselves; waits for ever.
    pub(super) async fn watch(&self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if let Some(mount) = self.mount.as_ref().filter(|mount| !mount.is_standing()) {
                let address = mount.dir().display().to_string();
                self.engine.doors.failed(DoorKind::Mount, &address, "somebody unmounted it");
            }
        }
    }

    /// Closes all: clients first, so that what they wrote is in the pool when it closes.
    pub(super) async fn close(&mut self) {
        if let Some(nbd) = self.nbd.take() {
            nbd.shutdown(CLIENTS_WAIT).await;
        }
        *self.nbd_known.lock() = None;
        if let Some(mut mount) = self.mount.take() {
            // What cannot be unmounted stands until the process ends; the pool closes all the same.
            let _ = tokio::task::block_in_place(|| mount.stop());
        }
    }
}

fn mount_error(error: MountError) -> Error {
    Message::from_lines(&error.to_string()).into()
}
