//! The process of the engines: what `quadrant engine-host` does, told by the server over its standard
//! input.
//!
//! The main thread takes orders; each lane has a thread on its cores and in its class that waits for steps
//! on a connection of its own. When the server closes the connection, or is gone, the process ends.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use quadrant_sys::SharedRegion;
use quadrant_types::{Clock, Tensor};

use super::codec::Broken;
use super::link::aligned;
use super::messages::{Answer, Begin, Order, Placed, Region, Run, Source};
use super::pipe::{Pipe, PipeError};
use crate::spawn::{self, ThreadSpec};
use crate::{
    Done, EngineError, Engines, Footprint, LaneSpec, Model, OnnxRuntime, Runner, StepResult, StepWork, load,
};

/// Why the process of the engines ended though nobody told it to.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ServeError(String);

impl From<PipeError> for ServeError {
    fn from(error: PipeError) -> Self {
        Self(error.to_string())
    }
}

impl From<io::Error> for ServeError {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

/// Serves engines to the server at the other end of standard input, until that is closed. To be called at
/// the beginning of a process that a [`super::EngineHost`] has started.
///
/// # Errors
/// If standard input is no such connection, or breaks.
pub fn serve_engines(clock: Arc<dyn Clock>) -> Result<(), ServeError> {
    let control: OwnedFd = io::stdin().as_fd().try_clone_to_owned()?;
    let mut pipe = Pipe::taking_files(UnixStream::from(control));
    let begin = match next_order(&mut pipe)? {
        Some((Order::Begin(begin), _)) => begin,
        Some(_) => return Err(ServeError("the first order must be to begin".into())),
        None => return Ok(()),
    };
    let engines = match prepare(&begin, clock) {
        Ok(engines) => engines,
        Err(error) => return Ok(answer(&mut pipe, &Answer::Failed(error))?),
    };
    answer(&mut pipe, &Answer::Done(Footprint::default()))?;
    let mut host = Host { engines, models: BTreeMap::new() };
    while let Some((order, file)) = next_order(&mut pipe)? {
        let result = host.obey(order, file).unwrap_or_else(Answer::Failed);
        answer(&mut pipe, &result)?;
    }
    Ok(())
}

/// The next order, or `None` at the end.
fn next_order(pipe: &mut Pipe) -> Result<Option<(Order, Option<OwnedFd>)>, PipeError> {
    match pipe.receive() {
        Ok(received) => Ok(Some((Order::read(received.kind, received.body)?, received.file))),
        Err(PipeError::Closed) => Ok(None),
        Err(error) => Err(error),
    }
}

fn answer(pipe: &mut Pipe, answer: &Answer) -> Result<(), PipeError> {
    pipe.send(answer.kind(), |out| answer.write(out), None)
}

/// Makes this process what it is to be, before anything is loaded.
fn prepare(begin: &Begin, clock: Arc<dyn Clock>) -> Result<Engines, EngineError> {
    let failed = |error: io::Error| EngineError::Load(format!("the engine's process cannot begin: {error}"));
    quadrant_sys::end_with_parent(begin.parent).map_err(failed)?;
    quadrant_sys::leave_ending_to_parent().map_err(failed)?;
    quadrant_sys::write_no_core().map_err(failed)?;
    quadrant_sys::go_first_when_memory_runs_out();
    if let Some(bytes) = begin.data_bytes_max {
        quadrant_sys::limit_data(bytes).map_err(failed)?;
    }
    spawn::prepare().map_err(failed)?;
    let onnxruntime = begin.onnxruntime.as_deref().map(OnnxRuntime::open).transpose()?;
    Ok(Engines { onnxruntime, clock })
}

struct Host {
    engines: Engines,
    models: BTreeMap<u32, Arc<dyn Model>>,
}

impl Host {
    fn obey(&mut self, order: Order, file: Option<OwnedFd>) -> Result<Answer, EngineError> {
        match order {
            Order::Load(number, source) => self.load(number, source),
            Order::Open(number, lane) => {
                let file = file.ok_or_else(|| unexpected("a lane without a connection"))?;
                let model = self.model(number)?;
                let runner = model.runner(&lane)?;
                serve_lane(lane, runner, UnixStream::from(file))?;
                Ok(Answer::Done(model.footprint()))
            }
            Order::KeepWidths(number, widths) => {
                let model = self.model(number)?;
                model.keep_widths(&widths);
                Ok(Answer::Done(model.footprint()))
            }
            Order::Unload(number) => {
                drop(self.models.remove(&number));
                quadrant_sys::return_freed_memory();
                Ok(Answer::Done(Footprint::default()))
            }
            Order::Begin(_) | Order::Run(_) | Order::Fetch(_) => Err(unexpected("an order out of place")),
        }
    }

