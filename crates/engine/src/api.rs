//! The seam between scheduling and computing.
//!
//! Everything above plans steps; everything below computes them. The traits are small and object safe,
//! and [`Done`] may fire inline (a CPU engine) or later from another thread (a child process, a device
//! queue, a remote rank), so the seam does not change when such engines arrive.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use quadrant_types::SchedulingClass;
use quadrant_types::{CoreSet, LaneId, ModelId, ModelSpec, RequestId, StepId, Tensor, Time};

use crate::{Generated, Language, Sequence};

/// A loaded model. Its weights are shared by all its runners where the engine can.
pub trait Model: Send + Sync {
    /// What it takes and gives.
    fn spec(&self) -> &ModelSpec;

    /// What it occupies.
    fn footprint(&self) -> Footprint;

    /// What a lane needs to run it, with as many threads as the lane has cores.
    ///
    /// # Errors
    /// [`EngineError`] if the engine cannot prepare itself for this lane.
    fn runner(&self, lane: &LaneSpec) -> Result<Box<dyn Runner>, EngineError>;

    /// What is needed to talk to it in words, if it generates. Its steps are then iterations.
    fn language(&self) -> Option<Arc<Language>> {
        None
    }

    /// Tells that from now on runners will be for lanes of these widths only, so that what others needed
    /// while they were tried out need not stay. Asking for another one later still works.
    fn keep_widths(&self, _widths: &[usize]) {}
}

/// Runs the steps of one model on one lane, from the lane's own thread.
pub trait Runner: Send {
    /// Computes `work` and fires `done` exactly once, now or later. A `done` that is dropped instead
    /// reports a failure, so a request is never lost.
    fn submit(&mut self, work: StepWork, done: Done);

    /// Computes tokens of some sequences and fires `done` exactly once, as [`Runner::submit`] does: with a
    /// token for each part that is computed to its end, in the order of the parts.
    fn iterate(&mut self, parts: Vec<SequencePart>, done: Done<Vec<Option<Generated>>>) {
        drop(parts);
        done.fire(Err(EngineError::Input("the model generates nothing".into())));
    }

    /// Takes a step back that was submitted and has not begun; its `done` fires with
    /// [`EngineError::Revoked`]. An engine that begins at once, as on a CPU, has nothing to take back.
    fn revoke(&mut self, _step: StepId) {}
}

/// The bytes a model occupies while it is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Bytes of weights, as far as the engine knows.
    pub weights_bytes: u64,
    /// Bytes that are there once more than the weights as soon as widths share them: what kernels
    /// repacked, while the weights stay for the widths to come. Measured as the growth of the process, so
    /// other work meanwhile counts too; 0 while nothing is shared.
    pub repacked_bytes: u64,
    /// Bytes that each further width takes: what its widths do not share. Measured in the same way; 0
    /// as long as there was one width.
    pub further_width_bytes: u64,
}

/// Which lane: its cores and its scheduling class, fixed when it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneSpec {
    /// Its number.
    pub id: LaneId,
    /// The cores it may use; as many threads compute a step.
    pub cores: CoreSet,
    /// How the operating system treats its threads.
    pub class: SchedulingClass,
}

/// One batch, ready to compute.
#[derive(Clone, Debug)]
pub struct StepWork {
    /// Its number, for [`Runner::revoke`].
    pub step: StepId,
    /// One tensor for each input of the model, in the model's order.
    pub inputs: Vec<Tensor>,
    /// Which outputs are wanted, as indices into the model's outputs, in the order they are wanted.
    pub outputs: Arc<[usize]>,
}

/// The wanted outputs, in the order they were asked for.
pub type StepResult = Result<Vec<Tensor>, EngineError>;

/// Fires once with the result of a step.
pub struct Done<T = Vec<Tensor>> {
    then: Option<Then<T>>,
    core_time_elsewhere: Duration,
}

type Then<T> = Box<dyn FnOnce(Result<T, EngineError>, Duration) + Send>;

impl<T> Done<T> {
    /// Calls `then` with the result.
    pub fn new(then: impl FnOnce(Result<T, EngineError>) + Send + 'static) -> Self {
        Self::timed(|result, _| then(result))
    }

    /// Calls `then` with the result and with the processor time that other threads than the caller of
    /// [`Runner::submit`] took for it, as far as the engine told.
    pub fn timed(then: impl FnOnce(Result<T, EngineError>, Duration) + Send + 'static) -> Self {
        Self { then: Some(Box::new(then)), core_time_elsewhere: Duration::ZERO }
    }

