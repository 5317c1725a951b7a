//! The state machine: what waits, what runs, and how one becomes the other.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quadrant_types::{CoreSet, Ending, Error, ErrorCode, ModelId, Priority, Request, RequestId, Time};
use rustc_hash::FxHashMap;

use crate::admission::{Plan, expired, unloaded};
use crate::caution::Caution;
use crate::demand::Demand;
use crate::fairness::{Fairness, Level};
use crate::floor::Floor;
use crate::hosts::Hosts;
use crate::ledger::Ledger;
use crate::live::Live;
use crate::load::Load;
use crate::queue::{ModelQueue, OrderKey};
use crate::quota::Quotas;
use crate::residency::Memory;
use crate::running::Running;
use crate::sequences::Sequence;
use crate::shares::Shares;
use crate::slowdown::Slowdown;
use crate::{Action, Cost, Discipline, Event, LaneShape, Limits, ModelTerms, StepOutcome, StepReport, Unmet};

/// The scheduler of one domain.
#[derive(Clone, Debug)]
pub struct Policy {
    pub(crate) discipline: Discipline,
    pub(crate) limits: Limits,
    pub(crate) lanes: Vec<LaneShape>,
    /// All cores of all lanes.
    pub(crate) cores: CoreSet,
    /// The whole device's time that is one core's, with what is reserved for best effort taken off.
    pub(crate) per_core: f64,
    pub(crate) models: BTreeMap<ModelId, ModelQueue>,
    pub(crate) live: FxHashMap<RequestId, Live>,
    /// What is kept besides of live requests that generate.
    pub(crate) sequences: FxHashMap<RequestId, Sequence>,
    /// How often a sequence had to give its pages back.
    pub(crate) sequences_preempted: u64,
    /// Sequences whose readers do not keep up.
    pub(crate) paused: BTreeSet<RequestId>,
    /// As many as lanes at most, in the order in which they began.
    pub(crate) running: Vec<Running>,
    /// The first waiting request with a deadline of every model, so that the next step is found without a
    /// search.
    pub(crate) heads: BTreeSet<(OrderKey, ModelId)>,
    /// Those that wait with a deadline, the least important last.
    pub(crate) ranked: BTreeSet<(Priority, OrderKey)>,
    /// Those that wait without.
    pub(crate) shares: Shares,
    /// What tenants may have.
    pub(crate) quotas: Quotas,
    pub(crate) floor: Floor,
    /// What is due by when.
    pub(crate) demand: Demand,
    /// When each live request is of no more use.
    pub(crate) expiries: BTreeSet<(Time, RequestId)>,
    pub(crate) load: Load,
    /// How fast the cores are at present.
    pub(crate) slowdown: Slowdown,
    pub(crate) fairness: Fairness,
    pub(crate) level: Level,
    pub(crate) caution: Caution,
    pub(crate) memory: Memory,
    pub(crate) queued: usize,
    pub(crate) bytes_in: u64,
    /// When the first batch that was left waiting for more rows is worth running as it is.
    pub(crate) ripe_at: Option<Time>,
    /// Until when the progress of running steps is counted.
    pub(crate) paced_at: Time,
    pub(crate) next_step: u64,
    pub(crate) draining: bool,
    pub(crate) hosts: Hosts,
    drained: bool,
}

impl Policy {
    /// A scheduler for these lanes.
    ///
    /// # Panics
    /// If there is no lane, or a lane without a core, or no model may be loaded.
    pub fn new(lanes: Vec<LaneShape>, limits: Limits, discipline: Discipline) -> Self {
        assert!(!lanes.is_empty(), "a device has at least one lane");
        assert!(lanes.iter().all(|lane| !lane.cores.is_empty()), "a lane has at least one core");
        assert!(limits.loads_max > 0, "models are loaded one at a time at least");
        let cores = lanes.iter().fold(CoreSet::EMPTY, |cores, lane| cores.union(lane.cores));
        let floor = Floor::new(limits.best_effort_floor_permille, cores.len());
        let (limits, ledger) = Ledger::within(limits);
        Self {
            discipline,
            limits,
            lanes,
            cores,
            per_core: 1.0 / (cores.len() as f64 * floor.rest()),
            models: BTreeMap::new(),
            live: FxHashMap::default(),
            sequences: FxHashMap::default(),
            sequences_preempted: 0,
            paused: BTreeSet::new(),
            running: Vec::new(),
            heads: BTreeSet::new(),
            ranked: BTreeSet::new(),
            shares: Shares::default(),
            quotas: Quotas::default(),
            floor,
            demand: Demand::new(limits.wait_max),
            expiries: BTreeSet::new(),
            load: Load::default(),
            slowdown: Slowdown::new(cores),
            fairness: Fairness::default(),
            level: Level::default(),
            caution: Caution::default(),
            memory: Memory::new(ledger, limits.eviction),
            queued: 0,
            bytes_in: 0,
            ripe_at: None,
            paced_at: Time::ZERO,
            next_step: 0,
            draining: false,
            hosts: Hosts::default(),
            drained: false,
        }
    }

