//! What a client of OpenAI's API asks to be generated: the body of a chat or a completion, read and held
//! against its bounds.
//!
//! The names are OpenAI's, and vLLM's for what OpenAI does not have. What is not known is passed over, as
//! both do; what is known and not done is an error, because an answer that ignores it would be a wrong one.

mod grammar;

use std::collections::BTreeMap;

use quadrant_node::{Grammar, Message, Sampling};
use quadrant_types::Error;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use self::grammar::{ResponseFormat, Structured, grammar};

/// Answers to one request.
const CHOICES_MAX: u32 = 16;
/// Texts that end an answer, and the bytes of one.
const STOPS_MAX: (usize, usize) = (16, 256);
/// The likeliest tokens that are given beside each.
const TOP_MAX: u32 = 20;
/// Tokens whose scores are changed.
const BIASES_MAX: usize = 1_024;
/// Tokens of a completion unless its client says otherwise.
const COMPLETION_TOKENS: u32 = 16;

/// What Triton's clients may also say as a text.
const NUMBERS: [&str; 12] = [
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "max_tokens",
    "n",
    "seed",
    "priority",
    "ignore_eos",
];

/// What is asked for, checked as far as it can be without the model.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) model: String,
    pub(crate) prompt: Prompt,
    /// Answers that are wanted.
    pub(crate) choices: u32,
    /// The most tokens of each; the rest of the context if not given.
    pub(crate) tokens_max: Option<u32>,
    /// Its seed is that of the first answer; none was given if `None`.
    pub(crate) sampling: Sampling,
    pub(crate) seed: Option<u64>,
    pub(crate) stops: Vec<String>,
    pub(crate) ignores_end: bool,
    pub(crate) grammar: Option<Grammar>,
    /// Whether the prompt is part of the answer.
    pub(crate) echo: bool,
    pub(crate) stream: bool,
    /// Whether a stream ends with how many tokens there were.
    pub(crate) include_usage: bool,
    pub(crate) priority: Option<u32>,
    /// What a prompt begins with is shared only with those of the same salt.
    pub(crate) cache_salt: Option<String>,
}

/// What is to be continued.
#[derive(Debug, PartialEq)]
pub(crate) enum Prompt {
    Chat(Vec<Message>),
    Text(String),
    Tokens(Vec<u32>),
}

#[derive(Deserialize)]
struct Body {
    model: Option<String>,
    messages: Option<Vec<Turn>>,
    prompt: Option<Value>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    repetition_penalty: Option<f32>,
    logit_bias: Option<BTreeMap<String, f32>>,
    seed: Option<i64>,
    n: Option<u32>,
    best_of: Option<u32>,
    stop: Option<OneOrMore>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    logprobs: Option<Value>,
    top_logprobs: Option<u32>,
    echo: Option<bool>,
    suffix: Option<String>,
    ignore_eos: Option<bool>,
    response_format: Option<ResponseFormat>,
    guided_json: Option<Value>,
    guided_regex: Option<String>,
    guided_choice: Option<Vec<String>>,
    guided_grammar: Option<String>,
    structured_outputs: Option<Structured>,
    tools: Option<Vec<IgnoredAny>>,
    functions: Option<Vec<IgnoredAny>>,
    priority: Option<i64>,
    cache_salt: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct Turn {
    role: String,
    content: Option<Content>,
    tool_calls: Option<Vec<IgnoredAny>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<ContentPart>),
}

#[derive(Deserialize)]
struct ContentPart {
    r#type: String,
    text: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

impl Asked {
    /// The body of `POST /v1/chat/completions`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn chat(body: &[u8]) -> Result<Self, Error> {
        let body: Body = parsed(body)?;
        let messages = body.messages.as_ref().ok_or_else(|| must("messages"))?;
        if messages.is_empty() {
            return Err(Error::invalid("`messages` must not be empty"));
        }
        let prompt = Prompt::Chat(messages.iter().map(message).collect::<Result<_, _>>()?);
        let top = match (&body.logprobs, body.top_logprobs) {
            (Some(Value::Bool(true)), top) => Some(top.unwrap_or(0)),
            (None | Some(Value::Bool(false) | Value::Null), None | Some(0)) => None,
            (None | Some(Value::Bool(false) | Value::Null), Some(_)) => {
                return Err(Error::invalid("`top_logprobs` needs `logprobs` to be true"));
            }
            (Some(_), _) => return Err(Error::invalid("`logprobs` must be true or false")),
        };
        Self::of(body, prompt, top, None)
    }

