//! Keeps its own books of what the scheduler was told and what it asked for, and compares the two.
//!
//! The books are deliberately naive (no heads, no sums kept in step, no incremental orders): they are a
//! second opinion. What is asked after every event has a name, which is what a violation shows.

mod intake;
mod waiting;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quadrant_policy::{Action, Event, LaneShape, Limits, ModelTerms, Step, StepOutcome};
use quadrant_types::{CoreSet, Ending, ErrorCode, LaneId, ModelId, Request, RequestId, StepId, Time, Work};

/// Which invariant was broken, and how.
pub(crate) type Broken = (&'static str, String);

#[derive(Debug)]
pub(crate) struct Checker {
    lanes: Vec<LaneShape>,
    limits: Limits,
    models: BTreeMap<ModelId, ModelTerms>,
    live: BTreeMap<RequestId, Known>,
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
    /// What began in this event: the order of its first request, and where.
    began_now: Vec<(Order, CoreSet)>,
}

/// Priority, deadline, arrival: the order that the scheduler promises.
type Order = (u32, Time, RequestId);

#[derive(Clone, Debug)]
struct Known {
    request: Request,
    deadline: Time,
    place: Place,
    /// It was in a batch that failed.
    alone: bool,
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
    requests: Vec<RequestId>,
    lane: LaneShape,
    /// When its lane is to be declared stalled.
    patience_until: Time,
}

impl Known {
    fn order(&self) -> Order {
        (self.request.priority.0, self.deadline, self.request.id)
    }

    fn work(&self) -> (u32, u32, u64) {
        let Work::Once { rows, shape, bytes_in } = self.request.work;
        (rows, shape.0, bytes_in)
    }
}

impl Checker {
    pub(crate) fn new(lanes: Vec<LaneShape>, limits: Limits) -> Self {
        Self {
            lanes,
            limits,
            models: BTreeMap::new(),
            live: BTreeMap::new(),
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
        let ended = self.take_in(event);
        for action in actions {
            match action {
                Action::End(id, ending) => self.end(now, *id, ending, event, &ended)?,
                Action::Run(step) => {
                    self.let_in()?;
                    self.begin(now, step)?;
                }
                Action::LaneStalled(lane, step) => self.stall(now, *lane, *step)?,
                Action::LaneRecovered(lane) => {
                    hold("a lane recovers when its stalled step ends", ended.stalled == Some(*lane), &lane)?;
                }
                Action::Drained => {
                    hold("`Drained` comes once, and after `Drain`", self.draining && !self.drained, &"")?;
                    self.drained = true;
                }
            }
        }
        self.let_in()?;
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
        let of_ended_step = ended.requests.contains(&id);
        let has_cause = match ending {
            Ending::Completed => of_ended_step && ended.outcome == Some(StepOutcome::Completed),
            Ending::Failed(error) => match error.code {
                ErrorCode::Cancelled => *event == Event::Left(id),
                ErrorCode::DeadlineExceeded => known.deadline <= now,
                ErrorCode::Internal => {
                    let failed = matches!(ended.outcome, Some(StepOutcome::Failed(_)));
                    self.stuck_now.contains(&id) || (of_ended_step && failed && ended.requests.len() == 1)
                }
                ErrorCode::Unavailable => {
                    !self.models.contains_key(&known.request.model) || (at_the_door && self.draining)
                }
                ErrorCode::ResourceExhausted => at_the_door && self.is_full(&known),
                ErrorCode::InvalidArgument
                | ErrorCode::NotFound
                | ErrorCode::TooLarge
                | ErrorCode::Unsupported => false,
            },
        };
        let detail = || format!("{id} at {:?} with {ending:?}", known.place);
        hold_or("every ending has its cause", has_cause, detail)
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
        let fits = self.fitting(terms.width).any(|fitting| fitting.id == lane.id);
        hold("a step runs on a lane of its model's width", fits, &id)?;
        let cores_are_free = self.busy_cores().without(lane.cores) == self.busy_cores();
        hold("running steps share no core", cores_are_free, &id)?;
        let mut members = Vec::new();
        for request in &step.requests {
            hold("no step for a request after its end", !self.over.contains(request), &request)?;
            let Some(known) = self.live.get(request) else {
                return Err(("no action for an unknown request", request.to_string()));
            };
            hold("a request runs in one step at a time", known.place == Place::Waits, &request)?;
            members.push(known.clone());
        }
        check_batch(now, step, &terms, &members)?;
        for request in &step.requests {
            if let Some(known) = self.live.get_mut(request) {
                known.place = Place::Runs(id);
            }
        }
        let patience = step.predicted.saturating_mul(self.limits.stall_factor).max(self.limits.stall_floor);
        let begun = Begun { requests: step.requests.to_vec(), lane, patience_until: now + patience };
        self.steps.insert(id, begun);
        self.began_now.extend(members.iter().map(Known::order).min().map(|order| (order, lane.cores)));
        Ok(())
    }

    fn stall(&mut self, now: Time, lane: LaneId, id: StepId) -> Result<(), Broken> {
        let Some(step) = self.steps.get(&id) else {
            return Err(("no action for an unknown step", id.to_string()));
        };
        let due = step.lane.id == lane && step.patience_until <= now && !self.stalled.contains(&id);
        hold("a lane is stalled once its step is far over its prediction", due, &id)?;
        self.stuck_now.extend(&step.requests);
        let alive = step.requests.iter().filter(|request| self.live.contains_key(request));
        self.owed.extend(alive);
        self.stalled.insert(id);
        Ok(())
    }

    fn busy_cores(&self) -> CoreSet {
        self.steps.values().fold(CoreSet::EMPTY, |cores, step| cores.union(step.lane.cores))
    }

    /// The lanes for a model of this width: the widest not wider than it, else the narrowest.
    fn fitting(&self, width: usize) -> impl Iterator<Item = LaneShape> {
        let widths = || self.lanes.iter().map(|lane| lane.cores.len());
        let chosen = widths().filter(|lane| *lane <= width).max().or(widths().min());
        self.lanes.iter().copied().filter(move |lane| Some(lane.cores.len()) == chosen)
    }
}

fn check_batch(now: Time, step: &Step, terms: &ModelTerms, members: &[Known]) -> Result<(), Broken> {
    let id = step.id;
    let rows: u32 = members.iter().map(|known| known.work().0).sum();
    hold("a step has requests", !members.is_empty(), &id)?;
    let one_model = members.iter().all(|known| known.request.model == step.model);
    hold("a step's requests are of one model", one_model, &id)?;
    let one_shape = members.windows(2).all(|pair| pair[0].work().1 == pair[1].work().1);
    hold("a step's requests are of one shape", one_shape, &id)?;
    hold("a step's rows are the sum of its requests' rows", rows == step.rows, &id)?;
    hold("a step has at most `rows_max` rows", rows <= terms.rows_max || members.len() == 1, &id)?;
    let alone = members.len() == 1 || members.iter().all(|known| !known.alone);
    hold("a request of a failed batch runs alone", alone, &id)?;
    let of_use = members.iter().any(|known| known.deadline > now);
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

#[cfg(test)]
mod tests {
    use quadrant_types::{Objective, Priority, ShapeId};

    use super::*;

    /// Elsewhere an expired request is noticed before its step begins; so this one is asked directly.
    #[test]
    fn a_step_after_the_deadline_is_found() {
        let (ms, model) = (|ms| Time::ZERO + Duration::from_millis(ms), ModelId(0));
        let lane = LaneShape { id: LaneId(0), cores: CoreSet::from_cores([0]) };
        let mut checker = Checker::new(vec![lane], Limits::default());
        let terms = ModelTerms {
            rows_max: 2,
            width: 1,
            queue_max: 1,
            delay_max: Duration::from_secs(1),
            costs: vec![(1, Duration::ZERO)],
            row_bytes: 1,
        };
        let request = Request {
            id: RequestId(0),
            model,
            priority: Priority::default(),
            arrived: ms(0),
            objective: Objective::EndBy(ms(5)),
            work: Work::Once { rows: 1, shape: ShapeId(0), bytes_in: 1 },
        };
        let step = Step {
            id: StepId(0),
            model,
            lane: lane.id,
            requests: [request.id].into_iter().collect(),
            rows: 1,
            predicted: Duration::ZERO,
        };
        checker.check(ms(0), &Event::ModelUp(model, terms), &[], None).unwrap();
        checker.check(ms(0), &Event::Arrived(request), &[], Some(ms(5))).unwrap();
        let (invariant, _) =
            checker.check(ms(5), &Event::Tick, &[Action::Run(step)], Some(ms(6))).unwrap_err();
        assert_eq!(invariant, "no step begins after all of its requests' deadlines");
    }
}
