//! What can be asked of the driver: why a request took as long as it did, what ran lately, the present state.
//! Asking waits for the core, like everything that is no event.

use std::sync::Arc;

use quadrant_policy::TenantUsage;
use quadrant_types::{RequestId, StepId, TenantId};

use super::{Core, Driver};
use crate::recorder::{Explanation, StepRecord};
use crate::registry::Registry;
use crate::telemetry::{Memory, Sequences, Snapshot};
use crate::tenants::{Tenant, Tenants};

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

    /// The slowest requests of one tenant that are remembered.
    pub(crate) fn slowest_of(&self, tenant: TenantId) -> Vec<Explanation> {
        self.visit(|core| core.recorder.slowest_of(tenant))
    }

    /// The steps that ran lately.
    pub(crate) fn steps(&self, after: Option<StepId>) -> Vec<StepRecord> {
        self.visit(|core| core.recorder.steps(after))
    }

    /// What the metrics show of the present state.
    pub(crate) fn snapshot(&self, registry: &Registry, tenants: &Tenants) -> Snapshot {
        let (models, now) = (registry.entries(), self.clock.now());
        let usage = self.usage(tenants);
        self.visit(|core| Snapshot {
            usage,
            queued: models.iter().map(|model| core.policy.queued(model.id)).collect(),
            lanes_stalled: core.policy.stalled_lanes().count(),
            slowdowns: core.policy.slowdowns(now).collect(),
            violated: core.policy.violated_invariant(),
            sequences_preempted: core.policy.sequences_preempted(),
            sequences: models
                .iter()
                .filter(|model| model.language.is_some())
                .map(|model| (Arc::clone(&model.spec.name), Sequences::of(&core.policy, model.id)))
                .collect(),
            memory: Memory::of(core.policy.ledger(), &models),
            models,
        })
    }

    /// What the configured tenants use of their quotas.
    pub(crate) fn usage(&self, tenants: &Tenants) -> Vec<(Arc<Tenant>, TenantUsage)> {
        let (configured, now) = (tenants.configured(), self.clock.now());
        let usage = |core: &Core, id| core.policy.tenant_usage(now, id).unwrap_or_default();
        self.visit(|core| configured.into_iter().map(|(id, tenant)| (tenant, usage(core, id))).collect())
    }
}
