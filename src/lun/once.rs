//! What was done for clients that may ask for it again, because the answer was lost on its way.
//!
//! A client numbers its requests. Before one is carried out that must not be done twice it is noted
//! here ([`OnceBook::begin`]), and its outcome afterwards ([`OnceBook::finish`]). Asked again, the
//! outcome is told from memory. Of those that change what is on disk (snapshots) both notes are
//! durable: after a crash between them the caller finds what it meant to do
//! ([`Once::Interrupted`]) and looks whether it was done.
//!
//! Bounded: [`DEEDS_KEPT`] of each client of an object, [`CLIENTS_OF_A_NAME`] clients that share a
//! proved name, [`MAX_CLIENTS`] in all; beyond that the one that was silent longest is forgotten.

use super::error::Result;
use super::reserved::{read_own_file, replace_own_file};
use crate::fs::{self, Fs, VolumeId};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Requests of one client that are remembered.
pub const DEEDS_KEPT: usize = 64;
/// Longest outcome and longest intent in bytes.
pub const MAX_DEED_BYTES: usize = 512;
const CLIENTS_OF_A_NAME: usize = 32;
const MAX_CLIENTS: usize = 1024;
const FILE: &[u8] = b"done";
const VERSION: u32 = 1;
/// Longest file: it is replaced by one atomic write.
const MAX_FILE_BYTES: usize = fs::ATOMIC_WRITE_BYTES / 4 * 3;

/// Whose memory it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OnceClient {
    /// The object.
    pub volume: u32,
    /// What it proved to be, or its address.
    pub name: String,
    /// Which of the clients that are called so.
    pub instance: String,
}

impl OnceClient {
    /// A client of a LUN.
    pub fn new(volume: VolumeId, name: &str, instance: &str) -> OnceClient {
        OnceClient { volume: volume.0, name: name.to_owned(), instance: instance.to_owned() }
    }
}

/// A request: its number, and a checksum of what it asks for, so that a number which was used for
/// something else is no repetition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Its number.
    pub seq: u32,
    /// Checksum over what it asks for.
    pub print: u32,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The protocol's status.
    pub status: u32,
    /// The protocol's answer, at most [`MAX_DEED_BYTES`].
    pub text: String,
}

/// Whether a request is to be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Once {
    /// Yes.
    New,
    /// It is being carried out at this moment.
    Running,
    /// It was, with this outcome.
    Done(Outcome),
    /// A server ended while it was carried out; this was meant to be done.
    Interrupted(String),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Deed {
    #[serde(flatten)]
    asked: Asked,
    /// What is meant to be done; empty: nothing durable.
    intent: String,
    outcome: Option<Outcome>,
    /// A thread of this process is at it.
    #[serde(skip)]
    running: bool,
}

#[derive(Debug, Default)]
struct Memory {
    deeds: VecDeque<Deed>,
    /// When it was last heard of.
    tick: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    client: OnceClient,
    deeds: Vec<Deed>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Text {
    version: u32,
    clients: Vec<Line>,
}

#[derive(Debug, Default)]
struct Inner {
    clients: HashMap<OnceClient, Memory>,
    tick: u64,
}

/// All that is remembered.
pub struct OnceBook {
    /// `None`: nothing is durable.
    fs: Option<Arc<Fs>>,
    inner: Mutex<Inner>,
}

impl OnceBook {
    /// Reads what a pool remembers. What cannot be understood is forgotten: the worst that follows
    /// is a repetition that is answered with "it exists".
    pub fn open(fs: &Arc<Fs>) -> OnceBook {
        let text = read_own_file(fs, FILE).unwrap_or_default().unwrap_or_default();
        let lines = serde_json::from_slice::<Text>(&text).ok();
        let lines = lines.filter(|text| text.version == VERSION).map(|text| text.clients);
        let mut inner = Inner::default();
        for line in lines.unwrap_or_default().into_iter().take(MAX_CLIENTS) {
            inner.tick += 1;
            let deeds = line.deeds.into_iter().take(DEEDS_KEPT).collect();
            inner.clients.insert(line.client, Memory { deeds, tick: inner.tick });
        }
        OnceBook { fs: Some(Arc::clone(fs)), inner: Mutex::new(inner) }
    }

