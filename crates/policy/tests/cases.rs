//! Situations by hand, most of them found by the simulator: what happens, and what must be asked for.

use std::time::Duration;

use quadrant_policy::{
    Action, Cost, Discipline, Event, LaneShape, Limits, ModelTerms, Policy, SequenceTerms, StepOutcome,
    StepReport, Unmet,
};
use quadrant_types::{
    CoreSet, Ending, Error, ErrorCode, LaneId, ModelId, Objective, Priority, Request, RequestId,
    SchedulingClass, ShapeId, StepId, TenantId, Time, Work,
};

#[path = "cases/hosts.rs"]
mod hosts;

const MS: Duration = Duration::from_millis(1);

/// A policy, and all that it asked for since it was last asked, in short words.
struct Bench {
    policy: Policy,
    said: Vec<Action>,
}

impl Bench {
    fn new(lanes: &[&[usize]]) -> Self {
        let lanes = (0..).zip(lanes).map(|(id, cores)| LaneShape {
            id: LaneId(id),
            cores: CoreSet::from_cores(cores.iter().copied()),
            class: SchedulingClass::Urgent,
        });
        Self::with(lanes.collect())
    }

    /// One core, with a lane of each class.
    fn with_idle_class() -> Self {
        let lane = |id, class| LaneShape { id: LaneId(id), cores: CoreSet::from_cores([0]), class };
        Self::with(vec![lane(0, SchedulingClass::Urgent), lane(1, SchedulingClass::Idle)])
    }

    fn with(lanes: Vec<LaneShape>) -> Self {
        let limits = Limits { stall_factor: 10, stall_floor: 20 * MS, ..Limits::default() };
        Self { policy: Policy::new(lanes, limits, Discipline::Quadrant), said: Vec::new() }
    }

    fn at(&mut self, now_ms: u32, event: Event) {
        self.policy.on_event(at(now_ms), event, &mut self.said);
        assert_eq!(self.policy.violated_invariant(), None);
    }

    /// Steps of this model take a millisecond.
    fn up(&mut self, model: u32, width: usize, rows_max: u32, delay: Duration) {
        self.up_taking(MS, model, width, rows_max, delay);
    }

    fn up_taking(&mut self, step: Duration, model: u32, width: usize, rows_max: u32, delay: Duration) {
        let cost = |rows| Cost { rows, width, beside: false, time: step };
        let terms = ModelTerms {
            rows_max,
            widths: vec![width],
            lane: None,
            queue_max: 100,
            delay_max: delay,
            costs: [1, 2, 4].map(cost).to_vec(),
            row_bytes: 1,
            unmet: Unmet::Refuse,
            sequences: None,
        };
        self.at(0, Event::ModelUp(ModelId(model), terms));
    }

    fn ended(&mut self, now_ms: u32, step: u64, outcome: StepOutcome) {
        let report = StepReport {
            step: StepId(step),
            began: at(0),
            ended: at(now_ms),
            core_time: Duration::ZERO,
            outcome,
        };
        self.at(now_ms, Event::Ended(report));
    }

    fn said(&mut self) -> Vec<String> {
        self.said.drain(..).map(|action| in_short(&action)).collect()
    }
}

fn in_short(action: &Action) -> String {
    match action {
        Action::Run(step) => {
            let requests: Vec<_> = step.requests.iter().map(ToString::to_string).collect();
            format!("{} runs {} on {}", step.id, requests.join(" "), step.lane)
        }
        Action::End(id, Ending::Completed) => format!("{id} completed"),
        Action::End(id, Ending::Failed(error)) => format!("{id} {}", error.code.name()),
        Action::LaneStalled(lane, step) => format!("{lane} stalled on {step}"),
        Action::LaneRecovered(lane) => format!("{lane} recovered"),
        Action::Load(model) => format!("load {model}"),
        Action::Unload(model) => format!("unload {model}"),
        Action::LoadRefused(model, error) => format!("no {model}: {error}"),
        Action::Drained => "drained".to_owned(),
    }
}

