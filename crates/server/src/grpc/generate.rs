//! Generation over `ModelStreamInfer`: one request and many answers, as Triton's decoupled models have it.
//!
//! The inputs are those of Triton's backend of vLLM: `text_input`, `stream`, `exclude_input_in_output`, and
//! `sampling_parameters` with a JSON object in it. What `/generate` takes may be said there or in the
//! parameters of the request.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use quadrant_node::{Generated, ModelEntry, Pace, TokenStream};
use quadrant_proto::inference::infer_parameter::ParameterChoice;
use quadrant_proto::inference::model_infer_response::InferOutputTensor;
use quadrant_proto::inference::{
    InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse, ModelStreamInferResponse,
};
use quadrant_types::{DataType, Error, Time};
use serde_json::{Map, Value};

use crate::asked::Asked;
use crate::events::{self, Port};
use crate::generation::{self, Prepared};
use crate::grpc::frame::{Ranges, framed};
use crate::grpc::infer::check_raw;
use crate::terms::Terms;
use crate::{Shared, errors};

/// The messages of an answer, as they come.
pub(crate) type Answers = Pin<Box<dyn Stream<Item = Ranges> + Send>>;

/// What marks the last message of an answer.
const FINAL: &str = "triton_final_response";
/// What asks for a last message without content. The last one has content here, so it changes nothing.
const EMPTY_FINAL: &str = "triton_enable_empty_final_response";

/// A request that generates, held against its model.
pub(crate) struct Generating {
    prepared: Prepared,
    head: Head,
    /// Whether every token is a message.
    in_parts: bool,
    /// What stands before the answer.
    echo: String,
}

/// What is common to all messages of an answer.
struct Head {
    model: String,
    version: String,
    id: String,
}

/// Bytes of `sampling_parameters`: they may hold a schema.
const PARAMETERS_MAX: usize = 1 << 20;

/// Reads a request for a model that generates, and holds it against the model. It may take a while.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn prepare(
    shared: &Arc<Shared>,
    entry: &Arc<ModelEntry>,
    request: &ModelInferRequest,
    (terms, pace): (Terms, Pace),
    arrived: Time,
) -> Result<Generating, Error> {
    check_raw(request)?;
    let mut fields = Map::new();
    let mut timeout = pace.timeout;
    for (name, parameter) in &request.parameters {
        match (&**name, value(parameter)) {
            (EMPTY_FINAL | FINAL, _) => (),
            ("timeout", given) => {
                let microseconds = given.as_u64().ok_or_else(|| not_one("timeout", "number"))?;
                let given = (microseconds > 0).then(|| Duration::from_micros(microseconds));
                timeout = timeout.into_iter().chain(given).min();
            }
            (_, given) => drop(fields.insert(name.clone(), given)),
        }
    }
    let (mut in_parts, mut echoes) = (false, false);
    for (position, input) in request.inputs.iter().enumerate() {
        let given = (request.raw_input_contents.get(position), input.contents.as_ref());
        match &*input.name {
            "text_input" => drop(fields.insert(input.name.clone(), Value::String(text(&input.name, given)?))),
            "sampling_parameters" => {
                let said = text(&input.name, given)?;
                if said.len() > PARAMETERS_MAX {
                    return Err(Error::invalid(format!(
                        "input 'sampling_parameters' has more than `{PARAMETERS_MAX}` bytes"
                    )));
                }
                let object = serde_json::from_str::<Map<String, Value>>(&said);
                fields.extend(object.map_err(|error| {
                    Error::invalid(format!("input 'sampling_parameters' is not a JSON object: {error}"))
                })?);
            }
            "stream" => in_parts = boolean(&input.name, given)?,
            "exclude_input_in_output" => echoes = !boolean(&input.name, given)?,
            other => {
                let model = &entry.spec.name;
                return Err(Error::invalid(format!(
                    "unexpected inference input '{other}' for model '{model}'"
                )));
            }
        }
    }
    // They may be said like everything else, too.
    let is_said = |name: &str| fields.get(name).and_then(Value::as_bool).unwrap_or(false);
    (in_parts, echoes) = (in_parts || is_said("stream"), echoes || is_said("echo"));
    let asked = Asked::triton(fields, in_parts)?;
    let bytes_in = prost::Message::encoded_len(request);
    let pace = Pace { timeout, ..pace };
    let there = (Arc::clone(shared), Arc::clone(entry));
    let prepared = generation::prepare(&there, &asked, (terms, pace), (arrived, bytes_in))?;
    let spec = &entry.spec;
    let head =
        Head { model: spec.name.to_string(), version: spec.version.to_string(), id: request.id.clone() };
    let echo = if echoes { prepared.prompt.clone() } else { String::new() };
    Ok(Generating { prepared, head, in_parts, echo })
}

