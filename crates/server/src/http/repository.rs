//! What the bodies of requests to load and to unload models may say.

use quadrant_types::Error;

use crate::json::Cursor;
use crate::repository::{Change, refused};

/// Whether the body asks for nothing that is not done here. It may be empty.
///
/// # Errors
/// What is not, or that it is no object.
pub(crate) fn check(change: Change, body: &[u8], json_depth_max: usize) -> Result<(), Error> {
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

#[cfg(test)]
mod tests {
    use quadrant_types::ErrorCode;

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
