//! What a session did: operations, bytes, and how long the disk took for them.
//!
//! Cost on the hot path: relaxed additions to counters that one session alone uses; of the
//! operations that memory answers, one in [`SAMPLE`] is timed. Those that may wait for a device are
//! all timed.

use crate::fs::Timestamp;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// One in so many quick operations is timed, and stands for all of them: reading the clock twice
/// costs some 50 ns, a hundredth of what the rest of such a request costs.
const SAMPLE: u64 = 16;
/// Steps between a time and its double: the 99th percentile is told within 19 %.
const STEPS: u32 = 4;
/// Nanoseconds of the first bucket's end, as a power of two: 256 ns.
const FIRST_SHIFT: u32 = 8;
/// Up to 2^36 ns, which is 68 s; what took longer counts as that.
const BUCKETS: usize = ((36 - FIRST_SHIFT) * STEPS) as usize;
/// How old the figures that a rate is counted from must be.
const WINDOW_NS: i64 = 1_000_000_000;

/// How long operations took.
#[derive(Debug)]
struct Histogram {
    counts: [AtomicU32; BUCKETS],
    sum_ns: AtomicU64,
    count: AtomicU64,
}

/// How long operations took, in sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Latency {
    /// Mean in nanoseconds.
    pub mean_ns: u64,
    /// 99 of 100 took no longer than this, in nanoseconds.
    pub p99_ns: u64,
}

impl Histogram {
    fn new() -> Histogram {
        let counts = std::array::from_fn(|_| AtomicU32::new(0));
        Histogram { counts, sum_ns: AtomicU64::new(0), count: AtomicU64::new(0) }
    }

    fn note(&self, took: Duration, weight: u64) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        if let Some(count) = self.counts.get(bucket_of(ns)) {
            count.fetch_add(weight as u32, Ordering::Relaxed);
        }
        self.sum_ns.fetch_add(ns.saturating_mul(weight), Ordering::Relaxed);
        self.count.fetch_add(weight, Ordering::Relaxed);
    }

    fn latency(&self) -> Latency {
        let counts = self.counts.iter().map(|count| u64::from(count.load(Ordering::Relaxed)));
        let counts: Vec<u64> = counts.collect();
        let wanted = counts.iter().sum::<u64>().saturating_mul(99).div_ceil(100);
        let mut seen = 0;
        let at = counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        let count = self.count.load(Ordering::Relaxed);
        let p99_ns = if count == 0 { 0 } else { end_of(at.unwrap_or(0)) };
        let mean_ns = self.sum_ns.load(Ordering::Relaxed).checked_div(count).unwrap_or(0);
        Latency { mean_ns, p99_ns }
    }
}

/// The bucket of a time: the power of two below it, and the two bits after that.
fn bucket_of(ns: u64) -> usize {
    if ns < 1 << FIRST_SHIFT {
        return 0;
    }
    let power = ns.ilog2();
    let step = (ns >> (power - 2)) & u64::from(STEPS - 1);
    let at = (power - FIRST_SHIFT) * STEPS + step as u32 + 1;
    (at as usize).min(BUCKETS - 1)
}

/// The longest time of a bucket.
fn end_of(bucket: usize) -> u64 {
    let (power, step) = (bucket as u32 / STEPS + FIRST_SHIFT, bucket as u64 % u64::from(STEPS));
    (1 << power) + (step << (power - 2))
}

/// When the figures were looked at, and how many operations there were.
#[derive(Debug, Clone, Copy)]
struct Look {
    at: Timestamp,
    operations: u64,
}

/// The figures of one session.
#[derive(Debug)]
pub(super) struct Figures {
    pub(super) read_ops: AtomicU64,
    pub(super) read_bytes: AtomicU64,
    pub(super) write_ops: AtomicU64,
    pub(super) written_bytes: AtomicU64,
    pub(super) flush_ops: AtomicU64,
    /// Commands that its door has and has not answered.
    pub(super) outstanding: AtomicU32,
    latency: Histogram,
    /// The last two looks that are [`WINDOW_NS`] apart: a rate is counted from the older.
    looks: Mutex<[Look; 2]>,
}

