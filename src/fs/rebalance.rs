//! From the map a pool has to the one that its devices allow: pure planning, in steps.
//!
//! Rules of a plan:
//! - a segment with a copy on a device that leaves gets another place for it: what is left over
//!   elsewhere; else a pool segment in which nothing is allocated goes out of service, and its
//!   places serve;
//! - then what is left over becomes new pool segments: numbers out of service first;
//! - a mirror in which only one device has something left moves one copy of existing segments
//!   there: each copy moved frees a partner for one segment more;
//! - each step alone leaves a sound map, so a plan may end after any of them, and planning again
//!   yields the rest.

use super::segments::{class_of, push_run, take_all, Free, Members};
use super::types::Redundancy;
use fs_layout::{SegmentRun, RUNS_PER_PAGE, SEGMENT_MAP_PAGES};

/// What planning needs to know of a pool.
pub(crate) struct Present<'a> {
    pub redundancy: Redundancy,
    pub map: &'a [SegmentRun],
    /// End of the pool in segments.
    pub end: u64,
    /// For each device the segments that can be mapped; 0: no device, or one that takes no part.
    pub usable: &'a [u64],
    /// Devices that are to hold nothing any more.
    pub leaving: &'a [bool],
    /// Is nothing allocated in this pool segment, and can it go out of service?
    pub is_free: &'a dyn Fn(u64) -> bool,
}

/// A change of the map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Pool segments come into service.
    New { logical: u64, count: u64, members: Members },
    /// One copy of each gets another place: (device, first segment) from and to.
    Move { logical: u64, count: u64, from: (u16, u64), to: (u16, u64) },
    /// Pool segments go out of service.
    Unmap { logical: u64, count: u64 },
}

/// Why there is no plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// So many segments need another place, and for so many of them there is one.
    NoPlace { needed: u64, placed: u64 },
    /// The map would need more runs than its pages hold.
    MapFull,
}

/// Runs that a plan may come to: a step carried out in parts needs a few more for the moment.
pub(crate) const MAX_PLANNED_RUNS: usize = RUNS_PER_PAGE * SEGMENT_MAP_PAGES - 8;

impl Step {
    /// Its first `count` segments, and the rest if there is one.
    pub fn split(self, count: u64) -> (Step, Option<Step>) {
        let count = count.min(self.count());
        let (head, tail) = (self.cut(0, count), self.cut(count, u64::MAX));
        (head, Some(tail).filter(|tail| tail.count() > 0))
    }

    /// How many segments it is about.
    pub fn count(&self) -> u64 {
        let (first, end) = self.range();
        end - first
    }

    /// The pool segments it is about: first, end.
    pub fn range(&self) -> (u64, u64) {
        match self {
            Step::New { logical, count, .. }
            | Step::Move { logical, count, .. }
            | Step::Unmap { logical, count } => (*logical, logical + count),
        }
    }

    fn cut(&self, skip: u64, most: u64) -> Step {
        let mut part = self.clone();
        let trim = |logical: &mut u64, count: &mut u64| {
            *logical += skip;
            *count = count.saturating_sub(skip).min(most);
        };
        match &mut part {
            Step::New { logical, count, members } => {
                trim(logical, count);
                members.iter_mut().for_each(|member| member.1 += skip);
            }
            Step::Move { logical, count, from, to } => {
                trim(logical, count);
                from.1 += skip;
                to.1 += skip;
            }
            Step::Unmap { logical, count } => trim(logical, count),
        }
        part
    }
}

/// The map after a step.
pub(crate) fn apply(map: &[SegmentRun], class: u8, step: &Step) -> Vec<SegmentRun> {
    let (first, end) = step.range();
    let mut runs = Vec::with_capacity(map.len() + 2);
    for run in map {
        runs.extend([clip(run, 0, first), clip(run, end, u64::MAX)].into_iter().flatten());
        let Some(mut part) = clip(run, first, end) else { continue };
        match step {
            Step::Move { from, to, .. } => {
                let into = part.logical - first;
                let moved = (from.0, from.1 + into);
                for member in part.members.iter_mut().filter(|member| **member == moved) {
                    *member = (to.0, to.1 + into);
                }
                runs.push(part);
            }
            Step::Unmap { .. } => {}
            Step::New { .. } => runs.push(part),
        }
    }
    if let Step::New { logical, count, members } = step {
        let (logical, count, members) = (*logical, *count, members.clone());
        runs.push(SegmentRun { logical, count, class, members });
    }
    runs.sort_by_key(|run| run.logical);
    let mut joined = Vec::with_capacity(runs.len());
    runs.into_iter().for_each(|run| push_run(&mut joined, run));
    joined
}

/// What of a run lies in `from..to`.
fn clip(run: &SegmentRun, from: u64, to: u64) -> Option<SegmentRun> {
    let first = run.logical.max(from);
    let end = (run.logical + run.count).min(to);
    if first >= end {
        return None;
    }
    let into = first - run.logical;
    let members = run.members.iter().map(|(device, segment)| (*device, segment + into)).collect();
    Some(SegmentRun { logical: first, count: end - first, class: run.class, members })
}

