//! The REST front end: the Open Inference Protocol with Triton's extensions, health under all its names, and
//! on a port of its own the metrics.
//!
//! One `match` over the path is the router. A request costs no allocation but for its body and its answer.

mod body;
mod completions;
mod elements;
mod embeddings;
pub(crate) mod explain;
mod fields;
mod generate;
mod models;
pub(crate) mod openai;
mod pages;
mod repository;
mod request;
mod response;
mod route;
mod segments;
mod steps;
mod tenants;
pub(crate) mod text;
mod tokens;

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use quadrant_node::ModelEntry;
use quadrant_types::{Error, ErrorCode, TenantId, Time};
use tokio::net::TcpListener;

use self::body::RequestReader;
use self::request::RequestBody;
use self::response::JSON_LENGTH;
use self::route::{Page, Route, route};
use self::segments::Segments;
use crate::access::Caller;
use crate::events::{self, Port};
use crate::heavy::HEAVY_BYTES;
use crate::listen::{Drained, Link, Protocol, listen};
use crate::repository::Change;
use crate::terms::Terms;
use crate::wire::WireAnswer;
use crate::{Shared, errors, infer, timing};

/// Echoed, so that a client can find its request in logs on both sides.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Bytes of the small bodies of everything but inference.
const CONTROL_BODY_BYTES_MAX: usize = 64 << 10;

/// Serves HTTP/1.1 and HTTP/2 until `shutdown`, then ends what was accepted, at the latest after
/// `Limits::drain_timeout`.
pub async fn run_http(
    listener: TcpListener,
    shared: Arc<Shared>,
    shutdown: impl Future<Output = ()>,
) -> Drained {
    let per_connection = Arc::clone(&shared);
    let service = move |link: Link| {
        let shared = Arc::clone(&per_connection);
        service_fn(move |request| {
            link.request_arrived();
            answer(Arc::clone(&shared), request)
        })
    };
    listen(listener, &shared.limits, Protocol::Http(Port::Http), shutdown, service).await
}

/// Serves the metrics and nothing else until `shutdown`.
pub async fn run_metrics(
    listener: TcpListener,
    shared: Arc<Shared>,
    shutdown: impl Future<Output = ()>,
) -> Drained {
    let per_connection = Arc::clone(&shared);
    let service = move |link: Link| {
        let shared = Arc::clone(&per_connection);
        service_fn(move |request: Request<Incoming>| {
            link.request_arrived();
            std::future::ready(Ok::<_, Infallible>(metrics(&shared, &request)))
        })
    };
    listen(listener, &shared.limits, Protocol::Http(Port::Metrics), shutdown, service).await
}

