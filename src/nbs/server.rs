//! Listens, and carries each connection: a task that moves bytes, blocking threads for what may
//! wait.
//!
//! Data jobs never take all threads: [`DATA_THREADS`] of [`BLOCKING_THREADS`] at most, and those of
//! one client on one object never all of these. Orders (a snapshot, a login) have threads of their
//! own. So whoever's writes wait, because they are paused, say, keeps nobody from being served, and
//! nothing from being heard.

use super::codec::StreamError;
use super::connection::{Connection, End, House, Job, JobDone, Threads};
use super::directory::ObjectDirectory;
use super::messages::Messages;
use super::shares::ClientShares;
use crate::access::{Crowd, Place};
use bytes::BytesMut;
use parking_lot::Mutex;
use std::future::Future;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{mpsc, Semaphore};
use tokio::time::{timeout, Instant};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections at once; more are closed as they come.
pub const MAX_CONNECTIONS: usize = 512;
/// Those from one address that have not authenticated.
const HALF_OPEN_PER_SOURCE: usize = 64;
const BLOCKING_THREADS: usize = 256;
pub(super) const DATA_THREADS: usize = 224;
/// For orders; the rest is for sessions that end.
const ORDER_THREADS: usize = 24;
/// Time to authenticate: milliseconds for a program, and the longest wait after wrong secrets.
const LOGIN_TIME: Duration = Duration::from_secs(30);
/// How long a leaving client may take none of its last replies.
const FAREWELL_TIME: Duration = Duration::from_secs(5);
/// After a failed accept: out of file descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What is received at once.
const RECEIVE_BYTES: usize = 64 << 10;
/// Pieces in one vectored write.
const MAX_PIECES: usize = 32;
/// A silent peer is asked for a sign of life: a lost host is gone after half a minute more.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

struct Shared {
    house: Arc<House>,
    crowd: Arc<Crowd>,
    stop: CancellationToken,
    tracker: TaskTracker,
    data_threads: Arc<Semaphore>,
    order_threads: Arc<Semaphore>,
    runtime: Mutex<Option<Runtime>>,
    handle: Handle,
}

/// The NBS door. Clones are the same door.
#[derive(Clone)]
pub struct NbsServer(Arc<Shared>);

impl NbsServer {
    /// A door without listeners. Fails where its threads cannot be started, or the system has no
    /// random numbers.
    pub fn new(directory: Arc<dyn ObjectDirectory>, messages: Messages) -> io::Result<NbsServer> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_name("nbs")
            .enable_all()
            .build()?;
        let instance = super::auth::hex(&random::<8>()?);
        Ok(NbsServer(Arc::new(Shared {
            house: Arc::new(House {
                directory,
                messages,
                instance,
                shares: ClientShares::default(),
            }),
            crowd: Crowd::new(MAX_CONNECTIONS, HALF_OPEN_PER_SOURCE),
            stop: CancellationToken::new(),
            tracker: TaskTracker::new(),
            data_threads: Arc::new(Semaphore::new(DATA_THREADS)),
            order_threads: Arc::new(Semaphore::new(ORDER_THREADS)),
            handle: runtime.handle().clone(),
            runtime: Mutex::new(Some(runtime)),
        })))
    }

    /// Listens; returns the address with the port that was chosen where it was 0.
    pub fn listen(&self, address: SocketAddr) -> io::Result<SocketAddr> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let bound = listener.local_addr()?;
        let _entered = self.0.handle.enter();
        let listener = TcpListener::from_std(listener)?;
        self.0.tracker.spawn_on(self.clone().accept(listener), &self.0.handle);
        Ok(bound)
    }

    /// Closes the door: nobody comes in, what is under way ends and is answered. Blocks, for at
    /// most `patience`; whether all were gone by then.
    pub fn shutdown(&self, patience: Duration) -> bool {
        self.0.stop.cancel();
        self.0.tracker.close();
        let Some(runtime) = self.0.runtime.lock().take() else { return true };
        let gone = async { timeout(patience, self.0.tracker.wait()).await.is_ok() };
        let gone = runtime.block_on(gone);
        runtime.shutdown_background();
        gone
    }

    async fn accept(self, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.0.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, peer)) = accepted else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            match self.0.crowd.enter(peer.ip()) {
                Some(place) => {
                    let serving = serve(Arc::clone(&self.0), stream, peer, place);
                    self.0.tracker.spawn_on(serving, &self.0.handle);
                }
                None => Connection::refuse_flood(&self.0.house, peer),
            }
        }
    }
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let filled = getrandom::fill(&mut bytes);
    filled.map(|()| bytes).map_err(|_| io::Error::other("the system has no random numbers"))
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)?;
    Ok(())
}

struct Carrier {
    core: Connection,
    stream: TcpStream,
    received: BytesMut,
    report: mpsc::UnboundedSender<Option<JobDone>>,
    /// Bounded by the jobs in flight.
    reports: mpsc::UnboundedReceiver<Option<JobDone>>,
    kicked: CancellationToken,
    shared: Arc<Shared>,
}

/// What woke a connection.
enum Woken {
    Received(usize),
    Sendable,
    Done(Option<JobDone>),
    Kicked,
}

