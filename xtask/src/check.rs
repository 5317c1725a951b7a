//! `cargo xtask check`: everything that can be said of the code without running it. All stages run, also
//! after one has failed, so that one run shows all there is to mend.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::run::{self, cargo, root, say, stage, target, works};
use crate::tidy;

/// The version that `deny.toml` is written for.
const DENY_VERSION: &str = "0.20.2";

/// What a stage is called, and what it does.
type Work = (&'static str, fn() -> Result<()>);

/// Runs all stages.
///
/// # Errors
/// If one of them failed.
pub(crate) fn run() -> Result<()> {
    let stages: [Work; 5] = [
        ("format", || run::run(cargo().args(["fmt", "--all", "--check"]))),
        ("tidy", tidy::run),
        ("clippy", || {
            let clippy = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
            run::run(cargo().args(clippy))
        }),
        ("documentation", || {
            let doc =
                ["doc", "--workspace", "--no-deps", "--locked", "--document-private-items", "--keep-going"];
            run::run(cargo().args(doc).env("RUSTDOCFLAGS", "-D warnings"))
        }),
        ("dependencies", dependencies),
    ];
    let stages = stages.map(|(name, work)| stage(name, work));
    say("");
    for stage in &stages {
        say(&stage.to_string());
    }
    let failed: Vec<&str> = stages.iter().filter(|stage| !stage.passed).map(|stage| stage.name).collect();
    ensure!(failed.is_empty(), "check failed: {}", failed.join(", "));
    say("check passed");
    Ok(())
}

/// Licences, sources and bans, with the network left alone.
fn dependencies() -> Result<()> {
    let deny = deny()?;
    run::run(
        Command::new(deny).current_dir(root()).args(["--locked", "check", "bans", "licenses", "sources"]),
    )
}

/// The program, from the path or the tools folder, installed there if it is in neither.
fn deny() -> Result<PathBuf> {
    let fits = |program: &PathBuf| {
        let version = Command::new(program).arg("--version").output();
        version.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(DENY_VERSION))
    };
    let tools = target().join("tools");
    let installed = tools.join("bin/cargo-deny");
    if let Some(found) = [PathBuf::from("cargo-deny"), installed.clone()].into_iter().find(fits) {
        return Ok(found);
    }
    ensure!(works("cc", &["--version"]), "a C compiler is needed to build `cargo-deny`");
    run::run(
        cargo()
            .args(["install", "--quiet", "--locked", "cargo-deny", "--version", DENY_VERSION, "--root"])
            .arg(tools),
    )?;
    Ok(installed)
}
