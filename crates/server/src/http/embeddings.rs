//! `POST /v1/embeddings`: texts in, a vector for each out.
//!
//! Any model with one input of texts and an output of vectors answers it. More texts than the model takes at
//! once become several requests of the scheduler, and one answer.

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use http::{HeaderMap, Response};
use quadrant_node::ModelEntry;
use quadrant_types::{DataType, Dim, Error, ModelSpec, Shape, Tensor, Time};
use smallvec::smallvec;

use crate::access::Caller;
use crate::events::Port;
use crate::heavy::HEAVY_BYTES;
use crate::http::body::{self, RequestReader};
use crate::http::response::json;
use crate::http::segments::Segments;
use crate::http::text::{push_elements, push_integer, push_string};
use crate::http::{explain, openai};
use crate::infer::{self, Prepared};
use crate::json::Cursor;
use crate::terms::Terms;
use crate::wire::{WireAnswer, WireInput, WireOutput, WireRequest};
use crate::{Shared, timing};

/// Texts of one request, as OpenAI has it.
const TEXTS_MAX: usize = 2_048;
/// Bytes of a model's name; no file has a longer one.
const NAME_BYTES_MAX: usize = 255;
/// Requests of the scheduler that one call has under way, so that it fills no queue and no quota by itself:
/// one runs while the next waits.
const PARTS_UNDER_WAY: usize = 2;
/// The output that counts tokens, of models that have one.
const TOKENS: &str = "tokens";

/// What is asked for.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    model: String,
    texts: Vec<String>,
    is_base64: bool,
    dimensions: Option<usize>,
    /// The body, whose lease of the budget stands for the texts too.
    body: Bytes,
}

/// Which of a model's tensors are which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Form {
    vectors: usize,
    width: usize,
    tokens: Option<usize>,
}

impl Form {
    /// `None` if the model does not make vectors of texts.
    fn of(spec: &ModelSpec) -> Option<Self> {
        let [input] = &*spec.inputs else { return None };
        if input.datatype != DataType::Bytes || input.dims.len() != 1 {
            return None;
        }
        let vectors = spec.outputs.iter().position(|output| output.datatype == DataType::Fp32)?;
        let [_, Dim::Fixed(width @ 1..)] = &*spec.outputs[vectors].dims else { return None };
        let is_count = |index: &usize| spec.outputs[*index].datatype == DataType::Int64;
        Some(Self { vectors, width: *width, tokens: spec.output_index(TOKENS).filter(is_count) })
    }
}

/// Whether a model answers this call.
pub(crate) fn answers(entry: &ModelEntry) -> bool {
    Form::of(&entry.spec).is_some()
}

/// Reads what is asked for. On an error what is left of the body is read away.
///
/// # Errors
/// What is wrong with the request, or that its tenant may not send it now.
pub(crate) async fn read(
    shared: &Arc<Shared>,
    caller: &Caller,
    headers: &HeaderMap,
    body: &mut RequestReader,
) -> Result<(Asked, Terms), Error> {
    let terms = openai::terms(shared, caller, headers, body).await?;
    let bytes = body::read(shared, headers, body, 0).await?;
    let depth_max = shared.limits.json_depth_max;
    let is_heavy = bytes.len() > HEAVY_BYTES;
    let parse = move || Asked::parse(&bytes, depth_max).map(|asked| Asked { body: bytes, ..asked });
    Ok((shared.heavy.run(is_heavy, parse).await?, terms))
}

impl Asked {
    /// The model that is asked for.
    pub(crate) fn model(&self) -> &str {
        &self.model
    }

    fn parse(body: &[u8], depth_max: usize) -> Result<Self, Error> {
        let mut asked = Self::default();
        let (mut has_model, mut has_input) = (false, false);
        let mut cursor = Cursor::new(body, depth_max);
        cursor.object(|cursor, name| match &*name {
            "model" => {
                has_model = true;
                let model = text(cursor, "model")?;
                if model.len() > NAME_BYTES_MAX {
                    return Err(Error::invalid(format!("`model` may have at most `{NAME_BYTES_MAX}` bytes")));
                }
                asked.model = model.into_owned();
                Ok(())
            }
            "input" => {
                has_input = true;
                texts(cursor).map(|texts| asked.texts = texts)
            }
            "encoding_format" if cursor.peek() != Some(b'n') => {
                let format = text(cursor, "encoding_format")?;
                asked.is_base64 = match &*format {
                    "float" => false,
                    "base64" => true,
                    other => {
                        let other = other.escape_debug();
                        return Err(Error::invalid(format!(
                            "`encoding_format` must be `float` or `base64`, not `{other}`"
                        )));
                    }
                };
                Ok(())
            }
            "dimensions" if cursor.peek() != Some(b'n') => {
                let number = cursor.number()?.parse();
                let number = number.map_err(|_| Error::invalid("`dimensions` must be a whole number"))?;
                asked.dimensions = Some(number);
                Ok(())
            }
            _ => cursor.skip().map(drop),
        })?;
        cursor.end()?;
        match (has_model, has_input) {
            (false, _) => Err(Error::invalid("you must provide a `model` parameter")),
            (true, false) => Err(Error::invalid("you must provide an `input` parameter")),
            (true, true) => Ok(asked),
        }
    }
}