    fn load(&mut self, number: u32, source: Source) -> Result<Answer, EngineError> {
        let model = load(&source.into(), &self.engines)?;
        // Weights were read through buffers that are free now; they would count against the limit.
        quadrant_sys::return_freed_memory();
        let loaded = Answer::Loaded(Box::new(model.spec().clone()), model.footprint());
        self.models.insert(number, model);
        Ok(loaded)
    }

    fn model(&self, number: u32) -> Result<&Arc<dyn Model>, EngineError> {
        self.models.get(&number).ok_or_else(|| unexpected("a model that was not loaded"))
    }
}

fn unexpected(what: &str) -> EngineError {
    EngineError::Panicked(format!("the engine's process was given {what}"))
}

/// Starts the thread of a lane.
fn serve_lane(lane: LaneSpec, runner: Box<dyn Runner>, stream: UnixStream) -> Result<(), EngineError> {
    let work = move || {
        let mut served = Served { runner, region: None, kept: None };
        let mut pipe = Pipe::taking_files(stream);
        // However the connection ends, the server has noticed or is gone.
        while let Ok(Some((order, file))) = next_order(&mut pipe) {
            let result = served.obey(order, file).unwrap_or_else(|error| {
                Answer::Failed(EngineError::Panicked(format!("the engine's process was told wrong: {error}")))
            });
            if answer(&mut pipe, &result).is_err() {
                return;
            }
        }
    };
    let thread = ThreadSpec { name: format!("lane-{}", lane.id.0), cores: lane.cores, class: lane.class };
    spawn::spawn(thread, Box::new(work))
        .map(drop)
        .map_err(|error| EngineError::OutOfMemory(format!("a thread cannot be started: {error}")))
}

/// One lane of one model.
struct Served {
    runner: Box<dyn Runner>,
    region: Option<Arc<SharedRegion>>,
    /// Outputs for which there was no room, with the time that they took.
    kept: Option<(Vec<Tensor>, Duration)>,
}

impl Served {
    fn obey(&mut self, order: Order, file: Option<OwnedFd>) -> Result<Answer, Broken> {
        let (place, run) = match order {
            Order::Run(run) => (run.region, Some(run)),
            Order::Fetch(place) => (place, None),
            Order::Begin(_)
            | Order::Load(..)
            | Order::Open(..)
            | Order::KeepWidths(..)
            | Order::Unload(_) => {
                return Err(Broken("an order out of place"));
            }
        };
        if let Some(file) = file {
            // The old one goes first, so that there are never two.
            self.region = None;
            let opened = SharedRegion::open(file, place.bytes);
            self.region = Some(Arc::new(opened.map_err(|_| Broken("memory that cannot be shared"))?));
        }
        let region = Arc::clone(self.region.as_ref().ok_or(Broken("a step without memory"))?);
        let (outputs, core_time) = match run {
            Some(run) => match self.run(run, &region)? {
                (Ok(outputs), core_time) => (outputs, core_time),
                (Err(error), _) => return Ok(Answer::Failed(error)),
            },
            None => self.kept.take().ok_or(Broken("there is nothing to fetch"))?,
        };
        Ok(match place_outputs(&outputs, &region, place) {
            Ok(placed) => Answer::Ran(placed, core_time),
            Err(bytes) => {
                self.kept = Some((outputs, core_time));
                Answer::TooLarge(bytes)
            }
        })
    }

