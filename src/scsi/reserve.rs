//! Reservations: persistent ones (SPC-4 §5.13, §6.15, §6.16) and RESERVE(6)/RELEASE(6) (SPC-2
//! §5.5).
//!
//! Registrants are known by the name of their initiator port, so a registration outlives its
//! session, and holds for every target port. With APTPL it outlives the server: the record is text,
//! a line each, kept by the disk.
//!
//! Invariants: at most [`MAX_REGISTRANTS`]; a holder is registered; RESERVE(6) and registrations
//! never exist together.

use super::attention::Attention;
use super::nexus::PortNames;
use super::Sense;

/// Most registrants of a unit: bounds what READ FULL STATUS and a hostile initiator can make us
/// hold.
const MAX_REGISTRANTS: usize = 128;
/// Most of them under one initiator's name (each session of its own ISID may be one): it leaves
/// room for the others.
const MAX_OF_ONE_NAME: usize = 32;
/// Length of a PERSISTENT RESERVE OUT parameter list.
pub(super) const LIST_BYTES: usize = 24;
/// REGISTER AND MOVE: a TransportID follows; iSCSI's longest is a name and an ISID.
pub(super) const MAX_LIST_BYTES: usize = LIST_BYTES + 4 + 256;
/// Service action REGISTER AND MOVE.
pub(super) const MOVE: u8 = 7;
/// Longest name of an initiator port: an iSCSI name, `,i,0x` and 12 digits.
const MAX_PORT_BYTES: usize = 255;

/// Reservation types (SPC-4 table 58).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    WriteExclusive = 1,
    ExclusiveAccess = 3,
    WriteExclusiveRegistrants = 5,
    ExclusiveAccessRegistrants = 6,
    WriteExclusiveAll = 7,
    ExclusiveAccessAll = 8,
}

impl Kind {
    fn of(scope_type: u8) -> Result<Kind, Sense> {
        Ok(match scope_type {
            1 => Kind::WriteExclusive,
            3 => Kind::ExclusiveAccess,
            5 => Kind::WriteExclusiveRegistrants,
            6 => Kind::ExclusiveAccessRegistrants,
            7 => Kind::WriteExclusiveAll,
            8 => Kind::ExclusiveAccessAll,
            _ => return Err(Sense::INVALID_FIELD), // or a scope other than the logical unit
        })
    }

    fn all_registrants(self) -> bool {
        matches!(self, Kind::WriteExclusiveAll | Kind::ExclusiveAccessAll)
    }

    /// Registrants may do what the holder may.
    fn for_registrants(self) -> bool {
        !matches!(self, Kind::WriteExclusive | Kind::ExclusiveAccess)
    }

    fn excludes_reads(self) -> bool {
        matches!(
            self,
            Kind::ExclusiveAccess | Kind::ExclusiveAccessRegistrants | Kind::ExclusiveAccessAll
        )
    }
}

/// How a command stands to a reservation of another nexus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Allowed under any reservation.
    Always,
    /// Allowed under persistent reservations, not under RESERVE(6).
    Query,
    /// Reads.
    Read,
    /// Writes, or changes the unit.
    Write,
}

/// Why a reservation command is not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Denied {
    /// RESERVATION CONFLICT.
    Conflict,
    /// CHECK CONDITION.
    Check(Sense),
}

impl From<Sense> for Denied {
    fn from(sense: Sense) -> Denied {
        Denied::Check(sense)
    }
}

/// Attentions that a command raises, by initiator port.
pub(super) type Notices = Vec<(String, Attention)>;

#[derive(Debug, Clone)]
struct Registrant {
    port: String,
    key: u64,
}

#[derive(Debug, Clone)]
struct Holder {
    port: String,
    kind: Kind,
}

/// A decoded PERSISTENT RESERVE OUT with its parameter list.
#[derive(Debug, Clone)]
pub(super) struct Order {
    action: u8,
    scope_type: u8,
    key: u64,
    new_key: u64,
    /// APTPL: registrations and reservation outlive the server.
    lasting: bool,
    /// REGISTER AND MOVE: the initiator port that gets the reservation, and UNREG.
    to: Option<(String, bool)>,
}

