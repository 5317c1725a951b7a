//! Best effort: it begins where no other step runs, in the idle class if work with deadlines is about, so
//! that whoever has one finds the core at once. When it has earned a turn, a core is kept for it. Loading
//! models is best effort, too, on a thread of the idle class that takes whatever core is free.

use std::collections::BTreeSet;

use quadrant_types::{CoreSet, ModelId, RequestId, SchedulingClass, ShapeId, Time};

use super::quadrant::{NotNow, PASSED_OVER_MAX, WIDE_GAIN};
use super::slots::Slots;
use crate::cost::{Beside, Kind};
use crate::policy::Policy;
use crate::queue::{BATCH_SCAN_MAX, Candidate, OrderKey};
use crate::span::scaled;
use crate::{Action, LaneShape};

/// Requests that could share a batch; one that runs alone is a group by itself.
type Group = (ModelId, ShapeId, Option<RequestId>);

impl Policy {
    /// Gives best effort a core if it has earned one: one that it already holds, else a free one.
    pub(super) fn give_turn(&mut self) {
        if !self.floor.is_due() {
            return;
        }
        let (mut easy, mut other) = (CoreSet::EMPTY, self.stuck_cores());
        for step in self.running.iter().filter(|step| step.lane.class == SchedulingClass::Idle) {
            let class = if step.easy && !step.is_stuck() { &mut easy } else { &mut other };
            *class = class.union(step.lane.cores);
        }
        let rank = |lane: &LaneShape| (!lane.cores.overlaps(easy), lane.cores.overlaps(other));
        if let Some(lane) = self.fitting(1, SchedulingClass::Urgent).min_by_key(rank) {
            self.floor.give(lane.cores);
        }
    }

    /// A turn of which no use could be made, because all that waits waits for more rows, is over.
    pub(super) fn take_turn_back(&mut self) -> bool {
        // A load uses it by itself.
        let unused = !self.floor.turn().is_empty()
            && self.memory.loading.is_empty()
            && self.turn_is_open(self.slots(CoreSet::EMPTY));
        if unused {
            self.floor.give(CoreSet::EMPTY);
        }
        unused
    }

    /// Begins what has no deadline.
    pub(super) fn dispatch_easy(&mut self, now: Time, mut held: CoreSet, actions: &mut Vec<Action>) {
        let mut passed_over: BTreeSet<Group> = BTreeSet::new();
        while self.shares.len() > 0 && passed_over.len() < PASSED_OVER_MAX {
            let slots = self.slots(held);
            if slots.free.is_empty() && !self.turn_is_open(slots) {
                return;
            }
            let new = |id: &RequestId| !passed_over.contains(&self.group_of(*id));
            let Some(id) = self.shares.iter().take(BATCH_SCAN_MAX).find(new) else { return };
            let live = &self.live[&id];
            let (model, key) = (live.request.model, live.plan.key);
            match self.place_easy(now, model, key, slots) {
                Ok((lane, batch)) if batch.ripe_at <= now => self.start(now, model, lane, batch, actions),
                // It waits for more rows, or for more cores than are free; others need not.
                Ok((_, batch)) => {
                    self.note_ripe(batch.ripe_at);
                    passed_over.insert(self.group_of(id));
                }
                Err(not_now) => {
                    held = held.union(self.cores_to_keep(model, &not_now));
                    passed_over.insert(self.group_of(id));
                }
            }
        }
    }

    fn group_of(&self, id: RequestId) -> Group {
        let live = &self.live[&id];
        let waiting = &self.models[&live.request.model].waiting[&live.plan.key];
        (live.request.model, waiting.shape, waiting.alone.then_some(id))
    }

    fn place_easy(
        &self,
        now: Time,
        model: ModelId,
        key: OrderKey,
        slots: Slots,
    ) -> Result<(LaneShape, Candidate), NotNow> {
        let queue = &self.models[&model];
        if self.has_its_step(model) {
            return Err(NotNow::Nothing);
        }
        if let Some(placed) = self.place_wide_iteration(now, model, key, slots) {
            return Ok(placed);
        }
        let width = queue.terms.widths[0];
        let turn_is_open = self.turn_is_open(slots);
        let usable = |lane: &LaneShape| {
            let is_turn = || turn_is_open && lane.cores.overlaps(self.floor.turn());
            lane.cores.is_subset(slots.free) || (lane.cores.is_subset(slots.open) && is_turn())
        };
        let lane = self.fastest(now, self.fitting(width, SchedulingClass::Urgent).filter(usable));
        let lane = lane.ok_or(NotNow::NoLane)?;
        let batch = self.narrow_batch(now, model, key, lane.cores);
        if batch.requests.is_empty() {
            return Err(NotNow::Nothing);
        }
        if self.load.has_deadlines() {
            let twin = self.idle_twin(model, lane).filter(|_| lane.cores.is_subset(slots.free));
            return Ok((twin.unwrap_or(lane), batch));
        }
        if queue.terms.sequences.is_some() {
            return Ok((lane, batch));
        }
        // Nobody else wants the other cores.
        let to_spare = self.queued == batch.requests.len() && self.load.is_light();
        let widest = queue.terms.widths.last().copied().filter(|widest| *widest > width && to_spare);
        if let Some(widest) = widest {
            let kind = Kind { width: widest, beside: Beside::Nothing, ..batch.kind };
            let wide = queue.costs.predict_at(kind, batch.bytes, batch.slowdown);
            let gains = scaled(wide, WIDE_GAIN) < batch.predicted;
            let may = |lane: &LaneShape| gains && lane.cores.is_subset(slots.free);
            if let Some(wide) = self.fitting(widest, SchedulingClass::Urgent).find(may) {
                let setting = self.setting(now, wide.cores, Beside::Nothing);
                return Ok((wide, queue.batch_from(key, now, setting)));
            }
        }
        Ok((lane, batch))
    }

    /// Whether best effort could begin a step where it is its turn.
    fn turn_is_open(&self, slots: Slots) -> bool {
        let turn = self.floor.turn();
        !turn.is_empty() && turn.is_subset(slots.open) && !self.has_easy(turn)
    }

    fn has_easy(&self, cores: CoreSet) -> bool {
        self.running.iter().any(|step| step.easy && step.lane.cores.overlaps(cores))
    }
}