fn text<'a>(cursor: &mut Cursor<'a>, name: &str) -> Result<Cow<'a, str>, Error> {
    if cursor.peek() != Some(b'"') {
        return Err(Error::invalid(format!("`{name}` must be a string")));
    }
    cursor.string()
}

fn texts(cursor: &mut Cursor<'_>) -> Result<Vec<String>, Error> {
    let mut texts = Vec::new();
    if cursor.peek() == Some(b'"') {
        texts.push(cursor.string()?.into_owned());
    } else if cursor.peek() == Some(b'[') {
        cursor.array(|cursor| {
            if cursor.peek() != Some(b'"') {
                return Err(Error::invalid("`input` must be texts; lists of tokens are not taken"));
            }
            if texts.len() == TEXTS_MAX {
                return Err(Error::invalid(format!("`input` may have at most `{TEXTS_MAX}` texts")));
            }
            texts.push(cursor.string()?.into_owned());
            Ok(())
        })?;
    } else {
        return Err(Error::invalid("`input` must be a string or a list of strings"));
    }
    if texts.is_empty() {
        return Err(Error::invalid("`input` must not be empty"));
    }
    Ok(texts)
}

/// Answers a request that began to arrive at `started`.
///
/// # Errors
/// The model does not do this, or what the node says.
pub(crate) async fn answer(
    shared: &Arc<Shared>,
    entry: &Arc<ModelEntry>,
    (started, headers): (Time, &HeaderMap),
    terms: Terms,
    asked: Asked,
) -> Result<Response<Segments>, Error> {
    let arrived = shared.handle.now();
    let (there, texts, is_base64) = (Arc::clone(entry), asked.texts.len(), asked.is_base64);
    let is_heavy = asked.body.len() > HEAVY_BYTES;
    let (form, parts, _leased) = shared
        .heavy
        .run(is_heavy, move || {
            let (form, parts) = prepare(&there, (arrived, terms), &asked)?;
            Ok((form, parts, asked.body))
        })
        .await
        .inspect_err(|error| entry.record_failure(error))?;
    let run = |part| infer::run(shared, part);
    let answers: Vec<WireAnswer> =
        stream::iter(parts.into_iter().map(run)).buffered(PARTS_UNDER_WAY).try_collect().await?;
    let first = answers.first().map(|answer| (answer.request, answer.timing));
    let (name, bytes_max) = (Arc::clone(&entry.spec.name), shared.limits.response_bytes_max);
    let is_heavy = 4 * texts * form.width > HEAVY_BYTES / 4;
    let write = move || written(&name, form, is_base64, &answers, bytes_max);
    let mut response = json(shared.heavy.run(is_heavy, write).await?);
    if let Some((request, timing)) = first {
        let answered = response.headers_mut();
        answered.insert(explain::REQUEST_HEADER, explain::header(request));
        timing::tell(&shared.handle, (Port::Http, headers, answered), started, (request, &timing));
    }
    Ok(response)
}

/// Checks what is asked for, and makes requests of it of as many texts as share a step.
fn prepare(
    entry: &Arc<ModelEntry>,
    (arrived, terms): (Time, Terms),
    asked: &Asked,
) -> Result<(Form, Vec<Prepared>), Error> {
    let name = &entry.spec.name;
    let form = Form::of(&entry.spec);
    let form = form.ok_or_else(|| Error::invalid(format!("the model `{name}` does not make embeddings")))?;
    if let Some(dimensions) = asked.dimensions.filter(|dimensions| *dimensions != form.width) {
        let width = form.width;
        return Err(Error::invalid(format!("`dimensions` is `{dimensions}`, and `{name}` has `{width}`")));
    }
    let rows = if entry.batches { entry.terms.rows_max.max(1) as usize } else { 1 };
    let part = |texts| infer::prepare(entry, request(&entry.spec, form, texts), arrived, terms);
    Ok((form, asked.texts.chunks(rows).map(part).collect::<Result<_, _>>()?))
}

