//! The predicted time of a step, corrected by every step that really ran.
//!
//! It starts from the times measured at load. From then on a step's own history counts: by shape, rows,
//! width, and by what runs on the other cores, because steps that share caches and memory slow each other
//! down, and by how much depends on which they are. Estimates follow the median: a single outlier moves one
//! by little, a lasting change by as much as it is. What has not been seen is scaled from what has.

use std::time::Duration;

use quadrant_types::{ModelId, ShapeId};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use crate::iteration_cost::IterationCosts;
use crate::span::{as_nanos, from_nanos, scaled};
use crate::{Cost, ModelTerms};

/// Kinds of steps of one model that are remembered; beyond it estimates are scaled from the measured ones.
const REMEMBERED_MAX: usize = 512;
/// The share of a deviation that enters an estimate, once it has settled.
const LEARNING_RATE: f64 = 0.1;
/// Deviations beyond this share count as this much, which is what makes the estimate follow the median.
const DEVIATION_MAX: f64 = 0.25;
/// Steps of a kind that are simply averaged before outliers are cut.
const SETTLING: u32 = 4;
/// The quantile of the real time over the predicted one that a deadline is held against.
const HIGH_QUANTILE: f64 = 0.95;
/// That ratio to begin with, and its bounds.
const HIGH_RATIO: (f64, f64, f64) = (1.05, 1.25, 3.0);
/// How far one step moves it.
const HIGH_STEP: f64 = 0.02;

/// A kind of step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kind {
    pub(crate) shape: ShapeId,
    pub(crate) rows: u32,
    pub(crate) width: usize,
    pub(crate) beside: Beside,
}

/// What runs on the other cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Beside {
    /// Nothing.
    Nothing,
    /// A step of this model.
    Model(ModelId),
    /// Whatever usually does.
    Usual,
}

/// Where a step would run, as far as its time depends on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    /// Cores.
    pub(crate) width: usize,
    pub(crate) beside: Beside,
    /// How many times longer than usually steps take on these cores at present.
    pub(crate) slowdown: f64,
}

/// What is known of a kind of step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usual {
    /// What one takes on cores as fast as usually, in nanoseconds.
    pub(crate) nanos: f64,
    /// By which share of that it rarely takes longer.
    pub(crate) scatter: f64,
}

#[derive(Clone, Copy, Debug)]
struct Learnt {
    nanos: f64,
    seen: u32,
}

/// What one model's steps cost.
#[derive(Clone, Debug)]
pub(crate) struct Costs {
    measured: Vec<Cost>,
    row_bytes: u64,
    learnt: FxHashMap<Kind, Learnt>,
    /// The real time of steps over what the measured ones say, by width, for kinds not seen yet.
    bias: SmallVec<[(usize, f64); 2]>,
    /// The real time over the predicted one that is rarely exceeded.
    high: f64,
    /// Of a model that generates; then `bytes` are the keys that its tokens attend to.
    iterations: Option<IterationCosts>,
    /// Iterations that were seen.
    iterations_seen: u32,
}

impl Costs {
    pub(crate) fn new(terms: &ModelTerms) -> Self {
        assert!(!terms.costs.is_empty(), "a model comes with at least one measured cost");
        Self {
            measured: terms.costs.clone(),
            row_bytes: terms.row_bytes.max(1),
            learnt: FxHashMap::default(),
            bias: terms.widths.iter().map(|width| (*width, 1.0)).collect(),
            high: HIGH_RATIO.1,
            iterations: IterationCosts::new(terms),
            iterations_seen: 0,
        }
    }

    /// The predicted time of a step with `bytes` input bytes in all, in the median.
    pub(crate) fn predict(&self, kind: Kind, bytes: u64) -> Duration {
        self.predict_at(kind, bytes, 1.0)
    }

    /// The same on cores that are so many times slower than usually.
    pub(crate) fn predict_at(&self, kind: Kind, bytes: u64, slowdown: f64) -> Duration {
        if let Some(iterations) = &self.iterations {
            return scaled(iterations.predict(kind.width, kind.rows, bytes), slowdown);
        }
        let known = self.learnt.get(&kind).or_else(|| {
            let usual = Kind { beside: Beside::Usual, ..kind };
            self.learnt.get(&usual).filter(|learnt| learnt.seen >= SETTLING)
        });
        match known {
            Some(learnt) => from_nanos(learnt.nanos * slowdown),
            None => from_nanos(self.extrapolated(kind, bytes) * self.bias(kind.width) * slowdown),
        }
    }

    /// The most tokens that an iteration has time for beside others; see [`IterationCosts::fitting`].
    pub(crate) fn fitting(
        &self,
        time: (usize, Duration),
        before: (u32, u64),
        each: u64,
        tokens_max: u32,
    ) -> u32 {
        let iterations = self.iterations.as_ref();
        iterations.map_or(0, |iterations| iterations.fitting(time, before, each, tokens_max))
    }

