//! An engine without a model, for tests and benchmarks: it copies inputs to outputs and takes the time it
//! is told to.
//!
//! It is described by a file such as
//!
//! ```toml
//! busy = true               # burn the core while computing; otherwise wait, as for a device
//! load_ms = 50
//! memory_mb = 20            # taken while it is loaded
//! latency = { kind = "lognormal", median_us = 900, p99_us = 3000, row_us = 100 }
//! faults = { panic_every = 100 }
//! harm = { abort = 201, exit = 202, hang = 203, leak = 204 }
//!
//! [[inputs]]
//! name = "x"
//! datatype = "FP32"
//! dims = ["batch", -1, 16]  # a string is a symbol, -1 any number
//!
//! [[outputs]]
//! name = "y"
//! from = "x"
//! ```
//!
//! Outputs share the bytes of the input they copy. Without latency and faults a step costs nothing.
//!
//! `harm` is for tests of what contains it: a step with a row in whose first input one of these bytes comes
//! first aborts the process, exits it, never ends, or takes memory without end, as fast as it can. It happens
//! to whichever process the model runs in, so such a model belongs into one of its own.

use std::collections::BTreeSet;
use std::hint;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use quadrant_types::{Clock, Dim, ModelSpec, TensorSpec};
use serde::Deserialize;

use crate::{
    Done, EngineError, EngineKind, Footprint, LaneSpec, Model, ModelSource, Runner, StepResult, StepWork,
};

