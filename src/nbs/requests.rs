//! What a request does with its object: the work behind a packet, from body to answer. May block;
//! run by the carrier on a thread of its own.

use super::directory::{Client, Facts, Object, ObjectDirectory, SnapFacts, SnapOrder};
use super::messages::Messages;
use super::wire::{snap, Header, OpCode, Status, MAX_DATA_BYTES};
use super::xml::{self, Element};
use crate::lun::{
    Asked, BlockError, Once, OnceBook, Outcome, MAX_DEED_BYTES, MAX_OPAQUE_BYTES, MAX_PAUSE,
};
use bytes::Bytes;
use std::time::Duration;

/// How long a pause lasts where the request does not say.
const USUAL_PAUSE_SECONDS: u64 = 10;

/// A status, and what goes with it.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The result.
    pub status: Status,
    /// Data or an XML body.
    pub data: Bytes,
}

impl Answer {
    /// Without data.
    pub fn bare(status: Status) -> Answer {
        Answer { status, data: Bytes::new() }
    }

    fn body(element: &Element) -> Answer {
        Answer { status: Status::Ok, data: element.to_xml().into() }
    }

    fn of(result: Result<Element, Status>) -> Answer {
        result.map_or_else(Answer::bare, |element| Answer::body(&element))
    }
}

/// What an error of the disk is in this protocol: a session that a newer connection took over is
/// stale, not gone.
pub fn block_status(object: &dyn Object, error: &BlockError) -> Status {
    match error {
        BlockError::Gone if object.is_superseded() => Status::Stale,
        other => Status::of_block_error(other),
    }
}

/// LIST.
pub fn list(directory: &dyn ObjectDirectory, client: &Client) -> Answer {
    let mut reply = Element::new("nbsLstRply");
    let mut room = MAX_DATA_BYTES as usize - 64;
    for facts in directory.list(client) {
        let item = describe(Element::new("nbs").with("name", &facts.name), &facts, "blkSize");
        match room.checked_sub(item.to_xml().len()) {
            Some(left) => room = left,
            None => {
                reply = reply.with("more", 1);
                break;
            }
        }
        reply.items.push(item);
    }
    Answer::body(&reply)
}

/// `block_key` is `blkSize` in LIST and `BlkSize` in INFO: so the source writes them.
fn describe(element: Element, facts: &Facts, block_key: &str) -> Element {
    let blocks_key = if block_key == "BlkSize" { "NumBlks" } else { "numBlks" };
    let flag = u8::from;
    element
        .with(block_key, facts.block_bytes)
        .with(blocks_key, facts.blocks)
        .with("rw", flag(facts.writable))
        .with("share", flag(facts.shared))
        .with("snapable", flag(facts.snapable))
        .with("dr", flag(facts.replicated))
        .with("tws", flag(facts.write_through))
}

/// INFO's answer; an object that 32 bits of its blocks do not reach is refused, with the block size
/// that it needs.
pub fn describe_opened(facts: &Facts, server: &str) -> Answer {
    let reply = Element::new("nbsInfoRply");
    if facts.blocks > 1 << 32 {
        let bytes = facts.blocks.saturating_mul(u64::from(facts.block_bytes));
        let needed = bytes.div_ceil(1 << 32).next_power_of_two();
        let data = reply.with("blkSizeNeeded", needed).to_xml().into();
        return Answer { status: Status::Invalid, data };
    }
    let reply = describe(reply, facts, "BlkSize").with("xferSize", MAX_DATA_BYTES);
    Answer::body(&reply.with("server", server))
}

/// PAUSE.
pub fn pause(object: &dyn Object, body: &[u8]) -> Answer {
    let seconds = match body {
        [] => None,
        body => match xml::parse(body) {
            Some(request) => request.number::<u64>("seconds"),
            None => return Answer::bare(Status::Invalid),
        },
    };
    let limit = Duration::from_secs(seconds.unwrap_or(USUAL_PAUSE_SECONDS)).min(MAX_PAUSE);
    let paused = object.pause(limit);
    Answer::of(paused.map(|()| Element::new("nbsPauseRply").with("seconds", limit.as_secs())))
}