fn at(ms: u32) -> Time {
    Time::ZERO + MS * ms
}

fn failed() -> StepOutcome {
    StepOutcome::Failed(Error::new(ErrorCode::Internal, "broken"))
}

/// One row for `model`.
fn request(id: u64, model: u32, arrived_ms: u32) -> Request {
    Request {
        id: RequestId(id),
        model: ModelId(model),
        tenant: TenantId(0),
        priority: Priority::default(),
        arrived: at(arrived_ms),
        objective: Objective::BestEffort,
        work: Work::Once { rows: 1, shape: ShapeId(0), bytes_in: 1 },
    }
}

#[test]
fn a_batch_that_waits_for_more_does_not_hold_up_another_shape() {
    let mut bench = Bench::new(&[&[0]]);
    bench.up(0, 1, 4, 10 * MS);
    // Shape 1 came first, but is less important; when its delay is over it runs.
    let other = Work::Once { rows: 1, shape: ShapeId(1), bytes_in: 1 };
    bench.at(0, Event::Arrived(Request { work: other, priority: Priority(2_000), ..request(0, 0, 0) }));
    bench.at(5, Event::Arrived(request(1, 0, 5)));
    assert_eq!(bench.policy.next_deadline(), Some(at(10)));
    bench.at(10, Event::Tick);
    assert_eq!(bench.said(), ["s0 runs r0 on l0"]);
}

#[test]
fn a_batch_waits_no_longer_than_any_of_its_deadlines_allows() {
    let mut bench = Bench::new(&[&[0]]);
    bench.up(0, 1, 4, 50 * MS);
    bench.at(0, Event::Arrived(request(0, 0, 0)));
    let urgent =
        Request { objective: Objective::EndBy(at(6)), priority: Priority(2_000), ..request(1, 0, 0) };
    bench.at(0, Event::Arrived(urgent));
    // A step takes 1 ms in the median; to begin with a quarter more is allowed for.
    assert_eq!(bench.policy.next_deadline(), Some(at(5) - MS / 4), "one step before the deadline");
}

#[test]
fn a_batch_that_leaves_some_of_its_shape_behind_waits_for_no_more() {
    let mut bench = Bench::new(&[&[0]]);
    bench.up(0, 1, 4, 10 * MS);
    let three = Work::Once { rows: 3, shape: ShapeId(0), bytes_in: 3 };
    bench.at(0, Event::Arrived(Request { work: three, ..request(0, 0, 0) }));
    assert_eq!(bench.said(), Vec::<String>::new());
    bench.at(1, Event::Arrived(Request { work: three, ..request(1, 0, 1) }));
    assert_eq!(bench.said(), ["s0 runs r0 on l0"]);
}

#[test]
fn requests_without_rows_share_a_batch_only_with_their_shape() {
    let mut bench = Bench::new(&[&[0]]);
    bench.up(0, 1, 4, 10 * MS);
    for (id, shape) in [(0, 0), (1, 1)] {
        let empty = Work::Once { rows: 0, shape: ShapeId(shape), bytes_in: 0 };
        bench.at(0, Event::Arrived(Request { work: empty, ..request(id, 0, 0) }));
    }
    bench.at(10, Event::Tick);
    assert_eq!(bench.said(), ["s0 runs r0 on l0"]);
}

#[test]
fn a_stalled_lane_does_not_cost_a_model_its_place_at_the_healthy_one() {
    // Two wide lanes and a narrow one for each core; the first wide lane gets stuck.
    let mut bench = Bench::new(&[&[0, 1], &[2, 3], &[0], &[1], &[2], &[3]]);
    bench.up(0, 2, 1, Duration::ZERO);
    bench.up(1, 1, 1, Duration::ZERO);
    bench.at(0, Event::Arrived(request(0, 0, 0)));
    bench.at(20, Event::Tick);
    bench.at(20, Event::Arrived(request(1, 1, 20)));
    assert_eq!(bench.said(), ["s0 runs r0 on l0", "l0 stalled on s0", "r0 internal", "s1 runs r1 on l4"]);
    bench.at(21, Event::Arrived(request(2, 0, 21)));
    bench.at(22, Event::Arrived(request(3, 1, 22)));
    assert_eq!(bench.said(), Vec::<String>::new(), "core 3 is kept for the wide step");
    bench.ended(23, 1, StepOutcome::Completed);
    assert_eq!(bench.said(), ["r1 completed", "s2 runs r2 on l1"]);
}

