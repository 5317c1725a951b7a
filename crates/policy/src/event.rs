//! The scheduler's whole vocabulary: all that can happen to it, and all that it can ask for.

use std::sync::Arc;
use std::time::Duration;

use quadrant_types::{
    CoreSet, Ending, Error, HostId, LaneId, ModelId, PageHash, PageId, Priority, Request, RequestId,
    SchedulingClass, StepId, TenantId, Time,
};
use smallvec::SmallVec;

/// The requests of one step; a handful stays off the heap.
pub type Requests = SmallVec<[RequestId; 8]>;

/// A lane as the scheduler sees it. Lanes may overlap: of two in one class that share a core only one runs
/// at a time; an urgent one preempts an idle one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneShape {
    /// Its number.
    pub id: LaneId,
    /// The cores that a step on it occupies.
    pub cores: CoreSet,
    /// How the operating system treats its threads.
    pub class: SchedulingClass,
}

/// The time of one kind of step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Rows of the step.
    pub rows: u32,
    /// Cores of the step.
    pub width: usize,
    /// Whether the other cores were busy meanwhile.
    pub beside: bool,
    /// How long it took, in the median.
    pub time: Duration,
}

/// What becomes of a request whose deadline cannot be met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unmet {
    /// It is refused, at once.
    #[default]
    Refuse,
    /// It becomes best effort.
    Demote,
}

/// What the scheduler needs to know of a model, as measured when it was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelTerms {
    /// The most rows of one step; 1 for a model that does not batch.
    pub rows_max: u32,
    /// How many cores a step of it may use, ascending; never empty.
    pub widths: Vec<usize>,
    /// The one lane for it, where it has one to itself.
    pub lane: Option<LaneId>,
    /// The most requests of it that may wait.
    pub queue_max: usize,
    /// How long its first request may wait for others to share its batch.
    pub delay_max: Duration,
    /// Measured times of steps; never empty.
    pub costs: Vec<Cost>,
    /// The input bytes of one row in those measurements.
    pub row_bytes: u64,
    /// What becomes of a request whose deadline cannot be met.
    pub unmet: Unmet,
    /// What its sequences take, if it generates. Then rows are tokens: of a step of one model there is one at
    /// a time, with some tokens of some sequences.
    pub sequences: Option<SequenceTerms>,
}

impl Default for ModelTerms {
    /// Of a model of which nothing is known: it runs alone, on one core.
    fn default() -> Self {
        Self {
            rows_max: 1,
            widths: vec![1],
            lane: None,
            queue_max: 1_024,
            delay_max: Duration::ZERO,
            costs: vec![Cost { rows: 1, width: 1, beside: false, time: Duration::from_secs(1) }],
            row_bytes: 1,
            unmet: Unmet::Refuse,
            sequences: None,
        }
    }
}

/// What the sequences of a model take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceTerms {
    /// Tokens of a page of keys and values, at least 1.
    pub page_tokens: u32,
    /// Pages that there are.
    pub pages: u32,
    /// Tokens of the longest sequence that the model was made for.
    pub tokens_max: u32,
    /// What a thousand keys that tokens attend to add to a step on one core.
    pub thousand_keys: Duration,
}

impl SequenceTerms {
    /// Tokens of the longest sequence that there are pages for.
    pub fn longest(&self) -> u32 {
        self.tokens_max.min(self.pages.saturating_mul(self.page_tokens))
    }
}

/// Whether a model stays in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residency {
    /// It is loaded when it is told to be, and stays.
    Pinned,
    /// It is loaded when a request comes for it, and makes room for others,
    OnDemand {
        /// or goes when it was not used for so long.
        idle_after: Option<Duration>,
    },
}

/// What a model takes of the device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holding {
    /// Bytes while it is resident: its weights, and what its steps need at most.
    pub bytes: u64,
    /// Bytes while it is being loaded; at least as many.
    pub load_bytes: u64,
    /// How long loading takes.
    pub load_time: Duration,
    /// Whether it stays.
    pub residency: Residency,
    /// By when answers are wanted, unless requests say so.
    pub objective: Option<Duration>,
}

/// A model that was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// As measured now, or before.
    pub terms: ModelTerms,
    /// Bytes that it takes.
    pub bytes: u64,
    /// How long loading took.
    pub took: Duration,
}

/// How often requests may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestRate {
    /// One in this time, on average.
    pub every: Duration,
    /// So many at once by whoever has not sent any for a while; at least 1.
    pub burst: u32,
}

