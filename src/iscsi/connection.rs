//! One connection, which is one session: bytes in, bytes and jobs out.
//!
//! A carrier does, again and again: [`Connection::process`], run every [`Connection::next_job`] and
//! hand its outcome to [`Connection::completed`], send [`Connection::outgoing`], and, where
//! [`Connection::willing`], receive into [`Connection::space`] and tell [`Connection::received`].
//!
//! Invariants: StatSN rises by one with each status; MaxCmdSN never falls; a task is in `tasks`
//! from its command to its response and its tag is unique there; after `closing` nothing more is
//! read.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::directory::Client;
use super::discovery::TextState;
use super::job::{Done, Job, Opened};
use super::login::{self, Login, Status, Step, Wish};
use super::outbox::Outbox;
use super::params::{Params, LOGIN_SEGMENT_BYTES, OUR_RECV_SEGMENT_BYTES};
use super::pdu::{
    self, padded, request, response, sn_before, Header, RejectReason, DIGEST_BYTES, HEADER_BYTES,
    NO_TAG,
};
use super::pool::Pool;
use super::queue::Jobs;
use super::receive::{Bulk, Destination, Receiver, IN_PLACE_BYTES};
use super::session::Service;
use super::transfer::Entry;
use crate::access::Reason;

/// Commands that an initiator may have outstanding: MaxCmdSN - ExpCmdSN + 1 at rest.
pub const WINDOW: usize = 128;
/// The same until a session is open: a login and a discovery go step by step.
const LOGIN_WINDOW: usize = 4;
/// Immediate commands beside the window; more are rejected.
const MAX_IMMEDIATE: usize = 16;
/// Answers that may wait to be sent, or to be read, before we stop receiving from the client.
pub const MAX_OUTGOING_BYTES: usize = 8 << 20;

/// Async events: the target wants a logout; it drops the connection.
const LOGOUT_WANTED: u8 = 1;
const CONNECTION_DROPS: u8 = 2;
/// Transfer tag of our own pings: above those of R2Ts.
const PING_TAG: u32 = 0x8000_0000;

/// Where a connection is in its life.
#[derive(Debug)]
pub(super) enum Phase {
    Login(Box<Login>),
    /// The target is being opened; this response waits for it.
    Opening(Header, Vec<u8>, Box<Params>),
    Discovery(Wish),
    Full(Box<Session>),
    Closed,
}

/// The session in full feature phase.
#[derive(Debug)]
pub(super) struct Session {
    pub opened: Opened,
    /// [`crate::scsi::Nexus::aborts`] when tasks were last looked through.
    pub seen_aborts: u64,
}

/// The state machine.
#[derive(Debug)]
pub struct Connection {
    pub(super) service: Arc<Service>,
    /// Addresses that discovery names with their groups, that of this connection first.
    pub(super) portals: Vec<(String, u16)>,
    peer: SocketAddr,
    end: CancellationToken,
    receiver: Receiver,
    pub(super) out: Outbox,
    pub(super) pool: Arc<Pool>,
    pub(super) phase: Phase,
    pub(super) params: Params,
    pub(super) stat_sn: u32,
    exp_cmd_sn: u32,
    max_cmd_sn: u32,
    pub(super) tasks: HashMap<u32, Entry>,
    pub(super) jobs: Jobs,
    /// Bytes of buffers that reads on other threads are filling.
    pub(super) reading_bytes: usize,
    /// Bytes granted by R2T, or to be granted next.
    pub(super) solicited_bytes: usize,
    /// Writes that wait for room to be solicited.
    pub(super) waiting: VecDeque<u32>,
    pub(super) next_transfer_tag: u32,
    /// Task management requests whose tasks still run.
    pub(super) management: Vec<Header>,
    /// Jobs that wait until what a reset ended has ended.
    pub(super) settling: usize,
    /// All sessions of the target end once the responses are sent.
    pub(super) cold_reset: bool,
    pub(super) text: TextState,
    /// Commands that the initiator may have outstanding.
    window: usize,
    /// What was last told to the disk's figures.
    told_outstanding: usize,
    /// How long the next answer is held back.
    penalty: Option<Duration>,
    /// SCSI commands that came.
    pub(super) commands: u64,
    /// There may be a command that is not SIMPLE (see `ordering`).
    pub(super) barriers: bool,
    /// The answer to a logout, which waits until nothing of the session runs any more: no command
    /// of it takes effect after it.
    leaving: Option<Header>,
    closing: bool,
}

