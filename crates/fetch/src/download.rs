//! Runs `pip download` and watches the archive grow.
//!
//! `pip` prints no progress into a pipe, so the growing file is looked at instead. Its own choice of an
//! archive for this Python does not matter: the platform is given, so everyone gets the pinned one.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::Progress;
use crate::catalogue::{Archive, Package, Platform};

/// How often the growing file is looked at.
const POLL: Duration = Duration::from_millis(200);
/// Bytes of pip's complaint that are kept.
const STDERR_MAX: u64 = 64 << 10;

/// Why there is no archive.
#[derive(Debug)]
pub(crate) enum NoDownload {
    /// Python or its pip is missing.
    NoPip(String),
    /// pip failed; this is what it said.
    Failed(String),
}

/// Downloads the archive into `folder`, and says where it is.
pub(crate) fn download(
    package: &'static Package,
    archive: &'static Archive,
    folder: &Path,
    progress: &mut dyn Progress,
) -> Result<PathBuf, NoDownload> {
    let (success, said) = Command::new("python3")
        .args(arguments(package, archive))
        .arg("--disable-pip-version-check")
        .arg("--dest")
        .arg(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // pip unpacks into its temporary folder first; there the growing file can be seen.
        .env("TMPDIR", folder)
        .spawn()
        .and_then(|child| watch(child, || progress.advance(package, largest_file(folder))))
        .map_err(|error| NoDownload::NoPip(error.to_string()))?;
    let path = folder.join(archive.file);
    if success && path.is_file() {
        return Ok(path);
    }
    let said = complaint(&said).to_owned();
    Err(if said.contains("No module named pip") { NoDownload::NoPip(said) } else { NoDownload::Failed(said) })
}

/// The command that downloads this very archive, on whatever machine.
pub(crate) fn command(package: &Package, archive: &Archive) -> String {
    format!("python3 {}", arguments(package, archive).join(" "))
}

fn arguments(package: &Package, archive: &Archive) -> Vec<String> {
    let platform = match archive.platform {
        Platform::Any => "any".to_owned(),
        Platform::Linux(arch) => format!("manylinux_2_28_{arch}"),
    };
    let fixed = ["-m", "pip", "download", "--no-deps", "--only-binary=:all:"];
    let chosen = ["--python-version", "3.11", "--implementation", "cp", "--platform", &platform];
    let wanted = format!("{}=={}", package.name, package.version);
    fixed.into_iter().chain(chosen).map(str::to_owned).chain([wanted]).collect()
}

/// The line of pip's output that says most.
fn complaint(said: &str) -> &str {
    let mut lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
    let last = lines.clone().next_back();
    // After `ERROR: Exception:` follows a trace, whose last line is the reason.
    let tells = |line: &&str| line.starts_with("ERROR") && !line.ends_with("Exception:");
    lines.rfind(tells).or(last).unwrap_or("nothing")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_that_says_most_is_told() {
        for (said, expect) in [
            ("", "nothing"),
            ("ERROR: Exception:\nTraceback\n  a\nOSError: no space left\n", "OSError: no space left"),
            ("/usr/bin/python3: No module named pip\n", "/usr/bin/python3: No module named pip"),
            (
                "WARNING: retrying\nERROR: a\nERROR: no matching distribution\n\n[notice] new pip\n",
                "ERROR: no matching distribution",
            ),
        ] {
            assert_eq!(complaint(said), expect);
        }
    }

    #[test]
    fn the_same_archive_is_asked_for_whatever_python_runs_here() {
        for (package, platform) in
            [(&crate::MAGIKA, "--platform any"), (&crate::ONNX_RUNTIME, "--platform manylinux_2_28_x86_64")]
        {
            let asked = arguments(package, &package.archives[0]).join(" ");
            assert!(asked.contains(platform) && asked.contains("--python-version 3.11"), "{asked}");
            assert!(asked.ends_with(&format!("{}=={}", package.name, package.version)), "{asked}");
        }
    }

    #[test]
    fn the_growing_file_is_found_in_folders_of_folders() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(largest_file(folder.path()), 0);
        std::fs::create_dir_all(folder.path().join("a/b")).unwrap();
        std::fs::write(folder.path().join("a/b/c"), [0; 7]).unwrap();
        std::fs::write(folder.path().join("d"), [0; 3]).unwrap();
        assert_eq!(largest_file(folder.path()), 7);
    }
}
