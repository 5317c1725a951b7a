//! Every bound of the wire side, in one place, checked before a port is bound.

use std::time::Duration;

/// What clients may ask of the server, and how long they may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest request body (HTTP, after decompression) or message (gRPC).
    pub body_bytes_max: usize,
    /// The largest answer.
    pub response_bytes_max: usize,
    /// Request bytes that all connections together may hold.
    pub in_flight_bytes_max: usize,
    /// The deepest nesting of a JSON request.
    pub json_depth_max: usize,
    /// How long a client may take to send the head of a request, counted from the end of the one before: an
    /// idle connection is closed after it, too, so it must not be short.
    pub header_read_timeout: Duration,
    /// How long a client may take to send a body.
    pub body_read_timeout: Duration,
    /// What holds for a request that names no time of its own; `None` leaves it to the scheduler.
    pub request_timeout: Option<Duration>,
    /// Connections per port; more wait in the operating system's queue.
    pub connections_max: usize,
    /// How long accepted requests may take to finish once the server is told to end.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: 64 << 20,
            response_bytes_max: 256 << 20,
            in_flight_bytes_max: 512 << 20,
            json_depth_max: 100,
            header_read_timeout: Duration::from_mins(1),
            body_read_timeout: Duration::from_mins(1),
            request_timeout: None,
            connections_max: 1_024,
            drain_timeout: Duration::from_secs(30),
        }
    }
}

/// A bound that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    /// Nothing could be served with this.
    #[error("`{0}` must be above zero")]
    Zero(&'static str),
    /// One request could never be read.
    #[error("`in_flight_bytes_max` is `{in_flight}`, below `body_bytes_max`, which is `{body}`")]
    BodyAboveBudget {
        /// Bytes all requests may hold.
        in_flight: usize,
        /// Bytes one request may hold.
        body: usize,
    },
    /// The parser descends by recursion.
    #[error("`json_depth_max` is `{0}`, above `{JSON_DEPTH_LIMIT}`")]
    Depth(usize),
    /// A gRPC message has a length of 32 bits, and clients read it as a signed one.
    #[error("`body_bytes_max` is `{0}`, above `{BODY_BYTES_LIMIT}`")]
    Body(usize),
}

/// A stack of two megabytes holds this many frames of the JSON parser several times over.
const JSON_DEPTH_LIMIT: usize = 1_000;
const BODY_BYTES_LIMIT: usize = i32::MAX as usize;

impl Limits {
    /// The same limits, if they make sense.
    ///
    /// # Errors
    /// The first bound that does not.
    pub fn check(self) -> Result<Self, LimitsError> {
        let counts = [
            ("body_bytes_max", self.body_bytes_max),
            ("response_bytes_max", self.response_bytes_max),
            ("in_flight_bytes_max", self.in_flight_bytes_max),
            ("json_depth_max", self.json_depth_max),
            ("connections_max", self.connections_max),
        ];
        let times = [
            ("header_read_timeout", self.header_read_timeout),
            ("body_read_timeout", self.body_read_timeout),
            ("request_timeout", self.request_timeout.unwrap_or(Duration::MAX)),
            ("drain_timeout", self.drain_timeout),
        ];
        let zero_count = counts.iter().find(|(_, count)| *count == 0).map(|(name, _)| *name);
        let zero_time = times.iter().find(|(_, time)| time.is_zero()).map(|(name, _)| *name);
        if let Some(name) = zero_count.or(zero_time) {
            return Err(LimitsError::Zero(name));
        }
        if self.in_flight_bytes_max < self.body_bytes_max {
            let (in_flight, body) = (self.in_flight_bytes_max, self.body_bytes_max);
            return Err(LimitsError::BodyAboveBudget { in_flight, body });
        }
        if self.json_depth_max > JSON_DEPTH_LIMIT {
            return Err(LimitsError::Depth(self.json_depth_max));
        }
        if self.body_bytes_max > BODY_BYTES_LIMIT {
            return Err(LimitsError::Body(self.body_bytes_max));
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn senseless_bounds_are_named() {
        let check = |change: fn(&mut Limits)| {
            let mut limits = Limits::default();
            change(&mut limits);
            limits.check().map(drop)
        };
        assert_eq!(check(|_| ()), Ok(()));
        assert_eq!(check(|limits| limits.connections_max = 0), Err(LimitsError::Zero("connections_max")));
        assert_eq!(
            check(|limits| limits.request_timeout = Some(Duration::ZERO)),
            Err(LimitsError::Zero("request_timeout"))
        );
        assert_eq!(
            check(|limits| limits.in_flight_bytes_max = 1),
            Err(LimitsError::BodyAboveBudget { in_flight: 1, body: 64 << 20 })
        );
        assert_eq!(check(|limits| limits.json_depth_max = 1_001), Err(LimitsError::Depth(1_001)));
    }
}
