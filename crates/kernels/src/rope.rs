//! Rotary position embedding (Su et al. 2021, "RoFormer"): a head's numbers in pairs, each turned by an angle
//! that grows with the position.
//!
//! The pairs are the first half of a head with its second half (as in GPT-NeoX). A model that pairs
//! neighbours has its query and key rows put into this order when it is loaded; attention does not notice.

use crate::cpu::{Cpu, Kernel};
use crate::isa::Isa;
use crate::tiles::{TILE, TilesPart};

/// Cosines and sines of some rows' positions.
#[derive(Debug, Default)]
pub struct Angles {
    /// Tiles of half a head.
    tiles: usize,
    /// `[row][tile]`
    cosines: Vec<[f32; TILE]>,
    sines: Vec<[f32; TILE]>,
}

impl Angles {
    /// For rows at `positions`; `frequencies` are radians per position of each pair, a multiple of sixteen of
    /// them.
    ///
    /// # Panics
    /// If they are not such a multiple.
    pub fn set(&mut self, frequencies: &[f32], positions: impl Iterator<Item = usize>) {
        let (tiles, rest) = frequencies.as_chunks::<TILE>();
        assert!(rest.is_empty(), "pairs of whole tiles");
        self.tiles = tiles.len();
        self.cosines.clear();
        self.sines.clear();
        for position in positions {
            // Positions are far below 2^24, where an `f32` is still exact.
            let angles = tiles.iter().map(|tile| tile.map(|frequency| position as f32 * frequency));
            self.cosines.extend(angles.clone().map(|tile| tile.map(f32::cos)));
            self.sines.extend(angles.map(|tile| tile.map(f32::sin)));
        }
    }
}

/// Turns the heads that `part` consists of, each twice as long as there are frequencies.
///
/// # Panics
/// If `part` is not whole heads, or has other rows than the angles.
pub fn rotate(cpu: Cpu, angles: &Angles, part: TilesPart<'_>) {
    assert_eq!(part.rows() * angles.tiles, angles.cosines.len(), "angles of other rows");
    assert!(part.range().len().is_multiple_of(2 * angles.tiles.max(1)), "heads are cut");
    if part.rows() > 0 && angles.tiles > 0 {
        cpu.run(Rotate { angles, part });
    }
}

struct Rotate<'a> {
    angles: &'a Angles,
    part: TilesPart<'a>,
}

impl Kernel for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { angles, part } = self;
        let half = angles.tiles * part.rows;
        for head in part.values.chunks_exact_mut(2 * half) {
            let (low, high) = head.split_at_mut(half);
            for (at, (low, high)) in low.iter_mut().zip(high).enumerate() {
                let (tile, row) = (at / part.rows, at % part.rows);
                let cosine = isa.load(&angles.cosines[row * angles.tiles + tile]);
                let sine = isa.load(&angles.sines[row * angles.tiles + tile]);
                let (a, b) = (isa.load(low), isa.load(high));
                isa.store(isa.sub(isa.mul(a, cosine), isa.mul(b, sine)), low);
                isa.store(isa.mul_add(a, sine, isa.mul(b, cosine)), high);
            }
        }
    }
}
