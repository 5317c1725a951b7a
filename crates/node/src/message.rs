//! What the driver is told, with the payloads that the scheduler does not see.

use std::sync::Arc;

use quadrant_engine::{EngineError, LaneReport, Sequence};
use quadrant_policy::{Holding, Loaded, ModelTerms, TenantTerms};
use quadrant_types::{
    Error, ErrorCode, HostId, ModelId, PageHash, Request, RequestId, StepId, TenantId, Tensor, Time, Timing,
};
use tokio::sync::oneshot;

use crate::generation::TokenWriter;
use crate::recorder::GenerationRecord;
use crate::{Answer, ModelEntry};

/// Everything that can happen to the node. The scheduler's events, with their payloads.
pub(crate) enum Message {
    Known(ModelId, ModelTerms, Holding),
    LoadWanted(ModelId),
    UnloadWanted(ModelId),
    LoadEnded(ModelId, Result<Loaded, Error>),
    Unloaded(ModelId),
    ModelDown(ModelId),
    Resident(u64),
    Tenant(TenantId, Option<TenantTerms>),
    Hosted(ModelId, HostId),
    HostDown(HostId, Time),
    HostUp(HostId, u64),
    Submit(Box<Pending>),
    Leave(RequestId),
    ReaderReady(RequestId),
    Report(LaneReport),
    Drain,
    Tick,
}

/// A request that has not ended, with what the scheduler does not see.
pub(crate) struct Pending {
    pub(crate) request: Request,
    pub(crate) model: Arc<ModelEntry>,
    pub(crate) inputs: Arc<[Tensor]>,
    pub(crate) outputs: Arc<[usize]>,
    pub(crate) answer: oneshot::Sender<Result<Answer, Error>>,
    pub(crate) timing: Timing,
    /// The step it was in, once that has ended.
    pub(crate) step: Option<StepId>,
    /// The outputs, once its lane has brought them.
    pub(crate) computed: Option<Vec<Tensor>>,
    /// What there is besides if it generates.
    pub(crate) generating: Option<Generating>,
}

/// A request that generates.
pub(crate) struct Generating {
    pub(crate) sequence: Arc<Sequence>,
    pub(crate) writer: TokenWriter,
    /// What tells the whole pages of its prompt from others.
    pub(crate) prefix: Arc<[PageHash]>,
    /// What became of it so far.
    pub(crate) record: GenerationRecord,
}

/// What a client is told of an engine's failure.
pub(crate) fn to_client(error: &EngineError) -> Error {
    let code = match error {
        EngineError::Input(_) => ErrorCode::InvalidArgument,
        EngineError::OutOfMemory(_) => ErrorCode::ResourceExhausted,
        EngineError::Load(_) | EngineError::Revoked | EngineError::Lost { .. } => ErrorCode::Unavailable,
        EngineError::Panicked(_) => ErrorCode::Internal,
    };
    Error::new(code, error.to_string())
}
