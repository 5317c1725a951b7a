//! Any sequence of events at all: nothing is lost, nothing is answered twice, the books stay right.
//!
//! The simulator plays sensible worlds; here the world is not sensible (steps end in any order and long
//! after they should, models come and go at any moment), and what fails is shrunk to a few events.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use quadrant_policy::{
    Action, Cost, Discipline, Event, LaneShape, Limits, ModelTerms, Policy, Step, StepOutcome, StepReport,
    Unmet,
};
use quadrant_types::{
    CoreSet, Error, ErrorCode, LaneId, ModelId, Objective, Priority, Request, RequestId, SchedulingClass,
    ShapeId, StepId, TenantId, Time, Work,
};

/// One thing to happen; numbers are taken modulo what there is.
#[derive(Clone, Debug)]
enum Happening {
    Arrive {
        model: u32,
        rows: u32,
        shape: u32,
        tenant: u32,
        priority: u32,
        within_us: Option<u64>,
        hard: bool,
    },
    Leave(usize),
    StepEnds {
        index: usize,
        fails: bool,
    },
    Up {
        rows_max: u32,
        widths: Vec<usize>,
        queue_max: usize,
        delay_us: u64,
        demotes: bool,
    },
    Down(u32),
    TickAtDeadline,
    Drain,
}

fn happening() -> impl Strategy<Value = Happening> {
    let who = (0..4_u32, 0..3_u32, 0..3_u32);
    let what = (0..6_u32, 0..3_u32, proptest::option::of(0..3_000_u64), any::<bool>());
    let arrive = (who, what).prop_map(|((model, tenant, priority), (rows, shape, within_us, hard))| {
        Happening::Arrive { model, rows, shape, tenant, priority, within_us, hard }
    });
    let widths = proptest::sample::select(vec![vec![1], vec![2], vec![1, 2], vec![1, 3]]);
    let delay = prop_oneof![Just(0), 0..2_000_u64];
    let up = (1..6_u32, widths, 0..6_usize, delay, any::<bool>()).prop_map(
        |(rows_max, widths, queue_max, delay_us, demotes)| Happening::Up {
            rows_max,
            widths,
            queue_max,
            delay_us,
            demotes,
        },
    );
    prop_oneof![
        12 => arrive,
        2 => any::<usize>().prop_map(Happening::Leave),
        8 => (any::<usize>(), any::<bool>()).prop_map(|(index, fails)| Happening::StepEnds { index, fails }),
        2 => up,
        1 => (0..4_u32).prop_map(Happening::Down),
        4 => Just(Happening::TickAtDeadline),
        1 => Just(Happening::Drain),
    ]
}

/// Happenings, each with the microseconds since the one before.
fn happenings() -> impl Strategy<Value = Vec<(u64, Happening)>> {
    let first = Happening::Up { rows_max: 3, widths: vec![1], queue_max: 5, delay_us: 200, demotes: false };
    let rest = proptest::collection::vec((prop_oneof![Just(0), 0..1_500_u64], happening()), 1..80);
    rest.prop_map(move |rest| std::iter::once((0, first.clone())).chain(rest).collect())
}

/// The lanes of a device: single cores, both, or overlapping; with idle-class twins or without.
fn lanes() -> impl Strategy<Value = Vec<LaneShape>> {
    let sets: Vec<Vec<&[usize]>> = vec![
        vec![&[0]],
        vec![&[0], &[1]],
        vec![&[0, 1], &[0], &[1]],
        vec![&[0], &[1], &[2], &[0, 1], &[1, 2], &[0, 1, 2]],
    ];
    (proptest::sample::select(sets), any::<bool>()).prop_map(|(sets, with_idle)| {
        let urgent = sets.iter().map(|cores| (*cores, SchedulingClass::Urgent));
        let narrow = sets.iter().filter(|cores| with_idle && cores.len() == 1);
        let all = urgent.chain(narrow.map(|cores| (*cores, SchedulingClass::Idle)));
        let lane = |(id, (cores, class)): (u16, (&[usize], _))| LaneShape {
            id: LaneId(id),
            cores: CoreSet::from_cores(cores.iter().copied()),
            class,
        };
        (0..).zip(all).map(lane).collect()
    })
}

