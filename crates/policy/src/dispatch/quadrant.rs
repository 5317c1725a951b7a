//! Quadrant's own order: by latest start across all models, steps side by side, one core each unless more
//! are needed or to spare.
//!
//! Every core can hold an urgent step and, preempted by it, one of the idle class. A long step goes into the
//! idle class wherever a core is free, so that a short one with a tight deadline need not wait for it. A
//! step may preempt another only if its own latest start comes first, which keeps the order of deadlines
//! among running steps too. Best effort takes what is left; see `easy.rs`.

use quadrant_types::{CoreSet, ModelId, SchedulingClass, Time};

use super::Walk;
use super::slots::Slots;
use crate::cost::Beside;
use crate::policy::Policy;
use crate::queue::{Candidate, OrderKey};
use crate::running::Running;
use crate::span::scaled;
use crate::{Action, LaneShape};

/// Models that are looked at in vain before the others are left for the next event.
pub(super) const PASSED_OVER_MAX: usize = 16;
/// More cores must make a step this much faster, in its predicted time, to be worth taking for speed alone.
pub(super) const WIDE_GAIN: f64 = 1.15;
/// A step waits for another rather than preempt it if that takes less than this share of its own time.
const WAITS_DIVISOR: u32 = 2;

/// Why a batch does not begin.
pub(super) enum NotNow {
    /// It would not whatever was free: a step of its model runs, or nothing of it can go on.
    Nothing,
    /// No lane that it may have is open.
    NoLane,
    /// It waits rather than preempt, until then at the longest.
    WaitsUntil(Time),
}

impl Policy {
    pub(super) fn dispatch_quadrant(&mut self, now: Time, actions: &mut Vec<Action>) {
        self.give_turn();
        loop {
            let held = self.dispatch_urgent(now, actions);
            self.dispatch_easy(now, held, actions);
            if !self.take_turn_back() {
                return;
            }
        }
    }

    /// Begins what has a deadline. Returns the cores that a step waits for which needs several.
    fn dispatch_urgent(&mut self, now: Time, actions: &mut Vec<Action>) -> CoreSet {
        let (mut walk, mut passed_over) = (Walk::default(), 0);
        let mut kept = CoreSet::EMPTY;
        while passed_over < PASSED_OVER_MAX {
            let Some((key, model)) = self.next_head(&mut walk) else { break };
            let slots = self.slots(self.floor.turn().union(kept));
            if slots.open.is_empty() {
                break;
            }
            // In this order no later one may preempt what runs either.
            if slots.free.is_empty() && key.start_by() >= self.least_pressing(slots) {
                break;
            }
            if self.is_hopeless(now, model, key, &self.models[&model].terms.widths) {
                self.give_up_late(now, key.id, actions);
                walk = Walk::default();
                continue;
            }
            let (lane, batch) = match self.place(now, model, key, slots) {
                Ok(placed) => placed,
                Err(not_now) => {
                    passed_over += 1;
                    kept = kept.union(self.cores_to_keep(model, &not_now));
                    if let NotNow::WaitsUntil(time) = not_now {
                        self.note_ripe(time);
                    }
                    continue;
                }
            };
            if batch.ripe_at > now {
                self.wait_until_ripe(batch.ripe_at, &mut walk);
                continue;
            }
            self.start(now, model, lane, batch, actions);
            // The model may have more work for the next lane, now behind a later head.
            walk = Walk::default();
        }
        kept
    }

    /// A step that needs several cores would never find them free together if narrower ones behind it took
    /// each as it comes.
    pub(super) fn cores_to_keep(&self, model: ModelId, not_now: &NotNow) -> CoreSet {
        let terms = &self.models[&model].terms;
        if matches!(not_now, NotNow::Nothing) || !self.is_wide_only(terms) {
            return CoreSet::EMPTY;
        }
        let stuck = self.stuck_cores();
        let lanes = self.fitting(terms.widths[0], SchedulingClass::Urgent).map(|lane| lane.cores);
        lanes.into_iter().find(|cores| !cores.overlaps(stuck)).unwrap_or_default()
    }

