//! The predicted time of a step, corrected by every step that really ran.
//!
//! It starts from the times measured at load for one shape. A shape not seen yet is assumed to cost in
//! proportion to its bytes; from its first step on, its own times count.

use std::collections::BTreeMap;
use std::time::Duration;

use quadrant_types::ShapeId;

use crate::ModelTerms;

/// Shapes times batch sizes that are remembered for one model; beyond it the estimate is scaled.
const REMEMBERED_MAX: usize = 512;

/// How much of a new measurement enters the estimate: settles in about ten steps, forgets a spike as fast.
const LEARNING_DIVISOR: i128 = 5;

/// What one model's steps cost.
#[derive(Clone, Debug)]
pub(crate) struct Costs {
    seeds: Vec<(u32, Duration)>,
    row_bytes: u64,
    learnt: BTreeMap<(ShapeId, u32), Duration>,
}

impl Costs {
    pub(crate) fn new(terms: &ModelTerms) -> Self {
        assert!(!terms.costs.is_empty(), "a model comes with at least one measured cost");
        Self { seeds: terms.costs.clone(), row_bytes: terms.row_bytes.max(1), learnt: BTreeMap::new() }
    }

    /// The predicted time of a step of `rows` rows and `bytes` input bytes in all.
    pub(crate) fn predict(&self, shape: ShapeId, rows: u32, bytes: u64) -> Duration {
        if let Some(learnt) = self.learnt.get(&(shape, rows)) {
            return *learnt;
        }
        let (seed_rows, seed) = self.nearest_seed(rows);
        let seed_bytes = self.row_bytes.saturating_mul(u64::from(seed_rows)).max(1);
        let by_rows = scale(seed, u64::from(rows), u64::from(seed_rows.max(1)));
        let by_bytes = scale(seed, bytes, seed_bytes);
        by_rows.max(by_bytes)
    }

    /// Takes in that such a step took `actual`.
    pub(crate) fn learn(&mut self, shape: ShapeId, rows: u32, actual: Duration) {
        let full = self.learnt.len() >= REMEMBERED_MAX;
        match self.learnt.get_mut(&(shape, rows)) {
            Some(known) => {
                let (old, new) = (as_nanos(*known), as_nanos(actual));
                let moved = i128::from(old) + (i128::from(new) - i128::from(old)) / LEARNING_DIVISOR;
                *known = Duration::from_nanos(u64::try_from(moved).unwrap_or(old));
            }
            None if !full => {
                self.learnt.insert((shape, rows), actual);
            }
            None => {}
        }
    }

    /// The measurement with the most rows not above `rows`, else the smallest.
    fn nearest_seed(&self, rows: u32) -> (u32, Duration) {
        let below = self.seeds.iter().rev().find(|(seed_rows, _)| *seed_rows <= rows);
        *below.unwrap_or(&self.seeds[0])
    }
}

fn as_nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// `duration * numerator / denominator`, saturating.
fn scale(duration: Duration, numerator: u64, denominator: u64) -> Duration {
    let nanos = duration.as_nanos().saturating_mul(u128::from(numerator)) / u128::from(denominator.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn costs() -> Costs {
        Costs::new(&ModelTerms {
            rows_max: 8,
            width: 1,
            queue_max: 10,
            delay_max: Duration::ZERO,
            costs: vec![(1, 10 * MS), (4, 30 * MS)],
            row_bytes: 100,
        })
    }

    #[test]
    fn unseen_steps_scale_by_rows_and_bytes() {
        for (rows, bytes, expect) in
            [(1, 100, 10), (2, 200, 20), (4, 400, 30), (8, 800, 60), (1, 300, 30), (1, 10, 10)]
        {
            assert_eq!(costs().predict(ShapeId(0), rows, bytes), expect * MS, "{rows} rows, {bytes} bytes");
        }
        assert_eq!(costs().predict(ShapeId(0), u32::MAX, u64::MAX).as_nanos(), u128::from(u64::MAX));
    }

    #[test]
    fn real_times_replace_the_guess_and_then_settle() {
        let mut costs = costs();
        costs.learn(ShapeId(1), 1, 50 * MS);
        assert_eq!(costs.predict(ShapeId(1), 1, 100), 50 * MS);
        costs.learn(ShapeId(1), 1, 100 * MS);
        assert_eq!(costs.predict(ShapeId(1), 1, 100), 60 * MS);
        assert_eq!(costs.predict(ShapeId(2), 1, 100), 10 * MS);
        for shape in 0..2_000 {
            costs.learn(ShapeId(shape), 1, MS);
        }
        assert_eq!(costs.learnt.len(), REMEMBERED_MAX);
    }
}
