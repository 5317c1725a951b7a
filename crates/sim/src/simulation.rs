//! The loop: take the next event, hand it to the scheduler, check its answer, carry it out.
//!
//! It is the driver of `node` in virtual time. A tick comes when the scheduler asked for it (or a little
//! late, if the scenario says so); everything else comes from the workload and from the device.

use std::fmt::Write;
use std::time::Duration;

use quadrant_policy::{Action, Event, Policy};
use quadrant_types::{Ending, ModelId, Request, RequestId, Time};

use crate::agenda::Agenda;
use crate::checker::Checker;
use crate::device::Device;
use crate::workload::{self, Sent};
use crate::{LogHash, ModelReport, Report, Scenario};

/// Far more events than a scenario has; reaching it means that the scheduler asks for ticks without end.
const EVENTS_MAX: u64 = 20_000_000;

/// What is simulated. [`Policy`] is the one that ships; tests wrap it to see that the checkers fire.
pub trait Scheduler {
    /// See [`Policy::on_event`].
    fn on_event(&mut self, now: Time, event: Event, actions: &mut Vec<Action>);
    /// See [`Policy::next_deadline`].
    fn next_deadline(&self) -> Option<Time>;
    /// See [`Policy::violated_invariant`].
    fn violated_invariant(&self) -> Option<&'static str>;
}

impl Scheduler for Policy {
    fn on_event(&mut self, now: Time, event: Event, actions: &mut Vec<Action>) {
        Self::on_event(self, now, event, actions);
    }

    fn next_deadline(&self) -> Option<Time> {
        Self::next_deadline(self)
    }

    fn violated_invariant(&self) -> Option<&'static str> {
        Self::violated_invariant(self)
    }
}

/// Something did not hold. The same scenario and seed show it again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("seed `{seed}` at {at}, after {event}: not so: {invariant} ({detail})")]
pub struct Violation {
    /// The seed of the run.
    pub seed: u64,
    /// When.
    pub at: Time,
    /// The event after which it did not hold.
    pub event: String,
    /// What should have held.
    pub invariant: &'static str,
    /// Of whom it did not.
    pub detail: String,
}

/// Plays a scenario against the shipped scheduler.
///
/// # Errors
/// The first thing that did not hold.
pub fn run(scenario: &Scenario, seed: u64) -> Result<Report, Violation> {
    run_with(scenario, seed, Policy::new(scenario.lanes.clone(), scenario.limits))
}

/// Plays a scenario against any scheduler.
///
/// # Errors
/// The first thing that did not hold.
pub fn run_with(scenario: &Scenario, seed: u64, scheduler: impl Scheduler) -> Result<Report, Violation> {
    let mut simulation = Simulation::new(scenario, seed, scheduler);
    loop {
        match simulation.advance() {
            Ok(true) => {}
            Ok(false) => return Ok(simulation.report()),
            Err((event, (invariant, detail))) => {
                return Err(Violation { seed, at: simulation.now, event, invariant, detail });
            }
        }
    }
}