impl Order {
    /// RESERVE, PREEMPT, PREEMPT AND ABORT: a reservation may begin.
    pub fn reserves(&self) -> bool {
        matches!(self.action, 1 | 4 | 5)
    }

    /// CLEAR: everybody's registrations end, without a reservation that had to be claimed.
    pub fn clears(&self) -> bool {
        self.action == 3
    }

    /// PREEMPT AND ABORT.
    pub fn aborts(&self) -> bool {
        self.action == 5
    }

    /// Reads the parameter list of `action`.
    pub fn parse(action: u8, scope_type: u8, list: &[u8], protocol: u8) -> Result<Order, Sense> {
        let word = |at: usize| -> Option<u64> {
            list.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes)
        };
        let (Some(key), Some(new_key)) = (word(0), word(8)) else {
            return Err(Sense::LIST_LENGTH);
        };
        if action == MOVE {
            let flags = list.get(17).copied().unwrap_or(0);
            let to = port_of(list.get(20..).unwrap_or_default(), protocol)?;
            let (lasting, to) = (flags & 1 != 0, Some((to, flags & 2 != 0)));
            return Ok(Order { action, scope_type, key, new_key, lasting, to });
        }
        // SPEC_I_PT is not offered; ALL_TG_PT is: a registration holds for every target port
        match list.get(20) {
            Some(flags) if flags & 0x08 == 0 => {
                let lasting = flags & 1 != 0;
                Ok(Order { action, scope_type, key, new_key, lasting, to: None })
            }
            _ => Err(Sense::INVALID_PARAMETER),
        }
    }
}

/// The reservations of a unit.
#[derive(Debug, Clone, Default)]
pub(super) struct Reservations {
    generation: u32,
    /// APTPL of the last registration.
    lasting: bool,
    registrants: Vec<Registrant>,
    holder: Option<Holder>,
    /// The nexus that RESERVE(6) is held by.
    legacy: Option<u64>,
}

impl Reservations {
    /// Is there anything that a command has to be checked against?
    pub fn is_active(&self) -> bool {
        self.legacy.is_some() || self.holder.is_some()
    }

    /// Is there a persistent reservation?
    pub fn is_held(&self) -> bool {
        self.holder.is_some()
    }

    pub fn has_registrants(&self) -> bool {
        !self.registrants.is_empty()
    }

    /// What is to outlive the server; `None`: nothing.
    pub fn record(&self) -> Option<String> {
        if !self.lasting || self.registrants.is_empty() {
            return None;
        }
        let mut out = String::new();
        // a name may not end its line, wherever it comes from
        let name = |port: &str| port.replace(char::is_control, "?");
        for one in &self.registrants {
            out.push_str(&format!("registrant {:016x} {}\n", one.key, name(&one.port)));
        }
        if let Some(holder) = &self.holder {
            out.push_str(&format!("holder {} {}\n", holder.kind as u8, name(&holder.port)));
        }
        Some(out)
    }

    /// Reads a record; what makes no sense is left out.
    pub fn from_record(record: &str) -> Reservations {
        let mut all = Reservations { lasting: !record.is_empty(), ..Reservations::default() };
        for line in record.lines() {
            let mut words = line.splitn(3, ' ');
            let (what, value, port) = (words.next(), words.next(), words.next());
            let (Some(value), Some(port)) = (value, port.map(str::to_owned)) else { continue };
            match what {
                Some("registrant") if all.registrants.len() < MAX_REGISTRANTS => {
                    if let Ok(key) = u64::from_str_radix(value, 16) {
                        all.registrants.push(Registrant { port, key });
                    }
                }
                Some("holder") if all.is_registered(&port) => {
                    let kind = value.parse().ok().and_then(|kind| Kind::of(kind).ok());
                    all.holder = kind.map(|kind| Holder { port, kind });
                }
                _ => {}
            }
        }
        all
    }

