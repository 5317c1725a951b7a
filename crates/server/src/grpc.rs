//! The gRPC front end: the inference service, health, and reflection.
//!
//! The framing of messages is read and written here and not by tonic's server: a message then goes once into
//! a buffer that its length was leased for, large tensors leave without a copy, and a broken message is
//! the client's mistake (`INVALID_ARGUMENT`) instead of `INTERNAL`. Status codes, the status in headers, the
//! reflection service and the clients are tonic's.

mod contents;
mod encode;
mod frame;
mod generate;
mod health;
mod infer;
mod inspect;
mod repository;
mod weight;

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use prost::Message;
use quadrant_proto::inference::{ModelConfigRequest, ModelMetadataRequest, ModelReadyRequest};
use quadrant_types::{Error, ErrorCode};
use tokio::net::TcpListener;
use tower_service::Service as _;

use self::frame::{GrpcBody, Messages, framed};
use crate::access::Caller;
use crate::http::REQUEST_ID;
use crate::listen::{Drained, Link, Protocol, listen};
use crate::{Shared, errors};

/// The inference service.
const SERVICE: &str = "inference.GRPCInferenceService";

/// tonic's reflection service behind one function, because its type has no name.
type Reflection = Arc<dyn Fn(Request<Incoming>) -> ReflectionAnswer + Send + Sync>;
type ReflectionAnswer = Pin<Box<dyn Future<Output = Response<tonic::body::Body>> + Send>>;

/// Serves gRPC until `shutdown`, then ends what was accepted, at the latest after `Limits::drain_timeout`.
pub async fn run_grpc(
    listener: TcpListener,
    shared: Arc<Shared>,
    shutdown: impl Future<Output = ()>,
) -> Drained {
    let per_connection = Arc::clone(&shared);
    let reflection = reflection();
    let service = move |link: Link| {
        let shared = Arc::clone(&per_connection);
        let reflection = Arc::clone(&reflection);
        service_fn(move |request: Request<Incoming>| {
            link.request_arrived();
            answer(Arc::clone(&shared), link.clone(), Arc::clone(&reflection), request)
        })
    };
    listen(listener, &shared.limits, Protocol::Grpc, shutdown, service).await
}

