//! What the doors share in turning clients away.

use crate::access::{Book, Reason};
use crate::lun::{Catalog, Lun, SessionInfo};
use serde_json::json;
use std::net::IpAddr;

/// Whether an address is one of this host.
pub(super) fn local(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// Why a client without [`has_room`] is refused.
pub(super) const NO_ROOM: &str = "the client has as many sessions as it may";

/// Whether a client has room for a further session of a door. Who has no name always has.
pub(super) fn has_room(book: &Book, catalog: &Catalog, door: &str, name: Option<&str>) -> bool {
    let Some(one) = name.and_then(|name| book.get(name).ok()) else {
        return true;
    };
    let own = |it: &SessionInfo| it.door == door && it.client.eq_ignore_ascii_case(&one.name);
    let count = catalog.sessions().iter().filter(|it| own(it)).count();
    count < one.limits.sessions as usize
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