impl Connection {
    /// A connection that was just accepted. `portals` is what discovery tells as our addresses with
    /// their portal groups, that of the connection first; cancelling `end` ends the session.
    pub fn new(
        service: Arc<Service>,
        portals: Vec<(String, u16)>,
        peer: SocketAddr,
        end: CancellationToken,
    ) -> Connection {
        let group = portals.first().map_or(1, |portal| portal.1);
        Connection {
            service,
            portals,
            peer,
            end,
            receiver: Receiver::new(),
            out: Outbox::default(),
            pool: Arc::default(),
            phase: Phase::Login(Box::new(Login::at(group))),
            params: Params::default(),
            stat_sn: 1,
            exp_cmd_sn: 0,
            max_cmd_sn: 0,
            tasks: HashMap::new(),
            jobs: Jobs::default(),
            reading_bytes: 0,
            solicited_bytes: 0,
            waiting: VecDeque::new(),
            next_transfer_tag: 1,
            management: Vec::new(),
            settling: 0,
            cold_reset: false,
            text: TextState::default(),
            window: LOGIN_WINDOW,
            told_outstanding: 0,
            penalty: None,
            commands: 0,
            barriers: false,
            leaving: None,
            closing: false,
        }
    }

    /// Is it to be read from? Not while closing, while a target is opened, or while the client does
    /// not take its answers.
    pub fn willing(&self) -> bool {
        let opening = matches!(self.phase, Phase::Opening(..) | Phase::Closed);
        !self.closing && self.leaving.is_none() && !opening && self.has_room_for_answers()
    }

    /// Are there few enough answers that wait to be sent, or to be read?
    pub(super) fn has_room_for_answers(&self) -> bool {
        let answers = self.out.queued_bytes() + self.reading_bytes;
        answers < self.most_bytes(MAX_OUTGOING_BYTES)
    }

    /// A bound of this connection, or the session's share of its initiator's memory if that is
    /// less.
    pub(super) fn most_bytes(&self, bound: usize) -> usize {
        match &self.phase {
            Phase::Full(session) => bound.min(session.opened.registration.share.bytes()),
            _ => bound,
        }
    }

    /// Tells the disk how many commands wait, where that has changed.
    fn tell_outstanding(&mut self) {
        let now = self.tasks.len();
        if let (Phase::Full(session), true) = (&self.phase, now != self.told_outstanding) {
            session.opened.nexus.outstanding(now);
            self.told_outstanding = now;
        }
    }

    /// Will it come to its end once what is queued was sent?
    pub fn is_closing(&self) -> bool {
        self.closing
    }

    /// Has the login come to its end?
    pub fn is_logged_in(&self) -> bool {
        matches!(self.phase, Phase::Discovery(_) | Phase::Full(_))
    }

    /// Is it a discovery session?
    pub fn is_discovery(&self) -> bool {
        matches!(self.phase, Phase::Discovery(_))
    }

    /// What waits to be sent.
    pub fn outgoing(&mut self) -> &mut Outbox {
        &mut self.out
    }

    /// Room for received bytes; call only while [`Connection::willing`].
    pub fn space(&mut self) -> &mut [u8] {
        self.receiver.space()
    }

    /// `bytes` were received into [`Connection::space`].
    pub fn received(&mut self, bytes: usize) {
        self.receiver.received(bytes);
    }

    /// The next job to be run on another thread, if one may begin.
    pub fn next_job(&mut self) -> Option<Job> {
        self.jobs.next()
    }

    /// SCSI commands so far.
    pub fn commands(&self) -> u64 {
        self.commands
    }

    /// Whether nothing is left to do before more is received.
    pub fn is_drained(&self) -> bool {
        self.receiver.is_drained() && self.jobs.is_empty()
    }

    /// How many jobs run.
    pub fn running_jobs(&self) -> usize {
        self.jobs.running()
    }

    /// Gives up: nothing more is read, no job begins, those that run are told to stop.
    pub fn close(&mut self) {
        self.closing = true;
        self.jobs.clear();
        for entry in self.tasks.values() {
            entry.cancel();
        }
    }

