//! `ModelInfer` and `ModelStreamInfer`: protobuf in, the common path, protobuf out.
//!
//! Answers are encoded in `encode.rs`; what generates answers in parts, see `generate.rs`.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, SelectAll};
use futures_util::{Stream, StreamExt as _};
use http::{HeaderMap, Response};
use quadrant_node::{ModelEntry, Pace};
use quadrant_proto::inference::infer_parameter::ParameterChoice;
use quadrant_proto::inference::{InferParameter, ModelInferRequest};
use quadrant_types::{Error, ErrorCode, Lease, Shape, Time};

use crate::access::Caller;
use crate::budgeted::exhausted;
use crate::events::{self, Port};
use crate::generation::pace;
use crate::grpc::encode::{encoded, encoded_in_stream, failure};
use crate::grpc::frame::{GrpcBody, Messages, Ranges};
use crate::grpc::generate::{self, Answers, Generating};
use crate::grpc::{contents, decoded, error_response, inspect, success, weight};
use crate::heavy::HEAVY_BYTES;
use crate::http::REQUEST_ID;
use crate::http::explain;
use crate::listen::Link;
use crate::terms::Terms;
use crate::wire::{DIMS_MAX, WireInput, WireOutput, WireRequest, datatype};
use crate::{Shared, errors, infer, timing};

/// Requests of one stream that are in work at once, whose answers keep the order; and as many again whose
/// answers are coming in parts.
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
        (Ok(message), Ok(terms)) => match prepared(shared, message, caller, (terms, None)).await {
            Ok((Prepared::Once(prepared), of)) => {
                infer::run(shared, prepared).await.map_err(|error| (of, error))
            }
            Ok((Prepared::Many(_), of)) => {
                Err((of, Error::new(ErrorCode::Internal, "no stream was asked for")))
            }
            Err(failed) => Err(failed),
        },
        (Err(error), _) | (_, Err(error)) => Err((Of::default(), error)),
    };
    let (model, result) = match answered {
        Ok(answer) => (
            answer.model.spec.name.to_string(),
            encoded(&answer).map(|ranges| (ranges, answer.timing, answer.request)),
        ),
        Err((of, error)) => (of.model, Err(error)),
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

/// Each request of a stream is answered by one message, in order, or, if its model generates, by many between
/// those of others; what is wrong with a request is said in its message, what is wrong with the stream ends
/// it. A stream may be open for days, so who asks is looked up
/// again for every request.
pub(crate) fn stream(
    shared: &Arc<Shared>,
    (link, caller): (Link, &Caller),
    headers: &HeaderMap,
    messages: Messages,
) -> Response<GrpcBody> {
    let terms = Terms::from_headers(shared, headers, caller.tenant());
    let (terms, pace) = match terms.and_then(|terms| Ok((terms, pace(headers, terms)?))) {
        Ok(said) => said,
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
        async move { streamed(&shared, &headers, (opened, terms, pace), message?).await }
    });
    success(GrpcBody::stream(Box::pin(merged(answers.buffered(STREAM_REQUESTS_MAX)))))
}

/// What a request of a stream is answered with.
enum Answer {
    One(Ranges),
    Many(Answers),
}

/// The messages of all answers: those that are one in their order, those that are many as they come.
fn merged(
    answers: impl Stream<Item = Result<Answer, Error>> + Send + 'static,
) -> impl Stream<Item = Result<Ranges, Error>> + Send {
    // What ended the stream of requests is said when all that it had accepted are answered.
    let state = Some((Box::pin(answers), SelectAll::<Answers>::new(), None));
    stream::unfold(state, |state| async {
        let (mut answers, mut many, mut over) = state?;
        loop {
            tokio::select! {
                next = answers.next(), if over.is_none() && many.len() < STREAM_REQUESTS_MAX => match next {
                    Some(Ok(Answer::One(one))) => return Some((Ok(one), Some((answers, many, over)))),
                    Some(Ok(Answer::Many(parts))) => many.push(parts),
                    Some(Err(error)) => over = Some(Err(error)),
                    None => over = Some(Ok(())),
                },
                // Those that are over stay in the set until it is asked once more.
                next = many.next(), if !many.is_empty() => if let Some(part) = next {
                    return Some((Ok(part), Some((answers, many, over))));
                },
                else => return over?.err().map(|error| (Err(error), None)),
            }
        }
    })
}

/// One answer of a stream. The deadline of the call is that of the whole stream.
async fn streamed(
    shared: &Arc<Shared>,
    headers: &HeaderMap,
    (opened, terms, pace): (Time, Terms, Pace),
    message: Bytes,
) -> Result<Answer, Error> {
    let terms = terms.after(shared.handle.now().since(opened));
    let pace = Pace { timeout: terms.timeout, ..pace };
    let (of, answered) = match Caller::of(shared, headers) {
        Ok(caller) => {
            let terms = Terms { tenant: caller.tenant(), ..terms };
            match prepared(shared, message, &caller, (terms, Some(pace))).await {
                Ok((Prepared::Once(prepared), of)) => {
                    let answer = infer::run(shared, prepared).await;
                    (of, answer.and_then(|answer| encoded_in_stream(&answer)).map(Answer::One))
                }
                Ok((Prepared::Many(asked), of)) => {
                    (of, generate::answers(shared, asked).await.map(Answer::Many))
                }
                Err((of, error)) => (of, Err(error)),
            }
        }
        Err(error) => (Of::default(), Err(error)),
    };
    let error = match answered {
        Ok(answer) => return Ok(answer),
        Err(error) => error,
    };
    events::failed(Port::Grpc, &of.model, &of.id, &error);
    Ok(Answer::One(failure(&of.id, &error)))
}

