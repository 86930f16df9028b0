//! Just enough reading of Rust source for the house rules: comments and literals blanked out,
//! functions measured, test code told apart, paths that begin at the crate's root found. It is no
//! parser: it relies on the code being formatted by rustfmt.

use std::collections::BTreeSet;
use std::path::Path;

/// A file of the project.
pub struct Source {
    /// Path from the project's root, with `/`.
    pub name: String,
    /// The text as it is.
    pub text: String,
    /// The text with comments, strings and characters replaced by spaces; lines are kept.
    pub code: String,
}

impl Source {
    /// Reads a file; `None` where it is no text.
    pub fn read(root: &Path, path: &Path) -> Option<Source> {
        let text = std::fs::read_to_string(path).ok()?;
        let name = path.strip_prefix(root).ok()?.to_string_lossy().replace('\\', "/");
        Some(Source::new(&name, &text))
    }

    /// A file with this text.
    pub fn new(name: &str, text: &str) -> Source {
        let code = if name.ends_with(".rs") { blank_out(text) } else { String::new() };
        Source { name: name.to_owned(), text: text.to_owned(), code }
    }

    /// The folder (or file) of `src/` it belongs to; `None` for `lib.rs` and `main.rs`.
    pub fn layer(&self) -> Option<&str> {
        let first = self.name.strip_prefix("src/")?.split('/').next()?;
        let layer = first.strip_suffix(".rs").unwrap_or(first);
        (layer != "lib" && layer != "main").then_some(layer)
    }

    /// A module that only exists in tests: `tests.rs`, or a file in a folder `tests`.
    pub fn is_test_module(&self) -> bool {
        self.name.ends_with("/tests.rs")
            || self.name.ends_with("_tests.rs")
            || self.name.contains("/tests/")
    }

    /// The files that its `mod name;` lines stand for, in both of the places they may have, and
    /// those that a `#[path]` names.
    pub fn declared_modules(&self) -> Vec<String> {
        let here = self.name.rsplit_once('/').map_or("", |(dir, _)| dir);
        let by_path = self.text.lines().filter_map(|line| {
            let path = line.trim().strip_prefix("#[path = \"")?.strip_suffix("\"]")?;
            Some(format!("{here}/{path}"))
        });
        let folder = match self.name.rsplit_once('/') {
            Some((dir, "lib.rs" | "main.rs" | "mod.rs")) => dir.to_owned(),
            _ => self.name.trim_end_matches(".rs").to_owned(),
        };
        let declared = self.code.lines().filter_map(|line| {
            let (before, after) = line.split_once("mod ")?;
            let plain = before.trim().is_empty() || before.trim().starts_with("pub");
            after.trim().strip_suffix(';').filter(|_| plain)
        });
        declared
            .flat_map(|m| [format!("{folder}/{m}.rs"), format!("{folder}/{m}/mod.rs")])
            .chain(by_path)
            .collect()
    }

    /// (line, first name) of every path from the crate's root: `crate::x`, `crate::{x, y}`, and as
    /// many `super::` as lead there.
    pub fn crate_paths(&self) -> Vec<(usize, String)> {
        let climb = "super::".repeat(self.depth());
        let mut found = Vec::new();
        for prefix in ["crate::", climb.as_str()] {
            for (at, _) in self.code.match_indices(prefix) {
                let longer = self.code[..at].ends_with("super::");
                let part = self.code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
                if longer || part {
                    continue;
                }
                let line = self.code[..at].matches('\n').count() + 1;
                let rest = &self.code[at + prefix.len()..];
                found.extend(first_names(rest).into_iter().map(|name| (line, name)));
            }
        }
        found
    }

    /// How many `super::` lead from this file to the crate's root.
    fn depth(&self) -> usize {
        let inner = self.name.trim_start_matches("src/");
        inner.matches('/').count() + usize::from(!inner.ends_with("mod.rs"))
    }
}

/// The names a path may go on with: one, or those of a brace group at its first level.
fn first_names(rest: &str) -> Vec<String> {
    let ident = |s: &str| s.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    let Some(group) = rest.strip_prefix('{') else {
        return vec![ident(rest)];
    };
    let mut depth = 0;
    let mut names = Vec::new();
    let mut start = 0;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                names.push(ident(group[start..at].trim_start()));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    names.retain(|name: &String| !name.is_empty());
    names
}