    /// Takes in one event and appends what is to be done about it.
    pub fn on_event(&mut self, now: Time, event: Event, actions: &mut Vec<Action>) {
        self.pace(now);
        self.floor.advance(now);
        self.demand.advance(now);
        self.load.advance(now);
        self.expire(now, actions);
        self.shed(now, actions);
        match event {
            Event::ModelUp(model, terms) => self.model_up(model, terms),
            Event::ModelDown(model) => self.model_down(model, actions),
            Event::Known(model, terms, holding) => self.known(model, terms, holding),
            Event::LoadWanted(model) => self.load_wanted(model),
            Event::UnloadWanted(model) => self.unload_wanted(model, actions),
            Event::LoadEnded(model, result) => self.load_ended(now, model, result, actions),
            Event::Unloaded(model) => self.unloaded(model),
            Event::Resident(bytes) => self.note_resident(bytes, actions),
            Event::Tenant(tenant, terms) => self.set_tenant(now, tenant, terms),
            Event::Hosted(model, host) => self.hosted(model, host),
            Event::HostDown(host, back_at) => self.host_down(now, host, back_at, actions),
            Event::HostUp(host, generation) => self.host_up(host, generation),
            Event::Arrived(request) => self.arrived(now, request, actions),
            Event::Sequence(request, prefix) => {
                self.sequences.insert(request.id, Sequence::new(request.work.rows(), prefix));
                self.arrived(now, request, actions);
            }
            Event::ReaderStalled(request) => self.reader_stalled(request),
            Event::ReaderReady(request) => self.reader_ready(now, request),
            Event::Left(request) => self.left(request, actions),
            Event::Ended(report) => self.ended(now, &report, actions),
            Event::Drain => self.drain(),
            Event::Tick => {}
        }
        self.mark_stalled(actions);
        self.dispatch(now, actions);
        self.note_preemption();
        self.manage_memory(now, actions);
        // A lane may also be busy for requests that are gone; one that is stuck may never be free again.
        let busy = self.running.iter().any(|step| !step.is_stuck());
        if self.draining && !self.drained && self.live.is_empty() && !busy {
            self.drained = true;
            actions.push(Action::Drained);
        }
    }

    /// When [`Event::Tick`] is due, if nothing else happens before.
    pub fn next_deadline(&self) -> Option<Time> {
        let expiry = self.expiries.first().map(|(time, _)| *time);
        let floor = if self.discipline == Discipline::Quadrant { self.floor.changes_at() } else { None };
        let memory = self.memory.next_deadline();
        [expiry, self.next_stall(), self.ripe_at, floor, memory].into_iter().flatten().min()
    }

    /// Requests of this model that wait.
    pub fn queued(&self, model: ModelId) -> usize {
        self.models.get(&model).map_or(0, |queue| queue.waiting.len()) + self.outside(model)
    }

    /// Those of them that stand in no queue: their model is absent, or its host is held.
    pub(crate) fn outside(&self, model: ModelId) -> usize {
        self.memory.get(model).map_or(0, |held| held.parked.len()) + self.aside(model)
    }

    /// How many times longer than usually steps take on each core at present.
    pub fn slowdowns(&self, now: Time) -> impl Iterator<Item = (usize, f64)> {
        self.cores.cores().map(move |core| (core, self.slowdown.of(now, CoreSet::from_cores([core]))))
    }

    /// The model's measured costs as its steps turned out, to be kept for the next start.
    pub fn costs(&self, model: ModelId) -> Option<Vec<Cost>> {
        self.models.get(&model).map(|queue| queue.costs.corrected())
    }

    fn model_up(&mut self, model: ModelId, terms: ModelTerms) {
        self.models.insert(model, ModelQueue::new(terms, self.discipline));
    }

    fn model_down(&mut self, model: ModelId, actions: &mut Vec<Action>) {
        self.unhost(model, &unloaded(), actions);
        let Some(queue) = self.models.get(&model) else { return };
        let waiting: Vec<RequestId> = queue.waiting.keys().map(|key| key.id).collect();
        for id in waiting {
            self.end(id, Ending::Failed(unloaded()), actions);
        }
        self.forget_held(model, actions);
        // What runs is finished; it needs nothing of what was kept here.
        self.models.remove(&model);
    }

    fn arrived(&mut self, now: Time, request: Request, actions: &mut Vec<Action>) {
        let request = self.quotas.bounded(request);
        if self.is_absent(now, request.model) {
            return self.arrived_for_absent(now, request, actions);
        }
        match self.admit(now, &request, actions) {
            Ok(plan) => {
                self.bytes_in += request.work.bytes_in();
                self.take_quota(now, &request);
                self.let_in(now, request, plan);
            }
            Err(error) => self.refuse(request.id, error, actions),
        }
    }

    /// A request ends that was never live.
    pub(crate) fn refuse(&mut self, id: RequestId, error: Error, actions: &mut Vec<Action>) {
        self.sequences.remove(&id);
        actions.push(Action::End(id, Ending::Failed(error)));
    }

