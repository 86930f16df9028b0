//! The doors: opening them all or none, watching them, closing them.

use super::config::{with_port, Listen, ServeConfig};
use super::iscsi_targets::Targets;
use super::nbd_exports::Exports;
use super::nbs_objects::Objects;
use crate::control::doors::{Door, DoorKind};
use crate::control::engine::Engine;
use crate::control::{Error, Message, Result};
use crate::fs::SystemClock;
use crate::fuse::{Mount, MountError, MountOptions};
use crate::iscsi::{self, portal, Service};
use crate::nbd::{NbdServer, Tls, TlsError};
use crate::nbs::{Messages, NbsServer};
use parking_lot::Mutex;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long clients may take to hear the answers that are under way.
const CLIENTS_WAIT: Duration = Duration::from_secs(10);
/// How often doors are looked at that may close by themselves, and the figures of sessions.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often the mount is looked at whose end is the server's: umount(8) may be followed by
/// mount(8).
const LOOK_AT_MOUNT_EVERY: Duration = Duration::from_millis(20);

/// Looks whether the doors could be opened: before the pool is touched, and for a dry run.
pub fn check_doors(config: &ServeConfig) -> Result<()> {
    for address in &config.iscsi {
        TcpListener::bind(address).map_err(|e| port_error("iscsi", &address.to_string(), &e))?;
    }
    for address in &config.nbs {
        TcpListener::bind(address).map_err(|e| port_error("nbs", &address.to_string(), &e))?;
    }
    for listen in &config.nbd {
        if let Listen::Tcp(address) = listen {
            TcpListener::bind(address).map_err(|e| port_error("nbd", &address.to_string(), &e))?;
        }
    }
    config.tls.as_deref().map(load_tls).transpose()?;
    config.mount.as_deref().map_or(Ok(()), check_mount_point)
}

fn load_tls(dir: &Path) -> Result<Tls> {
    let refused = |e: TlsError| {
        Message::new(format!("--tls {} was refused", dir.display())).why(e).todo(
            "it holds ca-cert.pem, server-cert.pem, server-key.pem and, if you like, \
             authorized-clients",
        )
    };
    Tls::load(dir).map_err(|e| refused(e).into())
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
    iscsi: Option<IscsiDoor>,
    nbd: Option<NbdServer>,
    /// Where the NBD exports know their own door: emptied when it closes.
    nbd_known: Arc<Mutex<Option<NbdServer>>>,
    nbs: Option<NbsServer>,
    mount: Option<Mount>,
}

impl OpenDoors {
    /// Opens what was asked for; what was opened closes again where one cannot be.
    pub(super) async fn open(config: &ServeConfig, engine: &Arc<Engine>) -> Result<OpenDoors> {
        let mut doors = OpenDoors {
            engine: engine.clone(),
            iscsi: None,
            nbd: None,
            nbd_known: Arc::default(),
            nbs: None,
            mount: None,
        };
        match doors.open_all(config).await {
            Ok(()) => Ok(doors),
            Err(e) => {
                doors.close().await;
                Err(e)
            }
        }
    }

    async fn open_all(&mut self, config: &ServeConfig) -> Result<()> {
        if !config.iscsi.is_empty() {
            self.open_iscsi(config).await?;
        }
        if !config.nbd.is_empty() {
            self.open_nbd(config).await?;
        }
        if !config.nbs.is_empty() {
            self.open_nbs(&config.nbs)?;
        }
        config.mount.as_deref().map_or(Ok(()), |dir| self.open_mount(dir, config))
    }

    async fn open_iscsi(&mut self, config: &ServeConfig) -> Result<()> {
        let pool = &self.engine.pool;
        let targets = Targets::new(pool.catalog.clone(), pool.book.clone());
        let known = targets.door();
        let options = iscsi::Options { advertise: config.advertise.clone(), ..Default::default() };
        let service = Service::new(Arc::new(targets), options);
        let service = service.map_err(|e| port_error("iscsi", "its threads", &e))?;
        *known.lock() = Some(service.clone());
        let (stop, portals) = (CancellationToken::new(), JoinSet::new());
        let door = self.iscsi.insert(IscsiDoor { known, stop, portals });
        for address in &config.iscsi {
            let bound = tokio::net::TcpListener::bind(address).await;
            let bound = bound.and_then(|listener| Ok((listener.local_addr()?, listener)));
            let (local, listener) =
                bound.map_err(|e| port_error("iscsi", &address.to_string(), &e))?;
            let group = service.add_portal(local);
            let serving = portal::serve(service.clone(), (listener, group), door.stop.clone());
            door.portals.spawn(serving);
            let advertise = config.advertise.as_deref().map(|name| with_port(name, local.port()));
            self.engine.doors.add(Door {
                kind: DoorKind::Iscsi,
                address: local.to_string(),
                advertise,
                failure: None,
            });
        }
        Ok(())
    }

