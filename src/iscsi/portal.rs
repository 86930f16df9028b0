//! Carries iSCSI over TCP: one task a connection, on one thread, which answers what it can as it
//! receives it; the rest runs on blocking threads, a bounded number for each connection, but for
//! the only command of a client, which is waited for where it came.

use std::future::{poll_fn, Future};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::pin::{pin, Pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::Connection;
use super::directory::Client;
use super::job::{Done, Job};
use super::session::Service;
use crate::access::{Place, Reason};
use crate::shards::{Eagerness, Seat};

/// Slices given to one vectored write.
const MAX_SLICES: usize = 64;
/// After a failed accept (out of file descriptors, mostly): not at once again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A discovery session asks what there is, and goes.
const DISCOVERY_TIME: Duration = Duration::from_secs(120);
/// A closing connection's client has this long to take its last answers.
const LINGER: Duration = Duration::from_secs(2);
/// Silence after which TCP asks whether the peer is still there, how often, and how many times.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;
/// Questions that an initiator may leave without an answer.
const MAX_PINGS: u32 = 2;
/// How long an initiator that is asked to log out may take.
const LOGOUT_SECONDS: u16 = 1;
/// A wait on the receiving thread that is longer makes the next ones rare.
const QUICK: Duration = Duration::from_millis(50);
/// As long for sent data that is not acknowledged, where keepalive does not ask.
const UNACKNOWLEDGED_MS: u32 = 60_000;

/// Serves a listening address, of the portal `group` that [`Service::add_portal`] gave it, until
/// `stop`; returns when its connections have ended.
pub async fn serve(
    service: Arc<Service>,
    (listener, group): (TcpListener, u16),
    stop: CancellationToken,
) {
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, peer)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // beyond the bounds a connection is closed at once: the client sees it and may come again
        let Some(place) = service.crowd.enter(peer.ip()) else {
            let client = Client { initiator: String::new(), peer, proof: None };
            service.directory.refused(&client, None, Reason::Flood);
            continue;
        };
        let Ok(stream) = stream.into_std() else { continue };
        let (owner, end, token) = (Arc::clone(&service), stop.child_token(), connections.token());
        service.shards.spawn(move |seat| async move {
            carry(owner, stream, (peer, group), end, (place, seat)).await;
            drop(token);
        });
    }
    connections.close();
    connections.wait().await;
}

/// The address that discovery tells: what is advertised, or what the initiator dialled.
fn portal_address(advertise: Option<&str>, local: SocketAddr) -> String {
    let local = SocketAddr::new(local.ip().to_canonical(), local.port());
    let Some(name) = advertise else {
        return local.to_string();
    };
    let literal = name.parse::<std::net::Ipv6Addr>().is_ok();
    let has_port = name.parse::<SocketAddr>().is_ok()
        || (!literal && name.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()));
    match (has_port, literal) {
        (true, _) => name.to_owned(),
        (false, true) => format!("[{name}]:{}", local.port()),
        (false, false) => format!("{name}:{}", local.port()),
    }
}

/// What discovery names: the portal that the initiator dialled, then the others as far as it can
/// reach them. One that listens everywhere is reached where the initiator dialled.
fn portals(service: &Service, local: SocketAddr, group: u16) -> Vec<(String, u16)> {
    let advertise = service.options.advertise.as_deref();
    let mut out = vec![(portal_address(advertise, local), group)];
    let dialled = local.ip().to_canonical();
    for (other, address) in (1..).zip(service.portals()) {
        let ip = match address.ip() {
            ip if ip.is_unspecified() => dialled,
            ip => ip.to_canonical(),
        };
        let reachable = !ip.is_loopback() || dialled.is_loopback();
        let found = portal_address(advertise, SocketAddr::new(ip, address.port()));
        if other != group && reachable && out.iter().all(|known| known.0 != found) {
            out.push((found, other));
        }
    }
    out
}

/// Receives what is there now, whatever the runtime knows; `None` where nothing is.
fn receive_now(stream: &TcpStream, space: &mut [u8]) -> io::Result<Option<usize>> {
    use rustix::io::Errno;
    match rustix::io::read(stream, space) {
        Ok(count) => Ok(Some(count)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A dead peer must not hold its session for hours.
fn prepare(stream: &TcpStream) {
    use rustix::net::sockopt;
    let _ = stream.set_nodelay(true);
    let _ = sockopt::set_socket_keepalive(stream, true);
    let _ = sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE);
    let _ = sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL);
    let _ = sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES);
    let _ = sockopt::set_tcp_user_timeout(stream, UNACKNOWLEDGED_MS);
}

