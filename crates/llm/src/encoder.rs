//! An encoder of the BERT family: a text's tokens, all of which see each other, become one vector.
//!
//! As `sentence-transformers` computes it: the mean of what the tokens are after the last layer, or the first
//! of them.

use quadrant_kernels::{
    Attention, Cache, CacheShape, Cpu, Matrix, Precision, Query, Rows, TILE, Team, Tiles, TilesPart,
    TilesRow, copy_tiles, gelu, layer_norm,
};

use crate::crew::Crew;
use crate::encoder_config::{EncoderConfig, Pooling};
use crate::weights::{Source, Tiled, slab};
use crate::{FileError, Tensors};

/// Tokens of one pass, unless a single text has more: what bounds the memory that a pass takes. As no text
/// depends on its company, passes need not hold all that is asked for.
const PASS_TOKENS: usize = 2_048;

/// Tokens of a page of keys and values.
const PAGE_TOKENS: usize = 64;

/// The weights of an encoder, packed for the products.
#[derive(Debug)]
pub struct Encoder {
    config: EncoderConfig,
    pooling: Pooling,
    words: Matrix,
    positions: Matrix,
    /// That of texts that are one sentence.
    kind: Vec<f32>,
    norm: Norm,
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Layer {
    queries: Linear,
    keys: Linear,
    values: Linear,
    attention_out: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    norm: Norm,
}

#[derive(Debug)]
struct Linear {
    weight: Matrix,
    bias: Tiled,
}

#[derive(Debug)]
struct Norm {
    weight: Tiled,
    bias: Tiled,
}

impl Encoder {
    /// Packs the weights of a safetensors file as Hugging Face's `BertModel` writes it.
    ///
    /// # Errors
    /// If the configuration is of another kind of model, or a tensor is missing or has another shape.
    pub fn of_safetensors(
        config: EncoderConfig,
        pooling: Pooling,
        tensors: &Tensors<'_>,
    ) -> Result<Self, FileError> {
        config.check()?;
        let EncoderConfig { width, vocabulary, context, .. } = config;
        let source = Source { tensors, slab: slab(tensors)? };
        let prefix = prefix(tensors);
        let matrix =
            |name: &str, rows| source.matrix(&format!("{prefix}embeddings.{name}.weight"), rows, width);
        let layer = |index| layer(&source, &config, &format!("{prefix}encoder.layer.{index}"));
        let kinds = matrix("token_type_embeddings", 2)?;
        Ok(Self {
            words: matrix("word_embeddings", vocabulary)?,
            positions: matrix("position_embeddings", context)?,
            kind: kinds.row(0),
            norm: norm(&source, &format!("{prefix}embeddings.LayerNorm"), width)?,
            layers: (0..config.layers).map(layer).collect::<Result<_, _>>()?,
            config,
            pooling,
        })
    }

    /// What the model is.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// What the packed weights take in memory.
    pub fn bytes(&self) -> usize {
        let of = |layer: &Layer| -> usize {
            let Layer { queries, keys, values, attention_out, up, down, .. } = layer;
            [queries, keys, values, attention_out, up, down].map(|linear| linear.weight.bytes()).iter().sum()
        };
        self.words.bytes() + self.positions.bytes() + self.layers.iter().map(of).sum::<usize>()
    }
}

/// What names begin with: nothing, or the model's own name where it was a part of a larger one.
fn prefix(tensors: &Tensors<'_>) -> &'static str {
    let prefixed = tensors.names().any(|name| name.starts_with("bert.embeddings."));
    if prefixed { "bert." } else { "" }
}

fn layer(source: &Source<'_>, config: &EncoderConfig, own: &str) -> Result<Layer, FileError> {
    let EncoderConfig { width, feed_forward, .. } = *config;
    let name = |part: &str| format!("{own}.{part}");
    let linear = |part: &str, outputs, inner| -> Result<Linear, FileError> {
        let weight = source.matrix(&name(&format!("{part}.weight")), outputs, inner)?;
        Ok(Linear { weight, bias: source.vector(&name(&format!("{part}.bias")), outputs)? })
    };
    Ok(Layer {
        queries: linear("attention.self.query", width, width)?,
        keys: linear("attention.self.key", width, width)?,
        values: linear("attention.self.value", width, width)?,
        attention_out: linear("attention.output.dense", width, width)?,
        attention_norm: norm(source, &name("attention.output.LayerNorm"), width)?,
        up: linear("intermediate.dense", feed_forward, width)?,
        down: linear("output.dense", width, feed_forward)?,
        norm: norm(source, &name("output.LayerNorm"), width)?,
    })
}

fn norm(source: &Source<'_>, name: &str, width: usize) -> Result<Norm, FileError> {
    let weight = source.vector(&format!("{name}.weight"), width)?;
    Ok(Norm { weight, bias: source.vector(&format!("{name}.bias"), width)? })
}

/// Who computes, and the memory that a pass takes while it lasts.
#[derive(Debug)]
pub struct Embedder {
    crew: Crew,
    x: Tiles,
    heads: Tiles,
    wide: Tiles,
    /// What attention and the feed-forward layer begin with.
    rows: Rows,
    attended: Rows,
    activated: Rows,
    /// Keys and values of one layer.
    cache: Cache,
}

/// Where the texts of a pass lie among its rows.
struct Texts<'a> {
    texts: &'a [&'a [u32]],
    /// The pages of each.
    pages: Vec<Vec<usize>>,
}

