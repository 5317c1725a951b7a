//! Runs other programs, and says what it does.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().expect("xtask lies in the repository").to_owned()
}

/// Where cargo builds, and where tools and the Python environment are kept.
pub(crate) fn target() -> PathBuf {
    root().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// The cargo that runs us.
pub(crate) fn cargo() -> Command {
    // Set by the cargo that started us; it is of the pinned toolchain.
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
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

/// Lines at the end of what a program said that are shown if it fails.
const LAST_LINES: usize = 30;

/// What a program prints, if it goes well.
///
/// # Errors
/// If it cannot be started or fails, with the last lines of all that it said.
pub(crate) fn printed(command: &mut Command) -> Result<String> {
    let name = format!("{command:?}");
    let output = command.output().with_context(|| format!("cannot run {name}"))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = format!("{printed}{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<&str> = said.lines().collect();
    let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
    ensure!(output.status.success(), "{name} failed:\n{}", last.join("\n"));
    Ok(printed)
}

/// Whether a program can be run with these arguments.
pub(crate) fn works(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
}

/// How often [`within`] asks.
const POLL: Duration = Duration::from_millis(50);

/// Asks about another process until it is so, or until the limit has passed. Says whether it is so.
///
/// # Errors
/// If asking fails, which ends the wait.
pub(crate) fn within(limit: Duration, mut so: impl FnMut() -> Result<bool>) -> Result<bool> {
    for _ in 0..limit.as_millis() / POLL.as_millis() {
        if so()? {
            return Ok(true);
        }
        #[expect(clippy::disallowed_methods, reason = "another process tells no channel of ours")]
        std::thread::sleep(POLL);
    }
    Ok(false)
}

/// Runs a named stage, saying how long it took and whether it went well.
pub(crate) fn stage(name: &'static str, work: impl FnOnce() -> Result<()>) -> Stage {
    say(&format!("== {name}"));
    #[expect(clippy::disallowed_methods, reason = "the time a stage takes is only printed")]
    let began = Instant::now();
    let result = work();
    let took = began.elapsed();
    if let Err(error) = &result {
        say(&format!("== {name}: FAILED: {error:#}"));
    }
    Stage { name, passed: result.is_ok(), took }
}

/// What came of a stage. Shown as a line of the closing summary.
pub(crate) struct Stage {
    pub(crate) name: &'static str,
    pub(crate) passed: bool,
    took: Duration,
}

impl fmt::Display for Stage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.passed { "ok" } else { "FAILED" };
        write!(out, "{:<14} {:>7.1} s  {verdict}", self.name, self.took.as_secs_f64())
    }
}

/// A line for the person who runs this.
#[expect(clippy::print_stdout, reason = "a command line tool")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}
