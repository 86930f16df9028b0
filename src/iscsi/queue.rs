//! The jobs of one connection: which may begin. What one client has running is bounded, so that its
//! jobs leave threads to the others.
//!
//! Invariants: at most [`MAX_RUNNING`] run, but for urgent ones, and [`MAX_LONG`] long ones among
//! them; of all connections of one initiator [`MAX_OF_INITIATOR`], but each may have one, so that
//! its end finds the next.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use super::job::{Done, Job};
use super::session::Share;

/// Jobs of one connection that run at a time; the others wait their turn.
const MAX_RUNNING: usize = 32;
/// Jobs that may take seconds, each on a thread of its own.
const MAX_LONG: usize = 2;
/// Jobs of all connections of one initiator: a quarter of the threads of one of the door's shards.
const MAX_OF_INITIATOR: u32 = 64;

/// What waits, and how many run.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    waiting: VecDeque<Job>,
    running: usize,
    /// Task tags of the long ones that run.
    long: Vec<u32>,
    /// What the connections of its initiator share, and how many of its jobs were counted there.
    share: Option<(Arc<Share>, u32)>,
}

impl Jobs {
    /// From here on its jobs are counted among those of its initiator.
    pub fn count_with(&mut self, share: Arc<Share>) {
        self.share = Some((share, 0));
    }

    pub fn push(&mut self, job: Job) {
        self.waiting.push_back(job);
    }

    /// One that others wait for, on this connection and elsewhere: it begins at once.
    pub fn push_urgent(&mut self, job: Job) {
        self.waiting.push_front(job);
    }

    /// The next one that may begin.
    pub fn next(&mut self) -> Option<Job> {
        let urgent = self.waiting.front()?.is_urgent();
        if !urgent && (self.running >= MAX_RUNNING || (self.running > 0 && self.is_crowded())) {
            return None;
        }
        let full = self.long.len() >= MAX_LONG;
        let at = self.waiting.iter().position(|job| !full || job.long_tag().is_none())?;
        let job = self.waiting.remove(at)?;
        self.long.extend(job.long_tag());
        self.running += 1;
        if let Some((share, counted)) = &mut self.share {
            share.running.fetch_add(1, Ordering::Relaxed);
            *counted += 1;
        }
        Some(job)
    }

    fn is_crowded(&self) -> bool {
        let running = |(share, _): &(Arc<Share>, u32)| {
            share.running.load(Ordering::Relaxed) >= MAX_OF_INITIATOR
        };
        self.share.as_ref().is_some_and(running)
    }

    /// One has ended.
    pub fn ended(&mut self, done: &Done) {
        self.running = self.running.saturating_sub(1);
        if let Done::Scsi(tag, ..) = done {
            self.long.retain(|long| long != tag);
        }
        self.uncount(1);
    }

    fn uncount(&mut self, jobs: u32) {
        if let Some((share, counted)) = &mut self.share {
            let jobs = jobs.min(*counted); // the job that opened the session was not
            *counted -= jobs;
            share.running.fetch_sub(jobs, Ordering::Relaxed);
        }
    }

    /// Those that wait are given up.
    pub fn clear(&mut self) {
        self.waiting.clear();
    }

    /// Does none wait?
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How many run.
    pub fn running(&self) -> usize {
        self.running
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        self.uncount(u32::MAX);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::super::job::Scsi;
    use super::super::pool::Buffer;
    use super::*;
    use crate::access::Limits;
    use crate::lun::MemoryLun;
    use crate::scsi::{Answer, LogicalUnit, Nexus, Plan, PortNames};

    fn nexus() -> Arc<Nexus> {
        let name = || "n".to_owned();
        let ports = PortNames {
            initiator: name(),
            device: name(),
            port: name(),
            relative_port: 1,
            port_count: 1,
            port_group: 1,
            protocol: 5,
        };
        let disk = Arc::new(MemoryLun::new("t", 1 << 30, 512));
        let nexus = Nexus::new(LogicalUnit::new(), disk, ports);
        assert!(matches!(nexus.begin(0, &[0; 16]), Plan::Done(_)), "its power on");
        Arc::new(nexus)
    }

    fn job(nexus: &Arc<Nexus>, tag: u32, cdb: [u8; 16]) -> Job {
        let Plan::Run(task) = nexus.begin(0, &cdb) else { panic!() };
        let (nexus, cancel) = (Arc::clone(nexus), Arc::new(AtomicBool::new(false)));
        let (out, into) = (Buffer::default(), Buffer::default());
        Job::scsi(Scsi { tag, nexus, task, out, into, summed: false, cancel })
    }

    const FLUSH: [u8; 16] = [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    /// VERIFY of 32 MiB of the medium.
    const VERIFY: [u8; 16] = [0x8F, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];

    fn done(tag: u32) -> Done {
        Done::Scsi(tag, Answer::good(), Buffer::default())
    }

    fn begin_all(jobs: &mut Jobs) -> usize {
        std::iter::from_fn(|| jobs.next()).count()
    }

    #[test]
    fn long_jobs_are_few_and_pass_nobody_by() {
        let (nexus, mut jobs) = (nexus(), Jobs::default());
        (0..5).for_each(|tag| jobs.push(job(&nexus, tag, VERIFY)));
        (5..50).for_each(|tag| jobs.push(job(&nexus, tag, FLUSH)));
        assert_eq!(begin_all(&mut jobs), MAX_RUNNING);
        assert_eq!(jobs.long, [0, 1]);
        jobs.ended(&done(1));
        assert_eq!(jobs.next().and_then(|job| job.long_tag()), Some(2));
        assert!(jobs.next().is_none());
        jobs.push_urgent(Job::settle(nexus));
        assert!(jobs.next().is_some_and(|job| job.is_urgent()));
    }

    #[test]
    fn the_connections_of_one_initiator_share_a_bound() {
        let (nexus, share) = (nexus(), Arc::new(Share::new(Limits::default())));
        let mut all: Vec<Jobs> = (0..4).map(|_| Jobs::default()).collect();
        for jobs in &mut all {
            jobs.count_with(Arc::clone(&share));
            (0..40).for_each(|tag| jobs.push(job(&nexus, tag, FLUSH)));
        }
        let begun: Vec<usize> = all.iter_mut().map(begin_all).collect();
        assert_eq!(begun, [32, 32, 1, 1]);
        all[0].ended(&done(0));
        all[2].ended(&done(0));
        assert_eq!(begin_all(&mut all[2]), 1, "its end found the next");
        drop(all);
        assert_eq!(share.running.load(Ordering::Relaxed), 0);
    }
}
