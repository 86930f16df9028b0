//! The haggling phase as a sans-I/O state machine: bytes of the client in, replies and questions
//! out.
//!
//! [`Handshake::advance`] takes bytes and says what comes next. Where it asks something of the
//! directory the carrier answers with `listed`, `described`, `opened` or `refused`, and nothing
//! more is taken in until then. Replies gather in [`Handshake::output`], to be sent before more is
//! taken in.
//!
//! Bounds: an option's data above [`MAX_OPTION_BYTES`] is skipped, never stored; above
//! `MAX_SKIPPED_BYTES`, or after `MAX_OPTIONS` options, the connection ends.

use super::contexts::{FoundChanges, Selected, Wish, MAX_CHANGE_MAPS};
use super::directory::{ExportEntry, Refusal};
use super::errors::Error;
use super::wire::{self, export_flag, handshake_flag, info, option, option_reply, Reader};
use crate::lun::Geometry;

/// Longest data of an option that is looked at: two strings of the longest and some queries.
pub const MAX_OPTION_BYTES: usize = 16 << 10;
/// Longest data of an option that is skipped politely.
const MAX_SKIPPED_BYTES: usize = 1 << 20;
/// Options in one handshake: `nbdinfo --list` sends four for each of its exports.
const MAX_OPTIONS: usize = 1 << 16;
/// Zeros after the answer to EXPORT_NAME for clients that do not know better.
const EXPORT_NAME_ZEROES: usize = 124;
/// Longest text of an error reply.
const MAX_ERROR_TEXT_BYTES: usize = 512;

/// What was agreed on.
#[derive(Debug, Clone)]
pub struct Terms {
    /// Reads are answered by chunks, errors have texts.
    pub structured: bool,
    /// `base:allocation` was selected for this export.
    pub allocation: bool,
    /// Selected contexts of changes.
    pub changes: Selected,
    /// The client was told that it may not write.
    pub read_only: bool,
}

/// What the carrier does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Receive more.
    More,
    /// Ask the directory for its list; then [`Handshake::listed`] or [`Handshake::refused`].
    List,
    /// Ask what this export is like; then [`Handshake::described`] or [`Handshake::refused`].
    Describe(String),
    /// Open this export; then [`Handshake::opened`] or [`Handshake::refused`].
    Open(String),
    /// Ask for contexts; then [`Handshake::found`] or [`Handshake::refused`].
    Contexts(Wish),
    /// Send the output, go over to TLS, and go on with nothing that was received before.
    StartTls,
    /// Send the output and close.
    Close,
}

/// Whether a connection may, must or does use TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TlsRule {
    /// The server has no certificate.
    #[default]
    None,
    /// It may.
    Offered,
    /// Before anything else.
    Required,
    /// It does.
    Active,
}

/// What an export looks like to a client.
#[derive(Debug, Clone, Copy)]
pub struct Description<'a> {
    /// Its own name.
    pub name: &'a str,
    /// For people.
    pub description: &'a str,
    /// Size and flags.
    pub geometry: &'a Geometry,
}

#[derive(Debug)]
enum Phase {
    ClientFlags,
    Option,
    Skip { option: u32, left: usize },
    Asking(Question),
    Over,
}

#[derive(Debug)]
enum Question {
    List,
    Info { wanted: Vec<u16>, asked: String },
    Go { wanted: Vec<u16>, asked: String },
    ExportName { asked: String },
    Contexts(Wish),
}

/// Contexts that were selected, and for which export.
#[derive(Debug)]
struct Chosen {
    export: String,
    allocation: bool,
    changes: Selected,
}

/// One connection's handshake.
#[derive(Debug)]
pub struct Handshake {
    phase: Phase,
    /// Bytes to be sent.
    pub output: Vec<u8>,
    no_zeroes: bool,
    structured: bool,
    chosen: Option<Chosen>,
    options: usize,
    tls: TlsRule,
}

impl Default for Handshake {
    fn default() -> Handshake {
        Handshake::new(TlsRule::None)
    }
}

