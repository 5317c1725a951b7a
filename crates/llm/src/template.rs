//! A conversation as the text that a model was trained on, by the template in its file: Jinja, as Hugging
//! Face's `apply_chat_template` renders it.
//!
//! A template comes with a model, from strangers. It sees the messages and nothing else, and its steps are
//! counted, so that one that never ends costs a fraction of a second.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;

use crate::{FileError, Metadata, optional};

/// Steps of a template: far more than the largest known ones take for a hundred messages.
const FUEL: u64 = 1_000_000;
/// Bytes of a template; the largest known have twenty thousand.
const TEMPLATE_BYTES_MAX: usize = 1 << 20;

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// How a model wants conversations to be written.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: String,
    begin: String,
    end: String,
}

/// Why a conversation cannot be written.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TemplateError {
    /// The template does not want it so, for instance two turns of one speaker.
    #[error("the model's chat template refuses these messages: {0}")]
    Refused(String),
    /// The template itself is wrong, or too much.
    #[error("the model's chat template cannot be rendered: {0}")]
    Broken(String),
}

impl ChatTemplate {
    /// The template of a GGUF file, if it has one.
    ///
    /// # Errors
    /// If it is something else than a text, or too long.
    pub fn of_gguf(metadata: &Metadata<'_>) -> Result<Option<Self>, FileError> {
        const KEY: &str = "tokenizer.chat_template";
        let Some(source) = optional(metadata.str(KEY))? else { return Ok(None) };
        if source.len() > TEMPLATE_BYTES_MAX {
            return Err(FileError::Unsupported {
                what: format!("`{KEY}` has `{}` bytes, more than `{TEMPLATE_BYTES_MAX}`", source.len()),
                offset: 0,
                instead: "take a model with a shorter template".into(),
            });
        }
        let tokens = optional(metadata.strs("tokenizer.ggml.tokens"))?.unwrap_or_default();
        let token = |key: &str| -> Result<String, FileError> {
            let id = optional(metadata.u32(key))?;
            Ok(id.and_then(|id| tokens.get(id as usize)).copied().unwrap_or_default().to_owned())
        };
        let (begin, end) = (token("tokenizer.ggml.bos_token_id")?, token("tokenizer.ggml.eos_token_id")?);
        Ok(Some(Self::new(source, &begin, &end)))
    }

    /// A template, and the tokens that begin and end a text.
    pub fn new(source: &str, begin: &str, end: &str) -> Self {
        Self { source: source.to_owned(), begin: begin.to_owned(), end: end.to_owned() }
    }

    /// Writes a conversation, to be continued by the assistant.
    ///
    /// # Errors
    /// If the template refuses the messages or cannot be rendered.
    pub fn render(&self, messages: &[Message]) -> Result<String, TemplateError> {
        let mut environment = Environment::new();
        environment.set_syntax(syntax());
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", to_json);
        let values = context! {
            messages => Value::from(Serde(messages)),
            tools => (),
            documents => (),
            bos_token => self.begin.as_str(),
            eos_token => self.end.as_str(),
            add_generation_prompt => true,
        };
        environment.render_str(&self.source, values).map_err(|error| {
            let raised = error.detail().and_then(|detail| detail.strip_prefix(RAISED));
            match raised.filter(|_| error.kind() == ErrorKind::InvalidOperation) {
                Some(message) => TemplateError::Refused(message.to_owned()),
                None => TemplateError::Broken(error.to_string()),
            }
        })
    }
}

/// What tells an error that a template raises from its own.
const RAISED: &str = "raised: ";

/// Whitespace around blocks as Hugging Face has it.
fn syntax() -> SyntaxConfig {
    let built = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    built.expect("the delimiters are the usual ones")
}

/// As Python's `json.dumps`, which unlike the library's own leaves `<` and `&` as they are.
fn to_json(value: &Value) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

/// What templates call to refuse messages.
fn raise_exception(message: &str) -> Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: &str, content: &str) -> Message {
        Message { role: role.into(), content: content.into() }
    }

    fn render(source: &str, messages: &[Message]) -> Result<String, TemplateError> {
        ChatTemplate::new(source, "<s>", "</s>").render(messages)
    }

    #[test]
    fn templates_are_rendered_as_python_does() {
        let talk = [message("user", " Hi "), message("assistant", "Yes?"), message("user", "{{ 7 * 7 }}")];
        let source = "{{ bos_token }}{% for message in messages %}\n  {% if message['role'] == 'user' %}\n\
                      U:{{ message.content.strip() }}\n  {% else %}\nA:{{ message['content'] }}\
                      {{ eos_token }}\n  {% endif %}\n{% endfor %}\
                      {% if add_generation_prompt %}A:{% endif %}";
        let expected = "<s>U:Hi\nA:Yes?</s>\nU:{{ 7 * 7 }}\nA:";
        assert_eq!(render(source, &talk), Ok(expected.to_owned()), "what is said is not a template");
    }

    #[test]
    fn what_a_template_refuses_is_told_from_what_is_wrong_with_it() {
        let source = "{% if messages[0].role != 'user' %}{{ raise_exception('the user begins') }}{% endif %}";
        let refused = TemplateError::Refused("the user begins".into());
        assert_eq!(render(source, &[message("assistant", "")]), Err(refused));
        assert_eq!(render(source, &[message("user", "")]), Ok(String::new()));
        for source in ["{% for %}", "{{ nothing.at.all }}", "{{ open('/etc/passwd') }}"] {
            assert!(matches!(render(source, &[]), Err(TemplateError::Broken(_))), "{source}");
        }
    }

    #[test]
    fn a_template_that_never_ends_ends() {
        let source = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}";
        assert!(matches!(render(source, &[]), Err(TemplateError::Broken(_))));
    }
}
