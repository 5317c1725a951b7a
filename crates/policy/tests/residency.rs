//! Models that come and go, by hand: who is loaded, who makes room, who waits and who is refused.

use std::time::Duration;

use quadrant_policy::{
    Action, Cost, Discipline, Event, Holding, LaneShape, Limits, Loaded, MemoryBudget, ModelTerms, Policy,
    Purpose, Residency, SequenceTerms, StepOutcome, StepReport, Unmet,
};
use quadrant_types::{
    CoreSet, Ending, Error, ErrorCode, LaneId, ModelId, Objective, Priority, Reason, Request, RequestId,
    SchedulingClass, ShapeId, StepId, TenantId, Time, Work,
};

const MS: Duration = Duration::from_millis(1);

/// A policy with 100 bytes for models, and all that it asked for since it was last asked, in short words.
struct Bench {
    policy: Policy,
    said: Vec<Action>,
    requests: u64,
}

impl Bench {
    fn new() -> Self {
        Self::loading(1)
    }

    /// One that loads so many models at the same time.
    fn loading(loads_max: usize) -> Self {
        let lane =
            LaneShape { id: LaneId(0), cores: CoreSet::from_cores([0]), class: SchedulingClass::Urgent };
        // A quarter of the budget is kept for inputs.
        let memory = MemoryBudget { bytes: 160, process_bytes: 20 };
        let limits = Limits { memory, loads_max, ..Limits::default() };
        Self { policy: Policy::new(vec![lane], limits, Discipline::Quadrant), said: Vec::new(), requests: 0 }
    }

    fn at(&mut self, now_ms: u32, event: Event) -> Vec<String> {
        self.policy.on_event(at(now_ms), event, &mut self.said);
        assert_eq!(self.policy.violated_invariant(), None);
        self.said.drain(..).map(|action| in_short(&action)).collect()
    }

    /// A model that is loaded on demand in 10 ms.
    fn known(&mut self, model: u32, bytes: u64) {
        self.known_as(model, bytes, Residency::OnDemand { idle_after: None });
    }

    fn known_as(&mut self, model: u32, bytes: u64, residency: Residency) {
        let holding = Holding { bytes, load_bytes: bytes, load_time: 10 * MS, residency, objective: None };
        assert!(self.at(0, Event::Known(ModelId(model), terms(), holding)).is_empty());
    }

    fn arrives(&mut self, now_ms: u32, model: u32) -> Vec<String> {
        self.arrives_for(now_ms, model, Objective::BestEffort)
    }

    fn arrives_for(&mut self, now_ms: u32, model: u32, objective: Objective) -> Vec<String> {
        let request = self.request(now_ms, model, objective);
        self.at(now_ms, Event::Arrived(request))
    }

    fn request(&mut self, now_ms: u32, model: u32, objective: Objective) -> Request {
        let id = RequestId(self.requests);
        self.requests += 1;
        Request {
            id,
            model: ModelId(model),
            tenant: TenantId(0),
            priority: Priority::default(),
            arrived: at(now_ms),
            objective,
            work: Work::Once { rows: 1, shape: ShapeId(0), bytes_in: 1 },
        }
    }

    fn loaded(&mut self, now_ms: u32, model: u32) -> Vec<String> {
        let bytes = self.policy.ledger().of(Purpose::Model(ModelId(model)));
        let loaded = Loaded { terms: terms(), bytes, took: 10 * MS };
        self.at(now_ms, Event::LoadEnded(ModelId(model), Ok(loaded)))
    }

    fn unloaded(&mut self, now_ms: u32, model: u32) -> Vec<String> {
        self.at(now_ms, Event::Unloaded(ModelId(model)))
    }

    fn step_ends(&mut self, now_ms: u32, step: u64) -> Vec<String> {
        self.step_ends_with(now_ms, step, StepOutcome::Completed)
    }

