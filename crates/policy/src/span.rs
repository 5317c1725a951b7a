//! Spans of time as floating point numbers of nanoseconds, which is what predictions are worked out in.
//!
//! The standard library's conversions go by way of seconds and round with care; these are asked for many
//! times in each decision, and a nanosecond does not matter.

use std::time::Duration;

const NANOS_PER_SECOND: f64 = 1e9;

pub(crate) fn as_nanos(span: Duration) -> f64 {
    span.as_secs() as f64 * NANOS_PER_SECOND + f64::from(span.subsec_nanos())
}

/// Rounded down. Saturates at the longest time that fits nanoseconds, far beyond any limit; what is negative
/// is nothing.
pub(crate) fn from_nanos(nanos: f64) -> Duration {
    Duration::from_nanos(nanos as u64)
}

/// So many times this span.
pub(crate) fn scaled(span: Duration, factor: f64) -> Duration {
    from_nanos(as_nanos(span) * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_scaled_and_saturate() {
        let span = Duration::new(3, 500_000_001);
        assert_eq!(from_nanos(as_nanos(span)), span);
        assert_eq!(scaled(span, 2.0), span * 2);
        assert_eq!(scaled(span, -1.0), Duration::ZERO);
        assert_eq!(scaled(Duration::MAX, 2.0), Duration::from_nanos(u64::MAX));
    }
}
