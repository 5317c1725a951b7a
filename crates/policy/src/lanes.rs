//! Which lanes are free, which are stuck, and which one a step should take.

use quadrant_types::{CoreSet, LaneId};

use crate::{LaneShape, Policy};

impl Policy {
    /// The lanes that are stalled now.
    pub fn stalled_lanes(&self) -> impl Iterator<Item = LaneId> {
        self.running.values().filter(|step| step.stalls_at.is_none()).map(|step| step.lane.id)
    }

    pub(crate) fn stuck_cores(&self) -> CoreSet {
        let stalled = self.running.values().filter(|step| step.stalls_at.is_none());
        stalled.fold(CoreSet::EMPTY, |cores, step| cores.union(step.lane.cores))
    }

    pub(crate) fn free_cores(&self) -> CoreSet {
        let all = self.lanes.iter().fold(CoreSet::EMPTY, |cores, lane| cores.union(lane.cores));
        self.running.values().fold(all, |free, step| free.without(step.lane.cores))
    }

    /// The healthy lane of this width to use: a free one, else the one to wait for; `None` if all are
    /// stuck. A width that no lane has falls back to the widest below it, or to the narrowest.
    pub(crate) fn lane_for(&self, width: usize, free: CoreSet, stuck: CoreSet) -> Option<LaneShape> {
        let widest_fit = self.lanes.iter().map(|lane| lane.cores.len()).filter(|len| *len <= width).max();
        let narrowest = self.lanes.iter().map(|lane| lane.cores.len()).min();
        let width = widest_fit.or(narrowest).expect("there is at least one lane");
        let healthy = |lane: &&LaneShape| lane.cores.without(stuck) == lane.cores;
        let mut fitting = self.lanes.iter().filter(|lane| lane.cores.len() == width).filter(healthy);
        let first = fitting.clone().next();
        fitting.find(|lane| lane.cores.is_subset(free)).or(first).copied()
    }
}