    /// The lane for the batch from this request on, or why there is none for it now.
    fn place(
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
        let (lane, narrow) = self.place_narrow(now, model, key, slots)?;
        if queue.terms.sequences.is_some() {
            return if narrow.requests.is_empty() { Err(NotNow::Nothing) } else { Ok((lane, narrow)) };
        }
        let Some(width) = queue.terms.widths.last().copied().filter(|width| *width > queue.terms.widths[0])
        else {
            return Ok((lane, narrow));
        };
        let in_time = |batch: &Candidate| now + queue.costs.high(batch.predicted) <= batch.deadline;
        let needed = !in_time(&narrow);
        // On all cores it would hold up whoever comes next, and nothing could preempt it.
        let long = self.load.is_long(narrow.predicted);
        let to_spare = !long && self.queued == narrow.requests.len() && self.load.is_light();
        if !needed && !to_spare {
            return Ok((lane, narrow));
        }
        let may =
            |lane: &LaneShape| lane.cores.is_subset(slots.open) && self.pressing(lane.cores) > key.start_by();
        let Some(wide_lane) = self.fitting(width, SchedulingClass::Urgent).find(may) else {
            return Ok((lane, narrow));
        };
        let wide = queue.batch_from(key, now, self.setting(now, wide_lane.cores, Beside::Nothing));
        let gains = scaled(wide.predicted, WIDE_GAIN) < narrow.predicted;
        Ok(if gains { (wide_lane, wide) } else { (lane, narrow) })
    }

    fn place_narrow(
        &self,
        now: Time,
        model: ModelId,
        key: OrderKey,
        slots: Slots,
    ) -> Result<(LaneShape, Candidate), NotNow> {
        let width = self.models[&model].terms.widths[0];
        let lanes =
            || self.fitting(width, SchedulingClass::Urgent).filter(|lane| lane.cores.is_subset(slots.open));
        let batch = |lane: LaneShape| self.narrow_batch(now, model, key, lane.cores);
        let free = lanes().filter(|lane| lane.cores.is_subset(slots.free));
        if let Some(lane) = self.fastest(now, free) {
            let batch = batch(lane);
            let twin = self.idle_twin(model, lane).filter(|_| self.load.is_long(batch.predicted));
            return Ok((twin.unwrap_or(lane), batch));
        }
        let lane = lanes().max_by_key(|lane| self.pressing(lane.cores)).ok_or(NotNow::NoLane)?;
        if key.start_by() >= self.pressing(lane.cores) {
            return Err(NotNow::NoLane);
        }
        let batch = batch(lane);
        if !self.load.is_long(batch.predicted) || self.may_preempt(now, lane, &batch) {
            return Ok((lane, batch));
        }
        // What it waits for may take longer than predicted.
        let start_by = batch.start_by();
        Err(if start_by > now { NotNow::WaitsUntil(start_by) } else { NotNow::NoLane })
    }

    /// A long step that preempts another cannot be preempted itself. So it does not if it could wait for the
    /// other in time and not for long. One that is so long that it could make a short one late leaves a core
    /// open to short ones, if there are several, and makes nobody late whom it preempts.
    fn may_preempt(&self, now: Time, lane: LaneShape, batch: &Candidate) -> bool {
        let on_lane = self.preemptible().filter(|step| step.lane.cores.overlaps(lane.cores) && !step.easy);
        let left = on_lane.map(|step| step.remaining(step.progress)).max();
        let late_otherwise = left.is_none_or(|left| now + left > batch.start_by());
        if !self.load.blocks(batch.predicted) {
            return late_otherwise || left.is_some_and(|left| left > batch.predicted / WAITS_DIVISOR);
        }
        let urgent = |step: &&Running| step.lane.class == SchedulingClass::Urgent;
        let blocking = self.running.iter().filter(urgent).filter(|step| self.load.blocks(step.predicted));
        let lanes = self.fitting(lane.cores.len(), SchedulingClass::Urgent).count();
        let leaves_one = blocking.count() < lanes.saturating_sub(1).max(1);
        late_otherwise && leaves_one && now + batch.predicted <= self.pressing(lane.cores)
    }

    /// The lane whose cores are fastest at present, the first of equals.
    pub(super) fn fastest(&self, now: Time, lanes: impl Iterator<Item = LaneShape>) -> Option<LaneShape> {
        let slowdown = |lane: &LaneShape| self.slowdown.of(now, lane.cores);
        lanes.min_by(|one, other| slowdown(one).total_cmp(&slowdown(other)))
    }

    /// What runs, or is likely to run, beside a step on these cores.
    pub(super) fn beside(&self, cores: CoreSet) -> Beside {
        let usual = if self.queued > 1 { Beside::Usual } else { Beside::Nothing };
        self.neighbour_of(cores).map_or(usual, Beside::Model)
    }
}
