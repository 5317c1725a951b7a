//! Engines in a process of their own: what breaks there ends that process and nothing else.
//!
//! An [`EngineHost`] keeps one such process running: it starts it, looks at the memory that it holds, kills
//! it when it must, and starts it again with growing pauses, with the models and lanes that it had. To
//! everybody else its models are models and its runners are runners; while the process is away a step ends
//! at once with [`crate::EngineError::Lost`]. The protocol, in [`messages`], knows nothing of processes but
//! the memory that both sides share, and is what a lane on another machine would speak.

mod codec;
mod link;
mod messages;
mod model;
mod pipe;
mod process;
mod serve;
mod supervise;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quadrant_types::{Clock, Time};

use crate::{EngineError, Model, ModelSource, spawn};
use messages::{Answer, Order, Source};
use model::{IsolatedModel, Placement};
use pipe::PipeError;
use process::{End, Process};

pub use process::EndCause;
pub use serve::{ServeError, serve_engines};

/// How long to wait for a process that is away when a model is to be loaded into it.
const AWAY_PATIENCE: Duration = Duration::from_secs(60);
/// How often a load is tried again because its process ended under another model's step.
const LOADS_MAX: usize = 3;

/// The program that serves engines: this one with an argument, as a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostCommand {
    /// The program.
    pub program: PathBuf,
    /// What makes it call [`serve_engines`].
    pub arguments: Vec<OsString>,
}

/// What a process of engines is to be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSpec {
    /// Its name in logs.
    pub name: Arc<str>,
    /// The memory that it may hold; any if not given.
    pub memory_bytes: Option<u64>,
    /// ONNX Runtime's library, if there is one.
    pub onnxruntime: Option<PathBuf>,
}

/// What happened to a process of engines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostEvent {
    /// It runs, with all models and lanes that it had.
    Up {
        /// Its number in the operating system.
        process: u32,
        /// Its number among those that follow each other, from 1 on.
        generation: u64,
        /// How long it took from its start.
        took: Duration,
    },
    /// It ended, or could not be started.
    Down {
        /// What ended it.
        cause: EndCause,
        /// The same with values, for a person.
        reason: String,
        /// When it should be back: the pause, and as long as it took to start last time.
        back_in: Duration,
    },
}

/// Is told what happens to a process of engines, on the thread that watches it. Must not block.
pub trait HostSink: Send + Sync {
    /// Something happened.
    fn report(&self, event: HostEvent);
}

/// Keeps a process of engines running. Dropping the last clone ends it.
pub struct EngineHost {
    shared: Arc<Shared>,
}

/// What the watching thread and everybody else share.
struct Shared {
    spec: HostSpec,
    command: HostCommand,
    clock: Arc<dyn Clock>,
    sink: Arc<dyn HostSink>,
    state: Mutex<State>,
    changed: Condvar,
    resident_bytes: AtomicU64,
}

struct State {
    phase: Phase,
    /// The process, also while it is not ready yet.
    process: Option<Arc<Process>>,
    /// Counts the processes.
    generation: u64,
    /// Why the present process is being killed.
    condemned: Option<End>,
    /// How the last process ended, and which it was.
    ended: Option<(u64, String)>,
    was_up: bool,
    models: BTreeMap<u32, Arc<Placement>>,
    models_made: u32,
    /// Models that nobody needs any more, to be forgotten by the process.
    retired: Vec<u32>,
    stopped: bool,
}

enum Phase {
    Starting,
    Up,
    Down { reason: String },
}

impl EngineHost {
    /// Starts a process for engines, and starts it again whenever it ends.
    ///
    /// To be called when a thread of the shell has started a lane: the watching thread, and so the process,
    /// takes after the shell.
    ///
    /// # Errors
    /// If the watching thread cannot be started. A process that cannot be is told to the sink.
    pub fn start(
        spec: HostSpec,
        command: HostCommand,
        clock: Arc<dyn Clock>,
        sink: Arc<dyn HostSink>,
    ) -> Result<Arc<Self>, EngineError> {
        let state = State {
            phase: Phase::Starting,
            process: None,
            generation: 0,
            condemned: None,
            ended: None,
            was_up: false,
            models: BTreeMap::new(),
            models_made: 0,
            retired: Vec::new(),
            stopped: false,
        };
        let name = format!("host-{}", spec.name);
        let resident_bytes = AtomicU64::new(0);
        let (state, changed) = (Mutex::new(state), Condvar::new());
        let shared = Arc::new(Shared { spec, command, clock, sink, state, changed, resident_bytes });
        let watched = Arc::clone(&shared);
        // Named like every thread, within the operating system's fifteen letters.
        let name = name.chars().take(15).collect();
        spawn::spawn_as_shell(name, Box::new(move || watched.supervise()))
            .map_err(|error| EngineError::OutOfMemory(format!("a thread cannot be started: {error}")))?;
        Ok(Arc::new(Self { shared }))
    }

    /// What it was started with.
    pub fn spec(&self) -> &HostSpec {
        &self.shared.spec
    }

