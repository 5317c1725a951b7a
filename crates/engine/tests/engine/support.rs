//! What the tests share: a clock, files, steps, numbers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use quadrant_engine::{
    Done, EngineError, EngineKind, Engines, LaneSpec, Model, ModelSource, OnnxRuntime, Runner,
    SchedulingClass, StepResult, StepWork,
};
use quadrant_types::{Clock, CoreSet, DataType, LaneId, Shape, StepId, Tensor, Time};

/// The folder of models and libraries, if there is one.
pub(crate) fn assets() -> Option<PathBuf> {
    let folder = std::env::var_os("QUADRANT_TEST_ASSETS").map(PathBuf::from);
    if folder.is_none() {
        println!("skipped: no assets");
    }
    folder
}

/// ONNX Runtime, if there is one.
pub(crate) fn onnxruntime() -> Option<OnnxRuntime> {
    let library = assets()?.join("onnxruntime/libonnxruntime.so");
    Some(OnnxRuntime::open(&library).unwrap())
}

/// A model of the assets.
pub(crate) fn asset_model(name: &str) -> Option<PathBuf> {
    Some(assets()?.join("models").join(name).with_extension("onnx"))
}

#[derive(Debug)]
struct RealClock(Instant);

impl Clock for RealClock {
    fn now(&self) -> Time {
        Time::from_nanos(u64::try_from(self.0.elapsed().as_nanos()).unwrap())
    }
}

#[expect(clippy::disallowed_methods, reason = "the clock of the tests")]
pub(crate) fn clock() -> Arc<dyn Clock> {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    Arc::new(RealClock(*BEGAN.get_or_init(Instant::now)))
}

/// A file that goes with the value.
#[derive(Debug)]
pub(crate) struct TempFile(PathBuf);

impl TempFile {
    pub(crate) fn new(name: &str, content: impl AsRef<[u8]>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("quadrant-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(name), content).unwrap();
        Self(folder.join(name))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        std::fs::remove_dir_all(self.0.parent().unwrap()).unwrap();
    }
}

/// Loads a file with an engine; ONNX Runtime only if a test asks for it.
pub(crate) fn load(path: &Path, engine: EngineKind) -> Result<Arc<dyn Model>, EngineError> {
    let onnxruntime = if engine == EngineKind::Ort { onnxruntime() } else { None };
    let engines = Engines { onnxruntime, clock: clock() };
    let name = path.file_stem().unwrap().to_str().unwrap().into();
    let (path, engine) = (path.to_owned(), Some(engine));
    quadrant_engine::load(&ModelSource { name, version: 1, path, engine, labels: BTreeMap::new() }, &engines)
}

/// The number of this many of the cores that the tests may use.
pub(crate) fn lane(id: u16, cores: usize) -> LaneSpec {
    let allowed: Vec<_> = quadrant_sys::allowed_cores().unwrap().cores().collect();
    let first = usize::from(id) % allowed.len();
    let cores = CoreSet::from_cores(allowed.iter().copied().cycle().skip(first).take(cores));
    LaneSpec { id: LaneId(id), cores, class: SchedulingClass::Urgent }
}

/// Runs one step with all outputs wanted.
pub(crate) fn run(model: &Arc<dyn Model>, runner: &mut dyn Runner, inputs: Vec<Tensor>) -> StepResult {
    let outputs: Vec<_> = (0..model.spec().outputs.len()).collect();
    run_for(runner, inputs, &outputs)
}

/// Runs one step with these outputs wanted.
pub(crate) fn run_for(runner: &mut dyn Runner, inputs: Vec<Tensor>, outputs: &[usize]) -> StepResult {
    let (send, receive) = sync_channel(1);
    let work = StepWork { step: StepId(1), inputs, outputs: Arc::from(outputs) };
    runner.submit(work, Done::new(move |result| send.send(result).unwrap()));
    receive.recv().unwrap()
}

pub(crate) fn tensor(datatype: DataType, shape: &[usize], data: impl Into<Bytes>) -> Tensor {
    Tensor { datatype, shape: Shape::from_slice(shape), data: data.into() }
}

pub(crate) fn floats(shape: &[usize], numbers: &[f32]) -> Tensor {
    tensor(DataType::Fp32, shape, bytemuck::cast_slice(numbers).to_vec())
}

pub(crate) fn numbers(tensor: &Tensor) -> Vec<f32> {
    assert_eq!(tensor.datatype, DataType::Fp32);
    tensor.data.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect()
}

/// The protocol's form of these strings.
pub(crate) fn strings(strings: &[&[u8]]) -> Vec<u8> {
    let bytes = |string: &&[u8]| [&u32::try_from(string.len()).unwrap().to_le_bytes()[..], string].concat();
    strings.iter().flat_map(bytes).collect()
}

/// An input of the given type and shape with reproducible, valid numbers.
pub(crate) fn sample(datatype: DataType, shape: &[usize], seed: u64) -> Tensor {
    let mut random = fastrand::Rng::with_seed(seed);
    let count: usize = shape.iter().product();
    let data: Vec<u8> = match datatype {
        DataType::Fp32 => (0..count).flat_map(|_| (2.0 * random.f32() - 1.0).to_le_bytes()).collect(),
        DataType::Int32 => (0..count).flat_map(|_| random.i32(0..256).to_le_bytes()).collect(),
        DataType::Int64 => (0..count).flat_map(|_| random.i64(0..2).to_le_bytes()).collect(),
        other => panic!("no samples of {other}"),
    };
    tensor(datatype, shape, data)
}
