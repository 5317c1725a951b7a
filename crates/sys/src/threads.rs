//! Cores and scheduling classes of threads.
//!
//! All calls concern the calling thread, and only ever lower its standing, so none needs privileges. A
//! thread inherits cores and class from its creator, and an unprivileged thread cannot leave
//! `SCHED_IDLE`, so threads of a higher class must not be created from one of a lower.

use std::io;
use std::time::Duration;

use quadrant_types::CoreSet;

/// The cores this process may use, as far as a [`CoreSet`] can name them (0 to 63).
///
/// # Errors
/// What the operating system answered.
#[cfg(target_os = "linux")]
pub fn allowed_cores() -> io::Result<CoreSet> {
    let mut set = empty_set();
    // SAFETY: `set` is a `cpu_set_t` of exactly the size that is passed; the kernel writes only into it.
    check(unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) })?;
    // SAFETY: `CPU_ISSET` reads one bit of a set that has 1024 of them.
    Ok(CoreSet::from_cores((0..CoreSet::CAPACITY).filter(|core| unsafe { libc::CPU_ISSET(*core, &set) })))
}

/// Lets the calling thread, and the threads it creates from now on, run on `cores` only. The empty set
/// changes nothing.
///
/// # Errors
/// What the operating system answered, for instance that none of the cores may be used.
#[cfg(target_os = "linux")]
pub fn confine_thread(cores: CoreSet) -> io::Result<()> {
    if cores.is_empty() {
        return Ok(());
    }
    let mut set = empty_set();
    for core in cores.cores() {
        // SAFETY: sets one bit, below 64, of a set that has 1024 of them.
        unsafe { libc::CPU_SET(core, &mut set) };
    }
    // SAFETY: `set` is a `cpu_set_t` of exactly the size that is passed; the kernel only reads it.
    check(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) })
}

/// Raises the nice value of the calling thread by `by`, at most to 19.
///
/// Relative, because a process that was itself started with a nice value may not go below it.
///
/// # Errors
/// What the operating system answered.
#[cfg(target_os = "linux")]
pub fn lower_thread_priority(by: i32) -> io::Result<()> {
    const THIS_THREAD: libc::id_t = 0;
    // SAFETY: reads one number of the calling thread. A failure is not told from the nice value -1,
    // but the calling thread always exists, so the call does not fail.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, THIS_THREAD) };
    // SAFETY: changes one number of the calling thread.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, THIS_THREAD, nice.saturating_add(by).min(19)) })
}

/// Lets the calling thread run only when nothing else wants its core (`SCHED_IDLE`). An unprivileged
/// thread cannot take that back.
///
/// # Errors
/// What the operating system answered.
#[cfg(target_os = "linux")]
pub fn idle_thread() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the kernel only reads the parameters; 0 is the calling thread.
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) })
}

/// The processor time that the calling thread has used since it began; zero where the operating system
/// does not say. While another thread has the core it stands still, as the time of day does not.
#[cfg(unix)]
pub fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one `timespec`; the clock is the calling thread's own.
    if unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) } != 0 {
        return Duration::ZERO;
    }
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::from_secs(seconds) + Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or_default())
}

/// The processor time of the calling thread is not known on this operating system.
#[cfg(not(unix))]
pub fn thread_time() -> Duration {
    Duration::ZERO
}

#[cfg(target_os = "linux")]
fn empty_set() -> libc::cpu_set_t {
    // SAFETY: `cpu_set_t` is a plain array of integers, for which all zeros is a value: the empty set.
    unsafe { std::mem::zeroed() }
}

#[cfg(target_os = "linux")]
fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The cores this process may use: all of them.
///
/// # Errors
/// If the operating system does not say how many there are.
#[cfg(not(target_os = "linux"))]
pub fn allowed_cores() -> io::Result<CoreSet> {
    Ok(CoreSet::from_cores(0..std::thread::available_parallelism()?.get()))
}

/// Does nothing on this operating system.
///
/// # Errors
/// None.
#[cfg(not(target_os = "linux"))]
pub fn confine_thread(_cores: CoreSet) -> io::Result<()> {
    Ok(())
}

/// Does nothing on this operating system.
///
/// # Errors
/// None.
#[cfg(not(target_os = "linux"))]
pub fn lower_thread_priority(_by: i32) -> io::Result<()> {
    Ok(())
}

/// Does nothing on this operating system.
///
/// # Errors
/// None.
#[cfg(not(target_os = "linux"))]
pub fn idle_thread() -> io::Result<()> {
    Ok(())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// Runs `work` on a thread of its own, whose standing may then be lowered for good.
    fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        std::thread::spawn(work).join().expect("the test's thread does not panic")
    }

    #[test]
    fn a_thread_and_its_children_keep_to_their_cores() {
        let first = CoreSet::from_cores(allowed_cores().unwrap().cores().take(1));
        assert_eq!(first.len(), 1);
        let (own, inherited) = on_a_thread(move || {
            confine_thread(CoreSet::EMPTY).unwrap();
            confine_thread(first).unwrap();
            (allowed_cores().unwrap(), on_a_thread(|| allowed_cores().unwrap()))
        });
        assert_eq!((own, inherited), (first, first));
    }

    #[test]
    fn a_core_that_does_not_exist_is_an_error() {
        let absent = CoreSet::from_cores([63]).without(allowed_cores().unwrap());
        if !absent.is_empty() {
            let error = on_a_thread(move || confine_thread(absent)).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        }
    }

    #[test]
    fn the_time_of_a_thread_counts_its_work_and_not_its_waits() {
        let began = thread_time();
        on_a_thread(|| while thread_time() < Duration::from_millis(20) {});
        let waited = thread_time() - began;
        assert!(waited < Duration::from_millis(10), "waiting for another thread took {waited:?}");
    }

    #[test]
    fn priority_and_class_concern_one_thread_only() {
        // SAFETY: reads one number of the calling thread.
        let nice = || unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        // SAFETY: reads the policy of the calling thread.
        let policy = || unsafe { libc::sched_getscheduler(0) };
        let before = (nice(), policy());
        let lowered = on_a_thread(move || {
            lower_thread_priority(5).unwrap();
            idle_thread().unwrap();
            (nice(), policy())
        });
        assert_eq!(lowered, ((before.0 + 5).min(19), libc::SCHED_IDLE));
        assert_eq!((nice(), policy()), before);
    }
}
