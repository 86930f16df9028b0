//! Authentication as the server sees it, step by step (README.md, "Authentication"). Sans-I/O.
//!
//! Invariants: a challenge is judged once; a step out of turn ends the connection; who leaves this
//! stage has proved itself, or nothing is demanded of it.

use super::directory::{Client, ObjectDirectory};
use super::wire::Status;
use super::xml::{self, Element};
use crate::access::chap::{Algorithm, Challenge};
use crate::access::Reason;
use std::net::SocketAddr;

/// Algorithms of a client's list that are looked at.
const MAX_ALGORITHMS: usize = 16;

#[derive(Debug, Default)]
enum State {
    #[default]
    Begin,
    Method,
    Challenged(Challenge),
    Over,
}

/// The stage.
#[derive(Debug, Default)]
pub struct Auth {
    state: State,
    data_crc: bool,
}

/// What follows a step.
#[derive(Debug)]
pub enum Step {
    /// This answer, and a further step.
    Reply(Element),
    /// This answer; the client is let in. Checksums behind data from here on, or not.
    Done(Element, Client, bool),
    /// Refused; a wrong secret is answered late.
    Refuse {
        /// Why.
        status: Status,
        /// It tried a wrong secret.
        wrong_secret: bool,
    },
}

fn refuse(status: Status) -> Step {
    Step::Refuse { status, wrong_secret: false }
}

impl Auth {
    /// Takes one request's body.
    pub fn step(&mut self, body: &[u8], peer: SocketAddr, directory: &dyn ObjectDirectory) -> Step {
        let Some(request) = xml::parse(body) else {
            return refuse(Status::Invalid);
        };
        match (std::mem::replace(&mut self.state, State::Over), request.name.as_str()) {
            (State::Begin, "nbsAuthMethodRqst") => self.choose(&request, peer, directory),
            (State::Method, "nbsAuthARqst") => self.challenge(&request),
            (State::Challenged(sent), "nbsAuthRRqst") => {
                self.judge(&request, &sent, peer, directory)
            }
            _ => refuse(Status::Invalid),
        }
    }

    fn choose(
        &mut self,
        request: &Element,
        peer: SocketAddr,
        directory: &dyn ObjectDirectory,
    ) -> Step {
        if let Err(status) = directory.check_address(peer) {
            directory.refused("", peer, Reason::Elsewhere);
            return refuse(status);
        }
        self.data_crc = request.flag("dataCrc");
        let mut reply = Element::new("nbsAuthMethodRply");
        let offers = |name: &str| {
            let named = request.items.iter().filter(|item| item.name == "nbsAuthMethod");
            named.filter_map(|item| item.get("name")).any(|offered| offered == name)
        };
        let none = offers("None") && directory.admits_nameless(peer);
        if !none && !offers("CHAP") {
            directory.refused("", peer, Reason::Unproved);
            return refuse(Status::AccessDenied);
        }
        reply = reply.with("name", if none { "None" } else { "CHAP" });
        if self.data_crc {
            reply = reply.with("dataCrc", 1);
        }
        if none {
            return Step::Done(reply, Client::nameless(peer), self.data_crc);
        }
        self.state = State::Method;
        Step::Reply(reply)
    }

    /// SHA-256 where the client has it.
    fn challenge(&mut self, request: &Element) -> Step {
        let offered: Vec<Algorithm> = request
            .get("CHAP_A")
            .into_iter()
            .flat_map(|list| list.split(',').take(MAX_ALGORITHMS))
            .filter_map(|number| number.trim().parse().ok().and_then(Algorithm::of))
            .collect();
        let best = offered.iter().max_by_key(|algorithm| algorithm.number());
        let Some(algorithm) = best.copied() else {
            return refuse(Status::AccessDenied);
        };
        let Some(challenge) = Challenge::new(algorithm) else {
            return refuse(Status::NoMemory);
        };
        let reply = Element::new("nbsAuthARply")
            .with("CHAP_A", algorithm.number())
            .with("CHAP_I", format!("{:x}", challenge.id()))
            .with("CHAP_C", hex(challenge.value()));
        self.state = State::Challenged(challenge);
        Step::Reply(reply)
    }

    fn judge(
        &self,
        request: &Element,
        sent: &Challenge,
        peer: SocketAddr,
        directory: &dyn ObjectDirectory,
    ) -> Step {
        let (Some(user), Some(response)) = (request.get("CHAP_N"), request.get("CHAP_R")) else {
            return refuse(Status::Invalid);
        };
        let response = from_hex(response).unwrap_or_default();
        let all = directory.candidates(user, peer);
        let mut right =
            all.into_iter().filter(|one| sent.is_answered_by(&one.credential.secret, &response));
        let Some(found) = right.next() else {
            directory.refused(user, peer, Reason::Unproved);
            return Step::Refuse { status: Status::AccessDenied, wrong_secret: true };
        };
        let client = Client {
            peer,
            name: Some(found.name),
            proof: Some(found.credential.stamp()),
            limits: Some(found.limits),
        };
        Step::Done(Element::new("nbsAuthRRply"), client, self.data_crc)
    }
}

/// Lower-case digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Digits with or without `0x` before them.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("0x").unwrap_or(text).as_bytes();
    let digit = |byte: &u8| char::from(*byte).to_digit(16).map(|digit| digit as u8);
    if digits.len() % 2 != 0 {
        return None;
    }
    let pairs = digits.chunks_exact(2).map(|pair| match pair {
        [high, low] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    });
    pairs.collect()
}
