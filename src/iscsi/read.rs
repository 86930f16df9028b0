//! Data-In and responses (RFC 7143 §11.4, §11.7): status rides on the last Data-In where it is
//! GOOD.

use std::sync::atomic::Ordering;
use std::sync::Arc;

use super::connection::{Connection, Phase};
use super::pdu::{self, padded, response, Header, DIGEST_BYTES, HEADER_BYTES, NO_TAG};
use super::pool::Buffer;
use super::sums::sum_of;
use super::transfer::Request;
use crate::scsi::{Answer, DataIn, Status, Task};

/// Reads up to this length are read straight behind their header in the outgoing run; longer ones
/// into a buffer that the socket takes without a copy.
const IN_PLACE_BYTES: usize = 64 << 10;
/// Shorter segments of a long read are copied into the outgoing run all the same.
const GATHER_BYTES: usize = 4 << 10;

/// Data of a Data-In sequence.
enum Source<'a> {
    Long(&'a Arc<Buffer>),
    Short(&'a [u8]),
}

/// Sets residual count and flag in a SCSI Response or the last Data-In (RFC 7143 §11.4.5): `wanted`
/// is what the command moves, `expected` what the initiator was ready for.
fn set_residual(header: &mut Header, wanted: usize, expected: usize) {
    if wanted > expected {
        header.0[1] |= pdu::OVERFLOW;
        header.set_word(44, (wanted - expected) as u32);
    } else if wanted < expected {
        header.0[1] |= pdu::UNDERFLOW;
        header.set_word(44, (expected - wanted) as u32);
    }
}

impl Connection {
    /// Carries out a read command.
    pub(super) fn read(&mut self, request: Request, task: Task) {
        let bytes = task.data_in_bytes;
        let one_pdu = bytes <= request.in_expected()
            && bytes <= self.params.send_segment_bytes as usize
            && bytes <= self.params.max_burst_bytes as usize;
        if one_pdu && bytes <= IN_PLACE_BYTES {
            return self.read_in_place(request, task);
        }
        let Some(mut buffer) = self.pool.take(bytes) else {
            return self.refuse_for_room(request);
        };
        let Phase::Full(session) = &self.phase else {
            return;
        };
        let into = buffer.data_in(self.params.data_digest);
        match session.opened.nexus.try_run(&task, &[], into) {
            Some(answer) => self.finish_read(request, answer, buffer),
            None => {
                drop(buffer);
                self.run_elsewhere(request, task, Buffer::default(), 0);
            }
        }
    }

    /// Reads straight into the outgoing run, behind a Data-In header that carries the status.
    fn read_in_place(&mut self, request: Request, task: Task) {
        let bytes = task.data_in_bytes;
        let stat_sn = self.stat_sn;
        let mut header = Header::reply(response::DATA_IN, pdu::FINAL | pdu::STATUS, request.tag);
        header.set_word(20, NO_TAG);
        header.set_data_bytes(bytes);
        set_residual(&mut header, bytes, request.expected());
        self.stamp(&mut header, true);
        let Phase::Full(session) = &self.phase else {
            return;
        };
        let (header_digest, data_digest) = (self.params.header_digest, self.params.data_digest);
        let start = HEADER_BYTES + if header_digest { DIGEST_BYTES } else { 0 };
        let digest = if data_digest { DIGEST_BYTES } else { 0 };
        let mut answer = None;
        let mut sums = Vec::new();
        let filled = self.out.fill_in_place(start + padded(bytes) + digest, |room| {
            let (head, body) = room.split_at_mut(start);
            let (data, tail) = body.split_at_mut(padded(bytes));
            let Some(target) = data.get_mut(..bytes) else {
                return false;
            };
            let into = DataIn { bytes: target, sums: data_digest.then_some(&mut sums) };
            answer = session.opened.nexus.try_run(&task, &[], into);
            if answer.as_ref().is_none_or(|answer| answer.status != Status::Good) {
                return false;
            }
            put(head, 0, &header.0);
            if header_digest {
                put(head, HEADER_BYTES, &pdu::digest(&[&header.0]));
            }
            if data_digest {
                put(
                    tail,
                    0,
                    &sum_of(&sums, 0..bytes).map_or_else(|| pdu::digest(&[data]), u32::to_le_bytes),
                );
            }
            true
        });
        if filled {
            return self.count_read(bytes);
        }
        self.stat_sn = stat_sn;
        match answer {
            Some(answer) => self.respond(request, &answer, 0), // nothing was moved
            None => self.run_elsewhere(request, task, Buffer::default(), 0),
        }
    }

    /// Its initiator holds as much as it may: the command is to come again.
    pub(super) fn refuse_for_room(&mut self, request: Request) {
        let busy = match &self.phase {
            Phase::Full(session) => session.opened.nexus.busy(),
            _ => return,
        };
        self.respond(request, &busy, 0);
    }

    fn count_read(&self, bytes: usize) {
        if let Phase::Full(session) = &self.phase {
            let counters = &session.opened.registration.counters;
            counters.read_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// A read is done: its data is in `buffer`, if `answer` is GOOD.
    pub(super) fn finish_read(&mut self, request: Request, answer: Answer, buffer: Buffer) {
        let wanted = buffer.len();
        if answer.status != Status::Good {
            return self.respond(request, &answer, 0);
        }
        self.count_read(wanted.min(request.in_expected()));
        self.send_data(request, &Source::Long(&Arc::new(buffer)), wanted);
    }

    /// Answers a command; `wanted` is what it moves in either direction.
    pub(super) fn finish(&mut self, request: Request, answer: Answer, wanted: usize) {
        if answer.status == Status::Good && !answer.data.is_empty() {
            self.send_data(request, &Source::Short(&answer.data), answer.data.len());
        } else {
            self.respond(request, &answer, wanted);
        }
    }

    /// SCSI Response (RFC 7143 §11.4).
    fn respond(&mut self, request: Request, answer: &Answer, wanted: usize) {
        let mut header = Header::reply(response::SCSI, pdu::FINAL, request.tag);
        header.0[3] = answer.status as u8;
        header.set_word(36, request.pdus);
        set_residual(&mut header, wanted, request.expected());
        if answer.sense.is_empty() {
            return self.send_status(header, &[]);
        }
        let length = (answer.sense.len() as u16).to_be_bytes();
        self.send_status(header, &[&length, &answer.sense[..]].concat());
    }

    /// Data-In PDUs in sequences of at most MaxBurstLength, the last with status GOOD.
    fn send_data(&mut self, mut request: Request, source: &Source<'_>, wanted: usize) {
        let end = wanted.min(request.in_expected());
        if end == 0 {
            return self.respond(request, &Answer::good(), wanted);
        }
        let segment = self.params.send_segment_bytes as usize;
        let burst = self.params.max_burst_bytes as usize;
        let mut at = 0;
        while at < end {
            let burst_end = (at - at % burst + burst).min(end);
            let next = (at + segment).min(burst_end);
            let mut header = Header::reply(response::DATA_IN, 0, request.tag);
            if next == burst_end {
                header.0[1] |= pdu::FINAL;
            }
            header.set_word(20, NO_TAG);
            header.set_word(36, request.pdus);
            header.set_word(40, at as u32);
            request.pdus += 1;
            self.stamp(&mut header, next == end);
            if next == end {
                header.0[1] |= pdu::STATUS;
                set_residual(&mut header, wanted, request.expected());
            } else {
                header.set_word(24, 0); // StatSN is valid with a status only
            }
            self.send_segment(header, source, at, next);
            at = next;
        }
    }

    fn send_segment(&mut self, mut header: Header, source: &Source<'_>, at: usize, next: usize) {
        let data = match source {
            Source::Long(buffer) => buffer.get(at..next),
            Source::Short(data) => data.get(at..next),
        };
        let data = data.unwrap_or_default();
        match source {
            Source::Long(buffer) if data.len() > GATHER_BYTES => {
                header.set_data_bytes(data.len());
                self.out.push(&header.0);
                if self.params.header_digest {
                    self.out.push(&pdu::digest(&[&header.0]));
                }
                self.out.push_long(buffer, at..next);
                let known = sum_of(buffer.sums(), at..next);
                self.send_tail(data, known);
            }
            Source::Long(buffer) => self.send(header, data, sum_of(buffer.sums(), at..next)),
            Source::Short(_) => self.send(header, data, None),
        }
    }
}

/// Copies `bytes` to `at` of `room`, which has the space.
fn put(room: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(to) = room.get_mut(at..at + bytes.len()) {
        to.copy_from_slice(bytes);
    }
}
