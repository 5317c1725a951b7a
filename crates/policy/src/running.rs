//! Steps on lanes: how far they are, who holds whom up, what is left of them.
//!
//! An urgent step on a core preempts an idle-class one there; the operating system does it, and the same
//! is kept account of here. So a step's progress is the time it really had, predictions are compared with
//! that, and a preempted step is not taken for a stalled one.

use std::time::Duration;

use quadrant_types::{CoreSet, Ending, Error, ErrorCode, LaneId, ModelId, SchedulingClass, StepId, Time};

use crate::cost::{Beside, Kind};
use crate::demand::Booking;
use crate::queue::Parts;
use crate::span::{as_nanos, from_nanos, scaled};
use crate::{Action, LaneShape, Policy, Requests, StepReport};

/// A step that has used its predicted time up is expected to need this share of it again.
const OVERTIME_DIVISOR: u32 = 10;
/// Progress after which the work that is booked for a running step is corrected.
const REBOOK_AFTER: Duration = Duration::from_millis(1);

/// A step on a lane.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    pub(crate) id: StepId,
    pub(crate) model: ModelId,
    pub(crate) lane: LaneShape,
    pub(crate) requests: Requests,
    /// Rows of each of them.
    pub(crate) parts: Parts,
    pub(crate) kind: Kind,
    pub(crate) bytes: u64,
    pub(crate) predicted: Duration,
    /// How many times longer than usually that is.
    pub(crate) slowdown: f64,
    /// How many times longer than predicted it rarely takes.
    pub(crate) rarely: f64,
    /// When its first request is to be done; [`Time::MAX`] for best effort.
    pub(crate) deadline: Time,
    pub(crate) easy: bool,
    pub(crate) began: Time,
    /// The time it really had, until the books were last brought up to date.
    pub(crate) progress: Duration,
    pub(crate) preempted: bool,
    /// Whether it ever was.
    pub(crate) was_preempted: bool,
    /// Of its progress, the time during which something ran beside it, and what that was.
    pub(crate) beside_time: Duration,
    pub(crate) neighbour: Option<ModelId>,
    /// What is booked for the rest of it, if more urgent steps can preempt it.
    pub(crate) booking: Option<Booking>,
    pub(crate) booked_at: Duration,
    /// The progress at which it counts as stalled; `None` once it does. More for one of the idle class, which
    /// anything else on the machine can hold up.
    pub(crate) patience: Option<Duration>,
}

impl Running {
    pub(crate) fn is_stuck(&self) -> bool {
        self.patience.is_none()
    }

    /// What is predicted to be left of it.
    pub(crate) fn remaining(&self, progress: Duration) -> Duration {
        self.predicted.saturating_sub(progress).max(self.predicted / OVERTIME_DIVISOR)
    }

    /// When the rest of it has to go on at the latest, so that it is rarely late.
    pub(crate) fn latest_start(&self) -> Time {
        let left = self.remaining(self.progress);
        self.deadline - scaled(left, self.rarely)
    }

    /// The kind of step it turned out to be.
    pub(crate) fn kind_seen(&self) -> Kind {
        let beside = match self.neighbour {
            Some(model) if self.beside_time * 2 > self.progress => Beside::Model(model),
            Some(_) | None => Beside::Nothing,
        };
        Kind { beside, ..self.kind }
    }
}

impl Policy {
    /// The lanes that are stalled now.
    pub fn stalled_lanes(&self) -> impl Iterator<Item = LaneId> {
        self.running.iter().filter(|step| step.is_stuck()).map(|step| step.lane.id)
    }

    /// Brings the progress of all steps up to date.
    pub(crate) fn pace(&mut self, now: Time) {
        let passed = now.since(self.paced_at);
        self.paced_at = now;
        if passed.is_zero() || self.running.is_empty() {
            return;
        }
        for index in 0..self.running.len() {
            if self.running[index].preempted {
                continue;
            }
            let neighbour = self.neighbour_of(self.running[index].lane.cores);
            let step = &mut self.running[index];
            step.progress += passed;
            if neighbour.is_some() {
                step.beside_time += passed;
                step.neighbour = neighbour;
            }
        }
    }

    /// Says which steps are held up, now that one has begun or ended, and what best effort runs.
    pub(crate) fn note_preemption(&mut self) {
        let urgent = self.busy_cores(SchedulingClass::Urgent);
        let mut easy_cores = 0;
        let mut easy = false;
        for step in &mut self.running {
            step.preempted = step.lane.class == SchedulingClass::Idle && step.lane.cores.overlaps(urgent);
            step.was_preempted |= step.preempted;
            easy |= step.easy && !step.is_stuck();
            easy_cores +=
                if step.easy && !step.preempted && !step.is_stuck() { step.lane.cores.len() } else { 0 };
        }
        // A load is best effort that runs wherever nothing urgent does.
        let loads = self.memory.loading.len();
        if easy_cores == 0 {
            easy_cores = self.cores.without(urgent).len().min(loads);
        }
        self.floor.note(easy || loads > 0 || self.shares.len() > 0, easy_cores);
    }

