//! The negotiated parameters of a session and its connection (RFC 7143 §13).

use super::session::MAX_CONNECTIONS;
use super::text;

/// What we declare as MaxRecvDataSegmentLength in full feature phase.
pub const OUR_RECV_SEGMENT_BYTES: u32 = 256 << 10;
/// The declared length until then, for both sides (RFC 7143 §13.12).
pub const LOGIN_SEGMENT_BYTES: u32 = 8192;
/// Most unsolicited data of one command: what a command may hold before we asked for it.
const OUR_FIRST_BURST_BYTES: u32 = 256 << 10;
/// Longest solicited burst; one R2T for any transfer we take.
const OUR_MAX_BURST_BYTES: u32 = (16 << 20) - 512;
/// Least value of the three lengths (RFC 7143 §13.12 to §13.14).
const MIN_LENGTH: u32 = 512;
/// Greatest value of the three lengths: 2^24 - 1.
const MAX_LENGTH: u32 = (1 << 24) - 1;
/// Greatest value of the two times.
const MAX_TIME_S: u32 = 3600;

/// What both sides agreed on; begins with the standard's defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Params {
    /// CRC32C over headers.
    pub header_digest: bool,
    /// CRC32C over data segments.
    pub data_digest: bool,
    /// Unsolicited Data-Out is not allowed.
    pub initial_r2t: bool,
    /// Data in the command PDU is allowed.
    pub immediate_data: bool,
    /// The initiator's MaxRecvDataSegmentLength.
    pub send_segment_bytes: u32,
    /// FirstBurstLength.
    pub first_burst_bytes: u32,
    /// MaxBurstLength.
    pub max_burst_bytes: u32,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            header_digest: false,
            data_digest: false,
            initial_r2t: true,
            immediate_data: true,
            send_segment_bytes: LOGIN_SEGMENT_BYTES,
            first_burst_bytes: 64 << 10,
            max_burst_bytes: 256 << 10,
        }
    }
}

/// What to answer to one offered key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// `key=value`.
    Value(String),
    /// A declaration: no answer.
    Silent,
}

fn value(text: &str) -> Reply {
    Reply::Value(text.to_owned())
}

fn boolean(offer: &str) -> Option<bool> {
    match offer {
        "Yes" => Some(true),
        "No" => Some(false),
        _ => None,
    }
}

fn yes_no(is: bool) -> Reply {
    value(if is { "Yes" } else { "No" })
}

/// A number within `range`, else the answer that rejects it.
fn within(offer: &str, least: u32, most: u32) -> Result<u32, Reply> {
    text::number(offer).filter(|number| (least..=most).contains(number)).ok_or(value("Reject"))
}

/// The first of the offered digests that we know (RFC 7143 §6.2.1: the initiator's order counts).
fn digest(offer: &str, into: &mut bool) -> Reply {
    let known = offer.split(',').find(|name| matches!(*name, "CRC32C" | "None"));
    match known {
        Some(name) => {
            *into = name == "CRC32C";
            value(name)
        }
        None => value("Reject"),
    }
}

impl Params {
    /// Answers one key of the operational stage and takes the result over.
    pub fn negotiate(&mut self, key: &str, offer: &str) -> Reply {
        self.answer(key, offer).unwrap_or_else(|reject| reject)
    }

    fn answer(&mut self, key: &str, offer: &str) -> Result<Reply, Reply> {
        let flag = |offer| boolean(offer).ok_or(value("Reject"));
        Ok(match key {
            "HeaderDigest" => digest(offer, &mut self.header_digest),
            "DataDigest" => digest(offer, &mut self.data_digest),
            "InitialR2T" => {
                self.initial_r2t = flag(offer)?;
                yes_no(self.initial_r2t)
            }
            "ImmediateData" => {
                self.immediate_data = flag(offer)?;
                yes_no(self.immediate_data)
            }
            "MaxRecvDataSegmentLength" => {
                self.send_segment_bytes = within(offer, MIN_LENGTH, MAX_LENGTH)?;
                Reply::Silent
            }
            "FirstBurstLength" => {
                let offer = within(offer, MIN_LENGTH, MAX_LENGTH)?;
                self.first_burst_bytes = offer.min(OUR_FIRST_BURST_BYTES);
                Reply::Value(self.first_burst_bytes.to_string())
            }
            "MaxBurstLength" => {
                let offer = within(offer, MIN_LENGTH, MAX_LENGTH)?;
                self.max_burst_bytes = offer.min(OUR_MAX_BURST_BYTES);
                Reply::Value(self.max_burst_bytes.to_string())
            }
            "DefaultTime2Wait" => {
                let offer = within(offer, 0, MAX_TIME_S)?;
                Reply::Value(offer.to_string())
            }
            "DefaultTime2Retain" => within(offer, 0, MAX_TIME_S).map(|_| value("0"))?,
            "MaxConnections" => {
                let most = within(offer, 1, 65535)?.min(MAX_CONNECTIONS as u32);
                Reply::Value(most.to_string())
            }
            "MaxOutstandingR2T" => within(offer, 1, 65535).map(|_| value("1"))?,
            "ErrorRecoveryLevel" => within(offer, 0, 2).map(|_| value("0"))?,
            "DataPDUInOrder" | "DataSequenceInOrder" => flag(offer).map(|_| value("Yes"))?,
            // markers are gone from RFC 7143; older initiators still decline them
            "IFMarker" | "OFMarker" => flag(offer).map(|_| value("No"))?,
            "IFMarkInt" | "OFMarkInt" => value("Irrelevant"),
            "TaskReporting" => value("RFC3720"),
            "iSCSIProtocolLevel" => {
                within(offer, 0, 31).map(|level| value(&level.min(1).to_string()))?
            }
            _ => value("NotUnderstood"),
        })
    }

    /// FirstBurstLength must not exceed MaxBurstLength (RFC 7143 §13.14).
    pub fn settle(&mut self) {
        self.first_burst_bytes = self.first_burst_bytes.min(self.max_burst_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_meet_at_the_smaller() {
        let mut params = Params::default();
        assert_eq!(params.negotiate("FirstBurstLength", "16777215"), value("262144"));
        assert_eq!(params.negotiate("MaxBurstLength", "65536"), value("65536"));
        params.settle();
        assert_eq!(params.first_burst_bytes, 65536);
        assert_eq!(params.negotiate("MaxConnections", "8"), value("1"));
    }

    #[test]
    fn nonsense_is_rejected_and_changes_nothing() {
        let mut params = Params::default();
        for (key, offer) in [
            ("MaxBurstLength", "0"),
            ("MaxRecvDataSegmentLength", "511"),
            ("InitialR2T", "maybe"),
            ("HeaderDigest", "MD5"),
            ("ErrorRecoveryLevel", "3"),
        ] {
            assert_eq!(params.negotiate(key, offer), value("Reject"), "{key}");
        }
        assert_eq!(params, Params::default());
        assert_eq!(params.negotiate("X-org.example.a", "1"), value("NotUnderstood"));
    }

    #[test]
    fn the_initiators_order_of_digests_counts() {
        let mut params = Params::default();
        assert_eq!(params.negotiate("HeaderDigest", "None,CRC32C"), value("None"));
        assert!(!params.header_digest);
        assert_eq!(params.negotiate("HeaderDigest", "MD5,CRC32C,None"), value("CRC32C"));
        assert!(params.header_digest);
    }
}