#[test]
fn what_failed_is_not_tried_again_when_its_model_is_gone() {
    let mut bench = Bench::new(&[&[0]]);
    bench.up(0, 1, 4, Duration::ZERO);
    for id in 0..3 {
        bench.at(0, Event::Arrived(request(id, 0, 0)));
    }
    bench.ended(1, 0, StepOutcome::Completed);
    bench.at(1, Event::ModelDown(ModelId(0)));
    bench.said();
    bench.ended(2, 1, failed());
    assert_eq!(bench.said(), ["r1 unavailable", "r2 unavailable"]);
}

#[test]
fn draining_waits_for_a_step_whose_requests_are_gone() {
    let mut bench = Bench::new(&[&[0]]);
    bench.up(0, 1, 1, Duration::ZERO);
    bench.at(0, Event::Arrived(request(0, 0, 0)));
    bench.at(1, Event::Left(RequestId(0)));
    bench.at(2, Event::Drain);
    assert_eq!(bench.said(), ["s0 runs r0 on l0", "r0 cancelled"]);
    bench.ended(3, 0, StepOutcome::Completed);
    assert_eq!(bench.said(), ["drained"]);
}

#[test]
fn draining_does_not_wait_for_a_lane_that_is_stuck() {
    let mut bench = Bench::new(&[&[0]]);
    bench.up(0, 1, 1, Duration::ZERO);
    bench.at(0, Event::Arrived(request(0, 0, 0)));
    bench.at(2, Event::Drain);
    bench.said();
    bench.at(20, Event::Tick);
    assert_eq!(bench.said(), ["l0 stalled on s0", "r0 internal", "drained"]);
}

/// One row for model 0 with a priority, to be done at a time.
fn due(id: u64, arrived_ms: u32, priority: u32, due_ms: u32) -> Request {
    let objective = Objective::Target { by: at(due_ms), until: at(due_ms + 60_000) };
    Request { priority: Priority(priority), objective, ..request(id, 0, arrived_ms) }
}

#[test]
fn room_is_made_only_by_who_was_in_the_way() {
    let mut bench = Bench::new(&[&[0]]);
    bench.up(0, 1, 1, Duration::ZERO);
    bench.at(0, Event::Arrived(due(0, 0, 1_000, 5_000)));
    bench.at(0, Event::Arrived(due(1, 0, 2_000, 3)));
    bench.at(0, Event::Arrived(due(2, 0, 2_000, 9_000)));
    assert_eq!(bench.said(), ["s0 runs r0 on l0"]);
    // The least important with the latest start is 2, but that it goes would make no room.
    bench.at(0, Event::Arrived(due(3, 0, 1, 3)));
    assert_eq!(bench.said(), ["r1 resource_exhausted"]);
}

#[test]
fn nobody_is_given_up_for_whom_that_does_not_help() {
    let mut bench = Bench::new(&[&[0]]);
    bench.up(0, 1, 1, Duration::ZERO);
    bench.at(0, Event::Arrived(due(0, 0, 1_000, 5_000)));
    bench.at(0, Event::Arrived(due(1, 0, 1, 5)));
    bench.at(0, Event::Arrived(due(2, 0, 2_000, 9_000)));
    assert_eq!(bench.said(), ["s0 runs r0 on l0"]);
    // The step takes much longer than predicted, and 1 is late whatever becomes of 2.
    bench.at(12, Event::Tick);
    assert_eq!(bench.said(), Vec::<String>::new());
    bench.ended(13, 0, StepOutcome::Completed);
    assert_eq!(bench.said(), ["r0 completed", "r1 deadline_exceeded", "s1 runs r2 on l0"]);
}

