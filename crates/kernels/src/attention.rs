//! Attention of some queries to the keys and values before them (Vaswani et al. 2017), in one pass over the
//! cache (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax").
//!
//! Keys are taken in chunks of 64 that begin at multiples of 64, whatever the size of a page, of a batch or
//! of a prompt's part; what a query may not see yet takes part as zero. So its result has the same bits in
//! every company. Queries that see the same keys (heads that share them, neighbouring rows) go together.

mod dots;

use std::marker::PhantomData;
use std::ops::Range;

use crate::cache::{Cache, GROUP, Halves, Precision, Singles, Stored};
use crate::cpu::{Cpu, Kernel};
use crate::exp::exp;
use crate::isa::{Isa, LANES};
use crate::tiles::{TILE, Tiles};
use dots::{gather, score};

/// Keys of a chunk.
const CHUNK: usize = 64;
const GROUPS: usize = CHUNK / GROUP;
/// Heads that may share keys, and so go together.
const QUERIES: usize = 16;
/// Queries that rows are put together for: as many sums as fit into registers beside what they are made of.
const TOGETHER: usize = 12;

/// One row of queries: all heads of one token.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// The token's place in its sequence: it sees this many tokens and itself.
    pub position: usize,
    /// The pages of its sequence.
    pub pages: &'a [usize],
}

/// What queries attend to.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Keys and values.
    pub cache: &'a Cache,
    /// The layer.
    pub layer: usize,
    /// The queries' heads, from the first tile on; heads that share keys follow each other.
    pub tiles: &'a Tiles,
    /// Query heads per head of keys.
    pub shared_by: usize,
    /// A query of each row.
    pub queries: &'a [Query<'a>],
}

/// What is needed while it lasts; to be kept by a thread.
#[derive(Debug, Default)]
pub struct Scratch {
    /// `[query][tile of the head]`
    queries: Vec<[f32; TILE]>,
    /// `[tile of the head][query]`
    sums: Vec<[f32; TILE]>,
}

impl Attention<'_> {
    /// Numbers of an item: the results of one row's heads that share keys.
    pub fn item_size(&self) -> usize {
        self.shared_by * self.cache.shape().head_size
    }

    /// Items in all: rows by heads of keys.
    pub fn items(&self) -> usize {
        self.queries.len() * self.cache.shape().heads
    }

    /// Items in `count` ranges that take about the same time, by the keys that are seen.
    pub fn cut(&self, count: usize) -> Vec<Range<usize>> {
        let heads = self.cache.shape().heads;
        let keys = |query: &Query<'_>| query.position + 1;
        let all: usize = self.queries.iter().map(keys).sum();
        let mut ends = vec![0];
        let mut before = 0;
        for (row, query) in self.queries.iter().enumerate() {
            let own = keys(query) * count;
            // The cuts that lie within this row, to the nearest head.
            while ends.len() < count && all * ends.len() <= before * count + own {
                let within = ((all * ends.len() - before * count) * heads + own / 2) / own;
                ends.push(row * heads + within);
            }
            before += keys(query);
        }
        ends.resize(count, self.items());
        ends.push(self.items());
        ends.windows(2).map(|pair| pair[0]..pair[1]).collect()
    }

    /// Computes some of the items, one after the other into `out`; all of them are `[row][head][dimension]`.
    ///
    /// # Panics
    /// If there are no such items, tokens or tiles, `out` has another size, or no head or more than sixteen
    /// share keys.
    pub fn run(&self, cpu: Cpu, items: Range<usize>, out: &mut [f32], scratch: &mut Scratch) {
        assert!(
            items.end <= self.items() && (1..=QUERIES).contains(&self.shared_by),
            "there is no such query"
        );
        assert_eq!(out.len(), items.len() * self.item_size(), "room for other results");
        match self.cache.shape().precision {
            Precision::Half => {
                cpu.run(Attend::<Halves> { attention: self, items, out, scratch, of: PhantomData })
            }
            Precision::Single => {
                cpu.run(Attend::<Singles> { attention: self, items, out, scratch, of: PhantomData });
            }
        }
    }
}

struct Attend<'a, S> {
    attention: &'a Attention<'a>,
    items: Range<usize>,
    out: &'a mut [f32],
    scratch: &'a mut Scratch,
    of: PhantomData<S>,
}

impl<S: Stored> Kernel for Attend<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { attention, items, out, scratch, of: _ } = self;
        let heads = attention.cache.shape().heads;
        let size = attention.item_size();
        let mut at = items.start;
        while at < items.end {
            let (row, head) = (at / heads, at % heads);
            let whole = if head == 0 { (items.end - at) / heads } else { 0 };
            let rows = attention.together(row, whole);
            let out = &mut out[(at - items.start) * size..];
            if rows == 0 {
                let some = Share { attention, rows: row..row + 1, head, stride: size, out };
                some.attend::<I, S>(isa, scratch);
                at += 1;
                continue;
            }
            for head in 0..heads {
                let out = &mut out[head * size..];
                let some = Share { attention, rows: row..row + rows, head, stride: heads * size, out };
                some.attend::<I, S>(isa, scratch);
            }
            at += rows * heads;
        }
    }
}

impl Attention<'_> {
    /// How many of the next `whole` rows go together: those of one sequence, as many as fit.
    fn together(&self, row: usize, whole: usize) -> usize {
        let pages = self.queries[row].pages;
        let next = self.queries[row..].iter().take(whole.min((TOGETHER / self.shared_by).max(1)));
        next.take_while(|query| std::ptr::eq(query.pages, pages)).count()
    }
}

