//! `ModelInfer` and `ModelStreamInfer`: protobuf in, the common path, protobuf out.
//!
//! Answers are encoded by hand: the generated structure would need every name as a string of its own and
//! every tensor inside one buffer.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::{BufMut, Bytes};
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, Response};
use prost::encoding::encode_varint;
use quadrant_proto::inference::infer_parameter::ParameterChoice;
use quadrant_proto::inference::{InferParameter, ModelInferRequest};
use quadrant_types::{Error, ErrorCode, Shape, Time};

use crate::access::Caller;
use crate::budgeted::exhausted;
use crate::events::{self, Port};
use crate::grpc::frame::{GrpcBody, HEAD_BYTES, Messages, Ranges, head};
use crate::grpc::{contents, decoded, error_response, inspect, success, weight};
use crate::heavy::HEAVY_BYTES;
use crate::http::REQUEST_ID;
use crate::http::explain;
use crate::listen::Link;
use crate::terms::Terms;
use crate::wire::{DIMS_MAX, WireAnswer, WireInput, WireOutput, WireRequest, datatype};
use crate::{Shared, errors, infer, timing};

/// Tensors below this are copied into the range before them.
const COPIED_BYTES_MAX: usize = 32 << 10;

/// Requests of one stream that are in work at once; their answers keep the order.
const STREAM_REQUESTS_MAX: usize = 16;

/// One request, one answer.
pub(crate) async fn unary(
    shared: &Arc<Shared>,
    caller: &Caller,
    headers: &HeaderMap,
    mut messages: Messages,
) -> Response<GrpcBody> {
    let started = shared.handle.now();
    // What is refused whatever it is need not be read.
    let received = match shared.handle.may_send(caller.tenant()) {
        Ok(()) => messages.only(shared).await,
        Err(error) => Err(error),
    };
    let answered = match (received, Terms::from_headers(shared, headers, caller.tenant())) {
        (Ok(message), Ok(terms)) => one(shared, message, caller, terms).await,
        (Err(error), _) | (_, Err(error)) => Err((String::new(), error)),
    };
    let (model, result) = match answered {
        Ok(answer) => (
            answer.model.spec.name.to_string(),
            encoded(&answer).map(|ranges| (ranges, answer.timing, answer.request)),
        ),
        Err((model, error)) => (model, Err(error)),
    };
    let request_id = || headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default();
    let (response, code) = match result {
        Ok((ranges, stages, request)) => {
            let mut response = success(GrpcBody::ranges(ranges));
            let answered = response.headers_mut();
            answered.insert(explain::REQUEST_HEADER, explain::header(request));
            timing::tell(&shared.handle, (Port::Grpc, headers, answered), started, (request, &stages));
            (response, tonic::Code::Ok)
        }
        Err(error) => {
            events::failed(Port::Grpc, &model, request_id(), &error);
            (error_response(&error), errors::grpc_code(error.code))
        }
    };
    if events::logs_requests() {
        let duration = shared.handle.now().since(started);
        let code = u16::try_from(i32::from(code)).unwrap_or_default();
        events::answered(Port::Grpc, &model, request_id(), code, duration);
    }
    response
}

/// Each request of a stream is answered by one message, in order; what is wrong with a request is said in its
/// message, what is wrong with the stream ends it. A stream may be open for days, so who asks is looked up
/// again for every request.
pub(crate) fn stream(
    shared: &Arc<Shared>,
    (link, caller): (Link, &Caller),
    headers: &HeaderMap,
    messages: Messages,
) -> Response<GrpcBody> {
    let terms = match Terms::from_headers(shared, headers, caller.tenant()) {
        Ok(terms) => terms,
        Err(error) => return error_response(&error),
    };
    let headers = Arc::new(headers.clone());
    let opened = shared.handle.now();
    let requests =
        stream::unfold((Arc::clone(shared), messages, Some(link)), |(shared, mut messages, link)| async {
            let mut link = link?;
            let next = tokio::select! {
                biased;
                next = messages.next(&shared) => next.transpose()?,
                () = link.stopped() => Err(Error::new(ErrorCode::Unavailable, "the server is ending")),
            };
            let link = next.is_ok().then_some(link);
            Some((next, (shared, messages, link)))
        });
    let shared = Arc::clone(shared);
    let answers = requests.map(move |message| {
        let (shared, headers) = (Arc::clone(&shared), Arc::clone(&headers));
        async move { streamed(&shared, &headers, (opened, terms), message?).await }
    });
    success(GrpcBody::stream(Box::pin(answers.buffered(STREAM_REQUESTS_MAX))))
}