    /// Corrects what is booked for running steps by what they have done since.
    pub(crate) fn rebook_running(&mut self) {
        for step in &mut self.running {
            let Some(booking) = step.booking.filter(|_| step.progress >= step.booked_at + REBOOK_AFTER)
            else {
                continue;
            };
            self.demand.release(booking);
            let left = step.remaining(step.progress);
            let work = scaled(left, step.lane.cores.len() as f64 * self.per_core);
            step.booking = Some(self.demand.book(step.latest_start() + work, work));
            step.booked_at = step.progress;
        }
    }

    /// The cores with a step in this class.
    pub(crate) fn busy_cores(&self, class: SchedulingClass) -> CoreSet {
        let of_class = self.running.iter().filter(|step| step.lane.class == class);
        of_class.fold(CoreSet::EMPTY, |cores, step| cores.union(step.lane.cores))
    }

    /// Cores that a stuck step holds. One of the idle class does not: urgent steps preempt it.
    pub(crate) fn stuck_cores(&self) -> CoreSet {
        let urgent = |step: &&Running| step.lane.class == SchedulingClass::Urgent;
        let stuck = self.running.iter().filter(|step| step.is_stuck()).filter(urgent);
        stuck.fold(CoreSet::EMPTY, |cores, step| cores.union(step.lane.cores))
    }

    /// The share of the whole device's time that steps which nothing preempts will still take, none of them
    /// counted for longer than `within`.
    pub(crate) fn ahead(&self, within: Duration) -> Duration {
        let fixed = self.running.iter().filter(|step| step.booking.is_none() && !step.is_stuck());
        let nanos =
            fixed.filter(|step| !(step.easy && step.lane.class == SchedulingClass::Idle)).map(|step| {
                as_nanos(step.remaining(step.progress).min(within))
                    * step.lane.cores.len() as f64
                    * self.per_core
            });
        from_nanos(nanos.sum())
    }

    /// What runs on other cores than these.
    pub(crate) fn neighbour_of(&self, cores: CoreSet) -> Option<ModelId> {
        let beside = |step: &&crate::running::Running| !step.preempted && !step.lane.cores.overlaps(cores);
        self.running.iter().find(beside).map(|step| step.model)
    }

    /// When the first step counts as stalled, as things are.
    pub(crate) fn next_stall(&self) -> Option<Time> {
        let due = |step: &Running| match step.patience {
            Some(patience) if !step.preempted => Some(self.paced_at + patience.saturating_sub(step.progress)),
            Some(_) | None => None,
        };
        self.running.iter().filter_map(due).min()
    }

    /// Steps that have just become stalled.
    fn newly_stalled(&self) -> Vec<StepId> {
        let over = |step: &Running| step.patience.is_some_and(|patience| step.progress >= patience);
        self.running.iter().filter(|step| over(step)).map(|step| step.id).collect()
    }

    /// Takes in how long a step really took: the time it had, without what passed until its lane took it up
    /// and until its report came. A stalled step says nothing about the next.
    pub(crate) fn learn(&mut self, now: Time, step: &Running, report: &StepReport) {
        let reporting = now.since(report.ended);
        // How long a preempted step took to begin is part of what preempted it.
        let handoff = if step.was_preempted { reporting } else { reporting + report.began.since(step.began) };
        if step.lane.class == SchedulingClass::Urgent {
            self.load.note_handoff(handoff);
        }
        let Some(queue) = self.models.get_mut(&step.model).filter(|_| !step.is_stuck()) else { return };
        if !queue.warm.contains(&step.lane.id) {
            queue.warm.push(step.lane.id);
            return;
        }
        let actual = step.progress.saturating_sub(handoff);
        let kind = step.kind_seen();
        let usual = queue.costs.learn(kind, step.bytes, (step.predicted, actual), step.slowdown);
        if let Some(usual) = usual {
            self.slowdown.note(now, step.lane.cores, usual, actual);
        }
        queue.doubt.note_learnt(now, step.predicted, actual);
    }

    /// Ends what waits for a step that takes far too long. If its engine runs in a process of its own, that
    /// is killed for it, and the requests are dealt with when it is gone.
    pub(crate) fn mark_stalled(&mut self, actions: &mut Vec<Action>) {
        for id in self.newly_stalled() {
            let step = self.running.iter_mut().find(|step| step.id == id).expect("just found");
            step.patience = None;
            if let Some(booking) = step.booking.take() {
                self.demand.release(booking);
            }
            actions.push(Action::LaneStalled(step.lane.id, id));
            if self.hosts.has(step.model) {
                continue;
            }
            for request in step.requests.clone() {
                if self.live.contains_key(&request) {
                    let stuck = Error::new(ErrorCode::Internal, "the engine is stuck on this step");
                    self.end(request, Ending::Failed(stuck), actions);
                }
            }
        }
    }
}