    async fn open_nbd(&mut self, config: &ServeConfig) -> Result<()> {
        let pool = &self.engine.pool;
        let exports = Exports::new(pool.catalog.clone(), pool.book.clone());
        self.nbd_known = exports.door();
        let tls = config.tls.as_deref().map(load_tls).transpose()?;
        let door = NbdServer::with_tls(Arc::new(exports), None, tls);
        let door = door.map_err(|e| Error::io("the NBD door has no threads", &e))?;
        *self.nbd_known.lock() = Some(door.clone());
        self.nbd = Some(door.clone());
        for listen in &config.nbd {
            let bound = match listen {
                Listen::Tcp(address) => door.listen_tcp(*address).await.map(Listen::Tcp),
                Listen::Unix(path) => {
                    let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                    door.listen_unix(&path).await.map(|()| Listen::Unix(path))
                }
            };
            let bound = bound.map_err(|e| port_error("nbd", &listen.to_string(), &e))?;
            self.opened(DoorKind::Nbd, bound.to_string());
        }
        Ok(())
    }

    fn open_nbs(&mut self, addresses: &[SocketAddr]) -> Result<()> {
        let pool = &self.engine.pool;
        let objects = Objects::new(pool.catalog.clone(), pool.book.clone());
        let door = NbsServer::new(Arc::new(objects), Messages::new());
        let door = door.map_err(|e| Error::io("the NBS door has no threads", &e))?;
        self.nbs = Some(door.clone());
        for address in addresses {
            let bound = door.listen(*address);
            let bound = bound.map_err(|e| port_error("nbs", &address.to_string(), &e))?;
            self.opened(DoorKind::Nbs, bound.to_string());
        }
        Ok(())
    }

    fn open_mount(&mut self, dir: &Path, config: &ServeConfig) -> Result<()> {
        let catalog = self.engine.pool.catalog.clone();
        let mut options = MountOptions::new(Arc::new(SystemClock));
        options.notes_access = config.notes_access;
        // As fstab and `df` know it.
        let source = config.paths.first().map(|path| path.display().to_string());
        options.source = source.filter(|text| !text.contains(',')).unwrap_or(options.source);
        let mount = Mount::start(catalog, dir, &options).map_err(mount_error)?;
        self.opened(DoorKind::Mount, mount.dir().display().to_string());
        self.mount = Some(mount);
        Ok(())
    }

    fn opened(&self, kind: DoorKind, address: String) {
        self.engine.doors.add(Door { kind, address, advertise: None, failure: None });
    }

    /// What the administrator may not have meant.
    pub(super) fn warnings(&self) -> Vec<String> {
        let hiding = self.mount.iter().filter(|mount| mount.hides_entries());
        let text = |mount: &Mount| {
            format!("{} was not empty: the mount hides what it held", mount.dir().display())
        };
        hiding.map(text).collect()
    }

    /// Waits until the mount is gone.
    pub(super) async fn unmounted(&self) {
        while self.mount.as_ref().is_none_or(Mount::is_standing) {
            tokio::time::sleep(LOOK_AT_MOUNT_EVERY).await;
        }
    }

    /// Notes the doors that close by themselves; waits for ever.
    pub(super) async fn watch(&self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            self.engine.pool.catalog.look_at_figures();
            if let Some(mount) = self.mount.as_ref().filter(|mount| !mount.is_standing()) {
                let address = mount.dir().display().to_string();
                self.engine.doors.failed(DoorKind::Mount, &address, "somebody unmounted it");
            }
        }
    }

    /// Closes all: clients first, so that what they wrote is in the pool when it closes.
    pub(super) async fn close(&mut self) {
        if let Some(door) = self.iscsi.take() {
            door.close().await;
        }
        if let Some(nbs) = self.nbs.take() {
            tokio::task::block_in_place(|| nbs.shutdown(CLIENTS_WAIT));
        }
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

/// iSCSI and its portals.
struct IscsiDoor {
    /// Where the targets know their own door: emptied when it closes.
    known: Arc<Mutex<Option<Arc<Service>>>>,
    stop: CancellationToken,
    portals: JoinSet<()>,
}

impl IscsiDoor {
    async fn close(mut self) {
        self.stop.cancel();
        let all = async { while self.portals.join_next().await.is_some() {} };
        // A client that does not end in time loses its connection with the runtime.
        let _ = tokio::time::timeout(CLIENTS_WAIT, all).await;
        *self.known.lock() = None;
    }
}

fn mount_error(error: MountError) -> Error {
    Message::from_lines(&error.to_string()).into()
}
