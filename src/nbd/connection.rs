//! One client's connection: carries bytes between a socket and the sans-I/O parts, and requests to
//! the LUN. What can be answered from memory is answered on the spot, many requests to a receive
//! and many replies to a send; the rest goes to blocking threads.
//!
//! Invariants: nothing is received while the gate is shut (too much unsent, too much in flight), so
//! a client that does not read its replies is not read from; every job in flight ends in exactly
//! one event, and the export is dropped only after the last; a reply is written only after its
//! command has returned, so that a flush, on whatever connection, covers every write that was
//! answered.

use std::io::IoSlice;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::{mpsc, watch, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::buffer::{Buffer, Pool};
use super::directory::{Export, ExportDirectory, Peer};
use super::errors::{Error, WireError};
use super::haggle;
use super::handshake::Terms;
use super::inbox::{Inbox, Incoming, Payload};
use super::outbox::{Outbox, MAX_PIECES};
use super::session::{Session, Sessions, Tally};
use super::stream::Stream;
use super::tls::Tls;
use super::transmission::{self, Command};
use super::wire::Request;
use super::work::{self, Done, Job};
use crate::access::{Place, Shares};
use crate::shards::{Eagerness, Seat};

/// Requests of one connection on blocking threads: enough to keep a device busy, few enough to
/// leave threads to others.
pub const MAX_IN_FLIGHT: usize = 32;
/// Blocking threads that the requests of one client on one export may have: a quarter of those of
/// one [`crate::shards`] thread, so that others are served while these wait.
const THREADS_EACH: usize = 64;
/// Memory of these requests above which no further one is begun.
pub const MAX_IN_FLIGHT_BYTES: usize = 16 << 20;
/// Unsent replies above which no further request is begun.
pub const MAX_UNSENT_BYTES: usize = 1 << 20;
/// Replies are sent when so much has gathered, so that it is still in the processor's cache.
const SEND_AT_BYTES: usize = 128 << 10;
/// Reads above this size leave the receiving thread, even from memory.
const MAX_INLINE_BYTES: u32 = 2 << 20;
/// A handshake needs milliseconds; a person with a tool may need longer.
const HANDSHAKE_TIME: Duration = Duration::from_secs(30);
/// How long a leaving client may take none of its last replies.
const FAREWELL_TIME: Duration = Duration::from_secs(10);

/// What reaches a connection from elsewhere.
#[derive(Debug)]
pub enum Event {
    /// A request is done.
    Done(Done),
    /// A request panicked.
    Broken,
    /// The session shall end.
    Close,
}

enum Woken {
    Received(usize),
    Sendable,
    Event(Event),
}

struct Connection {
    stream: Stream,
    export: Export,
    terms: Terms,
    session: Arc<Session>,
    inbox: Inbox,
    outbox: Outbox,
    pool: Pool,
    events: mpsc::Receiver<Event>,
    report: mpsc::Sender<Event>,
    /// Of the client's requests on this disk.
    threads: Arc<Semaphore>,
    in_flight: usize,
    in_flight_bytes: usize,
    tally: Tally,
    seat: Seat,
    /// For the next request, before sleeping.
    eagerness: Eagerness,
    /// With a device, on this thread.
    patience: Eagerness,
    /// No further request is begun.
    leaving: bool,
}

/// Who came, and the place it takes.
pub struct Guest {
    /// The client.
    pub peer: Peer,
    /// Its place among the connections.
    pub place: Place,
    /// Certificates, where the door has them.
    pub tls: Option<Tls>,
}

/// Serves one client from its first byte to its last.
pub async fn run(
    mut stream: Stream,
    Guest { mut peer, mut place, tls }: Guest,
    directory: Arc<dyn ExportDirectory>,
    (sessions, shares): (&Sessions, &Shares<Semaphore>),
    mut stop: watch::Receiver<bool>,
    seat: Seat,
) -> Result<(), Error> {
    let agreeing = haggle::agree(&mut stream, &directory, tls.as_ref(), &mut peer);
    let agreed = tokio::select! {
        _ = stop.wait_for(|stopped| *stopped) => return Ok(()),
        agreed = timeout(HANDSHAKE_TIME, agreeing) => agreed,
    };
    let agreed = agreed.map_err(|_| Error::HandshakeTimeout(HANDSHAKE_TIME.as_secs()))??;
    let Some((export, terms, leftover)) = agreed else {
        return Ok(());
    };
    place.logged_in();
    let (report, events) = mpsc::channel(MAX_IN_FLIGHT + 2);
    let own = format!("{}\0{}", peer.client(), export.name);
    let threads = shares.of(&own, || Semaphore::new(THREADS_EACH));
    let entry = sessions.enter(peer, &export, report.clone());
    let mut connection = Connection {
        stream,
        export,
        terms,
        session: entry.session().clone(),
        inbox: Inbox::new(&leftover),
        outbox: Outbox::default(),
        pool: Pool::default(),
        events,
        report,
        threads,
        in_flight: 0,
        in_flight_bytes: 0,
        tally: Tally::default(),
        seat,
        eagerness: Eagerness::default(),
        patience: Eagerness::default(),
        leaving: false,
    };
    if *stop.borrow() {
        connection.leave();
    }
    let outcome = connection.serve().await;
    connection.settle().await;
    outcome
}

impl Connection {
    /// The transmission phase.
    async fn serve(&mut self) -> Result<(), Error> {
        loop {
            let all_begun = self.serve_held()?;
            self.send()?;
            if !all_begun && self.gate_is_open() {
                continue;
            }
            if self.leaving && self.in_flight == 0 && !self.has_unsent() {
                self.stream.close();
                return Ok(());
            }
            self.export.io.outstanding(self.in_flight);
            match self.wait().await? {
                Woken::Received(0) => self.end_of_stream()?,
                Woken::Received(count) => self.inbox.received(count),
                Woken::Sendable => {}
                Woken::Event(event) => self.take_event(event)?,
            }
        }
    }

    /// Whether a further request may be begun, and received.
    fn gate_is_open(&self) -> bool {
        !self.leaving
            && self.in_flight < MAX_IN_FLIGHT
            && self.in_flight_bytes < MAX_IN_FLIGHT_BYTES
            && self.outbox.unsent_bytes() < MAX_UNSENT_BYTES
    }

    /// Begins what was received, as far as the gate allows. True: no complete request is left, so
    /// that only receiving can bring the next one.
    fn serve_held(&mut self) -> Result<bool, Error> {
        while self.gate_is_open() {
            let Some(incoming) = self.inbox.next(&mut self.pool)? else {
                return Ok(true);
            };
            self.begin(incoming);
            if self.outbox.unsent_bytes() >= SEND_AT_BYTES {
                self.send()?;
            }
        }
        Ok(false)
    }

    fn begin(&mut self, incoming: Incoming) {
        let Incoming { request, payload } = incoming;
        self.tally.operations += 1;
        match transmission::plan(&request, &self.terms) {
            Ok(Command::Read) => self.read(request),
            Ok(Command::Write { fua }) => return self.write(request, payload, fua),
            Ok(Command::Disconnect) => {
                self.export.io.leaving();
                self.leave();
            }
            Ok(command) => self.hand_over(request, command, None),
            Err(error) => {
                if error == WireError::NotPermitted {
                    self.export.io.write_refused();
                }
                let tail = self.outbox.tail(transmission::MAX_STATUS_BYTES, &mut self.pool);
                let before = tail.filled().len();
                transmission::put_error(tail, &request, &self.terms, error, "refused", None);
                let count = tail.filled().len() - before;
                self.outbox.grown(count);
            }
        }
        self.drop_payload(payload);
    }

    fn drop_payload(&mut self, payload: Payload) {
        match payload {
            Payload::None => {}
            Payload::InPlace => self.inbox.release(),
            Payload::Owned(buffer) => self.pool.give(buffer),
        }
    }

    /// Reads straight into the buffer that is sent from.
    fn read(&mut self, request: Request) {
        if request.length > MAX_INLINE_BYTES {
            return self.hand_over(request, Command::Read, None);
        }
        self.tally.read_bytes += u64::from(request.length);
        let room = work::reply_room(Command::Read, &request, &self.terms);
        let head = transmission::read_head_bytes(&self.terms);
        let tail = self.outbox.tail(room, &mut self.pool);
        let space = tail.space(head + request.length as usize);
        let data = space.get_mut(head..).unwrap_or_default();
        match self.export.io.try_read(request.offset, data) {
            None => self.hand_over(request, Command::Read, None),
            Some(Err(error)) => self.put_block_error(request, Command::Read, &error),
            Some(Ok(())) => {
                let count = transmission::finish_read(space, &request, &self.terms);
                tail.commit(count);
                self.outbox.grown(count);
            }
        }
    }

    /// Writes straight from the buffer that was received into.
    fn write(&mut self, request: Request, payload: Payload, fua: bool) {
        self.tally.written_bytes += u64::from(request.length);
        let command = Command::Write { fua };
        let data = match &payload {
            Payload::None => &[],
            Payload::InPlace => self.inbox.in_place(),
            Payload::Owned(buffer) => buffer.filled(),
        };
        let tried = if fua { None } else { self.export.io.try_write(request.offset, data) };
        match tried {
            None => {
                let buffer = self.own(payload);
                return self.hand_over(request, command, Some(buffer));
            }
            Some(Err(error)) => self.put_block_error(request, command, &error),
            Some(Ok(())) => {
                let room = transmission::MAX_STATUS_BYTES;
                let tail = self.outbox.tail(room, &mut self.pool);
                transmission::put_done(tail, &request);
                self.outbox.grown(super::wire::SIMPLE_REPLY_BYTES);
            }
        }
        self.drop_payload(payload);
    }

    /// The payload in a buffer that can be handed on.
    fn own(&mut self, payload: Payload) -> Buffer {
        match payload {
            Payload::None => Buffer::default(),
            Payload::Owned(buffer) => buffer,
            Payload::InPlace => {
                let data = self.inbox.in_place();
                let mut buffer = self.pool.take(data.len());
                buffer.append(data);
                self.inbox.release();
                buffer
            }
        }
    }

    fn put_block_error(
        &mut self,
        request: Request,
        command: Command,
        error: &crate::lun::BlockError,
    ) {
        let tail = self.outbox.tail(transmission::MAX_STATUS_BYTES, &mut self.pool);
        let before = tail.filled().len();
        work::put_block_error(tail, &request, &self.terms, command, error);
        let count = tail.filled().len() - before;
        self.outbox.grown(count);
    }

    /// Gives a request to a blocking thread.
    fn hand_over(&mut self, request: Request, command: Command, payload: Option<Buffer>) {
        let scratch = work::scratch_room(command, &request);
        let payload = payload.unwrap_or_else(|| match scratch {
            0 => Buffer::default(),
            count => self.pool.take(count),
        });
        let room = work::reply_room(command, &request, &self.terms);
        let job = Job {
            io: self.export.io.clone(),
            terms: self.terms.clone(),
            request,
            command,
            payload,
            reply: self.pool.take(room),
        };
        if self.may_wait_here(&job) {
            return self.wait_here(job);
        }
        self.in_flight += 1;
        self.in_flight_bytes += job.held_bytes();
        let report = self.report.clone();
        // The channel has room for every job in flight: a refusal means that nobody listens any
        // more.
        let run = move |permit: Option<OwnedSemaphorePermit>| {
            let done = catch_unwind(AssertUnwindSafe(|| job.run()));
            let _ = report.try_send(done.map_or(Event::Broken, Event::Done));
            drop(permit);
        };
        match Arc::clone(&self.threads).try_acquire_owned() {
            Ok(permit) => drop(tokio::task::spawn_blocking(move || run(Some(permit)))),
            Err(_) => {
                let permit = Arc::clone(&self.threads).acquire_owned();
                tokio::spawn(async move {
                    let permit = permit.await;
                    tokio::task::spawn_blocking(move || run(permit.ok()))
                });
            }
        }
    }

    /// A client that sends one request at a time has nothing that could be done meanwhile; then the
    /// way to another thread and back would only be added to the device's time.
    fn may_wait_here(&mut self, job: &Job) -> bool {
        self.tally.operations == 1
            && self.in_flight == 0
            && self.seat.is_alone()
            && self.inbox.is_drained()
            && job.is_short()
            && !self.export.io.may_wait_long()
            && self.patience.try_now()
    }

    /// Does it on this thread, and sees whether the client sent more in the meantime.
    fn wait_here(&mut self, job: Job) {
        let done = {
            let _waiting = self.seat.waiting();
            job.run()
        };
        self.outbox.push(done.reply, &mut self.pool);
        self.pool.give(done.payload);
        // The end of the stream, or an error, will be met again by the next receive.
        let more = self.stream.receive_now(self.inbox.space()).ok().flatten().unwrap_or(0);
        self.inbox.received(more);
        self.patience.learn(more == 0);
    }

    fn take_event(&mut self, event: Event) -> Result<(), Error> {
        match event {
            Event::Done(done) => {
                self.in_flight -= 1;
                self.in_flight_bytes = self.in_flight_bytes.saturating_sub(done.held_bytes);
                self.outbox.push(done.reply, &mut self.pool);
                self.pool.give(done.payload);
            }
            Event::Broken => {
                self.in_flight -= 1;
                return Err(Error::Internal);
            }
            Event::Close => {}
        }
        if self.session.is_dropped() {
            self.leave();
        }
        Ok(())
    }

    fn leave(&mut self) {
        self.leaving = true;
    }

    /// The client closed its side: in order only between two requests.
    fn end_of_stream(&mut self) -> Result<(), Error> {
        if self.inbox.is_midway() {
            return Err(Error::Socket(std::io::ErrorKind::UnexpectedEof.into()));
        }
        self.leave();
        Ok(())
    }

    fn send(&mut self) -> Result<(), Error> {
        while self.outbox.unsent_bytes() > 0 {
            let mut pieces = [IoSlice::new(&[]); MAX_PIECES];
            let count = self.outbox.pieces(&mut pieces);
            let sent = self.stream.send(pieces.get(..count).unwrap_or_default())?;
            if sent == 0 {
                break;
            }
            self.outbox.sent(sent, &mut self.pool);
        }
        Ok(self.stream.flush()?)
    }

    fn has_unsent(&self) -> bool {
        self.outbox.unsent_bytes() > 0 || self.stream.has_unsent()
    }

    /// Sleeps until something can be done.
    async fn wait(&mut self) -> Result<Woken, Error> {
        let tally = std::mem::take(&mut self.tally);
        self.session.publish(tally);
        if tally.operations == 1 && self.may_poll() {
            let (stream, space) = (&mut self.stream, self.inbox.space());
            if let Some(count) = self.eagerness.poll(|| stream.receive_now(space))? {
                return Ok(Woken::Received(count));
            }
        }
        if self.leaving && self.in_flight == 0 {
            let woken = timeout(FAREWELL_TIME, self.woken());
            return woken.await.map_err(|_| Error::Dropped)?;
        }
        self.woken().await
    }

    /// A client that sends one request at a time, with nothing else to do on this thread.
    fn may_poll(&self) -> bool {
        let busy = self.in_flight > 0 || self.has_unsent();
        !busy && self.gate_is_open() && self.seat.is_alone()
    }

    async fn woken(&mut self) -> Result<Woken, Error> {
        let open = self.gate_is_open();
        std::future::poll_fn(|context| {
            if let Poll::Ready(Some(event)) = self.events.poll_recv(context) {
                return Poll::Ready(Ok(Woken::Event(event)));
            }
            if open {
                let received = self.stream.poll_receive(context, self.inbox.space());
                if let Poll::Ready(received) = received {
                    return Poll::Ready(received.map(Woken::Received).map_err(Error::from));
                }
            }
            if self.has_unsent() {
                let sendable = self.stream.poll_sendable(context);
                if let Poll::Ready(sendable) = sendable {
                    return Poll::Ready(sendable.map(|()| Woken::Sendable).map_err(Error::from));
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Waits for the jobs still in flight: they hold the export. No reply can be sent any more.
    async fn settle(&mut self) {
        while self.in_flight > 0 {
            match self.events.recv().await {
                Some(Event::Done(_) | Event::Broken) => self.in_flight -= 1,
                Some(Event::Close) => {}
                None => break,
            }
        }
    }
}
