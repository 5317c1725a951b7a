//! Scenarios by hand, one for each promise: what was asked of the device and of the clients, in order.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use quadrant_policy::{Action, Cost, Discipline, Event, LaneShape, Limits, ModelTerms, Policy, Unmet};
use quadrant_sim::{
    Arrivals, Faults, ModelPlan, Range, Report, Scenario, Scheduler, Traffic, Truth, Unsteady, policy,
    run_with,
};
use quadrant_types::{CoreSet, Ending, LaneId, SchedulingClass, Time};

const MS: Duration = Duration::from_millis(1);

/// The shipped scheduler, and a line for everything it asked for.
struct Recorded {
    policy: Policy,
    lines: Rc<RefCell<Vec<String>>>,
}

impl Scheduler for Recorded {
    fn on_event(&mut self, now: Time, event: Event, actions: &mut Vec<Action>) {
        self.policy.on_event(now, event, actions);
        let now_ms = now.as_nanos() / 1_000_000;
        self.lines.borrow_mut().extend(actions.iter().map(|action| format!("{now_ms} {}", in_short(action))));
    }

    fn next_deadline(&self) -> Option<Time> {
        self.policy.next_deadline()
    }

    fn violated_invariant(&self) -> Option<&'static str> {
        self.policy.violated_invariant()
    }
}

fn in_short(action: &Action) -> String {
    match action {
        Action::Run(step) => {
            let requests: Vec<_> = step.requests.iter().map(ToString::to_string).collect();
            format!("{} {} on {}", step.model, requests.join(" "), step.lane)
        }
        Action::End(id, Ending::Completed) => format!("{id} completed"),
        Action::End(id, Ending::Failed(error)) => format!("{id} {}", error.code.name()),
        Action::LaneStalled(lane, _) => format!("{lane} stalled"),
        Action::LaneRecovered(lane) => format!("{lane} recovered"),
        Action::Load(model) => format!("load {model}"),
        Action::Unload(model) => format!("unload {model}"),
        Action::LoadRefused(model, error) => format!("no {model}: {error}"),
        Action::Drained => "drained".to_owned(),
    }
}

/// Plays a scenario; the lines of it, and the report.
fn play(scenario: &Scenario) -> (Vec<String>, Report) {
    let lines = Rc::default();
    let recorded = Recorded { policy: policy(scenario), lines: Rc::clone(&lines) };
    let report = run_with(scenario, 1, recorded).unwrap_or_else(|violation| panic!("{violation}"));
    let lines = lines.borrow().clone();
    (lines, report)
}

fn runs(scenario: &Scenario) -> Vec<String> {
    play(scenario).0.into_iter().filter(|line| line.contains(" on l")).collect()
}

fn at(ms: u32) -> Time {
    Time::ZERO + MS * ms
}

fn scenario(lanes: &[&[usize]], models: Vec<ModelPlan>) -> Scenario {
    let lane = |(id, cores): (u16, &&[usize])| LaneShape {
        id: LaneId(id),
        cores: CoreSet::from_cores(cores.iter().copied()),
        class: SchedulingClass::Urgent,
    };
    Scenario {
        lanes: (0..).zip(lanes).map(lane).collect(),
        discipline: Discipline::Quadrant,
        tenants: Vec::new(),
        limits: Limits { stall_floor: 20 * MS, ..Limits::default() },
        models,
        unsteady: Unsteady::NONE,
        faults: Faults::NONE,
        drain_at: at(10_000),
    }
}

/// A step takes ten milliseconds, whatever its rows; nothing is random.
fn model(width: usize, rows_max: u32, traffic: Vec<Traffic>) -> ModelPlan {
    let cost = |rows| Cost { rows, width, beside: false, time: 10 * MS };
    ModelPlan {
        terms: ModelTerms {
            rows_max,
            widths: vec![width],
            lane: None,
            queue_max: 100,
            delay_max: Duration::ZERO,
            costs: vec![cost(1), cost(rows_max.max(2))],
            row_bytes: 1,
            unmet: Unmet::Refuse,
            sequences: None,
        },
        up_at: Time::ZERO,
        down_at: None,
        holding: None,
        load_fails: 0.0,
        truth: Truth { wide_gain: 1.0, ..Truth::exact(10 * MS, Duration::ZERO) },
        traffic,
    }
}

fn once(ms: u32) -> Traffic {
    Traffic::plain(Arrivals::At(vec![at(ms)]))
}

fn times(count: u32, ms: u32) -> Traffic {
    Traffic::plain(Arrivals::At((0..count).map(|_| at(ms)).collect()))
}

fn within(ms: u32, traffic: Traffic) -> Traffic {
    Traffic { objective: Some(Range::only(MS * ms)), ..traffic }
}

