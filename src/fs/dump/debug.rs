//! On-disk structures as objects: read from what `{:#?}` prints of them, so that each field that
//! the layout declares is shown, and none has to be named twice.

use super::Object;

/// A structure with all its fields.
pub(super) fn object(name: impl Into<String>, value: &dyn std::fmt::Debug) -> Object {
    let text = format!("{value:#?}");
    let mut lines = text.lines().map(str::trim);
    let mut object = Object::new(name);
    match lines.next() {
        Some(first) if first.ends_with(['{', '(', '[']) => fill(&mut object, &mut lines),
        Some(first) => object.put("value", first),
        None => {}
    }
    object
}

/// Takes lines up to the one that closes this object.
fn fill<'a>(object: &mut Object, lines: &mut impl Iterator<Item = &'a str>) {
    let mut bare: Vec<String> = Vec::new();
    while let Some(line) = lines.next() {
        let line = line.trim_end_matches(',');
        if matches!(line, "}" | ")" | "]") {
            break;
        }
        let (name, value) = match line.split_once(": ") {
            Some((name, value)) => (name.to_string(), value),
            None => (String::new(), line),
        };
        if value.ends_with(['{', '(', '[']) && !value.ends_with("[]") {
            let mut part = Object::new(name);
            fill(&mut part, lines);
            object.take(part);
        } else if name.is_empty() {
            bare.push(value.to_string());
        } else {
            object.put(&name, value);
        }
    }
    if bare.is_empty() {
        return;
    }
    // A list: of bytes, as a hash is, in one word.
    let bytes: Option<String> =
        bare.iter().map(|b| b.parse::<u8>().ok().map(|b| format!("{b:02x}"))).collect();
    let text = match bytes {
        Some(hex) if bare.len() >= 8 => hex,
        _ => bare.join(" "),
    };
    object.put("", &text);
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
    }

    #[derive(Debug)]
    #[allow(dead_code)]
    struct Outer {
        inner: Inner,
        hash: [u8; 8],
        pairs: Vec<(u8, u8)>,
    }

    #[test]
    fn fields_are_found_at_every_depth() {
        let inner = Inner { a: 7, list: vec![1, 2], none: None };
        let outer = Outer { inner, hash: [0xAB; 8], pairs: vec![(3, 4)] };
        let text = object("outer", &outer).to_string();
        assert_eq!(
            text,
            "outer: hash abababababababab, pairs 3 4\n  inner: a 7, list 1 2, none None\n"
        );
    }
}
