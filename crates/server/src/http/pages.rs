//! Everything that is read rather than inferred: health, metadata, configuration, the repository index.

use std::sync::Arc;

use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use quadrant_node::{Handle, IndexEntry, ModelEntry, ModelState};
use quadrant_types::{Error, ErrorCode, TensorSpec};

use crate::Shared;
use crate::access::Caller;
use crate::http::response::json;
use crate::http::route::Page;
use crate::http::segments::Segments;
use crate::http::text::{push_integer, push_list, push_string};
use crate::http::{error_response, openai};
use crate::json::Cursor;
use crate::metadata::{self, EXTENSIONS, SERVER_NAME, SERVER_VERSION};

/// Whether the server is alive or ready, which everybody may know.
pub(crate) fn health(handle: &Handle, page: &Page<'_>) -> Response<Segments> {
    let mut response = empty();
    if *page == Page::Ready && !handle.is_ready() {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// A page as it is now, for this caller.
pub(crate) fn page(shared: &Shared, caller: &Caller, page: &Page<'_>) -> Response<Segments> {
    let handle = &shared.handle;
    let asked = match page {
        Page::Model(name, _)
        | Page::ModelConfig(name, _)
        | Page::ModelReady(name, _)
        | Page::OpenAiModel(name) => Some(name),
        Page::Live | Page::Ready | Page::Server | Page::Models | Page::OpenAiModels => None,
    };
    if let Some(Err(error)) = asked.map(|name| caller.may_use(shared, name)) {
        let is_openai = matches!(page, Page::OpenAiModel(_));
        return if is_openai { openai::error_response(&error) } else { error_response(&error) };
    }
    match page {
        Page::Live | Page::Ready => health(handle, page),
        Page::Server => json(server()),
        Page::Models => json(models(handle.index().iter().filter(|line| caller.sees(&line.name)))),
        Page::OpenAiModels => {
            let seen: Vec<_> = openai_models(handle, caller).collect();
            json(openai::models(seen.iter().map(|entry| &**entry)))
        }
        Page::OpenAiModel(name) => match handle.find(name, None) {
            Ok(entry) if openai::answers(&entry) => json(openai::model(&entry)),
            Ok(_) => {
                let what = format!("the model `{name}` answers no call of this API");
                openai::error_response(&Error::new(ErrorCode::NotFound, what))
            }
            Err(error) => openai::error_response(&error),
        },
        Page::Model(name, version) => found(handle, name, *version, |entry| model(handle, entry)),
        Page::ModelConfig(name, version) => found(handle, name, *version, config),
        Page::ModelReady(name, version) => match handle.find(name, *version) {
            Ok(entry) if entry.is_ready() => empty(),
            // Triton's answer, whatever the reason.
            Ok(_) | Err(_) => error_response(&Error::invalid("Model version not ready")),
        },
    }
}

/// The models that this caller may use with OpenAI's API.
fn openai_models(handle: &Handle, caller: &Caller) -> impl Iterator<Item = Arc<ModelEntry>> {
    let mut names: Vec<String> = handle.index().into_iter().map(|line| line.name).collect();
    names.dedup();
    let seen = names.into_iter().filter(|name| caller.sees(name));
    seen.filter_map(|name| handle.find(&name, None).ok()).filter(|entry| openai::answers(entry))
}

/// Nothing to say but that it is done.
pub(crate) fn empty() -> Response<Segments> {
    let mut response = Response::new(Segments::default());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

fn found(
    handle: &Handle,
    name: &str,
    version: Option<u64>,
    write: impl FnOnce(&ModelEntry) -> Vec<u8>,
) -> Response<Segments> {
    match handle.find(name, version) {
        Ok(entry) => json(write(&entry)),
        Err(error) => error_response(&error),
    }
}

fn server() -> Vec<u8> {
    let mut out = b"{\"name\":".to_vec();
    push_string(&mut out, SERVER_NAME);
    out.extend_from_slice(b",\"version\":");
    push_string(&mut out, SERVER_VERSION);
    out.extend_from_slice(b",\"extensions\":");
    push_list(&mut out, EXTENSIONS, push_string);
    out.push(b'}');
    out
}

fn models<'a>(index: impl Iterator<Item = &'a IndexEntry>) -> Vec<u8> {
    let mut names: Vec<&str> = index.map(|entry| &*entry.name).collect();
    names.dedup();
    let mut out = b"{\"models\":".to_vec();
    push_list(&mut out, names, push_string);
    out.push(b'}');
    out
}

fn model(handle: &Handle, entry: &ModelEntry) -> Vec<u8> {
    let spec = &entry.spec;
    let is_version = |line: &IndexEntry| line.name == *spec.name && line.state == ModelState::Ready;
    let versions: Vec<String> =
        handle.index().into_iter().filter(is_version).map(|line| line.version).collect();
    let mut out = b"{\"name\":".to_vec();
    push_string(&mut out, &spec.name);
    out.extend_from_slice(b",\"versions\":");
    push_list(&mut out, &versions, |out, version| push_string(out, version));
    out.extend_from_slice(b",\"platform\":");
    push_string(&mut out, &spec.platform);
    out.extend_from_slice(b",\"inputs\":");
    push_list(&mut out, &spec.inputs, tensor);
    out.extend_from_slice(b",\"outputs\":");
    push_list(&mut out, &spec.outputs, tensor);
    if entry.language.is_some() {
        out.extend_from_slice(b",\"model_transaction_policy\":{\"decoupled\":true}");
    }
    out.push(b'}');
    out
}

fn tensor(out: &mut Vec<u8>, spec: &TensorSpec) {
    out.extend_from_slice(b"{\"name\":");
    push_string(out, &spec.name);
    out.extend_from_slice(b",\"datatype\":");
    push_string(out, spec.datatype.name());
    out.extend_from_slice(b",\"shape\":");
    push_list(out, &spec.dims, |out, dim| push_integer(out, metadata::dimension(dim)));
    out.push(b'}');
}

/// The configuration as far as it is known, in the form of `config.pbtxt`: for a model that batches, the
/// dimensions are without the first.
fn config(entry: &ModelEntry) -> Vec<u8> {
    let spec = &entry.spec;
    let (max_batch_size, skipped) = if entry.batches { (entry.rows_max, 1) } else { (0, 0) };
    let tensor = |out: &mut Vec<u8>, tensor: &TensorSpec| {
        out.extend_from_slice(b"{\"name\":");
        push_string(out, &tensor.name);
        out.extend_from_slice(b",\"data_type\":");
        push_string(out, metadata::config_type(tensor.datatype).0);
        out.extend_from_slice(b",\"dims\":");
        let dims = tensor.dims.iter().skip(skipped);
        push_list(out, dims, |out, dim| push_integer(out, metadata::dimension(dim)));
        out.push(b'}');
    };
    let mut out = b"{\"name\":".to_vec();
    push_string(&mut out, &spec.name);
    out.extend_from_slice(b",\"platform\":");
    push_string(&mut out, &spec.platform);
    out.extend_from_slice(b",\"backend\":");
    push_string(&mut out, entry.engine);
    out.extend_from_slice(b",\"max_batch_size\":");
    push_integer(&mut out, max_batch_size);
    out.extend_from_slice(b",\"input\":");
    push_list(&mut out, &spec.inputs, tensor);
    out.extend_from_slice(b",\"output\":");
    push_list(&mut out, &spec.outputs, tensor);
    out.push(b'}');
    out
}

/// The repository index, as far as it is the caller's business.
pub(crate) fn index(handle: &Handle, caller: &Caller, only_ready: bool) -> Response<Segments> {
    let wanted =
        |line: &IndexEntry| caller.sees(&line.name) && (!only_ready || line.state == ModelState::Ready);
    let lines = handle.index().into_iter().filter(wanted);
    let mut out = Vec::new();
    push_list(&mut out, lines, |out, line| {
        out.extend_from_slice(b"{\"name\":");
        push_string(out, &line.name);
        let members =
            [("version", &*line.version), ("state", metadata::state(&line)), ("reason", &line.reason)];
        for (name, value) in members.iter().filter(|(_, value)| !value.is_empty()) {
            out.push(b',');
            push_string(out, name);
            out.push(b':');
            push_string(out, value);
        }
        out.push(b'}');
    });
    json(out)
}

/// Whether the body of an index request asks for ready models only. It may be empty.
///
/// # Errors
/// It is neither empty nor an object.
pub(crate) fn asks_for_ready(body: &[u8], json_depth_max: usize) -> Result<bool, Error> {
    let mut cursor = Cursor::new(body, json_depth_max);
    if cursor.peek().is_none() {
        return Ok(false);
    }
    let mut only_ready = false;
    cursor.object(|cursor, name| {
        match cursor.boolean() {
            Some(value) if name == "ready" => only_ready = value,
            Some(_) => (),
            None => drop(cursor.skip()?),
        }
        Ok(())
    })?;
    cursor.end()?;
    Ok(only_ready)
}
