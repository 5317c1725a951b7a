//! Keys and values of the tokens so far, in pages.
//!
//! A page holds some tokens of one sequence in all layers, and is one piece of memory: what is shared, moved
//! or copied is a page. Within it sixteen tokens are a *group*: `[layer][head][group]`, of a group the keys
//! as `[dimension][token]`, so that one vector is one dimension of sixteen keys, and the values as
//! `[tile][token][16 dimensions]`. Numbers are FP16, or FP32 where nothing may be lost.

use std::ops::Range;

use crate::cpu::{Cpu, Kernel};
use crate::isa::{Isa, LANES};
use crate::tiles::{TILE, Tiles};

/// Tokens in a group; a page is a whole number of groups.
pub const GROUP: usize = LANES;

/// How the numbers of a cache are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// Two bytes each.
    #[default]
    Half,
    /// Four bytes each, as they were computed.
    Single,
}

/// Sixteen numbers as a cache keeps them.
pub(crate) trait Stored: Copy {
    /// Sixteen zeros.
    const ZERO: Self;

    /// The pages of a cache that keeps such numbers.
    fn pages(cache: &Cache) -> &[Box<[Self]>];
    /// Reads them. `#[inline(always)]`.
    fn load<I: Isa>(&self, isa: I) -> I::Floats;
    /// Writes them. `#[inline(always)]`.
    fn store<I: Isa>(isa: I, values: I::Floats) -> Self;
    /// Takes one number over, lane `from` of `other`, as lane `to`.
    fn take(&mut self, to: usize, other: &Self, from: usize);
}

/// The largest FP16 number.
const LARGEST: f32 = 65_504.0;

/// Sixteen FP16 numbers.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(32))]
pub(crate) struct Halves([u8; 2 * LANES]);

/// Sixteen FP32 numbers.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Singles([f32; LANES]);

impl Stored for Halves {
    const ZERO: Self = Self([0; 2 * LANES]);

    fn pages(cache: &Cache) -> &[Box<[Self]>] {
        match &cache.pages {
            Pages::Half(pages) => pages,
            Pages::Single(_) => unreachable!("the caller asks by the cache's precision"),
        }
    }

    #[inline(always)]
    fn load<I: Isa>(&self, isa: I) -> I::Floats {
        isa.load_f16(&self.0)
    }

    #[inline(always)]
    fn store<I: Isa>(isa: I, values: I::Floats) -> Self {
        // What no query sees yet takes part times zero, which makes an infinity more than nothing.
        let bounded = isa.max(isa.splat(-LARGEST), isa.min(isa.splat(LARGEST), values));
        let mut halves = Self::ZERO;
        isa.store_f16(bounded, &mut halves.0);
        halves
    }

    #[inline(always)]
    fn take(&mut self, to: usize, other: &Self, from: usize) {
        self.0[2 * to..][..2].copy_from_slice(&other.0[2 * from..][..2]);
    }
}

impl Stored for Singles {
    const ZERO: Self = Self([0.0; LANES]);

    fn pages(cache: &Cache) -> &[Box<[Self]>] {
        match &cache.pages {
            Pages::Single(pages) => pages,
            Pages::Half(_) => unreachable!("the caller asks by the cache's precision"),
        }
    }

    #[inline(always)]
    fn load<I: Isa>(&self, isa: I) -> I::Floats {
        isa.load(&self.0)
    }

    #[inline(always)]
    fn store<I: Isa>(isa: I, values: I::Floats) -> Self {
        let mut singles = Self::ZERO;
        isa.store(values, &mut singles.0);
        singles
    }

    #[inline(always)]
    fn take(&mut self, to: usize, other: &Self, from: usize) {
        self.0[to] = other.0[from];
    }
}

/// How pages are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheShape {
    /// Layers of the model.
    pub layers: usize,
    /// Heads of keys and values.
    pub heads: usize,
    /// Dimensions of a head, a multiple of 32.
    pub head_size: usize,
    /// Tokens of a page, a multiple of [`GROUP`].
    pub page_tokens: usize,
    /// How numbers are kept.
    pub precision: Precision,
}

/// The pages of one model.
#[derive(Debug)]
pub struct Cache {
    shape: CacheShape,
    pages: Pages,
}

#[derive(Debug)]
enum Pages {
    Half(Vec<Box<[Halves]>>),
    Single(Vec<Box<[Singles]>>),
}

impl CacheShape {
    fn page_vectors(&self) -> usize {
        self.layers * self.heads * self.page_tokens / GROUP * self.group_vectors()
    }

    /// Keys and values of a group, sixteen numbers each.
    fn group_vectors(&self) -> usize {
        2 * self.head_size
    }

