//! `POST /v1/chat/completions` and `/v1/completions`: an answer that is generated, as a whole or as it comes.
//!
//! Several answers to one request are as many requests of the scheduler, which share what is computed of
//! their prompt. A stream's headers leave with its first token, so whatever keeps it from beginning has its
//! own status.

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::try_join_all;
use futures_util::stream::{self, Stream, StreamExt};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Response};
use quadrant_node::{Finish, Generated, Language, ModelEntry, TokenStream};
use quadrant_types::{Error, Time};
use serde_json::{Value, json};

use super::told;
use crate::Shared;
use crate::access::Caller;
use crate::asked::{Asked, parsed};
use crate::budgeted::room_to_parse;
use crate::generation::{Prepared, pace, prepare};
use crate::heavy::HEAVY_BYTES;
use crate::http::body::{self, RequestReader};
use crate::http::completions::{Form, Usage, error_event};
use crate::http::segments::Segments;
use crate::http::{explain, openai, response};
use crate::terms::Terms;

/// One of the answers, as it comes.
struct Choice {
    index: usize,
    tokens: TokenStream,
}

/// What is common to all parts of an answer.
pub(crate) struct Head {
    pub(crate) form: Form,
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) version: String,
    pub(crate) language: Arc<Language>,
    /// What stands before every answer.
    pub(crate) echo: String,
}

/// The model that a path names.
type Named<'a> = (Cow<'a, str>, Option<u64>);

