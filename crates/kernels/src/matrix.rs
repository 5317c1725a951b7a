//! A weight matrix, packed for the product.
//!
//! The file has it row by row, a row being what one output is made of. A vector instruction wants sixteen
//! outputs side by side, so sixteen rows are woven into a *tile*: group after group along the inner
//! dimension, and within a group as `format.rs` says. A tile is read once, from its first byte
//! to its last, and it is as large as in the file.

use std::sync::Arc;

use crate::Encoding;
use crate::format::{self, Format, Line};
use crate::isa::LANES;
use crate::slab::{Lines, Slab};

/// A matrix of `outputs` rows and `inner` columns, for products with rows of `inner` numbers.
#[derive(Debug)]
pub struct Matrix {
    encoding: Encoding,
    outputs: usize,
    inner: usize,
    lines_per_tile: usize,
    lines: Lines,
}

/// Why a matrix cannot be packed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MatrixError {
    /// The inner dimension does not suit the encoding.
    #[error("rows of `{inner}` numbers are not whole blocks of `{}`", .encoding.block())]
    Blocks {
        /// How the numbers are written.
        encoding: Encoding,
        /// Numbers in a row.
        inner: usize,
    },
    /// The bytes are not those of such a matrix.
    #[error("`{found}` bytes are not a matrix of `{outputs}` rows of `{inner}` numbers")]
    Bytes {
        /// How many there are.
        found: usize,
        /// Rows.
        outputs: usize,
        /// Numbers in a row.
        inner: usize,
    },
    /// The slab is full, or there is no memory for one.
    #[error("a packed matrix takes `{wanted}` bytes, and there is no room for it in a slab of `{slab}`")]
    Room {
        /// What it takes.
        wanted: usize,
        /// The slab's size.
        slab: usize,
    },
}

/// Lines of a tile of rows of so many bytes: whole groups.
fn lines_per_tile(encoding: Encoding, row_bytes: usize) -> usize {
    fn of<F: Format>(row_bytes: usize) -> usize {
        row_bytes.div_ceil(F::ROW_BYTES) * F::LINES
    }
    match encoding {
        Encoding::F32 => of::<format::F32>(row_bytes),
        Encoding::F16 => of::<format::F16>(row_bytes),
        Encoding::Bf16 => of::<format::Bf16>(row_bytes),
        Encoding::Q4_0 => of::<format::Q4_0>(row_bytes),
        Encoding::Q4_1 => of::<format::Q4_1>(row_bytes),
        Encoding::Q8_0 => of::<format::Q8_0>(row_bytes),
    }
}

impl Matrix {
    /// Packs `bytes`: `outputs` rows of `inner` numbers, one row after the other, each in blocks along the
    /// row. The packed matrix lies in `slab`.
    ///
    /// # Errors
    /// If a row is not whole blocks, `bytes` has another length, or the slab is full.
    pub fn pack(
        slab: &Arc<Slab>,
        encoding: Encoding,
        outputs: usize,
        inner: usize,
        bytes: &[u8],
    ) -> Result<Self, MatrixError> {
        Self::pack_ordered(slab, encoding, [outputs, inner], bytes, |output| output)
    }

    /// As [`Matrix::pack`], with `row_of` each output's row in `bytes`.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// If `row_of` gives a row that there is not.
    pub fn pack_ordered(
        slab: &Arc<Slab>,
        encoding: Encoding,
        [outputs, inner]: [usize; 2],
        bytes: &[u8],
        row_of: impl Fn(usize) -> usize,
    ) -> Result<Self, MatrixError> {
        let row_bytes = encoding.bytes(inner).ok_or(MatrixError::Blocks { encoding, inner })?;
        if row_bytes.checked_mul(outputs) != Some(bytes.len()) {
            return Err(MatrixError::Bytes { found: bytes.len(), outputs, inner });
        }
        let wanted = Self::packed_bytes(encoding, outputs, inner);
        let lines_per_tile = lines_per_tile(encoding, row_bytes);
        let lines = slab.take(lines_per_tile.saturating_mul(outputs.div_ceil(LANES)));
        let lines = lines.ok_or(MatrixError::Room { wanted, slab: slab.bytes() })?;
        let mut packed = Self { encoding, outputs, inner, lines_per_tile, lines };
        match encoding {
            Encoding::F32 => packed.weave::<format::F32>(bytes, row_of),
            Encoding::F16 => packed.weave::<format::F16>(bytes, row_of),
            Encoding::Bf16 => packed.weave::<format::Bf16>(bytes, row_of),
            Encoding::Q4_0 => packed.weave::<format::Q4_0>(bytes, row_of),
            Encoding::Q4_1 => packed.weave::<format::Q4_1>(bytes, row_of),
            Encoding::Q8_0 => packed.weave::<format::Q8_0>(bytes, row_of),
        }
        Ok(packed)
    }

