//! A lane: one named thread on its own cores that runs one step at a time.
//!
//! It owns the runners of the models installed on it, so nothing is shared while a step runs. Commands
//! come through a bounded channel; each step is reported to the sink exactly once, also when the engine
//! panics, forgets the step, or the lane stops before it got to it.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::Duration;

use quadrant_types::{Clock, ModelId, RequestId, StepId, Time};
use smallvec::SmallVec;

use crate::batch;
use crate::held_cores::{self, Hold};
use crate::spawn::{self, ThreadSpec};
use crate::{
    Done, EngineError, Generated, LaneReport, LaneSink, LaneSpec, LaneWork, PartOutputs, Runner,
    SchedulingClass, StepResult, StepWork, Task,
};

/// How long a dropped lane may take to end before its thread is left behind.
const DROP_GRACE: Duration = Duration::from_secs(1);

/// A running lane. Dropping it stops it.
pub struct Lane {
    commands: Option<SyncSender<Command>>,
    shared: Arc<Shared>,
    /// Disconnects when the thread ends.
    ended: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

/// Why a lane did not take a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Its channel is full: it was given more than its capacity while a step runs.
    #[error("the lane is full")]
    Full,
    /// It is stopping.
    #[error("the lane has stopped")]
    Stopped,
}

/// What a lane did not take, with the reason.
pub struct Refused<T> {
    /// Why.
    pub reason: Refusal,
    /// What was to be handed over.
    pub returned: T,
}

impl<T> fmt::Debug for Refused<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refused").field("reason", &self.reason).finish_non_exhaustive()
    }
}

enum Command {
    Install(ModelId, Box<dyn Runner>),
    Remove(ModelId, SyncSender<Box<dyn Runner>>),
    Run(LaneWork),
}

struct Shared {
    spec: LaneSpec,
    clock: Arc<dyn Clock>,
    sink: Arc<dyn LaneSink>,
    stopping: AtomicBool,
}

impl Lane {
    /// Starts the lane's thread on its cores in its class. Up to `capacity` commands wait while a step runs.
    ///
    /// To be called from a thread of the shell: the first lane also starts the thread that creates all
    /// others, which inherits the caller's scheduling class.
    ///
    /// # Errors
    /// What the operating system answered, for instance that a core may not be used.
    pub fn start(
        spec: LaneSpec,
        clock: Arc<dyn Clock>,
        sink: Arc<dyn LaneSink>,
        capacity: usize,
    ) -> io::Result<Self> {
        spawn::prepare()?;
        let shared = Arc::new(Shared { spec, clock, sink, stopping: AtomicBool::new(false) });
        let (commands, inbox) = sync_channel(capacity);
        let (running, ended) = sync_channel(0);
        let work = {
            let shared = Arc::clone(&shared);
            move || {
                let _until_the_end = running;
                serve(&shared, &inbox);
            }
        };
        let name = format!("lane-{}", spec.id.0);
        let thread = ThreadSpec { name, cores: spec.cores, class: spec.class };
        let thread = spawn::spawn(thread, Box::new(work))?;
        Ok(Self { commands: Some(commands), shared, ended, thread: Some(thread) })
    }

    /// Its cores and class.
    pub fn spec(&self) -> &LaneSpec {
        &self.shared.spec
    }

    /// Gives the lane what it needs to run a model; replaces what it had for it.
    ///
    /// # Errors
    /// The runner comes back if the lane is full or stopped.
    pub fn install(&self, model: ModelId, runner: Box<dyn Runner>) -> Result<(), Refused<Box<dyn Runner>>> {
        self.send(Command::Install(model, runner)).map_err(|refused| {
            let Command::Install(_, returned) = refused.returned else { unreachable!("it comes back") };
            Refused { reason: refused.reason, returned }
        })
    }

    /// Takes back what the lane has for a model, after the steps that were given to it before. Taking an
    /// engine down can take milliseconds, which are not the lane's. The channel closes without a runner if
    /// there is none.
    ///
    /// # Errors
    /// If the lane is full or stopped.
    pub fn remove(&self, model: ModelId) -> Result<Receiver<Box<dyn Runner>>, Refusal> {
        let (runner, removed) = sync_channel(1);
        self.send(Command::Remove(model, runner)).map_err(|refused| refused.reason)?;
        Ok(removed)
    }

    /// Hands over a step, to be run after those before it. Its report comes through the sink.
    ///
    /// # Errors
    /// The step comes back, and is not reported, if the lane is full or stopped.
    pub fn run(&self, work: LaneWork) -> Result<(), Refused<LaneWork>> {
        self.send(Command::Run(work)).map_err(|refused| {
            let Command::Run(returned) = refused.returned else { unreachable!("it comes back") };
            Refused { reason: refused.reason, returned }
        })
    }

    /// Takes no more commands; steps that have not begun are reported as revoked. Does not wait.
    pub fn close(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.commands = None;
    }

    /// Closes the lane and waits for its thread to end; false if that takes longer than `timeout`. Then
    /// the thread is left behind, because a stalled engine must not hold up the end of the process.
    pub fn stop(mut self, timeout: Duration) -> bool {
        self.halt(timeout)
    }

    fn halt(&mut self, timeout: Duration) -> bool {
        self.close();
        let Some(thread) = self.thread.take() else { return true };
        let ended = self.ended.recv_timeout(timeout) == Err(RecvTimeoutError::Disconnected);
        // Having ended, it is joined at once; a panic of its own was printed when it happened.
        ended && thread.join().is_ok()
    }