/// Answers a request for something to be generated, and says so. A stream goes on after that.
pub(crate) async fn respond(
    shared: &Arc<Shared>,
    (started, caller): (Time, &Caller),
    (form, named, headers): (Form, Option<Named<'_>>, &HeaderMap),
    body: &mut RequestReader,
) -> Response<Segments> {
    let as_openai = |model: &str, result| told(shared, started, model, headers, result, form.errors());
    let terms = match openai::terms(shared, caller, headers, body).await {
        Ok(terms) => terms,
        Err(error) => return as_openai("", Err(error)),
    };
    let asked = match body::read(shared, headers, body, 0).await {
        Ok(bytes) => {
            let length = bytes.len();
            let state = Arc::clone(shared);
            let parse = move || {
                let _room = room_to_parse(&state.budget, &bytes)?;
                match form {
                    Form::Chat => Asked::chat(&bytes),
                    Form::Completion => Asked::completion(&bytes),
                    Form::Triton | Form::TritonStream => {
                        Asked::triton(parsed(&bytes)?, form == Form::TritonStream)
                    }
                }
            };
            shared.heavy.run(length > HEAVY_BYTES, parse).await.map(|asked| (asked, length))
        }
        Err(error) => Err(error),
    };
    let asked = match asked {
        Ok(asked) => asked,
        Err(error) => return as_openai("", Err(error)),
    };
    let (model, version) =
        named.map_or((asked.0.model.clone(), None), |(name, version)| (name.into_owned(), version));
    let entry = caller.may_use(shared, &model).and_then(|()| shared.handle.find(&model, version));
    let result = match entry {
        Ok(entry) => answer(shared, &entry, (headers, form), terms, asked).await,
        Err(error) => Err(error),
    };
    as_openai(&model, result)
}

/// Answers a request that has arrived.
///
/// # Errors
/// The model does not do this, or what the node says.
async fn answer(
    shared: &Arc<Shared>,
    entry: &Arc<ModelEntry>,
    (headers, form): (&HeaderMap, Form),
    terms: Terms,
    (asked, bytes_in): (Asked, usize),
) -> Result<Response<Segments>, Error> {
    let pace = pace(headers, terms)?;
    let (stream, include_usage, echo) = (asked.stream, asked.include_usage, asked.echo);
    let there = (Arc::clone(shared), Arc::clone(entry));
    let arrived = shared.handle.now();
    // Templates, tokenizers and grammars may take a while.
    let prepare = move || prepare(&there, &asked, (terms, pace), (arrived, bytes_in));
    let Prepared { requests, language, prompt } =
        shared.heavy.run(true, prepare).await.inspect_err(|error| entry.record_failure(error))?;
    let prompt_tokens = requests.first().map_or(0, |request| request.generation.prompt.len());
    let mut choices = Vec::with_capacity(requests.len());
    for (index, request) in requests.into_iter().enumerate() {
        let handle = shared.handle.clone();
        let tokens =
            shared.heavy.run(request.generation.grammar.is_some(), move || handle.generate(request)).await?;
        choices.push(Choice { index, tokens });
    }
    let first = choices.first().map(|choice| choice.tokens.id()).unwrap_or_default();
    let head = Head {
        form,
        id: format!("{}-{}", form.prefix(), first.0),
        created: shared.handle.unix_seconds(),
        model: entry.spec.name.to_string(),
        version: entry.spec.version.to_string(),
        language,
        echo: if echo { prompt } else { String::new() },
    };
    let mut response = match stream {
        true => streamed(head, choices, prompt_tokens, include_usage).await?,
        false => whole(&head, choices, prompt_tokens).await?,
    };
    response.headers_mut().insert(explain::REQUEST_HEADER, explain::header(first));
    Ok(response)
}

/// All answers, once they are complete.
async fn whole(head: &Head, choices: Vec<Choice>, prompt_tokens: usize) -> Result<Response<Segments>, Error> {
    let read = |Choice { index, mut tokens }: Choice| async move {
        let mut all = Vec::new();
        while let Some(token) = tokens.next().await {
            all.push(token?);
        }
        Ok::<_, Error>((all.len(), head.form.whole(head, index, &all)))
    };
    // All at once: a sequence that nobody reads is not continued.
    let choices = try_join_all(choices.into_iter().map(read)).await?;
    let completion_tokens = choices.iter().map(|(tokens, _)| tokens).sum();
    let usage = Usage { prompt_tokens, completion_tokens };
    let answers: Vec<Value> = choices.into_iter().map(|(_, answer)| answer).collect();
    if let (Form::Triton | Form::TritonStream, Some(answer)) = (head.form, answers.first()) {
        return Ok(response::json(answer.to_string()));
    }
    let answer = json!({
        "id": head.id,
        "object": head.form.object(false),
        "created": head.created,
        "model": head.model,
        "choices": answers,
        "usage": usage.value(),
    });
    Ok(response::json(answer.to_string()))
}

/// The tokens of all answers as they come.
async fn streamed(
    head: Head,
    choices: Vec<Choice>,
    prompt_tokens: usize,
    include_usage: bool,
) -> Result<Response<Segments>, Error> {
    let count = choices.len();
    let each = choices.into_iter().map(|Choice { index, tokens }| {
        Box::pin(stream::unfold(tokens, move |mut tokens| async move {
            let next = tokens.next().await?;
            Some(((index, next), tokens))
        })) as Pin<Box<dyn Stream<Item = (usize, Result<Generated, Error>)> + Send>>
    });
    let mut tokens = stream::select_all(each);
    let first = tokens.next().await;
    let first = match first {
        Some((index, Ok(token))) => Some((index, Ok(token))),
        Some((_, Err(error))) => return Err(error),
        None => None,
    };
    let beginning: Vec<Bytes> =
        (0..count).flat_map(|index| head.form.first(&head, index)).map(|part| event(&part)).collect();
    let usage = Usage { prompt_tokens, completion_tokens: 0 };
    let state = (stream::iter(first).chain(tokens), head, usage, false);
    let events = stream::unfold(state, move |(mut tokens, head, mut usage, is_over)| async move {
        if is_over {
            return None;
        }
        let (bytes, is_over) = match tokens.next().await {
            Some((index, Ok(token))) => {
                usage.completion_tokens += 1;
                let parts = head.form.parts(&head, index, &token);
                (parts.into_iter().flat_map(|part| event(&part).to_vec()).collect::<Vec<u8>>(), false)
            }
            Some((_, Err(error))) => (event(&error_event(head.form, &error)).to_vec(), true),
            None => {
                let mut last = Vec::new();
                if include_usage {
                    let mut part = head.form.chunk(&head, &[]);
                    part["usage"] = usage.value();
                    last.extend_from_slice(&event(&part));
                }
                if head.form != Form::TritonStream {
                    last.extend_from_slice(b"data: [DONE]\n\n");
                }
                (last, true)
            }
        };
        Some((Bytes::from(bytes), (tokens, head, usage, is_over)))
    });
    let mut response = Response::new(Segments::streamed(stream::iter(beginning).chain(events).boxed()));
    let events = HeaderValue::from_static("text/event-stream; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, events);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

/// `data: {...}` and a blank line.
fn event(value: &Value) -> Bytes {
    Bytes::from(format!("data: {value}\n\n"))
}

/// The reason as OpenAI names it.
pub(crate) fn finish_reason(finish: Option<&Finish>) -> Value {
    match finish {
        Some(Finish::Stop) => "stop".into(),
        Some(Finish::Length) => "length".into(),
        Some(Finish::Failed(_)) | None => Value::Null,
    }
}
