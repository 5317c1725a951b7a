//! One process of engines: how it is started, asked and watched, and what it died of.

use std::fmt;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::messages::{Answer, Begin, Order};
use super::pipe::{Pipe, PipeError};
use super::{HostCommand, HostSpec};

/// How long loading a model, or preparing a lane, may take before the process counts as hung.
const ANSWER_PATIENCE: Duration = Duration::from_mins(10);
/// How often the process is looked at. What runs away takes some gigabytes a second.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// How much further than a quarter above its limit it may grow in between.
const GROWS_MAX: u64 = 128 << 20;

/// How often a process is asked whether it has ended, and how many times.
const EXIT_POLL: Duration = Duration::from_millis(2);
const EXIT_POLLS: u32 = 100;

/// What ended a process of engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndCause {
    /// It was killed from outside: by an operator, or by the operating system for want of memory.
    Killed,
    /// It crashed: an abort, a bad access, any other signal.
    Crashed,
    /// It ended by itself.
    Exited,
    /// It held more memory than it may, and was killed for it.
    Memory,
    /// A step took far longer than predicted, and it was killed for it.
    Stalled,
    /// It answered what makes no sense, or not at all, and was killed for it.
    Broken,
    /// It could not be started, or could not load again what it had.
    Start,
}

impl EndCause {
    /// Every cause.
    pub const ALL: [Self; 7] =
        [Self::Killed, Self::Crashed, Self::Exited, Self::Memory, Self::Stalled, Self::Broken, Self::Start];

    /// Its name in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Crashed => "crashed",
            Self::Exited => "exited",
            Self::Memory => "memory",
            Self::Stalled => "stalled",
            Self::Broken => "broken",
            Self::Start => "start",
        }
    }
}

/// What ended a process, with values, for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) cause: EndCause,
    pub(super) reason: String,
}

impl End {
    pub(super) fn new(cause: EndCause, reason: impl Into<String>) -> Self {
        Self { cause, reason: reason.into() }
    }

    /// What its exit says, if nobody knows better.
    fn of(status: ExitStatus, resident_bytes: u64) -> Self {
        let held = if resident_bytes > 0 {
            format!("; when last looked at it held `{resident_bytes}` bytes")
        } else {
            String::new()
        };
        match status.signal() {
            Some(9) => Self::new(EndCause::Killed, format!("it was killed (signal 9) from outside{held}")),
            Some(signal) => Self::new(EndCause::Crashed, format!("it crashed with signal `{signal}`{held}")),
            None => {
                let code = status.code().unwrap_or_default();
                Self::new(EndCause::Exited, format!("it ended by itself with status `{code}`{held}"))
            }
        }
    }
}

/// A running process.
pub(super) struct Process {
    pub(super) generation: u64,
    pub(super) id: u32,
    /// Always there until this is dropped.
    child: Mutex<Option<Child>>,
    control: Mutex<Pipe>,
    /// Ends when the process does; whatever it prints comes here and is thrown away.
    lifeline: UnixStream,
}

