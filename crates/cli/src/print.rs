//! Where the answer of a command goes.

/// Prints to standard output, as it is; the answer of a command is what it is for.
#[expect(clippy::print_stdout, reason = "the answer of the command")]
pub(crate) fn print(text: &str) {
    print!("{text}");
}
