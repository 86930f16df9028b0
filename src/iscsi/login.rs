//! The login phase (RFC 7143 §6.3, §11.12, §11.13): security and operational negotiation, from the
//! first Login Request to the decision that a session begins. What an initiator has to prove is
//! asked for as soon as it has told its name ([`super::security`]).
//!
//! Invariants: the text of one negotiation step is bounded by [`text::MAX_TEXT_BYTES`] over all its
//! continued PDUs; nothing is allocated for a session before the last step; the names told first
//! stay (one that is proved cannot be changed for another); nobody leaves the security stage
//! without the proof that is demanded, and nobody skips it.

use super::directory::{Demand, Proof};
use super::params::{Params, Reply, OUR_RECV_SEGMENT_BYTES};
use super::pdu::{response, Header, CONTINUE, FINAL};
use super::security::{self, Security};
use super::text;
use crate::access::Limits;

/// Login steps that an initiator may take; a negotiation needs two or three.
const MAX_STEPS: u32 = 32;
/// The longest name (RFC 7143 §4.2.7.1).
const MAX_NAME_BYTES: usize = 223;

/// Login status, class and detail (RFC 7143 §11.13.5). Class 1 sends an initiator elsewhere: where
/// a [`super::Refusal`] comes to carry an address, `Connection::opened` has the place to answer it
/// with TargetAddress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status(pub u16);

impl Status {
    /// Success.
    pub const SUCCESS: Status = Status(0x0000);
    /// Initiator error.
    pub const INITIATOR_ERROR: Status = Status(0x0200);
    /// Authentication failure: no common method.
    pub const AUTHENTICATION: Status = Status(0x0201);
    /// Authorization failure: the initiator may not use the target.
    pub const FORBIDDEN: Status = Status(0x0202);
    /// Unsupported version.
    pub const VERSION: Status = Status(0x0205);
    /// A second connection for a session.
    pub const TOO_MANY_CONNECTIONS: Status = Status(0x0206);
    /// InitiatorName or TargetName is missing.
    pub const MISSING_PARAMETER: Status = Status(0x0207);
    /// SessionType is neither Normal nor Discovery.
    pub const SESSION_TYPE: Status = Status(0x0209);
    /// TSIH names no session.
    pub const NO_SESSION: Status = Status(0x020A);
    /// Service unavailable.
    pub const UNAVAILABLE: Status = Status(0x0301);
    /// Out of resources.
    pub const NO_RESOURCES: Status = Status(0x0302);
}

/// What the initiator asked for when its login came to an end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// InitiatorName, in lower case.
    pub initiator: String,
    /// What it proved.
    pub proof: Option<Proof>,
    /// TargetName; `None` for a discovery session.
    pub target: Option<String>,
    /// Initiator session identifier.
    pub isid: [u8; 6],
    /// The session that the connection is for; 0: a new one.
    pub tsih: u16,
    /// Connection identifier.
    pub cid: u16,
    /// Target portal group tag of the portal.
    pub group: u16,
}

/// What to do after a Login Request.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Send this response and go on.
    Reply(Header, Vec<u8>),
    /// Send this response and close.
    Refuse(Header),
    /// Open the session; its outcome decides what is sent: this, or a refusal.
    Finish(Header, Vec<u8>, Wish),
}

/// A login in progress.
#[derive(Debug, Default)]
pub struct Login {
    /// What was agreed so far.
    pub params: Params,
    /// Target portal group tag of the portal.
    group: u16,
    /// TSIH and CID, as the first request told them.
    place: (u16, u16),
    pending: Vec<u8>,
    steps: u32,
    names: Names,
    security: Security,
    /// What is demanded of the initiator; asked once, when it has told its name.
    demand: Option<Demand>,
    segment_declared: bool,
}

/// Says what is demanded of an initiator of this name.
pub type Demands<'a> = &'a dyn Fn(&str) -> Result<Demand, Status>;

#[derive(Debug, Default)]
struct Names {
    initiator: Option<String>,
    target: Option<String>,
    discovery: Option<bool>,
    group_told: bool,
}

impl Names {
    fn is_discovery(&self) -> bool {
        self.discovery == Some(true)
    }
}

/// Takes a name that may be told again, but not changed.
fn fix<T: PartialEq>(slot: &mut Option<T>, told: Option<T>) -> Result<(), Status> {
    let told = told.ok_or(Status::INITIATOR_ERROR)?;
    match slot {
        Some(known) if *known != told => Err(Status::INITIATOR_ERROR),
        _ => {
            *slot = Some(told);
            Ok(())
        }
    }
}

/// May it be an iSCSI name? RFC 7143 §4.2.7 allows less; a virtual machine's name with an
/// underscore is in use all the same. What would end a line or a name's part is no name.
fn is_name(text: &str) -> bool {
    let odd = |c: char| c.is_control() || c.is_whitespace() || c == ',';
    !text.is_empty() && text.len() <= MAX_NAME_BYTES && !text.contains(odd)
}

