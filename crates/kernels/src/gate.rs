//! The gated unit of the feed-forward layer (Shazeer 2020, "GLU Variants Improve Transformer"):
//! `silu(gate) * up`, `silu(x)` being `x / (1 + e^-x)`.

use crate::cpu::Cpu;
use crate::exp::exp;
use crate::isa::Isa;
use crate::rows::{Fill, RowsPart, Source};
use crate::tiles::Tiles;

/// Writes `silu(gate) * up`; `both` is the gate and, from half of its tiles on, the other factor.
///
/// # Panics
/// If `both` has other rows than `out`, or an odd number of tiles.
pub fn silu_gate(cpu: Cpu, both: &Tiles, out: RowsPart<'_>) {
    assert_eq!(both.rows(), out.count(), "room for another number of rows");
    assert!(both.tiles().is_multiple_of(2), "each half is whole tiles");
    cpu.run(Fill { from: Gated { both }, out });
}

struct Gated<'a> {
    both: &'a Tiles,
}

impl Source for Gated<'_> {
    #[inline(always)]
    fn block<I: Isa>(&self, isa: I, block: usize, row: usize) -> [I::Floats; 2] {
        let half = self.both.tiles() / 2;
        let mut values = [isa.splat(0.0); 2];
        for (index, value) in values.iter_mut().enumerate() {
            let tile = 2 * block + index;
            if tile < half {
                let gate = isa.load(&self.both.tile(tile)[row]);
                let up = isa.load(&self.both.tile(half + tile)[row]);
                let power = exp(isa, isa.sub(isa.splat(0.0), gate));
                *value = isa.mul(isa.div(gate, isa.add(isa.splat(1.0), power)), up);
            }
        }
        values
    }
}
