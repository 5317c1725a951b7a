//! The loop: take the next event, hand it to the scheduler, check its answer, carry it out.
//!
//! It is the driver of `node` in virtual time. A tick comes when the scheduler asked for it (or a little
//! late, if the scenario says so); everything else comes from the workload and from the device.

use std::fmt::Write;
use std::time::Duration;

use quadrant_policy::{Action, Event, Loaded, Policy, Residency, StepOutcome};
use quadrant_types::{Ending, Error, ErrorCode, ModelId, RequestId, TenantId, Time};

use crate::agenda::Agenda;
use crate::checker::Checker;
use crate::device::Device;
use crate::generating::Generations;
use crate::report::Span;
use crate::tenants::Tally;
use crate::workload::{self, Sent};
use crate::{LogHash, ModelReport, Report, Scenario};

/// Far more events than a scenario has; reaching it means that the scheduler asks for ticks without end.
const EVENTS_MAX: u64 = 200_000_000;
/// How long unloading takes.
const UNLOAD_TIME: Duration = Duration::from_millis(2);
/// Spans of the timeline that are kept.
const SPANS_MAX: usize = 100_000;

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

/// Plays a scenario against the shipped scheduler, and checks every event.
///
/// # Errors
/// The first thing that did not hold.
pub fn run(scenario: &Scenario, seed: u64) -> Result<Report, Violation> {
    run_with(scenario, seed, policy(scenario))
}

/// Plays a scenario against any scheduler, and checks every event.
///
/// # Errors
/// The first thing that did not hold.
pub fn run_with(scenario: &Scenario, seed: u64, scheduler: impl Scheduler) -> Result<Report, Violation> {
    play(Simulation::new(scenario, seed, scheduler, true))
}

/// Plays a scenario against the shipped scheduler without the checkers, for its figures alone. Only what
/// the device itself refuses is noticed, and the report has no [`Report::log_hash`].
///
/// # Errors
/// If the device refused a step, or the run did not come to an end.
pub fn run_unchecked(scenario: &Scenario, seed: u64) -> Result<Report, Violation> {
    play(Simulation::new(scenario, seed, policy(scenario), false))
}

/// The shipped scheduler for a scenario.
pub fn policy(scenario: &Scenario) -> Policy {
    Policy::new(scenario.lanes.clone(), scenario.limits, scenario.discipline)
}

fn play(mut simulation: Simulation<'_, impl Scheduler>) -> Result<Report, Violation> {
    loop {
        match simulation.advance() {
            Ok(true) => {}
            Ok(false) => return Ok(simulation.report()),
            Err((event, (invariant, detail))) => {
                let (seed, at) = (simulation.seed, simulation.now);
                return Err(Violation { seed, at, event, invariant, detail });
            }
        }
    }
}