/// More is a mistake in the file, and a day would be one in the arithmetic.
const DURATION_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    inputs: Vec<Input>,
    outputs: Vec<Output>,
    #[serde(default)]
    latency: Latency,
    #[serde(default)]
    busy: bool,
    #[serde(default)]
    load_ms: u64,
    #[serde(default)]
    memory_mb: u32,
    /// Of the distributed latency; each lane draws its own numbers.
    #[serde(default)]
    seed: u64,
    #[serde(default)]
    faults: Faults,
    #[serde(default)]
    harm: Harm,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    name: String,
    datatype: String,
    dims: Vec<DimText>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum DimText {
    Number(i64),
    Symbol(String),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Output {
    name: String,
    from: String,
}

/// How long a step takes, in microseconds.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
enum Latency {
    #[default]
    None,
    /// Always the same.
    Fixed {
        step_us: f64,
        #[serde(default)]
        row_us: f64,
    },
    /// Log-normal around a median, with the time per row added.
    Lognormal {
        median_us: f64,
        p99_us: f64,
        #[serde(default)]
        row_us: f64,
    },
}

/// What goes wrong, every so many steps of the model; 0 is never.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
struct Faults {
    fail_every: u64,
    panic_every: u64,
    stall_every: u64,
    stall_ms: u64,
}

/// What a step does with a row whose first input begins with this byte.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
struct Harm {
    abort: Option<u8>,
    exit: Option<u8>,
    hang: Option<u8>,
    leak: Option<u8>,
}

/// A model that is only described.
#[derive(Debug)]
pub(crate) struct EmulatedModel {
    spec: ModelSpec,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Which input each output copies.
    from: Vec<usize>,
    latency: Latency,
    busy: bool,
    seed: u64,
    faults: Faults,
    harm: Harm,
    /// Steps begun on all lanes; counted only where a fault needs it.
    steps: AtomicU64,
    clock: Arc<dyn Clock>,
    /// Nothing but the memory that it takes.
    _memory: Vec<u8>,
}

impl EmulatedModel {
    /// What the file says of the inputs and outputs.
    pub(crate) fn describe(source: &ModelSource) -> Result<ModelSpec, EngineError> {
        Self::read(source).map(|(spec, ..)| spec)
    }

    pub(crate) fn load(source: &ModelSource, clock: &Arc<dyn Clock>) -> Result<Self, EngineError> {
        let (spec, from, file) = Self::read(source)?;
        let Description { latency, busy, seed, faults, harm, load_ms, memory_mb, .. } = file;
        let (steps, clock) = (AtomicU64::new(0), Arc::clone(clock));
        let _memory = vec![1; (memory_mb as usize) << 20];
        let shared = Shared { from, latency, busy, seed, faults, harm, steps, clock, _memory };
        shared.pass(Duration::from_millis(load_ms).min(DURATION_MAX), false);
        Ok(Self { spec, shared: Arc::new(shared) })
    }

    /// The file, and which input each output copies.
    fn read(source: &ModelSource) -> Result<(ModelSpec, Vec<usize>, Description), EngineError> {
        let load = |error: String| EngineError::Load(format!("`{}`: {error}", source.path.display()));
        let text = std::fs::read_to_string(&source.path);
        let text = text.map_err(|error| load(format!("cannot be read: {error}")))?;
        let file: Description = toml::from_str(&text).map_err(|error| load(error.to_string()))?;
        file.latency.check().map_err(load)?;
        let inputs: Vec<_> = file.inputs.iter().map(input_spec).collect::<Result<_, _>>().map_err(load)?;
        let output = |output: &Output| {
            let from = inputs.iter().position(|input| *input.name == output.from);
            let from = from.ok_or_else(|| format!("output `{}` copies no known input", output.name))?;
            Ok((from, TensorSpec { name: Arc::from(&*output.name), ..inputs[from].clone() }))
        };
        let outputs = file.outputs.iter().map(output).collect::<Result<Vec<_>, String>>().map_err(load)?;
        let (from, outputs): (Vec<_>, Vec<_>) = outputs.into_iter().unzip();
        for tensors in [&inputs, &outputs] {
            let names: BTreeSet<_> = tensors.iter().map(|tensor| &tensor.name).collect();
            if names.len() != tensors.len() || tensors.is_empty() {
                return Err(load("a model has inputs and outputs, each with its own name".into()));
            }
        }
        let spec = ModelSpec {
            name: Arc::clone(&source.name),
            version: source.version,
            platform: EngineKind::Emulated.platform().into(),
            inputs,
            outputs,
            labels: source.labels.clone(),
        };
        Ok((spec, from, file))
    }
}

impl Latency {
    fn check(self) -> Result<(), String> {
        let times = match self {
            Self::None => return Ok(()),
            Self::Fixed { step_us, row_us } => [step_us, step_us, row_us],
            Self::Lognormal { median_us, p99_us, row_us } => {
                if p99_us < median_us || median_us <= 0.0 {
                    return Err("`median_us` is above 0 and at most `p99_us`".into());
                }
                [median_us, p99_us, row_us]
            }
        };
        let sane = |time: f64| (0.0..=DURATION_MAX.as_secs_f64() * 1e6).contains(&time);
        if times.into_iter().all(sane) { Ok(()) } else { Err("a latency is negative or over a day".into()) }
    }

    /// The time of a step with this many rows.
    fn draw(self, rows: usize, random: &mut fastrand::Rng) -> Duration {
        /// The standard normal distribution's 99th percentile.
        const Z99: f64 = 2.326_347_874;
        let (step_us, row_us) = match self {
            Self::None => return Duration::ZERO,
            Self::Fixed { step_us, row_us } => (step_us, row_us),
            Self::Lognormal { median_us, p99_us, row_us } => {
                // Box and Muller's transform of two uniform numbers, the first kept away from 0.
                let radius = (-2.0 * (1.0 - random.f64()).ln()).sqrt();
                let normal = radius * (std::f64::consts::TAU * random.f64()).cos();
                (median_us * ((p99_us / median_us).ln() / Z99 * normal).exp(), row_us)
            }
        };
        #[expect(clippy::cast_precision_loss, reason = "row counts are far below 2^52")]
        let seconds = (step_us + row_us * rows as f64) * 1e-6;
        Duration::try_from_secs_f64(seconds).unwrap_or(DURATION_MAX).min(DURATION_MAX)
    }
}

impl Harm {
    fn by(self, byte: u8) {
        if self.abort == Some(byte) {
            std::process::abort();
        }
        if self.exit == Some(byte) {
            std::process::exit(i32::from(byte));
        }
        while self.hang == Some(byte) {
            thread::park();
        }
        let mut taken: Vec<Vec<u8>> = Vec::new();
        while self.leak == Some(byte) {
            taken.push(vec![1; 1 << 20]);
            hint::black_box(&taken);
        }
    }
}

impl Shared {
    /// Lets `time` pass on the calling thread.
    fn pass(&self, time: Duration, busy: bool) {
        if time.is_zero() {
            return;
        }
        let end = self.clock.now() + time;
        loop {
            let rest = end.since(self.clock.now());
            if rest.is_zero() {
                return;
            }
            if busy { hint::spin_loop() } else { thread::park_timeout(rest) }
        }
    }

    fn compute(&self, work: &StepWork, random: &mut fastrand::Rng) -> StepResult {
        if self.faults != Faults::default() {
            self.misbehave()?;
        }
        let rows = work.inputs.first().and_then(|input| input.shape.first()).copied().unwrap_or(1);
        if let Some(input) = work.inputs.first().filter(|_| self.harm != Harm::default()) {
            let row_bytes = (input.data.len() / rows.max(1)).max(1);
            input.data.chunks(row_bytes).filter_map(|row| row.first()).for_each(|first| self.harm.by(*first));
        }
        self.pass(self.latency.draw(rows, random), self.busy);
        let copy = |output: &usize| work.inputs.get(*self.from.get(*output)?).cloned();
        let outputs: Option<Vec<_>> = work.outputs.iter().map(copy).collect();
        outputs.ok_or_else(|| EngineError::Input("an input or output does not exist".into()))
    }

    fn misbehave(&self) -> Result<(), EngineError> {
        let step = self.steps.fetch_add(1, Ordering::Relaxed) + 1;
        let strikes = |every: u64| every > 0 && step.is_multiple_of(every);
        if strikes(self.faults.stall_every) {
            self.pass(Duration::from_millis(self.faults.stall_ms).min(DURATION_MAX), false);
        }
        if strikes(self.faults.fail_every) {
            return Err(EngineError::Panicked(format!("emulated failure of step `{step}`")));
        }
        assert!(!strikes(self.faults.panic_every), "emulated panic in step `{step}`");
        Ok(())
    }
}

fn input_spec(input: &Input) -> Result<TensorSpec, String> {
    let Input { name, datatype, dims } = input;
    let datatype =
        datatype.parse().map_err(|()| format!("input `{name}` has the unknown datatype `{datatype}`"))?;
    let dim = |dim: &DimText| match dim {
        DimText::Symbol(symbol) => Ok(Dim::Symbol(Arc::from(&**symbol))),
        DimText::Number(-1) => Ok(Dim::Any),
        DimText::Number(size) => usize::try_from(*size).map(Dim::Fixed),
    };
    let dims = dims.iter().map(dim).collect::<Result<_, _>>();
    let dims = dims.map_err(|_| format!("input `{name}` has a dimension below -1"))?;
    Ok(TensorSpec { name: Arc::from(&**name), datatype, dims })
}

impl Model for EmulatedModel {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn footprint(&self) -> Footprint {
        Footprint::default()
    }

    fn runner(&self, lane: &LaneSpec) -> Result<Box<dyn Runner>, EngineError> {
        let random = fastrand::Rng::with_seed(self.shared.seed ^ (u64::from(lane.id.0) << 48));
        Ok(Box::new(EmulatedRunner { shared: Arc::clone(&self.shared), random }))
    }
}

struct EmulatedRunner {
    shared: Arc<Shared>,
    random: fastrand::Rng,
}

impl Runner for EmulatedRunner {
    fn submit(&mut self, work: StepWork, done: Done) {
        // Not guarded: an emulated panic is to be met by the lane.
        let result = self.shared.compute(&work, &mut self.random);
        drop(work);
        done.fire(result);
    }
}
