//! Authentication as the client sees it. Sans-I/O.

use super::super::auth::{from_hex, hex};
use super::super::wire::Status;
use super::super::xml::Element;
use crate::access::chap::Algorithm;
use crate::access::Secret;
use std::sync::Arc;

/// Longest challenge that is answered.
const MAX_CHALLENGE_BYTES: usize = 1024;

/// What the client proves itself by.
#[derive(Debug, Clone)]
pub struct Login {
    /// CHAP_N.
    pub user: String,
    /// The secret.
    pub secret: Arc<Secret>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Expects {
    #[default]
    Method,
    Challenge,
    Welcome,
}

/// The stage.
#[derive(Debug, Default)]
pub struct Greeting(Expects);

/// What follows a reply.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// This request.
    Ask(Element),
    /// The client is in.
    In,
}

impl Greeting {
    /// The first request.
    pub fn first(login: Option<&Login>) -> Element {
        let method = |name| Element::new("nbsAuthMethod").with("name", name);
        let mut request = Element::new("nbsAuthMethodRqst");
        request.items.extend(login.map(|_| method("CHAP")));
        request.items.push(method("None"));
        request
    }

    /// Takes a reply.
    pub fn step(&mut self, reply: &Element, login: Option<&Login>) -> Result<Next, Status> {
        match (self.0, reply.name.as_str()) {
            (Expects::Method, "nbsAuthMethodRply") => match (reply.get("name"), login) {
                (Some("None"), _) => Ok(Next::In),
                (Some("CHAP"), Some(_)) => {
                    self.0 = Expects::Challenge;
                    Ok(Next::Ask(Element::new("nbsAuthARqst").with("CHAP_A", "7,5")))
                }
                _ => Err(Status::AccessDenied),
            },
            (Expects::Challenge, "nbsAuthARply") => {
                let login = login.ok_or(Status::AccessDenied)?;
                self.0 = Expects::Welcome;
                answer(reply, login).map(Next::Ask).ok_or(Status::Invalid)
            }
            (Expects::Welcome, "nbsAuthRRply") => Ok(Next::In),
            _ => Err(Status::Invalid),
        }
    }
}

fn answer(reply: &Element, login: &Login) -> Option<Element> {
    let algorithm = Algorithm::of(reply.number("CHAP_A")?)?;
    let id = u8::from_str_radix(reply.get("CHAP_I")?.trim(), 16).ok()?;
    let challenge = from_hex(reply.get("CHAP_C")?)?;
    if challenge.len() > MAX_CHALLENGE_BYTES {
        return None;
    }
    let response = hex(&algorithm.response(id, &login.secret, &challenge));
    let request = Element::new("nbsAuthRRqst").with("CHAP_N", &login.user);
    Some(request.with("CHAP_R", response))
}
