//! A panic in an engine fails its step, not the process.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::EngineError;

/// Does `work`; a panic in it becomes [`EngineError::Panicked`] with its message.
///
/// Unwind safety is asserted because what an engine leaves behind is either dropped with the step or,
/// like a session, guarded by the engine itself.
pub(crate) fn guarded<T>(work: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(EngineError::Panicked(message(&*panic))))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked without a message").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_with_its_message() {
        let number = 3;
        let failed = |text: &str| Err::<(), _>(EngineError::Panicked(text.into()));
        assert_eq!(guarded(|| panic!("step {number}")), failed("step 3"));
        assert_eq!(guarded(|| panic!("plain")), failed("plain"));
        assert_eq!(guarded(|| std::panic::panic_any(number)), failed("it panicked without a message"));
        assert_eq!(guarded(|| Ok(number)), Ok(3));
    }
}
