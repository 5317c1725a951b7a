//! The two products of attention: queries with keys, exponentials with values. Written for as many queries at
//! a time as there are registers for; how many go together changes no bit of any.

use super::{GROUPS, QUERIES, Scores};
use crate::cache::{GROUP, Stored};
use crate::isa::{Isa, LANES};
use crate::tiles::TILE;

/// The scores of the first `count` queries with the keys of some groups.
#[inline(always)]
pub(super) fn score<I: Isa, S: Stored>(
    isa: I,
    keys: &[&[S]],
    queries: &[[f32; TILE]],
    count: usize,
    scores: &mut Scores,
) {
    let tiles = queries.len() / count;
    // Whether the sums of many queries, or of some with four groups each, fit into registers.
    let is_wide = I::REGISTERS >= 32;
    let mut first = 0;
    while first < count {
        let (queries, scores) = (&queries[first * tiles..], &mut scores[first..]);
        first += match (count - first, keys) {
            (12.., _) if is_wide => score_some::<I, S, 12, 1>(isa, keys, queries, tiles, scores),
            (8.., _) if is_wide => score_some::<I, S, 8, 1>(isa, keys, queries, tiles, scores),
            (4.., [_, _, _, _]) if is_wide => score_some::<I, S, 4, 4>(isa, keys, queries, tiles, scores),
            (4.., _) => score_some::<I, S, 4, 1>(isa, keys, queries, tiles, scores),
            (3, [_, _, _, _]) if is_wide => score_some::<I, S, 3, 4>(isa, keys, queries, tiles, scores),
            (3, _) => score_some::<I, S, 3, 1>(isa, keys, queries, tiles, scores),
            (2, [_, _, _, _]) if is_wide => score_some::<I, S, 2, 4>(isa, keys, queries, tiles, scores),
            (2, _) => score_some::<I, S, 2, 1>(isa, keys, queries, tiles, scores),
            (_, [_, _, _, _]) => score_some::<I, S, 1, 4>(isa, keys, queries, tiles, scores),
            _ => score_some::<I, S, 1, 1>(isa, keys, queries, tiles, scores),
        };
    }
}

/// `N` queries with `G` groups at a time; gives `N`.
#[inline(always)]
fn score_some<I: Isa, S: Stored, const N: usize, const G: usize>(
    isa: I,
    keys: &[&[S]],
    queries: &[[f32; TILE]],
    tiles: usize,
    scores: &mut [[[f32; LANES]; GROUPS]],
) -> usize {
    // Plain slices: a closure that touches no vector may be compiled for anything.
    let queries: [&[[f32; TILE]]; N] = std::array::from_fn(|index| &queries[index * tiles..][..tiles]);
    for (at, keys) in keys.chunks_exact(G).enumerate() {
        let mut sums = [[isa.splat(0.0); G]; N];
        for tile in 0..tiles {
            let keys: [&[S; TILE]; G] = std::array::from_fn(|group| {
                keys[group][tile * TILE..].first_chunk().expect("a key for each dimension")
            });
            for dimension in 0..TILE {
                let mut numbers = [isa.splat(0.0); G];
                for (number, keys) in numbers.iter_mut().zip(&keys) {
                    *number = keys[dimension].load(isa);
                }
                for (sums, query) in sums.iter_mut().zip(&queries) {
                    let query = isa.splat(query[tile][dimension]);
                    for (sum, number) in sums.iter_mut().zip(&numbers) {
                        *sum = isa.mul_add(*number, query, *sum);
                    }
                }
            }
        }
        for (sums, scores) in sums.iter().zip(scores.iter_mut()) {
            for (sum, score) in sums.iter().zip(&mut scores[at * G..]) {
                isa.store(*sum, score);
            }
        }
    }
    N
}

/// Adds the values of some groups, each by its key's exponential, to one tile of the results.
#[inline(always)]
pub(super) fn gather<I: Isa, S: Stored>(
    isa: I,
    values: &[&[S]],
    tile: usize,
    scores: &Scores,
    factors: &[f32; QUERIES],
    sums: &mut [[f32; TILE]],
) {
    let mut first = 0;
    while first < sums.len() {
        let left = sums.len() - first;
        let (scores, factors, sums) = (&scores[first..], &factors[first..], &mut sums[first..]);
        first += match left {
            12.. if I::REGISTERS >= 32 => gather_some::<I, S, 12>(isa, values, tile, scores, factors, sums),
            8.. if I::REGISTERS >= 32 => gather_some::<I, S, 8>(isa, values, tile, scores, factors, sums),
            4.. => gather_some::<I, S, 4>(isa, values, tile, scores, factors, sums),
            3 => gather_some::<I, S, 3>(isa, values, tile, scores, factors, sums),
            2 => gather_some::<I, S, 2>(isa, values, tile, scores, factors, sums),
            _ => gather_some::<I, S, 1>(isa, values, tile, scores, factors, sums),
        };
    }
}

/// `N` queries at a time; gives `N`.
#[inline(always)]
fn gather_some<I: Isa, S: Stored, const N: usize>(
    isa: I,
    values: &[&[S]],
    tile: usize,
    scores: &[[[f32; LANES]; GROUPS]],
    factors: &[f32],
    sums: &mut [[f32; TILE]],
) -> usize {
    let sums: &mut [[f32; TILE]; N] = sums.first_chunk_mut().expect("as many as are left");
    let mut running = [isa.splat(0.0); N];
    for (index, running) in running.iter_mut().enumerate() {
        *running = isa.mul(isa.load(&sums[index]), isa.splat(factors[index]));
    }
    for (group, values) in values.iter().enumerate() {
        let values: &[S; GROUP] = values[tile * GROUP..].first_chunk().expect("a value for each token");
        for (token, value) in values.iter().enumerate() {
            let value = value.load(isa);
            for (running, scores) in running.iter_mut().zip(scores) {
                *running = isa.mul_add(value, isa.splat(scores[group][token]), *running);
            }
        }
    }
    for (running, sum) in running.iter().zip(sums) {
        isa.store(*running, sum);
    }
    N
}
