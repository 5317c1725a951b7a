//! The one mapping from [`ErrorCode`] to HTTP and to gRPC, and the shape of an error's body.
//!
//! Where Triton answers a client's mistake with 500, this answers 400 with the same text. Choices without
//! a precedent: what is too large is 413 and `OUT_OF_RANGE` (tonic's and grpc-java's word for it, so that
//! `RESOURCE_EXHAUSTED` always means "try again"); what we do not do is 415 and `UNIMPLEMENTED`, because
//! asking for it is the client's choice and 5xx is kept for our own faults.

use std::borrow::Cow;
use std::time::Duration;

use http::header::WWW_AUTHENTICATE;
use http::{HeaderName, HeaderValue, StatusCode};
use quadrant_types::{Error, ErrorCode};
use tonic::Code;

use crate::http::text::push_string;

/// The longest message of an error; it repeats names that the client chose, and travels in a header.
const MESSAGE_BYTES_MAX: usize = 2_048;

/// What a client that may try again is told to wait if nobody knows better.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);

/// The HTTP status of an error.
pub const fn http_status(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::InvalidArgument => StatusCode::BAD_REQUEST,
        ErrorCode::Unauthenticated => StatusCode::UNAUTHORIZED,
        ErrorCode::PermissionDenied => StatusCode::FORBIDDEN,
        ErrorCode::NotFound => StatusCode::NOT_FOUND,
        ErrorCode::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorCode::Unsupported => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        ErrorCode::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        ErrorCode::Cancelled => match StatusCode::from_u16(499) {
            Ok(client_closed_request) => client_closed_request,
            Err(_) => StatusCode::BAD_REQUEST,
        },
        ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The gRPC status of an error.
pub const fn grpc_code(code: ErrorCode) -> Code {
    match code {
        ErrorCode::InvalidArgument => Code::InvalidArgument,
        ErrorCode::Unauthenticated => Code::Unauthenticated,
        ErrorCode::PermissionDenied => Code::PermissionDenied,
        ErrorCode::NotFound => Code::NotFound,
        ErrorCode::TooLarge => Code::OutOfRange,
        ErrorCode::Unsupported => Code::Unimplemented,
        ErrorCode::ResourceExhausted => Code::ResourceExhausted,
        ErrorCode::Unavailable => Code::Unavailable,
        ErrorCode::DeadlineExceeded => Code::DeadlineExceeded,
        ErrorCode::Cancelled => Code::Cancelled,
        ErrorCode::Internal => Code::Internal,
    }
}

/// The whole seconds of `Retry-After`, at least one, for the codes that invite another try.
pub(crate) fn retry_after_seconds(error: &Error) -> Option<u64> {
    let invites = match error.code {
        ErrorCode::ResourceExhausted | ErrorCode::Unavailable => true,
        ErrorCode::InvalidArgument
        | ErrorCode::Unauthenticated
        | ErrorCode::PermissionDenied
        | ErrorCode::NotFound
        | ErrorCode::TooLarge
        | ErrorCode::Unsupported
        | ErrorCode::DeadlineExceeded
        | ErrorCode::Cancelled
        | ErrorCode::Internal => false,
    };
    let wait = error.retry_after.unwrap_or(RETRY_AFTER_DEFAULT);
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    invites.then_some(seconds.max(1))
}

/// Says which of the scheduler's reasons it was, to programs.
const REASON_HEADER: HeaderName = HeaderName::from_static("x-quadrant-reason");
/// How long to wait before trying again, finer than the whole seconds of `Retry-After`.
const RETRY_AFTER_MS_HEADER: HeaderName = HeaderName::from_static("retry-after-ms");

/// How to say who one is.
const CHALLENGE: HeaderValue = HeaderValue::from_static("Bearer realm=\"quadrant\"");

/// What programs are told of a refusal, as headers or metadata: the scheduler's reason and its wait, and what
/// is to be shown by whoever is not known.
pub(crate) fn refusal_headers(error: &Error) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    let unknown = error.code == ErrorCode::Unauthenticated;
    let challenge = unknown.then_some((WWW_AUTHENTICATE, CHALLENGE));
    let reason = error.reason.map(|reason| (REASON_HEADER, HeaderValue::from_static(reason.name())));
    let wait = error.retry_after.filter(|_| retry_after_seconds(error).is_some());
    let milliseconds = |wait: Duration| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
    let wait = wait.map(|wait| (RETRY_AFTER_MS_HEADER, HeaderValue::from(milliseconds(wait))));
    reason.into_iter().chain(wait).chain(challenge)
}

/// The message, cut where it becomes longer than an error has reason to be.
pub(crate) fn bounded_message(message: &str) -> Cow<'_, str> {
    if message.len() <= MESSAGE_BYTES_MAX {
        return Cow::Borrowed(message);
    }
    Cow::Owned(format!("{}...", &message[..message.floor_char_boundary(MESSAGE_BYTES_MAX)]))
}

/// `{"error":"..."}`.
pub(crate) fn json_body(message: &str) -> Vec<u8> {
    let mut body = Vec::with_capacity(message.len() + 16);
    body.extend_from_slice(b"{\"error\":");
    push_string(&mut body, &bounded_message(message));
    body.push(b'}');
    body
}

/// The gRPC status of an error.
pub(crate) fn to_status(error: &Error) -> tonic::Status {
    tonic::Status::new(grpc_code(error.code), bounded_message(&error.message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_place() {
        let table = ErrorCode::ALL.map(|code| (http_status(code).as_u16(), grpc_code(code)));
        let expected = [
            (400, Code::InvalidArgument),
            (401, Code::Unauthenticated),
            (403, Code::PermissionDenied),
            (404, Code::NotFound),
            (413, Code::OutOfRange),
            (415, Code::Unimplemented),
            (429, Code::ResourceExhausted),
            (503, Code::Unavailable),
            (504, Code::DeadlineExceeded),
            (499, Code::Cancelled),
            (500, Code::Internal),
        ];
        assert_eq!(table, expected);
    }

    #[test]
    fn waits_are_whole_seconds_rounded_up() {
        let after = |code, millis| {
            retry_after_seconds(&Error::new(code, "").retry_after(Duration::from_millis(millis)))
        };
        assert_eq!(after(ErrorCode::Unavailable, 1), Some(1));
        assert_eq!(after(ErrorCode::ResourceExhausted, 2_001), Some(3));
        assert_eq!(after(ErrorCode::DeadlineExceeded, 1), None);
        assert_eq!(retry_after_seconds(&Error::new(ErrorCode::Unavailable, "")), Some(1));
    }

    #[test]
    fn messages_are_escaped_and_bounded() {
        let body = json_body("a 'b' \"c\" \\ \n\u{1}");
        assert_eq!(body, br#"{"error":"a 'b' \"c\" \\ \n\u0001"}"#);
        let long = "é".repeat(MESSAGE_BYTES_MAX);
        assert_eq!(bounded_message(&long).len(), MESSAGE_BYTES_MAX + 3);
    }
}
