//! The rules for one text: how it opens, where it lies, what must not be in it.
//!
//! They look at lines and not at syntax, so they are simple, and a text can be read by them that does not
//! compile. What the compiler and clippy know (the length of functions, banned methods) is left to them.

use std::path::Path;

/// Characters of a line.
const COLUMNS: usize = 110;
/// Folders below `src`.
const DEPTH: usize = 2;
/// This file spells out what it looks for.
const ITSELF: &str = "xtask/src/tidy/rules.rs";
/// What is left over from work, or belongs to one machine, in any text.
const LEFT_OVER: [&str; 5] = ["FIXME", "TODO", "XXX", "HACK", "TBD"];
/// Folders of one machine.
const PLACES: [&str; 4] = ["/root/", "/work/", "/tmp/", "/home/"];
/// Macros that a reader should never meet.
const MACROS: [&str; 3] = ["todo!", "unimplemented!", "dbg!"];

/// All that is wrong with the text of the file at `path`.
pub(super) fn problems(path: &str, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let is_rust = path.ends_with(".rs");
    if is_rust {
        problems.extend(place_and_opening(path, text).into_iter().map(|what| format!("{path}:1: {what}")));
    }
    for (index, line) in text.lines().enumerate() {
        let mut problem = |what: &str| problems.push(format!("{path}:{}: {what}", index + 1));
        if line.ends_with(' ') || line.contains('\t') {
            problem("a trailing space or a tab");
        }
        if path == ITSELF {
            continue;
        }
        for word in LEFT_OVER.into_iter().filter(|word| has_word(line, word)) {
            problem(&format!("`{word}` is left over"));
        }
        for place in PLACES.into_iter().filter(|place| line.contains(place)) {
            problem(&format!("`{place}` is a folder of one machine"));
        }
        if is_rust {
            line_of_rust(path, line).into_iter().for_each(problem);
        }
    }
    if !text.is_empty() && (!text.ends_with('\n') || text.ends_with("\n\n")) {
        problems.push(format!("{path}: ends with no newline, or with several"));
    }
    problems
}

fn place_and_opening(path: &str, text: &str) -> Vec<&'static str> {
    let mut found = Vec::new();
    if !text.starts_with("//!") {
        found.push("a file opens with what it is");
    }
    if path.ends_with("/mod.rs") {
        found.push("`foo.rs` beside `foo/`, never `mod.rs`");
    }
    let below_src = path.split_once("src/").map_or(0, |(_, below)| Path::new(below).components().count());
    if below_src > DEPTH {
        found.push("deeper than one folder below `src`");
    }
    found
}

fn line_of_rust(path: &str, line: &str) -> Vec<&'static str> {
    let mut found = Vec::new();
    // The formatter breaks code; what it leaves longer is a text in quotes that reads better whole.
    if line.chars().count() > COLUMNS && !line.contains('"') {
        found.push("a line of more than 110 characters");
    }
    let code = line.split("//").next().unwrap_or_default();
    let may_be_unsafe = path.starts_with("crates/sys/") || path.starts_with("crates/kernels/");
    if has_word(code, "unsafe") && !may_be_unsafe && !code.contains('"') {
        found.push("`unsafe` outside `sys` and `kernels`");
    }
    if has_word(code, "HashMap") && !code.contains('"') {
        found.push("`HashMap` has a random order; take `BTreeMap`");
    }
    if MACROS.iter().any(|name| has_word(code, name)) && !code.contains('"') {
        found.push("`todo!`, `unimplemented!` or `dbg!` is left over");
    }
    found
}

/// Whether `word` stands in `line` by itself, not as a part of a longer one.
fn has_word(line: &str, word: &str) -> bool {
    let of_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(of_word) && !line[at + word.len()..].starts_with(of_word))
}

/// Lines that are not of a test module in the file.
pub(super) fn lines_without_tests(text: &str) -> usize {
    let (mut count, mut lines) = (0, text.lines().peekable());
    while let Some(line) = lines.next() {
        // A module in a file of its own, `mod tests;`, is counted there.
        let opens = line == "#[cfg(test)]" && lines.peek().is_some_and(|next| next.ends_with('{'));
        if opens {
            lines.by_ref().take_while(|line| *line != "}").for_each(drop);
        } else {
            count += 1;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_untidy_is_found() {
        for (path, text, part) in [
            ("crates/a/src/a.rs", "fn a() {}\n", "opens with what it is"),
            ("crates/a/src/b/mod.rs", "//! A.\n", "never `mod.rs`"),
            ("crates/a/src/b/c/d.rs", "//! A.\n", "deeper"),
            ("crates/a/src/a.rs", "//! A.\nfn a() { unsafe { b() } }\n", ":2: `unsafe`"),
            ("crates/a/src/a.rs", "//! A.\nunsafe impl Send for A {}\n", ":2: `unsafe`"),
            ("crates/a/src/a.rs", "//! A.\nuse std::collections::HashMap;\n", ":2: `HashMap`"),
            ("crates/a/src/a.rs", "//! A.\nfn a() { todo!() }\n", "`todo!`"),
            ("crates/a/src/a.rs", "//! A.\n// FIXME: later\n", "`FIXME`"),
            ("crates/a/src/a.rs", "//! A. \n", "trailing"),
            ("crates/a/src/a.rs", "//! A.", "newline"),
            ("tests/a.py", "a = 1\t\n", "tab"),
            ("tests/a.py", "a = '/tmp/a'\n", "one machine"),
            ("README.md", "TODO\n", "`TODO`"),
        ] {
            let problems = problems(path, text);
            assert!(problems.iter().any(|problem| problem.contains(part)), "{part}: {problems:?}");
        }
    }

    #[test]
    fn what_is_tidy_is_left_alone() {
        for (path, text) in [
            ("crates/sys/src/a.rs", "//! A.\nfn a() { unsafe { b() } }\n"),
            ("crates/a/src/b/c.rs", "//! No `unsafe`, no `HashMap`.\n#![forbid(unsafe_code)]\n"),
            ("crates/a/src/a.rs", "//! The number of `\\uXXXX`.\n"),
            ("README.md", "# A\n"),
        ] {
            assert_eq!(problems(path, text), [""; 0]);
        }
    }

    #[test]
    fn tests_do_not_count() {
        for (text, expect) in [
            ("a\nb\n#[cfg(test)]\nmod tests {\n    c\n}\n", 2),
            ("a\n#[cfg(test)]\nmod tests {\n}\nb\nc\n", 3),
            ("#[cfg(test)]\nmod tests;\nb\nc\n", 4),
        ] {
            assert_eq!(lines_without_tests(text), expect, "{text}");
        }
    }
}
