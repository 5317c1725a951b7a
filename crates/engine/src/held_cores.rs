//! Which cores a step of the urgent class has now, so that our own kernels in the idle class leave them
//! alone.
//!
//! The operating system prefers the urgent thread, but does not keep the core for it: Linux since 6.6 (EEVDF)
//! gives even a `SCHED_IDLE` thread its turn when the urgent one has had more than its share of the moment,
//! and that turn lasts until the next tick, 4 ms. A step of 5 ms then takes 9, one time in sixty. A team that
//! does not want the core while the step lasts cannot be given it.
//!
//! There is one of this in a process, as there is of its cores.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quadrant_kernels::{Bell, GiveWay};
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
    /// Rung when a hold ends.
    bell: Bell,
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
            bell: Bell::new(),
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

    /// Ends what the hold of this number still has of this core; another one that came after it stays.
    fn let_go(&self, core: usize, number: u64) {
        let _other = self.holders[core].compare_exchange(number, 0, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Waits for more than so many of these cores. A hold that lasts all the while is one no more.
    fn wait(&self, cores: CoreSet, thread: usize) {
        loop {
            let before = self.holders.each_ref().map(|holder| holder.load(Ordering::SeqCst));
            if self.bell.wait_for(PATIENCE, || self.free(cores) > thread) {
                return;
            }
            for core in cores.cores() {
                self.let_go(core, before[core]);
            }
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        for core in self.cores.cores() {
            self.held.let_go(core, self.number);
        }
        self.held.bell.ring();
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
    fn steps_that_come_and_go_do_not_prolong_one_that_stalled() {
        let held = leaked();
        let _stalled = held.hold(CoreSet::from_cores([0]));
        let helper = waiting(held, cores([0, 1]), 1);
        let began = std::sync::Arc::new(AtomicU64::new(0));
        let (counts, stop) = (std::sync::Arc::clone(&began), sync_channel::<()>(0));
        let busy = std::thread::spawn(move || {
            while stop.1.recv_timeout(PATIENCE / 50) == Err(RecvTimeoutError::Timeout) {
                drop(held.hold(CoreSet::from_cores([1])));
                counts.fetch_add(1, Ordering::SeqCst);
            }
        });
        assert!(helper(PATIENCE * 100), "it waits no longer than for the one that stalled");
        drop(stop.0);
        busy.join().unwrap();
        assert!(began.load(Ordering::SeqCst) > 0, "others came and went");
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
