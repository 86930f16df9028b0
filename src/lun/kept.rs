//! What a LUN keeps beside its three files: reservations that outlive the server, a sanitize that
//! is not done, when it was made. It belongs to the disk, not to its contents. It stands as TOML in
//! the file `state` of its directory, made when it is first needed and read-only in the mount.
//!
//! Invariants: `now` is what the file says; where it cannot be written, the caller is told. The
//! file names the volume it belongs to: in a clone, or after a rollback, it is somebody else's
//! until the copy was settled (`copies`).

use super::event_log;
use crate::fs::{self, Fs, NewNode, NodeId, Owner, Timestamp, VolumeId};
use parking_lot::Mutex;
use std::sync::Arc;
use toml::{Table, Value};

const NAME: &[u8] = b"state";
/// Longest `state` that is read: a hundred registrations with the longest iSCSI names are 40 KiB.
const MAX_STATE_BYTES: u64 = 256 << 10;

/// What SANITIZE asks for (SBC-3 §5.24).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SanitizeOrder {
    /// Overwrite: what each logical block holds afterwards. Without it blocks are erased.
    pub pattern: Option<Vec<u8>>,
    /// How many times what was there is overwritten, at least once.
    pub passes: u8,
    /// Every other pass writes the inverted pattern, the last one the pattern.
    pub invert: bool,
    /// AUSE: after a failure the LUN may be used again by EXIT FAILURE MODE.
    pub may_exit: bool,
}

/// A sanitize that is not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unfinished {
    pub(super) order: SanitizeOrder,
    pub(super) failed: bool,
}

/// The contents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Kept {
    /// The record of the SCSI layer; empty: none.
    pub(super) reservations: String,
    /// A reservation is held that keeps writers out.
    pub(super) reserved: bool,
    /// Mode settings saved by the SCSI layer.
    pub(super) mode: u32,
    pub(super) sanitize: Option<Unfinished>,
    /// Whose this is; `None`: of a volume that is no copy.
    pub(super) volume: Option<VolumeId>,
    /// When the LUN was made, where its files are older or younger.
    pub(super) created: Option<Timestamp>,
}

/// The file.
pub(super) struct StateFile {
    fs: Arc<Fs>,
    /// Of a snapshot that is served as a disk: what is kept ends with it.
    in_memory: bool,
    now: Mutex<(Place, Kept)>,
}

/// Where it is, and whose owner and rights it gets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) dir: NodeId,
    pub(super) like: NodeId,
}

impl StateFile {
    /// Reads it. A file that makes no sense is told of and counts as empty.
    pub(super) fn load(fs: Arc<Fs>, place: Place) -> (StateFile, Option<String>) {
        let (kept, why) = match read(&fs, place.dir) {
            Ok(text) => match Kept::parse(&text) {
                Some(kept) => (kept, None),
                None => (Kept::default(), Some("it cannot be understood".to_owned())),
            },
            Err(fs::Error::NotFound) => (Kept::default(), None),
            Err(error) => (Kept::default(), Some(error.to_string())),
        };
        (StateFile { fs, in_memory: false, now: Mutex::new((place, kept)) }, why)
    }

    /// Begins with nothing, and writes nothing.
    pub(super) fn in_memory(fs: Arc<Fs>, dir: NodeId) -> StateFile {
        let place = Place { dir, like: dir };
        StateFile { fs, in_memory: true, now: Mutex::new((place, Kept::default())) }
    }

    pub(super) fn now(&self) -> Kept {
        self.now.lock().1.clone()
    }

    /// Goes on in another directory, where the same was kept already.
    pub(super) fn follow(&self, place: Place, kept: Kept) {
        *self.now.lock() = (place, kept);
    }

    /// Changes it; durable on return.
    pub(super) fn change(&self, change: impl FnOnce(&mut Kept)) -> fs::Result<()> {
        let mut now = self.now.lock();
        let mut next = now.1.clone();
        change(&mut next);
        if next == now.1 {
            return Ok(());
        }
        if !self.in_memory {
            write(&self.fs, now.0, &next)?;
        }
        now.1 = next;
        Ok(())
    }
}

