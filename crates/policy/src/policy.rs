//! The state machine: what waits, what runs, what is free.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quadrant_types::{
    Ending, Error, ErrorCode, ModelId, Objective, Request, RequestId, ShapeId, StepId, Time, Work,
};

use crate::queue::{ModelQueue, OrderKey, Waiting};
use crate::{Action, Event, LaneShape, Limits, ModelTerms, Requests, StepOutcome, StepReport};

/// The scheduler of one domain.
#[derive(Clone, Debug)]
pub struct Policy {
    pub(crate) limits: Limits,
    pub(crate) lanes: Vec<LaneShape>,
    pub(crate) models: BTreeMap<ModelId, ModelQueue>,
    pub(crate) live: BTreeMap<RequestId, Live>,
    pub(crate) running: BTreeMap<StepId, Running>,
    /// The first waiting request of every model, so that the next step is found without a search.
    pub(crate) heads: BTreeSet<(OrderKey, ModelId)>,
    /// When each live request is of no more use.
    pub(crate) expiries: BTreeSet<(Time, RequestId)>,
    pub(crate) queued: usize,
    pub(crate) bytes_in: u64,
    /// When the first batch that was left waiting for more rows is worth running as it is.
    pub(crate) ripe_at: Option<Time>,
    pub(crate) next_step: u64,
    draining: bool,
    drained: bool,
}

/// A request that arrived and has not ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Live {
    pub(crate) request: Request,
    pub(crate) key: OrderKey,
    /// The step it is in, or `None` while it waits.
    pub(crate) step: Option<StepId>,
}

/// A step on a lane.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    pub(crate) model: ModelId,
    pub(crate) lane: LaneShape,
    pub(crate) requests: Requests,
    pub(crate) rows: u32,
    pub(crate) shape: ShapeId,
    /// When it counts as stalled; `None` once it does.
    pub(crate) stalls_at: Option<Time>,
}

impl Policy {
    /// A scheduler for these lanes.
    ///
    /// # Panics
    /// If there is no lane, or a lane without a core.
    pub fn new(lanes: Vec<LaneShape>, limits: Limits) -> Self {
        assert!(!lanes.is_empty(), "a device has at least one lane");
        assert!(lanes.iter().all(|lane| !lane.cores.is_empty()), "a lane has at least one core");
        Self {
            limits,
            lanes,
            models: BTreeMap::new(),
            live: BTreeMap::new(),
            running: BTreeMap::new(),
            heads: BTreeSet::new(),
            expiries: BTreeSet::new(),
            queued: 0,
            bytes_in: 0,
            ripe_at: None,
            next_step: 0,
            draining: false,
            drained: false,
        }
    }

    /// Takes in one event and appends what is to be done about it.
    pub fn on_event(&mut self, now: Time, event: Event, actions: &mut Vec<Action>) {
        self.expire(now, actions);
        match event {
            Event::ModelUp(model, terms) => self.model_up(model, terms),
            Event::ModelDown(model) => self.model_down(model, actions),
            Event::Arrived(request) => self.arrived(now, request, actions),
            Event::Left(request) => self.left(request, actions),
            Event::Ended(report) => self.ended(report, actions),
            Event::Drain => self.draining = true,
            Event::Tick => {}
        }
        self.mark_stalled(now, actions);
        self.dispatch(now, actions);
        // A lane may also be busy for requests that are gone; one that is stuck may never be free again.
        let busy = self.running.values().any(|step| step.stalls_at.is_some());
        if self.draining && !self.drained && self.live.is_empty() && !busy {
            self.drained = true;
            actions.push(Action::Drained);
        }
    }

    /// When [`Event::Tick`] is due, if nothing else happens before.
    pub fn next_deadline(&self) -> Option<Time> {
        let expiry = self.expiries.first().map(|(time, _)| *time);
        let stall = self.running.values().filter_map(|step| step.stalls_at).min();
        [expiry, stall, self.ripe_at].into_iter().flatten().min()
    }

