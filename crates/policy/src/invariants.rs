//! What must hold after every event, by name. The property tests, the simulator and (as a counter) the
//! running server all ask the same question.

use std::collections::BTreeSet;

use quadrant_types::{CoreSet, Work};

use crate::Policy;

/// What should hold, and whether it does.
type Check = (&'static str, fn(&Policy) -> bool);

impl Policy {
    /// The name of the first invariant that does not hold, if any. Costs time in proportion to what is
    /// live, so production asks only now and then.
    pub fn violated_invariant(&self) -> Option<&'static str> {
        let checks: [Check; 7] = [
            (
                "every live request waits in exactly one queue or runs in exactly one step",
                Self::each_in_one_place,
            ),
            ("every waiting request is live", Self::waiting_are_live),
            ("running steps share no core", Self::cores_are_exclusive),
            ("every live request has one expiry", Self::expiries_match),
            ("queued requests and bytes in flight are counted right", Self::sums_match),
            ("queued requests and bytes in flight are within their limits", Self::within_limits),
            ("the heads are the first of each queue", Self::heads_match),
        ];
        checks.into_iter().find(|(_, holds)| !holds(self)).map(|(name, _)| name)
    }

    fn each_in_one_place(&self) -> bool {
        self.live.iter().all(|(id, live)| {
            let queued =
                self.models.get(&live.request.model).is_some_and(|q| q.waiting.contains_key(&live.key));
            let steps = self.running.iter().filter(|(_, step)| step.requests.contains(id));
            let steps: Vec<_> = steps.map(|(step, _)| *step).collect();
            match live.step {
                None => queued,
                Some(step) => !queued && steps.contains(&step),
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

    fn cores_are_exclusive(&self) -> bool {
        let (mut taken, mut sum) = (CoreSet::EMPTY, 0);
        for step in self.running.values() {
            taken = taken.union(step.lane.cores);
            sum += step.lane.cores.len();
        }
        taken.len() == sum
    }

    fn expiries_match(&self) -> bool {
        self.expiries.len() == self.live.len()
            && self.live.iter().all(|(id, live)| self.expiries.contains(&(live.key.deadline, *id)))
    }

    fn sums_match(&self) -> bool {
        let queued: usize = self.models.values().map(|queue| queue.waiting.len()).sum();
        let bytes: u64 = self
            .live
            .values()
            .map(|live| {
                let Work::Once { bytes_in, .. } = live.request.work;
                bytes_in
            })
            .sum();
        queued == self.queued && bytes == self.bytes_in
    }

    /// A failed batch goes back into its queue, so the count may pass the limit by what was running.
    fn within_limits(&self) -> bool {
        let running_max: u32 = self.models.values().map(|queue| queue.terms.rows_max).max().unwrap_or(0);
        let slack = running_max as usize * self.lanes.len();
        self.queued <= self.limits.queued_requests_max.saturating_add(slack)
            && self.bytes_in <= self.limits.bytes_in_max
    }

    fn heads_match(&self) -> bool {
        let heads: BTreeSet<_> =
            self.models.iter().filter_map(|(model, queue)| queue.head().map(|key| (key, *model))).collect();
        heads == self.heads
    }
}
