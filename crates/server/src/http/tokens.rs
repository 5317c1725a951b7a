//! `POST /tokenize` and `/detokenize`, as vLLM has them: how many tokens a prompt is, and what they say.

use std::sync::Arc;

use http::{HeaderMap, Response};
use quadrant_types::Error;
use serde::Deserialize;
use serde_json::json;

use crate::Shared;
use crate::access::Caller;
use crate::asked::{Prompt, Turn, message, parsed};
use crate::budgeted::room_to_parse;
use crate::generation::{context_of, prompt_of};
use crate::http::body::{self, RequestReader};
use crate::http::segments::Segments;
use crate::http::{openai, response};

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    FromText,
    ToText,
}

#[derive(Deserialize)]
struct Body {
    model: String,
    prompt: Option<String>,
    messages: Option<Vec<Turn>>,
    tokens: Option<Vec<u32>>,
}

/// Reads a request and answers it.
///
/// # Errors
/// What is wrong with it.
pub(crate) async fn answer(
    shared: &Arc<Shared>,
    caller: &Caller,
    (direction, headers): (Direction, &HeaderMap),
    body: &mut RequestReader,
) -> Result<Response<Segments>, Error> {
    openai::terms(shared, caller, headers, body).await?;
    let bytes = body::read(shared, headers, body, 0).await?;
    let (state, caller) = (Arc::clone(shared), caller.clone());
    let work = move || {
        let _room = room_to_parse(&state.budget, &bytes)?;
        let asked: Body = parsed(&bytes)?;
        caller.may_use(&state, &asked.model)?;
        let entry = state.handle.find(&asked.model, None)?;
        let language = entry.language.as_ref();
        let language = language
            .ok_or_else(|| Error::invalid(format!("the model `{}` has no tokens", entry.spec.name)))?;
        let prompt = match (direction, asked.tokens, asked.messages, asked.prompt) {
            (Direction::ToText, Some(tokens), ..) => Prompt::Tokens(tokens),
            (Direction::ToText, ..) => return Err(Error::invalid("you must provide a `tokens` parameter")),
            (Direction::FromText, _, Some(turns), _) => {
                Prompt::Chat(turns.iter().map(message).collect::<Result<_, _>>()?)
            }
            (Direction::FromText, _, _, Some(text)) => Prompt::Text(text),
            (Direction::FromText, ..) => return Err(Error::invalid("you must provide a `prompt` parameter")),
        };
        let (tokens, text) = prompt_of(language, &entry, &prompt)?;
        Ok(match direction {
            Direction::ToText => json!({"prompt": text}),
            Direction::FromText => {
                json!({"count": tokens.len(), "max_model_len": context_of(&entry), "tokens": tokens})
            }
        })
    };
    Ok(response::json(shared.heavy.run(true, work).await?.to_string()))
}
