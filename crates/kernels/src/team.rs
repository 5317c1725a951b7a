//! Threads that share one step: as many as it was given cores.
//!
//! A step has hundreds of short phases (a product, an attention), each of which all must end before the next
//! begins. A phase is cut into parts, and whoever is free takes the next one: so a thread whose core is taken
//! by something more urgent ([`GiveWay`]) is waited for no longer than its part takes. Within a step a thread
//! looks for the next part for some tens of microseconds before it sleeps, as that is what a phase takes and
//! waking a thread takes as long. Between steps all sleep.
//!
//! The threads themselves are started by the caller, on the cores and in the class that it was given.

use std::any::Any;
use std::cell::UnsafeCell;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::bell::Bell;

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

/// To whom a team leaves its cores.
pub trait GiveWay: Send + Sync {
    /// Returns when there is a core for the team's thread of this index (0 is the caller, whose turn comes
    /// first): nearly always at once. It is asked before each part, and what it waits for must end.
    fn wait(&self, thread: usize);
}

/// One phase, by the index of a part.
type Phase<'a> = dyn Fn(usize) + Sync + 'a;

struct Shared {
    gives_way: Option<Arc<dyn GiveWay>>,
    /// What the parts that are left belong to. Written by the caller only, and only while `undone` is zero.
    phase: UnsafeCell<Option<&'static Phase<'static>>>,
    /// Parts that nobody has taken; they are taken from the last to the first.
    left: AtomicUsize,
    /// Parts that have not ended.
    undone: AtomicUsize,
    /// What the first part that panicked did so with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// The team is dropped.
    is_over: AtomicBool,
    /// Rung when there are parts, when all have ended, and when the team is dropped.
    bell: Bell,
}

// SAFETY: `phase` is the only field that is not `Sync`. It is written by the caller while no part is left and
// none is being done, and it is read only by who has taken a part, which is done once the reading has ended.
// What it refers to is `Sync`.
unsafe impl Sync for Shared {}

impl Team {
    /// A team of `width`, of which the caller is one; `start` has each of the others run on a thread.
    ///
    /// # Errors
    /// What `start` failed with; helpers that were started before end.
    pub fn new(width: usize, start: impl FnMut(Helper) -> io::Result<()>) -> io::Result<Self> {
        Self::start(width, None, start)
    }

    /// One that leaves its cores to others when it is told to.
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub fn that_gives_way(
        width: usize,
        gives_way: Arc<dyn GiveWay>,
        start: impl FnMut(Helper) -> io::Result<()>,
    ) -> io::Result<Self> {
        Self::start(width, Some(gives_way), start)
    }

    /// A team of one.
    pub fn alone() -> Self {
        Self { shared: Arc::new(Shared::new(None)), helpers: 0 }
    }

    fn start(
        width: usize,
        gives_way: Option<Arc<dyn GiveWay>>,
        mut start: impl FnMut(Helper) -> io::Result<()>,
    ) -> io::Result<Self> {
        let mut team = Self { shared: Arc::new(Shared::new(gives_way)), helpers: 0 };
        for index in 1..width {
            let shared = Arc::clone(&team.shared);
            start(Box::new(move || shared.help(index)))?;
            team.helpers = index;
        }
        Ok(team)
    }

    /// How many take part.
    pub fn width(&self) -> usize {
        self.helpers + 1
    }

    /// Does `work` with every part, on as many threads as there are and may compute, and waits for all. One
    /// part is done by the caller, without a wait for anybody.
    ///
    /// # Panics
    /// If `work` panics, as it did first: after all parts have ended.
    pub fn run<P: Send>(&mut self, parts: Vec<P>, work: impl Fn(P) + Sync) {
        if parts.len() == 1 || self.helpers == 0 {
            for part in parts {
                self.shared.give_way(0);
                work(part);
            }
            return;
        }
        let mut parts: Vec<Option<P>> = parts.into_iter().map(Some).collect();
        let parts = Parts { first: parts.as_mut_ptr(), count: parts.len() };
        self.all(parts.count, &|index| {
            debug_assert!(index < parts.count, "a part that there is");
            // SAFETY: `index` is within the vector, which outlives this phase, and no other thread has
            // the same one.
            let part = unsafe { &mut *parts.at(index) };
            work(part.take().expect("each part is taken once"));
        });
    }

