//! Loading and unloading models by name: who may, and what is said of it.

use quadrant_types::{Error, ErrorCode};

use crate::Shared;
use crate::access::Caller;

/// What is to be done with a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Load,
    Unload,
}

/// Does it for whoever may have it done, and says so when it is done.
///
/// # Errors
/// Why it was not.
pub(crate) async fn change(
    shared: &Shared,
    caller: &Caller,
    change: Change,
    model: &str,
) -> Result<(), Error> {
    let action = match change {
        Change::Load => "load",
        Change::Unload => "unload",
    };
    let act = caller.require_admin(shared, action, model)?;
    let result = match change {
        Change::Load => shared.handle.load_model(model).await,
        Change::Unload => shared.handle.unload_model(model).await,
    };
    act.ended(&result);
    result
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
