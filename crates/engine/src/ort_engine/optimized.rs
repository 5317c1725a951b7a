//! A model as ONNX Runtime computes it on this machine, once in memory for sessions of all widths.
//!
//! The library writes the optimised graph and its weights into a folder of ours; the weights are read into
//! memory and their file is emptied. The folder stays as long as the model, because the graph refers to
//! the file: one that is gone is an error even where every weight is given, and one that is empty makes a
//! weight that was *not* given an error, never wrong numbers.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost::Message;
use quadrant_sys::onnx_runtime::{Runtime, RuntimeError, SharedWeights};
use quadrant_types::{AlignedBuffer, Shape, Tensor};
use tempfile::TempDir;

use crate::onnx::datatype;

mod proto {
    #![expect(unreachable_pub, reason = "generated")]
    include!(concat!(env!("OUT_DIR"), "/onnx_weights.rs"));
}

/// An optimised graph with the weights for it.
#[derive(Debug)]
pub(super) struct Optimized {
    pub(super) graph: PathBuf,
    pub(super) weights: Arc<SharedWeights>,
    /// Removed on drop.
    _folder: TempDir,
}

/// Why a model cannot be shared. Each of its sessions then has its own weights.
#[derive(Debug, thiserror::Error)]
pub(super) enum OptimizeError {
    #[error("{0}")]
    Runtime(#[from] RuntimeError),
    #[error("its optimised form cannot be kept for a moment: {0}")]
    Folder(#[from] io::Error),
    #[error("its optimised form is not understood: {0}")]
    Form(String),
}

impl Optimized {
    pub(super) fn new(runtime: &Runtime, path: &Path) -> Result<Self, OptimizeError> {
        let folder = tempfile::Builder::new().prefix("quadrant-").tempdir()?;
        let [graph, weights] = SharedWeights::write(runtime, path, folder.path())?;
        let read = read(&graph, &weights)?;
        File::create(weights)?;
        Ok(Self { graph, weights: SharedWeights::new(read)?, _folder: folder })
    }
}

/// The weights that lie beside the graph, by name. What the graph itself holds is left to it.
fn read(graph: &Path, weights: &Path) -> Result<Vec<(String, Tensor)>, OptimizeError> {
    let form = |what: String| OptimizeError::Form(what);
    let model = proto::ModelProto::decode(&*fs::read(graph)?).map_err(|error| form(error.to_string()))?;
    let initializers = model.graph.ok_or_else(|| form("it has no graph".into()))?.initializer;
    // Without weights beside it the library writes no file.
    let mut beside = initializers.into_iter().filter(|tensor| !tensor.external_data.is_empty()).peekable();
    if beside.peek().is_none() {
        File::create(weights)?;
    }
    let file = File::open(weights)?;
    let bytes_max = file.metadata()?.len();
    beside
        .map(|tensor| {
            let (start, length) = place(&tensor, bytes_max)
                .ok_or_else(|| form(format!("`{}` lies outside of its file", tensor.name)))?;
            let unknown = || form(format!("`{}` has an unknown type or shape", tensor.name));
            let dims = tensor.dims.iter().map(|dim| usize::try_from(*dim).ok());
            Ok((
                tensor.name.clone(),
                Tensor {
                    datatype: datatype(tensor.data_type).ok_or_else(unknown)?,
                    shape: dims.collect::<Option<Shape>>().ok_or_else(unknown)?,
                    data: aligned(&file, start, length)?,
                },
            ))
        })
        .collect()
}

/// Where in its file a weight lies, and its bytes.
fn place(tensor: &proto::TensorProto, bytes_max: u64) -> Option<(u64, usize)> {
    let entry = |key: &str| tensor.external_data.iter().find(|entry| entry.key == key);
    let start = entry("offset").map_or(Some(0), |entry| entry.value.parse::<u64>().ok())?;
    let length = entry("length")?.value.parse::<u64>().ok()?;
    let fits = start.checked_add(length).is_some_and(|end| end <= bytes_max);
    fits.then_some((start, usize::try_from(length).ok()?))
}

/// Part of a file, aligned as an engine wants its tensors.
fn aligned(file: &File, start: u64, length: usize) -> io::Result<bytes::Bytes> {
    const PIECE: usize = 1 << 20;
    let mut buffer = AlignedBuffer::new(length, 0);
    let mut piece = vec![0; PIECE.min(length)];
    while buffer.len() < length {
        let piece = &mut piece[..PIECE.min(length - buffer.len())];
        file.read_exact_at(piece, start + buffer.len() as u64)?;
        let fits = buffer.extend(piece);
        debug_assert!(fits, "the buffer was made for these bytes");
    }
    Ok(buffer.freeze(None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_must_lie_within_its_file() {
        let check = |entries: &[(&str, &str)], expect| {
            let entry = |(key, value): &(&str, &str)| proto::StringStringEntryProto {
                key: (*key).into(),
                value: (*value).into(),
            };
            let external_data = entries.iter().map(entry).collect();
            let tensor = proto::TensorProto { external_data, ..Default::default() };
            assert_eq!(place(&tensor, 100), expect, "{entries:?}");
        };
        check(&[("offset", "64"), ("length", "36")], Some((64, 36)));
        check(&[("length", "100")], Some((0, 100)));
        check(&[("offset", "64"), ("length", "37")], None);
        check(&[("offset", "18446744073709551615"), ("length", "2")], None);
        check(&[("offset", "-1"), ("length", "2")], None);
        check(&[("offset", "0")], None);
    }

    #[test]
    fn bytes_are_those_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        let bytes: Vec<u8> = (0..3 << 20).map(|index: u32| (index % 251) as u8).collect();
        fs::write(&path, &bytes).unwrap();
        let file = File::open(&path).unwrap();
        for (start, length) in [(0, 0), (1, 5), (7, (2 << 20) + 3)] {
            let read = aligned(&file, start as u64, length).unwrap();
            assert_eq!(read, bytes[start..start + length]);
            assert!(read.is_empty() || read.as_ptr().align_offset(64) == 0);
        }
        assert!(aligned(&file, 3 << 20, 1).is_err());
    }
}