    fn is_registered(&self, port: &str) -> bool {
        self.registrants.iter().any(|registrant| registrant.port == port)
    }

    fn holds(&self, port: &str) -> bool {
        self.holder.as_ref().is_some_and(|holder| match holder.kind.all_registrants() {
            true => self.is_registered(port),
            false => holder.port == port,
        })
    }

    /// May this nexus do it? (SPC-4 table 52, SBC-3 table 13)
    pub fn allows(&self, nexus: u64, port: &str, access: Access) -> bool {
        if self.legacy.is_some_and(|holder| holder != nexus) {
            return access == Access::Always;
        }
        let Some(holder) = &self.holder else {
            return true;
        };
        let trusted =
            self.holds(port) || (holder.kind.for_registrants() && self.is_registered(port));
        match access {
            Access::Always | Access::Query => true,
            Access::Read => trusted || !holder.kind.excludes_reads(),
            Access::Write => trusted,
        }
    }

    /// RESERVE(6).
    pub fn reserve6(&mut self, nexus: u64) -> Result<(), Denied> {
        if !self.registrants.is_empty() || self.legacy.is_some_and(|holder| holder != nexus) {
            return Err(Denied::Conflict);
        }
        self.legacy = Some(nexus);
        Ok(())
    }

    /// RELEASE(6): by another than the holder it does nothing.
    pub fn release6(&mut self, nexus: u64) -> Result<(), Denied> {
        if !self.registrants.is_empty() {
            return Err(Denied::Conflict);
        }
        self.forget_nexus(nexus);
        Ok(())
    }

    /// A nexus ended.
    pub fn forget_nexus(&mut self, nexus: u64) {
        if self.legacy == Some(nexus) {
            self.legacy = None;
        }
    }

    /// A reset ends RESERVE(6), not persistent reservations.
    pub fn reset(&mut self) {
        self.legacy = None;
    }

    /// PERSISTENT RESERVE OUT.
    pub fn out(&mut self, port: &str, order: &Order) -> Result<Notices, Denied> {
        if self.legacy.is_some() {
            return Err(Denied::Conflict);
        }
        if !matches!(order.action, 0 | 6) {
            let key = self.registrants.iter().find(|registrant| registrant.port == port);
            if key.is_none_or(|registrant| registrant.key != order.key) {
                return Err(Denied::Conflict);
            }
        }
        match order.action {
            0 | 6 => self.register(port, order),
            1 => self.reserve(port, Kind::of(order.scope_type)?),
            2 => self.release(port, order),
            3 => Ok(self.clear(port)),
            4 | 5 => self.preempt(port, order),
            MOVE => self.register_and_move(port, order),
            _ => Err(Sense::INVALID_FIELD.into()),
        }
    }

    fn register(&mut self, port: &str, order: &Order) -> Result<Notices, Denied> {
        if order.new_key == 0 && (order.action == 6 || order.key == 0) && !self.is_registered(port)
        {
            return Ok(Notices::new()); // nothing is asked for, APTPL stays with whom it is for
        }
        let outcome = self.register_key(port, order)?;
        self.lasting = order.lasting;
        Ok(outcome)
    }

    fn register_key(&mut self, port: &str, order: &Order) -> Result<Notices, Denied> {
        let ignore = order.action == 6;
        let at = self.registrants.iter().position(|registrant| registrant.port == port);
        let full = self.is_full(port);
        let found = at.and_then(|at| Some((at, self.registrants.get_mut(at)?)));
        match found {
            None if !ignore && order.key != 0 => return Err(Denied::Conflict),
            None if full => {
                return Err(Sense::NO_REGISTRATION_RESOURCES.into());
            }
            None => {
                self.registrants.push(Registrant { port: port.to_owned(), key: order.new_key });
            }
            Some((_, found)) if !ignore && found.key != order.key => return Err(Denied::Conflict),
            Some((at, _)) if order.new_key == 0 => {
                self.generation = self.generation.wrapping_add(1);
                self.registrants.remove(at);
                return Ok(self.unregistered(port));
            }
            Some((_, found)) => found.key = order.new_key,
        }
        self.generation = self.generation.wrapping_add(1);
        Ok(Notices::new())
    }

