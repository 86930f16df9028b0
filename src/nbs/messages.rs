//! The registry of messages (MSG): names, and what is done for them. What lunfs needs of a disk
//! beyond the source's operations are messages too: `flush`, `unmap`, `logout`, `snap-note`.

use super::directory::Object;
use super::wire::Status;
use super::xml::Element;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Does what a message asks for; its answer's attributes. May block.
pub type Handler = Arc<dyn Fn(&dyn Object, &Element) -> Result<Element, Status> + Send + Sync>;

/// How a message is carried out.
#[derive(Clone)]
struct Known {
    handler: Handler,
    /// A repetition is answered from memory.
    once: bool,
}

/// All messages that this server knows.
#[derive(Clone)]
pub struct Messages(BTreeMap<&'static str, Known>);

impl Messages {
    /// Those of every server.
    pub fn new() -> Messages {
        let mut messages = Messages(BTreeMap::new());
        messages.add("flush", false, Arc::new(flush));
        messages.add("unmap", false, Arc::new(unmap));
        messages.add("logout", false, Arc::new(logout));
        messages.add("snap-note", false, Arc::new(snap_note));
        messages
    }

    /// Adds a message whose repetition is answered from memory.
    pub fn register(&mut self, name: &'static str, handler: Handler) {
        self.add(name, true, handler);
    }

    fn add(&mut self, name: &'static str, once: bool, handler: Handler) {
        self.0.insert(name, Known { handler, once });
    }

    /// Whether it moves data, and so waits where writes wait.
    pub fn is_data(name: &str) -> bool {
        matches!(name, "flush" | "unmap")
    }

    /// Whether a repetition of this message must not be carried out.
    pub fn is_once(&self, name: &str) -> bool {
        self.0.get(name).is_none_or(|known| known.once)
    }

    /// Carries a message out.
    pub fn call(&self, object: &dyn Object, message: &Element) -> Result<Element, Status> {
        let name = message.get("name").unwrap_or_default();
        let known = self.0.get(name).ok_or(Status::Unsupported)?;
        let handler = Arc::clone(&known.handler);
        handler(object, message).map(|reply| reply.with("name", name))
    }
}

impl Default for Messages {
    fn default() -> Messages {
        Messages::new()
    }
}

impl fmt::Debug for Messages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

fn reply() -> Element {
    Element::new("nbsMsgRply")
}

/// Makes durable what was answered before.
fn flush(object: &dyn Object, _message: &Element) -> Result<Element, Status> {
    let done = object.io().flush();
    done.map(|()| reply()).map_err(|error| Status::of_block_error(&error))
}

/// The range, in bytes, reads as zeros and takes no space.
fn unmap(object: &dyn Object, message: &Element) -> Result<Element, Status> {
    let (offset, length) = (message.number("offset"), message.number("length"));
    let (offset, length) = offset.zip(length).ok_or(Status::Invalid)?;
    let done = object.io().unmap(offset, length);
    done.map(|()| reply()).map_err(|error| Status::of_block_error(&error))
}

/// The client leaves on purpose: its share of the lease ends with the connection.
fn logout(object: &dyn Object, _message: &Element) -> Result<Element, Status> {
    object.io().leaving();
    Ok(reply())
}

/// How the client's application fared while a snapshot was made.
fn snap_note(object: &dyn Object, message: &Element) -> Result<Element, Status> {
    let field = |key: &str| message.get(key).ok_or(Status::Invalid);
    let (hook, outcome) = (field("hook")?, field("outcome")?);
    let why = message.get("why").unwrap_or_default();
    object.note_snap(message.get("snapId"), hook, outcome, why).map(|()| reply())
}