/// A login response with the fields that repeat the request.
pub fn reply(request: &Header, flags: u8, status: Status) -> Header {
    let mut header = Header::reply(response::LOGIN, flags, request.tag());
    header.0[8..16].copy_from_slice(&request.0[8..16]);
    let [class, detail] = status.0.to_be_bytes();
    header.0[36..38].copy_from_slice(&[class, detail]);
    header
}

impl Login {
    /// A login through a portal of this group.
    pub fn at(group: u16) -> Login {
        Login { group, ..Login::default() }
    }

    /// Takes one Login Request with its data segment.
    pub fn request(&mut self, header: &Header, data: &[u8], demands: Demands<'_>) -> Step {
        match self.step(header, data, demands) {
            Ok(step) => step,
            Err(status) => Step::Refuse(reply(header, 0, status)),
        }
    }

    /// The initiator's name and its target's, as far as they are known.
    pub fn names(&self) -> (Option<&str>, Option<&str>) {
        (self.names.initiator.as_deref(), self.names.target.as_deref())
    }

    /// What the session may take.
    pub fn limits(&self) -> Limits {
        self.demand.as_ref().map_or_else(Limits::default, |demand| demand.limits)
    }

    /// It failed by a wrong answer to a challenge.
    pub fn was_wrong_secret(&self) -> bool {
        self.security.was_wrong_secret()
    }

    fn step(&mut self, header: &Header, data: &[u8], demands: Demands<'_>) -> Result<Step, Status> {
        self.check_header(header)?;
        if self.pending.len() + data.len() > text::MAX_TEXT_BYTES {
            return Err(Status::INITIATOR_ERROR);
        }
        self.pending.extend_from_slice(data);
        let flags = header.flags();
        if flags & CONTINUE != 0 {
            // the initiator has more text for this step: an empty answer asks for it
            let header = reply(header, flags & 0x0C, Status::SUCCESS);
            return Ok(Step::Reply(header, Vec::new()));
        }
        let pairs = text::parse(&std::mem::take(&mut self.pending));
        let pairs = pairs.map_err(|_| Status::INITIATOR_ERROR)?;
        self.take_names(&pairs)?;
        if self.demand.is_none() {
            let name = self.names.initiator.as_deref().ok_or(Status::MISSING_PARAMETER)?;
            self.demand = Some(demands(name)?);
        }
        self.advance(header, &pairs)
    }

    fn check_header(&mut self, header: &Header) -> Result<(), Status> {
        self.steps += 1;
        let flags = header.flags();
        let (transit, next) = (flags & FINAL != 0, flags & 3);
        let current = (flags >> 2) & 3;
        let both = transit && flags & CONTINUE != 0;
        let backwards = transit && (next <= current || next == 2);
        if self.steps > MAX_STEPS || current > 1 || both || backwards {
            return Err(Status::INITIATOR_ERROR);
        }
        if header.0[3] > 0 {
            return Err(Status::VERSION); // version-min above 0
        }
        if self.steps == 1 {
            self.place = (header.word(12) as u16, (header.word(20) >> 16) as u16);
        }
        Ok(())
    }

    fn take_names(&mut self, pairs: &[(String, String)]) -> Result<(), Status> {
        for (key, value) in pairs {
            let name = || is_name(value).then(|| value.clone());
            match key.as_str() {
                "InitiatorName" => {
                    // compared without regard to case (RFC 7143 §4.2.7.1)
                    let name = name().map(|name| name.to_ascii_lowercase());
                    fix(&mut self.names.initiator, name)?;
                }
                "TargetName" => {
                    let name = name().map(|name| name.to_ascii_lowercase());
                    fix(&mut self.names.target, name)?;
                }
                "SessionType" => match value.as_str() {
                    "Discovery" => fix(&mut self.names.discovery, Some(true))?,
                    "Normal" => fix(&mut self.names.discovery, Some(false))?,
                    _ => return Err(Status::SESSION_TYPE),
                },
                _ => {}
            }
        }
        let target_known = self.names.is_discovery() || self.names.target.is_some();
        if self.names.initiator.is_none() || !target_known {
            return Err(Status::MISSING_PARAMETER);
        }
        Ok(())
    }

    fn advance(&mut self, header: &Header, pairs: &[(String, String)]) -> Result<Step, Status> {
        let mut out = Vec::new();
        let flags = header.flags();
        let operational = (flags >> 2) & 3 == 1;
        let demand = self.demand.as_ref().ok_or(Status::MISSING_PARAMETER)?;
        if !operational {
            self.security.step(demand, pairs, &mut out)?;
        }
        let secured = self.security.is_done(demand);
        if operational && !secured {
            return Err(Status::AUTHENTICATION);
        }
        for (key, offer) in pairs {
            match key.as_str() {
                "InitiatorName" | "TargetName" | "SessionType" | "InitiatorAlias" => {}
                key if security::is_key(key) && operational => text::put(&mut out, key, "Reject"),
                key if security::is_key(key) => {}
                _ => self.operational(key, offer, &mut out),
            }
        }
        if !self.names.is_discovery() && !self.names.group_told {
            self.names.group_told = true;
            text::put(&mut out, "TargetPortalGroupTag", &self.group.to_string());
        }
        // the stage is not left before the proof is there
        let transit = flags & FINAL != 0 && secured;
        let finish = transit && flags & 3 == 3;
        if (operational || finish) && !self.segment_declared {
            self.segment_declared = true;
            let ours = OUR_RECV_SEGMENT_BYTES.to_string();
            text::put(&mut out, "MaxRecvDataSegmentLength", &ours);
        }
        let echoed = if transit { flags & 0x8F } else { flags & 0x0C };
        let answer = reply(header, echoed, Status::SUCCESS);
        if !finish {
            return Ok(Step::Reply(answer, out));
        }
        self.params.settle();
        Ok(Step::Finish(answer, out, self.wish(header)?))
    }

