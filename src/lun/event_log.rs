//! A LUN's `log`: append-only JSON lines, cut at a limit with the older half kept as `log.1`.
//!
//! Invariants: all appends go through one lock, so lines never mix; `log` keeps its inode when it
//! is cut, and a crash in the middle of a cut leaves whole lines (some in both files, or blank
//! ones).

use super::attributes::rfc3339;
use crate::device::BLOCK_BYTES;
use crate::fs::{self, Clock, File, Fs, NewNode, NodeId, Owner};
use parking_lot::Mutex;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

/// `log` is cut when it would grow beyond this many bytes.
pub const LOG_LIMIT_BYTES: u64 = 1 << 20;
/// The name of the older half.
const OLDER_NAME: &[u8] = b"log.1";
/// Events of one kind that are logged in a burst: a client that comes and goes must not push out
/// everything else.
const BURST_EVENTS: u64 = 64;
/// How long until one more event of that kind is logged, in nanoseconds.
const REFILL_NS: i64 = 125_000_000;

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// The line as it stands, without its newline.
    pub text: String,
}

/// A block of a log that cannot be read: what stood in it is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadLines {
    pub node: NodeId,
    pub offset_bytes: u64,
    pub block: u64,
}

/// The log of one LUN.
pub(super) struct EventLog {
    fs: Arc<Fs>,
    clock: Arc<dyn Clock>,
    /// Who is told instead, where the file is only read.
    told: Option<Told>,
    state: Mutex<State>,
}

