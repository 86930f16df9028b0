//! What each client has of the server: memory, and threads.

use super::server::DATA_THREADS;
use crate::access::{Limits, Share, Shares};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Of the threads for data, for the requests of one client on one object.
const THREADS_EACH: usize = DATA_THREADS / 4;
/// Of the threads for orders, for one client's.
const ORDERS_EACH: usize = 8;

/// All clients' shares.
#[derive(Debug, Default)]
pub struct ClientShares {
    memory: Shares<Share>,
    threads: Shares<Semaphore>,
    orders: Shares<Semaphore>,
}

impl ClientShares {
    /// A connection's part of its client's memory; the bounds are those of the first connection.
    pub fn memory(&self, client: &str, limits: &Limits) -> Arc<Share> {
        self.memory.of(client, || Share::new(limits))
    }

    /// The threads of a client's orders: of what waits for no data.
    pub fn orders(&self, client: &str) -> Arc<Semaphore> {
        self.orders.of(client, || Semaphore::new(ORDERS_EACH))
    }

    /// The threads of a client's requests on an object.
    pub fn threads(&self, client: &str, object: &str) -> Arc<Semaphore> {
        let key = format!("{client}\0{}", object.to_ascii_lowercase());
        self.threads.of(&key, || Semaphore::new(THREADS_EACH))
    }
}
