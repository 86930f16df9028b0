//! Bounds on those who have not proved anything yet: connections in all, half-open logins for each
//! address, and the pace of wrong secrets. All tables are bounded; a hostile address can only spend
//! what is its own.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The first wrong secret is answered after this; each further one after twice as long.
const FIRST_PENALTY: Duration = Duration::from_millis(250);
/// Longest wait: below the time that a login may take, so that the answer still comes.
const MAX_PENALTY: Duration = Duration::from_secs(4);
/// An address that was quiet for so long begins anew.
const FORGET_AFTER: Duration = Duration::from_secs(60);
/// Addresses that are remembered; beyond that the one that was quiet longest is forgotten.
const MAX_SOURCES: usize = 4096;

#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    last: Instant,
}

/// All connections of a door.
#[derive(Debug)]
pub struct Crowd {
    max_connections: usize,
    half_open_per_source: usize,
    connections: AtomicUsize,
    /// Bounded by `max_connections`: an address is in it while it has a half-open login.
    half_open: Mutex<HashMap<IpAddr, usize>>,
    failures: Mutex<HashMap<IpAddr, Failures>>,
}

/// A connection's place; its drop frees it.
#[derive(Debug)]
pub struct Place {
    crowd: Arc<Crowd>,
    /// While its login is half open.
    source: Option<IpAddr>,
}

impl Crowd {
    /// With these bounds.
    pub fn new(max_connections: usize, half_open_per_source: usize) -> Arc<Crowd> {
        Arc::new(Crowd {
            max_connections,
            half_open_per_source,
            connections: AtomicUsize::new(0),
            half_open: Mutex::default(),
            failures: Mutex::default(),
        })
    }

    /// A connection came; `None` where there is no room for it.
    pub fn enter(self: &Arc<Crowd>, address: IpAddr) -> Option<Place> {
        let source = source_of(address);
        let mut half_open = self.half_open.lock();
        let all = self.connections.load(Ordering::Relaxed);
        let own = half_open.get(&source).copied().unwrap_or(0);
        if all >= self.max_connections || own >= self.half_open_per_source {
            return None;
        }
        self.connections.fetch_add(1, Ordering::Relaxed);
        half_open.insert(source, own + 1);
        Some(Place { crowd: Arc::clone(self), source: Some(source) })
    }

    fn leave_half_open(&self, source: IpAddr) {
        let mut half_open = self.half_open.lock();
        match half_open.get_mut(&source) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(half_open.remove(&source)),
        }
    }

    /// A wrong secret came: how long its answer is held back.
    pub fn wrong_secret(&self, address: IpAddr) -> Duration {
        self.wrong_secret_at(address, Instant::now())
    }

    fn wrong_secret_at(&self, address: IpAddr, now: Instant) -> Duration {
        let source = source_of(address);
        let mut failures = self.failures.lock();
        if failures.len() >= MAX_SOURCES && !failures.contains_key(&source) {
            let quietest = failures.iter().min_by_key(|(_, it)| it.last).map(|(source, _)| *source);
            quietest.map(|source| failures.remove(&source));
        }
        let entry = failures.entry(source).or_insert(Failures { count: 0, last: now });
        if now.saturating_duration_since(entry.last) > FORGET_AFTER {
            entry.count = 0;
        }
        let penalty = FIRST_PENALTY.saturating_mul(1 << entry.count.min(8)).min(MAX_PENALTY);
        *entry = Failures { count: entry.count.saturating_add(1), last: now };
        penalty
    }
}

impl Place {
    /// The login succeeded. True the first time.
    pub fn logged_in(&mut self) -> bool {
        let source = self.source.take();
        source.map(|source| self.crowd.leave_half_open(source)).is_some()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.logged_in();
        self.crowd.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What one party has of addresses: one of IPv4, a /64 of IPv6.
fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => {
            let network = u128::from(address) >> 64 << 64;
            IpAddr::V6(Ipv6Addr::from(network))
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_address_does_not_keep_out_the_others() {
        let crowd = Crowd::new(10, 3);
        let mut held: Vec<Place> =
            (0..3).map(|_| crowd.enter(address("10.0.0.1")).unwrap()).collect();
        assert!(crowd.enter(address("10.0.0.1")).is_none());
        assert!(crowd.enter(address("::ffff:10.0.0.1")).is_none());
        held.push(crowd.enter(address("10.0.0.2")).unwrap());
        assert!(held[0].logged_in());
        assert!(!held[0].logged_in());
        held.push(crowd.enter(address("10.0.0.1")).unwrap());
        drop(held);
        assert!(crowd.half_open.lock().is_empty());
        assert_eq!(crowd.connections.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn there_is_a_bound_on_all() {
        let crowd = Crowd::new(10, 3);
        let held: Vec<Option<Place>> =
            (0..20).map(|n| crowd.enter(address(&format!("10.0.0.{n}")))).collect();
        assert_eq!(held.iter().flatten().count(), 10);
        let same = ["2001:db8::1", "2001:db8::2"].map(|text| source_of(address(text)));
        assert_eq!(same[0], same[1]);
    }

    #[test]
    fn wrong_secrets_are_answered_ever_later() {
        let crowd = Crowd::new(10, 3);
        let now = Instant::now();
        let wrong = |at| crowd.wrong_secret_at(address("10.0.0.1"), at).as_millis();
        assert_eq!(
            (0..6).map(|_| wrong(now)).collect::<Vec<_>>(),
            [250, 500, 1000, 2000, 4000, 4000]
        );
        assert_eq!(wrong(now + FORGET_AFTER * 2), 250);
        for n in 0..MAX_SOURCES as u32 * 2 {
            crowd.wrong_secret_at(IpAddr::V4(n.into()), now);
        }
        assert!(crowd.failures.lock().len() <= MAX_SOURCES);
    }
}
