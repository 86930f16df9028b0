//! The keys of a LUN's `attributes` file: what they may be, how they are read and shown.
//!
//! The file stores the settable keys but for `size` (the length of `data` is the one truth about
//! it). What a reader of the mount sees is rendered from that and from figures of the moment.

use super::error::{Error, Result};
use super::names::parse_size;
use crate::fs::{Timestamp, VolumeId};
use std::fmt::Write as _;
use toml::Value;

/// Longest text accepted for an `attributes` file, in bytes: some ten times what is ever rendered.
pub const MAX_ATTRIBUTES_TEXT_BYTES: usize = 65_536;
/// Largest `physical-exponent`: a physical block of 4096 × 2^8 = 1 MiB; SBC-4's field ends at 15.
const MAX_PHYSICAL_EXPONENT: u64 = 8;
/// SPC-4 standard INQUIRY: T10 VENDOR IDENTIFICATION.
const VENDOR_CHARS: usize = 8;
/// SPC-4 standard INQUIRY: PRODUCT IDENTIFICATION.
const PRODUCT_CHARS: usize = 16;
/// Longest serial number that VPD 80h and every client's tables take.
const SERIAL_CHARS: usize = 32;
/// SBC-4 MEDIUM ROTATION RATE: below this rates are reserved, but for 0 (not told) and 1 (none).
const MIN_ROTATION_RATE: u64 = 0x0401;
/// SBC-4 MEDIUM ROTATION RATE: FFFFh is reserved.
const MAX_ROTATION_RATE: u64 = 0xfffe;

/// Keys that nobody sets and whose value moves by itself: ignored in a text that is written back.
const MOVING_KEYS: [&str; 2] = ["used", "free"];
/// Keys that nobody sets.
const FIXED_KEYS: [&str; 4] = ["location", "redundancy", "created", "users"];
const SETTABLE_KEYS: &str =
    "size block-size physical-exponent access serial vendor product removable \
     read-only rotation-rate nbs-block-size write-through threshold quota";

/// Whether file writers and block writers exclude each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// One sort at a time: the lease.
    Exclusive,
    /// Both at once: the user runs a cluster-aware application.
    Shared,
}

impl Access {
    /// As `attributes` shows it.
    pub fn as_str(self) -> &'static str {
        match self {
            Access::Exclusive => "exclusive",
            Access::Shared => "shared",
        }
    }
}

/// The settable keys but for `size`, which is the length of `data`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `block-size`: 512 or 4096.
    pub block_bytes: u32,
    /// `physical-exponent`: log2 of logical blocks in a physical one.
    pub physical_exponent: u8,
    /// `access`.
    pub access: Access,
    /// `serial`: empty means one derived from pool and volume.
    pub serial: String,
    /// `vendor`: at most 8 characters.
    pub vendor: String,
    /// `product`: at most 16 characters.
    pub product: String,
    /// `removable`.
    pub removable: bool,
    /// `read-only`.
    pub read_only: bool,
    /// `rotation-rate`: SBC-4 medium rotation rate, 1 is solid state.
    pub rotation_rate: u16,
    /// `nbs-block-size`: 512, 4096 or 8192.
    pub nbs_block_bytes: u32,
    /// `write-through`.
    pub write_through: bool,
    /// `threshold`: percent of the capacity in use that is worth a warning; 0 is none.
    pub threshold_percent: u8,
    /// `quota`: most bytes of data the LUN may hold; 0 is none.
    pub quota_bytes: u64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            block_bytes: 512,
            physical_exponent: 3,
            access: Access::Exclusive,
            serial: String::new(),
            vendor: "LUNFS".to_owned(),
            product: "VIRTUAL-DISK".to_owned(),
            removable: false,
            read_only: false,
            rotation_rate: 1,
            nbs_block_bytes: 8192,
            write_through: false,
            threshold_percent: 0,
            quota_bytes: 0,
        }
    }
}

/// What `attributes` shows at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// The LUN's name.
    pub name: String,
    /// Its volume.
    pub volume: VolumeId,
    /// `size`: the length of `data`.
    pub size_bytes: u64,
    /// The other settable keys (`serial` filled in).
    pub settings: Settings,
    /// `used`: bytes that stand behind the LUN's files.
    pub used_bytes: u64,
    /// `free`: bytes free in the pool.
    pub free_bytes: u64,
    /// `location`: where the pool is.
    pub location: Vec<String>,
    /// `redundancy`: `none` or `mirror`.
    pub redundancy: String,
    /// `created`.
    pub created: Timestamp,
    /// `users`: who may attach it; empty while everybody may.
    pub users: Vec<String>,
}

/// Settings and size as they shall become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) settings: Settings,
    pub(super) size_bytes: u64,
}