/// Rows of one sequence with one head of keys.
struct Share<'a> {
    attention: &'a Attention<'a>,
    rows: Range<usize>,
    head: usize,
    /// From one row's results to the next one's.
    stride: usize,
    out: &'a mut [f32],
}

/// How far the softmax of a query has come.
#[derive(Clone, Copy)]
struct Running<F> {
    largest: f32,
    /// What the results so far are to be multiplied with, as the largest has grown.
    factor: f32,
    /// Sums of exponentials.
    sums: F,
}

/// Scores, then exponentials, of a chunk: `[query][group][key]`.
type Scores = [[[f32; LANES]; GROUPS]; QUERIES];

impl Share<'_> {
    #[inline(always)]
    fn attend<I: Isa, S: Stored>(self, isa: I, scratch: &mut Scratch) {
        let shared_by = self.attention.shared_by;
        let tiles = self.attention.cache.shape().head_size / TILE;
        let count = self.rows.len() * shared_by;
        self.load(isa, &mut scratch.queries);
        scratch.sums.clear();
        scratch.sums.resize(tiles * count, [0.0; TILE]);
        let mut running =
            [Running { largest: f32::NEG_INFINITY, factor: 1.0, sums: isa.splat(0.0) }; QUERIES];
        let mut scores: Scores = [[[0.0; LANES]; GROUPS]; QUERIES];
        let queries = &self.attention.queries[self.rows.clone()];
        let last = queries.iter().map(|query| query.position).max().unwrap_or(0);
        for start in (0..=last).step_by(CHUNK) {
            let groups = ((last - start) / GROUP + 1).min(GROUPS);
            let (mut keys, mut values): ([&[S]; GROUPS], [&[S]; GROUPS]) = Default::default();
            for group in 0..groups {
                (keys[group], values[group]) = self.group(queries[0].pages, start + group * GROUP);
            }
            score(isa, &keys[..groups], &scratch.queries, count, &mut scores);
            for (index, running) in running[..count].iter_mut().enumerate() {
                let seen = (queries[index / shared_by].position + 1).saturating_sub(start);
                running.update(isa, &mut scores[index][..groups], seen);
            }
            let factors = running.map(|running| running.factor);
            for (tile, sums) in scratch.sums.chunks_exact_mut(count).enumerate() {
                gather(isa, &values[..groups], tile, &scores, &factors, sums);
            }
        }
        self.store(isa, &scratch.sums, &running);
    }

    #[inline(always)]
    fn group<S: Stored>(&self, pages: &[usize], token: usize) -> (&[S], &[S]) {
        let Attention { cache, layer, .. } = *self.attention;
        cache.group(cache.slot(pages, token, layer), self.head)
    }

    /// The queries, scaled by one over the root of their size.
    #[inline(always)]
    fn load<I: Isa>(&self, isa: I, to: &mut Vec<[f32; TILE]>) {
        let Attention { cache, tiles, shared_by, .. } = *self.attention;
        let head_size = cache.shape().head_size;
        let per_head = head_size / TILE;
        let scale = isa.splat(1.0 / (head_size as f32).sqrt());
        to.clear();
        for row in self.rows.clone() {
            for head in self.head * shared_by..(self.head + 1) * shared_by {
                for tile in head * per_head..(head + 1) * per_head {
                    let mut scaled = [0.0; TILE];
                    isa.store(isa.mul(isa.load(&tiles.tile(tile)[row]), scale), &mut scaled);
                    to.push(scaled);
                }
            }
        }
    }

    #[inline(always)]
    fn store<I: Isa>(self, isa: I, sums: &[[f32; TILE]], running: &[Running<I::Floats>; QUERIES]) {
        let Self { attention, rows, stride, out, .. } = self;
        let shared_by = attention.shared_by;
        let count = rows.len() * shared_by;
        let head_size = attention.cache.shape().head_size;
        for (index, running) in running[..count].iter().enumerate() {
            let mut lanes = [0.0; LANES];
            isa.store(running.sums, &mut lanes);
            let total = isa.splat(lanes.iter().sum());
            let out = &mut out[index / shared_by * stride + index % shared_by * head_size..][..head_size];
            for (tile, out) in out.as_chunks_mut::<TILE>().0.iter_mut().enumerate() {
                isa.store(isa.div(isa.load(&sums[tile * count + index]), total), out);
            }
        }
    }
}

impl<F: Copy> Running<F> {
    /// Makes exponentials of the scores of a chunk, of which the query sees the first `seen` keys.
    #[inline(always)]
    fn update<I: Isa<Floats = F>>(&mut self, isa: I, scores: &mut [[f32; LANES]], seen: usize) {
        let unseen = isa.splat(f32::NEG_INFINITY);
        let mut largest = unseen;
        for (group, scores) in scores.iter_mut().enumerate() {
            let masked = isa.first(seen.saturating_sub(group * GROUP), isa.load(scores), unseen);
            isa.store(masked, scores);
            largest = isa.max(largest, masked);
        }
        let largest = isa.largest(largest).max(self.largest);
        let mut factor = [0.0; LANES];
        isa.store(exp(isa, isa.splat(self.largest - largest)), &mut factor);
        self.factor = factor[0];
        self.largest = largest;
        self.sums = isa.mul(self.sums, isa.splat(self.factor));
        for scores in scores {
            let exponentials = exp(isa, isa.sub(isa.load(scores), isa.splat(largest)));
            isa.store(exponentials, scores);
            self.sums = isa.add(self.sums, exponentials);
        }
    }
}
