//! A request from its arrival to its ending, wherever it is.

use quadrant_types::{Request, StepId};

use crate::admission::Plan;
use crate::demand::Booking;

/// A request that arrived and has not ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Live {
    pub(crate) request: Request,
    pub(crate) plan: Plan,
    /// What is booked for it while it waits with a deadline.
    pub(crate) booking: Option<Booking>,
    /// The step it is in, or `None` while it waits.
    pub(crate) step: Option<StepId>,
    /// It waits for its model to be loaded, and in no queue.
    pub(crate) parked: bool,
    /// Whether it stands aside because its model's host is held.
    pub(crate) aside: bool,
    /// Whether the reader of its tokens does not keep up, so that it waits in no queue until he does.
    pub(crate) paused: bool,
    /// Whether a host has ended under it.
    pub(crate) died: bool,
}

impl Live {
    /// A request that waits.
    pub(crate) fn new(request: Request, plan: Plan) -> Self {
        Self {
            request,
            plan,
            booking: None,
            step: None,
            parked: false,
            aside: false,
            paused: false,
            died: false,
        }
    }

    /// Whether it waits in its queue.
    pub(crate) fn waits(&self) -> bool {
        self.step.is_none() && !self.aside && !self.parked && !self.paused
    }
}