impl Process {
    /// Starts a process and tells it to begin.
    ///
    /// # Errors
    /// What the operating system or the process itself says.
    pub(super) fn start(command: &HostCommand, spec: &HostSpec, generation: u64) -> Result<Self, End> {
        let failed = |error: io::Error| {
            let program = command.program.display();
            End::new(EndCause::Start, format!("the engine's process `{program}` cannot be started: {error}"))
        };
        let (control, theirs) = UnixStream::pair().map_err(failed)?;
        let (lifeline, printed) = UnixStream::pair().map_err(failed)?;
        lifeline.set_read_timeout(Some(LOOK_EVERY)).map_err(failed)?;
        control.set_read_timeout(Some(ANSWER_PATIENCE)).map_err(failed)?;
        let child = Command::new(&command.program)
            .args(&command.arguments)
            // What a list of processes shows.
            .arg0(format!("quadrant engines: {}", spec.name))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(OwnedFd::from(printed)))
            // What interrupts the server at a terminal leaves this one to finish.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let (id, child, control) = (child.id(), Mutex::new(Some(child)), Mutex::new(Pipe::new(control)));
        let process = Self { generation, id, child, control, lifeline };
        let begin = Begin {
            parent: std::process::id(),
            onnxruntime: spec.onnxruntime.clone(),
            data_bytes_max: spec.memory_bytes.map(data_bytes_max),
        };
        match process.ask(&Order::Begin(begin), None) {
            Ok(Answer::Done(_)) => Ok(process),
            Ok(Answer::Failed(error)) => Err(process.end(Some(End::new(EndCause::Start, error.to_string())))),
            Ok(_) => Err(process.end(Some(End::new(EndCause::Broken, "it does not answer as it should")))),
            Err(PipeError::Closed) => Err(process.end(None)),
            Err(error) => Err(process.end(Some(End::new(EndCause::Broken, error.to_string())))),
        }
    }

    /// Asks the process for something and waits for the answer.
    ///
    /// # Errors
    /// If it is gone or talks nonsense.
    pub(super) fn ask(&self, order: &Order, stream: Option<UnixStream>) -> Result<Answer, PipeError> {
        Self::ask_over(&mut lock(&self.control), order, stream)
    }

    /// The same, unless the process is busy with another order; says whether it was asked.
    pub(super) fn ask_if_idle(&self, order: &Order) -> bool {
        let Ok(mut control) = self.control.try_lock() else { return false };
        // If it is gone, that is noticed elsewhere.
        drop(Self::ask_over(&mut control, order, None));
        true
    }

    fn ask_over(control: &mut Pipe, order: &Order, stream: Option<UnixStream>) -> Result<Answer, PipeError> {
        control.send(order.kind(), |out| order.write(out), stream.as_ref().map(AsFd::as_fd))?;
        // The process has its own by now; while we had one too, its end would go unnoticed.
        drop(stream);
        let received = control.receive()?;
        Ok(Answer::read(received.kind, received.body)?)
    }

    /// Kills it. Who watches it notices at once.
    pub(super) fn kill(&self) {
        // It may have ended already.
        lock(&self.child).as_mut().map_or(Ok(()), Child::kill).unwrap_or_default();
    }

    /// A connection to it has ended, so its own end is near: whoever watches it looks now. Of all that a
    /// dying process holds, what the watching thread waits for may be the last to go.
    pub(super) fn hang_up(&self) {
        // If that fails it is noticed at the next look.
        self.lifeline.shutdown(Shutdown::Both).unwrap_or_default();
    }

    /// Waits for its end, or until it is to be looked at again. Says whether it still runs.
    pub(super) fn wait_a_little(&self) -> bool {
        let mut printed = [0; 4_096];
        match (&self.lifeline).read(&mut printed) {
            Ok(0) => false,
            Ok(_) => true,
            Err(error) => matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
            ),
        }
    }

    /// The memory that it holds.
    pub(super) fn resident_bytes(&self) -> u64 {
        quadrant_sys::resident_bytes_of(self.id).unwrap_or_default()
    }

    /// Sees to it that it is gone, and says why: `known`, or what its exit says.
    pub(super) fn end(&self, known: Option<End>) -> End {
        self.end_after(known, 0)
    }

    /// The same, with the memory that it was last seen to hold.
    pub(super) fn end_after(&self, known: Option<End>, resident_bytes: u64) -> End {
        if let Some(known) = known {
            self.kill();
            return known;
        }
        // Whoever closes its connections is about to end, and how it ends is worth waiting for; but not long.
        let status = self.wait_for_exit();
        self.kill();
        match status {
            Some(status) => End::of(status, resident_bytes),
            None => End::new(EndCause::Broken, "a connection to it ended and it went on, so it was killed"),
        }
    }

    /// Asks for a while whether it has ended. Does not hold the lock meanwhile: others may want to kill it.
    fn wait_for_exit(&self) -> Option<ExitStatus> {
        (0..EXIT_POLLS).find_map(|poll| {
            if poll > 0 {
                std::thread::park_timeout(EXIT_POLL);
            }
            let exit = lock(&self.child).as_mut()?.try_wait().ok().flatten();
            exit.or_else(|| main_thread_exit(self.id))
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let Some(mut child) = lock(&self.child).take() else { return };
        child.kill().unwrap_or_default();
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        // It takes its time, which must not be the time of whoever starts the next one.
        let reap = move || child.wait().map(drop).unwrap_or_default();
        std::thread::Builder::new().name("reaper".into()).spawn(reap).map(drop).unwrap_or_default();
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("id", &self.id).finish_non_exhaustive()
    }
}

/// How the main thread of a process ended, if it did. The others follow, but one of the idle class may take
/// its time on a busy core, and until it has the process's own exit is not told.
fn main_thread_exit(process: u32) -> Option<ExitStatus> {
    /// The place of the exit code behind the state, as the operating system lists a process.
    const EXIT_CODE: usize = 49;
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split_ascii_whitespace();
    if !matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    Some(ExitStatus::from_raw(fields.nth(EXIT_CODE - 1)?.parse().ok()?))
}

/// What the operating system refuses beyond. The process is killed for what it holds, which says why; this
/// is for what grows faster than it is looked at. It counts also what was reserved and never touched, such
/// as the stacks of threads, so it lies higher.
fn data_bytes_max(resident_bytes_max: u64) -> u64 {
    resident_bytes_max.saturating_add(resident_bytes_max / 4).saturating_add(GROWS_MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_of_a_process_that_nobody_waited_for_is_seen() {
        let mut child = Command::new("sh").args(["-c", "kill -s ABRT $$"]).spawn().unwrap();
        let seen = (0..5_000).find_map(|_| {
            std::thread::park_timeout(Duration::from_millis(2));
            main_thread_exit(child.id())
        });
        assert_eq!(seen, Some(child.wait().unwrap()));
        assert_eq!(main_thread_exit(std::process::id()), None);
    }

    #[test]
    fn an_end_says_what_it_was() {
        for (raw, cause, part) in [
            (9, EndCause::Killed, "signal 9"),
            (6, EndCause::Crashed, "signal `6`"),
            (3 << 8, EndCause::Exited, "status `3`"),
        ] {
            let end = End::of(ExitStatus::from_raw(raw), 5);
            assert_eq!(end.cause, cause);
            assert!(end.reason.contains(part) && end.reason.contains("`5` bytes"), "{}", end.reason);
        }
        let mut names: Vec<_> = EndCause::ALL.map(EndCause::name).to_vec();
        names.dedup();
        assert_eq!(names.len(), EndCause::ALL.len());
    }
}
