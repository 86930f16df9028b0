//! The client without a socket: requests in, bytes out; bytes in, answers out. Requests outlive
//! connections.
//!
//! Invariants:
//! - A request is in `queue`, in `sent`, or answered; a lost connection puts `sent` back into
//!   `queue`, in the order of their numbers, and they keep their numbers.
//! - Nothing is sent on a new connection before INFO was answered on it: from then on nothing that
//!   was sent on an older one is carried out any more.
//! - `unflushed` holds what was answered and is not known to be durable. Where the server is
//!   another run of itself it is written again, one after the other, before anything else.
//!
//! Times are counted from any fixed origin; the caller hands in `now`.

use super::super::codec::{forget_sent, Frame, Packet, PacketCodec};
use super::super::wire::{info, snap, Handle, Header, OpCode, Status, MAX_DATA_BYTES};
use super::super::xml::{self, Element};
use super::login::{Greeting, Login, Next};
use bytes::{Bytes, BytesMut};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;
use tokio_util::codec::Decoder;

/// Requests under way on one connection.
const MAX_SENT: usize = 64;
/// Written and not flushed: more is flushed by the client itself.
const MAX_UNFLUSHED_BYTES: usize = 64 << 20;
/// A connection on which nothing is heard is asked for a sign of life after this, …
const ASK_AFTER: Duration = Duration::from_secs(5);
/// … and given up after this.
const SILENCE: Duration = Duration::from_secs(10);
/// A request without an answer on a connection that lives: longer than the longest pause.
const REPLY_TIME: Duration = Duration::from_secs(60);
/// The first pause before a further attempt to connect; it doubles.
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(2);
/// Failures of one address before the next is tried.
const FAILURES_OF_AN_ADDRESS: u32 = 2;
/// How often what came corrupted is sent again.
const MAX_CORRUPTED: u32 = 5;
/// What must not be done twice and is still being done is asked for again after this …
const BUSY_PAUSE: Duration = Duration::from_millis(200);
/// … so many times.
const MAX_BUSY: u32 = 50;

/// What is asked for. Offsets and lengths in bytes.
#[derive(Debug, Clone)]
pub enum Request {
    /// All objects; needs none to be open.
    List,
    /// At most `xferSize`, at a whole block.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u32,
    },
    /// The same.
    Write {
        /// First byte.
        offset: u64,
        /// The data.
        data: Bytes,
    },
    /// A sub-command of SNAP.
    Snap {
        /// Which.
        sub: u32,
        /// The snapshot; empty where the server names it.
        name: String,
    },
    /// A message.
    Message(Element),
    /// Reads the opaque data.
    ReadOpaque,
    /// Replaces them.
    WriteOpaque(Bytes),
}

impl Request {
    fn op(&self) -> OpCode {
        match self {
            Request::List => OpCode::Info,
            Request::Read { .. } => OpCode::Read,
            Request::Write { .. } => OpCode::Write,
            Request::Snap { .. } => OpCode::Snap,
            Request::Message(_) => OpCode::Msg,
            Request::ReadOpaque => OpCode::ReadOpaque,
            Request::WriteOpaque(_) => OpCode::WriteOpaque,
        }
    }

    fn is_flush(&self) -> bool {
        matches!(self, Request::Message(message) if message.get("name") == Some("flush"))
    }

    fn is_unmap(&self) -> bool {
        matches!(self, Request::Message(message) if message.get("name") == Some("unmap"))
    }
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The server's answer.
    #[error("{0}")]
    Status(Status),
    /// INFO was refused: this block size would do.
    #[error("the object needs an nbs-block-size of {0}")]
    NeedsBlockSize(u64),
    /// No server answered in time.
    #[error("no server answered in time{0}")]
    NoAnswer(String),
    /// The client was closed.
    #[error("the client is closed")]
    Closed,
}

/// An answer.
pub type Answer = Result<Bytes, ClientError>;