    /// Requests of this model that wait.
    pub fn queued(&self, model: ModelId) -> usize {
        self.models.get(&model).map_or(0, |queue| queue.waiting.len())
    }

    fn model_up(&mut self, model: ModelId, terms: ModelTerms) {
        self.models.insert(model, ModelQueue::new(terms));
    }

    fn model_down(&mut self, model: ModelId, actions: &mut Vec<Action>) {
        let Some(queue) = self.models.get(&model) else { return };
        let waiting: Vec<RequestId> = queue.waiting.keys().map(|key| key.id).collect();
        for id in waiting {
            self.end(id, Ending::Failed(unloaded()), actions);
        }
        // What runs is finished; it needs nothing of what was kept here.
        self.models.remove(&model);
    }

    fn arrived(&mut self, now: Time, request: Request, actions: &mut Vec<Action>) {
        match self.admit(now, &request) {
            Ok(deadline) => self.accept(request, deadline),
            Err(error) => actions.push(Action::End(request.id, Ending::Failed(error))),
        }
    }

    /// Until when the request is of use, or why it is refused.
    fn admit(&self, now: Time, request: &Request) -> Result<Time, Error> {
        let Work::Once { bytes_in, .. } = request.work;
        if self.draining {
            return Err(Error::new(ErrorCode::Unavailable, "the server is shutting down"));
        }
        let Some(queue) = self.models.get(&request.model) else {
            return Err(Error::new(ErrorCode::Unavailable, "the model is not loaded"));
        };
        let full = |what: String| {
            Error::new(ErrorCode::ResourceExhausted, what).retry_after(self.time_to_drain(queue))
        };
        let (waiting, queue_max) = (queue.waiting.len(), queue.terms.queue_max);
        if waiting >= queue_max {
            return Err(full(format!(
                "the model's queue is full: `{waiting}` of `{queue_max}` requests wait"
            )));
        }
        if self.queued >= self.limits.queued_requests_max {
            let queued_max = self.limits.queued_requests_max;
            return Err(full(format!("the server's queue is full: `{queued_max}` requests wait")));
        }
        if self.bytes_in.saturating_add(bytes_in) > self.limits.bytes_in_max {
            let (held, bytes_max) = (self.bytes_in, self.limits.bytes_in_max);
            return Err(full(format!(
                "inputs in flight are at their limit: `{held}` of `{bytes_max}` bytes"
            )));
        }
        let latest = request.arrived + self.limits.wait_max;
        let deadline = match request.objective {
            Objective::BestEffort => latest,
            Objective::EndBy(time) => time.min(latest),
        };
        if deadline <= now {
            return Err(expired());
        }
        Ok(deadline)
    }

    /// A guess at how long this model's queue takes, for `Retry-After`.
    fn time_to_drain(&self, queue: &ModelQueue) -> Duration {
        let rows: u32 = queue.waiting.values().fold(0, |sum, waiting| sum.saturating_add(waiting.rows));
        let one_row = queue.costs.predict(ShapeId::default(), 1, queue.terms.row_bytes);
        let lanes = u32::try_from(self.lanes.len()).unwrap_or(u32::MAX);
        one_row.saturating_mul(rows) / lanes
    }

    fn accept(&mut self, request: Request, deadline: Time) {
        let Work::Once { bytes_in, .. } = request.work;
        let key = OrderKey { priority: request.priority, deadline, id: request.id };
        let replaced = self.live.insert(request.id, Live { request, key, step: None });
        assert!(replaced.is_none(), "request ids are never reused");
        self.expiries.insert((deadline, request.id));
        self.bytes_in += bytes_in;
        self.enqueue(&request, key, false);
    }

    fn enqueue(&mut self, request: &Request, key: OrderKey, alone: bool) {
        let Work::Once { rows, shape, bytes_in } = request.work;
        let waiting = Waiting { arrived: request.arrived, rows, shape, bytes_in, alone };
        self.change_queue(request.model, |queue| {
            queue.waiting.insert(key, waiting);
        });
        self.queued += 1;
    }

