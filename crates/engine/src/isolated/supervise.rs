//! The thread that watches a process of engines: it starts it, looks at it, and starts it again.
//!
//! Pauses double from the first death on and are forgotten once the process was well for some time, so a
//! single death costs next to nothing and a process that always dies costs little.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use quadrant_types::Time;

use super::messages::Order;
use super::process::{End, EndCause, Process};
use super::{HostEvent, Phase, Shared};

/// The pause after the second death in a row; the first has none.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// A process that was up for so long is well, whatever was before.
const WELL_AFTER: Duration = Duration::from_secs(10);

impl Shared {
    /// Keeps the process running until told to stop.
    pub(super) fn supervise(self: Arc<Self>) {
        let mut deaths = 0;
        let mut start_takes = Duration::ZERO;
        loop {
            let began = self.clock.now();
            let (end, up_at) = self.live();
            if self.state().stopped {
                return;
            }
            if let Some(up_at) = up_at {
                start_takes = up_at.since(began);
                if self.clock.now().since(up_at) >= WELL_AFTER {
                    deaths = 0;
                }
            }
            let pause = pause(deaths);
            deaths += 1;
            {
                let mut state = self.state();
                state.phase = Phase::Down { reason: end.reason.clone() };
                state.ended = Some((state.generation, end.reason.clone()));
                state.process = None;
            }
            self.resident_bytes.store(0, Ordering::Relaxed);
            self.changed.notify_all();
            // What was loaded since it started has to be loaded again.
            let back_in = pause + start_takes.max(self.loads_take());
            self.sink.report(HostEvent::Down { cause: end.cause, reason: end.reason, back_in });
            if !self.rest(pause) {
                return;
            }
        }
    }

    /// One process from its start to its end; when it was ready, if it ever was.
    fn live(&self) -> (End, Option<Time>) {
        let began = self.clock.now();
        let generation = {
            let mut state = self.state();
            state.generation += 1;
            state.condemned = None;
            // A new process never had them.
            state.retired.clear();
            state.generation
        };
        let process = match Process::start(&self.command, &self.spec, generation) {
            Ok(process) => Arc::new(process),
            Err(end) => return (end, None),
        };
        // From now on it can be killed from outside.
        self.state().process = Some(Arc::clone(&process));
        if let Err(error) = self.bring_back(&process) {
            let known = self.state().condemned.take();
            let end = process.end(None);
            let reason = format!("{error} ({})", end.reason);
            return (known.unwrap_or_else(|| End::new(EndCause::Start, reason)), None);
        }
        let up_at = self.clock.now();
        let stopped = {
            let mut state = self.state();
            state.was_up = true;
            state.phase = Phase::Up;
            state.stopped
        };
        if stopped {
            process.kill();
        }
        self.changed.notify_all();
        self.sink.report(HostEvent::Up { process: process.id, generation, took: up_at.since(began) });
        (self.watch(&process), Some(up_at))
    }

    /// Loads what the process before had, and gives lanes their connections back.
    fn bring_back(&self, process: &Process) -> Result<(), String> {
        let models: Vec<_> = self.state().models.values().cloned().collect();
        models.iter().try_for_each(|placement| placement.bring_back(process))
    }

    /// How long loading all models took.
    fn loads_take(&self) -> Duration {
        self.state().models.values().map(|placement| placement.took).sum()
    }

    /// Waits for the process's end, and sees to it where it must.
    fn watch(&self, process: &Process) -> End {
        let mut resident_bytes = 0;
        while process.wait_a_little() {
            let seen = process.resident_bytes();
            // Of one that is ending there is nothing to be seen.
            resident_bytes = if seen > 0 { seen } else { resident_bytes };
            self.resident_bytes.store(resident_bytes, Ordering::Relaxed);
            if let Some(limit) = self.spec.memory_bytes.filter(|limit| seen > *limit) {
                let reason =
                    format!("it held `{seen}` bytes, more than its limit of `{limit}`, and was killed");
                self.condemn(process.generation, End::new(EndCause::Memory, reason));
            }
            self.forget_retired(process);
        }
        let known = self.state().condemned.clone();
        process.end_after(known, resident_bytes)
    }

    /// Lets the process forget models that nobody needs any more, unless it is busy with loading one.
    fn forget_retired(&self, process: &Process) {
        let retired = std::mem::take(&mut self.state().retired);
        let mut left = retired.into_iter();
        let told = |number: &u32| process.ask_if_idle(&Order::Unload(*number));
        let busy = left.by_ref().find(|number| !told(number));
        self.state().retired.extend(busy.into_iter().chain(left));
    }

    /// Waits for the pause to pass; false if it is to stop.
    fn rest(&self, pause: Duration) -> bool {
        let until = self.clock.now() + pause;
        let mut state = self.state();
        loop {
            let rest = until.since(self.clock.now());
            if state.stopped || rest.is_zero() {
                return !state.stopped;
            }
            let waited = self.changed.wait_timeout(state, rest);
            state = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }
}

/// The pause after a death, given how many in a row were before it.
fn pause(before: u32) -> Duration {
    match before {
        0 => Duration::ZERO,
        more => PAUSE_FIRST.saturating_mul(1 << (more - 1).min(16)).min(PAUSE_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit() {
        let pauses: Vec<_> = (0..6).map(|before| pause(before).as_millis()).collect();
        assert_eq!(pauses, [0, 100, 200, 400, 800, 1_600]);
        assert_eq!((pause(9), pause(1_000)), (Duration::from_millis(25_600), PAUSE_MAX));
    }
}
