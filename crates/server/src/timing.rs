//! Where the time of one answer went, for the client that asks with `x-quadrant-timing: 1`. The answer is
//! in the syntax of `Server-Timing`: durations are milliseconds.

use std::time::Duration;

use http::HeaderMap;
use quadrant_types::{Time, Timing};

/// Asks for it on a request, and carries it on the answer.
pub(crate) const TIMING_HEADER: &str = "x-quadrant-timing";

/// Whether a request asks for it.
pub(crate) fn is_wanted(headers: &HeaderMap) -> bool {
    headers.get(TIMING_HEADER).is_some_and(|value| value.as_bytes() == b"1")
}

/// The stages of a request that began to arrive at `started`, as of `now`.
pub(crate) fn describe(started: Time, now: Time, timing: &Timing) -> String {
    let stages = [
        ("receive", timing.arrived.since(started)),
        ("submit", timing.submitted.since(timing.arrived)),
        ("queue", timing.began.since(timing.submitted)),
        ("gather", timing.gathered.since(timing.began)),
        ("compute", timing.computed.since(timing.gathered)),
        ("scatter", timing.scattered.since(timing.computed)),
        ("respond", now.since(timing.scattered)),
        ("total", now.since(started)),
        ("predicted", timing.predicted),
    ];
    let milliseconds = |duration: Duration| duration.as_secs_f64() * 1_000.0;
    let stage = |(name, duration): &(&str, Duration)| format!("{name};dur={:.3}", milliseconds(*duration));
    let stages: Vec<String> = stages.iter().map(stage).collect();
    let Timing { batch_rows, width, .. } = timing;
    let class = timing.class.name();
    format!(
        "{}, batch;desc=\"{batch_rows}\", width;desc=\"{width}\", class;desc=\"{class}\"",
        stages.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use quadrant_types::SchedulingClass;

    use super::*;

    #[test]
    fn every_stage_is_there_in_milliseconds() {
        let at = |micros: u64| Time::from_nanos(micros * 1_000);
        let timing = Timing {
            arrived: at(10),
            submitted: at(30),
            began: at(60),
            gathered: at(100),
            computed: at(150),
            scattered: at(210),
            batch_rows: 4,
            predicted: Duration::from_micros(55),
            width: 2,
            class: SchedulingClass::Urgent,
            beside: None,
        };
        let expected = "receive;dur=0.010, submit;dur=0.020, queue;dur=0.030, gather;dur=0.040, compute;dur=0.050, \
            scatter;dur=0.060, respond;dur=0.070, total;dur=0.280, predicted;dur=0.055, batch;desc=\"4\", \
            width;desc=\"2\", class;desc=\"urgent\"";
        assert_eq!(describe(at(0), at(280), &timing), expected);
    }
}