/// A value as it was given: `KEY=VALUE` text, or TOML.
enum Given<'a> {
    Text(&'a str),
    Toml(&'a Value),
}

impl Wanted {
    /// One `KEY=VALUE`. Read-only and unknown keys are refused.
    pub(super) fn set(&mut self, key: &str, value: &str) -> Result<()> {
        self.apply(key, &Given::Text(value))
    }

    fn apply(&mut self, key: &str, value: &Given) -> Result<()> {
        let settings = &mut self.settings;
        match key {
            "size" => self.size_bytes = bytes(key, value)?,
            "block-size" => settings.block_bytes = one_of(key, value, &[512, 4096])?,
            "physical-exponent" => {
                settings.physical_exponent = number(key, value, 0, MAX_PHYSICAL_EXPONENT)?;
            }
            "access" => settings.access = access(key, value)?,
            "serial" => settings.serial = ascii(key, value, SERIAL_CHARS)?,
            "vendor" => settings.vendor = ascii(key, value, VENDOR_CHARS)?,
            "product" => settings.product = ascii(key, value, PRODUCT_CHARS)?,
            "removable" => settings.removable = boolean(key, value)?,
            "read-only" => settings.read_only = boolean(key, value)?,
            "rotation-rate" => settings.rotation_rate = rotation_rate(key, value)?,
            "nbs-block-size" => settings.nbs_block_bytes = one_of(key, value, &[512, 4096, 8192])?,
            "write-through" => settings.write_through = boolean(key, value)?,
            "threshold" => settings.threshold_percent = number(key, value, 0, 100)?,
            "quota" => settings.quota_bytes = bytes(key, value)?,
            _ if MOVING_KEYS.contains(&key) || FIXED_KEYS.contains(&key) => {
                return Err(bad(key, "it is read-only", "leave it out"));
            }
            _ => {
                let known = format!("settable keys: {SETTABLE_KEYS}");
                return Err(bad(&key.escape_debug().to_string(), "there is no such key", &known));
            }
        }
        Ok(())
    }
}

impl Attributes {
    /// What a text written to `attributes` asks for. Keys that are missing stay as they are;
    /// read-only ones may stand as they were shown, so that an edited copy of the whole file is
    /// accepted.
    pub(super) fn wanted_by(&self, text: &str) -> Result<Wanted> {
        let table = parse(text)?;
        let shown = parse(&self.to_toml())?;
        let mut wanted = Wanted { settings: self.settings.clone(), size_bytes: self.size_bytes };
        for (key, value) in &table {
            let moving = MOVING_KEYS.contains(&key.as_str()) && value.is_integer();
            let unchanged = FIXED_KEYS.contains(&key.as_str()) && shown.get(key) == Some(value);
            if !moving && !unchanged {
                wanted.apply(key, &Given::Toml(value))?;
            }
        }
        Ok(wanted)
    }

    /// The text of the mount's `attributes`.
    pub fn to_toml(&self) -> String {
        let mut out = format!("size = {}\n{}", self.size_bytes, self.settings.to_toml());
        let list = |items: &[String]| Value::from(items.to_vec()).to_string();
        out.push_str("\n# read-only from here on\n");
        let _ = writeln!(out, "used = {}", self.used_bytes);
        let _ = writeln!(out, "free = {}", self.free_bytes);
        let _ = writeln!(out, "location = {}", list(&self.location));
        let _ = writeln!(out, "redundancy = {}", quoted(&self.redundancy));
        let _ = writeln!(out, "created = {}", quoted(&rfc3339(self.created)));
        let _ = writeln!(out, "users = {}", list(&self.users));
        out
    }
}

impl Settings {
    /// What the `attributes` file stores.
    pub(super) fn to_toml(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "block-size = {}", self.block_bytes);
        let _ = writeln!(out, "physical-exponent = {}", self.physical_exponent);
        let _ = writeln!(out, "access = {}", quoted(self.access.as_str()));
        let _ = writeln!(out, "serial = {}", quoted(&self.serial));
        let _ = writeln!(out, "vendor = {}", quoted(&self.vendor));
        let _ = writeln!(out, "product = {}", quoted(&self.product));
        let _ = writeln!(out, "removable = {}", self.removable);
        let _ = writeln!(out, "read-only = {}", self.read_only);
        let _ = writeln!(out, "rotation-rate = {}", self.rotation_rate);
        let _ = writeln!(out, "nbs-block-size = {}", self.nbs_block_bytes);
        let _ = writeln!(out, "write-through = {}", self.write_through);
        let _ = writeln!(out, "threshold = {}", self.threshold_percent);
        let _ = writeln!(out, "quota = {}", self.quota_bytes);
        out
    }

    /// Reads what [`Settings::to_toml`] stored; keys that are missing have their defaults.
    pub(super) fn from_toml(text: &str) -> Result<Settings> {
        let mut wanted = Wanted { settings: Settings::default(), size_bytes: 0 };
        for (key, value) in &parse(text)? {
            wanted.apply(key, &Given::Toml(value))?;
        }
        Ok(wanted.settings)
    }
}

