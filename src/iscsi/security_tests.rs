//! Security negotiation, key by key.

use super::*;
use crate::access::{Credential, Limits, Secret};
use std::sync::Arc;
use zeroize::Zeroizing;

const SECRET: &str = "a secret of 24 bytes ...";
const TARGET_SECRET: &str = "another secret, of ours";

fn credential(user: &str, secret: &str) -> Arc<Credential> {
    let secret = Secret::new(Zeroizing::new(secret.to_owned())).unwrap();
    Arc::new(Credential::new(user.to_owned(), secret).unwrap())
}

fn demand(user: &str, mutual: bool) -> Demand {
    let mutual = mutual.then(|| credential("target", TARGET_SECRET));
    Demand { chap: Some(credential(user, SECRET)), mutual, limits: Limits::default() }
}

fn pairs(text: &[(&str, &str)]) -> Vec<(String, String)> {
    text.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

type Answer = Result<Vec<(String, String)>, Status>;

fn ask(security: &mut Security, demand: &Demand, text: &[(&str, &str)]) -> Answer {
    let mut out = Vec::new();
    security.step(demand, &pairs(text), &mut out)?;
    Ok(text::parse(&out).unwrap())
}

fn value(answer: &[(String, String)], key: &str) -> String {
    answer.iter().find(|(name, _)| name == key).unwrap().1.clone()
}

/// A login up to our challenge; its identifier and bytes.
fn challenged(security: &mut Security, demand: &Demand, algorithms: &str) -> (u8, Vec<u8>) {
    let answer = ask(security, demand, &[("AuthMethod", "CHAP,None")]).unwrap();
    assert_eq!(answer, pairs(&[("AuthMethod", "CHAP")]));
    assert!(!security.is_done(demand));
    let answer = ask(security, demand, &[("CHAP_A", algorithms)]).unwrap();
    let challenge = binary(&value(&answer, "CHAP_C"), MAX_CHALLENGE_BYTES).unwrap();
    (value(&answer, "CHAP_I").parse().unwrap(), challenge)
}

fn response(algorithm: Algorithm, secret: &str, id: u8, challenge: &[u8]) -> Vec<u8> {
    let secret = Secret::new(Zeroizing::new(secret.to_owned())).unwrap();
    algorithm.response(id, &secret, challenge)
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::from("0b");
    for group in bytes.chunks(3) {
        let mut all = [0; 4];
        all[1..=group.len()].copy_from_slice(group);
        let bits = u32::from_be_bytes(all);
        for digit in 0..4 {
            let at = (bits >> (18 - 6 * digit)) & 63;
            out.push(if digit <= group.len() { DIGITS[at as usize] as char } else { '=' });
        }
    }
    out
}

#[test]
fn nobody_is_asked_where_nothing_is_demanded() {
    let (mut security, open) = (Security::default(), Demand::default());
    assert!(security.is_done(&open));
    let answer = ask(&mut security, &open, &[("AuthMethod", "CHAP,None")]).unwrap();
    assert_eq!(answer, pairs(&[("AuthMethod", "None")]));
    assert!(security.is_done(&open) && security.proof().is_none());
    let alone = ask(&mut Security::default(), &open, &[("AuthMethod", "CHAP")]);
    assert_eq!(alone, Err(Status::AUTHENTICATION));
}

#[test]
fn one_way_in_both_hashes_and_both_encodings() {
    for (list, algorithm) in [
        ("5", Algorithm::Md5),
        ("7,5", Algorithm::Sha256),
        ("42,5,7", Algorithm::Md5),
        ("0x7", Algorithm::Sha256),
        ("6,8,nonsense,5", Algorithm::Md5),
    ] {
        for encode in [hex as fn(&[u8]) -> String, base64] {
            let (mut security, demand) = (Security::default(), demand("alice", false));
            let (id, challenge) = challenged(&mut security, &demand, list);
            let right = encode(&response(algorithm, SECRET, id, &challenge));
            let keys = [("CHAP_N", "alice"), ("CHAP_R", &*right)];
            assert_eq!(ask(&mut security, &demand, &keys), Ok(Vec::new()));
            assert!(security.is_done(&demand) && !security.was_wrong_secret());
            assert_eq!(security.proof().unwrap().user, "alice");
        }
    }
}

#[test]
fn wrong_answers_are_refused_and_end_it() {
    let wrong = |user: &str, answer: &dyn Fn(u8, &[u8]) -> String| {
        let (mut security, demand) = (Security::default(), demand("alice", false));
        let (id, challenge) = challenged(&mut security, &demand, "5");
        let answer = answer(id, &challenge);
        let keys = [("CHAP_N", user), ("CHAP_R", &*answer)];
        assert_eq!(ask(&mut security, &demand, &keys), Err(Status::AUTHENTICATION));
        assert!(security.was_wrong_secret() && !security.is_done(&demand));
        // the same challenge is not judged twice, and nothing else leads on
        let right = hex(&response(Algorithm::Md5, SECRET, id, &challenge));
        let keys = [("CHAP_N", "alice"), ("CHAP_R", &*right)];
        assert!(ask(&mut security, &demand, &keys).is_err());
        assert!(ask(&mut security, &demand, &[("AuthMethod", "None")]).is_err());
        assert!(!security.is_done(&demand));
    };
    let right = |id: u8, challenge: &[u8]| hex(&response(Algorithm::Md5, SECRET, id, challenge));
    wrong("alice", &|id, c| hex(&response(Algorithm::Md5, "not the secret", id, c)));
    wrong("alice", &|id, c| hex(&response(Algorithm::Sha256, SECRET, id, c)));
    wrong("alice", &|id, c| hex(&response(Algorithm::Md5, SECRET, id.wrapping_add(1), c)));
    wrong("mallory", &right);
    wrong("Alice", &right);
    wrong("alice", &|id, c| right(id, c) + "00");
    wrong("alice", &|_, _| format!("0x{}", "00".repeat(4096)));
    wrong("alice", &|_, _| String::new());
    wrong("alice", &|_, _| "0b====".to_owned());
}

#[test]
fn algorithms_must_meet() {
    for list in ["", "6", "8", "MD5", "5x", "-5", "0b5"] {
        let (mut security, demand) = (Security::default(), demand("alice", false));
        ask(&mut security, &demand, &[("AuthMethod", "CHAP")]).unwrap();
        let answer = ask(&mut security, &demand, &[("CHAP_A", list)]);
        assert_eq!(answer, Err(Status::AUTHENTICATION), "{list}");
    }
}

#[test]
fn names_that_look_like_numbers_are_names() {
    for user in ["0xabcd", "0bYWJj", "0x", "user with spaces", "a=b"] {
        let (mut security, demand) = (Security::default(), demand(user, false));
        let (id, challenge) = challenged(&mut security, &demand, "5");
        let right = hex(&response(Algorithm::Md5, SECRET, id, &challenge));
        let keys = [("CHAP_N", user), ("CHAP_R", &*right)];
        assert!(ask(&mut security, &demand, &keys).is_ok(), "{user}");
    }
}

#[test]
fn mutual_both_prove_themselves() {
    let (mut security, demand) = (Security::default(), demand("alice", true));
    let (id, challenge) = challenged(&mut security, &demand, "7");
    let right = hex(&response(Algorithm::Sha256, SECRET, id, &challenge));
    let keys =
        [("CHAP_N", "alice"), ("CHAP_R", &*right), ("CHAP_I", "0x11"), ("CHAP_C", "0x000102")];
    let answer = ask(&mut security, &demand, &keys).unwrap();
    assert_eq!(value(&answer, "CHAP_N"), "target");
    let proof = hex(&response(Algorithm::Sha256, TARGET_SECRET, 0x11, &[0, 1, 2]));
    assert_eq!(value(&answer, "CHAP_R"), proof);
    assert!(security.is_done(&demand));
}

#[test]
fn mutual_is_refused_where_it_is_wrong() {
    type More<'a> = &'a dyn Fn(&[u8]) -> Vec<(&'static str, String)>;
    let refused = |mutual: bool, more: More| {
        let (mut security, demand) = (Security::default(), demand("alice", mutual));
        let (id, challenge) = challenged(&mut security, &demand, "5");
        let right = hex(&response(Algorithm::Md5, SECRET, id, &challenge));
        let more = more(&challenge);
        let mut keys = vec![("CHAP_N", "alice"), ("CHAP_R", &*right)];
        keys.extend(more.iter().map(|(key, value)| (*key, &**value)));
        let answer = ask(&mut security, &demand, &keys);
        assert!(!security.is_done(&demand) && !security.was_wrong_secret());
        answer.unwrap_err()
    };
    let challenge = |id: &str, value: String| vec![("CHAP_I", id.to_owned()), ("CHAP_C", value)];
    // our own challenge comes back
    assert_eq!(refused(true, &|c| challenge("1", hex(c))), Status::AUTHENTICATION);
    assert_eq!(refused(true, &|c| challenge("1", base64(c))), Status::AUTHENTICATION);
    // the target has nothing to prove itself by
    assert_eq!(refused(false, &|_| challenge("1", "0x01".into())), Status::AUTHENTICATION);
    for (id, value) in [
        ("256", "0x01".to_owned()),
        ("-1", "0x01".to_owned()),
        ("1", "0x".to_owned()),
        ("1", "01".to_owned()),
        ("1", format!("0x{}", "00".repeat(1025))),
    ] {
        let status = refused(true, &|_| challenge(id, value.clone()));
        assert_eq!(status, Status::INITIATOR_ERROR, "{id} {value:.20}");
    }
    let half = |_: &[u8]| vec![("CHAP_I", "1".to_owned())];
    assert_eq!(refused(true, &half), Status::INITIATOR_ERROR);
}

#[test]
fn keys_out_of_turn_are_refused() {
    let demand = demand("alice", false);
    for text in [
        &[("CHAP_A", "5")][..],
        &[("CHAP_N", "alice"), ("CHAP_R", "0x00")],
        &[("AuthMethod", "CHAP"), ("CHAP_A", "5")],
        &[("AuthMethod", "CHAP"), ("AuthMethod", "CHAP")],
    ] {
        let mut security = Security::default();
        assert_eq!(ask(&mut security, &demand, text), Err(Status::INITIATOR_ERROR), "{text:?}");
        assert!(!security.is_done(&demand));
    }
    let none = ask(&mut Security::default(), &demand, &[("AuthMethod", "None")]);
    assert_eq!(none, Err(Status::AUTHENTICATION));
}

#[test]
fn binary_values() {
    assert_eq!(binary("0xABcd1", 16), Some(vec![0x0A, 0xBC, 0xD1]));
    assert_eq!(binary("0bAQID", 16), Some(vec![1, 2, 3]));
    assert_eq!(binary("0bAQI=", 16), Some(vec![1, 2]));
    assert_eq!(binary("0bAQ==", 16), Some(vec![1]));
    for bytes in 1..40 {
        let value: Vec<u8> = (0..bytes).collect();
        assert_eq!(binary(&base64(&value), 64), Some(value.clone()));
        assert_eq!(binary(&hex(&value), 64), Some(value));
    }
    for bad in
        ["", "0", "0x", "0b", "0xg0", "0bA", "0bA===", "0bAQ=D", "0b=AAA", "12", "0y00", "é0x00"]
    {
        assert_eq!(binary(bad, 16), None, "{bad}");
    }
    assert_eq!(binary(&hex(&[0; 17]), 16), None);
}
