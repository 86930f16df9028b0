//! What a policy says: when the next snapshot is due, and which old ones go. Arithmetic alone, over
//! times that are handed in; all times are UTC, so no day is shorter than another.
//!
//! - Time is cut into slots of `every`, counted from 1970. A run is due when the last one lies in
//!   an earlier slot: so runs keep to the clock (`every 1h` is at the full hour) whenever a server
//!   was started, and what was missed is made up for by one run.
//! - Of the snapshots that policies made the newest `keep` stay, and for each rule the newest of as
//!   many different hours, days, weeks or months as it says. One that is held stays and counts for
//!   no rule's loss; replication holds what it needs.

use crate::fs::Timestamp;
use serde::{Deserialize, Serialize};

const SECOND_NS: i64 = 1_000_000_000;
const HOUR_S: i64 = 3600;
const DAY_S: i64 = 24 * HOUR_S;
/// How many of the newest stay where nothing says what stays.
const DEFAULT_KEEP: u32 = 8;
/// After a failure it is tried again so much later, or with the next run where that is earlier.
const RETRY_S: u64 = 60;

/// A policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Seconds between two snapshots.
    pub every_seconds: u64,
    /// How many of the newest stay.
    pub keep: u32,
    /// How many hours have one.
    pub keep_hourly: u32,
    /// How many days have one.
    pub keep_daily: u32,
    /// How many weeks have one.
    pub keep_weekly: u32,
    /// How many months have one.
    pub keep_monthly: u32,
}

/// What is said of a policy; what is absent stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyChange {
    /// [`Policy::every_seconds`].
    pub every_seconds: Option<u64>,
    /// [`Policy::keep`].
    pub keep: Option<u32>,
    /// [`Policy::keep_hourly`].
    pub keep_hourly: Option<u32>,
    /// [`Policy::keep_daily`].
    pub keep_daily: Option<u32>,
    /// [`Policy::keep_weekly`].
    pub keep_weekly: Option<u32>,
    /// [`Policy::keep_monthly`].
    pub keep_monthly: Option<u32>,
}

impl PolicyChange {
    /// What comes of it; `None`: it does not say how often, and nothing did before.
    pub fn apply(&self, before: Option<Policy>) -> Option<Policy> {
        let before_or = |part: fn(&Policy) -> u32| before.as_ref().map_or(0, part);
        let mut after = Policy {
            every_seconds: self.every_seconds.or(before.map(|p| p.every_seconds))?.max(1),
            keep: self.keep.unwrap_or(before_or(|p| p.keep)),
            keep_hourly: self.keep_hourly.unwrap_or(before_or(|p| p.keep_hourly)),
            keep_daily: self.keep_daily.unwrap_or(before_or(|p| p.keep_daily)),
            keep_weekly: self.keep_weekly.unwrap_or(before_or(|p| p.keep_weekly)),
            keep_monthly: self.keep_monthly.unwrap_or(before_or(|p| p.keep_monthly)),
        };
        let rules = [after.keep_hourly, after.keep_daily, after.keep_weekly, after.keep_monthly];
        if after.keep == 0 && rules.iter().all(|rule| *rule == 0) {
            after.keep = DEFAULT_KEEP;
        }
        Some(after)
    }
}

/// A snapshot that a policy made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// When it was due to be made, as its name says.
    pub time: Timestamp,
    /// It is held: it stays.
    pub held: bool,
}

impl Policy {
    fn every_ns(&self) -> i64 {
        i64::try_from(self.every_seconds).unwrap_or(i64::MAX).max(1).saturating_mul(SECOND_NS)
    }

    fn slot(&self, time: Timestamp) -> i64 {
        time.0.div_euclid(self.every_ns())
    }

    /// The newest run of these that is not in the future: there the clock was wrong.
    pub fn newest(&self, times: &[Timestamp], now: Timestamp) -> Option<Timestamp> {
        times.iter().filter(|time| self.slot(**time) <= self.slot(now)).max().copied()
    }

    /// The last run, unless it lies in the future: then the clock was wrong, and it counts as none.
    fn last(&self, last: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
        last.filter(|last| self.slot(*last) <= self.slot(now))
    }

    /// When the next snapshot is due, not before now. `failed`: when the last attempt failed.
    pub fn next(
        &self,
        last: Option<Timestamp>,
        failed: Option<Timestamp>,
        now: Timestamp,
    ) -> Timestamp {
        let due = match self.last(last, now) {
            None => now,
            Some(last) if self.slot(last) < self.slot(now) => now,
            Some(_) => {
                return Timestamp(self.slot(now).saturating_add(1).saturating_mul(self.every_ns()))
            }
        };
        let pause = self.every_seconds.min(RETRY_S) as i64 * SECOND_NS;
        match failed.filter(|failed| *failed <= now) {
            Some(failed) => due.max(Timestamp(failed.0.saturating_add(pause))),
            None => due,
        }
    }

