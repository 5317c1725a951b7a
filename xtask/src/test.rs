//! `cargo xtask test`: sets up what the tests need, then runs all of them: Rust's, and those of real
//! clients in Python against the built server. Ends with one line that sums them up.
//!
//! What is needed is fetched once into the user's cache and `target/venv`; after that no network is.

mod capture;
mod sum;
pub(crate) mod venv;

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};
use clap::Args;

use crate::assets;
use crate::run::{cargo, root, run, say, target, works};
use capture::{SILENCE_MAX, captured};
use sum::Sum;

/// Where the tests find the real models and ONNX Runtime.
const ASSETS: &str = "QUADRANT_TEST_ASSETS";
/// Where the tests of real clients find the built server.
const BINARY: &str = "QUADRANT_BIN";
/// What pytest ends with if no test has the wanted name.
const PYTEST_NO_TESTS: i32 = 5;

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

/// Runs the tests. Its last line is the sum; a runner that breaks counts as a failed test, so that no
/// breakage can look like a pass.
///
/// # Errors
/// If what the tests need could not be fetched.
pub(crate) fn run_tests(args: &TestArgs) -> Result<ExitCode> {
    let assets = assets::fetch()?;
    let filter = args.filter.as_deref();
    let all = !args.rust && !args.python;
    let mut sum = Sum::default();
    if all || args.rust {
        sum += part("the Rust tests", || rust(&assets, filter));
    }
    if all || args.python {
        sum += part("the tests of real clients", || python(&assets, filter));
    }
    say(&sum.to_string());
    Ok(if sum.failed == 0 && sum.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn part(name: &str, work: impl FnOnce() -> Result<Sum>) -> Sum {
    say(&format!("== {name}"));
    work().unwrap_or_else(|error| {
        say(&format!("error: {name} did not run: {error:#}"));
        Sum { failed: 1, ..Sum::default() }
    })
}

fn rust(assets: &Path, filter: Option<&str>) -> Result<Sum> {
    let which = ["--workspace", "--locked", "--no-fail-fast"];
    // Built apart, since a build may be silent for longer than a test.
    run(cargo().args(["test", "--workspace", "--locked", "--no-run"]))?;
    let mut commands = Vec::new();
    if works("cargo-nextest", &["nextest", "--version"]) {
        let mut nextest = cargo();
        nextest.args(["nextest", "run"]).args(which);
        if filter.is_some() {
            nextest.arg("--no-tests=pass");
        }
        let mut examples = cargo();
        examples.args(["test", "--doc"]).args(which);
        commands.extend([nextest, examples]);
    } else {
        let mut everything = cargo();
        everything.arg("test").args(which);
        commands.push(everything);
    }
    let mut sum = Sum::default();
    for mut command in commands {
        command.args(filter).env(ASSETS, assets).env("CARGO_TERM_COLOR", "never");
        let ran = captured(&mut command, SILENCE_MAX)?;
        sum += judged(Sum::of_output(&ran.text), ran.status.success());
    }
    Ok(sum)
}

fn python(assets: &Path, filter: Option<&str>) -> Result<Sum> {
    let python = venv::python()?;
    run(cargo().args(["build", "--release", "--locked", "-p", "quadrant-cli"]))?;
    let mut command = Command::new(python);
    command.current_dir(root()).args(["-m", "pytest", "tests", "-v", "-rs", "--color=no"]);
    command.args(["-p", "no:cacheprovider"]);
    if let Some(filter) = filter {
        command.args(["-k", filter]);
    }
    command.env(ASSETS, assets).env(BINARY, target().join("release/quadrant"));
    command.env("PYTHONDONTWRITEBYTECODE", "1").env("PYTHONUNBUFFERED", "1");
    let ran = captured(&mut command, SILENCE_MAX)?;
    let none_meant = filter.is_some() && ran.status.code() == Some(PYTEST_NO_TESTS);
    ensure!(none_meant || ran.status.code() != Some(PYTEST_NO_TESTS), "there are no tests");
    Ok(judged(Sum::of_output(&ran.text), none_meant || ran.status.success()))
}

/// A runner that fails without a failing test has broken: a test that aborts leaves no closing line.
fn judged(mut sum: Sum, success: bool) -> Sum {
    if !success && sum.failed == 0 {
        say("error: the runner failed, though no test did; see above");
        sum.failed = 1;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_breaks_cannot_look_like_a_pass() {
        let passed = Sum { passed: 3, ..Sum::default() };
        assert_eq!(judged(passed, true), passed);
        assert_eq!(judged(passed, false), Sum { passed: 3, failed: 1, skipped: 0 });
        let failed = Sum { passed: 3, failed: 2, skipped: 0 };
        assert_eq!(judged(failed, false), failed);
        assert_eq!(part("a part", || anyhow::bail!("it broke")).failed, 1);
    }
}
