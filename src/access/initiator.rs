//! One client as the administrator wrote it down.

use super::error::{Error, Result};
use super::network::{Network, MAX_NETWORKS};
use super::secret::Secret;
use crate::fs::VolumeId;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// The longest iSCSI name in bytes (RFC 7143 §4.2.7.1).
const MAX_NAME_BYTES: usize = 223;
/// Longest CHAP user name: what initiators take.
const MAX_USER_BYTES: usize = 255;

/// What proves one side to the other.
#[derive(Debug)]
pub struct Credential {
    /// CHAP_N.
    pub user: String,
    /// The secret.
    pub secret: Secret,
    /// Which of all credentials since the program started: a proof by an older one is none.
    stamp: u64,
}

impl Credential {
    /// A user name of 1 to 255 printable bytes and a secret.
    pub fn new(user: String, secret: Secret) -> Result<Credential> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let printable = !user.chars().any(char::is_control);
        if user.is_empty() || user.len() > MAX_USER_BYTES || !printable {
            return Err(Error::BadUser);
        }
        Ok(Credential { user, secret, stamp: NEXT.fetch_add(1, Ordering::Relaxed) })
    }

    /// What a client that proved itself by it is remembered with.
    pub fn stamp(&self) -> u64 {
        self.stamp
    }
}

/// What a client may do with one LUN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Right {
    /// Not only read.
    pub writable: bool,
    /// Its writes may make the LUN's data take at most so many bytes; 0: no such bound.
    pub quota_bytes: u64,
}

impl Right {
    /// Everything.
    pub const ALL: Right = Right { writable: true, quota_bytes: 0 };
}

/// What one client may take of the server at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Sessions at a time over all LUNs and portals; each is one connection.
    pub sessions: u32,
    /// Commands that each session may have outstanding.
    pub commands: u32,
    /// Buffers of all its sessions together.
    pub memory_bytes: u64,
}

impl Limits {
    /// 32 LUNs over two paths each: beyond that the administrator says so.
    pub const DEFAULT_SESSIONS: u32 = 64;
    /// More than the 32 to 64 that Linux and Windows keep by default, so that no queue of theirs
    /// ever waits for ours.
    pub const DEFAULT_COMMANDS: u32 = 128;
    /// Four sessions with the longest bursts that one takes, or 2000 writes of 64 KiB.
    pub const DEFAULT_MEMORY_BYTES: u64 = 128 << 20;
    /// The door has no more connections.
    pub const MAX_SESSIONS: u32 = 256;
    /// The most that the door announces.
    pub const MAX_COMMANDS: u32 = 128;
    /// One command's longest burst (16 MiB) must fit, or it never ends.
    pub const MIN_MEMORY_BYTES: u64 = 16 << 20;
    /// A server's memory.
    pub const MAX_MEMORY_BYTES: u64 = 64 << 30;

    fn check(&self) -> Result<()> {
        let counts = [
            ("--max-sessions", self.sessions, Limits::MAX_SESSIONS),
            ("--max-commands", self.commands, Limits::MAX_COMMANDS),
        ];
        for (flag, value, most) in counts {
            if !(1..=most).contains(&value) {
                return Err(Error::BadLimit(flag, format!("give 1 to {most}")));
            }
        }
        let memory = Limits::MIN_MEMORY_BYTES..=Limits::MAX_MEMORY_BYTES;
        if !memory.contains(&self.memory_bytes) {
            return Err(Error::BadLimit("--max-memory", "give 16M to 64G".to_owned()));
        }
        Ok(())
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            sessions: Limits::DEFAULT_SESSIONS,
            commands: Limits::DEFAULT_COMMANDS,
            memory_bytes: Limits::DEFAULT_MEMORY_BYTES,
        }
    }
}

