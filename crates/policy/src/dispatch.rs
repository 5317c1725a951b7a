//! Which batch begins on which lane, now that something has changed.
//!
//! Models are looked at in the order of their first requests. A batch that is better off waiting for more
//! rows holds nobody up: neither other models nor the requests of other shapes behind it.

use std::collections::BTreeSet;
use std::ops::Bound;

use quadrant_types::{ModelId, StepId, Time};

use crate::policy::{Policy, Running};
use crate::queue::{Candidate, OrderKey};
use crate::{Action, LaneShape, Step};

impl Policy {
    /// Gives free lanes to the first batches in order. A batch whose lane is not free keeps the cores it
    /// waits for from those behind it, so that a wide step is not starved by narrow ones.
    pub(crate) fn dispatch(&mut self, now: Time, actions: &mut Vec<Action>) {
        self.ripe_at = None;
        let mut free = self.free_cores();
        let stuck = self.stuck_cores();
        let mut after = None;
        // Batches behind an unripe one of their model.
        let mut behind = BTreeSet::new();
        while !free.is_empty() {
            let Some((key, model)) = self.next_batch(after, &behind) else { break };
            after = Some((key, model));
            let queue = &self.models[&model];
            let candidate = queue.batch_from(key);
            if candidate.ripe_at > now {
                self.ripe_at =
                    Some(self.ripe_at.map_or(candidate.ripe_at, |time| time.min(candidate.ripe_at)));
                behind.extend(queue.next_group(key).map(|key| (key, model)));
                continue;
            }
            // No use in waiting for a stalled lane: the model's requests expire.
            let Some(lane) = self.lane_for(queue.terms.width, free, stuck) else { continue };
            if lane.cores.is_subset(free) {
                self.start(now, model, lane, candidate, actions);
                // The model may have more work for the next lane, now behind a later head.
                after = None;
                behind.clear();
            }
            free = free.without(lane.cores);
        }
    }

    fn next_batch(
        &self,
        after: Option<(OrderKey, ModelId)>,
        behind: &BTreeSet<(OrderKey, ModelId)>,
    ) -> Option<(OrderKey, ModelId)> {
        let later = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let candidates = [self.heads.range(later).next(), behind.range(later).next()];
        candidates.into_iter().flatten().min().copied()
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
        self.change_queue(model, |queue| {
            for key in &batch.keys {
                queue.waiting.remove(key);
            }
        });
        self.queued -= batch.keys.len();
        for request in &batch.requests {
            self.live.get_mut(request).expect("waiting requests are live").step = Some(id);
        }
        let patience = batch.predicted.saturating_mul(self.limits.stall_factor).max(self.limits.stall_floor);
        let running = Running {
            model,
            lane,
            requests: batch.requests.clone(),
            rows: batch.rows,
            shape: batch.shape,
            stalls_at: Some(now + patience),
        };
        self.running.insert(id, running);
        actions.push(Action::Run(Step {
            id,
            model,
            lane: lane.id,
            requests: batch.requests,
            rows: batch.rows,
            predicted: batch.predicted,
        }));
    }
}