#[test]
fn the_more_urgent_model_overtakes() {
    let patient = model(1, 1, vec![within(500, times(3, 0))]);
    let urgent = model(1, 1, vec![within(30, once(5))]);
    let runs = runs(&scenario(&[&[0]], vec![patient, urgent]));
    assert_eq!(runs, ["0 m0 r0 on l0", "10 m1 r3 on l0", "20 m0 r1 on l0", "30 m0 r2 on l0"]);
}

#[test]
fn what_cannot_be_in_time_is_refused_on_arrival() {
    // The first runs until 10; the second would end at 20, the third is content with that.
    let plan = model(1, 1, vec![once(0), within(15, once(1)), within(30, once(2))]);
    let (lines, report) = play(&scenario(&[&[0]], vec![plan]));
    let expect = [
        "0 m0 r0 on l0",
        "1 r1 resource_exhausted",
        "10 r0 completed",
        "10 m0 r2 on l0",
        "20 r2 completed",
        "10000 drained",
    ];
    assert_eq!(lines, expect);
    let model = &report.models[0];
    assert_eq!((model.refused, model.in_time, model.with_objective), (1, 1, 2));
}

#[test]
fn a_model_that_was_measured_at_a_bad_moment_is_not_shut_out() {
    // Told ten times the truth; every request would be refused for the length of its own step.
    let soon = within(40, Traffic::plain(Arrivals::Constant { start: at(0), every: 400 * MS, count: 30 }));
    let mut plan = model(1, 1, vec![soon]);
    plan.terms.costs.iter_mut().for_each(|cost| cost.time = 100 * MS);
    let (_, report) = play(&Scenario { drain_at: at(20_000), ..scenario(&[&[0]], vec![plan]) });
    // One in three is let in to see. The first step on a lane teaches nothing; after a few more it is known.
    let model = &report.models[0];
    assert!(model.refused <= 10 && model.in_time + model.refused == 30, "{report}");
}

#[test]
fn an_expired_request_never_runs() {
    // `fifo` accepts what it cannot do. While the first runs, the second's time runs out; the third's does
    // during its step.
    let mut plan = model(1, 1, vec![once(0), within(5, once(1)), within(13, once(2))]);
    plan.terms.lane = Some(LaneId(0));
    let fifo = Scenario { discipline: Discipline::Fifo, ..scenario(&[&[0]], vec![plan]) };
    let (lines, report) = play(&fifo);
    let expect = [
        "0 m0 r0 on l0",
        "6 r1 deadline_exceeded",
        "10 r0 completed",
        "10 m0 r2 on l0",
        "15 r2 deadline_exceeded",
        "10000 drained",
    ];
    assert_eq!(lines, expect);
    assert_eq!((report.models[0].steps, report.models[0].ended("deadline_exceeded")), (2, 2));
}

#[test]
fn a_poisoned_batch_is_tried_alone_and_only_the_culprit_fails() {
    let culprit = Traffic { poisoned: 1.0, ..once(2) };
    let plan = model(1, 4, vec![once(0), once(1), culprit, once(3)]);
    let (lines, report) = play(&scenario(&[&[0]], vec![plan]));
    let expect = [
        "0 m0 r0 on l0",
        "10 r0 completed",
        "10 m0 r1 r2 r3 on l0",
        "20 m0 r1 on l0",
        "30 r1 completed",
        "30 m0 r2 on l0",
        "40 r2 internal",
        "40 m0 r3 on l0",
        "50 r3 completed",
        "10000 drained",
    ];
    assert_eq!(lines, expect);
    assert_eq!((report.models[0].ended("completed"), report.models[0].ended("internal")), (3, 1));
}

#[test]
fn a_stalled_lane_ends_its_requests_and_the_others_go_on() {
    let stalling = Traffic { stalling: 1.0, ..once(0) };
    let plan = model(1, 1, vec![stalling, once(1), once(2), once(150)]);
    let (lines, _) = play(&scenario(&[&[0], &[1]], vec![plan]));
    let expect = [
        "0 m0 r0 on l0",
        "1 m0 r1 on l1",
        "11 r1 completed",
        "11 m0 r2 on l1",
        "21 r2 completed",
        "100 l0 stalled",
        "100 r0 internal",
        "150 m0 r3 on l1",
        "160 r3 completed",
        "500 l0 recovered",
        "10000 drained",
    ];
    assert_eq!(lines, expect);
}

#[test]
fn the_queue_delay_forms_batches() {
    let delay = |ms: u32| {
        let mut plan = model(1, 4, (0..8).map(|index| once(index * 100 / 8)).collect());
        plan.terms.delay_max = MS * ms;
        let (_, report) = play(&scenario(&[&[0]], vec![plan]));
        (report.models[0].steps, report.models[0].mean_step_rows())
    };
    assert_eq!(delay(0), (8, 1.0), "slower than one step each: nobody waits");
    assert_eq!(delay(100), (2, 4.0));
}

