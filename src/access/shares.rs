//! What the connections of one client share: memory, and a door's threads for one disk.
//!
//! A client is known by the name that it proved, else by its address: all that is nameless there
//! is one.

use super::Limits;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use tokio::sync::Semaphore;

/// Least part of one connection: the longest data in, and out.
const LEAST_BYTES: u64 = 4 << 20;

/// Threads that one client's orders may have at a time.
const ORDERS: usize = 8;

/// A client's bound on memory.
#[derive(Debug)]
pub struct Share(u64);

impl Share {
    /// What one of its connections may hold in buffers at this moment: an equal part.
    pub fn bytes(self: &Arc<Share>) -> usize {
        let connections = Arc::strong_count(self).max(1) as u64;
        usize::try_from((self.0 / connections).max(LEAST_BYTES)).unwrap_or(usize::MAX)
    }
}

type Table<T> = Mutex<HashMap<String, Weak<T>>>;

/// All shares. Those that nobody has are forgotten.
#[derive(Debug)]
pub struct Shares {
    threads_each: usize,
    memory: Table<Share>,
    threads: Table<Semaphore>,
    orders: Table<Semaphore>,
}

fn entry<T>(table: &Table<T>, key: String, make: impl FnOnce() -> T) -> Arc<T> {
    let mut table = table.lock();
    if let Some(known) = table.get(&key).and_then(Weak::upgrade) {
        return known;
    }
    table.retain(|_, it| it.strong_count() > 0);
    let made = Arc::new(make());
    table.insert(key, Arc::downgrade(&made));
    made
}

impl Shares {
    /// With so many threads for a client's requests on one disk.
    pub fn new(threads_each: usize) -> Shares {
        let (memory, threads, orders) = Default::default();
        Shares { threads_each, memory, threads, orders }
    }

    /// A connection's part; the client's bounds are those of its first connection.
    pub fn memory(&self, client: &str, limits: &Limits) -> Arc<Share> {
        entry(&self.memory, client.to_owned(), || Share(limits.memory_bytes))
    }

    /// The threads of a client's orders: of what waits for no data.
    pub fn orders(&self, client: &str) -> Arc<Semaphore> {
        entry(&self.orders, client.to_owned(), || Semaphore::new(ORDERS))
    }

    /// The threads of a client's requests on a disk.
    pub fn threads(&self, client: &str, disk: &str) -> Arc<Semaphore> {
        let key = format!("{client}\0{}", disk.to_ascii_lowercase());
        entry(&self.threads, key, || Semaphore::new(self.threads_each))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_its_memory_in_equal_parts() {
        let (shares, limits) = (Shares::new(1), Limits::default());
        let one = shares.memory("a", &limits);
        assert_eq!(one.bytes() as u64, limits.memory_bytes);
        let more: Vec<_> = (0..3).map(|_| shares.memory("a", &limits)).collect();
        assert_eq!(one.bytes() as u64, limits.memory_bytes / 4);
        assert_eq!(shares.memory("b", &limits).bytes() as u64, limits.memory_bytes);
        drop(more);
        assert_eq!(one.bytes() as u64, limits.memory_bytes);
        let many: Vec<_> = (0..1000).map(|_| shares.memory("a", &limits)).collect();
        assert_eq!(one.bytes() as u64, LEAST_BYTES);
        drop((one, many));
        shares.memory("c", &limits);
        assert_eq!(shares.memory.lock().len(), 1);
    }
}