impl Handshake {
    /// One that begins with the server's greeting.
    pub fn new(tls: TlsRule) -> Handshake {
        let mut output = Vec::with_capacity(1024);
        output.extend(wire::GREETING_MAGIC.to_be_bytes());
        output.extend(wire::OPTION_MAGIC.to_be_bytes());
        let flags = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
        output.extend(flags.to_be_bytes());
        Handshake {
            phase: Phase::ClientFlags,
            output,
            no_zeroes: false,
            structured: false,
            chosen: None,
            options: 0,
            tls,
        }
    }

    /// Takes bytes off the front of `input`: returns how many, and what comes next. With
    /// [`Step::More`] and nothing taken, more bytes are needed than `input` has; an input of
    /// [`MAX_OPTION_BYTES`] and a header is always enough.
    pub fn advance(&mut self, input: &[u8]) -> Result<(usize, Step), Error> {
        let mut taken = 0;
        loop {
            let rest = input.get(taken..).unwrap_or_default();
            let (count, step) = match self.phase {
                Phase::ClientFlags => self.take_client_flags(rest)?,
                Phase::Option => self.take_option(rest)?,
                Phase::Skip { option, left } => self.skip(option, left, rest),
                Phase::Asking(_) => return Ok((taken, Step::More)),
                Phase::Over => return Ok((taken, Step::Close)),
            };
            taken += count;
            if step != Step::More || count == 0 {
                return Ok((taken, step));
            }
        }
    }

    fn take_client_flags(&mut self, input: &[u8]) -> Result<(usize, Step), Error> {
        let Some(flags) = Reader(input).u32() else {
            return Ok((0, Step::More));
        };
        let known = u32::from(handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
        if flags & !known != 0 {
            return Err(Error::Protocol("unknown client flags"));
        }
        self.no_zeroes = flags & u32::from(handshake_flag::NO_ZEROES) != 0;
        self.phase = Phase::Option;
        Ok((4, Step::More))
    }

    fn take_option(&mut self, input: &[u8]) -> Result<(usize, Step), Error> {
        let mut reader = Reader(input);
        let header = (reader.u64(), reader.u32(), reader.u32());
        let (Some(magic), Some(option), Some(length)) = header else {
            return Ok((0, Step::More));
        };
        if magic != wire::OPTION_MAGIC {
            return Err(Error::Protocol("an option without its magic"));
        }
        let length = length as usize;
        if length > MAX_OPTION_BYTES {
            return self.begin_skip(option, length);
        }
        let Some(data) = reader.bytes(length) else {
            return Ok((0, Step::More));
        };
        self.count_option()?;
        Ok((wire::OPTION_BYTES + length, self.answer(option, data)?))
    }

    fn count_option(&mut self) -> Result<(), Error> {
        self.options += 1;
        if self.options > MAX_OPTIONS {
            return Err(Error::Protocol("too many options"));
        }
        Ok(())
    }

    fn begin_skip(&mut self, option: u32, length: usize) -> Result<(usize, Step), Error> {
        self.count_option()?;
        if length > MAX_SKIPPED_BYTES || option == option::EXPORT_NAME {
            return Err(Error::Protocol("an option with absurdly long data"));
        }
        self.phase = Phase::Skip { option, left: length };
        Ok((wire::OPTION_BYTES, Step::More))
    }

    fn skip(&mut self, option: u32, left: usize, input: &[u8]) -> (usize, Step) {
        let count = left.min(input.len());
        self.phase = Phase::Skip { option, left: left - count };
        if count == left {
            self.phase = Phase::Option;
            self.error(option, option_reply::ERR_TOO_BIG, "the option's data is too long");
        }
        (count, Step::More)
    }

    fn answer(&mut self, option: u32, data: &[u8]) -> Result<Step, Error> {
        let early = !matches!(option, option::STARTTLS | option::ABORT);
        if self.tls == TlsRule::Required && early {
            if option == option::EXPORT_NAME {
                return Err(Error::Protocol("an export was asked for before TLS"));
            }
            self.error(option, option_reply::ERR_TLS_REQD, "TLS is required here: STARTTLS first");
            return Ok(Step::More);
        }
        match option {
            option::STARTTLS => Ok(self.start_tls(data)),
            option::EXPORT_NAME => self.export_name(data),
            option::ABORT => {
                self.reply(option, option_reply::ACK, &[]);
                self.phase = Phase::Over;
                Ok(Step::Close)
            }
            option::LIST if data.is_empty() => Ok(self.ask(Question::List)),
            option::INFO | option::GO => Ok(self.info_or_go(option, data)),
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                self.reply(option, option_reply::ACK, &[]);
                Ok(Step::More)
            }
            option::LIST | option::STRUCTURED_REPLY => {
                self.error(option, option_reply::ERR_INVALID, "this option takes no data");
                Ok(Step::More)
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                Ok(self.meta_context(option, data))
            }
            _ => {
                self.error(option, option_reply::ERR_UNSUP, "this server has no such option");
                Ok(Step::More)
            }
        }
    }

