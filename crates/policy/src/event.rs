//! The scheduler's whole vocabulary: all that can happen to it, and all that it can ask for.

use std::time::Duration;

use quadrant_types::{CoreSet, Ending, Error, LaneId, ModelId, Request, RequestId, StepId, Time};
use smallvec::SmallVec;

/// The requests of one step; a handful stays off the heap.
pub type Requests = SmallVec<[RequestId; 8]>;

/// Bounds that hold for the whole domain. Reaching one is a normal answer, never a panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests waiting, over all models.
    pub queued_requests_max: usize,
    /// Bytes of inputs waiting or running, over all models.
    pub bytes_in_max: u64,
    /// The longest that any request waits, objective or not.
    pub wait_max: Duration,
    /// A step that runs this many times its prediction marks its lane as stalled,
    pub stall_factor: u32,
    /// but never before this time, so that noise on a short step does not count.
    pub stall_floor: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queued_requests_max: 16_384,
            bytes_in_max: 1 << 30,
            wait_max: Duration::from_mins(1),
            stall_factor: 10,
            stall_floor: Duration::from_secs(1),
        }
    }
}

/// A lane as the scheduler sees it. Lanes may overlap: of two that share a core only one runs at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneShape {
    /// Its number.
    pub id: LaneId,
    /// The cores that a step on it occupies.
    pub cores: CoreSet,
}

/// What the scheduler needs to know of a model, as measured when it was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelTerms {
    /// The most rows of one step; 1 for a model that does not batch.
    pub rows_max: u32,
    /// How many cores a step of it uses.
    pub width: usize,
    /// The most requests of it that may wait.
    pub queue_max: usize,
    /// How long its first request may wait for others to share its batch.
    pub delay_max: Duration,
    /// The measured time of a step by number of rows, ascending; never empty.
    pub costs: Vec<(u32, Duration)>,
    /// The input bytes of one row in those measurements.
    pub row_bytes: u64,
}

/// All that can happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A model is ready to run on every lane.
    ModelUp(ModelId, ModelTerms),
    /// A model is to run no more; what waits for it ends.
    ModelDown(ModelId),
    /// A request came.
    Arrived(Request),
    /// Nobody waits for this request any more.
    Left(RequestId),
    /// A step ended on its lane.
    Ended(StepReport),
    /// No new work; finish what was accepted.
    Drain,
    /// [`crate::Policy::next_deadline`] has come.
    Tick,
}

/// How a step went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepReport {
    /// Which step.
    pub step: StepId,
    /// When its lane took it up.
    pub began: Time,
    /// When its lane was free again.
    pub ended: Time,
    /// What came of it.
    pub outcome: StepOutcome,
}

/// What came of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepOutcome {
    /// Every request of it has its answer.
    Completed,
    /// None has.
    Failed(Error),
}

/// All that can be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Run this step, now.
    Run(Step),
    /// This request is over. Exactly one for every request that arrived.
    End(RequestId, Ending),
    /// The lane has been busy far longer than predicted; its requests were ended.
    LaneStalled(LaneId, StepId),
    /// The stalled step has ended after all.
    LaneRecovered(LaneId),
    /// Draining is over: nothing waits, nothing runs but what is stuck.
    Drained,
}

/// A batch of requests on a lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its number.
    pub id: StepId,
    /// The model to run.
    pub model: ModelId,
    /// Where.
    pub lane: LaneId,
    /// Whose rows, in order.
    pub requests: Requests,
    /// The sum of their rows.
    pub rows: u32,
    /// How long it should take.
    pub predicted: Duration,
}
