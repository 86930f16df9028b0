//! `lunfs nbs attach`: an NBS object of another server as an NBD export of this host.

use super::heed_signals;
use crate::control::stop::StopSignal;
use crate::control::{Error, Message, Result};
use crate::lun::BlockIo;
use crate::nbd::{Export, FixedExports, NbdServer};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Builder;

/// How long clients may take to hear the answers that are under way.
const CLIENTS_WAIT: Duration = Duration::from_secs(10);

/// What is to be served.
pub struct AttachConfig {
    /// Name of the export.
    pub name: String,
    /// The object.
    pub disk: Arc<dyn BlockIo>,
    /// Where.
    pub socket: PathBuf,
}

/// Serves until a signal comes; `announce` is told the export's URI.
pub fn attach(config: AttachConfig, announce: &mut dyn FnMut(&str)) -> Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Error::io("the export has no threads", &e))?;
    let AttachConfig { name, disk, socket } = config;
    let socket = std::path::absolute(&socket).unwrap_or(socket);
    let (description, io) = ("NBS object".into(), disk.clone());
    let export = Export { name: name.clone(), description, io, tag: 0 };
    let served = runtime.block_on(async {
        let stop = StopSignal::new();
        heed_signals(stop.clone())?;
        let door = NbdServer::new(Arc::new(FixedExports::new(vec![export])), None);
        let door = door.map_err(|e| Error::io("the NBD door has no threads", &e))?;
        let bound = door.listen_unix(&socket).await;
        bound.map_err(|e| unbound(&socket, &e))?;
        announce(&format!("nbd+unix:///{name}?socket={}", socket.display()));
        stop.requested().await;
        door.shutdown(CLIENTS_WAIT).await;
        Ok(())
    });
    // What a client of the export was told is there goes to the server before the end.
    let flushed = disk.flush();
    let unflushed = |error| Message::new(format!("{name} could not be flushed")).why(error).into();
    served.and(flushed.map_err(unflushed))
}

fn unbound(socket: &std::path::Path, error: &std::io::Error) -> Error {
    Error::io(format!("the socket {} cannot be made", socket.display()), error)
}