    fn step_ends_with(&mut self, now_ms: u32, step: u64, outcome: StepOutcome) -> Vec<String> {
        let core_time = MS;
        let report =
            StepReport { step: StepId(step), began: at(now_ms), ended: at(now_ms), core_time, outcome };
        self.at(now_ms, Event::Ended(report))
    }

    /// Makes a model resident that has served once; `step` is the step's number.
    fn served(&mut self, now_ms: u32, model: u32, step: u64) {
        assert_eq!(self.arrives(now_ms, model), [format!("load m{model}")]);
        let request = self.requests - 1;
        assert_eq!(self.loaded(now_ms, model), [format!("s{step} runs r{request}")]);
        assert_eq!(self.step_ends(now_ms, step), [format!("r{request} completed")]);
    }
}

fn terms() -> ModelTerms {
    ModelTerms {
        rows_max: 1,
        widths: vec![1],
        lane: None,
        queue_max: 4,
        delay_max: Duration::ZERO,
        costs: vec![Cost { rows: 1, width: 1, beside: false, time: MS }],
        row_bytes: 1,
        unmet: Unmet::Refuse,
        sequences: None,
    }
}

fn at(ms: u32) -> Time {
    Time::ZERO + MS * ms
}

fn in_short(action: &Action) -> String {
    match action {
        Action::Run(step) => {
            let requests: Vec<_> = step.requests.iter().map(ToString::to_string).collect();
            format!("{} runs {}", step.id, requests.join(" "))
        }
        Action::End(id, Ending::Completed) => format!("{id} completed"),
        Action::End(id, Ending::Failed(error)) => {
            let reason = error.reason.map_or(error.code.name(), Reason::name);
            format!("{id} {reason}")
        }
        Action::Load(model) => format!("load {model}"),
        Action::Unload(model) => format!("unload {model}"),
        Action::LoadRefused(model, error) => format!("no {model}: {error}"),
        Action::LaneStalled(..) | Action::LaneRecovered(_) => "a stall".to_owned(),
        Action::Drained => "drained".to_owned(),
    }
}

#[test]
fn a_request_for_an_absent_model_waits_for_it() {
    let mut bench = Bench::new();
    bench.known(1, 40);
    assert_eq!(bench.arrives(0, 1), ["load m1"]);
    assert!(bench.arrives(2, 1).is_empty());
    assert_eq!(bench.policy.ledger().of(Purpose::Model(ModelId(1))), 40);
    assert_eq!(bench.loaded(10, 1), ["s0 runs r0"]);
    assert_eq!(bench.step_ends(11, 0), ["r0 completed", "s1 runs r1"]);
    assert_eq!(bench.arrives(11, 1), Vec::<String>::new());
    // The queue of an absent model is as long as that of any other.
    bench.known(2, 10);
    assert_eq!(bench.arrives(12, 2), ["load m2"]);
    (0..3).for_each(|_| assert!(bench.arrives(12, 2).is_empty()));
    assert_eq!(bench.arrives(12, 2), ["r7 queue_full"]);
}

#[test]
fn the_one_that_is_missed_least_makes_room() {
    let mut bench = Bench::new();
    for (step, model) in [(0, 1), (1, 2)] {
        bench.known(model, 40);
        bench.served(0, model, step);
    }
    // The first is used once more.
    assert_eq!(bench.arrives(1, 1), ["s2 runs r2"]);
    assert_eq!(bench.step_ends(2, 2), ["r2 completed"]);
    bench.known(3, 40);
    assert_eq!(bench.arrives(3, 3), ["unload m2"]);
    assert_eq!(bench.unloaded(4, 2), ["load m3"]);
    assert_eq!(bench.loaded(14, 3), ["s3 runs r3"]);
    // One that works is not unloaded: the other goes although it is missed more.
    assert_eq!(bench.arrives(15, 2), ["unload m1"]);
}

