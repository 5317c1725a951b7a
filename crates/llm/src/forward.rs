//! One forward pass: some tokens of some sequences through all layers.
//!
//! A pass is a row of phases. In each, the columns (or, in attention, the rows and heads) are shared by the
//! team; between them all wait for each other. What is too small to share is done by the caller alone. Every
//! row is computed as if it were alone, so a token's result does not depend on who else is in the pass.

use quadrant_kernels::{
    Angles, Attention, Cache, CacheShape, Cpu, Matrix, Precision, Query, RmsNorm, Rows, TILE, Team, Tiles,
    TilesRow, rotate, silu_gate,
};

use crate::crew::Crew;
use crate::weights::{Decoder, Layer, Tiled};

/// One token of a pass.
#[derive(Debug, Clone, Copy)]
pub struct Token<'a> {
    /// Which token of the vocabulary.
    pub token: u32,
    /// Its place in its sequence. The tokens before it are in the cache, or before it in this pass.
    pub position: usize,
    /// The pages of its sequence; the one that the token belongs to is written.
    pub pages: &'a [usize],
    /// Whether the scores of the next token are wanted.
    pub wants_scores: bool,
}

/// Who computes, and the memory that a pass takes while it lasts.
#[derive(Debug)]
pub struct Forward {
    crew: Crew,
    /// What the tokens are between layers.
    x: Tiles,
    /// Queries, keys and values of all heads.
    heads: Tiles,
    /// Gates, and what they are for.
    gates: Tiles,
    /// Of the tokens whose scores are wanted what they are after the last layer.
    wanted: Tiles,
    scores: Tiles,
    normal: Rows,
    attended: Rows,
    gated: Rows,
    last: Rows,
    angles: Angles,
}

impl Decoder {
    /// How the pages of its cache are laid out. Numbers are kept in half precision.
    pub fn cache_shape(&self, page_tokens: usize) -> CacheShape {
        let architecture = &self.architecture;
        CacheShape {
            layers: self.layers.len(),
            heads: architecture.key_heads,
            head_size: architecture.head_size,
            page_tokens,
            precision: Precision::Half,
        }
    }

    fn head(&self) -> &Matrix {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    fn norm<'a>(&self, weight: &'a Tiled) -> RmsNorm<'a> {
        RmsNorm { columns: self.architecture.width, epsilon: self.architecture.epsilon, weight }
    }
}

impl Forward {
    /// Room for passes through `decoder` by `team`.
    pub fn new(decoder: &Decoder, cpu: Cpu, team: Team) -> Self {
        let architecture = &decoder.architecture;
        let of = |encodings: &dyn Fn(&Layer) -> Vec<&Matrix>| -> Vec<_> {
            decoder.layers.iter().flat_map(encodings).map(Matrix::encoding).collect()
        };
        let normal = of(&|layer| vec![&layer.queries, &layer.keys, &layer.values, &layer.gate, &layer.up]);
        Self {
            crew: Crew::new(cpu, team),
            x: Tiles::default(),
            heads: Tiles::default(),
            gates: Tiles::default(),
            wanted: Tiles::default(),
            scores: Tiles::default(),
            normal: Rows::new(architecture.width, normal),
            attended: Rows::new(
                architecture.heads * architecture.head_size,
                of(&|layer| vec![&layer.attention_out]),
            ),
            gated: Rows::new(architecture.feed_forward, of(&|layer| vec![&layer.down])),
            last: Rows::new(architecture.width, [decoder.head().encoding()]),
            angles: Angles::default(),
        }
    }

