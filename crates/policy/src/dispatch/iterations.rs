//! Where an iteration of a language model runs: on all cores while nobody else wants one of them, otherwise
//! like every other step.
//!
//! There is one iteration of a model at a time, because its sequences are together in it. So what it leaves
//! free nobody else of it would use, and cores are to spare whenever no other model waits. It is long as
//! steps go; so that nobody who comes has to wait for it, it then runs in the idle class on all of them.

use quadrant_types::{ModelId, SchedulingClass, Time};

use super::quadrant::WIDE_GAIN;
use super::slots::Slots;
use crate::LaneShape;
use crate::cost::{Beside, Kind};
use crate::policy::Policy;
use crate::queue::{Candidate, OrderKey};
use crate::span::scaled;

impl Policy {
    /// The lane of all cores for the iteration from this request on, if the model generates, they are free
    /// and nobody else wants them, and the iteration ends sooner for it.
    pub(super) fn place_wide_iteration(
        &self,
        now: Time,
        model: ModelId,
        key: OrderKey,
        slots: Slots,
    ) -> Option<(LaneShape, Candidate)> {
        let queue = &self.models[&model];
        queue.terms.sequences?;
        let (narrowest, widest) = (queue.terms.widths[0], *queue.terms.widths.last()?);
        if narrowest == widest || self.queued > queue.waiting.len() {
            return None;
        }
        let is_free = |lane: &LaneShape| lane.cores.is_subset(slots.free);
        let lane = self.fitting(widest, SchedulingClass::Urgent).find(is_free)?;
        let wide = self.batch(now, model, key, self.setting(now, lane.cores, Beside::Nothing));
        let narrow = Kind { width: narrowest, ..wide.kind };
        let narrow = queue.costs.predict_at(narrow, wide.bytes, wide.slowdown);
        if wide.requests.is_empty() || scaled(wide.predicted, WIDE_GAIN) >= narrow {
            return None;
        }
        let gives_way = self.load.is_long(wide.predicted) || (key.easy && self.load.has_deadlines());
        let lane = if gives_way { self.idle_twin(model, lane)? } else { lane };
        Some((lane, wide))
    }
}
