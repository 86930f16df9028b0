//! Listens on TCP and Unix sockets and gives every client its connection.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{watch, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use super::connection::{self, Guest};
use super::directory::ExportDirectory;
use super::errors::Error;
use super::session::{SessionInfo, Sessions};
use super::stream::Stream;
use super::tls::Tls;
use crate::access::{Crowd, Place, Reason, Shares};
use crate::shards::{Seat, Shards};

/// Connections at once; more are closed as they come. Together with the bound of each connection
/// this bounds the door.
pub const MAX_CONNECTIONS: u32 = 512;
/// Those from one address that have not chosen an export.
const HALF_OPEN_PER_SOURCE: usize = 64;
/// Pause after a failed accept: out of file descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Called when a connection ends otherwise than in order: peer's name, reason.
pub type Complaint = Arc<dyn Fn(&str, &Error) + Send + Sync>;

struct Shared {
    shards: Shards,
    directory: Arc<dyn ExportDirectory>,
    sessions: Sessions,
    shares: Shares<Semaphore>,
    permits: Arc<Semaphore>,
    crowd: Arc<Crowd>,
    stop: watch::Sender<bool>,
    sockets: Mutex<Vec<PathBuf>>,
    accepting: Mutex<Vec<JoinHandle<()>>>,
    complaint: Option<Complaint>,
    tls: Option<Tls>,
}

/// The NBD door. Clones are the same door.
#[derive(Clone)]
pub struct NbdServer(Arc<Shared>);

impl NbdServer {
    /// A door without listeners. `complaint` hears why connections broke.
    /// Fails where its threads cannot be started.
    pub fn new(
        directory: Arc<dyn ExportDirectory>,
        complaint: Option<Complaint>,
    ) -> io::Result<NbdServer> {
        NbdServer::with_tls(directory, complaint, None)
    }

    /// The same, with certificates: clients of other hosts have to use TLS, those of this host may.
    pub fn with_tls(
        directory: Arc<dyn ExportDirectory>,
        complaint: Option<Complaint>,
        tls: Option<Tls>,
    ) -> io::Result<NbdServer> {
        Ok(NbdServer(Arc::new(Shared {
            shards: Shards::new("nbd")?,
            directory,
            sessions: Sessions::default(),
            shares: Shares::default(),
            permits: Arc::new(Semaphore::new(MAX_CONNECTIONS as usize)),
            crowd: Crowd::new(MAX_CONNECTIONS as usize, HALF_OPEN_PER_SOURCE),
            stop: watch::Sender::new(false),
            sockets: Mutex::default(),
            accepting: Mutex::default(),
            complaint,
            tls,
        })))
    }

    /// Listens on TCP; returns the address with the port that was chosen where it was 0. Needs the
    /// runtime it shall run on.
    pub async fn listen_tcp(&self, address: SocketAddr) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind(address).await?;
        let bound = listener.local_addr()?;
        self.accept_from(Listener::Tcp(listener));
        Ok(bound)
    }

    /// Listens on a Unix socket, for its owner alone (mode 0600). A socket that nobody listens on
    /// any more is replaced; any other file, and a socket in use, is refused with `AddrInUse`.
    pub async fn listen_unix(&self, path: &Path) -> io::Result<()> {
        remove_stale_socket(path)?;
        let listener = UnixListener::bind(path)?;
        let owner_only = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(path, owner_only)?;
        self.0.sockets.lock().push(path.to_owned());
        self.accept_from(Listener::Unix(listener));
        Ok(())
    }

    /// Who is connected, to what, since when.
    pub fn sessions(&self) -> Vec<SessionInfo> {
        self.0.sessions.list()
    }

    /// Ends a session; false where there is none of this number.
    pub fn drop_session(&self, id: u64) -> bool {
        self.0.sessions.end(id)
    }

    /// Closes the door: addresses and sockets are free again, no client comes in, running requests
    /// end and are answered. Returns whether all connections were gone within `patience`.
    pub async fn shutdown(&self, patience: Duration) -> bool {
        self.0.stop.send_replace(true);
        self.0.sessions.end_all();
        for path in self.0.sockets.lock().drain(..) {
            let _ = std::fs::remove_file(path);
        }
        let accepting = std::mem::take(&mut *self.0.accepting.lock());
        let closed = async {
            for listener in accepting {
                let _ = listener.await;
            }
            self.0.permits.acquire_many(MAX_CONNECTIONS).await.is_ok()
        };
        tokio::time::timeout(patience, closed).await.unwrap_or(false)
    }

    fn accept_from(&self, listener: Listener) {
        let accepting = tokio::spawn(self.clone().accept(listener));
        self.0.accepting.lock().push(accepting);
    }

    async fn accept(self, listener: Listener) {
        let mut stop = self.0.stop.subscribe();
        loop {
            let accepted = tokio::select! {
                biased;
                _ = stop.wait_for(|stopped| *stopped) => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok(socket) => self.welcome(socket),
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    fn welcome(&self, socket: Socket) {
        let source = socket.source();
        let flood = || self.0.directory.turned_away(&source.to_string(), Reason::Flood);
        let Some(place) = self.0.crowd.enter(source) else {
            return flood();
        };
        if let Ok(permit) = self.0.permits.clone().try_acquire_owned() {
            let server = self.clone();
            self.0.shards.spawn(move |seat| server.serve(socket, seat, permit, place));
        }
    }

    /// A connection registers its session before it looks at `stop` for the last time, so that a
    /// shutdown reaches it one way or the other.
    async fn serve(self, socket: Socket, seat: Seat, permit: OwnedSemaphorePermit, place: Place) {
        let shared = self.0;
        let stop = shared.stop.subscribe();
        let mut name = "?".to_owned();
        let served = async {
            let stream = socket.open()?;
            let peer = stream.peer()?;
            name = peer.to_string();
            let directory = shared.directory.clone();
            let guest = Guest { peer, place, tls: shared.tls.clone() };
            let tables = (&shared.sessions, &shared.shares);
            connection::run(stream, guest, directory, tables, stop, seat).await
        };
        if let (Err(error), Some(complain)) = (served.await, &shared.complaint) {
            complain(&name, &error);
        }
        drop(permit);
    }
}

/// An accepted connection between the runtime that accepted it and the one that serves it.
enum Socket {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl Socket {
    /// Where it comes from: clients of Unix sockets are all of this host.
    fn source(&self) -> IpAddr {
        match self {
            Socket::Tcp(socket) => socket.peer_addr().ok().map(|peer| peer.ip()),
            Socket::Unix(_) => None,
        }
        .unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    fn open(self) -> io::Result<Stream> {
        match self {
            Socket::Tcp(socket) => Stream::tcp(socket),
            Socket::Unix(socket) => Stream::unix(socket),
        }
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    async fn accept(&self) -> io::Result<Socket> {
        match self {
            Listener::Tcp(listener) => listener.accept().await?.0.into_std().map(Socket::Tcp),
            Listener::Unix(listener) => listener.accept().await?.0.into_std().map(Socket::Unix),
        }
    }
}

/// Makes way for a socket at `path`.
fn remove_stale_socket(path: &Path) -> io::Result<()> {
    let Ok(found) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    let stale = found.file_type().is_socket()
        && std::os::unix::net::UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    if !stale {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    std::fs::remove_file(path)
}