    /// Whether one is due now.
    pub fn is_due(
        &self,
        last: Option<Timestamp>,
        failed: Option<Timestamp>,
        now: Timestamp,
    ) -> bool {
        self.next(last, failed, now) <= now
    }

    /// Which of the snapshots go: their places in `all`. What seems to be of the future stays, and
    /// counts for nothing: the clock is wrong, or was.
    pub fn prune(&self, all: &[Kept], now: Timestamp) -> Vec<usize> {
        let time = |at: &usize| all.get(*at).map_or(Timestamp(0), |one| one.time);
        let mut newest_first: Vec<usize> = (0..all.len()).filter(|at| time(at) <= now).collect();
        newest_first.sort_by_key(|at| std::cmp::Reverse(time(at)));
        let mut stays: Vec<bool> = all.iter().map(|one| one.time > now).collect();
        let mut stay = |at: usize| stays.get_mut(at).into_iter().for_each(|it| *it = true);
        // Whatever is said, the newest is never taken away: it tells when the last run was.
        newest_first.iter().take(self.keep.max(1) as usize).for_each(|at| stay(*at));
        let rules: [(u32, PeriodOf); 4] = [
            (self.keep_hourly, |s| s.div_euclid(HOUR_S)),
            (self.keep_daily, |s| s.div_euclid(DAY_S)),
            // The first of January 1970 was a Thursday.
            (self.keep_weekly, |s| (s.div_euclid(DAY_S) + 3).div_euclid(7)),
            (self.keep_monthly, month_of),
        ];
        for (count, period_of) in rules {
            let (mut left, mut last) = (count, None);
            for at in &newest_first {
                let period = period_of(time(at).0.div_euclid(SECOND_NS));
                if left == 0 {
                    break;
                }
                if last != Some(period) {
                    (left, last) = (left - 1, Some(period));
                    stay(*at);
                }
            }
        }
        let goes = |at: &usize| {
            let held = all.get(*at).is_some_and(|one| one.held);
            !held && stays.get(*at) == Some(&false)
        };
        (0..all.len()).filter(goes).collect()
    }
}

/// The number of the period that a second since 1970 is in.
type PeriodOf = fn(i64) -> i64;