    /// Makes a request live, and wait.
    pub(crate) fn let_in(&mut self, now: Time, request: Request, plan: Plan) {
        if plan.deadline != Time::MAX {
            self.load.note_objective(now, plan.deadline.since(request.arrived));
        }
        let live = Live::new(request, plan);
        let replaced = self.live.insert(request.id, live);
        assert!(replaced.is_none(), "request ids are never reused");
        self.expiries.insert((plan.expires, request.id));
        self.wait(request.model, request.id, false);
    }

    fn left(&mut self, id: RequestId, actions: &mut Vec<Action>) {
        if self.live.contains_key(&id) {
            let gone = Error::new(ErrorCode::Cancelled, "the client left");
            self.end(id, Ending::Failed(gone), actions);
        }
    }

    fn expire(&mut self, now: Time, actions: &mut Vec<Action>) {
        while let Some((_, id)) = self.expiries.first().filter(|(time, _)| *time <= now).copied() {
            // That it was kept waiting for its host says nothing of how much is let in.
            if !self.live[&id].aside {
                self.note_late(now, id);
            }
            self.end(id, Ending::Failed(expired()), actions);
        }
    }

    /// What was let in comes late. What has no deadline asks nothing, and counts as nothing.
    pub(crate) fn note_late(&mut self, now: Time, id: RequestId) {
        self.caution.note_late(now, self.live[&id].plan.work);
    }

    /// A waiting request that cannot be in time any more ends, or goes on as best effort if its model says
    /// so.
    pub(crate) fn give_up(&mut self, id: RequestId, error: Error, actions: &mut Vec<Action>) {
        let live = self.live[&id];
        if self.discipline != Discipline::Quadrant
            || self.models[&live.request.model].terms.unmet == Unmet::Refuse
        {
            return self.end(id, Ending::Failed(error), actions);
        }
        let alone = self.models[&live.request.model].waiting[&live.plan.key].alone;
        self.take_from_queue(&live);
        // It ends when it would have ended in any case.
        let plan =
            Plan { expires: live.plan.expires, ..self.best_effort_plan(live.request.arrived, &live.request) };
        self.live.insert(id, Live { plan, booking: None, ..live });
        self.enqueue(id, alone);
    }

    /// Forgets a live request, wherever it is, and says how it ended. The one way out.
    pub(crate) fn end(&mut self, id: RequestId, ending: Ending, actions: &mut Vec<Action>) {
        let live = self.live.remove(&id).expect("only live requests end");
        if live.parked {
            self.unpark(live.request.model, id);
        } else if live.waits() {
            self.take_from_queue(&live);
        }
        self.forget_hosted(id, live.request.model);
        self.leave_pages(live.request.model, id);
        self.sequences.remove(&id);
        self.paused.remove(&id);
        self.expiries.remove(&(live.plan.expires, id));
        self.bytes_in -= live.request.work.bytes_in();
        self.quotas.ended(id, live.step.is_some(), self.cores.len());
        actions.push(Action::End(id, ending));
    }

    fn ended(&mut self, now: Time, report: &StepReport, actions: &mut Vec<Action>) {
        let index = self.running.iter().position(|step| step.id == report.step);
        let Some(step) = index.map(|index| self.running.remove(index)) else { return };
        if let Some(booking) = step.booking {
            self.demand.release(booking);
        }
        if step.is_stuck() {
            actions.push(Action::LaneRecovered(step.lane.id));
        }
        if step.easy {
            let charged = step.progress * u32::try_from(step.lane.cores.len()).unwrap_or(1);
            self.floor.correct(charged, report.core_time);
        }
        match &report.outcome {
            StepOutcome::Completed => {
                self.learn(now, &step, report);
                for id in &step.requests {
                    let Some(live) = self.live.get(id) else { continue };
                    if now > live.plan.deadline {
                        self.note_late(now, *id);
                    }
                    self.end(*id, Ending::Completed, actions);
                }
            }
            StepOutcome::Iterated(over) => {
                self.learn(now, &step, report);
                self.iterated(now, &step, over, actions);
            }
            StepOutcome::Lost(lost) => self.lost(&step, lost, actions),
            StepOutcome::Failed(error) => self.failed(&step, error, actions),
        }
        self.settle_quotas(now, &step, report.core_time);
        self.after_step_of(step.model);
    }

    /// A step has failed. One of its requests may be to blame, and the others should not pay for it: each
    /// runs by itself, once, if their model is still there.
    fn failed(&mut self, step: &Running, error: &Error, actions: &mut Vec<Action>) {
        let error = match (step.requests.len() > 1, self.models.contains_key(&step.model)) {
            (false, _) => Some(error.clone()),
            (true, false) => Some(unloaded()),
            (true, true) => None,
        };
        for id in &step.requests {
            let Some(live) = self.live.get_mut(id) else { continue };
            match &error {
                Some(error) => self.end(*id, Ending::Failed(error.clone()), actions),
                None => {
                    live.step = None;
                    self.wait(step.model, *id, true);
                }
            }
        }
    }

    /// What a step takes besides its own time.
    pub(crate) fn handoff(&self) -> Duration {
        self.load.handoff()
    }
}