    /// Loads a model in the process. Blocks for as long as that takes.
    ///
    /// # Errors
    /// What [`crate::load()`] says there, or [`EngineError::Load`] if the process does not survive it.
    pub fn load(self: &Arc<Self>, source: &ModelSource) -> Result<Arc<dyn Model>, EngineError> {
        let what = source.path.display();
        let mut last = String::new();
        for _ in 0..LOADS_MAX {
            let process = self.shared.running()?;
            let number = {
                let mut state = self.shared.state();
                state.models_made += 1;
                state.models_made
            };
            let began = self.shared.clock.now();
            let order = Order::Load(number, Source::from(source));
            let (spec, footprint) = match process.ask(&order, None) {
                Ok(Answer::Loaded(spec, footprint)) => (spec, footprint),
                Ok(Answer::Failed(error)) => return Err(error),
                Ok(Answer::Done(_) | Answer::Ran(..) | Answer::TooLarge(_)) => {
                    self.shared.condemn(process.generation, End::new(EndCause::Broken, "it loads wrongly"));
                    return Err(EngineError::Load(format!("`{what}`: the engine's process is broken")));
                }
                Err(error) => {
                    let reason = self.shared.lost(process.generation, &error);
                    let was_alone = self.shared.state().models.is_empty();
                    last = format!("`{what}`: the engine's process ended while it loaded this: {reason}");
                    if was_alone {
                        break;
                    }
                    continue;
                }
            };
            let took = self.shared.clock.now().since(began);
            let placement = Arc::new(Placement::new((number, took), source, *spec, footprint));
            if self.shared.keep(&process, &placement) {
                return Ok(Arc::new(IsolatedModel::new(Arc::clone(self), placement)));
            }
            last = format!("`{what}`: the engine's process ended as soon as it had loaded this");
        }
        Err(EngineError::Load(last))
    }

    /// Kills the process because a step of it hangs; it is started again.
    pub fn kill_stalled(&self) {
        let generation = self.shared.state().generation;
        let end = End::new(EndCause::Stalled, "a step took far longer than predicted, so it was killed");
        self.shared.condemn(generation, end);
    }

    /// Why its models cannot be run at present; `None` if they can.
    pub fn away(&self) -> Option<String> {
        match &self.shared.state().phase {
            Phase::Up => None,
            Phase::Starting => Some("the engine's process is starting".to_owned()),
            Phase::Down { reason } => {
                Some(format!("the engine's process ended and will be restarted: {reason}"))
            }
        }
    }

    /// The memory that the process held when it was last looked at.
    pub fn resident_bytes(&self) -> u64 {
        self.shared.resident_bytes.load(Ordering::Relaxed)
    }
}

impl Drop for EngineHost {
    /// Ends the process; the watching thread sees to the rest.
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.stopped = true;
        let process = state.process.clone();
        drop(state);
        self.shared.changed.notify_all();
        if let Some(process) = process {
            process.kill();
        }
    }
}

impl fmt::Debug for EngineHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineHost").field("spec", &self.shared.spec).finish_non_exhaustive()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process, once it is up.
    ///
    /// # Errors
    /// If it cannot be started at all, or is away for too long.
    fn running(&self) -> Result<Arc<Process>, EngineError> {
        let until = self.clock.now() + AWAY_PATIENCE;
        let mut state = self.state();
        loop {
            match (&state.phase, &state.process) {
                (Phase::Up, Some(process)) => return Ok(Arc::clone(process)),
                // What never ran will not run for being waited for.
                (Phase::Down { reason }, _) if !state.was_up && state.models.is_empty() => {
                    return Err(EngineError::Load(reason.clone()));
                }
                _ => state = self.wait(state, until)?,
            }
        }
    }

    /// Waits for a change.
    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        until: Time,
    ) -> Result<MutexGuard<'a, State>, EngineError> {
        let rest = until.since(self.clock.now());
        if rest.is_zero() || state.stopped {
            let reason = match &state.phase {
                Phase::Down { reason } => reason.clone(),
                Phase::Starting | Phase::Up => "it does not start".to_owned(),
            };
            return Err(EngineError::Load(format!("the engine's process is away: {reason}")));
        }
        Ok(self.changed.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Has a connection to this process ended, its own end follows: says what it was.
    fn lost(&self, generation: u64, error: &PipeError) -> String {
        self.suspect(generation, error);
        let until = self.clock.now() + AWAY_PATIENCE;
        let mut state = self.state();
        loop {
            if let Some((_, reason)) = state.ended.as_ref().filter(|(ended, _)| *ended >= generation) {
                return reason.clone();
            }
            match self.wait(state, until) {
                Ok(changed) => state = changed,
                Err(_) => return error.to_string(),
            }
        }
    }

    /// A connection to the process of this generation has ended, or brought nonsense.
    fn suspect(&self, generation: u64, error: &PipeError) {
        match error {
            PipeError::Closed => {
                let process = self.state().process.clone();
                if let Some(process) = process.filter(|process| process.generation == generation) {
                    process.hang_up();
                }
            }
            PipeError::Broken(_) | PipeError::System(_) => {
                self.condemn(generation, End::new(EndCause::Broken, format!("it does not answer: {error}")));
            }
        }
    }

    /// Kills the process of this generation, if it still runs.
    fn condemn(&self, generation: u64, end: End) {
        let mut state = self.state();
        let process = state.process.clone().filter(|process| process.generation == generation);
        let Some(process) = process.filter(|_| state.condemned.is_none()) else { return };
        state.condemned = Some(end);
        drop(state);
        process.kill();
    }

    /// Remembers a model that this process has loaded; false if the process is no longer the present one.
    fn keep(&self, process: &Process, placement: &Arc<Placement>) -> bool {
        let mut state = self.state();
        let is_present = matches!(state.phase, Phase::Up) && state.generation == process.generation;
        if is_present {
            state.models.insert(placement.number, Arc::clone(placement));
        }
        is_present
    }
}
