//! Which batch begins on which lane, now that something has changed.
//!
//! Each discipline has its own file; what they share is here: the walk over the models in the order of
//! their first requests, the check that a request can still be in time, and the beginning of a step.

mod clockwork;
mod easy;
mod fifo;
mod iterations;
mod quadrant;
mod slots;

use std::collections::BTreeSet;
use std::ops::Bound;
use std::time::Duration;

use quadrant_types::{CoreSet, ModelId, RequestId, SchedulingClass, StepId, Time};

use crate::admission::too_late;
use crate::cost::{Beside, Kind, Setting};
use crate::policy::Policy;
use crate::queue::{Candidate, OrderKey};
use crate::running::Running;
use crate::span::scaled;
use crate::{Action, Discipline, LaneShape, Step};

/// How much longer than others a step of the idle class may take until it counts as stalled.
const IDLE_PATIENCE: u32 = 10;

/// A batch is left waiting for more rows; those behind it are not.
#[derive(Debug, Default)]
struct Walk {
    after: Option<(OrderKey, ModelId)>,
    /// Batches behind an unripe one of their model.
    behind: BTreeSet<(OrderKey, ModelId)>,
}

impl Policy {
    /// Gives free lanes to waiting batches.
    pub(crate) fn dispatch(&mut self, now: Time, actions: &mut Vec<Action>) {
        self.ripe_at = None;
        self.take_from_paused();
        match self.discipline {
            Discipline::Quadrant => self.dispatch_quadrant(now, actions),
            Discipline::Fifo => self.dispatch_fifo(now, actions),
            Discipline::Clockwork => self.dispatch_clockwork(now, actions),
        }
    }

    /// The next model in the order of the walk, by the first of its requests that is yet to be looked at.
    fn next_head(&self, walk: &mut Walk) -> Option<(OrderKey, ModelId)> {
        let later = |heads: &BTreeSet<_>| match walk.after {
            None => heads.first().copied(),
            Some(after) => heads.range((Bound::Excluded(after), Bound::Unbounded)).next().copied(),
        };
        let candidates = [later(&self.heads), later(&walk.behind)];
        let next = candidates.into_iter().flatten().min();
        walk.after = next.or(walk.after);
        next
    }

    /// Leaves a batch waiting for more rows, and goes on with what is behind it.
    fn wait_until_ripe(&mut self, ripe_at: Time, walk: &mut Walk) {
        self.note_ripe(ripe_at);
        if let Some((key, model)) = walk.after {
            walk.behind.extend(self.models[&model].next_group(key).map(|key| (key, model)));
        }
    }

    fn note_ripe(&mut self, ripe_at: Time) {
        self.ripe_at = Some(self.ripe_at.map_or(ripe_at, |time| time.min(ripe_at)));
    }

    /// Whether a waiting request cannot be in time any more even if it began now.
    fn is_hopeless(&self, now: Time, model: ModelId, key: OrderKey, widths: &[usize]) -> bool {
        let queue = &self.models[&model];
        let waiting = &queue.waiting[&key];
        let sequence = self.sequences.get(&key.id);
        if sequence.is_some_and(|sequence| sequence.generated > 0) {
            // A token that is late is of use all the same.
            return false;
        }
        let slowdown = self.slowdown.least(now);
        let predicted = |width: usize| {
            if let Some(sequence) = sequence {
                let from = self.known_of(queue, &self.live[&key.id].request, sequence);
                return self.rest(queue, (from, sequence.length), width, slowdown);
            }
            let kind = Kind { shape: waiting.shape, rows: waiting.rows, width, beside: Beside::Usual };
            queue.costs.predict_at(kind, waiting.bytes_in, slowdown)
        };
        widths.iter().all(|width| now + predicted(*width) > waiting.deadline)
    }

    /// A step on all of these cores, at present.
    fn setting(&self, now: Time, cores: CoreSet, beside: Beside) -> Setting {
        Setting { width: cores.len(), beside, slowdown: self.slowdown.of(now, cores) }
    }

    /// The batch from this request on, on cores of the least width that its model has, beside whatever runs.
    fn narrow_batch(&self, now: Time, model: ModelId, key: OrderKey, cores: CoreSet) -> Candidate {
        let setting = self.setting(now, cores, self.beside(cores));
        self.batch(now, model, key, Setting { width: self.models[&model].terms.widths[0], ..setting })
    }

    /// The batch from this request on, or the iteration, which may be empty.
    fn batch(&self, now: Time, model: ModelId, key: OrderKey, setting: Setting) -> Candidate {
        let queue = &self.models[&model];
        match queue.terms.sequences {
            Some(_) => self.iteration(now, model, key, setting),
            None => queue.batch_from(key, now, setting),
        }
    }

    /// Whether a step of it runs already, where there may be no more than one.
    fn has_its_step(&self, model: ModelId) -> bool {
        self.models[&model].terms.sequences.is_some() && self.running.iter().any(|step| step.model == model)
    }

    fn give_up_late(&mut self, now: Time, id: RequestId, actions: &mut Vec<Action>) {
        self.note_late(now, id);
        self.give_up(id, too_late(), actions);
    }

    fn start(
        &mut self,
        now: Time,
        model: ModelId,
        lane: LaneShape,
        batch: Candidate,
        actions: &mut Vec<Action>,
    ) {
        let id = StepId(self.next_step);
        self.next_step += 1;
        self.load.note_step(self.running.is_empty() && self.queued == batch.requests.len());
        let share = batch.predicted / batch.kind.rows.max(1);
        batch.victims.iter().for_each(|victim| self.preempt_sequence(now, *victim));
        // What is known is shared before anybody takes a page, which might be the one.
        for (request, place) in batch.requests.iter().zip(&batch.places) {
            self.share_known(model, *request, *place);
        }
        let mut slices = Vec::new();
        for (request, rows) in batch.requests.iter().zip(&batch.parts) {
            self.dequeue(*request, Some(id));
            let live = &self.live[request];
            if live.plan.key.easy {
                self.shares.charge(live.request.tenant, share.saturating_mul(*rows));
            }
            if self.sequences.contains_key(request) {
                slices.push(self.cut_slice(model, *request, *rows));
            }
        }
        let beside = self.neighbour_of(lane.cores);
        let mut patience =
            batch.predicted.saturating_mul(self.limits.stall_factor).max(self.limits.stall_floor);
        if lane.class == SchedulingClass::Idle {
            patience = patience.saturating_mul(IDLE_PATIENCE);
        }
        let mut running = Running {
            id,
            model,
            lane,
            requests: batch.requests.clone(),
            parts: batch.parts.clone(),
            kind: batch.kind,
            bytes: batch.bytes,
            predicted: batch.predicted,
            slowdown: batch.slowdown,
            rarely: self.models[&model].costs.rarely(),
            deadline: batch.deadline,
            easy: batch.easy(),
            began: now,
            progress: Duration::ZERO,
            preempted: false,
            was_preempted: false,
            beside_time: Duration::ZERO,
            neighbour: None,
            booking: None,
            booked_at: Duration::ZERO,
            patience: Some(patience),
        };
        if lane.class == SchedulingClass::Idle && !running.easy {
            let work = scaled(batch.predicted, lane.cores.len() as f64 * self.per_core);
            running.booking = Some(self.demand.book(running.latest_start() + work, work));
        }
        self.running.push(running);
        actions.push(Action::Run(Step {
            id,
            model,
            lane: lane.id,
            requests: batch.requests,
            slices,
            rows: batch.kind.rows,
            predicted: batch.predicted,
            beside,
        }));
    }
}
