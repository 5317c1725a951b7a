//! Lanes of class Idle beside lanes of class Urgent on the same core: the operating system preempts the
//! former, whichever engine computes, and the reports say how much processor time there was.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use quadrant_engine::{
    Done, EngineKind, Lane, LaneReport, LaneSink, LaneSpec, LaneWork, Model, Part, Runner, SchedulingClass,
    StepWork, Task,
};
use quadrant_types::{DataType, ModelId, RequestId, StepId, Tensor};

use crate::onnx_file::{D, FLOAT, INPUT, OUTPUT, initializer, model, node, value};
use crate::support::{TempFile, clock, floats, lane as spec, load, onnxruntime, sample};

const MODEL: ModelId = ModelId(1);
const PATIENCE: Duration = Duration::from_secs(60);

struct Sink(SyncSender<LaneReport>);

impl LaneSink for Sink {
    fn report(&self, report: LaneReport) {
        self.0.send(report).unwrap();
    }
}

/// Tells that a step has begun, then lets the engine compute it.
struct Announced {
    runner: Box<dyn Runner>,
    begun: SyncSender<()>,
}

impl Runner for Announced {
    fn submit(&mut self, work: StepWork, done: Done) {
        self.begun.send(()).unwrap();
        self.runner.submit(work, done);
    }
}

struct Tested {
    lane: Lane,
    begun: Receiver<()>,
    reports: Receiver<LaneReport>,
}

impl Tested {
    fn start(model: &Arc<dyn Model>, class: SchedulingClass, cores: usize) -> Self {
        let spec = LaneSpec { class, ..spec(0, cores) };
        let (report, reports) = sync_channel(10);
        let (begin, begun) = sync_channel(10);
        let lane = Lane::start(spec, clock(), Arc::new(Sink(report)), 8).unwrap();
        let runner = model.runner(&spec).unwrap();
        lane.install(MODEL, Box::new(Announced { runner, begun: begin })).unwrap();
        Self { lane, begun, reports }
    }

    /// Starts a step and waits until it has begun.
    fn begin(&self, input: &Tensor) {
        self.give(input);
        self.begun.recv_timeout(PATIENCE).unwrap();
    }

    fn give(&self, input: &Tensor) {
        let part = Part { request: RequestId(1), rows: 1, inputs: Arc::new([input.clone()]) };
        let work = {
            let task = Task::Batch { parts: vec![part], outputs: Arc::new([0]) };
            LaneWork { step: StepId(1), model: MODEL, task }
        };
        self.lane.run(work).unwrap();
    }

    fn end(&self) -> LaneReport {
        let report = self.reports.recv_timeout(PATIENCE).unwrap();
        assert!(report.result.is_ok(), "{report:?}");
        report
    }
}

/// A model that burns its core for this long.
fn busy(step_ms: u32) -> Arc<dyn Model> {
    let text = format!(
        "busy = true
latency = {{ kind = 'fixed', step_us = {step_ms}000 }}
inputs = [{{ name = 'x', datatype = 'FP32', dims = ['b', 4] }}]
outputs = [{{ name = 'y', from = 'x' }}]"
    );
    load(TempFile::new("model.emulated.toml", text).path(), EngineKind::Emulated).unwrap()
}

fn wall(report: &LaneReport) -> Duration {
    report.computed.since(report.gathered)
}

#[test]
fn an_idle_step_stands_still_while_an_urgent_one_computes_and_goes_on_afterwards() {
    let x = floats(&[1, 4], &[0.5; 4]);
    let urgent = Tested::start(&busy(400), SchedulingClass::Urgent, 1);
    let idle = Tested::start(&busy(200), SchedulingClass::Idle, 1);
    idle.begin(&x);
    urgent.begin(&x);
    let (preempted, urgent) = (idle.end(), urgent.end());
    println!("{:?} of {:?} idle, {:?} urgent", preempted.core_time, wall(&preempted), urgent.core_time);
    assert!(wall(&preempted) >= Duration::from_millis(200));
    assert!(preempted.core_time < Duration::from_millis(60), "{:?}", preempted.core_time);
    assert!(preempted.core_time < urgent.core_time);
    // Other work on the machine preempts it as well, so this waits for a quiet moment.
    let alone = || {
        idle.begin(&x);
        idle.end().core_time
    };
    let went_on = (0..200).any(|_| alone() > Duration::from_millis(100));
    assert!(went_on, "an idle lane gets a core that nobody wants");
}

#[test]
fn steps_of_the_engines_are_preempted_as_well() {
    let weights: Vec<u8> = (0..256 * 256).flat_map(|index| (index as f32 % 17.0).to_le_bytes()).collect();
    let dims = [D::S("n"), D::N(256)];
    let graph = [
        initializer("w", FLOAT, &[256, 256], &weights),
        node("MatMul", &["x", "w"], &["a"], &[]),
        node("Softmax", &["a"], &["b"], &[]),
        node("MatMul", &["b", "w"], &["y"], &[]),
        value(INPUT, "x", FLOAT, &dims),
        value(OUTPUT, "y", FLOAT, &dims),
    ];
    let file = TempFile::new("model.onnx", model(&graph));
    let urgent = Tested::start(&busy(300), SchedulingClass::Urgent, 1);
    let engines = [Some(EngineKind::Rten), onnxruntime().map(|_| EngineKind::Ort)];
    for engine in engines.into_iter().flatten() {
        let idle = Tested::start(&load(file.path(), engine).unwrap(), SchedulingClass::Idle, 1);
        let x = sample(DataType::Fp32, &[8192, 256], 1);
        idle.begin(&x);
        let warm = idle.end();
        urgent.begin(&floats(&[1, 4], &[0.5; 4]));
        idle.give(&x);
        let (urgent, idle) = (urgent.end(), idle.end());
        println!("{engine:?}: {:?} warm, {:?} of {:?}", warm.core_time, idle.core_time, wall(&idle));
        assert!(idle.computed > urgent.computed, "{engine:?} computed while an urgent lane had its core");
        // Processor time is counted wherever the engine spends it, and does not grow by waiting.
        assert!(idle.core_time > Duration::from_millis(2), "{engine:?}: {:?}", idle.core_time);
        assert!(idle.core_time < warm.core_time * 3, "{engine:?}: {:?}", idle.core_time);
    }
}

#[test]
fn a_wide_lane_counts_all_its_cores() {
    let wide = Tested::start(&busy(20), SchedulingClass::Urgent, 2);
    wide.begin(&floats(&[1, 4], &[0.5; 4]));
    let report = wide.end();
    let cores = u32::try_from(wide.lane.spec().cores.len()).unwrap();
    assert_eq!(report.core_time, wall(&report) * cores);
}