/// READ_OPAQUE.
pub fn read_opaque(object: &dyn Object) -> Answer {
    match object.read_opaque() {
        Ok(bytes) => Answer { status: Status::Ok, data: bytes.into() },
        Err(status) => Answer::bare(status),
    }
}

/// Whether the message of this body moves data.
pub fn is_data(body: &[u8]) -> bool {
    let message = xml::parse(body);
    message.is_some_and(|message| Messages::is_data(message.get("name").unwrap_or_default()))
}

/// What must not be done twice: carried out, or answered from memory.
pub fn once(
    book: &OnceBook,
    object: &dyn Object,
    messages: &Messages,
    header: &Header,
    body: &[u8],
) -> Answer {
    let parsed = match OpCode::of_request(header.op) {
        Some(OpCode::WriteOpaque) if body.len() > MAX_OPAQUE_BYTES => {
            return Answer::bare(Status::Invalid);
        }
        Some(OpCode::WriteOpaque | OpCode::Pause) => Element::default(),
        _ => match xml::parse(body) {
            Some(parsed) => parsed,
            None => return Answer::bare(Status::Invalid),
        },
    };
    match OpCode::of_request(header.op) {
        Some(OpCode::Snap) if header.sub == snap::LIST => snap_list(object),
        Some(OpCode::Snap) => snap_once(book, object, header, &parsed, body),
        Some(OpCode::Msg) if !messages.is_once(parsed.get("name").unwrap_or_default()) => {
            Answer::of(messages.call(object, &parsed))
        }
        Some(OpCode::Msg) => {
            let act = || Answer::of(messages.call(object, &parsed));
            remembered(book, object, asked(header, body), "", &|_| act())
        }
        Some(OpCode::WriteOpaque) => remembered(book, object, asked(header, body), "", &|_| {
            Answer::bare(object.write_opaque(body).err().unwrap_or(Status::Ok))
        }),
        // A pause ends with its connection: only a repetition on the same one is one.
        Some(OpCode::Pause) => {
            let print = crc32c::crc32c_append(header.generation, body);
            let asked = Asked { seq: header.seq, print };
            remembered(book, object, asked, "", &|_| pause(object, body))
        }
        _ => Answer::bare(Status::Unsupported),
    }
}

fn asked(header: &Header, body: &[u8]) -> Asked {
    let print = crc32c::crc32c(&header.op.to_be_bytes());
    let print = crc32c::crc32c_append(print, &header.sub.to_be_bytes());
    Asked { seq: header.seq, print: crc32c::crc32c_append(print, body) }
}

/// Carries `act` out unless that was done already; it is handed what an interrupted server meant to
/// do.
fn remembered(
    book: &OnceBook,
    object: &dyn Object,
    asked: Asked,
    intent: &str,
    act: &dyn Fn(Option<&str>) -> Answer,
) -> Answer {
    let client = object.once_client();
    let begun = match book.begin(client, asked, intent) {
        Ok(begun) => begun,
        Err(error) if error.is_no_space() => return Answer::bare(Status::NoSpace),
        Err(_) => return Answer::bare(Status::IoError),
    };
    let answer = match begun {
        Once::Running => return Answer::bare(Status::Busy),
        Once::Done(outcome) => {
            return Answer { status: Status::of(outcome.status), data: outcome.text.into() };
        }
        Once::New => act(None),
        Once::Interrupted(intent) => act(Some(&intent)),
    };
    let kept = if answer.data.len() > MAX_DEED_BYTES { &[][..] } else { &answer.data };
    let text = String::from_utf8_lossy(kept).into_owned();
    let outcome = Outcome { status: answer.status as u32, text };
    // What failed for now may be asked for again. That the note cannot be written is no reason to
    // call what was done undone: memory has it.
    let transient = [
        Status::Busy,
        Status::Frozen,
        Status::NoMemory,
        Status::IoError,
        Status::NoSpace,
        Status::Stale,
    ];
    let outcome = (!transient.contains(&answer.status)).then_some(outcome);
    let _ = book.finish(client, asked, outcome);
    answer
}

