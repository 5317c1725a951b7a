//! Lanes: order, batches, exactly one report for each step, and an end that nothing can hold up.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use quadrant_engine::{
    Done, EngineError, EngineKind, Lane, LaneReport, LaneSink, LaneSpec, LaneWork, Part, PartOutputs,
    Refusal, Runner, StepWork, Task,
};
use quadrant_types::{ModelId, RequestId, StepId, Tensor};

use crate::support::{TempFile, clock, floats, lane as spec, load};

const MODEL: ModelId = ModelId(1);
const PATIENCE: Duration = Duration::from_secs(20);

struct Sink(SyncSender<LaneReport>);

impl LaneSink for Sink {
    fn report(&self, report: LaneReport) {
        // A test that has seen enough no longer listens.
        let _taken = self.0.try_send(report);
    }
}

/// A runner that does what a closure says.
struct Closure<F>(F);

impl<F: FnMut(StepWork, Done) + Send> Runner for Closure<F> {
    fn submit(&mut self, work: StepWork, done: Done) {
        (self.0)(work, done);
    }
}

fn echo(work: &StepWork, done: Done) {
    done.fire(Ok(work.outputs.iter().map(|output| work.inputs[*output].clone()).collect()));
}

fn start(runner: impl FnMut(StepWork, Done) + Send + 'static) -> (Lane, Receiver<LaneReport>) {
    start_on(spec(3, 1), runner)
}

fn start_on(
    spec: LaneSpec,
    runner: impl FnMut(StepWork, Done) + Send + 'static,
) -> (Lane, Receiver<LaneReport>) {
    let (send, receive) = sync_channel(1000);
    let lane = Lane::start(spec, clock(), Arc::new(Sink(send)), 8).unwrap();
    lane.install(MODEL, Box::new(Closure(runner))).unwrap();
    (lane, receive)
}

fn work(step: u64, rows: &[usize]) -> LaneWork {
    let part = |(index, rows): (usize, &usize)| Part {
        request: RequestId(10 * step + index as u64),
        rows: *rows,
        inputs: Arc::new([row(step, index, *rows)]),
    };
    let parts = rows.iter().enumerate().map(part).collect();
    LaneWork { step: StepId(step), model: MODEL, task: Task::Batch { parts, outputs: Arc::new([0]) } }
}

fn row(step: u64, index: usize, rows: usize) -> Tensor {
    floats(&[rows, 2], &vec![step as f32 + index as f32 / 10.0; 2 * rows])
}

#[test]
fn each_part_of_a_batch_gets_its_rows_and_the_times_are_in_order() {
    let (lane, reports) = start(|work, done| echo(&work, done));
    lane.run(work(1, &[1, 3, 2])).unwrap();
    let report = reports.recv_timeout(PATIENCE).unwrap();
    assert_eq!((report.step, report.lane), (StepId(1), lane.spec().id));
    assert!(report.began <= report.gathered && report.gathered <= report.computed);
    assert!(report.computed <= report.scattered);
    let result: Vec<PartOutputs> = report.result.unwrap();
    for (index, (part, rows)) in result.iter().zip([1, 3, 2]).enumerate() {
        assert_eq!(part.request, RequestId(10 + index as u64));
        assert_eq!(part.outputs, [row(1, index, rows)]);
    }
}

#[test]
fn steps_run_in_order_on_a_named_thread() {
    let (lane, reports) = start(|work, done| {
        assert_eq!(thread::current().name(), Some("lane-3"));
        echo(&work, done);
    });
    for step in 0..100 {
        while let Err(refused) = lane.run(work(step, &[1])) {
            assert_eq!(refused.reason, Refusal::Full);
            thread::yield_now();
        }
    }
    let steps: Vec<_> = (0..100).map(|_| reports.recv_timeout(PATIENCE).unwrap().step.0).collect();
    assert_eq!(steps, (0..100).collect::<Vec<_>>());
}

#[test]
fn a_step_fails_alone_however_its_engine_fails() {
    let (lane, reports) = start(|work, done| match work.step.0 {
        0 => panic!("on purpose"),
        1 => drop(done),
        2 => done.fire(Err(EngineError::OutOfMemory("no".into()))),
        // An output that has not the batch's rows.
        3 => done.fire(Ok(vec![row(0, 0, 1)])),
        _ => echo(&work, done),
    });
    let ended = |step| {
        lane.run(work(step, &[1, 1])).unwrap();
        let report = reports.recv_timeout(PATIENCE).unwrap();
        assert_eq!(report.step, StepId(step));
        report.result
    };
    let lost = || Some(EngineError::Panicked("the engine gave no result".into()));
    assert_eq!(ended(0).err(), lost());
    assert_eq!(ended(1).err(), lost());
    assert_eq!(ended(2).err(), Some(EngineError::OutOfMemory("no".into())));
    assert!(matches!(ended(3), Err(EngineError::Panicked(text)) if text.contains("must not be batched")));
    assert!(ended(4).is_ok());
    assert!(lane.remove(MODEL).unwrap().recv_timeout(PATIENCE).is_ok());
    assert!(lane.remove(MODEL).unwrap().recv_timeout(PATIENCE).is_err(), "it has none any more");
    assert!(matches!(ended(5), Err(EngineError::Panicked(text)) if text.contains("`m1`")));
    drop(lane);
    assert!(matches!(reports.recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected)), "one report each");
}

