//! How long the terminals of a grammar are, written out.
//!
//! `A: B B` and so on is an expression that doubles with each line, and the work for an expression may grow
//! with the square of its length. So terminals are put together here in numbers only, before the library
//! does it. This need not understand the grammar but must never count too little: every word that is the name
//! of a terminal counts, also in strings and comments.

use std::collections::BTreeMap;

/// Bytes of a definition, and of all that it stands for.
const WRITTEN_BYTES_MAX: usize = 1 << 13;
/// Keywords that other languages follow, with rules of their own for where a line ends.
const EMBEDDING: [&str; 4] = ["%json", "%lark", "%llguidance", "%regex"];

/// Whether the terminals of a grammar can be compiled in a fraction of a second.
///
/// # Errors
/// What of it is too much, or may not be used.
pub(super) fn check(grammar: &str) -> Result<(), String> {
    if let Some(keyword) = EMBEDDING.iter().find(|keyword| grammar.contains(**keyword)) {
        return Err(format!("`{keyword}` is not supported in a grammar"));
    }
    let mut definitions = Definitions::default();
    let mut current = "";
    for line in grammar.split('\n') {
        if has_open_expression(line) {
            return Err("a regular expression must end on the line where it begins".into());
        }
        current = defined(line).unwrap_or(current);
        definitions.lines.entry(current).or_default().push(line);
    }
    let names: Vec<&str> = definitions.lines.keys().copied().collect();
    for name in names {
        if definitions.written(name) > WRITTEN_BYTES_MAX {
            return Err(format!("`{name}` has more than `{WRITTEN_BYTES_MAX}` bytes written out"));
        }
    }
    Ok(())
}

#[derive(Default)]
struct Definitions<'a> {
    lines: BTreeMap<&'a str, Vec<&'a str>>,
    /// The bytes of those that are known; none for what is being looked at.
    known: BTreeMap<&'a str, usize>,
}

impl<'a> Definitions<'a> {
    fn written(&mut self, name: &'a str) -> usize {
        if let Some(bytes) = self.known.get(name) {
            return *bytes;
        }
        self.known.insert(name, 0);
        let mut bytes = 0_usize;
        for line in self.lines.get(name).cloned().unwrap_or_default() {
            bytes = bytes.saturating_add(line.len());
            for word in line.split(|character| !is_of_terminal(character)) {
                let Some(start) = word.find(|character: char| character.is_ascii_uppercase()) else {
                    continue;
                };
                // One underscore before the first letter may belong to the name.
                for name in [word.get(start.wrapping_sub(1)..).unwrap_or(word), &word[start..]] {
                    if self.lines.contains_key(name) {
                        bytes = bytes.saturating_add(self.written(name));
                        break;
                    }
                }
            }
        }
        self.known.insert(name, bytes);
        bytes
    }
}

fn is_of_terminal(character: char) -> bool {
    character.is_ascii_uppercase() || character.is_ascii_digit() || matches!(character, '_' | '-')
}

/// The name that a line begins to define.
fn defined(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let line = line.strip_prefix("%override").unwrap_or(line).trim_start().trim_start_matches(['!', '?']);
    let is_of_name = |character: char| character.is_ascii_alphanumeric() || matches!(character, '_' | '-');
    let end = line.find(|character| !is_of_name(character))?;
    let (name, rest) = line.split_at(end);
    (!name.is_empty() && rest.trim_start().starts_with([':', '.', '{', '['])).then_some(name)
}

/// Whether a regular expression begins on a line and does not end there.
fn has_open_expression(line: &str) -> bool {
    let mut rest = line;
    while let Some(start) = rest.find(['"', '/', '#', '<']) {
        let after = &rest[start + 1..];
        let quote = rest.as_bytes()[start];
        if quote == b'#' || rest[start..].starts_with("//") {
            return false;
        }
        if quote == b'<' {
            let end = after.find(|c: char| c == '<' || c == '>' || c.is_whitespace());
            rest = end.filter(|end| after[*end..].starts_with('>')).map_or(after, |end| &after[end + 1..]);
            continue;
        }
        let mut is_escaped = false;
        let end = after.bytes().position(|byte| {
            let ends = byte == quote && !is_escaped;
            is_escaped = byte == b'\\' && !is_escaped;
            ends
        });
        match end {
            Some(end) => rest = &after[end + 1..],
            None => return quote == b'/',
        }
    }
    false
}
