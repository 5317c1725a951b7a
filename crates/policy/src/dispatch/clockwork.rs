//! Clockwork, to compare with: the device runs one step at a time, on all of its cores, because that is
//! what makes times predictable. The model whose first request must start soonest is next, with the largest
//! batch that still meets its deadline; what cannot meet its own any more is dropped (Gujarati et al.,
//! "Serving DNNs like Clockwork", OSDI 2020, section 5.3).

use quadrant_types::Time;

use super::Walk;
use crate::Action;
use crate::cost::Beside;
use crate::policy::Policy;

impl Policy {
    pub(super) fn dispatch_clockwork(&mut self, now: Time, actions: &mut Vec<Action>) {
        let Some(lane) = self.lanes.iter().max_by_key(|lane| lane.cores.len()).copied() else { return };
        let width = lane.cores.len();
        let mut walk = Walk::default();
        while self.running.is_empty() {
            let Some((key, model)) = self.next_head(&mut walk) else { return };
            if self.is_hopeless(now, model, key, &[width]) {
                self.give_up_late(now, key.id, actions);
                walk = Walk::default();
                continue;
            }
            let setting = self.setting(now, lane.cores, Beside::Nothing);
            let batch = self.batch(now, model, key, setting);
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
}