    /// Is there no room for one more registrant, this port?
    fn is_full(&self, port: &str) -> bool {
        let same = |one: &&Registrant| initiator_of(&one.port) == initiator_of(port);
        self.registrants.len() >= MAX_REGISTRANTS
            || self.registrants.iter().filter(same).count() >= MAX_OF_ONE_NAME
    }

    /// `port` is no registrant any more: what it held alone is released (SPC-4 §5.13.11.3).
    fn unregistered(&mut self, port: &str) -> Notices {
        let Some(holder) = &self.holder else {
            return Notices::new();
        };
        let kind = holder.kind;
        let ends = match kind.all_registrants() {
            true => self.registrants.is_empty(),
            false => holder.port == port,
        };
        if !ends {
            return Notices::new();
        }
        self.holder = None;
        match kind.for_registrants() {
            true => self.notices(port, Attention::ReservationsReleased),
            false => Notices::new(),
        }
    }

    /// An attention for every registrant but `except`.
    fn notices(&self, except: &str, attention: Attention) -> Notices {
        let others = self.registrants.iter().filter(|registrant| registrant.port != except);
        others.map(|registrant| (registrant.port.clone(), attention)).collect()
    }

    fn reserve(&mut self, port: &str, kind: Kind) -> Result<Notices, Denied> {
        match &self.holder {
            None => self.holder = Some(Holder { port: port.to_owned(), kind }),
            Some(holder) if self.holds(port) && holder.kind == kind => {}
            Some(_) => return Err(Denied::Conflict),
        }
        Ok(Notices::new())
    }

    fn release(&mut self, port: &str, order: &Order) -> Result<Notices, Denied> {
        let Some(holder) = self.holder.as_ref().filter(|_| self.holds(port)) else {
            return Ok(Notices::new());
        };
        let kind = holder.kind;
        if Kind::of(order.scope_type) != Ok(kind) {
            return Err(Sense::INVALID_RELEASE.into());
        }
        self.holder = None;
        Ok(match kind.for_registrants() {
            true => self.notices(port, Attention::ReservationsReleased),
            false => Notices::new(),
        })
    }

    /// REGISTER AND MOVE (SPC-4 §5.13.8): the holder hands its reservation to another port.
    fn register_and_move(&mut self, port: &str, order: &Order) -> Result<Notices, Denied> {
        let Some((to, unregister)) = &order.to else {
            return Err(Sense::INVALID_PARAMETER.into());
        };
        let kind = match &self.holder {
            Some(holder) if holder.port == port && !holder.kind.all_registrants() => holder.kind,
            _ => return Err(Denied::Conflict),
        };
        if order.new_key == 0 || to == port {
            return Err(Sense::INVALID_PARAMETER.into());
        }
        let full = self.is_full(to);
        match self.registrants.iter_mut().find(|one| one.port == *to) {
            Some(found) => found.key = order.new_key,
            None if full => {
                return Err(Sense::NO_REGISTRATION_RESOURCES.into());
            }
            None => {
                self.registrants.push(Registrant { port: to.clone(), key: order.new_key });
            }
        }
        self.holder = Some(Holder { port: to.clone(), kind });
        if *unregister {
            self.registrants.retain(|one| one.port != port);
        }
        self.lasting = order.lasting;
        self.generation = self.generation.wrapping_add(1);
        Ok(Notices::new())
    }

    fn clear(&mut self, port: &str) -> Notices {
        let notices = self.notices(port, Attention::ReservationsPreempted);
        self.registrants.clear();
        self.holder = None;
        self.generation = self.generation.wrapping_add(1);
        notices
    }

