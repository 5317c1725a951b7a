//! `cargo xtask test`: sets up what the tests need, then runs all of them: Rust's, and those of real
//! clients in Python against the built server. Ends with one line that sums them up.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::assets;
use crate::run::{cargo, root, run, say, works};

/// Which tests to run; all if nothing is said.
#[derive(Args, Debug)]
pub(crate) struct TestArgs {
    /// Only Rust's.
    #[arg(long)]
    rust: bool,
    /// Only those of real clients.
    #[arg(long)]
    python: bool,
    /// Only tests whose name contains this.
    filter: Option<String>,
}

/// What came of some tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    passed: u64,
    failed: u64,
    skipped: u64,
}

/// Runs the tests.
///
/// # Errors
/// If something could not be set up or a test failed.
pub(crate) fn run_tests(args: &TestArgs) -> Result<()> {
    let assets = assets::fetch()?;
    let all = !args.rust && !args.python;
    let mut sum = Sum::default();
    if all || args.rust {
        sum.add(rust(&assets, args.filter.as_deref())?);
    }
    if all || args.python {
        sum.add(python(&assets, args.filter.as_deref())?);
    }
    say(&format!("{} passed, {} failed, {} skipped", sum.passed, sum.failed, sum.skipped));
    ensure!(sum.failed == 0, "`{}` tests failed", sum.failed);
    ensure!(sum.passed > 0, "no test was run");
    Ok(())
}

fn rust(assets: &Path, filter: Option<&str>) -> Result<Sum> {
    let mut command = cargo();
    if works("cargo-nextest", &["nextest", "--version"]) {
        command.args(["nextest", "run", "--workspace", "--locked", "--no-fail-fast"]);
    } else {
        command.args(["test", "--workspace", "--locked", "--no-fail-fast"]);
    }
    command.args(filter).env("QUADRANT_TEST_ASSETS", assets);
    let (_, text) = captured(&mut command)?;
    let mut sum = Sum::default();
    for line in text.lines() {
        sum.add(counts(line));
    }
    // A build that failed has no summary, and must not pass for "no test failed".
    ensure!(sum.passed + sum.failed > 0, "the Rust tests did not run");
    Ok(sum)
}

/// The counts in a closing line of cargo's or nextest's test runner, or of pytest.
fn counts(line: &str) -> Sum {
    let line = line.trim();
    let is_summary = line.starts_with("test result:")
        || line.starts_with("Summary [")
        || (line.starts_with('=') && line.ends_with('='));
    if !is_summary {
        return Sum::default();
    }
    let words: Vec<&str> =
        line.split(|c: char| c.is_whitespace() || ",;=()".contains(c)).filter(|w| !w.is_empty()).collect();
    let count = |names: &[&str]| -> u64 {
        let pairs = words.windows(2).filter(|pair| names.contains(&pair[1]));
        pairs.filter_map(|pair| pair[0].parse::<u64>().ok()).sum()
    };
    Sum {
        passed: count(&["passed"]),
        failed: count(&["failed", "error", "errors", "timed"]),
        skipped: count(&["skipped", "ignored"]),
    }
}

fn python(assets: &Path, filter: Option<&str>) -> Result<Sum> {
    let python = virtual_environment()?;
    run(cargo().args(["build", "--release", "--locked", "-p", "quadrant-cli", "-p", "quadrant-baseline"]))?;
    let mut command = Command::new(python);
    command.current_dir(root()).args(["-m", "pytest", "tests", "-q", "-rs", "-p", "no:cacheprovider"]);
    if let Some(filter) = filter {
        command.args(["-k", filter]);
    }
    command
        .env("QUADRANT_TEST_ASSETS", assets)
        .env("QUADRANT_BIN", root().join("target/release/quadrant"))
        .env("PYTHONDONTWRITEBYTECODE", "1");
    let (success, text) = captured(&mut command)?;
    // With `-q`, pytest's closing line is not framed.
    let last = text.lines().rev().find(|line| line.contains(" in ") && line.contains("passed"));
    let sum = counts(&format!("={}=", last.or(text.lines().next_back()).unwrap_or_default()));
    ensure!(success || sum.failed > 0, "the Python tests did not run");
    Ok(sum)
}

/// Runs a command whose output is both shown and read.
fn captured(command: &mut Command) -> Result<(bool, String)> {
    use std::io::{BufRead, BufReader};
    let name = format!("{command:?}");
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("cannot run {name}"))?;
    // The command holds the writing ends; ours must go, or the reading never ends.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut text = String::new();
    for line in BufReader::new(reader).lines() {
        let line = line?;
        say(&line);
        text.push_str(&line);
        text.push('\n');
    }
    Ok((child.wait()?.success(), text))
}

/// A virtual environment with the pinned packages, made once for each set of them.
pub(crate) fn virtual_environment() -> Result<PathBuf> {
    let requirements = root().join("tests/requirements.txt");
    let wanted = fs::read_to_string(&requirements).context("cannot read `tests/requirements.txt`")?;
    let folder = root().join("target/venv");
    let (python, stamp) = (folder.join("bin/python"), folder.join("requirements.stamp"));
    if fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) && works(&python, &["--version"]) {
        return Ok(python);
    }
    say("making the Python virtual environment in `target/venv`");
    if !works("python3", &["-m", "venv", "--help"]) {
        bail!("`python3 -m venv` does not work; install Python 3 with `venv` and `pip`");
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
    run(Command::new(&python).args(pip).arg(&requirements))?;
    fs::write(&stamp, wanted).context("cannot write the stamp of the virtual environment")?;
    Ok(python)
}

impl Sum {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_counted() {
        for (line, expect) in [
            ("test result: ok. 10 passed; 0 failed; 2 ignored; 0 measured; 3 filtered out", [10, 0, 2]),
            ("     Summary [   1.2s] 12 tests run: 10 passed (1 slow), 2 failed, 4 skipped", [10, 2, 4]),
            ("     Summary [   1.2s] 3 tests run: 2 passed, 1 timed out, 0 skipped", [2, 1, 0]),
            ("=3 failed, 20 passed, 1 skipped, 2 errors in 1.20s=", [20, 5, 1]),
            ("20 passed, 1 failed somewhere in a log", [0, 0, 0]),
        ] {
            let Sum { passed, failed, skipped } = counts(line);
            assert_eq!([passed, failed, skipped], expect, "{line}");
        }
    }
}