/// Segments of each device that stand behind nothing; none of a device that leaves.
pub(crate) fn left_over(map: &[SegmentRun], usable: &[u64], leaving: &[bool]) -> Free {
    let mut used: Vec<Vec<(u64, u64)>> = vec![Vec::new(); usable.len()];
    for run in map {
        for (device, first) in &run.members {
            if let Some(used) = used.get_mut(usize::from(*device)) {
                used.push((*first, first + run.count));
            }
        }
    }
    let of_device = |(device, mut used): (usize, Vec<(u64, u64)>)| {
        if leaving.get(device).copied().unwrap_or(false) {
            return Vec::new();
        }
        used.sort_unstable();
        let end = usable.get(device).copied().unwrap_or(0) + 1;
        used.push((end, end));
        let mut at = 1;
        let mut free = Vec::new();
        for (first, behind) in used {
            if first.min(end) > at {
                free.push((at, first.min(end) - at));
            }
            at = at.max(behind);
        }
        free
    };
    used.into_iter().enumerate().map(of_device).collect()
}

/// Numbers below `end` that are out of service: first, count.
pub(crate) fn gaps(map: &[SegmentRun], end: u64) -> Vec<(u64, u64)> {
    let mut at = 1;
    let mut gaps = Vec::new();
    for (first, behind) in map.iter().map(|r| (r.logical, r.logical + r.count)).chain([(end, end)])
    {
        if first > at {
            gaps.push((at, first - at));
        }
        at = at.max(behind);
    }
    gaps
}

/// The steps from the present map to one that uses all that can be used.
pub(crate) fn plan(present: &Present) -> Result<Vec<Step>, Refusal> {
    let mut planner = Planner {
        present,
        map: present.map.to_vec(),
        end: present.end,
        steps: Vec::new(),
        idle: None,
    };
    planner.evacuate()?;
    loop {
        planner.add_left_over()?;
        if !planner.spread()? {
            return Ok(planner.steps);
        }
    }
}

struct Planner<'a> {
    present: &'a Present<'a>,
    map: Vec<SegmentRun>,
    end: u64,
    steps: Vec<Step>,
    /// Runs of pool segments that can go out of service, largest last; found when first asked for.
    idle: Option<Vec<(u64, u64)>>,
}

