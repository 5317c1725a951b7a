//! What a further width of a model costs in memory: its widths share one set of weights.
//!
//! Memory is counted by the process, so every measurement has a process of its own: the test starts this
//! binary again, once for each model and way. Prints the figures; needs the assets that
//! `tests/engine/main.rs` describes.

#![expect(clippy::unwrap_used, reason = "all of this crate is tests")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use quadrant_engine::{
    Done, EngineKind, Engines, LaneSpec, Model, ModelSource, OnnxRuntime, Runner, SchedulingClass, StepWork,
};
use quadrant_types::{Clock, CoreSet, DataType, LaneId, Shape, StepId, Tensor, Time};

/// Tells the started process what to measure: a model and a way.
const WHAT: &str = "QUADRANT_MEMORY_TEST";
const MIB: f64 = 1_048_576.0;

/// Models with the shapes of their inputs.
const MODELS: [(&str, DataType, &[&[usize]]); 4] = [
    ("magika", DataType::Int32, &[&[1, 2048]]),
    ("minilm-l3", DataType::Int64, &[&[1, 24], &[1, 24]]),
    ("ppocr-det", DataType::Fp32, &[&[1, 3, 64, 192]]),
    ("ppocr-rec", DataType::Fp32, &[&[1, 3, 48, 160]]),
];

#[derive(Debug)]
struct RealClock(Instant);

impl Clock for RealClock {
    fn now(&self) -> Time {
        Time::from_nanos(u64::try_from(self.0.elapsed().as_nanos()).unwrap())
    }
}

fn load(name: &str) -> Arc<dyn Model> {
    let assets = PathBuf::from(std::env::var_os("QUADRANT_TEST_ASSETS").unwrap());
    let onnxruntime = OnnxRuntime::open(&assets.join("onnxruntime/libonnxruntime.so")).unwrap();
    #[expect(clippy::disallowed_methods, reason = "the clock of the tests")]
    let clock = Arc::new(RealClock(Instant::now()));
    let engines = Engines { onnxruntime: Some(onnxruntime), clock };
    let path = assets.join("models").join(name).with_extension("onnx");
    let engine = Some(EngineKind::Ort);
    let source = ModelSource { name: name.into(), version: 1, path, engine, labels: BTreeMap::new() };
    quadrant_engine::load(&source, &engines).unwrap()
}

/// Bytes by which the process grows when `model` computes a step on this many cores.
fn growth(model: &Arc<dyn Model>, cores: usize, inputs: &[Tensor]) -> f64 {
    let before = quadrant_sys::resident_bytes().unwrap();
    // The lane keeps its runner for as long as the process measures.
    std::mem::forget(step(model, cores, inputs));
    (quadrant_sys::resident_bytes().unwrap() as f64 - before as f64) / MIB
}

fn step(model: &Arc<dyn Model>, cores: usize, inputs: &[Tensor]) -> Box<dyn Runner> {
    let allowed = quadrant_sys::allowed_cores().unwrap();
    let cores = CoreSet::from_cores(allowed.cores().take(cores));
    let lane = LaneSpec { id: LaneId(0), cores, class: SchedulingClass::Urgent };
    let mut runner = model.runner(&lane).unwrap();
    let (send, receive) = sync_channel(1);
    let work = StepWork { step: StepId(1), inputs: inputs.to_vec(), outputs: Arc::from([0]) };
    runner.submit(work, Done::new(move |result| send.send(result).unwrap()));
    receive.recv().unwrap().unwrap();
    runner
}