#[test]
fn the_busy_make_room_when_nobody_else_can() {
    let mut bench = Bench::new();
    bench.known(1, 60);
    bench.served(0, 1, 0);
    bench.known(2, 60);
    assert_eq!(bench.arrives(1, 1), ["s1 runs r1"]);
    assert!(bench.arrives(1, 2).is_empty(), "m1 works, and may be done soon");
    assert_eq!(bench.policy.next_deadline(), Some(at(201)));
    assert!(bench.arrives(100, 1).is_empty());
    assert!(bench.at(201, Event::Tick).is_empty());
    assert!(bench.arrives(202, 1).is_empty(), "it waits outside now");
    assert_eq!(bench.step_ends(203, 1), ["r1 completed", "s2 runs r3"]);
    assert_eq!(bench.step_ends(204, 2), ["r3 completed", "unload m1"]);
    assert_eq!(bench.unloaded(205, 1), ["load m2"]);
    assert_eq!(bench.loaded(215, 2), ["s3 runs r2"]);
    assert_eq!(bench.step_ends(216, 3), ["r2 completed", "unload m2"]);
    assert_eq!(bench.unloaded(217, 2), ["load m1"]);
    assert_eq!(bench.loaded(227, 1), ["s4 runs r4"]);
}

#[test]
fn a_model_that_generates_makes_room_though_more_is_asked_of_it() {
    let mut bench = Bench::new();
    let generates = |bench: &mut Bench, now_ms| {
        let work = Work::Generate { prompt: 3, new_max: 9, bytes_in: 1 };
        let request = Request { work, ..bench.request(now_ms, 1, Objective::BestEffort) };
        bench.at(now_ms, Event::Sequence(request, [].into()))
    };
    let iterates = |bench: &mut Bench, now_ms, step, over: &[u64]| {
        let over = over.iter().copied().map(RequestId).collect();
        bench.step_ends_with(now_ms, step, StepOutcome::Iterated(over))
    };
    let sequences = SequenceTerms { page_tokens: 4, pages: 10, tokens_max: 40, thousand_keys: MS };
    let terms = ModelTerms { sequences: Some(sequences), ..terms() };
    let loaded = |bench: &mut Bench, now_ms| {
        let loaded = Loaded { terms: terms.clone(), bytes: 60, took: 10 * MS };
        bench.at(now_ms, Event::LoadEnded(ModelId(1), Ok(loaded)))
    };
    let residency = Residency::OnDemand { idle_after: None };
    let holding = Holding { bytes: 60, load_bytes: 60, load_time: 10 * MS, residency, objective: None };
    assert!(bench.at(0, Event::Known(ModelId(1), terms.clone(), holding)).is_empty());
    bench.known(2, 60);
    assert_eq!(generates(&mut bench, 0), ["load m1"]);
    assert_eq!(loaded(&mut bench, 10), ["s0 runs r0"]);
    assert!(bench.arrives(11, 2).is_empty(), "m1 works, and may be done soon");
    assert!(bench.at(211, Event::Tick).is_empty());
    assert!(generates(&mut bench, 212).is_empty(), "it waits outside");
    assert_eq!(iterates(&mut bench, 213, 0, &[]), ["s1 runs r0"]);
    assert_eq!(iterates(&mut bench, 214, 1, &[0]), ["r0 completed", "unload m1"]);
    assert_eq!(bench.unloaded(215, 1), ["load m2"]);
    assert_eq!(bench.loaded(225, 2), ["s2 runs r1"]);
    assert_eq!(bench.step_ends(226, 2), ["r1 completed", "unload m2"]);
    assert_eq!(bench.unloaded(227, 2), ["load m1"]);
    assert_eq!(loaded(&mut bench, 237), ["s3 runs r2"]);
}

#[test]
fn what_can_never_fit_is_refused_with_the_numbers() {
    let mut bench = Bench::new();
    bench.known_as(1, 60, Residency::Pinned);
    assert_eq!(bench.at(0, Event::LoadWanted(ModelId(1))), ["load m1"]);
    assert!(bench.loaded(1, 1).is_empty());
    bench.known(2, 41);
    assert_eq!(bench.arrives(2, 2), ["r0 memory_full"]);
    let said = bench.at(3, Event::LoadWanted(ModelId(2)));
    assert_eq!(
        said,
        ["no m2: the model needs `41` bytes, and at most `40` of the budget of `160` can be had for it"]
    );
    bench.known(3, 40);
    assert_eq!(bench.arrives(4, 3), ["load m3"]);
}

