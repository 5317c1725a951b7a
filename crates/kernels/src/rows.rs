//! The rows that a matrix is multiplied with.
//!
//! For a quantised matrix they are quantised too, as ggml does it (`quantize_row_q8_1`): 32 numbers share a
//! scale, the largest magnitude over 127, and become signed bytes. The scale stays an `f32` here. A row is
//! quantised by itself, so it does not matter which others there are.
//!
//! `[block][row]`, a block being 32 columns: what a step of a product wants of neighbouring rows lies
//! together, and cores that share the columns write next to each other.

use std::ops::Range;

use crate::Encoding;
use crate::cpu::{Cpu, Kernel};
use crate::isa::{Isa, LANES};
use crate::tiles::{TILE, Tiles};

/// Numbers that share a scale: two tiles.
pub(crate) const BLOCK: usize = 2 * TILE;

/// Rows of a fixed length, in the forms that the matrices want that they are multiplied with.
#[derive(Debug)]
pub struct Rows {
    count: usize,
    inner: usize,
    has_floats: bool,
    has_pieces: bool,
    /// `[tile][row]`, if there is a matrix of floats.
    floats: Vec<[f32; TILE]>,
    /// `[block][row]`, if there is a quantised matrix.
    pieces: Vec<Piece>,
}

/// Some of the columns of all rows, to be written.
#[derive(Debug)]
pub struct RowsPart<'a> {
    count: usize,
    blocks: Range<usize>,
    floats: &'a mut [[f32; TILE]],
    pieces: &'a mut [Piece],
}

/// 32 numbers of one row, quantised: `scale * values`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Piece {
    pub(crate) values: [[i8; 4]; BLOCK / 4],
    pub(crate) scale: f32,
    /// `scale` times the sum of the values, for a matrix that has minima.
    pub(crate) sum: f32,
    /// The sum of the values, negated, for a matrix whose bytes were made unsigned.
    pub(crate) offset: i32,
}

impl Piece {
    const ZERO: Self = Self { values: [[0; 4]; BLOCK / 4], scale: 0.0, sum: 0.0, offset: 0 };
}

impl Rows {
    /// Room for rows of `inner` numbers that matrices of these encodings are multiplied with.
    pub fn new(inner: usize, encodings: impl IntoIterator<Item = Encoding>) -> Self {
        let (mut has_floats, mut has_pieces) = (false, false);
        for encoding in encodings {
            has_pieces |= encoding.is_quantised();
            has_floats |= !encoding.is_quantised();
        }
        Self { count: 0, inner, has_floats, has_pieces, floats: Vec::new(), pieces: Vec::new() }
    }

    /// Makes it `count` rows, which the caller will write. Keeps the memory of the most rows there were.
    pub fn resize(&mut self, count: usize) {
        self.count = count;
        let all = count * self.blocks();
        self.floats.resize(if self.has_floats { 2 * all } else { 0 }, [0.0; TILE]);
        self.pieces.resize(if self.has_pieces { all } else { 0 }, Piece::ZERO);
    }

    /// How many rows there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Numbers in a row.
    pub fn inner(&self) -> usize {
        self.inner
    }

    /// Blocks of 32 columns. An even number: a group of a matrix may hold two, the last of which may be
    /// beyond the end of the rows, and is zero.
    pub fn blocks(&self) -> usize {
        self.inner.div_ceil(BLOCK).next_multiple_of(2)
    }

    /// All of them, to be written.
    pub fn all(&mut self) -> RowsPart<'_> {
        let blocks = 0..self.blocks();
        RowsPart { count: self.count, blocks, floats: &mut self.floats, pieces: &mut self.pieces }
    }

    /// One block of `N` neighbouring rows.
    #[inline(always)]
    pub(crate) fn pieces<const N: usize>(&self, block: usize, first: usize) -> &[Piece; N] {
        let pieces = &self.pieces[block * self.count + first..];
        pieces.first_chunk().expect("the caller asks for rows that there are")
    }

    /// One tile of `N` neighbouring rows.
    #[inline(always)]
    pub(crate) fn floats<const N: usize>(&self, tile: usize, first: usize) -> &[[f32; TILE]; N] {
        let floats = &self.floats[tile * self.count + first..];
        floats.first_chunk().expect("the caller asks for rows that there are")
    }
}

