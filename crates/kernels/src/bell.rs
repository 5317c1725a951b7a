//! Threads that sleep until something is there, and cost who brings it nothing while nobody sleeps.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// What is slept at. What is waited for is written and read with `SeqCst`.
#[derive(Debug)]
pub struct Bell {
    /// Threads that sleep or are about to.
    sleepers: AtomicUsize,
    /// Held from a sleeper's last look until it sleeps, so that who wakes it cannot come in between.
    last_look: Mutex<()>,
    rung: Condvar,
}

impl Bell {
    /// One that nobody sleeps at.
    pub const fn new() -> Self {
        Self { sleepers: AtomicUsize::new(0), last_look: Mutex::new(()), rung: Condvar::new() }
    }

    /// Sleeps until `is_there`, and looks whenever it is rung.
    pub fn wait(&self, is_there: impl Fn() -> bool) {
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let held = self.last_look.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.rung.wait_while(held, |()| !is_there()).unwrap_or_else(PoisonError::into_inner));
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    /// The same for at most this long; gives whether it is there.
    pub fn wait_for(&self, patience: Duration, is_there: impl Fn() -> bool) -> bool {
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let held = self.last_look.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.rung.wait_timeout_while(held, patience, |()| !is_there());
        let (held, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        drop(held);
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        !waited.timed_out()
    }

    /// Wakes who sleeps. Who is about to has counted itself before its last look, so either that look sees
    /// what is new, or it is seen here.
    pub fn ring(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(self.last_look.lock().unwrap_or_else(PoisonError::into_inner));
            self.rung.notify_all();
        }
    }
}

impl Default for Bell {
    fn default() -> Self {
        Self::new()
    }
}
