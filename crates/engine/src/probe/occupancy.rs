//! How many bytes a model takes, measured in a process that does nothing else.
//!
//! The model is loaded as the node loads it, with a runner for every lane, and runs its steps, the largest
//! on all lanes at once: what an engine grew to it keeps. So the figure is what a busy model holds, and the
//! growth of the process is all its doing.

use std::sync::Arc;
use std::time::Duration;

use quadrant_types::{Clock, Shape};

use super::inputs::{self, Row};
use super::iterations;
use super::measure::Worker;
use super::{Profile, batch};
use crate::{EngineError, LaneSpec, Model};

/// What a model takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occupancy {
    /// How long loading took.
    pub load_time: Duration,
    /// Bytes at most while it was loaded.
    pub load_bytes: u64,
    /// Bytes once it was loaded, before its first step.
    pub loaded_bytes: u64,
    /// Bytes after steps of each kind, in the order in which they ran.
    pub peaks: Vec<Peak>,
}

/// What a model takes once it has run steps of a kind, and all kinds before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peak {
    /// Cores of the step.
    pub width: usize,
    /// Its rows.
    pub rows: usize,
    /// Bytes, those of the loaded model included.
    pub bytes: u64,
}

impl Occupancy {
    /// Bytes of a model that has run all it can run.
    pub fn bytes(&self) -> u64 {
        self.peaks.iter().map(|peak| peak.bytes).fold(self.loaded_bytes, u64::max)
    }
}

/// Loads a model and runs it as `profile` says it is served on `lanes`, which have one core each.
///
/// # Errors
/// If it does not load or run, or the operating system does not tell.
pub fn occupancy(
    load: impl FnOnce() -> Result<Arc<dyn Model>, EngineError>,
    lanes: &[LaneSpec],
    clock: &Arc<dyn Clock>,
    profile: &Profile,
) -> Result<Occupancy, EngineError> {
    quadrant_sys::return_freed_memory();
    quadrant_sys::reset_peak_resident_bytes().map_err(|error| unknown(&error))?;
    let before = resident()?;
    let began = clock.now();
    let model = load()?;
    let workers = workers(&model, lanes, clock, profile)?;
    let load_time = clock.now().since(began);
    let grown = |bytes: u64| bytes.saturating_sub(before);
    let peak = quadrant_sys::peak_resident_bytes().map_err(|error| unknown(&error))?;
    let (load_bytes, loaded_bytes) = (grown(peak), grown(resident()?));
    let mut peaks = Vec::new();
    if let Some(language) = model.language() {
        for (width, workers) in &workers {
            let rows = profile.rows_max;
            iterations::run_largest(&language, &workers[0], rows)?;
            peaks.push(Peak { width: *width, rows, bytes: grown(resident()?) });
        }
        return Ok(Occupancy { load_time, load_bytes, loaded_bytes, peaks });
    }
    let row = row(&model, &profile.shapes)?;
    let mut rows = 1;
    while rows <= profile.rows_max {
        for (width, workers) in &workers {
            run(workers, &model, &row, rows)?;
            peaks.push(Peak { width: *width, rows, bytes: grown(resident()?) });
        }
        rows *= 2;
    }
    Ok(Occupancy { load_time, load_bytes, loaded_bytes, peaks })
}

/// Runs one row on the first of `lanes`: a model that can is warm.
///
/// # Errors
/// If it cannot.
pub fn run_once(
    model: &Arc<dyn Model>,
    lanes: &[LaneSpec],
    clock: &Arc<dyn Clock>,
    profile: &Profile,
) -> Result<(), EngineError> {
    if let Some(language) = model.language() {
        let lane =
            lanes.first().ok_or_else(|| EngineError::Load("there are no lanes to run it on".into()))?;
        return iterations::run_largest(&language, &Worker::start(model, lane, clock)?, 1);
    }
    // One that could not be tried out has nothing to be tried with.
    let (Some(lane), Ok(row)) = (lanes.first(), row(model, &profile.shapes)) else { return Ok(()) };
    run(&[Worker::start(model, lane, clock)?], model, &row, 1)
}

/// A thread for each lane of each width, the widest first.
fn workers(
    model: &Arc<dyn Model>,
    lanes: &[LaneSpec],
    clock: &Arc<dyn Clock>,
    profile: &Profile,
) -> Result<Vec<(usize, Vec<Worker>)>, EngineError> {
    let first = lanes.first().ok_or_else(|| EngineError::Load("there are no lanes to run it on".into()))?;
    let cores = lanes.iter().fold(first.cores, |cores, lane| cores.union(lane.cores));
    let wide = [LaneSpec { cores, ..*first }];
    let of_width = |width: &usize| {
        let lanes = if *width > 1 { &wide[..] } else { lanes };
        let workers = lanes.iter().map(|lane| Worker::start(model, lane, clock)).collect::<Result<_, _>>()?;
        Ok((*width, workers))
    };
    profile.widths.iter().rev().map(of_width).collect()
}

/// The row with these shapes.
fn row(model: &Arc<dyn Model>, shapes: &[Shape]) -> Result<Row, EngineError> {
    let fits = |row: &Row| row.tensors(0).iter().map(|tensor| &tensor.shape).eq(shapes);
    let found = inputs::candidates(model.spec()).find(fits);
    found.ok_or_else(|| EngineError::Load("its profile names inputs that it cannot have".into()))
}

fn run(workers: &[Worker], model: &Arc<dyn Model>, row: &Row, rows: usize) -> Result<(), EngineError> {
    let inputs = batch(row, rows)?;
    let outputs = (0..model.spec().outputs.len()).collect();
    Worker::once_on_all(workers, &inputs, &outputs)
}

fn resident() -> Result<u64, EngineError> {
    quadrant_sys::resident_bytes().map_err(|error| unknown(&error))
}

fn unknown(error: &std::io::Error) -> EngineError {
    EngineError::Load(format!("the operating system does not tell what the process takes: {error}"))
}