/// The event, and what was broken after it.
type Fault = (String, (&'static str, String));

struct Simulation<'a, S> {
    scenario: &'a Scenario,
    seed: u64,
    scheduler: S,
    agenda: Agenda,
    device: Device,
    checker: Option<Checker>,
    sent: Vec<Sent>,
    /// How many of the sent requests have arrived.
    arrived: usize,
    random: fastrand::Rng,
    now: Time,
    actions: Vec<Action>,
    models: Vec<ModelReport>,
    generations: Generations,
    tenants: Tally,
    spans: Vec<Span>,
    events: u64,
    log_hash: LogHash,
}

impl<'a, S: Scheduler> Simulation<'a, S> {
    fn new(scenario: &'a Scenario, seed: u64, scheduler: S, checked: bool) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let sent = workload::draw(scenario, &mut random.fork());
        let mut agenda = Agenda::default();
        for change in &scenario.tenants {
            agenda.plan(change.at, Event::Tenant(TenantId(change.tenant), change.terms));
        }
        for (model, plan) in (0..).map(ModelId).zip(&scenario.models) {
            let Some(holding) = plan.holding else {
                agenda.plan(plan.up_at, Event::ModelUp(model, plan.terms.clone()));
                plan.down_at.into_iter().for_each(|at| agenda.plan(at, Event::ModelDown(model)));
                continue;
            };
            agenda.plan(plan.up_at, Event::Known(model, plan.terms.clone(), holding));
            if holding.residency == Residency::Pinned {
                agenda.plan(plan.up_at, Event::LoadWanted(model));
            }
            plan.down_at.into_iter().for_each(|at| agenda.plan(at, Event::UnloadWanted(model)));
        }
        for one in &sent {
            if let Some(leaves) = one.leaves {
                agenda.plan(leaves, Event::Left(one.request.id));
            }
        }
        agenda.plan(scenario.drain_at, Event::Drain);
        Self {
            scenario,
            seed,
            scheduler,
            agenda,
            device: Device::new(scenario, random.fork()),
            checker: checked.then(|| Checker::new(scenario)),
            sent,
            arrived: 0,
            random,
            now: Time::ZERO,
            actions: Vec::new(),
            models: vec![ModelReport::default(); scenario.models.len()],
            generations: Generations::default(),
            tenants: Tally::new(!scenario.tenants.is_empty()),
            spans: Vec::new(),
            events: 0,
            log_hash: LogHash::default(),
        }
    }

    /// One event; false when there is none.
    fn advance(&mut self) -> Result<bool, Fault> {
        let Some(event) = self.next_event() else {
            return match self.checker.as_ref().map_or(Ok(()), Checker::finish) {
                Ok(()) => Ok(false),
                Err(broken) => Err(("the end".to_owned(), broken)),
            };
        };
        self.events += 1;
        self.actions.clear();
        if self.checker.is_some() {
            self.scheduler.on_event(self.now, event.clone(), &mut self.actions);
            self.log();
            self.check(&event).map_err(|broken| (format!("{event:?}"), broken))?;
        } else {
            self.scheduler.on_event(self.now, event, &mut self.actions);
        }
        let broken = |invariant| ("a step".to_owned(), (invariant, "the device".to_owned()));
        self.perform().map_err(broken)?;
        if self.events > EVENTS_MAX {
            return Err(broken("the simulation comes to an end"));
        }
        Ok(true)
    }

    fn check(&mut self, event: &Event) -> Result<(), (&'static str, String)> {
        let Some(checker) = &mut self.checker else { return Ok(()) };
        checker.check(self.now, event, &self.actions, self.scheduler.next_deadline())?;
        match self.scheduler.violated_invariant() {
            Some(invariant) => Err((invariant, "the scheduler's own books".to_owned())),
            None => Ok(()),
        }
    }

    /// What comes first; moves time there. At one time steps end first, then what was planned happens,
    /// then requests arrive, then the scheduler is woken.
    fn next_event(&mut self) -> Option<Event> {
        loop {
            let (ends, planned) = (self.device.next_end(), self.agenda.next_at());
            let arrives = self.sent.get(self.arrived).map(|sent| sent.submitted);
            let first = [ends, planned, arrives].into_iter().flatten().min();
            let late = self.scenario.faults.tick_delay_max;
            let late = if late.is_zero() { Duration::ZERO } else { late.mul_f64(self.random.f64()) };
            let tick = self.scheduler.next_deadline().map(|deadline| deadline.max(self.now) + late);
            if let Some(tick) = tick.filter(|tick| first.is_none_or(|first| *tick < first)) {
                self.now = tick;
                return Some(Event::Tick);
            }
            self.now = first?;
            if ends == first {
                if let Some(event) = self.end_step() {
                    return Some(event);
                }
            } else if planned == first {
                return self.agenda.take();
            } else {
                let sent = self.sent[self.arrived];
                let request = sent.request;
                self.arrived += 1;
                self.models[request.model.0 as usize].arrive(&request);
                self.tenants.arrive(&request);
                let sequences = self.scenario.models[request.model.0 as usize].terms.sequences;
                return Some(match sequences.filter(|_| sent.new_tokens > 0) {
                    Some(terms) => Event::Sequence(request, sent.page_hashes(terms.page_tokens)),
                    None => Event::Arrived(request),
                });
            }
        }
    }

    /// Ends the step that is due; its report may come later.
    fn end_step(&mut self) -> Option<Event> {
        let ended = self.device.end(self.now)?;
        let mut report = ended.report;
        if report.outcome == StepOutcome::Completed {
            let over = self.generations.ended(report.step, self.now, &self.sent);
            report.outcome = over.map_or(StepOutcome::Completed, StepOutcome::Iterated);
        } else {
            self.generations.failed(report.step);
        }
        self.tenants.used(report.step, report.core_time);
        if self.spans.len() < SPANS_MAX {
            let (lane, began, ended_at) = (ended.lane.id, report.began, report.ended);
            self.spans.push(Span { lane, model: ended.model, began, ended: ended_at });
        }
        let event = Event::Ended(report);
        if ended.known_at <= self.now {
            return Some(event);
        }
        self.agenda.plan(ended.known_at, event);
        None
    }

    fn perform(&mut self) -> Result<(), &'static str> {
        let actions = std::mem::take(&mut self.actions);
        for action in &actions {
            match action {
                Action::Run(step) => {
                    let model = step.model.0 as usize;
                    self.device.begin(self.now, step, &self.scenario.models[model], &self.sent)?;
                    self.tenants.begin(step, &self.sent);
                    self.generations.begin(step);
                    self.models[model].steps += 1;
                    self.models[model].rows += u64::from(step.rows);
                }
                Action::End(id, ending) => self.note_ending(*id, ending),
                Action::Load(model) => self.load(*model),
                Action::Unload(model) => {
                    self.agenda.plan(self.now + UNLOAD_TIME, Event::Unloaded(*model));
                }
                Action::LoadRefused(..)
                | Action::LaneStalled(..)
                | Action::LaneRecovered(_)
                | Action::Drained => {}
            }
        }
        self.actions = actions;
        Ok(())
    }

    /// Loads take as long as the scheduler was told, more or less.
    fn load(&mut self, model: ModelId) {
        let plan = &self.scenario.models[model.0 as usize];
        let Some(holding) = plan.holding else { return };
        let took = holding.load_time.mul_f64(0.8 + 0.4 * self.random.f64());
        let result = if self.random.f64() < plan.load_fails {
            Err(Error::new(ErrorCode::Unavailable, "the emulated file is broken"))
        } else {
            Ok(Loaded { terms: plan.terms.clone(), bytes: holding.bytes, took })
        };
        let report = &mut self.models[model.0 as usize];
        report.loads += 1;
        report.loading += took;
        self.agenda.plan(self.now + took, Event::LoadEnded(model, result));
    }

    fn note_ending(&mut self, id: RequestId, ending: &Ending) {
        let sent = usize::try_from(id.0).ok().and_then(|index| self.sent.get(index));
        if let Some(Sent { request, .. }) = sent {
            let tokens = self.generations.take(id);
            self.models[request.model.0 as usize].end(request, ending, (self.now, tokens));
            self.tenants.end(request, ending, self.now);
        }
    }

    fn log(&mut self) {
        for action in &self.actions {
            write!(self.log_hash, "{:?} {action:?}", self.now).expect("a hash takes every text");
        }
    }

    fn report(mut self) -> Report {
        self.models.iter_mut().for_each(ModelReport::finish);
        Report {
            models: self.models,
            tenants: self.tenants.finish(),
            spans: self.spans,
            busy: self.device.busy,
            events: self.events,
            log_hash: self.log_hash,
            ended_at: self.now,
        }
    }
}
