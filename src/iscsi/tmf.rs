//! Task management (RFC 7143 §11.5, §11.6). A response is sent when none of the tasks it is about
//! runs any more; tasks of other sessions are ended through [`Nexus::aborts`].
//!
//! [`Nexus::aborts`]: crate::scsi::Nexus::aborts

use super::connection::{Connection, Phase};
use super::pdu::{self, response, Header};
use super::transfer::State;

/// Responses (RFC 7143 §11.6.1).
const COMPLETE: u8 = 0;
const NO_TASK: u8 = 1;
const NO_LUN: u8 = 2;
const NO_REASSIGN: u8 = 4;
const NOT_SUPPORTED: u8 = 5;

impl Connection {
    pub(super) fn task_management(&mut self, request: &Header) {
        if !self.admit(request) {
            return;
        }
        let outcome = match (request.flags() & 0x7F, request.lun()) {
            (2 | 4 | 5, lun) if lun != 0 => NO_LUN,
            (1, _) => self.abort_task(request.word(20)),
            (2 | 4, _) => self.abort_own_tasks(),
            (5..=7, _) => self.reset(),
            (8, _) => NO_REASSIGN,
            _ => NOT_SUPPORTED,
        };
        let mut header = Header::reply(response::TASK_MANAGEMENT, pdu::FINAL, request.tag());
        header.0[2] = outcome;
        self.management.push(header);
        self.answer_management();
    }

    /// Sends the responses that wait, once no aborted task runs.
    pub(super) fn answer_management(&mut self) {
        let running = |state: &State| matches!(state, State::Running { aborted: true, .. });
        if self.tasks.values().any(|entry| running(&entry.state)) {
            return;
        }
        for header in std::mem::take(&mut self.management) {
            self.send_status(header, &[]);
        }
    }

    fn abort_task(&mut self, tag: u32) -> u8 {
        match self.tasks.contains_key(&tag) {
            true => {
                self.abort(tag);
                COMPLETE
            }
            false => NO_TASK,
        }
    }

    /// ABORT TASK SET and CLEAR TASK SET: the tasks of this nexus, which are its task set.
    fn abort_own_tasks(&mut self) -> u8 {
        let tags: Vec<u32> = self.tasks.keys().copied().collect();
        for tag in tags {
            self.abort(tag);
        }
        COMPLETE
    }

    /// LOGICAL UNIT RESET; a target has one unit, so the target resets are the same.
    fn reset(&mut self) -> u8 {
        if let Phase::Full(session) = &mut self.phase {
            let nexus = &session.opened.nexus;
            nexus.unit().reset();
            session.seen_aborts = nexus.aborts();
        }
        self.abort_own_tasks()
    }

    /// Ends tasks that another session aborted (a reset, a preemption).
    pub(super) fn look_for_aborts(&mut self) {
        let Phase::Full(session) = &mut self.phase else {
            return;
        };
        let aborts = session.opened.nexus.aborts();
        if aborts != session.seen_aborts {
            session.seen_aborts = aborts;
            self.abort_own_tasks();
        }
    }
}
