//! What others may see of the scheduler's state: explanations, steps, and the figures of the metrics.

use quadrant_types::{RequestId, StepId};

use super::Driver;
use crate::recorder::{Explanation, StepRecord};
use crate::registry::Registry;
use crate::telemetry::{Memory, Snapshot};

impl Driver {
    /// Why a request took as long as it did.
    pub(crate) fn explain(&self, id: RequestId) -> Option<Explanation> {
        self.visit(|core| core.recorder.explain(id))
    }

    /// The slowest requests of the last minutes.
    pub(crate) fn slowest(&self) -> Vec<Explanation> {
        let now = self.clock.now();
        self.visit(|core| core.recorder.slowest(now))
    }

    /// The steps that ran lately.
    pub(crate) fn steps(&self, after: Option<StepId>) -> Vec<StepRecord> {
        self.visit(|core| core.recorder.steps(after))
    }

    /// What the metrics show of the present state.
    pub(crate) fn snapshot(&self, registry: &Registry) -> Snapshot {
        let (models, now) = (registry.entries(), self.clock.now());
        self.visit(|core| Snapshot {
            queued: models.iter().map(|model| core.policy.queued(model.id)).collect(),
            lanes_stalled: core.policy.stalled_lanes().count(),
            slowdowns: core.policy.slowdowns(now).collect(),
            violated: core.policy.violated_invariant(),
            memory: Memory::of(core.policy.ledger(), &models),
            models,
        })
    }
}
