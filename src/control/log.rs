//! A LUN's log for commands: its lines as they stand, since what its owner wrote need not be JSON.

use super::engine::Session;
use super::error::Result;
use super::protocol::Reply;
use super::wire;
use serde_json::Value;
use std::io::{ErrorKind, Read};
use std::time::Duration;

/// How often a log that is followed is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

impl Session<'_> {
    /// The whole log, or (with `follow`) the log and what is added, until the client leaves.
    pub(super) fn lun_log(&self, name: &str, follow: bool) -> Result<Value> {
        let lun = self.lun(name)?;
        if !follow || self.engine.stop.is_none() {
            return Ok(lun.read_log()?.into_iter().map(|line| line.text).collect());
        }
        let (mut cursor, mut rest) = (0, Vec::new());
        loop {
            let (new, next) = lun.read_log_after(cursor)?;
            cursor = next;
            rest.extend_from_slice(&new);
            for line in whole_lines(&mut rest) {
                wire::write_line(&mut &*self.stream, &Reply::Event(line.into()))?;
            }
            if self.client_left() {
                return Ok(Value::Null);
            }
        }
    }

    /// Waits a moment; true when the client has gone or the server is stopping.
    fn client_left(&self) -> bool {
        if self.engine.stop.as_ref().is_none_or(|stop| stop.is_requested()) {
            return true;
        }
        if self.stream.set_read_timeout(Some(LOOK_EVERY)).is_err() {
            return true;
        }
        // A client says nothing more; what comes is its end.
        match (&*self.stream).read_exact(&mut [0; 1]) {
            Err(e) => !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
            Ok(()) => true,
        }
    }
}

/// Takes the whole lines from the front of what was read; the log's limit bounds them.
fn whole_lines(read: &mut Vec<u8>) -> Vec<String> {
    let Some(end) = read.iter().rposition(|byte| *byte == b'\n') else { return Vec::new() };
    let rest = read.split_off(end + 1);
    let whole = std::mem::replace(read, rest);
    let text = String::from_utf8_lossy(&whole);
    text.lines().filter(|line| !line.trim().is_empty()).map(String::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_lines_are_told() {
        let mut read = b"a\nb\n\nhal".to_vec();
        assert_eq!(whole_lines(&mut read), ["a", "b"]);
        read.extend_from_slice(b"f\n");
        assert_eq!(whole_lines(&mut read), ["half"]);
        assert!(whole_lines(&mut read).is_empty());
    }
}
