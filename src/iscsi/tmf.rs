//! Task management (RFC 7143 §11.5, §11.6). A response is sent when none of the tasks it is about
//! runs any more; tasks of other sessions are ended through [`Nexus::aborts`], and a job waits for
//! it.
//!
//! [`Nexus::aborts`]: crate::scsi::Nexus::aborts

use std::sync::Arc;

use super::connection::{Connection, Phase};
use super::job::Job;
use super::pdu::{self, response, Header};
use super::transfer::State;
use crate::scsi::is_unit;

/// Responses (RFC 7143 §11.6.1).
const COMPLETE: u8 = 0;
const NO_TASK: u8 = 1;
const NO_LUN: u8 = 2;
const NO_REASSIGN: u8 = 4;
const NOT_SUPPORTED: u8 = 5;
const NOT_AUTHORIZED: u8 = 6;
/// Function TARGET COLD RESET.
const COLD_RESET: u8 = 7;

impl Connection {
    pub(super) fn task_management(&mut self, request: &Header) {
        if !self.admit(request) {
            return;
        }
        let outcome = match (request.flags() & 0x7F, request.lun()) {
            (2 | 4 | 5, lun) if !is_unit(lun) => NO_LUN,
            (1, _) => self.abort_task(request.word(20)),
            (2 | 4, _) => self.abort_own_tasks(),
            // it ends the sessions of all
            (COLD_RESET, _) if !self.may_change() => NOT_AUTHORIZED,
            (5..=7, _) => self.reset(),
            (8, _) => NO_REASSIGN,
            _ => NOT_SUPPORTED,
        };
        let mut header = Header::reply(response::TASK_MANAGEMENT, pdu::FINAL, request.tag());
        header.0[2] = outcome;
        self.cold_reset |= request.flags() & 0x7F == COLD_RESET && outcome == COMPLETE;
        self.management.push(header);
        self.answer_management();
    }

    /// Sends the responses that wait, once no aborted task runs.
    pub(super) fn answer_management(&mut self) {
        let running = |state: &State| matches!(state, State::Running { aborted: true, .. });
        if self.settling > 0 || self.tasks.values().any(|entry| running(&entry.state)) {
            return;
        }
        for header in std::mem::take(&mut self.management) {
            self.send_status(header, &[]);
        }
        if let (Phase::Full(session), true) = (&self.phase, std::mem::take(&mut self.cold_reset)) {
            self.service.end_target(&session.opened.target);
            self.close();
        }
    }

    fn may_change(&self) -> bool {
        matches!(&self.phase, Phase::Full(session) if session.opened.nexus.may_change())
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
            self.settling += 1;
            self.jobs.push_urgent(Job::settle(Arc::clone(nexus)));
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
