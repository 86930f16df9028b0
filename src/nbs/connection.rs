//! One client's connection without a socket: bytes in, replies and jobs out.
//!
//! What memory can answer is answered where it is received; the rest leaves as [`Job`]s, which the
//! carrier runs on threads of its own and hands back ([`Connection::done`]).
//!
//! Invariants: nothing is taken from what was received while the gate is shut (too much unsent,
//! too much in flight); every request is answered exactly once, or the connection ends; an object
//! is let go of only after the last job that uses it.

use super::auth::{Auth, Step};
use super::codec::{forget_sent, Frame, Packet, PacketCodec, StreamError};
use super::directory::{Client, Kick, Object, ObjectDirectory};
use super::messages::Messages;
use super::requests::{self, Answer};
use super::shares::ClientShares;
use super::wire::{info, Handle, Header, OpCode, Status, MAX_BODY_BYTES, MAX_DATA_BYTES};
use super::xml;
use crate::access::{Limits, Reason, Share};
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio_util::codec::Decoder;

/// Requests of one connection in the hands of threads.
pub const MAX_IN_FLIGHT: usize = 64;
/// Memory of these above which no further request is begun.
pub const MAX_IN_FLIGHT_BYTES: usize = 16 << 20;
/// Unsent replies above which no further request is begun.
pub const MAX_UNSENT_BYTES: usize = 2 << 20;
/// Objects that one connection may have open.
pub const MAX_OBJECTS: usize = 64;
/// Longest name of a client's instance in INFO.
const MAX_INSTANCE_BYTES: usize = 64;

/// What a job waits for among its client's other jobs, before it gets a thread of the door.
#[derive(Debug, Clone)]
pub enum Threads {
    /// It moves data of an object.
    Data(Arc<Semaphore>),
    /// It does not: what is paused must not keep it from being heard.
    Order(Arc<Semaphore>),
}

/// Work for a thread.
pub struct Job {
    /// What it counts as in flight.
    held_bytes: usize,
    slot: Option<usize>,
    header: Header,
    threads: Threads,
    act: Box<dyn FnOnce() -> Outcome + Send>,
}

/// What came of it.
enum Outcome {
    Answer(Answer),
    Opened(Answer, Box<Opened>),
    NotOpened(Answer, Wish),
}

/// A job that was run.
pub struct JobDone {
    held_bytes: usize,
    slot: Option<usize>,
    header: Header,
    outcome: Outcome,
}

impl Job {
    /// Whose threads it needs one of.
    pub fn threads(&self) -> Threads {
        self.threads.clone()
    }

    /// Runs it; may block for long.
    pub fn run(self) -> JobDone {
        let Job { held_bytes, slot, header, act, .. } = self;
        JobDone { held_bytes, slot, header, outcome: act() }
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Job({:?})", self.header)
    }
}

/// An object of this connection.
struct Opened {
    object: Arc<dyn Object>,
    /// What INFO asked for: asked again, the same handle answers.
    wish: Wish,
    block_bytes: u32,
    threads: Arc<Semaphore>,
    in_flight: usize,
    /// The last RESUME and what it was answered.
    resumed: Option<(u32, Status)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Wish {
    name: String,
    instance: String,
    generation: u32,
}

impl Opened {
    /// Nothing of it is carried out any more, and nothing is under way.
    fn is_over(&self) -> bool {
        self.in_flight == 0 && self.object.is_superseded()
    }
}

enum Stage {
    Auth(Auth),
    In(Client, Arc<Share>),
}

/// How the connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// When all is answered and sent.
    Orderly,
    /// The same, but after a wrong secret: late.
    WrongSecret,
}

/// The server that connections belong to.
pub struct House {
    /// The objects.
    pub directory: Arc<dyn ObjectDirectory>,
    /// What MSG knows.
    pub messages: Messages,
    /// Names this run of the server: a client that meets another one knows that what was not
    /// durable may be lost.
    pub instance: String,
    /// What each client has of it.
    pub shares: ClientShares,
}

/// The state of one connection.
pub struct Connection {
    house: Arc<House>,
    peer: SocketAddr,
    kick: Kick,
    codec: PacketCodec,
    stage: Stage,
    /// Of the client's orders, once it is in.
    orders: Arc<Semaphore>,
    /// Begins every handle of this connection.
    number: [u8; 8],
    /// By the slot that a handle names.
    objects: Vec<Opened>,
    /// INFOs that are being carried out: they count as objects.
    opening: Vec<Wish>,
    out: VecDeque<Bytes>,
    unsent_bytes: usize,
    jobs: Vec<Job>,
    in_flight: usize,
    in_flight_bytes: usize,
    end: Option<End>,
}

