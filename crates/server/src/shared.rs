//! What all connections share: the way into the node, the limits, and the budgets that enforce them.

use std::sync::{Arc, PoisonError, RwLock};

use quadrant_node::Handle;
use quadrant_types::IoBudget;

use crate::access::{Access, Grant};
use crate::heavy::HeavyWork;
use crate::{Limits, LimitsError, NamedObjectives};

/// The way into the node and the bounds of the wire side. One for all ports, behind an `Arc`.
#[derive(Debug)]
pub struct Shared {
    pub(crate) handle: Handle,
    pub(crate) limits: Limits,
    pub(crate) budget: IoBudget,
    pub(crate) heavy: HeavyWork,
    pub(crate) objectives: NamedObjectives,
    /// Read by every request, and replaced as a whole.
    access: RwLock<Arc<Access>>,
}

impl Shared {
    /// Checks the limits and makes the budget that they name.
    ///
    /// # Errors
    /// A limit that makes no sense.
    pub fn new(handle: Handle, limits: Limits) -> Result<Self, LimitsError> {
        let limits = limits.check()?;
        let budget = IoBudget::new(limits.in_flight_bytes_max);
        let (heavy, objectives) = (HeavyWork::new(), NamedObjectives::new());
        Ok(Self { handle, limits, budget, heavy, objectives, access: RwLock::default() })
    }

    /// The same with objectives that requests may refer to by name.
    #[must_use]
    pub fn with_objectives(mut self, objectives: NamedObjectives) -> Self {
        self.objectives = objectives;
        self
    }

    /// From now on these tenants may ask, and nobody else; if there are none, everybody may. The node knows
    /// them already.
    pub fn grant(&self, grants: Vec<Grant>) {
        let access = Arc::new(Access::new(grants, |name| self.handle.tenant(name)));
        *self.access.write().unwrap_or_else(PoisonError::into_inner) = access;
    }

    pub(crate) fn access(&self) -> Arc<Access> {
        Arc::clone(&self.access.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The bytes of request bodies held now, out of how many.
    pub fn budget(&self) -> &IoBudget {
        &self.budget
    }
}
