//! Activations: rows of floats, sixteen columns at a time.
//!
//! `[tile][row][16]`, a tile being sixteen columns. A range of tiles is one piece of memory, so cores that
//! share the columns of a product write next to each other without a lock; and sixteen columns are one
//! vector.

use std::ops::Range;

use crate::isa::LANES;

/// Columns in a tile.
pub const TILE: usize = LANES;

/// Rows of floats.
#[derive(Debug, Default)]
pub struct Tiles {
    rows: usize,
    columns: usize,
    values: Vec<[f32; TILE]>,
}

/// Some of the tiles, to be written.
#[derive(Debug)]
pub struct TilesPart<'a> {
    pub(crate) rows: usize,
    /// Which tiles these are.
    pub(crate) range: Range<usize>,
    pub(crate) values: &'a mut [[f32; TILE]],
}

impl Tiles {
    /// Makes it `rows` rows of `columns` numbers, which are not initialised again: what was there is
    /// somewhere in it. Columns are rounded up to whole tiles, and who writes a row writes zeros beyond its
    /// end. Keeps the memory of the largest size there was.
    pub fn resize(&mut self, rows: usize, columns: usize) {
        self.rows = rows;
        self.columns = columns;
        self.values.resize(self.rows * self.tiles(), [0.0; TILE]);
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How many tiles there are.
    #[inline(always)]
    pub fn tiles(&self) -> usize {
        self.columns.div_ceil(TILE)
    }

    /// One tile of all rows.
    #[inline(always)]
    pub fn tile(&self, tile: usize) -> &[[f32; TILE]] {
        &self.values[tile * self.rows..][..self.rows]
    }

    /// One number.
    pub fn at(&self, row: usize, column: usize) -> f32 {
        self.tile(column / TILE)[row][column % TILE]
    }

    /// The numbers of one row.
    pub fn row(&self, row: usize) -> impl Iterator<Item = f32> {
        (0..self.tiles()).flat_map(move |tile| self.tile(tile)[row]).take(self.columns)
    }

    /// All of it, to be written.
    pub fn all(&mut self) -> TilesPart<'_> {
        TilesPart { rows: self.rows, range: 0..self.tiles(), values: &mut self.values }
    }
}

impl<'a> TilesPart<'a> {
    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Which tiles these are.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// Counts its tiles from 0 on, as if it were all of them.
    #[must_use]
    pub fn rebased(self) -> Self {
        Self { range: 0..self.range.len(), ..self }
    }

    /// The first `tiles` of them, and the rest.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn split(self, tiles: usize) -> (Self, Self) {
        let at = self.range.start + tiles;
        let (low, high) = self.values.split_at_mut(tiles * self.rows);
        let low = Self { rows: self.rows, range: self.range.start..at, values: low };
        (low, Self { rows: self.rows, range: at..self.range.end, values: high })
    }

    /// In `count` parts of about the same size, each a whole number of `unit` tiles.
    ///
    /// # Panics
    /// If this is not such a number.
    pub fn cut(self, count: usize, unit: usize) -> Vec<Self> {
        assert!(self.range.len().is_multiple_of(unit), "a unit would be cut");
        let units = self.range.len() / unit;
        let mut rest = self;
        let mut parts = Vec::with_capacity(count);
        for index in 1..=count {
            let (part, after) = rest.split((units * index / count - units * (index - 1) / count) * unit);
            parts.push(part);
            rest = after;
        }
        parts
    }

    /// Each tile with its index.
    pub fn tiles(&mut self) -> impl Iterator<Item = (usize, &mut [[f32; TILE]])> {
        self.range.clone().zip(self.values.chunks_exact_mut(self.rows.max(1)))
    }

    /// Writes the same numbers into every row, or adds them to what is there; `numbers` are those of all
    /// tiles.
    ///
    /// # Panics
    /// If they are fewer.
    pub fn bias(&mut self, numbers: &[[f32; TILE]], add: bool) {
        for (tile, rows) in self.tiles() {
            for row in rows {
                for (value, number) in row.iter_mut().zip(&numbers[tile]) {
                    *value = if add { *value + number } else { *number };
                }
            }
        }
    }

    /// Writes the first numbers of a row, and zeros to the end of their last tile.
    ///
    /// # Panics
    /// If there are more of them than columns here, or no such row.
    pub fn set_row(&mut self, row: usize, numbers: &[f32]) {
        for (tile, numbers) in numbers.chunks(TILE).enumerate() {
            let to = &mut self.values[tile * self.rows + row];
            to[..numbers.len()].copy_from_slice(numbers);
            to[numbers.len()..].fill(0.0);
        }
    }

    /// Copies row `from` of `other`, which has at least these tiles, to row `row`.
    ///
    /// # Panics
    /// If there are no such rows or tiles.
    pub fn copy_row(&mut self, row: usize, other: &Tiles, from: usize) {
        for (tile, rows) in self.tiles() {
            rows[row] = other.tile(tile)[from];
        }
    }
}