    /// Asks the initiator to log out within `seconds` (RFC 7143 §11.9: event 1). False: there is no
    /// session that could.
    pub fn ask_to_leave(&mut self, seconds: u16) -> bool {
        let there = match &self.phase {
            Phase::Full(session) => !session.opened.registration.replaced.load(Ordering::Acquire),
            _ => false,
        };
        if self.closing || !there {
            return false;
        }
        self.send_event(LOGOUT_WANTED, [0, 0, seconds]);
        true
    }

    /// Tells that the connection will be dropped, and that it may be made again at once (event 2).
    pub fn announce_drop(&mut self) {
        if !self.closing && matches!(self.phase, Phase::Full(_)) {
            self.send_event(CONNECTION_DROPS, [self.cid(), 0, 0]);
        }
    }

    /// Connection identifier; 0 before the login's end.
    fn cid(&self) -> u16 {
        match &self.phase {
            Phase::Full(session) => session.opened.cid,
            Phase::Discovery(wish) => wish.cid,
            _ => 0,
        }
    }

    /// Asynchronous Message. It takes a StatSN of its own.
    fn send_event(&mut self, event: u8, parameters: [u16; 3]) {
        let mut header = Header::reply(response::ASYNC_MESSAGE, pdu::FINAL, NO_TAG);
        header.0[36] = event;
        for (bytes, parameter) in header.0[38..44].chunks_exact_mut(2).zip(parameters) {
            bytes.copy_from_slice(&parameter.to_be_bytes());
        }
        self.send_status(header, &[]);
    }

    /// Asks the initiator whether it is there (RFC 7143 §11.19); any answer is one.
    pub fn ping(&mut self) {
        if self.closing || !matches!(self.phase, Phase::Full(_)) {
            return;
        }
        let mut header = Header::reply(response::NOP_IN, pdu::FINAL, NO_TAG);
        header.set_word(20, PING_TAG);
        self.stamp(&mut header, false);
        self.send(header, &[], None);
    }

    /// Handles all that was received, as far as it is willing to.
    pub fn process(&mut self) {
        self.wake_waiting(); // answers may have gone out since
        let (staging, mut start, end) = self.receiver.lend();
        while self.willing() {
            let took = self.take(staging.get(start..end).unwrap_or_default());
            if took == 0 {
                break;
            }
            start += took;
            self.wake_waiting();
        }
        self.receiver.put_back(staging, start);
        self.tell_outstanding();
    }

    /// Takes one PDU, or a part of a long one; returns the bytes used, 0 where more are needed.
    fn take(&mut self, bytes: &[u8]) -> usize {
        if self.receiver.in_bulk() {
            let (took, bulk) = self.receiver.feed_bulk(bytes);
            if let Some(bulk) = bulk {
                self.bulk_done(bulk);
            }
            return took;
        }
        let Some(header) = Header::parse(bytes) else {
            return 0;
        };
        let limit = match self.is_logged_in() {
            true => OUR_RECV_SEGMENT_BYTES,
            false => LOGIN_SEGMENT_BYTES,
        };
        if header.data_bytes() > limit as usize {
            return self.fail(&header, RejectReason::InvalidField, bytes.len());
        }
        self.take_pdu(&header, bytes)
    }

    fn take_pdu(&mut self, header: &Header, bytes: &[u8]) -> usize {
        let head = HEADER_BYTES + header.ahs_bytes();
        let digest = if self.params.header_digest { DIGEST_BYTES } else { 0 };
        let (Some(covered), Some(found)) = (bytes.get(..head), bytes.get(head..head + digest))
        else {
            return 0;
        };
        if digest != 0 && pdu::digest(&[covered]) != *found {
            self.close(); // nothing of this header can be believed (RFC 7143 §7.8)
            return bytes.len();
        }
        let start = head + digest;
        let data = header.data_bytes();
        let with_digest = self.params.data_digest && data != 0;
        let body = padded(data) + if with_digest { DIGEST_BYTES } else { 0 };
        if let Some(body) = bytes.get(start..start + body) {
            let (segment, found) = body.split_at(padded(data));
            if with_digest && pdu::digest(&[segment]) != *found {
                return self.fail(header, RejectReason::DataDigestError, bytes.len());
            }
            self.pdu(header, segment.get(..data).unwrap_or_default());
            return start + body.len();
        }
        if body <= IN_PLACE_BYTES {
            return 0;
        }
        let to = self.destination(header);
        self.receiver.begin_bulk(Bulk::new(*header, to, with_digest));
        start
    }

