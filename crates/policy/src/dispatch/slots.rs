//! Where a step could run now: which cores are open to urgent steps, which are entirely free, and what a
//! step begun there would preempt.

use quadrant_types::{CoreSet, ModelId, SchedulingClass, Time};

use crate::policy::Policy;
use crate::running::Running;
use crate::{LaneShape, ModelTerms};

/// The state of the cores, for one decision.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slots {
    /// No urgent step, not even one that is stuck, and not held for somebody.
    pub(super) open: CoreSet,
    /// Open, and without an idle-class step.
    pub(super) free: CoreSet,
}

impl Policy {
    /// The cores as they are, without those that are held for somebody.
    pub(super) fn slots(&self, held: CoreSet) -> Slots {
        let open = self.cores.without(self.busy_cores(SchedulingClass::Urgent)).without(held);
        Slots { open, free: open.without(self.busy_cores(SchedulingClass::Idle)) }
    }

    /// The lanes of a class for steps of this width: the widest not wider than it, else the narrowest.
    pub(super) fn fitting(&self, width: usize, class: SchedulingClass) -> impl Iterator<Item = LaneShape> {
        let widths =
            || self.lanes.iter().filter(move |lane| lane.class == class).map(|lane| lane.cores.len());
        let chosen = widths().filter(|lane| *lane <= width).max().or_else(|| widths().min());
        let fits = move |lane: &LaneShape| Some(lane.cores.len()) == chosen && lane.class == class;
        self.lanes.iter().copied().filter(fits)
    }

    /// The idle-class lane on the same cores, if steps of the model may run there: on several cores only
    /// iterations do.
    pub(super) fn idle_twin(&self, model: ModelId, lane: LaneShape) -> Option<LaneShape> {
        if lane.cores.len() > 1 && self.models[&model].terms.sequences.is_none() {
            return None;
        }
        let twin = |other: &&LaneShape| other.class == SchedulingClass::Idle && other.cores == lane.cores;
        self.lanes.iter().find(twin).copied()
    }

    /// The latest start of the most pressing step that an urgent step on these cores would preempt, for
    /// the rest of it; [`Time::MAX`] if there is none but best effort.
    pub(super) fn pressing(&self, cores: CoreSet) -> Time {
        let idle = self.preemptible().filter(|step| !step.easy);
        let of_these = idle.filter(|step| step.lane.cores.overlaps(cores));
        of_these.map(Running::latest_start).min().unwrap_or(Time::MAX)
    }

    /// The latest of these over all open cores.
    pub(super) fn least_pressing(&self, slots: Slots) -> Time {
        let open = self.preemptible().filter(|step| step.lane.cores.is_subset(slots.open));
        let rest = |step: &Running| match step.easy {
            true => Time::MAX,
            false => step.latest_start(),
        };
        open.map(rest).max().unwrap_or(Time::MAX)
    }

    /// The steps whose rest matters to whoever would preempt them.
    pub(super) fn preemptible(&self) -> impl Iterator<Item = &Running> {
        self.running.iter().filter(|step| step.lane.class == SchedulingClass::Idle && !step.is_stuck())
    }

    /// Whether every lane for steps of this model takes several cores, where others take fewer.
    pub(super) fn is_wide_only(&self, terms: &ModelTerms) -> bool {
        let narrowest = self.lanes.iter().map(|lane| lane.cores.len()).min().unwrap_or(1);
        let own = self.fitting(terms.widths[0], SchedulingClass::Urgent).next();
        own.is_some_and(|lane| lane.cores.len() > narrowest)
    }
}