impl Texts<'_> {
    fn rows(&self) -> usize {
        self.texts.iter().map(|text| text.len()).sum()
    }

    /// Of every token its text, and its place there.
    fn tokens(&self) -> impl Iterator<Item = (usize, usize)> {
        let with = self.texts.iter().enumerate();
        with.flat_map(|(text, tokens)| (0..tokens.len()).map(move |position| (text, position)))
    }
}

impl Embedder {
    /// Room for passes through `encoder` by `team`.
    pub fn new(encoder: &Encoder, cpu: Cpu, team: Team) -> Self {
        let EncoderConfig { width, heads, feed_forward, .. } = encoder.config;
        let encodings = |of: &dyn Fn(&Layer) -> [&Linear; 4]| -> Vec<_> {
            encoder.layers.iter().flat_map(of).map(|linear| linear.weight.encoding()).collect()
        };
        let shape = CacheShape {
            layers: 1,
            heads,
            head_size: width / heads,
            page_tokens: PAGE_TOKENS,
            precision: Precision::Single,
        };
        Self {
            crew: Crew::new(cpu, team),
            x: Tiles::default(),
            heads: Tiles::default(),
            wide: Tiles::default(),
            rows: Rows::new(
                width,
                encodings(&|layer| [&layer.queries, &layer.keys, &layer.values, &layer.up]),
            ),
            attended: Rows::new(width, encodings(&|layer| [&layer.attention_out; 4])),
            activated: Rows::new(feed_forward, encodings(&|layer| [&layer.down; 4])),
            cache: Cache::new(shape),
        }
    }

    /// The vector of each text: its tokens after the last layer, pooled, not yet divided by its length. Of an
    /// empty text it is zero.
    ///
    /// # Panics
    /// If a token is not in the vocabulary, or a text longer than the encoder's context.
    pub fn run(&mut self, encoder: &Encoder, texts: &[&[u32]]) -> Vec<Vec<f32>> {
        let mut vectors = Vec::with_capacity(texts.len());
        let mut rest = texts;
        while !rest.is_empty() {
            let mut tokens = 0;
            let fits = rest.iter().take_while(|text| {
                tokens += text.len();
                tokens <= PASS_TOKENS
            });
            let (now, later) = rest.split_at(fits.count().max(1));
            vectors.extend(self.pass(encoder, now));
            rest = later;
        }
        vectors
    }

    fn pass(&mut self, encoder: &Encoder, texts: &[&[u32]]) -> Vec<Vec<f32>> {
        let mut next = 0;
        let mut take = |tokens: &[u32]| -> Vec<usize> {
            let first = next;
            next += tokens.len().div_ceil(PAGE_TOKENS);
            (first..next).collect()
        };
        let pages = texts.iter().map(|text| take(text)).collect();
        while self.cache.pages() < next {
            self.cache.add_page();
        }
        let texts = Texts { texts, pages };
        self.embed(encoder, &texts);
        for layer in &encoder.layers {
            self.attend(encoder, layer, &texts);
            self.feed_forward(encoder, layer);
        }
        self.pool(encoder, &texts)
    }

