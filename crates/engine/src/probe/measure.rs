//! Runs steps on threads that stand exactly as the lanes will.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use quadrant_types::{Clock, StepId, Tensor};

use crate::panics::guarded;
use crate::spawn::{self, ThreadSpec};
use crate::{Done, EngineError, LaneSpec, Model, Runner, SequencePart, StepResult, StepWork};

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

impl Measured {
    /// What lanes side by side can have taken at most: as long as if they had taken turns. More is what else
    /// the machine did meanwhile.
    pub(super) fn bounded_by(self, alone: Self, rows: usize, lanes: usize) -> Self {
        let turns = alone.step * u32::try_from(lanes).unwrap_or(u32::MAX);
        if self.step <= turns {
            return self;
        }
        let rows_per_second = (rows * lanes) as f64 / turns.as_secs_f64().max(1e-9);
        Self { rows_per_second, step: turns }
    }
}

/// A thread with a runner, like a lane.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) lane: LaneSpec,
    orders: Option<SyncSender<Order>>,
    thread: Option<JoinHandle<()>>,
}

/// What a worker runs, over and over.
pub(super) enum Job {
    Batch(StepWork),
    /// The parts are made anew for every step, because a step changes its sequences.
    Iteration(Box<dyn Fn() -> Vec<SequencePart> + Send>),
}

struct Order {
    job: Job,
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
        let is_narrow = lane.cores.len() <= 1;
        let serve = move || {
            for Order { job, window, answer } in inbox {
                // Whoever lost patience no longer takes it.
                let _taken =
                    answer.send(guarded(|| execute(&mut *runner, &job, (window, is_narrow), &*clock)));
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

    /// Runs one step on each of them at the same time.
    pub(super) fn once_on_all(
        workers: &[Self],
        inputs: &[Tensor],
        outputs: &Arc<[usize]>,
    ) -> Result<(), EngineError> {
        let answers = workers.iter().map(|worker| worker.order(inputs.to_vec(), outputs, Duration::ZERO));
        let answers = answers.collect::<Result<Vec<_>, _>>()?;
        answers.iter().try_for_each(|answer| wait(answer).map(drop))
    }

    fn order(
        &self,
        inputs: Vec<Tensor>,
        outputs: &Arc<[usize]>,
        window: Duration,
    ) -> Result<Receiver<Result<Answer, EngineError>>, EngineError> {
        let work = StepWork { step: StepId(0), inputs, outputs: Arc::clone(outputs) };
        self.give(Job::Batch(work), window)
    }

    fn give(&self, job: Job, window: Duration) -> Result<Receiver<Result<Answer, EngineError>>, EngineError> {
        let (answer, answered) = sync_channel(1);
        let orders = self.orders.as_ref().ok_or_else(hangs)?;
        // One order at a time, so the only way not to take it is to be still busy with the last.
        orders.try_send(Order { job, window, answer }).map_err(|_| hangs())?;
        Ok(answered)
    }

    /// The time of an iteration, measured for about `window`; at least it has run once.
    pub(super) fn iterations(
        &self,
        parts: impl Fn() -> Vec<SequencePart> + Send + 'static,
        window: Duration,
    ) -> Result<Duration, EngineError> {
        let answer = self.give(Job::Iteration(Box::new(parts)), window)?;
        wait(&answer).map(|answer| answer.median)
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
    job: &Job,
    (window, is_narrow): (Duration, bool),
    clock: &dyn Clock,
) -> Result<Answer, EngineError> {
    let (outputs, _) = step(runner, job)?;
    let mut times = Vec::new();
    let began = clock.now();
    let mut now = began;
    while !window.is_zero() && (times.len() < STEPS.0 || now < began + window) && times.len() < STEPS.1 {
        let (_, core_time) = step(runner, job)?;
        let after = clock.now();
        // Of threads beside the caller's little is known, so no wide step counts as disturbed.
        let time = after.since(now);
        times.push((time, if is_narrow { core_time } else { time }));
        now = after;
    }
    Ok(Answer { outputs, median: median(&times) })
}

/// The median of the times of steps, given with the processor time of each. Steps during which something
/// else had the core count only if there are no others; a device that is waited for has no others.
fn median(times: &[(Duration, Duration)]) -> Duration {
    let undisturbed = times.iter().filter(|(time, core_time)| *core_time * 10 >= *time * 9);
    let mut counted: Vec<_> = undisturbed.map(|(time, _)| *time).collect();
    if counted.is_empty() {
        counted = times.iter().map(|(time, _)| *time).collect();
    }
    counted.sort_unstable();
    counted.get(counted.len() / 2).copied().unwrap_or_default()
}

/// Runs one step and waits for its `Done`, wherever it fires. Also gives the processor time of the calling
/// thread and of those that the engine told of.
fn step(runner: &mut dyn Runner, job: &Job) -> Result<(Vec<Tensor>, Duration), EngineError> {
    let (send, receive) = sync_channel(1);
    let before = quadrant_sys::thread_time();
    // The receiver waits below.
    match job {
        Job::Batch(work) => {
            let done = Done::timed(move |result, elsewhere| drop(send.send((result, elsewhere))));
            runner.submit(work.clone(), done);
        }
        Job::Iteration(parts) => {
            let done = Done::timed(move |result: Result<Vec<_>, _>, elsewhere| {
                drop(send.send((result.map(|_| Vec::new()), elsewhere)));
            });
            runner.iterate(parts(), done);
        }
    }
    let (result, elsewhere) =
        receive.recv().map_err(|_| EngineError::Panicked("the engine gave no result".into()))?;
    let here = quadrant_sys::thread_time().saturating_sub(before);
    result.map(|outputs| (outputs, here + elsewhere))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_side_by_side_are_never_slower_than_taking_turns() {
        let measured = |ms| Measured { rows_per_second: 0.0, step: Duration::from_millis(ms) };
        assert_eq!(measured(18).bounded_by(measured(10), 1, 2).step, Duration::from_millis(18));
        let bounded = measured(56).bounded_by(measured(9), 1, 2);
        assert_eq!(bounded.step, Duration::from_millis(18));
        assert!((bounded.rows_per_second - 2.0 / 0.018).abs() < 1e-6, "{bounded:?}");
    }

    #[test]
    fn disturbed_steps_count_only_where_there_are_no_others() {
        let check = |times_ms: &[(u64, u64)], expect_ms| {
            let times = times_ms.iter().map(|(time, core)| [*time, *core].map(Duration::from_millis));
            let times: Vec<_> = times.map(|[time, core]| (time, core)).collect();
            assert_eq!(median(&times), Duration::from_millis(expect_ms), "{times_ms:?}");
        };
        check(&[(10, 10), (30, 30), (20, 20)], 20);
        check(&[(70, 12), (10, 9), (90, 11), (80, 12), (12, 12), (11, 11)], 11);
        check(&[(70, 12), (90, 0), (80, 10)], 80);
        check(&[], 0);
    }
}