    /// Runs a step on this thread, with the inputs where they lie.
    fn run(&mut self, run: Run, region: &Arc<SharedRegion>) -> Result<(StepResult, Duration), Broken> {
        let Run { step, inputs, outputs, .. } = run;
        let view = |placed: Placed| {
            let Placed { datatype, shape, offset, length } = placed;
            let data = region.view(offset, length).ok_or(Broken("an input lies outside of the memory"))?;
            Ok(Tensor { datatype, shape, data })
        };
        let inputs = inputs.into_iter().map(view).collect::<Result<Vec<_>, Broken>>()?;
        let work = StepWork { step, inputs, outputs: Arc::from(outputs) };
        let (send, done) = sync_channel(1);
        let before = quadrant_sys::thread_time();
        // The channel has room for the one result, and this function waits for it.
        let done_then = Done::timed(move |result, elsewhere| drop(send.send((result, elsewhere))));
        // As on a lane of the server: a panic drops what reports the step, which reports it.
        drop(catch_unwind(AssertUnwindSafe(|| self.runner.submit(work, done_then))));
        let (result, elsewhere) = done.recv().map_err(|_| Broken("a step was never reported"))?;
        Ok((result, quadrant_sys::thread_time().saturating_sub(before) + elsewhere))
    }
}

/// Puts outputs into the memory; those that lie there already stay. If there is no room, how many bytes they
/// need.
fn place_outputs(outputs: &[Tensor], region: &SharedRegion, place: Region) -> Result<Vec<Placed>, usize> {
    let outside = |tensor: &&Tensor| region.offset_of(&tensor.data).is_none();
    let needed: usize = outputs.iter().filter(outside).map(|tensor| aligned(tensor.data.len())).sum();
    if place.outputs_at.saturating_add(needed) > region.len() {
        // All of them, since another region may hold none.
        return Err(outputs.iter().map(|tensor| aligned(tensor.data.len())).sum());
    }
    let mut end = place.outputs_at;
    let placed = outputs.iter().map(|tensor| {
        let length = tensor.data.len();
        let offset = region.offset_of(&tensor.data).unwrap_or_else(|| {
            let offset = end;
            end += aligned(length);
            let written = region.write(offset, &tensor.data);
            assert!(written, "there is room for all of them");
            offset
        });
        Placed { datatype: tensor.datatype, shape: tensor.shape.clone(), offset, length }
    });
    Ok(placed.collect())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use quadrant_types::{DataType, Shape};

    use super::*;

    #[test]
    fn outputs_are_placed_once_and_only_where_there_is_room() {
        let region = Arc::new(SharedRegion::create(4_096).unwrap());
        let tensor = |data: Bytes| {
            let shape = Shape::from_slice(&[data.len()]);
            Tensor { datatype: DataType::Uint8, shape, data }
        };
        let elsewhere = tensor(Bytes::from(vec![7; 100]));
        let there = tensor(region.view(0, 50).unwrap());
        let place = Region { bytes: 4_096, outputs_at: 64 };
        let placed = place_outputs(&[elsewhere.clone(), there, elsewhere.clone()], &region, place).unwrap();
        let offsets: Vec<_> = placed.iter().map(|placed| (placed.offset, placed.length)).collect();
        assert_eq!(offsets, [(64, 100), (0, 50), (192, 100)]);
        assert_eq!(region.read(192, 100).unwrap(), [7; 100]);
        let large = tensor(Bytes::from(vec![1; 5_000]));
        assert_eq!(place_outputs(&[large, elsewhere], &region, place), Err(5_056 + 128));
        assert_eq!(place_outputs(&[], &region, Region { bytes: 4_096, outputs_at: usize::MAX }), Err(0));
    }
}
