//! A LUN's log as commands show it.

use super::engine::Session;
use super::error::Result;
use super::protocol::Reply;
use super::wire;
use serde_json::{json, Value};
use std::io::{ErrorKind, Read};
use std::time::Duration;

/// How often a log that is followed is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

impl Session<'_> {
    /// The whole log, or (with `follow`) the log and what is added, until the client leaves.
    pub(super) fn lun_log(&self, name: &str, follow: bool) -> Result<Value> {
        let lun = self.lun(name)?;
        let mut seen: Vec<String> = lun.read_log()?.into_iter().map(|line| line.text).collect();
        if !follow || self.engine.stop.is_none() {
            return Ok(seen.iter().map(|text| parsed(text)).collect());
        }
        let mut new = seen.clone();
        loop {
            for text in &new {
                wire::write_line(&mut &*self.stream, &Reply::Event(parsed(text)))?;
            }
            if self.client_left() {
                return Ok(Value::Null);
            }
            let now: Vec<String> = lun.read_log()?.into_iter().map(|line| line.text).collect();
            new = added(&seen, &now).to_vec();
            seen = now;
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
        match (&*self.stream).read(&mut [0; 1]) {
            Err(e) => !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
            Ok(_) => true,
        }
    }
}

/// A line of the log; what its owner wrote need not be JSON.
fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| json!({ "text": text }))
}

/// What `now` has behind the last line of `seen`; all of it where that line is gone.
fn added<'a>(seen: &[String], now: &'a [String]) -> &'a [String] {
    let Some(last) = seen.last() else { return now };
    // From the longest tail of `seen` that `now` could still begin or go on with.
    let candidates = now.iter().enumerate().rev().filter(|(_, text)| *text == last);
    for (at, _) in candidates {
        let upto = now.get(..=at).unwrap_or_default();
        let tail = seen.get(seen.len().saturating_sub(upto.len())..).unwrap_or_default();
        if upto.ends_with(tail) {
            return now.get(at + 1..).unwrap_or_default();
        }
    }
    now
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.chars().map(String::from).collect()
    }

    #[test]
    fn only_new_lines_are_told() {
        assert_eq!(added(&lines("abc"), &lines("abcde")), lines("de"));
        assert_eq!(added(&lines("abc"), &lines("abc")), lines(""));
        assert_eq!(added(&lines("aaa"), &lines("aaaa")), lines("a"));
        assert_eq!(added(&lines("abcd"), &lines("cdef")), lines("ef"));
        assert_eq!(added(&lines("ab"), &lines("xy")), lines("xy"));
        assert_eq!(added(&lines(""), &lines("xy")), lines("xy"));
    }

    #[test]
    fn foreign_lines_are_shown_as_text() {
        assert_eq!(parsed("hello"), json!({ "text": "hello" }));
        assert_eq!(parsed("{\"event\":\"login\"}"), json!({ "event": "login" }));
    }
}
