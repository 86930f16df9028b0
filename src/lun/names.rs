//! Names and sizes as users write them.

use super::error::{Error, Result};
use crate::fs::Timestamp;

/// Longest name of a LUN in bytes: it must fit iSCSI names (223 bytes) together with a snapshot's.
pub const MAX_LUN_NAME_BYTES: usize = 64;

/// One path component of `A-Z a-z 0-9 . _ -`, at most 64 bytes, not beginning with a dot.
pub fn check_name(name: &str) -> Result<()> {
    let bad = |why| Err(Error::BadName { name: name.escape_debug().to_string(), why });
    if name.is_empty() {
        return bad("it is empty");
    }
    if name.len() > MAX_LUN_NAME_BYTES {
        return bad("it is longer than 64 bytes");
    }
    if name.starts_with('.') {
        return bad("it begins with a dot");
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if !name.bytes().all(allowed) {
        return bad("it holds a character that no door can show");
    }
    Ok(())
}

/// Longest name of a snapshot in bytes.
pub const MAX_SNAPSHOT_NAME_BYTES: usize = 64;
/// What names that a policy gives begin with; a time follows.
pub const POLICY_PREFIX: &str = "auto-";
/// What the name of the ordinary tree is where snapshots are taken.
pub const TREE_NAME: &str = "/";

/// As a LUN's name, and it may hold `:`. Names that a policy gives are its own.
pub fn check_snapshot_name(name: &str) -> Result<()> {
    let bad = |why| Err(Error::BadSnapshotName { name: name.escape_debug().to_string(), why });
    if name.is_empty() {
        return bad("it is empty");
    }
    if name.len() > MAX_SNAPSHOT_NAME_BYTES {
        return bad("it is longer than 64 bytes");
    }
    if name.starts_with('.') {
        return bad("it begins with a dot");
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b':');
    if !name.bytes().all(allowed) {
        return bad("it holds a character that no door can show");
    }
    if policy_time(name).is_some() {
        return bad("names of this form are given, and taken away, by policies");
    }
    Ok(())
}

/// `NAME@SNAP` into its two parts; what has no `@` names all of a LUN.
pub fn split_snapshot(text: &str) -> (&str, Option<&str>) {
    match text.split_once('@') {
        None => (text, None),
        Some((name, snapshot)) => (name, Some(snapshot)),
    }
}

/// `2026-11-20T21:00:00Z`.
pub(super) fn time_name(time: Timestamp) -> String {
    match jiff::Timestamp::from_nanosecond(i128::from(time.0)) {
        Ok(time) => format!("{time:.0}"),
        Err(_) => "1970-01-01T00:00:00Z".to_owned(),
    }
}

/// The name of a snapshot that a policy makes.
pub fn policy_name(time: Timestamp) -> String {
    format!("{POLICY_PREFIX}{}", time_name(time))
}

/// When a policy made a snapshot of this name; `None`: no policy did.
pub fn policy_time(name: &str) -> Option<Timestamp> {
    time_of(name.strip_prefix(POLICY_PREFIX)?)
}

/// The time, as text, that a snapshot is named by, given by a command or a policy; `None`: it has
/// another name.
pub fn time_in_name(name: &str) -> Option<&str> {
    let text = name.strip_prefix(POLICY_PREFIX).unwrap_or(name);
    time_of(text).map(|_| text)
}

fn time_of(text: &str) -> Option<Timestamp> {
    let time: jiff::Timestamp = text.parse().ok()?;
    let time = Timestamp(i64::try_from(time.as_nanosecond()).ok()?);
    (time_name(time) == text).then_some(time)
}

/// What a name is compared by.
pub(super) fn key_of(name: &str) -> String {
    name.to_ascii_lowercase()
}

/// `4096`, `20G`, `20GiB`: bytes, or K M G T times 1024. `None`: not a size, or above 2^64.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "vm1", "VM-1_x.img", &"x".repeat(64)] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".a", ".", "..", "a/b", "a b", "a@b", "é", "a\0", "a:b", &"x".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_of_snapshots() {
        for good in ["a", "2026-11-20T21:00:00Z", "auto-update", "auto-2026", &"x".repeat(64)] {
            assert!(check_snapshot_name(good).is_ok(), "{good}");
        }
        let own = policy_name(Timestamp(1_795_226_400_999_999_999));
        assert_eq!(own, "auto-2026-11-21T02:00:00Z");
        assert_eq!(policy_time(&own), Some(Timestamp(1_795_226_400_000_000_000)));
        assert_eq!(policy_time("auto-2026-11-21T02:00:00.5Z"), None);
        assert_eq!(time_in_name(&own), Some("2026-11-21T02:00:00Z"));
        assert_eq!(time_in_name("2026-11-21T02:00:00Z"), Some("2026-11-21T02:00:00Z"));
        assert_eq!(time_in_name("auto-auto-2026-11-21T02:00:00Z"), None);
        assert_eq!(time_in_name("2026-11-21"), None);
        for bad in ["", ".a", "..", "a/b", "a b", "a@b", "é", "a\n", &own, &"x".repeat(65)] {
            assert!(check_snapshot_name(bad).is_err(), "{bad}");
        }
        assert_eq!(split_snapshot("/@a:b"), ("/", Some("a:b")));
        assert_eq!(split_snapshot("vm1"), ("vm1", None));
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("4096"), Some(4096));
        assert_eq!(parse_size("20G"), Some(20 << 30));
        assert_eq!(parse_size("1k"), Some(1024));
        assert_eq!(parse_size("16TiB"), Some(16 << 40));
        assert_eq!(parse_size("0"), Some(0));
        for bad in ["", "G", "-1", "1.5G", "1P", "16777216T", "99999999999999999999", "1 G", "é"] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
    }
}
