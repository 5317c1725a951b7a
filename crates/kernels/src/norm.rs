//! Normalisation by the root of the mean square (Zhang and Sennrich 2019, "Root Mean Square Layer
//! Normalization"): `x / sqrt(mean(x^2) + epsilon) * weight`.

use crate::cpu::{Cpu, Kernel};
use crate::isa::Isa;
use crate::rows::{Fill, RowsPart, Source, block_of};
use crate::tiles::{TILE, Tiles};

/// The numbers of a normalisation.
#[derive(Debug, Clone, Copy)]
pub struct RmsNorm<'a> {
    /// Numbers in a row.
    pub columns: usize,
    /// What is added to a mean square.
    pub epsilon: f32,
    /// Each column's weight, padded to whole tiles with zeros.
    pub weight: &'a [[f32; TILE]],
}

impl RmsNorm<'_> {
    /// Writes `x`, normalised; it is zero beyond its columns. Who writes only some columns still reads all of
    /// them.
    ///
    /// # Panics
    /// If `x` has other rows than `out`, or more columns than there are weights.
    pub fn run(&self, cpu: Cpu, x: &Tiles, out: RowsPart<'_>) {
        assert_eq!(x.rows(), out.count(), "room for another number of rows");
        assert!(x.tiles() <= self.weight.len(), "weights are missing");
        let scales = cpu.run(Scales { x, norm: self });
        cpu.run(Fill { from: Normal { x, scales: &scales, weight: self.weight }, out });
    }
}

/// What each row is multiplied with.
struct Scales<'a> {
    x: &'a Tiles,
    norm: &'a RmsNorm<'a>,
}

impl Kernel for Scales<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Vec<f32> {
        let Self { x, norm } = self;
        let mut scales = Vec::with_capacity(x.rows());
        for row in 0..x.rows() {
            let mut squares = isa.splat(0.0);
            for tile in 0..x.tiles() {
                let values = isa.load(&x.tile(tile)[row]);
                squares = isa.mul_add(values, values, squares);
            }
            let mean = sum_of_lanes(isa, squares) / norm.columns as f32;
            scales.push(1.0 / (mean + norm.epsilon).sqrt());
        }
        scales
    }
}

/// The sum of all lanes: halves are added to halves.
#[inline(always)]
pub(crate) fn sum_of_lanes<I: Isa>(isa: I, values: I::Floats) -> f32 {
    let mut lanes = [0.0; TILE];
    isa.store(values, &mut lanes);
    for width in [8, 4, 2, 1] {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
    }
    lanes[0]
}

struct Normal<'a> {
    x: &'a Tiles,
    scales: &'a [f32],
    weight: &'a [[f32; TILE]],
}

impl Source for Normal<'_> {
    #[inline(always)]
    fn block<I: Isa>(&self, isa: I, block: usize, row: usize) -> [I::Floats; 2] {
        let scale = isa.splat(self.scales[row]);
        let mut values = block_of(isa, self.x, block, row);
        for (half, value) in values.iter_mut().enumerate() {
            if let Some(weight) = self.weight.get(2 * block + half) {
                *value = isa.mul(isa.mul(*value, scale), isa.load(weight));
            }
        }
        values
    }
}