/// Hands the request to the node. Dropping the stream cancels it.
///
/// # Errors
/// What the node says.
pub(crate) async fn answers(shared: &Arc<Shared>, generating: Generating) -> Result<Answers, Error> {
    let Generating { prepared, head, in_parts, echo } = generating;
    let request = prepared.requests.into_iter().next();
    let request = request.ok_or_else(|| Error::invalid("nothing is asked for"))?;
    let handle = shared.handle.clone();
    let is_heavy = request.generation.grammar.is_some();
    let tokens = shared.heavy.run(is_heavy, move || handle.generate(request)).await?;
    if in_parts {
        return Ok(Box::pin(stream::unfold(Some((tokens, head, echo)), |state| async {
            let (mut tokens, head, echo) = state?;
            loop {
                match tokens.next().await? {
                    // Bytes that are no whole character yet.
                    Ok(Generated { text, finish: None, .. }) if text.is_empty() => (),
                    Ok(Generated { text, finish, .. }) => {
                        let message = head.message(&format!("{echo}{text}"), finish.is_some());
                        return Some((message, finish.is_none().then_some((tokens, head, String::new()))));
                    }
                    Err(error) => return Some((head.failure(&error), None)),
                }
            }
        })));
    }
    Ok(Box::pin(stream::once(async move {
        match whole(tokens, echo).await {
            Ok(text) => head.message(&text, true),
            Err(error) => head.failure(&error),
        }
    })))
}

async fn whole(mut tokens: TokenStream, mut text: String) -> Result<String, Error> {
    while let Some(token) = tokens.next().await {
        text += &token?.text;
    }
    Ok(text)
}

impl Head {
    fn message(&self, text: &str, is_final: bool) -> Ranges {
        let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
        let raw = [&length.to_le_bytes()[..], text.as_bytes()].concat();
        let output = InferOutputTensor {
            name: "text_output".to_owned(),
            datatype: DataType::Bytes.name().to_owned(),
            shape: vec![1],
            ..InferOutputTensor::default()
        };
        let mark = InferParameter { parameter_choice: Some(ParameterChoice::BoolParam(is_final)) };
        self.framed(ModelStreamInferResponse {
            error_message: String::new(),
            infer_response: Some(ModelInferResponse {
                parameters: [(FINAL.to_owned(), mark)].into(),
                outputs: vec![output],
                raw_output_contents: vec![Bytes::from(raw)],
                ..ModelInferResponse::default()
            }),
        })
    }

    fn failure(&self, error: &Error) -> Ranges {
        events::failed(Port::Grpc, &self.model, "", error);
        self.framed(ModelStreamInferResponse {
            error_message: errors::bounded_message(&error.message).into_owned(),
            infer_response: Some(ModelInferResponse::default()),
        })
    }

    fn framed(&self, mut message: ModelStreamInferResponse) -> Ranges {
        if let Some(response) = &mut message.infer_response {
            response.model_name.clone_from(&self.model);
            response.model_version.clone_from(&self.version);
            response.id.clone_from(&self.id);
        }
        [framed(&message)].into()
    }
}

fn value(parameter: &InferParameter) -> Value {
    match &parameter.parameter_choice {
        Some(ParameterChoice::BoolParam(value)) => (*value).into(),
        Some(ParameterChoice::Int64Param(value)) => (*value).into(),
        Some(ParameterChoice::Uint64Param(value)) => (*value).into(),
        Some(ParameterChoice::DoubleParam(value)) => (*value).into(),
        Some(ParameterChoice::StringParam(value)) => value.as_str().into(),
        None => Value::Null,
    }
}

/// An input's data: raw, or as a list.
type Given<'a> = (Option<&'a Bytes>, Option<&'a InferTensorContents>);

/// The one text of an input.
fn text(name: &str, given: Given<'_>) -> Result<String, Error> {
    let bytes = match given {
        (Some(raw), _) => match raw.split_first_chunk() {
            Some((length, bytes)) if u32::from_le_bytes(*length) as usize == bytes.len() => Some(bytes),
            Some(_) | None => None,
        },
        (None, Some(contents)) => match &contents.bytes_contents[..] {
            [bytes] => Some(bytes.as_ref()),
            _ => None,
        },
        (None, None) => None,
    };
    let text = bytes.and_then(|bytes| String::from_utf8(bytes.to_vec()).ok());
    text.ok_or_else(|| not_one(name, "text"))
}

/// The one truth value of an input.
fn boolean(name: &str, given: Given<'_>) -> Result<bool, Error> {
    match given {
        (Some(raw), _) if raw.len() == 1 => Ok(raw[0] != 0),
        (None, Some(contents)) if contents.bool_contents.len() == 1 => Ok(contents.bool_contents[0]),
        _ => Err(not_one(name, "truth value")),
    }
}

fn not_one(name: &str, what: &str) -> Error {
    Error::invalid(format!("'{name}' must be one {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_taken_raw_and_as_lists() {
        let raw = Bytes::from_static(b"\x02\0\0\0hi");
        assert_eq!(text("x", (Some(&raw), None)).unwrap(), "hi");
        let list = InferTensorContents { bytes_contents: vec![raw.slice(4..)], ..Default::default() };
        assert_eq!(text("x", (None, Some(&list))).unwrap(), "hi");
        let list = InferTensorContents { bool_contents: vec![true], ..Default::default() };
        assert!(boolean("x", (None, Some(&list))).unwrap());
        assert!(!boolean("x", (Some(&Bytes::from_static(b"\0")), None)).unwrap());
    }

    #[test]
    fn lies_about_lengths_are_refused() {
        for raw in [&b""[..], b"\x02\0\0", b"\x03\0\0\0hi", b"\x01\0\0\0hi", b"\x01\0\0\0\xff"] {
            let error = text("x", (Some(&Bytes::from_static(raw)), None)).unwrap_err();
            assert!(error.message.contains("'x' must be one text"));
        }
        assert!(boolean("x", (Some(&Bytes::from_static(b"\0\0")), None)).is_err());
        assert!(boolean("x", (None, None)).is_err());
    }
}
