//! Who computes a pass: an instruction set and a team of threads, and what each phase is worth sharing.

use quadrant_kernels::{Attention, Cpu, Matrix, Rows, RowsPart, Scratch, Team, TilesPart, copy, multiply};

/// Fewer blocks of 32 numbers are not worth waking anybody for: so many take about 2 us.
const BLOCKS_SHARED: usize = 256;
/// Nor are fewer keys, over all queries.
const KEYS_SHARED: usize = 512;

/// The threads of a pass.
#[derive(Debug)]
pub(crate) struct Crew {
    pub(crate) cpu: Cpu,
    team: Team,
    scratch: Vec<Scratch>,
    /// What attention gives: `[row][head][dimension]`.
    attention: Vec<f32>,
}

impl Crew {
    pub(crate) fn new(cpu: Cpu, team: Team) -> Self {
        let scratch = (0..team.width()).map(|_| Scratch::default()).collect();
        Self { cpu, team, scratch, attention: Vec::new() }
    }

    /// Products with some matrices whose outputs follow each other, written or added.
    pub(crate) fn product(&mut self, matrices: &[&Matrix], rows: &Rows, out: TilesPart<'_>, add: bool) {
        let cpu = self.cpu;
        self.team.run(out.cut(self.team.width(), 1), |part| multiply(cpu, matrices, rows, part, add));
    }

    /// Fills the `count` rows of the next product.
    pub(crate) fn fill(&mut self, rows: &mut Rows, count: usize, fill: impl Fn(Cpu, RowsPart<'_>) + Sync) {
        rows.resize(count);
        let (cpu, width) = (self.cpu, self.worth(rows.count() * rows.blocks()));
        self.team.run(rows.all().cut(width), |part| fill(cpu, part));
    }

    /// Works on heads of `unit` tiles where they lie.
    pub(crate) fn heads(
        &mut self,
        heads: TilesPart<'_>,
        unit: usize,
        work: impl Fn(Cpu, TilesPart<'_>) + Sync,
    ) {
        let (cpu, width) = (self.cpu, self.worth(heads.rows() * heads.range().len() / 2));
        self.team.run(heads.cut(width, unit), |part| work(cpu, part));
    }

    /// Fills the rows of the next product with all that an attention gives.
    pub(crate) fn attend(&mut self, attention: &Attention<'_>, attended: &mut Rows) {
        let keys: usize = attention.queries.iter().map(|query| query.position + 1).sum();
        let width = if keys < KEYS_SHARED { 1 } else { self.team.width() };
        let (cpu, size) = (self.cpu, attention.item_size());
        let mut out = std::mem::take(&mut self.attention);
        out.resize(attention.items() * size, 0.0);
        let mut rest = &mut out[..];
        let mut parts = Vec::with_capacity(width);
        for (items, scratch) in attention.cut(width).into_iter().zip(&mut self.scratch) {
            let (own, others) = rest.split_at_mut(items.len() * size);
            parts.push((items, own, scratch));
            rest = others;
        }
        self.team.run(parts, |(items, out, scratch)| attention.run(cpu, items, out, scratch));
        let inner = attended.inner();
        self.fill(attended, attention.queries.len(), |cpu, part| copy(cpu, &out, inner, part));
        self.attention = out;
    }

    fn worth(&self, blocks: usize) -> usize {
        if blocks < BLOCKS_SHARED { 1 } else { self.team.width() }
    }
}
