//! Runs steps on threads that stand exactly as the lanes will.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use quadrant_types::{Clock, StepId, Tensor};

use crate::panics::guarded;
use crate::spawn::{self, ThreadSpec};
use crate::{Done, EngineError, LaneSpec, Model, Runner, StepResult, StepWork};

/// How long one order may take; a model that hangs must not hang the server.
const PATIENCE: Duration = Duration::from_secs(60);
/// Steps that are timed at least, and at most.
const STEPS: (usize, usize) = (2, 500);

/// How one way of running a model went.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    pub(super) rows_per_second: f64,
    /// Time of one step: the median, averaged over the lanes.
    pub(super) step: Duration,
}

/// A thread with a runner, like a lane.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) lane: LaneSpec,
    orders: Option<SyncSender<Order>>,
    thread: Option<JoinHandle<()>>,
}

struct Order {
    work: StepWork,
    /// Steps are timed for as long as this; zero runs one step, untimed.
    window: Duration,
    answer: SyncSender<Result<Answer, EngineError>>,
}

struct Answer {
    outputs: Vec<Tensor>,
    /// Time of a step. The mean would count whatever else the machine did meanwhile.
    median: Duration,
}

impl Worker {
    pub(super) fn start(
        model: &Arc<dyn Model>,
        lane: &LaneSpec,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self, EngineError> {
        let mut runner = model.runner(lane)?;
        let (orders, inbox) = sync_channel::<Order>(1);
        let clock = Arc::clone(clock);
        let serve = move || {
            for Order { work, window, answer } in inbox {
                // Whoever lost patience no longer takes it.
                let _taken = answer.send(guarded(|| execute(&mut *runner, &work, window, &*clock)));
            }
        };
        let name = format!("probe-{}", lane.cores);
        let thread = ThreadSpec { name, cores: lane.cores, class: lane.class };
        let thread = spawn::spawn(thread, Box::new(serve))
            .map_err(|error| EngineError::OutOfMemory(format!("a thread cannot be started: {error}")))?;
        Ok(Self { lane: *lane, orders: Some(orders), thread: Some(thread) })
    }

    /// Runs one step.
    pub(super) fn once(&self, inputs: Vec<Tensor>, outputs: &Arc<[usize]>) -> StepResult {
        let answer = self.order(inputs, outputs, Duration::ZERO)?;
        wait(&answer).map(|answer| answer.outputs)
    }

    fn order(
        &self,
        inputs: Vec<Tensor>,
        outputs: &Arc<[usize]>,
        window: Duration,
    ) -> Result<Receiver<Result<Answer, EngineError>>, EngineError> {
        let (answer, answered) = sync_channel(1);
        let work = StepWork { step: StepId(0), inputs, outputs: Arc::clone(outputs) };
        let orders = self.orders.as_ref().ok_or_else(hangs)?;
        // One order at a time, so the only way not to take it is to be still busy with the last.
        orders.try_send(Order { work, window, answer }).map_err(|_| hangs())?;
        Ok(answered)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.orders = None;
        // A worker that hangs cannot be waited for; one that does not is about to end.
        drop(self.thread.take().filter(JoinHandle::is_finished).map(JoinHandle::join));
    }
}

/// Steps of `rows` rows on all workers at once, for about `window` each.
pub(super) fn side_by_side(
    workers: &[Worker],
    inputs: &[Tensor],
    outputs: &Arc<[usize]>,
    (rows, window): (usize, Duration),
) -> Result<Measured, EngineError> {
    let answers = workers.iter().map(|worker| worker.order(inputs.to_vec(), outputs, window));
    let answers = answers.collect::<Result<Vec<_>, _>>()?;
    let answers = answers.iter().map(wait).collect::<Result<Vec<_>, _>>()?;
    let mean = answers.iter().map(|answer| answer.median).sum::<Duration>() / answers.len().max(1) as u32;
    #[expect(clippy::cast_precision_loss, reason = "counts of rows and lanes are far below 2^52")]
    let rows_at_once = (rows * answers.len()) as f64;
    Ok(Measured { rows_per_second: rows_at_once / mean.as_secs_f64().max(1e-9), step: mean })
}

fn wait(answer: &Receiver<Result<Answer, EngineError>>) -> Result<Answer, EngineError> {
    answer.recv_timeout(PATIENCE).unwrap_or_else(|_| Err(hangs()))
}

fn hangs() -> EngineError {
    EngineError::Panicked(format!("a step took over {PATIENCE:?}"))
}

fn execute(
    runner: &mut dyn Runner,
    work: &StepWork,
    window: Duration,
    clock: &dyn Clock,
) -> Result<Answer, EngineError> {
    let outputs = step(runner, work)?;
    let mut times = Vec::new();
    let began = clock.now();
    let mut now = began;
    while !window.is_zero() && (times.len() < STEPS.0 || now < began + window) && times.len() < STEPS.1 {
        step(runner, work)?;
        let after = clock.now();
        times.push(after.since(now));
        now = after;
    }
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    Ok(Answer { outputs, median })
}

/// Runs one step and waits for its `Done`, wherever it fires.
fn step(runner: &mut dyn Runner, work: &StepWork) -> StepResult {
    let (send, receive) = sync_channel(1);
    let done = Done::new(move |result| {
        // The receiver waits below.
        let _taken = send.send(result);
    });
    runner.submit(work.clone(), done);
    receive.recv().map_err(|_| EngineError::Panicked("the engine gave no result".into()))?
}
