//! SCSI commands and their data-out (RFC 7143 §11.3, §11.7, §11.8): immediate data, unsolicited
//! bursts, R2T.
//!
//! Invariants: data of a sequence comes in order (DataPDUInOrder, DataSequenceInOrder), so a
//! command needs one offset; at most one R2T of a command is open; a write has room for what it may
//! be sent before it may be sent. A command whose expected length is shorter than its CDB needs is
//! not carried out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use super::connection::{Connection, Phase};
use super::job::{Job, Scsi};
use super::ordering::{Attribute, Ready};
use super::pdu::{self, response, Header, RejectReason, NO_TAG};
use super::pool::Buffer;
use super::receive::Destination;
use crate::scsi::{Answer, DataIn, Nexus, Plan, Sense, Status, Task};

/// Buffers of a connection that R2Ts may be open for. One command always fits.
pub const MAX_SOLICITED_BYTES: usize = 32 << 20;

/// What of a SCSI command its response needs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    pub tag: u32,
    flags: u8,
    expected: usize,
    /// R2T and Data-In PDUs sent: ExpDataSN.
    pub pdus: u32,
    pub attribute: Attribute,
    /// Rises with each command of the connection.
    pub number: u64,
}

impl Request {
    fn of(header: &Header, number: u64) -> Request {
        let (flags, expected) = (header.flags(), header.word(20) as usize);
        let attribute = Attribute::of(flags);
        Request { tag: header.tag(), flags, expected, pdus: 0, attribute, number }
    }

    /// Bytes that the initiator takes.
    pub fn in_expected(&self) -> usize {
        if self.flags & pdu::READ != 0 {
            self.expected
        } else {
            0
        }
    }

    /// Bytes that the initiator has to send.
    fn out_expected(&self) -> usize {
        if self.flags & pdu::WRITE != 0 {
            self.expected
        } else {
            0
        }
    }

    /// The expected length that residuals are counted against.
    pub fn expected(&self) -> usize {
        if self.flags & (pdu::READ | pdu::WRITE) != 0 {
            self.expected
        } else {
            0
        }
    }
}

/// Data-out being gathered.
#[derive(Debug)]
pub(super) struct Collect {
    task: Task,
    /// `None` only while a long segment is received into it.
    buffer: Option<Buffer>,
    /// Stream position: everything before it has come.
    offset: usize,
    /// End of the open sequence; what is beyond is a protocol error.
    limit: usize,
    /// DataSN of the next Data-Out of the sequence.
    data_sn: u32,
    /// The open sequence: [`NO_TAG`] for the unsolicited one, an R2T's tag, or none.
    sequence: Option<u32>,
    /// Part of [`MAX_SOLICITED_BYTES`] that is held.
    solicited: usize,
}

/// How far a command is.
#[derive(Debug)]
pub(super) enum State {
    /// Its data-out comes in.
    Collecting(Collect),
    /// Already decided, but unsolicited data still comes; `wanted` is what it would have moved.
    Refused { answer: Answer, wanted: usize },
    /// It could begin, but for those before it.
    Waiting(Ready),
    /// A job runs it, or waits to.
    Running {
        cancel: Arc<AtomicBool>,
        aborted: bool,
        solicited: usize,
        reading: usize,
        wanted: usize,
    },
}

/// A command that has not been answered.
#[derive(Debug)]
pub(super) struct Entry {
    pub request: Request,
    pub state: State,
}

impl Entry {
    pub fn cancel_flag(&self) -> Option<&AtomicBool> {
        match &self.state {
            State::Running { cancel, .. } => Some(cancel),
            _ => None,
        }
    }
}

impl Connection {
    fn nexus(&self) -> Option<Arc<Nexus>> {
        match &self.phase {
            Phase::Full(session) => Some(Arc::clone(&session.opened.nexus)),
            _ => None,
        }
    }

