//! The paths, in one `match`.

use std::borrow::Cow;

use crate::http::completions::Form;
use crate::http::openai;
use crate::http::tokens::Direction;
use crate::repository::Change;

/// What a path asks for. Names are borrowed from the path unless they are percent-encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route<'a> {
    Page(Page<'a>),
    Index,
    Repository(Change, Cow<'a, str>),
    Infer(Cow<'a, str>, Option<u64>),
    /// OpenAI's.
    Embeddings,
    /// Something that is generated: OpenAI's, or Triton's, whose path names the model.
    Generate(Form, Option<(Cow<'a, str>, Option<u64>)>),
    /// vLLM's.
    Tokens(Direction),
}

/// What is read rather than inferred.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Page<'a> {
    Live,
    Ready,
    Server,
    Models,
    Model(Cow<'a, str>, Option<u64>),
    ModelReady(Cow<'a, str>, Option<u64>),
    ModelConfig(Cow<'a, str>, Option<u64>),
    /// OpenAI's.
    OpenAiModels,
    OpenAiModel(Cow<'a, str>),
}

/// The route of a path, or `None` if there is nothing there.
pub(crate) fn route(path: &str) -> Option<Route<'_>> {
    let path = path.strip_suffix('/').unwrap_or(path);
    if let Some(rest) = path.strip_prefix("/v2/models/") {
        return model(rest);
    }
    if let Some(rest) = path.strip_prefix("/v2/repository/") {
        return repository(rest);
    }
    if let Some(rest) = openai::within(path) {
        let named = || {
            let name = decoded(rest.strip_prefix("models/")?).filter(|name| !name.is_empty())?;
            Some(Route::Page(Page::OpenAiModel(name)))
        };
        return match rest {
            "embeddings" => Some(Route::Embeddings),
            "chat/completions" => Some(Route::Generate(Form::Chat, None)),
            "completions" => Some(Route::Generate(Form::Completion, None)),
            "models" => Some(Route::Page(Page::OpenAiModels)),
            "health" => Some(Route::Page(Page::Live)),
            _ => named(),
        };
    }
    match path {
        "/v2/health/live" | "/live" | "/livez" | "/health" | "/healthz" | "/ping" => {
            Some(Route::Page(Page::Live))
        }
        "/v2/health/ready" | "/ready" | "/readyz" => Some(Route::Page(Page::Ready)),
        "/tokenize" => Some(Route::Tokens(Direction::FromText)),
        "/detokenize" => Some(Route::Tokens(Direction::ToText)),
        "/v2" => Some(Route::Page(Page::Server)),
        "/v2/models" => Some(Route::Page(Page::Models)),
        _ => None,
    }
}

/// The one repository that there is may be named, by whatever name.
fn repository(rest: &str) -> Option<Route<'_>> {
    if rest == "index" {
        return Some(Route::Index);
    }
    let rest = rest.strip_prefix("models/").or_else(|| rest.split_once("/models/").map(|(_, rest)| rest))?;
    let (name, change) = rest.split_once('/')?;
    let change = match change {
        "load" => Change::Load,
        "unload" => Change::Unload,
        _ => return None,
    };
    Some(Route::Repository(change, decoded(name).filter(|name| !name.is_empty())?))
}

fn model(rest: &str) -> Option<Route<'_>> {
    let mut parts = rest.split('/');
    let name = decoded(parts.next().filter(|name| !name.is_empty())?)?;
    let mut action = parts.next();
    let mut version = None;
    if action == Some("versions") {
        let digits = parts.next().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
        version = Some(digits.parse().ok()?);
        action = parts.next();
    }
    if parts.next().is_some() {
        return None;
    }
    match action {
        None => Some(Route::Page(Page::Model(name, version))),
        Some("ready") => Some(Route::Page(Page::ModelReady(name, version))),
        Some("config") => Some(Route::Page(Page::ModelConfig(name, version))),
        Some("infer") => Some(Route::Infer(name, version)),
        Some("generate") => Some(Route::Generate(Form::Triton, Some((name, version)))),
        Some("generate_stream") => Some(Route::Generate(Form::TritonStream, Some((name, version)))),
        Some(_) => None,
    }
}

/// A path segment without its percent-encoding, if that is well formed.
pub(crate) fn decoded(segment: &str) -> Option<Cow<'_, str>> {
    if !segment.contains('%') {
        return Some(Cow::Borrowed(segment));
    }
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let (high, low) = (digit()?, digit()?);
        bytes.push(u8::try_from(high << 4 | low).ok()?);
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_where_they_should() {
        let m = || Cow::Borrowed("m");
        let cases = [
            ("/v2", Some(Route::Page(Page::Server))),
            ("/v2/", Some(Route::Page(Page::Server))),
            ("/v2/health/live", Some(Route::Page(Page::Live))),
            ("/readyz", Some(Route::Page(Page::Ready))),
            ("/v2/models", Some(Route::Page(Page::Models))),
            ("/v1/embeddings", Some(Route::Embeddings)),
            ("/openai/v1/embeddings/", Some(Route::Embeddings)),
            ("/v1/models", Some(Route::Page(Page::OpenAiModels))),
            ("/v1/models/a%20b", Some(Route::Page(Page::OpenAiModel("a b".into())))),
            ("/v1/health", Some(Route::Page(Page::Live))),
            ("/v1/completions", Some(Route::Generate(Form::Completion, None))),
            ("/openai/v1/chat/completions", Some(Route::Generate(Form::Chat, None))),
            ("/tokenize", Some(Route::Tokens(Direction::FromText))),
            ("/v1/responses", None),
            ("/v1/models//", None),
            ("/v2/repository/index", Some(Route::Index)),
            ("/v2/repository/models/m/load", Some(Route::Repository(Change::Load, m()))),
            ("/v2/repository/r/models/m/unload", Some(Route::Repository(Change::Unload, m()))),
            ("/v2/repository/models/m", None),
            ("/v2/repository/models//load", None),
            ("/v2/repository/models/m/reload", None),
            ("/v2/models/m", Some(Route::Page(Page::Model(m(), None)))),
            ("/v2/models/m/versions/7", Some(Route::Page(Page::Model(m(), Some(7))))),
            ("/v2/models/m/ready", Some(Route::Page(Page::ModelReady(m(), None)))),
            ("/v2/models/m/versions/7/infer", Some(Route::Infer(m(), Some(7)))),
            ("/v2/models/m/config", Some(Route::Page(Page::ModelConfig(m(), None)))),
            ("/v2/models/a%2Fb%20c/infer", Some(Route::Infer("a/b c".into(), None))),
            ("/v2/models/%zz/infer", None),
            ("/v2/models/%ff/infer", None),
            ("/v2/models/%c", None),
            ("/v2/models/m/versions/x/infer", None),
            ("/v2/models/m/versions//infer", None),
            ("/v2/models/m/versions/99999999999999999999", None),
            ("/v2/models/m/generate", Some(Route::Generate(Form::Triton, Some((m(), None))))),
            (
                "/v2/models/m/versions/7/generate_stream",
                Some(Route::Generate(Form::TritonStream, Some((m(), Some(7))))),
            ),
            ("/v2/models/m/infer/x", None),
            ("/v2/models//infer", None),
            ("/", None),
            ("", None),
            ("/metrics", None),
        ];
        for (path, expected) in cases {
            assert_eq!(route(path), expected, "{path}");
        }
    }
}