    /// A time that such a step rarely exceeds.
    pub(crate) fn high(&self, predicted: Duration) -> Duration {
        scaled(predicted, self.high)
    }

    /// How many times longer than predicted steps rarely take. At least 1.
    pub(crate) fn rarely(&self) -> f64 {
        self.high
    }

    /// Takes in that a step for which `predicted` was said took `actual` on cores so many times slower than
    /// usually. Says what was known of its kind, if enough of it was seen to tell what is the step's and what
    /// the core's.
    pub(crate) fn learn(
        &mut self,
        kind: Kind,
        bytes: u64,
        (predicted, actual): (Duration, Duration),
        slowdown: f64,
    ) -> Option<Usual> {
        let ratio = as_nanos(actual).max(1.0) / as_nanos(predicted).max(1.0);
        let actual = (as_nanos(actual) / slowdown).max(1.0);
        if let Some(iterations) = &mut self.iterations {
            self.iterations_seen = self.iterations_seen.saturating_add(1);
            let nanos = iterations.learn(kind.width, kind.rows, bytes, actual);
            let usual = Usual { nanos, scatter: self.high - 1.0 };
            self.note_ratio(ratio);
            return (self.iterations_seen > SETTLING).then_some(usual);
        }
        let settled = self.learnt.get(&kind).filter(|learnt| learnt.seen >= SETTLING);
        let usual = settled.map(|learnt| Usual { nanos: learnt.nanos, scatter: self.high - 1.0 });
        let scaled = self.extrapolated(kind, bytes).max(1.0);
        if let Some((_, bias)) = self.bias.iter_mut().find(|(width, _)| *width == kind.width) {
            nudge(bias, actual / scaled);
        }
        self.note_ratio(ratio);
        for kind in [kind, Kind { beside: Beside::Usual, ..kind }] {
            if let Some(learnt) = self.learnt.get_mut(&kind) {
                learnt.update(actual);
                continue;
            }
            self.make_room();
            // Where it was measured at load that counts as one step.
            let nanos = if self.is_measured(kind) { f64::midpoint(scaled, actual) } else { actual };
            self.learnt.insert(kind, Learnt { nanos, seen: 1 });
        }
        usual
    }

    /// Stochastic approximation of a quantile (Robbins and Monro, 1951).
    fn note_ratio(&mut self, ratio: f64) {
        let up = if ratio > self.high { HIGH_QUANTILE } else { HIGH_QUANTILE - 1.0 };
        self.high = (self.high + HIGH_STEP * up).clamp(HIGH_RATIO.0, HIGH_RATIO.2);
    }

    /// Forgets kinds that were hardly seen, or else everything: what comes now is worth more than what came
    /// first.
    fn make_room(&mut self) {
        if self.learnt.len() >= REMEMBERED_MAX {
            self.learnt.retain(|_, learnt| learnt.seen >= SETTLING);
            if self.learnt.len() > REMEMBERED_MAX / 2 {
                self.learnt.clear();
            }
        }
    }

    /// The measured times as they turned out to be.
    pub(crate) fn corrected(&self) -> Vec<Cost> {
        if let Some(iterations) = &self.iterations {
            return iterations.corrected(&self.measured);
        }
        let corrected = |cost: &Cost| {
            let time = scaled(cost.time, self.bias(cost.width));
            Cost { time, ..*cost }
        };
        self.measured.iter().map(corrected).collect()
    }

    fn bias(&self, width: usize) -> f64 {
        self.bias.iter().find(|(known, _)| *known == width).map_or(1.0, |(_, bias)| *bias)
    }

    fn is_measured(&self, kind: Kind) -> bool {
        self.measured.iter().any(|cost| cost.rows == kind.rows && cost.width == kind.width)
    }

    /// From the measurement nearest in width, neighbours and rows, in proportion to rows and bytes.
    fn extrapolated(&self, kind: Kind, bytes: u64) -> f64 {
        let beside = kind.beside != Beside::Nothing;
        let distance = |cost: &&Cost| {
            let rows =
                if cost.rows <= kind.rows { kind.rows - cost.rows } else { cost.rows.saturating_mul(2) };
            (cost.width.abs_diff(kind.width), cost.beside != beside, rows)
        };
        let nearest = self.measured.iter().min_by_key(distance).expect("never empty");
        let by_rows = f64::from(kind.rows) / f64::from(nearest.rows.max(1));
        let nearest_bytes = self.row_bytes.saturating_mul(u64::from(nearest.rows.max(1)));
        let by_bytes = bytes as f64 / nearest_bytes as f64;
        as_nanos(nearest.time) * by_rows.max(by_bytes)
    }
}