/// One answer of a stream. The deadline of the call is that of the whole stream.
async fn streamed(
    shared: &Arc<Shared>,
    headers: &HeaderMap,
    (opened, terms): (Time, Terms),
    message: Bytes,
) -> Result<Ranges, Error> {
    let elapsed = shared.handle.now().since(opened);
    let answered = match Caller::of(shared, headers) {
        Ok(caller) => {
            let terms = Terms { tenant: caller.tenant(), ..terms.after(elapsed) };
            one(shared, message, &caller, terms).await
        }
        Err(error) => Err((String::new(), error)),
    };
    let error = match answered.map(|answer| encoded_in_stream(&answer)) {
        Ok(Ok(ranges)) => return Ok(ranges),
        Ok(Err(error)) | Err((_, error)) => error,
    };
    events::failed(Port::Grpc, "", "", &error);
    let mut out = vec![0; HEAD_BYTES];
    push_text(&mut out, 1, &errors::bounded_message(&error.message));
    finish(&mut out, 0);
    Ok([out.into()].into())
}

/// Checks and runs one request; an error comes with the model's name.
async fn one(
    shared: &Arc<Shared>,
    message: Bytes,
    caller: &Caller,
    terms: Terms,
) -> Result<WireAnswer, (String, Error)> {
    let arrived = shared.handle.now();
    let unnamed = |error| (String::new(), error);
    let needed = weight::decoding_bytes(&message).map_err(unnamed)?;
    let lease = shared.budget.lease(needed).map_err(|error| unnamed(exhausted(&error)))?;
    let is_heavy = needed > HEAVY_BYTES;
    let (shared_there, caller) = (Arc::clone(shared), caller.clone());
    let work = move || {
        let request: ModelInferRequest = decoded(message)?;
        let allowed = caller.may_use(&shared_there, &request.model_name);
        let prepared = allowed.and_then(|()| prepare(&shared_there, &request, arrived, terms));
        drop(lease);
        Ok((prepared, request.model_name))
    };
    let (prepared, model) = shared.heavy.run(is_heavy, work).await.map_err(unnamed)?;
    let answered = match prepared {
        Ok(prepared) => infer::run(shared, prepared).await,
        Err(error) => Err(error),
    };
    answered.map_err(|error| (model, error))
}

fn prepare(
    shared: &Shared,
    request: &ModelInferRequest,
    arrived: Time,
    terms: Terms,
) -> Result<infer::Prepared, Error> {
    let entry = inspect::find(&shared.handle, &request.model_name, &request.model_version)?;
    let prepared = to_wire(shared, request).and_then(|wire| infer::prepare(&entry, wire, arrived, terms));
    if let Err(error) = &prepared {
        entry.record_failure(error);
    }
    prepared
}

fn to_wire<'a>(shared: &Shared, request: &'a ModelInferRequest) -> Result<WireRequest<'a>, Error> {
    let model = &request.model_name;
    let raw = &request.raw_input_contents;
    if !raw.is_empty() && raw.len() != request.inputs.len() {
        let (got, wanted) = (raw.len(), request.inputs.len());
        return Err(Error::invalid(format!(
            "expected {wanted} raw input contents but got {got} for model '{model}'"
        )));
    }
    let mut wire = WireRequest { id: Cow::Borrowed(&request.id), is_binary: true, ..WireRequest::default() };
    for (name, parameter) in &request.parameters {
        match &**name {
            "priority" => wire.priority = unsigned(name, parameter)?,
            "timeout" => wire.timeout_us = unsigned(name, parameter)?,
            _ => (),
        }
    }
    for (position, input) in request.inputs.iter().enumerate() {
        let name = &input.name;
        if let Some(region) = input.parameters.get("shared_memory_region") {
            return Err(no_shared_memory(region));
        }
        let datatype = datatype(name, &input.datatype)?;
        let data = match (raw.get(position), &input.contents) {
            (Some(_), Some(_)) => {
                return Err(Error::invalid(format!(
                    "contents field must not be specified when using raw_input_contents for '{name}' for model \
                     '{model}'"
                )));
            }
            (Some(raw), None) => raw.clone(),
            (None, Some(contents)) => {
                contents::to_bytes(contents::Input { name, model, datatype }, contents, &shared.budget)?
            }
            (None, None) => Bytes::new(),
        };
        let shape = shape(name, &input.shape)?;
        wire.inputs.push(WireInput { name: Cow::Borrowed(name), datatype, shape, data });
    }
    for output in &request.outputs {
        if let Some(region) = output.parameters.get("shared_memory_region") {
            return Err(no_shared_memory(region));
        }
        let classes =
            output.parameters.get("classification").map(|classes| unsigned("classification", classes));
        let classes = usize::try_from(classes.transpose()?.unwrap_or(0)).unwrap_or(usize::MAX);
        wire.outputs.push(WireOutput { name: Cow::Borrowed(&output.name), classes, is_binary: None });
    }
    Ok(wire)
}

fn shape(input: &str, dims: &[i64]) -> Result<Shape, Error> {
    if dims.len() > DIMS_MAX {
        return Err(Error::invalid(format!("input '{input}' has more than {DIMS_MAX} dimensions")));
    }
    let dim = |dim: &i64| {
        usize::try_from(*dim).map_err(|_| Error::invalid(format!("input '{input}' has a dimension of {dim}")))
    };
    dims.iter().map(dim).collect()
}