async fn carry(
    service: Arc<Service>,
    stream: std::net::TcpStream,
    (peer, group): (SocketAddr, u16),
    end: CancellationToken,
    (place, seat): (Place, Seat),
) {
    let Ok(stream) = TcpStream::from_std(stream) else { return };
    let Ok(local) = stream.local_addr() else { return };
    prepare(&stream);
    let portals = portals(&service, local, group);
    let (login_timeout, ping_every) = (service.options.login_timeout, service.options.ping_every);
    let core = Connection::new(service, portals, peer, end.clone());
    let (done_to, done) = mpsc::unbounded_channel(); // bounded by the connection's running jobs
    let mut carrier = Carrier {
        core,
        stream,
        done_to,
        done,
        place,
        seat,
        eagerness: Eagerness::default(),
        patience: Eagerness::default(),
        commands: 0,
        received: false,
        heard: true,
        pings: 0,
    };
    carrier.run(end, login_timeout, ping_every).await;
    carrier.core.close();
    carrier.wait_for_jobs().await;
    let Carrier { core, mut stream, place, .. } = carrier;
    let _ = stream.shutdown().await;
    // letting go of a disk may wait for it
    let _ = tokio::task::spawn_blocking(move || drop(core)).await;
    let _ = tokio::time::timeout(LINGER, drain(stream)).await;
    drop(place);
}

/// Takes what the client still sends: closing with unread bytes would reset the connection, and the
/// client would lose our last answer.
async fn drain(mut stream: TcpStream) {
    let mut bytes = [0; 4096];
    while matches!(stream.read(&mut bytes).await, Ok(count) if count > 0) {}
}

/// What a connection's task wakes up for.
enum Event {
    Received(io::Result<usize>),
    Writable,
    Done(Done),
    End,
    TimedOut,
}

/// Reports a job's outcome when dropped, so that one whose thread panicked or was never run is not
/// waited for.
struct Report {
    to: mpsc::UnboundedSender<Done>,
    done: Done,
}

impl Report {
    fn run(mut self, job: Job) {
        self.done = job.run();
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        let _ = self.to.send(std::mem::replace(&mut self.done, Done::Lost));
    }
}

struct Carrier {
    core: Connection,
    stream: TcpStream,
    done_to: mpsc::UnboundedSender<Done>,
    done: mpsc::UnboundedReceiver<Done>,
    place: Place,
    seat: Seat,
    /// For the next request, before sleeping.
    eagerness: Eagerness,
    /// With a device, on this thread.
    patience: Eagerness,
    /// Those that had come when it last slept.
    commands: u64,
    /// It woke because something came.
    received: bool,
    /// Something was received since the timer last rang.
    heard: bool,
    /// Our questions since then.
    pings: u32,
}

impl Carrier {
    async fn run(&mut self, end: CancellationToken, login_timeout: Duration, ping_every: Duration) {
        let mut ended = pin!(end.cancelled());
        let mut deadline = pin!(tokio::time::sleep(login_timeout));
        let (mut lingering, mut asked, mut pinging) = (false, false, false);
        loop {
            self.core.process();
            self.start_jobs();
            if let Some(penalty) = self.core.take_penalty() {
                // the place is kept although the client may have gone: guessing takes its time
                let _ = tokio::time::timeout(penalty, end.cancelled()).await;
            }
            let willing = self.core.willing();
            if self.send().is_err() {
                return;
            }
            if !willing && self.core.willing() {
                continue; // there is room for answers again: what was received goes on
            }
            if self.core.is_closing() && self.core.outgoing().is_empty() {
                return;
            }
            if self.core.is_closing() && !lingering {
                lingering = true;
                deadline.as_mut().reset(tokio::time::Instant::now() + LINGER);
            }
            if self.core.is_logged_in() && !lingering && !asked && !pinging {
                pinging = true;
                let silence = self.logged_in(ping_every);
                deadline.as_mut().reset(tokio::time::Instant::now() + silence);
            }
            let event = match self.look_for_more() {
                Some(event) => event,
                None => {
                    let event = poll_fn(|cx| {
                        let ended = if asked { None } else { Some(ended.as_mut()) };
                        self.poll_event(cx, ended, deadline.as_mut())
                    });
                    event.await
                }
            };
            self.received = matches!(event, Event::Received(_));
            match event {
                Event::Received(Ok(0) | Err(_)) => return,
                Event::TimedOut if asked && !lingering => {
                    self.core.announce_drop();
                    self.core.close();
                }
                Event::TimedOut if lingering || !self.core.is_logged_in() => return,
                Event::TimedOut if self.core.is_discovery() => return,
                Event::TimedOut if !self.ask_if_there() => return,
                Event::TimedOut => pinging = false,
                Event::Received(Ok(bytes)) => {
                    self.heard = true;
                    self.core.received(bytes);
                }
                Event::Done(done) => self.core.completed(done),
                Event::End if self.core.ask_to_leave(LOGOUT_SECONDS) => {
                    asked = true;
                    let wait = Duration::from_secs(LOGOUT_SECONDS.into());
                    deadline.as_mut().reset(tokio::time::Instant::now() + wait);
                }
                Event::End => self.core.close(),
                Event::Writable => {}
            }
            self.take_done();
        }
    }

    /// The login has succeeded: how long it may be silent. A discovery session keeps its place
    /// among the half-open, as it is counted nowhere else; it has its time, and is not asked
    /// whether it is there.
    fn logged_in(&mut self, ping_every: Duration) -> Duration {
        if self.core.is_discovery() {
            return DISCOVERY_TIME;
        }
        self.place.logged_in();
        ping_every
    }