/// What stands in the `state` of a directory; `None` where there is none that makes sense.
pub(super) fn peek(fs: &Arc<Fs>, dir: NodeId) -> fs::Result<Option<Kept>> {
    match read(fs, dir) {
        Ok(text) => Ok(Kept::parse(&text)),
        Err(fs::Error::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes it; durable on return.
pub(super) fn write(fs: &Arc<Fs>, place: Place, kept: &Kept) -> fs::Result<()> {
    let node = match fs.lookup(place.dir, NAME) {
        Err(fs::Error::NotFound) => {
            let like = fs.getattr(place.like)?;
            let owner = Owner { mode: like.mode, uid: like.uid, gid: like.gid };
            fs.create(place.dir, NAME, NewNode::File, owner)?
        }
        found => found?,
    };
    event_log::replace(&fs.open_file(node.id)?, kept.to_toml().as_bytes())?;
    fs.sync()
}

fn read(fs: &Arc<Fs>, dir: NodeId) -> fs::Result<String> {
    let file = fs.open_file(fs.lookup(dir, NAME)?.id)?;
    let mut bytes = vec![0; file.size_bytes().min(MAX_STATE_BYTES) as usize];
    let length = file.read_at(0, &mut bytes)?;
    bytes.truncate(length);
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

impl Kept {
    fn to_toml(&self) -> String {
        let mut table = Table::new();
        table.insert("reserved".into(), self.reserved.into());
        table.insert("reservations".into(), self.reservations.as_str().into());
        table.insert("mode".into(), i64::from(self.mode).into());
        if let Some(volume) = self.volume {
            table.insert("volume".into(), i64::from(volume.0).into());
        }
        if let Some(created) = self.created {
            table.insert("created-ns".into(), created.0.into());
        }
        if let Some(Unfinished { order, failed }) = &self.sanitize {
            let mut sanitize = Table::new();
            if let Some(pattern) = &order.pattern {
                let hex: String = pattern.iter().map(|byte| format!("{byte:02x}")).collect();
                sanitize.insert("pattern".into(), hex.into());
            }
            sanitize.insert("passes".into(), i64::from(order.passes).into());
            sanitize.insert("invert".into(), order.invert.into());
            sanitize.insert("may-exit".into(), order.may_exit.into());
            sanitize.insert("failed".into(), (*failed).into());
            table.insert("sanitize".into(), Value::Table(sanitize));
        }
        table.to_string()
    }

    fn parse(text: &str) -> Option<Kept> {
        let table: Table = text.trim_end().parse().ok()?;
        let sanitize = match table.get("sanitize") {
            None => None,
            Some(found) => Some(parse_sanitize(found.as_table()?)?),
        };
        let volume = match table.get("volume") {
            None => None,
            Some(number) => Some(VolumeId(u32::try_from(number.as_integer()?).ok()?)),
        };
        let created = match table.get("created-ns") {
            None => None,
            Some(ns) => Some(Timestamp(ns.as_integer()?)),
        };
        Some(Kept {
            volume,
            created,
            reservations: table.get("reservations")?.as_str()?.to_owned(),
            reserved: table.get("reserved")?.as_bool()?,
            mode: u32::try_from(table.get("mode")?.as_integer()?).ok()?,
            sanitize,
        })
    }
}

fn parse_sanitize(table: &Table) -> Option<Unfinished> {
    let flag = |key: &str| table.get(key)?.as_bool();
    let pattern = match table.get("pattern") {
        None => None,
        Some(hex) => Some(from_hex(hex.as_str()?)?),
    };
    let passes = u8::try_from(table.get("passes")?.as_integer()?).ok()?;
    let order =
        SanitizeOrder { pattern, passes, invert: flag("invert")?, may_exit: flag("may-exit")? };
    Some(Unfinished { order, failed: flag("failed")? })
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| match pair {
            [high, low] => u8::try_from(digit(high)? << 4 | digit(low)?).ok(),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_reads_back() {
        let order = SanitizeOrder {
            pattern: Some(vec![0xAA, 0x01, 0xF0]),
            passes: 3,
            invert: true,
            may_exit: false,
        };
        for sanitize in [None, Some(Unfinished { order, failed: true })] {
            let reservations = "a \"b\"\nc \\ '''\n".to_owned();
            let kept = Kept { reservations, reserved: true, mode: 2, sanitize, ..Kept::default() };
            let (volume, created) = (Some(VolumeId(17)), Some(Timestamp(-3)));
            let copy = Kept { volume, created, ..kept.clone() };
            assert_eq!(Kept::parse(&kept.to_toml()), Some(kept));
            assert_eq!(Kept::parse(&copy.to_toml()), Some(copy));
        }
        assert_eq!(Kept::parse("reserved = 1"), None);
    }
}