impl RowsPart<'_> {
    /// How many rows there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Which blocks of 32 columns these are.
    pub fn blocks(&self) -> Range<usize> {
        self.blocks.clone()
    }

    /// The first `blocks` of them, and the rest.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn split(self, blocks: usize) -> (Self, Self) {
        let all = self.blocks.len();
        let at = self.blocks.start + blocks;
        let (low, high) = self.floats.split_at_mut(self.floats.len() / all.max(1) * blocks);
        let (first, second) = self.pieces.split_at_mut(self.pieces.len() / all.max(1) * blocks);
        let count = self.count;
        let low = Self { count, blocks: self.blocks.start..at, floats: low, pieces: first };
        (low, Self { count, blocks: at..self.blocks.end, floats: high, pieces: second })
    }

    /// In `count` parts of about the same size.
    pub fn cut(self, count: usize) -> Vec<Self> {
        let blocks = self.blocks.len();
        let mut rest = self;
        let mut parts = Vec::with_capacity(count);
        for index in 1..=count {
            let (part, after) = rest.split(blocks * index / count - blocks * (index - 1) / count);
            parts.push(part);
            rest = after;
        }
        parts
    }

    /// Writes every block of every row.
    #[inline(always)]
    pub(crate) fn fill<I: Isa, S: Source>(self, isa: I, source: &S) {
        let Self { count, blocks, floats, pieces } = self;
        let start = blocks.start;
        for block in blocks {
            for row in 0..count {
                let values = source.block(isa, block, row);
                let at = block - start;
                if !pieces.is_empty() {
                    pieces[at * count + row] = quantised(isa, values);
                }
                if !floats.is_empty() {
                    isa.store(values[0], &mut floats[2 * at * count + row]);
                    isa.store(values[1], &mut floats[(2 * at + 1) * count + row]);
                }
            }
        }
    }
}

/// What rows are made of. A trait and not a closure, as nothing makes a closure be inlined (see
/// [`Kernel`]).
pub(crate) trait Source {
    /// One block of one row, as two tiles; zero beyond the end of the row. `#[inline(always)]`.
    fn block<I: Isa>(&self, isa: I, block: usize, row: usize) -> [I::Floats; 2];
}

/// Writes rows that lie one after the other, `inner` numbers each; what is beyond their end is zero.
///
/// # Panics
/// If there are not as many as the part has.
pub fn copy(cpu: Cpu, values: &[f32], inner: usize, part: RowsPart<'_>) {
    assert_eq!(values.len(), part.count * inner, "another number of rows");
    cpu.run(Fill { from: Lines { values, inner }, out: part });
}

/// Writes rows that are there as tiles.
///
/// # Panics
/// If there are not as many as the part has.
pub fn copy_tiles(cpu: Cpu, values: &Tiles, part: RowsPart<'_>) {
    assert_eq!(values.rows(), part.count, "another number of rows");
    cpu.run(Fill { from: OfTiles { values }, out: part });
}

/// Fills rows from a source.
pub(crate) struct Fill<'a, S> {
    pub(crate) from: S,
    pub(crate) out: RowsPart<'a>,
}

impl<S: Source> Kernel for Fill<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        self.out.fill(isa, &self.from);
    }
}

struct OfTiles<'a> {
    values: &'a Tiles,
}

impl Source for OfTiles<'_> {
    #[inline(always)]
    fn block<I: Isa>(&self, isa: I, block: usize, row: usize) -> [I::Floats; 2] {
        block_of(isa, self.values, block, row)
    }
}

/// Rows that lie one after the other.
struct Lines<'a> {
    values: &'a [f32],
    inner: usize,
}

impl Source for Lines<'_> {
    #[inline(always)]
    fn block<I: Isa>(&self, isa: I, block: usize, row: usize) -> [I::Floats; 2] {
        let row = &self.values[row * self.inner..][..self.inner];
        let rest = row.get(block * BLOCK..).unwrap_or_default();
        if let Some(whole) = rest.first_chunk::<BLOCK>() {
            return load(isa, whole);
        }
        let mut padded = [0.0; BLOCK];
        padded[..rest.len()].copy_from_slice(rest);
        load(isa, &padded)
    }
}

#[inline(always)]
fn load<I: Isa>(isa: I, values: &[f32; BLOCK]) -> [I::Floats; 2] {
    let (tiles, _) = values.as_chunks::<TILE>();
    [isa.load(&tiles[0]), isa.load(&tiles[1])]
}

/// One block of one row of `tiles`; what is beyond its end is zero.
#[inline(always)]
pub(crate) fn block_of<I: Isa>(isa: I, tiles: &Tiles, block: usize, row: usize) -> [I::Floats; 2] {
    let mut values = [isa.splat(0.0); 2];
    for (half, value) in values.iter_mut().enumerate() {
        if 2 * block + half < tiles.tiles() {
            *value = isa.load(&tiles.tile(2 * block + half)[row]);
        }
    }
    values
}

#[inline(always)]
fn quantised<I: Isa>(isa: I, [low, high]: [I::Floats; 2]) -> Piece {
    let largest = isa.largest(isa.max(isa.abs(low), isa.abs(high)));
    let scale = largest / 127.0;
    // A block whose scale is below the smallest normal number is as good as zero, and its inverse may be
    // infinite.
    let inverse = if scale >= f32::MIN_POSITIVE && scale.is_finite() { 1.0 / scale } else { 0.0 };
    let inverse = isa.splat(inverse);
    let low = isa.round(isa.mul(low, inverse));
    let high = isa.round(isa.mul(high, inverse));
    let bytes: [[i8; LANES]; 2] = [isa.to_i8(low), isa.to_i8(high)];
    let (fours, _) = bytes.as_flattened().as_chunks::<4>();
    let values = std::array::from_fn(|index| fours[index]);
    let sum = isa.sum_of_whole(isa.add(low, high));
    // At most 32 times 127, so it is exact as either.
    Piece { values, scale, sum: scale * sum, offset: -(sum as i32) }
}
