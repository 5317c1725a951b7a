//! Sequences whose readers do not keep up: each waits until its reader does, or has waited for too long.
//!
//! Until then its pages would be of use to nobody, and might be all that there are. So it keeps them while
//! there is room for everybody who goes on or would begin, and otherwise gives them back, like one that was
//! preempted: when its reader is ready they are computed again.

use std::collections::BTreeMap;

use quadrant_types::{ModelId, RequestId, Time};

use crate::Policy;
use crate::live::Live;
use crate::queue::BATCH_SCAN_MAX;

impl Policy {
    /// The reader of a sequence's tokens does not keep up: it waits until he does, or has waited for too
    /// long.
    pub(crate) fn reader_stalled(&mut self, id: RequestId) {
        if self.live.get(&id).is_some_and(Live::waits) {
            self.dequeue(id, None);
        }
        if let Some(live) = self.live.get_mut(&id) {
            live.paused = true;
            self.paused.insert(id);
        }
    }

    /// He is ready for more.
    pub(crate) fn reader_ready(&mut self, now: Time, id: RequestId) {
        self.paused.remove(&id);
        let Some(live) = self.live.get_mut(&id) else { return };
        let was_paused = std::mem::replace(&mut live.paused, false);
        if was_paused && live.waits() {
            self.wait_for_token(now, id, false);
        }
    }

    /// Takes the pages of those who are paused, the last that came first, as far as others want them.
    pub(crate) fn take_from_paused(&mut self) {
        let mut wanting = BTreeMap::<ModelId, usize>::new();
        let mut givers = Vec::new();
        for id in self.paused.iter().rev() {
            let live = &self.live[id];
            if live.step.is_none() && self.sequences.get(id).is_some_and(|sequence| sequence.has_begun()) {
                let model = live.request.model;
                wanting.entry(model).or_insert_with(|| self.pages_wanting(model));
                givers.push((model, *id));
            }
        }
        let free =
            |policy: &Self, model| policy.models[&model].pages.as_ref().map_or(0, |pages| pages.free());
        for (model, id) in givers {
            let wanting = wanting.get_mut(&model).expect("it was just asked for");
            if *wanting > 0 {
                let before = free(self, model);
                self.leave_pages(model, id);
                *wanting = wanting.saturating_sub(free(self, model) - before);
                self.sequences_preempted += 1;
            }
        }
    }

    /// Pages that those who go on, and the first who would begin, want beyond those that are free.
    fn pages_wanting(&self, model: ModelId) -> usize {
        let Some(queue) = self.models.get(&model) else { return 0 };
        let (Some(terms), Some(pages)) = (&queue.terms.sequences, &queue.pages) else { return 0 };
        let need = |id: &RequestId| self.sequences[id].pages_missing(terms);
        let begun: usize = queue.begun.values().map(|key| need(&key.id)).sum();
        let begins = |id: &RequestId| !self.sequences[id].has_begun();
        let first = queue.waiting.keys().take(BATCH_SCAN_MAX).map(|key| key.id).find(begins);
        // One that begins leaves each of the others a page.
        let first = first.map_or(0, |id| need(&id) + queue.begun.len());
        (begun + first).saturating_sub(pages.free())
    }
}