/// Not a test of its own: what the process does that the test starts.
#[test]
fn in_a_process_of_its_own() {
    let Some(what) = std::env::var_os(WHAT) else { return };
    let what = what.into_string().unwrap();
    let (name, way) = what.split_once(' ').unwrap();
    let (_, datatype, shapes) = MODELS.iter().find(|model| model.0 == name).unwrap();
    let size = datatype.size().unwrap();
    let input = |shape: &&[usize]| Tensor {
        datatype: *datatype,
        shape: Shape::from_slice(shape),
        data: vec![0; size * shape.iter().product::<usize>()].into(),
    };
    let inputs: Vec<_> = shapes.iter().map(input).collect();
    let before = quadrant_sys::resident_bytes().unwrap();
    let model = load(name);
    let loaded = (quadrant_sys::resident_bytes().unwrap() as f64 - before as f64) / MIB;
    let grown = match way {
        "narrow" => loaded + growth(&model, 1, &inputs),
        // What one width of its own weights costs: another model from the same file.
        "apart" => {
            growth(&model, 1, &inputs);
            let before = quadrant_sys::resident_bytes().unwrap();
            let other = load(name);
            growth(&other, 1, &inputs);
            std::mem::forget(other);
            (quadrant_sys::resident_bytes().unwrap() as f64 - before as f64) / MIB
        }
        // A wide width that was tried out and is not kept.
        "tried" => {
            let narrow = step(&model, 1, &inputs);
            drop(step(&model, 2, &inputs));
            model.keep_widths(&[1]);
            growth(&model, 1, &inputs);
            drop(narrow);
            quadrant_sys::return_freed_memory();
            (quadrant_sys::resident_bytes().unwrap() as f64 - before as f64) / MIB
        }
        "both" => {
            let wide = growth(&model, 2, &inputs);
            loaded + wide + growth(&model, 1, &inputs)
        }
        _ => {
            growth(&model, 2, &inputs);
            growth(&model, 1, &inputs)
        }
    };
    let footprint = model.footprint();
    let counted = [footprint.repacked_bytes, footprint.further_width_bytes].map(|bytes| bytes as f64 / MIB);
    println!("\nGROWN {grown} {} {}", counted[0], counted[1]);
}

/// MiB by which the process grew, then the repacked ones and those of a further width as counted.
fn measure(name: &str, way: &str) -> [f64; 3] {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "in_a_process_of_its_own", "--nocapture"])
        .env(WHAT, format!("{name} {way}"))
        // The C library then gives back what is freed, and the figures say what is held.
        .env("MALLOC_MMAP_THRESHOLD_", "65536")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("GROWN "));
    let line = line.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
    let numbers: Vec<_> = line.split(' ').map(|number| number.parse().unwrap()).collect();
    numbers.try_into().unwrap()
}

#[test]
fn a_further_width_costs_less_than_half_of_the_weights() {
    let Some(assets) = std::env::var_os("QUADRANT_TEST_ASSETS").map(PathBuf::from) else {
        println!("skipped: no assets");
        return;
    };
    println!(
        "MiB          weights  narrow  wide tried  narrow+wide  further width  apart  counted: repacked  further"
    );
    for (name, ..) in MODELS {
        let file = assets.join("models").join(name).with_extension("onnx");
        let weights = file.metadata().unwrap().len() as f64 / MIB;
        let [narrow, ..] = measure(name, "narrow");
        let [tried, ..] = measure(name, "tried");
        let [both, ..] = measure(name, "both");
        let [further, repacked, counted] = measure(name, "further");
        let [apart, ..] = measure(name, "apart");
        println!(
            "{name:<12} {weights:>7.1} {narrow:>7.1} {tried:>11.1} {both:>12.1} {further:>14.1} {apart:>6.1} {repacked:>18.1} {counted:>8.1}"
        );
        // Small models have a graph as large as half their weights.
        if weights > 10.0 && quadrant_sys::allowed_cores().unwrap().len() > 1 {
            assert!(further < weights / 2.0, "{name}: {further:.1} of {weights:.1} MiB");
            assert!(counted > 0.0 && counted < weights / 2.0, "{name}: counted {counted:.1} MiB");
            assert!(repacked > 0.0 && repacked < weights, "{name}: repacked {repacked:.1} MiB");
            assert!(tried < narrow + 4.0, "{name}: {tried:.1} MiB after a trial, {narrow:.1} MiB without");
            assert!(both - narrow < apart, "{name}: {both:.1} MiB with both, {narrow:.1} MiB with one");
        }
    }
}
