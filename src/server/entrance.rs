//! What the doors share in turning clients away.

use crate::access::{Book, Reason};
use crate::lun::Lun;
use serde_json::json;
use std::net::IpAddr;

/// Whether an address is one of this host.
pub(super) fn local(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// Counts a refusal, and notes it in the log of the LUN that it is about.
pub(super) fn note(
    book: &Book,
    door: &'static str,
    (client, peer): (&str, &str),
    lun: Option<&Lun>,
    reason: Reason,
    why: &str,
) {
    book.refusals().note(reason, &format!("{door} {client} {peer}"));
    if let Some(lun) = lun {
        let fields = json!({
            "what": "a login", "why": why, "door": door, "client": client, "peer": peer,
        });
        lun.note("refused", fields);
    }
}
