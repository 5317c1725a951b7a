//! The product of rows and a packed matrix.
//!
//! One tile (sixteen outputs) and up to eight rows at a time: a group of the tile is unpacked into registers
//! once and used for every row; with more rows the compiler no longer keeps their sums in registers. A single
//! row is bound by reading the matrix; from about eight rows on the dot products are what it takes, eight of
//! eleven vector operations per row and block.
//!
//! Each output is the sum over the blocks, in their order, of `scale * (bytes . bytes)`, the dot product
//! being exact; see [`QuantisedTile`] for the operations that are rounded.

use std::marker::PhantomData;

use crate::cpu::{Cpu, Kernel};
use crate::format::{self, Dots, Float, Line, Quantised};
use crate::isa::Isa;
use crate::rows::{Piece, Rows};
use crate::tiles::{TILE, TilesPart};
use crate::{Encoding, Matrix};

/// Multiplies `rows` with some matrices, whose outputs follow each other in `out` (each in whole tiles), and
/// writes the results, or adds them to what is there. Only what `out` is a part of is computed.
///
/// # Panics
/// If a matrix has another inner dimension than the rows, or `out` another number of rows or more tiles than
/// the matrices together.
pub fn multiply(cpu: Cpu, matrices: &[&Matrix], rows: &Rows, out: TilesPart<'_>, add: bool) {
    assert_eq!(out.rows, rows.count(), "room for another number of rows");
    let (mut first, mut out) = (0, out);
    for matrix in matrices {
        assert_eq!(matrix.inner(), rows.inner(), "a matrix and rows of another length");
        let end = first + matrix.tiles();
        let own = end.min(out.range.end).saturating_sub(out.range.start);
        let (mut part, rest) = out.split(own);
        if rows.count() > 0 && own > 0 {
            part.range = part.range.start - first..part.range.end - first;
            cpu.run(Multiply { matrix, rows, out: part, add });
        }
        (first, out) = (end, rest);
    }
    assert!(out.range.is_empty(), "tiles that no matrix has");
}

struct Multiply<'a> {
    matrix: &'a Matrix,
    rows: &'a Rows,
    out: TilesPart<'a>,
    add: bool,
}

impl Kernel for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        match self.matrix.encoding() {
            Encoding::F32 => self.all::<I, FloatTile<format::F32>>(isa),
            Encoding::F16 => self.all::<I, FloatTile<format::F16>>(isa),
            Encoding::Bf16 => self.all::<I, FloatTile<format::Bf16>>(isa),
            Encoding::Q4_0 => self.all::<I, QuantisedTile<format::Q4_0>>(isa),
            Encoding::Q4_1 => self.all::<I, QuantisedTile<format::Q4_1>>(isa),
            Encoding::Q8_0 => self.all::<I, QuantisedTile<format::Q8_0>>(isa),
        }
    }
}

impl Multiply<'_> {
    /// A tile stays in the first cache while all rows pass.
    #[inline(always)]
    fn all<I: Isa, T: TileProduct>(mut self, isa: I) {
        let count = self.rows.count();
        for (tile, out) in self.out.tiles() {
            let lines = self.matrix.tile(tile);
            let mut first = 0;
            while first < count {
                let some = Share { lines, rows: self.rows, first, out: &mut out[first..], add: self.add };
                first += match count - first {
                    8.. if I::REGISTERS >= 32 => T::multiply::<I, 8>(isa, some),
                    4.. => T::multiply::<I, 4>(isa, some),
                    2.. => T::multiply::<I, 2>(isa, some),
                    _ => T::multiply::<I, 1>(isa, some),
                };
            }
        }
    }
}

/// One tile, and the rows from `first` on.
struct Share<'a> {
    lines: &'a [Line],
    rows: &'a Rows,
    first: usize,
    out: &'a mut [[f32; TILE]],
    add: bool,
}

impl Share<'_> {
    /// Writes the results of `N` rows; gives `N`.
    #[inline(always)]
    fn store<I: Isa, const N: usize>(self, isa: I, sums: &[I::Floats; N]) -> usize {
        let out: &mut [[f32; TILE]; N] = self.out.first_chunk_mut().expect("room for the rows that are left");
        for (sum, out) in sums.iter().zip(out) {
            let sum = if self.add { isa.add(isa.load(out), *sum) } else { *sum };
            isa.store(sum, out);
        }
        N
    }
}

/// The product of one tile with a few rows.
trait TileProduct {
    /// Multiplies the first `N` of the rows and writes one result for each; gives `N`.
    fn multiply<I: Isa, const N: usize>(isa: I, some: Share<'_>) -> usize;
}

struct QuantisedTile<F>(PhantomData<F>);

impl<F: Quantised> TileProduct for QuantisedTile<F> {
    #[inline(always)]
    fn multiply<I: Isa, const N: usize>(isa: I, some: Share<'_>) -> usize {
        let mut sums = [isa.splat(0.0); N];
        for (index, group) in some.lines.chunks_exact(F::LINES).enumerate() {
            for block in 0..F::BLOCKS {
                let bytes = F::bytes(isa, group, block);
                let scales = F::scales(isa, group, block);
                let minima = F::minima(isa, group, block);
                let pieces: &[Piece; N] = some.rows.pieces(index * F::BLOCKS + block, some.first);
                // Row by row within each step: a dot product waits for the one before it.
                let mut dots = [F::Dots::begin(isa, F::start(isa, 0)); N];
                for (dots, piece) in dots.iter_mut().zip(pieces) {
                    *dots = F::Dots::begin(isa, F::start(isa, piece.offset));
                }
                for (four, bytes) in bytes.iter().enumerate() {
                    for (dots, piece) in dots.iter_mut().zip(pieces) {
                        *dots = F::Dots::dot(isa, *dots, *bytes, piece.values[four]);
                    }
                }
                for ((sum, dots), piece) in sums.iter_mut().zip(&dots).zip(pieces) {
                    let whole = F::Dots::end(isa, *dots, F::start(isa, piece.offset));
                    let scaled = isa.mul(isa.to_floats(whole), scales);
                    *sum = isa.mul_add(scaled, isa.splat(piece.scale), *sum);
                    if F::HAS_MINIMUM {
                        *sum = isa.mul_add(minima, isa.splat(piece.sum), *sum);
                    }
                }
            }
        }
        some.store(isa, &sums)
    }
}

struct FloatTile<F>(PhantomData<F>);

impl<F: Float> TileProduct for FloatTile<F> {
    #[inline(always)]
    fn multiply<I: Isa, const N: usize>(isa: I, some: Share<'_>) -> usize {
        let mut sums = [isa.splat(0.0); N];
        for (tile, groups) in some.lines.chunks(F::LINES * TILE / F::COUNT).enumerate() {
            let rows: &[[f32; TILE]; N] = some.rows.floats(tile, some.first);
            for (index, group) in groups.chunks_exact(F::LINES).enumerate() {
                for number in 0..F::COUNT {
                    let weights = F::numbers(isa, group, number);
                    for (sum, row) in sums.iter_mut().zip(rows) {
                        *sum = isa.mul_add(weights, isa.splat(row[index * F::COUNT + number]), *sum);
                    }
                }
            }
        }
        some.store(isa, &sums)
    }
}