#[test]
fn a_deadline_that_the_load_cannot_meet_is_refused_and_the_model_loaded() {
    let mut bench = Bench::new();
    bench.known(1, 40);
    assert_eq!(bench.arrives_for(0, 1, Objective::EndBy(at(5))), ["r0 deadline_unmeetable", "load m1"]);
    // The next may wait for what is left.
    assert!(bench.arrives_for(4, 1, Objective::EndBy(at(30))).is_empty());
    // A promise of the model's refuses nobody: who waited for the load is late.
    assert!(bench.arrives_for(4, 1, Objective::Target { by: at(6), until: Time::MAX }).is_empty());
    assert_eq!(bench.loaded(11, 1), ["s0 runs r1"]);
    assert_eq!(bench.step_ends(12, 0), ["r1 completed", "s1 runs r2"]);
}

#[test]
fn several_are_loaded_at_the_same_time() {
    let mut bench = Bench::loading(2);
    (1..=4).for_each(|model| bench.known(model, 20));
    assert_eq!(bench.arrives(0, 1), ["load m1"]);
    assert_eq!(bench.arrives(3, 2), ["load m2"]);
    assert!(bench.arrives(4, 3).is_empty());
    // The third begins when the first is over, the fourth when the second is.
    assert_eq!(bench.arrives_for(4, 3, Objective::EndBy(at(19))), ["r3 deadline_unmeetable"]);
    assert!(bench.arrives_for(4, 3, Objective::EndBy(at(21))).is_empty());
    assert_eq!(bench.arrives_for(4, 4, Objective::EndBy(at(22))), ["r5 deadline_unmeetable"]);
    assert!(bench.arrives_for(4, 4, Objective::EndBy(at(24))).is_empty());
    // They end in any order.
    assert_eq!(bench.loaded(9, 2), ["s0 runs r1", "load m3"]);
    assert_eq!(bench.at(9, Event::ModelDown(ModelId(1))), ["r0 unavailable", "load m4"]);
    assert!(bench.loaded(12, 1).is_empty(), "it was forgotten meanwhile");
}

#[test]
fn what_waits_for_the_room_of_a_model_that_is_being_loaded_is_not_refused() {
    let mut bench = Bench::loading(2);
    bench.known(1, 60);
    bench.known(2, 60);
    assert_eq!(bench.arrives(0, 1), ["load m1"]);
    assert!(bench.arrives(1, 2).is_empty());
    assert!(bench.at(201, Event::Tick).is_empty(), "it may go once it is there");
    assert_eq!(bench.loaded(300, 1), ["s0 runs r0"]);
    assert_eq!(bench.step_ends(301, 0), ["r0 completed", "unload m1"]);
    assert_eq!(bench.unloaded(302, 1), ["load m2"]);
    assert_eq!(bench.loaded(312, 2), ["s1 runs r1"]);
}

#[test]
fn a_model_that_does_not_load_is_left_alone_for_a_while() {
    let mut bench = Bench::new();
    bench.known(1, 40);
    let broken = || Err(Error::new(ErrorCode::Unavailable, "the file is broken"));
    assert_eq!(bench.arrives(0, 1), ["load m1"]);
    assert_eq!(bench.at(10, Event::LoadEnded(ModelId(1), broken())), ["r0 unavailable"]);
    assert_eq!(bench.policy.ledger().of(Purpose::Model(ModelId(1))), 0);
    assert_eq!(bench.arrives(500, 1), ["r1 unavailable"]);
    assert_eq!(bench.arrives(1_011, 1), ["load m1"]);
    assert_eq!(bench.at(1_020, Event::LoadEnded(ModelId(1), broken())), ["r2 unavailable"]);
    assert_eq!(bench.arrives(3_000, 1), ["r3 unavailable"], "twice as long");
    // Who says so is obeyed at once.
    assert_eq!(bench.at(3_000, Event::LoadWanted(ModelId(1))), ["load m1"]);
}