impl Learnt {
    fn update(&mut self, actual: f64) {
        self.seen = self.seen.saturating_add(1);
        if self.seen <= SETTLING {
            self.nanos += (actual - self.nanos) / f64::from(self.seen);
        } else {
            let deviation = (actual / self.nanos.max(1.0) - 1.0).clamp(-DEVIATION_MAX, DEVIATION_MAX);
            self.nanos *= 1.0 + LEARNING_RATE * deviation;
        }
    }
}

/// Moves a ratio towards what was seen.
fn nudge(ratio: &mut f64, seen: f64) {
    let deviation = (seen / *ratio - 1.0).clamp(-DEVIATION_MAX, 4.0 * DEVIATION_MAX);
    *ratio *= 1.0 + LEARNING_RATE * deviation;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Unmet;

    const MS: Duration = Duration::from_millis(1);

    fn costs() -> Costs {
        let cost = |rows, width, beside, ms| Cost { rows, width, beside, time: ms * MS };
        Costs::new(&ModelTerms {
            rows_max: 8,
            widths: vec![1, 2],
            lane: None,
            queue_max: 10,
            delay_max: Duration::ZERO,
            costs: vec![
                cost(1, 1, false, 10),
                cost(4, 1, false, 30),
                cost(1, 1, true, 12),
                cost(1, 2, false, 6),
            ],
            row_bytes: 100,
            unmet: Unmet::Refuse,
            sequences: None,
        })
    }

    fn kind(rows: u32) -> Kind {
        Kind { shape: ShapeId(0), rows, width: 1, beside: Beside::Nothing }
    }

    #[test]
    fn unseen_steps_scale_from_the_nearest_measurement() {
        for (rows, bytes, expect) in
            [(1, 100, 10), (2, 200, 20), (4, 400, 30), (8, 800, 60), (1, 300, 30), (1, 10, 10)]
        {
            assert_eq!(costs().predict(kind(rows), bytes), expect * MS, "{rows} rows, {bytes} bytes");
        }
        assert_eq!(costs().predict(Kind { beside: Beside::Usual, ..kind(1) }, 100), 12 * MS);
        assert_eq!(costs().predict(Kind { width: 2, ..kind(1) }, 100), 6 * MS);
        assert_eq!(costs().predict(kind(u32::MAX), u64::MAX).as_secs(), u64::MAX / 1_000_000_000);
    }

    #[test]
    fn real_times_replace_the_guess_and_follow_the_median() {
        let mut costs = costs();
        let mut step = |ms: u32| {
            costs.learn(kind(1), 100, (10 * MS, ms * MS), 1.0);
        };
        (0..20).for_each(|_| step(20));
        // One outlier in five hardly matters; a change that lasts does.
        (0..50).for_each(|number| step(if number % 5 == 0 { 200 } else { 20 }));
        let learnt = costs.predict(kind(1), 100);
        assert!(learnt > 19 * MS && learnt < 22 * MS, "{learnt:?}");
        for _ in 0..60 {
            costs.learn(kind(1), 100, (10 * MS, 40 * MS), 1.0);
        }
        assert!(costs.predict(kind(1), 100) > 38 * MS);
        // Kinds not seen are scaled by how wrong the measurements were.
        assert!(costs.predict(kind(2), 200) > 60 * MS);
    }

    #[test]
    fn neighbours_are_told_apart() {
        let mut costs = costs();
        let beside = |beside| Kind { beside, ..kind(1) };
        for _ in 0..20 {
            costs.learn(beside(Beside::Nothing), 100, (10 * MS, 10 * MS), 1.0);
            costs.learn(beside(Beside::Model(ModelId(7))), 100, (10 * MS, 14 * MS), 1.0);
        }
        let near = |duration: Duration, ms: u32| duration.abs_diff(ms * MS) < MS / 10;
        assert!(near(costs.predict(beside(Beside::Model(ModelId(7))), 100), 14));
        assert!(near(costs.predict(kind(1), 100), 10));
        let usual = costs.predict(beside(Beside::Model(ModelId(8))), 100);
        assert!(usual > 10 * MS && usual < 14 * MS, "{usual:?}");
    }

    #[test]
    fn the_high_estimate_is_rarely_exceeded() {
        let mut costs = costs();
        let mut over = 0;
        for number in 0..4_000_u32 {
            // Between 8 and 12 milliseconds, in an order without a pattern that matters.
            let actual = 8 * MS + (number * 7_919 % 401) * MS / 100;
            let predicted = costs.predict(kind(1), 100);
            over += u32::from(number > 1_000 && actual > costs.high(predicted));
            costs.learn(kind(1), 100, (predicted, actual), 1.0);
        }
        assert!((75..=250).contains(&over), "{over} of 3000");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut costs = costs();
        for shape in 0..2_000 {
            costs.learn(Kind { shape: ShapeId(shape), ..kind(1) }, 100, (MS, MS), 1.0);
        }
        assert!(costs.learnt.len() <= REMEMBERED_MAX);
    }
}
