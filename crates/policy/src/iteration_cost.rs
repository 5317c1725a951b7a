//! What an iteration of a language model takes: so much for reading the weights, so much for each token, and
//! so much for each key that a token attends to.
//!
//! Reading the weights does not grow with the tokens, computing does, and where one hides the other depends
//! on the machine. So the time is measured at some numbers of tokens and taken to be straight between them;
//! every step that really ran moves the two numbers nearest to its own.

use std::time::Duration;

use quadrant_types::ShapeId;
use smallvec::SmallVec;

use crate::cost::{Beside, Kind};
use crate::span::{as_nanos, from_nanos};
use crate::{Cost, ModelTerms};

/// The share of a deviation that enters an estimate.
const LEARNING_RATE: f64 = 0.1;
/// Deviations beyond this share count as this much, so that estimates follow the median.
const DEVIATION_MAX: f64 = 0.25;

/// The times of one model's iterations.
#[derive(Clone, Debug)]
pub(crate) struct IterationCosts {
    widths: SmallVec<[Width; 2]>,
    /// Nanoseconds of one core for each key that a token attends to.
    key_nanos: f64,
}

#[derive(Clone, Debug)]
struct Width {
    cores: usize,
    /// Nanoseconds by tokens, ascending; never empty.
    knots: Vec<(u32, f64)>,
}

impl IterationCosts {
    /// `None` for a model that generates nothing.
    pub(crate) fn new(terms: &ModelTerms) -> Option<Self> {
        let sequences = terms.sequences.as_ref()?;
        let width = |cores: usize| {
            // A width of which nothing was measured is taken to be like the nearest.
            let nearest = terms.costs.iter().min_by_key(|cost| cost.width.abs_diff(cores));
            let like = nearest.map_or(cores, |cost| cost.width);
            let own = |cost: &&Cost| cost.width == like && !cost.beside;
            let any = |cost: &&Cost| cost.width == like;
            let mut knots: Vec<(u32, f64)> =
                terms.costs.iter().filter(own).map(|cost| (cost.rows, as_nanos(cost.time))).collect();
            if knots.is_empty() {
                knots.extend(terms.costs.iter().filter(any).map(|cost| (cost.rows, as_nanos(cost.time))));
            }
            knots.sort_by_key(|(rows, _)| *rows);
            knots.dedup_by_key(|(rows, _)| *rows);
            Width { cores, knots }
        };
        let widths = terms.widths.iter().copied().map(width).collect();
        Some(Self { widths, key_nanos: as_nanos(sequences.thousand_keys) / 1_000.0 })
    }

    /// The time of `tokens` tokens that attend to `keys` keys in all, on so many cores.
    pub(crate) fn predict(&self, cores: usize, tokens: u32, keys: u64) -> Duration {
        from_nanos(self.of_tokens(cores, tokens) + self.of_keys(cores, keys))
    }

    /// The most tokens, up to `tokens_max`, that so much time is enough for when `before` tokens are computed
    /// anyway, and attend to `keys` keys. Each of the tokens attends to `each` keys.
    pub(crate) fn fitting(
        &self,
        (cores, within): (usize, Duration),
        (before, keys): (u32, u64),
        each: u64,
        tokens_max: u32,
    ) -> u32 {
        let fits = |tokens: u32| {
            let keys = keys.saturating_add(each.saturating_mul(u64::from(tokens)));
            self.predict(cores, before.saturating_add(tokens), keys) <= within
        };
        let (mut fitting, mut too_many) = (0, tokens_max.saturating_add(1));
        while too_many - fitting > 1 {
            let middle = fitting + (too_many - fitting) / 2;
            if fits(middle) { fitting = middle } else { too_many = middle }
        }
        fitting
    }

    /// Takes in that an iteration took `nanos`, on cores as fast as usually. Gives what was expected.
    pub(crate) fn learn(&mut self, cores: usize, tokens: u32, keys: u64, nanos: f64) -> f64 {
        let (of_tokens, of_keys) = (self.of_tokens(cores, tokens), self.of_keys(cores, keys));
        let expected = of_tokens + of_keys;
        let deviation = (nanos / expected.max(1.0) - 1.0).clamp(-DEVIATION_MAX, DEVIATION_MAX);
        let knots = &mut self.width_mut(cores).knots;
        let after = knots.partition_point(|(rows, _)| *rows < tokens).min(knots.len() - 1);
        let before = after.saturating_sub(usize::from(knots[after].0 > tokens));
        let share = share(knots[before].0, knots[after].0, tokens);
        knots[before].1 *= 1.0 + LEARNING_RATE * deviation * (1.0 - share);
        if after != before {
            knots[after].1 *= 1.0 + LEARNING_RATE * deviation * share;
        }
        expected
    }