fn snap_facts(element: Element, facts: &SnapFacts) -> Element {
    element.with("snapId", &facts.name).with("time", &facts.time)
}

fn snap_list(object: &dyn Object) -> Answer {
    let snaps = object.snaps();
    Answer::of(snaps.map(|all| {
        let mut reply = Element::new("nbsSnapRply");
        let mut room = MAX_DATA_BYTES as usize - 64;
        for facts in &all {
            let item = snap_facts(Element::new("nbsSnap"), facts);
            match room.checked_sub(item.to_xml().len()) {
                Some(left) => room = left,
                None => return reply.with("more", 1),
            }
            reply.items.push(item);
        }
        reply
    }))
}

fn snap_order(sub: u32, name: String) -> Option<SnapOrder> {
    Some(match sub {
        snap::CREATE => SnapOrder::Create(name),
        snap::DELETE => SnapOrder::Delete(name),
        snap::RESTORE => SnapOrder::Restore(name),
        snap::REFRESH => SnapOrder::Refresh(name),
        _ => return None,
    })
}

/// The intent says what is done, to which snapshot, and whether there was one before: `1 name 0`.
fn snap_once(
    book: &OnceBook,
    object: &dyn Object,
    header: &Header,
    request: &Element,
    body: &[u8],
) -> Answer {
    let facts = object.facts();
    let other = request.get("nbsId").is_some_and(|id| !id.eq_ignore_ascii_case(&facts.name));
    if request.name != "nbsSnapRqst" || other {
        return Answer::bare(Status::Invalid);
    }
    if !facts.snapable {
        return Answer::bare(Status::Unsupported);
    }
    let given = request.get("snapId").unwrap_or_default();
    let name = match (given, header.sub) {
        ("", snap::CREATE) => object.fresh_snap_name(),
        ("", _) => return Answer::bare(Status::Invalid),
        (given, _) => given.to_owned(),
    };
    if name.contains(' ') || snap_order(header.sub, String::new()).is_none() {
        return Answer::bare(Status::Invalid);
    }
    let before = match find_snap(object, &name) {
        Ok(found) => u8::from(found.is_some()),
        Err(status) => return Answer::bare(status),
    };
    let intent = format!("{} {name} {before}", header.sub);
    remembered(book, object, asked(header, body), &intent, &|interrupted| {
        let meant = interrupted.unwrap_or(&intent);
        Answer::of(snap_now(object, meant, interrupted.is_some()))
    })
}

fn find_snap(object: &dyn Object, name: &str) -> Result<Option<SnapFacts>, Status> {
    let all = object.snaps()?;
    Ok(all.into_iter().find(|facts| facts.name.eq_ignore_ascii_case(name)))
}

fn snap_now(object: &dyn Object, intent: &str, interrupted: bool) -> Result<Element, Status> {
    let mut words = intent.split(' ');
    let (sub, name, before) = (words.next(), words.next(), words.next());
    let sub = sub.and_then(|sub| sub.parse().ok()).ok_or(Status::Invalid)?;
    let name = name.ok_or(Status::Invalid)?.to_owned();
    let reply = Element::new("nbsSnapRply");
    if interrupted {
        let now = find_snap(object, &name)?;
        match (sub, before, now) {
            (snap::CREATE, Some("0"), Some(made)) => return Ok(snap_facts(reply, &made)),
            (snap::DELETE, Some("1"), None) => {
                return Ok(snap_facts(reply, &SnapFacts { name, time: String::new() }));
            }
            _ => {}
        }
    }
    let order = snap_order(sub, name).ok_or(Status::Invalid)?;
    object.snap(&order).map(|facts| snap_facts(reply, &facts))
}
