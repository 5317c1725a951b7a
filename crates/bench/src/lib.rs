//! The load generator behind `quadrant bench`: open loop, so that a slow server does not slow the load down,
//! or closed loop for saturation and for one request at a time.
//!
//! In an open loop the send times are fixed beforehand and latency counts from the intended time, so a stall
//! of server or generator is not omitted (Tene's "coordinated omission"). How late the generator itself was
//! is reported beside it; a run in which that or the machine's steal was large calls itself void.

mod clock;
mod connection;
mod machine;
mod metadata;
mod payload;
mod plan;
mod record;
mod report;
mod run;
mod schedule;
mod spec;
mod stamped;
mod tokens;

use std::io;

pub use machine::cpu_time;
pub use payload::{Fill, TensorSpec};
pub use plan::{Arrivals, Encoding, Length, ModelLoad, Plan, Protocol};
pub use report::{LatencyMs, ModelReport, Report, Snapshot};
pub use run::run;
pub use schedule::{PoissonTimes, Trace, read_trace};
pub use spec::parse_model;
pub use tokens::{Lengths, TokenArrivals, TokenPlan, TokenReport, read_token_trace, run_tokens};

/// Why a run could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The plan makes no sense.
    #[error("{0}")]
    Plan(String),
    /// The server did not answer a first request as it should.
    #[error("the server at `{address}` {said}")]
    Server {
        /// Where it should be.
        address: String,
        /// What it did instead.
        said: String,
    },
    /// A file cannot be read.
    #[error("cannot read `{path}`: {source}")]
    File {
        /// Which.
        path: String,
        /// What the operating system said.
        source: io::Error,
    },
}