    /// Computes `tokens` and writes their keys and values into `cache`. Gives a row of scores (logits) for
    /// each token that wants them, in their order.
    ///
    /// Tokens of one sequence follow each other, in the order of their positions.
    ///
    /// # Panics
    /// If a token is not in the vocabulary, or its pages do not reach to its position or are not in the
    /// cache.
    pub fn run(&mut self, decoder: &Decoder, cache: &mut Cache, tokens: &[Token<'_>]) -> &Tiles {
        self.embed(decoder, tokens);
        for (index, layer) in decoder.layers.iter().enumerate() {
            self.attend(decoder, layer, index, cache, tokens);
            self.feed_forward(decoder, layer);
        }
        self.score(decoder, tokens)
    }

    fn embed(&mut self, decoder: &Decoder, tokens: &[Token<'_>]) {
        self.x.resize(tokens.len(), decoder.architecture.width);
        let mut x = self.x.all();
        for (row, token) in tokens.iter().enumerate() {
            let numbers = decoder.embedding.row(token.token as usize);
            x.set_row(row, &numbers);
        }
        self.angles.set(&decoder.architecture.frequencies, tokens.iter().map(|token| token.position));
    }

    fn attend(
        &mut self,
        decoder: &Decoder,
        layer: &Layer,
        index: usize,
        cache: &mut Cache,
        tokens: &[Token<'_>],
    ) {
        let Self { crew, x, heads, normal, attended, angles, .. } = self;
        let architecture = &decoder.architecture;
        let per_head = architecture.head_size / TILE;
        let (query_tiles, key_tiles) = (architecture.heads * per_head, architecture.key_heads * per_head);
        crew.fill(normal, x.rows(), |cpu, part| decoder.norm(&layer.attention_norm).run(cpu, x, part));
        heads.resize(x.rows(), (query_tiles + 2 * key_tiles) * TILE);
        crew.product(&[&layer.queries, &layer.keys, &layer.values], normal, heads.all(), false);
        let (turned, _) = heads.all().split(query_tiles + key_tiles);
        crew.heads(turned, per_head, |cpu, part| rotate(cpu, angles, part));
        for (row, token) in tokens.iter().enumerate() {
            let of = |first| TilesRow { tiles: heads, row, first };
            let slot = cache.slot(token.pages, token.position, index);
            cache.write(crew.cpu, slot, of(query_tiles), of(query_tiles + key_tiles));
        }
        let queries = tokens.iter().map(|token| Query { position: token.position, pages: token.pages });
        let queries: Vec<Query<'_>> = queries.collect();
        let shared_by = architecture.shared_by();
        let all = Attention { cache, layer: index, tiles: heads, shared_by, queries: &queries };
        crew.attend(&all, attended);
        crew.product(&[&layer.attention_out], attended, x.all(), true);
    }

    fn feed_forward(&mut self, decoder: &Decoder, layer: &Layer) {
        let Self { crew, x, gates, normal, gated, .. } = self;
        crew.fill(normal, x.rows(), |cpu, part| decoder.norm(&layer.feed_forward_norm).run(cpu, x, part));
        gates.resize(x.rows(), 2 * decoder.architecture.feed_forward.next_multiple_of(TILE));
        crew.product(&[&layer.gate, &layer.up], normal, gates.all(), false);
        crew.fill(gated, x.rows(), |cpu, part| silu_gate(cpu, gates, part));
        crew.product(&[&layer.down], gated, x.all(), true);
    }

    fn score(&mut self, decoder: &Decoder, tokens: &[Token<'_>]) -> &Tiles {
        let Self { crew, x, wanted, scores, last, .. } = self;
        let rows: Vec<usize> = (0..tokens.len()).filter(|row| tokens[*row].wants_scores).collect();
        wanted.resize(rows.len(), decoder.architecture.width);
        let mut part = wanted.all();
        for (to, row) in rows.iter().enumerate() {
            part.copy_row(to, x, *row);
        }
        crew.fill(last, rows.len(), |cpu, part| decoder.norm(&decoder.norm).run(cpu, wanted, part));
        scores.resize(rows.len(), decoder.architecture.vocabulary);
        crew.product(&[decoder.head()], last, scores.all(), false);
        scores
    }
}
