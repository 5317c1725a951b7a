//! Tries a model out when it is loaded: does it batch, how many cores does a step want, what does it cost.
//!
//! Habits mislead here. A first dimension called `batch` may be time; eight rows at once may take more
//! than eight times one; two lanes of one core often beat one lane of two. So the model is run: rows
//! together against rows alone, one lane alone and lanes side by side against all cores on one step. What
//! cannot be tried out is served in the safest way, with the reason recorded.

mod inputs;
mod iterations;
mod measure;
mod occupancy;
mod widths;

use std::sync::Arc;
use std::time::Duration;

use quadrant_types::{Clock, CoreSet, DataType, Dim, ModelSpec, RequestId, Shape, Tensor, Time};

use crate::batch::{gather, scatter};
use crate::{EngineError, LaneSpec, Model, Part};
use inputs::Row;
use measure::Worker;
use widths::Tried;

pub use inputs::PROBE_TEXT_BYTES;
pub use occupancy::{Occupancy, Peak, occupancy, run_once};

/// How far a row in a batch may be from the row alone, relative to the largest value of the output.
const TOLERANCE: f64 = 1e-3;

/// Whether a model may batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Batching {
    /// If its graph declares it: all inputs and outputs begin with one symbol.
    #[default]
    Declared,
    /// The configuration says so.
    Allowed,
    /// The configuration forbids it.
    Never,
}

impl Batching {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Declared, Self::Allowed, Self::Never];

    /// Its name in files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Declared => "declared",
            Self::Allowed => "allowed",
            Self::Never => "never",
        }
    }
}

/// How to try a model out.
#[derive(Clone, Copy, Debug)]
pub struct ProbeOptions {
    /// Whether it may batch. Even then it is only batched if its rows prove independent.
    pub batching: Batching,
    /// The most rows of one step that are tried.
    pub rows_max: usize,
    /// Cores of one step, where the configuration fixes them: 1, or those of all lanes.
    pub width: Option<usize>,
    /// How long the measurements may take, roughly. The model's first run is not counted.
    pub budget: Duration,
}

impl Default for ProbeOptions {
    fn default() -> Self {
        Self { batching: Batching::Declared, rows_max: 64, width: None, budget: Duration::from_millis(1500) }
    }
}

/// How a model is best served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Of the kept widths the one that serves the most when all cores have work.
    pub width: usize,
    /// Cores of one step that are worth having runners for, ascending: 1, those of all lanes, or both.
    pub widths: Vec<usize>,
    /// Whether rows of different requests may share a step.
    pub batches: bool,
    /// The most rows that are worth joining at the narrowest width; 1 if it does not batch.
    pub rows_max: usize,
    /// What was measured, in order, also of a width that was not kept; empty if it could not be tried out.
    pub costs: Vec<Cost>,
    /// The shape of each input, one row, that it was tried out with.
    pub shapes: Vec<Shape>,
    /// Why, for the log.
    pub reason: String,
    /// What it takes of the memory, if that was measured.
    pub occupancy: Option<Occupancy>,
    /// What its sequences take, if it generates. Rows are tokens then.
    pub sequences: Option<SequenceProfile>,
}

/// What the sequences of a model take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceProfile {
    /// Tokens of a page of keys and values.
    pub page_tokens: usize,
    /// Bytes of a page.
    pub page_bytes: usize,
    /// Tokens of the longest sequence that it was made for.
    pub tokens_max: usize,
    /// What a thousand keys that tokens attend to add to a step on one core.
    pub thousand_keys: Duration,
}

/// What one step costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost {
    /// Cores that compute it.
    pub width: usize,
    /// Its rows.
    pub rows: usize,
    /// Whether the other cores run the same model meanwhile.
    pub beside: bool,
    /// Its time: the median.
    pub step: Duration,
}

impl Profile {
    /// Of a model of which nothing is known: it runs alone, on one core.
    pub fn unmeasured() -> Self {
        Self::alone("it was not measured".into())
    }

    fn unknown(error: &EngineError) -> Self {
        Self::alone(format!("it could not be tried out, so it runs alone on one core: {error}"))
    }

