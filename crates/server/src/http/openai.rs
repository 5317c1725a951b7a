//! The paths of OpenAI's API, how it shows errors, and the list of models that it knows.

use http::{HeaderMap, Response};
use quadrant_node::ModelEntry;
use quadrant_types::{Error, ErrorCode};

use crate::Shared;
use crate::access::Caller;
use crate::errors::bounded_message;
use crate::http::body::{self, RequestReader};
use crate::http::embeddings;
use crate::http::response::json;
use crate::http::segments::Segments;
use crate::http::text::{push_list, push_string};
use crate::http::with_error_headers;
use crate::terms::Terms;

/// Whether errors of this path have OpenAI's shape.
pub(crate) fn is_ours(path: &str) -> bool {
    within(path.strip_suffix('/').unwrap_or(path)).is_some_and(|rest| {
        let known = ["models", "embeddings", "chat/completions", "completions", "tokenize", "detokenize"];
        known.contains(&rest) || rest.starts_with("models/")
    }) || matches!(path, "/tokenize" | "/detokenize")
}

/// What the headers of a call say of it, if its tenant may send it now; otherwise its body is read away.
///
/// # Errors
/// What is wrong with them, or what the scheduler says to this tenant at present.
pub(crate) async fn terms(
    shared: &Shared,
    caller: &Caller,
    headers: &HeaderMap,
    body: &mut RequestReader,
) -> Result<Terms, Error> {
    let terms = Terms::from_headers(shared, headers, caller.tenant());
    let terms = terms.and_then(|terms| shared.handle.may_send(caller.tenant()).map(|()| terms));
    if terms.is_err() {
        body::discard(headers, body).await;
    }
    terms
}

/// What follows the API's prefix, of which there are two: KServe moves OpenAI's paths aside.
pub(crate) fn within(path: &str) -> Option<&str> {
    path.strip_prefix("/v1/").or_else(|| path.strip_prefix("/openai/v1/"))
}

/// Whether a model answers any of these calls.
pub(crate) fn answers(entry: &ModelEntry) -> bool {
    entry.language.is_some() || embeddings::answers(entry)
}

/// The models that answer these calls.
pub(crate) fn models<'a>(entries: impl Iterator<Item = &'a ModelEntry>) -> Vec<u8> {
    let mut out = b"{\"object\":\"list\",\"data\":".to_vec();
    push_list(&mut out, entries, push_model);
    out.push(b'}');
    out
}

/// One of them.
pub(crate) fn model(entry: &ModelEntry) -> Vec<u8> {
    let mut out = Vec::new();
    push_model(&mut out, entry);
    out
}

fn push_model(out: &mut Vec<u8>, entry: &ModelEntry) {
    out.extend_from_slice(b"{\"id\":");
    push_string(out, &entry.spec.name);
    // When a model was made is in no file, and clients only ask that there be a number.
    out.extend_from_slice(b",\"object\":\"model\",\"created\":0,\"owned_by\":\"quadrant\"}");
}

/// `{"error":{"message","type","param","code"}}` with the status of its code.
pub(crate) fn error_response(error: &Error) -> Response<Segments> {
    let mut body = b"{\"error\":{\"message\":".to_vec();
    push_string(&mut body, &bounded_message(&error.message));
    body.extend_from_slice(b",\"type\":");
    push_string(&mut body, kind(error.code));
    body.extend_from_slice(b",\"param\":null,\"code\":");
    match error.reason {
        Some(reason) => push_string(&mut body, reason.name()),
        None => body.extend_from_slice(b"null"),
    }
    body.extend_from_slice(b"}}");
    with_error_headers(error, json(body))
}

/// What OpenAI calls an error with this code.
pub(crate) const fn kind(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::InvalidArgument | ErrorCode::NotFound | ErrorCode::TooLarge | ErrorCode::Unsupported => {
            "invalid_request_error"
        }
        ErrorCode::Unauthenticated => "authentication_error",
        ErrorCode::PermissionDenied => "permission_error",
        ErrorCode::ResourceExhausted => "rate_limit_error",
        ErrorCode::Unavailable | ErrorCode::DeadlineExceeded | ErrorCode::Cancelled | ErrorCode::Internal => {
            "server_error"
        }
    }
}