impl Figures {
    pub(super) fn new(since: Timestamp) -> Figures {
        let first = Look { at: since, operations: 0 };
        Figures {
            read_ops: AtomicU64::new(0),
            read_bytes: AtomicU64::new(0),
            write_ops: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            flush_ops: AtomicU64::new(0),
            outstanding: AtomicU32::new(0),
            latency: Histogram::new(),
            looks: Mutex::new([first; 2]),
        }
    }

    pub(super) fn read(&self, bytes: usize) {
        self.read_ops.fetch_add(1, Ordering::Relaxed);
        self.read_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn wrote(&self, bytes: u64) {
        self.write_ops.fetch_add(1, Ordering::Relaxed);
        self.written_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Times an operation that may wait.
    pub(super) fn timed<T>(&self, act: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let outcome = act();
        self.latency.note(began.elapsed(), 1);
        outcome
    }

    /// Times one in [`SAMPLE`] of the operations that memory answers; `None` was not answered.
    pub(super) fn sampled<T>(&self, act: impl FnOnce() -> Option<T>) -> Option<T> {
        let (reads, writes) = (&self.read_ops, &self.write_ops);
        let operations = reads.load(Ordering::Relaxed) + writes.load(Ordering::Relaxed);
        if operations % SAMPLE != 0 {
            return act();
        }
        let began = Instant::now();
        let outcome = act()?;
        self.latency.note(began.elapsed(), SAMPLE);
        Some(outcome)
    }

    pub(super) fn latency(&self) -> Latency {
        self.latency.latency()
    }

    fn operations(&self) -> u64 {
        let counters = [&self.read_ops, &self.write_ops, &self.flush_ops];
        counters.iter().map(|counter| counter.load(Ordering::Relaxed)).sum()
    }

    /// Notes that somebody looks: at least once a second by the server keeps rates recent.
    pub(super) fn look(&self, now: Timestamp) {
        let mut looks = self.looks.lock();
        if now.0.saturating_sub(looks[1].at.0) >= WINDOW_NS {
            *looks = [looks[1], Look { at: now, operations: self.operations() }];
        }
    }

    /// Operations a second over the last second or two.
    pub(super) fn iops(&self, now: Timestamp) -> u64 {
        let from = self.looks.lock()[0];
        let ns = now.0.saturating_sub(from.at.0).max(1) as u64;
        let operations = self.operations().saturating_sub(from.operations);
        let rate = u128::from(operations) * 1_000_000_000 / u128::from(ns);
        u64::try_from(rate).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_within_its_bucket() {
        for ns in [0, 255, 256, 257, 300, 1000, 4096, 5000, 123_456, 10_000_000, 1 << 35] {
            let end = end_of(bucket_of(ns));
            assert!(ns <= end && end <= ns.max(1 << FIRST_SHIFT) * 5 / 4 + 1, "{ns}: {end}");
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn mean_and_percentile() {
        let histogram = Histogram::new();
        assert_eq!(histogram.latency(), Latency::default());
        (0..980).for_each(|_| histogram.note(Duration::from_micros(10), 1));
        histogram.note(Duration::from_millis(1), 20);
        let latency = histogram.latency();
        assert_eq!(latency.mean_ns, (980 * 10_000 + 20 * 1_000_000) / 1000);
        assert!((1_000_000..1_250_000).contains(&latency.p99_ns), "{latency:?}");
    }

    #[test]
    fn rates_follow_the_last_seconds() {
        let figures = Figures::new(Timestamp(0));
        (0..100).for_each(|_| figures.read(512));
        figures.look(Timestamp(WINDOW_NS));
        assert_eq!(figures.iops(Timestamp(WINDOW_NS)), 100);
        figures.look(Timestamp(2 * WINDOW_NS));
        assert_eq!(figures.iops(Timestamp(2 * WINDOW_NS)), 0);
    }
}
