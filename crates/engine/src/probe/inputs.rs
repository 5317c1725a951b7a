//! Inputs to try a model out with.
//!
//! Floating-point numbers lie between -1 and 1. 64-bit integers are usually token ids, masks and lengths,
//! for which 0 and 1 are valid; narrower ones are usually bytes and categories, which are tried up to 99
//! first, because some networks lose all precision on inputs of two values. Texts are a few words. The first
//! integer of a row is 1. Rows of different numbers differ; the same row is the same every time.

use std::sync::Arc;

use bytes::Bytes;
use half::{bf16, f16};
use quadrant_types::{AlignedBuffer, DataType, Dim, ModelSpec, Shape, Tensor, element_count};

/// What symbols may stand for, typical numbers of tokens first.
const SIZES: [usize; 8] = [64, 128, 32, 224, 320, 48, 16, 8];
/// The same for pictures: networks want widths that are multiples of 32.
const PIXELS: [usize; 8] = [224, 320, 128, 64, 32, 48, 16, 8];
/// Lengths of the first dimension where it is not a batch but, say, a signal.
const LENGTHS: [usize; 4] = [64, 512, 4096, 16_000];
/// Letters of a text.
const TEXT_BYTES: usize = 64;
/// Bytes of a text that models are tried out with, its length included.
pub const PROBE_TEXT_BYTES: usize = 4 + TEXT_BYTES;
/// Elements of one input; more says nothing new and may take all memory.
const ELEMENTS_MAX: usize = 16 << 20;

/// Shapes for which the model can be asked to compute one row.
#[derive(Clone, Debug)]
pub(super) struct Row {
    shapes: Vec<(DataType, Shape)>,
    /// Integers of less than 64 bits lie below this.
    narrow_below: u64,
    /// Whether the first dimension, where it is open, is 1.
    pub(super) is_one_row: bool,
}

impl Row {
    /// The inputs of the row with this number.
    pub(super) fn tensors(&self, number: u64) -> Vec<Tensor> {
        let mut random = fastrand::Rng::with_seed(number);
        let tensor = |(datatype, shape): &(DataType, Shape)| Tensor {
            datatype: *datatype,
            shape: shape.clone(),
            data: self.elements(*datatype, shape.iter().product(), &mut random),
        };
        self.shapes.iter().map(tensor).collect()
    }

    fn new(spec: &ModelSpec, rows: usize, size: usize, narrow_below: u64) -> Option<Self> {
        let batch = match spec.inputs.first().and_then(|input| input.dims.first()) {
            Some(Dim::Symbol(symbol)) => Some(Arc::clone(symbol)),
            Some(Dim::Fixed(_) | Dim::Any) | None => None,
        };
        let shape = |dims: &[Dim]| -> Shape {
            let dim = |(index, dim): (usize, &Dim)| match dim {
                Dim::Fixed(fixed) => *fixed,
                Dim::Symbol(symbol) if Some(symbol) == batch.as_ref() => rows,
                Dim::Any if index == 0 => rows,
                Dim::Symbol(_) | Dim::Any => size,
            };
            dims.iter().enumerate().map(dim).collect()
        };
        let shapes: Vec<_> = spec.inputs.iter().map(|input| (input.datatype, shape(&input.dims))).collect();
        let small = |shape: &Shape| element_count(shape).is_some_and(|count| count <= ELEMENTS_MAX);
        shapes.iter().all(|(_, shape)| small(shape)).then_some(Self {
            shapes,
            narrow_below,
            is_one_row: rows == 1,
        })
    }

    fn elements(&self, datatype: DataType, count: usize, random: &mut fastrand::Rng) -> Bytes {
        let mut signed = || 2.0 * random.f32() - 1.0;
        let below = if datatype.size() == Some(8) { 2 } else { self.narrow_below };
        match datatype {
            DataType::Fp32 => fill(count, |_| signed().to_le_bytes()),
            DataType::Fp64 => fill(count, |_| f64::from(signed()).to_le_bytes()),
            DataType::Fp16 => fill(count, |_| f16::from_f32(signed()).to_le_bytes()),
            DataType::Bf16 => fill(count, |_| bf16::from_f32(signed()).to_le_bytes()),
            DataType::Bool => integers::<1>(count, 2, random),
            DataType::Uint8 | DataType::Int8 => integers::<1>(count, below, random),
            DataType::Uint16 | DataType::Int16 => integers::<2>(count, below, random),
            DataType::Uint32 | DataType::Int32 => integers::<4>(count, below, random),
            DataType::Uint64 | DataType::Int64 => integers::<8>(count, below, random),
            DataType::Bytes => fill(count, |_| text(random)),
        }
    }
}

