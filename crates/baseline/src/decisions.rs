//! What the scheduler costs: the time of each of its decisions with many models and a long queue, and how
//! many requests a second are simulated.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use quadrant_policy::{
    Action, Cost, Discipline, Event, LaneShape, Limits, ModelTerms, Policy, Step, StepOutcome, StepReport,
    Unmet,
};
use quadrant_sim::{Experiment, Scenario, Served, Truth, Unsteady, run, run_unchecked};
use quadrant_types::{
    CoreSet, LaneId, ModelId, Objective, Priority, Request, RequestId, SchedulingClass, ShapeId, TenantId,
    Time, Work,
};
use serde_json::json;

use crate::say;

/// How much to measure.
#[derive(Args, Debug)]
pub(crate) struct DecisionArgs {
    /// Numbers of models to measure at.
    #[arg(long, value_delimiter = ',', default_value = "10,1000")]
    models: Vec<u32>,
    /// Requests that wait all the while.
    #[arg(long, default_value_t = 100_000)]
    queued: usize,
    /// Events that are timed.
    #[arg(long, default_value_t = 300_000)]
    events: usize,
}

/// The time between arrivals.
const EVERY: Duration = Duration::from_micros(100);

/// Of so many models one has long steps, where there is an overload.
const LONG_EVERY: u32 = 20;
/// Arrivals in [`EVERY`], about half as many again as can be served.
const OVERLOAD: f64 = 0.6;

/// Measures, and prints a line of JSON for each number of models: with a long queue that can all be served in
/// time, and with an overload of tight deadlines, where requests are refused and given up and long steps are
/// preempted.
pub(crate) fn decisions(args: &DecisionArgs) -> Result<()> {
    for models in &args.models {
        let mut world = World::new(*models, false);
        while world.queued() < args.queued {
            world.arrive();
        }
        world.times.clear();
        while world.times.len() < args.events {
            world.now = world.now + EVERY;
            world.end_steps();
            // As many come as go.
            while world.queued() < args.queued {
                world.arrive();
            }
        }
        tell(*models, "long queue", &mut world);
    }
    for models in &args.models {
        let mut world = World::new(*models, true);
        while world.times.len() < args.events {
            world.now = world.now + EVERY;
            world.end_steps();
            if world.random.f64() < OVERLOAD {
                let within = Duration::from_millis(world.random.u64(20..400));
                world.arrive_within(within);
            }
        }
        tell(*models, "overload", &mut world);
    }
    Ok(())
}

fn tell(models: u32, what: &str, world: &mut World) {
    world.times.sort_unstable();
    let at = |share: f64| world.times[(world.times.len() as f64 * share) as usize] as f64 / 1e3;
    let result = json!({
        "what": what, "models": models, "queued": world.queued(), "events": world.times.len(),
        "p50_us": at(0.5), "p99_us": at(0.99), "p999_us": at(0.999),
    });
    say(&result.to_string());
}

/// A scheduler with a device that takes exactly as long as predicted.
struct World {
    policy: Policy,
    models: u32,
    now: Time,
    running: BTreeMap<(Time, u64), Step>,
    random: fastrand::Rng,
    next_id: u64,
    waiting: usize,
    actions: Vec<Action>,
    /// Nanoseconds of each event.
    times: Vec<u64>,
}

impl World {
    fn new(models: u32, some_are_long: bool) -> Self {
        let lanes = |class| (0..2).map(move |core| (CoreSet::from_cores([core]), class));
        let wide = (CoreSet::from_cores([0, 1]), SchedulingClass::Urgent);
        let all = lanes(SchedulingClass::Urgent).chain([wide]).chain(lanes(SchedulingClass::Idle));
        let lanes =
            (0..).zip(all).map(|(id, (cores, class))| LaneShape { id: LaneId(id), cores, class }).collect();
        let limits = Limits { queued_requests_max: usize::MAX, bytes_in_max: u64::MAX, ..Limits::default() };
        let mut world = Self {
            policy: Policy::new(lanes, limits, Discipline::Quadrant),
            models,
            now: Time::ZERO,
            running: BTreeMap::new(),
            random: fastrand::Rng::with_seed(1),
            next_id: 0,
            waiting: 0,
            actions: Vec::new(),
            times: Vec::new(),
        };
        for model in 0..models {
            let long = some_are_long && model % LONG_EVERY == 0;
            let one = Duration::from_micros(if long { 5_000 } else { 100 + world.random.u64(0..300) });
            let cost =
                |rows: u32, width| Cost { rows, width, beside: false, time: one * rows / width as u32 };
            let terms = ModelTerms {
                rows_max: 2,
                widths: vec![1, 2],
                lane: None,
                queue_max: usize::MAX,
                delay_max: Duration::ZERO,
                costs: vec![cost(1, 1), cost(2, 1), cost(1, 2), cost(2, 2)],
                row_bytes: 1,
                unmet: Unmet::Refuse,
                sequences: None,
            };
            world.event(Event::ModelUp(ModelId(model), terms));
        }
        world
    }