impl Planner<'_> {
    fn take(&mut self, step: Step) -> Result<(), Refusal> {
        self.map = apply(&self.map, class_of(self.present.redundancy), &step);
        self.end = self.end.max(step.range().1);
        self.steps.push(step);
        match self.map.len() > MAX_PLANNED_RUNS {
            true => Err(Refusal::MapFull),
            false => Ok(()),
        }
    }

    fn left_over(&self) -> Free {
        left_over(&self.map, self.present.usable, self.present.leaving)
    }

    fn leaves(&self, device: u16) -> bool {
        self.present.leaving.get(usize::from(device)).copied().unwrap_or(false)
    }

    /// A run's copy on a device that leaves.
    fn leaving_member(&self, run: &SegmentRun) -> Option<(u16, u64)> {
        run.members.iter().copied().find(|member| self.leaves(member.0))
    }

    /// Copies on devices that leave.
    fn burden(&self) -> u64 {
        let copies = |run: &SegmentRun| {
            run.members.iter().filter(|member| self.leaves(member.0)).count() as u64 * run.count
        };
        self.map.iter().map(copies).sum()
    }

    fn evacuate(&mut self) -> Result<(), Refusal> {
        let needed = self.burden();
        loop {
            let burden = self.burden();
            if burden == 0 {
                return Ok(());
            }
            let step = self
                .direct_move()
                .or_else(|| self.drop_idle(true))
                .or_else(|| self.make_room_beside())
                .or_else(|| self.drop_idle(false));
            self.take(step.ok_or(Refusal::NoPlace { needed, placed: needed - burden })?)?;
        }
    }

    /// A copy that leaves moves to what is left over on a device that has no copy yet.
    fn direct_move(&self) -> Option<Step> {
        let free = self.left_over();
        self.map.iter().find_map(|run| {
            let from = self.leaving_member(run)?;
            let to = best_place(&free, run)?;
            let count = run.count.min(to.2);
            Some(Step::Move { logical: run.logical, count, from, to: (to.0, to.1) })
        })
    }

    /// Where something is left over, the copy that leaves has its twin: a copy of another segment
    /// moves there, and its place can be used.
    fn make_room_beside(&self) -> Option<Step> {
        let free = self.left_over();
        let stuck = self.map.iter().find(|run| self.leaving_member(run).is_some())?;
        self.map.iter().find_map(|run| {
            if self.leaving_member(run).is_some() {
                return None;
            }
            let to = best_place(&free, run)?;
            let is_twin = |device: u16| stuck.members.iter().any(|member| member.0 == device);
            let from = run.members.iter().copied().find(|member| !is_twin(member.0))?;
            let count = run.count.min(to.2).min(stuck.count);
            Some(Step::Move { logical: run.logical, count, from, to: (to.0, to.1) })
        })
    }

    /// A run of pool segments without anything in them goes out of service: one that has a copy on
    /// a device that leaves, or one that has none.
    fn drop_idle(&mut self, leaving: bool) -> Option<Step> {
        let want = if leaving { u64::MAX } else { self.burden() };
        let idle = match self.idle.take() {
            Some(idle) => idle,
            None => self.find_idle(),
        };
        let idle = self.idle.insert(idle);
        // Both borrowed apart from the rest.
        let leaves =
            |device: u16| self.present.leaving.get(usize::from(device)).copied().unwrap_or(false);
        for at in (0..idle.len()).rev() {
            let (first, count) = idle[at];
            let part = self.map.iter().find_map(|run| {
                let part = clip(run, first, first + count)?;
                (part.members.iter().any(|member| leaves(member.0)) == leaving).then_some(part)
            });
            let Some(part) = part else { continue };
            let count_taken = part.count.min(want);
            let step = Step::Unmap { logical: part.logical, count: count_taken };
            idle.remove(at);
            let behind = part.logical + count_taken;
            let rest = [(first, part.logical - first), (behind, first + count - behind)];
            idle.extend(rest.into_iter().filter(|rest| rest.1 > 0));
            idle.sort_by_key(|run| run.1);
            return Some(step);
        }
        None
    }

    fn find_idle(&self) -> Vec<(u64, u64)> {
        let mut found: Vec<(u64, u64)> = Vec::new();
        for run in &self.map {
            for segment in run.logical..run.logical + run.count {
                if !(self.present.is_free)(segment) {
                    continue;
                }
                match found.last_mut().filter(|last| last.0 + last.1 == segment) {
                    Some(last) => last.1 += 1,
                    None => found.push((segment, 1)),
                }
            }
        }
        found.sort_by_key(|run| run.1);
        found
    }

    /// What is left over becomes pool segments.
    fn add_left_over(&mut self) -> Result<(), Refusal> {
        let mut free = self.left_over();
        let mut gaps = gaps(&self.map, self.end).into_iter();
        let mut gap = gaps.next();
        for (mut count, mut members) in take_all(self.present.redundancy, &mut free) {
            while count > 0 {
                let (logical, room) = gap.unwrap_or((self.end, u64::MAX));
                let now = count.min(room);
                self.take(Step::New { logical, count: now, members: members.clone() })?;
                members.iter_mut().for_each(|member| member.1 += now);
                count -= now;
                gap = match gap {
                    Some((first, room)) if room > now => Some((first + now, room - now)),
                    Some(_) => gaps.next(),
                    None => None,
                };
            }
        }
        Ok(())
    }

    /// A mirror with something left over on one device alone: a copy of existing segments moves
    /// there, from the end backwards, for that is where least is. False: there is nothing to gain.
    fn spread(&mut self) -> Result<bool, Refusal> {
        if self.present.redundancy != Redundancy::Mirror {
            return Ok(false);
        }
        let free = self.left_over();
        let most = free
            .iter()
            .enumerate()
            .max_by_key(|(_, extents)| extents.iter().map(|extent| extent.1).sum::<u64>());
        let Some((device, extents)) = most else { return Ok(false) };
        let total: u64 = extents.iter().map(|extent| extent.1).sum();
        let (device, first) = match extents.first() {
            Some((first, _)) if total >= 2 => (device as u16, (*first, extents[0].1)),
            _ => return Ok(false),
        };
        let apart = |run: &&SegmentRun| {
            run.members.iter().all(|m| m.0 != device) && self.leaving_member(run).is_none()
        };
        let Some(run) = self.map.iter().rev().find(apart) else { return Ok(false) };
        let count = run.count.min(total / 2).min(first.1);
        let logical = run.logical + run.count - count;
        // Now one, now the other: the new partners are spread too.
        let from = run.members[self.steps.len() % run.members.len()];
        let from = (from.0, from.1 + run.count - count);
        self.take(Step::Move { logical, count, from, to: (device, first.0) })?;
        Ok(true)
    }
}

/// The first extent of the device with most left over, of those that have no copy of the run.
fn best_place(free: &Free, run: &SegmentRun) -> Option<(u16, u64, u64)> {
    let has_copy = |device: usize| run.members.iter().any(|m| usize::from(m.0) == device);
    let candidates = free.iter().enumerate().filter(|(device, _)| !has_copy(*device));
    let (device, extents) =
        candidates.max_by_key(|(_, extents)| extents.iter().map(|extent| extent.1).sum::<u64>())?;
    extents.first().map(|(first, count)| (device as u16, *first, *count))
}

/// Pool segments after a plan, and how many copies it moves.
pub(crate) fn outcome(present: &Present, steps: &[Step]) -> (u64, u64) {
    let mut segments: u64 = present.map.iter().map(|run| run.count).sum();
    let mut moved = 0;
    for step in steps {
        match step {
            Step::New { count, .. } => segments += count,
            Step::Unmap { count, .. } => segments -= count,
            Step::Move { count, .. } => moved += count,
        }
    }
    (segments, moved)
}

#[cfg(test)]
mod tests;
