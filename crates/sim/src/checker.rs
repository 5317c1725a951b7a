//! Keeps its own books of what the scheduler was told and what it asked for, and compares the two.
//!
//! The books are deliberately naive (no heads, no sums kept in step, no incremental orders): they are a
//! second opinion. What is asked after every event has a name, which is what a violation shows.

mod intake;
mod memory;
mod quotas;
mod waiting;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quadrant_policy::{Action, Discipline, Event, LaneShape, Limits, ModelTerms, Step, StepOutcome, Unmet};
use quadrant_types::{
    CoreSet, Ending, Error, ErrorCode, LaneId, ModelId, Objective, Reason, Request, RequestId,
    SchedulingClass, StepId, TenantId, Time, Work,
};

use crate::Scenario;
use crate::device::shape_of;
use memory::Memory;
use quotas::{Book, Part};

/// Which invariant was broken, and how.
pub(crate) type Broken = (&'static str, String);

#[derive(Debug)]
pub(crate) struct Checker {
    lanes: Vec<LaneShape>,
    limits: Limits,
    discipline: Discipline,
    /// Until when the progress of steps is counted.
    paced_at: Time,
    models: BTreeMap<ModelId, ModelTerms>,
    memory: Memory,
    live: BTreeMap<RequestId, Known>,
    /// Tenants with quotas.
    books: BTreeMap<TenantId, Book>,
    over: BTreeSet<RequestId>,
    steps: BTreeMap<StepId, Begun>,
    stalled: BTreeSet<StepId>,
    /// The most rows of a step of any model so far: bounds how many requests a failure can put back.
    rows_max: usize,
    draining: bool,
    drained: bool,
    // The event at hand.
    /// Requests that must end in this event.
    owed: BTreeSet<RequestId>,
    /// Steps whose lane was declared stalled in this event, with their requests.
    stuck_now: Vec<RequestId>,
    /// Requests whose steps began in this event.
    began_now: Vec<RequestId>,
}

#[derive(Clone, Debug)]
struct Known {
    request: Request,
    /// When it ends whatever became of it.
    expires: Time,
    place: Place,
    /// It was in a batch that failed.
    alone: bool,
    /// It counts towards its tenant's quotas.
    counted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// It arrived with the event at hand, and may still be refused.
    AtTheDoor,
    Waits,
    Runs(StepId),
}

#[derive(Clone, Debug)]
struct Begun {
    model: ModelId,
    requests: Vec<RequestId>,
    /// Those that count towards quotas.
    parts: Vec<Part>,
    lane: LaneShape,
    /// The time it had, not counting what a more urgent step on its core took,
    progress: Duration,
    /// and how much of it makes its lane count as stalled.
    patience: Duration,
}

impl Known {
    /// Whether it may be given up for being late.
    fn has_deadline(&self) -> bool {
        self.request.objective != Objective::BestEffort
    }

    fn work(&self) -> (u32, u32, u64) {
        (self.request.work.rows(), shape_of(&self.request.work), self.request.work.bytes_in())
    }
}

impl Checker {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        Self {
            lanes: scenario.lanes.clone(),
            // Inputs get a quarter of the memory at most.
            limits: Limits {
                bytes_in_max: scenario.limits.bytes_in_max.min(scenario.limits.memory.bytes / 4),
                ..scenario.limits
            },
            discipline: scenario.discipline,
            paced_at: Time::ZERO,
            models: BTreeMap::new(),
            memory: Memory::new(&scenario.limits),
            live: BTreeMap::new(),
            books: BTreeMap::new(),
            over: BTreeSet::new(),
            steps: BTreeMap::new(),
            stalled: BTreeSet::new(),
            rows_max: 1,
            draining: false,
            drained: false,
            owed: BTreeSet::new(),
            stuck_now: Vec::new(),
            began_now: Vec::new(),
        }
    }

    /// Checks one event and all that the scheduler answered to it.
    pub(crate) fn check(
        &mut self,
        now: Time,
        event: &Event,
        actions: &[Action],
        next_deadline: Option<Time>,
    ) -> Result<(), Broken> {
        self.pace(now);
        let ended = self.take_in(now, event);
        for action in actions {
            match action {
                Action::End(id, ending) => self.end(now, *id, ending, event, &ended)?,
                Action::Run(step) => {
                    self.let_in(now)?;
                    self.begin(now, step)?;
                }
                Action::LaneStalled(lane, step) => self.stall(*lane, *step)?,
                Action::LaneRecovered(lane) => {
                    hold("a lane recovers when its stalled step ends", ended.stalled == Some(*lane), &lane)?;
                }
                Action::Load(model) => {
                    self.let_in(now)?;
                    self.memory.load(*model)?;
                }
                Action::Unload(model) => self.unload(*model)?,
                Action::LoadRefused(model, _) => self.memory.refuse(*model)?,
                Action::Drained => {
                    hold("`Drained` comes once, and after `Drain`", self.draining && !self.drained, &"")?;
                    self.drained = true;
                }
            }
        }
        self.let_in(now)?;
        self.settled(now, next_deadline)
    }

    /// Checks that nothing is left at the end of a run.
    pub(crate) fn finish(&self) -> Result<(), Broken> {
        hold("every accepted request ends exactly once", self.live.is_empty(), &first(self.live.keys()))?;
        hold("`Drained` comes once, and after `Drain`", self.drained, &"it never came")
    }

    fn end(
        &mut self,
        now: Time,
        id: RequestId,
        ending: &Ending,
        event: &Event,
        ended: &intake::EndedStep,
    ) -> Result<(), Broken> {
        hold("every accepted request ends exactly once", !self.over.contains(&id), &id)?;
        let Some(known) = self.live.remove(&id) else {
            return Err(("no action for an unknown request", id.to_string()));
        };
        self.over.insert(id);
        self.owed.remove(&id);
        let at_the_door = known.place == Place::AtTheDoor;
        if at_the_door && matches!(ending, Ending::Failed(error) if error.reason == Some(Reason::Shed)) {
            // It was let in, and given up in the same event.
            self.admit(now, &known)?;
        }
        let of_ended_step = ended.requests.contains(&id);
        let has_cause = match ending {
            Ending::Completed => match &ended.outcome {
                Some(StepOutcome::Iterated(over)) => over.contains(&id),
                outcome => of_ended_step && *outcome == Some(StepOutcome::Completed),
            },
            Ending::Failed(error) => match error.code {
                ErrorCode::Cancelled => *event == Event::Left(id),
                ErrorCode::DeadlineExceeded if error.reason == Some(Reason::Expired) => known.expires <= now,
                ErrorCode::TooLarge => at_the_door && self.quota_is_used_up(now, &known, error),
                ErrorCode::DeadlineExceeded | ErrorCode::ResourceExhausted => {
                    self.may_be_refused(now, &known, error, at_the_door)
                }
                ErrorCode::Internal => {
                    let failed = matches!(ended.outcome, Some(StepOutcome::Failed(_)));
                    self.stuck_now.contains(&id) || (of_ended_step && failed && ended.requests.len() == 1)
                }
                ErrorCode::Unavailable => {
                    !self.models.contains_key(&known.request.model)
                        || self.memory.may_fail(known.request.model, event)
                        || (at_the_door && self.draining)
                }
                ErrorCode::InvalidArgument => at_the_door && self.is_too_long(&known.request),
                ErrorCode::Unauthenticated
                | ErrorCode::PermissionDenied
                | ErrorCode::NotFound
                | ErrorCode::Unsupported => false,
            },
        };
        let detail = || format!("{id} at {:?} with {ending:?}", known.place);
        hold_or("every ending has its cause", has_cause, detail)
    }

    /// Whether a sequence would be longer than there can be one.
    fn is_too_long(&self, request: &Request) -> bool {
        let longest = self.models.get(&request.model).and_then(|terms| terms.sequences?.longest().into());
        let Work::Generate { prompt, new_max, .. } = request.work else { return false };
        longest.is_some_and(|longest: u32| prompt + new_max > longest)
    }

    fn may_be_refused(&self, now: Time, known: &Known, error: &Error, at_the_door: bool) -> bool {
        let terms = self.models.get(&known.request.model);
        let refuses = terms.is_none_or(|terms| terms.unmet == Unmet::Refuse);
        match error.reason {
            Some(Reason::QueueFull | Reason::ServerFull | Reason::BytesFull) => {
                at_the_door && self.is_full(known)
            }
            // Refused with the numbers; which they are is the scheduler's to know.
            Some(Reason::MemoryFull) => self.memory.is_absent(known.request.model),
            Some(Reason::DeadlineUnmeetable) if self.memory.is_absent(known.request.model) => at_the_door,
            Some(
                Reason::TenantRequests
                | Reason::TenantConcurrency
                | Reason::TenantBytes
                | Reason::TenantDeviceTime,
            ) => at_the_door && self.quota_is_used_up(now, known, error),
            Some(Reason::DeadlineUnmeetable) => {
                at_the_door && known.has_deadline() && refuses && self.discipline == Discipline::Quadrant
            }
            Some(Reason::Shed) => match self.discipline {
                Discipline::Quadrant => !at_the_door && known.has_deadline() && refuses,
                Discipline::Clockwork => true,
                Discipline::Fifo => false,
            },
            Some(Reason::Expired | Reason::EngineAway | Reason::Lethal) | None => false,
        }
    }

    fn begin(&mut self, now: Time, step: &Step) -> Result<(), Broken> {
        let id = step.id;
        hold("a step's number is new", !self.steps.contains_key(&id), &id)?;
        let Some(lane) = self.lanes.iter().find(|lane| lane.id == step.lane).copied() else {
            return Err(("a step runs on a lane that there is", id.to_string()));
        };
        let Some(terms) = self.models.get(&step.model).cloned() else {
            return Err(("a step is of a model that is loaded", id.to_string()));
        };
        hold("a step is of a model that is loaded", !self.memory.is_absent(step.model), &id)?;
        hold("a step runs on a lane of its model's width", self.may_run_on(&terms, lane), &id)?;
        let taken = match self.discipline {
            Discipline::Fifo => self.steps.values().any(|step| step.lane.id == lane.id),
            Discipline::Clockwork => !self.steps.is_empty(),
            Discipline::Quadrant => self.busy_cores(Some(lane.class)).overlaps(lane.cores),
        };
        hold("running steps of one class share no core", !taken, &id)?;
        let mut members = Vec::new();
        for request in &step.requests {
            hold("no step for a request after its end", !self.over.contains(request), &request)?;
            let Some(known) = self.live.get(request) else {
                return Err(("no action for an unknown request", request.to_string()));
            };
            hold("a request runs in one step at a time", known.place == Place::Waits, &request)?;
            members.push(known.clone());
        }
        let has_step = self.steps.values().any(|other| other.model == step.model);
        let runs_alone = terms.sequences.is_none() || !has_step;
        hold("of a model that generates one step runs at a time", runs_alone, &id)?;
        check_batch(now, step, &terms, &members)?;
        for request in &step.requests {
            if let Some(known) = self.live.get_mut(request) {
                known.place = Place::Runs(id);
            }
        }
        let mut patience =
            step.predicted.saturating_mul(self.limits.stall_factor).max(self.limits.stall_floor);
        if lane.class == SchedulingClass::Idle {
            patience *= 10;
        }
        let (requests, parts) = (step.requests.to_vec(), Self::parts(&members, step));
        let begun = Begun { model: step.model, requests, parts, lane, progress: Duration::ZERO, patience };
        self.steps.insert(id, begun);
        self.began_now.extend(&step.requests);
        Ok(())
    }

    /// What goes has nothing to do.
    fn unload(&mut self, model: ModelId) -> Result<(), Broken> {
        let runs = |id: &&RequestId| self.live.get(id).is_some_and(|known| known.request.model == model);
        let running = self.steps.values().flat_map(|step| &step.requests).filter(runs).count();
        hold("no model is unloaded that has work", running == 0, &model)?;
        self.memory.unload(model)
    }

    fn stall(&mut self, lane: LaneId, id: StepId) -> Result<(), Broken> {
        let Some(step) = self.steps.get(&id) else {
            return Err(("no action for an unknown step", id.to_string()));
        };
        let due = step.lane.id == lane && step.patience <= step.progress && !self.stalled.contains(&id);
        hold("a lane is stalled once its step is far over its prediction", due, &id)?;
        self.stuck_now.extend(&step.requests);
        let alive = step.requests.iter().filter(|request| self.live.contains_key(request));
        self.owed.extend(alive);
        self.stalled.insert(id);
        Ok(())
    }

    /// The cores with a step of this class, or of any.
    fn busy_cores(&self, class: Option<SchedulingClass>) -> CoreSet {
        let of_class = self.steps.values().filter(|step| class.is_none_or(|class| step.lane.class == class));
        of_class.fold(CoreSet::EMPTY, |cores, step| cores.union(step.lane.cores))
    }

    /// Counts the time that each step had.
    fn pace(&mut self, now: Time) {
        let passed = now.since(self.paced_at);
        self.paced_at = now;
        let urgent = self.busy_cores(Some(SchedulingClass::Urgent));
        for step in self.steps.values_mut() {
            if step.lane.class == SchedulingClass::Urgent || !step.lane.cores.overlaps(urgent) {
                step.progress += passed;
            }
        }
    }

    fn may_run_on(&self, terms: &ModelTerms, lane: LaneShape) -> bool {
        let widest = self.lanes.iter().map(|lane| lane.cores.len()).max();
        match self.discipline {
            Discipline::Quadrant => {
                terms.widths.iter().any(|width| self.width_for(*width) == Some(lane.cores.len()))
            }
            Discipline::Fifo => terms.lane == Some(lane.id),
            Discipline::Clockwork => widest == Some(lane.cores.len()),
        }
    }

    /// The width of the lanes for steps of this many cores: the widest not wider, else the narrowest.
    fn width_for(&self, width: usize) -> Option<usize> {
        let widths = || self.lanes.iter().map(|lane| lane.cores.len());
        widths().filter(|lane| *lane <= width).max().or(widths().min())
    }
}