    fn embed(&mut self, encoder: &Encoder, texts: &Texts<'_>) {
        self.x.resize(texts.rows(), encoder.config.width);
        let mut x = self.x.all();
        for (row, (text, position)) in texts.tokens().enumerate() {
            let word = encoder.words.row(texts.texts[text][position] as usize);
            let place = encoder.positions.row(position);
            let sum =
                word.iter().zip(&place).zip(&encoder.kind).map(|((word, place), kind)| word + place + kind);
            x.set_row(row, &sum.collect::<Vec<f32>>());
        }
        encoder.norm.run(self.crew.cpu, encoder, x);
    }

    fn attend(&mut self, encoder: &Encoder, layer: &Layer, texts: &Texts<'_>) {
        let Self { crew, x, heads, rows, attended, cache, .. } = self;
        let width = encoder.config.width;
        crew.fill(rows, x.rows(), |cpu, part| copy_tiles(cpu, x, part));
        heads.resize(x.rows(), 3 * width);
        let tiles = width / TILE;
        let (queries, rest) = heads.all().split(tiles);
        let (keys, values) = rest.split(tiles);
        for (part, linear) in [(queries, &layer.queries), (keys, &layer.keys), (values, &layer.values)] {
            linear.run(crew, rows, part.rebased(), false);
        }
        for (row, (text, position)) in texts.tokens().enumerate() {
            let of = |first| TilesRow { tiles: heads, row, first };
            let slot = cache.slot(&texts.pages[text], position, 0);
            cache.write(crew.cpu, slot, of(tiles), of(2 * tiles));
        }
        // Every token sees all of its text, so each is asked as its last one.
        let query = |(text, _): (usize, usize)| Query {
            position: texts.texts[text].len() - 1,
            pages: &texts.pages[text],
        };
        let queries: Vec<Query<'_>> = texts.tokens().map(query).collect();
        let all = Attention { cache, layer: 0, tiles: heads, shared_by: 1, queries: &queries };
        crew.attend(&all, attended);
        layer.attention_out.run(crew, attended, x.all(), true);
        layer.attention_norm.run(crew.cpu, encoder, x.all());
    }

    fn feed_forward(&mut self, encoder: &Encoder, layer: &Layer) {
        let Self { crew, x, wide, rows, activated, .. } = self;
        crew.fill(rows, x.rows(), |cpu, part| copy_tiles(cpu, x, part));
        wide.resize(x.rows(), encoder.config.feed_forward);
        layer.up.run(crew, rows, wide.all(), false);
        crew.fill(activated, x.rows(), |cpu, part| gelu(cpu, wide, part));
        layer.down.run(crew, activated, x.all(), true);
        layer.norm.run(crew.cpu, encoder, x.all());
    }

    fn pool(&self, encoder: &Encoder, texts: &Texts<'_>) -> Vec<Vec<f32>> {
        let width = encoder.config.width;
        let mut vectors: Vec<Vec<f32>> = texts.texts.iter().map(|_| vec![0.0; width]).collect();
        for (row, (text, position)) in texts.tokens().enumerate() {
            if encoder.pooling == Pooling::First && position > 0 {
                continue;
            }
            for (sum, value) in vectors[text].iter_mut().zip(self.x.row(row)) {
                *sum += value;
            }
        }
        if encoder.pooling == Pooling::Mean {
            for (sum, text) in vectors.iter_mut().zip(texts.texts) {
                sum.iter_mut().for_each(|value| *value /= text.len().max(1) as f32);
            }
        }
        vectors
    }
}

impl Linear {
    /// The product with the bias, written or added.
    fn run(&self, crew: &mut Crew, rows: &Rows, mut out: TilesPart<'_>, add: bool) {
        out.bias(&self.bias, add);
        crew.product(&[&self.weight], rows, out, true);
    }
}

impl Norm {
    fn run(&self, cpu: Cpu, encoder: &Encoder, x: TilesPart<'_>) {
        layer_norm(cpu, x, encoder.config.width, encoder.config.epsilon, &self.weight, &self.bias);
    }
}
