//! Normalisation by mean and variance (Ba, Kiros and Hinton 2016, "Layer Normalization"):
//! `(x - mean) / sqrt(variance + epsilon) * weight + bias`.

use crate::cpu::{Cpu, Kernel};
use crate::isa::Isa;
use crate::norm::sum_of_lanes;
use crate::tiles::{TILE, TilesPart};

/// Normalises every row of `x`, which has `columns` numbers and zeros beyond them, where it lies. `weight`
/// and `bias` are padded to whole tiles with zeros.
///
/// # Panics
/// If `x` is not all of its tiles, or `weight` or `bias` is shorter.
pub fn layer_norm(
    cpu: Cpu,
    x: TilesPart<'_>,
    columns: usize,
    epsilon: f32,
    weight: &[[f32; TILE]],
    bias: &[[f32; TILE]],
) {
    assert_eq!(x.range, 0..columns.div_ceil(TILE), "rows are not whole");
    assert!(x.range.end <= weight.len() && x.range.end <= bias.len(), "weights are missing");
    cpu.run(LayerNorm { x, columns, epsilon, weight, bias });
}

struct LayerNorm<'a> {
    x: TilesPart<'a>,
    columns: usize,
    epsilon: f32,
    weight: &'a [[f32; TILE]],
    bias: &'a [[f32; TILE]],
}

impl Kernel for LayerNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { x, columns, epsilon, weight, bias } = self;
        let (rows, tiles, zero) = (x.rows, x.range.len(), isa.splat(0.0));
        for row in 0..rows {
            let mut sum = zero;
            for tile in 0..tiles {
                sum = isa.add(sum, isa.load(&x.values[tile * rows + row]));
            }
            let mean = isa.splat(sum_of_lanes(isa, sum) / columns as f32);
            let mut squares = zero;
            for tile in 0..tiles {
                let off = isa.sub(isa.load(&x.values[tile * rows + row]), mean);
                // What a row is padded with is no part of it.
                let off = isa.first(columns - tile * TILE, off, zero);
                squares = isa.mul_add(off, off, squares);
            }
            let variance = sum_of_lanes(isa, squares) / columns as f32;
            let scale = isa.splat(1.0 / (variance + epsilon).sqrt());
            for tile in 0..tiles {
                let value = &mut x.values[tile * rows + row];
                let normal = isa.mul(isa.sub(isa.load(value), mean), scale);
                isa.store(isa.mul_add(normal, isa.load(&weight[tile]), isa.load(&bias[tile])), value);
            }
        }
    }
}
