//! Task attributes (SAM-5 §8.6): a session is a task set of its own (TST = 001b), so its connection
//! alone decides when a command may begin. Data of a command that waits is taken in as of any
//! other.
//!
//! Invariants: an ORDERED command begins when none that came before it is unanswered; a SIMPLE one
//! when no ORDERED or HEAD OF QUEUE one that came before it is; HEAD OF QUEUE at once. `barriers`
//! is true while there may be one that is not SIMPLE, so that without them nothing is looked for.

use super::connection::{Connection, Phase};
use super::pool::Buffer;
use super::transfer::{Entry, Request, State};
use crate::scsi::{Answer, Task};

/// Task attribute of a SCSI command (RFC 7143 §11.3.1); ACA is not offered and counts as simple.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attribute {
    Simple,
    Ordered,
    HeadOfQueue,
}

impl Attribute {
    pub fn of(flags: u8) -> Attribute {
        match flags & 7 {
            2 => Attribute::Ordered,
            3 => Attribute::HeadOfQueue,
            _ => Attribute::Simple,
        }
    }
}

/// A command that waits for its turn.
#[derive(Debug)]
pub(super) enum Ready {
    /// It was decided without data.
    Answered(Answer, usize),
    /// It has its data-out, or needs none.
    Run(Task, Buffer, usize),
}

impl Connection {
    /// Notes a command that came.
    pub(super) fn note_attribute(&mut self, attribute: Attribute) {
        self.barriers |= attribute != Attribute::Simple;
    }

    /// May it begin now?
    pub(super) fn may_begin(&self, request: &Request) -> bool {
        if !self.barriers || request.attribute == Attribute::HeadOfQueue {
            return true;
        }
        let ordered = request.attribute == Attribute::Ordered;
        let mut older = self.tasks.values().map(|entry| &entry.request);
        !older.any(|other| {
            other.number < request.number && (ordered || other.attribute != Attribute::Simple)
        })
    }

    /// Lets it wait.
    pub(super) fn lay_aside(&mut self, request: Request, ready: Ready) {
        self.tasks.insert(request.tag, Entry { request, state: State::Waiting(ready) });
    }

    /// Begins those whose turn has come, as long as there is room for their answers.
    pub(super) fn wake_waiting(&mut self) {
        let full = |phase: &Phase| matches!(phase, Phase::Full(_));
        while self.barriers && full(&self.phase) && self.has_room_for_answers() {
            let waiting = self.tasks.values().filter_map(|entry| match entry.state {
                State::Waiting(_) => Some(entry.request),
                _ => None,
            });
            let next = waiting.min_by_key(|request| request.number);
            let Some(request) = next.filter(|request| self.may_begin(request)) else {
                let simple = |entry: &Entry| entry.request.attribute == Attribute::Simple;
                self.barriers = next.is_some() || !self.tasks.values().all(simple);
                return;
            };
            let Some(Entry { state: State::Waiting(ready), .. }) = self.tasks.remove(&request.tag)
            else {
                return;
            };
            match ready {
                Ready::Answered(answer, wanted) => self.finish(request, answer, wanted),
                Ready::Run(task, buffer, held) if task.data_out_bytes > 0 => {
                    self.run_write(request, task, buffer, held);
                }
                Ready::Run(task, ..) if task.data_in_bytes > 0 => self.read(request, task),
                Ready::Run(task, buffer, held) => self.run_elsewhere(request, task, buffer, held),
            }
        }
    }
}