    /// What a packed matrix takes in memory: as much as in the file, but for the last tile and the last group
    /// of a tile, which are filled up.
    pub fn packed_bytes(encoding: Encoding, outputs: usize, inner: usize) -> usize {
        let row_bytes = encoding.bytes(inner).unwrap_or(0);
        let lines = lines_per_tile(encoding, row_bytes).saturating_mul(outputs.div_ceil(LANES));
        lines.saturating_mul(size_of::<Line>())
    }

    fn weave<F: Format>(&mut self, bytes: &[u8], row_of: impl Fn(usize) -> usize) {
        let row_bytes = bytes.len() / self.outputs.max(1);
        if row_bytes == 0 {
            return;
        }
        for output in 0..self.outputs {
            let row = &bytes[row_of(output) * row_bytes..][..row_bytes];
            let (tile, lane) = (output / LANES, output % LANES);
            let lines = &mut self.lines[tile * self.lines_per_tile..][..self.lines_per_tile];
            // What the last group is not filled with stays zero, and so does what is made of it.
            for (part, group) in row.chunks(F::ROW_BYTES).zip(lines.chunks_exact_mut(F::LINES)) {
                F::weave(part, lane, group);
            }
        }
    }

    /// The numbers of one row, in plain floats.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, output: usize) -> Vec<f32> {
        assert!(output < self.outputs, "a row that the matrix does not have");
        let mut numbers = Vec::with_capacity(self.inner.next_multiple_of(64));
        match self.encoding {
            Encoding::F32 => self.unwoven::<format::F32>(output, &mut numbers),
            Encoding::F16 => self.unwoven::<format::F16>(output, &mut numbers),
            Encoding::Bf16 => self.unwoven::<format::Bf16>(output, &mut numbers),
            Encoding::Q4_0 => self.unwoven::<format::Q4_0>(output, &mut numbers),
            Encoding::Q4_1 => self.unwoven::<format::Q4_1>(output, &mut numbers),
            Encoding::Q8_0 => self.unwoven::<format::Q8_0>(output, &mut numbers),
        }
        numbers.truncate(self.inner);
        numbers
    }

    /// The same matrix in plain floats, in a slab of its own.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn dequantised(&self) -> Result<Self, MatrixError> {
        let (outputs, inner) = (self.outputs, self.inner);
        let wanted = Self::packed_bytes(Encoding::F32, outputs, inner);
        let slab = Slab::new(wanted).map_err(|_| MatrixError::Room { wanted, slab: 0 })?;
        let rows = (0..outputs).flat_map(|output| self.row(output));
        let bytes: Vec<u8> = rows.flat_map(f32::to_le_bytes).collect();
        Self::pack(&slab, Encoding::F32, outputs, inner, &bytes)
    }

    fn unwoven<F: Format>(&self, output: usize, to: &mut Vec<f32>) {
        for group in self.tile(output / LANES).chunks_exact(F::LINES) {
            F::numbers_of(group, output % LANES, &mut |number| to.push(number));
        }
    }

    /// How the numbers are written.
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// Rows of the matrix: numbers that a product gives for each row.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns of the matrix: numbers in a row that it is multiplied with.
    pub fn inner(&self) -> usize {
        self.inner
    }

    /// Tiles of sixteen outputs; the last may be filled in part.
    pub fn tiles(&self) -> usize {
        self.outputs.div_ceil(LANES)
    }

    /// What it takes in memory.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.lines)
    }

    /// The packed groups of one tile.
    #[inline(always)]
    pub(crate) fn tile(&self, tile: usize) -> &[Line] {
        &self.lines[tile * self.lines_per_tile..][..self.lines_per_tile]
    }
}
