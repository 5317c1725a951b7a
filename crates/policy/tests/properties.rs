//! Any sequence of events at all: nothing is lost, nothing is answered twice, the books stay right.
//!
//! The simulator plays sensible worlds; here the world is not sensible (steps end in any order and long
//! after they should, models come and go at any moment), and what fails is shrunk to a few events.

#[path = "properties/happening.rs"]
mod happening;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use quadrant_policy::{
    Action, Cost, Discipline, Event, Eviction, Holding, LaneShape, Limits, Loaded, Lost, MemoryBudget,
    ModelTerms, Policy, Residency, Step, StepOutcome, StepReport, TenantTerms, TenantUsage, Unmet,
};
use quadrant_types::{
    Ending, Error, ErrorCode, HostId, ModelId, Objective, Priority, Reason, Request, RequestId, ShapeId,
    StepId, TenantId, Time, Work,
};

use happening::{Happening, How, disciplines, happenings, lanes};

/// Models that are loaded at the same time.
const LOADS_MAX: usize = 2;

/// The scheduler with a world around it that keeps count.
struct World {
    policy: Policy,
    now: Time,
    /// Every request so far, and how often it ended.
    ends: BTreeMap<RequestId, u32>,
    requests: BTreeMap<RequestId, Request>,
    running: Vec<Step>,
    stalled: BTreeSet<StepId>,
    loading: Vec<ModelId>,
    unloading: Vec<ModelId>,
    models: u32,
    generation: u64,
    drains: u32,
    /// What each tenant may have at once, and how many of its requests are under way that were let in since.
    concurrency_max: BTreeMap<TenantId, Option<u32>>,
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
            memory: MemoryBudget { bytes: 240, process_bytes: 20 },
            eviction: Eviction::Worth,
            loads_max: LOADS_MAX,
        };
        Self {
            policy: Policy::new(lanes, limits, discipline),
            now: Time::ZERO,
            ends: BTreeMap::new(),
            requests: BTreeMap::new(),
            running: Vec::new(),
            stalled: BTreeSet::new(),
            loading: Vec::new(),
            unloading: Vec::new(),
            models: 0,
            generation: 0,
            drains: 0,
            concurrency_max: BTreeMap::new(),
            log: Vec::new(),
        }
    }

    fn event(&mut self, event: Event) -> Result<(), TestCaseError> {
        let mut actions = Vec::new();
        let arrived = if let Event::Arrived(request) = &event { Some(*request) } else { None };
        let before = arrived.and_then(|request| self.policy.tenant_usage(self.now, request.tenant));
        self.policy.on_event(self.now, event, &mut actions);
        prop_assert_eq!(self.policy.violated_invariant(), None);
        if let (Some(request), Some(before)) = (arrived, before) {
            self.check_quota(&request, before, &actions)?;
        }
        prop_assert!(self.policy.next_deadline().is_none_or(|time| time > self.now), "due in the past");
        for action in &actions {
            match action {
                Action::End(id, _) => *self.ends.entry(*id).or_default() += 1,
                Action::Run(step) => self.begin(step)?,
                Action::LaneStalled(_, step) => {
                    prop_assert!(self.stalled.insert(*step), "{step} stalled twice");
                }
                Action::LaneRecovered(_) | Action::LoadRefused(..) => {}
                Action::Load(model) => {
                    prop_assert!(self.loading.len() < LOADS_MAX, "too many loads at the same time");
                    self.loading.push(*model);
                }
                Action::Unload(model) => {
                    let runs = self
                        .running
                        .iter()
                        .any(|step| step.model == *model && !self.stalled.contains(&step.id));
                    prop_assert!(!runs && !self.unloading.contains(model), "{model} has work, or goes twice");
                    self.unloading.push(*model);
                }
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

    /// Who was let in had room, and who was told to wait may come when he was told to.
    fn check_quota(
        &self,
        request: &Request,
        before: TenantUsage,
        actions: &[Action],
    ) -> Result<(), TestCaseError> {
        let ending = actions.iter().find_map(|action| match action {
            Action::End(id, ending) if *id == request.id => Some(ending),
            Action::End(..)
            | Action::Run(_)
            | Action::Load(_)
            | Action::Unload(_)
            | Action::LoadRefused(..)
            | Action::LaneStalled(..)
            | Action::LaneRecovered(_)
            | Action::Drained => None,
        });
        let Some(after) = self.policy.tenant_usage(self.now, request.tenant) else { return Ok(()) };
        let Some(Ending::Failed(error)) = ending else {
            let most = self.concurrency_max.get(&request.tenant).copied().flatten();
            prop_assert!(most.is_none_or(|most| after.requests <= most), "{after:?}");
            prop_assert!(before.rate_wait.is_zero() && before.device_wait.is_zero(), "{before:?}");
            return Ok(());
        };
        if matches!(error.reason, Some(Reason::TenantRequests | Reason::TenantDeviceTime)) {
            let wait = error.retry_after.unwrap_or_default();
            prop_assert_eq!(wait, before.rate_wait.max(before.device_wait));
            let later = self.policy.tenant_usage(self.now + wait, request.tenant).unwrap_or_default();
            prop_assert!(later.rate_wait.is_zero() && later.device_wait.is_zero(), "{later:?}");
        }
        Ok(())
    }

    fn begin(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let members: Vec<_> = step.requests.iter().map(|id| self.requests[id]).collect();
        prop_assert!(!members.is_empty());
        prop_assert!(step.requests.iter().all(|id| !self.ends.contains_key(id)), "{step:?} after an end");
        let shape = |request: &Request| {
            let Work::Once { shape, .. } = request.work else { panic!("nobody generates here") };
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
            Happening::StepEnds { index, how } => self.step_ends(index, how),
            Happening::HostDown { host, back_us } => {
                let back_at = self.now + Duration::from_micros(back_us);
                self.event(Event::HostDown(HostId(host), back_at))
            }
            Happening::HostUp(host) => {
                self.generation += 1;
                self.event(Event::HostUp(HostId(host), self.generation))
            }
            Happening::Up { rows_max, ref widths, queue_max, delay_us, demotes } => {
                let terms = terms(rows_max, widths.clone(), queue_max, Duration::from_micros(delay_us));
                let terms =
                    ModelTerms { unmet: if demotes { Unmet::Demote } else { Unmet::Refuse }, ..terms };
                self.models += 1;
                // Of four models two share a host, one has its own, and one runs in the server.
                if let Some(host) = [Some(0), Some(0), Some(1), None][(self.models - 1) as usize % 4] {
                    self.event(Event::Hosted(ModelId(self.models - 1), HostId(host)))?;
                }
                self.event(Event::ModelUp(ModelId(self.models - 1), terms))
            }
            Happening::Down(model) => self.down(ModelId(model)),
            Happening::Known { bytes, load_ms, pinned, idle_us } => {
                let idle_after = idle_us.map(Duration::from_micros);
                let residency = if pinned { Residency::Pinned } else { Residency::OnDemand { idle_after } };
                self.known(bytes, Duration::from_millis(load_ms), residency)
            }
            Happening::LoadWanted(model) => self.event(Event::LoadWanted(ModelId(model))),
            Happening::UnloadWanted(model) => self.event(Event::UnloadWanted(ModelId(model))),
            Happening::LoadEnds { index, fails, bytes } => self.load_ends(index, fails, bytes),
            Happening::UnloadEnds(index) => self.unload_ends(index),
            Happening::Resident(bytes) => self.event(Event::Resident(bytes)),
            Happening::Tenant(tenant, terms) => self.tenant(TenantId(tenant), terms),
            Happening::TickAtDeadline => {
                let Some(deadline) = self.policy.next_deadline() else { return Ok(()) };
                self.now = self.now.max(deadline);
                self.event(Event::Tick)
            }
            Happening::Drain => self.event(Event::Drain),
        }
    }

    /// A tenant comes, has other terms, or goes.
    fn tenant(&mut self, tenant: TenantId, terms: Option<TenantTerms>) -> Result<(), TestCaseError> {
        self.concurrency_max.insert(tenant, terms.and_then(|terms| terms.concurrency_max));
        self.event(Event::Tenant(tenant, terms))?;
        if terms.is_none() {
            prop_assert_eq!(self.policy.tenant_usage(self.now, tenant), None, "nothing is left of it");
        }
        Ok(())
    }

    fn known(&mut self, bytes: u64, load_time: Duration, residency: Residency) -> Result<(), TestCaseError> {
        let (load_bytes, objective) = (bytes + bytes / 4, None);
        let holding = Holding { bytes, load_bytes, load_time, residency, objective };
        let model = ModelId(self.models);
        self.models += 1;
        if self.models.is_multiple_of(3) {
            self.event(Event::Hosted(model, HostId(1)))?;
        }
        self.event(Event::Known(model, terms(3, vec![1], 5, Duration::ZERO), holding))
    }

    /// A model is forgotten, in whatever state.
    fn down(&mut self, model: ModelId) -> Result<(), TestCaseError> {
        self.unloading.retain(|other| *other != model);
        self.loading.retain(|other| *other != model);
        self.event(Event::ModelDown(model))
    }

    fn load_ends(&mut self, index: usize, fails: bool, bytes: u64) -> Result<(), TestCaseError> {
        if self.loading.is_empty() {
            return Ok(());
        }
        let model = self.loading.swap_remove(index % self.loading.len());
        let result = if fails {
            Err(Error::new(ErrorCode::Unavailable, "broken"))
        } else {
            let terms = terms(3, vec![1], 5, Duration::ZERO);
            Ok(Loaded { terms, bytes, took: Duration::from_millis(1) })
        };
        self.event(Event::LoadEnded(model, result))
    }

    fn unload_ends(&mut self, index: usize) -> Result<(), TestCaseError> {
        if self.unloading.is_empty() {
            return Ok(());
        }
        let model = self.unloading.swap_remove(index % self.unloading.len());
        self.event(Event::Unloaded(model))
    }

    fn step_ends(&mut self, index: usize, how: How) -> Result<(), TestCaseError> {
        if self.running.is_empty() {
            return Ok(());
        }
        let step = self.running.swap_remove(index % self.running.len()).id;
        let outcome = match how {
            How::Completes => StepOutcome::Completed,
            How::Fails => StepOutcome::Failed(Error::new(ErrorCode::Internal, "broken")),
            How::Lost { began, late } => StepOutcome::Lost(Lost {
                error: Error::new(ErrorCode::Unavailable, "gone"),
                began,
                generation: self.generation.saturating_sub(u64::from(late)),
            }),
        };
        self.event(Event::Ended(StepReport {
            step,
            began: self.now,
            ended: self.now,
            core_time: Duration::from_micros(250),
            outcome,
        }))
    }

    /// Drains, and lets everything end that still runs.
    fn finish(&mut self) -> Result<(), TestCaseError> {
        self.event(Event::Drain)?;
        for _ in 0..1_000 {
            if !self.running.is_empty() {
                self.step_ends(0, How::Completes)?;
            } else if !self.loading.is_empty() {
                self.load_ends(0, false, 50)?;
            } else if !self.unloading.is_empty() {
                self.unload_ends(0)?;
            } else if self.policy.next_deadline().is_some() {
                self.happen(0, &Happening::TickAtDeadline)?;
            } else {
                break;
            }
        }
        prop_assert_eq!(self.ends.len(), self.requests.len(), "every request ends");
        prop_assert_eq!(self.drains, 1);
        for tenant in (0..3).map(TenantId) {
            let usage = self.policy.tenant_usage(self.now, tenant).unwrap_or_default();
            prop_assert_eq!((usage.requests, usage.bytes_in), (0, 0), "all was given back");
        }
        Ok(())
    }
}

fn terms(rows_max: u32, widths: Vec<usize>, queue_max: usize, delay_max: Duration) -> ModelTerms {
    let cost = Duration::from_micros(300);
    ModelTerms {
        rows_max,
        widths,
        lane: None,
        queue_max,
        delay_max,
        costs: vec![Cost { rows: 1, width: 1, beside: false, time: cost }],
        row_bytes: 2,
        unmet: Unmet::Refuse,
        sequences: None,
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
