//! Python virtual environments, each made once for its set of pinned packages.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::run::{root, run, say, target, works};

/// The Python of the environment with the real clients.
///
/// # Errors
/// What is missing on this machine.
pub(crate) fn python() -> Result<PathBuf> {
    make("venv", "tests/requirements.txt")
}

/// The Python of the environment `name` in `target`, which is made if it is missing or has other packages
/// than the file of requirements, a path in the repository, asks for.
///
/// # Errors
/// What is missing on this machine.
pub(crate) fn make(name: &str, requirements: &str) -> Result<PathBuf> {
    let file = root().join(requirements);
    let wanted = fs::read_to_string(&file).with_context(|| format!("cannot read `{requirements}`"))?;
    let folder = target().join(name);
    let (python, stamp) = (folder.join("bin/python"), folder.join("requirements.stamp"));
    if fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) && works(&python, &["--version"]) {
        return Ok(python);
    }
    say(&format!("making the Python virtual environment in `{}`", folder.display()));
    let venv_works = works("python3", &["-c", "import venv, ensurepip"]);
    ensure!(
        venv_works,
        "cannot make a Python environment; install Python 3.11 or later with `venv` and `pip`"
    );
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
    run(Command::new(&python).args(install).arg(&file)).with_context(|| {
        format!("cannot install `{requirements}`; this needs Python 3.11 or later, and a network once")
    })?;
    fs::write(&stamp, wanted).context("cannot write the stamp of the virtual environment")?;
    Ok(python)
}
