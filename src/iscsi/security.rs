//! Security negotiation (RFC 7143 §12.1): AuthMethod None, and CHAP one-way or mutual.
//!
//! The initiator's keys move the state one step for each text; keys that come out of turn end the
//! login. Invariants: who has to prove itself leaves this stage proved or not at all; a challenge
//! is judged once, whatever the answer.

use super::directory::{Demand, Proof};
use super::login::Status;
use super::text;
use crate::access::chap::{Algorithm, Challenge, MAX_CHALLENGE_BYTES};

/// Longest list of algorithms that is looked through.
const MAX_ALGORITHMS: usize = 32;

#[derive(Debug, Default)]
enum State {
    /// AuthMethod was not offered yet.
    #[default]
    Begin,
    /// CHAP is agreed; CHAP_A comes next.
    Method,
    /// Our challenge is out; CHAP_N and CHAP_R come next.
    Challenged(Challenge),
    /// Done; who was proved, where somebody had to be.
    Done(Option<Proof>),
    /// Failed: nothing leads out of it.
    Failed,
}

/// The negotiation of one login.
#[derive(Debug, Default)]
pub(super) struct Security {
    state: State,
    wrong_secret: bool,
}

/// The security keys of one text.
#[derive(Debug, Default)]
struct Keys<'a> {
    method: Option<&'a str>,
    algorithms: Option<&'a str>,
    id: Option<&'a str>,
    challenge: Option<&'a str>,
    user: Option<&'a str>,
    response: Option<&'a str>,
}

/// Whether a key belongs here.
pub(super) fn is_key(key: &str) -> bool {
    matches!(key, "AuthMethod" | "CHAP_A" | "CHAP_I" | "CHAP_C" | "CHAP_N" | "CHAP_R")
}

impl<'a> Keys<'a> {
    /// A key that comes twice is an error (RFC 7143 §6.1).
    fn of(pairs: &'a [(String, String)]) -> Result<Keys<'a>, Status> {
        let mut keys = Keys::default();
        for (key, value) in pairs {
            let slot = match key.as_str() {
                "AuthMethod" => &mut keys.method,
                "CHAP_A" => &mut keys.algorithms,
                "CHAP_I" => &mut keys.id,
                "CHAP_C" => &mut keys.challenge,
                "CHAP_N" => &mut keys.user,
                "CHAP_R" => &mut keys.response,
                _ => continue,
            };
            if slot.replace(value).is_some() {
                return Err(Status::INITIATOR_ERROR);
            }
        }
        Ok(keys)
    }

    fn of_chap(&self) -> bool {
        let keys = [self.algorithms, self.id, self.challenge, self.user, self.response];
        keys.iter().any(Option::is_some)
    }
}

impl Security {
    /// Takes the keys of one text, and answers them.
    pub fn step(
        &mut self,
        demand: &Demand,
        pairs: &[(String, String)],
        out: &mut Vec<u8>,
    ) -> Result<(), Status> {
        let keys = Keys::of(pairs)?;
        if keys.method.is_none() && !keys.of_chap() {
            return Ok(());
        }
        self.state = match (std::mem::replace(&mut self.state, State::Failed), keys.method) {
            (State::Begin, Some(offer)) if !keys.of_chap() => choose_method(demand, offer, out)?,
            (State::Method, None) => challenge(&keys, out)?,
            (State::Challenged(sent), None) => self.judge(demand, &sent, &keys, out)?,
            _ => return Err(Status::INITIATOR_ERROR),
        };
        Ok(())
    }

    /// Whether the initiator may leave this stage.
    pub fn is_done(&self, demand: &Demand) -> bool {
        match self.state {
            State::Begin => demand.chap.is_none(),
            State::Done(_) => true,
            State::Method | State::Challenged(_) | State::Failed => false,
        }
    }

    /// What was proved.
    pub fn proof(&self) -> Option<&Proof> {
        match &self.state {
            State::Done(proof) => proof.as_ref(),
            _ => None,
        }
    }

    /// It failed by a wrong answer to a challenge: somebody may be guessing.
    pub fn was_wrong_secret(&self) -> bool {
        self.wrong_secret
    }