/// A client.
#[derive(Debug, Clone)]
pub struct Initiator {
    /// Its iSCSI name in lower case.
    pub name: String,
    /// What it proves itself by.
    pub chap: Option<Arc<Credential>>,
    /// What the target proves itself by.
    pub mutual: Option<Arc<Credential>>,
    /// What it may use. By volume: a LUN that is renamed keeps its users, one that is made anew
    /// under an old name has none.
    pub rights: BTreeMap<VolumeId, Right>,
    /// Where it may come from; empty: anywhere.
    pub networks: Vec<Network>,
    /// What it may take.
    pub limits: Limits,
}

/// A change of an initiator; what is `None` or empty stays.
#[derive(Debug, Default)]
pub struct Edit {
    /// A new credential, or none any more.
    pub chap: Option<Option<Credential>>,
    /// The same for the target's.
    pub mutual: Option<Option<Credential>>,
    /// LUNs it may use from now on, and whether for writing.
    pub allow: Vec<(VolumeId, bool)>,
    /// Quotas on LUNs it may use; 0 ends one.
    pub quotas: Vec<(VolumeId, u64)>,
    /// LUNs it may not use any more.
    pub deny: Vec<VolumeId>,
    /// Where it may come from; empty: anywhere.
    pub networks: Option<Vec<Network>>,
    /// Sessions.
    pub sessions: Option<u32>,
    /// Commands.
    pub commands: Option<u32>,
    /// Memory.
    pub memory_bytes: Option<u64>,
}

impl Initiator {
    /// One that may do nothing yet.
    pub fn new(name: &str) -> Result<Initiator> {
        Ok(Initiator {
            name: check_name(name)?,
            chap: None,
            mutual: None,
            rights: BTreeMap::new(),
            networks: Vec::new(),
            limits: Limits::default(),
        })
    }

    /// Makes a change; on an error it is half done and to be thrown away.
    pub fn apply(&mut self, edit: Edit) -> Result<()> {
        if let Some(chap) = edit.chap {
            self.chap = chap.map(Arc::new);
        }
        if let Some(mutual) = edit.mutual {
            self.mutual = mutual.map(Arc::new);
        }
        for (volume, writable) in edit.allow {
            let quota_bytes = self.rights.get(&volume).map_or(0, |right| right.quota_bytes);
            self.rights.insert(volume, Right { writable, quota_bytes });
        }
        for volume in edit.deny {
            self.rights.remove(&volume);
        }
        for (volume, quota_bytes) in edit.quotas {
            let right = self.rights.get_mut(&volume);
            let why = "it may not use that LUN: add --allow NAME".to_owned();
            right.ok_or(Error::BadLimit("--quota", why))?.quota_bytes = quota_bytes;
        }
        self.networks = edit.networks.unwrap_or(std::mem::take(&mut self.networks));
        let limits = &mut self.limits;
        limits.sessions = edit.sessions.unwrap_or(limits.sessions);
        limits.commands = edit.commands.unwrap_or(limits.commands);
        limits.memory_bytes = edit.memory_bytes.unwrap_or(limits.memory_bytes);
        self.check()
    }

    /// Whether it may come from there.
    pub fn comes_from(&self, address: IpAddr) -> bool {
        self.networks.is_empty() || self.networks.iter().any(|it| it.contains(address))
    }

    fn check(&self) -> Result<()> {
        self.limits.check()?;
        if self.networks.len() > MAX_NETWORKS {
            return Err(Error::BadLimit("--address", format!("give at most {MAX_NETWORKS}")));
        }
        match (&self.chap, &self.mutual) {
            (None, Some(_)) => Err(Error::MutualAlone),
            (Some(one), Some(other)) if one.secret.is(&other.secret) => Err(Error::SameSecret),
            _ => Ok(()),
        }
    }
}