/// Replaces comments, strings and character literals by spaces and keeps the lines.
pub fn blank_out(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = literal_end(&chars, at);
        if end == at {
            out.push(chars[at]);
            at += 1;
        } else {
            out.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

/// Where the comment or literal that begins at `at` ends; `at` itself where none begins.
fn literal_end(chars: &[char], at: usize) -> usize {
    let next = |n: usize| chars.get(at + n).copied().unwrap_or('\0');
    let inside_word = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
    match chars[at] {
        '/' if next(1) == '/' => {
            chars[at..].iter().position(|c| *c == '\n').map_or(chars.len(), |n| at + n)
        }
        '/' if next(1) == '*' => block_comment_end(chars, at),
        '"' => string_end(chars, at + 1),
        'b' if next(1) == '"' && !inside_word => string_end(chars, at + 2),
        'r' if matches!(next(1), '"' | '#') && !inside_word => raw_end(chars, at, 1),
        'b' if next(1) == 'r' && matches!(next(2), '"' | '#') && !inside_word => {
            raw_end(chars, at, 2)
        }
        '\'' if next(1) == '\\' => char_end(chars, at + 3),
        '\'' if next(2) == '\'' => at + 3,
        _ => at,
    }
}

fn char_end(chars: &[char], from: usize) -> usize {
    chars.iter().skip(from).position(|c| *c == '\'').map_or(chars.len(), |n| from + n + 1)
}

fn string_end(chars: &[char], mut at: usize) -> usize {
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

fn raw_end(chars: &[char], start: usize, lead: usize) -> usize {
    let hashes = chars[start + lead..].iter().take_while(|c| **c == '#').count();
    let open = start + lead + hashes;
    if chars.get(open) != Some(&'"') {
        return start; // a raw identifier
    }
    let close: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let body = &chars[open + 1..];
    body.windows(close.len())
        .position(|w| w == close)
        .map_or(chars.len(), |n| open + 1 + n + close.len())
}

fn block_comment_end(chars: &[char], mut at: usize) -> usize {
    let mut depth = 0;
    while at + 1 < chars.len() {
        match (chars[at], chars[at + 1]) {
            ('/', '*') => depth += 1,
            ('*', '/') => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            return at;
        }
    }
    chars.len()
}

/// A function with a body.
pub struct Function {
    /// Its name.
    pub name: String,
    /// The line of its `fn`, from 1.
    pub line: usize,
    /// From `fn` to the closing brace.
    pub lines: usize,
}

/// All functions with a body in blanked-out code, inner ones too.
pub fn functions(code: &str) -> Vec<Function> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let name: String =
            code[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let Some(end) = body_end(&code[at..]).filter(|_| !name.is_empty()) else {
            continue;
        };
        let line = code[..at].matches('\n').count() + 1;
        let lines = code[at..at + end].matches('\n').count() + 1;
        found.push(Function { name, line, lines });
    }
    found
}

/// Where the braces that open first close again; `None` where a `;` ends the declaration before.
fn body_end(code: &str) -> Option<usize> {
    let mut braces = 0usize;
    let mut brackets = 0usize;
    for (at, c) in code.char_indices() {
        match c {
            '(' | '[' => brackets += 1,
            ')' | ']' => brackets = brackets.checked_sub(1)?,
            ';' if braces == 0 && brackets == 0 => return None,
            '{' => braces += 1,
            '}' => {
                braces = braces.checked_sub(1)?;
                if braces == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
    }
    None
}

/// The lines (from 0) of blanked-out code that belong to `#[cfg(test)]` items and `#[test]`
/// functions.
pub fn test_lines(code: &str) -> BTreeSet<usize> {
    let mut lines = BTreeSet::new();
    for mark in ["#[cfg(test)]", "#[test]", "#[cfg(any(test"] {
        for (at, _) in code.match_indices(mark) {
            let first = code[..at].matches('\n').count();
            let rest = &code[at + mark.len()..];
            let end = body_end(rest).unwrap_or_else(|| rest.find(';').unwrap_or(0));
            let last = first + rest[..end].matches('\n').count();
            lines.extend(first..=last);
        }
    }
    lines
}
