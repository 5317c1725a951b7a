//! What all connections share: the way into the node, the limits, and the budgets that enforce them.

use quadrant_node::Handle;
use quadrant_types::IoBudget;

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
        Ok(Self { handle, limits, budget, heavy, objectives })
    }

    /// The same with objectives that requests may refer to by name.
    #[must_use]
    pub fn with_objectives(mut self, objectives: NamedObjectives) -> Self {
        self.objectives = objectives;
        self
    }

    /// The bytes of request bodies held now, out of how many.
    pub fn budget(&self) -> &IoBudget {
        &self.budget
    }
}
