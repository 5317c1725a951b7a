//! Loading and unloading models by name, as Triton's clients ask for it.

use http::Response;
use quadrant_types::{Error, ErrorCode};

use crate::Shared;
use crate::http::pages::empty;
use crate::http::segments::Segments;
use crate::json::Cursor;

/// What is to be done with a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Load,
    Unload,
}

/// Does it, and answers when it is done.
///
/// # Errors
/// Why it was not.
pub(crate) async fn change(
    shared: &Shared,
    (change, model): (Change, &str),
    body: &[u8],
) -> Result<Response<Segments>, Error> {
    check(change, body, shared.limits.json_depth_max)?;
    match change {
        Change::Load => shared.handle.load_model(model).await?,
        Change::Unload => shared.handle.unload_model(model).await?,
    }
    Ok(empty())
}

/// Whether the body asks for nothing that is not done here. It may be empty.
fn check(change: Change, body: &[u8], json_depth_max: usize) -> Result<(), Error> {
    let mut cursor = Cursor::new(body, json_depth_max);
    if cursor.peek().is_none() {
        return Ok(());
    }
    let mut unknown = None;
    cursor.object(|cursor, name| {
        if name != "parameters" {
            return cursor.skip().map(drop);
        }
        cursor.object(|cursor, name| {
            if let Some(error) = refused(change, &name) {
                unknown.get_or_insert(error);
            }
            cursor.skip().map(drop)
        })
    })?;
    cursor.end()?;
    unknown.map_or(Ok(()), Err)
}

/// Why a parameter is not taken; dependents there are none, as there are no ensembles.
pub(crate) fn refused(change: Change, parameter: &str) -> Option<Error> {
    let text = match change {
        Change::Unload if parameter == "unload_dependents" => return None,
        Change::Load => "models are loaded as they lie in the repository",
        Change::Unload => "there is nothing more to say about it",
    };
    let text = format!("the parameter `{parameter}` is not supported: {text}");
    Some(Error::new(ErrorCode::Unsupported, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_done_is_refused() {
        let checked = |change, body: &str| check(change, body.as_bytes(), 10).map_err(|error| error.code);
        assert_eq!(checked(Change::Load, ""), Ok(()));
        assert_eq!(checked(Change::Load, "{}"), Ok(()));
        assert_eq!(checked(Change::Unload, "{\"parameters\":{\"unload_dependents\":true}}"), Ok(()));
        let config = "{\"parameters\":{\"config\":\"{}\"}}";
        assert_eq!(checked(Change::Load, config), Err(ErrorCode::Unsupported));
        assert_eq!(checked(Change::Unload, config), Err(ErrorCode::Unsupported));
        assert_eq!(checked(Change::Load, "{"), Err(ErrorCode::InvalidArgument));
    }
}