    fn operational(&mut self, key: &str, offer: &str, out: &mut Vec<u8>) {
        if let Reply::Value(value) = self.params.negotiate(key, offer) {
            text::put(out, key, &value);
        }
    }

    fn wish(&self, header: &Header) -> Result<Wish, Status> {
        let initiator = self.names.initiator.clone().ok_or(Status::MISSING_PARAMETER)?;
        let target = self.names.target.clone().filter(|_| !self.names.is_discovery());
        let proof = self.security.proof().cloned();
        let mut isid = [0; 6];
        isid.copy_from_slice(&header.0[8..14]);
        let (tsih, cid) = self.place;
        if tsih != 0 && target.is_none() {
            return Err(Status::NO_SESSION); // a discovery session has one connection
        }
        Ok(Wish { initiator, proof, target, isid, tsih, cid, group: self.group })
    }
}

#[cfg(test)]
mod tests {
    use super::super::pdu::request;
    use super::*;

    fn ask(login: &mut Login, flags: u8, text: &[u8]) -> Step {
        let mut header = Header::reply(request::LOGIN | 0x40, flags, 1);
        header.0[8..14].copy_from_slice(&[0x80, 1, 2, 3, 4, 5]);
        login.request(&header, text, &|_| Ok(Demand::default()))
    }

    fn status(step: &Step) -> u16 {
        let (Step::Reply(header, _) | Step::Refuse(header) | Step::Finish(header, ..)) = step;
        u16::from_be_bytes([header.0[36], header.0[37]])
    }

    #[test]
    fn one_step_is_enough() {
        let text = b"InitiatorName=iqn.a\0TargetName=iqn.t\0InitialR2T=No\0";
        let step = ask(&mut Login { group: 1, ..Login::default() }, 0x87, text);
        let Step::Finish(header, out, wish) = step else { panic!("{step:?}") };
        assert_eq!(header.flags(), 0x87);
        assert_eq!((wish.initiator.as_str(), wish.target.as_deref()), ("iqn.a", Some("iqn.t")));
        let keys = text::parse(&out).unwrap();
        assert!(keys.contains(&("InitialR2T".into(), "No".into())));
        assert!(keys.contains(&("TargetPortalGroupTag".into(), "1".into())));
    }

    #[test]
    fn security_then_operational() {
        let mut login = Login::default();
        let text = b"InitiatorName=iqn.a\0SessionType=Discovery\0AuthMethod=CHAP,None\0";
        let step = ask(&mut login, 0x81, text);
        assert!(matches!(&step, Step::Reply(header, out)
            if header.flags() == 0x81 && out == b"AuthMethod=None\0"));
        let step = ask(&mut login, 0x87, b"HeaderDigest=CRC32C\0");
        assert!(matches!(step, Step::Finish(_, _, Wish { target: None, .. })));
        assert!(login.params.header_digest);
    }

    #[test]
    fn refusals_have_their_status() {
        let refuse = |flags, text: &[u8]| status(&ask(&mut Login::default(), flags, text));
        assert_eq!(refuse(0x87, b"InitiatorName=iqn.a\0"), 0x0207);
        assert_eq!(refuse(0x87, b"TargetName=iqn.a\0"), 0x0207);
        assert_eq!(refuse(0x87, b"nonsense\0"), 0x0200);
        assert_eq!(refuse(0x87, b"InitiatorName=a\0SessionType=Other\0"), 0x0209);
        let chap = b"InitiatorName=a\0TargetName=b\0AuthMethod=CHAP\0";
        assert_eq!(refuse(0x81, chap), 0x0201);
        for odd in ["a\nregistrant 1 b", "a b", "a,i,0x1", ""] {
            let text = format!("InitiatorName={odd}\0TargetName=b\0");
            assert_eq!(refuse(0x87, text.as_bytes()), 0x0200, "{odd:?}");
        }
        assert_eq!(refuse(0x84, &[b'a'; text::MAX_TEXT_BYTES + 1]), 0x0200);
        assert_eq!(refuse(0x8C, b""), 0x0200); // full feature phase is no stage to be in
    }

    #[test]
    fn continued_text_is_joined() {
        let mut login = Login::default();
        let step = ask(&mut login, 0x44, b"InitiatorName=iq");
        assert!(matches!(step, Step::Reply(_, out) if out.is_empty()));
        let step = ask(&mut login, 0x87, b"n.a\0SessionType=Discovery\0");
        assert!(matches!(step, Step::Finish(_, _, wish) if wish.initiator == "iqn.a"));
    }
}
