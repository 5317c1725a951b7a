//! What is going to happen, in the order of virtual time.
//!
//! Two things at one time happen in the order in which they were planned, so a run has exactly one order
//! of events. It holds no clock: the time is that of the event taken last.

use std::collections::BTreeMap;

use quadrant_policy::Event;
use quadrant_types::Time;

/// Planned events by time, then by the order of planning.
#[derive(Debug, Default)]
pub(crate) struct Agenda {
    planned: BTreeMap<(Time, u64), Event>,
    sequence: u64,
}

impl Agenda {
    pub(crate) fn plan(&mut self, at: Time, event: Event) {
        self.planned.insert((at, self.sequence), event);
        self.sequence += 1;
    }

    /// When the next event is.
    pub(crate) fn next_at(&self) -> Option<Time> {
        self.planned.first_key_value().map(|((at, _), _)| *at)
    }

    pub(crate) fn take(&mut self) -> Option<Event> {
        self.planned.pop_first().map(|(_, event)| event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_and_then_as_planned() {
        let mut agenda = Agenda::default();
        let at = Time::from_nanos;
        agenda.plan(at(2), Event::Tick);
        agenda.plan(at(1), Event::Drain);
        agenda.plan(at(2), Event::Drain);
        assert_eq!(agenda.next_at(), Some(at(1)));
        let order: Vec<_> = std::iter::from_fn(|| agenda.take()).collect();
        assert_eq!(order, [Event::Drain, Event::Tick, Event::Drain]);
    }
}
