//! On-disk structures as objects: read from what `{:#?}` prints of them, so that each field that
//! the layout declares is shown, and none has to be named twice.

use super::{Object, Value};
use crate::fs::types::Timestamp;

/// Fields that are nanoseconds since 1970.
const TIMES: [&str; 9] =
    ["created", "time", "started", "finished", "atime", "mtime", "ctime", "btime", "hold_until"];
/// Of these 0 says that there was or is no such time.
const OR_NEVER: [&str; 3] = ["started", "finished", "hold_until"];

/// A structure with all its fields.
pub(super) fn object(name: impl Into<String>, value: &dyn std::fmt::Debug) -> Object {
    let text = format!("{value:#?}");
    let mut lines = text.lines().map(str::trim);
    let mut object = Object::new(name);
    match lines.next() {
        Some(first) if first.ends_with(['{', '(', '[']) => fill(&mut object, &mut lines),
        Some(first) => object.put("value", read("value", first)),
        None => {}
    }
    object
}

/// Takes lines up to the one that closes this object.
fn fill<'a>(object: &mut Object, lines: &mut impl Iterator<Item = &'a str>) {
    while let Some(line) = lines.next() {
        let line = line.trim_end_matches(',');
        if matches!(line, "}" | ")" | "]") {
            break;
        }
        let (name, value) = match line.split_once(": ") {
            Some((name, value)) if !line.starts_with('"') => (name, value),
            _ => ("", line),
        };
        if value.ends_with(['{', '(', '[']) && !value.starts_with('"') {
            let mut part = Object::new(name);
            fill(&mut part, lines);
            object.take(part);
        } else {
            object.put(name, read(name, value));
        }
    }
    // Fields without names are a list.
    if !object.fields.is_empty() && object.fields.iter().all(|(name, _)| name.is_empty()) {
        let list = object.fields.drain(..).map(|(_, value)| value).collect();
        object.put("", listed(list));
    }
}

/// A list; one of bytes, as a hash is, in one word, and one value alone is that value.
fn listed(mut list: Vec<Value>) -> Value {
    let byte = |v: &Value| match v {
        Value::Number(n) => u8::try_from(*n).ok().map(|b| format!("{b:02x}")),
        _ => None,
    };
    let hex: Option<String> = list.iter().map(byte).collect();
    match (hex, list.len()) {
        (Some(hex), 8..) => Value::Text(hex),
        (_, 1) if matches!(list.first(), Some(Value::List(_))) => Value::List(list),
        (_, 1) => list.pop().unwrap_or(Value::Null),
        _ => Value::List(list),
    }
}

fn read(name: &str, text: &str) -> Value {
    if let Some(text) = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
        return Value::Text(unescaped(text));
    }
    let number = text.parse::<u64>();
    match (text, number) {
        ("None", _) => Value::Null,
        ("[]", _) => Value::List(Vec::new()),
        ("true", _) => Value::Bool(true),
        ("false", _) => Value::Bool(false),
        (_, Ok(0)) if OR_NEVER.contains(&name) => Value::Null,
        (_, Ok(n)) if TIMES.contains(&name) => {
            Value::Text(Timestamp(i64::try_from(n).unwrap_or(i64::MAX)).to_string())
        }
        (_, Ok(0)) if name == "redundancy" => Value::Text("none".into()),
        (_, Ok(1)) if name == "redundancy" => Value::Text("mirror".into()),
        (_, Ok(n)) => Value::Number(n),
        _ => Value::Text(text.to_string()),
    }
}

/// What `{:?}` has put between quotes.
fn unescaped(text: &str) -> String {
    let (mut out, mut chars) = (String::new(), text.chars());
    while let Some(c) = chars.next() {
        match (c, (c == '\\').then(|| chars.next()).flatten()) {
            ('\\', Some('n')) => out.push('\n'),
            ('\\', Some('t')) => out.push('\t'),
            ('\\', Some(other)) => out.push(other),
            (c, _) => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    #[allow(dead_code)]
    struct Inner {
        a: u32,
        list: Vec<u8>,
        none: Option<u8>,
        some: Option<u8>,
        path: &'static str,
        started: i64,
        created: i64,
    }

    #[derive(Debug)]
    #[allow(dead_code)]
    struct Outer {
        inner: Inner,
        hash: [u8; 8],
        pairs: Vec<(u8, u8)>,
        one: Vec<(u8, u8)>,
    }

    #[test]
    fn fields_are_found_at_every_depth() {
        let (list, path) = (vec![1, 2], "a \"b\": [");
        let inner =
            Inner { a: 7, list, none: None, some: Some(4), path, started: 0, created: 1 << 30 };
        let outer =
            Outer { inner, hash: [0xAB; 8], pairs: vec![(3, 4), (5, 6)], one: vec![(7, 8)] };
        let text = object("outer", &outer).to_string();
        assert_eq!(
            text,
            "outer: hash abababababababab, pairs [3 4] [5 6], one [7 8]\n  \
             inner: a 7, list 1 2, none -, some 4, path a \"b\": [, started -, \
             created 1970-01-01T00:00:01.073Z\n"
        );
    }
}