/// What to try, in this order.
pub(super) fn candidates(spec: &ModelSpec) -> impl Iterator<Item = Row> {
    let is_picture = spec.inputs.iter().any(|input| input.dims.len() == 4 && is_float(input.datatype));
    let sizes = if is_picture { PIXELS } else { SIZES };
    let one_row = move |below| sizes.into_iter().filter_map(move |size| Row::new(spec, 1, size, below));
    let longer = LENGTHS.into_iter().filter_map(|length| Row::new(spec, length, length.min(320), 2));
    let narrow = spec.inputs.iter().any(|input| {
        let integer = input.datatype.size().is_some_and(|size| size < 8) && !is_float(input.datatype);
        integer && input.datatype != DataType::Bool
    });
    let bytes = narrow.then(|| one_row(100)).into_iter().flatten();
    let mut tried: Vec<(Vec<(DataType, Shape)>, u64)> = Vec::new();
    // A model without symbols has one shape, and one attempt is enough.
    bytes.chain(one_row(2)).chain(longer).filter(move |row| {
        let attempt = (row.shapes.clone(), row.narrow_below);
        let new = !tried.contains(&attempt);
        if new {
            tried.push(attempt);
        }
        new
    })
}

const fn is_float(datatype: DataType) -> bool {
    matches!(datatype, DataType::Fp16 | DataType::Bf16 | DataType::Fp32 | DataType::Fp64)
}

/// Words of random letters, behind their length: what a text of some twenty tokens costs.
fn text(random: &mut fastrand::Rng) -> [u8; PROBE_TEXT_BYTES] {
    let mut text = [b' '; PROBE_TEXT_BYTES];
    text[..4].copy_from_slice(&[TEXT_BYTES as u8, 0, 0, 0]);
    for word in text[4..].chunks_exact_mut(4) {
        word[..3].fill_with(|| random.u8(b'a'..=b'z'));
    }
    text
}

fn integers<const SIZE: usize>(count: usize, below: u64, random: &mut fastrand::Rng) -> Bytes {
    fill(count, |index| -> [u8; SIZE] {
        let number = if index == 0 { 1 } else { random.u64(..below) };
        let bytes = number.to_le_bytes();
        std::array::from_fn(|at| bytes[at])
    })
}

fn fill<const SIZE: usize>(count: usize, mut element: impl FnMut(usize) -> [u8; SIZE]) -> Bytes {
    let mut buffer = AlignedBuffer::new(count * SIZE, 0);
    for index in 0..count {
        let fits = buffer.extend(&element(index));
        debug_assert!(fits, "the buffer was made for these elements");
    }
    buffer.freeze(None)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use quadrant_types::TensorSpec;

    use super::*;

    fn model(inputs: &[(DataType, &[Dim])]) -> ModelSpec {
        let input = |(index, (datatype, dims)): (usize, &(DataType, &[Dim]))| TensorSpec {
            name: index.to_string().into(),
            datatype: *datatype,
            dims: dims.to_vec(),
        };
        let inputs = inputs.iter().enumerate().map(input).collect();
        let (name, platform) = ("m".into(), "test".into());
        ModelSpec { name, version: 1, platform, inputs, outputs: Vec::new(), labels: BTreeMap::new() }
    }

    #[test]
    fn the_first_symbol_is_one_and_the_others_take_sizes() {
        let symbol = |name: &str| Dim::Symbol(name.into());
        let dims = [symbol("b"), Dim::Fixed(3), symbol("s"), Dim::Any];
        let spec = model(&[(DataType::Fp32, &dims), (DataType::Int64, &[symbol("s")])]);
        let rows: Vec<_> = candidates(&spec).collect();
        // All sizes with one row; of the lengths only the first is small enough with this rank.
        assert_eq!(rows.len(), SIZES.len() + 1);
        let shapes =
            |row: &Row| row.tensors(0).into_iter().map(|tensor| tensor.shape.to_vec()).collect::<Vec<_>>();
        assert_eq!(shapes(&rows[0]), [vec![1, 3, 224, 224], vec![224]]);
        assert!(rows[0].is_one_row && !rows[SIZES.len()].is_one_row);
        let fixed = model(&[(DataType::Fp32, &[Dim::Fixed(1), Dim::Fixed(576)])]);
        assert_eq!(candidates(&fixed).count(), 1);
        let huge = model(&[(DataType::Fp32, &[Dim::Fixed(usize::MAX), Dim::Fixed(2)])]);
        assert_eq!(candidates(&huge).count(), 0);
    }

    #[test]
    fn elements_are_valid_and_rows_differ() {
        for datatype in DataType::ALL {
            let shapes = vec![(datatype, Shape::from_slice(&[1, 40]))];
            let row = Row { shapes, narrow_below: 100, is_one_row: true };
            let [tensor] = &row.tensors(7)[..] else { panic!() };
            match datatype.size() {
                Some(size) => assert_eq!(tensor.data.len(), 40 * size),
                None => assert_eq!(tensor.strings().filter(Option::is_some).count(), 40),
            }
            assert_eq!(row.tensors(7), row.tensors(7));
            assert_ne!(row.tensors(7), row.tensors(8));
        }
    }
}