    fn queued(&self) -> usize {
        self.waiting
    }

    /// Half of the requests have a deadline, half a minute or so away; the others are twenty tenants'.
    fn arrive(&mut self) {
        let within = Duration::from_millis(self.random.u64(20_000..59_000));
        let urgent = self.random.bool();
        self.come(if urgent { Objective::EndBy(self.now + within) } else { Objective::BestEffort });
    }

    fn arrive_within(&mut self, within: Duration) {
        self.come(Objective::EndBy(self.now + within));
    }

    fn come(&mut self, objective: Objective) {
        let request = Request {
            id: RequestId(self.next_id),
            model: ModelId(self.random.u32(0..self.models)),
            tenant: TenantId(self.random.u32(0..20)),
            priority: Priority(self.random.u32(1..4)),
            arrived: self.now,
            objective,
            work: Work::Once { rows: 1, shape: ShapeId(0), bytes_in: 1 },
        };
        self.next_id += 1;
        self.waiting += 1;
        self.event(Event::Arrived(request));
    }

    fn end_steps(&mut self) {
        while let Some(entry) = self.running.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let ((ended, _), step) = entry.remove_entry();
            let began = ended - step.predicted;
            self.event(Event::Ended(StepReport {
                step: step.id,
                began,
                ended,
                core_time: step.predicted,
                outcome: StepOutcome::Completed,
            }));
        }
    }

    fn event(&mut self, event: Event) {
        let began = now();
        self.policy.on_event(self.now, event, &mut self.actions);
        self.times.push(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX));
        for action in self.actions.drain(..) {
            match action {
                Action::Run(step) => {
                    self.waiting -= step.requests.len();
                    self.running.insert((self.now + step.predicted, step.id.0), step);
                }
                Action::End(_, quadrant_types::Ending::Failed(_)) => self.waiting -= 1,
                Action::End(..)
                | Action::Load(_)
                | Action::Unload(_)
                | Action::LoadRefused(..)
                | Action::LaneStalled(..)
                | Action::LaneRecovered(_)
                | Action::Drained => {}
            }
        }
    }
}

/// Measures simulated requests a second with the checkers off and on, and prints a line of JSON.
pub(crate) fn simulation() -> Result<()> {
    let ms = |value: f64| Duration::from_secs_f64(value / 1e3);
    let served = |(name, step_ms): (&str, f64)| Served {
        name: name.to_owned(),
        truth: Truth {
            noise: 0.06,
            sensitivity: 0.05,
            pressure: 1.0,
            ..Truth::exact(ms(step_ms), Duration::ZERO)
        },
        rows_max: 1,
        wide: true,
        objective: Some(ms(2.5 * step_ms + 20.0)),
        priority: Priority::default(),
        share: 1.0,
        delay_max: Duration::ZERO,
        overhead: Duration::ZERO,
        tenants: Vec::new(),
        generation: None,
    };
    let models = [("a", 10.6), ("b", 3.6), ("c", 3.4), ("d", 2.8), ("e", 0.17)].map(served).to_vec();
    let (limits, tenants) = (Limits::default(), Vec::new());
    let experiment = Experiment { cores: 2, unsteady: Unsteady::NONE, limits, models, tenants };
    let rate = |seconds: f64, play: fn(&Scenario) -> Result<u64>| -> Result<f64> {
        let mut random = fastrand::Rng::with_seed(1);
        let mut stream = |rate: &f64| {
            let mut at = 0.0;
            let next = std::iter::from_fn(|| {
                at += -(1.0 - random.f64()).ln() / rate;
                (at < seconds).then(|| Duration::from_secs_f64(at))
            });
            next.collect::<Vec<_>>()
        };
        let arrivals: Vec<Vec<Duration>> = experiment.rates(0.7).iter().map(&mut stream).collect();
        let scenario = experiment.scenario(Discipline::Quadrant, &arrivals);
        let began = now();
        let requests = play(&scenario)?;
        Ok(requests as f64 / began.elapsed().as_secs_f64())
    };
    let off = rate(1_000.0, |scenario| {
        let report = run_unchecked(scenario, 1).context("the simulation")?;
        Ok(report.models.iter().map(|model| model.arrivals).sum())
    })?;
    let on = rate(200.0, |scenario| {
        let report = run(scenario, 1).context("the simulation")?;
        Ok(report.models.iter().map(|model| model.arrivals).sum())
    })?;
    say(&json!({ "checkers_off_per_second": off, "checkers_on_per_second": on }).to_string());
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "a measuring program")]
fn now() -> Instant {
    Instant::now()
}
