//! What the scheduler knows of a request: who, when, how urgent, how much work. Never the payload.

use std::time::Duration;

use crate::{Error, ModelId, RequestId, ShapeId, TenantId, Time};

/// How important a request is. Lower is more important, as in Triton, where 1 is the highest level.
/// The default level lies in the middle, so that a client can ask for less as well as for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(pub u32);

impl Default for Priority {
    fn default() -> Self {
        Self(1_000)
    }
}

/// When the answer is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objective {
    /// Whenever there is time, within the server's longest wait.
    BestEffort,
    /// Of use only until this time; then the request ends, whatever became of it.
    EndBy(Time),
    /// Wanted by one time, and of use until another. It is planned for as if it were of no use after the
    /// first, but an answer that is under way by then is still given.
    Target {
        /// When it is wanted.
        by: Time,
        /// When the request ends, whatever became of it; [`Time::MAX`] if nothing was said.
        until: Time,
    },
    /// Of a request that generates: its first token is wanted by one time, and from then on one token in
    /// every `each`, on average.
    Tokens {
        /// When the first token is wanted. A request that cannot have it by then is refused.
        first_by: Time,
        /// How long each further token may take. One that is late is given all the same.
        each: Duration,
        /// When the request ends, whatever became of it; [`Time::MAX`] if nothing was said.
        until: Time,
    },
}

impl Objective {
    /// When the request ends, whatever became of it; [`Time::MAX`] if nothing was said.
    pub const fn until(self) -> Time {
        match self {
            Self::EndBy(until) | Self::Target { until, .. } | Self::Tokens { until, .. } => until,
            Self::BestEffort => Time::MAX,
        }
    }
}

/// How much there is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// One pass through a model.
    Once {
        /// Rows along the batch dimension; 1 for a model that does not batch.
        rows: u32,
        /// What must be equal for this request to share a batch.
        shape: ShapeId,
        /// Size of the inputs.
        bytes_in: u64,
    },
    /// A sequence of tokens that a model continues, one token a step.
    Generate {
        /// Tokens that it begins with, at least one.
        prompt: u32,
        /// The most tokens that are generated, at least one.
        new_max: u32,
        /// Size of what came with the request.
        bytes_in: u64,
    },
}

impl Work {
    /// Size of what came with the request.
    pub const fn bytes_in(&self) -> u64 {
        match self {
            Self::Once { bytes_in, .. } | Self::Generate { bytes_in, .. } => *bytes_in,
        }
    }

    /// Rows of its first step: those of a batch, or the tokens of a prompt.
    pub const fn rows(&self) -> u32 {
        match self {
            Self::Once { rows, .. } => *rows,
            Self::Generate { prompt, .. } => *prompt,
        }
    }
}

/// A request as the scheduler sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Who it is.
    pub id: RequestId,
    /// Which model it asks for.
    pub model: ModelId,
    /// On whose account.
    pub tenant: TenantId,
    /// How important it is.
    pub priority: Priority,
    /// When its last byte arrived.
    pub arrived: Time,
    /// When its answer is wanted.
    pub objective: Objective,
    /// How much there is to do.
    pub work: Work,
}

/// How a request ended. Every accepted request has exactly one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All chunks of its answer were produced.
    Completed,
    /// It was refused, expired, failed, or was cancelled; the code says which.
    Failed(Error),
}

/// When each stage of a request began, for "where did the time go".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// The last byte of the request was here.
    pub arrived: Time,
    /// Parsed, checked and handed to the scheduler.
    pub submitted: Time,
    /// Its lane began on the step.
    pub began: Time,
    /// Its inputs were gathered into one batch.
    pub gathered: Time,
    /// The engine was done.
    pub computed: Time,
    /// Its rows were cut out of the batch's outputs.
    pub scattered: Time,
    /// Rows in the step, its own included.
    pub batch_rows: u32,
    /// The predicted time of the step.
    pub predicted: Duration,
    /// Cores of the step.
    pub width: usize,
    /// How the operating system treated the step.
    pub class: SchedulingClass,
}

/// How the operating system treats the threads of a lane. Never above the shell's own, so nothing needs
/// root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SchedulingClass {
    /// Somebody waits for it: nice +5, under the shell's sockets and timers.
    #[default]
    Urgent,
    /// Only when nothing else wants the core: `SCHED_IDLE`. An urgent step on the same core preempts it.
    Idle,
}

impl SchedulingClass {
    /// Its name in metrics and explanations.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Urgent => "urgent",
            Self::Idle => "preemptible",
        }
    }
}