impl Connection {
    /// A connection from `peer`; `kick` ends it from elsewhere. `number` is unlike that of any
    /// other connection, of earlier runs too.
    pub fn new(house: Arc<House>, peer: SocketAddr, kick: Kick, number: [u8; 8]) -> Connection {
        Connection {
            house,
            peer,
            kick,
            codec: PacketCodec { max_data_bytes: MAX_BODY_BYTES, trailer: false },
            stage: Stage::Auth(Auth::default()),
            orders: Arc::new(Semaphore::new(1)),
            number,
            objects: Vec::new(),
            opening: Vec::new(),
            out: VecDeque::new(),
            unsent_bytes: 0,
            jobs: Vec::new(),
            in_flight: 0,
            in_flight_bytes: 0,
            end: None,
        }
    }

    /// Takes what was received, as far as the gate allows. An error: nothing behind can be
    /// understood, drop the connection.
    pub fn receive(&mut self, received: &mut BytesMut) -> Result<(), StreamError> {
        while self.gate_is_open() {
            match self.codec.decode(received)? {
                None => break,
                Some(Frame::Packet(packet)) => self.take(packet),
                Some(Frame::Corrupt(header)) => {
                    self.answer(&header, Answer::bare(Status::CrcError))
                }
                Some(Frame::Refused(header)) => {
                    self.answer(&header, Answer::bare(Status::Invalid));
                    self.end = Some(End::Orderly);
                }
            }
        }
        Ok(())
    }

    /// Whether a further request may be begun, and received.
    pub fn gate_is_open(&self) -> bool {
        let (most, share_bytes) = match &self.stage {
            Stage::In(client, share) => {
                let commands = client.limits.map_or(usize::MAX, |limits| limits.commands as usize);
                (commands, share.bytes())
            }
            Stage::Auth(_) => (1, usize::MAX),
        };
        // One request more may come in, and be answered.
        let room = share_bytes.saturating_sub(2 * MAX_DATA_BYTES as usize);
        self.end.is_none()
            && self.in_flight < MAX_IN_FLIGHT.min(most)
            && self.in_flight_bytes < MAX_IN_FLIGHT_BYTES
            && self.unsent_bytes < MAX_UNSENT_BYTES
            && self.in_flight_bytes + self.unsent_bytes < room
    }

    /// Whether it has proved who it is, or need not.
    pub fn is_logged_in(&self) -> bool {
        matches!(self.stage, Stage::In(..))
    }

    /// How it is to end, once it shall.
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// No further request is begun.
    pub fn leave(&mut self) {
        self.end.get_or_insert(End::Orderly);
    }

    /// Work that was not handed out yet.
    pub fn take_jobs(&mut self) -> Vec<Job> {
        std::mem::take(&mut self.jobs)
    }

    /// Jobs that were handed out and are not back.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// What is to be sent, in order.
    pub fn unsent(&self) -> &VecDeque<Bytes> {
        &self.out
    }

    /// So many bytes of it were sent.
    pub fn sent(&mut self, count: usize) {
        self.unsent_bytes = self.unsent_bytes.saturating_sub(count);
        forget_sent(&mut self.out, count);
    }

    /// Takes a job back.
    pub fn done(&mut self, done: JobDone) {
        let JobDone { held_bytes, slot, header, outcome } = done;
        self.in_flight -= 1;
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(held_bytes);
        if let Some(opened) = slot.and_then(|slot| self.objects.get_mut(slot)) {
            opened.in_flight -= 1;
            opened.object.io().outstanding(opened.in_flight);
        }
        match outcome {
            Outcome::Answer(answer) => self.answer(&header, answer),
            Outcome::NotOpened(answer, wish) => {
                self.opening.retain(|one| *one != wish);
                self.answer(&header, answer);
            }
            Outcome::Opened(answer, opened) => {
                self.opening.retain(|one| *one != opened.wish);
                let handle = self.enter(*opened);
                self.put(&header, answer, Some(handle));
            }
        }
    }

