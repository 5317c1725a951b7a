//! Writes an answer down: JSON, and behind it the tensors that were wanted as bytes.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, VARY};
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use quadrant_types::{Error, ErrorCode};

use crate::Shared;
use crate::heavy::HEAVY_BYTES;
use crate::http::segments::Segments;
use crate::http::text::{push_elements, push_integer, push_list, push_string};
use crate::inflate::{Coding, deflate};
use crate::wire::{AnsweredOutput, WireAnswer};

/// The bytes of JSON in front of the tensors.
pub(crate) const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");
pub(crate) const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Tensors below this are copied behind the JSON: one write costs less than a second range.
const COPIED_BYTES_MAX: usize = 32 << 10;

/// Text below this is sent as it is, whatever the client accepts.
const CODED_BYTES_MIN: usize = 1_024;

/// An answer as body ranges.
#[derive(Debug)]
struct Written {
    /// Bytes of JSON, if tensors follow.
    json_length: Option<usize>,
    segments: Segments,
}

/// The response to a request that accepts these codings.
///
/// # Errors
/// An answer above the limit, or one that has no JSON form.
pub(crate) async fn respond(
    shared: &Arc<Shared>,
    headers: &HeaderMap,
    answer: WireAnswer,
) -> Result<Response<Segments>, Error> {
    let bytes_max = shared.limits.response_bytes_max;
    let json_bytes = |output: &AnsweredOutput| if output.is_binary { 0 } else { output.tensor.data.len() };
    // A number takes two to four times as many bytes as text.
    let is_heavy = answer.outputs.iter().map(json_bytes).sum::<usize>() > HEAVY_BYTES / 4;
    let written = shared.heavy.run(is_heavy, move || write(&answer, bytes_max)).await?;
    let Written { json_length, segments } = written;
    if let Some(length) = json_length {
        let mut response = Response::new(segments);
        response.headers_mut().insert(CONTENT_TYPE, OCTETS);
        response.headers_mut().insert(JSON_LENGTH, HeaderValue::from(length));
        return Ok(response);
    }
    compressed(shared, headers, segments).await
}

/// JSON, in a coding if the client accepts one and the text is long enough. Tensors of bytes are never
/// coded: they hardly shrink, and the default headers of HTTP libraries would make every client pay for it.
async fn compressed(
    shared: &Shared,
    headers: &HeaderMap,
    segments: Segments,
) -> Result<Response<Segments>, Error> {
    let coding = headers.get(ACCEPT_ENCODING).and_then(|value| Coding::of_accept(value.as_bytes()));
    let plain = segments.single().filter(|plain| plain.len() >= CODED_BYTES_MIN).cloned();
    let (Some(coding), Some(plain)) = (coding, plain) else { return Ok(json(segments)) };
    let is_heavy = plain.len() > HEAVY_BYTES / 4;
    let work =
        move || deflate(coding, &plain).map_err(|error| Error::new(ErrorCode::Internal, error.to_string()));
    let coded = shared.heavy.run(is_heavy, work).await?;
    let mut response = json(coded);
    response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
    response.headers_mut().insert(VARY, HeaderValue::from_static("accept-encoding"));
    Ok(response)
}

/// A response of JSON.
pub(crate) fn json(body: impl Into<Segments>) -> Response<Segments> {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

fn write(answer: &WireAnswer, bytes_max: usize) -> Result<Written, Error> {
    let copied = |output: &AnsweredOutput| {
        let length = output.tensor.data.len();
        if output.is_binary && length <= COPIED_BYTES_MAX { length } else { 0 }
    };
    let spec = &answer.model.spec;
    let tensors: usize = answer.outputs.iter().map(copied).sum();
    let mut out = Vec::with_capacity(128 + 128 * answer.outputs.len() + tensors);
    out.push(b'{');
    if !answer.id.is_empty() {
        out.extend_from_slice(b"\"id\":");
        push_string(&mut out, &answer.id);
        out.push(b',');
    }
    out.extend_from_slice(b"\"model_name\":");
    push_string(&mut out, &spec.name);
    out.extend_from_slice(b",\"model_version\":\"");
    push_integer(&mut out, spec.version);
    out.extend_from_slice(b"\",\"outputs\":[");
    for (position, output) in answer.outputs.iter().enumerate() {
        if position > 0 {
            out.push(b',');
        }
        write_output(&mut out, answer, output, bytes_max)?;
    }
    out.extend_from_slice(b"]}");
    let is_binary = answer.outputs.iter().any(|output| output.is_binary);
    let json_length = is_binary.then_some(out.len());
    Ok(Written { json_length, segments: with_tensors(out, answer) })
}

fn write_output(
    out: &mut Vec<u8>,
    answer: &WireAnswer,
    output: &AnsweredOutput,
    bytes_max: usize,
) -> Result<(), Error> {
    let tensor = &output.tensor;
    let name = answer.name(output);
    out.extend_from_slice(b"{\"name\":");
    push_string(out, name);
    out.extend_from_slice(b",\"datatype\":\"");
    out.extend_from_slice(tensor.datatype.name().as_bytes());
    out.extend_from_slice(b"\",\"shape\":");
    push_list(out, &tensor.shape, |out, dim| push_integer(out, *dim));
    if output.is_binary {
        out.extend_from_slice(b",\"parameters\":{\"binary_data_size\":");
        push_integer(out, tensor.data.len());
        out.push(b'}');
    } else {
        out.extend_from_slice(b",\"data\":");
        push_elements(out, tensor, name, bytes_max)?;
    }
    out.push(b'}');
    Ok(())
}

/// Puts the binary tensors behind the JSON: small ones into the same range, large ones as they are.
fn with_tensors(mut out: Vec<u8>, answer: &WireAnswer) -> Segments {
    let mut binary =
        answer.outputs.iter().filter(|output| output.is_binary).map(|output| &output.tensor.data);
    let mut rest: VecDeque<Bytes> = VecDeque::new();
    let mut tail: Vec<u8> = Vec::new();
    for data in binary.by_ref() {
        if data.len() > COPIED_BYTES_MAX {
            if !tail.is_empty() {
                rest.push_back(std::mem::take(&mut tail).into());
            }
            rest.push_back(data.clone());
        } else if rest.is_empty() {
            out.extend_from_slice(data);
        } else {
            tail.extend_from_slice(data);
        }
    }
    if !tail.is_empty() {
        rest.push_back(tail.into());
    }
    Segments::new(out, rest)
}