    /// Rejects a PDU after which the stream cannot be believed, and closes (RFC 7143 §7.12).
    fn fail(&mut self, header: &Header, reason: RejectReason, used: usize) -> usize {
        if self.is_logged_in() {
            self.reject(header, reason);
        }
        self.close();
        used
    }

    /// A protocol error: reject and close.
    pub(super) fn violation(&mut self, header: &Header) {
        self.fail(header, RejectReason::ProtocolError, 0);
    }

    /// Where the long data segment of `header` goes.
    fn destination(&mut self, header: &Header) -> Destination {
        match (&self.phase, header.opcode()) {
            (Phase::Full(_), request::SCSI_COMMAND) => self.scsi_command(header, None),
            (Phase::Full(_), request::DATA_OUT) => self.data_out(header, None),
            _ => Destination::Own(vec![0; header.data_bytes()]),
        }
    }

    fn bulk_done(&mut self, bulk: Bulk) {
        if !bulk.digest_is_right() {
            self.fail(&bulk.header, RejectReason::DataDigestError, 0);
            return;
        }
        match bulk.to {
            Destination::Task(buffer, _) => self.data_received(&bulk.header, buffer),
            Destination::Own(data) => self.pdu(&bulk.header, &data),
            Destination::Discard => {}
        }
    }

    /// One whole PDU.
    fn pdu(&mut self, header: &Header, data: &[u8]) {
        match (&mut self.phase, header.opcode()) {
            (Phase::Login(login), request::LOGIN) => {
                let (directory, peer) = (&self.service.directory, self.peer);
                let demands = |name: &str| {
                    let client = Client { initiator: name.to_owned(), peer, proof: None };
                    directory.demand(&client).map_err(|refusal| Status(refusal.status()))
                };
                let step = login.request(header, data, &demands);
                self.login_step(header, step);
            }
            (Phase::Full(_), request::SCSI_COMMAND) => {
                self.scsi_command(header, Some(data));
            }
            (Phase::Full(_), request::DATA_OUT) => {
                self.data_out(header, Some(data));
            }
            (Phase::Full(_) | Phase::Discovery(_), _) => self.other_pdu(header, data),
            _ => self.close(), // nothing but a login is answered before one
        }
    }

    fn other_pdu(&mut self, header: &Header, data: &[u8]) {
        match header.opcode() {
            request::NOP_OUT => self.nop_out(header, data),
            request::TASK_MANAGEMENT if self.is_full() => self.task_management(header),
            request::TEXT => self.text_request(header, data),
            request::LOGOUT => self.logout(header),
            request::SNACK => self.reject(header, RejectReason::SnackReject),
            request::LOGIN => self.violation(header),
            _ => self.reject(header, RejectReason::CommandNotSupported),
        }
    }

    fn is_full(&self) -> bool {
        matches!(self.phase, Phase::Full(_))
    }

    fn login_step(&mut self, request: &Header, step: Step) {
        if self.exp_cmd_sn == 0 && self.stat_sn == 1 {
            self.exp_cmd_sn = request.cmd_sn();
            self.max_cmd_sn = self.exp_cmd_sn.wrapping_add(self.window as u32 - 1);
        }
        match step {
            Step::Reply(header, text) => self.send_status(header, &text),
            Step::Refuse(header) => {
                self.send_status(header, &[]);
                self.close();
                self.note_refusal(header);
            }
            Step::Finish(header, text, wish) => self.login_finish(header, text, wish),
        }
    }

    /// Who is not listed or proves nothing is noted; wrong secrets slow down where they come from.
    fn note_refusal(&mut self, refusal: Header) {
        let Phase::Login(login) = &self.phase else { return };
        let reason = match Status((refusal.word(36) >> 16) as u16) {
            Status::AUTHENTICATION => Reason::Unproved,
            Status::FORBIDDEN => Reason::Unlisted,
            _ => return,
        };
        if login.was_wrong_secret() {
            self.penalty = Some(self.service.crowd.wrong_secret(self.peer.ip()));
        }
        let (initiator, target) = login.names();
        let initiator = initiator.unwrap_or_default().to_owned();
        let client = Client { initiator, peer: self.peer, proof: None };
        let (service, target) = (Arc::clone(&self.service), target.map(str::to_owned));
        self.jobs.push(Job::refused(service, client, target, reason));
    }