    /// The body of `POST /v1/completions`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn completion(body: &[u8]) -> Result<Self, Error> {
        let body: Body = parsed(body)?;
        let prompt = match body.prompt.as_ref().ok_or_else(|| must("prompt"))? {
            Value::String(text) => Prompt::Text(text.clone()),
            Value::Array(items) => match &items[..] {
                [Value::String(text)] => Prompt::Text(text.clone()),
                [Value::Array(items)] => Prompt::Tokens(tokens(items)?),
                items => Prompt::Tokens(tokens(items)?),
            },
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => {
                return Err(Error::invalid("`prompt` must be a text or a list of tokens"));
            }
        };
        let top = match &body.logprobs {
            None | Some(Value::Null) => None,
            Some(Value::Number(number)) => {
                Some(number.as_u64().and_then(|number| u32::try_from(number).ok()).unwrap_or(u32::MAX))
            }
            Some(_) => return Err(Error::invalid("`logprobs` must be a whole number")),
        };
        if top.is_some() && body.echo == Some(true) {
            return Err(Error::invalid("`echo` with `logprobs` is not done: prompts are not scored"));
        }
        Self::of(body, prompt, top, Some(COMPLETION_TOKENS))
    }

    /// What Triton is asked for: `text_input`, and what else is said beside it or within `parameters`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn triton(mut fields: Map<String, Value>, stream: bool) -> Result<Self, Error> {
        let Some(Value::String(text)) = fields.remove("text_input") else {
            return Err(must("text_input"));
        };
        if let Some(Value::Object(parameters)) = fields.remove("parameters") {
            fields.extend(parameters);
        }
        fields
            .iter_mut()
            .filter(|(name, _)| NUMBERS.contains(&name.as_str()))
            .for_each(|(_, value)| unquote(value));
        // The path names it.
        fields.insert("model".to_owned(), Value::String(String::new()));
        let body: Body = serde_json::from_value(Value::Object(fields))
            .map_err(|error| Error::invalid(format!("failed to parse the request JSON buffer: {error}")))?;
        let asked = Self::of(body, Prompt::Text(text), None, Some(COMPLETION_TOKENS))?;
        Ok(Self { choices: 1, stream, include_usage: false, ..asked })
    }

    fn of(body: Body, prompt: Prompt, top: Option<u32>, default_max: Option<u32>) -> Result<Self, Error> {
        let within = |name: &str, value: Option<f32>, range: std::ops::RangeInclusive<f32>, default: f32| {
            let value = value.unwrap_or(default);
            let (from, to) = (range.start(), range.end());
            let wrong = || Error::invalid(format!("`{name}` must be from {from} to {to}, not `{value}`"));
            if range.contains(&value) { Ok(value) } else { Err(wrong()) }
        };
        let choices = body.n.unwrap_or(1);
        if !(1..=CHOICES_MAX).contains(&choices) {
            return Err(Error::invalid(format!("`n` must be from 1 to {CHOICES_MAX}, not `{choices}`")));
        }
        if body.best_of.is_some_and(|best_of| best_of != choices) {
            return Err(Error::invalid("`best_of` is not done: ask for `n` answers and choose"));
        }
        if body.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
            return Err(Error::invalid("`suffix` is not done: no model here fills text in"));
        }
        let calls = [&body.tools, &body.functions];
        if calls.into_iter().flatten().any(|calls| !calls.is_empty()) {
            return Err(Error::invalid(
                "`tools` are not done: put them into the prompt, and use `response_format`",
            ));
        }
        if top.is_some_and(|top| top > TOP_MAX) {
            return Err(Error::invalid(format!("at most `{TOP_MAX}` likeliest tokens are given")));
        }
        let tokens_max = body.max_completion_tokens.or(body.max_tokens).or(default_max);
        if tokens_max == Some(0) {
            return Err(Error::invalid("`max_tokens` must be at least 1"));
        }
        let sampling = Sampling {
            temperature: within("temperature", body.temperature, 0.0..=2.0, 1.0)?,
            top_p: within("top_p", body.top_p, 0.0..=1.0, 1.0)?,
            top_k: usize::try_from(body.top_k.unwrap_or(0)).unwrap_or(0),
            min_p: within("min_p", body.min_p, 0.0..=1.0, 0.0)?,
            presence_penalty: within("presence_penalty", body.presence_penalty, -2.0..=2.0, 0.0)?,
            frequency_penalty: within("frequency_penalty", body.frequency_penalty, -2.0..=2.0, 0.0)?,
            repetition_penalty: within("repetition_penalty", body.repetition_penalty, 0.01..=10.0, 1.0)?,
            bias: body.logit_bias.as_ref().map(biases).transpose()?.unwrap_or_default(),
            seed: 0,
            log_probabilities: top.map(|top| top as usize),
        };
        Ok(Self {
            grammar: grammar(&body)?,
            model: body.model.ok_or_else(|| must("model"))?,
            prompt,
            choices,
            tokens_max,
            sampling,
            seed: body.seed.map(i64::cast_unsigned),
            stops: body.stop.map(stops).transpose()?.unwrap_or_default(),
            ignores_end: body.ignore_eos.unwrap_or(false),
            echo: body.echo.unwrap_or(false),
            stream: body.stream.unwrap_or(false),
            include_usage: body.stream_options.is_some_and(|options| options.include_usage),
            // Nought is the default, as it is Triton's and vLLM's, and the least number the most important.
            priority: body
                .priority
                .filter(|priority| *priority != 0)
                .map(|priority| u32::try_from(priority.max(1)).unwrap_or(u32::MAX)),
            cache_salt: body.cache_salt,
        })
    }
}

