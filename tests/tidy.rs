//! House rules that no compiler checks: the layers, the sizes of files and functions, headers,
//! words that must not be left behind, and where a panic is allowed. Each finding is named by file
//! and line.
//!
//! A rule is lifted for one line by a comment on it or on the line before it that says why:
//! `// tidy: allow(expect): the lock is never poisoned, parking_lot has no poison`.

#[path = "tidy/source.rs"]
mod source;

use source::{blank_out, functions, test_lines, Source};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Longest line, in characters.
const MAX_COLUMNS: usize = 100;
/// Longest source file, in lines.
const MAX_FILE_LINES: usize = 800;
/// Longest function, in lines, from `fn` to its closing brace.
const MAX_FUNCTION_LINES: usize = 70;
/// Fewest characters of a reason in an exemption.
const MIN_REASON: usize = 10;

/// Which folders of `src/` each folder may name: only what lies below it. `iscsi` stands on `scsi`,
/// and `cli` on `control` (it is the control socket's client), on `nbs` (it is a client of that
/// too) and on `server` (it starts one).
const LAYERS: &[(&str, &[&str])] = &[
    ("device", &[]),
    ("fs", &["device"]),
    ("lun", &["fs", "device"]),
    ("access", &["lun", "fs"]),
    ("scsi", &["lun"]),
    ("shards", &[]),
    ("iscsi", &["scsi", "access", "lun", "shards"]),
    ("nbd", &["access", "lun", "shards"]),
    ("nbs", &["access", "lun"]),
    ("fuse", &["lun", "fs", "device"]),
    ("control", &["access", "lun", "fs", "device"]),
    ("quiesce", &["fs"]),
    ("cli", &["server", "quiesce", "control", "nbs", "access", "lun", "fs", "device"]),
];

/// What a layer may not use, because it is deterministic, or a protocol core that does no I/O.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("src/device", &["tokio", "futures"]),
    ("src/fs", &["tokio", "futures", "std::fs", "std::net", "std::process", "rustix", "libc"]),
    ("src/lun", &["tokio", "futures", "std::net", "fuser"]),
    ("src/access", &["tokio", "futures", "std::fs", "std::process"]),
    ("src/scsi", &["tokio", "futures", "std::fs", "std::net", "std::process"]),
    ("fs-layout/src", &["tokio", "std::fs", "std::io", "std::net", "std::process", "std::thread"]),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every file of the project, without what git and cargo keep for themselves.
fn files() -> Vec<Source> {
    fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
        let Ok(entries) = std::fs::read_dir(dir) else {
            return;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            let skipped = name == ".git" || name.starts_with("target") || name == "__pycache__";
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && !skipped => walk(&path, out),
                Ok(kind) if kind.is_file() && !skipped => out.push(path),
                _ => {}
            }
        }
    }
    let mut paths = Vec::new();
    walk(&root(), &mut paths);
    paths.sort();
    paths.iter().filter_map(|path| Source::read(&root(), path)).collect()
}

fn rust_files() -> Vec<Source> {
    files().into_iter().filter(|f| f.name.ends_with(".rs")).collect()
}

/// Files that ship: not tests, benches or examples.
fn shipped(name: &str) -> bool {
    name.starts_with("src/") || name.starts_with("fs-layout/src/")
}

fn report(rule: &str, problems: &[String]) {
    assert!(problems.is_empty(), "{rule}: {}\n{}", problems.len(), problems.join("\n"));
}

#[test]
fn an_arrow_goes_down() {
    let names: BTreeSet<&str> = LAYERS.iter().map(|(name, _)| *name).chain(["server"]).collect();
    let mut problems = Vec::new();
    for file in rust_files().iter().filter(|f| f.name.starts_with("src/")) {
        let Some(layer) = file.layer() else { continue };
        if layer == "server" {
            continue;
        }
        let Some((_, below)) = LAYERS.iter().find(|(name, _)| *name == layer) else {
            problems.push(format!("{}: `{layer}` has no place in the layers", file.name));
            continue;
        };
        for (line, target) in file.crate_paths() {
            let known = names.contains(target.as_str());
            if known && target != layer && !below.contains(&target.as_str()) {
                problems.push(format!("{}:{line}: {layer} uses {target}", file.name));
            }
        }
    }
    report("a layer may only use what lies below it", &problems);
}

