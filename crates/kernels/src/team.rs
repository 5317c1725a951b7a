//! Threads that share one step: as many as it was given cores.
//!
//! A step has hundreds of short phases (a product, an attention), each of which all must end before the next
//! begins. Within a step a thread looks for the next phase for some tens of microseconds before it sleeps, as
//! that is what a phase takes and waking a thread takes as long. Between steps all sleep.
//!
//! The threads themselves are started by the caller, on the cores and in the class that it was given.

use std::cell::UnsafeCell;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// How often a thread looks before it sleeps: 20 to 50 us.
const LOOKS: u32 = 1_000;

/// The calling thread and those that help it.
#[derive(Debug)]
pub struct Team {
    shared: Arc<Shared>,
    helpers: usize,
}

/// What a helper does until the team is dropped, to be run on a thread of its own.
pub type Helper = Box<dyn FnOnce() + Send>;

/// One phase, by the index of who takes part; 0 is the caller.
type Phase<'a> = dyn Fn(usize) + Sync + 'a;

struct Shared {
    /// Counts the phases. Everything else that a helper reads is written before.
    count: AtomicUsize,
    /// What the last counted phase is. Written by the caller only, and only while `busy` is zero.
    phase: UnsafeCell<Option<&'static Phase<'static>>>,
    /// Helpers that have not ended it yet.
    busy: AtomicUsize,
    panicked: AtomicBool,
    /// Threads that sleep or are about to.
    sleepers: AtomicUsize,
    /// Held from a sleeper's last look until it sleeps, so that who wakes it cannot come in between.
    last_look: Mutex<()>,
    something_new: Condvar,
}

// SAFETY: `phase` is the only field that is not `Sync`. It is written by the caller while no helper reads it
// (`busy` is zero, and a helper reads only after `count` has grown), and what it refers to is `Sync`.
unsafe impl Sync for Shared {}

impl Team {
    /// A team of `width`, of which the caller is one; `start` has each of the others run on a thread.
    ///
    /// # Errors
    /// What `start` failed with; helpers that were started before end.
    pub fn new(width: usize, mut start: impl FnMut(Helper) -> io::Result<()>) -> io::Result<Self> {
        let mut team = Self { shared: Arc::new(Shared::default()), helpers: 0 };
        for index in 1..width {
            let shared = Arc::clone(&team.shared);
            start(Box::new(move || shared.help(index)))?;
            team.helpers = index;
        }
        Ok(team)
    }

    /// A team of one.
    pub fn alone() -> Self {
        Self { shared: Arc::new(Shared::default()), helpers: 0 }
    }

    /// How many take part.
    pub fn width(&self) -> usize {
        self.helpers + 1
    }

    /// Does `work` with every part, each on a thread of its own, and waits for all. One part is done by the
    /// caller, without a wait.
    ///
    /// # Panics
    /// If there are more parts than the team is wide, or `work` panics: then after all have ended.
    pub fn run<P: Send>(&mut self, parts: Vec<P>, work: impl Fn(P) + Sync) {
        assert!(parts.len() <= self.width(), "more parts than threads");
        if parts.len() == 1 {
            return parts.into_iter().for_each(work);
        }
        let mut parts: Vec<Option<P>> = parts.into_iter().map(Some).collect();
        let parts = Parts { first: parts.as_mut_ptr(), count: parts.len() };
        self.all(&|index| {
            if index < parts.count {
                // SAFETY: `index` is within the vector, which outlives this phase, and no other thread has
                // the same one.
                let part = unsafe { &mut *parts.at(index) };
                work(part.take().expect("each part is taken once"));
            }
        });
    }

    fn all(&mut self, phase: &Phase<'_>) {
        let shared = &*self.shared;
        // SAFETY: only the lifetime is changed. No helper uses the reference after `busy` is zero, and this
        // function does not end, nor unwind, before.
        let phase: &'static Phase<'static> = unsafe { std::mem::transmute(phase) };
        // SAFETY: `busy` is zero, so no helper reads it; `&mut self` keeps other callers away.
        unsafe { *shared.phase.get() = Some(phase) };
        shared.busy.store(self.helpers, Ordering::Relaxed);
        shared.count.fetch_add(1, Ordering::SeqCst);
        shared.wake();
        let own = catch_unwind(AssertUnwindSafe(|| phase(0)));
        shared.wait(|| shared.busy.load(Ordering::SeqCst) == 0);
        let helper_panicked = shared.panicked.swap(false, Ordering::Relaxed);
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        assert!(!helper_panicked, "a thread that helped panicked");
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        // SAFETY: `busy` is zero outside of `all`, so no helper reads it.
        unsafe { *self.shared.phase.get() = None };
        self.shared.count.fetch_add(1, Ordering::SeqCst);
        self.shared.wake();
    }
}