pub(crate) fn parsed<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Error> {
    serde_json::from_slice(body)
        .map_err(|error| Error::invalid(format!("failed to parse the request JSON buffer: {error}")))
}

/// What a text says as a number, true or false.
fn unquote(value: &mut Value) {
    if let Value::String(text) = value
        && let Ok(said @ (Value::Number(_) | Value::Bool(_))) = text.to_ascii_lowercase().parse()
    {
        *value = said;
    }
}

fn must(name: &str) -> Error {
    Error::invalid(format!("you must provide a `{name}` parameter"))
}

pub(crate) fn message(turn: &Turn) -> Result<Message, Error> {
    if turn.tool_calls.as_ref().is_some_and(|calls| !calls.is_empty()) {
        return Err(Error::invalid("`tool_calls` are not done: put them into the message's text"));
    }
    let content = match &turn.content {
        None => String::new(),
        Some(Content::Text(text)) => text.clone(),
        Some(Content::Parts(parts)) => {
            let text = |part: &ContentPart| match (&*part.r#type, &part.text) {
                ("text", Some(text)) => Ok(text.clone()),
                (other, _) => {
                    let other = other.escape_debug();
                    Err(Error::invalid(format!("a message may only have parts of text, not `{other}`")))
                }
            };
            parts.iter().map(text).collect::<Result<Vec<String>, _>>()?.concat()
        }
    };
    Ok(Message { role: turn.role.clone(), content })
}

fn tokens(items: &[Value]) -> Result<Vec<u32>, Error> {
    let token = |item: &Value| {
        item.as_u64().and_then(|token| u32::try_from(token).ok()).ok_or_else(|| {
            Error::invalid(
                "`prompt` must be a text or a list of tokens; several prompts are several requests",
            )
        })
    };
    items.iter().map(token).collect()
}

fn biases(biases: &BTreeMap<String, f32>) -> Result<BTreeMap<u32, f32>, Error> {
    if biases.len() > BIASES_MAX {
        return Err(Error::invalid(format!("`logit_bias` may have at most `{BIASES_MAX}` tokens")));
    }
    let bias = |(token, bias): (&String, &f32)| {
        let token = token.parse().map_err(|_| Error::invalid("`logit_bias` must be numbers by tokens"))?;
        if !(-100.0..=100.0).contains(bias) {
            return Err(Error::invalid("a bias must be from -100 to 100"));
        }
        Ok((token, *bias))
    };
    biases.iter().map(bias).collect()
}