    fn take_done(&mut self) {
        while let Ok(done) = self.done.try_recv() {
            self.core.completed(done);
        }
    }

    /// A client that sends one command at a time, and nobody else on this thread.
    fn is_single(&self) -> bool {
        self.received && self.core.commands() - self.commands <= 1 && self.seat.is_alone()
    }

    /// What comes within a moment, before sleeping.
    fn look_for_more(&mut self) -> Option<Event> {
        let idle = self.core.running_jobs() == 0
            && self.core.outgoing().is_empty()
            && self.core.is_drained()
            && self.core.willing();
        let single = self.is_single();
        self.commands = self.core.commands();
        if !idle || !single {
            return None;
        }
        let (stream, core) = (&self.stream, &mut self.core);
        let found = self.eagerness.poll(|| receive_now(stream, core.space()));
        found.transpose().map(Event::Received)
    }

    fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
        ended: Option<Pin<&mut impl Future>>,
        timer: Pin<&mut tokio::time::Sleep>,
    ) -> Poll<Event> {
        if self.core.willing() {
            let mut space = ReadBuf::new(self.core.space());
            if let Poll::Ready(result) = Pin::new(&mut self.stream).poll_read(cx, &mut space) {
                let bytes = space.filled().len();
                return Poll::Ready(Event::Received(result.map(|()| bytes)));
            }
        }
        if let Poll::Ready(Some(done)) = self.done.poll_recv(cx) {
            return Poll::Ready(Event::Done(done));
        }
        let sending = !self.core.outgoing().is_empty();
        if sending && self.stream.poll_write_ready(cx).is_ready() {
            return Poll::Ready(Event::Writable);
        }
        let ended = ended.filter(|_| !self.core.is_closing());
        if ended.is_some_and(|ended| ended.poll(cx).is_ready()) {
            return Poll::Ready(Event::End);
        }
        timer.poll(cx).map(|()| Event::TimedOut)
    }

    /// After a silence: asks the initiator. False: it has not answered lately.
    fn ask_if_there(&mut self) -> bool {
        // while we do not read from it, it cannot be heard
        if std::mem::take(&mut self.heard) || !self.core.willing() {
            self.pings = 0;
            return true;
        }
        self.pings += 1;
        self.core.ping();
        self.pings <= MAX_PINGS
    }

    /// Sends what the socket takes at once.
    fn send(&mut self) -> io::Result<()> {
        let out = self.core.outgoing();
        while !out.is_empty() {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let count = out.slices(&mut slices);
            // a plain write is cheaper than a vectored one of one slice
            let sent = match slices.get(..count).unwrap_or_default() {
                [one] => self.stream.try_write(one),
                many => self.stream.try_write_vectored(many),
            };
            match sent {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => out.advance(bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn start_jobs(&mut self) {
        while let Some(job) = self.core.next_job() {
            let report = Report { to: self.done_to.clone(), done: Done::Lost };
            match self.may_wait_here(&job) {
                true => self.wait_here(job, report),
                false => drop(tokio::task::spawn_blocking(move || report.run(job))),
            }
        }
    }

    /// A client that sends one command at a time has nothing that could be done meanwhile; then
    /// the way to another thread and back would only be added to the device's time.
    fn may_wait_here(&mut self, job: &Job) -> bool {
        self.is_single()
            && self.core.running_jobs() == 1
            && self.core.outgoing().is_empty()
            && self.core.is_drained()
            && self.core.willing()
            && job.is_short()
            && self.patience.try_now()
    }

    /// Does it on this thread, and sees whether the client sent more in the meantime.
    fn wait_here(&mut self, job: Job, report: Report) {
        let since = Instant::now();
        {
            let _waiting = self.seat.waiting();
            // one that panics is reported as lost
            let _ = catch_unwind(AssertUnwindSafe(|| report.run(job)));
        }
        // The end of the stream, or an error, will be met again by the next receive.
        let more = receive_now(&self.stream, self.core.space()).ok().flatten().unwrap_or(0);
        self.core.received(more);
        // Meanwhile nothing of the client is heard, its task management neither.
        self.patience.learn(more == 0 && since.elapsed() < QUICK);
        self.take_done();
    }

    /// A session ends when nothing of it runs any more.
    async fn wait_for_jobs(&mut self) {
        while self.core.running_jobs() > 0 {
            match self.done.recv().await {
                Some(done) => self.core.completed(done),
                None => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::portal_address;

    #[test]
    fn discovery_names_what_is_advertised() {
        let local = "127.0.0.1:3260".parse().unwrap();
        for (advertise, expect) in [
            (None, "127.0.0.1:3260"),
            (Some("san.example"), "san.example:3260"),
            (Some("san.example:860"), "san.example:860"),
            (Some("fd00::1"), "[fd00::1]:3260"),
            (Some("[fd00::1]:860"), "[fd00::1]:860"),
        ] {
            assert_eq!(portal_address(advertise, local), expect);
        }
        let mapped = "[::ffff:10.0.0.1]:3260".parse().unwrap();
        assert_eq!(portal_address(None, mapped), "10.0.0.1:3260");
    }
}
