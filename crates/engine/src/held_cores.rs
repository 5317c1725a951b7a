//! Which cores a step of the urgent class has now, so that our own kernels in the idle class leave them
//! alone.
//!
//! The operating system prefers the urgent thread, but does not keep the core for it: Linux since 6.6 (EEVDF)
//! gives even a `SCHED_IDLE` thread its turn when the urgent one has had more than its share of the moment,
//! and that turn lasts until the next tick, 4 ms. A step of 5 ms then takes 9, one time in sixty. A team that
//! does not want the core while the step lasts cannot be given it.
//!
//! There is one of this in a process, as there is of its cores.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use quadrant_kernels::GiveWay;
use quadrant_types::CoreSet;

/// How long a step is made way for at most. One that has stalled must not stop the others of its cores.
const PATIENCE: Duration = Duration::from_millis(100);

static HELD: HeldCores = HeldCores::new();

/// Says that a step of the urgent class has these cores, until it is dropped.
pub(crate) fn hold(cores: CoreSet) -> Hold {
    HELD.hold(cores)
}

/// What keeps a team of the idle class off held cores among its own.
pub(crate) fn gives_way(cores: CoreSet) -> impl GiveWay {
    Behind { held: &HELD, cores }
}

struct HeldCores {
    /// The hold that has each core; zero is none.
    holders: [AtomicU64; CoreSet::CAPACITY],
    next: AtomicU64,
    /// Threads that wait or are about to.
    waiters: AtomicUsize,
    /// Held from a waiter's last look until it sleeps, so that who wakes it cannot come in between.
    last_look: Mutex<()>,
    let_go: Condvar,
}

/// A step of the urgent class.
pub(crate) struct Hold {
    held: &'static HeldCores,
    cores: CoreSet,
    number: u64,
}

struct Behind {
    held: &'static HeldCores,
    cores: CoreSet,
}

impl HeldCores {
    const fn new() -> Self {
        Self {
            holders: [const { AtomicU64::new(0) }; CoreSet::CAPACITY],
            next: AtomicU64::new(1),
            waiters: AtomicUsize::new(0),
            last_look: Mutex::new(()),
            let_go: Condvar::new(),
        }
    }

    fn hold(&'static self, cores: CoreSet) -> Hold {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        for core in cores.cores() {
            self.holders[core].store(number, Ordering::SeqCst);
        }
        Hold { held: self, cores, number }
    }

    /// How many of these cores nobody holds.
    fn free(&self, cores: CoreSet) -> usize {
        cores.cores().filter(|core| self.holders[*core].load(Ordering::SeqCst) == 0).count()
    }

    /// Ends what the hold of this number still has of these cores.
    fn let_go(&self, cores: CoreSet, number: u64) {
        for core in cores.cores() {
            // Another one that came after it stays.
            let _other = self.holders[core].compare_exchange(number, 0, Ordering::SeqCst, Ordering::SeqCst);
        }
    }

    fn wait(&self, cores: CoreSet, thread: usize) {
        self.waiters.fetch_add(1, Ordering::SeqCst);
        let mut look = self.last_look.lock().unwrap_or_else(PoisonError::into_inner);
        while self.free(cores) <= thread {
            let before: Vec<u64> = self.holders.iter().map(|holder| holder.load(Ordering::SeqCst)).collect();
            let (again, waited) =
                self.let_go.wait_timeout(look, PATIENCE).unwrap_or_else(PoisonError::into_inner);
            look = again;
            if waited.timed_out() {
                for core in cores.cores().filter(|core| before[*core] != 0) {
                    self.let_go(CoreSet::from_cores([core]), before[core]);
                }
            }
        }
        drop(look);
        self.waiters.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.held.let_go(self.cores, self.number);
        // Who is about to wait has counted itself before its last look, so either that look sees free cores,
        // or it is seen here.
        if self.held.waiters.load(Ordering::SeqCst) > 0 {
            drop(self.held.last_look.lock().unwrap_or_else(PoisonError::into_inner));
            self.held.let_go.notify_all();
        }
    }
}

impl GiveWay for Behind {
    /// As many threads may compute as there are cores that nobody holds; on which of them the threads run is
    /// the operating system's affair, which keeps them off where a thread of a higher class runs.
    fn wait(&self, thread: usize) {
        if self.held.free(self.cores) <= thread {
            self.held.wait(self.cores, thread);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{RecvTimeoutError, sync_channel};

    use super::*;

    fn cores(cores: [usize; 2]) -> CoreSet {
        CoreSet::from_cores(cores)
    }

    /// Has a thread wait, which says when it may compute.
    fn waiting(held: &'static HeldCores, own: CoreSet, thread: usize) -> impl FnOnce(Duration) -> bool {
        let (send, receive) = sync_channel(1);
        std::thread::spawn(move || {
            Behind { held, cores: own }.wait(thread);
            send.send(()).unwrap();
        });
        move |within| receive.recv_timeout(within) != Err(RecvTimeoutError::Timeout)
    }

    fn leaked() -> &'static HeldCores {
        Box::leak(Box::new(HeldCores::new()))
    }

    #[test]
    fn as_many_threads_compute_as_cores_are_free() {
        let held = leaked();
        let own = cores([2, 5]);
        let elsewhere = held.hold(cores([1, 3]));
        assert_eq!(held.free(own), 2);
        let one = held.hold(cores([5, 6]));
        assert_eq!(held.free(own), 1);
        Behind { held, cores: own }.wait(0);
        let helper = waiting(held, own, 1);
        drop(elsewhere);
        drop(one);
        assert!(helper(PATIENCE / 2), "it is woken, and does not wait for its patience to end");
        assert_eq!(held.free(own), 2);
    }

    #[test]
    fn a_hold_that_ends_leaves_a_later_one_alone() {
        let held = leaked();
        let (first, second) = (held.hold(cores([0, 1])), held.hold(cores([1, 2])));
        drop(first);
        assert_eq!(held.free(cores([0, 1])), 1);
        drop(second);
        assert_eq!(held.free(cores([0, 1])), 2);
    }

    #[test]
    fn a_step_that_stalled_is_made_way_for_once() {
        let held = leaked();
        let stalled = held.hold(cores([0, 1]));
        assert!(waiting(held, cores([0, 1]), 0)(PATIENCE * 100), "patience ends");
        Behind { held, cores: cores([0, 1]) }.wait(1);
        let next = held.hold(cores([0, 7]));
        drop(stalled);
        assert_eq!(held.free(cores([0, 1])), 1, "the next one is made way for again");
        drop(next);
    }
}
