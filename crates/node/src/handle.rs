//! What the protocols see of the node: find a model, submit a request, wait for its answer.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use quadrant_types::{Error, ModelId, ModelSpec, Objective, Priority, Tensor, Time, Timing};

/// One loaded version of one model.
#[derive(Debug)]
pub struct ModelEntry {
    /// Its number within this process.
    pub id: ModelId,
    /// What it takes and gives.
    pub spec: ModelSpec,
    /// The most rows of one step; 1 if the model does not batch along its first dimension.
    pub rows_max: u32,
    /// Whether requests carry a batch dimension first (`rows_max` may still be 1).
    pub batches: bool,
}

impl ModelEntry {
    /// Counts a request that ended before it was submitted, such as one that does not fit the model.
    pub fn record_failure(&self, _error: &Error) {
        unimplemented!()
    }
}

/// A request with its payload, checked against the model's spec.
#[derive(Clone, Debug)]
pub struct Submission {
    /// The model, from [`Handle::find`].
    pub model: Arc<ModelEntry>,
    /// One tensor for each input, in the spec's order.
    pub inputs: Arc<[Tensor]>,
    /// Which outputs are wanted, as indices into the spec's outputs, in the order they are wanted.
    pub outputs: Arc<[usize]>,
    /// How important it is.
    pub priority: Priority,
    /// When its answer is wanted.
    pub objective: Objective,
    /// When its last byte arrived.
    pub arrived: Time,
}

/// A complete answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The wanted outputs, in the order asked for.
    pub outputs: Vec<Tensor>,
    /// Where the time went.
    pub timing: Timing,
}

/// The answer to come. Dropping it cancels the request.
#[derive(Debug)]
pub struct Response {}

impl Future for Response {
    type Output = Result<Answer, Error>;

    fn poll(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<Self::Output> {
        unimplemented!()
    }
}

/// The state of a model as the repository index shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelState {
    /// Being loaded.
    Loading,
    /// Serving.
    Ready,
    /// Not serving; the reason says why.
    Unavailable,
}

/// One line of the repository index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// The model's name.
    pub name: String,
    /// Its version; empty if none could be found.
    pub version: String,
    /// Its state.
    pub state: ModelState,
    /// Why it is not ready; empty if it is.
    pub reason: String,
}

/// The way into the node, shared by all connections.
#[derive(Clone, Debug)]
pub struct Handle {}

impl Handle {
    /// The present, on the node's clock.
    pub fn now(&self) -> Time {
        unimplemented!()
    }

    /// The model of this name and version, the highest ready version if none is given.
    ///
    /// # Errors
    /// `NotFound` in Triton's words if there is no such model or version, or it has no ready version;
    /// `Unavailable` while it loads.
    pub fn find(&self, _name: &str, _version: Option<u64>) -> Result<Arc<ModelEntry>, Error> {
        unimplemented!()
    }

    /// Hands a request to the scheduler.
    ///
    /// # Errors
    /// `ResourceExhausted` or `Unavailable` if it was refused at once.
    pub fn submit(&self, _submission: Submission) -> Result<Response, Error> {
        unimplemented!()
    }

    /// Whether requests are welcome: every model was loaded or has failed, no lane is stalled, and the
    /// node is not draining.
    pub fn is_ready(&self) -> bool {
        unimplemented!()
    }

    /// Every model of the repository, by name and version.
    pub fn index(&self) -> Vec<IndexEntry> {
        unimplemented!()
    }

    /// The metrics in Prometheus' text format 0.0.4.
    pub fn metrics(&self) -> String {
        unimplemented!()
    }
}
