//! What a server was asked to do.

use crate::control::{Message, Result};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Where a door listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl Listen {
    /// Only processes of this host reach it.
    pub fn is_local(&self) -> bool {
        match self {
            Listen::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Listen::Unix(_) => true,
        }
    }
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Listen::Tcp(address) => address.fmt(f),
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// `HOST` or `HOST:PORT` as clients are told it: the port is added where it is missing.
pub(super) fn with_port(name: &str, port: u16) -> String {
    if name.parse::<std::net::Ipv6Addr>().is_ok() {
        return format!("[{name}]:{port}");
    }
    let has_port = name.rsplit_once(':').is_some_and(|(_, last)| last.parse::<u16>().is_ok());
    if has_port {
        name.to_string()
    } else {
        format!("{name}:{port}")
    }
}

/// What a server was asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServeConfig {
    /// Devices of the pool.
    pub paths: Vec<PathBuf>,
    /// Where the tree is mounted.
    pub mount: Option<PathBuf>,
    /// Where iSCSI listens.
    pub iscsi: Vec<SocketAddr>,
    /// Where NBD listens.
    pub nbd: Vec<Listen>,
    /// Where NBS listens.
    pub nbs: Vec<SocketAddr>,
    /// Folder of certificates for NBD.
    pub tls: Option<PathBuf>,
    /// What iSCSI discovery names instead of the dialled address: `HOST` or `HOST:PORT`.
    pub advertise: Option<String>,
    /// Bound of the block cache with accepted, unwritten data.
    pub cache_bytes: u64,
    /// Serve although a device is missing.
    pub degraded: bool,
    /// Let everybody who reaches an address beyond loopback read and write.
    pub insecure: bool,
    /// The end of the mount is the end of the server.
    pub until_unmounted: bool,
    /// Reads in the mount move access times.
    pub notes_access: bool,
}

impl ServeConfig {
    /// Nothing writable is served beyond loopback without authentication: NBD has none but TLS,
    /// which is then required there.
    pub fn check_nbd_reach(&self) -> Result<()> {
        if self.tls.is_some() {
            return Ok(());
        }
        let why = "an NBD client has no name: everybody there could read and write every LUN";
        let todo = "give certificates with --tls DIR, listen on loopback, or add --insecure";
        self.check_beyond(self.nbd.iter().cloned(), why, todo)
    }

    /// The same of iSCSI and NBS, which let in whom the list of initiators names, if there is one.
    pub fn check_iscsi_reach(&self, initiators_defined: bool) -> Result<()> {
        let doors = self.iscsi.iter().chain(&self.nbs);
        let doors = doors.map(|address| Listen::Tcp(*address));
        let why = "no initiator is defined: everybody there could read and write every LUN";
        let todo = "define one with `lunfs initiator add`, listen on loopback, or add --insecure";
        self.check_beyond(doors.filter(|_| !initiators_defined), why, todo)
    }

    fn check_beyond(
        &self,
        mut listens: impl Iterator<Item = Listen>,
        why: &str,
        todo: &str,
    ) -> Result<()> {
        match listens.find(|listen| !listen.is_local() && !self.insecure) {
            None => Ok(()),
            Some(listen) => {
                let what = format!("{listen} is reached from other hosts");
                Err(Message::new(what).why(why).todo(todo).into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_advertised_has_a_port() {
        assert_eq!(with_port("san.example", 3260), "san.example:3260");
        assert_eq!(with_port("10.0.2.2:99", 3260), "10.0.2.2:99");
        assert_eq!(with_port("fe80::1", 3260), "[fe80::1]:3260");
        assert_eq!(with_port("[fe80::1]:99", 3260), "[fe80::1]:99");
        assert_eq!(with_port("[fe80::1]", 3260), "[fe80::1]:3260");
    }

    #[test]
    fn nothing_is_open_to_the_world_by_accident() {
        let mut config = ServeConfig {
            paths: vec![],
            mount: None,
            iscsi: vec!["127.0.0.1:0".parse().unwrap(), "[::1]:0".parse().unwrap()],
            nbd: vec![Listen::Unix("/n".into())],
            nbs: vec!["127.0.0.1:0".parse().unwrap()],
            tls: None,
            advertise: None,
            cache_bytes: 0,
            degraded: false,
            insecure: false,
            until_unmounted: false,
            notes_access: true,
        };
        assert!(config.check_nbd_reach().is_ok() && config.check_iscsi_reach(false).is_ok());
        config.nbd.push(Listen::Tcp("0.0.0.0:1".parse().unwrap()));
        config.iscsi.push("0.0.0.0:1".parse().unwrap());
        assert!(config.check_nbd_reach().is_err() && config.check_iscsi_reach(false).is_err());
        assert!(config.check_iscsi_reach(true).is_ok());
        config.iscsi.clear();
        config.nbs.push("0.0.0.0:1".parse().unwrap());
        assert!(config.check_iscsi_reach(false).is_err());
        config.insecure = true;
        assert!(config.check_nbd_reach().is_ok() && config.check_iscsi_reach(false).is_ok());
    }
}
