//! What the usual servers do, to compare with: every model has a lane of its own across all cores and
//! batches by itself, first come first served, whatever the others do. Objectives play no part, and
//! nothing is refused but for full queues.

use quadrant_types::{LaneId, Time};

use super::Walk;
use crate::cost::Beside;
use crate::policy::Policy;
use crate::{Action, LaneShape};

impl Policy {
    pub(super) fn dispatch_fifo(&mut self, now: Time, actions: &mut Vec<Action>) {
        let mut walk = Walk::default();
        while let Some((key, model)) = self.next_head(&mut walk) {
            let queue = &self.models[&model];
            let Some(lane) = self.lane_of(queue.terms.lane) else { continue };
            if self.running.iter().any(|step| step.lane.id == lane.id) {
                continue;
            }
            let batch = self.batch(now, model, key, self.setting(now, lane.cores, Beside::Usual));
            if batch.requests.is_empty() {
                continue;
            }
            if batch.ripe_at > now {
                self.wait_until_ripe(batch.ripe_at, &mut walk);
            } else {
                self.start(now, model, lane, batch, actions);
            }
        }
    }

    /// A model without a lane of its own shares the first.
    fn lane_of(&self, own: Option<LaneId>) -> Option<LaneShape> {
        let first = self.lanes.first().copied();
        own.map_or(first, |own| self.lanes.iter().find(|lane| lane.id == own).copied())
    }
}