#[test]
fn a_step_of_the_idle_class_may_starve_for_longer_and_holds_no_core() {
    let mut bench = Bench::with_idle_class();
    bench.up(0, 1, 1, Duration::ZERO);
    bench.at(0, Event::Arrived(due(0, 0, 1_000, 50)));
    bench.ended(1, 0, StepOutcome::Completed);
    bench.at(1, Event::Arrived(request(1, 0, 1)));
    assert_eq!(bench.said(), ["s0 runs r0 on l0", "r0 completed", "s1 runs r1 on l1"]);
    bench.at(200, Event::Tick);
    assert_eq!(bench.said(), Vec::<String>::new());
    bench.at(201, Event::Tick);
    assert_eq!(bench.said(), ["l1 stalled on s1", "r1 internal"]);
    bench.at(202, Event::Arrived(due(2, 202, 1_000, 250)));
    assert_eq!(bench.said(), ["s2 runs r2 on l0"]);
}

#[test]
fn requests_that_could_never_be_in_time_take_no_room_from_others() {
    let mut bench = Bench::new(&[&[0]]);
    bench.up(0, 1, 1, Duration::ZERO);
    bench.up(1, 1, 1, Duration::ZERO);
    for id in 0..50 {
        bench.at(10, Event::Arrived(due(id, 10, 1_000, 11)));
    }
    bench.said();
    for id in 100..112 {
        bench.at(10, Event::Arrived(Request { model: ModelId(1), ..due(id, 10, 1_000, 30) }));
    }
    let refused = bench.said().into_iter().filter(|said| said.contains("resource_exhausted"));
    assert_eq!(refused.collect::<Vec<_>>(), Vec::<String>::new());
}

#[test]
fn who_waits_for_a_step_that_does_not_end_is_looked_at_again() {
    let mut bench = Bench::with_idle_class();
    bench.up_taking(4 * MS, 0, 1, 1, Duration::ZERO);
    // Its objective makes steps of 4 ms long ones.
    bench.at(0, Event::Arrived(due(0, 0, 1_000, 10)));
    bench.ended(4, 0, StepOutcome::Completed);
    bench.at(4, Event::Arrived(due(1, 4, 1_000, 4_000)));
    assert_eq!(bench.said(), ["s0 runs r0 on l1", "r0 completed", "s1 runs r1 on l1"]);
    bench.at(7, Event::Arrived(due(2, 7, 1_000, 27)));
    assert_eq!(bench.said(), Vec::<String>::new(), "the rest of the step is short");
    assert_eq!(bench.policy.next_deadline(), Some(at(22)));
    bench.at(22, Event::Tick);
    assert_eq!(bench.said(), ["s2 runs r2 on l0"]);
}

#[test]
fn what_runs_keeps_the_margin_that_it_was_admitted_with() {
    let mut bench = Bench::with_idle_class();
    bench.up_taking(4 * MS, 0, 1, 1, Duration::ZERO);
    bench.up(1, 1, 1, Duration::ZERO);
    let short = |id, arrived, due_ms| Request { model: ModelId(1), ..due(id, arrived, 1_000, due_ms) };
    bench.at(0, Event::Arrived(short(0, 0, 8)));
    bench.ended(1, 0, StepOutcome::Completed);
    // It may take 5 ms, so it has to go on at 15.
    bench.at(1, Event::Arrived(due(1, 1, 1_000, 20)));
    assert_eq!(bench.said(), ["s0 runs r0 on l0", "r0 completed", "s1 runs r1 on l1"]);
    bench.at(1, Event::Arrived(short(2, 1, 17)));
    assert_eq!(bench.said(), Vec::<String>::new(), "it could begin at 15.75");
    bench.at(1, Event::Arrived(short(3, 1, 16)));
    assert_eq!(bench.said(), ["s2 runs r3 on l0"]);
}

