//! The server's side of the control socket.

use super::engine::{converse, Engine};
use super::error::{Error, Result};
use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Commands at work at once; a further one waits to be accepted.
const MAX_COMMANDS: usize = 64;
/// After a failed accept (no descriptors left, mostly) the next is tried so much later.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Commands that were still at work when the server was asked to stop.
pub struct Commands(JoinSet<()>);

impl Commands {
    /// Waits until they are done, at most so long.
    pub async fn finish(mut self, at_most: Duration) {
        let all = async { while self.0.join_next().await.is_some() {} };
        // Those that are late hold nothing that the pool's close would not take from them.
        let _ = tokio::time::timeout(at_most, all).await;
    }
}

/// Accepts commands until the server is asked to stop.
pub async fn listen(listener: StdListener, engine: Arc<Engine>) -> Result<Commands> {
    let listener = listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener));
    let listener = listener.map_err(|e| Error::io("the control socket does not work", &e))?;
    let places = Arc::new(Semaphore::new(MAX_COMMANDS));
    let mut commands = JoinSet::new();
    let Some(stop) = engine.stop.clone() else { return Ok(Commands(commands)) };
    loop {
        while commands.try_join_next().is_some() {}
        let next = async {
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = stop.requested() => return Ok(Commands(commands)),
            next = next => next,
        };
        let stream = accepted.and_then(|(stream, _)| stream.into_std());
        let Ok(stream) = stream.and_then(|s| s.set_nonblocking(false).map(|()| s)) else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let engine = engine.clone();
        commands.spawn_blocking(move || {
            converse(engine, stream);
            drop(place);
        });
    }
}