fn metrics(shared: &Shared, request: &Request<Incoming>) -> Response<Segments> {
    if request.method() != Method::GET {
        return method_not_allowed("GET");
    }
    if let Some(which) = request.uri().path().strip_prefix(explain::PATH) {
        return explain::page(&shared.handle, which, request.uri().query());
    }
    match request.uri().path() {
        steps::PATH => return steps::page(&shared.handle, request.uri().query()),
        models::PATH => return models::page(&shared.handle),
        tenants::PATH => return tenants::page(&shared.handle),
        _ => {}
    }
    if request.uri().path() != "/metrics" {
        return error_response(&Error::new(ErrorCode::NotFound, "Not Found"));
    }
    let mut response = Response::new(shared.handle.metrics().into());
    let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, text);
    response
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Segments>, Infallible> {
    let started = shared.handle.now();
    let (parts, body) = request.into_parts();
    let mut body = RequestReader::new(body);
    let mut response = dispatch(&shared, started, &parts, &mut body).await;
    if let Some(request_id) = parts.headers.get(REQUEST_ID) {
        response.headers_mut().insert(REQUEST_ID, request_id.clone());
    }
    if !body.is_over() && parts.version < Version::HTTP_2 {
        // The rest of the request would be read as the next one, so there is none.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

async fn dispatch(
    shared: &Arc<Shared>,
    started: Time,
    parts: &Parts,
    body: &mut RequestReader,
) -> Response<Segments> {
    let Some(route) = route(parts.uri.path()) else {
        body::discard(&parts.headers, body).await;
        return error_response(&Error::new(ErrorCode::NotFound, "Not Found"));
    };
    let is_read = matches!(parts.method, Method::GET | Method::HEAD);
    let (is_allowed, allowed) = match &route {
        Route::Infer(..)
        | Route::Embeddings
        | Route::Generate(..)
        | Route::Tokens(_)
        | Route::Index
        | Route::Repository(..) => (parts.method == Method::POST, "POST"),
        Route::Page(_) => (is_read, "GET, HEAD"),
    };
    if !is_allowed {
        body::discard(&parts.headers, body).await;
        return method_not_allowed(allowed);
    }
    if let Route::Page(page @ (Page::Live | Page::Ready)) = &route {
        body::discard(&parts.headers, body).await;
        return pages::health(&shared.handle, page);
    }
    // Before anything is read: a stranger's request costs no more than its headers.
    let caller = match Caller::of(shared, &parts.headers) {
        Ok(caller) => caller,
        Err(error) => {
            body::discard_some(&parts.headers, body).await;
            let is_openai = openai::is_ours(parts.uri.path());
            return if is_openai { openai::error_response(&error) } else { error_response(&error) };
        }
    };
    match route {
        Route::Infer(model, version) => {
            inference(shared, (started, &caller), (&model, version), &parts.headers, body).await
        }
        Route::Embeddings => embedding(shared, (started, &caller), &parts.headers, body).await,
        Route::Generate(form, named) => {
            generate::respond(shared, (started, &caller), (form, named, &parts.headers), body).await
        }
        Route::Tokens(direction) => {
            let result = tokens::answer(shared, &caller, (direction, &parts.headers), body).await;
            told(shared, started, "", &parts.headers, result, openai::error_response)
        }
        Route::Repository(change, model) => {
            match repository(shared, &caller, (change, &model), &parts.headers, body).await {
                Ok(response) => response,
                Err(error) => error_response(&error),
            }
        }
        Route::Index => match index(shared, &caller, &parts.headers, body).await {
            Ok(response) => response,
            Err(error) => error_response(&error),
        },
        Route::Page(page) => {
            body::discard(&parts.headers, body).await;
            pages::page(shared, &caller, &page)
        }
    }
}

/// Answers an inference request, and says so.
async fn inference(
    shared: &Arc<Shared>,
    (started, caller): (Time, &Caller),
    (model, version): (&str, Option<u64>),
    headers: &HeaderMap,
    body: &mut RequestReader,
) -> Response<Segments> {
    let entry = match caller.may_use(shared, model).and_then(|()| shared.handle.find(model, version)) {
        Ok(entry) => entry,
        Err(error) => {
            body::discard(headers, body).await;
            return reported(shared, started, model, headers, Err(error));
        }
    };
    let result = match prepared(shared, (&entry, caller.tenant()), headers, body).await {
        Ok(prepared) => respond(shared, started, headers, prepared).await,
        Err(error) => {
            entry.record_failure(&error);
            Err(error)
        }
    };
    reported(shared, started, model, headers, result)
}

/// Answers a request for embeddings, and says so. Which model is asked for is only known from its body.
async fn embedding(
    shared: &Arc<Shared>,
    (started, caller): (Time, &Caller),
    headers: &HeaderMap,
    body: &mut RequestReader,
) -> Response<Segments> {
    let as_openai =
        |model: &str, result| told(shared, started, model, headers, result, openai::error_response);
    let (asked, terms) = match embeddings::read(shared, caller, headers, body).await {
        Ok(read) => read,
        Err(error) => return as_openai("", Err(error)),
    };
    let model = asked.model().to_owned();
    let entry = caller.may_use(shared, &model).and_then(|()| shared.handle.find(&model, None));
    let result = match entry {
        Ok(entry) => embeddings::answer(shared, &entry, (started, headers), terms, asked).await,
        Err(error) => Err(error),
    };
    as_openai(&model, result)
}

fn reported(
    shared: &Shared,
    started: Time,
    model: &str,
    headers: &HeaderMap,
    result: Result<Response<Segments>, Error>,
) -> Response<Segments> {
    told(shared, started, model, headers, result, error_response)
}

/// Logs what came of a request, whose errors look as `show` makes them look.
fn told(
    shared: &Shared,
    started: Time,
    model: &str,
    headers: &HeaderMap,
    result: Result<Response<Segments>, Error>,
    show: fn(&Error) -> Response<Segments>,
) -> Response<Segments> {
    let request_id = || headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default();
    let response = match result {
        Ok(response) => response,
        Err(error) => {
            events::failed(Port::Http, model, request_id(), &error);
            show(&error)
        }
    };
    if events::logs_requests() {
        let duration = shared.handle.now().since(started);
        events::answered(Port::Http, model, request_id(), response.status().as_u16(), duration);
    }
    response
}

/// Reads the body and checks the request.
async fn prepared(
    shared: &Arc<Shared>,
    (entry, tenant): (&Arc<ModelEntry>, TenantId),
    headers: &HeaderMap,
    body: &mut RequestReader,
) -> Result<infer::Prepared, Error> {
    let terms = Terms::from_headers(shared, headers, tenant);
    let checked = json_length(headers).and_then(|length| {
        let terms = terms?;
        shared.handle.may_send(tenant)?;
        Ok((length, terms))
    });
    let (json_length, terms) = match checked {
        Ok(checked) => checked,
        Err(error) => {
            body::discard(headers, body).await;
            return Err(error);
        }
    };
    let bytes = body::read(shared, headers, body, json_length.unwrap_or(0)).await?;
    let arrived = shared.handle.now();
    let is_heavy = json_length.unwrap_or(bytes.len()) > HEAVY_BYTES;
    let (shared_there, entry) = (Arc::clone(shared), Arc::clone(entry));
    let parse = move || {
        let Shared { limits, budget, .. } = &*shared_there;
        if json_length == Some(0) {
            return infer::prepare(&entry, request::raw(&bytes, &entry, budget)?, arrived, terms);
        }
        let body = RequestBody { bytes: &bytes, json_length, json_depth_max: limits.json_depth_max, budget };
        infer::prepare(&entry, request::parse(&body, &entry.spec.name)?, arrived, terms)
    };
    shared.heavy.run(is_heavy, parse).await
}

fn json_length(headers: &HeaderMap) -> Result<Option<usize>, Error> {
    let Some(value) = headers.get(JSON_LENGTH) else { return Ok(None) };
    let length = value.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let length = length.and_then(|text| text.parse().ok());
    length
        .map(Some)
        .ok_or_else(|| Error::invalid("Inference-Header-Content-Length must be a number of bytes"))
}

async fn respond(
    shared: &Arc<Shared>,
    started: Time,
    headers: &HeaderMap,
    prepared: infer::Prepared,
) -> Result<Response<Segments>, Error> {
    let answer: WireAnswer = infer::run(shared, prepared).await?;
    let (request, stages) = (answer.request, answer.timing);
    let mut response = response::respond(shared, headers, answer).await?;
    let answered = response.headers_mut();
    answered.insert(explain::REQUEST_HEADER, explain::header(request));
    timing::tell(&shared.handle, (Port::Http, headers, answered), started, (request, &stages));
    Ok(response)
}

async fn index(
    shared: &Arc<Shared>,
    caller: &Caller,
    headers: &HeaderMap,
    body: &mut RequestReader,
) -> Result<Response<Segments>, Error> {
    let bytes = control_body(shared, headers, body).await?;
    let only_ready = pages::asks_for_ready(&bytes, shared.limits.json_depth_max)?;
    Ok(pages::index(&shared.handle, caller, only_ready))
}

async fn repository(
    shared: &Arc<Shared>,
    caller: &Caller,
    (change, model): (Change, &str),
    headers: &HeaderMap,
    body: &mut RequestReader,
) -> Result<Response<Segments>, Error> {
    let bytes = control_body(shared, headers, body).await?;
    repository::check(change, &bytes, shared.limits.json_depth_max)?;
    crate::repository::change(shared, caller, change, model).await?;
    Ok(pages::empty())
}

/// A body that is small or refused.
async fn control_body(
    shared: &Arc<Shared>,
    headers: &HeaderMap,
    body: &mut RequestReader,
) -> Result<Bytes, Error> {
    let bytes = body::read(shared, headers, body, 0).await?;
    if bytes.len() > CONTROL_BODY_BYTES_MAX {
        return Err(crate::budgeted::too_large(bytes.len(), CONTROL_BODY_BYTES_MAX));
    }
    Ok(bytes)
}

/// `{"error":"..."}` with the status of its code.
fn error_response(error: &Error) -> Response<Segments> {
    with_error_headers(error, response::json(errors::json_body(&error.message)))
}

/// The status of an error, and what programs are told of it as headers.
fn with_error_headers(error: &Error, mut response: Response<Segments>) -> Response<Segments> {
    *response.status_mut() = errors::http_status(error.code);
    if let Some(seconds) = errors::retry_after_seconds(error) {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    for (name, value) in errors::refusal_headers(error) {
        response.headers_mut().insert(name, value);
    }
    response
}

fn method_not_allowed(allowed: &'static str) -> Response<Segments> {
    let mut response = response::json(errors::json_body("Method Not Allowed"));
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}