/// An iSCSI name in its one form: lower case (RFC 7143 §4.2.7.1: names are compared without regard
/// to case; of what stringprep allows only ASCII is taken).
pub fn check_name(name: &str) -> Result<String> {
    let lower = name.to_ascii_lowercase();
    let bad = |why| Err(Error::BadName { name: name.escape_debug().to_string(), why });
    if name.len() > MAX_NAME_BYTES {
        return bad("it is longer than 223 bytes");
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b':');
    if !lower.bytes().all(allowed) {
        return bad("it holds a character other than a-z 0-9 - . :");
    }
    let hexadecimal = |text: &str, lengths: &[usize]| {
        lengths.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())
    };
    let good = match lower.split_once('.') {
        Some(("iqn", rest)) => is_iqn(rest),
        Some(("eui", rest)) => hexadecimal(rest, &[16]),
        Some(("naa", rest)) => hexadecimal(rest, &[16, 32]),
        _ => false,
    };
    match good {
        true => Ok(lower),
        false => bad("it is of none of the three forms that RFC 7143 §4.2.7 gives"),
    }
}

/// `yyyy-mm.` and a naming authority.
fn is_iqn(rest: &str) -> bool {
    let Some((date, authority)) = rest.split_once('.') else {
        return false;
    };
    let digits =
        |part: &str, count| part.len() == count && part.bytes().all(|b| b.is_ascii_digit());
    let dated = date.split_once('-').is_some_and(|(y, m)| digits(y, 4) && digits(m, 2));
    dated && authority.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;
    use zeroize::Zeroizing;

    fn credential(user: &str, secret: &str) -> Credential {
        let secret = Secret::new(Zeroizing::new(secret.to_owned())).unwrap();
        Credential::new(user.to_owned(), secret).unwrap()
    }

    #[test]
    fn names_have_one_form() {
        for (name, kept) in [
            ("iqn.2026-11.org.example:Host-1", "iqn.2026-11.org.example:host-1"),
            ("IQN.1993-08.org.debian:01:abc", "iqn.1993-08.org.debian:01:abc"),
            ("eui.02004567A425678D", "eui.02004567a425678d"),
            ("naa.52004567BA64678D", "naa.52004567ba64678d"),
            ("naa.62004567BA64678D0123456789ABCDEF", "naa.62004567ba64678d0123456789abcdef"),
        ] {
            assert_eq!(check_name(name).unwrap(), kept);
        }
        for bad in ["", "iqn.", "iqn.2026.org", "iqn.2026-1.org", "host", "eui.123", "iqn.2026-11."]
        {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        assert!(check_name("iqn.2026-11.org.example:a b").is_err());
        assert!(check_name(&format!("iqn.2026-11.org.{}", "x".repeat(223))).is_err());
    }

    #[test]
    fn a_change_is_checked() {
        let mut one = Initiator::new("iqn.2026-11.org:a").unwrap();
        let mutual = || Some(Some(credential("target", "twelve bytes")));
        let edit = Edit { mutual: mutual(), ..Edit::default() };
        assert!(matches!(one.clone().apply(edit), Err(Error::MutualAlone)));
        let chap = Some(Some(credential("user", "twelve bytes")));
        let edit = Edit { chap, mutual: mutual(), ..Edit::default() };
        assert!(matches!(one.clone().apply(edit), Err(Error::SameSecret)));
        let edit = Edit { quotas: vec![(VolumeId(9), 1)], ..Edit::default() };
        assert!(one.clone().apply(edit).is_err());
        let edit = Edit { commands: Some(0), ..Edit::default() };
        assert!(one.clone().apply(edit).is_err());
        let (allow, quotas) = (vec![(VolumeId(9), true)], vec![(VolumeId(9), 4096)]);
        one.apply(Edit { allow, quotas, ..Edit::default() }).unwrap();
        one.apply(Edit { allow: vec![(VolumeId(9), false)], ..Edit::default() }).unwrap();
        let right = Right { writable: false, quota_bytes: 4096 };
        assert_eq!(one.rights.get(&VolumeId(9)), Some(&right));
        one.apply(Edit { deny: vec![VolumeId(9)], ..Edit::default() }).unwrap();
        assert!(one.rights.is_empty());
    }
}
