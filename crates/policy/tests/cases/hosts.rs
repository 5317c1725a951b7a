//! Models whose engines run in a process of their own, when that ends: who waits, who is tried, who is to
//! blame.

use std::time::Duration;

use quadrant_policy::{Event, Lost, StepOutcome};
use quadrant_types::{Error, ErrorCode, HostId, ModelId, Objective, Request};

use super::{Bench, at, request};

fn lost(generation: u64) -> StepOutcome {
    StepOutcome::Lost(Lost { error: Error::new(ErrorCode::Unavailable, "gone"), began: true, generation })
}

/// Two models with two lanes; the first runs in a host, which is up for the first time.
fn hosted(rows_max: u32) -> Bench {
    let mut bench = Bench::new(&[&[0], &[1]]);
    bench.at(0, Event::Hosted(ModelId(0), HostId(0)));
    bench.at(0, Event::HostUp(HostId(0), 1));
    bench.up(0, 1, rows_max, Duration::ZERO);
    bench.up(1, 1, 1, Duration::ZERO);
    bench
}

#[test]
fn who_was_in_a_host_that_ended_is_tried_one_by_one() {
    let mut bench = hosted(2);
    for id in 0..5 {
        bench.at(1, Event::Arrived(request(id, 0, 1)));
    }
    assert_eq!(bench.said(), ["s0 runs r0 on l0", "s1 runs r1 on l1"]);
    bench.ended(2, 0, StepOutcome::Completed);
    assert_eq!(bench.said(), ["r0 completed", "s2 runs r2 r3 on l0"]);
    // Both steps were in it. Nothing more is begun there, whoever says first that it is gone.
    bench.ended(3, 1, lost(1));
    bench.at(3, Event::HostDown(HostId(0), at(10)));
    bench.at(4, Event::Arrived(request(5, 1, 4)));
    assert_eq!(bench.said(), ["s3 runs r5 on l1"], "other models go on");
    bench.at(10, Event::HostUp(HostId(0), 2));
    assert_eq!(bench.said(), [""; 0], "a report is still to come");
    bench.ended(11, 2, lost(1));
    assert_eq!(bench.said(), ["s4 runs r1 on l0"]);
    bench.ended(11, 3, StepOutcome::Completed);
    assert_eq!(bench.said(), ["r5 completed"], "it is tried alone, though a lane is free");
    bench.ended(12, 4, StepOutcome::Completed);
    assert_eq!(bench.said(), ["r1 completed", "s5 runs r2 on l0"]);
    // The one to blame dies alone. The others are tried when the host is back, and the rest goes on then.
    bench.ended(13, 5, lost(2));
    assert_eq!(bench.said(), ["r2 invalid_argument"]);
    bench.at(13, Event::HostDown(HostId(0), at(20)));
    bench.at(20, Event::HostUp(HostId(0), 3));
    assert_eq!(bench.said(), ["s6 runs r3 on l0"]);
    bench.ended(21, 6, StepOutcome::Completed);
    assert_eq!(bench.said(), ["r3 completed", "s7 runs r4 on l0"]);
}

#[test]
fn who_cannot_wait_for_a_host_is_refused_at_once() {
    let mut bench = hosted(1);
    bench.at(1, Event::HostDown(HostId(0), at(50)));
    let within = |id, ms| Request { objective: Objective::EndBy(at(ms)), ..request(id, 0, 2) };
    bench.at(2, Event::Arrived(within(0, 40)));
    assert_eq!(bench.said(), ["r0 unavailable"]);
    bench.at(2, Event::Arrived(within(1, 90)));
    bench.at(2, Event::Arrived(request(2, 0, 2)));
    assert_eq!(bench.policy.queued(ModelId(0)), 2);
    // It takes longer than was said, and then far longer.
    bench.at(60, Event::HostDown(HostId(0), at(95)));
    assert_eq!(bench.said(), ["r1 unavailable"]);
    bench.at(95, Event::HostDown(HostId(0), at(30_000)));
    assert_eq!(bench.said(), ["r2 unavailable"]);
    bench.at(96, Event::Drain);
    assert_eq!(bench.said(), ["drained"]);
}

#[test]
fn a_step_that_hangs_in_a_host_is_left_to_its_end() {
    let mut bench = hosted(1);
    bench.at(1, Event::Arrived(request(0, 0, 1)));
    bench.at(30, Event::Tick);
    assert_eq!(bench.said(), ["s0 runs r0 on l0", "l0 stalled on s0"]);
    bench.at(30, Event::HostDown(HostId(0), at(40)));
    bench.ended(31, 0, lost(1));
    bench.at(40, Event::HostUp(HostId(0), 2));
    assert_eq!(bench.said(), ["l0 recovered", "s1 runs r0 on l0"]);
}
