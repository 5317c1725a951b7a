//! Loading and unloading models by name, as Triton's clients ask for it.

use std::sync::Arc;

use quadrant_proto::inference::{
    RepositoryModelLoadRequest, RepositoryModelLoadResponse, RepositoryModelUnloadRequest,
    RepositoryModelUnloadResponse,
};
use quadrant_types::Error;

use crate::Shared;
use crate::http::repository::{Change, refused};

pub(crate) async fn load(
    shared: Arc<Shared>,
    request: RepositoryModelLoadRequest,
) -> Result<RepositoryModelLoadResponse, Error> {
    check(Change::Load, request.parameters.keys())?;
    shared.handle.load_model(&request.model_name).await?;
    Ok(RepositoryModelLoadResponse {})
}

pub(crate) async fn unload(
    shared: Arc<Shared>,
    request: RepositoryModelUnloadRequest,
) -> Result<RepositoryModelUnloadResponse, Error> {
    check(Change::Unload, request.parameters.keys())?;
    shared.handle.unload_model(&request.model_name).await?;
    Ok(RepositoryModelUnloadResponse {})
}

fn check<'a>(change: Change, mut parameters: impl Iterator<Item = &'a String>) -> Result<(), Error> {
    parameters.find_map(|name| refused(change, name)).map_or(Ok(()), Err)
}
