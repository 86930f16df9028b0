//! Words of the command line and of the config file.

use crate::lun::parse_size;
use crate::server::Listen;
use serde::{Deserialize, Deserializer};
use std::net::{SocketAddr, ToSocketAddrs};

/// Default port of iSCSI (RFC 7143 §14).
pub const ISCSI_PORT: u16 = 3260;
/// Default port of NBD (IANA).
pub const NBD_PORT: u16 = 10809;

/// Default port of NBS.
pub const NBS_PORT: u16 = 10900;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Size, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Bytes(u64),
            Text(String),
        }
        match Either::deserialize(from) {
            Ok(Either::Bytes(bytes)) => Ok(Size(bytes)),
            Ok(Either::Text(text)) => size(&text).map_err(serde::de::Error::custom),
            Err(_) => Err(serde::de::Error::custom(NOT_A_SIZE)),
        }
    }
}

const NOT_A_SIZE: &str = "not a size: give bytes, or a number followed by K, M, G or T";

/// `4096`, `20G`.
pub fn size(text: &str) -> Result<Size, String> {
    parse_size(text).map(Size).ok_or_else(|| NOT_A_SIZE.to_string())
}

/// `KEY=VALUE`.
pub fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("not of the form KEY=VALUE")?;
    if key.is_empty() {
        return Err("the key before = is missing".into());
    }
    Ok((key.to_string(), value.to_string()))
}

/// The name of a share: one that smb.conf and Windows take.
pub fn share_name(text: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.$ ".contains(c);
    if text.is_empty() || text.len() > 80 || text.trim() != text || !text.chars().all(good) {
        return Err("give at most 80 letters, digits, and - _ . $ between them".into());
    }
    Ok(text.to_string())
}