impl Shared {
    /// The life of a helper.
    fn help(&self, index: usize) {
        let mut seen = 0;
        loop {
            self.wait(|| self.count.load(Ordering::SeqCst) != seen);
            seen += 1;
            // SAFETY: the caller wrote it before it counted this phase, and does not write again before
            // `busy` says that this helper has ended.
            let Some(phase) = (unsafe { *self.phase.get() }) else { return };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| phase(index))) {
                self.panicked.store(true, Ordering::Relaxed);
                // What a panic carries may itself panic when it is dropped, and the caller waits.
                std::mem::forget(panic);
            }
            if self.busy.fetch_sub(1, Ordering::SeqCst) == 1 {
                self.wake();
            }
        }
    }

    /// Waits until `is_there`, a while awake and then asleep.
    fn wait(&self, is_there: impl Fn() -> bool) {
        for _ in 0..LOOKS {
            if is_there() {
                return;
            }
            std::hint::spin_loop();
        }
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let mut held = self.last_look.lock().unwrap_or_else(PoisonError::into_inner);
        while !is_there() {
            held = self.something_new.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        drop(held);
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    /// Wakes who sleeps. Who is about to has counted itself before its last look, so either that look sees
    /// what is new, or it is seen here.
    fn wake(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(self.last_look.lock().unwrap_or_else(PoisonError::into_inner));
            self.something_new.notify_all();
        }
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            count: AtomicUsize::new(0),
            phase: UnsafeCell::new(None),
            busy: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            last_look: Mutex::new(()),
            something_new: Condvar::new(),
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("count", &self.count).field("busy", &self.busy).finish_non_exhaustive()
    }
}

/// Parts of which every thread takes another one.
struct Parts<P> {
    first: *mut Option<P>,
    count: usize,
}

impl<P> Parts<P> {
    fn at(&self, index: usize) -> *mut Option<P> {
        self.first.wrapping_add(index)
    }
}

// SAFETY: threads only ever take different parts, each of which may be sent.
unsafe impl<P: Send> Sync for Parts<P> {}

#[cfg(test)]
mod tests {
    use super::*;

    fn team(width: usize) -> Team {
        Team::new(width, |helper| std::thread::Builder::new().spawn(helper).map(drop)).unwrap()
    }

    #[test]
    fn every_part_is_done_once_in_every_phase() {
        for width in [1, 2, 3] {
            let mut team = team(width);
            let mut parts = vec![0_u64; width];
            for phase in 0..2_000 {
                let count = 1 + phase % width;
                team.run(parts[..count].iter_mut().collect(), |part| *part += 1);
                if phase % 500 == 0 {
                    // Long enough for the helpers to fall asleep.
                    std::thread::park_timeout(std::time::Duration::from_millis(2));
                }
            }
            let done = |index: usize| (0..2_000).filter(|phase| index <= phase % width).count() as u64;
            assert_eq!(parts, (0..width).map(done).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_panic_comes_out_after_all_have_ended_and_the_team_goes_on() {
        let mut team = team(2);
        for bad in [vec![0], vec![1], vec![0, 1]] {
            let mut parts = [0, 1];
            let work = |part: &mut i32| {
                assert!(!bad.contains(part), "as wanted");
                *part = 10;
            };
            let panicked = catch_unwind(AssertUnwindSafe(|| team.run(parts.iter_mut().collect(), work)));
            assert!(panicked.is_err());
            let done = parts.iter().filter(|part| **part == 10).count();
            assert_eq!(done, 2 - bad.len(), "the other part was done");
            team.run(parts.iter_mut().collect(), |part| *part = 5);
            assert_eq!(parts, [5, 5]);
        }
    }

    #[test]
    fn helpers_end_with_the_team() {
        let (send, ended) = std::sync::mpsc::sync_channel(2);
        let start = |helper: Helper| {
            let send = send.clone();
            std::thread::Builder::new()
                .spawn(move || {
                    helper();
                    send.send(()).unwrap();
                })
                .map(drop)
        };
        drop(Team::new(3, start).unwrap());
        for _ in 0..2 {
            ended.recv_timeout(std::time::Duration::from_secs(10)).unwrap();
        }
    }
}
