//! The list of initiators in the pool: one JSON file among lunfs' own, which the mount does not
//! show.
//!
//! Invariant: the file is replaced by one atomic write; after a crash it is the old list or the
//! new.
//!
//! Secrets are in it as they are: CHAP needs them on both sides. Who can read the pool's devices
//! can read them, as all data.

use super::error::{Error, Result};
use super::initiator::{Credential, Initiator, Limits, Right};
use super::network::Network;
use super::secret::BareSecret;
use crate::fs::{self, Fs, VolumeId};
use crate::lun::{find_own_file, own_file};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use zeroize::Zeroizing;

const FILE: &[u8] = b"initiators";
/// Version of the list.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    version: u32,
    initiators: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    chap: Option<Login>,
    mutual: Option<Login>,
    rights: Vec<Grant>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    addresses: Vec<String>,
    sessions: u32,
    commands: u32,
    memory_bytes: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Login {
    user: String,
    secret: BareSecret,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Grant {
    volume: u32,
    writable: bool,
    quota_bytes: u64,
}

/// Reads the list; a pool that has none has no initiators.
pub fn load(fs: &Arc<Fs>) -> Result<BTreeMap<String, Initiator>> {
    let unreadable = |error: fs::Error| Error::Unreadable(error.to_string());
    let Some(file) = find_own_file(fs, FILE).map_err(unreadable)? else {
        return Ok(BTreeMap::new());
    };
    let size = file.size_bytes();
    if size > fs::ATOMIC_WRITE_BYTES as u64 {
        return Err(Error::Unreadable("it is too long".to_owned()));
    }
    let mut bytes = Zeroizing::new(vec![0; size as usize]);
    let count = file.read_at(0, &mut bytes).map_err(unreadable)?;
    let text = bytes.get(..count).unwrap_or_default();
    if text.is_empty() {
        return Ok(BTreeMap::new()); // a crash came between making the file and writing it
    }
    // The error of a parser shows a place, never the text.
    let not_understood = |line: usize| Error::Unreadable(format!("line {line} is not understood"));
    let list: List = serde_json::from_slice(text).map_err(|e| not_understood(e.line()))?;
    if list.version != VERSION {
        return Err(Error::Unreadable("a later version of lunfs wrote it".to_owned()));
    }
    let all = list.initiators.into_iter().map(read).collect::<Result<Vec<Initiator>>>();
    let all = all.map_err(|_| Error::Unreadable("an entry of it is impossible".to_owned()))?;
    Ok(all.into_iter().map(|one| (one.name.clone(), one)).collect())
}

/// Writes the list; durable on return.
pub fn save(fs: &Arc<Fs>, all: &BTreeMap<String, Initiator>) -> Result<()> {
    let list = List { version: VERSION, initiators: all.values().map(entry).collect() };
    let mut text = Zeroizing::new(Vec::new());
    serde_json::to_writer_pretty(&mut *text, &list)
        .map_err(|_| Error::Fs(fs::Error::Invalid("the list cannot be written as JSON")))?;
    let file = own_file(fs, FILE)?;
    let old = usize::try_from(file.size_bytes()).unwrap_or(usize::MAX);
    let length = text.len();
    if length > fs::ATOMIC_WRITE_BYTES {
        return Err(Error::TooMany("the list would be longer than 2 MiB".to_owned()));
    }
    text.resize(length.max(old.min(fs::ATOMIC_WRITE_BYTES)), b'\n');
    file.write_at(0, &text)?;
    file.set_size(length as u64)?;
    Ok(fs.sync()?)
}

fn entry(one: &Initiator) -> Entry {
    let login = |credential: &Option<Arc<Credential>>| {
        credential.as_ref().map(|it| Login { user: it.user.clone(), secret: it.secret.bare() })
    };
    let grant = |(volume, right): (&VolumeId, &Right)| Grant {
        volume: volume.0,
        writable: right.writable,
        quota_bytes: right.quota_bytes,
    };
    Entry {
        name: one.name.clone(),
        chap: login(&one.chap),
        mutual: login(&one.mutual),
        rights: one.rights.iter().map(grant).collect(),
        addresses: one.networks.iter().map(Network::to_string).collect(),
        sessions: one.limits.sessions,
        commands: one.limits.commands,
        memory_bytes: one.limits.memory_bytes,
    }
}

fn read(entry: Entry) -> Result<Initiator> {
    let credential = |login: Option<Login>| {
        let made = login.map(|it| Credential::new(it.user, it.secret.into_secret()?));
        Ok::<_, Error>(made.transpose()?.map(Arc::new))
    };
    let right = |it: Grant| {
        let right = Right { writable: it.writable, quota_bytes: it.quota_bytes };
        (VolumeId(it.volume), right)
    };
    Ok(Initiator {
        chap: credential(entry.chap)?,
        mutual: credential(entry.mutual)?,
        rights: entry.rights.into_iter().map(right).collect(),
        networks: entry.addresses.iter().map(|text| text.parse()).collect::<Result<_>>()?,
        limits: Limits {
            sessions: entry.sessions,
            commands: entry.commands,
            memory_bytes: entry.memory_bytes,
        },
        ..Initiator::new(&entry.name)?
    })
}
