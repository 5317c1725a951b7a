//! How long an answer is wanted for. There are four ways to say it, and the shortest counts: Triton's
//! `timeout` parameter, the header `x-request-timeout-ms`, gRPC's `grpc-timeout`, and the server's own limit.

use std::time::Duration;

use http::HeaderMap;
use quadrant_types::{Error, Objective, Time};

use crate::terms::Terms;

/// Milliseconds, as a whole number.
const TIMEOUT_HEADER: &str = "x-request-timeout-ms";

/// The objective of a request that arrived now. `timeout_us` is Triton's parameter.
pub(crate) fn objective(arrived: Time, terms: Terms, timeout_us: u64) -> Objective {
    let timeout = terms.timeout.into_iter().chain(from_parameter(timeout_us)).min();
    match (terms.latency, timeout) {
        (None, None) => Objective::BestEffort,
        (None, Some(timeout)) => Objective::EndBy(arrived + timeout),
        (Some(latency), Some(timeout)) if timeout <= latency => Objective::EndBy(arrived + timeout),
        (Some(latency), timeout) => Objective::Target {
            by: arrived + latency,
            until: timeout.map_or(Time::MAX, |timeout| arrived + timeout),
        },
    }
}

/// Triton's request parameter, in microseconds; zero stands for none.
fn from_parameter(microseconds: u64) -> Option<Duration> {
    (microseconds > 0).then(|| Duration::from_micros(microseconds))
}

/// What the headers say, the shorter if both are there.
///
/// # Errors
/// A value that is not a usable time.
pub(crate) fn from_headers(headers: &HeaderMap) -> Result<Option<Duration>, Error> {
    let value = |name| headers.get(name).map(http::HeaderValue::as_bytes);
    let milliseconds = |value| from_milliseconds(TIMEOUT_HEADER, value);
    let request = value(TIMEOUT_HEADER).map(milliseconds).transpose()?;
    let grpc = value("grpc-timeout").map(from_grpc_timeout).transpose()?;
    Ok(request.into_iter().chain(grpc).min())
}

/// The time in a header of this name.
///
/// # Errors
/// If it is none.
pub(crate) fn from_milliseconds(name: &str, value: &[u8]) -> Result<Duration, Error> {
    let milliseconds = digits(value, 15).filter(|milliseconds| *milliseconds > 0);
    milliseconds.map(Duration::from_millis).ok_or_else(|| {
        let text = String::from_utf8_lossy(value);
        Error::invalid(format!("`{name}` is `{text}`; give whole milliseconds above zero"))
    })
}

/// At most eight digits and a unit.
fn from_grpc_timeout(value: &[u8]) -> Result<Duration, Error> {
    let parse = || {
        let (unit, number) = value.split_last()?;
        let number = digits(number, 8)?;
        Some(match unit {
            b'H' => Duration::from_secs(number * 3_600),
            b'M' => Duration::from_secs(number * 60),
            b'S' => Duration::from_secs(number),
            b'm' => Duration::from_millis(number),
            b'u' => Duration::from_micros(number),
            b'n' => Duration::from_nanos(number),
            _ => return None,
        })
    };
    parse().ok_or_else(|| {
        let text = String::from_utf8_lossy(value);
        Error::invalid(format!("`grpc-timeout` is `{text}`; give at most eight digits and a unit of HMSmun"))
    })
}

fn digits(value: &[u8], digits_max: usize) -> Option<u64> {
    let is_number = !value.is_empty() && value.len() <= digits_max && value.iter().all(u8::is_ascii_digit);
    is_number.then(|| value.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &'static str, value: &str) -> Result<Option<Duration>, String> {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        from_headers(&headers).map_err(|error| error.message.into_owned())
    }

    #[test]
    fn headers_are_times_or_mistakes() {
        let cases = [
            (TIMEOUT_HEADER, "250", Some(Duration::from_millis(250))),
            (TIMEOUT_HEADER, "0", None),
            (TIMEOUT_HEADER, "1.5", None),
            (TIMEOUT_HEADER, "-1", None),
            (TIMEOUT_HEADER, "9999999999999999", None),
            ("grpc-timeout", "99999999H", Some(Duration::from_secs(99_999_999 * 3_600))),
            ("grpc-timeout", "5m", Some(Duration::from_millis(5))),
            ("grpc-timeout", "7n", Some(Duration::from_nanos(7))),
            ("grpc-timeout", "123456789S", None),
            ("grpc-timeout", "S", None),
            ("grpc-timeout", "5", None),
        ];
        for (name, value, expected) in cases {
            let actual = check(name, value);
            assert_eq!(actual.clone().ok().flatten(), expected, "{name}: {value}");
            assert_eq!(actual.is_err(), expected.is_none(), "{name}: {value}");
        }
    }

    #[test]
    fn the_shortest_time_counts() {
        let seconds = Duration::from_secs;
        let now = Time::from_nanos(5);
        let terms = |timeout, latency| Terms { timeout, latency, ..Terms::default() };
        assert_eq!(objective(now, terms(None, None), 0), Objective::BestEffort);
        let timeout = terms(Some(seconds(3)), None);
        assert_eq!(objective(now, timeout, 2_000_000), Objective::EndBy(now + seconds(2)));
        assert_eq!(objective(now, timeout, 0), Objective::EndBy(now + seconds(3)));
        let named = |timeout| terms(timeout, Some(seconds(1)));
        let by = now + seconds(1);
        assert_eq!(objective(now, named(None), 0), Objective::Target { by, until: Time::MAX });
        let until = now + seconds(3);
        assert_eq!(objective(now, named(Some(seconds(3))), 0), Objective::Target { by, until });
        assert_eq!(objective(now, named(Some(seconds(1))), 0), Objective::EndBy(by));
    }
}
