//! The best loop of the bare engine: one thread on one core runs a model back to back, with nothing around
//! it. Tries several batch sizes and reports the best, so that the server is not measured against a weak
//! opponent.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use clap::Args;
use quadrant_engine::{
    Done, EngineKind, Engines, LaneSpec, ModelSource, OnnxRuntime, Runner, SchedulingClass, StepWork, load,
};
use quadrant_types::{Clock, CoreSet, DataType, LaneId, Shape, StepId, Tensor, Time};
use serde_json::json;

use crate::say;

/// What to run, where and for how long.
#[derive(Args, Debug)]
pub(crate) struct LoopArgs {
    /// The model's file.
    #[arg(long)]
    model: PathBuf,
    /// `onnxruntime` or `rten`.
    #[arg(long)]
    engine: String,
    /// ONNX Runtime's library.
    #[arg(long)]
    library: Option<PathBuf>,
    /// The core to run on.
    #[arg(long, default_value_t = 0)]
    core: usize,
    /// How long to run each batch size, in seconds.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Batch sizes to try.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    rows: Vec<usize>,
    /// The shape of one row of each input, the batch dimension included: `1,3,48,320`.
    #[arg(long)]
    shape: Vec<String>,
}

#[derive(Debug)]
struct WallClock(Instant);

impl Clock for WallClock {
    fn now(&self) -> Time {
        Time::ZERO + self.0.elapsed()
    }
}

/// Runs the loop.
pub(crate) fn run(args: &LoopArgs) -> Result<()> {
    let engine: EngineKind =
        args.engine.parse().map_err(|()| anyhow!("`{}` is not an engine", args.engine))?;
    #[expect(clippy::disallowed_methods, reason = "a measuring program")]
    let clock: Arc<dyn Clock> = Arc::new(WallClock(Instant::now()));
    let onnxruntime = args.library.as_deref().map(OnnxRuntime::open).transpose()?;
    let engines = Engines { onnxruntime, clock: Arc::clone(&clock) };
    let source = ModelSource {
        name: "model".into(),
        version: 1,
        path: args.model.clone(),
        engine: Some(engine),
        labels: std::collections::BTreeMap::new(),
    };
    let model = load(&source, &engines)?;
    let cores = CoreSet::from_cores([args.core]);
    quadrant_sys::confine_thread(cores).context("cannot use the core")?;
    let lane = LaneSpec { id: LaneId(0), cores, class: SchedulingClass::Urgent };
    let mut runner = model.runner(&lane)?;
    let datatypes: Vec<DataType> = model.spec().inputs.iter().map(|input| input.datatype).collect();
    let shapes = args.shape.iter().map(|text| parse_shape(text)).collect::<Result<Vec<_>>>()?;
    ensure!(
        shapes.len() == datatypes.len(),
        "the model has `{}` inputs: give as many `--shape`",
        datatypes.len()
    );
    let outputs: Arc<[usize]> = (0..model.spec().outputs.len()).collect();
    let mut best: Option<serde_json::Value> = None;
    for rows in &args.rows {
        let inputs: Vec<Tensor> =
            datatypes.iter().zip(&shapes).map(|(datatype, shape)| tensor(*datatype, shape, *rows)).collect();
        let times = back_to_back(runner.as_mut(), &inputs, &outputs, &*clock, args.seconds)?;
        let total: Duration = times.iter().sum();
        let rate = (times.len() * rows) as f64 / total.as_secs_f64();
        let at = |quantile: f64| times[((times.len() - 1) as f64 * quantile) as usize].as_secs_f64() * 1e3;
        let result = json!({
            "model": args.model.file_stem().and_then(|name| name.to_str()),
            "engine": engine.name(), "rows": rows, "rows_per_second": rate,
            "median_ms": at(0.5), "p99_ms": at(0.99), "steps": times.len(),
        });
        if best.as_ref().is_none_or(|best| best["rows_per_second"].as_f64() < Some(rate)) {
            best = Some(result);
        }
    }
    say(&best.context("no batch size to try")?.to_string());
    Ok(())
}

/// Times of single steps, ascending, after a tenth of the time to warm up.
fn back_to_back(
    runner: &mut dyn Runner,
    inputs: &[Tensor],
    outputs: &Arc<[usize]>,
    clock: &dyn Clock,
    seconds: f64,
) -> Result<Vec<Duration>> {
    let began = clock.now();
    let warm = began + Duration::from_secs_f64(seconds / 10.0);
    let end = warm + Duration::from_secs_f64(seconds);
    let mut times = Vec::new();
    loop {
        let from = clock.now();
        if from >= end && !times.is_empty() {
            break;
        }
        let (sender, receiver) = sync_channel(1);
        let done = Done::new(move |result| sender.send(result).unwrap_or_default());
        let work = StepWork { step: StepId(0), inputs: inputs.to_vec(), outputs: Arc::clone(outputs) };
        runner.submit(work, done);
        drop(receiver.recv().context("the engine gave no answer")??);
        if from >= warm {
            times.push(clock.now().since(from));
        }
    }
    times.sort_unstable();
    Ok(times)
}

fn parse_shape(text: &str) -> Result<Shape> {
    text.split(',').map(|dim| dim.trim().parse().with_context(|| format!("`{dim}` is not a size"))).collect()
}

/// Integers 0 or 1, floats from 0 to 1: what the load generator sends as well.
fn tensor(datatype: DataType, row: &Shape, rows: usize) -> Tensor {
    let mut shape = row.clone();
    if rows > 1 {
        shape[0] = rows;
    }
    let mut random = fastrand::Rng::with_seed(1);
    let count: usize = shape.iter().product();
    let size = datatype.size().unwrap_or(4);
    let mut data = Vec::with_capacity(count * size);
    for _ in 0..count {
        if datatype == DataType::Fp32 {
            data.extend_from_slice(&random.f32().to_le_bytes());
        } else {
            data.extend_from_slice(&u64::from(random.bool()).to_le_bytes()[..size]);
        }
    }
    let mut aligned = quadrant_types::AlignedBuffer::new(data.len(), 0);
    assert!(aligned.extend(&data), "it has exactly this capacity");
    let data: Bytes = aligned.freeze(None);
    Tensor { datatype, shape, data }
}
