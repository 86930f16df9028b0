//! Text keys (RFC 7143 §6.1): `key=value` pairs, each ended by a zero byte.

/// Longest key name (RFC 7143 §6.1).
const MAX_KEY_BYTES: usize = 63;
/// Most bytes of keys in one negotiation, over all continued PDUs; a login needs far less.
pub const MAX_TEXT_BYTES: usize = 16 << 10;
/// Most keys in one negotiation.
const MAX_PAIRS: usize = 128;

/// Why text cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// No `=`, a bad key name, or not ASCII/UTF-8.
    #[error("malformed key=value pair")]
    Malformed,
    /// More than [`MAX_TEXT_BYTES`] or too many pairs.
    #[error("too much text in one negotiation")]
    TooLong,
}

/// Splits a whole text into its pairs, in order.
pub fn parse(text: &[u8]) -> Result<Vec<(String, String)>, TextError> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(TextError::TooLong);
    }
    let mut pairs = Vec::new();
    for item in text.split(|&byte| byte == 0).filter(|item| !item.is_empty()) {
        if pairs.len() == MAX_PAIRS {
            return Err(TextError::TooLong);
        }
        let item = std::str::from_utf8(item).map_err(|_| TextError::Malformed)?;
        let (key, value) = item.split_once('=').ok_or(TextError::Malformed)?;
        if !is_key(key) {
            return Err(TextError::Malformed);
        }
        pairs.push((key.to_owned(), value.to_owned()));
    }
    Ok(pairs)
}

fn is_key(key: &str) -> bool {
    let first = key.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic());
    let rest = |byte: u8| byte.is_ascii_alphanumeric() || b".-+@_#".contains(&byte);
    first && key.len() <= MAX_KEY_BYTES && key.bytes().all(rest)
}

/// Appends one pair.
pub fn put(out: &mut Vec<u8>, key: &str, value: &str) {
    out.extend_from_slice(key.as_bytes());
    out.push(b'=');
    out.extend_from_slice(value.as_bytes());
    out.push(0);
}

/// A number as iSCSI writes it: decimal or 0x hexadecimal (RFC 7143 §6.1).
pub fn number(value: &str) -> Option<u32> {
    match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(digits) if digits.starts_with('+') => None,
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None if value.starts_with('+') => None,
        None => value.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_keep_their_order_and_values_may_hold_equal_signs() {
        let pairs = parse(b"A=1\0B=x=y\0\0C=\0");
        let expect = [("A", "1"), ("B", "x=y"), ("C", "")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(pairs, Ok(expect.to_vec()));
    }

    #[test]
    fn malformed_text_is_refused() {
        for text in [&b"novalue\0"[..], b"=x\0", b"9a=1\0", b"a b=1\0", b"A=\xFF\0"] {
            assert_eq!(parse(text), Err(TextError::Malformed));
        }
        assert_eq!(parse(&b"A=1\0".repeat(200)), Err(TextError::TooLong));
    }

    #[test]
    fn numbers_are_decimal_or_hexadecimal() {
        assert_eq!(number("262144"), Some(262_144));
        assert_eq!(number("0x10"), Some(16));
        assert_eq!(
            (number("+1"), number("-1"), number("0x+1"), number("")),
            (None, None, None, None)
        );
        assert_eq!(number("99999999999"), None);
    }
}