    /// Where the group of the page's token `token` is.
    #[inline(always)]
    fn group(&self, layer: usize, head: usize, token: usize) -> Range<usize> {
        let groups = self.page_tokens / GROUP;
        let start = ((layer * self.heads + head) * groups + token / GROUP) * self.group_vectors();
        start..start + self.group_vectors()
    }
}

impl Cache {
    /// No pages yet.
    ///
    /// # Panics
    /// If the shape is not as its fields say.
    pub fn new(shape: CacheShape) -> Self {
        assert!(shape.head_size.is_multiple_of(2 * TILE), "heads of whole pairs of tiles");
        assert!(shape.page_tokens > 0 && shape.page_tokens.is_multiple_of(GROUP), "pages of whole groups");
        let pages = match shape.precision {
            Precision::Half => Pages::Half(Vec::new()),
            Precision::Single => Pages::Single(Vec::new()),
        };
        Self { shape, pages }
    }

    /// How pages are laid out.
    pub fn shape(&self) -> CacheShape {
        self.shape
    }

    /// Where the token at `position` of a sequence with these pages is, in a layer.
    ///
    /// # Panics
    /// If the pages do not reach so far.
    #[inline(always)]
    pub fn slot(&self, pages: &[usize], position: usize, layer: usize) -> CacheSlot {
        let page_tokens = self.shape.page_tokens;
        CacheSlot { page: pages[position / page_tokens], token: position % page_tokens, layer }
    }

    /// Adds a page and gives its index.
    pub fn add_page(&mut self) -> usize {
        let count = self.shape.page_vectors();
        match &mut self.pages {
            Pages::Half(pages) => pages.push(vec![Halves::ZERO; count].into_boxed_slice()),
            Pages::Single(pages) => pages.push(vec![Singles::ZERO; count].into_boxed_slice()),
        }
        self.pages() - 1
    }

    /// How many pages there are.
    pub fn pages(&self) -> usize {
        match &self.pages {
            Pages::Half(pages) => pages.len(),
            Pages::Single(pages) => pages.len(),
        }
    }

    /// Writes a token's keys and values of one layer: row `row` of `keys` and `values`, whose heads follow
    /// each other, as token `token` of page `page`. Tokens are written in their order: the first of a group
    /// clears what an earlier sequence left there.
    ///
    /// # Panics
    /// If there is no such page, token, layer or row.
    pub fn write(&mut self, cpu: Cpu, slot: CacheSlot, keys: TilesRow<'_>, values: TilesRow<'_>) {
        let shape = self.shape;
        assert!(slot.token < shape.page_tokens && slot.layer < shape.layers, "beyond the page");
        match &mut self.pages {
            Pages::Half(pages) => cpu.run(Write { shape, page: &mut pages[slot.page], slot, keys, values }),
            Pages::Single(pages) => cpu.run(Write { shape, page: &mut pages[slot.page], slot, keys, values }),
        }
    }

    /// The keys and values of a group.
    #[inline(always)]
    pub(crate) fn group<S: Stored>(&self, slot: CacheSlot, head: usize) -> (&[S], &[S]) {
        let group = &S::pages(self)[slot.page][self.shape.group(slot.layer, head, slot.token)];
        group.split_at(self.shape.head_size)
    }
}

/// Where a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheSlot {
    /// The page's index.
    pub page: usize,
    /// The token within the page.
    pub token: usize,
    /// The layer.
    pub layer: usize,
}

/// One row of some tiles.
#[derive(Debug, Clone, Copy)]
pub struct TilesRow<'a> {
    /// The tiles.
    pub tiles: &'a Tiles,
    /// The row.
    pub row: usize,
    /// The tile that the first head starts at.
    pub first: usize,
}

struct Write<'a, S> {
    shape: CacheShape,
    page: &'a mut [S],
    slot: CacheSlot,
    keys: TilesRow<'a>,
    values: TilesRow<'a>,
}

impl<S: Stored> Kernel for Write<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { shape, page, slot, keys, values } = self;
        let (tiles, token) = (shape.head_size / TILE, slot.token % GROUP);
        for head in 0..shape.heads {
            let group = &mut page[shape.group(slot.layer, head, slot.token)];
            if token == 0 {
                group.fill(S::ZERO);
            }
            let (to_keys, to_values) = group.split_at_mut(shape.head_size);
            for tile in 0..tiles {
                let key = isa.load(&keys.tiles.tile(keys.first + head * tiles + tile)[keys.row]);
                let key = S::store(isa, key);
                for (dimension, to) in to_keys[tile * TILE..][..TILE].iter_mut().enumerate() {
                    to.take(token, &key, dimension);
                }
                let value = isa.load(&values.tiles.tile(values.first + head * tiles + tile)[values.row]);
                to_values[tile * GROUP + token] = S::store(isa, value);
            }
        }
    }
}