fn disciplines() -> impl Strategy<Value = Discipline> {
    prop_oneof![
        4 => Just(Discipline::Quadrant),
        1 => Just(Discipline::Fifo),
        1 => Just(Discipline::Clockwork),
    ]
}

/// The scheduler with a world around it that keeps count.
struct World {
    policy: Policy,
    now: Time,
    /// Every request so far, and how often it ended.
    ends: BTreeMap<RequestId, u32>,
    requests: BTreeMap<RequestId, Request>,
    running: Vec<Step>,
    stalled: BTreeSet<StepId>,
    models: u32,
    drains: u32,
    log: Vec<(Time, Action)>,
}

impl World {
    fn new(lanes: Vec<LaneShape>, discipline: Discipline) -> Self {
        let limits = Limits {
            queued_requests_max: 8,
            bytes_in_max: 40,
            wait_max: Duration::from_millis(4),
            stall_factor: 3,
            stall_floor: Duration::from_micros(700),
            best_effort_floor_permille: 200,
        };
        Self {
            policy: Policy::new(lanes, limits, discipline),
            now: Time::ZERO,
            ends: BTreeMap::new(),
            requests: BTreeMap::new(),
            running: Vec::new(),
            stalled: BTreeSet::new(),
            models: 0,
            drains: 0,
            log: Vec::new(),
        }
    }

    fn event(&mut self, event: Event) -> Result<(), TestCaseError> {
        let mut actions = Vec::new();
        self.policy.on_event(self.now, event, &mut actions);
        prop_assert_eq!(self.policy.violated_invariant(), None);
        prop_assert!(self.policy.next_deadline().is_none_or(|time| time > self.now), "due in the past");
        for action in &actions {
            match action {
                Action::End(id, _) => *self.ends.entry(*id).or_default() += 1,
                Action::Run(step) => self.begin(step)?,
                Action::LaneStalled(_, step) => {
                    prop_assert!(self.stalled.insert(*step), "{step} stalled twice");
                }
                Action::LaneRecovered(_) => {}
                Action::Drained => {
                    let left = self.running.iter().any(|step| !self.stalled.contains(&step.id));
                    prop_assert!(!left && self.ends.len() == self.requests.len(), "drained too early");
                    self.drains += 1;
                }
            }
        }
        prop_assert!(self.ends.values().all(|count| *count <= 1), "ended twice: {:?}", self.ends);
        prop_assert!(self.ends.keys().all(|id| self.requests.contains_key(id)), "a stranger ended");
        self.log.extend(actions.into_iter().map(|action| (self.now, action)));
        Ok(())
    }

    fn begin(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let members: Vec<_> = step.requests.iter().map(|id| self.requests[id]).collect();
        prop_assert!(!members.is_empty());
        prop_assert!(step.requests.iter().all(|id| !self.ends.contains_key(id)), "{step:?} after an end");
        let shape = |request: &Request| {
            let Work::Once { shape, .. } = request.work;
            (request.model, shape)
        };
        prop_assert!(members.iter().all(|member| shape(member) == shape(&members[0])), "mixed: {members:?}");
        self.running.push(step.clone());
        Ok(())
    }