    /// Changes a queue and keeps the order of the heads in step with it.
    pub(crate) fn change_queue(&mut self, model: ModelId, change: impl FnOnce(&mut ModelQueue)) {
        let queue = self.models.get_mut(&model).expect("a live request's model is known");
        let before = queue.head();
        change(queue);
        let after = queue.head();
        if before != after {
            if let Some(key) = before {
                self.heads.remove(&(key, model));
            }
            if let Some(key) = after {
                self.heads.insert((key, model));
            }
        }
    }

    fn left(&mut self, id: RequestId, actions: &mut Vec<Action>) {
        if self.live.contains_key(&id) {
            let gone = Error::new(ErrorCode::Cancelled, "the client left");
            self.end(id, Ending::Failed(gone), actions);
        }
    }

    fn expire(&mut self, now: Time, actions: &mut Vec<Action>) {
        while let Some((_, id)) = self.expiries.first().filter(|(time, _)| *time <= now).copied() {
            self.end(id, Ending::Failed(expired()), actions);
        }
    }

    /// Forgets a live request, wherever it is, and says how it ended. The one way out.
    fn end(&mut self, id: RequestId, ending: Ending, actions: &mut Vec<Action>) {
        let live = self.live.remove(&id).expect("only live requests end");
        let Work::Once { bytes_in, .. } = live.request.work;
        self.expiries.remove(&(live.key.deadline, id));
        self.bytes_in -= bytes_in;
        if live.step.is_none() {
            self.change_queue(live.request.model, |queue| {
                queue.waiting.remove(&live.key);
            });
            self.queued -= 1;
        }
        actions.push(Action::End(id, ending));
    }

    fn ended(&mut self, report: StepReport, actions: &mut Vec<Action>) {
        let Some(step) = self.running.remove(&report.step) else { return };
        if step.stalls_at.is_none() {
            actions.push(Action::LaneRecovered(step.lane.id));
        }
        let several = step.requests.len() > 1;
        let still_live: Requests =
            step.requests.iter().copied().filter(|id| self.live.contains_key(id)).collect();
        match report.outcome {
            StepOutcome::Completed => {
                if let Some(queue) = self.models.get_mut(&step.model) {
                    queue.costs.learn(step.shape, step.rows, report.ended.since(report.began));
                }
                for id in still_live {
                    self.end(id, Ending::Completed, actions);
                }
            }
            StepOutcome::Failed(_) if several && !self.models.contains_key(&step.model) => {
                for id in still_live {
                    self.end(id, Ending::Failed(unloaded()), actions);
                }
            }
            StepOutcome::Failed(_) if several => self.retry_alone(&still_live),
            StepOutcome::Failed(error) => {
                for id in still_live {
                    self.end(id, Ending::Failed(error.clone()), actions);
                }
            }
        }
    }

    /// Puts the requests of a failed batch back, each to run by itself: one of them may be to blame, and
    /// the others should not pay for it.
    fn retry_alone(&mut self, requests: &[RequestId]) {
        for id in requests {
            let live = self.live.get_mut(id).expect("checked by the caller");
            live.step = None;
            let live = *live;
            self.enqueue(&live.request, live.key, true);
        }
    }

    fn mark_stalled(&mut self, now: Time, actions: &mut Vec<Action>) {
        let stalled: Vec<StepId> = self
            .running
            .iter()
            .filter(|(_, step)| step.stalls_at.is_some_and(|time| time <= now))
            .map(|(id, _)| *id)
            .collect();
        for id in stalled {
            let step = self.running.get_mut(&id).expect("just found");
            step.stalls_at = None;
            actions.push(Action::LaneStalled(step.lane.id, id));
            for request in step.requests.clone() {
                if self.live.contains_key(&request) {
                    let stuck = Error::new(ErrorCode::Internal, "the engine is stuck on this step");
                    self.end(request, Ending::Failed(stuck), actions);
                }
            }
        }
    }
}

fn unloaded() -> Error {
    Error::new(ErrorCode::Unavailable, "the model was unloaded")
}

fn expired() -> Error {
    Error::new(ErrorCode::DeadlineExceeded, "the request's time ran out before its answer was ready")
}