/// A tenant's place among the others, and what it may have at most. What is `None` has no bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TenantTerms {
    /// Its share of best-effort time, relative to the others'; 1 for one never named.
    pub weight: u32,
    /// None of its requests counts as more important than this.
    pub priority_max: Option<Priority>,
    /// How often its requests are admitted.
    pub requests: Option<RequestRate>,
    /// Requests that were admitted and have not ended.
    pub concurrency_max: Option<u32>,
    /// Bytes of the inputs of those.
    pub bytes_in_max: Option<u64>,
    /// Its share of the time of all cores, in millionths.
    pub device_ppm: Option<u32>,
}

impl Default for TenantTerms {
    fn default() -> Self {
        Self {
            weight: 1,
            priority_max: None,
            requests: None,
            concurrency_max: None,
            bytes_in_max: None,
            device_ppm: None,
        }
    }
}

impl TenantTerms {
    /// Whether there is anything but a weight.
    pub(crate) fn has_quotas(&self) -> bool {
        *self != Self { weight: self.weight, ..Self::default() }
    }
}

/// All that can happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A model is ready to run on every lane, and its memory is nobody's business here.
    ModelUp(ModelId, ModelTerms),
    /// A model is to run no more; what waits for it ends, and it is forgotten.
    ModelDown(ModelId),
    /// There is such a model, and it can be brought into memory. What is known of it is replaced.
    Known(ModelId, ModelTerms, Holding),
    /// This model is to be loaded. [`Action::Load`] or [`Action::LoadRefused`] answers.
    LoadWanted(ModelId),
    /// This model is to go: it takes no more requests, and [`Action::Unload`] follows when what it has
    /// accepted has ended.
    UnloadWanted(ModelId),
    /// What came of [`Action::Load`].
    LoadEnded(ModelId, Result<Loaded, Error>),
    /// [`Action::Unload`] was done; its bytes are free.
    Unloaded(ModelId),
    /// So many bytes the operating system counts as the process's.
    Resident(u64),
    /// A tenant has these terms from now on, or none any more: then it is like one never named.
    Tenant(TenantId, Option<TenantTerms>),
    /// This model's engine runs in that process, apart from the server's own.
    Hosted(ModelId, HostId),
    /// The process is away; it should be back at this time.
    HostDown(HostId, Time),
    /// The process is there again, with all its models: the one of this number.
    HostUp(HostId, u64),
    /// A request came.
    Arrived(Request),
    /// A request came that generates, with what tells the whole pages of its prompt from others.
    Sequence(Request, Arc<[PageHash]>),
    /// Whoever reads the tokens of a request that generates does not keep up.
    ReaderStalled(RequestId),
    /// He is ready for more.
    ReaderReady(RequestId),
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
    /// The processor time that it had between, over all its cores.
    pub core_time: Duration,
    /// What came of it.
    pub outcome: StepOutcome,
}

/// What came of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepOutcome {
    /// Every request of it has its answer.
    Completed,
    /// Every sequence of it has its tokens; these have all that they will have.
    Iterated(Requests),
    /// None has.
    Failed(Error),
    /// The process that it ran in is gone.
    Lost(Lost),
}

/// How a step was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// What ended the process, as a client is told.
    pub error: Error,
    /// Whether the step was in the process; otherwise that was away already.
    pub began: bool,
    /// Which of the host's processes it was.
    pub generation: u64,
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
    /// Load this model. Its bytes are reserved; [`Event::LoadEnded`] answers.
    Load(ModelId),
    /// This model was told to be loaded and cannot be.
    LoadRefused(ModelId, Error),
    /// Unload this model, which has nothing to do. [`Event::Unloaded`] answers.
    Unload(ModelId),
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
    /// What is computed of each of them, if they are sequences; otherwise empty.
    pub slices: Vec<Slice>,
    /// The sum of their rows.
    pub rows: u32,
    /// How long it should take, undisturbed by more urgent steps on its core.
    pub predicted: Duration,
    /// The model that runs on other cores as it begins.
    pub beside: Option<ModelId>,
}

/// Tokens of a sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The first one's place in the sequence. What comes before it is in the pages.
    pub from: u32,
    /// How many. If they are all that the sequence has, the next one is chosen.
    pub tokens: u32,
    /// The pages of the sequence, in order.
    pub pages: Vec<PageId>,
}
