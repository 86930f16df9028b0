//! What the connections of one client share.
//!
//! A client is known by the name that it proved, else by its address: all that is nameless there
//! is one.

use super::Limits;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, Weak};

/// Least part of one connection: the longest data in, and out.
const LEAST_BYTES: u64 = 4 << 20;

/// Things by name, made for the first who asks and forgotten with the last who has one.
#[derive(Debug)]
pub struct Shares<T>(Mutex<HashMap<String, Weak<T>>>);

impl<T> Default for Shares<T> {
    fn default() -> Shares<T> {
        Shares(Mutex::default())
    }
}

impl<T> Shares<T> {
    /// The one of this name.
    pub fn of(&self, name: &str, make: impl FnOnce() -> T) -> Arc<T> {
        let mut table = self.0.lock();
        if let Some(known) = table.get(name).and_then(Weak::upgrade) {
            return known;
        }
        table.retain(|_, it| it.strong_count() > 0);
        let made = Arc::new(make());
        table.insert(name.to_owned(), Arc::downgrade(&made));
        made
    }
}

/// A client's memory.
#[derive(Debug)]
pub struct Share(u64);

impl Share {
    /// As much as the client may take.
    pub fn new(limits: &Limits) -> Share {
        Share(limits.memory_bytes)
    }

    /// What one of its connections may hold in buffers at this moment: an equal part.
    pub fn bytes(self: &Arc<Share>) -> usize {
        let connections = Arc::strong_count(self).max(1) as u64;
        usize::try_from((self.0 / connections).max(LEAST_BYTES)).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_its_memory_in_equal_parts() {
        let (shares, limits) = (Shares::default(), Limits::default());
        let of = |name: &str| shares.of(name, || Share::new(&limits));
        let one = of("a");
        assert_eq!(one.bytes() as u64, limits.memory_bytes);
        let more: Vec<_> = (0..3).map(|_| of("a")).collect();
        assert_eq!(one.bytes() as u64, limits.memory_bytes / 4);
        assert_eq!(of("b").bytes() as u64, limits.memory_bytes);
        drop(more);
        assert_eq!(one.bytes() as u64, limits.memory_bytes);
        let many: Vec<_> = (0..1000).map(|_| of("a")).collect();
        assert_eq!(one.bytes() as u64, LEAST_BYTES);
        drop((one, many));
        let _other = of("c");
        assert_eq!(shares.0.lock().len(), 1);
    }
}
