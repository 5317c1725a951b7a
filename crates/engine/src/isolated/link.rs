//! The server's end of one lane: a connection, and memory for one step's tensors.
//!
//! Inputs are copied into the shared memory and outputs out of it, so that nothing the server looks at can
//! change under it. What the process answers is believed only as far as it was checked: how many outputs,
//! how large, and that they lie within the memory.

use std::time::Duration;

use bytes::Bytes;
use quadrant_sys::SharedRegion;
use quadrant_types::{ALIGNMENT, DataType, Tensor, element_count};

use super::codec::Broken;
use super::messages::{Answer, Order, Placed, Region, Run};
use super::pipe::{Pipe, PipeError};
use crate::{EngineError, StepWork};

/// The most memory of one lane; a step that needs more fails.
const REGION_BYTES_MAX: usize = 4 << 30;
/// The least; also what the first outputs find beside as much as the inputs take.
const REGION_BYTES_MIN: usize = 64 << 10;
/// Beyond this, memory is not doubled but grows in such pieces.
const PIECE_BYTES: usize = 16 << 20;

/// What came of a step: its outputs, or the engine's error.
pub(super) type Ran = (Result<Vec<Tensor>, EngineError>, Duration);

/// One lane of one model in the process.
#[derive(Debug)]
pub(super) struct Link {
    pipe: Pipe,
    region: Option<SharedRegion>,
    /// What outputs needed so far.
    outputs_bytes: usize,
}

impl Link {
    pub(super) fn new(pipe: Pipe) -> Self {
        Self { pipe, region: None, outputs_bytes: 0 }
    }

    /// Runs a step to its end.
    ///
    /// # Errors
    /// If the process is gone or talks nonsense; it is of no more use then.
    pub(super) fn run(&mut self, work: &StepWork) -> Result<Ran, PipeError> {
        let (inputs, inputs_end) = lay_out(&work.inputs);
        let outputs_bytes = self.outputs_bytes.max(inputs_end).max(REGION_BYTES_MIN);
        let is_new = match self.make_room(inputs_end, outputs_bytes) {
            Ok(is_new) => is_new,
            Err(error) => return Ok((Err(error), Duration::ZERO)),
        };
        let region = self.region.as_ref().expect("room was just made");
        for (tensor, placed) in work.inputs.iter().zip(&inputs) {
            let written = region.write(placed.offset, &tensor.data);
            assert!(written, "room was made for all inputs");
        }
        let place = Region { bytes: region.len(), outputs_at: inputs_end };
        let run = Run { step: work.step, region: place, inputs, outputs: work.outputs.to_vec() };
        self.order(&Order::Run(run), is_new)?;
        let answer = self.answer()?;
        if let Answer::TooLarge(bytes) = answer {
            return self.fetch(bytes, work);
        }
        self.take(answer, work)
    }

    /// Gets outputs for which there was no room.
    fn fetch(&mut self, bytes: usize, work: &StepWork) -> Result<Ran, PipeError> {
        if let Err(error) = self.make_room(0, bytes) {
            return Ok((Err(error), Duration::ZERO));
        }
        let bytes = self.region.as_ref().map_or(0, SharedRegion::len);
        self.order(&Order::Fetch(Region { bytes, outputs_at: 0 }), true)?;
        let answer = self.answer()?;
        // That they still do not fit is no answer to this.
        self.take(answer, work)
    }

    fn order(&mut self, order: &Order, with_region: bool) -> Result<(), PipeError> {
        let file = self.region.as_ref().filter(|_| with_region).map(SharedRegion::file);
        self.pipe.send(order.kind(), |out| order.write(out), file)
    }

    fn answer(&mut self) -> Result<Answer, PipeError> {
        let received = self.pipe.receive()?;
        Ok(Answer::read(received.kind, received.body)?)
    }