/// What INFO told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObjectInfo {
    /// Unit of offsets.
    pub block_bytes: u32,
    /// Capacity in them.
    pub blocks: u64,
    /// It may be written to.
    pub writable: bool,
    /// A write is durable when it is answered.
    pub write_through: bool,
    /// Longest data of a request.
    pub transfer_bytes: u32,
    /// The run of the server.
    pub server: String,
}

impl ObjectInfo {
    /// Capacity in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.blocks.saturating_mul(u64::from(self.block_bytes))
    }

    fn of(reply: &Element) -> Option<ObjectInfo> {
        let block_bytes: u32 =
            reply.number("BlkSize").filter(|bytes: &u32| (1..=MAX_DATA_BYTES).contains(bytes))?;
        let transfer: u32 = reply.number("xferSize")?;
        Some(ObjectInfo {
            block_bytes,
            blocks: reply.number("NumBlks")?,
            writable: reply.flag("rw"),
            write_through: reply.flag("tws"),
            transfer_bytes: (transfer.min(MAX_DATA_BYTES) / block_bytes).max(1) * block_bytes,
            server: reply.get("server").unwrap_or_default().to_owned(),
        })
    }
}

/// What a client is to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// Servers, the preferred one first; at least one.
    pub addresses: Vec<SocketAddr>,
    /// What it proves itself by.
    pub login: Option<Login>,
    /// The object; `None`: only LIST can be asked for.
    pub object: Option<String>,
    /// Tells it apart from others of its name: random, at most 64 bytes.
    pub instance: String,
    /// How long a request may take over all attempts.
    pub patience: Duration,
}

#[derive(Debug, Clone)]
struct Pending {
    ticket: Option<u64>,
    seq: u32,
    request: Request,
    until: Duration,
    sent_at: Duration,
    /// Not to be sent before.
    not_before: Duration,
    corrupted: u32,
    busy: u32,
    /// Of a flush: what had been answered when it was sent.
    covers: u64,
}

#[derive(Debug)]
enum State {
    Away { until: Duration },
    Connecting,
    Greeting(Greeting),
    Opening,
    Replaying { at: usize, packet: u32 },
    Ready,
}

/// The client.
#[derive(Debug)]
pub struct Core {
    options: Options,
    state: State,
    address: usize,
    failures: u32,
    /// Attempts since a connection was last ready.
    attempts: u32,
    why: String,
    codec: PacketCodec,
    generation: u32,
    handle: Handle,
    last_packet: u32,
    last_seq: u32,
    last_ticket: u64,
    heard: Duration,
    asked: bool,
    queue: VecDeque<Pending>,
    sent: BTreeMap<u32, Pending>,
    /// In the order in which they were answered, with their number in it.
    unflushed: VecDeque<(u64, Request)>,
    unflushed_bytes: usize,
    answered: u64,
    flushing: bool,
    info: Option<ObjectInfo>,
    /// Waiters for the first INFO.
    openers: Vec<(u64, Duration)>,
    out: VecDeque<Bytes>,
    done: Vec<(u64, Answer)>,
}

impl Core {
    /// A client that has to connect.
    pub fn new(options: Options) -> Core {
        Core {
            options,
            state: State::Away { until: Duration::ZERO },
            address: 0,
            failures: 0,
            attempts: 0,
            why: String::new(),
            codec: PacketCodec { max_data_bytes: MAX_DATA_BYTES, trailer: false },
            generation: 0,
            handle: Handle::default(),
            last_packet: 0,
            last_seq: 0,
            last_ticket: 0,
            heard: Duration::ZERO,
            asked: false,
            queue: VecDeque::new(),
            sent: BTreeMap::new(),
            unflushed: VecDeque::new(),
            unflushed_bytes: 0,
            answered: 0,
            flushing: false,
            info: None,
            openers: Vec::new(),
            out: VecDeque::new(),
            done: Vec::new(),
        }
    }