#[test]
fn work_goes_to_the_core_that_is_faster_at_present() {
    let mut bench = Bench::new(&[&[0], &[1]]);
    bench.up_taking(20 * MS, 0, 1, 1, Duration::ZERO);
    // On both cores at once; in the end lane 0 takes half as long again.
    let (mut now, mut id) = (0, 0);
    for round in 0..12 {
        for request in [id, id + 1] {
            bench.at(now, Event::Arrived(due(request, now, 1, 1_000)));
        }
        let first_on_0 = bench.said()[0].ends_with("l0");
        let (slow, fast) = if first_on_0 { (id, id + 1) } else { (id + 1, id) };
        bench.ended(now + 20, fast, StepOutcome::Completed);
        bench.ended(now + if round < 8 { 20 } else { 30 }, slow, StepOutcome::Completed);
        bench.said();
        (now, id) = (now + 50, id + 2);
    }
    bench.at(now, Event::Arrived(due(id, now, 1, 1_000)));
    assert_eq!(bench.said(), [format!("s{id} runs r{id} on l1")]);
    let slowdowns: Vec<f64> = bench.policy.slowdowns(at(now)).map(|(_, slowdown)| slowdown).collect();
    assert!(slowdowns[0] > 1.2 * slowdowns[1], "{slowdowns:?}");
    // After a while nothing is known any more, and the first is as good as the other.
    bench.ended(now + 20, id, StepOutcome::Completed);
    bench.said();
    bench.at(now + 10_000, Event::Arrived(due(id + 1, now + 10_000, 1, 20_000)));
    assert_eq!(bench.said(), [format!("s{} runs r{} on l0", id + 1, id + 1)]);
}

#[test]
fn no_core_is_kept_for_a_model_that_could_not_use_it() {
    let lane = |(id, (cores, class)): (u16, (&[usize], _))| LaneShape {
        id: LaneId(id),
        cores: CoreSet::from_cores(cores.iter().copied()),
        class,
    };
    let (urgent, idle) = (SchedulingClass::Urgent, SchedulingClass::Idle);
    let lanes: [(&[usize], _); 4] = [(&[0], urgent), (&[1], urgent), (&[0, 1], urgent), (&[0, 1], idle)];
    let mut bench = Bench::with((0..).zip(lanes).map(lane).collect());
    bench.up(0, 1, 1, Duration::ZERO);
    let sequences = SequenceTerms { page_tokens: 4, pages: 100, tokens_max: 100, thousand_keys: MS };
    let cost = |rows| Cost { rows, width: 2, beside: false, time: 100 * MS };
    let terms = ModelTerms {
        rows_max: 4,
        widths: vec![2],
        costs: [1, 4].map(cost).to_vec(),
        sequences: Some(sequences),
        ..ModelTerms::default()
    };
    bench.at(0, Event::ModelUp(ModelId(1), terms));
    bench.at(0, Event::Arrived(due(0, 0, 1_000, 50)));
    bench.ended(1, 0, StepOutcome::Completed);
    let work = Work::Generate { prompt: 4, new_max: 4, bytes_in: 1 };
    let easy = Request { work, ..request(1, 1, 1) };
    bench.at(1, Event::Sequence(easy, [].into()));
    assert_eq!(bench.said(), ["s0 runs r0 on l0", "r0 completed", "s1 runs r1 on l3"]);
    // The second sequence comes first in the order, and waits for the model's step.
    let objective = Objective::Tokens { first_by: at(400), each: 500 * MS, until: at(60_000) };
    bench.at(2, Event::Sequence(Request { objective, work, ..request(2, 1, 2) }, [].into()));
    bench.at(2, Event::Arrived(due(3, 2, 1_000, 900)));
    assert_eq!(bench.said(), ["s2 runs r3 on l1"]);
}
