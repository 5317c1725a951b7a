//! The tensors of a model file, whatever its format: by name, with encoding, shape and bytes.
//!
//! The table checks what holds for every format: that a tensor's bytes are as many as its shape takes, lie
//! within the file and are no other tensor's, and that no two have one name. Types that this engine does not
//! compute with are known by name and size, so that a file may hold them as long as nobody asks for one.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::ops::Range;

use quadrant_kernels::Encoding;
use quadrant_types::{Shape, element_count};

use crate::error::{FileError, Quoted};

/// More tensors no file may have. Those of published models have hundreds, with unmerged experts thousands.
pub(crate) const TENSORS_MAX: usize = 1 << 17;

/// The type of a tensor as its file gives it, which need not be one that is computed with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    pub name: &'static str,
    pub block_elements: usize,
    block_bytes: usize,
    encoding: Option<Encoding>,
}

impl Format {
    pub(crate) const fn computable(encoding: Encoding) -> Self {
        Self {
            name: encoding.name(),
            block_elements: encoding.block(),
            block_bytes: encoding.block_bytes(),
            encoding: Some(encoding),
        }
    }

    /// One that is only known by name and size.
    pub(crate) const fn opaque(name: &'static str, block_elements: usize, block_bytes: usize) -> Self {
        Self { name, block_elements, block_bytes, encoding: None }
    }
}

/// What to do about a type that is not computed with.
pub(crate) fn convert_it() -> String {
    let [rest @ .., last] = Encoding::ALL.map(Encoding::name);
    format!("convert the model to {} or {last}", rest.join(", "))
}

/// A tensor that this engine can compute with, where it lies in the file. It has at least one element.
#[derive(Clone, Copy)]
pub struct TensorView<'t> {
    /// Its name in the file.
    pub name: &'t str,
    /// How its numbers are stored.
    pub encoding: Encoding,
    /// Its dimensions, the outermost first: a matrix is rows, then columns, and neighbours in a row are
    /// neighbours in the file.
    pub shape: &'t [usize],
    /// Its bytes. In a GGUF file they begin at a multiple of its alignment, at least 8; in a safetensors file
    /// anywhere.
    pub bytes: &'t [u8],
    /// Where in the file `bytes` begin, for whoever keeps the file rather than this view.
    pub offset: usize,
}

impl fmt::Debug for TensorView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, encoding, shape, bytes, offset } = self;
        write!(f, "{} {encoding:?} {shape:?}, {} bytes at {offset}", Quoted(name), bytes.len())
    }
}

/// The tensors of a file, by name.
pub struct Tensors<'a> {
    file: &'a [u8],
    tensors: BTreeMap<Cow<'a, str>, Tensor>,
}

struct Tensor {
    shape: Shape,
    format: Format,
    bytes: Range<usize>,
    described_at: usize,
}

/// A tensor as its file describes it, before anything of it is believed.
#[derive(Debug)]
pub(crate) struct Described<'a> {
    pub name: Cow<'a, str>,
    /// The outermost dimension first.
    pub shape: Shape,
    pub format: Format,
    /// Where in the file its bytes begin.
    pub begin: u64,
    /// Where in the file this was read.
    pub at: usize,
}

impl Described<'_> {
    /// How many bytes a tensor of this shape takes.
    pub(crate) fn bytes(&self) -> Result<usize, FileError> {
        let Format { name, block_elements, block_bytes, .. } = self.format;
        let elements =
            element_count(&self.shape).ok_or_else(|| self.malformed("more elements than can be counted"))?;
        if !elements.is_multiple_of(block_elements) {
            let what = format!("`{elements}` elements, and {name} stores `{block_elements}` together");
            return Err(self.malformed(&what));
        }
        (elements / block_elements)
            .checked_mul(block_bytes)
            .ok_or_else(|| self.malformed("more bytes than can be counted"))
    }

    pub(crate) fn malformed(&self, has: &str) -> FileError {
        let what = format!("tensor {} of shape `{:?}` has {has}", Quoted(&self.name), &*self.shape);
        FileError::Malformed { what, offset: self.at }
    }
}

impl<'a> Tensors<'a> {
    /// An empty table of tensors that lie in `file`.
    pub(crate) fn new(file: &'a [u8]) -> Self {
        Self { file, tensors: BTreeMap::new() }
    }

    /// Adds a tensor whose bytes lie within the file and whose name no other has.
    pub(crate) fn insert(&mut self, described: Described<'a>) -> Result<(), FileError> {
        let bytes = described.bytes()?;
        let Described { name, shape, format, begin, at } = described;
        let begin = usize::try_from(begin).unwrap_or(usize::MAX);
        let end = begin.checked_add(bytes).filter(|end| *end <= self.file.len());
        let Some(end) = end else {
            let (what, left) = (format!("tensor {}", Quoted(&name)), self.file.len().saturating_sub(begin));
            return Err(FileError::Truncated { what, offset: begin, needed: bytes as u64, left });
        };
        match self.tensors.entry(name) {
            Entry::Vacant(free) => {
                free.insert(Tensor { shape, format, bytes: begin..end, described_at: at });
                Ok(())
            }
            Entry::Occupied(taken) => {
                let what = format!("two tensors are called {}", Quoted(taken.key()));
                Err(FileError::Malformed { what, offset: at })
            }
        }
    }

