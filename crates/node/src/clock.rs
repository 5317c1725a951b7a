//! The one clock. Everything that stamps or schedules is handed this one, or a virtual one in its place.

use std::time::{Instant, SystemTime};

use quadrant_types::{Clock, Time};

/// Time since the process's domain was created; never goes back.
#[derive(Clone, Copy, Debug)]
pub struct MonotonicClock {
    origin: Instant,
}

impl MonotonicClock {
    /// A clock that starts at [`Time::ZERO`] now.
    #[expect(clippy::disallowed_methods, reason = "the clock")]
    #[expect(clippy::new_without_default, reason = "a default clock would hide that a second one was made")]
    pub fn new() -> Self {
        Self { origin: Instant::now() }
    }
}

impl Clock for MonotonicClock {
    fn now(&self) -> Time {
        Time::ZERO + self.origin.elapsed()
    }
}

/// Seconds since 1970, by the operating system's calendar. Nothing is decided by it.
#[expect(clippy::disallowed_methods, reason = "the clock")]
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
