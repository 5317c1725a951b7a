//! What is going to happen, in the order of virtual time.
//!
//! Two things at one time happen in the order in which they were planned, so a run has exactly one order
//! of events. It holds no clock: the time is that of the event taken last.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use quadrant_policy::Event;
use quadrant_types::Time;

/// Planned events by time, then by the order of planning.
#[derive(Debug, Default)]
pub(crate) struct Agenda {
    order: BinaryHeap<Reverse<(Time, u64, usize)>>,
    events: Vec<Option<Event>>,
    free: Vec<usize>,
    sequence: u64,
}

impl Agenda {
    pub(crate) fn plan(&mut self, at: Time, event: Event) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() - 1
        });
        self.events[slot] = Some(event);
        self.order.push(Reverse((at, self.sequence, slot)));
        self.sequence += 1;
    }

    /// When the next event is.
    pub(crate) fn next_at(&self) -> Option<Time> {
        self.order.peek().map(|Reverse((at, ..))| *at)
    }

    pub(crate) fn take(&mut self) -> Option<Event> {
        let Reverse((.., slot)) = self.order.pop()?;
        self.free.push(slot);
        self.events[slot].take()
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
