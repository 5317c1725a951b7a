//! What an answer is held to: OpenAI's formats, and vLLM's schemas, expressions, choices and grammars.

use quadrant_node::Grammar;
use quadrant_types::Error;
use serde::Deserialize;
use serde_json::Value;

use super::{Body, must};

#[derive(Deserialize)]
pub(super) struct ResponseFormat {
    r#type: String,
    json_schema: Option<JsonSchema>,
}

#[derive(Deserialize)]
struct JsonSchema {
    schema: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Structured {
    json: Option<Value>,
    json_object: Option<bool>,
    regex: Option<String>,
    choice: Option<Vec<String>>,
    grammar: Option<String>,
}

/// The one that is asked for.
///
/// # Errors
/// It is not known, or there are several.
pub(super) fn grammar(body: &Body) -> Result<Option<Grammar>, Error> {
    let structured = body.structured_outputs.as_ref();
    // A schema may also be the text of one.
    let schema =
        |value: &Value| Grammar::JsonSchema(value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    let format = match &body.response_format {
        None => None,
        Some(ResponseFormat { r#type, json_schema }) => match (&**r#type, json_schema) {
            ("text", _) => None,
            ("json_object", _) => Some(Grammar::JsonObject),
            ("json_schema", Some(JsonSchema { schema: Some(value) })) => Some(schema(value)),
            ("json_schema", _) => return Err(must("response_format.json_schema.schema")),
            (other, _) => {
                let other = other.escape_debug();
                return Err(Error::invalid(format!(
                    "`response_format` must be `text`, `json_object` or `json_schema`, not `{other}`"
                )));
            }
        },
    };
    let json = body.guided_json.as_ref().or(structured.and_then(|said| said.json.as_ref()));
    let regex = body.guided_regex.as_ref().or(structured.and_then(|said| said.regex.as_ref()));
    let choice = body.guided_choice.as_ref().or(structured.and_then(|said| said.choice.as_ref()));
    let lark = body.guided_grammar.as_ref().or(structured.and_then(|said| said.grammar.as_ref()));
    let is_object = structured.is_some_and(|said| said.json_object == Some(true));
    let all = [
        format,
        is_object.then_some(Grammar::JsonObject),
        json.map(schema),
        regex.cloned().map(Grammar::Regex),
        choice.cloned().map(Grammar::Choice),
        lark.cloned().map(Grammar::Lark),
    ];
    let mut said = all.into_iter().flatten();
    let grammar = said.next();
    if said.next().is_some() {
        return Err(Error::invalid("an answer can be held to one format or grammar only"));
    }
    Ok(grammar)
}
