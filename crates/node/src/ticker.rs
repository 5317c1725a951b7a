//! Wakes the scheduler when it asked to be woken, or when a lane that must not work its inbox off has put
//! something there: one thread, one condition variable.
//!
//! Whoever wakes the thread lets go of the lock first: a lane of the idle class is preempted by the very
//! thread that it wakes.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quadrant_types::{Clock, Time};

/// How long the ticker sleeps when nothing is due.
const IDLE: Duration = Duration::from_secs(3_600);

/// The next time at which something is due.
#[derive(Debug)]
pub(crate) struct Ticker {
    state: Mutex<State>,
    earlier: Condvar,
}

#[derive(Debug)]
struct State {
    due: Option<Time>,
    /// What the sleeping thread will wake at by itself.
    sleeping_until: Time,
    roused: bool,
    stopped: bool,
}

impl Ticker {
    pub(crate) fn new() -> Self {
        let state = State { due: None, sleeping_until: Time::ZERO, roused: false, stopped: false };
        Self { state: Mutex::new(state), earlier: Condvar::new() }
    }

    /// Sets when something is due. Wakes the thread only if it would sleep too long: deadlines move on
    /// with every request, and most are never reached.
    pub(crate) fn set(&self, due: Option<Time>) {
        let mut state = self.lock();
        state.due = due;
        if due.is_some_and(|due| due < state.sleeping_until) {
            state.sleeping_until = Time::ZERO;
            drop(state);
            self.earlier.notify_one();
        }
    }

    /// Wakes the thread now.
    pub(crate) fn rouse(&self) {
        self.lock().roused = true;
        self.earlier.notify_one();
    }

    pub(crate) fn stop(&self) {
        self.lock().stopped = true;
        self.earlier.notify_one();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    /// Sleeps until something is due or it is roused; false once stopped.
    pub(crate) fn wait(&self, clock: &dyn Clock) -> bool {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return false;
            }
            if std::mem::take(&mut state.roused) {
                return true;
            }
            let now = clock.now();
            let due = state.due.unwrap_or(now + IDLE);
            if due <= now {
                // Not due again until the scheduler says so, which it does after every event.
                state.due = None;
                return true;
            }
            state.sleeping_until = due;
            let woken = self.earlier.wait_timeout(state, due.since(now));
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