    /// Asks for something; the answer comes by [`Core::take_done`] under this ticket.
    pub fn submit(&mut self, request: Request, now: Duration) -> u64 {
        self.last_ticket += 1;
        let until = now + self.options.patience;
        self.enqueue(Some(self.last_ticket), request, until);
        self.pump(now);
        self.last_ticket
    }

    /// The same for what INFO told: as soon as the object was open once.
    pub fn submit_open(&mut self, now: Duration) -> u64 {
        self.last_ticket += 1;
        match self.info.is_some() {
            true => self.done.push((self.last_ticket, Ok(Bytes::new()))),
            false => self.openers.push((self.last_ticket, now + self.options.patience)),
        }
        self.last_ticket
    }

    fn enqueue(&mut self, ticket: Option<u64>, request: Request, until: Duration) {
        self.last_seq = self.last_seq.wrapping_add(1);
        self.queue.push_back(Pending {
            ticket,
            seq: self.last_seq,
            request,
            until,
            sent_at: Duration::ZERO,
            not_before: Duration::ZERO,
            corrupted: 0,
            busy: 0,
            covers: 0,
        });
    }

    /// What INFO told last.
    pub fn info(&self) -> Option<&ObjectInfo> {
        self.info.as_ref()
    }

    /// Whether everything that was asked for is answered.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.sent.is_empty()
    }

    /// Answers that are there.
    pub fn take_done(&mut self) -> Vec<(u64, Answer)> {
        std::mem::take(&mut self.done)
    }

    /// What is to be sent.
    pub fn unsent(&self) -> &VecDeque<Bytes> {
        &self.out
    }

    /// So many bytes of it were sent.
    pub fn was_sent(&mut self, count: usize) {
        forget_sent(&mut self.out, count);
    }

    /// Where to connect to, if that is to be done now.
    pub fn connect_to(&mut self, now: Duration) -> Option<SocketAddr> {
        match self.state {
            State::Away { until } if until <= now => {
                self.state = State::Connecting;
                self.options.addresses.get(self.address).copied()
            }
            _ => None,
        }
    }

    /// The connection stands.
    pub fn connected(&mut self, now: Duration) {
        self.generation += 1;
        self.handle = Handle::default();
        self.heard = now;
        self.asked = false;
        self.state = State::Greeting(Greeting::default());
        let first = Greeting::first(self.options.login.as_ref());
        self.put(OpCode::Auth, 0, &first);
    }

    /// The connection, or the attempt, is over.
    pub fn lost(&mut self, why: &str, now: Duration) {
        self.why = format!(": {why}");
        self.out.clear();
        let mut back: Vec<Pending> = std::mem::take(&mut self.sent).into_values().collect();
        back.sort_by_key(|pending| std::cmp::Reverse(pending.seq));
        back.into_iter().for_each(|pending| self.queue.push_front(pending));
        self.failures += 1;
        if self.failures >= FAILURES_OF_AN_ADDRESS {
            self.failures = 0;
            self.address = (self.address + 1) % self.options.addresses.len().max(1);
        }
        let backoff = FIRST_BACKOFF.saturating_mul(1 << self.attempts.min(8)).min(MAX_BACKOFF);
        // The first time at once: most often the server is there again, or the next one is.
        let wait = if self.attempts == 0 { Duration::ZERO } else { backoff };
        self.attempts = self.attempts.saturating_add(1);
        self.state = State::Away { until: now + wait };
    }

    /// Whether the connection is to be kept; to be called when [`Core::wake_at`] is reached, and
    /// after anything else.
    pub fn tick(&mut self, now: Duration) -> bool {
        self.give_up_late(now);
        self.pump(now);
        if matches!(self.state, State::Away { .. } | State::Connecting) {
            return true;
        }
        let oldest = self.sent.values().map(|pending| pending.sent_at).min();
        let late = oldest.is_some_and(|sent_at| now >= sent_at + REPLY_TIME);
        if late || now >= self.heard + SILENCE {
            return false;
        }
        if matches!(self.state, State::Ready) && now >= self.heard + ASK_AFTER && !self.asked {
            self.asked = true;
            let header = self.header(OpCode::NoOp, 0);
            self.send(header, Bytes::new());
        }
        true
    }

    /// When [`Core::tick`] has something to do, unless something else happens first.
    pub fn wake_at(&self, now: Duration) -> Duration {
        let away = match self.state {
            State::Away { until } => Some(until),
            _ => None,
        };
        let held = self.queue.iter().filter(|it| it.not_before > now).map(|it| it.not_before).min();
        let soon = now + Duration::from_secs(1);
        [away, held].into_iter().flatten().fold(soon, Duration::min)
    }

    fn give_up_late(&mut self, now: Duration) {
        let why = self.why.clone();
        let late = |pending: &Pending| pending.ticket.is_some() && pending.until <= now;
        let error = || Err(ClientError::NoAnswer(why.clone()));
        let all = std::mem::take(&mut self.queue).into_iter();
        let (gone, kept): (VecDeque<Pending>, VecDeque<Pending>) = all.partition(late);
        self.queue = kept;
        self.done.extend(gone.into_iter().filter_map(|it| Some((it.ticket?, error()))));
        for (ticket, until) in std::mem::take(&mut self.openers) {
            match until <= now {
                true => self.done.push((ticket, error())),
                false => self.openers.push((ticket, until)),
            }
        }
    }

    /// Takes what was received. An error: the connection is of no use any more.
    pub fn receive(&mut self, received: &mut BytesMut, now: Duration) -> Result<(), String> {
        loop {
            match self.codec.decode(received).map_err(|error| error.to_string())? {
                None => break,
                Some(Frame::Packet(packet)) => {
                    self.heard = now;
                    self.asked = false;
                    self.take(packet, now)?;
                }
                Some(_) => return Err("the server sent what is no packet".to_owned()),
            }
        }
        self.pump(now);
        Ok(())
    }

    fn take(&mut self, packet: Packet, now: Duration) -> Result<(), String> {
        let status = Status::of(packet.header.status);
        match &mut self.state {
            State::Greeting(greeting) => {
                let reply = element(&packet, status);
                let login = self.options.login.as_ref();
                match reply.and_then(|reply| greeting.step(&reply, login)) {
                    Ok(Next::Ask(request)) => self.put(OpCode::Auth, 0, &request),
                    Ok(Next::In) => self.entered(now),
                    Err(status) => return Err(self.refused(ClientError::Status(status))),
                }
                Ok(())
            }
            State::Opening => self.opened(&packet, status, now),
            State::Replaying { at, packet: awaited } if *awaited == packet.header.packet => {
                let next = *at + 1;
                match status {
                    Status::Ok => self.replay(next, now),
                    _ => return Err(format!("what was not durable cannot be written: {status}")),
                }
                Ok(())
            }
            State::Ready => self.answer(packet, status, now),
            _ => Ok(()),
        }
    }

    /// Nobody will be let in here soon: who waits is told. The connection ends.
    fn refused(&mut self, error: ClientError) -> String {
        let text = error.to_string();
        self.failures = FAILURES_OF_AN_ADDRESS; // the next address may know better
        let others = self.attempts as usize + 1 < self.options.addresses.len();
        if !others && self.info.is_none() {
            let waiting = std::mem::take(&mut self.openers).into_iter().map(|(ticket, _)| ticket);
            let queued = std::mem::take(&mut self.queue).into_iter().filter_map(|it| it.ticket);
            let all: Vec<u64> = waiting.chain(queued).collect();
            self.done.extend(all.into_iter().map(|ticket| (ticket, Err(error.clone()))));
        }
        text
    }

    fn entered(&mut self, now: Duration) {
        let Some(object) = self.options.object.clone() else {
            return self.ready(now);
        };
        let request = Element::new("nbsInfoRqst").with("nbsId", object);
        let request = request.with("client", &self.options.instance);
        self.state = State::Opening;
        self.put(OpCode::Info, info::INFO, &request);
    }

    fn opened(&mut self, packet: &Packet, status: Status, now: Duration) -> Result<(), String> {
        let reply = xml::parse(&packet.data);
        match status {
            Status::Ok => {}
            Status::Stale => {
                self.generation = self.generation.saturating_add(16);
                return Err("the server knows a newer connection".to_owned());
            }
            Status::Busy | Status::NoMemory => return Err(status.to_string()),
            _ => {
                let needed = reply.and_then(|reply| reply.number("blkSizeNeeded"));
                let error = needed.map(ClientError::NeedsBlockSize);
                return Err(self.refused(error.unwrap_or(ClientError::Status(status))));
            }
        }
        let found = reply.as_ref().and_then(ObjectInfo::of);
        let found = found.ok_or("the server's INFO makes no sense")?;
        if self.info.as_ref().is_some_and(|before| before.block_bytes != found.block_bytes) {
            // What waits was made for blocks of the other size.
            return Err("the object has another block size than before".to_owned());
        }
        self.handle = packet.header.handle;
        let before = self.info.replace(found.clone());
        let openers = std::mem::take(&mut self.openers);
        self.done.extend(openers.into_iter().map(|(ticket, _)| (ticket, Ok(Bytes::new()))));
        match before.is_some_and(|before| before.server != found.server) {
            true => self.replay(0, now),
            false => self.ready(now),
        }
        Ok(())
    }

    /// Writes again what another run of the server may have lost.
    fn replay(&mut self, at: usize, now: Duration) {
        let Some((_, request)) = self.unflushed.get(at).cloned() else {
            return self.ready(now);
        };
        self.last_seq = self.last_seq.wrapping_add(1);
        let packet = self.send_request(&request, self.last_seq);
        self.state = State::Replaying { at, packet };
    }

    fn ready(&mut self, now: Duration) {
        self.state = State::Ready;
        self.pump(now);
    }

    /// Sends what may be sent.
    fn pump(&mut self, now: Duration) {
        if !matches!(self.state, State::Ready) {
            return;
        }
        let mut held = VecDeque::new();
        while self.sent.len() < MAX_SENT {
            let Some(mut pending) = self.queue.pop_front() else { break };
            if pending.not_before > now {
                held.push_back(pending);
                continue;
            }
            pending.sent_at = now;
            pending.covers = self.answered;
            let packet = self.send_request(&pending.request, pending.seq);
            self.sent.insert(packet, pending);
        }
        held.append(&mut self.queue);
        self.queue = held;
    }

    fn answer(&mut self, packet: Packet, status: Status, now: Duration) -> Result<(), String> {
        let found = self.sent.remove(&packet.header.packet);
        if status != Status::Stale {
            // Only now the address has proved good: to let in and then say nothing is a failure.
            (self.failures, self.attempts) = (0, 0);
            self.why.clear();
        }
        let Some(mut pending) = found else {
            return Ok(()); // a sign of life
        };
        match status {
            Status::Stale => {
                self.sent.insert(packet.header.packet, pending);
                return Err("the server has forgotten this connection".to_owned());
            }
            Status::CrcError if pending.corrupted < MAX_CORRUPTED => {
                pending.corrupted += 1;
                self.queue.push_front(pending);
            }
            Status::Busy if pending.request.op().is_once() && pending.busy < MAX_BUSY => {
                pending.busy += 1;
                pending.not_before = now + BUSY_PAUSE;
                self.queue.push_front(pending);
            }
            Status::Ok => self.succeeded(pending, packet.data, now),
            status => self.tell(pending.ticket, Err(ClientError::Status(status))),
        }
        Ok(())
    }

    fn succeeded(&mut self, pending: Pending, data: Bytes, now: Duration) {
        let short = match &pending.request {
            Request::Read { length, .. } => data.len() != *length as usize,
            _ => false,
        };
        if short {
            return self.tell(pending.ticket, Err(ClientError::Status(Status::IoError)));
        }
        if pending.request.is_flush() {
            self.flushing &= pending.ticket.is_some();
            self.flushed(pending.covers);
        } else if matches!(pending.request, Request::Snap { sub: snap::RESTORE, .. }) {
            // What was written before is no part of the object any more.
            self.flushed(pending.covers);
        } else {
            self.remember(&pending.request, now);
        }
        self.tell(pending.ticket, Ok(data));
    }

    fn tell(&mut self, ticket: Option<u64>, answer: Answer) {
        self.done.extend(ticket.map(|ticket| (ticket, answer)));
    }

    /// What was answered before a flush was sent is durable now.
    fn flushed(&mut self, covers: u64) {
        while let Some((number, _)) = self.unflushed.front() {
            if *number > covers {
                break;
            }
            if let Some((_, request)) = self.unflushed.pop_front() {
                self.unflushed_bytes -= held_bytes(&request);
            }
        }
    }

    fn remember(&mut self, request: &Request, now: Duration) {
        let volatile = !self.info.as_ref().is_some_and(|info| info.write_through);
        let changes = matches!(request, Request::Write { .. }) || request.is_unmap();
        if !(volatile && changes) {
            return;
        }
        self.answered += 1;
        self.unflushed.push_back((self.answered, request.clone()));
        self.unflushed_bytes += held_bytes(request);
        if self.unflushed_bytes > MAX_UNFLUSHED_BYTES && !self.flushing {
            self.flushing = true;
            let flush = Request::Message(Element::new("nbsMsg").with("name", "flush"));
            self.enqueue(None, flush, now + self.options.patience);
        }
    }

    fn header(&mut self, op: OpCode, sub: u32) -> Header {
        self.last_packet = self.last_packet.wrapping_add(1);
        Header {
            op: op.request(),
            packet: self.last_packet,
            generation: self.generation,
            handle: self.handle,
            sub,
            ..Header::default()
        }
    }

    fn put(&mut self, op: OpCode, sub: u32, body: &Element) {
        let header = self.header(op, sub);
        self.send(header, body.to_xml().into());
    }

    fn send(&mut self, header: Header, data: Bytes) {
        let pieces = self.codec.packet(&header, data);
        self.out.extend(pieces);
    }

    /// Its packet's number.
    fn send_request(&mut self, request: &Request, seq: u32) -> u32 {
        let sub = match request {
            Request::List => info::LIST,
            Request::Snap { sub, .. } => *sub,
            _ => 0,
        };
        let mut header = Header { seq, ..self.header(request.op(), sub) };
        let packet = header.packet;
        let block = u64::from(self.info.as_ref().map_or(1, |info| info.block_bytes));
        let in_blocks = |offset: &u64| u32::try_from(offset / block).unwrap_or(u32::MAX);
        let data = match request {
            Request::Read { offset, length } => {
                (header.offset, header.data_bytes) = (in_blocks(offset), *length);
                let (head, _) = self.codec.encode(&header, &[]);
                self.out.push_back(head);
                return packet;
            }
            Request::Write { offset, data } => {
                header.offset = in_blocks(offset);
                data.clone()
            }
            Request::WriteOpaque(data) => data.clone(),
            Request::ReadOpaque => Bytes::new(),
            Request::List => Element::new("nbsLstRqst").to_xml().into(),
            Request::Message(message) => message.to_xml().into(),
            Request::Snap { name, .. } => self.snap_body(name).to_xml().into(),
        };
        self.send(header, data);
        packet
    }

    fn snap_body(&self, name: &str) -> Element {
        let object = self.options.object.as_deref().unwrap_or_default();
        let body = Element::new("nbsSnapRqst").with("nbsId", object);
        match name {
            "" => body,
            name => body.with("snapId", name),
        }
    }
}

fn element(packet: &Packet, status: Status) -> Result<Element, Status> {
    match status {
        Status::Ok => xml::parse(&packet.data).ok_or(Status::Invalid),
        status => Err(status),
    }
}

fn held_bytes(request: &Request) -> usize {
    match request {
        Request::Write { data, .. } => data.len() + 64,
        _ => 256,
    }
}
