//! CHAP (RFC 1994; RFC 7143 §12.1.3): what one side sends, what the other must answer.
//!
//! Invariant: a [`Challenge`] is used up by the one answer that is checked against it.

use super::secret::Secret;
use md5::{Digest, Md5};
use sha2::Sha256;
use subtle::ConstantTimeEq;

/// Bytes of our challenges: 256 random bits never come twice.
pub const CHALLENGE_BYTES: usize = 32;
/// Longest challenge we answer (RFC 7143 §12.1.3: a binary value has at most 1024 bytes).
pub const MAX_CHALLENGE_BYTES: usize = 1024;

/// A hash, by its number in IANA's registry "PPP Authentication Algorithms".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Algorithm {
    /// MD5 (RFC 1994): every initiator has it.
    Md5 = 5,
    /// SHA-256.
    Sha256 = 7,
}

impl Algorithm {
    /// By its number.
    pub const fn of(number: u32) -> Option<Algorithm> {
        match number {
            5 => Some(Algorithm::Md5),
            7 => Some(Algorithm::Sha256),
            _ => None,
        }
    }

    /// Its number.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// Bytes of a response.
    pub const fn response_bytes(self) -> usize {
        match self {
            Algorithm::Md5 => 16,
            Algorithm::Sha256 => 32,
        }
    }

    /// The response: a hash over identifier, secret and challenge (RFC 1994 §4.1).
    pub fn response(self, id: u8, secret: &Secret, challenge: &[u8]) -> Vec<u8> {
        fn hash<D: Digest>(id: u8, secret: &Secret, challenge: &[u8]) -> Vec<u8> {
            let hash = D::new().chain_update([id]).chain_update(secret.bytes());
            hash.chain_update(challenge).finalize().to_vec()
        }
        match self {
            Algorithm::Md5 => hash::<Md5>(id, secret, challenge),
            Algorithm::Sha256 => hash::<Sha256>(id, secret, challenge),
        }
    }
}

/// A challenge that was sent and is not answered yet.
#[derive(Debug)]
pub struct Challenge {
    algorithm: Algorithm,
    id: u8,
    value: Vec<u8>,
}

impl Challenge {
    /// A fresh one. `None` where the system has no random numbers: nobody can be let in then.
    pub fn new(algorithm: Algorithm) -> Option<Challenge> {
        let (mut id, mut value) = ([0], vec![0; CHALLENGE_BYTES]);
        getrandom::fill(&mut id).and_then(|()| getrandom::fill(&mut value)).ok()?;
        Some(Challenge { algorithm, id: id[0], value })
    }

    /// A given one, for worked examples.
    pub fn fixed(algorithm: Algorithm, id: u8, value: Vec<u8>) -> Challenge {
        Challenge { algorithm, id, value }
    }

    /// The hash it is to be answered with.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Its identifier.
    pub fn id(&self) -> u8 {
        self.id
    }

    /// Its bytes.
    pub fn value(&self) -> &[u8] {
        &self.value
    }

    /// Whether this is the response that the secret makes; compared in constant time.
    pub fn is_answered_by(&self, secret: &Secret, response: &[u8]) -> bool {
        let expected = self.algorithm.response(self.id, secret, &self.value);
        expected.as_slice().ct_eq(response).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zeroize::Zeroizing;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn secret(text: &str) -> Secret {
        Secret::new(Zeroizing::new(text.to_owned())).unwrap()
    }

    /// Computed with Python: hashlib.md5(bytes([id]) + secret + challenge).hexdigest().
    #[test]
    fn worked_examples() {
        let challenge: Vec<u8> = (0..16).collect();
        let secret = secret("a secret of 24 bytes ...");
        let answer = |algorithm: Algorithm, id| hex(&algorithm.response(id, &secret, &challenge));
        assert_eq!(answer(Algorithm::Md5, 1), "346f0e2c7ae1108d5b69e3589028f891");
        assert_eq!(answer(Algorithm::Md5, 255), "d113c7615578e09b2317455669746624");
        let sha256 = "178b701e1c97a1e7c854ebd955accd492399780a830b2183084ae0a949354505";
        assert_eq!(answer(Algorithm::Sha256, 1), sha256);
    }

    #[test]
    fn only_the_right_answer_is_taken() {
        let secret = secret("twelve bytes");
        for algorithm in [Algorithm::Md5, Algorithm::Sha256] {
            let challenge = Challenge::new(algorithm).unwrap();
            let mut answer = algorithm.response(challenge.id(), &secret, challenge.value());
            assert_eq!(answer.len(), algorithm.response_bytes());
            assert!(challenge.is_answered_by(&secret, &answer));
            assert!(!challenge.is_answered_by(&self::secret("twelve bytez"), &answer));
            answer.push(0);
            assert!(!challenge.is_answered_by(&secret, &answer));
            answer.truncate(1);
            assert!(!challenge.is_answered_by(&secret, &answer));
            assert!(!challenge.is_answered_by(&secret, &[]));
        }
    }

    #[test]
    fn no_challenge_comes_twice() {
        let values: std::collections::HashSet<Vec<u8>> =
            (0..1000).map(|_| Challenge::new(Algorithm::Md5).unwrap().value).collect();
        assert_eq!(values.len(), 1000);
    }

    #[test]
    fn numbers_are_those_of_iana() {
        assert_eq!(
            [5, 6, 7, 8].map(Algorithm::of).map(|a| a.is_some()),
            [true, false, true, false]
        );
    }
}