fn check_batch(now: Time, step: &Step, terms: &ModelTerms, members: &[Known]) -> Result<(), Broken> {
    let id = step.id;
    let rows: u32 = match terms.sequences {
        None => members.iter().map(|known| known.work().0).sum(),
        Some(_) => step.slices.iter().map(|slice| slice.tokens).sum(),
    };
    let slices = terms.sequences.map_or(0, |_| members.len());
    hold("a step says what it computes of each sequence", step.slices.len() == slices, &id)?;
    hold("of every sequence something is computed", step.slices.iter().all(|slice| slice.tokens > 0), &id)?;
    hold("a step has requests", !members.is_empty(), &id)?;
    let one_model = members.iter().all(|known| known.request.model == step.model);
    hold("a step's requests are of one model", one_model, &id)?;
    let one_shape = members.windows(2).all(|pair| pair[0].work().1 == pair[1].work().1);
    hold("a step's requests are of one shape", one_shape, &id)?;
    hold("a step's rows are the sum of its requests' rows", rows == step.rows, &id)?;
    let is_one = terms.sequences.is_none() && members.len() == 1;
    hold("a step has at most `rows_max` rows", rows <= terms.rows_max || is_one, &id)?;
    let alone = members.len() == 1 || members.iter().all(|known| !known.alone);
    hold("a request of a failed batch runs alone", alone, &id)?;
    let of_use = members.iter().any(|known| known.expires > now);
    hold("no step begins after all of its requests' deadlines", of_use, &id)
}

/// The longest time that the first request of a model may wait for others.
fn ripe_at(known: &Known, delay_max: Duration) -> Time {
    if known.alone { known.request.arrived } else { known.request.arrived + delay_max }
}

fn hold(name: &'static str, holds: bool, detail: &impl ToString) -> Result<(), Broken> {
    hold_or(name, holds, || detail.to_string())
}

fn hold_or(name: &'static str, holds: bool, detail: impl FnOnce() -> String) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err((name, detail())) }
}

fn first<T: ToString>(mut items: impl Iterator<Item = T>) -> String {
    items.next().map(|item| item.to_string()).unwrap_or_default()
}