/// A host or network as NFS servers name them: an address, a network, a name, `*`.
pub fn host(text: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.:/*?@[]".contains(c);
    if text.is_empty() || !text.chars().all(good) {
        return Err("not a host, network or name".into());
    }
    Ok(text.to_string())
}

/// `NAME` or `NAME:rw`: for reading and writing; `NAME:ro`: for reading.
pub fn allowed(text: &str) -> Result<(String, bool), String> {
    match text.split_once(':') {
        None => Ok((text.to_string(), true)),
        Some((name, "rw")) => Ok((name.to_string(), true)),
        Some((name, "ro")) => Ok((name.to_string(), false)),
        Some(_) => Err("not of the form NAME or NAME:ro".into()),
    }
}

/// `NAME=SIZE`.
pub fn quota(text: &str) -> Result<(String, u64), String> {
    let (name, limit) = key_value(text).map_err(|_| "not of the form NAME=SIZE")?;
    size(&limit).map(|limit| (name, limit.0))
}

/// `NAME@SNAP`.
pub fn snapshot(text: &str) -> Result<String, String> {
    match text.split_once('@') {
        Some((name, snapshot)) if !name.is_empty() && !snapshot.is_empty() => Ok(text.to_owned()),
        _ => Err("not of the form NAME@SNAP".into()),
    }
}

const NOT_A_DURATION: &str = "not a duration: give a number followed by s, m, h, d or w";

/// `30s`, `15m`, `4h`, `1d`, `1w`: seconds.
pub fn duration(text: &str) -> Result<u64, String> {
    let unit_at = text.len().saturating_sub(1);
    let (number, unit) = text.split_at_checked(unit_at).ok_or(NOT_A_DURATION)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 7 * 86_400,
        _ => return Err(NOT_A_DURATION.into()),
    };
    let number: u64 = number.parse().map_err(|_| NOT_A_DURATION)?;
    number.checked_mul(seconds).filter(|total| *total > 0).ok_or(NOT_A_DURATION.into())
}

/// A time to come: RFC 3339, or a duration from now. As RFC 3339.
pub fn time(text: &str) -> Result<String, String> {
    if text.parse::<jiff::Timestamp>().is_ok() {
        return Ok(text.to_owned());
    }
    let not_a_time = "not a time: give for example 2027-01-31T00:00:00Z, or 30d from now";
    let seconds = duration(text).ok().and_then(|seconds| i64::try_from(seconds).ok());
    let seconds = jiff::SignedDuration::from_secs(seconds.ok_or(not_a_time)?);
    let time = jiff::Timestamp::now().checked_add(seconds).map_err(|_| not_a_time)?;
    Ok(format!("{time:.0}"))
}

/// `HOST:PORT`, `HOST`, `:PORT`, `PORT` or nothing: what is missing is loopback and the default
/// port.
pub fn tcp(text: &str, default_port: u16) -> Result<SocketAddr, String> {
    let (host, port) = split_address(text, default_port)?;
    let host = if host.is_empty() { "127.0.0.1" } else { host };
    let mut found = (host, port).to_socket_addrs().map_err(|e| {
        format!(
            "'{text}' is not an address: {e}; give HOST:PORT (a pool's PATH stands before doors)"
        )
    })?;
    found.next().ok_or_else(|| format!("'{text}' names no address"))
}

/// As [`tcp`], or `unix:PATH`.
pub fn tcp_or_unix(text: &str, default_port: u16) -> Result<Listen, String> {
    match text.strip_prefix("unix:") {
        Some("") => Err("unix: needs a path".into()),
        Some(path) => Ok(Listen::Unix(path.into())),
        None => tcp(text, default_port).map(Listen::Tcp),
    }
}

fn split_address(text: &str, default_port: u16) -> Result<(&str, u16), String> {
    if let Ok(port) = text.parse::<u16>() {
        return Ok(("", port));
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (host, port) = rest.split_once(']').ok_or("a bracket is not closed")?;
        return Ok((host, port_of(port.strip_prefix(':').unwrap_or(port), default_port)?));
    }
    match text.rsplit_once(':') {
        // More than one colon and no bracket: an IPv6 address without a port.
        Some((host, _)) if host.contains(':') => Ok((text, default_port)),
        Some((host, port)) => Ok((host, port_of(port, default_port)?)),
        None => Ok((text, default_port)),
    }
}

fn port_of(text: &str, default_port: u16) -> Result<u16, String> {
    if text.is_empty() {
        return Ok(default_port);
    }
    text.parse().map_err(|_| format!("'{text}' is not a port: 0 to 65535"))
}

/// `HOST` or `HOST:PORT` as clients shall be told it.
pub fn advertised(text: &str) -> Result<(), String> {
    let (host, _) = split_address(text, ISCSI_PORT)?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%');
    if host.is_empty() || !host.chars().all(allowed) {
        return Err(format!("'{text}' is not an address to advertise: give HOST or HOST:PORT"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, expected) in [
            ("", "127.0.0.1:3260"),
            (":17", "127.0.0.1:17"),
            ("17", "127.0.0.1:17"),
            ("0.0.0.0", "0.0.0.0:3260"),
            ("127.0.0.2:0", "127.0.0.2:0"),
            ("[::1]:17", "[::1]:17"),
            ("[::1]", "[::1]:3260"),
            ("::1", "[::1]:3260"),
        ] {
            assert_eq!(tcp(text, ISCSI_PORT).unwrap().to_string(), expected, "{text}");
        }
        for text in ["127.0.0.1:99999", "[::1", "127.0.0.1:x", "/srv/pool.lunfs"] {
            assert!(tcp(text, ISCSI_PORT).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_and_times() {
        for (text, seconds) in [("30s", 30), ("15m", 900), ("4h", 14_400), ("2w", 1_209_600)] {
            assert_eq!(duration(text), Ok(seconds));
        }
        for text in ["", "s", "15", "1.5h", "-1m", "0s", "1é", "99999999999999999999w"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert_eq!(time("2027-01-31T00:00:00Z").unwrap(), "2027-01-31T00:00:00Z");
        assert!(time("30d").unwrap().ends_with('Z'));
        assert!(time("tomorrow").is_err() && time("9999999w").is_err());
    }

    #[test]
    fn names_of_snapshots() {
        assert_eq!(snapshot("/@a:b").unwrap(), "/@a:b");
        for text in ["vm1", "@a", "vm1@", ""] {
            assert!(snapshot(text).is_err(), "{text}");
        }
    }

    #[test]
    fn unix_sockets() {
        assert_eq!(tcp_or_unix("unix:/n", NBD_PORT).unwrap(), Listen::Unix("/n".into()));
        assert!(tcp_or_unix("unix:", NBD_PORT).is_err());
        let tcp = tcp_or_unix("", NBD_PORT).unwrap();
        assert_eq!(tcp, Listen::Tcp("127.0.0.1:10809".parse().unwrap()));
    }

    #[test]
    fn names_to_advertise() {
        for text in ["san.example", "10.0.2.2:99", "fe80::1", "[fe80::1]:99"] {
            assert!(advertised(text).is_ok(), "{text}");
        }
        for text in ["", "a b", "x,y", "a/b", "h:99999"] {
            assert!(advertised(text).is_err(), "{text}");
        }
    }

    #[test]
    fn words_that_go_into_configurations_stay_within_their_place() {
        assert!(share_name("luns$").is_ok() && host("10.0.0.0/24").is_ok() && host("*").is_ok());
        for text in ["", "a]\n[b", " a", "a/b"] {
            assert!(share_name(text).is_err(), "{text}");
        }
        for text in ["", "a(rw)", "a b", "a;b"] {
            assert!(host(text).is_err(), "{text}");
        }
    }

    #[test]
    fn keys_and_values() {
        let pair = |a: &str, b: &str| (a.to_string(), b.to_string());
        assert_eq!(key_value("serial=a=b").unwrap(), pair("serial", "a=b"));
        assert_eq!(key_value("serial=").unwrap(), pair("serial", ""));
        assert!(key_value("=x").is_err());
        assert!(key_value("x").is_err());
    }
}