    fn happen(&mut self, after_us: u64, happening: &Happening) -> Result<(), TestCaseError> {
        self.now = self.now + Duration::from_micros(after_us);
        match *happening {
            Happening::Arrive { model, rows, shape, tenant, priority, within_us, hard } => {
                let objective = within_us.map_or(Objective::BestEffort, |within| {
                    let by = self.now + Duration::from_micros(within);
                    if hard { Objective::EndBy(by) } else { Objective::Target { by, until: Time::MAX } }
                });
                let request = Request {
                    id: RequestId(self.requests.len() as u64),
                    model: ModelId(model),
                    tenant: TenantId(tenant),
                    priority: Priority(priority),
                    arrived: self.now,
                    objective,
                    work: Work::Once { rows, shape: ShapeId(shape), bytes_in: u64::from(rows) * 2 },
                };
                self.requests.insert(request.id, request);
                self.event(Event::Arrived(request))
            }
            Happening::Leave(index) => {
                self.event(Event::Left(RequestId((index % (self.requests.len() + 1)) as u64)))
            }
            Happening::StepEnds { index, fails } => self.step_ends(index, fails),
            Happening::Up { rows_max, ref widths, queue_max, delay_us, demotes } => {
                let (cost, delay_max) = (Duration::from_micros(300), Duration::from_micros(delay_us));
                let terms = ModelTerms {
                    rows_max,
                    widths: widths.clone(),
                    lane: None,
                    queue_max,
                    delay_max,
                    costs: vec![Cost { rows: 1, width: 1, beside: false, time: cost }],
                    row_bytes: 2,
                    unmet: if demotes { Unmet::Demote } else { Unmet::Refuse },
                };
                self.models += 1;
                self.event(Event::ModelUp(ModelId(self.models - 1), terms))
            }
            Happening::Down(model) => self.event(Event::ModelDown(ModelId(model))),
            Happening::TickAtDeadline => {
                let Some(deadline) = self.policy.next_deadline() else { return Ok(()) };
                self.now = self.now.max(deadline);
                self.event(Event::Tick)
            }
            Happening::Drain => self.event(Event::Drain),
        }
    }

    fn step_ends(&mut self, index: usize, fails: bool) -> Result<(), TestCaseError> {
        if self.running.is_empty() {
            return Ok(());
        }
        let step = self.running.swap_remove(index % self.running.len()).id;
        let outcome = if fails {
            StepOutcome::Failed(Error::new(ErrorCode::Internal, "broken"))
        } else {
            StepOutcome::Completed
        };
        self.event(Event::Ended(StepReport {
            step,
            began: self.now,
            ended: self.now,
            core_time: Duration::ZERO,
            outcome,
        }))
    }

    /// Drains, and lets everything end that still runs.
    fn finish(&mut self) -> Result<(), TestCaseError> {
        self.event(Event::Drain)?;
        for _ in 0..1_000 {
            if !self.running.is_empty() {
                self.step_ends(0, false)?;
            } else if self.policy.next_deadline().is_some() {
                self.happen(0, &Happening::TickAtDeadline)?;
            } else {
                break;
            }
        }
        prop_assert_eq!(self.ends.len(), self.requests.len(), "every request ends");
        prop_assert_eq!(self.drains, 1);
        Ok(())
    }
}

fn play(
    lanes: &[LaneShape],
    discipline: Discipline,
    happenings: &[(u64, Happening)],
) -> Result<World, TestCaseError> {
    let mut world = World::new(lanes.to_vec(), discipline);
    for (after_us, happening) in happenings {
        world.happen(*after_us, happening)?;
    }
    world.finish()?;
    Ok(world)
}

/// Failures are told, not kept in a file: the seed that matters belongs into a case by hand.
fn config() -> ProptestConfig {
    ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn every_request_ends_exactly_once_whatever_happens(
        lanes in lanes(), discipline in disciplines(), happenings in happenings(),
    ) {
        play(&lanes, discipline, &happenings)?;
    }

    #[test]
    fn the_same_events_give_the_same_actions(
        lanes in lanes(), discipline in disciplines(), happenings in happenings(),
    ) {
        let (one, other) = (play(&lanes, discipline, &happenings)?, play(&lanes, discipline, &happenings)?);
        prop_assert_eq!(one.log, other.log);
    }
}
