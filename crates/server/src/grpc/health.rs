//! `grpc.health.v1`: the server under its empty name and those of its services, and each model under its own.
//!
//! It asks the node instead of keeping a table, so it cannot be out of date. A watcher is told of changes
//! within half a second.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use http::{HeaderMap, Response};
use quadrant_node::Handle;
use quadrant_types::{Error, ErrorCode};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::Shared;
use crate::access::Caller;
use crate::grpc::frame::{GrpcBody, Messages, framed};
use crate::grpc::{SERVICE, decoded, error_response, success};
use crate::listen::Link;

/// How often a watched status is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// This service.
const HEALTH: &str = "grpc.health.v1.Health";

fn status(handle: &Handle, service: &str) -> Option<ServingStatus> {
    let is_serving = match service {
        "" | SERVICE | HEALTH => handle.is_ready(),
        model => match handle.find(model, None) {
            Ok(entry) => entry.is_ready(),
            Err(_) if handle.index().iter().any(|line| line.name == model) => false,
            Err(_) => return None,
        },
    };
    Some(if is_serving { ServingStatus::Serving } else { ServingStatus::NotServing })
}

/// The present status.
///
/// # Errors
/// There is nothing of this name, or it is not the caller's business.
pub(crate) fn check(
    shared: &Shared,
    headers: &HeaderMap,
    request: &HealthCheckRequest,
) -> Result<HealthCheckResponse, Error> {
    may_know(shared, headers, &request.service)?;
    let unknown = || Error::new(ErrorCode::NotFound, format!("service `{}` is not known", request.service));
    status(&shared.handle, &request.service).map(message).ok_or_else(unknown)
}

/// How the server is, everybody may know; how a model is, whoever may use it.
fn may_know(shared: &Shared, headers: &HeaderMap, service: &str) -> Result<(), Error> {
    match service {
        "" | SERVICE | HEALTH => Ok(()),
        model => Caller::of(shared, headers)?.may_use(shared, model),
    }
}

fn message(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

/// The status now, and again whenever it changes, until the client or the server ends.
pub(crate) async fn watch(
    shared: &Arc<Shared>,
    link: Link,
    headers: &HeaderMap,
    mut messages: Messages,
) -> Response<GrpcBody> {
    let received = messages.only(shared).await.and_then(decoded);
    let allowed = received.and_then(|request: HealthCheckRequest| {
        may_know(shared, headers, &request.service).map(|()| request)
    });
    let request = match allowed {
        Ok(request) => request,
        Err(error) => return error_response(&error),
    };
    let state = (Arc::clone(shared), link, request.service, None, false);
    let changes = stream::unfold(state, |(shared, mut link, service, told, mut stopped)| async move {
        loop {
            let now = status(&shared.handle, &service).unwrap_or(ServingStatus::ServiceUnknown);
            if told != Some(now) {
                let ranges = [framed(&message(now))].into();
                return Some((Ok(ranges), (shared, link, service, Some(now), stopped)));
            }
            if stopped {
                return None;
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => (),
                // One more look: that the server is draining is what a watcher waits to hear.
                () = link.stopped() => stopped = true,
            }
        }
    });
    success(GrpcBody::stream(Box::pin(changes)))
}