    /// Puts an object into the slot of one that is over, or a new one.
    fn enter(&mut self, opened: Opened) -> Handle {
        let slot = self.objects.iter().position(Opened::is_over).unwrap_or(self.objects.len());
        match self.objects.get_mut(slot) {
            Some(own) => *own = opened,
            None => self.objects.push(opened),
        }
        self.handle(slot)
    }

    fn handle(&self, slot: usize) -> Handle {
        let slot = (slot as u64).to_be_bytes();
        let mut handle = [0; 16];
        let bytes = self.number.iter().chain(&slot);
        handle.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        handle
    }

    /// The slot of a handle of this connection.
    fn slot(&self, handle: &Handle) -> Option<usize> {
        (0..self.objects.len()).find(|slot| self.handle(*slot) == *handle)
    }

    fn answer(&mut self, header: &Header, answer: Answer) {
        self.put(header, answer, None);
    }

    fn put(&mut self, header: &Header, answer: Answer, handle: Option<Handle>) {
        for piece in self.codec.reply(header, answer.status, handle, answer.data) {
            self.unsent_bytes += piece.len();
            self.out.push_back(piece);
        }
    }

    fn take(&mut self, packet: Packet) {
        let op = OpCode::of_request(packet.header.op);
        match (&mut self.stage, op) {
            (Stage::Auth(_), Some(OpCode::Auth)) => self.authenticate(&packet),
            (Stage::Auth(_), _) => {
                self.answer(&packet.header, Answer::bare(Status::AccessDenied));
                self.leave();
            }
            (Stage::In(..), None) => {
                self.answer(&packet.header, Answer::bare(Status::Unsupported));
            }
            (Stage::In(..), Some(op)) => self.obey(op, packet),
        }
    }

    fn authenticate(&mut self, packet: &Packet) {
        let Stage::Auth(auth) = &mut self.stage else { return };
        let header = &packet.header;
        match auth.step(&packet.data, self.peer, &*self.house.directory) {
            Step::Reply(reply) => {
                let data = reply.to_xml().into();
                self.answer(header, Answer { status: Status::Ok, data });
            }
            Step::Done(reply, client, data_crc) => {
                let limits = client.limits.unwrap_or_default();
                let share = self.house.shares.memory(&client.label(), &limits);
                if Arc::strong_count(&share) > most_connections(&client) {
                    let directory = Arc::clone(&self.house.directory);
                    directory.refused(&client.label(), self.peer, Reason::Limit);
                    self.answer(header, Answer::bare(Status::Busy));
                    return self.leave();
                }
                let data = reply.to_xml().into();
                self.answer(header, Answer { status: Status::Ok, data });
                self.orders = self.house.shares.orders(&client.label());
                self.stage = Stage::In(client, share);
                self.codec = PacketCodec { max_data_bytes: MAX_DATA_BYTES, trailer: data_crc };
            }
            Step::Refuse { status, wrong_secret } => {
                self.answer(header, Answer::bare(status));
                self.end = Some(if wrong_secret { End::WrongSecret } else { End::Orderly });
            }
        }
    }

    fn obey(&mut self, op: OpCode, packet: Packet) {
        let header = packet.header;
        let carried = match op {
            OpCode::Read | OpCode::ReadOpaque => 0,
            _ => header.data_bytes as usize,
        };
        // What is no data is XML.
        let is_long = packet.data.len() > MAX_BODY_BYTES as usize && op != OpCode::Write;
        if carried != packet.data.len() || is_long {
            return self.answer(&header, Answer::bare(Status::Invalid));
        }
        match op {
            OpCode::NoOp => self.answer(&header, Answer::bare(Status::Ok)),
            OpCode::Auth => self.answer(&header, Answer::bare(Status::Invalid)),
            OpCode::Info => self.info(header, &packet.data),
            _ => match self.find(&header) {
                Err(status) => self.answer(&header, Answer::bare(status)),
                Ok(slot) => self.act(op, header, slot, packet.data),
            },
        }
    }

    /// The object of a request, if it may be carried out on this connection.
    fn find(&self, header: &Header) -> Result<usize, Status> {
        if header.handle == Handle::default() {
            return Err(Status::NoSuchObject);
        }
        let slot = self.slot(&header.handle).ok_or(Status::Stale)?;
        let opened = self.objects.get(slot).ok_or(Status::Stale)?;
        if opened.object.is_superseded() || header.generation < opened.wish.generation {
            return Err(Status::Stale);
        }
        match header.generation == opened.wish.generation {
            true => Ok(slot),
            false => Err(Status::Invalid),
        }
    }

