//! What a server and the process of its engines say to each other, and how it is written.
//!
//! The server orders, the process answers each order once. On the control connection: begin, load a model,
//! open a lane. On the connection of each lane: run a step. Tensors are named by their place in memory that
//! both share.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quadrant_types::{CoreSet, DataType, Dim, LaneId, ModelSpec, Shape, StepId, TensorSpec};

use super::codec::{Broken, Reader, Writer};
use crate::{EngineError, EngineKind, Footprint, LaneSpec, ModelSource, SchedulingClass};

/// What the server orders.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Order {
    /// The first order: what the process must know before it does anything.
    Begin(Begin),
    /// Load this model under this number.
    Load(u32, Source),
    /// Prepare a lane for a model, to be served over the connection that comes with it.
    Open(u32, LaneSpec),
    /// Runners are needed for these widths only.
    KeepWidths(u32, Vec<usize>),
    /// Forget a model.
    Unload(u32),
    /// Run a step.
    Run(Run),
    /// Put the outputs of the step that was just run into the region that comes with this.
    Fetch(Region),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Begin {
    /// The server's process.
    pub(super) parent: u32,
    pub(super) onnxruntime: Option<PathBuf>,
    pub(super) data_bytes_max: Option<u64>,
}

/// Which file to load, with which engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) name: Arc<str>,
    pub(super) version: u64,
    pub(super) path: PathBuf,
    pub(super) engine: EngineKind,
}

/// Memory that comes with a message, in bytes, and from where on outputs belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) bytes: usize,
    pub(super) outputs_at: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) step: StepId,
    pub(super) region: Region,
    pub(super) inputs: Vec<Placed>,
    pub(super) outputs: Vec<usize>,
}

/// A tensor in shared memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) datatype: DataType,
    pub(super) shape: Shape,
    pub(super) offset: usize,
    pub(super) length: usize,
}

/// What the process answers.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Answer {
    Done(Footprint),
    Loaded(Box<ModelSpec>, Footprint),
    /// The step's outputs, and the processor time that it took.
    Ran(Vec<Placed>, Duration),
    /// The outputs need so many bytes; they are kept until they are fetched.
    TooLarge(usize),
    Failed(EngineError),
}

impl From<&ModelSource> for Source {
    /// The engine is the one of the file unless it was asked for.
    fn from(source: &ModelSource) -> Self {
        Self {
            name: Arc::clone(&source.name),
            version: source.version,
            path: source.path.clone(),
            engine: source.engine.unwrap_or(EngineKind::Rten),
        }
    }
}

impl From<Source> for ModelSource {
    fn from(source: Source) -> Self {
        let Source { name, version, path, engine } = source;
        Self { name, version, path, engine: Some(engine), labels: BTreeMap::new() }
    }
}

impl Order {
    pub(super) const fn kind(&self) -> u8 {
        match self {
            Self::Begin(_) => 1,
            Self::Load(..) => 2,
            Self::Open(..) => 3,
            Self::KeepWidths(..) => 4,
            Self::Unload(_) => 5,
            Self::Run(_) => 6,
            Self::Fetch(_) => 7,
        }
    }

    pub(super) fn write(&self, out: &mut Writer) {
        match self {
            Self::Begin(begin) => {
                out.short(begin.parent);
                out.option(begin.onnxruntime.as_ref(), |out, path| out.bytes(path.as_os_str().as_bytes()));
                out.option(begin.data_bytes_max, Writer::long);
            }
            Self::Load(model, source) => {
                out.short(*model);
                out.text(&source.name);
                out.long(source.version);
                out.bytes(source.path.as_os_str().as_bytes());
                let engine = EngineKind::ALL.iter().position(|kind| *kind == source.engine);
                out.size(engine.expect("every engine is listed"));
            }
            Self::Open(model, lane) => {
                out.short(*model);
                out.short(u32::from(lane.id.0));
                out.list(&lane.cores.cores().collect::<Vec<_>>(), |out, core| out.size(*core));
                out.byte(u8::from(lane.class == SchedulingClass::Idle));
            }
            Self::KeepWidths(model, widths) => {
                out.short(*model);
                out.list(widths, |out, width| out.size(*width));
            }
            Self::Unload(model) => out.short(*model),
            Self::Run(run) => {
                out.long(run.step.0);
                run.region.write(out);
                out.list(&run.inputs, |out, input| input.write(out));
                out.list(&run.outputs, |out, output| out.size(*output));
            }
            Self::Fetch(region) => region.write(out),
        }
    }