    /// One that remembers while the process runs.
    pub fn in_memory() -> OnceBook {
        OnceBook { fs: None, inner: Mutex::default() }
    }

    /// Whether a request is to be carried out; if so it counts as running until
    /// [`OnceBook::finish`]. With an `intent` it is durable on return, and an error means that
    /// nothing was begun.
    pub fn begin(&self, client: &OnceClient, asked: Asked, intent: &str) -> Result<Once> {
        let mut inner = self.inner.lock();
        let memory = inner.of(client);
        if let Some(deed) = memory.deeds.iter_mut().find(|deed| deed.asked == asked) {
            return Ok(match &deed.outcome {
                Some(outcome) => Once::Done(outcome.clone()),
                None if deed.running => Once::Running,
                None => {
                    deed.running = true;
                    Once::Interrupted(deed.intent.clone())
                }
            });
        }
        // A number comes again with something else: its old meaning is over.
        memory.deeds.retain(|deed| deed.asked.seq != asked.seq || deed.running);
        if memory.deeds.len() >= DEEDS_KEPT {
            let done = memory.deeds.iter().position(|deed| !deed.running);
            done.map(|at| memory.deeds.remove(at));
        }
        let intent = clip(intent);
        memory.deeds.push_back(Deed { asked, intent, outcome: None, running: true });
        let saved = self.save_if_durable(&mut inner, client, asked);
        if saved.is_err() {
            inner.of(client).deeds.retain(|deed| deed.asked != asked);
        }
        saved.map(|()| Once::New)
    }

    /// What came of it. `None`: nothing was done, and it may be asked for again.
    pub fn finish(
        &self,
        client: &OnceClient,
        asked: Asked,
        outcome: Option<Outcome>,
    ) -> Result<()> {
        let mut inner = self.inner.lock();
        let memory = inner.of(client);
        let Some(at) = memory.deeds.iter().position(|deed| deed.asked == asked) else {
            return Ok(());
        };
        match (outcome, memory.deeds.get_mut(at)) {
            (Some(outcome), Some(deed)) => {
                let text = clip(&outcome.text);
                (deed.running, deed.outcome) = (false, Some(Outcome { text, ..outcome }));
                self.save_if_durable(&mut inner, client, asked)
            }
            _ => {
                let gone = memory.deeds.remove(at);
                match gone.is_some_and(|deed| !deed.intent.is_empty()) {
                    true => self.save(&mut inner),
                    false => Ok(()),
                }
            }
        }
    }

    fn save_if_durable(&self, inner: &mut Inner, client: &OnceClient, asked: Asked) -> Result<()> {
        let durable = |deed: &Deed| deed.asked == asked && !deed.intent.is_empty();
        match inner.of(client).deeds.iter().any(durable) {
            true => self.save(inner),
            false => Ok(()),
        }
    }

