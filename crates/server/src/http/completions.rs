//! How OpenAI's API writes what was generated: of a chat and of a completion, as a whole and part by part.

use http::Response;
use quadrant_node::{Generated, Likely, Tokenizer};
use quadrant_types::Error;
use serde_json::{Map, Value, json};

use crate::errors::bounded_message;
use crate::http::generate::{Head, finish_reason};
use crate::http::openai::{self, kind};
use crate::http::segments::Segments;

/// Which of the two it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Chat,
    Completion,
    /// Triton's, in one answer or in many.
    Triton,
    TritonStream,
}

/// Tokens that were counted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: usize,
    pub(crate) completion_tokens: usize,
}

impl Usage {
    pub(crate) fn value(self) -> Value {
        let Self { prompt_tokens, completion_tokens } = self;
        let total_tokens = prompt_tokens + completion_tokens;
        json!({
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": total_tokens,
        })
    }
}

impl Form {
    /// What an answer's id begins with.
    pub(crate) const fn prefix(self) -> &'static str {
        match self {
            Self::Chat => "chatcmpl",
            Self::Completion => "cmpl",
            Self::Triton | Self::TritonStream => "triton",
        }
    }

    pub(crate) const fn object(self, is_part: bool) -> &'static str {
        match (self, is_part) {
            (Self::Chat, false) => "chat.completion",
            (Self::Chat, true) => "chat.completion.chunk",
            (Self::Completion | Self::Triton | Self::TritonStream, _) => "text_completion",
        }
    }

    /// How errors look.
    pub(crate) fn errors(self) -> fn(&Error) -> Response<Segments> {
        match self {
            Self::Chat | Self::Completion => openai::error_response,
            Self::Triton | Self::TritonStream => crate::http::error_response,
        }
    }

    /// Triton's answer, or a part of one.
    fn text_output(head: &Head, text: &str) -> Value {
        json!({"model_name": head.model, "model_version": head.version, "text_output": text})
    }

    /// A part of a stream with these choices.
    pub(crate) fn chunk(self, head: &Head, choices: &[Value]) -> Value {
        json!({
            "id": head.id,
            "object": self.object(true),
            "created": head.created,
            "model": head.model,
            "choices": choices,
        })
    }

    /// What comes before the first token of an answer.
    pub(crate) fn first(self, head: &Head, index: usize) -> Option<Value> {
        let choice = match self {
            Self::Chat => json!({
                "index": index,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": null,
                "finish_reason": null,
            }),
            Self::Triton | Self::TritonStream => return None,
            Self::Completion if head.echo.is_empty() => return None,
            Self::Completion => {
                json!({"index": index, "text": head.echo, "logprobs": null, "finish_reason": null})
            }
        };
        Some(self.chunk(head, &[choice]))
    }

    /// What a token adds: a part with its text, if there is any, and one that says why it was the last.
    pub(crate) fn parts(self, head: &Head, index: usize, token: &Generated) -> Vec<Value> {
        let logprobs = || self.logprobs(&head.language.tokenizer, std::slice::from_ref(token));
        let finish = finish_reason(token.finish.as_ref());
        let choice = |delta: Value, logprobs: Value, finish: Value| json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish});
        let choices = match self {
            Self::Triton | Self::TritonStream if token.text.is_empty() => return Vec::new(),
            Self::Triton | Self::TritonStream => return vec![Self::text_output(head, &token.text)],
            Self::Chat => {
                let has_text = !token.text.is_empty() || token.likely.is_some();
                let text = has_text.then(|| choice(json!({"content": token.text}), logprobs(), Value::Null));
                let last = token.finish.as_ref().map(|_| choice(json!({}), Value::Null, finish));
                [text, last].into_iter().flatten().collect()
            }
            Self::Completion if token.text.is_empty() && token.finish.is_none() && token.likely.is_none() => {
                Vec::new()
            }
            Self::Completion => vec![json!({
                "index": index, "text": token.text, "logprobs": logprobs(), "finish_reason": finish,
            })],
        };
        choices.into_iter().map(|choice| self.chunk(head, &[choice])).collect()
    }

    /// A complete answer.
    pub(crate) fn whole(self, head: &Head, index: usize, tokens: &[Generated]) -> Value {
        let text: String = tokens.iter().map(|token| token.text.as_str()).collect();
        let logprobs = self.logprobs(&head.language.tokenizer, tokens);
        let finish = finish_reason(tokens.last().and_then(|token| token.finish.as_ref()));
        match self {
            Self::Triton | Self::TritonStream => Self::text_output(head, &text),
            Self::Chat => json!({
                "index": index,
                "message": {"role": "assistant", "content": text},
                "logprobs": logprobs,
                "finish_reason": finish,
            }),
            Self::Completion => json!({
                "index": index,
                "text": format!("{}{text}", head.echo),
                "logprobs": logprobs,
                "finish_reason": finish,
            }),
        }
    }

    fn logprobs(self, tokenizer: &Tokenizer, tokens: &[Generated]) -> Value {
        let likely: Vec<(u32, &Likely)> =
            tokens.iter().filter_map(|token| Some((token.token, token.likely.as_ref()?))).collect();
        if likely.is_empty() {
            return Value::Null;
        }
        match self {
            Self::Chat => {
                let text = |token: u32| String::from_utf8_lossy(tokenizer.bytes(token)).into_owned();
                let one = |token: u32, logprob: f32| {
                    let (text, bytes) = (text(token), tokenizer.bytes(token));
                    json!({"token": text, "logprob": finite(logprob), "bytes": bytes})
                };
                let content = likely.iter().map(|(token, likely)| {
                    let mut entry = one(*token, likely.chosen);
                    let top = likely.top.iter().map(|(token, logprob)| one(*token, *logprob));
                    entry["top_logprobs"] = top.collect();
                    entry
                });
                json!({"content": content.collect::<Vec<_>>()})
            }
            Self::Completion | Self::Triton | Self::TritonStream => {
                let name = |token: u32| name(tokenizer.bytes(token));
                let top = |(token, likely): &(u32, &Likely)| {
                    // The chosen one is among them, however unlikely.
                    let mut top = Map::new();
                    for (token, logprob) in likely.top.iter().copied().chain([(*token, likely.chosen)]) {
                        top.entry(name(token)).or_insert_with(|| finite(logprob).into());
                    }
                    Value::Object(top)
                };
                json!({
                    "tokens": likely.iter().map(|(token, _)| name(*token)).collect::<Vec<_>>(),
                    "token_logprobs": likely.iter().map(|(_, likely)| finite(likely.chosen)).collect::<Vec<_>>(),
                    "top_logprobs": likely.iter().map(top).collect::<Vec<_>>(),
                })
            }
        }
    }
}

/// A token's name among others, which tells parts of characters apart as OpenAI writes them.
fn name(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |name, byte| name + &format!("\\x{byte:02x}")),
    }
}

/// JSON has no infinity; OpenAI writes what is impossible like this.
fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}

/// An error that came after a stream had begun.
pub(crate) fn error_event(form: Form, error: &Error) -> Value {
    if matches!(form, Form::Triton | Form::TritonStream) {
        return json!({"error": bounded_message(&error.message)});
    }
    let code = error.reason.map(quadrant_types::Reason::name);
    json!({"error": {
        "message": bounded_message(&error.message), "type": kind(error.code), "param": null, "code": code,
    }})
}
