//! Attention against plain double precision, and the contract: the same bits in every company, with every
//! size of page and on every instruction set. So too for what lies between products.

#![expect(clippy::unwrap_used, reason = "all of this crate is tests")]

use fastrand::Rng;
use half::f16;
use quadrant_kernels::{
    Angles, Attention, Cache, CacheShape, CacheSlot, Cpu, Encoding, Matrix, Precision, Query, RmsNorm, Rows,
    Scratch, Slab, TILE, Tiles, TilesPart, TilesRow, multiply, rotate, silu_gate,
};

const HEADS: usize = 2;
const SHARED_BY: usize = 3;

/// Random queries, keys and values of the tokens of one sequence: the heads of each, in this order.
fn tokens(rng: &mut Rng, count: usize, head_size: usize) -> Tiles {
    let mut tokens = Tiles::default();
    tokens.resize(count, (SHARED_BY + 2) * HEADS * head_size);
    fill(rng, tokens.all());
    tokens
}

fn fill(rng: &mut Rng, mut part: TilesPart<'_>) {
    for (_, rows) in part.tiles() {
        rows.as_flattened_mut().fill_with(|| rng.f32() * 4.0 - 2.0);
    }
}

/// Sequences in a cache, which they use page after page in an order of their own.
struct Cached {
    cache: Cache,
    pages: Vec<Vec<usize>>,
}

fn cached(rng: &mut Rng, cpu: Cpu, sequences: &[&Tiles], head_size: usize, page_tokens: usize) -> Cached {
    keeping(Precision::Half, rng, cpu, sequences, [head_size, page_tokens])
}

fn keeping(
    precision: Precision,
    rng: &mut Rng,
    cpu: Cpu,
    sequences: &[&Tiles],
    [head_size, page_tokens]: [usize; 2],
) -> Cached {
    let mut cache = Cache::new(CacheShape { layers: 2, heads: HEADS, head_size, page_tokens, precision });
    let count = |tokens: &Tiles| tokens.rows().div_ceil(page_tokens);
    let mut free: Vec<usize> =
        (0..sequences.iter().map(|tokens| count(tokens)).sum()).map(|_| cache.add_page()).collect();
    rng.shuffle(&mut free);
    let mut all = Vec::new();
    for tokens in sequences {
        let pages = free.split_off(free.len() - count(tokens));
        let keys = SHARED_BY * HEADS * head_size / TILE;
        for row in 0..tokens.rows() {
            let slot = CacheSlot { page: pages[row / page_tokens], token: row % page_tokens, layer: 1 };
            let of = |first| TilesRow { tiles: tokens, row, first };
            cache.write(cpu, slot, of(keys), of(keys + HEADS * head_size / TILE));
        }
        all.push(pages);
    }
    Cached { cache, pages: all }
}