    fn info(&mut self, header: Header, body: &[u8]) {
        let Stage::In(client, _) = &self.stage else { return };
        let (client, house) = (client.clone(), Arc::clone(&self.house));
        if header.sub == info::LIST {
            let list = move || Outcome::Answer(requests::list(&*house.directory, &client));
            return self.hand_out(header, None, MAX_DATA_BYTES as usize, false, Box::new(list));
        }
        let request = xml::parse(body).filter(|request| request.name == "nbsInfoRqst");
        let named = request.as_ref().and_then(|request| {
            let instance = request.get("client").unwrap_or_default();
            let name = request.get("nbsId").filter(|_| instance.len() <= MAX_INSTANCE_BYTES)?;
            Some((name.to_owned(), instance.to_owned()))
        });
        let Some((name, instance)) = named.filter(|_| header.sub == info::INFO) else {
            return self.answer(&header, Answer::bare(Status::Invalid));
        };
        let wish = Wish { name, instance, generation: header.generation };
        if let Some(slot) = self.opened_as(&wish) {
            return self.describe(&header, slot);
        }
        if self.opening.contains(&wish) {
            return self.answer(&header, Answer::bare(Status::Busy));
        }
        let used = self.objects.iter().filter(|own| !own.is_over()).count();
        if used + self.opening.len() >= MAX_OBJECTS {
            return self.answer(&header, Answer::bare(Status::NoMemory));
        }
        self.opening.push(wish.clone());
        let kick = Arc::clone(&self.kick);
        let open = move || open(&house, &client, wish, kick);
        self.hand_out(header, None, 0, false, Box::new(open));
    }

    fn opened_as(&self, wish: &Wish) -> Option<usize> {
        let is = |own: &Opened| own.wish == *wish && !own.object.is_superseded();
        self.objects.iter().position(is)
    }

    /// INFO of what is open already: its figures of now, the same handle.
    fn describe(&mut self, header: &Header, slot: usize) {
        let Some(opened) = self.objects.get_mut(slot) else { return };
        let facts = opened.object.facts();
        opened.block_bytes = facts.block_bytes;
        let answer = requests::describe_opened(&facts, &self.house.instance);
        let handle = self.handle(slot);
        self.put(header, answer, Some(handle));
    }

    fn hand_out(
        &mut self,
        header: Header,
        slot: Option<usize>,
        held_bytes: usize,
        is_data: bool,
        act: Box<dyn FnOnce() -> Outcome + Send>,
    ) {
        self.in_flight += 1;
        self.in_flight_bytes += held_bytes;
        let mut threads = Threads::Order(Arc::clone(&self.orders));
        if let Some(opened) = slot.and_then(|slot| self.objects.get_mut(slot)) {
            opened.in_flight += 1;
            opened.object.io().outstanding(opened.in_flight);
            if is_data {
                threads = Threads::Data(Arc::clone(&opened.threads));
            }
        }
        self.jobs.push(Job { held_bytes, slot, header, threads, act });
    }

    fn act(&mut self, op: OpCode, header: Header, slot: usize, data: Bytes) {
        let Some(opened) = self.objects.get(slot) else { return };
        let object = Arc::clone(&opened.object);
        match op {
            OpCode::Read => self.read(header, slot, object),
            OpCode::Write => self.write(header, slot, object, data),
            OpCode::Resume => self.resume(&header, slot, &*object),
            OpCode::ReadOpaque => {
                let read = move || Outcome::Answer(requests::read_opaque(&*object));
                let held = MAX_BODY_BYTES as usize;
                self.hand_out(header, Some(slot), held, false, Box::new(read));
            }
            _ => {
                let (house, held) = (Arc::clone(&self.house), data.len());
                let is_data = op == OpCode::Msg && requests::is_data(&data);
                let once = move || {
                    let book = house.directory.once();
                    let answer = requests::once(book, &*object, &house.messages, &header, &data);
                    Outcome::Answer(answer)
                };
                self.hand_out(header, Some(slot), held, is_data, Box::new(once));
            }
        }
    }