    fn all(&mut self, parts: usize, phase: &Phase<'_>) {
        let shared = &*self.shared;
        // SAFETY: only the lifetime is changed. Nobody uses the reference after `undone` is zero, and this
        // function does not end, nor unwind, before.
        let phase: &'static Phase<'static> = unsafe { std::mem::transmute(phase) };
        // SAFETY: no part is left or being done, so nobody reads it; `&mut self` keeps other callers away.
        unsafe { *shared.phase.get() = Some(phase) };
        shared.undone.store(parts, Ordering::Relaxed);
        shared.left.store(parts, Ordering::SeqCst);
        shared.bell.ring();
        shared.work(0);
        shared.wait(|| shared.undone.load(Ordering::SeqCst) == 0);
        if let Some(panic) = shared.panic().take() {
            resume_unwind(panic);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        self.shared.bell.ring();
    }
}

impl Shared {
    fn new(gives_way: Option<Arc<dyn GiveWay>>) -> Self {
        Self {
            gives_way,
            phase: UnsafeCell::new(None),
            left: AtomicUsize::new(0),
            undone: AtomicUsize::new(0),
            panic: Mutex::new(None),
            is_over: AtomicBool::new(false),
            bell: Bell::new(),
        }
    }

    /// The life of a helper.
    fn help(&self, index: usize) {
        loop {
            self.wait(|| self.left.load(Ordering::SeqCst) > 0 || self.is_over.load(Ordering::SeqCst));
            if self.is_over.load(Ordering::SeqCst) {
                return;
            }
            self.work(index);
        }
    }

    /// Does parts while any are left.
    fn work(&self, thread: usize) {
        loop {
            self.give_way(thread);
            let Some(part) = self.take() else { return };
            // SAFETY: the caller wrote it before there were parts to take, and does not write again before
            // `undone` says that this one has ended.
            let phase = unsafe { *self.phase.get() }.expect("a part belongs to a phase");
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| phase(part))) {
                let mut first = self.panic();
                if first.is_none() {
                    *first = Some(panic);
                } else {
                    // What a panic carries may itself panic when it is dropped, and the caller waits.
                    std::mem::forget(panic);
                }
            }
            if self.undone.fetch_sub(1, Ordering::SeqCst) == 1 {
                self.bell.ring();
            }
        }
    }

    fn take(&self) -> Option<usize> {
        let one_less = |left: usize| left.checked_sub(1);
        self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).ok().map(|left| left - 1)
    }

    fn give_way(&self, thread: usize) {
        if let Some(gives_way) = &self.gives_way {
            gives_way.wait(thread);
        }
    }

    fn panic(&self) -> MutexGuard<'_, Option<Box<dyn Any + Send>>> {
        self.panic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `is_there`, a while awake and then asleep.
    fn wait(&self, is_there: impl Fn() -> bool) {
        for _ in 0..LOOKS {
            if is_there() {
                return;
            }
            std::hint::spin_loop();
        }
        self.bell.wait(is_there);
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("left", &self.left)
            .field("undone", &self.undone)
            .finish_non_exhaustive()
    }
}

/// Parts of which each is taken once.
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

    /// Lets so many threads compute; who has to wait looks again every millisecond.
    struct Cores(AtomicUsize);

    impl GiveWay for Cores {
        fn wait(&self, thread: usize) {
            while thread >= self.0.load(Ordering::SeqCst) {
                std::thread::park_timeout(std::time::Duration::from_millis(1));
            }
        }
    }

    #[test]
    fn who_gives_way_leaves_all_parts_to_the_others() {
        let cores = Arc::new(Cores(AtomicUsize::new(1)));
        let start = |helper| std::thread::Builder::new().spawn(helper).map(drop);
        let mut team = Team::that_gives_way(3, Arc::clone(&cores) as Arc<dyn GiveWay>, start).unwrap();
        let done_by = |team: &mut Team| {
            let threads = Mutex::new(Vec::new());
            team.run(vec![(); 9], |()| {
                std::thread::park_timeout(std::time::Duration::from_millis(5));
                threads.lock().unwrap().push(std::thread::current().id());
            });
            threads.into_inner().unwrap()
        };
        let own = std::thread::current().id();
        assert_eq!(done_by(&mut team), vec![own; 9]);
        cores.0.store(2, Ordering::SeqCst);
        // The helpers look every millisecond, and the parts take 45 if one thread does them all.
        let both = done_by(&mut team);
        assert_eq!(both.len(), 9);
        let mut other: Vec<_> = both.into_iter().filter(|thread| *thread != own).collect();
        other.dedup();
        assert_eq!(other.len(), 1, "one of the two helpers, and always the same");
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