    pub(super) fn read(kind: u8, body: &[u8]) -> Result<Self, Broken> {
        let from = &mut Reader::new(body);
        let path = |from: &mut Reader<'_>| Ok(PathBuf::from(OsStr::from_bytes(from.bytes()?)));
        let order = match kind {
            1 => Self::Begin(Begin {
                parent: from.short()?,
                onnxruntime: from.option(path)?,
                data_bytes_max: from.option(Reader::long)?,
            }),
            2 => {
                let (model, name, version, path) = (from.short()?, from.name()?, from.long()?, path(from)?);
                let engine = EngineKind::ALL.get(from.size()?).copied();
                let engine = engine.ok_or(Broken("an engine does not exist"))?;
                Self::Load(model, Source { name, version, path, engine })
            }
            3 => {
                let (model, id) = (from.short()?, from.short()?);
                let id = LaneId(u16::try_from(id).map_err(|_| Broken("a lane does not exist"))?);
                let cores = CoreSet::from_cores(from.list(Reader::size)?);
                let class = if from.byte()? == 0 { SchedulingClass::Urgent } else { SchedulingClass::Idle };
                Self::Open(model, LaneSpec { id, cores, class })
            }
            4 => Self::KeepWidths(from.short()?, from.list(Reader::size)?),
            5 => Self::Unload(from.short()?),
            6 => Self::Run(Run {
                step: StepId(from.long()?),
                region: Region::read(from)?,
                inputs: from.list(Placed::read)?,
                outputs: from.list(Reader::size)?,
            }),
            7 => Self::Fetch(Region::read(from)?),
            _ => return Err(Broken("an order of this kind does not exist")),
        };
        from.end().map(|()| order)
    }
}

impl Region {
    fn write(self, out: &mut Writer) {
        out.size(self.bytes);
        out.size(self.outputs_at);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Broken> {
        Ok(Self { bytes: from.size()?, outputs_at: from.size()? })
    }
}

impl Placed {
    fn write(&self, out: &mut Writer) {
        out.datatype(self.datatype);
        out.shape(&self.shape);
        out.size(self.offset);
        out.size(self.length);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Broken> {
        let (datatype, shape) = (from.datatype()?, from.shape()?);
        Ok(Self { datatype, shape, offset: from.size()?, length: from.size()? })
    }
}

impl Answer {
    pub(super) const fn kind(&self) -> u8 {
        match self {
            Self::Done(_) => 1,
            Self::Loaded(..) => 2,
            Self::Ran(..) => 3,
            Self::TooLarge(_) => 4,
            Self::Failed(_) => 5,
        }
    }

    pub(super) fn write(&self, out: &mut Writer) {
        match self {
            Self::Done(footprint) => write_footprint(out, *footprint),
            Self::Loaded(spec, footprint) => {
                out.text(&spec.name);
                out.long(spec.version);
                out.text(&spec.platform);
                for tensors in [&spec.inputs, &spec.outputs] {
                    out.list(tensors, write_tensor_spec);
                }
                write_footprint(out, *footprint);
            }
            Self::Ran(outputs, core_time) => {
                out.list(outputs, |out, output| output.write(out));
                out.long(u64::try_from(core_time.as_nanos()).unwrap_or(u64::MAX));
            }
            Self::TooLarge(bytes) => out.size(*bytes),
            Self::Failed(error) => {
                let (kind, text) = match error {
                    EngineError::Load(text) => (0, text.as_str()),
                    EngineError::Input(text) => (1, text.as_str()),
                    EngineError::OutOfMemory(text) => (2, text.as_str()),
                    EngineError::Panicked(text) => (3, text.as_str()),
                    EngineError::Revoked => (4, ""),
                    EngineError::Lost { reason, .. } => (3, reason.as_str()),
                };
                out.byte(kind);
                out.text(text);
            }
        }
    }