fn stops(stop: OneOrMore) -> Result<Vec<String>, Error> {
    let stops = match stop {
        OneOrMore::One(stop) => vec![stop],
        OneOrMore::More(stops) => stops,
    };
    let (count, bytes) = STOPS_MAX;
    if stops.len() > count || stops.iter().any(|stop| stop.len() > bytes) {
        return Err(Error::invalid(format!("`stop` may have at most `{count}` texts of `{bytes}` bytes")));
    }
    Ok(stops)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_read() {
        let chat = r#"{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"a"},
            {"type":"text","text":"b"}]}],"max_tokens":5,"stop":"x","seed":-1,"logprobs":true,
            "stream":true,"stream_options":{"include_usage":true},"user":"nobody"}"#;
        let asked = Asked::chat(chat.as_bytes()).unwrap();
        let message = Message { role: "user".into(), content: "ab".into() };
        assert_eq!(asked.prompt, Prompt::Chat(vec![message]));
        assert_eq!(
            (asked.tokens_max, asked.seed, &*asked.stops),
            (Some(5), Some(u64::MAX), &["x".to_owned()][..])
        );
        assert_eq!((asked.sampling.log_probabilities, asked.include_usage), (Some(0), true));
        let plain = Asked::completion(br#"{"model":"m","prompt":[1,2],"temperature":0}"#).unwrap();
        assert_eq!((plain.prompt, plain.tokens_max), (Prompt::Tokens(vec![1, 2]), Some(16)));
        let held = br#"{"model":"m","prompt":"a","guided_choice":["x","y"]}"#;
        let choice = Grammar::Choice(vec!["x".into(), "y".into()]);
        assert_eq!(Asked::completion(held).unwrap().grammar, Some(choice));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let chat = |rest: &str| {
            let body =
                format!("{{\"model\":\"m\",\"messages\":[{{\"role\":\"user\",\"content\":\"a\"}}]{rest}}}");
            Asked::chat(body.as_bytes()).unwrap_err().message.into_owned()
        };
        for (rest, part) in [
            (",\"temperature\":3", "`temperature` must be from 0 to 2, not `3`"),
            (",\"n\":0", "`n` must be from 1 to 16"),
            (",\"top_logprobs\":2", "needs `logprobs`"),
            (",\"logprobs\":true,\"top_logprobs\":21", "at most `20`"),
            (",\"max_tokens\":0", "`max_tokens`"),
            (",\"tools\":[{}]", "`tools` are not done"),
            (",\"functions\":[{}]", "`tools` are not done"),
            (",\"structured_outputs\":{\"structural_tag\":\"a\"}", "unknown field `structural_tag`"),
            (",\"logit_bias\":{\"x\":1}", "`logit_bias`"),
            (",\"response_format\":{\"type\":\"xml\"}", "not `xml`"),
            (
                ",\"response_format\":{\"type\":\"json_object\"},\"guided_regex\":\"a\"",
                "one format or grammar",
            ),
            (",\"n\":\"many\"", "failed to parse the request JSON buffer"),
        ] {
            assert!(chat(rest).contains(part), "{rest}: {}", chat(rest));
        }
        let picture = br#"{"model":"m","messages":[{"role":"user","content":[{"type":"image_url"}]}]}"#;
        assert!(Asked::chat(picture).unwrap_err().message.contains("not `image_url`"));
        assert!(Asked::completion(br#"{"model":"m"}"#).unwrap_err().message.contains("`prompt`"));
    }

    #[test]
    fn what_others_say_in_other_ways_is_understood() {
        let asked = |rest: &str| {
            Asked::completion(format!("{{\"model\":\"m\",\"prompt\":\"a\"{rest}}}").as_bytes()).unwrap()
        };
        assert_eq!(
            asked(",\"structured_outputs\":{\"json_object\":true}").grammar,
            Some(Grammar::JsonObject)
        );
        for (priority, expect) in [(0, None), (-1, Some(1)), (7, Some(7)), (i64::MAX, Some(u32::MAX))] {
            assert_eq!(asked(&format!(",\"priority\":{priority}")).priority, expect);
        }
        let nested = Asked::completion(br#"{"model":"m","prompt":[[1,2]]}"#).unwrap();
        assert_eq!(nested.prompt, Prompt::Tokens(vec![1, 2]));
        let several = Asked::completion(br#"{"model":"m","prompt":[[1],[2]]}"#).unwrap_err();
        assert!(several.message.contains("several prompts are several requests"));
        let scored = br#"{"model":"m","prompt":"a","echo":true,"logprobs":1}"#;
        assert!(Asked::completion(scored).unwrap_err().message.contains("`echo` with `logprobs`"));
        let calls = br#"{"model":"m","messages":[{"role":"assistant","tool_calls":[{}]}]}"#;
        assert!(Asked::chat(calls).unwrap_err().message.contains("`tool_calls` are not done"));
        let fields =
            r#"{"text_input":"a","parameters":{"temperature":"0.5","ignore_eos":"True","max_tokens":"3"}}"#;
        let triton = Asked::triton(serde_json::from_str(fields).unwrap(), false).unwrap();
        assert_eq!(
            (triton.sampling.temperature, triton.ignores_end, triton.tokens_max),
            (0.5, true, Some(3))
        );
    }
}