    /// What was agreed on in the clear is forgotten: anybody may have said it (proto, "TLS").
    fn start_tls(&mut self, data: &[u8]) -> Step {
        let offered = matches!(self.tls, TlsRule::Offered | TlsRule::Required);
        if !data.is_empty() || self.tls == TlsRule::Active {
            self.error(option::STARTTLS, option_reply::ERR_INVALID, "not here, not like this");
            return Step::More;
        }
        if !offered {
            self.error(option::STARTTLS, option_reply::ERR_UNSUP, "this server has no certificate");
            return Step::More;
        }
        self.reply(option::STARTTLS, option_reply::ACK, &[]);
        (self.tls, self.structured, self.chosen) = (TlsRule::Active, false, None);
        Step::StartTls
    }

    fn ask(&mut self, question: Question) -> Step {
        let step = match &question {
            Question::List => Step::List,
            Question::Info { asked, .. } => Step::Describe(asked.clone()),
            Question::Go { asked, .. } | Question::ExportName { asked } => {
                Step::Open(asked.clone())
            }
            Question::Contexts(wish) => Step::Contexts(wish.clone()),
        };
        self.phase = Phase::Asking(question);
        step
    }

    fn export_name(&mut self, data: &[u8]) -> Result<Step, Error> {
        match std::str::from_utf8(data) {
            Ok(name) if data.len() <= wire::MAX_STRING_BYTES => {
                Ok(self.ask(Question::ExportName { asked: name.to_owned() }))
            }
            _ => Err(Error::Protocol("an export name that is no string")),
        }
    }

    fn info_or_go(&mut self, option: u32, data: &[u8]) -> Step {
        match parse_info(data) {
            Some((asked, wanted)) if option == option::GO => {
                self.ask(Question::Go { wanted, asked })
            }
            Some((asked, wanted)) => self.ask(Question::Info { wanted, asked }),
            None => {
                self.error(option, option_reply::ERR_INVALID, "malformed request");
                Step::More
            }
        }
    }

    fn meta_context(&mut self, option: u32, data: &[u8]) -> Step {
        let select = option == option::SET_META_CONTEXT;
        if select {
            self.chosen = None;
        }
        if !self.structured {
            let text = "structured replies were not asked for";
            self.error(option, option_reply::ERR_INVALID, text);
            return Step::More;
        }
        let Some((export, queries)) = parse_queries(data) else {
            self.error(option, option_reply::ERR_INVALID, "malformed request");
            return Step::More;
        };
        let wish = Wish::new(export, select, &queries);
        if wish.asks_for_changes() {
            return self.ask(Question::Contexts(wish));
        }
        self.put_contexts(wish, Vec::new());
        Step::More
    }

    /// The contexts there are, for [`Step::Contexts`].
    pub fn found(&mut self, changes: Vec<FoundChanges>) {
        let phase = std::mem::replace(&mut self.phase, Phase::Option);
        if let Phase::Asking(Question::Contexts(wish)) = phase {
            self.put_contexts(wish, changes);
        }
    }

