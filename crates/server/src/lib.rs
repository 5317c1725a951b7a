//! HTTP and gRPC: the only crate that knows a wire format.
//!
//! Both front ends do the same three things: bytes become a `wire::WireRequest`, `infer` checks it
//! against the model and waits for the node, and the answer becomes bytes again. Nothing is remembered
//! between requests; what is shared by all connections ([`Shared`]) is the way into the node and the limits.
//!
//! hyper is used directly, without a router: the paths are few and known, and a request then costs no boxed
//! future and no per-request layer.

mod access;
mod asked;
pub mod audit;
mod budgeted;
mod classify;
mod deadline;
mod errors;
mod events;
mod generation;
mod grpc;
mod heavy;
mod http;
mod infer;
mod inflate;
mod json;
mod limits;
mod listen;
mod metadata;
mod repository;
mod shared;
mod terms;
mod timing;
mod validate;
mod wire;

pub use access::{Caller, Grant, KeyHash};
pub use errors::{grpc_code, http_status};
pub use grpc::run_grpc;
pub use http::{run_http, run_metrics};
pub use limits::{Limits, LimitsError};
pub use listen::Drained;
pub use shared::Shared;
pub use terms::{NamedObjective, NamedObjectives};