    /// PREEMPT (SPC-4 §5.13.11.4).
    fn preempt(&mut self, port: &str, order: &Order) -> Result<Notices, Denied> {
        let kind = Kind::of(order.scope_type);
        let held = self.holder.as_ref().map(|holder| {
            let key = self.registrants.iter().find(|one| one.port == holder.port);
            (holder.kind, key.map_or(0, |one| one.key))
        });
        let (takes_over, everybody) = match held {
            Some((held, _)) if held.all_registrants() => (order.new_key == 0, order.new_key == 0),
            Some((_, key)) => (key == order.new_key, false),
            None => (false, false),
        };
        if order.new_key == 0 && !takes_over {
            return Err(Sense::INVALID_PARAMETER.into());
        }
        let known = self.registrants.iter().any(|one| one.key == order.new_key);
        if !known && !everybody {
            return Err(Denied::Conflict);
        }
        let kind = if takes_over { Some(kind?) } else { None };
        let mut notices = self.remove(port, |one| everybody || one.key == order.new_key);
        self.generation = self.generation.wrapping_add(1);
        if let (Some(kind), Some((old, _))) = (kind, held) {
            self.holder = Some(Holder { port: port.to_owned(), kind });
            if old != kind && old.for_registrants() {
                notices.extend(self.notices(port, Attention::ReservationsReleased));
            }
        } else if held.is_some_and(|(old, _)| old.all_registrants()) && self.registrants.is_empty()
        {
            self.holder = None;
        }
        Ok(notices)
    }

    /// Removes registrants other than `port`, each with its attention.
    fn remove(&mut self, port: &str, which: impl Fn(&Registrant) -> bool) -> Notices {
        let gone = |one: &Registrant| one.port != port && which(one);
        let removed = self.registrants.iter().filter(|one| gone(one));
        let notices =
            removed.map(|one| (one.port.clone(), Attention::RegistrationsPreempted)).collect();
        self.registrants.retain(|one| !gone(one));
        notices
    }

    /// PERSISTENT RESERVE IN: the parameter data.
    pub fn report(&self, action: u8, ports: &PortNames) -> Result<Vec<u8>, Sense> {
        match action {
            0 => Ok(self.read_keys()),
            1 => Ok(self.read_reservation()),
            2 => Ok(self.capabilities()),
            3 => Ok(self.read_full_status(ports)),
            _ => Err(Sense::INVALID_FIELD),
        }
    }

    /// REPORT CAPABILITIES: ATP_C and PTPL_C; the type mask valid, PTPL_A; all types.
    fn capabilities(&self) -> Vec<u8> {
        vec![0, 8, 0x05, 0x80 | u8::from(self.lasting), 0xEA, 0x01, 0, 0]
    }

    fn with_header(&self, body: &[u8]) -> Vec<u8> {
        let length = body.len() as u32;
        [&self.generation.to_be_bytes()[..], &length.to_be_bytes(), body].concat()
    }

    fn read_keys(&self) -> Vec<u8> {
        let keys: Vec<u8> = self.registrants.iter().flat_map(|one| one.key.to_be_bytes()).collect();
        self.with_header(&keys)
    }

    fn read_reservation(&self) -> Vec<u8> {
        let Some(holder) = &self.holder else {
            return self.with_header(&[]);
        };
        let key = self.registrants.iter().find(|one| one.port == holder.port);
        let key = if holder.kind.all_registrants() { 0 } else { key.map_or(0, |one| one.key) };
        let body = [&key.to_be_bytes()[..], &[0, 0, 0, 0, 0, holder.kind as u8, 0, 0]].concat();
        self.with_header(&body)
    }

    fn read_full_status(&self, ports: &PortNames) -> Vec<u8> {
        let mut body = Vec::new();
        for one in &self.registrants {
            let holder = self.holder.as_ref().filter(|_| self.holds(&one.port));
            let kind = holder.map_or(0, |holder| holder.kind as u8);
            let transport = transport_id(&one.port, ports.protocol);
            body.extend_from_slice(&one.key.to_be_bytes());
            // ALL_TG_PT: the relative port means nothing
            let flags = 0x02 | u8::from(holder.is_some());
            body.extend_from_slice(&[0, 0, 0, 0, flags, kind, 0, 0, 0, 0, 0, 0]);
            body.extend_from_slice(&(transport.len() as u32).to_be_bytes());
            body.extend_from_slice(&transport);
        }
        self.with_header(&body)
    }
}