    /// A SCSI command. `data` is its immediate data, `None` where that is long and still comes:
    /// then the result says where it goes.
    pub(super) fn scsi_command(&mut self, header: &Header, data: Option<&[u8]>) -> Destination {
        self.look_for_aborts();
        if !self.admit(header) {
            return Destination::Discard;
        }
        self.commands += 1;
        let request = Request::of(header, self.commands);
        self.note_attribute(request.attribute);
        if self.tasks.contains_key(&request.tag) {
            self.reject(header, RejectReason::TaskInProgress);
            return Destination::Discard;
        }
        if !self.immediate_is_allowed(header, &request) {
            self.violation(header);
            return Destination::Discard;
        }
        let Phase::Full(session) = &self.phase else {
            return Destination::Discard;
        };
        session.opened.registration.counters.commands.fetch_add(1, Ordering::Relaxed);
        match session.opened.nexus.begin(header.lun(), &header.cdb()) {
            Plan::Done(answer) => {
                let wanted = answer.data.len();
                self.refuse(header, request, answer, wanted)
            }
            Plan::Run(task) if task.takes_data() => self.write(header, request, task, data),
            Plan::Run(task)
                if task.data_in_bytes > request.in_expected() && request.in_expected() == 0 =>
            {
                // nothing may be sent: the whole length is a residual
                let wanted = task.data_in_bytes;
                self.refuse(header, request, Answer::good(), wanted)
            }
            Plan::Run(task) if !self.may_begin(&request) => {
                self.lay_aside(request, Ready::Run(task, Buffer::default(), 0));
                Destination::Discard
            }
            Plan::Run(task) if task.data_in_bytes > 0 => {
                self.read(request, task);
                Destination::Discard
            }
            Plan::Run(task) => {
                self.run_elsewhere(request, task, Buffer::default(), 0);
                Destination::Discard
            }
        }
    }

    fn immediate_is_allowed(&self, header: &Header, request: &Request) -> bool {
        let bytes = header.data_bytes();
        let burst = self.params.first_burst_bytes as usize;
        let allowed = self.params.immediate_data && bytes <= burst.min(request.out_expected());
        let more = request.flags & pdu::WRITE != 0 && !header.is_final();
        (bytes == 0 || allowed) && !(more && self.params.initial_r2t)
    }

    /// Answers a command without its data-out, after what of that still comes unsolicited.
    fn refuse(
        &mut self,
        header: &Header,
        request: Request,
        answer: Answer,
        wanted: usize,
    ) -> Destination {
        if request.out_expected() > 0 && !header.is_final() {
            let state = State::Refused { answer, wanted };
            self.tasks.insert(request.tag, Entry { request, state });
        } else if !self.may_begin(&request) {
            self.lay_aside(request, Ready::Answered(answer, wanted));
        } else {
            self.finish(request, answer, wanted);
        }
        Destination::Discard
    }

    fn write(
        &mut self,
        header: &Header,
        request: Request,
        mut task: Task,
        data: Option<&[u8]>,
    ) -> Destination {
        let Some(nexus) = self.nexus() else {
            return Destination::Discard;
        };
        if let Err(sense) = task.fit(request.out_expected()) {
            let answer = nexus.check(sense);
            return self.refuse(header, request, answer, task.wanted_bytes);
        }
        let needed = task.data_out_bytes;
        let whole = data.and_then(|data| data.get(..needed)).filter(|_| header.is_final());
        if let Some(data) = whole {
            self.write_at_once(&nexus, request, task, data);
            return Destination::Discard;
        }
        self.collect(header, request, task, data)
    }

    /// All data is there, in the staging buffer: it is written from where it lies.
    fn write_at_once(&mut self, nexus: &Nexus, request: Request, task: Task, data: &[u8]) {
        let now = self.may_begin(&request);
        match now.then(|| nexus.try_run(&task, data, DataIn::default())).flatten() {
            Some(answer) => self.finish_write(request, answer, task.wanted_bytes),
            None => {
                let Some(mut buffer) = self.pool.take(data.len()) else {
                    return self.refuse_for_room(request);
                };
                buffer.copy_from_slice(data);
                match now {
                    true => self.run_elsewhere(request, task, buffer, 0),
                    false => self.lay_aside(request, Ready::Run(task, buffer, 0)),
                }
            }
        }
    }

