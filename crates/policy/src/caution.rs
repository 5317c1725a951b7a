//! How far admission trusts its own predictions: less while what it let in comes late.
//!
//! Admission reckons with what steps usually take and with the order it knows. Under overload both err on
//! one side: the device is filled to the brim, so every step that takes longer makes another late, and what
//! comes later with less time goes first. How much that is depends on the machine and the mix, so it is not
//! predicted but controlled: the more of the device's time goes to requests that come late, the more room is
//! left beside the work that is booked already. An empty device lets in everything it can do.

use std::time::Duration;

use quadrant_types::Time;

use crate::lately::Lately;

/// Over how long late work is counted.
const COUNTED_OVER: Duration = Duration::from_secs(5);
/// The share of the device's time that may go to late requests before anything is done about it.
const TOLERATED: f64 = 0.01;
/// The share of the booked work that is left free for each share of the time that is late beyond that,
const RATE: f64 = 20.0;
/// and at most.
const MARGIN_MAX: f64 = 0.4;

/// See the module's text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caution {
    late: Lately,
}

impl Default for Caution {
    fn default() -> Self {
        Self { late: Lately::new(COUNTED_OVER) }
    }
}

impl Caution {
    /// A request that was let in comes late, or not at all; `work` is its share of the whole device's time.
    pub(crate) fn note_late(&mut self, now: Time, work: Duration) {
        self.late.add(now, work.as_secs_f64());
    }

    /// How much room is left free, as a share of the work that is booked.
    pub(crate) fn margin(&self, now: Time) -> f64 {
        (RATE * (self.late.per_second(now) - TOLERATED)).clamp(0.0, MARGIN_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_left_while_admitted_requests_come_late() {
        let at = |seconds| Time::ZERO + Duration::from_secs(seconds);
        let mut caution = Caution::default();
        let mut check = |now, late_ms, expect: f64| {
            caution.note_late(at(now), Duration::from_millis(late_ms));
            let margin = caution.margin(at(now));
            assert!((margin - expect).abs() < 1e-6, "{late_ms} ms at {now}: {margin}");
        };
        check(0, 0, 0.0);
        // So much is tolerated.
        check(0, 50, 0.0);
        check(0, 25, 0.1);
        check(5, 0, 0.0);
        check(5, 1_000, MARGIN_MAX);
    }
}