/// Whose an answer or an error is: the model's name, and what the client calls the request.
#[derive(Default)]
struct Of {
    model: String,
    id: String,
}

/// A request that fits its model.
enum Prepared {
    Once(infer::Prepared),
    Many(Generating),
}

/// Decodes and checks one request, which may only be answered in parts if there is a pace for them. Both it
/// and an error say whose they are.
async fn prepared(
    shared: &Arc<Shared>,
    message: Bytes,
    caller: &Caller,
    (terms, pace): (Terms, Option<Pace>),
) -> Result<(Prepared, Of), (Of, Error)> {
    let arrived = shared.handle.now();
    let unnamed = |error| (Of::default(), error);
    let needed = weight::decoding_bytes(&message).map_err(unnamed)?;
    let lease = shared.budget.lease(needed).map_err(|error| unnamed(exhausted(&error)))?;
    let is_heavy = needed > HEAVY_BYTES;
    let (there, caller) = (Arc::clone(shared), caller.clone());
    let work = move || {
        let request: ModelInferRequest = decoded(message)?;
        let allowed = caller.may_use(&there, &request.model_name);
        let found =
            allowed.and_then(|()| inspect::find(&there.handle, &request.model_name, &request.model_version));
        let of = Of { model: request.model_name.clone(), id: request.id.clone() };
        let entry = match found {
            Ok(entry) => entry,
            Err(error) => return Ok((Err(error), of)),
        };
        Ok(match pace.filter(|_| entry.language.is_some()) {
            Some(pace) => (Ok(Decoded::Generates(entry, Box::new(request), pace, lease)), of),
            None => (prepare(&there, &entry, &request, (arrived, terms)).map(Decoded::Once), of),
        })
    };
    let (decoded, of) = shared.heavy.run(is_heavy, work).await.map_err(unnamed)?;
    let prepared = match decoded {
        Ok(Decoded::Once(prepared)) => Ok(Prepared::Once(prepared)),
        Ok(Decoded::Generates(entry, request, pace, lease)) => {
            let there = Arc::clone(shared);
            // Tokenizers and grammars may take a while.
            let work = move || {
                let prepared = generate::prepare(&there, &entry, &request, (terms, pace), arrived);
                drop(lease);
                prepared.map(Prepared::Many).inspect_err(|error| entry.record_failure(error))
            };
            shared.heavy.run(true, work).await
        }
        Err(error) => Err(error),
    };
    match prepared {
        Ok(prepared) => Ok((prepared, of)),
        Err(error) => Err((of, error)),
    }
}

/// A request that was read.
enum Decoded {
    Once(infer::Prepared),
    /// What it takes is leased until its text is read, too.
    Generates(Arc<ModelEntry>, Box<ModelInferRequest>, Pace, Lease),
}

fn prepare(
    shared: &Shared,
    entry: &Arc<ModelEntry>,
    request: &ModelInferRequest,
    (arrived, terms): (Time, Terms),
) -> Result<infer::Prepared, Error> {
    let prepared = to_wire(shared, request).and_then(|wire| infer::prepare(entry, wire, arrived, terms));
    prepared.inspect_err(|error| entry.record_failure(error))
}

/// Raw contents are there for all inputs or for none.
///
/// # Errors
/// They are for some.
pub(crate) fn check_raw(request: &ModelInferRequest) -> Result<(), Error> {
    let (model, raw) = (&request.model_name, &request.raw_input_contents);
    if !raw.is_empty() && raw.len() != request.inputs.len() {
        let (got, wanted) = (raw.len(), request.inputs.len());
        return Err(Error::invalid(format!(
            "expected {wanted} raw input contents but got {got} for model '{model}'"
        )));
    }
    Ok(())
}

fn to_wire<'a>(shared: &Shared, request: &'a ModelInferRequest) -> Result<WireRequest<'a>, Error> {
    let (model, raw) = (&request.model_name, &request.raw_input_contents);
    check_raw(request)?;
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

#[cfg(test)]
mod tests {
    use futures_util::stream::iter;

    use super::*;

    fn message(text: &'static str) -> Ranges {
        [Bytes::from_static(text.as_bytes())].into()
    }

    #[tokio::test]
    async fn many_answers_that_end_together_do_not_end_the_stream() {
        let parts = || Box::pin(iter([message("part"), message("part")])) as Answers;
        let many = (0..2 * STREAM_REQUESTS_MAX).map(move |_| Ok(Answer::Many(parts())));
        let all = merged(iter(many.chain([Ok(Answer::One(message("one")))])));
        let all: Vec<Ranges> = all.map(Result::unwrap).collect().await;
        assert_eq!(all.len(), 4 * STREAM_REQUESTS_MAX + 1);
        assert_eq!(all.iter().filter(|answer| **answer == message("one")).count(), 1);
    }

    #[tokio::test]
    async fn an_error_of_the_stream_is_its_last_message() {
        let answers = [Ok(Answer::One(message("one"))), Err(Error::invalid("broken"))];
        let all: Vec<_> = merged(iter(answers)).collect().await;
        assert!(matches!(&all[..], [Ok(_), Err(_)]));
    }
}