/// Months since the year 0 of a second since 1970.
fn month_of(second: i64) -> i64 {
    let time = jiff::Timestamp::from_second(second).unwrap_or_default();
    let date = time.to_zoned(jiff::tz::TimeZone::UTC).date();
    i64::from(date.year()) * 12 + i64::from(date.month())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        let time: jiff::Timestamp = text.parse().unwrap();
        Timestamp(time.as_nanosecond() as i64)
    }

    fn every(seconds: u64, keep: u32) -> Policy {
        let change = PolicyChange {
            every_seconds: Some(seconds),
            keep: Some(keep),
            ..PolicyChange::default()
        };
        change.apply(None).unwrap()
    }

    /// Lets a policy run each minute; the snapshots that are left, oldest first.
    fn run(policy: &Policy, from: &str, to: &str, down: &[(&str, &str)]) -> Vec<Kept> {
        let (mut now, end) = (at(from), at(to));
        let mut all: Vec<Kept> = Vec::new();
        while now < end {
            let is_down = down.iter().any(|(a, b)| at(a) <= now && now < at(b));
            let last = all.iter().map(|one| one.time).max();
            if !is_down && policy.is_due(last, None, now) {
                all.push(Kept { time: now, held: false });
                let goes = policy.prune(&all, now);
                goes.iter().rev().for_each(|at| {
                    all.remove(*at);
                });
            }
            now.0 += 60 * SECOND_NS;
        }
        all
    }

    fn texts(all: &[Kept]) -> Vec<String> {
        let text =
            |one: &Kept| jiff::Timestamp::from_nanosecond(one.time.0.into()).unwrap().to_string();
        all.iter().map(text).collect()
    }

    #[test]
    fn runs_keep_to_the_clock_and_missed_ones_are_made_up_for_once() {
        let down = [("2026-11-20T10:20:00Z", "2026-11-20T12:37:00Z")];
        let all = run(&every(900, 99), "2026-11-20T10:01:00Z", "2026-11-20T13:01:00Z", &down);
        let expected = [
            "2026-11-20T10:01:00Z",
            "2026-11-20T10:15:00Z",
            "2026-11-20T12:37:00Z",
            "2026-11-20T12:45:00Z",
            "2026-11-20T13:00:00Z",
        ];
        assert_eq!(texts(&all), expected);
    }

    #[test]
    fn what_comes_next() {
        let policy = every(3600, 1);
        let now = at("2026-11-20T10:20:00Z");
        assert_eq!(policy.next(None, None, now), now);
        assert_eq!(policy.next(Some(now), None, now), at("2026-11-20T11:00:00Z"));
        // After a failure, a minute later; a clock that was wrong stops nothing.
        let failed = at("2026-11-20T10:19:30Z");
        assert_eq!(policy.next(None, Some(failed), now), at("2026-11-20T10:20:30Z"));
        assert!(policy.is_due(Some(at("2031-01-01T00:00:00Z")), None, now));
        assert!(policy.is_due(None, Some(at("2031-01-01T00:00:00Z")), now));
        let longest = Policy { every_seconds: u64::MAX, ..policy };
        assert!(longest.next(Some(now), None, now) > now);
    }

    #[test]
    fn each_rule_keeps_the_last_of_its_periods() {
        let policy = Policy {
            keep_hourly: 3,
            keep_daily: 2,
            keep_weekly: 2,
            keep_monthly: 3,
            ..every(1800, 2)
        };
        let all = run(&policy, "2026-09-01T00:00:00Z", "2026-11-20T10:10:00Z", &[]);
        let expected = [
            "2026-09-30T23:30:00Z", // months
            "2026-10-31T23:30:00Z",
            "2026-11-15T23:30:00Z", // the week before, which ended on a Sunday
            "2026-11-19T23:30:00Z", // the day before
            "2026-11-20T08:30:00Z", // hours
            "2026-11-20T09:30:00Z", // the newest two
            "2026-11-20T10:00:00Z",
        ];
        assert_eq!(texts(&all), expected);
    }

    #[test]
    fn what_is_held_stays_and_so_does_the_newest() {
        let time = |minute: i64| Timestamp(minute * 60 * SECOND_NS);
        let mut all: Vec<Kept> = (0..6).map(|i| Kept { time: time(i), held: i == 1 }).collect();
        assert_eq!(every(60, 2).prune(&all, time(9)), [0, 2, 3]);
        all.reverse();
        assert_eq!(every(60, 2).prune(&all, time(9)), [2, 3, 5]);
        let nothing = Policy { keep: 0, ..every(60, 1) };
        assert_eq!(nothing.prune(&all, time(9)), [1, 2, 3, 5]);
        assert!(nothing.prune(&[], time(9)).is_empty());
    }

    /// An hour of a clock that was set back costs no snapshot of before, and brings no more than
    /// there would have been.
    #[test]
    fn a_clock_that_goes_back_neither_floods_nor_empties() {
        let policy = every(60, 4);
        let (right, wrong) = (at("2026-11-20T10:00:00Z"), at("2026-11-20T08:00:00Z"));
        let before: Vec<Kept> = (0..4)
            .map(|n| Kept { time: Timestamp(right.0 - n * 60 * SECOND_NS), held: false })
            .collect();
        let (mut all, mut made) = (before.clone(), 0);
        for half_second in 0..7200 {
            let now = Timestamp(wrong.0 + half_second * SECOND_NS / 2);
            let times: Vec<Timestamp> = all.iter().map(|one| one.time).collect();
            if policy.is_due(policy.newest(&times, now), None, now) {
                made += 1;
                all.push(Kept { time: now, held: false });
                policy.prune(&all, now).iter().rev().for_each(|at| {
                    all.remove(*at);
                });
            }
        }
        assert_eq!(made, 60);
        assert_eq!(all.len(), 8);
        assert!(before.iter().all(|one| all.contains(one)));
        // The clock is right again: the oldest go, by what they are called.
        assert_eq!(policy.prune(&all, right).len(), 4);
        assert!(policy.prune(&all, right).iter().all(|at| all[*at].time < before[3].time));
    }

    #[test]
    fn a_change_leaves_the_rest() {
        let keep = PolicyChange { keep_daily: Some(14), ..PolicyChange::default() };
        assert_eq!(keep.apply(None), None);
        let policy = keep.apply(Some(every(900, 3))).unwrap();
        assert_eq!((policy.every_seconds, policy.keep, policy.keep_daily), (900, 3, 14));
        let often = PolicyChange { every_seconds: Some(60), ..PolicyChange::default() };
        assert_eq!(often.apply(None).unwrap().keep, DEFAULT_KEEP);
    }
}