    fn collect(
        &mut self,
        header: &Header,
        request: Request,
        task: Task,
        data: Option<&[u8]>,
    ) -> Destination {
        let needed = task.data_out_bytes;
        let unsolicited = request.out_expected().min(self.params.first_burst_bytes as usize);
        let immediate = header.data_bytes();
        let coming = if header.is_final() { immediate } else { unsolicited };
        let asks = needed > coming;
        // not before those that wait already: one may be ORDERED, and this one behind it
        let may = asks && self.waiting.is_empty();
        let solicited = if may { self.reserve(needed) } else { 0 };
        let room = if solicited > 0 { needed } else { needed.min(unsolicited) };
        let Some(mut buffer) = self.pool.take(room) else {
            self.release(solicited);
            let busy = self.nexus().map_or_else(Answer::good, |nexus| nexus.busy());
            return self.refuse(header, request, busy, 0);
        };
        if asks && solicited == 0 {
            self.waiting.push_back(request.tag);
        }
        if let Some(data) = data {
            copy_at(&mut buffer, 0, data);
        }
        let collect = Collect {
            task,
            buffer: None,
            offset: immediate,
            limit: unsolicited,
            data_sn: 0,
            sequence: (!header.is_final()).then_some(NO_TAG),
            solicited,
        };
        self.tasks.insert(request.tag, Entry { request, state: State::Collecting(collect) });
        if data.is_none() {
            return Destination::Task(buffer, 0);
        }
        self.data_received(header, buffer);
        Destination::Discard
    }

    /// Takes a part of the budget for solicited data: 0 where there is none left now.
    fn reserve(&mut self, bytes: usize) -> usize {
        let free = self.solicited_bytes == 0
            || self.solicited_bytes.saturating_add(bytes) <= self.most_bytes(MAX_SOLICITED_BYTES);
        let granted = if free { bytes } else { 0 };
        self.solicited_bytes += granted;
        granted
    }

    /// A Data-Out. As in [`Connection::scsi_command`], long data is told where to go.
    pub(super) fn data_out(&mut self, header: &Header, data: Option<&[u8]>) -> Destination {
        self.look_for_aborts();
        let tag = header.tag();
        let Some(entry) = self.tasks.get_mut(&tag) else {
            return Destination::Discard; // of a task that was aborted meanwhile
        };
        let collect = match &mut entry.state {
            State::Collecting(collect) => collect,
            State::Refused { .. } => {
                if header.is_final() {
                    self.finish_refused(tag);
                }
                return Destination::Discard;
            }
            State::Running { .. } | State::Waiting(_) => return Destination::Discard,
        };
        let at = collect.offset;
        let mut buffer = match collect.accept(header) {
            Accepted::Data(buffer) => buffer,
            Accepted::OutOfOrder => {
                self.data_lost(header);
                return Destination::Discard;
            }
            Accepted::Violation => {
                self.violation(header);
                return Destination::Discard;
            }
        };
        let Some(data) = data else {
            return Destination::Task(buffer, at);
        };
        copy_at(&mut buffer, at, data);
        self.data_received(header, buffer);
        Destination::Discard
    }

    /// Data of a command was lost: there is no recovery at level 0 but to end the command.
    fn data_lost(&mut self, header: &Header) {
        let tag = header.tag();
        let Some(nexus) = self.nexus() else { return };
        let Some(entry) = self.tasks.get_mut(&tag) else {
            return;
        };
        let State::Collecting(collect) = &mut entry.state else {
            return;
        };
        let (solicited, wanted) = (collect.solicited, collect.task.wanted_bytes);
        self.waiting.retain(|waiting| *waiting != tag);
        let answer = nexus.check(Sense::DATA_PHASE_ERROR);
        entry.state = State::Refused { answer, wanted };
        if header.is_final() {
            self.finish_refused(tag);
        }
        self.release(solicited);
    }

    fn finish_refused(&mut self, tag: u32) {
        if let Some(Entry { request, state: State::Refused { answer, wanted } }) =
            self.tasks.remove(&tag)
        {
            match self.may_begin(&request) {
                true => self.finish(request, answer, wanted),
                false => self.lay_aside(request, Ready::Answered(answer, wanted)),
            }
        }
    }

    /// The data segment of `header` (a command or a Data-Out) is in `buffer`.
    pub(super) fn data_received(&mut self, header: &Header, buffer: Buffer) {
        let tag = header.tag();
        let Some(entry) = self.tasks.get_mut(&tag) else {
            return;
        };
        let State::Collecting(collect) = &mut entry.state else {
            return;
        };
        collect.buffer = Some(buffer);
        if header.is_final() {
            let short = collect.sequence.is_some_and(|open| open != NO_TAG)
                && collect.offset < collect.limit;
            collect.sequence = None;
            if short {
                return self.violation(header); // less than the R2T asked for
            }
        }
        if collect.sequence.is_none() {
            self.sequence_ended(tag);
        }
    }

