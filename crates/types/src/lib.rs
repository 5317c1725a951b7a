//! The vocabulary that every other crate speaks: ids, time, tensors, buffers, requests, model
//! specifications and the one closed set of error codes.
//!
//! It does no I/O, reads no clock and decides nothing. Payloads ([`Tensor`], [`AlignedBuffer`]) and
//! metadata ([`Request`]) are separate types on purpose: the scheduler sees only metadata, so it can be
//! simulated, and it can run far from the data.

mod budget;
mod buffer;
mod error;
mod id;
mod request;
mod spec;
mod tensor;
mod time;

pub use budget::{BudgetExhausted, IoBudget, Lease};
pub use buffer::{ALIGNMENT, AlignedBuffer};
pub use error::{Error, ErrorCode, Fault, Reason};
pub use id::{CoreSet, HostId, LaneId, ModelId, PageHash, PageId, RequestId, ShapeId, StepId, TenantId};
pub use request::{Ending, Objective, Priority, Request, SchedulingClass, Timing, Work};
pub use spec::{Dim, ModelSpec, Symbol, TensorSpec};
pub use tensor::{DataType, Shape, Tensor, element_count};
pub use time::{Clock, Time};