/// The event, and what was broken after it.
type Fault = (String, (&'static str, String));

struct Simulation<'a, S> {
    scenario: &'a Scenario,
    scheduler: S,
    agenda: Agenda,
    device: Device,
    checker: Checker,
    sent: Vec<Sent>,
    random: fastrand::Rng,
    now: Time,
    actions: Vec<Action>,
    models: Vec<ModelReport>,
    events: u64,
    log_hash: LogHash,
}

impl<'a, S: Scheduler> Simulation<'a, S> {
    fn new(scenario: &'a Scenario, seed: u64, scheduler: S) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let sent = workload::draw(scenario, &mut random.fork());
        let mut agenda = Agenda::default();
        for (model, plan) in (0..).map(ModelId).zip(&scenario.models) {
            agenda.plan(plan.up_at, Event::ModelUp(model, plan.terms.clone()));
            if let Some(down_at) = plan.down_at {
                agenda.plan(down_at, Event::ModelDown(model));
            }
        }
        for one in &sent {
            agenda.plan(one.submitted, Event::Arrived(one.request));
            if let Some(leaves) = one.leaves {
                agenda.plan(leaves, Event::Left(one.request.id));
            }
        }
        agenda.plan(scenario.drain_at, Event::Drain);
        Self {
            scenario,
            scheduler,
            agenda,
            device: Device::new(scenario.lanes.clone(), scenario.faults, random.fork()),
            checker: Checker::new(scenario.lanes.clone(), scenario.limits),
            sent,
            random,
            now: Time::ZERO,
            actions: Vec::new(),
            models: vec![ModelReport::default(); scenario.models.len()],
            events: 0,
            log_hash: LogHash::default(),
        }
    }

    /// One event; false when there is none.
    fn advance(&mut self) -> Result<bool, Fault> {
        let Some(event) = self.next_event() else {
            return match self.checker.finish() {
                Ok(()) => Ok(false),
                Err(broken) => Err(("the end".to_owned(), broken)),
            };
        };
        self.events += 1;
        if let Event::Arrived(request) = &event {
            self.models[index_of(request)].arrivals += 1;
        }
        self.actions.clear();
        self.scheduler.on_event(self.now, event.clone(), &mut self.actions);
        self.log();
        self.check(&event).map_err(|broken| (format!("{event:?}"), broken))?;
        self.perform().map_err(|invariant| (format!("{event:?}"), (invariant, "the device".to_owned())))?;
        Ok(true)
    }

    fn check(&mut self, event: &Event) -> Result<(), (&'static str, String)> {
        self.checker.check(self.now, event, &self.actions, self.scheduler.next_deadline())?;
        if let Some(invariant) = self.scheduler.violated_invariant() {
            return Err((invariant, "the scheduler's own books".to_owned()));
        }
        if self.events > EVENTS_MAX {
            return Err(("the simulation comes to an end", format!("{} events", self.events)));
        }
        Ok(())
    }

    /// What comes first, the scheduler's tick or what was planned; moves time there.
    fn next_event(&mut self) -> Option<Event> {
        let late = self.scenario.faults.tick_delay_max;
        let late = if late.is_zero() { Duration::ZERO } else { late.mul_f64(self.random.f64()) };
        let tick = self.scheduler.next_deadline().map(|deadline| deadline.max(self.now) + late);
        match (tick, self.agenda.next_at()) {
            (Some(tick), planned) if planned.is_none_or(|planned| tick < planned) => {
                self.now = tick;
                Some(Event::Tick)
            }
            (_, Some(planned)) => {
                self.now = planned;
                self.agenda.take()
            }
            (_, None) => None,
        }
    }

    fn perform(&mut self) -> Result<(), &'static str> {
        let actions = std::mem::take(&mut self.actions);
        for action in &actions {
            match action {
                Action::Run(step) => {
                    let model = step.model.0 as usize;
                    let plan = &self.scenario.models[model];
                    let (known_at, report) = self.device.begin(self.now, step, plan, &self.sent)?;
                    self.agenda.plan(known_at, Event::Ended(report));
                    self.models[model].steps += 1;
                    self.models[model].rows += u64::from(step.rows);
                }
                Action::End(id, ending) => self.note_ending(*id, ending),
                Action::LaneStalled(..) | Action::LaneRecovered(_) | Action::Drained => {}
            }
        }
        self.actions = actions;
        Ok(())
    }

    fn note_ending(&mut self, id: RequestId, ending: &Ending) {
        let request =
            usize::try_from(id.0).ok().and_then(|index| self.sent.get(index)).map(|sent| sent.request);
        if let Some(request) = request {
            self.models[index_of(&request)].end(ending, self.now.since(request.arrived));
        }
    }

    fn log(&mut self) {
        for action in &self.actions {
            write!(self.log_hash, "{:?} {action:?}", self.now).expect("a hash takes every text");
        }
    }

    fn report(mut self) -> Report {
        self.models.iter_mut().for_each(ModelReport::finish);
        Report { models: self.models, events: self.events, log_hash: self.log_hash, ended_at: self.now }
    }
}

fn index_of(request: &Request) -> usize {
    request.model.0 as usize
}
