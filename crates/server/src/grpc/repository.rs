//! Loading and unloading models by name, as Triton's clients ask for it.

use quadrant_proto::inference::{
    RepositoryModelLoadRequest, RepositoryModelLoadResponse, RepositoryModelUnloadRequest,
    RepositoryModelUnloadResponse,
};
use quadrant_types::Error;

use crate::Shared;
use crate::access::Caller;
use crate::repository::{Change, change, refused};

pub(crate) async fn load(
    shared: &Shared,
    caller: &Caller,
    request: RepositoryModelLoadRequest,
) -> Result<RepositoryModelLoadResponse, Error> {
    check(Change::Load, request.parameters.keys())?;
    change(shared, caller, Change::Load, &request.model_name).await?;
    Ok(RepositoryModelLoadResponse {})
}

pub(crate) async fn unload(
    shared: &Shared,
    caller: &Caller,
    request: RepositoryModelUnloadRequest,
) -> Result<RepositoryModelUnloadResponse, Error> {
    check(Change::Unload, request.parameters.keys())?;
    change(shared, caller, Change::Unload, &request.model_name).await?;
    Ok(RepositoryModelUnloadResponse {})
}

fn check<'a>(change: Change, mut parameters: impl Iterator<Item = &'a String>) -> Result<(), Error> {
    parameters.find_map(|name| refused(change, name)).map_or(Ok(()), Err)
}