    /// Tells that a thread of the engine's own took this much processor time for the step.
    pub fn add_core_time(&mut self, elsewhere: Duration) {
        self.core_time_elsewhere += elsewhere;
    }

    /// Reports the result.
    pub fn fire(mut self, result: Result<T, EngineError>) {
        self.finish(result);
    }

    fn finish(&mut self, result: Result<T, EngineError>) {
        if let Some(then) = self.then.take() {
            then(result, self.core_time_elsewhere);
        }
    }
}

impl<T> Drop for Done<T> {
    /// A step whose engine forgot it, or panicked, still ends.
    fn drop(&mut self) {
        if self.then.is_some() {
            self.finish(Err(EngineError::Panicked("the engine gave no result".into())));
        }
    }
}

impl<T> fmt::Debug for Done<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Done")
    }
}

/// Why an engine did not do as asked. Split where the caller acts differently.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The model file cannot be served; the text says why, for a person.
    #[error("{0}")]
    Load(String),
    /// The engine refused these inputs: an index out of range, shapes that do not fit each other.
    #[error("the model cannot run this input: {0}")]
    Input(String),
    /// The engine could not get the memory it needed.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// The engine panicked or lost the step.
    #[error("the engine failed: {0}")]
    Panicked(String),
    /// The step was taken back before it began.
    #[error("the step was revoked")]
    Revoked,
    /// The process that the engine runs in is gone; it is being started again.
    #[error("the engine's process is gone: {reason}")]
    Lost {
        /// What ended it, as far as it is known, for a person.
        reason: String,
        /// Whether the step was in it; otherwise it was away already.
        began: bool,
        /// Which of the processes that follow each other it was.
        generation: u64,
    },
}

/// What a lane is asked to run.
#[derive(Clone, Debug)]
pub struct LaneWork {
    /// The step's number.
    pub step: StepId,
    /// The model, whose runner was installed on the lane.
    pub model: ModelId,
    /// What of which requests.
    pub task: Task,
}

/// The parts of a step.
#[derive(Clone, Debug)]
pub enum Task {
    /// One batch, not yet gathered.
    Batch {
        /// The requests of the batch. More than one only for a model that batches along its first dimension.
        parts: Vec<Part>,
        /// Which outputs are wanted; the same for all parts.
        outputs: Arc<[usize]>,
    },
    /// Tokens of some sequences.
    Iteration(Vec<SequencePart>),
}

/// Tokens of one sequence.
#[derive(Clone, Debug)]
pub struct SequencePart {
    /// Whose it is.
    pub request: RequestId,
    /// The sequence.
    pub sequence: Arc<Sequence>,
    /// The place of the first token to be computed. The keys and values of those before it are in the pages.
    pub from: usize,
    /// How many. If they are all that there are, the next token is chosen.
    pub tokens: usize,
    /// The pages of the sequence, in order.
    pub pages: Vec<usize>,
}

/// One request's share of a step.
#[derive(Clone, Debug)]
pub struct Part {
    /// Whose it is.
    pub request: RequestId,
    /// Rows along the first dimension.
    pub rows: usize,
    /// One tensor for each input of the model, in the model's order.
    pub inputs: Arc<[Tensor]>,
}

/// One request's share of the outputs, in the order asked for.
#[derive(Clone, Debug)]
pub struct PartOutputs {
    /// Whose it is.
    pub request: RequestId,
    /// The wanted outputs.
    pub outputs: Vec<Tensor>,
    /// The token that was chosen, if it is a sequence that was computed to its end.
    pub generated: Option<Generated>,
}

/// How a step ended on its lane, with the time of every stage.
#[derive(Clone, Debug)]
pub struct LaneReport {
    /// Which step.
    pub step: StepId,
    /// Which lane.
    pub lane: LaneId,
    /// The lane took the step up.
    pub began: Time,
    /// The batch was gathered.
    pub gathered: Time,
    /// The engine was done.
    pub computed: Time,
    /// The outputs were cut apart.
    pub scattered: Time,
    /// Processor time that the step took. On a lane of one core it is counted by the operating system, so
    /// it stands still while something of a higher class has the core; on a wide lane, and where the step
    /// ended on another thread, it is the time from `gathered` to `computed` on every core of the lane.
    pub core_time: Duration,
    /// Each part's outputs, in the order of the parts; or why the whole step failed.
    pub result: Result<Vec<PartOutputs>, EngineError>,
}

/// Receives the reports of all lanes, on the lanes' threads. Must not block.
pub trait LaneSink: Send + Sync {
    /// A step ended.
    fn report(&self, report: LaneReport);
}