fn unsigned(name: &str, parameter: &InferParameter) -> Result<u64, Error> {
    let value = match parameter.parameter_choice {
        Some(ParameterChoice::Uint64Param(value)) => Some(value),
        Some(ParameterChoice::Int64Param(value)) => u64::try_from(value).ok(),
        Some(
            ParameterChoice::BoolParam(_) | ParameterChoice::StringParam(_) | ParameterChoice::DoubleParam(_),
        )
        | None => None,
    };
    value.ok_or_else(|| {
        Error::invalid(format!("Unable to parse '{name}': it must be a whole number, not below zero"))
    })
}

fn no_shared_memory(region: &InferParameter) -> Error {
    let name = match &region.parameter_choice {
        Some(ParameterChoice::StringParam(name)) => name,
        _ => "",
    };
    Error::invalid(format!("Unable to find shared memory region: '{name}'"))
}

/// The framed answer.
fn encoded(answer: &WireAnswer) -> Result<Ranges, Error> {
    let mut out = Vec::with_capacity(256);
    out.resize(HEAD_BYTES, 0);
    push_answer(&mut out, answer);
    with_tensors(out, answer)
}

/// The framed answer as field 2 of a stream's message.
fn encoded_in_stream(answer: &WireAnswer) -> Result<Ranges, Error> {
    let mut inner = Vec::with_capacity(256);
    push_answer(&mut inner, answer);
    let tensor = |data: &Bytes| 1 + prost::length_delimiter_len(data.len()) + data.len();
    let length: usize =
        inner.len() + answer.outputs.iter().map(|output| tensor(&output.tensor.data)).sum::<usize>();
    let mut out = Vec::with_capacity(HEAD_BYTES + 16 + inner.len());
    out.resize(HEAD_BYTES, 0);
    push_key(&mut out, 2, length);
    out.extend_from_slice(&inner);
    with_tensors(out, answer)
}

/// Everything but the tensors.
fn push_answer(out: &mut Vec<u8>, answer: &WireAnswer) {
    let spec = &answer.model.spec;
    push_text(out, 1, &spec.name);
    push_text(out, 2, itoa::Buffer::new().format(spec.version));
    push_text(out, 3, &answer.id);
    let mut inner = Vec::with_capacity(64);
    let mut dims = Vec::with_capacity(16);
    for output in &answer.outputs {
        inner.clear();
        dims.clear();
        push_text(&mut inner, 1, answer.name(output));
        push_text(&mut inner, 2, output.tensor.datatype.name());
        output.tensor.shape.iter().for_each(|dim| encode_varint(*dim as u64, &mut dims));
        if !dims.is_empty() {
            push_key(&mut inner, 3, dims.len());
            inner.extend_from_slice(&dims);
        }
        push_key(out, 5, inner.len());
        out.extend_from_slice(&inner);
    }
}

/// Appends the tensors as field 6: small ones into the range before them, large ones as they are.
fn with_tensors(mut out: Vec<u8>, answer: &WireAnswer) -> Result<Ranges, Error> {
    let mut ranges = Ranges::new();
    let mut length = 0_usize;
    let mut first: Option<Vec<u8>> = None;
    for data in answer.outputs.iter().map(|output| &output.tensor.data) {
        push_key(&mut out, 6, data.len());
        if data.len() <= COPIED_BYTES_MAX {
            out.extend_from_slice(data);
            continue;
        }
        length += out.len() + data.len();
        let range = std::mem::take(&mut out);
        match first {
            None => first = Some(range),
            Some(_) => ranges.push_back(range.into()),
        }
        ranges.push_back(data.clone());
    }
    let (mut first, rest) = match first {
        Some(first) => (first, out),
        None => (out, Vec::new()),
    };
    length += if ranges.is_empty() { first.len() } else { rest.len() };
    if length - HEAD_BYTES > i32::MAX as usize {
        return Err(infer::too_large(length, i32::MAX as usize));
    }
    let behind = length - first.len();
    finish(&mut first, behind);
    ranges.push_front(first.into());
    if !rest.is_empty() {
        ranges.push_back(rest.into());
    }
    Ok(ranges)
}

/// Writes the head in front of a message of which `behind` bytes are elsewhere.
fn finish(out: &mut [u8], behind: usize) {
    let length = out.len() - HEAD_BYTES + behind;
    out[..HEAD_BYTES].copy_from_slice(&head(length));
}

/// A text field; an empty one is left out, as protobuf does.
fn push_text(out: &mut Vec<u8>, field: u8, text: &str) {
    if !text.is_empty() {
        push_key(out, field, text.len());
        out.extend_from_slice(text.as_bytes());
    }
}

/// The key of a field that has a length, and the length.
fn push_key(out: &mut Vec<u8>, field: u8, length: usize) {
    out.put_u8(field << 3 | 2);
    encode_varint(length as u64, out);
}
