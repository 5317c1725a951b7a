//! The activation of BERT's feed-forward layer (Hendrycks and Gimpel 2016, "Gaussian Error Linear Units"),
//! by the paper's approximation with `tanh`: `x / (1 + e^(-2 u))` with `u = sqrt(2 / pi) (x + 0.044715 x^3)`.
//! It is off by less than 5e-4 from the error function, and what text-embeddings-inference computes.

use crate::cpu::Cpu;
use crate::exp::exp;
use crate::isa::Isa;
use crate::rows::{Fill, RowsPart, Source, block_of};
use crate::tiles::Tiles;

/// Writes the activation of `x`.
///
/// # Panics
/// If `x` has other rows than `out`.
pub fn gelu(cpu: Cpu, x: &Tiles, out: RowsPart<'_>) {
    assert_eq!(x.rows(), out.count(), "room for another number of rows");
    cpu.run(Fill { from: Activated { x }, out });
}

struct Activated<'a> {
    x: &'a Tiles,
}

impl Source for Activated<'_> {
    #[inline(always)]
    fn block<I: Isa>(&self, isa: I, block: usize, row: usize) -> [I::Floats; 2] {
        /// `-2 sqrt(2 / pi)`
        const SCALE: f32 = -1.595_769_2;
        let mut values = block_of(isa, self.x, block, row);
        for value in &mut values {
            let square = isa.mul(*value, *value);
            let cubic = isa.mul_add(isa.mul(square, *value), isa.splat(0.044_715), *value);
            let power = exp(isa, isa.mul(cubic, isa.splat(SCALE)));
            *value = isa.div(*value, isa.add(isa.splat(1.0), power));
        }
        values
    }
}
