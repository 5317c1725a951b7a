//! What is asked to be generated, under whichever protocol: held against its model and made into requests of
//! the node.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue};
use quadrant_node::{Generation, GenerationRequest, Language, ModelEntry, Pace};
use quadrant_types::{Error, Priority, Time};

use crate::asked::{Asked, Prompt};
use crate::terms::Terms;
use crate::{Shared, deadline};

/// When tokens are wanted, by the headers of inference gateways.
///
/// # Errors
/// They are no times.
pub(crate) fn pace(headers: &HeaderMap, terms: Terms) -> Result<Pace, Error> {
    let header = |name: &str| {
        let value = headers.get(name).map(HeaderValue::as_bytes);
        value.map(|value| deadline::from_milliseconds(name, value)).transpose()
    };
    let first = header("x-slo-ttft-ms")?.or(terms.latency);
    Ok(Pace { first, each: header("x-slo-tpot-ms")?, timeout: terms.timeout })
}

/// What is asked for, held against its model.
pub(crate) struct Prepared {
    /// One for each answer that is wanted; at least one.
    pub(crate) requests: Vec<GenerationRequest>,
    pub(crate) language: Arc<Language>,
    /// The prompt's text.
    pub(crate) prompt: String,
}

/// Reads the prompt and holds what is asked for against the model. It may take a while.
///
/// # Errors
/// The model does not generate, or not so much.
pub(crate) fn prepare(
    (shared, entry): &(Arc<Shared>, Arc<ModelEntry>),
    asked: &Asked,
    (terms, pace): (Terms, Pace),
    (arrived, bytes_in): (Time, usize),
) -> Result<Prepared, Error> {
    let name = &entry.spec.name;
    let language = entry.language.clone();
    let language =
        language.ok_or_else(|| Error::invalid(format!("the model `{name}` does not generate text")))?;
    let (prompt, text) = prompt_of(&language, entry, &asked.prompt)?;
    let longest = context_of(entry) as usize;
    let left = longest.saturating_sub(prompt.len());
    let tokens_max = asked.tokens_max.map_or(left, |tokens| tokens as usize);
    if prompt.is_empty() {
        return Err(Error::invalid("the prompt is empty"));
    }
    if left == 0 || tokens_max > left {
        let (has, wanted) = (prompt.len(), tokens_max);
        return Err(Error::invalid(format!(
            "this model's maximum context length is `{longest}` tokens; the prompt has `{has}`, and `{wanted}` \
             more are asked for"
        )));
    }
    let seed = asked.seed.unwrap_or_else(|| shared.handle.now().as_nanos());
    let priority = asked.priority.map(Priority).or(terms.priority).unwrap_or(entry.priority);
    let salt: Arc<str> = asked.cache_salt.as_deref().unwrap_or_default().into();
    let request = |index: u32| {
        let mut sampling = asked.sampling.clone();
        sampling.seed = seed.wrapping_add(u64::from(index));
        GenerationRequest {
            model: Arc::clone(entry),
            generation: Generation {
                prompt: prompt.clone(),
                tokens_max: u32::try_from(tokens_max).unwrap_or(u32::MAX),
                sampling,
                stops: asked.stops.clone(),
                ignores_end: asked.ignores_end,
                grammar: asked.grammar.clone(),
            },
            priority,
            tenant: terms.tenant,
            pace,
            arrived,
            bytes_in: bytes_in as u64,
            salt: Arc::clone(&salt),
        }
    };
    let requests = (0..asked.choices).map(request).collect();
    Ok(Prepared { requests, language, prompt: text })
}

/// Tokens of prompt and answer together, at most.
pub(crate) fn context_of(entry: &ModelEntry) -> u32 {
    entry.terms.sequences.map_or(0, |sequences| sequences.longest())
}

/// The tokens of a prompt, and its text.
///
/// # Errors
/// It cannot be read, is certainly longer than the model's context, or the model has no template for a chat.
pub(crate) fn prompt_of(
    language: &Language,
    entry: &ModelEntry,
    prompt: &Prompt,
) -> Result<(Vec<u32>, String), Error> {
    let (name, longest) = (&entry.spec.name, context_of(entry));
    // Reading it takes far more memory than its text does.
    let too_long = |what: String| {
        Error::invalid(format!(
            "this model's maximum context length is `{longest}` tokens; the prompt has {what}"
        ))
    };
    let bytes_max = language.tokenizer.bytes_max(longest);
    let more = |bytes: usize| too_long(format!("`{bytes}` bytes, which are more"));
    let text = match prompt {
        Prompt::Text(text) => text.clone(),
        Prompt::Chat(messages) => {
            let said = messages.iter().map(|message| message.role.len() + message.content.len()).sum();
            // Each message takes a few tokens at least, whatever it says.
            if messages.len() > longest as usize {
                return Err(too_long(format!("`{}` messages, which are more", messages.len())));
            }
            if said > bytes_max {
                return Err(more(said));
            }
            let template = language.template.as_ref().ok_or_else(|| {
                Error::invalid(format!(
                    "the file of the model `{name}` has no chat template; send the text to `/v1/completions`"
                ))
            })?;
            template.render(messages).map_err(|error| Error::invalid(error.to_string()))?
        }
        Prompt::Tokens(tokens) if tokens.len() > longest as usize => {
            return Err(too_long(format!("`{}`", tokens.len())));
        }
        Prompt::Tokens(tokens) => {
            let count = language.tokenizer.token_count();
            if let Some(unknown) = tokens.iter().find(|token| **token as usize >= count) {
                return Err(Error::invalid(format!("there is no token `{unknown}`; there are `{count}`")));
            }
            let bytes: Vec<u8> =
                tokens.iter().flat_map(|token| language.tokenizer.bytes(*token).to_vec()).collect();
            return Ok((tokens.clone(), String::from_utf8_lossy(&bytes).into_owned()));
        }
    };
    if text.len() > bytes_max {
        return Err(more(text.len()));
    }
    let tokens = language.tokenizer.encode(&text);
    let tokens = tokens.map_err(|error| Error::invalid(format!("the prompt cannot be read: {error}")))?;
    Ok((tokens, text))
}