/// The name of the initiator whose port it is (RFC 7143 §4.2.7.5: the ISID follows a comma).
fn initiator_of(port: &str) -> &str {
    port.split(',').next().unwrap_or(port)
}

/// A TransportID with the name of an initiator port (SPC-4 §7.6.4.6, format 01b).
fn transport_id(port: &str, protocol: u8) -> Vec<u8> {
    let length = (port.len() + 1).next_multiple_of(4);
    let mut out = vec![0x40 | protocol, 0];
    out.extend_from_slice(&(length as u16).to_be_bytes());
    out.extend_from_slice(port.as_bytes());
    out.resize(4 + length, 0);
    out
}

/// The initiator port that a list of one TransportID names, after its length.
fn port_of(bytes: &[u8], protocol: u8) -> Result<String, Sense> {
    let (head, rest) = bytes.split_at_checked(4).ok_or(Sense::LIST_LENGTH)?;
    let length = head.iter().fold(0usize, |sum, byte| (sum << 8) | usize::from(*byte));
    let id = rest.get(..length).ok_or(Sense::LIST_LENGTH)?;
    let &[format, _, high, low, ref name @ ..] = id else {
        return Err(Sense::INVALID_PARAMETER);
    };
    let name = name.get(..usize::from(u16::from_be_bytes([high, low])));
    let name = name.and_then(|name| name.split(|byte| *byte == 0).next()).unwrap_or_default();
    let graphic = name.iter().all(u8::is_ascii_graphic);
    match std::str::from_utf8(name) {
        Ok(name) if format == 0x40 | protocol && graphic && name.len() <= MAX_PORT_BYTES => {
            Ok(name.to_owned())
        }
        _ => Err(Sense::INVALID_PARAMETER),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(action: u8, kind: u8, key: u64, new_key: u64) -> Order {
        Order { action, scope_type: kind, key, new_key, lasting: false, to: None }
    }

    fn two() -> Reservations {
        let mut all = Reservations::default();
        all.out("a", &order(0, 0, 0, 10)).unwrap();
        all.out("b", &order(6, 0, 99, 20)).unwrap();
        all
    }

    #[test]
    fn write_exclusive_lets_others_read() {
        let mut all = two();
        all.out("a", &order(1, 1, 10, 0)).unwrap();
        assert!(all.allows(2, "b", Access::Read));
        assert!(!all.allows(2, "b", Access::Write));
        assert!(all.allows(1, "a", Access::Write));
        assert_eq!(all.out("b", &order(1, 1, 20, 0)), Err(Denied::Conflict));
        assert_eq!(all.generation, 2);
    }

    #[test]
    fn unregistering_the_holder_tells_the_registrants_of_a_registrants_type() {
        let mut all = two();
        all.out("a", &order(1, 6, 10, 0)).unwrap();
        assert!(all.allows(2, "b", Access::Write));
        assert!(!all.allows(3, "c", Access::Read));
        let notices = all.out("a", &order(0, 0, 10, 0)).unwrap();
        assert_eq!(notices, [("b".to_owned(), Attention::ReservationsReleased)]);
        assert!(!all.is_active());
    }

    #[test]
    fn preempting_the_holder_takes_over() {
        let mut all = two();
        all.out("a", &order(1, 3, 10, 0)).unwrap();
        let notices = all.out("b", &order(4, 1, 20, 10)).unwrap();
        assert_eq!(notices, [("a".to_owned(), Attention::RegistrationsPreempted)]);
        assert!(all.holds("b") && !all.is_registered("a"));
    }

    #[test]
    fn all_registrants_report_no_key() {
        let mut all = two();
        all.out("a", &order(1, 8, 10, 0)).unwrap();
        assert!(all.holds("b"));
        assert_eq!(all.read_reservation()[8..16], [0; 8]);
        all.out("a", &order(0, 0, 10, 0)).unwrap();
        assert!(all.is_active(), "the other registrant still holds it");
    }

    #[test]
    fn the_record_gives_back_what_it_was_made_of() {
        let mut all = two();
        assert_eq!(all.record(), None, "without APTPL nothing lasts");
        all.out("a", &Order { lasting: true, ..order(6, 0, 0, 10) }).unwrap();
        all.out("a", &order(1, 8, 10, 0)).unwrap();
        let again = Reservations::from_record(&all.record().unwrap());
        assert_eq!(again.read_keys()[4..], all.read_keys()[4..]);
        assert!(again.holds("a") && again.holds("b") && !again.allows(3, "c", Access::Read));
        let mut again = again;
        again.out("b", &order(3, 0, 20, 0)).unwrap();
        assert_eq!(again.record(), None);
        assert!(!Reservations::from_record("holder 1 x\nregistrant y\n").is_active());
    }

    #[test]
    fn who_is_not_registered_and_asks_for_nothing_changes_nothing() {
        let mut all = two();
        all.out("a", &Order { lasting: true, ..order(6, 0, 0, 10) }).unwrap();
        let before = (all.record(), all.generation);
        all.out("stranger", &order(0, 0, 0, 0)).unwrap();
        all.out("stranger", &order(6, 0, 7, 0)).unwrap();
        assert_eq!((all.record(), all.generation), before);
        assert!(before.0.is_some());
    }

    #[test]
    fn one_initiator_leaves_room_for_others() {
        let mut all = Reservations::default();
        let full = Err(Denied::Check(Sense::NO_REGISTRATION_RESOURCES));
        for n in 0..MAX_OF_ONE_NAME {
            all.out(&format!("iqn.a,i,0x{n:012x}"), &order(0, 0, 0, 1)).unwrap();
        }
        assert_eq!(all.out("iqn.a,i,0xff", &order(0, 0, 0, 1)), full);
        all.out("iqn.b,i,0xff", &order(0, 0, 0, 1)).unwrap();
    }

    #[test]
    fn a_name_ends_no_line_of_the_record() {
        let mut all = Reservations::default();
        let forged = "a\nregistrant 0000000000000001 b";
        all.out(forged, &Order { lasting: true, ..order(6, 0, 0, 10) }).unwrap();
        let again = Reservations::from_record(&all.record().unwrap());
        assert!(!again.is_registered("b"));
        assert_eq!(again.registrants.len(), 1);
    }

    #[test]
    fn a_reservation_moves_to_the_port_that_is_named() {
        let mut all = two();
        all.out("a", &order(1, 1, 10, 0)).unwrap();
        let mut list = vec![0; 24];
        list[7] = 10;
        list[15] = 77;
        list[17] = 2;
        list[23] = 8;
        list.extend_from_slice(&[0x45, 0, 0, 4, b'n', 0, 0, 0]);
        let order = Order::parse(MOVE, 1, &list, 5).unwrap();
        all.out("a", &order).unwrap();
        assert!(all.holds("n") && !all.is_registered("a"));
        assert_eq!(all.registrants.last().map(|one| one.key), Some(77));
        assert_eq!(all.out("b", &order).unwrap_err(), Denied::Conflict);
        list[24] = 0x40;
        assert!(Order::parse(MOVE, 1, &list, 5).is_err());
    }

    #[test]
    fn reserve6_and_registrations_exclude_each_other() {
        let mut all = Reservations::default();
        all.reserve6(1).unwrap();
        assert_eq!(all.out("b", &order(0, 0, 0, 5)), Err(Denied::Conflict));
        assert!(!all.allows(2, "b", Access::Query));
        all.release6(2).unwrap();
        assert!(all.is_active());
        all.release6(1).unwrap();
        assert!(!all.is_active());
        assert_eq!(two().reserve6(1), Err(Denied::Conflict));
    }
}
