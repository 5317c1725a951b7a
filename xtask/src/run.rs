//! Runs other programs, and says what it does.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().expect("xtask lies in the repository").to_owned()
}

/// The cargo that runs us.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(option_env!("CARGO").unwrap_or("cargo"));
    command.current_dir(root());
    command
}

/// Runs a command to its end.
///
/// # Errors
/// If it cannot be started or fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let name = format!("{command:?}");
    let status = command.status().with_context(|| format!("cannot run {name}"))?;
    ensure!(status.success(), "{name} failed: {status}");
    Ok(())
}

/// Whether a program can be run with these arguments.
pub(crate) fn works(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
}

/// Runs a named stage, saying how long it took and whether it went well.
pub(crate) fn stage(name: &str, work: impl FnOnce() -> Result<()>) -> bool {
    say(&format!("== {name}"));
    #[expect(clippy::disallowed_methods, reason = "the time a stage takes is only printed")]
    let began = Instant::now();
    let result = work();
    let seconds = began.elapsed().as_secs_f64();
    match &result {
        Ok(()) => say(&format!("== {name}: ok, {seconds:.1} s")),
        Err(error) => say(&format!("== {name}: FAILED, {seconds:.1} s: {error:#}")),
    }
    result.is_ok()
}

/// A line for the person who runs this.
#[expect(clippy::print_stdout, reason = "a command line tool")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}
