//! What people read on the terminal: tables, and the same facts as the JSON has.
//!
//! Writing to a terminal or pipe that has gone is no error of the command: nothing here panics.

pub use crate::control::report::{bytes_text, count_text};
use crate::server::Ready;
use serde_json::Value;
use std::io::{self, Write};

/// Writes a line to standard output; who does not listen misses it.
pub fn line(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n"));
    let _ = out.flush();
}

/// Writes a line to standard error.
pub fn error_line(text: &str) {
    let mut out = io::stderr().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n"));
}

/// A JSON answer.
pub fn json(value: &Value) {
    line(&serde_json::to_string_pretty(value).unwrap_or_default());
}

/// The server is ready: for each LUN what is pasted to reach it, then the word.
pub fn ready(ready: &Ready, as_json: bool) {
    if as_json {
        return line(&ready.to_json().to_string());
    }
    for warning in &ready.warnings {
        error_line(&format!("warning: {warning}"));
    }
    for (lun, lines) in &ready.luns {
        for text in lines {
            line(&format!("{lun}: {text}"));
        }
    }
    line("ready");
}

/// A value as people read it; `key` says what it is.
pub fn value_text(key: &str, value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => "no".into(),
        Value::Number(number) => match number.as_u64() {
            Some(bytes) if key.ends_with("_bytes") => bytes_text(bytes),
            Some(seconds) if key.ends_with("_seconds") => seconds_text(seconds),
            _ => number.to_string(),
        },
        Value::String(text) => text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect(),
        Value::Array(items) if items.is_empty() => "-".into(),
        Value::Array(items) => {
            items.iter().map(|item| value_text(key, item)).collect::<Vec<_>>().join(", ")
        }
        Value::Object(fields) => {
            let field =
                |(key, value): (&String, &Value)| format!("{key} {}", value_text(key, value));
            fields.iter().map(field).collect::<Vec<_>>().join(" ")
        }
    }
}

/// `15m`, as it is given too.
fn seconds_text(seconds: u64) -> String {
    let units = [(604_800, 'w'), (86_400, 'd'), (3600, 'h'), (60, 'm')];
    let whole = units.iter().find(|(unit, _)| seconds > 0 && seconds % unit == 0);
    let (unit, letter) = whole.copied().unwrap_or((1, 's'));
    format!("{}{letter}", seconds / unit)
}

/// `size_bytes` is read as `size`.
fn label(key: &str) -> String {
    let bare = key.strip_suffix("_bytes").or_else(|| key.strip_suffix("_seconds"));
    bare.unwrap_or(key).replace('_', " ")
}

/// One thing, a line for each of its facts.
pub fn facts(object: &Value) {
    let Some(fields) = object.as_object() else { return line(&value_text("", object)) };
    let width = fields.keys().map(|key| label(key).len()).max().unwrap_or(0);
    for (key, value) in fields {
        let items: &[Value] = match value {
            Value::Array(items) if items.iter().all(|item| !item.is_number()) => items,
            _ => std::slice::from_ref(value),
        };
        let name = label(key);
        if items.is_empty() {
            line(&format!("{name:width$}  -"));
        }
        for item in items {
            line(&format!("{name:width$}  {}", value_text(key, item)));
        }
    }
}

/// Many things, a line each with some of their facts; `none` where there are none.
pub fn table(rows: &[Value], columns: &[&str], none: &str) {
    if rows.is_empty() {
        return line(none);
    }
    let titles = columns.iter().map(|key| label(key).to_uppercase()).collect();
    let mut cells: Vec<Vec<String>> = vec![titles];
    for row in rows {
        let cell = |key: &&str| row.get(*key).map_or_else(String::new, |v| value_text(key, v));
        cells.push(columns.iter().map(cell).collect());
    }
    let width = |column: usize| {
        cells.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    for row in &cells {
        let padded = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        line(padded.collect::<Vec<_>>().join("  ").trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sizes_are_readable() {
        assert_eq!(bytes_text(0), "0 B");
        assert_eq!(bytes_text(1536), "1.5 KiB");
        assert_eq!(bytes_text(20 << 30), "20.0 GiB");
        assert_eq!(bytes_text((1 << 30) - 1), "1.0 GiB");
        assert_eq!(bytes_text(u64::MAX), "16384.0 PiB");
    }

    #[test]
    fn values_are_readable_and_harmless() {
        assert_eq!(value_text("size_bytes", &json!(4096)), "4.0 KiB");
        assert_eq!(value_text("count", &json!(4096)), "4096");
        for (seconds, text) in [(0, "0s"), (90, "90s"), (900, "15m"), (7200, "2h"), (86_400, "1d")]
        {
            assert_eq!(value_text("every_seconds", &json!(seconds)), text);
        }
        assert_eq!(label("every_seconds"), "every");
        assert_eq!(value_text("x", &json!("a\u{1b}[31m")), "a [31m");
        assert_eq!(value_text("x", &json!([])), "-");
        assert_eq!(value_text("x", &json!({ "state": "idle", "ok": true })), "state idle ok yes");
    }
}