    fn take(&mut self, answer: Answer, work: &StepWork) -> Result<Ran, PipeError> {
        match answer {
            Answer::Ran(outputs, core_time) => {
                if outputs.len() != work.outputs.len() {
                    return Err(Broken("it gives another number of outputs than asked for").into());
                }
                let region = self.region.as_ref().expect("a step ran with it");
                let tensors = outputs.into_iter().map(|output| taken(region, output));
                let tensors = tensors.collect::<Result<Vec<_>, Broken>>()?;
                let bytes = tensors.iter().map(|tensor| aligned(tensor.data.len())).sum();
                self.outputs_bytes = self.outputs_bytes.max(bytes);
                Ok((Ok(tensors), core_time))
            }
            Answer::Failed(error) => Ok((Err(error), Duration::ZERO)),
            Answer::Done(_) | Answer::Loaded(..) | Answer::TooLarge(_) => {
                Err(Broken("it answers something else than was asked").into())
            }
        }
    }

    /// Sees to it that there is memory for inputs and outputs. Says whether it is new.
    fn make_room(&mut self, inputs: usize, outputs: usize) -> Result<bool, EngineError> {
        let needed = inputs.checked_add(aligned(outputs)).filter(|needed| *needed <= REGION_BYTES_MAX);
        let Some(needed) = needed else {
            let what = "the tensors of the step do not fit into the memory that it shares with its process";
            return Err(EngineError::OutOfMemory(format!("{what}: more than `{REGION_BYTES_MAX}` bytes")));
        };
        if self.region.as_ref().is_some_and(|region| region.len() >= needed) {
            return Ok(false);
        }
        let bytes = match needed {
            small if small <= PIECE_BYTES => small.next_power_of_two(),
            large => large.next_multiple_of(PIECE_BYTES),
        };
        // The old one goes first, so that there are never two.
        self.region = None;
        let made = SharedRegion::create(bytes).map_err(|error| {
            EngineError::OutOfMemory(format!("`{bytes}` bytes cannot be shared with its process: {error}"))
        })?;
        self.region = Some(made);
        Ok(true)
    }
}

/// Where each input goes, and where they end.
fn lay_out(inputs: &[Tensor]) -> (Vec<Placed>, usize) {
    let mut end = 0;
    let place = |tensor: &Tensor| {
        let (offset, length) = (end, tensor.data.len());
        end = aligned(offset + length);
        Placed { datatype: tensor.datatype, shape: tensor.shape.clone(), offset, length }
    };
    let placed = inputs.iter().map(place).collect();
    (placed, end)
}

/// So many bytes, up to the next boundary that tensors begin at.
pub(super) fn aligned(bytes: usize) -> usize {
    bytes.checked_next_multiple_of(ALIGNMENT).unwrap_or(bytes)
}

/// A copy of an output, if it is one.
fn taken(region: &SharedRegion, output: Placed) -> Result<Tensor, Broken> {
    let Placed { datatype, shape, offset, length } = output;
    let data = region.read(offset, length).ok_or(Broken("an output lies outside of the memory"))?;
    let tensor = Tensor { datatype, shape, data: Bytes::from(data) };
    if fills_its_shape(&tensor) { Ok(tensor) } else { Err(Broken("an output does not fill its shape")) }
}