#[test]
fn an_unused_model_goes_and_a_told_one_goes_when_it_is_done() {
    let mut bench = Bench::new();
    bench.known_as(1, 40, Residency::OnDemand { idle_after: Some(50 * MS) });
    bench.served(0, 1, 0);
    assert_eq!(bench.policy.next_deadline(), Some(at(50)));
    assert_eq!(bench.arrives(30, 1), ["s1 runs r1"]);
    assert_eq!(bench.step_ends(31, 1), ["r1 completed"]);
    assert!(bench.at(50, Event::Tick).is_empty());
    assert_eq!(bench.policy.next_deadline(), Some(at(80)));
    assert_eq!(bench.at(80, Event::Tick), ["unload m1"]);
    assert!(bench.unloaded(81, 1).is_empty());
    bench.known_as(2, 40, Residency::Pinned);
    assert_eq!(bench.at(90, Event::LoadWanted(ModelId(2))), ["load m2"]);
    assert!(bench.loaded(91, 2).is_empty());
    assert_eq!(bench.arrives(92, 2), ["s2 runs r2"]);
    assert!(bench.at(92, Event::UnloadWanted(ModelId(2))).is_empty());
    assert_eq!(bench.arrives(92, 2), ["r3 unavailable"]);
    assert_eq!(bench.step_ends(93, 2), ["r2 completed", "unload m2"]);
    assert!(bench.unloaded(94, 2).is_empty());
    assert_eq!(bench.arrives(95, 2), ["r4 unavailable"], "it stays away until it is loaded again");
    assert_eq!(bench.at(96, Event::LoadWanted(ModelId(2))), ["load m2"]);
}

#[test]
fn what_nobody_reserved_is_made_good_for() {
    let mut bench = Bench::new();
    bench.known(1, 40);
    bench.served(0, 1, 0);
    // 20 for the process, 40 for inputs, 40 for the model.
    assert!(bench.at(1, Event::Resident(150)).is_empty());
    assert_eq!((bench.policy.ledger().unaccounted(), bench.policy.ledger().free()), (50, 10));
    assert_eq!(bench.at(2, Event::Resident(161)), ["unload m1"]);
    assert!(bench.at(3, Event::Resident(169)).is_empty());
    bench.known(2, 10);
    assert_eq!(bench.at(4, Event::Resident(200)), Vec::<String>::new());
    assert_eq!(bench.arrives(4, 2), ["r1 memory_full"], "more than a twentieth above the budget");
    bench.unloaded(5, 1);
    assert!(bench.at(6, Event::Resident(100)).is_empty());
    assert_eq!(bench.arrives(7, 2), ["load m2"]);
}

#[test]
fn a_load_gets_its_share_of_a_busy_core() {
    let mut bench = Bench::new();
    bench.known_as(1, 40, Residency::Pinned);
    assert_eq!(bench.at(0, Event::LoadWanted(ModelId(1))), ["load m1"]);
    assert!(bench.loaded(0, 1).is_empty());
    bench.known(2, 40);
    assert_eq!(bench.arrives(0, 2), ["load m2"]);
    // Requests with a deadline come without end; each takes a millisecond.
    let (mut idle, mut running) = (0, None);
    for now in 0..400 {
        let mut said = bench.arrives_for(now, 1, Objective::EndBy(at(now + 50)));
        if let Some(step) = running.take() {
            said.extend(bench.step_ends(now, step));
        }
        let step = said.iter().find_map(|text| text.strip_prefix('s')?.split_once(" runs ")?.0.parse().ok());
        running = step;
        idle += u32::from(running.is_none());
    }
    // A twentieth of the time, once it has been earned.
    assert!((10..=40).contains(&idle), "{idle} of 400 ms");
}