/// Attention of the rows `rows` of a sequence, in `parts` parts.
fn attend(
    cpu: Cpu,
    cached: &Cached,
    sequence: usize,
    tokens: &Tiles,
    rows: &[usize],
    parts: usize,
) -> Vec<f32> {
    let mut tiles = Tiles::default();
    tiles.resize(rows.len(), tokens.tiles() * TILE);
    let mut part = tiles.all();
    for (to, row) in rows.iter().enumerate() {
        part.copy_row(to, tokens, *row);
    }
    let query = |row: &usize| Query { position: *row, pages: &cached.pages[sequence] };
    let queries: Vec<Query<'_>> = rows.iter().map(query).collect();
    let attention =
        Attention { cache: &cached.cache, layer: 1, tiles: &tiles, shared_by: SHARED_BY, queries: &queries };
    let mut out = vec![0.0; attention.items() * attention.item_size()];
    let items = attention.items();
    let mut rest = &mut out[..];
    let cuts = attention.cut(parts);
    assert_eq!((cuts.len(), cuts[0].start, cuts[parts - 1].end), (parts, 0, items));
    for range in cuts {
        let (now, later) = rest.split_at_mut(range.len() * attention.item_size());
        attention.run(cpu, range, now, &mut Scratch::default());
        rest = later;
    }
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn attention_is_that_of_the_definition() {
    let mut rng = Rng::with_seed(1);
    for (count, head_size) in [(1, 32), (3, 64), (70, 64), (130, 128)] {
        for precision in [Precision::Half, Precision::Single] {
            check_attention(&mut rng, count, head_size, precision);
        }
    }
}

fn check_attention(rng: &mut Rng, count: usize, head_size: usize, precision: Precision) {
    let tokens = tokens(rng, count, head_size);
    let cached = keeping(precision, rng, Cpu::best(), &[&tokens], [head_size, 16]);
    let rows: Vec<usize> = (0..count).collect();
    let found = attend(Cpu::best(), &cached, 0, &tokens, &rows, 1);
    let kept = |row: usize, column: usize| match precision {
        Precision::Half => f16::from_f32(tokens.at(row, column)).to_f64(),
        Precision::Single => f64::from(tokens.at(row, column)),
    };
    for row in 0..count {
        for head in 0..HEADS * SHARED_BY {
            let key = (HEADS * SHARED_BY + head / SHARED_BY) * head_size;
            let value = key + HEADS * head_size;
            let score = |other: usize| {
                let dot = |at| f64::from(tokens.at(row, head * head_size + at)) * kept(other, key + at);
                (0..head_size).map(dot).sum::<f64>() / (head_size as f64).sqrt()
            };
            let weights: Vec<f64> = (0..=row).map(|other| score(other).exp()).collect();
            let total: f64 = weights.iter().sum();
            for at in 0..head_size {
                let each = weights.iter().enumerate();
                let exact: f64 = each.map(|(other, weight)| weight * kept(other, value + at)).sum();
                let found = found[(row * HEADS * SHARED_BY + head) * head_size + at];
                let off = (f64::from(found) - exact / total).abs();
                assert!(off < 2e-5, "{precision:?}, {count} tokens, row {row}, head {head}: off by {off}");
            }
        }
    }
}

#[test]
fn a_query_does_not_depend_on_its_company_its_pages_or_the_instruction_set() {
    let mut rng = Rng::with_seed(2);
    let head_size = 64;
    let sequence = tokens(&mut rng, 200, head_size);
    let stranger = tokens(&mut rng, 90, head_size);
    let all: Vec<usize> = (0..200).collect();
    let alone = cached(&mut rng, Cpu::best(), &[&sequence], head_size, 64);
    let expected = attend(Cpu::best(), &alone, 0, &sequence, &all, 1);
    let size = HEADS * SHARED_BY * head_size;
    for page_tokens in [16, 64, 208] {
        let with = cached(&mut rng, Cpu::best(), &[&stranger, &sequence], head_size, page_tokens);
        for parts in [1, 2, 3, 7] {
            let found = attend(Cpu::best(), &with, 1, &sequence, &all, parts);
            assert_eq!(bits(&found), bits(&expected), "pages of {page_tokens}, {parts} parts");
        }
        for rows in [0..1, 199..200, 63..66, 5..90] {
            let rows: Vec<usize> = rows.collect();
            let found = attend(Cpu::best(), &with, 1, &sequence, &rows, 2);
            let expected = &expected[rows[0] * size..][..rows.len() * size];
            assert_eq!(bits(&found), bits(expected), "pages of {page_tokens}, {} rows", rows.len());
        }
    }
    for cpu in Cpu::all() {
        let cached = cached(&mut rng, cpu, &[&sequence], head_size, 16);
        let found = attend(cpu, &cached, 0, &sequence, &all[..70], 1);
        assert_eq!(bits(&found), bits(&expected[..70 * size]), "{}", cpu.name());
    }
}

#[test]
fn what_an_earlier_sequence_left_in_a_page_does_no_harm() {
    let mut rng = Rng::with_seed(3);
    let mut bad = tokens(&mut rng, 16, 32);
    let mut part = bad.all();
    for (_, rows) in part.tiles() {
        rows.as_flattened_mut().fill(f32::INFINITY);
    }
    let tokens = tokens(&mut rng, 5, 32);
    let clean = cached(&mut rng, Cpu::best(), &[&tokens], 32, 16);
    let mut used = cached(&mut rng, Cpu::best(), &[&bad], 32, 16);
    let keys = SHARED_BY * HEADS * 32 / TILE;
    for row in 0..5 {
        let of = |first| TilesRow { tiles: &tokens, row, first };
        used.cache.write(
            Cpu::best(),
            CacheSlot { page: 0, token: row, layer: 1 },
            of(keys),
            of(keys + HEADS * 2),
        );
    }
    let rows = [0, 1, 2, 3, 4];
    let expected = attend(Cpu::best(), &clean, 0, &tokens, &rows, 1);
    assert_eq!(bits(&attend(Cpu::best(), &used, 0, &tokens, &rows, 1)), bits(&expected));
}

/// Every number of `rows`, by a product with the identity.
fn numbers(rows: &Rows) -> Vec<f32> {
    let inner = rows.inner();
    let identity: Vec<f32> =
        (0..inner * inner).map(|at| if at / inner == at % inner { 1.0 } else { 0.0 }).collect();
    let bytes: Vec<u8> = identity.iter().flat_map(|number| number.to_le_bytes()).collect();
    let slab = Slab::new(Matrix::packed_bytes(Encoding::F32, inner, inner)).unwrap();
    let identity = Matrix::pack(&slab, Encoding::F32, inner, inner, &bytes).unwrap();
    let mut out = Tiles::default();
    out.resize(rows.count(), inner);
    multiply(Cpu::best(), &[&identity], rows, out.all(), false);
    (0..rows.count()).flat_map(|row| out.row(row).collect::<Vec<_>>()).collect()
}

#[test]
fn norms_and_gates_are_those_of_the_definition_on_every_instruction_set() {
    let mut rng = Rng::with_seed(4);
    let (count, inner) = (5, 96);
    let (mut x, mut both) = (Tiles::default(), Tiles::default());
    x.resize(count, inner);
    both.resize(count, 2 * inner);
    fill(&mut rng, x.all());
    fill(&mut rng, both.all());
    let weight: Vec<[f32; TILE]> = (0..inner / TILE).map(|_| std::array::from_fn(|_| rng.f32())).collect();
    let found = Cpu::all().into_iter().map(|cpu| {
        let mut rows = Rows::new(inner, [Encoding::F32, Encoding::Q4_0]);
        rows.resize(count);
        let norm = RmsNorm { columns: inner, epsilon: 1e-5, weight: &weight };
        for part in rows.all().cut(3) {
            norm.run(cpu, &x, part);
        }
        let normal = numbers(&rows);
        let (low, high) = rows.all().split(3);
        silu_gate(cpu, &both, low);
        silu_gate(cpu, &both, high);
        (normal, numbers(&rows))
    });
    let found: Vec<_> = found.collect();
    for other in &found {
        assert_eq!(bits(&found[0].0), bits(&other.0));
        assert_eq!(bits(&found[0].1), bits(&other.1));
    }
    for row in 0..count {
        let values: Vec<f64> = x.row(row).map(f64::from).collect();
        let root = (values.iter().map(|x| x * x).sum::<f64>() / inner as f64 + 1e-5).sqrt();
        for (column, value) in values.iter().enumerate() {
            let normal = value / root * f64::from(weight[column / TILE][column % TILE]);
            let off = (f64::from(found[0].0[row * inner + column]) - normal).abs();
            assert!(off < 1e-6, "norm of row {row}: off by {off}");
            let gate = f64::from(both.at(row, column));
            let gated = gate / (1.0 + (-gate).exp()) * f64::from(both.at(row, inner + column));
            let off = (f64::from(found[0].1[row * inner + column]) - gated).abs();
            assert!(off < 2e-6, "gate of row {row}: off by {off}");
        }
    }
}

#[test]
fn heads_are_turned_by_their_position() {
    let mut rng = Rng::with_seed(5);
    let (count, head_size) = (4, 64);
    let frequencies: Vec<f32> = (0..head_size / 2).map(|at| 100_f32.powf(-2.0 * at as f32 / 64.0)).collect();
    let positions = [0, 1, 77, 300];
    let mut angles = Angles::default();
    angles.set(&frequencies, positions.into_iter());
    let mut before = Tiles::default();
    before.resize(count, 3 * head_size);
    let seed = rng.u64(..);
    let found = Cpu::all().into_iter().map(|cpu| {
        let mut tiles = Tiles::default();
        tiles.resize(count, 3 * head_size);
        fill(&mut Rng::with_seed(seed), tiles.all());
        let (two, one) = tiles.all().split(2 * head_size / TILE);
        rotate(cpu, &angles, one);
        rotate(cpu, &angles, two);
        (0..count).flat_map(|row| tiles.row(row).collect::<Vec<_>>()).collect::<Vec<f32>>()
    });
    let found: Vec<_> = found.collect();
    fill(&mut Rng::with_seed(seed), before.all());
    assert!(found.iter().all(|other| bits(other) == bits(&found[0])));
    for (row, position) in positions.into_iter().enumerate() {
        for head in 0..3 {
            for (pair, frequency) in frequencies.iter().enumerate() {
                let (low, high) = (head * head_size + pair, head * head_size + head_size / 2 + pair);
                let (a, b) = (f64::from(before.at(row, low)), f64::from(before.at(row, high)));
                let (sine, cosine) = f64::from(position as f32 * frequency).sin_cos();
                for (column, exact) in [(low, a * cosine - b * sine), (high, a * sine + b * cosine)] {
                    let off = (f64::from(found[0][row * 3 * head_size + column]) - exact).abs();
                    assert!(off < 1e-6, "row {row}, column {column}: off by {off}");
                }
            }
        }
    }
}
