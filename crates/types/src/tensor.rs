//! Tensors: a data type, a shape, and bytes that somebody else may own.
//!
//! Elements are little-endian and row-major. `BYTES` elements are stored as they travel: each is a
//! 32-bit little-endian length followed by that many bytes, so a tensor of strings passes through
//! without being taken apart.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use smallvec::SmallVec;

/// The dimensions of a concrete tensor. Six fit without a heap allocation.
pub type Shape = SmallVec<[usize; 6]>;

/// The element types of the Open Inference Protocol, with Triton's `BF16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names are the documentation")]
pub enum DataType {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Bf16,
    Fp32,
    Fp64,
    Bytes,
}

impl DataType {
    /// Every type, for tables and tests.
    pub const ALL: [Self; 14] = [
        Self::Bool,
        Self::Uint8,
        Self::Uint16,
        Self::Uint32,
        Self::Uint64,
        Self::Int8,
        Self::Int16,
        Self::Int32,
        Self::Int64,
        Self::Fp16,
        Self::Bf16,
        Self::Fp32,
        Self::Fp64,
        Self::Bytes,
    ];

    /// The protocol's name, such as `FP32`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::Uint8 => "UINT8",
            Self::Uint16 => "UINT16",
            Self::Uint32 => "UINT32",
            Self::Uint64 => "UINT64",
            Self::Int8 => "INT8",
            Self::Int16 => "INT16",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Fp16 => "FP16",
            Self::Bf16 => "BF16",
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
            Self::Bytes => "BYTES",
        }
    }

    /// Bytes per element; `None` for `BYTES`, whose elements vary.
    pub const fn size(self) -> Option<usize> {
        match self {
            Self::Bool | Self::Uint8 | Self::Int8 => Some(1),
            Self::Uint16 | Self::Int16 | Self::Fp16 | Self::Bf16 => Some(2),
            Self::Uint32 | Self::Int32 | Self::Fp32 => Some(4),
            Self::Uint64 | Self::Int64 | Self::Fp64 => Some(8),
            Self::Bytes => None,
        }
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DataType {
    type Err = ();

    /// The type with this protocol name.
    fn from_str(name: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|datatype| datatype.name() == name).ok_or(())
    }
}

/// A tensor: its bytes may be part of a request's body, of an engine's output, or of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// The element type.
    pub datatype: DataType,
    /// The dimensions.
    pub shape: Shape,
    /// The elements, little-endian and row-major.
    pub data: Bytes,
}

impl Tensor {
    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The `BYTES` elements one after the other, or `None` at the first whose length does not fit.
    ///
    /// Only for [`DataType::Bytes`].
    pub fn strings(&self) -> impl Iterator<Item = Option<&[u8]>> {
        let mut rest: Option<&[u8]> = Some(&self.data);
        std::iter::from_fn(move || {
            let bytes = rest.take()?;
            if bytes.is_empty() {
                return None;
            }
            let Some((length, tail)) = bytes.split_first_chunk::<4>() else { return Some(None) };
            let length = u32::from_le_bytes(*length) as usize;
            let Some(element) = tail.get(..length) else { return Some(None) };
            rest = Some(&tail[length..]);
            Some(Some(element))
        })
    }
}

/// The number of elements of a shape, or `None` where it overflows.
pub fn element_count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1_usize, |count, dim| count.checked_mul(*dim))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for datatype in DataType::ALL {
            assert_eq!(datatype.name().parse(), Ok(datatype));
        }
        assert_eq!("FP33".parse::<DataType>(), Err(()));
    }

    #[test]
    fn strings_stop_at_the_first_lie() {
        let tensor = |data: &'static [u8]| Tensor {
            datatype: DataType::Bytes,
            shape: Shape::from_slice(&[2]),
            data: Bytes::from_static(data),
        };
        let good = tensor(b"\x01\0\0\0a\0\0\0\0");
        assert_eq!(good.strings().collect::<Vec<_>>(), [Some(&b"a"[..]), Some(&b""[..])]);
        assert_eq!(tensor(b"\x02\0\0\0a").strings().collect::<Vec<_>>(), [None]);
        assert_eq!(tensor(b"\x02\0").strings().collect::<Vec<_>>(), [None]);
    }

    #[test]
    fn element_counts_do_not_overflow() {
        assert_eq!(element_count(&[2, 3]), Some(6));
        assert_eq!(element_count(&[]), Some(1));
        assert_eq!(element_count(&[usize::MAX, 2]), None);
    }
}