    fn put_contexts(&mut self, wish: Wish, changes: Vec<FoundChanges>) {
        let option = match wish.select {
            true => option::SET_META_CONTEXT,
            false => option::LIST_META_CONTEXT,
        };
        if wish.select && changes.len() > MAX_CHANGE_MAPS {
            return self.error(option, option_reply::ERR_TOO_BIG, "too many contexts at once");
        }
        let id = |id: u32| if wish.select { id } else { 0 }.to_be_bytes();
        if wish.allocation {
            let name = wire::BASE_ALLOCATION.as_bytes();
            let id = id(wire::BASE_ALLOCATION_ID);
            self.reply(option, option_reply::META_CONTEXT, &[&id, name]);
        }
        for (number, found) in (wire::FIRST_CHANGES_ID..).zip(&changes) {
            let name = found.context();
            self.reply(option, option_reply::META_CONTEXT, &[&id(number), name.as_bytes()]);
        }
        if wish.select {
            let maps = changes.into_iter().filter_map(|found| found.map).collect();
            let Wish { export, allocation, .. } = wish;
            self.chosen = Some(Chosen { export, allocation, changes: Selected::new(maps) });
        }
        self.reply(option, option_reply::ACK, &[]);
    }

    /// The directory's list, for [`Step::List`].
    pub fn listed(&mut self, entries: &[ExportEntry]) {
        self.phase = Phase::Option;
        for entry in entries {
            let name = entry.name.as_bytes();
            let length = (name.len() as u32).to_be_bytes();
            let parts: [&[u8]; 3] = [&length, name, entry.description.as_bytes()];
            self.reply(option::LIST, option_reply::SERVER, &parts);
        }
        self.reply(option::LIST, option_reply::ACK, &[]);
    }

    /// What the export is like, for [`Step::Describe`].
    pub fn described(&mut self, export: Description<'_>) {
        let phase = std::mem::replace(&mut self.phase, Phase::Option);
        if let Phase::Asking(Question::Info { wanted, asked }) = phase {
            self.put_info(option::INFO, &wanted, &asked, export);
        }
    }

    /// The export is open, for [`Step::Open`]: after the output is sent the transmission begins.
    pub fn opened(&mut self, export: Description<'_>) -> Terms {
        let phase = std::mem::replace(&mut self.phase, Phase::Over);
        let (Phase::Asking(Question::Go { ref asked, .. })
        | Phase::Asking(Question::ExportName { ref asked })) = phase
        else {
            return self.terms("", export.geometry);
        };
        let terms = self.terms(asked, export.geometry);
        if let Phase::Asking(Question::Go { wanted, asked }) = &phase {
            self.put_info(option::GO, wanted, asked, export);
            return terms;
        }
        self.output.extend(export.geometry.size_bytes.to_be_bytes());
        self.output.extend(self.export_flags(export.geometry).to_be_bytes());
        if !self.no_zeroes {
            self.output.extend([0; EXPORT_NAME_ZEROES]);
        }
        terms
    }

    fn terms(&self, asked: &str, geometry: &Geometry) -> Terms {
        let chosen = self.chosen.as_ref().filter(|chosen| chosen.export == asked);
        Terms {
            structured: self.structured,
            allocation: chosen.is_some_and(|chosen| chosen.allocation),
            changes: chosen.map_or(Selected::NONE, |chosen| chosen.changes.clone()),
            read_only: geometry.read_only,
        }
    }

    /// The directory says no. An error where the option has no other way to say it.
    pub fn refused(&mut self, refusal: Refusal) -> Result<(), Error> {
        let option = match std::mem::replace(&mut self.phase, Phase::Option) {
            Phase::Asking(Question::List) => option::LIST,
            Phase::Asking(Question::Info { .. }) => option::INFO,
            Phase::Asking(Question::Go { .. }) => option::GO,
            Phase::Asking(Question::Contexts(wish)) if wish.select => option::SET_META_CONTEXT,
            Phase::Asking(Question::Contexts(_)) => option::LIST_META_CONTEXT,
            _ => return Err(refusal.into()),
        };
        let code = match refusal {
            Refusal::Unknown(_) => option_reply::ERR_UNKNOWN,
            Refusal::Policy(_) => option_reply::ERR_POLICY,
            Refusal::Shutdown => option_reply::ERR_SHUTDOWN,
        };
        self.error(option, code, &refusal.to_string());
        Ok(())
    }