fn fills_its_shape(tensor: &Tensor) -> bool {
    let Some(elements) = element_count(&tensor.shape) else { return false };
    match tensor.datatype.size() {
        Some(size) => elements.checked_mul(size) == Some(tensor.data.len()),
        None => {
            debug_assert_eq!(tensor.datatype, DataType::Bytes, "all others have a size");
            let mut count = 0_usize;
            tensor.strings().all(|string| {
                count += 1;
                string.is_some()
            }) && count == elements
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    use quadrant_types::{Shape, StepId};

    use super::*;

    fn work(bytes: &[u8]) -> StepWork {
        let shape = Shape::from_slice(&[bytes.len()]);
        let input = Tensor { datatype: DataType::Uint8, shape, data: Bytes::copy_from_slice(bytes) };
        StepWork { step: StepId(1), inputs: vec![input], outputs: Arc::from([0]) }
    }

    /// Runs one step against a process that answers so.
    fn against(
        answer: impl FnOnce(Run, &Arc<SharedRegion>) -> Answer + Send + 'static,
    ) -> Result<Ran, PipeError> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let process = std::thread::spawn(move || {
            let mut pipe = Pipe::taking_files(theirs);
            let received = pipe.receive().unwrap();
            let file = received.file.expect("the first step brings memory");
            let Ok(Order::Run(run)) = Order::read(received.kind, received.body) else { panic!("no step") };
            let region = Arc::new(SharedRegion::open(file, run.region.bytes).unwrap());
            let answer = answer(run, &region);
            pipe.send(answer.kind(), |out| answer.write(out), None).unwrap();
        });
        let result = Link::new(Pipe::new(ours)).run(&work(b"abc"));
        process.join().unwrap();
        result
    }

    fn bytes_at(offset: usize, length: usize) -> Placed {
        Placed { datatype: DataType::Uint8, shape: Shape::from_slice(&[length]), offset, length }
    }

    #[test]
    fn a_step_goes_there_and_back() {
        let (outputs, core_time) = against(|run, region| {
            let input = &run.inputs[0];
            let view = region.view(input.offset, input.length).unwrap();
            let reversed: Vec<u8> = view.iter().rev().copied().collect();
            assert!(region.write(run.region.outputs_at, &reversed));
            Answer::Ran(vec![bytes_at(run.region.outputs_at, 3)], Duration::from_micros(3))
        })
        .unwrap();
        assert_eq!((&outputs.unwrap()[0].data[..], core_time), (&b"cba"[..], Duration::from_micros(3)));
        let refused = against(|_, _| Answer::Failed(EngineError::Input("no".into()))).unwrap();
        assert_eq!(refused.0, Err(EngineError::Input("no".into())));
    }

    #[test]
    fn nothing_is_believed_unchecked() {
        let strings = |data: &'static [u8], count| {
            move |_: Run, region: &Arc<SharedRegion>| {
                assert!(region.write(0, data));
                let shape = Shape::from_slice(&[count]);
                let (datatype, offset, length) = (DataType::Bytes, 0, data.len());
                Answer::Ran(vec![Placed { datatype, shape, offset, length }], Duration::ZERO)
            }
        };
        let ran =
            |placed: Placed| move |_: Run, _: &Arc<SharedRegion>| Answer::Ran(vec![placed], Duration::ZERO);
        type Process = Box<dyn FnOnce(Run, &Arc<SharedRegion>) -> Answer + Send>;
        let cases: Vec<(Process, &str)> = vec![
            (Box::new(ran(bytes_at(usize::MAX, 2))), "outside"),
            (Box::new(ran(bytes_at(0, usize::MAX))), "outside"),
            (Box::new(|run, _| Answer::Ran(vec![bytes_at(run.region.bytes, 1)], Duration::ZERO)), "outside"),
            (Box::new(ran(Placed { length: 2, ..bytes_at(0, 3) })), "fill"),
            (Box::new(ran(Placed { shape: Shape::from_slice(&[usize::MAX, 2]), ..bytes_at(0, 3) })), "fill"),
            (Box::new(strings(b"\x09\0\0\0a", 1)), "fill"),
            (Box::new(strings(b"\x01\0\0\0a", 2)), "fill"),
            (Box::new(|_, _| Answer::Ran(vec![], Duration::ZERO)), "number of outputs"),
            (Box::new(|_, _| Answer::Done(crate::Footprint::default())), "something else"),
        ];
        for (process, part) in cases {
            let error = against(process).unwrap_err().to_string();
            assert!(error.contains(part), "`{error}` has no `{part}`");
        }
        let (refused, _) = against(|_, _| Answer::TooLarge(usize::MAX)).unwrap();
        assert!(matches!(refused, Err(EngineError::OutOfMemory(_))));
    }
}
