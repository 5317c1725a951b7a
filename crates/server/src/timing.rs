//! Where the time of one answer went, for the client that asks with `x-quadrant-timing: 1`, and for the log
//! at debug level. It is in the syntax of `Server-Timing`: durations are milliseconds.

use std::fmt::Write;
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use quadrant_node::{Explanation, Handle, Overlap};
use quadrant_types::{RequestId, Time, Timing};

use crate::events::{self, Port};

/// Asks for it on a request, and carries it on the answer.
pub(crate) const TIMING_HEADER: &str = "x-quadrant-timing";

/// Models that are named of each kind of others' steps, those first that took the most time.
const NAMED_MAX: usize = 4;

/// Tells where the time of an answer went that began to arrive at `started`: its client on the `answer`, if
/// it asked, and the log, if that is read.
pub(crate) fn tell(
    handle: &Handle,
    (port, asked, answer): (Port, &HeaderMap, &mut HeaderMap),
    started: Time,
    (request, timing): (RequestId, &Timing),
) {
    let is_wanted = asked.get(TIMING_HEADER).is_some_and(|value| value.as_bytes() == b"1");
    if !is_wanted && !events::logs_requests() {
        return;
    }
    let mut text = describe(started, handle.now(), timing);
    if let Some(explanation) = handle.explain(request) {
        describe_others(&mut text, &explanation);
    }
    events::timed(port, request, &text);
    if is_wanted {
        let value = HeaderValue::try_from(text).expect("names and numbers are header text");
        answer.insert(TIMING_HEADER, value);
    }
}

/// The stages of a request that began to arrive at `started`, as of `now`.
fn describe(started: Time, now: Time, timing: &Timing) -> String {
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

/// What others ran while it waited and while it ran, and what they took of that time.
fn describe_others(text: &mut String, explanation: &Explanation) {
    let Explanation { waited_for, beside, preempted_by, .. } = explanation;
    for (kind, overlaps) in [("waited-for", waited_for), ("beside", beside), ("preempted-by", preempted_by)] {
        for Overlap { model, time, .. } in overlaps.iter().take(NAMED_MAX) {
            let milliseconds = time.as_secs_f64() * 1_000.0;
            let plain = |c: char| if c.is_ascii_graphic() && !"\"\\".contains(c) { c } else { '_' };
            let name: String = model.chars().map(plain).collect();
            // Writing to a string cannot fail.
            write!(text, ", {kind};desc=\"{name}\";dur={milliseconds:.3}").unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use quadrant_node::RequestRecord;
    use quadrant_types::{SchedulingClass, TenantId};

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
        };
        let expected = "receive;dur=0.010, submit;dur=0.020, queue;dur=0.030, gather;dur=0.040, compute;dur=0.050, \
            scatter;dur=0.060, respond;dur=0.070, total;dur=0.280, predicted;dur=0.055, batch;desc=\"4\", \
            width;desc=\"2\", class;desc=\"urgent\"";
        assert_eq!(describe(at(0), at(280), &timing), expected);
    }

    #[test]
    fn others_are_named_in_header_text() {
        let overlap =
            |model: &str, ms| Overlap { model: model.into(), steps: 1, time: Duration::from_millis(ms) };
        let request = RequestRecord {
            id: RequestId(1),
            model: "own".into(),
            tenant: TenantId(0),
            timing: Timing::default(),
            step: None,
            ended: Time::ZERO,
            wanted_by: None,
            outcome: "completed",
            reason: None,
            generation: None,
        };
        let explanation = Explanation {
            request,
            step: None,
            waited_for: (0..9).map(|number| overlap(&format!("m{number}"), 9 - number)).collect(),
            gap: Vec::new(),
            beside: vec![overlap("a \"quoted\" näme", 1)],
            preempted_by: Vec::new(),
        };
        let mut text = String::from("total;dur=1");
        describe_others(&mut text, &explanation);
        let expected = "total;dur=1, waited-for;desc=\"m0\";dur=9.000, waited-for;desc=\"m1\";dur=8.000, \
            waited-for;desc=\"m2\";dur=7.000, waited-for;desc=\"m3\";dur=6.000, \
            beside;desc=\"a__quoted__n_me\";dur=1.000";
        assert_eq!(text, expected);
        assert!(HeaderValue::try_from(text).is_ok());
    }
}