fn reflection() -> Reflection {
    let services = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(quadrant_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let v1 = services().build_v1().expect("our descriptors are complete");
    let v1alpha = services().build_v1alpha().expect("our descriptors are complete");
    Arc::new(move |request| {
        let (mut v1, mut v1alpha) = (v1.clone(), v1alpha.clone());
        Box::pin(async move {
            let is_v1 = request.uri().path().starts_with("/grpc.reflection.v1.");
            let answered = if is_v1 { v1.call(request).await } else { v1alpha.call(request).await };
            answered.unwrap_or_else(|never| match never {})
        })
    })
}

async fn answer(
    shared: Arc<Shared>,
    link: Link,
    reflection: Reflection,
    request: Request<Incoming>,
) -> Result<Response<GrpcBody>, Infallible> {
    let is_grpc =
        |value: &HeaderValue| value.as_bytes().get(..16).is_some_and(|head| head == b"application/grpc");
    if !request.headers().get(CONTENT_TYPE).is_some_and(is_grpc) {
        let mut response = Response::new(GrpcBody::default());
        *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return Ok(response);
    }
    let request_id = request.headers().get(REQUEST_ID).cloned();
    let mut response = dispatch(&shared, link, reflection, request).await;
    if let Some(request_id) = request_id {
        response.headers_mut().insert(REQUEST_ID, request_id);
    }
    Ok(response)
}

async fn dispatch(
    shared: &Arc<Shared>,
    link: Link,
    reflection: Reflection,
    request: Request<Incoming>,
) -> Response<GrpcBody> {
    if request.uri().path().starts_with("/grpc.reflection.") {
        return reflection(request).await.map(GrpcBody::tonic);
    }
    let (parts, body) = request.into_parts();
    let messages = match Messages::new(&parts.headers, body) {
        Ok(messages) => messages,
        Err(error) => return error_response(&error),
    };
    let handle = &shared.handle;
    match parts.uri.path() {
        "/inference.GRPCInferenceService/ServerLive" => unary(shared, messages, inspect::live).await,
        "/inference.GRPCInferenceService/ServerReady" => {
            unary(shared, messages, |request| inspect::server_ready(handle, request)).await
        }
        "/grpc.health.v1.Health/Check" => {
            unary(shared, messages, |request| health::check(shared, &parts.headers, &request)).await
        }
        "/grpc.health.v1.Health/Watch" => health::watch(shared, link, &parts.headers, messages).await,
        path => match Caller::of(shared, &parts.headers) {
            Ok(caller) => called(shared, (link, &caller), (path, &parts.headers), messages).await,
            Err(error) => error_response(&error),
        },
    }
}

/// What needs somebody who is known.
async fn called(
    shared: &Arc<Shared>,
    (link, caller): (Link, &Caller),
    (path, headers): (&str, &HeaderMap),
    messages: Messages,
) -> Response<GrpcBody> {
    let handle = &shared.handle;
    let may_use = |model: &str| caller.may_use(shared, model);
    match path {
        "/inference.GRPCInferenceService/ModelInfer" => infer::unary(shared, caller, headers, messages).await,
        "/inference.GRPCInferenceService/ModelStreamInfer" => {
            infer::stream(shared, (link, caller), headers, messages)
        }
        "/inference.GRPCInferenceService/ModelReady" => {
            unary(shared, messages, |request: ModelReadyRequest| {
                may_use(&request.name).and_then(|()| inspect::model_ready(handle, &request))
            })
            .await
        }
        "/inference.GRPCInferenceService/ServerMetadata" => {
            unary(shared, messages, inspect::server_metadata).await
        }
        "/inference.GRPCInferenceService/ModelMetadata" => {
            unary(shared, messages, |request: ModelMetadataRequest| {
                may_use(&request.name).and_then(|()| inspect::model_metadata(handle, &request))
            })
            .await
        }
        "/inference.GRPCInferenceService/ModelConfig" => {
            unary(shared, messages, |request: ModelConfigRequest| {
                may_use(&request.name).and_then(|()| inspect::model_config(handle, &request))
            })
            .await
        }
        "/inference.GRPCInferenceService/RepositoryIndex" => {
            unary(shared, messages, |request| inspect::repository_index(handle, caller, &request)).await
        }
        "/inference.GRPCInferenceService/RepositoryModelLoad" => {
            change(shared, caller, messages, repository::load).await
        }
        "/inference.GRPCInferenceService/RepositoryModelUnload" => {
            change(shared, caller, messages, repository::unload).await
        }
        path => {
            let what = format!("`{path}` is not implemented; see the services that reflection lists");
            error_response(&Error::new(ErrorCode::Unsupported, what))
        }
    }
}

/// One small request, one answer.
async fn unary<Q: Message + Default, R: Message>(
    shared: &Arc<Shared>,
    mut messages: Messages,
    answer: impl FnOnce(Q) -> Result<R, Error>,
) -> Response<GrpcBody> {
    match messages.only(shared).await.and_then(|message| answer(decoded(message)?)) {
        Ok(message) => success(GrpcBody::message(framed(&message))),
        Err(error) => error_response(&error),
    }
}

/// One small request whose answer takes a while.
async fn change<Q: Message + Default, R: Message>(
    shared: &Arc<Shared>,
    caller: &Caller,
    mut messages: Messages,
    answer: impl AsyncFnOnce(&Shared, &Caller, Q) -> Result<R, Error>,
) -> Response<GrpcBody> {
    let result = match messages.only(shared).await.and_then(decoded) {
        Ok(request) => answer(shared, caller, request).await,
        Err(error) => Err(error),
    };
    match result {
        Ok(message) => success(GrpcBody::message(framed(&message))),
        Err(error) => error_response(&error),
    }
}

/// A message of this type.
///
/// # Errors
/// The bytes are not one.
fn decoded<Q: Message + Default>(message: bytes::Bytes) -> Result<Q, Error> {
    Q::decode(message).map_err(|error| Error::invalid(format!("the message cannot be decoded: {error}")))
}

fn success(body: GrpcBody) -> Response<GrpcBody> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// An answer without messages.
fn error_response(error: &Error) -> Response<GrpcBody> {
    let mut response = success(GrpcBody::default());
    response.headers_mut().extend(status_headers(error));
    response
}

/// The trailers of an error.
fn status_headers(error: &Error) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(4);
    // It fails for metadata only, and there is none.
    if errors::to_status(error).add_header(&mut headers).is_err() {
        headers.insert("grpc-status", HeaderValue::from_static("13"));
    }
    headers.extend(errors::refusal_headers(error));
    if let Some(seconds) = errors::retry_after_seconds(error) {
        headers.insert(http::header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    headers
}
