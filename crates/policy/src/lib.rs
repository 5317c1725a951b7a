//! Every scheduling decision of Quadrant, as one pure state machine.
//!
//! [`Policy::on_event`] takes what happened and when, and appends what is to be done. It reads no clock,
//! starts no thread, sees no payload and uses no randomness: the same events at the same times give the
//! same actions, byte for byte. So the code that ships is the code that the simulator runs.
//!
//! How it decides is told in `docs/scheduling.md`. In short: work with deadlines runs in the order of its
//! latest starts, across all models, on as few cores as are fast enough; admission refuses what could not
//! end in time or would make others late; long steps are preempted by short urgent ones; best effort
//! shares what is left by weight, and has a floor. Two other disciplines are there to compare with.

mod admission;
mod caution;
mod cost;
mod demand;
mod dispatch;
mod doubt;
mod event;
mod fairness;
mod floor;
mod hosts;
mod invariants;
mod iteration;
mod iteration_cost;
mod lately;
mod ledger;
mod limits;
mod live;
mod load;
mod loads;
mod pace;
mod pages;
mod paused;
mod policy;
mod queue;
mod quota;
mod residency;
mod running;
mod sequences;
mod shares;
mod slowdown;
mod span;
mod waiting;

pub use event::{
    Action, Cost, Event, Holding, LaneShape, Loaded, Lost, ModelTerms, RequestRate, Requests, Residency,
    SequenceTerms, Slice, Step, StepOutcome, StepReport, TenantTerms, Unmet,
};
pub use ledger::{Ledger, Purpose};
pub use limits::{Discipline, Eviction, Limits, MemoryBudget};
pub use policy::Policy;
pub use quota::TenantUsage;