    fn put_info(&mut self, option: u32, wanted: &[u16], asked: &str, export: Description<'_>) {
        let flags = self.export_flags(export.geometry).to_be_bytes();
        let size = export.geometry.size_bytes.to_be_bytes();
        self.info(option, info::EXPORT, &[&size, &flags]);
        if wanted.contains(&info::NAME) || asked != export.name {
            self.info(option, info::NAME, &[export.name.as_bytes()]);
        }
        if wanted.contains(&info::DESCRIPTION) && !export.description.is_empty() {
            self.info(option, info::DESCRIPTION, &[export.description.as_bytes()]);
        }
        let least = export.geometry.block_bytes;
        let preferred = least.max(wire::PREFERRED_BLOCK_BYTES).to_be_bytes();
        let most = wire::MAX_REQUEST_BYTES.to_be_bytes();
        self.info(option, info::BLOCK_SIZE, &[&least.to_be_bytes(), &preferred, &most]);
        self.reply(option, option_reply::ACK, &[]);
    }

    fn info(&mut self, option: u32, kind: u16, parts: &[&[u8]]) {
        let mut all: Vec<&[u8]> = Vec::with_capacity(parts.len() + 1);
        let kind = kind.to_be_bytes();
        all.push(&kind);
        all.extend(parts);
        self.reply(option, option_reply::INFO, &all);
    }

    fn export_flags(&self, geometry: &Geometry) -> u16 {
        let mut flags = export_flag::HAS_FLAGS
            | export_flag::SEND_FLUSH
            | export_flag::SEND_FUA
            | export_flag::CAN_MULTI_CONN
            | export_flag::SEND_CACHE;
        if geometry.read_only {
            flags |= export_flag::READ_ONLY;
        } else {
            flags |= export_flag::SEND_TRIM
                | export_flag::SEND_WRITE_ZEROES
                | export_flag::SEND_FAST_ZERO;
        }
        if geometry.rotation_rate > 1 {
            flags |= export_flag::ROTATIONAL;
        }
        if self.structured {
            flags |= export_flag::SEND_DF;
        }
        flags
    }

    fn reply(&mut self, option: u32, kind: u32, parts: &[&[u8]]) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        self.output.extend(wire::OPTION_REPLY_MAGIC.to_be_bytes());
        self.output.extend(option.to_be_bytes());
        self.output.extend(kind.to_be_bytes());
        self.output.extend((length as u32).to_be_bytes());
        parts.iter().for_each(|part| self.output.extend_from_slice(part));
    }

    fn error(&mut self, option: u32, kind: u32, text: &str) {
        let text = text.as_bytes();
        let text = text.get(..MAX_ERROR_TEXT_BYTES).unwrap_or(text);
        self.reply(option, kind, &[String::from_utf8_lossy(text).as_bytes()]);
    }
}

/// Data of INFO and GO: the name, then the kinds of information asked for.
fn parse_info(data: &[u8]) -> Option<(String, Vec<u16>)> {
    let mut reader = Reader(data);
    let name = reader.string()?.to_owned();
    let count = reader.u16()?;
    let wanted: Option<Vec<u16>> = (0..count).map(|_| reader.u16()).collect();
    reader.is_empty().then_some(())?;
    Some((name, wanted?))
}

/// Data of LIST_META_CONTEXT and SET_META_CONTEXT: the export's name, then the queries.
fn parse_queries(data: &[u8]) -> Option<(&str, Vec<&str>)> {
    let mut reader = Reader(data);
    let export = reader.string()?;
    let count = reader.u32()?;
    let mut queries = Vec::new();
    for _ in 0..count {
        queries.push(reader.string()?);
    }
    reader.is_empty().then_some((export, queries))
}

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;
