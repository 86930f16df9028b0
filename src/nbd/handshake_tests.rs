//! Tests of the handshake's state machine.

use super::*;
use crate::lun::{BlockIo, MemoryLun};

fn option_bytes(option: u32, data: &[u8]) -> Vec<u8> {
    let mut out = wire::OPTION_MAGIC.to_be_bytes().to_vec();
    out.extend(option.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
    out
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()
}

fn started() -> Handshake {
    let mut handshake = Handshake::default();
    assert_eq!(handshake.output.len(), 18);
    assert_eq!(handshake.advance(&[0, 0, 0, 3]).unwrap(), (4, Step::More));
    handshake.output.clear();
    handshake
}

/// Replies in the output: option, kind, data.
fn replies(handshake: &mut Handshake) -> Vec<(u32, u32, Vec<u8>)> {
    let output = std::mem::take(&mut handshake.output);
    let mut reader = Reader(&output);
    let mut found = Vec::new();
    while !reader.is_empty() {
        assert_eq!(reader.u64(), Some(wire::OPTION_REPLY_MAGIC));
        let (option, kind) = (reader.u32().unwrap(), reader.u32().unwrap());
        let length = reader.u32().unwrap() as usize;
        found.push((option, kind, reader.bytes(length).unwrap().to_vec()));
    }
    found
}

fn set_allocation(handshake: &mut Handshake, export: &str) {
    let mut data = string(export);
    data.extend(1u32.to_be_bytes());
    data.extend(string("base:allocation"));
    let bytes = option_bytes(option::SET_META_CONTEXT, &data);
    assert_eq!(handshake.advance(&bytes).unwrap(), (bytes.len(), Step::More));
}

fn go(export: &str, wanted: &[u16]) -> Vec<u8> {
    let mut data = string(export);
    data.extend((wanted.len() as u16).to_be_bytes());
    wanted.iter().for_each(|kind| data.extend(kind.to_be_bytes()));
    option_bytes(option::GO, &data)
}

#[test]
fn go_describes_the_export_and_ends_the_haggling() {
    let mut handshake = started();
    let geometry = MemoryLun::new("a", 1 << 20, 512).geometry();
    handshake.advance(&option_bytes(option::STRUCTURED_REPLY, &[])).unwrap();
    set_allocation(&mut handshake, "a");
    let kinds: Vec<_> = replies(&mut handshake).iter().map(|reply| reply.1).collect();
    assert_eq!(kinds, [option_reply::ACK, option_reply::META_CONTEXT, option_reply::ACK]);

    let bytes = go("a", &[info::BLOCK_SIZE, info::DESCRIPTION]);
    let (taken, step) = handshake.advance(&bytes).unwrap();
    assert_eq!((taken, step), (bytes.len(), Step::Open("a".into())));
    let description = Description { name: "a", description: "disk", geometry: &geometry };
    let terms = handshake.opened(description);
    assert!(terms.structured && terms.allocation && !terms.read_only);
    let told = replies(&mut handshake);
    assert_eq!(told.len(), 4);
    assert_eq!(told[0].2[..10], [0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0]);
    assert_eq!(told[1].2, [&[0, 2][..], b"disk"].concat());
    assert_eq!(told[2].2, [0, 3, 0, 0, 2, 0, 0, 0, 16, 0, 2, 0, 0, 0]);
    assert_eq!(told[3].1, option_reply::ACK);
}

#[test]
fn a_context_selected_for_one_export_is_not_there_for_another() {
    let mut handshake = started();
    let geometry = MemoryLun::new("a", 1 << 20, 512).geometry();
    handshake.advance(&option_bytes(option::STRUCTURED_REPLY, &[])).unwrap();
    set_allocation(&mut handshake, "a");
    handshake.advance(&go("b", &[])).unwrap();
    let terms = handshake.opened(Description { name: "b", description: "", geometry: &geometry });
    assert!(terms.structured && !terms.allocation);
}

#[test]
fn contexts_need_structured_replies() {
    let mut handshake = started();
    set_allocation(&mut handshake, "a");
    assert_eq!(replies(&mut handshake)[0].1, option_reply::ERR_INVALID);
}

#[test]
fn export_name_has_its_own_answer() {
    for (flags, expected) in [(1u8, 10 + 124), (3, 10)] {
        let mut handshake = Handshake::default();
        handshake.advance(&[0, 0, 0, flags]).unwrap();
        handshake.output.clear();
        let geometry = MemoryLun::new("a", 1 << 20, 512).geometry();
        let (_, step) = handshake.advance(&option_bytes(option::EXPORT_NAME, b"a")).unwrap();
        assert_eq!(step, Step::Open("a".into()));
        handshake.opened(Description { name: "a", description: "", geometry: &geometry });
        assert_eq!(handshake.output.len(), expected);
    }
}

#[test]
fn what_is_not_there_is_answered_and_the_haggling_goes_on() {
    let mut handshake = started();
    for (option, data, kind) in [
        (5, &b""[..], option_reply::ERR_UNSUP),
        (11, b"", option_reply::ERR_UNSUP),
        (77, b"xyz", option_reply::ERR_UNSUP),
        (option::LIST, b"x", option_reply::ERR_INVALID),
        (option::GO, b"\0\0\0\x09a", option_reply::ERR_INVALID),
        (option::INFO, &[0; 7], option_reply::ERR_INVALID),
    ] {
        let bytes = option_bytes(option, data);
        assert_eq!(handshake.advance(&bytes).unwrap(), (bytes.len(), Step::More));
        assert_eq!(replies(&mut handshake)[0].1, kind, "option {option}");
    }
    let long = option_bytes(option::GO, &vec![0; MAX_OPTION_BYTES + 1]);
    assert_eq!(handshake.advance(&long).unwrap(), (long.len(), Step::More));
    assert_eq!(replies(&mut handshake)[0].1, option_reply::ERR_TOO_BIG);
    handshake.advance(&go("nobody", &[])).unwrap();
    handshake.refused(Refusal::Unknown("nobody".into())).unwrap();
    assert_eq!(replies(&mut handshake)[0].1, option_reply::ERR_UNKNOWN);
    let (_, step) = handshake.advance(&option_bytes(option::ABORT, &[])).unwrap();
    assert_eq!(step, Step::Close);
}

#[test]
fn violations_end_the_connection() {
    assert!(Handshake::default().advance(&[0, 0, 0, 7]).is_err());
    assert!(started().advance(&[0; 16]).is_err());
    let mut absurd = option_bytes(option::GO, &[]);
    absurd[12..16].copy_from_slice(&u32::MAX.to_be_bytes());
    assert!(started().advance(&absurd).is_err());
    let mut handshake = started();
    handshake.advance(&option_bytes(option::EXPORT_NAME, b"nobody")).unwrap();
    assert!(handshake.refused(Refusal::Shutdown).is_err());
}

#[test]
fn one_byte_at_a_time_is_the_same() {
    let mut handshake = Handshake::default();
    let bytes = [&[0, 0, 0, 3][..], &option_bytes(5, b"abc"), &go("a", &[3])].concat();
    let (mut held, mut steps) = (Vec::new(), Vec::new());
    for byte in bytes {
        held.push(byte);
        let (taken, step) = handshake.advance(&held).unwrap();
        held.drain(..taken);
        if step != Step::More {
            steps.push(step);
        }
    }
    assert_eq!((held.len(), steps), (0, vec![Step::Open("a".into())]));
}
