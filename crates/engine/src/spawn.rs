//! Starts threads on chosen cores in a chosen class, whoever asks for them.
//!
//! A thread inherits the class of its creator and cannot leave `SCHED_IDLE`, so a model loaded in the
//! idle class would compute in it for ever. All threads are therefore created by one thread that keeps
//! the class of the shell.

use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::{Builder, JoinHandle};

use quadrant_kernels::{Helper, Team};
use quadrant_types::CoreSet;

use crate::{EngineError, LaneSpec, SchedulingClass, held_cores};

/// By how much the nice value of urgent threads lies above the shell's.
const URGENT_NICE: i32 = 5;

/// How a thread is to be.
#[derive(Clone, Debug)]
pub(crate) struct ThreadSpec {
    pub(crate) name: String,
    pub(crate) cores: CoreSet,
    pub(crate) class: SchedulingClass,
}

type Work = Box<dyn FnOnce() + Send>;

struct Order {
    /// `None` for a thread of the shell's kind.
    spec: Option<ThreadSpec>,
    name: String,
    work: Work,
    answer: SyncSender<io::Result<JoinHandle<()>>>,
}

static CREATOR: OnceLock<Option<SyncSender<Order>>> = OnceLock::new();

/// Starts the thread that creates all others. To be called from a thread of the shell, since it
/// inherits the caller's class; later calls do nothing.
pub(crate) fn prepare() -> io::Result<()> {
    creator().map(|_| ())
}

/// Starts a thread, and waits until it is on its cores and in its class.
pub(crate) fn spawn(spec: ThreadSpec, work: Work) -> io::Result<JoinHandle<()>> {
    order(spec.name.clone(), Some(spec), work)
}

/// The threads of our own kernels for the steps of one lane: its own, and one more for each further core. In
/// the idle class they leave the cores of urgent steps alone.
///
/// # Errors
/// [`EngineError::OutOfMemory`] with what the operating system answered.
pub(crate) fn team(name: &str, lane: &LaneSpec) -> Result<Team, EngineError> {
    let start = |helper: Helper| {
        let thread = ThreadSpec { name: name.into(), cores: lane.cores, class: lane.class };
        spawn(thread, helper).map(drop)
    };
    let width = lane.cores.len();
    let team = match lane.class {
        SchedulingClass::Urgent => Team::new(width, start),
        SchedulingClass::Idle => {
            Team::that_gives_way(width, Arc::new(held_cores::gives_way(lane.cores)), start)
        }
    };
    team.map_err(|error| EngineError::OutOfMemory(format!("threads cannot be started: {error}")))
}

/// Starts a thread that stands as those of the shell do, on any core.
pub(crate) fn spawn_as_shell(name: String, work: Work) -> io::Result<JoinHandle<()>> {
    order(name, None, work)
}

fn order(name: String, spec: Option<ThreadSpec>, work: Work) -> io::Result<JoinHandle<()>> {
    let (answer, answered) = sync_channel(1);
    let gone = || io::Error::other("the thread that creates threads ended");
    creator()?.send(Order { spec, name, work, answer }).map_err(|_| gone())?;
    answered.recv().map_err(|_| gone())?
}

/// Starts a thread of the idle class on these cores, for work that gives way to every step, such as loading
/// models. What it starts through this module is in the class that was asked for all the same.
///
/// # Errors
/// What the operating system answered.
pub fn background(
    name: &str,
    cores: CoreSet,
    work: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    spawn(ThreadSpec { name: name.into(), cores, class: SchedulingClass::Idle }, Box::new(work))
}

fn creator() -> io::Result<&'static SyncSender<Order>> {
    let started = CREATOR.get_or_init(|| {
        let (orders, inbox) = sync_channel::<Order>(1);
        let create = move || {
            for Order { spec, name, work, answer } in inbox {
                let created = match spec {
                    Some(spec) => create(spec, work),
                    None => Builder::new().name(name).spawn(work),
                };
                // Whoever ordered waits for the answer, so it is taken.
                let _taken = answer.send(created);
            }
        };
        Builder::new().name("threads".into()).spawn(create).ok().map(|_| orders)
    });
    started.as_ref().ok_or_else(|| io::Error::other("the thread that creates threads could not be started"))
}

fn create(spec: ThreadSpec, work: Work) -> io::Result<JoinHandle<()>> {
    let (ready, settled) = sync_channel(1);
    let ThreadSpec { name, cores, class } = spec;
    let thread = Builder::new().name(name).spawn(move || {
        let settled = settle(cores, class);
        let begin = settled.is_ok();
        // The creator waits for it below.
        let _taken = ready.send(settled);
        if begin {
            work();
        }
    })?;
    settled.recv().map_err(|_| io::Error::other("a thread ended before it began"))??;
    Ok(thread)
}

fn settle(cores: CoreSet, class: SchedulingClass) -> io::Result<()> {
    quadrant_sys::confine_thread(cores)?;
    match class {
        SchedulingClass::Urgent => quadrant_sys::lower_thread_priority(URGENT_NICE),
        SchedulingClass::Idle => quadrant_sys::idle_thread(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thread(class: SchedulingClass, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
        let cores = CoreSet::from_cores(quadrant_sys::allowed_cores()?.cores().take(1));
        spawn(ThreadSpec { name: "test".into(), cores, class }, Box::new(work))
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn an_idle_thread_can_start_an_urgent_one() {
        let nice = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            stat.rsplit_once(") ").unwrap().1.split(' ').nth(16).unwrap().parse::<i32>().unwrap()
        };
        prepare().unwrap();
        let (send, receive) = sync_channel(2);
        let shell = nice();
        let idle = thread(SchedulingClass::Idle, move || {
            let urgent = thread(SchedulingClass::Urgent, move || send.send(nice()).unwrap()).unwrap();
            urgent.join().unwrap();
        });
        idle.unwrap().join().unwrap();
        assert_eq!(receive.recv().unwrap(), (shell + URGENT_NICE).min(19));
    }

    #[test]
    fn a_core_that_does_not_exist_is_an_error() {
        let cores = CoreSet::from_cores([63]).without(quadrant_sys::allowed_cores().unwrap());
        let spec = ThreadSpec { name: "test".into(), cores, class: SchedulingClass::Urgent };
        assert!(cores.is_empty() || cfg!(not(target_os = "linux")) || spawn(spec, Box::new(|| ())).is_err());
    }
}