/// What the model is asked for some of the texts.
fn request(spec: &ModelSpec, form: Form, texts: &[String]) -> WireRequest<'static> {
    let mut data = Vec::with_capacity(texts.iter().map(|text| 4 + text.len()).sum());
    for text in texts {
        // A body is far below 4 GiB.
        data.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
        data.extend_from_slice(text.as_bytes());
    }
    let input = WireInput {
        name: spec.inputs[0].name.to_string().into(),
        datatype: DataType::Bytes,
        shape: Shape::from_slice(&[texts.len()]),
        data: Bytes::from(data),
    };
    let output = |index: usize| WireOutput {
        name: spec.outputs[index].name.to_string().into(),
        classes: 0,
        is_binary: Some(true),
    };
    let outputs = [Some(form.vectors), form.tokens].into_iter().flatten().map(output).collect();
    WireRequest { inputs: smallvec![input], outputs, ..WireRequest::default() }
}

fn written(
    model: &str,
    form: Form,
    is_base64: bool,
    answers: &[WireAnswer],
    bytes_max: usize,
) -> Result<Vec<u8>, Error> {
    let mut out = b"{\"object\":\"list\",\"data\":[".to_vec();
    let (mut index, mut tokens) = (0_usize, 0_u64);
    for answer in answers {
        let of = |wanted: usize| answer.outputs.iter().find(|output| output.index == wanted);
        let vectors = of(form.vectors).map_or(&[][..], |output| &output.tensor.data);
        for vector in vectors.chunks_exact(4 * form.width) {
            if index > 0 {
                out.push(b',');
            }
            out.extend_from_slice(b"{\"object\":\"embedding\",\"index\":");
            push_integer(&mut out, index);
            out.extend_from_slice(b",\"embedding\":");
            if is_base64 {
                push_string(&mut out, &STANDARD.encode(vector));
            } else {
                let shape = Shape::from_slice(&[form.width]);
                let vector = Tensor { datatype: DataType::Fp32, shape, data: Bytes::copy_from_slice(vector) };
                push_elements(&mut out, &vector, "embedding", bytes_max)?;
            }
            out.push(b'}');
            index += 1;
        }
        let counts = form.tokens.and_then(of).map_or(&[][..], |output| &output.tensor.data);
        tokens += counts.as_chunks::<8>().0.iter().map(|count| u64::from_le_bytes(*count)).sum::<u64>();
    }
    out.extend_from_slice(b"],\"model\":");
    push_string(&mut out, model);
    out.extend_from_slice(b",\"usage\":{\"prompt_tokens\":");
    push_integer(&mut out, tokens);
    out.extend_from_slice(b",\"total_tokens\":");
    push_integer(&mut out, tokens);
    out.extend_from_slice(b"}}");
    if out.len() > bytes_max {
        return Err(infer::too_large(out.len(), bytes_max));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_read() {
        let parse = |body: &str| Asked::parse(body.as_bytes(), 8);
        let one = parse("{\"model\":\"m\",\"input\":\"a\\nb\",\"user\":{\"x\":1}}").unwrap();
        assert_eq!((one.model(), &*one.texts, one.is_base64), ("m", &["a\nb".to_owned()][..], false));
        let two = "{\"input\":[\"a\",\"b\"],\"encoding_format\":\"base64\",\"dimensions\":3,\"model\":\"m\"}";
        let two = parse(two).unwrap();
        assert_eq!((two.texts.len(), two.is_base64, two.dimensions), (2, true, Some(3)));
        for (body, message) in [
            ("{\"input\":\"a\"}", "you must provide a `model` parameter"),
            ("{\"model\":\"m\"}", "you must provide an `input` parameter"),
            ("{\"model\":\"m\",\"input\":[]}", "`input` must not be empty"),
            ("{\"model\":\"m\",\"input\":7}", "`input` must be a string or a list of strings"),
            ("{\"model\":\"m\",\"input\":[[1,2]]}", "`input` must be texts; lists of tokens are not taken"),
            ("{\"model\":1,\"input\":\"a\"}", "`model` must be a string"),
            (
                "{\"model\":\"m\",\"input\":\"a\",\"encoding_format\":\"hex\"}",
                "`encoding_format` must be `float` or `base64`, not `hex`",
            ),
            ("{\"model\":\"m\",\"input\":\"a\",\"dimensions\":1.5}", "`dimensions` must be a whole number"),
        ] {
            assert_eq!(parse(body).unwrap_err().message, message, "{body}");
        }
        let many = format!("{{\"model\":\"m\",\"input\":[{}\"\"]}}", "\"\",".repeat(TEXTS_MAX));
        assert_eq!(parse(&many).unwrap_err().message, "`input` may have at most `2048` texts");
    }
}