type Told = Box<dyn Fn(&'static str, Value) + Send + Sync>;

struct State {
    dir: NodeId,
    file: File,
    limits: HashMap<&'static str, Bucket>,
    /// Bytes that were cut off the front since the log was opened.
    cut_bytes: u64,
}

/// How often one kind of event was logged lately.
struct Bucket {
    tokens: u64,
    refilled_ns: i64,
    suppressed: u64,
}

impl EventLog {
    pub(super) fn new(fs: Arc<Fs>, dir: NodeId, file: File, clock: Arc<dyn Clock>) -> EventLog {
        let state = State { dir, file, limits: HashMap::new(), cut_bytes: 0 };
        EventLog { fs, clock, told: None, state: Mutex::new(state) }
    }

    /// The log of a snapshot: `told` is told what would be added to it.
    pub(super) fn elsewhere(
        fs: Arc<Fs>,
        dir: NodeId,
        file: File,
        clock: Arc<dyn Clock>,
        told: Told,
    ) -> EventLog {
        EventLog { told: Some(told), ..EventLog::new(fs, dir, file, clock) }
    }

    pub(super) fn node(&self) -> NodeId {
        self.state.lock().file.id()
    }

    /// Goes on in another file of another directory, which `change` finds or makes: what others
    /// have to tell meanwhile waits. It must log nothing here.
    pub(super) fn follow<T, E>(
        &self,
        change: impl FnOnce() -> Result<(NodeId, File, T), E>,
    ) -> Result<T, E> {
        let mut state = self.state.lock();
        let (dir, file, result) = change()?;
        (state.dir, state.file) = (dir, file);
        Ok(result)
    }

    /// Adds `{"time", "event", …fields}`. Kinds that come too often are counted and left out; the
    /// next line of the kind tells how many. Never an error: a full pool must not stop its users.
    pub(super) fn event(&self, event: &'static str, fields: Value) {
        if let Some(told) = &self.told {
            return told(event, fields);
        }
        let now = self.clock.now();
        let mut state = self.state.lock();
        let bucket = state.limits.entry(event).or_insert_with(|| Bucket::full(now.0));
        let Some(suppressed) = bucket.take(now.0) else {
            return;
        };
        let _ = self.append(&mut state, &line_of(now, event, fields, suppressed));
    }

    /// As `event`, without the limit, for a caller who wants to know.
    pub(super) fn event_now(&self, event: &str, fields: Value) -> fs::Result<()> {
        let line = line_of(self.clock.now(), event, fields, 0);
        self.append(&mut self.state.lock(), &line)
    }

    /// The owner's own bytes, as they are.
    pub(super) fn raw(&self, bytes: &[u8]) -> fs::Result<()> {
        let mut state = self.state.lock();
        let mut pieces = bytes.chunks(LOG_LIMIT_BYTES as usize / 2);
        pieces.try_for_each(|piece| self.append(&mut state, piece))
    }

    /// `log.1` and `log`.
    pub(super) fn lines(&self) -> fs::Result<(Vec<LogLine>, Vec<BadLines>)> {
        let state = self.state.lock();
        let mut bad = Vec::new();
        let mut bytes = older_bytes(&self.fs, state.dir, &mut bad)?;
        bytes.extend(tail(&state.file, &mut bad)?);
        Ok((lines_of(&bytes), bad))
    }

    /// What was added since `cursor` (0: all of `log`), and the cursor for the next call.
    pub(super) fn after(&self, cursor: u64) -> fs::Result<(Vec<u8>, u64, Vec<BadLines>)> {
        let state = self.state.lock();
        let size = state.file.size_bytes();
        let end = state.cut_bytes.saturating_add(size);
        let from = cursor.clamp(state.cut_bytes, end) - state.cut_bytes;
        let from = from.max(size.saturating_sub(LOG_LIMIT_BYTES));
        let mut bad = Vec::new();
        Ok((read_range(&state.file, from, size, &mut bad)?, end, bad))
    }

    fn append(&self, state: &mut State, bytes: &[u8]) -> fs::Result<()> {
        if state.file.size_bytes().saturating_add(bytes.len() as u64) > LOG_LIMIT_BYTES {
            self.cut(state)?;
        }
        match state.file.append(bytes) {
            Err(fs::Error::Corrupt { .. }) => {
                self.cut(state)?;
                state.file.append(bytes).map(drop)
            }
            appended => appended.map(drop),
        }
    }

    fn cut(&self, state: &mut State) -> fs::Result<()> {
        let size_before = state.file.size_bytes();
        // Lines that cannot be read back must not stop those to come.
        let bytes = tail(&state.file, &mut Vec::new())?;
        let half = bytes.len() / 2;
        let newline = bytes.iter().skip(half).position(|b| *b == b'\n');
        let (older, newer) = bytes.split_at(newline.map_or(bytes.len(), |at| half + at + 1));
        replace(&older_of(&self.fs, state.dir, &state.file)?, older)?;
        replace(&state.file, newer)?;
        state.cut_bytes =
            state.cut_bytes.saturating_add(size_before.saturating_sub(newer.len() as u64));
        Ok(())
    }
}

/// What `log.1` holds.
fn older_bytes(fs: &Arc<Fs>, dir: NodeId, bad: &mut Vec<BadLines>) -> fs::Result<Vec<u8>> {
    match fs.lookup(dir, OLDER_NAME) {
        Ok(attr) => tail(&fs.open_file(attr.id)?, bad),
        Err(fs::Error::NotFound) => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// `log.1` beside `log`; made where there is none.
fn older_of(fs: &Arc<Fs>, dir: NodeId, log: &File) -> fs::Result<File> {
    let node = match fs.lookup(dir, OLDER_NAME) {
        Err(fs::Error::NotFound) => {
            let like = log.attr()?;
            let owner = Owner { mode: like.mode, uid: like.uid, gid: like.gid };
            fs.create(dir, OLDER_NAME, NewNode::File, owner)?
        }
        found => found?,
    };
    fs.open_file(node.id)
}

/// Makes the log of the directory `to` what that of `from` is, or empty.
pub(super) fn carry(
    fs: &Arc<Fs>,
    from: Option<(NodeId, &File)>,
    to: NodeId,
    log: &File,
) -> fs::Result<()> {
    let mut bad = Vec::new();
    let (older, newer) = match from {
        None => (Vec::new(), Vec::new()),
        Some((dir, file)) => (older_bytes(fs, dir, &mut bad)?, tail(file, &mut bad)?),
    };
    let has_older = !matches!(fs.lookup(to, OLDER_NAME), Err(fs::Error::NotFound));
    if has_older || !older.is_empty() {
        replace(&older_of(fs, to, log)?, &older)?;
    }
    replace(log, &newer)
}

impl Bucket {
    fn full(now_ns: i64) -> Bucket {
        Bucket { tokens: BURST_EVENTS, refilled_ns: now_ns, suppressed: 0 }
    }

    /// Whether one more may be logged, and how many were left out before it.
    fn take(&mut self, now_ns: i64) -> Option<u64> {
        let refills = now_ns.saturating_sub(self.refilled_ns).max(0) / REFILL_NS;
        self.tokens = BURST_EVENTS.min(self.tokens.saturating_add(refills as u64));
        self.refilled_ns = if refills > 0 { now_ns } else { self.refilled_ns.min(now_ns) };
        if self.tokens == 0 {
            self.suppressed += 1;
            return None;
        }
        self.tokens -= 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

/// Makes `bytes` the contents of a small file, whole under a crash: one atomic write that blanks
/// what is longer, then the length. One whose last block is bad is emptied first.
pub(super) fn replace(file: &File, bytes: &[u8]) -> fs::Result<()> {
    let old = usize::try_from(file.size_bytes()).unwrap_or(usize::MAX);
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().max(old.min(fs::ATOMIC_WRITE_BYTES)), b'\n');
    match file.write_at(0, &padded) {
        Err(fs::Error::Corrupt { .. }) => {
            file.set_size(0)?;
            file.write_at(0, bytes)?;
        }
        written => written?,
    }
    file.set_size(bytes.len() as u64)
}

/// The last [`LOG_LIMIT_BYTES`] of a file.
fn tail(file: &File, bad: &mut Vec<BadLines>) -> fs::Result<Vec<u8>> {
    let size = file.size_bytes();
    read_range(file, size.saturating_sub(LOG_LIMIT_BYTES), size, bad)
}

/// A part of a file. Where a block of it cannot be read it is read block by block, and a newline
/// stands for each byte that is lost.
fn read_range(file: &File, from: u64, to: u64, bad: &mut Vec<BadLines>) -> fs::Result<Vec<u8>> {
    let mut bytes = vec![0; to.saturating_sub(from).min(LOG_LIMIT_BYTES) as usize];
    let (mut filled, mut by_blocks) = (0, false);
    loop {
        let at = from + filled as u64;
        let step = BLOCK_BYTES - (at % BLOCK_BYTES as u64) as usize;
        let end = if by_blocks { bytes.len().min(filled + step) } else { bytes.len() };
        let Some(rest) = bytes.get_mut(filled..end).filter(|rest| !rest.is_empty()) else { break };
        match file.read_at(at, rest) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(fs::Error::Corrupt { .. }) if !by_blocks => by_blocks = true,
            Err(fs::Error::Corrupt { block, .. }) => {
                rest.fill(b'\n');
                bad.push(BadLines { node: file.id(), offset_bytes: at, block });
                filled = end;
            }
            Err(e) => return Err(e),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

fn lines_of(bytes: &[u8]) -> Vec<LogLine> {
    let lines = bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| LogLine { text: String::from_utf8_lossy(line).into_owned() }).collect()
}

/// One line: time and event first, then the fields by name.
fn line_of(now: fs::Timestamp, event: &str, fields: Value, suppressed: u64) -> Vec<u8> {
    let mut fields = match fields {
        Value::Object(fields) => fields,
        Value::Null => Map::new(),
        other => Map::from_iter([("detail".to_owned(), other)]),
    };
    if suppressed > 0 {
        fields.insert("suppressed".into(), suppressed.into());
    }
    let mut line = format!("{{\"time\":\"{}\",\"event\":{}", rfc3339(now), Value::from(event));
    for (key, value) in fields.iter().filter(|(key, _)| !matches!(key.as_str(), "time" | "event")) {
        let _ = write!(line, ",{}:{value}", Value::from(key.as_str()));
    }
    line.push_str("}\n");
    line.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_cut_and_counted() {
        let mut bucket = Bucket::full(0);
        let logged = (0..1000).filter(|_| bucket.take(0).is_some()).count();
        assert_eq!(logged as u64, BURST_EVENTS);
        assert_eq!(bucket.take(REFILL_NS), Some(1000 - BURST_EVENTS));
        assert_eq!(bucket.take(REFILL_NS), None);
        assert_eq!(bucket.take(2 * REFILL_NS), Some(1));
    }

    #[test]
    fn a_clock_that_jumps_back_still_refills() {
        let mut bucket = Bucket::full(1_000 * REFILL_NS);
        while bucket.take(1_000 * REFILL_NS).is_some() {}
        assert_eq!(bucket.take(0), None);
        assert!(bucket.take(REFILL_NS).is_some());
    }

    #[test]
    fn lines_are_json_with_the_time_first() {
        let fields = serde_json::json!({"by": "iscsi \"a\"\n", "time": "forged"});
        let line = String::from_utf8(line_of(fs::Timestamp(0), "login", fields, 3)).unwrap();
        assert!(line.starts_with("{\"time\":\"1970-01-01T00:00:00.000Z\",\"event\":\"login\""));
        assert_eq!(line.matches('\n').count(), 1);
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["suppressed"], 3);
        assert_eq!(value["by"], "iscsi \"a\"\n");
    }

    #[test]
    fn blank_lines_are_skipped() {
        let lines = lines_of(b"{\"a\":1}\n\n\nfree text\n\n");
        let texts: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
        assert_eq!(texts, ["{\"a\":1}", "free text"]);
    }
}