#[test]
fn parts_that_do_not_fit_fail_before_the_engine() {
    let (lane, reports) = start(|_, _| panic!("the engine must not see it"));
    let mut bad = work(1, &[1, 1]);
    let Task::Batch { parts, .. } = &mut bad.task else { panic!("it is a batch") };
    parts[1].inputs = Arc::new([floats(&[1, 3], &[0.0; 3])]);
    lane.run(bad).unwrap();
    let result = reports.recv_timeout(PATIENCE).unwrap().result;
    assert!(matches!(result, Err(EngineError::Input(_))), "{result:?}");
}

#[test]
fn done_may_fire_later_from_elsewhere() {
    let waiting = Arc::new(Mutex::new(Vec::new()));
    let held = Arc::clone(&waiting);
    let (lane, reports) = start(move |work, done| held.lock().unwrap().push((work, done)));
    lane.run(work(1, &[1])).unwrap();
    lane.run(work(2, &[1])).unwrap();
    let both = || waiting.lock().unwrap().len() == 2;
    while !both() {
        thread::yield_now();
    }
    for (work, done) in waiting.lock().unwrap().drain(..).rev() {
        echo(&work, done);
    }
    let steps = [(); 2].map(|()| reports.recv_timeout(PATIENCE).unwrap().step);
    assert_eq!(steps, [StepId(2), StepId(1)]);
}

#[test]
fn what_waits_when_a_lane_stops_is_reported_as_revoked() {
    let (go, gate) = sync_channel::<()>(0);
    let (begun, running) = sync_channel::<()>(0);
    let (mut lane, reports) = start(move |work, done| {
        begun.send(()).unwrap();
        gate.recv().unwrap();
        echo(&work, done);
    });
    lane.run(work(1, &[1])).unwrap();
    running.recv().unwrap();
    lane.run(work(2, &[1])).unwrap();
    lane.close();
    let refused = lane.run(work(3, &[1])).unwrap_err();
    assert_eq!((refused.reason, refused.returned.step), (Refusal::Stopped, StepId(3)));
    go.send(()).unwrap();
    assert!(lane.stop(PATIENCE));
    assert!(reports.recv_timeout(PATIENCE).unwrap().result.is_ok());
    assert_eq!(reports.recv_timeout(PATIENCE).unwrap().result.err(), Some(EngineError::Revoked));
}

#[test]
fn a_stalled_lane_does_not_hold_up_the_end() {
    let (_go, gate) = sync_channel::<()>(0);
    let gate = Mutex::new(gate);
    let (begun, running) = sync_channel::<()>(0);
    let (lane, reports) = start(move |work, done| {
        begun.send(()).unwrap();
        gate.lock().unwrap().recv().unwrap_err();
        echo(&work, done);
    });
    for step in 0..9 {
        // One runs, eight wait, the tenth is refused.
        lane.run(work(step, &[1])).unwrap();
        if step == 0 {
            running.recv().unwrap();
        }
    }
    assert_eq!(lane.run(work(9, &[1])).unwrap_err().reason, Refusal::Full);
    assert!(!lane.stop(Duration::from_millis(20)));
    assert!(reports.try_recv().is_err());
}

#[test]
#[cfg(target_os = "linux")]
fn a_lane_keeps_to_its_cores() {
    let spec = spec(1, 1);
    let (send, receive) = sync_channel(1);
    let (lane, _reports) = start_on(spec, move |work, done| {
        send.send(quadrant_sys::allowed_cores().unwrap()).unwrap();
        echo(&work, done);
    });
    lane.run(work(1, &[1])).unwrap();
    assert_eq!(receive.recv_timeout(PATIENCE).unwrap(), spec.cores);
}

/// Not a benchmark, but a guard against something slow creeping in: a step without compute costs
/// microseconds. Prints what it measured.
#[test]
fn an_empty_step_costs_little() {
    let model = "inputs = [{ name = 'x', datatype = 'FP32', dims = ['b', 2] }]\noutputs = [{ name = 'y', from = 'x' }]";
    let file = TempFile::new("model.emulated.toml", model);
    let model = load(file.path(), EngineKind::Emulated).unwrap();
    let (lane, reports) = start(|work, done| echo(&work, done));
    lane.install(MODEL, model.runner(lane.spec()).unwrap()).unwrap();
    let steps = 2_000;
    let mut busy = Duration::ZERO;
    let clock = clock();
    let began = clock.now();
    for step in 0..steps {
        lane.run(work(step, &[1])).unwrap();
        let report = reports.recv_timeout(PATIENCE).unwrap();
        busy += report.scattered.since(report.began);
    }
    let there_and_back = clock.now().since(began) / u32::try_from(steps).unwrap();
    let busy = busy / u32::try_from(steps).unwrap();
    println!("{busy:?} on the lane, {there_and_back:?} there and back");
    assert!(busy < Duration::from_micros(200), "{busy:?}");
}
