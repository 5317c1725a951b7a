//! What must hold after every event, by name. The property tests, the simulator and (as a counter) the
//! running server all ask the same question.

use std::collections::BTreeSet;

use quadrant_types::{CoreSet, SchedulingClass};

use crate::residency::Stage;
use crate::{Discipline, Policy};

/// What should hold, and whether it does.
type Check = (&'static str, fn(&Policy) -> bool);

impl Policy {
    /// The name of the first invariant that does not hold, if any. Costs time in proportion to what is
    /// live, so production asks only now and then.
    pub fn violated_invariant(&self) -> Option<&'static str> {
        let checks: [Check; 13] = [
            (
                "every live request waits in exactly one queue or runs in exactly one step",
                Self::each_in_one_place,
            ),
            ("every waiting request is live", Self::waiting_are_live),
            ("running steps of one class share no core", Self::cores_are_exclusive),
            ("what waits with a deadline is booked and ranked, and nothing else", Self::bookings_match),
            ("what waits without a deadline is shared out", Self::shares_match),
            ("every live request has one expiry", Self::expiries_match),
            ("queued requests and bytes in flight are counted right", Self::sums_match),
            ("queued requests and bytes in flight are within their limits", Self::within_limits),
            ("the heads are the first of each queue", Self::heads_match),
            (
                "reserved bytes are within the budget, and models are where the books say",
                Self::memory_is_sound,
            ),
            ("what a tenant holds is the sum of what its requests hold", Self::quotas_match),
            ("pages are with the sequences that have them", Self::pages_are_sound),
            ("no tenant has more requests at once than it may", Self::quotas_hold),
        ];
        checks.into_iter().find(|(_, holds)| !holds(self)).map(|(name, _)| name)
    }

    fn each_in_one_place(&self) -> bool {
        self.live.iter().all(|(id, live)| {
            let queued =
                self.models.get(&live.request.model).is_some_and(|q| q.waiting.contains_key(&live.plan.key));
            let steps = self.running.iter().filter(|step| step.requests.contains(id));
            let steps: Vec<_> = steps.map(|step| step.id).collect();
            let parked = self.memory.get(live.request.model).is_some_and(|held| held.parked.contains(id));
            match live.step {
                None => {
                    let aside = self.hosts.is_aside(live.request.model, *id);
                    let paused = live.paused;
                    parked == live.parked
                        && aside == live.aside
                        && [queued, parked, aside, paused].into_iter().filter(|place| *place).count() == 1
                }
                Some(step) => !queued && !parked && steps.contains(&step),
            }
        })
    }

    fn waiting_are_live(&self) -> bool {
        let mut seen = BTreeSet::new();
        self.models
            .values()
            .flat_map(|queue| queue.waiting.keys())
            .all(|key| seen.insert(key.id) && self.live.contains_key(&key.id))
    }

    /// Where every model has its own lane, steps share cores on purpose.
    fn cores_are_exclusive(&self) -> bool {
        [SchedulingClass::Urgent, SchedulingClass::Idle].into_iter().all(|class| {
            let (mut taken, mut sum) = (CoreSet::EMPTY, 0);
            for step in self.running.iter().filter(|step| step.lane.class == class) {
                taken = taken.union(step.lane.cores);
                sum += step.lane.cores.len();
            }
            taken.len() == sum || self.discipline == Discipline::Fifo
        })
    }

    fn bookings_match(&self) -> bool {
        let quadrant = self.discipline == Discipline::Quadrant;
        let urgent = self.models.values().flat_map(|queue| queue.waiting.keys()).filter(|key| !key.easy);
        let ranked: BTreeSet<_> = self.ranked.iter().map(|(_, key)| *key).collect();
        let waits = |live: &crate::live::Live| live.waits() && !live.plan.key.easy;
        let running = self.running.iter().filter(|step| step.booking.is_some()).count();
        let rows = |queue: &crate::queue::ModelQueue| {
            let urgent = queue.waiting.iter().filter(|(key, _)| !key.easy);
            urgent.map(|(_, waiting)| waiting.rows).sum::<u32>() == queue.urgent_rows
        };
        self.live.values().all(|live| live.booking.is_some() == (quadrant && waits(live)))
            && (!quadrant || ranked == urgent.copied().collect())
            && self.demand.booked() == ranked.len() + running
            && self.models.values().all(rows)
    }

    fn shares_match(&self) -> bool {
        let easy = self.live.values().filter(|live| live.waits() && live.plan.key.easy).count();
        self.shares.len() == easy && self.shares.iter().count() == easy
    }

    fn expiries_match(&self) -> bool {
        self.expiries.len() == self.live.len()
            && self.live.iter().all(|(id, live)| self.expiries.contains(&(live.plan.expires, *id)))
    }

    fn sums_match(&self) -> bool {
        let waiting: usize = self.models.values().map(|queue| queue.waiting.len()).sum();
        let queued = waiting + self.memory.iter().map(|(_, held)| held.parked.len()).sum::<usize>();
        let bytes: u64 = self.live.values().map(|live| live.request.work.bytes_in()).sum();
        queued == self.queued && bytes == self.bytes_in
    }

    /// A failed batch goes back into its queue, so the count may pass the limit by what was running.
    fn within_limits(&self) -> bool {
        let running_max: u32 = self.models.values().map(|queue| queue.terms.rows_max).max().unwrap_or(0);
        let slack = running_max as usize * self.lanes.len();
        self.queued <= self.limits.queued_requests_max.saturating_add(slack)
            && self.bytes_in <= self.limits.bytes_in_max
    }

    /// A model that is not resident has neither waiting nor running work, so none is evicted that has.
    fn memory_is_sound(&self) -> bool {
        let idle = |model| {
            self.models.get(&model).is_none_or(|queue| queue.waiting.is_empty())
                && self.aside(model) == 0
                && self.running.iter().all(|step| step.model != model || step.is_stuck())
        };
        self.memory.is_sound()
            && self.memory.iter().all(|(model, held)| held.stage == Stage::Resident || idle(model))
    }

    fn heads_match(&self) -> bool {
        let heads: BTreeSet<_> =
            self.models.iter().filter_map(|(model, queue)| queue.head().map(|key| (key, *model))).collect();
        heads == self.heads
    }
}
