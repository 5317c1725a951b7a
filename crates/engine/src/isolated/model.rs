//! A model and its runners in another process, as the rest of the server sees them.
//!
//! What is needed to bring both back into a new process is kept here: the file, the lanes. A runner's
//! connection lies in a slot that whoever watches the process fills again.

use std::fmt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use quadrant_types::ModelSpec;

use super::link::Link;
use super::messages::{Answer, Order, Source};
use super::pipe::{Pipe, PipeError};
use super::process::Process;
use super::{EngineHost, LOADS_MAX};
use crate::{Done, EngineError, Footprint, LaneSpec, Model, ModelSource, Runner, StepResult, StepWork};

/// What a step that found no process is told.
const AWAY: &str = "it is being restarted";

/// A model as it stands in the process, whichever that is.
#[derive(Debug)]
pub(super) struct Placement {
    pub(super) number: u32,
    /// How long it took to load.
    pub(super) took: Duration,
    source: Source,
    spec: ModelSpec,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    footprint: Footprint,
    widths: Option<Vec<usize>>,
    lanes: Vec<Weak<Slot>>,
}

/// A runner's place in the process.
#[derive(Debug)]
struct Slot {
    lane: LaneSpec,
    connection: Mutex<Option<Connection>>,
}

#[derive(Debug)]
struct Connection {
    link: Link,
    generation: u64,
}

impl Placement {
    pub(super) fn new(
        (number, took): (u32, Duration),
        source: &ModelSource,
        spec: ModelSpec,
        footprint: Footprint,
    ) -> Self {
        let spec = ModelSpec { labels: source.labels.clone(), ..spec };
        let kept = Kept { footprint, ..Kept::default() };
        Self { number, took, source: Source::from(source), spec, kept: Mutex::new(kept) }
    }