    /// How long a carrier holds the next answer back, without listening meanwhile.
    pub fn take_penalty(&mut self) -> Option<Duration> {
        self.penalty.take()
    }

    fn login_finish(&mut self, mut header: Header, text: Vec<u8>, wish: Wish) {
        let Phase::Login(login) = std::mem::replace(&mut self.phase, Phase::Closed) else {
            return;
        };
        if wish.target.is_none() {
            let tsih = self.service.tsih();
            header.0[14..16].copy_from_slice(&tsih.to_be_bytes());
            self.send_status(header, &text);
            self.params = login.params;
            self.phase = Phase::Discovery(wish);
            return;
        }
        let (service, end) = (Arc::clone(&self.service), self.end.clone());
        let limits = login.limits();
        self.jobs.push(Job::open(service, wish, limits, self.peer, end));
        self.phase = Phase::Opening(header, text, Box::new(login.params));
    }

    fn opened(&mut self, outcome: Result<Box<Opened>, Status>) {
        let Phase::Opening(mut header, text, params) =
            std::mem::replace(&mut self.phase, Phase::Closed)
        else {
            return;
        };
        match outcome {
            Ok(opened) => {
                let share = &opened.registration.share;
                self.jobs.count_with(Arc::clone(share));
                self.pool.charge_to(Arc::clone(&share.ledger));
                self.window = WINDOW.min(opened.registration.share.limits().commands as usize);
                header.0[14..16].copy_from_slice(&opened.registration.tsih.to_be_bytes());
                self.send_status(header, &text);
                self.params = *params;
                let seen_aborts = opened.nexus.aborts();
                self.phase = Phase::Full(Box::new(Session { opened: *opened, seen_aborts }));
            }
            Err(status) => {
                self.send_status(login::reply(&header, 0, status), &[]);
                self.close();
            }
        }
    }

    /// Takes a job's outcome.
    pub fn completed(&mut self, done: Done) {
        self.jobs.ended(&done);
        match done {
            Done::Opened(outcome) => self.opened(outcome),
            Done::Listed(names) => self.listed(&names),
            Done::Scsi(..) if self.leaving.is_some() => {}
            Done::Scsi(tag, answer, into) => self.scsi_done(tag, answer, into),
            Done::Noted => {}
            Done::Settled => {
                self.settling = self.settling.saturating_sub(1);
                self.answer_management();
            }
            Done::Lost => self.close(),
        }
        self.wake_waiting();
        self.leave();
        self.tell_outstanding();
    }

    /// CmdSN rules (RFC 7143 §4.2.2.1): false for what is to be ignored silently.
    pub(super) fn admit(&mut self, header: &Header) -> bool {
        if header.is_immediate() {
            let room = self.tasks.len() + self.management.len() < self.window + MAX_IMMEDIATE;
            if !room {
                self.reject(header, RejectReason::TooManyImmediate);
            }
            return room;
        }
        let sn = header.cmd_sn();
        if sn_before(sn, self.exp_cmd_sn) || sn_before(self.max_cmd_sn, sn) {
            return false;
        }
        if sn != self.exp_cmd_sn {
            // a gap on the only connection is never filled
            self.violation(header);
            return false;
        }
        self.exp_cmd_sn = self.exp_cmd_sn.wrapping_add(1);
        true
    }

    /// The window as it is now; it opens as tasks end, and never closes by itself.
    fn max_cmd_sn(&mut self) -> u32 {
        let held = self.tasks.len() + self.management.len();
        let room = self.window.saturating_sub(held) as u32;
        let now = self.exp_cmd_sn.wrapping_add(room).wrapping_sub(1);
        if sn_before(self.max_cmd_sn, now) {
            self.max_cmd_sn = now;
        }
        self.max_cmd_sn
    }

    /// Writes StatSN, ExpCmdSN and MaxCmdSN into a header; `advance` where it carries a status.
    pub(super) fn stamp(&mut self, header: &mut Header, advance: bool) {
        header.set_word(24, self.stat_sn);
        header.set_word(28, self.exp_cmd_sn);
        header.set_word(32, self.max_cmd_sn());
        if advance {
            self.stat_sn = self.stat_sn.wrapping_add(1);
        }
    }