    fn judge(
        &mut self,
        demand: &Demand,
        sent: &Challenge,
        keys: &Keys<'_>,
        out: &mut Vec<u8>,
    ) -> Result<State, Status> {
        let (Some(user), Some(response)) = (keys.user, keys.response) else {
            return Err(Status::INITIATOR_ERROR);
        };
        let own = demand.chap.as_ref().ok_or(Status::AUTHENTICATION)?;
        let response = binary(response, sent.algorithm().response_bytes()).unwrap_or_default();
        let right = sent.is_answered_by(&own.secret, &response);
        if !right || user != own.user {
            self.wrong_secret = true;
            return Err(Status::AUTHENTICATION);
        }
        match (keys.id, keys.challenge) {
            (None, None) => {}
            (Some(id), Some(challenge)) => answer(demand, sent, id, challenge, out)?,
            _ => return Err(Status::INITIATOR_ERROR),
        }
        Ok(State::Done(Some(Proof { user: own.user.clone(), stamp: own.stamp() })))
    }
}

fn choose_method(demand: &Demand, offer: &str, out: &mut Vec<u8>) -> Result<State, Status> {
    let (method, state) = match demand.chap {
        Some(_) => ("CHAP", State::Method),
        None => ("None", State::Done(None)),
    };
    if !offer.split(',').any(|offered| offered == method) {
        return Err(Status::AUTHENTICATION);
    }
    text::put(out, "AuthMethod", method);
    Ok(state)
}

/// The first algorithm of the initiator's list that we have, with a fresh challenge.
fn challenge(keys: &Keys<'_>, out: &mut Vec<u8>) -> Result<State, Status> {
    let others = keys.id.or(keys.challenge).or(keys.user).or(keys.response);
    let (Some(list), None) = (keys.algorithms, others) else {
        return Err(Status::INITIATOR_ERROR);
    };
    let offered = list.split(',').take(MAX_ALGORITHMS);
    let chosen = offered.filter_map(text::number).find_map(Algorithm::of);
    let algorithm = chosen.ok_or(Status::AUTHENTICATION)?;
    let challenge = Challenge::new(algorithm).ok_or(Status::UNAVAILABLE)?;
    text::put(out, "CHAP_A", &algorithm.number().to_string());
    text::put(out, "CHAP_I", &challenge.id().to_string());
    text::put(out, "CHAP_C", &hex(challenge.value()));
    Ok(State::Challenged(challenge))
}

/// The target proves itself. Our own challenge must not come back (RFC 7143 §12.1.3): who reflects
/// it has no secret.
fn answer(
    demand: &Demand,
    sent: &Challenge,
    id: &str,
    challenge: &str,
    out: &mut Vec<u8>,
) -> Result<(), Status> {
    let own = demand.mutual.as_ref().ok_or(Status::AUTHENTICATION)?;
    let id = text::number(id).and_then(|id| u8::try_from(id).ok());
    let id = id.ok_or(Status::INITIATOR_ERROR)?;
    let value = binary(challenge, MAX_CHALLENGE_BYTES).ok_or(Status::INITIATOR_ERROR)?;
    if value == sent.value() {
        return Err(Status::AUTHENTICATION);
    }
    let response = sent.algorithm().response(id, &own.secret, &value);
    text::put(out, "CHAP_N", &own.user);
    text::put(out, "CHAP_R", &hex(&response));
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
    std::iter::once("0x".to_owned()).chain(digits).collect()
}

/// A binary value (RFC 7143 §6.1): `0x` hexadecimal or `0b` base64, 1 to `most` bytes.
fn binary(text: &str, most: usize) -> Option<Vec<u8>> {
    // base64 takes 4 characters for 3 bytes, hexadecimal 6: nothing longer is looked at
    if text.len() > most * 2 + 8 {
        return None;
    }
    let (prefix, digits) = text.split_at_checked(2)?;
    let bytes = match prefix {
        "0x" | "0X" => from_hex(digits.as_bytes())?,
        "0b" | "0B" => from_base64(digits.as_bytes())?,
        _ => return None,
    };
    (1..=most).contains(&bytes.len()).then_some(bytes)
}

/// An odd number of digits stands for one with a leading zero.
fn from_hex(digits: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).map(|digit| digit as u8);
    let (odd, pairs) = digits.split_at(digits.len() % 2);
    let first = odd.iter().map(digit);
    let rest = pairs.chunks_exact(2).map(|pair| match pair {
        [high, low] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    });
    first.chain(rest).collect()
}

/// RFC 4648 §4, with its padding.
fn from_base64(digits: &[u8]) -> Option<Vec<u8>> {
    let padding = digits.iter().rev().take_while(|byte| **byte == b'=').count();
    if digits.len() % 4 != 0 || padding > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3);
    for group in digits.chunks_exact(4) {
        let mut bits = 0u32;
        for byte in group {
            let last = bytes.len() + 3 == digits.len() / 4 * 3;
            let value = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                b'=' if last => 0,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        bytes.extend_from_slice(&bits.to_be_bytes()[1..]);
    }
    let middle = digits.get(..digits.len() - padding)?;
    if middle.contains(&b'=') {
        return None;
    }
    bytes.truncate(bytes.len() - padding);
    Some(bytes)
}

#[cfg(test)]
#[path = "security_tests.rs"]
mod tests;