/// A time as the log and `attributes` show it.
pub fn rfc3339(time: Timestamp) -> String {
    match jiff::Timestamp::from_nanosecond(i128::from(time.0)) {
        Ok(time) => format!("{time:.3}"),
        Err(_) => "1970-01-01T00:00:00.000Z".to_owned(),
    }
}

fn parse(text: &str) -> Result<toml::Table> {
    if text.len() > MAX_ATTRIBUTES_TEXT_BYTES {
        return Err(Error::BadText("the text is longer than 64 KiB".to_owned()));
    }
    let first_line = |e: toml::de::Error| {
        let line = text.get(..e.span().map_or(0, |span| span.start)).map(|t| t.lines().count());
        let why = e.message().lines().next().unwrap_or("not TOML").to_owned();
        Error::BadText(format!("line {}: {why}", line.unwrap_or(0).max(1)))
    };
    text.parse::<toml::Table>().map_err(first_line)
}

fn bad(key: &str, why: &str, remedy: &str) -> Error {
    Error::BadSetting { key: key.to_owned(), why: why.to_owned(), remedy: remedy.to_owned() }
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn bytes(key: &str, value: &Given) -> Result<u64> {
    let size = match value {
        Given::Text(text) => parse_size(text),
        Given::Toml(Value::Integer(n)) => u64::try_from(*n).ok(),
        Given::Toml(Value::String(text)) => parse_size(text),
        Given::Toml(_) => None,
    };
    size.ok_or_else(|| bad(key, "the value is not a size", "give bytes, or a number with K M G T"))
}

fn number<T: TryFrom<u64>>(key: &str, value: &Given, min: u64, max: u64) -> Result<T> {
    let number = match value {
        Given::Text(text) => text.parse::<u64>().ok(),
        Given::Toml(Value::Integer(n)) => u64::try_from(*n).ok(),
        Given::Toml(_) => None,
    };
    let inside = number.filter(|n| (min..=max).contains(n)).and_then(|n| T::try_from(n).ok());
    inside.ok_or_else(|| bad(key, "the value is out of range", &format!("give {min} to {max}")))
}

fn one_of(key: &str, value: &Given, allowed: &[u32]) -> Result<u32> {
    let size = bytes(key, value).ok().and_then(|n| u32::try_from(n).ok());
    size.filter(|n| allowed.contains(n)).ok_or_else(|| {
        let names: Vec<String> = allowed.iter().map(u32::to_string).collect();
        bad(key, "the value is out of range", &format!("give one of {}", names.join(", ")))
    })
}

fn rotation_rate(key: &str, value: &Given) -> Result<u16> {
    let rate: Result<u16> = number(key, value, 0, MAX_ROTATION_RATE);
    rate.ok().filter(|r| *r <= 1 || u64::from(*r) >= MIN_ROTATION_RATE).ok_or_else(|| {
        bad(key, "the value is out of range", "give 0 (not told), 1 (solid state) or 1025 to 65534")
    })
}

fn boolean(key: &str, value: &Given) -> Result<bool> {
    match value {
        Given::Text("true" | "yes" | "on" | "1") | Given::Toml(Value::Boolean(true)) => Ok(true),
        Given::Text("false" | "no" | "off" | "0") | Given::Toml(Value::Boolean(false)) => Ok(false),
        _ => Err(bad(key, "the value is neither true nor false", "give true or false")),
    }
}

fn string<'a>(value: &'a Given) -> Option<&'a str> {
    match value {
        Given::Text(text) => Some(text),
        Given::Toml(value) => value.as_str(),
    }
}

fn access(key: &str, value: &Given) -> Result<Access> {
    match string(value) {
        Some("exclusive") => Ok(Access::Exclusive),
        Some("shared") => Ok(Access::Shared),
        _ => Err(bad(key, "the value is unknown", "give exclusive or shared")),
    }
}

