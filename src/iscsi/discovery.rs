//! Text requests in full feature phase (RFC 7143 §11.10, appendix C): SendTargets, and what little
//! may still be negotiated. A long answer is sent in parts that the initiator asks for one by one.

use super::connection::{Connection, Phase};
use super::directory::Client;
use super::job::Job;
use super::params::Reply;
use super::pdu::{response, Header, RejectReason, CONTINUE, FINAL, NO_TAG};
use super::text;

/// The tag of the one text negotiation that a connection may have open.
const TEXT_TAG: u32 = 0x7E87;

/// A text negotiation in progress.
#[derive(Debug, Default)]
pub struct TextState {
    /// Text of continued requests.
    pending: Vec<u8>,
    /// The request that waits for the list of targets, what is answered before it, and the one
    /// target that is asked for.
    listing: Option<(Header, Vec<u8>, Option<String>)>,
    /// What of a long answer was not sent yet.
    rest: Vec<u8>,
}

impl Connection {
    pub(super) fn text_request(&mut self, request: &Header, data: &[u8]) {
        if !self.admit(request) {
            return;
        }
        if self.text.listing.is_some() {
            return self.reject(request, RejectReason::TaskInProgress);
        }
        if self.text.pending.len() + data.len() > text::MAX_TEXT_BYTES {
            return self.violation(request);
        }
        if request.transfer_tag() == NO_TAG {
            self.text.rest.clear(); // a new negotiation drops the old one (RFC 7143 §11.10.4)
        } else if request.transfer_tag() != TEXT_TAG {
            return self.reject(request, RejectReason::InvalidField);
        }
        self.text.pending.extend_from_slice(data);
        if request.flags() & CONTINUE != 0 {
            return self.send_text(request, &[], false);
        }
        let pending = std::mem::take(&mut self.text.pending);
        match text::parse(&pending) {
            Ok(pairs) if pairs.is_empty() => self.send_rest(request),
            Ok(pairs) => self.answer_pairs(request, &pairs),
            Err(_) => self.reject(request, RejectReason::InvalidField),
        }
    }

    fn answer_pairs(&mut self, request: &Header, pairs: &[(String, String)]) {
        let mut out = Vec::new();
        let mut wanted = None;
        for (key, offer) in pairs {
            match key.as_str() {
                "SendTargets" => match self.send_targets(offer) {
                    Some(Targets::Listed(only)) => wanted = Some(only),
                    Some(Targets::One(name)) => self.put_target(&mut out, &name),
                    None => text::put(&mut out, key, "Reject"),
                },
                // declared anew at any time (RFC 7143 §13.12)
                "MaxRecvDataSegmentLength" => {
                    if let Reply::Value(answer) = self.params.negotiate(key, offer) {
                        text::put(&mut out, key, &answer);
                    }
                }
                "InitiatorAlias" => {}
                _ if key.starts_with("X-") || key.starts_with("X#") => {
                    text::put(&mut out, key, "NotUnderstood");
                }
                // the keys of login have no place here (RFC 7143 §6.2)
                _ => text::put(&mut out, key, answer_to_misplaced(key)),
            }
        }
        match (&self.phase, wanted) {
            (Phase::Discovery(wish), Some(only)) => {
                let client = Client {
                    initiator: wish.initiator.clone(),
                    peer: self.peer(),
                    proof: wish.proof.clone(),
                };
                self.text.listing = Some((*request, out, only));
                self.jobs.push(Job::list(self.service.clone(), client));
            }
            _ => self.begin_answer(request, out),
        }
    }

    /// What SendTargets asks for. `All` lists every target in a discovery session, a name that one
    /// if it is among them; in an operational one it may not (RFC 7143 appendix C), there it means
    /// the session's own target.
    fn send_targets(&self, offer: &str) -> Option<Targets> {
        match (&self.phase, offer) {
            (Phase::Discovery(_), "All") => Some(Targets::Listed(None)),
            (Phase::Discovery(_), name) if !name.is_empty() => {
                Some(Targets::Listed(Some(name.to_ascii_lowercase())))
            }
            (Phase::Full(session), "All" | "") => Some(Targets::One(session.opened.target.clone())),
            (Phase::Full(session), name) if session.opened.target == name => {
                Some(Targets::One(name.to_owned()))
            }
            _ => None,
        }
    }

    fn put_target(&self, out: &mut Vec<u8>, name: &str) {
        text::put(out, "TargetName", name);
        for (address, group) in &self.portals {
            text::put(out, "TargetAddress", &format!("{address},{group}"));
        }
    }

    /// The list of targets is there.
    pub(super) fn listed(&mut self, names: &[String]) {
        let Some((request, mut out, only)) = self.text.listing.take() else {
            return;
        };
        let asked = |name: &&String| only.as_ref().is_none_or(|only| only == *name);
        for name in names.iter().filter(asked) {
            self.put_target(&mut out, name);
        }
        self.begin_answer(&request, out);
    }

    fn begin_answer(&mut self, request: &Header, out: Vec<u8>) {
        self.text.rest = out;
        self.send_rest(request);
    }

    /// Sends the next part of the answer, as much as one PDU of the initiator holds.
    fn send_rest(&mut self, request: &Header) {
        let most = self.params.send_segment_bytes as usize;
        let rest = std::mem::take(&mut self.text.rest);
        let part = rest.get(..rest.len().min(most)).unwrap_or_default();
        self.text.rest = rest.get(part.len()..).unwrap_or_default().to_vec();
        let last = self.text.rest.is_empty();
        self.send_text(request, part, last);
    }

    fn send_text(&mut self, request: &Header, data: &[u8], last: bool) {
        let more = if self.text.rest.is_empty() { 0 } else { CONTINUE };
        let flags = if last { FINAL } else { more };
        let mut header = Header::reply(response::TEXT, flags, request.tag());
        header.0[8..16].copy_from_slice(&request.0[8..16]);
        header.set_word(20, if last { NO_TAG } else { TEXT_TAG });
        self.send_status(header, data);
    }
}

enum Targets {
    /// Those that the client may see, or the one among them of this name.
    Listed(Option<String>),
    One(String),
}

fn answer_to_misplaced(key: &str) -> &'static str {
    const OF_LOGIN: [&str; 16] = [
        "HeaderDigest",
        "DataDigest",
        "MaxConnections",
        "TargetName",
        "InitiatorName",
        "InitialR2T",
        "ImmediateData",
        "MaxBurstLength",
        "FirstBurstLength",
        "DefaultTime2Wait",
        "DefaultTime2Retain",
        "MaxOutstandingR2T",
        "DataPDUInOrder",
        "DataSequenceInOrder",
        "ErrorRecoveryLevel",
        "SessionType",
    ];
    match OF_LOGIN.contains(&key) {
        true => "Reject",
        false => "NotUnderstood",
    }
}