    fn alone(reason: String) -> Self {
        let (costs, shapes) = (Vec::new(), Vec::new());
        Self {
            width: 1,
            widths: vec![1],
            batches: false,
            rows_max: 1,
            costs,
            shapes,
            reason,
            occupancy: None,
            sequences: None,
        }
    }
}

/// Tries `model` out on `lanes`, which have one core each and are free. Blocks for about the budget.
///
/// Never fails: what goes wrong is told in [`Profile::reason`].
pub fn probe(
    model: &Arc<dyn Model>,
    lanes: &[LaneSpec],
    clock: &Arc<dyn Clock>,
    options: &ProbeOptions,
) -> Profile {
    if let Some(language) = model.language() {
        let found = iterations::probe(model, &language, lanes, clock, options);
        return found.unwrap_or_else(|error| Profile::unknown(&error));
    }
    let mut probe = match Probe::new(model, lanes, clock, options) {
        Ok(probe) => probe,
        Err(error) => return Profile::unknown(&error),
    };
    let row = match probe.runnable_row() {
        Ok(row) => row,
        Err(error) => return Profile::unknown(&error),
    };
    let joined = probe.rows_are_independent(&row);
    let tried = probe.try_widths(&row, joined.is_ok());
    let Some(decided) = widths::decide(&tried, options.width) else {
        return Profile::unknown(&EngineError::Panicked("it ran once, but not again".into()));
    };
    probe.keep(&decided.widths, &row);
    drop(probe);
    quadrant_sys::return_freed_memory();
    let reason = match &joined {
        Ok(()) => format!("{}; its rows are independent", decided.reason),
        Err(reason) => format!("{}; not batched, {reason}", decided.reason),
    };
    let shapes = row.tensors(0).iter().map(|tensor| tensor.shape.clone()).collect();
    Profile { batches: joined.is_ok(), shapes, reason, ..decided }
}

struct Probe<'a> {
    model: &'a Arc<dyn Model>,
    clock: &'a Arc<dyn Clock>,
    options: &'a ProbeOptions,
    narrow: Vec<Worker>,
    wide: Option<LaneSpec>,
    outputs: Arc<[usize]>,
}

impl<'a> Probe<'a> {
    fn new(
        model: &'a Arc<dyn Model>,
        lanes: &[LaneSpec],
        clock: &'a Arc<dyn Clock>,
        options: &'a ProbeOptions,
    ) -> Result<Self, EngineError> {
        let no_lanes = || EngineError::Load("there are no lanes to try it out on".into());
        let first = lanes.first().ok_or_else(no_lanes)?;
        let cores = lanes.iter().fold(CoreSet::EMPTY, |cores, lane| cores.union(lane.cores));
        let wide = (lanes.len() > 1).then_some(LaneSpec { cores, ..*first });
        let narrow = lanes.iter().map(|lane| Worker::start(model, lane, clock)).collect::<Result<_, _>>()?;
        let outputs = (0..model.spec().outputs.len()).collect();
        Ok(Self { model, clock, options, narrow, wide, outputs })
    }

