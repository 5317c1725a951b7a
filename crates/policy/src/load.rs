//! What the present load is like, in a few slowly moving numbers: whether steps find the device to
//! themselves, how tight the tightest objective is, and what handing a step over costs.

use std::time::Duration;

use quadrant_types::Time;

use crate::span::as_nanos;

/// How much the latest step says about whether steps find the device to themselves.
const ALONE_RATE: f64 = 1.0 / 16.0;
/// How long the tightest objective is remembered after it was last seen.
const REMEMBERED_FOR: Duration = Duration::from_secs(10);
/// The share of steps that must have found nobody else for the load to be light: then there is room to give
/// a lone step more cores than is efficient.
const LIGHT: f64 = 0.75;
/// A step is long if it takes more than this share of the tightest objective,
const LONG_DIVISOR: u32 = 8;
/// and it blocks a core, if nothing can preempt it, if it takes more than this share;
const BLOCKS_DIVISOR: u32 = 2;
/// and no step is long that takes less than this: preempting it would gain nothing.
const LONG_MIN: Duration = Duration::from_millis(1);

/// See the module's text.
#[derive(Clone, Debug, Default)]
pub(crate) struct Load {
    /// The share of steps that found something else running or waiting, of late.
    company: f64,
    tightest: Option<(Duration, Time)>,
    now: Time,
    handoff_nanos: f64,
}

impl Load {
    pub(crate) fn advance(&mut self, now: Time) {
        self.now = now;
    }

    /// A step begins, alone or not.
    pub(crate) fn note_step(&mut self, alone: bool) {
        let company = if alone { 0.0 } else { 1.0 };
        self.company += (company - self.company) * ALONE_RATE;
    }

    /// A request came that is to be done within `span`.
    pub(crate) fn note_objective(&mut self, now: Time, span: Duration) {
        let replaces = self.tightest().is_none_or(|tightest| span <= tightest);
        if replaces {
            self.tightest = Some((span, now));
        }
    }

    pub(crate) fn note_handoff(&mut self, took: Duration) {
        // A step in proportion to itself keeps to the median; a thread that was woken late is no rule.
        let nanos = as_nanos(took);
        let most = self.handoff_nanos / 16.0 + 100.0;
        self.handoff_nanos += ((nanos - self.handoff_nanos) / 16.0).clamp(-most, most);
    }

    pub(crate) fn handoff(&self) -> Duration {
        Duration::from_nanos(self.handoff_nanos as u64)
    }

    pub(crate) fn is_light(&self) -> bool {
        self.company < 1.0 - LIGHT
    }

    /// Whether work with deadlines came of late.
    pub(crate) fn has_deadlines(&self) -> bool {
        self.tightest().is_some()
    }

    /// Whether a step of this length should let more urgent ones preempt it.
    pub(crate) fn is_long(&self, step: Duration) -> bool {
        self.tightest().is_some_and(|tightest| step > LONG_MIN.max(tightest / LONG_DIVISOR))
    }

    /// Whether a step of this length, once begun where nothing can preempt it, might make a short one late.
    pub(crate) fn blocks(&self, step: Duration) -> bool {
        self.tightest().is_some_and(|tightest| step > LONG_MIN.max(tightest / BLOCKS_DIVISOR))
    }

    fn tightest(&self) -> Option<Duration> {
        self.tightest.filter(|(_, seen)| self.now.since(*seen) < REMEMBERED_FOR).map(|(span, _)| span)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn what_is_long_depends_on_the_tightest_objective_of_late() {
        let at = |seconds| Time::ZERO + Duration::from_secs(seconds);
        let mut load = Load::default();
        assert!(!load.is_long(1_000 * MS) && !load.has_deadlines());
        load.note_objective(at(0), 400 * MS);
        assert!(load.is_long(60 * MS) && !load.is_long(40 * MS));
        assert!(load.blocks(201 * MS) && !load.blocks(199 * MS));
        load.note_objective(at(1), 20 * MS);
        load.note_objective(at(1), 400 * MS);
        assert!(load.is_long(3 * MS) && !load.is_long(2 * MS));
        load.advance(at(12));
        assert!(!load.has_deadlines());
        load.note_objective(at(12), 400 * MS);
        assert!(!load.is_long(40 * MS));
    }

    #[test]
    fn the_load_is_light_while_steps_find_nobody_else() {
        let mut load = Load::default();
        assert!(load.is_light());
        (0..40).for_each(|number| load.note_step(number % 2 == 0));
        assert!(!load.is_light());
        (0..40).for_each(|_| load.note_step(true));
        assert!(load.is_light());
    }
}