fn ascii(key: &str, value: &Given, max_chars: usize) -> Result<String> {
    let printable = |text: &&str| text.bytes().all(|b| (0x20..0x7f).contains(&b));
    match string(value).filter(printable) {
        Some(text) if text.len() <= max_chars => Ok(text.to_owned()),
        _ => {
            let remedy = format!("give at most {max_chars} printable ASCII characters");
            Err(bad(key, "the value does not fit its field", &remedy))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown() -> Attributes {
        Attributes {
            name: "vm1".into(),
            volume: VolumeId(17),
            size_bytes: 1 << 30,
            settings: Settings { serial: "0123abcd".into(), ..Settings::default() },
            used_bytes: 4096,
            free_bytes: 1 << 20,
            location: vec!["pool \"x\".img".into()],
            redundancy: "none".into(),
            created: Timestamp(1_795_226_400_000_000_000),
            users: Vec::new(),
        }
    }

    #[test]
    fn what_is_shown_may_be_written_back() {
        let shown = shown();
        let text = shown.to_toml();
        let wanted = shown.wanted_by(&text).unwrap();
        assert_eq!(wanted, Wanted { settings: shown.settings.clone(), size_bytes: 1 << 30 });
        let moved = text.replace("used = 4096", "used = 8192");
        assert!(shown.wanted_by(&moved).is_ok());
    }

    #[test]
    fn a_part_is_enough() {
        let wanted = shown().wanted_by("size = \"2G\"\nread-only = true\n").unwrap();
        assert_eq!(wanted.size_bytes, 2 << 30);
        assert!(wanted.settings.read_only);
        assert_eq!(wanted.settings.serial, "0123abcd");
    }

    #[test]
    fn bad_texts_are_refused() {
        let attributes = shown();
        for text in [
            "sise = 1",
            "size = -1",
            "size = [1]",
            "size",
            "size = 1\nsize = 2",
            "block-size = 513",
            "physical-exponent = 9",
            "access = \"both\"",
            "serial = 17",
            "vendor = \"ninechars\"",
            "product = \"é\"",
            "removable = 1",
            "rotation-rate = 1000",
            "rotation-rate = 65535",
            "nbs-block-size = 1024",
            "threshold = 101",
            "quota = true",
            "used = \"x\"",
            "redundancy = \"mirror\"",
            "created = \"2020-01-01T00:00:00Z\"",
            "users = [\"me\"]",
            "[table]\nx = 1",
            "\u{0}",
        ] {
            assert!(attributes.wanted_by(text).is_err(), "{text}");
        }
        let long = format!("# {}", "x".repeat(MAX_ATTRIBUTES_TEXT_BYTES));
        assert!(attributes.wanted_by(&long).is_err());
    }

    /// Whatever is written, it is accepted whole or refused in at most three lines.
    #[test]
    fn mutated_texts_never_panic() {
        let attributes = shown();
        let text = attributes.to_toml().into_bytes();
        let mut seed = 1_u64;
        let mut next = |below: usize| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % below
        };
        for _ in 0..20_000 {
            let mut mutant = text.clone();
            for _ in 0..=next(4) {
                let at = next(mutant.len());
                match next(3) {
                    0 => mutant[at] = next(256) as u8,
                    1 => drop(mutant.remove(at)),
                    _ => mutant.insert(at, b"=\"[]#\n'9-\xff"[next(10)]),
                }
            }
            let mutant = String::from_utf8_lossy(&mutant);
            if let Err(error) = attributes.wanted_by(&mutant) {
                assert!(error.to_string().lines().count() <= 3, "{error}");
            }
        }
    }

    #[test]
    fn settings_survive_their_file() {
        let mut wanted = Wanted { settings: Settings::default(), size_bytes: 0 };
        for (key, value) in [
            ("size", "20G"),
            ("block-size", "4K"),
            ("physical-exponent", "0"),
            ("access", "shared"),
            ("serial", "a \"quoted\" \\ one"),
            ("removable", "on"),
            ("write-through", "true"),
            ("rotation-rate", "7200"),
            ("threshold", "80"),
            ("quota", "5M"),
        ] {
            wanted.set(key, value).unwrap();
        }
        assert_eq!(wanted.size_bytes, 20 << 30);
        let stored = wanted.settings.to_toml();
        assert_eq!(Settings::from_toml(&stored).unwrap(), wanted.settings);
        assert_eq!(Settings::from_toml("").unwrap(), Settings::default());
        assert!(wanted.set("used", "1").is_err());
        assert!(wanted.set("nonsense", "1").is_err());
    }

    #[test]
    fn errors_have_three_lines_at_most() {
        let error = shown().wanted_by("a = 1\nb = \n").unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
        assert!(error.to_string().lines().count() <= 3);
        assert!(shown().wanted_by("x = 1").unwrap_err().to_string().lines().count() <= 3);
    }

    #[test]
    fn times() {
        assert_eq!(rfc3339(Timestamp(0)), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(Timestamp(1_795_226_400_123_456_789)), "2026-11-21T02:00:00.123Z");
    }
}
