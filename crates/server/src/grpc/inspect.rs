//! The calls that ask rather than infer: health, metadata, configuration, the repository index.

use std::sync::Arc;

use quadrant_node::{Handle, IndexEntry, ModelEntry, ModelState};
use quadrant_proto::inference::model_metadata_response::TensorMetadata;
use quadrant_proto::inference::repository_index_response::ModelIndex;
use quadrant_proto::inference::{
    ModelConfig, ModelConfigRequest, ModelConfigResponse, ModelInput, ModelMetadataRequest,
    ModelMetadataResponse, ModelOutput, ModelReadyRequest, ModelReadyResponse, ModelTransactionPolicy,
    RepositoryIndexRequest, RepositoryIndexResponse, ServerLiveRequest, ServerLiveResponse,
    ServerMetadataRequest, ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse,
};
use quadrant_types::{Dim, Error, TensorSpec};

use crate::access::Caller;
use crate::metadata::{self, EXTENSIONS, SERVER_NAME, SERVER_VERSION};

/// The model of this name and version text; empty stands for any version.
///
/// # Errors
/// There is none, or the version is not a number.
pub(crate) fn find(handle: &Handle, name: &str, version: &str) -> Result<Arc<ModelEntry>, Error> {
    let version = match version {
        "" => None,
        digits => Some(digits.parse().map_err(|_| {
            Error::invalid(format!("failed to get model version from specified version string '{digits}'"))
        })?),
    };
    handle.find(name, version)
}

#[expect(clippy::unnecessary_wraps, reason = "every call has this shape")]
pub(crate) fn live(_: ServerLiveRequest) -> Result<ServerLiveResponse, Error> {
    Ok(ServerLiveResponse { live: true })
}

#[expect(clippy::unnecessary_wraps, reason = "every call has this shape")]
pub(crate) fn server_ready(handle: &Handle, _: ServerReadyRequest) -> Result<ServerReadyResponse, Error> {
    Ok(ServerReadyResponse { ready: handle.is_ready() })
}

#[expect(clippy::unnecessary_wraps, reason = "every call has this shape")]
pub(crate) fn model_ready(handle: &Handle, request: &ModelReadyRequest) -> Result<ModelReadyResponse, Error> {
    let found = find(handle, &request.name, &request.version);
    Ok(ModelReadyResponse { ready: found.is_ok_and(|entry| entry.is_ready()) })
}

#[expect(clippy::unnecessary_wraps, reason = "every call has this shape")]
pub(crate) fn server_metadata(_: ServerMetadataRequest) -> Result<ServerMetadataResponse, Error> {
    let extensions = EXTENSIONS.map(str::to_owned).to_vec();
    Ok(ServerMetadataResponse { name: SERVER_NAME.into(), version: SERVER_VERSION.into(), extensions })
}

pub(crate) fn model_metadata(
    handle: &Handle,
    request: &ModelMetadataRequest,
) -> Result<ModelMetadataResponse, Error> {
    let entry = find(handle, &request.name, &request.version)?;
    let spec = &entry.spec;
    let is_version = |line: &IndexEntry| line.name == *spec.name && line.state == ModelState::Ready;
    let tensor = |tensor: &TensorSpec| TensorMetadata {
        name: tensor.name.to_string(),
        datatype: tensor.datatype.name().into(),
        shape: tensor.dims.iter().map(metadata::dimension).collect(),
    };
    Ok(ModelMetadataResponse {
        name: spec.name.to_string(),
        versions: handle.index().into_iter().filter(is_version).map(|line| line.version).collect(),
        platform: spec.platform.to_string(),
        inputs: spec.inputs.iter().map(tensor).collect(),
        outputs: spec.outputs.iter().map(tensor).collect(),
        ..ModelMetadataResponse::default()
    })
}

/// As far as it is known; for a model that batches, the dimensions are without the first.
pub(crate) fn model_config(
    handle: &Handle,
    request: &ModelConfigRequest,
) -> Result<ModelConfigResponse, Error> {
    let entry = find(handle, &request.name, &request.version)?;
    let spec = &entry.spec;
    let skipped = usize::from(entry.batches);
    let dims = |dims: &[Dim]| dims.iter().skip(skipped).map(metadata::dimension).collect();
    let input = |tensor: &TensorSpec| ModelInput {
        name: tensor.name.to_string(),
        data_type: metadata::config_type(tensor.datatype).1,
        dims: dims(&tensor.dims),
        ..ModelInput::default()
    };
    let output = |tensor: &TensorSpec| ModelOutput {
        name: tensor.name.to_string(),
        data_type: metadata::config_type(tensor.datatype).1,
        dims: dims(&tensor.dims),
        ..ModelOutput::default()
    };
    let max_batch_size = if entry.batches { i32::try_from(entry.rows_max).unwrap_or(i32::MAX) } else { 0 };
    let config = ModelConfig {
        name: spec.name.to_string(),
        platform: spec.platform.to_string(),
        backend: entry.engine.to_owned(),
        max_batch_size,
        input: spec.inputs.iter().map(input).collect(),
        output: spec.outputs.iter().map(output).collect(),
        model_transaction_policy: entry.language.as_ref().map(|_| ModelTransactionPolicy { decoupled: true }),
        ..ModelConfig::default()
    };
    Ok(ModelConfigResponse { config: Some(config) })
}

#[expect(clippy::unnecessary_wraps, reason = "every call has this shape")]
pub(crate) fn repository_index(
    handle: &Handle,
    caller: &Caller,
    request: &RepositoryIndexRequest,
) -> Result<RepositoryIndexResponse, Error> {
    let wanted =
        |line: &IndexEntry| caller.sees(&line.name) && (!request.ready || line.state == ModelState::Ready);
    let lines = handle.index().into_iter().filter(wanted);
    let line = |line: IndexEntry| {
        let state = metadata::state(&line).to_owned();
        ModelIndex { name: line.name, version: line.version, state, reason: line.reason }
    };
    Ok(RepositoryIndexResponse { models: lines.map(line).collect() })
}