#[test]
fn a_wide_step_is_not_starved_by_narrow_ones() {
    // Narrow steps of 10 ms, offset so that one core is always busy, would leave no gap of both cores.
    let every = |start, count| Traffic::plain(Arrivals::Constant { start: at(start), every: 10 * MS, count });
    let narrow = model(1, 1, vec![every(0, 20), every(5, 20)]);
    let wide = model(2, 1, vec![once(7)]);
    let (lines, report) = play(&scenario(&[&[0], &[1], &[0, 1]], vec![narrow, wide]));
    assert!(lines.iter().any(|line| line == "15 m1 r2 on l2"), "{lines:?}");
    assert_eq!(report.models[1].latency(1.0), 18 * MS);
}

#[test]
fn a_client_that_left_is_not_computed_for() {
    let leaving = Traffic { leaves: 1.0, leaves_after: Range::only(4 * MS), ..once(1) };
    let (lines, report) = play(&scenario(&[&[0]], vec![model(1, 1, vec![once(0), leaving])]));
    assert_eq!(lines, ["0 m0 r0 on l0", "5 r1 cancelled", "10 r0 completed", "10000 drained"]);
    assert_eq!(report.models[0].steps, 1);
}

#[test]
fn while_all_can_be_in_time_the_more_important_need_not_go_first() {
    let important = Traffic { priority: Range::only(1), ..within(900, once(2)) };
    let plan = model(1, 1, vec![once(0), within(100, once(1)), important]);
    assert_eq!(runs(&scenario(&[&[0]], vec![plan])), ["0 m0 r0 on l0", "10 m0 r1 on l0", "20 m0 r2 on l0"]);
}

#[test]
fn when_not_all_can_be_in_time_the_least_important_is_given_up() {
    let important = Traffic { priority: Range::only(1), ..within(25, once(2)) };
    let unimportant = Traffic { priority: Range::only(2_000), ..within(26, once(1)) };
    let plan = model(1, 1, vec![once(0), unimportant, important]);
    let (lines, _) = play(&scenario(&[&[0]], vec![plan]));
    let expect = [
        "0 m0 r0 on l0",
        "2 r1 resource_exhausted",
        "10 r0 completed",
        "10 m0 r2 on l0",
        "20 r2 completed",
        "10000 drained",
    ];
    assert_eq!(lines, expect);
}

#[test]
fn draining_finishes_what_came_before_and_takes_nothing_after() {
    let plan = model(1, 1, vec![times(2, 0), once(6)]);
    let (lines, _) = play(&Scenario { drain_at: at(5), ..scenario(&[&[0]], vec![plan]) });
    let expect = [
        "0 m0 r0 on l0",
        "6 r2 unavailable",
        "10 r0 completed",
        "10 m0 r1 on l0",
        "20 r1 completed",
        "20 drained",
    ];
    assert_eq!(lines, expect);
}

#[test]
fn a_model_that_goes_down_ends_what_waits_and_finishes_what_runs() {
    let mut plan = model(1, 1, vec![times(2, 1), once(9)]);
    (plan.up_at, plan.down_at) = (at(1), Some(at(5)));
    let (lines, _) = play(&scenario(&[&[0]], vec![plan]));
    let expect =
        ["1 m0 r0 on l0", "5 r1 unavailable", "9 r2 unavailable", "11 r0 completed", "10000 drained"];
    assert_eq!(lines, expect);
}

#[test]
fn a_violation_says_how_to_see_it_again() {
    struct Silent;
    impl Scheduler for Silent {
        fn on_event(&mut self, _: Time, _: Event, _: &mut Vec<Action>) {}
        fn next_deadline(&self) -> Option<Time> {
            None
        }
        fn violated_invariant(&self) -> Option<&'static str> {
            None
        }
    }
    let scenario = scenario(&[&[0]], vec![model(1, 1, vec![once(3)])]);
    let violation = run_with(&scenario, 7, Silent).unwrap_err().to_string();
    assert!(violation.starts_with("seed `7` at 0.003000000s, after Arrived("), "{violation}");
    assert!(violation.contains("the next deadline is not after an expiry"), "{violation}");
}

#[test]
fn a_core_stays_slow_or_fast_for_a_while() {
    let every = Arrivals::Constant { start: Time::ZERO, every: 50 * MS, count: 200 };
    let plan = model(1, 1, vec![Traffic::plain(every)]);
    let unsteady = Unsteady { deviation: 0.3, phase: Duration::from_secs(2) };
    let (lines, _) = play(&Scenario { unsteady, ..scenario(&[&[0]], vec![plan]) });
    let at_ms = |line: &String| line.split(' ').next().and_then(|ms| ms.parse::<u32>().ok()).unwrap();
    let of = |what: &str| lines.iter().filter(|line| line.contains(what)).map(at_ms).collect::<Vec<_>>();
    let took: Vec<u32> =
        of("completed").iter().zip(of(" on l")).map(|(ended, began)| ended - began).collect();
    let changes = took.windows(2).filter(|pair| pair[0] != pair[1]).count();
    // Ten seconds of phases of two.
    assert!((1..30).contains(&changes) && took.len() == 200, "{changes} changes: {took:?}");
}