    fn run(&self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, EngineError> {
        self.narrow[0].once(inputs, &self.outputs)
    }

    /// Inputs of one row that the model runs with: sizes are tried in the place of its symbols.
    fn runnable_row(&self) -> Result<Row, EngineError> {
        let mut result = Err(EngineError::Load("its inputs are too large to be tried out".into()));
        let began = self.clock.now();
        for row in inputs::candidates(self.model.spec()) {
            match self.run(row.tensors(0)) {
                Ok(outputs) if outputs.iter().all(says_something) => return Ok(row),
                // It runs, but nothing can be compared; the next inputs may suit it better.
                Ok(_) if result.is_err() => result = Ok(row),
                Err(error) if result.is_err() => result = Err(error),
                Ok(_) | Err(_) => (),
            }
            if self.clock.now().since(began) > self.options.budget {
                break;
            }
        }
        result
    }

    /// Whether two different rows give together what they give alone; if not, why.
    fn rows_are_independent(&self, row: &Row) -> Result<(), String> {
        may_batch(self.model.spec(), self.options.batching)?;
        if !row.is_one_row {
            return Err("it does not run with a single row".into());
        }
        let part = |seed| Part { request: RequestId(seed), rows: 1, inputs: row.tensors(seed).into() };
        let parts = [part(0), part(1)];
        let failed = |error: EngineError| format!("a batch of two failed: {error}");
        let together = gather(&parts).and_then(|batch| self.run(batch)).map_err(failed)?;
        let requests = parts.each_ref().map(|part| (part.request, 1));
        let together = scatter(&requests, together).map_err(failed)?;
        for (part, together) in parts.iter().zip(together) {
            let alone = self.run(part.inputs.to_vec()).map_err(failed)?;
            if !alone.iter().all(says_something) {
                return Err("it gives no finite numbers to compare".into());
            }
            for (index, (alone, together)) in alone.iter().zip(&together.outputs).enumerate() {
                if !is_close(alone, together) {
                    let name = &self.model.spec().outputs[index].name;
                    return Err(format!("a row of output `{name}` depends on the other rows of its batch"));
                }
            }
        }
        Ok(())
    }

    /// Measures one-core lanes, alone and side by side, and all cores on one step, with one row and, if it
    /// batches, with more for as long as that pays and the budget lasts.
    fn try_widths(&self, row: &Row, batches: bool) -> Vec<Tried> {
        let until = self.clock.now() + self.options.budget;
        let rows_max = if batches { self.options.rows_max.max(1) } else { 1 };
        let mut tried = Vec::new();
        let is_wanted = |wide: bool| self.options.width.is_none_or(|width| (width > 1) == wide);
        let wide = self.wide.filter(|_| is_wanted(true));
        if is_wanted(false) || wide.is_none() {
            // Two ways of three are narrow.
            let rest = if wide.is_some() { self.options.budget / 3 } else { Duration::ZERO };
            self.try_rows(&self.narrow, row, (1, rows_max), until - rest, &mut tried);
        }
        if let Some(wide) = wide
            && let Ok(worker) = Worker::start(self.model, &wide, self.clock)
        {
            self.try_rows(&[worker], row, (wide.cores.len(), rows_max), until, &mut tried);
        }
        tried
    }

    /// Steps on all workers at once and, where there are several, on the first alone.
    fn try_rows(
        &self,
        workers: &[Worker],
        row: &Row,
        (width, rows_max): (usize, usize),
        until: Time,
        tried: &mut Vec<Tried>,
    ) {
        let window = self.options.budget / 16;
        let ways: &[&[Worker]] = if workers.len() > 1 { &[workers, &workers[..1]] } else { &[workers] };
        let (mut best, mut fruitless, mut rows) = (0.0, 0, 1);
        while rows <= rows_max && fruitless < 2 {
            let Ok(inputs) = batch(row, rows) else { return };
            let run = |way: &&[Worker]| measure::side_by_side(way, &inputs, &self.outputs, (rows, window));
            let Ok(mut measured) = ways.iter().map(run).collect::<Result<Vec<_>, _>>() else { return };
            if let [together, alone] = &mut measured[..] {
                *together = together.bounded_by(*alone, rows, workers.len());
            }
            for (way, measured) in ways.iter().zip(&measured) {
                let all_busy = way.len() == workers.len();
                tried.push(Tried::new(*measured, (width, rows), way.len() > 1, all_busy));
            }
            let rate = measured[0].rows_per_second;
            let took: Duration = measured.iter().map(|measured| measured.step).sum();
            fruitless = if widths::is_better(rate, best) { 0 } else { fruitless + 1 };
            best = rate.max(best);
            rows *= 2;
            // A larger batch takes about twice as long, three times: once to warm up, twice to measure.
            if self.clock.now() + (took * 6).max(window * ways.len() as u32) > until {
                return;
            }
        }
    }

    /// Makes the model keep what lanes of these widths need, before the losing width's runners go, and
    /// lets it give back the memory that only the trials needed. The widest comes first, from which on an
    /// engine can share weights.
    fn keep(&mut self, widths: &[usize], row: &Row) {
        let narrow = self.narrow[0].lane;
        self.narrow.truncate(1);
        self.model.keep_widths(widths);
        let lane = |width: &usize| self.wide.filter(|wide| wide.cores.len() == *width).unwrap_or(narrow);
        // It just worked; if it does not now, the node will meet the error and report it.
        let start = |lane| Worker::start(self.model, &lane, self.clock).ok();
        let kept: Vec<_> = widths.iter().rev().map(lane).filter_map(start).collect();
        for worker in kept {
            drop(worker.once(row.tensors(0), &self.outputs));
        }
    }
}

/// So many different rows of this kind, together.
fn batch(row: &Row, rows: usize) -> Result<Vec<Tensor>, EngineError> {
    let part = |seed| Part { request: RequestId(seed), rows: 1, inputs: row.tensors(seed).into() };
    let parts: Vec<_> = (0..rows as u64).map(part).collect();
    gather(&parts)
}

/// Whether the spec and the configuration permit batching; if not, why.
fn may_batch(spec: &ModelSpec, batching: Batching) -> Result<(), String> {
    let open = |dims: &[Dim]| matches!(dims.first(), Some(Dim::Symbol(_) | Dim::Any));
    match batching {
        Batching::Never => Err("the configuration forbids it".into()),
        Batching::Declared if spec.shares_first_symbol() => Ok(()),
        Batching::Declared => Err("its inputs and outputs do not all begin with one symbol".into()),
        Batching::Allowed if spec.inputs.iter().all(|input| open(&input.dims)) => Ok(()),
        Batching::Allowed => Err("the first dimension of an input is fixed".into()),
    }
}

/// Whether an output has a number to compare: not one of them is finite where inputs were absurd.
fn says_something(output: &Tensor) -> bool {
    floats(output).is_none_or(|numbers| numbers.is_empty() || numbers.iter().any(|number| number.is_finite()))
}

fn is_close(alone: &Tensor, together: &Tensor) -> bool {
    if alone.datatype != together.datatype || alone.shape != together.shape {
        return false;
    }
    let (Some(alone_numbers), Some(numbers)) = (floats(alone), floats(together)) else {
        return alone.data == together.data;
    };
    let finite = alone_numbers.iter().filter(|number| number.is_finite());
    let largest = finite.fold(0.0_f64, |largest, number| largest.max(number.abs()));
    let close = |(left, right): (&f64, &f64)| {
        left == right || (left.is_nan() && right.is_nan()) || (left - right).abs() <= TOLERANCE * largest
    };
    alone_numbers.iter().zip(&numbers).all(close)
}

/// The elements of a tensor of floating-point numbers; `None` for other types.
fn floats(tensor: &Tensor) -> Option<Vec<f64>> {
    fn all<T: bytemuck::AnyBitPattern>(data: &[u8], widen: impl Fn(T) -> f64) -> Option<Vec<f64>> {
        let numbers = data.chunks_exact(size_of::<T>());
        Some(numbers.map(|bytes| widen(bytemuck::pod_read_unaligned(bytes))).collect())
    }
    use DataType::{Bf16, Bool, Bytes, Fp16, Fp32, Fp64, Int8, Int16, Int32, Int64};
    use DataType::{Uint8, Uint16, Uint32, Uint64};
    match tensor.datatype {
        Fp32 => all(&tensor.data, |number: f32| f64::from(number)),
        Fp64 => all(&tensor.data, |number: f64| number),
        Fp16 => all(&tensor.data, |number: half::f16| number.to_f64()),
        Bf16 => all(&tensor.data, |number: half::bf16| number.to_f64()),
        Bool | Uint8 | Uint16 | Uint32 | Uint64 | Int8 | Int16 | Int32 | Int64 | Bytes => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closeness_is_relative_to_the_largest_value() {
        let tensor = |numbers: &[f32]| Tensor {
            datatype: DataType::Fp32,
            shape: Shape::from_slice(&[numbers.len()]),
            data: bytes::Bytes::copy_from_slice(bytemuck::cast_slice(numbers)),
        };
        let check = |left: &[f32], right: &[f32], expect| {
            assert_eq!(is_close(&tensor(left), &tensor(right)), expect, "{left:?} {right:?}");
        };
        check(&[100.0, 0.0], &[100.0, 0.09], true);
        check(&[100.0, 0.0], &[100.0, 0.11], false);
        check(&[f32::NAN, f32::INFINITY], &[f32::NAN, f32::INFINITY], true);
        check(&[f32::NAN], &[1.0], false);
        check(&[f32::INFINITY], &[f32::NEG_INFINITY], false);
        check(&[1.0], &[1.0, 1.0], false);
    }
}