    fn send(&self, command: Command) -> Result<(), Refused<Command>> {
        let Some(commands) = &self.commands else {
            return Err(Refused { reason: Refusal::Stopped, returned: command });
        };
        commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(returned) => Refused { reason: Refusal::Full, returned },
            TrySendError::Disconnected(returned) => Refused { reason: Refusal::Stopped, returned },
        })
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.halt(DROP_GRACE);
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane").field("spec", &self.shared.spec).finish_non_exhaustive()
    }
}

fn serve(shared: &Arc<Shared>, inbox: &Receiver<Command>) {
    let mut runners = BTreeMap::new();
    for command in inbox {
        match command {
            Command::Install(model, runner) => drop(runners.insert(model, runner)),
            // Whoever lost patience takes it no more; it is then dropped here.
            Command::Remove(model, taker) => drop(runners.remove(&model).map(|runner| taker.send(runner))),
            Command::Run(work) => run(shared, &mut runners, work),
        }
    }
}

fn run(shared: &Arc<Shared>, runners: &mut BTreeMap<ModelId, Box<dyn Runner>>, work: LaneWork) {
    let began = shared.clock.now();
    let LaneWork { step, model, task } = work;
    let requests = match &task {
        Task::Batch { parts, .. } => parts.iter().map(|part| (part.request, part.rows)).collect(),
        Task::Iteration(parts) => parts.iter().map(|part| (part.request, part.tokens)).collect(),
    };
    let mut reporter = Reporter {
        shared: Arc::clone(shared),
        step,
        requests,
        began,
        gathered: began,
        _hold: (shared.spec.class == SchedulingClass::Urgent).then(|| held_cores::hold(shared.spec.cores)),
        thread: thread::current().id(),
        core_time_before: quadrant_sys::thread_time(),
    };
    if shared.stopping.load(Ordering::Acquire) {
        return reporter.finish(Err(EngineError::Revoked), Duration::ZERO);
    }
    let Some(runner) = runners.get_mut(&model) else {
        let error = EngineError::Panicked(format!("the lane was not given model `{model}`"));
        return reporter.finish(Err(error), Duration::ZERO);
    };
    // Whoever holds `done` when a panic passes drops it, which reports the step; so there is nothing left to
    // do for it here, and the lane goes on.
    match task {
        Task::Batch { parts, outputs } => {
            let gathered = batch::gather(&parts);
            // The requests' own references go before the step begins; the batch has what it needs.
            drop(parts);
            reporter.gathered = shared.clock.now();
            match gathered {
                Ok(inputs) => {
                    let done = Done::timed(move |result, elsewhere| reporter.finish(result, elsewhere));
                    let submit = || runner.submit(StepWork { step, inputs, outputs }, done);
                    drop(catch_unwind(AssertUnwindSafe(submit)));
                }
                Err(error) => reporter.finish(Err(error), Duration::ZERO),
            }
        }
        Task::Iteration(parts) => {
            let done = Done::timed(move |result, elsewhere| reporter.finish_iteration(result, elsewhere));
            let iterate = || runner.iterate(parts, done);
            drop(catch_unwind(AssertUnwindSafe(iterate)));
        }
    }
}

impl Shared {
    /// How many compute a step: at least one.
    fn cores(&self) -> u32 {
        u32::try_from(self.spec.cores.len().max(1)).unwrap_or(u32::MAX)
    }
}

/// What is needed to report a step, wherever it ends.
struct Reporter {
    shared: Arc<Shared>,
    step: StepId,
    requests: SmallVec<[(RequestId, usize); 8]>,
    began: Time,
    gathered: Time,
    /// Of the cores of an urgent step, until it is reported: nobody who is woken then delays the report.
    _hold: Option<Hold>,
    /// The lane's thread, and what it had used when it took the step up.
    thread: ThreadId,
    core_time_before: Duration,
}

impl Reporter {
    fn finish(self, result: StepResult, core_time_elsewhere: Duration) {
        self.report(result, core_time_elsewhere, batch::scatter);
    }

    fn finish_iteration(
        self,
        result: Result<Vec<Option<Generated>>, EngineError>,
        core_time_elsewhere: Duration,
    ) {
        self.report(result, core_time_elsewhere, |requests, tokens| {
            if requests.len() != tokens.len() {
                return Err(EngineError::Panicked("the engine did not answer for every sequence".into()));
            }
            let outputs = |((request, _), generated): (&(RequestId, usize), _)| PartOutputs {
                request: *request,
                outputs: Vec::new(),
                generated,
            };
            Ok(requests.iter().zip(tokens).map(outputs).collect())
        });
    }

    fn report<T>(
        self,
        result: Result<T, EngineError>,
        core_time_elsewhere: Duration,
        scatter: impl FnOnce(&[(RequestId, usize)], T) -> Result<Vec<PartOutputs>, EngineError>,
    ) {
        let core_time = self.core_time(core_time_elsewhere);
        let Self { shared, step, requests, began, gathered, .. } = self;
        let computed = shared.clock.now();
        let core_time = core_time.unwrap_or_else(|| computed.since(gathered) * shared.cores());
        let result = result.and_then(|outputs| scatter(&requests, outputs));
        let scattered = if result.is_ok() && requests.len() > 1 { shared.clock.now() } else { computed };
        let lane = shared.spec.id;
        shared.sink.report(LaneReport {
            step,
            lane,
            began,
            gathered,
            computed,
            scattered,
            core_time,
            result,
        });
    }

    /// What the operating system counted, where all of it was counted.
    fn core_time(&self, elsewhere: Duration) -> Option<Duration> {
        let counted = self.shared.cores() == 1 && thread::current().id() == self.thread;
        counted.then(|| quadrant_sys::thread_time().saturating_sub(self.core_time_before) + elsewhere)
    }
}
