//! The order of a quiesced snapshot, without clock, process or socket: events in, acts out.
//!
//! Invariants: an act of freezing is followed by one of thawing unless the agent said that nothing
//! is frozen; the snapshot is asked for only while the agent's last word is that the application is
//! at rest; it counts as consistent only if the agent confirms afterwards that it was at rest until
//! then.

use crate::fs::HookOutcome;
use std::time::Duration;

/// How long each step may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Until the application is at rest: a database may have gigabytes to write.
    pub freeze: Duration,
    /// Until the snapshot is there; so long, and no longer, the application stands still.
    pub snapshot: Duration,
    /// Until it goes on.
    pub thaw: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        let seconds = Duration::from_secs;
        // Ten seconds is what Windows' shadow copies grant between freeze and thaw.
        Limits { freeze: seconds(60), snapshot: seconds(10), thaw: seconds(30) }
    }
}

impl Limits {
    /// When the agent thaws by itself: after the command should have asked for it.
    pub fn dead_man(&self) -> Duration {
        self.snapshot + Duration::from_secs(2)
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<T> {
    /// The application is at rest.
    Frozen,
    /// It did not freeze, and nothing has to be thawed.
    Refused(String),
    /// It did not come to rest in time. The agent thaws it.
    TimedOut(String),
    /// The answer to the wish for a snapshot.
    Made(T),
    /// It goes on, as it was asked to.
    Thawed,
    /// The agent let it go on before it was asked to.
    WentOn,
    /// It could not be thawed.
    StillFrozen(String),
    /// The agent is gone.
    AgentGone,
    /// The time asked for has come.
    Time,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Ask the agent to freeze.
    Freeze,
    /// Take the snapshot.
    Snapshot,
    /// Ask the agent to thaw.
    Thaw,
    /// There is no agent (any more) that could: thaw from here.
    ThawHere,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Freezing,
    Snapshotting,
    Thawing,
    Over,
}

/// How it ended.
#[derive(Debug)]
pub struct Report<T> {
    /// The answer to the wish for a snapshot, if it was asked for and came.
    pub made: Option<T>,
    /// Whether the application was at rest.
    pub outcome: HookOutcome,
    /// Why it was not.
    pub why: Option<String>,
    /// It may still be frozen, and why.
    pub stuck: Option<String>,
}

/// The machine.
#[derive(Debug)]
pub struct Machine<T> {
    limits: Limits,
    step: Step,
    /// Since the beginning.
    deadline: Duration,
    made: Option<T>,
    /// Nobody is left to be asked: the agent is gone, or has let the application go on.
    is_alone: bool,
    /// Set once, by the first thing that goes wrong.
    failed: Option<(HookOutcome, String)>,
    stuck: Option<String>,
}

impl<T> Machine<T> {
    /// Begins at time zero, with the act of freezing.
    pub fn new(limits: Limits) -> (Machine<T>, Act) {
        // The agent knows the limit too and tells what it waited for: it shall be first.
        let deadline = limits.freeze + Duration::from_secs(2);
        let (step, is_alone) = (Step::Freezing, false);
        let (made, failed, stuck) = (None, None, None);
        (Machine { limits, step, deadline, made, is_alone, failed, stuck }, Act::Freeze)
    }

    /// When [`Event::Time`] is due, since the beginning; `None`: it is over.
    pub fn deadline(&self) -> Option<Duration> {
        (self.step != Step::Over).then_some(self.deadline)
    }

    /// What came of it. Meant for when it is over.
    pub fn report(self) -> Report<T> {
        let (outcome, why) = match self.failed {
            Some((outcome, why)) => (outcome, Some(why)),
            None => (HookOutcome::AtRest, None),
        };
        Report { made: self.made, outcome, why, stuck: self.stuck }
    }

    /// Takes an event at time `now` since the beginning.
    pub fn on(&mut self, now: Duration, event: Event<T>) -> Option<Act> {
        if let Event::Made(answer) = event {
            self.made = Some(answer);
            return if self.step == Step::Snapshotting { self.thaw(now) } else { None };
        }
        match self.step {
            Step::Freezing => self.while_freezing(now, event),
            Step::Snapshotting => self.while_snapshotting(now, event),
            Step::Thawing => self.while_thawing(event),
            Step::Over => None,
        }
    }

    fn while_freezing(&mut self, now: Duration, event: Event<T>) -> Option<Act> {
        match event {
            Event::Frozen => {
                (self.step, self.deadline) = (Step::Snapshotting, now + self.limits.snapshot);
                Some(Act::Snapshot)
            }
            Event::Refused(why) => self.over(HookOutcome::Refused, &why),
            Event::TimedOut(why) => self.over(HookOutcome::TimedOut, &why),
            Event::StillFrozen(why) => {
                self.stuck = Some(why);
                self.over(HookOutcome::TimedOut, "it did not come to rest in time")
            }
            Event::Time => {
                self.fail(HookOutcome::TimedOut, "it did not come to rest in time");
                self.thaw(now)
            }
            Event::AgentGone => {
                self.over(HookOutcome::Refused, AGENT_ENDED);
                Some(Act::ThawHere)
            }
            Event::Made(_) | Event::Thawed | Event::WentOn => None,
        }
    }

    fn while_snapshotting(&mut self, now: Duration, event: Event<T>) -> Option<Act> {
        match event {
            Event::Time => {
                self.fail(HookOutcome::WentOn, "the snapshot was not there in time");
                self.thaw(now)
            }
            Event::AgentGone if self.is_alone => None,
            Event::AgentGone => {
                self.fail(HookOutcome::WentOn, AGENT_ENDED);
                self.is_alone = true;
                Some(Act::ThawHere)
            }
            // The snapshot itself is still waited for.
            other => {
                if let Event::StillFrozen(why) = other {
                    self.stuck = Some(why);
                }
                self.fail(HookOutcome::WentOn, "it went on before the snapshot was there");
                self.is_alone = true;
                None
            }
        }
    }

    fn while_thawing(&mut self, event: Event<T>) -> Option<Act> {
        match event {
            Event::Thawed => self.step = Step::Over,
            Event::WentOn => {
                self.over(HookOutcome::WentOn, "it went on before the snapshot was there");
            }
            Event::Refused(why) | Event::TimedOut(why) => {
                self.over(HookOutcome::TimedOut, &why);
            }
            Event::StillFrozen(why) => {
                self.stuck = Some(why);
                self.step = Step::Over;
            }
            Event::AgentGone => {
                self.over(HookOutcome::WentOn, AGENT_ENDED);
                return Some(Act::ThawHere);
            }
            Event::Time => {
                let late = "nobody confirmed in time that it goes on";
                self.stuck = Some(late.to_owned());
                self.over(HookOutcome::WentOn, late);
                return Some(Act::ThawHere);
            }
            Event::Frozen | Event::Made(_) => {}
        }
        None
    }

    fn thaw(&mut self, now: Duration) -> Option<Act> {
        if self.is_alone {
            self.step = Step::Over;
            return None;
        }
        (self.step, self.deadline) = (Step::Thawing, now + self.limits.thaw);
        Some(Act::Thaw)
    }

    fn fail(&mut self, outcome: HookOutcome, why: &str) {
        self.failed.get_or_insert_with(|| (outcome, why.to_owned()));
    }

    fn over(&mut self, outcome: HookOutcome, why: &str) -> Option<Act> {
        self.fail(outcome, why);
        self.step = Step::Over;
        None
    }
}

const AGENT_ENDED: &str = "the process that froze it has ended";

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    /// Feeds events, each a second after the other; the acts, and what came of it.
    fn play(events: Vec<Event<u32>>) -> (Vec<Act>, Report<u32>) {
        let (mut machine, first) = Machine::new(Limits::default());
        let mut acts = vec![first];
        for (at, event) in events.into_iter().enumerate() {
            acts.extend(machine.on(seconds(at as u64 + 1), event));
        }
        assert_eq!(machine.deadline(), None, "it is over after {acts:?}");
        (acts, machine.report())
    }

    #[test]
    fn the_order_of_a_good_run() {
        let (acts, report) = play(vec![Event::Frozen, Event::Made(7), Event::Thawed]);
        assert_eq!(acts, [Act::Freeze, Act::Snapshot, Act::Thaw]);
        assert_eq!((report.made, report.outcome), (Some(7), HookOutcome::AtRest));
        assert_eq!((report.why, report.stuck), (None, None));
    }

    #[test]
    fn who_does_not_freeze_gets_no_snapshot() {
        let (acts, report) = play(vec![Event::Refused("no".into())]);
        assert_eq!(acts, [Act::Freeze]);
        assert_eq!((report.made, report.outcome), (None, HookOutcome::Refused));
        for late in [Event::TimedOut("late".into()), Event::StillFrozen("late".into())] {
            let (acts, report) = play(vec![late]);
            assert_eq!(acts, [Act::Freeze]);
            assert_eq!((report.made, report.outcome), (None, HookOutcome::TimedOut));
        }
        let (acts, report) = play(vec![Event::Time, Event::Thawed]);
        assert_eq!(acts, [Act::Freeze, Act::Thaw]);
        assert_eq!((report.made, report.outcome), (None, HookOutcome::TimedOut));
    }

    #[test]
    fn without_an_agent_the_command_thaws() {
        let (acts, report) = play(vec![Event::AgentGone]);
        assert_eq!(acts, [Act::Freeze, Act::ThawHere]);
        assert_eq!(report.outcome, HookOutcome::Refused);
        let (acts, report) = play(vec![Event::Frozen, Event::Made(1), Event::AgentGone]);
        assert_eq!(acts, [Act::Freeze, Act::Snapshot, Act::Thaw, Act::ThawHere]);
        assert_eq!((report.made, report.outcome), (Some(1), HookOutcome::WentOn));
        let (mut machine, _) = Machine::<u32>::new(Limits::default());
        machine.on(seconds(1), Event::Frozen);
        assert_eq!(machine.on(seconds(2), Event::AgentGone), Some(Act::ThawHere));
        assert_eq!(machine.on(seconds(3), Event::Made(1)), None);
        assert_eq!(machine.deadline(), None);
        assert_eq!(machine.report().outcome, HookOutcome::WentOn);
    }

    #[test]
    fn a_snapshot_that_is_late_is_not_consistent() {
        let late = vec![Event::Frozen, Event::Time, Event::Made(1), Event::Thawed];
        let (acts, report) = play(late);
        assert_eq!(acts, [Act::Freeze, Act::Snapshot, Act::Thaw]);
        assert_eq!((report.made, report.outcome), (Some(1), HookOutcome::WentOn));
        let (acts, report) =
            play(vec![Event::Frozen, Event::WentOn, Event::AgentGone, Event::Made(1)]);
        assert_eq!(acts, [Act::Freeze, Act::Snapshot]);
        assert_eq!((report.made, report.outcome), (Some(1), HookOutcome::WentOn));
    }

    #[test]
    fn what_stays_frozen_is_told_and_the_snapshot_still_counts() {
        let stuck = Event::StillFrozen("device busy".into());
        let (_, report) = play(vec![Event::Frozen, Event::Made(1), stuck]);
        assert_eq!((report.made, report.outcome), (Some(1), HookOutcome::AtRest));
        assert_eq!(report.stuck.as_deref(), Some("device busy"));
    }

    #[test]
    fn each_step_has_its_limit() {
        let limits = Limits::default();
        let (mut machine, _) = Machine::<u32>::new(limits);
        assert!(machine.deadline() > Some(limits.freeze));
        machine.on(seconds(5), Event::Frozen);
        assert_eq!(machine.deadline(), Some(seconds(5) + limits.snapshot));
        assert!(limits.dead_man() > limits.snapshot);
        machine.on(seconds(6), Event::Made(1));
        assert_eq!(machine.deadline(), Some(seconds(6) + limits.thaw));
        assert_eq!(machine.on(seconds(36), Event::Time), Some(Act::ThawHere));
        assert_eq!(machine.deadline(), None);
        let report = machine.report();
        assert_eq!((report.made, report.outcome), (Some(1), HookOutcome::WentOn));
        assert!(report.stuck.is_some());
    }
}
