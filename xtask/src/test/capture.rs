//! Runs a command whose output is both shown and read, and ends it if it falls silent.
//!
//! nextest and pytest end a test that hangs by themselves. The runner that comes with cargo does not, so
//! silence for long is taken for a hang, and the command is killed with all that it started.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::run::say;

/// Longer than any one test takes; building was done before.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(300);

/// What a command came to, and all that it printed.
#[derive(Debug)]
pub(crate) struct Captured {
    pub(crate) status: ExitStatus,
    pub(crate) text: String,
}

/// Runs the command to its end, or to its `silence`.
pub(crate) fn captured(command: &mut Command, silence: Duration) -> Result<Captured> {
    let name = format!("{command:?}");
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("cannot run {name}"))?;
    // The child holds the writing ends; ours must go, or the reading never ends.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let (lines, inbox) = sync_channel(64);
    thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            if lines.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                break;
            }
        }
    });
    let mut text = String::new();
    loop {
        match inbox.recv_timeout(silence) {
            Ok(line) => {
                say(&line);
                text.push_str(&line);
                text.push('\n');
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                say(&format!("killed after {} s without a word: something hangs", silence.as_secs()));
                kill_with_descendants(child.id())?;
                break;
            }
        }
    }
    Ok(Captured { status: child.wait()?, text })
}

/// Kills a process and what it started, parents first.
fn kill_with_descendants(process: u32) -> Result<()> {
    let children = children();
    let mut doomed = vec![process];
    let mut index = 0;
    while let Some(process) = doomed.get(index) {
        doomed.extend(children.get(process).into_iter().flatten());
        index += 1;
    }
    let doomed = doomed.iter().map(ToString::to_string);
    // Some may have ended meanwhile, which `kill` complains of.
    let script = ["-c", "kill -9 \"$@\" 2>&-; true", "kill"];
    Command::new("sh").args(script).args(doomed).status().context("cannot run `sh`")?;
    Ok(())
}

/// The children of each process. Empty where there is no `/proc`.
fn children() -> BTreeMap<u32, Vec<u32>> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // `pid (name) state parent ..`, and the name may hold anything.
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        if let Some(parent) = parent {
            children.entry(parent).or_default().push(process);
        }
    }
    children
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, silence: Duration) -> Captured {
        captured(Command::new("sh").args(["-c", script]), silence).unwrap()
    }

    #[test]
    fn both_outputs_and_the_end_are_seen() {
        let Captured { status, text } = shell("echo a; echo b >&2; exit 3", SILENCE_MAX);
        assert_eq!((status.code(), text.as_str()), (Some(3), "a\nb\n"));
    }

    #[test]
    fn what_hangs_is_killed_with_what_it_started() {
        let script = "sleep 1000 & (sleep 1000 & echo $!; wait); wait";
        let Captured { status, text } = shell(script, Duration::from_millis(300));
        assert!(!status.success());
        let stat = format!("/proc/{}/stat", text.trim().parse::<u32>().unwrap());
        let runs = || fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z"));
        // A killed process ends a little later.
        let gone = (0..500).any(|_| {
            thread::park_timeout(Duration::from_millis(10));
            !runs()
        });
        assert!(gone, "it still runs");
    }
}