    /// A sequence is complete: run the command, or ask for more.
    fn sequence_ended(&mut self, tag: u32) {
        let Some(entry) = self.tasks.get_mut(&tag) else {
            return;
        };
        let State::Collecting(collect) = &mut entry.state else {
            return;
        };
        if collect.offset < collect.task.data_out_bytes {
            return self.solicit(tag);
        }
        let request = entry.request;
        let solicited = collect.solicited;
        let buffer = collect.buffer.take().unwrap_or_default();
        let Some(Entry { state: State::Collecting(collect), .. }) = self.tasks.remove(&tag) else {
            return;
        };
        self.run_write(request, collect.task, buffer, solicited);
    }

    pub(super) fn run_write(
        &mut self,
        request: Request,
        task: Task,
        buffer: Buffer,
        solicited: usize,
    ) {
        let Some(nexus) = self.nexus() else { return };
        if !self.may_begin(&request) {
            return self.lay_aside(request, Ready::Run(task, buffer, solicited));
        }
        let data = buffer.get(..task.data_out_bytes).unwrap_or_default();
        match nexus.try_run(&task, data, DataIn::default()) {
            Some(answer) => {
                let wanted = task.wanted_bytes;
                drop(buffer);
                self.finish_write(request, answer, wanted);
                self.release(solicited);
            }
            None => self.run_elsewhere(request, task, buffer, solicited),
        }
    }

    /// Sends the next R2T of a command, once there is room for its data.
    fn solicit(&mut self, tag: u32) {
        let Some(entry) = self.tasks.get_mut(&tag) else {
            return;
        };
        let State::Collecting(collect) = &mut entry.state else {
            return;
        };
        if collect.solicited > 0 {
            return self.send_r2t(tag);
        }
        if !self.waiting.contains(&tag) {
            self.waiting.push_back(tag); // it sent less unsolicited than it might
        }
        self.serve_waiting();
    }

    /// The initiator holds more than it may: the command ends before its data was asked for.
    fn give_up(&mut self, tag: u32) {
        if let Some(Entry { request, state: State::Collecting(collect) }) = self.tasks.remove(&tag)
        {
            self.refuse_for_room(request);
            self.release(collect.solicited);
        }
    }

    fn send_r2t(&mut self, tag: u32) {
        let most = self.params.max_burst_bytes as usize;
        let transfer_tag = self.next_transfer_tag;
        // never the reserved tag
        self.next_transfer_tag = transfer_tag.wrapping_add(1) & 0x7FFF_FFFF;
        let Some(entry) = self.tasks.get_mut(&tag) else {
            return;
        };
        let State::Collecting(collect) = &mut entry.state else {
            return;
        };
        let needed = collect.task.data_out_bytes;
        if !collect.buffer.as_mut().is_some_and(|buffer| buffer.grow(needed)) {
            return self.give_up(tag);
        }
        let length = (needed - collect.offset).min(most);
        collect.sequence = Some(transfer_tag);
        collect.limit = collect.offset + length;
        collect.data_sn = 0;
        let mut header = Header::reply(response::R2T, pdu::FINAL, tag);
        header.set_word(20, transfer_tag);
        header.set_word(36, entry.request.pdus);
        header.set_word(40, collect.offset as u32);
        header.set_word(44, length as u32);
        entry.request.pdus += 1;
        self.stamp(&mut header, false);
        self.send(header, &[], None);
    }

    /// Gives a part of the budget back, and lets those go on that waited for it.
    fn release(&mut self, solicited: usize) {
        self.solicited_bytes = self.solicited_bytes.saturating_sub(solicited);
        self.serve_waiting();
    }

    /// Grants the budget in the order in which the commands came.
    fn serve_waiting(&mut self) {
        while let Some(&tag) = self.waiting.front() {
            let needed = match self.tasks.get(&tag).map(|entry| &entry.state) {
                Some(State::Collecting(collect)) => collect.task.data_out_bytes,
                _ => 0, // it is no longer there
            };
            let granted = self.reserve(needed);
            if granted == 0 && needed > 0 {
                return;
            }
            self.waiting.pop_front();
            let Some(Entry { state: State::Collecting(collect), .. }) = self.tasks.get_mut(&tag)
            else {
                continue;
            };
            collect.solicited = granted;
            // else it has unsolicited data on the way, after which it is asked
            if collect.sequence.is_none() && collect.buffer.is_some() {
                self.send_r2t(tag);
            }
        }
    }