    /// Loads the model into a new process and gives its runners their lanes back.
    pub(super) fn bring_back(&self, process: &Process) -> Result<(), String> {
        let name = &self.source.name;
        let failed = |error: &dyn fmt::Display| format!("model `{name}` could not be loaded again: {error}");
        let loaded = process.ask(&Order::Load(self.number, self.source.clone()), None);
        match loaded.map_err(|error| failed(&error))? {
            Answer::Loaded(spec, _)
                if spec.inputs == self.spec.inputs && spec.outputs == self.spec.outputs => {}
            Answer::Loaded(..) => return Err(failed(&"its file has changed")),
            Answer::Failed(error) => return Err(failed(&error)),
            Answer::Done(_) | Answer::Ran(..) | Answer::TooLarge(_) => {
                return Err(failed(&"it answers something else than was asked"));
            }
        }
        let (widths, lanes) = {
            let kept = self.kept();
            (kept.widths.clone(), kept.lanes.clone())
        };
        // The widest first, as when they were asked for.
        for slot in lanes.iter().filter_map(Weak::upgrade) {
            let connection = self.open(process, slot.lane).map_err(|error| failed(&error))?;
            *slot.connection() = Some(connection);
        }
        if let Some(widths) = widths {
            let order = Order::KeepWidths(self.number, widths);
            process.ask(&order, None).map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    /// Opens a lane in the process.
    fn open(&self, process: &Process, lane: LaneSpec) -> Result<Connection, OpenError> {
        let (ours, theirs) = UnixStream::pair().map_err(|error| {
            OpenError::Engine(EngineError::OutOfMemory(format!("no connection can be opened: {error}")))
        })?;
        match process.ask(&Order::Open(self.number, lane), Some(theirs))? {
            Answer::Done(footprint) => {
                self.kept().footprint = footprint;
                let link = Link::new(Pipe::new(ours));
                Ok(Connection { link, generation: process.generation })
            }
            Answer::Failed(error) => Err(OpenError::Engine(error)),
            Answer::Loaded(..) | Answer::Ran(..) | Answer::TooLarge(_) => {
                Err(OpenError::Engine(EngineError::Panicked("the engine's process is broken".into())))
            }
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a lane could not be opened.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error(transparent)]
    Engine(EngineError),
    #[error(transparent)]
    Process(#[from] PipeError),
}

impl Slot {
    fn connection(&self) -> MutexGuard<'_, Option<Connection>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A model in another process.
pub(super) struct IsolatedModel {
    placed: Arc<Placed>,
}

/// A model's place in a host, given up when neither the model nor a runner needs it.
struct Placed {
    host: Arc<EngineHost>,
    placement: Arc<Placement>,
}

impl Drop for Placed {
    fn drop(&mut self) {
        let mut state = self.host.shared.state();
        state.models.remove(&self.placement.number);
        // Whoever watches the process tells it: this may be a lane's thread, which must not wait for a load.
        state.retired.push(self.placement.number);
    }
}

impl IsolatedModel {
    pub(super) fn new(host: Arc<EngineHost>, placement: Arc<Placement>) -> Self {
        Self { placed: Arc::new(Placed { host, placement }) }
    }
}

impl Model for IsolatedModel {
    fn spec(&self) -> &ModelSpec {
        &self.placed.placement.spec
    }

    fn footprint(&self) -> Footprint {
        self.placed.placement.kept().footprint
    }

    fn runner(&self, lane: &LaneSpec) -> Result<Box<dyn Runner>, EngineError> {
        let Placed { host, placement } = &*self.placed;
        let mut last = String::new();
        for _ in 0..LOADS_MAX {
            let process = host.shared.running()?;
            let connection = match placement.open(&process, *lane) {
                Ok(connection) => connection,
                Err(OpenError::Engine(error)) => return Err(error),
                Err(OpenError::Process(error)) => {
                    last = host.shared.lost(process.generation, &error);
                    continue;
                }
            };
            let slot = Arc::new(Slot { lane: *lane, connection: Mutex::new(Some(connection)) });
            // Under the state's lock: a new process is given either no connection for this slot, or its own.
            let state = host.shared.state();
            if state.generation == process.generation {
                let mut kept = placement.kept();
                kept.lanes.retain(|slot| slot.strong_count() > 0);
                kept.lanes.push(Arc::downgrade(&slot));
                drop(kept);
                drop(state);
                return Ok(Box::new(IsolatedRunner { placed: Arc::clone(&self.placed), slot }));
            }
        }
        Err(EngineError::Lost { reason: last, began: false, generation: 0 })
    }

    fn keep_widths(&self, widths: &[usize]) {
        let Placed { host, placement } = &*self.placed;
        placement.kept().widths = Some(widths.to_vec());
        let process = host.shared.state().process.clone();
        let order = Order::KeepWidths(placement.number, widths.to_vec());
        // A process that is away is told when it is back.
        if let Some(Ok(Answer::Done(footprint))) = process.map(|process| process.ask(&order, None)) {
            placement.kept().footprint = footprint;
        }
    }
}

impl fmt::Debug for IsolatedModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IsolatedModel").field("source", &self.placed.placement.source).finish_non_exhaustive()
    }
}

struct IsolatedRunner {
    placed: Arc<Placed>,
    slot: Arc<Slot>,
}

impl IsolatedRunner {
    fn run(&self, work: &StepWork) -> (StepResult, Duration) {
        let lost = |reason: String, began, generation| {
            (Err(EngineError::Lost { reason, began, generation }), Duration::ZERO)
        };
        let mut connection = self.slot.connection();
        let Some(Connection { link, generation }) = connection.as_mut() else {
            return lost(AWAY.to_owned(), false, 0);
        };
        let generation = *generation;
        match link.run(work) {
            Ok(ran) => ran,
            Err(error) => {
                *connection = None;
                drop(connection);
                let shared = &self.placed.host.shared;
                lost(shared.lost(generation, &error), true, generation)
            }
        }
    }
}

impl Runner for IsolatedRunner {
    fn submit(&mut self, work: StepWork, mut done: Done) {
        let (result, core_time) = self.run(&work);
        done.add_core_time(core_time);
        // After the report this thread may not run for a while, and a body's lease would go on.
        drop(work);
        done.fire(result);
    }
}