    /// Sends a PDU that carries a status, with a short data segment.
    pub(super) fn send_status(&mut self, mut header: Header, data: &[u8]) {
        self.stamp(&mut header, true);
        self.send(header, data, None);
    }

    /// Sends a PDU whose sequence numbers are set; `sum` is the CRC-32C of `data` if it is known.
    pub(super) fn send(&mut self, mut header: Header, data: &[u8], sum: Option<u32>) {
        header.set_data_bytes(data.len());
        self.out.push(&header.0);
        if self.params.header_digest {
            self.out.push(&pdu::digest(&[&header.0]));
        }
        if data.is_empty() {
            return;
        }
        self.out.push(data);
        self.send_tail(data, sum);
    }

    /// Padding and digest after a data segment. One whose sum is known needs no padding.
    pub(super) fn send_tail(&mut self, data: &[u8], sum: Option<u32>) {
        let pad = [0u8; 3];
        let pad = pad.get(..padded(data.len()) - data.len()).unwrap_or_default();
        self.out.push(pad);
        if self.params.data_digest {
            let digest = sum.map_or_else(|| pdu::digest(&[data, pad]), u32::to_le_bytes);
            self.out.push(&digest);
        }
    }

    /// Reject with the header complained of (RFC 7143 §11.17).
    pub(super) fn reject(&mut self, bad: &Header, reason: RejectReason) {
        let mut header = Header::reply(response::REJECT, pdu::FINAL, NO_TAG);
        header.0[2] = reason as u8;
        self.send_status(header, &bad.0);
    }

    /// NOP-Out (RFC 7143 §11.18): a ping is echoed.
    fn nop_out(&mut self, request: &Header, data: &[u8]) {
        if request.tag() == NO_TAG {
            return; // an answer to a ping of ours, or a mere acknowledgement
        }
        if !self.admit(request) {
            return;
        }
        let mut header = Header::reply(response::NOP_IN, pdu::FINAL, request.tag());
        header.0[8..16].copy_from_slice(&request.0[8..16]);
        header.set_word(20, NO_TAG);
        let most = self.params.send_segment_bytes as usize;
        let data = data.get(..data.len().min(most)).unwrap_or_default();
        self.send_status(header, data);
    }

    /// Logout (RFC 7143 §11.14): of the session or of its only connection, which is the same.
    fn logout(&mut self, request: &Header) {
        /// Reason codes: close the session, this connection, or one for recovery.
        const SESSION: u8 = 0;
        const CONNECTION: u8 = 1;
        const FOR_RECOVERY: u8 = 2;
        /// Responses: there is no such connection; recovery is not supported.
        const NO_CID: u8 = 1;
        const NO_RECOVERY: u8 = 2;
        if !self.admit(request) {
            return;
        }
        let cid = (request.word(20) >> 16) as u16;
        let mut header = Header::reply(response::LOGOUT, pdu::FINAL, request.tag());
        header.0[2] = match request.flags() & 0x7F {
            SESSION => 0,
            CONNECTION if cid == self.cid() => 0,
            CONNECTION => NO_CID,
            FOR_RECOVERY => NO_RECOVERY,
            _ => return self.reject(request, RejectReason::InvalidField),
        };
        if header.0[2] != 0 {
            return self.send_status(header, &[]);
        }
        if let Phase::Full(session) = &self.phase {
            session.opened.nexus.leaving();
        }
        self.jobs.clear();
        self.tasks.values().for_each(Entry::cancel);
        self.leaving = Some(header);
        self.leave();
    }

    /// Answers a logout once no job runs.
    fn leave(&mut self) {
        if self.jobs.running() == 0 {
            if let Some(header) = self.leaving.take() {
                self.close();
                self.tasks.clear();
                self.send_status(header, &[]);
            }
        }
    }

    pub(super) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// A flag that a task's job watches.
    pub(super) fn cancel_flag() -> Arc<AtomicBool> {
        Arc::new(AtomicBool::new(false))
    }
}

impl Entry {
    /// Tells the task's job, if there is one, to stop.
    pub(super) fn cancel(&self) {
        if let Some(flag) = self.cancel_flag() {
            flag.store(true, Ordering::Relaxed);
        }
    }
}