    /// The measured times as they turned out to be.
    pub(crate) fn corrected(&self, measured: &[Cost]) -> Vec<Cost> {
        let corrected = |cost: &Cost| Cost { time: self.predict(cost.width, cost.rows, 0), ..*cost };
        measured.iter().map(corrected).collect()
    }

    fn of_tokens(&self, cores: usize, tokens: u32) -> f64 {
        let knots = &self.width(cores).knots;
        let after = knots.partition_point(|(rows, _)| *rows < tokens);
        let Some(next) = knots.get(after) else {
            let (rows, nanos) = knots[knots.len() - 1];
            return nanos * f64::from(tokens) / f64::from(rows.max(1));
        };
        if next.0 == tokens || after == 0 {
            return next.1;
        }
        let last = knots[after - 1];
        last.1 + (next.1 - last.1) * share(last.0, next.0, tokens)
    }

    fn of_keys(&self, cores: usize, keys: u64) -> f64 {
        self.key_nanos * keys as f64 / cores.max(1) as f64
    }

    fn width(&self, cores: usize) -> &Width {
        self.widths.iter().min_by_key(|width| width.cores.abs_diff(cores)).expect("a model has a width")
    }

    fn width_mut(&mut self, cores: usize) -> &mut Width {
        self.widths.iter_mut().min_by_key(|width| width.cores.abs_diff(cores)).expect("a model has a width")
    }
}

/// How far `at` lies between two numbers, 0 to 1.
fn share(from: u32, to: u32, at: u32) -> f64 {
    if to <= from { 0.0 } else { f64::from(at.saturating_sub(from)) / f64::from(to - from) }
}

/// Keys that `tokens` tokens attend to, the first of which follows `from` others.
pub(crate) fn keys_of(from: u32, tokens: u32) -> u64 {
    let (from, tokens) = (u64::from(from), u64::from(tokens));
    tokens * from + tokens * (tokens + 1) / 2
}

/// An iteration of one token.
pub(crate) fn iteration_kind(width: usize) -> Kind {
    Kind { shape: ShapeId(0), rows: 1, width, beside: Beside::Usual }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SequenceTerms;

    const MS: Duration = Duration::from_millis(1);

    fn costs() -> IterationCosts {
        let cost = |rows, width, ms: u32| Cost { rows, width, beside: false, time: ms * MS };
        let sequences = SequenceTerms { page_tokens: 16, pages: 8, tokens_max: 128, thousand_keys: MS };
        let terms = ModelTerms {
            rows_max: 64,
            widths: vec![1, 2],
            costs: vec![cost(1, 1, 10), cost(9, 1, 18), cost(64, 1, 128), cost(1, 2, 8), cost(64, 2, 70)],
            sequences: Some(sequences),
            ..ModelTerms::default()
        };
        IterationCosts::new(&terms).unwrap()
    }

    #[test]
    fn between_what_was_measured_the_time_is_straight() {
        let costs = costs();
        for (cores, tokens, keys, ms) in [
            (1, 1, 0, 10),
            (1, 5, 0, 14),
            (1, 9, 2_000, 20),
            (1, 128, 0, 256),
            (2, 1, 2_000, 9),
            (2, 64, 0, 70),
        ] {
            assert_eq!(costs.predict(cores, tokens, keys), ms * MS, "{tokens} tokens, {keys} keys");
        }
    }

    #[test]
    fn as_many_tokens_are_found_as_there_is_time_for() {
        let fitting = |ms: u32, before, keys, each| costs().fitting((1, ms * MS), (before, keys), each, 60);
        assert_eq!(fitting(17, 0, 0, 0), 8);
        assert_eq!(fitting(17, 4, 0, 0), 4);
        assert_eq!(fitting(17, 4, 2_000, 0), 2);
        assert_eq!(fitting(17, 0, 0, 1_000), 4);
        assert_eq!((fitting(9, 0, 0, 0), fitting(1_000, 0, 0, 0)), (0, 60));
    }

    #[test]
    fn what_really_ran_moves_what_is_nearest() {
        let mut costs = costs();
        for _ in 0..200 {
            costs.learn(1, 5, 0, 21e6);
        }
        let now = |tokens| costs.predict(1, tokens, 0).as_secs_f64() * 1e3;
        assert!((now(5) - 21.0).abs() < 0.5 && now(1) > 13.0 && now(9) > 25.0, "{} {}", now(1), now(9));
        assert!((now(64) - 128.0).abs() < 1e-6);
    }
}