async fn serve(shared: Arc<Shared>, stream: TcpStream, peer: SocketAddr, mut place: Place) {
    let (Ok(()), Ok(number)) = (prepare(&stream), random::<8>()) else { return };
    let kicked = shared.stop.child_token();
    let kick = {
        let kicked = kicked.clone();
        Arc::new(move || kicked.cancel())
    };
    let core = Connection::new(Arc::clone(&shared.house), peer, kick, number);
    let (report, reports) = mpsc::unbounded_channel();
    let received = BytesMut::new();
    let mut carrier = Carrier { core, stream, received, report, reports, kicked, shared };
    carrier.run(&mut place).await;
    carrier.settle().await;
    let Carrier { core, stream, .. } = carrier;
    // Letting go of an object logs it out, which may wait for writes that are under way.
    let _ = tokio::task::spawn_blocking(move || drop(core)).await;
    drop(stream);
    drop(place);
}

impl Carrier {
    async fn run(&mut self, place: &mut Place) {
        let login_until = Instant::now() + LOGIN_TIME;
        let mut half_open = true;
        loop {
            if self.step(place).await.is_err() {
                return;
            }
            if half_open && self.core.is_logged_in() {
                half_open = false;
                place.logged_in();
            }
            let leaving = self.core.end().is_some();
            if leaving && self.core.in_flight() == 0 {
                return self.farewell().await;
            }
            let woken = match half_open {
                true => tokio::time::timeout_at(login_until, self.woken()).await,
                false => Ok(self.woken().await),
            };
            match woken {
                Err(_late) => return,
                Ok(Err(_) | Ok(Woken::Received(0))) => return,
                Ok(Ok(Woken::Received(_) | Woken::Sendable)) => {}
                Ok(Ok(Woken::Done(Some(done)))) => self.core.done(done),
                Ok(Ok(Woken::Done(None))) => return, // a job panicked
                Ok(Ok(Woken::Kicked)) => self.core.leave(),
            }
        }
    }

    /// All that can be done at once: taking requests, handing out jobs, sending.
    async fn step(&mut self, _place: &Place) -> Result<(), StreamError> {
        loop {
            let held = self.received.len();
            self.core.receive(&mut self.received)?;
            for job in self.core.take_jobs() {
                self.hand_out(job);
            }
            if self.core.end() == Some(End::WrongSecret) {
                let source = self.stream.peer_addr()?.ip();
                let penalty = self.shared.crowd.wrong_secret(source);
                tokio::time::sleep(penalty).await;
            }
            self.send()?;
            // Sending may have opened the gate for what is held.
            if self.received.len() == held || !self.core.gate_is_open() {
                return Ok(());
            }
        }
    }

    fn hand_out(&self, job: Job) {
        let report = self.report.clone();
        let (own, threads) = match job.threads() {
            Threads::Data(own) => (own, Arc::clone(&self.shared.data_threads)),
            Threads::Order(own) => (own, Arc::clone(&self.shared.order_threads)),
        };
        let run = move || {
            let done = catch_unwind(AssertUnwindSafe(|| job.run()));
            let _ = report.send(done.ok());
        };
        tokio::spawn(async move {
            let own = own.acquire_owned().await;
            let permit = threads.acquire_owned().await;
            let _ = tokio::task::spawn_blocking(run).await;
            drop((permit, own));
        });
    }

    fn send(&mut self) -> io::Result<()> {
        while !self.core.unsent().is_empty() {
            let mut pieces = [IoSlice::new(&[]); MAX_PIECES];
            let mut count = 0;
            for (piece, bytes) in pieces.iter_mut().zip(self.core.unsent()) {
                *piece = IoSlice::new(bytes);
                count += 1;
            }
            match self.stream.try_write_vectored(pieces.get(..count).unwrap_or_default()) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => self.core.sent(sent),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn woken(&mut self) -> impl Future<Output = io::Result<Woken>> + '_ {
        let open = self.core.gate_is_open();
        let unsent = !self.core.unsent().is_empty();
        let leaving = self.core.end().is_some();
        if open {
            self.received.reserve(RECEIVE_BYTES.min(RECEIVE_BYTES / 2 + 1));
        }
        async move {
            let (mut reader, writer) = self.stream.split();
            tokio::select! {
                biased;
                Some(done) = self.reports.recv() => Ok(Woken::Done(done)),
                () = self.kicked.cancelled(), if !leaving => Ok(Woken::Kicked),
                ready = writer.ready(Interest::WRITABLE), if unsent => {
                    ready.map(|_| Woken::Sendable)
                }
                count = reader.read_buf(&mut self.received), if open => count.map(Woken::Received),
            }
        }
    }

    /// Sends what is left, then waits until the client has closed its side too: closing with unread
    /// bytes would reset the connection, and the client would lose the last answer.
    async fn farewell(&mut self) {
        let all = async {
            while !self.core.unsent().is_empty() {
                if self.stream.writable().await.is_err() || self.send().is_err() {
                    return;
                }
            }
            let _ = tokio::io::AsyncWriteExt::shutdown(&mut self.stream).await;
            let mut rest = [0; 4096];
            while matches!(self.stream.read(&mut rest).await, Ok(count) if count > 0) {}
        };
        let _ = timeout(FAREWELL_TIME, all).await;
    }

    /// Waits for the jobs that are still out: they hold the objects.
    async fn settle(&mut self) {
        while self.core.in_flight() > 0 {
            match self.reports.recv().await {
                Some(Some(done)) => self.core.done(done),
                _ => return,
            }
        }
    }
}