    /// The tensors that have bytes, in the order of the file.
    pub(crate) fn in_file_order(&self) -> Vec<(Range<usize>, &str)> {
        let tensors = self.tensors.iter().filter(|(_, tensor)| !tensor.bytes.is_empty());
        let mut found: Vec<_> = tensors.map(|(name, tensor)| (tensor.bytes.clone(), &**name)).collect();
        found.sort_by_key(|(bytes, _)| (bytes.start, bytes.end));
        found
    }

    /// Checks that no byte belongs to two tensors.
    pub(crate) fn check_apart(&self) -> Result<(), FileError> {
        let found = self.in_file_order();
        for ((bytes, name), (next, next_name)) in found.iter().zip(found.iter().skip(1)) {
            if next.start < bytes.end {
                let what = format!("tensors {} and {} overlap", Quoted(name), Quoted(next_name));
                return Err(FileError::Malformed { what, offset: next.start });
            }
        }
        Ok(())
    }

    /// How many there are, those included that cannot be computed with.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether the file has none.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The names of all, in alphabetical order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.keys().map(|name| &**name)
    }

    /// The tensor called `name`.
    ///
    /// # Errors
    /// [`FileError::Missing`] if there is none, [`FileError::Unsupported`] if it is of a type that is not
    /// computed with, or has no elements.
    pub fn get(&self, name: &str) -> Result<TensorView<'_>, FileError> {
        let found = self.tensors.get_key_value(name);
        let missing = || FileError::Missing { what: format!("tensor {}", Quoted(name)) };
        let (name, Tensor { shape, format, bytes, described_at: offset }) = found.ok_or_else(missing)?;
        let unsupported = |what: String, instead: String| {
            let what = format!("tensor {} {what}", Quoted(name));
            FileError::Unsupported { what, offset: *offset, instead }
        };
        let Some(encoding) = format.encoding else {
            let what = format!("is `{}`, which is not computed with", format.name);
            return Err(unsupported(what, convert_it()));
        };
        if bytes.is_empty() {
            let what = format!("has the shape `{:?}`, so it is empty", &**shape);
            return Err(unsupported(what, "convert the model again".into()));
        }
        Ok(TensorView { name, encoding, shape, bytes: &self.file[bytes.clone()], offset: bytes.start })
    }
}

impl fmt::Debug for Tensors<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(name: &'static str, shape: &[usize], format: Format, begin: u64) -> Described<'static> {
        Described { name: name.into(), shape: Shape::from_slice(shape), format, begin, at: 7 }
    }

    #[test]
    fn sizes_follow_from_shapes() {
        const BF16: Format = Format::computable(Encoding::Bf16);
        const Q4_0: Format = Format::computable(Encoding::Q4_0);
        for (shape, format, expect) in [
            (&[2, 3][..], BF16, Ok(12)),
            (&[], BF16, Ok(2)),
            (&[0, 3], BF16, Ok(0)),
            (&[2, 64], Q4_0, Ok(72)),
            (&[2, 33], Q4_0, Err("`66` elements, and Q4_0 stores `32` together")),
            (&[], Q4_0, Err("`1` elements")),
            (&[usize::MAX, 2], BF16, Err("more elements")),
            (&[usize::MAX], BF16, Err("more bytes")),
        ] {
            match (described("a", shape, format, 0).bytes(), expect) {
                (Ok(bytes), Ok(expect)) => assert_eq!(bytes, expect, "{shape:?}"),
                (Err(FileError::Malformed { what, offset: 7 }), Err(part)) => {
                    assert!(what.contains(part), "{what}");
                }
                (other, _) => panic!("{shape:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_tensor_lies_within_the_file() {
        const F32: Format = Format::computable(Encoding::F32);
        let file = [0; 16];
        for (begin, expect) in [(0, None), (8, None), (9, Some(7)), (17, Some(0)), (u64::MAX, Some(0))] {
            let result = Tensors::new(&file).insert(described("a", &[2], F32, begin));
            match (result, expect) {
                (Ok(()), None) => {}
                (Err(FileError::Truncated { needed: 8, left, .. }), Some(expect)) => assert_eq!(left, expect),
                (other, _) => panic!("{begin}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_is_not_computed_with_is_only_refused_when_asked_for() {
        let file = [0; 16];
        let mut tensors = Tensors::new(&file);
        tensors.insert(described("ids", &[1], Format::opaque("I64", 1, 8), 0)).unwrap();
        tensors.insert(described("none", &[3, 0], Format::computable(Encoding::F16), 4)).unwrap();
        tensors.insert(described("norm", &[2], Format::computable(Encoding::F32), 8)).unwrap();
        tensors.check_apart().unwrap();
        assert_eq!(tensors.names().collect::<Vec<_>>(), ["ids", "none", "norm"]);
        for (name, expect) in [
            (
                "ids",
                "tensor `ids` is `I64`, which is not computed with (at byte `7`); convert the model to F32, F16, \
                 BF16, Q4_0, Q4_1 or Q8_0",
            ),
            (
                "none",
                "tensor `none` has the shape `[3, 0]`, so it is empty (at byte `7`); convert the model again",
            ),
            ("other", "the file has no tensor `other`; it is incomplete or of another architecture"),
        ] {
            assert_eq!(tensors.get(name).unwrap_err().to_string(), expect);
        }
        assert_eq!(format!("{:?}", tensors.get("norm").unwrap()), "`norm` F32 [2], 8 bytes at 8");
    }
}
