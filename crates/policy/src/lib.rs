//! Every scheduling decision of Quadrant, as one pure state machine.
//!
//! [`Policy::on_event`] takes what happened and when, and appends what is to be done. It reads no clock,
//! starts no thread, sees no payload and uses no randomness: the same events at the same times give the
//! same actions, byte for byte. So the code that ships is the code that the simulator runs.
//!
//! What it does today: requests are ordered across all models by (priority, deadline, arrival); a free
//! lane takes the first model in that order with the largest batch that is waiting; queues and bytes are
//! bounded; what cannot be answered in time ends before it costs anything; a batch that fails is tried
//! again one request at a time, so that a bad request does not take its neighbours down.

mod cost;
mod dispatch;
mod event;
mod invariants;
mod lanes;
mod policy;
mod queue;

pub use event::{Action, Event, LaneShape, Limits, ModelTerms, Requests, Step, StepOutcome, StepReport};
pub use policy::Policy;