    /// The first byte of a range; it must lie inside what INFO told.
    fn range(&self, slot: usize, header: &Header) -> Result<u64, Status> {
        let opened = self.objects.get(slot).ok_or(Status::Stale)?;
        match header.data_bytes {
            0 => return Err(Status::Invalid),
            long if long > MAX_DATA_BYTES => return Err(Status::Invalid),
            _ => {}
        }
        let block = u64::from(opened.block_bytes);
        let offset = u64::from(header.offset) * block;
        let end = offset + u64::from(header.data_bytes);
        let capacity = opened.object.io().geometry().size_bytes / block * block;
        match end <= capacity {
            true => Ok(offset),
            false => Err(Status::OutOfRange),
        }
    }

    fn read(&mut self, header: Header, slot: usize, object: Arc<dyn Object>) {
        let offset = match self.range(slot, &header) {
            Ok(offset) => offset,
            Err(status) => return self.answer(&header, Answer::bare(status)),
        };
        let length = header.data_bytes as usize;
        let mut data = vec![0; length];
        match object.io().try_read(offset, &mut data) {
            Some(read) => {
                let answer = read_answer(&*object, read, data);
                self.answer(&header, answer);
            }
            None => {
                let read = move || {
                    let read = object.io().read(offset, &mut data);
                    Outcome::Answer(read_answer(&*object, read, data))
                };
                self.hand_out(header, Some(slot), length, true, Box::new(read));
            }
        }
    }

    fn write(&mut self, header: Header, slot: usize, object: Arc<dyn Object>, data: Bytes) {
        let offset = match self.range(slot, &header) {
            Ok(offset) => offset,
            Err(status) => return self.answer(&header, Answer::bare(status)),
        };
        match object.io().try_write(offset, &data) {
            Some(written) => {
                let answer = write_answer(&*object, written);
                self.answer(&header, answer);
            }
            None => {
                let held = data.len();
                let write = move || {
                    let written = object.io().write(offset, &data, false);
                    Outcome::Answer(write_answer(&*object, written))
                };
                self.hand_out(header, Some(slot), held, true, Box::new(write));
            }
        }
    }

    /// Done where it is received: writers that fill all threads must not keep it from being heard.
    fn resume(&mut self, header: &Header, slot: usize, object: &dyn Object) {
        let Some(opened) = self.objects.get_mut(slot) else { return };
        let status = match opened.resumed {
            Some((seq, status)) if seq == header.seq => status,
            _ if object.resume() => Status::Ok,
            _ => Status::Invalid,
        };
        opened.resumed = Some((header.seq, status));
        self.answer(header, Answer::bare(status));
    }

    /// Notes a client that was turned away before it said anything.
    pub fn refuse_flood(house: &House, peer: SocketAddr) {
        house.directory.refused("", peer, Reason::Flood);
    }
}

/// Connections that a client may have: as many as sessions, those that it has lost without our
/// knowledge, and some that open nothing.
fn most_connections(client: &Client) -> usize {
    let sessions = client.limits.map_or(Limits::MAX_SESSIONS / 2, |limits| limits.sessions);
    2 * sessions as usize + 4
}

fn open(house: &House, client: &Client, wish: Wish, kick: Kick) -> Outcome {
    let found = house.directory.open(client, &wish.name, &wish.instance, wish.generation, kick);
    let object = match found {
        Ok(object) => object,
        Err(status) => return Outcome::NotOpened(Answer::bare(status), wish),
    };
    let facts = object.facts();
    let answer = requests::describe_opened(&facts, &house.instance);
    if answer.status != Status::Ok {
        object.io().leaving();
        return Outcome::NotOpened(answer, wish);
    }
    let block_bytes = facts.block_bytes;
    let threads = house.shares.threads(&client.label(), &facts.name);
    let opened = Opened { object, wish, block_bytes, threads, in_flight: 0, resumed: None };
    Outcome::Opened(answer, Box::new(opened))
}

type BlockResult = Result<(), crate::lun::BlockError>;

fn read_answer(object: &dyn Object, read: BlockResult, data: Vec<u8>) -> Answer {
    match read {
        Ok(()) => Answer { status: Status::Ok, data: data.into() },
        Err(error) => Answer::bare(requests::block_status(object, &error)),
    }
}

fn write_answer(object: &dyn Object, written: BlockResult) -> Answer {
    let status = written.err().map(|error| requests::block_status(object, &error));
    Answer::bare(status.unwrap_or(Status::Ok))
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({}, {} objects)", self.peer, self.objects.len())
    }
}
