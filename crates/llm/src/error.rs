//! Why a model file could not be read, for both formats, and how names out of files are shown.

use std::fmt::{self, Write as _};

/// More characters of a name are not shown: a name is the file's, and may be a megabyte long.
const SHOWN_MAX: usize = 80;

/// What is wrong with a model file. The variants are what a caller does next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// More is announced than the file has: it was cut off, or a number in it is wrong. Fetch it again.
    #[error(
        "{what} takes at least `{needed}` bytes from byte `{offset}` on, where the file has `{left}` more; \
         it was cut off or is damaged, fetch it again"
    )]
    Truncated {
        /// What was being read.
        what: String,
        /// Where in the file it begins.
        offset: usize,
        /// How many bytes it takes at least.
        needed: u64,
        /// How many bytes the file has from there on.
        left: usize,
    },
    /// Not a file of this format, or one that breaks its rules. Take another file.
    #[error(
        "{what} (at byte `{offset}`); the file is damaged or was written wrongly, fetch or convert it again"
    )]
    Malformed {
        /// What is wrong.
        what: String,
        /// Where in the file.
        offset: usize,
    },
    /// Well formed, but beyond this engine. Convert it.
    #[error("{what} (at byte `{offset}`); {instead}")]
    Unsupported {
        /// What this engine cannot do.
        what: String,
        /// Where in the file.
        offset: usize,
        /// What to do about it.
        instead: String,
    },
    /// The file is well, but does not have what was asked for. The caller may know a default; see
    /// [`optional`].
    #[error("the file has no {what}; it is incomplete or of another architecture")]
    Missing {
        /// What was asked for.
        what: String,
    },
}

/// Tells what is not there, which gives `None`, from what is there and wrong.
///
/// # Errors
/// As `found`, unless that is [`FileError::Missing`].
pub fn optional<T>(found: Result<T, FileError>) -> Result<Option<T>, FileError> {
    match found {
        Ok(value) => Ok(Some(value)),
        Err(FileError::Missing { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A name out of a file, in backticks: short, and without what would command a terminal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.chars();
        f.write_char('`')?;
        for c in rest.by_ref().take(SHOWN_MAX) {
            if c.is_control() { write!(f, "{}", c.escape_default()) } else { f.write_char(c) }?;
        }
        f.write_str(if rest.next().is_some() { "…`" } else { "`" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_short_and_harmless() {
        for (name, expect) in [
            ("blk.0.attn_q.weight", "`blk.0.attn_q.weight`".to_owned()),
            ("", "``".to_owned()),
            ("größe", "`größe`".to_owned()),
            ("a\u{1b}[2J\n", "`a\\u{1b}[2J\\n`".to_owned()),
            (&"ä".repeat(80), format!("`{}`", "ä".repeat(80))),
            (&"ä".repeat(81), format!("`{}…`", "ä".repeat(80))),
        ] {
            assert_eq!(Quoted(name).to_string(), expect);
        }
    }

    #[test]
    fn only_what_is_missing_is_optional() {
        let malformed = FileError::Malformed { what: "it".into(), offset: 1 };
        assert_eq!(optional(Ok(1)), Ok(Some(1)));
        assert_eq!(optional::<u32>(Err(FileError::Missing { what: "it".into() })), Ok(None));
        assert_eq!(optional::<u32>(Err(malformed.clone())), Err(malformed));
    }
}