    /// Hands a task to a blocking thread.
    pub(super) fn run_elsewhere(
        &mut self,
        request: Request,
        task: Task,
        out: Buffer,
        solicited: usize,
    ) {
        let Some(nexus) = self.nexus() else { return };
        let reading = task.data_in_bytes;
        let wanted = task.wanted_bytes;
        let into = if reading > 0 { self.pool.take(reading) } else { Some(Buffer::default()) };
        let Some(into) = into else {
            return self.refuse_for_room(request); // a read holds no part of the budget
        };
        self.reading_bytes += reading;
        let cancel = Connection::cancel_flag();
        let state = State::Running {
            cancel: Arc::clone(&cancel),
            aborted: false,
            solicited,
            reading,
            wanted,
        };
        self.tasks.insert(request.tag, Entry { request, state });
        let (tag, summed) = (request.tag, self.params.data_digest);
        self.jobs.push(Job::scsi(Scsi { tag, nexus, task, out, into, summed, cancel }));
    }

    /// A task's job is done.
    pub(super) fn scsi_done(&mut self, tag: u32, answer: Answer, into: Buffer) {
        self.look_for_aborts();
        let Some(entry) = self.tasks.remove(&tag) else {
            return;
        };
        let State::Running { aborted, solicited, reading, wanted, .. } = entry.state else {
            return;
        };
        self.reading_bytes = self.reading_bytes.saturating_sub(reading);
        if aborted {
            self.answer_management();
        } else if reading > 0 {
            self.finish_read(entry.request, answer, into);
        } else if answer.data.is_empty() {
            self.finish_write(entry.request, answer, wanted);
        } else {
            let wanted = answer.data.len();
            self.finish(entry.request, answer, wanted);
        }
        self.release(solicited);
    }

    /// Aborts a task: one that runs is let end, and not answered.
    pub(super) fn abort(&mut self, tag: u32) {
        let Some(entry) = self.tasks.get_mut(&tag) else {
            return;
        };
        if let State::Running { aborted, .. } = &mut entry.state {
            *aborted = true;
            entry.cancel();
            return;
        }
        self.waiting.retain(|waiting| *waiting != tag);
        match self.tasks.remove(&tag).map(|entry| entry.state) {
            Some(State::Collecting(collect)) => self.release(collect.solicited),
            Some(State::Waiting(Ready::Run(_, _, solicited))) => self.release(solicited),
            _ => {}
        }
    }

    fn finish_write(&mut self, request: Request, answer: Answer, bytes: usize) {
        let written = if answer.status == Status::Good { bytes } else { 0 };
        if let Phase::Full(session) = &self.phase {
            let counters = &session.opened.registration.counters;
            counters.written_bytes.fetch_add(written as u64, Ordering::Relaxed);
        }
        self.finish(request, answer, bytes);
    }
}

/// What a Data-Out is to the open sequence of its command.
enum Accepted {
    Data(Buffer),
    /// Wrong DataSN or offset: data was lost or reordered (RFC 7143 §7.9).
    OutOfOrder,
    /// Not asked for, or more than was asked for.
    Violation,
}

impl Collect {
    /// Checks a Data-Out against the open sequence and moves on by it (RFC 7143 §11.7).
    fn accept(&mut self, header: &Header) -> Accepted {
        let length = header.data_bytes();
        if self.sequence != Some(header.transfer_tag()) {
            return Accepted::Violation;
        }
        if header.word(36) != self.data_sn || header.word(40) as usize != self.offset {
            return Accepted::OutOfOrder;
        }
        if self.offset + length > self.limit {
            return Accepted::Violation;
        }
        self.data_sn = self.data_sn.wrapping_add(1);
        self.offset += length;
        self.buffer.take().map_or(Accepted::Violation, Accepted::Data)
    }
}

/// Copies what fits of `data` to `at`; data beyond what the command needs is dropped.
fn copy_at(buffer: &mut [u8], at: usize, data: &[u8]) {
    let room = buffer.get_mut(at..).unwrap_or_default();
    let bytes = room.len().min(data.len());
    if let (Some(to), Some(from)) = (room.get_mut(..bytes), data.get(..bytes)) {
        to.copy_from_slice(from);
    }
}