    /// The newest clients that have room in the file.
    fn save(&self, inner: &mut Inner) -> Result<()> {
        let Some(fs) = &self.fs else { return Ok(()) };
        let mut all: Vec<(&OnceClient, &Memory)> = inner.clients.iter().collect();
        all.sort_by_key(|(_, memory)| std::cmp::Reverse(memory.tick));
        let line = |(client, memory): (&OnceClient, &Memory)| {
            let deeds = memory.deeds.iter().filter(|deed| !deed.intent.is_empty());
            Line { client: client.clone(), deeds: deeds.cloned().collect() }
        };
        let lines = all.into_iter().map(line).filter(|line| !line.deeds.is_empty());
        let mut room = MAX_FILE_BYTES;
        let fits = |line: &Line| {
            let length = serde_json::to_string(line).map_or(usize::MAX, |text| text.len() + 1);
            room.checked_sub(length).map(|left| room = left).is_some()
        };
        let clients = lines.take_while(fits).collect();
        let text = serde_json::to_vec(&Text { version: VERSION, clients });
        let text = text.map_err(|_| fs::Error::Invalid("the list cannot be written as JSON"))?;
        replace_own_file(fs, FILE, &text)?;
        Ok(fs.sync()?)
    }
}

impl Inner {
    fn of(&mut self, client: &OnceClient) -> &mut Memory {
        self.tick += 1;
        if !self.clients.contains_key(client) {
            let same = |it: &&OnceClient| it.volume == client.volume && it.name == client.name;
            if self.clients.keys().filter(same).count() >= CLIENTS_OF_A_NAME {
                self.forget_oldest(&|it| it.volume == client.volume && it.name == client.name);
            } else if self.clients.len() >= MAX_CLIENTS {
                self.forget_oldest(&|_| true);
            }
        }
        let memory = self.clients.entry(client.clone()).or_default();
        memory.tick = self.tick;
        memory
    }

    fn forget_oldest(&mut self, which: &dyn Fn(&OnceClient) -> bool) {
        let idle = |memory: &Memory| !memory.deeds.iter().any(|deed| deed.running);
        let found = self.clients.iter().filter(|(client, memory)| which(client) && idle(memory));
        let oldest = found.min_by_key(|(_, memory)| memory.tick).map(|(client, _)| client.clone());
        oldest.map(|client| self.clients.remove(&client));
    }
}

impl std::fmt::Debug for OnceBook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OnceBook({} clients)", self.inner.lock().clients.len())
    }
}

fn clip(text: &str) -> String {
    let mut end = text.len().min(MAX_DEED_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(instance: &str) -> OnceClient {
        OnceClient::new(VolumeId(7), "a", instance)
    }

    fn asked(seq: u32) -> Asked {
        Asked { seq, print: 1 }
    }

    fn outcome(text: &str) -> Outcome {
        Outcome { status: 0, text: text.to_owned() }
    }

    #[test]
    fn a_repetition_is_answered_from_memory() {
        let (book, one) = (OnceBook::in_memory(), client("x"));
        assert_eq!(book.begin(&one, asked(1), "").unwrap(), Once::New);
        assert_eq!(book.begin(&one, asked(1), "").unwrap(), Once::Running);
        book.finish(&one, asked(1), Some(outcome("made"))).unwrap();
        assert_eq!(book.begin(&one, asked(1), "").unwrap(), Once::Done(outcome("made")));
        assert_eq!(book.begin(&client("y"), asked(1), "").unwrap(), Once::New);
        let other = Asked { print: 2, ..asked(1) };
        assert_eq!(book.begin(&one, other, "").unwrap(), Once::New);
        book.finish(&one, other, None).unwrap();
        assert_eq!(book.begin(&one, other, "").unwrap(), Once::New);
    }

    #[test]
    fn at_least_64_are_remembered_and_memory_is_bounded() {
        let (book, one) = (OnceBook::in_memory(), client("x"));
        for seq in 0..200 {
            book.begin(&one, asked(seq), "").unwrap();
            book.finish(&one, asked(seq), Some(outcome(&seq.to_string()))).unwrap();
        }
        for seq in 136..200 {
            let again = book.begin(&one, asked(seq), "").unwrap();
            assert_eq!(again, Once::Done(outcome(&seq.to_string())));
        }
        for instance in 0..3 * MAX_CLIENTS {
            book.begin(&client(&instance.to_string()), asked(1), "").unwrap();
            book.finish(&client(&instance.to_string()), asked(1), Some(outcome(""))).unwrap();
        }
        assert!(book.inner.lock().clients.len() <= CLIENTS_OF_A_NAME);
    }
}