#[test]
fn lower_layers_do_no_foreign_io() {
    let mut problems = Vec::new();
    for file in rust_files() {
        for (folder, words) in FORBIDDEN {
            if !file.name.starts_with(&format!("{folder}/")) || !shipped(&file.name) {
                continue;
            }
            let tests = test_lines(&file.code);
            for (number, line) in file.code.lines().enumerate() {
                let found = words.iter().find(|w| has_path(line, w));
                if let Some(word) = found.filter(|_| !tests.contains(&number)) {
                    problems.push(format!("{}:{}: {folder} uses {word}", file.name, number + 1));
                }
            }
        }
    }
    report("these layers do not use these crates and modules", &problems);
}

/// Whether `line` names the path `word` (`tokio` in `tokio::spawn`, `std::fs` in `use std::fs;`).
fn has_path(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = &line[at + word.len()..];
        let starts = !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':');
        let whole = !after.starts_with(|c: char| c.is_alphanumeric() || c == '_');
        let used = word.contains("::") || after.starts_with("::") || line.contains("use ");
        starts && whole && used
    })
}

#[test]
fn every_source_file_is_reached() {
    let mut problems = Vec::new();
    for base in ["src", "fs-layout/src"] {
        let all: Vec<Source> =
            rust_files().into_iter().filter(|f| f.name.starts_with(&format!("{base}/"))).collect();
        let names: BTreeSet<String> = all.iter().map(|f| f.name.clone()).collect();
        let mut reached = BTreeSet::new();
        let mut open = vec![format!("{base}/lib.rs"), format!("{base}/main.rs")];
        while let Some(name) = open.pop() {
            if !names.contains(&name) || !reached.insert(name.clone()) {
                continue;
            }
            if let Some(file) = all.iter().find(|f| f.name == name) {
                open.extend(file.declared_modules());
            }
        }
        problems.extend(names.difference(&reached).map(|n| format!("{n}: no `mod` declares it")));
    }
    report("a file that is not compiled is not checked", &problems);
}

#[test]
fn files_are_short_and_say_what_they_are() {
    let mut problems = Vec::new();
    for file in rust_files() {
        let lines = file.text.lines().count();
        if lines > MAX_FILE_LINES {
            problems.push(format!("{}: {lines} lines, more than {MAX_FILE_LINES}", file.name));
        }
        let first = file.text.lines().next().unwrap_or("");
        if !first.starts_with("//! ") || first.contains("(being written)") {
            problems.push(format!("{}:1: no `//!` header that says what it is", file.name));
        }
    }
    report("file sizes and headers", &problems);
}

#[test]
fn lines_are_narrow() {
    let checked = [".rs", ".py", ".sh", "/run", "/guest-init", "Makefile"];
    let mut problems = Vec::new();
    for file in files() {
        if !checked.iter().any(|end| file.name.ends_with(end)) {
            continue;
        }
        for (number, line) in file.text.lines().enumerate() {
            let columns = line.chars().count();
            if columns > MAX_COLUMNS && !line.contains("https://") {
                problems.push(format!("{}:{}: {columns} columns", file.name, number + 1));
            }
        }
    }
    report("line width", &problems);
}

#[test]
fn functions_are_short() {
    let mut problems = Vec::new();
    for file in rust_files() {
        for function in functions(&file.code) {
            if function.lines > MAX_FUNCTION_LINES {
                problems.push(format!(
                    "{}:{}: fn {} has {} lines, more than {MAX_FUNCTION_LINES}",
                    file.name, function.line, function.name, function.lines
                ));
            }
        }
    }
    report("function length", &problems);
}