    pub(super) fn read(kind: u8, body: &[u8]) -> Result<Self, Broken> {
        let from = &mut Reader::new(body);
        let answer = match kind {
            1 => Self::Done(read_footprint(from)?),
            2 => {
                let spec = ModelSpec {
                    name: from.name()?,
                    version: from.long()?,
                    platform: from.name()?,
                    inputs: from.list(read_tensor_spec)?,
                    outputs: from.list(read_tensor_spec)?,
                    labels: BTreeMap::new(),
                };
                Self::Loaded(Box::new(spec), read_footprint(from)?)
            }
            3 => Self::Ran(from.list(Placed::read)?, Duration::from_nanos(from.long()?)),
            4 => Self::TooLarge(from.size()?),
            5 => {
                let (kind, text) = (from.byte()?, from.text()?);
                Self::Failed(match kind {
                    0 => EngineError::Load(text),
                    1 => EngineError::Input(text),
                    2 => EngineError::OutOfMemory(text),
                    3 => EngineError::Panicked(text),
                    4 => EngineError::Revoked,
                    _ => return Err(Broken("an error of this kind does not exist")),
                })
            }
            _ => return Err(Broken("an answer of this kind does not exist")),
        };
        from.end().map(|()| answer)
    }
}

fn write_footprint(out: &mut Writer, footprint: Footprint) {
    out.long(footprint.weights_bytes);
    out.long(footprint.repacked_bytes);
    out.long(footprint.further_width_bytes);
}

fn read_footprint(from: &mut Reader<'_>) -> Result<Footprint, Broken> {
    Ok(Footprint {
        weights_bytes: from.long()?,
        repacked_bytes: from.long()?,
        further_width_bytes: from.long()?,
    })
}

fn write_tensor_spec(out: &mut Writer, spec: &TensorSpec) {
    out.text(&spec.name);
    out.datatype(spec.datatype);
    out.list(&spec.dims, |out, dim| match dim {
        Dim::Fixed(size) => {
            out.byte(0);
            out.size(*size);
        }
        Dim::Symbol(symbol) => {
            out.byte(1);
            out.text(symbol);
        }
        Dim::Any => out.byte(2),
    });
}

fn read_tensor_spec(from: &mut Reader<'_>) -> Result<TensorSpec, Broken> {
    let dim = |from: &mut Reader<'_>| match from.byte()? {
        0 => Ok(Dim::Fixed(from.size()?)),
        1 => Ok(Dim::Symbol(from.name()?)),
        2 => Ok(Dim::Any),
        _ => Err(Broken("a dimension of this kind does not exist")),
    };
    Ok(TensorSpec { name: from.name()?, datatype: from.datatype()?, dims: from.list(dim)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orders() -> Vec<Order> {
        let placed =
            Placed { datatype: DataType::Fp32, shape: Shape::from_slice(&[1, 4]), offset: 64, length: 16 };
        let region = Region { bytes: 4_096, outputs_at: 128 };
        let cores = CoreSet::from_cores([0, 5]);
        let source =
            Source { name: "m".into(), version: 3, path: "a/b.onnx".into(), engine: EngineKind::Emulated };
        vec![
            Order::Begin(Begin { parent: 77, onnxruntime: Some("lib.so".into()), data_bytes_max: Some(1) }),
            Order::Begin(Begin::default()),
            Order::Load(4, source),
            Order::Open(4, LaneSpec { id: LaneId(2), cores, class: SchedulingClass::Idle }),
            Order::KeepWidths(4, vec![1, 2]),
            Order::Unload(4),
            Order::Run(Run { step: StepId(9), region, inputs: vec![placed], outputs: vec![1, 0] }),
            Order::Fetch(region),
        ]
    }

    fn answers() -> Vec<Answer> {
        let footprint = Footprint { weights_bytes: 1, repacked_bytes: 2, further_width_bytes: 3 };
        let dims = vec![Dim::Symbol("b".into()), Dim::Any, Dim::Fixed(7)];
        let tensor = TensorSpec { name: "x".into(), datatype: DataType::Bytes, dims };
        let spec = ModelSpec {
            name: "m".into(),
            version: 3,
            platform: "emulated".into(),
            inputs: vec![tensor.clone()],
            outputs: vec![tensor.clone(), tensor],
            labels: BTreeMap::new(),
        };
        let placed =
            Placed { datatype: DataType::Bool, shape: Shape::default(), offset: 0, length: usize::MAX };
        let failed = |error: fn(String) -> EngineError| Answer::Failed(error("why".into()));
        vec![
            Answer::Done(footprint),
            Answer::Loaded(Box::new(spec), footprint),
            Answer::Ran(vec![placed], Duration::from_micros(5)),
            Answer::TooLarge(1 << 40),
            failed(EngineError::Load),
            failed(EngineError::Input),
            failed(EngineError::OutOfMemory),
            failed(EngineError::Panicked),
            Answer::Failed(EngineError::Revoked),
        ]
    }

    fn written(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut out = Writer::default();
        write(&mut out);
        out.done()
    }

    #[test]
    fn everything_is_read_as_it_was_written() {
        for order in orders() {
            assert_eq!(Order::read(order.kind(), &written(|out| order.write(out))), Ok(order));
        }
        for answer in answers() {
            assert_eq!(Answer::read(answer.kind(), &written(|out| answer.write(out))), Ok(answer));
        }
    }

    /// Every message cut off at every place, with a byte too many, and with every byte replaced, under every
    /// kind: it is refused or read, and never more.
    #[test]
    fn hostile_bytes_are_survived() {
        for answer in answers() {
            let bytes = written(|out| answer.write(out));
            for end in 0..bytes.len() {
                assert!(Answer::read(answer.kind(), &bytes[..end]).is_err(), "{answer:?} cut at {end}");
            }
            let longer = [&bytes[..], &[0]].concat();
            assert!(Answer::read(answer.kind(), &longer).is_err(), "{answer:?} and a byte");
            for (at, value) in (0..bytes.len()).flat_map(|at| [0, 1, 0x7f, 0xff].map(|value| (at, value))) {
                let mut broken = bytes.clone();
                broken[at] = value;
                for kind in 0..8 {
                    drop(Answer::read(kind, &broken));
                    drop(Order::read(kind, &broken));
                }
            }
        }
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..20_000 {
            let mut bytes = vec![0; random.usize(..200)];
            random.fill(&mut bytes);
            drop(Answer::read(random.u8(..9), &bytes));
            drop(Order::read(random.u8(..9), &bytes));
        }
    }
}