#[test]
fn nothing_is_left_to_do() {
    // Put together here, so that this file is not its own finding.
    let words =
        [["TO", "DO"], ["FIX", "ME"], ["todo", "!("], ["unimplemented", "!("], ["dbg", "!("]];
    let mut problems = Vec::new();
    for file in files() {
        let code = [".rs", ".py", ".sh", "/run", "Makefile"].iter().any(|e| file.name.ends_with(e));
        for (number, line) in file.text.lines().enumerate().filter(|_| code) {
            for word in words.iter().map(|w| w.concat()) {
                if line.contains(&word) {
                    problems.push(format!("{}:{}: {word}", file.name, number + 1));
                }
            }
        }
    }
    report("unfinished work", &problems);
}

#[test]
fn nothing_panics_in_passing() {
    let calls = [".unwrap()", ".expect("];
    let mut problems = Vec::new();
    for file in rust_files().iter().filter(|f| shipped(&f.name) && !f.is_test_module()) {
        let tests = test_lines(&file.code);
        let lines: Vec<&str> = file.text.lines().collect();
        for (number, line) in file.code.lines().enumerate() {
            let Some(call) = calls.iter().find(|c| line.contains(**c)) else {
                continue;
            };
            if !tests.contains(&number) && !exempt(&lines, number, "expect") {
                problems.push(format!("{}:{}: {call}", file.name, number + 1));
            }
        }
    }
    report("unwrap and expect outside tests need an error or a reason", &problems);
}

/// Whether the line or the one before it carries an exemption of `rule` with a reason.
fn exempt(lines: &[&str], number: usize, rule: &str) -> bool {
    let mark = format!("// tidy: allow({rule}): ");
    let reason = |line: &str| line.split_once(&mark).map_or(0, |(_, why)| why.trim().len());
    reason(lines[number]) >= MIN_REASON || number > 0 && reason(lines[number - 1]) >= MIN_REASON
}

#[test]
fn nothing_names_one_machine() {
    let words = [
        ["/wo", "rk/"],
        ["../sh", "ared"],
        ["crates", ".io"],
        ["docs", ".rs"],
        ["pypi", ".org"],
        ["pythonhosted", ".org"],
        ["npmjs", ".org"],
        ["deb.debian", ".org"],
        ["proxy.golang", ".org"],
    ];
    let mut problems = Vec::new();
    for file in files().iter().filter(|f| f.name != "Cargo.lock") {
        for (number, line) in file.text.lines().enumerate() {
            for word in words.iter().map(|w| w.concat()).filter(|w| line.contains(w.as_str())) {
                problems.push(format!("{}:{}: names {word}", file.name, number + 1));
            }
        }
    }
    report("paths of one machine and hosts of package registries", &problems);
}

#[test]
fn the_checks_see_what_they_look_for() {
    let text = "fn a() {\n  let s = \"}\"; // }\n  let c = '}';\n}\nfn b<'a>(x: &'a str);\n";
    let found = functions(&blank_out(text));
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].line, found[0].lines), (1, 4));
    assert!(!blank_out("r#\"a.unwrap()\"# /* .unwrap() /* */ */").contains("unwrap"));
    assert!(has_path("use tokio::net;", "tokio") && !has_path("let tokio_like = 1;", "tokio"));
    let code = "fn a() {}\n#[cfg(test)]\nmod tests {\n  fn b() {}\n}\nfn c() {}\n";
    assert_eq!(test_lines(code).into_iter().collect::<Vec<_>>(), [1, 2, 3, 4]);
    let source =
        Source::new("src/lun/a.rs", "use crate::{fs::X, nbd};\nfn a() { super::super::cli::b() }");
    let found: Vec<_> = source.crate_paths().into_iter().map(|(_, target)| target).collect();
    assert_eq!(found, ["fs", "nbd", "cli"]);
}
